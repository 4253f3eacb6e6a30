//! `POST /v1/sql`: [`guard`] says which statements are planned at all, [`run`] plans and runs one, [`formats`] writes its rows
//! as JSON, CSV, Arrow or Parquet, with [`cells`] for single values in the first two.

pub mod cells;
pub mod formats;
pub mod guard;
pub mod run;
