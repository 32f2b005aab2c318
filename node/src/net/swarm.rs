//! The task that owns the libp2p `Swarm`: wait for one thing, then apply it without waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use futures::StreamExt;
use libp2p::gossipsub::TopicHash;
use libp2p::metrics::Metrics as Libp2pMetrics;
use libp2p::request_response::OutboundRequestId;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, noise, tcp, yamux};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::behaviour::{Behaviour, BehaviourEvent, protocol_version, wire_topic};
use super::bootstrap::Bootstrap;
use super::config::{
    COMMANDS_MAX, CONNECTION_IDLE, EVENTS_HELD_MAX, EVENTS_MAX, NetConfig, NetError, QUIC_IDLE,
};
use super::handle::{Command, NetEvent, NetHandle, RequestError};
use super::listen::{listen_all, released};
use super::outbox::Outbox;
use super::peer::{PeerKey, keypair, peer_key};
use crate::metrics::NetMetrics;
use crate::traffic::Traffic;

pub(super) type Answer = oneshot::Sender<Result<Vec<u8>, RequestError>>;

/// Starts the control plane: returns once every listener is up.
///
/// libp2p's own metrics and [`NetMetrics`] are registered in `registry`; payload bytes are counted in
/// `traffic`. The task ends on [`NetHandle::shutdown`] or when every handle and the receiver are gone.
///
/// # Errors
/// An address in use or unusable, or a configuration that no protocol accepts.
pub async fn start(
    config: NetConfig,
    registry: &mut Registry,
    traffic: Traffic,
) -> Result<(NetHandle, mpsc::Receiver<NetEvent>, JoinHandle<()>), NetError> {
    let keypair = keypair(&config.secret).ok_or_else(|| NetError::setup("identity", "not an ed25519 key"))?;
    let metrics = NetMetrics::register(registry);
    let behaviour = Behaviour::new(&config, &keypair, &metrics)?;
    let libp2p = Libp2pMetrics::new(registry);
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .map_err(|error| NetError::setup("tcp", error))?
        .with_quic_config(|mut quic| {
            quic.max_idle_timeout = u32::try_from(QUIC_IDLE.as_millis()).unwrap_or(u32::MAX);
            quic
        })
        .with_dns()
        .map_err(|error| NetError::setup("dns", error))?
        .with_bandwidth_metrics(registry)
        .with_behaviour(|_| behaviour)
        .map_err(|error| NetError::setup("protocols", error))?
        .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(CONNECTION_IDLE).with_smart_dial())
        .build();
    let early = listen_all(&mut swarm, &config.listen).await?;
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (events, event_queue) = mpsc::channel(EVENTS_MAX);
    let handle = NetHandle {
        commands: commands.clone(),
        metrics: metrics.clone(),
        rpc_max_bytes: config.rpc_max_bytes,
        rpc_timeout: config.rpc_timeout,
    };
    let local = *swarm.local_peer_id();
    let mut task = SwarmTask {
        topics: topic_names(&config),
        version: protocol_version(&config.run),
        bootstrap: Bootstrap::new(&config.bootstrap, local, Instant::now()),
        config,
        swarm,
        libp2p,
        metrics,
        traffic,
        commands: commands.downgrade(),
        command_queue,
        events,
        held: VecDeque::new(),
        outbox: Outbox::default(),
        requests: BTreeMap::new(),
        loopback: BTreeSet::new(),
        processes: BTreeMap::new(),
        redials: BTreeMap::new(),
    };
    drop(commands);
    for event in early {
        task.on_swarm(event);
    }
    Ok((handle, event_queue, tokio::spawn(task.run())))
}

fn topic_names(config: &NetConfig) -> BTreeMap<TopicHash, String> {
    let name = |topic: &String| (wire_topic(&config.run, topic).hash(), topic.clone());
    config.topics.iter().map(name).collect()
}

pub(super) struct SwarmTask {
    pub(super) config: NetConfig,
    pub(super) version: String,
    /// Topics joined, by what the wire calls them.
    pub(super) topics: BTreeMap<TopicHash, String>,
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) libp2p: Libp2pMetrics,
    pub(super) metrics: NetMetrics,
    pub(super) traffic: Traffic,
    /// Weak, so that the command queue closes with the last handle.
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) command_queue: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Sender<NetEvent>,
    /// Connection events that found the event queue full, oldest first.
    pub(super) held: VecDeque<NetEvent>,
    pub(super) bootstrap: Bootstrap,
    pub(super) outbox: Outbox,
    pub(super) requests: BTreeMap<OutboundRequestId, Answer>,
    /// Peers connected from this machine; only their loopback addresses are worth keeping.
    pub(super) loopback: BTreeSet<PeerId>,
    /// What the process of each connected peer calls itself.
    pub(super) processes: BTreeMap<PeerId, String>,
    /// Where to dial peers whose connections are being closed, since another process of theirs runs.
    pub(super) redials: BTreeMap<PeerId, Vec<Multiaddr>>,
}

#[expect(clippy::large_enum_variant, reason = "one value at a time, on the stack of one task")]
enum Action {
    Command(Command),
    Swarm(SwarmEvent<BehaviourEvent>),
    Timer,
    Flush,
    Stop,
}

enum Flow {
    Continue,
    Stop(Option<oneshot::Sender<()>>),
}

impl SwarmTask {
    async fn run(mut self) {
        self.on_timer();
        let stopped = loop {
            let action = self.select().await;
            match self.apply(action) {
                Flow::Continue => {}
                Flow::Stop(stopped) => break stopped,
            }
        };
        let listening: Vec<_> = self.swarm.listeners().cloned().collect();
        // Dropping the swarm closes connections and listeners, in the background.
        drop(self);
        released(&listening).await;
        if let Some(stopped) = stopped {
            let _caller_left = stopped.send(());
        }
    }

    /// Waits for the next thing. Cancel safe, decides nothing.
    async fn select(&mut self) -> Action {
        let due = [self.bootstrap.next_due(), self.outbox.next_due()].into_iter().flatten().min();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            command = self.command_queue.recv() => command.map_or(Action::Stop, Action::Command),
            room = self.events.reserve(), if !self.held.is_empty() => match room {
                Ok(_room) => Action::Flush,
                Err(_closed) => Action::Stop,
            },
            event = self.swarm.select_next_some() => Action::Swarm(event),
            () = timer => Action::Timer,
        }
    }

    fn apply(&mut self, action: Action) -> Flow {
        match action {
            Action::Command(Command::Shutdown(stopped)) => return Flow::Stop(Some(stopped)),
            Action::Stop => return Flow::Stop(None),
            Action::Command(command) => self.on_command(command),
            Action::Swarm(event) => self.on_swarm(event),
            Action::Timer => self.on_timer(),
            Action::Flush => self.flush_held(),
        }
        Flow::Continue
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        let swarm = &mut self.swarm;
        self.bootstrap.dial_due(now, |address| {
            let dial = DialOpts::from(address.clone());
            let connection = dial.connection_id();
            swarm.dial(dial).ok().map(|()| connection)
        });
        let mut outbox = std::mem::take(&mut self.outbox);
        let given_up = outbox.retry(now, |message| self.publish_once(&message.topic, &message.bytes));
        self.outbox = outbox;
        self.metrics.publish_given_up(given_up);
    }
}

/// The event queue.
impl SwarmTask {
    pub(super) fn tell_of(&mut self, peer: PeerId, event: impl FnOnce(PeerKey) -> NetEvent) {
        if let Some(peer) = peer_key(&peer) {
            self.tell(event(peer));
        }
    }

    /// Passes on an event that must not be lost because the owner is slow.
    pub(super) fn tell(&mut self, event: NetEvent) {
        let full = if self.held.is_empty() { self.try_send(event) } else { Some(event) };
        match full {
            Some(_) if self.held.len() >= EVENTS_HELD_MAX => self.metrics.event_dropped(),
            Some(event) => self.held.push_back(event),
            None => {}
        }
    }

    /// Passes on a peer's input if there is room, and gives it back if not.
    pub(super) fn offer(&mut self, event: NetEvent) -> Option<NetEvent> {
        let refused = if self.held.is_empty() { self.try_send(event) } else { Some(event) };
        if refused.is_some() {
            self.metrics.event_dropped();
        }
        refused
    }

    /// Returns the event when the queue is full. Without a receiver nobody misses it.
    fn try_send(&self, event: NetEvent) -> Option<NetEvent> {
        match self.events.try_send(event) {
            Err(mpsc::error::TrySendError::Full(event)) => Some(event),
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
        }
    }

    fn flush_held(&mut self) {
        while let Some(event) = self.held.pop_front() {
            if let Some(event) = self.try_send(event) {
                self.held.push_front(event);
                return;
            }
        }
    }
}
