//! The engine's part of a check: the miner's jobs once more, and what their results say of the miner's.

use std::sync::Arc;

use super::claims::was_received;
use super::neighbours::{Neighbours, Sent};
use crate::difference::{Difference, ONE_PPM};
use crate::id::{Hash, PeerId};
use crate::miner::{Context, Job, JobDone, Tensor};
use crate::moments;
use crate::receipts::Receipt;
use crate::receipts::order::{BadReceipts, Step, replay, waiting_max};
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::validation::{Fault, Finding, Subject, is_compared};
use crate::wire::message::Manifest;

/// Tensors that are compared as numbers when their hashes differ, before only those [drawn](is_compared) are: where the same device
/// computes the same, a cheat's are found with its first few samples. On another kind of device all of them differ.
const COMPARED_FIRST: usize = 8;

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    /// Give this to the engine.
    Job(Job),
    /// Bring these here. The miner has each, and so has who was sent it, or else those who merged it.
    Fetch(Vec<(Hash, Option<PeerId>)>),
    /// It is over.
    Found(Finding),
}

/// Tensors that hash otherwise here.
#[derive(Debug)]
struct Differing {
    fault: Fault,
    kind: Tensor,
    /// Here, and at the miner.
    pairs: Vec<(Hash, Hash)>,
    /// Who was sent them, if one peer was.
    sent: Option<PeerId>,
    /// Whether the miner's are here.
    fetched: bool,
}

/// How far the replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The weights are not in the engine yet.
    Weights,
    /// So many steps are taken.
    Steps(usize),
    /// The contribution is written.
    Contributed,
}

/// A replay under way.
#[derive(Debug)]
pub(super) struct Replay {
    spec: Arc<RunSpec>,
    manifest: Manifest,
    receipts: Vec<Receipt>,
    steps: Vec<Step>,
    phase: Phase,
    /// What is compared before anything else.
    differing: Option<Differing>,
    /// Tensors that were compared.
    compared: usize,
    /// As in the challenge.
    seed: Hash,
    /// Tensors that the miner sent.
    sent: usize,
    found: Option<Finding>,
}

impl Replay {
    /// The replay that what `subject` committed to asks for; nothing if it tells of what cannot have been: tensors that nobody on
    /// the path of their sample has signed, an order that no miner can have worked in, or more passes that wait for their gradient
    /// at once than may in a miner, which need not fit this engine's memory.
    pub(super) fn of(
        cx: &Context<'_>,
        spec: &Arc<RunSpec>,
        subject: &Subject,
        manifest: Manifest,
        receipts: Vec<Receipt>,
        seed: Hash,
    ) -> Option<Self> {
        let mut received = receipts.iter().flat_map(|receipt| receipt.received(subject.stage, subject.epoch));
        let invented = received.any(|(hop, received)| !was_received(cx.out.run(), cx.state, &hop, received));
        drop(received);
        let replay = Self::new(spec, manifest, receipts, seed).ok().filter(|_| !invented)?;
        replay.is_bounded().then_some(replay)
    }

    /// The replay that these receipts ask for.
    fn new(
        spec: &Arc<RunSpec>,
        manifest: Manifest,
        receipts: Vec<Receipt>,
        seed: Hash,
    ) -> Result<Self, BadReceipts> {
        let steps = replay(spec, manifest.stage, &receipts)?;
        let sent = receipts.iter().flat_map(Receipt::sent).count();
        Ok(Self {
            spec: Arc::clone(spec),
            manifest,
            receipts,
            steps,
            phase: Phase::Weights,
            differing: None,
            compared: 0,
            seed,
            sent,
            found: None,
        })
    }

    /// Whether no more passes wait for their gradient at once than may in a miner.
    fn is_bounded(&self) -> bool {
        let pipeline = &self.spec.pipeline;
        let most = if self.manifest.stage.0 == 0 { pipeline.window } else { pipeline.credits };
        waiting_max(&self.steps) <= usize::from(most)
    }

    /// The tensors that the steps read, each with whoever sent it.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (Hash, PeerId)> + '_ {
        let received =
            self.receipts.iter().flat_map(|receipt| receipt.input.iter().chain(&receipt.output_gradient));
        received.map(|received| (received.hash, received.from))
    }

    /// What the miner commits to have sent.
    pub(super) fn sent(&self, subject: Subject) -> Sent {
        Sent::of(subject, &self.manifest, &self.receipts)
    }

    /// Those who can tell what the miner sent.
    pub(super) fn neighbours(&self, subject: Subject, now: Instant) -> Neighbours {
        Neighbours::new(subject, now, &self.manifest, &self.receipts)
    }

    /// The inner optimizer's moments that the miner's epoch started from.
    pub(super) const fn moments(&self) -> Option<Hash> {
        self.manifest.moments
    }

    /// The blob of those moments; fresh ones need none.
    pub(super) fn moments_blob(&self) -> Option<Hash> {
        self.moments().filter(|moments| *moments != moments::fresh())
    }

    /// The next thing to do, once the job before is done.
    pub(super) fn next(&mut self) -> Next {
        if let Some(finding) = self.found {
            return Next::Found(finding);
        }
        if let Some(differing) = &mut self.differing {
            if std::mem::replace(&mut differing.fetched, true) {
                return Next::Job(Job::Compare { kind: differing.kind, pairs: differing.pairs.clone() });
            }
            let sent = differing.sent;
            return Next::Fetch(differing.pairs.iter().map(|(_, theirs)| (*theirs, sent)).collect());
        }
        let Manifest { stage, epoch, samples, .. } = self.manifest;
        match self.phase {
            // The engine is given its weights before this is asked.
            Phase::Weights => Next::Found(Finding::Unavailable),
            Phase::Steps(taken) => match self.steps.get(taken) {
                None => Next::Job(Job::Contribute { stage, epoch, samples }),
                Some(step) => {
                    step.job(epoch, &self.receipts).map_or(Next::Found(Finding::Unavailable), Next::Job)
                }
            },
            Phase::Contributed => Next::Found(Finding::Matches),
        }
    }

    /// Takes the result of the engine's job. `base` is what the weights that it starts from hash to.
    pub(super) fn computed(&mut self, base: Hash, done: &JobDone) {
        match (self.phase, done) {
            (Phase::Weights, JobDone::Weights { hash, .. }) => {
                self.phase = Phase::Steps(0);
                if *hash != base {
                    self.found = Some(Finding::Unavailable);
                }
            }
            (_, JobDone::Compared(outcome)) => self.judge(outcome),
            (Phase::Steps(taken), JobDone::Contributed { partitions, moments_after, .. }) => {
                debug_assert_eq!(taken, self.steps.len(), "the last thing that is computed");
                self.phase = Phase::Contributed;
                self.compare_contribution(partitions, *moments_after);
            }
            (Phase::Steps(taken), _) => {
                self.phase = Phase::Steps(taken + 1);
                self.compare_step(taken, done);
            }
            _ => {}
        }
    }

    /// Takes how much differs.
    fn judge(&mut self, outcome: &Difference) {
        let Some(Differing { fault, kind, .. }) = self.differing.take() else { return };
        let validation = &self.spec.validation;
        let most = match kind {
            Tensor::Activation => validation.tensor_error_max,
            Tensor::Contribution { .. } => validation.contribution_error_max,
        };
        self.found = (!is_close(outcome, most)).then_some(Finding::Differs(fault));
    }

    fn compare_step(&mut self, taken: usize, done: &JobDone) {
        let index = self.steps.get(taken).and_then(|step| step.receipt());
        let Some(receipt) = index.and_then(|index| self.receipts.get(index)) else { return };
        if let JobDone::Finished { loss_micro, .. } = done
            && !is_same_loss(*loss_micro, receipt.loss_micro, self.spec.validation.loss_error_max)
        {
            self.found = Some(Finding::Differs(Fault::Loss(receipt.sample)));
        }
        if let Some((direction, ours, theirs)) = receipt.beside(done)
            && ours != theirs
            && (self.compared < COMPARED_FIRST
                || is_compared(self.seed, direction, receipt.sample, self.sent))
        {
            self.compared += 1;
            self.differing = Some(Differing {
                fault: Fault::Tensor(receipt.sample),
                kind: Tensor::Activation,
                pairs: vec![(ours, theirs)],
                sent: receipt.sent_to(done),
                fetched: false,
            });
        }
    }

    fn compare_contribution(&mut self, partitions: &[Hash], moments_after: Option<Hash>) {
        let theirs = &self.manifest.partitions;
        if partitions.len() != theirs.len() {
            self.found = Some(Finding::Differs(Fault::Contribution));
        } else if partitions != theirs {
            let pairs = partitions.iter().copied().zip(theirs.iter().copied()).collect();
            let kind = Tensor::Contribution { stage: self.manifest.stage };
            self.differing =
                Some(Differing { fault: Fault::Contribution, kind, pairs, sent: None, fetched: false });
        } else if moments_after != self.manifest.moments_after {
            // The same steps to the last bit end with the same moments.
            self.found = Some(Finding::Differs(Fault::Moments));
        }
    }
}

/// Whether tensors differ by no more than this relative error.
fn is_close(difference: &Difference, error_max: f64) -> bool {
    match difference {
        Difference::Measured(measured) => {
            f64::from(measured.relative_error_ppm) <= error_max * f64::from(ONE_PPM)
        }
        Difference::Incomparable { .. } => false,
    }
}

/// Whether two losses in millionths are the same within a relative error.
#[expect(clippy::cast_precision_loss, reason = "losses of a few nats, in millionths")]
fn is_same_loss(ours: Option<i64>, theirs: Option<i64>, error_max: f64) -> bool {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => {
            ours.abs_diff(theirs) as f64 <= error_max * (ours.unsigned_abs() as f64).max(1.0)
        }
        (ours, theirs) => ours == theirs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::difference::Measured;
    use crate::id::{Epoch, SampleId, StageIndex};
    use crate::receipts::Received;
    use crate::spec::TrainingMode;

    const SAMPLES: u32 = 400;
    const CLOSE: Measured =
        Measured { relative_error_ppm: 1, cosine_ppm: 1_000_000, norm_ratio_ppm: 1_000_000, worst: 0 };

    /// The numbers of the samples whose tensors a replay compares on a device that computes all of them a little differently.
    fn compared(seed: Hash) -> Vec<u64> {
        let mut spec = RunSpec::default();
        (spec.pipeline.stages, spec.training.mode) = (2, TrainingMode::Synchronous);
        let (theirs, ours) = (Hash::of(b"theirs"), Hash::of(b"ours"));
        let receipt = |turn: u32| Receipt {
            output: Some(theirs),
            output_gradient: Some(Received::unsigned(theirs)),
            turn,
            ..Receipt::new(SampleId(turn.into()))
        };
        let manifest = Manifest {
            peer: PeerId::default(),
            stage: StageIndex(0),
            epoch: Epoch(1),
            nonce: 0,
            base: theirs,
            samples: SAMPLES,
            sample_set: theirs,
            dealt: theirs,
            receipt_root: theirs,
            receipts: theirs,
            loss_micro: None,
            moments: None,
            moments_after: None,
            partitions: vec![theirs],
        };
        let receipts = (0..SAMPLES).map(receipt).collect();
        let mut replay = Replay::new(&Arc::new(spec), manifest, receipts, seed).expect("they are in order");
        let weights = JobDone::Weights { stage: StageIndex(0), version: Epoch(1), hash: theirs };
        replay.computed(theirs, &weights);
        let (mut last, mut compared) = (0, Vec::new());
        loop {
            let done = match replay.next() {
                Next::Job(Job::Forward { epoch, sample, .. }) => {
                    last = sample.0;
                    JobDone::Forwarded { epoch, sample, output: ours }
                }
                Next::Job(Job::Backward { epoch, sample, .. }) => {
                    JobDone::Finished { epoch, sample, input_gradient: None, loss_micro: None }
                }
                Next::Job(Job::Compare { pairs, .. }) => {
                    assert_eq!(pairs, [(ours, theirs)]);
                    compared.push(last);
                    JobDone::Compared(Difference::Measured(CLOSE))
                }
                Next::Fetch(wanted) => {
                    assert_eq!(wanted, [(theirs, Some(PeerId::default()))]);
                    continue;
                }
                Next::Job(Job::Contribute { .. }) => return compared,
                other => panic!("{other:?}"),
            };
            replay.computed(theirs, &done);
        }
    }

    #[test]
    fn beside_the_first_tensors_those_are_compared_that_nobody_could_tell_before() {
        let (one, other) = (compared(Hash::of(b"one")), compared(Hash::of(b"other")));
        let first = u64::try_from(COMPARED_FIRST).expect("few");
        for compared in [&one, &other] {
            assert!(compared.starts_with(&(0..first).collect::<Vec<_>>()), "{compared:?}");
            // Eight are expected; fewer than two or more than twenty come once in five thousand times.
            assert!((2..=20).contains(&(compared.len() - COMPARED_FIRST)), "{compared:?}");
        }
        assert_ne!(one, other);
    }
}
