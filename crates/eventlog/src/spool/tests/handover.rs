//! Under a load that never pauses the spool becomes empty all the same.

use std::sync::atomic::AtomicBool;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_without_pause_returns_to_the_primary_in_order() {
    let mut world = World::new();
    // So that it drains quicker than it fills.
    world.options.drain_records_max = 200;
    let works = Way::Slow(Duration::from_millis(1));
    world.primary.set(works);
    let spool = Arc::new(world.open_direct().await);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..32)
        .map(|client: usize| {
            let (spool, stop) = (Arc::clone(&spool), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut ledger = Ledger::default();
                let mut direct = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let positions = ledger.append(&spool, &[client, client + 100]).await.expect("one of the two takes it");
                    direct += u64::from(positions.iter().all(|position| position.offset.is_some()));
                }
                (ledger, direct)
            })
        })
        .collect();
    // So that there is always an append on its way to the spool.
    world.kept.set(Disk::Slow(Duration::from_millis(3)));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        world.primary.set(Way::Unavailable);
        eventually("the outage", || spool.stats().records() > 200).await;
        world.primary.set(works);
        eventually("the way back, with appends all the time", || spool.stats().state == State::Direct).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut ledger = Ledger::default();
    for client in clients {
        let (own, direct) = client.await.expect("no panic");
        assert!(direct > 0, "a client never came back to the primary");
        ledger.merge(own);
    }
    drained(&spool).await;
    assert_eq!(ledger.check(&world.contents().await, "handover"), 0);
    let stats = spool.stats();
    assert_eq!(stats.spooled_records, stats.drained_records);
}
