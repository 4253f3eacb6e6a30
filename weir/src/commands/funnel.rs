//! `weir funnel`: how many get through ordered steps.

use std::io::Read;

use anyhow::{Context, bail};
use serde_json::Value;

use super::results::as_of;
use super::text::{
    NOTHING, Side, bar, count, duration, elements, number, p_value, percent, plain, printable, signed, table, text_of,
};
use super::{Endpoint, Format, print_answer};
use crate::cli::Globals;

/// Characters of the bar of a whole.
const BAR_WIDTH: usize = 30;
/// Bytes of a definition: the service takes less.
const DEFINITION_BYTES_MAX: u64 = 1 << 20;

/// The arguments of `weir funnel`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A file with the funnel as JSON, as POST /v1/funnels takes it; - reads stdin
    file: String,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// Asks and prints.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let definition = read(&args.file)?;
    let client = args.endpoint.client(globals)?;
    let answer = client.post_json("/v1/funnels", &definition).await?;
    print_answer(&answer, args.format, render, csv)
}

fn read(file: &str) -> anyhow::Result<Value> {
    let mut text = String::new();
    let (name, read) = if file == "-" {
        ("stdin", std::io::stdin().lock().take(DEFINITION_BYTES_MAX + 1).read_to_string(&mut text))
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("{file}: the funnel's definition"))?;
        (file, opened.take(DEFINITION_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.with_context(|| name.to_owned())?;
    if text.len() as u64 > DEFINITION_BYTES_MAX {
        bail!("{name}: more than {DEFINITION_BYTES_MAX} bytes; a funnel's definition is a small JSON object");
    }
    let definition: Value =
        serde_json::from_str(&text).with_context(|| format!("{name}: the funnel's definition is not JSON"))?;
    if !definition.is_object() {
        bail!("{name}: the funnel's definition is a JSON object such as {{\"steps\":[{{\"name\":\"A\",\"events\":[\"A\"]}}]}}");
    }
    Ok(definition)
}

/// Writes an answer for people: a table of steps for each group.
pub(crate) fn render(answer: &Value) -> String {
    let mut out = String::new();
    for warning in elements(answer, "/warnings") {
        let text = [text_of(warning, "/code"), text_of(warning, "/message"), warning.as_str()];
        let text: Vec<_> = text.into_iter().flatten().map(printable).collect();
        out.push_str(&format!("warning: {}\n", text.join(": ")));
    }
    let groups = elements(answer, "/groups");
    for group in groups {
        if !out.is_empty() {
            out.push('\n');
        }
        let title = title(group);
        if !title.is_empty() {
            out.push_str(&format!("{}\n", printable(&title)));
        }
        out.push_str(&steps(group));
    }
    if groups.is_empty() {
        out.push_str("no unit entered the funnel\n");
    }
    if let (Some(values), Some(units)) = (answer.pointer("/other/breakdown_values"), answer.pointer("/other/units"))
        && values.as_u64() != Some(0)
    {
        out.push_str(&format!("\n{} other values: {} units\n", count(values), count(units)));
    }
    if let Some(open) = answer.get("windows_open").filter(|open| open.as_u64() != Some(0)) {
        out.push_str(&format!("\n{} units can still get further: their windows have not closed yet\n", count(open)));
    }
    let incomplete: Vec<_> = elements(answer, "/incomplete").iter().map(plain).collect();
    if !incomplete.is_empty() {
        out.push_str(&format!("\nnot complete yet: {}\n", printable(&incomplete.join(", "))));
    }
    out.push_str(&as_of(answer));
    out
}

/// What sets a group apart from the others.
fn title(group: &Value) -> String {
    let mut parts = Vec::new();
    match group.get("breakdown") {
        Some(Value::Object(members)) => parts.extend(members.iter().map(|(name, value)| format!("{name} = {}", shown(value)))),
        None | Some(Value::Null) => {}
        Some(other) => parts.push(plain(other)),
    }
    parts.extend(text_of(group, "/variant").map(|variant| format!("variant {variant}")));
    parts.join(", ")
}

fn shown(value: &Value) -> String {
    if value.is_null() { "(none)".to_owned() } else { plain(value) }
}

pub(crate) fn steps(group: &Value) -> String {
    let or_nothing = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| NOTHING.to_owned());
    let mut rows = Vec::new();
    for (index, step) in elements(group, "/steps").iter().enumerate() {
        let member = |name: &str| step.get(name).and_then(number);
        let number_of = step.get("n").map_or_else(|| (index + 1).to_string(), plain);
        rows.push(vec![
            number_of,
            text_of(step, "/name").unwrap_or(NOTHING).to_owned(),
            or_nothing(step.get("units").map(count)),
            or_nothing(member("rate_first").map(percent)),
            // Nobody came to the first step from another one.
            or_nothing(member("rate_prev").map(percent)),
            or_nothing(step.get("dropped").map(count)),
            member("median_s").map(duration).unwrap_or_default(),
            member("rate_first").map(|share| bar(share, BAR_WIDTH)).unwrap_or_default(),
        ]);
    }
    let columns = [
        ("step", Side::Right),
        ("name", Side::Left),
        ("units", Side::Right),
        ("from first", Side::Right),
        ("from previous", Side::Right),
        ("dropped", Side::Right),
        ("median time", Side::Right),
        ("", Side::Left),
    ];
    let mut out = table(&columns, &rows);
    for compared in elements(group, "/significance") {
        let member = |name: &str| compared.get(name).and_then(number);
        let step = compared.get("step").map(plain).unwrap_or_default();
        let against = text_of(compared, "/vs").map(|vs| format!(" against {vs}")).unwrap_or_default();
        let mut parts = Vec::new();
        parts.extend(member("lift").map(|lift| format!("lift {} %", signed(lift * 100.0, 1))));
        if let [low, high] = elements(compared, "/ci")
            && let (Some(low), Some(high)) = (number(low), number(high))
        {
            parts.push(format!("[{}, {}]", signed(low * 100.0, 1), signed(high * 100.0, 1)));
        }
        parts.extend(p_value(member("p").or(member("p_value")), member("log10_p")).map(|p| format!("p = {p}")));
        parts.extend(text_of(compared, "/status").filter(|status| *status != "ok").map(str::to_owned));
        out.push_str(&format!("{}\n", printable(&format!("step {step}{against}: {}", parts.join(" ")))));
    }
    out
}

/// Writes one line for each group and step, numbers as the service gave them.
pub(crate) fn csv(answer: &Value) -> Vec<Vec<String>> {
    const MEMBERS: [&str; 9] = ["n", "name", "units", "rate_first", "rate_prev", "dropped", "median_s", "p90_s", "mean_s"];
    let mut header = vec!["group".to_owned()];
    header.extend(MEMBERS.map(str::to_owned));
    let mut lines = vec![header];
    for group in elements(answer, "/groups") {
        for step in elements(group, "/steps") {
            let mut line = vec![title(group)];
            line.extend(MEMBERS.map(|member| step.get(member).map(plain).unwrap_or_default()));
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> Value {
        json!({
            "groups": [
                { "breakdown": { "country": "DE\n" }, "variant": "b", "steps": [
                    { "n": 1, "name": "view", "units": 1000, "rate_first": 1.0, "rate_prev": null, "dropped": 600 },
                    { "n": 2, "name": "cart", "units": 400, "rate_first": 0.4, "rate_prev": 0.4, "dropped": 400, "median_s": 95 },
                    { "n": 3, "name": "buy", "units": 0, "rate_first": 0.0, "rate_prev": 0.0, "dropped": null } ],
                  "significance": [{ "step": 2, "vs": "a", "lift": 0.03, "ci": [0.01, 0.05], "p": 0.004 },
                                   { "step": 3, "vs": "a", "status": "zero_baseline" }] },
                { "breakdown": { "country": null }, "steps": [{ "n": 1, "name": "view", "units": 3 }] } ],
            "other": { "breakdown_values": 37, "units": 58 },
            "windows_open": 12,
            "incomplete": ["2026-10-31"],
            "as_of": { "log_id": "l-1", "offsets": {}, "event_time": "2026-10-31T12:00:00Z" },
        })
    }

    #[test]
    fn steps_become_tables() {
        let expected = "\
country = DE\\n, variant b
step  name  units  from first  from previous  dropped  median time
   1  view  1,000    100.00 %              -      600               ##############################
   2  cart    400     40.00 %        40.00 %      400      1.6 min  ############
   3  buy       0      0.00 %         0.00 %        -
step 2 against a: lift +3.0 % [+1.0, +5.0] p = 0.0040
step 3 against a: zero_baseline

country = (none)
step  name  units  from first  from previous  dropped
   1  view      3           -              -        -

37 other values: 58 units

12 units can still get further: their windows have not closed yet

not complete yet: 2026-10-31

as of 2026-10-31T12:00:00Z, log l-1
";
        let found = render(&sample());
        assert_eq!(found, expected, "{found}");
        assert_eq!(render(&json!({ "groups": [] })), "no unit entered the funnel\n");
    }

    #[test]
    fn csv_has_a_line_for_each_step() {
        let lines: Vec<String> = csv(&sample()).iter().map(|line| line.join(";")).collect();
        assert_eq!(lines[0], "group;n;name;units;rate_first;rate_prev;dropped;median_s;p90_s;mean_s");
        assert_eq!(lines[2], "country = DE\n, variant b;2;cart;400;0.4;0.4;400;95;;");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn definitions_are_read_from_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("funnel.json");
        let name = file.to_str().expect("text").to_owned();
        let check = |content: &str, expected: Result<Value, &str>| {
            std::fs::write(&file, content).expect("writes");
            let found = read(&name).map_err(|error| error.to_string().replace(&name, "FILE"));
            assert_eq!(found, expected.map_err(str::to_owned));
        };
        check(r#"{"steps":[]}"#, Ok(json!({ "steps": [] })));
        check("{", Err("FILE: the funnel's definition is not JSON"));
        let not_an_object = r#"FILE: the funnel's definition is a JSON object such as {"steps":[{"name":"A","events":["A"]}]}"#;
        check("[]", Err(not_an_object));
        let missing = read("/nowhere/funnel.json").expect_err("there is none").to_string();
        assert_eq!(missing, "/nowhere/funnel.json: the funnel's definition");
    }
}
