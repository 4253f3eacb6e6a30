//! How many dead letters a log partition may bring before it halts: a wrong topic or a bad deploy must not turn a stream into
//! dead letters.
//!
//! Counted is what no collector of ours lets into the log: records that are no event, and rows that Postgres refuses. A name that
//! nobody knows is not counted, since anybody with a public key can send one a thousand times.

use std::collections::{BTreeMap, VecDeque};

use eventlog::Offset;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::batch::{Batch, DeadLetter, REFUSED, Slice, UNDECODABLE};

/// Codes that are counted.
const COUNTED: [&str; 2] = [UNDECODABLE, REFUSED];
/// Records that are looked back upon, for each dead letter that may follow upon another.
const WINDOW_FACTOR: u64 = 10;

/// The open dead letters at the end of a log partition.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// How many of one code may follow upon each other; half of ten times as many records may be dead letters.
    in_row_max: u64,
    /// The code of the newest record, if it is counted.
    code: Option<&'static str>,
    /// How many records in a row have it.
    in_row: u64,
    /// Offsets of those that are counted, within the window.
    recent: VecDeque<Offset>,
}

/// The tallies of log partitions.
pub(crate) type Tallies = BTreeMap<u32, Tally>;

/// A record that would be one dead letter too many. Those before it may be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TooMany {
    pub partition: u32,
    pub offset: Offset,
    pub text: String,
}

impl Tally {
    /// Counts nothing yet.
    pub(crate) fn new(in_row_max: u32) -> Self {
        Tally { in_row_max: u64::from(in_row_max), code: None, in_row: 0, recent: VecDeque::new() }
    }

    /// Counts what is stored before a checkpoint. Discarded and replayed letters are settled and do not count.
    pub(crate) async fn load(
        connection: &mut PgConnection,
        log_id: Uuid,
        partition: u32,
        next: Offset,
        in_row_max: u32,
    ) -> Result<Self, sqlx::Error> {
        let mut tally = Tally::new(in_row_max);
        let from = next.saturating_sub(tally.window());
        let letters: Vec<(i64, String)> = sqlx::query_as(
            "SELECT log_offset, code FROM dead_letters
             WHERE log_id = $1 AND log_partition = $2 AND log_offset >= $3 AND log_offset < $4 AND status = 'open'
               AND code = ANY ($5)
             ORDER BY log_offset",
        )
        .bind(log_id)
        .bind(partition as i32)
        .bind(from as i64)
        .bind(next as i64)
        .bind(COUNTED.as_slice())
        .fetch_all(connection)
        .await?;
        let mut at = from;
        for (offset, code) in letters {
            let offset = offset as Offset;
            tally.pass(at, offset);
            tally.count(offset, counted(&code));
            at = offset + 1;
        }
        tally.pass(at, next);
        Ok(tally)
    }

    fn window(&self) -> u64 {
        self.in_row_max * WINDOW_FACTOR
    }

    /// Returns why no more may come, if that is so.
    pub(crate) fn is_full(&self) -> Option<String> {
        if let Some(code) = self.code.filter(|_| self.in_row >= self.in_row_max) {
            return Some(format!("the last {} records are all dead letters of code {code}", self.in_row));
        }
        let (recent, window) = (self.recent.len() as u64, self.window());
        (recent > window / 2).then(|| format!("{recent} of the last {window} records are dead letters"))
    }

    /// Counts records that are none.
    fn pass(&mut self, from: Offset, to: Offset) {
        if from < to {
            (self.code, self.in_row) = (None, 0);
            self.forget(to);
        }
    }

    fn count(&mut self, offset: Offset, code: Option<&'static str>) {
        let Some(code) = code else { return self.pass(offset, offset + 1) };
        self.in_row = if self.code == Some(code) { self.in_row + 1 } else { 1 };
        self.code = Some(code);
        self.recent.push_back(offset);
        self.forget(offset + 1);
    }

    fn forget(&mut self, next: Offset) {
        while self.recent.front().is_some_and(|offset| offset + self.window() < next) {
            self.recent.pop_front();
        }
    }

    /// Counts a slice, whose dead letters stand in the order of their offsets, up to the first one that is too many.
    fn add(&mut self, slice: &Slice, letters: &[&DeadLetter]) -> Result<(), TooMany> {
        let mut at = slice.from;
        for letter in letters {
            self.pass(at, letter.offset);
            if let Some(found) = self.is_full() {
                let text = format!("{found}, and the one at offset {} would be another: {}", letter.offset, letter.reason);
                return Err(TooMany { partition: slice.partition, offset: letter.offset, text });
            }
            self.count(letter.offset, counted(letter.code));
            at = letter.offset + 1;
        }
        self.pass(at, slice.to);
        Ok(())
    }
}

fn counted(code: &str) -> Option<&'static str> {
    COUNTED.into_iter().find(|counted| *counted == code)
}

/// Counts a batch with its dead letters into the tallies of its log partitions, and returns them; those of others are left out.
/// # Errors
/// The first letter that is too many.
pub(crate) fn count(tallies: &Tallies, batch: &Batch, dead: &[DeadLetter]) -> Result<Tallies, TooMany> {
    let mut after = Tallies::new();
    for slice in &batch.slices {
        let Some(tally) = tallies.get(&slice.partition) else { continue };
        let mut letters: Vec<&DeadLetter> =
            dead.iter().filter(|letter| letter.partition == slice.partition && counted(letter.code).is_some()).collect();
        letters.sort_by_key(|letter| letter.offset);
        let mut tally = tally.clone();
        tally.add(slice, &letters)?;
        after.insert(slice.partition, tally);
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(offset: Offset, code: &'static str) -> DeadLetter {
        DeadLetter {
            partition: 3,
            offset,
            bytes: bytes::Bytes::new(),
            project: None,
            code,
            subject: None,
            reason: "why".to_owned(),
            sqlstate: None,
        }
    }

    fn count_slice(tally: &mut Tally, from: Offset, to: Offset, letters: &[DeadLetter]) -> Result<(), Offset> {
        let batch = Batch { slices: vec![Slice { partition: 3, epoch: 1, from, to, last_crc: 0 }], ..Batch::default() };
        let after = count(&Tallies::from([(3, tally.clone())]), &batch, letters).map_err(|too_many| too_many.offset)?;
        *tally = after[&3].clone();
        Ok(())
    }

    #[test]
    fn so_many_of_one_code_may_follow_upon_each_other() {
        let mut tally = Tally::new(10);
        let letters = |range: std::ops::Range<Offset>, code| range.map(|offset| letter(offset, code)).collect::<Vec<_>>();
        assert_eq!(count_slice(&mut tally, 0, 6, &letters(0..6, UNDECODABLE)), Ok(()));
        assert_eq!(count_slice(&mut tally, 6, 12, &letters(6..12, UNDECODABLE)), Err(10), "over batches");
        assert_eq!(count_slice(&mut tally, 6, 10, &letters(6..10, UNDECODABLE)), Ok(()));
        assert!(tally.is_full().is_some_and(|text| text.contains("10 records") && text.contains(UNDECODABLE)));
        assert_eq!(count_slice(&mut tally, 10, 11, &[]), Ok(()), "an event ends the row");
        assert_eq!(tally.is_full(), None);
        assert_eq!(count_slice(&mut tally, 11, 31, &letters(11..21, REFUSED)), Ok(()));
        let mixed: Vec<_> = (31..51).map(|offset| letter(offset, COUNTED[offset as usize % 2])).collect();
        assert_eq!(count_slice(&mut tally, 31, 51, &mixed), Ok(()), "of two codes in turn");
    }

    #[test]
    fn half_of_the_records_may_be_dead_letters() {
        // A window of 100 records.
        let mut tally = Tally::new(10);
        let every = |step: usize, range: std::ops::Range<Offset>| {
            range.step_by(step).map(|offset| letter(offset, UNDECODABLE)).collect::<Vec<_>>()
        };
        assert_eq!(count_slice(&mut tally, 0, 1_000, &every(2, 0..1_000)), Ok(()), "exactly half, for ever");
        let two_of_three: Vec<_> = (1_000..2_000).filter(|at| at % 3 != 0).map(|offset| letter(offset, UNDECODABLE)).collect();
        let halted = count_slice(&mut tally, 1_000, 2_000, &two_of_three).expect_err("more than half");
        assert!((1_002..1_100).contains(&halted), "{halted}");
        let mut tally = Tally::new(10);
        assert_eq!(count_slice(&mut tally, 0, 2_000, &every(3, 0..2_000)), Ok(()));
    }

    #[test]
    fn what_a_client_can_send_does_not_count() {
        let mut tally = Tally::new(10);
        let unknown: Vec<_> = (0..1_000).map(|offset| letter(offset, "unknown_experiment")).collect();
        assert_eq!(count_slice(&mut tally, 0, 1_000, &unknown), Ok(()));
        assert_eq!(tally.is_full(), None);
    }
}
