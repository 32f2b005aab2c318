//! [`DataPlane`]: the handle to blobs and pushes.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, EndpointId, TransportAddr};
use iroh_blobs::api::Store;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::store::{GcConfig, ProtectOutcome, fs::FsStore, fs::options::Options, mem, mem::MemStore};
use iroh_blobs::util::connection_pool::ConnectionPool;
use iroh_blobs::{BlobsProtocol, Hash};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;

use super::endpoint::{bind, pool_options};
use super::fetch::{Fetch, FetchError};
use super::limited::{Limited, Places};
use super::served;
use crate::metrics::DataMetrics;
use crate::net::PeerKey;
use crate::push::{self, IncomingPush, PushError, PushLimits, PushReceiver, PushSender};
use crate::traffic::Traffic;

/// The BLAKE3 hash that names a blob.
pub type Hash32 = [u8; 32];

/// Addresses kept for one peer; honest peers have a handful.
const ADDRESSES_PER_PEER_MAX: usize = 16;

/// Where blobs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// In a directory of one process; survives a restart.
    Disk(PathBuf),
    /// In memory, for tests and for peers that keep nothing.
    Memory,
}

/// What the data plane is told at start.
#[derive(Clone)]
pub struct DataConfig {
    /// The node's secret key.
    pub secret: [u8; 32],
    /// The UDP address to listen on; port 0 picks a free port.
    pub bind: SocketAddr,
    /// Where blobs are kept.
    pub storage: Storage,
    /// Pause between two garbage collections.
    pub gc_interval: Duration,
    /// Bytes per second that blobs served to others may take; as fast as they go without one.
    pub upload_rate: Option<NonZeroU64>,
    /// What pushes may take.
    pub push: PushLimits,
    /// Counts payload bytes.
    pub traffic: Traffic,
    /// Counts events.
    pub metrics: DataMetrics,
}

/// Why the data plane did not start or its store failed.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The UDP address cannot be used.
    #[error("bind the data plane to {address}: {reason}")]
    Bind {
        /// The address as configured.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// The blob directory cannot be used.
    #[error("open the blob store in {}: {reason}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the store said.
        reason: String,
    },
    /// The blob store failed in use.
    #[error("use the blob store: {0}")]
    Store(String),
    /// The disk is so full that no more blobs are kept.
    #[error("keep a blob: no room on the disk")]
    NoRoom,
    /// A blob that was to be written in the background was not.
    #[error("keep blobs: one of them was not written")]
    Unwritten,
}

/// Blobs and pushes; cheap to clone.
#[derive(Debug, Clone)]
pub struct DataPlane {
    endpoint: Endpoint,
    lookup: MemoryLookup,
    store: Store,
    router: Router,
    /// Connections that others opened.
    places: [Places; 2],
    blob_pool: ConnectionPool,
    sender: PushSender,
    collections: watch::Receiver<u64>,
    traffic: Traffic,
    metrics: DataMetrics,
    counting: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl DataPlane {
    /// Opens the store, binds the endpoint and serves. Incoming pushes arrive on the receiver.
    ///
    /// # Errors
    /// When the address or the directory cannot be used.
    pub async fn start(config: DataConfig) -> Result<(Self, mpsc::Receiver<IncomingPush>), DataError> {
        let (gc, collections) = collector(config.gc_interval);
        let store = open_store(&config.storage, Some(gc)).await?;
        let (endpoint, lookup) = bind(&config.secret, config.bind).await?;
        let (events, counting) = served::count(config.traffic.blob_out.clone(), config.upload_rate);
        let (receiver, incoming) =
            PushReceiver::new(config.push, config.traffic.clone(), config.metrics.clone());
        let blobs = Limited::new(BlobsProtocol::new(&store, Some(events)), config.metrics.clone());
        let pushes = Limited::new(receiver, config.metrics.clone());
        let places = [blobs.places(), pushes.places()];
        let router = Router::builder(endpoint.clone())
            .accept(iroh_blobs::ALPN, blobs)
            .accept(push::ALPN, pushes)
            .spawn();
        let sender = PushSender {
            pool: ConnectionPool::new(endpoint.clone(), push::ALPN, pool_options()),
            limits: config.push,
            traffic: config.traffic.clone(),
        };
        let plane = Self {
            blob_pool: ConnectionPool::new(endpoint.clone(), iroh_blobs::ALPN, pool_options()),
            endpoint,
            lookup,
            store,
            router,
            places,
            sender,
            collections,
            traffic: config.traffic,
            metrics: config.metrics,
            counting: Arc::new(Mutex::new(Some(counting))),
        };
        Ok((plane, incoming))
    }

    /// Returns the public key that peers connect to.
    #[must_use]
    pub fn id(&self) -> PeerKey {
        *self.endpoint.id().as_bytes()
    }

    /// Returns the addresses peers can reach us at, as far as we know: the bound ones, and the
    /// interfaces' own when bound to all of them.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self
            .endpoint
            .bound_sockets()
            .into_iter()
            .filter(|address| !address.ip().is_unspecified())
            .chain(self.endpoint.addr().ip_addrs().copied())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Sets where a peer is reached; replaces what was known.
    pub fn set_addresses(&self, peer: PeerKey, addresses: Vec<SocketAddr>) {
        let Ok(id) = EndpointId::from_bytes(&peer) else {
            return;
        };
        let addresses = addresses.into_iter().take(ADDRESSES_PER_PEER_MAX);
        let known = EndpointAddr::from_parts(id, addresses.map(TransportAddr::Ip));
        // The previous entry is of no use.
        let _previous = self.lookup.set_endpoint_info(known);
    }

    /// Closes the connections to and from a peer. Transfers on them fail at once instead of at their deadline. As long as one
    /// of them were open, iroh would send what is meant for another address of the peer to where that one leads.
    pub async fn disconnect(&self, peer: PeerKey) {
        let Ok(id) = EndpointId::from_bytes(&peer) else { return };
        self.places.iter().for_each(|places| places.close(id));
        for pool in [&self.blob_pool, &self.sender.pool] {
            // Fails only when the pool is shut down, and its connections with it.
            let _ = pool.close(id).await;
        }
    }

    /// Forgets where a peer is reached.
    pub fn forget(&self, peer: PeerKey) {
        if let Ok(id) = EndpointId::from_bytes(&peer) {
            let _previous = self.lookup.remove_endpoint_info(id);
        }
    }

    /// Stores bytes under a tag and returns their hash.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn add(&self, bytes: Bytes, tag: &str) -> Result<Hash32, DataError> {
        let guard = self.store.add_bytes(bytes).temp_tag().await.map_err(store_error)?;
        let hash = guard.hash();
        self.name(hash, tag).await?;
        Ok(*hash.as_bytes())
    }

    /// Returns a blob's bytes if it is here and complete.
    pub async fn get(&self, hash: Hash32) -> Option<Bytes> {
        if !self.has(hash).await {
            return None;
        }
        self.store.get_bytes(Hash::from_bytes(hash)).await.ok()
    }

    /// Returns whether a blob is here and complete.
    pub async fn has(&self, hash: Hash32) -> bool {
        self.store.has(Hash::from_bytes(hash)).await.unwrap_or(false)
    }

    /// Returns a blob from the store or else from one of the providers, keeping it under a tag.
    ///
    /// Providers are asked in the order given; a slow one gets competition from the next. Every chunk is
    /// verified as it arrives, and a blob above `bytes_max` is refused by its announced size. What
    /// arrived before a failure stays until the next garbage collection, so another try resumes.
    ///
    /// # Errors
    /// [`FetchError`] names each provider that failed and why.
    ///
    /// Cancel safe: dropping the future stops the transfer.
    pub async fn fetch(
        &self,
        hash: Hash32,
        bytes_max: u64,
        providers: &[PeerKey],
        tag: &str,
        deadline: Duration,
    ) -> Result<Bytes, FetchError> {
        let own = |error: String| FetchError::Store { hash, reason: error };
        let blob = Hash::from_bytes(hash);
        let guard = self.store.tags().temp_tag(blob).await.map_err(|e| own(e.to_string()))?;
        if !self.has(hash).await {
            let before = self.local_bytes(blob).await;
            let fetch = Fetch { store: &self.store, pool: &self.blob_pool, hash: blob, bytes_max };
            let mut failures = Vec::new();
            let outcome = tokio::time::timeout(deadline, fetch.run(providers, &mut failures)).await;
            failures.iter().for_each(|_| self.metrics.fetch_attempt_failed());
            self.traffic.blob_in.inc_by(self.local_bytes(blob).await.saturating_sub(before));
            match outcome {
                Ok(Some(())) => self.metrics.fetched(),
                Ok(None) => return Err(FetchError::NoProvider { hash, failures }),
                Err(_) => {
                    return Err(FetchError::TimedOut { hash, deadline, failures });
                }
            }
        }
        let status = self.store.status(blob).await.map_err(|e| own(e.to_string()))?;
        if let BlobStatus::Complete { size: got } = status
            && got > bytes_max
        {
            return Err(FetchError::TooLarge { hash, got, limit: bytes_max });
        }
        self.name(blob, tag).await.map_err(|e| own(e.to_string()))?;
        let bytes = self.store.get_bytes(blob).await.map_err(|e| own(e.to_string()))?;
        drop(guard);
        Ok(bytes)
    }

    /// Releases every tag that starts with a prefix and returns how many there were. Blobs that no other
    /// tag names go at the next garbage collection.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn release(&self, tag_prefix: &str) -> Result<u64, DataError> {
        self.store.tags().delete_prefix(tag_prefix).await.map_err(store_error)
    }

    /// Returns when everything added and named so far survives the process.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sync(&self) -> Result<(), DataError> {
        self.store.sync_db().await.map_err(store_error)
    }

    /// Returns all tags, as they were given.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tags(&self) -> Result<Vec<String>, DataError> {
        let mut stream = self.store.tags().list().await.map_err(store_error)?;
        let mut tags = Vec::new();
        while let Some(tag) = stream.next().await {
            // The hash that `name` added is no part of what was given.
            let name = String::from_utf8_lossy(&tag.map_err(store_error)?.name.0).into_owned();
            tags.push(name.rsplit_once('/').map_or(name.clone(), |(given, _)| given.to_owned()));
        }
        Ok(tags)
    }

    /// Waits until a garbage collection that began after this call is over.
    pub async fn collected(&self) {
        let mut collections = self.collections.clone();
        let begun = *collections.borrow_and_update();
        // One collection may be running now. The next one begins after this call and is over when the
        // one after it begins.
        let _stopped = collections.wait_for(|count| *count >= begun + 2).await;
    }

    /// Returns the size of all blobs in the store, in bytes. Looks at each one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn stored_bytes(&self) -> Result<u64, DataError> {
        let mut hashes = self.store.list().stream().await.map_err(store_error)?;
        let mut bytes = 0_u64;
        while let Some(hash) = hashes.next().await {
            let hash = hash.map_err(store_error)?;
            bytes += match self.store.status(hash).await.map_err(store_error)? {
                BlobStatus::Complete { size } => size,
                BlobStatus::Partial { size } => size.unwrap_or(0),
                BlobStatus::NotFound => 0,
            };
        }
        Ok(bytes)
    }

    /// Pushes one frame to a peer and returns its acknowledgement.
    ///
    /// # Errors
    /// See [`PushError`]; always within the deadline.
    ///
    /// Cancel safe: dropping the future resets the stream.
    pub async fn push(
        &self,
        peer: PeerKey,
        header: Vec<u8>,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Vec<u8>, PushError> {
        self.sender.push(peer, header, payload, deadline).await
    }

    /// Returns the counters of the data plane.
    #[must_use]
    pub fn metrics(&self) -> &DataMetrics {
        &self.metrics
    }

    /// Stops serving, flushes and closes the store, then closes every connection.
    pub async fn shutdown(&self) {
        if let Err(error) = self.router.shutdown().await {
            tracing::warn!(%error, "data plane stopped uncleanly");
        }
        if let Some(counting) = self.counting.lock().await.take() {
            counting.abort();
        }
    }

    /// Bytes of a blob that are here.
    async fn local_bytes(&self, blob: Hash) -> u64 {
        self.store.remote().local(blob).await.map_or(0, |local| local.local_bytes())
    }

    async fn name(&self, hash: Hash, tag: &str) -> Result<(), DataError> {
        let tag = format!("{tag}/{}", hash.to_hex());
        self.store.tags().set(tag, hash).await.map_err(store_error)
    }
}

fn store_error(error: impl std::fmt::Display) -> DataError {
    DataError::Store(error.to_string())
}

/// Opens a store; what no tag names is collected if a collector's settings are given.
pub(super) async fn open_store(storage: &Storage, gc: Option<GcConfig>) -> Result<Store, DataError> {
    match storage {
        Storage::Memory => {
            let store = MemStore::new_with_opts(mem::Options { gc_config: gc });
            Ok((*store).clone())
        }
        Storage::Disk(path) => {
            let fail = |error: String| DataError::Open { path: path.clone(), reason: error };
            std::fs::create_dir_all(path).map_err(|error| fail(error.to_string()))?;
            let options = Options { gc, ..Options::new(path) };
            let store = FsStore::load_with_opts(path.join("blobs.db"), options)
                .await
                .map_err(|error| fail(error.to_string()))?;
            Ok((*store).clone())
        }
    }
}

/// Returns the collector's settings and a count of the collections that have begun.
fn collector(interval: Duration) -> (GcConfig, watch::Receiver<u64>) {
    let (begun, collections) = watch::channel(0);
    let begun = Arc::new(begun);
    let gc = GcConfig {
        interval,
        add_protected: Some(Arc::new(move |_protected| {
            begun.send_modify(|count| *count += 1);
            Box::pin(async { ProtectOutcome::Continue })
        })),
    };
    (gc, collections)
}
