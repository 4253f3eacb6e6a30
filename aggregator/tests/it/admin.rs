//! What operators change: rows, locks, versions, audit, and nothing by halves.

use std::time::Duration;

use aggregator::admin::dead_letters::{self, Count, Filter, Marked, Selection};
use aggregator::admin::{campaigns, experiments};
use aggregator::recompute::Differences;
use catalogue::campaigns::{NewCampaign, NewComponent};
use catalogue::experiments::Assignment::Kept;
use catalogue::experiments::{
    Experiment, NewExperiment, NewVariant, VariantDetails, add_metric, archive, describe_variant, list, remove_metric, show,
    unarchive,
};
use catalogue::metrics::NewMetric;
use catalogue::{
    Aggregation, Amount, CampaignStatus, CampaignType, ComponentType, DeadLetterStatus, Denominator, Direction, ExperimentStatus,
    Project, Role, find_project,
};
use events::{Micros, Record, testing};
use migrations::testing::TestDatabase;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

/// The project of `events::testing`.
const PROJECT: Uuid = Uuid::from_u128(1);
const LOG: Uuid = Uuid::from_u128(2);

pub(crate) async fn database() -> (TestDatabase, PgConnection, Project) {
    let database = TestDatabase::create().await;
    let mut conn = database.connect().await;
    sqlx::query("INSERT INTO projects (id, name) VALUES ($1, 'shop'), ($2, 'other')")
        .bind(PROJECT)
        .bind(Uuid::from_u128(9))
        .execute(&mut conn)
        .await
        .expect("two projects");
    sqlx::query("INSERT INTO logs (log_id, log_partitions) VALUES ($1, 1)").bind(LOG).execute(&mut conn).await.expect("a log");
    sqlx::query("INSERT INTO checkpoints (log_id, log_partition) VALUES ($1, 0)")
        .bind(LOG)
        .execute(&mut conn)
        .await
        .expect("a checkpoint");
    let project = find_project(&mut conn, "shop").await.expect("just made");
    (database, conn, project)
}

pub(crate) fn variant(name: &str, weight: Option<&str>) -> NewVariant {
    NewVariant { name: name.into(), weight: weight.map(Into::into), is_control: name == "control", ..NewVariant::default() }
}

pub(crate) fn checkout() -> NewExperiment {
    NewExperiment {
        name: "checkout".into(),
        variants: vec![variant("control", Some("50")), variant("b", Some("50.5"))],
        ..NewExperiment::default()
    }
}

pub(crate) async fn version(conn: &mut PgConnection) -> i64 {
    let version =
        sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM catalogue_versions WHERE project_id = $1").bind(PROJECT);
    version.fetch_one(conn).await.expect("a number")
}

async fn audited(conn: &mut PgConnection) -> Vec<(String, String)> {
    let rows = sqlx::query_as("SELECT action, subject FROM audit WHERE project_id = $1 AND actor LIKE '_% as weir' ORDER BY id");
    rows.bind(PROJECT).fetch_all(conn).await.expect("rows")
}

/// Stores a dead letter and returns its id.
async fn letter(conn: &mut PgConnection, offset: i64, project: Option<Uuid>, code: &str, subject: &str, bytes: &[u8]) -> Uuid {
    sqlx::query_scalar(
        "INSERT INTO dead_letters (project_id, log_id, log_partition, log_offset, code, subject, reason, bytes) \
         VALUES ($1, $2, 0, $3, $4, $5, 'a reason', $6) RETURNING id",
    )
    .bind(project)
    .bind(LOG)
    .bind(offset)
    .bind(code)
    .bind(subject)
    .bind(bytes)
    .fetch_one(conn)
    .await
    .expect("a dead letter")
}

async fn status_of(conn: &mut PgConnection, id: Uuid) -> String {
    sqlx::query_scalar("SELECT status FROM dead_letters WHERE id = $1").bind(id).fetch_one(conn).await.expect("a status")
}

/// The bytes of an exposure to a variant of an experiment.
fn exposure(experiment: &str, variant: &str) -> Vec<u8> {
    let draft = testing::exposure("e-1", "alice", "2026-03-01T10:00:00Z", experiment, variant);
    Record::encode(&testing::admitted(draft)).bytes().to_vec()
}

/// Stores a raw impression of user number `user`, this far from now.
pub(crate) async fn impression(conn: &mut PgConnection, experiment: &Experiment, user: u128, from_now: &str) {
    sqlx::query(
        "INSERT INTO impressions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id, \
             log_partition, log_offset, experiment_id, variant_id) \
         VALUES ($1, gen_random_uuid(), $2, now() + $3::interval, now() + $3::interval, now(), false, false, $4, 0, 0, $5, $6)",
    )
    .bind(PROJECT)
    .bind(Uuid::from_u128(user))
    .bind(from_now)
    .bind(LOG)
    .bind(experiment.id)
    .bind(experiment.variants[0].id)
    .execute(conn)
    .await
    .expect("an impression");
}

pub(crate) async fn participants(conn: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM user_experiment_participation").fetch_one(conn).await.expect("a number")
}

pub(crate) fn text(error: &impl std::error::Error) -> String {
    error.to_string()
}

#[tokio::test]
async fn an_experiment_is_made_with_all_its_parts() {
    let (_database, mut conn, project) = database().await;
    let metric = NewMetric {
        name: "refunds".into(),
        conversion_type: Some("refund".into()),
        aggregation: Aggregation::CountPerUser,
        direction: Direction::Decrease,
        role: Role::Guardrail,
        margin: Some("0.02".into()),
        window_days: Some(7),
        cap: Some("3".into()),
        ..NewMetric::default()
    };
    let new = NewExperiment {
        description: Some("one page or two".into()),
        metrics: vec![metric],
        target_sample_size: Some(40_000),
        confidence_level: Some("0.9".into()),
        minimum_detectable_effect: Some("0.015".into()),
        conversion_window_days: Some(14),
        attribution_method: Some("last_exposure".parse().expect("accepted")),
        currency: Some("EUR".into()),
        start: true,
        started_at: Some(Micros::parse("2026-03-01T00:00:00.000001Z").expect("a time")),
        ..checkout()
    };
    let made = experiments::create(&mut conn, &project, &new).await.expect("made").experiment;
    let shown = show(&mut conn, &project, &made.id.to_string().to_uppercase()).await.expect("found by its id");
    let mut json = serde_json::to_value(&shown).expect("JSON");
    for (pointer, id) in [("", made.id), ("/variants/0", made.variants[0].id), ("/variants/1", made.variants[1].id)] {
        let id = serde_json::Value::from(id.to_string());
        assert_eq!(json.pointer_mut(pointer).and_then(|part| part.as_object_mut()?.remove("id")), Some(id));
    }
    assert!(json.as_object_mut().expect("an object").remove("created_at").is_some());
    let expected = serde_json::json!({
        "name": "checkout", "description": "one page or two", "status": "running", "started_at": "2026-03-01T00:00:00.000001Z",
        "ended_at": null, "target_sample_size": 40_000, "confidence_level": "0.9", "minimum_detectable_effect": "0.015",
        "conversion_window_days": 14, "attribution_method": "last_exposure", "currency": "EUR", "frozen_at": null,
        "auto_registered": false, "trigger": null, "policy": { "decide_by": "clear_signals", "on_harm": "tell" },
        "variants": [{ "name": "b", "is_control": false, "description": null, "config_json": null, "weight": "50.5" }, { "name": "control", "is_control": true, "description": null, "config_json": null, "weight": "50" }],
        "metrics": [{ "name": "refunds", "conversion_type": "refund", "aggregation": "count_per_user", "direction": "decrease",
                      "role": "guardrail", "margin": "0.02", "window_days": 7, "cap": "3" }],
        "phases": [{ "phase": 1, "state": "assigning", "reassigns": false, "started_at": "2026-03-01T00:00:00.000001Z", "ended_at": null,
                     "weights": [{ "variant_id": made.variants[0].id, "weight": "50.5" }, { "variant_id": made.variants[1].id, "weight": "50" }] }],
    });
    assert_eq!(json, expected);
    assert_eq!(version(&mut conn).await, 1);
    assert_eq!(audited(&mut conn).await, [("experiment.create".to_owned(), "checkout".to_owned())]);
}

#[tokio::test]
async fn metrics_come_and_go() {
    let (_database, mut conn, project) = database().await;
    experiments::create(&mut conn, &project, &checkout()).await.expect("made");
    let ratio = NewMetric {
        name: "order value".into(),
        conversion_type: Some("purchase".into()),
        aggregation: Aggregation::Ratio,
        numerator: Some(Amount::Value),
        denominator: Some(Denominator::Conversions),
        role: Role::Primary,
        ..NewMetric::default()
    };
    let quantile = NewMetric {
        name: "p95".into(),
        aggregation: Aggregation::Quantile,
        numerator: Some(Amount::Count),
        quantile: Some("0.95".into()),
        ..NewMetric::default()
    };
    let capped = NewMetric {
        name: "value".into(),
        aggregation: Aggregation::ValuePerUser,
        cap_percentile: Some("99.5".into()),
        role: Role::Guardrail,
        ..NewMetric::default()
    };
    for metric in [&ratio, &quantile, &capped] {
        add_metric(&mut conn, &project, "checkout", metric).await.expect("added");
    }
    let shown = show(&mut conn, &project, "checkout").await.expect("shown");
    let json = serde_json::to_value(&shown.metrics).expect("JSON");
    let expected = serde_json::json!([
        { "name": "order value", "conversion_type": "purchase", "aggregation": "ratio", "numerator": "value",
          "denominator": "conversions", "direction": "increase", "role": "primary", "margin": null, "window_days": null, "cap": null },
        { "name": "p95", "conversion_type": null, "aggregation": "quantile", "numerator": "count", "quantile": "0.95",
          "direction": "increase", "role": "secondary", "margin": null, "window_days": null, "cap": null },
        { "name": "value", "conversion_type": null, "aggregation": "value_per_user", "direction": "increase", "role": "guardrail",
          "margin": null, "window_days": null, "cap": null, "cap_percentile": "99.5" },
    ]);
    assert_eq!(json, expected);
    let twice = add_metric(&mut conn, &project, "checkout", &ratio).await.expect_err("is there");
    assert_eq!(text(&twice), r#"metric "order value" is there already; choose another name, or remove it first"#);
    let unknown = remove_metric(&mut conn, &project, "checkout", "nothing").await.expect_err("is not there");
    assert_eq!(unknown.code(), "unknown");
    assert!(text(&unknown).contains(r#"there is "order value", "p95", "value""#), "{unknown}");
    let left = remove_metric(&mut conn, &project, "checkout", "p95").await.expect("removed");
    assert_eq!(left.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>(), ["order value", "value"]);
    add_metric(&mut conn, &project, "checkout", &quantile).await.expect("a name of a metric may come again");
    assert_eq!(version(&mut conn).await, 6, "each change raises it once, what was refused does not");
    let actions: Vec<String> = audited(&mut conn).await.into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions[1..], ["metric.create", "metric.create", "metric.create", "metric.remove", "metric.create"]);
}

#[tokio::test]
async fn what_is_left_out_gets_the_defaults_of_the_schema() {
    let (_database, mut conn, project) = database().await;
    let made = experiments::create(&mut conn, &project, &checkout()).await.expect("made").experiment;
    assert_eq!((made.status, made.started_at, made.confidence_level.to_string()), (ExperimentStatus::Draft, None, "0.95".into()));
    assert_eq!((made.minimum_detectable_effect.to_string(), made.conversion_window_days), ("0.05".into(), 30));
    assert_eq!((made.attribution_method.as_str(), made.currency, made.target_sample_size), ("first_exposure", None, None));
    let before = Micros::now();
    let new = NewExperiment { name: "next".into(), start: true, ..checkout() };
    let running = experiments::create(&mut conn, &project, &new).await.expect("made").experiment;
    let started_at = running.started_at.expect("started");
    assert!(started_at.0 >= before.0 - Micros::SECOND && started_at <= Micros::now(), "{started_at}");
    let names: Vec<_> = list(&mut conn, &project).await.expect("a list").into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["checkout", "next"]);
}

#[tokio::test]
async fn refusals_say_what_was_found_and_change_nothing() {
    let (_database, mut conn, project) = database().await;
    let unknown = show(&mut conn, &project, "x").await.expect_err("there is none");
    assert_eq!(text(&unknown), r#"experiment "x": there is none of this name or id in project "shop"; there is none at all yet"#);
    let made = experiments::create(&mut conn, &project, &checkout()).await.expect("made").experiment;
    let taken = experiments::create(&mut conn, &project, &checkout()).await.expect_err("taken");
    let expected =
        format!(r#"experiment "checkout": the name is taken by {}, and is never given twice; choose another one"#, made.id);
    assert_eq!(text(&taken), expected);
    let unknown = experiments::start(&mut conn, &project, "x", Kept, None).await.expect_err("there is none");
    assert_eq!(text(&unknown), r#"experiment "x": there is none of this name or id in project "shop"; there is "checkout""#);
    let never_ran = experiments::stop(&mut conn, &project, "checkout").await.expect_err("a draft");
    assert_eq!(text(&never_ran), r#"experiment "checkout" is draft; it was never started, so there is nothing to end"#);
    let unknown = find_project(&mut conn, "shops").await.expect_err("there is none");
    assert_eq!(text(&unknown), r#"project "shops": there is none of this name or id in this database; there is "other", "shop""#);
    assert_eq!(version(&mut conn).await, 1);
    assert_eq!(audited(&mut conn).await.len(), 1);
}

#[tokio::test]
async fn a_change_that_cannot_be_audited_is_not_made() {
    let (_database, mut conn, project) = database().await;
    experiments::create(&mut conn, &project, &checkout()).await.expect("made");
    sqlx::raw_sql("ALTER TABLE audit RENAME TO elsewhere").execute(&mut conn).await.expect("renamed");
    let new = NewExperiment { name: "next".into(), ..checkout() };
    assert_eq!(experiments::create(&mut conn, &project, &new).await.expect_err("no audit").code(), "database");
    assert_eq!(experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect_err("no audit").code(), "database");
    let experiments = list(&mut conn, &project).await.expect("a list");
    assert_eq!(
        experiments.iter().map(|e| (e.name.as_str(), e.status)).collect::<Vec<_>>(),
        [("checkout", ExperimentStatus::Draft)]
    );
    assert_eq!(version(&mut conn).await, 1);
}

#[tokio::test]
async fn start_and_stop_compute_the_experiment_again() {
    let (_database, mut conn, project) = database().await;
    let made = experiments::create(&mut conn, &project, &checkout()).await.expect("made").experiment;
    impression(&mut conn, &made, 1, "-1 hour").await;
    impression(&mut conn, &made, 2, "1 hour").await;
    impression(&mut conn, &made, 3, "2 hours").await;
    assert_eq!(participants(&mut conn).await, 0);

    let started = experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("started");
    assert_eq!(started.experiment.status, ExperimentStatus::Running);
    assert!(started.experiment.started_at.is_some());
    assert_eq!(started.recomputed, Some(Differences { participation: 2, attribution: 0 }));
    let again = experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("runs already");
    assert_eq!((again.recomputed, again.experiment.started_at), (None, started.experiment.started_at));

    let stopped = experiments::stop(&mut conn, &project, &made.id.to_string()).await.expect("stopped");
    assert_eq!(stopped.experiment.status, ExperimentStatus::Completed);
    assert!(stopped.experiment.ended_at.is_some());
    assert_eq!(stopped.recomputed, Some(Differences { participation: 2, attribution: 0 }));
    assert_eq!(participants(&mut conn).await, 0);
    assert_eq!(experiments::stop(&mut conn, &project, "checkout").await.expect("ended already").recomputed, None);
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM experiment_phases").fetch_one(&mut conn).await.expect("a number");
    assert_eq!((stored, stopped.experiment.phases.len()), (0, 1), "started and ended once, it is one phase by its own times");

    let resumed = experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("runs again").experiment;
    assert_eq!((resumed.started_at, resumed.ended_at), (started.experiment.started_at, None));
    assert_eq!(participants(&mut conn).await, 2);
    // Created, started, stopped, started again, each but the first with its recomputation, which closes its list and ends; what changed
    // nothing raised nothing.
    assert_eq!(version(&mut conn).await, 10);
    let actions: Vec<_> = audited(&mut conn).await.into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, ["experiment.create", "experiment.start", "experiment.stop", "experiment.start"]);
}

#[tokio::test]
async fn a_registered_experiment_keeps_its_open_start() {
    let (_database, mut conn, project) = database().await;
    let made = experiments::create(&mut conn, &project, &checkout()).await.expect("made").experiment;
    sqlx::raw_sql("UPDATE experiments SET status = 'running', auto_registered = true").execute(&mut conn).await.expect("changed");
    impression(&mut conn, &made, 1, "-1 hour").await;
    let recomputed = experiments::recompute(&mut conn, &project, "checkout").await.expect("recomputed").recomputed;
    assert_eq!(recomputed, Some(Differences { participation: 1, attribution: 0 }));
    let stopped = experiments::stop(&mut conn, &project, "checkout").await.expect("stopped").experiment;
    assert_eq!(stopped.started_at, None);
    let resumed = experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("started").experiment;
    assert_eq!((resumed.started_at, participants(&mut conn).await), (None, 1));
}

/// What is archived keeps its rows, and is not started again before it is taken out; a draft has none, archived or not.
#[tokio::test]
async fn an_experiment_is_archived_and_taken_out_again() {
    let (_database, mut conn, project) = database().await;
    let made = experiments::create(&mut conn, &project, &checkout()).await.expect("made").experiment;
    impression(&mut conn, &made, 1, "-1 hour").await;
    impression(&mut conn, &made, 2, "1 hour").await;
    for (is_started, taken_out) in [(false, ExperimentStatus::Draft), (true, ExperimentStatus::Completed)] {
        if is_started {
            experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("started");
            let refused = archive(&mut conn, &project, "checkout").await.expect_err("it runs");
            let expected = r#"experiment "checkout" is running; only a draft or a completed one is archived; stop it first"#;
            assert_eq!(text(&refused), expected);
            sqlx::raw_sql("UPDATE experiments SET started_at = now() - interval '2 hours'")
                .execute(&mut conn)
                .await
                .expect("earlier");
            experiments::stop(&mut conn, &project, "checkout").await.expect("stopped");
            assert_eq!(participants(&mut conn).await, 1);
        }
        let put_away = archive(&mut conn, &project, "checkout").await.expect("archived");
        assert_eq!((put_away.is_change(), put_away.after.status), (true, ExperimentStatus::Archived));
        assert!(!archive(&mut conn, &project, "checkout").await.expect("archived already").is_change());
        let recomputed = experiments::recompute(&mut conn, &project, "checkout").await.expect("recomputed");
        assert_eq!(recomputed.recomputed, Some(Differences::default()));
        assert_eq!((recomputed.experiment.phases.len(), participants(&mut conn).await), (is_started as usize, is_started as i64));
        let refused = experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect_err("it is put away");
        assert_eq!(text(&refused), r#"experiment "checkout" is archived; only a draft, paused or completed one is started"#);
        let out = unarchive(&mut conn, &project, "checkout").await.expect("taken out");
        assert_eq!((out.is_change(), out.after.status), (true, taken_out));
        assert!(!unarchive(&mut conn, &project, "checkout").await.expect("is out").is_change());
    }
    let actions: Vec<_> = audited(&mut conn).await.into_iter().map(|(action, _)| action).collect();
    let of_archive = actions.iter().filter(|action| action.contains("archive")).collect::<Vec<_>>();
    assert_eq!(of_archive, ["experiment.archive", "experiment.unarchive", "experiment.archive", "experiment.unarchive"]);
}

/// What is said of a variant is stored; what is not said stays; a value that is no JSON, or of another variant, changes nothing.
#[tokio::test]
async fn variants_are_described() {
    let (_database, mut conn, project) = database().await;
    experiments::create(&mut conn, &project, &checkout()).await.expect("made");
    let details = |description: Option<&str>, config: Option<&str>| VariantDetails {
        description: description.map(Into::into),
        config_json: config.map(Into::into),
    };
    let found = async |conn: &mut PgConnection, name: &str| {
        let shown = show(conn, &project, "checkout").await.expect("shown");
        let variant = shown.variants.into_iter().find(|variant| variant.name == name).expect("there");
        (variant.description, variant.config_json)
    };
    describe_variant(&mut conn, &project, "checkout", "b", &details(Some("a red button"), None)).await.expect("described");
    let config = details(None, Some(r#"{"colour":"red","size":1.50}"#));
    let shown = describe_variant(&mut conn, &project, "checkout", "b", &config).await.expect("described");
    let expected = (Some("a red button".to_owned()), Some(r#"{"size": 1.50, "colour": "red"}"#.to_owned()));
    assert_eq!(found(&mut conn, "b").await, expected);
    assert_eq!(found(&mut conn, "control").await, (None, None));
    let printed = serde_json::to_value(&shown.variants[0]).expect("is JSON");
    assert_eq!(printed["config_json"], serde_json::json!({"colour": "red", "size": 1.5}));
    let late = NewVariant { details: details(Some("late"), Some("7")), ..variant("c", Some("50")) };
    experiments::add_variant(&mut conn, &project, "checkout", &late, None).await.expect("added");
    assert_eq!(found(&mut conn, "c").await, (Some("late".to_owned()), Some("7".to_owned())));

    let before = version(&mut conn).await;
    let refused = describe_variant(&mut conn, &project, "checkout", "b", &details(None, Some("{"))).await.expect_err("no JSON");
    assert!(text(&refused).starts_with("config_json: found text that is no JSON: "), "{refused}");
    let refused =
        describe_variant(&mut conn, &project, "checkout", "d", &details(None, None)).await.expect_err("no such variant");
    assert!(text(&refused).contains(r#"there is "b", "c", "control""#), "{refused}");
    assert_eq!((version(&mut conn).await, found(&mut conn, "b").await), (before, expected));
}

#[tokio::test]
async fn recompute_repairs_and_reports() {
    let (_database, mut conn, project) = database().await;
    let new = NewExperiment { start: true, ..checkout() };
    let made = experiments::create(&mut conn, &project, &new).await.expect("made").experiment;
    impression(&mut conn, &made, 1, "1 hour").await;
    let mut differences = async || experiments::recompute(&mut conn, &project, "checkout").await.expect("recomputed").recomputed;
    assert_eq!(differences().await, Some(Differences { participation: 1, attribution: 0 }));
    assert_eq!(differences().await, Some(Differences::default()));
    sqlx::raw_sql("UPDATE user_experiment_participation SET total_impressions = 7").execute(&mut conn).await.expect("spoilt");
    let repaired = experiments::recompute(&mut conn, &project, "checkout").await.expect("recomputed").recomputed;
    assert_eq!(repaired, Some(Differences { participation: 1, attribution: 0 }));
}

#[tokio::test]
async fn a_frozen_experiment_stays_as_it_is() {
    let (_database, mut conn, project) = database().await;
    experiments::create(&mut conn, &project, &checkout()).await.expect("made");
    sqlx::raw_sql("UPDATE experiments SET frozen_at = '2026-03-01T00:00:00Z'").execute(&mut conn).await.expect("frozen");
    let check = |error: &dyn std::error::Error| {
        let expected = r#"experiment_frozen: experiment "checkout" is frozen since 2026-03-01T00:00:00Z, "#;
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    check(&experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect_err("frozen"));
    check(&experiments::stop(&mut conn, &project, "checkout").await.expect_err("frozen"));
    check(&experiments::recompute(&mut conn, &project, "checkout").await.expect_err("frozen"));
    check(&experiments::add_variant(&mut conn, &project, "checkout", &variant("c", Some("1")), None).await.expect_err("frozen"));
}

/// A change waits for the commits of its own project and holds no checkpoint, so that it holds up no other project's.
#[tokio::test]
async fn a_change_waits_for_commits_of_its_project_only() {
    let (database, mut conn, project) = database().await;
    let made = experiments::create(&mut conn, &project, &checkout()).await.expect("made").experiment;
    impression(&mut conn, &made, 1, "1 hour").await;
    let mut aggregator = database.connect().await;
    let mut commit = aggregator.begin().await.expect("begun");
    sqlx::query("SELECT 1 FROM checkpoints FOR UPDATE").fetch_all(&mut *commit).await.expect("all checkpoints");
    let other = [Uuid::from_u128(9 << 64)].into_iter(); // a lock is the first half of an id
    catalogue::version::lock_shared(&mut commit, other).await.expect("the catalogue of another project");
    experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("waits for nothing");

    catalogue::version::lock_shared(&mut commit, [PROJECT].into_iter()).await.expect("free again");
    let task =
        tokio::spawn(async move { experiments::stop(&mut conn, &project, "checkout").await.map(|done| done.experiment.status) });
    let mut observer = database.connect().await;
    waits_for_lock(&mut observer, "advisory").await;
    assert!(!task.is_finished());
    commit.commit().await.expect("committed");
    assert_eq!(task.await.expect("no panic").expect("stopped"), ExperimentStatus::Completed);
}

/// What looks through the facts of an experiment holds nothing that a commit needs: neither checkpoints nor the project's catalogue.
#[tokio::test]
async fn no_scan_keeps_commits_waiting() {
    let (database, mut conn, project) = database().await;
    let new = NewExperiment { start: true, ..checkout() };
    let made = experiments::create(&mut conn, &project, &new).await.expect("made").experiment;
    impression(&mut conn, &made, 1, "1 hour").await;
    let (mut obstacle, mut commit) = (database.connect().await, database.connect().await);
    for step in ["stop", "start", "recompute"] {
        // The scan cannot begin while this table is locked.
        sqlx::raw_sql("BEGIN; LOCK TABLE conversion_attribution IN ACCESS EXCLUSIVE MODE")
            .execute(&mut obstacle)
            .await
            .expect("locked");
        let before = version(&mut commit).await;
        let url = database.url.clone();
        let project_of_task = project.clone();
        let task = tokio::spawn(async move {
            let mut conn = PgConnection::connect(&url).await.expect("connects");
            let project = project_of_task;
            match step {
                "stop" => experiments::stop(&mut conn, &project, "checkout").await,
                "start" => experiments::start(&mut conn, &project, "checkout", Kept, None).await,
                _ => experiments::recompute(&mut conn, &project, "checkout").await,
            }
            .map(|changed| changed.recomputed)
        });
        waits_for_lock(&mut commit, "relation").await;
        let locks = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                     WHERE a.wait_event = 'relation' AND l.granted AND l.mode <> 'AccessShareLock' AND l.locktype <> 'virtualxid'
                       AND NOT (l.locktype = 'advisory' AND l.objid = ($1::bigint & 4294967295)::oid)";
        // But for the lock by which two recomputations of one experiment exclude each other.
        let own = made.id.as_u128() as i64;
        let held: i64 = sqlx::query_scalar(locks).bind(own).fetch_one(&mut commit).await.expect("a number");
        assert_eq!(held, 0, "{step}");
        let mut transaction = commit.begin().await.expect("begun");
        sqlx::raw_sql("SET LOCAL lock_timeout = '1ms'; SELECT 1 FROM checkpoints FOR UPDATE NOWAIT")
            .execute(&mut *transaction)
            .await
            .expect("checkpoints are free");
        catalogue::version::lock_shared(&mut transaction, [PROJECT].into_iter()).await.expect("the catalogue is free");
        transaction.commit().await.expect("committed");
        assert!(!task.is_finished());
        assert_eq!(version(&mut commit).await, before + 1, "the change is made, and commits know of it");
        sqlx::raw_sql("ROLLBACK").execute(&mut obstacle).await.expect("free again");
        task.await.expect("no panic").expect("changed").expect("recomputed");
    }
    let marks: i64 = sqlx::query_scalar("SELECT count(*) FROM experiments_behind").fetch_one(&mut conn).await.expect("a number");
    assert_eq!(marks, 0);
}

/// Waits until somebody waits for a lock of a kind.
async fn waits_for_lock(observer: &mut PgConnection, kind: &str) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1";
    while sqlx::query_scalar::<_, i64>(waiting).bind(kind).fetch_one(&mut *observer).await.expect("a number") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_new_experiment_has_its_dead_letters_replayed() {
    let (_database, mut conn, project) = database().await;
    let known = exposure("checkout", "b");
    let named = letter(&mut conn, 0, Some(PROJECT), "unknown_experiment", "checkout", &known).await;
    let other_name = letter(&mut conn, 1, Some(PROJECT), "unknown_experiment", "checkout2", &known).await;
    let other_project = letter(&mut conn, 2, Some(Uuid::from_u128(9)), "unknown_experiment", "checkout", &known).await;
    let other_code = letter(&mut conn, 3, Some(PROJECT), "unknown_campaign", "checkout", &known).await;
    let unknown_variant = letter(&mut conn, 4, Some(PROJECT), "unknown_variant", "c", &exposure("checkout", "c")).await;
    let variant_elsewhere = letter(&mut conn, 5, Some(PROJECT), "unknown_variant", "c", &exposure("pricing", "c")).await;
    let created = experiments::create(&mut conn, &project, &checkout()).await.expect("made");
    assert_eq!(created.dead_letters, 1);
    assert_eq!(status_of(&mut conn, named).await, "replay");
    for id in [other_name, other_project, other_code, unknown_variant, variant_elsewhere] {
        assert_eq!(status_of(&mut conn, id).await, "open");
    }

    let refused =
        experiments::add_variant(&mut conn, &project, "checkout", &variant("c", None), None).await.expect_err("no weight");
    let expected = "variants[2].weight: some variants have a weight and some have none; all or none is accepted";
    assert_eq!(text(&refused), expected);
    let taken =
        experiments::add_variant(&mut conn, &project, "checkout", &variant("b", Some("1")), None).await.expect_err("taken");
    assert_eq!(taken.code(), "name_taken");
    let added = experiments::add_variant(&mut conn, &project, "checkout", &variant("c", Some("1")), None).await.expect("added");
    assert_eq!((added.dead_letters, added.experiment.variants.len()), (1, 3));
    assert_eq!(status_of(&mut conn, unknown_variant).await, "replay");
    assert_eq!(status_of(&mut conn, variant_elsewhere).await, "open");
    assert_eq!(version(&mut conn).await, 2);
}

#[tokio::test]
async fn a_new_campaign_has_its_dead_letters_replayed() {
    let (_database, mut conn, project) = database().await;
    let waiting = letter(&mut conn, 0, Some(PROJECT), "unknown_campaign", "spring", b"{}").await;
    let component = |name: &str| NewComponent { name: name.into(), kind: ComponentType::HeroSection };
    let new = NewCampaign {
        name: "spring".into(),
        kind: Some(CampaignType::Funnel),
        components: vec![component("hero"), component("foot")],
        ..NewCampaign::default()
    };
    let created = campaigns::create(&mut conn, &project, &new).await.expect("made");
    assert_eq!((created.dead_letters, status_of(&mut conn, waiting).await.as_str()), (1, "replay"));
    let shown = catalogue::campaigns::show(&mut conn, &project, "spring").await.expect("found");
    assert_eq!((shown.id, shown.status), (created.campaign.id, CampaignStatus::Active));
    assert_eq!(shown.kind, Some(CampaignType::Funnel));
    assert_eq!(shown.components.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["foot", "hero"]);
    assert_eq!(catalogue::campaigns::list(&mut conn, &project).await.expect("a list").len(), 1);
    assert_eq!(campaigns::create(&mut conn, &project, &new).await.expect_err("taken").code(), "name_taken");
    let twice = NewCampaign { name: "x".into(), components: vec![component("a"), component("a")], ..new };
    let refused = campaigns::create(&mut conn, &project, &twice).await.expect_err("twice");
    assert_eq!(text(&refused), r#"components[1].name: found "a" twice; each name once"#);
    let unknown = catalogue::campaigns::show(&mut conn, &project, "x").await.expect_err("was refused");
    assert_eq!(text(&unknown), r#"campaign "x": there is none of this name or id in project "shop"; there is "spring""#);
}

#[tokio::test]
async fn dead_letters_are_listed_counted_and_shown() {
    let (_database, mut conn, _project) = database().await;
    let bytes = exposure("checkout", "b");
    let first = letter(&mut conn, 0, Some(PROJECT), "unknown_experiment", "checkout", &bytes).await;
    letter(&mut conn, 1, Some(PROJECT), "unknown_experiment", "pricing", &bytes).await;
    letter(&mut conn, 2, None, "not_an_event", "", b"\xff").await;
    let filter = |project, code: Option<&str>, status| Filter { project, code: code.map(Into::into), status };
    let mut listed = async |filter: &Filter, limit| dead_letters::list(&mut conn, filter, limit).await.expect("a list").len();
    assert_eq!(listed(&Filter::default(), 10).await, 3);
    assert_eq!(listed(&Filter::default(), 2).await, 2);
    assert_eq!(listed(&filter(Some(PROJECT), None, None), 10).await, 2);
    assert_eq!(listed(&filter(None, Some("not_an_event"), None), 10).await, 1);
    assert_eq!(listed(&filter(None, None, Some(DeadLetterStatus::Replayed)), 10).await, 0);

    let counts = dead_letters::counts(&mut conn, &Filter::default()).await.expect("counts");
    let numbers: Vec<_> =
        counts.iter().map(|Count { status, code, count, .. }| (status.as_str(), code.as_str(), *count)).collect();
    assert_eq!(numbers, [("open", "not_an_event", 1), ("open", "unknown_experiment", 2)]);
    assert!(counts[1].oldest < counts[1].newest);

    let (shown, record) = dead_letters::show(&mut conn, first).await.expect("found");
    assert_eq!((shown.log_offset, shown.subject.as_deref(), record), (0, Some("checkout"), bytes));
    let unknown = dead_letters::show(&mut conn, Uuid::nil()).await.expect_err("there is none");
    assert_eq!(unknown.code(), "unknown");
}

#[tokio::test]
async fn dead_letters_named_by_id_are_changed_together_or_not_at_all() {
    let (_database, mut conn, _project) = database().await;
    let event = exposure("checkout", "b");
    let good = letter(&mut conn, 0, Some(PROJECT), "unknown_experiment", "checkout", &event).await;
    let bad = letter(&mut conn, 1, None, "not_an_event", "", b"\xff").await;
    let refused = dead_letters::replay(&mut conn, &Selection::Ids(vec![good, bad])).await.expect_err("no event");
    assert!(text(&refused).starts_with(&format!("dead letter {bad} is not readable (not an event: ")), "{refused}");
    assert_eq!(status_of(&mut conn, good).await, "open");

    let discarded = dead_letters::discard(&mut conn, &Selection::Ids(vec![good, bad])).await.expect("discarded");
    assert_eq!(discarded, Marked { marked: 2, unreadable: 0 });
    let replayed = dead_letters::replay(&mut conn, &Selection::Ids(vec![good])).await.expect("a mind may change");
    assert_eq!((replayed.marked, status_of(&mut conn, good).await.as_str()), (1, "replay"));
    sqlx::query("UPDATE dead_letters SET status = 'replayed' WHERE id = $1")
        .bind(good)
        .execute(&mut conn)
        .await
        .expect("appended");
    assert_eq!(dead_letters::discard(&mut conn, &Selection::Ids(vec![good])).await.expect_err("too late").code(), "wrong_state");
    assert_eq!(dead_letters::replay(&mut conn, &Selection::Ids(vec![Uuid::nil()])).await.expect_err("none").code(), "unknown");
    // The first one named letters of two projects, so it belongs to none.
    let actions: Vec<_> = audited(&mut conn).await.into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, ["dead_letters.replay"]);
}

#[tokio::test]
async fn open_dead_letters_are_changed_by_project_and_code() {
    let (_database, mut conn, _project) = database().await;
    let event = exposure("checkout", "b");
    // More than one chunk of them.
    for offset in 0..501 {
        letter(&mut conn, offset, Some(PROJECT), "unknown_experiment", "checkout", &event).await;
    }
    let bad = letter(&mut conn, 501, Some(PROJECT), "unknown_experiment", "checkout", b"{}").await;
    let other = letter(&mut conn, 502, Some(Uuid::from_u128(9)), "unknown_experiment", "checkout", &event).await;
    let of = |code: &str| Selection::Open(Filter { project: Some(PROJECT), code: Some(code.into()), status: None });
    assert_eq!(dead_letters::replay(&mut conn, &of("other")).await.expect("none"), Marked::default());
    let replayed = dead_letters::replay(&mut conn, &of("unknown_experiment")).await.expect("marked");
    assert_eq!(replayed, Marked { marked: 501, unreadable: 1 });
    assert_eq!((status_of(&mut conn, bad).await, status_of(&mut conn, other).await), ("open".into(), "open".into()));
    let discarded = dead_letters::discard(&mut conn, &Selection::Open(Filter::default())).await.expect("marked");
    assert_eq!(discarded, Marked { marked: 2, unreadable: 0 });
}
