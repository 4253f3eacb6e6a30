//! What this process takes of the machine, under the names that Prometheus' own client libraries give it.
//!
//! A process with two services shows the same numbers on both pages. Where the system does not tell a number, it is not shown.
//! Source: Prometheus, writing client libraries, process metrics; proc(5).

use std::fmt::Write as _;

/// Ticks of a second in `/proc`, which is 100 on every architecture that we build for.
/// Source: Linux, `include/asm-generic/param.h`, `USER_HZ`.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the files of `/proc` say.
#[derive(Debug, Default, PartialEq)]
struct Sample {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    threads: Option<f64>,
    virtual_bytes: Option<f64>,
    resident_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

/// Returns the lines that Prometheus reads.
pub(crate) fn page() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut sample =
        Sample::of(&read("/proc/self/stat"), &read("/proc/self/status"), &read("/proc/self/limits"), &read("/proc/stat"));
    // One of them is the one that reads the folder.
    sample.open_fds = std::fs::read_dir("/proc/self/fd").ok().map(|open| open.count().saturating_sub(1) as f64);
    sample.page()
}

impl Sample {
    /// Reads `/proc/self/stat`, `/proc/self/status`, `/proc/self/limits` and `/proc/stat`.
    fn of(stat: &str, status: &str, limits: &str, machine: &str) -> Self {
        // The second field is the name, in parentheses, with any character in it; what follows begins with the third.
        let after_name: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
        let ticks = |field: usize| Some(after_name.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
        let number = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let boot = number(machine, "btime ");
        Sample {
            cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, system)| user + system),
            start_seconds: boot.zip(ticks(22)).map(|(boot, since)| boot + since),
            threads: number(status, "Threads:"),
            virtual_bytes: number(status, "VmSize:").map(|kib| kib * 1024.0),
            resident_bytes: number(status, "VmRSS:").map(|kib| kib * 1024.0),
            open_fds: None,
            max_fds: number(limits, "Max open files"),
        }
    }

    fn page(&self) -> String {
        let numbers = [
            ("process_cpu_seconds_total", "counter", "Seconds of processor time, of user and system.", self.cpu_seconds),
            ("process_open_fds", "gauge", "Open file descriptors.", self.open_fds),
            ("process_max_fds", "gauge", "File descriptors that may be open.", self.max_fds),
            ("process_resident_memory_bytes", "gauge", "Memory that is in RAM.", self.resident_bytes),
            ("process_virtual_memory_bytes", "gauge", "Size of the address space.", self.virtual_bytes),
            ("process_start_time_seconds", "gauge", "When the process began, in seconds since 1970.", self.start_seconds),
            ("process_threads", "gauge", "Threads of the process.", self.threads),
        ];
        let mut page = String::new();
        for (name, kind, help, value) in numbers {
            if let Some(value) = value {
                // A String takes every byte.
                let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read() {
        let stat = "4242 (weir (1) x) S 1 4242 4242 0 -1 4194560 1000 0 0 0 1250 75 3 4 20 0 9 0 360050 123456789 2048 \
                    18446744073709551615 1 1";
        let status = "Name:\tweir (1) x\nVmPeak:\t  200000 kB\nVmSize:\t  120563 kB\nVmRSS:\t    8192 kB\nThreads:\t9\n";
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            20000                524288               files     \n";
        let machine = "cpu  1 2 3\nbtime 1790000000\nprocesses 5\n";
        let expected = Sample {
            cpu_seconds: Some(13.25),
            start_seconds: Some(1_790_003_600.5),
            threads: Some(9.0),
            virtual_bytes: Some(123_456_512.0),
            resident_bytes: Some(8_388_608.0),
            open_fds: None,
            max_fds: Some(20_000.0),
        };
        assert_eq!(Sample::of(stat, status, limits, machine), expected);
        assert_eq!(Sample::of("", "", "", ""), Sample::default());
        assert_eq!(Sample::default().page(), "");
        let page = expected.page();
        assert!(page.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 13.25\n"), "{page}");
    }

    #[test]
    fn a_second_has_as_many_ticks_as_the_system_says() {
        let said = std::process::Command::new("getconf").arg("CLK_TCK").output().expect("getconf is part of the C library");
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim().parse(), Ok(TICKS_PER_SECOND));
    }

    #[test]
    fn this_process_is_shown() {
        let number = |page: &str, name: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().expect("a number")
        };
        let before = page();
        for name in ["process_cpu_seconds_total", "process_max_fds", "process_start_time_seconds", "process_threads"] {
            assert!(number(&before, name) >= 0.0);
        }
        assert!(number(&before, "process_resident_memory_bytes") <= number(&before, "process_virtual_memory_bytes"));
        // Other tests of this process open files too, but not hundreds.
        let files: Vec<_> = (0..500).map(|_| std::fs::File::open("/proc/self/stat").expect("opens")).collect();
        let more = number(&page(), "process_open_fds") - number(&before, "process_open_fds");
        assert!((400.0..600.0).contains(&more), "{more}");
        drop(files);
    }
}
