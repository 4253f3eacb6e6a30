//! Regression adjustment: what was known of users before their first exposure explains a part of what they do after it, and that
//! part of the variance goes away.
//!
//! Each variant has slopes of its own (the interacted regression). Of two variants at the users' common mean of the covariates, that is
//! the difference of means less one coefficient per covariate, the mixture of both variants' slopes by [`Coefficients::interacted`]. So
//! the same coefficients can be taken off any part of the users, and parts add up to the whole.

use ethnum::I256;

use crate::difference::Difference;
use crate::effect::{Status, Undefined};
use crate::means::{Arm, NotTested, welch_parts};
use crate::moments::{Moments, Overflow, signed_to_f64};
use crate::sums::{Sums, cross_spread};

/// A covariate of which so small a part of the variance is not explained by those before it says nothing of its own.
const OWN_PART_MIN: f64 = 1e-8;
/// Users of the smaller variant for each covariate, at least: with fewer only the first one is used.
const USERS_PER_COVARIATE: u64 = 20;

/// Sums over the users of one variant of several quantities, exact.
#[derive(Clone, Debug, PartialEq)]
pub struct JointSums {
    /// Each quantity.
    pub quantities: Vec<Sums>,
    /// The sum over users of the product of each with each one before it, in millionths of millionths: of the second with the first, of the
    /// third with the first and the second, and so on.
    pub products: Vec<I256>,
}

/// What a variant's users come to, of the quantities in [`JointSums`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Term {
    /// The mean of one.
    Mean(usize),
    /// The sum of one over the sum of another.
    Ratio(usize, usize),
}

/// One variant as a regression takes it: what is explained first, then the covariates.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    users: u64,
    /// Whether what is explained is a ratio.
    is_ratio: bool,
    /// The means or ratios.
    values: Vec<f64>,
    /// The covariances over users, row by row; of ratios by the delta method.
    covariances: Vec<f64>,
}

impl JointSums {
    /// Returns the number of users.
    pub fn users(&self) -> u64 {
        self.quantities.first().map_or(0, Sums::users)
    }

    /// Returns the sums over the users of both, which have the same quantities.
    /// # Errors
    /// [`Overflow`].
    pub fn merged(&self, other: &JointSums) -> Result<JointSums, Overflow> {
        let quantities = self.quantities.iter().zip(&other.quantities).map(|(one, two)| one.merged(two));
        let products = self.products.iter().zip(&other.products).map(|(one, two)| one.checked_add(*two).ok_or(Overflow));
        Ok(JointSums { quantities: quantities.collect::<Result<_, _>>()?, products: products.collect::<Result<_, _>>()? })
    }

    /// Returns the variant as a regression of the first term on the others takes it; `None` without users, or if what a ratio is over
    /// sums to 0.
    /// # Errors
    /// [`Overflow`] if a sum is too large to be exact.
    /// Source: the covariances of ratios by the delta method, Deng, Knoblich, Lu 2018, Applying the Delta Method in Metric Analytics, KDD 24,
    /// 233-242.
    pub fn joint(&self, terms: &[Term]) -> Result<Option<Joint>, Overflow> {
        let users = self.users();
        let is_undefined = |term: &Term| matches!(term, Term::Ratio(_, over) if self.quantities[*over].sum() == 0);
        if users == 0 || terms.iter().any(is_undefined) {
            return Ok(None);
        }
        let covariances = self.covariances()?;
        let mean = |quantity: usize| self.quantities[quantity].sum() as f64 / users as f64 / Moments::SCALE as f64;
        // What each term moves by with the users' quantities.
        let parts = |term: &Term| -> (f64, Vec<(usize, f64)>) {
            match *term {
                Term::Mean(quantity) => (mean(quantity), vec![(quantity, 1.0)]),
                Term::Ratio(of, over) => {
                    let ratio = self.quantities[of].sum() as f64 / self.quantities[over].sum() as f64;
                    (ratio, vec![(of, 1.0 / mean(over)), (over, -ratio / mean(over))])
                }
            }
        };
        let parts: Vec<(f64, Vec<(usize, f64)>)> = terms.iter().map(parts).collect();
        let width = self.quantities.len();
        let covariance = |one: &[(usize, f64)], two: &[(usize, f64)]| -> f64 {
            let with = |(i, by): &(usize, f64)| two.iter().map(|(j, of)| by * of * covariances[i * width + j]).sum::<f64>();
            one.iter().map(with).sum()
        };
        let covariances = parts.iter().flat_map(|(_, one)| parts.iter().map(|(_, two)| covariance(one, two))).collect();
        let is_ratio = matches!(terms.first(), Some(Term::Ratio(..)));
        Ok(Some(Joint { users, is_ratio, values: parts.iter().map(|(value, _)| *value).collect(), covariances }))
    }

    /// The covariances of all quantities, row by row. Of shares alone they have the divisor of a share's variance.
    fn covariances(&self) -> Result<Vec<f64>, Overflow> {
        let (width, users) = (self.quantities.len(), self.users() as f64);
        let are_shares = self.quantities.iter().all(|sums| matches!(sums, Sums::Share(_)));
        let freedom = if are_shares { users } else { users - 1.0 };
        let scale = Moments::SCALE as f64;
        let mut found = vec![0.0; width * width];
        if freedom <= 0.0 {
            return Ok(found);
        }
        for i in 0..width {
            for j in 0..=i {
                let products = if i == j { self.quantities[i].squares() } else { self.products[i * (i - 1) / 2 + j] };
                let spread = signed_to_f64(cross_spread(&self.quantities[i], &self.quantities[j], products)?);
                let covariance = spread / users / freedom / (scale * scale);
                (found[i * width + j], found[j * width + i]) = (covariance, covariance);
            }
        }
        Ok(found)
    }
}

impl Joint {
    /// Returns the number of users.
    pub fn users(&self) -> u64 {
        self.users
    }

    /// Returns how many covariates there are.
    pub fn covariates(&self) -> usize {
        self.values.len().saturating_sub(1)
    }

    /// Returns the mean or ratio of what is explained, and its variance over users.
    pub fn response(&self) -> Arm {
        self.term(0)
    }

    /// Returns the mean or ratio of a covariate, and its variance over users.
    pub fn covariate(&self, place: usize) -> Arm {
        self.term(place + 1)
    }

    fn term(&self, place: usize) -> Arm {
        Arm { users: self.users, mean: self.values[place], variance: self.covariance(place, place) }
    }

    fn covariance(&self, one: usize, two: usize) -> f64 {
        self.covariances[one * self.values.len() + two]
    }

    /// Returns the slopes of the least-squares regression on some covariates; `None` if they explain each other.
    fn slopes(&self, used: &[usize]) -> Option<Vec<f64>> {
        let shared: Vec<f64> = used.iter().map(|place| self.covariance(0, place + 1)).collect();
        let row = |one: &usize| used.iter().map(|two| self.covariance(one + 1, two + 1)).collect::<Vec<f64>>();
        solved(used.iter().map(row).collect(), shared)
    }
}

/// How much of each covariate is taken off.
#[derive(Clone, Debug, PartialEq)]
pub struct Coefficients {
    /// In the unit of what is explained per unit of the covariate; 0 of those that are not used.
    pub of: Vec<f64>,
    /// How many slopes were estimated of the users whom they are taken off; 0 of a part of them.
    pub estimated: usize,
    /// Covariates that are not used, since others say the same or there are too few users.
    pub unused: Vec<usize>,
}

impl Coefficients {
    /// Returns the coefficients of the regression in which each variant has its own slopes, at the common mean of the covariates: with n
    /// users and slopes b of control (c) and treatment (t), (n_c b_t + n_t b_c) / (n_c + n_t). A variant whose slopes cannot be told has those
    /// of both together.
    /// Source: Lin 2013, Agnostic Notes on Regression Adjustments to Experimental Data, Annals of Applied Statistics 7, 295-318; which covariates
    /// are used by a Cholesky decomposition with pivots.
    pub fn interacted(control: &Joint, treatment: &Joint) -> Self {
        let common = Self::common(control, treatment);
        let used: Vec<usize> = (0..common.of.len()).filter(|place| !common.unused.contains(place)).collect();
        let slopes = |arm: &Joint| {
            let own = if arm.users as usize > used.len() + 1 { arm.slopes(&used) } else { None };
            own.unwrap_or_else(|| used.iter().map(|place| common.of[*place]).collect())
        };
        let (of_control, of_treatment) = (slopes(control), slopes(treatment));
        let (users, others) = (control.users as f64, treatment.users as f64);
        let mut of = vec![0.0; common.of.len()];
        for ((place, one), two) in used.iter().zip(&of_control).zip(&of_treatment) {
            of[*place] = (users * two + others * one) / (users + others);
        }
        Coefficients { of, ..common }
    }

    /// Returns the coefficients of both variants together, each with the same weight: those of one slope for both, as of Deng, Xu, Kohavi,
    /// Walker 2013.
    pub fn common(control: &Joint, treatment: &Joint) -> Self {
        let both = pooled(control, treatment);
        let count = control.covariates().min(treatment.covariates());
        let fewest = control.users.min(treatment.users);
        let considered = if fewest < USERS_PER_COVARIATE * count as u64 { count.min(1) } else { count };
        let used = independent(&both, considered);
        let mut of = vec![0.0; count];
        for (place, slope) in used.iter().zip(both.slopes(&used).unwrap_or_default()) {
            of[*place] = slope;
        }
        let unused = (0..count).filter(|place| !used.contains(place)).collect();
        Coefficients { of, estimated: used.len(), unused }
    }

    /// Returns the same, taken off a part of the users that they were estimated of.
    pub fn of_part(self) -> Self {
        Coefficients { estimated: 0, ..self }
    }

    /// Returns whether nothing is taken off.
    pub fn is_zero(&self) -> bool {
        self.of.iter().all(|coefficient| *coefficient == 0.0)
    }
}

/// Both variants together, each around its own means and with the same weight.
fn pooled(control: &Joint, treatment: &Joint) -> Joint {
    let half = |one: &f64, two: &f64| (one + two) / 2.0;
    Joint {
        users: control.users + treatment.users,
        is_ratio: control.is_ratio,
        values: control.values.iter().zip(&treatment.values).map(|(one, two)| half(one, two)).collect(),
        covariances: control.covariances.iter().zip(&treatment.covariances).map(|(one, two)| half(one, two)).collect(),
    }
}

/// Returns which of the first covariates say something that those chosen before do not, ascending. The first one, which is what users
/// did before of the same, is chosen first, then always the one that says most.
fn independent(joint: &Joint, count: usize) -> Vec<usize> {
    let own = |place: usize| joint.covariance(place + 1, place + 1);
    let mut rest: Vec<f64> = (0..count).map(own).collect();
    let mut chosen: Vec<usize> = Vec::new();
    let mut columns: Vec<Vec<f64>> = Vec::new();
    loop {
        let part = |place: usize| if own(place) > 0.0 { rest[place] / own(place) } else { 0.0 };
        let left = (0..count).filter(|place| !chosen.contains(place) && part(*place) > OWN_PART_MIN);
        let next = if chosen.is_empty() && count > 0 && part(0) > OWN_PART_MIN {
            Some(0)
        } else {
            left.max_by(|one, two| part(*one).total_cmp(&part(*two)).then(two.cmp(one)))
        };
        let Some(pivot) = next else { break };
        let root = rest[pivot].sqrt();
        let entry = |place: usize| {
            let known: f64 = columns.iter().map(|column| column[place] * column[pivot]).sum();
            (joint.covariance(place + 1, pivot + 1) - known) / root
        };
        let column: Vec<f64> = (0..count).map(entry).collect();
        for (rest, entry) in rest.iter_mut().zip(&column) {
            *rest -= entry * entry;
        }
        columns.push(column);
        chosen.push(pivot);
    }
    chosen.sort_unstable();
    chosen
}

/// Solves a system of equations whose matrix is symmetric and positive, by Cholesky's decomposition; `None` if it is not.
fn solved(matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let size = right.len();
    let mut lower = vec![vec![0.0; size]; size];
    for i in 0..size {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
            let rest = matrix[i][j] - known;
            if i == j {
                if rest.is_nan() || rest <= OWN_PART_MIN * matrix[i][i] {
                    return None;
                }
                lower[i][i] = rest.sqrt();
            } else {
                lower[i][j] = rest / lower[j][j];
            }
        }
    }
    for i in 0..size {
        let known: f64 = (0..i).map(|k| lower[i][k] * right[k]).sum();
        right[i] = (right[i] - known) / lower[i][i];
    }
    for i in (0..size).rev() {
        let known: f64 = (i + 1..size).map(|k| lower[k][i] * right[k]).sum();
        right[i] = (right[i] - known) / lower[i][i];
    }
    Some(right)
}

/// An adjusted difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjusted {
    /// The adjusted difference.
    pub difference: Difference,
    /// The part of the control's variance that went away; `None` if it had none.
    pub variance_reduction_control: Option<f64>,
    /// The part of the treatment's variance that went away; `None` if it had none.
    pub variance_reduction_treatment: Option<f64>,
}

/// Measures the difference of a treatment with the covariates' part taken off. It stays relative to the control's mean as it is, not the
/// adjusted one, and its variance says so. With the coefficients of [`Coefficients::interacted`] the variance holds for users drawn from
/// more of their kind: beside what the slopes leave it has what the common mean of the covariates is uncertain by.
/// # Errors
/// [`Undefined`] by the first of: fewer than 2 users; no variance.
/// Source: Deng, Xu, Kohavi, Walker 2013, Improving the Sensitivity of Online Controlled Experiments, WSDM 6, 123-132; Lin 2013; the
/// variance of the relative effect by the delta method with the unadjusted denominator.
pub fn adjusted(control: &Joint, treatment: &Joint, coefficients: &Coefficients) -> Result<Adjusted, Undefined> {
    let (one, two) = (part(control, coefficients), part(treatment, coefficients));
    let (before, after) = (control.response(), treatment.response());
    let (variance, dof) =
        welch_parts(&one.arm, &two.arm, true).map_err(|reason| undefined(reason, one.arm.mean, two.arm.mean, before.mean))?;
    // The control's mean as it is moves with the adjusted one by what they share.
    let slope = if before.variance > 0.0 { -one.shared / before.variance } else { 0.0 };
    let rest_of_control = (one.arm.variance + slope * one.shared).max(0.0) / one.arm.users as f64;
    let reduction = |own: &Arm, arm: &Arm| (own.variance > 0.0).then(|| 1.0 - arm.variance / own.variance);
    let estimate = two.arm.mean - one.arm.mean;
    Ok(Adjusted {
        difference: Difference {
            estimate,
            std_error: variance.sqrt(),
            dof,
            baseline: before.mean,
            baseline_variance: before.variance_of_mean(),
            // By which the delta method weighs the control's chance: of means it is customary to take the one that was there.
            treatment: if control.is_ratio { before.mean + estimate } else { after.mean },
            slope,
            rest_variance: two.arm.variance_of_mean() + rest_of_control,
            shares: None,
        },
        variance_reduction_control: reduction(&before, &one.arm),
        variance_reduction_treatment: reduction(&after, &two.arm),
    })
}

/// Says what is known of a difference of adjusted means that has no precision.
fn undefined(reason: NotTested, control: f64, treatment: f64, baseline: f64) -> Undefined {
    let estimate = treatment - control;
    let known = |status| Undefined::of(status, Some(baseline), Some(baseline + estimate));
    match reason {
        NotTested::NoData => Undefined::of(Status::NoData, None, None),
        NotTested::TooFewUsers => known(Status::InsufficientSample),
        NotTested::ZeroVariance => known(Status::ZeroVariance),
    }
}

struct Part {
    arm: Arm,
    /// The covariance of what is left with what was there.
    shared: f64,
}

/// Takes the covariates' part off one variant.
fn part(joint: &Joint, coefficients: &Coefficients) -> Part {
    // What is left is a combination of all terms.
    let weights: Vec<f64> = std::iter::once(1.0).chain(coefficients.of.iter().map(|coefficient| -coefficient)).collect();
    let with = |one: usize| weights.iter().enumerate().map(|(two, by)| by * joint.covariance(one, two)).sum::<f64>();
    let variance: f64 = weights.iter().enumerate().map(|(one, by)| by * with(one)).sum();
    let own: f64 = weights.iter().enumerate().map(|(one, by)| by * by * joint.covariance(one, one)).sum();
    // Where the covariates explain everything only rounding is left.
    let variance = if variance > 1e-14 * own { variance } else { 0.0 };
    let freedom = joint.users as f64 - 1.0;
    let lost = coefficients.estimated as f64;
    let variance = if freedom > lost { variance * freedom / (freedom - lost) } else { variance };
    let mean = weights.iter().zip(&joint.values).map(|(by, value)| by * value).sum();
    Part { arm: Arm { users: joint.users, mean, variance }, shared: with(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proportions::Count;
    use proptest::prelude::*;

    /// Sums of users' values in whole units; the first quantity is explained by the others.
    fn sums(users: &[Vec<i128>]) -> JointSums {
        let width = users.first().map_or(0, Vec::len);
        let mut quantities = vec![Moments::default(); width];
        let mut products = vec![I256::ZERO; width * width.saturating_sub(1) / 2];
        for user in users {
            for i in 0..width {
                quantities[i].add(user[i] * Moments::SCALE).expect("fits");
                for j in 0..i {
                    products[i * (i - 1) / 2 + j] += I256::from(user[i] * user[j] * Moments::SCALE * Moments::SCALE);
                }
            }
        }
        JointSums { quantities: quantities.into_iter().map(Sums::Values).collect(), products }
    }

    fn joint(users: &[Vec<i128>]) -> Joint {
        let sums = sums(users);
        let terms: Vec<Term> = (0..sums.quantities.len()).map(Term::Mean).collect();
        sums.joint(&terms).expect("fits").expect("users")
    }

    fn pairs(users: &[(i128, i128)]) -> Joint {
        joint(&users.iter().map(|(y, x)| vec![*y, *x]).collect::<Vec<_>>())
    }

    fn check(control: &Joint, treatment: &Joint) -> Result<Adjusted, Undefined> {
        adjusted(control, treatment, &Coefficients::interacted(control, treatment))
    }

    fn near(found: f64, expected: f64, within: f64) {
        assert!((found - expected).abs() < within, "{found}, expected {expected}");
    }

    /// Slopes 1.4 and 1.6; at the common mean 3 the means are 4.7 and 5.7.
    #[test]
    fn each_variant_has_its_own_slope_at_the_common_mean() {
        let control = pairs(&[(2, 1), (3, 2), (5, 3), (6, 4)]);
        let treatment = pairs(&[(4, 2), (6, 3), (7, 4), (9, 5)]);
        near(control.slopes(&[0]).expect("a slope")[0], 1.4, 1e-12);
        near(treatment.slopes(&[0]).expect("a slope")[0], 1.6, 1e-12);
        near(check(&control, &treatment).expect("variance").difference.estimate, 1.0, 1e-12);
        near(treatment.response().mean - control.response().mean, 2.5, 1e-12);
        // A third of the users in the treatment: the control's slope counts for two thirds of what is taken off.
        let twice = pairs(&[(2, 1), (3, 2), (5, 3), (6, 4), (2, 1), (3, 2), (5, 3), (6, 4)]);
        near(Coefficients::interacted(&twice, &treatment).of[0], (8.0 * 1.6 + 4.0 * 1.4) / 12.0, 1e-12);
    }

    /// One variant of the STAR experiment among men: users, sums and products of grades after a year, in hundredths, and at high school, in
    /// tenths.
    fn star(users: u64, after: (i128, i128), before: (i128, i128), products: i128) -> Joint {
        let (hundredth, tenth) = (Moments::SCALE / 100, Moments::SCALE / 10);
        let values = |(sum, squares): (i128, i128), unit: i128| {
            Sums::Values(Moments::from_parts(users, sum * unit, I256::from(squares * unit * unit)))
        };
        let quantities = vec![values(after, hundredth), values(before, tenth)];
        let products = vec![I256::from(products * hundredth * tenth)];
        JointSums { quantities, products }.joint(&[Term::Mean(0), Term::Mean(1)]).expect("fits").expect("users")
    }

    /// Table 2 of Lin 2013: unadjusted -0.036 (0.158), with one slope -0.083 (0.146), with own slopes -0.081 (0.146). The sums are
    /// those of the men in Angrist, Lang, Oreopoulos 2009, Incentives and Services for College Achievement, American Economic Journal:
    /// Applied Economics 1, 136-163. The errors printed there are White's, which sums do not have.
    #[test]
    fn published_table_of_lin() {
        let control = star(99, (18_374, 4_327_666), (77_798, 61_330_304), 14_615_478);
        let treatment = star(58, (10_555, 2_440_793), (45_895, 36_419_027), 8_431_834);
        let plain = Difference::welch(&control.response(), &treatment.response(), true).expect("variance");
        near(plain.estimate, -0.036_132, 1e-6);
        near(plain.std_error, 0.158, 2e-3);
        let found = check(&control, &treatment).expect("variance").difference;
        near(found.estimate, -0.081_220, 1e-6);
        near(found.std_error, 0.146, 2.5e-3);
    }

    /// One variant of Hillstrom's e-mails: sums and products of spend, recency, history, and whether by phone or on the web, in hundredths.
    fn hillstrom(users: u64, sums: [i128; 5], products: [&[i128]; 5]) -> Joint {
        let unit = Moments::SCALE / 100;
        let square = |sum: i128| I256::from(sum) * I256::from(unit * unit);
        let quantity = |i: usize| Sums::Values(Moments::from_parts(users, sums[i] * unit, square(products[i][i])));
        let products = (1..5).flat_map(|i| products[i][..i].iter().map(|sum| square(*sum)).collect::<Vec<_>>()).collect();
        let sums = JointSums { quantities: (0..5).map(quantity).collect(), products };
        sums.joint(&[0, 1, 2, 3, 4].map(Term::Mean)).expect("fits").expect("users")
    }

    /// The MineThatData e-mail challenge (Hillstrom 2008; 64,000 customers): spend on recency, history and channel by the interacted
    /// regression of statsmodels 0.14 (OLS, HC2).
    #[test]
    fn published_emails_of_hillstrom() {
        let none = hillstrom(
            21_306,
            [1_390_833, 12_250_300, 513_224_581, 932_700, 937_300],
            [
                &[28_700_503_621],
                &[660_877_400, 9_649_710_000],
                &[42_679_338_399, 250_105_091_800, 25_971_724_145_563],
                &[60_108_100, 549_020_000, 18_697_856_900, 93_270_000],
                &[62_929_000, 552_740_000, 19_162_261_100, 0, 93_730_000],
            ],
        );
        let mens = hillstrom(
            21_307,
            [3_031_169, 12_301_900, 517_410_518, 924_000, 949_000],
            [
                &[67_590_244_973],
                &[1_517_769_500, 9_732_610_000],
                &[98_575_262_586, 250_352_342_500, 27_006_876_192_752],
                &[111_667_900, 542_250_000, 18_887_448_900, 92_400_000],
                &[144_422_100, 563_430_000, 19_224_621_200, 0, 94_900_000],
            ],
        );
        let womens = hillstrom(
            21_387,
            [2_303_811, 12_335_700, 518_713_098, 945_400, 935_400],
            [
                &[49_114_465_763],
                &[1_146_112_000, 9_752_810_000],
                &[75_130_961_923, 250_748_095_800, 26_523_269_785_210],
                &[82_904_600, 561_280_000, 19_243_295_300, 94_540_000],
                &[101_743_700, 549_940_000, 19_281_616_200, 0, 93_540_000],
            ],
        );
        for (treatment, plain, estimate, std_error) in [
            (&mens, 0.769_827_155_894_537_2, 0.767_733_990_005_920_7, 0.145_118_993),
            (&womens, 0.424_412_215_936_596_56, 0.424_326_132_889_339_4, 0.130_381_284),
        ] {
            let found = check(&none, treatment).expect("variance").difference;
            near(treatment.response().mean - none.response().mean, plain, 1e-12);
            near(found.estimate, estimate, 1e-10);
            near(found.std_error / std_error, 1.0, 1e-3);
        }
    }

    #[test]
    fn covariates_that_say_the_same_are_left_out() {
        // The third is twice the first, the fourth is one for everybody.
        let user = |y: i128, x: i128, z: i128| vec![y, x, z, 2 * x, 1];
        let users = |shift: i128| -> Vec<Vec<i128>> {
            (0..100i128).map(|n| user(3 * (n % 7) + n % 5 + shift * (n % 2), n % 7, n % 3)).collect()
        };
        let (control, treatment) = (joint(&users(0)), joint(&users(2)));
        let found = Coefficients::interacted(&control, &treatment);
        assert_eq!((found.unused.as_slice(), found.estimated, found.of[2]), ([2, 3].as_slice(), 2, 0.0));
        assert!(adjusted(&control, &treatment, &found).is_ok_and(|found| found.difference.std_error.is_finite()));
        // With 59 users for three covariates only the first one is used.
        let few = joint(&users(0)[..59]);
        assert_eq!(Coefficients::interacted(&few, &treatment).unused, [1, 2, 3]);
    }

    #[test]
    fn a_covariate_that_explains_all_but_the_effect_leaves_no_variance() {
        let control = pairs(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
        let found = check(&control, &control).map_err(|undefined| (undefined.status, undefined.estimate));
        assert_eq!(found, Err((Status::ZeroVariance, Some(0.0))));
        let noisy = pairs(&[(1, 1), (3, 2), (3, 3), (4, 4)]);
        let found = check(&control, &noisy).expect("some variance");
        assert!(found.variance_reduction_control.is_some_and(|part| part > 0.9), "{found:?}");
    }

    #[test]
    fn a_covariate_without_variance_changes_nothing() {
        let (control, treatment) = (pairs(&[(1, 5), (2, 5), (6, 5)]), pairs(&[(2, 5), (2, 5), (9, 5)]));
        let coefficients = Coefficients::interacted(&control, &treatment);
        assert!(coefficients.is_zero() && coefficients.unused == [0]);
        let found = adjusted(&control, &treatment, &coefficients).expect("some variance");
        assert_eq!(Ok(found.difference), Difference::welch(&control.response(), &treatment.response(), true));
        assert_eq!(found.variance_reduction_control, Some(0.0));
    }

    #[test]
    fn what_is_undefined_says_why() {
        let some = pairs(&[(1, 1), (2, 3), (6, 5)]);
        let found = check(&some, &pairs(&[(6, 2)])).map_err(|undefined| undefined.status);
        assert_eq!(found.map(|found| found.difference.estimate), Err(Status::InsufficientSample));
        let nobody = JointSums { quantities: vec![Sums::Share(Count { users: 0, converted: 0 }); 2], products: vec![I256::ZERO] };
        assert_eq!(nobody.joint(&[Term::Mean(0), Term::Mean(1)]), Ok(None));
        let never = sums(&[vec![1, 0], vec![2, 0]]);
        assert_eq!(never.joint(&[Term::Ratio(0, 1)]), Ok(None));
    }

    proptest! {
        /// The estimate and its variance are those of the regression on centred covariates, solved on the users themselves.
        #[test]
        fn the_estimate_is_that_of_the_regression_of_users(
            control in prop::collection::vec((-9i128..9, -9i128..9, -9i128..9), 61..80),
            treatment in prop::collection::vec((-9i128..9, -9i128..9, -9i128..9), 61..80),
        ) {
            let users = |arm: &[(i128, i128, i128)]| arm.iter().map(|(y, x, z)| vec![*y, *x, *z]).collect::<Vec<_>>();
            let (one, two) = (joint(&users(&control)), joint(&users(&treatment)));
            let coefficients = Coefficients::interacted(&one, &two);
            prop_assume!(coefficients.estimated == 2);
            let found = adjusted(&one, &two, &coefficients).expect("variance").difference;
            let all = (control.len() + treatment.len()) as f64;
            let mean = |pick: fn(&(i128, i128, i128)) -> i128| control.iter().chain(&treatment).map(|user| pick(user) as f64).sum::<f64>() / all;
            let at = [mean(|user| user.1), mean(|user| user.2)];
            let mut means = [0.0; 2];
            for (place, (arm, users)) in [(&one, &control), (&two, &treatment)].into_iter().enumerate() {
                let n = users.len() as f64;
                let own = |pick: fn(&(i128, i128, i128)) -> i128| users.iter().map(|user| pick(user) as f64).sum::<f64>() / n;
                let (y, x, z) = (own(|user| user.0), own(|user| user.1), own(|user| user.2));
                let (mut xx, mut xz, mut zz, mut xy, mut zy) = (0.0, 0.0, 0.0, 0.0, 0.0);
                for user in users {
                    let (dy, dx, dz) = (user.0 as f64 - y, user.1 as f64 - x, user.2 as f64 - z);
                    xx += dx * dx; xz += dx * dz; zz += dz * dz; xy += dx * dy; zy += dz * dy;
                }
                let det = xx * zz - xz * xz;
                let slopes = [(xy * zz - zy * xz) / det, (zy * xx - xy * xz) / det];
                let of_sums = arm.slopes(&[0, 1]).expect("slopes");
                prop_assert!((slopes[0] - of_sums[0]).abs() < 1e-8 && (slopes[1] - of_sums[1]).abs() < 1e-8);
                means[place] = y + slopes[0] * (at[0] - x) + slopes[1] * (at[1] - z);
            }
            prop_assert!((found.estimate - (means[1] - means[0])).abs() < 1e-8, "{} and {:?}", found.estimate, means);
        }
    }
}
