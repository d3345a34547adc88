//! S11 for process pools: a child made by the user's own `fork` is answered at once, and its parent does not notice.

use std::time::Duration;

use concurrent_futures::{ProcessPoolExecutor, SubmitError, TaskError};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use crate::scene::{assert_full, isolated};
use crate::support::{Turnstile, in_fork, pass};

#[test]
fn a_forked_child_is_refused_at_once() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let mut turnstile = Turnstile::new();
        let running = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let ended = pool.submit(|n: u32| n, 5);
        ended.wait();
        let mut ended = Some(ended);
        let code = in_fork(|| {
            let refused = matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ForkedChild));
            let tried = matches!(pool.try_submit(|n: u32| n, 1), Err(SubmitError::ForkedChild { .. }));
            running.wait();
            let waited =
                !running.wait_timeout(Duration::from_secs(100)) && !running.cancel() && !running.abort();
            let mapped = pool.map(|n: u32| n, 0..3).all(|item| matches!(item, Err(TaskError::ForkedChild)));
            let old = matches!(ended.take().unwrap().result(), Ok(5));
            let looked = format!("{pool:?} {running:?} {:?}", pool.workers().len()).len() > 1;
            pool.shutdown();
            pool.shutdown_now();
            pool.shutdown_timeout(Duration::from_secs(100));
            pool.shutdown_background();
            pool.terminate_workers();
            pool.kill_workers();
            refused && tried && waited && mapped && old && looked
        });
        assert_eq!(code, Some(0));
        turnstile.open();
        running.result().unwrap();
        assert_full(&pool, 2);
    });
}

/// Dropping its handles in the child is a touch like any other; the parent's workers go on.
#[test]
fn a_forked_child_may_drop_its_handles() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let mut turnstile = Turnstile::new();
        let running = pool.submit(|ticket: String| pass(&ticket), turnstile.ticket());
        turnstile.wait_for_arrivals(1);
        let mut both = Some((pool, running));
        assert_eq!(in_fork(|| both.take().is_some()), Some(0));
        turnstile.open();
        let (pool, running) = both.unwrap();
        running.result().unwrap();
        assert_full(&pool, 2);
    });
}

#[test]
fn a_forked_child_may_build_a_pool_of_its_own() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let code = in_fork(|| {
            let own = ProcessPoolExecutor::new(1).unwrap();
            own.submit(|n: u32| n, 1).result().is_ok() && own.shutdown().is_complete()
        });
        assert_eq!(code, Some(0));
        assert_full(&pool, 1);
    });
}

/// Whatever locks the pool's threads hold at the fork.
#[test]
fn a_child_forked_in_the_middle_of_everything_is_refused_at_once() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let futures: Vec<_> = (0..20).map(|n| pool.submit(|n: u32| n, n)).collect();
                    drop(pool.workers());
                    futures.into_iter().for_each(|future| assert!(future.result().is_ok()));
                }
            });
            let child = || {
                let refused = matches!(pool.submit(|n: u32| n, 1).result(), Err(TaskError::ForkedChild));
                drop((pool.workers(), pool.stats(), format!("{pool:?}")));
                refused && pool.shutdown().is_complete()
            };
            let ended = (0..60).map(|_| in_fork(child)).find(|code| *code != Some(0));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            ended
        });
        assert_eq!(ended, None, "how a child ended; `Some(None)` is a hang");
        assert_full(&pool, 2);
    });
}

/// A child that lives on holds copies of the pool's sockets. The pool ends all the same, and so do its workers.
#[test]
fn a_forked_child_that_lives_on_keeps_no_pool_alive() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(2).unwrap();
        assert_full(&pool, 2);
        // SAFETY: the child does nothing but wait to be killed.
        let child = match unsafe { fork() }.unwrap() {
            ForkResult::Child => loop {
                // SAFETY: waits for a signal.
                unsafe { nix::libc::pause() };
            },
            ForkResult::Parent { child } => child,
        };
        // Deaths and replacements, too, are not hidden by the copies.
        let outcome = pool.submit(|()| -> u8 { std::process::abort() }, ()).result();
        assert_eq!(crate::scene::death(outcome).signal, Some(6));
        assert_full(&pool, 2);
        assert!(pool.shutdown().is_complete());
        assert!(crate::procfs::workers().is_empty());
        nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
        waitpid(child, None).unwrap();
    });
}
