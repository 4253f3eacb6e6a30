//! The whole of Weir as a process: what it prints, what survives which end, what a second one is told.

#[allow(dead_code, unreachable_pub)] // A tool box: not each test file uses each tool.
mod harness;
mod up;
