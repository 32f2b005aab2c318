//! Swarms that train the real model: they learn, churn costs them little, and the same seed trains the same weights.

use iota_protocol::Hash;
use iota_sim::checker::{self, Options};
use iota_sim::measure::Meter;
use iota_sim::report::{EventKind, Report, Validation};
use iota_sim::scenario::{self, Request};
use iota_sim::trace::Trace;
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, World};

/// Hosts of the swarm under churn.
const NODES: usize = 24;
/// Its epochs.
const EPOCHS: u32 = 40;
/// How far above the clean run's the loss under churn may be.
const LOSS_RATIO_MAX: f64 = 1.03;
/// Share of the initial loss that has to be gone. Knowing how often each byte occurs takes off half of it.
const LEARNED_MIN: f64 = 0.55;

/// Runs a scenario under all checkers; it must finish. Returns what was measured and the hash of the trace.
fn train(name: &str, nodes: usize, epochs: u32, seed: u64) -> (Report, Hash) {
    let scenario = scenario::find(name).expect("a scenario");
    let request = Request { nodes: Some(nodes), seed, compute: Compute::Real, epochs: Some(epochs) };
    let setup = scenario.setup(&request);
    let (limit, trace, meter) = (scenario.limit(&setup), Trace::keeping(20), Meter::new(&setup));
    let checkers = checker::all(&Options::of(&setup));
    let mut world = World::new(setup);
    world.watch(Box::new(trace.clone()));
    world.watch(meter.observer());
    checkers.into_iter().for_each(|checker| world.watch(checker));
    let ending = world.run(limit);
    assert!(
        matches!(ending, Ending::Finished(_)),
        "{name} seed {seed}: {ending:?}\n{}",
        trace.last().join("\n")
    );
    (meter.report(&world, &ending), trace.hash())
}

fn learned(report: &Report) -> &Validation {
    report.validation.as_ref().expect("engines are real")
}

#[test]
fn churn_of_15_percent_per_ten_epochs_costs_less_than_3_percent_of_the_loss() {
    let (clean, _) = train("smoke", NODES, EPOCHS, 7);
    let (churned, _) = train("churn", NODES, EPOCHS, 7);
    let evicted = |report: &Report| {
        report.timeline.iter().filter(|event| event.kind == EventKind::Membership).count() as u64
    };
    assert_eq!((evicted(&clean), clean.churn.join_seconds.count), (0, 0), "nothing happens to the clean run");
    assert!(evicted(&churned) >= 6, "{} evicted", evicted(&churned));
    assert!(churned.churn.join_seconds.count >= 6, "{} joined", churned.churn.join_seconds.count);

    let (clean, churned) = (learned(&clean), learned(&churned));
    assert_eq!(clean.epochs, u64::from(EPOCHS));
    assert_eq!(churned.epochs, u64::from(EPOCHS));
    assert_eq!(clean.initial_nats, churned.initial_nats, "both start from the weights of the seed");
    assert!(
        clean.final_nats < clean.initial_nats * (1.0 - LEARNED_MIN),
        "{} of {} nats are left",
        clean.final_nats,
        clean.initial_nats
    );
    let ratio = churned.final_nats / clean.final_nats;
    assert!(
        ratio < LOSS_RATIO_MAX,
        "{} nats under churn, {} without: {ratio}",
        churned.final_nats,
        clean.final_nats
    );
}

#[test]
fn the_same_seed_trains_the_same_weights_and_another_seed_others() {
    let run = |seed| {
        let (report, trace) = train("churn", 9, 3, seed);
        (learned(&report).weights.clone(), trace)
    };
    let (weights, trace) = run(7);
    assert_eq!((weights.clone(), trace), run(7));
    let (other_weights, other_trace) = run(8);
    assert_ne!(weights, other_weights);
    assert_ne!(trace, other_trace);
}
