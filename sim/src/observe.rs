//! What a simulation shows while it runs: to checkers, the trace and the measurements.

use std::fmt;

use iota_protocol::miner::{Job, JobDone, Notice};
use iota_protocol::wire::RejectReason;
use iota_protocol::{Instant, PeerId};

use crate::blobs::BlobStore;
use crate::faults::Fault;
use crate::host::VirtualPeer;
use crate::network::HostIndex;
use crate::world::World;

/// Something that happened, where and when.
#[derive(Clone, Copy)]
pub struct Observation<'a> {
    /// Virtual time.
    pub at: Instant,
    /// The host.
    pub host: HostIndex,
    /// Whether the host follows the protocol.
    pub honest: bool,
    /// The host's process; none when it has ended.
    pub peer: Option<&'a VirtualPeer>,
    /// What the host has on disk.
    pub store: &'a BlobStore,
    /// Events of all hosts that are still to happen.
    pub queued: usize,
    /// What happened.
    pub seen: Seen<'a>,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// A process started.
    Started,
    /// A process ended.
    Stopped,
    /// A fault was done to the host, or to the swarm.
    Fault(&'a Fault),
    /// The protocol tells its driver something.
    Notice(&'a Notice),
    /// The engine finished a job; the peer has not heard of it.
    Done(&'a Job, &'a JobDone),
    /// A message was refused, in the name of a sender if it has one.
    Rejected(Option<PeerId>, &'a RejectReason),
}

/// A rule was broken.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// Name of the checker that says so.
    pub checker: &'static str,
    /// When.
    pub at: Instant,
    /// Where, if it is about one host.
    pub host: Option<HostIndex>,
    /// What was expected and what was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.checker, Seconds(self.at))?;
        if let Some(host) = self.host {
            write!(f, ", host {host}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Virtual time as seconds.
pub struct Seconds(pub Instant);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        write!(f, "{}.{:06}s", nanos / 1_000_000_000, nanos / 1_000 % 1_000_000)
    }
}

/// Somebody who looks on. What it returns ends the simulation.
pub trait Observer {
    /// Looks at something that happened.
    ///
    /// # Errors
    /// The rule that it broke.
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation>;

    /// Looks at the world when it has come to rest.
    ///
    /// # Errors
    /// The rule that it breaks.
    fn finish(&mut self, world: &World) -> Result<(), Violation> {
        let _ = world;
        Ok(())
    }
}
