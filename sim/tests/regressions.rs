//! Situations that runs drawn from seeds once did not survive, each by itself.

use std::time::Duration;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::{Instant, RunSpec};
use iota_sim::checker::{Options, all, liveness};
use iota_sim::faults::Fault;
use iota_sim::observe::{Observation, Observer, Seen, Violation};
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, Setup, World};

const SECOND: Duration = Duration::from_secs(1);

/// Objects to cutoffs: a swarm that nobody disturbs needs none.
struct NoCutoff;

impl Observer for NoCutoff {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        match seen.seen {
            Seen::Notice(Notice::State(StateEvent::CutOff(stage, epoch))) => Err(Violation {
                checker: "no_cutoff",
                at: seen.at,
                host: Some(seen.host),
                what: format!("stage {stage} epoch {epoch}"),
            }),
            _ => Ok(()),
        }
    }
}

fn setup(credits: u16) -> Setup {
    let mut spec = RunSpec::default();
    spec.training.mode = TrainingMode::Synchronous;
    spec.training.epochs = 3;
    spec.training.samples_per_epoch = 12;
    spec.pipeline.credits = credits;
    spec.timing.epoch_deadline = "15s".parse().expect("a duration");
    spec.timing.eviction = "60s".parse().expect("a duration");
    let mut setup = Setup::new(spec, 3, 1, 6);
    setup.costs.parameters = 1000;
    setup
}

fn run(setup: Setup, healed: Duration, also: Option<Box<dyn Observer>>) -> Ending {
    let bound = liveness::bound(&setup.spec);
    let options = Options::of(&setup).healed(Instant::ZERO + healed, bound);
    let mut world = World::new(setup);
    all(&options).into_iter().chain(also).for_each(|observer| world.watch(observer));
    world.run(healed + bound * 4)
}

#[test]
fn a_receiver_that_had_no_credit_is_asked_again() {
    let ending = run(setup(1), Duration::ZERO, Some(Box::new(NoCutoff)));
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
}

#[test]
fn an_epoch_that_was_cut_off_before_anything_was_done_goes_on() {
    let mut setup = setup(32);
    // Everybody is alone for longer than until the cutoff; the leader hears nobody, and evicts nobody yet.
    let alone = |host| (3 * SECOND, Fault::Group(host, u8::try_from(host).expect("few")));
    setup.schedule = (1..6).map(alone).chain([(50 * SECOND, Fault::Heal)]).collect();
    let ending = run(setup, 50 * SECOND, None);
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
}

#[test]
fn inputs_left_over_by_a_cutoff_take_no_credit_from_later_epochs() {
    for credits in [1, 2] {
        let mut setup = setup(credits);
        // Slow enough for cutoffs in the middle of the work.
        setup.hosts.iter_mut().for_each(|host| host.speed = 0.05);
        setup.schedule = (0..6).map(|host| (80 * SECOND, Fault::Speed(host, 1.0))).collect();
        let ending = run(setup, 80 * SECOND, None);
        assert!(matches!(ending, Ending::Finished(_)), "{credits} credits: {ending:?}");
    }
}

#[test]
fn work_goes_on_when_a_full_disk_is_emptied() {
    for compute in [Compute::Cost, Compute::Toy] {
        let mut setup = setup(32);
        setup.compute = compute;
        let size = setup.hosts[1].disk;
        setup.schedule = vec![(3 * SECOND, Fault::Disk(1, 1 << 20)), (6 * SECOND, Fault::Disk(1, size))];
        let ending = run(setup, 6 * SECOND, Some(Box::new(NoCutoff)));
        assert!(matches!(ending, Ending::Finished(_)), "{compute:?}: {ending:?}");
    }
}
