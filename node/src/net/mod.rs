//! The control plane: small messages between peers over libp2p.
//!
//! Bytes in, bytes out: nothing here knows what a message means. Gossip announces, request/response
//! asks one peer, kademlia and mDNS find peers, and a back-off keeps trying the bootstrap addresses.
//! Bulk data goes through [`crate::blobs`] and [`crate::push`] instead.
//!
//! One task owns the libp2p `Swarm` (`swarm.rs`): it waits for an event, a command or a timer,
//! and then applies it without awaiting. Everyone else holds a [`NetHandle`](crate::net::NetHandle).
//!
//! ```text
//!   owner ── commands (bounded) ──▶ swarm task ──▶ libp2p
//!         ◀── events  (bounded) ──            ◀──
//! ```
//!
//! **Invariant:** the swarm task never waits for its consumer. When the event queue is full, gossip is
//! ignored and requests are refused, both counted; connection events are kept back and delivered later.

mod behaviour;
mod bootstrap;
mod codec;
mod commands;
mod config;
mod events;
mod handle;
mod listen;
mod outbox;
mod peer;
mod swarm;

pub(crate) use bootstrap::{BACKOFF_MAX, BACKOFF_MIN};
pub(crate) use config::{DIAL_ALLOWANCE, LISTEN_DEADLINE, QUIC_IDLE};
pub use config::{GOSSIP_ENVELOPE_BYTES_MAX, NetConfig, NetError};
pub use handle::{GossipToken, NetEvent, NetHandle, Reply, RequestError, Snapshot, Verdict};
pub(crate) use outbox::WAIT_MAX;
pub use peer::{PeerKey, peer_id, peer_key, public_key};
pub use swarm::start;
