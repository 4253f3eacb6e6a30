//! Reads the cases of `testdata`: inputs, and what other software computed from them.

use std::path::Path;

use serde_json::Value;

/// One case.
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) input: Value,
    pub(crate) expected: Value,
    tolerance: Value,
}

/// Reads the cases of one family that test one method.
pub(crate) fn cases(family: &str, method: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/{family}.json"));
    let text = std::fs::read_to_string(&path).expect("the file of the family");
    let family: Value = serde_json::from_str(&text).expect("JSON");
    let cases: Vec<Case> = family["cases"]
        .as_array()
        .expect("a list of cases")
        .iter()
        .filter(|case| case["method"] == method)
        .map(|case| Case {
            id: case["id"].as_str().expect("an id").to_owned(),
            input: case["input"].clone(),
            expected: case["expected"].clone(),
            tolerance: case["tolerance"].clone(),
        })
        .collect();
    assert!(!cases.is_empty(), "no case of {method} in {}", path.display());
    cases
}

impl Case {
    /// Returns the expected value at `name` or `name[index]`.
    fn expected_at(&self, name: &str) -> &Value {
        match name.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
            Some((list, index)) => &self.expected[list][index.parse::<usize>().expect("an index")],
            None => &self.expected[name],
        }
    }

    /// Returns whether the case expects anything at `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.expected.get(name).is_some()
    }

    /// Compares one number with what the case expects at `name` or `name[index]`.
    pub(crate) fn check(&self, name: &str, got: impl Into<Option<f64>>) {
        let got = got.into();
        let expected = self.expected_at(name);
        let Some(number) = expected.as_f64() else {
            assert!(expected.is_null(), "{}: {name} is expected to be {expected}", self.id);
            assert_eq!(got, None, "{}: {name} is undefined", self.id);
            return;
        };
        let got = got.unwrap_or_else(|| panic!("{}: {name} is expected to be {number}, found nothing", self.id));
        let field = name.split('[').next().unwrap_or(name);
        let own = &self.tolerance[field];
        let tolerance = if own.is_null() { &self.tolerance["default"] } else { own };
        let (relative, absolute) = (tolerance["rel"].as_f64().expect("rel"), tolerance["abs"].as_f64().expect("abs"));
        let error = (got - number).abs();
        assert!(error <= absolute.max(relative * number.abs()), "{}: {name} is {got}, expected {number}", self.id);
    }

    /// Compares a text, such as a status; `ok` is expected where the case says nothing.
    pub(crate) fn check_status(&self, got: &str) {
        let expected = self.expected.get("status").and_then(Value::as_str).unwrap_or("ok");
        assert_eq!(got, expected, "{}: status", self.id);
    }

    /// Returns the number of the input at `name`.
    pub(crate) fn number(&self, name: &str) -> f64 {
        self.input[name].as_f64().unwrap_or_else(|| panic!("{}: no number {name}", self.id))
    }
}
