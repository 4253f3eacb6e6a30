//! Servers under measurement: this program again or another one, as a child process, so that their CPU time is theirs alone.

use std::io::{BufRead, BufReader, Read as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::machine;

/// How long a server may take to end.
const STOP_MAX: Duration = Duration::from_secs(60);

/// A running server. It ends when its input is closed, at the latest with this value.
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Where it listens.
    pub url: String,
}

impl Server {
    /// Starts this program with these arguments and waits until it says `url ADDRESS`.
    pub(crate) fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own path")?;
        Self::start_program(Command::new(program).args(arguments), "url")
    }

    /// Starts a program that ends with its input, and waits until it says `NAME ADDRESS`.
    pub(crate) fn start_program(command: &mut Command, name: &str) -> anyhow::Result<Self> {
        let shown = format!("{command:?}");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| format!("starting {shown}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take().context("was piped")?);
        let mut server = Server { child, input, output: BufReader::new(output), url: String::new() };
        let mut line = String::new();
        server.output.read_line(&mut line)?;
        match line.trim().split_once(' ') {
            Some((found, url)) if found == name => url.clone_into(&mut server.url),
            _ => bail!("{shown} did not start: {:?} instead of its {name}", line.trim()),
        }
        Ok(server)
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        machine::cpu_seconds(self.child.id())
    }

    pub(crate) fn peak_memory_mib(&self) -> f64 {
        machine::peak_memory_mib(self.child.id())
    }

    /// Ends it in order, and returns what else it said.
    pub(crate) fn stop(mut self) -> anyhow::Result<String> {
        drop(self.input.take());
        let began = Instant::now();
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if began.elapsed() > STOP_MAX => bail!("the server did not end within {} s", STOP_MAX.as_secs()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut said = String::new();
        self.output.read_to_string(&mut said)?;
        if !status.success() {
            bail!("the server ended with {status}: {said}");
        }
        Ok(said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
