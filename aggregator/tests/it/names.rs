//! Names that events bring: which ones register themselves, and how many.

use std::collections::BTreeSet;

use catalogue::Catalogue;
use events::rules::RequestContext;
use events::testing::{admitted, conversion, exposure, request_context};
use events::{ClaimedTime, Details, Draft, Event};

use crate::pipeline::Pipeline;

const TIME: &str = "2026-02-20T10:00:00Z";

/// Whoever has a public key may misspell a variant. The comparison that somebody planned is not its victim.
#[tokio::test]
async fn a_planned_experiment_gets_no_variant_that_nobody_planned() {
    let mut pipeline = Pipeline::new().await;
    pipeline
        .execute(
            "INSERT INTO experiments (project_id, id, name, status)
             SELECT id, '00000000-0000-0000-0000-0000000000e1', 'checkout', 'running' FROM projects;
             INSERT INTO variants (project_id, experiment_id, name, weight)
             SELECT id, '00000000-0000-0000-0000-0000000000e1', variant, 50 FROM projects, unnest('{control,b}'::text[]) variant",
        )
        .await;
    pipeline
        .append([
            exposure("1", "alice", TIME, "checkout", "control"),
            exposure("2", "bob", TIME, "checkout", "typo"),
            exposure("3", "carol", TIME, "00000000-0000-0000-0000-0000000000e1", "typo"),
            exposure("4", "dave", TIME, "unplanned", "typo"),
        ])
        .await;
    let aggregator = pipeline.start(1).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<String>("SELECT string_agg(name, ' ' ORDER BY name) FROM variants").await, "b control typo");
    let letters = "SELECT string_agg(DISTINCT code || ': ' || reason, '; ') || ', ' || count(*) FROM dead_letters";
    assert_eq!(
        pipeline.scalar::<String>(letters).await,
        "unknown_variant: variant \"typo\" does not exist, and its experiment was planned: `weir admin experiment add-variant` \
         adds it, if it belongs there, 2"
    );
    aggregator.stop().await;
}

/// Made-up names of one public key have an end, in one batch or in many; the rest is kept as dead letters.
#[tokio::test]
async fn so_many_names_register_themselves_and_no_more() {
    let mut pipeline = Pipeline::new().await;
    let variants = |range: std::ops::Range<usize>| {
        range.map(|n| exposure(&format!("v-{n}"), &format!("u-{n}"), TIME, "checkout", &format!("v{n:04}"))).collect::<Vec<_>>()
    };
    let components = |range: std::ops::Range<usize>| {
        let draft = |n| Draft {
            event_id: Some(format!("c-{n}").into()),
            user_id: Some(format!("u-{n}").into()),
            timestamp: ClaimedTime::Text(TIME.into()),
            name: Some("click".into()),
            campaign: Some("spring".into()),
            component: Some(format!("c{n:04}").into()),
            ..Draft::new(Details::CampaignEvent)
        };
        range.map(draft).collect::<Vec<_>>()
    };
    pipeline.append(variants(0..40).into_iter().chain(components(0..400))).await;
    let aggregator = pipeline.start(2).await;
    pipeline.drained().await;
    pipeline.append(variants(40..300).into_iter().chain(components(400..800))).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM variants").await, 50);
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM campaign_components").await, 500);
    let letters = "SELECT string_agg(code || ' ' || number, ', ' ORDER BY code)
                   FROM (SELECT code, count(*) AS number FROM dead_letters GROUP BY code) l";
    assert_eq!(pipeline.scalar::<String>(letters).await, "unknown_component 300, unknown_variant 250");
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM impressions").await, 50);

    // More experiments than register themselves; archived ones do not count.
    let experiments = |range: std::ops::Range<usize>| {
        range.map(|n| exposure(&format!("e-{n}"), &format!("u-{n}"), TIME, &format!("e{n:05}"), "b")).collect::<Vec<_>>()
    };
    pipeline.append(experiments(0..2_100)).await;
    pipeline.drained().await;
    let registered = "SELECT count(*) FROM experiments WHERE auto_registered AND status <> 'archived'";
    assert_eq!(pipeline.scalar::<i64>(registered).await, 2_000);
    pipeline
        .execute(
            "UPDATE experiments SET status = 'archived' WHERE name < 'e00100';
             UPDATE catalogue_versions SET version = version + 1",
        )
        .await;
    pipeline.append(experiments(3_000..3_050)).await;
    pipeline.drained().await;
    let stored = "SELECT count(*) FROM impressions i JOIN experiments e ON e.id = i.experiment_id WHERE e.name >= 'e03000'";
    assert_eq!(pipeline.scalar::<i64>(stored).await, 50);

    // All that a public key may bring is there, and a server key still brings its own.
    pipeline.append(experiments(4_000..4_100)).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>(registered).await, 2_000);
    let of_server_key = RequestContext { backfill: true, ..request_context() };
    pipeline.append_at(&of_server_key, experiments(5_000..6_100).into_iter().chain(variants(300..400))).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>(registered).await, 3_000);
    let checkout = "SELECT count(*) FROM variants v JOIN experiments e ON e.id = v.experiment_id WHERE e.name = 'checkout'";
    assert_eq!(pipeline.scalar::<i64>(checkout).await, 100);
    aggregator.stop().await;
}

/// Who sends one made-up variant after the other costs the database no statement for them, let alone a transaction.
#[tokio::test]
async fn what_a_limit_refuses_is_refused_without_a_statement() {
    let mut pipeline = Pipeline::new().await;
    let event = |n: usize, experiment: &str| {
        admitted(exposure(&format!("v-{n}"), &format!("u-{n}"), TIME, experiment, &format!("v{n:04}")))
    };
    let full: Vec<Event> = (0..60).map(|n| event(n, "checkout")).collect();
    let project = request_context().project.0;
    let mut catalogue = Catalogue::default();
    catalogue.load(&mut pipeline.connection, &BTreeSet::from([project])).await.expect("loaded");
    assert!(catalogue.register(&mut pipeline.connection, full.iter()).await.expect("registered"));
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM variants").await, 50);
    // From here on every statement fails.
    let broken = sqlx::raw_sql("BEGIN; SELECT 1 / 0").execute(&mut pipeline.connection).await;
    assert!(broken.is_err());
    let made_up: Vec<Event> = (60..2_560).map(|n| event(n, "checkout")).collect();
    assert!(!catalogue.register(&mut pipeline.connection, made_up.iter()).await.expect("nothing was asked of the database"));
    // As one does that is needed.
    assert!(catalogue.register(&mut pipeline.connection, [event(1, "another")].iter()).await.is_err());
}

/// Names of events are stored with them, once, and again after an operator had one forgotten.
#[tokio::test]
async fn names_of_events_are_stored_with_them() {
    let mut pipeline = Pipeline::new().await;
    let named = |id: &str, name: &str| conversion(id, "alice", TIME, name, "1");
    pipeline.append([named("1", "purchase"), named("2", "refund"), named("3", "purchase")]).await;
    let aggregator = pipeline.start(1).await;
    pipeline.drained().await;
    let names = "SELECT string_agg(kind || ' ' || name, ', ' ORDER BY name) FROM event_names";
    assert_eq!(pipeline.scalar::<String>(names).await, "conversion purchase, conversion refund");
    let project = catalogue::Project { id: request_context().project.0, name: "default".to_owned() };
    catalogue::event_names::forget(&mut pipeline.connection, &project, "refund").await.expect("forgets");
    pipeline.append([named("4", "purchase")]).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<String>(names).await, "conversion purchase");
    pipeline.append([named("5", "refund")]).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<String>(names).await, "conversion purchase, conversion refund");
    aggregator.stop().await;
}
