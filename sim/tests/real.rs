//! Swarms that train the real model: they learn, churn costs them little, and the same seed trains the same weights.

use iota_protocol::Hash;
use iota_sim::adversary::Kind;
use iota_sim::checker::{self, Options};
use iota_sim::measure::Meter;
use iota_sim::measure::statistics::real;
use iota_sim::report::{EventKind, Report, Validation};
use iota_sim::scenario::{self, Request};
use iota_sim::trace::Trace;
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, World};

/// Hosts of the swarm under churn.
const NODES: usize = 24;
/// Those of them that are candidates, which stay.
const CANDIDATES: u64 = 3;
/// Its epochs.
const EPOCHS: u32 = 40;
/// How far above the clean run's the loss under churn may be.
const LOSS_RATIO_MAX: f64 = 1.03;
/// Nats per token that both have to end below. Knowing how often each byte occurs leaves about three.
const LOSS_MAX: f64 = 2.5;
/// Turnover of the miners in every ten epochs: the mean of those who go and those who come.
const CHURN_MIN: f64 = 0.15;

/// Runs a scenario under all checkers; it must finish. Returns what was measured and the hash of the trace.
fn train(name: &str, nodes: usize, epochs: u32, seed: u64) -> (Report, Hash) {
    train_beside(None, name, nodes, epochs, seed)
}

/// The same with the last host an adversary of this kind.
fn train_beside(adversary: Option<Kind>, name: &str, nodes: usize, epochs: u32, seed: u64) -> (Report, Hash) {
    let scenario = scenario::find(name).expect("a scenario");
    let request = Request { nodes: Some(nodes), seed, compute: Compute::Real, epochs: Some(epochs) };
    let mut setup = scenario.setup(&request);
    setup.hosts[nodes - 1].adversary = adversary;
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

/// Members who lost their place: they crashed or left.
fn evicted(report: &Report) -> f64 {
    let events = report.timeline.iter().filter(|event| event.kind == EventKind::Membership);
    real(events.count() as u64)
}

/// Hosts who came after the first epoch had opened and had a part in a merge.
fn joined(report: &Report) -> f64 {
    real(report.churn.join_seconds.count)
}

#[test]
fn churn_of_15_percent_per_ten_epochs_costs_less_than_3_percent_of_the_loss() {
    let (clean, _) = train("smoke", NODES, EPOCHS, 7);
    let (churned, _) = train("churn", NODES, EPOCHS, 7);
    assert_eq!((evicted(&clean), joined(&clean)), (0.0, 0.0), "nothing happens to the clean run");
    let miners = real(NODES as u64 - CANDIDATES);
    let fewest = CHURN_MIN * miners * f64::from(EPOCHS) / 10.0;
    let (gone, come) = (evicted(&churned), joined(&churned));
    assert!(
        (gone + come) / 2.0 >= fewest,
        "{gone} evicted and {come} joined, expected {fewest} of each on average"
    );

    let (clean, churned) = (learned(&clean), learned(&churned));
    assert_eq!(clean.epochs, u64::from(EPOCHS));
    assert_eq!(churned.epochs, u64::from(EPOCHS));
    assert_eq!(clean.initial_nats, churned.initial_nats, "both start from the weights of the seed");
    assert!(clean.initial_nats > 2.0 * LOSS_MAX, "{} nats at first", clean.initial_nats);
    assert!(clean.final_nats < LOSS_MAX, "{} nats without churn", clean.final_nats);
    let ratio = churned.final_nats / clean.final_nats;
    assert!(
        ratio < LOSS_RATIO_MAX,
        "{} nats under churn, {} without: {ratio}",
        churned.final_nats,
        clean.final_nats
    );
}

/// With the weighted mean, and nobody who validates.
#[test]
fn what_no_inner_steps_lead_to_costs_its_author_its_place_and_the_model_nothing() {
    let (nodes, epochs) = (9, 12);
    let (clean, _) = train("smoke", nodes, epochs, 7);
    for kind in [Kind::Huge, Kind::Scaled] {
        let (report, _) = train_beside(Some(kind), "smoke", nodes, epochs, 7);
        let events = report.timeline.iter().filter(|event| event.kind == EventKind::Membership);
        let events: Vec<_> = events.map(|event| event.what.as_str()).collect();
        assert!(events.len() == 1 && events[0].contains("invalid contribution"), "{kind:?}: {events:?}");
        let ratio = learned(&report).final_nats / learned(&clean).final_nats;
        assert!(ratio < LOSS_RATIO_MAX, "{kind:?}: {ratio}");
    }
}

/// They take fewer inner steps, and come less far.
#[test]
fn what_slow_machines_contribute_does_not_stand_out() {
    let scenario = scenario::find("smoke").expect("a scenario");
    let request = Request { nodes: Some(NODES), seed: 1, compute: Compute::Real, epochs: Some(8) };
    let mut setup = scenario.setup(&request);
    setup.hosts[NODES - 6..].iter_mut().for_each(|host| host.speed = 0.1);
    let (limit, trace) = (scenario.limit(&setup), Trace::keeping(usize::MAX));
    let mut world = World::new(setup);
    world.watch(Box::new(trace.clone()));
    assert!(matches!(world.run(limit), Ending::Finished(_)));
    let lines = trace.last();
    let of = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert!(of("\tmerged\t") > 0, "lines name what happened");
    assert_eq!(of("\tstands-out\t"), 0);
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
