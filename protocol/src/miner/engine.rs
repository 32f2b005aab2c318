//! The engine's side of a miner: which job is next, and what follows from one that is done.

use std::time::Duration;

use super::work::Contribution;
use super::{Context, EpochWork, Job, JobDone, Kept, MergeWork, Miner, Notice, Purpose, outbox};
use crate::id::{Epoch, Hash};
use crate::limits::RETRY_PAUSE_MAX;
use crate::receipts::order::Position;
use crate::spec::TrainingMode;
use crate::time::Instant;
use crate::wire::encode;
use crate::wire::message::{StateOffer, WeightsRecord};

/// Weight of the newest measurement in the running mean of the speed.
const SPEED_SMOOTHING: f64 = 0.2;

/// Seconds a sample takes in the engine, as running means.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    pub(super) forward: Option<f64>,
    pub(super) backward: Option<f64>,
}

impl Miner {
    /// Takes the result of the engine's job.
    pub fn handle_job_done(&mut self, cx: &mut Context<'_>, done: JobDone) {
        let Some((job, since)) = self.busy.take() else { return };
        let seconds = cx.now.since(since).as_secs_f64();
        self.finish_job(cx, job, done, seconds);
        self.pump(cx);
    }

    fn finish_job(&mut self, cx: &mut Context<'_>, job: Job, done: JobDone, seconds: f64) {
        let mut cleaned = false;
        match done {
            JobDone::Weights { stage, version, hash } => {
                self.weights = Some(WeightsRecord { stage, version, hash });
                if self.engine.replace(stage) != Some(stage) {
                    // What it took in another stage says nothing here.
                    self.pace = Pace::default();
                }
                self.news = true;
                cleaned = true;
                cx.out.notice(Notice::WeightsReady(stage, version, hash));
                self.catch_up.finished(version);
                if let Job::Load { parts, .. } = job {
                    // What was fetched is here as it would be written.
                    self.remember(cx, StateOffer { stage, version, weights: hash, parts });
                }
            }
            JobDone::Reset => cleaned = true,
            // Of an epoch that was given up meanwhile. It may have opened again, and the engine will forget this.
            JobDone::Forwarded { .. }
            | JobDone::Finished { .. }
            | JobDone::Stepped { .. }
            | JobDone::Contributed { .. }
                if self.dirty => {}
            JobDone::Forwarded { epoch, sample, output } => {
                smooth(&mut self.pace.forward, seconds);
                self.with_work(epoch, |work| work.forwarded(sample, output));
            }
            JobDone::Finished { epoch, sample, input_gradient, loss_micro } => {
                smooth(
                    if loss_micro.is_some() { &mut self.pace.forward } else { &mut self.pace.backward },
                    seconds,
                );
                if loss_micro.is_some() {
                    self.pace.backward = Some(0.0);
                    self.tokens += u64::from(self.spec.training.sequences_per_sample)
                        * u64::from(self.spec.model.context);
                }
                self.with_work(epoch, |work| work.finished(sample, input_gradient, loss_micro));
            }
            JobDone::Stepped { epoch } => self.with_work(epoch, EpochWork::stepped),
            JobDone::Contributed { epoch, partitions, moments, moments_after } => {
                self.commit(cx, epoch, Contribution { partitions, moments, moments_after });
            }
            JobDone::Reduced { stage, partition, merged, outliers } => {
                if let Some(merge) = self.merges.get_mut(&stage).filter(|merge| merge.asks_for(&job)) {
                    merge.reduced(partition, merged, outliers);
                }
            }
            JobDone::Snapshot(offer) => {
                for ticket in self.snapshot_asked.drain(..) {
                    cx.out.respond(ticket, Some(offer.clone()));
                }
                self.remember(cx, offer);
            }
            // Of a validator's engine: a miner compares and evaluates nothing.
            JobDone::Compared(_) | JobDone::Sketched(_) | JobDone::Losses(_) => {}
            JobDone::Failed(reason) => {
                self.job_failed(cx.now, &job);
                cx.out.notice(Notice::JobFailed(reason));
            }
        }
        if cleaned {
            self.dirty = false;
        }
    }

    /// Has it written down that this state is here, and offers it.
    fn remember(&mut self, cx: &mut Context<'_>, offer: StateOffer) {
        self.kept.insert(Kept::State(offer.stage, offer.version));
        self.remembered = Some(offer.record());
        cx.out.remember(offer.clone());
        self.mirror_state(&offer);
        self.offer = Some(offer);
    }

    /// Lets a job that failed be done again, after a pause. Nobody knows what a failed pass left in the engine, so the
    /// epoch's work starts over.
    fn job_failed(&mut self, now: Instant, job: &Job) {
        self.rests_until = now + RETRY_PAUSE_MAX;
        match job {
            Job::Load { .. } | Job::Apply { .. } => self.catch_up.failed(now),
            Job::Contribute { epoch, .. } => self.with_work(*epoch, EpochWork::contribution_failed),
            Job::Reduce { stage, partition, .. } => {
                if let Some(merge) = self.merges.get_mut(stage).filter(|merge| merge.asks_for(job)) {
                    merge.reduction_failed(*partition);
                }
            }
            Job::Forward { epoch, .. }
            | Job::Loss { epoch, .. }
            | Job::Backward { epoch, .. }
            | Job::InnerStep { epoch, .. } => self.forget_epoch(*epoch),
            Job::Initialise { .. }
            | Job::Snapshot { .. }
            | Job::Reset
            | Job::Compare { .. }
            | Job::Sketch { .. }
            | Job::Losses { .. } => {}
        }
    }

    pub(super) fn with_work(&mut self, epoch: Epoch, change: impl FnOnce(&mut EpochWork)) {
        if let Some(work) = self.works.get_mut(&epoch) {
            change(work);
        }
    }

    /// Commits to a contribution: its receipts and manifest are written down, and it is announced after that.
    fn commit(&mut self, cx: &mut Context<'_>, epoch: Epoch, contribution: Contribution) {
        let Some(work) = self.works.get_mut(&epoch) else { return };
        let Some((manifest, receipts)) = work.commit(self.me, contribution) else { return };
        let blobs = vec![(manifest.manifest.receipts, receipts), (manifest.hash, encode(&manifest.manifest))];
        let id = cx.out.store(blobs, outbox::tag(work.stage, epoch));
        self.transfers.insert(id, Purpose::Commit(epoch, manifest.hash));
    }

    /// The manifest of this hash is on disk, with its receipts, or cannot be.
    pub(super) fn committed(&mut self, now: Instant, epoch: Epoch, hash: Hash, kept: bool) {
        if !kept {
            self.rests_until = now + RETRY_PAUSE_MAX;
        }
        let manifest = self.works.get_mut(&epoch).and_then(|work| work.committed(hash, kept));
        if let Some(manifest) = manifest {
            self.manifests.insert(hash, manifest);
            (self.announce_due, self.announce_pause) = (now, Duration::ZERO);
        }
    }

    /// Gives the engine its next job if it is idle: first what others wait for, gradients before
    /// activations, then the lowest sample.
    pub(super) fn start_job(&mut self, cx: &mut Context<'_>) {
        if self.busy.is_some() || self.halted || cx.now < self.rests_until {
            return;
        }
        if let Some(job) = self.next_job(cx) {
            self.busy = Some((job.clone(), cx.now));
            cx.out.compute(job);
        }
    }

    fn next_job(&mut self, cx: &Context<'_>) -> Option<Job> {
        let stage = cx.state.stage_of(self.me)?;
        if self.engine != Some(stage) {
            self.works.clear();
            self.held.clear();
            self.weights = None;
            self.offer = None;
            self.offers_before.clear();
            return Some(Job::Initialise { stage });
        }
        if let Some(job) = self.catch_up.job() {
            return Some(job);
        }
        if self.dirty {
            return Some(Job::Reset);
        }
        if let Some(job) = self.merges.values_mut().find_map(MergeWork::job) {
            return Some(job);
        }
        // The initial weights anybody can build; all others are written down before work goes on from them.
        let written =
            |weights: WeightsRecord| weights.version == Epoch(0) || self.remembered == Some(weights);
        let unwritten = self.weights.filter(|weights| !written(*weights) || !self.snapshot_asked.is_empty());
        if let Some(weights) = unwritten {
            return Some(Job::Snapshot {
                stage: weights.stage,
                version: weights.version,
                hash: weights.hash,
            });
        }
        let window = usize::from(self.spec.pipeline.window);
        let local = self.spec.training.mode == TrainingMode::Local;
        let position = Position::of(stage, cx.state.stages().len());
        let training = cx.state.stage(stage)?.training()?;
        self.works.get_mut(&training.epoch)?.job(
            position,
            window,
            local.then_some(self.spec.training.inner_steps),
        )
    }
}

/// Folds a measurement into a running mean.
fn smooth(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |old| old + SPEED_SMOOTHING * (value - old)));
}
