//! This crate in a shared object: worker processes for a library in a foreign program.

use std::ffi::CString;
use std::process::Command;

use nix::libc;

use crate::scene::isolated_with;

/// Where it is, for the process of a test.
const BUILT: &str = "CONCURRENT_FUTURES_TEST_EXTENSION";

/// Builds `examples/extension.rs` as it is now, which a run of these tests alone would not; its path.
fn extension() -> String {
    if let Ok(built) = std::env::var(BUILT) {
        return built;
    }
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--example", "extension", "--message-format=json", "--quiet"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let path = text.split('"').find(|part| part.ends_with("libextension.so"));
    path.expect("cargo names what it has built").to_owned()
}

fn expected(n: i64) -> i64 {
    (0..n).map(|n| n * n).sum()
}

/// In a program that has this crate, too, and worker processes of its own.
#[test]
#[cfg_attr(any(asan, tsan), ignore = "needs a build of its own")]
fn a_shared_object_in_a_program_with_pools_has_its_own_workers() {
    let path = extension();
    let prepare = |command: &mut Command| {
        command.env(BUILT, &path);
    };
    isolated_with(prepare, || {
        let path = CString::new(extension()).unwrap();
        // SAFETY: a library whose constructors do no harm.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null());
        // SAFETY: the library is open, and stays so.
        let symbol = unsafe { libc::dlsym(library, c"sum_of_squares".as_ptr()) };
        assert!(!symbol.is_null());
        // SAFETY: the function by this name has this type.
        let sum_of_squares =
            unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn(u32) -> i64>(symbol) };
        let pool = concurrent_futures::ProcessPoolExecutor::new(2).unwrap();
        for n in [0, 1, 1000, 50_000] {
            assert_eq!(sum_of_squares(n), expected(i64::from(n)));
            assert_eq!(pool.submit(|n: u32| n + 1, n).result().unwrap(), n + 1);
        }
    });
}

/// In an interpreter. Where there is none, only the other test is made.
#[test]
#[cfg_attr(any(asan, tsan), ignore = "needs a build of its own")]
fn an_extension_of_an_interpreter_has_workers() {
    let path = extension();
    let script = "import ctypes, sys\nf = ctypes.CDLL(sys.argv[1]).sum_of_squares\nf.restype = ctypes.c_int64\n\
                  print(f(1000), f(50000))";
    let run = |environment: &[(&str, &str)]| {
        let mut command = Command::new("python3");
        let output = command.args(["-c", script, &path]).envs(environment.iter().copied()).output();
        output.ok().map(|output| {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            (String::from_utf8_lossy(&output.stdout).into_owned(), error)
        })
    };
    let answer = format!("{} {}\n", expected(1000), expected(50_000));
    let Some(plain) = run(&[]) else {
        println!("there is no python3");
        return;
    };
    assert_eq!(plain, (answer.clone(), String::new()));
    // Another library is preloaded as well.
    assert_eq!(run(&[("LD_PRELOAD", "libdl.so.2")]).unwrap(), (answer, String::new()));
}
