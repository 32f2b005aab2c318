//! Joining a run: from a configuration to a finished run, and everything shut down in order.
//!
//! Start: store, data plane, control plane, status pages, engine thread, owner loop. Stop: owner loop, engine
//! thread, control plane, write-behind of blobs, data plane, status pages. Each waits for the one before,
//! so nothing that is still needed is gone.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use iota_model::Device;
use iota_model::data::Corpus;
use iota_protocol::join::{Credential, Refusal};
use iota_protocol::limits::{
    GOSSIP_BYTES_MAX, PUSH_HEADER_BYTES_MAX, PUSH_PAYLOAD_BYTES_MAX, RPC_BYTES_MAX, TRANSFER_DEADLINE,
};
use iota_protocol::peer::Peer;
use iota_protocol::wire::Outdated;
use iota_protocol::wire::message::Topic;
use iota_protocol::{Epoch, Hash, Identity, PeerId, RunSpec};
use libp2p::Multiaddr;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::blobs::{DataConfig, DataError, DataPlane, Storage};
use crate::bridge;
use crate::checkpoints::{moments_of, open};
use crate::disk::DiskWatch;
use crate::driver::engine_thread::{self, EngineSetup};
use crate::driver::moments::MomentsFolder;
pub use crate::driver::poison::Poison;
use crate::driver::vault::Vault;
use crate::driver::{Driver, Ended, EngineChannels, NodePeer, Parts, Reporter, wall_micros};
use crate::events::{EventLog, NodeEvent};
use crate::http::{Exposure, HttpError, StatusServer};
use crate::metrics::{DataMetrics, NodeMetrics};
use crate::mirror::{Mirror, MirrorMetrics};
use crate::net::{self, NetConfig, NetError};
use crate::push::PushLimits;
use crate::recovery::{self, RecoveryError};
use crate::store::{PaxosStorage, Store, StoreError};
use crate::traffic::Traffic;

/// Between two garbage collections of the blob store. Long against a collection, short against an epoch of a real run.
const GC_INTERVAL: Duration = Duration::from_secs(15);
/// How long the last messages may take to leave after a polite departure.
const FAREWELL: Duration = Duration::from_millis(300);

/// What a node does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Trains a stage.
    pub miner: bool,
    /// Checks the work of miners.
    pub validator: bool,
    /// Stands for orchestrator; true for the key of a candidate.
    pub orchestrator: bool,
}

impl Roles {
    /// Whether it needs an engine.
    #[must_use]
    pub const fn computes(self) -> bool {
        self.miner || self.validator
    }
}

/// Everything a node is told at start.
#[derive(Clone)]
pub struct JoinConfig {
    /// The run.
    pub spec: RunSpec,
    /// The ed25519 secret.
    pub secret: [u8; 32],
    /// What it shows to be let in, if the run asks it for something.
    pub credential: Option<Credential>,
    /// Folder for everything it writes; exists.
    pub data_dir: PathBuf,
    /// What it does.
    pub roles: Roles,
    /// Where it computes.
    pub device: Device,
    /// Where it listens for control messages.
    pub listen: Vec<Multiaddr>,
    /// UDP address of the data plane.
    pub data_bind: SocketAddr,
    /// Peers that are in the run.
    pub bootstrap: Vec<Multiaddr>,
    /// How long to try them.
    pub bootstrap_timeout: Duration,
    /// Whether to look for peers in the local network.
    pub mdns: bool,
    /// Where status pages are served.
    pub http: SocketAddr,
    /// Entries of the log after which it names the state they lead to, while this node leads.
    pub snapshot_every: u64,
    /// Bytes per second that uploads to the mirror may take; as fast as they go without one.
    pub mirror_upload_rate: Option<NonZeroU64>,
    /// Bytes per second that blobs served to other peers may take; as fast as they go without one.
    pub upload_rate: Option<NonZeroU64>,
    /// Most bytes that it may keep on its disk, if there is a limit.
    pub disk_quota: Option<u64>,
    /// Most bytes that its event log takes.
    pub event_log_max: u64,
    /// What it spoils of what it computed: a fault to try on a swarm of one's own.
    pub poison: Vec<Poison>,
    /// The corpus, if this node reads it.
    pub corpus: Option<Arc<Corpus>>,
}

/// How a node is asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// It is to leave: what it has begun is finished and handed over first.
    pub leave: CancellationToken,
    /// It is to end at once.
    pub now: CancellationToken,
}

/// Why a node's part in a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// The run is finished.
    Finished,
    /// It left, and nobody needs it any more.
    Left,
    /// It was told to end at once.
    Stopped,
}

/// How a node's part in a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSummary {
    /// Why it ended.
    pub conclusion: Conclusion,
    /// Hash of the weights it held.
    pub weights: Option<Hash>,
    /// The file it wrote them to.
    pub checkpoint: Option<PathBuf>,
}

/// Why a node could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address is taken.
    #[error("{addr} is in use")]
    PortInUse {
        /// As configured.
        addr: String,
    },
    /// No bootstrap peer answered.
    #[error("no bootstrap peer answered within {waited:?}")]
    BootstrapUnreachable {
        /// As configured.
        addrs: Vec<Multiaddr>,
        /// How long was tried.
        waited: Duration,
    },
    /// The device is not there.
    #[error("{0}")]
    Device(String),
    /// The data folder cannot be used.
    #[error("{0}")]
    DataDir(String),
    /// The control plane did not start.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The data plane did not start.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The mirror that the spec names cannot be used with what the environment says.
    #[error("{0}")]
    Mirror(String),
    /// The engine stopped.
    #[error("the engine stopped: failed to {0}")]
    Engine(String),
    /// The run uses a wire version that this program does not speak.
    #[error(transparent)]
    Outdated(#[from] Outdated),
    /// The run gives this peer no place.
    #[error("{peer} gets no place: {refusal}")]
    NotAdmitted {
        /// This peer.
        peer: PeerId,
        /// Why.
        refusal: Refusal,
    },
    /// A bug.
    #[error("{0}")]
    Other(String),
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::DataDir(error.to_string())
    }
}

impl From<RecoveryError> for RunError {
    fn from(error: RecoveryError) -> Self {
        Self::DataDir(error.to_string())
    }
}

impl From<HttpError> for RunError {
    fn from(error: HttpError) -> Self {
        match &error {
            HttpError::Bind { address, source } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Self::PortInUse { addr: address.to_string() }
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Takes part in a run until it is finished or `stop` says so.
///
/// # Errors
/// [`RunError`] if the node cannot start, nobody can be reached, or the engine fails.
pub async fn join(config: JoinConfig, stop: Stop) -> Result<RunSummary, RunError> {
    check_device(&config)?;
    let mut registry = Registry::default();
    let traffic = Traffic::register(&mut registry);
    let metrics = NodeMetrics::register(&mut registry);
    let identity = Identity::from_secret(config.secret);
    let store = Store::open(&config.data_dir)?;
    recovery::claim(&store, config.spec.run_id(), identity.peer())?;
    let mirror = open_mirror(&config, &mut registry)?;
    let spec = Arc::new(config.spec.clone());
    let moments = MomentsFolder::new(&config.data_dir, Arc::clone(&spec));
    if let Some(mirror) = mirror.as_ref().filter(|_| config.roles.miner && moments.is_empty()) {
        restore_moments(mirror, &spec, identity.peer(), &moments).await;
    }
    let (plane, pushes) =
        DataPlane::start(data_config(&config, &traffic, DataMetrics::register(&mut registry))).await?;
    let (net, net_events, net_task) = net::start(net_config(&config), &mut registry, traffic.clone()).await?;
    let (health, watched) = tokio::sync::watch::channel(serde_json::Value::Null);
    let pages = StatusServer::start(config.http, Exposure::Loopback, watched, Arc::new(registry)).await?;

    let (vault, write_behind) = Vault::new(plane.clone(), two_faced(&config, &identity));
    let writer = tokio::spawn(write_behind);
    let (engine, engine_thread) = start_engine(&config, &spec, &vault, &moments)?.unzip();
    let number = recovery::first_number(&store, wall_micros())?;
    let mut peer = new_peer(&config, &spec, identity.clone(), number, &store);
    recovery::recover(&mut peer, &store, &plane).await?;
    let events = EventLog::open(&config.data_dir, config.event_log_max)
        .map_err(|error| RunError::DataDir(format!("open the event log: {error}")))?;
    let mut reporter = Reporter::new(events, metrics, traffic, health, store, mirror.clone(), number);
    reporter.event(started(&identity, &net, &plane, &pages).await);

    let disk = DiskWatch::new(&config.data_dir, config.disk_quota);
    if let Err(error) = disk.keep_reserve() {
        tracing::warn!(%error, "the databases' reserve on the disk is renewed only now and then");
    }
    let parts =
        Parts { peer, spec, mirror, moments, disk, net, net_events, plane, pushes, vault, engine, reporter };
    let bootstrap_within = (!config.bootstrap.is_empty()).then_some(config.bootstrap_timeout);
    let mut driver = Driver::new(parts, bootstrap_within);
    let ended = driver.run(stop).await;
    let summary = conclude(&mut driver, &config, &ended).await;

    let Parts { net, net_events, plane, vault, engine, mut reporter, pushes, .. } = driver.into_parts();
    tokio::time::sleep(FAREWELL).await;
    reporter.traffic_event();
    if let Ok(summary) = &summary {
        reporter.event(finished(summary, &config));
    }
    drop(engine);
    if let Some(thread) = engine_thread {
        // The thread ends after its current job; it must not outlive the stores it writes to.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
    drop((net_events, pushes));
    net.shutdown().await;
    let _ = tokio::time::timeout(TRANSFER_DEADLINE, net_task).await;
    drop(vault);
    let _ = tokio::time::timeout(TRANSFER_DEADLINE, writer).await;
    plane.shutdown().await;
    pages.shutdown().await;
    summary
}

/// The run's mirror. Whether it answers shows later, and stops nobody.
/// The engine's channels and its thread, if any role computes.
fn start_engine(
    config: &JoinConfig,
    spec: &Arc<RunSpec>,
    vault: &Vault,
    moments: &MomentsFolder,
) -> Result<Option<(EngineChannels, JoinHandle<()>)>, RunError> {
    if !config.roles.computes() {
        return Ok(None);
    }
    let setup = EngineSetup {
        spec: Arc::clone(spec),
        device: config.device,
        corpus: config.corpus.clone(),
        vault: vault.clone(),
        runtime: tokio::runtime::Handle::current(),
        moments: config.roles.miner.then(|| moments.clone()),
        poison: config.poison.clone(),
    };
    let (orders, results, thread) = engine_thread::start(setup)
        .map_err(|error| RunError::Other(format!("start the engine's thread: {error}")))?;
    Ok(Some(((orders, results), thread)))
}

/// Puts the moments where the engine looks for them that this peer had when the checkpoint was made which the run goes on from. Training goes
/// on without them.
async fn restore_moments(mirror: &Mirror, spec: &RunSpec, peer: PeerId, folder: &MomentsFolder) {
    let found = match moments_of(mirror, spec, peer).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "inner optimizer starts anew");
            return;
        }
    };
    let Some((stage, moments)) = found else { return };
    match folder.keep(stage, Epoch(spec.start.epoch), &moments) {
        Ok(()) => tracing::info!(%stage, step = moments.step, "inner optimizer goes on from the checkpoint"),
        Err(error) => tracing::warn!(%error, "inner optimizer starts anew"),
    }
}

fn open_mirror(config: &JoinConfig, registry: &mut Registry) -> Result<Option<Mirror>, RunError> {
    if !config.spec.mirror.is_set() {
        return Ok(None);
    }
    let metrics = MirrorMetrics::register(registry);
    open(&config.spec.mirror.url, config.mirror_upload_rate, metrics)
        .map(Some)
        .map_err(|error| RunError::Mirror(error.to_string()))
}

/// Who signs pushes of something else than it commits to, if this node is to try that.
fn two_faced(config: &JoinConfig, identity: &Identity) -> Option<Identity> {
    config.poison.contains(&Poison::Push).then(|| identity.clone())
}

fn new_peer(
    config: &JoinConfig,
    spec: &Arc<RunSpec>,
    identity: Identity,
    number: u64,
    store: &Store,
) -> NodePeer {
    let model = bridge::model_config(spec);
    let parameters: Vec<usize> = (0..model.stages).map(|stage| model.parameter_count(stage)).collect();
    let roles = iota_protocol::peer::Roles { miner: config.roles.miner, validator: config.roles.validator };
    let storage = PaxosStorage::new(store);
    Peer::new(Arc::clone(spec), identity, roles, &parameters, number, storage)
        .showing(config.credential.clone())
        .with_snapshots_every(config.snapshot_every)
}

/// Builds and drops an engine, so that a device that is not there is an error before anything starts.
fn check_device(config: &JoinConfig) -> Result<(), RunError> {
    if !config.roles.computes() || matches!(config.device, Device::Cpu | Device::Auto) {
        return Ok(());
    }
    let engine = bridge::engine_config(&config.spec, iota_model::StageSelect::Stage(0));
    iota_model::build_engine(&engine, &config.device)
        .map(drop)
        .map_err(|error| RunError::Device(error.to_string()))
}

fn data_config(config: &JoinConfig, traffic: &Traffic, metrics: DataMetrics) -> DataConfig {
    let push = PushLimits {
        header_bytes_max: PUSH_HEADER_BYTES_MAX,
        payload_bytes_max: PUSH_PAYLOAD_BYTES_MAX as u64,
        ..PushLimits::default()
    };
    DataConfig {
        secret: config.secret,
        bind: config.data_bind,
        storage: Storage::Disk(config.data_dir.join("blobs")),
        gc_interval: GC_INTERVAL,
        upload_rate: config.upload_rate,
        push,
        traffic: traffic.clone(),
        metrics,
    }
}

fn net_config(config: &JoinConfig) -> NetConfig {
    NetConfig {
        secret: config.secret,
        process: wall_micros(),
        listen: config.listen.clone(),
        bootstrap: config.bootstrap.clone(),
        mdns: config.mdns,
        run: config.spec.run_id().to_string(),
        topics: vec![Topic::Control.name(), Topic::Records.name()],
        gossip_max_bytes: GOSSIP_BYTES_MAX,
        rpc_max_bytes: RPC_BYTES_MAX,
        rpc_timeout: TRANSFER_DEADLINE,
    }
}

async fn started(
    identity: &Identity,
    net: &net::NetHandle,
    plane: &DataPlane,
    pages: &StatusServer,
) -> NodeEvent {
    let id = net::peer_id(&identity.peer().0);
    let suffix = |address: Multiaddr| match id {
        Some(id) => address.with_p2p(id).unwrap_or_else(|address| address).to_string(),
        None => address.to_string(),
    };
    let multiaddrs: Vec<String> = net.snapshot().await.listen.into_iter().map(suffix).collect();
    tracing::info!(peer = %identity.peer(), addresses = ?multiaddrs, http = %pages.address(), "started");
    NodeEvent::Started {
        peer: identity.peer(),
        multiaddrs,
        data_addresses: plane.addresses().iter().map(ToString::to_string).collect(),
        http: Some(pages.address().to_string()),
    }
}

/// Writes the checkpoint of a finished run, or says why the loop ended.
async fn conclude(driver: &mut Driver, config: &JoinConfig, ended: &Ended) -> Result<RunSummary, RunError> {
    let conclusion = match ended {
        Ended::Finished => Conclusion::Finished,
        Ended::Left => Conclusion::Left,
        Ended::Cancelled => Conclusion::Stopped,
        Ended::Unreachable => {
            let (addrs, waited) = (config.bootstrap.clone(), config.bootstrap_timeout);
            return Err(RunError::BootstrapUnreachable { addrs, waited });
        }
        Ended::Outdated(outdated) => return Err(RunError::Outdated(*outdated)),
        Ended::NotAdmitted(refusal) => {
            let peer = Identity::from_secret(config.secret).peer();
            return Err(RunError::NotAdmitted { peer, refusal: refusal.clone() });
        }
        Ended::Engine(reason) => return Err(RunError::Engine(reason.clone())),
        Ended::Closed => return Err(RunError::Other("a part of the node stopped".to_owned())),
    };
    let mut summary = RunSummary { conclusion, weights: driver.weights(), checkpoint: None };
    if conclusion == Conclusion::Finished {
        let written = driver.checkpoint(config.data_dir.join("checkpoint")).await.transpose();
        summary.checkpoint =
            written.map_err(|reason| RunError::Other(format!("write the checkpoint: {reason}")))?;
    }
    Ok(summary)
}

fn finished(summary: &RunSummary, config: &JoinConfig) -> NodeEvent {
    let stage = summary
        .checkpoint
        .as_ref()
        .and_then(|path| path.file_stem()?.to_str()?.strip_prefix("stage-")?.parse().ok());
    let finished = summary.conclusion == Conclusion::Finished;
    let version = if finished { Epoch(config.spec.training.epochs) } else { Epoch(0) };
    NodeEvent::Finished {
        stage,
        version: version.0,
        hash: summary.weights,
        checkpoint: summary.checkpoint.clone(),
    }
}
