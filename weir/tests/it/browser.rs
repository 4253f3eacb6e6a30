//! A page with the pixel, in a real browser.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Folder, Up};
use crate::support::{Database, program, run};

pub(crate) const PERSONS_AGENT: &str =
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36";

/// Serves one page to whoever asks, as long as the process lives; returns its URL.
pub(crate) fn serve(body: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("is bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let _ = head.count();
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            // A browser that does not want the rest is free to go.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        }
    });
    format!("http://{address}/")
}

/// Opens a page in a browser that was never used, and returns the page as it is when all has been loaded.
async fn open(url: &str, agent: Option<&str>) -> String {
    open_in(tempfile::tempdir().expect("a folder").path(), url, agent).await
}

/// Opens a page in the browser of a profile, and returns the page as it is when all has been loaded.
pub(crate) async fn open_in(profile: &Path, url: &str, agent: Option<&str>) -> String {
    open_for(Duration::from_secs(5), profile, url, agent).await
}

/// The same, after a time by the page's own clock, which runs as fast as nothing happens.
pub(crate) async fn open_for(time: Duration, profile: &Path, url: &str, agent: Option<&str>) -> String {
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    chromium.args(["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]);
    chromium.arg(format!("--user-data-dir={}", profile.display()));
    chromium.args(agent.map(|agent| format!("--user-agent={agent}")));
    chromium.arg(format!("--virtual-time-budget={}", time.as_millis())).args(["--dump-dom", url]);
    let ended = run(chromium, Duration::from_secs(90)).await;
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_with_the_pixel_is_an_impression() {
    if program("chromium").is_none() {
        eprintln!("skipped: chromium is not installed");
        return;
    }
    let folder = Folder::new();
    let up = Up::start(&folder);
    let mut database = Database::connect(up.line("postgres")).await;
    let pixel = format!("{}/v1/pixel.gif?key={}&amp;type=impression", up.line("collector"), up.line("write_key"));

    let image =
        |user: &str| format!(r#"<!doctype html><img src="{pixel}&amp;user_id={user}&amp;experiment=page&amp;variant=b">"#);
    open(&serve(image("person")), Some(PERSONS_AGENT)).await;
    open(&serve(image("machine")), None).await;
    // Whoever has no id gets a cookie with the first image, and is the same one with the second.
    let script = r#"<!doctype html><title>wait</title><img id="one"><img id="two"><script>
        two.onload = () => document.title = "both are there";
        one.onload = () => two.src = one.src + "&second=1";
        one.src = "PIXEL";
        </script>"#;
    let script = script.replace("PIXEL", &format!("{}&experiment=page&variant=c", pixel.replace("&amp;", "&")));
    let shown = open(&serve(script), Some(PERSONS_AGENT)).await;
    assert!(shown.contains("<title>both are there</title>"), "{shown}");

    database.until("SELECT count(*) FROM impressions", 4, Duration::from_secs(20)).await;
    let named = "SELECT i.external_id, i.is_bot, i.untimed, v.name, e.name, i.device_type \
                 FROM impressions i JOIN experiments e ON e.id = i.experiment_id JOIN variants v ON v.id = i.variant_id \
                 WHERE i.external_id IN ('person', 'machine') ORDER BY i.external_id DESC";
    type Row = (String, bool, bool, String, String, Option<String>);
    let rows: Vec<Row> = database.rows(named).await;
    let row = |user: &str, is_bot, device: Option<&str>| -> Row {
        (user.to_owned(), is_bot, true, "b".to_owned(), "page".to_owned(), device.map(str::to_owned))
    };
    assert_eq!(rows, [row("person", false, Some("desktop")), row("machine", true, None)]);
    let nameless = "SELECT count(DISTINCT user_id) FROM impressions WHERE user_id NOT IN \
                    (SELECT user_id FROM impressions WHERE external_id IN ('person', 'machine'))";
    assert_eq!(database.number(nameless).await, 1);

    // A machine takes no part; the others do, each once.
    let participation = "SELECT v.name, p.total_impressions FROM user_experiment_participation p \
                         JOIN variants v ON v.id = p.variant_id ORDER BY 1";
    let rows: Vec<(String, i64)> = database.rows(participation).await;
    assert_eq!(rows, [("b".to_owned(), 1), ("c".to_owned(), 2)]);
}
