//! Processes that start and stop, and what faults do.

use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::{Instant, PeerId};

use super::{Cargo, Event, World};
use crate::faults::Fault;
use crate::network::HostIndex;
use crate::observe::Seen;

/// Pause before a host that could not be spared is asked for again.
const SPARED_FOR: Duration = Duration::from_secs(1);
/// From a peer's last words to the end of its process, as in a node.
const FAREWELL: Duration = Duration::from_millis(300);

impl World {
    pub(super) fn start(&mut self, host: HostIndex) {
        if self.hosts[host].peer.is_some() {
            return;
        }
        let now = self.queue.now();
        self.hosts[host].start(now, &self.spec, &self.engines);
        self.set_up(host, true);
        self.show(host, Seen::Started);
        self.reconnect(host);
        let local = self.local_now(host);
        if let Some(peer) = &mut self.hosts[host].peer {
            peer.handle_timeout(local);
        }
        self.drain(host);
    }

    /// A host answers from now on, or does not.
    fn set_up(&mut self, host: HostIndex, up: bool) {
        self.network.set_up(host, up);
        self.topics.set_up(&self.network, host, up);
        if !up {
            // What it relays is cut off with it.
            self.network.flows_via(host).into_iter().for_each(|flow| self.drop_cargo(flow));
        }
    }

    /// Candidates learn that a connection to `host` was made, and it learns of theirs.
    fn reconnect(&mut self, host: HostIndex) {
        let candidates = 0..self.spec.orchestrator.candidates.len();
        if !candidates.contains(&host) {
            return;
        }
        for other in candidates.filter(|&other| other != host) {
            for (one, two) in [(host, other), (other, host)] {
                let peer: PeerId = self.hosts[two].identity.peer();
                let incarnation = self.hosts[one].incarnation;
                if let Some(delay) = self.network.message(two, one, 0) {
                    self.queue.push(delay, Event::Connected { host: one, incarnation, peer });
                }
            }
        }
    }

    pub(super) fn stop(&mut self, host: HostIndex) {
        if self.hosts[host].peer.is_none() {
            return;
        }
        self.hosts[host].stop();
        self.set_up(host, false);
        self.topics.forget(&self.network, host);
        self.reputations.forget(host);
        self.show(host, Seen::Stopped);
        self.drop_cargo_of(host);
    }

    /// Transfers from and to a host are cut off.
    fn drop_cargo_of(&mut self, host: HostIndex) {
        let touches = |cargo: &Cargo| match cargo {
            Cargo::Push(push) => push.from == host || push.to == host,
            Cargo::Fetch(fetch, source, _) => fetch.host == host || *source == host,
        };
        let flows: Vec<u64> =
            self.cargo.iter().filter(|(_, cargo)| touches(cargo)).map(|(flow, _)| *flow).collect();
        flows.into_iter().for_each(|flow| self.drop_cargo(flow));
    }

    /// Transfers between hosts that cannot reach each other any more come to their deadlines.
    fn drop_unreachable_cargo(&mut self) {
        let ends = |cargo: &Cargo| match cargo {
            Cargo::Push(push) => (push.from, push.to),
            Cargo::Fetch(fetch, source, _) => (*source, fetch.host),
        };
        let cut: Vec<u64> = self
            .cargo
            .iter()
            .filter(|(_, cargo)| {
                let (from, to) = ends(cargo);
                !self.network.reaches(from, to)
            })
            .map(|(flow, _)| *flow)
            .collect();
        cut.into_iter().for_each(|flow| self.drop_cargo(flow));
    }

    pub(super) fn thaw(&mut self, host: HostIndex, incarnation: u32) {
        if !self.lives(host, incarnation) {
            return;
        }
        self.hosts[host].frozen = false;
        self.set_up(host, true);
        let local = self.local_now(host);
        if let Some(peer) = &mut self.hosts[host].peer {
            peer.handle_timeout(local);
        }
        self.drain(host);
        for event in std::mem::take(&mut self.hosts[host].inbox) {
            self.dispatch(event);
        }
    }

    fn freeze(&mut self, host: HostIndex, pause: Duration) {
        if !self.hosts[host].is_awake() {
            return;
        }
        self.hosts[host].frozen = true;
        self.set_up(host, false);
        let incarnation = self.hosts[host].incarnation;
        self.queue.push(pause, Event::Thaw(host, incarnation));
    }

    /// The host that leads and knows it.
    #[must_use]
    pub fn leader(&self) -> Option<HostIndex> {
        (0..self.spec.orchestrator.candidates.len()).find(|&host| {
            let leads = |peer: &crate::host::VirtualPeer| peer.leader() == Some(peer.id());
            self.hosts[host].is_awake() && self.hosts[host].peer().is_some_and(leads)
        })
    }

    /// Does a fault now, scheduled or not.
    pub fn inject(&mut self, fault: Fault) {
        self.schedule.push((self.now().since(Instant::ZERO), fault));
        self.disturb(self.schedule.len() - 1);
    }

    /// Does the fault of this number.
    pub(super) fn disturb(&mut self, index: usize) {
        let fault = self.schedule[index].1.clone();
        let about = match &fault {
            Fault::Crash(host) | Fault::Restart(host) | Fault::Freeze(host, _) | Fault::Join(host) => *host,
            Fault::Reinstall(host, ..)
            | Fault::Leave(host, _)
            | Fault::Group(host, _)
            | Fault::Cut(host, _) => *host,
            Fault::Relink(host, _) | Fault::Speed(host, _) | Fault::Disk(host, _) => *host,
            Fault::CrashLeader(_) => self.leader().unwrap_or(0),
            Fault::Heal | Fault::DropGossip(_) | Fault::RepeatGossip(_) => 0,
        };
        if self.spares_last_copies && self.takes_last_copy(about, &fault) {
            if let Fault::Reinstall(..) = fault {
                // Whoever upgrades a host waits until others have what only it holds.
                self.queue.push(SPARED_FOR, Event::Fault(index));
            }
            return;
        }
        self.show(about, Seen::Fault(&fault));
        match fault {
            Fault::Crash(host) => self.stop(host),
            Fault::Restart(host) | Fault::Join(host) => self.start(host),
            Fault::CrashLeader(pause) => {
                if let Some(leader) = self.leader() {
                    self.stop(leader);
                    self.queue.push(pause, Event::Restart(leader));
                }
            }
            Fault::Reinstall(host, versions, pause) => {
                self.stop(host);
                self.hosts[host].setup.versions = versions;
                self.queue.push(pause, Event::Restart(host));
            }
            Fault::Freeze(host, pause) => self.freeze(host, pause),
            Fault::Leave(host, within) => self.leave(host, within),
            Fault::Group(host, group) => {
                self.network.set_group(host, group);
                self.links_changed();
            }
            Fault::Cut(from, to) => {
                self.network.set_cut(from, to, true);
                self.links_changed();
            }
            Fault::Heal => {
                self.network.heal();
                self.links_changed();
                (0..self.spec.orchestrator.candidates.len()).for_each(|host| self.reconnect(host));
            }
            Fault::Relink(host, link) => {
                self.network.set_link(host, link);
                self.links_changed();
            }
            Fault::Speed(host, speed) => self.hosts[host].setup.speed = speed,
            Fault::Disk(host, bytes) => self.hosts[host].store.set_quota(bytes),
            Fault::DropGossip(share) => self.drop_gossip = share,
            Fault::RepeatGossip(share) => self.repeat_gossip = share,
        }
    }

    fn links_changed(&mut self) {
        self.topics.rebuild(&self.network);
        self.drop_unreachable_cargo();
    }

    /// A peer says that it leaves, and ends when it is let go, or when its time is up.
    fn leave(&mut self, host: HostIndex, within: Duration) {
        let local = self.local_now(host);
        let incarnation = self.hosts[host].incarnation;
        let leaving = &mut self.hosts[host];
        let Some(peer) = leaving.peer.as_mut().filter(|_| !leaving.frozen) else { return };
        leaving.setup.miner = false;
        self.queue.push(within, Event::Depart(host, incarnation));
        if !within.is_zero() {
            peer.leave(local);
            self.drain(host);
        }
    }

    /// A host's process says that it is gone and ends. One that was not let go may have to stay for what it alone has.
    pub(super) fn depart(&mut self, host: HostIndex, incarnation: u32) {
        if !self.lives(host, incarnation) {
            return;
        }
        let free = self.hosts[host].peer().is_some_and(|peer| peer.has_left());
        if !free && self.spares_last_copies && self.has_last_copy(host) {
            self.queue.push(SPARED_FOR, Event::Depart(host, incarnation));
            return;
        }
        let local = self.local_now(host);
        self.queue.push(FAREWELL, Event::Stop(host, incarnation));
        let leaving = &mut self.hosts[host];
        if let Some(peer) = leaving.peer.as_mut().filter(|_| !leaving.frozen) {
            peer.quit(local);
            self.drain(host);
        }
    }

    /// Notes what the world itself has to know: that somebody knows that the run is over, that a merge was decided on,
    /// that a program is too old for the run.
    pub(super) fn note(&mut self, host: HostIndex, notice: &Notice) {
        match notice {
            Notice::State(StateEvent::Finished) => self.finished_hosts = true,
            Notice::State(StateEvent::Planned(stage, epoch, ..)) => self.planned(*stage, *epoch),
            Notice::Left => {
                let incarnation = self.hosts[host].incarnation;
                self.queue.push(Duration::ZERO, Event::Depart(host, incarnation));
            }
            Notice::Outdated(_) => {
                let incarnation = self.hosts[host].incarnation;
                self.queue.push(Duration::ZERO, Event::Stop(host, incarnation));
            }
            _ => {}
        }
    }
}
