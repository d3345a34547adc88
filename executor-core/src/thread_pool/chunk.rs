//! A chunk of a `map` on threads: several items in one task, unless they turn out to be slow.
//!
//! A chunk is sized by what its predecessors cost. If an item costs far more all the same (a page that answers after many
//! that were refused), those behind it must not wait for it: after [`PATIENCE`] the rest of the chunk is shared out, item
//! by item, with helper tasks. The chunk's own task goes on taking items too, and in the end waits for its helpers: one
//! that has not started then runs in place, and finds nothing left (S4).

use std::time::{Duration, Instant};

use crate::call::{CallOptions, Chunk};
use crate::error::TaskError;
use crate::future::TaskFuture;
use crate::os;
use crate::panic_report::{self, PanicReport};
use crate::sync::{Arc, Mutex};
use crate::task::Details;

use super::pool::{ThreadPoolExecutor, details};

/// How long a chunk keeps its items to itself, by a clock of some milliseconds' steps that is cheap enough to be read
/// after every item. A chunk is made to take far less; longer would keep slow items waiting for each other, shorter shares
/// out chunks that were just unlucky with the clock or the scheduler.
const PATIENCE: Duration = Duration::from_millis(10);

/// In a chunk of no more items than this, the clock is read after each: they may be slow ones.
const SMALL: usize = 64;

/// In a larger chunk, which is made of items that have been cheap, it is read once in so many.
const LOOKS: usize = 8;

/// Runs `f` on all of `items` as one task. An item that panics, or for which `f` gives an error, fails alone.
pub(super) fn submit<A, R, F>(
    pool: &ThreadPoolExecutor,
    items: Vec<A>,
    options: &CallOptions,
    f: F,
) -> TaskFuture<Chunk<R>>
where
    A: Send + 'static,
    R: Send + 'static,
    F: Fn(A) -> Result<R, TaskError> + Send + Sync + 'static,
{
    let details = details(options);
    // A task keeps no pool alive.
    let pool_there = pool.downgrade();
    // Limits are for the chunk as a whole: a helper that ran into one would take its items with it.
    let details_there =
        details.clone().map(|details| Details { timeout: None, deadline: None, run_limit: None, ..details });
    let label = options.label.clone();
    pool.run_task(details, move || {
        let (start, coarse_start) = (Instant::now(), os::coarse_clock());
        let f = Arc::new(f);
        let panicked = move |mut report: PanicReport| {
            report.label = label.as_deref().map(str::to_owned);
            TaskError::Panicked(report)
        };
        let stride = if items.len() <= SMALL { 1 } else { LOOKS };
        let mut results = Vec::with_capacity(items.len());
        let mut items = items.into_iter();
        let mut shares_with = None;
        // One guard around the loop, not one an item. After a panic the loop goes on behind the item that did.
        while items.len() > 0 && shares_with.is_none() {
            let caught = panic_report::catch(|| {
                while items.len() > 0 {
                    let is_first = results.is_empty();
                    if !is_first && os::coarse_clock().saturating_sub(coarse_start) >= PATIENCE {
                        shares_with = pool_there.upgrade();
                        if shares_with.is_some() {
                            return;
                        }
                    }
                    for item in items.by_ref().take(stride) {
                        results.push(f(item));
                    }
                }
            });
            if let Err(report) = caught {
                results.push(Err(panicked(report)));
            }
        }
        if let Some(pool) = shares_with {
            share_out(&pool, &mut results, items.collect(), details_there, move |item| {
                panic_report::catch(|| f(item)).unwrap_or_else(|report| Err(panicked(report)))
            });
        }
        Chunk::new(results, start.elapsed())
    })
}

/// Runs `run` on the rest of the items of a chunk, with helpers.
fn share_out<A, T, F>(
    pool: &ThreadPoolExecutor,
    results: &mut Vec<T>,
    rest: Vec<A>,
    details: Option<Details>,
    run: F,
) where
    A: Send + 'static,
    T: Send + 'static,
    F: Fn(A) -> T + Send + Sync + 'static,
{
    let (done, helpers, run) = (results.len(), rest.len().min(pool.max_workers()), Arc::new(run));
    let shared = Arc::new(Mutex::new((done..).zip(rest)));
    let work = move || {
        let mut done = Vec::new();
        loop {
            let next = shared.lock().next();
            let Some((index, item)) = next else { return done };
            done.push((index, run(item)));
        }
    };
    let helpers: Vec<_> = (0..helpers).map(|_| pool.run_task(details.clone(), work.clone())).collect();
    let mut shared_out = work();
    // One that was refused or cancelled, by a shutdown, has taken nothing.
    shared_out.extend(helpers.into_iter().filter_map(|helper| helper.result().ok()).flatten());
    shared_out.sort_unstable_by_key(|(index, _)| *index);
    results.extend(shared_out.into_iter().map(|(_, result)| result));
}
