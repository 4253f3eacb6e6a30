//! How a service's memory is kept together.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::cli;

/// Settings of glibc's malloc. Measured under large bodies, refused ones and idle connections for an hour: what is free in one arena serves no
/// other, and what was freed between two small things in use serves nothing that is larger.
///
/// Enough for threads that mostly wait. By itself glibc takes eight for each processor.
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");
/// What is as large as this is mapped by itself, and given back with it. By itself glibc raises this to up to 32 MiB as it frees.
const MAPPED_FROM: &str = "MALLOC_MMAP_THRESHOLD_";
/// As large as a large body.
const BODY: &str = "1048576";
/// As large as a list of all users of a large experiment: each answer takes and frees dozens of them, and mapping them anew took a third of
/// its time.
const LIST: &str = "16777216";

/// Begins the program anew in its place with its settings, unless somebody has chosen others. Malloc reads them once, before the program begins.
/// Where it cannot be done the program goes on as it is.
pub(crate) fn keep_together(command: &cli::Command) {
    let mapped_from = if matches!(command, cli::Command::Query(_) | cli::Command::QueryWorker) { LIST } else { BODY };
    let is_open = |(name, wanted): &(&str, &str)| match std::env::var_os(name) {
        // The program that began this one may have chosen for itself.
        Some(found) => *name == MAPPED_FROM && found != *wanted && [BODY, LIST].iter().any(|own| found == *own),
        None => true,
    };
    let open: Vec<_> = [ARENAS, (MAPPED_FROM, mapped_from)].into_iter().filter(is_open).collect();
    if open.is_empty() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Some((name, arguments)) = arguments.split_first() else { return };
    // Returns only where it fails.
    let _ = Command::new(program).arg0(name).args(arguments).envs(open).exec();
}

/// Returns whether a variable of the environment is one of those settings.
pub(crate) fn sets(variable: &OsStr) -> bool {
    [ARENAS.0, MAPPED_FROM].iter().any(|name| variable == *name)
}
