//! Campaigns and their components: made and shown.

use std::collections::HashMap;

use events::Micros;
use events::identity::hyphenated_uuid;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::change::Change;
use crate::project::Project;
use crate::timestamp::Timestamp;
use crate::vocabulary::{CampaignStatus, CampaignType, ComponentType};
use crate::{CatalogueError, ReadError, check};

/// Components of one campaign, each made in a statement of its own.
pub(crate) const COMPONENTS_MAX: usize = 1_000;

/// A campaign to be made; it is active at once.
#[derive(Clone, Debug, Default)]
pub struct NewCampaign {
    /// Unique in the project, for ever.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// What it is made of.
    pub kind: Option<CampaignType>,
    /// Its parts, which events name.
    pub components: Vec<NewComponent>,
}

/// A part of a campaign.
#[derive(Clone, Debug)]
pub struct NewComponent {
    /// Unique in the campaign, for ever.
    pub name: String,
    /// What it is.
    pub kind: ComponentType,
}

/// A campaign as it is stored.
#[derive(Clone, Debug, Serialize)]
pub struct Campaign {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Where it stands.
    pub status: CampaignStatus,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: Option<CampaignType>,
    /// Whether the first event that named it made it.
    pub auto_registered: bool,
    /// When it was made.
    #[serde(serialize_with = "crate::time_text")]
    pub created_at: Micros,
    /// By name.
    pub components: Vec<Component>,
}

/// A component as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Component {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ComponentType,
}

impl Component {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Component { id: row.try_get("id")?, name: row.try_get("name")?, kind: row.try_get("component_type")? })
    }
}

/// Stores a new campaign with its components.
/// # Errors
/// [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn insert(change: &mut Change<'_>, new: &NewCampaign) -> Result<Campaign, CatalogueError> {
    new.check()?;
    let project = change.project().id;
    let connection = change.connection();
    let taken: Option<Uuid> = sqlx::query_scalar("SELECT id FROM campaigns WHERE project_id = $1 AND name = $2")
        .bind(project)
        .bind(&new.name)
        .fetch_optional(&mut *connection)
        .await?;
    if let Some(id) = taken {
        return Err(CatalogueError::NameTaken { what: "campaign", name: new.name.clone(), id });
    }
    let id: Uuid = sqlx::query_scalar(
        "INSERT INTO campaigns (project_id, name, description, type, status, launched_at) VALUES ($1, $2, $3, $4, 'active', now()) \
         RETURNING id",
    )
    .bind(project)
    .bind(&new.name)
    .bind(&new.description)
    .bind(new.kind)
    .fetch_one(&mut *connection)
    .await?;
    for component in &new.components {
        sqlx::query("INSERT INTO campaign_components (project_id, campaign_id, name, component_type) VALUES ($1, $2, $3, $4)")
            .bind(project)
            .bind(id)
            .bind(&component.name)
            .bind(component.kind)
            .execute(&mut *connection)
            .await?;
    }
    let found = read(connection, project, Some(&id.to_string())).await?;
    Ok(found.into_iter().next().ok_or(sqlx::Error::RowNotFound)?)
}

impl NewCampaign {
    fn check(&self) -> Result<(), CatalogueError> {
        check::name("name", &self.name)?;
        check::description("description", self.description.as_deref())?;
        if self.components.len() > COMPONENTS_MAX {
            let found = self.components.len();
            return Err(CatalogueError::invalid("components", format!("found {found}; at most {COMPONENTS_MAX} are accepted")));
        }
        for (index, component) in self.components.iter().enumerate() {
            let field = format!("components[{index}].name");
            check::name(&field, &component.name)?;
            if self.components[..index].iter().any(|other| other.name == component.name) {
                return Err(CatalogueError::invalid(field, format!("found {:?} twice; each name once", component.name)));
            }
        }
        Ok(())
    }
}

/// Returns the campaigns of a project, by name.
/// # Errors
/// [`CatalogueError::Unsupported`], [`CatalogueError::Database`].
pub async fn list(connection: &mut PgConnection, project: &Project) -> Result<Vec<Campaign>, CatalogueError> {
    Ok(read(connection, project.id, None).await?)
}

/// Returns a campaign, found by id, else by name.
/// # Errors
/// [`CatalogueError::Unknown`], which names some that there are; [`CatalogueError::Unsupported`].
pub async fn show(connection: &mut PgConnection, project: &Project, name: &str) -> Result<Campaign, CatalogueError> {
    if let Some(found) = read(connection, project.id, Some(name)).await?.into_iter().next() {
        return Ok(found);
    }
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM campaigns WHERE project_id = $1 ORDER BY name LIMIT 11")
        .bind(project.id)
        .fetch_all(connection)
        .await?;
    Err(CatalogueError::unknown("campaign", name, project.to_string(), &names))
}

/// Reads the one campaign with this id, else with this name, or all of them.
async fn read(connection: &mut PgConnection, project: Uuid, name: Option<&str>) -> Result<Vec<Campaign>, ReadError> {
    let rows = sqlx::query(
        "SELECT id, name, description, status, type, auto_registered, created_at FROM campaigns \
         WHERE project_id = $1 AND ($3::text IS NULL OR id = $2 OR name = $3) \
         ORDER BY id IS NOT DISTINCT FROM $2 DESC, name LIMIT CASE WHEN $3 IS NOT NULL THEN 1 END",
    )
    .bind(project)
    .bind(name.and_then(hyphenated_uuid))
    .bind(name)
    .fetch_all(&mut *connection)
    .await?;
    let mut campaigns = Vec::with_capacity(rows.len());
    for row in &rows {
        let name: &str = row.try_get("name")?;
        campaigns.push(of_row(row).map_err(|error| ReadError::of_row(error, "campaigns", || format!("row {name:?}")))?);
    }
    let ids: Vec<Uuid> = campaigns.iter().map(|campaign| campaign.id).collect();
    let rows = sqlx::query(
        "SELECT campaign_id, id, name, component_type FROM campaign_components \
         WHERE project_id = $1 AND campaign_id = ANY ($2) ORDER BY name",
    )
    .bind(project)
    .bind(&ids)
    .fetch_all(connection)
    .await?;
    let mut components: HashMap<Uuid, Vec<Component>> = HashMap::new();
    for row in &rows {
        let name: &str = row.try_get("name")?;
        let component = Component::from_row(row);
        let component = component.map_err(|error| ReadError::of_row(error, "campaign_components", || format!("row {name:?}")))?;
        components.entry(row.try_get("campaign_id")?).or_default().push(component);
    }
    for campaign in &mut campaigns {
        campaign.components = components.remove(&campaign.id).unwrap_or_default();
    }
    Ok(campaigns)
}

fn of_row(row: &PgRow) -> Result<Campaign, sqlx::Error> {
    Ok(Campaign {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        status: row.try_get("status")?,
        kind: row.try_get("type")?,
        auto_registered: row.try_get("auto_registered")?,
        created_at: row.try_get::<Timestamp, _>("created_at")?.0,
        components: Vec::new(),
    })
}
