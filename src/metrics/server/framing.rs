//! Where requests begin and end, as far as that can be seen without parsing them.

/// Follows the lines that a client sends.
#[derive(Debug)]
pub(super) struct Framing {
    after_cr: bool,
    line_is_empty: bool,
    between_requests: bool,
    bare_line_feed: bool,
    untouched: bool,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { after_cr: false, line_is_empty: true, between_requests: true, bare_line_feed: false, untouched: true }
    }

    pub(super) fn follow(&mut self, bytes: &[u8]) {
        self.untouched &= bytes.is_empty();
        for &byte in bytes {
            match byte {
                b'\n' => {
                    self.bare_line_feed |= !self.after_cr;
                    self.between_requests = self.line_is_empty;
                    self.line_is_empty = true;
                }
                b'\r' => self.between_requests = false,
                _ => (self.between_requests, self.line_is_empty) = (false, false),
            }
            self.after_cr = byte == b'\r';
        }
    }

    /// Whether nothing has arrived yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.untouched
    }

    /// Whether the input so far ends with an empty line, the end of a request without a body.
    pub(super) fn between_requests(&self) -> bool {
        self.between_requests
    }

    /// Whether a line ended without a carriage return. hyper accepts that as the end of a line, as RFC 9112
    /// (2.2) allows; a proxy in front of us may not, and may therefore see different requests.
    pub(super) fn is_disputable(&self) -> bool {
        self.bare_line_feed
    }
}

#[cfg(test)]
mod tests {
    use super::Framing;

    fn followed(bytes: &[u8]) -> (bool, bool) {
        // The result is the same however the bytes arrive.
        let mut one_by_one = Framing::new();
        bytes.chunks(1).for_each(|byte| one_by_one.follow(byte));
        let mut at_once = Framing::new();
        at_once.follow(bytes);
        let seen = (at_once.between_requests(), at_once.is_disputable());
        assert_eq!(seen, (one_by_one.between_requests(), one_by_one.is_disputable()));
        seen
    }

    #[test]
    fn a_request_ends_with_an_empty_line() {
        assert_eq!(followed(b""), (true, false));
        assert_eq!(followed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), (true, false));
        assert_eq!(followed(b"GET / HTTP/1.1\r\n\r\n\r\n"), (true, false));
        for part in ["G", "GET / HTTP/1.1", "GET / HTTP/1.1\r", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\n\r", "\r"] {
            assert_eq!(followed(part.as_bytes()), (false, false), "{part:?}");
            let second = format!("GET / HTTP/1.1\r\n\r\n{part}");
            assert_eq!(followed(second.as_bytes()), (false, false), "{second:?}");
        }
    }

    #[test]
    fn a_bare_line_feed_is_disputable() {
        assert_eq!(followed(b"GET / HTTP/1.1\n\n"), (true, true));
        assert_eq!(followed(b"GET / HTTP/1.1\r\nHost: x\r\n\nGET / HTTP/1.1\r\n\r\n"), (true, true));
        assert_eq!(followed(b"\n"), (true, true));
    }
}
