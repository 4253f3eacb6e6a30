//! Campaigns and their components: made and shown.

use events::Micros;
use serde::Serialize;
use serde_json::json;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{AdminError, Project, audit, begin, check_name, dead_letters, iso, listed, lock_catalogue, texts};
use crate::catalogue::raise_version;

/// Components of one campaign, each made in a statement of its own.
const COMPONENTS_MAX: usize = 1_000;

texts! {
    /// What a campaign is made of.
    CampaignType {
        /// One page.
        LandingPage = "landing_page",
        /// Several steps.
        Funnel = "funnel",
        /// Several mails.
        EmailSequence = "email_sequence",
        /// All of it.
        CompleteCampaign = "complete_campaign",
        /// A better part of something that exists.
        ComponentEnhancement = "component_enhancement",
    }
}

texts! {
    /// What a component is.
    ComponentType {
        /// A page of its own.
        LandingPage = "landing_page",
        /// A form.
        Form = "form",
        /// A page's head.
        Header = "header",
        /// A page's foot.
        Footer = "footer",
        /// What is seen first.
        HeroSection = "hero_section",
        /// What customers say.
        Testimonials = "testimonials",
        /// A table of prices.
        Pricing = "pricing",
        /// A mail.
        EmailTemplate = "email_template",
        /// What lies above a page.
        Popup = "popup",
        /// A menu.
        Navigation = "navigation",
        /// Anything else.
        Custom = "custom",
    }
}

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
    /// Such as active.
    pub status: String,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Whether the first event that named it made it.
    pub auto_registered: bool,
    /// When it was made.
    #[serde(serialize_with = "iso")]
    pub created_at: Micros,
    /// By name.
    pub components: Vec<Component>,
}

/// A component as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromRow)]
pub struct Component {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    #[sqlx(rename = "component_type")]
    pub kind: String,
}

/// What a creation did.
#[derive(Clone, Debug)]
pub struct Created {
    /// The campaign.
    pub campaign: Campaign,
    /// Dead letters that were waiting for it: the aggregator will append them again.
    pub dead_letters: u64,
}

/// Makes a campaign, and has the dead letters replayed that were waiting for it.
/// # Errors
/// [`AdminError::Invalid`], [`AdminError::NameTaken`].
pub async fn create(conn: &mut PgConnection, project: &Project, new: &NewCampaign) -> Result<Created, AdminError> {
    check(new)?;
    let mut tx = begin(conn).await?;
    lock_catalogue(&mut tx, project.id).await?;
    let taken: Option<Uuid> = sqlx::query_scalar("SELECT id FROM campaigns WHERE project_id = $1 AND name = $2")
        .bind(project.id)
        .bind(&new.name)
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(id) = taken {
        return Err(AdminError::NameTaken { what: "campaign", name: new.name.clone(), id });
    }
    let id: Uuid = sqlx::query_scalar(
        "INSERT INTO campaigns (project_id, name, description, type, status, launched_at) VALUES ($1, $2, $3, $4, 'active', now()) \
         RETURNING id",
    )
    .bind(project.id)
    .bind(&new.name)
    .bind(&new.description)
    .bind(new.kind.map(CampaignType::as_str))
    .fetch_one(&mut *tx)
    .await?;
    for component in &new.components {
        sqlx::query("INSERT INTO campaign_components (project_id, campaign_id, name, component_type) VALUES ($1, $2, $3, $4)")
            .bind(project.id)
            .bind(id)
            .bind(&component.name)
            .bind(component.kind.as_str())
            .execute(&mut *tx)
            .await?;
    }
    let campaign = load(&mut tx, project, id).await?;
    let names = vec![campaign.name.clone(), id.to_string()];
    let waiting = dead_letters::replay_for(&mut tx, project.id, "unknown_campaign", &names).await?;
    raise_version(&mut tx, project.id).await?;
    let details = json!({ "id": id, "components": campaign.components, "dead_letters": waiting });
    audit(&mut tx, Some(project.id), "campaign.create", &new.name, &details).await?;
    tx.commit().await?;
    Ok(Created { campaign, dead_letters: waiting })
}

fn check(new: &NewCampaign) -> Result<(), AdminError> {
    check_name("name", &new.name)?;
    if new.description.as_deref().is_some_and(|text| text.contains('\0')) {
        return Err(AdminError::invalid("description", "found the character U+0000, which Postgres cannot hold"));
    }
    if new.components.len() > COMPONENTS_MAX {
        let found = new.components.len();
        return Err(AdminError::invalid("components", format!("found {found}; at most {COMPONENTS_MAX} are accepted")));
    }
    for (index, component) in new.components.iter().enumerate() {
        let field = format!("components[{index}].name");
        check_name(&field, &component.name)?;
        if new.components[..index].iter().any(|other| other.name == component.name) {
            return Err(AdminError::invalid(field, format!("found {:?} twice; each name once", component.name)));
        }
    }
    Ok(())
}

/// Returns the campaigns of a project, by name.
/// # Errors
/// [`AdminError::Database`].
pub async fn list(conn: &mut PgConnection, project: &Project) -> Result<Vec<Campaign>, AdminError> {
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM campaigns WHERE project_id = $1 ORDER BY name")
        .bind(project.id)
        .fetch_all(&mut *conn)
        .await?;
    let mut campaigns = Vec::with_capacity(ids.len());
    for id in ids {
        campaigns.push(load(conn, project, id).await?);
    }
    Ok(campaigns)
}

/// Returns a campaign, found by id, else by name.
/// # Errors
/// [`AdminError::Unknown`].
pub async fn show(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Campaign, AdminError> {
    let found: Option<Uuid> = sqlx::query_scalar(
        "SELECT id FROM campaigns WHERE project_id = $1 AND (name = $2 OR id::text = lower($2)) \
         ORDER BY id::text = lower($2) DESC LIMIT 1",
    )
    .bind(project.id)
    .bind(name)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(id) = found {
        return load(conn, project, id).await;
    }
    let names = sqlx::query_scalar("SELECT name FROM campaigns WHERE project_id = $1 ORDER BY name LIMIT 11")
        .bind(project.id)
        .fetch_all(conn)
        .await?;
    Err(AdminError::Unknown { what: "campaign", name: name.into(), place: project.to_string(), known: listed(&names) })
}

async fn load(conn: &mut PgConnection, project: &Project, id: Uuid) -> Result<Campaign, AdminError> {
    type Row = (String, Option<String>, String, Option<String>, bool, i64);
    let (name, description, status, kind, auto_registered, created_at): Row = sqlx::query_as(
        "SELECT name, description, status, type, auto_registered, (extract(epoch FROM created_at) * 1000000)::bigint \
         FROM campaigns WHERE project_id = $1 AND id = $2",
    )
    .bind(project.id)
    .bind(id)
    .fetch_one(&mut *conn)
    .await?;
    let components = sqlx::query_as(
        "SELECT id, name, component_type FROM campaign_components WHERE project_id = $1 AND campaign_id = $2 ORDER BY name",
    )
    .bind(project.id)
    .bind(id)
    .fetch_all(conn)
    .await?;
    Ok(Campaign { id, name, description, status, kind, auto_registered, created_at: Micros(created_at), components })
}
