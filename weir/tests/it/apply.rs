//! `weir admin apply`: a file in a team's repository says what is measured.

use std::process::Output;

use migrations::testing::TestDatabase;

use serde_json::json;

use crate::harness::{Folder, Up, weir};

const FILE: &str = r#"
internal = "country = 'XX'"

[metrics.minutes]
description = "minutes watched in the first week"
kind = "engagement"
events = ["watch"]
where = "device_type = 'mobile'"
value = "minutes"
per_user = "sum"
window = { length = "7d" }

[metrics.regulars]
kind = "engagement"
per_user = { at_least = 3 }

[exposures.pages]
any_of = [{ kind = "engagement", events = ["page"], where = { plan = ["pro", 1] }, variant = { property = "arm of {experiment}" } }]

[experiments.player]
description = "a larger button"
status = "running"
exposure = "pages"
confidence_level = 0.9
conversion_window_days = 7
trigger = { kind = "engagement", events = ["play"], where = "device_type = 'mobile'" }
policy = { decide_by = "risk_aware", rules = { "big win" = "lift_low > 0.1" } }

[experiments.player.variants]
control = { weight = 50, control = true }
large = { weight = 50, description = "twice the size", config = { size = 2 } }

[experiments.player.metrics]
minutes = { definition = "minutes", role = "primary" }
regulars = { definition = "regulars@1" }
refunds = { conversion = "refund", role = "guardrail", direction = "decrease", margin = 0.02 }
"#;

struct Team {
    database: TestDatabase,
    folder: Folder,
}

impl Team {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        let mut rows = database.connect().await;
        sqlx::raw_sql("INSERT INTO projects (name) VALUES ('default')").execute(&mut rows).await.expect("a project");
        Team { database, folder: Folder::new() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        weir().arg("--database-url").arg(&self.database.url).args(arguments).output().expect("runs")
    }

    /// Runs a command that works, and returns what it printed.
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn write(&self, text: &str) -> String {
        let path = self.folder.path().join("experiments.toml");
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn applies(&self, text: &str, more: &[&str]) -> String {
        let path = self.write(text);
        self.prints(&[&["admin", "apply", &path], more].concat())
    }
}

#[tokio::test]
async fn a_file_says_what_is_measured() {
    let team = Team::new().await;
    let dry = team.applies(FILE, &["--dry-run"]);
    let expected = "would leave out own staff, for whom country = 'XX' holds\nwould define the metric minutes\nwould define the metric regulars\nwould define the exposure pages\nwould create the experiment player\nwould have pages expose users to player\n";
    assert_eq!(dry, expected);
    assert_eq!(team.prints(&["admin", "experiment", "list"]), "no experiments\n", "a dry run changes nothing");

    assert_eq!(team.applies(FILE, &[]), expected.replace("would ", ""));
    assert_eq!(team.applies(FILE, &[]), "nothing to change\n");
    let shown = team.prints(&["admin", "experiment", "show", "player"]);
    for part in [
        "player: running",
        "a larger button",
        "users are exposed by pages@1: engagement page where plan is pro or 1, variant in arm of {experiment}",
        "begins with an event of kind engagement named play where",
        "confidence 0.9,",
        "twice the size",
        r#"{"size": 2}"#,
        "it decides by risk aware, tells of big win: lift_low > 0.1",
        "minutes@1",
        "regulars@1",
        "0.02",
    ] {
        assert!(shown.contains(part), "{part} is missing:\n{shown}");
    }

    // A new version of what is measured, another metric, one variant more and other weights, a pause.
    let changed = FILE
        .replace(r#"length = "7d""#, r#"length = "14d""#)
        .replace("play\"]", "start\"]")
        .replace("[\"page\"]", "[\"page\", \"screen\"]")
        .replace("risk_aware\",", "do_no_harm\", on_harm = \"stop\",")
        .replace("'XX'", "'YY'")
        .replace("running", "paused")
        .replace("control = { weight = 50,", "control = { weight = 40,")
        .replace("large = {", "small = { weight = 10 }\nlarge = {")
        .replace("margin = 0.02", "margin = 0.05")
        .replace("regulars = { definition = \"regulars@1\" }\n", "");
    let steps = "\
leave out own staff, for whom country = 'YY' holds
define the metric minutes
define the exposure pages
have pages expose users to player
begin the analysis of player with an event of kind engagement named start where device_type = 'mobile'
set the policy of player: it decides by do no harm, stops on harm, tells of big win: lift_low > 0.1
add the variant small:10 to player
change the weights of player to control:40 large:50 small:10
remove the metric minutes of player
add the metric minutes to player
remove the metric refunds of player
add the metric refunds to player
remove the metric regulars of player
pause player
";
    assert_eq!(team.applies(&changed, &[]), steps);
    assert_eq!(team.applies(&changed, &["--dry-run"]), "nothing to change\n");
    let shown = team.prints(&["admin", "experiment", "show", "player"]);
    assert!(
        shown.contains("exposed by pages@2: engagement page or screen")
            && shown.contains("minutes@2")
            && shown.contains("control:40 large:50 small:10"),
        "{shown}"
    );
    let internal = team.prints(&["admin", "project", "internal"]);
    assert_eq!(internal, "users are own staff for whose first exposure this holds: country = 'YY'\n");
    assert_eq!(team.prints(&["admin", "project", "internal", "--none"]), "nobody is own staff\n");
    let usual = team.prints(&["admin", "experiment", "policy", "player", "{}"]);
    assert!(!usual.contains("decides by"), "{usual}");
    let listed = team.prints(&["admin", "exposure", "list"]);
    assert_eq!(listed.lines().filter(|line| line.starts_with("pages")).count(), 2, "{listed}");
    let none = team.prints(&["admin", "experiment", "exposure", "player", "--none"]);
    assert!(!none.contains("exposed by"), "{none}");
    let again = team.prints(&["admin", "experiment", "exposure", "player", "pages@1"]);
    assert!(again.contains("exposed by pages@1"), "{again}");
    assert_eq!(
        team.prints(&["admin", "experiment", "exposure", "player", "pages"])
            .lines()
            .filter(|line| line.contains("pages@2"))
            .count(),
        1
    );
    let archived = changed.replace("paused", "archived").replace("internal =", "#").replace("policy =", "#");
    assert_eq!(team.applies(&archived, &[]), "stop player\narchive player\n");
    let definitions = team.prints(&["admin", "metric", "definitions"]);
    assert_eq!(definitions.lines().filter(|line| line.starts_with("minutes")).count(), 2, "{definitions}");
}

/// What cannot be is refused before anything is changed, and names the place.
#[tokio::test]
async fn what_cannot_be_is_refused_as_a_whole() {
    let team = Team::new().await;
    team.applies(FILE, &[]);
    let audited = async || {
        let mut rows = team.database.connect().await;
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM audit").fetch_one(&mut rows).await.expect("a number")
    };
    let before = audited().await;
    let refused = |change: (&str, &str), expected: &str| {
        // Something else would be changed, too.
        let text = FILE.replace("a larger button", "another text").replace(change.0, change.1);
        let output = team.run(&["admin", "apply", &team.write(&text)]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(expected), "{change:?}: {error}");
    };
    refused(
        ("[experiments.player]", "[rollups.daily]\nkeys = [\"Day\"]\nmeasures = { n = \"count\" }\n\n[experiments.player]"),
        "rollups.daily: keys[0]: found the name \"Day\"; lower-case letters",
    );
    refused(
        ("confidence_level = 0.9", "confidence_level = 0.95"),
        "experiments.player.confidence_level: found 0.95; the experiment keeps 0.9",
    );
    refused(
        ("conversion_window_days = 7", "conversion_window_days = 8"),
        "conversion_window_days: found 8; the experiment keeps 7",
    );
    refused(
        (r#"status = "running""#, r#"status = "draft""#),
        "experiments.player.status: found draft; the experiment is running",
    );
    refused(
        (r#"status = "running""#, r#"status = "live""#),
        r#"found "live"; accepted: draft, running, paused, completed, archived"#,
    );
    refused(
        ("events = [\"play\"], where = \"device_type = 'mobile'\"", "events = [\"play\"], where = \"device_kind = 1\""),
        "experiments.player.trigger: ",
    );
    refused(("control = { weight = 50, control = true }\n", ""), r#"experiments.player.variants: "control" is missing"#);
    refused(("50, control = true", "50"), "experiments.player.variants.control: found no control");
    refused(
        ("regulars@1", "regular"),
        r#"experiments.player.metrics.regulars.definition: there is no metric definition "regular""#,
    );
    refused(
        (r#"exposure = "pages""#, r#"exposure = "page""#),
        r#"experiments.player.exposure: there is no exposure definition "page""#,
    );
    refused((r#"exposure = "pages""#, r#"exposure = "pages@2""#), r#"there is no version 2 of "pages"; its newest is 1"#);
    refused(("events = [\"page\"]", "events = []"), "exposures.pages: any_of[0].events: found 0");
    refused(("lift_low > 0.1", "uplift > 0.1"), "experiments.player.policy");
    refused(("risk_aware", "hope"), "unknown variant `hope`");
    refused(("country = 'XX'", "variant = 'large'"), "internal");
    refused(("device_type = 'mobile'", "device = 'mobile'"), "metrics.minutes");
    refused(("per_user = \"sum\"", "per_user = \"median\""), "unknown variant `median`");
    refused(("kind = \"engagement\"\nevents", "kinds = \"engagement\"\nevents"), "unknown field `kinds`");
    assert_eq!(audited().await, before, "nothing was changed");
}

/// A rollup of a file: what was stored before it and what comes after are in it, as plain SQL over the events has it, and it is read like a table.
#[tokio::test]
async fn a_rollup_holds_all_events() {
    const ROLLUPS: &str = r#"
[rollups.orders]
description = "orders by day and plan"
kind = "conversion"
unique = ["order_id"]
keys = ["day", "plan", "currency"]
measures = { orders = "count", revenue = { sum = "value" }, buyers = { distinct = "user_id" } }

[rollups.lessons]
kind = "engagement"
events = ["lesson"]
per = { keys = ["lesson"], measures = { xp = { max = "xp" }, done_at = { min = "event_time", where = { done = true } } } }
keys = ["user_id"]
measures = { xp = { sum = "xp" }, done = { count = "done_at" } }
"#;
    let folder = Folder::new();
    let up = Up::start(&folder);
    let now = events::Micros::now().to_string();
    let order = |id: u32, user: &str, order: &str, value: &str| {
        json!({"type": "conversion", "name": "order", "event_id": format!("00000000-0000-4000-8000-{id:012}"), "user_id": user,
               "timestamp": now, "value": value, "currency": "EUR", "properties": {"order_id": order, "plan": "pro"}})
    };
    let lesson = |lesson: u32, xp: u32, done: bool| {
        json!({"type": "engagement", "name": "lesson", "user_id": "ana", "timestamp": now,
               "properties": {"lesson": lesson, "xp": xp, "done": done}})
    };
    up.accepted(vec![order(1, "ana", "o1", "19.90"), order(2, "ana", "o1", "19.90"), lesson(1, 10, false)]).await;
    up.until_stored(3).await;
    let path = folder.path().join("rollups.toml");
    std::fs::write(&path, ROLLUPS).expect("written");
    let admin = |arguments: &[&str]| {
        let output = weir().arg("--data").arg(folder.path()).arg("admin").args(arguments).output().expect("runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let path = path.to_str().expect("UTF-8");
    assert_eq!(admin(&["apply", path]), "keep the rollup lessons\nkeep the rollup orders\n");
    assert_eq!(admin(&["apply", path]), "nothing to change\n");
    up.accepted(vec![order(3, "bob", "o2", "0.10"), lesson(1, 30, true), lesson(2, 5, true)]).await;
    up.until_stored(6).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(40);
    while admin(&["rollup", "list"]).contains("records left") {
        assert!(std::time::Instant::now() < deadline, "the rollups are not filled");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let check = async |sql: &str, expected: serde_json::Value| {
        assert_eq!(json!(up.sql(sql).await.expect(sql)), expected, "{sql}");
    };
    let sums = "SELECT plan, currency, CAST(orders AS BIGINT), revenue, CAST(buyers AS BIGINT) FROM rollup_orders";
    check(sums, json!([["pro", "EUR", 2, "20.000000", 2]])).await;
    check("SELECT CAST(xp AS BIGINT), CAST(done AS BIGINT) FROM rollup_lessons", json!([[35, 2]])).await;
    check("SELECT lesson, CAST(xp AS BIGINT) FROM rollup_lessons_states ORDER BY lesson", json!([["1", 30], ["2", 5]])).await;
    let missing = up.sql("SELECT * FROM rollup_nothing").await.expect_err("is refused");
    assert!(missing.starts_with("400") && missing.contains("rollup_nothing"), "{missing}");
    assert_eq!(admin(&["rollup", "remove", "orders"]), "orders is removed\n");
    assert_eq!(admin(&["apply", path]), "keep the rollup orders\n");
}

/// What the README shows of rollups is accepted as it stands there.
#[tokio::test]
async fn the_rollups_of_the_readme_are_accepted() {
    let readme = include_str!("../../../README.md");
    let begin = readme.find("[rollups.").expect("an example");
    let example = readme[begin..].split("```").next().unwrap_or_default();
    let team = Team::new().await;
    let kept =
        ["active_days", "affiliates", "ai_cost", "gems", "progress", "referrals"].map(|name| format!("keep the rollup {name}\n"));
    assert_eq!(team.applies(example, &[]), kept.concat());
    assert_eq!(team.applies(example, &[]), "nothing to change\n");
    let listed = team.prints(&["admin", "rollup", "list"]);
    assert!(
        listed.contains("attempts, completed_at, xp of each user_id, level_id, gate_id: lessons, xp by user_id, completed_on"),
        "{listed}"
    );
}
