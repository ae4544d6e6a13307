//! Server-Sent Events, read from bytes as they come.

use std::fmt;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// `message` when the sender names none.
    pub(crate) kind: String,
    /// The data lines, joined with newlines.
    pub(crate) data: String,
    /// The id to resume after.
    pub(crate) id: Option<String>,
}

/// Longest line accepted: what a 16 MiB payload can become in base64 within JSON, and some more.
const LINE_BYTES_MAX: usize = 64 << 20;

/// Cuts a byte stream into events, wherever the chunks end.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    after_carriage_return: bool,
}

/// A line was longer than [`LINE_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineTooLong;

impl fmt::Display for LineTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the node sent a line of more than {LINE_BYTES_MAX} bytes")
    }
}

impl Parser {
    /// Takes the next bytes and appends the events they complete to `events`.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), LineTooLong> {
        // "\r\n" may be cut between two chunks.
        if self.after_carriage_return && bytes.first() == Some(&b'\n') {
            bytes = &bytes[1..];
        }
        if !bytes.is_empty() {
            self.after_carriage_return = false;
        }
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r') {
            self.line.extend_from_slice(&bytes[..end]);
            let line = std::mem::take(&mut self.line);
            self.take_line(&line, events);
            // Keep the allocation for the next line.
            self.line = line;
            self.line.clear();
            let is_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if is_return {
                match bytes.first() {
                    Some(b'\n') => bytes = &bytes[1..],
                    Some(_) => {}
                    None => self.after_carriage_return = true,
                }
            }
        }
        if self.line.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(LineTooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], events: &mut Vec<Event>) {
        if line.is_empty() {
            let mut event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                if event.kind.is_empty() {
                    "message".clone_into(&mut event.kind);
                }
                events.push(event);
            }
            return;
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.kind),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            // Comments (an empty field name) keep the connection alive; `retry` is for browsers.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.feed(chunk, &mut events).unwrap();
        }
        events
    }

    fn event(kind: &str, data: &str, id: Option<&str>) -> Event {
        Event { kind: kind.into(), data: data.into(), id: id.map(Into::into) }
    }

    #[test]
    fn an_event_has_kind_data_and_id() {
        let events = parse(&[b": hello\n\nid: 7\nevent: gap\ndata: {\"missed\":1}\n\ndata:x\n\n"]);
        assert_eq!(
            events,
            [event("gap", "{\"missed\":1}", Some("7")), event("message", "x", None)]
        );
    }

    #[test]
    fn data_lines_are_joined() {
        assert_eq!(parse(&[b"data: a\ndata:\ndata: b\n\n"]), [event("message", "a\n\nb", None)]);
    }

    #[test]
    fn chunks_may_end_anywhere() {
        let text = "id: 1\r\nevent: e\r\ndata: grün\r\n\r\ndata: two\r\rdata: three\n\n".as_bytes();
        let whole = parse(&[text]);
        assert_eq!(whole.len(), 3);
        for cut in 0..text.len() {
            assert_eq!(parse(&[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
        let bytes: Vec<_> = text.chunks(1).collect();
        assert_eq!(parse(&bytes), whole);
    }

    #[test]
    fn an_unfinished_event_is_not_an_event() {
        assert_eq!(parse(&[b"data: half\n"]), []);
        assert_eq!(parse(&[b"event: nothing\n\n"]), []);
    }
}
