//! [`MirrorHealth`]: whether the mirror works, for the status page.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::time::Instant;

use super::error::MirrorError;

/// A snapshot of how the mirror does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MirrorHealth {
    /// Whether it works.
    #[serde(flatten)]
    pub state: MirrorState,
    /// Bytes of objects written by this process.
    pub uploaded_bytes: u64,
    /// Bytes of objects read by this process.
    pub downloaded_bytes: u64,
    /// Writes that wait or are under way.
    pub uploads_pending: u64,
    /// Seconds since the store last answered; nothing before its first answer.
    pub last_success_seconds: Option<u64>,
}

/// Whether the mirror works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MirrorState {
    /// Nothing was asked of it yet.
    Idle,
    /// The last operation was answered. That an object is missing or damaged is an answer.
    Ok,
    /// The last operations failed.
    Failing {
        /// Seconds since the first of them failed.
        since_seconds: u64,
        /// What the last of them said.
        reason: String,
        /// How many there were in a row.
        consecutive_failures: u64,
    },
}

/// What the snapshot is taken from.
#[derive(Default)]
pub(super) struct Health {
    uploaded_bytes: AtomicU64,
    downloaded_bytes: AtomicU64,
    uploads_pending: AtomicU64,
    course: Mutex<Course>,
}

#[derive(Default)]
struct Course {
    last_success: Option<Instant>,
    failing: Option<Failing>,
}

struct Failing {
    since: Instant,
    reason: String,
    failures: u64,
}

/// One upload under way; dropping it ends it.
pub(super) struct PendingUpload<'a>(&'a AtomicU64);

impl Drop for PendingUpload<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    pub(super) fn upload(&self) -> PendingUpload<'_> {
        self.uploads_pending.fetch_add(1, Ordering::Relaxed);
        PendingUpload(&self.uploads_pending)
    }

    pub(super) fn uploaded(&self, bytes: u64) {
        self.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn downloaded(&self, bytes: u64) {
        self.downloaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes how an operation ended.
    pub(super) fn record<T>(&self, result: &Result<T, MirrorError>) {
        let now = Instant::now();
        let mut course = self.course();
        match result {
            Err(error) if error.is_of_the_store() => {
                let (since, failures) =
                    course.failing.as_ref().map_or((now, 0), |failing| (failing.since, failing.failures));
                course.failing = Some(Failing { since, reason: error.to_string(), failures: failures + 1 });
            }
            _ => *course = Course { last_success: Some(now), failing: None },
        }
    }

    pub(super) fn snapshot(&self) -> MirrorHealth {
        let course = self.course();
        let state = match &course.failing {
            Some(failing) => MirrorState::Failing {
                since_seconds: failing.since.elapsed().as_secs(),
                reason: failing.reason.clone(),
                consecutive_failures: failing.failures,
            },
            None if course.last_success.is_some() => MirrorState::Ok,
            None => MirrorState::Idle,
        };
        MirrorHealth {
            state,
            uploaded_bytes: self.uploaded_bytes.load(Ordering::Relaxed),
            downloaded_bytes: self.downloaded_bytes.load(Ordering::Relaxed),
            uploads_pending: self.uploads_pending.load(Ordering::Relaxed),
            last_success_seconds: course.last_success.map(|at| at.elapsed().as_secs()),
        }
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::Operation;
    use super::*;

    fn unavailable(reason: &str) -> Result<(), MirrorError> {
        let object = "latest".to_owned();
        Err(MirrorError::Unavailable { operation: Operation::Latest, object, reason: reason.to_owned() })
    }

    #[test]
    fn state_goes_from_idle_over_ok_to_failing_and_back() {
        let health = Health::default();
        assert_eq!(health.snapshot().state, MirrorState::Idle);
        health.record(&Ok(()));
        assert_eq!(health.snapshot().state, MirrorState::Ok);
        health.record(&unavailable("one"));
        health.record(&unavailable("two"));
        let MirrorState::Failing { reason, consecutive_failures, .. } = health.snapshot().state else {
            panic!("two failures in a row are no success");
        };
        assert_eq!(reason, "read latest in the mirror: unavailable: two");
        assert_eq!(consecutive_failures, 2);
        let missing = MirrorError::Missing { operation: Operation::Get, object: "o".to_owned() };
        health.record::<()>(&Err(missing));
        assert_eq!(health.snapshot().state, MirrorState::Ok, "a store that says no has answered");
    }

    #[test]
    fn uploads_are_pending_until_dropped() {
        let health = Health::default();
        let (first, second) = (health.upload(), health.upload());
        assert_eq!(health.snapshot().uploads_pending, 2);
        drop((first, second));
        assert_eq!(health.snapshot().uploads_pending, 0);
    }

    #[test]
    fn the_snapshot_is_flat_json() {
        let health = Health::default();
        health.record(&unavailable("no"));
        let json = serde_json::to_value(health.snapshot()).unwrap();
        assert_eq!(json["state"], "failing");
        assert_eq!(json["consecutive_failures"], 1);
        assert_eq!(json["last_success_seconds"], serde_json::Value::Null);
    }
}
