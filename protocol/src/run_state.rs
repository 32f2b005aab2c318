//! What everybody knows: the deterministic fold of the decided log.
//!
//! Candidates and all other peers apply the same entries in the same order and hold the same
//! [`RunState`]. Nobody reacts to having *heard* of a decision; everybody compares the state with
//! what they are doing. A peer that slept through three epochs therefore knows what to do.
//!
//! ```text
//!             OpenEpoch              MergePlan               MergeOutcome
//!  Waiting ────────────▶ Training ────────────▶ Merging ────────────────────▶ Waiting, version + 1
//!     ▲                   │    ▲                   │
//!     └─ last member gone ┘    └──── MergeAbort ───┘ (the lost are released, the attempt counts up)
//! ```
//!
//! A decision that does not fit the state is void: it stays in the log, changes nothing, and every
//! peer skips it alike. So proposing something twice is harmless, and a new leader need not know what
//! the old one had under way. Whether a decision fits follows from the log alone: one of a kind that came with a later
//! wire version than the one decided is void also for programs that know it (see [`version`](crate::wire::version)).

mod checks;
mod evaluations;
mod stage;
mod written;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::equivocation::{Equivocation, EquivocationError};
use crate::id::{Epoch, Hash, LogIndex, PartitionIndex, PeerId, StageIndex};
use crate::limits::{CHECKPOINT_MOMENTS_MAX, REPLICAS_MAX, WIRE_VERSION_FIRST};
use crate::merge;
use crate::merge::evidence::{Evidence, EvidenceError, Reports};
use crate::no_confidence::{NoConfidence, charge, is_majority};
use crate::overstatement::{OverstatementError, SpeedLimit, open_record};
use crate::samples::{Deal, epoch_samples};
use crate::scores::{Penalty, Place, Scores, Work};
use crate::spec::RunSpec;
use crate::validation::{DismissReason, Finding, Outcome as CheckOutcome, Subject};
use crate::wire::message::{Decision, Entry, EvictReason, PeerRecord, SavedMoments, Submission};

use checks::Checks;
pub use stage::{Closed, Outcome, Phase, Plan, Stage, Training};

/// Something that a decision changed, for the driver to report.
#[derive(Clone, Debug, PartialEq)]
pub enum StateEvent {
    /// A miner joined a stage.
    Admitted(PeerId, StageIndex),
    /// A miner lost its place.
    Evicted(PeerId, EvictReason),
    /// A miner went to another stage.
    Moved(PeerId, StageIndex),
    /// A leader was deposed, and is charged for it.
    Deposed(PeerId),
    /// A member says from now on that it is no faster than so many thousandths of a sample per second.
    SpeedLimited(PeerId, u32),
    /// An epoch began with this many members.
    EpochOpened(StageIndex, Epoch, usize),
    /// A member was taken out of an epoch.
    Released(StageIndex, Epoch, PeerId),
    /// An epoch was cut off.
    CutOff(StageIndex, Epoch),
    /// An epoch was passed over; the weights stay.
    Skipped(StageIndex, Epoch),
    /// The merge of an epoch, and those after it, were passed over after the fact.
    Undone(StageIndex, Epoch),
    /// A merge was planned with this many submitters.
    Planned(StageIndex, Epoch, u16, usize),
    /// A partition got a further owner.
    Reassigned(StageIndex, Epoch, PartitionIndex, PeerId),
    /// A plan was given up.
    Aborted(StageIndex, Epoch, Vec<PeerId>),
    /// A merge closed over this many samples, with their mean loss in nats if the stage is the tail.
    Merged(StageIndex, Epoch, u64, Option<f64>),
    /// The contributions of these to a merge that closed stand out, and are checked.
    StoodOut(StageIndex, Epoch, Vec<PeerId>),
    /// A peer validates.
    Enlisted(PeerId),
    /// A peer validates no more.
    Dismissed(PeerId, DismissReason),
    /// A validator has said what it found.
    Judged(Subject, PeerId, Finding),
    /// A check is concluded.
    Checked(Subject, CheckOutcome),
    /// An evaluator has said what the contributions to a merge do to the loss.
    Evaluated(Epoch, PeerId),
    /// Those who contributed to a merge are rated by what evaluators said.
    Rated(Epoch),
    /// The state of every stage at this version is in the mirror.
    Checkpointed(Epoch),
    /// The state after this many entries is named in the log; whoever has it needs none of them.
    Snapshot(u64),
    /// The run goes on in this wire version.
    Upgraded(u16),
    /// The run is over.
    Finished,
}

/// The states of all stages at one version, in the mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The version.
    pub epoch: Epoch,
    /// For each stage the hash of its state offer, under which the mirror has it.
    pub stages: Vec<Hash>,
    /// The inner optimizers' moments that their miners have brought there too, by stage and miner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<SavedMoments>,
    /// Entries of the log up to and with the one that decided it, and the chain hash after that; nothing if the run
    /// started from it.
    pub decided: Option<(u64, Hash)>,
}

/// The state of a run.
#[derive(Clone, Debug)]
pub struct RunState {
    spec: Arc<RunSpec>,
    lineage: Hash,
    applied: u64,
    wire_version: u16,
    members: BTreeMap<PeerId, Place>,
    evicted: BTreeMap<PeerId, EvictReason>,
    stages: Vec<Stage>,
    checks: Checks,
    scores: Scores,
    /// The version of the head stage when each leader was deposed last.
    deposed: BTreeMap<PeerId, Epoch>,
    checkpoint: Option<Checkpoint>,
    /// Entries before the newest decision that names a state.
    snapshot: u64,
    finished: bool,
}

impl RunState {
    /// The state before any decision. `parameters` holds the length of each stage's flat vector.
    ///
    /// # Panics
    /// If there are not as many lengths as stages.
    #[must_use]
    pub fn new(spec: Arc<RunSpec>, parameters: &[usize]) -> Self {
        assert_eq!(parameters.len(), usize::from(spec.pipeline.stages), "one parameter count per stage");
        let start = &spec.start;
        let stage = |&count: &usize| Stage {
            version: Epoch(start.epoch),
            phase: Phase::Waiting,
            closed: VecDeque::new(),
            outcomes: VecDeque::new(),
            partitions: spec.partitions(count),
            gave: None,
            took: None,
            attempt: 0,
        };
        Self {
            lineage: spec.lineage(),
            applied: 0,
            wire_version: WIRE_VERSION_FIRST,
            members: BTreeMap::new(),
            evicted: BTreeMap::new(),
            stages: parameters.iter().map(stage).collect(),
            checks: Checks::default(),
            scores: Scores::default(),
            deposed: BTreeMap::new(),
            checkpoint: start.checkpoint.map(|_| Checkpoint {
                epoch: Epoch(start.epoch),
                stages: start.stages.clone(),
                moments: start.moments.clone(),
                decided: None,
            }),
            snapshot: 0,
            finished: false,
            spec,
        }
    }

    /// The run's spec.
    #[must_use]
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// Entries applied.
    #[must_use]
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// Entries before the newest [`Decision::Snapshot`]; none if there was none yet.
    #[must_use]
    pub const fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// The wire version that the run uses.
    #[must_use]
    pub const fn wire_version(&self) -> u16 {
        self.wire_version
    }

    /// Whether the run is over.
    #[must_use]
    pub const fn finished(&self) -> bool {
        self.finished
    }

    /// The stages, head first.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The stages, for tests that start in the middle.
    #[cfg(test)]
    pub(crate) fn stages_mut(&mut self) -> &mut [Stage] {
        &mut self.stages
    }

    /// One stage.
    #[must_use]
    pub fn stage(&self, stage: StageIndex) -> Option<&Stage> {
        self.stages.get(stage.as_usize())
    }

    /// What miners' work is worth.
    #[must_use]
    pub const fn scores(&self) -> &Scores {
        &self.scores
    }

    /// The version of the head stage.
    #[must_use]
    pub fn head_version(&self) -> Epoch {
        self.stages.first().map(|stage| stage.version).unwrap_or_default()
    }

    /// The version of each stage, head first.
    #[must_use]
    pub fn versions(&self) -> Vec<Epoch> {
        self.stages.iter().map(|stage| stage.version).collect()
    }

    /// The newest checkpoint, if there is one.
    #[must_use]
    pub const fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// All miners with their places.
    #[must_use]
    pub const fn members(&self) -> &BTreeMap<PeerId, Place> {
        &self.members
    }

    /// The miners of one stage, in [`PeerId`] order.
    pub fn replicas(&self, stage: StageIndex) -> impl Iterator<Item = PeerId> + '_ {
        self.members.iter().filter(move |(_, place)| place.stage == stage).map(|(peer, _)| *peer)
    }

    /// The stage of `peer`.
    #[must_use]
    pub fn stage_of(&self, peer: PeerId) -> Option<StageIndex> {
        self.members.get(&peer).map(|place| place.stage)
    }

    /// Why `peer` last lost its place, if it is not a member now.
    #[must_use]
    pub fn eviction(&self, peer: PeerId) -> Option<EvictReason> {
        self.evicted.get(&peer).copied()
    }

    /// Whether `peer` gets no place: for good if something was proved against it, and if it lost one for its score, until its
    /// work there is out of the window.
    #[must_use]
    pub fn is_barred(&self, peer: PeerId) -> bool {
        self.eviction(peer).is_some_and(|reason| {
            reason.is_proven() || reason == EvictReason::LowScore && self.scores.remembers(peer)
        })
    }

    /// The member of `stage` that loses its place next for its score, if any does.
    #[must_use]
    pub fn to_kick(&self, stage: StageIndex) -> Option<PeerId> {
        self.scores.kick(&self.spec.scores, stage, &self.versions(), &self.members)
    }

    /// Applies the entry at `index`, with the chain hash after it. A void entry changes nothing but the count.
    ///
    /// # Panics
    /// If entries are applied out of order, which is a bug of the caller.
    pub fn apply(&mut self, index: LogIndex, chain: Hash, entry: Option<&Entry>) -> Vec<StateEvent> {
        assert_eq!(index.0, self.applied, "entries are applied in order");
        self.applied += 1;
        let decided = entry.and_then(|entry| self.decide(index, chain, &entry.decision));
        let Some(mut events) = decided else { return Vec::new() };
        // Whatever was decided may be what a rating has waited for.
        events.extend(self.rate());
        events
    }

    /// `None` means void.
    fn decide(&mut self, index: LogIndex, chain: Hash, decision: &Decision) -> Option<Vec<StateEvent>> {
        if self.finished || decision.since() > self.wire_version {
            return None;
        }
        match decision {
            Decision::Admit { peer, stage } => self.admit(*peer, *stage),
            Decision::Evict { peer, reason, evidence } => {
                let founded = self.is_founded(*peer, *reason, evidence.as_ref());
                founded.then(|| self.evict(*peer, *reason)).flatten()
            }
            Decision::Move { peer, stage } => self.relocate(*peer, *stage),
            Decision::LimitSpeed { peer, stage, speed_milli } => {
                self.limit_speed(index, *peer, *stage, *speed_milli)
            }
            Decision::OpenEpoch { stage, epoch, base, members } => {
                self.open(index, *stage, *epoch, *base, members)
            }
            Decision::Release { stage, epoch, peer } => self.release(*stage, *epoch, *peer),
            Decision::Cutoff { stage, epoch } => self.cut_off(*stage, *epoch),
            Decision::Skip { stage, epoch } => self.skip(*stage, *epoch),
            Decision::Undo { stage, epoch } => {
                let undone = self.stages.get_mut(stage.as_usize())?.undo(*epoch);
                undone.then(|| {
                    self.checks.undone(*stage, *epoch);
                    self.scores.undone(*stage, *epoch);
                    vec![StateEvent::Undone(*stage, *epoch)]
                })
            }
            Decision::MergePlan { stage, epoch, attempt, submitters } => {
                self.plan(chain, *stage, *epoch, *attempt, submitters)
            }
            Decision::MergeReassign { stage, epoch, attempt, partition, owner } => {
                self.reassign(*stage, *epoch, *attempt, *partition, *owner)
            }
            Decision::MergeAbort { stage, epoch, attempt, lost } => {
                self.abort(*stage, *epoch, *attempt, lost)
            }
            Decision::MergeOutcome { stage, epoch, attempt, partitions, outliers } => {
                self.close(*stage, *epoch, *attempt, partitions, outliers)
            }
            Decision::Enlist { peer } => self.enlist(*peer),
            Decision::Dismiss { peer, reason, evidence } => {
                let founded = self.is_dismissal_founded(*peer, *reason, evidence.as_ref());
                founded.then(|| self.dismiss(*peer, *reason)).flatten()
            }
            Decision::Judge(verdict) => self.judge(self.spec.run_id(), chain, verdict),
            Decision::Evaluate(evaluation) => self.evaluate(self.spec.run_id(), evaluation),
            Decision::Depose { leader, votes } => self.depose(*leader, votes),
            Decision::Checkpoint { epoch, stages, moments } => {
                self.checkpointed((index, chain), *epoch, stages, moments)
            }
            Decision::Snapshot { entries, .. } => {
                let next = *entries == index.0 && *entries > self.snapshot;
                next.then(|| {
                    self.snapshot = *entries;
                    vec![StateEvent::Snapshot(*entries)]
                })
            }
            Decision::Upgrade { version } => self.upgrade(*version),
            Decision::Finish => {
                let done = self.stages.iter().all(|stage| stage.version.0 >= self.spec.training.epochs);
                self.finished = done;
                done.then(|| vec![StateEvent::Finished])
            }
            #[cfg(test)]
            Decision::Second => {
                self.finished = true;
                Some(vec![StateEvent::Finished])
            }
        }
    }

    fn checkpointed(
        &mut self,
        (index, chain): (LogIndex, Hash),
        epoch: Epoch,
        stages: &[Hash],
        moments: &[SavedMoments],
    ) -> Option<Vec<StateEvent>> {
        let newer = self.checkpoint.as_ref().is_none_or(|checkpoint| epoch > checkpoint.epoch);
        let reached = self.stages.iter().all(|stage| stage.version >= epoch);
        let fits = stages.len() == self.stages.len()
            && moments.len() <= CHECKPOINT_MOMENTS_MAX
            && SavedMoments::are_in_order(moments)
            && moments.iter().all(|saved| saved.stage.as_usize() < stages.len());
        if !newer || !reached || !fits || !self.spec.is_checkpoint(epoch) {
            return None;
        }
        let (stages, moments) = (stages.to_vec(), moments.to_vec());
        self.checkpoint = Some(Checkpoint { epoch, stages, moments, decided: Some((index.0 + 1, chain)) });
        for stage in &mut self.stages {
            stage.outcomes.retain(|outcome| outcome.epoch >= epoch);
        }
        Some(vec![StateEvent::Checkpointed(epoch)])
    }

    /// One version at a time, so that whoever speaks two can follow.
    fn upgrade(&mut self, version: u16) -> Option<Vec<StateEvent>> {
        if self.wire_version.checked_add(1) != Some(version) {
            return None;
        }
        self.wire_version = version;
        Some(vec![StateEvent::Upgraded(version)])
    }

    fn relocate(&mut self, peer: PeerId, stage: StageIndex) -> Option<Vec<StateEvent>> {
        let from = self.stage_of(peer).filter(|from| *from != stage)?;
        let taking_part = self.stage(from)?.training().is_some_and(|training| training.deal.is_live(peer));
        let room = stage.as_usize() < self.stages.len() && self.replicas(stage).count() < REPLICAS_MAX;
        if taking_part || !room || self.replicas(from).count() < 2 {
            return None;
        }
        self.place(peer, stage);
        let [from, to] = self.stages.get_disjoint_mut([from.as_usize(), stage.as_usize()]).ok()?;
        (from.gave, to.took) = (Some(from.version), Some(to.version));
        Some(vec![StateEvent::Moved(peer, stage)])
    }

    fn admit(&mut self, peer: PeerId, stage: StageIndex) -> Option<Vec<StateEvent>> {
        let room = stage.as_usize() < self.stages.len() && self.replicas(stage).count() < REPLICAS_MAX;
        let barred = self.is_barred(peer) || self.spec.lists(peer).is_err();
        if !room || barred || self.members.contains_key(&peer) {
            return None;
        }
        self.place(peer, stage);
        self.evicted.remove(&peer);
        Some(vec![StateEvent::Admitted(peer, stage)])
    }

    fn place(&mut self, peer: PeerId, stage: StageIndex) {
        let since = self.stage(stage).map(|stage| stage.version).unwrap_or_default();
        self.members.insert(peer, Place { stage, since, limit: None });
    }

    /// Whether a decision may take a miner's place for this reason: what bars it for good rests on what others signed.
    fn is_founded(&self, peer: PeerId, reason: EvictReason, evidence: Option<&Evidence>) -> bool {
        match reason {
            EvictReason::Silent | EvictReason::Left => evidence.is_none(),
            EvictReason::LowScore => {
                let kicked = self.stage_of(peer).and_then(|stage| self.to_kick(stage));
                evidence.is_none() && kicked == Some(peer)
            }
            EvictReason::WrongMerge | EvictReason::InvalidContribution => {
                evidence.is_some_and(|evidence| self.check_evidence(peer, reason, evidence).is_ok())
            }
            EvictReason::Equivocation => matches!(evidence, Some(Evidence::Equivocation(equivocation))
                if self.check_equivocation(peer, equivocation).is_ok()),
            EvictReason::OverstatedSpeed => matches!(evidence, Some(Evidence::Overstatement(record))
                if self.check_overstatement(peer, record).is_ok()),
            // These follow from verdicts, which are decisions of their own.
            EvictReason::FailedReplay | EvictReason::Unproven => false,
        }
    }

    /// Checks the evidence for a miner to lose its place over a merge, against the plan of a merge under way or lately closed.
    ///
    /// # Errors
    /// [`EvidenceError`] if it does not hold.
    pub fn check_evidence(
        &self,
        accused: PeerId,
        reason: EvictReason,
        evidence: &Evidence,
    ) -> Result<Reports, EvidenceError> {
        let reports = evidence.open(self.spec.run_id(), self.wire_version)?;
        let plan = self.plan_of(reports.stage, reports.epoch, reports.attempt).ok_or(EvidenceError::Plan)?;
        evidence.convicts(&reports, accused, reason, plan)?;
        Ok(reports)
    }

    /// Checks that a peer signed two messages under one number, in this run and in a version that is decided. Returns the
    /// number.
    ///
    /// # Errors
    /// [`EquivocationError`] if it did not.
    pub fn check_equivocation(
        &self,
        accused: PeerId,
        equivocation: &Equivocation,
    ) -> Result<u64, EquivocationError> {
        equivocation.check(self.spec.run_id(), self.wire_version, accused)
    }

    /// Checks that a member signed a record of a speed above its limit, in this run and in a version that is decided, and knew
    /// the limit. Returns the record.
    ///
    /// # Errors
    /// [`OverstatementError`] if it did not.
    pub fn check_overstatement(
        &self,
        accused: PeerId,
        record: &ByteBuf,
    ) -> Result<PeerRecord, OverstatementError> {
        let place = self.members.get(&accused).ok_or(OverstatementError::Unlimited)?;
        let limit = place.limit.ok_or(OverstatementError::Unlimited)?;
        let record = open_record(self.spec.run_id(), self.wire_version, accused, record)?;
        limit.check(place.stage, &record)?;
        Ok(record)
    }

    /// How fast `peer` may say it is in its stage, if that is limited.
    #[must_use]
    pub fn speed_limit(&self, peer: PeerId) -> Option<SpeedLimit> {
        self.members.get(&peer)?.limit
    }

    /// The most that `peer` may say of its speed, in thousandths of a sample per second.
    #[must_use]
    pub fn speed_max(&self, peer: PeerId) -> u32 {
        self.speed_limit(peer).map_or(u32::MAX, |limit| limit.speed_milli)
    }

    fn limit_speed(
        &mut self,
        index: LogIndex,
        peer: PeerId,
        stage: StageIndex,
        speed_milli: u32,
    ) -> Option<Vec<StateEvent>> {
        let version = self.stage(stage)?.version;
        let place = self.members.get_mut(&peer).filter(|place| place.stage == stage && speed_milli > 0)?;
        place.limit = Some(SpeedLimit::new(speed_milli, index.0 + 1, version));
        Some(vec![StateEvent::SpeedLimited(peer, speed_milli)])
    }

    /// Charges a leader that a majority of the candidates has deposed.
    fn depose(&mut self, leader: PeerId, votes: &[NoConfidence]) -> Option<Vec<StateEvent>> {
        let run = self.spec.run_id();
        let hold = is_majority(&self.spec, leader, votes)
            && votes.iter().all(|vote| self.counts_against(vote) && vote.verifies(run));
        if !hold || self.spec.candidate_index(leader).is_none() {
            return None;
        }
        self.deposed.insert(leader, self.head_version());
        let index = self.stage_of(leader).unwrap_or_default();
        let stage = self.stage(index)?;
        let epoch = stage.training().map_or(stage.version, |training| training.epoch);
        self.scores.deposed(index, epoch, leader, charge(&self.spec));
        Some(vec![StateEvent::Deposed(leader)])
    }

    /// Whether a vote against a leader counts now.
    #[must_use]
    pub fn counts_against(&self, vote: &NoConfidence) -> bool {
        vote.counts(self.head_version(), self.deposed.get(&vote.leader).copied())
    }

    /// Ends the limits of members of `stage` that hold until it comes to `version`.
    fn end_limits(&mut self, stage: StageIndex, version: Epoch) {
        for place in self.members.values_mut().filter(|place| place.stage == stage) {
            place.limit = place.limit.filter(|limit| limit.until > version);
        }
    }

    /// The plan of a merge under way or lately closed.
    #[must_use]
    pub fn plan_of(&self, stage: StageIndex, epoch: Epoch, attempt: u16) -> Option<&Plan> {
        let stage = self.stage(stage)?;
        let under_way = stage.plan().filter(|(training, _)| training.epoch == epoch).map(|(_, plan)| plan);
        let closed = || stage.closed_epoch(epoch).map(|closed| &closed.plan);
        under_way.or_else(closed).filter(|plan| plan.attempt == attempt)
    }

    fn evict(&mut self, peer: PeerId, reason: EvictReason) -> Option<Vec<StateEvent>> {
        let index = self.stage_of(peer)?;
        if reason == EvictReason::LowScore {
            self.scores.kicked(index, self.stage(index)?.version);
        }
        self.members.remove(&peer);
        self.bar(peer, reason);
        let stage = self.stages.get_mut(index.as_usize())?;
        // A failed replay is of an epoch that is merged, and counted there.
        if let Some(penalty) = Penalty::of(reason).filter(|penalty| *penalty != Penalty::FailedReplay) {
            let epoch = stage.training().map_or(stage.version, |training| training.epoch);
            self.scores.failed(index, epoch, peer, penalty);
        }
        match &mut stage.phase {
            Phase::Training(training) => {
                if training.deal.is_live(peer) && !training.deal.release(peer) {
                    // It was the last one: the epoch starts over when the stage has a miner again.
                    stage.empty();
                }
            }
            Phase::Merging(training, _) => {
                training.deal.release(peer);
            }
            Phase::Waiting => {}
        }
        Some(vec![StateEvent::Evicted(peer, reason)])
    }

    /// Remembers why a peer has no place.
    fn bar(&mut self, peer: PeerId, reason: EvictReason) {
        if self.evicted.len() >= crate::limits::BOOK_PEERS_MAX {
            self.evicted.pop_first();
        }
        self.evicted.insert(peer, reason);
        if reason.is_proven() {
            self.checks.close(peer);
        }
    }

    fn open(
        &mut self,
        opened: LogIndex,
        index: StageIndex,
        epoch: Epoch,
        base: Hash,
        members: &[(PeerId, u32)],
    ) -> Option<Vec<StateEvent>> {
        let ascending = members.windows(2).all(|pair| matches!(pair, [a, b] if a.0 < b.0));
        let ours = members.iter().all(|(peer, _)| self.stage_of(*peer) == Some(index));
        let (lineage, count, epochs) =
            (self.lineage, self.spec.training.samples_per_epoch, self.spec.training.epochs);
        let stage = self.stages.get_mut(index.as_usize())?;
        let waiting = matches!(stage.phase, Phase::Waiting) && epoch == stage.version && epoch.0 < epochs;
        if members.is_empty() || !ascending || !ours || !waiting {
            return None;
        }
        let deal = Deal::new(lineage, index, epoch, epoch_samples(epoch, count), members);
        let attempt = stage.attempt;
        stage.phase = Phase::Training(Training { epoch, base, opened, deal, attempt, cut_off: false });
        Some(vec![StateEvent::EpochOpened(index, epoch, members.len())])
    }

    /// The epoch of a stage that is training, if it is `epoch`.
    fn training_mut(&mut self, stage: StageIndex, epoch: Epoch) -> Option<&mut Training> {
        match &mut self.stages.get_mut(stage.as_usize())?.phase {
            Phase::Training(training) if training.epoch == epoch => Some(training),
            _ => None,
        }
    }

    fn release(&mut self, stage: StageIndex, epoch: Epoch, peer: PeerId) -> Option<Vec<StateEvent>> {
        let training = self.training_mut(stage, epoch).filter(|training| training.deal.is_live(peer))?;
        let emptied = !training.deal.release(peer);
        if let (true, Some(stage)) = (emptied, self.stages.get_mut(stage.as_usize())) {
            stage.empty();
        }
        Some(vec![StateEvent::Released(stage, epoch, peer)])
    }

    fn cut_off(&mut self, stage: StageIndex, epoch: Epoch) -> Option<Vec<StateEvent>> {
        let training = self.training_mut(stage, epoch).filter(|training| !training.cut_off)?;
        training.cut_off = true;
        Some(vec![StateEvent::CutOff(stage, epoch)])
    }

    /// Whether a stage beside `index` has settled `epoch`.
    #[must_use]
    pub fn settled_beside(&self, index: StageIndex, epoch: Epoch) -> bool {
        let beside = [index.0.checked_sub(1), index.0.checked_add(1)];
        let stages = beside.into_iter().flatten().filter_map(|beside| self.stage(StageIndex(beside)));
        stages.into_iter().any(|stage| stage.version > epoch)
    }

    fn skip(&mut self, index: StageIndex, epoch: Epoch) -> Option<Vec<StateEvent>> {
        let beside = self.settled_beside(index, epoch);
        let training = self.training_mut(index, epoch).filter(|training| training.cut_off && beside)?.clone();
        let seed = Hash::default();
        let plan = Plan { attempt: training.attempt, seed, submitters: Vec::new(), owners: Vec::new() };
        let remembers = self.spec.mirror.is_set();
        let closed = Closed { training, plan, partitions: Vec::new() };
        let disputed: Vec<Epoch> = self.checks.disputed(index).collect();
        self.stages.get_mut(index.as_usize())?.settle(closed, remembers, &disputed);
        self.checks.expire(index, epoch.next());
        self.end_limits(index, epoch.next());
        Some(vec![StateEvent::Skipped(index, epoch)])
    }

    fn plan(
        &mut self,
        chain: Hash,
        index: StageIndex,
        epoch: Epoch,
        attempt: u16,
        submitters: &[Submission],
    ) -> Option<Vec<StateEvent>> {
        let redundancy = usize::from(self.spec.merge.redundancy);
        let training = self.training_mut(index, epoch).filter(|training| training.attempt == attempt)?;
        let ascending = submitters.windows(2).all(|pair| matches!(pair, [a, b] if a.peer < b.peer));
        let live = submitters
            .iter()
            .all(|submission| submission.samples > 0 && training.deal.is_live(submission.peer));
        if submitters.is_empty() || !ascending || !live {
            return None;
        }
        let training = training.clone();
        let stage = self.stages.get_mut(index.as_usize())?;
        let peers: Vec<PeerId> = submitters.iter().map(|submission| submission.peer).collect();
        let owners = merge::owners(chain, &peers, stage.partitions, redundancy);
        let plan = Plan { attempt, seed: chain, submitters: submitters.to_vec(), owners };
        stage.phase = Phase::Merging(training, plan);
        Some(vec![StateEvent::Planned(index, epoch, attempt, peers.len())])
    }

    /// The plan of a stage that is merging, if it is the one named.
    fn plan_mut(
        &mut self,
        stage: StageIndex,
        epoch: Epoch,
        attempt: u16,
    ) -> Option<(&mut Stage, Training, Plan)> {
        let stage = self.stages.get_mut(stage.as_usize())?;
        let (training, plan) =
            stage.plan().filter(|(training, plan)| training.epoch == epoch && plan.attempt == attempt)?;
        let (training, plan) = (training.clone(), plan.clone());
        Some((stage, training, plan))
    }

    fn reassign(
        &mut self,
        index: StageIndex,
        epoch: Epoch,
        attempt: u16,
        partition: PartitionIndex,
        owner: PeerId,
    ) -> Option<Vec<StateEvent>> {
        let (stage, training, mut plan) = self.plan_mut(index, epoch, attempt)?;
        let owners = plan.owners.get_mut(partition.0 as usize)?;
        if owners.contains(&owner) {
            return None;
        }
        owners.push(owner);
        stage.phase = Phase::Merging(training, plan);
        Some(vec![StateEvent::Reassigned(index, epoch, partition, owner)])
    }

    fn abort(
        &mut self,
        index: StageIndex,
        epoch: Epoch,
        attempt: u16,
        lost: &[PeerId],
    ) -> Option<Vec<StateEvent>> {
        let (stage, mut training, plan) = self.plan_mut(index, epoch, attempt)?;
        if lost.is_empty() || !lost.iter().all(|peer| plan.has(*peer)) {
            return None;
        }
        training.attempt = attempt.saturating_add(1);
        let emptied = lost.iter().any(|peer| training.deal.is_live(*peer) && !training.deal.release(*peer));
        if emptied {
            stage.empty();
        } else {
            stage.phase = Phase::Training(training);
        }
        Some(vec![StateEvent::Aborted(index, epoch, lost.to_vec())])
    }

    fn close(
        &mut self,
        index: StageIndex,
        epoch: Epoch,
        attempt: u16,
        partitions: &[Hash],
        outliers: &[PeerId],
    ) -> Option<Vec<StateEvent>> {
        let remembers = self.spec.mirror.is_set();
        let (stage, training, plan) = self.plan_mut(index, epoch, attempt)?;
        if partitions.len() != stage.partitions || !plan.may_have_outliers(outliers) {
            return None;
        }
        let samples: u64 = plan.submitters.iter().map(|submission| u64::from(submission.samples)).sum();
        let loss_micro: Option<i64> =
            plan.submitters.iter().map(|s| s.loss_micro).try_fold(0_i64, |sum, loss| sum.checked_add(loss?));
        let loss = loss_micro.map(|sum| merge::mean_nats(sum, samples));
        let closed = Closed { training, plan, partitions: partitions.to_vec() };
        let convicted = |peer| self.evicted.get(&peer).is_some_and(|reason| reason.is_proven());
        self.checks.draw(&self.spec.validation, index, &closed, outliers, convicted);
        self.scores.merged(&self.spec.scores, index, epoch, worked(&closed));
        self.have_evaluated(&closed);
        let disputed: Vec<Epoch> = self.checks.disputed(index).collect();
        self.stages.get_mut(index.as_usize())?.settle(closed, remembers, &disputed);
        self.checks.expire(index, epoch.next());
        self.end_limits(index, epoch.next());
        let stood_out = (!outliers.is_empty()).then(|| StateEvent::StoodOut(index, epoch, outliers.to_vec()));
        Some([StateEvent::Merged(index, epoch, samples, loss)].into_iter().chain(stood_out).collect())
    }
}

/// What each member did of what it was dealt. When an epoch was cut off, it may be others' fault that something is left.
fn worked(closed: &Closed) -> Vec<Work> {
    let submissions = closed.plan.submitters.iter();
    let done: BTreeMap<PeerId, u32> =
        submissions.map(|submission| (submission.peer, submission.samples)).collect();
    let dealt = closed.training.deal.counts().into_iter();
    dealt
        .map(|(peer, dealt)| {
            let samples = done.get(&peer).copied().unwrap_or(0);
            Work::of(peer, samples, if closed.training.cut_off { samples } else { dealt })
        })
        .collect()
}

#[cfg(test)]
mod tests;
