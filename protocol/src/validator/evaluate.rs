//! One evaluation: what each contribution to a merge, alone, does to the loss.
//!
//! ```text
//! manifests ─▶ partitions ─▶ weights the epoch started from ─▶ sketches ─▶ losses ─▶ what is said
//! └─ of each contribution drawn ┘                              (norms, copies)
//! ```
//! What of a contribution nobody serves is said to be unseen, and so is all of them if the weights cannot be had: that is no
//! miner's fault. When a contribution was committed to the evaluator knows from the manifests that it heard.

use std::collections::BTreeMap;

use super::base::{Base, Search, holders, load};
use super::claims::read_manifest;
use super::fetches::{Fetches, Wanted};
use super::task::Progress;
use crate::gauntlet::draw::Draw;
use crate::gauntlet::evaluation::{Evaluating, Said};
use crate::gauntlet::loss::{Loss, clip};
use crate::gauntlet::overlap::{Committed, Sketch, copies};
use crate::gauntlet::{Found, Settings};
use crate::id::{Epoch, Hash, PeerId, SampleId, StageIndex};
use crate::limits::{CLOSED_EPOCHS_KEPT, GOSSIP_BYTES_MAX};
use crate::miner::{Applied, Context, Job, JobDone, Sketched};
use crate::moments;
use crate::run_state::RunState;
use crate::time::Instant;
use crate::validation::Subject;
use crate::wire::gossip::HashedManifest;
use crate::wire::message::StateOffer;

/// The stage of a run that has no other.
pub(super) const WHOLE: StageIndex = StageIndex(0);
/// Epochs of which it is remembered who committed when: the next one, and those whose evaluation may still begin.
const COMMITS_KEPT: usize = 2 + CLOSED_EPOCHS_KEPT;

/// What is said of all contributions drawn, in [`PeerId`] order.
pub(super) type AllSaid = Vec<(PeerId, Said)>;

/// Who committed when, by the manifests heard.
#[derive(Debug, Default)]
pub(super) struct Commits {
    heard: u64,
    epochs: BTreeMap<Epoch, BTreeMap<PeerId, (Hash, Committed)>>,
}

impl Commits {
    /// Takes a manifest of a member of the stage, which is at this version. One for an epoch beyond the next is not remembered: it
    /// is for nothing that anybody can have done.
    pub(super) fn note(&mut self, version: Epoch, submitted: &HashedManifest) {
        let (peer, epoch, hash) = (submitted.manifest.peer, submitted.manifest.epoch, submitted.hash);
        if epoch > version.next() {
            return;
        }
        while self.epochs.len() >= COMMITS_KEPT && !self.epochs.contains_key(&epoch) {
            self.epochs.pop_first();
        }
        self.heard += 1;
        let first = Committed { first: self.heard, last: self.heard };
        let noted = self.epochs.entry(epoch).or_default().entry(peer).or_insert((hash, first));
        if noted.0 != hash {
            *noted = (hash, Committed { last: self.heard, ..noted.1 });
        }
    }

    /// When a peer committed to this; nothing if that was not heard.
    fn of(&self, epoch: Epoch, peer: PeerId, manifest: Hash) -> Option<Committed> {
        let (hash, committed) = self.epochs.get(&epoch)?.get(&peer)?;
        (*hash == manifest).then_some(*committed)
    }
}

/// A contribution that is evaluated.
#[derive(Debug)]
struct Contribution {
    peer: PeerId,
    manifest: Hash,
    committed: Option<Committed>,
    /// The samples that it is evaluated on, of those that its miner was dealt.
    samples: Vec<SampleId>,
    /// What it consists of, once all of that is here.
    partitions: Option<Vec<Hash>>,
    /// Nothing in it if it is none.
    sketch: Option<Option<Sketched>>,
    /// Losses on `samples` without it.
    before: Option<Vec<f64>>,
    /// Losses on `samples`, then on the random ones, with it.
    after: Option<Vec<f64>>,
}

impl Contribution {
    /// What it consists of and what is compared of it, if it can be applied.
    fn applicable(&self) -> Option<(&[Hash], &Sketched)> {
        self.partitions.as_deref().zip(self.sketch.as_ref()?.as_ref())
    }
}

/// A job, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Sketch(usize),
    Random,
    Before(usize),
    After(usize),
}

/// How far an evaluation is.
#[derive(Debug)]
enum Step {
    /// The contribution of this number.
    Manifest(usize, Fetches),
    Partitions(usize, Vec<Hash>, Fetches),
    Asking(Search),
    Parts(StateOffer, Fetches),
    Loading(Option<StateOffer>),
    /// The engine loads the weights.
    Loaded,
    Computing(Option<Doing>),
    Over,
}

/// An evaluation under way.
#[derive(Debug)]
pub(super) struct Evaluate {
    base: Base,
    pub(super) plan: Hash,
    settings: Settings,
    random: Vec<SampleId>,
    contributions: Vec<Contribution>,
    /// Losses on random samples without any contribution.
    random_before: Option<Vec<f64>>,
    /// Nothing that was computed here counts.
    failed: bool,
    step: Step,
}

impl Evaluate {
    /// The evaluation of a merge; nothing if the state has forgotten who contributed what to it.
    pub(super) fn new(state: &RunState, evaluating: &Evaluating, commits: &Commits) -> Option<Self> {
        let Evaluating { epoch, plan, base, ref drawn, .. } = *evaluating;
        let settings = Settings::default();
        let draw = Draw::new(plan);
        let closed = state.stage(WHOLE)?.closed_epoch(epoch)?;
        let contributions = drawn.iter().map(|&peer| {
            let submission = closed.plan.submitters.iter().find(|submission| submission.peer == peer)?;
            let dealt = closed.training.deal.samples_of(peer);
            Some(Contribution {
                peer,
                manifest: submission.manifest,
                committed: commits.of(epoch, peer, submission.manifest),
                samples: draw.own(peer, &dealt, settings.own_samples),
                partitions: None,
                sketch: None,
                before: None,
                after: None,
            })
        });
        let contributions = contributions.collect::<Option<Vec<_>>>()?;
        let mut evaluate = Self {
            base: Base { stage: WHOLE, epoch, hash: base },
            plan,
            settings,
            random: draw.random(settings.random_samples),
            contributions,
            random_before: None,
            failed: false,
            step: Step::Over,
        };
        evaluate.step = evaluate.fetch(0);
        Some(evaluate)
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.base.epoch
    }

    /// Fetches the contribution of this number, or goes on behind the last.
    fn fetch(&self, number: usize) -> Step {
        match self.contributions.get(number) {
            Some(Contribution { peer, manifest, .. }) => {
                let wanted = Wanted::read(*manifest, vec![*peer], GOSSIP_BYTES_MAX);
                Step::Manifest(number, Fetches::of([wanted]))
            }
            None if self.base.epoch == Epoch(0) => Step::Loading(None),
            None => Step::Asking(Search::default()),
        }
    }

    /// The partitions that the contribution of this number consists of; the next contribution if that cannot be told.
    fn partitions(&self, state: &RunState, number: usize, bytes: Option<&[u8]>) -> Step {
        let Some(Contribution { peer, manifest, .. }) = self.contributions.get(number) else {
            return Step::Over;
        };
        let subject = Subject { stage: WHOLE, epoch: self.base.epoch, peer: *peer, manifest: *manifest };
        let manifest = bytes.and_then(|bytes| read_manifest(&subject, self.base.hash, bytes));
        let Some(manifest) = manifest else { return self.fetch(number + 1) };
        // Whoever owned a partition of the merge has had it from its miner.
        let others = holders(state, WHOLE, None).into_iter().filter(|other| other != peer);
        let providers: Vec<PeerId> = std::iter::once(*peer).chain(others).collect();
        let wanted = manifest.partitions.iter().map(|hash| Wanted::new(*hash, providers.clone()));
        let fetches = Fetches::of(wanted);
        Step::Partitions(number, manifest.partitions, fetches)
    }

    /// The fetches that have not ended.
    pub(super) fn fetching(&self) -> impl Iterator<Item = u64> + '_ {
        let fetches = match &self.step {
            Step::Manifest(_, fetches) | Step::Partitions(_, _, fetches) | Step::Parts(_, fetches) => {
                Some(fetches)
            }
            _ => None,
        };
        fetches.into_iter().flat_map(|fetches| fetches.in_flight.keys().copied())
    }

    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        if let Step::Manifest(_, fetches) | Step::Partitions(_, _, fetches) | Step::Parts(_, fetches) =
            &mut self.step
        {
            fetches.ended(id, bytes);
        }
    }

    /// A replica has answered whether it has the weights that the epoch started from.
    pub(super) fn offered(&mut self, cx: &Context<'_>, offer: Option<StateOffer>) {
        let Step::Asking(search) = &mut self.step else { return };
        match offer.filter(|offer| self.base.is_offered(offer)) {
            Some(offer) => {
                let fetches = Fetches::of(Base::parts(&offer, &holders(cx.state, WHOLE, None)));
                self.step = Step::Parts(offer, fetches);
            }
            None => search.refused(),
        }
    }

    /// Takes the result of the engine's job.
    pub(super) fn computed(&mut self, done: JobDone) {
        let step = std::mem::replace(&mut self.step, Step::Over);
        let (is_right, next) = match (step, done) {
            (Step::Loaded, JobDone::Weights { hash, .. }) => (hash == self.base.hash, Step::Computing(None)),
            (Step::Loading(offer), JobDone::Weights { .. }) => (true, Step::Loading(offer)),
            (Step::Computing(Some(doing)), done) => (self.keep(doing, done), Step::Computing(None)),
            (step, _) => (false, step),
        };
        self.failed |= !is_right;
        self.step = if self.failed { Step::Over } else { next };
    }

    /// Keeps what a job has come to; whether it is what was asked for.
    fn keep(&mut self, doing: Doing, done: JobDone) -> bool {
        let random = self.random.len();
        let number = match doing {
            Doing::Random => {
                let JobDone::Losses(losses) = done else { return false };
                let is_right = losses.len() == random;
                self.random_before = Some(losses);
                return is_right;
            }
            Doing::Sketch(number) | Doing::Before(number) | Doing::After(number) => number,
        };
        let Some(of) = self.contributions.get_mut(number) else { return false };
        let own = of.samples.len();
        match (doing, done) {
            (Doing::Sketch(_), JobDone::Sketched(sketch)) => {
                of.sketch = Some(sketch);
                true
            }
            (Doing::Before(_), JobDone::Losses(losses)) if losses.len() == own => {
                of.before = Some(losses);
                true
            }
            (Doing::After(_), JobDone::Losses(losses)) if losses.len() == own + random => {
                of.after = Some(losses);
                true
            }
            _ => false,
        }
    }

    /// Goes on as far as it can. `engine` is the stage that the engine is built for, if it is idle.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        me: PeerId,
        engine: Option<Option<StageIndex>>,
    ) -> Progress<AllSaid> {
        loop {
            let step = std::mem::replace(&mut self.step, Step::Over);
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
    ) -> (Step, Option<Progress<AllSaid>>) {
        let Base { stage, epoch, .. } = self.base;
        let waits = |step| (step, Some(Progress::Waits));
        match step {
            Step::Over => (Step::Over, Some(Progress::Found(self.said()))),
            Step::Manifest(number, mut fetches) => {
                fetches.start(cx, stage, epoch);
                let Some(there) = fetches.ended_as() else { return waits(Step::Manifest(number, fetches)) };
                let bytes = fetches.delivered.filter(|_| there);
                (self.partitions(cx.state, number, bytes.as_deref()), None)
            }
            Step::Partitions(number, partitions, mut fetches) => {
                fetches.start(cx, stage, epoch);
                let Some(there) = fetches.ended_as() else {
                    return waits(Step::Partitions(number, partitions, fetches));
                };
                if let Some(contribution) = self.contributions.get_mut(number) {
                    contribution.partitions = there.then_some(partitions);
                }
                (self.fetch(number + 1), None)
            }
            Step::Asking(mut search) => {
                if search.pump(cx, me, &self.base, &holders(cx.state, stage, None)) {
                    return waits(Step::Asking(search));
                }
                self.failed = true;
                (Step::Over, None)
            }
            Step::Parts(offer, mut fetches) => {
                fetches.start(cx, stage, epoch);
                match fetches.ended_as() {
                    None => waits(Step::Parts(offer, fetches)),
                    Some(true) => (Step::Loading(Some(offer)), None),
                    Some(false) => {
                        self.failed = true;
                        (Step::Over, None)
                    }
                }
            }
            Step::Loading(offer) => {
                let Some(built) = engine else { return waits(Step::Loading(offer)) };
                // Losses are of the weights only.
                let (job, is_last) = load(stage, built, offer.as_ref(), Some(moments::fresh()));
                let next = if is_last { Step::Loaded } else { Step::Loading(offer) };
                (next, Some(Progress::Job(job)))
            }
            Step::Loaded | Step::Computing(Some(_)) => waits(step),
            Step::Computing(None) => match self.next() {
                None => (Step::Over, None),
                Some((doing, job)) => (Step::Computing(Some(doing)), Some(Progress::Job(job))),
            },
        }
    }

    /// What is to be computed next: all sketches first, since norms say what contributions are clipped to.
    fn next(&self) -> Option<(Doing, Job)> {
        let losses =
            |samples: &[SampleId], contribution| Job::Losses { samples: samples.to_vec(), contribution };
        for (number, contribution) in self.contributions.iter().enumerate() {
            if let (Some(partitions), None) = (&contribution.partitions, &contribution.sketch) {
                let (plan, partitions) = (self.plan, partitions.clone());
                return Some((Doing::Sketch(number), Job::Sketch { stage: WHOLE, plan, partitions }));
            }
        }
        if self.random_before.is_none() {
            return Some((Doing::Random, losses(&self.random, None)));
        }
        let rates = self.rates();
        for (number, contribution) in self.contributions.iter().enumerate() {
            let Some((partitions, _)) = contribution.applicable() else { continue };
            if contribution.before.is_none() {
                return Some((Doing::Before(number), losses(&contribution.samples, None)));
            }
            if contribution.after.is_none() {
                let rate_ppm = rates.get(&contribution.peer).copied().unwrap_or(0);
                let applied = Applied { partitions: partitions.to_vec(), rate_ppm };
                let samples = [contribution.samples.as_slice(), &self.random].concat();
                return Some((Doing::After(number), losses(&samples, Some(applied))));
            }
        }
        None
    }

    /// What contributions are multiplied by, in millionths.
    fn rates(&self) -> BTreeMap<PeerId, u32> {
        let applicable = self.contributions.iter().filter_map(|of| Some((of.peer, of.applicable()?.1.norm)));
        let (peers, norms): (Vec<PeerId>, Vec<f64>) = applicable.unzip();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate below one")]
        let ppm = |factor: f64| (self.settings.rate * factor * 1e6).round() as u32;
        peers.into_iter().zip(clip(&norms, self.settings.norm_max).into_iter().map(ppm)).collect()
    }

    /// What is said of each contribution.
    fn said(&self) -> AllSaid {
        let copies = copies(&self.sketches(), self.settings.similarity_max);
        let said = self.contributions.iter().map(|contribution| {
            let found = match self.found(contribution) {
                Found::Measured { .. } if copies.contains(&contribution.peer) => Found::Copy,
                found => found,
            };
            (contribution.peer, if self.failed { Said::Unseen } else { Said::of(&found) })
        });
        said.collect()
    }

    fn found(&self, contribution: &Contribution) -> Found {
        if matches!(contribution.sketch, Some(None)) {
            return Found::Invalid;
        }
        let losses = || Some((contribution.before.as_ref()?, contribution.after.as_ref()?));
        let (Some((own_before, after)), Some(random_before)) = (losses(), &self.random_before) else {
            return Found::Unseen;
        };
        let (own_after, random_after) = after.split_at(own_before.len().min(after.len()));
        let both = |before: &[f64], after: &[f64]| -> Vec<Loss> {
            before.iter().zip(after).map(|(&before, &after)| Loss { before, after }).collect()
        };
        // All that are merged started from the weights that the epoch opened with, or say so.
        Found::of(&both(own_before, own_after), &both(random_before, random_after), 0.0)
    }

    fn sketches(&self) -> Vec<Sketch> {
        let sketches = self.contributions.iter().filter_map(|contribution| {
            let (partitions, sketched) = contribution.applicable()?;
            let names: Vec<&[u8]> = partitions.iter().map(|hash| hash.0.as_slice()).collect();
            Some(Sketch {
                peer: contribution.peer,
                committed: contribution.committed,
                content: Hash::of_parts(&names),
                elements: sketched.elements.clone(),
            })
        });
        sketches.collect()
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        match &self.step {
            Step::Asking(search) => search.deadline(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Manifest;

    /// A manifest of a peer for an epoch; `number` tells those of one apart.
    fn manifest(peer: u8, epoch: u32, number: u32) -> HashedManifest {
        let hash = Hash::default();
        let manifest = Manifest {
            peer: PeerId([peer; 32]),
            stage: WHOLE,
            epoch: Epoch(epoch),
            nonce: 0,
            base: hash,
            samples: number,
            sample_set: hash,
            dealt: hash,
            receipt_root: hash,
            receipts: hash,
            loss_micro: None,
            moments: None,
            moments_after: None,
            partitions: Vec::new(),
        };
        manifest.into()
    }

    fn committed(commits: &Commits, of: &HashedManifest) -> Option<(u64, u64)> {
        let committed = commits.of(of.manifest.epoch, of.manifest.peer, of.hash)?;
        Some((committed.first, committed.last))
    }

    #[test]
    fn a_manifest_counts_from_when_it_was_first_heard_and_a_later_one_keeps_that() {
        let [one, other, anew] = [manifest(1, 0, 5), manifest(2, 0, 5), manifest(1, 0, 6)];
        let mut commits = Commits::default();
        for heard in [&one, &other, &one, &other] {
            commits.note(Epoch(0), heard);
        }
        assert_eq!(committed(&commits, &one), Some((1, 1)));
        assert_eq!(committed(&commits, &other), Some((2, 2)), "said again, it is as old");
        commits.note(Epoch(0), &anew);
        assert_eq!(committed(&commits, &anew), Some((1, 5)));
        assert_eq!(committed(&commits, &one), None, "it is not what was merged");
        assert_eq!(committed(&commits, &manifest(3, 0, 5)), None);
    }

    #[test]
    fn only_the_newest_epochs_are_remembered() {
        let mut commits = Commits::default();
        let epochs: Vec<HashedManifest> = (0..8).map(|epoch| manifest(1, epoch, 5)).collect();
        for (version, heard) in (0..).map(Epoch).zip(&epochs) {
            commits.note(version, heard);
            // Who says something of epochs that nobody has come to takes nothing from the others.
            (2..9).for_each(|ahead| commits.note(version, &manifest(2, version.0 + ahead, 5)));
        }
        let known: Vec<bool> = epochs.iter().map(|of| committed(&commits, of).is_some()).collect();
        assert_eq!(known, [false, false, false, false, true, true, true, true]);
    }
}
