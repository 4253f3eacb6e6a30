//! The catalogue against a real Postgres.

mod experiments;
mod vocabulary;
