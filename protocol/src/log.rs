//! The replicated log: how candidates agree, and how everybody else knows that they did.
//!
//! Candidates run OmniPaxos ([`consensus`]) and so decide one sequence of entries. Each candidate signs
//! what it decided ([`certificate`]); signatures of a majority make a certificate, which any peer can
//! check without taking part. [`decided`] is the verified log that every peer keeps and serves; [`snapshot`] stands for
//! its beginning.

pub mod certificate;
pub mod consensus;
pub mod decided;
pub mod snapshot;
pub mod storage;

pub use certificate::{Certificate, Certifier, Vote};
pub use consensus::Consensus;
pub use decided::DecidedLog;
pub use snapshot::Snapshot;
pub use storage::{LogBytes, MemoryStorage};
