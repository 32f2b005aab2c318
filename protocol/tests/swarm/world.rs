//! A small virtual world: one event queue ordered by (time, sequence), one seed, made-up tensors.
//!
//! Tensors are byte strings derived from their inputs, so that equal work gives equal hashes and any
//! difference in what was merged shows in the weights.
//!
//! Long, since the world's faults, links and disks all act on the one queue, and each is a few lines of it.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::join::{Credential, Refusal};
use iota_protocol::log::{LogBytes, MemoryStorage};
use iota_protocol::miner::{Action, Job, JobDone, Notice};
use iota_protocol::peer::arrival::Arrival;
use iota_protocol::peer::room::DiskUse;
use iota_protocol::peer::{Peer, Roles};
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::{Candidate, RunSpec, TrainingMode};
use iota_protocol::time::Millis;
use iota_protocol::wire::frame::{PushAck, PushHeader};
use iota_protocol::wire::message::{StateOffer, Topic};
use iota_protocol::wire::{RejectReason, encode};
use iota_protocol::{Epoch, Hash, Identity, Instant, PeerId, RunId, StageIndex};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::replay::Order;

type VirtualPeer = Peer<MemoryStorage<LogBytes>>;

const ENGINE_DELAY: Duration = Duration::from_millis(40);
const DISK_DELAY: Duration = Duration::from_millis(5);
const PARAMETERS: usize = 1000;

pub(crate) enum Fault {
    Kill(usize),
    KillLeader,
    Freeze(usize, Duration),
    Leave(usize),
    Join,
    /// Somebody joins who shows this.
    JoinWith(Show),
    /// A node finds this on its disk.
    Disk(usize, DiskUse),
}

enum Event {
    Start(usize),
    Timeout(usize, u64),
    Gossip(usize, Topic, Vec<u8>),
    Request { to: usize, from: usize, id: u64, bytes: Vec<u8> },
    Response { to: usize, id: u64, bytes: Option<Vec<u8>> },
    Push { to: usize, from: usize, id: u64, header: PushHeader },
    PushResult { to: usize, id: u64, peer: PeerId, ack: Option<PushAck> },
    Fetched { to: usize, id: u64, hash: Option<Hash>, deliver: bool },
    JobDone(usize, JobDone),
    Stored(usize, u64),
    Mirrored(usize, u64, bool),
    Fault(Fault),
    Thaw(usize),
}

struct Queued(Instant, u64, Event);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

#[derive(Default)]
struct Engine {
    base: Vec<u8>,
    accumulated: BTreeSet<(u64, Hash)>,
    /// Samples since the last inner step.
    unspent: u32,
    /// Since the epoch began.
    order: Order,
    /// Inner steps before it began: all the moments there are.
    earlier_steps: u64,
}

impl Engine {
    fn forget(&mut self) {
        self.accumulated.clear();
        (self.unspent, self.order) = (0, Order::default());
    }
}

struct Node {
    peer: VirtualPeer,
    alive: bool,
    frozen: bool,
    started: bool,
    inbox_while_frozen: Vec<Event>,
    wake: u64,
    blobs: BTreeMap<Hash, Vec<u8>>,
    tags: BTreeMap<String, BTreeSet<Hash>>,
    engine: Engine,
    tickets: BTreeMap<u64, (usize, u64)>,
}

pub(crate) struct World {
    spec: Arc<RunSpec>,
    nodes: Vec<Node>,
    ids: BTreeMap<PeerId, usize>,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
    now: Instant,
    rng: ChaCha8Rng,
    loss: f64,
    /// Longest extra delay of gossip.
    slow_gossip: Duration,
    next_ticket: u64,
    events: Vec<StateEvent>,
    trace: blake3::Hasher,
    leader_killed: Option<Instant>,
    election: Duration,
    /// What is in the mirror.
    mirror: BTreeMap<Hash, Vec<u8>>,
    /// Whether it takes nothing and gives nothing.
    mirror_down: bool,
    /// Uploads that found their blob there.
    present: usize,
    checkpoints: BTreeSet<Epoch>,
    /// Who has finished which sample of which stage.
    trained: Vec<(StageIndex, u64, usize)>,
    /// Who has left, and when.
    left: BTreeMap<usize, Duration>,
    /// Whose first contribution counted, and how it came there.
    arrived: BTreeMap<usize, Arrival>,
    /// What those show who join from now on.
    credential: Show,
    /// Who was told last why it gets no place.
    refused: BTreeMap<usize, Refusal>,
}

/// What a peer shows to be let in.
pub(crate) type Show = fn(RunId, PeerId) -> Option<Credential>;

fn identity(i: usize) -> Identity {
    Identity::from_secret([u8::try_from(i + 1).expect("few"); 32])
}

impl World {
    pub(crate) fn new(seed: u64, stages: u16, replicas: u16, mode: TrainingMode) -> Self {
        Self::with_epochs(seed, stages, replicas, mode, 5)
    }

    pub(crate) fn with_epochs(
        seed: u64,
        stages: u16,
        replicas: u16,
        mode: TrainingMode,
        epochs: u32,
    ) -> Self {
        Self::with(seed, stages, replicas, mode, epochs, |_| {})
    }

    /// A world whose spec is changed before it starts.
    pub(crate) fn with(
        seed: u64,
        stages: u16,
        replicas: u16,
        mode: TrainingMode,
        epochs: u32,
        change: impl FnOnce(&mut RunSpec),
    ) -> Self {
        let mut spec = RunSpec { seed, ..RunSpec::default() };
        spec.pipeline.stages = stages;
        spec.pipeline.start_replicas = replicas;
        spec.training.mode = mode;
        spec.training.epochs = epochs;
        spec.training.samples_per_epoch = 24;
        spec.timing.heartbeat = Millis(500);
        spec.timing.eviction = Millis(3000);
        spec.timing.epoch_deadline = Millis(30_000);
        spec.timing.merge_deadline = Millis(10_000);
        let count = usize::from(stages * replicas);
        spec.orchestrator.candidates =
            (0..count.min(3)).map(|i| Candidate { peer: identity(i).peer(), priority: 0 }).collect();
        change(&mut spec);
        spec.validate().expect("a valid spec");
        let mut world = Self {
            spec: Arc::new(spec),
            nodes: Vec::new(),
            ids: BTreeMap::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            now: Instant::from_nanos(1),
            rng: ChaCha8Rng::seed_from_u64(seed),
            loss: 0.0,
            slow_gossip: Duration::ZERO,
            next_ticket: 0,
            events: Vec::new(),
            trace: blake3::Hasher::new(),
            leader_killed: None,
            election: Duration::ZERO,
            mirror: BTreeMap::new(),
            mirror_down: false,
            present: 0,
            checkpoints: BTreeSet::new(),
            trained: Vec::new(),
            left: BTreeMap::new(),
            arrived: BTreeMap::new(),
            credential: |_, _| None,
            refused: BTreeMap::new(),
        };
        for _ in 0..count {
            world.add_node();
        }
        world
    }

    fn add_node(&mut self) {
        let i = self.nodes.len();
        let identity = identity(i);
        let parameters = vec![PARAMETERS; self.stages()];
        let roles = Roles { miner: true, validator: false };
        let peer = Peer::new(
            Arc::clone(&self.spec),
            identity.clone(),
            roles,
            &parameters,
            0,
            MemoryStorage::default(),
        )
        .showing((self.credential)(self.spec.run_id(), identity.peer()));
        self.ids.insert(identity.peer(), i);
        self.nodes.push(Node {
            peer,
            alive: true,
            frozen: false,
            started: false,
            inbox_while_frozen: Vec::new(),
            wake: 0,
            blobs: BTreeMap::new(),
            tags: BTreeMap::new(),
            engine: Engine::default(),
            tickets: BTreeMap::new(),
        });
        let delay = Duration::from_millis(self.draw(200));
        self.push(delay, Event::Start(i));
    }

    /// The world of a run that goes on from the newest checkpoint of this one, which has only its mirror left.
    pub(crate) fn resumed(self) -> Self {
        let checkpoint = self.best().state().checkpoint().expect("a checkpoint was decided").clone();
        let (stages, replicas) = (self.spec.pipeline.stages, self.spec.pipeline.start_replicas);
        let (mode, epochs) = (self.spec.training.mode, self.spec.training.epochs);
        let lineage = self.spec.lineage();
        let world = Self::with(self.spec.seed, stages, replicas, mode, epochs, |spec| {
            spec.mirror = self.spec.mirror.clone();
            spec.start.epoch = checkpoint.epoch.0;
            spec.start.lineage = Some(lineage);
            spec.start.checkpoint = Some(Hash::of(b"manifest"));
            spec.start.stages = checkpoint.stages;
        });
        Self { mirror: self.mirror, ..world }
    }

    /// The peer that knows most of the log.
    pub(crate) fn best(&self) -> &VirtualPeer {
        let peers = self.nodes.iter().map(|node| &node.peer);
        peers.max_by_key(|peer| peer.state().applied()).expect("a world has peers")
    }

    pub(crate) fn mirror_fails(&mut self, down: bool) {
        self.mirror_down = down;
    }

    /// Blobs in the mirror, and how often one was brought that was there.
    pub(crate) fn mirrored(&self) -> (usize, usize) {
        (self.mirror.len(), self.present)
    }

    /// Versions of which some candidate was told to write the manifest.
    pub(crate) const fn checkpoints(&self) -> &BTreeSet<Epoch> {
        &self.checkpoints
    }

    pub(crate) fn lose(&mut self, fraction: f64) {
        self.loss = fraction;
    }

    /// Delays each delivery of gossip by up to `longest`, so that pushes overtake decisions.
    pub(crate) fn slow_gossip(&mut self, longest: Duration) {
        self.slow_gossip = longest;
    }

    pub(crate) fn schedule(&mut self, at: Duration, fault: Fault) {
        self.push(at, Event::Fault(fault));
    }

    pub(crate) fn stages(&self) -> usize {
        usize::from(self.spec.pipeline.stages)
    }

    pub(crate) fn epochs(&self) -> u32 {
        self.spec.training.epochs
    }

    pub(crate) fn samples_per_epoch(&self) -> u64 {
        u64::from(self.spec.training.samples_per_epoch)
    }

    pub(crate) fn peer(&self, i: usize) -> &VirtualPeer {
        &self.nodes[i].peer
    }

    /// Tags under which a peer keeps blobs.
    pub(crate) fn tags(&self, i: usize) -> impl Iterator<Item = &str> {
        self.nodes[i].tags.keys().map(String::as_str)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&i| self.nodes[i].alive)
    }

    pub(crate) fn events(&self) -> &[StateEvent] {
        &self.events
    }

    /// Who has finished which sample of which stage, one entry for each time.
    pub(crate) fn trained(&self) -> &[(StageIndex, u64, usize)] {
        &self.trained
    }

    /// How a peer came to its first contribution that counted.
    pub(crate) fn arrived(&self, i: usize) -> Option<Arrival> {
        self.arrived.get(&i).copied()
    }

    /// Why a peer was told that it gets no place, the last time.
    pub(crate) fn refused(&self, i: usize) -> Option<&Refusal> {
        self.refused.get(&i)
    }

    /// When a peer had left, if it has.
    pub(crate) fn left(&self, i: usize) -> Option<Duration> {
        self.left.get(&i).copied()
    }

    pub(crate) fn election_time(&self) -> Duration {
        self.election
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now.since(Instant::ZERO)
    }

    pub(crate) fn trace(&self) -> Hash {
        Hash(*self.trace.finalize().as_bytes())
    }

    /// Whether every epoch is settled, and every member has its last weights written down.
    pub(crate) fn finished(&self) -> bool {
        let last = Epoch(self.epochs());
        self.alive().all(|i| {
            let peer = self.peer(i);
            let miner = peer.miner();
            let weights = miner.and_then(|miner| miner.weights());
            let caught_up = weights.is_none_or(|weights| {
                weights.version == last && miner.and_then(|miner| miner.remembered()) == Some(weights)
            });
            peer.state().finished() && (caught_up || peer.state().stage_of(peer.id()).is_none())
        })
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for i in self.alive() {
            let peer = self.peer(i);
            let weights = peer.miner().and_then(|miner| miner.weights());
            let progress = peer.miner().and_then(|miner| miner.progress());
            let (applied, leader) = (peer.state().applied(), peer.leader().map(|l| self.ids[&l]));
            text += &format!("peer {i} applied {applied} leader {leader:?} {weights:?} {progress:?}\n");
        }
        for stage in self.peer(self.alive().next().expect("alive")).state().stages() {
            text += &format!("stage at {:?}: {:?}\n", stage.version, stage.phase);
        }
        let tail = self.events.len().saturating_sub(12);
        text + &format!("{:?}", &self.events[tail..])
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below
    }

    fn lost(&mut self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a coin")]
        let coin = self.draw(1_000_000) as f64 / 1e6;
        coin < self.loss
    }

    fn push(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Queued(self.now + delay, self.sequence, event)));
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(2000 + self.draw(6000))
    }

    pub(crate) fn run_for(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        let mut steps = 0_u64;
        while let Some(Reverse(Queued(at, _, event))) = self.next_until(end) {
            self.now = at;
            self.dispatch(event);
            steps += 1;
            if steps.is_multiple_of(64) && done(self) {
                return true;
            }
        }
        false
    }

    fn next_until(&mut self, end: Instant) -> Option<Reverse<Queued>> {
        self.queue.peek_mut().filter(|next| next.0.0 <= end).map(PeekMut::pop)
    }

    fn target(event: &Event) -> Option<usize> {
        match event {
            Event::Start(i) | Event::Timeout(i, _) | Event::Gossip(i, ..) => Some(*i),
            Event::JobDone(i, _) | Event::Stored(i, _) | Event::Mirrored(i, ..) => Some(*i),
            Event::Request { to, .. } | Event::Response { to, .. } | Event::Push { to, .. } => Some(*to),
            Event::PushResult { to, .. } | Event::Fetched { to, .. } => Some(*to),
            Event::Fault(_) | Event::Thaw(_) => None,
        }
    }

    fn dispatch(&mut self, event: Event) {
        if let Some(i) = Self::target(&event) {
            let node = &mut self.nodes[i];
            if !node.alive || !(node.started || matches!(event, Event::Start(_))) {
                return self.undeliverable(event);
            }
            if matches!(event, Event::Timeout(_, wake) if wake != node.wake) {
                return;
            }
            if node.frozen {
                node.inbox_while_frozen.push(event);
                return;
            }
            self.handle(i, event);
            self.drain(i);
        } else {
            match event {
                Event::Fault(fault) => self.fault(fault),
                Event::Thaw(i) => {
                    self.nodes[i].frozen = false;
                    for event in std::mem::take(&mut self.nodes[i].inbox_while_frozen) {
                        self.dispatch(event);
                    }
                }
                _ => {}
            }
        }
    }

    /// The network tells senders that nobody answered.
    fn undeliverable(&mut self, event: Event) {
        let wait = Duration::from_millis(500);
        match event {
            Event::Request { from, id, .. } => self.push(wait, Event::Response { to: from, id, bytes: None }),
            Event::Push { to, from, id, .. } => {
                let peer = self.nodes[to].peer.id();
                self.push(wait, Event::PushResult { to: from, id, peer, ack: None });
            }
            _ => {}
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(i) => self.nodes[i].alive = false,
            Fault::KillLeader => {
                let leader = self
                    .alive()
                    .find(|&i| self.peer(i).leader() == Some(self.peer(i).id()))
                    .expect("a leader");
                self.nodes[leader].alive = false;
                self.leader_killed = Some(self.now);
            }
            Fault::Freeze(i, time) => {
                self.nodes[i].frozen = true;
                self.push(time, Event::Thaw(i));
            }
            Fault::Leave(i) => {
                self.nodes[i].peer.leave(self.now);
                self.drain(i);
            }
            Fault::Join => self.add_node(),
            Fault::JoinWith(show) => {
                self.credential = show;
                self.add_node();
            }
            Fault::Disk(i, disk) => {
                self.nodes[i].peer.handle_disk(self.now, &disk);
                self.drain(i);
            }
        }
    }

    fn handle(&mut self, i: usize, event: Event) {
        let now = self.now;
        match event {
            Event::Start(_) => {
                self.nodes[i].started = true;
                self.nodes[i].peer.handle_timeout(now);
            }
            Event::Timeout(..) => self.nodes[i].peer.handle_timeout(now),
            Event::Gossip(_, topic, bytes) => {
                if let Err(reason) = self.nodes[i].peer.handle_gossip(now, topic, &bytes) {
                    let turned_away = matches!(reason, RejectReason::NotAdmitted(_));
                    assert!(turned_away || reason.is_innocent(), "honest peers are never guilty: {reason}");
                }
            }
            Event::Request { from, id, bytes, .. } => {
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                self.nodes[i].tickets.insert(ticket, (from, id));
                let from = self.nodes[from].peer.id();
                self.nodes[i]
                    .peer
                    .handle_request(now, from, ticket, &bytes)
                    .expect("honest requests are answered");
            }
            Event::Response { id, bytes, .. } => {
                self.nodes[i]
                    .peer
                    .handle_response(now, id, bytes.as_deref())
                    .expect("honest responses are understood");
            }
            Event::Push { from, id, header, .. } => {
                let (sender, me) = (self.nodes[from].peer.id(), self.nodes[i].peer.id());
                let Some(payload) = self.nodes[from].blobs.get(&header.hash).cloned() else {
                    // The sender has let go of the settled epoch while the push was on its way.
                    return self.undeliverable(Event::Push { to: i, from, id, header });
                };
                let tag = format!("e/{}/{}/", header.stage, header.epoch);
                self.keep(i, payload, &tag);
                let ack = self.nodes[i].peer.handle_push(now, sender, &header);
                let delay = self.latency();
                self.push(delay, Event::PushResult { to: from, id, peer: me, ack: Some(ack) });
            }
            Event::PushResult { id, peer, ack, .. } => {
                self.nodes[i].peer.handle_push_result(now, id, peer, ack)
            }
            Event::Fetched { id, hash, deliver, .. } => {
                let bytes =
                    hash.map(|hash| if deliver { self.nodes[i].blobs[&hash].clone() } else { Vec::new() });
                self.nodes[i].peer.handle_fetched(now, id, bytes.as_deref());
            }
            Event::JobDone(_, done) => self.nodes[i].peer.handle_job_done(now, done),
            Event::Stored(_, id) => self.nodes[i].peer.handle_stored(now, id, true),
            Event::Mirrored(_, id, there) => self.nodes[i].peer.handle_mirrored(now, id, there),
            Event::Fault(_) | Event::Thaw(_) => {}
        }
    }

    fn keep(&mut self, i: usize, bytes: Vec<u8>, tag: &str) -> Hash {
        let hash = Hash::of(&bytes);
        self.nodes[i].blobs.insert(hash, bytes);
        self.nodes[i].tags.entry(tag.to_owned()).or_default().insert(hash);
        hash
    }

    fn store(&mut self, i: usize, blobs: Vec<(Hash, Vec<u8>)>, tag: &str) {
        self.nodes[i].engine.order.check(&self.spec, &blobs);
        for (_, bytes) in blobs {
            self.keep(i, bytes, tag);
        }
    }

    fn drain(&mut self, i: usize) {
        while let Some(action) = self.nodes[i].peer.poll_action() {
            self.act(i, action);
        }
        let deadline = self.nodes[i].peer.deadline().max(self.now + Duration::from_millis(1));
        self.nodes[i].wake += 1;
        let wake = self.nodes[i].wake;
        self.push(deadline.since(self.now), Event::Timeout(i, wake));
    }

    fn act(&mut self, i: usize, action: Action) {
        match action {
            Action::Publish { topic, bytes } => {
                for j in 0..self.nodes.len() {
                    if j != i && self.nodes[j].peer.scope().hears(topic) && !self.lost() {
                        let slow = self.slow_gossip.mul_f64(self.draw(1000) as f64 / 1e3);
                        let delay = self.latency() + slow;
                        self.push(delay, Event::Gossip(j, topic, bytes.clone()));
                    }
                }
            }
            Action::Request { id, to, bytes } => {
                let (to, delay) = (self.ids[&to], self.latency());
                let event = Event::Request { to, from: i, id, bytes };
                if self.lost() { self.undeliverable(event) } else { self.push(delay, event) }
            }
            Action::Respond { ticket, bytes } => {
                let (to, id) = self.nodes[i].tickets.remove(&ticket).expect("each request is answered once");
                let delay = self.latency();
                self.push(delay, Event::Response { to, id, bytes: Some(bytes) });
            }
            Action::Push { id, to, header } => {
                let (to, delay) = (self.ids[&to], self.latency());
                assert!(self.nodes[i].blobs.contains_key(&header.hash), "pushes what it holds");
                let event = Event::Push { to, from: i, id, header };
                if self.lost() { self.undeliverable(event) } else { self.push(delay, event) }
            }
            Action::Fetch { id, hash, providers, mirrored, deliver, tag, .. } => {
                if mirrored && !self.mirror_down && !self.nodes[i].blobs.contains_key(&hash) {
                    self.fetch_mirrored(i, id, hash, &providers, deliver, &tag);
                } else {
                    self.fetch(i, id, hash, &providers, deliver, &tag);
                }
            }
            Action::Store { id, blobs, tag } => {
                self.store(i, blobs, &tag);
                self.push(DISK_DELAY, Event::Stored(i, id));
            }
            Action::Release { prefix } => {
                self.nodes[i].tags.retain(|tag, _| !tag.starts_with(&prefix));
                let kept: BTreeSet<Hash> = self.nodes[i].tags.values().flatten().copied().collect();
                self.nodes[i].blobs.retain(|hash, _| kept.contains(hash));
            }
            // No process of this world starts again.
            Action::Remember(_) => {}
            Action::KeepSnapshot(snapshot) => {
                self.nodes[i].peer.handle_snapshot_kept(self.now, snapshot.entries);
            }
            Action::Mirror { id, state, first } => self.mirror_state(i, id, &state, first),
            // Its engines have no inner optimizer.
            Action::MirrorMoments { id, .. } => {
                self.nodes[i].peer.handle_moments_mirrored(self.now, id, None)
            }
            Action::MirrorBlobs { blobs } => drop(self.mirror(i, &blobs)),
            Action::Checkpoint(checkpoint) => drop(self.checkpoints.insert(checkpoint.epoch)),
            Action::Compute(job) => {
                let done = self.compute(i, &job);
                let delay = ENGINE_DELAY + Duration::from_micros(self.draw(20_000));
                self.push(delay, Event::JobDone(i, done));
            }
            // What a peer listens to is asked of it when something is published.
            Action::Subscribe(_) | Action::Unsubscribe(_) => {}
            Action::Addresses { .. } | Action::Disconnect { .. } | Action::Forget { .. } => {}
            Action::Notice(notice) => self.note(i, notice),
        }
    }

    /// Copies blobs of a node into the mirror; returns whether it took them.
    fn mirror(&mut self, i: usize, blobs: &[Hash]) -> bool {
        for hash in blobs.iter().filter(|_| !self.mirror_down) {
            let blob = self.nodes[i].blobs.get(hash).expect("what goes to the mirror is here").clone();
            self.present += usize::from(self.mirror.insert(*hash, blob).is_some());
        }
        !self.mirror_down
    }

    /// Copies a state and its offer into the mirror, beginning with part `first`; the node hears of it later.
    fn mirror_state(&mut self, i: usize, id: u64, state: &StateOffer, first: usize) {
        let mut parts = state.parts.clone();
        parts.rotate_left(first);
        let there = self.mirror(i, &parts);
        if there {
            let offer = encode(state);
            self.mirror.insert(Hash::of(&offer), offer);
        }
        let delay = self.latency() * 4;
        self.push(delay, Event::Mirrored(i, id, there));
    }

    fn note(&mut self, i: usize, notice: Notice) {
        self.trace.update(format!("{:?} {i} {notice:?}\n", self.now).as_bytes());
        match notice {
            Notice::JobFailed(reason) => panic!("job failed at {i}: {reason}"),
            Notice::Arrived(arrival) => assert_eq!(self.arrived.insert(i, arrival), None, "once"),
            Notice::Refused(refusal) => drop(self.refused.insert(i, refusal)),
            Notice::Left => {
                self.nodes[i].alive = false;
                self.left.insert(i, self.elapsed());
            }
            Notice::State(event) if self.alive().next() == Some(i) => self.events.push(event),
            Notice::Leader(Some(_)) => {
                if let Some(killed) = self.leader_killed.take() {
                    self.election = self.now.since(killed);
                }
            }
            _ => {}
        }
    }

    fn fetch(&mut self, i: usize, id: u64, hash: Hash, providers: &[PeerId], deliver: bool, tag: &str) {
        let have = |node: &Node| node.alive && !node.frozen && node.blobs.contains_key(&hash);
        let local = self.nodes[i].blobs.contains_key(&hash).then_some(i);
        let remote = providers.iter().map(|peer| self.ids[peer]).find(|&j| have(&self.nodes[j]));
        let source = local.or_else(|| if self.lost() { None } else { remote });
        let delay = self.latency() * 2;
        if let Some(j) = source {
            let bytes = self.nodes[j].blobs[&hash].clone();
            self.keep(i, bytes, tag);
        }
        self.push(delay, Event::Fetched { to: i, id, hash: source.map(|_| hash), deliver });
    }

    /// A fetch from peers, or if none has it, from the mirror.
    fn fetch_mirrored(
        &mut self,
        i: usize,
        id: u64,
        hash: Hash,
        providers: &[PeerId],
        deliver: bool,
        tag: &str,
    ) {
        let have = |peer: &PeerId| {
            let node = &self.nodes[self.ids[peer]];
            node.alive && !node.frozen && node.blobs.contains_key(&hash)
        };
        match self.mirror.get(&hash).filter(|_| !providers.iter().any(have)).cloned() {
            Some(bytes) => {
                self.keep(i, bytes, tag);
                let delay = self.latency() * 4;
                self.push(delay, Event::Fetched { to: i, id, hash: Some(hash), deliver });
            }
            None => self.fetch(i, id, hash, providers, deliver, tag),
        }
    }

    /// Deterministic stand-ins for tensors: hashes of what they were computed from.
    #[expect(clippy::too_many_lines, reason = "one short arm for each job")]
    fn compute(&mut self, i: usize, job: &Job) -> JobDone {
        let tag = |stage: StageIndex, epoch: Epoch| format!("e/{stage}/{epoch}/");
        let stage_now = self.peer(i).state().stage_of(self.peer(i).id()).unwrap_or_default();
        match job {
            Job::Initialise { stage } => {
                self.nodes[i].engine =
                    Engine { base: vec![u8::try_from(stage.0).expect("few")], ..Engine::default() };
                self.weights(i, *stage, Epoch(0))
            }
            Job::Load { stage, version, weights, parts, .. } => {
                let state: Vec<u8> =
                    parts.iter().flat_map(|part| self.nodes[i].blobs[part].clone()).collect();
                assert_eq!(Hash::of(&state), *weights, "the state is what was offered");
                self.nodes[i].engine = Engine { base: state, ..Engine::default() };
                self.weights(i, *stage, *version)
            }
            Job::Snapshot { stage, version, hash } => {
                let state = self.nodes[i].engine.base.clone();
                let part = self.keep(i, state, &format!("s/{stage}/{version}/"));
                JobDone::Snapshot(StateOffer {
                    stage: *stage,
                    version: *version,
                    weights: *hash,
                    parts: vec![part],
                })
            }
            Job::Reset => {
                self.nodes[i].engine.forget();
                JobDone::Reset
            }
            Job::Forward { epoch, sample, input } => {
                self.nodes[i].engine.order.forward(sample.0);
                let bytes = format!("activation {sample} {input:?}").into_bytes();
                let output = self.keep(i, bytes, &tag(stage_now, *epoch));
                JobDone::Forwarded { epoch: *epoch, sample: *sample, output }
            }
            Job::Loss { epoch, sample, input } => {
                self.nodes[i].engine.order.forward(sample.0);
                self.accumulate(i, sample.0);
                let bytes = format!("gradient {sample} {input:?}").into_bytes();
                let gradient = input.map(|_| self.keep(i, bytes, &tag(stage_now, *epoch)));
                JobDone::Finished {
                    epoch: *epoch,
                    sample: *sample,
                    input_gradient: gradient,
                    loss_micro: Some(1_000_000),
                }
            }
            Job::Backward { epoch, sample, gradient } => {
                self.accumulate(i, sample.0);
                let bytes = format!("gradient {sample} {gradient:?}").into_bytes();
                let gradient = (stage_now.0 > 0).then(|| self.keep(i, bytes, &tag(stage_now, *epoch)));
                JobDone::Finished {
                    epoch: *epoch,
                    sample: *sample,
                    input_gradient: gradient,
                    loss_micro: None,
                }
            }
            Job::InnerStep { epoch, step } => {
                let unspent = std::mem::take(&mut self.nodes[i].engine.unspent);
                assert!(unspent > 0, "a step needs a gradient");
                assert!(*step < self.spec.training.inner_steps, "the schedule has such a step");
                self.nodes[i].engine.order.step(*step);
                JobDone::Stepped { epoch: *epoch }
            }
            Job::Contribute { stage, epoch, samples } => {
                assert_eq!(
                    self.nodes[i].engine.accumulated.len(),
                    *samples as usize,
                    "what is claimed was accumulated"
                );
                if self.spec.training.mode == TrainingMode::Local {
                    assert_eq!(self.nodes[i].engine.unspent, 0, "every gradient is in a step");
                }
                let count = self.spec.partitions(PARAMETERS);
                let sum = format!("{:?}", self.nodes[i].engine.accumulated);
                let parts =
                    (0..count).map(|p| self.keep(i, format!("{p} {sum}").into_bytes(), &tag(*stage, *epoch)));
                let partitions = parts.collect();
                let (before, taken) = (self.nodes[i].engine.earlier_steps, self.nodes[i].engine.order.steps);
                let local = self.spec.training.mode == TrainingMode::Local;
                let moments =
                    local.then(|| self.keep(i, before.to_le_bytes().to_vec(), &tag(*stage, *epoch)));
                let moments_after = local.then(|| Hash::of(&(before + u64::from(taken)).to_le_bytes()));
                JobDone::Contributed { epoch: *epoch, partitions, moments, moments_after }
            }
            Job::Reduce { stage, epoch, partition, inputs } => {
                let mut sum = Vec::new();
                for (peer, weight, hash) in inputs {
                    sum.extend(
                        format!("{peer} {weight} {}", String::from_utf8_lossy(&self.nodes[i].blobs[hash]))
                            .bytes(),
                    );
                }
                let merged = self.keep(i, sum, &tag(*stage, *epoch));
                JobDone::Reduced {
                    stage: *stage,
                    partition: *partition,
                    merged: Ok(merged),
                    outliers: Vec::new(),
                }
            }
            Job::Apply { stage, epoch, partitions } => {
                let engine = &mut self.nodes[i].engine;
                assert!(!partitions.is_empty(), "nothing here makes an epoch impossible");
                engine.base =
                    Hash::of(format!("{:?} {partitions:?}", Hash::of(&engine.base)).as_bytes()).0.to_vec();
                engine.earlier_steps += u64::from(engine.order.steps);
                engine.forget();
                self.weights(i, *stage, Epoch(epoch.0 + 1))
            }
            Job::Compare { .. } | Job::Sketch { .. } | Job::Losses { .. } => {
                unreachable!("miners compare and evaluate nothing")
            }
        }
    }

    fn weights(&self, i: usize, stage: StageIndex, version: Epoch) -> JobDone {
        JobDone::Weights { stage, version, hash: Hash::of(&self.nodes[i].engine.base) }
    }

    fn accumulate(&mut self, i: usize, sample: u64) {
        let stage = self.peer(i).state().stage_of(self.peer(i).id()).unwrap_or_default();
        self.trained.push((stage, sample, i));
        let fresh = self.nodes[i].engine.accumulated.insert((sample, Hash::default()));
        assert!(fresh, "sample {sample} accumulated twice at {i}");
        self.nodes[i].engine.unspent += 1;
        self.nodes[i].engine.order.gradient(sample);
    }
}
