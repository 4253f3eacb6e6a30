//! Statistics as pure functions: moments in, estimates, intervals and p-values out. No I/O, no random numbers.
//!
//! What the functions share:
//!
//! - An undefined number is an error or `None`, never a made-up value: no p of 1, no interval without width.
//! - P-values come from survival functions and carry their logarithm, which stays finite where the number underflows.
//! - Decisions are taken on the absolute difference. The relative interval is Fieller's with the same t, so that p, the
//!   absolute interval and the relative interval always agree about significance.
//!
//! The expected numbers of the tests were returned by other libraries (each case names its own) and lie in
//! `testdata/statistics`.

pub mod bayes_beta;
pub mod bayes_normal;
pub mod beta;
pub mod capping;
pub mod comparison;
pub mod credit;
pub mod cuped;
pub mod decision;
pub mod distributions;
pub mod effect;
#[cfg(test)]
mod false_alarms;
#[cfg(test)]
mod golden;
pub mod group_sequential;
pub mod guardrail;
pub mod means;
pub mod moments;
pub mod multiplicity;
pub mod power;
pub mod proportions;
pub mod quantile;
pub mod rate_ratio;
pub mod rates;
pub mod ratio;
#[cfg(test)]
mod robustness;
pub mod rows;
pub mod sample_ratio;
pub mod sequential;
mod special;
pub mod strata;
pub mod sums;
