//! A virtual host: a real protocol peer, what it has on disk, and an engine.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use iota_protocol::limits::{MESSAGE_NUMBERS_AHEAD, SNAPSHOT_EVERY_ENTRIES, WIRE_VERSION_FIRST};
use iota_protocol::log::Snapshot;
use iota_protocol::pace::Paces;
use iota_protocol::peer::{Peer, Remains, Roles};
use iota_protocol::wire::Versions;
use iota_protocol::wire::message::{ControlUpdate, StateOffer};
use iota_protocol::{Hash, Identity, Instant, LogIndex, RunSpec};
use serde::{Deserialize, Serialize};

use crate::adversary::Behaviour;
use crate::blobs::BlobStore;
use crate::clock::Clock;
use crate::double::Double;
use crate::network::{HostIndex, Link};
use crate::storage::Disk;
use crate::trainer::{Engines, Trainer};
use crate::world::Event;

/// What the world itself can read, whatever programs hosts run: no version differs from another in what it says yet.
pub(crate) const ALL_VERSIONS: Versions = Versions::new(WIRE_VERSION_FIRST, u16::MAX);

/// The protocol's peer as hosts run it.
pub type VirtualPeer = Peer<Disk>;

/// What a host is.
#[derive(Clone, Debug)]
pub struct HostSetup {
    /// How it is connected.
    pub link: Link,
    /// How fast it computes; 1 takes the times of [`Costs`](crate::costs::Costs).
    pub speed: f64,
    /// Its clock.
    pub clock: Clock,
    /// Bytes its disk holds.
    pub disk: u64,
    /// Whether it is there from the start, rather than from its [`Join`](crate::faults::Fault::Join).
    pub from_start: bool,
    /// Whether it asks for a miner's place.
    pub miner: bool,
    /// Whether it validates; only if it asks for no miner's place.
    pub validator: bool,
    /// The wire versions that its program speaks.
    pub versions: Versions,
    /// Entries of the log after which it names a state, while it leads.
    pub snapshots_every: u64,
    /// How it deviates from the protocol: the name of an adversary.
    pub adversary: Option<crate::adversary::Kind>,
    /// What is broken in it although it counts as honest. For tests of checkers.
    pub double: Option<Double>,
}

impl Default for HostSetup {
    fn default() -> Self {
        Self {
            link: Link::DATACENTRE,
            speed: 1.0,
            clock: Clock::EXACT,
            disk: 1 << 40,
            from_start: true,
            miner: true,
            validator: false,
            versions: Versions::PROGRAM,
            snapshots_every: SNAPSHOT_EVERY_ENTRIES,
            adversary: None,
            double: None,
        }
    }
}

/// Messages of a host, by kind. Gossip is counted where it is heard, copies left out; all else where it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// Decided entries heard.
    pub control: u64,
    /// Peer records heard.
    pub records: u64,
    /// Manifests and digests heard.
    pub merges: u64,
    /// Requests made: consensus, log, states.
    pub requests: u64,
    /// Activations and gradients pushed, tries that were refused included.
    pub pushes: u64,
    /// Blobs fetched.
    pub fetches: u64,
}

impl Messages {
    /// Gossip of all topics.
    #[must_use]
    pub const fn gossip(&self) -> u64 {
        self.control + self.records + self.merges
    }
}

/// Bytes a host moved, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Gossip, with all copies, in both directions.
    pub gossip: u64,
    /// Gossip of merges alone.
    pub merge_gossip: u64,
    /// How many messages, by kind.
    pub messages: Messages,
    /// Requests and responses, in both directions.
    pub requests: u64,
    /// Activations and gradients sent.
    pub pushed: u64,
    /// Blobs fetched: partitions, manifests, states.
    pub fetched: u64,
    /// Blobs served to others.
    pub served: u64,
    /// Everything its peer wanted done: a count, not bytes.
    pub actions: u64,
    /// Messages it sent: gossip of its own, requests, responses and pushes. A count, not bytes.
    pub sent_messages: u64,
}

impl Traffic {
    /// Bytes of all kinds, in both directions where they are counted so. Merge gossip is part of the gossip.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.gossip + self.requests + self.pushed + self.fetched + self.served
    }
}

/// A virtual host.
pub struct Host {
    /// Who it is.
    pub identity: Identity,
    /// What it is.
    pub setup: HostSetup,
    /// Its process, while one runs.
    pub(crate) peer: Option<VirtualPeer>,
    /// Counts its processes.
    pub(crate) incarnation: u32,
    pub(crate) frozen: bool,
    /// What happened to it while it was frozen.
    pub(crate) inbox: VecDeque<Event>,
    /// Its blobs.
    pub store: BlobStore,
    /// Bytes that are missing of blobs whose transfer was given up.
    pub(crate) missing: BTreeMap<Hash, u64>,
    /// How long transfers of its process may take.
    pub(crate) paces: Paces,
    pub(crate) disk: Disk,
    /// The message number that none of its processes used nor went beyond.
    pub(crate) numbered: u64,
    /// The state that its processes wrote down last.
    pub(crate) remembered: Option<StateOffer>,
    /// What its log begins with.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// The certified log of its last process that had one.
    pub(crate) log: Option<ControlUpdate>,
    pub(crate) trainer: Box<dyn Trainer>,
    pub(crate) behaviour: Option<Box<dyn Behaviour>>,
    /// Whether its behaviour has done anything that the protocol does not.
    pub(crate) deviated: bool,
    /// The wake-up that counts.
    pub(crate) wake: Option<(Instant, u64)>,
    pub(crate) wakes: u64,
    /// Requests to be answered: who asked, in which of its processes, under which number.
    pub(crate) tickets: BTreeMap<u64, (HostIndex, u32, u64)>,
    /// What it moved.
    pub traffic: Traffic,
    /// Time its engine was busy.
    pub busy: std::time::Duration,
}

impl Host {
    /// A host without a process.
    pub(crate) fn new(
        identity: Identity,
        setup: HostSetup,
        behaviour: Option<Box<dyn Behaviour>>,
        trainer: Box<dyn Trainer>,
    ) -> Self {
        Self {
            identity,
            peer: None,
            incarnation: 0,
            frozen: false,
            inbox: VecDeque::new(),
            store: BlobStore::new(setup.disk),
            missing: BTreeMap::new(),
            paces: Paces::default(),
            disk: Disk::default(),
            numbered: 0,
            remembered: None,
            snapshot: None,
            log: None,
            trainer,
            behaviour,
            deviated: false,
            wake: None,
            wakes: 0,
            tickets: BTreeMap::new(),
            traffic: Traffic::default(),
            busy: std::time::Duration::ZERO,
            setup,
        }
    }

    /// What its candidate's consensus has on disk.
    #[must_use]
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its process, while one runs.
    #[must_use]
    pub const fn peer(&self) -> Option<&VirtualPeer> {
        self.peer.as_ref()
    }

    /// Whether it follows the protocol.
    #[must_use]
    pub const fn is_honest(&self) -> bool {
        self.setup.adversary.is_none()
    }

    /// Whether it has done anything that the protocol does not: an adversary may never have had an occasion.
    #[must_use]
    pub const fn has_deviated(&self) -> bool {
        self.deviated
    }

    /// Whether its process runs and is not frozen.
    #[must_use]
    pub const fn is_awake(&self) -> bool {
        self.peer.is_some() && !self.frozen
    }

    /// The engine, to ask what it holds.
    #[must_use]
    pub fn trainer(&self) -> &dyn Trainer {
        &*self.trainer
    }

    /// Starts a process from what is on disk.
    pub(crate) fn start(&mut self, now: Instant, spec: &Arc<RunSpec>, engines: &Engines) {
        let roles = Roles { miner: self.setup.miner, validator: self.setup.validator };
        // Microseconds of this host's clock and above all that were written down, as the node takes them.
        let sequence = self.numbered.max(self.setup.clock.local(now).as_nanos() / 1_000);
        self.numbered = sequence + MESSAGE_NUMBERS_AHEAD;
        self.incarnation += 1;
        self.paces = Paces::default();
        if self.setup.double == Some(Double::LosesItsLog) {
            (self.disk, self.log, self.snapshot) = (Disk::default(), None, None);
        }
        self.trainer = engines.trainer();
        let (spec, identity) = (Arc::clone(spec), self.identity.clone());
        let peer = Peer::new(spec, identity, roles, &engines.parameters(), sequence, self.disk.clone());
        let mut peer = peer.speaking(self.setup.versions).with_snapshots_every(self.setup.snapshots_every);
        let tags = self.store.tags().map(str::to_owned).collect();
        let snapshot = self.snapshot.as_deref().cloned();
        let remains = Remains { log: self.log.clone(), snapshot, state: self.remembered.clone(), tags };
        peer.recover(remains).expect("a log that was verified once is verified again");
        self.peer = Some(peer);
    }

    /// Ends the process. What it stored and wrote down stays, and the log, which a node writes as it comes.
    pub(crate) fn stop(&mut self) {
        let log = self.peer.take().and_then(|peer| {
            let first = peer.log().first() as u64;
            peer.log().range(LogIndex(first), usize::MAX)
        });
        // A candidate that has just started has no certificate yet.
        self.log = log.or_else(|| self.log.take());
        self.frozen = false;
        self.inbox.clear();
        self.tickets.clear();
        self.wake = None;
    }
}
