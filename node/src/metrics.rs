//! What a node counts, in the OpenMetrics registry that libp2p's metrics share.
//!
//! Names start with `iota_`; label values come from enums or string literals, never from peers, so a
//! peer cannot grow the registry. Help texts say when a counter increments.

use std::sync::atomic::AtomicU64;

use iota_protocol::peer::arrival::Arrival;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use iota_protocol::peer::room::Room;

use crate::push;

type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    reason: Refusal,
}

/// Why a peer's request was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Refusal {
    /// The frame was too long, too short, or followed by more bytes.
    Malformed,
    /// Our response was above the size limit.
    Oversize,
    /// The event queue was full.
    Busy,
    /// The owner dropped the reply.
    Dropped,
    /// The deadline passed before the response was sent.
    Late,
    /// The connection closed first.
    Closed,
}

/// Counters of the control plane.
#[derive(Debug, Clone, Default)]
pub struct NetMetrics {
    requests: Counter,
    refused: Family<RefusalLabel, Counter>,
    commands_dropped: Counter,
    events_dropped: Counter,
    gossip_given_up: Counter,
    gossip_late: Counter,
}

impl NetMetrics {
    /// Creates the counters and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add("iota_rpc_requests", "Increments when a well-formed request arrives", &metrics.requests);
        add(
            "iota_net_commands_dropped",
            "Increments when a command finds the swarm task's queue full",
            &metrics.commands_dropped,
        );
        add(
            "iota_net_events_dropped",
            "Increments when an event finds the owner's queue full",
            &metrics.events_dropped,
        );
        add(
            "iota_gossip_given_up",
            "Increments when a message of ours is dropped without being published",
            &metrics.gossip_given_up,
        );
        add(
            "iota_gossip_reported_late",
            "Increments when a verdict comes after the message left the cache",
            &metrics.gossip_late,
        );
        registry.register(
            "iota_rpc_refused",
            "Increments when a peer's request is not served",
            metrics.refused.clone(),
        );
        metrics
    }

    pub(crate) fn request_received(&self) {
        self.requests.inc();
    }

    pub(crate) fn request_refused(&self, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabel { reason }).inc();
    }

    pub(crate) fn command_dropped(&self) {
        self.commands_dropped.inc();
    }

    pub(crate) fn event_dropped(&self) {
        self.events_dropped.inc();
    }

    pub(crate) fn publish_given_up(&self, messages: u64) {
        self.gossip_given_up.inc_by(messages);
    }

    pub(crate) fn gossip_reported_late(&self) {
        self.gossip_late.inc();
    }
}

/// Counters of the data plane.
#[derive(Debug, Clone, Default)]
pub struct DataMetrics {
    pushes: Counter,
    refused: Family<ReasonLabel, Counter>,
    fetches: Counter,
    fetch_attempts_failed: Counter,
    connections_refused: Counter,
}

impl DataMetrics {
    /// Creates the counters and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add("iota_pushes_received", "Increments when a push arrived complete", &metrics.pushes);
        add("iota_blobs_fetched", "Increments when a blob was fetched from a peer", &metrics.fetches);
        add(
            "iota_blob_attempts_failed",
            "Increments when one provider failed to give a blob",
            &metrics.fetch_attempts_failed,
        );
        add(
            "iota_data_connections_refused",
            "Increments when a peer's connection is above the limits",
            &metrics.connections_refused,
        );
        registry.register(
            "iota_push_streams_refused",
            "Increments when the transport resets a push stream, by reason",
            metrics.refused.clone(),
        );
        metrics
    }

    pub(crate) fn push_received(&self) {
        self.pushes.inc();
    }

    pub(crate) fn push_refused(&self, refusal: push::Refusal) {
        let reason = refusal.label();
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Returns how many push streams were refused for one reason.
    #[must_use]
    pub fn pushes_refused(&self, refusal: push::Refusal) -> u64 {
        let reason = refusal.label();
        self.refused.get_or_create(&ReasonLabel { reason }).get()
    }

    pub(crate) fn fetched(&self) {
        self.fetches.inc();
    }

    pub(crate) fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    pub(crate) fn fetch_attempt_failed(&self) {
        self.fetch_attempts_failed.inc();
    }
}

/// Counters and gauges that the owner of the protocol core keeps.
#[derive(Debug, Clone, Default)]
pub struct NodeMetrics {
    gossip: Family<VerdictLabels, Counter>,
    rpc_rejected: Family<ReasonLabel, Counter>,
    push_refused: Family<ReasonLabel, Counter>,
    joined: Family<StepLabel, FloatGauge>,
    /// Increments when a push was acknowledged by its receiver.
    pub pushes_sent: Counter,
    /// Increments when an epoch of this peer's stage opens.
    pub epochs: Counter,
    /// Increments when a merge of this peer's stage has an outcome.
    pub merges: Counter,
    /// Increments when another candidate becomes leader.
    pub leader_changes: Counter,
    /// The last training loss this peer measured, in nats per token.
    pub loss: FloatGauge,
    /// The stage this peer serves; −1 without one.
    pub stage: Gauge,
    /// Index of the last decided entry this peer has folded.
    pub log_index: Gauge,
    /// Connected peers.
    pub peers: Gauge,
    /// Bytes that this node keeps on its disk.
    pub stored: Gauge,
    /// Bytes free on the file system of its folder.
    pub disk_free: Gauge,
    room: Gauge,
    disk_full: Counter,
}

impl NodeMetrics {
    /// Creates the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "iota_gossip_messages",
            "Increments when the owner judges a gossip message, by verdict and reason",
            metrics.gossip.clone(),
        );
        registry.register(
            "iota_rpc_rejected",
            "Increments when the owner rejects a request, by reason",
            metrics.rpc_rejected.clone(),
        );
        registry.register(
            "iota_push_refused",
            "Increments when the owner or the transport refuses a push, by reason",
            metrics.push_refused.clone(),
        );
        metrics.register_counters(registry);
        metrics.register_gauges(registry);
        metrics
    }

    fn register_counters(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add("iota_pushes_sent", "Increments when a push was acknowledged by its receiver", &self.pushes_sent);
        add("iota_epochs", "Increments when an epoch of this peer's stage opens", &self.epochs);
        add("iota_merges", "Increments when a merge of this peer's stage has an outcome", &self.merges);
        add("iota_leader_changes", "Increments when another candidate becomes leader", &self.leader_changes);
        add(
            "iota_disk_full",
            "Increments when this node stops for want of room on its disk",
            &self.disk_full,
        );
    }

    fn register_gauges(&self, registry: &mut Registry) {
        registry.register(
            "iota_loss",
            "Last training loss this peer measured, in nats per token",
            self.loss.clone(),
        );
        registry.register(
            "iota_join_seconds",
            "Seconds from the start to each step of joining, set when a first contribution counts",
            self.joined.clone(),
        );
        let mut add = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(name, help, gauge.clone());
        };
        add("iota_stage", "Stage this peer serves, -1 without one", &self.stage);
        add("iota_log_index", "Index of the last decided entry this peer has folded", &self.log_index);
        add("iota_peers", "Connected peers", &self.peers);
        add("iota_stored_bytes", "Bytes that this node keeps on its disk", &self.stored);
        add("iota_disk_free_bytes", "Bytes free on the file system of this node's folder", &self.disk_free);
        add("iota_disk_room", "Room on the disk: 0 enough, 1 near its end, 2 none", &self.room);
    }

    /// Takes how much room the disk has.
    pub fn room(&self, room: Room) {
        self.room.set(match room {
            Room::Enough => 0,
            Room::Near => 1,
            Room::Full => 2,
        });
        self.disk_full.inc_by(u64::from(room == Room::Full));
    }

    /// Sets how long each step of joining took.
    pub fn joined(&self, arrival: &Arrival) {
        let Arrival { connected, admitted, ready, counted, .. } = arrival;
        let steps =
            [("connected", connected), ("admitted", admitted), ("ready", ready), ("counted", counted)];
        for (step, time) in steps {
            if let Some(time) = time {
                self.joined.get_or_create(&StepLabel { step }).set(time.as_secs_f64());
            }
        }
    }

    /// Counts a gossip message that was accepted.
    pub fn gossip_accepted(&self) {
        self.gossip_judged("accepted", "valid");
    }

    /// Counts a gossip message that was ignored.
    pub fn gossip_ignored(&self, reason: &'static str) {
        self.gossip_judged("ignored", reason);
    }

    /// Counts a gossip message that was rejected.
    pub fn gossip_rejected(&self, reason: &'static str) {
        self.gossip_judged("rejected", reason);
    }

    /// Counts a request that the owner rejected.
    pub fn rpc_rejected(&self, reason: &'static str) {
        self.rpc_rejected.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a push that was refused.
    pub fn push_refused(&self, reason: &'static str) {
        self.push_refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    fn gossip_judged(&self, verdict: &'static str, reason: &'static str) {
        let labels = VerdictLabels { verdict, reason };
        self.gossip.get_or_create(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_appear_in_the_text_with_their_labels() {
        let mut registry = Registry::default();
        let node = NodeMetrics::register(&mut registry);
        let net = NetMetrics::register(&mut registry);
        node.gossip_rejected("bad_signature");
        node.loss.set(2.5);
        net.request_refused(Refusal::Malformed);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let has = |line: &str| assert!(text.contains(line), "{line} is missing in:\n{text}");
        has("iota_gossip_messages_total{verdict=\"rejected\",reason=\"bad_signature\"} 1");
        has("iota_loss 2.5");
        has("iota_rpc_refused_total{reason=\"Malformed\"} 1");
    }
}
