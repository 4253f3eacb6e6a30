//! What all units of a group did, added up.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::definition::{Definition, Listed, TimeToConvert};
use super::rules::Rules;
use super::unit::Counted;

/// Bins of times at most, where nobody says how many.
const BINS_MAX: f64 = 60.0;
const SECOND_US: f64 = 1e6;

/// The units of a group.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many reached each step.
    pub reached: Vec<u64>,
    /// How long after the step before, of each step; microseconds.
    after: Vec<Vec<i64>>,
    /// Between the two steps that were asked for.
    convert: Vec<i64>,
    /// How many reached each step, by the beginning of the period in which they entered.
    trend: BTreeMap<i64, Vec<u64>>,
    /// The units that were asked for, in the order of the definition's lists.
    listed: Vec<Vec<u32>>,
    /// Those who have not got through, and whose windows have not closed yet.
    pub open: u64,
}

impl Tally {
    /// Starts without units.
    pub fn new(definition: &Definition) -> Self {
        let steps = definition.steps.len();
        Tally {
            reached: vec![0; steps],
            after: vec![Vec::new(); steps],
            listed: vec![Vec::new(); definition.units.len()],
            ..Tally::default()
        }
    }

    /// Adds one unit, attempt or session of a unit. `now` is the time of the newest event, if there is one. Returns the bytes that it takes,
    /// about.
    pub fn add(&mut self, counted: &Counted<'_>, unit: u32, definition: &Definition, rules: &Rules, now: Option<i64>) -> usize {
        let outcome = counted.outcome;
        let reached = (0..rules.steps).filter(|step| outcome.has_reached(*step));
        if let Some(period) = counted.period {
            let counts = self.trend.entry(period).or_insert_with(|| vec![0; rules.steps]);
            reached.for_each(|step| counts[step] += 1);
            return 0;
        }
        let mut bytes = 0;
        for step in reached {
            self.reached[step] += 1;
            self.after[step].extend(outcome.steps[step].map(|done| done.after));
            bytes += size_of::<i64>();
        }
        if let Some(TimeToConvert { from, to, .. }) = definition.time_to_convert
            && let (Some(from), Some(to)) = (outcome.steps[from], outcome.steps[to])
        {
            self.convert.push(to.time.saturating_sub(from.time));
            bytes += size_of::<i64>();
        }
        for (listed, units) in definition.units.iter().zip(&mut self.listed) {
            let is_in = match *listed {
                Listed::Reached(step) => outcome.has_reached(step),
                Listed::Dropped(step) => {
                    !outcome.has_reached(step) && rules.before(step).is_some_and(|before| outcome.has_reached(before))
                }
            };
            if is_in {
                units.push(unit);
                // The unit, and its id in the answer.
                bytes += size_of::<u32>() + 48;
            }
        }
        let has_passed = outcome.top(rules).is_some_and(|top| rules.after(top).is_none());
        let is_open = |now: i64| rules.reach().is_none_or(|reach| counted.entered.saturating_add(reach) >= now);
        self.open += u64::from(!has_passed && now.is_some_and(is_open));
        bytes
    }

    /// Adds another group.
    pub fn merge(&mut self, other: Tally) {
        let add = |mine: &mut Vec<u64>, theirs: Vec<u64>| mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        for (mine, theirs) in self.after.iter_mut().zip(other.after) {
            mine.extend(theirs);
        }
        for (mine, theirs) in self.listed.iter_mut().zip(other.listed) {
            mine.extend(theirs);
        }
        for (period, theirs) in other.trend {
            match self.trend.get_mut(&period) {
                Some(mine) => add(mine, theirs),
                None => {
                    self.trend.insert(period, theirs);
                }
            }
        }
        add(&mut self.reached, other.reached);
        self.convert.extend(other.convert);
        self.open += other.open;
    }

    /// Returns how many entered.
    pub fn units(&self) -> u64 {
        self.reached.first().copied().unwrap_or_default()
    }

    /// Writes the steps. `exposed` is how many could have entered, where that is known.
    pub fn steps(&mut self, definition: &Definition, rules: &Rules, exposed: Option<u64>) -> Vec<Value> {
        let rate = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let mut written = Vec::with_capacity(rules.steps);
        for (index, step) in definition.steps.iter().enumerate() {
            let (units, before) = (self.reached[index], rules.before(index));
            let mut fields = json!({
                "n": index + 1,
                "name": step.name,
                "units": units,
                "rate_first": rate(units, self.units()),
                "rate_prev": before.and_then(|before| rate(units, self.reached[before])),
            });
            if let Some(exposed) = exposed {
                fields["rate_exposed"] = json!(rate(units, exposed));
            }
            match rules.after(index).filter(|_| !step.optional) {
                Some(after) => fields["dropped"] = (units - self.reached[after]).into(),
                None if step.optional => fields["optional"] = true.into(),
                None => {}
            }
            // The first step comes after nothing but an exposure.
            if before.is_some() || definition.entry == super::definition::Entry::Exposure {
                let times = Times::of(&mut self.after[index]);
                fields["median_s"] = json!(times.as_ref().map(|times| times.median_s));
                fields["p90_s"] = json!(times.as_ref().map(|times| times.p90_s));
                fields["mean_s"] = json!(times.as_ref().map(|times| times.mean_s));
            }
            written.push(fields);
        }
        written
    }

    /// Writes how long it took from one step to another, if that was asked for.
    pub fn time_to_convert(&mut self, definition: &Definition) -> Option<Value> {
        let TimeToConvert { from, to, bins } = definition.time_to_convert?;
        let mut fields = json!({"from": from + 1, "to": to + 1, "units": self.convert.len()});
        if let Some(times) = Times::of(&mut self.convert) {
            fields["median_s"] = times.median_s.into();
            fields["p90_s"] = times.p90_s.into();
            fields["mean_s"] = times.mean_s.into();
        }
        let (edges, counts) = histogram(&self.convert, bins);
        fields["edges_s"] = edges.into();
        fields["counts"] = counts.into();
        Some(fields)
    }

    /// Writes the steps by the period of entry, if that was asked for. `is_complete` says whether nobody who entered in the period that
    /// begins then can still get further.
    pub fn trend(&self, definition: &Definition, is_complete: impl Fn(i64) -> bool) -> Option<Vec<Value>> {
        let period = definition.trend?;
        let point = |(start, units): (&i64, &Vec<u64>)| json!({"start": period.text(*start), "units": units, "complete": is_complete(*start)});
        Some(self.trend.iter().map(point).collect())
    }

    /// Returns the beginnings of the periods in which somebody entered.
    pub fn periods(&self) -> impl Iterator<Item = i64> {
        self.trend.keys().copied()
    }

    /// Returns the units that were asked for, with the name of each list.
    pub fn listed(&self, definition: &Definition) -> impl Iterator<Item = (String, &[u32])> {
        definition.units.iter().map(|listed| listed.name()).zip(self.listed.iter().map(Vec::as_slice))
    }
}

/// What is said of some durations, in seconds.
struct Times {
    median_s: f64,
    p90_s: f64,
    mean_s: f64,
}

impl Times {
    /// Sorts durations in microseconds; `None` without any.
    fn of(times: &mut [i64]) -> Option<Times> {
        if times.is_empty() {
            return None;
        }
        times.sort_unstable();
        let sum: i128 = times.iter().map(|time| i128::from(*time)).sum();
        let mean_s = sum as f64 / times.len() as f64 / SECOND_US;
        Some(Times { median_s: quantile(times, 0.5), p90_s: quantile(times, 0.9), mean_s })
    }
}

/// Returns a quantile of sorted durations in microseconds, in seconds: between two of them by their distance.
/// Source: Hyndman, Fan 1996, The American Statistician 50, 361-365, definition 7.
fn quantile(sorted: &[i64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let low = place.floor() as usize;
    let high = (low + 1).min(sorted.len() - 1);
    let (low_s, high_s) = (sorted[low] as f64 / SECOND_US, sorted[high] as f64 / SECOND_US);
    low_s + (high_s - low_s) * (place - low as f64)
}

/// Puts sorted durations into bins of equal width, whole seconds; one more than asked for, since the last one holds the greatest.
/// Source: PostHog, `funnel_time_to_convert_udf.py`: as many bins as the cube root of the number of durations, 1 to 60.
fn histogram(sorted: &[i64], bins: Option<usize>) -> (Vec<i64>, Vec<u64>) {
    let (Some(least), Some(greatest)) = (sorted.first(), sorted.last()) else {
        return (Vec::new(), Vec::new());
    };
    let bins = bins.unwrap_or((sorted.len() as f64).cbrt().ceil().clamp(1.0, BINS_MAX) as usize);
    let least_s = least.div_euclid(1_000_000);
    let range_us = greatest - least_s * 1_000_000;
    let width_s = match (range_us as f64 / SECOND_US / bins as f64).ceil() as i64 {
        0 => 60,
        width => width,
    };
    let mut counts = vec![0u64; bins + 1];
    for time in sorted {
        let bin = (time - least_s * 1_000_000) / (width_s * 1_000_000);
        counts[(bin as usize).min(bins)] += 1;
    }
    let edges = (0..bins as i64 + 2).map(|edge| least_s + edge * width_s).collect();
    (edges, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_summed_up() {
        let mut times = vec![4_000_000, 1_000_000, 2_000_000, 10_000_000];
        let found = Times::of(&mut times).expect("some");
        // numpy.quantile([1, 2, 4, 10], [.5, .9])
        assert_eq!((found.median_s, found.mean_s), (3.0, 4.25));
        assert!((found.p90_s - 8.2).abs() < 1e-12, "{}", found.p90_s);
        assert!(Times::of(&mut []).is_none());
        let one = Times::of(&mut [1_500_000]).expect("some");
        assert_eq!((one.median_s, one.p90_s, one.mean_s), (1.5, 1.5, 1.5));
    }

    #[test]
    fn durations_are_put_into_bins() {
        let seconds = |times: &[i64]| times.iter().map(|time| time * 1_000_000).collect::<Vec<_>>();
        assert_eq!(histogram(&[], None), (vec![], vec![]));
        assert_eq!(histogram(&seconds(&[5]), None), (vec![5, 65, 125], vec![1, 0]));
        assert_eq!(histogram(&seconds(&[0, 3, 59, 60]), Some(2)), (vec![0, 30, 60, 90], vec![2, 1, 1]));
        // 8 durations: 2 bins, of 5 seconds.
        assert_eq!(histogram(&seconds(&[1, 1, 2, 3, 4, 6, 9, 11]), None), (vec![1, 6, 11, 16], vec![5, 2, 1]));
        let (edges, counts) = histogram(&[1_500_000, 2_500_000, 9_000_001], Some(3));
        assert_eq!((edges.len(), counts.iter().sum::<u64>()), (5, 3));
    }
}
