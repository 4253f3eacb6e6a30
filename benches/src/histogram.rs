//! Latencies, counted in buckets that grow with the value.

use std::time::Duration;

/// Values below this have a bucket each; above it every power of two has this many.
const STEPS: u64 = 64;
const BUCKETS: usize = (STEPS as usize) * 59;

/// Counts of durations in microseconds. A quantile is exact below 64 µs and at most 1.6 % too large above.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    /// Adds the counts of another one.
    pub fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// Returns how many durations were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the longest one, exactly; zero if there is none.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max)
    }

    /// Returns the duration that the share `quantile` (0 to 1) of all does not exceed; zero if there is none.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let wanted = ((self.count as f64 * quantile).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(last_of(index).min(self.max));
            }
        }
        Duration::from_micros(self.max)
    }
}

fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let shift = u64::from(micros.ilog2() - STEPS.ilog2());
    // The leading bit is always set, so that `micros >> shift` is in 64..128.
    (shift * STEPS + (micros >> shift)) as usize
}

/// The greatest value of a bucket.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    let lead = u128::from(bucket - shift * STEPS + 1) << shift;
    u64::try_from(lead - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_the_bucket_that_ends_closest_above_it() {
        for value in (0..5_000).chain([1 << 20, (1 << 40) + 12_345, u64::MAX - 1, u64::MAX]) {
            let index = bucket(value);
            assert!(index < BUCKETS && value <= last_of(index), "{value}");
            assert!(index == 0 || last_of(index - 1) < value, "{value}");
            assert!(last_of(index) - value <= value / 63, "{value} became {}", last_of(index));
        }
    }

    #[test]
    fn quantiles_of_known_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros));
        }
        let mut other = Histogram::default();
        other.record(Duration::from_secs(2));
        histogram.add(&other);
        let check = |quantile, at_least: u64| {
            let found = histogram.quantile(quantile).as_micros() as u64;
            assert!(found >= at_least && found <= at_least + at_least / 63 + 1, "{quantile}: {found}");
        };
        check(0.0, 1);
        check(0.5, 501);
        check(0.9, 901);
        check(1.0, 2_000_000);
        assert_eq!((histogram.count(), histogram.max()), (1_001, Duration::from_secs(2)));
    }
}
