//! Impressions before the conversions of users who saw several variants: what models of attribution share a value among.
//!
//! Whoever saw one variant gives it everything under every model, so only the others' impressions are read.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, TimestampMicrosecondType};
use datafusion::common::DataFusionError;
use uuid::Uuid;

use crate::copy::Kind;
use crate::experiment::read::cohort::Cohort;
use crate::experiment::read::cohort_reader::{Reader, time_literal};
use crate::tables::USER_KEY;

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
/// Those of DataFusion.
pub(super) async fn read(reader: &Reader<'_>, cohort: &Cohort) -> Result<Touches, DataFusionError> {
    let mixed: Vec<u32> = cohort.after.filled().iter().copied().filter(|user| cohort.users.is_mixed[*user as usize]).collect();
    if mixed.is_empty() {
        return Ok(Touches::new());
    }
    let number_of: HashMap<[u8; 16], u32> = mixed.iter().map(|user| (cohort.users.keys[*user as usize], *user)).collect();
    let columns = [
        (USER_KEY.name, "f.user_id", Kind::Key),
        ("user_id", "f.user_id", Kind::Uuid),
        ("time", "f.event_time", Kind::Time),
        ("arm", &reader.arm(), Kind::Int),
    ];
    let eligible = format!("{} AND r.user_was_eligible IS NOT FALSE AND NOT r.is_bot", reader.of_experiment());
    reader.add(reader.table("touches", "impressions", &eligible, &columns))?;
    let mut sql = "SELECT user_key, time, arm FROM touches WHERE arm >= 0".to_owned();
    if mixed.len() <= IDS_MAX {
        let ids: Vec<String> =
            mixed.iter().map(|user| format!("'{}'", Uuid::from_bytes(cohort.users.keys[*user as usize]))).collect();
        sql.push_str(&format!(" AND user_id IN ({})", ids.join(", ")));
    }
    let (from, to) = reader.query.runs;
    for (bound, operator) in [(from, ">="), (to, "<")] {
        sql.extend(bound.map(|bound| format!(" AND time {operator} {}", time_literal(bound))));
    }
    let mut touches = Touches::new();
    for batch in reader.collect(&sql).await? {
        let keys = batch.column(0).as_fixed_size_binary();
        let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let arms = batch.column(2).as_primitive::<Int32Type>();
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
