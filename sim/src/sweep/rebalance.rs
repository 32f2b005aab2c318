//! What moving miners between stages is worth while miners come and go.
//!
//! SWARM (Ryabinin et al. 2023, section 4.4) replays 32 hours of preemptible instances coming and going on 32 stages of
//! up to 400 peers and reports throughput as a share of the optimum: 0.958 with rebalancing every 300 s, 0.827 without.
//! Its log is unpublished; here lives are drawn from a Weibull distribution of shape below 1, as spot instances have them:
//! the young die first.
//!
//! As in SWARM, this is about the policy and not about transfers. The decisions are made by the protocol's own
//! [`Orchestrator`] and folded by its own [`RunState`]; epochs last a fixed time from when the last stage is in them, and are
//! merged by decree at their end.
//! Throughput is that of the slowest stage: its members that are there, have its weights, and were dealt samples. The
//! optimum spreads those that are there at each moment as evenly as whole miners can be spread.
//!
//! ```text
//!   record ──▶ Book ──▶ Orchestrator ──▶ admit, evict, move, open ──▶ RunState ──▶ who works where
//!     ▲                                                                                 │
//!     └────────── weights of the stage, some time after a place was given ◀─────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use iota_protocol::limits::WIRE_VERSION;
use iota_protocol::orchestrator::{Orchestrator, Room};
use iota_protocol::peer::book::Book;
use iota_protocol::run_state::{RunState, Stage, StateEvent};
use iota_protocol::spec::Candidate;
use iota_protocol::time::Millis;
use iota_protocol::wire::message::{Decision, Entry, PeerRecord, Submission, WeightsRecord};
use iota_protocol::{Hash, Instant, LogIndex, PeerId, RunSpec, StageIndex};

use super::{Curve, Method, Point, Sweep};
use crate::measure::statistics::{Estimate, ratio, real};
use crate::random::Random;
use crate::world::identity;

/// Between two looks at the swarm.
const STEP: Duration = Duration::from_secs(15);
/// Shape of the distribution of lives.
const LIFE_SHAPE: f64 = 0.7;
/// Standard deviation of what a miner measures of its speed, relative.
const SPEED_NOISE: f64 = 0.03;
/// Lengths of an epoch that are tried, in seconds; SWARM's is the second.
pub const EPOCHS: [f64; 4] = [100.0, 300.0, 600.0, 1200.0];
/// Proposals taken at once.
const ROOM: Room = Room { decisions: 4096, bytes: usize::MAX };

/// The swarm that is simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// Stages of the pipeline.
    pub stages: u16,
    /// Instances that come and go; some are always away.
    pub instances: usize,
    /// Scale of the lives' Weibull distribution.
    pub life: Duration,
    /// Mean time away.
    pub away: Duration,
    /// Of an epoch.
    pub epoch: Duration,
    /// From a place to the weights that belong to it.
    pub transfer: Duration,
    /// Virtual time.
    pub length: Duration,
}

impl Setting {
    /// The swarm of SWARM's simulation: 32 stages, about 400 peers at a time, 32 hours.
    pub const SWARM: Self = Self {
        stages: 32,
        instances: 405,
        life: Duration::from_secs(64 * 3600),
        away: Duration::from_secs(1200),
        epoch: Duration::from_secs(300),
        transfer: Duration::from_secs(30),
        length: Duration::from_secs(32 * 3600),
    };
}

/// Who decides where miners work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The orchestrator, by admissions and moves.
    Rebalanced,
    /// The orchestrator by admissions only: miners stay where they were admitted.
    Admitted,
    /// Chance: miners are admitted to any stage and stay there.
    Random,
}

/// What came out of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Mean throughput ÷ mean optimum.
    pub of_optimum: f64,
    /// Moves per miner and hour.
    pub moves: f64,
    /// Preemptions per miner and hour.
    pub preemptions: f64,
    /// Miners that are there, on average.
    pub present: f64,
}

/// An instance that comes and goes.
#[derive(Clone, Debug)]
struct Instance {
    peer: PeerId,
    present: bool,
    /// When it comes or goes next.
    changes_at: Instant,
    /// Where it was last given a place, and when that place's weights are there.
    place: Option<(StageIndex, Instant)>,
    weights: Option<WeightsRecord>,
}

/// A run under way.
struct Run {
    setting: Setting,
    state: RunState,
    book: Book,
    leader: Orchestrator,
    candidate: PeerId,
    instances: Vec<Instance>,
    random: Random,
    now: Instant,
    sequence: u64,
    opened_at: Vec<Instant>,
    moves: u64,
    preemptions: u64,
}

/// Runs `setting` once.
#[must_use]
pub fn run(setting: Setting, placement: Placement, seed: u64) -> Outcome {
    let mut run = Run::new(setting, placement, seed);
    let (mut produced, mut possible, mut present, mut steps) = (0.0, 0.0, 0.0, 0_u64);
    // Until the first epoch has passed, miners are only arriving.
    let settled = setting.epoch * 2;
    while run.now.since(Instant::ZERO) < setting.length {
        run.step(placement);
        if run.now.since(Instant::ZERO) >= settled {
            let there = run.instances.iter().filter(|instance| instance.present).count() as u64;
            produced += real(run.throughput());
            possible += real(there / u64::from(setting.stages));
            present += real(there);
            steps += 1;
        }
    }
    let present = ratio(present, real(steps));
    let hours = present * (setting.length - settled).as_secs_f64() / 3600.0;
    Outcome {
        of_optimum: ratio(produced, possible),
        moves: ratio(real(run.moves), hours),
        preemptions: ratio(real(run.preemptions), hours),
        present,
    }
}

impl Run {
    fn new(setting: Setting, placement: Placement, seed: u64) -> Self {
        let candidate = identity(seed, 0).peer();
        let mut spec = RunSpec::default();
        spec.pipeline.stages = setting.stages;
        spec.pipeline.rebalance = placement == Placement::Rebalanced;
        spec.model.layers = setting.stages.into();
        spec.orchestrator.candidates = vec![Candidate { peer: candidate, priority: 0 }];
        spec.training.epochs = u32::MAX;
        spec.timing.eviction = Millis::from_secs(30);
        spec.timing.ready_grace = Millis::from_secs(10);
        // Epochs end by decree, never by a deadline.
        spec.timing.epoch_deadline = Millis::from_secs(1 << 30);
        let mut random = Random::new(seed, "rebalance");
        let instances = (1..=setting.instances).map(|host| Instance {
            peer: identity(seed, host).peer(),
            present: true,
            changes_at: Instant::ZERO + life(&mut random, setting),
            place: None,
            weights: None,
        });
        Self {
            instances: instances.collect(),
            setting,
            state: RunState::new(Arc::new(spec), &vec![1; usize::from(setting.stages)]),
            book: Book::default(),
            leader: Orchestrator::default(),
            candidate,
            random,
            now: Instant::from_nanos(1),
            sequence: 0,
            opened_at: vec![Instant::ZERO; usize::from(setting.stages)],
            moves: 0,
            preemptions: 0,
        }
    }

    fn step(&mut self, placement: Placement) {
        self.now = self.now + STEP;
        self.come_and_go();
        self.merge_what_is_due();
        self.speak();
        // What is decided is acted on at once, and may be a reason for more.
        loop {
            let proposed = self.leader.propose(self.now, &self.state, &self.book, ROOM);
            let taken: Vec<Decision> =
                proposed.into_iter().map(|decision| self.place(decision, placement)).collect();
            if taken.is_empty() {
                break;
            }
            taken.into_iter().for_each(|decision| self.decide(decision));
            self.speak();
        }
    }

    /// What becomes of a decision where chance has a say.
    fn place(&mut self, decision: Decision, placement: Placement) -> Decision {
        match (placement, decision) {
            (Placement::Random, Decision::Admit { peer, .. }) => {
                let stage = self.random.below(usize::from(self.setting.stages));
                Decision::Admit { peer, stage: StageIndex(u16::try_from(stage).unwrap_or_default()) }
            }
            (_, decision) => decision,
        }
    }

    fn come_and_go(&mut self) {
        for instance in &mut self.instances {
            while instance.changes_at <= self.now {
                instance.present = !instance.present;
                let stays = if instance.present {
                    life(&mut self.random, self.setting)
                } else {
                    self.preemptions += 1;
                    (instance.place, instance.weights) = (None, None);
                    self.setting.away.mul_f64(self.random.exponential())
                };
                instance.changes_at = instance.changes_at + stays.max(STEP);
            }
        }
    }

    /// Ends the epoch that has lasted long enough since the last stage opened it.
    fn merge_what_is_due(&mut self) {
        let in_it = |stage: &Stage| stage.training().is_some();
        let since = self.opened_at.iter().copied().max().unwrap_or_default();
        if !self.state.stages().iter().all(in_it) || self.now.since(since) < self.setting.epoch {
            return;
        }
        for (index, stage) in self.state.spec().stages().zip(self.state.stages().to_vec()) {
            let Some(training) = stage.training() else { continue };
            let (epoch, attempt) = (training.epoch, training.attempt);
            let submission = |peer| Submission {
                peer,
                manifest: Hash::default(),
                samples: 1,
                loss_micro: None,
                moments_after: None,
            };
            let mut submitters: Vec<Submission> = training.deal.live().map(submission).collect();
            submitters.sort_unstable_by_key(|submission| submission.peer);
            let partitions = vec![Hash::default(); stage.partitions];
            self.decide(Decision::MergePlan { stage: index, epoch, attempt, submitters });
            self.decide(Decision::MergeOutcome {
                stage: index,
                epoch,
                attempt,
                partitions,
                outliers: Vec::new(),
            });
            for instance in &mut self.instances {
                if let Some(weights) = instance.weights.as_mut().filter(|weights| weights.stage == index) {
                    weights.version = epoch.next();
                }
            }
        }
    }

    /// Everybody who is there says where it stands.
    fn speak(&mut self) {
        self.sequence += 1;
        for i in 0..self.instances.len() {
            let instance = &mut self.instances[i];
            if !instance.present {
                continue;
            }
            let place = self.state.stage_of(instance.peer);
            if instance.place.map(|(stage, _)| stage) != place {
                instance.place = place.map(|stage| (stage, self.now + self.setting.transfer));
                instance.weights = None;
            }
            if let (None, Some((stage, at))) = (instance.weights, instance.place)
                && at <= self.now
            {
                let version = self.state.stage(stage).map(|stage| stage.version).unwrap_or_default();
                instance.weights = Some(WeightsRecord { stage, version, hash: Hash::default() });
            }
            let (peer, weights) = (instance.peer, instance.weights);
            let measured = 1000.0 * (1.0 + SPEED_NOISE * self.random.normal());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "about a thousand")]
            self.hear(peer, true, weights, measured.max(1.0) as u32);
        }
        self.hear(self.candidate, false, None, 0);
    }

    fn hear(&mut self, peer: PeerId, miner: bool, weights: Option<WeightsRecord>, speed_milli: u32) {
        let record = PeerRecord {
            miner,
            weights,
            speed_milli,
            wire_version_max: WIRE_VERSION,
            ..PeerRecord::new(self.sequence)
        };
        // A record without addresses breaks no limit.
        let _ = self.book.insert(self.now, peer, Arc::new(record));
    }

    fn decide(&mut self, decision: Decision) {
        let index = LogIndex(self.state.applied());
        let opened = match &decision {
            Decision::OpenEpoch { stage, .. } => Some(*stage),
            _ => None,
        };
        let chain = Hash::of(&index.0.to_le_bytes());
        let entry = Entry { proposer: self.candidate, decision };
        let events = self.state.apply(index, chain, Some(&entry));
        self.moves += events.iter().filter(|event| matches!(event, StateEvent::Moved(..))).count() as u64;
        if let (Some(stage), false) = (opened, events.is_empty()) {
            self.opened_at[stage.as_usize()] = self.now;
        }
    }

    /// Miners that work in the slowest stage.
    fn throughput(&self) -> u64 {
        let working = |(index, stage): (StageIndex, &Stage)| {
            let deal = stage.training().map(|training| &training.deal);
            let works = |instance: &&Instance| {
                instance.present
                    && instance.weights.is_some_and(|weights| weights.stage == index)
                    && deal.is_some_and(|deal| deal.is_live(instance.peer))
            };
            self.instances.iter().filter(works).count() as u64
        };
        self.state.spec().stages().zip(self.state.stages()).map(working).min().unwrap_or(0)
    }
}

fn life(random: &mut Random, setting: Setting) -> Duration {
    Duration::from_secs_f64(random.weibull(setting.life.as_secs_f64(), LIFE_SHAPE))
}

/// The share of the optimum over the length of an epoch, for each placement.
#[must_use]
pub fn sweep(setting: Setting, epochs: &[f64], seeds: &[u64]) -> Sweep {
    let outcomes = |placement: Placement| -> Vec<(f64, Vec<Outcome>)> {
        let at = |&seconds: &f64| {
            let setting = Setting { epoch: Duration::from_secs_f64(seconds), ..setting };
            (seconds, seeds.iter().map(|&seed| run(setting, placement, seed)).collect())
        };
        epochs.iter().map(at).collect()
    };
    let curve = |name: &str, unit: &str, from: &[(f64, Vec<Outcome>)], of: fn(&Outcome) -> f64| {
        let point = |(seconds, outcomes): &(f64, Vec<Outcome>)| {
            let values: Vec<f64> = outcomes.iter().map(of).collect();
            Point::new(*seconds, Estimate::of(&values), None)
        };
        Curve::new(name, unit, "", Method::StudentT, from.iter().map(point).collect())
    };
    let share: fn(&Outcome) -> f64 = |outcome| outcome.of_optimum;
    let rebalanced = outcomes(Placement::Rebalanced);
    let (admitted, random) = (outcomes(Placement::Admitted), outcomes(Placement::Random));
    let Setting { stages, instances, life, away, transfer, length, .. } = setting;
    Sweep {
        title: "Rebalancing under preemption".to_owned(),
        parameter: "epoch, s".to_owned(),
        setting: format!(
            "{stages} stages, {instances} instances, lives Weibull of shape {LIFE_SHAPE} and scale {life:?}, {away:?} away on \
             average, {transfer:?} to fetch weights, {length:?}, {} seeds",
            seeds.len()
        ),
        curves: vec![
            curve("throughput with moves", "of the optimum", &rebalanced, share),
            curve("throughput with balanced admissions only", "of the optimum", &admitted, share),
            curve("throughput with random admissions", "of the optimum", &random, share),
            curve("moves", "per miner and hour", &rebalanced, |outcome| outcome.moves),
            curve("preemptions", "per miner and hour", &rebalanced, |outcome| outcome.preemptions),
            curve("miners there", "on average", &rebalanced, |outcome| outcome.present),
        ],
    }
}
