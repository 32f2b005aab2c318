//! What share of a merge survives when owners fail.
//!
//! IOTA's butterfly merge computes each partition at *r* owners and claims that, if each miner fails with probability
//! *p*, a share `1 − pʳ` of the partitions is still computed. Here a stage of *n* miners decides on a merge, *K* of them
//! drawn at random crash in that moment, and partitions with an owner that is still there are counted.
//!
//! Owners are drawn without replacement, and so are those who crash, so the exact value is hypergeometric:
//!
//! ```text
//!             C(K, r)
//! valid = 1 − ───────  ──▶  1 − pʳ   for n → ∞ with K/n = p
//!             C(n, r)
//! ```
//! Where each miner crashes on its own with probability *p*, `1 − pʳ` is exact for every *n*: conditioning on *K* is what
//! makes the difference. Partitions of one merge fail together, so the interval is over runs, not over partitions.
//!
//! The claim is about the moment of failure. This protocol then finds other owners and has lost samples computed again,
//! so each run goes on to its end, and the share of merges that completed is the second curve.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use iota_protocol::PeerId;
use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;

use super::{Curve, Method, Point, Swarm, Sweep};
use crate::faults::Fault;
use crate::measure::statistics::{Estimate, ratio, real, rounded};
use crate::network::HostIndex;
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::random::Random;
use crate::world::{Ending, World};

/// Virtual time after which a merge that has not completed counts as lost.
const LIMIT: Duration = Duration::from_secs(900);

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Miners of the stage: *n*.
    pub miners: usize,
    /// Partitions of its vector.
    pub partitions: u32,
    /// Owners of each: *r*.
    pub redundancy: u16,
}

/// What one run showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Share of partitions with an owner left.
    pub valid: f64,
    /// Whether the merge completed all the same.
    pub completed: bool,
}

/// The first plan that is decided: owners of each partition.
type FirstPlan = Rc<RefCell<Option<Vec<Vec<PeerId>>>>>;

/// Notes the first plan.
struct PlanWatch(FirstPlan);

impl Observer for PlanWatch {
    fn observe(&mut self, observation: &Observation<'_>) -> Result<(), Violation> {
        let Seen::Notice(Notice::State(StateEvent::Planned(stage, ..))) = observation.seen else {
            return Ok(());
        };
        let plan = observation.peer.and_then(|peer| peer.state().stage(*stage)?.plan());
        let mut first = self.0.borrow_mut();
        if let (true, Some((_, plan))) = (first.is_none(), plan) {
            *first = Some(plan.owners.clone());
        }
        Ok(())
    }
}

impl Setting {
    /// The exact expectation when `failures` of the miners crash.
    #[must_use]
    pub fn expected(&self, failures: usize) -> f64 {
        let owners = u64::from(self.redundancy).min(self.miners as u64);
        let all_fail: f64 = (0..owners)
            .map(|i| real((failures as u64).saturating_sub(i)) / real(self.miners as u64 - i))
            .product();
        rounded(1.0 - all_fail)
    }

    /// One merge in which `failures` miners crash when it has been decided on.
    ///
    /// # Panics
    /// If the stage is too small to decide on a merge in fifteen minutes, or nobody is to survive.
    #[must_use]
    pub fn run(&self, failures: usize, seed: u64) -> Outcome {
        assert!(failures < self.miners, "somebody survives");
        let mut swarm = Swarm::new(1, self.miners, 1);
        swarm.spec.merge.redundancy = self.redundancy;
        swarm.spec.merge.partitions_min = self.partitions;
        swarm.spec.timing.merge_deadline = iota_protocol::time::Millis::from_secs(5);
        swarm.samples_each = 2;
        let plan = FirstPlan::default();
        let setup = swarm.setup(seed, LIMIT);
        let miners: Vec<HostIndex> = (0..setup.hosts.len()).filter(|&host| setup.hosts[host].miner).collect();
        let mut world = World::new(setup);
        world.watch(Box::new(PlanWatch(Rc::clone(&plan))));
        while plan.borrow().is_none() {
            assert!(world.step(LIMIT), "a merge is decided on");
        }
        let victims: Vec<HostIndex> = Random::new(seed, "sweep victims")
            .distinct(failures, miners.len())
            .into_iter()
            .map(|index| miners[index])
            .collect();
        let gone: BTreeSet<PeerId> =
            victims.iter().map(|&victim| world.hosts()[victim].identity.peer()).collect();
        victims.into_iter().for_each(|victim| world.inject(Fault::Crash(victim)));
        let owners = plan.borrow().clone().unwrap_or_default();
        let valid = owners.iter().filter(|owners| owners.iter().any(|owner| !gone.contains(owner))).count();
        let completed = matches!(world.run(LIMIT), Ending::Finished(_));
        Outcome { valid: ratio(real(valid as u64), real(owners.len() as u64)), completed }
    }
}

/// The valid share over the share of miners that fail, for each redundancy.
#[must_use]
pub fn sweep(
    miners: usize,
    partitions: u32,
    redundancies: &[u16],
    failures: &[usize],
    seeds: &[u64],
) -> Sweep {
    let mut curves = Vec::new();
    for &redundancy in redundancies {
        let setting = Setting { miners, partitions, redundancy };
        let (mut valid, mut completed) = (Vec::new(), Vec::new());
        for &failed in failures {
            let share = ratio(real(failed as u64), real(miners as u64));
            let outcomes: Vec<Outcome> = seeds.iter().map(|&seed| setting.run(failed, seed)).collect();
            let shares: Vec<f64> = outcomes.iter().map(|outcome| outcome.valid).collect();
            let limit = rounded(1.0 - libm::pow(share, f64::from(redundancy)));
            let point = Point::new(share, Estimate::of(&shares), Some(setting.expected(failed)));
            valid.push(Point { limit: Some(limit), ..point });
            let whole = outcomes.iter().filter(|outcome| outcome.completed).count() as u64;
            completed.push(Point::new(share, Estimate::of_fraction(whole, seeds.len() as u64), Some(1.0)));
        }
        let name = format!("valid at once, r = {redundancy}");
        let theory = "1 − C(K, r)/C(n, r), and 1 − p^r without end";
        curves.push(Curve::new(&name, "of partitions", theory, Method::StudentT, valid));
        let name = format!("completed after reassignment, r = {redundancy}");
        curves.push(Curve::new(&name, "of merges", "1", Method::Wilson, completed));
    }
    Sweep {
        title: "Valid fraction of a merge".to_owned(),
        parameter: "p, share of miners that fail when the merge is decided on".to_owned(),
        setting: format!("one stage of {miners} miners, {partitions} partitions, {} seeds", seeds.len()),
        curves,
    }
}
