//! Measurements, and what they measure against.
//!
//! A figure here is a ratio of two runs on the same machine in the same minutes: ours, and a bare program that does only what
//! cannot be left out. Rates of a machine drift; ratios and CPU seconds drift less. So every comparison runs in interleaved
//! rounds, turns the order round each time, and reports least, median and most.
//!
//! - [`load`] posts events on a schedule that does not wait for answers, checks every answer, and keeps a ledger of what was
//!   acknowledged. It is also the client of tests that break things.
//! - [`bare_server`] is the limit of a collector: it reads the same bodies and answers from memory.
//! - [`bare_kafka_server`] is its limit over Kafka: it appends each event as it came.
//! - [`door`] compares the collector with them, over the embedded log or over Kafka.
//! - [`copy`] compares the aggregator with COPY of the same rows into the same tables, and over Kafka with a bare loop.
//! - [`costs`] leaves out one index or column after another, and says what each costs.
//! - [`results`] asks the query service about an experiment, and says where the time goes.
//! - [`abuse`] attacks the whole of it, and watches a client that does nothing wrong.
//! - [`chaos`] breaks it on purpose, in ways with names, and judges what became of the events.
//! - [`pipeline`] runs all of it in one go, and watches how soon an accepted event can be queried.
//!
//! Nothing imports this crate.

pub mod abuse;
#[cfg(feature = "kafka")]
mod bare_kafka_loop;
#[cfg(feature = "kafka")]
pub mod bare_kafka_server;
pub mod bare_server;
pub mod chaos;
mod child;
pub mod copy;
pub mod costs;
mod database;
pub mod door;
mod histogram;
pub mod load;
mod machine;
mod payload;
pub mod pipeline;
mod report;
pub mod results;
pub mod serve;
mod up;

pub use histogram::Histogram;
pub use payload::{Mix, Plan};

use std::io::{Read as _, Write as _};
use std::path::Path;

/// Makes a folder that is gone with its value, in `parent` or where the system keeps such.
fn folder(parent: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    Ok(match parent {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    })
}

/// Waits until standard input ends: so a measurement ends its children, and so they end with it.
async fn input_ends() {
    // Whatever ends the input, an error too, ends who waits for it.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
}

/// Tells whoever waits how far a measurement is, on standard error.
fn progress(text: &str) {
    // Nobody may be listening there.
    let _ = writeln!(std::io::stderr(), "{text}");
}
