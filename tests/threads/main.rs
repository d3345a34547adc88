//! What the thread pool alone must do, by the numbered semantics of the design (S1 to S14).

#![allow(clippy::disallowed_types, reason = "tests watch the library from outside its models")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

#[path = "../support/mod.rs"]
mod support;

mod awaiting;
mod bounded;
mod callbacks;
mod called_back;
mod cancel;
mod counting;
mod endings;
mod fork;
mod fork_join;
mod leftovers;
mod limits;
mod lives;
mod lost;
mod map;
mod panics;
mod payloads;
mod priorities;
mod races;
mod resizing;
mod retries;
mod shutdown;
mod slice_map;
mod stress;
mod tokens;
mod waiting;
mod wakeups;
mod worker_local;
mod workers;
