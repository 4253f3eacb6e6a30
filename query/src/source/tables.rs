//! The tables that queries see: their columns, and the SQL that reads them from Postgres.
//!
//! A table is one or more sources, each a FROM clause with an expression per column. Every FROM clause filters by the
//! alias `f`'s project; the scan puts the project in from the token and from nowhere else.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{Field, Schema, SchemaRef};

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
    ]
});

/// Returns a table by its name in queries.
pub fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

/// One row per event, from the five fact tables. The names are those of the collector's API.
fn events() -> Table {
    use Kind::{Bool, Decimal, Text, Time, Uuid};
    // Name, type, and the expression in impressions, conversions, campaign events, engagement and identity events.
    // An empty expression is one that these tables do not have: null.
    type Row = (&'static str, Kind, [&'static str; 5]);
    let same = |name, kind, expression| -> Row { (name, kind, [expression; 5]) };
    let rows: Vec<Row> = vec![
        ("kind", Text, ["'impression'", "'conversion'", "'campaign_event'", "'engagement'", "'identity'"]),
        ("event", Text, ["'impression'", "f.conversion_type", "f.event_type", "f.event_type", "f.event_type"]),
        same("event_id", Uuid, "f.id"),
        same("user_id", Uuid, "f.user_id"),
        same("external_id", Text, "f.external_id"),
        same("anonymous_id", Text, "f.anonymous_id"),
        same("session_id", Text, "f.session_identifier"),
        same("event_time", Time, "f.event_time"),
        same("claimed_at", Time, "f.claimed_at"),
        same("received_at", Time, "f.received_at"),
        ("experiment", Text, ["e.name", "e.name", "", "e.name", ""]),
        ("variant", Text, ["v.name", "v.name", "", "v.name", ""]),
        ("experiment_id", Uuid, ["f.experiment_id", "f.experiment_id", "", "f.experiment_id", ""]),
        ("variant_id", Uuid, ["f.variant_id", "f.variant_id", "", "f.variant_id", ""]),
        ("value", Decimal(20, 6), ["", "f.conversion_value", "f.revenue", "", ""]),
        ("currency", Text, ["", "f.currency", "f.currency", "", ""]),
        ("campaign", Text, ["", "c.name", "c.name", "", ""]),
        ("component", Text, ["", "p.name", "p.name", "", ""]),
        ("campaign_id", Uuid, ["", "f.campaign_id", "f.campaign_id", "", ""]),
        ("component_id", Uuid, ["", "f.component_id", "f.component_id", "", ""]),
        same("country", Text, "f.country_code"),
        same("region", Text, "f.region"),
        same("city", Text, "f.city"),
        same("device_type", Text, "f.device_type"),
        same("page_url", Text, "f.page_url"),
        same("referrer", Text, "f.referrer"),
        same("user_agent", Text, "f.user_agent"),
        same("language", Text, "f.language_code"),
        same("time_zone", Text, "f.time_zone"),
        same("screen", Text, "f.screen_resolution"),
        same("viewport", Text, "f.viewport_size"),
        same("connection", Text, "f.connection_type"),
        same("utm_source", Text, "f.utm_source"),
        same("utm_medium", Text, "f.utm_medium"),
        same("utm_campaign", Text, "f.utm_campaign"),
        same("is_bot", Bool, "f.is_bot"),
        same("properties", Text, "f.metadata::text"),
    ];
    // Joins over unique keys: Postgres leaves out those whose columns are not asked for.
    let experiment = "LEFT JOIN experiments e ON e.project_id = f.project_id AND e.id = f.experiment_id \
                      LEFT JOIN variants v ON v.project_id = f.project_id AND v.experiment_id = f.experiment_id \
                      AND v.id = f.variant_id";
    let campaign = "LEFT JOIN campaigns c ON c.project_id = f.project_id AND c.id = f.campaign_id \
                    LEFT JOIN campaign_components p ON p.project_id = f.project_id AND p.campaign_id = f.campaign_id \
                    AND p.id = f.component_id";
    let from = [
        format!("impressions f {experiment}"),
        format!("conversions f {experiment} {campaign}"),
        format!("campaign_events f {campaign}"),
        format!("engagement_events f {experiment}"),
        "identity_events f".to_owned(),
    ];
    let expression = |kind: Kind, expression: &str| match (kind, expression) {
        (Text, "") => "NULL::text".to_owned(),
        (Text, expression) => format!("{expression}::text"),
        (Uuid, "") => "NULL::uuid".to_owned(),
        (_, "") => "NULL::numeric".to_owned(),
        (_, expression) => expression.to_owned(),
    };
    let source = |(index, from): (usize, String)| Source {
        from,
        expressions: rows.iter().map(|(_, kind, each)| expression(*kind, each[index])).collect(),
    };
    Table {
        name: "events",
        columns: rows.iter().map(|(name, kind, _)| Column { name, kind: *kind }).collect(),
        sources: from.into_iter().enumerate().map(source).collect(),
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
}
