//! Loom's atomics and locks under the names of [`system`](super::system), for the models.
//!
//! What loom has no counterpart of:
//!
//! * **`Arc`** is the real one: its own order is not checked, only what it holds.
//! * **Sequentially consistent accesses** are acquire and release to loom, weaker than they are; its fences are exact.
//! * **A time-out never comes.** A model of one calls what comes after it.
//! * **The deques** are a list under a lock behind a length that is an atomic by itself. Whether one is empty is answered by
//!   an acquire load alone, so a look may miss a push that no fence orders before it, as with the real ones: the lock
//!   would else put every look in order with every push, and no model could fail for want of a fence.
//! * **A spinning thread** must yield, or the model does not end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

pub use ::loom::sync::MutexGuard;
pub use ::loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub use std::sync::Arc;

pub use super::system::UnsafeCell;
pub use crate::loom_thread_local as thread_local;

/// Runs `body` once for every interleaving with at most `preemptions` switches away from a thread that could go on; the
/// other switches are free. `LOOM_MAX_PREEMPTIONS` asks for another bound.
pub fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 100_000;
    let interleavings = Arc::new(super::system::AtomicUsize::new(0));
    let counted = Arc::clone(&interleavings);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        body();
    });
    println!("{} interleavings", interleavings.load(Ordering::Relaxed));
}

/// As in [`system`](super::system::acquire_fence_after).
pub fn acquire_fence_after(_: &AtomicU64) {
    fence(Ordering::Acquire);
}

/// The mutex of the model.
#[derive(Debug, Default)]
pub struct Mutex<T>(::loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex around `value`.
    pub fn new(value: T) -> Self {
        Self(::loom::sync::Mutex::new(value))
    }

    /// What it guarded.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The condition of the model.
#[derive(Debug, Default)]
pub struct Condvar(::loom::sync::Condvar);

impl Condvar {
    /// A condition nobody waits for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits to be told.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits to be told: the limit never comes.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, _: Duration) -> MutexGuard<'a, T> {
        self.wait(guard)
    }

    /// Tells everybody who waits.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Tells one who waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
}

/// A parker that may wake without a token, once.
#[derive(Debug, Default)]
pub struct Parker(Unparker);

/// Its other end.
#[derive(Clone, Debug, Default)]
pub struct Unparker(Arc<::loom::sync::Notify>);

impl Parker {
    /// A parker without a token.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for a token.
    pub fn park(&self) {
        self.0.0.wait();
    }

    /// Waits for a token: the limit never comes.
    pub fn park_timeout(&self, _: Duration) {
        self.park();
    }

    /// Waits for a token: the limit never comes.
    pub fn park_deadline(&self, _: std::time::Instant) {
        self.park();
    }

    /// The other end.
    #[must_use]
    pub const fn unparker(&self) -> &Unparker {
        &self.0
    }
}

impl Unparker {
    /// Leaves a token.
    pub fn unpark(&self) {
        self.0.notify();
    }
}

/// Memory whose accesses loom watches: two at a time, one of them alone, fail the model.
#[derive(Debug)]
pub struct Access(::loom::cell::UnsafeCell<()>);

impl Access {
    /// An access not watched yet.
    #[must_use]
    pub fn new() -> Self {
        Self(::loom::cell::UnsafeCell::new(()))
    }

    /// The memory is read, maybe by others too.
    pub fn reads(&self) {
        self.0.with(|_| ());
    }

    /// The memory is read or written by this thread alone.
    pub fn writes(&self) {
        self.0.with_mut(|_| ());
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::new()
    }
}

/// A thread-local of the model's threads, which are all one thread of the system.
#[derive(Debug)]
pub struct LocalKey<T: 'static>(#[doc(hidden)] pub &'static ::loom::thread::LocalKey<T>);

/// `thread_local!`.
#[doc(hidden)]
#[macro_export]
macro_rules! loom_thread_local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $init:expr);* $(;)?) => {
        $($(#[$attribute])* $visibility static $name: $crate::sync::LocalKey<$type> = {
            ::loom::thread_local! { static INNER: $type = $init; }
            $crate::sync::LocalKey(&INNER)
        };)*
    };
}

impl<T: 'static> LocalKey<T> {
    /// Calls `act` with the value.
    pub fn with<R>(&'static self, act: impl FnOnce(&T) -> R) -> R {
        self.0.with(act)
    }

    /// Calls `act` with the value, if it is still there.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn try_with<R>(&'static self, act: impl FnOnce(&T) -> R) -> Result<R, ::loom::thread::AccessError> {
        self.0.try_with(act)
    }
}

impl<T: 'static> LocalKey<Cell<T>> {
    /// Sets the value.
    pub fn set(&'static self, value: T) {
        self.with(|cell| cell.set(value));
    }

    /// Sets the value and returns the one before.
    pub fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }

    /// The value.
    pub fn get(&'static self) -> T
    where
        T: Copy,
    {
        self.with(Cell::get)
    }
}

impl<T: Default + 'static> LocalKey<RefCell<T>> {
    /// Takes the value out.
    pub fn take(&'static self) -> T {
        self.with(RefCell::take)
    }
}

/// Threads of the model.
pub mod thread {
    pub use ::loom::thread::{Thread, ThreadId, current, yield_now};

    /// The builder; a model has no use for names and sizes of stacks.
    #[derive(Debug, Default)]
    pub struct Builder(());

    impl Builder {
        /// A builder.
        #[must_use]
        pub fn new() -> Self {
            Self::default()
        }

        /// Names the thread.
        #[must_use]
        pub fn name(self, _: String) -> Self {
            self
        }

        /// How large its stack is.
        #[must_use]
        pub fn stack_size(self, _: usize) -> Self {
            self
        }

        /// Starts it.
        ///
        /// # Errors
        ///
        /// None, in a model.
        pub fn spawn<T: Send + 'static>(
            self,
            body: impl FnOnce() -> T + Send + 'static,
        ) -> std::io::Result<JoinHandle<T>> {
            Ok(JoinHandle(::loom::thread::spawn(body)))
        }
    }

    /// A thread to join.
    #[derive(Debug)]
    pub struct JoinHandle<T>(::loom::thread::JoinHandle<T>);

    impl<T> JoinHandle<T> {
        /// Waits for its end.
        ///
        /// # Errors
        ///
        /// None: a panic fails the model.
        pub fn join(self) -> std::thread::Result<T> {
            self.0.join()
        }

        /// The thread.
        #[must_use]
        pub fn thread(&self) -> &Thread {
            self.0.thread()
        }

        /// Nobody can tell.
        #[must_use]
        pub const fn is_finished(&self) -> bool {
            false
        }
    }
}

/// The deques of the model.
pub mod deque {
    use super::{Arc, AtomicUsize, Mutex, Ordering, VecDeque};

    pub use crossbeam_deque::Steal;

    #[derive(Debug)]
    struct List<T> {
        items: Mutex<VecDeque<T>>,
        len: AtomicUsize,
    }

    impl<T> List<T> {
        fn new() -> Self {
            Self { items: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0) }
        }

        fn len(&self) -> usize {
            self.len.load(Ordering::Acquire)
        }

        fn push(&self, item: T) {
            let mut items = self.items.lock();
            items.push_back(item);
            self.len.store(items.len(), Ordering::Release);
        }

        fn take(&self, take: impl FnOnce(&mut VecDeque<T>) -> Option<T>) -> Option<T> {
            if self.len() == 0 {
                return None;
            }
            let mut items = self.items.lock();
            let item = take(&mut items)?;
            self.len.store(items.len(), Ordering::Release);
            Some(item)
        }

        fn steal(&self) -> Steal<T> {
            self.take(VecDeque::pop_front).map_or(Steal::Empty, Steal::Success)
        }
    }

    /// What comes from outside.
    #[derive(Debug)]
    pub struct Injector<T>(List<T>);

    impl<T> Injector<T> {
        /// An empty one.
        #[must_use]
        pub fn new() -> Self {
            Self(List::new())
        }

        /// Adds an item.
        pub fn push(&self, item: T) {
            self.0.push(item);
        }

        /// Whether it looks empty.
        #[must_use]
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }

        /// About how many are in it.
        #[must_use]
        pub fn len(&self) -> usize {
            self.0.len()
        }

        /// Takes the oldest.
        pub fn steal(&self) -> Steal<T> {
            self.0.steal()
        }
    }

    impl<T> Default for Injector<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    /// A worker's end.
    #[derive(Debug)]
    pub struct Worker<T> {
        list: Arc<List<T>>,
        is_lifo: bool,
    }

    impl<T> Worker<T> {
        /// The one pushed last comes first.
        #[must_use]
        pub fn new_lifo() -> Self {
            Self { list: Arc::new(List::new()), is_lifo: true }
        }

        /// The one pushed first comes first.
        #[must_use]
        pub fn new_fifo() -> Self {
            Self { list: Arc::new(List::new()), is_lifo: false }
        }

        /// The other end.
        pub fn stealer(&self) -> Stealer<T> {
            Stealer(Arc::clone(&self.list))
        }

        /// Adds an item.
        pub fn push(&self, item: T) {
            self.list.push(item);
        }

        /// Takes the next.
        #[must_use]
        pub fn pop(&self) -> Option<T> {
            self.list.take(if self.is_lifo { VecDeque::pop_back } else { VecDeque::pop_front })
        }

        /// Whether it is empty.
        #[must_use]
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }

        /// How many are in it.
        #[must_use]
        pub fn len(&self) -> usize {
            self.list.len()
        }
    }

    /// A thief's end.
    #[derive(Debug)]
    pub struct Stealer<T>(Arc<List<T>>);

    impl<T> Stealer<T> {
        /// Takes the oldest.
        pub fn steal(&self) -> Steal<T> {
            self.0.steal()
        }

        /// Whether it looks empty.
        #[must_use]
        pub fn is_empty(&self) -> bool {
            self.0.len() == 0
        }
    }
}
