//! Supervised child processes: started, watched, restarted with back-off, ended in bounded time.
//!
//! Each has a process group of its own, so that Ctrl-C in a terminal reaches `weir up` only, which ends them in order.

use std::future::Future;
use std::time::Duration;

use anyhow::{anyhow, bail};
use rustix::process::{Pid, Signal};
use service::BackOff;
use tokio::process::Child;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The wait before the first new start, about.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest wait, about; each start that does not last doubles it until here.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a process must have run for the next wait to be the shortest again.
const STEADY: Duration = Duration::from_secs(30);
/// How often a process that is no child of ours is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a process that is made to end may take.
const FORCED_MAX: Duration = Duration::from_secs(1);

/// A running process.
pub(crate) enum Process {
    /// Started by this process.
    Child(Child),
    /// Started by a former one, which is gone.
    Adopted(Pid),
}

impl Process {
    /// Waits for its end; may be cancelled.
    pub(crate) async fn wait(&mut self) -> String {
        match self {
            Process::Child(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            Process::Adopted(pid) => {
                while is_running(*pid) {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                "ended".to_owned()
            }
        }
    }

    /// Sends a signal; to a process that has ended, none.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = match self {
            Process::Child(child) => child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())),
            Process::Adopted(pid) => Some(*pid),
        };
        if let Some(pid) = pid {
            // It may have ended a moment ago, which is what a signal is sent for.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Returns its id, if it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Process::Child(child) => child.id(),
            Process::Adopted(pid) => Some(pid.as_raw_pid().cast_unsigned()),
        }
    }
}

/// Returns whether a process runs; one that has ended and waits to be collected does not.
pub(crate) fn is_running(pid: Pid) -> bool {
    if let Err(error) = rustix::process::test_kill_process(pid)
        && error == rustix::io::Errno::SRCH
    {
        return false;
    }
    // "pid (name) state ..": the name may hold anything, so the last parenthesis counts.
    match std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())) {
        Ok(stat) => !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// How a kind of process starts and ends.
pub(crate) trait Program: Send + 'static {
    /// What is known once it has answered for the first time.
    type First: Send;

    /// What log lines call it.
    const NAME: &'static str;

    /// Takes over a process that runs already.
    fn adopt(&mut self) -> impl Future<Output = Option<Process>> + Send {
        async { None }
    }

    /// Starts it.
    /// # Errors
    /// If there is nothing to start, or the system refuses.
    fn start(&mut self) -> anyhow::Result<Process>;

    /// Waits until the first process answers. May be cancelled.
    /// # Errors
    /// If waiting longer is of no use.
    fn answers(&mut self) -> impl Future<Output = anyhow::Result<Self::First>> + Send;

    /// Asks it to end in good order.
    fn ask_to_end(&mut self, process: &Process);

    /// Ends it at once, when it did not end in time.
    fn force_to_end(&mut self, process: &Process) {
        process.signal(Signal::KILL);
    }

    /// Returns whether a start that failed may succeed a moment later.
    fn may_succeed_later(&self) -> bool {
        false
    }

    /// Returns what its own log says about a start that failed.
    fn last_words(&self) -> String {
        String::new()
    }

    /// Cleans up after its end.
    fn ended(&mut self) {}
}

/// A process that is kept running until it is ended. When this is dropped instead, the process is left as it is.
pub(crate) struct SupervisedChild {
    name: &'static str,
    stop: oneshot::Sender<Instant>,
    task: JoinHandle<()>,
    /// Its sender is dropped when the task ends, however it does.
    ended: watch::Receiver<()>,
}

impl SupervisedChild {
    /// Starts a program, waits until it answers, and keeps it running from then on.
    /// # Errors
    /// If it ends before it answers, or does not answer in time; it is ended then.
    pub(crate) async fn start<P: Program>(mut program: P, wait_max: Duration) -> anyhow::Result<(SupervisedChild, P::First)> {
        let until = Instant::now() + wait_max;
        let mut process = match program.adopt().await {
            Some(process) => process,
            None => program.start()?,
        };
        let first = loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout_at(until, program.answers()) => match answer {
                    Ok(answer) => answer.map_err(|error| format!("{error:#}")),
                    Err(_) => Err(format!("no answer within {} s", wait_max.as_secs())),
                },
                status = process.wait() => Err(status),
            };
            match answer {
                Ok(first) => break first,
                Err(_) if Instant::now() < until && program.may_succeed_later() => {
                    tokio::time::sleep(BACKOFF_MIN).await;
                    process = match program.adopt().await {
                        Some(process) => process,
                        None => program.start()?,
                    };
                }
                Err(reason) => {
                    let words = program.last_words();
                    end(&mut program, &mut process, Instant::now() + FORCED_MAX).await;
                    bail!("{} did not start: {reason}{words}", P::NAME);
                }
            }
        };
        let (stop, stopped) = oneshot::channel();
        let (alive, ended) = watch::channel(());
        let task = tokio::spawn(async move {
            let _alive = alive;
            supervise(program, process, stopped).await;
        });
        Ok((SupervisedChild { name: P::NAME, stop, task, ended }, first))
    }

    /// Waits until the supervising task has ended although the process was not ended, which is a bug, and says so. May be cancelled.
    pub(crate) async fn lost(&self) -> anyhow::Error {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
        anyhow!("the task that keeps {} running has ended; its panic message is in the log", self.name)
    }

    /// Ends the process in good order, by force after `until`.
    pub(crate) async fn end(self, until: Instant) {
        // Where the task is gone already, there is nothing left to end.
        let _ = self.stop.send(until);
        let _ = self.task.await;
    }
}

async fn supervise<P: Program>(mut program: P, mut process: Process, mut stopped: oneshot::Receiver<Instant>) {
    let mut back_off = BackOff::new(BACKOFF_MIN, BACKOFF_MAX);
    service::checkpoint(&format!("weir/supervise-{}", P::NAME.replace(' ', "-")));
    loop {
        let since = Instant::now();
        tokio::select! {
            status = process.wait() => tracing::error!(program = P::NAME, status, "a child ended; it is started again"),
            until = &mut stopped => {
                // A sender that was dropped leaves the process as it is.
                let Ok(until) = until else { return };
                return end(&mut program, &mut process, until).await;
            }
        }
        if since.elapsed() >= STEADY {
            back_off.reset();
        }
        process = loop {
            tokio::select! {
                () = back_off.wait() => {}
                _ = &mut stopped => return program.ended(),
            }
            match program.start() {
                Ok(process) => break process,
                Err(error) => tracing::error!(program = P::NAME, error = format!("{error:#}"), "a child cannot be started"),
            }
        };
        tracing::info!(program = P::NAME, pid = process.pid(), "a child was started again");
    }
}

async fn end<P: Program>(program: &mut P, process: &mut Process, until: Instant) {
    program.ask_to_end(process);
    if tokio::time::timeout_at(until, process.wait()).await.is_err() {
        tracing::warn!(program = P::NAME, pid = process.pid(), "a child did not end in time and is made to");
        program.force_to_end(process);
        if tokio::time::timeout(FORCED_MAX, process.wait()).await.is_err() {
            tracing::error!(program = P::NAME, pid = process.pid(), "a child is still there");
            return;
        }
    }
    program.ended();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;

    /// A shell that notes each of its starts, and how it ended.
    struct Shell {
        folder: PathBuf,
        script: &'static str,
    }

    impl Program for Shell {
        type First = ();
        const NAME: &'static str = "a shell";

        fn start(&mut self) -> anyhow::Result<Process> {
            let child = tokio::process::Command::new("sh")
                .args(["-c", self.script])
                .current_dir(&self.folder)
                .stdin(Stdio::null())
                .process_group(0)
                .spawn()?;
            Ok(Process::Child(child))
        }

        async fn answers(&mut self) -> anyhow::Result<()> {
            // The shell makes the file before it writes the line.
            while starts(&self.folder) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        }

        fn ask_to_end(&mut self, process: &Process) {
            process.signal(Signal::TERM);
        }

        fn ended(&mut self) {
            let _ = std::fs::write(self.folder.join("ended"), "");
        }
    }

    fn starts(folder: &Path) -> usize {
        std::fs::read_to_string(folder.join("starts")).unwrap_or_default().lines().count()
    }

    async fn until_starts(folder: &Path, wanted: usize) {
        let waited = async {
            while starts(folder) < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waited).await.expect("starts often enough");
    }

    #[tokio::test]
    async fn a_process_that_dies_is_started_again_and_no_longer_after_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let shell = Shell { folder: folder.path().into(), script: "echo $$ >>starts; exec sleep 600" };
        let (child, ()) = SupervisedChild::start(shell, Duration::from_secs(10)).await.expect("starts");
        let first: i32 = std::fs::read_to_string(folder.path().join("starts")).expect("noted").trim().parse().expect("a pid");
        rustix::process::kill_process(Pid::from_raw(first).expect("not 0"), Signal::KILL).expect("it runs");
        until_starts(folder.path(), 2).await;
        child.end(Instant::now() + Duration::from_secs(5)).await;
        assert!(folder.path().join("ended").exists());
        for pid in std::fs::read_to_string(folder.path().join("starts")).expect("noted").lines() {
            let pid = Pid::from_raw(pid.parse().expect("a pid")).expect("not 0");
            assert!(!is_running(pid));
        }
    }

    #[tokio::test]
    async fn a_process_that_does_not_listen_is_made_to_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let shell =
            Shell { folder: folder.path().into(), script: "trap '' TERM; echo $$ >>starts; while :; do sleep 0.05; done" };
        let (child, ()) = SupervisedChild::start(shell, Duration::from_secs(10)).await.expect("starts");
        let begun = Instant::now();
        child.end(begun + Duration::from_millis(200)).await;
        assert!(begun.elapsed() >= Duration::from_millis(200), "it had its time");
        assert!(folder.path().join("ended").exists());
    }

    #[tokio::test]
    async fn a_start_that_fails_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let shell = Shell { folder: folder.path().into(), script: "exit 3" };
        let error = SupervisedChild::start(shell, Duration::from_secs(10)).await.err().expect("ended early").to_string();
        assert_eq!(error, "a shell did not start: exit status: 3");
    }
}
