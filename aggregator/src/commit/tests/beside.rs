//! Recomputations beside the stream: whatever is stored meanwhile, both tables end as what plain SQL makes of facts and rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use catalogue::version;

use super::*;
use crate::recompute::{catch_up, lock, mark, unlock};

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
