//! Fetching one blob: providers in turn, a second one in parallel when the first is slow, verified
//! chunk by chunk, resumed from what is already here.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use iroh::EndpointId;
use iroh::endpoint::Connection;
use iroh_blobs::Hash;
use iroh_blobs::api::Store;
use iroh_blobs::get::fsm::{self, AtBlobContent, AtEndBlob, BlobContentNext, ConnectedNext, EndBlobNext};
use iroh_blobs::util::connection_pool::ConnectionPool;
use tokio::time::timeout;

use super::plane::Hash32;
use crate::net::PeerKey;

/// Silence after which a provider counts as stalled. A transfer that lives delivers or retransmits
/// several times in it.
const STALL: Duration = Duration::from_secs(5);
/// Time after which a slow provider gets competition from the next one. Most parts take less.
const HEDGE_AFTER: Duration = Duration::from_secs(1);
/// Providers asked at once; more would pay for the same bytes again and again.
const PARALLEL_MAX: usize = 2;
/// Verified pieces between the network and the store; each is at most 16 KiB.
const PIECES_MAX: usize = 32;

/// Why one provider did not deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderFailure {
    /// The provider.
    pub peer: PeerKey,
    /// What went wrong.
    pub reason: String,
}

/// Why a blob could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Every provider failed; also when there was none.
    #[error("fetch {}: {}", hex::encode(hash), Failures(failures))]
    NoProvider {
        /// The blob.
        hash: Hash32,
        /// Each provider that was tried, in the order of failing.
        failures: Vec<ProviderFailure>,
    },
    /// The deadline passed first.
    #[error("fetch {}: not complete within {deadline:?}; {}", hex::encode(hash), Failures(failures))]
    TimedOut {
        /// The blob.
        hash: Hash32,
        /// The deadline.
        deadline: Duration,
        /// The providers that had failed until then.
        failures: Vec<ProviderFailure>,
    },
    /// The blob is here, but larger than the caller accepts.
    #[error("fetch {}: {got} bytes, expected at most {limit}", hex::encode(hash))]
    TooLarge {
        /// The blob.
        hash: Hash32,
        /// Its size in bytes.
        got: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The own store failed.
    #[error("fetch {}: own store: {reason}", hex::encode(hash))]
    Store {
        /// The blob.
        hash: Hash32,
        /// What the store said.
        reason: String,
    },
}

struct Failures<'a>(&'a [ProviderFailure]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no provider failed");
        }
        for (position, failure) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            let short = hex::encode(failure.peer.get(..4).unwrap_or_default());
            write!(f, "{separator}provider {short}: {}", failure.reason)?;
        }
        Ok(())
    }
}

/// What one fetch needs besides the list of providers.
pub(super) struct Fetch<'a> {
    pub(super) store: &'a Store,
    pub(super) pool: &'a ConnectionPool,
    pub(super) hash: Hash,
    pub(super) bytes_max: u64,
}

impl Fetch<'_> {
    /// Brings the blob into the store. Returns the bytes that came over the network; what failed on the
    /// way is in `failures`, so that a caller who stops waiting still knows.
    pub(super) async fn run(
        &self,
        providers: &[PeerKey],
        failures: &mut Vec<ProviderFailure>,
    ) -> Option<u64> {
        let mut next = providers.iter();
        let mut running = FuturesUnordered::new();
        loop {
            if running.is_empty() {
                running.push(self.attempt(*next.next()?));
            }
            let competition = running.len() < PARALLEL_MAX && !next.as_slice().is_empty();
            tokio::select! {
                Some((peer, result)) = running.next() => match result {
                    Ok(bytes) => return Some(bytes),
                    Err(reason) => failures.push(ProviderFailure { peer, reason }),
                },
                () = tokio::time::sleep(HEDGE_AFTER), if competition => {
                    running.extend(next.next().map(|peer| self.attempt(*peer)));
                }
            }
        }
    }

    async fn attempt(&self, peer: PeerKey) -> (PeerKey, Result<u64, String>) {
        (peer, self.ask_provider(peer).await)
    }

    async fn ask_provider(&self, peer: PeerKey) -> Result<u64, String> {
        let id = EndpointId::from_bytes(&peer).map_err(|_| "not an ed25519 key".to_string())?;
        let connection = self.pool.get_or_connect(id).await.map_err(|error| format!("connect: {error}"))?;
        let local = self.store.remote().local(self.hash).await.map_err(own_store)?;
        if local.is_complete() {
            return Ok(0);
        }
        let (content, size) = self.request(&connection, local.missing()).await?;
        if size > self.bytes_max {
            return Err(format!("{size} bytes, expected at most {}", self.bytes_max));
        }
        // The empty blob is always complete, so an empty answer to our request is wrong.
        let size = NonZeroU64::new(size).ok_or("empty answer")?;
        let end = self.receive(content, size).await?;
        let EndBlobNext::Closing(closing) = end.next() else {
            return Err("more than one blob".to_string());
        };
        let stats = stalling(closing.next()).await?;
        Ok(stats.payload_bytes_read)
    }

    /// Sends the request and returns the start of the answer with the size the provider claims. Content
    /// of another size would not verify.
    async fn request(
        &self,
        connection: &Connection,
        request: iroh_blobs::protocol::GetRequest,
    ) -> Result<(AtBlobContent, u64), String> {
        let start = fsm::start(connection.clone(), request, fsm::RequestCounters::default());
        let connected = stalling(start.next()).await?;
        match stalling(connected.next()).await? {
            ConnectedNext::StartRoot(root) => stalling(root.next().next()).await,
            _ => Err("answer to another request".to_string()),
        }
    }

    /// Moves verified pieces from the network into the store.
    async fn receive(&self, mut content: AtBlobContent, size: NonZeroU64) -> Result<AtEndBlob, String> {
        let import = self.store.import_bao(self.hash, size, PIECES_MAX).await.map_err(own_store)?;
        let pieces = import.tx;
        let transfer = async move {
            loop {
                match timeout(STALL, content.next()).await {
                    Err(_) => return Err(stalled()),
                    Ok(BlobContentNext::Done(end)) => {
                        drop(pieces);
                        return Ok(end);
                    }
                    Ok(BlobContentNext::More((rest, piece))) => {
                        let piece = piece.map_err(|error| format!("content: {error}"))?;
                        pieces.send(piece).await.map_err(own_store)?;
                        content = rest;
                    }
                }
            }
        };
        let written = async { import.rx.await.map_err(own_store)?.map_err(own_store) };
        let (end, ()) = tokio::try_join!(transfer, written)?;
        Ok(end)
    }
}

async fn stalling<T, E: fmt::Display>(step: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(STALL, step).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(stalled()),
    }
}

fn stalled() -> String {
    format!("silent for {STALL:?}")
}

fn own_store(error: impl fmt::Display) -> String {
    format!("own store: {error}")
}
