//! What a miner asks of its engine, one job at a time, and what comes back.

use crate::difference::Difference;
use crate::id::{Epoch, Hash, PartitionIndex, PeerId, SampleId, StageIndex};
use crate::wire::message::StateOffer;

/// A job for the engine. Tensors are named by the hashes under which the driver keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Build the engine of a stage with the run's initial weights.
    Initialise {
        /// The stage.
        stage: StageIndex,
    },
    /// Take the state from blobs: weights and outer optimizer state, in this order. What was under way is dropped.
    Load {
        /// The stage.
        stage: StageIndex,
        /// The version.
        version: Epoch,
        /// What the weights must hash to.
        weights: Hash,
        /// The blobs.
        parts: Vec<Hash>,
        /// The inner optimizer's [moments](crate::moments) to go on from, of another miner: a blob, but for fresh ones. None
        /// to go on with those that are here, in the engine or, if it has just started, on the disk.
        moments: Option<Hash>,
    },
    /// Write the state the epoch started from to blobs.
    Snapshot {
        /// The stage.
        stage: StageIndex,
        /// The version.
        version: Epoch,
        /// Hash of the weights.
        hash: Hash,
    },
    /// Return to the weights the epoch started from; drop gradients and activations.
    Reset,
    /// Forward one sample and keep what its backward pass needs.
    Forward {
        /// The epoch.
        epoch: Epoch,
        /// The sample.
        sample: SampleId,
        /// The activation; none at the head, which reads the sample itself.
        input: Option<Hash>,
    },
    /// Forward, loss and backward, at the tail.
    Loss {
        /// The epoch.
        epoch: Epoch,
        /// The sample.
        sample: SampleId,
        /// The activation; none if the tail is also the head.
        input: Option<Hash>,
    },
    /// Backward one sample, accumulating its gradient.
    Backward {
        /// The epoch.
        epoch: Epoch,
        /// The sample.
        sample: SampleId,
        /// Gradient of the activation sent on.
        gradient: Hash,
    },
    /// Take an inner optimizer step with the mean of the gradients accumulated since the last.
    InnerStep {
        /// The epoch.
        epoch: Epoch,
        /// Which of the epoch's steps, from 0.
        step: u32,
    },
    /// Write the encoded partitions of this epoch's contribution to blobs, and the inner optimizer's
    /// [moments](crate::moments) as they were when the epoch began.
    Contribute {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// Samples in it.
        samples: u32,
    },
    /// Reduce one partition.
    Reduce {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// The partition.
        partition: PartitionIndex,
        /// Contributions in [`PeerId`] order: whose, its weight, its bytes.
        inputs: Vec<(PeerId, u32, Hash)>,
    },
    /// Take the outer step with the merged vector; the result is the next version's weights. Without partitions the epoch
    /// was passed over: the next version's weights are those it started from.
    Apply {
        /// The stage.
        stage: StageIndex,
        /// The epoch that was merged.
        epoch: Epoch,
        /// The merged partitions, in order.
        partitions: Vec<Hash>,
    },
    /// Compare tensors that this engine computed with those that a miner named.
    Compare {
        /// Both blobs of each pair, ours first.
        pairs: Vec<(Hash, Hash)>,
        /// What they hold.
        kind: Tensor,
    },
    /// Say of a contribution what is compared with others.
    Sketch {
        /// The stage.
        stage: StageIndex,
        /// Chain hash after the merge plan, from which the elements are [drawn](crate::gauntlet::draw::Draw::elements).
        plan: Hash,
        /// The contribution's partitions, in order.
        partitions: Vec<Hash>,
    },
    /// Say what a whole model loses on samples, with the weights held or with a contribution applied to them. The weights held stay, what
    /// is under way is dropped.
    Losses {
        /// The samples.
        samples: Vec<SampleId>,
        /// What is applied, if anything is.
        contribution: Option<Applied>,
    },
}

/// A contribution that is taken from the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its partitions, in order.
    pub partitions: Vec<Hash>,
    /// What it is multiplied by, in millionths.
    pub rate_ppm: u32,
}

/// What is compared of a contribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketched {
    /// Its Euclidean norm.
    pub norm: f64,
    /// The elements drawn, by place.
    pub elements: Vec<f64>,
}

/// How to read the tensors that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tensor {
    /// Activations or their gradients, as they are pushed: each pair is compared apart.
    Activation,
    /// The partitions of a contribution, all of them in order: compared as the one vector that they make up.
    Contribution {
        /// The stage.
        stage: StageIndex,
    },
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum JobDone {
    /// After [`Job::Initialise`], [`Job::Load`] and [`Job::Apply`]: the weights now held.
    Weights {
        /// The stage.
        stage: StageIndex,
        /// Their version.
        version: Epoch,
        /// Their hash.
        hash: Hash,
    },
    /// After [`Job::Reset`].
    Reset,
    /// After [`Job::Forward`].
    Forwarded {
        /// The epoch.
        epoch: Epoch,
        /// The sample.
        sample: SampleId,
        /// The activation, stored.
        output: Hash,
    },
    /// After [`Job::Loss`] and [`Job::Backward`].
    Finished {
        /// The epoch.
        epoch: Epoch,
        /// The sample.
        sample: SampleId,
        /// Gradient of the activation received, stored; none at the head.
        input_gradient: Option<Hash>,
        /// The loss in millionths of a nat, at the tail.
        loss_micro: Option<i64>,
    },
    /// After [`Job::InnerStep`].
    Stepped {
        /// The epoch.
        epoch: Epoch,
    },
    /// After [`Job::Contribute`].
    Contributed {
        /// The epoch.
        epoch: Epoch,
        /// The encoded partitions, stored, in order.
        partitions: Vec<Hash>,
        /// The moments that the epoch started from, stored; none in `synchronous` mode.
        moments: Option<Hash>,
        /// The moments as they are now, by name; none in `synchronous` mode.
        moments_after: Option<Hash>,
    },
    /// After [`Job::Reduce`].
    Reduced {
        /// The stage.
        stage: StageIndex,
        /// The partition.
        partition: PartitionIndex,
        /// The merged partition, stored, or whose contribution is no valid partition.
        merged: Result<Hash, PeerId>,
        /// Whose contributions stand out from the others'. Nothing is proved by that.
        outliers: Vec<PeerId>,
    },
    /// After [`Job::Snapshot`].
    Snapshot(StateOffer),
    /// After [`Job::Compare`]. What of theirs is no such tensor is a difference; the job fails if that is so of ours, or if
    /// a blob is not here.
    Compared(Difference),
    /// After [`Job::Sketch`]: nothing if it is no contribution to this stage. The job fails if a blob is not here.
    Sketched(Option<Sketched>),
    /// After [`Job::Losses`]: in nats per token, in the order of the samples. Not finite where weights or losses are not.
    Losses(Vec<f64>),
    /// The job could not be done. For people.
    Failed(String),
}
