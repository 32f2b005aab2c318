//! What a host's engine computes: nothing but names ([`cost`]), or a problem whose loss shows what was merged ([`toy`]).

pub mod cost;
pub mod toy;

use std::sync::Arc;

use iota_protocol::miner::{Job, JobDone};
use iota_protocol::{RunSpec, StageIndex};

use crate::blobs::BlobStore;
use crate::costs::Costs;

/// An engine. It is asked for one job at a time and keeps its tensors in the host's store.
pub trait Trainer {
    /// Does a job. `stage` is the stage the host is a member of.
    fn perform(&mut self, stage: StageIndex, job: &Job, store: &mut BlobStore) -> JobDone;

    /// Nats per token that the weights held would lose on data that nobody trained on, of this stage's part.
    /// Nothing where that has no meaning.
    fn excess_loss(&self) -> Option<f64> {
        None
    }
}

/// Which engine hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Durations and hashes.
    Cost,
    /// A closed-form problem.
    Toy,
}

impl Compute {
    /// An engine of this kind for one host.
    #[must_use]
    pub fn trainer(self, spec: &Arc<RunSpec>, costs: &Costs) -> Box<dyn Trainer> {
        match self {
            Self::Cost => Box::new(cost::CostTrainer::new(spec, costs)),
            Self::Toy => Box::new(toy::ToyTrainer::new(spec, costs)),
        }
    }
}
