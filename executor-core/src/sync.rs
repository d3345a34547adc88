//! The one place where this crate takes its atomics and locks from.
//!
//! Every other file imports them from here (clippy's `disallowed_types` sees to it), so that a model checker can
//! take their place in one file. Locks here are never poisoned: no user code runs while one is held, so a panic
//! cannot leave what they guard half changed.
//!
//! Built with `--cfg loom` (`ci/loom.sh`), the names mean loom's types, which run the models, the files called `loom.rs`,
//! once for every interleaving and every value a load may give under the memory model. They work inside a model alone.
//! [`system`] stays the real thing in every build: for statics, which a model, begun anew for every interleaving,
//! cannot follow, and which no protocol is about.

#[cfg(loom)]
mod loom;
pub mod system;

#[cfg(loom)]
pub use self::loom::*;
#[cfg(not(loom))]
pub use self::system::*;
