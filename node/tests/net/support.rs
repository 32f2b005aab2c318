//! Nodes on loopback for the tests of the control plane. Every wait has a deadline.

use std::time::Duration;

use iota_node::net::{self, NetConfig, NetEvent, NetHandle, PeerKey, peer_id, public_key};
use iota_node::traffic::Traffic;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest any step may take. Steps take milliseconds; a loaded machine is slow, a broken test hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The topic every test node joins.
pub(crate) const TOPIC: &str = "control";
/// Largest frame of a test node.
pub(crate) const RPC_BYTES_MAX: usize = 1024;

/// A running control plane.
pub(crate) struct Node {
    pub(crate) handle: NetHandle,
    pub(crate) events: mpsc::Receiver<NetEvent>,
    pub(crate) task: JoinHandle<()>,
    pub(crate) registry: Registry,
    pub(crate) key: PeerKey,
    /// Where it listens, TCP first, each with its name.
    pub(crate) addresses: Vec<Multiaddr>,
}

/// A configuration that listens on free loopback ports.
pub(crate) fn config(secret: u8) -> NetConfig {
    NetConfig {
        secret: [secret; 32],
        process: 1,
        listen: vec![address("/ip4/127.0.0.1/tcp/0"), address("/ip4/127.0.0.1/udp/0/quic-v1")],
        bootstrap: Vec::new(),
        mdns: false,
        run: "00ff".repeat(16),
        topics: vec![TOPIC.to_owned()],
        gossip_max_bytes: 4096,
        rpc_max_bytes: RPC_BYTES_MAX,
        rpc_timeout: Duration::from_secs(20),
    }
}

pub(crate) fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

impl Node {
    pub(crate) async fn start(config: NetConfig) -> Self {
        let key = public_key(&config.secret);
        let mut registry = Registry::default();
        let start = net::start(config, &mut registry, Traffic::default());
        let (handle, events, task) = within("start", start).await.unwrap();
        let mut addresses = handle.snapshot().await.listen;
        addresses.sort_by_key(|address| address.iter().any(|part| part == Protocol::QuicV1));
        let name = peer_id(&key).unwrap();
        let addresses = addresses.into_iter().map(|a| a.with(Protocol::P2p(name))).collect();
        Self { handle, events, task, registry, key, addresses }
    }

    /// Starts a node that bootstraps from another.
    pub(crate) async fn joining(secret: u8, other: &Node) -> Self {
        Self::start(NetConfig { bootstrap: other.addresses.clone(), ..config(secret) }).await
    }

    /// Waits for the first event that `pick` takes; others are passed over.
    pub(crate) async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(NetEvent) -> Option<T>) -> T {
        within(what, async {
            loop {
                let event = self.events.recv().await.expect("the node is running");
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
        })
        .await
    }

    pub(crate) async fn connected_to(&mut self, peer: PeerKey) {
        self.until("connected", |event| {
            matches!(event, NetEvent::Connected(key) if key == peer).then_some(())
        })
        .await;
    }

    pub(crate) async fn disconnected_from(&mut self, peer: PeerKey) {
        self.until("disconnected", |event| {
            matches!(event, NetEvent::Disconnected(key) if key == peer).then_some(())
        })
        .await;
    }

    /// Answers the next request with what `answer` makes of it.
    pub(crate) async fn serve_one(&mut self, answer: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PeerKey {
        let (peer, bytes, reply) = self
            .until("request", |event| match event {
                NetEvent::Request { peer, bytes, reply } => Some((peer, bytes, reply)),
                _ => None,
            })
            .await;
        reply.send(answer(bytes));
        peer
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    pub(crate) async fn stop(self) {
        within("shutdown", self.handle.shutdown()).await;
        within("task end", self.task).await.unwrap();
    }
}

/// Awaits `future` for at most [`DEADLINE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}
