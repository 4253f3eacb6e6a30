//! Which events expose users: impressions that name an experiment and a variant, and what the definitions of experiments say instead.

use std::collections::BTreeSet;

use catalogue::exposures::{Exposures, Seen};
use events::fact::FactTable;
use events::{JsonObject, Kind};
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::commit::StagedRow;
use crate::commit::derive::Exposure;
use crate::commit::history::{User, time};

/// Tells what exposes users of a project to its experiments, where that has a definition.
pub(super) type ExposuresOf<'a> = dyn Fn(Uuid) -> &'a Exposures + Send + Sync + 'a;

/// Events of a kind that may be exposures by a definition, of some users of one project.
fn candidates(kind: Kind, user_rows: Option<i64>) -> String {
    let (name, condition) = match kind {
        Kind::Impression => ("NULL::text", "e.user_was_eligible IS NOT FALSE"),
        Kind::Conversion => ("e.conversion_type", "true"),
        Kind::CampaignEvent | Kind::Engagement | Kind::Identity => ("e.event_type", "true"),
    };
    let ids = match kind {
        Kind::Impression | Kind::Conversion | Kind::Engagement => "e.experiment_id, e.variant_id",
        Kind::CampaignEvent | Kind::Identity => "NULL::uuid AS experiment_id, NULL::uuid AS variant_id",
    };
    let limit = user_rows.map(|rows| format!("LIMIT {rows}")).unwrap_or_default();
    format!(
        "SELECT u.number, e.name, e.experiment_id, e.variant_id, e.event_time, e.id, e.claimed_at, e.properties
         FROM unnest($2::uuid[]) WITH ORDINALITY AS u (user_id, number)
         CROSS JOIN LATERAL (
             SELECT {name} AS name, {ids}, e.event_time, e.id, e.claimed_at, e.metadata::text AS properties FROM {} e
             WHERE e.project_id = $1 AND e.user_id = u.user_id AND NOT e.is_bot AND {condition}
               AND ({name} IS NULL OR {name} = ANY ($3))
             {limit}
         ) e",
        FactTable::of(kind).name
    )
}

/// Returns what a row exposes to, that is no bot's: the experiment that an impression names, unless it has a definition, and those whose
/// definition says so.
pub(super) fn exposed(row: &StagedRow<'_>, exposures: &Exposures) -> Vec<(Uuid, Uuid)> {
    let event = row.event();
    let mut exposed = exposures.by(&Seen {
        kind: event.kind(),
        name: event.name.as_deref(),
        experiment: row.ids.experiment,
        variant: row.ids.variant,
        properties: event.metadata.as_ref().map(JsonObject::get),
    });
    if event.kind() == Kind::Impression {
        exposed.extend(row.ids.experiment.filter(|experiment| !exposures.defines(*experiment)).zip(row.ids.variant));
    }
    exposed
}

/// A stored event that may be an exposure by a definition.
pub(super) struct Candidate {
    /// The place of its user among those asked for.
    pub user: usize,
    /// Its identity and time; the variant is that of each experiment.
    pub row: Exposure,
    /// What it exposes to: experiments, each with the variant.
    pub exposes: Vec<(Uuid, Uuid)>,
}

/// Reads the events of some users of a project that may be exposures by a definition, of each user so many of each kind at most.
pub(super) async fn read_candidates(
    connection: &mut PgConnection,
    (project, users): (Uuid, &[Uuid]),
    exposures: &Exposures,
    user_rows: Option<i64>,
    mut found: impl FnMut(Candidate),
) -> Result<(), sqlx::Error> {
    for (kind, names) in exposures.candidates() {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let query = sqlx::query(AssertSqlSafe(candidates(*kind, user_rows))).bind(project).bind(users).bind(names);
        let mut rows = query.fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let number: i64 = row.try_get(0)?;
            let seen = Seen {
                kind: *kind,
                name: row.try_get(1)?,
                experiment: row.try_get(2)?,
                variant: row.try_get(3)?,
                properties: row.try_get(7)?,
            };
            let exposes = exposures.by(&seen);
            let row =
                Exposure { event_time: time(&row, 4)?, id: row.try_get(5)?, claimed_at: time(&row, 6)?, variant: Uuid::nil() };
            found(Candidate { user: number as usize - 1, row, exposes });
        }
    }
    Ok(())
}

/// Returns the experiments to which events of users of a project expose by a definition, each with its user.
pub(super) async fn exposed_by_definition(
    connection: &mut PgConnection,
    (project, users): (Uuid, &[Uuid]),
    exposures: &Exposures,
) -> Result<BTreeSet<(User, Uuid)>, sqlx::Error> {
    let mut exposed = BTreeSet::new();
    let note = |Candidate { user, exposes, .. }: Candidate| {
        exposed.extend(exposes.into_iter().map(|(experiment, _)| ((project, users[user]), experiment)));
    };
    read_candidates(connection, (project, users), exposures, None, note).await?;
    Ok(exposed)
}
