//! What a host's engine computes: nothing but names ([`cost`]), a problem whose loss shows what was merged ([`toy`]), or
//! the run's own model on its own corpus ([`real`]).

pub mod cost;
pub mod real;
pub mod toy;

use std::sync::Arc;

use iota_model::data::Corpus;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::{Epoch, RunSpec, StageIndex};
use iota_worker::bridge::model_config;
use iota_worker::corpus::builtin_corpus;

use crate::blobs::BlobStore;
use crate::costs::Costs;

/// An engine. It is asked for one job at a time and keeps its tensors in the host's store.
pub trait Trainer {
    /// Does a job. `stage` is the stage the host is a member of.
    fn perform(&mut self, stage: StageIndex, job: &Job, store: &mut BlobStore) -> JobDone;

    /// Nats per token that the weights held would lose on data that nobody trained on, of this stage's part.
    /// Nothing where that has no meaning: a stage of a real model loses nothing by itself, see
    /// [`Report::validation`](crate::report::Report::validation).
    fn excess_loss(&self) -> Option<f64> {
        None
    }

    /// The weights of the last merge, where they are the model's.
    fn weights(&self) -> Option<Weights<'_>> {
        None
    }
}

/// Weights of a stage as a merge left them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights<'a> {
    /// The stage.
    pub stage: StageIndex,
    /// How many epochs are in them.
    pub version: Epoch,
    /// The flat vector.
    pub flat: &'a [f32],
}

/// Which engine hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Durations and hashes.
    Cost,
    /// A closed-form problem.
    Toy,
    /// The run's model, on the processor.
    Real,
}

impl Compute {
    /// Elements of each stage's flat vector.
    #[must_use]
    pub fn parameters(self, spec: &RunSpec, costs: &Costs) -> Vec<usize> {
        match self {
            Self::Cost | Self::Toy => vec![costs.parameters; usize::from(spec.pipeline.stages)],
            Self::Real => {
                let model = model_config(spec);
                (0..model.stages).map(|stage| model.parameter_count(stage)).collect()
            }
        }
    }
}

/// Makes the engines of all hosts; what they share, it holds once.
#[derive(Clone, Debug)]
pub struct Engines {
    compute: Compute,
    spec: Arc<RunSpec>,
    costs: Costs,
    corpus: Option<Arc<Corpus>>,
}

impl Engines {
    /// A maker of engines of this kind.
    ///
    /// # Panics
    /// If engines are real and the corpus of the spec is too short for its windows.
    #[must_use]
    pub fn new(compute: Compute, spec: &Arc<RunSpec>, costs: &Costs) -> Self {
        let corpus = (compute == Compute::Real).then(|| {
            let corpus = builtin_corpus(spec);
            Arc::new(corpus.unwrap_or_else(|error| panic!("an invalid set-up: {error}")))
        });
        Self { compute, spec: Arc::clone(spec), costs: *costs, corpus }
    }

    /// An engine for one host, which holds nothing yet.
    #[must_use]
    pub fn trainer(&self) -> Box<dyn Trainer> {
        match self.compute {
            Compute::Cost => Box::new(cost::CostTrainer::new(&self.spec, &self.costs)),
            Compute::Toy => Box::new(toy::ToyTrainer::new(&self.spec, &self.costs)),
            Compute::Real => Box::new(real::RealTrainer::new(&self.spec, self.corpus.clone())),
        }
    }

    /// Elements of each stage's flat vector.
    #[must_use]
    pub fn parameters(&self) -> Vec<usize> {
        self.compute.parameters(&self.spec, &self.costs)
    }

    /// Their kind.
    #[must_use]
    pub const fn compute(&self) -> Compute {
        self.compute
    }

    /// What real engines learn from.
    #[must_use]
    pub fn corpus(&self) -> Option<&Corpus> {
        self.corpus.as_deref()
    }
}
