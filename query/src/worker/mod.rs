//! Questions with SQL of a client's own, answered in child processes.
//!
//! DataFusion can be asked to stop, and stops when it next waits for something: a function of one row, the constants of a plan or a
//! join without equalities may put that off for minutes, and what they take is not counted. So whatever computes an expression that
//! a client wrote runs where it can be ended: [`pool`] keeps processes that each answer one question at a time, [`process`] is what
//! runs in them, [`frames`] is what the two say to each other over a socket.

pub(crate) mod bounds;
mod frames;
mod pool;
mod process;
mod room;

pub use bounds::{Spare, bound_memory};
pub(crate) use frames::{Asked, Question};
pub(crate) use pool::{Answered, Workers};
pub use process::{WorkerError, serve};
