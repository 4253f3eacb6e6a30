//! The head of a request, where a key may stand in several places.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyper::header::{AUTHORIZATION, HeaderMap};

use super::query;

/// Accepts padding and its absence.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT.with_decode_allow_trailing_bits(true));

/// Decodes base64 of either alphabet, with or without padding.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let text = if text.contains(['-', '_']) { Cow::Owned(text.replace('-', "+").replace('_', "/")) } else { Cow::Borrowed(text) };
    BASE64.decode(text.as_bytes()).ok()
}

/// What the head says about the key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyInHead {
    pub(crate) key: Option<String>,
    /// Whether that is all; else the body may name another one, which then counts.
    pub(crate) is_settled: bool,
}

impl KeyInHead {
    /// A key, or none, that nothing in the body changes.
    pub(crate) fn settled(key: Option<String>) -> Self {
        KeyInHead { key, is_settled: true }
    }

    /// A key, or else the one that the body names.
    pub(crate) fn or_body(key: Option<String>) -> Self {
        KeyInHead { is_settled: key.is_some(), key }
    }
}

/// The head of a request, as far as keys are concerned.
pub(crate) struct Head<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: &'a str,
}

impl Head<'_> {
    /// Returns a header that is not empty.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|value| !value.is_empty())
    }

    /// Returns the first parameter of a name that is not empty.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        query::parameter(self.query, name).map(Cow::into_owned)
    }

    fn credentials(&self, scheme: &str) -> Option<&str> {
        let value = self.headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (found, credentials) = value.split_once(' ')?;
        Some(credentials.trim()).filter(|credentials| found.eq_ignore_ascii_case(scheme) && !credentials.is_empty())
    }

    /// Returns the token of Bearer authentication.
    pub(crate) fn bearer(&self) -> Option<String> {
        self.credentials("bearer").map(str::to_owned)
    }

    /// Returns the user name of Basic authentication; the colon after it may be missing.
    pub(crate) fn basic(&self) -> Option<String> {
        let text = String::from_utf8(base64(self.credentials("basic")?)?).ok()?;
        first_part(&text)
    }

    /// Returns the key of `X-Write-Key`. Some clients write `key:secret` there; the key is what they mean.
    pub(crate) fn write_key(&self) -> Option<String> {
        self.header("x-write-key").and_then(first_part)
    }
}

fn first_part(text: &str) -> Option<String> {
    text.split(':').next().filter(|key| !key.is_empty()).map(str::to_owned)
}

#[cfg(test)]
pub(crate) fn found(dialect: &dyn super::Dialect, pairs: &[(&'static str, &'static str)], query: &str) -> (Option<String>, bool) {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (hyper::header::HeaderName::from_static(name), hyper::header::HeaderValue::from_static(value))
    };
    let headers = pairs.iter().map(pair).collect();
    let KeyInHead { key, is_settled } = dialect.key(&Head { headers: &headers, query });
    (key, is_settled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect;
    use events::identity::Dialect;

    #[test]
    fn keys_are_found_where_each_dialect_keeps_them() {
        let check = |name, pairs: &[(&'static str, &'static str)], query, expected: Option<&str>, is_settled| {
            let found = found(dialect::of(name), pairs, query);
            assert_eq!(found, (expected.map(str::to_owned), is_settled), "{pairs:?} {query}");
        };
        // `k:` with and without padding, `k`, `k:secret`, and none.
        let basic = |text| [("authorization", text)];
        check(Dialect::Native, &basic("Bearer k"), "key=other", Some("k"), true);
        check(Dialect::Native, &basic("bearer  k"), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic azo="), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic azo"), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic aw=="), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic azpzZWNyZXQ="), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic !"), "key=q", Some("q"), true);
        check(Dialect::Native, &basic("Bearer"), "key=%71", Some("q"), true);
        check(Dialect::Native, &[], "keys=q", None, true);
        check(Dialect::Pixel, &[], "type=impression&key=q", Some("q"), true);
        check(Dialect::Segment, &basic("Basic azo="), "writeKey=q", Some("k"), true);
        check(Dialect::Segment, &basic("Basic Og=="), "writeKey=q", Some("q"), false);
        check(Dialect::Segment, &basic("Bearer b"), "writeKey=q", Some("b"), false);
        check(Dialect::Segment, &[("x-write-key", "h:secret")], "writeKey=q", Some("h"), false);
        check(Dialect::Segment, &[], "", None, false);
        check(Dialect::Jitsu, &[("x-write-key", "h:secret")], "", Some("h"), true);
        check(Dialect::Jitsu, &[], "", None, false);
        check(Dialect::Posthog, &basic("Bearer b"), "", Some("b"), true);
        check(Dialect::Posthog, &[], "api_key=q", Some("q"), true);
        check(Dialect::Posthog, &[], "", None, false);
        check(Dialect::Snowplow, &[], "e=pv&aid=shop", Some("shop"), true);
        check(Dialect::Snowplow, &[], "e=pv&aid=shop&key=q", Some("q"), true);
        check(Dialect::Snowplow, &[], "", None, false);
        check(Dialect::Growthbook, &[], "client_key=q", Some("q"), true);
        check(Dialect::Growthbook, &[], "", None, true);
        check(Dialect::Statsig, &[("statsig-api-key", "s")], "k=q", Some("s"), true);
        check(Dialect::Statsig, &[], "k=q", Some("q"), true);
        check(Dialect::Statsig, &[], "", None, true);
    }

    #[test]
    fn either_alphabet_is_decoded() {
        for text in ["+/8=", "-_8=", "-_8", "+/8", " +/8 "] {
            assert_eq!(base64(text).as_deref(), Some([0xfb, 0xff].as_slice()), "{text}");
        }
        assert_eq!(base64("{"), None);
    }
}
