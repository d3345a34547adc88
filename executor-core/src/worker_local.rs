//! `WorkerLocal`: a value for each thread that uses it, which ends with the worker or with the handle.
//!
//! The values lie in one table of the handle, by thread, so that they go when it goes; a thread reaches its own without a
//! lock. Each thread keeps a list of the tables in which it has a value; a worker goes through it when it ends, and any
//! other thread in the destructor of that list. The table's places are used again by later threads, so each says whose
//! value it holds.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Weak;

use thread_local::ThreadLocal;

use crate::os::ThreadSlot;
use crate::panic_report;
use crate::sync::{Arc, Mutex};

/// A value for each worker, made when the worker first asks for it: a connection, a buffer, a random generator, a sum.
///
/// The handle is a cheap clone that tasks capture. The value is made, used and, when its worker ends, dropped on that one
/// thread, so it need not be `Sync`: a [`Cell`] or [`RefCell`] in it lets tasks change it. It is the thread's, not the
/// pool's: a thread that is no worker gets one too, until it ends, and tasks of two pools never share one. A task that is
/// run in place, where another task waits for it, finds the value of that worker.
///
/// When the last handle is dropped, all values are, on that thread.
///
/// ```
/// use executor_core::{ThreadPoolExecutor, WorkerLocal};
/// use std::cell::RefCell;
///
/// let pool = ThreadPoolExecutor::new(2)?;
/// let scratch = WorkerLocal::new(|| RefCell::new(String::new()));
/// let lengths = pool.map(
///     move |n: usize| {
///         scratch.with(|scratch| {
///             let mut text = scratch.borrow_mut();
///             text.clear(); // its memory is used again
///             text.extend(std::iter::repeat_n('x', n));
///             text.len()
///         })
///     },
///     0..100,
/// );
/// assert_eq!(lengths.sum::<Result<usize, _>>()?, 4950);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct WorkerLocal<T: Send + 'static> {
    shared: Arc<Shared<T>>,
}

struct Shared<T: Send> {
    values: ThreadLocal<Entry<T>>,
    init: Box<dyn Fn() -> T + Send + Sync>,
    /// The values of threads that have ended, if they are kept.
    ended: Option<Mutex<Vec<T>>>,
}

struct Entry<T> {
    /// The thread whose value it is; places are used again.
    owner: Cell<ThreadSlot>,
    /// Borrowed while it is used, by several calls if one is inside the other; changed by its owner alone.
    value: RefCell<Option<T>>,
}

impl<T: Send + 'static> WorkerLocal<T> {
    /// Values made by `init`, and dropped when their worker ends.
    ///
    /// ```
    /// let counter = executor_core::WorkerLocal::new(|| std::cell::Cell::new(0));
    /// counter.with(|count| count.set(count.get() + 1));
    /// assert_eq!(counter.with(std::cell::Cell::get), 1);
    /// ```
    pub fn new(init: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self::build(init, None)
    }

    /// Values made by `init`, and kept when their worker ends: [`drain`](Self::drain) hands them out.
    ///
    /// ```
    /// use executor_core::{ThreadPoolExecutor, WorkerLocal};
    /// use std::cell::Cell;
    ///
    /// let pool = ThreadPoolExecutor::new(4)?;
    /// let sums = WorkerLocal::collecting(|| Cell::new(0));
    /// let inside = sums.clone();
    /// pool.map(move |n: u32| inside.with(|sum| sum.set(sum.get() + n)), 0..1000).for_each(drop);
    /// pool.shutdown();
    /// assert_eq!(sums.drain().into_iter().map(Cell::into_inner).sum::<u32>(), 499_500);
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn collecting(init: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self::build(init, Some(Mutex::new(Vec::new())))
    }

    fn build(init: impl Fn() -> T + Send + Sync + 'static, ended: Option<Mutex<Vec<T>>>) -> Self {
        Self { shared: Arc::new(Shared { values: ThreadLocal::new(), init: Box::new(init), ended }) }
    }

    /// Calls `f` with this thread's value, which is made now if there is none.
    ///
    /// # Panics
    ///
    /// If the closure that makes the values panics, or `f`: the next call tries again.
    ///
    /// ```
    /// let name = executor_core::WorkerLocal::new(|| std::thread::current().name().map(str::to_owned));
    /// let pool = executor_core::ThreadPoolExecutor::builder().max_workers(1).name_prefix("loom").build()?;
    /// let of_worker = pool.spawn(move || name.with(Clone::clone)).result();
    /// assert_eq!(of_worker.unwrap().as_deref(), Some("loom-0"));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let shared = &self.shared;
        let entry = shared.values.get_or(Entry::default);
        if entry.owner.get() != ThreadSlot::current() {
            shared.let_go(entry); // of a thread that is gone
            entry.owner.set(ThreadSlot::current());
        }
        if entry.value.borrow().is_none() {
            let made = (shared.init)(); // nothing is borrowed: it may come here itself
            let first = entry.value.borrow().is_none();
            if first {
                entry.value.replace(Some(made));
                let table: Weak<Shared<T>> = Arc::downgrade(shared);
                hold(table);
            }
        }
        f(entry.value.borrow().as_ref().expect("it was just seen or made, and only this thread takes it"))
    }

    /// Takes the values of the workers that have ended, in the order they ended: after a shutdown, of all the pool's. Only
    /// a [`collecting`](Self::collecting) one has any.
    ///
    /// ```
    /// use executor_core::{ThreadPoolExecutor, WorkerLocal};
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// let names = WorkerLocal::collecting(|| "a worker was here");
    /// let inside = names.clone();
    /// pool.spawn(move || inside.with(|_| ())).wait();
    /// pool.shutdown();
    /// assert_eq!(names.drain(), ["a worker was here"]);
    /// assert!(names.drain().is_empty());
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    #[must_use = "the values are taken out; to drop them, drop what this returns"]
    pub fn drain(&self) -> Vec<T> {
        self.shared.ended.as_ref().map(|ended| std::mem::take(&mut *ended.lock())).unwrap_or_default()
    }
}

impl<T: Send + 'static> Clone for WorkerLocal<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Send + 'static> fmt::Debug for WorkerLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerLocal").field("collects", &self.shared.ended.is_some()).finish_non_exhaustive()
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self { owner: Cell::new(ThreadSlot::current()), value: RefCell::new(None) }
    }
}

impl<T: Send> Shared<T> {
    /// Drops or keeps a value whose thread ends.
    fn let_go(&self, entry: &Entry<T>) {
        let Some(value) = entry.value.take() else { return };
        match &self.ended {
            Some(ended) => ended.lock().push(value),
            None => panic_report::swallow(|| drop(value)),
        }
    }
}

/// A table in which a thread may have a value.
trait Table {
    /// This thread ends.
    fn leave(&self);
}

impl<T: Send> Table for Shared<T> {
    fn leave(&self) {
        let own = self.values.get().filter(|entry| entry.owner.get() == ThreadSlot::current());
        if let Some(entry) = own {
            self.let_go(entry);
        }
    }
}

/// The tables in which this thread has a value.
#[derive(Default)]
struct Held(RefCell<Vec<Weak<dyn Table>>>);

thread_local! {
    static HELD: Held = Held::default();
}

impl Drop for Held {
    fn drop(&mut self) {
        leave_all(self.0.take());
    }
}

/// This thread has a value in `table` from now on.
fn hold(table: Weak<dyn Table>) {
    // Not there any more only while the thread is being torn down: then the value goes with the handle, or with the next
    // thread in its place.
    let _ = HELD.try_with(|held| {
        let mut tables = held.0.borrow_mut();
        if tables.len() == tables.capacity() {
            tables.retain(|table| table.strong_count() > 0);
        }
        tables.push(table);
    });
}

/// A worker ends: its values go, while everything is still there that they may need.
pub(crate) fn leave() {
    if let Ok(tables) = HELD.try_with(|held| held.0.take()) {
        leave_all(tables);
    }
}

fn leave_all(tables: Vec<Weak<dyn Table>>) {
    for table in tables.iter().rev() {
        // The last made goes first. A handle that is dropped meanwhile may leave this as the last one, with destructors
        // of its own.
        panic_report::swallow(|| {
            if let Some(table) = table.upgrade() {
                table.leave();
            }
        });
    }
}
