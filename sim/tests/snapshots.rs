//! Logs that are cut: whoever was away goes on from the state that the log names, and nobody keeps what that stands for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::{Instant, RunSpec};
use iota_sim::checker::{Options, all, liveness};
use iota_sim::double::Double;
use iota_sim::faults::Fault;
use iota_sim::observe::{Observation, Observer, Seen, Violation};
use iota_sim::world::{Ending, Setup, World};
use omnipaxos::storage::Storage as _;

const SECOND: Duration = Duration::from_secs(1);
/// Hosts, of which the first are candidates.
const HOSTS: usize = 6;
const CANDIDATES: usize = 3;
/// Entries between two snapshots: those of three epochs.
const EVERY: u64 = 24;

fn setup(epochs: u32) -> Setup {
    let mut spec = RunSpec::default();
    (spec.pipeline.stages, spec.pipeline.start_replicas) = (2, 3);
    (spec.training.epochs, spec.training.samples_per_epoch) = (epochs, 12);
    spec.timing.epoch_deadline = "20s".parse().expect("a duration");
    spec.timing.merge_deadline = "5s".parse().expect("a duration");
    let mut setup = Setup::new(spec, 5, CANDIDATES, HOSTS);
    setup.costs.parameters = 1000;
    setup.hosts.iter_mut().for_each(|host| host.snapshots_every = EVERY);
    setup
}

/// Notes which hosts went on from a snapshot that they had fetched.
struct Skips(Rc<RefCell<BTreeSet<usize>>>);

impl Observer for Skips {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        if matches!(seen.seen, Seen::Notice(Notice::Snapshot(_))) {
            self.0.borrow_mut().insert(seen.host);
        }
        Ok(())
    }
}

/// Runs under all checkers to its end; which hosts went on from a snapshot.
fn finished(setup: Setup, healed: Duration) -> (World, BTreeSet<usize>) {
    let bound = liveness::bound(&setup.spec);
    let options = Options::of(&setup).healed(Instant::ZERO + healed, bound);
    let skips = Rc::default();
    let mut world = World::new(setup);
    all(&options).into_iter().for_each(|checker| world.watch(checker));
    world.watch(Box::new(Skips(Rc::clone(&skips))));
    let ending = world.run(healed + bound * 9);
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
    let skips = skips.borrow().clone();
    (world, skips)
}

#[test]
fn nobody_keeps_more_of_the_log_than_a_snapshot_and_what_followed() {
    let (world, skips) = finished(setup(30), Duration::ZERO);
    assert_eq!(skips, BTreeSet::new(), "nobody was away");
    for host in world.hosts() {
        let log = host.peer().expect("it runs").log();
        let kept = log.len() - log.first();
        assert!(log.len() > 150 && kept < 3 * 24, "{kept} of {} entries", log.len());
    }
    for candidate in &world.hosts()[..CANDIDATES] {
        let kept = candidate.disk().get_log_len().expect("a disk in memory");
        assert!(kept < 4 * 24, "{kept} entries in the storage of consensus");
    }
}

#[test]
fn whoever_was_away_goes_on_from_a_snapshot() {
    let mut setup = setup(40);
    let away = HOSTS - 1;
    setup.schedule = vec![(5 * SECOND, Fault::Crash(away)), (40 * SECOND, Fault::Restart(away))];
    let (world, skips) = finished(setup, 41 * SECOND);
    assert_eq!(skips, [away].into());
    let state = |host: usize| world.hosts()[host].peer().expect("it runs").state().to_bytes();
    assert_eq!(state(away), state(0));
}

#[test]
fn a_candidate_that_has_lost_its_disk_takes_its_place_behind_a_snapshot() {
    let mut setup = setup(60);
    setup.hosts[1].double = Some(Double::LosesItsLog);
    setup.schedule = vec![
        (10 * SECOND, Fault::Crash(1)),
        (30 * SECOND, Fault::Restart(1)),
        // Without the one that came back there is no majority from now on.
        (50 * SECOND, Fault::Crash(2)),
    ];
    setup.spares_last_copies = true;
    let (world, skips) = finished(setup, 51 * SECOND);
    assert_eq!(skips, [1].into());
    assert!(world.now() > Instant::ZERO + 50 * SECOND, "it was not over before");
}

#[test]
fn the_log_names_states_by_the_same_hash_wherever_it_is_folded() {
    let (world, _) = finished(setup(12), Duration::ZERO);
    let bytes = |host: usize| world.hosts()[host].peer().expect("it runs").state().to_bytes();
    for host in 1..HOSTS {
        assert_eq!(bytes(0), bytes(host), "host {host}");
    }
    let state = world.hosts()[0].peer().expect("it runs").state();
    let read = state.read(&bytes(0)).expect("its own bytes");
    assert_eq!((read.to_bytes(), read.applied()), (bytes(0), state.applied()));
    state.read(&bytes(0)[1..]).expect_err("no state");
}
