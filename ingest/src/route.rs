//! Every address that is answered; all others are 404.

use std::borrow::Cow;

use events::identity::Dialect;
use hyper::Method;

use crate::dialect::{self, Call};

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Native batches.
    Events,
    /// The image.
    Pixel,
    /// One of Segment's calls.
    Call(Call),
    /// A batch of Segment's calls.
    Batch,
    /// One of Segment's calls, as Jitsu's clients send it.
    JitsuCall(Call),
    /// A batch of those.
    JitsuBatch,
    /// The image of one of Segment's calls.
    CallImage(Call),
    /// The same, as Jitsu's pages ask for it.
    JitsuImage(Call),
    /// Captures of PostHog's older clients.
    PosthogCapture,
    /// Events of PostHog's newer ones, each with its outcome.
    PosthogEvents,
    /// Snowplow's image.
    SnowplowImage,
    /// Snowplow's batches.
    SnowplowEvents,
    /// GrowthBook's events.
    Growthbook,
    /// Statsig's events.
    Statsig,
    /// Events of any dialect that are checked and not stored.
    Validate,
    /// What SDKs ask before they send events.
    Question(Question),
    /// Our own client for pages.
    Snippet,
    /// Whether the process lives.
    Live,
    /// Whether it can take events.
    Ready,
    /// Its counters.
    Metrics,
}

/// What SDKs ask besides sending events. The answer is always the same: nothing is known, go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// PostHog's flags of a user.
    PosthogFlags,
    /// PostHog's definitions of flags.
    PosthogDefinitions,
    /// PostHog's surveys and other lists.
    PosthogLists,
    /// PostHog's recordings of sessions, which are not kept.
    PosthogRecording,
    /// PostHog's settings as a script, which is empty: the client then asks for them as JSON.
    PosthogScript,
    /// What Segment's client in a page counts of itself, which is not kept.
    SegmentCounts,
    /// Statsig's values for a user.
    StatsigValues,
    /// Statsig's rules.
    StatsigSpecs,
    /// What else Statsig's clients say.
    StatsigNothing,
}

impl Question {
    /// Returns the content type of the answer.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Question::PosthogScript => "text/javascript; charset=utf-8",
            _ => "application/json",
        }
    }

    /// Returns the answer.
    pub(crate) fn answer(self) -> &'static str {
        match self {
            // Nothing of surveys: where there are said to be none, the client in a page loads its script for them all the same.
            Question::PosthogFlags => {
                "{\"flags\":{},\"featureFlags\":{},\"featureFlagPayloads\":{},\"errorsWhileComputingFlags\":false,\
                 \"config\":{},\"supportedCompression\":[\"gzip\",\"gzip-js\",\"base64\"],\"sessionRecording\":false,\
                 \"heatmaps\":false,\"capturePerformance\":false,\"siteApps\":[],\"editorParams\":{},\
                 \"toolbarParams\":{},\"isAuthenticated\":false}"
            }
            Question::PosthogDefinitions => "{\"flags\":[],\"group_type_mapping\":{},\"cohorts\":{}}",
            Question::PosthogLists => "{\"surveys\":[],\"earlyAccessFeatures\":[],\"experiments\":[],\"product_tours\":[]}",
            Question::PosthogRecording => "{\"status\":\"Ok\",\"quota_limited\":[\"recordings\"]}",
            Question::StatsigValues => {
                "{\"feature_gates\":{},\"dynamic_configs\":{},\"layer_configs\":{},\"has_updates\":true,\"time\":0}"
            }
            Question::StatsigSpecs => "{\"has_updates\":false}",
            Question::PosthogScript => "",
            Question::StatsigNothing | Question::SegmentCounts => "{}",
        }
    }
}

/// All routes that are counted under a name of their own, in the order of [`Route::NAMES`]; the last name is for all that is none.
const NAMED: [Route; 25] = [
    Route::Events,
    Route::Pixel,
    Route::Call(Call::Identify),
    Route::Call(Call::Track),
    Route::Call(Call::Page),
    Route::Call(Call::Screen),
    Route::Call(Call::Group),
    Route::Call(Call::Alias),
    Route::Batch,
    Route::JitsuCall(Call::Track),
    Route::JitsuBatch,
    Route::CallImage(Call::Track),
    Route::JitsuImage(Call::Track),
    Route::PosthogCapture,
    Route::PosthogEvents,
    Route::SnowplowImage,
    Route::SnowplowEvents,
    Route::Growthbook,
    Route::Statsig,
    Route::Validate,
    Route::Question(Question::PosthogFlags),
    Route::Snippet,
    Route::Live,
    Route::Ready,
    Route::Metrics,
];

impl Route {
    /// The names of all routes, for counters; the last is for all that is none.
    pub(crate) const NAMES: [&'static str; NAMED.len() + 1] = [
        "events",
        "pixel",
        "identify",
        "track",
        "page",
        "screen",
        "group",
        "alias",
        "batch",
        "jitsu",
        "jitsu_batch",
        "segment_image",
        "jitsu_image",
        "posthog",
        "posthog_v1",
        "snowplow_image",
        "snowplow",
        "growthbook",
        "statsig",
        "validate",
        "question",
        "snippet",
        "livez",
        "readyz",
        "metrics",
        "none",
    ];

    /// Finds the route of a path. Slashes that are doubled, or at the end, are forgiven: a redirect would lose the event with two SDKs.
    pub(crate) fn of(path: &str, query: &str) -> Option<Route> {
        let mut path = Cow::Borrowed(path);
        if path.contains("//") {
            let mut last = ' ';
            path.to_mut().retain(|letter| std::mem::replace(&mut last, letter) != '/' || letter != '/');
        }
        let path = path.strip_suffix('/').unwrap_or(&path);
        match path {
            "/livez" => Some(Route::Live),
            "/readyz" => Some(Route::Ready),
            "/metrics" => Some(Route::Metrics),
            "/weir.js" => Some(Route::Snippet),
            "/validate" => Some(Route::Validate),
            _ => dialect::ALL.iter().find_map(|dialect| dialect.route(path, query)),
        }
    }

    /// Returns the place of a route in [`Route::NAMES`].
    pub(crate) fn index(route: Option<Route>) -> usize {
        let route = route.map(|route| match route {
            Route::JitsuCall(_) => Route::JitsuCall(Call::Track),
            Route::CallImage(_) => Route::CallImage(Call::Track),
            Route::JitsuImage(_) => Route::JitsuImage(Call::Track),
            Route::Question(_) => Route::Question(Question::PosthogFlags),
            route => route,
        });
        NAMED.iter().position(|named| Some(*named) == route).unwrap_or(NAMED.len())
    }

    /// Returns the protocol that is spoken there; of health and metrics the native one, by which they answer errors.
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Route::Pixel => Dialect::Pixel,
            Route::Call(_) | Route::Batch | Route::CallImage(_) | Route::Question(Question::SegmentCounts) => Dialect::Segment,
            Route::JitsuCall(_) | Route::JitsuBatch | Route::JitsuImage(_) => Dialect::Jitsu,
            Route::PosthogCapture | Route::PosthogEvents | Route::Question(Question::PosthogFlags) => Dialect::Posthog,
            Route::Question(Question::PosthogDefinitions | Question::PosthogLists) => Dialect::Posthog,
            Route::Question(Question::PosthogRecording | Question::PosthogScript) => Dialect::Posthog,
            Route::SnowplowImage | Route::SnowplowEvents => Dialect::Snowplow,
            Route::Growthbook => Dialect::Growthbook,
            Route::Statsig | Route::Question(_) => Dialect::Statsig,
            Route::Events | Route::Validate | Route::Snippet | Route::Live | Route::Ready | Route::Metrics => Dialect::Native,
        }
    }

    /// Returns the address of a dialect that takes several events.
    pub(crate) fn of_dialect(dialect: Dialect) -> Route {
        match dialect {
            Dialect::Native => Route::Events,
            Dialect::Pixel => Route::Pixel,
            Dialect::Segment => Route::Batch,
            Dialect::Posthog => Route::PosthogCapture,
            Dialect::Snowplow => Route::SnowplowEvents,
            Dialect::Growthbook => Route::Growthbook,
            Dialect::Statsig => Route::Statsig,
            Dialect::Jitsu => Route::JitsuBatch,
        }
    }

    /// Returns the call that the address names, if it takes one event.
    pub(crate) fn call(self) -> Option<Call> {
        match self {
            Route::Call(call) | Route::JitsuCall(call) => Some(call),
            _ => None,
        }
    }

    /// Returns whether browsers ask for an image there, of whose events they tell the page.
    pub(crate) fn is_image(self) -> bool {
        matches!(self, Route::Pixel | Route::SnowplowImage | Route::CallImage(_) | Route::JitsuImage(_))
    }

    /// Returns whether clients go there, and not only those who operate the collector.
    pub(crate) fn is_public(self) -> bool {
        !matches!(self, Route::Live | Route::Ready | Route::Metrics)
    }

    /// Returns whether browsers send cookies there, which they only do to an origin that is named.
    pub(crate) fn shares_credentials(self) -> bool {
        !matches!(self.dialect(), Dialect::Native | Dialect::Pixel | Dialect::Segment)
    }

    /// Returns the methods that are answered, as the header `Allow` says it.
    pub(crate) fn methods(self) -> &'static str {
        match self {
            Route::Events | Route::Call(_) | Route::Batch | Route::PosthogEvents | Route::Growthbook | Route::Statsig => {
                "POST, OPTIONS"
            }
            Route::JitsuCall(_) | Route::JitsuBatch | Route::Validate => "POST, OPTIONS",
            Route::PosthogCapture | Route::SnowplowEvents | Route::Question(_) => "GET, HEAD, POST, OPTIONS",
            Route::Pixel | Route::SnowplowImage | Route::CallImage(_) | Route::JitsuImage(_) => "GET, HEAD, POST, OPTIONS",
            Route::Snippet | Route::Live | Route::Ready | Route::Metrics => "GET, HEAD",
        }
    }

    /// Returns whether a method is answered.
    pub(crate) fn allows(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_belong_to_their_routes() {
        for call in Call::ALL {
            let route = Route::Call(call);
            assert_eq!(Route::NAMES[Route::index(Some(route))], call.as_str());
            assert_eq!(Route::of(&format!("/v1/{}", call.as_str()), ""), Some(route));
            assert_eq!(Route::of(&format!("/v1/{}", &call.as_str()[..1]), ""), Some(route));
            assert_eq!(Route::of(&format!("/api/s/{}", call.as_str()), ""), Some(Route::JitsuCall(call)));
        }
        let paths = [
            ("/v1/events/", "events"),
            ("//v1//events//", "events"),
            ("//v1/batch", "batch"),
            ("/v1/pixel.gif", "pixel"),
            ("/v1/import", "batch"),
            ("/api/s/s2s/page", "jitsu"),
            ("/api/s/my_own_event", "jitsu"),
            ("/v1/pixel/track", "segment_image"),
            ("/pixel/v1/page/", "segment_image"),
            ("/api/px/p", "jitsu_image"),
            ("/api/px/my_own_event", "jitsu_image"),
            ("/e/", "posthog"),
            ("/i/v0/e/", "posthog"),
            ("/batch/", "posthog"),
            ("/track", "posthog"),
            ("/i/v1/analytics/events/", "posthog_v1"),
            ("/i", "snowplow_image"),
            ("/com.snowplowanalytics.snowplow/tp2", "snowplow"),
            ("/com.acme/track", "snowplow"),
            ("/v1/log_event", "statsig"),
            ("/flags/", "question"),
            ("/weir.js", "snippet"),
            ("/readyz", "readyz"),
        ];
        for (path, name) in paths {
            assert_eq!(Route::NAMES[Route::index(Route::of(path, ""))], name, "{path}");
        }
        assert_eq!(Route::of("/track", "client_key=k"), Some(Route::Growthbook));
        assert_eq!(Route::of("/track", "client_key="), Some(Route::PosthogCapture));
        for path in [
            "",
            "/",
            "//",
            "/v1",
            "/V1/events",
            "/v1/merge",
            "/v2/events",
            "/com.acme/",
            "/com.acme/a/b",
            "/acme/tp2",
            "/api/s/",
            "/v1/pixel/x",
        ] {
            assert_eq!(Route::of(path, ""), None, "{path}");
        }
        assert_eq!(Route::NAMES[Route::index(None)], "none");
        for (at, route) in NAMED.into_iter().enumerate() {
            assert_eq!(Route::index(Some(route)), at);
        }
    }

    #[test]
    fn answers_to_questions_are_json() {
        use Question::*;
        let posthogs = [PosthogFlags, PosthogDefinitions, PosthogLists, PosthogRecording];
        let all = posthogs.into_iter().chain([SegmentCounts, StatsigValues, StatsigSpecs, StatsigNothing]);
        for question in all {
            let answer: serde_json::Value = serde_json::from_str(question.answer()).expect("JSON");
            assert!(answer.is_object());
        }
    }
}
