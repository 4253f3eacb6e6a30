//! `weir import`: history from files, as a client of the collector.
//!
//! A file is read once for its checksum, then row by row; batches of rows go to the collector, some at a time, each until it is
//! acknowledged. A row without an id gets UUIDv5 of what it says and its number among equal rows of the file, so that sending it
//! again is never a second event, also from a file that was corrected, has grown, or was saved in another format.
//! `FILE.weir-progress` says up to which row all is settled; an import that was interrupted goes on there. Rows that are refused are
//! kept in `FILE.weir-rejected` with their reasons, to be corrected there and imported from there, and the import goes on.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::print;
use super::text::{Side, full_table};
use crate::cli::Globals;
use crate::signals::EndSignals;

mod content;
mod decimal;
mod names;
mod pace;
mod progress;
mod refused;
mod send;
mod shape;
mod show;
mod source;

use content::Repeats;
use pace::Pace;
use progress::{Counts, Ledger};
use send::{Batch, Destination};
use shape::{Dialect, Plan};
use source::{REFUSED, Row, Rows, Source};

/// Rows of a request; the collector's own limit.
const BATCH_ROWS_MAX: usize = 2_500;
/// Bytes of a request, below the collector's limit of 2 MiB.
const BATCH_BYTES_MAX: usize = 1_500_000;
/// Bytes of rows, as their file has them, of a request: what is refused is written from there.
const BATCH_HELD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often the progress is saved. What was sent later is sent again after a kill, and is known by its ids.
const SAVE_EVERY: Duration = Duration::from_millis(500);
/// How the process ends when all is imported but rows that were refused.
const SOME_REJECTED: u8 = 3;

/// The arguments of `weir import`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Ends with 0 when every row is accepted, with 3 when all is imported but the rows that FILE.weir-rejected \
                        holds (correct them there and import that file), with 1 when it is not complete; run the same command again to continue."
)]
pub(crate) struct Args {
    /// NDJSON or an array (.ndjson, .jsonl, .json), CSV (.csv, .tsv), both also with .gz, Parquet, or FILE.weir-rejected of these
    ///
    /// Texts are UTF-8, or UTF-16 with a byte-order mark. Names of columns may have capital letters and spaces around them.
    /// Delimiters are commas, semicolons, tabs or bars, found in the header, or what a first line sep=; says. Rows without an id get one
    /// that follows from what they say, so importing a corrected or grown file again stores what is new.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A JSON object that says where fields come from: {"user_id": "uid", "timestamp": "context.time", "type": {"value": "conversion"}}
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Format of the events in the rows
    #[arg(long, value_enum, default_value_t)]
    dialect: Dialect,
    /// Amounts (value) are written with decimal commas: 19,90 or 1.234,56; what may mean two amounts is refused
    #[arg(long)]
    decimal_comma: bool,
    /// The collector; without it the one of weir.json
    #[arg(long, value_name = "URL", env = "WEIR_COLLECTOR")]
    collector: Option<String>,
    /// The server key; its project receives the events
    #[arg(long, value_name = "KEY", env = "WEIR_SERVER_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Address of the aggregator's /metrics, by which the import leaves room for live events; without it the one of weir.json
    #[arg(long, value_name = "URL", env = "WEIR_AGGREGATOR")]
    aggregator: Option<String>,
    /// Rows per second at most
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// Seconds to keep trying while the collector accepts no events
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Start over from the first row, whatever an earlier import has done
    #[arg(long)]
    restart: bool,
}

/// How the import of one file ended.
struct Imported {
    name: String,
    counts: Counts,
    took: Duration,
    /// Rows of this run.
    rows_now: u64,
}

/// Imports one file after the other, and prints what became of them.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let destination = Arc::new(Destination::find(&args, globals)?);
    let mut pace = Pace::new(&args, globals, &destination)?;
    let map = match &args.map {
        Some(file) => {
            let text = std::fs::read(file).with_context(|| file.display().to_string())?;
            shape::read_map(&text).with_context(|| file.display().to_string())?
        }
        None => Vec::new(),
    };
    let mut signals = EndSignals::listen().context("signals")?;
    let mut done = Vec::new();
    let mut failed = None;
    for file in &args.files {
        match import(&args, file, &map, &destination, &mut pace, &mut signals).await {
            Ok(imported) => done.push(imported),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if !done.is_empty() {
        print(&table(&done))?;
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let rejected = done.iter().any(|imported| imported.counts.rejected > 0);
    Ok(if rejected { ExitCode::from(SOME_REJECTED) } else { ExitCode::SUCCESS })
}

/// Writes what became of the files.
fn table(done: &[Imported]) -> String {
    let columns = ["file", "rows", "accepted", "repeated", "rejected", "seconds", "rows/s"].map(|name| {
        let side = if name == "file" { Side::Left } else { Side::Right };
        (name, side)
    });
    let rows: Vec<Vec<String>> = done
        .iter()
        .map(|Imported { name, counts, took, rows_now }| {
            let seconds = took.as_secs_f64();
            let count = |number: u64| show::grouped(number);
            vec![
                super::printable(name).into_owned(),
                count(counts.accepted + counts.duplicate + counts.rejected),
                count(counts.accepted),
                count(counts.duplicate),
                count(counts.rejected),
                format!("{seconds:.1}"),
                count((*rows_now as f64 / seconds.max(0.001)) as u64),
            ]
        })
        .collect();
    let mut text = full_table(&columns, &rows);
    for imported in done.iter().filter(|imported| imported.counts.rejected > 0) {
        let name = super::printable(&imported.name);
        text.push_str(&format!("rejected rows, with their reasons, to be corrected and imported: {name}{REFUSED}\n"));
    }
    text
}

/// Imports one file.
async fn import(
    args: &Args,
    file: &std::path::Path,
    map: &[shape::Mapped],
    destination: &Arc<Destination>,
    pace: &mut Pace,
    signals: &mut EndSignals,
) -> anyhow::Result<Imported> {
    let begun = Instant::now();
    let source = tokio::task::spawn_blocking({
        let file = file.to_owned();
        move || {
            let source = Source::open(&file)?;
            let reading = source.read()?;
            anyhow::Ok((source, reading))
        }
    });
    let (source, reading) = source.await.context("the file's reader")??;
    let source = Arc::new(source);
    let plan = Plan::new(args.dialect, map, args.decimal_comma, &source)?;
    if let Some(columns) = &reading.columns {
        plan.check_columns(columns).with_context(|| source.path.display().to_string())?;
    }
    let mut ledger = Ledger::open(&source, reading.form, &plan, destination, args.restart)?;
    let settled_before = ledger.settled();
    let mut show = show::Show::new(&source, settled_before);
    let (sender, mut batches) = mpsc::channel(2);
    let reader = tokio::task::spawn_blocking({
        let (source, rows, after) = (Arc::clone(&source), reading.rows, ledger.last_row());
        move || read(&source, rows, &plan, after, &sender)
    });

    let mut sending: JoinSet<anyhow::Result<(u64, send::Delivered)>> = JoinSet::new();
    let mut number = 0;
    let mut all_read = false;
    let mut save_tick = tokio::time::interval(SAVE_EVERY);
    save_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ended = loop {
        if all_read && sending.is_empty() {
            break Ok(());
        }
        let may_send = !all_read && sending.len() < args.in_flight as usize;
        tokio::select! {
            batch = next_batch(&mut batches, pace), if may_send => match batch {
                None => all_read = true,
                Some(batch) => {
                    let (destination, patience) = (Arc::clone(destination), Duration::from_secs(args.patience));
                    let batch: Batch = batch;
                    let of = number;
                    number += 1;
                    sending.spawn(async move { Ok((of, destination.deliver(batch, patience).await?)) });
                }
            },
            Some(delivered) = sending.join_next(), if !sending.is_empty() => {
                match delivered.context("a sender").and_then(|delivered| delivered) {
                    Ok((of, delivered)) => {
                        if let Err(error) = ledger.settle(of, delivered) {
                            break Err(error);
                        }
                        show.settled(ledger.counts(), ledger.settled_bytes());
                    }
                    Err(error) => break Err(error),
                }
            }
            _ = save_tick.tick() => {
                show.tick();
                if let Err(error) = ledger.save() {
                    break Err(error);
                }
            }
            () = signals.next() => break Err(anyhow::anyhow!("interrupted")),
        }
    };
    // The reader ends when it has nobody to send to.
    drop(batches);
    let read = reader.await.context("the file's reader").and_then(|read| read);
    show.end();
    let name = || super::printable(&source.path.display().to_string()).into_owned();
    let rows = show::grouped(ledger.settled());
    if let (Ok(()), Err(error)) = (&ended, read) {
        // It is the file that has to be mended, so running the same command again helps nobody.
        if ledger.settled() == 0 {
            ledger.finish()?;
            return Err(error.context(name()));
        }
        ledger.save()?;
        return Err(error.context(format!("{}: the file cannot be read on; {rows} rows before are done", name())));
    }
    let ended = ended.and_then(|()| source.check_unchanged());
    if let Err(error) = ended {
        ledger.save()?;
        return Err(error.context(format!("{}: {rows} rows are done; run the same command again to continue after them", name())));
    }
    ledger.finish()?;
    let counts = ledger.counts();
    Ok(Imported { name: name(), counts, took: begun.elapsed(), rows_now: ledger.settled() - settled_before })
}

/// Waits for leave to send, then for a batch; none at the end of the file. May be cancelled: no batch is lost by it.
async fn next_batch(batches: &mut mpsc::Receiver<Batch>, pace: &mut Pace) -> Option<Batch> {
    pace.leave().await;
    let batch = batches.recv().await?;
    pace.sent(batch.rows());
    Some(batch)
}

/// Reads rows into batches, those up to `after` left out. Blocks; ends early when nobody takes them any more.
fn read(source: &Source, rows: Rows, plan: &Plan, after: u64, batches: &mpsc::Sender<Batch>) -> anyhow::Result<()> {
    let mut batch = Batch::default();
    let mut repeats = Repeats::default();
    for row in rows {
        let Row { number, cells, raw } = row?;
        let event = match cells {
            // A row that is settled is counted all the same: others may be equal to it.
            Ok(cells) => plan.event(cells, &mut repeats)?,
            Err(fault) => Err(fault),
        };
        if number <= after {
            continue;
        }
        batch.add(number, raw, event, source.bytes_read());
        let is_full =
            batch.rows() >= BATCH_ROWS_MAX || batch.bytes() >= BATCH_BYTES_MAX || batch.held_bytes() >= BATCH_HELD_BYTES_MAX;
        if is_full && batches.blocking_send(std::mem::take(&mut batch)).is_err() {
            return Ok(());
        }
    }
    if batch.rows() > 0 {
        // Nobody takes it if the import has failed already, which is told there.
        let _ = batches.blocking_send(batch);
    }
    Ok(())
}

impl Args {
    /// Returns a flag's value unless it is empty, which a variable may be.
    fn said(value: &Option<String>) -> Option<&str> {
        value.as_deref().filter(|text| !text.is_empty())
    }
}
