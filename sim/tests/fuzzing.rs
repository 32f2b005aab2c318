//! Runs drawn from seeds, under all checkers.

use iota_sim::faults::Fault;
use iota_sim::fuzz::{self, Case};
use iota_sim::shrink::shrink;

/// Nodes of each run, unless a seed says otherwise.
const NODES: usize = 12;

/// Runs what is drawn from these seeds; objects to the first failures all together, each with the command that replays it.
fn none_fails(cases: impl Iterator<Item = Case>) {
    let failed: Vec<String> = cases
        .filter_map(|case| {
            let outcome = fuzz::run(&case);
            outcome.failure().map(|failure| format!("iota-sim replay {case}: {failure}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn no_seed_up_to_100_breaks_a_rule() {
    none_fails((0..100).map(|seed| fuzz::draw(seed, NODES)));
}

#[test]
fn no_seed_from_100_to_200_breaks_a_rule() {
    none_fails((100..200).map(|seed| fuzz::draw(seed, NODES)));
}

#[test]
fn no_seed_from_200_to_300_breaks_a_rule() {
    none_fails((200..300).map(|seed| fuzz::draw(seed, NODES)));
}

#[test]
fn no_seed_breaks_a_rule_while_the_swarm_is_upgraded() {
    let upgraded = |case: &Case| case.faults.iter().any(|(_, fault)| matches!(fault, Fault::Reinstall(..)));
    none_fails((300..).map(|seed| fuzz::draw(seed, NODES)).filter(upgraded).take(30));
}

#[test]
fn no_seed_breaks_a_rule_while_hosts_take_the_last_weights_of_a_stage_along() {
    none_fails((0..60).map(|seed| fuzz::draw(seed, NODES).mirrored()));
}

/// Seeds that failed once. What they had found:
///
/// - 51 and 56 of 40 nodes: a leader alone proposed everybody's eviction until no range of the log could be proven;
/// - 284: everybody fetched one state over one uplink, for ever; 351: stages stayed an epoch apart;
/// - 157: what the engine was at when its epoch emptied counted in the epoch that opened again;
/// - 539: where the tail alone had settled an epoch, each stage above waited five deadlines for the one below, one after another;
/// - 182, and 877 of 12 nodes: each new leader began every wait anew, and leaders changed faster than a deadline;
/// - 201 again, once weights were durable: who alone had a stage's last weights had lost its place, and was not asked for them;
/// - 12, 75, 201 and 314: a merge whose owners had all lost it was asked of them for ever, while replicas had the result;
/// - 201 once more: a miner two merges behind, both of which were passed over, knew no way to the newest version;
/// - 954: digests of a plan from before an epoch opened again counted for the plan of the same number after it, and an honest
///   owner was evicted;
/// - 1082: samples dealt while the engine made a contribution were claimed by it;
/// - 1125: a miner was moved away that alone had applied the last merge of its stage;
/// - 1414: a miner did not look at what its own process had just decided until something else happened;
/// - 250 and 1820: after one cutoff the stages stayed out of step, each epoch cut off in its turn, until the end of the run;
/// - 99, 142, 205, 208, 243, 269 and 282: with fewer samples than miners, or after a cutoff, everybody waited for submissions
///   of those who had no samples, in every epoch;
/// - 831 of 40 nodes: a candidate to which the last decision got lost was never sent it again, since nothing followed;
/// - 239: a candidate that came back behind a snapshot was sent entries before it by the next leader, and took none of them;
/// - 1966: a candidate whose consensus had trimmed more than its last process left of the log was given the entries in
///   between by others, and took none of them;
/// - 1125 of 40 nodes: a miner that left before its merge was decided on came back without what it had merged, and was waited
///   for as long as it was heard;
/// - 1487 of 40 nodes: what was being read when its stage was given up was let go of one step too late;
/// - 898 of 40 nodes: a validator that could not get one blob of a check kept for ever what else of it came later;
/// - 636 and 1895: no fault of the swarm, but of the checker, which did not see that samples lost in one stage are lost in
///   the one two above; 891, and 267 of 40 nodes: the same, for a host that comes back and applies a merge before it hears that
///   it was undone;
/// - 1347 and 1568: a candidate that had ceased to trust a leader, and was away while the others elected it anew, prepared for none of
///   its ballots and was left behind for good.
#[test]
fn seeds_that_failed_once_pass() {
    none_fails(
        [51, 56, 157, 182, 267, 284, 351, 539, 250, 831, 898, 1125, 1487, 1820]
            .into_iter()
            .map(|seed| fuzz::draw(seed, 40)),
    );
    none_fails(
        [12, 75, 99, 201, 205, 239, 282, 314, 636, 877, 891, 954, 1082, 1125, 1347, 1414, 1568, 1895, 1966]
            .into_iter()
            .map(|seed| fuzz::draw(seed, NODES)),
    );
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
    let mirrored: Case = "--seed 3 --nodes 9 --mirror".parse().expect("a case");
    assert_eq!(mirrored.to_string(), "--seed 3 --nodes 9 --mirror");
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
