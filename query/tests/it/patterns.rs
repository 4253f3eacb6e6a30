//! Regular expressions in SQL.

use serde_json::json;

use crate::support::{Event, Service};

/// A statement's own values are at fault where a function cannot take them; what they hold stays out of the answer's structure.
#[tokio::test]
async fn what_a_function_cannot_take_is_the_statements_fault() {
    let mut service = Service::start().await;
    Event::new("engagement", "quiz", 1, 0.0).store(&mut service.rows).await;
    for sql in [
        "SELECT event FROM events WHERE event ~ '('",
        "SELECT event FROM events WHERE event !~* '(?P<'",
        "SELECT event FROM events WHERE regexp_like(event, '(')",
        "SELECT regexp_replace(event, '[', 'x') FROM events",
        "SELECT regexp_match(event, '*') FROM events",
        "SELECT regexp_count(event, '(') FROM events",
        "SELECT event FROM events WHERE event SIMILAR TO '('",
        "SELECT event FROM events WHERE event ~ '(\nweir\u{1b}[2J'",
    ] {
        let reply = service.sql(sql).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"]), (400, &json!("bad_sql")), "{sql}: {error}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.starts_with("not a regular expression: ") && message.len() > 30, "{sql}: {message}");
    }
}
