//! The events that exposed users: impressions that name the experiment, or what the experiment's definition says, in SQL of Postgres.
//!
//! A commit decides the same with [`catalogue::exposures`], of which this is a copy in SQL: tests hold both together.

use ::catalogue::exposures::{Exposure, Source, VariantIn};
use datafusion::common::DataFusionError;
use events::Kind;
use events::fact::FactTable;
use events::unlinked::SIGNALS;
use uuid::Uuid;

use super::cohort_reader::{CohortQuery, Reader};
use crate::source::copy::Kind as ColumnKind;
use crate::source::tables::Table;

/// Columns of a table that is read: name, expression, type.
pub(super) type Columns = Vec<(&'static str, String, ColumnKind)>;

/// Returns the kinds of events that may have exposed users, each with a condition on its rows `r`.
pub(super) fn sources(query: &CohortQuery<'_>) -> Vec<(Kind, String)> {
    of(query.experiment, query.exposure)
}

/// The same of an experiment.
pub(super) fn of(experiment: Uuid, exposure: Option<&Exposure>) -> Vec<(Kind, String)> {
    let Some(exposure) = exposure else {
        return vec![(Kind::Impression, format!("r.experiment_id = '{experiment}'"))];
    };
    let candidates = exposure.candidates().into_iter();
    candidates.map(|(kind, names)| (kind, is_named(kind, "r", names.iter().map(String::as_str)))).collect()
}

fn is_named<'a>(kind: Kind, alias: &str, names: impl Iterator<Item = &'a str>) -> String {
    let column = match kind {
        Kind::Impression => return "true".to_owned(),
        Kind::Conversion => "conversion_type",
        Kind::CampaignEvent | Kind::Engagement | Kind::Identity => "event_type",
    };
    format!("{alias}.{column} IN ({})", texts(names))
}

fn texts<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.map(literal).collect::<Vec<_>>().join(", ")
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The text by which a property of a row `f` is compared, as `catalogue::exposures::text_of` has it.
fn text_of(property: &str) -> String {
    let value = format!("(f.metadata -> {})", literal(property));
    format!(
        "CASE jsonb_typeof({value}) WHEN 'string' THEN {value} #>> '{{}}' WHEN 'boolean' THEN {value}::text
         WHEN 'number' THEN CASE WHEN {value}::text ~ '^-?[0-9]{{1,15}}$' THEN {value}::text END END"
    )
}

/// The place of the variant that a row `f` names among those of the query; -1 for another one.
pub(super) fn named_arm(query: &CohortQuery<'_>) -> String {
    let known = query.variants.iter().enumerate().map(|(place, id)| format!(" WHEN '{id}' THEN {place}"));
    if query.variants.is_empty() {
        return "-1".to_owned();
    }
    format!("CASE f.variant_id{} ELSE -1 END", known.collect::<String>())
}

/// The place of the variant that a row `f` of a kind exposes to among those of the query; -1 if it does not.
pub(super) fn arm(query: &CohortQuery<'_>, kind: Kind) -> String {
    let place = |variant: &Uuid| query.variants.iter().position(|known| known == variant);
    let Some(exposure) = query.exposure else { return named_arm(query) };
    let of_source = |source: &Source| {
        let mut conditions = vec![is_named(kind, "f", source.events.iter().map(String::as_str))];
        conditions.extend(
            source
                .conditions
                .iter()
                .map(|(property, accepted)| format!("{} IN ({})", text_of(property), texts(accepted.iter().map(String::as_str)))),
        );
        let (condition, arm) = match &source.variant {
            VariantIn::Event => {
                (format!("f.experiment_id = '{}' AND f.variant_id IS NOT NULL", query.experiment), named_arm(query))
            }
            VariantIn::Constant(variant) => {
                let place = variant.as_ref().and_then(place).map_or(-1, |place| place as i64);
                (variant.is_some().to_string(), place.to_string())
            }
            VariantIn::Property(property) => {
                let text = text_of(property);
                let known = exposure.variants.keys().map(String::as_str);
                let arms =
                    exposure.variants.iter().filter_map(|(name, id)| Some(format!("WHEN {} THEN {}", literal(name), place(id)?)));
                let mut arms: Vec<String> = arms.collect();
                arms.sort();
                let arm = if arms.is_empty() { "-1".to_owned() } else { format!("CASE {text} {} ELSE -1 END", arms.join(" ")) };
                (if exposure.variants.is_empty() { "false".to_owned() } else { format!("{text} IN ({})", texts(known)) }, arm)
            }
        };
        conditions.push(condition);
        format!("WHEN {} THEN {arm}", conditions.join(" AND "))
    };
    let sources: Vec<String> = exposure.sources.iter().filter(|source| source.kind == kind).map(of_source).collect();
    // An event of nobody exposes nobody.
    let unlinked = format!("WHEN {} IN ({}) THEN -1", text_of("privacy"), texts(SIGNALS.into_iter()));
    format!("CASE {unlinked} {} ELSE -1 END", sources.join(" "))
}

impl Reader<'_> {
    /// Makes a table of the events that may have exposed users, with columns for each kind.
    pub(super) fn exposures(
        &self,
        name: &'static str,
        columns: impl Fn(Kind) -> Result<Columns, DataFusionError>,
    ) -> Result<Table, DataFusionError> {
        let mut table: Option<Table> = None;
        for (kind, condition) in sources(self.query) {
            let condition = match kind {
                Kind::Impression => format!("{condition} AND r.user_was_eligible IS NOT FALSE AND NOT r.is_bot"),
                _ => format!("{condition} AND NOT r.is_bot"),
            };
            let columns = columns(kind)?;
            let columns: Vec<_> = columns.iter().map(|(name, expression, kind)| (*name, expression.as_str(), *kind)).collect();
            let of_kind = self.table(name, FactTable::of(kind).name, &condition, &columns);
            match &mut table {
                Some(table) => table.sources.extend(of_kind.sources),
                None => table = Some(of_kind),
            }
        }
        table.ok_or_else(|| DataFusionError::Internal("an experiment without exposures".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use ::catalogue::exposures::{ExposureDefinition, Exposures, Seen};
    use migrations::testing::TestDatabase;
    use sqlx::{AssertSqlSafe, PgConnection};

    use super::*;

    const EXPERIMENT: Uuid = Uuid::from_u128(9);

    /// Whatever a property holds, however it is written, and whatever kind of event has it, Postgres and the commit find the same variant.
    #[tokio::test]
    async fn sql_finds_what_a_commit_does() {
        let database = TestDatabase::create().await;
        let mut connection = database.connect().await;
        for kind in [Kind::Engagement, Kind::Conversion, Kind::CampaignEvent, Kind::Impression] {
            check_kind(&mut connection, kind).await;
        }
    }

    /// A definition about events of a kind: impressions have no names, and those of campaigns name no variant.
    fn definition(kind: Kind) -> ExposureDefinition {
        let source = |names: &[&str], rest: serde_json::Value| {
            let mut source = serde_json::json!({"kind": kind.as_str()});
            let fields = source.as_object_mut().expect("fields");
            if kind != Kind::Impression {
                fields.insert("events".to_owned(), names.into());
            }
            fields.extend(rest.as_object().expect("fields").clone());
            source
        };
        let mut sources = vec![
            source(
                &["page", "it's"],
                serde_json::json!({"where": {"o'plan": ["pro", 1, true]}, "variant": {"property": "arm of {experiment}"}}),
            ),
            source(&["page"], serde_json::json!({"where": {"test": "it's"}, "variant": {"constant": "b"}})),
            source(&["cart"], serde_json::json!({"variant": {"constant": "gone"}})),
        ];
        if kind != Kind::CampaignEvent {
            sources.push(source(&["cart", "page"], serde_json::json!({})));
        }
        ExposureDefinition::parse(&serde_json::json!({ "any_of": sources }).to_string()).expect("accepted")
    }

    async fn check_kind(connection: &mut PgConnection, kind: Kind) {
        let names = ["control", "b", "it's", "7", "100", "true", "0", "123456789012345", "\\"];
        let variants: HashMap<String, Uuid> =
            (1..).map(Uuid::from_u128).zip(names).map(|(id, name)| (name.to_owned(), id)).collect();
        let ids: Vec<Uuid> = names.iter().map(|name| variants[*name]).collect();
        let exposure = Exposure::new(&definition(kind), "it's", variants);
        let query = CohortQuery {
            experiment: EXPERIMENT,
            variants: &ids,
            assigning: &[],
            reassigned: &[],
            exposure: Some(&exposure),
            trigger: None,
            has_before: false,
            window_days: (1, 1),
            sources: &[],
            traits: &[],
            bytes_max: 0,
        };
        let arm = arm(&query, kind);
        let exposures = Exposures::new(std::iter::once((EXPERIMENT, exposure.clone())));
        let values = [
            r#""control""#,
            r#""b""#,
            r#""it's""#,
            r#""\\""#,
            r#""\u0062""#,
            "7",
            "7.0",
            "70e-1",
            "1e2",
            "1E+2",
            "-0",
            "0",
            "0.0",
            "true",
            "false",
            "null",
            "[\"b\"]",
            "{\"a\":1}",
            "123456789012345",
            "1234567890123456",
            r#""7""#,
            r#""unknown""#,
            "1",
        ];
        let mut found = [0, 0];
        for value in values {
            let properties = [
                format!(r#"{{"o'plan":"pro","arm of it's":{value}}}"#),
                format!(r#"{{"o'plan":{value},"arm of it's":"b"}}"#),
                format!(r#"{{"o'plan":{value},"test":{value}}}"#),
                format!(r#"{{"test":{value},"arm of it's":"b"}}"#),
            ];
            for (properties, name, variant) in properties.iter().flat_map(|properties| {
                ["page", "it's", "cart"]
                    .into_iter()
                    .flat_map(move |name| [None, Some(2), Some(77)].map(|variant| (properties, name, variant)))
            }) {
                let experiment = variant.map(|_| EXPERIMENT);
                let variant = variant.map(Uuid::from_u128);
                let named = (kind != Kind::Impression).then_some(name);
                let seen = Seen { kind, name: named, experiment, variant, properties: Some(properties) };
                let known = exposures.by(&seen, &[EXPERIMENT])[0].1.map(|variant| ids.iter().position(|id| *id == variant));
                // A variant of another experiment has no place, and is none that a commit counts.
                let expected = known.flatten().map_or(-1, |place| place as i32);
                let sql = format!(
                    "SELECT {arm} FROM (SELECT $1::jsonb AS metadata, $2 AS event_type, $2 AS conversion_type, $3::uuid AS experiment_id, $4::uuid AS variant_id) f"
                );
                let answer: i32 = sqlx::query_scalar(AssertSqlSafe(sql))
                    .bind(properties.as_str())
                    .bind(name)
                    .bind(experiment)
                    .bind(variant)
                    .fetch_one(&mut *connection)
                    .await
                    .unwrap_or_else(|error| panic!("{error}: {properties}"));
                assert_eq!(answer, expected, "{kind:?} {name} {variant:?} {properties}");
                found[usize::from(answer < 0)] += 1;
            }
        }
        assert!(found[0] > 50 && found[1] > 50, "{kind:?} {found:?}");
    }
}
