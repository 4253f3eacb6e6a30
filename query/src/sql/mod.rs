//! `POST /v1/sql`: [`guard`] says which statements are planned at all, [`run`] plans and runs one, [`formats`] writes its rows
//! as JSON, CSV, Arrow or Parquet, with [`cells`] for single values in the first two. A [`condition`] on one event is read here for funnels and metrics.

pub mod cells;
pub mod condition;
pub mod formats;
pub mod guard;
pub mod run;
