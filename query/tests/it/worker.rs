//! What runs in the workers of these tests. How they are ended, and what their memory is bound by, is tested in `weir/tests/it/query_limits.rs`.

use crate::support::Service;

/// Other tests start this program and run this alone, as the worker of their service.
#[test]
#[ignore = "the process that other tests start"]
fn this_process_is_a_worker() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Without a service there is nothing to do.
    let _ = runtime.block_on(query::worker::serve());
}

/// What is read for a question in a worker is read as nicely as the worker computes: others' backends do not wait for it. Where Linux groups
/// processes by sessions it is the session that counts; of those only root may change several within a tenth of a second.
#[tokio::test]
async fn backends_of_workers_are_as_nice_as_workers() {
    let mut service = Service::start().await;
    service.rows("SELECT count(*) FROM events").await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'weir query-worker'";
    let backends: Vec<i32> = sqlx::query_scalar(sql).fetch_all(&mut service.rows).await.expect("backends");
    // proc_pid_stat(5): the nice value is the 19th field, and the second one, in parentheses, may hold anything.
    let nice = |process: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
        let fields = stat.rsplit_once(')').expect("a name").1;
        fields.split_whitespace().nth(16).and_then(|nice| nice.parse::<i32>().ok()).expect("a nice value")
    };
    // proc_pid_status(5).
    let processors = |process: u32| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("processors");
        line.trim().to_owned()
    };
    assert!(!backends.is_empty());
    let ours = nice(std::process::id());
    let left_alone = processors(std::process::id());
    for backend in backends {
        let expected = (ours + 10).min(19);
        let number = u32::try_from(backend).expect("a number");
        assert_eq!(nice(number), expected);
        if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1)
            && rustix::process::geteuid().is_root()
        {
            assert_ne!(processors(number), left_alone, "one processor is left alone");
        }
        if let Ok(session) = std::fs::read_to_string(format!("/proc/{backend}/autogroup"))
            && rustix::process::geteuid().is_root()
        {
            assert!(session.trim_end().ends_with(&format!("nice {expected}")), "{session}");
        }
    }
}
