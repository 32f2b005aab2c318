//! The world: virtual hosts, what is between them, and the one loop that lets things happen.
//!
//! ```text
//!            ┌── actions of a peer ──▶ network, mesh, engine ──┐
//!   handle_* │                                                 ▼ events, each at its time
//!            └───────────────────────── queue ◀────────────────┘
//! ```
//! The world drives peers as the node does: it delivers, it never decides. What a driver may choose (deadlines of
//! transfers, how many at once) is chosen as in the node.

mod act;
mod deliver;
mod disturb;
mod merge_failure;
mod mirror;
mod spare;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::miner::{Job, JobDone};
use iota_protocol::spec::Candidate;
use iota_protocol::wire::frame::{PushAck, PushHeader};
use iota_protocol::wire::message::{Topic, WeightsRecord};
use iota_protocol::wire::{Gossip, RejectReason};
use iota_protocol::{Epoch, Hash, Identity, Instant, PeerId, RunSpec};

use crate::adversary::Kind;
use crate::blobs::Blob;
use crate::costs::{Costs, partition_bytes};
use crate::double::Double;
use crate::faults::{MergeFailure, Scheduled};
use crate::host::{Host, HostSetup};
use crate::network::{FlowEnd, HostIndex, Network};
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::queue::Queue;
use crate::random::Random;
use crate::reputation::Reputations;
use crate::topics::Topics;
use crate::trainer::{Compute, Engines};

/// Hosts start within this time of each other.
const START_SPREAD: Duration = Duration::from_millis(500);
/// After the run has finished, the time in which the last certificates travel.
const AFTERMATH: Duration = Duration::from_secs(4);
/// Events between two looks at whether the run has finished.
const FINISH_LOOK: u64 = 256;

/// Everything a simulation starts from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The run. Its candidates are the first hosts.
    pub spec: Arc<RunSpec>,
    /// What everything else is drawn from.
    pub seed: u64,
    /// The hosts.
    pub hosts: Vec<HostSetup>,
    /// What work costs.
    pub costs: Costs,
    /// What engines compute.
    pub compute: Compute,
    /// What goes wrong.
    pub schedule: Vec<Scheduled>,
    /// What goes wrong whenever certain merges are decided on.
    pub merge_failures: Vec<MergeFailure>,
    /// Whether hosts that can be reached pass on what others cannot send each other directly.
    pub relays: bool,
    /// Whether faults that would take the last copy of a stage's weights are left out.
    pub spares_last_copies: bool,
}

impl Setup {
    /// A set-up of `hosts` equal hosts, the first `candidates` of which may lead.
    ///
    /// # Panics
    /// If the spec is invalid with these candidates.
    #[must_use]
    pub fn new(mut spec: RunSpec, seed: u64, candidates: usize, hosts: usize) -> Self {
        spec.seed = seed;
        spec.orchestrator.candidates = (0..candidates)
            .map(|host| Candidate { peer: identity(seed, host).peer(), priority: 0 })
            .collect();
        spec.validate().unwrap_or_else(|error| panic!("an invalid set-up: {error}"));
        Self {
            spec: Arc::new(spec),
            seed,
            hosts: vec![HostSetup::default(); hosts],
            costs: Costs::default(),
            compute: Compute::Cost,
            schedule: Vec::new(),
            merge_failures: Vec::new(),
            relays: false,
            spares_last_copies: false,
        }
    }
}

/// The key of a host.
#[must_use]
pub fn identity(seed: u64, host: HostIndex) -> Identity {
    let secret = Hash::of_parts(&[b"iota-sim host", &seed.to_le_bytes(), &(host as u64).to_le_bytes()]);
    Identity::from_secret(secret.0)
}

/// How a simulation ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// All honest hosts know that the run is over, and hold its last weights.
    Finished(Instant),
    /// The time was up.
    TimeUp,
    /// A rule was broken.
    Violated(Violation),
}

/// A gossiped message on its way.
#[derive(Debug)]
pub(crate) struct Broadcast {
    author: HostIndex,
    topic: Topic,
    bytes: u64,
    /// Opened once for all: opening asks no receiver's state.
    opened: Result<Gossip, RejectReason>,
    deliveries: Vec<(Instant, HostIndex)>,
}

/// A fetch under way.
#[derive(Debug)]
pub(crate) struct Fetch {
    host: HostIndex,
    incarnation: u32,
    id: u64,
    hash: Hash,
    providers: Vec<PeerId>,
    limit: u64,
    mirrored: bool,
    deliver: bool,
    tag: String,
    begun: Instant,
    deadline: Instant,
}

/// A push under way.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    from: HostIndex,
    incarnation: u32,
    id: u64,
    to: HostIndex,
    header: PushHeader,
    blob: Blob,
    begun: Instant,
    deadline: Instant,
}

/// What a flow carries.
#[derive(Debug)]
enum Cargo {
    Push(Push),
    Fetch(Rc<Fetch>, HostIndex, Blob),
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Event {
    Start(HostIndex),
    Wake(HostIndex, u64),
    Gossip(Rc<Broadcast>, usize),
    Request {
        to: HostIndex,
        from: HostIndex,
        incarnation: u32,
        id: u64,
        bytes: Vec<u8>,
    },
    Response {
        to: HostIndex,
        incarnation: u32,
        id: u64,
        bytes: Option<Vec<u8>>,
    },
    PushArrives(Box<Push>),
    PushEnds {
        host: HostIndex,
        incarnation: u32,
        id: u64,
        to: PeerId,
        ack: Option<PushAck>,
    },
    FetchTries(Rc<Fetch>, usize),
    FetchEnds {
        host: HostIndex,
        incarnation: u32,
        id: u64,
        arrived: Option<Box<(Hash, Blob, String)>>,
        deliver: bool,
    },
    Stored {
        host: HostIndex,
        incarnation: u32,
        id: u64,
        kept: bool,
    },
    Mirrored {
        host: HostIndex,
        incarnation: u32,
        id: u64,
        there: bool,
    },
    MomentsMirrored {
        host: HostIndex,
        incarnation: u32,
        id: u64,
        hash: Hash,
    },
    FlowEnds(FlowEnd),
    FlowExpires(u64),
    JobEnds {
        host: HostIndex,
        incarnation: u32,
        job: Box<(Job, JobDone)>,
    },
    Connected {
        host: HostIndex,
        incarnation: u32,
        peer: PeerId,
    },
    Fault(usize),
    MergeFails(MergeFailure),
    Restart(HostIndex),
    Thaw(HostIndex, u32),
    Stop(HostIndex, u32),
    /// This process of a host says that it is gone, and ends.
    Depart(HostIndex, u32),
}

/// A simulation.
pub struct World {
    spec: Arc<RunSpec>,
    costs: Costs,
    engines: Engines,
    seed: u64,
    partition_bytes: u64,
    queue: Queue<Event>,
    network: Network,
    topics: Topics,
    reputations: Reputations,
    hosts: Vec<Host>,
    indices: BTreeMap<PeerId, HostIndex>,
    cargo: BTreeMap<u64, Cargo>,
    mirror: BTreeMap<iota_protocol::Hash, Blob>,
    schedule: Vec<Scheduled>,
    merge_failures: Vec<MergeFailure>,
    spares_last_copies: bool,
    electorate: iota_protocol::log::certificate::Electorate,
    random: Random,
    /// The dice of all adversaries.
    dice: Random,
    accomplices: BTreeMap<Kind, Vec<PeerId>>,
    drop_gossip: f64,
    repeat_gossip: f64,
    tickets: u64,
    events: u64,
    finished_hosts: bool,
    observers: Vec<Box<dyn Observer>>,
    violation: Option<Violation>,
}

impl World {
    /// A world at its beginning.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let mut world = Self {
            partition_bytes: partition_bytes(&setup.spec, setup.costs.parameters),
            electorate: iota_protocol::log::certificate::Electorate::new(&setup.spec),
            engines: Engines::new(setup.compute, &setup.spec, &setup.costs),
            spec: setup.spec,
            costs: setup.costs,
            seed: setup.seed,
            queue: Queue::default(),
            network: Network::new(setup.seed).relaying(setup.relays),
            topics: Topics::new(setup.seed),
            reputations: Reputations::default(),
            hosts: Vec::new(),
            indices: BTreeMap::new(),
            cargo: BTreeMap::new(),
            mirror: BTreeMap::new(),
            schedule: setup.schedule,
            merge_failures: setup.merge_failures,
            spares_last_copies: setup.spares_last_copies,
            random: Random::new(setup.seed, "world"),
            dice: Random::new(setup.seed, "adversaries"),
            accomplices: BTreeMap::new(),
            drop_gossip: 0.0,
            repeat_gossip: 0.0,
            tickets: 0,
            events: 0,
            finished_hosts: false,
            observers: Vec::new(),
            violation: None,
        };
        for host in setup.hosts {
            world.add_host(host);
        }
        for (index, (at, _)) in world.schedule.iter().enumerate() {
            world.queue.push(*at, Event::Fault(index));
        }
        world
    }

    fn add_host(&mut self, setup: HostSetup) {
        let index = self.hosts.len();
        let identity = identity(self.seed, index);
        let adversary = setup.adversary.map(|kind| kind.behaviour(self.seed.wrapping_add(index as u64)));
        let behaviour = adversary.or_else(|| setup.double.map(Double::behaviour));
        if let Some(kind) = setup.adversary {
            self.accomplices.entry(kind).or_default().push(identity.peer());
        }
        self.indices.insert(identity.peer(), index);
        self.network.add(setup.link);
        self.topics.add();
        if setup.from_start {
            let delay = self.random.duration(Duration::ZERO, START_SPREAD);
            self.queue.push(delay, Event::Start(index));
        }
        let trainer = self.engines.trainer();
        self.hosts.push(Host::new(identity, setup, behaviour, trainer));
    }

    /// Adds somebody who looks on.
    pub fn watch(&mut self, observer: Box<dyn Observer>) {
        self.observers.push(observer);
    }

    /// Lets things happen until the run has finished, a rule is broken, or `limit` of virtual time has passed.
    pub fn run(&mut self, limit: Duration) -> Ending {
        let until = Instant::ZERO + limit;
        let mut finished = None;
        while let Some(event) = self.queue.pop_until(finished.map_or(until, |at: Instant| at + AFTERMATH)) {
            self.events += 1;
            self.dispatch(event);
            self.settle_flows();
            if self.violation.is_some() {
                break;
            }
            if finished.is_none() && self.events.is_multiple_of(FINISH_LOOK) && self.is_finished() {
                finished = Some(self.now());
            }
        }
        self.conclude();
        match (self.violation.take(), finished) {
            (Some(violation), _) => Ending::Violated(violation),
            (None, Some(at)) => Ending::Finished(at),
            (None, None) => Ending::TimeUp,
        }
    }

    /// Lets the next thing happen, if it happens within `limit` of virtual time since the start. Neither a finished run
    /// nor a broken rule ends this; [`run`](Self::run) notices both.
    pub fn step(&mut self, limit: Duration) -> bool {
        let Some(event) = self.queue.pop_until(Instant::ZERO + limit) else { return false };
        self.events += 1;
        self.dispatch(event);
        true
    }

    /// Asks the observers for their last words.
    fn conclude(&mut self) {
        let mut observers = std::mem::take(&mut self.observers);
        for observer in &mut observers {
            if self.violation.is_none() {
                self.violation = observer.finish(self).err();
            }
        }
        self.observers = observers;
    }

    /// Whether all honest hosts that are there know that the run is over, and miners with a place hold the last weights.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let last = Epoch(self.spec.training.epochs);
        self.finished_hosts
            && self.hosts.iter().filter(|host| host.is_honest()).filter_map(Host::peer).all(|peer| {
                // One that came back without the role may still have its place: a run that is over evicts nobody.
                let miner = peer.miner().filter(|_| peer.state().stage_of(peer.id()).is_some());
                let holds =
                    |weights: Option<WeightsRecord>| weights.is_some_and(|weights| weights.version == last);
                peer.state().finished() && miner.is_none_or(|miner| holds(miner.weights()))
            })
    }

    /// Virtual time.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.queue.now()
    }

    /// Events that have happened.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Events that are still to happen.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The run's spec.
    #[must_use]
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// What work costs.
    #[must_use]
    pub const fn costs(&self) -> &Costs {
        &self.costs
    }

    /// What made the engines of its hosts.
    #[must_use]
    pub const fn engines(&self) -> &Engines {
        &self.engines
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host with this identity.
    #[must_use]
    pub fn index_of(&self, peer: PeerId) -> Option<HostIndex> {
        self.indices.get(&peer).copied()
    }

    /// The network.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// Hosts whose processes run.
    pub fn running(&self) -> impl Iterator<Item = HostIndex> + '_ {
        (0..self.hosts.len()).filter(|&host| self.hosts[host].peer.is_some())
    }

    /// The honest host that knows most of the log.
    #[must_use]
    pub fn best_informed(&self) -> Option<&crate::host::VirtualPeer> {
        let honest = self.hosts.iter().filter(|host| host.is_honest()).filter_map(Host::peer);
        honest.max_by_key(|peer| (peer.state().applied(), std::cmp::Reverse(peer.id())))
    }

    /// Shows something to those who look on.
    fn show(&mut self, host: HostIndex, seen: Seen<'_>) {
        let Self { hosts, observers, queue, violation, .. } = self;
        let shown = &hosts[host];
        let observation = Observation {
            at: queue.now(),
            host,
            honest: shown.is_honest(),
            peer: shown.peer(),
            store: &shown.store,
            queued: queue.len(),
            seen,
        };
        for observer in observers {
            if let Err(broken) = observer.observe(&observation) {
                violation.get_or_insert(broken);
            }
        }
    }

    /// The time on a host's clock.
    fn local_now(&self, host: HostIndex) -> Instant {
        self.hosts[host].setup.clock.local(self.now())
    }
}
