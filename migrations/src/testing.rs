//! A private Postgres for tests: started once for each test process, gone with it; each test has a database of its own.
//!
//! The server belongs to a shell that reads from this process. When the process ends, in whatever way, the shell reads
//! the end of its input, ends the server and removes its folder.

pub mod proxy;

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

/// A migrated, empty database.
pub struct TestDatabase {
    /// What to connect to.
    pub url: String,
}

/// A private server, for tests that kill it. Its database is migrated and empty.
pub struct TestServer {
    folder: PathBuf,
    /// A line starts the server again; its end ends the shell, and by it the server.
    input: ChildStdin,
    _shell: Child,
}

static SERVER: OnceCell<TestServer> = OnceCell::const_new();
static SERVERS: AtomicU32 = AtomicU32::new(0);
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl TestDatabase {
    /// Makes a database with the present schema.
    /// # Panics
    /// If there is no Postgres 15 or later, or it does not start: a test cannot go on without.
    pub async fn create() -> Self {
        let server = SERVER.get_or_init(TestServer::start).await;
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&server.url_of("postgres")).await.expect("the private postgres answers");
        let statement = format!("CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("a database is made");
        TestDatabase { url: server.url_of(&name) }
    }

    /// Makes a database with an earlier schema, as a service finds it that is upgraded before `weir migrate` has run.
    /// # Panics
    /// As [`TestDatabase::create`].
    pub async fn create_with_schema(version: i64) -> Self {
        let server = SERVER.get_or_init(TestServer::start).await;
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&server.url_of("postgres")).await.expect("the private postgres answers");
        let statement = format!("CREATE DATABASE {name} STRATEGY file_copy");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("a database is made");
        let database = TestDatabase { url: server.url_of(&name) };
        crate::up_to(version).run(&mut database.connect().await).await.expect("the migrations fit together");
        database
    }

    /// Opens a connection.
    /// # Panics
    /// If that fails.
    pub async fn connect(&self) -> PgConnection {
        let options = PgConnectOptions::from_str(&self.url).expect("a URL of ours");
        let options = options.application_name(TESTS_OWN);
        PgConnection::connect_with(&options).await.expect("the private postgres answers")
    }

    /// Makes another way to this database, which is open.
    /// # Panics
    /// If there is no room for a folder.
    pub fn door(&self) -> Door {
        let options = PgConnectOptions::from_str(&self.url).expect("a URL of ours");
        let socket = options.get_socket().expect("the private postgres has no other address").join(".s.PGSQL.5432");
        let folder = std::env::temp_dir().join(format!(
            "weir-test-door-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::DirBuilder::new().mode(0o700).create(&folder).expect("a folder for the door");
        let host = folder.display().to_string().replace('/', "%2F");
        let url = format!("postgresql://weir@{host}/{}", options.get_database().expect("a URL of ours"));
        let door = Door { folder, socket, url };
        door.open();
        door
    }
}

/// The application's name of a test's own connections.
const TESTS_OWN: &str = "test";

/// A way to a database that can be shut: new connections are refused, and those that are open end.
pub struct Door {
    folder: PathBuf,
    socket: PathBuf,
    /// What to connect to.
    pub url: String,
}

impl Door {
    /// Lets connections through.
    /// # Panics
    /// If it is open.
    pub fn open(&self) {
        std::os::unix::fs::symlink(&self.socket, self.folder.join(".s.PGSQL.5432")).expect("was shut");
    }

    /// Refuses connections, and ends all but the tests' own, [`TestDatabase::connect`].
    /// # Panics
    /// If it is shut.
    pub async fn shut(&self, database: &TestDatabase) {
        std::fs::remove_file(self.folder.join(".s.PGSQL.5432")).expect("was open");
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name <> $1";
        sqlx::query(end).bind(TESTS_OWN).execute(&mut database.connect().await).await.expect("a superuser may");
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // A folder that stays costs nothing.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl TestServer {
    /// Starts one.
    /// # Panics
    /// If there is no Postgres 15 or later, or it does not start: a test cannot go on without.
    pub async fn start() -> TestServer {
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("weir-test-pg-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::DirBuilder::new().mode(0o700).create(&folder).expect("a folder for the private postgres");
        let mut shell = Command::new("sh");
        // The server refuses to run as root.
        if std::fs::metadata(&folder).expect("just made").uid() == 0 {
            let (uid, gid) =
                system_user("postgres").expect("root needs the system user postgres, of Debian's package postgresql-15");
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).expect("root may");
            shell.gid(gid).uid(uid);
        }
        let script = r#"
            cd "$2" && "$1/initdb" -D data -U weir -A trust -E UTF8 --locale=C.UTF-8 --no-sync >initdb.log 2>&1 || exit 1
            # What a killed server leaves of itself ends by itself, a moment later; until then no other one starts.
            start() {
                while :; do
                    "$1/postgres" -D data -k "$2" -c listen_addresses= -c fsync=off -c max_connections=200 \
                        -c shared_buffers=128MB >>server.log 2>&1 </dev/null &
                    server=$!
                    sleep 0.2
                    ! kill -0 $server 2>/dev/null || return 0
                done
            }
            start "$@"
            while read -r again; do wait $server; start "$@"; done
            kill -CONT $server; pkill -CONT -P $server
            kill -QUIT $server; wait $server; cd / && rm -rf "$2""#;
        let mut child = shell
            .args(["-c", script, "sh"])
            .arg(binaries())
            .arg(&folder)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let input = child.stdin.take().expect("was piped");
        let server = TestServer { folder, input, _shell: child };
        server.migrate().await;
        server
    }

    /// Returns what to connect to.
    pub fn url(&self) -> String {
        self.url_of("migrated")
    }

    /// Kills the server, as the kernel would that needs memory, and starts it again on the same data.
    /// # Panics
    /// If it does not run, or its shell is gone.
    pub fn kill_and_start(&mut self) {
        signal("-KILL", &[self.pid()]);
        writeln!(self.input, "again").expect("the shell reads");
    }

    /// Stops all processes of the server, as a disk that does not answer does, until the result is dropped.
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) -> Frozen {
        let server = self.pid();
        signal("-STOP", std::slice::from_ref(&server));
        // It starts no others from now on.
        let mut frozen = Frozen(vec![server.clone()]);
        let children = Command::new("pgrep").args(["-P", &server]).output().expect("pgrep is there");
        frozen.0.extend(String::from_utf8_lossy(&children.stdout).split_whitespace().map(str::to_owned));
        signal("-STOP", &frozen.0);
        frozen
    }

    fn pid(&self) -> String {
        let file = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).expect("postgres runs");
        file.lines().next().expect("the first line is its id").to_owned()
    }

    fn url_of(&self, database: &str) -> String {
        let host = self.folder.display().to_string().replace('/', "%2F");
        format!("postgresql://weir@{host}/{database}")
    }

    async fn migrate(&self) {
        let mut tries = 0;
        let mut connection = loop {
            match PgConnection::connect(&self.url_of("postgres")).await {
                Ok(connection) => break connection,
                Err(error) if tries == 300 => {
                    panic!("the private postgres did not start, see {}: {error}", self.folder.display())
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
            tries += 1;
        };
        sqlx::raw_sql("CREATE DATABASE migrated").execute(&mut connection).await.expect("a database is made");
        let mut migrated = PgConnection::connect(&self.url_of("migrated")).await.expect("just made");
        crate::MIGRATOR.run(&mut migrated).await.expect("the migrations fit together");
        migrated.close().await.expect("a template has no connections");
    }
}

/// Makes a database look as if a newer build had migrated it: the newest version is this one, and nothing else differs.
/// # Panics
/// If the database was never migrated.
pub async fn pretend_schema(connection: &mut PgConnection, version: i64) {
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES ($1, 'of a newer build', true, '', 0)";
    sqlx::query(newer).bind(version).execute(connection).await.expect("a migrated database");
}

/// The processes of a server that is frozen.
pub struct Frozen(Vec<String>);

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that has ended meanwhile needs no signal.
        let _ = Command::new("kill").arg("-CONT").args(&self.0).status();
    }
}

fn signal(name: &str, pids: &[String]) {
    let sent = Command::new("kill").arg(name).args(pids).status().expect("kill is there");
    assert!(sent.success(), "postgres runs");
}

fn system_user(name: &str) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// The newest installed server's folder, Debian's layout first, else whatever the path finds.
fn binaries() -> PathBuf {
    let debian = Path::new("/usr/lib/postgresql");
    let versions = std::fs::read_dir(debian).into_iter().flatten().flatten();
    let newest =
        versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|version| *version >= 15).max();
    if let Some(version) = newest {
        return debian.join(version.to_string()).join("bin");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .expect("tests need the server of Postgres 15 or later (Debian: postgresql-15)")
}
