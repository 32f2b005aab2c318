//! Measures a run: what it achieved, beside what its hosts and links allow.
//!
//! ```text
//!           open          plan        decided       applied
//! stage ────┼─────────────┼───────────┼─────────────┼──────────▶
//!           │  training   │   reduce  │   gather    │
//!           └ X ≤ X*      └── all-reduce: ≥ bound ──┘
//! ```
//! A [`Meter`] looks on and ends in a [`Report`]. Decisions count from when the first honest host applies them. Work is
//! counted in seconds of a host of speed 1, so that a slow host's pass is as much work as a fast one's.
//!
//! | number | is | at best |
//! |---|---|---|
//! | η_pipe | samples per second of training ÷ [roofline] | 1 |
//! | η_net | [least time](roofline::MergeBound) for a merge's bytes ÷ time from plan to the last replica's new weights | 1 |
//! | η_work | passes over samples that were merged ÷ passes | 1 |
//! | goodput | samples merged at the tail ÷ all time, merges and waits included | roofline |
//! | live capacity | mean of the bound of who is there ÷ the bound of who was there at first | 1 |

mod churn;
mod epochs;
mod recorder;
pub mod roofline;
pub mod statistics;
mod summary;
mod validation;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::observe::{Observation, Observer, Violation};
use crate::report::Report;
use crate::world::{Ending, Setup, World};

use recorder::Recorder;
pub(crate) use validation::merged_loss;

/// Measures one run.
#[derive(Clone)]
pub struct Meter(Rc<RefCell<Recorder>>);

impl Meter {
    /// A meter of a run that starts from `setup`.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        Self(Rc::new(RefCell::new(Recorder::new(setup))))
    }

    /// What the world shows things to.
    #[must_use]
    pub fn observer(&self) -> Box<dyn Observer> {
        Box::new(self.clone())
    }

    /// What was measured in `world`, which has come to this end.
    #[must_use]
    pub fn report(&self, world: &World, ending: &Ending) -> Report {
        summary::report(&self.0.borrow(), world, ending)
    }
}

impl Observer for Meter {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        self.0.borrow_mut().observe(observation);
        Ok(())
    }
}

/// Runs `setup` for at most `limit` of virtual time and measures it.
#[must_use]
pub fn run(setup: Setup, limit: Duration) -> Report {
    let meter = Meter::new(&setup);
    let mut world = World::new(setup);
    world.watch(meter.observer());
    let ending = world.run(limit);
    meter.report(&world, &ending)
}

#[cfg(test)]
mod tests;
