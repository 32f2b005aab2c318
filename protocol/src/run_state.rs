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

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::id::{Epoch, Hash, LogIndex, PartitionIndex, PeerId, RunId, StageIndex};
use crate::limits::{CLOSED_EPOCHS_KEPT, REPLICAS_MAX, WIRE_VERSION_FIRST};
use crate::merge;
use crate::samples::{Deal, epoch_samples};
use crate::spec::RunSpec;
use crate::wire::message::{Decision, Entry, EvictReason, Submission};

/// Something that a decision changed, for the driver to report.
#[derive(Clone, Debug, PartialEq)]
pub enum StateEvent {
    /// A miner joined a stage.
    Admitted(PeerId, StageIndex),
    /// A miner lost its place.
    Evicted(PeerId, EvictReason),
    /// A miner went to another stage.
    Moved(PeerId, StageIndex),
    /// An epoch began with this many members.
    EpochOpened(StageIndex, Epoch, usize),
    /// A member was taken out of an epoch.
    Released(StageIndex, Epoch, PeerId),
    /// An epoch was cut off.
    CutOff(StageIndex, Epoch),
    /// An epoch was passed over; the weights stay.
    Skipped(StageIndex, Epoch),
    /// A merge was planned with this many submitters.
    Planned(StageIndex, Epoch, u16, usize),
    /// A partition got a further owner.
    Reassigned(StageIndex, Epoch, PartitionIndex, PeerId),
    /// A plan was given up.
    Aborted(StageIndex, Epoch, Vec<PeerId>),
    /// A merge closed over this many samples, with their mean loss in nats if the stage is the tail.
    Merged(StageIndex, Epoch, u64, Option<f64>),
    /// The run goes on in this wire version.
    Upgraded(u16),
    /// The run is over.
    Finished,
}

/// An epoch under way.
#[derive(Clone, Debug)]
pub struct Training {
    /// Its number.
    pub epoch: Epoch,
    /// Hash of the weights it started from.
    pub base: Hash,
    /// The log entry that opened it: its identity, since an epoch can be opened again after its stage emptied.
    pub opened: LogIndex,
    /// Who handles which sample.
    pub deal: Deal,
    /// Number of the next merge plan.
    pub attempt: u16,
    /// Whether members should submit what they have.
    pub cut_off: bool,
}

/// A merge under way.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its number within the epoch.
    pub attempt: u16,
    /// Whose contributions, in [`PeerId`] order.
    pub submitters: Vec<Submission>,
    /// Owners of each partition, first those drawn, then those added.
    pub owners: Vec<Vec<PeerId>>,
}

/// A merge that is done.
#[derive(Clone, Debug)]
pub struct Closed {
    /// The epoch, with its final deal.
    pub training: Training,
    /// The plan that was carried out.
    pub plan: Plan,
    /// The merged partitions; none if the epoch was passed over.
    pub partitions: Vec<Hash>,
}

/// What a stage is doing.
#[derive(Clone, Debug)]
pub enum Phase {
    /// For miners with the right weights, or for nothing more if it has finished its last epoch.
    Waiting,
    /// An epoch.
    Training(Training),
    /// A merge.
    Merging(Training, Plan),
}

/// A stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Merges done; also the version of the weights and the number of the current or next epoch.
    pub version: Epoch,
    /// What it is doing.
    pub phase: Phase,
    /// The newest merges done, oldest first.
    pub closed: VecDeque<Closed>,
    /// Partitions of its flat vector.
    pub partitions: usize,
}

impl Stage {
    /// The epoch under way, training or merging.
    #[must_use]
    pub const fn training(&self) -> Option<&Training> {
        match &self.phase {
            Phase::Waiting => None,
            Phase::Training(training) | Phase::Merging(training, _) => Some(training),
        }
    }

    /// The merge under way.
    #[must_use]
    pub const fn plan(&self) -> Option<(&Training, &Plan)> {
        match &self.phase {
            Phase::Merging(training, plan) => Some((training, plan)),
            _ => None,
        }
    }

    /// The epoch of this number, under way or lately closed.
    #[must_use]
    pub fn epoch(&self, epoch: Epoch) -> Option<&Training> {
        let current = self.training().filter(|training| training.epoch == epoch);
        current.or_else(|| self.closed_epoch(epoch).map(|closed| &closed.training))
    }

    /// Its deal.
    #[must_use]
    pub fn deal(&self, epoch: Epoch) -> Option<&Deal> {
        self.epoch(epoch).map(|training| &training.deal)
    }

    /// Goes on to the next version.
    fn settle(&mut self, closed: Closed) {
        self.version = closed.training.epoch.next();
        self.phase = Phase::Waiting;
        self.closed.push_back(closed);
        while self.closed.len() > CLOSED_EPOCHS_KEPT {
            self.closed.pop_front();
        }
    }

    /// The merge that closed `epoch`, if it is still remembered.
    #[must_use]
    pub fn closed_epoch(&self, epoch: Epoch) -> Option<&Closed> {
        self.closed.iter().find(|closed| closed.training.epoch == epoch)
    }
}

/// The state of a run.
#[derive(Clone, Debug)]
pub struct RunState {
    spec: Arc<RunSpec>,
    run: RunId,
    applied: u64,
    wire_version: u16,
    members: BTreeMap<PeerId, StageIndex>,
    evicted: BTreeMap<PeerId, EvictReason>,
    stages: Vec<Stage>,
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
        let stage = |&count: &usize| Stage {
            version: Epoch(0),
            phase: Phase::Waiting,
            closed: VecDeque::new(),
            partitions: spec.partitions(count),
        };
        Self {
            run: spec.run_id(),
            applied: 0,
            wire_version: WIRE_VERSION_FIRST,
            members: BTreeMap::new(),
            evicted: BTreeMap::new(),
            stages: parameters.iter().map(stage).collect(),
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

    /// One stage.
    #[must_use]
    pub fn stage(&self, stage: StageIndex) -> Option<&Stage> {
        self.stages.get(stage.as_usize())
    }

    /// All miners with their stages.
    #[must_use]
    pub const fn members(&self) -> &BTreeMap<PeerId, StageIndex> {
        &self.members
    }

    /// The miners of one stage, in [`PeerId`] order.
    pub fn replicas(&self, stage: StageIndex) -> impl Iterator<Item = PeerId> + '_ {
        self.members.iter().filter(move |(_, s)| **s == stage).map(|(peer, _)| *peer)
    }

    /// The stage of `peer`.
    #[must_use]
    pub fn stage_of(&self, peer: PeerId) -> Option<StageIndex> {
        self.members.get(&peer).copied()
    }

    /// Why `peer` last lost its place, if it is not a member now.
    #[must_use]
    pub fn eviction(&self, peer: PeerId) -> Option<EvictReason> {
        self.evicted.get(&peer).copied()
    }

    /// Applies the entry at `index`, with the chain hash after it. A void entry changes nothing but the count.
    ///
    /// # Panics
    /// If entries are applied out of order, which is a bug of the caller.
    pub fn apply(&mut self, index: LogIndex, chain: Hash, entry: Option<&Entry>) -> Vec<StateEvent> {
        assert_eq!(index.0, self.applied, "entries are applied in order");
        self.applied += 1;
        entry.and_then(|entry| self.decide(index, chain, &entry.decision)).unwrap_or_default()
    }

    /// `None` means void.
    fn decide(&mut self, index: LogIndex, chain: Hash, decision: &Decision) -> Option<Vec<StateEvent>> {
        if self.finished || decision.since() > self.wire_version {
            return None;
        }
        match decision {
            Decision::Admit { peer, stage } => self.admit(*peer, *stage),
            Decision::Evict { peer, reason } => self.evict(*peer, *reason),
            Decision::Move { peer, stage } => self.relocate(*peer, *stage),
            Decision::OpenEpoch { stage, epoch, base, members } => {
                self.open(index, *stage, *epoch, *base, members)
            }
            Decision::Release { stage, epoch, peer } => self.release(*stage, *epoch, *peer),
            Decision::Cutoff { stage, epoch } => self.cut_off(*stage, *epoch),
            Decision::Skip { stage, epoch } => self.skip(*stage, *epoch),
            Decision::MergePlan { stage, epoch, attempt, submitters } => {
                self.plan(chain, *stage, *epoch, *attempt, submitters)
            }
            Decision::MergeReassign { stage, epoch, attempt, partition, owner } => {
                self.reassign(*stage, *epoch, *attempt, *partition, *owner)
            }
            Decision::MergeAbort { stage, epoch, attempt, lost } => {
                self.abort(*stage, *epoch, *attempt, lost)
            }
            Decision::MergeOutcome { stage, epoch, attempt, partitions } => {
                self.close(*stage, *epoch, *attempt, partitions)
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
        self.members.insert(peer, stage);
        Some(vec![StateEvent::Moved(peer, stage)])
    }

    fn admit(&mut self, peer: PeerId, stage: StageIndex) -> Option<Vec<StateEvent>> {
        let room = stage.as_usize() < self.stages.len() && self.replicas(stage).count() < REPLICAS_MAX;
        if !room || self.members.contains_key(&peer) {
            return None;
        }
        self.members.insert(peer, stage);
        self.evicted.remove(&peer);
        Some(vec![StateEvent::Admitted(peer, stage)])
    }

    fn evict(&mut self, peer: PeerId, reason: EvictReason) -> Option<Vec<StateEvent>> {
        let stage = self.members.remove(&peer)?;
        if self.evicted.len() >= crate::limits::BOOK_PEERS_MAX {
            self.evicted.pop_first();
        }
        self.evicted.insert(peer, reason);
        let stage = self.stages.get_mut(stage.as_usize())?;
        match &mut stage.phase {
            Phase::Training(training) => {
                if training.deal.is_live(peer) && !training.deal.release(peer) {
                    // It was the last one: the epoch starts over when the stage has a miner again.
                    stage.phase = Phase::Waiting;
                }
            }
            Phase::Merging(training, _) => {
                training.deal.release(peer);
            }
            Phase::Waiting => {}
        }
        Some(vec![StateEvent::Evicted(peer, reason)])
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
        let ours = members.iter().all(|(peer, _)| self.members.get(peer) == Some(&index));
        let (run, count, epochs) =
            (self.run, self.spec.training.samples_per_epoch, self.spec.training.epochs);
        let stage = self.stages.get_mut(index.as_usize())?;
        let waiting = matches!(stage.phase, Phase::Waiting) && epoch == stage.version && epoch.0 < epochs;
        if members.is_empty() || !ascending || !ours || !waiting {
            return None;
        }
        let deal = Deal::new(run, index, epoch, epoch_samples(epoch, count), members);
        stage.phase = Phase::Training(Training { epoch, base, opened, deal, attempt: 0, cut_off: false });
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
            stage.phase = Phase::Waiting;
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
        let plan = Plan { attempt: training.attempt, submitters: Vec::new(), owners: Vec::new() };
        self.stages.get_mut(index.as_usize())?.settle(Closed { training, plan, partitions: Vec::new() });
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
        stage.phase = Phase::Merging(training, Plan { attempt, submitters: submitters.to_vec(), owners });
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
        let submitted =
            lost.iter().all(|peer| plan.submitters.iter().any(|submission| submission.peer == *peer));
        if lost.is_empty() || !submitted {
            return None;
        }
        training.attempt = attempt.saturating_add(1);
        let emptied = lost.iter().any(|peer| training.deal.is_live(*peer) && !training.deal.release(*peer));
        stage.phase = if emptied { Phase::Waiting } else { Phase::Training(training) };
        Some(vec![StateEvent::Aborted(index, epoch, lost.to_vec())])
    }

    fn close(
        &mut self,
        index: StageIndex,
        epoch: Epoch,
        attempt: u16,
        partitions: &[Hash],
    ) -> Option<Vec<StateEvent>> {
        let (stage, training, plan) = self.plan_mut(index, epoch, attempt)?;
        if partitions.len() != stage.partitions {
            return None;
        }
        let samples: u64 = plan.submitters.iter().map(|submission| u64::from(submission.samples)).sum();
        let loss_micro: Option<i64> =
            plan.submitters.iter().map(|s| s.loss_micro).try_fold(0_i64, |sum, loss| sum.checked_add(loss?));
        let loss = loss_micro.map(|sum| merge::mean_nats(sum, samples));
        stage.settle(Closed { training, plan, partitions: partitions.to_vec() });
        Some(vec![StateEvent::Merged(index, epoch, samples, loss)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Candidate, OrchestratorSpec};

    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);
    const S: StageIndex = StageIndex(0);

    struct Fold(RunState);

    impl Fold {
        fn new() -> Self {
            let mut spec = RunSpec {
                orchestrator: OrchestratorSpec { candidates: vec![Candidate { peer: A, priority: 0 }] },
                ..RunSpec::default()
            };
            spec.pipeline.stages = 1;
            spec.training.epochs = 2;
            Self(RunState::new(Arc::new(spec), &[1000]))
        }

        fn apply(&mut self, decision: Decision) -> Vec<StateEvent> {
            let index = LogIndex(self.0.applied());
            self.0.apply(index, Hash::of(&index.0.to_le_bytes()), Some(&Entry { proposer: A, decision }))
        }

        fn opened() -> Self {
            let mut fold = Self::new();
            fold.apply(Decision::Admit { peer: A, stage: S });
            fold.apply(Decision::Admit { peer: B, stage: S });
            assert_eq!(fold.apply(open(0)), [StateEvent::EpochOpened(S, Epoch(0), 2)]);
            fold
        }
    }

    fn open(epoch: u32) -> Decision {
        Decision::OpenEpoch {
            stage: S,
            epoch: Epoch(epoch),
            base: Hash::default(),
            members: vec![(A, 1), (B, 1)],
        }
    }

    fn plan(attempt: u16, peers: &[PeerId]) -> Decision {
        let submission = |&peer: &PeerId| Submission {
            peer,
            manifest: Hash::default(),
            samples: 32,
            loss_micro: Some(32_000_000),
        };
        Decision::MergePlan {
            stage: S,
            epoch: Epoch(0),
            attempt,
            submitters: peers.iter().map(submission).collect(),
        }
    }

    fn outcome(fold: &Fold, attempt: u16) -> Decision {
        let partitions = vec![Hash::default(); fold.0.stages()[0].partitions];
        Decision::MergeOutcome { stage: S, epoch: Epoch(0), attempt, partitions }
    }

    #[test]
    fn an_epoch_runs_from_admission_to_the_next_version() {
        let mut fold = Fold::opened();
        assert_eq!(fold.apply(plan(0, &[A, B])), [StateEvent::Planned(S, Epoch(0), 0, 2)]);
        let close = outcome(&fold, 0);
        assert_eq!(fold.apply(close), [StateEvent::Merged(S, Epoch(0), 64, Some(1.0))]);
        assert_eq!(fold.0.stages()[0].version, Epoch(1));
        assert!(fold.0.stages()[0].closed_epoch(Epoch(0)).is_some());
    }

    #[test]
    fn decisions_that_do_not_fit_are_void() {
        let mut fold = Fold::opened();
        let close = outcome(&fold, 0);
        assert_eq!(fold.apply(close), [], "outcome without a plan");
        assert_eq!(fold.apply(open(0)), [], "opened twice");
        assert_eq!(fold.apply(plan(1, &[A])), [], "wrong attempt");
        assert_eq!(fold.apply(plan(0, &[B, A])), [], "not in peer order");
        assert_eq!(fold.apply(Decision::Admit { peer: A, stage: S }), [], "admitted twice");
        assert_eq!(fold.apply(Decision::Finish), [], "not done");
        let index = LogIndex(fold.0.applied());
        assert_eq!(fold.0.apply(index, Hash::default(), None), [], "undecodable");
    }

    #[test]
    fn the_wire_version_goes_up_by_one_at_a_time_and_never_down() {
        let mut fold = Fold::opened();
        for version in [0, 1, 3, u16::MAX] {
            assert_eq!(fold.apply(Decision::Upgrade { version }), [], "{version}");
        }
        assert_eq!(fold.0.wire_version(), 1);
        for version in [2, 3] {
            assert_eq!(fold.apply(Decision::Upgrade { version }), [StateEvent::Upgraded(version)]);
            assert_eq!(fold.apply(Decision::Upgrade { version }), [], "twice");
        }
        assert_eq!(fold.0.wire_version(), 3);
        assert!(fold.0.stages()[0].training().is_some(), "training goes on");
    }

    #[test]
    fn an_entry_of_a_later_version_is_void_until_that_version_is_decided() {
        let index = |fold: &Fold| LogIndex(fold.0.applied());
        // One program can decode the entry, the other cannot.
        let (mut knows, mut does_not) = (Fold::opened(), Fold::opened());
        assert_eq!(knows.apply(Decision::Second), []);
        let at = index(&does_not);
        assert_eq!(does_not.0.apply(at, Hash::of(&at.0.to_le_bytes()), None), []);
        assert_eq!(format!("{:?}", knows.0), format!("{:?}", does_not.0), "both hold the same state");

        assert_eq!(knows.apply(Decision::Upgrade { version: 2 }), [StateEvent::Upgraded(2)]);
        assert_eq!(knows.apply(Decision::Second), [StateEvent::Finished], "decided after the upgrade");
    }

    #[test]
    fn an_evicted_members_samples_move_and_the_last_eviction_ends_the_epoch() {
        let mut fold = Fold::opened();
        fold.apply(Decision::Evict { peer: A, reason: EvictReason::Silent });
        let deal = &fold.0.stages()[0].training().expect("training goes on").deal;
        assert_eq!(deal.samples_of(B).len(), 64);
        fold.apply(Decision::Evict { peer: B, reason: EvictReason::Silent });
        assert!(fold.0.stages()[0].training().is_none());
        assert_eq!(fold.0.eviction(B), Some(EvictReason::Silent));
        fold.apply(Decision::Admit { peer: A, stage: S });
        let again =
            Decision::OpenEpoch { stage: S, epoch: Epoch(0), base: Hash::default(), members: vec![(A, 1)] };
        assert_eq!(fold.apply(again), [StateEvent::EpochOpened(S, Epoch(0), 1)]);
    }

    #[test]
    fn a_miner_moves_between_epochs_and_never_leaves_a_stage_empty() {
        let mut spec = RunSpec {
            orchestrator: OrchestratorSpec { candidates: vec![Candidate { peer: A, priority: 0 }] },
            ..RunSpec::default()
        };
        spec.pipeline.stages = 2;
        let mut fold = Fold(RunState::new(Arc::new(spec), &[1000, 1000]));
        let other = StageIndex(1);
        let relocate = |peer| Decision::Move { peer, stage: other };
        assert_eq!(fold.apply(relocate(A)), [], "no member");
        fold.apply(Decision::Admit { peer: A, stage: S });
        assert_eq!(fold.apply(relocate(A)), [], "the last of its stage");
        fold.apply(Decision::Admit { peer: B, stage: S });
        assert_eq!(fold.apply(Decision::Move { peer: A, stage: S }), [], "it is there");
        fold.apply(open(0));
        assert_eq!(fold.apply(relocate(A)), [], "it takes part in an epoch");
        fold.apply(Decision::Release { stage: S, epoch: Epoch(0), peer: A });
        assert_eq!(fold.apply(relocate(A)), [StateEvent::Moved(A, other)]);
        assert_eq!((fold.0.stage_of(A), fold.0.stage_of(B)), (Some(other), Some(S)));
    }

    #[test]
    fn an_epoch_opens_again_when_all_its_members_are_released() {
        let mut fold = Fold::opened();
        let release = |peer| Decision::Release { stage: S, epoch: Epoch(0), peer };
        assert_eq!(fold.apply(release(A)), [StateEvent::Released(S, Epoch(0), A)]);
        assert_eq!(fold.apply(release(A)), [], "twice");
        assert_eq!(fold.apply(release(B)), [StateEvent::Released(S, Epoch(0), B)]);
        assert!(fold.0.stages()[0].training().is_none());
        assert_eq!(fold.apply(open(0)), [StateEvent::EpochOpened(S, Epoch(0), 2)]);
    }

    #[test]
    fn an_epoch_is_passed_over_only_if_it_was_cut_off_and_is_settled_beside() {
        let mut spec = RunSpec {
            orchestrator: OrchestratorSpec { candidates: vec![Candidate { peer: A, priority: 0 }] },
            ..RunSpec::default()
        };
        spec.pipeline.stages = 2;
        let mut fold = Fold(RunState::new(Arc::new(spec), &[1000, 1000]));
        let below = StageIndex(1);
        fold.apply(Decision::Admit { peer: A, stage: S });
        fold.apply(Decision::Admit { peer: B, stage: below });
        fold.apply(Decision::OpenEpoch {
            stage: S,
            epoch: Epoch(0),
            base: Hash::default(),
            members: vec![(A, 1)],
        });
        let opened = Decision::OpenEpoch {
            stage: below,
            epoch: Epoch(0),
            base: Hash::of(b"base"),
            members: vec![(B, 1)],
        };
        fold.apply(opened);
        let skip = Decision::Skip { stage: below, epoch: Epoch(0) };
        fold.apply(Decision::Cutoff { stage: below, epoch: Epoch(0) });
        assert_eq!(fold.apply(skip.clone()), [], "the stage above may still send what it takes");
        fold.apply(plan(0, &[A]));
        let close = outcome(&fold, 0);
        assert_ne!(fold.apply(close), []);
        assert_eq!(fold.apply(skip.clone()), [StateEvent::Skipped(below, Epoch(0))]);
        let stage = &fold.0.stages()[1];
        assert_eq!((stage.version, stage.training().is_none()), (Epoch(1), true));
        let closed = stage.closed_epoch(Epoch(0)).expect("remembered");
        assert_eq!((closed.training.base, closed.partitions.len()), (Hash::of(b"base"), 0));
        assert_eq!(fold.apply(skip), [], "twice");
    }

    #[test]
    fn an_aborted_plan_returns_to_training_without_the_lost() {
        let mut fold = Fold::opened();
        fold.apply(plan(0, &[A, B]));
        let abort = Decision::MergeAbort { stage: S, epoch: Epoch(0), attempt: 0, lost: vec![A] };
        assert_eq!(fold.apply(abort), [StateEvent::Aborted(S, Epoch(0), vec![A])]);
        assert_eq!(fold.apply(plan(0, &[B])), [], "the old attempt is over");
        assert_eq!(fold.apply(plan(1, &[A, B])), [], "the lost are released");
        assert_eq!(fold.apply(plan(1, &[B])), [StateEvent::Planned(S, Epoch(0), 1, 1)]);
    }
}
