//! Named set-ups with a known answer.
//!
//! Each scenario says what happens to the swarm and what is expected of it. All of them expect that no checker finds a
//! broken rule and that the run finishes; what they differ in is what they do to get there. Faults are placed by virtual
//! time, which stands in units of [`Plan::epoch`], the time an epoch takes when nothing goes wrong.

use std::sync::Arc;
use std::time::Duration;

use iota_protocol::RunSpec;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;

use crate::faults::{Fault, Scheduled};
use crate::host::HostSetup;
use crate::network::{HostIndex, Link};
use crate::random::Random;
use crate::trainer::Compute;
use crate::world::Setup;

/// What a scenario is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Hosts; each scenario has its own default.
    pub nodes: Option<usize>,
    /// What everything is drawn from.
    pub seed: u64,
    /// What engines compute.
    pub compute: Compute,
    /// Epochs; each scenario has its own default.
    pub epochs: Option<u32>,
}

/// A named set-up.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens, in a sentence.
    pub about: &'static str,
    /// Hosts unless told otherwise.
    pub nodes: usize,
    /// Epochs unless told otherwise.
    pub epochs: u32,
    stages: u16,
    candidates: usize,
    disturb: fn(&mut Plan),
}

/// A scenario being set up.
pub struct Plan {
    /// The set-up so far.
    pub setup: Setup,
    /// Its dice.
    pub random: Random,
    /// About how long an epoch takes when nothing goes wrong.
    pub epoch: Duration,
}

/// All scenarios.
pub const ALL: [Scenario; 12] = [
    Scenario {
        name: "smoke",
        about: "Nothing goes wrong.",
        nodes: 12,
        epochs: 6,
        stages: 3,
        candidates: 3,
        disturb: |_| {},
    },
    Scenario {
        name: "churn",
        about: "In every ten epochs 15 % of the miners leave or crash and as many others join.",
        nodes: 40,
        epochs: 20,
        stages: 3,
        candidates: 3,
        disturb: churn,
    },
    Scenario {
        name: "flash-crowd",
        about: "A quarter of the hosts start; all others join within a second in the second epoch.",
        nodes: 48,
        epochs: 10,
        stages: 3,
        candidates: 3,
        disturb: flash_crowd,
    },
    Scenario {
        name: "region-outage",
        about: "Of three regions one is cut off for five epochs' time, candidates and miners alike, and comes back.",
        nodes: 36,
        epochs: 14,
        stages: 3,
        candidates: 3,
        disturb: region_outage,
    },
    Scenario {
        name: "candidate-partition",
        about: "Five candidates are split two to three, healed, and split otherwise; miners hear all of them.",
        nodes: 24,
        epochs: 12,
        stages: 3,
        candidates: 5,
        disturb: candidate_partition,
    },
    Scenario {
        name: "home-links",
        about: "Four of five hosts are at home: a sixth of the uplink for the downlink, jitter and loss.",
        nodes: 30,
        epochs: 8,
        stages: 3,
        candidates: 3,
        disturb: home_links,
    },
    Scenario {
        name: "stragglers",
        about: "A fifth of the miners compute at a quarter of the speed.",
        nodes: 30,
        epochs: 10,
        stages: 3,
        candidates: 3,
        disturb: stragglers,
    },
    Scenario {
        name: "mass-failure",
        about: "35 % of the miners crash at once, again and again at moments spread over an epoch so that merges are hit, \
                and start again.",
        nodes: 40,
        epochs: 16,
        stages: 2,
        candidates: 3,
        disturb: mass_failure,
    },
    Scenario {
        name: "leader-crash-loop",
        about: "Whoever leads crashes, every three epochs' time, and starts again.",
        nodes: 24,
        epochs: 12,
        stages: 3,
        candidates: 3,
        disturb: leader_crash_loop,
    },
    Scenario {
        name: "preemption",
        about: "Miners are taken away and given back as spot instances are: lives from a Weibull distribution of shape 0.7.",
        nodes: 48,
        epochs: 16,
        stages: 3,
        candidates: 3,
        disturb: preemption,
    },
    Scenario {
        name: "bad-network",
        about: "Every host misses a tenth of all gossip, hears a tenth twice, on skewed clocks and jittery links.",
        nodes: 24,
        epochs: 8,
        stages: 3,
        candidates: 3,
        disturb: bad_network,
    },
    Scenario {
        name: "thousand",
        about: "A thousand hosts, nothing goes wrong.",
        nodes: 1000,
        epochs: 4,
        stages: 5,
        candidates: 3,
        disturb: thousand,
    },
];

/// The scenario of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Fewest hosts it can have: its candidates, and two for each stage.
    #[must_use]
    pub fn nodes_min(&self) -> usize {
        self.candidates.max(usize::from(self.stages) * 2)
    }

    /// The set-up of a run of it.
    #[must_use]
    pub fn setup(&self, request: &Request) -> Setup {
        let nodes = request.nodes.unwrap_or(self.nodes);
        let replicas = nodes / usize::from(self.stages);
        let mut spec = spec(self.stages, replicas);
        spec.training.epochs = request.epochs.unwrap_or(self.epochs);
        let mut setup = Setup::new(spec, request.seed, self.candidates.min(nodes), nodes);
        setup.compute = request.compute;
        // Weights are not durable yet: a stage all of whose holders crash at once could not go on.
        setup.spares_last_copies = true;
        if request.compute == Compute::Toy {
            setup.costs.parameters = TOY_PARAMETERS;
        }
        let epoch = setup.costs.forward + setup.costs.backward;
        let epoch = epoch * (SAMPLES_PER_MINER + u32::from(self.stages)) + MERGE_TIME;
        let mut plan = Plan { setup, random: Random::new(request.seed, self.name), epoch };
        (self.disturb)(&mut plan);
        plan.setup
    }

    /// Virtual time in which a run of it has to finish.
    #[must_use]
    pub fn limit(&self, setup: &Setup) -> Duration {
        let epochs = setup.spec.training.epochs;
        // What faults cost is bounded by deadlines; three of them for every epoch is far more than any scenario needs.
        setup.spec.timing.epoch_deadline.duration() * 3 * (epochs + 4)
    }
}

/// Elements of a stage's vector in the toy problem.
const TOY_PARAMETERS: usize = 64;
/// Samples of an epoch for each miner.
const SAMPLES_PER_MINER: u32 = 4;
/// What a merge and the decisions around it take.
const MERGE_TIME: Duration = Duration::from_secs(2);

/// The run of all scenarios, for stages of this many replicas.
fn spec(stages: u16, replicas: usize) -> RunSpec {
    let mut spec = RunSpec::default();
    spec.model.layers = u32::from(stages).max(spec.model.layers);
    spec.pipeline.stages = stages;
    spec.pipeline.start_replicas = u16::try_from(replicas / 4).unwrap_or(u16::MAX).max(1);
    spec.training.mode = TrainingMode::Local;
    spec.training.inner_steps = 2;
    let miners = u32::try_from(replicas.max(1)).unwrap_or(u32::MAX);
    spec.training.samples_per_epoch = miners.saturating_mul(SAMPLES_PER_MINER);
    spec.merge.partitions_min = miners.clamp(1, 64);
    spec.timing.heartbeat = Millis::from_secs(1);
    spec.timing.eviction = Millis::from_secs(5);
    spec.timing.epoch_deadline = Millis::from_secs(30);
    spec.timing.merge_deadline = Millis::from_secs(10);
    spec.timing.ready_grace = Millis::from_secs(2);
    spec
}

impl Plan {
    fn at(&mut self, epochs: f64, fault: Fault) {
        self.setup.schedule.push((self.epoch.mul_f64(epochs), fault) as Scheduled);
    }

    fn hosts(&self) -> usize {
        self.setup.hosts.len()
    }

    fn epochs(&self) -> f64 {
        f64::from(self.setup.spec.training.epochs)
    }

    fn candidates(&self) -> usize {
        self.setup.spec.orchestrator.candidates.len()
    }

    /// This share of the hosts that are no candidates, drawn.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a small count"
    )]
    fn some_miners(&mut self, share: f64) -> Vec<HostIndex> {
        let candidates = self.candidates();
        let miners = self.hosts() - candidates;
        let count = (share * miners as f64).round() as usize;
        self.random.distinct(count, miners).into_iter().map(|miner| miner + candidates).collect()
    }

    /// A host that joins later.
    fn newcomer(&mut self) -> HostIndex {
        self.setup.hosts.push(HostSetup { from_start: false, ..HostSetup::default() });
        self.hosts() - 1
    }
}

/// So many would not tell each other every second that they are there.
fn thousand(plan: &mut Plan) {
    let timing = &mut Arc::make_mut(&mut plan.setup.spec).timing;
    (timing.heartbeat, timing.eviction) = (Millis::from_secs(5), Millis::from_secs(25));
}

fn churn(plan: &mut Plan) {
    let mut start = 1.0;
    while start < plan.epochs() {
        for miner in plan.some_miners(0.15) {
            let when = plan.random.between(start, start + 10.0);
            let fault = if plan.random.chance(0.5) { Fault::Crash(miner) } else { Fault::Leave(miner) };
            plan.at(when, fault);
            let (when, newcomer) = (plan.random.between(start, start + 10.0), plan.newcomer());
            plan.at(when, Fault::Join(newcomer));
        }
        start += 10.0;
    }
}

fn flash_crowd(plan: &mut Plan) {
    let first = plan.hosts() / 4;
    for host in first.max(plan.candidates())..plan.hosts() {
        plan.setup.hosts[host].from_start = false;
        let within = plan.random.between(0.0, 1.0) / plan.epoch.as_secs_f64();
        plan.at(1.5 + within, Fault::Join(host));
    }
}

fn region_outage(plan: &mut Plan) {
    for host in 0..plan.hosts() {
        let region = u8::try_from(host % 3).unwrap_or(0);
        plan.setup.hosts[host].link = Link { region, ..Link::DATACENTRE };
        if region == 2 {
            plan.at(3.0, Fault::Group(host, 1));
        }
    }
    plan.at(8.0, Fault::Heal);
}

fn candidate_partition(plan: &mut Plan) {
    let cut = |plan: &mut Plan, when: f64, minority: [HostIndex; 2]| {
        for one in minority {
            for other in (0..plan.candidates()).filter(|other| !minority.contains(other)) {
                plan.at(when, Fault::Cut(one, other));
                plan.at(when, Fault::Cut(other, one));
            }
        }
    };
    cut(plan, 2.0, [0, 1]);
    plan.at(5.0, Fault::Heal);
    cut(plan, 7.0, [1, 4]);
    plan.at(10.0, Fault::Heal);
}

fn home_links(plan: &mut Plan) {
    for host in 0..plan.hosts() {
        if host % 5 != 0 {
            // Connections between homes are made by hole punching, which the model takes for granted.
            plan.setup.hosts[host].link = Link { reachable: true, ..Link::HOME };
        }
    }
}

fn stragglers(plan: &mut Plan) {
    for miner in plan.some_miners(0.2) {
        plan.setup.hosts[miner].speed = 0.25;
    }
}

fn mass_failure(plan: &mut Plan) {
    for (round, phase) in [0.0, 0.3, 0.6, 0.9].into_iter().enumerate() {
        let when = 2.0 + 3.0 * f64::from(u8::try_from(round).unwrap_or(0)) + phase;
        for miner in plan.some_miners(0.35) {
            plan.at(when, Fault::Crash(miner));
            plan.at(when + 2.5, Fault::Restart(miner));
        }
    }
}

fn leader_crash_loop(plan: &mut Plan) {
    let pause = plan.epoch;
    let mut when = 1.5;
    while when < plan.epochs() {
        plan.at(when, Fault::CrashLeader(pause));
        when += 3.0;
    }
}

fn preemption(plan: &mut Plan) {
    let (shape, life, pause) = (0.7, 12.0, 2.0);
    for miner in plan.candidates()..plan.hosts() {
        let mut when = 1.0 + plan.random.weibull(life, shape);
        while when < plan.epochs() * 1.5 {
            plan.at(when, Fault::Crash(miner));
            when += pause * (0.5 + plan.random.exponential());
            plan.at(when, Fault::Restart(miner));
            when += 0.5 + plan.random.weibull(life, shape);
        }
    }
}

fn bad_network(plan: &mut Plan) {
    for host in 0..plan.hosts() {
        let clock = crate::clock::Clock {
            offset: plan.random.duration(Duration::ZERO, Duration::from_secs(1000)),
            #[expect(clippy::cast_possible_truncation, reason = "within 200")]
            drift_ppm: plan.random.between(-200.0, 200.0) as i32,
        };
        plan.setup.hosts[host].clock = clock;
        plan.setup.hosts[host].link = Link { jitter: 1.0, loss: 0.02, ..Link::DATACENTRE };
    }
    plan.at(0.5, Fault::DropGossip(0.1));
    plan.at(0.5, Fault::RepeatGossip(0.1));
}
