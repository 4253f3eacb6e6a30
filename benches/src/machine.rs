//! What it was measured on, and what it cost: facts and CPU times from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Ticks of the clock in which `/proc` counts CPU time; the kernel's interface says 100 on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

struct Stat {
    parent: u32,
    /// Of the process itself.
    own: f64,
    /// Of children that ended and were waited for.
    children: f64,
}

/// Reads `/proc/PID/stat`. The name may hold anything, so the fields are counted from the last parenthesis.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Stat { parent: fields.get(1)?.parse().ok()?, own: seconds(11)? + seconds(12)?, children: seconds(13)? + seconds(14)? })
}

/// Returns the CPU seconds that this process used so far, of all its threads, to 10 ms.
pub(crate) fn own_cpu_seconds() -> f64 {
    cpu_seconds(std::process::id())
}

/// Returns the CPU seconds that a process used so far; 0 if it is not there.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |stat| stat.own)
}

/// Returns the CPU seconds that a Postgres used so far: its first process, its children, and those that ended.
/// `backend` is any of its backends. 0 if it runs on another machine.
pub(crate) fn postgres_cpu_seconds(backend: u32) -> f64 {
    let Some(postmaster) = stat(backend).map(|stat| stat.parent) else { return 0.0 };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children: f64 = pids.filter_map(stat).filter(|stat| stat.parent == postmaster).map(|stat| stat.own).sum();
    children + stat(postmaster).map_or(0.0, |stat| stat.own + stat.children)
}

/// Returns the most memory that a process ever had resident, in MiB; 0 if it is not there.
pub(crate) fn peak_memory_mib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = value(&text, "VmHWM").and_then(|value| value.split(' ').next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Finds `name: value`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

/// Returns the processor's name for a folder: lower case, words joined by hyphens.
pub(crate) fn short_name() -> String {
    let model = model();
    let words: Vec<String> = model
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .map(str::to_ascii_lowercase)
        .filter(|word| !word.is_empty() && !["r", "tm", "cpu", "processor"].contains(&word.as_str()))
        .collect();
    words.join("-")
}

fn model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    value(&text, "model name").unwrap_or("unknown processor").to_owned()
}

/// Returns what a reader has to know of this machine, in the order in which it is shown. `folder` is where files were written.
pub(crate) fn facts(folder: &Path) -> Vec<(&'static str, String)> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
        output.map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = value(&memory, "MemTotal").and_then(|value| value.split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let changed = !["", "unknown"].contains(&run("git", &["status", "--porcelain"]).as_str());
    let commit =
        run("git", &["rev-parse", "--short=12", "HEAD"]) + if changed { " and changes that were not committed" } else { "" };
    vec![
        ("date", events::Micros::now().to_string().chars().take(16).collect::<String>().replace('T', " ") + " UTC"),
        ("commit", commit),
        ("build", format!("{}, profile {}", run("rustc", &["--version"]), profile())),
        ("processor", format!("{}, {cores} cores", model())),
        ("memory", format!("{:.1} GiB", memory / 1024.0 / 1024.0)),
        ("kernel", format!("Linux {}", kernel.trim())),
        ("disk", format!("{}, {}", file_system(folder), sync_time(folder))),
        ("load average before", load.join(" ")),
    ]
}

/// The build's profile: the folder that cargo puts the program into.
fn profile() -> String {
    let program = std::env::current_exe().ok();
    let folder = program.as_deref().and_then(Path::parent).and_then(Path::file_name);
    folder.map_or_else(|| "unknown".to_owned(), |folder| folder.to_string_lossy().into_owned())
}

/// The type of the file system that holds a folder: of the mounts above it, the longest, and of these the last.
fn file_system(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let text = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounts: BTreeMap<usize, &str> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (mount, kind) = (fields.next()?, fields.next()?);
            folder.starts_with(mount).then_some((mount.len(), kind))
        })
        .collect();
    mounts.into_values().next_back().unwrap_or("unknown file system").to_owned()
}

/// How long a flush to the disk takes: without it no rate of a durable log says anything.
fn sync_time(folder: &Path) -> String {
    let measure = || {
        let mut file = tempfile::tempfile_in(folder)?;
        let mut micros = Vec::new();
        for _ in 0..100 {
            file.write_all(&[7; 4096])?;
            let began = Instant::now();
            file.sync_data()?;
            micros.push(began.elapsed().as_micros());
        }
        micros.sort_unstable();
        std::io::Result::Ok(micros)
    };
    match measure() {
        Ok(micros) => format!("fdatasync of 4 KiB: median {} µs, worst of 100 {} µs", micros[50], micros[99]),
        Err(error) => format!("fdatasync could not be measured: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_of_this_process_grows_with_work() {
        let before = own_cpu_seconds();
        let mut sum = 0u64;
        let began = Instant::now();
        while own_cpu_seconds() - before < 0.03 {
            sum = (0..100_000u64).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
            assert!(began.elapsed().as_secs() < 60, "no CPU time was counted in a minute of work ({sum})");
        }
    }

    #[test]
    fn fields_of_proc_are_found() {
        let text = "model name\t: Example(R) CPU 9\nVmHWM:\t    2048 kB\n";
        assert_eq!(value(text, "VmHWM"), Some("2048 kB"));
        assert_eq!(value(text, "model name"), Some("Example(R) CPU 9"));
        assert_eq!(value(text, "model"), None);
        assert!(peak_memory_mib(std::process::id()) > 0.5);
        assert_eq!(stat(std::process::id()).map(|stat| stat.parent), Some(std::os::unix::process::parent_id()));
    }
}
