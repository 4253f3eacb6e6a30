//! Results for spreadsheets.

use serde_json::Value;

use super::super::text::{elements, plain, text_of};
use super::{arm_id, is_control, name_of};

/// Writes one line for each metric and arm, numbers as the service gave them.
pub(crate) fn csv(answer: &Value) -> Vec<Vec<String>> {
    const COLUMNS: [(&str, &str); 18] = [
        ("status", "/status"),
        ("difference", "/absolute/estimate"),
        ("difference_low", "/absolute/ci/0"),
        ("difference_high", "/absolute/ci/1"),
        ("lift", "/relative/lift"),
        ("lift_low", "/relative/ci/0"),
        ("lift_high", "/relative/ci/1"),
        ("test", "/test/name"),
        ("p_value", "/test/p_value"),
        ("log10_p", "/test/log10_p"),
        ("p_fisher", "/test/p_fisher"),
        ("adjusted_p_value", "/adjusted/p_value"),
        ("always_valid_p", "/sequential/always_valid_p"),
        ("boundary_z", "/sequential/boundary_z"),
        ("chance_to_win", "/bayesian/chance_to_win"),
        ("significant", "/significant"),
        ("decided_by", "/decided_by"),
        ("verdict", "/verdict"),
    ];
    let mut header: Vec<String> =
        ["metric", "variant", "is_control", "users", "numerator", "denominator", "sum", "mean"].map(Into::into).into();
    header.extend(COLUMNS.map(|(name, _)| name.to_owned()));
    let mut lines = vec![header];
    for metric in elements(answer, "/metrics") {
        for arm in elements(metric, "/arms") {
            let id = arm_id(arm);
            let comparison = elements(metric, "/comparisons").iter().find(|comparison| id.is_some() && arm_id(comparison) == id);
            let cell = |value: &Value, pointer: &str| value.pointer(pointer).map(plain).unwrap_or_default();
            let metric_name = text_of(metric, "/name").or(text_of(metric, "/id")).unwrap_or_default();
            let mut line = vec![metric_name.to_owned(), name_of(answer, arm).to_owned(), is_control(answer, arm).to_string()];
            line.extend(["/users", "/numerator", "/denominator", "/sum", "/mean"].map(|pointer| cell(arm, pointer)));
            line.extend(COLUMNS.map(|(_, pointer)| comparison.map(|comparison| cell(comparison, pointer)).unwrap_or_default()));
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn csv_has_a_line_for_each_arm_of_each_metric() {
        let lines = csv(&sample());
        assert_eq!(lines.len(), 1 + 2 + 2 + 1);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        let row: Vec<_> = lines[0].iter().zip(&lines[4]).filter(|(_, cell)| !cell.is_empty()).collect();
        let row: Vec<_> = row.into_iter().map(|(name, cell)| format!("{name}={cell}")).collect();
        let expected = "metric=value_per_user variant=b\u{1b}[31m is_control=false users=1000 sum=1990.50 mean=1.9905 \
                        status=zero_baseline difference=1.9905 difference_low=0.5 difference_high=3.481 p_value=1e-20 log10_p=-20.0";
        assert_eq!(row.join(" "), expected);
    }
}
