//! `GET /v1/experiments/{name}/results`: participation -> moments -> statistics -> answer.

pub mod catalogue;
pub mod compare;
pub mod measure;

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{SecondsFormat, Utc};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::answer::{
    Check, Excluded, Experiment, Experiments, Health, Level, Listed, METHOD_VERSION, Population, Results, Settings, Variant,
    Warning,
};
use crate::app::App;
use crate::engine;
use crate::error::Refusal;
use crate::statistics::moments::decimal_text;
use crate::statistics::sample_ratio::{Status, sample_ratio};
use catalogue::Configured;
use measure::{Attributed, Currency, Measured};

/// Conversion names that get metrics of their own, at most.
const CONVERSION_NAMES_MAX: usize = 50;
/// Below this p-value the shares of users are wrong beyond doubt, unless they differ by less than a tenth of a point.
const SRM_FAIL_BELOW: f64 = 0.001;
const SRM_WARN_BELOW: f64 = 0.01;
/// From this share of multi-exposed users on an answer warns, and fails.
const MULTI_WARN_FROM: f64 = 0.01;
const MULTI_FAIL_FROM: f64 = 0.1;
/// Users of each variant below which an answer warns.
const USERS_MIN: u64 = 100;

/// Lists the experiments of a project.
/// # Errors
/// [`Refusal`].
pub async fn list(app: &Arc<App>, project: Uuid) -> Result<Experiments, Refusal> {
    app.within_limits(|app| async move {
        let snapshot = app.snapshot(project).await?;
        let mut keeper = snapshot.keeper().await;
        let read = async {
            let experiments = catalogue::experiments(&mut keeper, project).await?;
            let variants = catalogue::variants(&mut keeper, project, None).await?;
            Ok::<_, sqlx::Error>((experiments, variants))
        };
        let (experiments, variants) = read.await.map_err(|error| engine::database_refusal(&error))?;
        let mut by_experiment: HashMap<Uuid, Vec<Variant>> = HashMap::new();
        for (experiment, variant) in variants {
            by_experiment.entry(experiment).or_default().push(variant);
        }
        let listed = |mut experiment: Experiment| {
            let mut variants = by_experiment.remove(&experiment.id).unwrap_or_default();
            // Without a baseline asked for there is nothing to miss.
            let control = catalogue::choose_control(&mut variants, None).ok().flatten();
            experiment.control_variant_id = control.map(|index| variants[index].id);
            variants.sort_by_key(|variant| !variant.is_control);
            Listed { experiment, variants }
        };
        Ok(Experiments { experiments: experiments.into_iter().map(listed).collect(), as_of: snapshot.as_of().clone() })
    })
    .await
}

/// Answers one experiment. `baseline`, a variant's name or id, replaces its control.
/// # Errors
/// [`Refusal`]; `unknown_experiment` and `unknown_variant` among them.
pub async fn results(app: &Arc<App>, project: Uuid, name: String, baseline: Option<String>) -> Result<Results, Refusal> {
    app.within_limits(|app| async move {
        let snapshot = Arc::new(app.snapshot(project).await?);
        let (mut experiment, mut variants, configured, participation) = {
            let mut keeper = snapshot.keeper().await;
            let database = |error: sqlx::Error| engine::database_refusal(&error);
            let experiment = catalogue::find(&mut keeper, project, &name).await.map_err(database)?;
            let experiment = experiment.ok_or_else(|| unknown_experiment(&name))?;
            let variants = catalogue::variants(&mut keeper, project, Some(experiment.id)).await.map_err(database)?;
            let variants: Vec<Variant> = variants.into_iter().map(|(_, variant)| variant).collect();
            let configured = catalogue::metrics(&mut keeper, project, experiment.id).await.map_err(database)?;
            let participation = participation(&mut keeper, project, &experiment).await.map_err(database)?;
            (experiment, variants, configured, participation)
        };
        let control = catalogue::choose_control(&mut variants, baseline.as_deref()).map_err(unknown_variant)?;
        experiment.control_variant_id = control.map(|index| variants[index].id);
        variants.sort_by_key(|variant| !variant.is_control);
        for variant in &mut variants {
            variant.users = Some(participation.users.get(&variant.id).copied().unwrap_or(0));
        }

        let session = app.engine.session().map_err(engine::refusal)?;
        let has_windows = configured.iter().any(|metric| metric.window_days.is_some());
        let is_mixed = participation.multi_exposed > 0;
        let mut attributed = Attributed::read(session, &snapshot, experiment.id, is_mixed, has_windows, &app.limits).await?;
        let mut warnings = Vec::new();
        let currencies = attributed.currencies().await?;
        let currency = choose_currency(&experiment, &currencies, &mut warnings);
        experiment.currency = currency.clone();
        if !currencies.is_empty() {
            attributed.keep_currency(currency);
        }
        let measured = measure(&attributed, configured, &mut warnings).await?;

        let health = health(&variants, &participation, &mut warnings);
        let status = describe(&experiment, &variants, &participation, &mut warnings);
        Ok(Results {
            status,
            as_of: snapshot.as_of().clone(),
            computed_at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            method_version: METHOD_VERSION,
            request_settings: Settings {
                baseline,
                analysis: "fixed",
                population: "exclude_multi",
                correction: "holm",
                interval: "two_sided",
            },
            population: participation.population(),
            health,
            metrics: compare::metrics(&experiment, &variants, &measured)?,
            experiment,
            variants,
            warnings,
        })
    })
    .await
}

fn unknown_experiment(name: &str) -> Refusal {
    let shown: String = name.chars().take(200).collect();
    Refusal::not_found("unknown_experiment", format!("there is no experiment with the name or id {shown:?}"))
}

fn unknown_variant(names: String) -> Refusal {
    let mut refusal = Refusal::bad_request(format!("the experiment has no such variant; it has: {names}")).at("baseline");
    refusal.code = "unknown_variant";
    refusal
}

/// Who saw what first.
#[derive(Debug, Default)]
struct Participation {
    /// Users per variant who saw no other one.
    users: HashMap<Uuid, u64>,
    multi_exposed: u64,
    /// Those of `users` whose conversion window is over.
    mature: u64,
}

impl Participation {
    fn analysed(&self) -> u64 {
        self.users.values().sum()
    }

    fn population(&self) -> Population {
        let analysed = self.analysed();
        Population {
            exposed_users: analysed + self.multi_exposed,
            analysed_users: analysed,
            excluded: Excluded { multi_exposed: self.multi_exposed },
            mature_share: (analysed > 0).then(|| self.mature as f64 / analysed as f64),
        }
    }

    fn multi_share(&self) -> Option<f64> {
        let exposed = self.analysed() + self.multi_exposed;
        (exposed > 0).then(|| self.multi_exposed as f64 / exposed as f64)
    }
}

async fn participation(keeper: &mut PgConnection, project: Uuid, experiment: &Experiment) -> Result<Participation, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT variant_id, cardinality(variants_seen) > 1 AS is_mixed, count(*) AS users,
                count(*) FILTER (WHERE first_exposure_date <= now() - $3 * interval '24 hours') AS mature
         FROM user_experiment_participation WHERE project_id = $1 AND experiment_id = $2
         GROUP BY variant_id, is_mixed",
    )
    .bind(project)
    .bind(experiment.id)
    .bind(experiment.conversion_window_days)
    .fetch_all(keeper)
    .await?;
    let mut found = Participation::default();
    for row in rows {
        let users = row.try_get::<i64, _>("users")? as u64;
        if row.try_get("is_mixed")? {
            found.multi_exposed += users;
        } else {
            *found.users.entry(row.try_get("variant_id")?).or_default() += users;
            found.mature += row.try_get::<i64, _>("mature")? as u64;
        }
    }
    Ok(found)
}

/// Returns the currency of value metrics: the experiment's, else the only one seen, else the most used one. Warns of what is
/// left out.
fn choose_currency(experiment: &Experiment, currencies: &[Currency], warnings: &mut Vec<Warning>) -> Option<String> {
    let chosen = match &experiment.currency {
        Some(currency) => Some(currency.clone()),
        None => currencies.first().and_then(|currency| currency.code.clone()),
    };
    let kept = chosen.as_deref().unwrap_or("none");
    for other in currencies.iter().filter(|currency| currency.code != chosen) {
        let message = format!(
            "{} conversions with a total value of {} {} are not in the value metrics, which are in the currency {kept}; set the \
             experiment's currency to choose another one",
            other.conversions,
            decimal_text(other.sum),
            other.code.as_deref().unwrap_or("without a currency"),
        );
        warnings.push(Warning::new("other_currency", message));
    }
    chosen
}

/// Measures the configured metrics, or else the usual ones for all conversions and for each conversion name.
async fn measure(
    attributed: &Attributed,
    configured: Vec<Configured>,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<(Configured, HashMap<Uuid, Measured>)>, Refusal> {
    let mut measured = Vec::new();
    if !configured.is_empty() {
        for metric in configured {
            let found = attributed.metric(&metric).await?;
            measured.push((metric, found));
        }
        return Ok(measured);
    }
    let overall = catalogue::default_metrics(None);
    let all = attributed.metric(&overall[0]).await?;
    measured.extend(overall.map(|metric| (metric, all.clone())));
    let mut by_type: Vec<(String, HashMap<Uuid, Measured>)> = attributed.by_type().await?.into_iter().collect();
    if by_type.len() > CONVERSION_NAMES_MAX {
        let message = format!(
            "there are {} conversion names; the {CONVERSION_NAMES_MAX} with the most users are shown; configure metrics to choose",
            by_type.len()
        );
        warnings.push(Warning::new("conversion_names_cut", message));
        let users = |measured: &HashMap<Uuid, Measured>| measured.values().map(|measured| measured.converters).sum::<u64>();
        // Sorting is stable: with equal numbers the name decides.
        by_type.sort_by_key(|(_, measured)| std::cmp::Reverse(users(measured)));
        by_type.truncate(CONVERSION_NAMES_MAX);
        by_type.sort_by(|a, b| a.0.cmp(&b.0));
    }
    for (name, found) in by_type {
        measured.extend(catalogue::default_metrics(Some(&name)).map(|metric| (metric, found.clone())));
    }
    Ok(measured)
}

/// Checks what makes numbers unworthy of trust, before anybody reads them.
fn health(variants: &[Variant], participation: &Participation, warnings: &mut Vec<Warning>) -> Health {
    let users: Vec<u64> = variants.iter().map(|variant| variant.users.unwrap_or(0)).collect();
    let configured = variants.iter().any(|variant| variant.weight.is_some());
    let weight = |variant: &Variant| if configured { variant.weight.unwrap_or(0.0) } else { 1.0 };
    let weights: Vec<f64> = variants.iter().map(weight).collect();
    let ratio = sample_ratio(&users, &weights, SRM_FAIL_BELOW);
    let off = ratio.expected.iter().zip(&ratio.observed).map(|(expected, observed)| (expected - observed).abs());
    let is_far_off = off.fold(0.0, f64::max) >= 0.001;
    let level = match (ratio.status, ratio.p_value) {
        // A user in a variant of weight 0 is a mismatch whatever the shares are.
        (Status::Mismatch, p) if is_far_off || p.is_none_or(|p| p >= SRM_FAIL_BELOW) => Level::Fail,
        (Status::Mismatch, _) => Level::Warn,
        (_, Some(p)) if p < SRM_WARN_BELOW => Level::Warn,
        _ => Level::Ok,
    };
    // Equal shares are only a guess where none were set.
    let level = if configured { level } else { level.min(Level::Warn) };
    if level > Level::Ok {
        let p = ratio.p_value.map(|p| format!(" (p = {})", compare::p_text(p))).unwrap_or_default();
        let assumed = if configured { "" } else { ", assuming equal shares because the variants have no weights" };
        let message = format!("the variants do not hold the shares of users that they should{p}{assumed}; something loses users");
        warnings.push(Warning::new("sample_ratio_mismatch", message));
    }
    let share = participation.multi_share();
    let multi_level = match share {
        Some(share) if share >= MULTI_FAIL_FROM && participation.multi_exposed >= 10 => Level::Fail,
        Some(share) if share >= MULTI_WARN_FROM => Level::Warn,
        _ => Level::Ok,
    };
    if multi_level > Level::Ok {
        let message = format!(
            "{} of {} users saw several variants and are not counted",
            participation.multi_exposed,
            participation.analysed() + participation.multi_exposed
        );
        warnings.push(Warning::new("multi_exposed", message));
    }
    let least = users.iter().copied().min().unwrap_or(0);
    let checks = vec![
        Check::Srm {
            level,
            status: ratio.status.as_str(),
            p_value: ratio.p_value,
            log10_p: ratio.log10_p,
            expected: ratio.expected,
            observed: ratio.observed,
            weights: if configured { "configured" } else { "assumed_equal" },
        },
        Check::MultiExposure { level: multi_level, share },
        Check::MinimumUsers { level: if least < USERS_MIN { Level::Warn } else { Level::Ok }, users: least },
    ];
    Health { overall: checks.iter().map(Check::level).max().unwrap_or(Level::Ok), checks }
}

/// Returns the status of the whole answer, and warns of what limits all of its numbers.
fn describe(
    experiment: &Experiment,
    variants: &[Variant],
    participation: &Participation,
    warnings: &mut Vec<Warning>,
) -> &'static str {
    if experiment.frozen_at.is_some() {
        let message = "months with events of this experiment were detached; its results are as of then";
        warnings.push(Warning::new("experiment_frozen", message));
    }
    if participation.analysed() == 0 {
        let message = match experiment.status.as_str() {
            "draft" => "the experiment is a draft: exposures count once it is started",
            _ => "nobody was exposed yet: send events of type impression that name this experiment and a variant",
        };
        warnings.push(Warning::new("no_data", message));
        return "no_data";
    }
    if participation.mature < participation.analysed() {
        let message = format!(
            "the conversion window of {} days is over for {} of {} users; later conversions of the others still change the numbers",
            experiment.conversion_window_days,
            participation.mature,
            participation.analysed()
        );
        warnings.push(Warning::new("windows_incomplete", message));
    }
    if experiment.status == "running" {
        let message =
            "the experiment still runs: p-values and intervals hold for one look at its end, not for every look until then";
        warnings.push(Warning::new("peeked", message));
    }
    if experiment.control_variant_id.is_none() {
        let names: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
        let message = format!(
            "no variant is the control, so that nothing is compared: mark one as the control, or ask with ?baseline= and one of {}",
            names.join(", ")
        );
        warnings.push(Warning::new("no_control", message));
        return "no_control";
    }
    "ok"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variant(name: u128, users: u64, weight: Option<f64>) -> Variant {
        Variant { id: Uuid::from_u128(name), name: name.to_string(), is_control: name == 0, weight, users: Some(users) }
    }

    #[test]
    fn health_knows_what_it_assumes() {
        let check = |arms: &[(u64, Option<f64>)], multi: u64, expected: [Level; 3], codes: &[&str]| {
            let variants: Vec<Variant> =
                arms.iter().enumerate().map(|(name, (users, weight))| variant(name as u128, *users, *weight)).collect();
            let users = variants.iter().map(|variant| (variant.id, variant.users.unwrap_or(0))).collect();
            let participation = Participation { users, multi_exposed: multi, mature: 0 };
            let mut warnings = Vec::new();
            let health = health(&variants, &participation, &mut warnings);
            let levels: Vec<Level> = health.checks.iter().map(Check::level).collect();
            assert_eq!(levels, expected, "{arms:?} {multi}: {warnings:?}");
            assert_eq!(health.overall, expected.into_iter().max().expect("three"));
            let found: Vec<&str> = warnings.iter().map(|warning| warning.code).collect();
            assert_eq!(found, codes);
        };
        use Level::{Fail, Ok, Warn};
        check(&[(5_000, None), (5_050, None)], 0, [Ok, Ok, Ok], &[]);
        check(&[(50_000, Some(0.5)), (51_500, Some(0.5))], 0, [Fail, Ok, Ok], &["sample_ratio_mismatch"]);
        check(&[(50_000, None), (51_500, None)], 0, [Warn, Ok, Ok], &["sample_ratio_mismatch"]);
        check(&[(9_000, Some(90.0)), (1_000, Some(10.0))], 0, [Ok, Ok, Ok], &[]);
        check(&[(1_000, Some(1.0)), (1_000, Some(1.0)), (1, None)], 0, [Fail, Ok, Warn], &["sample_ratio_mismatch"]);
        check(&[(500, None), (500, None)], 10, [Ok, Ok, Ok], &[]);
        check(&[(500, None), (500, None)], 11, [Ok, Warn, Ok], &["multi_exposed"]);
        check(&[(500, None), (500, None)], 200, [Ok, Fail, Ok], &["multi_exposed"]);
        check(&[(50, None), (50, None)], 0, [Ok, Ok, Warn], &[]);
        check(&[(0, None), (0, None)], 0, [Ok, Ok, Warn], &[]);
        // With two billion users a difference of 0.005 points is certain and does not matter.
        check(&[(1_000_000_000, Some(1.0)), (1_000_200_000, Some(1.0))], 0, [Warn, Ok, Ok], &["sample_ratio_mismatch"]);
    }

    #[test]
    fn one_currency_is_kept_and_the_others_are_named() {
        let seen = |code: Option<&str>, conversions, sum| Currency { code: code.map(str::to_owned), conversions, sum };
        let check = |own: Option<&str>, seen: &[Currency], expected: Option<&str>, texts: &[&str]| {
            let experiment = Experiment {
                id: Uuid::nil(),
                name: String::new(),
                description: None,
                status: "running".to_owned(),
                started_at: None,
                ended_at: None,
                days_running: None,
                confidence_level: 0.95,
                alpha: 0.05,
                minimum_detectable_effect: 0.05,
                target_sample_size: None,
                conversion_window_days: 30,
                attribution_method: "first_exposure".to_owned(),
                currency: own.map(str::to_owned),
                frozen_at: None,
                control_variant_id: None,
            };
            let mut warnings = Vec::new();
            assert_eq!(choose_currency(&experiment, seen, &mut warnings).as_deref(), expected);
            assert_eq!(warnings.len(), texts.len(), "{warnings:?}");
            for (warning, text) in warnings.iter().zip(texts) {
                assert!(warning.message.contains(text), "{warning:?}");
            }
        };
        check(None, &[], None, &[]);
        check(None, &[seen(None, 3, 0)], None, &[]);
        check(None, &[seen(Some("EUR"), 3, 0)], Some("EUR"), &[]);
        let mixed = [seen(Some("EUR"), 3, 0), seen(Some("USD"), 2, 25_500_000), seen(None, 1, -1_000_000)];
        check(None, &mixed, Some("EUR"), &["2 conversions with a total value of 25.50 USD", "-1.00 without a currency"]);
        check(Some("USD"), &mixed, Some("USD"), &["0.00 EUR", "without a currency"]);
        check(Some("CHF"), &mixed[..1], Some("CHF"), &["the currency CHF"]);
    }
}
