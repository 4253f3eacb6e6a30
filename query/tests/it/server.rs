use std::net::SocketAddr;
use std::time::{Duration, Instant};

use query::{Config, Limits, Query, StartError};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PROJECT, Service, TOKEN, add_key, config, request, run};

#[tokio::test]
async fn tokens_open_one_project_and_all_others_look_alike() {
    let mut service = Service::start_with(Limits { token_age_max: Duration::from_millis(100), ..Limits::default() }).await;
    let ask = async |header: Option<&str>| {
        let headers: Vec<(&str, &str)> = header.iter().map(|value| ("authorization", *value)).collect();
        request(service.address, "GET", "/v1/experiments", &headers, "").await
    };
    add_key(&mut service.database.connect().await, PROJECT, "wk_1", "write").await;
    add_key(&mut service.database.connect().await, PROJECT, "rt_expired", "read").await;
    run(
        &mut service.database.connect().await,
        "UPDATE keys SET expires_at = now() - interval '1 second' WHERE kind = 'read' AND prefix = 'rt_' AND digest = sha256('rt_expired')",
    )
    .await;
    assert_eq!(ask(Some(&format!("Bearer {TOKEN}"))).await.status, 200);
    let mut bodies = Vec::new();
    for header in
        [None, Some("Bearer unknown"), Some("Bearer wk_1"), Some("Bearer rt_expired"), Some("Basic cnRfZmlyc3Q6"), Some("Bearer")]
    {
        let reply = ask(header).await;
        reply.refused(401, "unauthorized");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        bodies.push(reply.body);
    }
    run(&mut service.database.connect().await, "UPDATE keys SET revoked_at = now() WHERE kind = 'read'").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let revoked = ask(Some(&format!("Bearer {TOKEN}"))).await;
    revoked.refused(401, "unauthorized");
    bodies.push(revoked.body);
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    service.run("SELECT 1").await;
}

#[tokio::test]
async fn routes_are_those_that_are_documented() {
    let service = Service::start().await;
    let ask = async |method: &str, path: &str| {
        request(service.address, method, path, &[("authorization", &format!("Bearer {TOKEN}"))], "").await
    };
    ask("GET", "/").await.refused(404, "unknown_route");
    ask("GET", "/v1/experiment").await.refused(404, "unknown_route");
    ask("GET", "/v1/experiments/a/b/results").await.refused(404, "unknown_route");
    let reply = ask("GET", "/v1/sql").await;
    reply.refused(405, "method_not_allowed");
    assert_eq!(reply.headers["allow"], "POST");
    ask("POST", "/v1/experiments").await.refused(405, "method_not_allowed");
    ask("DELETE", "/v1/experiments/a/results").await.refused(405, "method_not_allowed");
    assert_eq!(ask("GET", "/livez").await.status, 200);
    assert_eq!(ask("GET", "/readyz").await.body, "ready\n");
    ask("POST", "/v1/sql").await.refused(400, "bad_request");
    let long = json!({"sql": "x".repeat(300_000)});
    service.post("/v1/sql", &long).await.refused(413, "body_too_large");
    service.sql(&format!("SELECT '{}'", "x".repeat(70_000))).await.refused(400, "sql_too_large");
}

#[tokio::test]
async fn the_page_of_metrics_shows_this_service() {
    let service = Service::start().await;
    service.sql("SELECT 1 UNION ALL SELECT 2").await.ok();
    service.sql("SELEC").await.refused(400, "bad_sql");
    // The place of a query is given back a moment after its answer.
    let mut page = service.get("/metrics").await;
    for _ in 0..200 {
        if page.body.contains("weir_query_running 0") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        page = service.get("/metrics").await;
    }
    assert_eq!(page.status, 200);
    for line in [
        "weir_query_requests_total{route=\"sql\",status=\"200\"} 1",
        "weir_query_requests_total{route=\"sql\",status=\"400\"} 1",
        "weir_query_sql_rows_total 2",
        "weir_query_running 0",
        "weir_query_questions_running{kind=\"sql\"} 0",
        "weir_query_questions_waiting{kind=\"results\"} 0",
        "weir_query_workers_busy 0",
        "weir_query_engine_pool_bytes 0",
        "weir_query_cohort_cache_bytes 0",
        "# HELP weir_query_answers_in_flight_bytes",
        "weir_query_ready 1",
        "# HELP weir_query_request_seconds",
        "# TYPE weir_query_request_seconds histogram",
    ] {
        assert!(page.body.contains(line), "no {line} in {}", page.body);
    }
    let number = async |name: &str| service.metric(name).await;
    assert!((1.0..=3.0).contains(&number("weir_query_workers_running").await));
    assert!(number("weir_query_workers_resident_memory_bytes").await > 1e6, "a process takes more than a megabyte");
    let is_own = |line: &&str| line.is_empty() || ["#", "weir_query_", "process_"].iter().any(|own| line.starts_with(own));
    assert_eq!(page.body.lines().find(|line| !is_own(line)), None);
}

/// A page of a foreign site that has its own name resolve to 127.0.0.1 could read what the browser of an analyst is answered.
#[tokio::test]
async fn a_request_for_another_host_gets_no_answer() {
    let database = migrations::testing::TestDatabase::create().await;
    let start = async |query: [u8; 4], allow_hosts: &[&str]| {
        let allow_hosts = allow_hosts.iter().map(|host| (*host).to_owned()).collect();
        let query = SocketAddr::from((query, 0));
        let config = Config { query, allow_hosts, database_url: database.url.clone(), ..config() };
        Query::start(config).await.expect("starts")
    };
    let ask = async |query: &Query, host: &str, path: &str| {
        let port = query.address().port();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
        let text = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    };
    let loopback = start([127, 0, 0, 1], &[]).await;
    for path in ["/metrics", "/readyz", "/v1/experiments"] {
        let answer = ask(&loopback, "evil.example:8081", path).await;
        assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("\"code\":\"misdirected_request\""), "{answer}");
    }
    assert!(ask(&loopback, "localhost", "/metrics").await.contains("weir_query_misdirected_requests_total 3\n"));
    assert!(ask(&loopback, "127.0.0.1:8081", "/v1/experiments").await.starts_with("HTTP/1.1 401 "));

    let allowed = start([127, 0, 0, 1], &["stats.example"]).await;
    assert!(ask(&allowed, "stats.example", "/v1/experiments").await.starts_with("HTTP/1.1 401 "));
    let anywhere = start([0, 0, 0, 0], &[]).await;
    assert!(ask(&anywhere, "stats.example", "/v1/experiments").await.starts_with("HTTP/1.1 401 "));
    // There the metrics are not for everybody who may ask.
    request(anywhere.address(), "GET", "/metrics", &[], "").await.refused(404, "unknown_route");
    let metrics = anywhere.metrics_address().expect("an address of their own");
    assert!(metrics.ip().is_loopback());
    assert_eq!(request(metrics, "GET", "/metrics", &[], "").await.status, 200);
    for query in [loopback, allowed, anywhere] {
        query.stop().await;
    }
}

#[tokio::test]
async fn metrics_can_have_an_address_of_their_own() {
    let database = migrations::testing::TestDatabase::create().await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { query: any, metrics: Some(any), database_url: database.url.clone(), ..config() };
    let query = Query::start(config).await.expect("starts");
    let metrics = query.metrics_address().expect("its own");
    request(query.address(), "GET", "/metrics", &[], "").await.refused(404, "unknown_route");
    assert_eq!(request(metrics, "GET", "/metrics", &[], "").await.status, 200);
    assert_eq!(request(metrics, "GET", "/readyz", &[], "").await.status, 200);
    request(metrics, "GET", "/v1/experiments", &[], "").await.refused(404, "unknown_route");
    query.stop().await;
}

#[tokio::test]
async fn without_a_database_it_starts_and_says_so() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { query: any, database_url: "postgres://weir@127.0.0.1:1/weir".to_owned(), ..config() };
    let query = Query::start(config.clone()).await.expect("starts");
    assert_eq!(request(query.address(), "GET", "/livez", &[], "").await.status, 200);
    assert_eq!(request(query.address(), "GET", "/readyz", &[], "").await.status, 503);
    let reply = request(query.address(), "GET", "/v1/experiments", &[("authorization", "Bearer x")], "").await;
    reply.refused(503, "unavailable");
    let taken = Config { query: query.address(), ..config.clone() };
    assert!(matches!(Query::start(taken).await, Err(StartError::Listen { .. })));
    let wrong = Config { database_url: "not a url".to_owned(), ..config.clone() };
    assert!(matches!(Query::start(wrong).await, Err(StartError::DatabaseUrl(_))));
    let wrong = Config { worker: vec!["true".into()], ..config };
    assert!(matches!(Query::start(wrong).await, Err(StartError::Worker(_))));
    query.stop().await;
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let limits =
        Limits { head_wait_max: Duration::from_millis(300), body_wait_max: Duration::from_millis(300), ..Limits::default() };
    let service = Service::start_with(limits).await;
    let check = async |sent: String, expected: &str| {
        let mut stream = TcpStream::connect(service.address).await.expect("connects");
        stream.write_all(sent.as_bytes()).await.expect("sent");
        let start = Instant::now();
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut bytes)).await;
        assert!(read.is_ok(), "still open after {:?}: {sent:?}", start.elapsed());
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(expected), "{sent:?}: {text}");
    };
    check(String::new(), "").await;
    check("GET /livez HTTP/1.1\r\nhost:".to_owned(), "").await;
    let head =
        format!("POST /v1/sql HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 50\r\n\r\n{{");
    check(head, "the body took longer").await;
    assert_eq!(service.get("/livez").await.status, 200);
}

#[tokio::test]
async fn stopping_lets_running_queries_end() {
    let mut service = Service::start().await;
    service.run("BEGIN; LOCK TABLE campaigns IN ACCESS EXCLUSIVE MODE").await;
    let address = service.address;
    let asked = tokio::spawn(async move {
        let body = json!({"sql": "SELECT count(*) FROM campaigns"}).to_string();
        request(address, "POST", "/v1/sql", &[("authorization", &format!("Bearer {TOKEN}"))], &body).await
    });
    for _ in 0..200 {
        if service.get("/metrics").await.body.contains("weir_query_running 1") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stopping = tokio::spawn(service.query.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(TcpStream::connect(address).await.is_err(), "no new connections");
    run(&mut service.rows, "COMMIT").await;
    assert_eq!(asked.await.expect("no panic").ok()["rows"], json!([[0]]));
    stopping.await.expect("stops");
}
