//! T8, T9, T10: threads, memory and processor time.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cf_benches::{Counting, Goal, Outcome, Row, Setting, Workload, cpu_time, peak_memory_mib};

use super::{peers, with_python};
use crate::peers::Ours;
use crate::pool::{Pool, check};

pub(crate) fn workloads() -> Vec<Workload> {
    let sleepers = Workload::new(
        "T8",
        [
            Row::new(
                "T8a",
                "4,000 tasks that sleep 50 ms on 4,000 workers, first burst with building the pool",
                "ms",
                Goal::of_best(0.8),
            ),
            Row::new("T8b", "the same, second burst", "ms", Goal::of_best(0.8)),
            Row::new("T8c", "the same, peak memory", "MiB", Goal::bound(25.0)),
        ],
    )
    .workers(4_000, 50)
    .limit(Duration::from_secs(15))
    .ours(sleep::<Ours>);
    let sleepers = peers!(sleepers, sleep: Rayon, Threadpool, ExecutorsChannel, TokioBlocking, SmolBlocking, RustyPool,
        StdThreads);

    let queued = Workload::new(
        "T9",
        [
            Row::new(
                "T9a",
                "memory of a queued task that captures 24 bytes, with its future",
                "bytes",
                Goal::bound(96.0),
            ),
            Row::new("T9b", "the same, nothing kept", "bytes", Goal::default()),
        ],
    )
    .ours(queue::<Ours>);
    let queued = peers!(queued, queue: Rayon, RayonChannel, Threadpool, Hyper, ExecutorsChannel, ExecutorsStealing,
        TokioSpawn, TokioBlocking, SmolBlocking, Micropool, RustyPool);

    let unused = Workload::row("T10", "processor time of an idle pool in 2 s", "ms", Goal::bound(0.1))
        .ours(idle::<Ours>);
    let unused = peers!(unused, idle: Rayon, Threadpool, Hyper, ExecutorsChannel, ExecutorsStealing, TokioSpawn,
        TokioBlocking, SmolBlocking, Micropool, RustyPool);

    vec![with_python(sleepers, "T8"), queued, with_python(unused, "T10")]
}

fn sleep<P: Pool>(setting: &Setting) -> Outcome {
    let tasks = u64::try_from(setting.workers).unwrap_or(0);
    let start = Instant::now();
    let pool = P::build_for_blocking(setting.workers);
    burst(&pool, tasks);
    let first = start.elapsed();
    let start = Instant::now();
    burst(&pool, tasks);
    let second = start.elapsed();
    Ok(vec![first.as_secs_f64() * 1e3, second.as_secs_f64() * 1e3, peak_memory_mib()])
}

fn burst<P: Pool>(pool: &P, tasks: u64) {
    let sleeper = || {
        thread::sleep(Duration::from_millis(50));
        1
    };
    let handles = (0..tasks).map(|_| pool.submit(sleeper)).collect();
    check(pool.wait_all(handles), tasks);
}

/// Keeps every worker busy until it is opened.
#[derive(Default)]
struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) -> u64 {
        let Ok(mut state) = self.state.lock() else { return 0 };
        state.0 += 1;
        self.changed.notify_all();
        while !state.1 {
            let Ok(next) = self.changed.wait(state) else { return 0 };
            state = next;
        }
        1
    }

    fn close<P: Pool>(workers: usize, pool: &P) -> (Arc<Self>, Vec<P::Handle>) {
        let gate = Arc::<Self>::default();
        let held = (0..workers)
            .map(|_| {
                let gate = Arc::clone(&gate);
                pool.submit(move || gate.pass())
            })
            .collect();
        let state = gate.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        drop(gate.changed.wait_while(state, |state| state.0 < workers));
        (gate, held)
    }

    fn open(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.1 = true;
        }
        self.changed.notify_all();
    }
}

/// As big as most closures are.
fn capturing_24_bytes(i: u64) -> impl FnOnce() -> u64 + Send + 'static {
    let (a, b) = std::hint::black_box((1, 1));
    move || i * a * b
}

/// Live bytes for each task that waits behind busy workers.
fn queue<P: Pool>(setting: &Setting) -> Outcome {
    let tasks = setting.of(100_000, 10_000);
    #[expect(clippy::cast_precision_loss, reason = "a few megabytes")]
    let each = |bytes: i64| bytes as f64 / tasks as f64;
    let pool = P::warmed(setting.workers);

    let (gate, held) = Gate::close(setting.workers, &pool);
    Counting::start();
    let before = Counting::live();
    let mut handles = Vec::with_capacity(usize::try_from(tasks).unwrap_or(0));
    handles.extend((0..tasks).map(|i| pool.submit(capturing_24_bytes(i))));
    let kept = Counting::live() - before;
    gate.open();
    check(pool.wait_all(held), u64::try_from(setting.workers).unwrap_or(0));
    check(pool.wait_all(handles), tasks * (tasks - 1) / 2);

    // A pool of its own: the first keeps some of its memory for later.
    drop(pool);
    let pool = P::warmed(setting.workers);
    let (gate, held) = Gate::close(setting.workers, &pool);
    let before = Counting::live();
    for i in 0..tasks {
        let task = capturing_24_bytes(i);
        pool.spawn(move || {
            std::hint::black_box(task());
        });
    }
    let unkept = Counting::live() - before;
    gate.open();
    check(pool.wait_all(held), u64::try_from(setting.workers).unwrap_or(0));
    Ok(vec![each(kept), each(unkept)])
}

fn idle<P: Pool>(setting: &Setting) -> Outcome {
    let pool = P::warmed(setting.workers);
    thread::sleep(setting.of(Duration::from_millis(200), Duration::from_millis(20)));
    let before = cpu_time();
    thread::sleep(setting.of(Duration::from_secs(2), Duration::from_millis(100)));
    let used = cpu_time() - before;
    pool.warm();
    Ok(vec![used.as_secs_f64() * 1e3])
}
