//! Parameters of a query, and of a form in a body.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Walks the parameters of a query in their order. A value that is not UTF-8 once it is decoded is returned as `None`.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Option<Cow<'_, str>>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A key that is not UTF-8 matches no field, and is returned as written.
        (decode(key).unwrap_or(Cow::Borrowed(key)), decode(value))
    })
}

/// Returns the first parameter of a name that is not empty.
pub(crate) fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    parameters(query).filter(|(key, _)| key == name).find_map(|(_, value)| value.filter(|value| !value.is_empty()))
}

/// Decodes `%41` and `+`. A `%` without two digits after it is left as it is.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8().ok()?;
    Some(Cow::Owned(decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let check = |query: &str, expected: &[(&str, Option<&str>)]| {
            let found: Vec<_> = parameters(query).map(|(key, value)| (key.into_owned(), value.map(Cow::into_owned))).collect();
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
