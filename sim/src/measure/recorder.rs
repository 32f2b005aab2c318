//! What a meter remembers while a run goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iota_protocol::miner::{Job, JobDone, Notice};
use iota_protocol::run_state::StateEvent;
use iota_protocol::samples::Deal;
use iota_protocol::{Epoch, Instant, PeerId, RunSpec, SampleId, StageIndex};

use super::churn::{Churn, Election, Loss};
use super::epochs::Epochs;
use super::roofline::{Means, MergeBound, Roofline};
use crate::costs::{Costs, partition_bytes};
use crate::faults::Fault;
use crate::host::VirtualPeer;
use crate::network::{HostIndex, Link};
use crate::observe::{Observation, Seen};
use crate::report::EventKind;
use crate::world::{Setup, identity};

/// Events that a timeline keeps: what a picture can show. The others are counted.
const TIMELINE_MAX: usize = 2000;

/// Engine time, in seconds of a host of speed 1.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// Forward and backward passes.
    pub(super) passes: f64,
    /// Everything else: steps, contributions, reductions, loading.
    pub(super) other: f64,
    /// Passes of samples that were merged.
    pub(super) useful: f64,
}

/// Everything remembered.
pub(super) struct Recorder {
    pub(super) seed: u64,
    pub(super) spec: Arc<RunSpec>,
    pub(super) costs: Costs,
    means: Vec<Means>,
    ids: Vec<PeerId>,
    pub(super) peers: BTreeMap<PeerId, HostIndex>,
    alive: BTreeSet<HostIndex>,
    pub(super) members: BTreeMap<PeerId, StageIndex>,
    /// State events that each host's process has told. The n-th of any host is the same decision.
    told: Vec<u64>,
    /// The most that any host has told.
    known: u64,
    deals: BTreeMap<StageIndex, (Epoch, Deal)>,
    pub(super) leader: Option<PeerId>,
    pub(super) epochs: Epochs,
    pub(super) churn: Churn,
    pub(super) work: Work,
    /// When each sample was finished at the tail.
    pub(super) finished: Vec<Instant>,
    /// What was possible, from when on.
    pub(super) capacity: Vec<(Instant, Roofline)>,
    pub(super) timeline: Vec<(Instant, EventKind, String)>,
    pub(super) untold: u64,
}

impl Recorder {
    pub(super) fn new(setup: &Setup) -> Self {
        let ids: Vec<PeerId> = (0..setup.hosts.len()).map(|host| identity(setup.seed, host).peer()).collect();
        let hosts = setup.hosts.iter();
        Self {
            seed: setup.seed,
            spec: Arc::clone(&setup.spec),
            costs: setup.costs,
            means: hosts.map(|host| Means { link: host.link, speed: host.speed }).collect(),
            peers: ids.iter().enumerate().map(|(host, peer)| (*peer, host)).collect(),
            ids,
            alive: BTreeSet::new(),
            members: BTreeMap::new(),
            told: vec![0; setup.hosts.len()],
            known: 0,
            deals: BTreeMap::new(),
            leader: None,
            epochs: Epochs::new(),
            churn: Churn::default(),
            work: Work::default(),
            finished: Vec::new(),
            capacity: Vec::new(),
            timeline: Vec::new(),
            untold: 0,
        }
    }

    pub(super) fn observe(&mut self, observation: &Observation<'_>) {
        let Observation { at, host, honest, peer, seen, .. } = *observation;
        match seen {
            Seen::Started => self.started(at, host, peer),
            Seen::Stopped => self.stopped(at, host),
            Seen::Fault(fault) => self.disturbed(at, fault),
            Seen::Notice(notice) if honest => self.noticed(at, host, peer, notice),
            Seen::Done(job, done) => self.done(at, host, job, done),
            Seen::Notice(_) | Seen::Rejected(..) => {}
        }
    }

    fn show(&mut self, at: Instant, kind: EventKind, what: String) {
        if self.timeline.len() < TIMELINE_MAX {
            self.timeline.push((at, kind, what));
        } else {
            self.untold += 1;
        }
    }

    fn started(&mut self, at: Instant, host: HostIndex, peer: Option<&VirtualPeer>) {
        self.told[host] = 0;
        self.alive.insert(host);
        if let Some(peer) = peer {
            self.churn.started(at, host, peer.id());
        }
        self.reckon(at);
    }

    fn stopped(&mut self, at: Instant, host: HostIndex) {
        self.alive.remove(&host);
        let peer = self.ids[host];
        self.churn.starting.remove(&peer);
        if let Some(&stage) = self.members.get(&peer) {
            let deal = self.deals.get(&stage).filter(|(epoch, _)| self.trains(stage, *epoch));
            let samples = deal.map(|(_, deal)| deal.samples_of(peer)).unwrap_or_default();
            self.churn.losses.push(Loss {
                host,
                peer,
                stage,
                at,
                samples: samples.into_iter().collect(),
                epoch: deal.map(|(epoch, _)| *epoch),
                evicted: None,
                rerouted: None,
                returned: None,
            });
        }
        if self.leader.take_if(|leader| *leader == peer).is_some() {
            self.churn.elections.push(Election { leader: peer, at, elected: None });
        }
        self.show(at, EventKind::Fault, format!("host {host} stops"));
        self.reckon(at);
    }

    /// Whether this epoch is not planned yet.
    fn trains(&self, stage: StageIndex, epoch: Epoch) -> bool {
        self.epochs.get(&(stage, epoch)).is_some_and(|times| times.planned.is_none())
    }

    fn disturbed(&mut self, at: Instant, fault: &Fault) {
        match fault {
            Fault::Speed(host, speed) => self.means[*host].speed = *speed,
            Fault::Relink(host, link) => self.means[*host].link = *link,
            _ => {}
        }
        self.show(at, EventKind::Fault, fault.to_string());
        self.reckon(at);
    }

    /// Notes what is possible with who is there.
    fn reckon(&mut self, at: Instant) {
        let mut replicas = vec![Vec::new(); usize::from(self.spec.pipeline.stages)];
        for (peer, stage) in &self.members {
            if let Some(host) = self.peers.get(peer).filter(|host| self.alive.contains(host)) {
                replicas[stage.as_usize()].push(self.means[*host]);
            }
        }
        let roofline = Roofline::of(&self.spec, &self.costs, &replicas);
        if self.capacity.last().is_none_or(|(_, last)| *last != roofline) {
            self.capacity.push((at, roofline));
        }
    }

    fn noticed(&mut self, at: Instant, host: HostIndex, peer: Option<&VirtualPeer>, notice: &Notice) {
        match (notice, peer) {
            (Notice::State(event), Some(peer)) => {
                self.told[host] += 1;
                if self.told[host] > self.known {
                    self.known = self.told[host];
                    self.decided(at, peer, event);
                }
            }
            (Notice::Leader(Some(leader)), _) if self.leads(host, *leader) => {
                self.churn.leads(at, *leader);
                self.leader = Some(*leader);
                self.show(at, EventKind::Leader, format!("host {host} leads"));
            }
            _ => {}
        }
    }

    /// Whether this host is `leader`.
    fn leads(&self, host: HostIndex, leader: PeerId) -> bool {
        self.peers.get(&leader) == Some(&host)
    }

    fn decided(&mut self, at: Instant, peer: &VirtualPeer, event: &StateEvent) {
        match event {
            StateEvent::Admitted(member, stage) | StateEvent::Moved(member, stage) => {
                self.members.insert(*member, *stage);
            }
            StateEvent::Evicted(member, reason) => {
                self.churn.evicted(at, *member);
                if let Some(stage) = self.members.remove(member) {
                    self.release(stage, *member);
                }
                let host = self.peers.get(member).copied().unwrap_or_default();
                self.show(at, EventKind::Membership, format!("host {host} evicted: {reason}"));
            }
            StateEvent::EpochOpened(stage, epoch, members) => {
                let deal = peer.state().stage(*stage).and_then(|stage| stage.deal(*epoch));
                self.deals.extend(deal.map(|deal| (*stage, (*epoch, deal.clone()))));
                let times = self.epochs.entry((*stage, *epoch)).or_default();
                if times.members == 0 {
                    times.opened = at;
                }
                times.members = *members;
            }
            StateEvent::Released(stage, _, member) => self.release(*stage, *member),
            StateEvent::Planned(stage, epoch, _, _) => {
                let plan = peer.state().stage(*stage).and_then(|stage| stage.plan()).map(|(_, plan)| plan);
                let bound = plan.map(|plan| self.merge_bound(plan)).unwrap_or_default();
                self.epochs.entry((*stage, *epoch)).or_default().plan(at, plan, bound);
            }
            StateEvent::Aborted(stage, epoch, lost) => {
                lost.iter().for_each(|member| self.release(*stage, *member));
                let times = self.epochs.entry((*stage, *epoch)).or_default();
                times.aborts += 1;
                times.planned = None;
                self.show(at, EventKind::Merge, format!("stage {stage} epoch {epoch}: plan given up"));
            }
            StateEvent::Merged(stage, epoch, samples, _) => self.merged(at, *stage, *epoch, *samples),
            StateEvent::Deposed(_)
            | StateEvent::StoodOut(..)
            | StateEvent::SpeedLimited(..)
            | StateEvent::Skipped(..)
            | StateEvent::Undone(..)
            | StateEvent::CutOff(..)
            | StateEvent::Reassigned(..)
            | StateEvent::Enlisted(_)
            | StateEvent::Dismissed(..)
            | StateEvent::Judged(..)
            | StateEvent::Checked(..)
            | StateEvent::Evaluated(..)
            | StateEvent::Rated(_)
            | StateEvent::Checkpointed(_)
            | StateEvent::Snapshot(_)
            | StateEvent::Upgraded(_)
            | StateEvent::Finished => {}
        }
        if matches!(event, StateEvent::Admitted(..) | StateEvent::Evicted(..)) {
            self.reckon(at);
        }
    }

    fn release(&mut self, stage: StageIndex, member: PeerId) {
        if let Some((_, deal)) = self.deals.get_mut(&stage) {
            deal.release(member);
        }
    }

    fn merge_bound(&self, plan: &iota_protocol::run_state::Plan) -> MergeBound {
        let position = |peer: &PeerId| plan.submitters.iter().position(|submission| submission.peer == *peer);
        let owners: Vec<Vec<usize>> =
            plan.owners.iter().map(|owners| owners.iter().filter_map(position).collect()).collect();
        let link = |peer: &PeerId| {
            self.peers
                .get(peer)
                .and_then(|host| self.means.get(*host))
                .map_or(Link::DATACENTRE, |host| host.link)
        };
        let links: Vec<Link> = plan.submitters.iter().map(|submission| link(&submission.peer)).collect();
        MergeBound::of(&links, &owners, partition_bytes(&self.spec, self.costs.parameters))
    }

    fn merged(&mut self, at: Instant, stage: StageIndex, epoch: Epoch, samples: u64) {
        let Some(times) = self.epochs.get_mut(&(stage, epoch)) else { return };
        (times.merged, times.samples) = (Some(at), samples);
        self.churn.merged(at, &times.submitters);
        self.work.useful +=
            super::statistics::real(samples) * (self.costs.forward + self.costs.backward).as_secs_f64();
        self.show(at, EventKind::Merge, format!("stage {stage} epoch {epoch} merged: {samples} samples"));
    }

    fn done(&mut self, at: Instant, host: HostIndex, job: &Job, done: &JobDone) {
        let partition = partition_bytes(&self.spec, self.costs.parameters);
        let seconds = self.costs.duration(job, 1.0, partition).as_secs_f64();
        match job {
            Job::Forward { .. } | Job::Loss { .. } | Job::Backward { .. } => self.work.passes += seconds,
            _ => self.work.other += seconds,
        }
        match (job, done) {
            (_, JobDone::Finished { epoch, sample, .. }) => self.finished(at, host, *epoch, *sample),
            (Job::Apply { stage, epoch, .. }, JobDone::Weights { .. }) => {
                if let Some(times) = self.epochs.get_mut(&(*stage, *epoch))
                    && times.submitters.contains(&self.ids[host])
                {
                    times.applied = Some(at);
                }
            }
            _ => {}
        }
    }

    fn finished(&mut self, at: Instant, host: HostIndex, epoch: Epoch, sample: SampleId) {
        let Some(&stage) = self.members.get(&self.ids[host]) else { return };
        if stage.as_usize() + 1 == usize::from(self.spec.pipeline.stages) {
            self.finished.push(at);
        }
        if let Some(times) = self.epochs.get_mut(&(stage, epoch)) {
            times.last_finished.insert(host, at);
        }
        self.churn.finished(at, host, stage, epoch, sample);
    }
}
