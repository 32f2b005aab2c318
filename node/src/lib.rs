//! Everything of the IOTA swarm node that touches the world: network, disk, clock and processes.

/// Blobs by hash between peers, over iroh.
pub mod blobs;
/// From the run spec to the types of the model crate.
pub use iota_worker::bridge;
/// Checkpoints in a mirror.
pub mod checkpoints;
/// The corpus of a run.
pub mod corpus;
/// What the binary says when something goes wrong, and its exit codes.
pub mod error;
/// What a node reports while it runs.
pub mod events;
/// The log of a run, from its mirror.
pub mod history;
/// The local status pages.
pub mod http;
/// The node's secret key on disk.
pub mod identity;
/// Invite files.
pub mod invite;
/// What a node counts.
pub mod metrics;
/// Copies of blobs and checkpoints outside the swarm.
pub mod mirror;
/// Small messages between peers, over libp2p.
pub mod net;
/// Why a miner lost its place, for anybody to check.
pub mod proof;
/// Activations pushed to a chosen peer.
pub mod push;
/// What a node remembers across restarts.
pub mod store;
/// Bytes by kind and direction.
pub mod traffic;

/// Joining a run.
pub mod run;

mod disk;
mod driver;
mod rate;
mod recovery;
mod work;

/// The command line.
pub mod cli;
/// Options of a spec and where each came from.
pub mod config;
/// The one-process control.
pub mod control;
/// Validation loss of a whole model.
pub mod evaluation;
/// The report of `up`.
pub mod report;
/// Signals of the operating system.
pub mod signals;
/// A swarm of processes on this machine.
pub mod up;
