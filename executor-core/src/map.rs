//! `Map`: the results of one function on many items.
//!
//! # The window
//!
//! `taken - yielded` items are ahead of the consumer. With a `buffer_size` that never exceeds it; without, as many chunks a
//! worker are on their way as keep it busy for [`WINDOW_TIME`], from [`FEWEST_FLIGHTS`] to [`MOST_FLIGHTS`]. The window is filled
//! when the map is made, and again when a place in it is free, before the next result is handed out: so the workers do
//! not wait for the consumer to ask, and an endless input is never read further than that. They still wait for it to
//! get a core, where they have all of them.
//!
//! # The size of a chunk
//!
//! The first items travel one by one. Each chunk that comes back says how long its calls took together; the next
//! chunks are made as large as fits into [`CHUNK_TIME`], and no larger than a fair share of what is left, so that the
//! cost of a message disappears and the tail stays balanced. They grow step by step, by [`GROWTH`] from what was measured:
//! where a whole window of cheap items comes back at once, those behind it may be dear. Time limits are for an item, so items
//! that have one travel alone.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::time::Duration;

use crate::call::{CallOptions, Chunk};
use crate::error::TaskError;
use crate::future::TaskFuture;
use crate::sync::Arc;
use crate::wait::{AsFuture, Group};

/// How long the chunks on their way should keep a worker busy. The consumer may wait for a core for a turn of the system's
/// scheduler, about 4 ms, while the workers use them all; shorter lets them run dry then, each time. Longer reads
/// further ahead.
const WINDOW_TIME: Duration = Duration::from_millis(16);

/// Chunks on their way for each worker, at least: one it runs and some behind it. More reads further ahead of slow calls,
/// and cancels later; fewer lets workers run dry while the consumer works on a result.
const FEWEST_FLIGHTS: usize = 4;

/// And at most, where items are too cheap to fill the time.
const MOST_FLIGHTS: usize = 16;

/// Items on their way for each worker, unless the fewest chunks have more.
const MOST_AHEAD: usize = FEWEST_FLIGHTS * LARGEST_CHUNK;

/// How much larger than a measured chunk the next ones may be. More believes the first items too easily; less is slow to
/// get to cheap ones.
const GROWTH: usize = 8;

/// How long the calls of one chunk should take. Longer balances worse at the end; shorter pays more for messages: at
/// about 2 µs for one, 200 µs is 1 %.
const CHUNK_TIME: Duration = Duration::from_micros(1000);

/// The largest chunk without a `chunk_size`, for items too cheap to measure.
const LARGEST_CHUNK: usize = 4096;

/// The results of one function on many items, as an iterator of `Result<R, TaskError>`.
///
/// Made by `map`. The work starts at once. Results come in the order of the items (with
/// [`unordered`](crate::Options::unordered), as they are ready); an item that fails yields its error in its place and
/// the rest goes on. Dropping it cancels what has not started. It keeps its executor alive. After a shutdown every further
/// item yields `ShutDown`; an input without an end is then read no further.
///
/// ```
/// use executor_core::ThreadPoolExecutor;
///
/// let pool = ThreadPoolExecutor::new(2)?;
/// let squares = pool.map(|n: u32| n * n, 0..100);
/// assert_eq!(squares.len(), 100);
/// assert_eq!(squares.sum::<Result<u32, _>>()?, 328_350);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the results are lost, and dropping the map cancels what has not started"]
pub struct Map<I: Iterator, M: Mapper<I::Item>> {
    items: I,
    mapper: M,
    options: CallOptions,
    /// The window, in items, if one was asked for.
    buffer: Option<usize>,
    /// The size of the next chunk.
    chunk: usize,
    /// How many of them may be on their way for each worker.
    flights_per_worker: usize,
    /// Whether `chunk` follows the measured cost.
    is_adaptive: bool,
    /// Items taken from the input and not yielded yet.
    ahead: usize,
    is_exhausted: bool,
    /// The chunk that is being filled. Here, so that an input that panics loses none of it.
    loading: Vec<I::Item>,
    /// Chunks on their way, in order; when unordered, `None` where one has landed.
    flights: VecDeque<Option<Flight<M::Output>>>,
    /// How many of `flights` are on their way.
    aloft: usize,
    /// Tells which chunk lands next, when unordered; `landed_before` chunks have left the front of `flights`.
    group: Option<Arc<Group>>,
    landed_before: usize,
    /// Results of the chunk that landed last.
    ready: std::vec::IntoIter<Result<M::Output, TaskError>>,
    /// The result that is about to be yielded.
    held: Option<Result<M::Output, TaskError>>,
}

struct Flight<R> {
    future: TaskFuture<Chunk<R>>,
    items: usize,
}

impl<R> AsFuture<Chunk<R>> for Option<Flight<R>> {
    fn future(&self) -> Option<&TaskFuture<Chunk<R>>> {
        self.as_ref().map(|flight| &flight.future)
    }
}

/// Where a [`Map`] sends its items. Implemented here, for executors and for the thread pool's closures.
///
/// ```
/// # use executor_core::Mapper;
/// fn workers<A>(mapper: &impl Mapper<A>) -> usize {
///     mapper.max_workers()
/// }
/// ```
pub trait Mapper<A> {
    /// What an item becomes.
    type Output;

    /// Sends a chunk of items.
    fn send(&self, items: Vec<A>, options: &CallOptions) -> TaskFuture<Chunk<Self::Output>>;

    /// How many chunks can run at the same time.
    fn max_workers(&self) -> usize;
}

impl<I: Iterator, M: Mapper<I::Item>> Map<I, M> {
    pub(crate) fn new(items: I, mapper: M, options: CallOptions) -> Self {
        let has_limit = options.timeout.is_some() || options.deadline.is_some();
        let mut map = Self {
            items,
            buffer: options.buffer_size.map(usize::from),
            chunk: options.chunk_size.map_or(1, usize::from),
            flights_per_worker: FEWEST_FLIGHTS,
            is_adaptive: options.chunk_size.is_none() && !has_limit,
            ahead: 0,
            is_exhausted: false,
            loading: Vec::new(),
            flights: VecDeque::new(),
            aloft: 0,
            group: options.unordered.then(Arc::default),
            landed_before: 0,
            ready: Vec::new().into_iter(),
            held: None,
            mapper,
            options,
        };
        map.fill();
        map
    }

    /// Sends chunks until the window is full or the input has ended.
    fn fill(&mut self) {
        let flights = self.flights_per_worker * self.mapper.max_workers();
        while !self.is_exhausted {
            let room = match self.buffer {
                Some(buffer) => buffer - self.ahead,
                None if self.aloft < flights => usize::MAX,
                None => 0,
            };
            if room == 0 {
                return;
            }
            let mut size = self.chunk.min(room);
            if self.is_adaptive
                && let (_, Some(left)) = self.items.size_hint()
            {
                // A fair share of what is left: the end of the input reaches every worker in small pieces.
                size = size.min(left / (2 * self.mapper.max_workers())).max(1);
            }
            self.loading.reserve(size.saturating_sub(self.loading.len()).min(LARGEST_CHUNK));
            while self.loading.len() < size {
                let Some(item) = self.items.next() else {
                    self.is_exhausted = true;
                    break;
                };
                self.loading.push(item);
            }
            let chunk = std::mem::take(&mut self.loading);
            if !chunk.is_empty() {
                self.send(chunk);
            }
        }
    }

    fn send(&mut self, chunk: Vec<I::Item>) {
        let items = chunk.len();
        let future = self.mapper.send(chunk, &self.options);
        if let Some(group) = &self.group {
            group.listen(&future, self.landed_before + self.flights.len());
        }
        // A pool that is over refuses at once. Of an input with an end every item says so; one without must not go on.
        let is_refused = matches!(future.peek(), Some(Err(_)));
        if is_refused && self.items.size_hint().1.is_none() {
            self.is_exhausted = true;
        }
        self.ahead += items;
        self.aloft += 1;
        self.flights.push_back(Some(Flight { future, items }));
    }

    /// Waits for the next chunk and makes its results ready; false if there is none.
    fn land(&mut self) -> bool {
        let index = match &self.group {
            None => 0,
            Some(_) if self.aloft == 0 => return false,
            // Where waiting could never end, the oldest one says why.
            Some(group) => group
                .next(self.flights.iter(), self.landed_before, None, Some(self.aloft))
                .map_or(0, |index| index - self.landed_before),
        };
        let Some(Flight { future, items }) = self.flights.get_mut(index).and_then(Option::take) else {
            return false;
        };
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.landed_before += 1;
        }
        self.aloft -= 1;
        let results = match future.result() {
            Ok(chunk) => {
                self.adapt(chunk.run_time, items);
                chunk.results
            }
            Err(error) => (0..items).map(|_| Err(error.clone())).collect(),
        };
        self.ready = results.into_iter();
        true
    }

    /// Sizes the next chunks, and the window, after a chunk that took `run_time`.
    fn adapt(&mut self, run_time: Duration, items: usize) {
        let per_item = (run_time.as_nanos() / items.max(1) as u128).max(1);
        let fitting =
            |time: Duration, each: u128| usize::try_from(time.as_nanos() / each).unwrap_or(usize::MAX);
        let most = GROWTH * items;
        if self.is_adaptive {
            self.chunk = fitting(CHUNK_TIME, per_item).min(most).clamp(1, LARGEST_CHUNK);
        }
        // Few while the chunks grow: those on their way tell how to go on.
        let flights = if self.is_adaptive && self.chunk == most {
            FEWEST_FLIGHTS
        } else {
            fitting(WINDOW_TIME, per_item * self.chunk as u128).min(MOST_AHEAD / self.chunk)
        };
        self.flights_per_worker = flights.clamp(FEWEST_FLIGHTS, MOST_FLIGHTS);
    }
}

impl<I: Iterator, M: Mapper<I::Item>> Iterator for Map<I, M> {
    type Item = Result<M::Output, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(result) = self.held.take() {
                return Some(result);
            }
            if let Some(result) = self.ready.next() {
                self.ahead -= 1;
                if self.buffer.is_none() {
                    return Some(result);
                }
                // Held meanwhile: should the input panic, the result is there at the next call.
                self.held = Some(result);
                self.fill();
                continue;
            }
            if !self.land() {
                return None;
            }
            if self.buffer.is_none() {
                self.fill(); // the window is counted in chunks
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let here = self.ahead + self.loading.len() + usize::from(self.held.is_some());
        if self.is_exhausted {
            return (here, Some(here));
        }
        let (low, high) = self.items.size_hint();
        (low.saturating_add(here), high.and_then(|high| high.checked_add(here)))
    }
}

impl<I: ExactSizeIterator, M: Mapper<I::Item>> ExactSizeIterator for Map<I, M> {}

impl<I: Iterator, M: Mapper<I::Item>> FusedIterator for Map<I, M> {}

impl<I: Iterator, M: Mapper<I::Item>> Drop for Map<I, M> {
    fn drop(&mut self) {
        // Newest first, so that none of them starts because an older one was cancelled.
        for flight in self.flights.iter().rev().flatten() {
            flight.future.cancel();
        }
    }
}

impl<I: Iterator, M: Mapper<I::Item>> fmt::Debug for Map<I, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("ahead", &self.ahead)
            .field("chunk", &self.chunk)
            .field("is_exhausted", &self.is_exhausted)
            .finish_non_exhaustive()
    }
}
