//! Statements that DataFusion, or one of its versions, answered wrongly. See `query/src/engine/corrections.rs`.

use serde_json::{Value, json};

use crate::support::Service;

#[tokio::test]
async fn equal_projections_after_each_other_are_each_computed() {
    let service = Service::with_events_of_days_ago().await;
    for levels in 0..8 {
        let sql = (0..levels)
            .fold("SELECT count(*) AS n FROM events".to_owned(), |inner, _| format!("SELECT n + 1 AS n FROM ({inner})"));
        assert_eq!(service.rows(&sql).await, json!([[3 + levels]]), "{sql}");
        let doubled = (0..levels).fold("SELECT 1 AS n, 2 AS m FROM events LIMIT 1".to_owned(), |inner, _| {
            format!("SELECT n * 2 AS n, m FROM ({inner})")
        });
        assert_eq!(service.rows(&doubled).await, json!([[1 << levels, 2]]), "{doubled}");
    }
    let check = async |sql: &str, expected: Value| assert_eq!(service.rows(sql).await, expected, "{sql}");
    // Merging two of them makes one that equals the third.
    let merged =
        "SELECT n + 1 AS n FROM (SELECT n * 1 AS n FROM (SELECT n * 1 + 1 AS n FROM (SELECT count(*) AS n FROM events)))";
    check(merged, json!([[5]])).await;
    let names = "WITH a AS (SELECT count(*) AS n FROM events), b AS (SELECT n + 1 AS n FROM a), c AS (SELECT n + 1 AS n FROM b)
                 SELECT n + 1 AS n FROM c";
    check(names, json!([[6]])).await;
    let filtered =
        "SELECT n + 1 AS n FROM (SELECT n + 1 AS n FROM (SELECT count(*) AS n FROM events) WHERE true ORDER BY n) WHERE 1 = 1";
    check(filtered, json!([[5]])).await;
    let united = "SELECT sum(n) FROM (SELECT n + 1 AS n FROM (SELECT n + 1 AS n FROM (SELECT 1 AS n UNION ALL SELECT 2 AS n)))";
    check(united, json!([[7]])).await;
    let texts = "SELECT 'a' || t AS t FROM (SELECT 'a' || t AS t FROM (SELECT event AS t FROM events LIMIT 1))";
    check(texts, json!([["aaquiz"]])).await;
    let below = "(SELECT n + 1 AS n, n AS m FROM (SELECT n + 1 AS n FROM (SELECT count(*) AS n FROM events)))";
    check(
        &format!("SELECT n, sum(m) FROM (SELECT * FROM {below} a UNION ALL SELECT * FROM {below} b) GROUP BY n"),
        json!([[5, 8]]),
    )
    .await;
    let nested = "SELECT (SELECT n + 1 AS n FROM (SELECT n + 1 AS n FROM (SELECT count(*) AS n FROM events))) AS n";
    check(nested, json!([[5]])).await;
}

#[tokio::test]
async fn durations_are_compared_with_intervals_by_their_length() {
    let service = Service::with_events_of_days_ago().await;
    let check = async |condition: &str, expected: i64| {
        let rows = service.rows(&format!("SELECT count(*) FROM events WHERE {condition}")).await;
        assert_eq!(rows, json!([[expected]]), "{condition}");
    };
    check("now() - event_time > INTERVAL '9 days'", 1).await;
    check("now() - event_time > INTERVAL '216 hours'", 1).await;
    check("now() - event_time < INTERVAL '9 days'", 2).await;
    check("INTERVAL '9 days' < now() - event_time", 1).await;
    check("now() - event_time BETWEEN INTERVAL '12 hours' AND INTERVAL '3 days'", 2).await;
    check("NOT (now() - event_time >= INTERVAL '1 day 12 hours')", 2).await;
    check("event_time - received_at IN (INTERVAL '1 second')", 0).await;
    let rows =
        service.rows("SELECT now() - event_time > INTERVAL '9 days' AS old, count(*) FROM events GROUP BY 1 ORDER BY 1").await;
    assert_eq!(rows, json!([[false, 2], [true, 1]]));
    let joined = "SELECT count(*) FROM events a JOIN events b ON a.event_time - b.event_time > INTERVAL '2 days'";
    assert_eq!(service.rows(joined).await, json!([[2]]));
    for refused in [
        "now() - event_time > INTERVAL '1 month'",
        "now() - event_time > INTERVAL '1 year'",
        "now() - event_time > INTERVAL '1 day' + INTERVAL '1 day'",
        "INTERVAL '25 hours' > INTERVAL '1 day'",
        "INTERVAL '1 month' BETWEEN INTERVAL '1 day' AND INTERVAL '40 days'",
    ] {
        let error = service.sql(&format!("SELECT count(*) FROM events WHERE {refused}")).await.refused(400, "bad_sql");
        assert!(error.to_string().contains("compare"), "{refused}: {error}");
    }
}

#[tokio::test]
async fn expressions_that_look_equal_are_each_computed() {
    let service = Service::with_events_of_days_ago().await;
    let check = async |sql: &str, expected: Value| assert_eq!(service.rows(sql).await, expected, "{sql}");
    let values = "(VALUES (1, 1), (2, 1), (CAST(NULL AS INT), 1)) t (i, j)";
    let select = |expression: &str| format!("SELECT {expression} FROM {values} ORDER BY i NULLS LAST");
    check(&select("i IN (1) AND i IN (2)"), json!([[false], [false], [null]])).await;
    check(&select("i IN (1, 2) AND j = 1 AND i IN (2, 3)"), json!([[false], [true], [null]])).await;
    check(&select("i NOT IN (1) OR i NOT IN (2)"), json!([[true], [true], [null]])).await;
    check(&select("i IN (1, 2) AND i NOT IN (1, 2)"), json!([[false], [false], [null]])).await;
    check(&select("i IN (j, 7, 8, 9) AND i IN (j * 1, 3, 4, 5)"), json!([[true], [false], [null]])).await;
    check(&select("i IN (1, 2, 3, 4) AND i IN (1, 2, 5, 6) AND i IN (2, 3, 7, 8)"), json!([[false], [true], [null]])).await;
    check(&select("i IN (1) OR i IN (2)"), json!([[true], [true], [null]])).await;
    check(&select("i XOR i"), json!([[0], [0], [null]])).await;
    check(&select("array_has([i, 1], 2)"), json!([[false], [true], [false]])).await;
    let counted = format!("SELECT count(*) FROM {values} WHERE NOT (i IN (1) AND i IN (2))");
    check(&counted, json!([[2]])).await;
    check("SELECT count(*) FROM events WHERE event IN ('quiz', 'a', 'b', 'c') AND event IN (event, 'd', 'e', 'f')", json!([[3]]))
        .await;
}

#[tokio::test]
async fn a_limit_is_applied_after_distinct() {
    let service = Service::with_events_of_days_ago().await;
    let check = async |sql: &str, expected: Value| assert_eq!(service.rows(sql).await, expected, "{sql}");
    let sorted = "(SELECT * FROM (VALUES (0), (1), (2)) v (x) ORDER BY 1 LIMIT 3)";
    let union = format!("(SELECT x FROM {sorted} a UNION ALL SELECT x FROM {sorted} b UNION ALL SELECT x FROM {sorted} c)");
    check(&format!("SELECT DISTINCT x FROM {union} ORDER BY x LIMIT 3"), json!([[0], [1], [2]])).await;
    check(&format!("SELECT x, count(*) FROM {union} GROUP BY x ORDER BY x LIMIT 3"), json!([[0, 3], [1, 3], [2, 3]])).await;
    let names = "WITH s(x) AS (VALUES (0), (1), (2) ORDER BY 1 LIMIT 3),
                 t AS (SELECT * FROM s UNION ALL SELECT * FROM s UNION ALL SELECT * FROM s) SELECT DISTINCT x FROM t ORDER BY x LIMIT 3";
    check(names, json!([[0], [1], [2]])).await;
    let windows =
        "SELECT DISTINCT x FROM (SELECT x, row_number() OVER (ORDER BY x) AS n FROM (VALUES (0), (0), (0), (1), (2)) v (x))
                   ORDER BY x LIMIT 3";
    check(windows, json!([[0], [1], [2]])).await;
}

/// Wrong in other versions, or in settings that are not ours.
#[tokio::test]
async fn what_other_versions_answered_wrongly_is_right() {
    let service = Service::with_events_of_days_ago().await;
    let check = async |sql: &str, expected: Value| assert_eq!(service.rows(sql).await, expected, "{sql}");
    // apache/datafusion 10413: an alias that looks like an expression.
    check("SELECT a + b FROM (SELECT 1 AS a, 2 AS b, 1 AS \"a + b\")", json!([[3]])).await;
    // 19612: an aggregate that was consumed by the frame before.
    let values = "(VALUES (1, 10), (2, 20), (3, 30), (4, 40), (5, 50)) t (n, v)";
    for median in ["median(v)", "percentile_cont(v, 0.5)"] {
        let frame = "OVER (ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)";
        let sql = format!("SELECT CAST({median} {frame} AS INT) FROM {values} ORDER BY n");
        check(&sql, json!([[10], [15], [20], [25], [30]])).await;
    }
    // 22049: NTILE with more rows than fit evenly.
    check(&format!("SELECT ntile(2) OVER (ORDER BY n) FROM {values} ORDER BY n"), json!([[1], [1], [1], [2], [2]])).await;
    // 22441: outer joins made inner ones by IS TRUE.
    let outer = "SELECT a.x, b.y FROM (VALUES (1), (2)) a (x) LEFT JOIN (VALUES (1, true)) b (x, y) ON a.x = b.x WHERE (b.y IS TRUE) OR b.y IS NULL ORDER BY 1";
    check(outer, json!([[1, true], [2, null]])).await;
    // 22726: anchored patterns.
    check("SELECT count(*) FROM events WHERE event ~ '^quiz$' OR event ~ '^(qui|x)$'", json!([[3]])).await;
    // 11275: columns beside a join without equality.
    let cross = "FROM (VALUES (false), (null)) a (v), (VALUES (false), (null), (false)) b (v), (VALUES (false), (true)) c (v) WHERE c.v IS DISTINCT FROM a.v";
    check(&format!("SELECT count(*) FROM (SELECT c.v, b.v AS w {cross})"), json!([[9]])).await;
    check(&format!("SELECT count(*) FROM (SELECT a.v, b.v AS w, c.v AS u {cross})"), json!([[9]])).await;
    // 6099: DISTINCT of a constant.
    check("SELECT DISTINCT 94 AS c FROM events GROUP BY user_id", json!([[94]])).await;
    // 25071: a union of filters over one table.
    let union = "SELECT n FROM (SELECT n + 100 AS n FROM (SELECT count(*) AS n FROM events)) WHERE n > 0
                 UNION SELECT n FROM (SELECT n + 200 AS n FROM (SELECT count(*) AS n FROM events)) WHERE n > 1 ORDER BY 1";
    check(union, json!([[103], [203]])).await;
    // 19219: the greatest of a text by group.
    check("SELECT kind, max(event) AS m FROM events GROUP BY kind ORDER BY m DESC LIMIT 1", json!([["engagement", "quiz"]]))
        .await;
    check("SELECT approx_distinct(event), count(DISTINCT event) FROM events", json!([[1, 1]])).await;
    check("SELECT count(*) FROM (SELECT count(*) FROM events WHERE event = 'none')", json!([[1]])).await;
    let counted = "SELECT e.event FROM events e WHERE (SELECT count(*) FROM participation p WHERE p.user_id = e.user_id) = 0";
    check(&format!("SELECT count(*) FROM ({counted})"), json!([[3]])).await;
}
