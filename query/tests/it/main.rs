//! Every route through HTTP, over a private Postgres with the real schema.

mod adjusted;
mod agreement;
mod asked;
mod corrections;
mod definitions;
mod evaluations;
mod experiments;
mod exposures;
mod faults;
mod funnel_companions;
mod funnel_oracle;
mod funnel_semantics;
mod funnels;
mod golden_funnels;
mod golden_rows;
mod patterns;
mod phases;
mod results;
mod schema;
mod server;
mod shares;
mod sql;
mod support;
mod triggers;
mod untidy;
mod worker;
