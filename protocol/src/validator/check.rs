//! One check: from what the log names to what was found.

use std::sync::Arc;

use super::claims::{goes_on, read_manifest, read_receipts, was_received};
use super::fetches::{Fetches, Wanted};
use super::neighbours::Neighbours;
use super::replay::{Next, Replay};
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::{GOSSIP_BYTES_MAX, PARTITION_BYTES_MAX, RECEIPTS_BYTES_MAX, TRANSFER_DEADLINE};
use crate::miner::{Context, Job, JobDone};
use crate::moments;
use crate::run_state::RunState;
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::validation::{Challenge, Fault, Finding, Subject};
use crate::wire::message::{Manifest, StateOffer};

/// How often each replica is asked for the weights.
const STATE_TRIES: usize = 2;

/// What a check needs of its owner.
#[derive(Debug)]
pub(super) enum Progress {
    /// Nothing now.
    Waits,
    /// Give this to the engine.
    Job(Job),
    /// It is over.
    Found(Finding),
}

/// How far a check is.
#[derive(Debug)]
enum Step {
    Manifest(Fetches),
    Receipts(Box<Manifest>, Fetches),
    /// Who was asked for the weights, how often anybody was, and until when the last is waited for.
    Asking(Box<Replay>, usize, Option<Instant>),
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
    base: Hash,
    seed: Hash,
    spec: Arc<RunSpec>,
    step: Step,
}

impl Check {
    pub(super) fn new(spec: &Arc<RunSpec>, challenge: &Challenge) -> Self {
        let Challenge { subject, base, seed, .. } = *challenge;
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
        let Step::Asking(_, _, until) = &mut self.step else { return };
        let Subject { stage, epoch, .. } = self.subject;
        let right = |offer: &StateOffer| {
            (offer.stage, offer.version, offer.weights) == (stage, epoch, self.base)
                && !offer.parts.is_empty()
        };
        let Some(offer) = offer.filter(right) else {
            *until = None;
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
        let holders = holders(cx.state, stage, peer);
        let parts =
            offer.iter().flat_map(|offer| &offer.parts).map(|part| Wanted::part(*part, holders.clone()));
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
    ) -> Progress {
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
    ) -> (Step, Option<Progress>) {
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
            Step::Asking(replay, asked, until) => self.ask(cx, me, replay, asked, until),
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
                        let owners = holders(cx.state, subject.stage, subject.peer);
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
        let manifest = read_manifest(&self.subject, self.base, bytes);
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
        let Subject { stage, epoch, .. } = self.subject;
        let mut received = receipts.iter().flat_map(|receipt| receipt.received(stage, epoch));
        let (run, state) = (cx.out.run(), cx.state);
        let invented = received.any(|(hop, received)| !was_received(run, state, &hop, received));
        drop(received);
        if invented {
            return wrong;
        }
        match Replay::new(&self.spec, *manifest, receipts, self.seed) {
            Err(_) => wrong,
            // More passes open at once than a miner may hold: they need not fit this engine's memory.
            Ok(replay) if !replay.is_bounded() => wrong,
            Ok(replay) if epoch == Epoch(0) => self.inputs(cx, Box::new(replay), None),
            Ok(replay) => Step::Asking(Box::new(replay), 0, None),
        }
    }

    /// Asks one replica after another for the weights.
    fn ask(
        &self,
        cx: &mut Context<'_>,
        me: PeerId,
        replay: Box<Replay>,
        asked: usize,
        until: Option<Instant>,
    ) -> (Step, Option<Progress>) {
        if until.is_some_and(|until| cx.now < until) {
            return (Step::Asking(replay, asked, until), Some(Progress::Waits));
        }
        let Subject { stage, epoch, peer, .. } = self.subject;
        let holders: Vec<PeerId> =
            holders(cx.state, stage, peer).into_iter().filter(|holder| *holder != me).collect();
        if asked >= STATE_TRIES * holders.len() {
            return (Step::Over(Finding::Unavailable), None);
        }
        let Some(holder) = holders.get(asked % holders.len().max(1)) else {
            return (Step::Over(Finding::Unavailable), None);
        };
        cx.out.request_state(*holder, stage, epoch);
        (Step::Asking(replay, asked + 1, Some(cx.now + TRANSFER_DEADLINE)), Some(Progress::Waits))
    }

    /// Takes the result of the engine's job.
    pub(super) fn computed(&mut self, done: &JobDone) {
        if matches!(done, JobDone::Failed(_)) {
            // It may be the own machine's fault.
            self.step = Step::Over(Finding::Unavailable);
        } else if let Step::Replaying(replay) = &mut self.step {
            replay.computed(self.base, done);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.step {
            Step::Asking(_, _, until) => *until,
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
) -> (Step, Option<Progress>) {
    let Some(built) = engine else {
        return (Step::Preparing(replay, offer), Some(Progress::Waits));
    };
    match offer {
        // The initial weights anybody can build.
        None => (Step::Replaying(replay), Some(Progress::Job(Job::Initialise { stage }))),
        Some(offer) if built != Some(stage) => {
            (Step::Preparing(replay, Some(offer)), Some(Progress::Job(Job::Initialise { stage })))
        }
        Some(StateOffer { version, weights, parts, .. }) => {
            let moments = replay.moments();
            let job = Job::Load { stage, version, weights, parts, moments };
            (Step::Replaying(replay), Some(Progress::Job(job)))
        }
    }
}

/// Those who may have what belongs to a stage, others than `miner` first: what it says of itself is what is checked.
fn holders(state: &RunState, stage: StageIndex, miner: PeerId) -> Vec<PeerId> {
    let mut holders: Vec<PeerId> = state.replicas(stage).collect();
    holders.sort_by_key(|peer| *peer == miner);
    holders
}
