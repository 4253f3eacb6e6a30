//! Prints how often each method calls an effect where there is none, under early looks, and how often and when where there is one.
//!
//! `cargo run --package statistics --example false_alarms -- [RUNS]`, 10,000 if not said.

use statistics::false_alarms::{Called, Calls, SCENARIOS, Scenario, simulate};

const ALPHA: f64 = 0.05;
const POWER: f64 = 0.8;

type Method = fn(&Calls) -> Called;
const METHODS: [(&str, Method); 6] = [
    ("fixed test, every day", |calls| calls.peeking),
    ("fixed test, once", |calls| calls.fixed),
    ("confidence sequence", |calls| calls.sequence),
    ("group sequential", |calls| calls.group_sequential),
    ("hybrid", |calls| calls.hybrid),
    ("sample ratio, sequential", |calls| calls.sample_ratio),
];

fn main() {
    let runs = std::env::args().nth(1).and_then(|runs| runs.parse().ok()).unwrap_or(10_000);
    let simulated = |effect: &dyn Fn(&Scenario) -> f64| -> Vec<Calls> {
        SCENARIOS.iter().map(|scenario| simulate(*scenario, effect(scenario), runs, ALPHA, 1)).collect()
    };
    let none = simulated(&|_| 0.0);
    let some = simulated(&|scenario| scenario.effect(ALPHA, POWER).unwrap_or(0.0));
    print(runs, &none, &some);
}

#[expect(clippy::print_stdout, reason = "the figures are what the example is for")]
fn print(runs: u64, none: &[Calls], some: &[Calls]) {
    println!("{runs} experiments each, looked at every day, alpha {ALPHA}");
    for (scenario, number) in SCENARIOS.iter().zip(1..) {
        let Scenario { days, enrolment, window, planned_on, users_per_day } = scenario;
        println!(
            "({number}) {days} looks, {users_per_day} users a day for {enrolment}, windows of {window}, planned size on day {planned_on}"
        );
    }
    let line = |name: &str, cells: &[String]| {
        println!("{name:<26}{}", cells.iter().map(|cell| format!("{cell:>12}")).collect::<String>());
    };
    let head: Vec<String> = (1..=SCENARIOS.len()).map(|number| format!("({number})")).collect();
    let part = |method: Method, calls: &[Calls]| -> Vec<String> {
        calls.iter().map(|calls| format!("{:.2} %", 100.0 * method(calls).part)).collect()
    };
    line("called without an effect", &head);
    for (name, method) in METHODS {
        line(name, &part(method, none));
    }
    line("called with one *", &head);
    let tests = &METHODS[1..5];
    for (name, method) in tests {
        line(name, &part(*method, some));
    }
    line("day of that, mean", &head);
    for (name, method) in tests {
        let day = |calls: &Calls| method(calls).day.map_or("-".to_owned(), |day| format!("{day:.1}"));
        line(name, &some.iter().map(day).collect::<Vec<_>>());
    }
    println!("* which one test of the planned users finds with {:.0} % when all outcomes are known", 100.0 * POWER);
}
