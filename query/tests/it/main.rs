//! Every route through HTTP, over a private Postgres with the real schema.

mod corrections;
mod experiments;
mod faults;
mod funnels;
mod golden_rows;
mod patterns;
mod results;
mod schema;
mod server;
mod shares;
mod sql;
mod support;
mod worker;
