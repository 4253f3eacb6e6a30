//! Records of one identity with different content, against a model that knows nothing of batches.

use std::collections::{HashMap, HashSet};

use events::{Kind, Micros};

use super::*;

/// A record, small enough that identities and contents often meet.
#[derive(Clone, Copy, Debug)]
struct Sent {
    id: u8,
    who: u8,
    /// None: no time.
    step: Option<u8>,
    kind: Kind,
    content: u8,
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let kinds = prop_oneof![Just(Kind::Conversion), Just(Kind::Impression), Just(Kind::CampaignEvent)];
    // An id of zeros only is none.
    (1..=3u8, 0..3u8, prop_oneof![Just(None), Just(Some(1)), Just(Some(2))], kinds, 0..4u8)
        .prop_map(|(id, who, step, kind, content)| Sent { id, who, step, kind, content })
}

/// Kind, user, id and step of time.
type Identity = (Kind, u8, u8, Option<u8>);

impl Sent {
    fn draft(self) -> Draft {
        let (id, who) = (Uuid::from_u128(u128::from(self.id)).to_string(), user(self.who));
        let variant = if self.content.is_multiple_of(2) { "control" } else { "b" };
        let experiment = if self.content < 2 { "checkout" } else { "banner" };
        let draft = match self.kind {
            Kind::Impression => exposure(&id, &who, "", experiment, variant),
            Kind::Conversion => {
                let name = if self.content == 3 { "refund" } else { "purchase" };
                conversion(&id, &who, "", name, if self.content == 1 { "6" } else { "5.00" })
            }
            _ => Draft {
                event_id: Some(id.into()),
                user_id: Some(who.into()),
                name: Some("click".into()),
                campaign: Some(experiment.into()),
                component: Some(variant.into()),
                ..Draft::new(Details::CampaignEvent)
            },
        };
        let draft = match self.content {
            2 if self.kind == Kind::Conversion => Draft { currency: Some("USD".into()), ..draft },
            _ => draft,
        };
        let timestamp = self.step.map_or(ClaimedTime::Missing, |step| ClaimedTime::Text(at(step).into()));
        Draft { timestamp, ..draft }
    }

    fn identity(self) -> Identity {
        (self.kind, self.who, self.id, self.step)
    }
}

/// What is stored, and which conflicts are kept: the first of an identity, and each other content once.
#[derive(Default)]
struct Model {
    stored: HashMap<Identity, Sent>,
    letters: HashSet<(Identity, u8)>,
}

impl Model {
    fn send(&mut self, sent: Sent) {
        let first = *self.stored.entry(sent.identity()).or_insert(sent);
        if first.content != sent.content {
            self.letters.insert((sent.identity(), sent.content));
        }
    }
}

static SHARED: tokio::sync::OnceCell<TestDatabase> = tokio::sync::OnceCell::const_new();

/// A database whose commits fail at their very end while `crashes` has a row.
async fn shared() -> &'static TestDatabase {
    let make = async || {
        let database = TestDatabase::create().await;
        sqlx::raw_sql(
            "CREATE TABLE crashes (crash boolean);
             CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
                 IF EXISTS (SELECT 1 FROM crashes) THEN RAISE EXCEPTION 'crash' USING ERRCODE = '57P01'; END IF;
                 RETURN NULL;
             END $f$;
             CREATE CONSTRAINT TRIGGER crash AFTER UPDATE ON checkpoints DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION crash()",
        )
        .execute(&mut database.connect().await)
        .await
        .expect("a trigger");
        database
    };
    SHARED.get_or_init(make).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn of_each_identity_the_first_stays_and_each_other_content_is_kept_once(
        sent in prop::collection::vec(any_sent(), 1..80),
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let database = shared().await;
            let mut case = Case::new(database).await;
            let mut model = Model::default();
            let mut random = Shuffle(seed);
            let (mut inserted, mut repeated, mut letters) = (0, 0, 0);
            let mut rest = &sent[..];
            let mut records: HashMap<(u32, u64), Bytes> = HashMap::new();
            while !rest.is_empty() {
                let (now, later) = rest.split_at((1 + random.next() as usize % 12).min(rest.len()));
                rest = later;
                let mut batch = Vec::new();
                for one in now {
                    model.send(*one);
                    // A later receipt, as every retry has.
                    let received_at = Micros(request_context().received_at.0 + (sent.len() - later.len()) as i64 * Micros::SECOND);
                    let request = RequestContext { project: ProjectId(case.project), received_at, ..request_context() };
                    batch.push(Record::encode(&rules::admit(one.draft(), &request, generated_id).expect("a valid event")));
                }
                let batch = case.batch(batch);
                for decoded in &batch.events {
                    records.insert((decoded.partition, decoded.offset), decoded.bytes.clone());
                }
                if random.next().is_multiple_of(3) {
                    case.execute("INSERT INTO crashes VALUES (true)").await;
                    let failed = case.commit(&batch).await;
                    prop_assert!(matches!(failed, Err(CommitError::Unknown(_))), "{failed:?}");
                    case.connection = database::connect(&case.url, "after the crash").await.expect("connects");
                    copy::make_table(&mut case.connection).await.expect("temporary tables");
                    case.cache = WorkerCache::default();
                    case.execute("DELETE FROM crashes").await;
                }
                let stored = case.commit(&batch).await.expect("commits");
                inserted += stored.inserted.values().sum::<u64>();
                repeated += stored.duplicates;
                letters += stored.dead.len();
            }
            prop_assert_eq!(inserted as usize, model.stored.len());
            prop_assert_eq!(letters, model.letters.len());
            prop_assert_eq!(inserted + repeated + letters as u64, sent.len() as u64);

            let mut expected: Vec<String> = model.stored.values().map(|first| described(*first)).collect();
            expected.sort_unstable();
            let mut found = case.rows(STORED).await;
            found.sort_unstable();
            prop_assert_eq!(found, expected);
            let kept: Vec<(i32, i64, String, Vec<u8>)> = sqlx::query_as(
                "SELECT log_partition, log_offset, code, bytes FROM dead_letters WHERE project_id = $1",
            ).bind(case.project).fetch_all(&mut case.connection).await.expect("answers");
            prop_assert_eq!(kept.len(), model.letters.len());
            for (partition, offset, code, bytes) in kept {
                prop_assert_eq!(code, "id_conflict");
                prop_assert_eq!(Some(&Bytes::from(bytes)), records.get(&(partition as u32, offset as u64)));
            }
            let counted = "SELECT coalesce(sum(records), 0) FROM id_conflicts WHERE project_id = $project";
            prop_assert_eq!(case.rows(counted).await, [format!("({})", model.letters.len())]);
            Ok(())
        })?;
    }
}

/// What is stored, by what the model knows of it.
const STORED: &str = "
    SELECT c.user_id, c.id, CASE WHEN untimed THEN 'untimed' ELSE to_char(claimed_at AT TIME ZONE 'UTC', 'DD HH24') END,
           conversion_type || ' ' || conversion_value || ' ' || currency
    FROM conversions c WHERE project_id = $project
    UNION ALL
    SELECT i.user_id, i.id, CASE WHEN untimed THEN 'untimed' ELSE to_char(claimed_at AT TIME ZONE 'UTC', 'DD HH24') END,
           e.name || ' ' || v.name
    FROM impressions i, experiments e, variants v
    WHERE i.project_id = $project AND e.project_id = $project AND v.project_id = $project
      AND e.id = i.experiment_id AND v.experiment_id = e.id AND v.id = i.variant_id
    UNION ALL
    SELECT e.user_id, e.id, CASE WHEN untimed THEN 'untimed' ELSE to_char(claimed_at AT TIME ZONE 'UTC', 'DD HH24') END,
           'click ' || c.name || ' ' || p.name
    FROM campaign_events e, campaigns c, campaign_components p
    WHERE e.project_id = $project AND c.project_id = $project AND p.project_id = $project
      AND c.id = e.campaign_id AND p.campaign_id = c.id AND p.id = e.component_id";

fn described(sent: Sent) -> String {
    let draft = sent.draft();
    let time = sent.step.map_or_else(|| "untimed".to_owned(), |step| format!("\"{} {:02}\"", 10 + step / 6, step % 6 * 4));
    let what = match sent.kind {
        Kind::Conversion => {
            let value = if sent.content == 1 { "6.000000" } else { "5.000000" };
            format!("{} {value} {}", draft.name.unwrap_or_default(), draft.currency.unwrap_or_default())
        }
        Kind::Impression => format!("{} {}", draft.experiment.unwrap_or_default(), draft.variant.unwrap_or_default()),
        _ => format!("click {} {}", draft.campaign.unwrap_or_default(), draft.component.unwrap_or_default()),
    };
    format!("({},{},{time},\"{what}\")", user(sent.who), Uuid::from_u128(u128::from(sent.id)))
}

/// What a public key can cause has an end: so many are kept of a project and a day, in all log partitions together; the rest is counted.
#[tokio::test]
async fn so_many_conflicts_of_a_project_and_a_day_are_kept() {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    let day = "(SELECT received_at::date FROM conversions LIMIT 1)";
    let order = |n: u8, value: &str| conversion(&format!("order-{n}"), &user(n), &at(1), "purchase", value);
    case.store((0..10).map(|n| order(n, "1")).collect()).await;
    case.execute(&format!(
        "INSERT INTO id_conflicts VALUES ($project, {day}, gen_random_uuid(), 0, {})",
        super::super::conflicts::KEPT_MAX - 4
    ))
    .await;
    let stored = case.store((0..10).map(|n| order(n, "2")).collect()).await;
    assert_eq!((stored.dead.len(), stored.conflicts_passed, stored.duplicates), (4, 6, 0));
    let stored = case.store((0..10).map(|n| order(n, "1")).collect()).await;
    assert_eq!((stored.dead.len(), stored.conflicts_passed, stored.duplicates), (0, 0, 10), "retries are none");
    let counted = "SELECT sum(records) - 10000 FROM id_conflicts WHERE project_id = $project";
    assert_eq!(case.rows(counted).await, ["(6)"]);
    assert_eq!(case.rows("SELECT count(*) FROM dead_letters WHERE project_id = $project").await, ["(4)"]);
    let reason = case.rows("SELECT DISTINCT code, left(reason, 58) FROM dead_letters WHERE project_id = $project").await;
    assert_eq!(reason, ["(id_conflict,\"an event of this identity is stored with another value: co\")"]);
}
