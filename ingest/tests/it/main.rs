//! Tests of the collector from the outside: bytes in at its socket, records out of its log.

mod any_body;
mod corpus;
mod dialects;
mod faults;
mod geo;
mod hardest;
mod hostile;
mod identity;
mod keys;
mod lifecycle;
mod limits;
mod mmdb;
mod names;
mod outages;
mod peers;
mod privacy;
mod rejections;
mod repairs;
mod requests;
mod schema;
mod senders;
mod snippet;
mod support;
mod validate;
