//! What each adversary still does to a swarm: the same runs with and without it, compared.
//!
//! Three stages of six miners train the toy problem; three of the miners are the candidates. Four of the eighteen hosts
//! are adversaries of one kind, wherever the orchestrator puts them, or one of the three candidates is, for those that
//! do harm only there. Nothing else goes wrong: links are equal, nobody crashes. Every number is a median over seeds of
//! what happened with adversaries over what happened without them under the same seed. Validators, if there are any, are
//! hosts of their own.

mod format;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::wire::message::EvictReason;
use iota_protocol::{Epoch, Hash, Instant, PeerId, RunSpec, StageIndex};

use crate::adversary::Kind;
use crate::network::{HostIndex, Link};
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::trainer::Compute;
use crate::world::{Ending, Setup, World, identity};

pub use format::table;

/// Stages of the swarm.
const STAGES: u16 = 3;
/// Hosts, of which the first [`CANDIDATES`] may lead.
const HOSTS: usize = 18;
/// Candidates.
const CANDIDATES: usize = 3;
/// Adversaries: a fifth of the hosts, rounded up.
const ADVERSARIES: usize = 4;
/// Merges of each stage.
const EPOCHS: u32 = 8;
/// Samples of an epoch, ten for each miner.
const SAMPLES: u32 = 60;
/// Elements of a stage's vector.
const PARAMETERS: usize = 64;
/// Virtual time after which a run counts as stalled; without adversaries it takes about a minute.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How the swarm checks what miners do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checking {
    /// Hosts that validate, besides the miners.
    pub validators: usize,
    /// Share of all contributions that are replayed.
    pub replay_share: f64,
}

impl Checking {
    /// Nobody does.
    pub const NONE: Self = Self { validators: 0, replay_share: 0.0 };
}

/// What one kind of adversary does in one training mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Damage {
    /// The adversary.
    pub kind: Kind,
    /// How the swarm trains.
    pub mode: TrainingMode,
    /// Runs with it, one per seed.
    pub runs: usize,
    /// Runs that finished.
    pub finished: usize,
    /// Runs in which honest peers held different histories or weights.
    pub disagreed: usize,
    /// Final excess loss of honest miners over that of a clean run. Infinite if no number is left.
    pub excess: f64,
    /// Time of the run from its first epoch on over that of a clean run. Infinite if it did not finish.
    pub duration: f64,
    /// Gossiped bytes per second over those of a clean run.
    pub gossip: f64,
    /// Share of what was merged that adversaries contributed.
    pub weight: f64,
    /// Share of the run's samples that no merge contains.
    pub lost: f64,
    /// Adversaries evicted, per run, by reason.
    pub evicted: BTreeMap<&'static str, f64>,
    /// Honest peers evicted, per run, by reason.
    pub evicted_honest: BTreeMap<&'static str, f64>,
}

/// What was seen of one run.
#[derive(Clone, Debug)]
struct Measured {
    finished: bool,
    disagreed: bool,
    excess: f64,
    seconds: f64,
    gossip_rate: f64,
    weight: f64,
    lost: f64,
    evicted: BTreeSet<(HostIndex, &'static str)>,
    adversaries: Vec<HostIndex>,
}

/// What the honest peers' logs say, collected while the run goes on.
#[derive(Default)]
struct Collected {
    opened: Option<Instant>,
    weights: BTreeMap<(StageIndex, Epoch), Hash>,
    evicted: BTreeSet<(PeerId, &'static str)>,
    /// Samples merged, by who contributed them.
    merged: BTreeMap<(StageIndex, Epoch), BTreeMap<PeerId, u32>>,
    disagreed: bool,
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
            Notice::State(StateEvent::Evicted(peer, reason)) => {
                seen.evicted.insert((*peer, label(*reason)));
            }
            Notice::State(StateEvent::Merged(stage, epoch, ..)) => {
                let stage_state = observation.peer.and_then(|peer| peer.state().stage(*stage));
                if let Some(closed) = stage_state.and_then(|stage| stage.closed_epoch(*epoch)) {
                    let parts = closed.plan.submitters.iter().map(|part| (part.peer, part.samples));
                    seen.merged.insert((*stage, *epoch), parts.collect());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

const fn label(reason: EvictReason) -> &'static str {
    match reason {
        EvictReason::Silent => "silent",
        EvictReason::Left => "left",
        EvictReason::InvalidContribution => "invalid contribution",
        EvictReason::WrongMerge => "wrong merge",
        EvictReason::FailedReplay => "failed replay",
        EvictReason::Unproven => "unproven",
        EvictReason::LowScore => "low score",
    }
}

fn spec(mode: TrainingMode) -> RunSpec {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = STAGES;
    spec.pipeline.start_replicas = 4;
    spec.training.mode = mode;
    spec.training.epochs = EPOCHS;
    spec.training.samples_per_epoch = SAMPLES;
    spec.training.inner_steps = 4;
    spec.timing.epoch_deadline = Millis::from_secs(20);
    spec.timing.merge_deadline = Millis::from_secs(6);
    spec
}

/// The swarm of `seed`, and who its adversaries are.
fn setup(kind: Option<Kind>, mode: TrainingMode, checking: Checking, seed: u64) -> (Setup, Vec<HostIndex>) {
    let mut spec = spec(mode);
    spec.validation.replay_share = checking.replay_share;
    let mut setup = Setup::new(spec, seed, CANDIDATES, HOSTS + checking.validators);
    for validator in &mut setup.hosts[HOSTS..] {
        (validator.miner, validator.validator) = (false, true);
    }
    setup.compute = Compute::Toy;
    setup.costs.parameters = PARAMETERS;
    let Some(kind) = kind else { return (setup, Vec::new()) };
    let adversaries: Vec<HostIndex> =
        if kind.is_candidate() { vec![0] } else { (HOSTS - ADVERSARIES..HOSTS).collect() };
    for &host in &adversaries {
        setup.hosts[host].adversary = Some(kind);
        if kind == Kind::Sybil {
            let Link { up, down, .. } = Link::DATACENTRE;
            let identities = ADVERSARIES as f64;
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
    (setup, adversaries)
}

fn measure(kind: Option<Kind>, mode: TrainingMode, checking: Checking, seed: u64) -> Measured {
    let (setup, adversaries) = setup(kind, mode, checking, seed);
    let collected = Rc::new(RefCell::new(Collected::default()));
    let mut world = World::new(setup);
    world.watch(Box::new(Collector(Rc::clone(&collected))));
    let ending = world.run(LIMIT);
    let (at, finished) = match ending {
        Ending::Finished(at) => (at, true),
        Ending::TimeUp | Ending::Violated(_) => (world.now(), false),
    };
    let seen = collected.borrow();
    let bad: BTreeSet<PeerId> = adversaries.iter().map(|&host| identity(seed, host).peer()).collect();
    let parts = || seen.merged.values().flatten();
    let sum = |parts: &mut dyn Iterator<Item = (&PeerId, &u32)>| -> f64 {
        parts.map(|(_, samples)| f64::from(*samples)).fold(0.0, std::ops::Add::add)
    };
    let all = sum(&mut parts());
    let theirs = sum(&mut parts().filter(|(peer, _)| bad.contains(peer)));
    let gossip: u64 = world.hosts().iter().map(|host| host.traffic.gossip).sum();
    let seconds = seen.opened.map_or(0.0, |opened| at.since(opened).as_secs_f64());
    let evicted = seen.evicted.iter().filter_map(|(peer, why)| Some((world.index_of(*peer)?, *why)));
    Measured {
        finished,
        disagreed: seen.disagreed || histories(&world) > 1,
        excess: excess(&world),
        seconds: if finished { seconds } else { f64::INFINITY },
        gossip_rate: gossip as f64 / world.now().since(Instant::ZERO).as_secs_f64(),
        weight: theirs / all.max(1.0),
        lost: 1.0 - all / f64::from(EPOCHS * SAMPLES * u32::from(STAGES)),
        evicted: evicted.collect(),
        adversaries,
    }
}

/// Different histories among honest peers, counted at the length that all of them know.
fn histories(world: &World) -> usize {
    let logs = || world.hosts().iter().filter(|host| host.is_honest()).filter_map(|host| host.peer());
    let common = logs().map(|peer| peer.log().len()).min().unwrap_or(0);
    logs().filter_map(|peer| peer.log().chain(common)).collect::<BTreeSet<_>>().len()
}

/// Excess loss of the model: of each stage the mean over its honest miners, summed. Infinite if a stage has none.
fn excess(world: &World) -> f64 {
    let mut stages: BTreeMap<StageIndex, Vec<f64>> = BTreeMap::new();
    for host in world.hosts().iter().filter(|host| host.is_honest()) {
        let place = host.peer().and_then(|peer| peer.state().stage_of(peer.id()));
        if let (Some(stage), Some(excess)) = (place, host.trainer().excess_loss()) {
            stages.entry(stage).or_default().push(excess);
        }
    }
    let sum: f64 = stages.values().map(|losses| losses.iter().sum::<f64>() / losses.len() as f64).sum();
    if stages.len() == usize::from(STAGES) && sum.is_finite() { sum } else { f64::INFINITY }
}

/// What adversaries of this kind do in `seeds` runs, of seeds 1 to `seeds`.
#[must_use]
pub fn damage(kind: Kind, mode: TrainingMode, checking: Checking, seeds: u64) -> Damage {
    compare(kind, mode, checking, &clean(mode, checking, seeds))
}

/// The runs without adversaries, of seeds 1 to `seeds`.
fn clean(mode: TrainingMode, checking: Checking, seeds: u64) -> Vec<Measured> {
    (1..=seeds).map(|seed| measure(None, mode, checking, seed)).collect()
}

fn compare(kind: Kind, mode: TrainingMode, checking: Checking, clean: &[Measured]) -> Damage {
    let with: Vec<Measured> =
        (1..).take(clean.len()).map(|seed| measure(Some(kind), mode, checking, seed)).collect();
    let ratio = |of: fn(&Measured) -> f64| {
        median(with.iter().zip(clean).map(|(with, clean)| of(with) / of(clean)).collect())
    };
    let count = |honest: bool| {
        let mut count: BTreeMap<&'static str, f64> = BTreeMap::new();
        for run in &with {
            let chosen = run.evicted.iter().filter(|(host, _)| run.adversaries.contains(host) != honest);
            chosen.for_each(|(_, why)| *count.entry(why).or_default() += 1.0 / with.len() as f64);
        }
        count
    };
    Damage {
        kind,
        mode,
        runs: with.len(),
        finished: with.iter().filter(|run| run.finished).count(),
        disagreed: with.iter().filter(|run| run.disagreed).count(),
        excess: ratio(|run| run.excess),
        duration: ratio(|run| run.seconds),
        gossip: ratio(|run| run.gossip_rate),
        weight: median(with.iter().map(|run| run.weight).collect()),
        lost: median(with.iter().map(|run| run.lost).collect()),
        evicted: count(false),
        evicted_honest: count(true),
    }
}

/// The middle of some numbers, the upper one of two; not a number if there are none.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
