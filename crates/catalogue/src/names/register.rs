//! Registration: names that events bring are made, in projects that want that.

use std::collections::{BTreeMap, BTreeSet};

use events::Event;
use events::identity::hyphenated_uuid;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::{Catalogue, Family};
use crate::version;

/// Names to be made: an experiment or campaign, and with it a variant or component; and whether a server key asks for them.
type Wanted = BTreeMap<(Family, String, Option<String>), bool>;

impl Catalogue {
    /// Makes what events name and the catalogue lacks, in projects that register by themselves, each in a short
    /// transaction of its own. Returns whether anything was made or seen to exist; then resolve again.
    /// # Errors
    /// As Postgres has them. Projects that came before may have their names by then; calling again is safe.
    pub async fn register<'a>(
        &mut self,
        connection: &mut PgConnection,
        events: impl Iterator<Item = &'a Event>,
    ) -> Result<bool, sqlx::Error> {
        let wanted = self.wanted(events);
        let projects: BTreeSet<Uuid> = wanted.keys().copied().collect();
        for (project, names) in wanted {
            register(connection, project, names).await?;
        }
        self.invalidate(&projects);
        self.load(connection, &projects).await?;
        Ok(!projects.is_empty())
    }

    fn wanted<'a>(&self, events: impl Iterator<Item = &'a Event>) -> BTreeMap<Uuid, Wanted> {
        let mut wanted: BTreeMap<Uuid, Wanted> = BTreeMap::new();
        // Things, and parts of each thing, that this batch adds to those that there are.
        let mut things: BTreeMap<(Uuid, Family), BTreeSet<&str>> = BTreeMap::new();
        let mut parts: BTreeMap<(Uuid, Family, &str), BTreeSet<&str>> = BTreeMap::new();
        for event in events {
            let Some(project) = self.project(event.project_id.0).filter(|project| project.names.auto_register) else { continue };
            if self.resolve(event).is_ok() {
                continue;
            }
            for family in Family::ALL.into_iter().filter(|family| family.is_registered_by(event.kind())) {
                let Some((name, part)) = family.names(event) else { continue };
                let id = event.project_id.0;
                let names = project.names.names(family);
                let found = names.find(name);
                if found.is_none() {
                    let new = things.entry((id, family)).or_default();
                    if names.registered + new.len() >= family.registered_max(event.from_server_key) && !new.contains(name) {
                        continue;
                    }
                    new.insert(name);
                }
                let part = part.filter(|&part| {
                    if found.is_some_and(|found| !found.is_open_to_parts(family) || found.part(part).is_some()) {
                        return false;
                    }
                    let new = parts.entry((id, family, name)).or_default();
                    let known = found.map_or(0, |found| found.parts.len());
                    let has_room = known + new.len() < family.parts_max(event.from_server_key) || new.contains(part);
                    if has_room {
                        new.insert(part);
                    }
                    has_room
                });
                if found.is_none() || part.is_some() {
                    let names = (family, name.to_owned(), part.map(str::to_owned));
                    *wanted.entry(id).or_default().entry(names).or_default() |= event.from_server_key;
                }
            }
        }
        wanted
    }
}

/// The statements that register names of a family.
struct Statements {
    insert: &'static str,
    find: &'static str,
    insert_part: &'static str,
}

impl Family {
    fn statements(self) -> Statements {
        match self {
            Family::Experiments => Statements {
                insert: "INSERT INTO experiments (project_id, id, name, status, auto_registered)
                         SELECT $1, $2, $3, 'running', true
                         WHERE (SELECT count(*) FROM experiments
                                WHERE project_id = $1 AND auto_registered AND status <> 'archived') < $4
                         ON CONFLICT DO NOTHING",
                find: "SELECT id FROM experiments WHERE project_id = $1 AND (id = $2 OR name = $3)
                       ORDER BY id = $2 DESC LIMIT 1",
                insert_part: "INSERT INTO variants (project_id, experiment_id, id, name) SELECT $1, $2, $3, $4
                              WHERE (SELECT auto_registered AND to_jsonb(e) ->> 'exposure' IS NULL FROM experiments e WHERE project_id = $1 AND id = $2)
                                AND (SELECT count(*) FROM variants WHERE project_id = $1 AND experiment_id = $2) < $5
                              ON CONFLICT DO NOTHING",
            },
            Family::Campaigns => Statements {
                insert: "INSERT INTO campaigns (project_id, id, name, status, auto_registered)
                         SELECT $1, $2, $3, 'active', true
                         WHERE (SELECT count(*) FROM campaigns
                                WHERE project_id = $1 AND auto_registered AND status <> 'archived') < $4
                         ON CONFLICT DO NOTHING",
                find: "SELECT id FROM campaigns WHERE project_id = $1 AND (id = $2 OR name = $3)
                       ORDER BY id = $2 DESC LIMIT 1",
                insert_part: "INSERT INTO campaign_components (project_id, campaign_id, id, name) SELECT $1, $2, $3, $4
                              WHERE (SELECT count(*) FROM campaign_components WHERE project_id = $1 AND campaign_id = $2) < $5
                              ON CONFLICT DO NOTHING",
            },
        }
    }
}

/// Ids are UUIDv5 of the project and the names, or the client's own id where it names by id: two aggregators, and a
/// database that is filled anew from the log, make the same ones.
async fn register(connection: &mut PgConnection, project: Uuid, names: Wanted) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    version::lock(&mut transaction, project).await?;
    let mut made = 0;
    for ((family, name, part), from_server_key) in &names {
        let Statements { insert, find, insert_part } = family.statements();
        let id = hyphenated_uuid(name).unwrap_or_else(|| Uuid::new_v5(&project, name.as_bytes()));
        // The limits hold under the project's lock, whatever other aggregators register meanwhile.
        let insert = sqlx::query(insert).bind(project).bind(id).bind(name).bind(family.registered_max(*from_server_key) as i64);
        made += insert.execute(&mut *transaction).await?.rows_affected();
        let Some(part) = part else { continue };
        let found = sqlx::query(find).bind(project).bind(id).bind(name).fetch_optional(&mut *transaction).await?;
        let Some(found) = found else { continue };
        let id: Uuid = found.try_get(0)?;
        let of_names = || Uuid::new_v5(&project, format!("{name}/{part}").as_bytes());
        let part_id = hyphenated_uuid(part).unwrap_or_else(of_names);
        let parts_max = family.parts_max(*from_server_key) as i64;
        let insert = sqlx::query(insert_part).bind(project).bind(id).bind(part_id).bind(part).bind(parts_max);
        made += insert.execute(&mut *transaction).await?.rows_affected();
    }
    if made > 0 {
        version::raise(&mut transaction, project).await?;
        tracing::info!(%project, names = names.len(), "registered names that events brought");
    }
    transaction.commit().await
}
