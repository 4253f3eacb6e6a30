//! Inputs as requests.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};

use crate::route::Route;

/// Headers of one request; a connection refuses more.
const HEADERS_MAX: usize = 64;

/// A request that a connection would hand over.
pub(super) struct Input {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Input {
    /// Reads an input; none if its head is none that a connection would take.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (line, mut rest) = line(bytes);
        let (method, target) = line.split_at(line.iter().position(|byte| *byte == b' ')?);
        let mut headers = HeaderMap::new();
        loop {
            let (header, after) = self::line(rest);
            rest = after;
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_at(header.iter().position(|byte| *byte == b':')?);
            let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
            headers.append(HeaderName::from_bytes(name).ok()?, value);
            if headers.len() > HEADERS_MAX {
                return None;
            }
        }
        let uri = Uri::try_from(target.get(1..)?).ok()?;
        Some(Input { method: Method::from_bytes(method).ok()?, uri, headers, body: Bytes::copy_from_slice(rest) })
    }

    /// Returns where it goes.
    pub(super) fn route(&self) -> Option<Route> {
        Route::of(self.uri.path(), self.uri.query().unwrap_or_default())
    }

    /// Returns the request.
    pub(super) fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Takes the first line off, which ends with a line feed or with the input.
fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}
