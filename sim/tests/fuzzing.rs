//! Runs drawn from seeds, under all checkers.

use iota_sim::fuzz::{self, Case};
use iota_sim::shrink::shrink;

/// Seeds tried each time the tests run.
const SEEDS: u64 = 60;
/// Nodes of each run.
const NODES: usize = 12;

#[test]
fn no_seed_breaks_a_rule() {
    let failed: Vec<String> = (0..SEEDS)
        .map(|seed| fuzz::draw(seed, NODES))
        .filter_map(|case| fuzz::run(&case).failure().map(|violation| format!("{case}: {violation}")))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Hosts start with the old program and are restarted with the new one in any order, while everything else goes wrong too.
#[test]
fn no_seed_breaks_a_rule_while_the_swarm_is_upgraded() {
    use iota_protocol::wire::Versions;
    use iota_sim::faults::Fault;
    use iota_sim::random::Random;
    use std::time::Duration;

    let upgraded = |seed: u64| {
        let (mut case, mut random) = (fuzz::draw(seed, NODES), Random::new(seed, "fuzz upgrades"));
        for host in 0..case.setup.hosts.len() {
            case.setup.hosts[host].versions = Versions::FIRST;
            let (at, pause) =
                (random.duration(Duration::from_secs(3), case.healed_at), Duration::from_secs(2));
            case.faults.push((at, Fault::Reinstall(host, Versions::new(1, 2), pause)));
        }
        case
    };
    let failed: Vec<String> = (0..SEEDS / 4)
        .filter_map(|seed| {
            fuzz::run(&upgraded(seed)).failure().map(|violation| format!("seed {seed}: {violation}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_case_is_replayed_from_its_text() {
    let text = "--seed 3 --nodes 9 --without 0,2";
    let case: Case = text.parse().expect("a case");
    assert_eq!(case.to_string(), text);
    let (first, second) = (fuzz::run(&case), fuzz::run(&text.parse().expect("a case")));
    assert_eq!((first.trace, first.events, first.time), (second.trace, second.events, second.time));
    let other = fuzz::run(&fuzz::draw(4, 9));
    assert_ne!(first.trace, other.trace);
    assert!("--seed 3 --without".parse::<Case>().is_err());
    assert!("--seed 3 --nodes 1".parse::<Case>().is_err());
}

#[test]
fn a_case_that_does_not_fail_is_not_shrunk() {
    let case = fuzz::draw(0, 6);
    assert!(fuzz::run(&case).failure().is_none());
    assert_eq!(shrink(&case).without, case.without);
}

#[test]
fn a_failing_case_is_shrunk_to_the_faults_that_matter() {
    use iota_sim::double::Double;
    use iota_sim::faults::Fault;
    use std::time::Duration;

    // A candidate that forgets its log breaks a rule only if it crashes and comes back.
    let alone = |case: &Case| case.setup.spec.orchestrator.candidates.len() == 1;
    let long = |case: &Case| case.setup.spec.training.epochs == 6;
    let mut drawn = (0..).map(|seed| fuzz::draw(seed, 6));
    let mut case = drawn.find(|case| alone(case) && long(case)).expect("there are many");
    let seconds = |n| Duration::from_secs(n);
    case.setup.hosts[0].double = Some(Double::LosesItsLog);
    case.setup.spares_last_copies = false;
    case.faults = vec![
        (seconds(1), Fault::Speed(2, 0.5)),
        (seconds(2), Fault::RepeatGossip(0.2)),
        (seconds(4), Fault::Crash(0)),
        (seconds(6), Fault::Restart(0)),
        (seconds(7), Fault::Freeze(3, seconds(1))),
    ];
    let found = fuzz::run(&case);
    let small = shrink(&case);
    assert_eq!(found.failure().map(|violation| violation.checker), Some("one_log"), "{found:?}");
    // It comes back when all is mended, if not before.
    assert_eq!(small.fault_numbers(), [2]);
}
