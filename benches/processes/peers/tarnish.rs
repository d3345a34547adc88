//! tarnish: a process with one task type, which is called and waited for.

use serde::{Deserialize, Serialize};
use tarnish::{Process, Task};

use super::Caller;
use crate::farm::{burn, increment};

/// All that its process is ever asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Increment(u64),
    Process,
    Burn(u64, u64),
}

#[derive(Debug, Default)]
pub(crate) struct Everything;

impl Task for Everything {
    type Input = Ask;
    type Output = u64;
    type Error = String;

    fn run(&mut self, ask: Ask) -> Result<u64, String> {
        Ok(match ask {
            Ask::Increment(i) => increment(i),
            Ask::Process => u64::from(std::process::id()),
            Ask::Burn(seed, rounds) => burn((seed, rounds)),
        })
    }
}

pub(crate) struct Tarnish(Process<Everything>);

impl Tarnish {
    pub(crate) fn try_ask(&mut self, ask: Ask) -> Result<u64, String> {
        self.0.call(ask).map_err(|error| error.to_string())
    }

    pub(crate) fn ask(&mut self, ask: Ask) -> u64 {
        self.try_ask(ask).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Caller for Tarnish {
    fn start() -> Self {
        Self(Process::spawn().unwrap_or_else(|error| panic!("{error}")))
    }

    fn increment(&mut self, i: u64) -> u64 {
        self.ask(Ask::Increment(i))
    }
}
