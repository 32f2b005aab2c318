//! The samples of one epoch at one miner, and how each passes through.
//!
//! ```text
//!          activation arrives     engine        pushed on        gradient arrives    engine
//! Waiting ───────────────────▶ Ready ──▶ Forwarding ──▶ Sent ──────────────────▶ Returned ──▶ Backwarding ──▶ Done
//!    │ (head: window has room)                                                                                 ▲
//!    └────────────── at the tail forward, loss and backward are one job: Ready ──▶ Backwarding ────────────────┘
//! ```
//! A sample is *lost* if a neighbour has settled the epoch without it: it is left out of the contribution.
//!
//! Deliveries are apart from the steps: what a sample produced is owed to whoever is dealt the sample in
//! the neighbouring stage *now*. If that changes, or a neighbour asks again, it is sent again from the store.

mod delivery;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use delivery::{Debt, PATIENCE_PARTS};

use super::job::Job;
use crate::id::{Epoch, Hash, LogIndex, PeerId, SampleId, StageIndex};
use crate::receipts::order::{Position, planned_step};
use crate::receipts::{Receipt, Received, encode_receipts, merkle_root};
use crate::run_state::{RunState, Training};
use crate::samples::sample_set_hash;
use crate::spec::RunSpec;
use crate::wire::frame::{Direction, PushRefusal};
use crate::wire::gossip::HashedManifest;
use crate::wire::message::Manifest;

/// Where a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Waiting,
    Ready,
    Forwarding,
    Sent,
    Returned,
    Backwarding,
    Done,
    Lost,
}

/// A sample and everything it produced here.
#[derive(Clone, Debug)]
struct Passage {
    step: Step,
    input: Option<Received>,
    output: Option<Hash>,
    output_gradient: Option<Received>,
    input_gradient: Option<Hash>,
    loss_micro: Option<i64>,
    /// As in its [`Receipt`].
    inner_step: u32,
    gradient_step: u32,
    turn: u32,
    /// Who took the activation, to notice that someone else is dealt the sample now.
    taken_by: Option<PeerId>,
    /// The entry that had opened the receiver's epoch, to notice that it starts over.
    taken_in: Option<LogIndex>,
}

/// How far a miner is with its share of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Samples finished.
    pub done: u32,
    /// Samples dealt to it.
    pub dealt: u32,
    /// Sum of the finished samples' losses in millionths of a nat, at the tail.
    pub loss_micro: Option<i64>,
}

/// What the engine made of an epoch.
#[derive(Clone, Debug)]
pub(super) struct Contribution {
    pub(super) partitions: Vec<Hash>,
    pub(super) moments: Option<Hash>,
    pub(super) moments_after: Option<Hash>,
}

/// Whether the contribution is being made.
#[derive(Clone, Debug)]
enum Progress {
    Working,
    Contributing,
    /// Being written down.
    Committing(Arc<HashedManifest>),
    Submitted(Arc<HashedManifest>),
}

/// One epoch's work.
#[derive(Clone, Debug)]
pub(super) struct EpochWork {
    pub(super) stage: StageIndex,
    pub(super) epoch: Epoch,
    pub(super) opened: LogIndex,
    /// As in its [`Manifest`].
    pub(super) nonce: u64,
    base: Hash,
    samples: BTreeMap<SampleId, Passage>,
    debts: BTreeMap<(Direction, SampleId), Debt>,
    inner_steps: u32,
    /// Gradients that the engine has added.
    turns: u32,
    /// Samples finished when the last inner step was taken: their gradients are spent.
    stepped_samples: u32,
    progress: Progress,
    /// Whether an earlier process did it, whose engine is gone: it can be submitted as it is, and not added to.
    restored: bool,
    cut_off: bool,
    last_stage: StageIndex,
    /// How long an activation that was taken may be out.
    patience: Duration,
}

impl EpochWork {
    pub(super) fn new(spec: &RunSpec, stage: StageIndex, training: &Training, nonce: u64) -> Self {
        Self {
            stage,
            epoch: training.epoch,
            opened: training.opened,
            nonce,
            base: training.base,
            samples: BTreeMap::new(),
            debts: BTreeMap::new(),
            inner_steps: 0,
            turns: 0,
            stepped_samples: 0,
            progress: Progress::Working,
            restored: false,
            cut_off: false,
            last_stage: StageIndex(spec.pipeline.stages - 1),
            patience: spec.timing.epoch_deadline.duration() / PATIENCE_PARTS,
        }
    }

    /// What an earlier process of `me` did: samples that its receipts do not name were lost on it.
    pub(super) fn restored(
        spec: &RunSpec,
        me: PeerId,
        training: &Training,
        manifest: Manifest,
        receipts: Vec<Receipt>,
    ) -> Self {
        let lost = training.deal.samples_of(me).into_iter().map(|sample| (sample, Passage::lost()));
        let done = receipts.into_iter().map(|receipt| (receipt.sample, Passage::done(receipt)));
        let mut work = Self::new(spec, manifest.stage, training, manifest.nonce);
        work.samples = lost.chain(done).collect();
        work.progress = Progress::Submitted(Arc::new(manifest.into()));
        work.restored = true;
        work
    }

    /// Whether an earlier process did it.
    pub(super) const fn is_restored(&self) -> bool {
        self.restored
    }

    /// Whether more samples were dealt to `me` than an earlier process had: the engine has nothing to add them to.
    pub(super) fn lacks_accumulated(&self, me: PeerId, training: &Training) -> bool {
        self.restored && training.deal.samples_of(me).iter().any(|sample| !self.samples.contains_key(sample))
    }

    /// Takes over the deal of an epoch under way: samples newly dealt here.
    pub(super) fn follow(&mut self, me: PeerId, training: &Training) {
        self.cut_off = training.cut_off;
        for sample in training.deal.samples_of(me) {
            self.samples.entry(sample).or_insert_with(|| {
                self.progress = Progress::Working;
                Passage::new()
            });
        }
    }

    /// Samples whose input is held and not finished: what counts against credit.
    pub(super) fn open_inputs(&self) -> usize {
        let open =
            |passage: &&Passage| passage.input.is_some() && !matches!(passage.step, Step::Done | Step::Lost);
        self.samples.values().filter(open).count()
    }

    pub(super) fn share(&self) -> Share {
        let losses = self.samples.values().filter_map(|passage| passage.loss_micro);
        Share {
            done: self.done(),
            dealt: u32::try_from(self.samples.len()).unwrap_or(u32::MAX),
            loss_micro: (self.stage == self.last_stage).then(|| losses.fold(0, i64::saturating_add)),
        }
    }

    fn done(&self) -> u32 {
        let done = self.samples.values().filter(|passage| passage.step == Step::Done).count();
        u32::try_from(done).unwrap_or(u32::MAX)
    }

    pub(super) fn manifest(&self) -> Option<&Manifest> {
        match &self.progress {
            Progress::Submitted(submitted) => Some(&submitted.manifest),
            _ => None,
        }
    }

    /// Takes an activation from the stage above.
    pub(super) fn receive_activation(
        &mut self,
        state: &RunState,
        me: PeerId,
        sample: SampleId,
        received: Received,
        full: bool,
    ) -> Result<(), PushRefusal> {
        let deal = |stage: StageIndex| state.stage(stage).and_then(|stage| stage.deal(self.epoch));
        let above = self.stage.0.checked_sub(1).map(StageIndex).ok_or(PushRefusal::WrongStage)?;
        let path = deal(above).and_then(|deal| deal.owner(sample)) == Some(received.from)
            && deal(self.stage).and_then(|deal| deal.owner(sample)) == Some(me);
        if !path {
            return Err(PushRefusal::WrongPath);
        }
        let settled = state.stage(self.stage).is_some_and(|stage| stage.version > self.epoch);
        let Some(passage) = self.samples.get_mut(&sample) else {
            return Err(if settled { PushRefusal::Stale } else { PushRefusal::WrongPath });
        };
        match passage.step {
            Step::Waiting if settled => return Err(PushRefusal::Stale),
            Step::Waiting if full => return Err(PushRefusal::Busy),
            Step::Waiting => {
                passage.input = Some(received);
                passage.step = Step::Ready;
            }
            // The sender is new on this path, or lost our answer: the gradient is owed to it.
            Step::Done => self.owe(Direction::Backward, sample),
            Step::Lost => return Err(PushRefusal::Stale),
            _ => {}
        }
        Ok(())
    }

    /// Takes a gradient from the stage below.
    pub(super) fn receive_gradient(
        &mut self,
        state: &RunState,
        sample: SampleId,
        received: Received,
    ) -> Result<(), PushRefusal> {
        let below = state.stage(StageIndex(self.stage.0 + 1)).ok_or(PushRefusal::WrongStage)?;
        if below.deal(self.epoch).and_then(|deal| deal.owner(sample)) != Some(received.from) {
            return Err(PushRefusal::WrongPath);
        }
        let passage = self.samples.get_mut(&sample).ok_or(PushRefusal::WrongPath)?;
        match passage.step {
            Step::Sent => {
                passage.output_gradient = Some(received);
                passage.step = Step::Returned;
                self.debts.remove(&(Direction::Forward, sample));
                Ok(())
            }
            Step::Returned | Step::Backwarding | Step::Done => {
                // It was sent again, to somebody new, and is back from there.
                let key = (Direction::Forward, sample);
                if self.debts.get(&key).is_some_and(Debt::is_paid) {
                    self.debts.remove(&key);
                }
                Ok(())
            }
            Step::Lost => Err(PushRefusal::Stale),
            Step::Waiting | Step::Ready | Step::Forwarding => Err(PushRefusal::WrongPath),
        }
    }

    /// The engine has computed an activation.
    pub(super) fn forwarded(&mut self, sample: SampleId, output: Hash) {
        let inner_step = self.inner_steps;
        if let Some(passage) = self.samples.get_mut(&sample) {
            passage.output = Some(output);
            passage.inner_step = inner_step;
            passage.step = Step::Sent;
            self.owe(Direction::Forward, sample);
        }
    }

    /// The engine has finished a sample.
    pub(super) fn finished(
        &mut self,
        sample: SampleId,
        input_gradient: Option<Hash>,
        loss_micro: Option<i64>,
    ) {
        let (inner_steps, turn) = (self.inner_steps, self.turns);
        self.turns += 1;
        if let Some(passage) = self.samples.get_mut(&sample) {
            passage.input_gradient = input_gradient;
            passage.loss_micro = loss_micro;
            if loss_micro.is_some() {
                passage.inner_step = inner_steps;
            }
            (passage.gradient_step, passage.turn) = (inner_steps, turn);
            passage.step = Step::Done;
            if input_gradient.is_some() {
                self.owe(Direction::Backward, sample);
            }
        }
    }

    /// The engine could not write the contribution.
    pub(super) fn contribution_failed(&mut self) {
        if matches!(self.progress, Progress::Contributing) {
            self.progress = Progress::Working;
        }
    }

    /// The engine has taken an inner step.
    pub(super) fn stepped(&mut self) {
        self.inner_steps += 1;
        self.stepped_samples = self.done();
    }

    /// The next thing for the engine. `inner_steps` is *H* in local mode.
    pub(super) fn job(&mut self, position: Position, window: usize, inner_steps: Option<u32>) -> Option<Job> {
        if !matches!(self.progress, Progress::Working) {
            return None;
        }
        let epoch = self.epoch;
        let unspent = self.done() > self.stepped_samples;
        let step =
            inner_steps.map(|steps| Job::InnerStep { epoch, step: planned_step(self.inner_steps, steps) });
        if unspent && inner_steps.is_some_and(|steps| self.inner_steps < self.steps_due(steps)) {
            return step;
        }
        if let Some((&sample, passage)) =
            self.samples.iter_mut().find(|(_, passage)| passage.step == Step::Returned)
        {
            passage.step = Step::Backwarding;
            let gradient = passage.output_gradient.as_ref().map(|received| received.hash);
            return gradient.map(|gradient| Job::Backward { epoch, sample, gradient });
        }
        let complete = self.samples.values().all(|passage| matches!(passage.step, Step::Done | Step::Lost));
        let done = self.done();
        // A cutoff takes what there is; whoever has nothing goes on until it has something to give.
        if complete || (self.cut_off && done > 0) {
            // Samples issued again after all steps were taken, or fewer than expected, leave a remainder.
            if unspent && step.is_some() {
                return step;
            }
            self.progress = Progress::Contributing;
            return (done > 0).then_some(Job::Contribute { stage: self.stage, epoch, samples: done });
        }
        let step = if position.head { Step::Waiting } else { Step::Ready };
        let in_flight = |passage: &&Passage| {
            matches!(passage.step, Step::Forwarding | Step::Sent | Step::Returned | Step::Backwarding)
        };
        if position.head && self.samples.values().filter(in_flight).count() >= window {
            return None;
        }
        let (&sample, passage) = self.samples.iter_mut().find(|(_, passage)| passage.step == step)?;
        let input = passage.input.as_ref().map(|received| received.hash);
        Some(if position.tail {
            passage.step = Step::Backwarding;
            Job::Loss { epoch, sample, input }
        } else {
            passage.step = Step::Forwarding;
            Job::Forward { epoch, sample, input }
        })
    }

    /// Inner steps that the finished samples allow: `steps` of them, evenly spread over the share, but no more
    /// than it has samples.
    fn steps_due(&self, steps: u32) -> u32 {
        let dealt = self.samples.len().max(1) as u64;
        u32::try_from(u64::from(self.done()) * u64::from(steps).min(dealt) / dealt).unwrap_or(steps)
    }

    /// Commits to the contribution; returns the manifest and the bytes of the receipts. Nothing if samples were dealt here
    /// while the engine made it: it would pass for one of them all.
    pub(super) fn commit(
        &mut self,
        me: PeerId,
        contribution: Contribution,
    ) -> Option<(Arc<HashedManifest>, Vec<u8>)> {
        if !matches!(self.progress, Progress::Contributing) {
            return None;
        }
        let receipts = self.receipts();
        let encoded = encode_receipts(&receipts);
        let done: Vec<SampleId> = receipts.iter().map(|receipt| receipt.sample).collect();
        let dealt: Vec<SampleId> = self.samples.keys().copied().collect();
        let manifest = Manifest {
            peer: me,
            stage: self.stage,
            epoch: self.epoch,
            nonce: self.nonce,
            base: self.base,
            samples: u32::try_from(done.len()).unwrap_or(u32::MAX),
            sample_set: sample_set_hash(&done),
            dealt: sample_set_hash(&dealt),
            receipt_root: merkle_root(&receipts),
            receipts: Hash::of(&encoded),
            loss_micro: self.share().loss_micro,
            moments: contribution.moments,
            moments_after: contribution.moments_after,
            partitions: contribution.partitions,
        };
        let manifest = Arc::new(HashedManifest::from(manifest));
        self.progress = Progress::Committing(Arc::clone(&manifest));
        Some((manifest, encoded))
    }

    /// The manifest of this hash was written down, or could not be. Returns it if it is the newest and can be announced.
    pub(super) fn committed(&mut self, hash: Hash, kept: bool) -> Option<Arc<HashedManifest>> {
        let Progress::Committing(manifest) = &self.progress else { return None };
        let manifest = Arc::clone(manifest);
        if manifest.hash != hash {
            return None;
        }
        self.progress = if kept { Progress::Submitted(Arc::clone(&manifest)) } else { Progress::Working };
        kept.then_some(manifest)
    }

    fn receipts(&self) -> Vec<Receipt> {
        let done = self.samples.iter().filter(|(_, passage)| passage.step == Step::Done);
        done.map(|(&sample, passage)| Receipt {
            sample,
            input: passage.input.clone(),
            output: passage.output,
            output_gradient: passage.output_gradient.clone(),
            input_gradient: passage.input_gradient,
            loss_micro: passage.loss_micro,
            inner_step: passage.inner_step,
            gradient_step: passage.gradient_step,
            turn: passage.turn,
        })
        .collect()
    }
}

impl Passage {
    const fn new() -> Self {
        Self {
            step: Step::Waiting,
            input: None,
            output: None,
            output_gradient: None,
            input_gradient: None,
            loss_micro: None,
            inner_step: 0,
            gradient_step: 0,
            turn: 0,
            taken_by: None,
            taken_in: None,
        }
    }

    fn lost() -> Self {
        Self { step: Step::Lost, ..Self::new() }
    }

    fn done(receipt: Receipt) -> Self {
        let taken_by = receipt.output_gradient.as_ref().map(|received| received.from);
        Self {
            step: Step::Done,
            input: receipt.input,
            output: receipt.output,
            output_gradient: receipt.output_gradient,
            input_gradient: receipt.input_gradient,
            loss_micro: receipt.loss_micro,
            inner_step: receipt.inner_step,
            gradient_step: receipt.gradient_step,
            turn: receipt.turn,
            taken_by,
            taken_in: None,
        }
    }
}
