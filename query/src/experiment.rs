//! `GET /v1/experiments/{name}/results`: read -> measure -> test -> say, each a value that the next one takes.
//!
//! [`read`] brings catalogue and cohort from one snapshot, [`measure`] adds up what each variant's users did, [`test`] finds what
//! that shows, [`say`] writes the answer. All after the reading is a pure function of what was read.

pub mod list;
pub mod measure;
pub mod read;
pub mod request;
pub mod say;
pub mod test;
pub mod text;
pub mod warning;

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::http::app::App;
use crate::http::error::ApiError;
use measure::measure;
use read::read;
use request::Request;
use say::body::Results;
use say::say;
use test::test;

/// Where the time of one answer went.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// Waiting for the same cohort in another answer, the snapshot and the catalogue.
    pub catalogue: Duration,
    /// Users and what they did.
    pub cohort: Duration,
    /// Sums, statistics and sentences.
    pub statistics: Duration,
}

/// Answers one request about one experiment.
/// # Errors
/// [`ApiError`]; `unknown_experiment`, `unknown_variant`, `unknown_metric` and `unsupported_catalogue` among them.
pub async fn results(app: &App, project: Uuid, name: &str, request: &Request) -> Result<(Results, Steps), ApiError> {
    let began = Instant::now();
    let read = read(app, project, name, request).await?;
    let has_read = began.elapsed();
    let measured = measure(&read, request)?;
    let tested = test(&measured, request)?;
    let results = say(&read, &measured, tested, request)?;
    let catalogue = read.catalogue_took;
    Ok((results, Steps { catalogue, cohort: has_read - catalogue, statistics: began.elapsed() - has_read }))
}
