//! The ring through which a worker gives its small results: memory both processes see, so that a finished result leaves
//! the worker by one store, and many of them wake the parent once.
//!
//! ```text
//!   COMMITTED   words the worker has written, ever              written by the worker
//!   TAKEN       words the parent has copied out, ever           written by the parent
//!   BELL        who is told when there is something             see [`bell`](crate::bell)
//!   ring        RING_WORDS words; word n of the stream is at n modulo RING_WORDS
//!
//!   record      a head word { number of the task: 32 bits · TIMED: 1 bit · BULK: 1 bit · length of the body: 30 bits }
//!               with TIMED, how long it and the untimed tasks before it ran, in nanoseconds
//!               the body, padded to words; with BULK, the length of the body, which is in the [`bulk`](crate::bulk) memory
//! ```
//!
//! * A record is written, then committed by one store; so after the worker's death at any instruction, what is committed
//!   is whole, and the tasks it answers are done.
//! * What does not fit goes through the socket, after what was committed before and ahead of what is committed later: the
//!   socket takes it before the next commit. So a record with another number than the one expected means: the answer in
//!   between is in the socket.
//! * Hostile bytes: the parent copies words out and looks at nothing but the copy. It believes COMMITTED only within the
//!   ring's size ahead of its own count, and a length only within what it has copied.

use std::time::{Duration, Instant};

use crate::bell::{Bell, Told, WAITER};
use crate::sync::{Arc, AtomicU64, Ordering};
use crate::sys::memory::{self, RING_WORDS, SharedPage};
use crate::wire::Garbage;

/// The longest body that goes through the ring, in bytes. Longer ones gain nothing from it.
pub(crate) const LONGEST: usize = 8 * 1024;

/// Where the control words are; each is written by another side, so each has a cache line.
const COMMITTED: usize = 64;
const TAKEN: usize = 128;
pub(crate) const BELL: usize = 192;

const TIMED: u64 = 1 << 31;
const BULK: u64 = 1 << 30;
const WORD: usize = size_of::<u64>();

/// The shared words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring<'a> {
    committed: &'a AtomicU64,
    taken: &'a AtomicU64,
    pub(crate) bell: Bell<'a>,
    words: &'a [AtomicU64],
}

impl<'a> Ring<'a> {
    /// The ring in the memory of one worker.
    pub(crate) fn of(page: &'a SharedPage) -> Self {
        Self {
            committed: page.word(COMMITTED),
            taken: page.word(TAKEN),
            bell: Bell::new(page.word(BELL)),
            words: page.ring_words(),
        }
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        #[expect(clippy::cast_possible_truncation, reason = "only the lowest bits count")]
        let at = position as usize % RING_WORDS;
        &self.words[at]
    }
}

/// The worker's side.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    position: u64,
    /// Whether something is committed that the parent was not told of.
    pub(crate) owes_bell: bool,
}

impl Writer {
    /// Commits the result of a task; false if it must go through the socket.
    #[inline]
    pub(crate) fn commit(&mut self, ring: Ring<'_>, number: u64, time: Option<u64>, body: &[u8]) -> bool {
        body.len() <= LONGEST && self.append(ring, number, time, 0, body)
    }

    /// Commits the result of a task that lies in the bulk memory; false if there is no room for the record.
    pub(crate) fn commit_bulk(
        &mut self,
        ring: Ring<'_>,
        number: u64,
        time: Option<u64>,
        length: usize,
    ) -> bool {
        self.append(ring, number, time, BULK, &(length as u64).to_ne_bytes())
    }

    #[inline]
    fn append(&mut self, ring: Ring<'_>, number: u64, time: Option<u64>, flags: u64, body: &[u8]) -> bool {
        let words = 1 + usize::from(time.is_some()) + body.len().div_ceil(WORD);
        // ORDERING: acquire: the parent's reads of these places are over before we write there again.
        let held = self.position.wrapping_sub(ring.taken.load(Ordering::Acquire));
        if held.saturating_add(words as u64) > RING_WORDS as u64 {
            return false;
        }
        let head = u64::from(low(number)) << 32 | body.len() as u64 | flags | time.map_or(0, |_| TIMED);
        // ORDERING: relaxed, here and below: published by COMMITTED.
        ring.word(self.position).store(head, Ordering::Relaxed);
        let mut at = self.position + 1;
        if let Some(time) = time {
            ring.word(at).store(time, Ordering::Relaxed);
            at += 1;
        }
        let (whole, rest) = body.as_chunks::<WORD>();
        for word in whole {
            ring.word(at).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
            at += 1;
        }
        if !rest.is_empty() {
            let mut word = [0; WORD];
            word[..rest.len()].copy_from_slice(rest);
            ring.word(at).store(u64::from_ne_bytes(word), Ordering::Relaxed);
            at += 1;
        }
        self.position = at;
        // ORDERING: release: publishes the record; pairs with the acquire in `Reader::fill`.
        ring.committed.store(at, Ordering::Release);
        self.owes_bell = true;
        true
    }

    /// Whether there is something to tell, and nobody sleeps who waits for it.
    pub(crate) fn is_early(&self, ring: Ring<'_>) -> bool {
        self.owes_bell && ring.bell.is_set()
    }

    /// Whether the parent has everything: then there is nothing to tell.
    fn is_taken(&self, ring: Ring<'_>) -> bool {
        // ORDERING: relaxed: nothing is read through it. What it misses is told once more.
        ring.taken.load(Ordering::Relaxed) == self.position
    }

    /// Whether the ring is so full that the parent should empty it.
    pub(crate) fn is_filling(&self, ring: Ring<'_>) -> bool {
        // ORDERING: relaxed: a hint.
        self.position.wrapping_sub(ring.taken.load(Ordering::Relaxed)) > RING_WORDS as u64 / 2
    }

    /// The parent is to know of what is committed. Says who must be woken.
    pub(crate) fn announce(&mut self, ring: Ring<'_>) -> Option<Told> {
        if !std::mem::take(&mut self.owes_bell) || self.is_taken(ring) {
            return None;
        }
        ring.bell.take()
    }
}

/// A bell that was turned to a thread that waits.
#[derive(Debug)]
pub(crate) struct TurnedBell(Arc<SharedPage>);

impl TurnedBell {
    /// Turns a bell that is set; none if it has rung.
    pub(crate) fn new(page: &Arc<SharedPage>) -> Option<Self> {
        Ring::of(page).bell.turn().then(|| Self(Arc::clone(page)))
    }

    /// Sleeps until it rings, or turns it back after `patience`; says which.
    pub(crate) fn wait(self, patience: Duration) -> bool {
        let (bell, start) = (Ring::of(&self.0).bell, Instant::now());
        while bell.is_turned() {
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return !bell.turn_back();
            }
            self.0.sleep_while(BELL, WAITER, left);
        }
        true
    }
}

/// The parent's side: what was copied out, and how far it has been dealt with.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    position: u64,
    words: Vec<u64>,
    used: usize,
}

/// A record, in the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// The lower half of the task's number.
    pub(crate) number: u32,
    pub(crate) time: Option<u64>,
    pub(crate) body: &'a [u8],
    /// Whether that is the length of the true one.
    is_bulk: bool,
    /// What it takes in the copy, in words.
    size: usize,
}

impl Record<'_> {
    /// How long the body is, if it lies in the bulk memory.
    pub(crate) fn bulk_length(&self) -> Option<u64> {
        self.body.try_into().ok().filter(|_| self.is_bulk).map(u64::from_ne_bytes)
    }

    /// What it takes in the copy, in words.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Whether it answers this task, and is all of so many words.
    pub(crate) const fn is_all(&self, number: u32, words: usize) -> bool {
        self.number == number && self.size == words
    }
}

impl Reader {
    /// Whether something is committed that was not copied out.
    pub(crate) fn has_more(&self, ring: Ring<'_>) -> bool {
        // ORDERING: relaxed: a look; `fill` synchronises.
        ring.committed.load(Ordering::Relaxed) != self.position
    }

    /// Copies out what is committed, into memory given for that; says whether there was anything.
    pub(crate) fn fill(&mut self, ring: Ring<'_>, memory: &mut Vec<u64>) -> Result<bool, Garbage> {
        // ORDERING: acquire: pairs with the release in `commit`.
        let committed = ring.committed.load(Ordering::Acquire);
        let count = committed.wrapping_sub(self.position);
        if count == 0 {
            return Ok(false);
        }
        let count = usize::try_from(count).ok().filter(|count| *count <= RING_WORDS).ok_or(Garbage)?;
        if self.words.is_empty() {
            self.words = std::mem::take(memory);
        }
        self.words.drain(..std::mem::take(&mut self.used));
        #[expect(clippy::cast_possible_truncation, reason = "only the lowest bits count")]
        let start = self.position as usize % RING_WORDS;
        let (until_end, wrapped) = (count.min(RING_WORDS - start), count.saturating_sub(RING_WORDS - start));
        for piece in [&ring.words[start..start + until_end], &ring.words[..wrapped]] {
            // ORDERING: relaxed: COMMITTED was acquired; whatever a hostile worker writes meanwhile is some value.
            self.words.extend(piece.iter().map(|word| word.load(Ordering::Relaxed)));
        }
        self.position = committed;
        // ORDERING: release: our reads come first; pairs with the acquire in `commit`.
        ring.taken.store(committed, Ordering::Release);
        Ok(true)
    }

    /// Whether everything copied out is dealt with.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == self.words.len()
    }

    /// The copy, to be read while the reader is elsewhere. Give it back by [`put_back`](Self::put_back).
    pub(crate) fn take(&mut self) -> (Vec<u64>, usize) {
        (std::mem::take(&mut self.words), self.used)
    }

    /// The copy, dealt with up to `used`. If that is all of it, gives its memory, which is not needed here any more.
    pub(crate) fn put_back(&mut self, mut words: Vec<u64>, used: usize) -> Option<Vec<u64>> {
        if used == words.len() {
            words.clear();
            self.used = 0;
            return Some(words);
        }
        (self.words, self.used) = (words, used);
        None
    }

    /// The parent is about to sleep: it wants to be woken. Says whether it need not, since there is something.
    pub(crate) fn arm(&self, ring: Ring<'_>) -> bool {
        ring.bell.set();
        self.has_more(ring)
    }
}

impl<'a> Record<'a> {
    /// The record at the beginning of a copy; a part of one is garbage, since records are committed whole.
    #[inline]
    pub(crate) fn read(words: &'a [u64]) -> Result<Option<Self>, Garbage> {
        let Some((&head, rest)) = words.split_first() else { return Ok(None) };
        let (number, length) = ((head >> 32) as u32, (head & (BULK - 1)) as usize);
        let is_bulk = head & BULK != 0;
        let (time, rest) = if head & TIMED == 0 {
            (None, rest)
        } else {
            let (time, rest) = rest.split_first().ok_or(Garbage)?;
            (Some(*time), rest)
        };
        if length > LONGEST || (is_bulk && length != WORD) {
            return Err(Garbage);
        }
        let body = rest.get(..length.div_ceil(WORD)).ok_or(Garbage)?;
        let size = words.len() - rest.len() + body.len();
        Ok(Some(Self { number, time, body: &memory::bytes_of(body)[..length], is_bulk, size }))
    }
}

/// The records of consecutive tasks at the beginning of a copy.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    words: &'a [u64],
    next: u32,
    most: u64,
    /// How many were read, and what they take in the copy.
    pub(crate) count: u64,
    pub(crate) used: usize,
    /// What they took, as far as it was measured, in nanoseconds.
    pub(crate) time: u64,
    pub(crate) is_garbage: bool,
}

impl<'a> Records<'a> {
    /// Those of at most `most` tasks, the first of which has this number.
    pub(crate) fn new(words: &'a [u64], first: u64, most: u64) -> Self {
        Self { words, next: low(first), most, count: 0, used: 0, time: 0, is_garbage: false }
    }
}

/// The half of a task's number that is in a record.
pub(crate) const fn low(number: u64) -> u32 {
    (number & 0xffff_ffff) as u32
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.count == self.most {
            return None;
        }
        match Record::read(&self.words[self.used..]) {
            Ok(Some(record)) if record.number == self.next && !record.is_bulk => {
                self.count += 1;
                self.next = self.next.wrapping_add(1);
                self.used += record.size;
                self.time = self.time.saturating_add(record.time.unwrap_or(0));
                Some(record.body)
            }
            Ok(_) => None,
            Err(Garbage) => {
                self.is_garbage = true;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number_of(body: &[u8]) -> u64 {
        body.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    #[test]
    fn what_is_committed_comes_out_in_order_through_many_turns() {
        let (page, _file) = SharedPage::create().unwrap();
        let ring = Ring::of(&page);
        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        let (mut written, mut read) = (0_u64, 0_u64);
        while read < 100_000 {
            let length = usize::try_from(written * 7 % 41).unwrap();
            let mut body = written.to_le_bytes().to_vec();
            body.resize(8 + length, 0xee);
            if writer.commit(ring, written, written.is_multiple_of(3).then_some(written), &body) {
                written += 1;
                continue;
            }
            assert!(writer.is_filling(ring));
            assert!(reader.fill(ring, &mut Vec::new()).unwrap());
            let (words, used) = reader.take();
            let mut records = Records::new(&words[used..], read, u64::MAX);
            for body in &mut records {
                assert_eq!(number_of(&body[..8]), read);
                assert_eq!(body.len(), 8 + usize::try_from(read * 7 % 41).unwrap());
                read += 1;
            }
            let used = used + records.used;
            assert_eq!((records.is_garbage, used), (false, words.len()));
            reader.put_back(words, used);
            assert!(!reader.fill(ring, &mut Vec::new()).unwrap());
        }
    }

    #[test]
    fn a_count_or_a_length_made_up_is_garbage() {
        let (page, _file) = SharedPage::create().unwrap();
        let ring = Ring::of(&page);
        for count in [RING_WORDS as u64 + 1, u64::MAX, 1 << 40] {
            ring.committed.store(count, Ordering::Relaxed);
            assert_eq!(Reader::default().fill(ring, &mut Vec::new()), Err(Garbage));
        }
        for head in [9_u64, LONGEST as u64 + 1, TIMED - 1, TIMED | 1, TIMED, BULK, BULK | 9] {
            assert_eq!(Record::read(&[head]), Err(Garbage), "{head:#x}");
        }
        assert_eq!(Record::read(&[]), Ok(None));
    }

    #[test]
    fn a_bell_is_rung_once_each_time_it_is_set() {
        let (page, _file) = SharedPage::create().unwrap();
        let ring = Ring::of(&page);
        let (mut writer, mut reader) = (Writer::default(), Reader::default());
        assert!(!reader.arm(ring));
        assert_eq!(writer.announce(ring), None, "nothing to tell");
        assert!(writer.commit(ring, 1, None, b"a"));
        assert_eq!(writer.announce(ring), Some(Told::Dispatcher));
        assert_eq!(writer.announce(ring), None);
        assert!(writer.commit(ring, 2, None, b"b"));
        assert_eq!(writer.announce(ring), None, "not set again");
        assert!(reader.arm(ring), "there is something");
        assert!(reader.fill(ring, &mut Vec::new()).unwrap());
        assert!(!reader.arm(ring));
    }

    #[test]
    fn a_bell_that_was_turned_wakes_who_waits_or_is_turned_back() {
        let (page, _file) = SharedPage::create().unwrap();
        let page = Arc::new(page);
        let (mut writer, reader) = (Writer::default(), Reader::default());
        assert!(TurnedBell::new(&page).is_none(), "not set");
        reader.arm(Ring::of(&page));
        let bell = TurnedBell::new(&page).unwrap();
        assert!(!bell.wait(Duration::from_millis(1)), "turned back");
        let bell = TurnedBell::new(&page).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| bell.wait(Duration::MAX));
            assert!(writer.commit(Ring::of(&page), 1, None, b"a"));
            assert_eq!(writer.announce(Ring::of(&page)), Some(Told::Waiter));
            page.wake(BELL);
            assert!(waits.join().unwrap());
        });
        assert!(TurnedBell::new(&page).is_none(), "taken");
        reader.arm(Ring::of(&page));
        let bell = TurnedBell::new(&page).unwrap();
        assert!(Ring::of(&page).bell.turn_back());
        page.wake(BELL);
        assert!(bell.wait(Duration::MAX), "by the worker");
        assert!(TurnedBell::new(&page).is_some(), "set to frames");
    }

    #[test]
    fn too_long_or_too_full_is_refused() {
        let (page, _file) = SharedPage::create().unwrap();
        let ring = Ring::of(&page);
        let mut writer = Writer::default();
        assert!(!writer.commit(ring, 1, None, &[0; LONGEST + 1]));
        assert!(!writer.owes_bell);
        let commits = (1..).take_while(|number| writer.commit(ring, *number, None, &[0; LONGEST])).count();
        assert_eq!(commits, RING_WORDS * WORD / (LONGEST + WORD));
    }
}

/// Both sides of a ring, for the fuzz tests.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct RingFuzz {
    pub(crate) writer: Writer,
    pub(crate) reader: Reader,
    pub(crate) next: u64,
}

#[cfg(test)]
impl RingFuzz {
    /// Changes a word near the records, or one of the control words.
    pub(crate) fn scribble(&self, ring: Ring<'_>, at: u64, word: u64) {
        match at % 8 {
            0 => ring.committed.store(word, Ordering::Relaxed),
            1 => ring.committed.store(self.writer.position + word % 3, Ordering::Relaxed),
            2 => ring.taken.store(word, Ordering::Relaxed),
            _ => ring.word(self.writer.position.wrapping_sub(at % 29)).store(word, Ordering::Relaxed),
        }
    }

    /// A new worker in the place of one that was found out.
    pub(crate) fn start_again(&mut self, ring: Ring<'_>) {
        *self = Self::default();
        ring.committed.store(0, Ordering::Relaxed);
        ring.taken.store(0, Ordering::Relaxed);
    }
}
