//! How many queries run at one time, how many of one project, how many may wait for them, and whose is next.

use ::metrics::Counter;
use service::fair_queue::{Bounds, FairQueue, Full, Gauges, Permit};
use service::meter::Counted;
use uuid::Uuid;

use crate::config::Limits;
use crate::http::error::ApiError;
use crate::metrics::{Metrics, Questions};

/// Places of queries. Projects take turns, and none takes all places.
pub(crate) struct QueryQueue {
    queue: FairQueue,
    questions: Questions,
    busy: Counter,
}

/// What is asked, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryKind {
    /// The list of experiments.
    Experiments,
    /// The results of one.
    Results,
    /// A funnel.
    Funnel,
    /// A statement.
    Sql,
    /// An experiment, by the service itself.
    Evaluation,
}

impl QueryKind {
    /// All of them, in the order of the enum.
    pub(crate) const ALL: [QueryKind; 5] =
        [QueryKind::Experiments, QueryKind::Results, QueryKind::Funnel, QueryKind::Sql, QueryKind::Evaluation];

    /// Returns the value of the label `kind`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            QueryKind::Experiments => "experiments",
            QueryKind::Results => "results",
            QueryKind::Funnel => "funnel",
            QueryKind::Sql => "sql",
            QueryKind::Evaluation => "evaluation",
        }
    }
}

/// The place of a query that runs; dropped, it is the next one's.
pub(crate) struct QueryPlace {
    _counted: Counted,
    _permit: Permit,
}

impl QueryQueue {
    pub(crate) fn new(limits: &Limits, metrics: &Metrics) -> Self {
        let bounds = Bounds {
            running_max: limits.queries_running_max,
            running_of_one_max: limits.queries_running_of_one_max(),
            waiting_max: limits.queries_waiting_max,
        };
        let gauges = Gauges { running: metrics.running.clone(), waiting: metrics.waiting.clone() };
        QueryQueue { queue: FairQueue::new(bounds, gauges), questions: metrics.questions.clone(), busy: metrics.busy.clone() }
    }

    /// Waits for a place.
    /// # Errors
    /// [`ApiError::busy`] at once, if too many wait already.
    pub(crate) async fn acquire(&self, project: Uuid, kind: QueryKind) -> Result<QueryPlace, ApiError> {
        let waiting = Counted::new(self.questions.waiting(kind));
        let permit = self.queue.acquire(project).await.map_err(|Full| {
            self.busy.increment(1);
            ApiError::busy()
        })?;
        drop(waiting);
        Ok(QueryPlace { _counted: Counted::new(self.questions.running(kind)), _permit: permit })
    }
}
