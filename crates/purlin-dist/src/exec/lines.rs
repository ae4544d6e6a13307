//! Bytes of a program's output, cut into lines whatever they are.
//!
//! A line without an end, or one of a gigabyte, leaves in pieces; bytes that are not UTF-8 become
//! replacement characters. Never holds more than one line's bound.

/// A line, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) text: String,
    /// Whether the line goes on in the next piece.
    pub(super) is_part: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lines {
    held: Vec<u8>,
    bytes_max: usize,
}

impl Lines {
    /// Cuts lines of at most `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { held: Vec::new(), bytes_max: bytes_max.max(8) }
    }

    /// Takes what arrived and gives every line that is complete, or too long to be held.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut give: impl FnMut(Cut)) {
        while !bytes.is_empty() {
            let room = self.bytes_max - self.held.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                self.held.extend_from_slice(&window[..end]);
                bytes = &bytes[end + 1..];
                if self.held.last() == Some(&b'\r') {
                    self.held.pop();
                }
                give(self.take(self.held.len(), false));
                continue;
            }
            self.held.extend_from_slice(window);
            bytes = &bytes[window.len()..];
            if self.held.len() == self.bytes_max {
                let cut = whole_chars(&self.held);
                give(self.take(cut, true));
            }
        }
    }

    /// Gives the line that has not ended, because nothing more comes, or not soon.
    pub(super) fn rest(&mut self, is_over: bool) -> Option<Cut> {
        (!self.held.is_empty()).then(|| self.take(self.held.len(), !is_over))
    }

    /// Whether a line has begun and not ended.
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    fn take(&mut self, bytes: usize, is_part: bool) -> Cut {
        let text = String::from_utf8_lossy(&self.held[..bytes]).into_owned();
        self.held.drain(..bytes);
        Cut { text, is_part }
    }
}

/// How many bytes of `bytes` do not cut a character in two. At least all but three.
fn whole_chars(bytes: &[u8]) -> usize {
    let len = bytes.len();
    let Some(back) = (1..=3.min(len)).find(|back| bytes[len - back] & 0b1100_0000 != 0b1000_0000)
    else {
        return len;
    };
    let wants = match bytes[len - back] {
        0b1100_0000..=0b1101_1111 => 2,
        0b1110_0000..=0b1110_1111 => 3,
        0b1111_0000..=0b1111_0111 => 4,
        _ => 1,
    };
    if wants > back { len - back } else { len }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]], bytes_max: usize) -> Vec<Cut> {
        let (mut lines, mut out) = (Lines::new(bytes_max), Vec::new());
        for chunk in chunks {
            lines.push(chunk, |cut| out.push(cut));
        }
        out.extend(lines.rest(true));
        out
    }

    fn line(text: &str) -> Cut {
        Cut { text: text.to_owned(), is_part: false }
    }

    fn part(text: &str) -> Cut {
        Cut { text: text.to_owned(), is_part: true }
    }

    #[test]
    fn lines_end_at_newlines_wherever_the_chunks_end() {
        let found = cut(&[b"one\r\ntw", b"o\n\n", b"three"], 64);
        assert_eq!(found, [line("one"), line("two"), line(""), line("three")]);
    }

    #[test]
    fn a_line_without_an_end_leaves_in_pieces_and_characters_stay_whole() {
        let found = cut(&["aaaaaaagrün".as_bytes()], 10);
        assert_eq!(found, [part("aaaaaaagr"), line("ün")]);
        assert_eq!(cut(&[b"12345678\nx\n"], 8), [part("12345678"), line(""), line("x")]);
    }

    #[test]
    fn what_is_not_text_becomes_text() {
        assert_eq!(cut(&[b"a\xff\xfe\0b\n"], 64), [line("a\u{fffd}\u{fffd}\0b")]);
    }

    #[test]
    fn a_prompt_can_be_taken_out_before_its_line_ends() {
        let mut lines = Lines::new(64);
        lines.push(b"name? ", |_| panic!("not a line"));
        assert!(lines.is_waiting());
        assert_eq!(lines.rest(false), Some(part("name? ")));
        assert_eq!(lines.rest(false), None);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_piece_exceeds_its_bound(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            bytes_max in 8_usize..40,
        ) {
            let (mut lines, mut text) = (Lines::new(bytes_max), String::new());
            // All ASCII, so that what comes out can be compared.
            let plain = |byte: &u8| if byte.is_ascii() && *byte != b'\r' { *byte } else { b'x' };
            let plain: Vec<Vec<u8>> =
                chunks.iter().map(|chunk| chunk.iter().map(plain).collect()).collect();
            let note = |cut: Cut, text: &mut String| {
                assert!(cut.text.len() <= bytes_max);
                text.push_str(&cut.text);
                if !cut.is_part {
                    text.push('\n');
                }
            };
            for chunk in &plain {
                lines.push(chunk, |cut| note(cut, &mut text));
                prop_assert!(lines.held.len() < bytes_max);
            }
            if let Some(cut) = lines.rest(true) {
                note(cut, &mut text);
            }
            let expected = String::from_utf8(plain.concat()).unwrap();
            // A last line without an end has one now, unless its pieces came out even.
            if expected.ends_with('\n') {
                prop_assert_eq!(text, expected);
            } else {
                prop_assert_eq!(text.trim_end_matches('\n'), expected.trim_end_matches('\n'));
            }
            // Any bytes at all do not make it panic.
            let mut hostile = Lines::new(bytes_max);
            for chunk in &chunks {
                hostile.push(chunk, drop);
            }
        }
    }
}
