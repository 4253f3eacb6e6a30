//! What the collector refused: counted without a limit, kept up to one.

use events::{Code, Micros, RejectedEvent, Rejection};

use super::super::rejected::KEPT_MAX;
use super::*;
use crate::admin::rejected;

/// What operators see: code and text of each event that is kept, by code, and code and number of all.
async fn show_all(case: &mut Case) -> (Vec<(String, String)>, Vec<(String, i64)>) {
    let (project, connection) = (case.project, &mut case.connection);
    let mut kept = Vec::new();
    for event in rejected::list(connection, project, None, 100).await.expect("answers") {
        let (same, text) = rejected::show(connection, project, event.id).await.expect("is there");
        assert_eq!((&same, text.len()), (&event, event.bytes as usize));
        kept.push((event.code, text));
    }
    kept.sort();
    let counts = rejected::counts(connection, project, None).await.expect("answers");
    (kept, counts.into_iter().map(|count| (count.code, count.count)).collect())
}

#[tokio::test]
async fn rejected_events_are_kept_up_to_a_limit_and_counted_without_one() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let project = ProjectId(case.project);
    let at = request_context().received_at;
    let record = |received_at: Micros, code: Code, event: Option<&str>| {
        let fault = Rejection::new(code, "userId", "found neither");
        let id = EventId(Uuid::new_v4());
        Record::of_rejected(&RejectedEvent::new(id, project, received_at, "segment", "0011", &fault, event))
    };
    let batch = case.batch([
        record(at, Code::MissingUser, Some("{\"a\":\"\\u0000\"}")),
        record(at, Code::TooLong, Some("{}")),
        record(at, Code::TooLong, None),
    ]);
    let stored = case.commit(&batch).await.expect("commits");
    assert_eq!((stored.dead.len(), stored.duplicates), (0, 0));
    let kept = "SELECT code, dialect, key, field, message, event, received_at = to_timestamp(1772366400) FROM rejected_events
                WHERE project_id = $project ORDER BY code, event";
    assert_eq!(
        case.rows(kept).await,
        [
            r#"(missing_user,segment,0011,userId,"found neither","{""a"":""\\u0000""}",t)"#,
            r#"(too_long,segment,0011,userId,"found neither",{},t)"#,
        ]
    );
    let counted = "SELECT code, sum(events) FROM rejected_counts WHERE project_id = $project GROUP BY 1 ORDER BY 1";
    assert_eq!(case.rows(counted).await, ["(missing_user,1)", "(too_long,2)"]);
    let (kept, _) = show_all(&mut case).await;
    assert_eq!(
        kept,
        [("missing_user", "{\"a\":\"\\u0000\"}"), ("too_long", "{}")].map(|(code, text)| (code.to_owned(), text.to_owned()))
    );
    // The same batch again changes nothing: its offsets are passed.
    assert!(matches!(case.commit(&batch).await, Err(CommitError::NotOwner { .. })));

    // Room for two of this day, and for all of the next.
    let filled = KEPT_MAX - 5;
    case.execute(&format!(
        "INSERT INTO rejected_counts VALUES ($project, '2026-03-01', 'empty', gen_random_uuid(), 0, {filled})"
    ))
    .await;
    let next_day = Micros(at.0 + Micros::DAY);
    let records: Vec<Record> = (0..6)
        .map(|_| record(at, Code::Empty, Some("[]")))
        .chain((0..3).map(|_| record(next_day, Code::Empty, Some("[]"))))
        .collect();
    let batch = case.batch(records);
    case.commit(&batch).await.expect("commits");
    let kept = "SELECT received_at::date, count(*) FROM rejected_events WHERE project_id = $project AND code = 'empty' GROUP BY 1 ORDER BY 1";
    assert_eq!(case.rows(kept).await, ["(2026-03-01,2)", "(2026-03-02,3)"]);
    let counted = format!("SELECT sum(events) - {filled} FROM rejected_counts WHERE project_id = $project AND code = 'empty'");
    assert_eq!(case.rows(&counted).await, ["(9)"]);

    let (_, counts) = show_all(&mut case).await;
    assert_eq!(
        counts,
        [("empty", filled + 9), ("too_long", 2), ("missing_user", 1)].map(|(code, count)| (code.to_owned(), count))
    );
    let of_one = rejected::list(&mut case.connection, case.project, Some("empty"), 3).await.expect("answers");
    assert_eq!(of_one.iter().map(|event| event.received_at).collect::<Vec<_>>(), [next_day; 3], "the newest first");
    let other = rejected::show(&mut case.connection, Uuid::new_v4(), of_one[0].id).await.expect_err("of another project");
    assert_eq!(other.code(), "unknown");
}
