//! One run with adversaries, or without, and what is seen of it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::peer::candidate::Distrust;
use iota_protocol::run_state::StateEvent;
use iota_protocol::scores::Penalty;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::validation::{DismissReason, Outcome};
use iota_protocol::wire::message::EvictReason;
use iota_protocol::{Epoch, Hash, Instant, PeerId, RunSpec, StageIndex};

use super::Plan;
use super::detection::Counts;
use crate::adversary::Kind;
use crate::host::Host;
use crate::measure::merged_loss;
use crate::network::{HostIndex, Link};
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::scenario::small_model;
use crate::trainer::Compute;
use crate::world::{Ending, Setup, World};

/// Stages of the swarm.
pub(super) const STAGES: u16 = 3;
/// Miners, of which the first [`CANDIDATES`] may lead.
pub(super) const MINERS: usize = 20;
/// Candidates.
const CANDIDATES: usize = 3;
/// Samples of an epoch, nine for each miner.
const SAMPLES: u32 = 60;
/// Elements of a stage's vector in the toy problem.
const PARAMETERS: usize = 64;
/// Virtual time that each epoch may take before the run counts as stalled; without adversaries one takes about seven seconds.
const EPOCH_LIMIT: Duration = Duration::from_secs(4 * 60);

/// What was seen of one run.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) finished: bool,
    pub(super) disagreed: bool,
    pub(super) loss: f64,
    pub(super) seconds: f64,
    pub(super) gossip_rate: f64,
    pub(super) weight: f64,
    pub(super) lost: f64,
    pub(super) score: Option<f64>,
    pub(super) evicted: Vec<&'static str>,
    pub(super) evicted_honest: Vec<&'static str>,
    pub(super) counts: Counts,
}

/// What the honest peers' logs say, collected while the run goes on.
#[derive(Default)]
struct Collected {
    opened: Option<Instant>,
    weights: BTreeMap<(StageIndex, Epoch), Hash>,
    evicted: BTreeSet<(PeerId, &'static str)>,
    /// Against whom something was proved, or whom a majority of the candidates deposed.
    named: BTreeSet<PeerId>,
    /// Who lost its place for anything but silence and leaving, or paid for having been deposed.
    punished: BTreeSet<PeerId>,
    /// Samples merged, by who contributed them.
    merged: BTreeMap<(StageIndex, Epoch), BTreeMap<PeerId, u32>>,
    disagreed: bool,
}

impl Collected {
    fn state(&mut self, event: &StateEvent) {
        match event {
            StateEvent::Evicted(peer, reason) => {
                self.evicted.insert((*peer, reason.name()));
                if Penalty::of(*reason).is_some() {
                    self.named.insert(*peer);
                }
                if !matches!(reason, EvictReason::Silent | EvictReason::Left) {
                    self.punished.insert(*peer);
                }
            }
            // It may have left before its check was concluded.
            StateEvent::Checked(subject, Outcome::Failed(_)) => {
                self.named.insert(subject.peer);
                self.punished.insert(subject.peer);
            }
            StateEvent::Deposed(peer) => {
                self.named.insert(*peer);
                self.punished.insert(*peer);
            }
            StateEvent::Dismissed(peer, reason) => {
                self.evicted.insert((*peer, dismissal(*reason)));
                if reason.is_proven() {
                    self.named.insert(*peer);
                    self.punished.insert(*peer);
                }
            }
            _ => {}
        }
    }
}

struct Collector(Rc<RefCell<Collected>>);

impl Observer for Collector {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        let (Seen::Notice(notice), true) = (observation.seen, observation.honest) else { return Ok(()) };
        let mut seen = self.0.borrow_mut();
        match notice {
            Notice::WeightsReady(stage, version, hash) => {
                let same = *seen.weights.entry((*stage, *version)).or_insert(*hash) == *hash;
                seen.disagreed |= !same;
            }
            Notice::State(StateEvent::EpochOpened(..)) => {
                seen.opened.get_or_insert(observation.at);
            }
            Notice::State(StateEvent::Merged(stage, epoch, ..)) => {
                let stage_state = observation.peer.and_then(|peer| peer.state().stage(*stage));
                if let Some(closed) = stage_state.and_then(|stage| stage.closed_epoch(*epoch)) {
                    let parts = closed.plan.submitters.iter().map(|part| (part.peer, part.samples));
                    seen.merged.insert((*stage, *epoch), parts.collect());
                }
            }
            Notice::State(event) => seen.state(event),
            // Two histories are proof even where the log can take no decision any more.
            Notice::Distrusts(peer, Distrust::Equivocates(_)) => {
                seen.named.insert(*peer);
                seen.punished.insert(*peer);
            }
            _ => {}
        }
        Ok(())
    }
}

const fn dismissal(reason: DismissReason) -> &'static str {
    match reason {
        DismissReason::Silent => "silent validator",
        DismissReason::Left => "validator left",
        DismissReason::WrongVerdict => "wrong verdict",
        DismissReason::Equivocation => "equivocating validator",
    }
}

fn spec(plan: &Plan, mode: TrainingMode) -> RunSpec {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = STAGES;
    spec.pipeline.start_replicas = 4;
    if plan.compute == Compute::Real {
        small_model(&mut spec);
    }
    spec.training.mode = mode;
    spec.training.epochs = plan.epochs;
    spec.training.samples_per_epoch = SAMPLES;
    spec.training.inner_steps = 4;
    spec.merge.reducer = plan.reducer;
    spec.merge.audit_share = plan.audit_share;
    spec.timing.epoch_deadline = Millis::from_secs(20);
    spec.timing.merge_deadline = Millis::from_secs(6);
    spec.validation.replay_share = plan.replay_share;
    spec
}

/// Who is what in a run.
#[derive(Clone, Debug, Default)]
struct Parts {
    adversaries: Vec<HostIndex>,
    /// Adversaries of another kind, without which those of this one would have no occasion. They count as nothing.
    company: Vec<HostIndex>,
}

impl Parts {
    fn of(plan: &Plan, kind: Kind) -> Self {
        let last = |of: std::ops::Range<usize>| (of.end - share(plan.share, of.len())..of.end).collect();
        let (miners, validators) = (0..MINERS, MINERS..MINERS + plan.validators);
        let adversaries = match kind {
            kind if kind.is_candidate() => vec![0],
            kind if kind.is_validator() => last(validators),
            _ => last(miners.clone()),
        };
        let company = if kind.company().is_some() { last(miners) } else { Vec::new() };
        Self { adversaries, company }
    }

    fn are_honest(&self, host: HostIndex) -> bool {
        !self.adversaries.contains(&host) && !self.company.contains(&host)
    }
}

/// This share of `count` hosts, to the nearest, at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a small count"
)]
fn share(share: f64, count: usize) -> usize {
    ((share * count as f64).round() as usize).max(1).min(count)
}

/// The swarm of `seed`, and who is what in it.
fn setup(plan: &Plan, kind: Option<Kind>, mode: TrainingMode, seed: u64) -> (Setup, Parts) {
    let mut setup = Setup::new(spec(plan, mode), seed, CANDIDATES, MINERS + plan.validators);
    for validator in &mut setup.hosts[MINERS..] {
        (validator.miner, validator.validator) = (false, true);
    }
    setup.compute = plan.compute;
    setup.costs.parameters = PARAMETERS;
    let stages = plan.compute.parameters(&setup.spec, &setup.costs);
    setup.costs.parameters = stages.into_iter().max().unwrap_or(PARAMETERS);
    let Some(kind) = kind else { return (setup, Parts::default()) };
    let parts = Parts::of(plan, kind);
    for &host in &parts.company {
        setup.hosts[host].adversary = kind.company();
    }
    for &host in &parts.adversaries {
        setup.hosts[host].adversary = Some(kind);
        if kind == Kind::Sybil {
            let Link { up, down, .. } = Link::DATACENTRE;
            let identities = parts.adversaries.len() as f64;
            setup.hosts[host].link =
                Link { up: up / identities, down: down / identities, ..Link::DATACENTRE };
            setup.hosts[host].speed = 1.0 / identities;
        }
    }
    if kind.leads()
        && let Some(candidate) = Arc::make_mut(&mut setup.spec).orchestrator.candidates.first_mut()
    {
        candidate.priority = 1;
    }
    (setup, parts)
}

/// Runs the swarm of `seed` to its end.
pub(super) fn measure(plan: &Plan, kind: Option<Kind>, mode: TrainingMode, seed: u64) -> Measured {
    let (setup, parts) = setup(plan, kind, mode, seed);
    let collected = Rc::new(RefCell::new(Collected::default()));
    let mut world = World::new(setup);
    world.watch(Box::new(Collector(Rc::clone(&collected))));
    let ending = world.run(EPOCH_LIMIT * plan.epochs);
    let (at, finished) = match ending {
        Ending::Finished(at) => (at, true),
        Ending::TimeUp | Ending::Violated(_) => (world.now(), false),
    };
    let seen = collected.borrow();
    let merged = |counts: &dyn Fn(HostIndex) -> bool| -> f64 {
        let all = seen.merged.values().flatten();
        let samples = all.filter(|(peer, _)| world.index_of(**peer).is_some_and(counts));
        samples.map(|(_, samples)| f64::from(*samples)).fold(0.0, std::ops::Add::add)
    };
    let all = merged(&|_| true);
    let gossip: u64 = world.hosts().iter().map(|host| host.traffic.gossip).sum();
    let seconds = seen.opened.map_or(0.0, |opened| at.since(opened).as_secs_f64());
    let reasons = |of: &dyn Fn(HostIndex) -> bool| -> Vec<&'static str> {
        let evicted = seen.evicted.iter();
        evicted.filter(|(peer, _)| world.index_of(*peer).is_some_and(of)).map(|(_, why)| *why).collect()
    };
    Measured {
        finished,
        disagreed: seen.disagreed || histories(&world) > 1,
        loss: loss(&world),
        seconds: if finished { seconds } else { f64::INFINITY },
        gossip_rate: gossip as f64 / world.now().since(Instant::ZERO).as_secs_f64(),
        weight: merged(&|host| parts.adversaries.contains(&host)) / all.max(1.0),
        lost: 1.0 - all / f64::from(plan.epochs * SAMPLES * u32::from(STAGES)),
        score: score(&world, &parts),
        evicted: reasons(&|host| parts.adversaries.contains(&host)),
        evicted_honest: reasons(&|host| parts.are_honest(host)),
        counts: count(&world, &parts, &seen),
    }
}

/// Who was found, and who should have been.
fn count(world: &World, parts: &Parts, seen: &Collected) -> Counts {
    let mut counts = Counts::default();
    for (index, host) in world.hosts().iter().enumerate() {
        let peer = host.identity.peer();
        if parts.company.contains(&index) {
            continue;
        }
        if host.has_deviated() {
            let found = seen.named.contains(&peer);
            *(if found { &mut counts.found } else { &mut counts.missed }) += 1;
        } else {
            counts.honest += 1;
            counts.wronged += u64::from(seen.punished.contains(&peer));
        }
    }
    counts
}

/// What a miner that misbehaved gets at the end over what an honest one gets, means of both. Nothing if there is none.
fn score(world: &World, parts: &Parts) -> Option<f64> {
    let state = world.best_informed()?.state();
    let rows = state.scores().table(&world.spec().scores, &state.versions());
    let shares: BTreeMap<PeerId, f64> = rows.iter().map(|row| (row.peer, row.share.as_f64())).collect();
    let mean_of = |hosts: Vec<&Host>| {
        let earned = |host: &&Host| shares.get(&host.identity.peer()).copied().unwrap_or(0.0);
        (!hosts.is_empty()).then(|| hosts.iter().map(earned).sum::<f64>() / hosts.len() as f64)
    };
    let miners = || world.hosts().iter().enumerate().filter(|(_, host)| host.setup.miner);
    let theirs = miners().filter(|(index, host)| parts.adversaries.contains(index) && host.has_deviated());
    let honest = miners().filter(|(index, _)| parts.are_honest(*index));
    let theirs = mean_of(theirs.map(|(_, host)| host).collect())?;
    let honest = mean_of(honest.map(|(_, host)| host).collect())?;
    (honest > 0.0).then(|| theirs / honest)
}

/// Different histories among honest peers, counted at the length that all of them know.
fn histories(world: &World) -> usize {
    let logs = || world.hosts().iter().filter(|host| host.is_honest()).filter_map(|host| host.peer());
    let common = logs().map(|peer| peer.log().len()).min().unwrap_or(0);
    logs().filter_map(|peer| peer.log().chain(common)).collect::<BTreeSet<_>>().len()
}

/// What the model loses in the end; infinite if that is no number.
fn loss(world: &World) -> f64 {
    let loss = match world.engines().compute() {
        Compute::Real => merged_loss(world),
        Compute::Toy | Compute::Cost => Some(excess(world)),
    };
    loss.filter(|loss| loss.is_finite()).unwrap_or(f64::INFINITY)
}

/// Excess loss in the toy problem: of each stage the mean over its honest miners, summed. Infinite if a stage has none.
fn excess(world: &World) -> f64 {
    let mut stages: BTreeMap<StageIndex, Vec<f64>> = BTreeMap::new();
    for host in world.hosts().iter().filter(|host| host.is_honest()) {
        let place = host.peer().and_then(|peer| peer.state().stage_of(peer.id()));
        if let (Some(stage), Some(excess)) = (place, host.trainer().excess_loss()) {
            stages.entry(stage).or_default().push(excess);
        }
    }
    let sum = stages.values().map(|losses| losses.iter().sum::<f64>() / losses.len() as f64).sum();
    if stages.len() == usize::from(STAGES) { sum } else { f64::INFINITY }
}
