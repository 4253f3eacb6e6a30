//! Any sequence of operations and faults, against a list of what was acknowledged.

use proptest::prelude::*;

use super::*;

const PARTITIONS: u32 = 2;

#[derive(Clone, Debug)]
enum Op {
    Append { count: usize, bytes: usize },
    Read { partition: u32, place: f64, records_max: usize, bytes_max: usize },
    Release { partition: u32, place: f64 },
    Reopen,
    Kill,
    PowerCut,
    PowerFailsSoon { syncs: u64 },
    SyncFails,
    FolderSyncFails,
    DiskFull { room: u64 },
    Room,
    ShortWrites(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let place = 0.0..=1.0f64;
    prop_oneof![
        12 => (1..8usize, 0..1500usize).prop_map(|(count, bytes)| Op::Append { count, bytes }),
        4 => (0..PARTITIONS, place.clone(), 1..20usize, 1..5000usize)
            .prop_map(|(partition, place, records_max, bytes_max)| Op::Read { partition, place, records_max, bytes_max }),
        2 => (0..PARTITIONS, place).prop_map(|(partition, place)| Op::Release { partition, place }),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
        1 => Just(Op::PowerCut),
        1 => (0..12u64).prop_map(|syncs| Op::PowerFailsSoon { syncs }),
        1 => Just(Op::SyncFails),
        1 => Just(Op::FolderSyncFails),
        1 => (0..3000u64).prop_map(|room| Op::DiskFull { room }),
        2 => Just(Op::Room),
        1 => any::<bool>().prop_map(Op::ShortWrites),
    ]
}

/// One log partition as it must be.
#[derive(Default)]
struct Model {
    /// All records ever acknowledged or read, by offset; those below the log's start too.
    records: Vec<Bytes>,
    /// Records whose append ended in doubt.
    doubtful: Vec<Bytes>,
    released: Offset,
}

struct World {
    disk: SimulatedDisk,
    log: Option<EmbeddedLog>,
    models: Vec<Model>,
    options: Options,
    appended: u64,
}

impl World {
    fn new(seed: u64, file_bytes_max: u64) -> Self {
        let options = Options { partitions: Some(PARTITIONS), file_bytes_max, bytes_max: 64 * 1024, ..Options::default() };
        let models = (0..PARTITIONS).map(|_| Model::default()).collect();
        World { disk: SimulatedDisk::new(seed), log: None, models, options, appended: 0 }
    }

    fn log(&self) -> EmbeddedLog {
        self.log.clone().expect("it is open between operations")
    }

    /// Opens the log on another disk and compares all of it with the model.
    async fn open(&mut self, disk: SimulatedDisk) {
        self.log = None;
        // A disk that is full cannot be opened in every state; that a log says so is tested elsewhere.
        disk.set(|faults| *faults = Default::default());
        self.disk = disk;
        let log = EmbeddedLog::open_on(Arc::new(self.disk.clone()), folder(), self.options.clone()).expect("opens");
        assert_eq!(log.stats().corrupt_ranges, 0, "no fault here damages acknowledged records");
        self.log = Some(log);
        for partition in 0..PARTITIONS {
            self.compare(partition).await;
        }
    }

    /// Everything acknowledged is there; what more there is was appended in doubt, and counts from now on.
    async fn compare(&mut self, partition: u32) {
        let log = self.log();
        let Range { start, end } = log.offsets(partition).await.expect("offsets");
        let model = &mut self.models[partition as usize];
        assert!(
            end >= model.records.len() as u64,
            "log partition {partition}: {} acknowledged, the end is {end}",
            model.records.len()
        );
        assert!(start <= model.released.saturating_sub(1), "log partition {partition}: {start} is above what was released");
        let found = contents(&log, partition).await;
        assert_eq!(found.damaged, []);
        assert_eq!(found.records.len() as u64, end - start);
        for (offset, bytes) in found.records {
            match model.records.get(offset as usize) {
                Some(expected) => assert_eq!(&bytes, expected, "log partition {partition}, record {offset}"),
                None => {
                    let place = model.doubtful.iter().position(|doubtful| *doubtful == bytes);
                    model.doubtful.remove(place.expect("only what was appended can be read"));
                    model.records.push(bytes);
                }
            }
        }
    }

    async fn append(&mut self, count: usize, bytes: usize) {
        let numbers = self.appended..self.appended + count as u64;
        self.appended += count as u64;
        let batch: Vec<Record> = numbers.map(|number| record(number, bytes)).collect();
        let log = self.log();
        let result = log.append(batch.clone()).await;
        let of = |record: &Record| record.bucket().log_partition(PARTITIONS) as usize;
        match result {
            Ok(positions) => {
                for (record, position) in batch.iter().zip(positions) {
                    let model = &mut self.models[of(record)];
                    assert_eq!((position.partition as usize, position.offset), (of(record), Some(model.records.len() as u64)));
                    model.records.push(record.bytes().clone());
                }
            }
            Err(AppendError::Unavailable(_)) => {}
            Err(AppendError::Unknown(_) | AppendError::Stopped(_)) => {
                for record in &batch {
                    self.models[of(record)].doubtful.push(record.bytes().clone());
                }
            }
        }
        if self.disk.is_off() {
            let disk = self.disk.after_power_cut();
            self.open(disk).await;
        } else {
            for partition in 0..PARTITIONS {
                self.compare(partition).await;
            }
            if matches!(log.ready(), Err(AppendError::Stopped(_))) {
                drop(log);
                let disk = self.disk.after_kill();
                self.open(disk).await;
            }
        }
    }

    async fn read(&self, partition: u32, place: f64, records_max: usize, bytes_max: usize) {
        let log = self.log();
        let Range { start, end } = log.offsets(partition).await.expect("offsets");
        let from = start + ((end - start) as f64 * place) as u64;
        let found =
            log.read(partition, from, ReadBound { records_max, bytes_max, wait_max: Duration::ZERO }).await.expect("reads");
        assert_eq!(found.is_empty(), from == end);
        assert!(found.len() <= records_max);
        assert!(found.len() <= 1 || found.iter().map(|record| record.bytes.len()).sum::<usize>() <= bytes_max);
        for (offset, record) in (from..).zip(found) {
            let expected = &self.models[partition as usize].records[offset as usize];
            assert_eq!((record.offset, &record.bytes), (offset, expected));
        }
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Append { count, bytes } => self.append(count, bytes).await,
            Op::Read { partition, place, records_max, bytes_max } => {
                if !self.disk.is_off() {
                    self.read(partition, place, records_max, bytes_max).await;
                }
            }
            Op::Release { partition, place } => {
                let model = &mut self.models[partition as usize];
                let offset = (model.records.len() as f64 * place) as u64;
                model.released = model.released.max(offset);
                self.log().release(partition, offset).await;
            }
            Op::Reopen => {
                self.log = None;
                let disk = self.disk.clone();
                let disk = if disk.is_off() { disk.after_power_cut() } else { disk };
                self.open(disk).await;
            }
            Op::Kill => {
                let disk = self.disk.after_kill();
                self.open(disk).await;
            }
            Op::PowerCut => {
                let disk = self.disk.after_power_cut();
                self.open(disk).await;
            }
            Op::PowerFailsSoon { syncs } => self.disk.set(|faults| faults.power_fails_after_syncs = Some(syncs)),
            Op::SyncFails => self.disk.set(|faults| faults.failing_syncs = 1),
            Op::FolderSyncFails => self.disk.set(|faults| faults.failing_folder_syncs = 1),
            Op::DiskFull { room } => {
                let used = self.disk.used();
                self.disk.set(|faults| faults.capacity = Some(used + room));
            }
            Op::Room => self.disk.set(|faults| faults.capacity = None),
            Op::ShortWrites(short) => self.disk.set(|faults| faults.short_writes = short),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_what_was_acknowledged(
        seed in any::<u64>(),
        file_bytes_max in prop_oneof![Just(1u64), Just(2048), Just(8192), Just(1 << 20)],
        ops in prop::collection::vec(op(), 1..80),
    ) {
        runtime().block_on(async {
            let mut world = World::new(seed, file_bytes_max);
            let disk = world.disk.clone();
            world.open(disk).await;
            for op in ops {
                world.apply(op).await;
            }
            world.apply(Op::PowerCut).await;
        });
    }
}
