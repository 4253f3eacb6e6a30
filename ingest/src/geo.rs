//! Where visitors are: by a header of a proxy, or by their address in a file. The address goes no further.

use compact_str::CompactString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use events::Context;
use hyper::HeaderMap;
use hyper::header::{HeaderName, USER_AGENT};
use maxminddb::{Reader, geoip2};
use metrics::Counter;

use crate::config::{Limits, StartError};

/// Databases of MaxMind's are in one file, read whole.
type Database = Reader<Vec<u8>>;

/// What the operator has set of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) country_header: Option<HeaderName>,
    pub(crate) address_header: Option<HeaderName>,
    pub(crate) file: Option<PathBuf>,
}

/// Says where visitors are.
pub(crate) struct Geo {
    sources: Sources,
    /// The file as it was last read well.
    database: RwLock<Option<Arc<Database>>>,
}

/// What a request says of where its visitor is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// By the header.
    country: Option<CompactString>,
    /// Of the other end, or the one that a proxy has written down.
    address: Option<IpAddr>,
    /// Whose events it brings.
    sender: Sender,
}

/// Who sends a request, as far as its user agent tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sender {
    /// The visitor's own browser, whose address is the request's.
    Browser,
    /// An app, or something else that may send for itself and for others.
    #[default]
    Other,
    /// A server, whose place is nobody's.
    Server,
}

impl Geo {
    /// Reads the file, if there is one.
    /// # Errors
    /// [`StartError::GeoFile`], which names it.
    pub(crate) async fn new(sources: Sources) -> Result<Self, StartError> {
        let mut database = None;
        if let Some(path) = &sources.file {
            let read = read(path).await.map_err(|reason| StartError::GeoFile { path: path.clone(), reason })?;
            database = Some(Arc::new(read));
        }
        Ok(Geo { sources, database: RwLock::new(database) })
    }

    /// Returns whether it has a file, which is looked at again and again.
    pub(crate) fn has_file(&self) -> bool {
        self.sources.file.is_some()
    }

    /// Returns what a request says of its place; none if nobody asks.
    pub(crate) fn origin(&self, headers: &HeaderMap, peer: Option<SocketAddr>, is_server_key: bool) -> Option<Origin> {
        let Sources { country_header, address_header, file } = &self.sources;
        if country_header.is_none() && file.is_none() {
            return None;
        }
        let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let sender = if is_server_key { Sender::Server } else { sender(agent) };
        let country = country_header.as_ref().and_then(|name| country(headers.get(name)?.to_str().ok()?));
        let proxied = address_header.as_ref().filter(|name| headers.contains_key(*name));
        let address = match proxied {
            Some(name) => last_public(headers.get_all(name).iter().filter_map(|value| value.to_str().ok())),
            None => peer.map(|peer| peer.ip().to_canonical()),
        };
        Some(Origin { country, address, sender })
    }

    /// Fills the place of an event where the client does not say it: the country by the header, else by the file; region and city by the
    /// file, if it is of the same country. `said` is the address that the event has: a browser's is the request's own.
    pub(crate) fn fill(&self, origin: &Origin, said: Option<&str>, context: &mut Context) {
        let said = said.filter(|_| origin.sender != Sender::Browser).and_then(address_in);
        let of_request = said.is_none() && origin.sender != Sender::Server;
        if context.country.is_none() && of_request {
            context.country = origin.country.clone();
        }
        let Some(address) = said.or(origin.address.filter(|_| of_request)) else { return };
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(database) = database else { return };
        // What is damaged within it says nothing of this address.
        let Ok(Some(found)) = database.lookup(address).and_then(|found| found.decode::<geoip2::City<'_>>()) else { return };
        let Some(country) = found.country.iso_code.and_then(country) else { return };
        if *context.country.get_or_insert_with(|| country.clone()) != country {
            return;
        }
        let region = found.subdivisions.first().and_then(|region| region.names.english);
        for (field, name) in [(&mut context.region, region), (&mut context.city, found.city.names.english)] {
            if field.is_none() {
                *field = name.map(CompactString::from);
            }
        }
    }

    /// Reads the file again when it has changed. One that cannot be read is told once, and the former one stays. May be dropped at any point.
    pub(crate) async fn follow(self: Arc<Self>, limits: Limits, failed: Counter) {
        let Some(path) = self.sources.file.clone() else { return std::future::pending().await };
        let mut last = None;
        loop {
            let stamp = stamp(&path).await;
            // What was read at the start may have changed since: the first look reads it again.
            if last.as_ref() != Some(&stamp) {
                match read(&path).await {
                    Ok(database) => {
                        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(database));
                        tracing::info!(file = %path.display(), "the file of places was read");
                    }
                    Err(reason) => {
                        failed.increment(1);
                        tracing::warn!(file = %path.display(), reason, "the file of places cannot be read; the one read before serves");
                    }
                }
                last = Some(stamp);
            }
            tokio::time::sleep(limits.geo_look_every).await;
        }
    }
}

/// By what a change of the file is seen; none if it is not there.
async fn stamp(path: &PathBuf) -> Option<(Option<SystemTime>, u64)> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.modified().ok(), metadata.len()))
}

async fn read(path: &PathBuf) -> Result<Database, String> {
    let bytes = tokio::fs::read(path).await.map_err(|error| error.to_string())?;
    let database = Reader::from_source(bytes).map_err(|error| format!("it is no database of MaxMind's format: {error}"))?;
    // An end of the file that is there alone, or a tree that leads out of it, shows at the first look.
    for probe in ["1.1.1.1", "8.8.8.8", "192.0.2.1", "203.0.113.1"] {
        let found = probe.parse().map(|address| database.lookup(address).and_then(|found| found.decode::<geoip2::City<'_>>()));
        if let Ok(Err(error)) = found {
            return Err(format!("it is damaged: {error}"));
        }
    }
    Ok(database)
}

/// What the agents of servers' SDKs and libraries have in them, in lower case.
const SERVERS: [&str; 13] = [
    "python",
    "node",
    "ruby",
    "php",
    "go-http-client",
    "analytics-go",
    "java/",
    "analytics-java",
    ".net",
    "axios/",
    "undici",
    "guzzle",
    "reqwest",
];

fn sender(agent: &str) -> Sender {
    if agent.starts_with("Mozilla/") {
        return Sender::Browser;
    }
    let lower = agent.to_ascii_lowercase();
    if SERVERS.iter().any(|server| lower.contains(server)) { Sender::Server } else { Sender::Other }
}

/// Reads a country: two letters, but for those that stand for none.
fn country(text: &str) -> Option<CompactString> {
    let code = text.trim().to_ascii_uppercase();
    let is_code = code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_uppercase()) && code != "XX";
    is_code.then(|| code.into())
}

/// Returns the last address of a list that proxies have appended to, leaving out their own, which are on loopback or in private networks.
/// What stands before an entry that is no address may be the client's own invention.
fn last_public<'a>(values: impl DoubleEndedIterator<Item = &'a str>) -> Option<IpAddr> {
    let mut entries = values.rev().flat_map(|value| value.rsplit(',')).map(str::trim).filter(|entry| !entry.is_empty());
    entries.find_map(|entry| match address_in(entry) {
        Some(address) if is_private(address) => None,
        found => Some(found),
    })?
}

/// Reads an address, with or without a port.
fn address_in(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && (64..128).contains(&second);
            address.is_loopback() || address.is_private() || address.is_link_local() || address.is_unspecified() || is_shared
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local() || address.is_unspecified()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn countries_are_two_letters() {
        for (text, expected) in [
            ("DE", Some("DE")),
            (" fr ", Some("FR")),
            ("XX", None),
            ("T1", None),
            ("", None),
            ("DEU", None),
            ("D", None),
            ("ÄÖ", None),
        ] {
            assert_eq!(country(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_last_address_that_is_no_proxys_counts() {
        let check = |values: &[&str], expected: Option<&str>| {
            let found = last_public(values.iter().copied()).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{values:?}");
        };
        check(&["203.0.113.7"], Some("203.0.113.7"));
        check(&["198.51.100.1, 203.0.113.7"], Some("203.0.113.7"));
        check(&["203.0.113.7, 10.1.2.3, 127.0.0.1,::1, fd00::1 "], Some("203.0.113.7"));
        check(&["198.51.100.1", "203.0.113.7", "192.168.0.1,100.64.0.1"], Some("203.0.113.7"));
        check(&["203.0.113.7:4711"], Some("203.0.113.7"));
        check(&["[2001:db8::1]:443"], Some("2001:db8::1"));
        check(&["\"[2001:db8::1]\""], Some("2001:db8::1"));
        check(&["::ffff:203.0.113.7"], Some("203.0.113.7"));
        check(&["203.0.113.7, unknown, 10.0.0.1"], None);
        check(&["10.0.0.1, 172.16.0.1"], None);
        check(&["", " , "], None);
        check(&[], None);
    }

    #[tokio::test]
    async fn nothing_is_looked_for_that_nobody_named() {
        let headers: HeaderMap = [("cf-ipcountry", "DE"), ("x-forwarded-for", "203.0.113.7"), ("user-agent", "Mozilla/5.0")]
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let peer = Some("198.51.100.9:1".parse().expect("an address"));
        let origin = async |sources: Sources| Geo::new(sources).await.expect("no file").origin(&headers, peer, false);
        assert_eq!(origin(Sources::default()).await, None);
        let named = Sources { country_header: Some(HeaderName::from_static("cf-ipcountry")), ..Sources::default() };
        let found = origin(named.clone()).await.expect("named");
        assert_eq!(found.country.as_deref(), Some("DE"));
        assert_eq!(found.address, Some("198.51.100.9".parse().expect("an address")), "a header that nobody named is not read");
        let found = origin(Sources { address_header: Some(HeaderName::from_static("x-forwarded-for")), ..named }).await;
        assert_eq!(found.expect("named").address, Some("203.0.113.7".parse().expect("an address")));
        assert_eq!(sender("analytics-python/2.3.4"), Sender::Server);
        assert_eq!(sender("Dalvik/2.1.0 (Linux; U; Android 13; Pixel 6)"), Sender::Other);
        assert_eq!(sender(""), Sender::Other);
    }
}
