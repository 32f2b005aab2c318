//! Bytes that went over the network, by kind of traffic and direction.
//!
//! Payload bytes as this layer sees them, once per message: not headers, retransmissions, or the copies
//! that gossip makes. libp2p's own bandwidth metrics count those.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

/// Counters shared by the control plane and the data plane; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Gossip received and handed to the owner.
    pub gossip_in: Counter,
    /// Gossip published by us.
    pub gossip_out: Counter,
    /// Requests and responses received.
    pub rpc_in: Counter,
    /// Requests and responses sent.
    pub rpc_out: Counter,
    /// Pushed headers and payloads received.
    pub push_in: Counter,
    /// Pushed headers and payloads that the receiver acknowledged.
    pub push_out: Counter,
    /// Blob content fetched from peers.
    pub blob_in: Counter,
    /// Blob content served to peers.
    pub blob_out: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
    direction: &'static str,
}

/// The counters' values at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficBytes {
    /// Gossip received.
    pub gossip_in: u64,
    /// Gossip published.
    pub gossip_out: u64,
    /// Requests and responses received.
    pub rpc_in: u64,
    /// Requests and responses sent.
    pub rpc_out: u64,
    /// Pushes received.
    pub push_in: u64,
    /// Pushes sent.
    pub push_out: u64,
    /// Blob content fetched.
    pub blob_in: u64,
    /// Blob content served.
    pub blob_out: u64,
}

impl Traffic {
    /// Creates the counters and registers them as `iota_traffic_bytes_total{kind, direction}`.
    pub fn register(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Counter>::default();
        registry.register_with_unit(
            "iota_traffic",
            "Payload bytes, counted when a message was received or sent completely",
            Unit::Bytes,
            family.clone(),
        );
        let counter = |kind, direction| family.get_or_create_owned(&Labels { kind, direction });
        Self {
            gossip_in: counter("gossip", "in"),
            gossip_out: counter("gossip", "out"),
            rpc_in: counter("rpc", "in"),
            rpc_out: counter("rpc", "out"),
            push_in: counter("push", "in"),
            push_out: counter("push", "out"),
            blob_in: counter("blob", "in"),
            blob_out: counter("blob", "out"),
        }
    }

    /// Reads every counter.
    #[must_use]
    pub fn bytes(&self) -> TrafficBytes {
        TrafficBytes {
            gossip_in: self.gossip_in.get(),
            gossip_out: self.gossip_out.get(),
            rpc_in: self.rpc_in.get(),
            rpc_out: self.rpc_out.get(),
            push_in: self.push_in.get(),
            push_out: self.push_out.get(),
            blob_in: self.blob_in.get(),
            blob_out: self.blob_out.get(),
        }
    }
}
