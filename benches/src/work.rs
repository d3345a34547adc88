//! Work of a known length: a chain of multiplications, measured before the pool starts.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// `rounds` dependent multiplications; the result depends on both arguments. Never inlined, and in registers: a round takes
/// the same time wherever it runs, beside which code and at which place of the stack ever.
#[inline(never)]
pub fn spin(seed: u64, rounds: u64) -> u64 {
    let mut x = seed | 1;
    for _ in 0..rounds {
        x = x.wrapping_mul(0x5851_F42D_4C95_7F2D) ^ (x >> 32);
    }
    x
}

/// How many rounds of [`spin`] fill a time here.
#[derive(Debug, Clone, Copy)]
pub struct Spin {
    pub rounds_per_us: f64,
}

impl Spin {
    /// The fastest of several tries: an interrupted one is slow, none is too fast.
    pub fn calibrate() -> Self {
        const ROUNDS: u64 = 1_000_000;
        let fastest = (0..7).map(|seed| {
            let start = Instant::now();
            black_box(spin(black_box(seed), ROUNDS));
            start.elapsed()
        });
        let fastest = fastest.min().unwrap_or(Duration::from_micros(1));
        #[expect(clippy::cast_precision_loss, reason = "a million")]
        let rounds = ROUNDS as f64;
        Self { rounds_per_us: rounds / fastest.as_secs_f64() / 1e6 }
    }

    pub fn rounds(&self, microseconds: f64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive time of a benchmark"
        )]
        let rounds = (self.rounds_per_us * microseconds) as u64;
        rounds
    }
}
