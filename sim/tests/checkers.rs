//! Every checker notices what it is for: a host that is broken in one way trips that checker and no other before it.

use std::sync::Arc;
use std::time::Duration;

use iota_protocol::{Instant, RunSpec};
use iota_sim::checker::{Options, all, credit::Credit, liveness};
use iota_sim::double::Double;
use iota_sim::faults::Fault;
use iota_sim::observe::Violation;
use iota_sim::world::{Ending, Setup, World};

const SECOND: Duration = Duration::from_secs(1);

/// Two stages of three replicas, one candidate, small and quick.
fn setup(hosts: usize) -> Setup {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = 2;
    spec.pipeline.start_replicas = u16::try_from(hosts / 2).expect("few");
    spec.training.epochs = 5;
    spec.training.samples_per_epoch = 12;
    spec.merge.redundancy = 3;
    spec.timing.epoch_deadline = "10s".parse().expect("a duration");
    let mut setup = Setup::new(spec, 7, 1, hosts);
    setup.costs.parameters = 10_000;
    setup
}

fn run(setup: Setup) -> Ending {
    let bound = liveness::bound(&setup.spec);
    let options = Options::of(&setup).healed(Instant::ZERO, bound);
    let mut world = World::new(setup);
    all(&options).into_iter().for_each(|checker| world.watch(checker));
    world.run(bound * 6)
}

fn violation(ending: Ending) -> Violation {
    match ending {
        Ending::Violated(violation) => violation,
        other => panic!("expected a violation, got {other:?}"),
    }
}

/// Runs with one broken host, and asks who notices what.
fn trips(double: Double, host: usize, checker: &str, saying: &str) {
    let mut setup = setup(6);
    setup.hosts[host].double = Some(double);
    let violation = violation(run(setup));
    assert_eq!(violation.checker, checker, "{violation}");
    assert!(violation.what.contains(saying), "{violation}");
}

#[test]
fn a_clean_run_trips_no_checker() {
    let ending = run(setup(6));
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
}

#[test]
fn one_log_notices_a_candidate_that_decides_again() {
    let mut setup = setup(6);
    setup.hosts[0].double = Some(Double::LosesItsLog);
    setup.schedule = vec![(4 * SECOND, Fault::Crash(0)), (5 * SECOND, Fault::Restart(0))];
    let violation = violation(run(setup));
    assert_eq!(violation.checker, "one_log", "{violation}");
}

#[test]
fn agreement_notices_other_weights() {
    trips(Double::MisnamesWeights, 1, "agreement", "version 1 of stage");
}

#[test]
fn coverage_notices_another_reduction() {
    trips(Double::MisreducesPartitions, 1, "coverage", "which it is not");
}

#[test]
fn samples_notices_a_sample_that_counts_twice() {
    trips(Double::RepeatsSamples, 1, "samples", "accumulated twice");
}

#[test]
fn credit_notices_inputs_beyond_the_rule() {
    // The swarm keeps to the spec's credits, which are more than the checker allows.
    let setup = setup(6);
    let mut world = World::new(setup);
    world.watch(Box::new(Credit::new(1)));
    let violation = violation(world.run(60 * SECOND));
    assert_eq!(violation.checker, "credit", "{violation}");
}

#[test]
fn innocence_notices_an_honest_host_that_is_evicted_by_a_verdict() {
    trips(Double::MisreportsDigests, 1, "innocence", "wrong merge");
}

#[test]
fn innocence_notices_an_honest_message_that_is_refused() {
    trips(Double::ExceedsRecords, 1, "innocence", "addresses");
}

#[test]
fn bounds_notices_blobs_that_nobody_asks_for_any_more() {
    trips(Double::KeepsBlobs, 1, "bounds", "is still kept");
}

#[test]
fn job_failures_notices_an_engine_that_fails() {
    trips(Double::FailsToReduce, 1, "job_failures", "a broken engine");
}

/// A stage that cannot merge, since its only miner hides what it did, in a run with this deadline.
fn stuck(epoch_deadline: &str) -> Violation {
    let mut setup = setup(2);
    Arc::make_mut(&mut setup.spec).timing.epoch_deadline = epoch_deadline.parse().expect("a duration");
    setup.hosts[1].double = Some(Double::HidesSubmissions);
    violation(run(setup))
}

#[test]
fn liveness_notices_a_stage_that_never_merges() {
    // Too short for the slowest path, so a cutoff may be due to that.
    let violation = stuck("2s");
    assert_eq!(violation.checker, "liveness", "{violation}");
    assert!(violation.what.contains("passed over epoch 0"), "{violation}");
}

#[test]
fn liveness_notices_a_cutoff_in_a_healthy_swarm() {
    let violation = stuck("20s");
    assert_eq!(violation.checker, "liveness", "{violation}");
    assert!(violation.what.contains("cut epoch 0 off"), "{violation}");
}
