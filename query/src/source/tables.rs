//! The tables that queries see: their columns, and the SQL that reads them from Postgres.
//!
//! A table is one or more sources, each a FROM clause with an expression per column. Every FROM clause filters by the
//! alias `f`'s project; the scan puts the project in from the token and from nowhere else.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{Field, Schema, SchemaRef};
use events::fact::{ColumnType, FACT_TABLES, FactTable};

use crate::source::copy::Kind;

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name in queries.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
}

/// One part of a table; the table is all of them together.
#[derive(Clone, Debug)]
pub struct Source {
    /// FROM clause; the table that holds the project has the alias `f`.
    pub from: String,
    /// One SQL expression per column, of exactly the column's type.
    pub expressions: Vec<String>,
}

/// A table of queries.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name in queries.
    pub name: &'static str,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Where its rows come from.
    pub sources: Vec<Source>,
}

/// The column that only routes of this service see: the user's id as 16 bytes, which groups faster than text.
pub const USER_KEY: Column = Column { name: "user_key", kind: Kind::Key };

impl Table {
    /// Returns the Arrow schema.
    pub fn schema(&self) -> SchemaRef {
        let field = |column: &Column| Field::new(column.name, column.kind.data_type(), true);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// Returns the table with the column [`USER_KEY`] at its end.
    pub fn with_user_key(&self) -> Self {
        let mut table = self.clone();
        table.columns.push(USER_KEY);
        for source in &mut table.sources {
            source.expressions.push("f.user_id".to_owned());
        }
        table
    }

    fn one(name: &'static str, from: &str, columns: &[(&'static str, &str, Kind)]) -> Self {
        let expressions = columns.iter().map(|(_, expression, _)| (*expression).to_owned()).collect();
        Table {
            name,
            columns: columns.iter().map(|(name, _, kind)| Column { name, kind: *kind }).collect(),
            sources: vec![Source { from: from.to_owned(), expressions }],
        }
    }
}

/// All tables that SQL may read, by name.
pub static TABLES: LazyLock<Vec<Table>> = LazyLock::new(|| {
    vec![
        events(),
        participation(),
        conversion_attribution(),
        experiments(),
        variants(),
        metrics(),
        campaigns(),
        campaign_components(),
        evaluations(),
        results_daily(),
        results(),
        health(),
    ]
});

/// Returns a table by its name in queries.
pub fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

/// One row per event, from the five fact tables, in the API's names: the columns that are declared in [`events::fact`], and the
/// names that ids of the catalogue stand for.
fn events() -> Table {
    let expressions: Vec<HashMap<&'static str, String>> = FACT_TABLES.iter().map(expressions).collect();
    let named = ["kind", "event", "experiment", "variant", "campaign", "component"].map(|name| Column { name, kind: Kind::Text });
    let mut columns = named.to_vec();
    for column in FACT_TABLES.iter().flat_map(FactTable::columns) {
        let is_new = columns.iter().all(|earlier| earlier.name != column.api_name);
        // The project is the token's, and nobody asks for it.
        if is_new && column.name != "project_id" {
            columns.push(Column { name: column.api_name, kind: kind_of(column.column_type) });
        }
    }
    let source = |(table, expressions): (&FactTable, &HashMap<&'static str, String>)| {
        let expression = |column: &Column| match expressions.get(column.name) {
            Some(expression) => expression.clone(),
            None => format!("NULL::{}", column.kind.sql()),
        };
        Source { from: from_clause(table), expressions: columns.iter().map(expression).collect() }
    };
    let sources = FACT_TABLES.iter().zip(&expressions).map(source).collect();
    Table { name: "events", columns, sources }
}

/// What a fact table has for each column of `events`.
fn expressions(table: &FactTable) -> HashMap<&'static str, String> {
    let mut found: HashMap<&'static str, String> = HashMap::new();
    for column in table.columns() {
        let expression = match column.column_type {
            ColumnType::Json => format!("f.{}::text", column.name),
            _ => format!("f.{}", column.name),
        };
        found.insert(column.api_name, expression);
    }
    found.insert("kind", format!("'{}'::text", table.kind.as_str()));
    found.entry("event").or_insert_with(|| format!("'{}'::text", table.kind.as_str()));
    for (id, names) in
        [("experiment_id", [("experiment", "e"), ("variant", "v")]), ("campaign_id", [("campaign", "c"), ("component", "p")])]
    {
        if found.contains_key(id) {
            found.extend(names.map(|(name, alias)| (name, format!("{alias}.name"))));
        }
    }
    found
}

/// The table with the joins that give names. They go over unique keys: Postgres leaves out those whose columns are not asked for.
fn from_clause(table: &FactTable) -> String {
    let has = |name: &str| table.columns().any(|column| column.name == name);
    let mut from = format!("{} f", table.name);
    if has("experiment_id") {
        from = format!("{from} {NAMES}");
    }
    if has("campaign_id") {
        from.push_str(
            " LEFT JOIN campaigns c ON c.project_id = f.project_id AND c.id = f.campaign_id \
             LEFT JOIN campaign_components p ON p.project_id = f.project_id AND p.campaign_id = f.campaign_id \
             AND p.id = f.component_id",
        );
    }
    from
}

fn kind_of(column_type: ColumnType) -> Kind {
    match column_type {
        ColumnType::Uuid => Kind::Uuid,
        ColumnType::Text | ColumnType::Json => Kind::Text,
        ColumnType::Timestamp => Kind::Time,
        ColumnType::Boolean => Kind::Bool,
        ColumnType::Integer => Kind::Int,
        ColumnType::Bigint => Kind::Long,
        ColumnType::Money => Kind::Decimal(20, 6),
    }
}

/// The joins that give the names of an experiment and of its variant.
const NAMES: &str = "LEFT JOIN experiments e ON e.project_id = f.project_id AND e.id = f.experiment_id \
                     LEFT JOIN variants v ON v.project_id = f.project_id AND v.experiment_id = f.experiment_id \
                     AND v.id = f.variant_id";

fn participation() -> Table {
    use Kind::{Bool, Int, Long, Text, Time, Uuid};
    let columns = [
        ("user_id", "f.user_id", Uuid),
        ("experiment", "e.name", Text),
        ("variant", "v.name", Text),
        ("experiment_id", "f.experiment_id", Uuid),
        ("variant_id", "f.variant_id", Uuid),
        ("first_exposure_date", "f.first_exposure_date", Time),
        ("first_impression_id", "f.first_impression_id", Uuid),
        ("total_impressions", "f.total_impressions::bigint", Long),
        ("variants_seen", "cardinality(f.variants_seen)", Int),
        ("has_converted", "f.has_converted", Bool),
        ("first_conversion_date", "f.first_conversion_date", Time),
        ("conversion_within_window", "f.conversion_within_window", Bool),
    ];
    Table::one("participation", &format!("user_experiment_participation f {NAMES}"), &columns)
}

fn conversion_attribution() -> Table {
    use Kind::{Decimal, Int, Text, Time, Uuid};
    let columns = [
        ("user_id", "f.user_id", Uuid),
        ("conversion_id", "f.conversion_id", Uuid),
        ("conversion_type", "f.conversion_type", Text),
        ("conversion_time", "f.conversion_time", Time),
        ("conversion_claimed_at", "f.conversion_claimed_at", Time),
        ("experiment", "e.name", Text),
        ("variant", "v.name", Text),
        ("experiment_id", "f.experiment_id", Uuid),
        ("variant_id", "f.variant_id", Uuid),
        ("attribution_method", "f.attribution_method", Text),
        ("attribution_confidence", "f.attribution_confidence", Decimal(3, 2)),
        ("time_to_conversion_hours", "f.time_to_conversion_hours", Int),
        ("conversion_value_attributed", "f.conversion_value_attributed", Decimal(20, 6)),
        ("currency", "f.currency", Text),
    ];
    Table::one("conversion_attribution", &format!("conversion_attribution f {NAMES}"), &columns)
}

fn experiments() -> Table {
    use Kind::{Bool, Decimal, Int, Text, Time, Uuid};
    let columns = [
        ("id", "f.id", Uuid),
        ("name", "f.name", Text),
        ("description", "f.description", Text),
        ("status", "f.status", Text),
        ("is_active", "f.is_active", Bool),
        ("started_at", "f.started_at", Time),
        ("ended_at", "f.ended_at", Time),
        ("target_sample_size", "f.target_sample_size", Int),
        ("confidence_level", "f.confidence_level", Decimal(3, 2)),
        ("minimum_detectable_effect", "f.minimum_detectable_effect", Decimal(5, 4)),
        ("conversion_window_days", "f.conversion_window_days", Int),
        ("attribution_method", "f.attribution_method", Text),
        ("currency", "f.currency", Text),
        ("frozen_at", "f.frozen_at", Time),
        ("created_at", "f.created_at", Time),
        ("updated_at", "f.updated_at", Time),
    ];
    Table::one("experiments", "experiments f", &columns)
}

fn variants() -> Table {
    use Kind::{Bool, Decimal, Text, Time, Uuid};
    let columns = [
        ("experiment_id", "f.experiment_id", Uuid),
        ("experiment", "e.name", Text),
        ("id", "f.id", Uuid),
        ("name", "f.name", Text),
        ("description", "f.description", Text),
        ("is_control", "f.is_control", Bool),
        ("weight", "f.weight", Decimal(12, 6)),
        ("config_json", "f.config_json::text", Text),
        ("created_at", "f.created_at", Time),
    ];
    let from = "variants f LEFT JOIN experiments e ON e.project_id = f.project_id AND e.id = f.experiment_id";
    Table::one("variants", from, &columns)
}

fn metrics() -> Table {
    use Kind::{Decimal, Int, Text, Uuid};
    let columns = [
        ("experiment_id", "f.experiment_id", Uuid),
        ("experiment", "e.name", Text),
        ("id", "f.id", Uuid),
        ("name", "f.name", Text),
        ("conversion_type", "f.conversion_type", Text),
        ("aggregation", "f.aggregation", Text),
        ("definition", "f.definition", Text),
        ("definition_version", "f.definition_version", Int),
        ("numerator", "f.numerator", Text),
        ("denominator", "f.denominator", Text),
        ("denominator_type", "f.denominator_type", Text),
        ("quantile", "f.quantile", Decimal(4, 3)),
        ("direction", "f.direction", Text),
        ("role", "f.role", Text),
        ("margin", "f.margin", Decimal(5, 4)),
        ("window_days", "f.window_days", Int),
        ("cap", "f.cap", Decimal(20, 6)),
        ("cap_percentile", "f.cap_percentile", Decimal(7, 4)),
    ];
    let from = "metrics f LEFT JOIN experiments e ON e.project_id = f.project_id AND e.id = f.experiment_id";
    Table::one("metrics", from, &columns)
}

fn campaigns() -> Table {
    use Kind::{Text, Time, Uuid};
    let columns = [
        ("id", "f.id", Uuid),
        ("name", "f.name", Text),
        ("description", "f.description", Text),
        ("status", "f.status", Text),
        ("type", "f.type", Text),
        ("tracking_id", "f.tracking_id", Text),
        ("launched_at", "f.launched_at", Time),
        ("created_at", "f.created_at", Time),
        ("updated_at", "f.updated_at", Time),
    ];
    Table::one("campaigns", "campaigns f", &columns)
}

fn campaign_components() -> Table {
    use Kind::{Text, Time, Uuid};
    let columns = [
        ("campaign_id", "f.campaign_id", Uuid),
        ("campaign", "c.name", Text),
        ("id", "f.id", Uuid),
        ("name", "f.name", Text),
        ("component_type", "f.component_type", Text),
        ("created_at", "f.created_at", Time),
    ];
    let from = "campaign_components f LEFT JOIN campaigns c ON c.project_id = f.project_id AND c.id = f.campaign_id";
    Table::one("campaign_components", from, &columns)
}

/// A record of an experiment, and its name; `is_newest` says that it is the last revision of its moment.
const RECORDS: &str = "evaluations f JOIN experiments e ON e.project_id = f.project_id AND e.id = f.experiment_id \
     CROSS JOIN LATERAL (SELECT NOT EXISTS (SELECT FROM evaluations n WHERE n.project_id = f.project_id \
         AND n.experiment_id = f.experiment_id AND n.period = f.period AND n.as_of = f.as_of AND n.revision > f.revision) AS is_newest) l";

/// What says of which record a row is.
const OF_RECORD: [(&str, &str, Kind); 6] = [
    ("experiment", "e.name", Kind::Text),
    ("experiment_id", "f.experiment_id", Kind::Uuid),
    ("period", "f.period", Kind::Text),
    ("as_of", "f.as_of", Kind::Time),
    ("revision", "f.revision", Kind::Int),
    ("is_newest", "l.is_newest", Kind::Bool),
];

fn of_records(name: &'static str, joins: &str, columns: &[(&'static str, &str, Kind)]) -> Table {
    let all: Vec<_> = OF_RECORD.iter().chain(columns).copied().collect();
    Table::one(name, &format!("{RECORDS}{joins}"), &all)
}

fn evaluations() -> Table {
    use Kind::{Long, Text, Time};
    let columns = [
        ("status", "f.status", Text),
        ("decision", "f.decision", Text),
        ("health", "f.health", Text),
        ("exposed_users", "f.exposed_users", Long),
        ("settings_hash", "f.settings_hash", Text),
        ("method_version", "f.method_version", Text),
        ("changes", "f.changes::text", Text),
        ("recorded_at", "f.recorded_at", Time),
    ];
    of_records("evaluations", "", &columns)
}

/// One row per metric and variant of each record.
const ARMS: &str = " CROSS JOIN LATERAL json_array_elements(f.answer -> 'metrics') m (metric) \
     CROSS JOIN LATERAL json_array_elements(m.metric -> 'arms') a (arm) \
     JOIN variants v ON v.project_id = f.project_id AND v.experiment_id = f.experiment_id AND v.id = (a.arm ->> 'variant_id')::uuid \
     LEFT JOIN LATERAL (SELECT value FROM json_array_elements(m.metric -> 'comparisons') \
         WHERE value ->> 'variant_id' = a.arm ->> 'variant_id') c (comparison) ON true";

const OF_ARM: [(&str, &str, Kind); 18] = [
    ("metric", "m.metric ->> 'id'", Kind::Text),
    ("role", "m.metric ->> 'role'", Kind::Text),
    ("variant", "v.name", Kind::Text),
    ("variant_id", "v.id", Kind::Uuid),
    ("users", "(a.arm ->> 'users')::bigint", Kind::Long),
    ("mean", "(a.arm ->> 'mean')::double precision", Kind::Double),
    ("sum", "a.arm ->> 'sum'", Kind::Text),
    ("estimate", "(c.comparison #>> '{absolute,estimate}')::double precision", Kind::Double),
    ("std_error", "(c.comparison #>> '{absolute,std_error}')::double precision", Kind::Double),
    ("lift", "(c.comparison #>> '{relative,lift}')::double precision", Kind::Double),
    ("lift_low", "(c.comparison #>> '{relative,ci,0}')::double precision", Kind::Double),
    ("lift_high", "(c.comparison #>> '{relative,ci,1}')::double precision", Kind::Double),
    ("p_value", "(c.comparison #>> '{test,p_value}')::double precision", Kind::Double),
    ("always_valid_p", "(c.comparison #>> '{sequential,always_valid_p}')::double precision", Kind::Double),
    ("verdict", "c.comparison ->> 'verdict'", Kind::Text),
    ("decided_by", "c.comparison ->> 'decided_by'", Kind::Text),
    ("guardrail", "c.comparison #>> '{guardrail,state}'", Kind::Text),
    ("plain", "c.comparison ->> 'plain'", Kind::Text),
];

fn results_daily() -> Table {
    of_records("results_daily", ARMS, &OF_ARM)
}

/// The same of the newest day of each experiment.
fn results() -> Table {
    let newest = format!(
        " JOIN LATERAL (SELECT max(as_of) AS as_of FROM evaluations n WHERE n.project_id = f.project_id \
             AND n.experiment_id = f.experiment_id AND n.period = 'day') t \
         ON f.period = 'day' AND f.as_of = t.as_of AND l.is_newest{ARMS}"
    );
    of_records("results", &newest, &OF_ARM)
}

/// One row per check of each record.
fn health() -> Table {
    let columns = [
        ("check", "h.found ->> 'id'", Kind::Text),
        ("level", "h.found ->> 'level'", Kind::Text),
        ("found", "h.found::text", Kind::Text),
    ];
    of_records("health", " CROSS JOIN LATERAL json_array_elements(f.answer #> '{health,checks}') h (found)", &columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_gives_every_column() {
        for table in TABLES.iter() {
            for source in &table.sources {
                assert_eq!(source.expressions.len(), table.columns.len(), "{}: {}", table.name, source.from);
                assert!(source.from.contains(" f"), "{}: no alias f in {}", table.name, source.from);
            }
            let mut names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.columns.len(), "{}: a name twice", table.name);
        }
    }

    #[test]
    fn every_stored_column_can_be_read() {
        let events = table("events").expect("a table");
        for column in FACT_TABLES.iter().flat_map(FactTable::columns).filter(|column| column.name != "project_id") {
            assert!(events.columns.iter().any(|read| read.name == column.api_name), "{}", column.name);
        }
    }
}
