//! The schema: numbered SQL, and the migrator that applies it.
//!
//! The schema is the contract between the services; none of them shares a type with another for a table.
//! A file, once released, never changes; the next change is the next number.

#[cfg(feature = "testing")]
pub mod testing;

/// Applies what is missing, in order, under an advisory lock, and refuses a database that is newer than this build.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./sql");
