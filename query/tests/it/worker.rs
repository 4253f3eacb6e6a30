//! What runs in the workers of these tests. How they are ended, and what their memory is bound by, is tested in `weir/tests/it/query_limits.rs`.

/// Other tests start this program and run this alone, as the worker of their service.
#[test]
#[ignore = "the process that other tests start"]
fn this_process_is_a_worker() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Without a service there is nothing to do.
    let _ = runtime.block_on(query::worker::serve());
}
