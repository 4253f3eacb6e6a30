//! `weir probe`: asks a service whether it is ready, where there is no other program to ask with.

use std::time::Duration;

use anyhow::bail;
use hyper::StatusCode;

use crate::cli::Globals;
use crate::client::Client;

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// The service, such as http://127.0.0.1:8080
    url: String,
    /// Timeout in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    within: u64,
}

/// Runs the command.
/// # Errors
/// If the service does not answer in time, or is not ready; the text says why, in its words.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let answer = Client::new(&args.url, None, globals.ca.as_deref())?.probe("/readyz", Duration::from_secs(args.within)).await?;
    if answer.status != StatusCode::OK {
        bail!("{}: {} {}", args.url, answer.status, answer.line());
    }
    Ok(())
}
