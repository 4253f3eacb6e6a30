//! Random and extreme inputs to every public function: none may hang, panic, or answer with a number that is none.

use ethnum::I256;

use crate::bayes_beta::{self, credible_interval, probability_best};
use crate::bayes_normal::{self, posterior};
use crate::beta::Beta;
use crate::capping::cap_value;
use crate::comparison::{Observed, Sample, compare, omnibus};
use crate::credit::Model;
use crate::difference::Difference;
use crate::distributions::PValue;
use crate::distributions::{chi_square_sf, normal_isf, normal_sf, student_isf, student_sf, student_upper};
use crate::effect::{Alternative, Effect, Scale, heterogeneity};
use crate::false_alarms::Random;
use crate::group_sequential::{Seen, Sides, bounds, look};
use crate::guardrail::{Direction, non_inferiority, state, two_sided};
use crate::means::Arm;
use crate::moments::Moments;
use crate::multiplicity::{Correction, Member, adjust};
use crate::power::{self, Target};
use crate::proportions::{Count, fisher, newcombe, pooled_z, wilson};
use crate::quantile::{self, Quantile};
use crate::rates;
use crate::ratio::RatioSums;
use crate::regression::{self, Coefficients, JointSums, Term};
use crate::sample_ratio::{sample_ratio, sequential as sequential_shares};
use crate::sequential::{Tuning, confidence_sequence, hybrid, normal_mixture_bound, tightest_at};
use crate::strata::{Cell, Traffic, impact_per_day, post_stratified};
use crate::sums::Sums;

const INPUTS: u64 = 100_000;

/// Inputs that are ordinary, or at the edge of what there is.
struct Inputs(Random);

impl Inputs {
    fn choose<T: Copy>(&mut self, list: &[T]) -> T {
        list[(self.0.bits() % list.len() as u64) as usize]
    }

    fn users(&mut self) -> u64 {
        let ordinary = 10.0_f64.powf(self.0.unit() * 9.3) as u64;
        self.choose(&[0, 1, 2, 3, ordinary, ordinary, ordinary, 1_000_000_000, 2_000_000_000])
    }

    fn part(&mut self, users: u64) -> u64 {
        let part = (users as f64 * self.0.unit().powi(3)) as u64;
        self.choose(&[0, users, users.min(1), users.saturating_sub(1), part, part, part, part]).min(users)
    }

    fn count(&mut self) -> Count {
        let users = self.users();
        Count { users, converted: self.part(users) }
    }

    fn value(&mut self) -> f64 {
        let ordinary = (self.0.unit() - 0.5) * 10.0_f64.powf(self.0.unit() * 8.0);
        self.choose(&[0.0, -0.0, 1.0, -1.0, 1e-9, -1e-9, 1e14, -1e14, ordinary, ordinary, ordinary, ordinary])
    }

    fn variance(&mut self) -> f64 {
        let ordinary = 10.0_f64.powf(self.0.unit() * 12.0 - 4.0);
        self.choose(&[0.0, 1e-20, 1e28, ordinary, ordinary, ordinary, ordinary])
    }

    fn level(&mut self) -> f64 {
        let ordinary = self.0.unit();
        self.choose(&[0.05, 0.01, 0.1, 0.2, 1e-9, 0.49, 0.999, ordinary])
    }

    fn mean(&mut self) -> Sample {
        let users = self.users();
        let spread = if users < 2 { 0.0 } else { self.variance() };
        Sample::Mean(Arm { users, mean: self.value(), variance: spread })
    }

    fn pair(&mut self) -> (Sample, Sample) {
        if self.0.bits().is_multiple_of(2) {
            (Sample::Share(self.count()), Sample::Share(self.count()))
        } else {
            (self.mean(), self.mean())
        }
    }

    fn scale(&mut self) -> Scale {
        self.choose(&[Scale::Absolute, Scale::Relative])
    }

    fn alternative(&mut self) -> Alternative {
        self.choose(&[Alternative::TwoSided, Alternative::Greater, Alternative::Less])
    }

    fn effect(&mut self) -> Effect {
        let std_error = self.variance().max(1e-12);
        let dof = 1.0 + 10.0_f64.powf(self.0.unit() * 9.3);
        Effect { estimate: self.value(), std_error, dof: self.choose(&[1.0, 2e9, dof, dof]) }
    }

    fn difference(&mut self) -> Difference {
        let (effect, baseline_variance) = (self.effect(), self.variance());
        let (baseline, treatment, slope) = (self.value(), self.value(), self.choose(&[0.0, -1.0, 0.3]));
        let Effect { estimate, std_error, dof } = effect;
        let rest_variance = std_error * std_error;
        Difference { estimate, std_error, dof, baseline, baseline_variance, treatment, slope, rest_variance, shares: None }
    }

    /// Values of a few users, in millionths.
    fn few(&mut self) -> Vec<i128> {
        let count = self.0.bits() % 12;
        (0..count).map(|_| (self.value() * 1e6) as i128).collect()
    }
}

/// Fails unless all numbers are numbers.
fn numbers(name: &str, input: &dyn std::fmt::Debug, found: &[f64]) {
    assert!(found.iter().all(|number| number.is_finite()), "{name} of {input:?}: {found:?}");
}

/// Fails unless all are probabilities.
fn chances(name: &str, input: &dyn std::fmt::Debug, found: &[f64]) {
    assert!(found.iter().all(|p| (0.0..=1.0).contains(p)), "{name} of {input:?}: {found:?}");
}

fn pairs(ends: &[Option<(f64, f64)>]) -> Vec<f64> {
    ends.iter().flatten().flat_map(|ends| [ends.0, ends.1]).collect()
}

fn options(found: &[Option<f64>]) -> Vec<f64> {
    found.iter().flatten().copied().collect()
}

#[test]
fn no_input_breaks_a_function() {
    let started = std::time::Instant::now();
    let mut inputs = Inputs(Random(7));
    for round in 0..INPUTS {
        match round % 20 {
            0 | 1 => comparisons(&mut inputs),
            2 | 3 => effects(&mut inputs),
            4 => shares(&mut inputs),
            5 => sequences(&mut inputs),
            6 => bayes(&mut inputs),
            7 => quantiles(&mut inputs),
            8 | 9 => sums(&mut inputs),
            10 => distributions(&mut inputs),
            11 => families(&mut inputs),
            12 => ratios_of_users(&mut inputs),
            13 => powers(&mut inputs),
            14 => credits(&mut inputs),
            15 => guardrails(&mut inputs),
            16 => cells(&mut inputs),
            17 | 18 => posteriors(&mut inputs),
            // Plans of many looks cost more than all else.
            _ if round % 400 == 19 => plans(&mut inputs),
            _ => caps(&mut inputs),
        }
    }
    assert!(started.elapsed().as_secs() < 120, "{:?}", started.elapsed());
}

fn comparisons(inputs: &mut Inputs) {
    let (pair, alpha) = (inputs.pair(), inputs.level());
    let [control, treatment] = [pair.0, pair.1].map(Observed::from);
    let found = compare(&control, &treatment, alpha);
    let mut all = options(&[found.estimate, found.lift]);
    all.extend(pairs(&[found.interval(alpha), pair.0.interval(alpha)]));
    if let Some(difference) = found.difference {
        let critical = difference.critical(alpha);
        all.extend([difference.z(), difference.dof, difference.std_error, critical]);
        all.extend(pairs(&[difference.relative(critical)]));
        all.extend(options(&[difference.g(critical), found.p_value().map(|p| p.log10)]));
    }
    numbers("compare", &(pair, alpha), &all);
    chances("compare", &pair, &options(&[found.p_value().map(|p| p.p)]));
    let third = Observed::from(inputs.mean());
    let all = omnibus(&[control, treatment, third]);
    numbers("omnibus", &(pair, third), &options(&[all.map(|all| all.statistic), all.map(|all| all.p_value.log10)]));
}

fn effects(inputs: &mut Inputs) {
    let (pair, scale, alpha) = (inputs.pair(), inputs.scale(), inputs.level());
    let found = crate::comparison::difference(&pair.0.into(), &pair.1.into()).and_then(|difference| difference.effect(scale));
    let found = match found {
        Ok(found) => found,
        Err(undefined) => return numbers("undefined", &pair, &options(&[undefined.estimate, undefined.lift])),
    };
    let tested = found.test(inputs.alternative(), alpha);
    let input = (pair, scale, alpha, found);
    numbers("effect", &input, &[found.estimate, found.std_error, found.dof, tested.log10_p]);
    numbers("effect", &input, &options(&[tested.low, tested.high]));
    chances("effect", &input, &[tested.p_value]);
}

fn shares(inputs: &mut Inputs) {
    let (control, treatment, alpha) = (inputs.count(), inputs.count(), inputs.level());
    let input = (control, treatment, alpha);
    let (pooled, unpooled) = (pooled_z(control, treatment), rates::unpooled_z(control, treatment));
    numbers("z", &input, &options(&[pooled.map(|(z, _)| z), unpooled.map(|(z, _)| z)]));
    numbers("z", &input, &options(&[pooled.map(|(_, tail)| tail.ln), unpooled.map(|(_, tail)| tail.ln)]));
    let ends = [
        wilson(control, alpha),
        newcombe(control, treatment, alpha),
        rates::wald(control, treatment, alpha),
        rates::agresti_caffo(control, treatment, alpha),
        rates::clopper_pearson(control, alpha),
        rates::relative_by_logarithm(control, treatment, alpha.max(1e-6)),
    ];
    numbers("interval", &input, &pairs(&ends));
    if let Some(score) = Difference::pooled(control, treatment) {
        let critical = score.critical(alpha);
        numbers("score", &input, &[score.estimate, score.std_error, score.z(), score.p_value().log10]);
        numbers("score's intervals", &input, &pairs(&[Some(score.absolute(critical)), score.relative(critical)]));
    }
    // Fisher's test of millions of tables takes long and is not asked for by a comparison.
    if control.is_small() && treatment.is_small() {
        chances("fisher", &input, &options(&[fisher(control, treatment).map(|tail| tail.p)]));
    }
    let all = omnibus(&[control, treatment, inputs.count()].map(|count| Sample::Share(count).into()));
    numbers("omnibus", &input, &options(&[all.map(|all| all.statistic), all.map(|all| all.p_value.log10)]));
}

fn sequences(inputs: &mut Inputs) {
    let (difference, users, alpha) = (inputs.difference(), inputs.users().max(1), inputs.level());
    let tuning = Tuning { tightest_at: tightest_at(Some(inputs.users()), 2.0, 3.0), alpha: inputs.level() };
    let input = (difference, users, alpha, tuning);
    let found = confidence_sequence(difference.z(), users, alpha, &tuning);
    numbers("sequence", &input, &[found.critical, found.p_value.log10, found.log10_e]);
    chances("sequence", &input, &[found.p_value.p]);
    let found = hybrid(&difference, users, alpha, &tuning, inputs.0.bits().is_multiple_of(2));
    numbers("hybrid", &input, &[found.critical, found.p_value.log10]);
    let (v, optimal) = (inputs.variance(), inputs.variance());
    numbers("bound", &(v, optimal), &options(&[normal_mixture_bound(v, alpha, optimal, inputs.level())]));
}

fn bayes(inputs: &mut Inputs) {
    let prior = inputs.choose(&[
        bayes_beta::Prior::UNIFORM,
        bayes_beta::Prior { a: 0.5, b: 0.5 },
        bayes_beta::Prior { a: 20.0, b: 180.0 },
    ]);
    let counts = [inputs.count(), inputs.count(), inputs.count()];
    let posteriors: Vec<Beta> = counts.iter().filter_map(|count| prior.posterior(*count)).collect();
    let found = bayes_beta::compare(&posteriors[0], &posteriors[1]);
    let input = (prior, counts);
    chances("bayes", &input, &[found.chance_control, found.chance_treatment]);
    chances("bayes", &input, &[found.expected_loss_control, found.expected_loss_treatment]);
    let whole = found.expected_loss_control - found.expected_loss_treatment;
    let difference = posteriors[1].mean() - posteriors[0].mean();
    assert!((whole - difference).abs() < 1e-9, "losses of {input:?}: {found:?}, difference {difference}");
    chances("best", &input, &probability_best(&posteriors));
    chances("credible", &input, &pairs(&[Some(credible_interval(&posteriors[0], inputs.level()))]));
}

fn quantiles(inputs: &mut Inputs) {
    let level = inputs.choose(&[0.0, 0.5, 0.9, 0.99, 1.0, 0.001]);
    let mut one = || {
        let (users, centre, width) = (inputs.users(), inputs.value(), inputs.variance());
        Quantile { values: users, placed_for: inputs.users(), level, estimate: centre, low: centre - width, high: centre + width }
    };
    let (control, treatment) = (one(), one());
    let (one, two) = (control.observed(), treatment.observed());
    if let Ok(found) = crate::comparison::difference(&one, &two) {
        numbers("quantile", &(control, treatment), &[found.estimate, found.std_error, found.dof]);
    }
    let mut values: Vec<f64> = (0..9).map(|_| inputs.value()).collect();
    let found = quantile::quantile(&mut values, level);
    numbers("quantile", &values, &pairs(&[found.map(|found| (found.low, found.high))]));
}

fn moments(values: &[i128]) -> Moments {
    let mut moments = Moments::default();
    for value in values {
        moments.add(*value).expect("fits");
    }
    moments
}

/// The sums of some users over two quantities, the second one sometimes the same, or a share.
fn two_sums(inputs: &mut Inputs) -> (Sums, Sums, I256) {
    let one = inputs.few();
    let other: Vec<i128> = match inputs.0.bits() % 4 {
        0 => one.clone(),
        1 => one.iter().map(|value| i128::from(*value > 0) * Moments::SCALE).collect(),
        2 => vec![0; one.len()],
        _ => one.iter().map(|_| (inputs.value() * 1e6) as i128).collect(),
    };
    let products = one.iter().zip(&other).map(|(x, y)| I256::from(*x) * I256::from(*y));
    let products = products.fold(I256::ZERO, |sum, product| sum + product);
    (Sums::Values(moments(&one)), Sums::Values(moments(&other)), products)
}

fn sums(inputs: &mut Inputs) {
    let mut one = || {
        let (post, pre, products) = two_sums(inputs);
        JointSums { quantities: vec![post, pre], products: vec![products] }
    };
    let (control, treatment) = (one(), one());
    adjusted_by(&control, &treatment, &[Term::Mean(0), Term::Mean(1)]);
}

fn adjusted_by(control: &JointSums, treatment: &JointSums, terms: &[Term]) {
    let joint = |sums: &JointSums| sums.joint(terms).expect("fits");
    let (Some(one), Some(two)) = (joint(control), joint(treatment)) else { return };
    let input = (control, treatment);
    for coefficients in [Coefficients::interacted(&one, &two), Coefficients::common(&one, &two).of_part()] {
        numbers("coefficients", &input, &coefficients.of);
        if let Ok(found) = regression::adjusted(&one, &two, &coefficients) {
            let difference = found.difference;
            numbers("adjusted", &input, &[difference.estimate, difference.std_error, difference.dof, difference.slope]);
            numbers("adjusted", &input, &options(&[found.variance_reduction_control, found.variance_reduction_treatment]));
        }
    }
}

fn ratios_of_users(inputs: &mut Inputs) {
    let mut one = || {
        let (numerator, denominator, products) = two_sums(inputs);
        RatioSums { numerator, denominator, products }
    };
    let (control, treatment) = (one(), one());
    let (one, two) = (control.observed().expect("fits"), treatment.observed().expect("fits"));
    if let Ok(found) = crate::comparison::difference(&one, &two) {
        numbers("ratio", &(control, treatment), &[found.estimate, found.std_error, found.dof]);
    }
    // A ratio that is the same before.
    let both = |sums: RatioSums| JointSums {
        quantities: vec![sums.numerator, sums.denominator, sums.numerator, sums.denominator],
        products: vec![
            sums.products,
            sums.numerator.squares(),
            sums.products,
            sums.products,
            sums.denominator.squares(),
            sums.products,
        ],
    };
    for terms in [[Term::Ratio(0, 1), Term::Ratio(2, 3)].as_slice(), &[Term::Ratio(0, 1), Term::Mean(2), Term::Mean(3)]] {
        adjusted_by(&both(control), &both(treatment), terms);
    }
}

fn distributions(inputs: &mut Inputs) {
    let (x, upper) = (inputs.value().abs(), inputs.level());
    let dof = inputs.effect().dof;
    let input = (x, dof, upper);
    let tails = [student_sf(x, dof), student_upper(-x, dof), normal_sf(x), normal_sf(-x), chi_square_sf(x, dof)];
    chances("tail", &input, &tails.map(|tail| tail.p));
    numbers("tail", &input, &tails.map(|tail| tail.ln));
    numbers("quantile", &input, &[normal_isf(upper), student_isf(upper, dof)]);
    let (a, b) = (inputs.variance(), inputs.variance());
    if let Some(beta) = Beta::new(a, b) {
        chances("beta", &(a, b, upper), &[beta.quantile(upper), beta.upper_quantile(upper), beta.cdf(upper).p, beta.sf(upper).p]);
    }
}

fn families(inputs: &mut Inputs) {
    let count = inputs.0.bits() % 9;
    let members: Vec<Member> = (0..count)
        .map(|_| {
            let p = inputs.0.unit();
            let p = inputs.choose(&[None, Some(0.0), Some(1.0), Some(1e-300), Some(p), Some(p)]);
            let p_value = p.map(|p| PValue { p, log10: if p > 0.0 { p.log10() } else { -400.0 } });
            Member { p_value, is_tested: p.is_some() || inputs.choose(&[false, true]), is_primary: inputs.choose(&[false, true]) }
        })
        .collect();
    use Correction::{BenjaminiHochberg, Bonferroni, Holm, None as Uncorrected, Preferential};
    for correction in [Uncorrected, Bonferroni, Holm, BenjaminiHochberg, Preferential] {
        let adjusted = adjust(&members, correction, 0.05);
        chances("adjusted", &members, &options(&adjusted.iter().map(|found| found.p_value.map(|p| p.p)).collect::<Vec<_>>()));
        numbers("adjusted", &members, &options(&adjusted.iter().map(|found| found.p_value.map(|p| p.log10)).collect::<Vec<_>>()));
        chances("level", &members, &adjusted.iter().map(|found| found.alpha).collect::<Vec<_>>());
    }
    let users: Vec<u64> = (0..count).map(|_| inputs.users()).collect();
    let weights: Vec<f64> = (0..count).map(|_| inputs.choose(&[0.0, 0.5, 1.0, 98.0, 1e-12])).collect();
    let found = sample_ratio(&users, &weights, 0.001);
    numbers("shares", &(&users, &weights), &options(&[found.statistic, found.p_value, found.log10_p]));
    numbers("shares", &(&users, &weights), &found.observed);
    let daily = sequential_shares(&[users.clone(), users.clone()], &weights, 10_000.0);
    assert!(daily.iter().all(|log10| *log10 <= 0.0), "{users:?} {weights:?}: {daily:?}");
}

fn powers(inputs: &mut Inputs) {
    let (rate, effect, alpha, wanted) = (inputs.0.unit(), inputs.value(), inputs.level(), inputs.level());
    let input = (rate, effect, alpha, wanted);
    let (one, two) = (inputs.variance(), inputs.users() as f64);
    let found = [
        power::sample_size_two_rates(rate, effect, alpha, wanted),
        power::detectable_effect(one, alpha, wanted),
        power::detectable_difference(one, two, two, alpha, wanted),
        power::days_remaining(one, two),
        Some(power::progress(one, two)),
    ];
    numbers("power", &input, &options(&found));
    let weights: Vec<f64> = (0..inputs.0.bits() % 5).map(|_| inputs.choose(&[0.0, 0.5, 1.0, 1e-9])).collect();
    if let Some(found) = power::sample_size_variants(&weights, one, effect, alpha, wanted, two > 5.0) {
        assert_eq!(found.users.len(), weights.len());
    }
    let target = Target {
        effect: inputs.value(),
        power: wanted,
        goals: inputs.choose(&[0, 1, 5]),
        variants: inputs.choose(&[0, 1, 2, 6]),
        sequential_tightest_at: inputs.choose(&[None, Some(5_000.0)]),
    };
    let prior = inputs.choose(&[None, Some(bayes_normal::Prior::SHRUNK)]);
    let (so_far, users) = (inputs.effect(), inputs.users());
    if let Some(found) = power::mid_experiment(&so_far, users, alpha, &target, prior.as_ref()) {
        chances("power now", &(so_far, users, target), &[found.power_now]);
        numbers("forecast", &(so_far, users, target), &options(&[found.scaling_factor, found.additional_users]));
    }
}

fn credits(inputs: &mut Inputs) {
    let hours: Vec<f64> = (0..inputs.0.bits() % 9).map(|_| inputs.value()).collect();
    let value = (inputs.value() * 100.0) as i128;
    for model in [Model::FirstTouch, Model::Linear, Model::PositionBased, Model::TimeDecay { half_life_hours: inputs.variance() }]
    {
        numbers("credit", &(model, &hours), &model.divide(value as f64, &hours));
        let parts = model.divide_whole(value, &hours);
        assert!(parts.is_empty() || parts.iter().sum::<i128>() == value, "{model:?} {hours:?} {value}: {parts:?}");
    }
}

fn guardrails(inputs: &mut Inputs) {
    let (effect, mean, alpha) = (inputs.effect(), inputs.value(), inputs.level());
    let direction = inputs.choose(&[Direction::Increase, Direction::Decrease]);
    let found = non_inferiority(&effect, mean, inputs.0.unit(), direction, alpha);
    let tested = two_sided(&effect, alpha);
    let input = (effect, mean, alpha);
    numbers("guardrail", &input, &[found.bound, found.log10_p, found.margin_difference, tested.log10_p]);
    chances("guardrail", &input, &[found.p_value, tested.p_value]);
    state(&found, tested.p_value < alpha, direction);
}

fn cells(inputs: &mut Inputs) {
    let cells: Vec<Cell> = (0..inputs.0.bits() % 4)
        .map(|_| {
            let (control, treatment) = inputs.pair();
            Cell { control, treatment }
        })
        .collect();
    if let Ok(found) = post_stratified(&cells) {
        numbers("strata", &cells, &[found.estimate, found.std_error, found.dof]);
    }
    let effects: Vec<Effect> = (0..inputs.0.bits() % 4).map(|_| inputs.effect()).collect();
    let found = heterogeneity(&effects);
    numbers("heterogeneity", &effects, &options(&[found.map(|all| all.statistic), found.map(|all| all.p_value.log10)]));
    let effect = inputs.effect();
    let traffic =
        Traffic { users: inputs.users(), share: inputs.choose(&[0.0, 0.01, 1.0]), days: inputs.choose(&[0.0, 1.0, 400.0]) };
    let tested = effect.test(inputs.alternative(), 0.05);
    let impact = impact_per_day(effect.estimate, tested.low.zip(tested.high), &traffic);
    numbers("impact", &(effect, traffic), &options(&[impact.map(|impact| impact.estimate)]));
}

fn posteriors(inputs: &mut Inputs) {
    let (effect, mean, alpha) = (inputs.effect(), inputs.value(), inputs.level());
    let prior = bayes_normal::Prior::SHRUNK.on(inputs.scale(), mean);
    let found = posterior(&effect, prior.as_ref(), mean > 0.0, alpha);
    let input = (effect, prior, alpha);
    numbers("posterior", &input, &[found.mean, found.std_dev, found.interval.0, found.interval.1]);
    numbers("posterior", &input, &[found.expected_loss_control, found.expected_loss_treatment]);
    chances("posterior", &input, &[found.chance_to_win]);
}

fn plans(inputs: &mut Inputs) {
    let fractions: Vec<f64> = (0..inputs.0.bits() % 12)
        .map(|_| {
            let ordinary = inputs.0.unit();
            inputs.choose(&[0.0, 1.0, 1.5, 1e-6, f64::NAN, ordinary, ordinary, ordinary, ordinary])
        })
        .collect();
    let (alpha, power) = (inputs.level(), inputs.choose(&[0.5, 1.0, 2.0, 3.0]));
    let found = bounds(&fractions, alpha, inputs.choose(&[Sides::One, Sides::Two]), power);
    assert_eq!(found.len(), fractions.len());
    numbers("bounds", &(&fractions, alpha, power), &options(&found));
    let seen = [Some(Seen { z: inputs.value(), exact_p: None }), None, Some(Seen { z: inputs.value(), exact_p: Some(alpha) })];
    let found = look(&fractions, &found, &seen, alpha);
    numbers("look", &fractions, &options(&[found.map(|look| look.boundary_z)]));
}

fn caps(inputs: &mut Inputs) {
    let values = inputs.few();
    let percentile = inputs.choose(&[0.0, 50.0, 95.0, 99.9, 100.0, f64::NAN]);
    if let Some(cap) = cap_value(values.iter().copied(), percentile) {
        assert!(values.iter().max().is_some_and(|most| cap <= *most), "{values:?} {percentile}: {cap}");
    }
}
