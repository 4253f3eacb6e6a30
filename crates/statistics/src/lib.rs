//! Statistics as pure functions: moments in, estimates, intervals and p-values out. No I/O, no random numbers.
//!
//! What the functions share:
//!
//! - An undefined number is an error or `None`, never a made-up value: no p of 1, no interval without width.
//! - P-values come from survival functions and carry their logarithm, which stays finite where the number underflows.
//! - Decisions are taken on the absolute difference. The relative interval is Fieller's with the same t, so that p, the
//!   absolute interval and the relative interval always agree about significance.
//!
//! - Whatever starts from users starts from exact sums ([`moments`], [`sums`]). What a test takes is a
//!   [`comparison::Observed`]: a mean with its variance or a count, or why there is none.
//! - Root searches and sums have a bound on their steps; no input makes a function hang, panic or return a NaN
//!   (`robustness.rs`).
//!
//! Where to find what:
//!
//! | Question | Function |
//! |---|---|
//! | Is there a difference? | [`comparison::compare`], which rests on [`comparison::difference`]; its intervals at any level: [`difference::Difference`] |
//! | A share of users with few conversions | [`proportions`]; what calculators show: [`rates`]; several variants: [`comparison::omnibus`] |
//! | A sum per another sum; a quantile | [`ratio::RatioSums::observed`], [`quantile::Quantile::observed`] |
//! | With what was known of users before | [`regression::Coefficients::interacted`], then [`regression::adjusted`] |
//! | Without the largest users | [`capping::cap_value`] |
//! | While the experiment runs | [`sequential::confidence_sequence`], [`sequential::hybrid`], [`group_sequential::bounds`] then [`group_sequential::look`] |
//! | How probable is it, what does a wrong choice cost? | [`bayes_normal::posterior`], [`bayes_beta::compare`], [`bayes_beta::probability_best`] |
//! | Many metrics and variants | [`multiplicity::adjust`] |
//! | Are the users the right ones? | [`sample_ratio::sample_ratio`], [`sample_ratio::sequential`] |
//! | How many users, how many days? | [`power::Plan`] before, [`power::mid_experiment`] while it runs |
//! | Must not get worse | [`guardrail::non_inferiority`] then [`guardrail::state`] |
//! | By parts of the users; scaled to all traffic | [`strata::post_stratified`], [`effect::heterogeneity`], [`effect::shrunken`], [`strata::impact_per_day`] |
//! | Who gets the credit for a conversion? | [`credit::Model::divide_whole`] |
//! | What to do? | [`decision::decide`] |
//!
//! The expected numbers of the tests were returned by other libraries (each case names its own) and lie in
//! `testdata`; `tests/golden` runs all of them. [`false_alarms`] simulates how often each method for early looks raises a false
//! alarm, and finds an effect; the example of that name prints it.

pub mod bayes_beta;
pub mod bayes_normal;
pub mod beta;
pub mod capping;
pub mod comparison;
pub mod credit;
pub mod decision;
pub mod difference;
pub mod distributions;
pub mod effect;
pub mod false_alarms;
pub mod group_sequential;
pub mod guardrail;
pub mod means;
pub mod moments;
pub mod multiplicity;
pub mod power;
pub mod proportions;
pub mod quantile;
pub mod rates;
pub mod ratio;
pub mod regression;
#[cfg(test)]
mod robustness;
pub mod sample_ratio;
mod score;
pub mod sequential;
mod special;
pub mod strata;
pub mod sums;

pub use ethnum::I256;
