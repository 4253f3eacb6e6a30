//! Impressions before the conversions of users who saw several variants: what models of attribution share a value among.
//!
//! Whoever saw one variant gives it everything under every model, so only the others' impressions are read.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use uuid::Uuid;

use super::image::{Image, moment};
use crate::answer::Experiment;
use crate::config::Limits;
use crate::copy::Kind;
use crate::engine::{self, Session};
use crate::error::Refusal;
use crate::snapshot::Snapshot;
use crate::tables::{Column, Source, Table, USER_KEY};

/// Users whose impressions are read by their ids; with more, all impressions of the experiment are.
const IDS_MAX: usize = 2_000;

/// One impression of a user who saw several variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touch {
    /// When, in microseconds since 1970.
    pub time: i64,
    /// Which variant.
    pub arm: u32,
}

/// Impressions by user, each user's in the order of time.
pub type Touches = HashMap<u32, Vec<Touch>>;

/// Reads the eligible impressions of users who saw several variants and converted.
/// # Errors
/// [`Refusal`].
pub async fn read(
    session: &Session,
    snapshot: &Arc<Snapshot>,
    experiment: &Experiment,
    variants: &[Uuid],
    image: &Image,
    limits: &Limits,
) -> Result<Touches, Refusal> {
    let mixed: Vec<u32> = image.after.filled().iter().copied().filter(|user| image.users.is_mixed[*user as usize]).collect();
    if mixed.is_empty() {
        return Ok(Touches::new());
    }
    let number_of: HashMap<[u8; 16], u32> = mixed.iter().map(|user| (image.users.keys[*user as usize], *user)).collect();
    session.add("impressions", Session::scan_of(impressions(experiment, variants), snapshot)).map_err(engine::refusal)?;
    let mut sql = "SELECT user_key, time, arm FROM impressions WHERE arm >= 0".to_owned();
    if mixed.len() <= IDS_MAX {
        let ids: Vec<String> =
            mixed.iter().map(|user| format!("'{}'", Uuid::from_bytes(image.users.keys[*user as usize]))).collect();
        sql.push_str(&format!(" AND user_id IN ({})", ids.join(", ")));
    }
    for (bound, operator) in [(experiment.started_us, ">="), (experiment.ended_us, "<")] {
        sql.extend(bound.map(|bound| format!(" AND time {operator} {}", moment(bound))));
    }
    let mut touches = Touches::new();
    let mut rows = 0usize;
    for batch in session.collect(&sql).await.map_err(engine::refusal)? {
        rows += batch.num_rows();
        if rows.saturating_mul(size_of::<Touch>()) > limits.query_memory_bytes_max {
            return Err(Refusal::limit("query_memory", "the impressions of users who saw several variants do not fit"));
        }
        let keys = batch.column(0).as_fixed_size_binary();
        let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let arms = batch.column(2).as_primitive::<arrow::datatypes::Int32Type>();
        for row in 0..batch.num_rows() {
            let user = <[u8; 16]>::try_from(keys.value(row)).ok().and_then(|key| number_of.get(&key));
            if let Some(user) = user.filter(|_| times.is_valid(row)) {
                touches.entry(*user).or_default().push(Touch { time: times.value(row), arm: arms.value(row) as u32 });
            }
        }
    }
    for touches in touches.values_mut() {
        touches.sort_unstable();
    }
    Ok(touches)
}

/// Eligible impressions of one experiment.
fn impressions(experiment: &Experiment, variants: &[Uuid]) -> Table {
    let ids: Vec<String> = variants.iter().map(|id| format!("'{id}'")).collect();
    let arm = format!("coalesce(array_position(ARRAY[{}]::uuid[], f.variant_id), 0) - 1", ids.join(", "));
    let columns = [
        (USER_KEY.name, "f.user_id", Kind::Key),
        ("user_id", "f.user_id", Kind::Uuid),
        ("time", "f.event_time", Kind::Time),
        ("arm", arm.as_str(), Kind::Int),
    ];
    let from = format!(
        "(SELECT * FROM impressions WHERE experiment_id = '{}' AND user_was_eligible IS NOT FALSE AND NOT is_bot) f",
        experiment.id
    );
    Table {
        name: "impressions",
        columns: columns.iter().map(|(name, _, kind)| Column { name, kind: *kind }).collect(),
        sources: vec![Source { from, expressions: columns.iter().map(|(_, expression, _)| (*expression).to_owned()).collect() }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_eligible_impressions_of_the_experiment_are_read() {
        let experiment = Experiment { id: Uuid::from_u128(5), ..Experiment::default() };
        let table = impressions(&experiment, &[Uuid::from_u128(1)]);
        let from = &table.sources[0].from;
        for part in ["00000000-0000-0000-0000-000000000005", "user_was_eligible IS NOT FALSE", "NOT is_bot"] {
            assert!(from.contains(part), "{from}");
        }
        assert_eq!(table.columns.len(), table.sources[0].expressions.len());
        assert!(crate::tables::table("impressions").is_none(), "SQL of clients knows no such table");
    }
}
