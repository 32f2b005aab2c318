//! Every scenario keeps its promise, and twice in the same way.

use std::cell::RefCell;
use std::rc::Rc;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::{Hash, StageIndex};
use iota_sim::checker::{self, Options};
use iota_sim::faults::Fault;
use iota_sim::observe::{Observation, Observer, Seen, Violation};
use iota_sim::scenario::{self, ALL, Request, Scenario};
use iota_sim::trace::Trace;
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, World};

/// Larger scenarios have a test of their own, of nothing but their trace: some checkers look at everybody.
const NODES_MAX: usize = 100;

/// Runs a scenario under all checkers; it must finish. Returns the hash of its trace.
fn run(scenario: &Scenario, seed: u64, compute: Compute) -> Hash {
    run_epochs(scenario, seed, compute, None)
}

/// The same with another number of epochs.
fn run_epochs(scenario: &Scenario, seed: u64, compute: Compute, epochs: Option<u32>) -> Hash {
    let setup = scenario.setup(&Request { nodes: None, seed, compute, epochs });
    let (limit, trace) = (scenario.limit(&setup), Trace::keeping(20));
    let checkers = checker::all(&Options::of(&setup));
    let mut world = World::new(setup);
    world.watch(Box::new(trace.clone()));
    if scenario.nodes <= NODES_MAX {
        checkers.into_iter().for_each(|checker| world.watch(checker));
    }
    let ending = world.run(limit);
    assert!(
        matches!(ending, Ending::Finished(_)),
        "{} seed {seed}: {ending:?}\n{}",
        scenario.name,
        trace.last().join("\n")
    );
    trace.hash()
}

fn small() -> impl Iterator<Item = &'static Scenario> {
    ALL.iter().filter(|scenario| scenario.nodes <= NODES_MAX)
}

#[test]
fn every_scenario_finishes_with_all_rules_kept_and_repeats_itself() {
    for scenario in small() {
        let first = run(scenario, 7, Compute::Cost);
        assert_eq!(first, run(scenario, 7, Compute::Cost), "{} twice", scenario.name);
        assert_ne!(first, run(scenario, 8, Compute::Cost), "{} with another seed", scenario.name);
    }
}

#[test]
fn a_thousand_hosts_finish_an_epoch_and_twice_in_the_same_way() {
    let thousand = scenario::find("thousand").expect("a scenario");
    let first = run_epochs(thousand, 7, Compute::Cost, Some(1));
    assert_eq!(first, run_epochs(thousand, 7, Compute::Cost, Some(1)));
}

#[test]
fn scenarios_that_lose_nothing_train_the_toy_problem() {
    for name in ["smoke", "churn", "flash-crowd", "leader-crash-loop", "bad-network"] {
        run(scenario::find(name).expect("a scenario"), 3, Compute::Toy);
    }
}

/// What the leader knew to be decided, in order, and for each crash whether a merge was under way.
#[derive(Clone, Default)]
struct MergeWatch(Rc<RefCell<(Vec<StateEvent>, Vec<bool>)>>);

impl Observer for MergeWatch {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let (decided, crashes) = &mut *self.0.borrow_mut();
        match seen.seen {
            Seen::Notice(Notice::State(event)) if seen.peer.is_some_and(|p| p.leader() == Some(p.id())) => {
                decided.push(event.clone());
            }
            Seen::Fault(Fault::Crash(_)) => {
                let merges = |of: StageIndex| {
                    let about = |event: &&StateEvent| matches!(event, StateEvent::Planned(s, ..) | StateEvent::Merged(s, ..) if *s == of);
                    matches!(decided.iter().rev().find(about), Some(StateEvent::Planned(..)))
                };
                crashes.push(merges(StageIndex(0)) || merges(StageIndex(1)));
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn merges_fail_while_they_are_under_way_and_complete_all_the_same() {
    let scenario = scenario::find("merge-failure").expect("a scenario");
    let request = Request { nodes: None, seed: 5, compute: Compute::Toy, epochs: None };
    let setup = scenario.setup(&request);
    let (limit, failures, epochs) =
        (scenario.limit(&setup), setup.merge_failures.clone(), setup.spec.training.epochs);
    let watch = MergeWatch::default();
    let checkers = checker::all(&Options::of(&setup));
    let mut world = World::new(setup);
    world.watch(Box::new(watch.clone()));
    checkers.into_iter().for_each(|checker| world.watch(checker));
    let ending = world.run(limit);
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
    let (decided, crashes) = &*watch.0.borrow();
    assert!(crashes.len() >= failures.len() * 5, "35 % of 20 miners each time: {}", crashes.len());
    assert!(crashes.iter().all(|during| *during), "after the plan and before the outcome");
    for failure in failures {
        let (stage, epoch) = (failure.stage, failure.epoch);
        let after = decided
            .iter()
            .skip_while(
                |event| !matches!(event, StateEvent::Planned(s, e, 0, _) if (*s, *e) == (stage, epoch)),
            )
            .skip(1)
            .take_while(|event| !matches!(event, StateEvent::Merged(s, e, ..) if (*s, *e) == (stage, epoch)));
        let repaired = after
            .filter(|event| {
                matches!(event, StateEvent::Aborted(s, ..) | StateEvent::Reassigned(s, ..) if *s == stage)
            })
            .count();
        assert!(repaired > 0, "stage {stage} epoch {epoch} needed other owners or another plan");
    }
    let merged = decided.iter().filter(|event| matches!(event, StateEvent::Merged(..))).count();
    assert_eq!(merged, 2 * epochs as usize, "no epoch was passed over");
}
