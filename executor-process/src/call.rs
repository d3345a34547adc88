//! Naming a function so that another process of this program can call it.
//!
//! For every combination of types a call is made with, the compiler makes one [`Descriptor`]: a constant in read-only
//! data with the code that decodes the argument, calls, and encodes the result. Descriptor and function travel as
//! offsets in the program's image; both processes run the same image (the fork server's hello proves it), loaded at
//! different addresses. Before it calls, a worker checks that the descriptor's offset lies in the program's readable
//! memory, is aligned, and holds the [`MAGIC`], and that the function's lies in its code. The address of a function is no
//! identity (equal functions may be merged), and is not used as one.
//!
//! * **I1** A [`Descriptor`] that passed [`find`] was put into the image by [`Describe`] in this very build: nothing
//!   else holds the magic, 128 bits that occur nowhere else.
//! * **I2** The function that travels with a descriptor has the type the descriptor was made for: [`name_of`] is given
//!   both from one typed [`Callable`], and parent and worker run the same build.

use std::any::Any;
use std::marker::PhantomData;

use executor_core::{Callable, Callee, InitOutcome, Payload, TaskError, panic_report};

use crate::image::Image;
use crate::wire::{Panic, Status};
use executor_core::codec;

use crate::attach;

/// How to call functions of one type, from bytes to bytes.
#[repr(C)]
pub(crate) struct Descriptor {
    magic: [u64; 2],
    context: DecodeContext,
    call: Call,
}

/// Decodes a context of the described type.
type DecodeContext = fn(&[u8]) -> Result<Box<dyn Any>, Box<str>>;

/// Calls the function at an address of this process.
type Call = unsafe fn(usize, Option<&dyn Any>, &mut dyn Turns, &mut Vec<u8>) -> Status;

/// Where a call gets its arguments. A worker has many for one function, and what is done for each of them around the
/// function itself costs more than that: so they are run in one loop, on this side of the call.
pub(crate) trait Turns {
    /// The argument that is to be decoded now.
    fn argument(&self) -> &[u8];

    /// The task has returned, and its result, which attaches nothing, is in `out`: takes it from there and moves on to the
    /// next argument; or does neither and says no, and the call ends with this result.
    fn go_on(&mut self, out: &mut Vec<u8>) -> bool;
}

/// One argument.
pub(crate) struct Once<'a>(pub(crate) &'a [u8]);

impl Turns for Once<'_> {
    fn argument(&self) -> &[u8] {
        self.0
    }

    fn go_on(&mut self, _: &mut Vec<u8>) -> bool {
        false
    }
}

const MAGIC: [u64; 2] = [0x8f1c_35d2_a96e_470b, 0x2be0_94c7_5d13_f86a];

/// A function, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) descriptor: u64,
    pub(crate) function: u64,
}

/// How `call` is named.
pub(crate) fn name_of<C, A, R>(call: &Callable<C, A, R>) -> Result<Name, TaskError>
where
    C: Payload + Sync,
    A: Payload,
    R: Payload,
{
    match call.callee() {
        Callee::Plain(f) => name(Plain::<A, R>::DESCRIPTOR, *f as usize),
        Callee::WithContext(_, f) => name(WithContext::<C, A, R>::DESCRIPTOR, *f as usize),
    }
}

/// How an initializer is named.
pub(crate) fn name_of_initializer<O: InitOutcome>(f: fn() -> O) -> Result<Name, TaskError> {
    name(Initializer::<O>::DESCRIPTOR, f as usize)
}

fn name(descriptor: &'static Descriptor, function: usize) -> Result<Name, TaskError> {
    let image = Image::current();
    let descriptor = image.offset_of_data(std::ptr::from_ref(descriptor).addr());
    let function_offset = image.offset_of_code(function);
    match (descriptor, function_offset) {
        (Some(descriptor), Some(function)) => Ok(Name { descriptor, function }),
        _ => Err(TaskError::Encode(
            match Image::owner_name(function) {
                Some(object) => format!("the function is in {object}, which a worker may not have loaded"),
                None if image.is_main_program() => "the function is not part of the program".to_owned(),
                None => "the function is not part of the shared object that workers have".to_owned(),
            }
            .into(),
        )),
    }
}

/// The descriptor and the address of a function that was named in another process.
pub(crate) fn find(name: Name) -> Result<(&'static Descriptor, usize), Box<str>> {
    let descriptor = find_descriptor(name.descriptor)?;
    match Image::current().address_of_code(name.function) {
        Some(function) => Ok((descriptor, function)),
        None => Err(format!("this program has no function at {:#x}", name.function).into()),
    }
}

/// The descriptor at an offset that came from another process.
pub(crate) fn find_descriptor(offset: u64) -> Result<&'static Descriptor, Box<str>> {
    let unknown = || format!("this program describes no call at {offset:#x}");
    let descriptor = Image::current()
        .address_of_data(offset, size_of::<Descriptor>(), align_of::<Descriptor>())
        .ok_or_else(unknown)?;
    // SAFETY: `address_of_data` has found that many readable, aligned bytes there, in memory that is never unmapped.
    let magic = unsafe { descriptor.cast::<[u64; 2]>().read() };
    if magic != MAGIC {
        return Err(unknown().into());
    }
    // SAFETY: I1.
    Ok(unsafe { &*descriptor.cast::<Descriptor>() })
}

impl Descriptor {
    /// Decodes a context of the described type.
    pub(crate) fn decode_context(&self, bytes: &[u8]) -> Result<Box<dyn Any>, Box<str>> {
        (self.context)(bytes)
    }

    /// Calls the function at `function` with one encoded argument after the other, as long as it returns and the next one
    /// is given; puts what the last one came to behind what is in `out`.
    ///
    /// # Safety
    ///
    /// The function was named together with this descriptor (I2).
    pub(crate) unsafe fn call(
        &self,
        function: usize,
        context: Option<&dyn Any>,
        turns: &mut dyn Turns,
        out: &mut Vec<u8>,
    ) -> Status {
        // SAFETY: the caller's.
        unsafe { (self.call)(function, context, turns, out) }
    }
}

/// `fn(A) -> R`.
struct Plain<A, R>(PhantomData<fn(A) -> R>);

impl<A: Payload, R: Payload> Plain<A, R> {
    const DESCRIPTOR: &'static Descriptor =
        &Descriptor { magic: MAGIC, context: no_context, call: call_plain::<A, R> };
}

/// `fn(&C, A) -> R`.
struct WithContext<C, A, R>(PhantomData<fn(&C, A) -> R>);

impl<C: Payload + Sync, A: Payload, R: Payload> WithContext<C, A, R> {
    const DESCRIPTOR: &'static Descriptor =
        &Descriptor { magic: MAGIC, context: decode_context::<C>, call: call_with_context::<C, A, R> };
}

/// `fn() -> O`, run once in each worker.
struct Initializer<O>(PhantomData<fn() -> O>);

impl<O: InitOutcome> Initializer<O> {
    const DESCRIPTOR: &'static Descriptor =
        &Descriptor { magic: MAGIC, context: no_context, call: call_initializer::<O> };
}

fn no_context(_: &[u8]) -> Result<Box<dyn Any>, Box<str>> {
    Err("the function takes no context".into())
}

fn decode_context<C: Payload>(bytes: &[u8]) -> Result<Box<dyn Any>, Box<str>> {
    codec::decode::<C>(bytes).map(|context| Box::new(context) as Box<dyn Any>)
}

unsafe fn call_plain<A: Payload, R: Payload>(
    function: usize,
    _: Option<&dyn Any>,
    turns: &mut dyn Turns,
    out: &mut Vec<u8>,
) -> Status {
    // SAFETY: I2: a function of this type is at that address.
    let function = unsafe { std::mem::transmute::<usize, fn(A) -> R>(function) };
    run(turns, out, function)
}

unsafe fn call_with_context<C: Payload, A: Payload, R: Payload>(
    function: usize,
    context: Option<&dyn Any>,
    turns: &mut dyn Turns,
    out: &mut Vec<u8>,
) -> Status {
    // SAFETY: I2: a function of this type is at that address.
    let function = unsafe { std::mem::transmute::<usize, fn(&C, A) -> R>(function) };
    match context.and_then(|context| context.downcast_ref::<C>()) {
        Some(context) => run(turns, out, |argument| function(context, argument)),
        None => {
            out.extend_from_slice(b"the context is of another type");
            Status::DecodeFailed
        }
    }
}

unsafe fn call_initializer<O: InitOutcome>(
    function: usize,
    _: Option<&dyn Any>,
    _: &mut dyn Turns,
    out: &mut Vec<u8>,
) -> Status {
    // SAFETY: I2: a function of this type is at that address.
    let function = unsafe { std::mem::transmute::<usize, fn() -> O>(function) };
    let problem = match panic_report::catch(|| function().into_result()) {
        Ok(Ok(())) => return Status::Returned,
        Ok(Err(reason)) => reason,
        Err(report) => format!("panicked: {report}"),
    };
    out.extend_from_slice(problem.as_bytes());
    Status::Failed
}

/// Decodes an argument, calls, encodes the result, and goes on with the next one. A panic of `f` ends it.
fn run<A: Payload, R: Payload>(turns: &mut dyn Turns, out: &mut Vec<u8>, f: impl Fn(A) -> R) -> Status {
    let ended = panic_report::catch(|| {
        loop {
            let status = run_one(turns.argument(), out, &f);
            let is_plain = status == Status::Returned && (codec::is_number::<R>() || !attach::has_reply());
            if !is_plain || !turns.go_on(out) {
                return status;
            }
        }
    });
    let report = match ended {
        Ok(status) => return status,
        Err(report) => report,
    };
    let panic = Panic {
        message: report.message.clone(),
        file: report.file.clone(),
        line: report.line,
        column: report.column,
        backtrace: report.backtrace.clone(),
    };
    match codec::encode(&panic, out) {
        Ok(()) => Status::Panicked,
        Err(_) => Status::EncodeFailed,
    }
}

/// Nothing in here unwinds but `f`, before anything is in `out`. What is thrown away is dropped here, its panics swallowed.
#[inline]
fn run_one<A: Payload, R: Payload>(argument: &[u8], out: &mut Vec<u8>, f: impl Fn(A) -> R) -> Status {
    let decoded = codec::decode_payload::<A>(argument);
    if !codec::is_number::<A>() {
        attach::unstage();
    }
    let argument = match decoded {
        Ok(argument) => argument,
        Err(problem) => {
            out.extend_from_slice(problem.as_bytes());
            return Status::DecodeFailed;
        }
    };
    let result = f(argument);
    let encoded = if codec::is_number::<R>() {
        codec::encode_payload(&result, out)
    } else {
        let (encoded, attachments) = attach::collect(|| codec::encode_payload(&result, out));
        if encoded.is_ok() && !attachments.is_empty() {
            attach::keep_reply(attachments);
        }
        panic_report::swallow(|| drop(result));
        encoded
    };
    match encoded {
        Ok(()) => Status::Returned,
        Err(problem) => {
            out.extend_from_slice(problem.as_bytes());
            Status::EncodeFailed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(n: u32) -> u32 {
        n * 2
    }

    #[test]
    fn a_named_function_is_found_and_called() {
        let name = name_of(&Callable::<(), u32, u32>::plain(double)).unwrap();
        let (descriptor, function) = find(name).unwrap();
        let (mut argument, mut out) = (Vec::new(), Vec::new());
        codec::encode_payload(&21_u32, &mut argument).unwrap();
        // SAFETY: named together.
        let status = unsafe { descriptor.call(function, None, &mut Once(&argument), &mut out) };
        assert_eq!((status, codec::decode_payload(&out)), (Status::Returned, Ok(42_u32)));
    }

    #[test]
    fn names_made_up_are_refused() {
        let Name { descriptor, function } = name_of(&Callable::<(), u32, u32>::plain(double)).unwrap();
        let bad = [
            Name { descriptor: descriptor + 8, function },
            Name { descriptor: descriptor + 1, function },
            Name { descriptor: u64::MAX - 3, function },
            Name { descriptor: 0, function },
            Name { descriptor, function: descriptor },
        ];
        assert!(bad.into_iter().all(|name| find(name).is_err()));
    }
}
