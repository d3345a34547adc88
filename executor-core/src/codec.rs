//! The format of what travels: bincode 2.0.1, standard configuration (little endian, variable-length integers).
//!
//! One file decides it. bincode was chosen because it writes and reads any serde type in one pass, without names, and
//! fast; both ends are the same build of the same program, so nothing needs to describe itself. Version 2.0.1 is
//! complete and is pinned: 3.0.0 is an empty release that does not build. What a format without names cannot carry are
//! serde's `flatten`, `untagged` and `skip_serializing_if`.
//!
//! Decoding trusts nothing. bincode makes room for a text as long as it says it is before it looks whether it is there,
//! so what is decoded gets an allowance in proportion to its bytes, and a length beyond it is an error; serde reserves at
//! most 1 MiB ahead. Bytes left over are an error. The user's `Serialize` and `Deserialize` may panic: that is one too.

use std::any::{Any, TypeId};
use std::io;

use crate::{os, panic_report};
use bincode::Decode;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::read::Reader;
use bincode::de::{Decoder, DecoderImpl};
use bincode::error::DecodeError;
use bincode::serde::Compat;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Appends `value` to `out`; after an error `out` is as it was.
///
/// # Errors
///
/// What serde said, or the panic of the value's own code.
///
/// ```
/// let mut bytes = Vec::new();
/// executor_core::codec::encode(&7_u32, &mut bytes).unwrap();
/// assert_eq!(executor_core::codec::decode(&bytes), Ok(7_u32));
/// ```
pub fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), Box<str>> {
    let start = out.len();
    let written =
        panic_report::catch(|| bincode::serde::encode_into_std_write(value, &mut Sink(out), FORMAT));
    let problem: Box<str> = match written {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string().into(),
        Err(report) => format!("panicked: {report}").into(),
    };
    out.truncate(start);
    Err(problem)
}

/// Reads a value that fills `bytes`.
///
/// # Errors
///
/// What serde said, bytes left over, a length that is not to be believed, or the panic of the value's own code.
///
/// ```
/// assert!(executor_core::codec::decode::<bool>(&[1, 1]).unwrap_err().contains("left over"));
/// ```
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<str>> {
    read_all(bytes.len(), || decode_front(Source(bytes), bytes.len()))
}

/// Runs what decodes a value of so many bytes, which must be all of them.
fn read_all<T>(length: usize, read: impl FnOnce() -> Result<(T, usize), DecodeError>) -> Result<T, Box<str>> {
    match panic_report::catch(read) {
        Ok(Ok((value, 0))) => Ok(value),
        Ok(Ok((_, left))) => Err(format!("{left} of {length} bytes left over").into()),
        Ok(Err(error)) => Err(error.to_string().into()),
        Err(report) => Err(format!("panicked: {report}").into()),
    }
}

/// Types that are most of what travels in small tasks, and bytes and text: they are written and read without the format,
/// which would look at each byte.
macro_rules! with_simple_types {
    ($act:ident) => {
        $act!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64)
    };
}

/// Whether values of this type are numbers, which neither fail nor panic nor carry anything.
///
/// ```
/// use executor_core::codec::is_number;
///
/// assert!(is_number::<u64>() && !is_number::<String>());
/// ```
#[must_use]
pub fn is_number<T: 'static>() -> bool {
    macro_rules! is_one_of {
        ($($number:ty)*) => { $(TypeId::of::<T>() == TypeId::of::<$number>())||* };
    }
    with_simple_types!(is_one_of)
}

/// [`encode`] for an argument or a result: numbers, bytes and text as they are.
///
/// # Errors
///
/// Those of [`encode`].
///
/// ```
/// let mut bytes = Vec::new();
/// executor_core::codec::encode_payload(&String::from("text"), &mut bytes).unwrap();
/// assert_eq!(bytes, b"text");
/// ```
#[inline]
pub fn encode_payload<T: Serialize + 'static>(value: &T, out: &mut Vec<u8>) -> Result<(), Box<str>> {
    let any: &dyn Any = value;
    macro_rules! write_number {
        ($($number:ty)*) => {
            $(if let Some(number) = any.downcast_ref::<$number>() {
                out.extend_from_slice(&number.to_ne_bytes());
                return Ok(());
            })*
        };
    }
    with_simple_types!(write_number);
    if let Some(bytes) = any.downcast_ref::<Vec<u8>>() {
        append(out, bytes);
        return Ok(());
    }
    if let Some(text) = any.downcast_ref::<String>() {
        append(out, text.as_bytes());
        return Ok(());
    }
    encode(value, out)
}

/// [`decode`] for an argument or a result, as [`encode_payload`] has written it.
///
/// # Errors
///
/// Those of [`decode`], and bytes that are no number or no text.
///
/// ```
/// assert_eq!(executor_core::codec::decode_payload(b"text"), Ok(String::from("text")));
/// assert!(executor_core::codec::decode_payload::<u64>(b"text").is_err());
/// ```
#[inline]
pub fn decode_payload<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, Box<str>> {
    let mut value: Option<T> = None;
    let any: &mut dyn Any = &mut value;
    macro_rules! read_number {
        ($($number:ty)*) => {
            $(if let Some(place) = any.downcast_mut::<Option<$number>>() {
                let bytes = bytes.try_into().map_err(|_| format!("{} bytes for a number", bytes.len()))?;
                *place = Some(<$number>::from_ne_bytes(bytes));
                return value.ok_or_else(|| "not a number".into());
            })*
        };
    }
    with_simple_types!(read_number);
    if let Some(place) = any.downcast_mut::<Option<Vec<u8>>>() {
        *place = Some(bytes.to_vec());
    } else if let Some(place) = any.downcast_mut::<Option<String>>() {
        *place = Some(std::str::from_utf8(bytes).map_err(|error| error.to_string())?.to_owned());
    } else {
        return decode(bytes);
    }
    value.ok_or_else(|| "no value".into())
}

/// Bytes that can only be copied out, each once, from the front: memory that another process may be writing to.
///
/// ```
/// struct Stream(std::collections::VecDeque<u8>);
///
/// impl executor_core::codec::Bytes for Stream {
///     fn left(&self) -> usize {
///         self.0.len()
///     }
///
///     fn take(&mut self, out: &mut [u8]) -> bool {
///         out.len() <= self.0.len() && std::io::Read::read_exact(&mut self.0, out).is_ok()
///     }
/// }
///
/// let mut bytes = Vec::new();
/// executor_core::codec::encode_payload(&(1_u8, String::from("one")), &mut bytes).unwrap();
/// let decoded = executor_core::codec::decode_copied(Stream(bytes.into()));
/// assert_eq!(decoded, Ok((1_u8, String::from("one"))));
/// ```
pub trait Bytes {
    /// How many are left.
    fn left(&self) -> usize;

    /// Copies the next ones into `out`; false if there are not so many.
    fn take(&mut self, out: &mut [u8]) -> bool;
}

/// [`decode_payload`] of bytes that are copied while they are decoded.
///
/// # Errors
///
/// Those of [`decode_payload`].
pub fn decode_copied<T: DeserializeOwned + 'static>(mut bytes: impl Bytes) -> Result<T, Box<str>> {
    let simple = TypeId::of::<T>() == TypeId::of::<Vec<u8>>() || TypeId::of::<T>() == TypeId::of::<String>();
    if simple || is_number::<T>() {
        let mut copy = vec![0; bytes.left()];
        if Copied(&mut bytes).read(&mut copy).is_err() {
            return Err("bytes are missing".into());
        }
        return decode_simple(copy);
    }
    let length = bytes.left();
    read_all(length, || decode_front(Copied(&mut bytes), length))
}

/// Appends bytes; large ones to memory that is told so.
fn append(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len());
    os::expect_filling(out.spare_capacity_mut().as_ptr().cast(), bytes.len());
    out.extend_from_slice(bytes);
}

/// What is encoded into.
struct Sink<'a>(&'a mut Vec<u8>);

impl io::Write for Sink<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        append(self.0, bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Of what is written without the format, bytes and text keep their memory.
fn decode_simple<T: DeserializeOwned + 'static>(bytes: Vec<u8>) -> Result<T, Box<str>> {
    let mut value: Option<T> = None;
    let any: &mut dyn Any = &mut value;
    if let Some(place) = any.downcast_mut::<Option<Vec<u8>>>() {
        *place = Some(bytes);
    } else if let Some(place) = any.downcast_mut::<Option<String>>() {
        *place = Some(String::from_utf8(bytes).map_err(|error| error.to_string())?);
    } else {
        return decode_payload(&bytes);
    }
    value.ok_or_else(|| "no value".into())
}

const FORMAT: Configuration = bincode::config::standard();

/// The same, with an account of what is decoded: its limit is a constant, so an allowance is given by taking the rest off
/// beforehand.
const LIMIT: usize = usize::MAX / 2;
const ACCOUNTED: Configuration<LittleEndian, Varint, Limit<LIMIT>> = FORMAT.with_limit::<LIMIT>();

/// The most a value may count for each of its bytes: a `u128` counts 16, and may be written in one.
const ALLOWANCE: usize = 16;

/// A value at the beginning of so many bytes, and how many are left.
fn decode_front<T: DeserializeOwned, S: Left>(source: S, length: usize) -> Result<(T, usize), DecodeError> {
    let mut decoder = DecoderImpl::new(source, ACCOUNTED, ());
    decoder.claim_bytes_read(LIMIT.saturating_sub(length.saturating_mul(ALLOWANCE)))?;
    let Compat(value) = Compat::<T>::decode(&mut decoder)?;
    Ok((value, decoder.reader().left()))
}

/// A reader that knows how much is left.
trait Left: Reader {
    fn left(&self) -> usize;
}

/// Bytes that are taken from the front.
struct Source<'a>(&'a [u8]);

impl Reader for Source<'_> {
    #[inline]
    fn read(&mut self, out: &mut [u8]) -> Result<(), DecodeError> {
        let missing = out.len().saturating_sub(self.0.len());
        let (front, rest) =
            self.0.split_at_checked(out.len()).ok_or(DecodeError::UnexpectedEnd { additional: missing })?;
        os::expect_filling(out.as_ptr(), out.len());
        out.copy_from_slice(front);
        self.0 = rest;
        Ok(())
    }

    #[inline]
    fn peek_read(&mut self, count: usize) -> Option<&[u8]> {
        self.0.get(..count)
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        self.0 = self.0.get(count..).unwrap_or_default();
    }
}

impl Left for Source<'_> {
    fn left(&self) -> usize {
        self.0.len()
    }
}

struct Copied<'a, B>(&'a mut B);

impl<B: Bytes> Reader for Copied<'_, B> {
    fn read(&mut self, out: &mut [u8]) -> Result<(), DecodeError> {
        let missing = out.len().saturating_sub(self.0.left());
        os::expect_filling(out.as_ptr(), out.len());
        if self.0.take(out) { Ok(()) } else { Err(DecodeError::UnexpectedEnd { additional: missing }) }
    }
}

impl<B: Bytes> Left for Copied<'_, B> {
    fn left(&self) -> usize {
        self.0.left()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back() {
        let value = (7_u128, String::from("seven"), vec![Some(1.5), None]);
        let mut bytes = vec![9];
        encode(&value, &mut bytes).unwrap();
        assert_eq!(decode::<(u128, String, Vec<Option<f64>>)>(&bytes[1..]), Ok(value));
    }

    #[test]
    fn simple_types_take_the_short_way_and_come_back() {
        let there_and_back = |value: f32| {
            let mut bytes = Vec::new();
            encode_payload(&value, &mut bytes).unwrap();
            assert_eq!(bytes.len(), 4);
            decode_payload::<f32>(&bytes)
        };
        assert_eq!(there_and_back(1.5), Ok(1.5));
        let mut bytes = vec![1];
        encode_payload(&vec![2_u8, 3], &mut bytes).unwrap();
        assert_eq!((decode_payload::<Vec<u8>>(&bytes), bytes.len()), (Ok(vec![1, 2, 3]), 3));
        assert_eq!(decode_payload::<String>(b"text").as_deref(), Ok("text"));
        assert!(decode_payload::<String>(&[0xff]).is_err());
        assert!(decode_payload::<u64>(b"seven b").is_err());
        assert_eq!(decode_payload::<(u8, u8)>(&[1, 2]), Ok((1, 2)));
        assert!(is_number::<i128>() && !is_number::<bool>() && !is_number::<Vec<u8>>());
    }

    #[test]
    fn bytes_left_over_and_bytes_missing_are_errors() {
        let mut bytes = Vec::new();
        encode("text", &mut bytes).unwrap();
        bytes.push(0);
        assert!(decode::<String>(&bytes).unwrap_err().contains("left over"));
        assert!(decode::<String>(&bytes[..3]).is_err());
        assert!(
            decode::<Vec<u64>>(&[253, 255, 255, 255, 255, 255, 255, 255, 127]).is_err(),
            "a length without bytes"
        );
        let huge = [253, 255, 255, 255, 255, 255, 255, 255, 127, b'x'];
        assert!(decode::<String>(&huge).is_err(), "a text that would take all memory");
        assert!(decode::<(u8, Box<str>)>(&[&[1], &huge[..]].concat()).is_err());
        let most = vec![(u128::MAX, 1_u128); 100];
        let mut bytes = Vec::new();
        encode(&most, &mut bytes).unwrap();
        assert_eq!(decode(&bytes), Ok(most), "an honest value is within its allowance");
        let mut bytes = Vec::new();
        let small = (vec![0_u128; 1000], vec!['a'; 10], vec![1_u64; 1000], "x".repeat(1000));
        encode(&small, &mut bytes).unwrap();
        assert_eq!(decode(&bytes), Ok(small), "the same");
    }

    #[test]
    fn a_refusal_and_a_panic_leave_nothing_behind() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("not this one"))
            }
        }
        struct Panics;
        impl Serialize for Panics {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                panic!("nor this")
            }
        }
        let mut bytes = vec![1, 2];
        assert!(encode(&(5, Refuses), &mut bytes).unwrap_err().contains("not this one"));
        assert!(encode(&(5, Panics), &mut bytes).unwrap_err().contains("nor this"));
        assert_eq!(bytes, [1, 2]);
    }
}
