//! The rules that hold whatever goes wrong, each in a file of its own, apart from the peers they are about.
//!
//! A checker is an [`Observer`] that believes nobody: it looks at what honest hosts' machines hold, at what their
//! engines did, and folds the decided log itself. Hosts that deviate may do and say what they like. That honest peers
//! all compute the same scores is not checked here; there are no scores yet.
//!
//! Each has a broken double, a [`Double`](crate::double::Double) or a doctored rule, that shows that it notices.

pub mod agreement;
pub mod bounds;
pub mod coverage;
pub mod credit;
mod history;
pub mod innocence;
pub mod job_failures;
pub mod liveness;
pub mod one_log;
pub mod samples;

use std::sync::Arc;
use std::time::Duration;

use iota_protocol::{Instant, RunSpec};

use crate::costs::{Costs, activation_bytes};
use crate::host::HostSetup;
use crate::network::Link;
use crate::observe::{Observation, Observer, Violation};
use crate::trainer::Compute;
use crate::world::Setup;

/// What checkers know of a simulation beforehand.
#[derive(Clone, Debug)]
pub struct Options {
    /// The run.
    pub spec: Arc<RunSpec>,
    /// What work costs.
    pub costs: Costs,
    /// What engines compute; names can be computed again, numbers are compared.
    pub compute: Compute,
    /// How many hosts there are.
    pub hosts: usize,
    /// The longest that a sample may take down a path of the slowest hosts and back up, each alone in its stage and with
    /// nothing else to do.
    pub slowest_path: Duration,
    /// When nothing goes wrong any more, if that time comes, and how long each merge may take from then on.
    pub healed: Option<(Instant, Duration)>,
}

impl Options {
    /// What there is to know of a set-up.
    #[must_use]
    pub fn of(setup: &Setup) -> Self {
        Self {
            spec: Arc::clone(&setup.spec),
            costs: setup.costs,
            compute: setup.compute,
            hosts: setup.hosts.len(),
            slowest_path: slowest_path(setup),
            healed: None,
        }
    }

    /// With a time from which on the run has to go forward, by a merge of each stage within `bound`.
    #[must_use]
    pub const fn healed(mut self, at: Instant, bound: Duration) -> Self {
        self.healed = Some((at, bound));
        self
    }
}

fn slowest_path(setup: &Setup) -> Duration {
    let (passes, bytes) = (setup.costs.forward + setup.costs.backward, activation_bytes(&setup.spec));
    #[expect(clippy::cast_precision_loss, reason = "an activation is far smaller than 2^52 bytes")]
    let hops = |host: &HostSetup| {
        let Link { latency, up, down, .. } = host.link;
        (latency * 2).as_secs_f64() + bytes as f64 / up.min(down)
    };
    let seconds = setup.hosts.iter().map(|host| passes.as_secs_f64() / host.speed + 2.0 * hops(host));
    Duration::from_secs_f64(seconds.fold(0.0, f64::max)) * u32::from(setup.spec.pipeline.stages)
}

/// All checkers, those of causes before those of effects.
#[must_use]
pub fn all(options: &Options) -> Vec<Box<dyn Observer>> {
    let mut all: Vec<Box<dyn Observer>> = vec![
        Box::new(one_log::OneLog::default()),
        Box::new(job_failures::JobFailures::default()),
        Box::new(credit::Credit::new(options.spec.pipeline.credits)),
        Box::new(samples::Samples::new(options)),
        Box::new(coverage::Coverage::new(options)),
        Box::new(agreement::Agreement::new(options)),
        Box::new(innocence::Innocence::default()),
        Box::new(bounds::Bounds::new(options)),
    ];
    if let Some((at, bound)) = options.healed {
        all.push(Box::new(liveness::Liveness::new(options, at, bound)));
    }
    all
}

/// Says that a rule was broken by what was just seen.
fn broken(checker: &'static str, seen: &Observation<'_>, what: impl Into<String>) -> Violation {
    Violation { checker, at: seen.at, host: Some(seen.host), what: what.into() }
}
