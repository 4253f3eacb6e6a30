//! Statsig's dialect: `POST /v1/log_event` with its exposures and events.

use compact_str::{CompactString, ToCompactString};
use std::borrow::Cow;
use std::collections::HashMap;

use events::{ClaimedTime, Code, ConversionDetails, Details, Draft, ImpressionDetails, Micros, Rejection};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::item::{Item, Properties};
use super::members::{Value, is_number};
use super::metadata::Metadata;
use super::{Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, body, vocabulary};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::{Question, Route};

/// The dialect of Statsig's SDKs.
pub(super) struct Statsig;

impl Dialect for Statsig {
    fn route(&self, path: &str, _query: &str) -> Option<Route> {
        Some(match path {
            "/v1/log_event" | "/v1/rgstr" | "/v1/log_custom_exposure" => Route::Statsig,
            "/v1/initialize" => Route::Question(Question::StatsigValues),
            "/v1/download_config_specs" => Route::Question(Question::StatsigSpecs),
            "/v1/get_id_lists" | "/v1/sdk_exception" => Route::Question(Question::StatsigNothing),
            _ if path.starts_with("/v1/download_config_specs/") || path.starts_with("/v2/download_config_specs/") => {
                Route::Question(Question::StatsigSpecs)
            }
            _ => return None,
        })
    }

    /// The SDKs start with no key that does not begin with what kind of one it is.
    fn key(&self, head: &Head<'_>) -> KeyInHead {
        let in_header = || head.header("statsig-api-key").map(str::to_owned);
        let key = in_header().or_else(|| head.parameter("k")).or_else(|| head.bearer());
        KeyInHead::settled(
            key.map(|key| ["secret-", "client-"].iter().find_map(|kind| key.strip_prefix(kind)).unwrap_or(&key).to_owned()),
        )
    }

    fn sent_at(&self, head: &Head<'_>) -> Option<Micros> {
        let millis = head.header("statsig-client-time").map(str::to_owned).or_else(|| head.parameter("t"))?;
        let at = Micros(millis.parse::<i64>().ok()?.checked_mul(1_000)?);
        Some(at).filter(|at| (Micros::MIN..=Micros::MAX).contains(at))
    }

    fn parse<'a>(
        &self,
        _request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        let top = body::object(text.as_str(), &["events", "exposures"], ["statsigMetadata"], events_max)?;
        let mut items = top.events.ok_or_else(|| body::no_list("events", "{\"events\":[..]}"))?;
        items.retain(|raw| !is_diagnostics(raw));
        let [metadata] = top.members;
        let metadata = metadata.and_then(|raw| Item::new(raw).ok());
        let of_client = |key| metadata.as_ref().and_then(|item| item.any_text(key));
        let ids = of_client("sessionID").map(|session| ids(&session, &items)).unwrap_or_default();
        Ok(Box::new(Batch { items, ids, stable_id: of_client("stableID") }))
    }

    fn answer(&self, _asked: &Asked, outcome: &Outcome) -> Reply {
        let mut reply = outcome.success("success");
        reply.is_accepted = true;
        reply
    }
}

struct Batch<'a> {
    items: Vec<&'a RawValue>,
    /// An id for each event; none where the client does not name its session.
    ids: Vec<Uuid>,
    /// The device, as the client of a browser says it once for all its events.
    stable_id: Option<CompactString>,
}

impl Envelope for Batch<'_> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn place(&self, index: usize) -> String {
        format!("events[{index}]")
    }

    fn raw(&self, index: usize) -> Option<&str> {
        Some(self.items[index].get())
    }

    fn parse(&self, index: usize, mended: Option<&RawValue>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        let mut parsed = parse(mended.unwrap_or(self.items[index]), self.stable_id.as_deref(), conversions)?;
        if parsed.draft.timestamp != ClaimedTime::Missing {
            parsed.draft.event_id = self.ids.get(index).map(Uuid::to_compact_string);
        }
        Ok(parsed)
    }

    fn client_name(&self, _index: usize, field: &str) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match field {
            "user_id" => "user.userID",
            "anonymous_id" => "user.customIDs.stableID",
            "name" => "eventName",
            "timestamp" => "time",
            "user_agent" => "user.userAgent",
            _ => return None,
        }))
    }
}

/// Returns an id for each event, since the client gives none and sends a request whose answer was lost again as it was: of its session, of the
/// event's own bytes, which have its time in milliseconds, and of how many equal ones precede it.
fn ids(session: &str, items: &[&RawValue]) -> Vec<Uuid> {
    let session = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("weir:statsig:session:{session}").as_bytes());
    let mut equal: HashMap<Uuid, u32> = HashMap::new();
    let id = |raw: &&RawValue| {
        let event = Uuid::new_v5(&session, raw.get().as_bytes());
        let earlier = equal.entry(event).or_default();
        *earlier += 1;
        if *earlier == 1 { event } else { Uuid::new_v5(&event, &earlier.to_be_bytes()) }
    };
    items.iter().map(id).collect()
}

/// Returns whether an event says how long the client itself needed: it is nobody's, and none is kept.
fn is_diagnostics(raw: &RawValue) -> bool {
    const NAME: &str = "statsig::diagnostics";
    raw.get().contains(NAME) && Item::new(raw).is_ok_and(|item| item.any_text("eventName").as_deref() == Some(NAME))
}

fn parse(raw: &RawValue, stable_id: Option<&str>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
    let item = Item::new(raw)?;
    let mut repairs = Vec::new();
    let properties = item.object("metadata", &mut repairs)?;
    let name = item.text("eventName")?.filter(|name| !name.is_empty());
    let draft = match (&name, item.any_text("experimentName")) {
        (None, Some(experiment)) => {
            let details = Details::Impression(ImpressionDetails::default());
            Draft { experiment: Some(experiment), variant: item.any_text("group"), ..Draft::new(details) }
        }
        (None, None) => return Err(Rejection::new(Code::MissingField, "eventName", "an event needs a name")),
        (Some(name), _) => event(name, &item, &properties, conversions)?,
    };
    let mut parsed = ParsedEvent::new(draft);
    let draft = &mut parsed.draft;
    draft.repairs = repairs;
    let user = item.raw("user").and_then(|raw| Item::new(raw).ok()).unwrap_or(Item(Vec::new()));
    parsed.address = user.any_text("ip");
    let ids = user.raw("customIDs").and_then(|raw| Item::new(raw).ok());
    match user.id("userID") {
        Ok(id) => draft.user_id = id,
        Err(fault) => parsed.faults.push(Rejection { field: "user.userID".to_owned(), ..fault }),
    }
    let stable = ids.as_ref().and_then(|ids| ids.any_text("stableID").or_else(|| ids.any_text("stableid")));
    draft.anonymous_id = stable.or_else(|| stable_id.map(CompactString::from));
    draft.timestamp = match item.get("time") {
        Some(Value::Json(raw)) if is_number(raw) => {
            let micros = raw.get().parse::<f64>().unwrap_or(f64::NAN) * 1_000.0;
            let is_time = micros >= Micros::MIN.0 as f64 && micros <= Micros::MAX.0 as f64;
            ClaimedTime::Text(if is_time { Micros(micros as i64).to_compact_string() } else { raw.get().into() })
        }
        Some(_) => item.claimed_time(&["time"]),
        None => ClaimedTime::Missing,
    };
    draft.context.user_agent = user.any_text("userAgent");
    draft.context.country = user.any_text("country");
    draft.context.language = user.any_text("locale");
    let mut metadata = Metadata::default();
    if let Some(raw) = properties.raw {
        metadata.object(raw.get());
    }
    for key in ["value", "secondaryExposures", "statsigMetadata"] {
        let is_free = properties.members.iter().all(|property| property.key != key);
        if let Some(raw) = item.raw(key).filter(|raw| is_free && raw.get() != "[]") {
            metadata.json(key, raw.get());
        }
    }
    match metadata.finish("metadata") {
        Ok(metadata) => draft.properties = metadata,
        Err(fault) => parsed.faults.push(fault),
    }
    Ok(parsed)
}

/// An event with its own `value` beside the metadata.
fn event(name: &str, item: &Item<'_>, properties: &Properties<'_>, conversions: &[String]) -> Result<Draft, Rejection> {
    let (mut draft, _) = vocabulary::interpret(Some(name), properties, conversions)?;
    let own = Properties { key: "", raw: None, members: item.0.clone() };
    match &draft.details {
        Details::Impression(_) => {}
        Details::Conversion(_) => draft.value = draft.value.or_else(|| own.amount(&["value"]).map(|(_, value)| value)),
        _ => {
            if let Some((_, value)) = own.amount(&["value"]) {
                let currency = properties.string(vocabulary::CURRENCIES).map(|(_, currency)| currency);
                let details = Details::Conversion(ConversionDetails::default());
                draft = Draft { name: Some(name.into()), value: Some(value), currency, ..Draft::new(details) };
            }
        }
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use events::Kind;

    #[test]
    fn events_become_kinds() {
        let check = |event: &str, expected: (Kind, Option<&str>, Option<&str>, Option<&str>)| {
            let raw = serde_json::from_str(event).expect("a constant");
            let draft = parse(raw, None, &[]).expect("can be read").draft;
            let found = (draft.details.kind(), draft.experiment.as_deref(), draft.variant.as_deref(), draft.value.as_deref());
            assert_eq!(found, expected, "{event}");
        };
        check(
            r#"{"eventName":"statsig::config_exposure","metadata":{"config":"e","ruleID":"r"}}"#,
            (Kind::Impression, Some("e"), Some("r"), None),
        );
        check(
            r#"{"eventName":"statsig::gate_exposure","metadata":{"gate":"g","gateValue":"false","ruleID":"r"}}"#,
            (Kind::Impression, Some("g"), Some("false"), None),
        );
        check(r#"{"experimentName":"e","group":"Test"}"#, (Kind::Impression, Some("e"), Some("Test"), None));
        check(r#"{"eventName":"buy","value":19.9,"metadata":{"currency":"EUR"}}"#, (Kind::Conversion, None, None, Some("19.9")));
        check(r#"{"eventName":"add","value":"sku-a","metadata":null}"#, (Kind::Engagement, None, None, None));
    }
}
