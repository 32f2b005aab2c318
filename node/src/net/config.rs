//! What the control plane is told at start, the limits it keeps, and how starting can fail.

use std::time::Duration;

use libp2p::Multiaddr;

/// What one peer's control plane is told at start.
#[derive(Clone)]
pub struct NetConfig {
    /// The secret key; the peer's name in libp2p and iroh follows from it.
    pub secret: [u8; 32],
    /// Tells this process from others of the same peer, earlier ones above all.
    pub process: u64,
    /// Addresses to listen on; port 0 picks a free port.
    pub listen: Vec<Multiaddr>,
    /// Addresses dialled until each has answered, and again when it is lost.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether peers on the same local network find each other by multicast.
    pub mdns: bool,
    /// The run id in hexadecimal. It is part of every protocol and topic name, so runs never mix.
    pub run: String,
    /// Gossip topics to join at once; more are joined later. On the wire a topic is named `iota/<run>/<topic>`.
    pub topics: Vec<String>,
    /// Largest gossip payload in bytes.
    pub gossip_max_bytes: usize,
    /// Largest request or response in bytes.
    pub rpc_max_bytes: usize,
    /// How long a request may take, its response included.
    pub rpc_timeout: Duration,
}

/// What a gossip message carries besides its payload: author, signature, key, sequence number, topic.
/// Those take about 250 bytes with a 64-digit run id; doubled.
pub const GOSSIP_ENVELOPE_BYTES_MAX: usize = 512;

/// Connections kept at once. A peer of a run with hundreds of peers talks to most of them, and a
/// connection costs about 100 KiB.
pub(super) const CONNECTIONS_MAX: u32 = 1024;
/// Incoming connections kept at once, so that strangers cannot take the places we dial with.
pub(super) const CONNECTIONS_INCOMING_MAX: u32 = 768;
/// Incoming handshakes in progress; each one costs a key exchange.
pub(super) const CONNECTIONS_PENDING_INCOMING_MAX: u32 = 128;
/// Outgoing handshakes in progress; kademlia dials many at once.
pub(super) const CONNECTIONS_PENDING_OUTGOING_MAX: u32 = 128;
/// Connections to one peer: QUIC and TCP, each dialled from both ends at the same moment.
pub(super) const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// How long a connection nobody uses is kept. Long: a dial over the internet costs more than keeping one.
pub(super) const CONNECTION_IDLE: Duration = Duration::from_secs(60 * 60);
/// How long a peer may be silent at the QUIC level before it counts as gone.
pub(crate) const QUIC_IDLE: Duration = Duration::from_secs(15);

/// Commands waiting for the swarm task. It drains them in microseconds; more means a flood.
pub(super) const COMMANDS_MAX: usize = 4096;
/// Events waiting for the owner.
pub(super) const EVENTS_MAX: usize = 1024;
/// Connection events kept back while the event queue is full.
pub(super) const EVENTS_HELD_MAX: usize = 4096;
/// Our own requests without an answer.
pub(super) const REQUESTS_MAX: usize = 1024;
/// Requests of one connection being served at once.
pub(super) const REQUESTS_PER_CONNECTION_MAX: usize = 64;
/// Added to a request's deadline for the dial that may precede it.
pub(crate) const DIAL_ALLOWANCE: Duration = Duration::from_secs(5);
/// Listen addresses accepted from one peer; honest peers have a handful.
pub(super) const ADDRESSES_PER_PEER_MAX: usize = 16;
/// How long `start` waits for every listener to be up.
pub(crate) const LISTEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long shutdown waits for the sockets to close: three probe timeouts of a slow QUIC connection.
pub(super) const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two looks at whether they did.
pub(super) const RELEASE_CHECK: Duration = Duration::from_millis(10);

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Another process, or this one, already listens there.
    #[error("listen on {address}: the address is in use")]
    AddressInUse {
        /// The address as it was configured.
        address: Multiaddr,
    },
    /// The address cannot be listened on for another reason.
    #[error("listen on {address}: {reason}")]
    Listen {
        /// The address as it was configured.
        address: Multiaddr,
        /// What the transport said.
        reason: String,
    },
    /// The secret is no ed25519 key, or a protocol cannot be set up with this configuration.
    #[error("set up {what}: {reason}")]
    Setup {
        /// The part that failed.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

impl NetError {
    pub(super) fn setup(what: &'static str, reason: impl ToString) -> Self {
        Self::Setup { what, reason: reason.to_string() }
    }
}
