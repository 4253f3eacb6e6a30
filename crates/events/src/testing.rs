//! Builders of events, for tests of this and other crates.

use uuid::Uuid;

use crate::event::{
    ClaimedTime, Context, ConversionDetails, Details, Draft, Event, EventId, IdentityDetails, ImpressionDetails, ProjectId,
};
use crate::identity::Dialect;
use crate::json::JsonObject;
use crate::rules::{self, RequestContext, Unit};
use crate::time::Micros;

/// When [`request_context`] receives its requests.
pub const RECEIVED_AT: Micros = Micros(1_772_366_400_000_000); // 2026-03-01T12:00:00Z

/// A native request with a public key of project `..0001`, received at [`RECEIVED_AT`].
pub fn request_context() -> RequestContext {
    RequestContext {
        project: ProjectId(Uuid::from_u128(1)),
        unit: Unit::User,
        backfill: false,
        horizon: None,
        dialect: Dialect::Native,
        received_at: RECEIVED_AT,
        sent_at: None,
    }
}

/// The id that an event without an id of its own gets.
pub fn generated_id() -> EventId {
    EventId(Uuid::from_u128(0x019c_a000_0000_7000_8000_0000_0000_0001))
}

/// Admits a draft in [`request_context`].
/// # Panics
/// If it is rejected: the test needs a valid event.
pub fn admitted(draft: Draft) -> Event {
    rules::admit(draft, &request_context(), generated_id).expect("a valid event")
}

/// An exposure of `user` to `variant` of `experiment`; `at` is ISO 8601.
pub fn exposure(id: &str, user: &str, at: &str, experiment: &str, variant: &str) -> Draft {
    Draft {
        event_id: Some(id.into()),
        user_id: Some(user.into()),
        timestamp: ClaimedTime::Text(at.into()),
        experiment: Some(experiment.into()),
        variant: Some(variant.into()),
        ..Draft::new(Details::Impression(ImpressionDetails::default()))
    }
}

/// A conversion of `user` worth `value`, naming no experiment; `at` is ISO 8601.
pub fn conversion(id: &str, user: &str, at: &str, name: &str, value: &str) -> Draft {
    Draft {
        event_id: Some(id.into()),
        user_id: Some(user.into()),
        timestamp: ClaimedTime::Text(at.into()),
        name: Some(name.into()),
        value: Some(value.into()),
        currency: Some("EUR".into()),
        ..Draft::new(Details::Conversion(ConversionDetails::default()))
    }
}

/// One event of each kind, every field used somewhere.
pub fn one_of_each_kind() -> Vec<Event> {
    let object = |text: &str| Some(JsonObject::parse(text.to_owned(), "properties").expect("a constant"));
    let at = ClaimedTime::Text("2026-03-01T11:59:58.123456Z".into());
    let context = Context {
        page_url: Some("https://shop.example/p?q=1".into()),
        referrer: Some("https://search.example/".into()),
        user_agent: Some("Mozilla/5.0".into()),
        language: Some("de-DE".into()),
        time_zone: Some("Europe/Berlin".into()),
        screen: Some("1920x1080".into()),
        viewport: Some("1200x800".into()),
        connection: Some("wifi".into()),
        utm_source: Some("news".into()),
        utm_medium: Some("email".into()),
        utm_campaign: Some("spring".into()),
        country: Some("DE".into()),
        region: Some("BE".into()),
        city: Some("Berlin".into()),
        device_type: Some("desktop".into()),
    };
    let impression = Draft {
        context,
        session_id: Some("s-1".into()),
        properties: object(r#"{"slot":3,"nested":{"a":[1,2]}}"#),
        anonymous_id: Some("device-7".into()),
        details: Details::Impression(ImpressionDetails {
            time_on_page: Some(1200),
            scroll_depth_percent: Some(80),
            page_load_time: Some(350),
            bounce: Some(false),
            is_first_exposure: Some(true),
            user_was_eligible: Some(true),
            user_eligibility_status: object(r#"{"reason":"all"}"#),
            user_context: object(r#"{"plan":"free"}"#),
        }),
        ..exposure("i-1", "alice", "2026-03-01T11:59:58.123456Z", "checkout", "b")
    };
    let conversion = Draft {
        experiment: Some("checkout".into()),
        variant: Some("b".into()),
        campaign: Some("spring".into()),
        component: Some("hero".into()),
        details: Details::Conversion(ConversionDetails {
            time_to_convert: Some(60),
            is_first_conversion_for_experiment: Some(true),
            conversion_attribution_source: Some("direct".into()),
            conversion_window_days: Some(30),
            original_exposure_date: Some(RECEIVED_AT),
            conversion_eligibility_verified: Some(true),
            source: Some("news".into()),
            medium: Some("email".into()),
            referrer_source: Some("partner.example".into()),
            details: object(r#"{"sku":"x"}"#),
            conversion_context: object(r#"{"cart":2}"#),
        }),
        ..conversion("c-1", "alice", "2026-03-01T11:59:59Z", "purchase", "-19.90")
    };
    let campaign_event = Draft {
        event_id: Some("6ba7b812-9dad-11d1-80b4-00c04fd430c8".into()),
        user_id: Some("6ba7b812-9dad-11d1-80b4-00c04fd430c9".into()),
        timestamp: at.clone(),
        name: Some("click".into()),
        campaign: Some("spring".into()),
        component: Some("hero".into()),
        value: Some("2".into()),
        currency: Some("USD".into()),
        ..Draft::new(Details::CampaignEvent)
    };
    let engagement = Draft {
        anonymous_id: Some("device-7".into()),
        name: Some("quiz_finished".into()),
        is_bot: true,
        ..Draft::new(Details::Engagement)
    };
    let identity = Draft {
        user_id: Some("alice".into()),
        timestamp: at,
        name: Some("alias".into()),
        properties: object(r#"{"email":"alice@example.org"}"#),
        ..Draft::new(Details::Identity(IdentityDetails { previous_id: Some("device-7".into()), group_id: Some("team".into()) }))
    };
    [impression, conversion, campaign_event, engagement, identity].into_iter().map(admitted).collect()
}
