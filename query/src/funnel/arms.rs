//! The variants of an experiment as a funnel divides its units by them, and what the difference between them shows.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, TimestampMicrosecondType};
use datafusion::common::DataFusionError;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::provider_as_source;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::{LogicalPlanBuilder, cast};
use datafusion::prelude::{col, lit};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use statistics::comparison::{Comparison, Observed, Sample, compare};
use statistics::multiplicity::{Correction, Member, adjust};
use statistics::proportions::Count;

use super::definition::Experiment;
use crate::engine::{self, Session};
use crate::experiment::read::catalogue::{self, choose_control};
use crate::http::error::{ApiError, Code};
use crate::source::names::nearest;
use crate::source::snapshot::Snapshot;
use crate::source::tables;
use std::sync::Arc;

/// An experiment's variants with the users that each was shown to.
#[derive(Debug)]
pub struct Arms {
    /// Their names, the control first if there is one.
    pub names: Vec<String>,
    has_control: bool,
    alpha: f64,
    participants: HashMap<[u8; 16], Participant>,
    /// Users who saw several variants; they are left out.
    pub several: u64,
    _reservation: Option<MemoryReservation>,
}

/// A user of an experiment.
#[derive(Clone, Copy, Debug)]
pub struct Participant {
    /// The variant, as a number of [`Arms::names`].
    pub variant: u16,
    /// The first exposure; microseconds since 1970.
    pub exposure: i64,
}

impl Arms {
    /// Reads them.
    /// # Errors
    /// [`ApiError`]; `unknown_experiment` and `unknown_variant` among them.
    pub async fn read(experiment: &Experiment, session: &Session, snapshot: &Arc<Snapshot>) -> Result<Self, ApiError> {
        let project = snapshot.project();
        let defined = {
            let mut connection = snapshot.transaction().await;
            let found = catalogue::find(&mut connection, project, &experiment.key).await;
            match found.map_err(|error| catalogue::refusal(&error))? {
                Some(defined) => defined,
                None => {
                    let names = sqlx::query_scalar("SELECT name FROM experiments WHERE project_id = $1").bind(project);
                    let names: Vec<String> =
                        names.fetch_all(&mut **connection).await.map_err(|error| engine::database_error(&error))?;
                    return Err(unknown_experiment(&experiment.key, &names));
                }
            }
        };
        let mut variants = defined.variants;
        let control = choose_control(&mut variants, experiment.baseline.as_deref()).map_err(|names| {
            let mut refusal = ApiError::bad_request(format!("the experiment has no such variant; it has: {names}"));
            refusal.code = Code::UnknownVariant;
            refusal.at("experiment.baseline")
        })?;
        variants.sort_by_key(|variant| !variant.is_control);
        let mut arms = Arms {
            names: variants.iter().map(|variant| variant.name.clone()).collect(),
            has_control: control.is_some(),
            alpha: defined.experiment.alpha,
            participants: HashMap::new(),
            several: 0,
            _reservation: None,
        };
        let numbers = (0u16..).zip(&variants).map(|(number, variant)| (variant.id.to_string(), number)).collect();
        let id = defined.experiment.id.to_string();
        arms.read_participants(&id, &numbers, session, snapshot).await.map_err(engine::api_error)?;
        Ok(arms)
    }

    async fn read_participants(
        &mut self,
        experiment: &str,
        numbers: &HashMap<String, u16>,
        session: &Session,
        snapshot: &Arc<Snapshot>,
    ) -> Result<(), DataFusionError> {
        let internal = |what: &str| DataFusionError::Internal(what.to_owned());
        let table = tables::table("participation").ok_or_else(|| internal("no table participation"))?.with_user_key();
        let scan = provider_as_source(Session::scan_of(table, snapshot));
        let source = LogicalPlanBuilder::scan("participation", scan, None)?.build()?;
        let text = arrow::datatypes::DataType::Utf8;
        let columns = vec![col("user_key"), cast(col("variant_id"), text), col("first_exposure_date"), col("variants_seen")];
        let frame =
            DataFrame::new(session.state().clone(), source).filter(col("experiment_id").eq(lit(experiment)))?.select(columns)?;
        let mut stream = session.run(frame.into_unoptimized_plan()).await?;
        let reservation = MemoryConsumer::new("participants").register(&session.state().runtime_env().memory_pool);
        while let Some(batch) = stream.try_next().await? {
            let users = batch.column(0).as_fixed_size_binary();
            let variants = batch.column(1).as_string::<i32>();
            let exposures = batch.column(2).as_primitive::<TimestampMicrosecondType>();
            let seen = batch.column(3).as_primitive::<Int32Type>();
            for row in 0..batch.num_rows() {
                let user = <[u8; 16]>::try_from(users.value(row)).map_err(|_| internal("a user id of another length"))?;
                if seen.is_valid(row) && seen.value(row) > 1 {
                    self.several += 1;
                } else if let Some(variant) = numbers.get(variants.value(row)) {
                    self.participants.insert(user, Participant { variant: *variant, exposure: exposures.value(row) });
                }
            }
            reservation.try_resize(self.participants.capacity() * 48)?;
        }
        self._reservation = Some(reservation);
        Ok(())
    }

    /// Returns what is known of a user; none of one who is no participant, or saw several variants.
    pub fn participant(&self, user: &[u8; 16]) -> Option<Participant> {
        self.participants.get(user).copied()
    }

    /// Returns how many users each variant was first shown to in a time, half open.
    pub fn exposed(&self, from: Option<i64>, to: Option<i64>) -> Vec<u64> {
        let mut exposed = vec![0; self.names.len()];
        let is_in = |at: i64| from.is_none_or(|from| from <= at) && to.is_none_or(|to| at < to);
        for participant in self.participants.values().filter(|participant| is_in(participant.exposure)) {
            exposed[usize::from(participant.variant)] += 1;
        }
        exposed
    }

    /// Compares each variant with the control, step by step: `reached[variant][step]` of `whole[variant]` units. The last step is the
    /// goal, and the p-values of all steps and variants are adjusted as one family. Returns a list for each variant.
    pub fn significance(&self, reached: &[&[u64]], whole: &[u64], first: usize) -> Vec<Vec<Value>> {
        let mut written: Vec<Vec<Value>> = vec![Vec::new(); self.names.len()];
        if !self.has_control || reached.len() != self.names.len() {
            return written;
        }
        let observed = |variant: usize, step: usize| {
            Observed::from(Sample::Share(Count { users: whole[variant], converted: reached[variant][step].min(whole[variant]) }))
        };
        let steps = reached.first().map_or(0, |steps| steps.len());
        let mut found: Vec<(usize, usize, Comparison)> = Vec::new();
        for variant in 1..self.names.len() {
            for step in first..steps {
                found.push((variant, step, compare(&observed(0, step), &observed(variant, step), self.alpha)));
            }
        }
        let member = |(_, _, comparison): &(usize, usize, Comparison)| {
            let p_value = comparison.p_value();
            Member { p_value, is_tested: p_value.is_some(), is_primary: true }
        };
        let family: Vec<Member> = found.iter().map(member).collect();
        let adjusted = adjust(&family, Correction::Holm, self.alpha);
        for ((variant, step, comparison), adjusted) in found.into_iter().zip(adjusted) {
            let relative = comparison.difference.and_then(|difference| difference.relative(difference.critical(self.alpha)));
            let pair = |interval: Option<(f64, f64)>| interval.map(|(low, high)| [low, high]);
            written[variant].push(json!({
                "step": step + 1,
                "vs": self.names[0],
                "status": comparison.status.as_str(),
                "difference": comparison.estimate,
                "difference_ci": pair(comparison.interval(self.alpha)),
                "lift": comparison.lift,
                "ci": pair(relative),
                "p": comparison.p_value().map(|p_value| p_value.p),
                "p_adjusted": adjusted.p_value.map(|p_value| p_value.p),
            }));
        }
        written
    }
}

fn unknown_experiment(name: &str, names: &[String]) -> ApiError {
    let shown: String = name.chars().take(200).collect();
    let near = nearest(name, names.iter().map(String::as_str));
    let near = if near.is_empty() { "there are none yet".to_owned() } else { format!("the nearest are {}", near.join(", ")) };
    ApiError::not_found(Code::UnknownExperiment, format!("there is no experiment with the name or id {shown:?}; {near}"))
        .at("experiment.key")
}
