//! Taking a process over before `main`, and starting a process that will be taken over.
//!
//! The fork server is a fresh execution of the running program that never reaches `main`. Two halves meet:
//!
//! * **The parent** ([`spawn`]) executes its own program again, with one end of a socket pair as stdin and a private
//!   environment variable `0:<its process id>`. Nothing but stdin is passed, so the standard library can use
//!   `posix_spawn`, whose cost does not grow with the caller's memory.
//! * **The child** is caught by a constructor ([`hook`]) which the linker puts among those the C library runs before
//!   `main`. It checks the variable, runs the constructors that come after it (so that C++ globals and registries of
//!   other crates are complete), becomes the fork server and never returns.
//!
//! In every other start of the program the hook sets a flag and returns. The flag tells the parent that a child would
//! be caught; without it, nothing is executed.
//!
//! # In a shared object
//!
//! If this crate is part of a shared object, which a foreign program has loaded (an extension module of an interpreter),
//! that program is executed, with the shared object preloaded: its constructors, and among them the hook, run before the
//! program's. The variable says then which shared object is meant: `1:<process id>:<its identity>`; no other hook answers.
//! What the program itself would set up before or in `main` is not there in workers.
//!
//! # The race feared: `main` in the child
//!
//! A child that reached `main` would run the whole program a second time, which would make a pool again, and so on
//! until the machine is full. So:
//!
//! * R1 the parent executes only if its own hook has run, in the main program or in a shared object whose file still holds
//!   it, and the kernel has not raised the program's rights (a privileged child would refuse, and preload nothing).
//! * R2 a hook in the main program that sees the variable never returns, nor does one in the shared object it names: it
//!   serves, or exits with the code of a [`Refusal`], also after a panic. A foreign program whose loader preloads nothing
//!   is asked for its `--version`, which is the least harm it can do.
//! * R3 the variable is removed before anything else runs, so that nobody started from there inherits it.
//! * R4 the variable's name holds this crate's version: a hook of another version does not answer.
//!
//! # What the hook believes
//!
//! The variable must have the right form, stdin must be a local packet socket made by the parent process as the same
//! user, and that process must still be the parent. This keeps stray variables from doing harm. It is no border of
//! rights: whoever may execute the program as this user may drive it.
//!
//! # What differs before `main`
//!
//! The standard library's own start code has not run: stdin to stderr may be closed, SIGPIPE is not ignored, stack
//! overflows are not explained, and with some C libraries the constructors' parameters are garbage and
//! `std::env::args` is empty. The first two are repaired here.
//!
//! * I1: before `main` only constructors have run; one that left a thread behind which changes the environment or
//!   uses descriptors it opened would be at odds with this module. No such constructor is known.
//! * I2: the words at `BOUNDS` are the first and the past-the-end address of the main program's constructor table, or
//!   zero: the linker defines them. Those of a shared object are in its dynamic section. The loader has relocated the table
//!   before any constructor runs.
//! * I3: an entry of that table is a function the C library would call with the same parameters next.
//! * I4: descriptor 0 is nobody's but this module's in a process that has the variable: the parent put it there.

use crate::image::{Identity, Image};
use crate::sync::{AtomicBool, Ordering};
use crate::sys::fd::{self, Standard};
use crate::sys::{process, socket};
use crate::zygote::{self, StartError, WorkerStdio, ZygoteConfig};
use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString, c_char, c_int};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr;

/// Whether this process can execute itself as a fork server (R1).
pub(crate) fn check() -> Result<(), StartError> {
    if !hook_ran() {
        return Err(StartError::NotHooked);
    }
    if process::is_privileged() {
        return Err(StartError::Privileged);
    }
    Ok(())
}

/// Whether the hook has run in this process.
pub(crate) fn hook_ran() -> bool {
    // ORDERING: relaxed: set before `main`, and nothing is read through it.
    HOOK_RAN.load(Ordering::Relaxed)
}

/// The files that may be this program, best first. The first is the file this process was executed from even if it has
/// been replaced or removed; under an interpreter (`ld.so`, valgrind) it is the interpreter, and the second is right.
pub(crate) fn programs() -> Vec<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    let named = env::current_exe().ok().filter(|named| !is_same_file(named, &own));
    [Some(own), named].into_iter().flatten().collect()
}

/// The shared object that this crate is part of, to be preloaded; `None` in the main program.
pub(crate) fn library() -> Result<Option<fs::File>, StartError> {
    if Image::current().is_main_program() {
        return Ok(None);
    }
    let unknown = |source| StartError::Execute { program: String::from("this shared object"), source };
    open_same_build(&Image::file().map_err(unknown)?).map(Some)
}

/// Opens a file that holds the very image this crate is part of: what was looked at is what will be executed or loaded.
pub(crate) fn open_same_build(file: &Path) -> Result<fs::File, StartError> {
    let program = || file.display().to_string();
    let unreadable = |source| StartError::Execute { program: program(), source };
    let opened = fs::File::open(file).map_err(unreadable)?;
    match Identity::of_file(&opened).map_err(unreadable)? {
        Some(identity) if &identity == Image::current().identity() => Ok(opened),
        identity => Err(StartError::OtherProgram { program: program(), identity }),
    }
}

/// Executes `program` as a fork server with this control socket, and gives its process id.
pub(crate) fn spawn(
    program: &Path,
    library: Option<&fs::File>,
    control: OwnedFd,
    config: &ZygoteConfig,
) -> io::Result<u32> {
    let mut command = Command::new(program);
    if let Some(name) = env::args_os().next() {
        command.arg0(name);
    }
    command.envs(config.env.iter().map(|(name, value)| (name, value)));
    let mut value = format!("0:{}", process::id());
    if let Some(library) = library {
        // By the open file: what was looked at is what is loaded, and no name of it could be taken for two.
        let mut preloaded = OsString::from(format!("/proc/{}/fd/{}", process::id(), library.as_raw_fd()));
        let given = config.env.iter().rev().find(|(name, _)| name == PRELOAD).map(|(_, value)| value.clone());
        if let Some(others) = given.or_else(|| env::var_os(PRELOAD)) {
            preloaded.push(":");
            preloaded.push(others);
        }
        command.env(PRELOAD, preloaded).arg("--version");
        value = format!("1:{}:{}", process::id(), Image::current().identity().code());
    }
    command
        .env(VARIABLE, value)
        .stdin(Stdio::from(control))
        .stdout(stdio(config.stdout))
        .stderr(stdio(config.stderr));
    // Dropping the handle neither waits nor kills; the caller does, by a pidfd.
    command.spawn().map(|child| child.id())
}

/// Why a child that was started to be a fork server is none. Travels as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Malformed,
    Privileged,
    NoSocket,
    WrongPeer,
    WrongParent,
    Constructors,
    Setup,
    Panicked,
    NotPreloaded,
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Privileged,
        Self::NoSocket,
        Self::WrongPeer,
        Self::WrongParent,
        Self::Constructors,
        Self::Setup,
        Self::Panicked,
        Self::NotPreloaded,
    ];
    /// The codes from here on are rare in programs and shells alike.
    const FIRST_CODE: i32 = 240;

    pub(crate) const fn code(self) -> i32 {
        Self::FIRST_CODE + self as i32
    }

    pub(crate) fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Malformed => "its start variable is malformed",
            Self::Privileged => "the kernel gave it more rights than its parent has",
            Self::NoSocket => "its standard input is not a control socket",
            Self::WrongPeer => "its control socket was made by another process or user",
            Self::WrongParent => "the process that started it is not its parent any more",
            Self::Constructors => "it cannot find the constructors of the program",
            Self::Setup => "it could not set itself up",
            Self::Panicked => "it panicked",
            Self::NotPreloaded => "the shared object of this crate was not loaded into it",
        })
    }
}

/// Names what the loader loads before a program.
const PRELOAD: &str = "LD_PRELOAD";

static HOOK_RAN: AtomicBool = AtomicBool::new(false);

const VARIABLE: &str = concat!(
    "CONCURRENT_FUTURES_FORK_SERVER_",
    env!("CARGO_PKG_VERSION_MAJOR"),
    "_",
    env!("CARGO_PKG_VERSION_MINOR"),
    "_",
    env!("CARGO_PKG_VERSION_PATCH")
);

type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

#[used]
#[unsafe(link_section = ".init_array")]
static ENTRY: Constructor = hook;

extern "C" fn hook(count: c_int, arguments: *const *const c_char, environment: *const *const c_char) {
    // ORDERING: relaxed: read in `main` or later, by threads started later.
    HOOK_RAN.store(true, Ordering::Relaxed);
    let outcome = catch_unwind(|| {
        let value = env::var_os(VARIABLE)?;
        let call = Call::parse(&value);
        match (Image::current().is_main_program(), &call) {
            // The hook that is meant has run before, or would have.
            (true, Some(Call { library: Some(_), .. })) => return Some(Err(Refusal::NotPreloaded)),
            (true, _) => {}
            (false, Some(Call { library: Some(code), .. }))
                if *code == Image::current().identity().code() =>
            {
                stop_preloading();
            }
            // In another preloaded library: the hook that is meant is still to come.
            (false, _) => return None,
        }
        Some(take_over(call, || run_later_constructors(count, arguments, environment)))
    });
    match outcome {
        Ok(None) => {}
        Ok(Some(Err(refusal))) => process::exit_now(refusal.code()),
        Err(_panic) => process::exit_now(Refusal::Panicked.code()),
    }
}

/// The child's side, in order. Comes back only to refuse.
fn take_over(
    call: Option<Call>,
    finish_start: impl FnOnce() -> Result<(), Refusal>,
) -> Result<Infallible, Refusal> {
    // SAFETY: I1: no other thread reads or writes the environment.
    unsafe { env::remove_var(VARIABLE) };
    let application = call.ok_or(Refusal::Malformed)?.application;
    if process::is_privileged() {
        return Err(Refusal::Privileged);
    }
    // SAFETY: I4: open or not, it is ours to look at; a closed number is an error of the calls made with it.
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    let peer = socket::peer_of_packet_socket(stdin).map_err(|_| Refusal::NoSocket)?;
    if peer.pid != application || peer.user != process::effective_user() {
        return Err(Refusal::WrongPeer);
    }
    if process::parent_id() != application {
        return Err(Refusal::WrongParent);
    }
    let control = claim_descriptors(stdin).map_err(|_| Refusal::Setup)?;
    let preload = zygote::settle(&control).map_err(|_| Refusal::Setup)?;
    finish_start()?;
    // SAFETY: I1: this is the only thread, or those of constructors were made to be forked around.
    unsafe { zygote::serve(control, application, preload) }.map_err(|_| Refusal::Setup)
}

/// Leaves the process with the standard three, nothing behind the first, and the control socket.
fn claim_descriptors(stdin: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // First of all, or the copy of the socket could become stdout.
    Standard::Output.repair()?;
    Standard::Error.repair()?;
    let control = fd::above_standard(stdin)?;
    Standard::Input.set_null()?;
    // SAFETY: I1: what is open was inherited, and nothing that runs here knows of it.
    unsafe { fd::close_all_but(&control)? };
    Ok(control)
}

/// What the variable says.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    application: u32,
    /// The identity of the shared object whose hook is meant, if it is not that of the main program.
    library: Option<String>,
}

impl Call {
    fn parse(value: &OsStr) -> Option<Self> {
        let mut parts = value.to_str()?.split(':');
        let (form, application) = (parts.next()?, parts.next()?.parse().ok()?);
        let library = parts.next().map(str::to_owned);
        let is_right = parts.next().is_none() && form == if library.is_none() { "0" } else { "1" };
        is_right.then_some(Self { application, library })
    }
}

/// Takes this shared object, the first of them, off the list of what programs started from here are to load.
fn stop_preloading() {
    let Some(list) = env::var_os(PRELOAD) else { return };
    let rest = list.as_bytes().splitn(2, |byte| *byte == b':').nth(1);
    match rest {
        // SAFETY: I1: no other thread reads or writes the environment.
        Some(rest) => unsafe { env::set_var(PRELOAD, OsStr::from_bytes(rest)) },
        // SAFETY: as above.
        None => unsafe { env::remove_var(PRELOAD) },
    }
}

// The bounds of the constructor table, through words of our own: weak, so that linkers that do not define them in a
// shared object still make one, and without an instruction, so that no architecture needs its own text.
#[cfg(target_pointer_width = "64")]
macro_rules! word {
    () => {
        ".quad"
    };
}
#[cfg(target_pointer_width = "32")]
macro_rules! word {
    () => {
        ".long"
    };
}
macro_rules! bounds_symbol {
    () => {
        concat!(
            "concurrent_futures_init_array_",
            env!("CARGO_PKG_VERSION_MAJOR"),
            "_",
            env!("CARGO_PKG_VERSION_MINOR"),
            "_",
            env!("CARGO_PKG_VERSION_PATCH")
        )
    };
}

std::arch::global_asm!(
    ".pushsection .data.rel.ro.concurrent_futures,\"aw\",%progbits",
    ".balign 8",
    ".weak __init_array_start",
    ".hidden __init_array_start",
    ".weak __init_array_end",
    ".hidden __init_array_end",
    concat!(".globl ", bounds_symbol!()),
    concat!(".hidden ", bounds_symbol!()),
    concat!(bounds_symbol!(), ":"),
    concat!(word!(), " __init_array_start"),
    concat!(word!(), " __init_array_end"),
    ".popsection",
);

unsafe extern "C" {
    #[link_name = bounds_symbol!()]
    static BOUNDS: [usize; 2];
}

/// Calls every constructor after the hook, as the C library would have.
fn run_later_constructors(
    count: c_int,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Result<(), Refusal> {
    let image = Image::current();
    let (start, end) = if image.is_main_program() {
        // SAFETY: I2.
        let [start, end] = unsafe { ptr::read(&raw const BOUNDS) };
        (start, end)
    } else {
        (image.constructors().start, image.constructors().end)
    };
    let own = (&raw const ENTRY).addr();
    if !(start..end).contains(&own) {
        return Err(Refusal::Constructors);
    }
    for place in (own + size_of::<Constructor>()..end).step_by(size_of::<Constructor>()) {
        let place: *const usize = ptr::with_exposed_provenance(place);
        // SAFETY: I2: inside the table. Volatile: the compiler knows `ENTRY` as a static of one word.
        let address = unsafe { ptr::read_volatile(place) };
        // Old tools end a table with -1 or fill it with 0.
        if address == 0 || address == usize::MAX {
            continue;
        }
        let function: *const () = ptr::with_exposed_provenance(address);
        // SAFETY: I3.
        let constructor = unsafe { std::mem::transmute::<*const (), Constructor>(function) };
        constructor(count, arguments, environment);
    }
    Ok(())
}

fn is_same_file(left: &Path, right: &Path) -> bool {
    match (fs::metadata(left), fs::metadata(right)) {
        (Ok(left), Ok(right)) => left.dev() == right.dev() && left.ino() == right.ino(),
        _ => false,
    }
}

fn stdio(kind: WorkerStdio) -> Stdio {
    match kind {
        WorkerStdio::Inherit | WorkerStdio::Direct => Stdio::inherit(),
        WorkerStdio::Null => Stdio::null(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Output;

    #[test]
    fn the_hook_has_run_in_the_main_program() {
        check().unwrap();
    }

    #[test]
    fn the_variable_has_one_form() {
        let parse = |value: &str| Call::parse(OsStr::new(value)).map(|call| (call.application, call.library));
        assert_eq!(parse("0:12"), Some((12, None)));
        assert_eq!(parse("1:12:none-7"), Some((12, Some("none-7".to_owned()))));
        for wrong in ["", "0", "0:", ":12", "1:12", "0:-1", "0:12:", "0:99999999999", "1:12:a:b", "2:12"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_refusal_has_its_code() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), Some(refusal));
        }
        assert_eq!(Refusal::from_code(0), None);
    }

    /// The worst that could happen: a refused child that runs `main`, here the whole test harness again.
    #[test]
    fn a_child_that_refuses_never_reaches_main() {
        let refusal = |value: String, stdin: Stdio| {
            let mut command = Command::new("/proc/self/exe");
            let Output { status, stdout, .. } = command.env(VARIABLE, value).stdin(stdin).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&stdout), "", "main has run");
            Refusal::from_code(status.code().unwrap())
        };
        let right = format!("0:{}", process::id());
        assert_eq!(refusal(String::new(), Stdio::null()), Some(Refusal::Malformed));
        assert_eq!(refusal(right.clone(), Stdio::null()), Some(Refusal::NoSocket));
        let library = format!("1:{}:none-0", process::id());
        assert_eq!(refusal(library, Stdio::null()), Some(Refusal::NotPreloaded));
        let (_ours, theirs) = socket::stream_pair().unwrap();
        assert_eq!(refusal(right.clone(), Stdio::from(theirs)), Some(Refusal::NoSocket));
        let (_ours, theirs) = socket::packet_pair().unwrap();
        assert_eq!(refusal(String::from("0:1"), Stdio::from(theirs)), Some(Refusal::WrongPeer));
        // All is right, but nobody is at the other end.
        let (ours, theirs) = socket::packet_pair().unwrap();
        drop(ours);
        assert_eq!(refusal(right, Stdio::from(theirs)), Some(Refusal::Setup));
    }
}
