//! A proxy before a Postgres that reads the frames of its protocol, so that it can cut a connection at a point that a test names: when COMMIT was
//! sent and its reply has not come, for one. It can also seem away, frozen or slow as a whole.
//!
//! Source of the framing: PostgreSQL's documentation, "Message Formats": after the first message, which has no type, each has a byte of type and a
//! length of four bytes that counts itself.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream, tcp, unix};
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;

/// What the application's name of an aggregator's connection begins with; its purpose follows.
const AGGREGATOR: &str = "weir aggregator, ";
/// The purpose of the connections that store.
const WRITER: &str = "writer";
/// The code of a request for TLS, in the place of a version; the first message comes after it.
const SSL_REQUEST: u32 = 80_877_103;

/// How Postgres seems from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seems {
    /// As it is.
    Well,
    /// Its connections are broken, and new ones are closed at once.
    Away,
    /// It takes connections and answers nothing, as a host that froze.
    Frozen,
    /// Each statement takes this much longer.
    Slow(Duration),
}

/// Where a connection is cut, once. It is a writer's, where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Postgres has committed, and its reply comes as far as the proxy.
    ReplyToCommit,
    /// COMMIT is on its way to Postgres. Whether it arrives before the end of the connection is not known.
    CommitOnItsWay,
    /// COMMIT never reaches Postgres.
    BeforeCommit,
    /// In the middle of rows that are copied.
    MidCopy,
    /// From COMMIT on nothing comes to Postgres, until it ends what it takes for an idle transaction. That end is passed on.
    Swallow,
    /// From COMMIT on no byte passes, whichever way, and neither side is told of the other's end.
    Silence,
    /// The same from the middle of rows that are copied on.
    SilenceInCopy,
    /// The same from the next question of one that is open for this purpose, as its application's name says after "weir aggregator, ".
    SilenceOf(&'static str),
    /// COMMIT is on its way for so long, and then comes.
    Late(Duration),
}

/// A running proxy.
pub struct Proxy {
    /// What to connect to.
    pub url: String,
    shared: Arc<Shared>,
    _connections: JoinSet<()>,
}

struct Shared {
    socket: PathBuf,
    seems: watch::Sender<Seems>,
    armed: Mutex<Option<Cut>>,
    /// Tells that a cut was made.
    made: watch::Sender<u64>,
}

impl Proxy {
    /// Stands in front of the database of a URL whose host is the folder of its socket.
    /// # Panics
    /// If the URL is another one.
    pub async fn before(url: &str) -> Self {
        let place = url.rsplit_once('@').and_then(|(_, place)| place.split_once('/'));
        let (host, database) = place.unwrap_or_else(|| panic!("{url:?}: postgresql://weir@FOLDER/DATABASE is accepted"));
        let folder = host.split(':').next().unwrap_or(host).replace("%2F", "/");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("postgresql://weir@{}/{database}", listener.local_addr().expect("bound"));
        let shared = Arc::new(Shared {
            socket: PathBuf::from(folder).join(".s.PGSQL.5432"),
            seems: watch::Sender::new(Seems::Well),
            armed: Mutex::default(),
            made: watch::Sender::new(0),
        });
        let mut connections = JoinSet::new();
        let accepting = Arc::clone(&shared);
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&accepting);
                connections.spawn(async move { drop(carry(client, &shared).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Proxy { url, shared, _connections: connections }
    }

    /// Lets Postgres seem so from now on.
    pub fn seems(&self, seems: Seems) {
        self.shared.seems.send_replace(seems);
    }

    /// Cuts the next connection that comes to this point. False if none came there in time.
    pub async fn cut(&self, cut: Cut, max: Duration) -> bool {
        let mut made = self.shared.made.subscribe();
        let before = *made.borrow_and_update();
        *self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
        let cut = tokio::time::timeout(max, made.wait_for(|made| *made > before)).await;
        *self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        matches!(cut, Ok(Ok(_)))
    }
}

impl Shared {
    /// Takes the cut that is armed, if it is one of these.
    fn take(&self, of: impl Fn(Cut) -> bool) -> Option<Cut> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.take_if(|cut| of(*cut))
    }

    fn note_cut(&self) {
        self.made.send_modify(|made| *made += 1);
    }
}

/// Carries one connection until either side ends it, or it is cut.
async fn carry(client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut seems = shared.seems.subscribe();
    if *seems.borrow() == Seems::Away {
        return Ok(());
    }
    let server = UnixStream::connect(&shared.socket).await?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (hold_reply, is_silent, is_answered) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(true));
    let pair = Pair { shared, hold_reply, is_silent, ended: Barrier::new(2), is_answered };
    tokio::select! {
        ended = pair.statements(from_client, to_server) => ended,
        ended = pair.answers(from_server, to_client) => ended,
        _ = seems.wait_for(|seems| *seems == Seems::Away) => Ok(()),
    }
}

struct Pair<'a> {
    shared: &'a Shared,
    /// The reply to COMMIT goes no further.
    hold_reply: AtomicBool,
    /// No byte passes any more.
    is_silent: AtomicBool,
    /// Of a silent one each side ends by itself.
    ended: Barrier,
    is_answered: AtomicBool,
}

impl Pair<'_> {
    async fn statements(&self, from: tcp::OwnedReadHalf, mut to: unix::OwnedWriteHalf) -> std::io::Result<()> {
        let mut from = BufReader::with_capacity(1 << 16, from);
        let whose = first_message(&mut from, &mut to).await?;
        let mut copied = 0_u32;
        loop {
            let mut frame = vec![0; 5];
            from.read_exact(&mut frame).await?;
            let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize;
            frame.resize(1 + length.max(4), 0);
            from.read_exact(&mut frame[5..]).await?;
            self.wait_as_it_seems().await?;
            let is_commit = frame[0] == b'Q' && frame[5..].starts_with(b"COMMIT\0");
            copied = if frame[0] == b'd' { copied + 1 } else { 0 };
            let is_here = |cut| match cut {
                Cut::SilenceOf(purpose) => whose == purpose,
                Cut::MidCopy | Cut::SilenceInCopy => whose == WRITER && copied == 1,
                _ => whose == WRITER && is_commit,
            };
            match self.shared.take(is_here) {
                None => {}
                Some(Cut::ReplyToCommit) => self.hold_reply.store(true, Ordering::SeqCst),
                Some(Cut::CommitOnItsWay) => {
                    to.write_all(&frame).await?;
                    self.shared.note_cut();
                    return Ok(());
                }
                Some(Cut::MidCopy) => {
                    to.write_all(&frame[..frame.len() / 2]).await?;
                    self.shared.note_cut();
                    return Ok(());
                }
                Some(Cut::BeforeCommit) => {
                    self.shared.note_cut();
                    return Ok(());
                }
                Some(Cut::Swallow) => {
                    self.shared.note_cut();
                    return swallow(&mut from).await;
                }
                Some(cut @ (Cut::Silence | Cut::SilenceInCopy | Cut::SilenceOf(_))) => {
                    self.is_silent.store(true, Ordering::SeqCst);
                    if cut == Cut::SilenceInCopy {
                        to.write_all(&frame[..frame.len() / 2]).await?;
                    }
                    self.shared.note_cut();
                    let _ = swallow(&mut from).await;
                    self.ended.wait().await;
                    return Ok(());
                }
                Some(Cut::Late(wait)) => {
                    self.shared.note_cut();
                    tokio::time::sleep(wait).await;
                }
            }
            to.write_all(&frame).await?;
        }
    }

    async fn answers(&self, mut from: unix::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) -> std::io::Result<()> {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let read = from.read(&mut bytes).await?;
            if self.is_silent.load(Ordering::SeqCst) {
                let _ = swallow(&mut from).await;
                self.ended.wait().await;
            }
            if read == 0 {
                return Ok(());
            }
            // CommandComplete, with the command's tag.
            if self.hold_reply.load(Ordering::SeqCst) && bytes[0] == b'C' && bytes[5..].starts_with(b"COMMIT\0") {
                self.shared.note_cut();
                return Ok(());
            }
            self.is_answered.store(true, Ordering::Relaxed);
            let mut seems = self.shared.seems.subscribe();
            let frozen_is_over = seems.wait_for(|seems| *seems != Seems::Frozen).await.is_ok();
            if !frozen_is_over {
                return Ok(());
            }
            to.write_all(&bytes[..read]).await?;
        }
    }

    async fn wait_as_it_seems(&self) -> std::io::Result<()> {
        let mut seems = self.shared.seems.subscribe();
        let now = *seems.wait_for(|seems| *seems != Seems::Frozen).await.map_err(std::io::Error::other)?;
        // What follows an answer begins a statement; the rest of it, such as rows to copy, comes as fast as ever.
        if let Seems::Slow(wait) = now
            && self.is_answered.swap(false, Ordering::Relaxed)
        {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

/// Reads until the end, and drops what it reads.
async fn swallow(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut swallowed = vec![0; 1 << 12];
    while from.read(&mut swallowed).await? > 0 {}
    Ok(())
}

/// Passes on the first message, and what asks for TLS before it. Returns for which purpose of the aggregator's the connection is, empty for
/// none.
async fn first_message(from: &mut BufReader<tcp::OwnedReadHalf>, to: &mut unix::OwnedWriteHalf) -> std::io::Result<String> {
    loop {
        let mut message = vec![0; 8];
        from.read_exact(&mut message).await?;
        let number = |at: usize| u32::from_be_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
        let (length, code) = (number(0) as usize, number(4));
        message.resize(length.clamp(8, 10_000), 0);
        from.read_exact(&mut message[8..]).await?;
        to.write_all(&message).await?;
        if code != SSL_REQUEST {
            let mut texts = message.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
            return Ok(texts.find_map(|text| text.strip_prefix(AGGREGATOR)).unwrap_or_default().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgConnectOptions;
    use sqlx::{Connection as _, PgConnection};

    use super::*;
    use crate::testing::TestDatabase;

    async fn writer(url: &str) -> PgConnection {
        let options: PgConnectOptions = url.parse().expect("a URL of ours");
        PgConnection::connect_with(&options.application_name("weir aggregator, writer")).await.expect("connects")
    }

    /// What each cut leaves behind in Postgres.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_cut_is_where_it_says() {
        let database = TestDatabase::create().await;
        let proxy = Proxy::before(&database.url).await;
        let mut direct = database.connect().await;
        sqlx::raw_sql("CREATE TABLE t (n int)").execute(&mut direct).await.expect("makes a table");
        for (n, cut, stored) in
            [(1, Cut::BeforeCommit, Some(false)), (2, Cut::ReplyToCommit, Some(true)), (3, Cut::CommitOnItsWay, None)]
        {
            let mut connection = writer(&proxy.url).await;
            let insert = format!("BEGIN; INSERT INTO t VALUES ({n})");
            sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&mut connection).await.expect("inserts");
            let (cut, ended) =
                tokio::join!(proxy.cut(cut, Duration::from_secs(10)), sqlx::raw_sql("COMMIT").execute(&mut connection));
            assert!(cut && ended.is_err(), "{ended:?}");
            let count: i64 =
                sqlx::query_scalar("SELECT count(*) FROM t WHERE n = $1").bind(n).fetch_one(&mut direct).await.expect("counts");
            assert!(stored.is_none_or(|stored| stored == (count == 1)), "{n}: {count}");
        }
        // Not a writer: it passes.
        let mut other = PgConnection::connect(&proxy.url).await.expect("connects");
        let (cut, ended) = tokio::join!(proxy.cut(Cut::BeforeCommit, Duration::from_millis(300)), async {
            sqlx::raw_sql("BEGIN").execute(&mut other).await.expect("begins");
            sqlx::raw_sql("COMMIT").execute(&mut other).await
        });
        assert!(!cut && ended.is_ok());
    }
}
