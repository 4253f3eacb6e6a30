//! Every address that is answered; all others are 404.

use events::identity::Dialect;
use hyper::Method;

use crate::dialect::Call;

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
    /// Whether the process lives.
    Live,
    /// Whether it can take events.
    Ready,
    /// Its counters.
    Metrics,
}

impl Route {
    /// The names of all routes, for counters; the last is for all that is none.
    pub(crate) const NAMES: [&'static str; 13] = [
        "events", "pixel", "identify", "track", "page", "screen", "group", "alias", "batch", "livez", "readyz", "metrics", "none",
    ];

    /// Finds the route of a path. One slash at the end is forgiven: a redirect would lose the event with two SDKs.
    pub(crate) fn of(path: &str) -> Option<Route> {
        let path = path.strip_suffix('/').unwrap_or(path);
        Some(match path {
            "/v1/events" => Route::Events,
            "/v1/pixel.gif" => Route::Pixel,
            "/v1/batch" | "/v1/b" | "/v1/import" => Route::Batch,
            "/v1/track" | "/v1/t" => Route::Call(Call::Track),
            "/v1/page" | "/v1/p" => Route::Call(Call::Page),
            "/v1/screen" | "/v1/s" => Route::Call(Call::Screen),
            "/v1/identify" | "/v1/i" => Route::Call(Call::Identify),
            "/v1/group" | "/v1/g" => Route::Call(Call::Group),
            "/v1/alias" | "/v1/a" => Route::Call(Call::Alias),
            "/livez" => Route::Live,
            "/readyz" => Route::Ready,
            "/metrics" => Route::Metrics,
            _ => return None,
        })
    }

    /// Returns the place of a route in [`Route::NAMES`].
    pub(crate) fn index(route: Option<Route>) -> usize {
        match route {
            Some(Route::Events) => 0,
            Some(Route::Pixel) => 1,
            Some(Route::Call(Call::Identify)) => 2,
            Some(Route::Call(Call::Track)) => 3,
            Some(Route::Call(Call::Page)) => 4,
            Some(Route::Call(Call::Screen)) => 5,
            Some(Route::Call(Call::Group)) => 6,
            Some(Route::Call(Call::Alias)) => 7,
            Some(Route::Batch) => 8,
            Some(Route::Live) => 9,
            Some(Route::Ready) => 10,
            Some(Route::Metrics) => 11,
            None => 12,
        }
    }

    /// Returns the protocol that is spoken there; of health and metrics the native one, by which they answer errors.
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Route::Pixel => Dialect::Pixel,
            Route::Call(_) | Route::Batch => Dialect::Segment,
            Route::Events | Route::Live | Route::Ready | Route::Metrics => Dialect::Native,
        }
    }

    /// Returns whether events are sent there.
    pub(crate) fn takes_events(self) -> bool {
        !matches!(self, Route::Live | Route::Ready | Route::Metrics)
    }

    /// Returns the methods that are answered, as the header `Allow` says it.
    pub(crate) fn methods(self) -> &'static str {
        match self {
            Route::Events | Route::Call(_) | Route::Batch => "POST, OPTIONS",
            Route::Pixel => "GET, HEAD, POST, OPTIONS",
            Route::Live | Route::Ready | Route::Metrics => "GET, HEAD",
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
            assert_eq!(Route::of(&format!("/v1/{}", call.as_str())), Some(route));
            assert_eq!(Route::of(&format!("/v1/{}", &call.as_str()[..1])), Some(route));
        }
        for (path, name) in
            [("/v1/events/", "events"), ("/v1/pixel.gif", "pixel"), ("/v1/import", "batch"), ("/readyz", "readyz")]
        {
            assert_eq!(Route::NAMES[Route::index(Route::of(path))], name);
        }
        for path in ["", "/", "/v1", "/v1/events//", "/V1/events", "/v1/merge", "/v2/events"] {
            assert_eq!(Route::of(path), None, "{path}");
        }
        assert_eq!(Route::NAMES[Route::index(None)], "none");
    }
}
