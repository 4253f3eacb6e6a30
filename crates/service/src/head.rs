//! The head of a request as it stands on the wire: what hyper accepts, and a proxy before us may read in another way.
//!
//! A request whose end two programs see at different places lets a client slip a second one past the first program. hyper refuses
//! lengths that differ, and takes a line end without a carriage return and a length that is given twice; these are refused
//! here. What came together with an earlier request, or behind the rest of a body that nobody read, is not seen: who sends that speaks to
//! us directly.
//! Source: RFC 9112 sections 2.2, 6.1 and 6.3.

use hyper::header::TRANSFER_ENCODING;
use hyper::{HeaderMap, Method, Uri};

/// Bytes of a line that are looked at: the name of the header that counts, and its colon.
const PREFIX_MAX: usize = 16;
const CONTENT_LENGTH: &[u8] = b"content-length:";

/// The beginning of a line, in lowercase.
#[derive(Clone, Copy, Debug, Default)]
struct Prefix {
    bytes: [u8; PREFIX_MAX],
    length: usize,
}

impl Prefix {
    fn add(&mut self, part: &[u8]) {
        for (place, byte) in self.bytes[self.length..].iter_mut().zip(part) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Looks at the bytes of one head after another.
#[derive(Debug, Default)]
pub(crate) struct HeadScan {
    /// The beginning of the present line.
    line: Prefix,
    /// The same of the request line.
    request_line: Prefix,
    /// Whether the last byte was a carriage return.
    has_return: bool,
    lines: usize,
    lengths: usize,
    is_over: bool,
    fault: Option<&'static str>,
}

impl HeadScan {
    /// Looks at what came next; what follows the head is passed over.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !self.is_over
            && let Some(end) = memchr::memchr(b'\n', bytes)
        {
            self.add(&bytes[..end]);
            self.end_line();
            bytes = &bytes[end + 1..];
        }
        if !self.is_over {
            self.add(bytes);
        }
    }

    /// Returns whether a byte of a head has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.lines > 0 || self.line.length > 0
    }

    fn add(&mut self, part: &[u8]) {
        let Some(last) = part.last() else { return };
        self.has_return = *last == b'\r';
        self.line.add(part);
    }

    fn end_line(&mut self) {
        if !self.has_return {
            self.fault = Some("a line of the request's head ends without a carriage return");
        }
        let is_empty = matches!(self.line.as_bytes(), b"" | b"\r");
        if self.line.as_bytes().starts_with(CONTENT_LENGTH) {
            self.lengths += 1;
            if self.lengths > 1 {
                self.fault = Some("the header content-length stands twice");
            }
        }
        // Empty lines before a request are passed over, as everywhere.
        self.is_over = is_empty && self.lines > 0;
        if self.lines == 0 && !is_empty {
            self.request_line = self.line;
        }
        self.lines += usize::from(!is_empty);
        self.line = Prefix::default();
        self.has_return = false;
    }

    /// Returns what is wrong with the head of this request; nothing if other bytes were looked at.
    pub(crate) fn fault(&self, method: &Method, target: &Uri) -> Option<&'static str> {
        let fault = self.fault?;
        let mut expected = format!("{method} {target}").to_ascii_lowercase().into_bytes();
        expected.truncate(self.request_line.length);
        (!expected.is_empty() && self.request_line.as_bytes().starts_with(&expected)).then_some(fault)
    }
}

/// Returns what is wrong with the transfer coding of a request: a body is sent in chunks or not, and in no other coding.
pub(crate) fn transfer_fault(headers: &HeaderMap) -> Option<&'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &hyper::header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    let accepted = codings.next().is_none_or(is_chunked) && codings.next().is_none();
    (!accepted).then_some("of transfer codings only chunked is accepted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_two_programs_read_in_two_ways_are_found_wherever_they_are_cut() {
        let check = |bytes: &[u8], expected: Option<&str>| {
            for cut in 0..=bytes.len() {
                let mut scan = HeadScan::default();
                scan.feed(&bytes[..cut]);
                scan.feed(&bytes[cut..]);
                let method = if bytes.trim_ascii_start().starts_with(b"POST") { Method::POST } else { Method::GET };
                let found = scan.fault(&method, &Uri::from_static("/"));
                assert_eq!(found, expected, "{:?} cut at {cut}", String::from_utf8_lossy(bytes));
                assert_eq!(scan.fault(&Method::PUT, &Uri::from_static("/")), None, "of another request");
            }
        };
        let (bare, twice) =
            (Some("a line of the request's head ends without a carriage return"), Some("the header content-length stands twice"));
        check(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na\nb", None);
        check(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", None);
        check(b"GET / HTTP/1.1\nHost: a\r\n\r\n", bare);
        check(b"GET / HTTP/1.1\r\nHost: a\r\nx: y\n\r\n", bare);
        check(b"GET / HTTP/1.1\r\nHost: a\r\n\n", bare);
        check(b"POST / HTTP/1.1\r\nContent-Length: 3\r\ncontent-length: 3\r\n\r\nabc", twice);
        check(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nContent-Length: 3\r\n", None);
        check(b"POST / HTTP/1.1\r\nContent-Length-Of: 3\r\nContent-Length: 3\r\n\r\n", None);
    }

    #[test]
    fn bodies_come_in_chunks_or_not() {
        let check = |values: &[&'static str], accepted: bool| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TRANSFER_ENCODING, hyper::header::HeaderValue::from_static(value));
            }
            assert_eq!(transfer_fault(&headers).is_none(), accepted, "{values:?}");
        };
        check(&[], true);
        check(&["Chunked"], true);
        check(&["gzip, chunked"], false);
        check(&["gzip", "chunked"], false);
        check(&["chunked", "chunked"], false);
        check(&["identity"], false);
    }
}
