//! Country, region and city: what the client says, then the header that the operator names, then the file.

use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderName;
use ingest::Config;
use serde_json::json;

use crate::mmdb::{Network, database};
use crate::support::{SERVER, Service, WRITE, memory, send};

const BERLIN: Network<'_> = ([203, 0, 113, 0], 24, ["DE", "Land Berlin", "Berlin"]);
const LYON: Network<'_> = ([198, 51, 100, 0], 24, ["FR", "Rhone", "Lyon"]);
/// The tests' own end.
const HERE: Network<'_> = ([127, 0, 0, 0], 8, ["SE", "Skane", "Lund"]);

const BROWSER: (&str, &str) = ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0");

/// Writes a file, and returns it with a folder that a collector may have.
fn file(networks: &[Network<'_>]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("places.mmdb");
    std::fs::write(&path, database(networks)).expect("written");
    (folder, path)
}

async fn start(change: impl FnOnce(&mut Config)) -> Service {
    Service::start_with_keys(tempfile::tempdir().expect("a folder"), change).await
}

impl Service {
    /// Country, region and city of an event that is posted with some headers.
    async fn place(&self, key: &str, headers: &[(&str, &str)], event: serde_json::Value) -> String {
        let mut event = event;
        event["type"] = json!("impression");
        event["user_id"] = json!("u");
        let target = format!("/v1/events?key={key}");
        let answer = send(self.address(), "POST", &target, headers, event.to_string().as_bytes()).await;
        assert_eq!(answer.native().0, 1, "{answer:?}");
        let context = self.log.events().pop().expect("one").context;
        let [country, region, city] =
            [&context.country, &context.region, &context.city].map(|text| text.as_deref().unwrap_or("-"));
        format!("{country} {region} {city}")
    }
}

#[tokio::test]
async fn what_the_client_says_stays_then_the_header_counts_then_the_file() {
    let (_folder, path) = file(&[BERLIN, LYON, HERE]);
    let service = start(|config| {
        config.country_header = Some(HeaderName::from_static("cf-ipcountry"));
        config.address_header = Some(HeaderName::from_static("x-forwarded-for"));
        config.geo_file = Some(path.clone());
    })
    .await;
    let berlin = ("X-Forwarded-For", "198.51.100.7, 203.0.113.7, 10.0.0.1");
    let none = || json!({});
    assert_eq!(service.place(WRITE, &[berlin], none()).await, "DE Land Berlin Berlin");
    assert_eq!(service.place(WRITE, &[BROWSER], none()).await, "SE Skane Lund");
    assert_eq!(service.place(WRITE, &[berlin, ("CF-IPCountry", "de")], none()).await, "DE Land Berlin Berlin");
    assert_eq!(service.place(WRITE, &[berlin, ("CF-IPCountry", "FR")], none()).await, "FR - -", "not of the same country");
    for unknown in ["XX", "T1", "?"] {
        assert_eq!(service.place(WRITE, &[berlin, ("CF-IPCountry", unknown)], none()).await, "DE Land Berlin Berlin");
    }
    assert_eq!(service.place(WRITE, &[berlin, ("CF-IPCountry", "FR")], json!({ "country": "IT" })).await, "IT - -");
    assert_eq!(service.place(WRITE, &[berlin], json!({ "country": "DE", "city": "Bonn" })).await, "DE Land Berlin Bonn");
    assert_eq!(service.place(WRITE, &[("X-Forwarded-For", "192.0.2.1")], none()).await, "- - -");
    // An event's own address: of a server it is the visitor's, and of a browser its request's counts.
    let lyon = || json!({ "ip": "198.51.100.7" });
    assert_eq!(service.place(SERVER, &[berlin, ("CF-IPCountry", "DE")], lyon()).await, "FR Rhone Lyon");
    assert_eq!(service.place(SERVER, &[berlin, ("CF-IPCountry", "DE")], none()).await, "- - -", "the server's place is nobody's");
    assert_eq!(service.place(WRITE, &[berlin, ("User-Agent", "analytics-python/2.3.4")], none()).await, "- - -");
    assert_eq!(service.place(WRITE, &[("User-Agent", "analytics-python/2.3.4")], lyon()).await, "FR Rhone Lyon");
    assert_eq!(service.place(WRITE, &[berlin, BROWSER], lyon()).await, "DE Land Berlin Berlin");
    // Who objects has a country and no more.
    assert_eq!(service.place(WRITE, &[berlin, ("Sec-GPC", "1")], none()).await, "DE - -");
    let records = service.log.records.lock().expect("nobody panicked").clone();
    for record in records {
        let text = String::from_utf8_lossy(record.bytes()).into_owned();
        assert!(!text.contains("203.0.113") && !text.contains("198.51.100"), "{text}");
    }
}

#[tokio::test]
async fn no_header_counts_that_nobody_named() {
    let (_folder, path) = file(&[BERLIN, HERE]);
    let service = start(|config| config.geo_file = Some(path)).await;
    let headers = [("X-Forwarded-For", "203.0.113.7"), ("CF-IPCountry", "FR"), BROWSER];
    assert_eq!(service.place(WRITE, &headers, json!({})).await, "SE Skane Lund");
    let service = Service::start().await;
    assert_eq!(service.place(WRITE, &headers, json!({})).await, "- - -");
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_a_damaged_one_is_not_taken() {
    let (_folder, path) = file(&[HERE]);
    let service = start(|config| {
        config.geo_file = Some(path.clone());
        config.limits.geo_look_every = Duration::from_millis(20);
    })
    .await;
    let becomes = async |expected: &str| {
        for _ in 0..500 {
            if service.place(WRITE, &[BROWSER], json!({})).await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not become {expected}");
    };
    becomes("SE Skane Lund").await;
    let moved = ([127, 0, 0, 0], 8, ["NO", "Oslo", "Oslo by"]);
    std::fs::write(&path, database(&[moved])).expect("written");
    becomes("NO Oslo Oslo by").await;
    let failed = async || service.counter("weir_collector_geo_readings_failed_total").await;
    for damage in [&b"no database"[..], &database(&[BERLIN])[..40]] {
        let before = failed().await;
        std::fs::write(&path, damage).expect("written");
        for _ in 0..500 {
            if failed().await > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(failed().await > before, "it was looked at");
        assert_eq!(service.place(WRITE, &[BROWSER], json!({})).await, "NO Oslo Oslo by", "the former one stays");
    }
    std::fs::write(&path, database(&[HERE, BERLIN])).expect("written");
    becomes("SE Skane Lund").await;
}

#[tokio::test]
async fn a_start_without_its_file_says_which() {
    let folder = tempfile::tempdir().expect("a folder");
    let damaged = folder.path().join("damaged.mmdb");
    std::fs::write(&damaged, &database(&[BERLIN])[..60]).expect("written");
    for path in [folder.path().join("missing.mmdb"), damaged] {
        let config = Config {
            collector: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            database_url: "postgres://nobody@127.0.0.1:1/none".to_owned(),
            geo_file: Some(path.clone()),
            ..Config::default()
        };
        let started = ingest::Collector::start(config, memory(), std::sync::Arc::new(events::Micros::now)).await;
        let Err(error) = started else { panic!("it started") };
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
