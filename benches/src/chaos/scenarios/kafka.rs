//! Faults of Kafka, and of aggregators that share its log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use uuid::Uuid;

use super::{moment, tests, why_no_kafka};
use crate::chaos::Outcome;
use crate::chaos::client::Pace;
use crate::chaos::disk::{self, Disk};
use crate::chaos::scene::{Scene, Settings, connect, metric};
use crate::chaos::services::{Broker, Deployment, kill_broker};

/// How long the leases of those who left may lie until others have taken them.
const TAKEN_MAX: Duration = Duration::from_secs(60);

/// K1.
pub(super) async fn broker_killed(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = why_no_kafka() {
        return Ok(Outcome::Skipped(why));
    }
    let mut deployment = Deployment::start(&settings, None, 2).await?;
    let mut kills = 0;
    for kill in 0..settings.times {
        deployment.scene.clients.go_on(100).await?;
        tokio::time::sleep(moment(settings.seed, kill, Duration::from_secs(1))).await;
        deployment.broker.kill().await?;
        kills += 1;
        // Taken by the spool.
        deployment.scene.clients.go_on(100).await?;
        deployment.broker.start_again()?;
    }
    deployment.scene.claim("SIGKILL of the broker", settings.times, kills);
    spooled(&mut deployment).await?;
    Ok(Outcome::Judged(deployment.judge().await?).and(tests::services_killed(settings.times).await?))
}

/// Claims that the spool has taken records, by the collector's count.
async fn spooled(deployment: &mut Deployment) -> anyhow::Result<()> {
    let taken = metric(&deployment.collector()?.url, "weir_collector_spool_stored_total").await?;
    deployment.scene.claim("records that the spool took", 1, taken as u64);
    Ok(())
}

/// K2: frozen for 45 s, well for 20 s.
pub(super) async fn broker_frozen(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = why_no_kafka() {
        return Ok(Outcome::Skipped(why));
    }
    let mut deployment = Deployment::start(&settings, None, 2).await?;
    let mut frozen = 0;
    for _ in 0..settings.times {
        deployment.scene.clients.go_on(100).await?;
        let broker = deployment.broker.pid()?;
        kill_process(broker, Signal::STOP)?;
        tokio::time::sleep(Duration::from_secs(45)).await;
        let taken = deployment.scene.clients.go_on(1).await;
        kill_process(broker, Signal::CONT)?;
        taken?;
        frozen += 1;
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    deployment.scene.claim("broker frozen", settings.times, frozen);
    spooled(&mut deployment).await?;
    Ok(Outcome::Judged(deployment.judge().await?))
}

/// K4: with a sync of each record before its report, which loses nothing at a power cut.
pub(super) async fn power_of_broker_cut(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = why_no_kafka() {
        return Ok(Outcome::Skipped(why));
    }
    if let Some(why) = disk::why_not().await {
        return Ok(Outcome::Skipped(why));
    }
    let scene = Scene::new(&settings, Pace::default())?;
    let disk = Disk::of_file(&scene.folder().join("disk"), 1_024)?;
    let broker = Broker::start(&disk.folder().join("kafka"))?;
    // As the compose file sets it for its single broker.
    broker.set("log.flush.interval.messages=1")?;
    broker.kill().await?;
    broker.start_again()?;
    let mut deployment = Deployment::of(scene, Some(broker), 2).await?;
    deployment.scene.clients.go_on(1).await?;
    // The cluster's and the topic's making is not what is put to the test.
    disk.sync()?;
    let mut cuts = 0;
    for cut in 0..settings.times {
        deployment.scene.clients.go_on(100).await?;
        tokio::time::sleep(moment(settings.seed, cut, Duration::from_secs(2))).await;
        let broker = deployment.broker.pid()?;
        disk.cut_power(&[broker])?;
        kill_broker(broker).await?;
        disk.restore_power().await?;
        deployment.broker.start_again()?;
        cuts += 1;
    }
    deployment.scene.claim("power cut of the broker", settings.times, cuts);
    deployment.scene.durability = Some("power cuts of the broker's disk");
    let verdicts = deployment.judge().await?;
    drop(disk);
    Ok(Outcome::Judged(verdicts))
}

/// K7: log partitions that go from an aggregator to others and come back to it; then three aggregators, of which one joins or leaves every two seconds, by SIGKILL or in order, and each tenth time one freezes until it was replaced;
/// then one that freezes for a minute, inside of a COPY.
pub(super) async fn owners_change(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = why_no_kafka() {
        return Ok(Outcome::Skipped(why));
    }
    let mut deployment = Deployment::start(&settings, None, 3).await?;
    let before = epochs(&deployment).await?;
    let rounds = settings.times.div_ceil(10);
    let mut returned = 0;
    for _ in 0..rounds {
        returned += u64::from(to_and_fro(&mut deployment).await?);
    }
    while deployment.aggregators.len() < 3 {
        let joining = deployment.aggregator()?;
        deployment.aggregators.push(joining);
    }
    let (mut changes, mut replaced) = (0, 0);
    for change in 0..settings.times {
        deployment.scene.clients.go_on(1).await?;
        if change % 2 == 0 {
            let mut leaving = deployment.aggregators.remove((change / 2 % 3) as usize);
            if change % 4 == 0 {
                leaving.kill()?;
            } else {
                let ended = leaving.end().await;
                deployment.scene.ends.push(ended);
            }
        } else {
            let joining = deployment.aggregator()?;
            deployment.aggregators.push(joining);
        }
        changes += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
        if change % 10 == 9 {
            replaced += u64::from(freeze_until_replaced(&mut deployment).await?);
        }
    }
    if deployment.aggregators.len() < 3 {
        let joining = deployment.aggregator()?;
        deployment.aggregators.push(joining);
    }
    // A lease that was given back is taken at once, that of the dead after 15 s.
    let (wanted, begun) = (settings.times.div_ceil(2), Instant::now());
    let mut taken = 0;
    while taken < wanted && begun.elapsed() < TAKEN_MAX {
        tokio::time::sleep(Duration::from_millis(500)).await;
        taken = epochs(&deployment).await?.abs_diff(before);
    }
    deployment.scene.claim("an aggregator joins or leaves", settings.times, changes);
    deployment.scene.claim("leases taken over", wanted, taken);
    deployment.scene.claim("log partitions stored by others and then again by who had them before", rounds, returned);
    if settings.times >= 10 {
        deployment.scene.claim("frozen until it was replaced", settings.times / 10, replaced);
    }
    Ok(Outcome::Judged(deployment.judge().await?).and(tests::owner_frozen().await?))
}

/// Lets one aggregator have all log partitions, share them with two others that store of the same users, and have them back when these have left in
/// order: it has met no error, and what it knew is no longer so. Returns whether that came about.
async fn to_and_fro(deployment: &mut Deployment) -> anyhow::Result<bool> {
    leave(deployment, 1).await;
    let Some(owner) = until_owned(deployment, |owners| owners.len() == 1).await? else { return Ok(false) };
    deployment.scene.clients.go_on(2_000).await?;
    for _ in 0..2 {
        let joining = deployment.aggregator()?;
        deployment.aggregators.push(joining);
    }
    let is_shared =
        until_owned(deployment, |owners| owners.len() == 3 && owners.get(&owner).is_some_and(|count| *count <= 3)).await?;
    deployment.scene.clients.go_on(5_000).await?;
    leave(deployment, 1).await;
    let is_back = until_owned(deployment, |owners| owners.get(&owner) == Some(&8)).await?;
    deployment.scene.clients.go_on(2_000).await?;
    Ok(is_shared.is_some() && is_back.is_some())
}

/// Ends all aggregators but the first so many, in order.
async fn leave(deployment: &mut Deployment, stay: usize) {
    for mut leaving in deployment.aggregators.split_off(stay) {
        let ended = leaving.end().await;
        deployment.scene.ends.push(ended);
    }
}

/// Waits until all leases are owned, and their owners, with how many each has, are as expected. Returns one of them; none if that does not come about.
async fn until_owned(deployment: &Deployment, expected: impl Fn(&BTreeMap<Uuid, i64>) -> bool) -> anyhow::Result<Option<Uuid>> {
    let mut connection = connect(&deployment.database_url).await?;
    let begun = Instant::now();
    while begun.elapsed() < TAKEN_MAX {
        let owners = "SELECT owner, count(*) FROM leases WHERE owner IS NOT NULL GROUP BY owner";
        let owners: Vec<(Uuid, i64)> = sqlx::query_as(owners).fetch_all(&mut connection).await?;
        let owners: BTreeMap<Uuid, i64> = owners.into_iter().collect();
        if owners.values().sum::<i64>() == 8 && expected(&owners) {
            return Ok(owners.into_keys().next());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(None)
}

/// Stops the aggregator that has lived for longest, and lets it go on when all leases are others'. Returns whether they came to be.
async fn freeze_until_replaced(deployment: &mut Deployment) -> anyhow::Result<bool> {
    let frozen = deployment.aggregators[0].pid()?;
    kill_process(frozen, Signal::STOP)?;
    let begun = Instant::now();
    let before = owners(deployment).await?;
    let mut is_replaced = false;
    while !is_replaced && begun.elapsed() < TAKEN_MAX {
        deployment.scene.clients.go_on(1).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // What is frozen beats no more.
        is_replaced =
            owners(deployment).await?.iter().all(|(owner, beats)| before.get(owner).is_none_or(|before| beats > before));
    }
    kill_process(frozen, Signal::CONT)?;
    Ok(is_replaced)
}

/// Who owns leases, and the heartbeats of each.
async fn owners(deployment: &Deployment) -> anyhow::Result<BTreeMap<Uuid, i64>> {
    let mut connection = connect(&deployment.database_url).await?;
    let owners = "SELECT owner, coalesce(max(a.counter), 0) FROM leases LEFT JOIN aggregators a USING (log_id, owner) WHERE owner IS NOT NULL GROUP BY owner";
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(owners).fetch_all(&mut connection).await?;
    Ok(rows.into_iter().collect())
}

/// How often a lease was taken so far, of all log partitions together.
async fn epochs(deployment: &Deployment) -> anyhow::Result<u64> {
    let mut connection = connect(&deployment.database_url).await?;
    let sum: i64 = sqlx::query_scalar("SELECT coalesce(sum(epoch), 0)::bigint FROM leases").fetch_one(&mut connection).await?;
    Ok(sum.unsigned_abs())
}
