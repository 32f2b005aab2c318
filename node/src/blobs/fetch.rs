//! Fetching one blob: providers in turn, a second one in parallel when the first is slow, verified
//! chunk by chunk, resumed from what is already here.
//!
//! The second takes the upper half of what is missing, while the first goes on from below. Whoever is done takes half of
//! what is still missing then, so that both send until all is here and hardly anything comes twice.

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
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt as _, GetRequest};
use iroh_blobs::util::connection_pool::ConnectionPool;
use tokio::time::timeout;

use super::plane::Hash32;
use crate::net::PeerKey;

/// Silence after which a provider counts as stalled. A transfer that lives delivers or retransmits
/// several times in it.
pub(crate) const STALL: Duration = Duration::from_secs(5);
/// Time after which a slow provider gets competition from the next one. Most parts take less.
pub(crate) const HEDGE_AFTER: Duration = Duration::from_secs(1);
/// Providers asked at once. A state has many parts, each of which begins with another provider.
const PARALLEL_MAX: usize = 2;
/// Between two looks whether two providers together have sent all.
const LOOK: Duration = Duration::from_millis(50);
/// Chunks that are left to whoever fetches them already: 256 KiB. Less is not worth a request.
const SHARED_CHUNKS_MIN: u64 = 256;
/// Chunks that are verified together.
const GROUP_CHUNKS: u64 = 16;
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

/// What of a blob a provider is asked for.
#[derive(Clone, Copy)]
enum Share {
    /// All that is missing.
    Rest,
    /// The upper half of it: somebody else is at the lower.
    Half,
}

impl Fetch<'_> {
    /// Brings the blob into the store; returns whether it is there. What failed on the way is in `failures`, so that a
    /// caller who stops waiting still knows.
    pub(super) async fn run(&self, providers: &[PeerKey], failures: &mut Vec<ProviderFailure>) -> Option<()> {
        let mut next = providers.iter();
        let mut running = FuturesUnordered::new();
        loop {
            if running.is_empty() {
                running.push(self.attempt(*next.next()?, Share::Rest));
            }
            let competition = running.len() < PARALLEL_MAX && !next.as_slice().is_empty();
            tokio::select! {
                Some((peer, result)) = running.next() => match result {
                    Ok(()) if self.is_complete().await => return Some(()),
                    Ok(()) => running.push(self.attempt(peer, if running.is_empty() { Share::Rest } else { Share::Half })),
                    Err(reason) => failures.push(ProviderFailure { peer, reason }),
                },
                () = tokio::time::sleep(HEDGE_AFTER), if competition => {
                    running.extend(next.next().map(|peer| self.attempt(*peer, Share::Half)));
                }
                () = tokio::time::sleep(LOOK), if running.len() > 1 => {
                    if self.is_complete().await {
                        return Some(());
                    }
                }
            }
        }
    }

    async fn is_complete(&self) -> bool {
        self.store.has(self.hash).await.unwrap_or(false)
    }

    async fn attempt(&self, peer: PeerKey, share: Share) -> (PeerKey, Result<(), String>) {
        (peer, self.ask_provider(peer, share).await)
    }

    async fn ask_provider(&self, peer: PeerKey, share: Share) -> Result<(), String> {
        let id = EndpointId::from_bytes(&peer).map_err(|_| "not an ed25519 key".to_string())?;
        let connection = self.pool.get_or_connect(id).await.map_err(|error| format!("connect: {error}"))?;
        let local = self.store.remote().local(self.hash).await.map_err(own_store)?;
        if local.is_complete() {
            return Ok(());
        }
        let request = match share {
            Share::Rest => local.missing(),
            Share::Half => self.half().await?.unwrap_or_else(|| local.missing()),
        };
        let (content, size) = self.request(&connection, request).await?;
        if size > self.bytes_max {
            return Err(format!("{size} bytes, expected at most {}", self.bytes_max));
        }
        // The empty blob is always complete, so an empty answer to our request is wrong.
        let size = NonZeroU64::new(size).ok_or("empty answer")?;
        let end = self.receive(content, size).await?;
        let EndBlobNext::Closing(closing) = end.next() else {
            return Err("more than one blob".to_string());
        };
        stalling(closing.next()).await?;
        Ok(())
    }

    /// A request for the upper half of what is missing, if that is known and worth it.
    async fn half(&self) -> Result<Option<GetRequest>, String> {
        let known = self.store.observe(self.hash).await.map_err(own_store)?;
        let missing = &ChunkRanges::bytes(..known.size()) - &known.ranges;
        let half = upper_half(&missing).filter(|_| known.size() > 0);
        Ok(half.map(|half| GetRequest::blob_ranges(self.hash, half)))
    }

    /// Sends the request and returns the start of the answer with the size the provider claims. Content
    /// of another size would not verify.
    async fn request(
        &self,
        connection: &Connection,
        request: GetRequest,
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

/// The upper half of ranges of chunks, in whole groups; nothing if there are too few to share.
fn upper_half(missing: &ChunkRanges) -> Option<ChunkRanges> {
    let ends: Vec<u64> = missing.boundaries().iter().map(|chunk| chunk.0).collect();
    let ranges = ends.chunks_exact(2).filter_map(|range| Some((*range.first()?, *range.last()?)));
    let count: u64 = ranges.clone().map(|(start, end)| end - start).sum();
    if count < SHARED_CHUNKS_MIN {
        return None;
    }
    let mut below = count / 2;
    for (start, end) in ranges {
        if below < end - start {
            let middle = (start + below).next_multiple_of(GROUP_CHUNKS);
            return Some(missing & &ChunkRanges::chunks(middle..)).filter(|half| !half.is_empty());
        }
        below -= end - start;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_begins_in_the_middle_of_what_is_missing_at_a_whole_group() {
        let chunks = |range: std::ops::Range<u64>| ChunkRanges::chunks(range);
        assert_eq!(upper_half(&chunks(0..1024)), Some(chunks(512..1024)));
        assert_eq!(upper_half(&chunks(10..1010)), Some(chunks(512..1010)));
        let torn = &chunks(0..100) | &chunks(1000..1400);
        assert_eq!(upper_half(&torn), Some(chunks(1152..1400)));
        assert_eq!(upper_half(&chunks(0..255)), None, "left to whoever is at it");
        assert_eq!(upper_half(&ChunkRanges::empty()), None);
    }
}
