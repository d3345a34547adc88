//! The feature `tracing`: a task runs in the span in which it was submitted, wherever it runs.

#![allow(clippy::disallowed_types, reason = "tests watch the library from outside its models")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

#[path = "support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::{Mutex, Once};
use std::task::Poll;

use concurrent_futures::{Executor, ThreadPoolExecutor};
use support::{Gate, Watchdog};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Span, Subscriber, info_span};
use tracing_core::span::Current;

/// A subscriber that knows names, and which spans each thread is in.
struct Names(Mutex<Vec<&'static Metadata<'static>>>);

thread_local! {
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

impl Subscriber for Names {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut names = self.0.lock().unwrap();
        names.push(span.metadata());
        Id::from_u64(names.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(span.clone()));
    }

    fn exit(&self, span: &Id) {
        let left = ENTERED.with_borrow_mut(Vec::pop);
        assert_eq!(left.as_ref(), Some(span));
    }

    fn current_span(&self) -> Current {
        let Some(id) = ENTERED.with_borrow(|entered| entered.last().cloned()) else { return Current::none() };
        let metadata = self.0.lock().unwrap()[usize::try_from(id.into_u64()).unwrap() - 1];
        let id = ENTERED.with_borrow(|entered| entered.last().cloned()).unwrap();
        Current::new(id, metadata)
    }
}

fn subscribe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Names(Mutex::default())).unwrap());
}

/// The name of the span this thread is in.
fn here() -> Option<&'static str> {
    Span::current().metadata().map(Metadata::name)
}

#[test]
fn a_task_runs_in_the_span_it_was_submitted_in() {
    let _watchdog = Watchdog::start();
    subscribe();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    assert_eq!(pool.spawn(here).result().unwrap(), None);
    let futures = info_span!("caller").in_scope(|| {
        [
            pool.spawn(here),
            pool.submit(|()| here(), ()),
            pool.try_submit(|()| here(), ()).unwrap(),
            pool.options().priority(1).submit(|()| here(), ()),
            pool.options().retries(1).submit(|()| here(), ()),
        ]
    });
    for future in futures {
        assert_eq!(future.result().unwrap(), Some("caller"));
    }
    assert_eq!(pool.spawn(here).result().unwrap(), None, "the worker has left it");
    fn generic(executor: &impl Executor) -> bool {
        executor.submit(|()| here() == Some("generic"), ()).result().unwrap()
    }
    assert!(info_span!("generic").in_scope(|| generic(&pool)));
}

#[test]
fn a_task_that_panics_leaves_its_span() {
    let _watchdog = Watchdog::start();
    subscribe();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let failed = info_span!("caller").in_scope(|| pool.spawn(|| -> () { panic!("inside") }));
    assert!(failed.result().unwrap_err().is_panic());
    assert_eq!(pool.spawn(here).result().unwrap(), None);
}

#[test]
fn a_task_that_is_run_in_place_runs_in_its_own_span() {
    let _watchdog = Watchdog::start();
    subscribe();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let inside = pool.clone();
    let seen = pool.spawn(move || {
        info_span!("outer").in_scope(|| {
            let inner = info_span!("inner").in_scope(|| inside.spawn(here));
            (inner.result().unwrap(), here())
        })
    });
    assert_eq!(seen.result().unwrap(), (Some("inner"), Some("outer")));
}

#[test]
fn maps_and_scopes_carry_it_too() {
    let _watchdog = Watchdog::start();
    subscribe();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    info_span!("caller").in_scope(|| {
        for name in pool.map(|_| here(), 0..1_000) {
            assert_eq!(name.unwrap(), Some("caller"));
        }
        pool.scope(|s| assert_eq!(s.spawn(here).result().unwrap(), Some("caller")));
        assert_eq!(pool.join(here, here), (Some("caller"), Some("caller")));
    });
    // The span of `map`, wherever the iterator is by then.
    let names = info_span!("caller").in_scope(|| pool.options().chunk_size(1).map(|_| here(), 0..1_000));
    for name in names {
        assert_eq!(name.unwrap(), Some("caller"));
    }
}

/// Every poll is in the span of `spawn_future`, whoever wakes it.
#[test]
fn a_future_is_polled_in_the_span_it_was_spawned_in() {
    let _watchdog = Watchdog::start();
    subscribe();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let passes = gate.clone();
    let waits = pool.spawn(move || passes.pass());
    let mut seen = Vec::new();
    let names = info_span!("caller").in_scope(|| {
        pool.spawn_future(async move {
            waits.await.unwrap();
            poll_fn(|context| {
                seen.push(here());
                context.waker().wake_by_ref();
                if seen.len() < 3 { Poll::Pending } else { Poll::Ready(seen.clone()) }
            })
            .await
        })
    });
    info_span!("waker").in_scope(|| gate.open());
    assert_eq!(names.result().unwrap(), [Some("caller"); 3]);
}
