//! One world: two collectors, a log, three aggregators, a database, clients and readers, on one thread and a clock of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::clients::Clients;
use super::collector::Collector;
use super::faults::{Faults, Plan};
use super::judge::Judge;
use super::log::Log;
use super::model::Model;
use super::node::Node;
use super::reader;
use super::run::{Report, Run, Seen, broke, note};
use super::wire::{Weather, Wire};
use crate::config::Config;

const COLLECTORS: usize = 2;
const AGGREGATORS: u32 = 3;
const READERS: usize = 2;
/// When the faults are over, all is stored within this: what idles in a transaction is ended after a minute, a halted log partition is
/// looked at once a minute, and clients wait for up to half a minute for an answer.
const SETTLED_WITHIN: Duration = Duration::from_secs(200);
/// What is sent then is stored within this, though the connections of those who have nothing to store may just have died.
const PROBED_WITHIN: Duration = Duration::from_secs(2);

/// Runs the world of a seed, to its end.
pub(super) fn simulate(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without threads").block_on(async { World::new(seed).live().await })
}

struct World {
    run: Run,
    plan: Plan,
    judge: Judge,
    faults: Faults,
}

impl World {
    fn new(seed: u64) -> Self {
        let run = Run::new(seed);
        let plan = Plan::draw(&run);
        note!(run, "seed {seed}: {plan:?}");
        let judge = Judge::new(&run, plan.partitions);
        let log = Log::new(&run, &judge, plan.partitions);
        let model = Model::new(&run, &judge, plan.partitions);
        let to_postgres = Arc::new(Mutex::new(Weather::FAIR));
        let config = Config {
            workers: plan.workers,
            batch_events_max: plan.batch_events_max,
            batch_age_ms_max: plan.batch_age_ms_max,
            ..Config::new(([127, 0, 0, 1], 0).into(), String::new())
        };
        let collectors = (0..COLLECTORS).map(|number| Collector::new(&run, number, &log, plan.partitions)).collect();
        let node = |number| {
            let (model, to_postgres) = (model.clone(), Arc::clone(&to_postgres));
            Node::new(&run, number, &config, &log, move || Wire::new(&model, &to_postgres))
        };
        let nodes = (0..AGGREGATORS).map(node).collect();
        let faults = Faults { run: run.clone(), log, model, to_postgres, collectors, nodes };
        World { run, plan, judge, faults }
    }

    async fn live(self) -> Report {
        let Faults { collectors, nodes, model, .. } = &self.faults;
        let mut beside = JoinSet::new();
        beside.spawn(self.run.clone().give_turns());
        collectors.iter().for_each(|collector| collector.start());
        nodes.iter().for_each(|node| node.start());
        beside.spawn(model.clone().end_idle());
        (0..READERS).for_each(|_| drop(beside.spawn(reader::read(self.run.clone(), model.clone()))));
        let (over, is_over) = watch::channel(false);
        let clients = Clients { run: self.run.clone(), judge: self.judge.clone(), collectors: collectors.clone(), is_over };
        let mut sending = JoinSet::new();
        (0..self.plan.clients).for_each(|number| drop(sending.spawn(clients.clone().client(number))));

        let mut failing = self.faults.begin(&self.plan);
        for _ in 0..self.plan.seconds {
            sleep(Duration::from_secs(1)).await;
            if nodes.iter().any(|node| !node.halts().is_empty()) {
                self.run.saw(Seen::LogHalted);
            }
        }
        failing.shutdown().await;
        over.send_replace(true);
        self.faults.heal();
        if self.settles(sending).await {
            self.probe(&clients).await;
        }
        for node in nodes {
            if !node.stop().await {
                broke!(self.run, I19Shutdown, "an aggregator did not drain, although nothing is wrong");
            }
        }
        let held: Vec<_> = model.leases().into_iter().filter(|lease| lease.owner.is_some()).collect();
        if !held.is_empty() {
            broke!(self.run, I19Shutdown, "leases were not given back: {held:?}");
        }
        for collector in collectors {
            collector.stop().await;
        }
        model.look(|tables| self.judge.judge(tables));
        self.run.report()
    }

    /// Waits until every client has its answers, and all is stored; returns whether that comes in time.
    async fn settles(&self, mut sending: JoinSet<()>) -> bool {
        let Faults { collectors, nodes, model, .. } = &self.faults;
        let settled = timeout(SETTLED_WITHIN, async {
            while sending.join_next().await.is_some() {}
            let is_owned = || {
                let owners: Vec<_> = nodes.iter().map(|node| node.owner()).collect();
                let is_held = model.leases().iter().all(|lease| lease.owner.is_some() && owners.contains(&lease.owner));
                is_held && nodes.iter().all(|node| node.halts().is_empty())
            };
            let is_direct = || collectors.iter().all(|collector| collector.is_direct());
            while !is_owned() || !is_direct() || !model.look(|tables| self.judge.is_all_stored(tables)) {
                sleep(Duration::from_millis(500)).await;
            }
        });
        let is_settled = settled.await.is_ok();
        if !is_settled {
            let halts: Vec<_> = nodes.iter().map(|node| node.halts()).collect();
            let standings = model.look(|tables| tables.standings.clone());
            broke!(self.run, I17Liveness, "nothing is wrong, and not all is stored: {halts:?}, {standings:?}");
        }
        is_settled
    }

    /// Sends one more event, which is stored at once.
    async fn probe(&self, clients: &Clients) {
        let client = self.plan.clients;
        let probe = async {
            clients.deliver(client, &[clients.draft(client, 0)]).await;
            while !self.faults.model.look(|tables| self.judge.is_all_stored(tables)) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PROBED_WITHIN, probe).await.is_err() {
            broke!(self.run, I17Liveness, "a fresh event is not stored after {PROBED_WITHIN:?}");
        }
    }
}
