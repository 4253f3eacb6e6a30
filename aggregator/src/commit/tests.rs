//! Batches against a real Postgres, without a log: what a commit does, in any order, batching and duplication.

mod beside;
mod conflicts;
mod cost;
mod exposures;
mod memory;
mod over_active;
mod refused;
mod rejected;
mod rollups;

use std::collections::BTreeMap;

use bytes::Bytes;
use catalogue::exposures::ExposureDefinition;
use catalogue::versions;
use eventlog::{LogIdentity, StoredRecord};
use events::rules::{self, RequestContext};
use events::testing::{conversion, exposure, generated_id, request_context};
use events::{ClaimedTime, Details, Draft, EventId, JsonObject, ProjectId, Record};
use migrations::testing::TestDatabase;
use proptest::prelude::*;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::{CommitError, Stored, WorkerCache, commit};
use crate::admin::experiments::set_exposure;
use crate::batch::Batch;
use crate::commit::limit::Tallies;
use crate::commit::{copy, facts};
use crate::{database, lease, recompute};

/// A project of its own on a log of its own: cases share a database and never meet.
struct Case {
    url: String,
    connection: PgConnection,
    cache: WorkerCache,
    log_id: Uuid,
    project: Uuid,
    next: BTreeMap<u32, u64>,
    epoch: i64,
}

impl Case {
    async fn new(database: &TestDatabase) -> Case {
        let mut connection = database::connect(&database.url, "test").await.expect("connects");
        let (project, log_id) = (Uuid::new_v4(), Uuid::new_v4());
        sqlx::query("INSERT INTO projects (id, name, auto_register) VALUES ($1, $1::text, true)")
            .bind(project)
            .execute(&mut connection)
            .await
            .expect("a project");
        lease::register_log(&mut connection, LogIdentity { log_id, partitions: 8 }, true).await.expect("a log");
        copy::make_table(&mut connection).await.expect("temporary tables");
        let (url, cache, next) = (database.url.clone(), WorkerCache::default(), BTreeMap::new());
        Case { url, connection, cache, log_id, project, next, epoch: 0 }
    }

    fn record(&self, draft: Draft) -> Record {
        let request = RequestContext { project: ProjectId(self.project), ..request_context() };
        Record::encode(&rules::admit(draft, &request, || EventId(Uuid::new_v4())).expect("a valid event"))
    }

    /// Puts records after each other in their log partitions, as a log would, and reads them as one batch.
    fn batch(&mut self, records: impl IntoIterator<Item = Record>) -> Batch {
        let mut partitions: BTreeMap<u32, Vec<StoredRecord>> = BTreeMap::new();
        for record in records {
            let partition = record.bucket().log_partition(8);
            let next = self.next.entry(partition).or_default();
            partitions.entry(partition).or_default().push(StoredRecord { offset: *next, bytes: record.bytes().clone() });
            *next += 1;
        }
        let mut batch = Batch::default();
        for (partition, records) in partitions {
            batch.add(partition, self.epoch, records);
        }
        batch
    }

    async fn commit(&mut self, batch: &Batch) -> Result<Stored, CommitError> {
        commit(&mut self.connection, &mut self.cache, self.log_id, batch, &Tallies::new()).await
    }

    async fn store(&mut self, drafts: Vec<Draft>) -> Stored {
        let records: Vec<Record> = drafts.into_iter().map(|draft| self.record(draft)).collect();
        let batch = self.batch(records);
        self.commit(&batch).await.expect("commits")
    }

    async fn execute(&mut self, statement: &str) {
        let statement = statement.replace("$project", &format!("'{}'", self.project));
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut self.connection).await.expect("executes");
    }

    /// Rows of a query as texts, in its order.
    async fn rows(&mut self, query: &str) -> Vec<String> {
        let query = query.replace("$project", &format!("'{}'", self.project));
        let statement = format!("SELECT r::text FROM ({query}) r");
        let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(&mut self.connection).await.expect("answers");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Has the definition [`VIEWED`] say what exposes users to experiments.
    async fn expose_by(&mut self, experiments: &[&str]) {
        let project = catalogue::find_project(&mut self.connection, &self.project.to_string()).await.expect("a project");
        let definition = ExposureDefinition::parse(VIEWED).expect("accepted");
        versions::define(&mut self.connection, &project, "viewed", &definition).await.expect("defined");
        for experiment in experiments {
            let set = set_exposure(&mut self.connection, &project, experiment, Some(("viewed", None))).await;
            assert!(set.expect("is set").recomputed.is_some());
        }
    }

    /// Both derived tables, with names for the ids that differ between projects.
    async fn derived(&mut self) -> (Vec<String>, Vec<String>) {
        (self.rows(PARTICIPATION).await, self.rows(ATTRIBUTION).await)
    }

    /// The same, computed from the raw rows by plain statements that share nothing with the commit.
    async fn expected(&mut self) -> (Vec<String>, Vec<String>) {
        (self.rows(&with_eligible(EXPECTED_PARTICIPATION)).await, self.rows(&with_eligible(EXPECTED_ATTRIBUTION)).await)
    }
}

const PARTICIPATION: &str = "
    SELECT p.user_id, e.name AS experiment, v.name AS variant, p.first_exposure_date, p.first_impression_id, p.total_impressions,
           (SELECT string_agg(s.name, ',' ORDER BY s.name) FROM variants s
            WHERE s.project_id = p.project_id AND s.id = ANY (p.variants_seen)) AS seen,
           p.has_converted, p.first_conversion_date, p.conversion_within_window
    FROM user_experiment_participation p
    JOIN experiments e ON e.project_id = p.project_id AND e.id = p.experiment_id
    JOIN variants v ON v.project_id = p.project_id AND v.experiment_id = p.experiment_id AND v.id = p.variant_id
    WHERE p.project_id = $project ORDER BY 1, 2";

const ATTRIBUTION: &str = "
    SELECT a.user_id, a.conversion_id, a.conversion_claimed_at, e.name AS experiment, v.name AS variant, a.attribution_method,
           a.attribution_confidence, a.time_to_conversion_hours, a.conversion_value_attributed, a.currency, a.conversion_time
    FROM conversion_attribution a
    JOIN experiments e ON e.project_id = a.project_id AND e.id = a.experiment_id
    JOIN variants v ON v.project_id = a.project_id AND v.experiment_id = a.experiment_id AND v.id = a.variant_id
    WHERE a.project_id = $project ORDER BY 1, 2, 3, 4";

/// Puts the definitions of an eligible impression and of who has too many rows, word for word, before a query.
fn with_eligible(query: &str) -> String {
    format!(
        "WITH looked_at AS (
             SELECT user_id FROM (
                 SELECT user_id FROM engagement_events WHERE project_id = $project AND event_type = 'viewed' AND is_bot = false
                 UNION ALL SELECT user_id FROM conversions WHERE project_id = $project AND conversion_type = 'purchase' AND is_bot = false
             ) l GROUP BY user_id HAVING count(*) <= (SELECT rows_max FROM user_rows_limit)
         ), shown AS (
             SELECT i.user_id, i.experiment_id, i.variant_id, i.event_time, i.id, i.claimed_at
             FROM impressions i JOIN experiments e ON e.project_id = i.project_id AND e.id = i.experiment_id
             WHERE i.project_id = $project AND i.variant_id IS NOT NULL AND i.is_bot = false AND coalesce(i.user_was_eligible, true)
               AND e.exposure IS NULL
             UNION ALL
             SELECT g.user_id, e.id, v.id, g.event_time, g.id, g.claimed_at FROM engagement_events g, experiments e, variants v
             WHERE g.project_id = $project AND e.project_id = $project AND v.project_id = $project AND v.experiment_id = e.id
               AND e.exposure = 'viewed' AND g.is_bot = false AND g.event_type = 'viewed' AND g.metadata ->> 'plan' IN ('pro', '1')
               AND v.name = g.metadata ->> ('arm of ' || e.name) AND g.user_id IN (SELECT user_id FROM looked_at)
             UNION ALL
             SELECT c.user_id, c.experiment_id, c.variant_id, c.event_time, c.id, c.claimed_at
             FROM conversions c JOIN experiments e ON e.project_id = c.project_id AND e.id = c.experiment_id
             WHERE c.project_id = $project AND e.exposure = 'viewed' AND c.conversion_type = 'purchase' AND c.is_bot = false
               AND c.variant_id IS NOT NULL AND c.user_id IN (SELECT user_id FROM looked_at)
         ), counted AS (
             SELECT user_id, experiment_id AS exposed FROM impressions
             WHERE project_id = $project AND experiment_id IS NOT NULL AND variant_id IS NOT NULL AND is_bot = false
               AND coalesce(user_was_eligible, true)
             UNION ALL SELECT user_id, NULL FROM conversions WHERE project_id = $project
         ), over_active AS (
             SELECT user_id, array_agg(DISTINCT exposed) FILTER (WHERE exposed IS NOT NULL) AS experiments FROM counted
             GROUP BY user_id HAVING count(*) > (SELECT rows_max FROM user_rows_limit)
         ), eligible AS (
             SELECT i.*, e.name AS experiment, v.name AS variant, e.conversion_window_days AS days, e.attribution_method AS method
             FROM shown i, experiments e, variants v
             WHERE e.project_id = $project AND v.project_id = $project
               AND i.experiment_id = e.id AND v.experiment_id = e.id AND v.id = i.variant_id AND e.status != 'draft'
               AND CASE WHEN EXISTS (SELECT FROM experiment_phases p WHERE p.project_id = e.project_id AND p.experiment_id = e.id)
                   THEN EXISTS (SELECT FROM experiment_phases p WHERE p.project_id = e.project_id AND p.experiment_id = e.id
                                AND p.state = 'assigning' AND i.event_time >= coalesce(p.started_at, '-infinity')
                                AND i.event_time < coalesce(p.ended_at, 'infinity'))
                   ELSE i.event_time >= coalesce(e.started_at, '-infinity') AND i.event_time < coalesce(e.ended_at, 'infinity') END
               AND NOT EXISTS (SELECT 1 FROM over_active o WHERE o.user_id = i.user_id)
         ), first AS (
             -- Events of two kinds may have one id and one time.
             SELECT DISTINCT ON (user_id, experiment_id) * FROM eligible
             ORDER BY user_id, experiment_id, event_time, id, claimed_at, variant_id
         ), counted_eligible AS (
             SELECT l.* FROM eligible l JOIN first f ON f.user_id = l.user_id AND f.experiment_id = l.experiment_id
             WHERE NOT EXISTS (
                 SELECT 1 FROM experiment_phases p WHERE p.project_id = $project AND p.experiment_id = l.experiment_id AND p.reassigns
                 AND p.started_at > f.event_time AND p.started_at <= l.event_time)
         ), converting AS (
             SELECT f.user_id, f.experiment_id, f.experiment, f.variant, f.event_time AS first_time, f.days, f.method,
                    c.id, c.claimed_at, c.event_time, c.conversion_value, c.currency, c.is_bot,
                    NOT c.is_bot AND coalesce(c.conversion_value >= 0, true) AND c.conversion_type NOT IN ('refund', 'rebill') AS counts
             FROM first f, conversions c
             WHERE c.project_id = $project AND c.user_id = f.user_id AND c.event_time >= f.event_time
               AND (c.experiment_id IS NULL OR c.experiment_id = f.experiment_id)
         ), attributed AS (
             SELECT c.*, CASE method WHEN 'first_exposure' THEN c.variant ELSE (
                        SELECT l.variant FROM counted_eligible l
                        WHERE l.user_id = c.user_id AND l.experiment_id = c.experiment_id AND l.event_time <= c.event_time
                        ORDER BY l.event_time DESC, l.id DESC, l.claimed_at DESC LIMIT 1) END AS credited
             FROM converting c
             WHERE NOT c.is_bot AND c.event_time - c.first_time <= make_interval(hours => 24 * c.days)
         ) {query}"
    )
}

const EXPECTED_PARTICIPATION: &str = "
    SELECT f.user_id, f.experiment, f.variant, f.event_time, f.id,
           (SELECT count(*) FROM counted_eligible n WHERE n.user_id = f.user_id AND n.experiment_id = f.experiment_id),
           (SELECT string_agg(DISTINCT n.variant, ',' ORDER BY n.variant) FROM counted_eligible n
            WHERE n.user_id = f.user_id AND n.experiment_id = f.experiment_id),
           EXISTS (SELECT 1 FROM converting c WHERE c.counts AND c.user_id = f.user_id AND c.experiment_id = f.experiment_id),
           (SELECT min(event_time) FROM converting c WHERE c.counts AND c.user_id = f.user_id AND c.experiment_id = f.experiment_id),
           EXISTS (SELECT 1 FROM attributed a WHERE a.user_id = f.user_id AND a.experiment_id = f.experiment_id)
    FROM first f ORDER BY 1, 2";

const EXPECTED_ATTRIBUTION: &str = "
    SELECT a.user_id, a.id, a.claimed_at, a.experiment, a.credited, a.method,
           (SELECT floor((200 * count(*) FILTER (WHERE l.variant = a.credited) + count(*))::numeric / (2 * count(*))) / 100
            FROM counted_eligible l WHERE l.user_id = a.user_id AND l.experiment_id = a.experiment_id
            AND l.event_time <= a.event_time)::numeric(3, 2),
           trunc(extract(epoch FROM a.event_time - a.first_time) / 3600)::integer, a.conversion_value, a.currency, a.event_time
    FROM attributed a ORDER BY 1, 2, 3, 4";

/// Users by UUID, so that they are the same in every project.
fn user(number: u8) -> String {
    Uuid::from_u128(u128::from(number) << 64 | 0x8000_0000_0000_0000).to_string()
}

/// Times that often meet: multiples of 4 hours over 5 days.
fn at(step: u8) -> String {
    format!("2026-02-{:02}T{:02}:00:00Z", 10 + step / 6, step % 6 * 4)
}

/// An event that exposes to a variant by the definition [`VIEWED`], if the plan is one of those.
fn viewed(id: &str, who: &str, when: &str, plan: &str, (experiment, variant): (&str, &str)) -> Draft {
    // As a number and as a text, and with something of the other experiment.
    let plan = if plan == "pro" && variant == "b" { serde_json::json!(1) } else { serde_json::json!(plan) };
    let properties = serde_json::json!({ "plan": plan, format!("arm of {experiment}"): variant, "arm of other": "b" });
    Draft {
        event_id: Some(id.into()),
        user_id: Some(who.into()),
        timestamp: ClaimedTime::Text(when.into()),
        name: Some("viewed".into()),
        properties: Some(JsonObject::parse(properties.to_string(), "properties").expect("an object")),
        ..Draft::new(Details::Engagement)
    }
}

const VIEWED: &str = r#"{"any_of": [
    {"kind": "engagement", "events": ["viewed"], "where": {"plan": ["pro", 1]}, "variant": {"property": "arm of {experiment}"}},
    {"kind": "conversion", "events": ["purchase"]}]}"#;

fn any_event() -> impl Strategy<Value = Draft> {
    let experiments = prop_oneof![Just("checkout"), Just("banner")];
    let variants = prop_oneof![Just("control"), Just("b")];
    // An id of zeros only is none.
    let shared = (1..=40u8, 0..3u8, 0..30u8, any::<bool>());
    (shared, experiments, variants, 0..10u8).prop_map(|((id, who, step, named), experiment, variant, choice)| {
        let (id, who, when) = (Uuid::from_u128(u128::from(id)).to_string(), user(who), at(step));
        let is_bot = choice == 9;
        if choice == 4 {
            return viewed(&id, &who, &when, if named { "pro" } else { "free" }, (experiment, variant));
        }
        if choice < 5 || is_bot {
            let mut draft = exposure(&id, &who, &when, experiment, variant);
            if let (0, Details::Impression(details)) = (choice, &mut draft.details) {
                details.user_was_eligible = Some(false);
            }
            Draft { is_bot, ..draft }
        } else {
            let value = if choice == 5 { "-19.90" } else { "10.5" };
            let draft = conversion(&id, &who, &when, if choice == 6 { "refund" } else { "purchase" }, value);
            let variant = (named && choice == 7).then(|| variant.into());
            Draft { experiment: named.then(|| experiment.into()), variant, is_bot: choice == 8, ..draft }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Any order, any cut into batches, any duplicates, and workers side by side give the same derived tables, with a pause or without,
    /// after which users are assigned as before or anew, with other events than impressions that expose users in none, one or both
    /// experiments, and these are what plain SQL computes from the raw rows. Of different events with one identity only one is sent here.
    #[test]
    fn derived_tables_do_not_depend_on_order(
        drafts in prop::collection::vec(any_event(), 1..60),
        window in 0..4i32,
        last_exposure: bool,
        pause in prop::option::of((4..20u8, 4..20u8, any::<bool>())),
        defined in 0..3usize,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let drafts = one_of_each_identity(drafts);
            let database = DATABASE.get_or_init(TestDatabase::create).await;
            let mut straight = Case::new(database).await;
            let mut shuffled = Case::new(database).await;
            for case in [&mut straight, &mut shuffled] {
                case.store(vec![exposure("seed", &user(250), &at(3), "checkout", "control")]).await;
                case.store(vec![exposure("seed-2", &user(250), &at(3), "banner", "control")]).await;
                if defined > 0 {
                    // No variant registers itself any more.
                    let others = ["checkout", "banner"].map(|experiment| exposure(experiment, &user(251), &at(3), experiment, "b"));
                    case.store(others.to_vec()).await;
                }
                case.expose_by(&["checkout", "banner"][..defined]).await;
                let method = if last_exposure { "last_exposure" } else { "first_exposure" };
                case.execute(&format!(
                    "UPDATE experiments SET conversion_window_days = {window}, attribution_method = '{method}',
                     started_at = '2026-02-10T08:00:00Z', ended_at = '2026-02-14T00:00:00Z' WHERE project_id = $project;
                     UPDATE catalogue_versions SET version = version + 1 WHERE project_id = $project"
                )).await;
                if let Some((from, until, reassigns)) = pause {
                    let (from, until) = (at(from.min(until)), at(from.max(until)));
                    case.execute(&format!(
                        "INSERT INTO experiment_phases (project_id, experiment_id, phase, state, reassigns, started_at, ended_at)
                         SELECT project_id, id, phase, state, anew, from_time::timestamptz, until_time::timestamptz FROM experiments, (VALUES
                             (1, 'assigning', false, '2026-02-10T08:00:00Z', '{from}'), (2, 'paused', false, '{from}', '{until}'),
                             (3, 'assigning', {reassigns}, '{until}', '2026-02-14T00:00:00Z')) p (phase, state, anew, from_time, until_time)
                         WHERE project_id = $project AND name = 'checkout'"
                    )).await;
                }
            }
            straight.store(drafts.clone()).await;

            let mut order = Shuffle(seed);
            let mut repeated = drafts.clone();
            repeated.extend(drafts.iter().filter(|_| order.next().is_multiple_of(3)).cloned().collect::<Vec<_>>());
            order.shuffle(&mut repeated);
            let mut two = two_workers(&mut shuffled).await;
            while !repeated.is_empty() {
                let cut = (1 + order.next() as usize % 9).min(repeated.len());
                let records: Vec<Record> = repeated.drain(..cut).map(|draft| shuffled.record(draft)).collect();
                let (even, odd): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.bucket().number() % 2 == 0);
                let (even, odd) = (shuffled.batch(even), shuffled.batch(odd));
                let (log_id, none) = (shuffled.log_id, Tallies::new());
                let (first, second) = tokio::join!(
                    commit(&mut shuffled.connection, &mut shuffled.cache, log_id, &even, &none),
                    commit(&mut two.0, &mut two.1, log_id, &odd, &none),
                );
                first.expect("commits");
                second.expect("commits");
            }

            let found = straight.derived().await;
            prop_assert_eq!(&found, &straight.expected().await);
            prop_assert_eq!(&shuffled.derived().await, &found);
            // And a recomputation of every experiment finds nothing to do.
            let experiments = sqlx::query_scalar("SELECT id FROM experiments WHERE project_id = $1")
                .bind(shuffled.project).fetch_all(&mut shuffled.connection).await.expect("answers");
            for experiment in experiments {
                let changed = recompute::recompute(&mut shuffled.connection, shuffled.project, experiment).await.expect("recomputes");
                prop_assert_eq!(changed, recompute::Differences::default());
            }
            Ok(())
        })?;
    }
}

static DATABASE: tokio::sync::OnceCell<TestDatabase> = tokio::sync::OnceCell::const_new();

async fn two_workers(case: &mut Case) -> (PgConnection, WorkerCache) {
    let mut connection = database::connect(&case.url, "second").await.expect("connects");
    copy::make_table(&mut connection).await.expect("temporary tables");
    (connection, WorkerCache::default())
}

/// Of different events with one identity the first committed stays, so their order matters; here there is one of each.
fn one_of_each_identity(drafts: Vec<Draft>) -> Vec<Draft> {
    let mut seen = std::collections::HashSet::new();
    let identity = |draft: &Draft| (draft.details.kind(), draft.event_id.clone(), format!("{:?}", draft.timestamp));
    drafts.into_iter().filter(|draft| seen.insert(identity(draft))).collect()
}

/// SplitMix64. Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
struct Shuffle(u64);

impl Shuffle {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.next() as usize % (last + 1));
        }
    }
}

#[tokio::test]
async fn the_same_batch_twice_is_refused_and_changes_nothing() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let record = case.record(conversion("c", &user(1), &at(3), "purchase", "5"));
    let batch = case.batch([record]);
    assert_eq!(case.commit(&batch).await.expect("commits").inserted.values().sum::<u64>(), 1);
    let again = case.commit(&batch).await;
    assert!(matches!(again, Err(CommitError::NotOwner { .. })), "{again:?}");
    assert_eq!(case.rows("SELECT count(*) FROM conversions WHERE project_id = $project").await, ["(1)"]);
}

#[tokio::test]
async fn an_old_epoch_commits_nothing() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let record = case.record(conversion("c", &user(1), &at(3), "purchase", "5"));
    let batch = case.batch([record]);
    sqlx::raw_sql("UPDATE checkpoints SET epoch = epoch + 1").execute(&mut case.connection).await.expect("executes");
    assert!(matches!(case.commit(&batch).await, Err(CommitError::NotOwner { .. })));
    assert_eq!(case.rows("SELECT count(*) FROM conversions").await, ["(0)"]);
}

/// Batches are copied straight into their tables until one holds what is stored already; from then on they are staged, until
/// one holds nothing of that kind.
#[tokio::test]
async fn repetitions_are_passed_over_and_their_neighbours_land() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let buy = |id: &str, when: u8| conversion(id, &user(1), &at(when), "purchase", "5");
    let mut check = async |drafts: Vec<Draft>, expected: (u64, u64), had_duplicates: bool| {
        let ids: Vec<_> = drafts.iter().map(|draft| draft.event_id.clone()).collect();
        let stored = case.store(drafts).await;
        assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates), expected, "{ids:?}");
        assert_eq!(case.cache.had_duplicates, had_duplicates, "{ids:?}");
    };
    check(vec![buy("a", 1), buy("b", 2)], (2, 0), false).await;
    check(vec![buy("c", 3), buy("a", 1), buy("d", 3)], (2, 1), true).await;
    check(vec![buy("e", 3), buy("f", 3)], (2, 0), false).await;
    check(vec![buy("g", 3), buy("g", 3)], (1, 1), true).await;
    check(vec![buy("a", 1)], (0, 1), true).await;
    let counts = "SELECT (SELECT count(*) FROM conversions WHERE project_id = $project), sum(events), sum(value)
                  FROM daily_rollups WHERE project_id = $project";
    assert_eq!(case.rows(counts).await, ["(7,7,35.000000)"]);
}

/// The first retry of an event without a time has another receipt, hence another identity: the id alone tells.
#[tokio::test]
async fn untimed_events_with_a_clients_id_are_stored_once() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let receive = |case: &Case, seconds: i64| {
        let received_at = events::Micros(request_context().received_at.0 + seconds * events::Micros::SECOND);
        let request = RequestContext { project: ProjectId(case.project), received_at, ..request_context() };
        let draft = Draft { timestamp: Default::default(), ..conversion("order-7", &user(1), "", "purchase", "5") };
        Record::encode(&rules::admit(draft, &request, generated_id).expect("valid"))
    };
    // Twice in one batch, and once more in a later one.
    let records = [receive(&case, 0), receive(&case, 1)];
    let batch = case.batch(records);
    let stored = case.commit(&batch).await.expect("commits");
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates), (1, 1));
    let records = [receive(&case, 2)];
    let batch = case.batch(records);
    let stored = case.commit(&batch).await.expect("commits");
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates), (0, 1));
    let received = case.rows("SELECT received_at::timestamptz AT TIME ZONE 'UTC' FROM conversions").await;
    assert_eq!(received, ["(\"2026-03-01 12:00:00\")"]);
}

/// A backlog of events without times: what a batch of them costs grows with their number, not with its square.
#[tokio::test]
async fn a_large_batch_of_untimed_events_is_compared_by_hashes() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let mut transaction = case.connection.begin().await.expect("begins");
    sqlx::raw_sql(facts::NO_NESTED_LOOPS).execute(&mut *transaction).await.expect("executes");
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN {}", facts::DROP_KNOWN_IDS));
    let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut *transaction).await.expect("a plan");
    assert!(!plan.iter().any(|line| line.contains("Nested Loop")), "{plan:#?}");
    transaction.rollback().await.expect("ends");
    let orders = |range: std::ops::Range<u32>| -> Vec<Draft> {
        let order =
            |n| Draft { timestamp: ClaimedTime::Missing, ..conversion(&format!("order-{n}"), &user(1), "", "purchase", "5") };
        range.map(order).collect()
    };
    let stored = case.store(orders(0..20_000)).await;
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates), (20_000, 0));
    let stored = case.store(orders(10_000..25_000)).await;
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates), (5_000, 10_000));
}

/// One id under two users are two events: whoever sends a shop's order numbers first, as anybody with the public key can, takes
/// none of its orders away, whether they have times or not.
#[tokio::test]
async fn nobody_blocks_anothers_events_by_sending_their_ids_first() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let orders = |who: u8, timestamp: ClaimedTime| -> Vec<Draft> {
        let order =
            |n| Draft { timestamp: timestamp.clone(), ..conversion(&format!("order-{n}"), &user(who), "", "purchase", "5") };
        (0..50).map(order).collect()
    };
    for timestamp in [ClaimedTime::Missing, ClaimedTime::Text(at(1).into())] {
        // Both users in one batch, then each again by itself: only the repetitions are passed over.
        let first = case.store([orders(1, timestamp.clone()), orders(2, timestamp.clone())].concat()).await;
        assert_eq!((first.inserted.values().sum::<u64>(), first.duplicates), (100, 0));
        let later = case.store([orders(2, timestamp.clone()), orders(3, timestamp.clone())].concat()).await;
        assert_eq!((later.inserted.values().sum::<u64>(), later.duplicates), (50, 50));
    }
}

/// Records that other programs wrote, past the collector's rules: each bad row becomes a dead letter, its neighbours land.
#[tokio::test]
async fn what_postgres_refuses_is_set_apart_row_by_row() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let good: Vec<Record> =
        (0..97).map(|n| case.record(conversion(&format!("good-{n}"), &user(n), &at(n % 30), "purchase", "5"))).collect();
    let of = |record: &Record, from: &str, to: &str| {
        let text = String::from_utf8(record.bytes().to_vec()).expect("JSON is UTF-8");
        assert!(text.contains(from), "{text}");
        Bytes::from(text.replace(from, to))
    };
    let sample = case.record(Draft {
        properties: Some(events::JsonObject::parse(r#"{"k":"v"}"#.into(), "").expect("valid")),
        ..conversion("bad", &user(7), &at(1), "purchase", "5")
    });
    let bad = [
        of(&sample, r#""k":"v""#, r#""k":"\u0000""#), // 22P05: jsonb has no such character
        of(&sample, r#""name":"purchase","#, r#""name":"a\u0000b","#), // 22021: nor has text
        of(&sample, r#""name":"purchase","#, ""),     // 23502: a conversion without a name
        of(&sample, "EUR", "eur"),                    // 23514: the currency's check
        Bytes::from_static(b"not JSON at all"),
    ];
    let mut batch = case.batch(good);
    let mut rest: Vec<StoredRecord> = Vec::new();
    for bytes in bad {
        let next = case.next.entry(7).or_default();
        rest.push(StoredRecord { offset: *next, bytes });
        *next += 1;
    }
    // Log partition 7 may be in the batch already: a second batch then takes the rest.
    let mut second = Batch::default();
    second.add(7, 0, rest);
    assert_eq!(case.commit(&batch).await.expect("commits").inserted.values().sum::<u64>(), 97);
    batch = second;
    let stored = case.commit(&batch).await.expect("commits");
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.dead.len()), (0, 5));
    let letters = case.rows("SELECT code, sqlstate FROM dead_letters ORDER BY log_offset").await;
    let expected = ["(pg_refused,22P05)", "(pg_refused,22021)", "(pg_refused,23502)", "(pg_refused,23514)", "(undecodable,)"];
    assert_eq!(letters, expected);
}

/// A clock that is wrong by months puts rows into the default table partition; the month is made later all the same.
#[tokio::test]
async fn rows_in_the_default_do_not_stop_their_month() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let skewed = RequestContext {
        project: ProjectId(case.project),
        sent_at: Some(events::Micros::parse("2026-06-15T12:00:00Z").expect("a constant")),
        ..request_context()
    };
    let draft = conversion("early", &user(1), "2026-06-15T11:59:00Z", "purchase", "5");
    let record = Record::encode(&rules::admit(draft, &skewed, generated_id).expect("the skew explains it"));
    let batch = case.batch([record]);
    case.commit(&batch).await.expect("commits");
    assert_eq!(case.rows("SELECT tableoid::regclass FROM conversions").await, ["(conversions_default)"]);

    let june = RequestContext {
        received_at: events::Micros::parse("2026-06-20T00:00:00Z").expect("a constant"),
        sent_at: None,
        ..skewed
    };
    let draft = conversion("late", &user(1), "2026-06-19T00:00:00Z", "purchase", "5");
    let record = Record::encode(&rules::admit(draft, &june, generated_id).expect("valid"));
    let batch = case.batch([record]);
    case.commit(&batch).await.expect("commits");
    let tables = case.rows("SELECT tableoid::regclass FROM conversions ORDER BY claimed_at").await;
    assert_eq!(tables, ["(conversions_2026_06)", "(conversions_2026_06)"]);
}

#[tokio::test]
async fn unknown_names_wait_where_the_project_does_not_register() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.execute("UPDATE projects SET auto_register = false WHERE id = $project").await;
    let stored = case
        .store(vec![exposure("1", &user(1), &at(1), "nowhere", "b"), conversion("2", &user(1), &at(2), "purchase", "5")])
        .await;
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.dead.len(), stored.followed.unattributed), (1, 1, 1));
    let letters = case.rows("SELECT code, subject FROM dead_letters WHERE project_id = $project").await;
    assert_eq!(letters, ["(unknown_experiment,nowhere)"]);
}

/// An admin change between the resolution and the commit: the batch starts over with the new catalogue.
#[tokio::test]
async fn a_catalogue_that_moved_is_read_again() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.execute("UPDATE projects SET auto_register = false WHERE id = $project").await;
    case.store(vec![exposure("1", &user(1), &at(1), "later", "b")]).await;
    assert_eq!(case.rows("SELECT code FROM dead_letters WHERE project_id = $project").await, ["(unknown_experiment)"]);
    case.execute(
        "INSERT INTO experiments (project_id, id, name, status) VALUES ($project, '00000000-0000-0000-0000-00000000000e', 'later', 'running');
         INSERT INTO variants (project_id, experiment_id, name) VALUES ($project, '00000000-0000-0000-0000-00000000000e', 'b');
         INSERT INTO catalogue_versions VALUES ($project, 1)",
    )
    .await;
    let stored = case.store(vec![exposure("2", &user(1), &at(1), "later", "b")]).await;
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.dead.len()), (1, 0));
}

#[tokio::test]
async fn before_the_horizon_nothing_is_stored() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.execute("UPDATE horizon SET until = '2026-02-12T00:00:00Z'").await;
    let drafts = vec![
        conversion("old", &user(1), "2026-02-11T23:59:59.999999Z", "purchase", "5"),
        conversion("new", &user(1), "2026-02-12T00:00:00Z", "purchase", "5"),
    ];
    let stored = case.store(drafts).await;
    assert_eq!(stored.inserted.values().sum::<u64>(), 1);
    assert_eq!(case.rows("SELECT code FROM dead_letters").await, ["(before_horizon)"]);
}

/// Every column of every fact table, through binary COPY and back as text.
#[tokio::test]
async fn every_field_arrives_in_its_column() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    sqlx::query("INSERT INTO projects (id, name, auto_register) VALUES ($1, 'samples', true)")
        .bind(request_context().project.0)
        .execute(&mut case.connection)
        .await
        .expect("a project");
    let records: Vec<Record> = events::testing::one_of_each_kind().iter().map(Record::encode).collect();
    let batch = case.batch(records);
    assert_eq!(case.commit(&batch).await.expect("commits").inserted.values().sum::<u64>(), 5);
    let mut found = String::new();
    for table in ["campaign_events", "conversions", "engagement_events", "identity_events", "impressions"] {
        let query = format!("SELECT jsonb_strip_nulls(to_jsonb(t) - 'log_id')::text FROM {table} t");
        let row: String = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut case.connection).await.expect("answers");
        found.push_str(&format!("{table} {row}\n"));
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/rows.txt");
    assert_eq!(found, std::fs::read_to_string(golden).unwrap_or_default(), "{golden}");
}
