//! What a collector consists of, but for its listener and its readings from Postgres.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use eventlog::Read as _;
use eventlog::memory::MemoryLog;
use events::rules::Unit;
use events::{Micros, ProjectId};
use service::{AdminEndpoint, Tasks, Threads};
use tokio::runtime::Runtime;

use crate::body::Memory;
use crate::collect::App;
use crate::config::Limits;
use crate::geo::{Geo, Sources};
use crate::keys::{Access, Keys};
use crate::names::Names;
use crate::privacy::PrivacySignals;
use crate::{bots, metrics, refused};

/// When all requests are received: 2026-03-01T12:00:00Z.
pub(super) const RECEIVED_AT: Micros = Micros(1_772_366_400_000_000);
/// Whose events they are.
const PROJECT: ProjectId = ProjectId(uuid::Uuid::from_u128(1));
/// The key of a server, and that of a project whose unit is the device; every other key is a write key.
const SERVER_KEY: &str = "sk_test";
const DEVICE_KEY: &str = "wk_device";
/// The retention boundary: 2026-02-10T00:00:00Z.
const HORIZON: Micros = Micros(1_770_681_600_000_000);
/// A body whose events are more is refused; so few are tried one by one quickly.
const EVENTS_MAX: usize = 60;
/// The same for bytes of a body, inflated: enough for an event that is too large.
const DECODED_BYTES_MAX: usize = 256 * 1024;

/// A collector to which requests are handed as they are.
pub struct Door {
    pub(super) app: Arc<App>,
    pub(super) runtime: Runtime,
    log: MemoryLog,
    _tasks: Tasks,
}

impl Door {
    /// Opens one.
    /// # Panics
    /// If the system gives no thread.
    #[expect(clippy::new_without_default, reason = "it starts threads")]
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
        let _entered = runtime.enter();
        let limits = Limits { events_max: EVENTS_MAX, decoded_bytes_max: DECODED_BYTES_MAX, ..Limits::default() };
        let names = Names::new(limits.event_names_max, limits.event_names_reserve);
        let keys = Keys::new(true, None, names, None);
        keys.take_over(
            [(SERVER_KEY, access(Unit::User, true)), (DEVICE_KEY, access(Unit::Device, false))],
            access(Unit::User, false),
            HORIZON,
        );
        let meter = metrics::meter();
        let metrics = Arc::new(metrics::Metrics::new(Arc::clone(&meter)));
        let tasks = Tasks::new(&meter);
        let log = MemoryLog::new(1);
        let geo = Geo::new(Sources::default());
        let app = App {
            memory: Memory::new(limits.in_flight_bytes_max),
            unauthenticated: Memory::new(limits.unauthenticated_bytes_max),
            answers: Memory::new(limits.answers_bytes_max),
            computing: metrics.computing(limits.computing_max, limits.computing_waiting_max),
            threads: Threads::start("weir-body", 1).expect("a thread"),
            limits,
            log: Arc::new(log.clone()),
            clock: Arc::new(|| RECEIVED_AT),
            keys: Arc::new(keys),
            metrics,
            admin: AdminEndpoint::new(&meter, tasks.health()),
            health: Arc::clone(tasks.health()),
            agents: bots::Agents::default(),
            refused: refused::Refused::default(),
            is_log_failing: AtomicBool::new(false),
            privacy_signals: PrivacySignals::default(),
            geo: Arc::new(runtime.block_on(geo).expect("nothing that could be missing")),
        };
        drop(_entered);
        Door { app: Arc::new(app), runtime, log, _tasks: tasks }
    }

    /// Forgets what earlier requests left behind: names of events, and how many were refused.
    pub(super) fn forget(&self) {
        let names =
            catalogue::event_names::ProjectNames { allowed: Vec::new(), blocked: vec!["blocked".to_owned()], takes_new: true };
        self.app.keys.names.replace(PROJECT, names, None);
        self.app.refused.forget();
    }

    /// Drops what was appended.
    pub(super) fn drop_appended(&self) {
        let end = u64::MAX;
        self.runtime.block_on(self.log.release(0, end));
    }
}

fn access(unit: Unit, is_server: bool) -> Access {
    Access {
        name: "0011aabbccdd".to_owned(),
        project: PROJECT,
        unit,
        backfill: is_server,
        conversions: vec!["Signed Up".to_owned()],
        expires_at: None,
        requests: None,
        events: None,
        bytes: None,
    }
}
