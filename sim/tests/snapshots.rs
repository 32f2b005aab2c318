//! Logs that are cut: whoever was away goes on from the state that the log names, and nobody keeps what that stands for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::RunState;
use iota_protocol::wire::encode;
use iota_protocol::{Instant, LogIndex, PeerId, RunSpec};
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
    watched(setup, healed, None)
}

/// [`finished`] before the eyes of somebody else, too.
fn watched(setup: Setup, healed: Duration, witness: Option<Box<dyn Observer>>) -> (World, BTreeSet<usize>) {
    let bound = liveness::bound(&setup.spec);
    let options = Options::of(&setup).healed(Instant::ZERO + healed, bound);
    let skips = Rc::default();
    let mut world = World::new(setup);
    all(&options).into_iter().chain(witness).for_each(|checker| world.watch(checker));
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

/// Notes who led.
struct Leaders(Rc<RefCell<BTreeSet<PeerId>>>);

impl Observer for Leaders {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        if let Seen::Notice(Notice::Leader(Some(leader))) = seen.seen {
            self.0.borrow_mut().insert(*leader);
        }
        Ok(())
    }
}

#[test]
fn scores_survive_restarts_changes_of_leader_and_a_return_after_many_epochs() {
    let mut setup = setup(40);
    let (away, complete) = (HOSTS - 1, HOSTS - 2);
    let absence = |host, from, to| [(from * SECOND, Fault::Crash(host)), (to * SECOND, Fault::Restart(host))];
    let absences = [absence(away, 5, 40), absence(0, 10, 14), absence(1, 20, 24), absence(2, 30, 34)];
    setup.schedule = absences.into_iter().flatten().collect();
    setup.schedule.sort_by_key(|(at, _)| *at);
    setup.hosts[complete].snapshots_every = u64::MAX;
    Arc::make_mut(&mut setup.spec).scores.window = 40;
    let (spec, parameters) = (Arc::clone(&setup.spec), setup.costs.parameters);
    let leaders = Rc::default();
    let (world, skips) = watched(setup, 41 * SECOND, Some(Box::new(Leaders(Rc::clone(&leaders)))));
    assert_eq!(skips, [away].into(), "it was away for longer than a log is kept");
    assert_eq!(leaders.borrow().len(), CANDIDATES, "all of them led");
    let peer = |host: usize| world.hosts()[host].peer().expect("it runs");
    // Anybody who has the log computes the same, from its first entry on.
    let log = peer(complete).log();
    assert_eq!(log.first(), 0, "one host keeps all of it");
    let mut state = RunState::new(spec, &[parameters; 2]);
    for index in 0..log.len() {
        let (entry, chain) = log.entry(index).expect("it is kept");
        state.apply(LogIndex(index as u64), chain, entry.as_ref());
    }
    let scores = |state: &RunState| encode(state.scores());
    for host in 0..HOSTS {
        assert_eq!(scores(peer(host).state()), scores(&state), "host {host}");
    }
    let table = state.scores().table(&state.spec().scores, &state.versions());
    assert_eq!(table.len(), HOSTS);
    let row = |host: usize| table.iter().find(|row| row.peer == peer(host).id()).expect("it is scored");
    assert!(row(away).samples > 0 && row(away).samples < row(complete).samples, "{table:?}");
}
