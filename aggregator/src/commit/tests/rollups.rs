//! Rollups against plain SQL over the stored events, which shares nothing with them: after duplicates, late and reordered events, with two workers,
//! and filled with what was stored before, beside them.

use catalogue::rollups::tables::Reading;
use catalogue::rollups::{self, By, Key, KeyOf, Measure, Rollup};
use serde_json::json;

use super::*;
use crate::fill;

/// Time zones that events name; the last one is none.
const ZONES: [&str; 4] = ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Mars/Olympus"];

/// An event with properties that are now and then missing or misfits.
fn any_report() -> impl Strategy<Value = Draft> {
    let shared = (1..=60u8, 0..4u8, 0..30u8, 0..4usize, 0..10u8);
    let properties = (prop::option::of(0..3u8), prop::option::of(0..4u8), any::<bool>(), 0..8usize);
    (shared, properties).prop_map(|((id, who, step, zone, choice), (group, transaction, flag, amount))| {
        let amounts =
            [json!("19.90"), json!(7), json!(0.25), json!("-3"), json!("many"), json!(null), json!(1e2), json!("0.0000001")];
        let mut properties = json!({ "amount": amounts[amount], "flag": flag });
        if let Some(group) = group {
            properties["group"] = json!(["x", "y", "größe"][usize::from(group)]);
        }
        if let Some(transaction) = transaction {
            properties["transaction"] = json!(format!("t{transaction}"));
        }
        let mut draft = match choice {
            0..3 => conversion("", "", "", if flag { "a" } else { "b" }, if amount % 2 == 0 { "5" } else { "-2.5" }),
            _ => Draft { name: Some(if choice % 2 == 0 { "a" } else { "b" }.into()), ..Draft::new(Details::Engagement) },
        };
        draft.event_id = Some(Uuid::from_u128(u128::from(id)).to_string().into());
        draft.user_id = Some(user(who).into());
        draft.timestamp = ClaimedTime::Text(at(step).into());
        draft.is_bot = choice == 9;
        draft.context.time_zone = ZONES.get(zone).map(|zone| (*zone).into());
        draft.properties = Some(JsonObject::parse(properties.to_string(), "properties").expect("an object"));
        draft
    })
}

/// Some of the things that a list offers.
fn some_of(all: &'static [(&'static str, &'static str)]) -> impl Strategy<Value = Vec<(String, serde_json::Value)>> {
    let read = |(name, text): &(&str, &str)| ((*name).to_owned(), serde_json::from_str(text).expect("JSON"));
    prop::sample::subsequence(all, 1..=all.len()).prop_map(move |some| some.iter().map(read).collect())
}

const KEYS: [(&str, &str); 8] = [
    ("day", r#""day""#),
    ("local_day", r#"{"name": "local_day", "day_of": "event_time", "zone": "event"}"#),
    ("day_in_tokyo", r#"{"name": "day_in_tokyo", "day_of": "event_time", "zone": "Asia/Tokyo"}"#),
    ("event", r#""event""#),
    ("kind", r#""kind""#),
    ("grouped", r#"{"name": "grouped", "of": "group"}"#),
    ("user_id", r#""user_id""#),
    ("flag", r#""flag""#),
];
const MEASURES: [(&str, &str); 10] = [
    ("rows_counted", r#""count""#),
    ("amounts", r#"{"count": "amount"}"#),
    ("amount", r#"{"sum": "amount"}"#),
    ("flagged", r#"{"sum": "amount", "where": {"flag": true, "event": ["a", "c"]}}"#),
    ("least", r#"{"min": "amount"}"#),
    ("latest", r#"{"max": "event_time"}"#),
    ("first_group", r#"{"first": "group"}"#),
    ("last_amount", r#"{"last": "amount", "where": {"flag": false}}"#),
    ("users", r#"{"distinct": "user_id"}"#),
    ("groups", r#"{"distinct": "group"}"#),
];
const PER_MEASURES: [(&str, &str); 7] = [
    ("attempts", r#""count""#),
    ("total", r#"{"sum": "amount"}"#),
    ("best", r#"{"max": "amount", "where": {"flag": true}}"#),
    ("begun_at", r#"{"min": "event_time"}"#),
    ("done_at", r#"{"min": "event_time", "where": {"flag": "true"}}"#),
    ("last_group", r#"{"last": "group"}"#),
    ("first_event", r#"{"first": "event"}"#),
];
const KEYS_OF_PER: [(&str, &str); 3] = [
    ("done_on", r#"{"name": "done_on", "day_of": "done_at", "zone": "Europe/Berlin"}"#),
    ("ended_in", r#"{"name": "ended_in", "of": "last_group"}"#),
    ("begun_with", r#"{"name": "begun_with", "of": "first_event"}"#),
];
const MEASURES_OF_PER: [(&str, &str); 7] = [
    ("states", r#""count""#),
    ("done", r#"{"count": "done_at"}"#),
    ("total_sum", r#"{"sum": "total"}"#),
    ("best_sum", r#"{"sum": "best", "where": {"first_event": "a"}}"#),
    ("best_of_all", r#"{"max": "best"}"#),
    ("begun_first", r#"{"min": "begun_at"}"#),
    ("who", r#"{"distinct": "user_id"}"#),
];

fn any_rollup() -> impl Strategy<Value = Rollup> {
    let events = (prop::option::of(prop_oneof![Just("engagement"), Just("conversion")]), 0..3usize, 0..3usize, any::<bool>());
    let (of_events, of_states) = ((some_of(&KEYS), some_of(&MEASURES)), (some_of(&KEYS_OF_PER), some_of(&MEASURES_OF_PER)));
    (events, of_events, of_states, 0..4usize, prop::sample::subsequence(&KEYS[5..8], 0..2)).prop_map(
        |((kind, events, condition, bots), of_events, of_states, stage, per_keys)| {
            let (keys, measures) = if stage == 2 { of_states } else { of_events };
            let conditions = [json!({}), json!({"group": ["x", "größe"]}), json!({"flag": true, "event": "a"})];
            let named = [json!([]), json!(["a"]), json!(["b", "c"])];
            let mut rollup = json!({
                "events": named[events], "where": conditions[condition], "bots": bots,
                "keys": keys.into_iter().map(|(_, key)| key).collect::<Vec<_>>(),
                "measures": serde_json::Map::from_iter(measures),
            });
            if let Some(kind) = kind {
                rollup["kind"] = json!(kind);
            }
            match stage {
                1 => rollup["unique"] = json!(["transaction"]),
                2 => {
                    let keys = per_keys.iter().filter(|(name, _)| *name != "user_id").map(|(_, text)| text);
                    let keys: Vec<serde_json::Value> = keys.map(|text| serde_json::from_str(text).expect("JSON")).collect();
                    let measures = PER_MEASURES.map(|(name, text)| (name.to_owned(), serde_json::from_str(text).expect("JSON")));
                    rollup["per"] = json!({"keys": keys, "measures": serde_json::Map::from_iter(measures)});
                }
                _ => {}
            }
            Rollup::parse(&rollup.to_string()).expect("accepted")
        },
    )
}

/// The value of a field in plain SQL: of an event, or of a state, whose columns have its names.
fn plain(field: &str, as_number: bool, of_states: bool) -> String {
    match field {
        _ if of_states => format!("\"{field}\""),
        "amount" if as_number => {
            r"(CASE WHEN p ->> 'amount' ~ '^-?[0-9]+(\.[0-9]{1,6})?$' THEN (p ->> 'amount')::numeric END)".to_owned()
        }
        // A number is written shortest, however it was sent.
        "amount" => "(CASE WHEN jsonb_typeof(p -> 'amount') = 'number' THEN trim_scale((p ->> 'amount')::numeric)::text ELSE p ->> 'amount' END)"
            .to_owned(),
        "group" | "flag" | "transaction" => format!("(p ->> '{field}')"),
        column => format!("\"{column}\""),
    }
}

fn plain_conditions(conditions: &rollups::Conditions, of_states: bool) -> String {
    let condition = |(field, accepted): (&String, &catalogue::exposures::Accepted)| {
        let values: Vec<String> = accepted.0.iter().map(|value| format!("'{value}'")).collect();
        format!("{}::text IN ({})", plain(field, false, of_states), values.join(", "))
    };
    let all: Vec<String> = conditions.iter().map(condition).collect();
    if all.is_empty() { "true".to_owned() } else { all.join(" AND ") }
}

fn plain_key(key: &Key, of_states: bool) -> String {
    match &key.of {
        KeyOf::Field(field) => plain(field, false, of_states),
        KeyOf::Day { time, zone } if zone == "event" => {
            let known = ZONES[..3].iter().map(|zone| format!("'{zone}'")).collect::<Vec<_>>().join(", ");
            format!("({time} AT TIME ZONE CASE WHEN time_zone IN ({known}) THEN time_zone ELSE 'UTC' END)::date")
        }
        KeyOf::Day { time, zone } => format!("({time} AT TIME ZONE '{zone}')::date"),
    }
}

fn plain_measure(measure: &Measure, of_states: bool) -> String {
    let needs_number = matches!(measure.by, By::Sum | By::Min | By::Max);
    let value = measure.of.as_deref().map(|field| plain(field, needs_number, of_states));
    let conditions = plain_conditions(&measure.conditions, of_states);
    let filter = format!("FILTER (WHERE {conditions})");
    let order = |direction: &str| {
        let value = value.as_deref().unwrap_or_default();
        let order = format!("event_time {direction}, id {direction}, claimed_at {direction}");
        format!("(array_agg({value} ORDER BY {order}) FILTER (WHERE {conditions} AND {value} IS NOT NULL))[1]")
    };
    match (measure.by, &value) {
        (By::Count, None) => format!("count(*) {filter}"),
        (By::Count, Some(value)) => format!("count({value}) {filter}"),
        (By::Sum, Some(value)) => format!("coalesce(sum({value}) {filter}, 0)"),
        (By::Min, Some(value)) => format!("min({value}) {filter}"),
        (By::Max, Some(value)) => format!("max({value}) {filter}"),
        (By::First, _) => order("ASC"),
        (By::Last, _) => order("DESC"),
        (_, value) => format!("count(DISTINCT {}) {filter}", value.as_deref().unwrap_or_default()),
    }
}

/// What a rollup comes to, from the stored events.
fn expected(rollup: &Rollup, columns: &[String]) -> String {
    let names: Vec<String> = rollup.events.iter().map(|name| format!("'{name}'")).collect();
    let is_named = if names.is_empty() { "true".to_owned() } else { format!("event IN ({})", names.join(", ")) };
    let kind = rollup.kind.map_or("true".to_owned(), |kind| format!("kind = '{}'", kind.as_str()));
    let counted = format!(
        "SELECT * FROM (
             SELECT 'engagement' AS kind, event_type AS event, user_id, event_time, claimed_at, id, is_bot, time_zone, metadata AS p
             FROM engagement_events WHERE project_id = $project
             UNION ALL SELECT 'conversion', conversion_type, user_id, event_time, claimed_at, id, is_bot, time_zone, metadata
             FROM conversions WHERE project_id = $project) e
         WHERE {kind} AND {is_named} AND ({} OR NOT is_bot) AND {}",
        rollup.bots,
        plain_conditions(&rollup.conditions, false)
    );
    let rows = match &rollup.per {
        None if rollup.unique.is_empty() => counted,
        None => format!(
            "SELECT DISTINCT ON (user_id, event, coalesce(p ->> 'transaction', id::text || claimed_at::text)) * FROM ({counted}) c
             ORDER BY user_id, event, coalesce(p ->> 'transaction', id::text || claimed_at::text), event_time, id, claimed_at"
        ),
        Some(per) => {
            let keys: String = per.keys.iter().map(|key| format!(", {} AS \"{}\"", plain_key(key, false), key.name)).collect();
            let groups: String = per.keys.iter().map(|key| format!(", {}", plain_key(key, false))).collect();
            let measures =
                per.measures.iter().map(|(name, measure)| format!(", {} AS \"{name}\"", plain_measure(measure, false)));
            format!("SELECT user_id{keys}{} FROM ({counted}) c GROUP BY user_id{groups}", measures.collect::<String>())
        }
    };
    let of_states = rollup.per.is_some();
    let keys: String = rollup.keys.iter().map(|key| format!("{} AS \"{}\", ", plain_key(key, of_states), key.name)).collect();
    let groups: Vec<String> = rollup.keys.iter().map(|key| plain_key(key, of_states)).collect();
    let measures: Vec<String> =
        rollup.measures.iter().map(|(name, measure)| format!("{} AS \"{name}\"", plain_measure(measure, of_states))).collect();
    let groups = if groups.is_empty() { String::new() } else { format!("GROUP BY {}", groups.join(", ")) };
    format!("SELECT {} FROM (SELECT {keys}{} FROM ({rows}) r {groups}) q", columns.join(", "), measures.join(", "))
}

/// Columns that are written alike whatever number of zeros they carry.
fn written(reading: &Reading) -> Vec<String> {
    let column = |(name, value_type): &(String, rollups::datum::Type)| match value_type {
        rollups::datum::Type::Number => format!("trim_scale(\"{name}\"::numeric)"),
        _ => format!("\"{name}\"::text COLLATE \"C\""),
    };
    reading.columns.iter().map(column).collect()
}

fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

impl Case {
    async fn define(&mut self, name: &str, rollup: &Rollup) {
        let project = catalogue::find_project(&mut self.connection, &self.project.to_string()).await.expect("a project");
        versions::define(&mut self.connection, &project, name, rollup).await.expect("defined");
    }

    /// What the newest version of a rollup holds, as readers get it.
    async fn found(&mut self, name: &str) -> (Vec<String>, Vec<String>) {
        let kept = rollups::kept(&mut self.connection, self.project).await.expect("answers");
        let kept = kept.iter().rfind(|kept| kept.name == name).expect("is kept");
        let reading = kept.definition.shape().expect("accepted").reading(kept.number);
        let columns = written(&reading);
        let found = format!("SELECT {} FROM {} WHERE f.project_id = $project", columns.join(", "), reading.from);
        let (found, expected) = (self.rows(&found).await, self.rows(&expected(&kept.definition, &columns)).await);
        (sorted(found), sorted(expected))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// Any declarations, made when some of the events are stored already, and filled while two workers store the others: repeated, late, in any order
    /// and any batches.
    #[test]
    fn any_rollup_is_what_plain_sql_makes_of_the_events(
        declared in prop::collection::vec(any_rollup(), 1..4),
        drafts in prop::collection::vec(any_report(), 1..80),
        stored_before in 0..40usize,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let drafts = one_of_each_identity(drafts);
            // Of its own: a fill looks through all logs of a database.
            let mut case = Case::new(&TestDatabase::create().await).await;
            let mut order = Shuffle(seed);
            let mut repeated = drafts.clone();
            repeated.extend(drafts.iter().filter(|_| order.next().is_multiple_of(3)).cloned().collect::<Vec<_>>());
            order.shuffle(&mut repeated);
            case.store(repeated.drain(..stored_before.min(repeated.len())).collect()).await;
            for (number, rollup) in declared.iter().enumerate() {
                case.define(&format!("r{number}"), rollup).await;
            }
            let url = case.url.clone();
            let filling = tokio::spawn(async move {
                let mut connection = database::connect(&url, "fill").await.expect("connects");
                fill::fill_all(&mut connection).await
            });
            let mut two = two_workers(&mut case).await;
            while !repeated.is_empty() {
                let cut = (1 + order.next() as usize % 9).min(repeated.len());
                let records: Vec<Record> = repeated.drain(..cut).map(|draft| case.record(draft)).collect();
                let (even, odd): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.bucket().number() % 2 == 0);
                let (even, odd) = (case.batch(even), case.batch(odd));
                let (log_id, none) = (case.log_id, Tallies::new());
                let (first, second) = tokio::join!(
                    commit(&mut case.connection, &mut case.cache, log_id, &even, &none),
                    commit(&mut two.0, &mut two.1, log_id, &odd, &none),
                );
                first.expect("commits");
                second.expect("commits");
            }
            filling.await.expect("no panic").expect("filled");
            for (number, rollup) in declared.iter().enumerate() {
                let (found, expected) = case.found(&format!("r{number}")).await;
                prop_assert_eq!(found, expected, "{}", serde_json::to_string(rollup).expect("JSON"));
            }
            Ok(())
        })?;
    }
}

/// An event of one user with properties.
fn event(name: &str, id: u128, when: u8, properties: serde_json::Value) -> Draft {
    Draft {
        event_id: Some(Uuid::from_u128(id).to_string().into()),
        user_id: Some(user(1).into()),
        timestamp: ClaimedTime::Text(at(when).into()),
        name: Some(name.into()),
        properties: Some(JsonObject::parse(properties.to_string(), "properties").expect("an object")),
        ..Draft::new(Details::Engagement)
    }
}

fn rollup(declaration: serde_json::Value) -> Rollup {
    Rollup::parse(&declaration.to_string()).expect("accepted")
}

/// One transaction is reported twice under different times, the earlier report last; and what a lesson gave moves to the day on which it was first done.
#[tokio::test]
async fn sums_follow_when_a_late_event_changes_a_state() {
    let mut case = Case::new(&TestDatabase::create().await).await;
    let gems = rollup(json!({
        "events": ["gems"], "unique": ["transaction"], "keys": ["user_id", "day"],
        "measures": {"amount": {"sum": "amount"}, "n": "count", "last_at": {"max": "event_time"}}
    }));
    case.define("gems", &gems).await;
    let progress = rollup(json!({
        "events": ["lesson"],
        "per": {"keys": ["lesson"], "measures": {"done_at": {"min": "event_time", "where": {"done": true}}, "xp": {"max": "xp"}}},
        "keys": [{"name": "done_on", "day_of": "done_at"}], "measures": {"xp": {"sum": "xp"}, "lessons": "count"}
    }));
    case.define("progress", &progress).await;
    let check = async |case: &mut Case, drafts: Vec<Draft>, gems: &[&str], progress: &[&str]| {
        case.store(drafts).await;
        for (name, expected) in [("gems", gems), ("progress", progress)] {
            let kept = rollups::kept(&mut case.connection, case.project).await.expect("answers");
            let kept = kept.iter().find(|kept| kept.name == name).expect("is kept");
            let from = kept.definition.shape().expect("accepted").reading(kept.number).from;
            let columns = if name == "gems" { "day, trim_scale(amount), n" } else { "done_on, trim_scale(xp), lessons" };
            let found = case.rows(&format!("SELECT {columns} FROM {from} WHERE project_id = $project ORDER BY 1")).await;
            assert_eq!(found, expected, "{name}");
        }
    };
    let first = vec![
        event("gems", 1, 20, json!({"transaction": "t", "amount": 5})),
        event("lesson", 2, 20, json!({"lesson": 1, "done": false, "xp": 100})),
    ];
    check(&mut case, first, &["(2026-02-13,5,1)"], &["(,100,1)"]).await;
    let second = vec![event("lesson", 3, 19, json!({"lesson": 1, "done": true, "xp": 300}))];
    check(&mut case, second, &["(2026-02-13,5,1)"], &["(2026-02-13,300,1)"]).await;
    let late = vec![
        event("gems", 4, 1, json!({"transaction": "t", "amount": 7})),
        event("lesson", 5, 1, json!({"lesson": 1, "done": true, "xp": 50})),
        event("lesson", 6, 1, json!({"lesson": 2, "done": true, "xp": 10})),
    ];
    check(&mut case, late, &["(2026-02-10,7,1)"], &["(2026-02-10,310,2)"]).await;
}

/// Owners are looked up when the rollup is read, so that an owner who changes takes its campaign's sums along.
#[tokio::test]
async fn what_the_catalogue_says_is_looked_up() {
    let mut case = Case::new(&TestDatabase::create().await).await;
    let owners = rollup(json!({
        "kind": "campaign_event", "keys": ["campaign.owner_id", "event"],
        "measures": {"n": "count", "revenue": {"sum": "value"}, "visitors": {"distinct": "user_id"}}
    }));
    case.define("owners", &owners).await;
    let of_campaign = |id: u128, who: u8, campaign: &str, name: &str, value: Option<&str>| Draft {
        event_id: Some(Uuid::from_u128(id).to_string().into()),
        user_id: Some(user(who).into()),
        timestamp: ClaimedTime::Text(at(3).into()),
        name: Some(name.into()),
        campaign: Some(campaign.into()),
        value: value.map(Into::into),
        currency: value.map(|_| "USD".into()),
        ..Draft::new(Details::CampaignEvent)
    };
    case.store(vec![
        of_campaign(1, 1, "spring", "click", None),
        of_campaign(2, 1, "summer", "click", None),
        of_campaign(3, 2, "summer", "click", None),
        of_campaign(4, 2, "summer", "conversion", Some("19.90")),
    ])
    .await;
    let kept = rollups::kept(&mut case.connection, case.project).await.expect("answers");
    let from = owners.shape().expect("accepted").reading(kept[0].number).from;
    let found = format!(
        "SELECT substr(campaign_owner_id::text, 36) AS owner, event, n, trim_scale(revenue), visitors FROM {from}
         WHERE project_id = $project ORDER BY 1, 2"
    );
    let one = "00000000-0000-0000-0000-000000000001";
    case.execute(&format!("UPDATE campaigns SET owner_id = '{one}' WHERE project_id = $project AND name = 'spring'")).await;
    assert_eq!(case.rows(&found).await, ["(1,click,1,0,1)", "(,click,2,0,2)", "(,conversion,1,19.9,1)"]);
    case.execute(&format!("UPDATE campaigns SET owner_id = '{one}' WHERE project_id = $project")).await;
    assert_eq!(case.rows(&found).await, ["(1,click,3,0,2)", "(1,conversion,1,19.9,1)"]);
}

/// A changed declaration is filled beside the one before, which goes when the new one has all; one that was removed comes back with all, too.
#[tokio::test]
async fn a_new_version_takes_the_place_of_the_one_before() {
    let mut case = Case::new(&TestDatabase::create().await).await;
    let counted = |bots: bool| rollup(json!({"bots": bots, "keys": ["event"], "measures": {"n": "count"}}));
    let bot = |draft: Draft| Draft { is_bot: true, ..draft };
    case.store(vec![event("a", 1, 1, json!({})), bot(event("a", 2, 1, json!({})))]).await;
    let versions_of = async |case: &mut Case| {
        let kept = rollups::kept(&mut case.connection, case.project).await.expect("answers");
        kept.iter().map(|kept| (kept.version, kept.is_filled, kept.records_left)).collect::<Vec<_>>()
    };
    case.define("n", &counted(false)).await;
    assert_eq!(versions_of(&mut case).await, [(1, false, 2)]);
    fill::fill_all(&mut case.connection).await.expect("filled");
    assert_eq!(versions_of(&mut case).await, [(1, true, 0)]);

    case.define("n", &counted(true)).await;
    case.define("n", &counted(true)).await;
    case.store(vec![bot(event("a", 3, 1, json!({})))]).await;
    assert_eq!(versions_of(&mut case).await, [(1, true, 0), (2, false, 2)]);
    fill::fill_all(&mut case.connection).await.expect("filled");
    assert_eq!(versions_of(&mut case).await, [(2, true, 0)]);
    assert_eq!(case.found("n").await, (vec!["(a,3)".to_owned()], vec!["(a,3)".to_owned()]));

    let project = catalogue::find_project(&mut case.connection, &case.project.to_string()).await.expect("a project");
    rollups::remove(&mut case.connection, &project, "n").await.expect("removed");
    let again = rollups::remove(&mut case.connection, &project, "n").await.expect_err("is gone").to_string();
    assert!(again.contains("rollup"), "{again}");
    case.store(vec![event("a", 4, 1, json!({}))]).await;
    let tables = "SELECT count(*) FROM pg_class WHERE relname ~ '^rollup_[0-9]' AND relkind = 'r'";
    assert_eq!(case.rows(tables).await, ["(0)"]);
    case.define("n", &counted(true)).await;
    fill::fill_all(&mut case.connection).await.expect("filled");
    assert_eq!(case.found("n").await, (vec!["(a,4)".to_owned()], vec!["(a,4)".to_owned()]));
}

/// A fill that ends between its transactions goes on where it was, and one inside of a transaction leaves nothing of it.
#[tokio::test]
async fn history_is_added_once_whatever_breaks_off() {
    let mut case = Case::new(&TestDatabase::create().await).await;
    let many =
        |from: u128| (from..from + 300).map(|id| event("a", id, (id % 30) as u8, json!({"amount": id.to_string()}))).collect();
    case.store(many(1)).await;
    let sums = rollup(json!({"unique": ["amount"], "keys": ["day"], "measures": {"n": "count", "amount": {"sum": "amount"}}}));
    case.define("sums", &sums).await;
    case.store(many(200)).await;
    for records in [1, 7, 50] {
        // Refused at the end of the transaction, when its rows are written.
        case.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON rollup_fills FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
        assert!(fill::fill_some(&mut case.connection, records).await.is_err());
        case.execute("ROLLBACK; DROP FUNCTION refuse() CASCADE").await;
        assert!(fill::fill_some(&mut case.connection, records).await.expect("filled"));
    }
    let left = rollups::kept(&mut case.connection, case.project).await.expect("answers")[0].records_left;
    assert_eq!(left, 300 - 58);
    fill::fill_all(&mut case.connection).await.expect("filled");
    let (found, expected) = case.found("sums").await;
    assert_eq!(found, expected);
    assert!(!fill::fill_some(&mut case.connection, 1).await.expect("nothing to do"));
}
