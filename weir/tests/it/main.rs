//! The whole of Weir as a process: what it prints, what survives which end, what a second one is told, and what others' software
//! makes of it.

mod apply;
mod browser;
#[cfg(feature = "kafka")]
mod compose;
mod golden_funnels;
#[allow(dead_code, unreachable_pub)] // A tool box: not each test file uses each tool.
mod harness;
mod import;
mod journey;
mod kills;
mod life;
#[allow(unreachable_pub)] // As above.
mod load;
mod outages;
mod panics;
mod prometheus;
mod query_limits;
mod results;
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
