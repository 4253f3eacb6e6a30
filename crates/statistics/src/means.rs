//! Means of users, and what is known of the difference of two.

/// One variant, as a test sees it: users, mean and variance of one user's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arm {
    /// Number of users.
    pub users: u64,
    /// Mean over users.
    pub mean: f64,
    /// Variance of one user's value.
    pub variance: f64,
}

impl Arm {
    /// Makes the arm of a proportion: `converted` of `users`. Its variance is p (1 - p), by the convention of the field.
    pub fn proportion(users: u64, converted: u64) -> Self {
        let mean = if users == 0 { 0.0 } else { converted as f64 / users as f64 };
        Arm { users, mean, variance: mean * (1.0 - mean) }
    }

    /// Returns the variance of the mean.
    pub(crate) fn variance_of_mean(&self) -> f64 {
        self.variance / self.users as f64
    }
}

/// Why two means cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTested {
    /// A variant has no users.
    #[error("a variant has no users")]
    NoData,
    /// A variant has a single user, and its spread cannot be estimated.
    #[error("a variant has fewer than 2 users")]
    TooFewUsers,
    /// No user differs from another one in either variant.
    #[error("no user differs from another one of the same variant")]
    ZeroVariance,
}

/// Returns the variance of the difference of two means, and the degrees of freedom of its estimate.
/// # Errors
/// [`NotTested`]; nothing is estimated and no default number returned. For proportions a single user is enough data, for
/// `is_mean` it is not.
/// Source: Welch 1947, Biometrika 34, 28-35; degrees of freedom by Satterthwaite 1946, Biometrics Bulletin 2, 110-114.
pub(crate) fn welch_parts(control: &Arm, treatment: &Arm, is_mean: bool) -> Result<(f64, f64), NotTested> {
    if control.users == 0 || treatment.users == 0 {
        return Err(NotTested::NoData);
    }
    if is_mean && (control.users < 2 || treatment.users < 2) {
        return Err(NotTested::TooFewUsers);
    }
    let (vc, vt) = (control.variance_of_mean(), treatment.variance_of_mean());
    if vc + vt <= 0.0 {
        return Err(NotTested::ZeroVariance);
    }
    // A variance of 0 says nothing about the freedom of its arm, and one user is always such a case.
    let share = |variance: f64, users: u64| {
        let part = variance / (vc + vt);
        if part == 0.0 { 0.0 } else { part * part / (users as f64 - 1.0) }
    };
    let dof = 1.0 / (share(vc, control.users) + share(vt, treatment.users));
    Ok((vc + vt, dof))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_tested_says_why() {
        let arm = |users, mean, variance| Arm { users, mean, variance };
        let check = |control, treatment, expected| assert_eq!(welch_parts(&control, &treatment, true), Err(expected));
        check(arm(0, 0.0, 0.0), arm(5, 1.0, 1.0), NotTested::NoData);
        check(arm(1, 1.0, 0.0), arm(5, 1.0, 1.0), NotTested::TooFewUsers);
        check(arm(5, 1.0, 0.0), arm(5, 2.0, 0.0), NotTested::ZeroVariance);
        // One arm without spread is fine; the other one alone gives the degrees of freedom.
        assert_eq!(welch_parts(&arm(5, 1.0, 0.0), &arm(9, 2.0, 1.0), true).map(|(_, dof)| dof), Ok(8.0));
    }
}
