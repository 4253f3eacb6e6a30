//! Postgres away, coming and going, or slow, under load: events are taken all the time, and afterwards each is stored once.
//! `WEIR_OUTAGE_SECONDS` and `WEIR_FLAPS` make it longer, as `make chaos` does.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::unix;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::{Folder, Up};
use crate::load::Load;
use crate::support::{number, page};

/// How Postgres seems from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seems {
    /// As it is.
    Well,
    /// Its connections are broken, and new ones are closed at once.
    Away,
    /// It takes connections and answers nothing, as a host that froze.
    Frozen,
    /// Each statement takes this much longer.
    Slow(Duration),
}

/// A proxy in front of a Postgres.
struct Proxy {
    seems: watch::Sender<Seems>,
    url: String,
    _connections: JoinSet<()>,
}

impl Proxy {
    /// Stands in front of the database of a URL whose host is the folder of its socket.
    async fn before(url: &str) -> Self {
        let (host, database) =
            url.rsplit_once('@').and_then(|(_, place)| place.split_once('/')).expect("postgresql://weir@HOST/DATABASE");
        let socket = PathBuf::from(host.replace("%2F", "/")).join(".s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("postgresql://weir@{}/{database}", listener.local_addr().expect("is bound"));
        let (seems, receiver) = watch::channel(Seems::Well);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, socket.clone(), receiver.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Proxy { seems, url, _connections: connections }
    }

    fn seems(&self, seems: Seems) {
        self.seems.send_replace(seems);
    }
}

/// Carries one connection until either side ends it, or Postgres is away.
async fn carry(client: TcpStream, socket: PathBuf, mut seems: watch::Receiver<Seems>) {
    if *seems.borrow() == Seems::Away {
        return;
    }
    let Ok(server) = UnixStream::connect(socket).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let is_answered = Arc::new(AtomicBool::new(true));
    tokio::select! {
        () = carry_statements(from_client, to_server, seems.clone(), Arc::clone(&is_answered)) => {}
        () = carry_answers(from_server, to_client, seems.clone(), is_answered) => {}
        _ = seems.wait_for(|seems| *seems == Seems::Away) => {}
    }
}

async fn carry_statements(
    mut from: OwnedReadHalf,
    mut to: unix::OwnedWriteHalf,
    mut seems: watch::Receiver<Seems>,
    is_answered: Arc<AtomicBool>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if seems.wait_for(|seems| *seems != Seems::Frozen).await.is_err() {
            return;
        }
        let now = *seems.borrow();
        // What follows an answer begins a statement; the rest of it, such as rows to copy, comes as fast as ever.
        if let Seems::Slow(wait) = now
            && is_answered.swap(false, Ordering::Relaxed)
        {
            tokio::time::sleep(wait).await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

async fn carry_answers(
    mut from: unix::OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut seems: watch::Receiver<Seems>,
    is_answered: Arc<AtomicBool>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        is_answered.store(true, Ordering::Relaxed);
        if seems.wait_for(|seems| *seems != Seems::Frozen).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_postgres_does_events_are_taken_and_stored_once() {
    let outage = Duration::from_secs(number("WEIR_OUTAGE_SECONDS", 12).into());
    let database = migrations::testing::TestDatabase::create().await;
    let proxy = Proxy::before(&database.url).await;
    let folder = Folder::new();
    let up = Up::start_with(&folder, |command| {
        command.args(["--database-url", &proxy.url]);
    });
    let load = Load::at_1000_events_a_second();
    load.aim(up.line("collector"), up.line("write_key"));
    let clients = load.start();
    load.goes_on(0).await;

    let well = |what: &'static str| {
        let (proxy, load, up) = (&proxy, &load, &up);
        async move {
            proxy.seems(Seems::Well);
            let (begun, count) = (Instant::now(), load.count());
            until_ready(up).await;
            load.goes_on(0).await;
            eprintln!("{what}: ready again after {:?}, {count} events acknowledged", begun.elapsed());
        }
    };
    proxy.seems(Seems::Away);
    goes_on_for(&load, outage).await;
    well("away").await;

    for _ in 0..number("WEIR_FLAPS", 5) {
        proxy.seems(Seems::Away);
        goes_on_for(&load, outage / 15).await;
        proxy.seems(Seems::Well);
        goes_on_for(&load, outage / 60).await;
    }
    well("coming and going").await;

    proxy.seems(Seems::Frozen);
    goes_on_for(&load, outage / 4).await;
    well("frozen").await;

    proxy.seems(Seems::Slow(Duration::from_secs(2)));
    goes_on_for(&load, outage).await;
    well("slow").await;

    assert_eq!(load.repeated(), 0, "the collector does not need Postgres for what it knows");
    load.check(clients, &database.url).await;
    assert!(up.end(rustix::process::Signal::TERM).success());
}

/// Lets time pass, in which events are acknowledged as ever.
async fn goes_on_for(load: &Load, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        load.goes_on(0).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until each service says that it is ready.
async fn until_ready(up: &Up) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for service in ["collector", "aggregator", "query"] {
        loop {
            let (status, said) = page(&format!("{}/readyz", up.line(service))).await;
            if status == 200 {
                break;
            }
            assert!(Instant::now() < deadline, "the {service} is not ready a minute after the outage: {said}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
