//! A collector for tests, a client that sends exactly the bytes it is told to, and a log that can be made to fail.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use eventlog::memory::MemoryLog;
use eventlog::{Append, AppendError, LogIdentity, Position};
use events::testing::RECEIVED_AT;
use events::{Event, Micros, Record, RejectedEvent, wire};
use ingest::{Collector, Config, Limits};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A write key, a server key, a key of a project whose unit is the device, and one with 2 requests per second.
pub(crate) const WRITE: &str = "wk_test";
pub(crate) const SERVER: &str = "sk_test";
pub(crate) const DEVICE: &str = "wk_device";
pub(crate) const SLOW: &str = "wk_slow";
/// One with 10 events per second.
pub(crate) const FEW: &str = "wk_few";

/// Where no Postgres is.
const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/none";

/// A log that keeps what it was given in order, and can be told to fail or to be slow.
#[derive(Clone)]
pub(crate) struct TestLog {
    inner: MemoryLog,
    pub(crate) records: Arc<Mutex<Vec<Record>>>,
    pub(crate) fails: Arc<Mutex<Option<AppendError>>>,
    pub(crate) delay: Arc<Mutex<Duration>>,
}

impl TestLog {
    fn new() -> Self {
        TestLog { inner: MemoryLog::new(8), records: Arc::default(), fails: Arc::default(), delay: Arc::default() }
    }

    /// The events in the log, in the order of their appends.
    pub(crate) fn events(&self) -> Vec<Event> {
        let event = |entry| match entry {
            wire::Entry::Event(event) => Some(event),
            wire::Entry::Rejected(_) => None,
        };
        self.entries().into_iter().filter_map(event).collect()
    }

    /// The rejected events in the log.
    pub(crate) fn rejected(&self) -> Vec<RejectedEvent> {
        let rejected = |entry| match entry {
            wire::Entry::Rejected(rejected) => Some(rejected),
            wire::Entry::Event(_) => None,
        };
        self.entries().into_iter().filter_map(rejected).collect()
    }

    fn entries(&self) -> Vec<wire::Entry> {
        let records = self.records.lock().expect("nobody panicked");
        records.iter().map(|record| wire::read(record.bytes()).expect("a record of ours")).collect()
    }
}

#[async_trait]
impl Append for TestLog {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.inner)
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        let delay = *self.delay.lock().expect("nobody panicked");
        tokio::time::sleep(delay).await;
        if let Some(error) = self.fails.lock().expect("nobody panicked").clone() {
            return Err(error);
        }
        self.records.lock().expect("nobody panicked").extend(batch.iter().cloned());
        self.inner.append(batch).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.fails.lock().expect("nobody panicked").clone().map_or(Ok(()), Err)
    }
}

/// A log for a collector that is not meant to start.
pub(crate) fn memory() -> Arc<dyn Append> {
    Arc::new(MemoryLog::new(1))
}

/// A collector that received all its requests at [`RECEIVED_AT`].
pub(crate) struct Service {
    pub(crate) collector: Collector,
    pub(crate) log: TestLog,
    pub(crate) folder: TempDir,
}

impl Service {
    /// Starts one that knows the keys above, without Postgres.
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// The same with limits of its own.
    pub(crate) async fn with(limit: impl FnOnce(&mut Limits)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write_keys(&folder.path().join("keys.json"));
        Self::start_in(folder, NOWHERE, |config| limit(&mut config.limits)).await
    }

    /// Starts one that knows the keys above, with settings of its own.
    pub(crate) async fn start_with_keys(folder: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        write_keys(&folder.path().join("keys.json"));
        Self::start_in(folder, NOWHERE, change).await
    }

    /// Starts one to which no event is too old for its rows to be there.
    pub(crate) async fn without_horizon() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.json");
        write_keys(&file);
        let mut keys: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("readable")).expect("JSON");
        keys["horizon"] = serde_json::Value::Null;
        std::fs::write(&file, keys.to_string()).expect("written");
        Self::start_in(folder, NOWHERE, |_| ()).await
    }

    /// Starts one that knows the keys above, over a log of its own, which [`Service::log`] then is not.
    pub(crate) async fn start_over(log: Arc<dyn Append>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write_keys(&folder.path().join("keys.json"));
        Self::start_with(folder, NOWHERE, log, TestLog::new(), |_| ()).await
    }

    /// Starts one over a folder and a database.
    pub(crate) async fn start_in(folder: TempDir, database_url: &str, change: impl FnOnce(&mut Config)) -> Self {
        let log = TestLog::new();
        Self::start_with(folder, database_url, Arc::new(log.clone()), log, change).await
    }

    async fn start_with(
        folder: TempDir,
        database_url: &str,
        append: Arc<dyn Append>,
        log: TestLog,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config {
            collector: SocketAddr::from(([127, 0, 0, 1], 0)),
            database_url: database_url.to_owned(),
            data_dir: folder.path().to_owned(),
            ..Config::default()
        };
        config.limits.linger = Duration::from_millis(20);
        change(&mut config);
        let collector = Collector::start(config, append, Arc::new(|| RECEIVED_AT)).await.expect("starts");
        Service { collector, log, folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.collector.address()
    }

    /// Posts a native body with the write key.
    pub(crate) async fn post(&self, body: &str) -> Answer {
        self.post_with(WRITE, body).await
    }

    pub(crate) async fn post_with(&self, key: &str, body: &str) -> Answer {
        let authorization = format!("Bearer {key}");
        send(self.address(), "POST", "/v1/events", &[("Authorization", &authorization)], body.as_bytes()).await
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        send(self.address(), "GET", target, &[], b"").await
    }

    /// The value of a counter, by its name and labels as they stand on the page; 0 if it is not there.
    pub(crate) async fn counter(&self, series: &str) -> u64 {
        let page = self.get("/metrics").await.body;
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().expect("a whole number"))
    }
}

/// The horizon of the tests' keys: 2026-02-10T00:00:00Z.
pub(crate) const HORIZON: Micros = Micros(1_770_681_600_000_000);

fn write_keys(file: &Path) {
    let key = |text: &str, project: u8, change: serde_json::Value| {
        let mut key = serde_json::json!({
            "digest": sha256(text),
            "project_id": format!("00000000-0000-0000-0000-00000000000{project}"),
            "unit": if project == 2 { "device" } else { "user" },
            "conversion_events": ["Signed Up"],
            "server": false,
        });
        let members = key.as_object_mut().expect("an object");
        members.extend(change.as_object().expect("an object").clone());
        key
    };
    let none = serde_json::json!({});
    let stored = serde_json::json!({
        "v": 2,
        "keys": [
            key(WRITE, 1, none.clone()),
            key(SERVER, 1, serde_json::json!({ "server": true })),
            key(DEVICE, 2, none.clone()),
            key(SLOW, 1, serde_json::json!({ "requests_per_second": 2 })),
            key(FEW, 1, serde_json::json!({ "events_per_second": 10 })),
        ],
        "horizon": HORIZON.0,
    });
    std::fs::write(file, stored.to_string()).expect("written");
}

/// SHA-256 of a text, in hexadecimal digits.
pub(crate) fn sha256(text: &str) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(text.as_bytes()))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte")
}

/// What HTTP calls deflate.
pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte")
}

/// What some clients send under that name.
pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("a Vec takes every byte");
    encoder.finish().expect("a Vec takes every byte")
}

pub(crate) fn brotli(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    brotli::CompressorWriter::new(&mut out, 4096, 5, 22).write_all(bytes).expect("a Vec takes every byte");
    out
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    /// Reads one answer that ends with its connection.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let header = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let bytes = bytes[end + 4..].to_vec();
        Answer { status, headers: lines.map(header).collect(), body: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Accepted, duplicate, and the code and field of each rejection.
    pub(crate) fn native(&self) -> (u64, u64, Vec<(u64, String, String)>) {
        assert_eq!(self.status, 200, "{self:?}");
        let answer = self.json();
        let rejected = answer["rejected"].as_array().expect("a list").iter();
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let rejected =
            rejected.map(|one| (one["index"].as_u64().expect("an index"), text(&one["code"]), text(&one["field"]))).collect();
        (answer["accepted"].as_u64().expect("a count"), answer["duplicate"].as_u64().expect("a count"), rejected)
    }

    /// The code of a native or Segment error.
    pub(crate) fn code(&self) -> String {
        let answer = self.json();
        let code = answer["error"]["code"].as_str().or(answer["code"].as_str());
        code.unwrap_or_else(|| panic!("no code in {self:?}")).to_owned()
    }
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    Answer::parse(&raw(address, &[request.as_bytes(), body].concat()).await)
}

/// Sends bytes and returns all that comes back until the connection ends.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let mut answer = Vec::new();
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        // An answer before the end of the request breaks the writing, and is what counts.
        let _ = writer.write_all(bytes).await;
    };
    let reading = async {
        let _ = tokio::time::timeout(Duration::from_secs(20), reader.read_to_end(&mut answer)).await;
    };
    tokio::join!(writing, reading);
    answer
}
