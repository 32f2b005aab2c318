//! Named set-ups with a known answer.
//!
//! Each scenario says what happens to the swarm and what is expected of it. All of them expect that no checker finds a
//! broken rule and that the run finishes; what they differ in is what they do to get there. Faults are placed by virtual
//! time, which stands in units of [`Plan::epoch`], the time an epoch takes when nothing goes wrong.

mod disturb;

use std::time::Duration;

use iota_protocol::RunSpec;
use iota_protocol::spec::{Bottleneck, TrainingMode};
use iota_protocol::time::{ByteCount, Millis};

use crate::faults::{Fault, Scheduled};
use crate::host::HostSetup;
use crate::network::HostIndex;
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
pub const ALL: [Scenario; 19] = [
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
        disturb: disturb::churn,
    },
    Scenario {
        name: "flash-crowd",
        about: "A quarter of the hosts start; all others join within a second in the second epoch.",
        nodes: 48,
        epochs: 10,
        stages: 3,
        candidates: 3,
        disturb: disturb::flash_crowd,
    },
    Scenario {
        name: "region-outage",
        about: "Of three regions one is cut off for five epochs' time, candidates and miners alike, and comes back.",
        nodes: 36,
        epochs: 14,
        stages: 3,
        candidates: 3,
        disturb: disturb::region_outage,
    },
    Scenario {
        name: "candidate-partition",
        about: "Five candidates are split two to three, healed, and split otherwise; miners hear all of them.",
        nodes: 24,
        epochs: 12,
        stages: 3,
        candidates: 5,
        disturb: disturb::candidate_partition,
    },
    Scenario {
        name: "home-links",
        about: "Four of five hosts are at home: a sixth of the uplink for the downlink, jitter and loss.",
        nodes: 30,
        epochs: 8,
        stages: 3,
        candidates: 3,
        disturb: disturb::home_links,
    },
    Scenario {
        name: "stragglers",
        about: "A fifth of the miners compute at a quarter of the speed.",
        nodes: 30,
        epochs: 10,
        stages: 3,
        candidates: 3,
        disturb: disturb::stragglers,
    },
    Scenario {
        name: "mass-failure",
        about: "35 % of the miners crash at once, again and again at moments spread over an epoch so that merges are hit, \
                and start again.",
        nodes: 40,
        epochs: 16,
        stages: 2,
        candidates: 3,
        disturb: disturb::mass_failure,
    },
    Scenario {
        name: "leader-crash-loop",
        about: "Whoever leads crashes, every three epochs' time, and starts again.",
        nodes: 24,
        epochs: 12,
        stages: 3,
        candidates: 3,
        disturb: disturb::leader_crash_loop,
    },
    Scenario {
        name: "preemption",
        about: "Miners are taken away and given back as spot instances are: lives from a Weibull distribution of shape 0.7.",
        nodes: 48,
        epochs: 16,
        stages: 3,
        candidates: 3,
        disturb: disturb::preemption,
    },
    Scenario {
        name: "bad-network",
        about: "Every host misses a tenth of all gossip, hears a tenth twice, on skewed clocks and jittery links.",
        nodes: 24,
        epochs: 8,
        stages: 3,
        candidates: 3,
        disturb: disturb::bad_network,
    },
    Scenario {
        name: "rolling-upgrade",
        about: "Hosts are restarted one after another with a program that speaks the next wire version; the run goes over \
                to it.",
        nodes: 18,
        epochs: 40,
        stages: 3,
        candidates: 3,
        disturb: disturb::rolling_upgrade,
    },
    Scenario {
        name: "byzantine-10",
        about: "A tenth of the miners are adversaries of mixed kinds, none of which breaks a rule.",
        nodes: 33,
        epochs: 6,
        stages: 3,
        candidates: 3,
        disturb: disturb::byzantine_10,
    },
    Scenario {
        name: "byzantine-20",
        about: "A fifth of them.",
        nodes: 33,
        epochs: 6,
        stages: 3,
        candidates: 3,
        disturb: disturb::byzantine_20,
    },
    Scenario {
        name: "byzantine-30",
        about: "Three in ten of them.",
        nodes: 33,
        epochs: 6,
        stages: 3,
        candidates: 3,
        disturb: disturb::byzantine_30,
    },
    Scenario {
        name: "byzantine-candidates",
        about: "Of five candidates one votes for another history, and one claims to lead and does not.",
        nodes: 20,
        epochs: 8,
        stages: 2,
        candidates: 5,
        disturb: disturb::byzantine_candidates,
    },
    Scenario {
        name: "merge-failure",
        about: "35 % of a stage's miners crash in the moment in which its merge is decided on, and start again.",
        nodes: 40,
        epochs: 12,
        stages: 2,
        candidates: 3,
        disturb: disturb::merge_failure,
    },
    Scenario {
        name: "behind-nat",
        about: "Two of three miners only dial out; they talk to each other through relays that are bounded in bandwidth.",
        nodes: 24,
        epochs: 8,
        stages: 3,
        candidates: 3,
        disturb: disturb::behind_nat,
    },
    Scenario {
        name: "thousand",
        about: "A thousand hosts, nothing goes wrong.",
        nodes: 1000,
        epochs: 4,
        stages: 5,
        candidates: 3,
        disturb: disturb::thousand,
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
        if request.compute == Compute::Real {
            small_model(&mut spec);
        }
        let mut setup = Setup::new(spec, request.seed, self.candidates.min(nodes), nodes);
        setup.compute = request.compute;
        // Whoever leaves for good takes its disk along, and weights are kept nowhere else.
        setup.spares_last_copies = true;
        setup.costs.parameters = match request.compute {
            Compute::Cost => setup.costs.parameters,
            Compute::Toy => TOY_PARAMETERS,
            Compute::Real => {
                let stages = request.compute.parameters(&setup.spec, &setup.costs);
                stages.into_iter().max().unwrap_or_default()
            }
        };
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

/// Makes the model one that learns in tens of epochs, and each epoch a few hundredths of a second of work per host.
///
/// Its matrices stay below the sizes from which the processor's backend uses several threads, so that results do not
/// depend on their number. An epoch has twice the samples of other scenarios and takes a fifth longer than
/// [`Plan::epoch`], so that faults come a fifth more often per epoch.
pub(crate) fn small_model(spec: &mut RunSpec) {
    let model = &mut spec.model;
    (model.width, model.heads, model.kv_heads, model.hidden) = (32, 2, 1, 88);
    (model.context, model.bottleneck) = (32, Bottleneck::Width(16));
    // About 1/√width: with the usual 0.02 so narrow a model spends most of the run leaving its first plateau, and when
    // it leaves is chance.
    model.init_std = 0.2;
    model.layers = u32::from(spec.pipeline.stages);
    spec.data.builtin_bytes = ByteCount(256 << 10);
    spec.training.samples_per_epoch *= 2;
    spec.training.sequences_per_sample = 4;
    // One sample each.
    spec.training.inner_steps = 2 * SAMPLES_PER_MINER;
    spec.training.learning_rate = 5e-3;
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
