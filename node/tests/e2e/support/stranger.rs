//! A peer of the test's own, with its own key: it speaks the node's protocols and says whatever a test wants.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use iota_node::blobs::{DataConfig, DataPlane, FetchError, Storage};
use iota_node::events::{NodeEvent, TimedEvent};
use iota_node::metrics::DataMetrics;
use iota_node::net::{self, NetConfig, NetEvent, NetHandle, Verdict};
use iota_node::push::PushLimits;
use iota_node::traffic::Traffic;
use iota_protocol::limits::{PARTITION_BYTES_MAX, RPC_BYTES_MAX, TRANSFER_DEADLINE};
use iota_protocol::wire::message::{ControlUpdate, Request, Response, Topic};
use iota_protocol::wire::{decode, encode};
use iota_protocol::{Hash, Identity, LogIndex, PeerId, RunId, StageIndex};
use libp2p::Multiaddr;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::STEP_DEADLINE;

/// Where a node can be reached.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) peer: PeerId,
    pub(crate) multiaddrs: Vec<Multiaddr>,
    pub(crate) data: Vec<SocketAddr>,
    pub(crate) http: SocketAddr,
}

impl Target {
    /// Reads it from the node's first event.
    pub(crate) fn of(events: &[TimedEvent]) -> Option<Self> {
        events.iter().find_map(|timed| match &timed.event {
            NodeEvent::Started { peer, multiaddrs, data_addresses, http } => Some(Self {
                peer: *peer,
                multiaddrs: multiaddrs.iter().filter_map(|address| address.parse().ok()).collect(),
                data: data_addresses.iter().filter_map(|address| address.parse().ok()).collect(),
                http: http.as_ref()?.parse().ok()?,
            }),
            _ => None,
        })
    }

    /// The body of a status page.
    pub(crate) fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect_timeout(&self.http, STEP_DEADLINE).expect("status pages");
        stream.set_read_timeout(Some(STEP_DEADLINE)).expect("a timeout");
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("a request");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        assert!(response.starts_with("HTTP/1.1 200"), "{path}: {response}");
        response
    }

    /// The value of the metric whose line starts with `name`; 0 before it is first counted.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.page("/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(0)
    }
}

/// The peer.
pub(crate) struct Stranger {
    pub(crate) identity: Identity,
    pub(crate) net: NetHandle,
    pub(crate) plane: DataPlane,
}

impl Stranger {
    /// Connects a peer with the key `secret` to `targets`, as a member of `run` would. Its own limit of a gossip
    /// message is `gossip_max_bytes`.
    pub(crate) async fn connect(secret: u8, run: RunId, targets: &[Target], gossip_max_bytes: usize) -> Self {
        let secret = [secret; 32];
        let plane = data_plane(secret).await;
        for target in targets {
            plane.set_addresses(target.peer.0, target.data.clone());
        }
        let config = NetConfig {
            secret,
            process: 0,
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
            bootstrap: targets.iter().flat_map(|target| target.multiaddrs.iter().take(1).cloned()).collect(),
            mdns: false,
            run: run.to_string(),
            topics: Topic::all([StageIndex(0), StageIndex(1)].into_iter()).map(Topic::name).collect(),
            gossip_max_bytes,
            rpc_max_bytes: RPC_BYTES_MAX,
            rpc_timeout: TRANSFER_DEADLINE,
        };
        let mut registry = Registry::default();
        let start = net::start(config, &mut registry, Traffic::default());
        let (net, mut events, _task) = start.await.expect("a free port");
        let (connections, mut connected) = watch::channel(0);
        let reports = net.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    NetEvent::Connected(_) => connections.send_modify(|count| *count += 1),
                    NetEvent::Gossip { token, .. } => reports.report(token, Verdict::Accept),
                    _ => {}
                }
            }
        });
        let all = connected.wait_for(|count| *count >= targets.len());
        tokio::time::timeout(STEP_DEADLINE, all)
            .await
            .expect("connections")
            .expect("a running control plane");
        Self { identity: Identity::from_secret(secret), net, plane }
    }

    /// Everything `target` can prove of the log, from `from` on.
    pub(crate) async fn log(&self, target: &Target, from: u64) -> Vec<Vec<u8>> {
        let mut entries = Vec::new();
        loop {
            let request = Request::Log { from: LogIndex(from + entries.len() as u64) };
            let answer = self.net.request(target.peer.0, encode(&request)).await.expect("an answer");
            match decode::<Response>(&answer, RPC_BYTES_MAX).expect("a response") {
                Response::Log(ControlUpdate { entries: more, .. }) => {
                    entries.extend(more.into_iter().map(serde_bytes::ByteBuf::into_vec));
                }
                Response::Unavailable => return entries,
                other => panic!("expected entries of the log, got {other:?}"),
            }
        }
    }

    /// A blob by its hash from any of `providers`.
    pub(crate) async fn fetch(&self, hash: Hash, providers: &[PeerId]) -> Result<Bytes, FetchError> {
        fetch(&self.plane, hash, providers).await
    }

    pub(crate) async fn stop(self) {
        self.net.shutdown().await;
        self.plane.shutdown().await;
    }
}

/// A data plane that keeps nothing on disk.
async fn data_plane(secret: [u8; 32]) -> DataPlane {
    start_plane(secret, Storage::Memory).await
}

/// Bytes that the blob store in `folder` keeps once garbage is collected. Its process must have ended.
pub(crate) async fn kept_bytes(folder: &std::path::Path) -> u64 {
    let plane = start_plane([0x77; 32], Storage::Disk(folder.join("blobs"))).await;
    tokio::time::timeout(STEP_DEADLINE, plane.collected()).await.expect("a garbage collection");
    let bytes = plane.stored_bytes().await.expect("a readable store");
    plane.shutdown().await;
    bytes
}

async fn start_plane(secret: [u8; 32], storage: Storage) -> DataPlane {
    let config = DataConfig {
        secret,
        bind: "127.0.0.1:0".parse().expect("an address"),
        storage,
        gc_interval: Duration::from_millis(200),
        upload_rate: None,
        push: PushLimits::default(),
        traffic: Traffic::default(),
        metrics: DataMetrics::default(),
    };
    DataPlane::start(config).await.expect("a free port").0
}

async fn fetch(plane: &DataPlane, hash: Hash, providers: &[PeerId]) -> Result<Bytes, FetchError> {
    let providers: Vec<_> = providers.iter().map(|peer| peer.0).collect();
    plane.fetch(hash.0, PARTITION_BYTES_MAX as u64, &providers, "test", TRANSFER_DEADLINE).await
}
