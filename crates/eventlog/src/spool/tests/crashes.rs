//! The process ends at any step, and another one goes on with what is left.

use super::*;

/// Appends before, during and after an outage, and drains; ends early if the process does.
async fn live(world: &World, ledger: &mut Ledger) {
    let spool = world.open();
    let lived = async {
        spool.first_comparison().await;
        for _ in 0..3 {
            ledger.append(&spool, &[1, 2, 3]).await.expect("appends");
        }
        world.primary.push(Way::Unknown(2));
        ledger.append(&spool, &[1, 2, 3]).await.expect("the spool takes it");
        world.primary.set(Way::Unavailable);
        for _ in 0..4 {
            ledger.append(&spool, &[1, 2, 3, 4]).await.expect("the spool takes it");
        }
        world.primary.set(Way::Works);
        drained(&spool).await;
        for _ in 0..3 {
            ledger.append(&spool, &[1, 2, 3]).await.expect("appends");
        }
        spool.stop().await;
    };
    tokio::select! {
        () = lived => {}
        () = world.steps.crashed() => {}
    }
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_keeps_the_order() {
    let mut crashes = 0;
    for step in 1.. {
        // A runtime for each process: what it left behind does not go on.
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let world = World::crashing(Steps::crash_at(step));
        let mut ledger = Ledger::default();
        runtime().block_on(live(&world, &mut ledger));
        let survived = world.steps.passed() < step;

        // The next process may end too, while it drains.
        let steps = if step % 3 == 0 { Steps::crash_at(1 + step % 11) } else { Steps::default() };
        let second = world.restarted(steps);
        runtime().block_on(async {
            let spool = second.open();
            tokio::select! {
                () = drained(&spool) => {}
                () = second.steps.crashed() => {}
            }
        });

        let third = second.restarted(Steps::default());
        runtime().block_on(async {
            let spool = third.open();
            // What is left comes before what is new.
            for _ in 0..3 {
                ledger.append(&spool, &[1, 2, 3, 4]).await.expect("appends");
            }
            drained(&spool).await;
            ledger.check(&third.contents().await, &format!("step {step}"));
        });
        if survived {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 60, "only {crashes} steps: the test tests nothing");
}
