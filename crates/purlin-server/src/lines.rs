//! Cuts a streamed body into messages, one per line, wherever its chunks happen to end.
//!
//! A line is everything before a line feed, byte for byte: a carriage return belongs to it, and an
//! empty line is an empty message. So what a subscriber prints, one message per line, is the same
//! file again. Lines inside one chunk are slices of it, not copies.

use bytes::{Bytes, BytesMut};

/// A line was longer than the bound; nothing of it was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LineTooLong;

/// The unfinished line at the end of what was fed so far. Holds at most `bytes_max` plus one chunk.
#[derive(Debug)]
pub(crate) struct Lines {
    unfinished: BytesMut,
    bytes_max: usize,
}

impl Lines {
    /// Refuses lines longer than `bytes_max`.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { unfinished: BytesMut::new(), bytes_max }
    }

    /// Takes the next chunk and appends the lines it completes to `lines`.
    pub(crate) fn feed(
        &mut self,
        mut chunk: Bytes,
        lines: &mut Vec<Bytes>,
    ) -> Result<(), LineTooLong> {
        while let Some(end) = chunk.iter().position(|&byte| byte == b'\n') {
            let rest = chunk.split_off(end + 1);
            chunk.truncate(end);
            lines.push(self.finish(chunk)?);
            chunk = rest;
        }
        if self.unfinished.len() + chunk.len() > self.bytes_max {
            return Err(LineTooLong);
        }
        self.unfinished.extend_from_slice(&chunk);
        Ok(())
    }

    /// The last line, if the body does not end in a line feed.
    pub(crate) fn last(self) -> Option<Bytes> {
        (!self.unfinished.is_empty()).then(|| self.unfinished.freeze())
    }

    fn finish(&mut self, end: Bytes) -> Result<Bytes, LineTooLong> {
        if self.unfinished.len() + end.len() > self.bytes_max {
            return Err(LineTooLong);
        }
        if self.unfinished.is_empty() {
            return Ok(end);
        }
        self.unfinished.extend_from_slice(&end);
        Ok(self.unfinished.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]], bytes_max: usize) -> Result<Vec<Bytes>, LineTooLong> {
        let mut cutter = Lines::new(bytes_max);
        let mut lines = Vec::new();
        for chunk in chunks {
            cutter.feed(Bytes::copy_from_slice(chunk), &mut lines)?;
        }
        lines.extend(cutter.last());
        Ok(lines)
    }

    #[test]
    fn carriage_returns_and_empty_lines_are_kept() {
        assert_eq!(cut(&[b"a\r\n\nb"], 9).unwrap(), ["a\r", "", "b"]);
        assert_eq!(cut(&[b"\n"], 9).unwrap(), [""]);
        assert!(cut(&[b""], 9).unwrap().is_empty());
    }

    #[test]
    fn a_line_of_exactly_the_bound_passes_and_one_more_byte_does_not() {
        assert_eq!(cut(&[b"abc", b"d\n"], 4).unwrap(), ["abcd"]);
        assert_eq!(cut(&[b"abcd"], 4).unwrap(), ["abcd"]);
        for chunks in [[&b"abc"[..], b"de\n"], [b"abcde", b""], [b"abcde\n", b""]] {
            assert_eq!(cut(&chunks, 4), Err(LineTooLong), "{chunks:?}");
        }
    }

    proptest! {
        #[test]
        fn joining_the_lines_gives_the_body_back_wherever_it_was_cut(
            chunks in prop::collection::vec(prop::collection::vec(prop::sample::select(vec![b'a', b'\n', b'\r', 0xff]), 0..9), 0..9),
        ) {
            let body = chunks.concat();
            let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let lines = cut(&slices, 1 << 20).unwrap();
            let mut expected: Vec<&[u8]> = body.split(|&byte| byte == b'\n').collect();
            if expected.last().is_some_and(|last| last.is_empty()) {
                expected.pop();
            }
            prop_assert_eq!(lines, expected);
        }
    }
}
