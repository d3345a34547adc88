//! Random bytes for everything the parent decodes: none of it may panic, take memory without need, or believe what cannot
//! be. Run longer by `FUZZ_SECONDS`, again by `FUZZ_SEED`: see `ci/fuzz.sh`.
//!
//! Half of the inputs are valid ones with a few bytes changed, cut or repeated: they get further than noise.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::job::read_answer;
use crate::ring::{Records, Ring, RingFuzz};
use crate::sys::memory::SharedPage;
use crate::wire::{CallHead, HEADER, Header, Kind, Panic, Status, take_sized};
use executor_core::codec;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }

    fn bytes(&mut self, longest: usize) -> Vec<u8> {
        (0..self.below(longest + 1)).map(|_| self.next().to_le_bytes()[7]).collect()
    }

    /// Something like a valid input.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => {
                    let copy = bytes[at.min(bytes.len())..].to_vec();
                    bytes.extend_from_slice(&copy);
                }
                2 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                3 if !bytes.is_empty() => bytes[at] = [0, 0xff, 0x7f, 0x80][self.below(4)],
                _ if !bytes.is_empty() => bytes[at] = self.next().to_le_bytes()[3],
                _ => {}
            }
        }
    }
}

/// Runs `round` again and again with the same numbers each time.
fn fuzz(name: &str, mut round: impl FnMut(&mut Random)) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = variable("FUZZ_SECONDS");
    let seed = variable("FUZZ_SEED").unwrap_or(1).max(1);
    let (start, mut rounds) = (Instant::now(), 0_u64);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    loop {
        (0..1_000).for_each(|_| round(&mut random));
        rounds += 1_000;
        let is_over = match seconds {
            None => rounds == 20_000,
            Some(seconds) => start.elapsed() >= Duration::from_secs(seconds),
        };
        if is_over {
            return println!("{name}: {rounds} inputs, FUZZ_SEED={seed}");
        }
    }
}

fn status(random: &mut Random) -> Status {
    [
        Status::Returned,
        Status::Panicked,
        Status::EncodeFailed,
        Status::DecodeFailed,
        Status::Failed,
        Status::TooLarge,
    ][random.below(6)]
}

#[test]
fn frames() {
    fuzz("frames", |random| {
        let mut bytes = random.bytes(200);
        if random.below(2) == 0 {
            let body = random.bytes(64);
            let header = Header {
                status: status(random),
                ..Header::new(Kind::Reply, random.next(), body.len() as u64)
            };
            bytes = [&header.encode()[..], &body].concat();
            random.spoil(&mut bytes);
        }
        if let Ok(Some(header)) = Header::decode(&bytes) {
            assert_eq!(Header::decode(&header.encode()), Ok(Some(header)));
            let body = bytes.get(HEADER..).unwrap_or_default();
            if let Some((_, rest)) = CallHead::decode(body) {
                assert!(rest.len() + CallHead::BYTES == body.len());
            }
            if let Some((sized, rest)) = take_sized(body) {
                assert!(sized.len() + rest.len() + 8 == body.len());
            }
        }
    });
}

#[test]
fn answers() {
    fuzz("answers", |random| {
        let mut body = random.bytes(100);
        if random.below(2) == 0 {
            let panic = Panic {
                message: "m".repeat(random.below(20)),
                file: "f".repeat(random.below(20)),
                line: 7,
                column: 9,
                backtrace: (random.below(2) == 0).then(|| "b".repeat(random.below(20))),
            };
            body.clear();
            codec::encode(&panic, &mut body).unwrap();
            random.spoil(&mut body);
        }
        let status = status(random);
        let answer = read_answer(status, &body, "worker", Some("label"), 1_000);
        assert_eq!(answer.is_ok(), status == Status::Returned);
        if let Err(error) = answer {
            assert!(!error.to_string().is_empty());
        }
    });
}

#[test]
fn results() {
    type Deep = (Vec<Option<String>>, BTreeMap<u32, Vec<u64>>, Result<char, (i8, bool)>, f64);
    fuzz("results", |random| {
        let value: Deep = (
            vec![Some("text".to_owned()), None],
            (0..3).map(|n| (n, vec![u64::from(n); random.below(5)])).collect(),
            Ok('x'),
            0.5,
        );
        let mut bytes = random.bytes(60);
        if random.below(2) == 0 {
            bytes.clear();
            codec::encode_payload(&value, &mut bytes).unwrap();
            random.spoil(&mut bytes);
        }
        let _ = codec::decode_payload::<Deep>(&bytes);
        let _ = codec::decode_payload::<Vec<Vec<u128>>>(&bytes);
        let _ = codec::decode_payload::<String>(&bytes);
        assert_eq!(codec::decode_payload::<u64>(&bytes).is_ok(), bytes.len() == 8);
        assert_eq!(codec::decode_payload::<Vec<u8>>(&bytes).unwrap(), bytes);
    });
}

/// Memory that somebody else writes to while it is read: some of what is copied is not what was there.
struct Restless<'a> {
    bytes: &'a [u8],
    random: &'a mut Random,
}

impl codec::Bytes for Restless<'_> {
    fn left(&self) -> usize {
        self.bytes.len()
    }

    fn take(&mut self, out: &mut [u8]) -> bool {
        let Some((front, rest)) = self.bytes.split_at_checked(out.len()) else { return false };
        out.copy_from_slice(front);
        if !out.is_empty() && self.random.below(4) == 0 {
            let at = self.random.below(out.len());
            out[at] = self.random.next().to_le_bytes()[6];
        }
        self.bytes = rest;
        true
    }
}

/// Results in memory that the worker goes on writing to.
#[test]
fn results_that_change_while_they_are_read() {
    type Deep = (Vec<Option<String>>, BTreeMap<u32, Vec<u64>>, Vec<u8>);
    fuzz("restless", |random| {
        let mut bytes = random.bytes(60);
        if random.below(4) > 0 {
            let texts = vec![Some("text".repeat(random.below(9))), None];
            let numbers = (0..3).map(|n| (n, vec![u64::from(n); random.below(5)])).collect();
            let value: Deep = (texts, numbers, random.bytes(30));
            bytes.clear();
            codec::encode_payload(&value, &mut bytes).unwrap();
        }
        let _ = codec::decode_copied::<Deep>(Restless { bytes: &bytes, random });
        let _ = codec::decode_copied::<String>(Restless { bytes: &bytes, random });
        let _ = codec::decode_copied::<Vec<Vec<u128>>>(Restless { bytes: &bytes, random });
        let copied = codec::decode_copied::<Vec<u8>>(Restless { bytes: &bytes, random });
        assert_eq!(copied.unwrap().len(), bytes.len());
        let number = codec::decode_copied::<u64>(Restless { bytes: &bytes, random });
        assert_eq!(number.is_ok(), bytes.len() == 8);
    });
}

/// A worker that writes what it likes into the memory it shares, between true records.
#[test]
fn rings() {
    let (page, _file) = SharedPage::create().unwrap();
    let mut state = RingFuzz::default();
    let mut number = 0;
    fuzz("rings", |random| {
        let ring = Ring::of(&page);
        for _ in 0..random.below(6) {
            let body = random.bytes(60);
            let time = (random.below(2) == 0).then(|| random.next());
            if state.writer.commit(ring, number, time, &body) {
                number += 1;
            }
        }
        if random.below(3) == 0 {
            let (at, word) = (random.next(), random.next() >> random.below(64));
            state.scribble(ring, at, word);
        }
        let Ok(_) = state.reader.fill(ring, &mut Vec::new()) else { return state.start_again(ring) };
        let (words, used) = state.reader.take();
        let most = random.next() % 8;
        let mut records = Records::new(&words[used..], state.next, most);
        let read = records.by_ref().map(<[u8]>::len).sum::<usize>();
        assert!(records.count <= most && read <= 8 * records.used && used + records.used <= words.len());
        let (used, is_garbage) = (used + records.used, records.is_garbage);
        state.next += records.count;
        let is_stuck = records.count == 0 && used < words.len() && most > 0;
        state.reader.put_back(words, used);
        if is_garbage || is_stuck {
            state.start_again(ring);
            number = 0;
        }
    });
}
