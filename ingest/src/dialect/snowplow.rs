//! Snowplow's tracker protocol: one event in the query of an image, or several in the body of a POST (tp2). All values are texts.

mod schema;

use compact_str::{CompactString, ToCompactString};
use std::borrow::Cow;

use events::{ClaimedTime, Code, ConversionDetails, Details, Draft, ImpressionDetails, Micros, Rejection, Repair};
use hyper::header::SET_COOKIE;
use serde_json::value::RawValue;

use super::head::base64;
use super::image::{Device, Hit, Image, Reader, hit};
use super::item::{Item, Properties, nested};
use super::members::{Value, write_string};
use super::metadata::Metadata;
use super::{Content, Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, body, vocabulary};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::Route;

/// The dialect of Snowplow's trackers. They have no key: the application's id (`aid`) is one.
pub(super) struct Snowplow;

/// The cookie of the network user, as Snowplow's collector sets it.
const COOKIE: &str = "sp";

impl Dialect for Snowplow {
    fn route(&self, path: &str, _query: &str) -> Option<Route> {
        match path {
            "/i" | "/ice.png" => return Some(Route::SnowplowImage),
            "/com.snowplowanalytics.snowplow/tp2" => return Some(Route::SnowplowEvents),
            _ => {}
        }
        // `/{vendor}/{version}`: operators give the path another name, so that lists of trackers do not know it.
        let (vendor, version) = path.strip_prefix('/')?.split_once('/')?;
        (vendor.contains('.') && !version.is_empty() && !version.contains('/')).then_some(Route::SnowplowEvents)
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        let key = head.bearer().or_else(|| head.basic()).or_else(|| head.parameter("key"));
        KeyInHead::or_body(key.or_else(|| head.parameter("aid")))
    }

    fn key_in_body(&self, beginning: &str) -> Option<String> {
        application_id(beginning)
    }

    fn cookie(&self) -> Option<&'static str> {
        Some(COOKIE)
    }

    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        let device = request.device();
        if text.as_str().trim_ascii().is_empty() {
            return Ok(Box::new(Image { hit: hit(&request.asked.query, "", device), reader: Parameters }));
        }
        Ok(Box::new(batch(text.as_str(), device, events_max)?))
    }

    fn answer(&self, asked: &Asked, outcome: &Outcome) -> Reply {
        let content = if asked.is_post { Content::Text(Cow::Borrowed("ok")) } else { Content::Image };
        let reply = Reply::new(content);
        match (&outcome.cookie, asked.is_anonymous) {
            (_, true) => reply.with(SET_COOKIE, "sp=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=None"),
            (Some(id), _) => {
                let cookie = format!("{COOKIE}={id}; Max-Age=31536000; Path=/; Secure; HttpOnly; SameSite=None");
                reply.with(SET_COOKIE, &cookie)
            }
            _ => reply,
        }
    }

    fn error(&self, _route: Route, _code: &str, message: &str) -> Reply {
        Reply::new(Content::Text(Cow::Owned(message.to_owned())))
    }
}

/// Reads one event in a query.
struct Parameters;

impl Reader for Parameters {
    fn read(&self, hit: &Hit<'_>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        let mut repairs = Vec::new();
        let members = hit.members(&mut repairs)?;
        let mut parsed = parse(&Item(members.to_vec()), hit.device, conversions)?;
        parsed.draft.repairs.append(&mut repairs);
        Ok(parsed)
    }

    fn names_somebody(&self, hit: &Hit<'_>) -> bool {
        hit.names(&USERS)
    }

    fn client_name(&self, _hit: &Hit<'_>, field: &str) -> Option<Cow<'static, str>> {
        client_name(field)
    }
}

/// The events of a body.
struct Batch<'a> {
    items: Vec<&'a RawValue>,
    device: Device<'a>,
    needs_cookie: bool,
}

impl Envelope for Batch<'_> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn place(&self, index: usize) -> String {
        format!("data[{index}]")
    }

    fn raw(&self, index: usize) -> Option<&str> {
        Some(self.items[index].get())
    }

    fn parse(&self, index: usize, mended: Option<&RawValue>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        parse(&Item::new(mended.unwrap_or(self.items[index]))?, self.device, conversions)
    }

    fn client_name(&self, _index: usize, field: &str) -> Option<Cow<'static, str>> {
        client_name(field)
    }

    fn needs_cookie(&self) -> bool {
        self.needs_cookie
    }
}

/// Splits a body into its events.
fn batch<'a>(text: &'a str, device: Device<'a>, events_max: usize) -> Result<Batch<'a>, EnvelopeFault> {
    let items = body::object(text, &["data"], [], events_max)?.events;
    let items = items.ok_or_else(|| body::no_list("data", "{\"schema\":\"..\",\"data\":[..]}"))?;
    let names_nobody = |raw: &&&RawValue| Item::new(raw).is_ok_and(|item| !USERS.iter().any(|key| item.names(key)));
    let needs_cookie = device.known.is_none() && items.iter().any(|raw| names_nobody(&raw));
    Ok(Batch { items, device, needs_cookie })
}

/// Finds the application's id of the first event; the end of the text may be missing.
fn application_id(beginning: &str) -> Option<String> {
    let from = beginning.find("\"aid\"")? + "\"aid\"".len();
    let rest = beginning[from..].trim_ascii_start().strip_prefix(':')?.trim_ascii_start();
    let raw = serde_json::Deserializer::from_str(rest).into_iter::<String>().next()?.ok()?;
    Some(raw).filter(|id| !id.is_empty())
}

/// Parameters that say who it is: the user, then the device in the order of their reach.
const USERS: [&str; 4] = ["uid", "duid", "tnuid", "nuid"];

/// Reads one event.
/// # Errors
/// What keeps it from being read at all.
fn parse(item: &Item<'_>, device: Device<'_>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
    let text = |key: &str| item.any_text(key);
    let mut repairs = Vec::new();
    let contexts = encoded(item, "co", "cx", &mut repairs);
    let described = encoded(item, "ue_pr", "ue_px", &mut repairs);
    let contexts = contexts.as_deref().map(schema::contexts).unwrap_or_default();
    let described = described.as_deref().and_then(schema::described);
    let kind = text("e").unwrap_or_default();
    let mut metadata = Metadata::default();
    let mut draft = match kind.as_str() {
        "pv" => engagement("page_view"),
        "pp" => engagement("page_ping"),
        "se" => structured(item, conversions),
        "tr" => Draft {
            name: Some("transaction".into()),
            value: text("tr_tt"),
            currency: text("tr_cu"),
            ..Draft::new(Details::Conversion(ConversionDetails::default()))
        },
        "ti" => engagement("transaction_item"),
        "ue" => match &described {
            Some(event) => {
                metadata.object(event.data.get());
                self_describing(event, &contexts, conversions)?
            }
            None => {
                let message = "the self-describing event in ue_pr or ue_px cannot be read";
                return Err(Rejection::new(Code::MissingField, "ue_pr", message));
            }
        },
        other => {
            let message = format!("found {other:?}; one of pv, pp, se, ue, tr, ti is accepted");
            return Err(Rejection::new(Code::UnknownType, "e", message));
        }
    };
    draft.repairs = repairs;
    draft.event_id = text("eid");
    draft.user_id = text("uid");
    // What the client sends of the network's user stands for the cookie.
    let [_, devices @ ..] = USERS;
    let named = devices.iter().find(|key| item.names(key)).or(devices.iter().find(|key| item.get(key).is_some()));
    draft.anonymous_id = named.and_then(|key| text(key));
    device.fill(&mut draft);
    draft.timestamp = time(&text("ttm").or_else(|| text("dtm")));
    draft.session_id = text("sid");
    let context = &mut draft.context;
    context.page_url = text("url");
    context.referrer = text("refr");
    context.user_agent = text("ua");
    context.language = text("lang");
    context.time_zone = text("tz");
    context.screen = text("res");
    context.viewport = text("vp");
    let url = context.page_url.clone().unwrap_or_default();
    let in_url = |name: &str| {
        let query = url.split_once('?')?.1.split('#').next()?;
        super::query::parameter(query, name).map(CompactString::from)
    };
    context.utm_source = in_url("utm_source");
    context.utm_medium = in_url("utm_medium");
    context.utm_campaign = in_url("utm_campaign");

    for member in &item.0 {
        if !TAKEN.contains(&member.key.as_ref()) && !member.value.is_absent() {
            add(&mut metadata, described.as_ref(), &member.key, &member.value);
        }
    }
    if !contexts.is_empty() {
        let mut list = String::new();
        for entity in &contexts {
            list.push(if list.is_empty() { '[' } else { ',' });
            list.push_str("{\"schema\":");
            write_string(&entity.schema, &mut list);
            list.push_str(",\"data\":");
            list.push_str(entity.data.get());
            list.push('}');
        }
        metadata.json("contexts", &(list + "]"));
    }
    let mut parsed = ParsedEvent { address: text("ip"), ..ParsedEvent::new(draft) };
    match metadata.finish("") {
        Ok(metadata) => parsed.draft.properties = metadata,
        Err(fault) => parsed.faults.push(fault),
    }
    // Python's tracker cuts it to seconds, so that it may lie before the event's own time; the rules then ignore it.
    parsed.sent_at = match time(&text("stm")) {
        ClaimedTime::Text(text) => Micros::parse(&text).ok(),
        _ => None,
    };
    parsed.is_clock_right = item.get("ttm").is_some();
    Ok(parsed)
}

/// Parameters with a column, or without a meaning once the event is read.
const TAKEN: [&str; 27] = [
    "e", "eid", "aid", "key", "uid", "duid", "tnuid", "nuid", "dtm", "stm", "ttm", "sid", "url", "refr", "ua", "lang", "tz",
    "res", "vp", "ue_pr", "ue_px", "co", "cx", "ip", "tr_tt", "tr_cu", "cookie",
];

/// Adds a parameter beside the members of a self-describing event, whose names it must not take.
fn add(metadata: &mut Metadata, described: Option<&schema::Entity>, key: &str, value: &Value<'_>) {
    let mut json = String::new();
    value.write_to(&mut json);
    let is_taken = described.is_some_and(|event| event.has(key)) || key == "contexts";
    let key = if is_taken { format!("tracker_{key}") } else { key.to_owned() };
    metadata.json(&key, &json);
}

fn engagement(name: &str) -> Draft {
    Draft { name: Some(name.into()), ..Draft::new(Details::Engagement) }
}

/// Reads milliseconds since 1970.
fn time(millis: &Option<CompactString>) -> ClaimedTime {
    let Some(text) = millis else { return ClaimedTime::Missing };
    let at = text.parse::<i64>().ok().and_then(|millis| millis.checked_mul(1_000)).map(Micros);
    match at.filter(|at| (Micros::MIN..=Micros::MAX).contains(at)) {
        Some(at) => ClaimedTime::Text(at.to_compact_string()),
        None => ClaimedTime::Text(text.clone()),
    }
}

/// A structured event: an exposure names its experiment as the label, its variant as the property.
fn structured(item: &Item<'_>, conversions: &[String]) -> Draft {
    let action = item.any_text("se_ac");
    let name = action.as_deref().unwrap_or_default();
    let is_exposure = vocabulary::EXPOSURES.iter().any(|exposure| exposure.names.contains(&name));
    if is_exposure && let (Some(experiment), Some(variant)) = (item.any_text("se_la"), item.any_text("se_pr")) {
        let details = Details::Impression(ImpressionDetails::default());
        return Draft { experiment: Some(experiment), variant: Some(variant), ..Draft::new(details) };
    }
    if vocabulary::ORDERS.contains(&name) || conversions.iter().any(|conversion| conversion == name) {
        let details = Details::Conversion(ConversionDetails::default());
        return Draft { name: action, value: item.any_text("se_va"), ..Draft::new(details) };
    }
    Draft { name: action, ..Draft::new(Details::Engagement) }
}

/// A self-describing event has the name of its schema. A transaction's value is in the entity beside it.
fn self_describing(event: &schema::Entity, contexts: &[schema::Entity], conversions: &[String]) -> Result<Draft, Rejection> {
    let name = event.name();
    let data = Properties::new("ue_pr", &event.data)?;
    if name == "snowplow_ecommerce_action" {
        let action = data.string(&["type"]).map_or(name.into(), |(_, action)| action);
        let transaction = contexts.iter().find(|entity| entity.name() == "transaction" && action == "transaction");
        return Ok(match transaction {
            Some(entity) => {
                let properties = Properties::new("co", &entity.data)?;
                Draft {
                    name: Some(action),
                    value: properties
                        .amount(&["revenue"])
                        .or_else(|| properties.unreadable(&["revenue"]))
                        .map(|(_, value)| value),
                    currency: properties.string(&["currency"]).map(|(_, currency)| currency),
                    ..Draft::new(Details::Conversion(ConversionDetails::default()))
                }
            }
            None => engagement(&action),
        });
    }
    Ok(vocabulary::interpret(Some(name), &data, conversions)?.0)
}

/// Reads JSON in a parameter, or in base64 in another one. What cannot be read is noted, and stays out of the event.
fn encoded(item: &Item<'_>, plain: &'static str, in_base64: &'static str, repairs: &mut Vec<Repair>) -> Option<Box<RawValue>> {
    let (key, text) = match (item.any_text(plain), item.any_text(in_base64)) {
        (Some(text), _) => (plain, text.into()),
        (None, Some(text)) => (in_base64, base64(&text).and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or(text.into())),
        (None, None) => return None,
    };
    nested(text, key, repairs)
}

/// Returns what a tracker calls a field of an event.
fn client_name(field: &str) -> Option<Cow<'static, str>> {
    Some(Cow::Borrowed(match field {
        "user_id" => "uid",
        "anonymous_id" => "duid",
        "event_id" => "eid",
        "timestamp" => "dtm",
        "session_id" => "sid",
        "name" => "se_ac",
        "experiment" => "se_la",
        "variant" => "se_pr",
        "value" => "tr_tt",
        "currency" => "tr_cu",
        "page_url" => "url",
        "referrer" => "refr",
        "user_agent" => "ua",
        "language" => "lang",
        "time_zone" => "tz",
        "screen" => "res",
        "viewport" => "vp",
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use events::Kind;

    fn draft(event: &str) -> Draft {
        let raw: &RawValue = serde_json::from_str(event).expect("a constant");
        let device = Device { known: None, fresh: "fresh" };
        *parse(&Item::new(raw).expect("an object"), device, &["signup".to_owned()]).expect("can be read").draft
    }

    #[test]
    fn events_become_kinds() {
        let check = |event: &str, kind: Kind, name: Option<&str>, value: Option<&str>| {
            let draft = draft(event);
            let found = (draft.details.kind(), draft.name.as_deref(), draft.value.as_deref());
            assert_eq!(found, (kind, name, value), "{event}");
        };
        check(r#"{"e":"pv","url":"u"}"#, Kind::Engagement, Some("page_view"), None);
        check(r#"{"e":"pp"}"#, Kind::Engagement, Some("page_ping"), None);
        check(r#"{"e":"se","se_ca":"c","se_ac":"play","se_va":"2"}"#, Kind::Engagement, Some("play"), None);
        check(r#"{"e":"se","se_ca":"c","se_ac":"signup","se_va":"2"}"#, Kind::Conversion, Some("signup"), Some("2"));
        check(r#"{"e":"tr","tr_id":"o","tr_tt":"19.90","tr_cu":"EUR"}"#, Kind::Conversion, Some("transaction"), Some("19.90"));
        let ue = |name: &str, data: &str| {
            let inner = format!(r#"{{"schema":"iglu:com.x/{name}/jsonschema/1-0-0","data":{data}}}"#);
            serde_json::json!({ "e": "ue", "ue_pr": format!(r#"{{"schema":"s","data":{inner}}}"#) }).to_string()
        };
        check(&ue("link_click", r#"{"targetUrl":"u"}"#), Kind::Engagement, Some("link_click"), None);
        check(&ue("checkout", r#"{"revenue":5.5}"#), Kind::Conversion, Some("checkout"), Some("5.5"));
        check(&ue("experiment_viewed", r#"{"experiment_id":"e","variation_id":"b"}"#), Kind::Impression, None, None);
    }

    #[test]
    fn exposures_are_structured_events() {
        let draft =
            draft(r#"{"e":"se","se_ca":"x","se_ac":"Experiment Viewed","se_la":"checkout","se_pr":"b","uid":"u","duid":"d"}"#);
        assert_eq!((draft.experiment.as_deref(), draft.variant.as_deref()), (Some("checkout"), Some("b")));
        assert_eq!((draft.user_id.as_deref(), draft.anonymous_id.as_deref()), (Some("u"), Some("d")));
    }

    #[test]
    fn what_is_no_id_names_nobody() {
        let check = |ids: &str, expected: (Option<&str>, Option<&str>)| {
            let draft = draft(&format!(r#"{{"e":"pv",{ids}}}"#));
            assert_eq!((draft.user_id.as_deref(), draft.anonymous_id.as_deref()), expected, "{ids}");
        };
        check(r#""uid":"undefined""#, (Some("undefined"), Some("fresh")));
        check(r#""uid":"u","duid":"undefined""#, (Some("u"), Some("undefined")));
        check(r#""duid":"null","nuid":"n""#, (None, Some("n")));
        check(r#""duid":"null""#, (None, Some("fresh")));
    }

    #[test]
    fn the_application_is_the_key() {
        let check = |body: &str, expected: Option<&str>| assert_eq!(application_id(body).as_deref(), expected, "{body}");
        check(r#"{"schema":"s","data":[{"e":"pv","aid":"shop","p":"web"}]}"#, Some("shop"));
        check(r#"{"schema":"s","data":[{"e":"pv","aid" : "sh\u006fp","#, Some("shop"));
        check(r#"{"schema":"s","data":[{"e":"pv","aid":""}]}"#, None);
        check(r#"{"data":[{"e":"pv"}]}"#, None);
    }
}
