//! Names to ids: experiments with their variants, campaigns with their components.
//!
//! A worker resolves a batch against its copy and notes the copy's versions; the commit checks, under a shared advisory
//! lock, that none has moved. Registration and admin changes take the same lock exclusively and raise the version.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use events::identity::hyphenated_uuid;
use events::{Event, Kind};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::commit::derive::{Method, Rules};
use crate::database::{Timestamp, catalogue_lock};

/// Experiments, or campaigns, that registration makes in one project; then names are more likely noise than plans.
const REGISTERED_MAX: usize = 2_000;

/// What an event's names stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub experiment: Option<Uuid>,
    pub variant: Option<Uuid>,
    pub campaign: Option<Uuid>,
    pub component: Option<Uuid>,
}

/// A name that the catalogue does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub code: &'static str,
    pub subject: String,
    pub reason: String,
}

/// Which of the two pairs of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Experiment,
    Campaign,
}

impl Family {
    fn of(kind: Kind) -> Option<Family> {
        match kind {
            Kind::Impression | Kind::Engagement => Some(Family::Experiment),
            Kind::CampaignEvent => Some(Family::Campaign),
            Kind::Conversion | Kind::Identity => None,
        }
    }

    fn words(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Family::Experiment => ("experiment", "variant", "unknown_experiment", "unknown_variant"),
            Family::Campaign => ("campaign", "component", "unknown_campaign", "unknown_component"),
        }
    }
}

/// An experiment with its variants, or a campaign with its components.
#[derive(Debug)]
struct Parent {
    id: Uuid,
    children: HashMap<String, Uuid>,
}

#[derive(Debug, Default)]
struct Parents {
    by_name: HashMap<String, Parent>,
    names: HashMap<Uuid, String>,
}

impl Parents {
    fn add(&mut self, id: Uuid, name: String, child: Option<(Uuid, String)>) {
        self.names.insert(id, name.clone());
        let parent = self.by_name.entry(name).or_insert_with(|| Parent { id, children: HashMap::new() });
        if let Some((id, name)) = child {
            parent.children.insert(name, id);
        }
    }

    /// By id if the text is one that exists, else by name.
    fn find(&self, text: &str) -> Option<&Parent> {
        let name = hyphenated_uuid(text).and_then(|id| self.names.get(&id)).map_or(text, String::as_str);
        self.by_name.get(name)
    }
}

impl Parent {
    fn child(&self, text: &str) -> Option<Uuid> {
        let by_id = hyphenated_uuid(text).filter(|id| self.children.values().any(|child| child == id));
        by_id.or_else(|| self.children.get(text).copied())
    }
}

#[derive(Debug)]
struct Project {
    version: i64,
    auto_register: bool,
    experiments: Parents,
    campaigns: Parents,
    /// Of each experiment.
    rules: HashMap<Uuid, Rules>,
}

/// A worker's copy of the catalogues of the projects that it has met.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    /// None: there is no such project.
    projects: HashMap<Uuid, Option<Project>>,
}

/// A pair of names to be registered.
type Wanted = BTreeMap<Uuid, BTreeSet<(Family, String, Option<String>)>>;

impl Catalogue {
    /// Loads the projects that are not in the copy yet.
    pub(crate) async fn know(&mut self, connection: &mut PgConnection, projects: &BTreeSet<Uuid>) -> Result<(), sqlx::Error> {
        for project in projects {
            if !self.projects.contains_key(project) {
                let loaded = load(connection, *project).await?;
                self.projects.insert(*project, loaded);
            }
        }
        Ok(())
    }

    /// Forgets projects whose version has moved.
    pub(crate) fn forget(&mut self, projects: &BTreeSet<Uuid>) {
        self.projects.retain(|project, _| !projects.contains(project));
    }

    /// Returns the version that the copy of a project has.
    pub(crate) fn version(&self, project: Uuid) -> i64 {
        self.projects.get(&project).and_then(Option::as_ref).map_or(0, |project| project.version)
    }

    /// Returns what decides about participation and attribution in an experiment.
    pub(crate) fn rules(&self, project: Uuid, experiment: Uuid) -> Option<&Rules> {
        self.projects.get(&project)?.as_ref()?.rules.get(&experiment)
    }

    /// Resolves an event's names.
    pub(crate) fn resolve(&self, event: &Event) -> Result<Resolved, Unknown> {
        let Some(project) = self.projects.get(&event.project_id.0).and_then(Option::as_ref) else {
            let subject = event.project_id.to_string();
            let reason = format!("there is no project {subject} in this database");
            return Err(Unknown { code: "unknown_project", subject, reason });
        };
        let pair = |family: Family, parent: &Option<String>, child: &Option<String>| {
            let Some(parent_text) = parent else { return Ok((None, None)) };
            let (parent_word, child_word, unknown_parent, unknown_child) = family.words();
            let parents = match family {
                Family::Experiment => &project.experiments,
                Family::Campaign => &project.campaigns,
            };
            let unknown = |code, subject: &String, word: &str| Unknown {
                code,
                subject: subject.clone(),
                reason: format!("{word} {subject:?} does not exist, and the project does not register new names by itself"),
            };
            let found = parents.find(parent_text).ok_or_else(|| unknown(unknown_parent, parent_text, parent_word))?;
            let child = match child {
                None => None,
                Some(text) => Some(found.child(text).ok_or_else(|| unknown(unknown_child, text, child_word))?),
            };
            Ok((Some(found.id), child))
        };
        let (experiment, variant) = pair(Family::Experiment, &event.experiment, &event.variant)?;
        let (campaign, component) = pair(Family::Campaign, &event.campaign, &event.component)?;
        Ok(Resolved { experiment, variant, campaign, component })
    }

    /// Makes what events name and the catalogue lacks, in projects that register by themselves, each in a short
    /// transaction of its own. Returns whether anything was made or seen to exist; then resolve again.
    pub(crate) async fn register<'a>(
        &mut self,
        connection: &mut PgConnection,
        events: impl Iterator<Item = &'a Event>,
    ) -> Result<bool, sqlx::Error> {
        let wanted = self.wanted(events);
        let projects: BTreeSet<Uuid> = wanted.keys().copied().collect();
        for (project, names) in wanted {
            register(connection, project, names).await?;
        }
        self.forget(&projects);
        self.know(connection, &projects).await?;
        Ok(!projects.is_empty())
    }

    fn wanted<'a>(&self, events: impl Iterator<Item = &'a Event>) -> Wanted {
        let mut wanted = Wanted::new();
        for event in events {
            let Some(project) = self.projects.get(&event.project_id.0).and_then(Option::as_ref) else { continue };
            let full = |parents: &Parents| parents.by_name.len() >= REGISTERED_MAX;
            if !project.auto_register || self.resolve(event).is_ok() {
                continue;
            }
            let families = Family::of(event.kind()).map_or(vec![Family::Experiment, Family::Campaign], |family| vec![family]);
            for family in families {
                let (parent, child, parents) = match family {
                    Family::Experiment => (&event.experiment, &event.variant, &project.experiments),
                    Family::Campaign => (&event.campaign, &event.component, &project.campaigns),
                };
                let Some(parent) = parent else { continue };
                if full(parents) && parents.find(parent).is_none() {
                    continue;
                }
                wanted.entry(event.project_id.0).or_default().insert((family, parent.clone(), child.clone()));
            }
        }
        wanted
    }
}

async fn load(connection: &mut PgConnection, project: Uuid) -> Result<Option<Project>, sqlx::Error> {
    // The version first: a change between the statements is seen as a version that has moved.
    let Some(row) = sqlx::query(
        "SELECT p.auto_register, coalesce(v.version, 0) AS version
         FROM projects p LEFT JOIN catalogue_versions v ON v.project_id = p.id WHERE p.id = $1",
    )
    .bind(project)
    .fetch_optional(&mut *connection)
    .await?
    else {
        return Ok(None);
    };
    let mut loaded = Project {
        version: row.try_get("version")?,
        auto_register: row.try_get("auto_register")?,
        experiments: Parents::default(),
        campaigns: Parents::default(),
        rules: load_rules(connection, project, None).await?,
    };
    let statements = [
        (
            &mut loaded.experiments,
            "SELECT e.id, e.name, v.id, v.name FROM experiments e
             LEFT JOIN variants v ON v.project_id = e.project_id AND v.experiment_id = e.id WHERE e.project_id = $1",
        ),
        (
            &mut loaded.campaigns,
            "SELECT c.id, c.name, p.id, p.name FROM campaigns c
             LEFT JOIN campaign_components p ON p.project_id = c.project_id AND p.campaign_id = c.id WHERE c.project_id = $1",
        ),
    ];
    for (parents, statement) in statements {
        for row in sqlx::query(statement).bind(project).fetch_all(&mut *connection).await? {
            let child: Option<Uuid> = row.try_get(2)?;
            let child_name: Option<String> = row.try_get(3)?;
            parents.add(row.try_get(0)?, row.try_get(1)?, child.zip(child_name));
        }
    }
    Ok(Some(loaded))
}

/// Reads the rules of one experiment, or of all that a project has.
pub(crate) async fn load_rules(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Option<Uuid>,
) -> Result<HashMap<Uuid, Rules>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT e.id, e.status = 'draft', e.frozen_at IS NOT NULL, e.started_at, e.ended_at, e.conversion_window_days,
                e.attribution_method, ARRAY (SELECT v.id FROM variants v WHERE v.project_id = e.project_id AND v.experiment_id = e.id)
         FROM experiments e WHERE e.project_id = $1 AND ($2::uuid IS NULL OR e.id = $2)",
    )
    .bind(project)
    .bind(experiment)
    .fetch_all(connection)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let variants: Vec<Uuid> = row.try_get(7)?;
        let rules = Rules {
            is_draft: row.try_get(1)?,
            is_frozen: row.try_get(2)?,
            started_at: row.try_get::<Option<Timestamp>, _>(3)?.map(|time| time.0),
            ended_at: row.try_get::<Option<Timestamp>, _>(4)?.map(|time| time.0),
            window_days: row.try_get(5)?,
            method: Method::named(row.try_get(6)?),
            variants: variants.into_iter().collect(),
        };
        found.insert(row.try_get(0)?, rules);
    }
    Ok(found)
}

/// Ids are UUIDv5 of the project and the names, or the client's own id where it names by id: two aggregators, and a
/// database that is filled anew from the log, make the same ones.
async fn register(
    connection: &mut PgConnection,
    project: Uuid,
    names: BTreeSet<(Family, String, Option<String>)>,
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(catalogue_lock(project)).execute(&mut *connection).await?;
    let mut made = 0;
    for (family, parent, child) in &names {
        let (insert_parent, find_parent, insert_child) = match family {
            Family::Experiment => (
                "INSERT INTO experiments (project_id, id, name, status, auto_registered) VALUES ($1, $2, $3, 'running', true)
                 ON CONFLICT DO NOTHING",
                "SELECT id FROM experiments WHERE project_id = $1 AND (id = $2 OR name = $3) ORDER BY id = $2 DESC LIMIT 1",
                "INSERT INTO variants (project_id, experiment_id, id, name) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
            ),
            Family::Campaign => (
                "INSERT INTO campaigns (project_id, id, name, status, auto_registered) VALUES ($1, $2, $3, 'active', true)
                 ON CONFLICT DO NOTHING",
                "SELECT id FROM campaigns WHERE project_id = $1 AND (id = $2 OR name = $3) ORDER BY id = $2 DESC LIMIT 1",
                "INSERT INTO campaign_components (project_id, campaign_id, id, name) VALUES ($1, $2, $3, $4)
                 ON CONFLICT DO NOTHING",
            ),
        };
        let parent_id = hyphenated_uuid(parent).unwrap_or_else(|| Uuid::new_v5(&project, parent.as_bytes()));
        let insert = sqlx::query(insert_parent).bind(project).bind(parent_id).bind(parent);
        made += insert.execute(&mut *connection).await?.rows_affected();
        let Some(child) = child else { continue };
        let found = sqlx::query(find_parent).bind(project).bind(parent_id).bind(parent).fetch_one(&mut *connection).await?;
        let parent_id: Uuid = found.try_get(0)?;
        let of_names = || Uuid::new_v5(&project, format!("{parent}/{child}").as_bytes());
        let child_id = hyphenated_uuid(child).unwrap_or_else(of_names);
        let insert = sqlx::query(insert_child).bind(project).bind(parent_id).bind(child_id).bind(child);
        made += insert.execute(&mut *connection).await?.rows_affected();
    }
    if made > 0 {
        raise_version(connection, project).await?;
        tracing::info!(%project, names = names.len(), "registered names that events brought");
    }
    sqlx::raw_sql("COMMIT").execute(connection).await?;
    Ok(())
}

/// Raises the version of a project's catalogue. The caller holds the project's advisory lock.
pub(crate) async fn raise_version(connection: &mut PgConnection, project: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO catalogue_versions (project_id, version) VALUES ($1, 1)
         ON CONFLICT (project_id) DO UPDATE SET version = catalogue_versions.version + 1",
    )
    .bind(project)
    .execute(connection)
    .await?;
    Ok(())
}
