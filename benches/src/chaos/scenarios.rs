//! The scenarios, by the names that they have in the matrix of faults: C of the collector, K of Kafka, P of Postgres, T of time, H of hot keys.

mod collector;
#[cfg(feature = "kafka")]
mod kafka;
mod postgres;
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::time::Duration;

use super::Outcome;
use super::scene::Settings;
use crate::payload::Random;

/// A fault with a name.
pub(super) struct Scenario {
    pub name: &'static str,
    /// What happens, for people.
    pub what: &'static str,
    /// How often, unless another number is asked for.
    pub times: u64,
    pub run: fn(Settings) -> Running,
}

/// A scenario that runs.
type Running = Pin<Box<dyn Future<Output = anyhow::Result<Outcome>>>>;

macro_rules! scenarios {
    ($($(#[$condition:meta])* $name:literal $times:literal $run:path, $what:literal;)*) => {
        pub(super) const SCENARIOS: &[Scenario] = &[$($(#[$condition])* Scenario {
            name: $name, what: $what, times: $times, run: |settings| Box::pin($run(settings)),
        }),*];
    };
}

scenarios! {
    "C1" 30 collector::killed, "SIGKILL of collector and aggregator, each second time of Postgres too, each third time again as they recover";
    "C2" 8 collector::killed_in_system_calls, "SIGKILL at the Nth write, sync, read of a request and answer";
    "C4" 1 collector::disk_full, "the log's disk is full, and has room again";
    "C5" 1 collector::sync_fails, "a sync of the log fails, once and again";
    "C6" 5 collector::power_cut, "power cut of the machine's disk, log and Postgres";
    "C7" 10 tests::stopped_under_load, "SIGTERM under full load";
    "C8" 1 collector::out_of_memory, "killed by the kernel for memory";
    #[cfg(feature = "kafka")]
    "K6" 1 tests::error_storm, "each error that Kafka answers with, by a mock cluster";
    "P1" 30 postgres::aggregator_killed, "SIGKILL of the aggregator in a COPY, before COMMIT, after it and at random";
    "P2" 50 postgres::commit_without_reply, "connection cut after COMMIT was sent and before its reply came";
    "P3" 50 postgres::cut_elsewhere, "Postgres cut off before COMMIT and in a COPY, away, frozen, slow, and silent until its own timeout";
    "P4" 5 postgres::postgres_killed, "SIGKILL of Postgres, its immediate end, a writer's backend that freezes";
    "P5" 3 postgres::power_of_postgres_cut, "power cut of the disk of Postgres";
    "P6" 1 postgres::disk_of_postgres_full, "the disk of Postgres is full";
    "P9" 8 postgres::black_holes, "no byte passes any more between Postgres and a writer, from COMMIT on or in a COPY, or the leases; or COMMIT comes late";
    "P8" 1 postgres::deadlocks, "eight workers beside locks in another order, for a minute";
    "T1" 1 collector::clock_jumps, "the clock jumps by an hour, days and minutes, to and fro";
    "H1" 20 collector::hot_key, "so many thousand users beside one with nine tenths of all events, and 10,000 names";
    #[cfg(feature = "kafka")]
    "C3" 30 tests::kafka_away, "Kafka away for so many times 10 s, and so many kills of a collector that spools";
    #[cfg(feature = "kafka")]
    "K1" 5 kafka::broker_killed, "SIGKILL of the broker; six times as often of each service in turn, and a broker that restarts";
    #[cfg(feature = "kafka")]
    "K2" 2 kafka::broker_frozen, "the broker frozen for 45 s";
    #[cfg(feature = "kafka")]
    "K3" 1 tests::topic_changed, "the topic deleted, made anew and widened (K3), records expired before they were stored (K5)";
    #[cfg(feature = "kafka")]
    "K4" 1 kafka::power_of_broker_cut, "power cut of the broker's disk, with a sync of each record";
    #[cfg(feature = "kafka")]
    "K7" 20 kafka::owners_change, "aggregators that join, leave, die and freeze until they are replaced";
}

/// A moment that follows from the seed and a number.
fn moment(seed: u64, number: u64, max: Duration) -> Duration {
    max.mul_f64((Random::new(seed ^ 0x6d6f_6d65_6e74, number).next() % 1000) as f64 / 1000.0)
}

/// Returns why there is no Kafka here; none if there is.
fn why_no_kafka() -> Option<String> {
    let has_java = Command::new("java").arg("-version").output().is_ok_and(|output| output.status.success());
    (!has_java).then(|| "no Java for a broker; `deploy/install.sh kafka` installs it".to_owned())
}
