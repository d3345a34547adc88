//! T5 and T6: one function over many items, results in order.

use std::hint::black_box;
use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

use cf_benches::{Goal, Kind, Outcome, Setting, Spin, Workload, spin};
use paralight::prelude::{
    CpuPinningPolicy, GenericThreadPool, RangeStrategy, ThreadCount, ThreadPoolBuilder,
};

use super::peers;
use crate::peers::{Micropool, Ours, Rayon};
use crate::pool::{Pool, check, per_task};

pub(crate) fn workloads() -> Vec<Workload> {
    let iterator = Workload::row(
        "T5a",
        "map over an iterator of 1,000,000 items of 1 ns, collected in order; an item",
        "ns",
        Goal::bound(15.0).and_of_best(1.0),
    )
    .ours(our_iterator)
    .peer("rayon par_bridge", rayon_bridge);
    let iterator = peers!(iterator, one_by_one: Rayon, Threadpool, ExecutorsChannel, ExecutorsStealing, Hyper, Micropool,
        TokioSpawn, SmolBlocking, RustyPool);

    let slice =
        Workload::row("T5b", "map over a borrowed slice in a scope; an item", "ns", Goal::of_best(1.0))
            .ours(our_slice)
            .peer("rayon par_iter", rayon_slice)
            .peer("micropool", micropool_slice)
            .peer("paralight", |setting| paralight_slice(setting, RangeStrategy::WorkStealing))
            .peer("paralight-fixed", |setting| paralight_slice(setting, RangeStrategy::Fixed))
            .by(Kind::Aside, "static halves", static_parts)
            .by(Kind::Limit, "plain loop", plain_slice);

    let [even, skewed] = [Cost::Even, Cost::Skewed].map(|cost| {
        let (id, what) = match cost {
            Cost::Even => ("T6a", "map over 10,000 items of 20 µs, by the time of an ideal pool"),
            Cost::Skewed => ("T6b", "the same, cost growing with the square of the index"),
        };
        let workload = Workload::row(id, what, "× ideal", Goal::bound(1.02))
            .ours(move |setting| balance(setting, cost, our_balance))
            .peer("rayon par_iter", move |setting| balance(setting, cost, rayon_balance))
            .peer("micropool", move |setting| balance(setting, cost, micropool_balance))
            .peer("paralight", move |setting| balance(setting, cost, paralight_balance))
            .peer("rayon", move |setting| balance(setting, cost, submit_balance::<Rayon>));
        [
            ("threadpool", submit_balance::<crate::peers::Threadpool> as Balance),
            ("executors-channel", submit_balance::<crate::peers::ExecutorsChannel>),
            ("executors-stealing", submit_balance::<crate::peers::ExecutorsStealing>),
            ("tokio", submit_balance::<crate::peers::TokioSpawn>),
            ("smol-blocking", submit_balance::<crate::peers::SmolBlocking>),
        ]
        .into_iter()
        .fold(workload, |workload, (name, run)| {
            workload.peer(name, move |setting| balance(setting, cost, run))
        })
    });
    vec![iterator, slice, even, skewed]
}

// T5

/// About a nanosecond.
fn tiny(x: u64) -> u64 {
    x.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (x >> 29)
}

fn size(setting: &Setting) -> u64 {
    setting.of(1_000_000, 5_000)
}

/// In order and complete.
fn check_all(values: &[u64], n: u64) {
    check(u64::try_from(values.len()).unwrap_or(0), n);
    assert!(values.iter().zip(0..n).all(|(value, i)| *value == tiny(i)), "wrong result");
}

/// The second of two runs: the first warms the pool and the pages of the result.
fn timed(n: u64, run: impl Fn() -> Vec<u64>) -> Outcome {
    check_all(&run(), n);
    let start = Instant::now();
    let values = run();
    let elapsed = start.elapsed();
    check_all(&values, n);
    Ok(vec![per_task(elapsed, n)])
}

fn our_iterator(setting: &Setting) -> Outcome {
    let (pool, n) = (Ours::warmed(setting.workers).0, size(setting));
    timed(n, || pool.map(tiny, 0..n).map(|value| value.unwrap_or_else(|error| panic!("{error}"))).collect())
}

fn rayon_bridge(setting: &Setting) -> Outcome {
    use rayon::iter::{ParallelBridge, ParallelIterator};
    let (pool, n) = (Rayon::warmed(setting.workers).0, size(setting));
    timed(n, || {
        pool.install(|| {
            // It gives results in no order, so the index travels along.
            let mut pairs: Vec<(u64, u64)> = (0..n).par_bridge().map(|i| (i, tiny(i))).collect();
            pairs.sort_unstable_by_key(|pair| pair.0);
            pairs.into_iter().map(|pair| pair.1).collect()
        })
    })
}

/// What pools without a `map` leave to the user.
fn one_by_one<P: Pool>(setting: &Setting) -> Outcome {
    let (pool, n) = (P::warmed(setting.workers), size(setting));
    timed(n, || {
        let handles: Vec<_> = (0..n).map(|i| pool.submit(move || tiny(i))).collect();
        handles.into_iter().map(|handle| pool.wait(handle)).collect()
    })
}

fn slice(setting: &Setting) -> Vec<u64> {
    (0..size(setting)).collect()
}

fn our_slice(setting: &Setting) -> Outcome {
    let (pool, items) = (Ours::warmed(setting.workers).0, slice(setting));
    timed(size(setting), || pool.scope(|s| s.map(&items, |x| tiny(*x))))
}

fn rayon_slice(setting: &Setting) -> Outcome {
    use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
    let (pool, items) = (Rayon::warmed(setting.workers).0, slice(setting));
    timed(size(setting), || pool.install(|| items.par_iter().map(|x| tiny(*x)).collect()))
}

fn micropool_slice(setting: &Setting) -> Outcome {
    let (pool, items) = (Micropool::warmed(setting.workers).0, slice(setting));
    timed(size(setting), || pool.install(|| fill(micropool::split_by_threads(), &items, |x| tiny(*x))))
}

fn paralight_slice(setting: &Setting, strategy: RangeStrategy) -> Outcome {
    let (pool, items) = (std::cell::RefCell::new(paralight_pool(setting, strategy)), slice(setting));
    timed(size(setting), || fill(&mut *pool.borrow_mut(), &items, |x| tiny(*x)))
}

fn paralight_pool(setting: &Setting, range_strategy: RangeStrategy) -> paralight::prelude::ThreadPool {
    let workers = NonZero::new(setting.workers).unwrap_or(NonZero::<usize>::MIN);
    let num_threads = ThreadCount::Count(workers);
    ThreadPoolBuilder { num_threads, range_strategy, cpu_pinning: CpuPinningPolicy::No }.build()
}

/// What stands for a `map` in paralight, on which micropool's iterators are built: they fill what is there.
fn fill<T: Sync>(pool: impl GenericThreadPool, items: &[T], f: impl Fn(&T) -> u64 + Sync) -> Vec<u64> {
    use paralight::prelude::{
        ExactParallelSourceExt, IntoExactParallelRefMutSource, IntoExactParallelRefSource,
        ParallelIteratorExt, ZipableSource,
    };
    let mut values = vec![0; items.len()];
    (values.par_iter_mut(), items.par_iter())
        .zip_eq()
        .with_thread_pool(pool)
        .for_each(|(value, item)| *value = f(item));
    values
}

/// A thread for each equal part.
fn static_parts(setting: &Setting) -> Outcome {
    let items = slice(setting);
    let each = items.len().div_ceil(setting.workers);
    timed(size(setting), || {
        let mut values = vec![0; items.len()];
        thread::scope(|s| {
            for (from, to) in items.chunks(each).zip(values.chunks_mut(each)) {
                s.spawn(|| from.iter().zip(to).for_each(|(x, value)| *value = tiny(*x)));
            }
        });
        values
    })
}

fn plain_slice(setting: &Setting) -> Outcome {
    let items = slice(setting);
    timed(size(setting), || items.iter().map(|x| tiny(*x)).collect())
}

// T6

#[derive(Clone, Copy)]
enum Cost {
    Even,
    Skewed,
}

/// Item and rounds.
type Item = (u64, u64);
type Balance = fn(&Setting, &[Item]) -> (Vec<u64>, Duration);

/// A pool's time by that of a pool that loses nothing: the serial time of the same items, measured just before, shared
/// by the workers.
fn balance(setting: &Setting, cost: Cost, run: Balance) -> Outcome {
    let spin_rate = Spin::calibrate();
    let n: u64 = setting.of(10_000, 100);
    #[expect(clippy::cast_precision_loss, reason = "ten thousand")]
    let share = |i: u64| (i as f64 + 0.5) / n as f64;
    let items: Vec<Item> = (0..n)
        .map(|i| match cost {
            Cost::Even => (i, spin_rate.rounds(20.0)),
            Cost::Skewed => (i, spin_rate.rounds(60.0 * share(i).powi(2))),
        })
        .collect();
    let start = Instant::now();
    let expected: Vec<u64> = items.iter().map(|item| item_value(*item)).collect();
    let serial = start.elapsed();
    let (values, elapsed) = run(setting, &items);
    assert!(values == expected, "wrong result");
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let workers = setting.workers.min(cores) as f64;
    Ok(vec![elapsed.as_secs_f64() / (serial.as_secs_f64() / workers)])
}

fn item_value((i, rounds): Item) -> u64 {
    black_box(spin(i, rounds))
}

fn since(start: Instant, values: Vec<u64>) -> (Vec<u64>, Duration) {
    let elapsed = start.elapsed();
    (values, elapsed)
}

fn our_balance(setting: &Setting, items: &[Item]) -> (Vec<u64>, Duration) {
    let pool = Ours::warmed(setting.workers).0;
    let items = items.to_vec();
    let start = Instant::now();
    let values = pool.map(item_value, items).map(|value| value.unwrap_or_else(|error| panic!("{error}")));
    since(start, values.collect())
}

fn rayon_balance(setting: &Setting, items: &[Item]) -> (Vec<u64>, Duration) {
    use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
    let pool = Rayon::warmed(setting.workers).0;
    let start = Instant::now();
    since(start, pool.install(|| items.par_iter().map(|item| item_value(*item)).collect()))
}

/// Its caller works, too, so it gets one worker less.
fn micropool_balance(setting: &Setting, items: &[Item]) -> (Vec<u64>, Duration) {
    let pool = Micropool::warmed(setting.workers.saturating_sub(1).max(1)).0;
    let start = Instant::now();
    let per_item = micropool::split_per_item();
    since(start, pool.install(|| fill(per_item, items, |item| item_value(*item))))
}

fn paralight_balance(setting: &Setting, items: &[Item]) -> (Vec<u64>, Duration) {
    let mut pool = paralight_pool(setting, RangeStrategy::WorkStealing);
    let start = Instant::now();
    since(start, fill(&mut pool, items, |item| item_value(*item)))
}

fn submit_balance<P: Pool>(setting: &Setting, items: &[Item]) -> (Vec<u64>, Duration) {
    let pool = P::warmed(setting.workers);
    let items = items.to_vec();
    let start = Instant::now();
    let handles: Vec<_> = items.into_iter().map(|item| pool.submit(move || item_value(item))).collect();
    since(start, handles.into_iter().map(|handle| pool.wait(handle)).collect())
}
