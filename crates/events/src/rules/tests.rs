//! Tests of the rules.

use super::*;
use crate::event::{ConversionDetails, ImpressionDetails};
use crate::testing::{generated_id, request_context};
use proptest::prelude::*;

fn conversion() -> Draft {
    Draft {
        name: Some("purchase".into()),
        user_id: Some("alice".into()),
        timestamp: ClaimedTime::Text("2026-03-01T12:00:00Z".into()),
        ..Draft::new(Details::Conversion(ConversionDetails::default()))
    }
}

fn impression() -> Draft {
    Draft { user_id: Some("alice".into()), ..Draft::new(Details::Impression(ImpressionDetails::default())) }
}

/// The codes and fields of all faults of a draft, none if it is admitted.
fn faults(draft: Draft, request: &RequestContext) -> Vec<(Code, String)> {
    match admit(draft, request, generated_id) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.into_iter().map(|fault| (fault.code, fault.field)).collect(),
    }
}

fn refused(draft: Draft, expected: &[(Code, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(code, field)| (*code, (*field).to_owned())).collect();
    assert_eq!(faults(draft, &request_context()), expected);
}

#[test]
fn each_rule_names_its_field() {
    refused(conversion(), &[]);
    refused(Draft { user_id: None, ..conversion() }, &[(Code::MissingUser, "user_id")]);
    refused(Draft { user_id: Some(String::new().into()), ..conversion() }, &[(Code::MissingUser, "user_id")]);
    refused(Draft { user_id: Some("a\0".into()), ..conversion() }, &[(Code::NulByte, "user_id")]);
    refused(Draft { event_id: Some(String::new().into()), ..conversion() }, &[]);
    refused(Draft { name: Some(String::new().into()), ..conversion() }, &[(Code::Empty, "name")]);
    refused(Draft { name: Some("x".repeat(512).into()), ..conversion() }, &[]);
    refused(Draft { name: Some("x".repeat(513).into()), ..conversion() }, &[(Code::TooLong, "name")]);
    refused(Draft { name: None, ..conversion() }, &[(Code::MissingField, "name")]);
    refused(Draft { value: Some("1.0000001".into()), ..conversion() }, &[(Code::TooPrecise, "value")]);
    refused(Draft { value: Some("free".into()), ..conversion() }, &[(Code::BadValue, "value")]);
    refused(Draft { value: Some("1e15".into()), ..conversion() }, &[(Code::ValueOutOfRange, "value")]);
    refused(Draft { currency: Some("Euro".into()), ..conversion() }, &[(Code::BadCurrency, "currency")]);
    refused(Draft { variant: Some("b".into()), ..conversion() }, &[(Code::MissingField, "experiment")]);
    refused(Draft { experiment: Some("e".into()), ..impression() }, &[(Code::MissingField, "variant")]);
    let campaign_event = Draft { user_id: Some("alice".into()), ..Draft::new(Details::CampaignEvent) };
    refused(
        Draft { name: Some("stare".into()), ..campaign_event },
        &[(Code::BadValue, "name"), (Code::MissingField, "campaign")],
    );
    let depth = |percent| {
        let details = ImpressionDetails { scroll_depth_percent: Some(percent), ..Default::default() };
        Draft { details: Details::Impression(details), ..impression() }
    };
    refused(depth(100), &[]);
    refused(depth(101), &[(Code::BadValue, "scroll_depth_percent")]);
    refused(depth(-1), &[(Code::BadValue, "scroll_depth_percent")]);
    let page = Context { page_url: Some("/a\0b".into()), ..Default::default() };
    refused(Draft { context: page, ..impression() }, &[(Code::NulByte, "page_url")]);
}

#[test]
fn all_faults_are_named_at_once() {
    let draft = Draft { user_id: None, name: None, value: Some("x".into()), ..conversion() };
    refused(draft, &[(Code::MissingUser, "user_id"), (Code::BadValue, "value"), (Code::MissingField, "name")]);
}

/// `request_context()` receives at 2026-03-01T12:00:00Z.
#[test]
fn times_at_the_edges_of_what_is_accepted() {
    let check = |text: &str, backfill: bool, sent_at: Option<&str>, expected: Result<&str, Code>| {
        let sent_at = sent_at.map(|text| Micros::parse(text).expect("a constant"));
        let request = RequestContext { backfill, sent_at, ..request_context() };
        let draft = Draft { timestamp: ClaimedTime::Text(text.into()), ..conversion() };
        let found = admit(draft, &request, generated_id).map_err(|faults| faults[0].code);
        assert_eq!(found.map(|event| event.event_time.to_string()), expected.map(str::to_owned), "{text}");
    };
    check("2026-01-30T12:00:00Z", false, None, Ok("2026-01-30T12:00:00Z"));
    check("2026-01-30T11:59:59.999999Z", false, None, Err(Code::TimestampOutOfRange));
    check("2026-01-30T11:59:59.999999Z", true, None, Ok("2026-01-30T11:59:59.999999Z"));
    check("2016-01-01T00:00:00Z", true, None, Err(Code::TimestampOutOfRange));
    check("2026-03-01T13:00:00Z", false, None, Ok("2026-03-01T13:00:00Z"));
    check("2026-03-01T13:00:00.000001Z", false, None, Err(Code::TimestampOutOfRange));
    check("yesterday", false, None, Err(Code::BadTimestamp));
    // A clock that is two hours and a minute ahead; `sent_at` shows it.
    check("2026-03-01T14:00:00Z", false, Some("2026-03-01T14:01:00Z"), Ok("2026-03-01T12:00:00Z"));
    // 4 minutes are transit.
    check("2026-03-01T11:00:00Z", false, Some("2026-03-01T11:56:00Z"), Ok("2026-03-01T11:00:00Z"));
    // Sent before it happened: not a wrong clock, so the time is not corrected, however far back.
    for sent_at in ["2026-02-15T12:00:00Z", "2026-03-01T11:30:00Z", "2026-03-01T11:59:59.999999Z", "0001-01-01T00:00:00Z"] {
        check("2026-03-01T12:00:00Z", false, Some(sent_at), Ok("2026-03-01T12:00:00Z"));
    }
    // Sent at the same time: a clock that is 14 days behind; `sent_at` shows it.
    check("2026-02-15T12:00:00Z", false, Some("2026-02-15T12:00:00Z"), Ok("2026-03-01T12:00:00Z"));
    // A time of sending by which an event of today would be one of another age: it says nothing about the event's clock.
    for sent_at in ["9999-12-31T23:59:59Z", "2026-04-02T12:00:00Z"] {
        check("2026-03-01T11:59:00Z", false, Some(sent_at), Ok("2026-03-01T11:59:00Z"));
    }
    check("2026-03-31T12:00:00Z", false, Some("2026-03-31T12:00:00Z"), Ok("2026-03-01T12:00:00Z"));
    // A clock that is ahead does not make an event acceptable that its own request does not cover.
    check("2026-03-01T14:02:00Z", false, Some("2026-03-01T14:01:00Z"), Err(Code::TimestampOutOfRange));
}

#[test]
fn messages_say_what_was_found_and_what_is_accepted() {
    let draft = Draft { timestamp: ClaimedTime::Text("2031-01-01T00:00:00Z".into()), ..conversion() };
    let faults = admit(draft, &request_context(), generated_id).expect_err("refused");
    assert_eq!(faults[0].message, "2031-01-01T00:00:00Z is 4 years after the event was received; at most 1 hour is accepted");
}

#[test]
fn nothing_before_the_retention_boundary_is_accepted() {
    let horizon = Some(Micros::parse("2026-02-01T00:00:00Z").expect("a constant"));
    let check = |text: &str, expected: &[(Code, String)]| {
        let draft = Draft { timestamp: ClaimedTime::Text(text.into()), ..conversion() };
        assert_eq!(faults(draft, &RequestContext { horizon, backfill: true, ..request_context() }), expected);
    };
    check("2026-02-01T00:00:00Z", &[]);
    check("2026-01-31T23:59:59Z", &[(Code::BeforeHorizon, "timestamp".into())]);
}

#[test]
fn missing_and_relative_times_are_untimed() {
    let at = |timestamp| {
        let event = admit(Draft { timestamp, ..conversion() }, &request_context(), generated_id).expect("admitted");
        assert_eq!((event.claimed_at, event.untimed), (request_context().received_at, true));
        event.event_time.to_string()
    };
    assert_eq!(at(ClaimedTime::Missing), "2026-03-01T12:00:00Z");
    assert_eq!(at(ClaimedTime::BeforeReceipt(90 * Micros::SECOND)), "2026-03-01T11:58:30Z");
}

#[test]
fn the_unit_decides_between_user_and_device() {
    let check = |unit, user: Option<&str>, anonymous: Option<&str>, expected: (&str, Option<&str>, Option<&str>)| {
        let draft = Draft { user_id: user.map(Into::into), anonymous_id: anonymous.map(Into::into), ..conversion() };
        let request = RequestContext { unit, ..request_context() };
        let event = admit(draft, &request, generated_id).expect("admitted");
        let (of, external_id, anonymous_id) = expected;
        assert_eq!(event.user_id, identity::user_id(request.project, of));
        assert_eq!((event.external_id.as_deref(), event.anonymous_id.as_deref()), (external_id, anonymous_id));
    };
    let uuid = "6ba7b812-9dad-11d1-80b4-00c04fd430c8";
    check(Unit::User, Some("u"), Some("a"), ("u", Some("u"), Some("a")));
    check(Unit::Device, Some("u"), Some("a"), ("a", Some("a"), Some("u")));
    check(Unit::User, None, Some("a"), ("a", Some("a"), Some("a")));
    check(Unit::Device, Some("u"), None, ("u", Some("u"), None));
    check(Unit::User, Some(uuid), None, (uuid, None, None));
    check(Unit::User, Some(&uuid.to_uppercase()), None, (uuid, Some(&uuid.to_uppercase()), None));
}

#[test]
fn long_context_is_cut_at_a_character_and_listed() {
    let context = Context {
        page_url: Some("é".repeat(1_025).into()),
        referrer: Some("r".repeat(2_048).into()),
        city: Some("é".repeat(300).into()),
        country: Some("DE".into()),
        ..Default::default()
    };
    let event = admit(Draft { context, ..conversion() }, &request_context(), generated_id).expect("admitted");
    assert_eq!(event.context.page_url.as_deref(), Some("é".repeat(1_024).as_str()));
    assert_eq!(event.context.referrer.as_deref(), Some("r".repeat(2_048).as_str()));
    assert_eq!(event.context.city.as_deref(), Some("é".repeat(256).as_str()));
    assert_eq!(event.context.country.as_deref(), Some("DE"));
    assert_eq!(event.metadata.expect("lists the cut fields").get(), r#"{"truncated":["page_url","city"]}"#);
}

/// Metadata that ends with several braces, and a client's own property of the annotation's name.
#[test]
fn cutting_the_context_leaves_the_properties_whole() {
    let properties = r#"{"truncated":"mine","library":{"name":"x","more":{"version":"1"}}}"#;
    let context = Context { user_agent: Some("x".repeat(600).into()), ..Default::default() };
    let properties = Some(JsonObject::parse(properties.to_owned(), "properties").expect("valid"));
    let event = admit(Draft { context, properties, ..conversion() }, &request_context(), generated_id).expect("admitted");
    let expected = r#"{"client_truncated":"mine","library":{"name":"x","more":{"version":"1"}},"truncated":["user_agent"]}"#;
    assert_eq!(event.metadata.expect("kept").get(), expected);
}

proptest! {
    /// Of two events of one device in one request the earlier stays the earlier, whatever its clock says.
    #[test]
    fn skew_keeps_the_order(
        received in 0i64..4_000_000_000_000_000,
        sent in 0i64..4_000_000_000_000_000,
        before in 0i64..4_000_000_000_000_000,
    ) {
        let found = skew(Micros(received), Some(Micros(sent)), Micros(sent - before));
        prop_assert_eq!(found % limits::SKEW_MIN, 0);
        prop_assert!((received - sent - found).abs() < limits::SKEW_MIN);
        prop_assert_eq!(skew(Micros(received), Some(Micros(sent)), Micros(sent + before + 1)), 0);
    }
}

/// What is repaired in a draft of an SDK's route, as `reason field=from`, and the event; or the faults.
fn repaired(draft: Draft) -> Result<(Vec<String>, Event), Vec<String>> {
    let request = RequestContext { dialect: Dialect::Segment, ..request_context() };
    let shown = |repair: &Repair| {
        let from = repair.from.as_ref().map_or(String::new(), |from| format!("={from}"));
        format!("{} {}{from}", repair.reason.as_str(), repair.field)
    };
    admit_repaired(Box::new(draft), &request, generated_id)
        .map(|(event, repairs)| (repairs.iter().map(shown).collect(), *event))
        .map_err(|faults| faults.iter().map(|fault| format!("{} {}", fault.code.as_str(), fault.field)).collect())
}

#[test]
fn a_time_that_cannot_be_read_leaves_an_event_of_an_sdk_untimed() {
    let check = |text: &str, expected: &[&str], claimed: Option<&str>| {
        let draft = Draft { timestamp: ClaimedTime::Text(text.into()), ..conversion() };
        let (repairs, event) = repaired(draft.clone()).expect("kept");
        assert_eq!(repairs, expected, "{text}");
        assert_eq!((!event.untimed).then(|| event.claimed_at.to_string()).as_deref(), claimed, "{text}");
        refused(draft, &[(Code::BadTimestamp, "timestamp")]);
    };
    check("٢٠٢٦-٠٣-٠١T١١:٠٥:٣٧.٢١٤Z", &["digits timestamp"], Some("2026-03-01T11:05:37.214Z"));
    check("۲۰۲۶-۰۳-۰۱ ۱۱:۰۵:۳۷", &["digits timestamp"], Some("2026-03-01T11:05:37Z"));
    check("\u{200f}٢٠٢٦-٠٣-٠١T١١:٠٥:٣٧Z\u{200f}", &["digits timestamp"], Some("2026-03-01T11:05:37Z"));
    check("２０２６-０３-０１T１１:０５:３７Z", &["digits timestamp"], Some("2026-03-01T11:05:37Z"));
    check("", &[], None);
    check("2026-02-28T16:00:27.029:Z", &["timestamp timestamp=2026-02-28T16:00:27.029:Z"], None);
    check("2026-02-30T00:00:00Z", &["timestamp timestamp=2026-02-30T00:00:00Z"], None);
    check("1772366400", &["timestamp timestamp=1772366400"], None);
    // One that can be read is not moved into the accepted range.
    let draft = Draft { timestamp: ClaimedTime::Text("2031-01-01T00:00:00Z".into()), ..conversion() };
    assert_eq!(repaired(draft).expect_err("refused"), ["timestamp_out_of_range timestamp"]);
}

#[test]
fn an_amount_is_never_guessed() {
    let check = |value: &str, currency: Option<&str>, expected: &[&str], kept: Option<&str>| {
        let draft = Draft { value: Some(value.into()), currency: currency.map(Into::into), ..conversion() };
        let (repairs, event) = repaired(draft).expect("kept");
        let found = event.value.map(|value| format!("{value} {}", event.currency.as_deref().unwrap_or("-")));
        assert_eq!(repairs, expected, "{value}");
        assert_eq!(found.as_deref(), kept, "{value}");
    };
    check("19.90", Some("eur"), &[], Some("19.9 EUR"));
    check(" 19.90 ", Some(" eur"), &[], Some("19.9 EUR"));
    check("", None, &[], None);
    for text in ["2,000.00", "19,90", "$19.99", "٣", "free"] {
        check(text, Some("EUR"), &[&format!("value value={text}")], None);
    }
    check("19.90", Some("Euro"), &["currency currency=Euro", "currency value=19.90"], None);
    check("", Some("€"), &["currency currency=€"], None);
    let refusal = |value: &str| repaired(Draft { value: Some(value.into()), ..conversion() }).expect_err("refused");
    assert_eq!(refusal("1.0000001"), ["too_precise value"]);
    assert_eq!(refusal("1e15"), ["value_out_of_range value"]);
}

#[test]
fn a_placeholder_is_no_id() {
    let check = |user: Option<&str>, anonymous: Option<&str>, expected: Result<(&str, usize), &str>| {
        for dialect in [Dialect::Native, Dialect::Segment] {
            let draft = Draft { user_id: user.map(Into::into), anonymous_id: anonymous.map(Into::into), ..conversion() };
            let request = RequestContext { dialect, ..request_context() };
            let found = admit_repaired(Box::new(draft), &request, generated_id);
            let found = found.as_ref().map(|(event, repairs)| (event.external_id.as_deref().unwrap_or_default(), repairs.len()));
            assert_eq!(found.map_err(|faults| faults[0].code.as_str()), expected, "{user:?} {anonymous:?}");
        }
    };
    let texts = ["undefined", "NULL", "[object Object]", "NaN", "None", "nil", " ", "00000000-0000-0000-0000-000000000000"];
    for text in texts {
        check(Some(text), Some("device"), Ok(("device", 1)));
        check(Some("user"), Some(text), Ok(("user", 1)));
        check(Some(text), None, Err("missing_user"));
        check(Some(text), Some("undefined"), Err("missing_user"));
    }
    check(Some("nullable"), None, Ok(("nullable", 0)));
    check(Some("0"), None, Ok(("0", 0)));
    let id = |text: &str| {
        let (repairs, event) = repaired(Draft { event_id: Some(text.into()), ..conversion() }).expect("kept");
        (event.id_from_client, repairs.len())
    };
    for text in ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-ffff-ffff-ffff-ffffffffffff", "0", "undefined"] {
        assert_eq!(id(text), (false, 1), "{text}");
    }
    assert_eq!(id("00000000-0000-0000-0000-000000000001"), (true, 0));
}

#[test]
fn what_was_repaired_is_in_the_metadata() {
    let properties = JsonObject::parse(r#"{"repaired":"mine"}"#.to_owned(), "properties").expect("valid");
    let draft = Draft {
        timestamp: ClaimedTime::Text("ne\0ver".into()),
        value: Some("1,5".into()),
        properties: Some(properties),
        repairs: vec![Repair::new(Reason::Unicode, "properties.title"), Repair::new(Reason::NulByte, "properties.title")],
        ..conversion()
    };
    let (_, event) = repaired(draft).expect("kept");
    assert_eq!(
        event.metadata.expect("annotated").get(),
        concat!(
            r#"{"client_repaired":"mine","repaired":["properties.title","timestamp","value"],"#,
            "\"repaired_from\":{\"timestamp\":\"ne\u{fffd}ver\",\"value\":\"1,5\"}}"
        )
    );
}

/// A key of the client's may be in a field's place, and Postgres holds no U+0000 there either.
#[test]
fn what_is_said_of_repairs_can_be_stored() {
    let repairs = vec![
        Repair::new(Reason::NulByte, "properties.k\0"),
        Repair::taken(Reason::Timestamp, "t\0", "\0".repeat(limits::CONTEXT_BYTES_MAX)),
    ];
    let (_, event) = repaired(Draft { repairs, ..conversion() }).expect("kept");
    let metadata: serde_json::Value = serde_json::from_str(event.metadata.expect("says so").get()).expect("JSON");
    assert_eq!(metadata["repaired"], serde_json::json!(["properties.k\u{fffd}", "t\u{fffd}"]));
    let from = metadata["repaired_from"]["t\u{fffd}"].as_str().expect("a text");
    assert_eq!(from, "\u{fffd}".repeat(limits::CONTEXT_BYTES_MAX / 3));
}

/// A repair of a name would name something else; a session and details say nothing about what happened.
#[test]
fn names_are_refused_and_details_left_out() {
    let mended = |change: fn(&mut Draft)| {
        let mut draft = Draft { repairs: vec![Repair::new(Reason::Unicode, "x")], ..conversion() };
        change(&mut draft);
        repaired(draft).map(|(repairs, _)| repairs)
    };
    assert_eq!(mended(|draft| draft.name = Some("a\u{fffd}".into())), Err(vec!["bad_unicode name".to_owned()]));
    assert_eq!(mended(|draft| draft.user_id = Some("a\u{fffd}".into())), Err(vec!["bad_unicode user_id".to_owned()]));
    assert_eq!(mended(|draft| draft.context.city = Some("a\u{fffd}".into())), Ok(vec!["unicode x".to_owned()]));
    assert_eq!(
        mended(|draft| draft.session_id = Some("a\u{fffd}".into())),
        Ok(vec!["unicode x".to_owned(), "detail session_id=a\u{fffd}".to_owned()])
    );
    let details = ImpressionDetails { scroll_depth_percent: Some(101), ..Default::default() };
    let (repairs, event) = repaired(Draft { details: Details::Impression(details), ..impression() }).expect("kept");
    assert_eq!(repairs, ["detail scroll_depth_percent=101"]);
    assert_eq!(event.details, Details::Impression(ImpressionDetails::default()));
}

#[test]
fn an_empty_optional_text_is_absent() {
    let empty = || Some(CompactString::default());
    let draft = Draft {
        session_id: empty(),
        experiment: empty(),
        variant: empty(),
        campaign: empty(),
        component: empty(),
        value: empty(),
        currency: empty(),
        ..conversion()
    };
    let event = admit(draft, &request_context(), generated_id).expect("admitted");
    let plain = admit(conversion(), &request_context(), generated_id).expect("admitted");
    assert_eq!(event, plain);
}
