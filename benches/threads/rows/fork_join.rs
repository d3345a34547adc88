//! T4: Fibonacci's numbers by recursion, a fork in every call and no cut-off: 317,810 forks for 27.

use std::future::Future;
use std::num::NonZero;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Instant;

use cf_benches::{Goal, Kind, Outcome, Setting, Workload};
use concurrent_futures::ThreadPoolExecutor;

use crate::peers::{Micropool, Ours, Rayon, TokioSpawn};
use crate::pool::{Pool, check, per_task};

pub(crate) fn workloads() -> Vec<Workload> {
    let join = Workload::row("T4a", "fib(27), a join in every call; a fork", "ns", Goal::of_best(0.75))
        .ours(|setting| {
            let pool = Ours::warmed(setting.workers).0;
            measure(setting, 20, |n| pool.join(|| our_join(&pool, n), || ()).0)
        })
        .peer("chili", |setting| {
            let config = chili::Config { thread_count: NonZero::new(setting.workers), ..Default::default() };
            let pool = chili::ThreadPool::with_config(config);
            measure(setting, 20, |n| chili_join(&mut pool.scope(), n))
        })
        .peer("rayon", |setting| {
            let pool = Rayon::warmed(setting.workers).0;
            measure(setting, 20, |n| pool.install(|| rayon_join(n)))
        })
        .peer("micropool", |setting| {
            let pool = Micropool::warmed(setting.workers).0;
            measure(setting, 3, |n| pool.install(|| micropool_join(n)))
        })
        .by(Kind::Limit, "plain calls", |setting| measure(setting, 20, plain));
    let futures =
        Workload::row("T4b", "the same, a future in every call", "ns", Goal::bound(40.0).and_of_best(1.0))
            .ours(|setting| {
                let pool = OUR_POOL.get_or_init(|| Ours::warmed(setting.workers).0);
                measure(setting, 3, |n| our_value(pool.submit(our_submit, n)))
            })
            .peer("micropool", |setting| {
                let pool = MICROPOOL.get_or_init(|| Micropool::warmed(setting.workers).0);
                measure(setting, 3, |n| pool.spawn_owned(move || micropool_submit(n)).join())
            })
            .peer("tokio", |setting| {
                let runtime = TokioSpawn::warmed(setting.workers).0;
                measure(setting, 1, |n| runtime.block_on(tokio_spawn(n)))
            });
    vec![join, futures]
}

/// Time for each fork, over some repetitions after one to warm up.
pub(crate) fn measure(setting: &Setting, times: u32, fib: impl Fn(u64) -> u64) -> Outcome {
    let (n, times) = setting.of((27, times), (15, 1));
    let (value, forks) = numbers(n);
    check(fib(n), value);
    let start = Instant::now();
    for _ in 0..times {
        check(fib(n), value);
    }
    Ok(vec![per_task(start.elapsed() / times, forks)])
}

/// The value, and the calls that fork.
fn numbers(n: u64) -> (u64, u64) {
    let (mut value, mut next) = (0, 1);
    for _ in 0..n {
        (value, next) = (next, value + next);
    }
    (value, next - 1)
}

fn plain(n: u64) -> u64 {
    if n < 2 { n } else { std::hint::black_box(plain(n - 1)) + std::hint::black_box(plain(n - 2)) }
}

pub(crate) fn our_join(pool: &ThreadPoolExecutor, n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let (a, b) = pool.join(|| our_join(pool, n - 1), || our_join(pool, n - 2));
    a + b
}

pub(crate) fn rayon_join(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let (a, b) = rayon::join(|| rayon_join(n - 1), || rayon_join(n - 2));
    a + b
}

fn chili_join(scope: &mut chili::Scope<'_>, n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let (a, b) = scope.join(|scope| chili_join(scope, n - 1), |scope| chili_join(scope, n - 2));
    a + b
}

fn micropool_join(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let (a, b) = micropool::join(|| micropool_join(n - 1), || micropool_join(n - 2));
    a + b
}

static OUR_POOL: OnceLock<ThreadPoolExecutor> = OnceLock::new();
static MICROPOOL: OnceLock<micropool::ThreadPool> = OnceLock::new();

fn our_submit(n: u64) -> u64 {
    let Some(pool) = OUR_POOL.get().filter(|_| n >= 2) else { return n };
    let a = pool.submit(our_submit, n - 1);
    let b = our_submit(n - 2);
    our_value(a) + b
}

fn our_value(future: concurrent_futures::TaskFuture<u64>) -> u64 {
    future.result().unwrap_or_else(|error| panic!("{error}"))
}

fn micropool_submit(n: u64) -> u64 {
    let Some(pool) = MICROPOOL.get().filter(|_| n >= 2) else { return n };
    let a = pool.spawn_owned(move || micropool_submit(n - 1));
    let b = micropool_submit(n - 2);
    a.join() + b
}

fn tokio_spawn(n: u64) -> Pin<Box<dyn Future<Output = u64> + Send>> {
    Box::pin(async move {
        if n < 2 {
            return n;
        }
        let a = tokio::spawn(tokio_spawn(n - 1));
        let b = tokio_spawn(n - 2).await;
        a.await.unwrap_or_else(|error| panic!("{error}")) + b
    })
}
