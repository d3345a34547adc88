//! S11: a child made by the user's own `fork` is answered at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use concurrent_futures::{TaskError, ThreadPoolExecutor};

use crate::support::{Gate, eventually, in_fork, in_own_process, threads};

const LIMIT: Duration = Duration::from_secs(20);

/// S11: every call on an inherited pool or future is answered.
#[test]
fn a_forked_child_is_refused_at_once() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let gate = Gate::new();
        let inside = gate.clone();
        let running = pool.spawn(move || inside.pass());
        gate.wait_for_arrivals(1);
        let ended = pool.submit(|n: u32| n, 5);
        ended.wait();
        let mut ended = Some(ended);
        let code = in_fork(|| {
            let refused = matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ForkedChild));
            let tried = pool.try_submit(|n: u32| n, 1).is_err();
            running.wait();
            let waited =
                !running.wait_timeout(Duration::from_secs(100)) && !running.cancel() && !running.abort();
            let mapped = pool.map(|n: u32| n, 0..3).all(|item| matches!(item, Err(TaskError::ForkedChild)));
            let old = matches!(ended.take().unwrap().result(), Ok(5));
            let looked = format!("{pool:?} {running:?} {:?}", pool.workers().len()).len() > 1;
            pool.shutdown();
            pool.shutdown_now();
            pool.shutdown_background();
            let fresh = ThreadPoolExecutor::new(1).unwrap().submit(|n: u32| n, 1).result().is_ok();
            refused && tried && waited && mapped && old && looked && fresh
        });
        assert_eq!(code, Some(0));
        gate.open();
        running.result().unwrap();
    });
}

/// S11: dropping the handles in the child is a touch like any other.
#[test]
fn a_forked_child_may_drop_its_handles() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let gate = Gate::new();
        let inside = gate.clone();
        let running = pool.spawn(move || inside.pass());
        gate.wait_for_arrivals(1);
        let mut both = Some((pool, running));
        assert_eq!(in_fork(|| both.take().is_some()), Some(0));
        gate.open();
        both.unwrap().1.result().unwrap();
    });
}

/// S11: so is dropping a pool of which only the clock is alive, which its last handle ends.
#[test]
fn a_forked_child_may_drop_a_pool_whose_workers_have_retired() {
    in_own_process(LIMIT, || {
        let pool = ThreadPoolExecutor::builder().max_workers(1).keep_alive(Duration::ZERO).build().unwrap();
        pool.options().timeout(Duration::from_secs(3600)).submit(|n: u32| n, 1).result().unwrap();
        eventually(|| pool.stats().workers == 0);
        // Its references are dropped a moment after it is counted out: left are this thread, the harness and the clock.
        eventually(|| threads().len() <= 3);
        let mut pool = Some(pool);
        assert_eq!(in_fork(|| pool.take().is_some()), Some(0));
    });
}

/// Forks again and again while other threads of the parent hold what locks there are.
fn fork_in_the_middle_of_everything(child: impl Fn(&ThreadPoolExecutor) -> bool) {
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let stop = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    pool.spawn(|| ()).cancel();
                    drop(pool.workers());
                    drop(ThreadPoolExecutor::new(1).unwrap());
                }
            });
        }
        let ended = (0..150).map(|_| in_fork(|| child(&pool))).find(|code| *code != Some(0));
        stop.store(true, Ordering::Relaxed);
        ended
    });
    assert_eq!(ended, None, "how a child ended; `Some(None)` is a hang");
}

/// S11: a lock that another thread of the parent held at the fork is no hang: not for the calls that run something,
#[test]
fn a_child_forked_in_the_middle_is_refused_at_once() {
    in_own_process(LIMIT, || {
        fork_in_the_middle_of_everything(|pool| {
            let refused = matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ForkedChild));
            refused && pool.shutdown().is_complete()
        });
    });
}

/// nor for those that look,
#[test]
fn a_child_forked_in_the_middle_may_look_at_the_pool() {
    in_own_process(LIMIT, || {
        fork_in_the_middle_of_everything(|pool| {
            drop(pool.workers());
            format!("{pool:?}").len() > 1
        });
    });
}

/// nor for a pool of its own.
#[test]
fn a_child_forked_in_the_middle_may_build_a_pool() {
    in_own_process(LIMIT, || {
        fork_in_the_middle_of_everything(|_| {
            ThreadPoolExecutor::new(1).unwrap().submit(|n: u32| n, 1).result().is_ok()
        });
    });
}
