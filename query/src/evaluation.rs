//! What was known of each experiment when: its answer at the end of each day of its events, and that of its guardrails at the end of an
//! hour, recorded once and never changed; and what of it somebody is told.
//!
//! A round: what is over ([`due`]) -> answers -> what they found ([`findings`]) -> what is to be told ([`notices`]) -> one transaction
//! ([`store`]). A day is over when an event of a later one is stored, so that the same rows give the same records whenever they are made;
//! events that come late change no record but make a later revision of it. [`deliver`] sends what is to be told.

pub mod decided;
pub(crate) mod deliver;
mod due;
mod duty;
mod findings;
mod notices;
mod store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use catalogue::policy::OnHarm;
use catalogue::{NoticeKind, Period, Role, behind, experiments};
use serde_json::{Value, json};
use service::{BackOff, Stop};
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

use crate::experiment::read::catalogue::{Configured, Defined};
use crate::experiment::read::cohort::DAY_US;
use crate::experiment::read::{self, catalogue as stored};
use crate::experiment::request::{AskedMetrics, Request};
use crate::experiment::{compute, read::read};
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::limits::QueryKind;
use crate::source::snapshot::time_text;
use due::{Over, end_of};
use duty::Duty;
use findings::Findings;
use notices::{Of, notices};
use store::Project;

/// How often it is looked whether a day or an hour is over.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether a project has fallen silent, which takes days.
const SILENCES_EVERY: Duration = Duration::from_secs(600);
/// The longest pause after failures, about.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// So long one experiment has a place among the running queries before others may have it.
const TURN_MAX: Duration = Duration::from_secs(5);

/// Why a round was not finished.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Schema(#[from] catalogue::schema::SchemaError),
    #[error("{0} evaluations failed")]
    Evaluations(usize),
}

/// Evaluates until a stop. Of several processes one does.
pub(crate) async fn run(app: Arc<App>, options: PgConnectOptions, mut stop: Stop) {
    let duty = Duty::new(options, store::EVALUATES);
    let mut evaluator = Evaluator { app, duty, over: HashMap::new(), silences_at: Instant::now() };
    let mut back_off = BackOff::new(ROUND_EVERY, PAUSE_MAX);
    while !stop.is_requested() {
        let round = tokio::select! {
            round = evaluator.round() => round,
            () = stop.requested() => return,
        };
        let pause = match round {
            Ok(()) => {
                back_off.reset();
                ROUND_EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "experiments are not all evaluated; trying again");
                if !matches!(error, RoundError::Evaluations(_)) {
                    evaluator.duty.give_up();
                }
                back_off.delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.requested() => return,
        }
    }
}

struct Evaluator {
    app: Arc<App>,
    duty: Duty,
    /// What was over of each project when it was evaluated.
    over: HashMap<Uuid, Over>,
    silences_at: Instant,
}

impl Evaluator {
    async fn round(&mut self) -> Result<(), RoundError> {
        let Some((is_new, connection)) = self.duty.held().await? else { return Ok(()) };
        if is_new {
            self.over.clear();
        }
        let mut failed = 0;
        for project in store::projects(connection).await? {
            let Some(over) = project.newest.map(Over::by) else { continue };
            if self.over.get(&project.id) == Some(&over) {
                continue;
            }
            match evaluate_project(&self.app, connection, &project, over).await? {
                0 => drop(self.over.insert(project.id, over)),
                some => failed += some,
            }
        }
        if Instant::now() >= self.silences_at {
            tell_silences(connection).await?;
            self.silences_at = Instant::now() + SILENCES_EVERY;
        }
        if failed == 0 { Ok(()) } else { Err(RoundError::Evaluations(failed)) }
    }
}

/// Evaluates the experiments of a project. Returns how many could not be.
async fn evaluate_project(
    app: &Arc<App>,
    connection: &mut PgConnection,
    project: &Project,
    over: Over,
) -> Result<usize, RoundError> {
    let (positions, before) = (store::positions(connection).await?, store::progress(connection, project.id).await?);
    let touched = match &before {
        Some(before) => store::touched(connection, project.id, before, &positions).await?,
        None => None,
    };
    let mut failed = 0;
    // What this build cannot read is said where it is asked for.
    for defined in stored::list(connection, project.id).await?.into_iter().flatten().filter(|one| due::is_evaluated(one, over)) {
        let evaluation = Evaluation { app, project, defined: &defined };
        match evaluation.run(connection, over, touched).await {
            Ok(()) => {}
            Err(EvaluationError::Database(error)) => return Err(error.into()),
            Err(error) => {
                failed += 1;
                app.metrics.evaluation("failed");
                tracing::warn!(experiment = defined.experiment.name, %error, "an experiment could not be evaluated");
            }
        }
    }
    if failed == 0 {
        store::set_progress(connection, project.id, &positions).await?;
    }
    Ok(failed)
}

/// Why an experiment was not evaluated.
#[derive(Debug, thiserror::Error)]
enum EvaluationError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Answer(#[from] ApiError),
    #[error(transparent)]
    Catalogue(#[from] catalogue::CatalogueError),
}

/// One experiment of a round.
struct Evaluation<'a> {
    app: &'a Arc<App>,
    project: &'a Project,
    defined: &'a Defined,
}

impl Evaluation<'_> {
    async fn run(&self, connection: &mut PgConnection, over: Over, touched: Option<i64>) -> Result<(), EvaluationError> {
        let experiment = self.defined.experiment.id;
        let recorded = store::recorded(connection, self.project.id, experiment).await?;
        let began = match recorded {
            Some(_) => None,
            None => store::first_exposure(connection, self.project.id, experiment).await?,
        };
        let mut days = due::days(self.defined, over, began, recorded, touched);
        let mut newest = None;
        while !days.is_empty() {
            let moments: Vec<i64> = days.clone().map(end_of).collect();
            let answers = self.answers(moments, Request::default()).await?;
            // Each turn makes one at least.
            days.start += answers.len().max(1) as i64;
            for (as_of, answer) in answers {
                newest = Some(self.record(connection, Period::Day, as_of, &answer).await?);
            }
        }
        if let Some(as_of) = over.hour().filter(|_| due::has_hours(self.defined)) {
            let is_guardrail = |metric: &&Configured| metric.role == Role::Guardrail;
            let guardrails = self.defined.metrics.iter().filter(is_guardrail);
            let metrics = guardrails.map(|metric| AskedMetrics(metric.name.clone())).collect();
            let request = Request { metrics, ..Request::default() };
            for (as_of, answer) in self.answers(vec![as_of], request).await? {
                newest = Some(self.record(connection, Period::Hour, as_of, &answer).await?);
            }
        }
        match newest {
            Some(found) if self.defined.experiment.policy.on_harm == OnHarm::Stop && found.has_harm() => {
                self.stop_harm(connection).await
            }
            _ => Ok(()),
        }
    }

    /// Answers as of some moments, ascending, as many of them as one turn has time for.
    async fn answers(&self, moments: Vec<i64>, request: Request) -> Result<Vec<(i64, Bytes)>, ApiError> {
        // The name by which others ask, too, so that they share a cohort.
        let (project, name) = (self.project.id, self.defined.experiment.name.clone());
        let work = move |app: Arc<App>| async move {
            let began = Instant::now();
            let newest: read::Read = read(&app, project, &name, &request).await?;
            let mut answers = Vec::new();
            for as_of in moments {
                let request = Request { as_of: Some(as_of), ..request.clone() };
                answers.push((as_of, compute(&newest.until(as_of), &request)?));
                if began.elapsed() > TURN_MAX {
                    break;
                }
            }
            Ok(answers)
        };
        self.app.within_limits(project, QueryKind::Evaluation, work).await
    }

    /// Ends an experiment that harms, where it is to be ended: what it has shown stays, and exposures count no longer.
    async fn stop_harm(&self, connection: &mut PgConnection) -> Result<(), EvaluationError> {
        let experiment = &self.defined.experiment;
        if !["running", "paused"].contains(&experiment.status.as_str()) {
            return Ok(());
        }
        // Tried again with the next round while somebody else computes it anew.
        if !behind::try_lock(connection, experiment.id).await? {
            return Err(ApiError::internal().into());
        }
        let outcome = self.stop_alone(connection).await;
        behind::unlock(connection, experiment.id).await;
        outcome
    }

    async fn stop_alone(&self, connection: &mut PgConnection) -> Result<(), EvaluationError> {
        let (project, experiment) = (self.project, &self.defined.experiment);
        let of = catalogue::Project { id: project.id, name: project.name.clone() };
        let mut change = catalogue::Change::begin(connection, &of).await?;
        let stopped = experiments::stop(&mut change, &experiment.id.to_string()).await?;
        if !stopped.is_change() {
            return Ok(());
        }
        behind::mark(change.connection(), project.id, experiment.id).await?;
        let name = &experiment.name;
        let text = format!("experiment {name}: it is stopped, since a guardrail is harmed; exposures count no longer");
        let body = json!({
            "text": text,
            "project": project.name,
            "experiment": name,
            "experiment_id": experiment.id,
            "now": stopped.after.status,
        });
        let id = Uuid::new_v5(&experiment.id, format!("stopped in phase {}", stopped.after.phases.len()).as_bytes());
        store::tell(change.connection(), project.id, experiment.id, (id, NoticeKind::ExperimentStopped, &body)).await?;
        let mut details = stopped.details();
        details["by"] = "on_harm".into();
        change.commit("experiment.stop", name, &details).await?;
        tracing::warn!(experiment = name, project = project.name, "an experiment is stopped, since a guardrail is harmed");
        Ok(())
    }

    /// Records an answer, unless it was and finds the same. Returns what it finds.
    async fn record(
        &self,
        connection: &mut PgConnection,
        period: Period,
        as_of: i64,
        answer: &Bytes,
    ) -> Result<Findings, EvaluationError> {
        let experiment = &self.defined.experiment;
        let key = (self.project.id, experiment.id);
        let json = std::str::from_utf8(answer).map_err(|_| ApiError::internal())?;
        let answer: Value = serde_json::from_str(json).map_err(|_| ApiError::internal())?;
        let found = match period {
            Period::Day => Findings::of(&answer),
            Period::Hour => Findings::of(&answer).of_hour(),
        };
        let former = store::record_of(connection, key, period, as_of).await?;
        // A day comes after a day; what an hour says may have been said by the day before it.
        let periods: &[Period] = if period == Period::Day { &[Period::Day] } else { &[Period::Day, Period::Hour] };
        let before = store::record_before(connection, key, periods, as_of).await?;
        let changes = former.as_ref().map(|former| former.findings.changes_to(&found)).unwrap_or_default();
        let is_new = match (&former, period) {
            (Some(_), _) => !changes.is_empty(),
            // Nobody was exposed yet, where late events came to be the first ones.
            (None, _) if answer["population"]["exposed_users"] == 0 => false,
            (None, Period::Day) => true,
            // Of hours those are kept that say something else than what was said before.
            (None, Period::Hour) => before.as_ref().is_none_or(|before| before.says_something_else_than(&found)),
        };
        if !is_new {
            self.app.metrics.evaluation("unchanged");
            return Ok(found);
        }
        let revision = former.map_or(1, |former| former.revision + 1);
        let of = Of { project: &self.project.name, experiment: (experiment.id, &experiment.name), period, as_of, revision };
        let mut told = notices(&experiment.name, before.as_ref(), &found);
        // What late events make a day say may have been said, and told, since the next one.
        if revision > 1
            && let Some(next) = store::record_of(connection, key, period, as_of.saturating_add(DAY_US)).await?
        {
            told.retain(|notice| !notice.is_said_by(&next.findings));
        }
        if store::record(connection, self.project.id, &of, (&answer, json), &changes, &told).await? {
            self.app.metrics.evaluation(if revision == 1 { "recorded" } else { "restated" });
        }
        Ok(found)
    }
}

/// Tells of running experiments whose project has no more events.
async fn tell_silences(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    for silent in store::silent(connection).await? {
        let since = time_text(silent.newest);
        let id = Uuid::new_v5(&silent.experiment, format!("no data since {since}").as_bytes());
        let (name, days) = (&silent.name, silent.usual_days);
        let days = if days == 1 { "a day".to_owned() } else { format!("{days} days") };
        let text = format!(
            "experiment {name}: the project has no events since {since}; its days with exposures were never more than {days} apart"
        );
        let body = json!({
            "text": text,
            "project": silent.project_name,
            "experiment": name,
            "experiment_id": silent.experiment,
            "now": "no_data",
            "since": since,
            // It rests on a clock and not on rows, so that no record says it.
            "is_recorded": false,
        });
        store::tell(connection, silent.project, silent.experiment, (id, NoticeKind::NoData, &body)).await?;
    }
    Ok(())
}
