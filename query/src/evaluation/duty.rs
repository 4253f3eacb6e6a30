//! What one process of several does: the one whose connection holds a lock of Postgres. When that connection ends, another process takes over.

use catalogue::schema::SchemaError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

use crate::SCHEMA;

/// What one process has to do.
pub(super) struct Duty {
    options: PgConnectOptions,
    /// The statement that takes its lock.
    lock: &'static str,
    connection: Option<PgConnection>,
    is_held: bool,
}

impl Duty {
    /// Makes one that this process does not have yet.
    pub(super) fn new(options: PgConnectOptions, lock: &'static str) -> Self {
        Duty { options, lock, connection: None, is_held: false }
    }

    /// Returns whether the duty is this process's since the last time that this was asked, and the connection that holds it; none while
    /// another process has it. That one is asked for over the same connection, however long it takes.
    pub(super) async fn held(&mut self) -> Result<Option<(bool, &mut PgConnection)>, SchemaError> {
        if self.connection.is_none() {
            self.connection = Some(self.options.connect().await?);
        }
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let is_new = !self.is_held;
        if is_new {
            SCHEMA.check_database(connection).await?;
            self.is_held = sqlx::query_scalar(self.lock).fetch_one(&mut *connection).await?;
        }
        Ok(self.is_held.then_some((is_new, connection)))
    }

    /// Gives the duty up, with the connection that failed.
    pub(super) fn give_up(&mut self) {
        (self.connection, self.is_held) = (None, false);
    }
}
