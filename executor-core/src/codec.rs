//! The format of what travels: bincode 2.0.1, standard configuration (little endian, variable-length integers).
//!
//! One file decides it. bincode was chosen because it writes and reads any serde type in one pass, without names, and
//! fast; both ends are the same build of the same program, so nothing needs to describe itself. Version 2.0.1 is
//! complete and is pinned: 3.0.0 is an empty release that does not build. What a format without names cannot carry are
//! serde's `flatten`, `untagged` and `skip_serializing_if`.
//!
//! Decoding trusts nothing: a length is believed only as far as there are bytes behind it (serde reserves at most 1 MiB
//! ahead), and bytes left over are an error. The user's `Serialize` and `Deserialize` may panic: that is an error too.

use crate::panic_report;
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
    let written = panic_report::catch(|| bincode::serde::encode_into_std_write(value, out, FORMAT));
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
/// What serde said, bytes left over, or the panic of the value's own code.
///
/// ```
/// assert!(executor_core::codec::decode::<bool>(&[1, 1]).unwrap_err().contains("left over"));
/// ```
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<str>> {
    match panic_report::catch(|| bincode::serde::decode_from_slice(bytes, FORMAT)) {
        Ok(Ok((value, read))) if read == bytes.len() => Ok(value),
        Ok(Ok((_, read))) => Err(format!("{} of {} bytes left over", bytes.len() - read, bytes.len()).into()),
        Ok(Err(error)) => Err(error.to_string().into()),
        Err(report) => Err(format!("panicked: {report}").into()),
    }
}

const FORMAT: bincode::config::Configuration = bincode::config::standard();

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
