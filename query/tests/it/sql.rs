use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use query::Limits;
use serde_json::{Value, json};

use crate::support::{
    Event, OTHER_PROJECT, OTHER_TOKEN, PROJECT, Service, TOKEN, add_conversions, add_experiment, add_users, experiment_id,
    request, request_bytes, variant_id,
};

#[tokio::test]
async fn events_have_the_columns_of_the_api() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "checkout", "", &[("control", "null")]).await;
    let experiment = experiment_id(PROJECT, "checkout");
    let ids = (format!("'{experiment}'"), format!("'{}'", variant_id(experiment, "control")));
    let more = [
        ("experiment_id", ids.0.as_str()),
        ("variant_id", ids.1.as_str()),
        ("country_code", "'DE'"),
        ("session_identifier", "'s1'"),
    ];
    Event { more: &more, ..Event::new("impression", "", 1, 1.25) }.store(rows).await;
    let more =
        [("conversion_value", "19.90"), ("currency", "'EUR'"), ("metadata", "'{\"a\": {\"b\": 2}}'"), ("external_id", "'u1'")];
    Event { more: &more, ..Event::new("conversion", "purchase", 1, 2.0) }.store(rows).await;
    crate::support::run(
        rows,
        &format!(
            "INSERT INTO campaigns (project_id, id, name) VALUES ('{PROJECT}', '{experiment}', 'spring');
             INSERT INTO campaign_components (project_id, campaign_id, id, name) VALUES ('{PROJECT}', '{experiment}', '{experiment}', 'hero')"
        ),
    )
    .await;
    let campaign = format!("'{experiment}'");
    let more =
        [("campaign_id", campaign.as_str()), ("component_id", campaign.as_str()), ("revenue", "-3"), ("currency", "'USD'")];
    Event { more: &more, ..Event::new("campaign_event", "refund", 2, 3.0) }.store(rows).await;
    Event { is_bot: true, ..Event::new("engagement", "quiz", 2, 4.0) }.store(rows).await;
    Event::new("identity", "identify", 2, 5.0).store(rows).await;

    let reply = service
        .sql(
            "SELECT kind, event, user_id, event_time, experiment, variant, value, currency, campaign, component, country, session_id,
                    external_id, is_bot, json_get_int(properties, 'a', 'b') AS b FROM events ORDER BY event_time",
        )
        .await;
    let answer = reply.ok();
    let (one, two) = ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002");
    assert_eq!(
        answer["rows"],
        json!([
            [
                "impression",
                "impression",
                one,
                "2026-03-01T00:00:01.250Z",
                "checkout",
                "control",
                null,
                null,
                null,
                null,
                "DE",
                "s1",
                null,
                false,
                null
            ],
            [
                "conversion",
                "purchase",
                one,
                "2026-03-01T00:00:02Z",
                null,
                null,
                "19.900000",
                "EUR",
                null,
                null,
                null,
                null,
                "u1",
                false,
                2
            ],
            [
                "campaign_event",
                "refund",
                two,
                "2026-03-01T00:00:03Z",
                null,
                null,
                "-3.000000",
                "USD",
                "spring",
                "hero",
                null,
                null,
                null,
                false,
                null
            ],
            ["engagement", "quiz", two, "2026-03-01T00:00:04Z", null, null, null, null, null, null, null, null, null, true, null],
            [
                "identity",
                "identify",
                two,
                "2026-03-01T00:00:05Z",
                null,
                null,
                null,
                null,
                null,
                null,
                null,
                null,
                null,
                false,
                null
            ],
        ])
    );
    assert_eq!(answer["columns"][6], json!({"name": "value", "type": "decimal(20,6)"}));
    assert_eq!(answer["columns"][3], json!({"name": "event_time", "type": "timestamp"}));
    assert_eq!(answer["truncated"], false);
    assert_eq!(answer["as_of"]["offsets"]["0"], 120);

    let check = async |sql: &str, expected: Value| assert_eq!(service.rows(sql).await, expected, "{sql}");
    check("SELECT count(*) FROM events", json!([[5]])).await;
    check("SELECT count(*) FROM events WHERE event IN ('purchase', 'quiz') AND NOT is_bot", json!([[1]])).await;
    check("SELECT count(*) FROM events WHERE event_time >= '2026-03-01T00:00:03Z'", json!([[3]])).await;
    check("SELECT sum(value) FROM events WHERE currency = 'EUR'", json!([["19.900000"]])).await;
    check(&format!("SELECT count(*) FROM events WHERE user_id = '{one}'"), json!([[2]])).await;
    check("SELECT event FROM events WHERE event LIKE 'qu%'", json!([["quiz"]])).await;
    check("SELECT DISTINCT experiment FROM events WHERE experiment IS NOT NULL", json!([["checkout"]])).await;
    check("SELECT properties FROM events WHERE kind = 'conversion'", json!([["{\"a\": {\"b\": 2}}"]])).await;
    check("SELECT event FROM events ORDER BY event_time DESC LIMIT 1", json!([["identify"]])).await;
    check("SELECT * FROM (SELECT 1 AS a) WHERE a = 2", json!([])).await;
    check("SELECT properties->'a'->>'b' FROM events WHERE kind = 'conversion'", json!([["2"]])).await;
    // Every column of every table can be read.
    for table in [
        "events",
        "participation",
        "conversion_attribution",
        "experiments",
        "variants",
        "metrics",
        "campaigns",
        "campaign_components",
        "evaluations",
        "results_daily",
        "results",
        "health",
    ] {
        let answer = service.sql(&format!("SELECT * FROM {table}")).await.ok();
        assert!(answer["columns"].as_array().is_some_and(|columns| columns.len() > 5), "{table}");
    }
    check("SELECT name, status, is_active, confidence_level FROM experiments", json!([["checkout", "running", true, "0.95"]]))
        .await;
}

#[tokio::test]
async fn answers_come_as_csv_too() {
    let service = Service::start().await;
    let headers = [("authorization", &*format!("Bearer {TOKEN}")), ("accept", "text/csv")];
    let body =
        json!({"sql": "SELECT 1 AS a, '=1+1' AS \"b,c\", NULL AS d UNION ALL SELECT 2, 'x\"y', NULL ORDER BY 1"}).to_string();
    let reply = request(service.address, "POST", "/v1/sql", &headers, &body).await;
    assert_eq!((reply.status, reply.headers["content-type"].as_str()), (200, "text/csv; charset=utf-8; header=present"));
    assert_eq!(reply.body, "a,\"b,c\",d\r\n1,\"'=1+1\",\r\n2,\"x\"\"y\",\r\n");
    assert!(reply.headers["x-weir-as-of"].contains("\"offsets\":{\"0\":120"));
    assert_eq!(reply.headers["x-weir-truncated"], "false");
}

#[tokio::test]
async fn answers_come_as_arrow_and_parquet_too() {
    let service = Service::start_with(Limits { rows_max: 2, ..Limits::default() }).await;
    let select =
        "SELECT a, b, CAST(c AS DECIMAL(20, 6)) AS c FROM (VALUES (1, 'one', 1.5), (2, NULL, -2), (3, 'three', 0)) t (a, b, c)";
    let body = json!({ "sql": format!("{select} ORDER BY a") }).to_string();
    let ask = async |accept: &str| {
        let headers = [("authorization", &*format!("Bearer {TOKEN}")), ("accept", accept)];
        let (head, body) = request_bytes(service.address, "POST", "/v1/sql", &headers, &body).await;
        assert!(head.contains("200 OK") && head.contains(accept) && head.contains("x-weir-truncated: true"), "{head}");
        assert!(head.contains("x-weir-as-of: "), "{head}");
        body
    };
    let stream = ask("application/vnd.apache.arrow.stream").await;
    let arrow = arrow::ipc::reader::StreamReader::try_new(stream.as_slice(), None).expect("a stream");
    let arrow: Vec<_> = arrow.map(|batch| batch.expect("a batch")).collect();
    let file = bytes::Bytes::from(ask("application/vnd.apache.parquet").await);
    let parquet = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).expect("a file");
    let parquet: Vec<_> = parquet.build().expect("a reader").map(|batch| batch.expect("a batch")).collect();
    for batches in [arrow, parquet] {
        let shown = arrow::util::pretty::pretty_format_batches(&batches).expect("a table").to_string();
        let rows: Vec<Vec<&str>> =
            shown.lines().filter(|line| line.starts_with('|')).map(|line| line.split('|').map(str::trim).collect()).collect();
        let expected = [["", "a", "b", "c", ""], ["", "1", "one", "1.500000", ""], ["", "2", "", "-2.000000", ""]];
        assert_eq!(rows, expected, "{shown}");
    }
}

#[tokio::test]
async fn only_reading_and_only_our_tables() {
    let service = Service::start().await;
    for sql in [
        "INSERT INTO events SELECT * FROM events",
        "CREATE TABLE x AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "COPY (SELECT 1) TO '/tmp/weir-test.csv'",
        "SET datafusion.catalog.information_schema = true",
        "SHOW TABLES",
        "SELECT 1; SELECT 2",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM keys",
        "SELECT * FROM pg_catalog.pg_tables",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM 'file.parquet'",
        "SELECT * FROM generate_series(1, 10000000000)",
        "SELECT range(1, 10000000000)",
        "SELECT generate_series(1, 10000000000)",
        "SELECT repeat('a', 1073741824)",
        "SELECT rpad('a', 1073741824)",
        "SELECT lpad('a', 1073741824)",
        "SELECT array_repeat('a', 1073741824)",
        "SELECT list_repeat('a', 1073741824)",
        "SELECT array_resize([1], 1073741824)",
        "SELECT exact_moments(value) FROM events",
        "SELECT user_key FROM events",
        "SELECT project_id FROM events",
        "SELECT nothing FROM events",
        "SELECT 1/0",
        "SELECT CAST('x' AS INT)",
        "SELECT",
        "WITH RECURSIVE a AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM a) SELECT * FROM a",
    ] {
        let error = service.sql(sql).await.refused(400, "bad_sql");
        assert!(!error.to_string().contains("panicked"), "{sql}: {error}");
    }
    assert!(!std::path::Path::new("/tmp/weir-test.csv").exists());
    // A plan shows nothing of what is below the tables.
    let plan = service.rows("EXPLAIN SELECT event FROM events WHERE event = 'a'").await.to_string();
    assert!(plan.contains("StreamingTable") || plan.contains("Streaming"), "{plan}");
    assert!(!plan.contains("project_id") && !plan.contains("COPY") && !plan.contains("impressions"), "{plan}");
}

#[tokio::test]
async fn deep_statements_neither_crash_nor_hang() {
    let service = Service::start().await;
    let sums = |count: usize| format!("SELECT {}", vec!["1"; count].join("+"));
    assert_eq!(service.rows(&sums(500)).await, json!([[500]]));
    service.sql(&sums(2_000)).await.refused(400, "sql_too_large");
    service.sql(&sums(30_000)).await.refused(400, "sql_too_large");
    let ors = vec!["event = 'a'"; 240].join(" OR ");
    assert_eq!(service.rows(&format!("SELECT count(*) FROM events WHERE {ors}")).await, json!([[0]]));
    let nested = (0..45).fold("SELECT 1 AS a".to_owned(), |inner, _| format!("SELECT a FROM ({inner})"));
    assert_eq!(service.rows(&nested).await, json!([[1]]));
    let joins =
        "events e0".to_owned() + &(1..9).map(|i| format!(" JOIN events e{i} ON e0.user_id = e{i}.user_id")).collect::<String>();
    assert_eq!(service.rows(&format!("SELECT count(*) FROM {joins}")).await, json!([[0]]));
}

/// Texts that grow with `n`: whatever they are, no process ends by them.
fn growing(n: usize) -> Vec<(&'static str, String)> {
    let nested = |open: &str, core: &str, close: &str| format!("{}{core}{}", open.repeat(n), close.repeat(n));
    let select = |expression: String| format!("SELECT {expression} FROM events");
    let chain = |part: &str, between: &str| vec![part; n.max(1)].join(between);
    let ctes = |first: &str, next: &dyn Fn(usize) -> String| {
        let names: Vec<String> = (1..=n).map(|i| format!("t{i} AS (SELECT {} FROM t{})", next(i), i - 1)).collect();
        let rest = if names.is_empty() { String::new() } else { format!(", {}", names.join(", ")) };
        format!("WITH t0 AS (SELECT {first} FROM events){rest} SELECT * FROM t{n}")
    };
    let numbered = |part: &dyn Fn(usize) -> String| (0..n.max(1)).map(part).collect::<String>();
    vec![
        // Types, and texts that name types.
        ("brackets of a type", select(format!("CAST(NULL AS INT{})", "[]".repeat(n)))),
        ("sized brackets of a type", select(format!("CAST(NULL AS INT{})", "[3]".repeat(n)))),
        ("cast to a type with brackets", select(format!("NULL::INT{}", "[]".repeat(n)))),
        ("array types", select(format!("CAST(NULL AS {})", nested("ARRAY<", "INT", ">")))),
        ("array types without end", select(format!("CAST(NULL AS {}", "ARRAY<".repeat(n)))),
        ("array types in parentheses", select(format!("CAST(NULL AS {})", nested("Array(", "INT", ")")))),
        ("struct types", select(format!("CAST(NULL AS {})", nested("STRUCT<a ", "INT", ">")))),
        ("struct types in parentheses", select(format!("CAST(NULL AS {})", nested("STRUCT(a ", "INT", ")")))),
        ("map types", select(format!("CAST(NULL AS {})", nested("MAP<INT, ", "INT", ">")))),
        ("map types in parentheses", select(format!("CAST(NULL AS {})", nested("Map(String, ", "Int8", ")")))),
        ("nullable types", select(format!("CAST(NULL AS {})", nested("Nullable(", "Int8", ")")))),
        ("tuple types", select(format!("CAST(NULL AS {})", nested("Tuple(", "Int8", ")")))),
        ("nested types", select(format!("CAST(NULL AS {})", nested("Nested(a ", "Int8", ")")))),
        ("a typed string", select(format!("INT{} '1'", "[]".repeat(n)))),
        ("arrow_cast", select(format!("arrow_cast(NULL, '{}')", nested("List(", "Int8", ")")))),
        ("arrow_cast without end", select(format!("arrow_cast(NULL, '{}')", "List(".repeat(n)))),
        ("arrow_try_cast", select(format!("arrow_try_cast(NULL, '{}')", nested("LargeList(", "Int8", ")")))),
        ("arrow_cast of structs", select(format!("arrow_cast(NULL, '{}')", nested("Struct(\")\": nullable ", "Int8", ")")))),
        ("arrow_cast of dictionaries", select(format!("arrow_cast(NULL, '{}')", nested("Dictionary(Int8, ", "Utf8", ")")))),
        ("arrow_cast of fixed lists", select(format!("arrow_cast(NULL, '{}')", nested("FixedSizeList(2 x ", "Int8", ")")))),
        (
            "arrow_cast in a condition",
            format!("SELECT 1 FROM events WHERE arrow_cast(event, '{}') IS NULL", nested("List(", "Int8", ")")),
        ),
        (
            "arrow_cast of JSON",
            select(format!("arrow_cast(json_get(properties, 'a'), '{}') IS NULL", nested("List(", "Int8", ")"))),
        ),
        ("arrow_cast by other quotes", select(format!("arrow_cast(NULL, $$ {} $$) IS NULL", nested("List(", "Int8", ")")))),
        ("arrow_cast by an escape", select(format!("arrow_cast(NULL, E'{}') IS NULL", nested("List(", "Int8", ")")))),
        (
            "arrow_cast of joined texts",
            select(format!("arrow_cast(NULL, 'List(' || '{}') IS NULL", nested("List(", "Int8)", ")"))),
        ),
        (
            "arrow_cast of a column",
            format!(
                "SELECT arrow_cast(NULL, t) IS NULL FROM (SELECT '{}' AS t, event FROM events)",
                nested("List(", "Int8", ")")
            ),
        ),
        ("an array type of a fixed size", select(format!("CAST(NULL AS INT[{}])", "9".repeat(n)))),
        ("arrow_cast to a fixed size", select(format!("arrow_cast(NULL, 'FixedSizeList({} x Int8)')", "9".repeat(n)))),
        ("arrow_cast to bytes", select(format!("arrow_cast(NULL, 'FixedSizeBinary({})')", "9".repeat(n)))),
        ("arrow_cast to few bytes", select(format!("arrow_cast(NULL, 'FixedSizeBinary(-{n})')"))),
        // Expressions.
        ("parentheses", select(nested("(", "1", ")"))),
        ("parentheses without end", select("(".repeat(n))),
        ("brackets", select(nested("[", "value", "]"))),
        ("array literals", select(nested("ARRAY[", "value", "]"))),
        ("array functions", select(nested("make_array(", "value", ")"))),
        ("struct functions", select(nested("struct(", "value", ")"))),
        ("braces", select(nested("{'a': ", "value", "}"))),
        ("maps", select(nested("MAP {'a': ", "value", "}"))),
        ("subscripts", select(format!("[value]{}", "[1]".repeat(n)))),
        ("slices", select(format!("[value]{}", "[1:2]".repeat(n)))),
        ("subscripts of a column", select(format!("properties{}", "['a']".repeat(n)))),
        ("fields", select(format!("events.properties{}", ".a".repeat(n)))),
        ("fields of a struct", select(format!("(struct(value)){}", ".c0".repeat(n)))),
        ("method calls", select(format!("upper(event){}", ".upper()".repeat(n)))),
        ("calls of calls", select(format!("upper(event){}", "(1)".repeat(n)))),
        ("minus", select(format!("{}value", "- ".repeat(n)))),
        ("plus", select(format!("{}value", "+ ".repeat(n)))),
        ("tilde", select(format!("{}1", "~ ".repeat(n)))),
        ("NOT", select(format!("{}is_bot", "NOT ".repeat(n)))),
        ("exclamation marks", select(format!("{}is_bot", "!".repeat(n)))),
        ("sums", select(chain("value", " + "))),
        ("products", select(chain("1.0", " * "))),
        ("texts joined", select(chain("event", " || "))),
        ("AND", format!("SELECT 1 FROM events WHERE {}", chain("event <> 'a'", " AND "))),
        ("OR", format!("SELECT 1 FROM events WHERE {}", chain("event LIKE 'a%'", " OR "))),
        ("AND and OR", format!("SELECT 1 FROM events WHERE {}", chain("event <> city AND is_bot", " OR "))),
        ("comparisons", select(chain("is_bot", " = "))),
        ("IS", select(format!("is_bot{}", " IS NOT NULL".repeat(n)))),
        ("ISNULL", select(format!("is_bot{}", " ISNULL".repeat(n)))),
        ("NOTNULL", select(format!("is_bot{}", " NOTNULL".repeat(n)))),
        ("IN", select(format!("is_bot{}", " IN (true)".repeat(n)))),
        ("LIKE", select(chain("event", " LIKE "))),
        ("SIMILAR TO", select(chain("event", " SIMILAR TO "))),
        ("BETWEEN", select(format!("value{}", " BETWEEN 1 AND 2".repeat(n)))),
        ("OVERLAPS", select(chain("event", " OVERLAPS "))),
        ("OPERATOR", select(chain("value", " OPERATOR(+) "))),
        ("casts", select(format!("value{}", "::text".repeat(n)))),
        ("nested casts", select(nested("CAST(", "value", " AS TEXT)"))),
        ("COLLATE", select(format!("event{}", " COLLATE c".repeat(n)))),
        ("AT TIME ZONE", select(format!("event_time{}", " AT TIME ZONE 'UTC'".repeat(n)))),
        ("INTERVAL", select(format!("{}'1 day'", "INTERVAL ".repeat(n)))),
        ("BINARY", select(format!("{}event", "BINARY ".repeat(n)))),
        ("PRIOR", format!("SELECT 1 FROM events CONNECT BY {}event = 'a'", "PRIOR ".repeat(n))),
        ("CONNECT_BY_ROOT", select(format!("{}event", "CONNECT_BY_ROOT ".repeat(n)))),
        ("DISTINCT", format!("SELECT {}event FROM events", "DISTINCT ".repeat(n))),
        ("CASE", select(nested("CASE WHEN is_bot THEN 1 ELSE ", "2", " END"))),
        ("CASE without end", select("CASE WHEN is_bot THEN ".repeat(n))),
        ("CAST without end", select("CAST(".repeat(n))),
        ("EXTRACT without end", select("EXTRACT(".repeat(n))),
        ("TRIM without end", select("TRIM(".repeat(n))),
        ("SUBSTRING without end", select("SUBSTRING(".repeat(n))),
        ("EXISTS without end", select("EXISTS (SELECT ".repeat(n))),
        ("ARRAY without end", select("ARRAY[".repeat(n))),
        ("STRUCT without end", select("STRUCT(".repeat(n))),
        ("INTERVAL without end", select("INTERVAL (".repeat(n))),
        ("NOT with a fault", select("NOT ".repeat(n) + "+")),
        ("WHEN", select(format!("CASE {} ELSE 0 END", "WHEN event = 'a' THEN 1 ".repeat(n.max(1))))),
        ("functions", select(nested("abs(", "value", ")"))),
        ("functions without end", select("abs(".repeat(n))),
        ("functions of two", select(nested("coalesce(value, ", "value", ")"))),
        ("JSON operators", select(format!("properties{}", "->'a'".repeat(n)))),
        ("JSON operators for texts", select(format!("properties{}", "->>'a'".repeat(n)))),
        ("JSON colons", select(format!("properties{}", ":a".repeat(n)))),
        ("a JSON path", select(format!("json_get(properties{})", ", 'a'".repeat(n)))),
        ("a deep JSON text", select(format!("json_get('{}', 0)", nested("[", "1", "]")))),
        ("a deep JSON object", select(format!("json_get_json('{}', 'a')", nested("{\"a\":", "1", "}")))),
        ("a deep JSON length", select(format!("json_length('{}')", nested("[", "1", "]")))),
        ("a long pattern", select(format!("event LIKE '{}'", "%_".repeat(n)))),
        ("lambdas", select(format!("array_transform([1], {}1)", numbered(&|i| format!("x{i} -> "))))),
        ("LAMBDA", select(format!("array_transform([1], {}1)", numbered(&|i| format!("lambda x{i} : "))))),
        ("window functions", select(nested("sum(", "value", ") OVER ()"))),
        ("quantified comparisons", select(nested("value = ANY(", "value", ")"))),
        // Queries.
        ("subqueries", nested("SELECT event FROM (", "SELECT event FROM events", ")")),
        ("subqueries without end", "SELECT event FROM (".repeat(n)),
        ("scalar subqueries", nested("SELECT (", "SELECT max(event) FROM events", ")")),
        ("EXISTS", nested("SELECT 1 WHERE EXISTS (", "SELECT 1", ")")),
        ("IN with subqueries", nested("SELECT 'a' WHERE 'a' IN (", "SELECT 'a'", ")")),
        ("queries in parentheses", nested("(", "SELECT 1", ")")),
        ("tables in parentheses", format!("SELECT 1 FROM {}", nested("(", "events", ")"))),
        ("tables in parentheses with a fault", format!("SELECT 1 FROM {}", nested("(", "events +", ")"))),
        ("FROM first", nested("FROM (", "FROM events", ")")),
        ("FROM first with a fault", nested("FROM (", "FROM events +", ")")),
        ("UNION", chain("SELECT 1", " UNION ")),
        ("UNION ALL", chain("SELECT 1", " UNION ALL ")),
        ("UNION ALL in parentheses", nested("(SELECT 1 UNION ALL ", "SELECT 1", ")")),
        ("MINUS", chain("SELECT 1", " MINUS ")),
        ("EXCEPT", chain("SELECT 1", " EXCEPT ")),
        ("INTERSECT", chain("SELECT 1", " INTERSECT ")),
        ("VALUES", format!("VALUES {}", chain("(1)", ", "))),
        (
            "JOIN",
            format!(
                "SELECT 1 FROM {}",
                numbered(&|i| format!("{}(SELECT 1 AS a) t{i}", if i == 0 { "" } else { " CROSS JOIN " }))
            ),
        ),
        (
            "JOIN with conditions",
            format!(
                "SELECT 1 FROM (SELECT event AS a FROM events) t{}",
                numbered(&|i| format!(" JOIN (SELECT 'quiz' AS a) t{i} ON t.a = t{i}.a"))
            ),
        ),
        ("tables in a list", format!("SELECT 1 FROM (SELECT 1) t{}", numbered(&|i| format!(", (SELECT 1) t{i}")))),
        ("STRAIGHT_JOIN", format!("SELECT 1 FROM {}", chain("(SELECT 1)", " STRAIGHT_JOIN "))),
        ("APPLY", format!("SELECT 1 FROM (SELECT 1) t{}", " CROSS APPLY (SELECT 1)".repeat(n))),
        ("LATERAL VIEW", format!("SELECT 1 FROM events{}", " LATERAL VIEW explode(a) t".repeat(n))),
        ("PIVOT", format!("SELECT 1 FROM events{}", " PIVOT(sum(value) FOR event IN ('a'))".repeat(n))),
        ("UNPIVOT", format!("SELECT 1 FROM events{}", " UNPIVOT(a FOR b IN (c))".repeat(n))),
        ("MATCH_RECOGNIZE", format!("SELECT 1 FROM events{}", " MATCH_RECOGNIZE(PATTERN (a) DEFINE a AS b)".repeat(n))),
        ("a pattern", format!("SELECT 1 FROM events MATCH_RECOGNIZE(PATTERN ({}) DEFINE a AS b)", nested("(", "a", ")*"))),
        ("TABLESAMPLE", format!("SELECT 1 FROM events{}", " TABLESAMPLE (1)".repeat(n))),
        ("WITH", ctes("value", &|_| "value".to_owned())),
        ("WITH and sums", ctes("value AS a", &|_| "a + 1 AS a".to_owned())),
        ("WITH and lists", ctes("value AS a", &|_| "[a] AS a".to_owned())),
        ("WITH and structs", ctes("value AS a", &|_| "struct(a) AS a".to_owned())),
        ("WITH and casts", ctes("value AS a", &|_| "CAST(a AS TEXT) AS a".to_owned())),
        ("WITH and windows", ctes("value AS a", &|_| "sum(a) OVER (ORDER BY a) AS a".to_owned())),
        ("WITH and aggregates", ctes("value AS a", &|_| "max(a) AS a".to_owned())),
        ("WITH within WITH", nested("WITH a AS (", "SELECT 1", ") SELECT * FROM a")),
        ("WITH in UNION", format!("WITH t AS (SELECT 1) {}", chain("SELECT * FROM t", " UNION ALL "))),
        ("pipes", format!("FROM events{}", " |> SELECT event".repeat(n))),
        ("columns", format!("SELECT {} FROM events", chain("event", ", "))),
        ("GROUP BY", format!("SELECT 1 FROM events GROUP BY {}", numbered(&|i| format!("value + {i}, ")) + "event")),
        ("ORDER BY", format!("SELECT event FROM events ORDER BY {}", chain("event", ", "))),
        (
            "named windows",
            format!("SELECT 1 FROM events WINDOW {}", numbered(&|i| format!("w{i} AS (w{}), ", i + 1)) + "w AS ()"),
        ),
        // Statements.
        ("EXPLAIN", "EXPLAIN ".repeat(n) + "SELECT 1"),
        ("EXPLAIN ANALYZE", "EXPLAIN ANALYZE ".repeat(n) + "SELECT 1"),
        ("EXPLAIN with options", "EXPLAIN (ANALYZE) ".repeat(n) + "SELECT 1"),
        ("PREPARE", "PREPARE p AS ".repeat(n) + "SELECT 1"),
        ("IF", "IF true THEN ".repeat(n) + "SELECT 1"),
        ("BEGIN", "BEGIN ".repeat(n) + "SELECT 1"),
        ("CREATE VIEW", "CREATE VIEW v AS ".repeat(n) + "SELECT 1"),
        ("COPY", nested("COPY (", "SELECT 1", ") TO 'x'")),
        ("semicolons", ";".repeat(n) + "SELECT 1"),
        ("statements", chain("SELECT 1", ";")),
        ("comments", format!("{} SELECT 1 {}", "/* ".repeat(n), "*/ ".repeat(n))),
        ("nested comments", nested("/*", "", "*/") + "SELECT 1"),
        ("comments without end", "/*".repeat(n) + "SELECT 1"),
        ("dollar quotes", "$a$".repeat(n) + "SELECT 1"),
        ("quotes", format!("SELECT '{}'", "''".repeat(n))),
        ("quoted names", format!("SELECT \"{}\"", "\"\"".repeat(n))),
        ("placeholders", select(chain("$1", " + "))),
    ]
}

#[tokio::test]
async fn no_text_ends_the_process() {
    let limits = Limits { query_time_max: Duration::from_secs(20), ..Limits::default() };
    let mut service = Service::start_with(limits.clone()).await;
    for user in 0..3 {
        let more = [("metadata", "'{\"a\": {\"b\": 2}}'")];
        Event { more: &more, ..Event::new("engagement", "quiz", user, 0.0) }.store(&mut service.rows).await;
    }
    // Around the limits, and as many as fit into the bytes that are accepted.
    let sizes = [7, 24, 49, 249, 499, 3_000, 60_000];
    let mut untold = Vec::new();
    for n in sizes {
        for (what, sql) in growing(n) {
            if sql.len() > limits.sql_bytes_max {
                continue;
            }
            // A text that is parsed for ever must fail here instead of stopping the test.
            let Ok(reply) = tokio::time::timeout(Duration::from_secs(60), service.sql(&sql)).await else {
                untold.push(format!("{what}, {n} times: no answer"));
                continue;
            };
            let error = reply.json()["error"].clone();
            let is_told = reply.status == 200 || [400, 422, 504].contains(&reply.status) && error["code"] != "internal";
            if !is_told {
                untold.push(format!("{what}, {n} times: {} {error}", reply.status));
            }
            // What was not planned says where and how much.
            if reply.status == 400 && error["code"] == "sql_too_large" {
                assert!(error["message"].as_str().is_some_and(|message| message.contains("accepted")), "{what}: {error}");
            }
        }
        assert_eq!(service.rows("SELECT count(*) FROM events").await, json!([[3]]), "it still answers");
    }
    assert!(untold.is_empty(), "{untold:#?}");
}

#[tokio::test]
async fn the_time_of_a_statement_is_one() {
    let service = Service::with_events_of_days_ago().await;
    let check = async |condition: &str, expected: i64| {
        let rows = service.rows(&format!("SELECT count(*) FROM events WHERE {condition}")).await;
        assert_eq!(rows, json!([[expected]]), "{condition}");
    };
    for now in ["now()", "current_timestamp", "current_timestamp()", "current_date", "current_date()", "today()"] {
        check(&format!("event_time > {now} - INTERVAL '7 days'"), 2).await;
        check(&format!("event_time BETWEEN {now} - INTERVAL '20 days' AND {now} - INTERVAL '7 days'"), 1).await;
    }
    check("now() - event_time IS NOT NULL", 3).await;
    check("event_time > date_trunc('day', now()) - INTERVAL '7 days' AND current_time >= TIME '00:00:00'", 2).await;
    // Postgres leaves the old rows out.
    let plan = service.rows("EXPLAIN SELECT event FROM events WHERE event_time > now() - INTERVAL '7 days'").await.to_string();
    assert!(plan.contains("partial_filters=[events.event_time > TimestampMicrosecond("), "{plan}");
    let one =
        "SELECT count(DISTINCT t), max(t) = now(), bool_and(CAST(t AS DATE) = current_date), bool_and(t = current_timestamp)
               FROM (SELECT now() AS t FROM events UNION ALL SELECT current_timestamp FROM events UNION ALL SELECT now())";
    assert_eq!(service.rows(one).await, json!([[1, true, true, true]]));
    assert_eq!(
        service.rows("SELECT arrow_typeof(now()), CAST(current_time AS TEXT) = CAST(current_time AS TEXT)").await,
        json!([["Timestamp(ns, \"UTC\")", true]])
    );
    let (first, second) = (service.rows("SELECT now()").await, service.rows("SELECT now()").await);
    assert!(first[0][0].as_str() < second[0][0].as_str(), "each statement has its own: {first} {second}");
}

#[tokio::test]
async fn tenants_are_apart_whatever_the_statement() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    for (project, name, users) in [(PROJECT, "own", 3), (OTHER_PROJECT, "foreign", 5)] {
        add_experiment(rows, project, name, "", &[("control", "null"), (&format!("{name}_b"), "null")]).await;
        add_users(rows, project, name, "control", 0, users).await;
        add_conversions(rows, (project, name, "control"), &format!("{name}_buy"), (0, users), ("7", "'EUR'")).await;
        let event_name = format!("{name}_event");
        for user in 0..users {
            for kind in ["impression", "conversion", "campaign_event", "engagement", "identity"] {
                let event = match kind {
                    "campaign_event" => "view",
                    "identity" => "alias",
                    _ => event_name.as_str(),
                };
                let city = format!("'{name}_city'");
                let more = [("city", city.as_str())];
                Event { project, more: &more, ..Event::new(kind, event, user, 1.0) }.store(rows).await;
            }
        }
    }
    let foreign = OTHER_PROJECT.to_string();
    for sql in [
        "SELECT * FROM events".to_owned(),
        "SELECT * FROM events WHERE true OR is_bot".to_owned(),
        "SELECT a.*, b.* FROM events a CROSS JOIN experiments b".to_owned(),
        "SELECT * FROM participation UNION ALL SELECT * FROM participation".to_owned(),
        "SELECT * FROM conversion_attribution WHERE conversion_type <> '' OR 1 = 1".to_owned(),
        "SELECT * FROM variants".to_owned(),
        "SELECT city, count(*) FROM events GROUP BY city".to_owned(),
        "SELECT * FROM events WHERE city = 'foreign_city'' OR ''1''=''1'".to_owned(),
        format!("SELECT * FROM events WHERE event_id <> '{foreign}' OR user_id = '{foreign}'"),
        "WITH a AS (SELECT * FROM events) SELECT * FROM a WHERE EXISTS (SELECT 1 FROM variants)".to_owned(),
        "SELECT (SELECT max(name) FROM experiments), (SELECT min(conversion_type) FROM conversion_attribution)".to_owned(),
    ] {
        let own = service.sql(&sql).await.ok();
        assert!(!own.to_string().contains("foreign"), "{sql}: {own}");
        let other = service.post_as(OTHER_TOKEN, "/v1/sql", &json!({"sql": sql})).await.ok();
        assert!(!other.to_string().contains("\"own"), "{sql}: {other}");
    }
    assert_eq!(service.rows("SELECT count(*) FROM events").await, json!([[15]]));
    let other = service.post_as(OTHER_TOKEN, "/v1/sql", &json!({"sql": "SELECT count(*) FROM events"})).await.ok();
    assert_eq!(other["rows"], json!([[25]]));
}

#[tokio::test]
async fn answers_are_cut_aloud() {
    let limits = Limits { rows_max: 10, answer_bytes_max: 2_000, ..Limits::default() };
    let mut service = Service::start_with(limits).await;
    for user in 0..12 {
        Event::new("engagement", "quiz", user, 0.0).store(&mut service.rows).await;
    }
    let answer = service.sql("SELECT event FROM events").await.ok();
    assert_eq!((answer["rows"].as_array().map(Vec::len), &answer["truncated"]), (Some(10), &json!(true)));
    let exact = service.sql("SELECT event FROM events LIMIT 10").await.ok();
    assert_eq!((exact["rows"].as_array().map(Vec::len), &exact["truncated"]), (Some(10), &json!(false)));
    let wide = service.sql(&format!("SELECT '{}' AS w, event FROM events", "x".repeat(600))).await.ok();
    assert_eq!((wide["rows"].as_array().map(Vec::len), &wide["truncated"]), (Some(3), &json!(true)));
}

#[tokio::test]
async fn a_query_ends_at_its_limits() {
    let limits = Limits { query_time_max: Duration::from_secs(3), query_memory_bytes_max: 2_000_000, ..Limits::default() };
    let mut service = Service::start_with(limits).await;
    service
        .run(
            "INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, event_type)
             SELECT '00000000-0000-0000-0000-000000000001', gen_random_uuid(), gen_random_uuid(), t, t, t, false, false,
                 gen_random_uuid(), 0, i, 'e' || i
             FROM (SELECT i, timestamptz '2026-03-01T00:00:00Z' AS t FROM generate_series(1, 30000) i) s",
        )
        .await;
    service.sql("SELECT event, event_id, count(*) FROM events GROUP BY event, event_id").await.refused(422, "query_memory");
    let start = std::time::Instant::now();
    let endless = "SELECT count(*) FROM events a, events b WHERE a.event || b.event = 'x'";
    service.sql(endless).await.refused(504, "query_timeout");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!(service.rows("SELECT count(*) FROM events").await, json!([[30_000]]), "and the next one works");
}

#[tokio::test]
async fn queries_beyond_the_queue_are_told_to_come_back() {
    let limits = Limits { queries_running_max: 1, queries_waiting_max: 1, ..Limits::default() };
    let mut service = Service::start_with(limits).await;
    // Another transaction holds the table: the first query waits in Postgres.
    service.run("BEGIN; LOCK TABLE campaigns IN ACCESS EXCLUSIVE MODE").await;
    let service = std::sync::Arc::new(service);
    let ask = || {
        let service = service.clone();
        tokio::spawn(async move { service.sql("SELECT count(*) FROM campaigns").await })
    };
    let (first, second) = (ask(), ask());
    // Both have come in when the page says so.
    for _ in 0..200 {
        let page = service.get("/metrics").await.body;
        if page.contains("weir_query_running 1") && page.contains("weir_query_waiting 1") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let reply = service.sql("SELECT 1").await;
    reply.refused(503, "busy");
    assert_eq!(reply.headers["retry-after"], "1");
    first.abort();
    second.abort();
    let _ = (first.await, second.await);
    // Clients that went away give their places back.
    for _ in 0..200 {
        if service.sql("SELECT 1").await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the places were not given back: {}", service.get("/metrics").await.body);
}

#[tokio::test]
async fn one_answer_sees_one_moment() {
    let mut service = Service::start().await;
    for user in 0..50 {
        Event::new("engagement", "quiz", user, 0.0).store(&mut service.rows).await;
    }
    let writer_url = service.database.url.clone();
    let is_met = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&is_met);
    let writer = tokio::spawn(async move {
        use sqlx::Connection;
        let mut rows = sqlx::PgConnection::connect(&writer_url).await.expect("connects");
        // One transaction adds an event of each kind, and moves the checkpoint with it.
        for i in (0..1_000_000u64).take_while(|_| !is_over.load(Ordering::Relaxed)) {
            crate::support::run(&mut rows, "BEGIN").await;
            Event::new("impression", "", i, 1.0).store(&mut rows).await;
            Event::new("conversion", "buy", i, 1.0).store(&mut rows).await;
            Event::new("campaign_event", "view", i, 1.0).store(&mut rows).await;
            crate::support::run(
                &mut rows,
                "UPDATE checkpoints SET next_offset = next_offset + 3 WHERE log_partition = 0;
                 UPDATE project_progress SET records = records + 3 WHERE log_partition = 0",
            )
            .await;
            crate::support::run(&mut rows, "COMMIT").await;
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 5 {
        assert!(!writer.is_finished(), "nothing is written any more");
        let sql = "SELECT count(*) FILTER (WHERE kind = 'impression'), count(*) FILTER (WHERE kind = 'conversion'),
                          count(*) FILTER (WHERE kind = 'campaign_event') FROM events";
        let answer = service.sql(sql).await.ok();
        let counts: Vec<i64> = answer["rows"][0].as_array().expect("a row").iter().filter_map(Value::as_i64).collect();
        assert!(counts[0] == counts[1] && counts[1] == counts[2], "{answer}");
        assert_eq!(answer["as_of"]["offsets"]["0"], 120 + 3 * counts[0], "{answer}");
        seen.push(counts[0]);
        seen.dedup();
    }
    is_met.store(true, Ordering::Relaxed);
    writer.await.expect("no panic");
}
