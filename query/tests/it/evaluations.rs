//! Records of what was known of experiments when, and what of it webhooks are told. From rows in Postgres to HTTP on both sides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Row;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Event, PROJECT, Service, add_conversions, add_experiment, add_users, user};

/// Moves the newest event of the project.
async fn now_is(service: &mut Service, time: &str) {
    service.run(&format!("UPDATE project_progress SET event_time = '{time}' WHERE project_id = '{PROJECT}'")).await;
}

/// Stores 100 users of each variant for each of the days from 2026-03-01 on, of whom as many convert as are said, an hour after they came.
async fn add_days(service: &mut Service, experiment: &str, days: &[(u64, u64)]) {
    for (day, (control, b)) in days.iter().enumerate() {
        for (place, (variant, converted)) in [("control", control), ("b", b)].into_iter().enumerate() {
            let from = 1_000 * (2 * day + place) as u64;
            add_users(&mut service.rows, PROJECT, experiment, variant, from, 100).await;
            add_conversions(&mut service.rows, (PROJECT, experiment, variant), "buy", (from, *converted), ("10", "'EUR'")).await;
            let (first, last) = (user(from), user(from + 99));
            let of_users = format!("user_id BETWEEN '{first}' AND '{last}'");
            let later = format!("+ interval '{day} days'");
            service
                .run(&format!(
                    "UPDATE user_experiment_participation SET first_exposure_date = first_exposure_date {later} WHERE {of_users};
                     UPDATE conversion_attribution SET conversion_time = conversion_time {later} WHERE {of_users}"
                ))
                .await;
        }
    }
}

/// Measures all experiments by who buys, and guards them by the same, which may not rise.
async fn add_guarded_metrics(service: &mut Service) {
    service
        .run(
            "INSERT INTO metrics (project_id, experiment_id, name, aggregation, conversion_type, direction, role, margin)
             SELECT project_id, id, 'buys', 'conversion_rate', 'buy', 'increase', 'primary', NULL::numeric FROM experiments
             UNION ALL SELECT project_id, id, 'errors', 'conversion_rate', 'buy', 'decrease', 'guardrail', 0.01 FROM experiments",
        )
        .await;
}

/// Waits until a statement counts so many rows.
async fn until(service: &mut Service, sql: &str, expected: i64) {
    let mut found = -1;
    for _ in 0..300 {
        found = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut service.rows).await.expect("a number");
        if found == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{sql}: {found}, expected {expected}");
}

/// All records as texts, without what is of their making.
async fn records(service: &mut Service) -> Vec<String> {
    let all = "SELECT period || ' ' || to_char(as_of AT TIME ZONE 'UTC', 'MM-DD HH24') || ' ' || revision AS key, answer::text AS answer
               FROM evaluations ORDER BY as_of, period, revision";
    let rows = sqlx::query(all).fetch_all(&mut service.rows).await.expect("rows");
    let record = |row: &sqlx::postgres::PgRow| {
        let mut answer: Value = serde_json::from_str(row.get("answer")).expect("JSON");
        let members = answer.as_object_mut().expect("an object");
        members.remove("computed_at");
        members.remove("as_of");
        format!("{} {answer}", row.get::<String, _>("key"))
    };
    rows.iter().map(record).collect()
}

const DAYS: &str = "SELECT count(*) FROM evaluations WHERE period = 'day'";

#[tokio::test]
async fn each_day_is_recorded_once_and_late_events_make_a_revision() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "checkout", "started_at = '2026-03-01'", &[("control", "1"), ("b", "1")]).await;
    add_days(&mut service, "checkout", &[(10, 12), (10, 11), (9, 10)]).await;
    now_is(&mut service, "2026-03-03T23:59:59.999999Z").await;
    until(&mut service, DAYS, 2).await;
    now_is(&mut service, "2026-03-04T00:00:00Z").await;
    until(&mut service, DAYS, 3).await;

    // What was recorded is what is answered as of then.
    let path = "/v1/experiments/checkout/results";
    let record = service.get(&format!("{path}?as_decided=2026-03-02")).await.ok();
    let mut asked = service.get(&format!("{path}?as_of=2026-03-02T23:59:59.999999Z")).await.ok();
    assert_eq!(record["record"]["as_of"], "2026-03-02T23:59:59.999999Z");
    assert_eq!(record["record"].get("restated"), None);
    for member in ["metrics", "health", "population", "decision", "variants", "settings_hash", "request_settings"] {
        assert_eq!(record[member], asked[member].take(), "{member}");
    }
    assert_eq!(record["variants"][1]["users"], 200);
    let latest = service.get(&format!("{path}?as_decided=latest")).await.ok();
    assert_eq!(latest["record"]["as_of"], "2026-03-03T23:59:59.999999Z");
    let unknown = service.get(&format!("{path}?as_decided=2026-03-09")).await.refused(404, "unknown_record");
    assert!(unknown["message"].as_str().is_some_and(|text| text.contains("from 2026-03-01 to 2026-03-03")), "{unknown}");
    service.get(&format!("{path}?as_decided=latest&cap=off")).await.refused(400, "bad_request");
    service.get("/v1/experiments/other/results?as_decided=latest").await.refused(404, "unknown_experiment");

    // The same as tables.
    let daily = "SELECT CAST(as_of AS DATE) AS day, variant, users, round(mean * users) FROM results_daily
                 WHERE metric = 'conversion_rate' ORDER BY as_of, variant";
    let rows = service.rows(daily).await;
    assert_eq!(rows[0], json!(["2026-03-01", "b", 100, 12]));
    assert_eq!((rows[3].clone(), rows.as_array().map(Vec::len)), (json!(["2026-03-02", "control", 200, 20]), Some(6)));
    let newest = "SELECT experiment, variant, users, verdict FROM results WHERE metric = 'conversion_rate' ORDER BY variant";
    assert_eq!(service.rows(newest).await, json!([["checkout", "b", 300, "inconclusive"], ["checkout", "control", 300, null]]));
    assert_eq!(
        service.rows("SELECT level FROM health WHERE \"check\" = 'srm' ORDER BY as_of").await,
        json!([["ok"], ["ok"], ["ok"]])
    );
    let states = "SELECT period, revision, is_newest, status, exposed_users FROM evaluations ORDER BY as_of LIMIT 1";
    assert_eq!(service.rows(states).await, json!([["day", 1, true, "ok", 200]]));

    // A conversion of March 2 that comes on March 4.
    Event::new("conversion", "buy", 2_050, 86_400.0 + 7_200.0).store(&mut service.rows).await;
    let checkout = (PROJECT, "checkout", "control");
    add_conversions(&mut service.rows, checkout, "buy", (2_050, 1), ("10", "'EUR'")).await;
    service
        .run(&format!(
            "UPDATE conversion_attribution SET conversion_time = conversion_time + interval '25 hours' WHERE user_id = '{}';
             UPDATE conversions SET log_offset = 500;
             UPDATE checkpoints SET next_offset = 501 WHERE log_partition = 0",
            user(2_050)
        ))
        .await;
    now_is(&mut service, "2026-03-05T10:00:00Z").await;
    until(&mut service, DAYS, 6).await;
    let revisions = "SELECT CAST(as_of AS DATE) AS day, revision, is_newest FROM evaluations ORDER BY as_of, revision";
    assert_eq!(
        service.rows(revisions).await,
        json!([
            ["2026-03-01", 1, true],
            ["2026-03-02", 1, false],
            ["2026-03-02", 2, true],
            ["2026-03-03", 1, false],
            ["2026-03-03", 2, true],
            ["2026-03-04", 1, true]
        ])
    );
    let then = service.get(&format!("{path}?as_decided=2026-03-02")).await.ok();
    assert_eq!(then["metrics"], record["metrics"], "what was known then stays");
    let changes = then["record"]["restated"][0]["changes"].as_array().expect("changes").clone();
    let sum = changes.iter().find(|change| change["at"] == "metrics[value_per_user].control.sum").expect("the sum");
    assert_eq!((&sum["before"], &sum["now"]), (&json!("200.00"), &json!("210.00")));
    for statement in ["UPDATE evaluations SET status = 'ok'", "DELETE FROM evaluations"] {
        let refused = sqlx::raw_sql(statement).execute(&mut service.rows).await.expect_err("a record never changes");
        assert!(refused.to_string().contains("never changes"), "{refused}");
    }
}

/// Day by day, or all at once later: the same rows give the same records.
#[tokio::test]
async fn records_do_not_depend_on_when_they_are_made() {
    let days = [(5, 9), (6, 9), (5, 12), (7, 8)];
    let mut found = Vec::new();
    for steps in [vec!["2026-03-02T01:00:00Z", "2026-03-03T01:00:00Z", "2026-03-05T01:00:00Z"], vec!["2026-03-05T01:00:00Z"]] {
        let mut service = Service::start().await;
        add_experiment(&mut service.rows, PROJECT, "checkout", "started_at = '2026-03-01'", &[("control", "1"), ("b", "1")])
            .await;
        add_days(&mut service, "checkout", &days).await;
        for (step, expected) in steps.iter().zip([[1, 2, 4].as_slice(), &[4]][usize::from(steps.len() == 1)]) {
            now_is(&mut service, step).await;
            until(&mut service, DAYS, *expected).await;
        }
        found.push(records(&mut service).await);
    }
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0].len(), 4);
}

/// The headers and the body of a request.
type Received = (HashMap<String, String>, Value);

/// A receiver of webhooks that answers with these statuses, then with 204; and what it got.
async fn receiver(statuses: &'static [u16]) -> (String, Arc<Mutex<Vec<Received>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("has one"));
    let got: Arc<Mutex<Vec<_>>> = Arc::default();
    let received = Arc::clone(&got);
    tokio::spawn(async move {
        let mut statuses = statuses.iter();
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let status = statuses.next().copied().unwrap_or(204);
            let mut bytes = Vec::new();
            let request = loop {
                assert_ne!(stream.read_buf(&mut bytes).await.expect("bytes"), 0);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let headers: HashMap<String, String> = head
                    .lines()
                    .skip(1)
                    .filter_map(|line| line.split_once(": "))
                    .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                    .collect();
                if headers["content-length"] == body.len().to_string() {
                    break (headers, serde_json::from_str(body).expect("JSON"));
                }
            };
            received.lock().expect("free").push(request);
            let answer = format!("HTTP/1.1 {status} said\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
        }
    });
    (url, got)
}

async fn add_webhook(service: &mut Service, url: &str, format: &str, kinds: &str) {
    service
        .run(&format!(
            "INSERT INTO webhooks (project_id, url, format, secret, kinds)
             VALUES ('{PROJECT}', '{url}', '{format}', decode(repeat('07', 32), 'hex'), '{{{kinds}}}')"
        ))
        .await;
}

/// Nothing on the first two days, a clear winner that fails guardrail and split on the third; in the hour in which it is to be seen.
#[tokio::test]
async fn webhooks_are_told_what_changed_in_order_until_it_arrives() {
    let mut service = Service::start().await;
    let (url, got) = receiver(&[500]).await;
    let (chat_url, chat) = receiver(&[]).await;
    let (gone_url, gone) = receiver(&[410]).await;
    add_webhook(&mut service, &url, "standard", "").await;
    add_webhook(&mut service, &chat_url, "chat", "verdict_changed").await;
    add_webhook(&mut service, &gone_url, "standard", "").await;
    now_is(&mut service, "2026-03-01T00:00:00Z").await;
    let columns = "started_at, conversion_window_days = '2026-03-01', 7";
    add_experiment(&mut service.rows, PROJECT, "checkout", columns, &[("control", "1"), ("b", "1")]).await;
    add_guarded_metrics(&mut service).await;
    add_days(&mut service, "checkout", &[(30, 31), (30, 29), (10, 99)]).await;
    now_is(&mut service, "2026-03-03T00:30:00Z").await;
    until(&mut service, DAYS, 2).await;
    until(&mut service, "SELECT count(*) FROM notices", 0).await;
    // Between the hours of a day only guardrails are looked at.
    now_is(&mut service, "2026-03-03T05:30:00Z").await;
    until(&mut service, "SELECT count(*) FROM notices WHERE kind = 'guardrail_harmed'", 1).await;
    // Whether the first hour of all was looked at, before these users were stored, is up to when the service began.
    let hours = "SELECT count(*) FROM evaluations WHERE period = 'hour' AND as_of > '2026-03-03'";
    until(&mut service, hours, 1).await;
    now_is(&mut service, "2026-03-03T07:30:00Z").await;
    now_is(&mut service, "2026-03-04T00:30:00Z").await;
    until(&mut service, DAYS, 3).await;
    until(&mut service, "SELECT count(*) FROM deliveries WHERE status = 'waiting'", 0).await;
    until(&mut service, hours, 1).await;

    let kinds = |got: &Arc<Mutex<Vec<Received>>>| -> Vec<String> {
        got.lock().expect("free").iter().map(|(_, body)| body["type"].as_str().unwrap_or("-").to_owned()).collect()
    };
    // The first one twice, since its receiver failed; harm is said once, although hour and day both show it.
    assert_eq!(kinds(&got), ["weir.guardrail_harmed", "weir.guardrail_harmed", "weir.decision_changed", "weir.verdict_changed"]);
    let requests = got.lock().expect("free").clone();
    assert_eq!(requests[0].0["webhook-id"], requests[1].0["webhook-id"], "a receiver can tell that it is the same");
    for (headers, body) in &requests {
        assert!(headers["webhook-signature"].starts_with("v1,") && headers["webhook-signature"].len() == 47, "{headers:?}");
        let sent: i64 = headers["webhook-timestamp"].parse().expect("seconds");
        assert!((chrono::Utc::now().timestamp() - sent).abs() < 600);
        assert_eq!(body["data"]["experiment"], "checkout");
    }
    let verdict = &requests[3].1["data"];
    assert_eq!(
        (&verdict["metric"], &verdict["variant"], &verdict["before"], &verdict["now"], &verdict["as_of"]),
        (&json!("buys"), &json!("b"), &json!("inconclusive"), &json!("won"), &json!("2026-03-03T23:59:59.999999Z"))
    );
    let texts: Vec<Value> = chat.lock().expect("free").iter().map(|(_, body)| body.clone()).collect();
    assert_eq!(texts, [json!({"text": verdict["text"]})]);
    // Who is gone is asked once for each.
    assert_eq!(kinds(&gone), ["weir.guardrail_harmed", "weir.decision_changed", "weir.verdict_changed"]);
    until(&mut service, "SELECT count(*) FROM deliveries WHERE status = 'failed' AND attempts = 1", 1).await;
    assert!(service.metric("weir_query_evaluations_total{result=\"recorded\"}").await >= 4.0);
}

/// The winner of day 3 is told when the day is over. That orders which come late make it one on day 2 already is a revision, and no news.
#[tokio::test]
async fn what_is_known_already_is_not_told_again() {
    let mut service = Service::start().await;
    now_is(&mut service, "2026-03-01T00:00:00Z").await;
    add_experiment(&mut service.rows, PROJECT, "checkout", "started_at = '2026-03-01'", &[("control", "1"), ("b", "1")]).await;
    add_days(&mut service, "checkout", &[(30, 31), (30, 33), (10, 99)]).await;
    now_is(&mut service, "2026-03-04T00:30:00Z").await;
    until(&mut service, DAYS, 3).await;
    let told = "SELECT count(*) FROM notices WHERE kind = 'verdict_changed'";
    until(&mut service, told, 1).await;
    // 60 users of b of day 2 who bought that day.
    add_conversions(&mut service.rows, (PROJECT, "checkout", "b"), "buy", (3_040, 60), ("10", "'EUR'")).await;
    for user in 3_040..3_100 {
        Event::new("conversion", "buy", user, 86_400.0 + 3_600.0).store(&mut service.rows).await;
    }
    service
        .run(&format!(
            "UPDATE conversion_attribution SET conversion_time = conversion_time + interval '1 day' WHERE user_id BETWEEN '{}' AND '{}';
             UPDATE conversions SET log_offset = 505; UPDATE checkpoints SET next_offset = 510 WHERE log_partition = 0",
            user(3_040),
            user(3_099)
        ))
        .await;
    now_is(&mut service, "2026-03-05T00:30:00Z").await;
    until(&mut service, "SELECT count(*) FROM evaluations WHERE period = 'day' AND revision = 2", 2).await;
    let verdicts = "SELECT CAST(as_of AS DATE) AS day, verdict FROM results_daily
                    WHERE metric = 'conversion_rate' AND variant = 'b' AND is_newest ORDER BY as_of LIMIT 3";
    let inconclusive_then_won = json!([["2026-03-01", "inconclusive"], ["2026-03-02", "won"], ["2026-03-03", "won"]]);
    assert_eq!(service.rows(verdicts).await, inconclusive_then_won);
    until(&mut service, DAYS, 6).await;
    until(&mut service, told, 1).await;
}

/// Two services: one evaluates, and when it ends the other one does.
#[tokio::test]
async fn another_service_takes_over() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "checkout", "started_at = '2026-03-01'", &[("control", "1"), ("b", "1")]).await;
    add_days(&mut service, "checkout", &[(10, 12), (10, 11)]).await;
    now_is(&mut service, "2026-03-02T00:30:00Z").await;
    until(&mut service, DAYS, 1).await;
    let url = service.database.url.clone();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let config = query::Config { query: address, database_url: url, ..crate::support::config() };
    let second = query::Query::start(config).await.expect("the service starts");
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'weir evaluations'";
    until(&mut service, waiting, 2).await;
    let Service { database, query, address, mut rows } = service;
    query.stop().await;
    let update = format!("UPDATE project_progress SET event_time = '2026-03-03T00:30:00Z' WHERE project_id = '{PROJECT}'");
    crate::support::run(&mut rows, &update).await;
    let mut service = Service { database, query: second, address, rows };
    until(&mut service, DAYS, 2).await;
}

/// A project whose events stopped three days ago, of an experiment that had exposures every day.
#[tokio::test]
async fn silence_is_told_once() {
    let database = migrations::testing::TestDatabase::create().await;
    let mut rows = database.connect().await;
    let silent = "INSERT INTO projects (id, name) VALUES ('00000000-0000-0000-0000-000000000009', 'silent');
         INSERT INTO experiments (project_id, id, name, status, started_at)
         SELECT id, id, name, 'running', now() - interval '9 days' FROM projects;
         INSERT INTO experiments (project_id, id, name, status)
         SELECT id, '00000000-0000-0000-0000-000000000008', 'draft', 'draft' FROM projects;
         INSERT INTO project_progress (project_id, log_id, log_partition, records, event_time)
         SELECT id, id, 0, 1, now() - interval '3 days' FROM projects;
         INSERT INTO daily_rollups (project_id, day, kind, event, experiment_id, is_bot, log_id, log_partition, events, value)
         SELECT id, ((now() - interval '3 days') AT TIME ZONE 'UTC')::date - n, 'impression', 'impression', id, false, id, 0, 1, 0
         FROM projects, generate_series(0, 5) n";
    crate::support::run(&mut rows, silent).await;
    let mut service = Service::start_on(database, query::Limits::default()).await;
    until(&mut service, "SELECT count(*) FROM notices WHERE kind = 'no_data'", 1).await;
    let text: String =
        sqlx::query_scalar("SELECT body ->> 'text' FROM notices").fetch_one(&mut service.rows).await.expect("a notice");
    assert!(text.starts_with("experiment silent: the project has no events since 20"), "{text}");
    assert!(text.ends_with("never more than a day apart"), "{text}");
}

/// Buys are the goal, and what must not rise, too: b wins and harms on day 3. Where harm ends an experiment it is stopped, once; what else it
/// is to tell of is told when it begins to hold.
#[tokio::test]
async fn harm_ends_what_it_is_to_end_and_own_rules_are_told() {
    let mut service = Service::start().await;
    now_is(&mut service, "2026-03-01T00:00:00Z").await;
    let columns = "started_at, conversion_window_days = '2026-03-01', 7";
    for (name, policy) in [
        (
            "stopped",
            r#"{"on_harm": "stop", "decide_by": "risk_aware", "rules": {"big win": "role = 'primary' AND lift_low > 0.5"}}"#,
        ),
        ("told", r#"{"rules": {"any": "users >= 400", "never": "lift > 1000"}}"#),
    ] {
        add_experiment(&mut service.rows, PROJECT, name, columns, &[("control", "1"), ("b", "1")]).await;
        service.run(&format!("UPDATE experiments SET policy = '{}' WHERE name = '{name}'", policy.replace('\'', "''"))).await;
    }
    add_guarded_metrics(&mut service).await;
    add_days(&mut service, "stopped", &[(30, 31), (30, 29), (10, 99)]).await;
    add_users(&mut service.rows, PROJECT, "told", "control", 50_000, 200).await;
    add_users(&mut service.rows, PROJECT, "told", "b", 60_000, 200).await;
    now_is(&mut service, "2026-03-03T00:30:00Z").await;
    until(&mut service, DAYS, 4).await;
    let status = |name: &str| format!("SELECT count(*) FROM experiments WHERE name = '{name}' AND status = 'completed'");
    until(&mut service, &status("stopped"), 0).await;
    now_is(&mut service, "2026-03-04T00:30:00Z").await;
    until(&mut service, DAYS, 6).await;
    until(&mut service, &status("stopped"), 1).await;
    now_is(&mut service, "2026-03-05T00:30:00Z").await;
    until(&mut service, DAYS, 8).await;
    until(&mut service, &status("told"), 0).await;
    let told =
        "SELECT string_agg(body ->> 'text', '; ' ORDER BY number) FROM notices WHERE kind IN ('rule_met', 'experiment_stopped')";
    let told: String = sqlx::query_scalar(told).fetch_one(&mut service.rows).await.expect("texts");
    assert_eq!(
        told,
        "experiment told: any holds: buys of b, errors of b; experiment stopped: big win holds: buys of b; \
         experiment stopped: it is stopped, since a guardrail is harmed; exposures count no longer"
    );
    // Its rows are computed anew by an aggregator, and who did it is on record.
    until(&mut service, "SELECT count(*) FROM experiments_behind WHERE is_recomputed", 1).await;
    until(&mut service, "SELECT count(*) FROM audit WHERE action = 'experiment.stop' AND details ->> 'by' = 'on_harm'", 1).await;
    // By its own rules it would not have been shipped either.
    let answer = service.get("/v1/experiments/stopped/results?as_decided=2026-03-03").await.ok();
    assert_eq!(
        (answer["decision"]["criteria"].as_str(), answer["decision"]["status"].as_str()),
        (Some("risk_aware"), Some("rollback-now"))
    );
    assert_eq!(answer["rules"][0]["met_by"][0]["metric"], "buys");
}
