//! An answer as it was recorded: what was known then, whatever came later.

use bytes::Bytes;
use catalogue::Timestamp;
use chrono::NaiveDate;
use events::Micros;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::Row;
use uuid::Uuid;

use super::due::end_of;
use crate::engine;
use crate::experiment::read::{catalogue as stored, unknown_experiment};
use crate::http::app::App;
use crate::http::error::{ApiError, Code};
use crate::source::snapshot::time_text;

/// Which record is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsDecided {
    /// That of the newest day.
    Latest,
    /// That of a day, in days since 1970.
    On(i64),
}

impl AsDecided {
    /// Reads the fields of a query string, of which `as_decided` stands alone; none without it.
    /// # Errors
    /// [`ApiError`], which names the field.
    pub fn of(fields: &[(String, String)]) -> Result<Option<Self>, ApiError> {
        let Some((name, value)) = fields.iter().find(|(name, _)| name == "as_decided") else { return Ok(None) };
        if fields.len() > 1 {
            let message = "a record was made with the settings of its day; no other field is accepted beside it";
            return Err(ApiError::bad_request(message).at(name));
        }
        if value == "latest" {
            return Ok(Some(AsDecided::Latest));
        }
        let shown: String = value.chars().take(100).collect();
        let refuse = || ApiError::bad_request(format!("found {shown:?}; accepted: latest, or a day such as 2026-03-01")).at(name);
        let day = value.parse::<NaiveDate>().map_err(|_| refuse())?;
        Ok(Some(AsDecided::On(day.signed_duration_since(NaiveDate::default()).num_days())))
    }
}

/// A record, beside the answer that it holds.
#[derive(Serialize)]
struct Record {
    /// `day`.
    period: &'static str,
    /// The moment that counted as now.
    as_of: String,
    /// When it was made.
    recorded_at: String,
    /// What late events changed of it since, one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    restated: Vec<Restated>,
}

/// A later revision of a record.
#[derive(Serialize)]
struct Restated {
    /// From 2 on.
    revision: i32,
    /// When it was made.
    recorded_at: String,
    /// What it says otherwise than the one before.
    changes: Box<RawValue>,
}

/// Returns the record of a day as the answer about the experiment, with a member `record`.
/// # Errors
/// [`ApiError`]; `unknown_experiment` and `unknown_record` among them.
pub async fn as_decided(app: &App, project: Uuid, name: &str, asked: AsDecided) -> Result<Bytes, ApiError> {
    let database = |error: sqlx::Error| engine::database_error(&error);
    let snapshot = app.snapshot(project).await?;
    let mut connection = snapshot.transaction().await;
    let defined = stored::find(&mut connection, project, name).await.map_err(|error| stored::refusal(&error))?;
    let experiment = defined.ok_or_else(|| unknown_experiment(name))?.experiment;
    let day = match asked {
        AsDecided::Latest => None,
        AsDecided::On(day) => Some(Timestamp(Micros(end_of(day)))),
    };
    let revisions = sqlx::query(
        "SELECT as_of, revision, recorded_at, CASE WHEN revision = 1 THEN answer::text END AS answer, changes::text AS changes
         FROM evaluations WHERE project_id = $1 AND experiment_id = $2 AND period = 'day'
           AND as_of = coalesce($3, (SELECT max(as_of) FROM evaluations WHERE project_id = $1 AND experiment_id = $2 AND period = 'day'))
         ORDER BY revision",
    )
    .bind(project)
    .bind(experiment.id)
    .bind(day)
    .fetch_all(&mut **connection)
    .await
    .map_err(database)?;
    let time = |row: &sqlx::postgres::PgRow, name| Ok(time_text(row.try_get::<Timestamp, _>(name).map_err(database)?.0.0));
    let Some((first, later)) = revisions.split_first() else {
        let days: (Option<Timestamp>, Option<Timestamp>) = sqlx::query_as(
            "SELECT min(as_of), max(as_of) FROM evaluations WHERE project_id = $1 AND experiment_id = $2 AND period = 'day'",
        )
        .bind(project)
        .bind(experiment.id)
        .fetch_one(&mut **connection)
        .await
        .map_err(database)?;
        let there_are = match days {
            (Some(first), Some(last)) => {
                let date = |time: Timestamp| time_text(time.0.0).chars().take(10).collect::<String>();
                format!("there are some from {} to {}", date(first), date(last))
            }
            _ => "there is none yet: a day is recorded when an event of a later one is stored".to_owned(),
        };
        let message = format!("the experiment has no record of that day; {there_are}");
        return Err(ApiError::not_found(Code::UnknownRecord, message).at("as_decided"));
    };
    let restated = |row: &sqlx::postgres::PgRow| {
        let changes: String = row.try_get("changes").map_err(database)?;
        Ok(Restated {
            revision: row.try_get("revision").map_err(database)?,
            recorded_at: time(row, "recorded_at")?,
            changes: RawValue::from_string(changes).map_err(|_| ApiError::internal())?,
        })
    };
    let record = Record {
        period: "day",
        as_of: time(first, "as_of")?,
        recorded_at: time(first, "recorded_at")?,
        restated: later.iter().map(restated).collect::<Result<_, ApiError>>()?,
    };
    let record = serde_json::to_string(&record).map_err(|_| ApiError::internal())?;
    let answer: Option<String> = first.try_get("answer").map_err(database)?;
    // The answer is an object with members, kept as the text that it was.
    let members = answer.as_deref().and_then(|answer| answer.strip_prefix('{')).ok_or_else(ApiError::internal)?;
    Ok(format!("{{\"record\":{record},{members}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_asked_for_by_its_day() {
        let of = |fields: &[(&str, &str)]| {
            let fields: Vec<(String, String)> =
                fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            AsDecided::of(&fields).map_err(|error| error.message)
        };
        assert_eq!(of(&[("cap", "off")]), Ok(None));
        assert_eq!(of(&[("as_decided", "latest")]), Ok(Some(AsDecided::Latest)));
        assert_eq!(of(&[("as_decided", "1970-01-03")]), Ok(Some(AsDecided::On(2))));
        assert!(of(&[("as_decided", "yesterday")]).is_err_and(|message| message.contains("latest, or a day such as")));
        assert!(of(&[("as_decided", "latest"), ("cap", "off")]).is_err_and(|message| message.contains("no other field")));
    }
}
