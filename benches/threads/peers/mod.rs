//! The adapters. Pools that only take closures get a `oneshot` channel for the result, the cheapest there is.

mod closures;
mod ours;
mod std_threads;
mod tasks;

pub(crate) use closures::{ExecutorsChannel, ExecutorsStealing, Hyper, Rayon, RayonChannel, Threadpool};
pub(crate) use ours::Ours;
pub(crate) use std_threads::StdThreads;
pub(crate) use tasks::{Micropool, RustyPool, SmolBlocking, TokioBlocking, TokioSpawn};
