//! Names to ids: experiments with their variants, campaigns with their components.
//!
//! An aggregator resolves a batch against its copy and notes the copy's versions; the commit checks, under the shared lock of
//! the catalogue, that none has moved. Registration and changes take the same lock alone and raise the version.

mod register;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use events::identity::hyphenated_uuid;
use events::{Event, Kind};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::campaigns::COMPONENTS_MAX;
use crate::experiments::VARIANTS_MAX;
use crate::exposures::Exposures;
use crate::rollups;
use crate::rules::{self, Rules};

/// What an event's names stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The experiment.
    pub experiment: Option<Uuid>,
    /// Its variant.
    pub variant: Option<Uuid>,
    /// The campaign.
    pub campaign: Option<Uuid>,
    /// Its component.
    pub component: Option<Uuid>,
}

/// A name that the catalogue does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    /// Stable: `unknown_` and the kind of thing.
    pub code: &'static str,
    /// The name.
    pub subject: String,
    /// For people.
    pub reason: String,
}

/// How a commit treats participation and attribution of an experiment.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// They follow the facts, by these rules.
    Current(&'a Rules),
    /// They are being recomputed: users whose facts are stored meanwhile are listed for it.
    Recomputed,
    /// The recomputation has closed its list: those of listed users are left to it, those of all others follow the facts, by these rules.
    Closed(&'a Rules),
    /// They stay as they are, without a trace: the experiment is frozen or does not exist, or all of it will be recomputed.
    Left,
    /// They stay as they are, since this version cannot read the rules: the experiment is marked, so that a version that can
    /// recomputes it.
    Unsupported,
}

/// Which of the two pairs of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    /// Experiments with variants.
    Experiments,
    /// Campaigns with components.
    Campaigns,
}

impl Family {
    const ALL: [Family; 2] = [Family::Experiments, Family::Campaigns];

    /// Whether events of a kind register names of this family.
    fn is_registered_by(self, kind: Kind) -> bool {
        match kind {
            Kind::Impression | Kind::Engagement => self == Family::Experiments,
            Kind::CampaignEvent => self == Family::Campaigns,
            Kind::Conversion | Kind::Identity => true,
        }
    }

    /// The names of an experiment and its variant, or of a campaign and its component, that an event carries.
    fn names(self, event: &Event) -> Option<(&str, Option<&str>)> {
        let (name, part) = match self {
            Family::Experiments => (&event.experiment, &event.variant),
            Family::Campaigns => (&event.campaign, &event.component),
        };
        Some((name.as_deref()?, part.as_deref()))
    }

    /// What the family's things are, and what their parts are.
    fn nouns(self) -> (&'static str, &'static str) {
        match self {
            Family::Experiments => ("experiment", "variant"),
            Family::Campaigns => ("campaign", "component"),
        }
    }

    /// How many things of a project register themselves at most; more are more likely noise than plans. What a server key sends may
    /// go further, so that nobody locks it out with a public one.
    fn registered_max(self, from_server_key: bool) -> usize {
        if from_server_key { 3_000 } else { 2_000 }
    }

    /// How many parts a thing has at most that registered itself; a server key may bring as many as an operator may plan.
    fn parts_max(self, from_server_key: bool) -> usize {
        match (self, from_server_key) {
            (Family::Experiments, false) => 50,
            (Family::Experiments, true) => VARIANTS_MAX,
            (Family::Campaigns, false) => 500,
            (Family::Campaigns, true) => COMPONENTS_MAX,
        }
    }

    /// Whether parts register themselves in things that an operator planned. A variant that nobody planned would break the
    /// comparison of those that somebody did.
    fn adds_to_planned(self) -> bool {
        self == Family::Campaigns
    }

    fn unknown(self, project: &Project, name: &str, from_server_key: bool) -> UnknownName {
        let (noun, _) = self.nouns();
        let code = match self {
            Family::Experiments => "unknown_experiment",
            Family::Campaigns => "unknown_campaign",
        };
        let why = match project.names.auto_register {
            true => format!(
                "{} {noun}s have registered themselves, and no more do: create it, or archive others",
                self.registered_max(from_server_key)
            ),
            false => "the project does not register new names by itself".to_owned(),
        };
        UnknownName { code, subject: name.to_owned(), reason: format!("{noun} {name:?} does not exist, and {why}") }
    }

    fn unknown_part(self, project: &Project, of: &Entry, name: &str, from_server_key: bool) -> UnknownName {
        let (noun, part) = self.nouns();
        let code = match self {
            Family::Experiments => "unknown_variant",
            Family::Campaigns => "unknown_component",
        };
        let why = if !project.names.auto_register {
            "the project does not register new names by itself".to_owned()
        } else if !of.is_open_to_parts(self) {
            format!("its {noun} was planned: `weir admin {noun} add-{part}` adds it, if it belongs there")
        } else {
            format!("{} {part}s of its {noun} have registered themselves, and no more do", self.parts_max(from_server_key))
        };
        UnknownName { code, subject: name.to_owned(), reason: format!("{part} {name:?} does not exist, and {why}") }
    }
}

/// An experiment and its variants, or a campaign and its components: the parts.
#[derive(Debug)]
struct Entry {
    id: Uuid,
    parts: HashMap<String, Uuid>,
    /// Events brought it; nobody planned it, nor said what exposes users to it: another variant would make exposures of stored events.
    is_registered: bool,
}

impl Entry {
    fn is_open_to_parts(&self, family: Family) -> bool {
        self.is_registered || family.adds_to_planned()
    }

    /// By id if the text is one that exists, else by name.
    fn part(&self, text: &str) -> Option<Uuid> {
        let by_id = hyphenated_uuid(text).filter(|id| self.parts.values().any(|part| part == id));
        by_id.or_else(|| self.parts.get(text).copied())
    }
}

/// The names of one family in one project.
#[derive(Debug, Default)]
struct Names {
    entries: HashMap<String, Entry>,
    by_id: HashMap<Uuid, String>,
    /// How many of them registered themselves, and are not archived.
    registered: usize,
}

impl Names {
    fn add(&mut self, id: Uuid, name: String, (counts, is_registered): (bool, bool), part: Option<(Uuid, String)>) {
        if self.by_id.insert(id, name.clone()).is_none() && counts {
            self.registered += 1;
        }
        let entry = self.entries.entry(name).or_insert_with(|| Entry { id, parts: HashMap::new(), is_registered });
        if let Some((id, name)) = part {
            entry.parts.insert(name, id);
        }
    }

    /// By id if the text is one that exists, else by name.
    fn find(&self, text: &str) -> Option<&Entry> {
        let name = hyphenated_uuid(text).and_then(|id| self.by_id.get(&id)).map_or(text, String::as_str);
        self.entries.get(name)
    }
}

/// What the names of an event are to a copy of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// There are all.
    Known,
    /// There is one that will register itself.
    Registers,
    /// There is one that makes the event a dead letter.
    Missing,
}

/// The names of one project, for whoever needs to know no more than which there are.
#[derive(Debug, Default)]
pub struct KnownNames {
    auto_register: bool,
    experiments: Names,
    campaigns: Names,
}

impl KnownNames {
    /// Reads the names of a project; none if there is no such project, or it has more than `parts_max` experiments, campaigns and parts of either.
    /// # Errors
    /// As Postgres has them.
    pub async fn read(connection: &mut PgConnection, project: Uuid, parts_max: i64) -> Result<Option<Self>, sqlx::Error> {
        let auto_register = sqlx::query_scalar("SELECT auto_register FROM projects WHERE id = $1").bind(project);
        let Some(auto_register) = auto_register.fetch_optional(&mut *connection).await? else { return Ok(None) };
        let experiments = load_names(connection, project, Family::Experiments, parts_max).await?;
        let campaigns = load_names(connection, project, Family::Campaigns, parts_max).await?;
        Ok(experiments.zip(campaigns).map(|(experiments, campaigns)| KnownNames { auto_register, experiments, campaigns }))
    }

    /// Returns what the names of an event are to this copy: of several the worst.
    pub fn look(&self, event: &Event) -> Look {
        Family::ALL.into_iter().map(|family| self.look_at(family, event)).max().unwrap_or(Look::Known)
    }

    fn look_at(&self, family: Family, event: &Event) -> Look {
        let Some((name, part)) = family.names(event) else { return Look::Known };
        let names = self.names(family);
        let (is_known, has_room) = match names.find(name) {
            None => (false, names.registered < family.registered_max(event.from_server_key)),
            Some(found) => (
                part.is_none_or(|part| found.part(part).is_some()),
                found.is_open_to_parts(family) && found.parts.len() < family.parts_max(event.from_server_key),
            ),
        };
        match (is_known, has_room && self.auto_register && family.is_registered_by(event.kind())) {
            (true, _) => Look::Known,
            (false, true) => Look::Registers,
            (false, false) => Look::Missing,
        }
    }

    fn names(&self, family: Family) -> &Names {
        match family {
            Family::Experiments => &self.experiments,
            Family::Campaigns => &self.campaigns,
        }
    }
}

#[derive(Debug)]
struct Project {
    version: i64,
    names: KnownNames,
    /// Of each experiment.
    rules: HashMap<Uuid, Rules>,
    /// Of experiments to which other events expose than impressions that name them.
    exposures: Exposures,
    rollups: Vec<rollups::Active>,
    /// Experiments whose rules this version cannot read.
    unsupported: HashSet<Uuid>,
    /// Experiments whose rows are not up to date.
    behind: HashMap<Uuid, Behind>,
}

/// How far the recomputation of an experiment is whose rows are not up to date.
#[derive(Clone, Copy, Debug)]
struct Behind {
    is_recomputed: bool,
    is_list_closed: bool,
}

impl Project {
    /// Resolves the names of one family; none where the event carries none.
    fn resolve(&self, family: Family, event: &Event) -> Result<(Option<Uuid>, Option<Uuid>), UnknownName> {
        let Some((name, part)) = family.names(event) else { return Ok((None, None)) };
        let from_server_key = event.from_server_key;
        let found = self.names.names(family).find(name).ok_or_else(|| family.unknown(self, name, from_server_key))?;
        let unknown_part = |part| family.unknown_part(self, found, part, from_server_key);
        let part = part.map(|part| found.part(part).ok_or_else(|| unknown_part(part))).transpose()?;
        Ok((Some(found.id), part))
    }
}

/// A copy of the catalogues of some projects, loaded as they are needed.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// None: there is no such project.
    projects: HashMap<Uuid, Option<Project>>,
}

impl Catalogue {
    /// Loads the projects that are not in the copy yet.
    /// # Errors
    /// As Postgres has them.
    pub async fn load(&mut self, connection: &mut PgConnection, projects: &BTreeSet<Uuid>) -> Result<(), sqlx::Error> {
        for project in projects {
            if !self.projects.contains_key(project) {
                let loaded = load(connection, *project).await?;
                self.projects.insert(*project, loaded);
            }
        }
        Ok(())
    }

    /// Drops projects whose version has moved from the copy.
    pub fn invalidate(&mut self, projects: &BTreeSet<Uuid>) {
        self.projects.retain(|project, _| !projects.contains(project));
    }

    fn project(&self, project: Uuid) -> Option<&Project> {
        self.projects.get(&project)?.as_ref()
    }

    /// Returns the version that the copy of a project has.
    pub fn version(&self, project: Uuid) -> i64 {
        self.project(project).map_or(0, |project| project.version)
    }

    /// Returns what exposes users to the experiments of a project that have a definition of it.
    pub fn exposures(&self, project: Uuid) -> &Exposures {
        static NONE: LazyLock<Exposures> = LazyLock::new(Exposures::default);
        self.project(project).map_or(&NONE, |project| &project.exposures)
    }

    /// Returns the rollups of a project that commits add to.
    pub fn rollups(&self, project: Uuid) -> &[rollups::Active] {
        self.project(project).map_or(&[], |project| &project.rollups)
    }

    /// Returns how a commit treats the rows of an experiment.
    pub fn standing(&self, project: Uuid, experiment: Uuid) -> Standing<'_> {
        let Some(project) = self.project(project) else { return Standing::Left };
        let rules = project.rules.get(&experiment);
        if rules.is_some_and(|rules| rules.is_frozen) {
            return Standing::Left;
        }
        match (project.behind.get(&experiment), rules) {
            (Some(Behind { is_recomputed: false, .. }), _) => Standing::Left,
            (Some(Behind { is_list_closed: true, .. }), Some(rules)) => Standing::Closed(rules),
            // Also where the rules cannot be read: the recomputation, of a version that can, finds the user on its list.
            (Some(Behind { .. }), _) => Standing::Recomputed,
            (None, Some(rules)) => Standing::Current(rules),
            (None, None) if project.unsupported.contains(&experiment) => Standing::Unsupported,
            (None, None) => Standing::Left,
        }
    }

    /// Resolves an event's names.
    /// # Errors
    /// [`UnknownName`]: the first one that does not exist.
    pub fn resolve(&self, event: &Event) -> Result<Resolved, UnknownName> {
        let Some(project) = self.project(event.project_id.0) else {
            let subject = event.project_id.to_string();
            let reason = format!("there is no project {subject} in this database");
            return Err(UnknownName { code: "unknown_project", subject, reason });
        };
        let (experiment, variant) = project.resolve(Family::Experiments, event)?;
        let (campaign, component) = project.resolve(Family::Campaigns, event)?;
        Ok(Resolved { experiment, variant, campaign, component })
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
    let mut rules = HashMap::new();
    let mut unsupported = HashSet::new();
    for (experiment, read) in rules::read_all(connection, project).await? {
        match read {
            Ok(read) => drop(rules.insert(experiment, read)),
            Err(_) => drop(unsupported.insert(experiment)),
        }
    }
    let marks: Vec<(Uuid, bool, bool)> =
        sqlx::query_as("SELECT experiment_id, is_recomputed, is_list_closed FROM experiments_behind WHERE project_id = $1")
            .bind(project)
            .fetch_all(&mut *connection)
            .await?;
    let behind = |(experiment, is_recomputed, is_list_closed)| (experiment, Behind { is_recomputed, is_list_closed });
    let behind = marks.into_iter().map(behind).collect();
    let mut names = async |family| load_names(connection, project, family, i64::MAX).await.map(Option::unwrap_or_default);
    let (experiments, campaigns) = (names(Family::Experiments).await?, names(Family::Campaigns).await?);
    let (version, auto_register) = (row.try_get("version")?, row.try_get("auto_register")?);
    let names = KnownNames { auto_register, experiments, campaigns };
    let exposures = rules::exposures(rules.iter().map(|(experiment, rules)| (*experiment, rules)));
    let rollups = rollups::active(connection, project).await?;
    Ok(Some(Project { version, names, rules, exposures, rollups, unsupported, behind }))
}

/// None if they are more than `parts_max`.
async fn load_names(
    connection: &mut PgConnection,
    project: Uuid,
    family: Family,
    parts_max: i64,
) -> Result<Option<Names>, sqlx::Error> {
    let statement = match family {
        Family::Experiments => {
            "SELECT e.id, e.name, v.id, v.name, e.auto_registered AND e.status <> 'archived',
                    e.auto_registered AND to_jsonb(e) ->> 'exposure' IS NULL FROM experiments e
             LEFT JOIN variants v ON v.project_id = e.project_id AND v.experiment_id = e.id WHERE e.project_id = $1 LIMIT $2"
        }
        Family::Campaigns => {
            "SELECT c.id, c.name, p.id, p.name, c.auto_registered AND c.status <> 'archived', c.auto_registered FROM campaigns c
             LEFT JOIN campaign_components p ON p.project_id = c.project_id AND p.campaign_id = c.id WHERE c.project_id = $1 LIMIT $2"
        }
    };
    let rows = sqlx::query(statement).bind(project).bind(parts_max.saturating_add(1)).fetch_all(connection).await?;
    if i64::try_from(rows.len()).is_ok_and(|rows| rows > parts_max) {
        return Ok(None);
    }
    let mut names = Names::default();
    for row in rows {
        let part: Option<Uuid> = row.try_get(2)?;
        let part_name: Option<String> = row.try_get(3)?;
        names.add(row.try_get(0)?, row.try_get(1)?, (row.try_get(4)?, row.try_get(5)?), part.zip(part_name));
    }
    Ok(Some(names))
}
