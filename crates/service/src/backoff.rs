//! Waits between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Waits between attempts of something that fails: from a shortest one, doubled up to a longest one, each lengthened by a random
/// part of itself, so that those who failed together do not try again together. It never gives up.
#[derive(Debug)]
pub struct BackOff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
}

impl BackOff {
    /// Makes one whose first wait lies between `min` and twice that, and no wait above twice `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        let builder =
            ExponentialBuilder::new().with_min_delay(min).with_max_delay(max).with_factor(2.0).without_max_times().with_jitter();
        BackOff { builder, delays: builder.build() }
    }

    /// Returns how long to wait before the next attempt.
    pub fn delay(&mut self) -> Duration {
        // Without a number of attempts the iterator has no end.
        self.delays.next().unwrap_or_default()
    }

    /// Waits before the next attempt. May be cancelled; the next wait is the longer one all the same.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }

    /// Begins with the shortest wait again, after a success.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_of_failures_and_then_a_success() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut back_off = BackOff::new(min, max);
        let (mut passed, mut longest) = (Duration::ZERO, Duration::ZERO);
        while passed < Duration::from_secs(7 * 86_400) {
            let delay = back_off.delay();
            assert!(delay >= min && delay <= 2 * max, "{delay:?}");
            longest = longest.max(delay);
            passed += delay;
        }
        assert!(longest > max, "waits differ at random");
        back_off.reset();
        assert!(back_off.delay() <= 2 * min);
    }
}
