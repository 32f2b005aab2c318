//! One check: from what the log names to what was found.

use std::sync::Arc;

use super::base::{Base, Search, holders, load};
use super::claims::{goes_on, read_manifest, read_receipts};
use super::fetches::{Fetches, Wanted};
use super::neighbours::Neighbours;
use super::replay::{Next, Replay};
use super::task::Progress;
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::{GOSSIP_BYTES_MAX, PARTITION_BYTES_MAX, RECEIPTS_BYTES_MAX};
use crate::miner::{Context, JobDone};
use crate::moments;
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::validation::{Challenge, Fault, Finding, Subject};
use crate::wire::message::{Manifest, StateOffer};

/// How far a check is.
#[derive(Debug)]
enum Step {
    Manifest(Fetches),
    Receipts(Box<Manifest>, Fetches),
    Asking(Box<Replay>, Search),
    Inputs(Box<Replay>, Option<StateOffer>, Fetches),
    Preparing(Box<Replay>, Option<StateOffer>),
    Replaying(Box<Replay>),
    Theirs(Box<Replay>, Fetches),
    Neighbours(Box<Neighbours>),
    Over(Finding),
}

/// A check under way.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) subject: Subject,
    base: Base,
    seed: Hash,
    spec: Arc<RunSpec>,
    step: Step,
}

impl Check {
    pub(super) fn new(spec: &Arc<RunSpec>, challenge: &Challenge) -> Self {
        let Challenge { subject, base, seed, .. } = *challenge;
        let base = Base { stage: subject.stage, epoch: subject.epoch, hash: base };
        let manifest = Wanted::read(subject.manifest, vec![subject.peer], GOSSIP_BYTES_MAX);
        Self { subject, base, seed, spec: Arc::clone(spec), step: Step::Manifest(Fetches::of([manifest])) }
    }

    /// The fetches that have not ended.
    pub(super) fn fetching(&self) -> impl Iterator<Item = u64> + '_ {
        let (fetches, neighbours) = match &self.step {
            Step::Manifest(fetches)
            | Step::Receipts(_, fetches)
            | Step::Inputs(_, _, fetches)
            | Step::Theirs(_, fetches) => (Some(fetches), None),
            Step::Neighbours(neighbours) => (None, Some(neighbours)),
            Step::Asking(..) | Step::Preparing(..) | Step::Replaying(_) | Step::Over(_) => (None, None),
        };
        let fetches = fetches.into_iter().flat_map(|fetches| fetches.in_flight.keys().copied());
        fetches.chain(neighbours.into_iter().flat_map(|neighbours| neighbours.fetching()))
    }

    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        match &mut self.step {
            Step::Manifest(fetches)
            | Step::Receipts(_, fetches)
            | Step::Inputs(_, _, fetches)
            | Step::Theirs(_, fetches) => fetches.ended(id, bytes),
            Step::Neighbours(neighbours) => neighbours.fetched(id, bytes),
            Step::Asking(..) | Step::Preparing(..) | Step::Replaying(_) | Step::Over(_) => {}
        }
    }

    /// A replica has answered whether it has the weights that the epoch started from.
    pub(super) fn offered(&mut self, cx: &Context<'_>, offer: Option<StateOffer>) {
        let Step::Asking(_, search) = &mut self.step else { return };
        let Some(offer) = offer.filter(|offer| self.base.is_offered(offer)) else {
            search.refused();
            return;
        };
        let Step::Asking(replay, ..) = std::mem::replace(&mut self.step, Step::Over(Finding::Unavailable))
        else {
            return;
        };
        self.step = self.inputs(cx, replay, Some(offer));
    }

    /// Fetches what the replay reads.
    fn inputs(&self, cx: &Context<'_>, replay: Box<Replay>, offer: Option<StateOffer>) -> Step {
        let Subject { stage, peer, .. } = self.subject;
        let holders = holders(cx.state, stage, Some(peer));
        let parts = offer.iter().flat_map(|offer| Base::parts(offer, &holders));
        let tensors = replay.inputs().map(|(hash, sender)| Wanted::new(hash, vec![peer, sender]));
        let partitions = cx.state.stage(stage).map_or(0, |stage| stage.partitions);
        // Two bytes a number is the smallest that a partition can be encoded in.
        let parameters = partitions.saturating_mul(PARTITION_BYTES_MAX / 2);
        let moments = replay
            .moments_blob()
            .map(|moments| Wanted::new(moments, vec![peer]).limited(moments::bytes_max(parameters)));
        let fetches = Fetches::of(parts.chain(tensors).chain(moments).collect::<Vec<_>>());
        Step::Inputs(replay, offer, fetches)
    }

    /// Goes on as far as it can. `engine` is the stage that the engine is built for, if it is idle.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        me: PeerId,
        engine: Option<Option<StageIndex>>,
    ) -> Progress<Finding> {
        loop {
            let step = std::mem::replace(&mut self.step, Step::Over(Finding::Unavailable));
            let (next, progress) = self.advance(cx, me, engine, step);
            self.step = next;
            if let Some(progress) = progress {
                return progress;
            }
        }
    }

    /// The next step, and what is to be done before there is another.
    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        me: PeerId,
        engine: Option<Option<StageIndex>>,
        step: Step,
    ) -> (Step, Option<Progress<Finding>>) {
        let subject = self.subject;
        match step {
            Step::Over(finding) => (Step::Over(finding), Some(Progress::Found(finding))),
            Step::Manifest(mut fetches) => {
                fetches.start(cx, subject.stage, subject.epoch);
                match fetches.ended_as() {
                    None => (Step::Manifest(fetches), Some(Progress::Waits)),
                    Some(there) => (self.manifest(cx, fetches.delivered.filter(|_| there).as_deref()), None),
                }
            }
            Step::Receipts(manifest, mut fetches) => {
                fetches.start(cx, subject.stage, subject.epoch);
                match fetches.ended_as() {
                    None => (Step::Receipts(manifest, fetches), Some(Progress::Waits)),
                    Some(there) => {
                        let bytes = fetches.delivered.filter(|_| there);
                        (self.receipts(cx, manifest, bytes.as_deref()), None)
                    }
                }
            }
            Step::Asking(replay, mut search) => {
                let holders = holders(cx.state, subject.stage, Some(subject.peer));
                if search.pump(cx, me, &self.base, &holders) {
                    (Step::Asking(replay, search), Some(Progress::Waits))
                } else {
                    (Step::Over(Finding::Unavailable), None)
                }
            }
            Step::Inputs(replay, offer, mut fetches) => {
                fetches.start(cx, subject.stage, subject.epoch);
                match fetches.ended_as() {
                    None => (Step::Inputs(replay, offer, fetches), Some(Progress::Waits)),
                    Some(true) => (Step::Preparing(replay, offer), None),
                    Some(false) => (Step::Over(Finding::Unavailable), None),
                }
            }
            Step::Preparing(replay, offer) => prepare(subject.stage, engine, replay, offer),
            Step::Replaying(mut replay) => {
                if engine.is_none() {
                    return (Step::Replaying(replay), Some(Progress::Waits));
                }
                match replay.next() {
                    Next::Job(job) => (Step::Replaying(replay), Some(Progress::Job(job))),
                    Next::Fetch(hashes) => {
                        let owners = holders(cx.state, subject.stage, Some(subject.peer));
                        let wanted = hashes.into_iter().map(|(hash, sent)| {
                            let others = sent.map_or_else(|| owners.clone(), |peer| vec![peer]);
                            Wanted::new(hash, [subject.peer].into_iter().chain(others).collect())
                        });
                        (Step::Theirs(replay, Fetches::of(wanted)), None)
                    }
                    Next::Found(Finding::Matches) => {
                        (Step::Neighbours(Box::new(replay.neighbours(subject, cx.now))), None)
                    }
                    Next::Found(finding) => (Step::Over(finding), None),
                }
            }
            Step::Neighbours(mut neighbours) => match neighbours.pump(cx) {
                None => (Step::Neighbours(neighbours), Some(Progress::Waits)),
                Some(finding) => (Step::Over(finding), None),
            },
            Step::Theirs(replay, mut fetches) => {
                fetches.start(cx, subject.stage, subject.epoch);
                match fetches.ended_as() {
                    None => (Step::Theirs(replay, fetches), Some(Progress::Waits)),
                    Some(true) => (Step::Replaying(replay), None),
                    Some(false) => (Step::Over(Finding::Unavailable), None),
                }
            }
        }
    }

    fn manifest(&self, cx: &Context<'_>, bytes: Option<&[u8]>) -> Step {
        let Some(bytes) = bytes else { return Step::Over(Finding::Unavailable) };
        let manifest = read_manifest(&self.subject, self.base.hash, bytes);
        let Some(manifest) = manifest else { return Step::Over(Finding::Differs(Fault::Receipts)) };
        if !goes_on(cx.state, &manifest) {
            return Step::Over(Finding::Unavailable);
        }
        let receipts = Wanted::read(manifest.receipts, vec![self.subject.peer], RECEIPTS_BYTES_MAX);
        Step::Receipts(Box::new(manifest), Fetches::of([receipts]))
    }

    fn receipts(&self, cx: &Context<'_>, manifest: Box<Manifest>, bytes: Option<&[u8]>) -> Step {
        let Some(bytes) = bytes else { return Step::Over(Finding::Unavailable) };
        let wrong = Step::Over(Finding::Differs(Fault::Receipts));
        let Some(receipts) = read_receipts(&manifest, bytes) else { return wrong };
        match Replay::of(cx, &self.spec, &self.subject, *manifest, receipts, self.seed) {
            None => wrong,
            Some(replay) if self.subject.epoch == Epoch(0) => self.inputs(cx, Box::new(replay), None),
            Some(replay) => Step::Asking(Box::new(replay), Search::default()),
        }
    }

    /// Takes the result of the engine's job.
    pub(super) fn computed(&mut self, done: &JobDone) {
        if matches!(done, JobDone::Failed(_)) {
            // It may be the own machine's fault.
            self.step = Step::Over(Finding::Unavailable);
        } else if let Step::Replaying(replay) = &mut self.step {
            replay.computed(self.base.hash, done);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.step {
            Step::Asking(_, search) => search.deadline(),
            Step::Neighbours(neighbours) => neighbours.deadline(),
            _ => None,
        }
    }
}

/// Gives the engine the weights that the epoch started from, once it is idle.
fn prepare(
    stage: StageIndex,
    engine: Option<Option<StageIndex>>,
    replay: Box<Replay>,
    offer: Option<StateOffer>,
) -> (Step, Option<Progress<Finding>>) {
    let Some(built) = engine else {
        return (Step::Preparing(replay, offer), Some(Progress::Waits));
    };
    let (job, is_last) = load(stage, built, offer.as_ref(), replay.moments());
    let step = if is_last { Step::Replaying(replay) } else { Step::Preparing(replay, offer) };
    (step, Some(Progress::Job(job)))
}
