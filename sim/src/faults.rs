//! What is done to a swarm, and when.

use std::fmt;
use std::time::Duration;

use iota_protocol::limits::WIRE_VERSION_FIRST;
use iota_protocol::wire::Versions;
use iota_protocol::{Epoch, StageIndex};

use crate::network::{HostIndex, Link};

/// Something that happens to hosts or links.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// A process ends at once and leaves what was on its disk.
    Crash(HostIndex),
    /// It starts again, from what was on its disk.
    Restart(HostIndex),
    /// The leading candidate crashes, and starts again after a while.
    CrashLeader(Duration),
    /// A process does nothing for a while, then everything at once.
    Freeze(HostIndex, Duration),
    /// A process ends, and starts again after a while as a program that speaks these wire versions.
    Reinstall(HostIndex, Versions, Duration),
    /// A host that was not there starts.
    Join(HostIndex),
    /// A miner says that it leaves, and ends when it is let go, or after so long. With no time at all it says that it is gone.
    Leave(HostIndex, Duration),
    /// A host can reach only hosts of the same group.
    Group(HostIndex, u8),
    /// Messages from the first do not reach the second.
    Cut(HostIndex, HostIndex),
    /// All groups and cuts are gone.
    Heal,
    /// A host changes its link.
    Relink(HostIndex, Link),
    /// A host computes at this speed.
    Speed(HostIndex, f64),
    /// A host's disk has room for this many bytes.
    Disk(HostIndex, u64),
    /// Each host misses each gossiped message with this probability.
    DropGossip(f64),
    /// Each host hears each gossiped message a second time with this probability.
    RepeatGossip(f64),
}

/// How long a miner that leaves waits for its turn unless it is told otherwise, as a node does.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(60);
/// What it takes to start a host's process as another program: less than its place waits for it.
const REINSTALL_TIME: Duration = Duration::from_secs(2);

impl Fault {
    /// A process of the first program is replaced by one that speaks the next wire version, too.
    #[must_use]
    pub const fn upgrade(host: HostIndex) -> Self {
        Self::Reinstall(host, Versions::new(WIRE_VERSION_FIRST, WIRE_VERSION_FIRST + 1), REINSTALL_TIME)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash(host) => write!(f, "crash {host}"),
            Self::Restart(host) => write!(f, "restart {host}"),
            Self::CrashLeader(pause) => write!(f, "crash-leader for {pause:?}"),
            Self::Freeze(host, pause) => write!(f, "freeze {host} for {pause:?}"),
            Self::Reinstall(host, versions, pause) => {
                write!(f, "reinstall {host} for {pause:?} speaking {versions}")
            }
            Self::Join(host) => write!(f, "join {host}"),
            Self::Leave(host, within) => write!(f, "leave {host} within {within:?}"),
            Self::Group(host, group) => write!(f, "group {host} into {group}"),
            Self::Cut(from, to) => write!(f, "cut {from} to {to}"),
            Self::Heal => write!(f, "heal"),
            Self::Relink(host, link) => write!(f, "relink {host} up {} down {}", link.up, link.down),
            Self::Speed(host, speed) => write!(f, "speed {host} {speed}"),
            Self::Disk(host, bytes) => write!(f, "disk {host} {bytes}"),
            Self::DropGossip(share) => write!(f, "drop-gossip {share}"),
            Self::RepeatGossip(share) => write!(f, "repeat-gossip {share}"),
        }
    }
}

/// Miners of a stage that crash in the moment in which its merge is decided on: after the plan names them, before any of
/// them has computed a partition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeFailure {
    /// The stage.
    pub stage: StageIndex,
    /// The epoch whose first merge is hit.
    pub epoch: Epoch,
    /// Share of the plan's submitters that crash; candidates do not.
    pub share: f64,
    /// How long until they start again.
    pub away: Duration,
}

/// A fault and its time since the start.
pub type Scheduled = (Duration, Fault);
