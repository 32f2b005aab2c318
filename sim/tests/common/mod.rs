//! Who looks on in tests of adversaries: what honest peers agree on, and who lost its place and why.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::wire::message::EvictReason;
use iota_protocol::{Epoch, Hash, Instant, PeerId, RunSpec, StageIndex};
use iota_sim::adversary::Kind;
use iota_sim::observe::{Observation, Observer, Seen, Violation};
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, Setup, World, identity};

/// Candidates of every swarm here.
pub(crate) const CANDIDATES: usize = 3;
/// Virtual time after which a run counts as stalled. A clean run takes about twenty seconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);

/// How a swarm with adversaries ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    /// Evictions, without those who left or were silent.
    pub(crate) evicted: BTreeSet<(usize, &'static str)>,
    /// Evictions of silent peers.
    pub(crate) silenced: BTreeSet<usize>,
    /// Leaders that were charged for not leading.
    pub(crate) deposed: BTreeSet<usize>,
    pub(crate) adversaries: Vec<usize>,
}

impl Outcome {
    pub(crate) fn evicted_adversaries(&self, reason: EvictReason) -> usize {
        let named = |(host, why): &&(usize, &str)| self.adversaries.contains(host) && *why == reason.name();
        self.evicted.iter().filter(named).count()
    }

    pub(crate) fn has_finished(&self) -> bool {
        matches!(self.ending, Ending::Finished(_))
    }

    pub(crate) fn evicted_honest(&self) -> Vec<usize> {
        self.evicted.iter().map(|(host, _)| *host).filter(|host| !self.adversaries.contains(host)).collect()
    }
}

/// Weights of honest peers by stage and version, and evictions in the log of honest peers.
#[derive(Default)]
struct Agreement {
    weights: BTreeMap<(StageIndex, Epoch), Hash>,
    evicted: Rc<RefCell<Vec<(PeerId, EvictReason)>>>,
    deposed: Rc<RefCell<Vec<PeerId>>>,
}

impl Observer for Agreement {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        if !observation.honest {
            return Ok(());
        }
        match observation.seen {
            Seen::Notice(Notice::WeightsReady(stage, version, hash)) => {
                let first = *self.weights.entry((*stage, *version)).or_insert(*hash);
                let what = || format!("stage {stage} version {version}: {first} and {hash}");
                if first == *hash { Ok(()) } else { Err(violation(observation.at, "weights", what())) }
            }
            Seen::Notice(Notice::State(StateEvent::Evicted(peer, reason))) => {
                self.evicted.borrow_mut().push((*peer, *reason));
                Ok(())
            }
            Seen::Notice(Notice::State(StateEvent::Deposed(leader))) => {
                self.deposed.borrow_mut().push(*leader);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, world: &World) -> Result<(), Violation> {
        let honest = world.hosts().iter().filter(|host| host.is_honest());
        let mut chains: BTreeMap<usize, Hash> = BTreeMap::new();
        for log in honest.filter_map(|host| host.peer()).map(|peer| peer.log()) {
            for len in log.first()..=log.len() {
                let chain = log.chain(len).unwrap_or_default();
                if *chains.entry(len).or_insert(chain) != chain {
                    return Err(violation(world.now(), "history", format!("entry {len} differs")));
                }
            }
        }
        Ok(())
    }
}

fn violation(at: Instant, checker: &'static str, what: String) -> Violation {
    Violation { checker, at, host: None, what }
}

/// A short run of `stages` × `replicas` in which deadlines pass in seconds.
pub(crate) fn spec(stages: u16, replicas: u16, mode: TrainingMode) -> RunSpec {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = stages;
    spec.pipeline.start_replicas = replicas;
    spec.training.mode = mode;
    spec.training.epochs = 3;
    spec.training.samples_per_epoch = 20;
    spec.training.inner_steps = 2;
    spec.timing.epoch_deadline = Millis::from_secs(20);
    spec.timing.merge_deadline = Millis::from_secs(6);
    spec
}

/// `setup` with these hosts as adversaries of one kind; kinds that want to lead are preferred as leader.
pub(crate) fn corrupted(mut setup: Setup, kind: Kind, adversaries: &[usize]) -> Setup {
    setup.compute = Compute::Toy;
    setup.costs.parameters = 64;
    let mut spec = (*setup.spec).clone();
    for &host in adversaries {
        setup.hosts[host].adversary = Some(kind);
        if let Some(candidate) = spec.orchestrator.candidates.get_mut(host).filter(|_| kind.leads()) {
            candidate.priority = 1;
        }
    }
    setup.spec = spec.into();
    setup
}

/// Runs `setup` with these hosts as adversaries of one kind.
pub(crate) fn run_with(setup: Setup, kind: Kind, adversaries: &[usize]) -> Outcome {
    let setup = corrupted(setup, kind, adversaries);
    let (seed, hosts) = (setup.seed, setup.hosts.len());
    let observer = Agreement::default();
    let (evicted, deposed) = (Rc::clone(&observer.evicted), Rc::clone(&observer.deposed));
    let mut world = World::new(setup);
    world.watch(Box::new(observer));
    let ending = world.run(LIMIT);
    let index: BTreeMap<PeerId, usize> = (0..hosts).map(|host| (identity(seed, host).peer(), host)).collect();
    let evicted = evicted.borrow();
    let of =
        |silent: bool| evicted.iter().filter(move |(_, reason)| silent == (*reason == EvictReason::Silent));
    Outcome {
        ending,
        evicted: of(false)
            .filter(|(_, reason)| *reason != EvictReason::Left)
            .map(|(peer, reason)| (index[peer], reason.name()))
            .collect(),
        deposed: deposed.borrow().iter().map(|leader| index[leader]).collect(),
        silenced: of(true).map(|(peer, _)| index[peer]).collect(),
        adversaries: adversaries.to_vec(),
    }
}

/// A swarm of 2 × 5 with one adversary: the first candidate if it does harm only as one, else the last host.
pub(crate) fn run(kind: Kind, mode: TrainingMode, seed: u64) -> Outcome {
    let setup = Setup::new(spec(2, 3, mode), seed, CANDIDATES, 10);
    run_with(setup, kind, &[if kind.is_candidate() { 0 } else { 9 }])
}

/// A swarm of one stage with two adversaries among five.
pub(crate) fn run_pair(kind: Kind, seed: u64) -> Outcome {
    run_with(Setup::new(spec(1, 5, TrainingMode::Local), seed, CANDIDATES, 5), kind, &[3, 4])
}
