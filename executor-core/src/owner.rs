//! The way from a task back to the pool it was submitted to, for the few calls that need it.
//!
//! A task carries only its pool's number, so that submitting costs no reference count. Cancelling, aborting and
//! reporting a stray panic are rare; they look the pool up in one table, from which it is gone once it is dropped.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use crate::fork::{GENERATIONS, PerProcess, PoolId};
use crate::panic_report::{self, PanicReport};
use crate::sync::Arc;
use crate::sync::system::Mutex;

/// What a pool is told about, and asked for, through one of its futures.
pub trait Owner: Send + Sync {
    /// A task was cancelled before it started.
    fn cancelled(&self);

    /// Ends the running task with this id, if the pool can; says whether it will.
    fn abort(&self, task: usize) -> bool;

    /// A thread that is no worker is about to wait for this task, for at most `limit`, as the first to want to know of its
    /// end, and lets the pool do first what it can do for it. That may take a while, and must not call the user's code but
    /// to complete this very task. Asked only for tasks with [`Promise::attend`](crate::Promise::attend).
    fn attend(&self, task: usize, limit: Option<Duration>) {
        let _ = (task, limit);
    }

    /// A panic that no future will ever show: in a callback, or in a task whose future was dropped.
    fn report_panic(&self, report: &PanicReport);
}

type Owners = Mutex<BTreeMap<PoolId, Weak<dyn Owner>>>;

static OWNERS: PerProcess<Owners> = PerProcess::new([const { Mutex::new(BTreeMap::new()) }; GENERATIONS]);

/// Enters a pool. It leaves by [`unregister`].
pub fn register(pool: PoolId, owner: Weak<dyn Owner>) {
    OWNERS.here().lock().insert(pool, owner);
}

/// Strikes a pool out.
pub fn unregister(pool: PoolId) {
    OWNERS.here().lock().remove(&pool);
}

fn find(pool: PoolId) -> Option<Arc<dyn Owner>> {
    if pool == PoolId::NONE || pool.is_inherited() {
        return None;
    }
    OWNERS.here().lock().get(&pool)?.upgrade()
}

pub(crate) fn cancelled(pool: PoolId) {
    if let Some(owner) = find(pool) {
        owner.cancelled();
    }
}

pub(crate) fn abort(pool: PoolId, task: usize) -> bool {
    find(pool).is_some_and(|owner| owner.abort(task))
}

pub(crate) fn attend(pool: PoolId, task: usize, limit: Option<Duration>) {
    if let Some(owner) = find(pool) {
        owner.attend(task, limit);
    }
}

pub(crate) fn report_panic(pool: PoolId, report: &PanicReport) {
    if let Some(owner) = find(pool) {
        panic_report::swallow(|| owner.report_panic(report));
    }
}
