//! Pages with our own script, in a real browser.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::browser::{PERSONS_AGENT, open_in, serve};
use crate::harness::{Folder, Up};
use crate::sdk::install::cache;
use crate::support::{Database, program, run};

fn has_browser() -> bool {
    let is_there = program("chromium").is_some();
    if !is_there {
        eprintln!("skipped: chromium is not installed");
    }
    is_there
}

/// A page that loads the script and then runs what is given.
fn page(script: &str, collector: &str, key: &str, attributes: &str, then: &str) -> String {
    format!(
        r#"<!doctype html><title>wait</title><script src="{script}/weir.js" data-url="{collector}" data-key="{key}" {attributes}></script>
        <script>{then}</script>"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_page_sends_is_of_one_visitor_from_the_first_event_on() {
    if !has_browser() {
        return;
    }
    let folder = Folder::new();
    let up = Up::start(&folder);
    let (collector, key) = (up.line("collector"), up.line("write_key"));
    let profile = tempfile::tempdir().expect("a folder");
    // Two images of a first visit at the same time, and calls made before the script is there.
    let pixel = format!("{collector}/v1/pixel.gif?key={key}&type=engagement&name=pixel&n=");
    let then = format!(
        r#"weir.expose("page", "b"); weir.expose("page", "b");
        weir.track("opened", {{depth: 3}});
        weir.convert("purchase", {{value: "19.90", currency: "EUR", event_id: "7f3c9c5e-4f0e-4a60-9d5e-3a1f6c1f0a11", items: 2}});
        for (const n of [1, 2]) new Image().src = "{pixel}" + n;
        weir.flush().then(() => document.title = "sent");"#
    );
    let body = format!(
        r#"<!doctype html><script>weir = [["track", "early"]]</script>{}"#,
        page(collector, collector, key, "", &then).replace("<!doctype html>", "")
    );
    let shown = open_in(profile.path(), &serve(body), Some(PERSONS_AGENT)).await;
    assert!(shown.contains("<title>sent</title>"), "{shown}");

    let mut database = Database::connect(up.line("postgres")).await;
    let all = "SELECT (SELECT count(*) FROM impressions) + (SELECT count(*) FROM conversions) + (SELECT count(*) FROM engagement_events)";
    database.until(all, 6, Duration::from_secs(20)).await;
    let visitors =
        "SELECT count(DISTINCT user_id) FROM (SELECT user_id FROM impressions UNION ALL SELECT user_id FROM conversions
                    UNION ALL SELECT user_id FROM engagement_events) e";
    assert_eq!(database.number(visitors).await, 1);
    let conversion = "SELECT id, conversion_value::text, currency, metadata ->> 'items' FROM conversions";
    let rows: Vec<(Uuid, String, String, String)> = database.rows(conversion).await;
    let id = Uuid::try_parse("7f3c9c5e-4f0e-4a60-9d5e-3a1f6c1f0a11").expect("an id");
    assert_eq!(rows, [(id, "19.900000".to_owned(), "EUR".to_owned(), "2".to_owned())]);
    let names = "SELECT string_agg(event_type, ' ' ORDER BY event_type) FROM engagement_events";
    assert_eq!(database.text(names).await, "early opened pixel pixel");
    let attributed = "SELECT count(*) FROM conversion_attribution";
    database.until(attributed, 1, Duration::from_secs(20)).await;

    // Who comes again is the same.
    let again = page(collector, collector, key, "", r#"weir.track("again"); weir.flush();"#);
    open_in(profile.path(), &serve(again), Some(PERSONS_AGENT)).await;
    database.until(all, 7, Duration::from_secs(20)).await;
    assert_eq!(database.number(visitors).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_sent_comes_with_the_next_page_once() {
    if !has_browser() {
        return;
    }
    let folder = Folder::new();
    let up = Up::start(&folder);
    let (collector, key) = (up.line("collector"), up.line("write_key"));
    let profile = tempfile::tempdir().expect("a folder");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let site = site();
    site.show(page(collector, &format!("http://{nobody}"), key, "", r#"weir.track("offline"); weir.flush();"#));
    open_in(profile.path(), &site.url, Some(PERSONS_AGENT)).await;
    let mut database = Database::connect(up.line("postgres")).await;
    assert_eq!(database.number("SELECT count(*) FROM engagement_events").await, 0);

    site.show(page(collector, collector, key, "", r#"weir.track("online");"#));
    for _ in 0..2 {
        open_in(profile.path(), &site.url, Some(PERSONS_AGENT)).await;
    }
    let names = "SELECT count(*) FROM engagement_events";
    database.until(names, 3, Duration::from_secs(20)).await;
    assert_eq!(database.number("SELECT count(*) FROM engagement_events WHERE event_type = 'offline'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_comes_again_with_the_same_ids_and_a_bad_one_does_not() {
    if !has_browser() {
        return;
    }
    let folder = Folder::new();
    let up = Up::start(&folder); // the script's own server
    let ids = |body: &str| {
        let body: Value = serde_json::from_str(body).expect("JSON");
        let events = body["events"].as_array().expect("events").clone();
        events.iter().map(|event| event["event_id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    for (first, then_repeated) in
        [("503 Service Unavailable\r\nRetry-After: 1", true), ("429 Too Many Requests", true), ("400 Bad Request", false)]
    {
        let site = site();
        let bodies = site.collect(vec![first.to_owned(), "200 OK".to_owned()]);
        site.show(page(up.line("collector"), &site.url, "k", "", r#"weir.track("one"); weir.track("two"); weir.flush();"#));
        let profile = tempfile::tempdir().expect("a folder");
        open_in(profile.path(), &site.url, Some(PERSONS_AGENT)).await;
        let bodies = bodies.lock().expect("nobody panicked").clone();
        assert_eq!(ids(&bodies[0]).len(), 2, "{bodies:?}");
        assert_eq!(bodies.len(), if then_repeated { 2 } else { 1 }, "{first}: {bodies:?}");
        assert!(bodies.iter().all(|body| ids(body) == ids(&bodies[0])), "{bodies:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_consent_nothing_is_written_and_nothing_is_sent() {
    if !has_browser() {
        return;
    }
    let folder = Folder::new();
    let up = Up::start(&folder);
    let profile = tempfile::tempdir().expect("a folder");
    let site = site();
    let bodies = site.collect(Vec::new());
    let trace = r#"document.title = [localStorage.length, document.cookie.length, weir.id()].join();"#;
    let waits = format!(r#"weir.track("early"); weir.flush().then(() => {{ {trace} }});"#);
    site.show(page(up.line("collector"), &site.url, "k", r#"data-consent="required""#, &waits));
    let shown = open_in(profile.path(), &site.url, Some(PERSONS_AGENT)).await;
    assert!(shown.contains("<title>0,0,</title>"), "{shown}");
    assert!(bodies.lock().expect("nobody panicked").is_empty());

    // A browser that objects is as good as one that was not asked.
    let objects = r#"<!doctype html><script>Object.defineProperty(navigator, "globalPrivacyControl", { value: true })</script>"#;
    site.show(format!("{objects}{}", page(up.line("collector"), &site.url, "k", "", &waits)));
    let shown = open_in(profile.path(), &site.url, Some(PERSONS_AGENT)).await;
    assert!(shown.contains("<title>0,0,</title>"), "{shown}");
    assert!(bodies.lock().expect("nobody panicked").is_empty());

    // With it, what waited goes; withdrawn, all traces go but the decision.
    let given = r#"weir.track("early"); weir.consent(true); weir.flush();"#;
    site.show(page(up.line("collector"), &site.url, "k", r#"data-consent="required""#, given));
    open_in(profile.path(), &site.url, Some(PERSONS_AGENT)).await;
    assert_eq!(bodies.lock().expect("nobody panicked").len(), 1);
    let withdrawn = format!(r#"weir.consent(false); weir.track("late"); weir.flush().then(() => {{ {trace} }});"#);
    site.show(page(up.line("collector"), &site.url, "k", "", &withdrawn));
    let shown = open_in(profile.path(), &site.url, Some(PERSONS_AGENT)).await;
    assert!(shown.contains("<title>1,0,</title>"), "{shown}");
    assert_eq!(bodies.lock().expect("nobody panicked").len(), 1);
}

/// Returns the bundler's program, of the version that the package names; none where it cannot be had.
async fn esbuild(version: &str) -> Option<PathBuf> {
    let npm = program("npm")?;
    let folder = cache()?.join(format!("esbuild-{version}"));
    let bundler = folder.join("node_modules/.bin/esbuild");
    if !bundler.exists() {
        std::fs::create_dir_all(&folder).expect("a folder for the bundler");
        let mut command = Command::new(npm);
        command.args(["install", "--no-audit", "--no-fund", "--no-update-notifier", "--prefix"]).arg(&folder);
        command.arg(format!("esbuild@{version}"));
        run(command, Duration::from_secs(180)).await;
    }
    bundler.exists().then_some(bundler)
}

#[tokio::test]
async fn the_script_is_what_its_sources_build() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/js");
    let read = |file: &Path| std::fs::read_to_string(file).expect("a text");
    let package: Value = serde_json::from_str(&read(&sources.join("package.json"))).expect("JSON");
    let Some(bundler) = esbuild(package["devDependencies"]["esbuild"].as_str().expect("a version")).await else {
        eprintln!("skipped: npm is not there, or has no esbuild");
        return;
    };
    let built = tempfile::tempdir().expect("a folder");
    let built = built.path().join("weir.min.js");
    let script = package["scripts"]["build"].as_str().expect("a script");
    let mut command = Command::new(bundler);
    command.args(script.split(' ').skip(1).filter(|argument| !argument.starts_with("--outfile")));
    command.arg(format!("--outfile={}", built.display())).current_dir(&sources);
    let ended = run(command, Duration::from_secs(60)).await;
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(read(&built), read(&sources.join("weir.min.js")), "run `npm run build` in sdk/js");
}

/// A server whose page changes, so that pages of one origin follow each other; and a collector, if it is asked to be one.
struct Site {
    url: String,
    shown: Arc<Mutex<String>>,
    /// Answers that come first; 200 after them.
    answers: Arc<Mutex<Vec<String>>>,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn show(&self, page: String) {
        *self.shown.lock().expect("nobody panicked") = page;
    }

    /// Answers posts so, and returns their bodies as they come.
    fn collect(&self, answers: Vec<String>) -> Arc<Mutex<Vec<String>>> {
        *self.answers.lock().expect("nobody panicked") = answers;
        Arc::clone(&self.bodies)
    }
}

fn site() -> Site {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("is bound"));
    let site = Site { url, shown: Arc::default(), answers: Arc::default(), bodies: Arc::default() };
    let (shown, answers, bodies) = (Arc::clone(&site.shown), Arc::clone(&site.answers), Arc::clone(&site.bodies));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let head: Vec<String> = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let length = head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            let _ = reader.read_exact(&mut body);
            let is_post = head.first().is_some_and(|line| line.starts_with("POST /v1/events?key="));
            let (status, kind, text) = if is_post {
                bodies.lock().expect("nobody panicked").push(String::from_utf8(body).expect("UTF-8"));
                let mut answers = answers.lock().expect("nobody panicked");
                let status = if answers.is_empty() { "200 OK".to_owned() } else { answers.remove(0) };
                (status, "application/json", "{}".to_owned())
            } else {
                ("200 OK".to_owned(), "text/html", shown.lock().expect("nobody panicked").clone())
            };
            let _ = stream.write_all(
                format!(
                    "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                )
                .as_bytes(),
            );
        }
    });
    site
}
