//! The state word of a task: its phase, its flags, and how many references there are, in one atomic.
//!
//! ```text
//!   63            32 31      14 13           3 2     0
//!   │  references   │          │    flags     │ phase │
//! ```
//!
//! One word, so that a step that changes two of them is one instruction: who ends a task gives its reference up in the
//! same step, and who drops a future detaches it and gives its reference up in one. Whoever reads a count of one holds the
//! only reference, and needs no read-modify-write at all.
//!
//! What each phase and each step means is told at the head of [`task`](super). Every method is one step of that diagram;
//! nothing else writes the word.

use crate::sync::{AtomicU64, Ordering, acquire_fence_after};

/// Waits for somebody to run it.
pub(super) const PENDING: u64 = 0;
/// Handed over to a worker that may start it at any moment: cannot be cancelled, can be taken back by its promise.
pub(super) const RESERVED: u64 = 1;
/// Somebody runs it.
pub(super) const RUNNING: u64 = 2;
/// Somebody has won the right to set the outcome.
pub(super) const SETTLING: u64 = 3;
/// The outcome is set, callbacks are running.
pub(super) const SET: u64 = 4;
/// Over. Only TAKEN may still be set.
pub(super) const FINISHED: u64 = 5;
const PHASE: u64 = 0b111;

/// It was cancelled before it started: the outcome is `Err(Cancelled)`.
pub(super) const CANCELLED: u64 = 1 << 3;
/// Somebody wants to know when it is over.
pub(super) const WAITERS: u64 = 1 << 4;
/// Its cancel token is set: it was asked to stop.
pub(super) const ABORTED: u64 = 1 << 5;
/// It has a time limit: somebody other than its runner may end it. Never changes.
pub(super) const TIMED: u64 = 1 << 6;
/// The outcome was moved out.
pub(super) const TAKEN: u64 = 1 << 7;
/// Its future was dropped before it was over: nobody will look at the outcome.
pub(super) const DETACHED: u64 = 1 << 8;
/// With TIMED: its runner has moved the closure out, so from here on somebody else may end it.
const LAUNCHED: u64 = 1 << 9;
/// With TIMED: its time was up before that; its runner ends it.
const LATE: u64 = 1 << 10;
const LAUNCHED_IN_TIME: u64 = TIMED | LAUNCHED;
/// Dropping its future cancels it.
pub(super) const CANCEL_ON_DROP: u64 = 1 << 11;
/// It is of a future that a pool polls: dropping that is possible after its start, too. Never changes.
pub(super) const POLLED: u64 = 1 << 13;
/// A worker's stack needs it, so it runs: nobody can cancel or refuse it. Never changes.
pub(super) const BOUND: u64 = 1 << 12;

/// Its owner sees to it if it is told that somebody waits. Set before there is a future to wait for it.
pub(super) const ATTENDED: u64 = 1 << 14;

const REFERENCE: u64 = 1 << 32;
/// Two references: that of the queue and that of the future.
const ALONE: u64 = 2 * REFERENCE;

#[derive(Debug)]
pub(super) struct Word(AtomicU64);

/// What the word was when it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct State(u64);

impl State {
    pub(super) const fn phase(self) -> u64 {
        self.0 & PHASE
    }

    pub(super) const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    const fn references(self) -> u64 {
        self.0 / REFERENCE
    }
}

/// How a task was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Ended {
    /// It is not: somebody wants to know, and is to be told first. The reference is still there.
    WithWaiters,
    /// It is over, and the reference is gone.
    Released,
    /// It is over, and the reference was the last one: the caller frees the cell.
    Last,
}

impl Word {
    /// A pending task with two references. Of the flags, TIMED and BOUND may be set.
    pub(super) fn new(flags: u64) -> Self {
        Self(AtomicU64::new(ALONE | PENDING | flags))
    }

    /// Reads the word to go by what it says: who sees the end sees the outcome.
    #[inline]
    pub(super) fn read(&self) -> State {
        // ORDERING: acquire, pairs with the release in `end`, `enter` and `advance`.
        State(self.0.load(Ordering::Acquire))
    }

    /// Reads a flag that guards no data.
    #[inline]
    pub(super) fn glance(&self) -> State {
        // ORDERING: relaxed: nothing is read through it.
        State(self.0.load(Ordering::Relaxed))
    }

    /// Sets a flag that guards no data.
    pub(super) fn flag(&self, flag: u64) {
        // ORDERING: relaxed, as in `glance`.
        self.0.fetch_or(flag, Ordering::Relaxed);
    }

    /// Moves from phase `from` to phase `to`, setting `flags`. Exactly one caller succeeds.
    #[inline]
    pub(super) fn advance(&self, from: u64, to: u64, flags: u64) -> bool {
        // ORDERING: relaxed, only a first guess for the compare-and-swap.
        let mut state = self.0.load(Ordering::Relaxed);
        while state & PHASE == from {
            let next = (state & !PHASE) | to | flags;
            // ORDERING: acquire, for the closure written by the submitter (and by whoever released it before);
            // release, so that the next owner of the slot sees what this one did.
            match self.0.compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(current) => state = current,
            }
        }
        false
    }

    /// Moves to `phase` where nobody else can move: the flags may still change meanwhile.
    pub(super) fn enter(&self, phase: u64) {
        // ORDERING: release, publishes the outcome; pairs with the acquire in `read`.
        let entered =
            self.0.fetch_update(Ordering::Release, Ordering::Relaxed, |state| Some((state & !PHASE) | phase));
        debug_assert!(entered.is_ok(), "the update always has a value");
    }

    /// Starts a pending task whose two references are both the caller's, so that nobody else can see it: without a
    /// read-modify-write. False if it is anything else.
    #[inline]
    pub(super) fn start_alone(&self) -> bool {
        let state = self.read().0;
        let is_alone = state & !BOUND == (ALONE | PENDING);
        if is_alone {
            // ORDERING: relaxed: this thread alone has references.
            self.0.store(state | RUNNING, Ordering::Relaxed);
        }
        is_alone
    }

    /// Ends a task that was started alone, and gives one of the two references up, if it is still alone.
    #[inline]
    pub(super) fn end_alone(&self) -> bool {
        // ORDERING: acquire: whoever had a reference meanwhile is done with it.
        let is_alone = self.read().0 & !BOUND == (ALONE | RUNNING);
        if is_alone {
            // ORDERING: relaxed: this thread alone has references. BOUND has done its duty.
            self.0.store(REFERENCE | FINISHED, Ordering::Relaxed);
        }
        is_alone
    }

    /// Ends the task whose outcome was set, unless somebody waits, and gives the caller's reference up.
    #[inline]
    pub(super) fn end(&self) -> Ended {
        // ORDERING: acquire, for the last reference, as in `release`; else only a first guess.
        let mut state = self.0.load(Ordering::Acquire);
        loop {
            if state & WAITERS != 0 {
                return Ended::WithWaiters;
            }
            let finished = (state & !PHASE) | FINISHED;
            if State(state).references() == 1 {
                // ORDERING: relaxed: nobody else has a reference.
                self.0.store(finished, Ordering::Relaxed);
                return Ended::Last;
            }
            // ORDERING: release, publishes the outcome, and ends the use of the cell; pairs with the acquires in `read` and
            // `release`. Acquire on failure, as above.
            let ended = self.0.compare_exchange_weak(
                state,
                finished - REFERENCE,
                Ordering::Release,
                Ordering::Acquire,
            );
            match ended {
                Ok(_) => return Ended::Released,
                Err(now) => state = now,
            }
        }
    }

    /// Sets WAITERS unless the task is over; says whether it did. Under the lock of the waiters.
    pub(super) fn announce(&self) -> bool {
        // ORDERING: acquire on failure: the caller reads the outcome next. The flag itself reaches whoever ends the task by
        // the order of read-modify-writes of the word.
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                (state & PHASE != FINISHED).then_some(state | WAITERS)
            })
            .is_ok()
    }

    /// The runner has moved the closure out and is about to call it; false if its time is up.
    #[inline]
    pub(super) fn launch(&self) -> bool {
        if !self.glance().has(TIMED) {
            return true; // never changes
        }
        // ORDERING: release: who sees LAUNCHED and then writes the slot does so after it was read; pairs with the acquire
        // in `expire`.
        self.0.fetch_or(LAUNCHED, Ordering::AcqRel) & LATE == 0
    }

    /// The time of a running task is up: says whether the caller is to end it. If it was not launched yet, its runner is.
    pub(super) fn expire(&self) -> bool {
        let expired = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
            match (state & PHASE, state & (TIMED | LAUNCHED | LATE)) {
                (RUNNING, TIMED) => Some(state | LATE | ABORTED),
                (RUNNING, LAUNCHED_IN_TIME) => Some((state & !PHASE) | SETTLING | ABORTED),
                _ => None, // over, or LATE already: then it is its runner's
            }
        });
        expired.is_ok_and(|before| before & LAUNCHED != 0)
    }

    /// Whether the runner may set the outcome: always, unless a timer may have been faster.
    #[inline]
    pub(super) fn win_the_end(&self) -> bool {
        !self.glance().has(TIMED) || self.advance(RUNNING, SETTLING, 0)
    }

    /// The outcome of a task that is over was moved out, by its one handle.
    #[inline]
    pub(super) fn take(&self, state: State) {
        if state.references() == 1 {
            // ORDERING: relaxed: nobody else has a reference.
            self.0.store(state.0 | TAKEN, Ordering::Relaxed);
        } else {
            // ORDERING: relaxed: only this handle and `free` look at TAKEN, and `release` orders those.
            self.0.fetch_or(TAKEN, Ordering::Relaxed);
        }
    }

    /// One more reference.
    pub(super) fn retain(&self) {
        // ORDERING: relaxed: a new reference is made from an existing one, which keeps the cell alive.
        let before = State(self.0.fetch_add(REFERENCE, Ordering::Relaxed));
        if before.references() > u64::from(u32::MAX / 2) {
            std::process::abort(); // two billion leaked references: what `Arc` does
        }
    }

    /// One reference less; says whether it was the last one, so that the caller frees the cell.
    #[inline]
    pub(super) fn release(&self) -> bool {
        self.give_up(0)
    }

    /// One reference less, that of the future, which was dropped; says whether it was the last one.
    #[inline]
    pub(super) fn detach(&self) -> bool {
        self.give_up(DETACHED)
    }

    /// `flag` is not set before.
    #[inline]
    fn give_up(&self, flag: u64) -> bool {
        // The last owner needs no read-modify-write.
        // ORDERING: acquire, pairs with the release of the others' ends: who frees the cell sees all they did.
        if self.read().references() == 1 {
            return true;
        }
        // ORDERING: release, see above; the acquire fence is for the one that turns out to be the last.
        let before = State(self.0.fetch_sub(REFERENCE - flag, Ordering::Release));
        if before.references() != 1 {
            return false;
        }
        acquire_fence_after(&self.0);
        true
    }
}
