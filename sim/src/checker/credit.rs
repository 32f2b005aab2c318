//! A miner never holds more forwarded activations than its credits, and grants no more than it has room for.

use super::broken;
use crate::observe::{Observation, Observer, Seen, Violation};

const NAME: &str = "credit";

/// The checker.
#[derive(Clone, Copy, Debug)]
pub struct Credit {
    most: usize,
}

impl Credit {
    /// The checker of a run in which a miner has this many credits.
    #[must_use]
    pub const fn new(credits: u16) -> Self {
        Self { most: credits as usize }
    }
}

impl Observer for Credit {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let miner = seen.peer.filter(|_| seen.honest).and_then(|peer| peer.miner());
        let (Some(miner), Seen::Done(..) | Seen::Notice(_)) = (miner, seen.seen) else { return Ok(()) };
        let (open, granted) = (miner.open_inputs(), usize::from(miner.credits()));
        if open > self.most || open + granted > self.most {
            let what = format!("holds {open} inputs and grants {granted} more, of {}", self.most);
            return Err(broken(NAME, seen, what));
        }
        Ok(())
    }
}
