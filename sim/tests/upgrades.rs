//! Swarms of programs of two wire versions: when a run goes over to the next, and who is left behind.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::wire::{Outdated, Versions};
use iota_protocol::{Instant, RunSpec};
use iota_sim::checker::{self, Options};
use iota_sim::faults::Fault;
use iota_sim::observe::{Observation, Observer, Seen, Violation};
use iota_sim::scenario::{self, Request};
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, Setup, World};

const SECOND: Duration = Duration::from_secs(1);
const OLD: Versions = Versions::FIRST;
const NEW: Versions = Versions::new(1, 2);

/// What happened to versions, and to training meanwhile.
#[derive(Clone, Debug, Default)]
struct Noted {
    upgraded: Option<Instant>,
    started: Vec<(usize, Instant)>,
    outdated: Vec<(usize, Instant, Outdated)>,
    merged: Vec<Instant>,
}

#[derive(Clone, Default)]
struct Watch(Rc<RefCell<Noted>>);

impl Observer for Watch {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let mut noted = self.0.borrow_mut();
        match seen.seen {
            Seen::Started => noted.started.push((seen.host, seen.at)),
            Seen::Notice(Notice::State(StateEvent::Upgraded(2))) => {
                noted.upgraded.get_or_insert(seen.at);
            }
            Seen::Notice(Notice::State(StateEvent::Merged(..))) => noted.merged.push(seen.at),
            Seen::Notice(Notice::Outdated(why)) => noted.outdated.push((seen.host, seen.at, *why)),
            _ => {}
        }
        Ok(())
    }
}

/// Two stages, three candidates and ten hosts, all of which run the old program; deadlines pass in seconds.
fn setup(seed: u64, epochs: u32) -> Setup {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = 2;
    spec.pipeline.start_replicas = 4;
    spec.training.epochs = epochs;
    spec.training.samples_per_epoch = 20;
    spec.timing.epoch_deadline = "10s".parse().expect("a duration");
    spec.timing.merge_deadline = "5s".parse().expect("a duration");
    let mut setup = Setup::new(spec, seed, 3, 10);
    setup.costs.parameters = 1000;
    setup.hosts.iter_mut().for_each(|host| host.versions = OLD);
    setup
}

/// Each of these hosts is restarted with the new program, a few seconds apart.
fn reinstall(setup: &mut Setup, hosts: impl IntoIterator<Item = usize>) {
    for (number, host) in (0_u32..).zip(hosts) {
        setup.schedule.push((5 * SECOND + 4 * SECOND * number, Fault::Reinstall(host, NEW, 2 * SECOND)));
    }
}

/// Runs under all checkers; the run must finish. Returns what was seen, and the version in use at each host that runs.
fn run(setup: Setup) -> (Noted, Vec<(usize, u16)>) {
    let watch = Watch::default();
    let checkers = checker::all(&Options::of(&setup));
    let mut world = World::new(setup);
    world.watch(Box::new(watch.clone()));
    checkers.into_iter().for_each(|checker| world.watch(checker));
    let ending = world.run(Duration::from_secs(1800));
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
    let version = |host: usize| Some((host, world.hosts()[host].peer()?.state().wire_version()));
    let versions = (0..world.hosts().len()).filter_map(version).collect();
    let seen = watch.0.borrow().clone();
    (seen, versions)
}

#[test]
fn a_run_goes_over_to_the_next_version_when_the_last_host_speaks_it_and_never_stops() {
    let request = Request { nodes: None, seed: 7, compute: Compute::Cost, epochs: None };
    let setup = scenario::find("rolling-upgrade").expect("a scenario").setup(&request);
    let (hosts, deadline) = (setup.hosts.len(), setup.spec.timing.epoch_deadline.duration());
    let (seen, versions) = run(setup);
    let last = seen.started.iter().map(|(_, at)| *at).max().expect("hosts started");
    assert_eq!(seen.started.len(), hosts * 2, "each once with the old program and once with the new one");
    let upgraded = seen.upgraded.expect("the run goes over");
    assert!(upgraded >= last && upgraded.since(last) < 10 * SECOND, "{upgraded:?} after {last:?}");
    assert_eq!(versions, (0..hosts).map(|host| (host, 2)).collect::<Vec<_>>());
    assert_eq!(seen.outdated, []);
    let gap = seen.merged.windows(2).map(|pair| pair[1].since(pair[0])).max().expect("merges");
    assert!(gap < deadline * 2, "something is merged all the time: {gap:?}");
}

#[test]
fn a_candidate_with_the_old_program_holds_the_upgrade_off() {
    let mut setup = setup(1, 30);
    reinstall(&mut setup, (0..10).filter(|host| *host != 1));
    let (seen, versions) = run(setup);
    assert_eq!((seen.upgraded, seen.outdated.len()), (None, 0));
    assert!(versions.iter().all(|(_, version)| *version == 1), "{versions:?}");
}

#[test]
fn a_candidate_that_claims_every_version_and_leads_forces_nothing() {
    let mut setup = setup(2, 12);
    let mut spec = (*setup.spec).clone();
    spec.orchestrator.candidates[0].priority = 1;
    setup.spec = spec.into();
    setup.hosts[0].versions = Versions::new(1, u16::MAX);
    let (seen, versions) = run(setup);
    assert_eq!((seen.upgraded, seen.outdated.len()), (None, 0));
    assert!(versions.iter().all(|(_, version)| *version == 1), "{versions:?}");
}

#[test]
fn a_candidate_that_goes_back_before_the_upgrade_holds_it_off() {
    let mut setup = setup(3, 40);
    reinstall(&mut setup, 0..9);
    setup.schedule.push((30 * SECOND, Fault::Reinstall(2, OLD, 2 * SECOND)));
    reinstall(&mut setup, std::iter::repeat_n(9, 1));
    let last = setup.schedule.last_mut().expect("the last host");
    last.0 = 45 * SECOND;
    let (seen, versions) = run(setup);
    assert_eq!((seen.upgraded, seen.outdated.len()), (None, 0));
    assert!(versions.iter().all(|(_, version)| *version == 1), "{versions:?}");
}

#[test]
fn a_host_that_is_never_upgraded_stops_with_the_reason_and_everybody_else_goes_on() {
    let mut setup = setup(4, 60);
    reinstall(&mut setup, 0..9);
    let grace = setup.spec.timing.epoch_deadline.duration() * iota_protocol::limits::UPGRADE_GRACE_DEADLINES;
    let (seen, versions) = run(setup);
    let upgraded = seen.upgraded.expect("it is outvoted");
    assert!(upgraded.since(Instant::ZERO) >= grace, "and was waited for: {upgraded:?}");
    let [(host, at, why)] = seen.outdated[..] else { panic!("one host is left behind: {:?}", seen.outdated) };
    assert_eq!((host, why), (9, Outdated { decided: 2, spoken: OLD }));
    assert!(at.since(upgraded) < SECOND, "it learns at once");
    assert_eq!(versions, (0..9).map(|host| (host, 2)).collect::<Vec<_>>(), "its process has ended");
}

#[test]
fn a_host_that_comes_back_or_joins_with_the_old_program_learns_that_it_is_too_old() {
    let mut setup = setup(5, 60);
    setup.hosts.iter_mut().for_each(|host| host.versions = NEW);
    // A candidate reads it in its own log, a miner in the log that it fetches from whom it cannot understand.
    (setup.hosts[9].from_start, setup.hosts[9].versions) = (false, OLD);
    setup.schedule = vec![
        (20 * SECOND, Fault::Reinstall(2, OLD, 2 * SECOND)),
        (30 * SECOND, Fault::Reinstall(5, OLD, 2 * SECOND)),
        (40 * SECOND, Fault::Join(9)),
    ];
    let (seen, versions) = run(setup);
    assert!(seen.upgraded.expect("all speak it").since(Instant::ZERO) < 10 * SECOND);
    let mut outdated: Vec<usize> = seen.outdated.iter().map(|(host, ..)| *host).collect();
    outdated.sort_unstable();
    assert_eq!(outdated, [2, 5, 9]);
    for (host, at, _) in &seen.outdated {
        let started = seen.started.iter().filter(|(of, _)| of == host).map(|(_, at)| *at).max();
        let took = at.since(started.expect("it started"));
        assert!(took < 5 * SECOND, "host {host} took {took:?}");
    }
    assert!(versions.iter().all(|(host, version)| *version == 2 && !outdated.contains(host)), "{versions:?}");
}

/// A regression: stages that restarts had taken out of step stayed so for the rest of the run, each epoch with a few
/// samples after two deadlines, since whoever was behind waited as long as whoever was ahead.
#[test]
fn stages_that_fell_out_of_step_are_in_step_again() {
    let request = Request { nodes: None, seed: 7, compute: Compute::Cost, epochs: Some(14) };
    let mut setup = scenario::find("rolling-upgrade").expect("a scenario").setup(&request);
    // More often than epochs take: every stage loses contributions while others settle.
    setup.schedule.iter_mut().for_each(|(at, _)| *at = 2 * SECOND + at.mul_f64(8.0 / 18.0));
    let (seen, _) = run(setup);
    let end = seen.merged.last().expect("merges").since(Instant::ZERO);
    assert!(end < 450 * SECOND, "{end:?}");
}
