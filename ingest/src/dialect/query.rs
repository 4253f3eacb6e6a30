//! Parameters of a query, and of a form in a body.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A value once it is decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded<'a> {
    pub(crate) text: Cow<'a, str>,
    /// Bytes in it that are not UTF-8 were replaced.
    pub(crate) is_damaged: bool,
}

/// Walks the parameters of a query in their order.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Decoded<'_>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key).text, decode(value))
    })
}

/// Returns the first parameter of a name that is not empty.
pub(crate) fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let is_value = |value: &Decoded<'_>| !value.is_damaged && !value.text.is_empty();
    parameters(query).filter(|(key, _)| key == name).map(|(_, value)| value).find(is_value).map(|value| value.text)
}

/// Decodes `%41` and `+`. A `%` without two digits after it is left as it is.
fn decode(text: &str) -> Decoded<'_> {
    if !text.contains(['%', '+']) {
        return Decoded { text: Cow::Borrowed(text), is_damaged: false };
    }
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text);
    match decoded.clone().decode_utf8() {
        Ok(decoded) => Decoded { text: Cow::Owned(decoded.into_owned()), is_damaged: false },
        Err(_) => Decoded { text: Cow::Owned(decoded.decode_utf8_lossy().into_owned()), is_damaged: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let check = |query: &str, expected: &[(&str, Option<&str>)]| {
            let text = |value: Decoded<'_>| (!value.is_damaged).then(|| value.text.into_owned());
            let found: Vec<_> = parameters(query).map(|(key, value)| (key.into_owned(), text(value))).collect();
            let expected: Vec<_> = expected.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
            assert_eq!(found, expected, "{query}");
        };
        check("", &[]);
        check("a=1&b=&c&&d=x=y", &[("a", Some("1")), ("b", Some("")), ("c", Some("")), ("d", Some("x=y"))]);
        check("a=%C3%A9+x%2B&%61=2", &[("a", Some("é x+")), ("a", Some("2"))]);
        check("a=%&b=%4&c=%zz", &[("a", Some("%")), ("b", Some("%4")), ("c", Some("%zz"))]);
        check("a=%ff", &[("a", None)]);
        assert_eq!(parameter("key=&key=k", "key").as_deref(), Some("k"));
        assert_eq!(parameter("keys=k", "key"), None);
    }
}
