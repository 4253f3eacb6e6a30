//! The collector without sockets and without Postgres, for fuzzing: a request's bytes in, the records that would be appended out, and a look
//! at everything that must hold of them, whatever the bytes are. Not part of the service.
//!
//! An input is a request as a person would write it down: the line `METHOD TARGET`, a line for each header, an empty line, the body.

mod door;
mod metadata;
mod mutate;
mod oracles;
mod request;
mod seeds;

use std::path::Path;

use events::Record;
use events::repair::Reason;
use hyper::Method;

use crate::route::Route;
pub use door::Door;
pub use mutate::{Changes, Mutator, Random};
use request::Input;
pub use seeds::{corpus, dictionary, seeds};

/// What is fuzzed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The path from the head of a request to its answer, whatever the address.
    Request,
    /// Native batches.
    Native,
    /// Segment's calls and batches.
    Segment,
    /// PostHog's older addresses.
    PosthogV0,
    /// PostHog's newer one.
    PosthogV1,
    /// Snowplow's image.
    SnowplowGet,
    /// Snowplow's batches.
    SnowplowTp2,
    /// GrowthBook's events.
    Growthbook,
    /// Statsig's events.
    Statsig,
    /// Segment's calls as Jitsu sends them.
    Jitsu,
    /// The parameters of images: the pixel's, Segment's and Jitsu's.
    Pixel,
}

impl Target {
    /// All of them.
    pub const ALL: [Target; 11] = [
        Target::Request,
        Target::Native,
        Target::Segment,
        Target::PosthogV0,
        Target::PosthogV1,
        Target::SnowplowGet,
        Target::SnowplowTp2,
        Target::Growthbook,
        Target::Statsig,
        Target::Jitsu,
        Target::Pixel,
    ];

    /// Returns its name, which is that of its corpus.
    pub fn as_str(self) -> &'static str {
        match self {
            Target::Request => "request",
            Target::Native => "native",
            Target::Segment => "segment",
            Target::PosthogV0 => "posthog-v0",
            Target::PosthogV1 => "posthog-v1",
            Target::SnowplowGet => "snowplow-get",
            Target::SnowplowTp2 => "snowplow-tp2",
            Target::Growthbook => "growthbook",
            Target::Statsig => "statsig",
            Target::Jitsu => "jitsu",
            Target::Pixel => "pixel",
        }
    }

    /// Returns the target of a name.
    pub fn of_name(name: &str) -> Option<Target> {
        Target::ALL.into_iter().find(|target| target.as_str() == name)
    }

    /// Returns whether an input is a request of its own.
    pub fn takes_input(self, input: &[u8]) -> bool {
        Input::read(input).is_some_and(|input| self.takes(input.route()))
    }

    /// Returns whether requests to a route are its own.
    fn takes(self, route: Option<Route>) -> bool {
        let Some(route) = route else { return self == Target::Request };
        match self {
            Target::Request => true,
            Target::Native => route == Route::Events,
            Target::Segment => matches!(route, Route::Call(_) | Route::Batch),
            Target::PosthogV0 => route == Route::PosthogCapture,
            Target::PosthogV1 => route == Route::PosthogEvents,
            Target::SnowplowGet => route == Route::SnowplowImage,
            Target::SnowplowTp2 => route == Route::SnowplowEvents,
            Target::Growthbook => route == Route::Growthbook,
            Target::Statsig => route == Route::Statsig,
            Target::Jitsu => matches!(route, Route::JitsuCall(_) | Route::JitsuBatch),
            Target::Pixel => matches!(route, Route::Pixel | Route::CallImage(_) | Route::JitsuImage(_)),
        }
    }
}

/// What became of a request that was looked at.
#[derive(Debug, Default)]
pub struct Passed {
    /// Records of the events that may be appended.
    pub records: Vec<Record>,
    /// Records of the events that were refused on an SDK's route.
    pub refused: Vec<Record>,
    /// The first fault of each refused event.
    pub codes: Vec<events::Code>,
    /// How many were dropped, since they say nothing but who a visitor is who objects to that.
    pub dropped: usize,
    /// The reasons of repairs, each once for each event.
    pub repairs: Vec<Reason>,
}

/// Sends an input through a door and looks at what comes of it. None if it is no request, or none of the target's.
/// # Panics
/// If something does not hold that must: that is the finding.
pub fn check(door: &Door, target: Target, input: &[u8]) -> Option<Passed> {
    let input = Input::read(input)?;
    let route = input.route();
    if !target.takes(route) {
        return None;
    }
    if target == Target::Request {
        oracles::whole(door, &input);
    }
    let is_taken = |route: &Route| takes_events(*route) && route.allows(&input.method) && input.method != Method::OPTIONS;
    let route = route.filter(is_taken);
    Some(route.map(|route| oracles::events(door, route, &input)).unwrap_or_default())
}

/// Returns whether an address is one that events are sent to.
fn takes_events(route: Route) -> bool {
    !matches!(route, Route::Question(_) | Route::Snippet | Route::Live | Route::Ready | Route::Metrics | Route::Validate)
}

/// The folder of the crate, where requests and corpus are kept.
fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
