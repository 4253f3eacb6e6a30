//! The rollups of a project as tables: `rollup_NAME`, and `rollup_NAME_states` of those that fold events first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use catalogue::rollups::datum::Type;
use catalogue::rollups::tables::Reading;
use catalogue::rollups::{self, Kept};
use datafusion::common::DataFusionError;

use crate::source::copy::Kind;
use crate::source::snapshot::Snapshot;
use crate::source::tables::{Column, Source, Table};

/// What the names of these tables begin with.
pub const PREFIX: &str = "rollup_";

/// Reads which tables there are: of each rollup the newest version that is filled.
/// # Errors
/// Those of Postgres.
pub async fn tables(snapshot: &Snapshot) -> Result<Vec<Table>, DataFusionError> {
    let external = |error: sqlx::Error| DataFusionError::External(Box::new(error));
    let kept = rollups::kept(&mut *snapshot.transaction().await, snapshot.project()).await.map_err(external)?;
    // By name and version: the last one of a name is the newest.
    let newest: BTreeMap<&str, &Kept> =
        kept.iter().filter(|kept| kept.is_filled).map(|kept| (kept.name.as_str(), kept)).collect();
    let mut tables = Vec::new();
    for (name, kept) in newest {
        let shape = kept.definition.shape().map_err(|error| DataFusionError::External(Box::new(error)))?;
        tables.push(table(format!("{PREFIX}{name}"), shape.reading(kept.number)));
        tables.extend(shape.reading_states(kept.number).map(|states| table(format!("{PREFIX}{name}_states"), states)));
    }
    Ok(tables)
}

fn table(name: String, reading: Reading) -> Table {
    let columns = reading.columns.iter().map(|(name, value_type)| Column { name: interned(name), kind: kind_of(*value_type) });
    let expression = |(name, value_type): &(String, Type)| match value_type {
        Type::Number => format!("f.\"{name}\"::numeric"),
        Type::Day => format!("f.\"{name}\"::text"),
        _ => format!("f.\"{name}\""),
    };
    let expressions = reading.columns.iter().map(expression).collect();
    Table { name: interned(&name), columns: columns.collect(), sources: vec![Source { from: reading.from, expressions }] }
}

fn kind_of(value_type: Type) -> Kind {
    match value_type {
        // A day is its ISO text, which compares as days do.
        Type::Text | Type::Day => Kind::Text,
        Type::Uuid => Kind::Uuid,
        Type::Boolean => Kind::Bool,
        Type::Number => Kind::Decimal(38, 6),
        Type::Time => Kind::Time,
    }
}

/// Returns a name that lives as long as the process, as those of all other tables do: there are only as many as operators declare.
fn interned(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    kept
}
