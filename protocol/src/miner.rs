//! A miner: holds one stage, handles the samples dealt to it, merges.
//!
//! The machine is level-triggered. [`Miner::pump`] compares the [`RunState`] with what is under way and
//! emits whatever is missing: transfers, messages, and one [`Job`] at a time for the engine. Its parts:
//! [`work`] is the epoch's samples and how each passes through, [`merging`] the partitions it owns,
//! [`catch_up`] the way to the right weights.
//!
//! **Invariant:** a sample is accumulated at most once by a miner, and handled only by the replica it is
//! dealt to. Everything that may have to be sent again is kept by its hash until the epoch is settled.

pub mod catch_up;
pub mod job;
pub mod merging;
pub mod outbox;
pub mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use job::{Job, JobDone};
pub use outbox::{Action, Notice, Outbox};

use crate::id::{Epoch, Hash, PeerId, SampleId, StageIndex};
use crate::limits::{BLOB_EPOCHS_KEPT, HELD_ACTIVATIONS_MAX, RETRY_PAUSE_MAX, WIRE_VERSION};
use crate::peer::book::Book;
use crate::run_state::{RunState, Training};
use crate::spec::{Bottleneck, RunSpec, TrainingMode};
use crate::time::Instant;
use crate::wire::frame::{Direction, PushAck, PushHeader, PushRefusal};
use crate::wire::gossip::HashedManifest;
use crate::wire::message::{Manifest, ManifestAnnounce, MergeMessage, StateOffer, WeightsRecord};

use catch_up::CatchUp;
use merging::MergeWork;
use work::{EpochWork, Share};

/// Manifests remembered until their merge is done. One per member and attempt.
const MANIFESTS_KEPT: usize = 2048;
/// Heartbeats between two announcements of the same thing, at most. Gossip that was lost is rare; a candidate that starts
/// anew in the middle of an epoch waits so long for what it missed.
const ANNOUNCE_HEARTBEATS_MAX: u32 = 4;
/// Weight of the newest measurement in the running mean of the speed.
const SPEED_SMOOTHING: f64 = 0.2;

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
    CatchUp(catch_up::Want),
}

/// A forwarded activation for an epoch that has not opened here yet.
#[derive(Clone, Copy, Debug)]
struct Held {
    from: PeerId,
    hash: Hash,
}

/// Seconds a sample takes in the engine, as running means.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    forward: Option<f64>,
    backward: Option<f64>,
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
    weights: Option<WeightsRecord>,
    works: BTreeMap<Epoch, EpochWork>,
    held: BTreeMap<(Epoch, SampleId), Held>,
    merges: BTreeMap<StageIndex, MergeWork>,
    manifests: BTreeMap<Hash, Arc<HashedManifest>>,
    catch_up: CatchUp,
    /// Epochs of which blobs may be kept here, whoever put them: own work, a merge for any stage, catching up.
    kept_epochs: BTreeSet<(StageIndex, Epoch)>,
    /// Versions of which the whole state may be kept here.
    kept_states: BTreeSet<(StageIndex, Epoch)>,
    /// State offers asked for: ticket of the request.
    snapshot_asked: VecDeque<u64>,
    offer: Option<StateOffer>,
    transfers: BTreeMap<u64, Purpose>,
    credit: BTreeMap<PeerId, u16>,
    sequence: u64,
    pace: Pace,
    tokens: u64,
    announce_due: Instant,
    /// Time from the next announcement to the one after it.
    announce_pause: Duration,
    news: bool,
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
            weights: None,
            works: BTreeMap::new(),
            held: BTreeMap::new(),
            merges: BTreeMap::new(),
            manifests: BTreeMap::new(),
            catch_up: CatchUp::default(),
            kept_epochs: BTreeSet::new(),
            kept_states: BTreeSet::new(),
            snapshot_asked: VecDeque::new(),
            offer: None,
            transfers: BTreeMap::new(),
            credit: BTreeMap::new(),
            sequence,
            pace: Pace::default(),
            tokens: 0,
            announce_due: Instant::ZERO,
            announce_pause: Duration::ZERO,
            news: false,
            followed: 0,
            settled: 0,
        }
    }

    /// The weights it holds.
    #[must_use]
    pub const fn weights(&self) -> Option<WeightsRecord> {
        self.weights
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
        let seconds = self.pace.forward.unwrap_or(0.0) + self.pace.backward.unwrap_or(0.0);
        if seconds > 0.0 { (1000.0 / seconds) as u32 } else { 0 }
    }

    /// Whether its record changed in a way others wait for. Reading it resets it.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
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
        let weights =
            self.weights.filter(|weights| weights.stage == header.stage).ok_or(PushRefusal::WrongStage)?;
        let full = self.credits() == 0;
        let Some(work) = self.works.get_mut(&header.epoch) else {
            return match header.direction {
                _ if header.epoch < weights.version => Err(PushRefusal::Stale),
                Direction::Backward => Err(PushRefusal::WrongPath),
                // Room to wait is for the stage above, which can be ahead by no more than the epoch being merged here.
                Direction::Forward if !is_above(cx.state, from, header.stage) => Err(PushRefusal::WrongPath),
                Direction::Forward
                    if full
                        || self.held.len() >= HELD_ACTIVATIONS_MAX
                        || cx.state.stage(header.stage).is_none_or(|s| header.epoch > s.version.next()) =>
                {
                    Err(PushRefusal::Early)
                }
                Direction::Forward => {
                    self.kept_epochs.insert((header.stage, header.epoch));
                    self.held.insert((header.epoch, header.sample), Held { from, hash: header.hash });
                    Ok(())
                }
            };
        };
        match header.direction {
            Direction::Forward => {
                work.receive_activation(cx.state, self.me, from, header.sample, header.hash, full)
            }
            Direction::Backward => work.receive_gradient(cx.state, from, header.sample, header.hash),
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
                match want.kept {
                    catch_up::Kept::Epoch(stage, epoch) => {
                        self.kept_epochs.insert((stage, epoch));
                    }
                    catch_up::Kept::State(stage, version) => {
                        self.kept_states.insert((stage, version));
                    }
                }
                self.catch_up.fetched(cx.now, want, bytes.is_some());
            }
            Some(Purpose::Push(..)) | None => {}
        }
        self.pump(cx);
    }

    /// Takes the answer to a request for a stage's state.
    pub fn handle_state_offer(&mut self, cx: &mut Context<'_>, offer: Option<StateOffer>) {
        self.catch_up.answered(cx.now, offer);
        self.pump(cx);
    }

    /// A peer asks for the state of a stage; answered through the outbox when the engine has written it.
    pub fn handle_state_request(
        &mut self,
        cx: &mut Context<'_>,
        ticket: u64,
        stage: StageIndex,
        version: Epoch,
    ) {
        let holds = self.weights.is_some_and(|weights| weights.stage == stage && weights.version == version);
        let offered = self.offer.as_ref().filter(|offer| offer.stage == stage && offer.version == version);
        match offered {
            _ if !holds => cx.out.respond(ticket, None),
            Some(offer) => cx.out.respond(ticket, Some(offer.clone())),
            None => self.snapshot_asked.push_back(ticket),
        }
        self.pump(cx);
    }

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
                self.engine = Some(stage);
                self.news = true;
                cleaned = true;
                cx.out.notice(Notice::WeightsReady(stage, version, hash));
                self.catch_up.finished();
            }
            JobDone::Reset => cleaned = true,
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
            JobDone::Contributed { epoch, partitions } => self.submit(cx, epoch, partitions),
            JobDone::Reduced { stage, partition, merged } => {
                if let Some(merge) = self.merges.get_mut(&stage) {
                    merge.reduced(partition, merged);
                }
            }
            JobDone::Snapshot(offer) => {
                for ticket in self.snapshot_asked.drain(..) {
                    cx.out.respond(ticket, Some(offer.clone()));
                }
                self.kept_states.insert((offer.stage, offer.version));
                self.offer = Some(offer);
            }
            JobDone::Failed(reason) => {
                self.job_failed(cx.now, &job);
                cx.out.notice(Notice::JobFailed(reason));
            }
        }
        if cleaned {
            self.dirty = false;
        }
    }

    /// Lets a job that failed be done again, after a pause. Nobody knows what a failed pass left in the engine, so the
    /// epoch's work starts over.
    fn job_failed(&mut self, now: Instant, job: &Job) {
        self.rests_until = now + RETRY_PAUSE_MAX;
        match job {
            Job::Load { .. } | Job::Apply { .. } => self.catch_up.failed(now),
            Job::Contribute { epoch, .. } => self.with_work(*epoch, EpochWork::contribution_failed),
            Job::Reduce { stage, partition, .. } => {
                if let Some(merge) = self.merges.get_mut(stage) {
                    merge.reduction_failed(*partition);
                }
            }
            Job::Forward { epoch, .. }
            | Job::Loss { epoch, .. }
            | Job::Backward { epoch, .. }
            | Job::InnerStep { epoch, .. } => self.dirty |= self.works.remove(epoch).is_some(),
            Job::Initialise { .. } | Job::Snapshot { .. } | Job::Reset => {}
        }
    }

    fn with_work(&mut self, epoch: Epoch, change: impl FnOnce(&mut EpochWork)) {
        if let Some(work) = self.works.get_mut(&epoch) {
            change(work);
        }
    }

    /// Commits to a contribution: stores receipts and manifest, and announces them.
    fn submit(&mut self, cx: &mut Context<'_>, epoch: Epoch, partitions: Vec<Hash>) {
        let Some(work) = self.works.get_mut(&epoch) else { return };
        let tag = outbox::tag(work.stage, epoch);
        let manifest = work.submit(cx.state, self.me, partitions, |bytes| cx.out.store(bytes, &tag));
        let hash = cx.out.store(crate::wire::encode(&manifest), &tag);
        self.manifests.insert(hash, Arc::new(HashedManifest { manifest, hash }));
        (self.announce_due, self.announce_pause) = (cx.now, Duration::ZERO);
    }

    /// Does everything that the state, the time and finished work allow.
    pub fn pump(&mut self, cx: &mut Context<'_>) {
        self.follow_state(cx);
        self.pump_deliveries(cx);
        self.pump_merges(cx);
        self.catch_up.pump(cx, self.me, self.weights, &mut self.transfers);
        self.kept_epochs.extend(self.catch_up.epoch_fetched());
        self.kept_states.extend(self.catch_up.state_fetched());
        self.announce(cx);
        self.start_job(cx);
    }

    /// Starts and drops epochs and merges as the state says.
    fn follow_state(&mut self, cx: &mut Context<'_>) {
        let place = cx.state.stage_of(self.me);
        let stage = place.and_then(|index| cx.state.stage(index).map(|stage| (index, stage)));
        let decided = std::mem::replace(&mut self.followed, cx.state.applied()) != cx.state.applied();
        let training = stage.and_then(|(index, stage)| stage.training().map(|training| (index, training)));
        let mine = training.filter(|(index, training)| self.takes_part(*index, training));
        match mine {
            Some((index, training)) => self.follow_epoch(cx, index, training, decided),
            None => self.give_up_epochs(stage.map_or(Epoch(0), |(_, stage)| stage.version)),
        }
        if decided {
            if let Some((index, stage)) = stage {
                self.forget_settled(index, stage.version);
            }
            self.works.values_mut().for_each(|work| work.follow_below(cx.state));
            let settled = cx.state.stages().iter().map(|stage| u64::from(stage.version.0)).sum();
            if std::mem::replace(&mut self.settled, settled) != settled {
                self.forget_manifests(cx.state);
            }
            self.follow_merges(cx);
        }
        self.release_settled(cx);
    }

    /// Whether this miner is a member of the epoch and starts from the right weights.
    fn takes_part(&self, index: StageIndex, training: &Training) -> bool {
        let right = WeightsRecord { stage: index, version: training.epoch, hash: training.base };
        training.deal.is_live(self.me) && (self.weights == Some(right))
    }

    fn follow_epoch(&mut self, cx: &mut Context<'_>, index: StageIndex, training: &Training, decided: bool) {
        let epoch = training.epoch;
        if self.works.get(&epoch).is_some_and(|work| work.opened != training.opened) {
            self.works.remove(&epoch);
            self.dirty = true;
        }
        let (me, spec) = (self.me, &self.spec);
        let begun = self.works.contains_key(&epoch);
        let work = self.works.entry(epoch).or_insert_with(|| EpochWork::new(spec, index, training));
        self.kept_epochs.insert((index, epoch));
        if decided || !begun {
            work.follow(me, training);
        }
        let above = index.0.checked_sub(1).and_then(|above| cx.state.stage(StageIndex(above)));
        if above.is_none_or(|above| above.deal(epoch).is_none()) {
            // Whose they are is decided in an entry that is not here yet; their senders were told that we have them.
            return;
        }
        let held: Vec<_> = self
            .held
            .range((epoch, SampleId(0))..=(epoch, SampleId(u64::MAX)))
            .map(|(key, held)| (*key, *held))
            .collect();
        for ((_, sample), held) in held {
            self.held.remove(&(epoch, sample));
            // Refused only if its path changed meanwhile; whoever is on the path now sends it again.
            let _ = work.receive_activation(cx.state, me, held.from, sample, held.hash, false);
        }
    }

    /// Drops work on epochs from `version` on, which this miner has no part in any more.
    fn give_up_epochs(&mut self, version: Epoch) {
        let before = self.works.len();
        self.works.retain(|epoch, _| *epoch < version);
        self.dirty |= self.works.len() < before;
    }

    /// Forgets epochs long settled.
    fn forget_settled(&mut self, index: StageIndex, version: Epoch) {
        let keep = version.0.saturating_sub(BLOB_EPOCHS_KEPT);
        self.works.retain(|epoch, _| epoch.0 >= keep);
        self.held.retain(|(epoch, _), _| *epoch >= version);
        self.offer.take_if(|offer| offer.stage != index || offer.version < version);
    }

    /// Forgets manifests of epochs long settled, of every stage.
    fn forget_manifests(&mut self, state: &RunState) {
        self.manifests.retain(|_, submitted| {
            let Manifest { stage, epoch, .. } = &submitted.manifest;
            let settled = state.stage(*stage).map_or(Epoch(0), |stage| stage.version);
            epoch.0.saturating_add(BLOB_EPOCHS_KEPT) >= settled.0
        });
    }

    /// Lets go of the blobs that settled epochs left behind, of whatever stage and for whatever purpose.
    fn release_settled(&mut self, cx: &mut Context<'_>) {
        let version = |stage| cx.state.stage(stage).map_or(Epoch(0), |stage| stage.version);
        let settled = |&(stage, epoch): &(StageIndex, Epoch)| {
            epoch.0.saturating_add(BLOB_EPOCHS_KEPT) < version(stage).0
        };
        for (stage, epoch) in self.kept_epochs.extract_if(.., settled) {
            cx.out.release(outbox::tag(stage, epoch));
        }
        for (stage, epoch) in self.kept_states.extract_if(.., |(stage, epoch)| *epoch < version(*stage)) {
            cx.out.release(outbox::state_tag(stage, epoch));
        }
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
                    version: WIRE_VERSION,
                    run,
                    direction,
                    stage,
                    epoch: work.epoch,
                    sample,
                    dtype,
                    shape,
                    hash,
                };
                let id = cx.out.push(to, header);
                work.sending(cx.state, direction, sample, id, to);
                self.transfers.insert(id, Purpose::Push(direction, work.epoch, sample));
            }
        }
    }

    /// Keeps a merge under way for each plan in which this miner owns partitions.
    fn follow_merges(&mut self, cx: &mut Context<'_>) {
        for (index, stage) in cx.state.spec().stages().zip(cx.state.stages()) {
            let plan =
                stage.plan().filter(|(_, plan)| plan.owners.iter().any(|owners| owners.contains(&self.me)));
            match plan {
                Some((training, plan)) => {
                    let same = self.merges.get(&index).is_some_and(|merge| merge.is_for(training, plan));
                    if !same {
                        self.merges.insert(index, MergeWork::new(self.me, index, training, plan));
                        self.kept_epochs.insert((index, training.epoch));
                    }
                    if let Some(merge) = self.merges.get_mut(&index) {
                        merge.follow(cx.now, plan);
                    }
                }
                None => drop(self.merges.remove(&index)),
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
            if let Some(report) = merge.report(due, self.sequence + 1) {
                self.sequence += 1;
                messages.push(MergeMessage::Digest(report));
            }
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

    /// When [`pump`](Self::pump) has something to do even if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let works = self.works.values().filter_map(EpochWork::deadline);
        let merges = self.merges.values().filter_map(MergeWork::deadline);
        works.chain(merges).chain(self.catch_up.deadline()).chain([self.announce_due, self.rests_until]).min()
    }

    /// Gives the engine its next job if it is idle: first what others wait for, gradients before
    /// activations, then the lowest sample.
    fn start_job(&mut self, cx: &mut Context<'_>) {
        if self.busy.is_some() || cx.now < self.rests_until {
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
        if let (false, Some(weights)) = (self.snapshot_asked.is_empty(), self.weights) {
            return Some(Job::Snapshot {
                stage: weights.stage,
                version: weights.version,
                hash: weights.hash,
            });
        }
        let (tail, window) = (cx.state.stages().len() - 1, usize::from(self.spec.pipeline.window));
        let local = self.spec.training.mode == TrainingMode::Local;
        let position = work::Position { head: stage.0 == 0, tail: stage.as_usize() == tail };
        let training = cx.state.stage(stage)?.training()?;
        self.works.get_mut(&training.epoch)?.job(
            position,
            window,
            local.then_some(self.spec.training.inner_steps),
        )
    }
}

/// Whether `peer` is a miner of the stage above `stage`.
fn is_above(state: &RunState, peer: PeerId, stage: StageIndex) -> bool {
    stage.0.checked_sub(1).is_some_and(|above| state.stage_of(peer) == Some(StageIndex(above)))
}

/// Folds a measurement into a running mean.
fn smooth(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |old| old + SPEED_SMOOTHING * (value - old)));
}

/// Doubles a pause, between the protocol's least and most.
fn backed_off(pause: Duration) -> Duration {
    (pause * 2).clamp(crate::limits::RETRY_PAUSE_MIN, crate::limits::RETRY_PAUSE_MAX)
}
