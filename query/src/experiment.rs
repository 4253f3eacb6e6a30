//! `GET /v1/experiments/{name}/results`: participation -> sums -> statistics -> answer.
//!
//! [`catalogue`] says what is measured, [`reading`] reads what users did into an [`image`], [`images`] keeps it, [`sums`] adds it up by variant in whole numbers,
//! [`compare`] tests it, [`decide`] says what follows. All after the reading is a pure function of what was read
//! ([`assemble`]), and no clock is asked: "now" is the time of the newest event, or the time that was asked for.

pub mod assemble;
pub mod breakdown;
pub mod catalogue;
pub mod compare;
pub mod credit;
pub mod decide;
pub mod health;
pub mod image;
pub mod images;
pub mod looks;
pub mod measure;
pub mod parallel;
pub mod plain;
pub mod population;
pub mod reading;
pub mod sample;
pub mod series;
pub mod settings;
pub mod sums;
pub mod touches;
pub mod verdict;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::DateTime;
use uuid::Uuid;

use crate::answer::{Experiment, Experiments, Listed, Results, Variant};
use crate::app::App;
use crate::engine;
use crate::error::Refusal;
use assemble::Known;
use images::Asked;
use reading::Question;
use settings::{Cuped, Request};

/// Lists the experiments of a project.
/// # Errors
/// [`Refusal`].
pub async fn list(app: &Arc<App>, project: Uuid) -> Result<Experiments, Refusal> {
    app.within_limits(|app| async move {
        let snapshot = app.snapshot(project).await?;
        let mut keeper = snapshot.keeper().await;
        let read = async {
            let experiments = catalogue::experiments(&mut keeper, project).await?;
            let variants = catalogue::variants(&mut keeper, project, None).await?;
            Ok::<_, sqlx::Error>((experiments, variants))
        };
        let (experiments, variants) = read.await.map_err(|error| engine::database_refusal(&error))?;
        let mut by_experiment: HashMap<Uuid, Vec<Variant>> = HashMap::new();
        for (experiment, variant) in variants {
            by_experiment.entry(experiment).or_default().push(variant);
        }
        let now = snapshot.as_of().event_time.as_deref().and_then(micros);
        let listed = |mut experiment: Experiment| {
            let mut variants = by_experiment.remove(&experiment.id).unwrap_or_default();
            // Without a baseline asked for there is nothing to miss.
            let control = catalogue::choose_control(&mut variants, None).ok().flatten();
            experiment.control_variant_id = control.map(|index| variants[index].id);
            experiment.days_running = now.and_then(|now| assemble::days_running(&experiment, now));
            variants.sort_by_key(|variant| !variant.is_control);
            Listed { experiment, variants }
        };
        Ok(Experiments { experiments: experiments.into_iter().map(listed).collect(), as_of: snapshot.as_of().clone() })
    })
    .await
}

/// Where the time of one answer went.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// Waiting for the same image in another answer, the snapshot and the catalogue.
    pub catalogue: Duration,
    /// Users and what they did.
    pub image: Duration,
    /// Sums, statistics and sentences.
    pub statistics: Duration,
}

/// Answers one question about one experiment.
/// # Errors
/// [`Refusal`]; `unknown_experiment`, `unknown_variant` and `unknown_metric` among them.
pub async fn results(app: &Arc<App>, project: Uuid, name: String, request: Request) -> Result<(Results, Steps), Refusal> {
    app.within_limits(|app| async move {
        let began = Instant::now();
        let asked = Asked {
            project,
            experiment: name.clone(),
            baseline: request.baseline.clone(),
            until: request.as_of,
            has_before: request.cuped == Cuped::Auto,
            dimension: request.dimension,
        };
        let place = app.images.place(&asked);
        let mut kept = place.lock().await;
        let snapshot = Arc::new(app.snapshot(project).await?);
        let known = {
            let mut keeper = snapshot.keeper().await;
            let database = |error: sqlx::Error| engine::database_refusal(&error);
            let experiment = catalogue::find(&mut keeper, project, &name).await.map_err(database)?;
            let experiment = experiment.ok_or_else(|| unknown_experiment(&name))?;
            let variants = catalogue::variants(&mut keeper, project, Some(experiment.id)).await.map_err(database)?;
            let configured = catalogue::metrics(&mut keeper, project, experiment.id).await.map_err(database)?;
            let unknown_variant = catalogue::unknown_variant_users(&mut keeper, project, &experiment).await.map_err(database)?;
            let impressions = catalogue::impressions(&mut keeper, project, experiment.id).await.map_err(database)?;
            let variants = variants.into_iter().map(|(_, variant)| variant).collect();
            let as_of = snapshot.as_of().clone();
            Known::new(experiment, variants, configured, (unknown_variant, impressions), as_of, &request)?
        };
        let has_catalogue = Instant::now();
        let session = app.engine.session().map_err(engine::refusal)?;
        let question = Question {
            experiment: known.experiment.id,
            variants: &population::ids(&known.variants),
            runs: (known.experiment.started_us, known.experiment.ended_us),
            until: asked.until,
            has_before: asked.has_before,
            dimension: asked.dimension,
            bytes_max: app.limits.query_memory_bytes_max,
        };
        let image = kept.follow(&session, &snapshot, &question, &app.metrics).await?;
        app.images.note(&asked, &kept);
        drop(kept);
        drop(snapshot);
        let has_image = Instant::now();
        let results = assemble::answer(known, &image, &request)?;
        let steps = Steps { catalogue: has_catalogue - began, image: has_image - has_catalogue, statistics: has_image.elapsed() };
        Ok((results, steps))
    })
    .await
}

/// Reads a time as answers write it.
pub fn micros(time: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(time).ok().map(|time| time.timestamp_micros())
}

fn unknown_experiment(name: &str) -> Refusal {
    let shown: String = name.chars().take(200).collect();
    let message = format!("there is no experiment with the name or id {shown:?}; GET /v1/experiments lists those that there are");
    Refusal::not_found("unknown_experiment", message)
}
