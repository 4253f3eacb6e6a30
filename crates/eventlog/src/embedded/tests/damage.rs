//! Every way in which a file can be damaged, and what may be lost by it.

use super::*;
use crate::embedded::format::{FILE_HEADER_BYTES, FRAME_BYTES, RECORD_BYTES_MAX};

/// Records of each group, one group after the other: the last one has several.
const GROUPS: [usize; 7] = [3, 1, 4, 2, 5, 1, 3];

/// A log of one log partition, with what lies in its last file.
struct Written {
    disk: SimulatedDisk,
    path: PathBuf,
    bytes: Vec<u8>,
    /// Of each record of the file: offset, bytes, and its place.
    records: Vec<(Offset, Bytes, Range<usize>)>,
    /// The first offset of the last group.
    last_group: Offset,
}

/// Writes the groups, rotating at `file_bytes_max`, and looks at the file in place `file`, counted from the end.
fn written(file_bytes_max: u64, file: usize) -> Written {
    let disk = SimulatedDisk::new(1);
    runtime().block_on(async {
        let log = open_one(&disk, file_bytes_max).expect("opens");
        let mut number = 0;
        for count in GROUPS {
            let batch = (number..).take(count).map(|number| record(number, (number * 37 % 200) as usize)).collect();
            number += log.append(batch).await.expect("appends").len() as u64;
        }
    });
    let names = disk.names(&folder().join("partition-00"));
    let path = names[names.len() - 1 - file].clone();
    let bytes = disk.contents(&path);
    let first: u64 = names[..names.len() - 1 - file].iter().map(|name| frames(&disk.contents(name)).len() as u64).sum();
    let payload = |range: &Range<usize>| Bytes::copy_from_slice(&bytes[range.start + FRAME_BYTES..range.end]);
    let records = (first..).zip(frames(&bytes)).map(|(offset, range)| (offset, payload(&range), range)).collect();
    let all = GROUPS.iter().sum::<usize>() as u64;
    Written { disk, path, bytes, records, last_group: all - GROUPS[GROUPS.len() - 1] as u64 }
}

/// Finds the frames of an undamaged file by their lengths alone.
fn frames(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = FILE_HEADER_BYTES;
    while at < bytes.len() {
        let word: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
        let end = at + FRAME_BYTES + (u32::from_le_bytes(word) & 0x7fff_ffff) as usize;
        found.push(at..end);
        at = end;
    }
    found
}

/// What must be found after damage.
struct Expected {
    /// Offsets of the file's records that can be read.
    readable: Vec<Offset>,
    damaged: Vec<Range<Offset>>,
    end: Offset,
    torn_tails: u64,
}

impl Written {
    /// Opens the log with other bytes in the file; returns what it holds. Checks what holds for all damage: nothing but
    /// the original records, each at its offset; appends go on at the end; opening again changes nothing.
    fn open_with(&self, bytes: Vec<u8>, what: &str) -> (Contents, Stats) {
        self.check_disk(&self.disk.with_contents(&self.path, bytes), what)
    }

    fn check_disk(&self, disk: &SimulatedDisk, what: &str) -> (Contents, Stats) {
        runtime().block_on(async {
            let log = open_one(disk, 1 << 14).unwrap_or_else(|error| panic!("{what}: {error}"));
            let found = contents(&log, 0).await;
            let stats = log.stats();
            for (offset, bytes) in &found.records {
                if let Some((_, original, _)) = self.records.iter().find(|(original, _, _)| original == offset) {
                    assert_eq!(bytes, original, "{what}: record {offset}");
                }
            }
            drop(log);
            let disk = disk.after_power_cut();
            let log = open_one(&disk, 1 << 14).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            assert_eq!(contents(&log, 0).await, found, "{what}: opened again");
            assert_eq!(log.stats().torn_tails, 0, "{what}: opened again");
            let appended = record(1_000, 10);
            let position = log.append(vec![appended.clone()]).await.expect("appends")[0];
            assert_eq!(position.offset, Some(found.end), "{what}");
            drop(log);
            let disk = disk.after_power_cut();
            let log = open_one(&disk, 1 << 14).unwrap_or_else(|error| panic!("{what}, a third time: {error}"));
            let mut after = contents(&log, 0).await;
            assert_eq!(after.records.pop(), Some((found.end, appended.bytes().clone())), "{what}");
            assert_eq!((after.records, after.damaged), (found.records.clone(), found.damaged.clone()), "{what}: after an append");
            (found, stats)
        })
    }

    fn check(&self, bytes: Vec<u8>, what: &str, expected: Expected) {
        let (found, stats) = self.open_with(bytes, what);
        let first = self.records[0].0;
        let readable: Vec<Offset> = found.records.iter().map(|(offset, _)| *offset).filter(|offset| *offset >= first).collect();
        assert_eq!(readable, expected.readable, "{what}: readable");
        assert_eq!(found.damaged, expected.damaged, "{what}: damaged");
        assert_eq!(found.end, expected.end, "{what}: end");
        assert_eq!(stats.torn_tails, expected.torn_tails, "{what}: torn tails");
    }

    /// What must be found in the last file when exactly one record is damaged.
    fn one_damaged(&self, offset: Offset) -> Expected {
        let first = self.records[0].0;
        let end = first + self.records.len() as u64;
        if offset >= self.last_group {
            // Nothing proves that the group was synced: the log goes on before the damage.
            Expected { readable: (first..offset).collect(), damaged: Vec::new(), end: offset, torn_tails: 1 }
        } else {
            let damaged = std::iter::once(offset..offset + 1).collect();
            Expected { readable: (first..end).filter(|other| *other != offset).collect(), damaged, end, torn_tails: 0 }
        }
    }

    fn record_at(&self, byte: usize) -> Option<Offset> {
        self.records.iter().find(|(_, _, range)| range.contains(&byte)).map(|(offset, _, _)| *offset)
    }

    fn last_bytes(&self, count: usize) -> Range<usize> {
        self.bytes.len().saturating_sub(count).max(FILE_HEADER_BYTES)..self.bytes.len()
    }
}

#[test]
fn a_last_file_cut_at_any_byte_keeps_every_whole_record() {
    let log = written(1 << 14, 0);
    for cut in log.last_bytes(4096) {
        let whole = log.records.iter().filter(|(_, _, range)| range.end <= cut).count() as u64;
        let is_clean = cut == FILE_HEADER_BYTES || log.records.iter().any(|(_, _, range)| range.end == cut);
        let expected =
            Expected { readable: (0..whole).collect(), damaged: Vec::new(), end: whole, torn_tails: u64::from(!is_clean) };
        log.check(log.bytes[..cut].to_vec(), &format!("cut at {cut}"), expected);
    }
}

#[test]
fn a_last_file_with_any_byte_flipped_loses_that_record_alone() {
    let log = written(1 << 14, 0);
    for byte in log.last_bytes(4096) {
        let mut bytes = log.bytes.clone();
        bytes[byte] ^= 1 << (byte % 8);
        let damaged = log.record_at(byte).expect("every byte belongs to a record");
        log.check(bytes, &format!("byte {byte} flipped"), log.one_damaged(damaged));
    }
}

#[test]
fn a_last_file_that_ends_in_zeros_or_noise_is_cut_there() {
    let log = written(1 << 14, 0);
    for from in log.last_bytes(4096).step_by(61) {
        let whole = log.records.iter().filter(|(_, _, range)| range.end <= from).count() as u64;
        let expected = |torn: bool| Expected {
            readable: (0..whole).collect(),
            damaged: Vec::new(),
            end: whole,
            torn_tails: u64::from(torn),
        };
        let begun = log.records[whole as usize].2.start;
        let mut zeros = log.bytes.clone();
        zeros[from..].fill(0);
        log.check(zeros, &format!("zeros from {from}"), expected(log.bytes[begun..from].iter().any(|byte| *byte != 0)));
        let mut noise = log.bytes.clone();
        let mut state = from as u32 | 1;
        for byte in &mut noise[from..] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        log.check(noise, &format!("noise from {from}"), expected(true));
        let mut longer = log.bytes[..begun].to_vec();
        longer.resize(longer.len() + from, 0);
        log.check(longer, &format!("{from} zeros after record {whole}"), expected(false));
    }
}

#[test]
fn a_length_that_cannot_be_is_damage_and_costs_nothing() {
    let log = written(1 << 14, 0);
    let last = log.records.len() as u64 - 1;
    for length in [0, 1, 100_000, RECORD_BYTES_MAX as u32, RECORD_BYTES_MAX as u32 + 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        for offset in [0, 5, last - 1, last] {
            let mut bytes = log.bytes.clone();
            let at = log.records[offset as usize].2.start;
            bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
            log.check(bytes, &format!("length {length:#x} in record {offset}"), log.one_damaged(offset));
        }
    }
}

#[test]
fn sectors_that_are_swapped_or_written_twice_give_no_wrong_record() {
    let log = written(1 << 14, 0);
    let sectors = log.bytes.len() / 512;
    for first in 0..sectors {
        for second in first + 1..sectors {
            let (a, b) = (first * 512, second * 512);
            let mut swapped = log.bytes.clone();
            swapped[a..a + 512].copy_from_slice(&log.bytes[b..b + 512]);
            swapped[b..b + 512].copy_from_slice(&log.bytes[a..a + 512]);
            log.open_with(swapped, &format!("sectors {first} and {second} swapped"));
            let mut twice = log.bytes.clone();
            twice[b..b + 512].copy_from_slice(&log.bytes[a..a + 512]);
            log.open_with(twice, &format!("sector {first} also in place {second}"));
        }
    }
    for (offset, _, range) in &log.records {
        let mut repeated = log.bytes[..range.end].to_vec();
        repeated.extend_from_slice(&log.bytes[range.start..]);
        let (found, _) = log.open_with(repeated, &format!("record {offset} written twice"));
        assert!(found.damaged.is_empty(), "nothing is missing");
        let mut left_out = log.bytes[..range.start].to_vec();
        left_out.extend_from_slice(&log.bytes[range.end..]);
        log.open_with(left_out, &format!("record {offset} left out"));
    }
}

#[test]
fn a_damaged_header_of_a_last_file_gives_its_offsets_up() {
    let log = written(1 << 14, 0);
    for byte in 0..FILE_HEADER_BYTES {
        let mut bytes = log.bytes.clone();
        bytes[byte] ^= 0x10;
        let what = format!("byte {byte} of the header flipped");
        let (found, stats) = log.open_with(bytes, &what);
        assert_eq!((found.records.len(), found.damaged.len(), stats.corrupt_ranges), (0, 1, 1), "{what}");
        assert!(found.end >= log.records.len() as u64, "{what}: an offset would be used twice");
    }
    for length in 0..FILE_HEADER_BYTES {
        let (found, stats) = log.open_with(log.bytes[..length].to_vec(), &format!("{length} bytes"));
        assert_eq!((found, stats.corrupt_ranges), (Contents::default(), 0), "no record was in {length} bytes");
    }
}

#[test]
fn a_closed_file_is_never_changed_and_only_its_damaged_record_is_lost() {
    let log = written(4096, 1);
    let (first, next) = (log.records[0].0, log.records[0].0 + log.records.len() as u64);
    let end = GROUPS.iter().sum::<usize>() as u64;
    assert!(first > 0 && next < end, "a file before and a file after");
    let check = |disk: &SimulatedDisk, what: &str, damaged: Range<Offset>| {
        let (found, _) = log.check_disk(disk, what);
        assert_eq!(found.damaged, std::slice::from_ref(&damaged), "{what}");
        let readable: Vec<Offset> = found.records.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(readable, (0..end).filter(|offset| !damaged.contains(offset)).collect::<Vec<_>>(), "{what}");
    };
    for byte in (0..log.bytes.len()).step_by(7) {
        let mut bytes = log.bytes.clone();
        bytes[byte] ^= 1 << (byte % 8);
        let damaged = log.record_at(byte).map_or(first..next, |offset| offset..offset + 1);
        let disk = log.disk.with_contents(&log.path, bytes.clone());
        check(&disk, &format!("byte {byte} flipped"), damaged);
        assert_eq!(disk.contents(&log.path), bytes, "the file is kept as it is");
    }
    for cut in (FILE_HEADER_BYTES..log.bytes.len()).step_by(101) {
        let whole = first + log.records.iter().filter(|(_, _, range)| range.end <= cut).count() as u64;
        check(&log.disk.with_contents(&log.path, log.bytes[..cut].to_vec()), &format!("cut at {cut}"), whole..next);
    }
    check(&log.disk.without(&log.path), "without the file", first..next);
}

#[test]
fn damage_is_counted_once_however_often_it_is_read() {
    let log = written(4096, 1);
    let mut bytes = log.bytes.clone();
    let at = log.records[2].2.start;
    bytes[at] ^= 1;
    let disk = log.disk.with_contents(&log.path, bytes);
    runtime().block_on(async {
        let opened = open_one(&disk, 4096).expect("opens");
        let damaged = log.records[2].0;
        for _ in 0..3 {
            let error = opened.read(0, damaged, ALL).await.expect_err("damaged").to_string();
            let expected = format!("log partition 0: records {damaged} to {} are damaged: ", damaged + 1);
            assert!(error.starts_with(&expected), "{error}");
            assert!(
                error.ends_with(&format!("at byte {at}: a record whose checksum does not match"))
                    || error.contains("which would end"),
                "{error}"
            );
        }
        let behind = opened.read(0, damaged + 1, ALL).await.expect("reads behind the damage");
        assert_eq!(behind[0].bytes, log.records[3].1);
        assert_eq!(opened.stats().corrupt_ranges, 1);
    });
}

#[test]
fn opening_reads_the_last_file_only() {
    let log = written(4096, 0);
    assert!(log.disk.names(&folder().join("partition-00")).len() > 2, "several files");
    let before = log.disk.bytes_read();
    drop(open_one(&log.disk, 4096).expect("opens"));
    let read = log.disk.bytes_read() - before;
    // The last file, its last group and its header once more, and the log's own header.
    assert!(read <= 2 * log.bytes.len() as u64 + 100, "{read} bytes read, the last file has {}", log.bytes.len());
}

/// A killed process and a power cut leave padding, which is no torn write; a clean end leaves none, and neither does a group that is large.
#[test]
fn padding_is_neither_damage_nor_left_at_a_clean_end() {
    runtime().block_on(async {
        let path = folder().join("partition-00").join("00000000000000000000.log");
        let disk = SimulatedDisk::new(1);
        let log = open_one(&disk, 4 << 20).expect("opens");
        log.append(vec![record(0, 100)]).await.expect("appends");
        let padded = disk.contents(&path);
        let records = FILE_HEADER_BYTES + FRAME_BYTES + record(0, 100).bytes().len();
        assert_eq!(padded.len(), records + 256 * 1024);
        assert!(padded[records..].iter().all(|byte| *byte == 0));
        log.append(vec![record(1, 100)]).await.expect("appends");
        assert_eq!(disk.contents(&path).len(), padded.len(), "written inside of the padding");
        for (killed, what) in [(disk.after_kill(), "killed"), (disk.after_power_cut(), "without power")] {
            let log = open_one(&killed, 4 << 20).expect("opens");
            assert_eq!((contents(&log, 0).await.end, log.stats().torn_tails), (2, 0), "{what}");
            let large: Vec<_> = (2..130).map(|number| record(number, 1_024)).collect();
            log.append(large).await.expect("appends");
            let written = killed.contents(&path);
            assert_eq!(frames(&written).len(), 130, "{what}: a large group is not padded");
            log.append(vec![record(130, 100)]).await.expect("appends");
            assert!(killed.contents(&path).len() > written.len() + 200_000, "{what}: a small one is");
            drop(log);
            assert_eq!(frames(&killed.contents(&path)).len(), 131, "{what}: a clean end");
        }
    });
}

/// A disk that has room for a record, and none for padding, takes the record.
#[test]
fn a_disk_without_room_for_padding_takes_records() {
    runtime().block_on(async {
        let disk = SimulatedDisk::new(1);
        let log = open_one(&disk, 4 << 20).expect("opens");
        let before = disk.used();
        disk.set(|faults| faults.capacity = Some(before + 10_000));
        let mut written = 0;
        for number in 0..10 {
            written += (FRAME_BYTES + record(number, 50).bytes().len()) as u64;
            log.append(vec![record(number, 50)]).await.expect("there is room");
            assert_eq!(disk.used(), before + written, "what there was no room for is given back");
        }
        let killed = disk.after_kill();
        let log = open_one(&killed, 4 << 20).expect("opens");
        assert_eq!((contents(&log, 0).await.end, log.stats().torn_tails), (10, 0));
    });
}
