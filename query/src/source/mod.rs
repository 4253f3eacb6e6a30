//! Where rows come from: one [`snapshot`] of Postgres for all reads of an answer, the [`tables`] that queries see, the project's [`rollups`] among them, and how
//! DataFusion reads them: a [`scan`] pushes simple conditions down as SQL ([`filter`]) and decodes binary COPY ([`copy`]).
//! [`names`] are those that events have. The token's project is in the SQL of each scan, below anything that a client can write.

pub mod copy;
pub mod filter;
pub mod names;
pub mod property;
pub mod rollups;
pub mod scan;
pub mod snapshot;
pub mod tables;
