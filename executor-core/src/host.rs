//! Waiting on a worker thread (S4): what the pool below a waiting task offers, and the graph that finds rings.
//!
//! A thread of a pool enters itself here as a `Host`. When code on it waits for a future, the wait asks the host:
//!
//! 1. the awaited task belongs to this pool, has not started, and there is room on the stack: claim it and run it here;
//! 2. otherwise block, between the host's two calls, so that the pool puts a spare worker in this one's place.
//!
//! No other task ever runs on the waiting stack, so a lock or a thread-local held across the wait is safe.
//!
//! # Rings
//!
//! A thread's stack is a line: whatever it blocks on at the top holds up every task below. So the wait-for graph has
//! one edge per blocked worker: *this thread waits for the thread that runs the awaited task*. A thread adds its edge
//! under one lock, after it has followed the edges from there: if they lead back to itself, the tasks wait for each
//! other in a ring, and the one that would close it gets `Deadlock` instead. The edge that closes a ring is always the
//! last one added, and it is added under the lock, so it is seen. (A task that has not started has no runner; whoever
//! starts it later adds its own edge then.)
//!
//! A scope cannot be told `Deadlock`: it must not return before its tasks are gone. If its edge closes a ring, another
//! edge of that ring gives way: the first from there that is of an ordinary wait is *condemned*, and its thread woken to
//! return `Deadlock`. There is one: a scope waits only for tasks spawned in it, which are younger than it, so a ring of
//! scopes alone cannot be.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::fork::{GENERATIONS, PerProcess, PoolId};
use crate::os::ThreadSlot;
use crate::sync::system::Mutex;
use crate::sync::thread_local;
use crate::task::{Listener, Started, Task};

/// A worker thread, as seen by code that waits on it.
pub(crate) trait Host {
    /// Whose tasks it may run in place.
    fn pool(&self) -> PoolId;

    /// Whether one more task may run on top of what waits: the stack has room, and the thread's share of the work is not
    /// with a spare worker.
    fn has_room(&self) -> bool;

    /// Runs a task that was just claimed.
    fn run(&self, task: Started);

    /// Takes the task with this id out of the queue if it is on top of this worker's own deque, as it mostly is.
    fn take_back(&self, id: usize) -> Option<Task>;

    /// Counts a task submitted on this thread.
    fn submitted(&self);

    /// Queues it.
    fn push(&self, task: Task);

    /// The task on this thread is about to block: somebody else takes over its share of the work.
    fn before_block(&self);

    /// It goes on.
    fn after_block(&self);
}

thread_local! {
    static HOST: RefCell<Option<Rc<dyn Host>>> = const { RefCell::new(None) };
}

/// Makes `host` the host of this thread until the guard is dropped.
pub(crate) fn enter(host: Rc<dyn Host>) -> Entered {
    HOST.with(|slot| slot.replace(Some(host)));
    Entered(())
}

/// The proof that this thread has a host.
#[must_use]
pub(crate) struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        HOST.with(RefCell::take);
    }
}

/// The host of this thread, if it is a worker.
pub(crate) fn current() -> Option<Rc<dyn Host>> {
    HOST.try_with(|slot| slot.borrow().clone()).ok().flatten()
}

/// Calls `act` with the host of this thread if it is a worker of `pool`.
pub(crate) fn with_worker_of<R>(pool: PoolId, act: impl FnOnce(&dyn Host) -> R) -> Option<R> {
    HOST.try_with(|slot| slot.borrow().as_deref().filter(|host| host.pool() == pool).map(act)).ok().flatten()
}

/// Whether this thread is a worker of `pool`.
pub(crate) fn is_worker_of(pool: PoolId) -> bool {
    with_worker_of(pool, |_| ()).is_some()
}

/// Runs `wait`, which blocks this thread on something other than a task.
pub fn block_any<R>(wait: impl FnOnce() -> R) -> R {
    let host = current();
    let _blocked = host.as_deref().map(Blocked::new);
    wait()
}

/// This thread's share of the work is with others, until it is dropped: by unwinding too.
struct Blocked<'a>(&'a dyn Host);

impl<'a> Blocked<'a> {
    fn new(host: &'a dyn Host) -> Self {
        host.before_block();
        Self(host)
    }
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.after_block();
    }
}

/// Runs `wait`, which blocks this thread until `target` is over, or until something else happens if there is none, with
/// the pool's parallelism kept up.
///
/// # Errors
///
/// The ring of tasks that would wait for each other; or that did, and `wait` has returned because it was alarmed.
pub(crate) fn block(host: &dyn Host, target: Option<Target>, wait: impl FnOnce()) -> Result<(), Box<str>> {
    let edge = target.map(Edge::add).transpose()?;
    let blocked = Blocked::new(host);
    wait();
    drop(blocked);
    edge.and_then(Edge::verdict).map_or(Ok(()), Err)
}

/// Whether this thread's wait has been condemned to end a ring.
pub(crate) fn is_condemned() -> bool {
    let me = ThreadSlot::current();
    GRAPH.here().lock().get(&me).is_some_and(|edge| edge.verdict.is_some())
}

/// What a blocked thread waits for.
pub(crate) struct Target {
    pub(crate) task: Task,
    /// How to end the wait from outside; `None` for one that cannot be ended, a scope's.
    pub(crate) alarm: Option<Listener>,
}

thread_local! {
    static SERVANT: Cell<PoolId> = const { Cell::new(PoolId::NONE) };
}

/// Says that this thread completes the futures of `pool`: code on it that waited for one of them would wait for itself.
pub fn serve(pool: PoolId) {
    SERVANT.set(pool);
}

/// Whether this thread completes the futures of some pool.
pub(crate) fn is_servant() -> bool {
    SERVANT.try_with(Cell::get).is_ok_and(|served| served != PoolId::NONE)
}

/// Whether this thread completes the futures of `pool`.
#[must_use]
pub fn serves(pool: PoolId) -> bool {
    pool != PoolId::NONE && SERVANT.try_with(Cell::get).is_ok_and(|served| served == pool)
}

/// What each blocked thread waits for.
type Graph = Mutex<BTreeMap<ThreadSlot, Waiting>>;

struct Waiting {
    target: Target,
    /// Why the wait is to end before its task does.
    verdict: Option<Box<str>>,
}

static GRAPH: PerProcess<Graph> = PerProcess::new([const { Mutex::new(BTreeMap::new()) }; GENERATIONS]);

/// This thread's edge in the graph, until it is dropped. A blocked thread runs nothing, so it has one.
struct Edge(ThreadSlot);

impl Edge {
    fn add(target: Target) -> Result<Self, Box<str>> {
        let me = ThreadSlot::current();
        let mut graph = GRAPH.here().lock();
        let mut ring = vec![target.task.name()];
        // The first wait on the way that can be ended.
        let mut weakest = None;
        let mut next = &target.task;
        let mut alarm = None;
        while !next.is_finished() {
            let runner = next.runner();
            if runner == me {
                let problem = format!("tasks wait for each other: {}", ring.join(", which waits for "));
                if target.alarm.is_some() {
                    return Err(problem.into());
                }
                if let Some(waiting) = weakest.and_then(|thread| graph.get_mut(&thread)) {
                    waiting.verdict = Some(problem.into());
                    alarm = waiting.target.alarm.take();
                }
                break;
            }
            let Some(further) = graph.get(&runner) else { break };
            if further.verdict.is_some() {
                break; // it is about to end
            }
            if weakest.is_none() && further.target.alarm.is_some() {
                weakest = Some(runner);
            }
            ring.push(further.target.task.name());
            next = &further.target.task;
        }
        graph.insert(me, Waiting { target, verdict: None });
        drop(graph);
        if let Some(alarm) = alarm {
            alarm.wake();
        }
        Ok(Self(me))
    }

    /// Takes the edge out; why the wait was ended, if it was.
    fn verdict(self) -> Option<Box<str>> {
        let waiting = GRAPH.here().lock().remove(&self.0)?;
        waiting.verdict // its target is dropped here, outside the lock
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let target = GRAPH.here().lock().remove(&self.0);
        drop(target); // outside the lock: it may be the last reference
    }
}
