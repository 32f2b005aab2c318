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
    /// Does a job. `stage` is the stage the host is a member of, or checks.
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

#[cfg(test)]
mod tests {
    use iota_protocol::difference::{Difference, Measured};
    use iota_protocol::miner::Tensor;
    use iota_protocol::{Hash, SampleId, moments};

    use super::*;
    use crate::blobs::Blob;

    const STAGE: StageIndex = StageIndex(0);

    /// An epoch of two inner steps, and what it names: partitions, moments before and after.
    fn epoch(trainer: &mut dyn Trainer, store: &mut BlobStore) -> (Vec<Hash>, [Option<Hash>; 2]) {
        let epoch = Epoch(0);
        for (step, sample) in (0..).zip([SampleId(4), SampleId(2)]) {
            trainer.perform(STAGE, &Job::Forward { epoch, sample, input: None }, store);
            let gradient = Hash::default();
            trainer.perform(STAGE, &Job::Backward { epoch, sample, gradient }, store);
            trainer.perform(STAGE, &Job::InnerStep { epoch, step }, store);
        }
        match trainer.perform(STAGE, &Job::Contribute { stage: STAGE, epoch, samples: 2 }, store) {
            JobDone::Contributed { partitions, moments, moments_after, .. } => {
                (partitions, [moments, moments_after])
            }
            other => panic!("{other:?}"),
        }
    }

    fn compared(
        trainer: &mut dyn Trainer,
        store: &mut BlobStore,
        kind: Tensor,
        ours: &[Hash],
        theirs: &[Hash],
    ) -> JobDone {
        let pairs = ours.iter().copied().zip(theirs.iter().copied()).collect();
        trainer.perform(STAGE, &Job::Compare { pairs, kind }, store)
    }

    #[test]
    fn engines_without_a_model_go_through_an_epoch_again_and_compare() {
        let spec = Arc::new(RunSpec::default());
        let kind = Tensor::Contribution { stage: STAGE };
        for compute in [Compute::Cost, Compute::Toy] {
            let costs = Costs { parameters: 64, ..Costs::default() };
            let engines = Engines::new(compute, &spec, &costs);
            let mut store = BlobStore::new(u64::MAX);
            let (mut miner, mut validator) = (engines.trainer(), engines.trainer());
            for engine in [&mut miner, &mut validator] {
                engine.perform(STAGE, &Job::Initialise { stage: STAGE }, &mut store);
            }
            let (theirs, moments) = epoch(&mut *miner, &mut store);
            assert_eq!(epoch(&mut *validator, &mut store), (theirs.clone(), moments));
            assert_eq!(moments[0], Some(moments::fresh()));
            assert_ne!(moments[1], moments[0]);
            let same = compared(&mut *validator, &mut store, kind, &theirs, &theirs);
            assert_eq!(same, JobDone::Compared(Difference::NONE));
        }
    }

    #[test]
    fn an_engine_goes_on_from_the_moments_that_it_is_told_to_take() {
        let spec = Arc::new(RunSpec::default());
        let mut store = BlobStore::new(u64::MAX);
        let mut engine = Engines::new(Compute::Cost, &spec, &Costs::default()).trainer();
        engine.perform(STAGE, &Job::Initialise { stage: STAGE }, &mut store);
        let (_, [_, after]) = epoch(&mut *engine, &mut store);
        let (version, weights, parts) = (Epoch(0), Hash::default(), Vec::new());
        let load = Job::Load { stage: STAGE, version, weights, parts, moments: after };
        engine.perform(STAGE, &load, &mut store);
        assert_eq!(epoch(&mut *engine, &mut store).1[0], after);
    }

    #[test]
    fn toy_vectors_are_measured_and_names_without_numbers_are_equal_or_not() {
        let spec = Arc::new(RunSpec::default());
        let costs = Costs { parameters: 64, ..Costs::default() };
        let kind = Tensor::Contribution { stage: STAGE };
        let mut store = BlobStore::new(u64::MAX);
        let mut toy = Engines::new(Compute::Toy, &spec, &costs).trainer();
        toy.perform(STAGE, &Job::Initialise { stage: STAGE }, &mut store);
        let (ours, _) = epoch(&mut *toy, &mut store);
        let double = |hash: &Hash| {
            let values = store.content(hash).and_then(toy::from_bytes).expect("a partition");
            Blob::of(toy::to_bytes(&values.iter().map(|value| value * 2.0).collect::<Vec<_>>()))
        };
        let doubled: Vec<_> = ours.iter().map(double).collect();
        for (hash, blob) in &doubled {
            store.keep(*hash, blob.clone(), "theirs").expect("room");
        }
        let doubled: Vec<Hash> = doubled.into_iter().map(|(hash, _)| hash).collect();
        let expected = Measured {
            relative_error_ppm: 1_000_000,
            cosine_ppm: 1_000_000,
            norm_ratio_ppm: 500_000,
            worst: 0,
        };
        let done = compared(&mut *toy, &mut store, kind, &ours, &doubled);
        assert_eq!(done, JobDone::Compared(Difference::Measured(expected)));
        let missing = compared(&mut *toy, &mut store, kind, &[], &[]);
        assert!(matches!(missing, JobDone::Failed(_)), "{missing:?}");

        let mut activation = |sample| {
            let forward = Job::Forward { epoch: Epoch(0), sample: SampleId(sample), input: None };
            match toy.perform(STAGE, &forward, &mut store) {
                JobDone::Forwarded { output, .. } => output,
                other => panic!("{other:?}"),
            }
        };
        let (ours, other_sample) = (activation(1), activation(3));
        let incomparable = JobDone::Compared(Difference::Incomparable { pair: 1 });
        let (ours, theirs) = ([ours, ours], [ours, other_sample]);
        assert_eq!(compared(&mut *toy, &mut store, Tensor::Activation, &ours, &theirs), incomparable);
        let mut cost = Engines::new(Compute::Cost, &spec, &costs).trainer();
        assert_eq!(compared(&mut *cost, &mut store, Tensor::Activation, &ours, &theirs), incomparable);
    }
}
