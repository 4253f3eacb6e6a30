//! Hours, days, weeks and months of UTC.

use chrono::{DateTime, Datelike, Days, Months, NaiveTime, Utc};

/// By what times are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Hours.
    Hour,
    /// Days.
    Day,
    /// Weeks; they begin on Mondays.
    Week,
    /// Months.
    Month,
}

/// Words of options and what they mean.
pub(super) const PERIODS: [(&str, Period); 4] =
    [("hour", Period::Hour), ("day", Period::Day), ("week", Period::Week), ("month", Period::Month)];

const HOUR_US: i64 = 3_600_000_000;

impl Period {
    /// Returns its name in requests.
    pub fn name(self) -> &'static str {
        PERIODS.iter().find(|(_, period)| *period == self).map_or("", |(name, _)| name)
    }

    /// Returns the beginning of the one that a time lies in; microseconds since 1970.
    pub fn start(self, time: i64) -> i64 {
        match self {
            Period::Hour => time.div_euclid(HOUR_US) * HOUR_US,
            Period::Day => time.div_euclid(24 * HOUR_US) * 24 * HOUR_US,
            // 1970 began on a Thursday.
            Period::Week => (time + 72 * HOUR_US).div_euclid(168 * HOUR_US) * 168 * HOUR_US - 72 * HOUR_US,
            Period::Month => Self::month(time, Some),
        }
    }

    /// Returns the beginning of the one after that which begins at `start`.
    pub fn next(self, start: i64) -> i64 {
        match self {
            Period::Hour => start.saturating_add(HOUR_US),
            Period::Day => start.saturating_add(24 * HOUR_US),
            Period::Week => start.saturating_add(168 * HOUR_US),
            Period::Month => Self::month(start, |day| day.checked_add_months(Months::new(1))),
        }
    }

    /// A time beyond the calendar stands for itself.
    fn month(time: i64, then: impl Fn(chrono::NaiveDate) -> Option<chrono::NaiveDate>) -> i64 {
        let day = DateTime::<Utc>::from_timestamp_micros(time).map(|time| time.date_naive());
        let first = day.and_then(|day| day.checked_sub_days(Days::new(u64::from(day.day0()))));
        first.and_then(then).map_or(time, |day| day.and_time(NaiveTime::MIN).and_utc().timestamp_micros())
    }

    /// Writes the beginning of one: its day, or its hour.
    pub fn text(self, start: i64) -> String {
        let time = crate::source::snapshot::time_text(start);
        if self == Period::Hour { time } else { time.split('T').next().unwrap_or_default().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_in_periods() {
        let us = |text: &str| DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros();
        let check = |period: Period, time: &str, start: &str, next: &str| {
            let found = period.start(us(time));
            assert_eq!((period.text(found).as_str(), period.text(period.next(found)).as_str()), (start, next), "{time}");
            assert_eq!(period.start(found), found);
            assert_eq!(period.start(period.next(found) - 1), found);
        };
        check(Period::Hour, "2026-03-01T10:59:59.999999Z", "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z");
        check(Period::Day, "2026-02-28T23:59:59Z", "2026-02-28", "2026-03-01");
        check(Period::Week, "2026-03-01T10:00:00Z", "2026-02-23", "2026-03-02");
        check(Period::Week, "1969-12-30T10:00:00Z", "1969-12-29", "1970-01-05");
        check(Period::Month, "2026-12-31T10:00:00Z", "2026-12-01", "2027-01-01");
        check(Period::Month, "1969-02-01T00:00:00Z", "1969-02-01", "1969-03-01");
    }
}
