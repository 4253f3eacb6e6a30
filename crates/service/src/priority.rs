//! Who computes gives way to who serves sockets.
//!
//! On a machine that is short of processors, the kernel shares them out by nice values. What is a little nicer than the process that takes requests
//! still gets what is left, and by far most of an idle machine; but a request that comes in need not wait for its time slices. That is not enough
//! where all processors compute: a request goes from thread to thread a dozen times, and waits for a time slice at each. So the threads that compute
//! leave one processor alone.

use rustix::process::{Pid, getpid, getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Added to the nice value of this process for what it computes itself, and for the database that everything waits for.
pub const COMPUTES: i32 = 5;
/// The same for what may compute without end.
const MAY_NOT_END: i32 = 10;

/// Makes a process, and what it starts from now on, nicer than this one.
pub fn lower(process: u32, by: i32) {
    if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        set(Some(process), by);
    }
}

/// Makes a process that has a session of its own as nice as this one, for which it works, and keeps it to the same processors. Where the kernel
/// shares processors out by sessions first (sched(7), "The autogroup feature"), it is the session that has to be nice.
pub fn share(process: u32) {
    lower(process, 0);
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    if let Err(error) = sched_getaffinity(Some(getpid())).and_then(|ours| sched_setaffinity(pid, &ours)) {
        tracing::debug!(%error, process, "it may use any processor");
    }
    let nice = getpriority_process(Some(getpid())).unwrap_or(0);
    if let Err(error) = std::fs::write(format!("/proc/{process}/autogroup"), nice.to_string()) {
        tracing::debug!(%error, process, "its session keeps its priority");
    }
}

/// Makes a process, and what it starts from now on, nicer than this one by [`MAY_NOT_END`], and keeps it off the processor that the threads
/// of this one leave alone.
pub fn set_aside(process: u32) {
    lower(process, MAY_NOT_END);
    if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        leave_a_processor_alone(Some(process));
    }
}

/// Makes the calling thread nicer than the process that it belongs to, and keeps it off the first processor of those that the process may use,
/// if there are others.
pub(crate) fn give_way() {
    set(None, COMPUTES);
    leave_a_processor_alone(None);
}

/// Linux takes the number of a process for its first thread, whose processors are those of the process, and none for the calling thread.
fn leave_a_processor_alone(whose: Option<Pid>) {
    let left = sched_getaffinity(Some(getpid())).and_then(|processors| sched_setaffinity(whose, &all_but_the_first(processors)));
    if let Err(error) = left {
        tracing::debug!(%error, "no processor is left alone");
    }
}

/// Returns all processors if there is only one.
fn all_but_the_first(processors: CpuSet) -> CpuSet {
    let mut others = processors;
    if let Some(first) = (0..CpuSet::MAX_CPU).find(|number| processors.is_set(*number))
        && processors.count() > 1
    {
        others.unset(first);
    }
    others
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
        let found = of_a_thread(|| getpriority_process(None).expect("a priority"));
        assert_eq!((found, getpriority_process(Some(getpid()))), ((ours + COMPUTES).min(19), Ok(ours)));
    }

    #[test]
    fn a_thread_that_computes_leaves_one_processor_alone_however_often_it_begins() {
        let numbers = |set: CpuSet| (0..CpuSet::MAX_CPU).filter(|number| set.is_set(*number)).collect::<Vec<_>>();
        let ours = numbers(sched_getaffinity(Some(getpid())).expect("processors"));
        let expected = if ours.len() > 1 { &ours[1..] } else { &ours[..] };
        let found = of_a_thread(|| of_a_thread(|| sched_getaffinity(None).expect("processors")));
        assert_eq!((numbers(found), numbers(sched_getaffinity(Some(getpid())).expect("processors"))), (expected.to_vec(), ours));
    }

    #[test]
    fn the_only_processor_is_used() {
        let mut one = CpuSet::new();
        one.set(3);
        assert_eq!(all_but_the_first(one), one);
        let mut two = one;
        two.set(0);
        assert_eq!(all_but_the_first(two), one);
    }

    /// What a thread finds that gives way twice.
    fn of_a_thread<T: Send>(find: impl FnOnce() -> T + Send) -> T {
        let begin = || {
            give_way();
            give_way();
            find()
        };
        std::thread::scope(|scope| scope.spawn(begin).join().expect("no panic"))
    }

    #[test]
    fn a_process_that_is_set_aside_is_nicer_than_the_one_that_started_it_and_leaves_it_a_processor() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
        set_aside(child.id());
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("small"));
        let found = (getpriority_process(pid), sched_getaffinity(pid));
        child.kill().expect("runs");
        child.wait().expect("a child");
        let ours = getpriority_process(Some(getpid())).expect("a priority");
        let others = all_but_the_first(sched_getaffinity(Some(getpid())).expect("processors"));
        assert_eq!(found, (Ok((ours + MAY_NOT_END).min(19)), Ok(others)));
    }
}
