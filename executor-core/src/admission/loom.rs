//! The places of a bounded queue, on the real [`Capacity`]: nobody who may go on waits for ever.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, model, thread};

/// Two wait for one place, which is given back twice.
#[test]
fn take_against_take_against_give_back() {
    model(3, || {
        let capacity = Arc::new(Capacity::new(Some(1)));
        let inside = Arc::new(AtomicUsize::new(0));
        assert!(capacity.try_take());
        let takers = [(); 2].map(|()| {
            let (capacity, inside) = (Arc::clone(&capacity), Arc::clone(&inside));
            thread::Builder::new()
                .spawn(move || {
                    assert!(capacity.take(|| Ok(())).is_ok());
                    assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "one place");
                    inside.fetch_sub(1, Ordering::Relaxed);
                    capacity.give_back();
                })
                .unwrap()
        });
        capacity.give_back();
        for taker in takers {
            taker.join().unwrap();
        }
        assert!(capacity.try_take(), "all places are back");
    });
}

/// A shutdown comes while two wait: both see it. (A store that nobody orders, as `Registry` does it: the phase first.)
#[test]
fn take_against_wake_all() {
    model(4, || {
        let capacity = Arc::new(Capacity::new(Some(1)));
        let over = Arc::new(AtomicBool::new(false));
        assert!(capacity.try_take());
        let takers = [(); 2].map(|()| {
            let (capacity, over) = (Arc::clone(&capacity), Arc::clone(&over));
            thread::Builder::new()
                .spawn(move || {
                    let check = || if over.load(Ordering::Relaxed) { Err(Refusal::ShutDown) } else { Ok(()) };
                    assert!(matches!(capacity.take(check), Err(Refusal::ShutDown)));
                })
                .unwrap()
        });
        over.store(true, Ordering::Relaxed);
        capacity.wake_all();
        for taker in takers {
            taker.join().unwrap();
        }
    });
}

/// A place comes free and the pool ends: one goes in or both are refused, and nobody waits.
#[test]
fn take_against_give_back_against_wake_all() {
    model(3, || {
        let capacity = Arc::new(Capacity::new(Some(1)));
        let over = Arc::new(AtomicBool::new(false));
        assert!(capacity.try_take());
        let takers = [(); 2].map(|()| {
            let (capacity, over) = (Arc::clone(&capacity), Arc::clone(&over));
            thread::Builder::new()
                .spawn(move || {
                    let check = || if over.load(Ordering::Relaxed) { Err(Refusal::ShutDown) } else { Ok(()) };
                    capacity.take(check).is_ok()
                })
                .unwrap()
        });
        capacity.give_back();
        over.store(true, Ordering::Relaxed);
        capacity.wake_all();
        let entered = takers.map(|taker| usize::from(taker.join().unwrap()));
        assert!(entered.iter().sum::<usize>() <= 1);
    });
}
