//! The protocols a peer speaks and how each is set up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use iota_protocol::limits::{GOSSIP_GRAYLIST, GOSSIP_REFUSED_DECAY, GOSSIP_REFUSED_WEIGHT};
use libp2p::gossipsub::{
    self, IdentTopic, MessageAuthenticity, MessageId, PeerScoreParams, PeerScoreThresholds, TopicScoreParams,
    ValidationMode,
};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    StreamProtocol, allow_block_list, connection_limits, identify, kad, mdns, ping, request_response,
};

use super::codec::{FrameCodec, PROTOCOL};
use super::config::{
    CONNECTIONS_INCOMING_MAX, CONNECTIONS_MAX, CONNECTIONS_PENDING_INCOMING_MAX,
    CONNECTIONS_PENDING_OUTGOING_MAX, CONNECTIONS_PER_PEER_MAX, GOSSIP_ENVELOPE_BYTES_MAX, NetConfig,
    NetError, REQUESTS_PER_CONNECTION_MAX,
};
use crate::metrics::NetMetrics;

/// How often the gossip mesh repairs itself; also the unit of the next two constants.
const GOSSIP_HEARTBEAT: Duration = Duration::from_secs(1);
/// Pause before the first heartbeat, after which a fresh peer starts to mesh.
const GOSSIP_FIRST_HEARTBEAT: Duration = Duration::from_millis(100);
/// Heartbeats a message is kept for: the time the owner has to report it.
const GOSSIP_HISTORY: usize = 12;
/// Heartbeats a message is offered to peers outside the mesh.
const GOSSIP_OFFERED: usize = 3;
/// How long a message id is remembered, so that old messages do not come round again.
const GOSSIP_REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// Peers of one IP address before each further one costs score. A household or a lab shares an
/// address; a thousand identities behind one do not happen by accident.
const PEERS_PER_IP: f64 = 16.0;

/// Everything one peer speaks.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// First, so that refused connections reach no other protocol.
    pub(super) limits: connection_limits::Behaviour,
    pub(super) banned: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) kad: kad::Behaviour<kad::store::MemoryStore>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) rpc: request_response::Behaviour<FrameCodec>,
}

/// Returns the protocol version peers of one run announce to each other.
pub(super) fn protocol_version(run: &str) -> String {
    format!("/iota/{run}/1")
}

/// Returns the topic as it is named on the wire.
pub(super) fn wire_topic(run: &str, topic: &str) -> IdentTopic {
    IdentTopic::new(format!("iota/{run}/{topic}"))
}

impl Behaviour {
    pub(super) fn new(config: &NetConfig, keypair: &Keypair, metrics: &NetMetrics) -> Result<Self, NetError> {
        let local = keypair.public().to_peer_id();
        let identify = identify::Config::new(protocol_version(&config.run), keypair.public())
            .with_agent_version(format!("iota-node/{} ({:x})", env!("CARGO_PKG_VERSION"), config.process))
            .with_push_listen_addr_updates(true);
        let mdns = if config.mdns {
            let mdns = mdns::tokio::Behaviour::new(mdns::Config::default(), local)
                .map_err(|error| NetError::setup("mdns", error))?;
            Some(mdns)
        } else {
            None
        };
        let rpc = request_response::Behaviour::with_codec(
            FrameCodec::new(config.rpc_max_bytes, metrics.clone()),
            [(PROTOCOL, request_response::ProtocolSupport::Full)],
            request_response::Config::default()
                .with_request_timeout(config.rpc_timeout)
                .with_max_concurrent_streams(REQUESTS_PER_CONNECTION_MAX),
        );
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits()),
            banned: allow_block_list::Behaviour::default(),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::default(),
            kad: kademlia(config, keypair)?,
            mdns: Toggle::from(mdns),
            gossip: gossip(config, keypair)?,
            rpc,
        })
    }
}

fn limits() -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_established(Some(CONNECTIONS_MAX))
        .with_max_established_incoming(Some(CONNECTIONS_INCOMING_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
        .with_max_pending_incoming(Some(CONNECTIONS_PENDING_INCOMING_MAX))
        .with_max_pending_outgoing(Some(CONNECTIONS_PENDING_OUTGOING_MAX))
}

/// A private table of the run: another run's peers speak another protocol. It is used to find peers,
/// not to store records, so what strangers want to store is dropped.
fn kademlia(
    config: &NetConfig,
    keypair: &Keypair,
) -> Result<kad::Behaviour<kad::store::MemoryStore>, NetError> {
    let local = keypair.public().to_peer_id();
    let protocol = StreamProtocol::try_from_owned(format!("/iota/{}/kad/1", config.run))
        .map_err(|error| NetError::setup("kademlia", error))?;
    let mut settings = kad::Config::new(protocol);
    settings.set_record_filtering(kad::StoreInserts::FilterBoth);
    let mut kad = kad::Behaviour::with_config(local, kad::store::MemoryStore::new(local), settings);
    // By default a peer answers only once its address is confirmed, which never happens on a LAN.
    kad.set_mode(Some(kad::Mode::Server));
    Ok(kad)
}

fn gossip(config: &NetConfig, keypair: &Keypair) -> Result<gossipsub::Behaviour, NetError> {
    let fail = |error: &dyn ToString| NetError::setup("gossip", error.to_string());
    let settings = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("/iota/{}/gossip", config.run))
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(content_id)
        .max_transmit_size(config.gossip_max_bytes + GOSSIP_ENVELOPE_BYTES_MAX)
        .heartbeat_interval(GOSSIP_HEARTBEAT)
        .heartbeat_initial_delay(GOSSIP_FIRST_HEARTBEAT)
        .history_length(GOSSIP_HISTORY)
        .history_gossip(GOSSIP_OFFERED)
        .duplicate_cache_time(GOSSIP_REMEMBERED)
        .build()
        .map_err(|error| fail(&error))?;
    let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Signed(keypair.clone()), settings)
        .map_err(|error| fail(&error))?;
    let thresholds =
        PeerScoreThresholds { graylist_threshold: GOSSIP_GRAYLIST, ..PeerScoreThresholds::default() };
    gossip.with_peer_score(peer_score(), thresholds).map_err(|error| fail(&error))?;
    for topic in &config.topics {
        join(&mut gossip, &wire_topic(&config.run, topic)).map_err(|error| fail(&error))?;
    }
    Ok(gossip)
}

/// Joins a topic, whose messages count for the score of who relays them.
pub(super) fn join(gossip: &mut gossipsub::Behaviour, topic: &IdentTopic) -> Result<(), String> {
    gossip.set_topic_params(topic.clone(), topic_score())?;
    gossip.subscribe(topic).map(drop).map_err(|error| error.to_string())
}

/// Messages are the same when topic and payload are, whoever signed them: one announcement relayed by
/// two authors is handled once.
fn content_id(message: &gossipsub::Message) -> MessageId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(message.topic.as_str().as_bytes());
    hasher.update(&message.data);
    MessageId::new(hasher.finalize().as_bytes())
}

fn peer_score() -> PeerScoreParams {
    PeerScoreParams {
        app_specific_weight: 1.0,
        ip_colocation_factor_threshold: PEERS_PER_IP,
        // A whole swarm on one machine is the usual test, not an attack.
        ip_colocation_factor_whitelist: [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            .into(),
        ..PeerScoreParams::default()
    }
}

/// Announcements are a few per second at most and may be absent for minutes, so nobody is punished
/// for silence (P3). A rejected message costs 5 × n², which silences a peer at the second (−20 is
/// below the gossip threshold of −10) and ignores it at the fifth (−125, below [`GOSSIP_GRAYLIST`]); the
/// penalty fades, to the half in 11 minutes.
fn topic_score() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_decay: 0.9,
        first_message_deliveries_cap: 20.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: GOSSIP_REFUSED_WEIGHT,
        invalid_message_deliveries_decay: GOSSIP_REFUSED_DECAY,
        ..TopicScoreParams::default()
    }
}
