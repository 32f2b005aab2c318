//! [`MirrorError`]: what can go wrong with a store, told apart by what helps.

use std::error::Error as _;
use std::fmt;
use std::io;

use object_store::Error as StoreError;
use prometheus_client::encoding::EncodeLabelValue;

use super::environment::Credentials;
use crate::blobs::Hash32;

/// Longest text of a store that an error repeats, in bytes. Its own words come first; what follows is a stack of
/// identifiers.
const WORDS_MAX: usize = 400;

/// What the library calls a store that is a folder.
pub(super) const FOLDER_STORE: &str = "LocalFileSystem";

/// What was asked of the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Operation {
    /// Write an object.
    Put,
    /// Ask whether an object is there.
    Has,
    /// Read an object.
    Get,
    /// List checkpoints.
    List,
    /// Read the pointer.
    Latest,
    /// Move the pointer.
    Move,
    /// Delete what nothing names.
    Collect,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::Has => "look for",
            Self::Get => "get",
            Self::List => "list",
            Self::Latest => "read",
            Self::Move => "move",
            Self::Collect => "collect",
        })
    }
}

/// Why an operation of the mirror failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// The store knows us and says no, or does not know us. Not tried again: other credentials help.
    #[error("{operation} {object} in the mirror: denied: {reason}")]
    Denied {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
        /// What the store said.
        reason: String,
    },
    /// The object is not there.
    #[error("{operation} {object} in the mirror: not there")]
    Missing {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
    },
    /// The bytes are not those that the name promises: damaged in the store or, twice in a row, on their way. Of a
    /// write: the caller's bytes are not those it named, and nothing was written.
    #[error(
        "{operation} {object} in the mirror: expected content of hash {}, got {}",
        hex::encode(expected),
        hex::encode(got)
    )]
    Damaged {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
        /// The hash in its name.
        expected: Hash32,
        /// The hash of what came.
        got: Hash32,
    },
    /// The object is larger than the caller accepts. Nothing of it was read.
    #[error("{operation} {object} in the mirror: {got} bytes, expected at most {limit}")]
    TooLarge {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
        /// Its size in bytes.
        got: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The store has no room left for us. Deleting or paying helps.
    #[error("{operation} {object} in the mirror: full: {reason}")]
    Full {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
        /// What the store said.
        reason: String,
    },
    /// The store did not answer, or answered that it cannot just now. Was tried again, and waiting may help.
    #[error("{operation} {object} in the mirror: unavailable: {reason}")]
    Unavailable {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
        /// What the store said last, or that it said nothing.
        reason: String,
    },
    /// The store does not do what was asked: no such bucket, another region, a request it does not know. Not tried
    /// again: another configuration helps.
    #[error("{operation} {object} in the mirror: refused: {reason}")]
    Refused {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
        /// What the store said.
        reason: String,
    },
    /// The pointer is there and is not one we understand.
    #[error("{operation} {object} in the mirror: unreadable: {reason}")]
    Unreadable {
        /// What was asked.
        operation: Operation,
        /// Of which object.
        object: String,
        /// What was expected and what was found.
        reason: String,
    },
}

/// The kinds of [`MirrorError`], as a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum FailureKind {
    /// [`MirrorError::Denied`].
    Denied,
    /// [`MirrorError::Missing`].
    Missing,
    /// [`MirrorError::Damaged`].
    Damaged,
    /// [`MirrorError::TooLarge`].
    TooLarge,
    /// [`MirrorError::Full`].
    Full,
    /// [`MirrorError::Unavailable`].
    Unavailable,
    /// [`MirrorError::Refused`].
    Refused,
    /// [`MirrorError::Unreadable`].
    Unreadable,
}

impl MirrorError {
    /// Returns which kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Denied { .. } => FailureKind::Denied,
            Self::Missing { .. } => FailureKind::Missing,
            Self::Damaged { .. } => FailureKind::Damaged,
            Self::TooLarge { .. } => FailureKind::TooLarge,
            Self::Full { .. } => FailureKind::Full,
            Self::Unavailable { .. } => FailureKind::Unavailable,
            Self::Refused { .. } => FailureKind::Refused,
            Self::Unreadable { .. } => FailureKind::Unreadable,
        }
    }

    /// Returns whether the store itself is in trouble, rather than one of its objects.
    pub(super) fn is_of_the_store(&self) -> bool {
        matches!(
            self.kind(),
            FailureKind::Denied | FailureKind::Full | FailureKind::Unavailable | FailureKind::Refused
        )
    }

    /// Says what a store's error means for us.
    pub(super) fn classify(
        operation: Operation,
        object: String,
        error: &StoreError,
        secrets: &Secrets,
    ) -> Self {
        let words = error.to_string();
        let reason = secrets.hide(&in_short(&words));
        match kind_of(error, &words) {
            StoreFailure::Denied => Self::Denied { operation, object, reason },
            StoreFailure::Missing => Self::Missing { operation, object },
            StoreFailure::Full => Self::Full { operation, object, reason },
            StoreFailure::Refused => Self::Refused { operation, object, reason },
            StoreFailure::Unavailable => Self::Unavailable { operation, object, reason },
        }
    }
}

/// What a store can do to us.
#[derive(Debug, PartialEq, Eq)]
enum StoreFailure {
    Denied,
    Missing,
    Full,
    Refused,
    Unavailable,
}

fn kind_of(error: &StoreError, words: &str) -> StoreFailure {
    match error {
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => StoreFailure::Denied,
        StoreError::NotFound { .. } if words.contains("NoSuchBucket") => StoreFailure::Refused,
        StoreError::NotFound { .. } => StoreFailure::Missing,
        StoreError::NotImplemented { .. }
        | StoreError::NotSupported { .. }
        | StoreError::InvalidPath { .. }
        | StoreError::UnknownConfigurationKey { .. } => StoreFailure::Refused,
        StoreError::Generic { store: FOLDER_STORE, .. } => kind_of_system(error),
        _ => kind_of_answer(words),
    }
}

/// What a folder's failure means.
fn kind_of_system(error: &StoreError) -> StoreFailure {
    match system_error(error) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
            StoreFailure::Full
        }
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => StoreFailure::Denied,
        Some(io::ErrorKind::NotADirectory) => StoreFailure::Refused,
        _ => StoreFailure::Unavailable,
    }
}

/// The system's error, which is somewhere among the causes.
fn system_error(error: &StoreError) -> Option<io::ErrorKind> {
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(error) = found.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = found.source();
    }
    None
}

/// What an HTTP store's failure means. Its status is read out of the text, since the library keeps the type that
/// holds it private; tests against real answers hold the two together.
fn kind_of_answer(words: &str) -> StoreFailure {
    let said = |codes: &[&str]| codes.iter().any(|code| words.contains(code));
    // Quotas come as statuses of all sorts, told apart only by these codes of MinIO, Ceph and the standard.
    if said(&["QuotaExceeded", "StorageFull", "InsufficientStorage", "InsufficientCapacity"]) {
        return StoreFailure::Full;
    }
    // S3 calls an old or broken token a bad request.
    if said(&["<Code>ExpiredToken</Code>", "<Code>InvalidToken</Code>"]) {
        return StoreFailure::Denied;
    }
    // S3 sends those who ask in the wrong region elsewhere, without saying where.
    if said(&["redirect without LOCATION"]) {
        return StoreFailure::Refused;
    }
    match status_in(words) {
        Some(401 | 403) => StoreFailure::Denied,
        Some(507) => StoreFailure::Full,
        Some(408 | 429) => StoreFailure::Unavailable,
        Some(300..=499 | 501) => StoreFailure::Refused,
        _ => StoreFailure::Unavailable,
    }
}

fn status_in(words: &str) -> Option<u16> {
    let (_, after) = words.split_once("status code: ")?;
    after.get(..3)?.parse().ok()
}

/// The words before a store's document, and of the document the code and the message. What else is in it may repeat
/// the request with all that was signed.
fn in_short(words: &str) -> String {
    let element = |name: &str| {
        let (_, after) = words.split_once(&format!("<{name}>"))?;
        Some(after.split_once('<')?.0)
    };
    let before = words.split('<').next().unwrap_or_default().trim_end();
    let mut text = before.to_owned();
    if let Some(code) = element("Code") {
        let message = element("Message").unwrap_or_default();
        text = format!("{before} {code}: {message}");
    }
    let end = text.floor_char_boundary(WORDS_MAX);
    text.truncate(end);
    text
}

/// What no text may repeat.
#[derive(Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    pub(super) fn of(credentials: Option<&Credentials>) -> Self {
        let all = |known: &Credentials| {
            let token = known.session_token.clone();
            [Some(known.secret.clone()), token, Some(known.key_id.clone())].into_iter().flatten().collect()
        };
        Self(credentials.map(all).unwrap_or_default())
    }

    /// Returns the text without the secrets in it.
    pub(super) fn hide(&self, text: &str) -> String {
        let known = self.0.iter().filter(|secret| !secret.is_empty());
        known.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "(not shown)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(status: &str, body: &str) -> StoreError {
        let words = format!(
            "Error performing PUT http://host/b/o in 1ms - Server returned non-2xx status code: {status}: {body}"
        );
        StoreError::Generic { store: "S3", source: words.into() }
    }

    fn kind(error: &StoreError) -> StoreFailure {
        kind_of(error, &error.to_string())
    }

    #[test]
    fn answers_are_told_apart_by_what_helps() {
        assert_eq!(kind(&http("503 Slow Down", "")), StoreFailure::Unavailable);
        assert_eq!(kind(&http("429 Too Many Requests", "")), StoreFailure::Unavailable);
        assert_eq!(kind(&http("507 Insufficient Storage", "")), StoreFailure::Full);
        assert_eq!(kind(&http("400 Bad Request", "<Code>XMinioStorageFull</Code>")), StoreFailure::Full);
        assert_eq!(kind(&http("400 Bad Request", "<Code>ExpiredToken</Code>")), StoreFailure::Denied);
        assert_eq!(kind(&http("400 Bad Request", "<Code>MalformedXML</Code>")), StoreFailure::Refused);
        assert_eq!(kind(&http("501 Not Implemented", "")), StoreFailure::Refused);
        let silent = StoreError::Generic { store: "S3", source: "connection refused".into() };
        assert_eq!(kind(&silent), StoreFailure::Unavailable);
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let missing = |body: &str| StoreError::NotFound { path: "o".to_owned(), source: body.into() };
        assert_eq!(kind(&missing("<Code>NoSuchKey</Code>")), StoreFailure::Missing);
        assert_eq!(kind(&missing("<Code>NoSuchBucket</Code>")), StoreFailure::Refused);
    }

    #[test]
    fn the_systems_errors_are_found_among_the_causes() {
        let local = |kind: io::ErrorKind| StoreError::Generic {
            store: FOLDER_STORE,
            source: Box::new(io::Error::from(kind)),
        };
        assert_eq!(kind(&local(io::ErrorKind::StorageFull)), StoreFailure::Full);
        assert_eq!(kind(&local(io::ErrorKind::PermissionDenied)), StoreFailure::Denied);
        assert_eq!(kind(&local(io::ErrorKind::Interrupted)), StoreFailure::Unavailable);
    }

    #[test]
    fn texts_keep_the_stores_words_without_the_request_it_repeats() {
        let body = "<?xml?><Error><Code>SignatureDoesNotMatch</Code><Message>no match for ID</Message>\
            <CanonicalRequest>x-amz-security-token:TOKEN</CanonicalRequest></Error>";
        let secrets = Secrets::of(Some(&Credentials::new("ID", "SECRET", Some("TOKEN"))));
        let error =
            MirrorError::classify(Operation::Put, "o".to_owned(), &http("403 Forbidden", body), &secrets);
        assert_eq!(
            error.to_string(),
            "put o in the mirror: denied: Generic S3 error: Error performing PUT http://host/b/o in 1ms - Server \
             returned non-2xx status code: 403 Forbidden: SignatureDoesNotMatch: no match for (not shown)"
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let error = StoreError::Generic { store: "S3", source: "ä".repeat(WORDS_MAX).into() };
        assert!(in_short(&error.to_string()).len() <= WORDS_MAX);
    }
}
