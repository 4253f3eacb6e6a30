//! What SDKs send wrong is kept where its meaning is unharmed: repaired, named in the metadata, counted, and told in a header.
//! The native route goes on refusing it.

use events::Event;
use serde_json::{Value, json};

use crate::support::{Answer, Service, WRITE, send};

/// Sends one call, or several, to Segment's route.
async fn batch(service: &Service, calls: &str) -> Answer {
    let body = format!(r#"{{"writeKey":"{WRITE}","batch":[{calls}]}}"#);
    let answer = send(service.address(), "POST", "/v1/batch", &[], body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

fn header(answer: &Answer, name: &str) -> usize {
    answer.header(name).unwrap_or_else(|| panic!("no {name} in {answer:?}")).parse().expect("a number")
}

fn metadata(event: &Event) -> Value {
    event.metadata.as_ref().map_or(json!({}), |metadata| serde_json::from_str(metadata.get()).expect("JSON"))
}

/// Sends one call that is kept, and returns its event. `repaired` are the fields that its metadata names.
async fn kept(call: &str, repaired: &[&str]) -> Event {
    let service = Service::start().await;
    let answer = batch(&service, call).await;
    assert_eq!(header(&answer, "x-events-accepted"), 1, "{call}: {answer:?}");
    assert_eq!(header(&answer, "x-events-rejected"), 0, "{call}: {answer:?}");
    assert_eq!(header(&answer, "x-events-repaired"), usize::from(!repaired.is_empty()), "{call}");
    let event = service.log.events().pop().expect("one");
    let found = metadata(&event)["repaired"].clone();
    let expected = if repaired.is_empty() { Value::Null } else { json!(repaired) };
    assert_eq!(found, expected, "{call}");
    let page = service.get("/metrics").await.body;
    let counted: u64 = page
        .lines()
        .filter_map(|line| line.strip_prefix("weir_collector_events_repaired_total{"))
        .filter_map(|line| line.split_once("} ")?.1.parse::<u64>().ok())
        .sum();
    assert_eq!(counted > 0, !repaired.is_empty(), "{call}");
    event
}

fn track(event: &str, members: &str) -> String {
    format!(r#"{{"type":"track","event":"{event}","userId":"a","messageId":"m"{members}}}"#)
}

/// The first rejection of one call that is refused: code, field and message.
async fn refused(call: &str) -> (String, String, String) {
    let service = Service::start().await;
    let answer = batch(&service, call).await;
    assert_eq!(header(&answer, "x-events-rejected"), 1, "{call}: {answer:?}");
    assert_eq!(service.log.events().len(), 0);
    let first = answer.json()["rejected"][0].clone();
    let text = |name: &str| first[name].as_str().expect("a text").to_owned();
    (text("code"), text("field"), text("message"))
}

#[tokio::test]
async fn an_empty_array_is_an_empty_object() {
    for array in ["[]", "[ ]", "[\n]"] {
        let event = kept(&track("Song Played", &format!(r#","properties":{array}"#)), &["properties"]).await;
        assert_eq!(event.name.as_deref(), Some("Song Played"));
        let identify = format!(r#"{{"type":"identify","userId":"a","traits":{array}}}"#);
        assert_eq!(kept(&identify, &["traits"]).await.name.as_deref(), Some("identify"));
    }
    kept(r#"{"type":"page","userId":"a","properties":[],"context":[],"integrations":[]}"#, &["properties"]).await;
    kept(r#"{"type":"group","userId":"a","groupId":"g","traits":[],"context":{"page":[],"traits":[]}}"#, &["traits"]).await;
    assert_eq!(refused(&track("Song Played", r#","properties":[1]"#)).await.0, "wrong_type");
}

#[tokio::test]
async fn a_time_that_cannot_be_read_is_kept_as_text() {
    let check = async |members: &str, repaired: &[&str], from: Value, untimed: bool| {
        let event = kept(&track("e", members), repaired).await;
        assert_eq!(event.untimed, untimed, "{members}");
        assert_eq!(metadata(&event)["repaired_from"]["timestamp"], from, "{members}");
        event
    };
    let event = check(r#","timestamp":"٢٠٢٦-٠٣-٠١T١١:٠٥:٣٧.٢١٤Z""#, &["timestamp"], Value::Null, false).await;
    assert_eq!(event.claimed_at.to_string(), "2026-03-01T11:05:37.214Z");
    check(r#","timestamp":"2026-03-01T11:00:27.029:Z""#, &["timestamp"], json!("2026-03-01T11:00:27.029:Z"), true).await;
    check(r#","timestamp":1772366400000"#, &["timestamp"], json!("1772366400000"), true).await;
    check(r#","timestamp":{"a":1}"#, &["timestamp"], json!("{\"a\":1}"), true).await;
    check(r#","timestamp":"""#, &[], Value::Null, true).await;
    check(r#","timestamp":null"#, &[], Value::Null, true).await;
    // One of two times is enough.
    check(r#","originalTimestamp":"?","timestamp":"2026-03-01T11:00:00Z""#, &[], Value::Null, false).await;

    let service = Service::start().await;
    for text in ["٢٠٢٦-٠٣-٠١T١١:٠٥:٣٧Z", "2026-03-01T11:00:27.029:Z", ""] {
        let answer = service.post(&format!(r#"{{"type":"impression","user_id":"u","timestamp":"{text}"}}"#)).await;
        assert_eq!(answer.native().2[0].1, "bad_timestamp", "{text}");
    }
}

#[tokio::test]
async fn free_text_is_mended_and_a_name_is_not() {
    let order =
        r#","properties":{"product_name":"Party kit \ud83c","revenue":5,"list":["\udf89",{"\ud800":"x"}],"fine":"\ud83c\udf89"}"#;
    let event =
        kept(&track("Order Completed", order), &["properties.product_name", "properties.list[0]", r"properties.list[1].\ud800"])
            .await;
    assert_eq!(metadata(&event)["product_name"], "Party kit \u{fffd}");
    assert_eq!(metadata(&event)["fine"], "🎉");
    assert_eq!(event.value.map(|value| value.to_string()).as_deref(), Some("5"));
    let page = r#"{"type":"page","userId":"a","context":{"page":{"title":"\ud83c","url":"https://x/\ud83c"},"locale":"\u0000"}}"#;
    let event = kept(page, &["context.page.title", "context.page.url", "context.locale"]).await;
    assert_eq!(event.context.page_url.as_deref(), Some("https://x/\u{fffd}"));
    kept(r#"{"type":"identify","userId":"a","traits":{"name":"A\u0000da"}}"#, &["traits.name"]).await;

    let fault = |text: (String, String, String)| format!("{} {}", text.0, text.1);
    assert_eq!(fault(refused(r#"{"type":"track","event":"e\ud83c","userId":"a"}"#).await), "bad_unicode event");
    assert_eq!(fault(refused(r#"{"type":"track","event":"e","userId":"a\ud83c"}"#).await), "bad_unicode userId");
    assert_eq!(
        fault(refused(r#"{"type":"track","event":"e","userId":"a","messageId":"\udf89"}"#).await),
        "bad_unicode messageId"
    );
    assert_eq!(fault(refused(r#"{"type":"track","event":"e\u0000","userId":"a"}"#).await), "nul_byte event");
    let exposure = r#","properties":{"experiment_id":"e\ud83c","variation_id":"b"}"#;
    assert_eq!(fault(refused(&track("Experiment Viewed", exposure)).await), "bad_unicode properties.experiment_id");
}

#[tokio::test]
async fn bytes_that_are_no_utf8_are_mended_in_free_text() {
    let service = Service::start().await;
    let call = |user: &[u8], name: &[u8]| {
        [
            br#"{"writeKey":"wk_test","batch":[{"type":"track","event":"e","userId":""#.as_slice(),
            user,
            br#"","properties":{"name":""#,
            name,
            br#""}},{"type":"track","event":"e","userId":"b"}]}"#,
        ]
        .concat()
    };
    let answer = send(service.address(), "POST", "/v1/batch", &[], &call(b"a", b"caf\xe9")).await;
    assert_eq!((header(&answer, "x-events-accepted"), header(&answer, "x-events-repaired")), (2, 1));
    let found = metadata(&service.log.events()[0]);
    assert_eq!((&found["name"], &found["repaired"]), (&json!("caf\u{fffd}"), &json!(["properties.name"])));
    let answer = send(service.address(), "POST", "/v1/batch", &[], &call(b"ren\xe9", b"x")).await;
    assert_eq!((header(&answer, "x-events-accepted"), header(&answer, "x-events-rejected")), (1, 1));
    assert_eq!(answer.json()["rejected"][0]["code"], "bad_utf8");
    assert_eq!(answer.json()["rejected"][0]["field"], "userId");
}

#[tokio::test]
async fn what_is_no_number_is_null_in_its_event_alone() {
    let calls = [
        r#"{"type":"track","event":"first","userId":"a"}"#.to_owned(),
        r#"{"type":"track","event":"second","userId":"a","properties":{"score":NaN,"list":[1,-Infinity,undefined,-nan],"text":"NaN, Infinity"}}"#.to_owned(),
        r#"{"type":"track","event":"third","userId":NaN,"anonymousId":"d"}"#.to_owned(),
    ];
    let service = Service::start().await;
    let answer = batch(&service, &calls.join(",")).await;
    assert_eq!((header(&answer, "x-events-accepted"), header(&answer, "x-events-repaired")), (3, 2));
    let events = service.log.events();
    assert_eq!(metadata(&events[0]), json!({}));
    let second = metadata(&events[1]);
    let list = json!([1, null, null, null]);
    assert_eq!((&second["score"], &second["list"], &second["text"]), (&Value::Null, &list, &json!("NaN, Infinity")));
    let places = ["properties.score", "properties.list[1]", "properties.list[2]", "properties.list[3]"];
    assert_eq!(second["repaired"], json!(places));
    assert_eq!(events[2].external_id.as_deref(), Some("d"));
    assert_eq!(service.counter("weir_collector_events_repaired_total{reason=\"not_a_number\"}").await, 2);

    // The same on the native route, in a batch and line by line.
    let event =
        |id: &str, value: &str| format!(r#"{{"type":"engagement","name":"n","user_id":"{id}","properties":{{"x":{value}}}}}"#);
    for body in [
        format!(r#"{{"events":[{},{}]}}"#, event("a", "NaN"), event("b", "1")),
        format!("{}\n{}\n", event("a", "NaN"), event("b", "1")),
    ] {
        let service = Service::start().await;
        let answer = service.post(&body).await;
        assert_eq!(answer.native(), (2, 0, Vec::new()), "{body}");
        assert_eq!(answer.header("x-events-repaired"), Some("1"));
        let events = service.log.events();
        assert_eq!(metadata(&events[0]), json!({ "x": null, "repaired": ["properties.x"] }));
        assert_eq!(metadata(&events[1]), json!({ "x": 1 }));
    }
    let answer = service.post(r#"{"events":[{"type":"engagement","name":"n","user_id":"u","x":Nano}]}"#).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn an_amount_is_never_guessed() {
    let check = async |event: &str, properties: &str, value: Option<&str>, from: Value| {
        let repaired: &[&str] = if from.is_null() { &[] } else { &["value"] };
        let event = kept(&track(event, &format!(r#","properties":{properties}"#)), repaired).await;
        assert_eq!(event.kind(), events::Kind::Conversion, "{properties}");
        assert_eq!(event.value.map(|value| value.to_string()).as_deref(), value, "{properties}");
        assert_eq!(metadata(&event)["repaired_from"]["value"], from, "{properties}");
    };
    for text in ["2,000.00", "19,90", "$19.99", "1.234,50 €", "n/a"] {
        check("Order Completed", &format!(r#"{{"revenue":"{text}"}}"#), None, json!(text)).await;
        check("Trip Booked", &format!(r#"{{"revenue":"{text}"}}"#), None, json!(text)).await;
        check("Signed Up", &format!(r#"{{"value":"{text}"}}"#), None, json!(text)).await;
    }
    check("Trip Booked", r#"{"value":"19,90"}"#, None, json!("19,90")).await;
    check("Order Completed", r#"{"revenue":{"amount":5}}"#, None, json!("{\"amount\":5}")).await;
    check("Order Completed", r#"{"revenue":""}"#, None, Value::Null).await;
    check("Order Completed", r#"{"revenue":"n/a","total":"7.50"}"#, Some("7.5"), Value::Null).await;
    check("Order Completed", r#"{"revenue":183.60000000000002}"#, Some("183.6"), Value::Null).await;
    check("Order Completed", r#"{"revenue":836.9999999999998}"#, Some("837"), Value::Null).await;
    check("Order Completed", r#"{"revenue":"19.90"}"#, Some("19.9"), Value::Null).await;
    let (code, field, _) = refused(&track("Order Completed", r#","properties":{"revenue":"19.1234567"}"#)).await;
    assert_eq!((code.as_str(), field.as_str()), ("too_precise", "properties.revenue"));
    let event = kept(&track("Order Completed", r#","properties":{"revenue":5,"currency":"Euro"}"#), &["currency", "value"]).await;
    assert_eq!((event.value, event.currency.as_deref()), (None, None));
    assert_eq!(metadata(&event)["repaired_from"], json!({ "currency": "Euro", "value": "5" }));

    let service = Service::start().await;
    let native = |value: &str| format!(r#"{{"type":"conversion","name":"n","user_id":"u","value":{value}}}"#);
    assert_eq!(service.post(&native("183.60000000000002")).await.native().0, 1);
    assert_eq!(service.log.events()[0].value.map(|value| value.to_string()).as_deref(), Some("183.6"));
    assert_eq!(service.post(&native("\"19,90\"")).await.native().2[0].1, "bad_value");
    assert_eq!(service.post(&native("\"183.60000000000002\"")).await.native().2[0].1, "too_precise");
}

#[tokio::test]
async fn a_placeholder_is_no_id() {
    for id in [r#""undefined""#, r#""null""#, r#""[object Object]""#, r#""NaN""#, r#""None""#, r#""NULL""#, "false"] {
        let event = kept(&format!(r#"{{"type":"track","event":"e","userId":{id},"anonymousId":"d-1"}}"#), &["user_id"]).await;
        assert_eq!(event.external_id.as_deref(), Some("d-1"), "{id}");
        let (code, field, message) = refused(&format!(r#"{{"type":"track","event":"e","userId":{id}}}"#)).await;
        assert_eq!((code.as_str(), field.as_str()), ("missing_user", "userId"), "{id}");
        assert!(message.contains("neither userId nor anonymousId"), "{message}");
    }
    let zeros = r#"{"type":"track","event":"e","userId":"a","messageId":"00000000-0000-0000-0000-000000000000"}"#;
    let service = Service::start().await;
    let answer = batch(&service, &format!("{zeros},{zeros}")).await;
    assert_eq!((header(&answer, "x-events-accepted"), header(&answer, "x-events-repaired")), (2, 2));
    let events = service.log.events();
    assert!(events.iter().all(|event| !event.id_from_client) && events[0].event_id != events[1].event_id);
}

#[tokio::test]
async fn a_session_is_a_text_or_a_number_or_none() {
    let session = async |json: &str, repaired: &[&str]| {
        let context = format!(r#","context":{{"sessionId":{json}}}"#);
        kept(&track("e", &context), repaired).await.session_id
    };
    assert_eq!(session("\"\"", &[]).await, None);
    assert_eq!(session("null", &[]).await, None);
    assert_eq!(session("1693200000", &[]).await.as_deref(), Some("1693200000"));
    assert_eq!(session("\"s\"", &[]).await.as_deref(), Some("s"));
    assert_eq!(session(&format!("\"{}\"", "s".repeat(513)), &["session_id"]).await, None);
    let service = Service::start().await;
    let native = r#"{"type":"conversion","name":"n","user_id":"u","session_id":"","experiment":"","currency":"","city":""}"#;
    assert_eq!(service.post(native).await.native(), (1, 0, Vec::new()));
    assert_eq!(service.log.events()[0].session_id, None);
}

#[tokio::test]
async fn slashes_are_collapsed() {
    let service = Service::start().await;
    for target in ["//v1/batch", "/v1//batch", "///v1/batch//"] {
        let body = format!(r#"{{"writeKey":"{WRITE}","batch":[{}]}}"#, track("e", ""));
        let answer = send(service.address(), "POST", target, &[], body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{target}");
    }
    assert_eq!(service.log.events().len(), 3);
}

#[tokio::test]
async fn an_android_app_runs_on_a_telephone() {
    let agent = "Dalvik/2.1.0 (Linux; U; Android 13; Pixel 6)";
    let event = kept(&track("e", &format!(r#","context":{{"userAgent":"{agent}"}}"#)), &[]).await;
    assert_eq!(event.context.device_type.as_deref(), Some("mobile"));
}

#[tokio::test]
async fn rejections_carry_the_clients_own_names() {
    let check = async |call: &str, expected: &str| {
        let (code, field, message) = refused(call).await;
        assert_eq!(format!("{code} {field}"), expected);
        assert!(message.starts_with(&format!("batch[0].{field}: ")), "{message}");
    };
    check(r#"{"type":"track","event":"e"}"#, "missing_user userId").await;
    check(&format!(r#"{{"type":"track","event":"e","userId":"{}"}}"#, "u".repeat(513)), "too_long userId").await;
    check(&format!(r#"{{"type":"track","event":"e","anonymousId":"{}"}}"#, "u".repeat(513)), "too_long anonymousId").await;
    check(r#"{"type":"track","userId":"a"}"#, "missing_field event").await;
    check(&track("Order Completed", r#","properties":{"revenue":1e15}"#), "value_out_of_range properties.revenue").await;
    check(&track("Bought", r#","properties":{"value":"1.0000001"}"#), "too_precise properties.value").await;
    check(&track("Order Completed", r#","properties":{"total":1e15}"#), "value_out_of_range properties.total").await;
    check(&track("e", r#","timestamp":"2031-01-01T00:00:00Z""#), "timestamp_out_of_range timestamp").await;
    check(&track("e", r#","originalTimestamp":"2031-01-01T00:00:00Z""#), "timestamp_out_of_range originalTimestamp").await;
    check(&track("Experiment Viewed", r#","properties":{"experimentId":"e"}"#), "missing_field variant").await;
    check(&format!(r#"{{"type":"group","userId":"a","groupId":"{}"}}"#, "g".repeat(513)), "too_long groupId").await;
}

/// The image's parameters are repaired by the same rules: nobody reads its answers either.
#[tokio::test]
async fn a_pixel_is_repaired_too() {
    let service = Service::start().await;
    let get = async |query: &str| service.get(&format!("/v1/pixel.gif?key=wk_test&{query}")).await;
    let answer = get("type=conversion&name=n&user_id=u&value=19,90&timestamp=soon&city=caf%e9&time_to_convert=x&note=%00").await;
    assert_eq!((answer.header("x-weir-error"), answer.header("x-events-repaired")), (None, Some("1")));
    let event = service.log.events().pop().expect("one");
    assert_eq!(metadata(&event)["repaired"], json!(["city", "note", "time_to_convert", "timestamp", "value"]));
    assert_eq!(event.context.city.as_deref(), Some("caf\u{fffd}"));
    let answer = get("type=conversion&name=n%e9&user_id=u").await;
    assert!(answer.header("x-weir-error").expect("refused").starts_with("bad_utf8: name"));
}

/// What a route refuses whose clients read no answers is kept: the event, the reason, the field, the key and the time.
#[tokio::test]
async fn what_is_refused_is_kept_in_the_log() {
    let service = Service::start().await;
    let call = r#"{"type":"track", "event":"e"}"#;
    batch(&service, &format!("{},{call}", track("fine", ""))).await;
    assert_eq!(service.log.events().len(), 1);
    let rejected = service.log.rejected();
    assert_eq!(rejected.len(), 1);
    let one = &rejected[0];
    assert_eq!((one.code.as_str(), one.field.as_str(), one.dialect.as_str()), ("missing_user", "userId", "segment"));
    assert_eq!(one.event.as_deref(), Some(call));
    assert_eq!((one.received_at, one.key.as_str()), (events::testing::RECEIVED_AT, &crate::support::sha256(WRITE)[..12]));

    let large = track("e", &format!(r#","properties":{{"a":"{}"}}"#, "x".repeat(70_000)));
    batch(&service, &large).await;
    assert_eq!(service.log.rejected()[1].event.as_deref(), Some(&large[..64 * 1024]));
    service.get("/v1/pixel.gif?key=wk_test&type=nonsense&user_id=u").await;
    assert_eq!(service.log.rejected()[2].event.as_deref(), Some("type=nonsense&user_id=u"));
    // Whoever uses the native route reads its answers.
    service.post(r#"{"type":"nonsense","user_id":"u"}"#).await;
    assert_eq!(service.log.rejected().len(), 3);
    assert_eq!(service.counter("weir_collector_events_appended_total").await, 1);
    assert_eq!(service.counter("weir_collector_events_rejected_total{code=\"unknown_type\"}").await, 2);
}
