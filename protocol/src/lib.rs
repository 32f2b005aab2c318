//! The pure core of the IOTA swarm: who, when and whether.
//!
//! Everything that decides the outcome of a run lives here as state machines without I/O, clock,
//! threads, entropy or tensors. A driver (the `node` crate over real sockets, the `sim` crate over
//! virtual ones) feeds inputs through `handle_*` methods with the current [`Instant`], and drains
//! [`Action`](miner::Action)s with [`Peer::poll_action`](peer::Peer::poll_action).
//!
//! Reading order: [`spec`] (what a run is), [`join`] (who may take part), [`wire`] (what is said), [`log`] (how it is decided),
//! [`run_state`] (what everybody therefore knows), [`samples`] (who does what),
//! [`orchestrator`] (what the leader proposes), [`miner`] (what a worker does about it),
//! [`merge`] (how replicas become one again), [`equivocation`] (what nobody may sign), [`validation`] and [`validator`] (how work is
//! checked), [`scores`] (what it is worth) and [`peer`] (all of it behind one door). [`gauntlet`] judges
//! contributions of runs of one stage by the loss, and [`clasp`] miners of others by that of their paths.
//!
//! **Invariant:** no function here reads a clock or draws entropy, and none panics on bytes that
//! came from a peer.

pub mod clasp;
pub mod difference;
pub mod gauntlet;
pub mod id;
pub mod limits;
pub mod pace;
pub mod quantiles;
pub mod time;

pub mod spec;

pub mod join;

pub mod wire;

pub mod log;

pub mod run_state;
pub mod samples;
pub mod scores;

pub mod equivocation;
pub mod merge;
pub mod miner;
pub mod moments;
pub mod no_confidence;
pub mod orchestrator;
pub mod overstatement;
pub mod peer;
pub mod receipts;

pub mod validation;
pub mod validator;

pub use id::{Epoch, Hash, Identity, LogIndex, PartitionIndex, PeerId, RunId, SampleId, StageIndex};
pub use spec::RunSpec;
pub use time::Instant;
