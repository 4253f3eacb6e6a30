//! Requests over HTTP: routes and what they answer ([`routes`]), who asks ([`tokens`]), how many
//! queries run and wait ([`limits`]), and what a client is told when there is no answer ([`error`]). [`app`] holds what all
//! requests share. What is answered lies in `experiment`, `funnel` and `sql`.

pub mod app;
pub mod error;
pub(crate) mod limits;
pub(crate) mod routes;
pub(crate) mod tokens;
