//! Rows that Postgres refuses in any step of a commit.

use super::*;

/// Refuses what a condition selects, as a rule of the database's owner would.
fn refuse(table: &str, condition: &str, sqlstate: &str) -> String {
    format!(
        "CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
             IF {condition} THEN RAISE EXCEPTION 'not in {table}' USING ERRCODE = '{sqlstate}'; END IF;
             RETURN NEW;
         END $f$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}();"
    )
}

/// A name that cannot be registered, a participation, also at the very end, a daily sum, a name of an event: each is one record's fault, and its neighbours do
/// not suffer.
#[tokio::test]
async fn a_row_that_any_step_refuses_is_set_apart() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let statements = [
        refuse("variants", "NEW.name = 'forbidden'", "P0001"),
        refuse("user_experiment_participation", &format!("NEW.user_id = '{}'", user(3)), "P0001"),
        refuse("daily_rollups", "NEW.event = 'cursed'", "22023"),
        refuse("event_names", "NEW.name = 'unspeakable'", "23000"),
    ];
    case.execute(&statements.concat()).await;
    case.execute(&format!(
        "CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
             IF NEW.user_id = '{}' THEN RAISE EXCEPTION 'not at the end'; END IF;
             RETURN NULL;
         END $f$;
         CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON user_experiment_participation DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION refuse_late()",
        user(5)
    ))
    .await;
    let mut drafts: Vec<Draft> = Vec::new();
    for n in 0..60u8 {
        drafts.push(exposure(&format!("e{n}"), &user(n), &at(1), "checkout", if n == 9 { "forbidden" } else { "b" }));
        let name = match n {
            20 | 21 => "cursed",
            40 => "unspeakable",
            _ => "purchase",
        };
        drafts.push(conversion(&format!("c{n}"), &user(n), &at(2), name, "5"));
    }
    let records: Vec<Record> = drafts.into_iter().map(|draft| case.record(draft)).collect();
    let batch = case.batch(records.clone());
    let stored = case.commit(&batch).await.expect("commits");
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates, stored.dead.len()), (114, 0, 6));
    let letters = "SELECT sqlstate, reason FROM dead_letters WHERE project_id = $project AND code = 'pg_refused' ORDER BY 1, 2";
    assert_eq!(
        case.rows(letters).await,
        [
            "(22023,\"postgres refuses the row: not in daily_rollups\")",
            "(22023,\"postgres refuses the row: not in daily_rollups\")",
            "(23000,\"postgres refuses the row: not in event_names\")",
            "(P0001,\"postgres refuses its names: not in variants\")",
            "(P0001,\"postgres refuses the row: not at the end\")",
            "(P0001,\"postgres refuses the row: not in user_experiment_participation\")",
        ]
    );
    let kept: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT bytes FROM dead_letters").fetch_all(&mut case.connection).await.expect("answers");
    assert!(kept.iter().all(|bytes| records.iter().any(|record| record.bytes() == bytes)), "with the bytes of the log");
    assert_eq!(case.derived().await, case.expected().await);
    let sums = "SELECT sum(events), sum(value) FROM daily_rollups WHERE project_id = $project";
    // 57 impressions, 57 conversions of 5 each.
    assert_eq!(case.rows(sums).await, ["(114,285.000000)"]);
    assert!(matches!(case.commit(&batch).await, Err(CommitError::NotOwner { .. })), "exactly once");
    // The same records once more, as a client's retries: what was stored is passed over, what was refused is refused again.
    let batch = case.batch(records);
    let stored = case.commit(&batch).await.expect("commits");
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates, stored.dead.len()), (0, 114, 6));
}

/// What no single record causes is an error of the commit, and no dead letter.
#[tokio::test]
async fn what_is_no_records_fault_makes_no_dead_letter() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.execute(&refuse("project_progress", "true", "22023")).await;
    let drafts: Vec<Draft> = (0..10).map(|n| conversion(&format!("c{n}"), &user(n), &at(2), "purchase", "5")).collect();
    let records: Vec<Record> = drafts.into_iter().map(|draft| case.record(draft)).collect();
    let batch = case.batch(records);
    let failed = case.commit(&batch).await;
    assert!(matches!(failed, Err(CommitError::Postgres(_))), "{failed:?}");
    let mut observer = database.connect().await;
    let rows: i64 = sqlx::query_scalar("SELECT (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM conversions)")
        .fetch_one(&mut observer)
        .await
        .expect("a number");
    assert_eq!(rows, 0);
}
