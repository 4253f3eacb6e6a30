//! Tests of the collector from the outside: bytes in at its socket, records out of its log.

mod any_body;
mod corpus;
mod dialects;
mod faults;
mod hostile;
mod keys;
mod lifecycle;
mod limits;
mod names;
mod outages;
mod rejections;
mod repairs;
mod requests;
mod schema;
mod snippet;
mod support;
mod validate;
