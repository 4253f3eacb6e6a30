//! A reader: it looks at the tables meanwhile.

use super::model::{Model, Tables};
use super::run::{Run, Seen, broke};

/// What a reader saw at a watermark.
struct Look {
    next: Vec<u64>,
    /// Of the rows below it.
    rows: u64,
    checksum: u64,
}

impl Look {
    fn at(tables: &Tables, next: &[u64]) -> Look {
        let mut look = Look { next: next.to_vec(), rows: 0, checksum: 0 };
        for row in tables.rows.iter().filter(|row| row.offset < next[row.partition as usize]) {
            look.rows += 1;
            let (project, user, claimed_at, id) = row.key;
            let parts = [project.0.as_u128(), user.0.as_u128(), id.0.as_u128()].map(|part| (part ^ part >> 64) as u64);
            let sum =
                parts.into_iter().fold(claimed_at.0 as u64 ^ row.offset, |sum, part| sum.rotate_left(7).wrapping_mul(31) ^ part);
            look.checksum = look.checksum.wrapping_add(sum);
        }
        look
    }
}

/// Reads again and again; never returns.
pub(super) async fn read(run: Run, model: Model) {
    let mut earlier: Vec<Look> = Vec::new();
    loop {
        run.wait(500..15_000).await;
        run.saw(Seen::Read);
        let look = model.look(|tables| look(&run, tables, &earlier));
        earlier.push(look);
    }
}

/// Reads once, what is there now and what was there at one of the earlier watermarks.
fn look(run: &Run, tables: &Tables, earlier: &[Look]) -> Look {
    let next: Vec<u64> = tables.standings.iter().map(|standing| standing.next).collect();
    if let Some(row) = tables.rows.iter().find(|row| row.offset >= next[row.partition as usize]) {
        broke!(run, I11Watermark, "a row is visible at or beyond the watermark {next:?}: {row:?}");
    }
    if let Some(last) = earlier.last().filter(|last| last.next.iter().zip(&next).any(|(last, next)| next < last)) {
        broke!(run, I11Watermark, "it fell from {:?} to {next:?}", last.next);
    }
    if !earlier.is_empty() {
        let then = &earlier[run.number(0..earlier.len() as u64) as usize];
        let now = Look::at(tables, &then.next);
        if (now.rows, now.checksum) != (then.rows, then.checksum) {
            broke!(run, I11Watermark, "at {:?} were {} rows, and now are {}, or others", then.next, then.rows, now.rows);
        }
    }
    Look::at(tables, &next)
}
