//! The word that says who is to be told, and how, when a worker has committed results: so that many results make one wake-up,
//! and none is left where nobody looks.
//!
//! ```text
//!   0 ──set──► FRAME ──turn──► WAITER          0: nobody is told, somebody looks without that
//!   ▲            │  ◄─turn back─┘ │           FRAME: the dispatcher, by a frame on the socket
//!   └────take────┴─────take───────┘           WAITER: the thread that sleeps on this word, by waking it
//! ```
//!
//! * The **worker** commits, and then takes the bell; it tells whom it was set for.
//! * The **dispatcher** sets the bell and looks at what is committed once more before it sleeps. Both have a full fence in
//!   between, so either the worker finds the bell, or the dispatcher the result.
//! * A **thread that waits** for the one result to come turns the bell to itself, which only a set one can be, and sleeps on it
//!   as long as it is turned. When it is not, it sets it again and looks, as the dispatcher does: whoever took it has told
//!   nobody else. When it has slept long enough it turns it back, which fails if it was taken.
//! * The worker turns it back, too, when it answers by the socket, of which nobody is told who sleeps here; so does whoever
//!   ends the task otherwise. The thread that slept is woken then, and looks in vain.

use crate::sync::{AtomicU64, Ordering, fence};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bell<'a>(&'a AtomicU64);

const FRAME: u64 = 1;

/// The lower half of the word while a thread sleeps on it.
pub(crate) const WAITER: u32 = 2;

/// Whom the worker tells of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// By a frame.
    Dispatcher,
    /// By waking it.
    Waiter,
}

impl<'a> Bell<'a> {
    pub(crate) const fn new(word: &'a AtomicU64) -> Self {
        Self(word)
    }

    /// The worker has committed something: whom it must tell.
    pub(crate) fn take(self) -> Option<Told> {
        // ORDERING: the fences, here and in `set`: of the worker's commit and its look at the bell, and the other side's bell
        // and its look at what is committed, not both looks can come first.
        fence(Ordering::SeqCst);
        if self.0.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // ORDERING: release: who finds the bell taken sees what was committed; pairs with the acquires below.
        match self.0.swap(0, Ordering::AcqRel) {
            0 => None,
            FRAME => Some(Told::Dispatcher),
            _ => Some(Told::Waiter),
        }
    }

    /// The parent wants to be told. The caller looks at what is committed after this.
    pub(crate) fn set(self) {
        // ORDERING: a read-modify-write, so that it comes after or before a turn and its undoing, never in between; the fence as
        // in `take`.
        self.0.swap(FRAME, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Whether the dispatcher would be told.
    pub(crate) fn is_set(self) -> bool {
        // ORDERING: relaxed: a hint.
        self.0.load(Ordering::Relaxed) == FRAME
    }

    /// Turns a bell that is set to a thread that waits; says whether it was set.
    pub(crate) fn turn(self) -> bool {
        // ORDERING: relaxed: the word carries no data; whoever takes it next finds either value.
        self.0.compare_exchange(FRAME, WAITER.into(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether it is turned.
    pub(crate) fn is_turned(self) -> bool {
        // ORDERING: acquire, so that what was committed before it was taken is seen.
        self.0.load(Ordering::Acquire) == u64::from(WAITER)
    }

    /// Turns it back; says whether it was turned.
    pub(crate) fn turn_back(self) -> bool {
        // ORDERING: as in `turn` and `is_turned`.
        self.is_turned()
            && self.0.compare_exchange(WAITER.into(), FRAME, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_once_and_tells_for_whom_it_was_set() {
        let word = AtomicU64::new(0);
        let bell = Bell::new(&word);
        assert_eq!(bell.take(), None);
        assert!(!bell.turn(), "not set");
        bell.set();
        assert_eq!([bell.take(), bell.take()], [Some(Told::Dispatcher), None]);
        bell.set();
        assert!(bell.turn() && !bell.turn());
        assert!(bell.turn_back() && !bell.turn_back() && bell.is_set());
        assert!(bell.turn() && bell.is_turned() && !bell.is_set());
        assert_eq!([bell.take(), bell.take()], [Some(Told::Waiter), None]);
        assert!(!bell.turn_back(), "taken");
    }
}
