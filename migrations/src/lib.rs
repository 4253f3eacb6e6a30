//! The schema: numbered SQL, and the migrator that applies it.
//!
//! The schema is the contract between the services; none of them shares a type with another for a table.
//! A file, once released, never changes; the next change is the next number.

#[cfg(feature = "testing")]
pub mod testing;

use std::sync::LazyLock;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Applies what is missing, in order, under an advisory lock, and refuses a database that is newer than this build.
pub static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| up_to(i64::MAX));

fn up_to(newest: i64) -> Migrator {
    let migration = |(version, description, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(FILES.into_iter().filter(|(version, ..)| *version <= newest).map(migration).collect())
}

/// The files by number. They are listed rather than found by sqlx's macro: its crate builds the whole of sqlx a second time.
const FILES: [(i64, &str, &str); 17] = [
    (1, "catalogue", include_str!("../sql/0001_catalogue.sql")),
    (2, "progress", include_str!("../sql/0002_progress.sql")),
    (3, "facts", include_str!("../sql/0003_facts.sql")),
    (4, "derived", include_str!("../sql/0004_derived.sql")),
    (5, "event_names", include_str!("../sql/0005_event_names.sql")),
    (6, "standing", include_str!("../sql/0006_standing.sql")),
    (7, "closed_lists", include_str!("../sql/0007_closed_lists.sql")),
    (8, "over_active_users", include_str!("../sql/0008_over_active_users.sql")),
    (9, "rejected_events", include_str!("../sql/0009_rejected_events.sql")),
    (10, "reassigned_phases", include_str!("../sql/0010_reassigned_phases.sql")),
    (11, "metric_definitions", include_str!("../sql/0011_metric_definitions.sql")),
    (12, "evaluations", include_str!("../sql/0012_evaluations.sql")),
    (13, "triggers", include_str!("../sql/0013_triggers.sql")),
    (14, "policies", include_str!("../sql/0014_policies.sql")),
    (15, "exposures", include_str!("../sql/0015_exposures.sql")),
    (16, "rollups", include_str!("../sql/0016_rollups.sql")),
    (17, "months", include_str!("../sql/0017_months.sql")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_listed_under_its_number_and_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/sql");
        let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path))
            .map(|(name, path)| (name, std::fs::read_to_string(path).expect("readable")))
            .collect();
        files.sort();
        let listed: Vec<(String, String)> = FILES
            .iter()
            .map(|(version, description, sql)| (format!("{version:04}_{description}.sql"), (*sql).to_owned()))
            .collect();
        assert_eq!(files, listed);
        assert_eq!(MIGRATOR.iter().map(|migration| migration.version).collect::<Vec<_>>(), (1..=17).collect::<Vec<i64>>());
    }
}
