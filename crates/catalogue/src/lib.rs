//! What is measured: projects, keys, experiments with variants and metrics, campaigns with components. Their types, their SQL,
//! and the changes that operators make.
//!
//! - [`vocabulary`] has every text that the schema knows; a text that it does not know is an error, never a default.
//! - [`experiments`], [`metrics`], [`definitions`], [`exposures`], [`campaigns`], [`event_names`], [`keys`], [`webhooks`] and [`project`] hold what is stored and
//!   what can be made; [`versions`] keeps definitions.
//! - [`rollups`] are sums that are kept as events are stored: the declarations, and what they make of an event.
//! - [`names`] resolves the names in events to ids and registers new ones; [`rules`] says what of an experiment decides about
//!   participation and attribution.
//! - [`schema`] says which schema the database has, and which ones a service works with.
//! - [`change`], [`version`] and [`mod@audit`]: every change takes the lock of the project's catalogue, raises its version and
//!   writes the audit in one transaction.
//!
//! Where stored rows change their meaning with a change, the aggregator makes it: it marks the experiment in the same transaction,
//! so that commits leave its rows alone, and recomputes them beside the stream.

pub mod audit;
pub mod behind;
pub mod campaigns;
pub mod change;
mod check;
mod decimal;
pub mod definitions;
mod error;
pub mod event_names;
pub mod experiments;
pub mod exposures;
pub mod keys;
pub mod metrics;
pub mod names;
pub mod policy;
pub mod project;
pub mod rollups;
pub mod rules;
pub mod schema;
mod timestamp;
pub mod trigger;
pub mod version;
pub mod versions;
pub mod vocabulary;
pub mod webhooks;
pub mod window;

pub use change::Change;
pub use decimal::Decimal;
pub use error::{CatalogueError, ReadError, Unsupported};
pub use names::Catalogue;
pub use policy::Policy;
pub use project::{Project, ensure_project, find_project};
pub use rules::Rules;
pub use timestamp::Timestamp;
pub use trigger::Trigger;
pub use vocabulary::{
    Aggregation, Amount, AttributionMethod, CampaignStatus, CampaignType, ComponentType, DeadLetterStatus, DeliveryStatus,
    Denominator, Direction, EventNameStatus, ExperimentStatus, KeyKind, MonthState, NoticeKind, Period, PhaseState, REFUND_TYPES,
    Role, UnknownText, WebhookFormat,
};

/// Writes a time as people and programs read it.
pub(crate) fn time_text<S: serde::Serializer>(time: &events::Micros, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(time)
}
