//! Swarms with adversaries: what they cannot break, and what they still can.

use std::time::Duration;

use iota_protocol::log::DecidedLog;
use iota_protocol::spec::{KickPolicy, ReducerName, TrainingMode};
use iota_protocol::wire::message::EvictReason;
use iota_sim::adversary::Kind;
use iota_sim::world::{Ending, Setup, World};

use crate::common::{CANDIDATES, Outcome, corrupted, run, run_pair, run_with, spec};

const MODES: [TrainingMode; 2] = [TrainingMode::Synchronous, TrainingMode::Local];
const SEEDS: std::ops::RangeInclusive<u64> = 1..=4;

/// Honest peers agree, the run finishes, and nobody honest is evicted for what it computed.
fn assert_safe(kind: Kind, seed: u64, outcome: &Outcome) {
    assert!(outcome.has_finished(), "{} seed {seed}: {:?}", kind.name(), outcome.ending);
    assert!(outcome.evicted_honest().is_empty(), "{} seed {seed}", kind.name());
}

/// A candidate whose lies would have to be outvoted, which crash-tolerant consensus does not do.
fn breaks_consensus(kind: Kind) -> bool {
    matches!(kind, Kind::ForkingLeader)
}

#[test]
fn one_adversary_of_ten_breaks_no_agreement_and_stalls_no_run() {
    // Here nobody validates.
    let tried = |kind: &Kind| !breaks_consensus(*kind) && !kind.is_validator();
    for kind in Kind::ALL.iter().copied().filter(tried) {
        for (mode, seed) in MODES.into_iter().flat_map(|mode| SEEDS.map(move |seed| (mode, seed))) {
            assert_safe(kind, seed, &run(kind, mode, seed));
        }
    }
}

#[test]
fn contributions_that_are_none_get_their_author_evicted() {
    for kind in [Kind::Garbage, Kind::Nan] {
        for seed in SEEDS {
            let outcome = run(kind, TrainingMode::Local, seed);
            assert_eq!(outcome.evicted_adversaries(EvictReason::InvalidContribution), 1, "seed {seed}");
            assert_eq!(outcome.evicted.len(), 1, "{} seed {seed}: nobody else", kind.name());
        }
    }
}

#[test]
fn a_lying_owner_is_evicted_when_a_third_owner_settles() {
    for seed in SEEDS {
        let outcome = run(Kind::LyingOwner, TrainingMode::Synchronous, seed);
        assert_eq!(outcome.evicted_adversaries(EvictReason::WrongMerge), 1, "seed {seed}");
        assert_eq!(outcome.evicted.len(), 1, "seed {seed}: nobody else");
    }
}

#[test]
fn two_owners_who_lie_without_agreeing_are_both_evicted() {
    for seed in SEEDS {
        let outcome = run_pair(Kind::LyingOwner, seed);
        assert_safe(Kind::LyingOwner, seed, &outcome);
        assert_eq!(outcome.evicted_adversaries(EvictReason::WrongMerge), 2, "seed {seed}");
    }
}

#[test]
fn an_equivocator_is_evicted_for_what_it_signed_and_nobody_else() {
    for (mode, seed) in MODES.into_iter().flat_map(|mode| SEEDS.map(move |seed| (mode, seed))) {
        let outcome = run(Kind::Equivocator, mode, seed);
        assert_safe(Kind::Equivocator, seed, &outcome);
        assert_eq!(outcome.evicted_adversaries(EvictReason::Equivocation), 1, "{mode:?} seed {seed}");
        assert_eq!(outcome.evicted.len(), 1, "{mode:?} seed {seed}: nobody else");
    }
}

#[test]
fn a_speed_liar_is_told_its_speed_and_evicted_for_what_it_says_then() {
    for (mode, seed) in MODES.into_iter().flat_map(|mode| SEEDS.map(move |seed| (mode, seed))) {
        // The third epoch and the fourth are the first that are dealt by speed.
        let mut spec = spec(2, 3, mode);
        spec.training.epochs = 8;
        let outcome = run_with(Setup::new(spec, seed, CANDIDATES, 10), Kind::SpeedLiar, &[9]);
        assert_safe(Kind::SpeedLiar, seed, &outcome);
        assert_eq!(outcome.evicted_adversaries(EvictReason::OverstatedSpeed), 1, "{mode:?} seed {seed}");
        assert_eq!(outcome.evicted.len(), 1, "{mode:?} seed {seed}: nobody else");
    }
}

#[test]
fn two_candidates_of_five_that_vote_for_two_histories_are_evicted_and_change_nothing_else() {
    for seed in SEEDS {
        let setup = Setup::new(spec(2, 3, TrainingMode::Local), seed, 5, 10);
        let outcome = run_with(setup, Kind::MaliciousMinority, &[0, 1]);
        assert_safe(Kind::MaliciousMinority, seed, &outcome);
        assert_eq!(outcome.evicted_adversaries(EvictReason::Equivocation), 2, "seed {seed}");
        assert!(outcome.evicted.len() == 2 && outcome.silenced.is_empty(), "seed {seed}: nobody else");
    }
}

#[test]
fn a_censored_member_is_evicted_as_silent_and_nobody_else() {
    let silenced: usize = SEEDS
        .map(|seed| {
            let outcome = run(Kind::Censor, TrainingMode::Local, seed);
            assert!(outcome.silenced.iter().all(|host| !outcome.adversaries.contains(host)), "seed {seed}");
            outcome.silenced.len()
        })
        .sum();
    assert!(silenced > 0, "some victim had a place before the censor led");
}

#[test]
fn a_usurper_among_three_candidates_is_not_followed_for_long() {
    for (mode, seed) in MODES.into_iter().flat_map(|mode| SEEDS.map(move |seed| (mode, seed))) {
        let outcome = run(Kind::Usurper, mode, seed);
        assert_safe(Kind::Usurper, seed, &outcome);
        assert!(outcome.evicted.is_empty(), "{mode:?} seed {seed}: nothing is proved");
        assert_eq!(
            outcome.deposed.iter().collect::<Vec<_>>(),
            [&0],
            "{mode:?} seed {seed}: it pays, and nobody else does"
        );
    }
}

/// A limit: with three candidates a majority is the liar and one other, so that two majorities share only the liar.
#[test]
fn a_forking_leader_of_three_candidates_gets_two_certificates_for_one_entry() {
    let setup = Setup::new(spec(2, 3, TrainingMode::Local), 1, CANDIDATES, 10);
    let mut world = World::new(corrupted(setup, Kind::ForkingLeader, &[0]));
    assert_eq!(world.run(Duration::from_secs(60)), Ending::TimeUp);
    let log = |host: usize| world.hosts()[host].peer().expect("it runs").log();
    let (deceived, other) = (log(1), log(2));
    let last = deceived.certified().min(other.certified());
    let last = usize::try_from(last).expect("a short log");
    assert!(last > 0, "both have certificates");
    assert_ne!(deceived.chain(last), other.chain(last), "certified, and different");
}

/// With four candidates two majorities share two of them, so that one is honest and signs one history only.
#[test]
fn a_forking_leader_of_four_candidates_gets_certificates_for_one_history_only() {
    const FOUR: usize = 4;
    let setup = Setup::new(spec(2, 4, TrainingMode::Local), 1, FOUR, 10);
    let mut world = World::new(corrupted(setup, Kind::ForkingLeader, &[0]));
    assert_eq!(world.run(Duration::from_secs(60)), Ending::TimeUp);
    let logs = || world.hosts().iter().skip(1).filter_map(|host| Some(host.peer()?.log()));
    let certified = |log: &DecidedLog| usize::try_from(log.certified()).expect("a short log");
    let longest = logs().max_by_key(|log| certified(log)).expect("some host runs");
    assert!(certified(longest) > 0, "the liar and the two that it shows the same history certify it");
    for log in logs() {
        assert_eq!(log.chain(certified(log)), longest.chain(certified(log)));
    }
    let alone = logs().filter(|log| log.chain(log.len()) != longest.chain(log.len())).count();
    assert_eq!(alone, 1, "one candidate's consensus decided what nobody certifies");
}

/// Mean excess loss of the honest miners of one stage of six, after twelve epochs.
fn excess_loss(reducer: ReducerName, kind: Option<Kind>, seed: u64) -> f64 {
    let mut spec = spec(1, 6, TrainingMode::Local);
    spec.training.epochs = 12;
    spec.merge.reducer = reducer;
    let setup = Setup::new(spec, seed, CANDIDATES, 6);
    let setup = match kind {
        Some(kind) => corrupted(setup, kind, &[5]),
        None => corrupted(setup, Kind::Lazy, &[]),
    };
    let mut world = World::new(setup);
    assert!(matches!(world.run(Duration::from_secs(900)), Ending::Finished(_)), "{reducer:?} {kind:?}");
    let losses: Vec<f64> = world
        .hosts()
        .iter()
        .filter(|host| host.is_honest())
        .map(|host| host.trainer().excess_loss().expect("a toy problem"))
        .collect();
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// How many times the excess loss without a liar is that with one, in the worst of the seeds.
fn harm(reducer: ReducerName, kind: Kind) -> f64 {
    let ratio = |seed| excess_loss(reducer, Some(kind), seed) / excess_loss(reducer, None, seed);
    SEEDS.map(ratio).fold(0.0, f64::max)
}

#[test]
fn robust_reducers_bound_what_one_of_six_can_do() {
    use ReducerName::{ClippedMean, Median, TrimmedMean, WeightedMean};
    for kind in [Kind::Huge, Kind::Scaled] {
        for (reducer, most) in [(Median, 2.0), (TrimmedMean, 2.0), (ClippedMean, 5.0)] {
            let harm = harm(reducer, kind);
            assert!(harm < most, "{} {reducer:?}: {harm}", kind.name());
        }
        assert!(harm(WeightedMean, kind) > 1e6, "what the others are for");
    }
    // Of ordinary size, and wrong: clipping does nothing against it.
    for (kind, most, least) in [
        (Kind::SignFlip, 4.0, 10.0),
        (Kind::FreeRiderNoise, 10.0, 100.0),
        (Kind::FreeRiderReplay, 6.0, 1000.0),
    ] {
        let harms = [Median, WeightedMean].map(|reducer| harm(reducer, kind));
        assert!(harms[0] < most && harms[1] > least, "{}: {harms:?}", kind.name());
    }
}

/// A machine too slow for its stage, which is no cheat: nothing is proved against it.
#[test]
fn who_does_too_little_is_kicked_and_nobody_else() {
    for seed in SEEDS {
        let mut spec = spec(2, 3, TrainingMode::Local);
        (spec.training.epochs, spec.training.samples_per_epoch) = (12, 80);
        // The first epochs are dealt evenly: others wait for the slow one, and do little for no fault of theirs.
        (spec.scores.kick, spec.scores.kick_grace) = (KickPolicy::Threshold, 6);
        let mut setup = Setup::new(spec, seed, CANDIDATES, 10);
        setup.hosts[9].speed = 0.1;
        let outcome = run_with(setup, Kind::Lazy, &[]);
        assert!(outcome.has_finished(), "seed {seed}: {:?}", outcome.ending);
        assert_eq!(outcome.evicted, [(9, "low score")].into(), "seed {seed}");
    }
}

#[test]
fn a_pair_that_lies_alike_loses_to_the_majority_of_its_stage() {
    for seed in SEEDS {
        let outcome = run_pair(Kind::Framers, seed);
        assert_safe(Kind::Framers, seed, &outcome);
        assert!(outcome.evicted_adversaries(EvictReason::WrongMerge) > 0, "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_ending_and_another_seed_another() {
    let ending = |seed| run(Kind::Flooder, TrainingMode::Local, seed).ending;
    assert_eq!(ending(1), ending(1));
    assert_ne!(ending(1), ending(2));
}
