//! `weir up` and its children, through starts, ends and deaths.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{END_MAX, Folder, Up, children, is_running, purchases, send, until, weir};
use crate::support::run;

/// A start on a folder that has been used must be quick.
const RESTART_MAX: Duration = Duration::from_secs(10);

#[tokio::test]
async fn it_says_where_it_is_and_a_new_start_finds_all_again() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let names: Vec<&str> = up.lines().keys().map(String::as_str).collect();
    assert_eq!(names, ["aggregator", "collector", "postgres", "query", "read_token", "server_key", "write_key"]);
    let file = folder.path().join("weir.json");
    assert_eq!(std::fs::metadata(&file).expect("is there").permissions().mode() & 0o777, 0o600);
    let written: Value = serde_json::from_slice(&std::fs::read(&file).expect("reads")).expect("is JSON");
    for (name, value) in up.lines() {
        assert_eq!(written[name], Value::String(value.clone()), "{name}");
    }
    let keys = |up: &Up| ["write_key", "read_token", "server_key"].map(|name| up.line(name).to_owned());
    let first_keys = keys(&up);
    for (key, prefix) in first_keys.iter().zip(["wk_", "rt_", "sk_"]) {
        assert_eq!(key.strip_prefix(prefix).map(str::len), Some(43), "{key}");
    }

    // What computes over batches of 20,000 events does so on none of the threads that take requests.
    let threads = std::fs::read_dir(format!("/proc/{}/task", up.pid().as_raw_pid())).expect("its threads").flatten();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    assert!(names.filter(|name| name.trim_end() == "weir-aggregator").count() >= 3);

    // Malloc keeps memory together, as long as nobody has chosen otherwise; Postgres' is left as it is.
    let environment = |process: Pid| {
        let environment = std::fs::read(format!("/proc/{}/environ", process.as_raw_pid())).expect("its environment");
        String::from_utf8_lossy(&environment).into_owned()
    };
    let settings = ["MALLOC_ARENA_MAX=", "MALLOC_MMAP_THRESHOLD_="];
    let has = |process, values: [&str; 2]| {
        let found = environment(process);
        settings.iter().zip(values).all(|(name, value)| found.split('\0').any(|one| one == format!("{name}{value}")))
    };
    assert!(has(up.pid(), ["2", "1048576"]));
    let query = up.children("query");
    assert!(!query.is_empty() && query.iter().all(|process| has(*process, ["2", "16777216"])), "{query:?}");
    let postgres = environment(folder.postmaster().expect("Postgres runs"));
    assert!(!settings.iter().any(|name| postgres.contains(name)));

    up.accepted(purchases(20)).await;
    up.until_stored(20).await;
    let ended = Instant::now();
    assert!(up.end(Signal::TERM).success());
    assert!(ended.elapsed() < END_MAX);
    assert_eq!(folder.postmaster(), None, "postgres has ended too");

    let up = Up::start(&folder);
    assert!(up.ready_after < RESTART_MAX, "{:?}", up.ready_after);
    assert_eq!(keys(&up), first_keys);
    up.accepted(purchases(1)).await;
    up.until_stored(21).await;
    assert!(up.end(Signal::INT).success());
}

/// The log's folder was deleted and the database kept: what the log still held would be skipped, so a new log is refused until an
/// operator says that the old one is gone.
#[tokio::test]
async fn a_log_that_is_gone_is_not_replaced_unasked() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    up.accepted(purchases(20)).await;
    assert!(up.end(Signal::TERM).success());
    std::fs::remove_dir_all(folder.path().join("log")).expect("is there");
    let mut refused = weir();
    refused.args(["up", "--collector", "127.0.0.1:0", "--query", "127.0.0.1:0", "--aggregator", "127.0.0.1:0", "--data"]);
    refused.arg(folder.path());
    let ended = run(refused, END_MAX * 3).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("--adopt-log"), "{said}");

    let up = Up::start_with(&folder, |command| {
        command.arg("--adopt-log");
    });
    up.accepted(purchases(1)).await;
    up.until_stored(21).await;
    assert!(up.end(Signal::TERM).success());
}

#[tokio::test]
async fn an_orderly_end_stores_all_that_was_accepted() {
    let database = migrations::testing::TestDatabase::create().await;
    let folder = Folder::new();
    let up = Up::start_with(&folder, |command| {
        command.env("DATABASE_URL", &database.url);
    });
    assert_eq!(up.line("postgres"), database.url);
    assert!(!folder.path().join("postgres").exists(), "a database that is given is used");
    for _ in 0..5 {
        up.accepted(purchases(2_000)).await;
    }
    assert!(up.end(Signal::TERM).success());
    let mut connection = database.connect().await;
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM conversions").fetch_one(&mut connection).await.expect("counts");
    assert_eq!(stored, 10_000);
}

#[test]
fn a_second_one_on_the_folder_is_refused() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let second = weir().args(["up", "--collector", "127.0.0.1:0"]).arg("--data").arg(folder.path()).output().expect("starts");
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    let expected = format!("another weir has this data folder, process {}", up.pid().as_raw_pid());
    assert!(said.contains(&expected), "{said}");
    assert!(second.stdout.is_empty());
    assert!(up.end(Signal::TERM).success(), "the first one goes on undisturbed");
}

#[tokio::test]
async fn a_killed_one_loses_nothing_and_its_postgres_is_adopted() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let query = up.children(" query ");
    assert_eq!(query.len(), 1);
    for _ in 0..3 {
        up.accepted(purchases(1_000)).await;
    }
    let (postgres, url) = (folder.postmaster().expect("runs"), up.line("postgres").to_owned());
    up.kill();
    until("the query service ends", Duration::from_secs(10), || !is_running(query[0]));
    assert!(is_running(postgres), "postgres survives");

    let up = Up::start(&folder);
    assert!(up.ready_after < RESTART_MAX, "{:?}", up.ready_after);
    assert_eq!((folder.postmaster(), up.line("postgres")), (Some(postgres), url.as_str()), "{}", folder.log());
    up.until_stored(3_000).await;
    assert!(up.end(Signal::TERM).success());
    assert!(!is_running(postgres), "an adopted one is ended too");
}

/// The start before this one was killed as it had just begun a Postgres, whose file does not say yet where its socket is.
#[tokio::test]
async fn a_postgres_that_has_just_begun_is_waited_for_and_adopted() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    up.accepted(purchases(10)).await;
    let postgres = folder.postmaster().expect("runs");
    up.kill();
    let file = folder.path().join("postgres/postmaster.pid");
    let whole = std::fs::read_to_string(&file).expect("is there");
    let begun: String = whole.split_inclusive('\n').take(2).collect();
    std::fs::write(&file, begun).expect("writes");
    let going_on = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        std::fs::write(&file, whole).expect("writes");
    });
    let up = Up::start(&folder);
    going_on.join().expect("no panic");
    assert_eq!(folder.postmaster(), Some(postgres), "{}", folder.log());
    up.until_stored(10).await;
    assert!(up.end(Signal::TERM).success());
}

#[tokio::test]
async fn after_the_death_of_all_a_stale_pid_file_is_no_obstacle() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    up.accepted(purchases(500)).await;
    let postgres = folder.postmaster().expect("runs");
    let mut all = children(postgres);
    all.push(postgres);
    all.extend(up.children(" query "));
    // The session's own parent first, so that nothing is started again meanwhile.
    up.kill();
    for pid in &all {
        let _ = kill_process(*pid, Signal::KILL);
    }
    until("all are dead", Duration::from_secs(10), || !all.iter().any(|pid| is_running(*pid)));
    assert_eq!(folder.postmaster(), Some(postgres), "the file is stale");

    let up = Up::start(&folder);
    assert_ne!(folder.postmaster(), Some(postgres));
    up.until_stored(500).await;
    assert!(up.end(Signal::TERM).success());
}

#[tokio::test]
async fn with_postgres_dead_events_are_taken_and_it_comes_back() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    up.accepted(purchases(10)).await;
    up.until_stored(10).await;
    let postgres = folder.postmaster().expect("runs");
    kill_process(postgres, Signal::KILL).expect("runs");
    for _ in 0..10 {
        up.accepted(purchases(10)).await;
    }
    let url = up.line("postgres").to_owned();
    up.until_stored(110).await;
    assert_ne!(folder.postmaster().expect("runs again"), postgres);
    assert_eq!(up.line("postgres"), url);
    assert!(up.end(Signal::TERM).success());
}

#[tokio::test]
async fn a_dead_query_service_comes_back_at_its_address() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let query = up.children(" query ");
    kill_process(query[0], Signal::KILL).expect("runs");
    up.accepted(purchases(7)).await;
    up.until_stored(7).await;
    assert_ne!(up.children(" query "), query);
    assert!(up.end(Signal::TERM).success());
}

#[tokio::test]
async fn ctrl_c_in_a_terminal_reaches_weir_only() {
    use std::io::Write;
    let folder = Folder::new();
    // A terminal of its own, whose foreground process group gets the signal, children of the same group included.
    let program = weir().get_program().to_string_lossy().into_owned();
    let stderr = folder.path().join("stderr");
    let command = format!(
        "exec {program} up --data {} --collector 127.0.0.1:0 --query 127.0.0.1:0 --aggregator 127.0.0.1:0 2>{}",
        folder.path().display(),
        stderr.display()
    );
    let mut terminal = std::process::Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]).env("SHELL", "/bin/sh");
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let (mut up, keyboard) = Up::spawned_with_stdin(&mut terminal);
    let mut keyboard = keyboard.expect("was piped");
    up.accepted(purchases(2_000)).await;
    keyboard.write_all(b"\x03").expect("the terminal takes keys");
    let status = up.wait();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", folder.log());
    assert_eq!(folder.postmaster(), None);
    // Both write UTC; the signal itself would have reached Postgres before the collector had even stopped.
    let drained = time_of(&folder.log(), "the query service and the database are next");
    let postgres_asked = time_of(&folder.postgres_log(), "received fast shutdown request");
    assert!(drained <= postgres_asked, "{drained} {postgres_asked}");
    let up = Up::start(&folder);
    up.until_stored(2_000).await;
}

/// The time of the only line with a text, to the millisecond.
fn time_of(log: &str, text: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(text)).collect();
    assert_eq!(lines.len(), 1, "{text:?} in:\n{log}");
    lines[0].replacen('T', " ", 1).chars().take("2026-01-01 12:00:00.000".len()).collect()
}

/// Nothing is made for a start that cannot succeed, and the error names the setting once.
#[test]
fn a_taken_address_is_told_before_anything_is_made() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("has one").to_string();
    for (flag, variable) in [("--collector", "COLLECTOR"), ("--query", "QUERY"), ("--aggregator", "AGGREGATOR")] {
        let mut refused = weir();
        refused.arg("up").arg("--data").arg(folder.path());
        for service in ["--collector", "--query", "--aggregator"] {
            refused.args([service, if service == flag { &address } else { "127.0.0.1:0" }]);
        }
        let refused = refused.output().expect("starts");
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr);
        let told = format!(
            "weir: {flag} (WEIR_{variable}) {address} cannot be listened on; choose another address, or end what listens there: "
        );
        assert!(said.contains(&told) && said.matches("Address already in use").count() == 1, "{said}");
        assert!(!folder.path().join("weir.json").exists() && !folder.path().join("postgres").exists(), "nothing was made");
    }
}

#[tokio::test]
async fn keys_of_the_environment_are_taken_on_any_start() {
    let folder = Folder::new();
    let first = Up::start(&folder);
    let first_key = first.line("write_key").to_owned();
    assert!(first.end(Signal::TERM).success());
    let up = Up::start_with(&folder, |command| {
        command.env("WEIR_WRITE_KEY", "key-of-the-test").env("WEIR_READ_TOKEN", "token-of-the-test");
    });
    assert_eq!((up.line("write_key"), up.line("read_token")), ("key-of-the-test", "token-of-the-test"));
    up.accepted(purchases(3)).await;
    up.until_stored(3).await;
    let url = format!("{}/v1/events", up.line("collector"));
    let body = serde_json::json!({ "events": purchases(1) });
    let (status, _) = send(hyper::Method::POST, &url, &first_key, Some(body)).await.expect("answers");
    assert_eq!(status, 200, "the former key goes on working");
    assert!(up.end(Signal::TERM).success());

    let mut command = weir();
    command.arg("up");
    for service in ["--collector", "--query", "--aggregator"] {
        command.args([service, "127.0.0.1:0"]);
    }
    let refused = command.arg("--data").arg(folder.path()).env("WEIR_WRITE_KEY", "a b").output().expect("starts");
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("WEIR_WRITE_KEY: 3 bytes; 8 to 512 are accepted"), "{said}");
    assert_eq!(folder.postmaster(), None, "what had started is ended");
}

#[test]
fn a_folder_that_the_database_cannot_reach_is_refused_with_a_way_out() {
    if !rustix::process::geteuid().is_root() {
        // Whoever is not root runs the database as himself.
        return;
    }
    let outer = Folder::new();
    let closed = outer.path().join("closed");
    std::fs::create_dir(&closed).expect("makes a folder");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("closes it");
    std::fs::set_permissions(outer.path(), PermissionsExt::from_mode(0o755)).expect("opens it");
    let refused = weir().arg("up").arg("--data").arg(closed.join("data")).output().expect("starts");
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&format!("and {} is closed to that user", closed.display())), "{said}");
    assert!(said.contains("--data, such as /var/lib/weir"), "{said}");
}

#[tokio::test]
async fn services_run_alone_on_a_database() {
    use std::io::{BufRead, BufReader};
    let database = migrations::testing::TestDatabase::create().await;
    let migrated = weir().args(["migrate", "--database-url", &database.url]).output().expect("starts");
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));

    let mut query = weir();
    query.args(["query", "--until-stdin-closes", "--query", "127.0.0.1:0", "--database-url", &database.url]);
    let mut query = query.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(query.stdout.take().expect("was piped")).read_line(&mut line).expect("says where it is");
    let url = line.trim_end().strip_prefix("query ").unwrap_or_else(|| panic!("{line:?}"));
    let (status, _) = send(hyper::Method::GET, &format!("{url}/readyz"), "", None).await.expect("answers");
    assert_eq!(status, 200);
    drop(query.stdin.take());
    let mut ended = None;
    until("the query service ends", END_MAX, || {
        ended = query.try_wait().expect("a child of ours");
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

#[test]
fn the_demo_shows_results_and_ends() {
    let folder = Folder::new();
    let output = weir().args(["demo", "--users", "2000", "--exit"]).arg("--data").arg(folder.path()).output().expect("starts");
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    // What was found, what follows, rows of the funnel, and the addresses; on one screen, with three lines to type next.
    let expected = [
        "experiment checkout_button: 2,000 users saw control or b",
        "\n  conversion_rate ",
        "\n  decision: ",
        "1  visit     2,000",
        "4  purchase",
        "\nwrite_key wk_",
    ];
    for expected in expected {
        assert!(out.contains(expected), "{expected} is not in:\n{out}");
    }
    assert!(!out.contains("purchase.conversion_rate"), "all conversions are purchases, and are shown once:\n{out}");
    assert!(out.lines().count() <= 40, "more than a screen:\n{out}");
    let next: Vec<&str> = out.lines().skip_while(|line| !line.starts_with("Type next")).skip(1).collect();
    let commands = [" results checkout_button ", " sql ", "curl http"];
    assert!(next.len() == 3 && next.iter().zip(commands).all(|(line, command)| line.contains(command)), "{next:#?}");
    assert_eq!(folder.postmaster(), None);
}
