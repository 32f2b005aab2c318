//! What survives processes: whoever starts again goes on from what it had on disk.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::{Epoch, Instant, RunSpec, StageIndex};
use iota_sim::checker::{Options, all, liveness};
use iota_sim::faults::Fault;
use iota_sim::observe::{Observation, Observer, Seconds, Seen, Violation};
use iota_sim::random::Random;
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, Setup, World};

const SECOND: Duration = Duration::from_secs(1);
/// Hosts: three candidates, two stages of three.
const HOSTS: usize = 6;

fn setup(compute: Compute) -> Setup {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = 2;
    spec.pipeline.start_replicas = 3;
    spec.training.epochs = 8;
    spec.training.samples_per_epoch = 12;
    spec.training.mode = TrainingMode::Synchronous;
    spec.timing.epoch_deadline = "20s".parse().expect("a duration");
    spec.timing.merge_deadline = "5s".parse().expect("a duration");
    let mut setup = Setup::new(spec, 5, 3, HOSTS);
    setup.compute = compute;
    setup.costs.parameters = 1000;
    setup
}

/// Runs under all checkers to its end.
fn finished(setup: Setup, healed: Duration) -> World {
    finished_before(setup, healed, None)
}

/// [`finished`] before the eyes of somebody else, too.
fn finished_before(setup: Setup, healed: Duration, witness: Option<Box<dyn Observer>>) -> World {
    let bound = liveness::bound(&setup.spec);
    let options = Options::of(&setup).healed(Instant::ZERO + healed, bound);
    let mut world = World::new(setup);
    all(&options).into_iter().chain(witness).for_each(|checker| world.watch(checker));
    let ending = world.run(healed + bound * 9);
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
    world
}

/// All hosts crash at `at` and come back three seconds later.
fn blackout(mut setup: Setup, at: Duration) -> World {
    let crashes = (0..HOSTS).map(|host| (at, Fault::Crash(host)));
    let restarts = (0..HOSTS).map(|host| (at + 3 * SECOND, Fault::Restart(host)));
    setup.schedule = crashes.chain(restarts).collect();
    finished(setup, at + 4 * SECOND)
}

/// In the middle of an epoch, of a merge, or between them.
fn moments() -> impl Iterator<Item = Duration> {
    (3..15).map(|halves| SECOND * halves / 2 + SECOND / 7)
}

#[test]
fn a_run_goes_on_though_all_hosts_crash_at_once() {
    for at in moments() {
        let world = blackout(setup(Compute::Cost), at);
        assert!(world.now() > Instant::ZERO + at + 3 * SECOND, "it was not over before");
    }
}

/// What each host's model lacks to the best there is.
fn excess_losses(world: &World) -> Vec<f64> {
    world.hosts().iter().filter_map(|host| host.trainer().excess_loss()).collect()
}

#[test]
fn nothing_is_lost_when_all_hosts_crash_at_once() {
    let undisturbed = excess_losses(&finished(setup(Compute::Toy), Duration::ZERO));
    assert_eq!(undisturbed.len(), HOSTS);
    for at in moments() {
        let disturbed = excess_losses(&blackout(setup(Compute::Toy), at));
        // Who holds which stage does not change, and a synchronous epoch does not depend on who handles a sample.
        let same = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        let all = undisturbed.iter().zip(&disturbed).all(same);
        assert!(all && disturbed.len() == HOSTS, "{undisturbed:?} {disturbed:?} at {at:?}");
    }
}

/// How long a neighbour that is told nothing waits before it pushes an activation again: a quarter of the epoch's deadline.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_host_that_starts_again_at_once_costs_its_absence_and_little_more() {
    let undisturbed = finished(setup(Compute::Cost), Duration::ZERO).now();
    for at in moments() {
        for host in 0..HOSTS {
            let mut setup = setup(Compute::Cost);
            setup.schedule = vec![(at, Fault::Crash(host)), (at + SECOND, Fault::Restart(host))];
            let world = finished(setup, at + 2 * SECOND);
            let cost = world.now().since(undisturbed);
            assert!(cost < PATIENCE, "host {host} at {at:?}: {cost:?}");
        }
    }
}

/// Objects to merges that lack a sample, and to a run that stands still.
struct EverySample {
    samples: u64,
    /// When there was a merge last, if there was one: until the first, stages wait for their miners.
    merged: Option<Instant>,
    merges: BTreeSet<(StageIndex, Epoch)>,
}

impl EverySample {
    fn violation(&self, seen: &Observation<'_>, what: String) -> Result<(), Violation> {
        Err(Violation { checker: "every_sample", at: seen.at, host: Some(seen.host), what })
    }
}

impl Observer for EverySample {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        if let Some(last) = self.merged.filter(|last| seen.at.since(*last) > STANDSTILL_MAX) {
            return self.violation(seen, format!("no merge since {}", Seconds(last)));
        }
        if let Seen::Notice(Notice::State(StateEvent::Merged(stage, epoch, samples, _))) = seen.seen {
            if self.merges.insert((*stage, *epoch)) {
                self.merged = Some(seen.at);
            }
            if *samples != self.samples {
                return self.violation(seen, format!("stage {stage}, epoch {epoch}: {samples} samples"));
            }
        }
        Ok(())
    }
}

/// Longest a run may go without a merge while hosts crash all the time, candidates among them: a tensor that nobody sends
/// again is waited for twice as long, two evictions.
const STANDSTILL_MAX: Duration = Duration::from_secs(30);
/// Until when hosts crash.
const HARRIED: Duration = Duration::from_secs(90);
/// Seeds in the tests.
const SEEDS: u64 = 40;

/// A swarm of unequal hosts, so that stages give each other miners, of which one after the other crashes and starts again.
fn harried(seed: u64) -> (Setup, Duration) {
    let mut random = Random::new(seed, "harried");
    let mut spec = (*setup(Compute::Cost).spec).clone();
    spec.training.epochs = 60;
    // Nobody loses its place, and no deadline passes.
    (spec.timing.epoch_deadline, spec.timing.eviction) = (Millis::from_secs(600), Millis::from_secs(30));
    if seed % 2 == 1 {
        (spec.mirror.url, spec.mirror.checkpoint_epochs) = ("file:///mirror".to_owned(), 1);
    }
    let mut setup = Setup::new(spec, seed, 3, HOSTS + random.below(3));
    setup.costs.parameters = 1000;
    for host in &mut setup.hosts {
        host.speed = random.between(0.5, 1.5);
    }
    // Faults that follow upon each other hit what is being repaired; after the others all has to be well again.
    let most_apart = if random.chance(0.5) { 2 * SECOND } else { 6 * SECOND };
    let mut at = 3 * SECOND;
    while at < HARRIED {
        let (host, away) = (random.below(setup.hosts.len()), random.duration(Duration::ZERO, SECOND));
        setup.schedule.extend([(at, Fault::Crash(host)), (at + away, Fault::Restart(host))]);
        at += random.duration(SECOND / 10, most_apart);
    }
    (setup, at)
}

#[test]
fn no_sample_is_lost_however_often_hosts_start_again() {
    for seed in 0..SEEDS {
        let (setup, until) = harried(seed);
        let bound = liveness::bound(&setup.spec);
        let samples = setup.spec.training.samples_per_epoch.into();
        let options = Options::of(&setup).healed(Instant::ZERO + until, bound);
        let mut world = World::new(setup);
        world.watch(Box::new(EverySample { samples, merged: None, merges: BTreeSet::new() }));
        all(&options).into_iter().for_each(|checker| world.watch(checker));
        let ending = world.run(until + bound);
        assert!(matches!(ending, Ending::Finished(_)), "seed {seed}: {ending:?}");
    }
}

/// Who is in each stage at `at`, if nothing goes wrong.
fn crews(setup: &Setup, at: Duration) -> Vec<Vec<usize>> {
    let mut world = World::new(setup.clone());
    while world.now() < Instant::ZERO + at && world.step(at) {}
    let state = world.best_informed().expect("a host that runs").state();
    let host = |peer| world.index_of(peer).expect("a host of this world");
    state.spec().stages().map(|stage| state.replicas(stage).map(host).collect()).collect()
}

/// Counts merges that were passed over after the fact, once for each host that hears of it.
struct Undone(Rc<Cell<u32>>);

impl Observer for Undone {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let undone = matches!(seen.seen, Seen::Notice(Notice::State(StateEvent::Undone(..))));
        self.0.set(self.0.get() + u32::from(undone));
        Ok(())
    }
}

#[test]
fn a_run_goes_on_though_all_miners_of_a_stage_are_gone_for_good() {
    let (undone, mut spared) = (Rc::new(Cell::new(0)), 0);
    // From the middle of one epoch to that of another; a merge is lost only to those who die right after it.
    for twentieths in 60..120 {
        let at = SECOND * twentieths / 20;
        let mut spec = (*setup(Compute::Cost).spec).clone();
        (spec.mirror.url, spec.mirror.checkpoint_epochs) = ("file:///mirror".to_owned(), 1);
        spec.timing.eviction = Millis::from_secs(5);
        let mut setup = Setup::new(spec, 5, 3, HOSTS);
        setup.costs.parameters = 1000;
        let crews = crews(&setup, at);
        let candidates = |crew: &&Vec<usize>| crew.iter().filter(|host| **host < 3).count();
        let lost = crews.iter().min_by_key(candidates).expect("two stages");
        let schedule = lost.iter().map(|host| (at, Fault::Crash(*host))).collect();
        let before = undone.get();
        let witness = Box::new(Undone(Rc::clone(&undone)));
        let world = finished_before(Setup { schedule, ..setup }, at, Some(witness));
        spared += u32::from(undone.get() == before);
        let state = world.best_informed().expect("a host that runs").state();
        assert_eq!(state.members().len(), HOSTS - lost.len());
    }
    assert!(undone.get() > 0 && spared > 0, "{} and {spared}", undone.get());
}
