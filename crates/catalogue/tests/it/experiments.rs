//! Experiments that a newer version of Weir wrote.

use catalogue::experiments::{self, NewExperiment, NewVariant};
use catalogue::metrics::NewMetric;
use catalogue::names::Standing;
use catalogue::{Catalogue, Change, Project, ReadError, find_project, rules};
use migrations::testing::TestDatabase;
use sqlx::PgConnection;
use uuid::Uuid;

async fn experiment(conn: &mut PgConnection, project: &Project, name: &str) {
    let variant = |name: &str| NewVariant { name: name.into(), ..NewVariant::default() };
    let metric = NewMetric { name: "orders".into(), ..NewMetric::default() };
    let new = NewExperiment {
        name: name.into(),
        variants: vec![variant("control"), variant("b")],
        metrics: vec![metric],
        ..NewExperiment::default()
    };
    let mut change = Change::begin(conn, project).await.expect("begun");
    experiments::insert(&mut change, &new).await.expect("made");
    change.commit("experiment.create", name, &serde_json::json!({})).await.expect("committed");
}

/// A database with the experiments `old` and `new`, where a later schema allows other texts.
async fn database() -> (PgConnection, Project) {
    let mut conn = TestDatabase::create().await.connect().await;
    sqlx::raw_sql(
        "INSERT INTO projects (name) VALUES ('shop'); \
         ALTER TABLE experiments DROP CONSTRAINT experiments_status_check; \
         ALTER TABLE experiments DROP CONSTRAINT experiments_attribution_method_check; \
         ALTER TABLE metrics DROP CONSTRAINT metrics_aggregation_check; \
         ALTER TABLE metrics DROP CONSTRAINT metrics_role_check;",
    )
    .execute(&mut conn)
    .await
    .expect("a later schema");
    let project = find_project(&mut conn, "shop").await.expect("just made");
    for name in ["new", "old"] {
        experiment(&mut conn, &project, name).await;
    }
    (conn, project)
}

#[tokio::test]
async fn what_a_newer_version_wrote_is_named_and_hides_nothing_else() {
    let (mut conn, project) = database().await;
    let of_new = "experiment_id = (SELECT id FROM experiments WHERE name = 'new')";
    let cases = [
        (
            "UPDATE experiments SET attribution_method = 'weighted' WHERE name = 'new'".to_owned(),
            r#"table experiments, row "new": attribution_method is "weighted", which this version of Weir does not know; it knows first_exposure, last_exposure. Upgrade this service"#,
        ),
        (
            "UPDATE experiments SET attribution_method = 'first_exposure', status = 'ramping' WHERE name = 'new'".to_owned(),
            r#"table experiments, row "new": status is "ramping", which this version of Weir does not know; it knows draft, running, paused, completed, archived. Upgrade this service"#,
        ),
        (
            format!(
                "UPDATE experiments SET status = 'draft' WHERE name = 'new'; UPDATE metrics SET aggregation = 'median' WHERE {of_new}"
            ),
            r#"table metrics, row "orders" of experiment "new": aggregation is "median", which this version of Weir does not know; it knows conversion_rate, value_per_user, count_per_user, ratio, quantile, defined. Upgrade this service"#,
        ),
        (
            format!("UPDATE metrics SET aggregation = 'count_per_user', role = 'tertiary' WHERE {of_new}"),
            r#"table metrics, row "orders" of experiment "new": role is "tertiary", which this version of Weir does not know; it knows primary, secondary, guardrail. Upgrade this service"#,
        ),
    ];
    for (statement, expected) in cases {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut conn).await.expect("changed");
        let error = experiments::find(&mut conn, project.id, "new").await.expect_err("not known");
        assert!(matches!(error, ReadError::Unsupported(_)));
        assert_eq!(error.to_string(), expected);
        let shown = experiments::show(&mut conn, &project, "new").await.expect_err("not known");
        assert_eq!((shown.code(), shown.to_string().as_str()), ("unsupported_catalogue", expected));
        let listed = experiments::list_each(&mut conn, project.id).await.expect("a list");
        let texts: Vec<String> =
            listed.into_iter().map(|each| each.map_or_else(|error| error.to_string(), |found| found.name)).collect();
        assert_eq!(texts, [expected, "old"]);
    }
}

#[tokio::test]
async fn rules_that_are_not_known_are_no_rules() {
    let (mut conn, project) = database().await;
    let old = experiments::show(&mut conn, &project, "old").await.expect("is known").id;
    let new = experiments::show(&mut conn, &project, "new").await.expect("known so far").id;
    let standings = async |conn: &mut PgConnection| {
        let mut copy = Catalogue::default();
        copy.load(conn, &[project.id].into()).await.expect("loaded");
        [old, new, Uuid::nil()].map(|experiment| match copy.standing(project.id, experiment) {
            Standing::Current(_) => "current",
            Standing::Recomputed => "recomputed",
            Standing::Closed(_) => "closed",
            Standing::Left => "left",
            Standing::Unsupported => "unsupported",
        })
    };
    assert_eq!(standings(&mut conn).await, ["current", "current", "left"]);
    for (change, column) in [("attribution_method = 'weighted'", "attribution_method"), ("status = 'ramping'", "status")] {
        let statement = format!(
            "UPDATE experiments SET attribution_method = 'first_exposure', status = 'draft'; \
                                 UPDATE experiments SET {change} WHERE name = 'new'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut conn).await.expect("changed");
        assert_eq!(standings(&mut conn).await, ["current", "unsupported", "left"], "the neighbour goes on");
        let expected = format!(r#"table experiments, row "new": {column} is "#);
        let read = rules::read(&mut conn, project.id, new).await.expect_err("not known").to_string();
        assert!(read.starts_with(&expected), "{read}");
    }
    // Once it is marked nothing of it is computed by commits, whoever can read it; when the list of its recomputation is closed, only by
    // those that can.
    for (is_recomputed, expected) in [(false, "left"), (true, "recomputed")] {
        sqlx::query("DELETE FROM experiments_behind").execute(&mut conn).await.expect("removed");
        sqlx::query("INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) SELECT project_id, id, $1 FROM experiments")
            .bind(is_recomputed)
            .execute(&mut conn)
            .await
            .expect("marked");
        assert_eq!(standings(&mut conn).await, [expected, expected, "left"]);
    }
    sqlx::query("UPDATE experiments_behind SET is_list_closed = true").execute(&mut conn).await.expect("closed");
    assert_eq!(standings(&mut conn).await, ["closed", "recomputed", "left"]);
}
