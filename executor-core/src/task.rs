//! The one heap cell of a task: state word, closure or outcome, waiters.
//!
//! A task is one allocation. The queue (or whoever runs it) and its future each hold a counted reference to it.
//!
//! ```text
//!   Cell<F, T>   ┌ header   vtable · state word · references · pool · runner · details
//!                ├ waiters  callbacks, threads, groups and the waker that want to know    (a lock, seldom taken)
//!                └ slot     the closure F until it starts, the outcome once it is set     (a union)
//! ```
//!
//! # States
//!
//! ```text
//!   PENDING ──start──► RUNNING ──────set──────► SET ──► FINISHED
//!    │   ▲                │                      ▲
//!    │   │ release        └─expire─► SETTLING ───┤      (only with the TIMED flag: somebody else may end it)
//!    ▼   │                                       │
//!   RESERVED ──start_reserved──► RUNNING         │
//!    PENDING ──cancel─────────────► SETTLING ────┘
//! ```
//!
//! One compare-and-swap decides who starts, cancels or ends a task (S2); nobody else writes the phase after that
//! until the winner has set the outcome. `SET` lasts while callbacks run; `FINISHED` is what waiters wait for, so
//! callbacks come before `result()` returns (S3).
//!
//! # Rules: who may touch the slot
//!
//! * **R1** PENDING, RESERVED: it holds the closure. Only the thread whose compare-and-swap left PENDING or RESERVED
//!   may touch it, or the one that drops the last reference.
//! * **R2** RUNNING, SETTLING: it belongs to the thread that entered that phase. The runner moves the closure out before
//!   calling it; the outcome is written exactly once, before SET or FINISHED is published. With TIMED, another thread may
//!   take RUNNING to SETTLING, but not before the runner has set LAUNCHED, after it has moved the closure out (before
//!   that, it only leaves LATE behind); and the runner too must win RUNNING → SETTLING before it writes.
//! * **R3** SET: it holds the outcome; only the thread that set it may read it, through a shared reference.
//! * **R4** FINISHED: it holds the outcome until TAKEN is set. It is read and taken through the one `Handle` inside a
//!   `TaskFuture`, or dropped by whoever drops the last reference. `T` therefore never needs to be `Sync` for a
//!   callback.
//! * **R5** The cell is freed when the last reference goes. A method on a reference may use the cell until it returns.
//!
//! # The race feared: a waiter that registers while the task finishes
//!
//! Both sides meet in the `waiters` lock. A waiter enters itself under the lock, and sets the WAITERS flag there, only
//! if the phase is not FINISHED. The finisher publishes FINISHED either by a compare-and-swap that fails if WAITERS is
//! set, or under the lock after it has seen an empty list of callbacks. So either the waiter sees FINISHED, or the
//! finisher sees the waiter.

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, forget, offset_of};
use std::ptr::NonNull;
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam_utils::sync::Unparker;

use crate::counters::Ending;
use crate::error::TaskError;
use crate::fork::PoolId;
use crate::os::ThreadSlot;
use crate::owner;
use crate::panic_report;
use crate::sync::{Arc, AtomicU32, Mutex, Ordering, UnsafeCell, fence};

/// What a task ends in.
pub(crate) type Outcome<T> = Result<T, TaskError>;

/// What a caller asked for beyond function and argument; only tasks with options carry it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details {
    pub(crate) label: Option<Arc<str>>,
    /// The run may last this long, counted from its start.
    pub(crate) timeout: Option<Duration>,
    /// The task must have ended by then.
    pub(crate) deadline: Option<Instant>,
    pub(crate) priority: i32,
    /// When the last of several runs must have ended, if the task is one that may run again.
    pub(crate) run_limit: Option<Arc<Mutex<Option<Instant>>>>,
}

impl Details {
    fn is_timed(&self) -> bool {
        self.timeout.is_some() || self.deadline.is_some()
    }
}

// --- the state word ---------------------------------------------------------------------------------------------

const PHASE: u32 = 0b111;
/// Waits for somebody to run it.
const PENDING: u32 = 0;
/// Handed over to a worker that may start it at any moment: cannot be cancelled, can be taken back by its promise.
const RESERVED: u32 = 1;
/// Somebody runs it.
const RUNNING: u32 = 2;
/// Somebody has won the right to set the outcome.
const SETTLING: u32 = 3;
/// The outcome is set, callbacks are running.
const SET: u32 = 4;
/// Over. Only TAKEN may still be set.
const FINISHED: u32 = 5;

/// It was cancelled before it started: the outcome is `Err(Cancelled)`.
const CANCELLED: u32 = 1 << 3;
/// The `waiters` lock guards something.
const WAITERS: u32 = 1 << 4;
/// Its cancel token is set: it was asked to stop.
const ABORTED: u32 = 1 << 5;
/// It has a time limit: somebody other than its runner may end it. Never changes.
const TIMED: u32 = 1 << 6;
/// The outcome was moved out.
const TAKEN: u32 = 1 << 7;
/// With TIMED: its runner has moved the closure out, so from here on somebody else may end it.
const LAUNCHED: u32 = 1 << 9;
/// With TIMED: its time was up before that; its runner ends it.
const LATE: u32 = 1 << 10;
const LAUNCHED_IN_TIME: u32 = TIMED | LAUNCHED;
/// Its future was dropped before it was over: nobody will look at the outcome.
const DETACHED: u32 = 1 << 8;

/// Where a task is, as its future shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Cancelled,
    Finished,
}

// --- the cell ---------------------------------------------------------------------------------------------------

#[repr(C)]
struct Header {
    vtable: &'static VTable,
    state: AtomicU32,
    references: AtomicU32,
    pool: PoolId,
    /// The thread that runs it or runs its callbacks; 0 before. For `Deadlock`, and for a callback that asks its own
    /// future.
    runner: AtomicU32,
    details: Option<Box<Details>>,
}

struct VTable {
    /// Takes the closure out and runs it; if nobody was faster, puts the outcome into the slot, still unpublished, and
    /// says so. RUNNING, and ours (R2).
    execute: unsafe fn(NonNull<Header>) -> (Ending, bool),
    /// Publishes the outcome in the slot: callbacks, then waiters. After `execute` said so.
    publish: unsafe fn(NonNull<Header>),
    /// Drops the closure (if the flag says it is still there) and sets `Err(error)`. SETTLING, and ours (R2).
    fail: unsafe fn(NonNull<Header>, TaskError, bool),
    /// Drops what is in the slot and frees the cell. The last reference (R5).
    free: unsafe fn(NonNull<Header>),
    /// Where the slot is: it depends on the closure's alignment, which a typed handle does not know.
    slot: usize,
}

/// The part of the cell that does not depend on the closure.
#[repr(C)]
struct Shared<T> {
    header: Header,
    waiters: Mutex<Option<Box<Waiters<T>>>>,
}

#[repr(C)]
struct Cell<F, T> {
    shared: Shared<T>,
    slot: UnsafeCell<Slot<F, T>>,
}

/// Both fields lie at its beginning; which one is there is in the state word.
#[repr(C)]
union Slot<F, T> {
    work: ManuallyDrop<F>,
    outcome: ManuallyDrop<Outcome<T>>,
}

type Callback<T> = Box<dyn FnOnce(&Outcome<T>) + Send>;

struct Waiters<T> {
    callbacks: Vec<Callback<T>>,
    listeners: Vec<Listener>,
    waker: Option<Waker>,
}

/// Somebody who blocks until the task is over.
pub(crate) enum Listener {
    Thread(ThreadSlot, Unparker),
    /// One future among several, by its index among them.
    Group(Arc<dyn Notify>, usize),
}

/// A set of futures that is told which of them are over.
pub(crate) trait Notify: Send + Sync {
    fn notify(&self, index: usize);
}

impl Listener {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Thread(a, _), Self::Thread(b, _)) => a == b,
            (Self::Group(a, i), Self::Group(b, j)) => i == j && Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    pub(crate) fn wake(self) {
        match self {
            Self::Thread(_, unparker) => unparker.unpark(),
            Self::Group(group, index) => group.notify(index),
        }
    }
}

/// Makes a task of `work`: the end that is queued and run, and the end that waits.
pub(crate) fn new<F, T>(pool: PoolId, details: Option<Details>, work: F) -> (Task, Handle<T>)
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let timed = if details.as_ref().is_some_and(Details::is_timed) { TIMED } else { 0 };
    let cell = Box::new(Cell::<F, T> {
        shared: Shared {
            header: Header {
                vtable: &VTable {
                    execute: execute::<F, T>,
                    publish: publish::<T>,
                    fail: fail::<F, T>,
                    free: free::<F, T>,
                    slot: offset_of!(Cell<F, T>, slot),
                },
                state: AtomicU32::new(PENDING | timed),
                references: AtomicU32::new(2),
                pool,
                runner: AtomicU32::new(0),
                details: details.map(Box::new),
            },
            waiters: Mutex::new(None),
        },
        slot: UnsafeCell::new(Slot { work: ManuallyDrop::new(work) }),
    });
    let cell = NonNull::from(Box::leak(cell));
    (Task(cell.cast()), Handle { shared: cell.cast(), value: PhantomData })
}

unsafe fn execute<F: FnOnce() -> T, T>(header: NonNull<Header>) -> (Ending, bool) {
    // SAFETY: R5, the caller holds a reference.
    let shared = unsafe { header.cast::<Shared<T>>().as_ref() };
    // SAFETY: R2, the slot is ours and holds the closure, which is read this once.
    let work = unsafe { slot::<T>(header).cast::<F>().read() };
    if !shared.header.launch() {
        panic_report::swallow(|| drop(work));
        // SAFETY: R2, the slot is ours and empty: LATE does not change the phase.
        unsafe { slot::<T>(header).write(Err(TaskError::TimedOut)) };
        return (Ending::Returned, true);
    }
    let outcome = panic_report::catch(work).map_err(|mut report| {
        report.label = shared.header.label().map(str::to_owned);
        if shared.header.is_detached() {
            owner::report_panic(shared.header.pool, &report);
        }
        TaskError::Panicked(report)
    });
    let ending = if outcome.is_err() { Ending::Panicked } else { Ending::Returned };
    let won = shared.header.win_the_end();
    if won {
        // SAFETY: R2, the slot is ours and empty.
        unsafe { slot::<T>(header).write(outcome) };
    } else {
        panic_report::swallow(|| drop(outcome));
    }
    (ending, won)
}

unsafe fn publish<T>(header: NonNull<Header>) {
    end(header.cast::<Shared<T>>());
}

unsafe fn fail<F, T>(header: NonNull<Header>, error: TaskError, drop_work: bool) {
    if drop_work {
        let work = slot::<T>(header).cast::<F>();
        // SAFETY: R2, the slot is ours and, the caller says, still holds the closure, which is dropped this once.
        panic_report::swallow(|| unsafe { work.drop_in_place() });
    }
    set::<T>(header.cast(), Err(error));
}

unsafe fn free<F, T>(header: NonNull<Header>) {
    // SAFETY: R5: the caller says that this is the last reference, and it is still there.
    // ORDERING: relaxed: `release` has synchronised with every other reference's end.
    let state = unsafe { header.as_ref() }.state.load(Ordering::Relaxed);
    let slot = slot::<T>(header);
    match state & PHASE {
        // SAFETY: R1, the last reference, so the closure is ours.
        PENDING | RESERVED => panic_report::swallow(|| unsafe { slot.cast::<F>().drop_in_place() }),
        // SAFETY: R4, the last reference, and the outcome was not moved out.
        FINISHED if state & TAKEN == 0 => panic_report::swallow(|| unsafe { slot.drop_in_place() }),
        _ => {}
    }
    // SAFETY: R5, the last reference, and `new` made the cell as such a box.
    drop(unsafe { Box::from_raw(header.cast::<Cell<F, T>>().as_ptr()) });
}

/// Where the closure or the outcome is. By pointer, never through a reference to the beginning of the cell: such a
/// reference may not be used to reach what lies behind it.
fn slot<T>(header: NonNull<Header>) -> *mut Outcome<T> {
    // SAFETY: R5, every caller holds a reference; the vtable is constant.
    let offset = unsafe { header.as_ref() }.vtable.slot;
    // SAFETY: `offset` is where the slot of this very cell is, so the result stays inside the allocation.
    unsafe { header.as_ptr().cast::<u8>().add(offset) }.cast()
}

/// Sets the outcome and ends the task. R2: the right to do so is the caller's.
fn set<T>(cell: NonNull<Shared<T>>, outcome: Outcome<T>) {
    // SAFETY: R2, the slot is ours and holds nothing that needs dropping.
    unsafe { slot::<T>(cell.cast()).write(outcome) };
    end(cell);
}

/// Ends the task whose outcome is in the slot, still unpublished.
fn end<T>(cell: NonNull<Shared<T>>) {
    // SAFETY: R5, every caller holds a reference.
    let shared = unsafe { cell.as_ref() };
    let state = &shared.header.state;
    // ORDERING: relaxed, only a first guess for the compare-and-swap.
    let mut current = state.load(Ordering::Relaxed);
    while current & WAITERS == 0 {
        let finished = (current & !PHASE) | FINISHED;
        // ORDERING: release, publishes the outcome; pairs with the acquire in `phase`, `is_finished`, `peek`, `take`.
        match state.compare_exchange_weak(current, finished, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => current = now,
        }
    }
    // SAFETY: R3, this thread has just written it; it stays until FINISHED, which `end_cold` publishes last.
    shared.end_cold(|| unsafe { &*slot::<T>(cell.cast()) });
}

impl Header {
    fn label(&self) -> Option<&str> {
        self.details.as_ref()?.label.as_deref()
    }

    fn phase(&self) -> Phase {
        // ORDERING: acquire, pairs with the release in `Shared::set`: who sees the end sees the outcome.
        let state = self.state.load(Ordering::Acquire);
        match state & PHASE {
            PENDING | RESERVED => Phase::Pending,
            RUNNING => Phase::Running,
            // A callback that asks its own future finds it over; to others it is as before until callbacks are through.
            FINISHED | SET if state & PHASE == FINISHED || self.runner() == ThreadSlot::current() => {
                if state & CANCELLED == 0 { Phase::Finished } else { Phase::Cancelled }
            }
            _ if state & CANCELLED != 0 => Phase::Pending,
            _ => Phase::Running,
        }
    }

    /// Whether somebody has cancelled it, the outcome being there yet or not.
    fn is_cancelled(&self) -> bool {
        // ORDERING: relaxed: nothing is read through it.
        self.state.load(Ordering::Relaxed) & CANCELLED != 0
    }

    fn is_finished(&self) -> bool {
        // ORDERING: acquire, as in `phase`.
        self.state.load(Ordering::Acquire) & PHASE == FINISHED
    }

    /// Whether this thread is running the task's callbacks right now.
    fn is_in_own_callback(&self) -> bool {
        // ORDERING: acquire, as in `phase`; on the thread in question both are its own writes.
        self.state.load(Ordering::Acquire) & PHASE == SET && self.runner() == ThreadSlot::current()
    }

    fn runner(&self) -> ThreadSlot {
        // ORDERING: relaxed: compared with the own slot, or read under the lock of the wait-for graph, and there a
        // stale 0 can only be of a task that has just started and therefore waits for nobody yet.
        ThreadSlot::of_number(self.runner.load(Ordering::Relaxed))
    }

    fn run_by_this_thread(&self) {
        // ORDERING: relaxed, see `runner`.
        self.runner.store(ThreadSlot::current().number(), Ordering::Relaxed);
    }

    /// Moves from phase `from` to phase `to`, setting `flags`. Exactly one caller succeeds.
    #[inline]
    fn advance(&self, from: u32, to: u32, flags: u32) -> bool {
        // ORDERING: relaxed, only a first guess for the compare-and-swap.
        let mut state = self.state.load(Ordering::Relaxed);
        while state & PHASE == from {
            let next = (state & !PHASE) | to | flags;
            // ORDERING: acquire, for the closure written by the submitter (and by whoever released it before);
            // release, so that the next owner of the slot sees what this one did.
            match self.state.compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(current) => state = current,
            }
        }
        false
    }

    /// Moves to `phase` where nobody else can move: the flags may still change meanwhile.
    fn enter_phase(&self, phase: u32) {
        // ORDERING: release, publishes the outcome; pairs with the acquire in `phase`, `is_finished`, `peek`, `take`.
        let entered = self
            .state
            .fetch_update(Ordering::Release, Ordering::Relaxed, |state| Some((state & !PHASE) | phase));
        debug_assert!(entered.is_ok(), "the update always has a value");
    }

    /// Whether its future was dropped.
    fn is_detached(&self) -> bool {
        // ORDERING: relaxed: it only decides whether a panic is reported in one way or the other.
        self.state.load(Ordering::Relaxed) & DETACHED != 0
    }

    /// The runner has moved the closure out and is about to call it; false if its time is up.
    fn launch(&self) -> bool {
        // ORDERING: relaxed, TIMED never changes.
        if self.state.load(Ordering::Relaxed) & TIMED == 0 {
            return true;
        }
        // ORDERING: release: who sees LAUNCHED and then writes the slot does so after it was read; pairs with the acquire
        // in `expire`.
        self.state.fetch_or(LAUNCHED, Ordering::AcqRel) & LATE == 0
    }

    /// The time of a running task is up: says whether the caller is to end it. If it was not launched yet, its runner is.
    fn expire(&self) -> bool {
        let expired = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
            match (state & PHASE, state & (TIMED | LAUNCHED | LATE)) {
                (RUNNING, TIMED) => Some(state | LATE | ABORTED),
                (RUNNING, LAUNCHED_IN_TIME) => Some((state & !PHASE) | SETTLING | ABORTED),
                _ => None, // over, or LATE already: then it is its runner's
            }
        });
        expired.is_ok_and(|before| before & LAUNCHED != 0)
    }

    /// Whether the runner may set the outcome: always, unless a timer may have been faster.
    fn win_the_end(&self) -> bool {
        // ORDERING: relaxed, TIMED never changes.
        self.state.load(Ordering::Relaxed) & TIMED == 0 || self.advance(RUNNING, SETTLING, 0)
    }
}

impl<T> Shared<T> {
    /// The end of a task somebody waits for: callbacks in the order added, then everybody else.
    #[cold]
    fn end_cold<'a>(&'a self, outcome: impl Fn() -> &'a Outcome<T>) {
        self.header.run_by_this_thread();
        // ORDERING: release, publishes the outcome to this thread's callbacks only (R3).
        self.header.enter_phase(SET);
        loop {
            let mut guard = self.waiters.lock();
            let callbacks = guard.as_mut().map(|waiters| std::mem::take(&mut waiters.callbacks));
            let callbacks = callbacks.unwrap_or_default();
            if callbacks.is_empty() {
                let waiters = guard.take();
                // Under the lock, so that a waiter sees either this or, before, its own entry.
                self.header.enter_phase(FINISHED);
                drop(guard);
                if let Some(waiters) = waiters {
                    waiters.listeners.into_iter().for_each(Listener::wake);
                    if let Some(waker) = waiters.waker {
                        panic_report::swallow(|| waker.wake());
                    }
                }
                return;
            }
            drop(guard);
            for callback in callbacks {
                if let Err(report) = panic_report::catch(|| callback(outcome())) {
                    owner::report_panic(self.header.pool, &report);
                }
            }
        }
    }

    /// Runs `enter` on the waiters unless the task is over; says whether it did.
    fn enter(&self, enter: impl FnOnce(&mut Waiters<T>)) -> bool {
        let mut guard = self.waiters.lock();
        // ORDERING: acquire on failure to enter: the caller reads the outcome next. The flag itself is published to the
        // finisher by the read-modify-write order of the state word.
        let flagged = self.header.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            (state & PHASE != FINISHED).then_some(state | WAITERS)
        });
        if flagged.is_err() {
            return false;
        }
        enter(guard.get_or_insert_with(|| {
            Box::new(Waiters { callbacks: Vec::new(), listeners: Vec::new(), waker: None })
        }));
        true
    }
}

// --- the end that runs it ----------------------------------------------------------------------------------------

/// A counted reference to a task. Whoever holds the one in a queue must start, refuse or cancel it in the end: dropping
/// it settles nothing.
#[derive(Debug)]
pub(crate) struct Task(NonNull<Header>);

// SAFETY: the closure and the outcome are `Send` (`new` asks for it) and move between threads only as R1 to R4 say;
// everything else in the cell is atomic, locked or constant.
unsafe impl Send for Task {}
// SAFETY: as above; a shared `Task` gives access to nothing but the atomics and the constants.
unsafe impl Sync for Task {}

/// The proof that this thread moved a task to RUNNING: whoever holds it must run it.
#[must_use = "a started task must be run"]
pub(crate) struct Started(Task);

impl Task {
    fn header(&self) -> &Header {
        // SAFETY: R5.
        unsafe { self.0.as_ref() }
    }

    /// Claims the task, unless somebody else did or it is cancelled.
    pub(crate) fn start(self) -> Option<Started> {
        self.header().advance(PENDING, RUNNING, 0).then(|| {
            self.header().run_by_this_thread();
            Started(self)
        })
    }

    /// Ends the task with `error` if nobody has started or cancelled it.
    pub(crate) fn refuse(self, error: TaskError) -> bool {
        refuse(self.0, error, 0)
    }

    /// Cancels the task if nobody has started it.
    pub(crate) fn cancel(self) -> bool {
        refuse(self.0, TaskError::Cancelled, CANCELLED)
    }

    /// Ends a task that is pending or running and has a time limit.
    pub(crate) fn expire(&self) {
        // One that never started is counted as cancelled.
        if refuse(self.0, TaskError::TimedOut, ABORTED) {
            return;
        }
        if self.header().expire() {
            // SAFETY: SETTLING, and ours; the runner has moved the closure out (R2).
            unsafe { (self.header().vtable.fail)(self.0, TaskError::TimedOut, false) };
        }
    }

    pub(crate) fn details(&self) -> Option<&Details> {
        self.header().details.as_deref()
    }

    pub(crate) fn label(&self) -> Option<&str> {
        self.header().label()
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.header().phase() == Phase::Pending
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.header().is_finished()
    }

    pub(crate) fn runner(&self) -> ThreadSlot {
        self.header().runner()
    }

    /// Whether its cancel token is set.
    pub(crate) fn is_aborted(&self) -> bool {
        // ORDERING: relaxed: a token carries no data.
        self.header().state.load(Ordering::Relaxed) & ABORTED != 0
    }

    /// How it is called in messages.
    pub(crate) fn name(&self) -> String {
        match self.label() {
            Some(label) => format!("`{label}` ({:#x})", self.id()),
            None => format!("task {:#x}", self.id()),
        }
    }

    /// Distinguishes it from every other task alive.
    pub(crate) fn id(&self) -> usize {
        self.0.as_ptr().addr()
    }
}

impl Clone for Task {
    fn clone(&self) -> Self {
        retain(self.0);
        Self(self.0)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        release(self.0);
    }
}

impl Started {
    pub(crate) fn task(&self) -> &Task {
        &self.0
    }

    /// Runs the task's function on this thread. Never unwinds.
    pub(crate) fn execute(self) -> Executed {
        let before = CURRENT.replace(Some(self.0.0));
        // SAFETY: RUNNING, and ours: a `Started` is made once per task and consumed here.
        let (ending, won) = unsafe { (self.0.header().vtable.execute)(self.0.0) };
        CURRENT.set(before);
        Executed { task: self.0, ending, won }
    }
}

/// The proof that the task's function has run and its outcome is in the cell, not yet published.
#[must_use = "until it is published, everybody waits"]
pub(crate) struct Executed {
    task: Task,
    ending: Ending,
    won: bool,
}

impl Executed {
    pub(crate) const fn ending(&self) -> Ending {
        self.ending
    }

    pub(crate) const fn task(&self) -> &Task {
        &self.task
    }

    /// Runs the callbacks and wakes who waits. Never unwinds.
    pub(crate) fn publish(self) {
        if self.won {
            // SAFETY: `execute` put the outcome into the slot, and this consumes the proof.
            unsafe { (self.task.header().vtable.publish)(self.task.0) };
        }
    }
}

thread_local! {
    /// The innermost task whose function this thread is running. Uncounted: `Started::execute` holds a reference for as
    /// long as it is here.
    static CURRENT: std::cell::Cell<Option<NonNull<Header>>> = const { std::cell::Cell::new(None) };
}

/// The innermost task this thread is running.
pub(crate) fn current() -> Option<Task> {
    CURRENT.try_with(std::cell::Cell::get).ok().flatten().map(|cell| {
        retain(cell);
        Task(cell)
    })
}

/// Ends a pending task with `error`; with `flags`, as one that was accepted and is now cancelled.
fn refuse(cell: NonNull<Header>, error: TaskError, flags: u32) -> bool {
    // SAFETY: R5, the caller holds a reference.
    let header = unsafe { cell.as_ref() };
    let refused = header.advance(PENDING, SETTLING, flags);
    if refused {
        if flags != 0 {
            owner::cancelled(header.pool); // before anybody can learn of it
        }
        // SAFETY: SETTLING, and ours; the closure was never taken.
        unsafe { (header.vtable.fail)(cell, error, true) };
    }
    refused
}

fn retain(cell: NonNull<Header>) {
    // SAFETY: R5, the caller holds a reference.
    let before = unsafe { cell.as_ref() }.references.fetch_add(1, Ordering::Relaxed);
    // ORDERING: relaxed: a new reference is made from an existing one, which keeps the cell alive.
    if before > u32::MAX / 2 {
        std::process::abort(); // two billion leaked references: what `Arc` does
    }
}

fn release(cell: NonNull<Header>) {
    // SAFETY: R5: the caller's reference ends here.
    let references = unsafe { &(*cell.as_ptr()).references };
    // The last owner needs no read-modify-write.
    // ORDERING: acquire, pairs with the release of the others' ends: `free` sees all they did.
    if references.load(Ordering::Acquire) != 1 {
        // ORDERING: release, see above; the acquire fence is for the one that turns out to be the last.
        if references.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
    }
    // SAFETY: R5: nobody else holds a reference, so nobody can make one.
    let vtable = unsafe { (*cell.as_ptr()).vtable };
    // SAFETY: the last reference (R5).
    unsafe { (vtable.free)(cell) };
}

// --- the end that waits -------------------------------------------------------------------------------------------

/// A counted, typed reference: the inside of a `TaskFuture` or a `Promise`.
pub(crate) struct Handle<T> {
    shared: NonNull<Shared<T>>,
    value: PhantomData<Outcome<T>>,
}

// SAFETY: it can hand out or drop a `T` on another thread than the one that made it, which `T: Send` allows.
unsafe impl<T: Send> Send for Handle<T> {}
// SAFETY: through a shared handle two threads can hold a `&T` each (`peek`), which `T: Sync` allows, and either may be
// the one that drops it later, hence `T: Send`.
unsafe impl<T: Send + Sync> Sync for Handle<T> {}

impl<T> Handle<T> {
    fn shared(&self) -> &Shared<T> {
        // SAFETY: R5.
        unsafe { self.shared.as_ref() }
    }

    /// An untyped reference to the same task.
    pub(crate) fn task(&self) -> Task {
        retain(self.shared.cast());
        Task(self.shared.cast())
    }

    pub(crate) fn id(&self) -> usize {
        self.shared.as_ptr().addr()
    }

    pub(crate) fn pool(&self) -> PoolId {
        self.shared().header.pool
    }

    pub(crate) fn label(&self) -> Option<&str> {
        self.shared().header.label()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.shared().header.phase()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.shared().header.is_finished()
    }

    pub(crate) fn is_in_own_callback(&self) -> bool {
        self.shared().header.is_in_own_callback()
    }

    /// Ends the task with `error` if nobody has started or cancelled it.
    pub(crate) fn refuse(&self, error: TaskError) -> bool {
        refuse(self.shared.cast(), error, 0)
    }

    /// Cancels the task if nobody has started or cancelled it.
    pub(crate) fn cancel(&self) -> bool {
        refuse(self.shared.cast(), TaskError::Cancelled, CANCELLED)
    }

    /// Whether somebody has cancelled it, the outcome being there yet or not.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.shared().header.is_cancelled()
    }

    /// The future is dropped.
    pub(crate) fn detach(&self) {
        if !self.is_finished() {
            // ORDERING: relaxed, see `is_detached`.
            self.shared().header.state.fetch_or(DETACHED, Ordering::Relaxed);
        }
    }

    /// Whether its cancel token is set.
    pub(crate) fn is_aborted(&self) -> bool {
        // ORDERING: relaxed: a token carries no data.
        self.shared().header.state.load(Ordering::Relaxed) & ABORTED != 0
    }

    /// Whether its future was dropped.
    pub(crate) fn is_detached(&self) -> bool {
        self.shared().header.is_detached()
    }

    /// Sets the cancel token.
    pub(crate) fn abort(&self) {
        // ORDERING: relaxed: a token carries no data.
        self.shared().header.state.fetch_or(ABORTED, Ordering::Relaxed);
    }

    /// The outcome, once it is there to look at.
    pub(crate) fn peek(&self) -> Option<&Outcome<T>> {
        let header = &self.shared().header;
        // ORDERING: acquire, as in `phase`.
        let state = header.state.load(Ordering::Acquire);
        let readable = (state & PHASE == FINISHED && state & TAKEN == 0) || header.is_in_own_callback();
        // SAFETY: R4: finished and not taken, and taking needs `&mut self`; or R3: this thread is in the callbacks it
        // runs, and nothing can be taken before they are over.
        readable.then(|| unsafe { &*slot::<T>(self.shared.cast()) })
    }

    /// Moves the outcome out of a finished task; `None` if it is not finished or was taken before.
    pub(crate) fn take(&mut self) -> Option<Outcome<T>> {
        let header = &self.shared().header;
        // ORDERING: acquire, as in `phase`.
        let state = header.state.load(Ordering::Acquire);
        if state & PHASE != FINISHED || state & TAKEN != 0 {
            return None;
        }
        // Nobody else changes the word of a finished task, so a plain store does.
        // ORDERING: relaxed: only this handle and `free` look at TAKEN, and `release` orders those.
        header.state.store(state | TAKEN, Ordering::Relaxed);
        // SAFETY: R4: finished, not taken before, and `&mut self` excludes every `peek`.
        Some(unsafe { slot::<T>(self.shared.cast()).read() })
    }

    /// Whether the outcome was moved out.
    pub(crate) fn is_taken(&self) -> bool {
        // ORDERING: relaxed: set through this very handle.
        self.shared().header.state.load(Ordering::Relaxed) & TAKEN != 0
    }

    /// Adds a callback; gives it back if the task is over already.
    pub(crate) fn add_callback<C>(&self, callback: C) -> Result<(), C>
    where
        C: FnOnce(&Outcome<T>) + Send + 'static,
    {
        let mut callback = Some(callback);
        self.shared().enter(|waiters| {
            if let Some(callback) = callback.take() {
                waiters.callbacks.push(Box::new(callback));
            }
        });
        callback.map_or(Ok(()), Err)
    }

    /// Enters a listener; false if the task is over already.
    pub(crate) fn listen(&self, listener: Listener) -> bool {
        self.shared().enter(|waiters| waiters.listeners.push(listener))
    }

    /// Forgets a listener that was told nothing yet.
    pub(crate) fn unlisten(&self, listener: &Listener) {
        if let Some(waiters) = self.shared().waiters.lock().as_mut() {
            waiters.listeners.retain(|other| !other.is(listener));
        }
    }

    /// Makes `waker` the one to wake; false if the task is over already.
    pub(crate) fn set_waker(&self, waker: &Waker) -> bool {
        // Cloned before the lock, and the old one dropped after it: both are the runtime's code.
        let mut waker = Some(waker.clone());
        self.shared().enter(|waiters| std::mem::swap(&mut waiters.waker, &mut waker))
    }

    // What a promise may do beyond that.

    /// Hands the task over to a worker that may start it at any moment: from here `cancel` fails.
    pub(crate) fn reserve(&self) -> bool {
        self.shared().header.advance(PENDING, RESERVED, 0)
    }

    /// Takes a reserved task back.
    pub(crate) fn unreserve(&self) {
        self.shared().header.advance(RESERVED, PENDING, 0);
    }

    /// Says that the task runs now; false if it was cancelled.
    pub(crate) fn set_running(&self) -> bool {
        let header = &self.shared().header;
        // ORDERING: relaxed: only the promise moves between these phases, and it is on this thread.
        header.advance(PENDING, RUNNING, 0)
            || header.advance(RESERVED, RUNNING, 0)
            || header.state.load(Ordering::Relaxed) & PHASE == RUNNING
    }

    /// Ends the task; gives the outcome back if it was cancelled.
    pub(crate) fn complete(&self, outcome: Outcome<T>) -> Result<(), Outcome<T>> {
        let header = &self.shared().header;
        let won = header.advance(RUNNING, SETTLING, 0)
            || header.advance(RESERVED, SETTLING, 0)
            || header.advance(PENDING, SETTLING, 0);
        if !won {
            return Err(outcome);
        }
        // The closure of a promise's cell captures nothing and has no destructor: nothing to drop (R2).
        set(self.shared, outcome);
        Ok(())
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        release(self.shared.cast());
    }
}

/// A reference to a task beside the one handle of its future: it can be waited through, and never touches the outcome
/// (R4).
pub(crate) struct Watch<T>(Handle<T>);

impl<T> Handle<T> {
    pub(crate) fn watch(&self) -> Watch<T> {
        retain(self.shared.cast());
        Watch(Self { shared: self.shared, value: PhantomData })
    }
}

impl<T> Watch<T> {
    pub(crate) fn task(&self) -> Task {
        self.0.task()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Enters a listener; false if the task is over already.
    pub(crate) fn listen(&self, listener: Listener) -> bool {
        self.0.listen(listener)
    }
}

/// A cell without a closure: its promise and its future.
pub(crate) fn promise<T: Send + 'static>(pool: PoolId, details: Option<Details>) -> (Handle<T>, Handle<T>) {
    let (task, future) = new(pool, details, || -> T { unreachable!("a promise is completed, never run") });
    let promise = Handle { shared: task.0.cast(), value: PhantomData };
    forget(task); // its reference is the promise's now
    (promise, future)
}
