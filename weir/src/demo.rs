//! `weir demo`: everything, with simulated traffic through the collector, and what can be asked then.
//!
//! The traffic takes the way of all traffic: HTTP, log, aggregator, Postgres. The truth is known (10 % buy, 12 % with the
//! other button), so the results can be judged.

mod traffic;

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use events::Micros;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cli::Globals;
use crate::client::Client;
use crate::commands;
use crate::data::{self, DataFolder, WeirJson};
use crate::postgres;
use crate::signals::EndSignals;
use crate::up::{Running, UpArgs};

/// Events of one request; the collector takes 2,500.
const BATCH_EVENTS: usize = 1_000;
/// Requests on their way at one time.
const REQUESTS_MAX: usize = 8;
/// How often a request that failed is sent again; the events' ids make that safe.
const TRIES_MAX: u32 = 5;
/// How long the last events may take to be stored, beyond which something is wrong.
const STORED_MAX: Duration = Duration::from_secs(120);
/// Stands in a folder that a demo made, and may therefore empty.
const MARKER: &str = "made-by-weir-demo";

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct DemoArgs {
    /// Simulated users; each sends about four events
    #[arg(long, env = "WEIR_DEMO_USERS", default_value_t = 20_000, value_name = "N",
          value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    users: u64,
    /// End after showing the results instead of staying up until Ctrl-C
    #[arg(long)]
    exit: bool,
    #[command(flatten)]
    up: UpArgs,
}

/// Runs the command.
/// # Errors
/// If a part does not start, events are refused, or not all of them are stored.
pub(crate) async fn run(args: DemoArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut signals = EndSignals::listen()?;
    let path = match &globals.data {
        Some(path) => std::path::absolute(path).with_context(|| path.display().to_string())?,
        None => data::default_folder("weir-demo")?,
    };
    let folder = DataFolder::open(&path)?;
    empty(&folder).await?;
    let mut up = args.up;
    // Its traffic is that of days, sent in seconds under one key.
    up.collector.0.key_bytes_per_second_max = 0;
    for address in [&mut up.collector.0.collector, &mut up.query.0.query, &mut up.aggregator.0.aggregator] {
        free_or_any(address);
    }
    say("starting collector, aggregator, query service and a private Postgres ..");
    let begun = Instant::now();
    // Its own database, whatever the environment names for other commands.
    let Some(running) = Running::start(folder, None, up, &mut signals).await? else { return Ok(()) };
    say(&format!("ready after {:.1} s", begun.elapsed().as_secs_f64()));

    let shown = tokio::select! {
        shown = show(&running, args.users) => Some(shown),
        failure = running.failed() => Some(Err(failure)),
        () = signals.next() => None,
    };
    let result = match shown {
        Some(Ok(())) if !args.exit => {
            say("everything stays up until Ctrl-C");
            tokio::select! {
                () = signals.next() => Ok(()),
                failure = running.failed() => Err(failure),
            }
        }
        Some(result) => result,
        None => Ok(()),
    };
    running.end().await;
    result
}

/// Deletes what a former demo left.
async fn empty(folder: &DataFolder) -> anyhow::Result<()> {
    let path = folder.path();
    let marker = path.join(MARKER);
    let names = || -> std::io::Result<Vec<_>> { std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect() };
    let names = names().with_context(|| path.display().to_string())?;
    if !marker.exists() {
        ensure!(
            names.iter().all(|name| name == "lock"),
            "{}: holds data that `weir demo` did not make; choose an empty folder with --data, since the demo deletes what is in its folder",
            path.display()
        );
        std::fs::write(&marker, "`weir demo` deletes this folder's content each time it starts.\n")
            .with_context(|| marker.display().to_string())?;
        return Ok(());
    }
    postgres::end_survivor(folder).await?;
    for name in names {
        if name == "lock" || name == MARKER {
            continue;
        }
        let old = path.join(name);
        let deleted = if old.is_dir() && !old.is_symlink() { std::fs::remove_dir_all(&old) } else { std::fs::remove_file(&old) };
        deleted.with_context(|| old.display().to_string())?;
    }
    Ok(())
}

/// Takes any free port where the wanted one is taken; what listens there is not ours.
fn free_or_any(address: &mut SocketAddr) {
    if let Err(error) = TcpListener::bind(*address)
        && error.kind() == std::io::ErrorKind::AddrInUse
    {
        say(&format!("{address} is in use; another port is chosen"));
        address.set_port(0);
    }
}

/// Sends the traffic, waits until it is stored, and prints what can be asked.
async fn show(running: &Running, users: u64) -> anyhow::Result<()> {
    let shown = &running.shown;
    let collector = Arc::new(Client::new(&shown.collector, Some(&shown.write_key), None)?);
    let query = Client::new(&shown.query, Some(&shown.read_token), None)?;

    let begun = Instant::now();
    let accepted = send(&collector, users).await?;
    let seconds = begun.elapsed().as_secs_f64();
    wait_until_stored(&query, accepted).await?;
    say(&format!(
        "{accepted} events of {users} users accepted in {seconds:.1} s, all stored {:.1} s later",
        begun.elapsed().as_secs_f64() - seconds
    ));

    let results = query.get_json(&format!("/v1/experiments/{}/results", traffic::EXPERIMENT)).await?;
    let funnel = query.post_json("/v1/funnels", &funnel()).await?;
    commands::print(&report(shown, &running.folder().display().to_string(), &results, &funnel))
}

fn funnel() -> Value {
    json!({
        "steps": [
            {"name": "visit", "events": ["page_viewed"]},
            {"name": "product", "events": ["product_viewed"]},
            {"name": "cart", "events": ["added_to_cart"]},
            {"name": "purchase", "events": ["purchase"]},
        ],
        "window": "7d",
    })
}

/// Writes what is to be seen on one screen, and how to go on.
fn report(shown: &WeirJson, folder: &str, results: &Value, funnel: &Value) -> String {
    let truth = format!(
        "In truth {:.0} % of the users with the old button buy, and {:.0} % of those with the new one.",
        traffic::BUYERS_CONTROL * 100.0,
        traffic::BUYERS_B * 100.0
    );
    let program = std::env::current_exe().map_or_else(|_| "weir".to_owned(), |path| path.display().to_string());
    let steps: String = funnel["groups"].as_array().into_iter().flatten().map(commands::funnel::steps).collect();
    let event = r#"{"events":[{"type":"conversion","user_id":"ada","name":"purchase","value":"19.90","currency":"EUR"}]}"#;
    format!(
        "\n{}{truth}\n\n{}\n\
         collector {}\nquery {}\npostgres {}\nwrite_key {}\nread_token {}\nserver_key {}\n\n\
         Type next, in another terminal:\n\
         {program} results {} --data {folder}\n\
         {program} sql --data {folder} 'SELECT event, count(*) FROM events GROUP BY event'\n\
         curl {}/v1/events -H 'Authorization: Bearer {}' -d '{event}'\n",
        commands::results::summary(results),
        steps,
        shown.collector,
        shown.query,
        shown.postgres,
        shown.write_key,
        shown.read_token,
        shown.server_key,
        traffic::EXPERIMENT,
        shown.collector,
        shown.write_key,
    )
}

/// Sends all users' events and returns how many were accepted.
async fn send(collector: &Arc<Client>, users: u64) -> anyhow::Result<u64> {
    let progress = progress(users, "users sent");
    let now = Micros::now();
    let mut requests = JoinSet::new();
    let mut accepted = 0;
    let mut batch = Vec::with_capacity(BATCH_EVENTS + 16);
    for user in 0..users {
        batch.extend(traffic::events_of(user, now));
        if batch.len() >= BATCH_EVENTS || user + 1 == users {
            if requests.len() >= REQUESTS_MAX {
                accepted += finished(&mut requests).await?;
            }
            requests.spawn(post(Arc::clone(collector), std::mem::take(&mut batch)));
            progress.set_position(user + 1);
        }
    }
    while !requests.is_empty() {
        accepted += finished(&mut requests).await?;
    }
    progress.finish_and_clear();
    Ok(accepted)
}

async fn finished(requests: &mut JoinSet<anyhow::Result<u64>>) -> anyhow::Result<u64> {
    match requests.join_next().await {
        Some(finished) => finished.context("a request")?,
        None => Ok(0),
    }
}

async fn post(collector: Arc<Client>, events: Vec<Value>) -> anyhow::Result<u64> {
    let sent = events.len() as u64;
    let body = json!({ "events": events });
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        match collector.post_json("/v1/events", &body).await {
            Ok(answer) => break answer,
            Err(error) if tries < TRIES_MAX => {
                tracing::warn!(error = format!("{error:#}"), tries, "a batch is sent again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error).context("the collector accepted no events"),
        }
    };
    let accepted = answer["accepted"].as_u64().unwrap_or_default();
    ensure!(
        accepted == sent,
        "the collector accepted {accepted} of {sent} events; the first rejection: {}",
        answer["rejected"][0]
    );
    Ok(accepted)
}

/// Waits until the query service sees as many events as were accepted.
async fn wait_until_stored(query: &Client, accepted: u64) -> anyhow::Result<()> {
    let progress = progress(accepted, "events stored");
    let until = Instant::now() + STORED_MAX;
    loop {
        let answer = query.post_json("/v1/sql", &json!({ "sql": "SELECT count(*) AS stored FROM events" })).await?;
        let cell = &answer["rows"][0][0];
        let stored = cell.as_u64().or_else(|| cell.as_str()?.parse().ok()).with_context(|| format!("no count: {answer}"))?;
        progress.set_position(stored.min(accepted));
        if stored == accepted {
            progress.finish_and_clear();
            return Ok(());
        }
        if stored > accepted {
            bail!("{stored} events are stored, more than the {accepted} that were accepted");
        }
        if Instant::now() >= until {
            bail!("only {stored} of {accepted} events are stored after {} s; see the log above", STORED_MAX.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn progress(length: u64, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // A template that cannot be read would show the usual bar.
    let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} {msg}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

/// Tells people what goes on; stdout is for what was asked for.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_demos_own_folder_is_emptied() {
        let parent = tempfile::tempdir().expect("a folder");
        let foreign = parent.path().join("foreign");
        let folder = DataFolder::open(&foreign).expect("opens");
        std::fs::write(foreign.join("weir.json"), "{}").expect("writes");
        let error = empty(&folder).await.expect_err("refused").to_string();
        assert!(error.contains("holds data that `weir demo` did not make"), "{error}");
        assert!(foreign.join("weir.json").exists());

        let own = parent.path().join("own");
        let folder = DataFolder::open(&own).expect("opens");
        empty(&folder).await.expect("nothing in it");
        std::fs::create_dir(own.join("log")).expect("makes a folder");
        std::fs::write(own.join("log/header"), "").expect("writes");
        std::fs::write(own.join("weir.json"), "{}").expect("writes");
        empty(&folder).await.expect("its own");
        let mut left: Vec<_> =
            std::fs::read_dir(&own).expect("there").map(|entry| entry.expect("an entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", MARKER]);
    }

    #[test]
    fn a_port_in_use_is_left() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("has one");
        let mut wanted = address;
        free_or_any(&mut wanted);
        assert_eq!((wanted.ip(), wanted.port()), (address.ip(), 0));
        drop(taken);
        let mut wanted = address;
        free_or_any(&mut wanted);
        assert_eq!(wanted, address);
    }
}
