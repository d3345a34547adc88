//! The one heap cell of a task: state word, closure or outcome, waiters.
//!
//! A task is one allocation. The queue (or whoever runs it) and its future each hold a counted reference to it.
//!
//! ```text
//!   Cell<F, T>   ┌ header   vtable · state word with the references · pool · runner · extra ──► details
//!                └ slot     the closure F until it starts, the outcome once it is set           waiters
//! ```
//!
//! Few tasks have options, and few are waited for before they are over: what those need beyond the rest, their *details* and
//! the callbacks, threads and wakers that want to know (under a lock), lies in a second allocation made when it is needed.
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
//! * **R5** The cell is freed when the last reference goes. A method on a reference may use the cell until it returns. Where a
//!   step gives a reference up, nothing touches the cell after it.
//! * **R6** `extra` is null until somebody needs it, set once, and freed with the cell.
//!
//! # The race feared: a waiter that registers while the task finishes
//!
//! Both sides meet in the `waiters` lock. A waiter enters itself under the lock, and sets the WAITERS flag there, only
//! if the phase is not FINISHED. The finisher publishes FINISHED either by a compare-and-swap that fails if WAITERS is
//! set, or under the lock after it has seen an empty list of callbacks. So either the waiter sees FINISHED, or the
//! finisher sees the waiter.

#[cfg(all(test, loom))]
mod loom;

use std::alloc::Layout;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, forget, offset_of};
use std::ops::Deref;
use std::ptr::NonNull;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::counters::Ending;
use crate::error::TaskError;
use crate::fork::PoolId;
use crate::os::ThreadSlot;
use crate::owner;
use crate::panic_report;
use crate::sync::{Access, Arc, AtomicPtr, AtomicU32, Mutex, Ordering, Unparker, UnsafeCell, thread_local};

mod store;
mod word;

use word::{
    ABORTED, ATTENDED, BOUND, CANCEL_ON_DROP, CANCELLED, DETACHED, Ended, FINISHED, PENDING, POLLED,
    RESERVED, RUNNING, SET, SETTLING, TAKEN, TIMED, WAITERS, Word,
};

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
    word: Word,
    pool: PoolId,
    /// The thread that runs it or runs its callbacks; 0 before. For `Deadlock`, and for a callback that asks its own
    /// future.
    runner: AtomicU32,
    /// In truth an `Extra<T>`, whose first field this is (R6).
    extra: AtomicPtr<Option<Details>>,
    /// Tells a model checker who touches the slot.
    access: Access,
}

/// What few tasks need.
#[repr(C)]
struct Extra<T> {
    details: Option<Details>,
    waiters: Mutex<Waiters<T>>,
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

#[repr(C)]
struct Cell<F, T> {
    header: Header,
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

impl<T> Extra<T> {
    fn allocate(details: Option<Details>) -> *mut Option<Details> {
        let waiters = Waiters { callbacks: Vec::new(), listeners: Vec::new(), waker: None };
        Box::into_raw(Box::new(Self { details, waiters: Mutex::new(waiters) })).cast()
    }
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
    let is_timed = details.as_ref().is_some_and(Details::is_timed);
    make(pool, details, if is_timed { TIMED } else { 0 }, work)
}

/// Makes a task of `work`, which may borrow. If it `is_bound`, it cannot be cancelled or refused.
///
/// # Safety
///
/// Before anything that `work` or its outcome borrow goes, the task is finished and its outcome taken.
pub(crate) unsafe fn new_borrowed<F, T>(pool: PoolId, is_bound: bool, work: F) -> (Task, Handle<T>)
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    make(pool, None, if is_bound { BOUND } else { 0 }, work)
}

fn make<F, T>(pool: PoolId, details: Option<Details>, flags: u64, work: F) -> (Task, Handle<T>)
where
    F: FnOnce() -> T,
{
    let extra = match details {
        None => std::ptr::null_mut(),
        details => Extra::<T>::allocate(details),
    };
    let cell = Cell::<F, T> {
        header: Header {
            vtable: &VTable {
                execute: execute::<F, T>,
                publish: publish::<T>,
                fail: fail::<F, T>,
                free: free::<F, T>,
                slot: offset_of!(Cell<F, T>, slot),
            },
            word: Word::new(flags),
            pool,
            runner: AtomicU32::new(0),
            extra: AtomicPtr::new(extra),
            access: Access::new(),
        },
        slot: UnsafeCell::new(Slot { work: ManuallyDrop::new(work) }),
    };
    let place = store::take(Layout::new::<Cell<F, T>>()).cast::<Cell<F, T>>();
    // SAFETY: memory for a cell, and nobody else's.
    unsafe { place.write(cell) };
    let cell = place.cast();
    (Task(cell), Handle { header: cell, value: PhantomData })
}

unsafe fn execute<F: FnOnce() -> T, T>(header: NonNull<Header>) -> (Ending, bool) {
    // SAFETY: R5, the caller holds a reference.
    let shared = unsafe { header.as_ref() };
    // SAFETY: R2, the slot is ours and holds the closure, which is read this once.
    let work = unsafe { slot::<T>(header).cast::<F>().read() };
    if !shared.word.launch() {
        panic_report::swallow(|| drop(work));
        // SAFETY: R2, the slot is ours and empty: LATE does not change the phase.
        unsafe { slot::<T>(header).write(Err(TaskError::TimedOut)) };
        return (Ending::Returned, true);
    }
    let outcome = panic_report::catch(work).map_err(|mut report| {
        report.label = shared.label().map(str::to_owned);
        // Only decides whether the panic is reported in one way or the other.
        if shared.word.glance().has(DETACHED) {
            owner::report_panic(shared.pool, &report);
        }
        TaskError::Panicked(report)
    });
    let ending = if outcome.is_err() { Ending::Panicked } else { Ending::Returned };
    let won = shared.word.win_the_end();
    if won {
        // SAFETY: R2, the slot is ours and empty.
        unsafe { slot::<T>(header).write(outcome) };
    } else {
        panic_report::swallow(|| drop(outcome));
    }
    (ending, won)
}

unsafe fn publish<T>(header: NonNull<Header>) {
    end::<T>(header);
}

unsafe fn fail<F, T>(header: NonNull<Header>, error: TaskError, drop_work: bool) {
    if drop_work {
        let work = slot::<T>(header).cast::<F>();
        // SAFETY: R2, the slot is ours and, the caller says, still holds the closure, which is dropped this once.
        panic_report::swallow(|| unsafe { work.drop_in_place() });
    }
    // SAFETY: R2, the slot is ours and empty.
    unsafe { slot::<T>(header).write(Err(error)) };
    retain(header); // for `end`: the caller keeps its own
    end::<T>(header);
}

unsafe fn free<F, T>(header: NonNull<Header>) {
    // SAFETY: R5: the caller says that this is the last reference, and it is still there.
    let shared = unsafe { header.as_ref() };
    let state = shared.word.read();
    let slot = slot::<T>(header);
    match state.phase() {
        // SAFETY: R1, the last reference, so the closure is ours.
        PENDING | RESERVED => panic_report::swallow(|| unsafe { slot.cast::<F>().drop_in_place() }),
        // SAFETY: R4, the last reference, and the outcome was not moved out.
        FINISHED if !state.has(TAKEN) => panic_report::swallow(|| unsafe { slot.drop_in_place() }),
        _ => {}
    }
    // ORDERING: relaxed: the last reference has synchronised with every other one's end.
    let extra = shared.extra.load(Ordering::Relaxed);
    if !extra.is_null() {
        // SAFETY: R6: made as such a box, by `Extra::new`, and freed here alone.
        let extra = unsafe { Box::from_raw(extra.cast::<Extra<T>>()) };
        panic_report::swallow(|| drop(extra));
    }
    // Nothing is left in it that needs dropping.
    // SAFETY: R5, the last reference; `make` took the memory with this layout.
    unsafe { store::give(header.cast(), Layout::new::<Cell<F, T>>()) };
}

/// Where the closure or the outcome is. By pointer, never through a reference to the beginning of the cell: such a
/// reference may not be used to reach what lies behind it.
fn slot<T>(header: NonNull<Header>) -> *mut Outcome<T> {
    // SAFETY: R5, every caller holds a reference.
    unsafe { header.as_ref() }.access.writes();
    place(header)
}

/// [`slot`] for those who only look at what others may look at too.
fn shared_slot<T>(header: NonNull<Header>) -> *const Outcome<T> {
    // SAFETY: R5, every caller holds a reference.
    unsafe { header.as_ref() }.access.reads();
    place(header)
}

fn place<T>(header: NonNull<Header>) -> *mut Outcome<T> {
    // SAFETY: R5, every caller holds a reference; the vtable is constant.
    let offset = unsafe { header.as_ref() }.vtable.slot;
    // SAFETY: `offset` is where the slot of this very cell is, so the result stays inside the allocation.
    unsafe { header.as_ptr().cast::<u8>().add(offset) }.cast()
}

/// Ends the task whose outcome is in the slot, still unpublished, and gives up a reference of the caller's.
fn end<T>(header: NonNull<Header>) {
    // SAFETY: R5, every caller holds a reference.
    let shared = unsafe { header.as_ref() };
    match shared.word.end() {
        Ended::Released => {}
        Ended::Last => free_last(header),
        Ended::WithWaiters => {
            end_with_waiters::<T>(header);
            release(header);
        }
    }
}

/// The end of a task somebody waits for: callbacks in the order added, then everybody else.
#[cold]
fn end_with_waiters<T>(header: NonNull<Header>) {
    // SAFETY: R5, the caller holds a reference.
    let shared = unsafe { header.as_ref() };
    shared.run_by_this_thread();
    // For this thread's callbacks only (R3).
    shared.word.enter(SET);
    // SAFETY: R6, of this cell, whose `T` this is.
    let waiters = unsafe { &(*shared.extra_or_new::<T>()).waiters };
    loop {
        let mut guard = waiters.lock();
        let callbacks = std::mem::take(&mut guard.callbacks);
        if callbacks.is_empty() {
            let listeners = std::mem::take(&mut guard.listeners);
            let waker = guard.waker.take();
            // Under the lock, so that a waiter sees either this or, before, its own entry.
            shared.word.enter(FINISHED);
            drop(guard);
            listeners.into_iter().for_each(Listener::wake);
            if let Some(waker) = waker {
                panic_report::swallow(|| waker.wake());
            }
            return;
        }
        drop(guard);
        for callback in callbacks {
            // SAFETY: R3, this thread has just written it; it stays until FINISHED, which comes last.
            let outcome = unsafe { &*shared_slot::<T>(header) };
            if let Err(report) = panic_report::catch(|| callback(outcome)) {
                owner::report_panic(shared.pool, &report);
            }
        }
    }
}

impl Header {
    fn details(&self) -> Option<&Details> {
        // ORDERING: acquire, pairs with the release in `extra_or_new`.
        let extra = self.extra.load(Ordering::Acquire);
        // SAFETY: R6: null, or there as long as the cell; the details are its first field and never change.
        unsafe { extra.as_ref() }?.as_ref()
    }

    /// The extra part, made if it is not there. The caller knows the cell's `T`.
    fn extra_or_new<T>(&self) -> *const Extra<T> {
        // ORDERING: acquire, as in `details`.
        let extra = self.extra.load(Ordering::Acquire);
        if !extra.is_null() {
            return extra.cast();
        }
        let new = Extra::<T>::allocate(None);
        // ORDERING: release, publishes what is in it; pairs with the acquires, here and in `details`.
        match self.extra.compare_exchange(extra, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new.cast(),
            Err(faster) => {
                // SAFETY: made as such a box two lines above, and seen by nobody.
                drop(unsafe { Box::from_raw(new.cast::<Extra<T>>()) });
                faster.cast()
            }
        }
    }

    fn label(&self) -> Option<&str> {
        self.details()?.label.as_deref()
    }

    #[inline]
    fn phase(&self) -> Phase {
        let state = self.word.read();
        match state.phase() {
            PENDING | RESERVED => Phase::Pending,
            RUNNING => Phase::Running,
            // A callback that asks its own future finds it over; to others it is as before until callbacks are through.
            FINISHED | SET if state.phase() == FINISHED || self.runner() == ThreadSlot::current() => {
                if state.has(CANCELLED) { Phase::Cancelled } else { Phase::Finished }
            }
            _ if state.has(CANCELLED) => Phase::Pending,
            _ => Phase::Running,
        }
    }

    #[inline]
    fn is_finished(&self) -> bool {
        self.word.read().phase() == FINISHED
    }

    /// Whether this thread is running the task's callbacks right now.
    #[inline]
    fn is_in_own_callback(&self) -> bool {
        // On the thread in question both are its own writes.
        self.word.read().phase() == SET && self.runner() == ThreadSlot::current()
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
pub(crate) struct Started {
    task: Task,
    /// Whether the one other reference is the handle of whoever waits for it on this very stack.
    is_alone: bool,
}

impl Task {
    fn header(&self) -> &Header {
        // SAFETY: R5.
        unsafe { self.0.as_ref() }
    }

    /// Claims the task, unless somebody else did or it is cancelled.
    pub(crate) fn start(self) -> Option<Started> {
        self.header().word.advance(PENDING, RUNNING, 0).then(|| {
            self.header().run_by_this_thread();
            Started { task: self, is_alone: false }
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
        if self.header().word.expire() {
            // SAFETY: SETTLING, and ours; the runner has moved the closure out (R2).
            unsafe { (self.header().vtable.fail)(self.0, TaskError::TimedOut, false) };
        }
    }

    pub(crate) fn details(&self) -> Option<&Details> {
        self.header().details()
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
        self.header().word.glance().has(ABORTED)
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

impl Task {
    /// The reference as a pointer, for a queue of words.
    pub(crate) fn into_raw(self) -> NonNull<()> {
        let cell = self.0.cast();
        forget(self);
        cell
    }

    /// The reference again.
    ///
    /// # Safety
    ///
    /// `cell` comes from [`into_raw`](Self::into_raw), and this is called once for it.
    pub(crate) const unsafe fn from_raw(cell: NonNull<()>) -> Self {
        Self(cell.cast())
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
    pub(crate) const fn task(&self) -> &Task {
        &self.task
    }

    /// Runs the task's function on this thread. Never unwinds.
    pub(crate) fn execute(self) -> Executed {
        let before = CURRENT.replace(Some(self.task.0));
        // SAFETY: RUNNING, and ours: a `Started` is made once per task and consumed here.
        let (ending, won) = unsafe { (self.task.header().vtable.execute)(self.task.0) };
        CURRENT.set(before);
        Executed { started: self, ending, won }
    }
}

/// The proof that the task's function has run and its outcome is in the cell, not yet published.
#[must_use = "until it is published, everybody waits"]
pub(crate) struct Executed {
    started: Started,
    ending: Ending,
    won: bool,
}

impl Executed {
    pub(crate) const fn ending(&self) -> Ending {
        self.ending
    }

    pub(crate) const fn task(&self) -> &Task {
        &self.started.task
    }

    /// Runs the callbacks and wakes who waits. Never unwinds.
    pub(crate) fn publish(self) {
        let Started { task, is_alone } = self.started;
        if !self.won {
            return;
        }
        let ends_alone = is_alone && task.header().word.end_alone();
        if !ends_alone {
            // SAFETY: `execute` put the outcome into the slot, and this consumes the proof.
            unsafe { (task.header().vtable.publish)(task.0) };
        }
        forget(task); // either step gave its reference up
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
fn refuse(cell: NonNull<Header>, error: TaskError, flags: u64) -> bool {
    // SAFETY: R5, the caller holds a reference.
    let header = unsafe { cell.as_ref() };
    let refused = !header.word.glance().has(BOUND) && header.word.advance(PENDING, SETTLING, flags);
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
    unsafe { cell.as_ref() }.word.retain();
}

fn release(cell: NonNull<Header>) {
    // SAFETY: R5: the caller's reference ends here.
    if unsafe { cell.as_ref() }.word.release() {
        free_last(cell);
    }
}

fn free_last(cell: NonNull<Header>) {
    // SAFETY: R5: nobody else holds a reference, so nobody can make one.
    let vtable = unsafe { cell.as_ref() }.vtable;
    // SAFETY: the last reference (R5).
    unsafe { (vtable.free)(cell) };
}

// --- the end that waits -------------------------------------------------------------------------------------------

/// A counted, typed reference: the inside of a `TaskFuture`. There is one for each task; dropping it detaches the task.
pub(crate) struct Handle<T> {
    header: NonNull<Header>,
    value: PhantomData<Outcome<T>>,
}

// SAFETY: it can hand out or drop a `T` on another thread than the one that made it, which `T: Send` allows.
unsafe impl<T: Send> Send for Handle<T> {}
// SAFETY: through a shared handle two threads can hold a `&T` each (`peek`), which `T: Sync` allows, and either may be
// the one that drops it later, hence `T: Send`.
unsafe impl<T: Send + Sync> Sync for Handle<T> {}

impl<T> Handle<T> {
    fn header(&self) -> &Header {
        // SAFETY: R5.
        unsafe { self.header.as_ref() }
    }

    /// An untyped reference to the same task.
    pub(crate) fn task(&self) -> Task {
        retain(self.header);
        Task(self.header)
    }

    /// Starts the task, to which `queued` is the only other reference, for the caller, who waits for it on this very stack.
    /// Gives `queued` back if it cannot be.
    pub(crate) fn start_alone(&self, queued: Task) -> Result<Started, Task> {
        if queued.0 != self.header || !self.header().word.start_alone() {
            return Err(queued);
        }
        self.header().run_by_this_thread();
        Ok(Started { task: queued, is_alone: true })
    }

    pub(crate) fn id(&self) -> usize {
        self.header.as_ptr().addr()
    }

    pub(crate) fn pool(&self) -> PoolId {
        self.header().pool
    }

    pub(crate) fn label(&self) -> Option<&str> {
        self.header().label()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.header().phase()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.header().is_finished()
    }

    pub(crate) fn is_in_own_callback(&self) -> bool {
        self.header().is_in_own_callback()
    }

    /// Ends the task with `error` if nobody has started or cancelled it.
    pub(crate) fn refuse(&self, error: TaskError) -> bool {
        refuse(self.header, error, 0)
    }

    /// Cancels the task if nobody has started or cancelled it.
    pub(crate) fn cancel(&self) -> bool {
        refuse(self.header, TaskError::Cancelled, CANCELLED)
    }

    /// Whether somebody has cancelled it, the outcome being there yet or not.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.header().word.glance().has(CANCELLED)
    }

    /// From now on, dropping this handle cancels the task.
    pub(crate) fn cancel_on_drop(&self) {
        self.header().word.flag(CANCEL_ON_DROP);
    }

    /// Whether its cancel token is set.
    pub(crate) fn is_aborted(&self) -> bool {
        self.header().word.glance().has(ABORTED)
    }

    /// Whether its future was dropped.
    pub(crate) fn is_detached(&self) -> bool {
        self.header().word.glance().has(DETACHED)
    }

    /// It is of a future that a pool polls.
    pub(crate) fn polled(&self) {
        self.header().word.flag(POLLED);
    }

    /// Its owner is to be told if somebody waits.
    pub(crate) fn attend(&self) {
        self.header().word.flag(ATTENDED);
    }

    /// Whether its owner is to be told that somebody waits, who is the first to want to know of its end.
    pub(crate) fn is_attended(&self) -> bool {
        let state = self.header().word.glance();
        state.has(ATTENDED) && !state.has(WAITERS)
    }

    /// Sets the cancel token.
    pub(crate) fn abort(&self) {
        self.header().word.flag(ABORTED);
    }

    /// The outcome, once it is there to look at.
    pub(crate) fn peek(&self) -> Option<&Outcome<T>> {
        let state = self.header().word.read();
        let readable = (state.phase() == FINISHED && !state.has(TAKEN)) || self.header().is_in_own_callback();
        // SAFETY: R4: finished and not taken, and taking needs `&mut self`; or R3: this thread is in the callbacks it
        // runs, and nothing can be taken before they are over.
        readable.then(|| unsafe { &*shared_slot::<T>(self.header) })
    }

    /// Moves the outcome out of a finished task; `None` if it is not finished or was taken before.
    pub(crate) fn take(&mut self) -> Option<Outcome<T>> {
        let word = &self.header().word;
        let state = word.read();
        if state.phase() != FINISHED || state.has(TAKEN) {
            return None;
        }
        word.take(state);
        // SAFETY: R4: finished, not taken before, and `&mut self` excludes every `peek`.
        Some(unsafe { slot::<T>(self.header).read() })
    }

    /// Whether the outcome was moved out.
    pub(crate) fn is_taken(&self) -> bool {
        self.header().word.glance().has(TAKEN) // set through this very handle
    }

    /// Runs `enter` on the waiters unless the task is over; says whether it did.
    fn enter(&self, enter: impl FnOnce(&mut Waiters<T>)) -> bool {
        // SAFETY: R6, of this cell, whose `T` this is.
        let waiters = unsafe { &(*self.header().extra_or_new::<T>()).waiters };
        let mut guard = waiters.lock();
        let is_pending = self.header().word.announce();
        if is_pending {
            enter(&mut guard);
        }
        is_pending
    }

    /// Adds a callback; gives it back if the task is over already.
    pub(crate) fn add_callback<C>(&self, callback: C) -> Result<(), C>
    where
        C: FnOnce(&Outcome<T>) + Send + 'static,
    {
        let mut callback = Some(callback);
        self.enter(|waiters| {
            if let Some(callback) = callback.take() {
                waiters.callbacks.push(Box::new(callback));
            }
        });
        callback.map_or(Ok(()), Err)
    }

    /// Enters a listener; false if the task is over already.
    pub(crate) fn listen(&self, listener: Listener) -> bool {
        self.enter(|waiters| waiters.listeners.push(listener))
    }

    /// Forgets a listener that was told nothing yet.
    pub(crate) fn unlisten(&self, listener: &Listener) {
        // SAFETY: R6, of this cell, whose `T` this is.
        let waiters = unsafe { &(*self.header().extra_or_new::<T>()).waiters };
        waiters.lock().listeners.retain(|other| !other.is(listener));
    }

    /// Makes `waker` the one to wake; false if the task is over already.
    pub(crate) fn set_waker(&self, waker: &Waker) -> bool {
        // Cloned before the lock, and the old one dropped after it: both are the runtime's code.
        let mut waker = Some(waker.clone());
        self.enter(|waiters| std::mem::swap(&mut waiters.waker, &mut waker))
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        let state = self.header().word.glance();
        if state.has(CANCEL_ON_DROP) && !self.pool().is_inherited() {
            let is_over = self.cancel() || self.is_finished();
            if !is_over && state.has(POLLED) {
                self.abort();
                owner::abort(self.pool(), self.id());
            }
        }
        if self.header().word.detach() {
            free_last(self.header);
        }
    }
}

/// A reference to a task beside the one handle of its future: it can be waited through, and never touches the outcome
/// (R4).
pub(crate) struct Watch<T>(ManuallyDrop<Handle<T>>);

impl<T> Handle<T> {
    pub(crate) fn watch(&self) -> Watch<T> {
        retain(self.header);
        Watch(ManuallyDrop::new(Self { header: self.header, value: PhantomData }))
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

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        release(self.0.header); // and never the handle in it, which would detach
    }
}

/// The inside of a `Promise`: what its future can do, and more.
pub(crate) struct Writer<T>(Watch<T>);

impl<T> Writer<T> {
    /// Hands the task over to a worker that may start it at any moment: from here `cancel` fails.
    pub(crate) fn reserve(&self) -> bool {
        self.header().word.advance(PENDING, RESERVED, 0)
    }

    /// Takes a reserved task back.
    pub(crate) fn unreserve(&self) {
        self.header().word.advance(RESERVED, PENDING, 0);
    }

    /// Says that the task runs now; false if it was cancelled.
    pub(crate) fn set_running(&self) -> bool {
        let word = &self.header().word;
        // Only the promise moves between these phases, and it is on this thread.
        word.advance(PENDING, RUNNING, 0)
            || word.advance(RESERVED, RUNNING, 0)
            || word.glance().phase() == RUNNING
    }

    /// Ends the task; gives the outcome back if it was cancelled.
    pub(crate) fn complete(&self, outcome: Outcome<T>) -> Result<(), Outcome<T>> {
        let word = &self.header().word;
        let won = word.advance(RUNNING, SETTLING, 0)
            || word.advance(RESERVED, SETTLING, 0)
            || word.advance(PENDING, SETTLING, 0);
        if !won {
            return Err(outcome);
        }
        // The closure of a promise's cell captures nothing and has no destructor: nothing to drop (R2).
        // SAFETY: R2, the slot is ours and holds nothing that needs dropping.
        unsafe { slot::<T>(self.header).write(outcome) };
        retain(self.header); // for `end`
        end::<T>(self.header);
        Ok(())
    }
}

impl<T> Deref for Writer<T> {
    type Target = Handle<T>;

    fn deref(&self) -> &Handle<T> {
        &self.0.0
    }
}

/// A cell without a closure: its promise and its future.
pub(crate) fn promise<T: Send + 'static>(pool: PoolId, details: Option<Details>) -> (Writer<T>, Handle<T>) {
    let (task, future) = new(pool, details, || -> T { unreachable!("a promise is completed, never run") });
    let promise = Writer(Watch(ManuallyDrop::new(Handle { header: task.0, value: PhantomData })));
    forget(task); // its reference is the promise's now
    (promise, future)
}
