//! `GET /v1/experiments/{name}/results`: read -> measure -> test -> say, each a value that the next one takes.
//!
//! [`read`] brings catalogue and cohort from one snapshot, [`measure`] adds up what each variant's users did, [`test`] finds what
//! that shows, [`say`] writes the answer. All after the reading is a pure function of what was read.

pub mod measure;
pub mod read;
pub mod request;
pub mod say;
pub mod test;
pub mod text;
pub mod warning;

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::engine;
use crate::http::app::App;
use crate::http::error::ApiError;
use measure::measure;
use read::catalogue::{self, Defined};
use read::read;
use request::Request;
use say::body::{ExperimentSummary, Experiments, Results};
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

/// Lists the experiments of a project.
/// # Errors
/// [`ApiError`].
pub async fn list(app: &App, project: Uuid) -> Result<Experiments, ApiError> {
    let snapshot = app.snapshot(project).await?;
    let mut connection = snapshot.transaction().await;
    let defined = catalogue::list(&mut connection, project).await.map_err(|error| engine::database_error(&error))?;
    let now = snapshot.as_of().event_time.as_deref().and_then(measure::micros);
    let listed = |defined: Defined| {
        let Defined { mut experiment, mut variants, .. } = defined;
        // Without a baseline asked for there is nothing to miss.
        let control = catalogue::choose_control(&mut variants, None).ok().flatten();
        experiment.control_variant_id = control.map(|index| variants[index].id);
        experiment.days_running = now.and_then(|now| measure::days_running(&experiment, now));
        variants.sort_by_key(|variant| !variant.is_control);
        ExperimentSummary { experiment, variants }
    };
    let (mut experiments, mut unsupported) = (Vec::new(), Vec::new());
    for defined in defined {
        match defined {
            Ok(defined) => experiments.push(listed(defined)),
            Err(error) => unsupported.push(error.to_string()),
        }
    }
    Ok(Experiments { experiments, unsupported, as_of: snapshot.as_of().clone() })
}
