//! The same work for each of a few things, on all processors.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};

/// Rows below which a thread costs more than it brings.
const ROWS_MIN: usize = 10_000;

/// Does the work for each item and returns what comes out, in the order of the items; on as many threads as there are
/// processors if each goes through `rows` rows and these are many.
pub fn each<T: Send, R: Send>(items: Vec<T>, rows: usize, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    if rows < ROWS_MIN || threads < 2 {
        return items.into_iter().map(work).collect();
    }
    let waiting = Mutex::new(items.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    let run = || {
        while let Some((place, item)) = { waiting.lock().unwrap_or_else(PoisonError::into_inner).next() } {
            let found = work(item);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((place, found));
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        run();
        for other in others {
            other.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, found)| found).collect()
}

/// Does two kinds of work at the same time, if they go through many rows.
pub fn both<A: Send, B>(rows: usize, one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    if rows < ROWS_MIN {
        return (one(), other());
    }
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        (one.join().unwrap_or_else(|panic| resume_unwind(panic)), other)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_keeps_the_order_of_what_went_in() {
        for rows in [0, ROWS_MIN] {
            let slow_first = |item: u64| {
                std::thread::sleep(std::time::Duration::from_millis(10 / (item + 1)));
                item * 2
            };
            assert_eq!(each((0..20).collect(), rows, slow_first), (0..20).map(|item| item * 2).collect::<Vec<u64>>());
            assert_eq!(both(rows, || 1, || 2), (1, 2));
        }
        assert!(each(Vec::<u8>::new(), ROWS_MIN, |item| item).is_empty());
    }

    #[test]
    #[should_panic(expected = "no such item")]
    fn a_panic_of_one_thread_is_everybodys() {
        each(vec![1, 2], ROWS_MIN, |item| assert_ne!(item, 1, "no such item"));
    }
}
