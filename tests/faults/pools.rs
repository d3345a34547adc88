//! Pools made and dropped, inside each other, and beside each other.

use std::time::{Duration, Instant};

use concurrent_futures::{ProcessPoolExecutor, ThreadPoolExecutor};
use nix::sys::signal::Signal;

use crate::procfs::workers;
use crate::scene::{Runs, assert_full, death, forever, isolated, kill, note};
use crate::support::{Turnstile, arrive, eventually};

/// As many as fit: [`isolated`] sees to it that nothing is left.
#[test]
fn pools_made_and_dropped_leave_nothing() {
    isolated(|| {
        let start = Instant::now();
        let mut made = 0;
        while made < 300 && (made < 50 || start.elapsed() < Duration::from_secs(8)) {
            let pool = ProcessPoolExecutor::new(2).unwrap();
            match made % 5 {
                0 => {} // not used at all
                1 => assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1),
                2 => drop(pool.submit(|n: u32| n, 1)),
                3 => pool.shutdown_background(),
                _ => drop(death(pool.submit(|()| -> u8 { std::process::abort() }, ()).result())),
            }
            drop(pool);
            made += 1;
        }
        println!("{made} pools in {:?}", start.elapsed());
        for _ in 0..1000 {
            let pool = ThreadPoolExecutor::new(2).unwrap();
            assert_eq!(pool.submit(|n: u32| n, 1).result().unwrap(), 1);
        }
    });
}

#[test]
fn a_pool_inside_a_task() {
    isolated(|| {
        let outer = ProcessPoolExecutor::new(2).unwrap();
        let sums: Vec<u64> = outer
            .map(
                |n: u64| {
                    let inner = ProcessPoolExecutor::new(2).unwrap();
                    inner.map(|n: u64| n * n, 0..n).map(Result::unwrap).sum()
                },
                0..6,
            )
            .map(Result::unwrap)
            .collect();
        assert_eq!(sums, [0, 0, 1, 5, 14, 30]);
        let aborted = outer.submit(
            |()| {
                let inner = ProcessPoolExecutor::new(1).unwrap();
                inner.submit(|()| -> u8 { std::process::abort() }, ()).result().is_err()
            },
            (),
        );
        assert!(aborted.result().unwrap());
        assert_full(&outer, 2);
    });
}

/// The inner pool's processes go with the worker they belong to.
#[test]
fn a_worker_killed_with_a_pool_inside() {
    isolated(|| {
        let pool = ProcessPoolExecutor::new(1).unwrap();
        let runs = Runs::new();
        let turnstile = Turnstile::new();
        let nested = pool.submit(
            |(runs, ticket): (String, String)| {
                let inner = ProcessPoolExecutor::new(2).unwrap();
                let server = inner.submit(|()| nix::unistd::getppid().as_raw(), ()).result().unwrap();
                note(&runs, u64::try_from(server).unwrap());
                let futures = [(); 2].map(|()| {
                    inner.submit(
                        |(runs, ticket): (String, String)| {
                            note(&runs, u64::from(std::process::id()));
                            arrive(&ticket);
                            forever::<()>();
                        },
                        (runs.clone(), ticket.clone()),
                    )
                });
                for future in futures {
                    let _ = future.result();
                }
            },
            (runs.ticket(), turnstile.ticket()),
        );
        turnstile.wait_for_arrivals(2);
        kill(workers()[0], Signal::SIGKILL);
        assert_eq!(death(nested.result()).signal, Some(9));
        let inside: Vec<u32> = runs.all().iter().map(|(pid, _)| u32::try_from(*pid).unwrap()).collect();
        assert_eq!(inside.len(), 3);
        eventually(|| inside.iter().all(|pid| crate::procfs::state_of(*pid).is_none()));
        assert_full(&pool, 1);
    });
}

#[test]
fn a_thread_pools_tasks_wait_for_processes() {
    isolated(|| {
        let processes = ProcessPoolExecutor::new(2).unwrap();
        let threads = ThreadPoolExecutor::new(2).unwrap();
        let futures: Vec<_> = (0..20_u64)
            .map(|n| {
                let processes = processes.clone();
                threads.spawn(move || {
                    let doubled = processes.submit(
                        |n: u64| {
                            if n == 7 {
                                std::process::abort();
                            }
                            n * 2
                        },
                        n,
                    );
                    doubled.result()
                })
            })
            .collect();
        for (n, future) in (0..).zip(futures) {
            match future.result().unwrap() {
                Ok(value) => assert_eq!(value, n * 2),
                outcome => {
                    assert_eq!(n, 7);
                    drop(death(outcome));
                }
            }
        }
        assert_full(&processes, 2);
    });
}

/// The last handle goes in a task of another pool.
#[test]
fn the_last_handle_of_a_pool_may_go_on_another_pools_thread() {
    isolated(|| {
        let threads = ThreadPoolExecutor::new(1).unwrap();
        let processes = ProcessPoolExecutor::new(1).unwrap();
        let future = processes.submit(|n: u32| n, 1);
        threads.spawn(move || drop(processes)).result().unwrap();
        assert_eq!(future.result().unwrap(), 1);
    });
}

/// A pool's crash is its own.
#[test]
fn pools_beside_each_other_do_not_notice() {
    isolated(|| {
        let healthy = ProcessPoolExecutor::new(2).unwrap();
        let other = ProcessPoolExecutor::new(2).unwrap();
        let values = healthy.map(|n: u32| n, 0..500);
        for _ in 0..20 {
            drop(death(other.submit(|()| -> u8 { std::process::abort() }, ()).result()));
        }
        other.kill_workers();
        assert_eq!(values.map(Result::unwrap).collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
        assert_full(&healthy, 2);
    });
}
