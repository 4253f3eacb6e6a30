//! Phases of experiments: pauses, other weights, users who are assigned anew.

use aggregator::admin::experiments;
use aggregator::recompute::Differences;
use catalogue::ExperimentStatus;
use catalogue::experiments::Assignment::{Anew, Kept};
use catalogue::experiments::{NewExperiment, NewVariant, show};
use events::Micros;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::admin::{checkout, database, impression, text, variant, version};

/// What comes while an experiment is paused, or ended and not begun again yet, never counts; what comes afterwards does.
#[tokio::test]
async fn exposures_in_between_do_not_count() {
    let (_database, mut conn, project) = database().await;
    let started_at = Some(Micros(Micros::now().0 - 86_400 * Micros::SECOND));
    let new = NewExperiment { start: true, started_at, ..checkout() };
    let made = experiments::create(&mut conn, &project, &new).await.expect("made").experiment;
    assert_eq!(made.phases.len(), 1);
    for (user, is_paused) in [(1, true), (2, true), (3, false)] {
        impression(&mut conn, &made, 10 * user, "0 seconds").await;
        let ended = match is_paused {
            true => experiments::pause(&mut conn, &project, "checkout", None).await.expect("paused"),
            false => experiments::stop(&mut conn, &project, "checkout").await.expect("stopped"),
        };
        let expected = if is_paused { ExperimentStatus::Paused } else { ExperimentStatus::Completed };
        assert_eq!((ended.experiment.status, ended.experiment.ended_at.is_some()), (expected, !is_paused));
        impression(&mut conn, &made, 10 * user + 1, "0 seconds").await;
        let resumed = experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("started").experiment;
        assert_eq!((resumed.status, resumed.ended_at), (ExperimentStatus::Running, None));
    }
    impression(&mut conn, &made, 40, "0 seconds").await;
    experiments::recompute(&mut conn, &project, "checkout").await.expect("recomputed");
    let users: Vec<Uuid> = sqlx::query_scalar("SELECT user_id FROM user_experiment_participation ORDER BY user_id")
        .fetch_all(&mut conn)
        .await
        .expect("rows");
    assert_eq!(users, [10, 20, 30, 40].map(Uuid::from_u128));

    let phases = show(&mut conn, &project, "checkout").await.expect("shown").phases;
    let states: Vec<_> = phases.iter().map(|phase| (phase.state.as_str(), phase.weights.len())).collect();
    assert_eq!(states, [("assigning", 2), ("paused", 0), ("assigning", 2), ("paused", 0), ("assigning", 2), ("assigning", 2)]);
    assert!(phases.windows(2).all(|pair| pair[0].ended_at <= pair[1].started_at && pair[0].ended_at.is_some()), "{phases:?}");
    assert!(phases[3].ended_at == phases[4].started_at && phases[4].ended_at < phases[5].started_at, "{phases:?}");
    assert_eq!((phases[0].started_at, phases[5].ended_at), (started_at, None));

    experiments::pause(&mut conn, &project, "checkout", None).await.expect("paused");
    assert_eq!(experiments::pause(&mut conn, &project, "checkout", None).await.expect("paused already").recomputed, None);
    let stopped = experiments::stop(&mut conn, &project, "checkout").await.expect("stopped").experiment;
    assert!(stopped.phases.last().is_some_and(|last| last.ended_at == stopped.ended_at), "{stopped:?}");
    let refused = experiments::pause(&mut conn, &project, "checkout", None).await.expect_err("it has ended");
    assert_eq!(text(&refused), r#"experiment "checkout" is completed; only a running one is paused"#);
}

/// Other weights, or one more variant, begin a phase, at a time that may have been; what is refused changes nothing.
#[tokio::test]
async fn other_weights_begin_a_phase() {
    let (_database, mut conn, project) = database().await;
    let time = |text| Micros::parse(text).expect("a time");
    let [start, split, third] = ["2026-03-01T00:00:00Z", "2026-03-05T00:00:00Z", "2026-03-09T00:00:00Z"].map(time);
    let new = NewExperiment { start: true, started_at: Some(start), ..checkout() };
    experiments::create(&mut conn, &project, &new).await.expect("made");
    let weights = |of_control: &str, of_b: &str| {
        [variant("b", Some(of_b)), NewVariant { is_control: false, ..variant("control", Some(of_control)) }]
    };
    let changed = experiments::set_weights(&mut conn, &project, "checkout", &weights("90", "10"), Some(split), Kept)
        .await
        .expect("changed")
        .experiment;
    assert_eq!(
        changed.variants.iter().map(|variant| variant.weight.map(|weight| weight.to_string())).collect::<Vec<_>>(),
        [Some("10".to_owned()), Some("90".to_owned())]
    );
    experiments::add_variant(&mut conn, &project, "checkout", &variant("c", Some("50")), Some(third)).await.expect("added");
    let phases = show(&mut conn, &project, "checkout").await.expect("shown").phases;
    let found: Vec<_> = phases
        .iter()
        .map(|phase| {
            let weights: Vec<_> =
                phase.weights.iter().map(|share| share.weight.map(|weight| weight.to_string()).unwrap_or_default()).collect();
            (phase.phase, phase.started_at, phase.ended_at, weights.join(" "))
        })
        .collect();
    let expected = [
        (1, Some(start), Some(split), "50.5 50".to_owned()),
        (2, Some(split), Some(third), "10 90".to_owned()),
        (3, Some(third), None, "10 50 90".to_owned()),
    ];
    assert_eq!(found, expected);

    let version_before = version(&mut conn).await;
    let mut refused = async |weights: &[NewVariant], from: Option<Micros>, expected: &str| {
        let error = experiments::set_weights(&mut conn, &project, "checkout", weights, from, Kept).await.expect_err("refused");
        assert!(text(&error).contains(expected), "{error} lacks {expected}");
    };
    let all = [weights("1", "1").to_vec(), vec![variant("c", Some("1"))]].concat();
    refused(&weights("1", "1"), None, "found weights of 2 variants; each of b, c, control needs one").await;
    refused(&all, Some(split), "from: found 2026-03-05T00:00:00Z; 2026-03-09T00:00:00Z, when the last phase began or ended")
        .await;
    refused(&all, Some(Micros(Micros::now().0 + 3_600 * Micros::SECOND)), ", now, is accepted").await;
    refused(&[variant("d", Some("1"))], None, r#"variants[0]: found "d"; the experiment has b, c, control"#).await;
    refused(&[variant("b", None)], None, r#"variants[0]: found "b" without a weight"#).await;
    assert_eq!(
        (version(&mut conn).await, show(&mut conn, &project, "checkout").await.expect("shown").phases),
        (version_before, phases)
    );

    // In what does not run they wait for the next start.
    experiments::pause(&mut conn, &project, "checkout", None).await.expect("paused");
    let paused = experiments::set_weights(&mut conn, &project, "checkout", &all, None, Kept).await.expect("changed").experiment;
    assert_eq!(paused.phases.len(), 4);
    let resumed = experiments::start(&mut conn, &project, "checkout", Kept, None).await.expect("started").experiment;
    let last = resumed.phases.last().expect("phases");
    assert!(last.weights.iter().all(|share| share.weight.is_some_and(|weight| weight.millionths() == 1_000_000)), "{last:?}");
}

/// Who was exposed before everybody was assigned anew is a user of the earlier phase only, whenever the change is made.
#[tokio::test]
async fn users_are_assigned_anew() {
    let (_database, mut conn, project) = database().await;
    let started_at = Some(Micros(Micros::now().0 - 86_400 * Micros::SECOND));
    let new = NewExperiment { start: true, started_at, ..checkout() };
    let made = experiments::create(&mut conn, &project, &new).await.expect("made").experiment;
    impression(&mut conn, &made, 1, "-10 hours").await;
    impression(&mut conn, &made, 1, "-1 hour").await;
    impression(&mut conn, &made, 2, "-1 hour").await;
    experiments::recompute(&mut conn, &project, "checkout").await.expect("recomputed");
    let found = async |conn: &mut PgConnection| -> Vec<(Uuid, i64)> {
        let sql = "SELECT user_id, total_impressions FROM user_experiment_participation ORDER BY user_id";
        sqlx::query_as(sql).fetch_all(conn).await.expect("rows")
    };
    let [first, second] = [1, 2].map(Uuid::from_u128);
    assert_eq!(found(&mut conn).await, [(first, 2), (second, 1)]);

    let all = [variant("b", Some("1")), NewVariant { is_control: false, ..variant("control", Some("1")) }];
    let from = Some(Micros(Micros::now().0 - 2 * 3_600 * Micros::SECOND));
    let changed = experiments::set_weights(&mut conn, &project, "checkout", &all, from, Anew).await.expect("changed");
    assert_eq!(changed.recomputed, Some(Differences { participation: 1, attribution: 0 }));
    assert_eq!(found(&mut conn).await, [(first, 1), (second, 1)]);
    assert_eq!(changed.experiment.phases.iter().map(|phase| phase.reassigns).collect::<Vec<_>>(), [false, true]);

    experiments::pause(&mut conn, &project, "checkout", None).await.expect("paused");
    let refused = experiments::set_weights(&mut conn, &project, "checkout", &all, None, Anew).await.expect_err("it is paused");
    assert!(text(&refused).contains("a paused one has its start do it"), "{refused}");
    experiments::start(&mut conn, &project, "checkout", Anew, None).await.expect("started");
    impression(&mut conn, &made, 2, "0 seconds").await;
    impression(&mut conn, &made, 3, "0 seconds").await;
    experiments::recompute(&mut conn, &project, "checkout").await.expect("recomputed");
    assert_eq!(found(&mut conn).await, [(first, 1), (second, 1), (Uuid::from_u128(3), 1)]);
    let refused = experiments::start(&mut conn, &project, "checkout", Anew, None).await.expect_err("it runs");
    assert!(text(&refused).contains("only the users of a paused or completed one are assigned anew by its start"), "{refused}");
}
