//! What an experiment has shown, in a few lines; and which of its metrics are one.

use serde_json::Value;

use crate::commands::text::{NOTHING, count, elements, printable, text_of};

/// Writes in a few lines what was found: a sentence for each metric, and what follows from them.
pub(crate) fn summary(answer: &Value) -> String {
    let name = text_of(answer, "/experiment/name").unwrap_or("without a name");
    let users = answer.pointer("/population/analysed_users").map(count).unwrap_or_default();
    let variants: Vec<&str> = elements(answer, "/variants").iter().filter_map(|variant| text_of(variant, "/name")).collect();
    let mut out = format!("experiment {}: {users} users saw {}\n", printable(name), printable(&variants.join(" or ")));
    let metrics = elements(answer, "/metrics");
    for (number, metric) in metrics.iter().enumerate() {
        if metrics[..number].iter().any(|earlier| counts_the_same(earlier, metric)) {
            continue;
        }
        for comparison in elements(metric, "/comparisons") {
            let verdict = text_of(comparison, "/verdict").or(text_of(comparison, "/status")).unwrap_or(NOTHING);
            let sentence = text_of(comparison, "/plain").unwrap_or_default();
            out.push_str(&format!("  {} {}: {}\n", metric_name(metric), printable(verdict), printable(sentence)));
        }
    }
    for check in elements(answer, "/health/checks").iter().filter(|check| text_of(check, "/level") == Some("fail")) {
        let id = text_of(check, "/id").unwrap_or("a check");
        out.push_str(&format!(
            "  failed check {}: {}\n",
            printable(id),
            printable(text_of(check, "/message").unwrap_or_default())
        ));
    }
    if let Some(status) = text_of(answer, "/decision/status") {
        let chosen = answer.pointer("/decision/variant_id").and_then(Value::as_str);
        let listed = elements(answer, "/variants").iter().find(|variant| chosen.is_some() && text_of(variant, "/id") == chosen);
        let variant = listed.and_then(|variant| text_of(variant, "/name")).map(|name| format!(" {name}")).unwrap_or_default();
        out.push_str(&format!("  decision: {}\n", printable(&format!("{status}{variant}"))));
    }
    out
}

/// Returns whether two metrics are one by another name, such as any conversion where there is one kind of them only.
pub(super) fn counts_the_same(earlier: &Value, metric: &Value) -> bool {
    let same = |member: &str| earlier.get(member) == metric.get(member);
    let is_guardrail = |metric: &Value| text_of(metric, "/role") == Some("guardrail");
    !elements(metric, "/arms").is_empty()
        && is_guardrail(earlier) == is_guardrail(metric)
        && ["type", "direction", "window_days", "cap", "currency", "arms"].into_iter().all(same)
}

pub(super) fn metric_name(metric: &Value) -> String {
    printable(text_of(metric, "/name").or(text_of(metric, "/id")).unwrap_or("metric without a name")).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::render;
    use super::*;

    #[test]
    fn metrics_that_count_the_same_are_shown_once() {
        let metric = |name: &str, converted: u32, role: &str| {
            json!({ "name": name, "type": "proportion", "role": role, "window_days": 30,
                    "arms": [{ "variant_id": "a", "users": 10, "numerator": 1 }, { "variant_id": "b", "users": 10, "numerator": converted }],
                    "comparisons": [{ "variant_id": "b", "verdict": "won", "plain": format!("b wins by {name}."),
                                      "power": { "mde_now": 0.1, "mde_target": 0.05, "progress": 0.5 } }] })
        };
        let answer = json!({
            "experiment": { "name": "e" }, "population": { "analysed_users": 20 },
            "variants": [{ "id": "a", "name": "control" }, { "id": "b", "name": "b" }],
            "metrics": [metric("any", 5, "primary"), metric("purchase", 5, "secondary"), metric("crash", 5, "guardrail"), metric("visit", 6, "secondary")],
            "decision": { "status": "ship-now", "variant_id": "b", "why": [] },
        });
        let table = render(&answer);
        assert_eq!(table.matches("\nvariant  users").count(), 3, "{table}");
        assert!(table.contains("\npurchase: the same as any\n"), "{table}");
        assert!(!table.contains("is wanted"), "what is won needs no more users: {table}");
        let expected = "experiment e: 20 users saw control or b\n  any won: b wins by any.\n  crash won: b wins by crash.\n  visit \
                        won: b wins by visit.\n  decision: ship-now b\n";
        assert_eq!(summary(&answer), expected);
    }
}
