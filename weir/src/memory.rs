//! How a service's memory is kept together.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What glibc's malloc is told, unless somebody has told it otherwise. Measured under large bodies, refused ones and idle connections for an hour:
/// what is free in one arena serves no other, and what was freed between two small things in use serves nothing that is larger.
const SETTINGS: [(&str, &str); 2] = [
    // Enough for threads that mostly wait. By itself glibc takes eight for each processor.
    ("MALLOC_ARENA_MAX", "2"),
    // What is as large as a large body is mapped by itself, and given back with it. By itself glibc raises this to up to 32 MiB as it frees.
    ("MALLOC_MMAP_THRESHOLD_", "1048576"),
];

/// Begins the program anew in its place with those settings. Malloc reads them once, before the program begins. Where it cannot be done the
/// program goes on as it is.
pub(crate) fn keep_together() {
    let open: Vec<_> = SETTINGS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
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
    SETTINGS.iter().any(|(name, _)| variable == *name)
}
