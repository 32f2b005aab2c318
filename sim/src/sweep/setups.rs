//! The swarm that sweeps vary: equal miners, and candidates that only lead.

use std::fmt;
use std::time::Duration;

use iota_protocol::RunSpec;
use iota_protocol::time::Millis;

use crate::costs::Costs;
use crate::faults::{Fault, Scheduled};
use crate::measure::roofline::{Means, Roofline};
use crate::measure::statistics::real;
use crate::network::Link;
use crate::random::Random;
use crate::world::Setup;

/// Candidates: they do not mine, so that failures of miners and of leaders stay apart.
const CANDIDATES: usize = 3;
/// Time a crashed miner stays away.
const AWAY: Duration = Duration::from_secs(20);

/// Times an epoch at the roofline that its deadline is at least.
const DEADLINE_EPOCHS: f64 = 4.0;

/// What can be varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Miners, all stages together.
    Nodes,
    /// Of each link, both ways.
    Bandwidth,
    /// Of each link, one way to the backbone.
    Latency,
    /// Crashes of each miner.
    FailureRate,
    /// Owners of each partition.
    Redundancy,
    /// Samples that a miner of the first stage has under way.
    Window,
}

impl Parameter {
    /// As people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Bandwidth => "bandwidth",
            Self::Latency => "latency",
            Self::FailureRate => "failure rate",
            Self::Redundancy => "redundancy",
            Self::Window => "window",
        }
    }

    /// The unit of its values.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Nodes => "miners",
            Self::Bandwidth => "bytes/s",
            Self::Latency => "s",
            Self::FailureRate => "crashes per miner and hour",
            Self::Redundancy => "owners",
            Self::Window => "samples",
        }
    }
}

/// A swarm of equal miners.
#[derive(Clone, Debug, PartialEq)]
pub struct Swarm {
    /// The run, but for its candidates.
    pub spec: RunSpec,
    /// Miners of each stage.
    pub replicas: usize,
    /// Samples of each miner and epoch.
    pub samples_each: u32,
    /// How everybody is connected.
    pub link: Link,
    /// What work costs.
    pub costs: Costs,
    /// Crashes per miner and hour; each is back after a while.
    pub crashes_per_hour: f64,
}

impl Swarm {
    /// `stages` of `replicas` miners each, on links without jitter, for `epochs`.
    #[must_use]
    pub fn new(stages: u16, replicas: usize, epochs: u32) -> Self {
        let mut spec = RunSpec::default();
        spec.model.layers = u32::from(stages).max(spec.model.layers);
        spec.pipeline.stages = stages;
        spec.training.epochs = epochs;
        Self {
            spec,
            replicas,
            samples_each: 32,
            link: Link { jitter: 0.0, ..Link::DATACENTRE },
            costs: Costs { parameters: 100_000, ..Costs::default() },
            crashes_per_hour: 0.0,
        }
    }

    /// The same with another value of one parameter.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts, saturating")]
    pub fn with(&self, parameter: Parameter, value: f64) -> Self {
        let mut varied = self.clone();
        match parameter {
            Parameter::Nodes => {
                varied.replicas = (value as usize / usize::from(self.spec.pipeline.stages)).max(1);
            }
            Parameter::Bandwidth => (varied.link.up, varied.link.down) = (value, value),
            Parameter::Latency => varied.link.latency = Duration::from_secs_f64(value),
            Parameter::FailureRate => varied.crashes_per_hour = value,
            Parameter::Redundancy => varied.spec.merge.redundancy = value as u16,
            Parameter::Window => varied.spec.pipeline.window = value as u16,
        }
        varied
    }

    /// Its set-up for a seed. Crashes are drawn for `limit` of virtual time. The epoch's deadline is extended where the
    /// roofline leaves less than a quarter of it, so that nobody is given up for being slow.
    ///
    /// # Panics
    /// If the spec is invalid, for example with more stages than layers.
    #[must_use]
    pub fn setup(&self, seed: u64, limit: Duration) -> Setup {
        let mut spec = self.spec.clone();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        spec.pipeline.start_replicas = u16::try_from(self.replicas).unwrap_or(u16::MAX);
        spec.training.samples_per_epoch = self.samples_each.saturating_mul(count(self.replicas));
        spec.timing.epoch_deadline = spec.timing.epoch_deadline.max(self.patience(&spec));
        let miners = self.replicas * usize::from(spec.pipeline.stages);
        let mut setup = Setup::new(spec, seed, CANDIDATES, CANDIDATES + miners);
        setup.costs = self.costs;
        for (index, host) in setup.hosts.iter_mut().enumerate() {
            host.link = self.link;
            host.miner = index >= CANDIDATES;
        }
        setup.schedule = self.crashes(seed, CANDIDATES..CANDIDATES + miners, limit);
        setup
    }

    /// Several times what an epoch takes at the roofline.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive time, saturating"
    )]
    fn patience(&self, spec: &RunSpec) -> Millis {
        let stage = vec![Means { link: self.link, speed: 1.0 }; self.replicas];
        let roofline = Roofline::of(spec, &self.costs, &vec![stage; usize::from(spec.pipeline.stages)]);
        let epoch_seconds = f64::from(spec.training.samples_per_epoch) / roofline.bound;
        Millis((epoch_seconds * DEADLINE_EPOCHS * 1e3) as u64)
    }

    /// Crashes as a Poisson process of each miner, without those that would find it away.
    fn crashes(&self, seed: u64, miners: std::ops::Range<usize>, limit: Duration) -> Vec<Scheduled> {
        let mut random = Random::new(seed, "sweep crashes");
        let mut schedule = Vec::new();
        if self.crashes_per_hour <= 0.0 {
            return schedule;
        }
        let mean_seconds = 3600.0 / self.crashes_per_hour;
        for miner in miners {
            let mut at = Duration::from_secs_f64(mean_seconds * random.exponential());
            while at < limit {
                schedule.push((at, Fault::Crash(miner)));
                schedule.push((at + AWAY, Fault::Restart(miner)));
                at += AWAY + Duration::from_secs_f64(mean_seconds * random.exponential());
            }
        }
        schedule.sort_by_key(|(at, _)| *at);
        schedule
    }
}

impl fmt::Display for Swarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = &self.spec;
        write!(
            f,
            "{} stages of {} miners, {} epochs of {} samples each, redundancy {}, window {}, links {} ms, \
             {} MB/s up, {} MB/s down, passes {} ms, {} parameters per stage",
            spec.pipeline.stages,
            self.replicas,
            spec.training.epochs,
            self.samples_each,
            spec.merge.redundancy,
            spec.pipeline.window,
            self.link.latency.as_millis(),
            self.link.up / 1e6,
            self.link.down / 1e6,
            (self.costs.forward + self.costs.backward).as_millis(),
            real(self.costs.parameters as u64)
        )
    }
}
