//! Many tests at once: p-values adjusted so that the chance of any false alarm stays below alpha.

/// Returns the p-values adjusted by Holm's method, in the order given. `None` is an undefined test: it stays `None` and
/// is no member of the family.
/// Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
pub fn holm(p_values: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<usize> = (0..p_values.len()).filter(|index| p_values[*index].is_some()).collect();
    order.sort_by(|a, b| p_values[*a].unwrap_or(1.0).total_cmp(&p_values[*b].unwrap_or(1.0)));
    let family = order.len();
    let mut adjusted = vec![None; p_values.len()];
    let mut least = 0.0_f64;
    for (rank, index) in order.into_iter().enumerate() {
        let scaled = p_values[index].unwrap_or(1.0) * (family - rank) as f64;
        least = least.max(scaled.min(1.0));
        adjusted[index] = Some(least);
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::golden;

    #[test]
    fn holm_is_that_of_the_libraries() {
        let mut checked = 0;
        for case in golden::cases("multiplicity", "adjust_p_values") {
            let list = case.input["p_values"].as_array().expect("p_values");
            let p_values: Vec<Option<f64>> = list.iter().map(serde_json::Value::as_f64).collect();
            if !case.has("adjusted_holm") {
                continue;
            }
            for (i, found) in holm(&p_values).into_iter().enumerate() {
                case.check(&format!("adjusted_holm[{i}]"), found);
            }
            checked += 1;
        }
        assert_eq!(checked, 5);
    }
}
