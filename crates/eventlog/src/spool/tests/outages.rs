//! Outages of days, on a clock that passes them at once, with the waits of a running service: nothing ends, nothing overflows, and all that
//! was acknowledged is in the log within a minute of the end.

use super::*;

const OUTAGE: Duration = Duration::from_secs(3 * 86_400);

/// What goes on within a minute.
async fn within_a_minute(what: &str, goes_on: impl Future<Output = ()>) {
    assert!(tokio::time::timeout(Duration::from_secs(60), goes_on).await.is_ok(), "{what}: not within a minute");
}

fn usual() -> World {
    World { options: Options::default(), ..World::new() }
}

#[tokio::test(start_paused = true)]
async fn days_without_the_log() {
    for way in [Way::Unavailable, Way::Hangs, Way::Stopped] {
        let world = usual();
        let spool = world.open_direct().await;
        let mut ledger = Ledger::default();
        world.primary.set(way);
        for _ in 0..72 {
            ledger.append(&spool, &[1, 2, 3, 4]).await.expect("the spool takes it");
            tokio::time::sleep(OUTAGE / 72).await;
        }
        assert_eq!(spool.stats().records(), 72 * 4, "{way:?}");
        spool.ready().expect("the spool has room");
        world.primary.set(Way::Works);
        within_a_minute(&format!("{way:?}"), spool.drained()).await;
        ledger.append(&spool, &[1, 2, 3, 4]).await.expect("appends");
        ledger.check(&world.contents().await, &format!("{way:?}"));
    }
}

/// The log is away, and the spool's disk is full or fails all the while: clients are refused, and taken again when there is room.
#[tokio::test(start_paused = true)]
async fn days_without_the_log_and_without_room() {
    for disk in [Disk::Full, Disk::Stopped] {
        let world = usual();
        let spool = world.open_direct().await;
        let mut ledger = Ledger::default();
        world.primary.set(Way::Unavailable);
        ledger.append(&spool, &[1, 2]).await.expect("the spool takes it");
        world.kept.set(disk);
        for _ in 0..72 {
            ledger.append(&spool, &[1, 2]).await.expect_err("no room");
            tokio::time::sleep(OUTAGE / 72).await;
        }
        assert_eq!(spool.stats().records(), 2, "{disk:?}: nothing is kept of what was refused");
        world.kept.set(Disk::Works);
        within_a_minute(&format!("{disk:?}: room"), async {
            while ledger.append(&spool, &[1, 2]).await.is_err() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
        .await;
        world.primary.set(Way::Works);
        within_a_minute(&format!("{disk:?}"), spool.drained()).await;
        ledger.check(&world.contents().await, &format!("{disk:?}"));
    }
}
