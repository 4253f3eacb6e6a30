//! Who computes gives way to who serves sockets.
//!
//! On a machine that is short of processors, the kernel shares them out by nice values. What is a little nicer than the process that takes requests
//! still gets what is left, and by far most of an idle machine; but a request that comes in need not wait for its time slices.

use rustix::process::{Pid, getpid, getpriority_process, setpriority_process};

/// Added to the nice value of this process for what it computes itself, and for the database that everything waits for.
pub const COMPUTES: i32 = 5;
/// The same for what may compute without end.
pub const MAY_NOT_END: i32 = 10;

/// Makes a process, and what it starts from now on, nicer than this one.
pub fn lower(process: u32, by: i32) {
    if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        set(Some(process), by);
    }
}

/// Makes the calling thread nicer than the process that it belongs to.
pub(crate) fn lower_thread() {
    set(None, COMPUTES);
}

/// Linux takes the number of a process for its first thread, and none for the calling thread: setpriority(2), "C library/kernel differences".
fn set(whose: Option<Pid>, by: i32) {
    let lowered = getpriority_process(Some(getpid())).and_then(|ours| setpriority_process(whose, (ours + by).min(19)));
    if let Err(error) = lowered {
        tracing::debug!(%error, "the priority cannot be lowered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_computes_is_nicer_than_its_process_and_stays_so() {
        let ours = getpriority_process(Some(getpid())).expect("a priority");
        let of_thread = || {
            lower_thread();
            lower_thread();
            getpriority_process(None).expect("a priority")
        };
        let found = std::thread::spawn(of_thread).join().expect("no panic");
        assert_eq!((found, getpriority_process(Some(getpid()))), ((ours + COMPUTES).min(19), Ok(ours)));
    }

    #[test]
    fn a_process_that_computes_is_nicer_than_the_one_that_started_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
        lower(child.id(), MAY_NOT_END);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("small"));
        let ours = getpriority_process(Some(getpid())).expect("a priority");
        let found = getpriority_process(pid);
        child.kill().expect("runs");
        child.wait().expect("a child");
        assert_eq!(found, Ok((ours + MAY_NOT_END).min(19)));
    }
}
