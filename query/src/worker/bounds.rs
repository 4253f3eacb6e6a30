//! A hard bound of this process' memory.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How much sooner than others the system ends a query service and its workers when memory runs out, from 0 to 1,000.
#[derive(Clone, Copy, Debug)]
pub enum Spare {
    /// The service: collector and Postgres are worth more.
    Service,
    /// A worker, which another one replaces.
    Worker,
}

/// Bounds the memory of this process and of what it starts, for good: an allocation beyond `bytes` fails, which ends the process. Private
/// writable memory counts, so also what was reserved and never touched. Nothing is left of a process that ends so: no core is dumped.
/// # Errors
/// If the system refuses.
pub fn bound_memory(bytes: u64, spare: Spare) -> io::Result<()> {
    // Address space would be the wrong measure: the arenas of malloc reserve much more than they use.
    let former = getrlimit(Resource::Data).maximum;
    let bound = former.map_or(bytes, |former| former.min(bytes));
    setrlimit(Resource::Data, Rlimit { current: Some(bound), maximum: Some(bound) })?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let score = match spare {
        Spare::Service => "300",
        Spare::Worker => "800",
    };
    // Where there is no such file, or it already says more, the bound has to do.
    let _ = std::fs::write("/proc/self/oom_score_adj", score);
    Ok(())
}

/// Returns the bytes of a process, a number or `self`, that are in memory; 0 where the system does not say.
pub(crate) fn resident_bytes(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}
