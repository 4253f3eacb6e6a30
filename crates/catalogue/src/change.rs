//! One change of a project's catalogue: a transaction of which the version and the audit are part.

use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::audit::audit;
use crate::project::Project;
use crate::version;

/// Begins a transaction of an operator. A lock that somebody holds for longer than a minute ends it: an aggregator that hangs
/// inside a transaction is replaced within 20 seconds, so whoever still holds one then is no aggregator.
/// # Errors
/// As Postgres has them.
pub async fn begin(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SET LOCAL lock_timeout = '60s'").execute(&mut *transaction).await?;
    Ok(transaction)
}

/// A change that is being made, under the lock of the project's catalogue. Dropped, it leaves everything as it was.
pub struct Change<'c> {
    transaction: Transaction<'c, Postgres>,
    project: Project,
}

impl<'c> Change<'c> {
    /// Begins a change.
    /// # Errors
    /// As Postgres has them.
    pub async fn begin(connection: &'c mut PgConnection, project: &Project) -> Result<Self, sqlx::Error> {
        let mut transaction = begin(connection).await?;
        version::lock(&mut transaction, project.id).await?;
        Ok(Change { transaction, project: project.clone() })
    }

    /// Returns the project whose catalogue is changed.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Returns the transaction's connection, for what belongs to the change.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Raises the catalogue's version, so that a batch resolved against the old one is resolved again, writes the audit and
    /// commits. `action` and `subject` as of [`audit`].
    /// # Errors
    /// As Postgres has them; nothing is changed then.
    pub async fn commit(mut self, action: &str, subject: &str, details: &serde_json::Value) -> Result<(), sqlx::Error> {
        version::raise(&mut self.transaction, self.project.id).await?;
        audit(&mut self.transaction, Some(self.project.id), action, subject, details).await?;
        self.transaction.commit().await
    }
}
