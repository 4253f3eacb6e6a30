//! The rate limit of a key.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A token bucket: it holds two seconds' worth, and fills at the rate.
///
/// A request may take more than there is as long as there is something, and the next ones wait until the debt is paid:
/// so a batch larger than the bucket is slowed down, not locked out.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rate: u32,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    tokens: f64,
    at: Instant,
}

impl RateLimiter {
    /// Makes a full bucket. `rate` is in tokens per second, 1 or more.
    pub(crate) fn new(rate: u32, now: Instant) -> Self {
        let rate = rate.max(1);
        RateLimiter { rate, state: Mutex::new(State { tokens: f64::from(rate) * 2.0, at: now }) }
    }

    /// Makes a bucket of another rate that starts with what this one holds: a change does not fill it.
    pub(crate) fn with_rate(&self, rate: u32) -> Self {
        let State { tokens, at } = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = rate.max(1);
        RateLimiter { rate, state: Mutex::new(State { tokens: tokens.min(f64::from(rate) * 2.0), at }) }
    }

    /// Takes tokens. # Errors How long to wait before there is one.
    pub(crate) fn take(&self, tokens: usize, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = f64::from(self.rate);
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.tokens = (state.tokens + passed * rate).min(rate * 2.0);
        state.at = state.at.max(now);
        if state.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - state.tokens) / rate));
        }
        state.tokens -= tokens as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seconds_of_burst_then_the_rate() {
        let start = Instant::now();
        let limiter = RateLimiter::new(5, start);
        let taken = (0..20).filter(|_| limiter.take(1, start).is_ok()).count();
        assert_eq!(taken, 10);
        assert_eq!(limiter.take(1, start), Err(Duration::from_millis(200)));
        assert_eq!(limiter.take(1, start + Duration::from_millis(210)), Ok(()));
        assert!(limiter.take(1, start + Duration::from_millis(210)).is_err());
    }

    #[test]
    fn a_large_batch_is_slowed_down() {
        let start = Instant::now();
        let limiter = RateLimiter::new(10, start);
        assert_eq!(limiter.take(120, start), Ok(()));
        // 100 in debt, and 1 to have: 10.1 seconds.
        assert!(limiter.take(1, start + Duration::from_secs(10)).is_err());
        assert_eq!(limiter.take(1, start + Duration::from_millis(10_101)), Ok(()));
        let slower = limiter.with_rate(1);
        assert!(slower.take(1, start + Duration::from_millis(10_102)).is_err());
    }
}
