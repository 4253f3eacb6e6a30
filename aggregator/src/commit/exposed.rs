//! Which events expose users to experiments whose definition says that, instead of impressions that name them.
//!
//! A user's participation in such an experiment rests on its definition and the user's events alone, not on other definitions. So how many
//! events are looked at is bounded for each experiment by itself: who has more takes no part in it.

use catalogue::exposures::{Exposures, Group, Seen};
use events::fact::FactTable;
use events::{Details, JsonObject, Kind};
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::commit::StagedRow;
use crate::commit::derive::Exposure;
use crate::commit::history::time;

/// Tells what exposes users of a project to its experiments, where that has a definition.
pub(super) type ExposuresOf<'a> = dyn Fn(Uuid) -> &'a Exposures + Send + Sync + 'a;

/// A stored event that an experiment looks at.
pub(super) struct LookedAt {
    /// The place of its user among those asked for.
    pub user: usize,
    /// The experiment.
    pub experiment: Uuid,
    /// The exposure, if it is one.
    pub exposure: Option<Exposure>,
}

/// Events of a group, of some users of one project.
fn events_of(kind: Kind, user_rows: i64) -> String {
    let (name, condition) = match kind {
        Kind::Impression => ("NULL::text", "e.user_was_eligible IS NOT FALSE"),
        Kind::Conversion => ("e.conversion_type", "true"),
        Kind::CampaignEvent | Kind::Engagement | Kind::Identity => ("e.event_type", "true"),
    };
    let ids = match kind {
        Kind::Impression | Kind::Conversion | Kind::Engagement => "e.experiment_id, e.variant_id",
        Kind::CampaignEvent | Kind::Identity => "NULL::uuid AS experiment_id, NULL::uuid AS variant_id",
    };
    format!(
        "SELECT u.number, e.name, e.experiment_id, e.variant_id, e.event_time, e.id, e.claimed_at, e.properties
         FROM unnest($2::uuid[]) WITH ORDINALITY AS u (user_id, number)
         CROSS JOIN LATERAL (
             SELECT {name} AS name, {ids}, e.event_time, e.id, e.claimed_at, e.metadata::text AS properties FROM {} e
             WHERE e.project_id = $1 AND e.user_id = u.user_id AND NOT e.is_bot AND {condition}
               AND ({name} IS NULL OR {name} = ANY ($3))
             LIMIT {user_rows}
         ) e",
        FactTable::of(kind).name
    )
}

/// Reads the events of some users of a project that experiments look at, of each user so many of each group at most.
pub(super) async fn read(
    connection: &mut PgConnection,
    (project, users): (Uuid, &[Uuid]),
    exposures: &Exposures,
    user_rows: i64,
    mut found: impl FnMut(LookedAt),
) -> Result<(), sqlx::Error> {
    for Group { kind, names, experiments } in exposures.groups() {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let query = sqlx::query(AssertSqlSafe(events_of(kind, user_rows))).bind(project).bind(users).bind(names);
        let mut rows = query.fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let number: i64 = row.try_get(0)?;
            let (event_time, id, claimed_at) = (time(&row, 4)?, row.try_get(5)?, time(&row, 6)?);
            let seen = Seen {
                kind,
                name: row.try_get(1)?,
                experiment: row.try_get(2)?,
                variant: row.try_get(3)?,
                properties: row.try_get(7)?,
            };
            for (experiment, variant) in exposures.by(&seen, experiments) {
                let exposure = variant.map(|variant| Exposure { event_time, id, claimed_at, variant });
                found(LookedAt { user: number as usize - 1, experiment, exposure });
            }
        }
    }
    Ok(())
}

/// Returns whether a row that is about to be stored counts as an exposure where it is one: no bot's, and of a user who was eligible.
pub(super) fn may_expose(row: &StagedRow<'_>) -> bool {
    let event = row.event();
    let was_ineligible = matches!(&event.details, Details::Impression(details) if details.user_was_eligible == Some(false));
    !was_ineligible && !event.is_bot
}

/// Returns the experiments that look at a row which is about to be stored, each with the variant to which it exposes, if it does.
pub(super) fn looked_at(row: &StagedRow<'_>, exposures: &Exposures) -> Vec<(Uuid, Option<Uuid>)> {
    let event = row.event();
    let seen = Seen {
        kind: event.kind(),
        name: event.name.as_deref(),
        experiment: row.ids.experiment,
        variant: row.ids.variant,
        properties: event.metadata.as_ref().map(JsonObject::get),
    };
    let groups = exposures.groups().filter(|group| group.has(seen.kind, seen.name));
    groups.flat_map(|group| exposures.by(&seen, group.experiments)).collect()
}
