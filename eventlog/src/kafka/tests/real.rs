//! The log over a real broker.

use super::*;

crate::conformance_tests!(
    async || (Arc::new(open_new(&brokers().expect("looked at before")).await), ()),
    if brokers().is_some()
);
