//! The `#[task]` attribute of `concurrent_futures`, which re-exports it: depend on that crate, not on this one.
//!
//! An attribute goes through four steps, one file each: `attribute` and `model` say what was written, `valid` decides
//! whether it can be a task and holds every message, `expand` writes the companion.

#![forbid(unsafe_code)]

mod attribute;
mod expand;
mod model;
mod valid;

use proc_macro::TokenStream;

/// Gives a function a companion of the same name, which calls it on any executor.
///
/// The function stays the ordinary function it was. Beside it, with its visibility, stands
///
/// * `resize::submit(&executor, image, 300)`: [`Executor::submit`] with the arguments of the function, one by one;
/// * `resize::map(&executor, items)`: [`Executor::map`] over tuples of arguments. A function of one argument takes the bare
///   arguments, one of none takes `()`;
/// * `resize::NAME`: a name that errors and statistics show, as the [label] of every such call.
///
/// ```
/// use concurrent_futures::{TaskError, ThreadPoolExecutor, task};
///
/// /// Keeps the left part of each line.
/// #[task]
/// fn crop(image: Vec<u8>, width: usize) -> Vec<u8> {
///     image.into_iter().take(width).collect()
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = ThreadPoolExecutor::new(2)?;
/// let future = crop::submit(&pool, vec![1, 2, 3], 2);
/// assert_eq!(future.result()?, [1, 2]);
///
/// let images = [(vec![1, 2], 1), (vec![3, 4, 5], 2)];
/// let cropped: Result<Vec<_>, TaskError> = crop::map(&pool, images).collect();
/// assert_eq!(cropped?, [vec![1], vec![3, 4]]);
///
/// assert_eq!(crop(vec![1, 2, 3], 1), [1]); // an ordinary call, here and now
/// # Ok(())
/// # }
/// ```
///
/// Any executor will do, a view with options included: `crop::submit(&pool.options().timeout(limit), image, 2)`. The label
/// is always `NAME`, one set on the view is replaced. What `map` returns borrows the executor, so a view for it gets a `let`
/// of its own when the iterator is kept.
///
/// # Options
///
/// `#[task(name = "images.crop.v1")]`, or `#[task("images.crop.v1")]`, sets `NAME`. By default it is the path of the module
/// and the function's name, `my_crate::images::crop`, which changes when the function moves, and which two functions inside
/// the bodies of two others may share. Give a name to what dashboards and logs should find again.
///
/// `#[task(crate = "path")]` says where `concurrent_futures` is found when it is not a dependency under that name:
///
/// ```
/// mod reexports {
///     pub use concurrent_futures as pools;
/// }
///
/// #[reexports::pools::task(name = "arithmetic.double", crate = "crate::reexports::pools")]
/// fn double(n: u32) -> u32 {
///     n * 2
/// }
///
/// # fn main() {
/// assert_eq!(double::NAME, "arithmetic.double");
/// # }
/// ```
///
/// # What can be a task
///
/// A free function of up to twelve arguments, in a module or in the body of another function. Its argument types and its
/// return type are [`Payload`]: they can go to another process and back. That is checked here, not where the task is used.
/// Arguments may be patterns, `mut image`, `(width, height)` or `_`.
///
/// Everything else is refused with a message that says what to write instead: methods (take the value as an argument),
/// generics and `impl Trait` (one function per concrete type), borrowed arguments and results (owned ones), `async fn` (a plain
/// `fn`), `unsafe` and `extern` functions (a safe one that calls them).
///
/// ```compile_fail
/// # use concurrent_futures::task;
/// #[task]
/// fn words(text: &str) -> usize {
///     text.split_whitespace().count()
/// }
/// ```
///
/// ```text
/// error: a task cannot borrow, its arguments go to another thread or process: take `String`
///  |
///  | fn words(text: &str) -> usize {
///  |                ^^^^
/// ```
///
/// # What is written
///
/// The companion is a type without values, so `use images::crop` brings the function and the companion, and no other type,
/// trait or module of that name can stand beside it. (It is not a module: a module would not see the types in the scope of the
/// function, such as those local to the body of another function. `use images::crop::submit` therefore does not work.)
///
/// All attributes stay on the function. `#[cfg]`, `#[deprecated]` and `#[doc(hidden)]` apply to the companion as well.
///
/// [`Executor::submit`]: https://docs.rs/concurrent-futures/latest/concurrent_futures/trait.Executor.html#tymethod.submit
/// [`Executor::map`]: https://docs.rs/concurrent-futures/latest/concurrent_futures/trait.Executor.html#tymethod.map
/// [label]: https://docs.rs/concurrent-futures/latest/concurrent_futures/struct.Options.html#method.label
/// [`Payload`]: https://docs.rs/concurrent-futures/latest/concurrent_futures/trait.Payload.html
#[proc_macro_attribute]
pub fn task(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(attribute.into(), item.into()).into()
}
