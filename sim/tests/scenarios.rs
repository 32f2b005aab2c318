//! Every scenario keeps its promise, and twice in the same way.

use iota_protocol::Hash;
use iota_sim::checker::{self, Options};
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
