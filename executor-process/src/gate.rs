//! The word that says which task of a worker has begun, and stops the rest: what makes deaths exact and tasks revocable.
//!
//! Tasks handed to a worker have ascending numbers, and it takes them in that order. The gate lies in a page both
//! processes see:
//!
//! ```text
//!   { begun: 63 bits, closed: 1 bit }      begun: the number of the last task the worker has begun
//! ```
//!
//! * The **worker** begins task `n` by a compare-and-swap from `{ begun: m, open }` to `{ begun: n, open }`, before it
//!   looks at the argument. If the gate is closed it does not begin it, and drops it.
//! * The **parent** revokes what has not begun by one compare-and-swap from `{ begun: m, open }` to `{ begun: m,
//!   closed }`: from then on no task after `m` begins, and the parent may give them to others. In the worker's stream it
//!   then sends `LIFT`, behind everything it revoked.
//! * The worker opens the gate when it reads `LIFT`. The parent revokes nothing more until it sees the gate open again.
//!
//! So after a death at any instruction: what was answered is done; what has begun and was not answered has failed, one
//! task unless the worker's answers were not to be trusted; everything after has not begun. Both sides write by compare-and-swap on one word, so "it began" and "it was revoked"
//! exclude each other. A worker can scribble on its own gate: that costs its own tasks.

use crate::sync::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate<'a>(&'a AtomicU64);

const CLOSED: u64 = 1;

impl<'a> Gate<'a> {
    pub(crate) const fn new(word: &'a AtomicU64) -> Self {
        Self(word)
    }

    /// The worker begins task `number`; false if it is revoked, or has begun before.
    pub(crate) fn begin(self, number: u64) -> bool {
        // ORDERING: acquire-release, here and below: the gate carries no data, only its own order with the other side.
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                // Each number once: a task that forks and returns in both processes has made a twin of the worker, with
                // the same input and the same gate.
                (word & CLOSED == 0 && number > word >> 1).then_some(number << 1)
            })
            .is_ok()
    }

    /// The worker has read `LIFT`.
    pub(crate) fn lift(self) {
        self.0.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// The parent revokes what has not begun, and learns what has; `None` while the last revocation is not lifted.
    pub(crate) fn close(self) -> Option<u64> {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word & CLOSED == 0).then_some(word | CLOSED)
            })
            .ok()
            .map(|word| word >> 1)
    }

    /// The last task that has begun.
    pub(crate) fn begun(self) -> u64 {
        self.0.load(Ordering::Acquire) >> 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nothing_begin_until_it_is_lifted() {
        let word = AtomicU64::new(0);
        let gate = Gate::new(&word);
        assert!(gate.begin(1));
        assert_eq!(gate.close(), Some(1));
        assert_eq!(gate.close(), None);
        assert!(!gate.begin(2));
        assert_eq!(gate.begun(), 1);
        gate.lift();
        assert!(gate.begin(3));
        assert_eq!(gate.begun(), 3);
        assert!(!gate.begin(3), "each number once");
    }

    #[test]
    fn begun_and_revoked_exclude_each_other() {
        for round in 0..2_000_u64 {
            let word = AtomicU64::new(0);
            let barrier = std::sync::Barrier::new(2);
            let (began, closed_at) = std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    barrier.wait();
                    Gate::new(&word).begin(1)
                });
                barrier.wait();
                (0..round % 7).for_each(|_| std::hint::spin_loop());
                let closed_at = Gate::new(&word).close();
                (worker.join().unwrap(), closed_at)
            });
            assert_eq!(closed_at, Some(u64::from(began)));
        }
    }
}
