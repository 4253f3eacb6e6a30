//! Users with too many rows: left out by a rule of raw rows, whatever the order, and cheap.

use super::*;
use crate::commit::history::Histories;
use crate::commit::participation::Followed;

impl Case {
    pub(super) async fn limit_rows(&mut self, rows_max: i64) {
        sqlx::query("UPDATE user_rows_limit SET rows_max = $1")
            .bind(rows_max)
            .execute(&mut self.connection)
            .await
            .expect("executes");
    }

    /// Who is marked, and in which experiments.
    pub(super) async fn over_active(&mut self) -> Vec<String> {
        self.rows("SELECT user_id, experiments FROM over_active_users WHERE project_id = $project ORDER BY 1").await
    }

    pub(super) async fn expected_over_active(&mut self) -> Vec<String> {
        self.rows(&with_eligible("SELECT user_id, coalesce(experiments, '{}') FROM over_active ORDER BY 1")).await
    }

    async fn catch_up(&mut self) {
        let left = recompute::catch_up_all(&mut self.connection).await.expect("recomputes");
        assert_eq!((left.0, left.1.len()), (0, 0));
    }

    /// All that follows from the raw rows.
    async fn check(&mut self, over_active: usize) {
        assert_eq!(self.derived().await, self.expected().await);
        let marked = self.over_active().await;
        assert_eq!(marked, self.expected_over_active().await);
        assert_eq!(marked.len(), over_active, "{marked:?}");
    }
}

fn see(id: &str, who: u8, experiment: &str) -> Draft {
    exposure(id, &user(who), &at(1), experiment, "b")
}

fn buy(id: &str, who: u8) -> Draft {
    conversion(id, &user(who), &at(2), "purchase", "5")
}

#[tokio::test]
async fn who_passes_the_limit_is_left_out_of_all_experiments() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.limit_rows(5).await;
    case.store(vec![see("1", 1, "checkout"), see("2", 1, "banner"), see("3", 1, "banner"), buy("4", 1), see("5", 2, "banner")])
        .await;
    let stored = case.store(vec![buy("6", 1), buy("7", 2)]).await;
    assert_eq!((stored.followed.over_active, stored.followed.unattributed), (0, 0), "five are not too many");
    case.check(0).await;
    assert_eq!(case.derived().await.0.len(), 3);
    // What does not count towards it: a bot's impression, one outside of experiments.
    case.store(vec![
        Draft { is_bot: true, ..see("8", 1, "checkout") },
        Draft { experiment: None, variant: None, ..see("9", 1, "checkout") },
    ])
    .await;
    case.check(0).await;
    let stored = case.store(vec![buy("10", 1), buy("11", 2)]).await;
    assert_eq!((stored.followed.over_active, stored.followed.unattributed), (1, 1));
    case.check(1).await;
    assert_eq!(case.derived().await.0.len(), 1, "only the other user's");
    // It goes on, and is seen elsewhere, once in each batch.
    for number in 12..15 {
        let stored =
            case.store(vec![see(&number.to_string(), 1, &format!("other-{number}")), buy(&format!("b{number}"), 1)]).await;
        assert_eq!(stored.followed, Followed { unattributed: 1, over_active: 0 });
        case.check(1).await;
    }
}

/// Where the limit moves under stored rows, users follow when they are touched, and their experiments are computed again.
#[tokio::test]
async fn who_a_new_limit_concerns_follows_when_it_is_touched() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let many = |who: u8| -> Vec<Draft> {
        let number = |kind: &str, n: i32| format!("{kind}-{who}-{n}");
        let seen = (0..8).map(|n| see(&number("see", n), who, if n % 2 == 0 { "checkout" } else { "banner" }));
        seen.chain((0..8).map(|n| buy(&number("buy", n), who))).collect()
    };
    case.store([many(1), many(2), vec![see("few", 3, "checkout")]].concat()).await;
    case.check(0).await;
    case.limit_rows(10).await;
    assert_eq!(case.store(vec![buy("more-1", 1)]).await.followed, Followed { unattributed: 1, over_active: 1 });
    assert_eq!(case.rows("SELECT count(*) FROM experiments_behind").await, ["(2)"]);
    case.store(vec![buy("more-2", 1), see("few-2", 3, "checkout")]).await;
    case.catch_up().await;
    assert_eq!(case.derived().await, case.expected().await, "a recomputation leaves the other one out, too");
    case.store(vec![buy("more-2", 2)]).await;
    case.catch_up().await;
    case.check(2).await;
    assert_eq!(case.derived().await.0.len(), 1);

    // Higher, and still too low; then high enough.
    case.limit_rows(12).await;
    case.store(vec![see("new", 1, "third")]).await;
    case.check(2).await;
    let limits = "SELECT array_agg(rows_max ORDER BY user_id) FROM over_active_users";
    assert_eq!(case.rows(limits).await, ["(\"{12,10}\")"]);
    case.limit_rows(100).await;
    assert_eq!(case.store(vec![buy("more-3", 1)]).await.followed.over_active, 0);
    case.store(vec![buy("more-4", 1)]).await;
    case.catch_up().await;
    case.store(vec![buy("more-5", 2)]).await;
    case.catch_up().await;
    case.check(0).await;
    assert_eq!(case.derived().await.0.len(), 6);
}

/// A recomputation that goes on while the limit is lowered may have passed a user by then: it is told to come again.
#[tokio::test]
async fn who_a_new_limit_concerns_is_listed_for_a_recomputation_that_goes_on() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.store((0..4).map(|n| see(&n.to_string(), 1, "checkout")).collect()).await;
    case.execute(
        "INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) SELECT project_id, id, true FROM experiments;
         UPDATE catalogue_versions SET version = version + 1",
    )
    .await;
    case.limit_rows(3).await;
    case.store(vec![buy("more", 1), see("few", 2, "checkout")]).await;
    assert_eq!(case.rows("SELECT count(*) FROM users_behind").await, ["(2)"]);
    case.catch_up().await;
    case.check(1).await;
}

/// However many rows a user has, so many are read, and none once it is marked.
#[tokio::test]
async fn what_is_read_of_a_user_is_bounded() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    for batch in 0..4 {
        let name = |kind: &str, n: i32| format!("{kind}-{batch}-{n}");
        case.store((0..50).flat_map(|n| [see(&name("see", n), 1, "checkout"), buy(&name("buy", n), 1)]).collect()).await;
    }
    let who: Vec<(Uuid, Uuid)> = sqlx::query_as("SELECT DISTINCT project_id, user_id FROM conversions WHERE project_id = $1")
        .bind(case.project)
        .fetch_all(&mut case.connection)
        .await
        .expect("answers");
    let read = async |case: &mut Case, rows_max: usize| {
        let histories = Histories::of_users(&mut case.connection, who.iter().copied(), rows_max, &|project| {
            case.cache.catalogue.exposures(project)
        })
        .await
        .expect("reads");
        let rows: Vec<usize> = histories.iter().map(|(_, history)| history.rows()).collect();
        rows
    };
    assert_eq!(read(&mut case, 400).await, [400]);
    assert_eq!(read(&mut case, 70).await, [142], "one more than may be, of each kind");
    case.limit_rows(70).await;
    case.store(vec![buy("last", 1)]).await;
    assert_eq!(read(&mut case, 70).await, [0]);
}

/// The migration marks who has had too many rows for longer, and has its rows taken away.
#[tokio::test]
async fn users_of_before_the_rule_are_marked_by_the_migration() {
    let database = TestDatabase::create_with_schema(6).await;
    let mut connection = database.connect().await;
    let rows = |user: u128, table: &str, columns: &str, values: &str, count: i32| {
        format!(
            "INSERT INTO {table} (project_id, user_id, claimed_at, id, event_time, received_at, log_offset, log_id, log_partition, untimed,
                                  is_bot, {columns})
             SELECT p.id, '{}', '2026-02-10', gen_random_uuid(), '2026-02-10', '2026-02-10', n, gen_random_uuid(), 0, false, false, {values}
             FROM generate_series(1, {count}) n, projects p WHERE p.name = 'old';",
            Uuid::from_u128(user)
        )
    };
    let experiment = Uuid::from_u128(9);
    let exposed = format!("'{experiment}', '{}'", Uuid::from_u128(10));
    let statements = [
        "INSERT INTO projects (id, name) VALUES (gen_random_uuid(), 'old');".to_owned(),
        format!(
            "INSERT INTO experiments (project_id, id, name, status) SELECT id, '{experiment}', 'e', 'running' FROM projects WHERE name = 'old';"
        ),
        rows(1, "impressions", "experiment_id, variant_id", &exposed, 6_000),
        rows(1, "conversions", "conversion_type", "'purchase'", 4_001),
        rows(2, "impressions", "experiment_id, variant_id", &exposed, 6_000),
        rows(2, "conversions", "conversion_type", "'purchase'", 4_000),
        rows(3, "impressions", "experiment_id, variant_id", "NULL, NULL", 10_001),
        rows(4, "conversions", "conversion_type", "'purchase'", 10_001),
    ];
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements.concat())).execute(&mut connection).await.expect("executes");
    migrations::MIGRATOR.run(&mut connection).await.expect("migrates");
    let marked: Vec<(Uuid, i64, Vec<Uuid>)> =
        sqlx::query_as("SELECT user_id, rows_max, experiments FROM over_active_users ORDER BY 1")
            .fetch_all(&mut connection)
            .await
            .expect("answers");
    assert_eq!(marked, [(Uuid::from_u128(1), 10_000, vec![experiment]), (Uuid::from_u128(4), 10_000, vec![])]);
    let behind: Vec<(Uuid, bool)> = sqlx::query_as("SELECT experiment_id, is_recomputed FROM experiments_behind")
        .fetch_all(&mut connection)
        .await
        .expect("answers");
    assert_eq!(behind, [(experiment, false)]);
}
