//! What Prometheus would have read from the services before, during and after something, and which alerts it fires then.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::support::run;

/// The rules that the README explains.
pub(super) const ALERT_RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/alerts.yml");
/// How long each part of a story lasts for Prometheus, in minutes: longer than any rule looks back and waits together.
const PART_MINUTES: usize = 40;

/// A service by the name of its job, and its URL.
pub(super) type Job<'a> = (&'a str, &'a str);
/// The values of series at one time.
type Scrape = BTreeMap<String, f64>;

/// Values of the services' pages: before something, twice while it lasts, and after it.
pub(super) struct Story {
    before: Scrape,
    during: Vec<Scrape>,
    after: Scrape,
}

impl Story {
    /// Reads the pages before anything is wrong.
    pub(super) async fn begin(jobs: &[Job<'_>]) -> Self {
        Story { before: scrape(jobs).await, during: Vec::new(), after: Scrape::new() }
    }

    /// Reads them while it is. What has grown from the first of two readings to the second goes on growing as fast in each minute.
    pub(super) async fn during(&mut self, jobs: &[Job<'_>]) {
        self.during.push(scrape(jobs).await);
    }

    /// Reads them when all is well again.
    pub(super) async fn end(mut self, jobs: &[Job<'_>]) -> Self {
        self.after = scrape(jobs).await;
        self
    }

    /// Has Prometheus' tool evaluate the rules: nothing fires before, these alerts and no others fire while it lasts, nothing is left.
    pub(super) async fn check(self, expected: &[&str]) {
        let [first, second] = &self.during[..] else { panic!("{} readings; two were expected", self.during.len()) };
        let names: BTreeSet<&String> = [&self.before, first, second, &self.after].into_iter().flat_map(BTreeMap::keys).collect();
        let value = |value: Option<f64>| value.map_or("_".to_owned(), |value| value.to_string());
        let series = names.into_iter().map(|name| {
            let (first, second) = (first.get(name).copied(), second.get(name).copied());
            let growth = first.zip(second).map_or(0.0, |(first, second)| (second - first).max(0.0));
            let during = (0..PART_MINUTES).map(|minute| match minute {
                0 => value(first),
                _ => value(second.map(|second| second + growth * (minute - 1) as f64)),
            });
            let constant = |scrape: &Scrape| vec![value(scrape.get(name).copied()); PART_MINUTES];
            let values: Vec<String> = constant(&self.before).into_iter().chain(during).chain(constant(&self.after)).collect();
            json!({"series": name, "values": values.join(" ")})
        });
        let firing = |query: &str, minute: usize, alerts: &[&str]| {
            let samples: Vec<_> =
                alerts.iter().map(|alert| json!({"labels": format!("{{alertname=\"{alert}\"}}"), "value": 1})).collect();
            json!({"expr": format!("group by (alertname) ({query})"), "eval_time": format!("{minute}m"), "exp_samples": samples})
        };
        let now = "ALERTS{alertstate=\"firing\"}";
        let meanwhile = format!("max_over_time({now}[{PART_MINUTES}m])");
        let expressions = [
            firing(&format!("max_over_time({now}[{PART_MINUTES}m])"), PART_MINUTES - 1, &[]),
            firing(&meanwhile, 2 * PART_MINUTES - 1, expected),
            firing(now, 3 * PART_MINUTES - 1, &[]),
        ];
        let tests = json!({
            "rule_files": [ALERT_RULES], "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": series.collect::<Vec<_>>(), "promql_expr_test": expressions}],
        });
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tests.json");
        std::fs::write(&file, tests.to_string()).expect("writes"); // JSON is YAML
        let mut promtool = Command::new("promtool");
        promtool.args(["test", "rules"]).arg(&file);
        let ended = run(promtool, Duration::from_secs(60)).await;
        let said = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(ended.status.success(), "{said}\nbefore {:?}\nduring {:?}\nafter {:?}", self.before, self.during, self.after);
    }
}

/// Reads the pages of services. One that does not answer is down, which Prometheus notes as `up`.
async fn scrape(jobs: &[Job<'_>]) -> Scrape {
    let mut values = Scrape::new();
    for (job, url) in jobs {
        let page = page_of(url).await;
        let labels = format!("job=\"{job}\",instance=\"{job}\"");
        values.insert(format!("up{{{labels}}}"), if page.is_some() { 1.0 } else { 0.0 });
        for line in page.unwrap_or_default().lines().filter(|line| line.starts_with("weir_")) {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            let series = match series.strip_suffix('}') {
                Some(series) => format!("{series},{labels}}}"),
                None => format!("{series}{{{labels}}}"),
            };
            values.insert(series, value.parse().expect("a number"));
        }
    }
    values
}

async fn page_of(url: &str) -> Option<String> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let asked = client.get(format!("{url}/metrics").parse().expect("a URL"));
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await.ok()?.ok()?;
    let bytes = answer.into_body().collect().await.ok()?.to_bytes();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
