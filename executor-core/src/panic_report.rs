//! Catching a panic together with where it happened.
//!
//! `catch_unwind` hands over the payload alone; place and backtrace are visible only inside the panic hook, which is
//! one for the whole process. So the first pool installs a hook that notes them in a thread-local and then calls the
//! hook that was there before: whatever prints or reports panics today goes on doing so. [`catch`] reads the note. If
//! the program replaces the hook later, reports still carry the message, with an empty `file` and line 0.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::sync::Mutex;

/// A panic that ended a task: what was said, where, and on which worker.
///
/// ```
/// use executor_core::{TaskError, ThreadPoolExecutor};
///
/// let pool = ThreadPoolExecutor::builder().max_workers(1).name_prefix("press").build()?;
/// let outcome = pool.options().label("print").submit(|()| panic!("out of ink"), ()).result();
/// let Err(TaskError::Panicked(report)) = outcome else { unreachable!() };
/// assert_eq!(report.message, "out of ink");
/// assert_eq!(report.worker, "press-0");
/// assert_eq!(report.label.as_deref(), Some("print"));
/// assert!(report.line > 0);
/// # Ok::<(), executor_core::BuildError>(())
/// ```
pub struct PanicReport {
    details: Box<PanicDetails>,
}

/// What a [`PanicReport`] tells: its fields are read through the report itself, `report.message`.
///
/// ```
/// let report = executor_core::PanicReport::new("boom");
/// assert_eq!(report.message, "boom");
/// assert_eq!(report.line, 0); // not known
/// ```
#[non_exhaustive]
pub struct PanicDetails {
    /// What the panic said; for a payload that is no string, a text that says so.
    pub message: String,
    /// The source file, empty if it is not known.
    pub file: String,
    /// The line, counted from 1; 0 if it is not known.
    pub line: u32,
    /// The column, counted from 1; 0 if it is not known.
    pub column: u32,
    /// The stack at the panic, if `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` asked for one.
    pub backtrace: Option<String>,
    /// The name of the worker the task ran on.
    pub worker: String,
    /// The label of the task, if it had one.
    pub label: Option<String>,
    /// How many times the task was run, all of which ended in a panic; this is the last one. More than 1 only with
    /// [`retries`](crate::Options::retries), on threads.
    pub attempts: u32,
    payload: Payload,
}

/// What `panic!` threw. In a mutex only because the payload is not `Sync` and the report is to be.
type Payload = Mutex<Option<Box<dyn Any + Send>>>;

impl PanicReport {
    /// A report that knows only its message, for executors that learn of a panic in their own way.
    ///
    /// ```
    /// assert_eq!(executor_core::PanicReport::new("boom").to_string(), "boom");
    /// ```
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            details: Box::new(PanicDetails {
                message: message.into(),
                file: String::new(),
                line: 0,
                column: 0,
                backtrace: None,
                worker: String::new(),
                label: None,
                attempts: 1,
                payload: Mutex::new(None),
            }),
        }
    }

    /// What the task gave to `panic!`, for [`std::panic::resume_unwind`]. `None` if the panic happened in another
    /// process, or the payload was taken before.
    ///
    /// ```
    /// use executor_core::{TaskError, ThreadPoolExecutor};
    /// let pool = ThreadPoolExecutor::new(1)?;
    /// let outcome = pool.submit(|()| std::panic::panic_any(7_u8), ()).result();
    /// let Err(TaskError::Panicked(report)) = outcome else { unreachable!() };
    /// assert_eq!(report.take_payload().unwrap().downcast_ref(), Some(&7_u8));
    /// # Ok::<(), executor_core::BuildError>(())
    /// ```
    pub fn take_payload(&self) -> Option<Box<dyn Any + Send>> {
        self.details.payload.lock().take()
    }
}

/// A clone tells the same, but the payload stays with the original.
impl Clone for PanicReport {
    fn clone(&self) -> Self {
        let mut clone = Self::new(self.message.clone());
        clone.file.clone_from(&self.file);
        clone.line = self.line;
        clone.column = self.column;
        clone.backtrace.clone_from(&self.backtrace);
        clone.worker.clone_from(&self.worker);
        clone.label.clone_from(&self.label);
        clone.attempts = self.attempts;
        clone
    }
}

impl Deref for PanicReport {
    type Target = PanicDetails;

    fn deref(&self) -> &PanicDetails {
        &self.details
    }
}

impl DerefMut for PanicReport {
    fn deref_mut(&mut self) -> &mut PanicDetails {
        &mut self.details
    }
}

impl fmt::Display for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.line > 0 {
            write!(f, ", at {}:{}:{}", self.file, self.line, self.column)?;
        }
        if let Some(label) = &self.label {
            write!(f, ", in `{label}`")?;
        }
        if !self.worker.is_empty() {
            write!(f, ", on {}", self.worker)?;
        }
        if self.attempts > 1 {
            write!(f, ", after {} attempts", self.attempts)?;
        }
        Ok(())
    }
}

impl fmt::Debug for PanicDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PanicReport")
            .field("message", &self.message)
            .field("at", &format_args!("{}:{}:{}", self.file, self.line, self.column))
            .field("worker", &self.worker)
            .field("label", &self.label)
            .field("attempts", &self.attempts)
            .field("backtrace", &self.backtrace.as_deref().map(|_| ".."))
            .finish()
    }
}

impl fmt::Debug for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.details.fmt(f)
    }
}

impl Error for PanicReport {}

impl Drop for PanicReport {
    fn drop(&mut self) {
        // A payload may panic when it is dropped, and a report is dropped in places that must not unwind.
        if let Some(payload) = self.take_payload() {
            swallow(|| drop(payload));
        }
    }
}

/// Runs `work`; a panic becomes a report. The worker is named after the thread.
///
/// # Errors
///
/// The report of the panic, if `work` panicked.
pub fn catch<R>(work: impl FnOnce() -> R) -> Result<R, PanicReport> {
    if !INSTALLED.is_completed() {
        install_hook();
    }
    let depth = ACTIVE.get();
    ACTIVE.set(depth + 1);
    // A panic that is unwinding through here, if this is called by a destructor, keeps its own note.
    let outer = if IS_NOTED.get() { exchange_note(None) } else { None };
    let caught = catch_unwind(AssertUnwindSafe(work));
    ACTIVE.set(depth);
    let place = if IS_NOTED.get() || outer.is_some() { exchange_note(outer) } else { None };
    caught.map_err(|payload| report_of(payload, place))
}

#[cold]
fn exchange_note(place: Option<Place>) -> Option<Place> {
    IS_NOTED.set(place.is_some());
    PLACE.try_with(|slot| slot.replace(place)).ok().flatten()
}

/// What [`forward`] throws.
struct Forwarded(PanicReport);

/// Goes on with a panic that was caught here: the `catch` further out returns this very report.
pub(crate) fn forward(report: PanicReport) -> ! {
    std::panic::resume_unwind(Box::new(Forwarded(report)))
}

/// Runs `work`, whose panic nobody asked about: destructors of values that are being thrown away.
pub fn swallow(work: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
        // The payload's own destructor gets one chance; a second panic's payload is leaked, never dropped.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
    }
}

#[cold]
fn report_of(payload: Box<dyn Any + Send>, place: Option<Place>) -> PanicReport {
    let payload = match payload.downcast::<Forwarded>() {
        Ok(forwarded) => return forwarded.0,
        Err(payload) => payload,
    };
    let mut report = PanicReport::new(message_of(&*payload));
    // The note may be of an earlier panic, which the task caught itself, if this one went around the hook.
    if let Some(place) = place.filter(|place| place.message == report.message) {
        report.file = place.file;
        report.line = place.line;
        report.column = place.column;
        report.backtrace = place.backtrace;
    }
    report.worker = std::thread::current().name().unwrap_or("<unnamed>").to_owned();
    *report.payload.lock() = Some(payload);
    report
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic with a payload that is no string".to_owned()
    }
}

struct Place {
    message: String,
    file: String,
    line: u32,
    column: u32,
    backtrace: Option<String>,
}

thread_local! {
    /// How many `catch`es are on this thread's stack: outside of them the hook notes nothing.
    static ACTIVE: Cell<usize> = const { Cell::new(0) };
    /// Whether there is a note, so that nobody looks for nothing.
    static IS_NOTED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

static INSTALLED: Once = Once::new();

#[cold]
fn install_hook() {
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if ACTIVE.try_with(Cell::get).is_ok_and(|active| active > 0) {
                let backtrace = Backtrace::capture();
                let place = Place {
                    message: message_of(info.payload()),
                    file: info.location().map_or_else(String::new, |l| l.file().to_owned()),
                    line: info.location().map_or(0, std::panic::Location::line),
                    column: info.location().map_or(0, std::panic::Location::column),
                    backtrace: (backtrace.status() == BacktraceStatus::Captured)
                        .then(|| backtrace.to_string()),
                };
                // Not there any more only while the thread is being torn down: then nobody reads it either.
                exchange_note(Some(place));
            }
            previous(info);
        }));
    });
}
