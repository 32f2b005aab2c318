//! Scores by the loss: validators evaluate the merges of a swarm of one stage, in which some miners contribute something else than
//! their work, and none of their epochs is replayed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use iota_protocol::PeerId;
use iota_protocol::RunSpec;
use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::scores::Row;
use iota_protocol::spec::{ScoredBy, TrainingMode};
use iota_protocol::time::Millis;
use iota_protocol::validation::DismissReason;
use iota_sim::adversary::Kind;
use iota_sim::checker::{Options, all};
use iota_sim::observe::{Observation, Observer, Seen, Violation};
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, Setup, World, identity};

const LIMIT: Duration = Duration::from_secs(6000);
const MINERS: usize = 12;
const VALIDATORS: usize = 4;
const EPOCHS: u32 = 16;

/// One stage of miners, of which the last are these, and validators.
fn setup(seed: u64, adversaries: &[Kind]) -> Setup {
    let mut spec = RunSpec::default();
    spec.pipeline.stages = 1;
    spec.pipeline.start_replicas = u16::try_from(MINERS).expect("few");
    spec.training.mode = TrainingMode::Local;
    spec.training.epochs = EPOCHS;
    spec.training.samples_per_epoch = 8 * u32::try_from(MINERS).expect("few");
    spec.training.inner_steps = 1;
    spec.timing.epoch_deadline = Millis::from_secs(20);
    spec.timing.merge_deadline = Millis::from_secs(6);
    spec.validation.replay_share = 0.0;
    spec.scores.by = ScoredBy::Loss;
    spec.scores.evaluation_cost = 10.0;
    spec.scores.evaluated = u16::try_from(MINERS).expect("few");
    let mut setup = Setup::new(spec, seed, 1, MINERS + VALIDATORS);
    setup.compute = Compute::Toy;
    setup.costs.parameters = 1024;
    for host in &mut setup.hosts[MINERS..] {
        // Epochs are short beside what evaluations take.
        (host.miner, host.validator, host.speed) = (false, true, 40.0);
    }
    for (host, kind) in setup.hosts[..MINERS].iter_mut().rev().zip(adversaries) {
        host.adversary = Some(*kind);
    }
    setup
}

/// What the log of one honest peer says.
#[derive(Default)]
struct Record {
    rated: u32,
    rows: BTreeMap<PeerId, Row>,
    dismissed: Vec<(PeerId, DismissReason)>,
}

struct Recorder(Rc<RefCell<Record>>);

impl Observer for Recorder {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let (Seen::Notice(Notice::State(event)), Some(0), Some(peer)) =
            (seen.seen, Some(seen.host), seen.peer)
        else {
            return Ok(());
        };
        let mut record = self.0.borrow_mut();
        match event {
            StateEvent::Rated(_) => record.rated += 1,
            StateEvent::Dismissed(peer, reason) => record.dismissed.push((*peer, *reason)),
            StateEvent::Finished => {
                let state = peer.state();
                let rows = state.scores().table(&state.spec().scores, &state.versions());
                record.rows = rows.into_iter().map(|row| (row.peer, row)).collect();
            }
            _ => {}
        }
        Ok(())
    }
}

fn run(setup: Setup) -> Record {
    let record = Rc::new(RefCell::new(Record::default()));
    let checkers = all(&Options::of(&setup));
    let mut world = World::new(setup);
    checkers.into_iter().for_each(|checker| world.watch(checker));
    world.watch(Box::new(Recorder(Rc::clone(&record))));
    let ending = world.run(LIMIT);
    assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
    drop(world);
    Rc::try_unwrap(record).ok().expect("the world is gone").into_inner()
}

#[test]
fn whoever_contributes_something_else_than_its_work_earns_next_to_nothing() {
    let kinds = [Kind::Copycat, Kind::FreeRiderNoise, Kind::SignFlip, Kind::Lazy, Kind::FreeRiderReplay];
    for seed in [1, 2] {
        let record = run(setup(seed, &kinds));
        assert_eq!(record.rated, EPOCHS, "every merge is rated, none twice");
        assert_eq!(record.dismissed, [], "evaluators agree");
        let score = |host: usize| record.rows[&identity(seed, host).peer()].score_micro;
        let honest = 0..MINERS - kinds.len();
        let mean = honest.clone().map(score).sum::<u64>() / u64::try_from(honest.len()).expect("few");
        for host in honest {
            assert!(2 * score(host) > mean, "seed {seed}, honest host {host}: {} of {mean}", score(host));
        }
        for (host, kind) in (0..MINERS).rev().zip(kinds) {
            assert!(10 * score(host) < mean, "seed {seed}, {}: {} of {mean}", kind.name(), score(host));
        }
        let trust = |host: usize| record.rows[&identity(seed, host).peer()].standing.map(|of| of.trust);
        // A copy stands out, too, and may have been replayed before it is rated.
        let convicted = !record.rows[&identity(seed, MINERS - 1).peer()].failures.is_empty();
        assert!(convicted || trust(MINERS - 1) == Some(0.0), "seed {seed}: who copies is named for it");
        assert!((0..MINERS - kinds.len()).all(|host| trust(host) == Some(1.0)), "and nobody honest is");
    }
}

#[test]
fn a_validator_that_makes_numbers_up_changes_nobodys_and_is_one_no_more() {
    let mut lied = setup(3, &[]);
    lied.hosts[MINERS].adversary = Some(Kind::FalseEvaluator);
    let (clean, lied) = (run(setup(3, &[])), run(lied));
    assert_eq!(clean.dismissed, []);
    assert_eq!(lied.dismissed, [(identity(3, MINERS).peer(), DismissReason::WrongVerdict)]);
    for (peer, row) in &clean.rows {
        let (with, without) = (lied.rows[peer].score_micro, row.score_micro);
        // Another log draws other samples.
        assert!(without > 0 && with.abs_diff(without) * 2 < without, "{}: {with}, {without}", peer.short());
    }
}
