//! The disk fails: at each sync, with errors, for lack of room.

use std::collections::HashMap;

use super::*;

/// Records that were acknowledged, by offset, in a log with one log partition; `tried` are those that may be there.
#[derive(Default)]
struct Ledger {
    stored: HashMap<Offset, Bytes>,
    tried: Vec<Bytes>,
    released: Offset,
}

impl Ledger {
    async fn append(&mut self, log: &EmbeddedLog, batch: Vec<Record>) -> Result<(), AppendError> {
        match log.append(batch.clone()).await {
            Ok(positions) => {
                for (record, position) in batch.iter().zip(positions) {
                    let offset = position.offset.expect("this log gives offsets");
                    let before = self.stored.insert(offset, record.bytes().clone());
                    assert!(before.is_none(), "offset {offset} is given twice");
                }
                Ok(())
            }
            Err(error) => {
                if !matches!(error, AppendError::Unavailable(_)) {
                    self.tried.extend(batch.iter().map(|record| record.bytes().clone()));
                }
                Err(error)
            }
        }
    }

    /// All that was acknowledged is there, and nothing that was never appended.
    async fn check(&self, log: &EmbeddedLog, what: &str) {
        let found = contents(log, 0).await;
        assert_eq!(found.damaged, [], "{what}");
        let start = log.offsets(0).await.expect("offsets").start;
        assert!(start <= self.released.saturating_sub(1), "{what}: starts at {start}");
        for (offset, bytes) in &found.records {
            let known = self.stored.get(offset).map_or_else(|| self.tried.contains(bytes), |stored| stored == bytes);
            assert!(known, "{what}: record {offset} was never appended there");
        }
        for offset in self.stored.keys().filter(|offset| **offset >= start) {
            assert!(*offset < found.end, "{what}: the acknowledged record {offset} is gone, the end is {}", found.end);
        }
    }
}

/// A life: opens, appends over several files, releases.
async fn live(disk: &SimulatedDisk, ledger: &mut Ledger) {
    let Ok(log) = open_one(disk, 2048) else { return };
    for number in 0..12 {
        let batch = (0..1 + number % 3).map(|n| record(number * 10 + n, (number * 83 % 300) as usize)).collect();
        if ledger.append(&log, batch).await.is_err() && disk.is_off() {
            return;
        }
        if number % 4 == 3 {
            ledger.released = ledger.stored.len() as u64 / 2;
            log.release(0, ledger.released).await;
        }
    }
}

#[test]
fn a_power_cut_at_any_sync_loses_nothing_acknowledged() {
    runtime().block_on(async {
        let mut seen_torn = 0;
        for seed in 0..20 {
            for syncs in 0.. {
                let disk = SimulatedDisk::new(seed * 1000 + syncs + 1);
                disk.set(|faults| faults.power_fails_after_syncs = Some(syncs));
                let mut ledger = Ledger::default();
                live(&disk, &mut ledger).await;
                let survived = !disk.is_off();
                let what = format!("seed {seed}, {syncs} syncs");
                let disk = disk.after_power_cut();
                let log = open_one(&disk, 2048).unwrap_or_else(|error| panic!("{what}: {error}"));
                seen_torn += log.stats().torn_tails;
                assert_eq!(log.stats().corrupt_ranges, 0, "{what}: a torn write is no damage");
                ledger.check(&log, &what).await;
                // What can be read now stays, so from here on it counts as acknowledged.
                ledger.stored.extend(contents(&log, 0).await.records);
                ledger.append(&log, vec![record(999, 50)]).await.expect("appends");
                ledger.check(&log, &what).await;
                drop(log);
                let log = open_one(&disk.after_power_cut(), 2048).expect("opens");
                ledger.check(&log, &format!("{what}, cut again")).await;
                if survived {
                    break;
                }
            }
        }
        assert!(seen_torn > 20, "only {seen_torn} torn writes: the test tests nothing");
    });
}

#[test]
fn a_power_cut_at_any_sync_of_recovery_changes_nothing() {
    runtime().block_on(async {
        for seed in 0..40 {
            let disk = SimulatedDisk::new(seed + 1);
            let mut ledger = Ledger::default();
            disk.set(|faults| faults.power_fails_after_syncs = Some(10 + seed % 7));
            live(&disk, &mut ledger).await;
            let torn = disk.after_power_cut();
            for syncs in 0..10 {
                let disk = torn.with_contents(Path::new("/log/header"), torn.contents(Path::new("/log/header")));
                disk.set(|faults| faults.power_fails_after_syncs = Some(syncs));
                let opened = open_one(&disk, 2048).is_ok();
                let disk = disk.after_power_cut();
                let log = open_one(&disk, 2048).expect("opens");
                ledger.check(&log, &format!("seed {seed}, {syncs} syncs of recovery")).await;
                if opened {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_killed_process_loses_nothing_and_what_is_read_then_stays() {
    runtime().block_on(async {
        for seed in 0..40 {
            let disk = SimulatedDisk::new(seed + 1);
            disk.set(|faults| faults.power_fails_after_syncs = Some(8 + seed % 20));
            let mut ledger = Ledger::default();
            live(&disk, &mut ledger).await;
            let disk = disk.after_kill();
            let log = open_one(&disk, 2048).expect("opens");
            ledger.check(&log, "killed").await;
            let seen = contents(&log, 0).await;
            drop(log);
            let disk = disk.after_power_cut();
            let log = open_one(&disk, 2048).expect("opens");
            assert_eq!(contents(&log, 0).await, seen, "what was read after the kill is gone after the power cut");
        }
    });
}

#[test]
fn a_failed_sync_is_not_tried_again_and_the_log_goes_on_in_a_new_file() {
    runtime().block_on(async {
        for seed in 0..30 {
            let disk = SimulatedDisk::new(seed + 1);
            let log = open_one(&disk, 1 << 20).expect("opens");
            let mut ledger = Ledger::default();
            for number in 0..seed % 3 {
                ledger.append(&log, vec![record(number, 100)]).await.expect("appends");
            }
            disk.set(|faults| faults.failing_syncs = 1);
            let error = ledger.append(&log, vec![record(100, 700), record(101, 0)]).await.expect_err("the sync failed");
            assert!(matches!(&error, AppendError::Unknown(reason) if reason.contains("a sync failed")), "{error}");
            log.ready().expect("one failure is survived");
            for number in 200..203 {
                ledger.append(&log, vec![record(number, 300)]).await.expect("appends");
            }
            let offsets: Vec<Offset> = contents(&log, 0).await.records.iter().map(|(offset, _)| *offset).collect();
            assert_eq!(offsets, (0..seed % 3 + 3).collect::<Vec<_>>(), "dense");
            assert_eq!((log.stats().sync_failures, log.stats().files), (1, if seed % 3 == 0 { 1 } else { 2 }));
            ledger.check(&log, "before the cut").await;
            drop(log);
            let log = open_one(&disk.after_power_cut(), 1 << 20).expect("opens");
            ledger.check(&log, "after the cut").await;
            assert_eq!(log.stats().corrupt_ranges, 0);
        }
    });
}

#[test]
fn two_failed_syncs_in_a_row_stop_the_log() {
    runtime().block_on(async {
        // The second failure is that of the new file's header at 2, that of its first record when one sync between succeeds.
        let disk = SimulatedDisk::new(1);
        let log = open_one(&disk, 1 << 20).expect("opens");
        let mut ledger = Ledger::default();
        ledger.append(&log, vec![record(1, 0)]).await.expect("appends");
        disk.set(|faults| faults.failing_syncs = 2);
        let error = ledger.append(&log, vec![record(2, 0)]).await.expect_err("failed");
        assert!(matches!(error, AppendError::Unknown(_)), "{error}");
        let error = ledger.append(&log, vec![record(3, 0)]).await.expect_err("stopped");
        assert!(matches!(&error, AppendError::Stopped(reason) if reason.contains("two failures in a row")), "{error}");
        assert!(matches!(log.ready(), Err(AppendError::Stopped(_))));
        ledger.check(&log, "stopped, and still read").await;
        drop(log);
        let log = open_one(&disk.after_power_cut(), 1 << 20).expect("opens");
        ledger.check(&log, "opened again").await;

        let disk = SimulatedDisk::new(2);
        let log = open_one(&disk, 1 << 20).expect("opens");
        for expected_stop in [false, true] {
            disk.set(|faults| faults.failing_syncs = 1);
            let error = log.append(vec![record(1, 0)]).await.expect_err("failed");
            assert!(matches!(error, AppendError::Unknown(_)), "{error}");
            // The answer comes before the decision.
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(matches!(log.ready(), Err(AppendError::Stopped(_))), expected_stop);
        }
        let disk = SimulatedDisk::new(3);
        let log = open_one(&disk, 1 << 20).expect("opens");
        for number in 0..5 {
            disk.set(|faults| faults.failing_syncs = 1);
            log.append(vec![record(number, 0)]).await.expect_err("failed");
            log.append(vec![record(number, 0)]).await.expect("a success between the failures");
        }
        log.ready().expect("never two in a row");
    });
}

/// After a failed sync the system counts the pages as written: the next process reads them, and its sync takes nothing to
/// the disk, unless it writes them once more.
#[test]
fn what_a_failed_sync_left_readable_is_durable_before_it_is_read_again() {
    runtime().block_on(async {
        let mut readable = 0;
        for seed in 0..30 {
            let disk = SimulatedDisk::new(seed + 1);
            let log = open_one(&disk, 1 << 20).expect("opens");
            log.append(vec![record(0, 900)]).await.expect("appends");
            for number in 1..3 {
                disk.set(|faults| faults.failing_syncs = 1);
                log.append(vec![record(number * 10, 900), record(number * 10 + 1, 900)]).await.expect_err("the sync failed");
            }
            let disk = disk.after_kill();
            let log = open_one(&disk, 1 << 20).expect("opens");
            let seen = contents(&log, 0).await;
            readable += seen.records.len() - 1;
            drop(log);
            let log = open_one(&disk.after_power_cut(), 1 << 20).expect("opens");
            assert_eq!(contents(&log, 0).await, seen, "seed {seed}");
        }
        assert!(readable > 0, "nothing was left readable: the test tests nothing");
    });
}

/// A process that ends between a rename and the sync of the folder leaves a name that the next one must not rely on.
#[test]
fn the_name_of_a_file_is_durable_before_the_next_process_writes_to_it() {
    runtime().block_on(async {
        for seed in 0..30 {
            let disk = SimulatedDisk::new(seed + 1);
            let log = open_one(&disk, 4096).expect("opens");
            let mut ledger = Ledger::default();
            ledger.append(&log, vec![record(0, 100)]).await.expect("appends");
            disk.set(|faults| faults.failing_folder_syncs = 1);
            ledger.append(&log, vec![record(1, 6000)]).await.expect_err("no new file");
            let disk = disk.after_kill();
            let log = open_one(&disk, 4096).expect("opens");
            assert_eq!(log.stats().files, 2, "the name is seen");
            ledger.append(&log, vec![record(2, 100)]).await.expect("appends");
            drop(log);
            let log = open_one(&disk.after_power_cut(), 4096).expect("opens");
            ledger.check(&log, &format!("seed {seed}")).await;
        }
    });
}

/// The new file may be there after all, and then hides what the old one holds from its base on.
#[test]
fn a_rotation_that_failed_is_finished_before_anything_is_written() {
    runtime().block_on(async {
        for seed in 0..30 {
            let disk = SimulatedDisk::new(seed + 1);
            let log = open_one(&disk, 4096).expect("opens");
            let mut ledger = Ledger::default();
            ledger.append(&log, vec![record(0, 100)]).await.expect("appends");
            disk.set(|faults| faults.failing_folder_syncs = 1);
            let error = ledger.append(&log, vec![record(1, 6000)]).await.expect_err("no new file");
            assert!(
                matches!(&error, AppendError::Unavailable(reason) if reason.contains("a new log file cannot be made")),
                "{error}"
            );
            ledger.append(&log, vec![record(2, 100)]).await.expect("would have fitted into the old file");
            assert_eq!(log.stats().files, 2);
            ledger.check(&log, "before the cut").await;
            drop(log);
            let log = open_one(&disk.after_power_cut(), 4096).expect("opens");
            ledger.check(&log, &format!("seed {seed}, after the cut")).await;
            drop(log);

            let disk = SimulatedDisk::new(seed + 1);
            let log = open_one(&disk, 4096).expect("opens");
            ledger = Ledger::default();
            ledger.append(&log, vec![record(0, 100)]).await.expect("appends");
            disk.set(|faults| faults.failing_folder_syncs = 2);
            for _ in 0..2 {
                ledger.append(&log, vec![record(1, 6000)]).await.expect_err("no new file");
            }
            let error = ledger.append(&log, vec![record(2, 100)]).await.expect_err("stopped");
            assert!(matches!(error, AppendError::Stopped(_)), "{error}");
        }
    });
}

#[test]
fn a_full_disk_refuses_whole_appends_and_recovers() {
    runtime().block_on(async {
        for seed in 0..30 {
            let disk = SimulatedDisk::new(seed + 1);
            let log = open_one(&disk, 4096).expect("opens");
            disk.set(|faults| {
                faults.capacity = Some(10_000 + seed * 131);
                faults.short_writes = seed % 2 == 0;
            });
            let mut ledger = Ledger::default();
            let mut refused = 0;
            for number in 0..40 {
                if number == 30 {
                    let unready = log.ready().expect_err("full").to_string();
                    assert!(unready.contains("bytes are free on the disk"), "{unready}");
                    disk.set(|faults| faults.capacity = Some(10_000_000));
                }
                if number == 31 {
                    log.ready().expect("there is room again");
                }
                let end = log.offsets(0).await.expect("offsets").end;
                match ledger.append(&log, (0..3).map(|n| record(number * 10 + n, 200)).collect()).await {
                    Ok(()) => {}
                    Err(AppendError::Unavailable(_)) => {
                        refused += 1;
                        assert_eq!(log.offsets(0).await.expect("offsets").end, end, "none of the records is there");
                    }
                    Err(AppendError::Unknown(reason)) => {
                        // The batch was cut by a rotation: its first part is stored, and the text says so.
                        assert!(reason.contains("of 3 records are stored"), "{reason}");
                        ledger.stored.extend(contents(&log, 0).await.records);
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(number < 30 || refused > 5, "never full: the test tests nothing");
            }
            ledger.check(&log, "room again").await;
            assert!(log.offsets(0).await.expect("offsets").end >= 30);
            drop(log);
            let log = open_one(&disk.after_power_cut(), 4096).expect("opens");
            ledger.check(&log, "after the cut").await;
            assert_eq!(log.stats().torn_tails, 0, "what was refused was cut off durably");
        }
    });
}

/// Syncs fail as on a full disk, while the disk says that it has room: the log is not ready, says why, and is ready again with the first append that
/// it takes.
#[test]
fn a_disk_that_has_room_and_takes_nothing_is_not_ready() {
    runtime().block_on(async {
        let disk = SimulatedDisk::new(1);
        let log = open_one(&disk, 4096).expect("opens");
        let mut ledger = Ledger::default();
        ledger.append(&log, vec![record(0, 50)]).await.expect("appends");
        log.ready().expect("is ready");
        disk.set(|faults| (faults.failing_syncs, faults.syncs_fail_as_full) = (u64::MAX, true));
        for number in 1..5 {
            ledger.append(&log, vec![record(number, 50)]).await.expect_err("nothing is durable");
            let unready = log.ready().expect_err("it takes nothing").to_string();
            assert!(unready.contains("No space left on device"), "{unready}");
        }
        disk.set(|faults| faults.failing_syncs = 0);
        ledger.append(&log, vec![record(5, 50)]).await.expect("appends");
        log.ready().expect("is ready again");
        ledger.check(&log, "after the failures").await;
    });
}

#[test]
fn the_quota_names_the_room_and_comes_back_with_release() {
    runtime().block_on(async {
        let disk = SimulatedDisk::new(1);
        let options = Options { partitions: Some(1), bytes_max: 32 * 1024, ..Options::default() };
        let log = EmbeddedLog::open_on(Arc::new(disk.clone()), folder(), options).expect("opens");
        let mut appended = 0;
        // Twice as many rounds as the log has room for: it must never be full of consumed records.
        for round in 0..10 {
            let refused = loop {
                assert!(appended < 10_000, "never refused");
                match log.append(vec![record(appended, 300)]).await {
                    Ok(_) => appended += 1,
                    Err(error) => break error,
                }
            };
            let held = log.stats().bytes;
            assert!(held <= 32 * 1024 + 44 * log.stats().files, "{held} bytes");
            let need = 16 + record(appended, 300).bytes().len();
            let expected = format!(
                "the log cannot take records now: {need} bytes are needed, and {held} of the log's 32768 bytes are taken; \
                 room comes back as records are consumed"
            );
            assert_eq!(refused.to_string(), expected);
            assert_eq!(log.stats().refused, round + 1);
            assert!(log.ready().is_err());
            let end = log.offsets(0).await.expect("offsets").end;
            assert_eq!(end, appended);
            log.release(0, end).await;
            log.ready().expect("all is consumed");
            // Padding does not count, and no record ends in zeros.
            let records =
                |path: &PathBuf| disk.contents(path).iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            let on_disk: u64 = disk.names(&folder().join("partition-00")).iter().map(records).sum();
            assert_eq!(log.stats().bytes, on_disk);
        }
    });
}

#[test]
fn a_batch_that_never_fits_is_refused_and_a_record_above_the_cap_too() {
    runtime().block_on(async {
        let disk = SimulatedDisk::new(1);
        let options = Options { partitions: Some(1), bytes_max: 32 * 1024, in_flight_bytes_max: 1000, ..Options::default() };
        let log = EmbeddedLog::open_on(Arc::new(disk), folder(), options).expect("opens");
        let error = log.append(vec![record(1, 60_000)]).await.expect_err("refused");
        assert!(matches!(error, AppendError::Unavailable(_)), "{error}");
        assert_eq!(log.append(vec![record(1, 2_000)]).await.expect("more than may be in flight goes alone").len(), 1);
        let mut text = String::from_utf8(record(1, 0).bytes().to_vec()).expect("JSON");
        text.pop();
        let text = format!("{text},\"more\":\"{}\"}}", "x".repeat(format::RECORD_BYTES_MAX));
        let huge = Record::from_bytes(text.into()).expect("an event with a member that nobody knows");
        let error = log.append(vec![huge]).await.expect_err("refused").to_string();
        assert!(error.ends_with("bytes; 1 to 16777216 are accepted"), "{error}");
    });
}

#[test]
fn appends_wait_for_memory_and_all_are_served() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let disk = SimulatedDisk::new(1);
        let options = Options { partitions: Some(8), in_flight_bytes_max: 2000, ..Options::default() };
        let log = EmbeddedLog::open_on(Arc::new(disk), folder(), options).expect("opens");
        let tasks: Vec<_> = (0..500)
            .map(|number| {
                let log = log.clone();
                tokio::spawn(async move { log.append(vec![record(number, 100)]).await.expect("appends").len() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.expect("no panic"), 1);
        }
        assert_eq!(log.stats().records, 500);
        assert!(log.stats().groups >= 500 / 4, "at most {} records in flight", 500 / log.stats().groups);
    });
}

/// Of the writer itself, and of a thread that syncs for it.
#[test]
fn a_panic_of_the_writer_leaves_nobody_waiting() {
    for name in ["log-writer", "log-sync"] {
        runtime().block_on(async {
            let disk = SimulatedDisk::new(1);
            let log = EmbeddedLog::open_on(Arc::new(disk.clone()), folder(), Options::default()).expect("opens");
            let batch = |from: u64| (from..from + 64).map(|user| record(user, 0)).collect::<Vec<_>>();
            log.append(batch(0)).await.expect("appends");
            disk.set(|faults| faults.panic_in = Some(name));
            let error = log.append(batch(64)).await.expect_err("the writer is gone");
            assert!(matches!(error, AppendError::Unknown(_)), "{name}: {error}");
            let error = loop {
                match log.append(batch(128)).await.expect_err("the writer is gone") {
                    AppendError::Unknown(_) => tokio::task::yield_now().await,
                    error => break error,
                }
            };
            assert!(matches!(&error, AppendError::Stopped(reason) if reason.contains("panicked")), "{name}: {error}");
            let mut records = 0;
            for partition in 0..8 {
                records += contents(&log, partition).await.records.len();
            }
            // What other threads synced meanwhile is there, and was acknowledged to nobody.
            assert!((64..128).contains(&records), "{name}: {records}");
        });
    }
}
