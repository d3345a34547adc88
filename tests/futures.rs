//! Futures that the pool polls, with the timers and sockets of other runtimes, and how they end early.

#![allow(clippy::disallowed_types, reason = "tests watch the library from outside its models")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

#[path = "support/mod.rs"]
mod support;

use std::future::{Future, poll_fn};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use concurrent_futures::{TaskError, TaskFuture, ThreadPoolExecutor};
use support::{Gate, Tally, Watchdog, eventually};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Polls `future` inside the runtime, where tokio's sockets and timers must be made.
fn inside<F: Future>(
    runtime: &tokio::runtime::Handle,
    future: F,
) -> impl Future<Output = F::Output> + use<F> {
    let (handle, mut future) = (runtime.clone(), Box::pin(future));
    poll_fn(move |context| {
        let _inside = handle.enter();
        future.as_mut().poll(context)
    })
}

/// Wakers that nobody will call, and that keep their futures waiting.
static KEPT: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Waits for ever, holding `held`; opens the gate at its first poll.
async fn hold<T>(held: T, polled: Gate) {
    poll_fn(|context| {
        KEPT.lock().unwrap().push(context.waker().clone());
        polled.open();
        Poll::<()>::Pending
    })
    .await;
    drop(held);
}

/// What nobody can wake any more will never be ready: it is dropped at once, and says so.
#[test]
fn a_future_that_nobody_can_wake_is_abandoned() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let probe = tally.probe();
    let future = pool.spawn_future(async move {
        std::future::pending::<()>().await;
        drop(probe);
    });
    assert!(matches!(future.result(), Err(TaskError::Abandoned)));
    tally.assert_balanced();
}

#[test]
fn ten_thousand_timers_of_two_runtimes_at_once() {
    let _watchdog = Watchdog::start();
    let runtime = runtime();
    let _inside = runtime.enter();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let start = Instant::now();
    let limit = Duration::from_millis(50);
    let futures: Vec<_> = (0..10_000_u32)
        .map(|n| {
            if n % 2 == 0 {
                let timer = tokio::time::sleep(limit); // made inside the runtime
                pool.spawn_future(async move {
                    timer.await;
                    n
                })
            } else {
                pool.spawn_future(async move {
                    async_io::Timer::after(limit).await;
                    n
                })
            }
        })
        .collect();
    for (n, future) in (0..).zip(futures) {
        assert_eq!(future.result().unwrap(), n);
    }
    assert!(start.elapsed() >= limit);
}

#[test]
fn sockets_of_tokio_are_read_and_written_on_the_pool() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let _watchdog = Watchdog::start();
    let runtime = runtime();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let server = pool.spawn_future(inside(runtime.handle(), async move {
        let (mut socket, _) = listener.accept().await?;
        let mut text = String::new();
        socket.read_to_string(&mut text).await?;
        io::Result::Ok(text)
    }));
    let client = pool.spawn_future(inside(runtime.handle(), async move {
        let mut socket = tokio::net::TcpStream::connect(address).await?;
        for _ in 0..1_000 {
            socket.write_all(b"hello ").await?;
        }
        socket.shutdown().await
    }));
    client.result().unwrap().unwrap();
    assert_eq!(server.result().unwrap().unwrap(), "hello ".repeat(1_000));
}

#[test]
fn sockets_of_async_io_are_read_and_written_on_the_pool() {
    use std::io::{Read, Write};
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let listener = async_io::Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
    let address = listener.get_ref().local_addr().unwrap();
    let server = pool.spawn_future(async move {
        let (socket, _) = listener.accept().await?;
        let mut text = Vec::new();
        loop {
            let mut buffer = [0; 512];
            match socket.read_with(|mut socket| socket.read(&mut buffer)).await? {
                0 => return io::Result::Ok(text),
                read => text.extend_from_slice(&buffer[..read]),
            }
        }
    });
    let client = pool.spawn_future(async move {
        let socket = async_io::Async::<std::net::TcpStream>::connect(address).await?;
        for _ in 0..1_000 {
            socket.write_with(|mut socket| socket.write(b"hello ")).await?;
        }
        io::Result::Ok(())
    });
    client.result().unwrap().unwrap();
    assert_eq!(server.result().unwrap().unwrap(), "hello ".repeat(1_000).as_bytes());
}

/// An abort drops a future that nobody would ever wake, on the pool; what it says comes after that.
#[test]
fn an_abort_drops_a_future_that_waits() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::builder().max_workers(1).name_prefix("dropper").build().unwrap();
    struct Where(mpsc::Sender<Option<String>>);
    impl Drop for Where {
        fn drop(&mut self) {
            self.0.send(std::thread::current().name().map(str::to_owned)).unwrap();
        }
    }
    let (sender, receiver) = mpsc::channel();
    let polled = Gate::new();
    let future = pool.spawn_future(hold((tally.probe(), Where(sender)), polled.clone()));
    polled.pass();
    eventually(|| future.is_running());
    assert!(!future.cancel(), "it has begun");
    assert!(future.abort());
    assert!(matches!(future.result(), Err(TaskError::Cancelled)));
    assert_eq!(receiver.recv().unwrap().as_deref(), Some("dropper-0"));
    tally.assert_balanced();
    // By a timer of tokio's that is a day away.
    let runtime = runtime();
    let _inside = runtime.enter();
    let sleeps = pool.spawn_future(tokio::time::sleep(DAY));
    eventually(|| sleeps.is_running());
    assert!(sleeps.abort());
    assert!(matches!(sleeps.result(), Err(TaskError::Cancelled)));
}

/// Before the first poll a cancel does it too, and the future is dropped as soon as a worker comes to it.
#[test]
fn a_cancel_before_the_first_poll_drops_the_future() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    gate.wait_for_arrivals(1);
    let future = pool.spawn_future(hold(tally.probe(), Gate::new()));
    assert!(future.cancel() && future.is_cancelled());
    gate.open();
    first.result().unwrap();
    eventually(|| tally.alive() == 0);
    assert!(matches!(future.result(), Err(TaskError::Cancelled)));
}

#[test]
fn cancel_on_drop_aborts_a_future() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    for _ in 0..100 {
        let polled = Gate::new();
        let future = pool.spawn_future(hold(tally.probe(), polled.clone())).cancel_on_drop();
        polled.pass();
        drop(future);
        eventually(|| tally.alive() == 0);
    }
    // Without it, the future lives on.
    let (polled, lets_go) = (Gate::new(), Arc::new(Mutex::new(None::<Waker>)));
    let (opens, wakes, probe) = (polled.clone(), Arc::clone(&lets_go), tally.probe());
    let mut is_first = true;
    drop(pool.spawn_future(async move {
        poll_fn(|context| {
            if std::mem::take(&mut is_first) {
                *wakes.lock().unwrap() = Some(context.waker().clone());
                opens.open();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        drop(probe);
    }));
    polled.pass();
    assert_eq!(tally.alive(), 1);
    lets_go.lock().unwrap().take().unwrap().wake();
    eventually(|| tally.alive() == 0);
}

/// Aborts that meet wakes, polls and ends: each future ends once, and is dropped.
#[test]
fn aborts_at_any_moment_end_every_future_once() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(2).unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    for round in 0..2_000_u32 {
        let probe = tally.probe();
        let mut left = round % 5;
        let future = pool.spawn_future(async move {
            poll_fn(|context| {
                context.waker().wake_by_ref();
                let is_over = left == 0;
                left = left.saturating_sub(1);
                if is_over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            probe.number
        });
        let counts = Arc::clone(&ended);
        future.add_done_callback(move |_| {
            counts.fetch_add(1, Ordering::SeqCst);
        });
        for _ in 0..round % 97 {
            std::hint::spin_loop();
        }
        future.abort();
        assert!(matches!(future.result(), Ok(0) | Err(TaskError::Cancelled)));
    }
    assert_eq!(ended.load(Ordering::SeqCst), 2_000);
    eventually(|| tally.alive() == 0);
    pool.shutdown();
    tally.assert_balanced();
}

#[test]
fn a_panic_is_the_outcome_or_goes_to_the_handler() {
    let _watchdog = Watchdog::start();
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let pool = ThreadPoolExecutor::builder()
        .max_workers(1)
        .panic_handler(move |report| sender.lock().unwrap().send(report.message.clone()).unwrap())
        .build()
        .unwrap();
    async fn fails(text: &str) -> u32 {
        panic!("{text}");
    }
    let Err(TaskError::Panicked(report)) = pool.spawn_future(fails("asked for")).result() else { panic!() };
    assert_eq!(report.message, "asked for");
    let gate = Gate::new();
    let passes = gate.clone();
    let first = pool.spawn(move || passes.pass());
    drop(pool.spawn_future(fails("stray")));
    gate.open();
    assert_eq!(receiver.recv().unwrap(), "stray");
    first.result().unwrap();
}

/// Every manner of shutdown ends futures that wait, at once, and drops them.
#[test]
fn a_shutdown_ends_futures_that_wait() {
    let _watchdog = Watchdog::start();
    for manner in 0..5 {
        let tally = Tally::local();
        let pool = ThreadPoolExecutor::new(2).unwrap();
        let waits: Vec<TaskFuture<()>> = (0..50)
            .map(|_| {
                let polled = Gate::new();
                let future = pool.spawn_future(hold(tally.probe(), polled.clone()));
                polled.pass();
                future
            })
            .collect();
        match manner {
            0 => drop(pool.shutdown()),
            1 => drop(pool.shutdown_now()),
            2 => drop(pool.shutdown_timeout(Duration::ZERO)),
            3 => pool.shutdown_background(),
            _ => drop(pool),
        }
        for future in waits {
            let outcome = future.result();
            assert!(matches!(outcome, Err(TaskError::ShutDown)), "{manner}: {outcome:?}");
        }
        tally.assert_balanced();
    }
}

/// Polls that lie in the queue when it is emptied.
#[test]
fn a_shutdown_that_cancels_ends_futures_that_are_scheduled() {
    let _watchdog = Watchdog::start();
    let tally = Tally::local();
    let pool = ThreadPoolExecutor::new(1).unwrap();
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    drop(pool.spawn(move || passes.pass()));
    gate.wait_for_arrivals(1);
    let futures: Vec<_> = (0..50).map(|_| pool.spawn_future(hold(tally.probe(), Gate::new()))).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| pool.shutdown_now());
        for future in futures {
            assert!(matches!(future.result(), Err(TaskError::ShutDown)));
        }
        assert_eq!(tally.alive(), 0);
        gate.open();
    });
}

/// A waker never waits for a place in a bounded queue, whatever thread it is called on.
#[test]
fn a_wake_does_not_wait_for_a_place_in_the_queue() {
    let _watchdog = Watchdog::start();
    let pool = ThreadPoolExecutor::builder().max_workers(1).queue_capacity(1).build().unwrap();
    let wakers = Arc::new(Mutex::new(Vec::new()));
    let futures: Vec<_> = (0..10)
        .map(|_| {
            let wakers = Arc::clone(&wakers);
            let mut is_first = true;
            pool.spawn_future(poll_fn(move |context| {
                if std::mem::take(&mut is_first) {
                    wakers.lock().unwrap().push(context.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            }))
        })
        .collect();
    eventually(|| wakers.lock().unwrap().len() == 10);
    let gate = Gate::new();
    let _opens = gate.opens_at_the_end();
    let passes = gate.clone();
    drop(pool.spawn(move || passes.pass()));
    gate.wait_for_arrivals(1);
    let fills = pool.spawn(|| ());
    let wakers = std::mem::take(&mut *wakers.lock().unwrap());
    wakers.into_iter().for_each(Waker::wake);
    gate.open();
    fills.result().unwrap();
    futures.into_iter().for_each(|future| future.result().unwrap());
}

/// The handle may be dropped while wakers are at it: the drop still waits for what runs.
#[test]
fn a_waker_never_holds_the_last_handle() {
    let _watchdog = Watchdog::start();
    for _ in 0..200 {
        let pool = ThreadPoolExecutor::new(1).unwrap();
        let slot = Arc::new(Mutex::new(None::<Waker>));
        let wakes = Arc::clone(&slot);
        let future = pool.spawn_future(poll_fn(move |context| {
            *wakes.lock().unwrap() = Some(context.waker().clone());
            Poll::<()>::Pending
        }));
        eventually(|| slot.lock().unwrap().is_some());
        let waker = slot.lock().unwrap().clone().unwrap();
        let waking = std::thread::spawn(move || (0..50).for_each(|_| waker.wake_by_ref()));
        let ran = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&ran);
        drop(pool.spawn(move || counts.fetch_add(1, Ordering::SeqCst)));
        drop(pool);
        assert_eq!(ran.load(Ordering::SeqCst), 1, "the drop did not wait");
        waking.join().unwrap();
        assert!(matches!(future.result(), Err(TaskError::ShutDown)));
    }
}
