//! The aggregator as a service: a log on one side, a private Postgres on the other.

mod admin;
mod faults;
mod flow;
mod leases;
mod names;
mod outages;
mod phases;
mod pipeline;
mod schema;
mod silence;
mod users;
