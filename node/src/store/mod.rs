//! What a node remembers across restarts, in one redb file: `<data dir>/node.redb`.
//!
//! Three things: small named values, the decided log with its certificates, and the consensus state of
//! a candidate ([`PaxosStorage`](crate::store::PaxosStorage)). A write has reached the disk when its function returns: promises that
//! a restart forgets would break consensus. Writes block on `fsync`, so keep them off latency-bound tasks.

mod database;
mod paxos;

pub use database::{LogRecord, Store, StoreError};
pub use paxos::PaxosStorage;
