//! A miner: holds one stage, handles the samples dealt to it, merges.
//!
//! The machine is level-triggered. [`Miner::pump`] compares the [`RunState`] with what is under way and
//! emits whatever is missing: transfers, messages, and one [`Job`] at a time for the engine. Its parts:
//! [`work`] is the epoch's samples and how each passes through, [`merging`] the partitions it owns,
//! [`catch_up`] the way to the right weights, `restore` that to the work of an earlier process; `follow` says what the log
//! starts and ends, `engine` which job is next.
//!
//! **Invariant:** a sample is accumulated at most once by a miner, and handled only by the replica it is
//! dealt to. Everything that may have to be sent again is kept by its hash until the epoch is settled.

pub mod catch_up;
mod engine;
mod follow;
pub mod job;
pub mod merging;
mod mirror;
pub mod outbox;
mod proof;
mod restore;
pub mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_bytes::ByteBuf;

pub use job::{Applied, Job, JobDone, Sketched, Tensor};
pub use outbox::{Action, Kept, Notice, Outbox};

use crate::id::{Epoch, Hash, PeerId, SampleId, StageIndex};
use crate::limits::{
    ANNOUNCE_HEARTBEATS_MAX, HELD_ACTIVATIONS_MAX, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN, TRANSFER_DEADLINE,
};
use crate::peer::book::Book;
use crate::peer::room::Room;
use crate::receipts::Received;
use crate::run_state::RunState;
use crate::spec::{Bottleneck, RunSpec};
use crate::time::Instant;
use crate::wire::frame::{Direction, PushAck, PushHeader, PushRefusal};
use crate::wire::gossip::HashedManifest;
use crate::wire::message::{
    LackRecord, ManifestAnnounce, MergeMessage, MirrorRecord, StateOffer, WeightsRecord,
};

use catch_up::CatchUp;
use engine::Pace;
use merging::MergeWork;
use mirror::Mirroring;
use restore::Restore;
use work::{EpochWork, Share};

/// Manifests remembered until their merge is done. One per member and attempt.
const MANIFESTS_KEPT: usize = 2048;
/// Peers that fetch a state from here at a time. Whoever has it becomes a provider itself, so a stage of *n* is served in
/// log *n* rounds, while *n* transfers at once over one uplink would all take longer than a transfer may.
const STATE_SERVED_MAX: usize = 4;

/// What a machine may look at and write to while it handles an input.
pub struct Context<'a> {
    /// The time.
    pub now: Instant,
    /// The fold of the log.
    pub state: &'a RunState,
    /// What peers say of themselves.
    pub book: &'a Book,
    /// Where actions go.
    pub out: &'a mut Outbox,
}

/// What a transfer under way is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Push(Direction, Epoch, SampleId),
    Merge(StageIndex, merging::Want),
    /// A merge's that is over or planned anew.
    Unwanted(Kept),
    CatchUp(catch_up::Want),
    Restore(restore::Want),
    /// Of the state that a checkpoint needs.
    Mirror,
    /// Of the moments that go with it.
    MirrorMoments,
    /// Of a contribution's receipts and its manifest, which has this hash.
    Commit(Epoch, Hash),
}

/// The state of a miner.
pub struct Miner {
    me: PeerId,
    spec: Arc<RunSpec>,
    /// The stage the engine is built for.
    engine: Option<StageIndex>,
    /// The job the engine is doing, and since when.
    busy: Option<(Job, Instant)>,
    /// Whether the engine holds traces of an epoch that was given up.
    dirty: bool,
    /// When the engine is asked again after a job failed.
    rests_until: Instant,
    /// Whether it does nothing for want of room on its disk.
    halted: bool,
    weights: Option<WeightsRecord>,
    works: BTreeMap<Epoch, EpochWork>,
    /// Forwarded activations for epochs that have not opened here yet.
    held: BTreeMap<(Epoch, SampleId), Received>,
    merges: BTreeMap<StageIndex, MergeWork>,
    manifests: BTreeMap<Hash, Arc<HashedManifest>>,
    catch_up: CatchUp,
    restore: Restore,
    mirroring: Mirroring,
    /// What blobs may be kept here for, whoever put them: own work, a merge for any stage, catching up.
    kept: BTreeSet<Kept>,
    /// The state that the next process would start from.
    remembered: Option<WeightsRecord>,
    /// State offers asked for: ticket of the request.
    snapshot_asked: VecDeque<u64>,
    offer: Option<StateOffer>,
    /// The states before the newest, for whoever checks the epochs that started from them.
    offers_before: Vec<StateOffer>,
    /// Who was offered the state and may be fetching it, until when.
    serving: BTreeMap<PeerId, Instant>,
    transfers: BTreeMap<u64, Purpose>,
    credit: BTreeMap<PeerId, u16>,
    sequence: u64,
    pace: Pace,
    tokens: u64,
    announce_due: Instant,
    /// Time from the next announcement to the one after it.
    announce_pause: Duration,
    news: bool,
    /// Whether it has forgotten what it had taken, and not said so.
    forgot: bool,
    /// Entries of the log whose effect on deliveries was considered.
    followed: u64,
    /// Epochs settled of all stages together, when what they left was last let go of.
    settled: u64,
}

impl Miner {
    /// A miner that holds nothing yet. `sequence` is the number before its first merge message.
    #[must_use]
    pub fn new(me: PeerId, spec: Arc<RunSpec>, sequence: u64) -> Self {
        Self {
            me,
            spec,
            engine: None,
            busy: None,
            dirty: false,
            rests_until: Instant::ZERO,
            halted: false,
            weights: None,
            works: BTreeMap::new(),
            held: BTreeMap::new(),
            merges: BTreeMap::new(),
            manifests: BTreeMap::new(),
            catch_up: CatchUp::default(),
            restore: Restore::default(),
            mirroring: Mirroring::default(),
            kept: BTreeSet::new(),
            remembered: None,
            snapshot_asked: VecDeque::new(),
            offer: None,
            offers_before: Vec::new(),
            serving: BTreeMap::new(),
            transfers: BTreeMap::new(),
            credit: BTreeMap::new(),
            sequence,
            pace: Pace::default(),
            tokens: 0,
            announce_due: Instant::ZERO,
            announce_pause: Duration::ZERO,
            news: false,
            forgot: true,
            followed: 0,
            settled: 0,
        }
    }

    /// Takes over what earlier processes left on disk: the state last [remembered](Action::Remember), and blobs with
    /// these tags.
    pub fn recover(&mut self, out: &mut Outbox, state: Option<StateOffer>, tags: BTreeSet<String>) {
        for tag in tags {
            match Kept::parse(&tag) {
                Some(kept) => {
                    self.kept.insert(kept);
                    self.restore.recover(kept);
                }
                None => out.release(tag),
            }
        }
        if let Some(state) = state {
            self.remembered = Some(state.record());
            self.catch_up.recover(state);
        }
    }

    /// The state that the next process would start from, if one is on disk.
    #[must_use]
    pub const fn remembered(&self) -> Option<WeightsRecord> {
        self.remembered
    }

    /// The weights it holds, or has on disk from an earlier process and will hold once it has its place.
    #[must_use]
    pub fn has(&self) -> Option<WeightsRecord> {
        self.weights.or_else(|| self.catch_up.recovered().map(StateOffer::record))
    }

    /// The weights it holds.
    #[must_use]
    pub const fn weights(&self) -> Option<WeightsRecord> {
        self.weights
    }

    /// What the blobs are kept for that it fetches, or that its engine reads, to get the right weights.
    #[must_use]
    pub const fn catches_up_by(&self) -> Option<Kept> {
        self.catch_up.needs()
    }

    /// Whether it brings this state to the mirror, or will.
    #[must_use]
    pub fn mirrors(&self, stage: StageIndex, version: Epoch) -> bool {
        self.mirroring.needs(stage, version)
    }

    /// The merge that it looked for in vain, if it still needs it.
    #[must_use]
    pub const fn lacks(&self) -> Option<LackRecord> {
        self.catch_up.lacks()
    }

    /// What it has seen in the mirror, if the run has one and it ever tried.
    #[must_use]
    pub fn mirror(&self) -> Option<MirrorRecord> {
        self.mirroring.record()
    }

    /// Tokens of samples finished here, counted at the tail.
    #[must_use]
    pub const fn tokens(&self) -> u64 {
        self.tokens
    }

    /// (finished, dealt) samples of the newest epoch, and the sum of their losses in millionths of a nat.
    #[must_use]
    pub fn progress(&self) -> Option<(StageIndex, Epoch, Share)> {
        self.works.values().next_back().map(|work| (work.stage, work.epoch, work.share()))
    }

    /// Forward activations it can still take.
    #[must_use]
    pub fn credits(&self) -> u16 {
        if self.halted {
            return 0;
        }
        self.spec.pipeline.credits.saturating_sub(u16::try_from(self.open_inputs()).unwrap_or(u16::MAX))
    }

    /// Forwarded activations it holds and will still work on; what a settled epoch left over is none of them.
    #[must_use]
    pub fn open_inputs(&self) -> usize {
        let settled = self.weights.map_or(Epoch(0), |weights| weights.version);
        self.works.range(settled..).map(|(_, work)| work.open_inputs()).sum::<usize>() + self.held.len()
    }

    /// Thousandths of a sample per second, while computing; zero before it is measured.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturating cast of a positive rate"
    )]
    pub fn speed_milli(&self) -> u32 {
        let (Some(forward), Some(backward)) = (self.pace.forward, self.pace.backward) else { return 0 };
        let seconds = forward + backward;
        if seconds > 0.0 { (1000.0 / seconds) as u32 } else { 0 }
    }

    /// Whether its record changed in a way others wait for. Reading it resets it.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Whether it has forgotten what others had pushed to it. Reading it resets it.
    pub fn take_forgot(&mut self) -> bool {
        std::mem::take(&mut self.forgot)
    }

    /// Whether it owns partitions of a merge under way.
    #[must_use]
    pub fn is_merging(&self) -> bool {
        !self.merges.is_empty()
    }

    /// Stages of which it owns partitions of a merge under way.
    pub fn merging(&self) -> impl Iterator<Item = StageIndex> + '_ {
        self.merges.keys().copied()
    }

    /// Whether the engine is idle and nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.busy.is_none() && self.transfers.is_empty()
    }

    /// Shape of an activation at a cut: `[sequences, context, channels]`.
    fn wire_shape(&self) -> [u32; 3] {
        let channels = match self.spec.model.bottleneck {
            Bottleneck::None => self.spec.model.width,
            Bottleneck::Width(width) => width,
        };
        [self.spec.training.sequences_per_sample, self.spec.model.context, channels]
    }

    /// Takes a manifest heard on the merge topic, so that its hash can be resolved later.
    pub fn handle_manifest(&mut self, submitted: Arc<HashedManifest>) {
        while self.manifests.len() >= MANIFESTS_KEPT {
            self.manifests.pop_first();
        }
        self.manifests.insert(submitted.hash, submitted);
    }

    /// Takes a pushed tensor whose payload was checked against its header.
    pub fn handle_push(&mut self, cx: &mut Context<'_>, from: PeerId, header: &PushHeader) -> PushAck {
        match self.admit_push(cx, from, header) {
            Ok(()) => {
                self.pump(cx);
                PushAck::Accepted(self.credits())
            }
            Err(refusal) => PushAck::Refused(refusal),
        }
    }

    fn admit_push(
        &mut self,
        cx: &mut Context<'_>,
        from: PeerId,
        header: &PushHeader,
    ) -> Result<(), PushRefusal> {
        if header.shape != self.wire_shape() || header.dtype != self.spec.pipeline.activation_dtype {
            return Err(PushRefusal::Shape);
        }
        if self.weights.is_none_or(|weights| weights.stage != header.stage) {
            return Err(PushRefusal::WrongStage);
        }
        if self.halted {
            // There may be room before its place is given to others.
            return Err(PushRefusal::Early);
        }
        if self.is_restoring(cx.state, header.stage, header.epoch) {
            // Which samples it did is being read. Whatever is answered before that may turn out wrong.
            return Err(PushRefusal::Early);
        }
        let received = header.received(from)?;
        // The log's version, not that of the weights held: a process that has started again holds old ones for a moment.
        let version = cx.state.stage(header.stage).map_or(Epoch(0), |stage| stage.version);
        let full = self.credits() == 0;
        let Some(work) = self.works.get_mut(&header.epoch) else {
            return match header.direction {
                _ if header.epoch < version => Err(PushRefusal::Stale),
                Direction::Backward => Err(PushRefusal::WrongPath),
                // Room to wait is for the stage above, which can be ahead by no more than the epoch being merged here.
                Direction::Forward if !is_above(cx.state, from, header.stage) => Err(PushRefusal::WrongPath),
                Direction::Forward
                    if full || self.held.len() >= HELD_ACTIVATIONS_MAX || header.epoch > version.next() =>
                {
                    Err(PushRefusal::Early)
                }
                Direction::Forward => {
                    self.kept.insert(Kept::Epoch(header.stage, header.epoch));
                    self.held.insert((header.epoch, header.sample), received);
                    Ok(())
                }
            };
        };
        match header.direction {
            Direction::Forward => work.receive_activation(cx.state, self.me, header.sample, received, full),
            Direction::Backward => work.receive_gradient(cx.state, header.sample, received),
        }
    }

    /// Takes the result of a push: the receiver's answer, or nothing if it could not be reached.
    pub fn handle_push_result(&mut self, cx: &mut Context<'_>, id: u64, to: PeerId, ack: Option<PushAck>) {
        let Some(Purpose::Push(direction, epoch, sample)) = self.transfers.remove(&id) else { return };
        if let (Direction::Forward, Some(PushAck::Accepted(credit))) = (direction, ack) {
            self.credit.insert(to, credit);
        }
        if let Some(work) = self.works.get_mut(&epoch) {
            work.delivered(cx.now, direction, sample, to, ack);
        }
        self.pump(cx);
    }

    /// Takes the result of a fetch: the blob is in the store, and its bytes are here if they were asked for.
    pub fn handle_fetched(&mut self, cx: &mut Context<'_>, id: u64, bytes: Option<&[u8]>) {
        match self.transfers.remove(&id) {
            Some(Purpose::Merge(stage, want)) => {
                if let Some(merge) = self.merges.get_mut(&stage) {
                    merge.fetched(cx.now, want, bytes);
                }
            }
            Some(Purpose::CatchUp(want)) => {
                // It may have arrived after everything of its kind was let go of.
                self.kept.insert(want.kept);
                self.catch_up.fetched(cx.now, want, bytes);
            }
            // It may have arrived after everything of its kind was let go of, as above.
            Some(Purpose::Unwanted(kept)) => drop(self.kept.insert(kept)),
            Some(Purpose::Restore(want)) => self.restored(cx, want, bytes),
            Some(Purpose::Push(..) | Purpose::Commit(..) | Purpose::Mirror | Purpose::MirrorMoments)
            | None => {}
        }
        self.pump(cx);
    }

    /// Takes the result of a store: whether the blobs are on disk.
    pub fn handle_stored(&mut self, cx: &mut Context<'_>, id: u64, kept: bool) {
        if let Some(Purpose::Commit(epoch, manifest)) = self.transfers.remove(&id) {
            self.committed(cx.now, epoch, manifest, kept);
        }
        self.pump(cx);
    }

    /// The room on the disk has changed. Without any it stops, and what it has not submitted starts over: not all that it
    /// took may have been written.
    pub fn handle_room(&mut self, cx: &mut Context<'_>, room: Room) {
        self.halted = room == Room::Full;
        if self.halted {
            let begun = self.works.iter().filter(|(_, work)| work.manifest().is_none());
            let begun: Vec<Epoch> = begun.map(|(epoch, _)| *epoch).collect();
            begun.into_iter().for_each(|epoch| self.forget_epoch(epoch));
        }
        self.pump(cx);
    }

    /// A peer has forgotten what it had taken: it is sent again.
    pub fn handle_forgetful(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        self.works.values_mut().for_each(|work| work.send_again(cx.now, cx.state, peer));
        self.pump(cx);
    }

    /// Takes the answer to a request for a stage's state.
    pub fn handle_state_offer(&mut self, cx: &mut Context<'_>, offer: Option<StateOffer>) {
        self.catch_up.answered(cx, self.me, offer);
        self.pump(cx);
    }

    /// A peer asks for the state of a stage; answered through the outbox when the engine has written it, and at once if
    /// it is not here or as many as can be are fetching it.
    pub fn handle_state_request(
        &mut self,
        cx: &mut Context<'_>,
        from: PeerId,
        ticket: u64,
        stage: StageIndex,
        version: Epoch,
    ) {
        let right = |weights: Option<WeightsRecord>| {
            weights.is_some_and(|w| w.stage == stage && w.version == version)
        };
        let is_asked = |offer: &&StateOffer| offer.stage == stage && offer.version == version;
        let before = self.offers_before.iter().any(|offer| is_asked(&offer));
        let holds = (right(self.weights) || before) && self.serves(cx, from, right);
        let offered = self.offer.iter().chain(&self.offers_before).find(is_asked);
        match offered {
            _ if !holds => cx.out.respond(ticket, None),
            Some(offer) => cx.out.respond(ticket, Some(offer.clone())),
            None => self.snapshot_asked.push_back(ticket),
        }
        self.pump(cx);
    }

    /// Whether there is room to serve `from`, which then takes it. Who `has` the state needs none any more.
    fn serves(
        &mut self,
        cx: &Context<'_>,
        from: PeerId,
        has: impl Fn(Option<WeightsRecord>) -> bool,
    ) -> bool {
        self.serving.retain(|peer, until| cx.now < *until && !has(cx.book.weights(*peer)));
        let room = self.serving.len() < STATE_SERVED_MAX || self.serving.contains_key(&from);
        if room {
            self.serving.insert(from, cx.now + TRANSFER_DEADLINE);
        }
        room
    }

    /// Does everything that the state, the time and finished work allow.
    pub fn pump(&mut self, cx: &mut Context<'_>) {
        self.follow_state(cx);
        self.pump_deliveries(cx);
        if !self.halted {
            self.pump_merges(cx);
            self.catch_up.pump(cx, self.me, self.weights, &mut self.transfers);
        }
        self.kept.extend(self.catch_up.needs());
        self.release_settled(cx);
        self.pump_restore(cx);
        self.pump_mirror(cx);
        self.announce(cx);
        self.start_job(cx);
    }

    /// Sends what is due: activations down, gradients up.
    fn pump_deliveries(&mut self, cx: &mut Context<'_>) {
        let (run, shape, dtype) = (cx.out.run(), self.wire_shape(), self.spec.pipeline.activation_dtype);
        for work in self.works.values_mut() {
            for (direction, sample, hash, to) in work.deliveries(cx, &mut self.credit) {
                let stage = match direction {
                    Direction::Forward => StageIndex(work.stage.0 + 1),
                    Direction::Backward => StageIndex(work.stage.0.saturating_sub(1)),
                };
                let header = PushHeader {
                    version: cx.state.wire_version(),
                    run,
                    direction,
                    stage,
                    epoch: work.epoch,
                    sample,
                    dtype,
                    shape,
                    hash,
                    nonce: work.nonce,
                    signature: ByteBuf::new(),
                };
                let id = cx.out.push(to, header);
                work.sending(cx.state, direction, sample, id, to);
                self.transfers.insert(id, Purpose::Push(direction, work.epoch, sample));
            }
        }
    }

    fn pump_merges(&mut self, cx: &mut Context<'_>) {
        for merge in self.merges.values_mut() {
            for (want, hash, providers, limit, deliver) in merge.wants(cx, &self.manifests) {
                let id = cx.out.fetch(hash, providers, limit, deliver, outbox::tag(merge.stage, merge.epoch));
                self.transfers.insert(id, Purpose::Merge(merge.stage, want));
            }
        }
    }

    /// Publishes the manifest until a plan is made, and digests until the merge closes: at once when they change, then
    /// again, after a heartbeat at first and twice as long each time: all replicas of the stage hear it.
    fn announce(&mut self, cx: &mut Context<'_>) {
        let heartbeat = self.spec.timing.heartbeat.duration();
        let due = cx.now >= self.announce_due;
        let mut messages = Vec::new();
        for work in self.works.values() {
            let training = cx
                .state
                .stage(work.stage)
                .filter(|stage| stage.plan().is_none())
                .and_then(|stage| stage.training());
            let waiting = training.is_some_and(|training| training.opened == work.opened);
            if let Some(manifest) = work.manifest().filter(|_| due && waiting) {
                self.sequence += 1;
                messages.push(MergeMessage::Manifest(ManifestAnnounce {
                    sequence: self.sequence,
                    manifest: manifest.clone(),
                }));
            }
        }
        for merge in self.merges.values_mut() {
            let reports = merge.report(due, &mut self.sequence);
            messages.extend(reports.into_iter().map(MergeMessage::Digest));
        }
        if due {
            let (least, most) = (heartbeat, heartbeat * ANNOUNCE_HEARTBEATS_MAX);
            let said = !messages.is_empty();
            self.announce_pause = if said { (self.announce_pause * 2).clamp(least, most) } else { least };
            self.announce_due = cx.now + self.announce_pause;
        }
        for message in messages {
            cx.out.publish_merge(message);
        }
    }

    /// The number of its last merge message.
    pub(crate) const fn numbered(&self) -> u64 {
        self.sequence
    }

    /// When [`pump`](Self::pump) has something to do even if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let works = self.works.values().filter_map(EpochWork::deadline);
        let merges = self.merges.values().filter_map(MergeWork::deadline);
        let others = self.catch_up.deadline().into_iter().chain(self.mirroring.deadline());
        works.chain(merges).chain(others).chain([self.announce_due, self.rests_until]).min()
    }
}

/// Whether `peer` is a miner of the stage above `stage`.
fn is_above(state: &RunState, peer: PeerId, stage: StageIndex) -> bool {
    stage.0.checked_sub(1).is_some_and(|above| state.stage_of(peer) == Some(StageIndex(above)))
}

/// Doubles a pause, between the protocol's least and most.
fn backed_off(pause: Duration) -> Duration {
    doubled(pause, RETRY_PAUSE_MIN, RETRY_PAUSE_MAX)
}

/// Doubles a pause, between `least` and `most`.
fn doubled(pause: Duration, least: Duration, most: Duration) -> Duration {
    (pause * 2).clamp(least, most)
}
