//! What the owner of a log partition remembers of its users is what Postgres holds, whatever happens between two commits.

use super::*;
use crate::commit::memory::{Counts, Memory};

/// Fails commits of the logs that are listed in `refused`, at their end and in a way that leaves unknown whether they happened.
const REFUSE_COMMITS: &str = "
    CREATE TABLE refused (log_id uuid);
    CREATE FUNCTION refuse_commit() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
        IF EXISTS (SELECT 1 FROM refused r WHERE r.log_id = NEW.log_id) THEN
            RAISE EXCEPTION 'not now' USING ERRCODE = '40001';
        END IF;
        RETURN NULL;
    END $f$;
    CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON checkpoints DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse_commit()";

impl Case {
    async fn refuse_commits(&mut self, refuse: bool) {
        let change = if refuse { "INSERT INTO refused VALUES ($1)" } else { "DELETE FROM refused WHERE log_id = $1" };
        sqlx::query(change).bind(self.log_id).execute(&mut self.connection).await.expect("executes");
    }

    /// Another process has the leases from now on.
    async fn take_over(&mut self) {
        let raise = "UPDATE checkpoints SET epoch = epoch + 1 WHERE log_id = $1";
        sqlx::query(raise).bind(self.log_id).execute(&mut self.connection).await.expect("executes");
        self.epoch += 1;
    }

    fn counts(&mut self) -> Counts {
        self.cache.memory.take_counts()
    }
}

fn counts(known: u64, read: u64) -> Counts {
    Counts { known, read, ..Counts::default() }
}

fn buy(id: &str, who: u8, when: u8) -> Draft {
    conversion(id, &user(who), &at(when), "purchase", "5")
}

fn see(id: &str, who: u8, when: u8) -> Draft {
    exposure(id, &user(who), &at(when), "checkout", if who.is_multiple_of(2) { "control" } else { "b" })
}

/// What a step of the property below ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    /// It happened, and the worker does not know.
    ReplyLost,
    /// It did not, and the worker does not know.
    Refused,
    /// Before it the log partitions changed their owners.
    AfterTakeover,
}

static DATABASE: tokio::sync::OnceCell<TestDatabase> = tokio::sync::OnceCell::const_new();

async fn database() -> TestDatabase {
    let database = TestDatabase::create().await;
    sqlx::raw_sql(REFUSE_COMMITS).execute(&mut database.connect().await).await.expect("executes");
    database
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Two workers that remember, with much room or little, and whose commits fail, end unknown, and change hands, beside a limit of rows that
    /// many users pass or none: the derived tables are what plain SQL makes of the raw rows, and whatever is compared is equal.
    #[test]
    fn what_is_remembered_is_what_is_stored(
        drafts in prop::collection::vec(any_event(), 1..80),
        bytes_max in prop::sample::select(vec![0, 700, 3_000, 1 << 20]),
        rows_max in prop::sample::select(vec![1, 5, 12, 10_000]),
        is_compared: bool,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut case = Case::new(DATABASE.get_or_init(database).await).await;
            case.limit_rows(rows_max).await;
            case.store(vec![exposure("seed", &user(250), &at(3), "checkout", "control")]).await;
            case.store(vec![exposure("seed-2", &user(250), &at(3), "banner", "control")]).await;
            let memory = || Memory::new(bytes_max, if is_compared { 1 } else { u32::MAX });
            case.cache.memory = memory();
            let mut second = two_workers(&mut case).await;
            second.1.memory = memory();

            let mut random = Shuffle(seed);
            let mut left = one_of_each_identity(drafts);
            left.extend(left.iter().filter(|_| random.next().is_multiple_of(3)).cloned().collect::<Vec<_>>());
            random.shuffle(&mut left);
            let mut compared = 0;
            while !left.is_empty() {
                let fate = match random.next() % 10 {
                    0 => Fate::ReplyLost,
                    1 => Fate::Refused,
                    2 => Fate::AfterTakeover,
                    _ => Fate::Committed,
                };
                if fate == Fate::AfterTakeover {
                    case.take_over().await;
                }
                let cut = (1 + random.next() as usize % 9).min(left.len());
                let records: Vec<Record> = left[..cut].iter().map(|draft| case.record(draft.clone())).collect();
                let parity = case.epoch as u32 % 2;
                let (mine, others): (Vec<_>, Vec<_>) =
                    records.into_iter().partition(|record| record.bucket().log_partition(8) % 2 == parity);
                let next = case.next.clone();
                let (mine, others) = (case.batch(mine), case.batch(others));
                case.refuse_commits(fate == Fate::Refused).await;
                let (log_id, none) = (case.log_id, Tallies::new());
                let before = (fate == Fate::ReplyLost).then(|| {
                    (std::mem::replace(&mut case.cache.memory, memory()), std::mem::replace(&mut second.1.memory, memory()))
                });
                let ends = tokio::join!(
                    commit(&mut case.connection, &mut case.cache, log_id, &mine, &none),
                    commit(&mut second.0, &mut second.1, log_id, &others, &none),
                );
                for (end, batch) in [(ends.0, &mine), (ends.1, &others)] {
                    match end {
                        Ok(_) => prop_assert!(fate != Fate::Refused || batch.slices.is_empty()),
                        Err(CommitError::Unknown(_)) => prop_assert_eq!(fate, Fate::Refused),
                        Err(error) => return Err(TestCaseError::fail(format!("{fate:?}: {error}"))),
                    }
                }
                for memory in [&mut case.cache.memory, &mut second.1.memory] {
                    let counts = memory.take_counts();
                    prop_assert_eq!(counts.different, 0);
                    prop_assert!(memory.bytes() <= 8 * bytes_max);
                    compared += counts.sampled;
                }
                if let Some(memories) = before {
                    (case.cache.memory, second.1.memory) = memories;
                }
                if fate == Fate::Refused {
                    // The checkpoint stands where it stood; the next batch is cut otherwise.
                    case.refuse_commits(false).await;
                    case.next = next;
                } else {
                    left.drain(..cut);
                }
            }
            prop_assert!(is_compared || compared == 0);
            prop_assert_eq!(&case.derived().await, &case.expected().await);
            prop_assert_eq!(&case.over_active().await, &case.expected_over_active().await);
            let experiments = sqlx::query_scalar("SELECT id FROM experiments WHERE project_id = $1")
                .bind(case.project).fetch_all(&mut case.connection).await.expect("answers");
            for experiment in experiments {
                let changed = recompute::recompute(&mut case.connection, case.project, experiment).await.expect("recomputes");
                prop_assert_eq!(changed, recompute::Differences::default());
            }
            Ok(())
        })?;
    }
}

/// Rows that vanish unseen are not missed, so nobody looked; what nobody looks at again is also that a user had none.
#[tokio::test]
async fn a_known_user_is_not_read_again() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.store(vec![see("seed", 250, 1)]).await; // the names are registered
    assert_eq!(case.counts(), counts(0, 1));
    let ineligible = |id: &str| {
        let mut draft = see(id, 2, 1);
        if let Details::Impression(details) = &mut draft.details {
            details.user_was_eligible = Some(false);
        }
        draft
    };
    case.store(vec![see("1", 1, 1), ineligible("2")]).await;
    assert_eq!(case.counts(), counts(0, 2));
    // Two of them at once, and another one.
    case.store(vec![buy("3", 1, 2), buy("4", 1, 3), ineligible("5"), buy("6", 3, 3)]).await;
    assert_eq!(case.counts(), counts(2, 1));
    case.execute("DELETE FROM impressions WHERE project_id = $project").await;
    case.store(vec![buy("7", 1, 4)]).await;
    assert_eq!(case.counts(), counts(1, 0));
    assert_eq!(case.rows("SELECT count(*) FROM conversion_attribution WHERE project_id = $project").await, ["(3)"]);
    // Through staging, too.
    case.store(vec![buy("7", 1, 4), buy("8", 1, 5)]).await;
    case.store(vec![buy("9", 1, 6)]).await;
    assert_eq!(case.counts().read, 0);
    assert_eq!(case.rows("SELECT count(*) FROM conversion_attribution WHERE project_id = $project").await, ["(5)"]);
}

/// Somebody changes facts behind the owner's back, as a bug would: it shows by the comparison, nothing goes on from what is wrong, and the
/// experiments become what the facts make of them.
#[tokio::test]
async fn a_difference_is_found_counted_and_healed() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.cache.memory = Memory::new(1 << 20, 1);
    case.store(vec![see("1", 1, 2), see("2", 1, 6), buy("3", 1, 3), buy("4", 1, 8)]).await;
    case.store(vec![buy("5", 1, 9)]).await;
    assert_eq!(case.counts(), Counts { known: 1, read: 1, sampled: 1, different: 0 });
    case.execute(&format!("DELETE FROM impressions WHERE project_id = $project AND event_time = '{}'", at(2))).await;
    case.store(vec![buy("6", 1, 10)]).await;
    assert_eq!(case.counts(), Counts { known: 1, read: 1, sampled: 1, different: 1 });
    assert_ne!(case.derived().await, case.expected().await, "what was wrong before");
    assert_eq!(case.rows("SELECT is_recomputed FROM experiments_behind WHERE project_id = $project").await, ["(f)"]);
    let left = recompute::catch_up_all(&mut case.connection).await.expect("recomputes");
    assert_eq!((left.0, left.1.len()), (0, 0));
    assert_eq!(case.derived().await, case.expected().await);
    // And on: the recomputation has moved the catalogue, so the user is read once.
    case.store(vec![buy("7", 1, 11)]).await;
    case.store(vec![buy("8", 1, 12)]).await;
    assert_eq!(case.counts(), Counts { known: 1, read: 1, sampled: 1, different: 0 });
    assert_eq!(case.derived().await, case.expected().await);
}

/// Each time an earlier exposure is stored behind a worker that knows the user, which then stores a conversion.
async fn check_after(behind_its_back: impl AsyncFn(&mut Case, Batch)) {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.store(vec![see("1", 1, 6), see("2", 1, 7)]).await;
    case.store(vec![buy("3", 1, 8)]).await;
    assert_eq!(case.counts(), counts(1, 1));
    let record = case.record(see("4", 1, 1)); // of the same variant, so that the catalogue does not move
    let batch = case.batch([record]);
    behind_its_back(&mut case, batch).await;
    case.store(vec![buy("5", 1, 9)]).await;
    assert_eq!(case.counts(), counts(0, 1));
    assert_eq!(case.derived().await, case.expected().await);
}

#[tokio::test]
async fn nothing_is_remembered_over_a_takeover() {
    check_after(async |case: &mut Case, mut batch: Batch| {
        let mut second = two_workers(case).await;
        case.take_over().await;
        batch.slices.iter_mut().for_each(|slice| slice.epoch = case.epoch);
        commit(&mut second.0, &mut second.1, case.log_id, &batch, &Tallies::new()).await.expect("commits");
        case.take_over().await;
    })
    .await;
}

#[tokio::test]
async fn nothing_is_remembered_over_a_commit_whose_reply_was_lost() {
    check_after(async |case: &mut Case, batch: Batch| {
        let known = std::mem::take(&mut case.cache.memory);
        case.commit(&batch).await.expect("commits");
        case.cache.memory = known;
    })
    .await;
}

/// A commit that fails at its very end stored nothing, and what it would have stored is not remembered either.
#[tokio::test]
async fn what_is_not_committed_is_not_remembered() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.store(vec![see("1", 2, 6)]).await;
    let next = case.next.clone();
    let records = [case.record(see("2", 2, 3)), case.record(buy("3", 2, 7))];
    let batch = case.batch(records.clone());
    case.refuse_commits(true).await;
    let known = case.cache.memory.bytes();
    assert!(matches!(case.commit(&batch).await, Err(CommitError::Unknown(_))));
    assert!(case.cache.memory.bytes() <= known, "rows that nobody has stored are remembered");
    case.refuse_commits(false).await;
    // The checkpoint stands where it stood; what is read there next is one record only.
    case.next = next;
    let batch = case.batch([records[1].clone()]);
    case.commit(&batch).await.expect("commits");
    assert_eq!(case.derived().await, case.expected().await);
    let batch = case.batch([records[0].clone()]);
    case.commit(&batch).await.expect("commits");
    assert_eq!(case.derived().await, case.expected().await);
    assert_eq!(case.rows("SELECT count(*) FROM conversion_attribution WHERE project_id = $project").await, ["(1)"]);
}

/// An identity that is stored already fails the straight copy after users were recalled: they are known still, without the rows that were
/// not stored.
#[tokio::test]
async fn a_batch_that_starts_over_forgets_nobody() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.store(vec![see("1", 1, 1)]).await;
    case.counts();
    case.store(vec![see("1", 1, 1), buy("2", 1, 2)]).await;
    assert_eq!(case.counts(), counts(2, 0), "once copied straight, once through staging");
    assert_eq!(case.derived().await, case.expected().await);
}

/// All that is remembered goes when what is kept of the facts changes, or when the database is fed by another log, too; a project's users go
/// when its catalogue moves.
#[tokio::test]
async fn what_it_rests_on_is_compared_in_each_commit() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    let mut other = Case::new(&database).await;
    case.store(vec![see("0", 1, 6)]).await;
    case.counts();
    case.store(vec![buy("1", 1, 7)]).await;
    assert_eq!(case.counts(), counts(1, 0));
    case.execute("UPDATE horizon SET until = '2026-02-01T00:00:00Z'").await;
    case.store(vec![buy("2", 1, 7)]).await;
    assert_eq!(case.counts(), counts(0, 1), "the horizon");
    other.store(vec![see("0", 1, 6)]).await;
    case.store(vec![buy("3", 1, 7)]).await;
    assert_eq!(case.counts(), counts(0, 1), "another log");
    case.execute("UPDATE catalogue_versions SET version = version + 1 WHERE project_id = $project").await;
    case.store(vec![buy("4", 1, 7)]).await;
    assert_eq!(case.counts(), counts(0, 1), "the catalogue");
    case.store(vec![buy("5", 1, 7)]).await;
    assert_eq!(case.counts(), counts(1, 0));
}

/// Room for some users only: who is touched all the time stays known, the others go, the longest untouched first. Of a user with too many
/// rows the mark alone is remembered.
#[tokio::test]
async fn room_is_for_those_who_were_touched_last() {
    const BYTES_MAX: usize = 2_500; // about eight users of one exposure
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.store(vec![see("seed", 250, 1), see("seed-2", 251, 1)]).await;
    case.limit_rows(30).await;
    case.cache.memory = Memory::new(BYTES_MAX, u32::MAX);
    case.store(vec![see("0", 0, 1)]).await;
    case.counts();
    for round in 0..20u8 {
        let others = (0..10).map(|n| see(&format!("{round}-{n}"), 1 + round * 10 + n, 1));
        let drafts: Vec<Draft> = others.chain([see(&format!("again-{round}"), 0, round)]).collect();
        case.store(drafts).await;
        assert_eq!(case.counts(), counts(1, 10));
        assert!(case.cache.memory.bytes() <= 8 * BYTES_MAX);
    }
    assert!(case.cache.memory.bytes() > 2 * BYTES_MAX, "it is used");
    case.store((190..200).map(|n| buy(&format!("late-{n}"), 1 + n, 2)).collect()).await;
    assert_eq!(case.counts(), counts(10, 0), "the last ones");
    case.store((0..10).map(|n| buy(&format!("early-{n}"), 1 + n, 2)).collect()).await;
    assert_eq!(case.counts(), counts(0, 10), "the first ones");
    // 21 rows of this user so far. 30 are remembered, 31 are not.
    case.store((0..8).map(|n| see(&format!("more-{n}"), 0, n)).collect()).await;
    case.counts();
    case.store(vec![see("30", 0, 1)]).await;
    case.store(vec![see("31", 0, 1)]).await;
    assert_eq!(case.counts(), counts(2, 0));
    let full = case.cache.memory.bytes();
    case.store(vec![see("32", 0, 1)]).await;
    assert_eq!(case.counts(), counts(0, 1), "now it has a mark");
    case.store(vec![see("33", 0, 1)]).await;
    assert_eq!(case.counts(), counts(1, 0));
    assert!(case.cache.memory.bytes() < full + 400, "without rows");
    // Less room from now on, and for one log partition only.
    case.cache.memory.hold(std::iter::once(3), BYTES_MAX / 4);
    assert!(case.cache.memory.bytes() <= BYTES_MAX / 4);
    assert_eq!(case.derived().await, case.expected().await);
}

/// Participation and attribution that are there already, though no earlier row gives them, as after a change by hand: they are written over.
#[tokio::test]
async fn derived_rows_that_nobody_expects_are_written_over() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.store(vec![see("1", 1, 1), buy("2", 1, 2), see("3", 3, 1)]).await;
    let move_to_other_user = |table: &str| format!("UPDATE {table} SET user_id = '{}' WHERE user_id = '{}';", user(5), user(1));
    let moved = ["user_experiment_participation", "conversion_attribution"].map(move_to_other_user).concat();
    case.execute(&moved).await;
    let stored = case.store(vec![see("4", 5, 7), see("6", 7, 7)]).await;
    assert_eq!(stored.inserted.values().sum::<u64>(), 2);
    let of_others = |rows: Vec<String>| rows.into_iter().filter(|row| !row.contains(&user(1))).collect::<Vec<_>>();
    assert_eq!(of_others(case.derived().await.0), of_others(case.expected().await.0));
    assert_eq!(case.cache.new_rows, crate::commit::changes::NewRows::Upserted);
    // The next one is copied again.
    case.store(vec![see("8", 9, 7)]).await;
    assert_eq!(case.cache.new_rows, crate::commit::changes::NewRows::Copied);
}

/// Participation that is gone, though earlier rows give it: it is written whole where its count alone would have changed.
#[tokio::test]
async fn participation_that_is_missing_is_written() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.store(vec![see("1", 1, 1), see("2", 2, 1), buy("3", 2, 2)]).await;
    case.execute(&format!("DELETE FROM user_experiment_participation WHERE user_id = '{}'", user(2))).await;
    case.store(vec![see("4", 1, 7), see("5", 2, 7)]).await;
    assert_eq!(case.derived().await, case.expected().await);
}

/// What a batch would have added to the memory goes again if it meets a duplicate: it is not there twice when the batch is stored otherwise.
#[tokio::test]
async fn a_batch_with_a_duplicate_leaves_nothing_in_the_memory() {
    let database = database().await;
    let mut case = Case::new(&database).await;
    case.cache.memory = Memory::new(1 << 20, 1);
    case.store(vec![see("1", 1, 1), see("2", 2, 1)]).await;
    case.store(vec![see("3", 1, 2), see("4", 2, 2)]).await;
    case.counts();
    let drafts = vec![see("1", 1, 1), see("5", 1, 3), buy("6", 1, 4), see("7", 2, 3), see("8", 3, 3)];
    let stored = case.store(drafts).await;
    assert_eq!((stored.inserted.values().sum::<u64>(), stored.duplicates), (4, 1));
    // Two of the users were known, and all three are when the batch begins anew.
    let found = case.counts();
    assert_eq!((found.known, found.read, found.different), (5, 1, 0));
    case.store(vec![see("9", 1, 5), see("10", 3, 5)]).await;
    assert_eq!(case.counts().different, 0);
    assert_eq!(case.derived().await, case.expected().await);
}
