//! Definitions of a project under a name. Each change of one is a new version, and a version never changes, so that an experiment goes on
//! meaning what it did.

use events::Micros;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::change::Change;
use crate::project::Project;
use crate::timestamp::Timestamp;
use crate::vocabulary::UnknownText;
use crate::{CatalogueError, check};

/// What has versions.
pub trait Versioned: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync {
    /// What it is, for people.
    const NOUN: &'static str;
    /// Where the versions are.
    const TABLE: &'static str;
    /// What the audit calls a new version.
    const ACTION: &'static str;
    /// What a stored text may be, for who finds another one.
    const KNOWN: &'static [&'static str];

    /// Checks every value that does not need the database.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    fn check(&self) -> Result<(), CatalogueError>;

    /// Checks a name further than all names are.
    /// # Errors
    /// [`CatalogueError::Invalid`].
    fn check_name(_name: &str) -> Result<(), CatalogueError> {
        Ok(())
    }

    /// Returns whether what [`Versioned::made`] made for a version is still there.
    /// # Errors
    /// As Postgres has them.
    fn is_kept(
        _change: &mut Change<'_>,
        _name: &str,
        _version: i32,
    ) -> impl Future<Output = Result<bool, CatalogueError>> + Send {
        async { Ok(true) }
    }

    /// Makes what a new version needs beside itself, as part of the change that makes the version.
    /// # Errors
    /// As Postgres has them; then nothing is made.
    fn made(
        &self,
        _change: &mut Change<'_>,
        _name: &str,
        _version: i32,
    ) -> impl Future<Output = Result<(), CatalogueError>> + Send {
        async { Ok(()) }
    }
}

/// One version of a definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version<D> {
    /// The name of the definition, which is unique in the project.
    pub name: String,
    /// From 1 on.
    pub version: i32,
    /// What it says.
    pub definition: D,
    /// When it was made.
    #[serde(serialize_with = "crate::time_text")]
    pub created_at: Micros,
}

/// What defining did.
#[derive(Clone, Debug)]
pub struct Defined<D> {
    /// The newest version.
    pub version: Version<D>,
    /// Whether it was made now; otherwise it was there already, and nothing changed.
    pub is_new: bool,
}

/// A version that an experiment refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reference<D> {
    /// The name of the definition.
    pub name: String,
    /// Which version.
    pub version: i32,
    /// What it says.
    pub definition: D,
}

/// Makes a definition, or the next version of one; a definition that is equal to the newest version is that version.
/// # Errors
/// [`CatalogueError::Invalid`].
pub async fn define<D: Versioned>(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    definition: &D,
) -> Result<Defined<D>, CatalogueError> {
    check::name("name", name)?;
    if name.contains('@') {
        return Err(CatalogueError::invalid(
            "name",
            format!("found {name:?}; a version follows an @, so that a name holds none"),
        ));
    }
    D::check_name(name)?;
    definition.check()?;
    let mut change = Change::begin(connection, project).await?;
    let newest = read::<D>(change.connection(), project.id, Some(name)).await?.pop();
    if let Some(version) = newest.as_ref().filter(|newest| newest.definition == *definition)
        && D::is_kept(&mut change, name, version.version).await?
    {
        return Ok(Defined { version: version.clone(), is_new: false });
    }
    let next = newest.map_or(1, |newest| newest.version + 1);
    let text = serde_json::to_string(definition).map_err(|error| CatalogueError::invalid("definition", error.to_string()))?;
    let insert = format!(
        "INSERT INTO {} (project_id, name, version, definition) VALUES ($1, $2, $3, $4::jsonb) RETURNING created_at",
        D::TABLE
    );
    let row = sqlx::query(AssertSqlSafe(insert)).bind(project.id).bind(name).bind(next).bind(text);
    let created_at = row.fetch_one(change.connection()).await?.try_get::<Timestamp, _>("created_at")?.0;
    definition.made(&mut change, name, next).await?;
    let version = Version { name: name.to_owned(), version: next, definition: definition.clone(), created_at };
    change.commit(D::ACTION, name, &json!({ "version": next, "definition": definition })).await?;
    Ok(Defined { version, is_new: true })
}

/// Returns all versions of all definitions of a project, by name and version.
/// # Errors
/// As Postgres has them; a definition of a newer version of Weir is a decoding error that names it.
pub async fn list<D: Versioned>(connection: &mut PgConnection, project: &Project) -> Result<Vec<Version<D>>, CatalogueError> {
    Ok(read(connection, project.id, None).await?)
}

async fn read<D: Versioned>(
    connection: &mut PgConnection,
    project: Uuid,
    name: Option<&str>,
) -> Result<Vec<Version<D>>, sqlx::Error> {
    let select = format!(
        "SELECT name, version, definition::text AS definition, created_at FROM {}
         WHERE project_id = $1 AND ($2::text IS NULL OR name = $2) ORDER BY name, version",
        D::TABLE
    );
    let rows = sqlx::query(AssertSqlSafe(select)).bind(project).bind(name).fetch_all(connection).await?;
    let version = |row: &sqlx::postgres::PgRow| {
        Ok(Version {
            name: row.try_get("name")?,
            version: row.try_get("version")?,
            definition: of_text(row.try_get("definition")?, "definition")?,
            created_at: row.try_get::<Timestamp, _>("created_at")?.0,
        })
    };
    rows.iter().map(version).collect()
}

/// Reads a definition as it is stored in a column.
pub(crate) fn of_text<D: Versioned>(text: &str, column: &str) -> Result<D, sqlx::Error> {
    let unknown = |_| UnknownText { text: text.to_owned(), known: D::KNOWN };
    let source = serde_json::from_str(text).map_err(unknown);
    source.map_err(|source| sqlx::Error::ColumnDecode { index: column.to_owned(), source: source.into() })
}

/// Returns the number of a version that is to be referred to, the newest if none is asked for.
/// # Errors
/// [`CatalogueError::Unknown`], which names some definitions or the versions that there are.
pub(crate) async fn version_of<D: Versioned>(
    connection: &mut PgConnection,
    project: Uuid,
    name: &str,
    version: Option<i32>,
) -> Result<i32, CatalogueError> {
    let all = format!("SELECT version FROM {} WHERE project_id = $1 AND name = $2 ORDER BY version", D::TABLE);
    let known: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(all)).bind(project).bind(name).fetch_all(&mut *connection).await?;
    let found = version.map_or_else(|| known.last(), |version| known.iter().find(|known| **known == version));
    match (found, version) {
        (Some(found), _) => Ok(*found),
        (None, Some(version)) if !known.is_empty() => {
            let names: Vec<String> = known.iter().take(11).map(|version| format!("{name}@{version}")).collect();
            Err(CatalogueError::unknown(D::NOUN, &format!("{name}@{version}"), "the project", &names))
        }
        (None, _) => {
            let some = format!("SELECT DISTINCT name FROM {} WHERE project_id = $1 ORDER BY name LIMIT 11", D::TABLE);
            let names: Vec<String> = sqlx::query_scalar(AssertSqlSafe(some)).bind(project).fetch_all(connection).await?;
            Err(CatalogueError::unknown(D::NOUN, name, "the project", &names))
        }
    }
}
