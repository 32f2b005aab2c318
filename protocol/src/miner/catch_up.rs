//! The way to the right weights: the state that an earlier process left, the merge just closed, the whole state from the
//! replicas, or, where nobody has it any more, the newest checkpoint in the mirror and the merges since.
//!
//! All replicas hold the same state in the same parts, so a state that one of them offers is fetched from several at once:
//! each part is asked of another first. A blob without providers is one that only the mirror has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::job::Job;
use super::outbox::Kept;
use super::{Context, Purpose, backed_off};
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::{GOSSIP_BYTES_MAX, PARTITION_BYTES_MAX, TRANSFER_DEADLINE};
use crate::peer::book::Book;
use crate::run_state::{Checkpoint, Closed, RunState, Stage};
use crate::time::Instant;
use crate::wire::decode;
use crate::wire::message::{LackRecord, StateOffer, WeightsRecord};

/// Blobs fetched at once.
const FETCHES_AT_ONCE: usize = 16;
/// Blobs fetched at once for each provider there is: one is on its way while the next is asked for. With more of them none
/// would be here within a transfer's deadline over the uplink of a home.
const FETCHES_PER_PROVIDER: usize = 2;
/// Replicas that one state is fetched from at once. Each serves a few at a time, and a few fill a downlink.
const PROVIDERS_MAX: usize = 8;
/// Heartbeats in which nobody is heard of who holds a stage's weights, before the mirror is asked.
const ALONE_HEARTBEATS: u32 = 3;
/// Most parts of a state. With the largest partition that is 256 GiB.
const STATE_PARTS_MAX: usize = 4096;

/// A blob of the current aim.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    aim: u64,
    index: usize,
    /// What its tag names.
    pub(super) kept: Kept,
}

#[derive(Clone, Debug, Default)]
enum Aim {
    /// The weights are right, or nothing can be done yet.
    #[default]
    None,
    /// The merged partitions of an epoch whose start we hold.
    Outcome(StageIndex, Epoch, Transfer),
    /// An answer of a replica.
    Asking(StageIndex, Epoch, Instant),
    /// The offer of a state that the mirror has.
    Mirrored(StageIndex, Epoch, Transfer),
    /// The parts of the state that was offered.
    State(StateOffer, Transfer),
    /// The state on this peer's own disk.
    Recovered,
    /// The engine is at it.
    Engine,
}

/// Blobs to fetch.
#[derive(Clone, Debug, Default)]
struct Transfer {
    blobs: Vec<Hash>,
    /// Who may have each, best first.
    providers: Vec<Vec<PeerId>>,
    have: BTreeSet<usize>,
    in_flight: BTreeSet<usize>,
    /// Where it starts in the circle of the blobs, and how many it has asked for.
    first: usize,
    started: usize,
    failed: bool,
}

/// The machine that gets the right weights.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    aim: Aim,
    aims: u64,
    kept: Option<Kept>,
    /// Whom to ask next, so that a replica that does not answer is not asked for ever.
    turn: usize,
    provider: Option<PeerId>,
    retry_at: Instant,
    pause: Duration,
    /// Whether a replica's state is tried before the outcome of a merge. Changes with each aim that was not reached.
    state_first: bool,
    /// Aims that were not reached since the engine last took weights.
    failures: usize,
    /// Since when nobody was heard of who holds what is looked for.
    alone_since: Option<Instant>,
    /// The merge that it looked for in vain since the engine last took weights.
    lacks: Option<LackRecord>,
    /// What an earlier process left, until it was tried or something newer is here.
    recovered: Option<StateOffer>,
}

impl Transfer {
    fn new(blobs: Vec<Hash>, providers: Vec<Vec<PeerId>>) -> Self {
        Self { blobs, providers, ..Self::default() }
    }

    /// The next blob that was not asked for yet.
    fn start_next(&mut self) -> Option<(usize, Hash)> {
        let count = self.blobs.len();
        if self.started == count {
            return None;
        }
        let index = (self.first + self.started) % count;
        self.started += 1;
        Some((index, self.blobs[index]))
    }

    /// Blobs to fetch at once. One that only the mirror has is as good as any other.
    fn at_once(&self) -> usize {
        let providers: BTreeSet<&PeerId> = self.providers.iter().flatten().collect();
        match providers.len() {
            0 => FETCHES_AT_ONCE,
            count => FETCHES_AT_ONCE.min(count * FETCHES_PER_PROVIDER),
        }
    }

    fn complete(&self) -> bool {
        self.have.len() == self.blobs.len()
    }
}

impl CatchUp {
    /// Starts from a state that an earlier process left on disk.
    pub(super) fn recover(&mut self, state: StateOffer) {
        self.recovered = Some(state);
    }

    /// The state that an earlier process left, as long as it was not tried.
    pub(super) const fn recovered(&self) -> Option<&StateOffer> {
        self.recovered.as_ref()
    }

    /// The merge that it looked for in vain.
    pub(super) const fn lacks(&self) -> Option<LackRecord> {
        self.lacks
    }

    fn set(&mut self, aim: Aim) {
        self.aims += 1;
        self.kept = match &aim {
            Aim::Outcome(stage, epoch, _) => Some(Kept::Epoch(*stage, *epoch)),
            Aim::Mirrored(stage, version, _) => Some(Kept::State(*stage, *version)),
            Aim::State(offer, _) => Some(Kept::State(offer.stage, offer.version)),
            Aim::Engine => self.kept,
            Aim::None | Aim::Asking(..) | Aim::Recovered => None,
        };
        self.aim = aim;
    }

    /// Chooses an aim if the weights are not right, and fetches what it needs.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        me: PeerId,
        weights: Option<WeightsRecord>,
        transfers: &mut BTreeMap<u64, Purpose>,
    ) {
        let place = cx.state.stage_of(me).and_then(|index| cx.state.stage(index).map(|stage| (index, stage)));
        let (Some((index, stage)), Some(weights)) = (place, weights) else { return };
        self.drop_outdated(index, stage);
        if matches!(self.aim, Aim::None) && cx.now >= self.retry_at {
            self.choose(cx, me, index, stage, weights);
        }
        self.fetch(cx, transfers);
    }

    fn drop_outdated(&mut self, index: StageIndex, stage: &Stage) {
        let current = match &self.aim {
            Aim::None | Aim::Recovered | Aim::Engine => true,
            // If it was undone, what was merged is looked for no more.
            Aim::Outcome(stage_index, epoch, transfer) => {
                let leads = || stage.outcomes.iter().any(|outcome| outcome.epoch == *epoch);
                *stage_index == index
                    && (epoch.next() == stage.version || leads() || stage.remembers_since(*epoch))
                    && stage.merge_of(*epoch).is_some_and(|(_, partitions)| partitions == transfer.blobs)
            }
            Aim::Asking(stage_index, version, _) => *stage_index == index && *version == stage.version,
            Aim::Mirrored(stage_index, version, _) => *stage_index == index && *version <= stage.version,
            Aim::State(offer, _) => {
                let newest = offer.version == stage.version || stage.leads_on(offer.version, offer.weights);
                offer.stage == index && newest
            }
        };
        if !current {
            self.set(Aim::None);
        }
    }

    fn choose(
        &mut self,
        cx: &mut Context<'_>,
        me: PeerId,
        index: StageIndex,
        stage: &Stage,
        weights: WeightsRecord,
    ) {
        let wrong_base = stage
            .training()
            .is_some_and(|training| training.epoch == weights.version && training.base != weights.hash);
        if weights.version == stage.version && !wrong_base {
            return;
        }
        let holds = |peer: &PeerId| {
            *peer != me
                && cx.book.weights(*peer).is_some_and(|theirs| {
                    theirs.stage == index
                        && theirs.version == stage.version
                        && !(wrong_base && theirs.hash == weights.hash)
                })
        };
        let holders = holders(cx.state, cx.book, index, holds);
        let alone = self.is_alone(cx, &holders);
        // One that is of no use now may be once more of the log is here.
        if self.recovered.as_ref().is_some_and(|state| is_useful(state, index, stage, alone)) {
            self.set(Aim::Recovered);
            return;
        }
        // One merge, or several if nobody has the newest state: after they were passed over there is no other way.
        let leads = weights.version.next() == stage.version
            || holders.is_empty() && stage.remembers_since(weights.version);
        let closed = stage
            .closed_epoch(weights.version)
            .filter(|closed| closed.training.base == weights.hash && leads);
        // The owners of the outcome may all have lost it. Then those who have applied it offer the whole state.
        if let Some(closed) = closed.filter(|_| !self.state_first || holders.is_empty()) {
            self.set(Aim::Outcome(index, weights.version, outcome_transfer(closed, me)));
            return;
        }
        if alone && self.choose_mirror(cx.state, index, stage, weights) {
            return;
        }
        // Those who lack it begin with different replicas, so that not all of them ask the same one first.
        let first =
            me.0.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        if let Some(peer) = holders.get(first.wrapping_add(self.turn) % holders.len().max(1)) {
            self.turn = self.turn.wrapping_add(1);
            self.provider = Some(*peer);
            cx.out.request_state(*peer, index, stage.version);
            self.set(Aim::Asking(index, stage.version, cx.now + TRANSFER_DEADLINE));
        } else {
            // Who holds them says so within a part of a heartbeat to one who is new.
            self.retry_at = cx.now + cx.state.spec().timing.heartbeat.duration() / 4;
        }
    }

    /// Whether nobody serves the newest state: all who hold it were asked in vain, or for a while nobody was heard of who
    /// does.
    fn is_alone(&mut self, cx: &Context<'_>, holders: &[PeerId]) -> bool {
        if !holders.is_empty() {
            self.alone_since = None;
            return self.failures >= holders.len();
        }
        let since = *self.alone_since.get_or_insert(cx.now);
        cx.now.since(since) >= cx.state.spec().timing.heartbeat.duration() * ALONE_HEARTBEATS
    }

    /// Goes on from a checkpoint: by the next merge, if the weights held lead to the newest, else by its state. Returns
    /// whether there is a way.
    fn choose_mirror(
        &mut self,
        state: &RunState,
        index: StageIndex,
        stage: &Stage,
        weights: WeightsRecord,
    ) -> bool {
        if let Some(outcome) = stage.outcome(weights.version, weights.hash) {
            let transfer = Transfer::new(outcome.partitions.clone(), Vec::new());
            self.set(Aim::Outcome(index, outcome.epoch, transfer));
            return true;
        }
        let Some(Checkpoint { epoch, stages, .. }) = state.checkpoint() else { return false };
        let leads = *epoch == stage.version || stage.outcomes.iter().any(|outcome| outcome.epoch == *epoch);
        let Some(offer) = stages.get(index.as_usize()).filter(|_| leads) else { return false };
        self.set(Aim::Mirrored(index, *epoch, Transfer::new(vec![*offer], Vec::new())));
        true
    }

    fn fetch(&mut self, cx: &mut Context<'_>, transfers: &mut BTreeMap<u64, Purpose>) {
        let aim_number = self.aims;
        let (transfer, limit, deliver) = match &mut self.aim {
            Aim::Outcome(_, _, transfer) | Aim::State(_, transfer) => (transfer, PARTITION_BYTES_MAX, false),
            Aim::Mirrored(_, _, transfer) => (transfer, GOSSIP_BYTES_MAX, true),
            Aim::Asking(_, _, until) => {
                if cx.now >= *until {
                    self.fail(cx.now);
                }
                return;
            }
            Aim::None | Aim::Recovered | Aim::Engine => return,
        };
        let Some(kept) = self.kept else { return };
        let at_once = transfer.at_once();
        while transfer.in_flight.len() < at_once && !transfer.failed {
            let Some((index, hash)) = transfer.start_next() else { break };
            let providers =
                transfer.providers.get(index).or(transfer.providers.first()).cloned().unwrap_or_default();
            let id = cx.out.fetch_mirrored(hash, providers, limit, deliver, kept.to_string());
            transfer.in_flight.insert(index);
            transfers.insert(id, Purpose::CatchUp(Want { aim: aim_number, index, kept }));
        }
        if transfer.failed && transfer.in_flight.is_empty() {
            self.fail(cx.now);
        }
    }

    /// What the blobs are kept for that it fetches, or that the engine reads.
    pub(super) const fn needs(&self) -> Option<Kept> {
        self.kept
    }

    fn fail(&mut self, now: Instant) {
        if let Aim::Outcome(stage, epoch, _) = self.aim {
            self.lacks = Some(LackRecord { stage, epoch });
        }
        self.state_first = !self.state_first;
        self.failures += 1;
        self.pause = backed_off(self.pause);
        self.retry_at = now + self.pause;
        self.set(Aim::None);
    }

    /// A fetch has ended, with these bytes if they were asked for.
    pub(super) fn fetched(&mut self, now: Instant, want: Want, bytes: Option<&[u8]>) {
        if want.aim != self.aims {
            return;
        }
        if let Aim::Mirrored(stage, version, _) = self.aim {
            let offer = bytes.and_then(|bytes| decode::<StateOffer>(bytes, GOSSIP_BYTES_MAX).ok());
            self.offered(now, stage, version, offer, |_| Vec::new());
        } else if let Aim::Outcome(_, _, transfer) | Aim::State(_, transfer) = &mut self.aim {
            transfer.in_flight.remove(&want.index);
            if bytes.is_some() {
                transfer.have.insert(want.index);
            } else {
                transfer.failed = true;
            }
        }
    }

    /// A replica has answered. Others that hold the same weights serve the same parts.
    pub(super) fn answered(&mut self, cx: &Context<'_>, me: PeerId, offer: Option<StateOffer>) {
        let Aim::Asking(stage, version, _) = self.aim else { return };
        let first = self.provider;
        self.offered(cx.now, stage, version, offer, |offer| {
            let same = |peer: &PeerId| {
                *peer != me && Some(*peer) != first && cx.book.weights(*peer) == Some(offer.record())
            };
            let others = holders(cx.state, cx.book, stage, same);
            first.into_iter().chain(others).take(PROVIDERS_MAX).collect()
        });
    }

    /// A state was offered, or not.
    fn offered(
        &mut self,
        now: Instant,
        stage: StageIndex,
        version: Epoch,
        offer: Option<StateOffer>,
        providers: impl FnOnce(&StateOffer) -> Vec<PeerId>,
    ) {
        let usable = offer.filter(|offer| {
            offer.stage == stage
                && offer.version == version
                && !offer.parts.is_empty()
                && offer.parts.len() <= STATE_PARTS_MAX
        });
        let Some(offer) = usable else { return self.fail(now) };
        let mut providers = providers(&offer);
        let in_turn = offer.parts.iter().map(|_| {
            let these = providers.clone();
            providers.rotate_left(1.min(these.len()));
            these
        });
        let transfer = Transfer::new(offer.parts.clone(), in_turn.collect());
        self.set(Aim::State(offer, transfer));
    }

    /// The job that the fetched blobs allow.
    pub(super) fn job(&mut self) -> Option<Job> {
        let load = |offer: &StateOffer| Job::Load {
            stage: offer.stage,
            version: offer.version,
            weights: offer.weights,
            parts: offer.parts.clone(),
            moments: None,
        };
        let job = match &self.aim {
            Aim::Outcome(stage, epoch, transfer) if transfer.complete() => {
                Job::Apply { stage: *stage, epoch: *epoch, partitions: transfer.blobs.clone() }
            }
            Aim::State(offer, transfer) if transfer.complete() => load(offer),
            Aim::Recovered => load(&self.recovered.take()?),
            _ => return None,
        };
        self.set(Aim::Engine);
        Some(job)
    }

    /// The engine has weights of this version.
    pub(super) fn finished(&mut self, version: Epoch) {
        if version > Epoch(0) {
            self.recovered = None;
        }
        self.lacks = None;
        self.pause = Duration::ZERO;
        self.state_first = false;
        (self.failures, self.alone_since) = (0, None);
        self.retry_at = Instant::ZERO;
        self.set(Aim::None);
    }

    /// The engine could not use them.
    pub(super) fn failed(&mut self, now: Instant) {
        self.fail(now);
    }

    /// When there is something to do again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.aim {
            Aim::Asking(_, _, until) => Some(*until),
            Aim::None if self.retry_at > Instant::ZERO => Some(self.retry_at),
            _ => None,
        }
    }
}

/// Those among a stage's replicas who hold what is asked for, or if there are none, among all peers: those who have lost
/// their places have not lost their weights.
fn holders(
    state: &RunState,
    book: &Book,
    stage: StageIndex,
    holds: impl Fn(&PeerId) -> bool + Copy,
) -> Vec<PeerId> {
    let holders: Vec<PeerId> = state.replicas(stage).filter(holds).collect();
    if holders.is_empty() { book.records().map(|(peer, _)| peer).filter(holds).collect() } else { holders }
}

/// Whether a state is the newest of its stage, or the one that the last merge started from, or, if nobody else has any, one
/// that merges in the mirror lead on from.
fn is_useful(state: &StateOffer, index: StageIndex, stage: &Stage, alone: bool) -> bool {
    let merged = || {
        let closed = stage.closed_epoch(state.version).map(|closed| closed.training.base);
        closed == Some(state.weights) && state.version.next() == stage.version
    };
    let current = stage.training().is_none_or(|training| training.base == state.weights);
    let leads = || alone && stage.leads_on(state.version, state.weights);
    state.stage == index && (state.version == stage.version && current || merged() || leads())
}

/// The merged partitions of a closed epoch, each from its owners. Replicas start at different partitions and with
/// different owners, so that they do not all ask the same one at the same time.
fn outcome_transfer(closed: &Closed, me: PeerId) -> Transfer {
    let place = closed.plan.submitters.partition_point(|submission| submission.peer < me);
    let providers = closed.plan.owners.iter().map(|owners| {
        let mut others: Vec<PeerId> = owners.iter().copied().filter(|owner| *owner != me).collect();
        let turn = place % others.len().max(1);
        others.rotate_left(turn);
        others
    });
    let first = place * closed.partitions.len() / closed.plan.submitters.len().max(1);
    let first = first % closed.partitions.len().max(1);
    Transfer { first, ..Transfer::new(closed.partitions.clone(), providers.collect()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Identity, LogIndex, RunId};
    use crate::miner::Outbox;
    use crate::run_state::{Plan, Training};
    use crate::samples::Deal;
    use crate::spec::RunSpec;
    use crate::wire::message::{Decision, Entry};

    const STAGE: StageIndex = StageIndex(0);
    const BASE: Hash = Hash([7; 32]);
    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    /// A stage that has come to version 4, of which these merges are remembered, passed over after the fact.
    fn undone(me: PeerId, remembered: &[u32]) -> RunState {
        let mut spec = RunSpec::default();
        spec.pipeline.stages = 1;
        let mut state = RunState::new(Arc::new(spec), &[10]);
        let admit = Entry { proposer: me, decision: Decision::Admit { peer: me, stage: STAGE } };
        state.apply(LogIndex(0), Hash::default(), Some(&admit));
        let stage = &mut state.stages_mut()[0];
        stage.version = Epoch(4);
        stage.closed = remembered
            .iter()
            .map(|&epoch| {
                let (epoch, attempt) = (Epoch(epoch), 0);
                let deal = Deal::new(Hash::default(), STAGE, epoch, 0..4, &[(me, 1)]);
                let opened = LogIndex(0);
                let training = Training { epoch, base: BASE, opened, deal, attempt, cut_off: false };
                let (seed, submitters, owners) = (Hash::default(), Vec::new(), Vec::new());
                let plan = Plan { attempt, seed, submitters, owners };
                Closed { training, plan, partitions: Vec::new() }
            })
            .collect();
        state
    }

    /// Which epoch's outcome who holds the weights of `version` goes on by, where nobody is heard of.
    fn goes_on_by(version: u32, remembered: &[u32]) -> Option<u32> {
        let identity = Identity::from_secret([1; 32]);
        let me = identity.peer();
        let (state, book) = (undone(me, remembered), Book::default());
        let mut out = Outbox::new(identity, RunId([0; 32]));
        let mut cx = Context { now: NOW, state: &state, book: &book, out: &mut out };
        let weights = WeightsRecord { stage: STAGE, version: Epoch(version), hash: BASE };
        let mut catch_up = CatchUp::default();
        catch_up.pump(&mut cx, me, Some(weights), &mut BTreeMap::new());
        match catch_up.aim {
            Aim::Outcome(_, epoch, transfer) if transfer.complete() => Some(epoch.0),
            _ => None,
        }
    }

    #[test]
    fn who_is_two_passed_over_merges_behind_goes_on_by_one_after_the_other() {
        assert_eq!(goes_on_by(2, &[2, 3]), Some(2));
        assert_eq!(goes_on_by(3, &[2, 3]), Some(3));
        assert_eq!(goes_on_by(1, &[1, 3]), None, "one between is forgotten");
        assert_eq!(goes_on_by(4, &[2, 3]), None, "it has the newest");
    }
}
