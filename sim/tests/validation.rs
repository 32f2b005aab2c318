//! Validators replay what miners did, in swarms of virtual hosts: honest work passes, other work is found out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::validation::{DismissReason, Fault, Finding, Outcome, Subject};
use iota_protocol::validator::losses::Suspicion;
use iota_protocol::wire::message::EvictReason;
use iota_protocol::{Epoch, PeerId, RunSpec};
use iota_sim::adversary::Kind;
use iota_sim::checker::{Options, all};
use iota_sim::faults;
use iota_sim::observe::{Observation, Observer, Seen, Violation};
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, Setup, World, identity};

const LIMIT: Duration = Duration::from_secs(900);
const STAGES: u16 = 3;
const REPLICAS: u16 = 3;
const MINERS: usize = (STAGES * REPLICAS) as usize;
/// As many as there are miners: every epoch is replayed, in the time of one.
const VALIDATORS: usize = MINERS + 3;
const EPOCHS: u32 = 4;

fn setup(mode: TrainingMode, compute: Compute, seed: u64) -> Setup {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = STAGES;
    spec.pipeline.start_replicas = REPLICAS;
    spec.training.mode = mode;
    spec.training.epochs = EPOCHS;
    spec.training.samples_per_epoch = 20;
    spec.training.inner_steps = 2;
    spec.timing.epoch_deadline = Millis::from_secs(20);
    spec.timing.merge_deadline = Millis::from_secs(6);
    spec.validation.replay_share = 1.0;
    let mut setup = Setup::new(spec, seed, 1, MINERS + VALIDATORS);
    setup.compute = compute;
    setup.costs.parameters = 64;
    for host in &mut setup.hosts[MINERS..] {
        (host.miner, host.validator) = (false, true);
    }
    setup
}

/// What the log of one honest peer says.
#[derive(Default)]
struct Record {
    merged: usize,
    submissions: usize,
    found: Vec<(Subject, PeerId, Finding)>,
    checked: BTreeMap<Subject, Outcome>,
    evicted: Vec<(PeerId, EvictReason)>,
    dismissed: Vec<(PeerId, DismissReason)>,
    /// Whom losses name, as each validator says.
    suspected: Vec<(usize, Suspicion)>,
}

struct Recorder(Rc<RefCell<Record>>);

impl Observer for Recorder {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        if let Seen::Notice(Notice::Suspected(suspicion)) = seen.seen {
            self.0.borrow_mut().suspected.push((seen.host, *suspicion));
        }
        let (Seen::Notice(Notice::State(event)), Some(0), Some(peer)) =
            (seen.seen, Some(seen.host), seen.peer)
        else {
            return Ok(());
        };
        let mut record = self.0.borrow_mut();
        match event {
            StateEvent::Merged(stage, epoch, ..) => {
                record.merged += 1;
                let closed = peer.state().stage(*stage).and_then(|stage| stage.closed_epoch(*epoch));
                record.submissions += closed.map_or(0, |closed| closed.plan.submitters.len());
            }
            StateEvent::Judged(subject, validator, finding) => {
                record.found.push((*subject, *validator, *finding));
            }
            StateEvent::Checked(subject, outcome) => drop(record.checked.insert(*subject, *outcome)),
            StateEvent::Evicted(peer, reason) => record.evicted.push((*peer, *reason)),
            StateEvent::Dismissed(peer, reason) => record.dismissed.push((*peer, *reason)),
            _ => {}
        }
        Ok(())
    }
}

fn run(setup: Setup, checkers: Vec<Box<dyn Observer>>) -> (Ending, Record) {
    let record = Rc::new(RefCell::new(Record::default()));
    let mut world = World::new(setup);
    checkers.into_iter().for_each(|checker| world.watch(checker));
    world.watch(Box::new(Recorder(Rc::clone(&record))));
    let ending = world.run(LIMIT);
    drop(world);
    (ending, Rc::try_unwrap(record).ok().expect("the world is gone").into_inner())
}

#[test]
fn honest_work_passes_every_check() {
    let (mut checked, mut all_work) = (0, 0);
    for compute in [Compute::Cost, Compute::Toy] {
        for mode in [TrainingMode::Synchronous, TrainingMode::Local] {
            let setup = setup(mode, compute, 5);
            let checkers = all(&Options::of(&setup));
            let (ending, record) = run(setup, checkers);
            assert!(matches!(ending, Ending::Finished(_)), "{compute:?} {mode:?}: {ending:?}");
            let bad: Vec<_> =
                record.found.iter().filter(|(.., finding)| *finding != Finding::Matches).collect();
            assert!(bad.is_empty(), "{compute:?} {mode:?}: {bad:?}");
            assert_eq!(record.merged, usize::from(STAGES) * EPOCHS as usize);
            (checked, all_work) = (checked + record.checked.len(), all_work + record.submissions);
            assert_eq!(record.evicted, [], "{compute:?} {mode:?}");
        }
    }
    // Whoever is drawn several times in an epoch may come too late for one.
    assert!(checked * 10 >= all_work * 9, "{checked} of {all_work} are checked");
}

#[test]
fn a_validator_that_tells_one_half_something_else_is_dismissed_for_what_it_signed() {
    for seed in 5..8 {
        let mut setup = setup(TrainingMode::Local, Compute::Cost, seed);
        setup.hosts[MINERS].adversary = Some(Kind::Equivocator);
        let checkers = all(&Options::of(&setup));
        let (ending, record) = run(setup, checkers);
        assert!(matches!(ending, Ending::Finished(_)), "seed {seed}: {ending:?}");
        let expected = [(identity(seed, MINERS).peer(), DismissReason::Equivocation)];
        assert_eq!((record.dismissed.as_slice(), record.evicted.len()), (&expected[..], 0), "seed {seed}");
    }
}

#[test]
fn poisoned_contributions_are_found_and_only_their_authors_lose_their_place() {
    let kinds = [Kind::Scaled, Kind::SignFlip, Kind::FreeRiderNoise, Kind::Lazy, Kind::Copycat];
    for kind in kinds {
        for mode in [TrainingMode::Synchronous, TrainingMode::Local] {
            let mut setup = setup(mode, Compute::Toy, 5);
            let liar = MINERS - 1;
            setup.hosts[liar].adversary = Some(kind);
            let (ending, record) = run(setup, Vec::new());
            assert!(matches!(ending, Ending::Finished(_)), "{} {mode:?}: {ending:?}", kind.name());
            let expected = [(identity(5, liar).peer(), EvictReason::FailedReplay)];
            assert_eq!(record.evicted, expected, "{} {mode:?}: {:?}", kind.name(), record.found);
        }
    }
}

/// Nothing is drawn: what is replayed stood out.
#[test]
fn contributions_that_stand_out_are_replayed_and_honest_ones_seldom_do() {
    let run_of = |kind: Option<Kind>, mode, seed| {
        let mut setup = setup(mode, Compute::Toy, seed);
        Arc::make_mut(&mut setup.spec).validation.replay_share = 0.0;
        setup.hosts[MINERS - 1].adversary = kind;
        let (ending, record) = run(setup, Vec::new());
        assert!(matches!(ending, Ending::Finished(_)), "{kind:?} {mode:?}: {ending:?}");
        record
    };
    let (mut stood_out, mut all_work) = (0, 0);
    for mode in [TrainingMode::Synchronous, TrainingMode::Local] {
        for kind in [Kind::Scaled, Kind::FreeRiderNoise, Kind::Lazy, Kind::Copycat] {
            let evicted = run_of(Some(kind), mode, 5).evicted;
            let expected = [(identity(5, MINERS - 1).peer(), EvictReason::FailedReplay)];
            assert_eq!(evicted, expected, "{} {mode:?}", kind.name());
        }
        for seed in SEEDS {
            let record = run_of(None, mode, seed);
            assert_eq!(record.evicted, [], "seed {seed} {mode:?}");
            (stood_out, all_work) = (stood_out + record.checked.len(), all_work + record.submissions);
        }
    }
    assert!(stood_out * 50 < all_work, "{stood_out} of {all_work}");
}

/// Replays of both match. What they and their neighbours have signed does not, so it is found where nothing is replayed, in the first
/// epoch, too.
#[test]
fn whoever_commits_to_something_else_than_it_sends_or_receives_loses_its_place_and_nobody_else() {
    for (kind, mode) in [(Kind::TwoFaced, TrainingMode::Synchronous), (Kind::Fabricator, TrainingMode::Local)]
    {
        for replay_share in [0.0, 1.0] {
            let mut found = 0;
            // The first leads, and takes its own manifest from the machine that it hides behind.
            for host in 1..MINERS {
                let name = format!("{} {host}, {replay_share} replayed", kind.name());
                let mut setup = setup(mode, Compute::Toy, 5);
                setup.hosts[host].adversary = Some(kind);
                Arc::make_mut(&mut setup.spec).validation.replay_share = replay_share;
                let (ending, record) = run(setup, Vec::new());
                assert!(matches!(ending, Ending::Finished(_)), "{name}: {ending:?}");
                let is_right = |outcome: &Outcome| match (kind, outcome) {
                    (_, Outcome::Passed) | (Kind::TwoFaced, Outcome::Failed(Fault::Sent(_))) => true,
                    (Kind::Fabricator, outcome) => *outcome == Outcome::Failed(Fault::Receipts),
                    _ => false,
                };
                assert!(record.checked.values().all(is_right), "{name}: {:?}", record.checked);
                let mut failed = record.checked.iter().filter(|(_, outcome)| **outcome != Outcome::Passed);
                assert!(failed.all(|(subject, _)| subject.epoch == Epoch(0)), "{name}: {:?}", record.checked);
                assert_eq!(record.dismissed, [], "{name}");
                let evicted = (identity(5, host).peer(), EvictReason::FailedReplay);
                assert!(record.evicted.iter().all(|other| *other == evicted), "{name}");
                found += record.evicted.len();
            }
            let name = kind.name();
            assert_eq!(found, 5, "{name}: the last stage's three send nothing on and get nothing back");
        }
    }
}

/// Who starts an epoch over sends other tensors than those that its neighbours went on from. That is no fault.
#[test]
fn whoever_restarts_within_an_epoch_proves_nothing_of_it_and_keeps_its_place() {
    let (seed, restarted) = (1, 4);
    let miner = identity(seed, restarted).peer();
    let mut unproven = 0;
    for at in (1000..5000).step_by(250).map(Duration::from_millis) {
        let mut setup = setup(TrainingMode::Local, Compute::Toy, seed);
        let training = &mut Arc::make_mut(&mut setup.spec).training;
        (training.samples_per_epoch, training.inner_steps) = (60, 8);
        let back = at + Duration::from_millis(100);
        setup.schedule =
            vec![(at, faults::Fault::Crash(restarted)), (back, faults::Fault::Restart(restarted))];
        let (ending, record) = run(setup, Vec::new());
        assert!(matches!(ending, Ending::Finished(_)), "at {at:?}: {ending:?}");
        for (subject, _, finding) in &record.found {
            let excused = subject.peer == miner && *finding == Finding::Unavailable;
            assert!(excused || *finding == Finding::Matches, "at {at:?}: {subject:?} {finding}");
            unproven += usize::from(excused);
        }
        assert_eq!(record.evicted, [], "at {at:?}");
    }
    assert!(unproven > 0, "after some restart its neighbours had gone on from what it sent before");
}

const SEEDS: std::ops::RangeInclusive<u64> = 1..=4;

/// A swarm in which every verdict is repeated, with these hosts as adversaries.
fn setup_of(seed: u64, adversaries: &[(usize, Kind)]) -> Setup {
    let mut setup = setup(TrainingMode::Local, Compute::Toy, seed);
    Arc::make_mut(&mut setup.spec).validation.repeat_share = 1.0;
    for (host, kind) in adversaries {
        setup.hosts[*host].adversary = Some(*kind);
    }
    setup
}

#[test]
fn a_false_accuser_is_dismissed_and_nobody_loses_its_place() {
    for seed in SEEDS {
        let accuser = identity(seed, MINERS).peer();
        let (ending, record) = run(setup_of(seed, &[(MINERS, Kind::FalseAccuser)]), Vec::new());
        assert!(matches!(ending, Ending::Finished(_)), "seed {seed}: {ending:?}");
        // What cannot be had any more, since the run is over, accuses nobody.
        let accused = record.found.iter().filter(|(.., finding)| matches!(finding, Finding::Differs(_)));
        let by: Vec<PeerId> = accused.map(|(_, by, _)| *by).collect();
        assert!(!by.is_empty() && by.iter().all(|by| *by == accuser), "seed {seed}");
        assert_eq!(record.dismissed, [(accuser, DismissReason::WrongVerdict)], "seed {seed}");
        assert_eq!(record.evicted, [], "seed {seed}");
    }
}

#[test]
fn a_lazy_approver_is_dismissed_as_soon_as_others_find_wrong_what_it_approves() {
    let mut caught = 0;
    // Cheats are few once they are found in their first epoch.
    for seed in 1..=16 {
        let lazy = identity(seed, MINERS).peer();
        let cheats = [MINERS - 3, MINERS - 2, MINERS - 1];
        let mut adversaries = cheats.map(|host| (host, Kind::FreeRiderNoise)).to_vec();
        adversaries.push((MINERS, Kind::LazyApprover));
        let (ending, record) = run(setup_of(seed, &adversaries), Vec::new());
        assert!(matches!(ending, Ending::Finished(_)), "seed {seed}: {ending:?}");
        let failed = |subject| matches!(record.checked.get(&subject), Some(Outcome::Failed(_)));
        let wrong = |(subject, by, finding): &&(Subject, PeerId, Finding)| {
            *by == lazy && *finding == Finding::Matches && failed(*subject)
        };
        let expected: Vec<_> = record
            .found
            .iter()
            .find(wrong)
            .map(|_| (lazy, DismissReason::WrongVerdict))
            .into_iter()
            .collect();
        assert_eq!(record.dismissed, expected, "seed {seed}");
        caught += expected.len();
        let cheats = cheats.map(|host| identity(seed, host).peer());
        assert!(record.evicted.iter().all(|(peer, _)| cheats.contains(peer)), "seed {seed}");
    }
    assert!(caught > 0, "it is asked about a cheat in some run");
}

/// A limit: where nobody cheats, who approves without looking is right every time.
#[test]
fn a_lazy_approver_among_honest_miners_is_never_found() {
    let lazy = identity(1, MINERS).peer();
    let (ending, record) = run(setup_of(1, &[(MINERS, Kind::LazyApprover)]), Vec::new());
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
    assert!(record.found.iter().any(|(_, by, _)| *by == lazy), "it is asked");
    assert!(record.found.iter().all(|(.., finding)| *finding == Finding::Matches));
    assert_eq!((record.evicted, record.dismissed), (Vec::new(), Vec::new()));
}

/// A limit: where most validators accuse the same miners, these lose their places.
#[test]
fn a_majority_of_accomplices_takes_honest_miners_places() {
    let accomplices: Vec<_> =
        (0..VALIDATORS * 2 / 3).map(|validator| (MINERS + validator, Kind::ColludingAccusers)).collect();
    let mut evicted = 0;
    for seed in SEEDS {
        let (ending, record) = run(setup_of(seed, &accomplices), Vec::new());
        assert!(matches!(ending, Ending::Finished(_)), "seed {seed}: {ending:?}");
        let is_theirs = |outcome: &Outcome| match outcome {
            Outcome::Passed | Outcome::Unproven => true,
            Outcome::Failed(fault) => matches!(fault, Fault::Contribution | Fault::Receipts),
        };
        assert!(record.checked.values().all(is_theirs), "seed {seed}");
        assert!(record.evicted.iter().all(|(_, reason)| *reason == EvictReason::FailedReplay), "seed {seed}");
        evicted += record.evicted.len();
    }
    assert!(evicted > 0, "they accuse some miner in some run");
}

#[test]
fn losses_name_whoever_sends_on_something_else_than_it_commits_to_and_nobody_else() {
    let run_of = |adversary: Option<usize>, seed: u64| {
        let mut setup = setup(TrainingMode::Synchronous, Compute::Toy, seed);
        let spec = Arc::make_mut(&mut setup.spec);
        (spec.training.samples_per_epoch, spec.training.epochs) = (300, 6);
        spec.timing.epoch_deadline = Millis::from_secs(120);
        spec.validation.replay_share = 0.0;
        // One alone accuses in vain.
        setup.hosts.truncate(MINERS + 1);
        adversary.into_iter().for_each(|host| setup.hosts[host].adversary = Some(Kind::TwoFaced));
        let (ending, record) = run(setup, Vec::new());
        assert!(matches!(ending, Ending::Finished(_)), "{adversary:?} seed {seed}: {ending:?}");
        assert_eq!((record.checked.len(), record.evicted.len()), (0, 0), "nobody is checked");
        record.suspected
    };
    assert_eq!(run_of(None, 1), []);
    let mut named = 0;
    for host in 0..MINERS {
        let suspected = run_of(Some(host), 1);
        let bad = identity(1, host).peer();
        assert!(suspected.iter().all(|(_, suspicion)| suspicion.peer == bad), "{host}: {suspected:?}");
        // One in the last stage sends nothing on.
        named += usize::from(!suspected.is_empty());
    }
    assert_eq!(named, 6, "of nine miners three are in the last stage");
}
