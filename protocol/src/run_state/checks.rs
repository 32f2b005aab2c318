//! Who validates, and the checks that are not concluded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::{RunState, StateEvent};
use crate::equivocation::Equivocation;
use crate::gauntlet::evaluation::Evaluating;
use crate::id::{Epoch, Hash, PeerId, RunId, StageIndex};
use crate::limits::{
    BLOB_EPOCHS_KEPT, BOOK_PEERS_MAX, CHALLENGES_MAX, DISPUTED_EPOCHS_KEPT, UNPROVEN_MAX, VALIDATORS_MAX,
};
use crate::scores::Penalty;
use crate::spec::ValidationSpec;
use crate::validation::{Challenge, DismissReason, Finding, Outcome, Subject, Verdict, readers};
use crate::wire::message::EvictReason;

use super::Closed;

/// Validators and their open checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checks {
    pub(super) validators: BTreeSet<PeerId>,
    /// Why those who were validators are none any more.
    dismissed: BTreeMap<PeerId, DismissReason>,
    /// Open checks, oldest first.
    pub(super) open: Vec<Challenge>,
    /// Merges whose evaluations have not all come, oldest first.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub(super) evaluating: VecDeque<Evaluating>,
    /// Miners whose last check was unproven, and how many were in a row.
    pub(super) suspects: BTreeMap<PeerId, u16>,
}

impl Checks {
    fn enlist(&mut self, peer: PeerId) -> bool {
        let barred = self.dismissed.get(&peer).is_some_and(|reason| reason.is_proven());
        if barred || self.validators.len() >= VALIDATORS_MAX || !self.validators.insert(peer) {
            return false;
        }
        self.dismissed.remove(&peer);
        true
    }

    fn dismiss(&mut self, peer: PeerId, reason: DismissReason) -> bool {
        if !self.validators.remove(&peer) {
            return false;
        }
        if self.dismissed.len() >= BOOK_PEERS_MAX {
            self.dismissed.pop_first();
        }
        self.dismissed.insert(peer, reason);
        self.open.iter_mut().for_each(|challenge| challenge.dismiss(peer));
        self.evaluating.iter_mut().for_each(|evaluating| evaluating.dismiss(peer));
        true
    }

    /// Epochs of `stage`, or of those beside it, in which somebody has found a fault that is not judged yet.
    pub(super) fn disputed(&self, stage: StageIndex) -> impl Iterator<Item = Epoch> + '_ {
        let beside = move |challenge: &&Challenge| challenge.subject.stage.0.abs_diff(stage.0) <= 1;
        let disputed = self.open.iter().filter(beside).filter(|challenge| challenge.is_disputed());
        disputed.map(|challenge| challenge.subject.epoch)
    }

    /// Draws which submissions of a merge that closed are checked, of those whose miners are not `convicted`; those of `outliers` are.
    pub(super) fn draw(
        &mut self,
        spec: &ValidationSpec,
        stage: StageIndex,
        closed: &Closed,
        outliers: &[PeerId],
        convicted: impl Fn(PeerId) -> bool,
    ) {
        let (epoch, base, seed) = (closed.training.epoch, closed.training.base, closed.plan.seed);
        for submission in &closed.plan.submitters {
            let subject = Subject::of(stage, epoch, submission);
            if convicted(subject.peer) || self.open.iter().any(|open| open.subject == subject) {
                continue;
            }
            let validators = self.validators.iter().copied();
            let suspect = self.suspects.contains_key(&subject.peer) || outliers.contains(&subject.peer);
            self.open.extend(Challenge::draw(spec, seed, subject, base, validators, suspect));
        }
        self.bound();
    }

    fn bound(&mut self) {
        let excess = self.open.len().saturating_sub(CHALLENGES_MAX);
        self.open.drain(..excess);
    }

    /// Forgets what would be found of a miner that has lost its place for good: it is punished, and validators have others to look
    /// at. What somebody has approved stays, who may have to answer for that.
    pub(super) fn close(&mut self, peer: PeerId) {
        let is_approved =
            |challenge: &Challenge| challenge.found.iter().any(|(_, finding)| *finding == Finding::Matches);
        self.open.retain(|challenge| challenge.subject.peer != peer || is_approved(challenge));
    }

    /// Forgets what cannot be checked any more when `stage` has come to `version`: what it was made from is gone, or it was
    /// undone and harms nobody.
    pub(super) fn expire(&mut self, stage: StageIndex, version: Epoch) {
        self.open.retain(|challenge| {
            let kept = if challenge.is_disputed() { DISPUTED_EPOCHS_KEPT } else { BLOB_EPOCHS_KEPT };
            let Subject { stage: of, epoch, .. } = challenge.subject;
            of != stage || epoch.0.saturating_add(kept) >= version.0
        });
    }

    /// Notes that nobody could check `peer`; returns how often that was so in a row.
    fn suspect(&mut self, peer: PeerId) -> u16 {
        if self.suspects.len() >= BOOK_PEERS_MAX && !self.suspects.contains_key(&peer) {
            self.suspects.pop_first();
        }
        let times = self.suspects.entry(peer).or_default();
        *times = times.saturating_add(1);
        *times
    }

    pub(super) fn undone(&mut self, stage: StageIndex, from: Epoch) {
        self.open.retain(|challenge| challenge.subject.stage != stage || challenge.subject.epoch < from);
        // Only runs of one stage have any.
        self.evaluating.retain(|evaluating| evaluating.epoch < from);
    }
}

impl RunState {
    /// The validators.
    #[must_use]
    pub const fn validators(&self) -> &BTreeSet<PeerId> {
        &self.checks.validators
    }

    /// Why `peer` is no validator any more, if it was one.
    #[must_use]
    pub fn dismissal(&self, peer: PeerId) -> Option<DismissReason> {
        self.checks.dismissed.get(&peer).copied()
    }

    /// Checks that are not concluded, oldest first.
    #[must_use]
    pub fn challenges(&self) -> &[Challenge] {
        &self.checks.open
    }

    /// Whether the blobs of this epoch of `stage` are still asked for: it was settled lately, or the fault that somebody found in
    /// it, or in what a neighbour made of its tensors, is not judged yet.
    #[must_use]
    pub fn keeps(&self, stage: StageIndex, epoch: Epoch) -> bool {
        let version = self.stage(stage).map_or(Epoch(0), |stage| stage.version);
        let lately = epoch.0.saturating_add(BLOB_EPOCHS_KEPT) >= version.0;
        lately || self.checks.disputed(stage).any(|disputed| disputed == epoch)
    }

    pub(super) fn enlist(&mut self, peer: PeerId) -> Option<Vec<StateEvent>> {
        self.spec.lists(peer).ok()?;
        self.checks.enlist(peer).then(|| vec![StateEvent::Enlisted(peer)])
    }

    /// Whether a decision may dismiss a validator for this reason.
    pub(super) fn is_dismissal_founded(
        &self,
        peer: PeerId,
        reason: DismissReason,
        evidence: Option<&Equivocation>,
    ) -> bool {
        match reason {
            DismissReason::Silent | DismissReason::Left => evidence.is_none(),
            DismissReason::Equivocation => {
                evidence.is_some_and(|evidence| self.check_equivocation(peer, evidence).is_ok())
            }
            // This follows from verdicts, which are decisions of their own.
            DismissReason::WrongVerdict => false,
        }
    }

    pub(super) fn dismiss(&mut self, peer: PeerId, reason: DismissReason) -> Option<Vec<StateEvent>> {
        self.checks.dismiss(peer, reason).then(|| vec![StateEvent::Dismissed(peer, reason)])
    }

    /// Whether the log takes this verdict, its signature aside: its validator is asked for it, or has read what is at fault.
    #[must_use]
    pub fn takes(&self, verdict: &Verdict) -> bool {
        let open = self.checks.open.iter().find(|challenge| challenge.subject == verdict.subject);
        let asked =
            open.is_some_and(|challenge| challenge.awaited().any(|awaited| awaited == verdict.validator));
        asked || self.is_accusation(verdict, open)
    }

    /// Whether `validator` is one of those drawn to read what the miners of `stage` committed to in `epoch`, and a plan has frozen
    /// that.
    #[must_use]
    pub fn reads(&self, validator: PeerId, stage: StageIndex, epoch: Epoch) -> bool {
        let plan = self.stage(stage).and_then(|stage| stage.merge(epoch));
        plan.is_some_and(|(_, plan)| {
            readers(plan.seed, self.checks.validators.iter().copied()).any(|reader| reader == validator)
        })
    }

    /// Whether this is the verdict of a reader whom nobody asked, on a submission that can be checked still.
    fn is_accusation(&self, verdict: &Verdict, open: Option<&Challenge>) -> bool {
        let Verdict { validator, subject, finding: Finding::Differs(fault), .. } = verdict else {
            return false;
        };
        let Subject { stage, epoch, peer, .. } = *subject;
        let plan = self.stage(stage).and_then(|stage| stage.merge(epoch));
        let mut submitted = plan.iter().flat_map(|(_, plan)| &plan.submitters);
        fault.is_read()
            && self.reads(*validator, stage, epoch)
            && self.keeps(stage, epoch)
            && submitted.any(|submission| Subject::of(stage, epoch, submission) == *subject)
            && *validator != peer
            && !self.eviction(peer).is_some_and(|reason| reason.is_proven())
            && !open.is_some_and(|open| open.found.iter().any(|(found, _)| found == validator))
    }

    /// The check of this subject: an open one, or a new one of what a plan has frozen. Where it is among the open ones.
    fn challenge(&mut self, subject: &Subject) -> Option<usize> {
        let open = |checks: &Checks| checks.open.iter().position(|challenge| challenge.subject == *subject);
        if let Some(at) = open(&self.checks) {
            return Some(at);
        }
        let (training, plan) = self.stage(subject.stage)?.merge(subject.epoch)?;
        let validators = self.checks.validators.iter().copied();
        let challenge = Challenge::of(plan.seed, *subject, training.base, validators)?;
        self.checks.open.push(challenge);
        self.checks.bound();
        open(&self.checks)
    }

    /// Takes a verdict, and draws the conclusion if it is the last that was missing. `chain` is the chain hash after it.
    pub(super) fn judge(&mut self, run: RunId, chain: Hash, verdict: &Verdict) -> Option<Vec<StateEvent>> {
        let Verdict { validator, subject, finding, .. } = verdict;
        if !self.takes(verdict) || !verdict.verifies(run) {
            return None;
        }
        let at = self.challenge(subject)?;
        let challenge = self.checks.open.get_mut(at)?;
        challenge.hear(*validator);
        challenge.take(*validator, *finding);
        let mut events = vec![StateEvent::Judged(*subject, *validator, *finding)];
        let Some(conclusion) = challenge.conclude(&self.spec.validation, chain) else {
            return Some(events);
        };
        self.checks.open.remove(at);
        events.push(StateEvent::Checked(*subject, conclusion.outcome));
        let Subject { stage, epoch, peer, .. } = *subject;
        match conclusion.outcome {
            Outcome::Passed => {
                self.checks.suspects.remove(&peer);
                self.scores.validated(stage, epoch, peer);
            }
            Outcome::Failed(_) => {
                self.scores.failed(stage, epoch, peer, Penalty::FailedReplay);
                events.extend(self.convict(peer));
            }
            Outcome::Unproven => {
                self.scores.unproven(stage, epoch, peer);
                if self.checks.suspect(peer) >= UNPROVEN_MAX {
                    events.extend(self.evict(peer, EvictReason::Unproven).into_iter().flatten());
                }
            }
        }
        for validator in conclusion.wrong {
            events.extend(self.dismiss(validator, DismissReason::WrongVerdict).into_iter().flatten());
        }
        Some(events)
    }

    /// Takes a miner's place, now and for good.
    fn convict(&mut self, peer: PeerId) -> Vec<StateEvent> {
        let evicted = self.evict(peer, EvictReason::FailedReplay);
        // It may have left meanwhile, and would ask for a place again.
        evicted.unwrap_or_else(|| {
            self.bar(peer, EvictReason::FailedReplay);
            Vec::new()
        })
    }
}
