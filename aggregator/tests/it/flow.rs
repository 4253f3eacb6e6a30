//! From the log to the tables, over restarts, replays and halts.

use std::sync::Arc;
use std::time::Duration;

use aggregator::{Aggregator, StartError};
use bytes::Bytes;
use eventlog::memory::MemoryLog;
use eventlog::{Read, ReadError};
use events::rules::RequestContext;
use events::testing::{conversion, exposure, request_context};
use events::{Draft, ProjectId};
use migrations::testing::{TestDatabase, pretend_schema};
use uuid::Uuid;

use crate::pipeline::{Outage, Pipeline, Rewritten};

fn journey() -> Vec<Draft> {
    let mut drafts = Vec::new();
    for number in 0..200 {
        let (user, variant) = (format!("user-{number}"), if number % 2 == 0 { "control" } else { "b" });
        drafts.push(exposure(&format!("i-{number}"), &user, "2026-02-20T10:00:00Z", "checkout", variant));
        if number % 5 == 0 {
            drafts.push(conversion(&format!("c-{number}"), &user, "2026-02-20T11:30:00Z", "purchase", &format!("{number}.5")));
        }
    }
    drafts
}

#[tokio::test]
async fn what_the_log_holds_is_stored_once_over_restarts_and_numbers_of_workers() {
    let mut straight = Pipeline::new().await;
    straight.append(journey()).await;
    let aggregator = straight.start(2).await;
    straight.drained().await;
    aggregator.stop().await;
    let expected = straight.derived().await;
    assert_eq!(straight.scalar::<i64>("SELECT count(*) FROM user_experiment_participation").await, 200);
    assert_eq!(straight.scalar::<i64>("SELECT count(*) FROM conversion_attribution").await, 40);
    let sum = "SELECT sum(conversion_value_attributed)::text FROM conversion_attribution";
    // 0.5 + 5.5 + .. + 195.5
    assert_eq!(straight.scalar::<String>(sum).await, "3920.000000");
    let rolled = "SELECT string_agg(format('%s %s %s', kind, events, value), ', ' ORDER BY kind)
                  FROM (SELECT kind, sum(events) AS events, sum(value) AS value FROM daily_rollups GROUP BY kind) r";
    assert_eq!(straight.scalar::<String>(rolled).await, "conversion 40 3920.000000, impression 200 0.000000");

    let mut restarted = Pipeline::new().await;
    for (number, part) in journey().chunks(50).enumerate() {
        // Every part twice: the second is a duplicate that a client sent.
        restarted.append(part.to_vec()).await;
        restarted.append(part.to_vec()).await;
        let aggregator = restarted.start(1 + number as u32 % 3).await;
        aggregator.stop().await;
    }
    let aggregator = restarted.start(1).await;
    restarted.drained().await;
    aggregator.stop().await;
    assert_eq!(restarted.derived().await, expected);
}

/// A clock that is years behind, and says so by the request's own time, as any public key may send it; and one event of
/// history, as only server keys may.
#[tokio::test]
async fn a_public_key_makes_no_table_partitions() {
    let mut pipeline = Pipeline::new().await;
    let aggregator = pipeline.start(1).await;
    let count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'conversions'::regclass";
    let usual = pipeline.scalar::<i64>(count).await;
    let months: Vec<String> =
        (0..119).map(|back| format!("{:04}-{:02}-10T00:00:00Z", 2025 - back / 12, 12 - back % 12)).collect();
    for (number, month) in months.iter().enumerate() {
        let sent_at = events::Micros::parse(month).ok();
        let event = conversion(&format!("c-{number}"), "alice", month, "purchase", "1");
        pipeline.append_at(&RequestContext { sent_at, ..request_context() }, [event]).await;
    }
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 119);
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions_default").await, 119);
    assert_eq!(pipeline.scalar::<i64>(count).await, usual);

    let history = conversion("h", "bob", "2020-05-10T00:00:00Z", "purchase", "1");
    pipeline.append_at(&RequestContext { backfill: true, ..request_context() }, [history]).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>(count).await, usual + 1);
    // Its month takes over the row that lay in the default.
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions_2020_05").await, 2);
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 120);
    aggregator.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_replayed_through_the_log() {
    let mut pipeline = Pipeline::new().await;
    pipeline.execute("UPDATE projects SET auto_register = false").await;
    pipeline.append(vec![exposure("i", "alice", "2026-02-20T10:00:00Z", "later", "b")]).await;
    let aggregator = pipeline.start(1).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<String>("SELECT code FROM dead_letters").await, "unknown_experiment");
    pipeline
        .execute(
            "UPDATE projects SET auto_register = true; INSERT INTO catalogue_versions SELECT id, 1 FROM projects;
             UPDATE dead_letters SET status = 'replay'",
        )
        .await;
    pipeline.until("SELECT count(*) = 1 FROM user_experiment_participation", Duration::from_secs(20)).await;
    pipeline.until("SELECT status = 'replayed' FROM dead_letters", Duration::from_secs(20)).await;
    aggregator.stop().await;
}

#[tokio::test]
async fn another_log_is_refused_until_it_is_adopted() {
    let mut pipeline = Pipeline::new().await;
    pipeline.start(1).await.stop().await;
    pipeline.log = MemoryLog::new(8);
    let read = std::sync::Arc::new(pipeline.log.clone());
    let refused = aggregator::Aggregator::start(pipeline.config(1), read.clone(), read.clone()).await;
    assert!(matches!(refused, Err(StartError::OtherLog { .. })));
    let config = aggregator::Config { adopt_log: true, ..pipeline.config(1) };
    aggregator::Aggregator::start(config, read.clone(), read).await.expect("adopted").stop().await;
}

/// The log lost what the checkpoint has seen: nothing is read, the page says so by name.
#[tokio::test]
async fn a_checkpoint_above_the_logs_end_halts() {
    let mut pipeline = Pipeline::new().await;
    pipeline.start(1).await.stop().await;
    pipeline.execute("UPDATE checkpoints SET next_offset = 1000, last_crc = 1 WHERE log_partition = 3").await;
    let aggregator = pipeline.start(2).await;
    unready(&aggregator, "log partition 3: offset_above_log_end").await;
    // The other log partitions go on.
    pipeline
        .append((0..50).map(|n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1")))
        .await;
    pipeline.until("SELECT count(*) > 30 FROM conversions", Duration::from_secs(20)).await;
    // Checkpoint and log agree again, as after a restored database: it goes on by itself.
    pipeline.execute("UPDATE checkpoints SET next_offset = 0, last_crc = NULL WHERE log_partition = 3").await;
    pipeline.drained().await;
    ready(&aggregator).await;
    aggregator.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 50);
}

/// Same length, other records: the record before the checkpoint tells.
#[tokio::test]
async fn other_records_in_front_of_the_checkpoint_halt() {
    let mut pipeline = Pipeline::new().await;
    pipeline.append(vec![conversion("c", "alice", "2026-02-20T10:00:00Z", "purchase", "1")]).await;
    let aggregator = pipeline.start(1).await;
    pipeline.drained().await;
    aggregator.stop().await;
    pipeline.execute("UPDATE checkpoints SET last_crc = last_crc # 1 WHERE next_offset > 0").await;
    let aggregator = pipeline.start(1).await;
    unready(&aggregator, "log_differs").await;
    pipeline.append(vec![conversion("d", "alice", "2026-02-20T10:00:00Z", "purchase", "1")]).await;
    pipeline.execute("UPDATE checkpoints SET last_crc = last_crc # 1 WHERE next_offset > 0").await;
    pipeline.until("SELECT count(*) = 2 FROM conversions", Duration::from_secs(60)).await;
    ready(&aggregator).await;
    aggregator.stop().await;
}

/// The brokers' address leads to another log for a while, and back. A record that lies there at the same place is never read.
#[tokio::test]
async fn another_log_in_its_place_halts_until_it_is_back() {
    let mut pipeline = Pipeline::new().await;
    let buy = |n: u32| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1");
    pipeline.append((0..50).map(buy)).await;
    let log = Outage::of(&pipeline.log);
    let aggregator = pipeline.start_on(Arc::new(log.clone()), 2).await;
    pipeline.drained().await;
    log.fail(Some(|| ReadError::OtherLog("the topic is another one of the same name".to_owned())));
    pipeline.append((50..100).map(buy)).await;
    unready(&aggregator, "log_differs").await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 50);
    log.fail(None);
    pipeline.drained().await;
    ready(&aggregator).await;
    aggregator.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 100);
}

/// A version of records that this build does not know.
const NEWER: u32 = events::wire::VERSION + 1;

/// After a rollback of the binary: what a newer version wrote is not guessed at, though it may look like an event of this one.
#[tokio::test]
async fn records_of_a_newer_version_halt_and_are_stored_after_the_upgrade() {
    let mut pipeline = Pipeline::new().await;
    let partition = one_partition(&pipeline, 10).await;
    let newer = |_, offset, bytes: Bytes| {
        let text = String::from_utf8(bytes.to_vec()).expect("JSON is UTF-8");
        if offset < 4 { bytes } else { Bytes::from(text.replacen("{\"v\":1,", &format!("{{\"v\":{NEWER},"), 1)) }
    };
    let rewritten = Rewritten { log: pipeline.log.clone(), is_exclusive: true, rewrite: newer };
    let aggregator = pipeline.start_on(Arc::new(rewritten.clone()), 2).await;
    let found = unready(&aggregator, "log_version_unknown").await;
    assert!(
        found.contains(&format!("log partition {partition}:")) && found.contains(&format!("offset 4 has version {NEWER}")),
        "{found}"
    );
    pipeline.until("SELECT max(next_offset) = 4 FROM checkpoints", Duration::from_secs(20)).await;
    pipeline.until("SELECT count(*) = 4 FROM conversions", Duration::from_secs(20)).await;
    aggregator.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM dead_letters").await, 0, "nothing is skipped");

    let upgraded = Rewritten { rewrite: |_, _, bytes| bytes, ..rewritten };
    let aggregator = pipeline.start_on(Arc::new(upgraded), 2).await;
    pipeline.until("SELECT count(*) = 10 FROM conversions", Duration::from_secs(20)).await;
    aggregator.stop().await;
}

/// A wrong topic, a bad deploy: what is no event becomes a dead letter a hundred times here, and then waits for an operator.
#[tokio::test]
async fn a_stream_of_garbage_halts_until_an_operator_says_go_on() {
    let mut pipeline = Pipeline::new().await;
    let partition = one_partition(&pipeline, 500).await;
    let garbage = Rewritten {
        log: pipeline.log.clone(),
        is_exclusive: true,
        rewrite: |_, _, _| Bytes::from_static(b"\x00\x00\x00\x2a avro"),
    };
    let config = |max| aggregator::Config { dead_letters_in_row_max: max, ..pipeline.config(1) };
    let (strict, generous) = (config(100), config(1_000));
    let start = |config| Aggregator::start(config, Arc::new(garbage.clone()), Arc::new(garbage.log.clone()));
    let letters = "SELECT count(*) FROM dead_letters";
    for round in 0..2 {
        let aggregator = start(strict.clone()).await.expect("starts");
        let found = unready(&aggregator, "too_many_dead_letters").await;
        assert!(found.contains(&format!("log partition {partition}:")) && found.contains("undecodable"), "{found}");
        assert_eq!(pipeline.scalar::<i64>(letters).await, 100, "round {round}: a restart does not say go on");
        aggregator.stop().await;
    }
    let aggregator = start(strict).await.expect("starts");
    unready(&aggregator, "too_many_dead_letters").await;
    pipeline.execute("UPDATE dead_letters SET status = 'discarded'").await;
    pipeline.until("SELECT count(*) = 200 FROM dead_letters", Duration::from_secs(20)).await;
    unready(&aggregator, "too_many_dead_letters").await;
    aggregator.stop().await;
    let aggregator = start(generous).await.expect("starts");
    pipeline.until("SELECT count(*) = 500 FROM dead_letters", Duration::from_secs(20)).await;
    assert_eq!(pipeline.scalar::<i64>("SELECT max(next_offset) FROM checkpoints").await, 500);
    aggregator.stop().await;
}

/// A second process joins and takes the half with the halted log partition: it halts there, and no longer here.
#[tokio::test]
async fn a_halt_moves_with_the_lease() {
    let pipeline = Pipeline::new().await;
    let users: Vec<_> =
        (0..50).map(|n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1")).collect();
    pipeline.append(users).await;
    let newer = Rewritten {
        log: pipeline.log.clone(),
        is_exclusive: false,
        rewrite: |partition, _, bytes| if partition == 7 { Bytes::from(format!("{{\"v\":{NEWER}}}")) } else { bytes },
    };
    let first = pipeline.start_on(Arc::new(newer.clone()), 2).await;
    unready(&first, "log partition 7: log_version_unknown").await;
    let second = pipeline.start_on(Arc::new(newer), 2).await;
    unready(&second, "log partition 7: log_version_unknown").await;
    let gauge = "weir_aggregator_halted{log_partition=\"7\"}";
    let mut metrics = String::new();
    for _ in 0..400 {
        metrics = get(&format!("http://{}/metrics", first.address())).await;
        if metrics.contains(&format!("{gauge} 0")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(metrics.contains(&format!("{gauge} 0")), "{metrics}");
    assert!(get(&format!("http://{}/metrics", second.address())).await.contains(&format!("{gauge} 1")));
    first.stop().await;
    second.stop().await;
}

/// Appends conversions of one user, and returns their log partition.
async fn one_partition(pipeline: &Pipeline, events: usize) -> u32 {
    pipeline.append((0..events).map(|n| conversion(&format!("c-{n}"), "alice", "2026-02-20T10:00:00Z", "purchase", "1"))).await;
    for partition in 0..8 {
        if pipeline.log.offsets(partition).await.expect("memory answers").end > 0 {
            return partition;
        }
    }
    unreachable!("the records lie somewhere")
}

/// Waits until `/readyz` says that the aggregator is ready.
pub(crate) async fn ready(aggregator: &Aggregator) {
    let mut found = String::new();
    for _ in 0..400 {
        found = get(&format!("http://{}/readyz", aggregator.address())).await;
        if found.starts_with("HTTP/1.1 200") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not ready: {found}");
}

/// Waits until `/readyz` says why the aggregator is not ready.
pub(crate) async fn unready(aggregator: &Aggregator, expected: &str) -> String {
    let mut found = String::new();
    for _ in 0..400 {
        found = get(&format!("http://{}/readyz", aggregator.address())).await;
        if found.contains(expected) {
            assert!(found.starts_with("HTTP/1.1 503"), "{found}");
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{expected} is not told: {found}");
}

/// A newer version of Weir made an experiment whose method this one does not know. It credits nobody by a guess: participation and
/// attribution of that experiment wait, which the page says, and all else goes on. After the upgrade they are what they had been.
#[tokio::test]
async fn an_experiment_of_a_newer_version_waits_alone() {
    let mut pipeline = Pipeline::new().await;
    pipeline.append(journey()).await;
    let aggregator = pipeline.start(1).await;
    pipeline.drained().await;
    aggregator.stop().await;
    pipeline
        .execute(
            "ALTER TABLE experiments DROP CONSTRAINT experiments_attribution_method_check;
             UPDATE experiments SET attribution_method = 'weighted';
             UPDATE catalogue_versions SET version = version + 1",
        )
        .await;
    let before = pipeline.derived().await;
    let more = |experiment: &str, users: std::ops::Range<u32>| -> Vec<Draft> {
        let of_user = |n| {
            let (user, time) = (format!("user-{n}"), "2026-02-20T12:00:00Z");
            let seen = exposure(&format!("{experiment}-{n}"), &user, time, experiment, "b");
            [seen, conversion(&format!("{experiment}-{n}"), &user, time, "purchase", "1")]
        };
        users.flat_map(of_user).collect()
    };
    pipeline.append(more("checkout", 150..250)).await;
    pipeline.append(more("banner", 300..350)).await;

    let aggregator = pipeline.start(2).await;
    pipeline.drained().await;
    let expected = r#"table experiments, row "checkout": attribution_method is "weighted""#;
    let page = unready(&aggregator, "unsupported_catalogue").await;
    assert!(page.contains(expected), "{page}");
    let numbers = get(&format!("http://{}/metrics", aggregator.address())).await;
    assert!(numbers.contains("weir_aggregator_experiments_behind 1"), "{numbers}");
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM impressions").await, 350, "every fact is stored");
    let of = |name: &str| {
        format!(
            "SELECT count(*) FROM user_experiment_participation WHERE experiment_id = (SELECT id FROM experiments WHERE name = '{name}')"
        )
    };
    assert_eq!(pipeline.scalar::<i64>(&of("banner")).await, 50, "the neighbour goes on");
    assert_eq!(pipeline.scalar::<i64>(&of("checkout")).await, 200);
    pipeline
        .execute(
            "DELETE FROM user_experiment_participation p USING experiments e WHERE e.id = p.experiment_id AND e.name = 'banner'",
        )
        .await;
    pipeline
        .execute("DELETE FROM conversion_attribution a USING experiments e WHERE e.id = a.experiment_id AND e.name = 'banner'")
        .await;
    assert_eq!(pipeline.derived().await, before, "nothing is guessed");
    pipeline.execute("INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) SELECT project_id, id, false FROM experiments WHERE name = 'banner'").await;
    pipeline.until("SELECT count(*) = 1 FROM experiments_behind", Duration::from_secs(20)).await;

    // The upgrade, while this aggregator runs: it reads the method by then.
    pipeline
        .execute(
            "UPDATE experiments SET attribution_method = 'first_exposure';
             UPDATE catalogue_versions SET version = version + 1",
        )
        .await;
    pipeline.until("SELECT count(*) = 0 FROM experiments_behind", Duration::from_secs(20)).await;
    for _ in 0..200 {
        if get(&format!("http://{}/readyz", aggregator.address())).await.starts_with("HTTP/1.1 200") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(get(&format!("http://{}/readyz", aggregator.address())).await.starts_with("HTTP/1.1 200"));
    aggregator.stop().await;
    let found = pipeline.derived().await;

    let mut straight = Pipeline::new().await;
    straight.append(journey()).await;
    straight.append(more("checkout", 150..250)).await;
    straight.append(more("banner", 300..350)).await;
    let aggregator = straight.start(1).await;
    straight.drained().await;
    aggregator.stop().await;
    assert_eq!(found, straight.derived().await);
}

/// One log partition whose commits fail, again and again, before it halts: the others of the same worker do not wait for its tries. A try
/// is counted by a sequence, which no rollback takes back.
#[tokio::test]
async fn a_log_partition_that_fails_does_not_hold_up_its_neighbours() {
    let mut pipeline = Pipeline::new().await;
    pipeline
        .execute(
            "CREATE SEQUENCE tries;
             CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
                 IF NEW.log_partition = 3 THEN
                     PERFORM nextval('tries');
                     RAISE EXCEPTION 'a rule that nobody meets' USING ERRCODE = '42501';
                 END IF;
                 RETURN NEW;
             END $f$;
             CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON project_progress FOR EACH ROW EXECUTE FUNCTION broken()",
        )
        .await;
    let users: Vec<String> = (0..200).map(|n| format!("u-{n}")).collect();
    let buy = |id: &str, user: &str| conversion(id, user, "2026-02-20T10:00:00Z", "purchase", "1");
    let end = async |log: &MemoryLog| log.offsets(3).await.expect("memory answers").end;
    // Who lies in the log partition that fails, and who does not.
    let (mut failing, mut others) = (0, Vec::new());
    for user in &users {
        let before = end(&pipeline.log).await;
        pipeline.append([buy("c", user)]).await;
        let lies_there = end(&pipeline.log).await > before;
        failing += i64::from(lies_there);
        others.extend((!lies_there).then_some(user));
    }
    assert!(failing > 0);
    let aggregator = pipeline.start(1).await;
    let mut stored = 200 - failing;
    pipeline.until(&format!("SELECT count(*) = {stored} FROM conversions"), Duration::from_secs(60)).await;
    let tries = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tries";
    let before = pipeline.scalar::<i64>(tries).await;
    const WAVES: i64 = 100;
    for (wave, user) in (0..WAVES).zip(others.iter().cycle()) {
        pipeline.append([buy(&format!("wave-{wave}"), user)]).await;
        stored += 1;
        pipeline.until(&format!("SELECT count(*) = {stored} FROM conversions"), Duration::from_secs(60)).await;
    }
    let meanwhile = pipeline.scalar::<i64>(tries).await - before;
    assert!(meanwhile < WAVES / 2, "{meanwhile} tries of the one that fails came before its neighbours' records");
    aggregator.stop().await;
}

/// An error that is no record's and does not pass by itself: the log partition that it is in halts by name, the others go on, and after
/// the cause is gone it goes on by itself.
#[tokio::test]
async fn what_no_commit_can_store_halts_by_name() {
    let mut pipeline = Pipeline::new().await;
    pipeline
        .execute(
            "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
                 IF NEW.log_partition = 3 THEN RAISE EXCEPTION 'a rule that nobody meets' USING ERRCODE = '42501'; END IF;
                 RETURN NEW;
             END $f$;
             CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON project_progress FOR EACH ROW EXECUTE FUNCTION broken()",
        )
        .await;
    pipeline
        .append((0..80).map(|n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1")))
        .await;
    let mut in_broken = 0;
    for partition in 0..8 {
        let end = pipeline.log.offsets(partition).await.expect("memory answers").end as i64;
        in_broken += if partition == 3 { end } else { 0 };
    }
    let config = aggregator::Config { commit_tries_max: 4, ..pipeline.config(1) };
    let (read, append) = (Arc::new(pipeline.log.clone()), Arc::new(pipeline.log.clone()));
    let aggregator = Aggregator::start(config, read, append).await.expect("starts");
    let page = unready(&aggregator, "commit_refused").await;
    assert!(page.contains("log partition 3:") && page.contains("4 times") && page.contains("a rule that nobody meets"), "{page}");
    pipeline.until(&format!("SELECT count(*) = {} FROM conversions", 80 - in_broken), Duration::from_secs(20)).await;
    pipeline
        .append((80..120).map(|n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1")))
        .await;
    pipeline.until("SELECT count(*) > 80 FROM conversions", Duration::from_secs(20)).await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM dead_letters").await, 0, "nothing is skipped");
    unready(&aggregator, "commit_refused").await;
    pipeline.execute("DROP TRIGGER broken ON project_progress").await;
    pipeline.drained().await;
    ready(&aggregator).await;
    let numbers = get(&format!("http://{}/metrics", aggregator.address())).await;
    assert!(numbers.contains("weir_aggregator_halted{log_partition=\"3\"} 0"), "{numbers}");
    aggregator.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 120);
}

/// Somebody sends a shop's order under its number first, with another amount: the shop's own is kept where an operator finds it. A replay
/// conflicts again, and there is still one open letter; so there is after a client's retries.
#[tokio::test]
async fn a_conflict_is_kept_and_does_not_multiply() {
    let mut pipeline = Pipeline::new().await;
    let order = |value: &str| conversion("order-1", "alice", "2026-02-20T10:00:00Z", "purchase", value);
    pipeline.append([order("1"), order("99.5")]).await;
    let aggregator = pipeline.start(1).await;
    pipeline.drained().await;
    let open = "SELECT string_agg(code || ' ' || log_offset, ', ' ORDER BY log_offset) FROM dead_letters WHERE status = 'open'";
    assert_eq!(pipeline.scalar::<String>(open).await, "id_conflict 1");
    pipeline.append([order("99.5"), order("1"), order("99.5")]).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<String>(open).await, "id_conflict 1", "retries of both");
    pipeline.execute("UPDATE dead_letters SET status = 'replay'").await;
    pipeline.until("SELECT count(*) = 1 FROM dead_letters WHERE status = 'replayed'", Duration::from_secs(20)).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<String>(open).await, "id_conflict 5");
    // The aggregator that appended it died before it could note that: it is appended once more.
    pipeline.append([order("99.5")]).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<String>(open).await, "id_conflict 5");
    let amounts = "SELECT string_agg(conversion_value::text, ' ') FROM conversions";
    assert_eq!(pipeline.scalar::<String>(amounts).await, "1.000000");
    let page = get(&format!("http://{}/metrics", aggregator.address())).await;
    assert!(page.contains("weir_aggregator_dead_letters_total{code=\"id_conflict\"} 2"), "{page}");
    aggregator.stop().await;
}

/// A schema that moves on under a running aggregator: it stores nothing of what it does not know, says what it found, and gives its leases
/// to whoever was upgraded.
#[tokio::test]
async fn beside_a_newer_schema_nothing_is_stored() {
    let mut pipeline = Pipeline::new().await;
    let aggregator = pipeline.start(2).await;
    pipeline.append(journey().into_iter().take(100)).await;
    pipeline.drained().await;
    pretend_schema(&mut pipeline.connection, aggregator::SCHEMA.newest + 1).await;
    pipeline.append(journey().into_iter().skip(100)).await;
    let page = unready(&aggregator, "schema_unsupported").await;
    let expected =
        format!("the database's schema is at version {}, and this aggregator works with", aggregator::SCHEMA.newest + 1);
    assert!(page.contains(&expected), "{page}");
    pipeline.until("SELECT count(*) = 0 FROM leases WHERE owner IS NOT NULL", Duration::from_secs(20)).await;
    pipeline.until("SELECT count(*) = 0 FROM aggregators", Duration::from_secs(20)).await;
    assert_eq!(pipeline.scalar::<i64>("SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints").await, 100);
    // Back again, as after a restored database: it goes on by itself.
    pipeline.execute("DELETE FROM _sqlx_migrations WHERE description = 'of a newer build'").await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM impressions").await, 200);
    aggregator.stop().await;
}

/// Each schema that the aggregator states takes its rows.
#[tokio::test]
async fn each_supported_schema_works() {
    for version in aggregator::SCHEMA.oldest..=aggregator::SCHEMA.newest {
        let mut pipeline = Pipeline::on(TestDatabase::create_with_schema(version).await).await;
        pipeline.append(journey()).await;
        let aggregator = pipeline.start(2).await;
        pipeline.drained().await;
        aggregator.stop().await;
        assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM user_experiment_participation").await, 200, "{version}");
    }
}

/// Two projects on one log, one of which has a clock that is an hour ahead: what is newest of one says nothing of the other, and no event
/// is newer than its receipt.
#[tokio::test]
async fn each_project_has_its_own_progress() {
    let mut pipeline = Pipeline::new().await;
    let other = ProjectId(Uuid::from_u128(77));
    pipeline.execute("INSERT INTO projects (id, name) VALUES ('00000000-0000-0000-0000-00000000004d', 'other')").await;
    let received_at = events::Micros::parse("2026-03-01T12:00:00Z").expect("a constant");
    let request = |project| RequestContext { project, received_at, sent_at: None, ..request_context() };
    let buy = |n: i32, time: &str| conversion(&format!("c-{n}"), &format!("u-{n}"), time, "purchase", "1");
    let mine = request_context().project;
    pipeline.append_at(&request(mine), (0..20).map(|n| buy(n, "2026-03-01T10:00:00Z"))).await;
    pipeline.append_at(&request(other), (0..70).map(|n| buy(n, "2026-03-01T12:59:00Z"))).await;
    let aggregator = pipeline.start(2).await;
    pipeline.drained().await;
    // A repetition is passed, and makes nothing newer.
    pipeline.append_at(&request(mine), [buy(0, "2026-03-01T10:00:00Z")]).await;
    pipeline.drained().await;
    aggregator.stop().await;
    let progress = |project: ProjectId| {
        format!(
            "SELECT sum(records) || ' ' || to_char(max(event_time) AT TIME ZONE 'UTC', 'HH24:MI') FROM project_progress
             WHERE project_id = '{}'",
            project.0
        )
    };
    assert_eq!(pipeline.scalar::<String>(&progress(mine)).await, "21 10:00");
    assert_eq!(pipeline.scalar::<String>(&progress(other)).await, "70 12:00");
}

#[tokio::test]
async fn the_page_shows_its_own_numbers() {
    let mut pipeline = Pipeline::new().await;
    pipeline.append(journey()).await;
    let aggregator = pipeline.start(1).await;
    pipeline.drained().await;
    let address = aggregator.address();
    let mut page = String::new();
    for _ in 0..100 {
        page = get(&format!("http://{address}/metrics")).await;
        if page.contains("weir_aggregator_read_total 240") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(page.contains("weir_aggregator_stored_total{kind=\"impression\"} 200"), "{page}");
    assert!(page.contains("weir_aggregator_stored_total{kind=\"conversion\"} 40"), "{page}");
    assert!(get(&format!("http://{address}/livez")).await.starts_with("HTTP/1.1 200"));
    assert!(get(&format!("http://{address}/readyz")).await.starts_with("HTTP/1.1 200"));
    assert!(get(&format!("http://{address}/nowhere")).await.starts_with("HTTP/1.1 404"));
    aggregator.stop().await;
}

/// The lag is a question to the log, not to the last commit: it grows while Postgres lets nobody commit.
#[tokio::test]
async fn the_lag_is_shown_while_nothing_can_be_stored() {
    let mut pipeline = Pipeline::new().await;
    pipeline.append(journey()).await;
    let aggregator = pipeline.start(1).await;
    let page = format!("http://{}/metrics", aggregator.address());
    let lag_becomes = async |expected: f64| {
        let mut found = f64::NAN;
        for _ in 0..200 {
            let lags = get(&page).await;
            let lags = lags.lines().filter_map(|line| line.strip_prefix("weir_aggregator_lag_records{"));
            let lags: Vec<f64> = lags.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
            found = if lags.len() == 8 { lags.iter().sum() } else { f64::NAN };
            if found == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the page shows a lag of {found}, not of {expected}");
    };
    pipeline.drained().await;
    lag_becomes(0.0).await;
    pipeline.execute("BEGIN; SELECT FROM checkpoints FOR UPDATE").await;
    pipeline.append(journey().into_iter().take(37)).await;
    lag_becomes(37.0).await;
    pipeline.execute("ROLLBACK").await;
    lag_becomes(0.0).await;
    aggregator.stop().await;
}

/// The whole answer of a GET, as text.
pub(crate) async fn get(url: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (address, path) = url.trim_start_matches("http://").split_once('/').expect("a path");
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let request = format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}
