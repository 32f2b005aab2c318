//! What the leader proposes: a function of the state, of what peers say of themselves, and of time.
//!
//! Every candidate keeps an [`Orchestrator`] up to date; only the leader's proposals go anywhere, and the others hold it to
//! theirs (`standby`). It is level-triggered: each call compares what is with what should be and proposes the difference, so
//! a new leader takes over in mid-epoch without being told anything. A proposal that turns out void is harmless.

mod balance;
mod checkpoints;
mod deadlines;
mod departures;
mod depositions;
mod doubts;
mod lapses;
mod losses;
mod queue;
mod readiness;
mod standby;
mod upgrade;
pub(crate) mod verdicts;
mod waits;
mod weighing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use balance::{Balance, Parting};
use checkpoints::Checkpoints;
use departures::Departures;
use doubts::Doubts;
use lapses::Lapses;
use losses::Losses;
use queue::Queue;
use readiness::Readiness;
use standby::Standby;
use upgrade::Upgrade;
use verdicts::Verdicts;
use waits::Waits;
use weighing::Weighing;

use crate::equivocation::{Equivocation, Watch};
use crate::gauntlet::evaluation::Evaluation;
use crate::id::{Epoch, Hash, PartitionIndex, PeerId, StageIndex};
use crate::limits::{
    ANNOUNCE_HEARTBEATS_MAX, PANEL, PROPOSALS_PENDING_BYTES_MAX, PROPOSALS_PENDING_MAX, RESCUE_SILENCES,
    STALLED_SILENCES,
};
use crate::merge::agreement::{AgreementMatrix, Tally, Verdict as OwnersVerdict};
use crate::merge::evidence::{Evidence, SignedReport, witnesses};
use crate::pace::{Smoothed, leader_patience, proposal_repeat};
use crate::peer::admission::Occupancy;
use crate::peer::book::Book;
use crate::run_state::{Closed, Phase, Plan, RunState, Stage, Training};
use crate::samples::sample_set_hash;
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::validation::{Verdict, is_drawn, outliers_max};
use crate::wire::encode;
use crate::wire::gossip::{HashedManifest, Signed};
use crate::wire::message::{Decision, EvictReason, Submission};

/// Largest weight of a member in a deal; the fastest has it, the others a share. Coarse, so that the
/// noise of a measurement does not unbalance equal machines.
const WEIGHT_MAX: f64 = 8.0;
/// Multiples of the epoch deadline after which the epoch is cut off. One later a quorum of submissions is merged, two later
/// whatever there is. If there is nothing, another deadline later the epoch is opened again, or passed over.
///
/// A stage beside which the epoch has been settled is cut off one deadline from then on, or as soon as for
/// [`STALLED_SILENCES`] nothing more got done; and as much later it merges what there is or passes the epoch over.
/// What it lacks then will not come, and a stage that waited as long as the others wait for it would never be in step
/// with them again: where a tail has settled alone, each stage above waits for the one below.
const CUTOFF_DEADLINES: u32 = 2;

/// What may be proposed before what was proposed earlier is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Decisions.
    pub decisions: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Room {
    /// What proposals of these sizes, which are not decided, leave.
    pub fn beside(pending: impl Iterator<Item = usize>) -> Self {
        let all = Self { decisions: PROPOSALS_PENDING_MAX, bytes: PROPOSALS_PENDING_BYTES_MAX };
        pending.fold(all, |room, bytes| Self {
            decisions: room.decisions.saturating_sub(1),
            bytes: room.bytes.saturating_sub(bytes),
        })
    }

    /// Takes room for a decision of so many bytes, if there is.
    const fn take(&mut self, bytes: usize) -> bool {
        let fits = self.decisions > 0 && self.bytes >= bytes;
        if fits {
            (self.decisions, self.bytes) = (self.decisions - 1, self.bytes - bytes);
        }
        fits
    }
}

/// The leader's mind.
#[derive(Debug, Default)]
pub struct Orchestrator {
    proposed: BTreeMap<Hash, Instant>,
    waits: Waits,
    readiness: Readiness,
    manifests: BTreeMap<(StageIndex, PeerId), Arc<HashedManifest>>,
    tallies: BTreeMap<(StageIndex, Epoch, u16), Tally>,
    agreement: BTreeMap<StageIndex, AgreementMatrix>,
    balance: Balance,
    departures: Departures,
    watch: Watch,
    queue: Queue,
    checkpoints: Checkpoints,
    losses: Losses,
    lapses: Lapses,
    weighing: Weighing,
    doubts: Doubts,
    verdicts: Verdicts,
    upgrade: Upgrade,
    standby: Standby,
    /// What this candidate draws by, and nobody else knows.
    lot: Hash,
    /// Since when this candidate could have heard of anybody: its start, or its return from a pause.
    listening_since: Option<Instant>,
    /// When it came to lead, if it leads.
    leads_since: Option<Instant>,
    /// The round trip to the nearest majority of candidates; nothing before it was measured.
    round_trip: Option<Smoothed>,
}

impl Orchestrator {
    /// The mind of a candidate that draws by `lot`, which nobody else knows.
    #[must_use]
    pub fn new(lot: Hash) -> Self {
        Self { lot, ..Self::default() }
    }

    /// How often two peers' redundant results of a stage were equal.
    #[must_use]
    pub fn agreement(&self, stage: StageIndex) -> Option<&AgreementMatrix> {
        self.agreement.get(&stage)
    }

    /// Who waits for a place, the first first, if no stage has room.
    #[must_use]
    pub fn queue(&self, state: &RunState) -> Vec<PeerId> {
        self.queue.told(state)
    }

    /// Takes a miner's commitment. The newest of a peer and stage stands; an honest peer sends another only
    /// when samples were dealt to it anew.
    pub fn handle_manifest(&mut self, submitted: Arc<HashedManifest>) {
        let manifest = &submitted.manifest;
        self.manifests.insert((manifest.stage, manifest.peer), submitted);
    }

    /// An epoch of a stage opened. Contributions to an earlier epoch, or to this one before its stage emptied, are void:
    /// whoever made them has started over.
    pub fn handle_opened(&mut self, stage: StageIndex) {
        self.manifests.retain(|(of, _), _| *of != stage);
    }

    /// Takes an owner's results.
    pub fn handle_digest(&mut self, owner: PeerId, signed: &Arc<SignedReport>) {
        let report = &signed.report;
        self.tallies.entry((report.stage, report.epoch, report.attempt)).or_default().add(owner, signed);
    }

    /// Compares a signed message with others of its sender, and with what it may say. Whether that convicts it.
    pub(crate) fn watch(&mut self, state: &RunState, signed: Signed<'_>) -> bool {
        let overstates = self.doubts.note(state, signed);
        self.watch.note(state, signed) || overstates
    }

    /// Two messages of this peer that convict it, if it was heard to sign two under one number.
    pub(crate) fn conviction(&self, peer: PeerId) -> Option<&Equivocation> {
        self.watch.conviction(peer)
    }

    /// Takes an evaluation that the log waits for.
    pub fn handle_evaluation(&mut self, evaluation: Evaluation) {
        self.verdicts.handle_evaluation(evaluation);
    }

    /// Takes a validator's verdict that the log waits for.
    pub fn handle_verdict(&mut self, verdict: Verdict) {
        self.verdicts.handle(verdict);
    }

    /// After this process was not running or not connected for a while, everybody looks late. Starts all waits anew.
    pub fn handle_pause(&mut self, now: Instant) {
        self.listening_since = Some(now);
        self.upgrade.handle_pause();
        self.waits.restart(now);
        self.readiness.handle_pause();
        self.losses.restart(now);
        self.standby.restart();
    }

    /// This candidate has just come to lead. What it proposed when it led before was decided or dropped meanwhile, and
    /// whom it did not hear may have been heard by the one who led. How long stages have been at what they do it knows
    /// from [`follow`](Self::follow): leaders that follow upon each other faster than a deadline do not put it off.
    pub fn handle_leadership(&mut self, now: Instant) {
        self.listening_since = Some(now);
        self.leads_since = Some(now);
        self.upgrade.handle_pause();
        self.proposed.clear();
        self.standby.restart();
    }

    /// How long messages to the nearest majority of candidates take, and their answers.
    pub(crate) const fn handle_round_trip(&mut self, round_trip: Option<Smoothed>) {
        self.round_trip = round_trip;
    }

    /// Looks on while another candidate leads, or nobody does. Returns what this leader has left undone for longer than any
    /// should, if it has.
    pub fn follow(
        &mut self,
        now: Instant,
        state: &RunState,
        book: &Book,
        leader: Option<PeerId>,
    ) -> Option<Decision> {
        self.leads_since = None;
        self.observe(now, state, book);
        if state.finished() || !self.is_connected(now, state, book) {
            self.handle_pause(now);
            return None;
        }
        if !self.standby.is_due(now) {
            return None;
        }
        let wanted = self.wanted_anew(now, state, book);
        let (heartbeat, patience) = self.patience(state, book);
        let undone = self.standby.note(now, heartbeat, leader, wanted, patience);
        if undone.is_some() {
            self.standby.restart();
        }
        undone
    }

    /// How often a stand-by looks what is undone, and how long that may stay so under one leader.
    fn patience(&self, state: &RunState, book: &Book) -> (Duration, Duration) {
        let timing = &state.spec().timing;
        let silence = book.ordinary_silence(timing.eviction.duration());
        let merges =
            state.spec().stages().map(|stage| deadlines::merge(state, self.waits.usual_merge(stage)));
        (timing.heartbeat.duration(), leader_patience(silence, merges.max().unwrap_or_default()))
    }

    /// Whether it has led for so long that whatever was announced to the last leader was announced again.
    fn is_informed(&self, now: Instant, state: &RunState) -> bool {
        let heartbeat = state.spec().timing.heartbeat.duration();
        let informed = |since: Instant| now.since(since) >= heartbeat * (ANNOUNCE_HEARTBEATS_MAX + 1);
        self.leads_since.is_none_or(informed)
    }

    /// Whether this candidate hears a majority of the candidates. One that does not has lost its own connection, as far as
    /// it can know, and nobody else is at fault for being silent.
    ///
    /// Each is waited for half as long as it may be silent: if its records come at long intervals that is one of them, and a candidate
    /// that waited less would start its waits anew for ever.
    fn is_connected(&self, now: Instant, state: &RunState, book: &Book) -> bool {
        let eviction = state.spec().timing.eviction.duration();
        hears_majority(now, state, book, |peer| book.patience(peer, eviction) / 2)
    }

    /// What should be decided now, most urgent first, as far as there is room.
    pub fn propose(&mut self, now: Instant, state: &RunState, book: &Book, room: Room) -> Vec<Decision> {
        // Who proposes leads, if it was not told since when, then always.
        self.leads_since.get_or_insert(Instant::ZERO);
        self.observe(now, state, book);
        if state.finished() {
            return Vec::new();
        }
        if !self.is_connected(now, state, book) {
            self.handle_pause(now);
            return Vec::new();
        }
        if self.standby.is_due(now) {
            let wanted = self.wanted_anew(now, state, book);
            let (heartbeat, patience) = self.patience(state, book);
            self.standby.note_own(now, heartbeat, wanted, patience);
        }
        let mut wanted = self.wanted(now, state, book);
        let repeat = proposal_repeat(self.round_trip);
        let mut room = room;
        wanted.retain(|decision| {
            let bytes = encode(decision);
            let key = Hash::of(&bytes);
            let due = self.proposed.get(&key).is_none_or(|at| now.since(*at) >= repeat);
            let proposes = due && room.take(bytes.len());
            if proposes {
                self.proposed.insert(key, now);
            }
            proposes
        });
        self.proposed.retain(|_, at| now.since(*at) < repeat * 4);
        wanted
    }

    /// What should be decided now, if nothing of it were under way.
    fn wanted_anew(&mut self, now: Instant, state: &RunState, book: &Book) -> Vec<Decision> {
        let under_way = std::mem::take(&mut self.balance);
        let wanted = self.wanted(now, state, book);
        self.balance = under_way;
        wanted
    }

    /// What should be decided now, but for places that are given and not decided.
    fn wanted(&mut self, now: Instant, state: &RunState, book: &Book) -> Vec<Decision> {
        let listening_since = *self.listening_since.get_or_insert(now);
        let eviction = state.spec().timing.eviction.duration();
        // Members may be less patiently waited for than the candidates. If it has not heard a majority of these for half of the least
        // that anybody is waited for, the connection may be lost: until it hears one again it takes nobody for silent.
        let hears = hears_majority(now, state, book, |_| eviction / 2);
        let listening_since = if hears { listening_since } else { now };
        let repeat = proposal_repeat(self.round_trip);
        let mut wanted = self.departures.decisions(now, listening_since, state, book, repeat);
        wanted.extend(self.watch.decisions(state));
        wanted.extend(self.doubts.evictions(state));
        if self.weighing.is_doubted() {
            wanted.extend(doubts::limits(state, book));
        }
        wanted.extend(depositions::decisions(state, book));
        let mut occupancy = Occupancy::of(state, book, self.verdicts.enlisting(now, state, repeat));
        self.balance.forget(now, state, repeat);
        wanted.extend(self.balance.admissions(now, state, book, &self.queue.in_order(), &mut occupancy));
        wanted.extend(self.upgrade.decision(now, listening_since, state, book));
        wanted.extend(self.checkpoints.decision(now, state, book));
        wanted.extend(self.losses.decisions(now, state, book));
        wanted.extend(self.verdicts.decisions(now, listening_since, state, book, &mut occupancy));
        let begun = balance::begun(state);
        wanted.extend(self.stages(now, state, book, begun));
        if begun {
            let patience = book.ordinary_silence(eviction) * RESCUE_SILENCES;
            let waits = &self.waits;
            let waited = |stage| waits.waited(now, stage) >= patience;
            wanted.extend(self.balance.rescue(now, state, book, waited));
        }
        if self.is_over(now, state, book) {
            wanted.push(Decision::Finish);
        }
        wanted
    }

    /// What takes each stage further.
    fn stages(&mut self, now: Instant, state: &RunState, book: &Book, begun: bool) -> Vec<Decision> {
        let mut wanted = Vec::new();
        for (index, stage) in state.spec().stages().zip(state.stages()) {
            match &stage.phase {
                Phase::Waiting if stage.version.0 >= state.spec().training.epochs => {}
                Phase::Waiting => {
                    let relief = self.balance.relief(now, state, book, index, begun);
                    wanted.extend(match relief.or_else(|| departures::kick(state, book, index)) {
                        Some(Parting::Decide(decision)) => Some(decision),
                        Some(Parting::Wait) => None,
                        None => self.open(now, state, book, index, stage),
                    });
                }
                Phase::Training(training) => wanted.extend(self.training(now, state, book, index, training)),
                Phase::Merging(training, plan) => {
                    wanted.extend(self.merging(now, state, index, training, plan))
                }
            }
        }
        wanted
    }

    /// Whether nothing is left to be done in the run, and nothing to be waited for.
    pub fn is_over(&self, now: Instant, state: &RunState, book: &Book) -> bool {
        checkpoints::is_trained(state)
            && !self.checkpoints.is_awaited(now, state, book)
            && !self.verdicts.delay_the_end(now, state)
    }

    /// Notes when each stage began what it is doing, and forgets what is over.
    fn observe(&mut self, now: Instant, state: &RunState, book: &Book) {
        let manifests = &self.manifests;
        self.waits.observe(now, state, |stage, training| done(manifests, book, stage, training));
        self.readiness.observe(now, state, book);
        self.checkpoints.observe(now, state, book);
        self.losses.observe(now, state, book);
        self.lapses.observe(state);
        self.weighing.observe(now, state);
        if self.doubts.observe(state) {
            self.weighing.handle_liar_gone(state);
        }
        self.queue.observe(now, state, book);
        self.verdicts.observe(now, state);
        self.watch.observe(state);
        let version = |stage: StageIndex| state.stage(stage).map(|stage| stage.version);
        self.manifests.retain(|(stage, _), submitted| {
            version(*stage).is_some_and(|version| submitted.manifest.epoch >= version)
        });
        let finished: Vec<_> = self
            .tallies
            .keys()
            .filter(|(stage, epoch, _)| version(*stage).is_none_or(|version| *epoch < version))
            .copied()
            .collect();
        for key in finished {
            self.settle(key, state);
        }
    }

    /// Moves a finished plan's comparisons into the agreement matrix.
    fn settle(&mut self, key: (StageIndex, Epoch, u16), state: &RunState) {
        let Some(tally) = self.tallies.remove(&key) else { return };
        let closed = state.stage(key.0).and_then(|stage| stage.closed_epoch(key.1));
        if let Some(closed) = closed.filter(|closed| closed.plan.attempt == key.2) {
            self.agreement.entry(key.0).or_default().record(&tally.pairs(&closed.plan.owners));
        }
    }

    /// Opens the next epoch of a waiting stage, once its miners agree on the weights to start from.
    fn open(
        &self,
        now: Instant,
        state: &RunState,
        book: &Book,
        index: StageIndex,
        stage: &Stage,
    ) -> Option<Decision> {
        if !started(state, book) {
            return None;
        }
        let mut ready: BTreeMap<Hash, Vec<PeerId>> = BTreeMap::new();
        let mut expected = 0_usize;
        for peer in state.replicas(index).filter(|peer| !book.leaves(*peer)) {
            let Some(weights) = book.weights(peer).filter(|weights| weights.stage == index) else {
                continue;
            };
            if weights.version == stage.version {
                ready.entry(weights.hash).or_default().push(peer);
            } else if is_coming(stage, peer, weights.version) {
                expected += 1;
            }
        }
        let waited_enough =
            || self.waits.waited(now, index) >= deadlines::ready(state, self.readiness.usual(index));
        if expected > 0 && !waited_enough() {
            return None;
        }
        let (base, peers) =
            ready.into_iter().max_by_key(|(hash, peers)| (peers.len(), std::cmp::Reverse(*hash)))?;
        let partaking = self.lapses.partaking(index, stage.version, peers);
        let members = weigh(&partaking, index, state, book, self.weighing.is_even(stage.version));
        Some(Decision::OpenEpoch { stage: index, epoch: stage.version, base, members })
    }

    /// Plans the merge once all members that have samples have submitted; past the deadline releases those who have not.
    fn training(
        &self,
        now: Instant,
        state: &RunState,
        book: &Book,
        index: StageIndex,
        training: &Training,
    ) -> Vec<Decision> {
        let spec = state.spec();
        let (stage, epoch) = (index, training.epoch);
        let live = training.deal.handling();
        let (waited, overtaken) = (self.waits.waited(now, index), self.waits.overtaken(now, index));
        let deadline = deadlines::epoch(state, book, training, waited.max(overtaken));
        let silence = book.ordinary_silence(spec.timing.eviction.duration());
        let missing = live.iter().any(|peer| !self.manifests.contains_key(&(index, *peer)));
        let stalled = self.waits.is_stalled(now, index, silence * STALLED_SILENCES);
        let early = waited < deadline && !training.cut_off && !stalled;
        if missing && !training.cut_off && self.waits.is_still(now, silence * STALLED_SILENCES) {
            let stuck = self.stuck(state, book, index, &live);
            if !stuck.is_empty() && self.is_informed(now, state) {
                return stuck.into_iter().map(|peer| Decision::Release { stage, epoch, peer }).collect();
            }
        }
        if missing && (early || !self.is_informed(now, state)) {
            // Somebody is still at work, as is most often so: what the others submitted is looked at when it matters.
            return Vec::new();
        }
        let submissions: Vec<Submission> =
            live.iter().filter_map(|peer| self.submission(index, training, *peer)).collect();
        let plan = |submitters: Vec<Submission>| {
            let submitters: Vec<_> =
                submitters.into_iter().filter(|submission| submission.samples > 0).collect();
            let decision = Decision::MergePlan {
                stage,
                epoch,
                attempt: training.attempt,
                submitters: submitters.clone(),
            };
            (!submitters.is_empty()).then_some(decision)
        };
        if submissions.len() == live.len() {
            return plan(submissions).into_iter().collect();
        }
        let quorum = quorum(spec.merge.quorum, live.len());
        let hopeless = overtaken >= deadline * 2 || stalled;
        let enough = waited >= deadline * (CUTOFF_DEADLINES + 1) && submissions.len() >= quorum
            || waited >= deadline * (CUTOFF_DEADLINES + 2)
            || hopeless;
        if training.cut_off && enough && !submissions.is_empty() {
            return plan(submissions).into_iter().collect();
        }
        if training.cut_off && (hopeless || waited >= deadline * (CUTOFF_DEADLINES + 3)) {
            // Nobody has anything: what they wait for went to processes that are gone. If a stage beside has settled the
            // epoch, nobody will send it again; else it starts over.
            if state.settled_beside(stage, epoch) {
                return vec![Decision::Skip { stage, epoch }];
            }
            return live.into_iter().map(|peer| Decision::Release { stage, epoch, peer }).collect();
        }
        if !training.cut_off && (waited >= deadline * CUTOFF_DEADLINES || overtaken >= deadline || stalled) {
            return vec![Decision::Cutoff { stage, epoch }];
        }
        if waited >= deadline && submissions.len() >= quorum {
            let done: BTreeSet<PeerId> = submissions.iter().map(|submission| submission.peer).collect();
            return live
                .into_iter()
                .filter(|peer| !done.contains(peer))
                .map(|peer| Decision::Release { stage, epoch, peer })
                .collect();
        }
        Vec::new()
    }

    /// Those of the `live` members of a stage that have got nothing done, if they are at most half of them. Where nothing gets done any more, they are
    /// what the others wait for, whether they keep what they take to themselves or cannot send it on.
    fn stuck(&self, state: &RunState, book: &Book, index: StageIndex, live: &[PeerId]) -> Vec<PeerId> {
        let version = state.stage(index).map(|stage| stage.version);
        let idle = |peer: &&PeerId| {
            let submitted = self.manifests.contains_key(&(index, **peer));
            let says = book.record(**peer).filter(|record| {
                record.weights.is_some_and(|held| held.stage == index && Some(held.version) == version)
            });
            !submitted && says.is_some_and(|record| record.done == 0)
        };
        let stuck: Vec<PeerId> = live.iter().filter(idle).copied().collect();
        if stuck.len() * 2 <= live.len() { stuck } else { Vec::new() }
    }

    /// The submission of `peer`, if its manifest fits the epoch as it stands: same base, and no samples
    /// beyond those dealt to it. Before a cutoff it must have been made for all samples dealt to it.
    fn submission(&self, index: StageIndex, training: &Training, peer: PeerId) -> Option<Submission> {
        let HashedManifest { manifest, hash } = &**self.manifests.get(&(index, peer))?;
        let dealt = training.deal.samples_of(peer);
        let complete = training.cut_off || manifest.dealt == sample_set_hash(&dealt);
        let fits = manifest.epoch == training.epoch
            && manifest.base == training.base
            && manifest.samples as usize <= dealt.len();
        (fits && complete).then(|| Submission::of(manifest, *hash))
    }

    /// Whether one more owner computes a partition on which those drawn agree: a share of all, of which nobody knows beforehand
    /// which they are.
    fn audits(&self, spec: &RunSpec, plan: &Plan, partition: PartitionIndex) -> bool {
        let owners = plan.owners.get(partition.0 as usize).map_or(0, Vec::len);
        let drawn =
            Hash::of_parts(&[b"iota/v1/audit\0", &self.lot.0, &plan.seed.0, &partition.0.to_le_bytes()]);
        // What another leader draws, nobody knows.
        let leads = self.leads_since.is_some();
        leads && owners <= usize::from(spec.merge.redundancy) && is_drawn(drawn, spec.merge.audit_share)
    }

    /// Closes the merge once every partition is agreed on; finds other owners where it cannot be.
    fn merging(
        &self,
        now: Instant,
        state: &RunState,
        stage: StageIndex,
        training: &Training,
        plan: &Plan,
    ) -> Vec<Decision> {
        let (epoch, attempt) = (training.epoch, plan.attempt);
        let deadline = deadlines::merge(state, self.waits.usual_merge(stage));
        // A leader that has just taken over has not heard of what is not announced again yet.
        let waited =
            if self.is_informed(now, state) { self.waits.waited(now, stage) } else { Duration::ZERO };
        let empty = Tally::default();
        let tally = self.tallies.get(&(stage, epoch, attempt)).unwrap_or(&empty);

        let gone = |peer: PeerId| state.stage_of(peer).is_none();
        let witnesses = witnesses(plan.submitters.len());
        let invalid = tally.invalid(witnesses);
        let mut lost: BTreeSet<PeerId> = invalid.iter().copied().collect();
        lost.extend(tally.unavailable().into_iter().filter(|&peer| gone(peer) || waited >= deadline));
        if waited >= deadline * 3 {
            lost.extend(plan.submitters.iter().map(|submission| submission.peer).filter(|&peer| gone(peer)));
        }
        lost.retain(|peer| plan.has(*peer));
        if !lost.is_empty() {
            let found = invalid.into_iter().map(|peer| (peer, tally.invalidity(peer, witnesses)));
            let mut decisions = convictions(EvictReason::InvalidContribution, found);
            decisions.push(Decision::MergeAbort { stage, epoch, attempt, lost: lost.into_iter().collect() });
            return decisions;
        }

        let reassign = |partition: PartitionIndex, owners: &[PeerId], count: usize| -> Vec<Decision> {
            let further = further_owners(state, stage, plan, partition, owners).into_iter().take(count);
            further.map(|owner| Decision::MergeReassign { stage, epoch, attempt, partition, owner }).collect()
        };
        let mut agreed = Vec::new();
        let mut decisions = Vec::new();
        let mut liars = BTreeMap::new();
        for (i, owners) in plan.owners.iter().enumerate() {
            let partition = PartitionIndex(u32::try_from(i).unwrap_or(u32::MAX));
            // Each further owner gets the whole deadline again.
            let patience = deadline * u32::try_from(owners.len().max(1)).unwrap_or(1);
            match tally.judge(partition, owners, |owner| gone(owner) || waited >= patience) {
                OwnersVerdict::Agreed(hash, losers) => {
                    let more = if losers.is_empty() {
                        usize::from(self.audits(state.spec(), plan, partition))
                    } else {
                        // Who is outvoted by two or three may be honest, and they accomplices.
                        PANEL.saturating_sub(owners.len())
                    };
                    let asked = reassign(partition, owners, more);
                    if asked.is_empty() {
                        agreed.push(hash);
                        for liar in losers.into_iter().filter(|peer| !gone(*peer)) {
                            let evidence = || tally.contradiction(partition, liar, hash, owners);
                            liars.entry(liar).or_insert_with(evidence);
                        }
                    }
                    decisions.extend(asked);
                }
                OwnersVerdict::Pending => {}
                OwnersVerdict::NeedsOwner => decisions.extend(reassign(partition, owners, 1)),
                OwnersVerdict::Disputed => {
                    let count = PANEL.saturating_sub(owners.len()).max(1);
                    decisions.extend(reassign(partition, owners, count));
                }
            }
        }
        decisions.extend(convictions(EvictReason::WrongMerge, liars));
        if agreed.len() == plan.owners.len() {
            let outliers = tally.outliers(outliers_max(plan.submitters.len()));
            decisions.push(Decision::MergeOutcome { stage, epoch, attempt, partitions: agreed, outliers });
        }
        decisions
    }
}

/// Evictions of those against whom there is evidence. Without, they would be void.
fn convictions(
    reason: EvictReason,
    accused: impl IntoIterator<Item = (PeerId, Option<Evidence>)>,
) -> Vec<Decision> {
    let founded = accused.into_iter().filter(|(_, evidence)| evidence.is_some());
    founded.map(|(peer, evidence)| Decision::Evict { peer, reason, evidence }).collect()
}

/// The replicas of `stage` that say they hold its newest weights.
fn holders(state: &RunState, book: &Book, stage: StageIndex) -> impl Iterator<Item = PeerId> {
    let newest = state.stage(stage).map(|of| (stage, of.version));
    state.replicas(stage).filter(move |peer| {
        let weights = book.weights(*peer);
        weights.is_some_and(|weights| Some((weights.stage, weights.version)) == newest)
    })
}

/// A number that changes whenever the epoch of `stage` gets on.
fn done(
    manifests: &BTreeMap<(StageIndex, PeerId), Arc<HashedManifest>>,
    book: &Book,
    stage: StageIndex,
    training: &Training,
) -> u64 {
    let live = || training.deal.live();
    let members = live().count() as u64;
    let samples = live().filter_map(|peer| book.record(peer)).map(|record| u64::from(record.done));
    let submitted = live().filter(|peer| manifests.contains_key(&(stage, *peer))).count() as u64;
    samples.sum::<u64>() + submitted + u64::from(training.cut_off) + (members << 32)
}

/// Whether a replica that says it has this version of its stage's weights may have the newest in a moment: that is the version before, or
/// it contributed to the newest, whatever its last record says.
fn is_coming(stage: &Stage, peer: PeerId, says: Epoch) -> bool {
    let merged = stage.closed.back().filter(|closed| closed.training.epoch.next() == stage.version);
    let contributed = |closed: &Closed| {
        closed.plan.submitters.binary_search_by_key(&peer, |submission| submission.peer).is_ok()
    };
    says < stage.version && (says.next() == stage.version || merged.is_some_and(contributed))
}

/// Whether a majority of the candidates was heard, each within `patience` of it.
fn hears_majority(
    now: Instant,
    state: &RunState,
    book: &Book,
    patience: impl Fn(PeerId) -> Duration,
) -> bool {
    let candidates = &state.spec().orchestrator.candidates;
    let heard = candidates.iter().filter(|of| book.hears(now, of.peer, patience(of.peer)));
    heard.count() > candidates.len() / 2
}

/// How many of `members` make a quorum of share `share`: at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a small count"
)]
fn quorum(share: f64, members: usize) -> usize {
    ((share * members as f64).ceil() as usize).max(1)
}

/// Whether the run has begun, or every stage has the miners it waits for.
fn started(state: &RunState, book: &Book) -> bool {
    let ready = |stage: StageIndex| {
        let has_some = |peer: &PeerId| book.weights(*peer).is_some_and(|weights| weights.stage == stage);
        let replicas = state.replicas(stage).filter(has_some);
        replicas.count() >= usize::from(state.spec().pipeline.start_replicas)
    };
    balance::begun(state) || state.spec().stages().all(ready)
}

/// Members of `stage` with weights in proportion to their measured speed, within its limit; equal if any of them is unmeasured,
/// or if all are to get the same.
fn weigh(
    peers: &[PeerId],
    stage: StageIndex,
    state: &RunState,
    book: &Book,
    even: bool,
) -> Vec<(PeerId, u32)> {
    let speed =
        |peer: &PeerId| Some(book.speed(*peer, stage)?.newest().min(f64::from(state.speed_max(*peer))));
    let speeds: Option<Vec<f64>> = peers.iter().map(speed).collect();
    let speeds = speeds.filter(|_| !even).unwrap_or_else(|| vec![1.0; peers.len()]);
    let fastest = speeds.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let weight = |speed: f64| (speed / fastest * WEIGHT_MAX).round().clamp(1.0, WEIGHT_MAX);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 1 to the largest weight"
    )]
    let mut members: Vec<(PeerId, u32)> =
        peers.iter().zip(speeds).map(|(peer, speed)| (*peer, weight(speed) as u32)).collect();
    members.sort_unstable();
    members
}

/// Other peers to compute a partition: first those who contributed to the merge and so were there a moment ago, then others of the same
/// stage, then any miner. Their order among themselves is drawn from what was submitted, so that nobody can choose a key that is
/// always asked first.
fn further_owners(
    state: &RunState,
    stage: StageIndex,
    plan: &Plan,
    partition: PartitionIndex,
    owners: &[PeerId],
) -> Vec<PeerId> {
    let submitted: Vec<&[u8]> =
        plan.submitters.iter().map(|submission| submission.manifest.0.as_slice()).collect();
    let seed = Hash::of_parts(&submitted);
    let mut others: Vec<PeerId> =
        state.members().keys().copied().filter(|peer| !owners.contains(peer)).collect();
    others.sort_by_cached_key(|peer| {
        let drawn = Hash::of_parts(&[&seed.0, &partition.0.to_le_bytes(), &peer.0]);
        let submitted = plan.submitters.binary_search_by_key(peer, |submission| submission.peer);
        (submitted.is_err(), state.stage_of(*peer) != Some(stage), drawn)
    });
    others
}

#[cfg(test)]
pub(crate) mod tests;
