//! Server-sent events (WHATWG HTML, section 9.2.6), as far as the daemon uses them: the data
//! of each event. Event names, ids and retry times are skipped.

/// Longest data of one event.
pub const EVENT_MAX: usize = 1 << 20;

/// Why a stream is not one of server-sent events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line or an event's data is beyond [`EVENT_MAX`].
    #[error("an event is longer than {EVENT_MAX} bytes")]
    TooLong,
}

/// Takes the bytes of a stream as they come and gives the data of the events that are whole.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// Data of the event that has not ended yet, each line followed by a newline.
    data: Vec<u8>,
    /// The last byte was a carriage return: a newline right after it belongs to it.
    after_return: bool,
    /// The first line has been seen, so a byte order mark is no longer skipped.
    begun: bool,
}

impl SseParser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and gives the data of each event that they complete.
    ///
    /// # Errors
    /// An event is too long. The stream is then of no more use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                byte if self.line.len() < EVENT_MAX => self.line.push(byte),
                _ => return Err(SseError::TooLong),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<Vec<u8>>, SseError> {
        let line = std::mem::take(&mut self.line);
        let line = match line.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if !self.begun => rest,
            _ => &line[..],
        };
        self.begun = true;
        if line.is_empty() {
            // The data's last newline ends it and is not part of it.
            self.data.pop();
            let data = std::mem::take(&mut self.data);
            return Ok((!data.is_empty()).then_some(data));
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            // Comments (which keep a connection alive) and fields of no interest.
            _ => return Ok(None),
        };
        if self.data.len() + value.len() > EVENT_MAX {
            return Err(SseError::TooLong);
        }
        self.data.extend_from_slice(value);
        self.data.push(b'\n');
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Vec<String> {
        let events = SseParser::new().push(bytes).unwrap();
        events
            .into_iter()
            .map(|data| String::from_utf8(data).unwrap())
            .collect()
    }

    #[test]
    fn data_is_taken_and_everything_else_skipped() {
        let stream = b"\xef\xbb\xbfdata: one\nid: 7\n\n: keep alive\n\nevent: x\ndata:two\ndata: 2\n\ndatax: no\n\ndata: unfinished\n";
        assert_eq!(parse(stream), ["one", "two\n2"]);
    }

    #[test]
    fn every_line_end_of_the_specification_works() {
        assert_eq!(
            parse(b"data: a\r\rdata: b\r\n\r\ndata: c\n\n"),
            ["a", "b", "c"]
        );
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::new();
        assert_eq!(
            parser.push(&vec![b'x'; EVENT_MAX + 1]),
            Err(SseError::TooLong)
        );
    }

    fn line_end() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("\n"), Just("\r\n"), Just("\r")]
    }

    proptest! {
        #[test]
        fn events_survive_any_split(
            events in proptest::collection::vec("[ -~]{1,60}", 0..6),
            end in line_end(),
            step in 1usize..40,
        ) {
            let stream: String = events
                .iter()
                .map(|data| format!("event: message{end}data: {data}{end}{end}: alive{end}{end}"))
                .collect();
            let mut parser = SseParser::new();
            let mut read = Vec::new();
            for chunk in stream.as_bytes().chunks(step) {
                for data in parser.push(chunk).unwrap() {
                    read.push(String::from_utf8(data).unwrap());
                }
            }
            prop_assert_eq!(read, events);
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = SseParser::new().push(&bytes);
        }
    }
}
