//! `GET /v1/experiments/{name}/results`: read -> measure -> test -> say, each a value that the next one takes.
//!
//! [`read`] brings catalogue and cohort from one snapshot, [`measure`] adds up what each variant's users did, [`test`] finds what
//! that shows, [`say`] writes the answer. All after the reading is a pure function of what was read.

pub mod list;
pub mod measure;
pub mod read;
pub mod request;
pub mod rules;
pub mod say;
pub mod test;
pub mod text;
pub mod warning;

use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::cache::Cache;
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::source::snapshot::{AsOf, DataVersion};
use measure::measure;
use read::catalogue::Beside;
use read::{Read, read};
use request::Request;
use say::say;
use test::test;
use warning::Warning;

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

/// An answer about one experiment, as JSON, by project, experiment and request, each of what it rests on.
pub(crate) type Answers = Cache<(Uuid, String, Request), Basis, Bytes>;

/// Bytes of all answers that are cached.
pub(crate) const ANSWERS_BYTES_MAX: usize = 32 << 20;

/// What an answer rests on beside its request: equal ones have equal answers, but for when they were computed.
#[derive(PartialEq)]
pub(crate) struct Basis {
    version: DataVersion,
    as_of: AsOf,
    beside: Beside,
    unknown_names: Vec<Warning>,
}

/// Answers one request about one experiment, in JSON.
/// # Errors
/// [`ApiError`]; `unknown_experiment`, `unknown_variant`, `unknown_metric` and `unsupported_catalogue` among them.
pub async fn results(app: &App, project: Uuid, name: &str, request: &Request) -> Result<(Bytes, Steps), ApiError> {
    let began = Instant::now();
    let read = read(app, project, name, request).await?;
    let (catalogue, has_read) = (read.catalogue_took, began.elapsed());
    let basis = Basis {
        version: read.version.clone(),
        as_of: read.as_of.clone(),
        beside: read.catalogue.beside.clone(),
        unknown_names: read.unknown_names.clone(),
    };
    let key = (project, name.to_owned(), request.clone());
    let answer = match app.answers.get(&key, &basis) {
        Some(answer) => answer,
        None => {
            let answer = compute(&read, request)?;
            app.answers.put(key, basis, answer.clone(), answer.len());
            answer
        }
    };
    Ok((answer, Steps { catalogue, cohort: has_read - catalogue, statistics: began.elapsed() - has_read }))
}

/// Makes an answer of what was read.
/// # Errors
/// [`ApiError`]; `unknown_metric` among them.
pub(crate) fn compute(read: &Read, request: &Request) -> Result<Bytes, ApiError> {
    let measured = measure(read, request)?;
    let tested = test(&measured, request)?;
    let results = say(read, &measured, tested, request)?;
    let json = serde_json::to_vec(&results).map_err(|error| {
        tracing::error!(%error, "an answer could not be written");
        ApiError::internal()
    })?;
    Ok(json.into())
}
