//! The names that events bring: a collector reads them to know which ones are new.

use std::collections::{BTreeSet, HashSet};

use catalogue::event_names::NAMED;
use compact_str::CompactString;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commit::StagedRow;

/// Names that a worker remembers as stored; more than that, and it forgets all.
const KNOWN_MAX: usize = 100_000;

/// A name of a project's events of a kind.
pub(crate) type Name = (Uuid, &'static str, CompactString);

/// Stores the names of these events that are not known to be stored, and returns them. The last tables that a commit writes, keys
/// ascending.
pub(crate) async fn add(
    connection: &mut PgConnection,
    known: &HashSet<Name>,
    new: &[StagedRow<'_>],
) -> Result<BTreeSet<Name>, sqlx::Error> {
    let mut names = BTreeSet::new();
    for event in new.iter().map(|row| row.event()).filter(|event| NAMED.contains(&event.kind())) {
        let Some(name) = &event.name else { continue };
        let name = (event.project_id.0, event.kind().as_str(), name.clone());
        if !known.contains(&name) {
            names.insert(name);
        }
    }
    if names.is_empty() {
        return Ok(names);
    }
    let projects: Vec<Uuid> = names.iter().map(|(project, ..)| *project).collect();
    let kinds: Vec<&str> = names.iter().map(|(_, kind, _)| *kind).collect();
    let texts: Vec<&str> = names.iter().map(|(.., name)| name.as_str()).collect();
    sqlx::query(
        "INSERT INTO event_names (project_id, kind, name)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[]) n(project_id, kind, name) ORDER BY 1, 2, 3
         ON CONFLICT DO NOTHING",
    )
    .bind(projects)
    .bind(kinds)
    .bind(texts)
    .execute(connection)
    .await?;
    Ok(names)
}

/// Remembers names as stored, after their commit.
pub(crate) fn remember(known: &mut HashSet<Name>, stored: BTreeSet<Name>) {
    if known.len() + stored.len() > KNOWN_MAX {
        known.clear();
    }
    known.extend(stored);
}
