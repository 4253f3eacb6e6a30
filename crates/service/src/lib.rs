//! What every service needs beside its own work: a listener ([`http`]) that knows which hosts a request may name ([`hosts`]), an admin
//! endpoint for probes and Prometheus ([`admin`]), numbers of its own ([`meter`]), tasks that do not end unseen ([`tasks`]), waits
//! between attempts ([`backoff`]), a client ([`client`]), as many file descriptors as there may be ([`descriptors`]), turns at what is scarce ([`fair_queue`]), and threads for what computes ([`threads`]), which give way to
//! what serves ([`priority`]).
//!
//! A service makes a [`Meter`] and [`Tasks`], binds a [`Listener`], spawns what it does, and hands requests for `/livez`, `/readyz`
//! and `/metrics` to its [`AdminEndpoint`]. Whoever runs the service awaits [`Health::failed`] beside its signals, and calls
//! [`Tasks::stop`] at the end.

pub mod admin;
pub mod backoff;
pub mod client;
pub mod descriptors;
pub mod fair_queue;
mod farewell;
#[cfg(feature = "fault-injection")]
mod fault;
mod head;
pub mod hosts;
pub mod http;
pub mod meter;
pub mod priority;
mod process;
pub mod tasks;
pub mod threads;

pub use admin::{AdminEndpoint, Scope};
pub use backoff::BackOff;
#[cfg(feature = "fault-injection")]
pub use fault::checkpoint;
pub use hosts::Hosts;
pub use http::{Limits, Listener, Peer, Response};
pub use meter::Meter;
pub use tasks::{Cause, Failure, Health, Stop, Tasks};
pub use threads::Threads;

/// Panics where a test has asked for it; does nothing in a build that serves.
#[cfg(not(feature = "fault-injection"))]
pub fn checkpoint(_: &str) {}
