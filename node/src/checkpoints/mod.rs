//! Checkpoints: what a run leaves in its mirror, so that it can be resumed on other machines with other peers.
//!
//! ```text
//!  miners ── parts of states, offers ──▶ mirror ◀── manifest, pointer ── candidates
//!                                          │
//!            resume, checkpoint pull ◀─────┘  manifest ─▶ offer of each stage ─▶ parts
//! ```
//!
//! Miners bring the states and say so in their records; the log decides when a checkpoint is complete; candidates look
//! that all of it is there, write the `Manifest` and move the pointer (`keep`). Whoever reads goes the same way in the
//! other direction (`read`), and believes hashes only.

mod keep;
mod manifest;
mod open;
mod read;
mod resume;

pub use keep::{KeepError, Kept, keep};
pub use manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError, MomentsEntry, StageEntry};
pub use open::{OpenError, open};
pub use read::{Found, ReadError, Verified, Which, all, find, moments_of, pull, verify};
pub use resume::{ResumeError, resumed};
