//! The whole of Weir as a process: what it prints, what survives which end, what a second one is told, and what others' software
//! makes of it.

mod apply;
mod browser;
#[cfg(feature = "kafka")]
mod compose;
#[cfg(feature = "kafka")]
#[allow(dead_code, unreachable_pub)] // A tool box: not each test file uses each tool.
mod flood;
mod golden_funnels;
#[cfg(feature = "kafka")]
mod hardest;
#[allow(dead_code, unreachable_pub)] // A tool box: not each test file uses each tool.
mod harness;
mod import;
mod journey;
mod life;
#[cfg(feature = "kafka")]
#[allow(unreachable_pub)] // As above.
mod load;
mod panics;
#[cfg(feature = "kafka")]
mod peers;
mod prometheus;
mod query_limits;
#[allow(dead_code, unreachable_pub)] // As above.
mod raw;
mod results;
mod retention;
#[cfg(feature = "kafka")]
mod rolling;
#[cfg(feature = "kafka")]
mod runbook;
mod sdk;
#[cfg(feature = "kafka")]
mod services;
mod snippet;
#[allow(dead_code, unreachable_pub)] // As above.
mod support;
mod survivors;
mod up;
mod upgrade;
