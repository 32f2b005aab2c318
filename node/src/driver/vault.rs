//! Blobs for the engine and the owner loop: memory first, store behind it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use iota_protocol::pace::Paces;
use iota_protocol::peer::room::Room;
use iota_protocol::wire::encode;
use iota_protocol::wire::frame::{PushAck, PushHeader};
use iota_protocol::{Hash, Identity, PeerId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::cache::Cache;
use super::poison::other_push;
use crate::blobs::{DataError, DataPlane, FetchError};
use crate::push::PushError;

/// Blobs waiting to be written. Past that, whoever makes more waits.
const WRITES_QUEUED_MAX: usize = 256;
/// Writes under way at once; the store batches them into one transaction.
const WRITES_AT_ONCE: usize = 16;

/// The blobs of a node; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Vault {
    cache: Cache,
    plane: DataPlane,
    writes: mpsc::Sender<Write>,
    /// Whether nothing is written for want of room.
    full: Arc<AtomicBool>,
    /// How long transfers may take.
    paces: Arc<Mutex<Paces>>,
    /// Who signs that it sends on [something else](other_push), to try that.
    two_faced: Option<Arc<Identity>>,
}

/// What the task behind a vault is told.
#[derive(Debug)]
pub(crate) enum Write {
    /// Keep these bytes under this tag.
    Blob(Bytes, String),
    /// Say when all before was tried, and whether all since the last barrier is in the store.
    Barrier(oneshot::Sender<bool>),
}

impl Vault {
    /// A vault over `plane`, and the task that writes behind. The task ends with the last clone of the vault. Who is `two_faced` signs
    /// and pushes something else than it is told to.
    pub(crate) fn new(
        plane: DataPlane,
        two_faced: Option<Identity>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (writes, queue) = mpsc::channel(WRITES_QUEUED_MAX);
        let full = Arc::new(AtomicBool::new(false));
        let vault = Self {
            cache: Cache::default(),
            plane: plane.clone(),
            writes,
            full: Arc::clone(&full),
            paces: Arc::default(),
            two_faced: two_faced.map(Arc::new),
        };
        (vault, write_behind(plane, queue, full))
    }

    /// Takes the room there is. Without any nothing more is written; what is here is served.
    pub(crate) fn set_room(&self, room: Room) {
        self.full.store(room == Room::Full, Ordering::Relaxed);
    }

    /// Keeps a blob in memory only, for the moment between its arrival and the decision to keep it.
    pub(crate) fn remember(&self, hash: Hash, bytes: Bytes) {
        self.cache.insert(hash, bytes);
    }

    /// Keeps a blob under `tag`, from the async side: in memory at once, in the store soon.
    pub(crate) async fn keep(&self, hash: Hash, bytes: Bytes, tag: &str) {
        self.cache.insert(hash, bytes.clone());
        // Fails only when the node shuts down.
        let _ = self.writes.send(Write::Blob(bytes, full_tag(tag, hash))).await;
    }

    /// [`keep`](Self::keep) from the engine's thread.
    pub(crate) fn keep_blocking(&self, bytes: Bytes, tag: &str) -> Hash {
        let hash = Hash::of(&bytes);
        self.cache.insert(hash, bytes.clone());
        let _ = self.writes.blocking_send(Write::Blob(bytes, full_tag(tag, hash)));
        hash
    }

    /// Keeps a blob and returns when others can fetch it.
    pub(crate) async fn publish(&self, bytes: Bytes, tag: &str) -> Result<Hash, DataError> {
        let hash = Hash::of(&bytes);
        self.cache.insert(hash, bytes.clone());
        if self.full.load(Ordering::Relaxed) {
            return Err(DataError::NoRoom);
        }
        self.plane.add(bytes, &full_tag(tag, hash)).await?;
        Ok(hash)
    }

    /// A blob that is here.
    pub(crate) async fn get(&self, hash: Hash) -> Option<Bytes> {
        match self.cache.get(hash) {
            Some(bytes) => Some(bytes),
            None => self.plane.get(hash.0).await,
        }
    }

    /// A blob from here or else from one of `providers`, kept under `tag`.
    pub(crate) async fn fetch(
        &self,
        hash: Hash,
        limit: usize,
        providers: &[PeerId],
        tag: &str,
    ) -> Result<Bytes, FetchError> {
        if self.full.load(Ordering::Relaxed) {
            let reason = DataError::NoRoom.to_string();
            return self.get(hash).await.ok_or(FetchError::Store { hash: hash.0, reason });
        }
        let providers: Vec<_> = providers.iter().map(|peer| peer.0).collect();
        let is_here = self.plane.has(hash.0).await;
        let deadline = self.paces().fetch_deadline(limit as u64);
        let begun = Instant::now();
        let fetched =
            self.plane.fetch(hash.0, limit as u64, &providers, &full_tag(tag, hash), deadline).await;
        match &fetched {
            Ok(bytes) if !is_here => self.paces().fetched(bytes.len() as u64, begun.elapsed()),
            Err(FetchError::TimedOut { .. }) => self.paces().fetch_expired(),
            Ok(_) | Err(_) => {}
        }
        let bytes = fetched?;
        self.cache.insert(hash, bytes.clone());
        Ok(bytes)
    }

    /// Pushes a tensor that is here; nothing if it is not, or was not acknowledged.
    pub(crate) async fn push(&self, to: PeerId, header: &PushHeader) -> Option<PushAck> {
        let other = match &self.two_faced {
            Some(identity) => Some(other_push(self, identity, header.clone()).await),
            None => None,
        };
        let header = other.as_ref().unwrap_or(header);
        let payload = self.get(header.hash).await?;
        let bytes = payload.len() as u64;
        let deadline = self.paces().push_deadline(to, bytes);
        let begun = Instant::now();
        let answer = self.plane.push(to.0, encode(header), payload, deadline).await;
        match &answer {
            Ok(_) => self.paces().pushed(to, bytes, begun.elapsed()),
            Err(PushError::TimedOut(_)) => self.paces().push_expired(to, bytes),
            Err(_) => {}
        }
        let answer =
            answer.inspect_err(|error| tracing::debug!(peer = %to.short(), %error, "push failed")).ok()?;
        PushAck::parse(&answer).ok()
    }

    /// What is there holds at any time, so that a panic of whoever held it harms nothing.
    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when everything kept or published so far survives the process, or something of it cannot.
    pub(crate) async fn sync(&self) -> Result<(), DataError> {
        let (written, is_written) = oneshot::channel();
        // Both fail only when the node shuts down.
        let _ = self.writes.send(Write::Barrier(written)).await;
        if is_written.await == Ok(false) {
            return Err(DataError::Unwritten);
        }
        self.plane.sync().await
    }
}

/// Tags without the blobs that they name, each once.
pub(crate) fn without_blobs(tags: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    let short = |tag: String| tag.rsplit_once('/').map_or(tag.clone(), |(short, _)| format!("{short}/"));
    tags.into_iter().map(short).collect()
}

/// A tag names one blob, so the hash belongs to it.
fn full_tag(tag: &str, hash: Hash) -> String {
    format!("{tag}{hash}")
}

async fn write_behind(plane: DataPlane, mut queue: mpsc::Receiver<Write>, full: Arc<AtomicBool>) {
    let mut writes: JoinSet<bool> = JoinSet::new();
    // Whether all is written since the last barrier.
    let mut whole = true;
    while let Some(write) = queue.recv().await {
        match write {
            Write::Blob(bytes, tag) => {
                if writes.len() >= WRITES_AT_ONCE {
                    whole &= writes.join_next().await.is_none_or(is_written);
                }
                if full.load(Ordering::Relaxed) {
                    whole = false;
                    continue;
                }
                let plane = plane.clone();
                writes.spawn(async move {
                    let added = plane.add(bytes, &tag).await;
                    added.inspect_err(|error| tracing::warn!(%error, "blob not stored")).is_ok()
                });
            }
            Write::Barrier(written) => {
                while let Some(ended) = writes.join_next().await {
                    whole &= is_written(ended);
                }
                // Whoever asked may have given up.
                let _ = written.send(std::mem::replace(&mut whole, true));
            }
        }
    }
    while writes.join_next().await.is_some() {}
}

/// Whether a write has ended well.
fn is_written(ended: Result<bool, tokio::task::JoinError>) -> bool {
    ended.unwrap_or(false)
}
