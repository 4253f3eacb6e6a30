//! `testdata/requests/*.json`: requests, what is answered, and the events that land in the log.
//!
//! With `WEIR_BLESS=1` the expectations are written anew, to be read before they are committed.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::support::{Answer, Service, gzip, send};

#[tokio::test]
async fn every_recorded_request_is_answered_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/requests");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 20, "{files:?}");
    let mut failed = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let case: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let found = run(&case).await;
        if std::env::var_os("WEIR_BLESS").is_some() {
            let text = serde_json::to_string_pretty(&found).expect("serialises");
            std::fs::write(&file, text + "\n").expect("written");
        } else if found != case {
            let found = serde_json::to_string_pretty(&found).expect("serialises");
            failed.push(format!("{}: found\n{found}", file.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// All recorded requests by their names, in order.
pub(crate) fn recorded() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/requests");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    let mut found: Vec<(String, Value)> = std::fs::read_dir(folder).expect("the folder").map(read).collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// Sends a recorded request, with headers of its own besides.
pub(crate) async fn send_recorded(service: &Service, request: &Value, more: &[(&str, &str)]) -> Answer {
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let headers: Vec<(String, String)> =
        request["headers"].as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect();
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(more.iter().copied());
    let headers: Vec<(&str, &str)> = headers.collect();
    let mut body = match &request["body"] {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        Value::Array(lines) if request["lines"] == true => {
            lines.iter().map(|line| text(line) + "\n").collect::<String>().into_bytes()
        }
        other => other.to_string().into_bytes(),
    };
    if request["gzip"] == true {
        body = gzip(&body);
    }
    send(service.address(), &text(&request["method"]), &text(&request["target"]), &headers, &body).await
}

/// Sends the request of a case and returns the case with what came of it.
async fn run(case: &Value) -> Value {
    let service = Service::start().await;
    let request = &case["request"];
    let answer = send_recorded(&service, request, &[]).await;

    let kept = |name: &str| {
        name.starts_with("x-")
            || matches!(name, "retry-after" | "allow" | "content-type" | "cache-control")
            || (name.starts_with("access-control-allow-") && request["headers"].get("Origin").is_some())
    };
    let headers: Map<String, Value> =
        answer.headers.iter().filter(|(name, _)| kept(name)).map(|(name, value)| (name.clone(), json!(value))).collect();
    let content_type = answer.header("content-type").unwrap_or_default();
    let body = match content_type {
        "application/json" => answer.json(),
        text if text.starts_with("text/plain") => json!(answer.body),
        _ => json!(format!("{} bytes", answer.bytes.len())),
    };
    let events: Vec<Value> = service.log.events().iter().map(shown).collect();
    json!({
        "about": case["about"],
        "request": request,
        "answer": { "status": answer.status, "headers": headers, "body": body },
        "events": events,
    })
}

/// An event as it is in the log, without what is the same in all of them and what is new in each run.
fn shown(event: &events::Event) -> Value {
    let mut shown = serde_json::to_value(event).expect("serialises");
    let members = shown.as_object_mut().expect("an object");
    assert_eq!(members.remove("received_at"), Some(json!(events::testing::RECEIVED_AT.0)));
    if members["project_id"] == json!("00000000-0000-0000-0000-000000000001") {
        members.remove("project_id");
    }
    if !event.id_from_client {
        members.insert("event_id".to_owned(), json!("generated"));
        // Who is nobody is made of it.
        if event.user_id == events::identity::unlinked_user(event.project_id, event.kind(), event.event_id) {
            members.insert("user_id".to_owned(), json!("generated"));
        }
    }
    if event.untimed {
        members.remove("claimed_at");
    }
    for time in ["claimed_at", "event_time", "sent_at"] {
        if let Some(micros) = members.get(time).and_then(Value::as_i64) {
            members.insert(time.to_owned(), json!(events::Micros(micros).to_string()));
        }
    }
    shown
}

#[tokio::test]
async fn a_browser_without_an_id_gets_a_cookie_and_stays_the_same_device() {
    let service = Service::start().await;
    let target = "/v1/pixel.gif?key=wk_test&type=engagement&name=n";
    let answer = service.get(target).await;
    let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
    let (pair, attributes) = cookie.split_once("; ").expect("has attributes");
    assert_eq!(attributes, "Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax");
    let id = pair.strip_prefix("weir_id=").expect("the cookie's name");
    assert_eq!(id.parse::<uuid::Uuid>().expect("a UUID").get_version_num(), 4);

    let answer = send(service.address(), "GET", target, &[("Cookie", pair)], b"").await;
    assert_eq!(answer.header("set-cookie"), None);
    let users: Vec<String> = service.log.events().iter().map(|event| event.user_id.to_string()).collect();
    assert_eq!(users, [id, id]);
    // Nobody is made a device by an event that is refused, or that names its user.
    for query in ["&value=1.0000001&type=conversion", "&user_id=u"] {
        assert_eq!(service.get(&format!("{target}{query}")).await.header("set-cookie"), None, "{query}");
    }
    assert_eq!(service.log.events().len(), 3);
}
