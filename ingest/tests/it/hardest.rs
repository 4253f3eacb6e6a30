//! The hardest that a collector meets and that can be met without other processes; what needs Kafka, signals or a failing disk is in
//! `weir/tests/it/hardest.rs`. `cargo test hardest` runs them all.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use events::Micros;
use events::testing::RECEIVED_AT;

use crate::senders::{SENDERS, Sender};
use crate::support::{DEVICE, FEW, Service, WRITE, send};

const BATCH: usize = 2_500;
/// Where the poison lies.
const AT: usize = 1_234;

/// What one event is that must harm no other one, in place of an event of [`BATCH`].
struct Poison {
    name: &'static str,
    event: fn(&Sender) -> String,
    /// The code by which a strict route refuses it; none: it counts as a repetition.
    strict: Option<&'static str>,
    /// The same on routes that repair; none: it is kept.
    repairing: Option<&'static str>,
}

fn with(sender: &Sender, properties: &str) -> String {
    sender.event(AT as u64, "poison", properties)
}

const POISONS: [Poison; 9] = [
    Poison {
        name: "an event that is a number",
        event: |_| "7".to_owned(),
        strict: Some("invalid_json"),
        repairing: Some("invalid_json"),
    },
    Poison {
        name: "40 KB in one text",
        event: |sender| with(sender, &format!(r#""text":"{}""#, "x".repeat(40 * 1024))),
        strict: Some("string_too_long"),
        repairing: Some("string_too_long"),
    },
    Poison {
        name: "70 KB in many texts",
        event: |sender| {
            let texts: Vec<String> = (0..10).map(|n| format!(r#""t{n}":"{}""#, "x".repeat(7 * 1024))).collect();
            with(sender, &texts.join(","))
        },
        strict: Some("event_too_large"),
        repairing: Some("event_too_large"),
    },
    Poison { name: "U+0000", event: |sender| with(sender, r#""text":"a\u0000b""#), strict: Some("nul_byte"), repairing: None },
    Poison {
        name: "half a pair of surrogates",
        event: |sender| with(sender, r#""text":"\ud83c""#),
        strict: Some("bad_unicode"),
        repairing: None,
    },
    Poison {
        name: "1e400",
        event: |sender| with(sender, r#""number":1e400"#),
        strict: Some("number_out_of_range"),
        repairing: Some("number_out_of_range"),
    },
    Poison {
        name: "10,000 levels",
        event: |sender| with(sender, &format!(r#""deep":{}1{}"#, "[".repeat(10_000), "]".repeat(10_000))),
        strict: Some("too_deep"),
        repairing: Some("too_deep"),
    },
    Poison {
        name: "a key that stands twice",
        event: |sender| with(sender, r#""a":{"b":1,"b":2}"#),
        strict: Some("duplicate_key"),
        repairing: Some("duplicate_key"),
    },
    Poison { name: "an id that was there before", event: |sender| sender.event(7, "user-7", ""), strict: None, repairing: None },
];

/// Collector's test 4: one event among 2,500 that is poison, in each dialect: the others land, each once; it is told by its index, and what no
/// client reads is kept.
#[tokio::test]
async fn hardest_04_one_poisonous_event_among_2500_harms_no_other_in_any_dialect() {
    for sender in &SENDERS {
        for poison in &POISONS {
            if !sender.has_ids && poison.name.starts_with("an id") {
                continue;
            }
            let what = format!("{}, {}", sender.name, poison.name);
            let mut events: Vec<String> = (0..BATCH as u64).map(|n| sender.event(n, &format!("user-{n}"), r#""a":1"#)).collect();
            events[AT] = (poison.event)(sender);
            let service = Service::start().await;
            let answer = sender.send(&service, sender.body(&events).as_bytes()).await;
            let code = if sender.is_strict { poison.strict } else { poison.repairing };
            let is_repetition = poison.name.starts_with("an id");
            assert_eq!(sender.counts(&answer), (BATCH as u64 - u64::from(code.is_some()), u64::from(code.is_some())), "{what}");

            let users: Vec<String> =
                service.log.events().iter().map(|event| event.external_id.clone().expect("each has a user").into()).collect();
            let mut expected: Vec<String> = (0..BATCH).map(|n| format!("user-{n}")).collect();
            match code {
                None if !is_repetition => expected[AT] = "poison".to_owned(),
                _ => drop(expected.remove(AT)),
            }
            assert_eq!(users, expected, "{what}: the others land, in their order");

            let kept = service.log.rejected();
            match code {
                Some(code) if sender.is_strict => {
                    let (_, _, rejected) = answer.native();
                    assert_eq!((rejected[0].0, rejected[0].1.as_str()), (AT as u64, code), "{what}");
                    assert!(kept.is_empty(), "{what}: who reads answers keeps its events");
                }
                Some(code) => {
                    assert_eq!(kept.len(), 1, "{what}");
                    assert_eq!(kept[0].code, code, "{what}: {}", kept[0].message);
                    let text = kept[0].event.as_deref().expect("the first of the day");
                    let sent = &events[AT][..events[AT].len().min(events::rules::limits::EVENT_BYTES_MAX)];
                    assert_eq!(text, sent, "{what}: kept as it was sent");
                    let told = sender.rejected_at(&answer);
                    assert!(told.is_none_or(|at| at == AT as u64), "{what}: told at {told:?}");
                    assert!(told.is_some() || !matches!(sender.name, "segment" | "jitsu"), "{what}: it is not told where");
                }
                None => assert!(kept.is_empty(), "{what}"),
            }
        }
    }
}

/// The same where several are poison at once, and the last one of the batch is.
#[tokio::test]
async fn hardest_04_many_kinds_of_poison_in_one_batch_are_told_apart() {
    for sender in &SENDERS {
        let mut events: Vec<String> = (0..BATCH as u64).map(|n| sender.event(n, &format!("user-{n}"), "")).collect();
        let mut expected: BTreeSet<String> = (0..BATCH).map(|n| format!("user-{n}")).collect();
        let mut codes = Vec::new();
        for (place, poison) in POISONS.iter().filter(|poison| poison.repairing.is_some()).enumerate() {
            let at = BATCH - 1 - place * 300;
            events[at] = (poison.event)(sender);
            expected.remove(&format!("user-{at}"));
            codes.push(if sender.is_strict { poison.strict } else { poison.repairing }.expect("refused"));
        }
        let service = Service::start().await;
        let answer = sender.send(&service, sender.body(&events).as_bytes()).await;
        assert_eq!(sender.counts(&answer).1, codes.len() as u64, "{}", sender.name);
        let users: BTreeSet<String> =
            service.log.events().into_iter().filter_map(|event| event.external_id).map(String::from).collect();
        assert_eq!(users, expected, "{}", sender.name);
        codes.reverse();
        if sender.is_strict {
            let found: Vec<String> = answer.native().2.into_iter().map(|(_, code, _)| code).collect();
            assert_eq!(found, codes);
        } else {
            let found: Vec<String> = service.log.rejected().into_iter().map(|rejected| rejected.code).collect();
            assert_eq!(found, codes, "{}", sender.name);
        }
    }
}

/// How the clock of a device is wrong: what it shows is our time plus this, in microseconds.
const MINUTE: i64 = 60 * Micros::SECOND;
const CLOCKS: [(&str, i64); 9] = [
    ("right", 0),
    ("a second ahead", Micros::SECOND),
    ("summer time taken for UTC", 120 * MINUTE),
    ("winter time of another zone", -330 * MINUTE),
    ("half an hour slow", -30 * MINUTE),
    ("a day ahead", Micros::DAY),
    ("three years slow", -3 * 365 * Micros::DAY),
    ("ten years ahead", 10 * 365 * Micros::DAY),
    ("of 1970", -(RECEIVED_AT.0 - 5 * MINUTE)),
];

/// Collector's test 8, of one device whose batches take turns in being slow and fast: what happened earlier has the earlier time, however wrong
/// its clock is. A clock that is wrong by hours, as by a zone, leaves two and a half minutes for the differences of transit; a right one five.
#[tokio::test]
async fn hardest_08_slow_and_fast_batches_of_one_device_keep_its_order() {
    for (name, wrong) in CLOCKS {
        let service = Service::without_horizon().await;
        let (mut number, mut sent) = (0, 0);
        for round in 0..12_i64 {
            // Each batch was sent that long before we have it; by our clock all are received now.
            let transit = [0, 140 * Micros::SECOND, 2 * Micros::SECOND, 61 * Micros::SECOND][round as usize % 4];
            let sent_at = Micros(RECEIVED_AT.0 + wrong - transit);
            // The device's own order: each batch holds what happened after all of the former one. Its clock shows that.
            let happened = |n: i64| Micros(RECEIVED_AT.0 + wrong - 200 * Micros::SECOND + (round * 3 + n) * 1_000_000);
            let events: Vec<String> = (0..3)
                .filter(|n| happened(*n) <= sent_at)
                .map(|n| {
                    number += 1;
                    format!(
                        r#"{{"type":"track","event":"n","messageId":"{number}","anonymousId":"device","timestamp":"{}","properties":{{"n":{number}}}}}"#,
                        happened(n)
                    )
                })
                .collect();
            let body = format!(r#"{{"writeKey":"{WRITE}","sentAt":"{sent_at}","batch":[{}]}}"#, events.join(","));
            let answer = send(service.address(), "POST", "/v1/batch", &[], body.as_bytes()).await;
            assert_eq!(answer.header("x-events-rejected"), Some("0"), "{name}: {}", answer.body);
            sent += events.len();
        }
        let events = service.log.events();
        assert_eq!(events.len(), sent, "{name}");
        let order: Vec<(String, Micros)> = events
            .iter()
            .map(|event| (event.metadata.as_ref().map(|object| object.get().to_owned()).expect("its number"), event.event_time))
            .collect();
        assert!(order.windows(2).all(|pair| pair[0].1 < pair[1].1), "{name}: {order:?}");
        // And they are where they belong: within the transit and the rounding of it of when they happened.
        for event in &events {
            let off = event.event_time.0 - (event.claimed_at.0 - wrong);
            assert!(off.abs() < 5 * MINUTE, "{name}: {off} us off");
        }
    }
}

/// Without a time of sending nothing is moved; one from before the event, as of a request that was kept and sent again, or of Snowplow's trackers
/// that cut it to the second, moves nothing either. Texts of local time and of summer time are the instants that they name.
#[tokio::test]
async fn hardest_08_what_says_nothing_of_the_clock_moves_nothing() {
    let at = |text: &str| Micros::parse(text).expect("a time");
    let happened = at("2026-03-01T11:30:00Z");
    let segment = |sent: &str| {
        format!(
            r#"{{"writeKey":"{WRITE}",{sent}"batch":[{{"type":"track","event":"n","userId":"u","timestamp":"{happened}"}}]}}"#
        )
    };
    let snowplow = |stm: &str| {
        format!(r#"{{"schema":"s","data":[{{"e":"pv","aid":"{WRITE}","duid":"d","dtm":"{}"{stm}}}]}}"#, happened.0 / 1_000)
    };
    let second_before = happened.0 / Micros::SECOND * 1_000 - 1_000;
    let tp2 = "/com.snowplowanalytics.snowplow/tp2";
    for (what, target, body) in [
        ("no sentAt", "/v1/batch", segment("")),
        ("a sentAt from before", "/v1/batch", segment(r#""sentAt":"2026-02-15T11:30:00Z","#)),
        ("a sentAt that is none", "/v1/batch", segment(r#""sentAt":"yesterday","#)),
        ("no stm", tp2, snowplow("")),
        ("an stm a second before dtm", tp2, snowplow(&format!(r#","stm":"{second_before}""#))),
        ("a sentAt in transit", "/v1/batch", segment(r#""sentAt":"2026-03-01T11:56:00Z","#)),
    ] {
        let service = Service::start().await;
        assert_eq!(send(service.address(), "POST", target, &[], body.as_bytes()).await.status, 200, "{what}");
        let times: Vec<Micros> = service.log.events().iter().map(|event| event.event_time).collect();
        assert_eq!(times, [happened], "{what}");
    }
    // An hour that happens twice: the offset tells which one it is.
    let sender = Sender::of("native");
    let service = Service::start().await;
    let event = |text: &str| format!(r#"{{"type":"engagement","name":"n","user_id":"u","timestamp":"{text}"}}"#);
    let server = [("Authorization", "Bearer sk_test")];
    let texts = ["2026-03-01T12:30:00+02:00", "2026-03-01T12:30:00+01:00", "2026-03-01T00:30:00-11:30", "2026-03-01T11:59:60Z"];
    let body = sender.body(&texts.map(event));
    let answer = send(service.address(), "POST", "/v1/events", &server, body.as_bytes()).await;
    let found: Vec<Micros> = service.log.events().iter().map(|event| event.event_time).collect();
    let expected = [at("2026-03-01T10:30:00Z"), at("2026-03-01T11:30:00Z"), at("2026-03-01T12:00:00Z")];
    assert_eq!(found[..3], expected, "{answer:?}");
}

/// Collector's test 9: a key and a user at a hundred times what it may send. It is told to wait, and if it does, all of its events land in their
/// order; whoever sends beside it is refused nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardest_09_a_key_at_100_times_its_rate_waits_and_nobody_else_does() {
    const EVENTS: usize = 60;
    let service = Service::start().await;
    let address = service.address();
    // Ten events a second; it sends as fast as it can, one by one.
    let hot = tokio::spawn(async move {
        let (mut refused, mut sent) = (0, 0);
        let begun = Instant::now();
        let mut statuses = BTreeSet::new();
        while sent < EVENTS {
            let body = format!(
                r#"{{"type":"engagement","name":"n","event_id":"hot-{sent}","user_id":"hot","properties":{{"n":{sent}}}}}"#
            );
            let answer = send(address, "POST", &format!("/v1/events?key={FEW}"), &[], body.as_bytes()).await;
            statuses.insert(answer.status);
            match answer.status {
                200 => sent += 1,
                429 => {
                    refused += 1;
                    assert!(answer.header("retry-after").expect("says when").parse::<u64>().expect("seconds") >= 1);
                    assert_eq!(answer.code(), "rate_limited");
                }
                _ => panic!("{answer:?}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{sent} of {EVENTS} events landed");
        }
        (refused, statuses)
    });
    let mut others = 0;
    while !hot.is_finished() {
        let body = format!(
            r#"{{"type":"engagement","name":"n","event_id":"other-{others}","user_id":"other","properties":{{"n":{others}}}}}"#
        );
        for key in [WRITE, DEVICE] {
            assert_eq!(service.post_with(key, &body).await.native(), (1, 0, Vec::new()), "nobody else is refused");
        }
        others += 1;
    }
    let (refused, statuses) = hot.await.expect("no panic");
    assert_eq!(statuses, BTreeSet::from([200, 429]));
    assert!(refused > 100, "it was refused {refused} times, so it was never too fast");
    let of = |user: &str| -> Vec<String> {
        let events = service.log.events().into_iter().filter(|event| event.external_id.as_deref() == Some(user));
        events.map(|event| event.metadata.expect("its number").get().to_owned()).collect()
    };
    let expected: Vec<String> = (0..EVENTS).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(of("hot"), expected, "each once and in order");
    assert_eq!(of("other").len(), 2 * others);
    identity_holds(&service).await;
}

/// Each event of a request that can be read is counted as one thing.
pub(crate) async fn identity_holds(service: &Service) {
    let page = service.get("/metrics").await.body;
    let sum = |name: &str| -> u64 {
        let series = page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    };
    let parts = ["appended", "duplicate", "rejected", "dropped", "deferred"]
        .map(|part| sum(&format!("weir_collector_events_{part}_total")));
    let received = sum("weir_collector_events_received_total");
    assert_eq!(received, parts.iter().sum::<u64>(), "received; appended, duplicate, rejected, dropped, deferred: {parts:?}");
    assert!(received > 0);
}
