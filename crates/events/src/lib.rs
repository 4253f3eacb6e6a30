//! The vocabulary of Weir: what an event is, which rules it obeys, and its bytes in the log. Nothing here does I/O.
//!
//! The journey of an event through this crate:
//!
//! 1. A collector's dialect (native, the pixel, one of the SDKs') turns a request into [`Draft`]s: typed, but not yet validated.
//! 2. [`rules::admit`] checks a draft against every rule and either makes the one [`Event`] of it, with identity, times
//!    and texts fixed for ever, or says by [`Rejection`]s what is wrong, where, and what is accepted. On an SDK's route it mends what it can,
//!    and says so by [`Repair`]s.
//! 3. [`Record::encode`] turns the event into the bytes of the log, once; a spool and a replay reuse those bytes.
//! 4. The aggregator gets the event back with [`wire::decode`].
//!
//! An [`Event`] can be made in these two ways only, so nothing that was not validated reaches a log or a table.

pub mod bucket;
pub mod digits;
mod event;
pub mod fact;
pub mod identity;
pub mod json;
pub mod money;
mod rejected;
mod rejection;
pub mod repair;
pub mod rules;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod time;
pub mod unlinked;
pub mod wire;

pub use bucket::{BUCKETS, Bucket};
pub use event::{
    ClaimedTime, Context, ConversionDetails, Details, Draft, Event, EventId, IdentityDetails, ImpressionDetails, Kind, ProjectId,
    UserId,
};
pub use json::JsonObject;
pub use money::{Money, MoneyError};
pub use rejected::RejectedEvent;
pub use rejection::{Code, Rejection};
pub use repair::Repair;
pub use time::{Micros, TimeError};
pub use wire::Record;
