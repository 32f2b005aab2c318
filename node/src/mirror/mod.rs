//! The mirror: copies of blobs and checkpoints in an object store outside the swarm, so that a stage all of whose
//! folders are gone can be brought back, and a joiner can start from a checkpoint that no peer serves any more.
//!
//! A mirror is an S3 bucket (`s3://bucket/prefix`) or a folder that the processes of one machine share
//! (`file:///absolute/folder`). Both hold the same names:
//!
//! ```text
//! blobs/<2 hex>/<64 hex>                         content by its BLAKE3 hash; never changes
//! checkpoints/<epoch, 10 digits>-<64 hex>.json   a checkpoint's manifest, by epoch and hash; never changes
//! log/<run>/<first>-<next>-<64 hex>.cbor         entries of a run's log with their proof; never changes
//! latest                                         names one manifest; moved by compare-and-swap
//! ```
//!
//! **Invariant:** nothing is believed by name. What is read is hashed, and content of another hash is an error,
//! whether it was damaged at rest, cut on its way or put there by a stranger. Only `latest` has no hash of its own:
//! it can be old or absent, and what it names is checked.
//!
//! **Invariant:** `latest` moves only after everything it names is there. [`move_latest`](crate::mirror::Mirror::move_latest) looks for the
//! manifest itself; that the manifest's blobs are there is up to whoever wrote it, for it is opaque here.
//!
//! **Invariant:** writing twice is harmless. Peers that hold the same bytes ask first and write under the same name, so they
//! share the uploads, and a write whose answer was lost is simply done again.
//!
//! **Invariant:** no operation lasts for ever, and opening does no network I/O: a bucket that is down slows nobody
//! but the task that waits for it. [`patience`](crate::mirror::MirrorConfig::patience) says how long that is.
//!
//! The store has to honour conditional writes (`If-None-Match`, `If-Match`). One that ignores them lets two that move the
//! pointer at once both believe that they did; the pointer then names the checkpoint of the later, which is there as well.
//!
//! The store's access keys need `s3:GetObject` and `s3:ListBucket` to read, in addition `s3:PutObject` and
//! `s3:AbortMultipartUpload` to write, and `s3:DeleteObject` to collect. Without `s3:ListBucket`, S3 answers the
//! question for an object that is not there with a denial. An upload in parts whose process dies leaves its parts
//! behind; a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`) removes them.

mod url;

mod config;
mod environment;
mod profile;

mod error;
mod health;
mod layout;
mod metrics;

mod store;

mod history;
mod objects;
mod parts;

mod folder;
mod latest;

mod collect;

pub use collect::Collected;
pub(crate) use config::{BACKOFF, CONNECT, PATIENCE};
pub use config::{MirrorConfig, MirrorOpenError};
pub use environment::{Addressing, Credentials, S3Options, S3OptionsError};
pub use error::{FailureKind, MirrorError, Operation};
pub use health::{MirrorHealth, MirrorState};
pub use history::LogPart;
pub use latest::{Latest, LatestVersion, Moved};
pub use metrics::MirrorMetrics;
pub use objects::Put;
pub use parts::PART_BYTES;
pub use store::Mirror;
pub use url::{MirrorUrl, MirrorUrlError};
