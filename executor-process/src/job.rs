//! A job: calls of one function that were submitted together, encoded, with the future they complete.
//!
//! A `submit` is a job of one item, a chunk of a `map` one of many. The dispatcher hands a job out in [`Part`]s, ranges of
//! its items, which may be split, taken back and handed out again; each item is answered exactly once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use executor_core::counters::Ending;
use executor_core::fork::PoolId;
use executor_core::{
    CallLimits, CallOptions, Callable, Callee, Chunk, PanicReport, Payload, Promise, TaskError, TaskFuture,
};

use crate::attach;
use crate::bulk::Body;
use crate::call::{self, Name};
use crate::ring::Records;
use crate::share::{self, Segment};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};
use crate::wire::{CallHead, Panic, Status, take_word};
use executor_core::codec;

/// Calls submitted together. What they are does not change; what has become of them is under a lock, which only whoever
/// holds the dispatcher's [`Core`](crate::dispatcher::Core) takes: so nobody ever waits for it, and the user's code, which
/// runs under it where a result is decoded and a future completed, cannot come back to it.
pub(crate) struct Job<C: ?Sized = dyn Completion> {
    pub(crate) head: CallHead,
    arguments: Encoded,
    extras: Option<Box<Extras>>,
    order: AtomicU64,
    state: Mutex<State<C>>,
}

/// What few jobs have.
#[derive(Default)]
struct Extras {
    context: Option<EncodedContext>,
    segments: Vec<Arc<Segment>>,
    descriptors: Vec<(usize, Arc<OwnedFd>)>,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    retries: u32,
    priority: i32,
    limits: CallLimits,
    label: Option<Arc<str>>,
}

/// What has become of a job.
struct State<C: ?Sized> {
    stage: Stage,
    is_in_queue: bool,
    /// How often a worker died with this job next in its way.
    falls: u32,
    answered: usize,
    run_time: Duration,
    trouble: Option<Box<Trouble>>,
    completion: C,
}

/// What few jobs get into.
#[derive(Default)]
struct Trouble {
    /// How often a worker died at an item, for those at which one did.
    deaths: BTreeMap<usize, u32>,
    /// Why no part of it is handed out any more: its deadline, or `abort`.
    doom: Option<TaskError>,
}

/// A context as it travels; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct EncodedContext {
    pub(crate) descriptor: u64,
    encoded: Arc<[u8]>,
    start: usize,
}

impl EncodedContext {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.encoded[self.start..]
    }
}

/// The future's side of a job.
pub(crate) trait Completion: Send {
    /// The task's id; 0 when the future is over.
    fn id(&self) -> usize;
    fn attend(&self);
    fn reserve(&self) -> bool;
    fn unreserve(&self);
    fn set_running(&self);
    /// Whether the future is over, or was cancelled.
    fn is_over(&self) -> bool;
    /// Decodes the answer to an item, or takes its error.
    fn answer(&mut self, item: usize, answer: Result<Body<'_>, TaskError>);
    /// Decodes the results of consecutive items.
    fn answer_all(&mut self, first: usize, results: &mut Records<'_>);
    /// Every item is answered.
    fn complete(&mut self, run_time: Duration);
    /// Ends the future whatever is missing.
    fn fail(&mut self, error: TaskError);
    /// Ends a future that has not started as cancelled.
    fn cancel(&mut self);
}

/// What a submit came to before it reached the pool.
pub(crate) struct Prepared<T> {
    pub(crate) future: TaskFuture<T>,
    /// Nothing if the future holds an error already.
    pub(crate) job: Option<Arc<Job>>,
}

/// Encodes one call (S8: here, in the submitting thread).
pub(crate) fn one<C, A, R>(
    pool: PoolId,
    call: &Callable<C, A, R>,
    argument: A,
    options: &CallOptions,
    limit: u64,
) -> Prepared<R>
where
    C: Payload + Sync,
    A: Payload,
    R: Payload,
{
    let (promise, future) = Promise::of_pool(pool, options.label.clone());
    let mut arguments =
        Arguments { bytes: SCRATCH.try_with(Cell::take).unwrap_or_default(), ..Arguments::default() };
    let encoded = arguments.push(argument, limit);
    let completion = One { promise: Some(promise), outcome: None };
    let job = job(call, arguments, options, limit, completion, encoded.err());
    Prepared { future, job: job.map(|job| job as Arc<Job>) }
}

/// Encodes a chunk of calls. An argument that cannot be encoded is that item's failure alone.
pub(crate) fn many<C, A, R>(
    pool: PoolId,
    call: &Callable<C, A, R>,
    items: Vec<A>,
    options: &CallOptions,
    limit: u64,
) -> Prepared<Chunk<R>>
where
    C: Payload + Sync,
    A: Payload,
    R: Payload,
{
    let (promise, future) = Promise::of_pool(pool, options.label.clone());
    let mut arguments = Arguments::default();
    // About what they will need, for small ones.
    let size = (size_of::<u64>() + size_of::<A>()).saturating_mul(items.len());
    arguments.bytes.reserve(size.min(MOST_RESERVED));
    let mut completion = Many::new(promise, items.len());
    for (place, item) in items.into_iter().enumerate() {
        match arguments.push(item, limit) {
            Ok(()) => completion.accept(place),
            Err(error) => completion.refuse(place, error),
        }
    }
    if arguments.ends.len() == 0 {
        completion.complete(Duration::ZERO); // nothing left to run
        return Prepared { future, job: None };
    }
    let job = job(call, arguments, options, limit, completion, None);
    Prepared { future, job: job.map(|job| job as Arc<Job>) }
}

/// A job that completes by `completion`; none if it ends before it has begun, of this problem or another.
fn job<P, C, A, R>(
    call: &Callable<C, A, R>,
    arguments: Arguments,
    options: &CallOptions,
    limit: u64,
    mut completion: P,
    problem: Option<TaskError>,
) -> Option<Arc<Job<P>>>
where
    P: Completion,
    C: Payload + Sync,
    A: Payload,
    R: Payload,
{
    let Arguments { bytes, ends, mut segments, descriptors } = arguments;
    let arguments = Encoded::new(bytes, ends);
    let named = problem.map_or_else(
        || call::name_of(call).and_then(|name| Ok((name, context_of(call, name, limit, &mut segments)?))),
        Err,
    );
    let (name, context) = match named {
        Ok(named) => named,
        Err(error) => {
            completion.fail(error);
            return None;
        }
    };
    let has_options = options.timeout.is_some()
        || options.deadline.is_some()
        || (options.retries, options.priority) != (0, 0)
        || options.limits != CallLimits::default()
        || options.label.is_some();
    let has_extras = has_options || context.is_some() || !segments.is_empty() || !descriptors.is_empty();
    let head = CallHead {
        descriptor: name.descriptor,
        function: name.function,
        context: context.as_ref().map_or(0, |(id, _)| *id),
    };
    let extras = || Extras {
        context: context.map(|(_, context)| context),
        segments,
        descriptors,
        timeout: options.timeout,
        deadline: options.deadline,
        retries: options.retries,
        priority: options.priority,
        limits: options.limits,
        label: options.label.clone(),
    };
    Some(Arc::new(Job {
        head,
        arguments,
        extras: has_extras.then(|| Box::new(extras())),
        order: AtomicU64::new(0),
        state: Mutex::new(State {
            stage: Stage::Queued,
            is_in_queue: true,
            falls: 0,
            answered: 0,
            run_time: Duration::ZERO,
            trouble: None,
            completion,
        }),
    }))
}

/// The encoded context of a call, made once for all its calls: the ids of the shared memory it refers to, behind their
/// number, and then the context.
fn context_of<C, A, R>(
    call: &Callable<C, A, R>,
    name: Name,
    limit: u64,
    segments: &mut Vec<Arc<Segment>>,
) -> Result<Option<(u64, EncodedContext)>, TaskError>
where
    C: Payload + Sync,
    A: Payload,
    R: Payload,
{
    let Callee::WithContext(context, _) = call.callee() else { return Ok(None) };
    let encoded = context.encoded.get_or_init(|| {
        let mut bytes = Vec::new();
        let (encoded, attachments) = attach::collect(|| codec::encode(&context.value, &mut bytes));
        encoded.map_err(TaskError::Encode)?;
        check_size(bytes.len(), limit)?;
        if !attachments.descriptors.is_empty() {
            let problem = "a descriptor in a context, which may go to any number of workers";
            return Err(TaskError::Encode(problem.into()));
        }
        let mut whole = Vec::with_capacity(bytes.len() + (1 + attachments.segments.len()) * size_of::<u64>());
        whole.extend_from_slice(&(attachments.segments.len() as u64).to_ne_bytes());
        for segment in &attachments.segments {
            whole.extend_from_slice(&segment.id.to_ne_bytes());
        }
        whole.extend_from_slice(&bytes);
        Ok(whole.into())
    });
    let encoded = encoded.clone()?;
    let broken = || TaskError::Encode("the context is not as it was encoded".into());
    let (count, mut rest) = take_word(&encoded).ok_or_else(broken)?;
    for _ in 0..count {
        let (id, behind) = take_word(rest).ok_or_else(broken)?;
        rest = behind;
        // The context holds it, so it is there.
        segments.push(share::find(id).map_err(|problem| TaskError::Encode(problem.into()))?);
    }
    let start = encoded.len() - rest.len();
    Ok(Some((context.id, EncodedContext { descriptor: name.descriptor, encoded, start })))
}

fn check_size(size: usize, limit: u64) -> Result<(), TaskError> {
    let size = size as u64;
    if size > limit { Err(TaskError::too_large(size, limit)) } else { Ok(()) }
}

#[derive(Default)]
struct Arguments {
    bytes: Vec<u8>,
    ends: Ends,
    segments: Vec<Arc<Segment>>,
    descriptors: Vec<(usize, Arc<OwnedFd>)>,
}

impl Arguments {
    fn push<A: Payload>(&mut self, argument: A, limit: u64) -> Result<(), TaskError> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; size_of::<u64>()]);
        let (encoded, attachments) = if codec::is_number::<A>() {
            (codec::encode_payload(&argument, &mut self.bytes), None)
        } else {
            let (encoded, attachments) =
                attach::collect(|| codec::encode_payload(&argument, &mut self.bytes));
            executor_core::panic_report::swallow(|| drop(argument));
            (encoded, Some(attachments).filter(|attachments| !attachments.is_empty()))
        };
        let size = self.bytes.len() - start - size_of::<u64>();
        if let Err(error) = encoded.map_err(TaskError::Encode).and_then(|()| check_size(size, limit)) {
            self.bytes.truncate(start);
            return Err(error);
        }
        self.bytes[start..][..size_of::<u64>()].copy_from_slice(&(size as u64).to_ne_bytes());
        if let Some(attachments) = attachments {
            for segment in attachments.segments {
                if !self.segments.iter().any(|other| Arc::ptr_eq(other, &segment)) {
                    self.segments.push(segment);
                }
            }
            let item = self.ends.len();
            self.descriptors.extend(attachments.descriptors.into_iter().map(|descriptor| (item, descriptor)));
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }
}

/// What was encoded of the arguments of a job: each behind its length, as they travel.
enum Encoded {
    /// Those of most jobs: of one item, in place.
    Short {
        length: u8,
        bytes: [u8; SHORT],
    },
    Long(Box<(Vec<u8>, Ends)>),
}

/// How much memory is asked for before a chunk is encoded, at most, in bytes.
const MOST_RESERVED: usize = 1 << 20;

/// The longest argument behind its length that is kept in place, in bytes.
const SHORT: usize = 30;

thread_local! {
    /// Where short arguments are encoded, so that they need no memory of their own.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Encoded {
    fn new(mut bytes: Vec<u8>, ends: Ends) -> Self {
        match u8::try_from(bytes.len()) {
            Ok(length) if ends.len() == 1 && bytes.len() <= SHORT => {
                let mut short = [0; SHORT];
                short[..bytes.len()].copy_from_slice(&bytes);
                bytes.clear();
                let _ = SCRATCH.try_with(|scratch| scratch.set(bytes));
                Self::Short { length, bytes: short }
            }
            _ => Self::Long(Box::new((bytes, ends))),
        }
    }

    fn items(&self) -> usize {
        match self {
            Self::Short { .. } => 1,
            Self::Long(long) => long.1.len(),
        }
    }

    fn of(&self, items: &Range<usize>) -> &[u8] {
        match self {
            Self::Short { length, bytes } if items.len() == 1 => &bytes[..usize::from(*length)],
            Self::Short { .. } => &[],
            Self::Long(long) => &long.0[long.1.after(items.start)..long.1.after(items.end)],
        }
    }
}

/// Where the arguments end. As long as they are of one size, as numbers are, that says it all.
#[derive(Default)]
struct Ends {
    size: usize,
    count: usize,
    /// All of them, if they are not.
    all: Vec<usize>,
}

impl Ends {
    #[inline]
    fn push(&mut self, end: usize) {
        if self.count == 0 {
            self.size = end;
        }
        self.count += 1;
        if self.all.is_empty() {
            if end == self.count * self.size {
                return;
            }
            self.all.extend((1..self.count).map(|count| count * self.size));
        }
        self.all.push(end);
    }

    const fn len(&self) -> usize {
        self.count
    }

    /// Where the first `count` arguments end together.
    fn after(&self, count: usize) -> usize {
        match count {
            0 => 0,
            _ if self.all.is_empty() => count * self.size,
            _ => self.all[count - 1],
        }
    }
}

/// So many workers in a row that die before they begin a job are the job's fault: its argument does not even fit into
/// them. Fewer would blame it for workers that were killed at random.
const MOST_FALLS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    Reserved,
    Running,
    Over,
}

impl Job {
    /// Where it stands in the queue among those of its priority; kept when parts of it come back.
    pub(crate) fn order(&self) -> u64 {
        // ORDERING: relaxed: written before the job was given to the dispatcher, through a lock.
        self.order.load(Ordering::Relaxed)
    }

    /// Gives it its place, before anybody asks for it.
    pub(crate) fn set_order(&self, order: u64) {
        // ORDERING: relaxed, see `order`.
        self.order.store(order, Ordering::Relaxed);
    }

    pub(crate) fn id(&self) -> usize {
        self.state.lock().completion.id()
    }

    /// Whether it is one call that no clock looks after.
    pub(crate) fn is_simple(&self) -> bool {
        self.items() == 1 && self.timeout().is_none() && self.deadline().is_none()
    }

    /// Who waits for it is to ask the pool first.
    pub(crate) fn attend(&self) {
        self.state.lock().completion.attend();
    }

    pub(crate) fn items(&self) -> usize {
        self.arguments.items()
    }

    /// The encoded arguments of a range of items, each behind its length.
    pub(crate) fn arguments(&self, items: &Range<usize>) -> &[u8] {
        self.arguments.of(items)
    }

    pub(crate) fn context(&self) -> Option<&EncodedContext> {
        self.extras.as_ref()?.context.as_ref()
    }

    /// Shared memory the arguments and the context refer to: it lives as long as the job.
    pub(crate) fn segments(&self) -> &[Arc<Segment>] {
        self.extras.as_ref().map_or(&[], |extras| &extras.segments)
    }

    /// Descriptors that are part of the argument of an item, in the order of the items; closed when the job is over.
    pub(crate) fn descriptors(&self) -> &[(usize, Arc<OwnedFd>)] {
        self.extras.as_ref().map_or(&[], |extras| &extras.descriptors)
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.extras.as_ref()?.timeout
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.extras.as_ref()?.deadline
    }

    pub(crate) fn retries(&self) -> u32 {
        self.extras.as_ref().map_or(0, |extras| extras.retries)
    }

    pub(crate) fn priority(&self) -> i32 {
        self.extras.as_ref().map_or(0, |extras| extras.priority)
    }

    pub(crate) fn limits(&self) -> CallLimits {
        self.extras.as_ref().map_or_else(CallLimits::default, |extras| extras.limits)
    }

    pub(crate) fn label(&self) -> Option<&str> {
        self.extras.as_ref()?.label.as_deref()
    }

    /// Whether it is still wanted. If not, why no more of it is to be handed out; none if its future was cancelled, or ended
    /// before.
    pub(crate) fn wanted(&self) -> Result<(), Option<TaskError>> {
        let state = self.state.lock();
        if state.is_over() {
            return Err(None);
        }
        match state.trouble.as_ref().and_then(|trouble| trouble.doom.clone()) {
            None => Ok(()),
            doom => Err(doom),
        }
    }

    /// It is about to be handed to a worker: from here it cannot be cancelled.
    pub(crate) fn reserve(&self) -> Reserved {
        let mut state = self.state.lock();
        let is_granted = match state.stage {
            Stage::Queued => state.completion.reserve(),
            Stage::Reserved | Stage::Running => !state.completion.is_over(),
            Stage::Over => false,
        };
        if is_granted && state.stage == Stage::Queued {
            state.stage = Stage::Reserved;
        }
        Reserved { is_granted, left_queue: std::mem::take(&mut state.is_in_queue) }
    }

    /// What was handed out has not begun, and was taken back.
    pub(crate) fn unreserve(&self) {
        self.state.lock().unreserve();
    }

    /// A worker is at one of its items. Says whether it is the first time.
    pub(crate) fn start(&self) -> bool {
        self.state.lock().start()
    }

    /// What has not begun of it ends with this error; the first reason stays.
    pub(crate) fn condemn(&self, error: &TaskError) {
        self.state.lock().trouble().doom.get_or_insert_with(|| error.clone());
    }

    pub(crate) fn doom(&self) -> Option<TaskError> {
        self.state.lock().trouble.as_ref()?.doom.clone()
    }

    /// Counts a worker that died at this item: how many have by now.
    pub(crate) fn count_death(&self, item: usize) -> u32 {
        let mut state = self.state.lock();
        let count = state.trouble().deaths.entry(item).or_default();
        *count += 1;
        *count
    }

    /// Counts a worker that died before it had begun this job, which was next; says whether that may be chance.
    pub(crate) fn may_fall_again(&self) -> bool {
        let mut state = self.state.lock();
        state.falls += 1;
        state.falls < MOST_FALLS
    }

    /// An item is answered; says how the whole came out if it was the last one.
    #[must_use]
    pub(crate) fn answer(
        &self,
        item: usize,
        answer: Result<Body<'_>, TaskError>,
        took: Duration,
    ) -> Option<Finished<'_>> {
        let mut state = self.state.lock();
        if state.stage == Stage::Over {
            return None;
        }
        let ending =
            if matches!(answer, Err(TaskError::Panicked(_))) { Ending::Panicked } else { Ending::Returned };
        state.completion.answer(item, answer);
        state.answered += 1;
        state.run_time += took;
        (state.answered == self.items()).then_some(Finished { job: self, ending })
    }

    /// Consecutive items have returned. If the last one is among them, says how the whole came out.
    pub(crate) fn answer_all(&self, first: usize, results: &mut Records<'_>) -> Answered<'_> {
        let mut state = self.state.lock();
        let has_started = state.start();
        if state.stage == Stage::Over {
            results.for_each(drop);
            return Answered { has_started, finished: None };
        }
        state.completion.answer_all(first, results);
        state.answered += usize::try_from(results.count).unwrap_or(usize::MAX);
        state.run_time += Duration::from_nanos(results.time);
        let is_last = state.answered == self.items();
        let finished = is_last.then_some(Finished { job: self, ending: Ending::Returned });
        Answered { has_started, finished }
    }

    /// Ends the future with `error`, whatever is missing.
    pub(crate) fn fail(&self, error: TaskError) -> Ended {
        self.end(|completion| completion.fail(error))
    }

    /// Cancels a job that has not started.
    pub(crate) fn cancel(&self) -> Ended {
        self.unreserve();
        self.end(|completion| completion.cancel())
    }

    /// Refuses it before it reached the dispatcher.
    pub(crate) fn refuse(&self, error: TaskError) {
        self.state.lock().completion.fail(error);
    }

    /// Whether a worker is, or was, at one of its items.
    pub(crate) fn has_started(&self) -> bool {
        self.state.lock().stage == Stage::Running
    }

    fn end(&self, end: impl FnOnce(&mut dyn Completion)) -> Ended {
        let mut state = self.state.lock();
        let before = match std::mem::replace(&mut state.stage, Stage::Over) {
            Stage::Over => return Ended::Before,
            _ if state.completion.is_over() => Ended::Before,
            Stage::Queued | Stage::Reserved => Ended::Unstarted,
            Stage::Running => Ended::Running,
        };
        end(&mut state.completion);
        before
    }

    /// Whether it held its place in a bounded queue until now.
    pub(crate) fn leave_queue(&self) -> bool {
        std::mem::take(&mut self.state.lock().is_in_queue)
    }
}

impl<C: Completion + ?Sized> State<C> {
    fn is_over(&self) -> bool {
        self.stage == Stage::Over || self.completion.is_over()
    }

    fn start(&mut self) -> bool {
        let first = self.stage == Stage::Reserved;
        if first {
            // Reserved, so it cannot have been cancelled.
            self.completion.set_running();
            self.stage = Stage::Running;
        }
        first
    }

    fn unreserve(&mut self) {
        if self.stage == Stage::Reserved {
            self.completion.unreserve();
            self.stage = Stage::Queued;
        }
    }

    fn trouble(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }
}

/// What asking for a job came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// False if it was cancelled, or is over.
    pub(crate) is_granted: bool,
    /// Whether it held its place in a bounded queue until now.
    pub(crate) left_queue: bool,
}

/// What some answers came to.
pub(crate) struct Answered<'a> {
    /// Whether these are the first sign of its start.
    pub(crate) has_started: bool,
    pub(crate) finished: Option<Finished<'a>>,
}

/// Where a job was when it was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was over, or cancelled by its future.
    Before,
    Unstarted,
    Running,
}

/// The proof that every item is answered. Count it, then tell the future.
#[must_use = "until it is published, everybody waits"]
pub(crate) struct Finished<'a> {
    job: &'a Job,
    pub(crate) ending: Ending,
}

impl Finished<'_> {
    pub(crate) fn order(&self) -> u64 {
        self.job.order()
    }

    pub(crate) fn publish(self) {
        let mut state = self.job.state.lock();
        state.stage = Stage::Over;
        let run_time = state.run_time;
        state.completion.complete(run_time);
    }
}

/// A range of a job's items that is queued, or with a worker.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) job: Arc<Job>,
    pub(crate) items: Range<usize>,
}

impl Part {
    pub(crate) fn whole(job: Arc<Job>) -> Self {
        let items = 0..job.items();
        Self { job, items }
    }

    /// Cuts off what is beyond `most` items.
    pub(crate) fn split_off(&mut self, most: usize) -> Option<Self> {
        if self.items.len() <= most {
            return None;
        }
        let middle = self.items.start + most;
        let rest = Self { job: Arc::clone(&self.job), items: middle..self.items.end };
        self.items.end = middle;
        Some(rest)
    }
}

/// What a reply says, as a result or an error.
pub(crate) fn read_answer<'a>(
    status: Status,
    body: &'a [u8],
    worker: &str,
    label: Option<&str>,
    limit: u64,
) -> Result<&'a [u8], TaskError> {
    let text = || String::from_utf8_lossy(body).into_owned().into_boxed_str();
    Err(match status {
        Status::Returned => return Ok(body),
        Status::Panicked => match codec::decode::<Panic>(body) {
            Ok(panic) => {
                let mut report = PanicReport::new(panic.message);
                report.file = panic.file;
                report.line = panic.line;
                report.column = panic.column;
                report.backtrace = panic.backtrace;
                worker.clone_into(&mut report.worker);
                report.label = label.map(str::to_owned);
                TaskError::Panicked(report)
            }
            Err(problem) => TaskError::Decode(problem),
        },
        Status::EncodeFailed => TaskError::Encode(text()),
        Status::DecodeFailed => TaskError::Decode(text()),
        Status::Failed => TaskError::Broken(text()),
        Status::TooLarge => {
            let size = take_word(body).map_or(0, |(size, _)| size);
            TaskError::too_large(size, limit)
        }
    })
}

/// What both kinds of completions leave to their promise.
macro_rules! by_promise {
    () => {
        fn id(&self) -> usize {
            self.promise.as_ref().map_or(0, Promise::id)
        }

        fn attend(&self) {
            if let Some(promise) = &self.promise {
                promise.attend();
            }
        }

        fn reserve(&self) -> bool {
            self.promise.as_ref().is_some_and(Promise::reserve)
        }

        fn unreserve(&self) {
            if let Some(promise) = &self.promise {
                promise.unreserve();
            }
        }

        fn set_running(&self) {
            let _ = self.promise.as_ref().map(Promise::set_running);
        }

        fn is_over(&self) -> bool {
            self.promise.as_ref().is_none_or(Promise::is_cancelled)
        }
    };
}

struct One<R> {
    promise: Option<Promise<R>>,
    outcome: Option<Result<R, TaskError>>,
}

impl<R: Payload> Completion for One<R> {
    by_promise!();

    fn answer(&mut self, _: usize, answer: Result<Body<'_>, TaskError>) {
        self.outcome = Some(answer.and_then(Body::decode));
    }

    fn answer_all(&mut self, first: usize, results: &mut Records<'_>) {
        if let Some(bytes) = results.next() {
            self.answer(first, Ok(Body::Here(bytes)));
        }
    }

    fn complete(&mut self, _: Duration) {
        if let (Some(promise), Some(outcome)) = (self.promise.take(), self.outcome.take()) {
            promise.complete(outcome);
        }
    }

    fn fail(&mut self, error: TaskError) {
        if let Some(promise) = self.promise.take() {
            promise.complete(Err(error));
        }
    }

    fn cancel(&mut self) {
        if let Some(promise) = self.promise.take() {
            promise.cancel();
        }
    }
}

struct Many<R> {
    promise: Option<Promise<Chunk<R>>>,
    /// In the order of the items the user gave, as far as there is any; `Abandoned` where one is still missing in between.
    results: Vec<Result<R, TaskError>>,
    /// How many there will be.
    items: usize,
    /// Where the items that could be encoded stand among them, unless that is all of them.
    places: Option<Vec<usize>>,
}

impl<R: Payload> Many<R> {
    fn new(promise: Promise<Chunk<R>>, items: usize) -> Self {
        Self { promise: Some(promise), results: Vec::with_capacity(items), items, places: None }
    }

    /// The item at this place, behind all those before, is the next one of the job.
    fn accept(&mut self, place: usize) {
        if let Some(places) = &mut self.places {
            places.push(place);
        }
    }

    /// It is not part of the job.
    fn refuse(&mut self, place: usize, error: TaskError) {
        self.places.get_or_insert_with(|| (0..place).collect());
        self.put(place, Err(error));
    }

    fn put(&mut self, place: usize, result: Result<R, TaskError>) {
        if place >= self.results.len() {
            self.results.resize_with(place, || Err(TaskError::Abandoned));
            return self.results.push(result);
        }
        self.results[place] = result;
    }

    fn place_of(&self, item: usize) -> usize {
        self.places.as_ref().map_or(item, |places| places[item])
    }
}

impl<R: Payload> Completion for Many<R> {
    by_promise!();

    fn answer(&mut self, item: usize, answer: Result<Body<'_>, TaskError>) {
        self.put(self.place_of(item), answer.and_then(Body::decode));
    }

    fn answer_all(&mut self, first: usize, results: &mut Records<'_>) {
        let is_next = self.places.is_none() && first == self.results.len();
        for (item, bytes) in (first..).zip(results) {
            let result = codec::decode_payload(bytes);
            if is_next {
                // Each by itself: put together first and then moved, it would take twice the time.
                match result {
                    Ok(value) => self.results.push(Ok(value)),
                    Err(problem) => self.results.push(Err(TaskError::Decode(problem))),
                }
            } else {
                self.put(self.place_of(item), result.map_err(TaskError::Decode));
            }
        }
    }

    fn complete(&mut self, run_time: Duration) {
        if let Some(promise) = self.promise.take() {
            let mut results = std::mem::take(&mut self.results);
            results.resize_with(self.items, || Err(TaskError::Abandoned));
            promise.complete(Ok(Chunk::new(results, run_time)));
        }
    }

    fn fail(&mut self, error: TaskError) {
        let is_missing = |result: &Result<R, TaskError>| matches!(result, Err(TaskError::Abandoned));
        if self.results.iter().all(is_missing) {
            if let Some(promise) = self.promise.take() {
                promise.complete(Err(error));
            }
            return;
        }
        self.results.resize_with(self.items, || Err(TaskError::Abandoned));
        for result in self.results.iter_mut().filter(|result| is_missing(result)) {
            *result = Err(error.clone());
        }
        self.complete(Duration::ZERO);
    }

    fn cancel(&mut self) {
        if let Some(promise) = self.promise.take() {
            promise.cancel();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ends_of_one_size_and_of_several() {
        for sizes in [&[][..], &[3], &[3, 3, 3], &[3, 3, 5, 3], &[1, 2], &[4, 4, 4, 4, 1]] {
            let (mut ends, mut all) = (Ends::default(), vec![0]);
            for size in sizes {
                all.push(all[all.len() - 1] + size);
                ends.push(all[all.len() - 1]);
            }
            assert_eq!(ends.len(), sizes.len());
            let after: Vec<_> = (0..=sizes.len()).map(|count| ends.after(count)).collect();
            assert_eq!(after, all, "{sizes:?}");
        }
    }

    #[test]
    fn results_find_their_places_in_any_order() {
        let refused = || TaskError::Encode("refused".into());
        let (promise, future) = Promise::of_pool(PoolId::next(), None);
        let mut many = Many::<u32>::new(promise, 6);
        for place in 0..6 {
            if place % 3 == 1 { many.refuse(place, refused()) } else { many.accept(place) }
        }
        many.set_running();
        for (item, value) in [(3, 13_u32), (0, 10), (2, 12)] {
            many.answer(item, Ok(Body::Here(&value.to_ne_bytes())));
        }
        many.complete(Duration::ZERO);
        let results = future.result().unwrap().results;
        let told: Vec<_> =
            results.into_iter().map(|result| result.map_err(|error| error.to_string())).collect();
        let (refused, missing) = (Err(refused().to_string()), Err(TaskError::Abandoned.to_string()));
        assert_eq!(told, [Ok(10), refused.clone(), missing, Ok(12), refused, Ok(13)]);
    }

    #[test]
    fn a_failure_fills_what_is_missing_and_is_the_whole_if_nothing_is_there() {
        let many = |answered: &[usize]| {
            let (promise, future) = Promise::of_pool(PoolId::next(), None);
            let mut many = Many::<u32>::new(promise, 3);
            many.set_running();
            for item in answered {
                many.answer(*item, Ok(Body::Here(&7_u32.to_ne_bytes())));
            }
            many.fail(TaskError::Cancelled);
            future
                .result()
                .map(|chunk| chunk.results.into_iter().map(|result| result.ok()).collect::<Vec<_>>())
        };
        assert!(matches!(many(&[]), Err(TaskError::Cancelled)));
        assert_eq!(many(&[1]).unwrap(), [None, Some(7), None]);
        assert_eq!(many(&[0, 1]).unwrap(), [Some(7), Some(7), None]);
    }
}
