//! The one place where this crate takes its atomics and locks from: the same as in `executor-core`.
//!
//! The words of a [`SharedPage`](crate::sys::memory::SharedPage) are memory that two processes see: they stay the
//! standard library's atomics whatever is done there.

pub(crate) use executor_core::sync::{
    Arc, AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, fence,
};
