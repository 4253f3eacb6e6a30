//! Death at random moments under load. What was acknowledged is stored, once, and what is derived from it fits.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::harness::{Folder, Up, is_running, until};
use crate::load::Load;
use crate::support::{Database, number};

/// How long a start may take after a kill; on a machine that does nothing else half of it is plenty.
const READY_MAX: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_loses_and_repeats_nothing() {
    let kills = number("WEIR_KILLS", 10);
    let folder = Folder::new();
    let mut up = Up::start(&folder);
    let load = Load::default();
    load.aim(up.line("collector"), up.line("write_key"));
    let clients = load.start();
    for kill in 0..kills {
        load.goes_on(kill).await;
        let postgres = folder.postmaster().expect("runs");
        up.kill();
        load.aim_nowhere();
        // Each second time Postgres dies with it, as when the machine does.
        if kill % 2 == 1 {
            kill_process(postgres, Signal::KILL).expect("runs");
            until("postgres is dead", Duration::from_secs(10), || !is_running(postgres));
        }
        up = Up::start(&folder);
        eprintln!("kill {kill}: ready again after {:?}, {} events acknowledged", up.ready_after, load.count());
        assert!(up.ready_after < READY_MAX, "{:?}", up.ready_after);
        load.aim(up.line("collector"), up.line("write_key"));
    }
    load.goes_on(kills).await;
    assert!(load.repeated() > 0, "no kill met a request");
    load.check(clients, up.line("postgres")).await;
    assert!(up.end(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_killed_again_and_again_it_loses_and_repeats_nothing() {
    let kills = number("WEIR_KILLS", 10);
    let folder = Folder::new();
    let up = Up::start(&folder);
    let load = Load::default();
    load.aim(up.line("collector"), up.line("write_key"));
    let clients = load.start();
    for kill in 0..kills {
        load.goes_on(kill).await;
        let (postgres, begun) = (folder.postmaster().expect("runs"), Instant::now());
        kill_process(postgres, Signal::KILL).expect("runs");
        let deadline = begun + READY_MAX;
        loop {
            let other = folder.postmaster().is_some_and(|pid| pid != postgres && is_running(pid));
            if other {
                // Returns when it answers.
                Database::connect(up.line("postgres")).await;
                break;
            }
            assert!(Instant::now() < deadline, "postgres has not come back\n{}", folder.postgres_log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        eprintln!("kill {kill}: postgres is back after {:?}, {} events acknowledged", begun.elapsed(), load.count());
    }
    load.goes_on(kills).await;
    load.check(clients, up.line("postgres")).await;
    assert!(up.end(Signal::TERM).success());
}
