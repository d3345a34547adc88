//! Faults made to happen, on both executors where they apply. For every one: the error is the documented one, no task
//! is lost, none runs twice, the pool is at full size afterwards (or broken with the reason), and nothing is left behind.
//!
//! Every test runs in a process of its own (see [`scene::isolated`]), so that what it leaves can be seen.

#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_types, reason = "tests watch the library from outside its models")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

#[path = "../support/mod.rs"]
mod support;

mod callbacks;
mod deaths;
mod descriptors;
mod direct;
mod ending;
mod escalation;
mod foreign;
mod fork;
mod garbage;
mod handing;
mod large;
mod limits;
mod making;
mod order;
mod panics;
mod parent;
mod pools;
mod procfs;
mod recycling;
mod retries;
mod scene;
mod server;
mod setup;
mod sharing;
mod stderr;
mod storms;
mod table;
mod tally;
