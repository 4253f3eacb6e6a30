//! What PostHog's clients wrap bodies in: a form or a parameter, base64, LZ-string.

use std::borrow::Cow;

use bytes::Bytes;

use crate::dialect::EnvelopeFault;
use crate::dialect::head::base64;
use crate::dialect::query::parameter;
use crate::encoding;

/// Takes a body out of its wrapping; none if it has none. What it returns may be compressed.
/// Source: the order in which PostHog's own capture service tries.
pub(super) fn unwrap(query: &str, body: &Bytes, bytes_max: usize) -> Result<Option<Vec<u8>>, EnvelopeFault> {
    let fault = |what: &str| EnvelopeFault::Unreadable(format!("the body is not valid {what}"));
    let in_query = if body.is_empty() { parameter(query, "data") } else { None };
    let form = std::str::from_utf8(body).ok().map(str::trim_ascii).filter(|text| is_form(text));
    let in_form = form.and_then(|form| parameter(form, "data"));
    let is_wrapped = in_query.is_some() || in_form.is_some();
    let hint = form.and_then(|form| parameter(form, "compression")).or_else(|| parameter(query, "compression"));
    let data: Cow<'_, [u8]> = match in_form.or(in_query) {
        // A plus sign that was not escaped was read as a space.
        Some(text) if !text.trim_ascii_start().starts_with(['{', '[']) => Cow::Owned(text.replace(' ', "+").into_bytes()),
        Some(text) => Cow::Owned(text.into_owned().into_bytes()),
        None => Cow::Borrowed(body.as_ref()),
    };
    if is_plain(&data) {
        return Ok(is_wrapped.then(|| data.into_owned()));
    }
    let text = std::str::from_utf8(&data).map_err(|_| fault("UTF-8"))?;
    if matches!(hint.as_deref(), Some("lz64" | "lz-string")) {
        return super::lz::decompress(text, bytes_max).map(Some);
    }
    let decoded = base64(text).ok_or_else(|| fault("JSON, compressed JSON or base64"))?;
    if is_plain(&decoded) {
        return Ok(Some(decoded));
    }
    Err(fault("JSON, compressed or not, within base64"))
}

fn is_form(text: &str) -> bool {
    text.starts_with("data=") || (text.starts_with("compression=") && text.contains("&data="))
}

/// JSON, compressed or not, or nothing at all.
fn is_plain(data: &[u8]) -> bool {
    encoding::sniffed(data).is_some() || matches!(data.trim_ascii_start().first(), None | Some(b'{' | b'[' | 0xef))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, body: &[u8], expected: Option<Option<&[u8]>>) {
        let found = unwrap(query, &Bytes::copy_from_slice(body), 1_000).ok();
        assert_eq!(found.as_ref().map(Option::as_deref), expected, "{query}");
    }

    #[test]
    fn bodies_are_found_in_what_clients_wrap_them_in() {
        let json: &[u8] = br#"{"a":"~~?"}"#;
        let gzip: &[u8] = &[0x1f, 0x8b, 8, 0, 0xfb, 0xff, 0xfe];
        check("", json, Some(None));
        check("compression=gzip-js", gzip, Some(None));
        check("data=%7B%22a%22%3A%22~~%3F%22%7D", b"", Some(Some(json)));
        check("data=eyJhIjoifn4%2FIn0%3D", b"", Some(Some(json)));
        check("compression=base64", b"eyJhIjoifn4/In0=", Some(Some(json)));
        check("", b"eyJhIjoifn4_In0", Some(Some(json)));
        check("", b"data=eyJhIjoifn4%2FIn0%3D&compression=base64", Some(Some(json)));
        check("", b"compression=base64&data=eyJhIjoifn4%2FIn0%3D", Some(Some(json)));
        check("compression=gzip", b"data=H4sIAPv//g==", Some(Some(gzip)));
        check("", b"hello, world", None);
        check("", b"aGVsbG8=", None);
    }
}
