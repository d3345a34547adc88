//! The adapters.

mod callers;
mod ours;
mod procspawn;
mod tarnish;
mod zygote;

pub(crate) use self::callers::Caller;
pub(crate) use self::ours::{OurThreads, Ours};
pub(crate) use self::procspawn::Procspawn;
pub(crate) use self::tarnish::{Ask, Everything, Tarnish};
pub(crate) use self::zygote::Zygotes;
