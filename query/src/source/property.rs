//! A value that events have: a column of the table `events`, or a property that the client sent.

use datafusion::common::{Result, ScalarValue};
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{Expr, cast};
use datafusion::prelude::{col, lit};

use crate::source::tables;

/// Columns that only say how an event was stored.
const HIDDEN: [&str; 4] = ["properties", "log_id", "log_partition", "log_offset"];

/// A value that events have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Property {
    /// A column.
    Column(&'static str),
    /// A member of `properties`.
    Json(String),
}

impl Property {
    /// Finds what a name means: a column of events, else a property; `properties.NAME` always means the latter. `None`: there is no such
    /// name.
    pub fn of(name: &str) -> Option<Self> {
        if let Some(key) = name.strip_prefix("properties.") {
            return (!key.is_empty()).then(|| Property::Json(key.to_owned()));
        }
        let columns = tables::table("events").map(|table| table.columns.as_slice()).unwrap_or_default();
        match columns.iter().find(|column| column.name == name) {
            Some(column) if HIDDEN.contains(&column.name) => None,
            Some(column) => Some(Property::Column(column.name)),
            None if name.is_empty() => None,
            None => Some(Property::Json(name.to_owned())),
        }
    }

    /// Finds what a name means where a property has to have its prefix, so that a misspelt column is none.
    pub fn prefixed(name: &str) -> Option<Self> {
        match Property::of(name) {
            Some(Property::Json(_)) if !name.starts_with("properties.") => None,
            found => found,
        }
    }

    /// Returns the name that always means this.
    pub fn name(&self) -> String {
        match self {
            Property::Column(name) => (*name).to_owned(),
            Property::Json(key) => format!("properties.{key}"),
        }
    }

    /// Returns it as an expression over `events`, a text; null where an event has none.
    /// # Errors
    /// Those of DataFusion.
    pub fn expr(&self, registry: &dyn FunctionRegistry) -> Result<Expr> {
        let text = arrow::datatypes::DataType::Utf8;
        Ok(match self {
            Property::Column(name) => cast(col(*name), text),
            Property::Json(key) => {
                let properties = col("properties");
                let key = lit(ScalarValue::Utf8(Some(key.clone())));
                cast(registry.udf("json_as_text")?.call(vec![properties, key]), text)
            }
        })
    }
}
