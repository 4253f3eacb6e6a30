//! The parts of results below and beside the table of a metric.

use serde_json::Value;

use super::super::text::{Side, Style, count, decimals, elements, interval, number, p_value, percent, plain, printable, text_of};
use super::{DRAWN_WIDTH, Scale, arm_id, drawn_scale, ends, name_of, p_of};

/// What the numbers were asked for with, so that anybody can ask again.
pub(super) fn settings(answer: &Value) -> String {
    let Some(settings) = answer.get("request_settings").filter(|settings| settings.is_object()) else { return String::new() };
    let said = |name: &str| text_of(settings, &format!("/{name}")).map(|value| format!("{} {value}", name.replace('_', " ")));
    let mut parts: Vec<String> =
        ["analysis", "correction", "population", "where", "windows", "counted_from", "counted_until", "cuped", "cap"]
            .into_iter()
            .filter_map(said)
            .collect();
    parts.extend(text_of(answer, "/settings_hash").map(|hash| format!("settings {}", hash.chars().take(12).collect::<String>())));
    parts.extend(text_of(answer, "/method_version").map(str::to_owned));
    format!("{}\n", printable(&parts.join(", ")))
}

/// The effect among all who were exposed, where the analysis begins with a trigger.
pub(super) fn diluted(comparison: &Value) -> String {
    let member = |name: &str| comparison.pointer(&format!("/diluted/{name}")).and_then(number);
    let (Some(share), Some(lift)) = (member("share"), member("lift")) else { return String::new() };
    let ends = match (member("ci_relative/0"), member("ci_relative/1")) {
        (Some(low), Some(high)) => format!(" [{}, {}]", signed_percent(low), signed_percent(high)),
        _ => String::new(),
    };
    format!("among all who were exposed, of whom {} triggered: {}{ends}\n", percent(share), signed_percent(lift))
}

fn signed_percent(share: f64) -> String {
    format!("{} %", super::super::text::signed(share * 100.0, 2))
}

/// Of which record this is the answer, and what late events changed of it.
pub(super) fn record(answer: &Value) -> String {
    let (Some(as_of), Some(recorded_at)) = (text_of(answer, "/record/as_of"), text_of(answer, "/record/recorded_at")) else {
        return String::new();
    };
    let mut out = format!("as of {as_of}, recorded at {recorded_at}\n");
    for restated in elements(answer, "/record/restated") {
        let changes: Vec<String> = elements(restated, "/changes")
            .iter()
            .map(|change| {
                let member = |name: &str| change.get(name).map(plain).unwrap_or_default();
                format!("{} {} instead of {}", member("at"), member("now"), member("before"))
            })
            .collect();
        let when = text_of(restated, "/recorded_at").unwrap_or_default();
        out.push_str(&format!("late events changed it at {when}: {}\n", changes.join(", ")));
    }
    printable_lines(&out)
}

/// Makes each line printable.
fn printable_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", printable(line))).collect()
}

/// How much could be seen by now, and when there will be enough; nothing of what is decided.
pub(super) fn power(comparison: &Value) -> String {
    if comparison.get("significant").and_then(Value::as_bool) == Some(true) {
        return String::new();
    }
    let member = |name: &str| comparison.pointer(&format!("/power/{name}")).and_then(number);
    let (Some(now), Some(target), Some(progress)) = (member("mde_now"), member("mde_target"), member("progress")) else {
        return String::new();
    };
    let mut parts = vec![format!(
        "power: an effect of {} could be seen now, {} is wanted, {:.0} % of the precision is there",
        percent(now),
        percent(target),
        progress * 100.0
    )];
    parts.extend(
        comparison
            .pointer("/power/required_users")
            .map(count)
            .filter(|users| !users.is_empty())
            .map(|users| format!("{users} users needed")),
    );
    parts.extend(member("days_remaining").map(|days| match days {
        days if days <= 0.0 => "enough".to_owned(),
        days if days >= 180.0 => "180 days or more to go".to_owned(),
        days => format!("{} days to go", decimals(days, 1)),
    }));
    format!("{}\n", parts.join(", "))
}

/// The metric by value of a dimension, one row for each value and compared variant.
pub(super) fn dimensions(answer: &Value, metric: &Value, style: Style) -> String {
    let values = elements(metric, "/dimensions");
    if values.is_empty() {
        return String::new();
    }
    let name = text_of(answer, "/request_settings/dimension").unwrap_or("value");
    let scale = Scale::of(metric);
    let all: Vec<Value> = values.iter().flat_map(|value| elements(value, "/comparisons").to_vec()).collect();
    let drawn = drawn_scale(&all);
    let mut rows = Vec::new();
    for value in values {
        let shown = value_text(value);
        for arm in elements(value, "/arms") {
            let comparison = elements(value, "/comparisons").iter().find(|found| arm_id(found) == arm_id(arm));
            let mean = arm.get("mean").and_then(number).map(|mean| scale.mean(mean)).unwrap_or_default();
            let lift = comparison.and_then(|found| found.pointer("/relative/lift")).and_then(number);
            let relative = comparison.and_then(|found| found.get("relative")).and_then(ends);
            let line = match (relative, lift, drawn) {
                (Some((low, high)), Some(lift), Some(drawn)) => interval(low, lift, high, drawn, DRAWN_WIDTH),
                _ => String::new(),
            };
            rows.push(vec![
                shown.clone(),
                name_of(answer, arm).to_owned(),
                arm.get("users").map(count).unwrap_or_default(),
                mean,
                lift.map(|lift| format!("{:+.1} %", lift * 100.0)).unwrap_or_default(),
                comparison.and_then(|found| found.get("adjusted")).and_then(p_of).unwrap_or_default(),
                comparison.and_then(|found| text_of(found, "/verdict")).unwrap_or_default().to_owned(),
                line,
            ]);
        }
    }
    let columns = [
        (name, Side::Left),
        ("variant", Side::Left),
        ("users", Side::Right),
        ("mean", Side::Right),
        ("lift", Side::Right),
        ("adjusted p", Side::Right),
        ("verdict", Side::Left),
        ("interval of the lift", Side::Left),
    ];
    let mut out = format!("\n{}", style.table(&columns, &rows));
    for found in elements(metric, "/heterogeneity") {
        if let Some(p) = p_of(found) {
            out.push_str(&format!(
                "{}\n",
                printable(&format!("do the values differ in the effect of {}: p = {p}", name_of(answer, found)))
            ));
        }
    }
    out
}

/// Returns a value of a dimension as it is shown.
fn value_text(found: &Value) -> String {
    match (text_of(found, "/kind"), text_of(found, "/value")) {
        (Some("unknown"), _) => "(not known)".to_owned(),
        (Some("other"), _) => "(all others)".to_owned(),
        (_, text) => text.unwrap_or_default().to_owned(),
    }
}

/// Who is affected otherwise, one row for each that was found.
pub(super) fn exploration(answer: &Value, style: Style) -> String {
    let Some(found) = answer.get("exploration") else { return String::new() };
    let names = |member: &str| elements(found, member).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    let tests = found.get("tests").map(count).unwrap_or_default();
    let mut out =
        format!("\n{}\n", printable(&format!("who is affected otherwise: {tests} comparisons by {}", names("/dimensions"))));
    let left_out = names("/left_out");
    if !left_out.is_empty() {
        out.push_str(&format!("{}\n", printable(&format!("not searched, with too many values: {left_out}"))));
    }
    let discoveries = elements(found, "/discoveries");
    if discoveries.is_empty() {
        out.push_str("nobody was found\n");
        return out;
    }
    let row = |found: &Value| {
        let metric = text_of(found, "/metric").unwrap_or_default();
        let of = elements(answer, "/metrics").iter().find(|known| text_of(known, "/id") == Some(metric));
        let scale = of.map_or(Scale::Amount, Scale::of);
        let difference = |member: &str| found.get(member).and_then(number).map(|value| scale.difference(value) + scale.unit());
        vec![
            format!("{} = {}", text_of(found, "/dimension").unwrap_or_default(), value_text(found)),
            metric.to_owned(),
            name_of(answer, found).to_owned(),
            found.get("users").map(count).unwrap_or_default(),
            difference("estimate").unwrap_or_default(),
            difference("estimate_of_others").unwrap_or_default(),
            found.get("adjusted_p").and_then(number).and_then(|p| p_value(Some(p), None)).unwrap_or_default(),
        ]
    };
    let columns = [
        ("users with", Side::Left),
        ("metric", Side::Left),
        ("variant", Side::Left),
        ("users", Side::Right),
        ("difference", Side::Right),
        ("of all others", Side::Right),
        ("adjusted p", Side::Right),
    ];
    out.push_str(&style.table(&columns, &discoveries.iter().map(row).collect::<Vec<_>>()));
    out
}

/// The metric at the end of each day, one row for each day and compared variant.
pub(super) fn series(answer: &Value, metric: &Value, style: Style) -> String {
    let days = elements(metric, "/series");
    if days.is_empty() {
        return String::new();
    }
    let sequential = |found: &Value| match elements(found, "/ci_sequential") {
        [low, high] => Some((number(low)?, number(high)?)),
        _ => None,
    };
    let all: Vec<(f64, f64)> =
        days.iter().flat_map(|day| elements(day, "/cumulative/comparisons")).filter_map(sequential).collect();
    let low = all.iter().fold(0.0, |low: f64, (end, _)| low.min(*end));
    let high = all.iter().fold(0.0, |high: f64, (_, end)| high.max(*end));
    let scale = Scale::of(metric);
    let mut rows = Vec::new();
    for day in days {
        let users: f64 = elements(day, "/cumulative/arms").iter().filter_map(|arm| number(arm.get("users")?)).sum();
        for found in elements(day, "/cumulative/comparisons") {
            let estimate = found.get("estimate").and_then(number);
            let line = match (sequential(found), estimate) {
                (Some((from, to)), Some(estimate)) => interval(from, estimate, to, (low, high), DRAWN_WIDTH),
                _ => String::new(),
            };
            rows.push(vec![
                text_of(day, "/date").unwrap_or_default().to_owned(),
                name_of(answer, found).to_owned(),
                count(&Value::from(users as u64)),
                estimate.map(|estimate| format!("{}{}", scale.difference(estimate), scale.unit())).unwrap_or_default(),
                p_of(found).unwrap_or_default(),
                found.get("always_valid_p").and_then(number).map(|p| format!("{p:.4}")).unwrap_or_default(),
                line,
            ]);
        }
    }
    let columns = [
        ("day", Side::Left),
        ("variant", Side::Left),
        ("users so far", Side::Right),
        ("difference", Side::Right),
        ("p", Side::Right),
        ("p at any time", Side::Right),
        ("interval at any time", Side::Left),
    ];
    format!("\n{}", style.table(&columns, &rows))
}

/// The metric by days since each user's own exposure, one row for each day and compared variant, and whether the effect changes.
pub(super) fn since_exposure(answer: &Value, metric: &Value, style: Style) -> String {
    let days = elements(metric, "/since_exposure/days");
    if days.is_empty() {
        return String::new();
    }
    let all: Vec<(f64, f64)> = days.iter().flat_map(|day| elements(day, "/comparisons")).filter_map(ends).collect();
    let low = all.iter().fold(0.0, |low: f64, (end, _)| low.min(*end));
    let high = all.iter().fold(0.0, |high: f64, (_, end)| high.max(*end));
    let scale = Scale::of(metric);
    let difference = |value: f64| format!("{}{}", scale.difference(value), scale.unit());
    let mut rows = Vec::new();
    for day in days {
        for found in elements(day, "/comparisons") {
            let estimate = found.get("estimate").and_then(number);
            let line = match (ends(found), estimate) {
                (Some((from, to)), Some(estimate)) => interval(from, estimate, to, (low, high), DRAWN_WIDTH),
                _ => String::new(),
            };
            rows.push(vec![
                day.get("day").map(count).unwrap_or_default(),
                name_of(answer, found).to_owned(),
                found.get("users").map(count).unwrap_or_default(),
                estimate.map(difference).unwrap_or_default(),
                p_of(found).unwrap_or_default(),
                line,
            ]);
        }
    }
    let columns = [
        ("days since exposure", Side::Right),
        ("variant", Side::Left),
        ("users", Side::Right),
        ("difference", Side::Right),
        ("p", Side::Right),
        ("interval", Side::Left),
    ];
    let mut out = format!("\n{}", style.table(&columns, &rows));
    for found in elements(metric, "/since_exposure/novelty") {
        let of = |field: &str| found.get(field).and_then(number).map(difference).unwrap_or_default();
        let line = format!(
            "does the effect of {} change: {} a day in days 0 to 2, {} a day in days 7 to 13, p = {}",
            name_of(answer, found),
            of("early"),
            of("late"),
            p_of(found).unwrap_or_default()
        );
        out.push_str(&format!("{}\n", printable(&line)));
    }
    out
}

/// Value by variant under each model.
pub(super) fn attribution(answer: &Value, style: Style) -> String {
    let models = elements(answer, "/attribution/models");
    let has_value =
        |model: &&Value| elements(model, "/by_variant").iter().any(|found| found.get("value").and_then(number) != Some(0.0));
    if models.iter().find(has_value).is_none() {
        return String::new();
    }
    let first = elements(&models[0], "/by_variant");
    let names: Vec<&str> = first.iter().map(|found| name_of(answer, found)).collect();
    let row = |model: &Value| {
        let values = elements(model, "/by_variant").iter().map(|found| found.get("value").map(count).unwrap_or_default());
        std::iter::once(text_of(model, "/model").unwrap_or_default().to_owned()).chain(values).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = models.iter().map(row).collect();
    // Models differ for users who saw several variants only.
    let is_one = rows.iter().all(|row| row[1..] == rows[0][1..]);
    let currency = text_of(answer, "/attribution/currency").map(|currency| format!(" in {currency}")).unwrap_or_default();
    if is_one {
        let values = names.iter().zip(&rows[0][1..]).map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>();
        return format!("\n{}\n", printable(&format!("attributed value{currency}, by any model: {}", values.join(", "))));
    }
    let mut columns = vec![("model", Side::Left)];
    columns.extend(names.iter().map(|name| (*name, Side::Right)));
    format!("\n{}{}", style.heading(&printable(&format!("attributed value{currency}"))), style.table(&columns, &rows))
}

/// What the numbers advise, with the reasons.
pub(super) fn decision(answer: &Value, style: Style) -> String {
    let Some(status) = text_of(answer, "/decision/status") else { return String::new() };
    let chosen = answer.pointer("/decision/variant_id").and_then(Value::as_str);
    let listed = elements(answer, "/variants").iter().find(|variant| chosen.is_some() && text_of(variant, "/id") == chosen);
    let variant = listed.and_then(|variant| text_of(variant, "/name")).map(|name| format!(" {name}")).unwrap_or_default();
    let mut out = format!("\n{}", style.heading(&printable(&format!("decision: {status}{variant}"))));
    for why in elements(answer, "/decision/why") {
        out.push_str(&format!("- {}\n", printable(&text_of(why, "/fact").map_or_else(|| plain(why), str::to_owned))));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({
            "request_settings": { "analysis": "sequential", "correction": "holm", "population": "exclude_multi", "windows": "all",
                                  "cuped": "auto", "cap": "auto", "dimension": "country" },
            "settings_hash": "0123456789abcdef", "method_version": "stats-2",
            "variants": [{ "id": "v-1", "name": "control" }, { "id": "v-2", "name": "b" }],
        })
    }

    #[test]
    fn settings_are_said_in_one_line() {
        let expected = "analysis sequential, correction holm, population exclude_multi, windows all, cuped auto, cap auto, settings \
                        0123456789ab, stats-2\n";
        assert_eq!(settings(&answer()), expected);
        assert_eq!(settings(&json!({})), "");
    }

    #[test]
    fn power_says_what_is_missing() {
        let check = |power_of: Value, expected: &str| assert_eq!(power(&json!({ "power": power_of })), expected);
        let base = "power: an effect of 7.10 % could be seen now, 5.00 % is wanted, 50 % of the precision is there";
        let with = |required: Value, days: Value| json!({ "mde_now": 0.071, "mde_target": 0.05, "progress": 0.5, "required_users": required, "days_remaining": days });
        check(json!(null), "");
        let decided = json!({ "significant": true, "power": { "mde_now": 0.071, "mde_target": 0.05, "progress": 0.5 } });
        assert_eq!(power(&decided), "", "what is decided does not wait for more");
        check(with(json!(61_000), json!(9.5)), &format!("{base}, 61,000 users needed, 9.5 days to go\n"));
        check(with(json!(null), json!(null)), &format!("{base}\n"));
        check(with(json!(10), json!(0.0)), &format!("{base}, 10 users needed, enough\n"));
        check(with(json!(10), json!(180.0)), &format!("{base}, 10 users needed, 180 days or more to go\n"));
    }

    #[test]
    fn values_of_a_dimension_have_rows() {
        let metric = json!({ "type": "proportion", "dimensions": [
            { "value": "DE", "kind": "value", "arms": [{ "variant_id": "v-1", "users": 1000, "mean": 0.1 }, { "variant_id": "v-2", "users": 1100, "mean": 0.12 }],
              "comparisons": [{ "variant_id": "v-2", "relative": { "lift": 0.2, "ci": [-0.1, 0.5] }, "adjusted": { "p_value": 0.2 }, "verdict": "inconclusive" }] },
            { "value": null, "kind": "unknown", "arms": [{ "variant_id": "v-1", "users": 5, "mean": null }], "comparisons": [] } ],
            "heterogeneity": [{ "variant_id": "v-2", "p_value": 0.03 }] });
        let found = dimensions(&answer(), &metric, Style::Terminal);
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines.len(), 6, "{found}");
        assert!(lines[1].starts_with("country      variant  users"), "{found}");
        assert!(lines[3].contains("12.00 %  +20.0 %") && lines[3].contains('['), "{found}");
        assert!(lines[4].starts_with("(not known)  control"), "{found}");
        assert_eq!(lines[5], "do the values differ in the effect of b: p = 0.0300");
    }

    #[test]
    fn who_is_affected_otherwise_has_rows() {
        let mut answer = answer();
        answer["metrics"] = json!([{ "id": "conversion_rate", "type": "proportion" }]);
        answer["exploration"] = json!({ "dimensions": ["country", "properties.plan"], "left_out": ["city"], "tests": 9, "discoveries": [
            { "dimension": "country", "value": "DE", "kind": "value", "metric": "conversion_rate", "variant_id": "v-2", "users": 1200,
              "estimate": -0.05, "estimate_of_others": 0.02, "adjusted_p": 0.004 }] });
        let found = exploration(&answer, Style::Terminal);
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines[1], "who is affected otherwise: 9 comparisons by country, properties.plan");
        assert_eq!(lines[2], "not searched, with too many values: city");
        assert_eq!(lines[4], "country = DE  conversion_rate  b        1,200    -5.00 pp       +2.00 pp      0.0040");
        answer["exploration"]["discoveries"] = json!([]);
        assert!(exploration(&answer, Style::Terminal).ends_with("nobody was found\n"));
    }

    #[test]
    fn days_have_rows() {
        let day = |date: &str, estimate: f64| {
            json!({ "date": date, "cumulative": { "arms": [{ "users": 500 }, { "users": 600 }], "comparisons": [
                { "variant_id": "v-2", "estimate": estimate, "ci_sequential": [estimate - 0.1, estimate + 0.1], "p_value": 0.5, "always_valid_p": 1.0 }] } })
        };
        let metric = json!({ "type": "proportion", "series": [day("2026-03-01", 0.02), day("2026-03-02", 0.01)] });
        let found = series(&answer(), &metric, Style::Terminal);
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines.len(), 4, "{found}");
        assert!(lines[2].starts_with("2026-03-01  b               1,100    +2.00 pp  0.5000         1.0000"), "{found}");
        assert_eq!(series(&answer(), &json!({}), Style::Terminal), "");
    }

    #[test]
    fn days_since_the_exposure_have_rows() {
        let day = |day: u32, estimate: f64| {
            json!({ "day": day, "comparisons": [
                { "variant_id": "v-2", "users": 1_100, "estimate": estimate, "ci": [estimate - 0.1, estimate + 0.1], "p_value": 0.5 }] })
        };
        let novelty = json!([{ "variant_id": "v-2", "early": 1.0, "late": 0.2, "p_value": 0.004 }]);
        let metric = json!({ "type": "mean", "since_exposure": { "days": [day(0, 1.0), day(1, 0.25)], "novelty": novelty } });
        let found = since_exposure(&answer(), &metric, Style::Terminal);
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines.len(), 5, "{found}");
        assert!(lines[2].trim_start().starts_with("0  b        1,100"), "{found}");
        assert!(lines[4].starts_with("does the effect of b change: +1") && lines[4].ends_with("p = 0.0040"), "{found}");
        assert_eq!(since_exposure(&answer(), &json!({}), Style::Terminal), "");
    }

    #[test]
    fn models_that_agree_are_one_line() {
        let model = |name: &str, one: &str, two: &str| json!({ "model": name, "by_variant": [{ "variant_id": "v-1", "value": one }, { "variant_id": "v-2", "value": two }] });
        let with = |models: Vec<Value>| {
            let mut answer = answer();
            answer["attribution"] = json!({ "currency": "EUR", "models": models });
            attribution(&answer, Style::Terminal)
        };
        assert_eq!(with(vec![model("linear", "0.00", "0.00")]), "");
        assert_eq!(
            with(vec![model("first_touch", "1000.00", "2.50"), model("linear", "1000.00", "2.50")]),
            "\nattributed value in EUR, by any model: control 1,000.00, b 2.50\n"
        );
        let found = with(vec![model("first_touch", "4.00", "2.50"), model("linear", "3.00", "3.50")]);
        assert_eq!(
            found,
            "\nattributed value in EUR\nmodel        control     b\nfirst_touch     4.00  2.50\nlinear          3.00  3.50\n"
        );
    }

    #[test]
    fn a_decision_names_its_variant_and_reasons() {
        let mut answer = answer();
        answer["decision"] =
            json!({ "status": "ship-now", "variant_id": "v-2", "why": [{ "rule": "goal", "fact": "rate: won" }] });
        assert_eq!(decision(&answer, Style::Terminal), "\ndecision: ship-now b\n- rate: won\n");
        assert_eq!(decision(&answer, Style::Markdown), "\n## decision: ship-now b\n\n- rate: won\n");
    }
}
