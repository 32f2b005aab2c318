//! Hundreds of virtual nodes, one seed, the same protocol code.
//!
//! A [`World`](world::World) holds virtual hosts on a virtual network; each drives a real [`iota_protocol::peer::Peer`],
//! as the node does over sockets. Nothing here decides anything that the protocol decides. One event queue, ordered by
//! time and insertion, and random streams of one seed make a run a function of its options: the same seed gives the same
//! trace.
//!
//! Reading order: [`queue`] and [`random`] (what makes it deterministic), [`network`], [`mesh`], [`topics`], [`reputation`] and [`blobs`]
//! (what is between and on hosts), [`trainer`] and [`costs`] (what engines do), [`host`] and [`world`] (what ties them together),
//! [`faults`] and [`adversary`] (what goes wrong), [`observe`] (who looks on), [`checker`] (which rules hold) with
//! [`double`] (how each is shown to notice), [`trace`] (what happened), [`scenario`], [`fuzz`] and [`shrink`] (what is
//! tried), [`measure`], [`report`] and [`sweep`] (what comes out, beside what theory allows), [`damage`] (what adversaries
//! do today).

pub mod queue;
pub mod random;

pub mod blobs;
pub mod clock;
pub mod mesh;
pub mod network;
pub mod reputation;
pub mod storage;
pub mod topics;

pub mod costs;
pub mod trainer;

pub mod adversary;
pub mod double;
pub mod faults;
pub mod host;
pub mod observe;
pub mod scenario;
pub mod world;

pub mod checker;
pub mod trace;

pub mod damage;
pub mod fuzz;
pub mod shrink;

pub mod measure;
pub mod report;
pub mod sweep;
