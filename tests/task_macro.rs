//! `#[task]`: what the companion of a function does, on every executor. What the attribute refuses is in `tests/ui`.
#![cfg(feature = "macros")]
#![allow(clippy::unwrap_used, reason = "the helpers of the tests, too")]

use std::collections::BTreeMap;

use concurrent_futures::{Executor, PanicReport, Payload, TaskError, TaskFuture, ThreadPoolExecutor, task};
use serde::{Deserialize, Serialize};

/// Runs a test on each executor there is.
macro_rules! on_every_executor {
    ($($(#[$attribute:meta])* fn $name:ident($executor:ident) $body:block)*) => {
        mod on_threads {
            use super::*;

            $($(#[$attribute])* #[test] fn $name() {
                let $executor = ThreadPoolExecutor::new(2).unwrap();
                $body
            })*
        }

        #[cfg(all(feature = "process", target_os = "linux"))]
        mod on_processes {
            use concurrent_futures::ProcessPoolExecutor;

            use super::*;

            $($(#[$attribute])* #[test] fn $name() {
                let $executor = ProcessPoolExecutor::new(2).unwrap();
                $body
            })*
        }
    };
}

on_every_executor! {
    fn submit_takes_the_arguments_one_by_one(executor) {
        let future: TaskFuture<Vec<u8>> = crop::submit(&executor, vec![1, 2, 3], 2);
        assert_eq!(future.result().unwrap(), [1, 2]);
    }

    fn submit_of_no_arguments(executor) {
        assert_eq!(answer::submit(&executor).result().unwrap(), 42);
    }

    fn submit_of_one_argument(executor) {
        assert_eq!(double::submit(&executor, 4).result().unwrap(), 8);
    }

    fn submit_of_one_tuple(executor) {
        assert_eq!(add_pair::submit(&executor, (3, 4)).result().unwrap(), 7);
    }

    fn submit_of_twelve_arguments(executor) {
        let future = twelve::submit(&executor, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, "12".to_owned());
        assert_eq!(future.result().unwrap(), "66 and 12");
    }

    fn submit_without_a_result(executor) {
        let future: TaskFuture<()> = nothing::submit(&executor, 1);
        future.result().unwrap();
    }

    fn submit_sends_the_types_of_the_user(executor) {
        let point = Point { x: 1, y: 2 };
        assert_eq!(mirror::submit(&executor, point).result().unwrap(), Point { x: 2, y: 1 });
    }

    fn a_result_of_the_function_is_an_ordinary_value(executor) {
        assert_eq!(parse::submit(&executor, "7".to_owned()).result().unwrap(), Ok(7));
        assert!(parse::submit(&executor, "x".to_owned()).result().unwrap().is_err());
    }

    fn map_takes_tuples_of_arguments(executor) {
        let images = vec![(vec![1, 2], 1), (vec![3, 4, 5], 2), (vec![], 3)];
        let cropped: Vec<_> = crop::map(&executor, images).map(Result::unwrap).collect();
        assert_eq!(cropped, [vec![1], vec![3, 4], vec![]]);
    }

    fn map_is_as_long_as_its_input(executor) {
        assert_eq!(double::map(&executor, 0..10).len(), 10);
    }

    fn map_of_one_argument_takes_it_bare(executor) {
        let doubled: Vec<_> = double::map(&executor, 0..100).map(Result::unwrap).collect();
        assert_eq!(doubled, (0..100).map(|n| n * 2).collect::<Vec<_>>());
    }

    fn map_of_no_arguments_takes_units(executor) {
        let answers: Vec<_> = answer::map(&executor, [(), (), ()]).map(Result::unwrap).collect();
        assert_eq!(answers, [42; 3]);
    }

    fn map_of_one_tuple_takes_it_bare(executor) {
        let sums: Vec<_> = add_pair::map(&executor, vec![(1, 2), (3, 4)]).map(Result::unwrap).collect();
        assert_eq!(sums, [3, 7]);
    }

    fn map_of_twelve_arguments(executor) {
        let items = (0..3).map(|n| (n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n.to_string()));
        let sums: Vec<_> = twelve::map(&executor, items).map(Result::unwrap).collect();
        assert_eq!(sums, ["0 and 0", "1 and 1", "2 and 2"]);
    }

    fn arguments_may_be_patterns(executor) {
        let future = patterns::submit(&executor, vec![1], (2, 3), 4, Point { x: 5, y: 6 }, 7);
        assert_eq!(future.result().unwrap(), [1, 2, 3, 5, 6, 7]);
    }

    fn arguments_may_have_the_names_of_the_companion(executor) {
        let future = names::submit(&executor, 1, 2, 4, 8, 16);
        assert_eq!(future.result().unwrap(), 31);
        assert_eq!(names::map(&executor, [(1, 2, 4, 8, 32)]).next().unwrap().unwrap(), 47);
    }

    fn types_may_have_the_names_of_the_companion(executor) {
        assert_eq!(types::submit(&executor, E, I).result().unwrap(), (I, E));
    }

    fn a_panic_is_reported_under_the_path_of_the_function(executor) {
        let report = panic_of(fail::submit(&executor, "by submit".to_owned()));
        assert_eq!(report.message, "by submit");
        assert_eq!(report.label.as_deref(), Some("task_macro::fail"));
        assert!(report.file.ends_with("task_macro.rs"), "{report:?}");
    }

    fn a_panic_in_map_is_reported_under_the_path_of_the_function(executor) {
        let outcomes: Vec<_> = fail::map(&executor, ["by map".to_owned()]).collect();
        let [Err(TaskError::Panicked(report))] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert_eq!(report.label.as_deref(), Some(fail::NAME));
    }

    fn a_panic_is_reported_under_the_given_name(executor) {
        let report = panic_of(fail_by_name::submit(&executor));
        assert_eq!(report.label.as_deref(), Some("failures.v1"));
    }

    fn a_task_keeps_the_options_of_a_view(executor) {
        let view = executor.options().unordered().chunk_size(2);
        let mut doubled: Vec<_> = double::map(&view, 0..10).map(Result::unwrap).collect();
        doubled.sort_unstable();
        assert_eq!(doubled, (0..10).map(|n| n * 2).collect::<Vec<_>>());
    }

    fn the_name_replaces_the_label_of_a_view(executor) {
        let view = executor.options().label("mine");
        assert_eq!(panic_of(fail_by_name::submit(&view)).label.as_deref(), Some("failures.v1"));
    }

    fn a_task_in_a_function_body_sees_the_types_there(executor) {
        assert_eq!(local_task(&executor), (9, "task_macro::square"));
    }

    fn a_task_of_another_module_is_called_by_its_path(executor) {
        assert_eq!(images::width::submit(&executor, images::Image(vec![1, 2])).result().unwrap(), 2);
        assert_eq!(images::private_width(&executor), 3);
        let images = [images::Image(vec![]), images::Image(vec![1])];
        assert_eq!(images::codec::bits::map(&executor, images).map(Result::unwrap).collect::<Vec<_>>(), [0, 8]);
    }

    fn one_import_brings_function_and_companion(executor) {
        use images::width;

        assert_eq!(width(images::Image(vec![1])), 1);
        assert_eq!(width::submit(&executor, images::Image(vec![1])).result().unwrap(), 1);
    }

    fn the_crate_may_have_another_path(executor) {
        assert_eq!(renamed::submit(&executor, 1).result().unwrap(), 2);
    }

    fn a_macro_may_write_a_task(executor) {
        assert_eq!(by_macro::submit(&executor, 2, vec![1]).result().unwrap(), [1, 2]);
        assert_eq!(from_macro::submit(&executor, vec![1], vec![2]).result().unwrap(), [1, 2]);
    }

    fn code_generic_over_the_executor_takes_a_task(executor) {
        fn sum(executor: &impl Executor) -> u32 {
            double::map(executor, [1, 2, 3]).map(Result::unwrap).sum()
        }
        assert_eq!(sum(&executor), 12);
    }

    fn a_raw_name_is_written_plainly(executor) {
        assert_eq!(r#match::NAME, "task_macro::match");
        assert_eq!(r#match::submit(&executor, BTreeMap::from([(1, 2)])).result().unwrap(), 1);
    }
}

#[test]
fn the_function_stays_an_ordinary_one() {
    const EIGHT: u32 = double(4);
    assert_eq!(EIGHT, 8);
    assert_eq!(crop(vec![1, 2, 3], 1), [1]);
    let pointer: fn(u32) -> u32 = double;
    assert_eq!([1, 2].map(pointer), [2, 4]);
}

#[test]
fn the_name_is_the_path_or_the_given_one() {
    assert_eq!(crop::NAME, "task_macro::crop");
    assert_eq!(images::width::NAME, "task_macro::images::width");
    assert_eq!(images::codec::bits::NAME, "images.bits");
    assert_eq!(fail_by_name::NAME, "failures.v1");
}

#[test]
fn the_name_is_a_constant() {
    const NAME: &str = double::NAME;
    assert_eq!(NAME, "task_macro::double");
}

#[test]
fn a_task_that_is_configured_out_is_gone_with_its_companion() {
    assert_eq!(absent(), absent::ANSWER);
}

#[test]
#[cfg_attr(miri, ignore = "builds programs")]
fn what_the_attribute_refuses() {
    if !is_the_toolchain_of_the_messages() {
        return;
    }
    let tests = trybuild::TestCases::new();
    tests.compile_fail("tests/ui/*.rs");
    #[cfg(all(feature = "process", target_os = "linux"))]
    tests.compile_fail("tests/ui/process/*.rs");
}

/// The compiler words its own messages anew with each release: they are compared on one.
fn is_the_toolchain_of_the_messages() -> bool {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = std::process::Command::new(compiler).arg("--version").output().unwrap();
    String::from_utf8_lossy(&version.stdout).starts_with("rustc 1.95.")
}

#[task]
fn crop(image: Vec<u8>, width: usize) -> Vec<u8> {
    image.into_iter().take(width).collect()
}

#[task]
fn answer() -> u32 {
    42
}

#[task]
const fn double(n: u32) -> u32 {
    n * 2
}

#[task]
fn add_pair((left, right): (u32, u32)) -> u32 {
    left + right
}

#[task]
#[allow(clippy::too_many_arguments, reason = "as many as there may be")]
fn twelve(
    a: u32,
    b: u32,
    c: u32,
    d: u32,
    e: u32,
    f: u32,
    g: u32,
    h: u32,
    i: u32,
    j: u32,
    k: u32,
    l: String,
) -> String {
    format!("{} and {l}", a + b + c + d + e + f + g + h + i + j + k)
}

#[task]
fn nothing(_: u32) {}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: u32,
    y: u32,
}

#[task]
fn mirror(point: Point) -> Point {
    Point { x: point.y, y: point.x }
}

#[task]
fn parse(text: String) -> Result<u32, String> {
    text.parse().map_err(|error| format!("{error}"))
}

#[task]
fn patterns(
    mut all: Vec<u32>,
    (second, third): (u32, u32),
    _: u32,
    Point { x, y }: Point,
    _last: u32,
) -> Vec<u32> {
    all.extend([second, third, x, y, _last]);
    all
}

#[task]
fn names(executor: u32, items: u32, arguments: u32, argument_0: u32, names: u32) -> u32 {
    executor + items + arguments + argument_0 + names
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct E;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct I;

#[task]
fn types(first: E, second: I) -> (I, E) {
    (second, first)
}

#[task]
fn fail(message: String) {
    panic!("{message}");
}

#[task("failures.v1")]
fn fail_by_name() {
    panic!("as it should");
}

#[task]
fn r#match(r#type: BTreeMap<u8, u8>) -> usize {
    r#type.len()
}

#[task]
#[cfg(any())]
fn absent(image: DoesNotExist) {}

/// Stands where the companion of the function that is not there would.
mod absent {
    pub(crate) const ANSWER: u32 = 1;
}

fn absent() -> u32 {
    1
}

mod reexports {
    pub(crate) use concurrent_futures as pools;
}

#[task(crate = "crate::reexports::pools")]
fn renamed(n: u32) -> u32 {
    n + 1
}

macro_rules! write_task {
    ($visibility:vis $name:ident($($argument:ident: $ty:ty),*) -> $output:ty $body:block) => {
        #[task]
        $visibility fn $name(mut own: Vec<u32>, $($argument: $ty),*) -> $output {
            own.extend($body);
            own
        }
    };
}

write_task!(pub(crate) from_macro(more: Vec<u32>) -> Vec<u32> { more });

macro_rules! write_whole_task {
    ($name:ident($($argument:pat => $ty:ty),*) -> $output:ty $body:block) => {
        #[task]
        fn $name($($argument: $ty),*) -> $output $body
    };
}

write_whole_task!(by_macro(last => u32, mut all => Vec<u32>) -> Vec<u32> {
    all.push(last);
    all
});

fn local_task(executor: &impl Executor) -> (u32, &'static str) {
    #[derive(Serialize, Deserialize)]
    struct Side(u32);

    #[task]
    fn square(side: Side) -> u32 {
        side.0 * side.0
    }

    (square::submit(executor, Side(3)).result().unwrap(), square::NAME)
}

mod images {
    use super::*;

    #[derive(Serialize, Deserialize)]
    pub(crate) struct Image(pub(crate) Vec<u8>);

    #[task]
    pub(crate) fn width(image: Image) -> usize {
        image.0.len()
    }

    pub(crate) fn private_width(executor: &impl Executor) -> usize {
        private::submit(executor, Image(vec![1, 2, 3])).result().unwrap()
    }

    #[task]
    fn private(image: Image) -> usize {
        image.0.len()
    }

    pub(crate) mod codec {
        use super::Image;

        /// Seen two modules up: the companion is, too.
        #[super::task(name = "images.bits")]
        pub(in super::super) fn bits(image: Image) -> usize {
            image.0.len() * 8
        }
    }
}

fn panic_of<T: Payload + std::fmt::Debug>(future: TaskFuture<T>) -> PanicReport {
    match future.result() {
        Err(TaskError::Panicked(report)) => report,
        other => panic!("not a panic: {other:?}"),
    }
}
