//! Tests of the spool, over a primary and a store that fail on demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;
use crate::Offset;
use crate::conformance;

mod behaviour;
mod crashes;
mod disk;
mod doubles;
mod handover;
mod histories;
mod outages;
mod panics;

use doubles::{PARTITIONS, Primary, Steps, Way};
use in_memory::{Disk, Kept};

/// Options with which a failure costs milliseconds.
fn quick() -> Options {
    Options {
        primary_wait_max: Duration::from_millis(25),
        drain_wait_max: Duration::from_millis(60),
        drain_records_max: 8,
        compare_every: Duration::from_millis(20),
        compare_wait_max: Duration::from_millis(100),
        retry_wait_min: Duration::from_millis(1),
        retry_wait_max: Duration::from_millis(8),
        handover_wait_max: Duration::from_millis(40),
        maintenance_every: Duration::from_millis(5),
        ..Options::default()
    }
}

/// A spool over doubles, and what both survive.
struct World {
    primary: Primary,
    kept: Kept,
    steps: Steps,
    options: Options,
}

impl World {
    fn new() -> Self {
        World::crashing(Steps::default())
    }

    fn crashing(steps: Steps) -> Self {
        World { primary: Primary::new(steps.clone()), kept: Kept::new(PARTITIONS), steps, options: quick() }
    }

    /// The same logs in the next process.
    fn restarted(&self, steps: Steps) -> Self {
        let primary = Primary::over(self.primary.log.clone(), steps.clone());
        World { primary, kept: self.kept.clone(), steps, options: self.options.clone() }
    }

    fn open(&self) -> Spool {
        let comparing = self.primary.clone();
        let compare = move |agreed| {
            let found = comparing.compare(agreed);
            async move { found }
        };
        let (primary, options) = (Arc::new(self.primary.clone()), self.options.clone());
        self.kept.open(Arc::new(self.steps.clone()), primary, Arc::new(compare), options).expect("opens")
    }

    /// A spool that has found its primary.
    async fn open_direct(&self) -> Spool {
        let spool = self.open();
        spool.first_comparison().await;
        assert_eq!(spool.stats().state, State::Direct);
        spool
    }

    async fn contents(&self) -> Vec<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        for partition in 0..PARTITIONS {
            let records = conformance::read_to_end(&self.primary.log, partition, 0).await;
            found.push(records.into_iter().map(|(_, bytes)| bytes).collect());
        }
        found
    }
}

/// The user and the number of a record that [`conformance::record`] made.
fn name_of(bytes: &[u8]) -> (String, u64) {
    let event = events::wire::decode(bytes).expect("a record of ours");
    let number = event.metadata.as_ref().map(|object| object.get().to_owned()).expect("it has properties");
    let number = number.split([':', ',']).nth(1).and_then(|digits| digits.parse().ok()).expect("its first member is a number");
    (event.external_id.expect("its user has a name").into(), number)
}

/// What clients did: for each user, the numbers sent and those acknowledged, in order.
#[derive(Default)]
struct Ledger {
    sent: BTreeMap<String, u64>,
    acknowledged: BTreeMap<String, Vec<u64>>,
    /// Numbers whose append ended in doubt, or never ended.
    doubtful: BTreeSet<(String, u64)>,
}

impl Ledger {
    /// Makes the next record of each of these users.
    fn next(&mut self, users: &[usize]) -> (Vec<Record>, Vec<(String, u64)>) {
        let mut names = Vec::new();
        for user in users {
            let user = format!("user-{user}");
            let number = self.sent.entry(user.clone()).or_default();
            *number += 1;
            names.push((user, *number));
        }
        (names.iter().map(|(user, number)| conformance::record(user, *number, 0)).collect(), names)
    }

    /// Appends the next record of each of these users, and writes down how it ended.
    async fn append(&mut self, spool: &Spool, users: &[usize]) -> Result<Vec<Position>, AppendError> {
        let (records, names) = self.next(users);
        // Until it ends, as if it never did.
        self.doubtful.extend(names.iter().cloned());
        let appended = spool.append(records).await;
        self.settle(names, &appended);
        appended
    }

    fn settle(&mut self, names: Vec<(String, u64)>, appended: &Result<Vec<Position>, AppendError>) {
        match appended {
            Ok(positions) => {
                assert_eq!(positions.len(), names.len(), "one position for each record");
                for (user, number) in names {
                    self.doubtful.remove(&(user.clone(), number));
                    self.acknowledged.entry(user).or_default().push(number);
                }
            }
            Err(AppendError::Unavailable(_)) => names.iter().for_each(|name| {
                self.doubtful.remove(name);
            }),
            Err(_) => {}
        }
    }

    fn merge(&mut self, other: Ledger) {
        for (user, number) in other.sent {
            assert!(self.sent.insert(user, number).is_none(), "each user has one client");
        }
        self.acknowledged.extend(other.acknowledged);
        self.doubtful.extend(other.doubtful);
    }

    /// Nothing acknowledged is lost, each user's records first come in order, and nothing is there that was refused. Returns
    /// how many records are there more than once.
    fn check(&self, contents: &[Vec<Vec<u8>>], what: &str) -> usize {
        let mut first: HashMap<(String, u64), usize> = HashMap::new();
        let mut repeated = 0;
        for (partition, records) in contents.iter().enumerate() {
            for (place, bytes) in records.iter().enumerate() {
                let name = name_of(bytes);
                let lies = conformance::record(&name.0, 0, 0).bucket().log_partition(PARTITIONS) as usize;
                assert_eq!(lies, partition, "{what}: {name:?}");
                let known =
                    self.doubtful.contains(&name) || self.acknowledged.get(&name.0).is_some_and(|all| all.contains(&name.1));
                assert!(known, "{what}: {name:?} is there, and its client was told that it is not");
                match first.entry(name) {
                    std::collections::hash_map::Entry::Occupied(_) => repeated += 1,
                    std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert(place)),
                }
            }
        }
        for (user, numbers) in &self.acknowledged {
            let places: Vec<Option<&usize>> = numbers.iter().map(|number| first.get(&(user.clone(), *number))).collect();
            assert!(places.iter().all(Option::is_some), "{what}: {user}: acknowledged {numbers:?}, found at {places:?}");
            assert!(places.is_sorted(), "{what}: {user}: {numbers:?} came in another order: {places:?}");
        }
        repeated
    }
}

/// Waits for something that has to come; far longer than it takes.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until all is drained; far longer than it takes.
async fn drained(spool: &Spool) {
    let drained = tokio::time::timeout(Duration::from_secs(20), spool.drained()).await;
    assert!(drained.is_ok(), "the spool does not drain: {:?}", spool.stats());
}
