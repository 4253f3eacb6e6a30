//! A panic in each task and thread of the spool: reported, and restarted without a loss.

use super::*;
use crate::background::Deaths;
use crate::embedded::writer::THREAD;

async fn next(deaths: &mut Deaths) -> String {
    let death = tokio::time::timeout(Duration::from_secs(20), deaths.next()).await.expect("it is told");
    assert_eq!(death.panic, format!("injected into {}", death.task));
    death.task
}

#[tokio::test]
async fn whatever_panics_is_told_and_the_spool_still_drains() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new();
    let comparing = world.primary.clone();
    let compare = move |agreed| {
        let found = comparing.compare(agreed);
        async move { found }
    };
    let primary = Arc::new(world.primary.clone());
    let spool = Spool::open(folder.path(), primary, Arc::new(compare), quick()).expect("opens");
    spool.first_comparison().await;
    let background = spool.background();
    let mut deaths = background.deaths();
    let mut names = vec![THREAD.to_owned()];
    names.extend((0..PARTITIONS).map(drain::task));
    names.extend([identity_check::TASK.to_owned(), maintenance::TASK.to_owned()]);
    assert_eq!(background.names(), names);

    let mut ledger = Ledger::default();
    for name in &names {
        world.primary.set(Way::Unavailable);
        background.inject_panic(name);
        // The writer and the drains panic when they have something to do; what the writer had is not known to be stored.
        let users: Vec<usize> = (0..64).collect();
        eventually("the spool's log", || spool.ready().is_ok()).await;
        let appended = ledger.append(&spool, &users).await;
        assert_eq!(appended.is_err(), name == THREAD, "{name}: {appended:?}");
        world.primary.set(Way::Works);
        assert_eq!(next(&mut deaths).await, *name);
        drained(&spool).await;
    }
    ledger.append(&spool, &[1, 2, 3]).await.expect("it goes on");
    drained(&spool).await;
    ledger.check(&world.contents().await, "after all panics");
}
