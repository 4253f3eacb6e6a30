//! Recomputations beside the stream: whatever is stored meanwhile, both tables end as what plain SQL makes of facts and rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use catalogue::behind::{lock, mark, unlock};
use catalogue::version;

use super::*;
use crate::recompute::{catch_up, close_list, next_listed};

/// Refuses every derived row that is written by a transaction which keeps all commits of its project waiting: the catalogue's lock, held alone.
const NOTHING_IS_COMPUTED_UNDER_THE_CATALOGUES_LOCK: &str = "
    CREATE FUNCTION refuse_alone() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
        IF EXISTS (SELECT 1 FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND mode = 'ExclusiveLock'
                   AND (classid::bigint << 32) | objid::bigint
                       = ('x' || left(replace(NEW.project_id::text, '-', ''), 16))::bit(64)::bigint) THEN
            RAISE EXCEPTION 'written under the lock that commits wait for' USING ERRCODE = '42501';
        END IF;
        RETURN NEW;
    END $f$;
    CREATE TRIGGER refuse_alone BEFORE INSERT OR UPDATE ON user_experiment_participation FOR EACH ROW EXECUTE FUNCTION refuse_alone();
    CREATE TRIGGER refuse_alone BEFORE INSERT OR UPDATE ON conversion_attribution FOR EACH ROW EXECUTE FUNCTION refuse_alone()";

/// Changes the rules of an experiment as an operator's change does, and recomputes it.
async fn change(connection: &mut PgConnection, project: Uuid, experiment: Uuid, rules: &str) {
    lock(connection, experiment).await.expect("alone");
    let mut transaction = connection.begin().await.expect("begins");
    version::lock(&mut transaction, project).await.expect("the catalogue");
    let update = format!("UPDATE experiments SET {rules} WHERE project_id = $1 AND id = $2");
    sqlx::query(sqlx::AssertSqlSafe(update)).bind(project).bind(experiment).execute(&mut *transaction).await.expect("changes");
    mark(&mut transaction, project, experiment).await.expect("marks");
    version::raise(&mut transaction, project).await.expect("raises");
    transaction.commit().await.expect("commits");
    catch_up(connection, project, experiment).await.expect("catches up");
    unlock(connection, experiment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn experiments_change_while_their_events_are_stored() {
    const RULES: [&str; 4] = [
        "conversion_window_days = 1, attribution_method = 'last_exposure'",
        "started_at = '2026-02-11T00:00:00Z', ended_at = '2026-02-13T08:00:00Z'",
        "conversion_window_days = 3, attribution_method = 'first_exposure'",
        "started_at = NULL, ended_at = NULL, status = 'paused'",
    ];
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.execute(NOTHING_IS_COMPUTED_UNDER_THE_CATALOGUES_LOCK).await;
    case.store(vec![exposure("seed", &user(250), &at(3), "checkout", "control")]).await;
    case.store(vec![exposure("seed-2", &user(250), &at(3), "banner", "control")]).await;
    let experiments: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM experiments WHERE project_id = $1 ORDER BY name")
        .bind(case.project)
        .fetch_all(&mut case.connection)
        .await
        .expect("answers");
    // On a busy machine it may take many changes until a commit meets one.
    let has_met = Arc::new(AtomicBool::new(false));
    let changes: Vec<_> = experiments
        .into_iter()
        .map(|experiment| {
            let (url, project, has_met) = (case.url.clone(), case.project, Arc::clone(&has_met));
            tokio::spawn(async move {
                let mut connection = database::connect(&url, "operator").await.expect("connects");
                for round in 0..2_000 {
                    change(&mut connection, project, experiment, RULES[round % RULES.len()]).await;
                    if round > 10 && has_met.load(Ordering::Relaxed) {
                        break;
                    }
                }
            })
        })
        .collect();
    let mut random = Shuffle(7);
    let mut number = 0;
    let mut listed = 0;
    while changes.iter().any(|changes| !changes.is_finished()) || number < 600 {
        let drafts = (0..20).map(|_| {
            number += 1;
            let (id, who, when) = (number.to_string(), user(random.next() as u8 % 40), at(random.next() as u8 % 30));
            let experiment = if random.next().is_multiple_of(2) { "checkout" } else { "banner" };
            match random.next() % 3 {
                0 => conversion(&id, &who, &when, "purchase", "5"),
                1 => exposure(&id, &who, &when, experiment, "b"),
                _ => exposure(&id, &who, &when, experiment, "control"),
            }
        });
        let drafts: Vec<Draft> = drafts.collect();
        case.store(drafts).await;
        listed += sqlx::query_scalar::<_, i64>("SELECT count(*) FROM users_behind")
            .fetch_one(&mut case.connection)
            .await
            .expect("a number");
        has_met.store(listed > 0, Ordering::Relaxed);
    }
    for task in changes {
        task.await.expect("no panic");
    }
    assert!(listed > 0, "no commit met a recomputation, so nothing was tested");
    assert_eq!(case.rows("SELECT count(*) FROM experiments_behind").await, ["(0)"]);
    assert_eq!(case.rows("SELECT count(*) FROM users_behind").await, ["(0)"]);
    assert_eq!(case.derived().await, case.expected().await);
    // And again after a few more events: the commits follow the last rules.
    case.store(vec![
        exposure("late", &user(77), &at(20), "checkout", "b"),
        conversion("late", &user(77), &at(21), "purchase", "5"),
    ])
    .await;
    assert_eq!(case.derived().await, case.expected().await);
}

/// Marks the only experiment of a project as an operator's change does, and returns it.
async fn mark_all(case: &mut Case) -> Uuid {
    let experiment: Uuid = sqlx::query_scalar("SELECT id FROM experiments WHERE project_id = $1")
        .bind(case.project)
        .fetch_one(&mut case.connection)
        .await
        .expect("one experiment");
    let mut transaction = case.connection.begin().await.expect("begins");
    version::lock(&mut transaction, case.project).await.expect("the catalogue");
    mark(&mut transaction, case.project, experiment).await.expect("marks");
    version::raise(&mut transaction, case.project).await.expect("raises");
    transaction.commit().await.expect("commits");
    experiment
}

/// Once the list is closed commits follow the facts of users that are not on it, also while a recomputation computes others; those of listed
/// users wait for it, and leave them to it.
#[tokio::test]
async fn a_closed_list_only_shrinks() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let see = |id: &str, who: u8, step: u8| exposure(id, &user(who), &at(step), "checkout", "b");
    let buy = |id: &str, who: u8| conversion(id, &user(who), &at(20), "purchase", "5");
    case.store(vec![see("1", 1, 3), see("2", 2, 3)]).await;
    let experiment = mark_all(&mut case).await;
    case.store(vec![see("3", 1, 2)]).await;
    let listed = "SELECT count(*) FROM users_behind";
    assert_eq!(case.rows(listed).await, ["(1)"], "the list is open");
    let before = case.derived().await;
    close_list(&mut case.connection, case.project, experiment).await.expect("closes");

    // A recomputation is at the first user.
    let mut recomputation = database.connect().await;
    let mut transaction = recomputation.begin().await.expect("begins");
    sqlx::raw_sql("SELECT 1 FROM users_behind FOR UPDATE").execute(&mut *transaction).await.expect("locks");
    case.execute("SET lock_timeout = '1s'").await;
    case.store(vec![buy("4", 2), see("5", 3, 4)]).await;
    let batch = {
        let record = case.record(buy("6", 1));
        case.batch([record])
    };
    let waits = case.commit(&batch).await.expect_err("it waits for the recomputation");
    assert!(matches!(&waits, CommitError::Postgres(error) if error.to_string().contains("lock timeout")), "{waits}");
    case.execute("ROLLBACK").await;
    transaction.rollback().await.expect("ends");
    case.commit(&batch).await.expect("commits");

    assert_eq!(case.rows(listed).await, ["(1)"], "nobody is added");
    let (found, expected) = (case.derived().await, case.expected().await);
    let (of_listed, of_others): (Vec<_>, Vec<_>) = expected.0.iter().partition(|row| !found.0.contains(row));
    assert_eq!((of_listed.len(), of_others.len()), (1, 2), "only the listed user's rows wait: {found:?}, {expected:?}");
    assert!(before.0.iter().any(|row| found.0.contains(row)), "and stay as they were");
    catch_up(&mut case.connection, case.project, experiment).await.expect("catches up");
    assert_eq!(case.derived().await, case.expected().await);
    assert_eq!(case.rows("SELECT count(*) FROM experiments_behind").await, ["(0)"]);
}

/// What a commit waits for is bounded by rows, unless they are one user's, and by users.
#[tokio::test]
async fn so_many_rows_of_listed_users_are_computed_at_once() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.store(vec![exposure("1", &user(1), &at(3), "checkout", "b")]).await;
    let experiment = mark_all(&mut case).await;
    // By user: impressions, conversions. Then 600 users of one impression each.
    let rows = [(1, 2_000, 500), (2, 1_500, 1_000), (3, 1, 0), (4, 6_000, 0), (5, 0, 6_000), (6, 1, 1)];
    for (user, impressions, conversions) in rows {
        case.execute(&format!(
            "INSERT INTO users_behind VALUES ($project, '{experiment}', '{id}');
             INSERT INTO impressions (project_id, user_id, claimed_at, id, event_time, received_at, log_offset, log_id, log_partition,
                                      untimed, is_bot)
             SELECT $project, '{id}', '2026-02-10', gen_random_uuid(), '2026-02-10', '2026-02-10', n, gen_random_uuid(), 0, false, false
             FROM generate_series(1, {impressions}) n;
             INSERT INTO conversions (project_id, user_id, claimed_at, id, event_time, received_at, log_offset, log_id, log_partition,
                                      untimed, is_bot, conversion_type)
             SELECT $project, '{id}', '2026-02-10', gen_random_uuid(), '2026-02-10', '2026-02-10', n, gen_random_uuid(), 0, false, false,
                    'purchase'
             FROM generate_series(1, {conversions}) n",
            id = Uuid::from_u128(user),
        ))
        .await;
    }
    case.execute(&format!(
        "INSERT INTO users_behind SELECT $project, '{experiment}', ('{}' || lpad(n::text, 12, '0'))::uuid FROM generate_series(1, 600) n",
        "11111111-1111-1111-1111-"
    ))
    .await;
    let mut rounds = Vec::new();
    loop {
        let next = next_listed(&mut case.connection, case.project, experiment).await.expect("reads");
        if next.is_empty() {
            break;
        }
        let taken = "DELETE FROM users_behind WHERE user_id = ANY ($1)";
        sqlx::query(taken).bind(&next).execute(&mut case.connection).await.expect("takes");
        rounds.push(next);
    }
    let sizes: Vec<usize> = rounds.iter().map(Vec::len).collect();
    // 2,500 + 2,500 rows fit, one more does not; what is one user's is not divided.
    assert_eq!(sizes, [2, 1, 1, 1, 500, 101], "{sizes:?}");
}
