//! Campaigns: made, with what was waiting for them.

use catalogue::campaigns::{self, Campaign, NewCampaign};
use catalogue::{CatalogueError, Change, Project};
use serde_json::json;
use sqlx::PgConnection;

use super::dead_letters;

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
/// [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn create(conn: &mut PgConnection, project: &Project, new: &NewCampaign) -> Result<Created, CatalogueError> {
    let mut change = Change::begin(conn, project).await?;
    let campaign = campaigns::insert(&mut change, new).await?;
    let names = [campaign.name.clone(), campaign.id.to_string()];
    let waiting = dead_letters::replay_for(change.connection(), project.id, "unknown_campaign", &names).await?;
    let details = json!({ "id": campaign.id, "components": campaign.components, "dead_letters": waiting });
    change.commit("campaign.create", &new.name, &details).await?;
    Ok(Created { campaign, dead_letters: waiting })
}
