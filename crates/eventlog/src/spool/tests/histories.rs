//! Any sequence of appends and faults, against a ledger of what was acknowledged.

use proptest::prelude::*;

use super::*;

const USERS: usize = 9;

#[derive(Clone, Debug)]
enum Op {
    /// Appends of several clients at the same time, each with its own users.
    Append(Vec<Vec<usize>>),
    /// A client goes away while it waits.
    GoneClient(Vec<usize>),
    Primary(Way),
    NextCall(Way),
    Store(Disk),
    Wait(u64),
    Drained,
    Restart,
    Kill,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        5 => Just(Way::Works),
        3 => Just(Way::Unavailable),
        1 => (0..=4usize).prop_map(Way::Unknown),
        1 => Just(Way::Hangs),
        1 => (0..40u64).prop_map(|millis| Way::Late(Duration::from_millis(millis))),
        1 => (0..40u64).prop_map(|millis| Way::Slow(Duration::from_millis(millis))),
        1 => Just(Way::Stopped),
    ]
}

/// Users of up to three clients; each user has one client, so that what one client did in order has an order.
fn clients() -> impl Strategy<Value = Vec<Vec<usize>>> {
    prop::collection::vec(prop::collection::vec(0..USERS / 3, 1..5), 1..4).prop_map(|clients| {
        let own = |(client, users): (usize, Vec<usize>)| users.into_iter().map(|user| user * 3 + client).collect();
        clients.into_iter().enumerate().map(own).collect()
    })
}

fn op() -> impl Strategy<Value = Op> {
    let disk = prop_oneof![
        4 => Just(Disk::Works),
        1 => (0..20u64).prop_map(|millis| Disk::Slow(Duration::from_millis(millis))),
        1 => Just(Disk::Full),
        1 => any::<bool>().prop_map(|stored| Disk::Unknown { stored }),
        1 => Just(Disk::Stopped),
    ];
    prop_oneof![
        14 => clients().prop_map(Op::Append),
        2 => prop::collection::vec(0..USERS, 1..5).prop_map(Op::GoneClient),
        3 => way().prop_map(Op::Primary),
        3 => way().prop_map(Op::NextCall),
        1 => disk.prop_map(Op::Store),
        4 => (0..12u64).prop_map(Op::Wait),
        1 => Just(Op::Drained),
        1 => Just(Op::Restart),
        1 => Just(Op::Kill),
    ]
}

/// One history, and what it came to.
struct History {
    world: World,
    spool: Spool,
    ledger: Ledger,
    /// Something happened after which records may be there twice.
    doubt: bool,
}

impl History {
    async fn append(&mut self, clients: Vec<Vec<usize>>) {
        let mut batches = Vec::new();
        for users in &clients {
            let (records, names) = self.ledger.next(users);
            self.ledger.doubtful.extend(names.iter().cloned());
            batches.push((records, names));
        }
        let spool = &self.spool;
        let appends = batches.into_iter().map(|(records, names)| async { (spool.append(records).await, names) });
        // Polled in turn, so that all of them are on their way at the same time.
        let mut waiting: Vec<_> = appends.map(Box::pin).collect();
        let mut ended = Vec::new();
        std::future::poll_fn(|context| {
            waiting.retain_mut(|append| match append.as_mut().poll(context) {
                std::task::Poll::Ready(done) => {
                    ended.push(done);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        drop(waiting);
        for (appended, names) in ended {
            self.ledger.settle(names, &appended);
        }
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Append(clients) => self.append(clients).await,
            Op::GoneClient(users) => {
                let (records, names) = self.ledger.next(&users);
                self.ledger.doubtful.extend(names);
                // Between no time and that of a direct append.
                let gone = tokio::time::timeout(Duration::from_micros(300), self.spool.append(records)).await;
                drop(gone);
            }
            Op::Primary(way) => {
                self.note_doubt(way);
                self.world.primary.set(way);
            }
            Op::NextCall(way) => {
                self.note_doubt(way);
                self.world.primary.push(way);
            }
            Op::Store(disk) => {
                // The client sends again what ended in doubt, and here it never does; only the process's end repeats.
                self.world.kept.set(disk);
            }
            Op::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Op::Drained => self.heal().await,
            Op::Restart => {
                self.spool.stop().await;
                // What was on its way when it stopped was perhaps stored.
                self.restart(true);
            }
            Op::Kill => self.restart(true),
        }
    }

    fn note_doubt(&mut self, way: Way) {
        self.doubt |= !matches!(way, Way::Works | Way::Unavailable);
    }

    fn restart(&mut self, doubt: bool) {
        self.doubt |= doubt;
        let world = self.world.restarted(Steps::default());
        self.spool = world.open();
        self.world = world;
    }

    /// Lets everything work, and compares all there is with the ledger.
    async fn heal(&mut self) {
        self.world.primary.set(Way::Works);
        self.world.kept.set(Disk::Works);
        drained(&self.spool).await;
        // What was sent late has come by then.
        tokio::time::sleep(Duration::from_millis(if self.doubt { 45 } else { 0 })).await;
        drained(&self.spool).await;
        let repeated = self.ledger.check(&self.world.contents().await, "healed");
        assert!(self.doubt || repeated == 0, "{repeated} records are there twice, and nothing was in doubt");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_what_was_acknowledged_in_order(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let world = World::new();
            let spool = world.open();
            let mut history = History { world, spool, ledger: Ledger::default(), doubt: false };
            for op in ops {
                history.apply(op).await;
            }
            history.heal().await;
        });
    }
}
