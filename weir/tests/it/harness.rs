//! `weir up` as a test starts it: in a folder of its own, on free ports, gone with the test.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a start may take on a busy machine, making a cluster included.
const READY_MAX: Duration = Duration::from_secs(90);
/// How long an orderly end may take: ten seconds by contract, and some for a busy machine.
pub const END_MAX: Duration = Duration::from_secs(12);

/// The program under test.
pub fn weir() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("WEIR_") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A data folder. What a killed `weir up` left running on it is ended when it is dropped.
pub struct Folder(TempDir);

impl Folder {
    /// Makes an empty one, where the user that root's Postgres runs as can reach it.
    pub fn new() -> Self {
        let parent = if rustix::process::geteuid().is_root() { PathBuf::from("/tmp") } else { std::env::temp_dir() };
        Folder(tempfile::Builder::new().prefix("weir-it-").tempdir_in(parent).expect("a folder"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The id of its Postgres, if one has written it.
    pub fn postmaster(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.path().join("postgres/postmaster.pid")).ok()?;
        Pid::from_raw(text.lines().next()?.parse().ok()?)
    }

    /// What `weir up` wrote to stderr in all its runs on the folder.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("stderr")).unwrap_or_default()
    }

    /// What Postgres wrote.
    pub fn postgres_log(&self) -> String {
        std::fs::read_to_string(self.path().join("postgres.log")).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of weir up\n{}\n--- postgres.log\n{}", self.log(), self.postgres_log());
        }
        let file = std::fs::read_to_string(self.path().join("postgres/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = self.postmaster().filter(|pid| is_running(*pid)) {
            let _ = rustix::process::kill_process(pid, Signal::QUIT);
            until("postgres ends", Duration::from_secs(10), || !is_running(pid));
        }
        if let Some(socket) = file.lines().nth(4).filter(|line| line.contains("/weir-")) {
            let _ = std::fs::remove_dir_all(socket);
        }
    }
}

/// A running `weir up`.
pub struct Up {
    child: Child,
    lines: BTreeMap<String, String>,
    /// How long it took to be ready.
    pub ready_after: Duration,
}

impl Up {
    /// Starts it on a folder and waits until it is ready.
    pub fn start(folder: &Folder) -> Self {
        Self::start_with(folder, |_| {})
    }

    /// The same, with arguments or variables of the test.
    pub fn start_with(folder: &Folder, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = weir();
        command.arg("up").arg("--data").arg(folder.path());
        for service in ["--collector", "--query", "--aggregator"] {
            command.args([service, "127.0.0.1:0"]);
        }
        change(&mut command);
        let log = File::options().create(true).append(true).open(folder.path().join("stderr")).expect("a file");
        Self::spawned(command.stdout(Stdio::piped()).stderr(log))
    }

    /// Starts a command that prints the lines of `weir up`.
    pub fn spawned(command: &mut Command) -> Self {
        Self::spawned_with_stdin(command).0
    }

    /// The same, for a command whose stdin is piped.
    pub fn spawned_with_stdin(command: &mut Command) -> (Self, Option<ChildStdin>) {
        let begun = Instant::now();
        let mut child = command.spawn().expect("weir starts");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("was piped");
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The test may have seen enough.
                let _ = sender.send(line);
            }
        });
        // From here on its drop ends the child.
        let mut up = Up { child, lines: BTreeMap::new(), ready_after: Duration::ZERO };
        loop {
            let left = READY_MAX.saturating_sub(begun.elapsed());
            let line = receiver.recv_timeout(left).unwrap_or_else(|_| panic!("weir up is not ready: {:?}", up.child.try_wait()));
            match line.trim_end().split_once(' ') {
                Some((name, value)) => up.lines.insert(name.to_owned(), value.to_owned()),
                None if line.trim_end() == "ready" => break,
                None => panic!("an unexpected line: {line:?}"),
            };
        }
        up.ready_after = begun.elapsed();
        (up, stdin)
    }

    /// The value of a line: `collector`, `query`, `aggregator`, `postgres`, `write_key`, `read_token`, `server_key`.
    pub fn line(&self, name: &str) -> &str {
        self.lines.get(name).unwrap_or_else(|| panic!("no line {name}: {:?}", self.lines))
    }

    /// All lines before `ready`.
    pub fn lines(&self) -> &BTreeMap<String, String> {
        &self.lines
    }

    /// The process' id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).expect("a process has an id")
    }

    /// The ids of its children of one name.
    pub fn children(&self, name: &str) -> Vec<Pid> {
        children(self.pid()).into_iter().filter(|pid| command_of(*pid).contains(name)).collect()
    }

    /// Ends it in good order by a signal, in bounded time.
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        rustix::process::kill_process(self.pid(), signal).expect("it runs");
        self.wait()
    }

    /// Waits for its end, in bounded time.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("weir up ends", END_MAX, || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Kills it, as a power cut or the kernel would; its Postgres stays.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child of ours");
    }

    /// Posts native events and returns the answer's status and body.
    pub async fn post_events(&self, events: Value) -> (u16, Value) {
        let url = format!("{}/v1/events", self.line("collector"));
        send(Method::POST, &url, self.line("write_key"), Some(json!({ "events": events }))).await.expect("the collector answers")
    }

    /// Posts events and checks that all of them were accepted.
    pub async fn accepted(&self, events: Vec<Value>) {
        let sent = events.len();
        let (status, answer) = self.post_events(Value::Array(events)).await;
        assert_eq!((status, &answer["accepted"]), (200, &json!(sent)), "{answer}");
    }

    /// Asks in SQL; the rows, or what the service answered instead.
    pub async fn sql(&self, sql: &str) -> Result<Vec<Vec<Value>>, String> {
        let url = format!("{}/v1/sql", self.line("query"));
        let (status, answer) = send(Method::POST, &url, self.line("read_token"), Some(json!({ "sql": sql }))).await?;
        if status != 200 {
            return Err(format!("{status} {answer}"));
        }
        serde_json::from_value(answer["rows"].clone()).map_err(|error| format!("{error}: {answer}"))
    }

    /// Waits until the query service sees this many events, and checks that there are no more.
    pub async fn until_stored(&self, expected: u64) {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let found = self.sql("SELECT count(*) FROM events").await;
            let count = found.as_ref().ok().and_then(|rows| rows[0][0].as_u64().or_else(|| rows[0][0].as_str()?.parse().ok()));
            match count {
                Some(count) if count == expected => return,
                Some(count) if count > expected => panic!("{count} events are stored, {expected} were sent"),
                _ => assert!(Instant::now() < deadline, "{expected} events are not stored: {found:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(self.pid(), Signal::TERM);
            let deadline = Instant::now() + END_MAX;
            while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `count` conversions of as many users, each with an id of its own.
pub fn purchases(count: usize) -> Vec<Value> {
    let now = events::Micros::now().to_string();
    let event = |_| {
        let id = uuid::Uuid::new_v4().to_string();
        json!({"type": "conversion", "event_id": id, "user_id": format!("user-{id}"), "timestamp": now,
               "name": "purchase", "value": "19.90", "currency": "EUR"})
    };
    (0..count).map(event).collect()
}

/// Sends a request and returns the answer's status and JSON; null where the body is none.
/// # Errors
/// If there is no answer.
pub async fn send(method: Method, url: &str, token: &str, body: Option<Value>) -> Result<(u16, Value), String> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(Duration::from_secs(30), client.request(request));
    let answer = answer.await.map_err(|_| "no answer".to_owned())?.map_err(|error| format!("{error:?}"))?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Waits for something; panics if it does not come about.
pub fn until(what: &str, max: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + max;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {} s: {what}", max.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process runs; one that ended and waits to be collected does not.
pub fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// The ids of a process' children.
pub fn children(parent: Pid) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").expect("a Linux").flatten();
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let parent = parent.as_raw_pid().to_string();
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(parent.as_str())
    })
    .collect()
}

fn command_of(pid: Pid) -> String {
    let bytes = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
