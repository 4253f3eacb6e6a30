//! Others' own clients, as their registries serve them, deliver through a running collector: nothing is lost or doubled, whatever
//! happens on the way, and an experiment has the same result by whichever it is sent.

pub(crate) mod install;
mod plan;
mod world;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use events::Micros;
use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::browser::{PERSONS_AGENT, open_for, serve};
use crate::harness::{Folder, Up, send, weir};
use crate::support::{Database, program, run};

use plan::{Call, Plan, Stored, USERS, USERS_MANY, What};
use world::{FAULTS, LIMIT, OTHERS, Proxy, World};

/// What runs a client's script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Python,
    Node,
    /// A page of another origin than the collector's, in headless Chromium.
    Browser,
}

/// What a client's documentation promises of an event's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    /// It is the one that the caller gives.
    Given,
    /// It is when the client was called.
    Called,
    /// None: the receipt stands for it.
    None,
}

/// What a client's documentation promises of an event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    /// It is the UUID that the caller gives.
    Given,
    /// It is any text that the caller gives, in the namespace of a dialect of the collector.
    Text(&'static str),
    /// It is the client's own affair.
    Own,
}

/// A client, and what it promises.
#[derive(Clone, Copy, Debug)]
struct Client {
    /// Its script in `clients/`.
    script: &'static str,
    /// What it is told beside address, key and plan.
    mode: Option<&'static str>,
    runs: Runs,
    /// What the addresses begin with to which it delivers.
    delivery: &'static [&'static str],
    time: Time,
    id: Id,
    /// The name under which its order is stored.
    order: &'static str,
    /// The name under which its other event is stored.
    other: &'static str,
    /// What has to stand before the key, so that it is one to the client, and after it.
    key_around: (&'static str, &'static str),
    /// The status by which the collector refuses its deliveries for a while, which it survives.
    overload: u16,
    /// What it promises of the time of events that only say who a user is; none if it sends no such events.
    identifies: Option<Time>,
    /// What it calls itself in an event's context, beside which and the properties nothing is stored of it; none if it adds properties of its own.
    library: Option<&'static str>,
    /// The worlds in which it loses events by its own doing, and why. What it loses it sent once, and never again.
    loses: &'static [(World, &'static str)],
}

impl std::fmt::Display for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}{}{}", self.script, if self.mode.is_some() { " " } else { "" }, self.mode.unwrap_or_default())
    }
}

/// What most promise.
const USUAL: Client = Client {
    script: "",
    mode: None,
    runs: Runs::Python,
    delivery: &["/v1/batch"],
    time: Time::Given,
    id: Id::Own,
    order: "Order Completed",
    other: "Video Watched",
    key_around: ("", ""),
    overload: 503,
    identifies: None,
    library: None,
    loses: &[],
};

/// Why the plugins of GrowthBook and the client of Jitsu lose what was not taken: they have no queue of what failed. Where the collector took a
/// request, and only its answer was lost, they do no harm: nothing comes twice. That is as well with GrowthBook, whose events have neither id
/// nor time, so that a repetition could not be told.
const ONCE: &str = "it sends a request once, whatever the answer";
/// Events that are refused or lost on their way, with an answer or without.
const LOST_ONCE: [(World, &str); 4] =
    [(World::Answers(429), ONCE), (World::Answers(503), ONCE), (World::CutBefore, ONCE), (World::OverLimit, ONCE)];

const SEGMENT: Client = Client { overload: 429, id: Id::Text("segment"), identifies: Some(Time::Given), ..USUAL };

#[tokio::test(flavor = "multi_thread")]
async fn segment_for_python() {
    check(Client { script: "segment_python.py", library: Some("analytics-python"), ..SEGMENT }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segment_for_node() {
    let client = Client { script: "segment_node.mjs", runs: Runs::Node, ..SEGMENT };
    check(Client { library: Some("@segment/analytics-node"), ..client }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rudderstack_for_python() {
    check(Client { script: "rudderstack_python.py", ..SEGMENT }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rudderstack_for_node() {
    check(Client { script: "rudderstack_node.mjs", runs: Runs::Node, ..SEGMENT }).await;
}

const POSTHOG: Client = Client { delivery: &["/batch/"], id: Id::Given, ..USUAL };

#[tokio::test(flavor = "multi_thread")]
async fn posthog_for_python_v0() {
    check(Client { script: "posthog_python.py", mode: Some("v0"), identifies: Some(Time::Given), ..POSTHOG }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posthog_for_python_v1() {
    let client = Client { script: "posthog_python.py", mode: Some("v1"), identifies: Some(Time::Given), ..POSTHOG };
    check(Client { delivery: &["/i/v1/analytics/events"], ..client }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posthog_for_node() {
    check(Client { script: "posthog_node.mjs", runs: Runs::Node, ..POSTHOG }).await;
}

const SNOWPLOW: Client =
    Client { delivery: &["/com.snowplowanalytics.snowplow/tp2"], order: "order_completed", other: "video_watched", ..USUAL };

#[tokio::test(flavor = "multi_thread")]
async fn snowplow_for_python() {
    check(Client { script: "snowplow_python.py", ..SNOWPLOW }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snowplow_for_node() {
    check(Client { script: "snowplow_node.mjs", runs: Runs::Node, ..SNOWPLOW }).await;
}

const GROWTHBOOK: Client = Client { delivery: &["/track"], time: Time::None, loses: &LOST_ONCE, ..USUAL };

#[tokio::test(flavor = "multi_thread")]
async fn growthbook_for_python() {
    check(Client { script: "growthbook_python.py", ..GROWTHBOOK }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn growthbook_for_node() {
    check(Client { script: "growthbook_node.mjs", runs: Runs::Node, ..GROWTHBOOK }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statsig_for_node() {
    let statsig = Client { delivery: &["/v1/log_event"], time: Time::Called, key_around: ("secret-", ""), ..USUAL };
    check(Client { script: "statsig_node.mjs", runs: Runs::Node, ..statsig }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segment_in_a_browser() {
    let client = Client { script: "segment_browser.mjs", mode: Some("standard"), runs: Runs::Browser, ..SEGMENT };
    check(Client { delivery: &["/v1/i", "/v1/t"], ..client }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segment_in_a_browser_in_batches() {
    let client = Client { script: "segment_browser.mjs", mode: Some("batching"), runs: Runs::Browser, ..SEGMENT };
    check(Client { delivery: &["/v1/b"], ..client }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posthog_in_a_browser() {
    let client = Client { script: "posthog_browser.mjs", runs: Runs::Browser, delivery: &["/e/"], ..POSTHOG };
    // The collector never answers 429 there, but 503, which it keeps its events on.
    check(Client { identifies: Some(Time::Called), loses: &[(World::Answers(429), "it drops what is answered 4xx")], ..client })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snowplow_in_a_browser() {
    check(Client { script: "snowplow_browser.mjs", mode: Some("post"), runs: Runs::Browser, ..SNOWPLOW }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snowplow_in_a_browser_by_get() {
    let client = Client { script: "snowplow_browser.mjs", mode: Some("get"), runs: Runs::Browser, ..SNOWPLOW };
    check(Client { delivery: &["/i"], ..client }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jitsu_in_a_browser() {
    let jitsu =
        Client { script: "jitsu_browser.mjs", runs: Runs::Browser, delivery: &["/api/s/"], key_around: ("", ":any"), ..USUAL };
    check(Client { time: Time::Called, identifies: Some(Time::Called), loses: &LOST_ONCE, ..jitsu }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn growthbook_in_a_browser() {
    check(Client { script: "growthbook_browser.mjs", runs: Runs::Browser, ..GROWTHBOOK }).await;
}

/// Lets a client deliver in all worlds at the same time.
async fn check(client: Client) {
    let Some(starts) = starts(client).await else {
        eprintln!("skipped: {client}: what it runs in, or its package from the registry, cannot be had here");
        return;
    };
    let folder = Folder::new();
    let up = Up::start(&folder);
    let key = limited_key(&up, &folder).await;
    let mut deliveries = JoinSet::new();
    for world in World::ALL {
        let is_many = world == World::Right && client.runs != Runs::Browser;
        let plan = Plan::of(world, if is_many { USERS_MANY } else { USERS });
        let key = if world == World::OverLimit { &key } else { up.line("write_key") };
        let proxy = Proxy::before(up.line("collector"), key, world, client.delivery).await;
        let key = format!("{}{key}{}", client.key_around.0, client.key_around.1);
        let file = folder.path().join(format!("{world}.json"));
        std::fs::write(&file, plan.to_json().to_string()).expect("writes");
        let delivery = starts.deliver(client.mode, &proxy.url, &key, &file);
        deliveries.spawn(async move {
            let begun = Instant::now();
            delivery.await;
            eprintln!("{client} {world}: {:.1} s", begun.elapsed().as_secs_f64());
            (world, plan, proxy)
        });
    }
    let mut ended = deliveries.join_all().await;
    ended.sort_by_key(|(world, ..)| *world);
    let mut database = Database::connect(up.line("postgres")).await;
    let accepted: usize = ended.iter().map(|(_, _, proxy)| proxy.seen.lock().expect("nobody panicked").accepted).sum();
    let all = "SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints";
    database.until(all, (accepted + OTHERS) as i64, Duration::from_secs(30)).await;
    for table in ["dead_letters", "rejected_events", "rejected_counts"] {
        assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    let project: Uuid = database.text("SELECT id::text FROM projects WHERE name = 'default'").await.parse().expect("an id");
    let mut stored = plan::stored(&mut database).await;
    stored.retain(|event| event.user != "other");
    for (world, plan, proxy) in &ended {
        let found: Vec<Stored> = stored.extract_if(.., |event| event.user.starts_with(&plan.prefix())).collect();
        check_world(client, *world, plan, proxy, project, found);
        if loss(client, *world).is_none() {
            check_result(&up, plan).await;
        }
    }
    assert!(stored.is_empty(), "nobody sent these: {stored:?}");
}

/// How long a page is open by its own clock, which runs as fast as nothing happens: long enough for the back-off of all clients.
const BROWSED: Duration = Duration::from_secs(60);

/// A browser keeps a processor busy, since its clock does not let it wait.
static BROWSERS: Semaphore = Semaphore::const_new(2);

/// The longest that a client may take, its back-off and a busy machine included.
const DELIVERED_MAX: Duration = Duration::from_secs(120);

/// How a script is started.
enum Starts {
    /// A program with the script, and what stands between it and the collector's address.
    Program(PathBuf, Vec<PathBuf>),
    /// A page with the script, which is one with the client's own.
    Page(String),
}

/// Returns how a client is started; none where it cannot be had.
async fn starts(client: Client) -> Option<Starts> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sdk/clients").join(client.script);
    match client.runs {
        Runs::Python => Some(Starts::Program(install::python().await?, vec![script])),
        Runs::Node => {
            let (node, folder) = install::node().await?;
            Some(Starts::Program(node, vec![script, folder]))
        }
        Runs::Browser => {
            program("chromium")?;
            let (_, folder) = install::node().await?;
            let mut bundler = Command::new(folder.join("node_modules/.bin/esbuild"));
            bundler
                .arg(&script)
                .args(["--bundle", "--format=iife", "--target=es2021"])
                .env("NODE_PATH", folder.join("node_modules"));
            let ended = run(bundler, Duration::from_secs(60)).await;
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
            let script = String::from_utf8(ended.stdout).expect("UTF-8");
            Some(Starts::Page(script.replace("</script", "<\\/script")))
        }
    }
}

impl Starts {
    /// Lets the script make the calls of a plan; it has ended well when all of them are delivered, or given up.
    fn deliver(&self, mode: Option<&str>, url: &str, key: &str, plan: &Path) -> impl Future<Output = ()> + Send + use<> {
        let (command, page) = match self {
            Starts::Program(program, arguments) => {
                let mut command = Command::new(program);
                command.args(arguments).args(mode).args([url, key]).arg(plan);
                (Some(command), String::new())
            }
            Starts::Page(script) => {
                let plan = std::fs::read_to_string(plan).expect("a plan");
                let given = json!({"mode": mode, "url": url, "key": key});
                let script = format!("const given = {given}; given.plan = {plan};</script><script>{script}");
                (None, format!("<!doctype html><meta charset=utf-8><title>wait</title><body><script>{script}</script>"))
            }
        };
        async move {
            match command {
                Some(command) => {
                    let ended = run(command, DELIVERED_MAX).await;
                    let said = [&ended.stdout[..], &ended.stderr].map(String::from_utf8_lossy).concat();
                    assert!(ended.status.success(), "{said}");
                }
                None => {
                    let _turn = BROWSERS.acquire().await;
                    let profile = tempfile::tempdir().expect("a folder");
                    let shown = open_for(BROWSED, profile.path(), &serve(page), Some(PERSONS_AGENT)).await;
                    assert!(shown.contains("<title>done</title>"), "{}", &shown[..shown.floor_char_boundary(2_000)]);
                }
            }
        }
    }
}

/// Makes a key over whose limit each client gets, and waits until the collector knows it.
async fn limited_key(up: &Up, folder: &Folder) -> String {
    let limit = LIMIT.to_string();
    let create = ["admin", "key", "create", "--kind", "write", "--events-per-second", &limit, "--data"];
    let created = weir().args(create).arg(folder.path()).output().expect("weir runs");
    let printed = String::from_utf8(created.stdout).expect("UTF-8");
    let key = printed.trim().strip_prefix("write_key ").unwrap_or_else(|| panic!("{printed:?}")).to_owned();
    let url = format!("{}/validate", up.line("collector"));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, answer) = send(Method::POST, &url, &key, Some(json!({"events": []}))).await.expect("an answer");
        if status != 401 {
            return key;
        }
        assert!(Instant::now() < deadline, "the collector does not know the key: {status} {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns why a client loses events in a world, if it does.
fn loss(client: Client, world: World) -> Option<&'static str> {
    client.loses.iter().find(|(lossy, _)| *lossy == world).map(|(_, why)| *why)
}

/// Compares what is stored of a plan with it.
fn check_world(client: Client, world: World, plan: &Plan, proxy: &Proxy, project: Uuid, found: Vec<Stored>) {
    let seen = proxy.seen.lock().expect("nobody panicked");
    let place = format!("{client} {world}");
    assert!(seen.unanswered.is_empty(), "{place}: {:?}", seen.unanswered);
    match world {
        World::Right => assert_eq!((seen.faults, &seen.refused[..]), (0, &[][..]), "{place}"),
        World::OverLimit => {
            assert!(!seen.refused.is_empty(), "{place}: nothing was refused");
            assert!(seen.refused.iter().all(|status| *status == client.overload), "{place}: {:?}", seen.refused);
        }
        _ => assert_eq!((seen.faults, &seen.refused[..]), (FAULTS, &[][..]), "{place}"),
    }

    let calls: Vec<&Call> = plan.calls.iter().filter(|call| client.identifies.is_some() || call.what != What::Identify).collect();
    let whats: Vec<String> = calls.iter().map(|call| what(client, plan, call)).collect();
    let expected = plan::counts(calls.iter().zip(&whats).map(|(call, what)| (call.user.as_str(), what.as_str())));
    let counted = plan::counts(found.iter().map(|event| (event.user.as_str(), event.what.as_str())));
    if let Some(why) = loss(client, world) {
        // It is its own doing: it sent nothing again, and all that the collector said it has is stored, once.
        let again = seen.deliveries.values().filter(|times| **times > 1).count();
        assert_eq!(again, 0, "{place}: it does send again, though it is said of it: {why}");
        assert!(counted.len() < expected.len(), "{place}: it loses nothing, though it is said of it: {why}");
        assert_eq!(found.len(), seen.accepted, "{place}");
        assert!(counted.iter().all(|(event, count)| expected.get(event) == Some(count)), "{place}: {counted:#?}");
    } else {
        let differs = |(event, count): (&(&str, &str), &usize), other: &std::collections::BTreeMap<(&str, &str), usize>| {
            (other.get(event) != Some(count)).then(|| format!("{event:?} {count} times"))
        };
        let missing: Vec<String> = expected.iter().filter_map(|event| differs(event, &counted)).take(5).collect();
        let unknown: Vec<String> = counted.iter().filter_map(|event| differs(event, &expected)).take(5).collect();
        assert!(
            missing.is_empty() && unknown.is_empty(),
            "{place}: {missing:#?} were expected, found are {unknown:#?}; {:?}",
            seen.refused
        );
    }

    let now = Micros::now();
    for event in &found {
        let at = calls.iter().zip(&whats).position(|(call, what)| (&call.user, what) == (&event.user, &event.what));
        let call = calls[at.expect("it is one of them")];
        let user_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("weir:user:{project}:{}", call.user).as_bytes());
        assert_eq!(event.user_id, user_id, "{place}: {event:?}");
        let time = client.identifies.filter(|_| call.what == What::Identify).unwrap_or(client.time);
        let is_time_right = match time {
            Time::Given => !event.is_untimed && event.at == call.at,
            Time::Called => !event.is_untimed && event.at.0 >= plan.begun.0 - 1_000 && event.at <= now,
            Time::None => event.is_untimed,
        };
        assert!(is_time_right, "{place}: {event:?} of {call:?}");
        // What takes no time of the caller's takes no id either.
        match if time == Time::Given { client.id } else { Id::Own } {
            Id::Given => assert_eq!(event.id, call.id, "{place}: {event:?}"),
            Id::Text(dialect) => {
                let namespace = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("weir:event:{dialect}").as_bytes());
                let id = Uuid::new_v5(&namespace, format!("call {}", call.id).as_bytes());
                assert_eq!(event.id, id, "{place}: {event:?}");
            }
            Id::Own => {}
        }
        assert!(!event.is_bot, "{place}: {event:?}");
        assert!(plan::holds(&event.metadata, &call.properties()), "{place}: {event:?} of {call:?}");
        if let Some(library) = client.library {
            assert_eq!(event.metadata["context"]["library"]["name"], library, "{place}: {event:?}");
            let mut metadata = event.metadata.as_object().cloned().expect("it holds properties");
            metadata.retain(|key, _| key != "context" && key != "_metadata");
            assert_eq!(metadata, sent(plan, call), "{place}: {event:?} of {call:?}");
        }
    }
}

/// Returns what is to be stored of a call.
fn what(client: Client, plan: &Plan, call: &Call) -> String {
    match call.what {
        What::Identify => "identity identify".to_owned(),
        What::Exposure => format!("exposure {} {}", plan.experiment, call.variant()),
        What::Order => format!("conversion {} {} EUR", client.order, call.amount()),
        What::Other => format!("engagement {}", client.other),
    }
}

/// Returns the properties that Segment's clients are given for a call.
fn sent(plan: &Plan, call: &Call) -> Map<String, Value> {
    let mut properties = call.properties();
    let names = match call.what {
        What::Exposure => [("experiment_name", json!(plan.experiment)), ("variation_name", json!(call.variant()))],
        What::Order => [("revenue", json!(call.amount())), ("currency", json!("EUR"))],
        What::Identify | What::Other => return properties,
    };
    properties.extend(names.map(|(name, value)| (name.to_owned(), value)));
    properties
}

/// Compares the answer about the plan's experiment with its arithmetic, which is the same for all clients.
async fn check_result(up: &Up, plan: &Plan) {
    let experiment = plan.experiment.replace(' ', "%20");
    let url = format!("{}/v1/experiments/{experiment}/results?cap=off&cuped=off&analysis=fixed", up.line("query"));
    let (status, answer) = send(Method::GET, &url, up.line("read_token"), None).await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    let one = |list: &Value, member: &str, wanted: &Value| {
        let found = list.as_array().into_iter().flatten().find(|one| &one[member] == wanted);
        found.unwrap_or_else(|| panic!("no {wanted} in {list}")).clone()
    };
    let found = ["a", "b"].map(|variant| {
        let variant = one(&answer["variants"], "name", &json!(variant))["id"].clone();
        let arm = |metric: &str| one(&one(&answer["metrics"], "id", &json!(metric))["arms"], "variant_id", &variant);
        let (rate, value) = (arm("conversion_rate"), arm("value_per_user"));
        let sum = value["sum"].as_str().and_then(|sum| sum.parse::<f64>().ok());
        (rate["users"].as_i64(), rate["numerator"].as_i64(), sum)
    });
    let expected = plan.result().map(|(users, converted, sum)| (Some(users), Some(converted), Some(sum)));
    assert_eq!(found, expected, "{}", plan.experiment);
}
