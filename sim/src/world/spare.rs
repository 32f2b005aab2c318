//! Which faults a swarm cannot survive, whatever the protocol does.
//!
//! Weights live in processes and on their disks, and a process that crashed starts without them. A stage whose every
//! copy is gone cannot go on; until weights are kept elsewhere, a search for faults that the protocol should survive
//! has to leave one copy of each. Places are given out while a run goes on, so which host has the last copy is known
//! only when a fault is about to happen.

use iota_protocol::{Epoch, StageIndex};

use super::World;
use crate::faults::Fault;
use crate::network::HostIndex;

impl World {
    /// Whether a fault would take the last copy of some stage's newest weights: by ending or freezing its process, by
    /// filling its disk, or by cutting it off for so long that its place goes to somebody else.
    pub(super) fn takes_last_copy(&self, host: HostIndex, fault: &Fault) -> bool {
        let takes = match fault {
            Fault::Crash(_)
            | Fault::CrashLeader(_)
            | Fault::Reinstall(..)
            | Fault::Freeze(..)
            | Fault::Leave(_) => true,
            Fault::Disk(_, bytes) => *bytes < self.hosts[host].store.quota(),
            Fault::Group(_, group) => *group != 0,
            _ => false,
        };
        takes && (self.owns_merge(host) || self.spec.stages().any(|stage| !self.has_copy(stage, host)))
    }

    /// Whether a host may be the only one that has a partition of the next version.
    fn owns_merge(&self, host: HostIndex) -> bool {
        let me = self.hosts[host].identity.peer();
        let state = self.best_informed().map(|peer| peer.state());
        state
            .into_iter()
            .flat_map(|state| state.stages())
            .filter_map(|stage| stage.plan())
            .any(|(_, plan)| plan.owners.iter().any(|owners| owners.contains(&me)))
    }

    /// Whether a host other than `except`, in touch with the majority, holds the newest weights of a stage.
    fn has_copy(&self, stage: StageIndex, except: HostIndex) -> bool {
        let Some(version) =
            self.best_informed().and_then(|peer| peer.state().stage(stage)).map(|s| s.version)
        else {
            return true;
        };
        // Anybody can build the initial weights.
        version == Epoch(0)
            || (0..self.hosts.len()).filter(|&host| host != except && self.is_in_touch(host)).any(|host| {
                let peer = self.hosts[host].peer();
                let weights = peer.and_then(|peer| peer.miner()).and_then(|miner| miner.weights());
                weights.is_some_and(|weights| weights.stage == stage && weights.version == version)
                    && peer.is_some_and(|peer| peer.state().stage_of(peer.id()) == Some(stage))
            })
    }

    fn is_in_touch(&self, host: HostIndex) -> bool {
        self.hosts[host].is_honest()
            && self.hosts[host].is_awake()
            && self.hosts[host].setup.miner
            && self.hosts[host].store.has_room()
            && self.network.group(host) == 0
    }
}
