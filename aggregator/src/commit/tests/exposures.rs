//! Users who are exposed by other events than impressions: changed while there are rows, remembered, left out where there are too many.

use catalogue::experiments::NewVariant;

use super::*;
use crate::admin::experiments::add_variant;
use crate::commit::over_active::set_rows_max;

const PARTICIPANTS: &str = "SELECT p.user_id, v.name, p.total_impressions, p.has_converted FROM user_experiment_participation p
     JOIN variants v ON v.project_id = p.project_id AND v.id = p.variant_id WHERE p.project_id = $project ORDER BY 1, 3 DESC";

impl Case {
    /// Two variants of one experiment, of whose events each user has one, and what follows.
    async fn with_checkout(database: &TestDatabase) -> Case {
        let mut case = Case::new(database).await;
        for variant in ["control", "b"] {
            case.store(vec![exposure(variant, &user(200), &at(0), "checkout", variant)]).await;
        }
        case
    }

    async fn participants(&mut self) -> Vec<String> {
        let (first, last) = (user(0), user(100));
        let found = self.rows(PARTICIPANTS).await;
        found.into_iter().filter(|row| (first.as_str()..last.as_str()).contains(&&row[1..37])).collect()
    }

    async fn experiment(&mut self) -> Uuid {
        let id = "SELECT id FROM experiments WHERE project_id = $1 AND name = 'checkout'";
        sqlx::query_scalar(id).bind(self.project).fetch_one(&mut self.connection).await.expect("an experiment")
    }
}

fn view(id: &str, who: u8, step: u8, variant: &str) -> Draft {
    viewed(id, &user(who), &at(step), "pro", ("checkout", variant))
}

fn buy(id: &str, who: u8, step: u8) -> Draft {
    conversion(id, &user(who), &at(step), "signup", "5")
}

fn row(who: u8, variant: &str, exposures: u8, has_converted: char) -> String {
    format!("({},{variant},{exposures},{has_converted})", user(who))
}

/// Stored events count by a definition as soon as there is one, and impressions count again without it; in between both are remembered rightly.
#[tokio::test]
async fn a_definition_is_for_stored_events_too() {
    let database = TestDatabase::create().await;
    let mut case = Case::with_checkout(&database).await;
    case.store(vec![
        exposure("1", &user(1), &at(1), "checkout", "control"),
        view("2", 2, 1, "b"),
        buy("3", 1, 2),
        buy("4", 2, 2),
    ])
    .await;
    let of_bot = |id: &str, who: u8| Draft { is_bot: true, ..view(id, who, 1, "b") };
    case.store(vec![of_bot("13", 6)]).await;
    let by_impression = [row(1, "control", 1, 't')];
    assert_eq!(case.participants().await, by_impression);
    case.expose_by(&["checkout"]).await;
    let mut expected = vec![row(2, "b", 1, 't')];
    assert_eq!(case.participants().await, expected);

    // Users who were read in the commit before, and those of this one.
    case.store(vec![view("5", 2, 3, "control"), view("6", 3, 3, "control"), exposure("7", &user(3), &at(0), "checkout", "b")])
        .await;
    case.store(vec![buy("8", 3, 4), view("9", 3, 4, "other"), viewed("10", &user(4), &at(4), "free", ("checkout", "b"))]).await;
    expected = vec![row(2, "b", 2, 't'), row(3, "control", 1, 't')];
    assert_eq!(case.participants().await, expected);
    assert_eq!(case.derived().await, case.expected().await);

    // A bot's event exposes nobody, stored before the definition or after it.
    case.store(vec![of_bot("14", 7), buy("15", 6, 2), buy("16", 7, 2)]).await;
    assert_eq!(case.participants().await, expected);

    // What names a variant that comes later is an exposure to it then, and an aggregator computes it.
    let project = catalogue::find_project(&mut case.connection, &case.project.to_string()).await.expect("a project");
    let new = NewVariant { name: "other".into(), ..NewVariant::default() };
    add_variant(&mut case.connection, &project, "checkout", &new, None).await.expect("added");
    recompute::catch_up_all(&mut case.connection).await.expect("recomputes");
    expected[1] = row(3, "control", 2, 't');
    assert_eq!(case.participants().await, expected);
    assert_eq!(case.derived().await, case.expected().await);

    let changed = set_exposure(&mut case.connection, &project, "checkout", None).await.expect("is set");
    assert!(changed.experiment.exposure.is_none() && changed.recomputed.is_some());
    let again = set_exposure(&mut case.connection, &project, "checkout", None).await.expect("is set");
    assert!(again.recomputed.is_none(), "nothing changed");
    case.store(vec![view("11", 5, 5, "b"), exposure("12", &user(5), &at(5), "checkout", "b")]).await;
    assert_eq!(case.participants().await, [row(1, "control", 1, 't'), row(3, "b", 1, 't'), row(5, "b", 1, 'f')]);
    assert_eq!(case.derived().await, case.expected().await);
}

/// A variant that nobody planned does not register itself where a definition says what exposes users: stored events would be exposures to it.
#[tokio::test]
async fn no_variant_registers_itself_beside_a_definition() {
    let database = TestDatabase::create().await;
    let mut case = Case::with_checkout(&database).await;
    case.expose_by(&["checkout"]).await;
    let stored = case.store(vec![exposure("1", &user(1), &at(1), "checkout", "c"), view("2", 2, 1, "c")]).await;
    assert_eq!(stored.dead.iter().map(|letter| letter.code).collect::<Vec<_>>(), ["unknown_variant"]);
    assert_eq!(case.participants().await, [""; 0]);
}

/// Of a user with too many events that an experiment looks at, whether they expose or not, nothing counts there; in other experiments it takes
/// part, and with another limit it does here.
#[tokio::test]
async fn who_has_too_many_events_that_are_looked_at_is_left_out_there() {
    let database = TestDatabase::create().await;
    let mut case = Case::with_checkout(&database).await;
    case.limit_rows(4).await;
    case.expose_by(&["checkout"]).await;
    let free = |id: &str, step: u8| viewed(id, &user(1), &at(step), "free", ("checkout", "b"));
    case.store(vec![view("1", 1, 1, "b"), free("2", 1), view("3", 2, 1, "b"), exposure("4", &user(1), &at(1), "banner", "b")])
        .await;
    case.store(vec![view("5", 1, 2, "b"), free("6", 3)]).await;
    let banner = row(1, "b", 1, 'f');
    assert_eq!(case.participants().await, [row(1, "b", 2, 'f'), banner.clone(), row(2, "b", 1, 'f')], "four are not too many");
    // Remembered, read again, and with what comes afterwards.
    for (number, drafts) in
        [vec![free("7", 3)], vec![view("8", 1, 3, "b"), buy("9", 1, 4)], vec![free("10", 4)]].into_iter().enumerate()
    {
        if number == 2 {
            case.cache.memory = Default::default();
        }
        let stored = case.store(drafts).await;
        assert_eq!(stored.followed.over_active, 0);
        let bought = if number == 0 { 'f' } else { 't' };
        assert_eq!(case.participants().await, [row(1, "b", 1, bought), row(2, "b", 1, 'f')]);
        assert_eq!(case.derived().await, case.expected().await);
        let experiment = case.experiment().await;
        let changed = recompute::recompute(&mut case.connection, case.project, experiment).await.expect("recomputes");
        assert_eq!(changed, recompute::Differences::default());
    }
    assert!(set_rows_max(&mut case.connection, 20).await.expect("is set"));
    assert!(!set_rows_max(&mut case.connection, 20).await.expect("is set"));
    recompute::catch_up_all(&mut case.connection).await.expect("recomputes");
    assert_eq!(case.participants().await.len(), 3);
    assert_eq!(case.derived().await, case.expected().await);
}

/// Who has too many rows, of impressions and conversions, takes part nowhere, and is counted where other events had exposed it, then or later, and
/// not where only impressions did that expose nobody.
#[tokio::test]
async fn who_has_too_many_rows_is_counted_where_it_was_exposed() {
    let database = TestDatabase::create().await;
    let mut case = Case::with_checkout(&database).await;
    case.store(vec![
        exposure("control", &user(200), &at(0), "banner", "control"),
        exposure("0", &user(200), &at(0), "banner", "b"),
    ])
    .await;
    case.limit_rows(3).await;
    case.expose_by(&["checkout", "banner"]).await;
    case.store(vec![view("1", 1, 1, "b"), exposure("2", &user(1), &at(1), "banner", "b"), buy("3", 1, 2)]).await;
    assert_eq!(case.participants().await, [row(1, "b", 1, 't')]);
    let stored = case.store(vec![buy("4", 1, 3), buy("5", 1, 3)]).await;
    assert_eq!((stored.followed.over_active, case.participants().await.len()), (1, 0));
    let experiment = case.experiment().await;
    assert_eq!(case.over_active().await, [format!("({},{{{experiment}}})", user(1))]);
    case.store(vec![viewed("6", &user(1), &at(4), "pro", ("banner", "b"))]).await;
    let counted = "SELECT cardinality(experiments) FROM over_active_users WHERE project_id = $project";
    assert_eq!((case.rows(counted).await, case.participants().await.len()), (vec!["(2)".to_owned()], 0));
    let changed = recompute::recompute(&mut case.connection, case.project, experiment).await.expect("recomputes");
    assert_eq!(changed, recompute::Differences::default());
}

/// Events of visitors who object take part in nothing: each is a user of its own, whom neither its impression nor any other event exposes.
#[tokio::test]
async fn who_objects_takes_part_in_no_experiment() {
    let database = TestDatabase::create().await;
    let mut case = Case::with_checkout(&database).await;
    let unlinked = |case: &mut Case, draft: Draft| {
        let request = RequestContext { project: ProjectId(case.project), ..request_context() };
        let event =
            events::unlinked::admit(Box::new(draft), &request, || EventId(Uuid::new_v4()), "gpc").expect("a valid event").0;
        Record::encode(&event)
    };
    let everybody = "SELECT user_id FROM user_experiment_participation WHERE project_id = $project ORDER BY 1";
    let before = case.rows(everybody).await;
    let records = vec![
        unlinked(&mut case, exposure("1", &user(1), &at(1), "checkout", "control")),
        unlinked(&mut case, view("2", 1, 1, "b")),
        unlinked(&mut case, buy("3", 1, 2)),
    ];
    let batch = case.batch(records);
    assert_eq!(case.commit(&batch).await.expect("commits").inserted.values().sum::<u64>(), 3);
    assert_eq!(case.rows(everybody).await, before);
    // Nor by a definition, of what is stored and of what comes. The users of the two variants were exposed by impressions.
    case.expose_by(&["checkout"]).await;
    let records = vec![unlinked(&mut case, view("4", 1, 3, "b")), unlinked(&mut case, buy("5", 1, 4))];
    let batch = case.batch(records);
    case.commit(&batch).await.expect("commits");
    case.store(vec![view("6", 2, 3, "b")]).await;
    assert_eq!(case.rows(everybody).await, [format!("({})", user(2))]);
    assert_eq!(
        case.rows("SELECT conversion_id FROM conversion_attribution WHERE project_id = $project").await,
        Vec::<String>::new()
    );
}
