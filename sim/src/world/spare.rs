//! Which faults a swarm cannot survive, whatever the protocol does.
//!
//! A process that crashed starts from what it wrote down, so every host of a swarm may crash at once. A host that goes
//! for good takes its disk along, and one whose disk is full writes nothing down. A stage whose every copy is gone that way
//! cannot go on, unless there is a mirror; without one, a search for faults that the protocol should survive has to leave one
//! copy of each. With one, it has to leave what is not in it yet: the partitions of a merge under way, or just done. Places
//! are given out while a run goes on, so which host has the last copy is known only when a fault is about to happen.

use iota_protocol::run_state::{Outcome, RunState};
use iota_protocol::wire::message::{StateOffer, WeightsRecord};
use iota_protocol::{Epoch, StageIndex};

use super::World;
use crate::faults::Fault;
use crate::network::HostIndex;

impl World {
    /// Whether a fault would take the last copy of some stage's newest weights: a host whose disk fills, or whose process
    /// ends while its disk is full.
    pub(super) fn takes_last_copy(&self, host: HostIndex, fault: &Fault) -> bool {
        let takes = match fault {
            Fault::Disk(_, bytes) => *bytes < self.hosts[host].store.quota(),
            Fault::Crash(_) | Fault::CrashLeader(_) | Fault::Reinstall(..) => {
                !self.hosts[host].store.has_room()
            }
            _ => false,
        };
        takes && self.has_last_copy(host)
    }

    /// Whether some stage's newest weights, or a part of the next, may be with this host alone.
    pub(super) fn has_last_copy(&self, host: HostIndex) -> bool {
        let elsewhere = self.spec.mirror.is_set() && self.is_mirrored();
        self.owns_merge(host) || !elsewhere && self.spec.stages().any(|stage| !self.has_copy(stage, host))
    }

    /// Whether the newest weights of all stages can be had from the mirror.
    fn is_mirrored(&self) -> bool {
        let state = self.best_informed().map(|peer| peer.state());
        let checkpoint =
            |state: &RunState| state.checkpoint().map_or(Epoch(0), |checkpoint| checkpoint.epoch);
        state.is_none_or(|state| {
            state.stages().iter().all(|stage| {
                let since = stage.outcomes.iter().filter(|outcome| outcome.epoch >= checkpoint(state));
                let there =
                    |outcome: &Outcome| outcome.partitions.iter().all(|hash| self.mirror.contains_key(hash));
                let outcomes: Vec<_> = since.collect();
                outcomes.len() as u64 == u64::from(stage.version.0 - checkpoint(state).0.min(stage.version.0))
                    && outcomes.into_iter().all(there)
            })
        })
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

    /// Whether a host other than `except`, that has room on its disk, holds the newest weights of a stage or wrote them
    /// down.
    fn has_copy(&self, stage: StageIndex, except: HostIndex) -> bool {
        let Some(version) =
            self.best_informed().and_then(|peer| peer.state().stage(stage)).map(|s| s.version)
        else {
            return true;
        };
        let newest = |weights: WeightsRecord| (weights.stage, weights.version) == (stage, version);
        // Anybody can build the initial weights.
        version == Epoch(0)
            || (0..self.hosts.len()).filter(|&host| host != except && self.is_dependable(host)).any(|host| {
                let peer =
                    self.hosts[host].peer().filter(|peer| peer.state().stage_of(peer.id()) == Some(stage));
                let held = peer.and_then(|peer| peer.miner()).and_then(|miner| miner.weights());
                let written = self.hosts[host].remembered.as_ref().map(StateOffer::record);
                held.is_some_and(newest) || written.is_some_and(newest)
            })
    }

    fn is_dependable(&self, host: HostIndex) -> bool {
        let host = &self.hosts[host];
        host.is_honest() && host.setup.miner && host.store.has_room()
    }
}
