//! [`Mirror`]: the handle, and how each of its operations is bounded, repeated and accounted for.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStoreExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::config::{MirrorConfig, MirrorOpenError, Rooted, open_store};
use super::error::{FOLDER_STORE, MirrorError, Operation, Secrets};
use super::health::{Health, MirrorHealth};
use super::metrics::MirrorMetrics;
use super::url::MirrorUrl;
use crate::rate::UploadRate;

/// The slowest line a mirror is meant for, in bytes per second. A line that is slower moves a checkpoint of a small
/// model in days.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
/// Pause before an operation is tried again, at first and at most; each is twice the one before. What the client repeats
/// by itself it has repeated already, so there is no hurry.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A mirror; cheap to clone. Clones share the limits on rate and concurrency.
#[derive(Clone)]
pub struct Mirror {
    pub(super) inner: Arc<Inner>,
}

/// What the clones share.
pub(super) struct Inner {
    pub(super) url: MirrorUrl,
    pub(super) store: Rooted,
    pub(super) patience: Duration,
    pub(super) reuse_for: Duration,
    pub(super) rate: UploadRate,
    pub(super) uploads: Semaphore,
    pub(super) downloads: Semaphore,
    pub(super) concurrency: usize,
    pub(super) health: Health,
    pub(super) metrics: MirrorMetrics,
    secrets: Secrets,
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mirror({})", self.inner.url)
    }
}

impl Mirror {
    /// Makes the handle. Asks nothing of the store, which may be down, empty or closed to us: operations will say so.
    ///
    /// # Errors
    /// When the client cannot be made: its options contradict each other, or the system has no certificates for `https://`.
    pub fn open(config: MirrorConfig, metrics: MirrorMetrics) -> Result<Self, MirrorOpenError> {
        let store = open_store(&config)?;
        let concurrency = usize::from(config.concurrency.get());
        let inner = Inner {
            store,
            url: config.url,
            patience: config.patience,
            reuse_for: config.reuse_for,
            rate: UploadRate::new(config.upload_rate),
            uploads: Semaphore::new(concurrency),
            downloads: Semaphore::new(concurrency),
            concurrency,
            health: Health::default(),
            metrics,
            secrets: Secrets::of(config.s3.credentials.as_ref()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns where the mirror is.
    #[must_use]
    pub fn url(&self) -> &MirrorUrl {
        &self.inner.url
    }

    /// Returns how the mirror does.
    #[must_use]
    pub fn health(&self) -> MirrorHealth {
        self.inner.health.snapshot()
    }

    /// Returns the folder of a mirror that is one.
    pub(super) fn folder(&self) -> Option<PathBuf> {
        match &self.inner.url {
            MirrorUrl::Folder(folder) => Some(folder.clone()),
            MirrorUrl::S3 { .. } => None,
        }
    }

    pub(super) fn access(&self, operation: Operation, path: Path) -> Access<'_> {
        Access { inner: &self.inner, operation, path }
    }
}

/// One operation on one object, or on all objects below a name.
pub(super) struct Access<'a> {
    pub(super) inner: &'a Inner,
    pub(super) operation: Operation,
    pub(super) path: Path,
}

impl Access<'_> {
    /// Repeats an attempt until it ends otherwise than in [`MirrorError::Unavailable`], or has failed for as long as there is
    /// patience, and accounts for the outcome. Patience counts from the first failure: what went before may have been hours
    /// of waiting for the upload rate. A caller that stops waiting leaves no account.
    pub(super) async fn persist<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, MirrorError>
    where
        F: Future<Output = Result<T, MirrorError>>,
    {
        let (mut pause, pause_max) = PAUSE;
        let mut failing_since = None;
        let result = loop {
            let result = attempt().await;
            if !matches!(result, Err(MirrorError::Unavailable { .. })) {
                break result;
            }
            let since = *failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() + pause >= self.inner.patience {
                break result;
            }
            sleep(pause).await;
            pause = (pause * 2).min(pause_max);
        };
        self.inner.health.record(&result);
        if let Err(error) = &result {
            self.inner.metrics.failed(self.operation, error);
        }
        result
    }

    /// Makes one request that moves up to so many bytes. A conflict with another's write is an answer to try again on.
    pub(super) async fn call<T>(
        &self,
        bytes: u64,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, MirrorError> {
        let answer = self.call_or_conflict(bytes, request).await?;
        answer.ok_or_else(|| self.unavailable("somebody else changed it meanwhile".to_owned()))
    }

    /// The same; returns nothing on a conflict with another's write.
    pub(super) async fn call_or_conflict<T>(
        &self,
        bytes: u64,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Option<T>, MirrorError> {
        let limit = self.limit(bytes);
        match timeout(limit, request).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })) => Ok(None),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.unavailable(format!("no answer within {limit:?}"))),
        }
    }

    /// Does something with the folder on a thread that may wait for the disk. It goes on when the caller stops waiting.
    pub(super) async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, MirrorError> {
        let done =
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|error| self.failed(&folder_error(error)))
    }

    /// How long one request may take that moves so many bytes.
    pub(super) fn limit(&self, bytes: u64) -> Duration {
        self.inner.patience + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
    }

    /// Asks whether the object is there, and for its size, version and time of writing.
    pub(super) async fn look(&self) -> Result<Option<ObjectMeta>, MirrorError> {
        match self.call(0, self.inner.store.head(&self.path)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(MirrorError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn failed(&self, error: &StoreError) -> MirrorError {
        MirrorError::classify(self.operation, self.object(), error, &self.inner.secrets)
    }

    pub(super) fn unavailable(&self, reason: String) -> MirrorError {
        MirrorError::Unavailable { operation: self.operation, object: self.object(), reason }
    }

    pub(super) fn missing(&self) -> MirrorError {
        MirrorError::Missing { operation: self.operation, object: self.object() }
    }

    pub(super) fn object(&self) -> String {
        self.path.to_string()
    }
}

/// The system's error in the form in which the store reports those of a folder.
fn folder_error(error: io::Error) -> StoreError {
    StoreError::Generic { store: FOLDER_STORE, source: Box::new(error) }
}
