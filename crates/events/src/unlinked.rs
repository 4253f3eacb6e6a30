//! Events of browsers that object to being followed: kept as events that nobody can link to a person, or to each other.

use compact_str::{CompactString, ToCompactString};
use std::collections::HashSet;

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::{ConversionDetails, Details, Draft, Event, EventId, ImpressionDetails};
use crate::identity;
use crate::json::{Fate, JsonObject, Place, scalar, scalars};
use crate::rejection::{Code, Rejection};
use crate::repair::Repair;
use crate::rules::{self, RequestContext};

/// What stands in `metadata.privacy` of such an event: how the browser said so.
pub const SIGNALS: [&str; 3] = ["gpc", "dnt", "sp_anonymous"];

/// Admits the event of a browser that objects by `signal`, by the same rules as any other, and takes out what says whose it is.
///
/// Its user is made of its own identity ([`identity::unlinked_user`]); it has no session, and no region or city; an impression is not eligible.
/// What of its properties and details names somebody, by its key or since it repeats one of the event's own ids, is gone; addresses
/// of pages end before their query. `metadata.privacy` has the signal.
/// # Errors
/// Those of [`rules::admit`]; none concerns a user.
pub fn admit(
    mut draft: Box<Draft>,
    request: &RequestContext,
    generated_id: impl FnOnce() -> EventId,
    signal: &str,
) -> Result<(Box<Event>, Vec<Repair>), Vec<Rejection>> {
    let own = [draft.user_id.take(), draft.anonymous_id.take(), draft.session_id.take()];
    let mut ids = Ids(own.into_iter().flatten().filter(|id| !id.is_empty()).map(String::from).collect());
    // The rules ask for a user; the one that it gets follows from what they make of the event's id.
    draft.user_id = Some(Uuid::NAMESPACE_OID.to_compact_string());
    let (mut event, repairs) = rules::admit_repaired(draft, request, generated_id)?;
    event.user_id = identity::unlinked_user(event.project_id, event.kind(), event.event_id);
    event.external_id = None;

    ids.collect(event.metadata.as_ref());
    match &mut event.details {
        Details::Impression(impression) => ids.clear_impression(impression),
        Details::Conversion(conversion) => ids.clear_conversion(conversion),
        Details::Identity(_) | Details::CampaignEvent | Details::Engagement => {}
    }
    (event.context.region, event.context.city) = (None, None);
    for (_, text) in event.context.fields_mut() {
        ids.clear_text(text);
    }
    ids.clear_object(&mut event.metadata);
    let metadata = JsonObject::annotated(event.metadata.take(), "privacy", &signal);
    event.metadata = Some(metadata.map_err(|error| vec![Rejection::new(Code::InvalidJson, "properties", error.to_string())])?);
    Ok((event, repairs))
}

/// Keys whose values name somebody, as they are written: persons' properties, and what the rules kept of the client's own texts.
const KEYS: [&str; 7] = ["$set", "$set_once", "$unset", "$groups", "$initial_person_info", "$user", "repaired_from"];

/// The same, in lower case and without signs: `$device_id`, `deviceId` and `device-id` are one.
const NAMES: [&str; 33] = [
    "aaid",
    "adid",
    "alias",
    "anonid",
    "clientids",
    "cookie",
    "cookies",
    "customids",
    "devicetoken",
    "duid",
    "email",
    "emailaddress",
    "externalid",
    "fbc",
    "fbp",
    "fingerprint",
    "fp",
    "gaid",
    "groupid",
    "groupkey",
    "nuid",
    "pageviewid",
    "phone",
    "phonenumber",
    "previousid",
    "pushtoken",
    "sid",
    "stableid",
    "tnuid",
    "traits",
    "uid",
    "useragentid",
    "username",
];

/// The ends of such names, as in `ga_session_id` or `$anon_distinct_id`.
const ENDS: [&str; 17] = [
    "accountid",
    "androidid",
    "anonymousid",
    "clientid",
    "contactid",
    "customerid",
    "deviceid",
    "distinctid",
    "idfa",
    "idfv",
    "memberid",
    "personid",
    "profileid",
    "sessionid",
    "userid",
    "visitorid",
    "windowid",
];

/// Objects whose `id`, `key` or `token` names somebody.
const OWNERS: [&str; 9] = ["account", "cart", "customer", "device", "group", "person", "session", "user", "visitor"];

/// Entities of Snowplow's that are about the visitor, by the names in their schemas.
const ENTITIES: [&str; 7] =
    ["/client_session/", "/web_page/", "/user/", "/cookies/", "/http_cookies/", "/mobile_context/", "/browser_context/"];

/// Bytes from which on an id is looked for within other texts: a shorter one is in many by chance.
const WITHIN_BYTES_MIN: usize = 6;

/// Returns whether a value names somebody by where it stands.
fn names_somebody(place: Place<'_>, raw: &RawValue) -> bool {
    if KEYS.contains(&place.key) {
        return true;
    }
    let plain: String = place.key.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect();
    let is_entity = || {
        let entity = raw.get();
        entity.starts_with('{') && entity.contains("\"iglu:") && ENTITIES.iter().any(|name| entity.contains(name))
    };
    NAMES.contains(&plain.as_str())
        || ENDS.iter().any(|end| plain.ends_with(end))
        || (matches!(plain.as_str(), "id" | "key" | "token") && OWNERS.contains(&place.parent))
        || (place.key == "contexts" && is_entity())
}

/// Texts that name a user, a device or a session.
struct Ids(HashSet<String>);

impl Ids {
    /// Adds those in an object that stand under a key of theirs, so that they are found elsewhere, too.
    fn collect(&mut self, object: Option<&JsonObject>) {
        let mut of_keys = HashSet::new();
        let collect = &mut |place: Place<'_>, raw: &RawValue| {
            if names_somebody(place, raw) {
                scalars(raw, &mut of_keys);
                return Fate::Drop;
            }
            Fate::Keep
        };
        object.and_then(|object| object.pruned(collect));
        self.0.extend(of_keys.into_iter().filter(|text| text.len() >= WITHIN_BYTES_MIN));
    }

    /// Returns whether a text is one of them, or has one within it.
    fn are_in(&self, text: &str) -> bool {
        self.0.iter().any(|id| id == text || (id.len() >= WITHIN_BYTES_MIN && text.contains(id.as_str())))
    }

    /// Returns what is left of a text: nothing of one that names somebody, and no query of an address, since those carry the ids of clicks,
    /// mails and users.
    fn cleared(&self, text: &str) -> Option<String> {
        let is_address = text.starts_with("http://") || text.starts_with("https://") || text.starts_with('/');
        let kept = match text.find(['?', '#']) {
            Some(at) if is_address || at == 0 => &text[..at],
            _ => text,
        };
        if !self.are_in(kept) {
            return Some(kept.to_owned()).filter(|kept| !kept.is_empty() || text.is_empty());
        }
        // A path may have an id: the site itself has none.
        let site = text.split_inclusive('/').take(3).collect::<String>();
        Some(site).filter(|site| is_address && site.len() > "https://".len() && !self.are_in(site))
    }

    fn clear_text(&self, text: &mut Option<CompactString>) {
        *text = text.take().and_then(|text| self.cleared(&text)).map(CompactString::from);
    }

    fn clear_object(&self, object: &mut Option<JsonObject>) {
        let fate = &mut |place: Place<'_>, raw: &RawValue| {
            if names_somebody(place, raw) {
                return Fate::Drop;
            }
            let Some(text) = scalar(raw) else { return Fate::Keep };
            match self.cleared(&text) {
                Some(kept) if kept == text => Fate::Keep,
                Some(kept) => Fate::Text(kept),
                None => Fate::Drop,
            }
        };
        if let Some(pruned) = object.as_ref().and_then(|object| object.pruned(fate)) {
            *object = Some(pruned);
        }
    }

    fn clear_impression(&self, impression: &mut ImpressionDetails) {
        impression.user_was_eligible = Some(false);
        // Both say what the client knows of the user.
        (impression.user_eligibility_status, impression.user_context) = (None, None);
    }

    fn clear_conversion(&mut self, conversion: &mut ConversionDetails) {
        for object in [&mut conversion.details, &mut conversion.conversion_context] {
            self.collect(object.as_ref());
            self.clear_object(object);
        }
        let ConversionDetails { source, medium, referrer_source, conversion_attribution_source, .. } = conversion;
        for text in [source, medium, referrer_source, conversion_attribution_source] {
            self.clear_text(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ClaimedTime, Kind};
    use crate::testing::{self, generated_id, request_context};

    fn unlinked(draft: Draft) -> Event {
        *admit(Box::new(draft), &request_context(), generated_id, "gpc").expect("a valid event").0
    }

    fn with_properties(properties: &str) -> Draft {
        let properties = JsonObject::parse(properties.to_owned(), "").expect("an object");
        Draft {
            user_id: Some("ada".into()),
            anonymous_id: Some("device-7".into()),
            session_id: Some("session-9".into()),
            event_id: Some("e".into()),
            name: Some("n".into()),
            properties: Some(properties),
            ..Draft::new(Details::Engagement)
        }
    }

    #[test]
    fn ids_are_gone_wherever_they_stand() {
        let check = |properties: &str, expected: &str| {
            let event = unlinked(with_properties(properties));
            let text = event.metadata.expect("says why").to_string();
            let members = text.strip_suffix(r#""privacy":"gpc"}"#).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(members.trim_end_matches(','), expected, "{properties}");
        };
        check("{}", "{");
        check(r#"{"plan":"pro","n":1.10}"#, r#"{"plan":"pro","n":1.10"#);
        check(r#"{"$device_id":"d","deviceId":"d","ga_session_id":7,"$anon_distinct_id":"x","a":1}"#, r#"{"a":1"#);
        check(r#"{"who":"ada","what":"by ada","why":"of device-7","list":["session-9",2]}"#, r#"{"what":"by ada","list":[2]"#);
        check(r#"{"$device_id":"another","note":"it was another"}"#, "{");
        check(
            r#"{"context":{"traits":{"email":"a@b"},"device":{"id":"x","model":"m"}}}"#,
            r#"{"context":{"device":{"model":"m"}}"#,
        );
        check(
            r#"{"id":"sku","user":{"id":7,"plan":"pro"},"$set":{"x":1},"set":2}"#,
            r#"{"id":"sku","user":{"plan":"pro"},"set":2"#,
        );
        check(r#"{"url":"https://a.b/c?d=e#f","search":"?gclid=1","q":"why?"}"#, r#"{"url":"https://a.b/c","q":"why?""#);
        check(r#"{"privacy":"mine","repaired_from":{"x":"ada"}}"#, r#"{"client_privacy":"mine""#);
        let contexts =
            r#"[{"schema":"iglu:v/client_session/j/1","data":{"a":1}},{"schema":"iglu:v/product/j/1","data":{"b":2}}]"#;
        check(&format!(r#"{{"contexts":{contexts}}}"#), r#"{"contexts":[{"schema":"iglu:v/product/j/1","data":{"b":2}}]"#);
    }

    #[test]
    fn an_event_stands_alone_and_a_retry_is_the_same() {
        let one = unlinked(with_properties("{}"));
        let again = unlinked(Draft { user_id: None, anonymous_id: None, ..with_properties("{}") });
        assert_eq!((one.user_id, one.event_id, one.kind()), (again.user_id, again.event_id, Kind::Engagement));
        assert_eq!(one.user_id, identity::unlinked_user(one.project_id, one.kind(), one.event_id));
        let other = unlinked(Draft { event_id: Some("f".into()), ..with_properties("{}") });
        assert_ne!(one.user_id, other.user_id);
        assert_eq!((&one.external_id, &one.anonymous_id, &one.session_id), (&None, &None, &None));
        // Nobody is missing, and no id is too long or none.
        for user in [None, Some("undefined".into()), Some("x".repeat(1_000))] {
            assert_eq!(unlinked(Draft { user_id: user.map(CompactString::from), ..with_properties("{}") }).user_id, one.user_id);
        }
    }

    #[test]
    fn places_pages_and_details_say_nothing_of_the_user() {
        let mut draft = testing::exposure("e", "ada-lovelace", "2026-03-01T11:00:00Z", "x", "b");
        draft.context.page_url = Some("https://shop.example/a/ada-lovelace/b?uid=1".into());
        draft.context.referrer = Some("https://search.example/?q=secret#top".into());
        draft.context.utm_source = Some("mail-to-ada-lovelace".into());
        draft.context.country = Some("DE".into());
        draft.context.region = Some("Berlin".into());
        draft.context.city = Some("Berlin".into());
        let object = || JsonObject::parse(r#"{"age":7}"#.to_owned(), "").ok();
        draft.details =
            Details::Impression(ImpressionDetails { user_context: object(), bounce: Some(true), ..Default::default() });
        let event = unlinked(draft);
        let context = &event.context;
        let texts = [&context.page_url, &context.referrer, &context.utm_source, &context.country, &context.region, &context.city];
        let found = texts.map(|text| text.as_deref().unwrap_or("-"));
        assert_eq!(found, ["https://shop.example/", "https://search.example/", "-", "DE", "-", "-"]);
        let Details::Impression(details) = &event.details else { panic!("an impression") };
        assert_eq!((details.user_was_eligible, &details.user_context, details.bounce), (Some(false), &None, Some(true)));
        assert_eq!((event.experiment.as_deref(), event.variant.as_deref()), (Some("x"), Some("b")));

        let details = ConversionDetails {
            details: JsonObject::parse(r#"{"customerId":"c-12345","sku":"s","note":"for c-12345"}"#.to_owned(), "").ok(),
            referrer_source: Some("https://a.example/?x=1".into()),
            ..ConversionDetails::default()
        };
        let draft =
            Draft { name: Some("buy".into()), timestamp: ClaimedTime::Missing, ..Draft::new(Details::Conversion(details)) };
        let Details::Conversion(found) = unlinked(draft).details else { panic!("a conversion") };
        assert_eq!(found.details.expect("a rest").get(), r#"{"sku":"s"}"#);
        assert_eq!(found.referrer_source.as_deref(), Some("https://a.example/"));
    }
}
