//! Swarms in which a disk fills up and is emptied again.

use std::time::Duration;

use iota_protocol::miner::Kept;
use iota_protocol::peer::room::{DiskUse, Room};
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::message::EvictReason;
use iota_protocol::{Epoch, PeerId};

use crate::world::{Fault, World};
use crate::{assert_every_sample_once, finish};

const MINUTE: Duration = Duration::from_secs(60);
/// The miner whose disk it is; no candidate.
const MINER: usize = 4;

/// A disk of which this share of the quota is used.
const fn used(percent: u64) -> DiskUse {
    DiskUse { kept: percent, quota: Some(100), free: u64::MAX, size: u64::MAX }
}

fn world(seed: u64) -> World {
    World::with_epochs(seed, 3, 2, TrainingMode::Synchronous, 30)
}

/// What became of a peer's place, in order.
fn places(world: &World, peer: PeerId) -> Vec<Option<EvictReason>> {
    let told = world.events().iter().filter_map(|event| match event {
        StateEvent::Admitted(of, _) if *of == peer => Some(None),
        StateEvent::Evicted(of, reason) if *of == peer => Some(Some(*reason)),
        _ => None,
    });
    told.collect()
}

/// Nobody else had to wait for it until a deadline.
fn assert_nobody_was_late(world: &World) {
    let late = |event: &&StateEvent| {
        matches!(event, StateEvent::Released(..) | StateEvent::CutOff(..) | StateEvent::Aborted(..))
    };
    assert_eq!(world.events().iter().find(late), None);
}

#[test]
fn a_miner_without_room_leaves_at_once_and_comes_back_when_there_is_some() {
    for seed in 0..6 {
        let mut world = world(seed);
        let peer = world.peer(MINER).id();
        world.schedule(Duration::from_millis(3000 + seed * 130), Fault::Disk(MINER, used(100)));
        assert!(world.run_for(MINUTE, |world| places(world, peer).len() == 2));
        assert_eq!(world.peer(MINER).room(), Room::Full);
        assert_eq!(places(&world, peer), [None, Some(EvictReason::Left)], "seed {seed}");
        let version = |world: &World| world.best().state().stages().iter().map(|stage| stage.version).min();
        let then = version(&world);
        assert!(
            world.run_for(MINUTE, |world| version(world) >= then.map(|epoch| Epoch(epoch.0 + 2))),
            "others go on"
        );
        assert_eq!(world.best().state().stage_of(peer), None, "it asks for nothing");
        world.schedule(Duration::from_millis(1), Fault::Disk(MINER, used(96)));
        world.schedule(Duration::from_millis(500), Fault::Disk(MINER, used(10)));
        let world = finish(world);
        assert_eq!(places(&world, peer), [None, Some(EvictReason::Left), None], "seed {seed}");
        assert_every_sample_once(&world);
        assert_nobody_was_late(&world);
    }
}

#[test]
fn a_miner_with_little_room_ends_its_epoch_before_it_leaves() {
    for seed in 0..6 {
        let mut world = world(seed);
        let peer = world.peer(MINER).id();
        // As it knows itself: what is on its way to it keeps it from nothing.
        let at_work = |world: &World| {
            let state = world.peer(MINER).state();
            let stage = state.stage_of(peer).and_then(|stage| state.stage(stage));
            stage.and_then(|stage| stage.training()).filter(|of| of.deal.is_live(peer)).map(|of| of.epoch)
        };
        assert!(world.run_for(MINUTE, |world| at_work(world) >= Some(Epoch(2))));
        let (stage, epoch) = (world.best().state().stage_of(peer).expect("a place"), at_work(&world));
        world.schedule(Duration::ZERO, Fault::Disk(MINER, used(90)));
        assert!(world.run_for(MINUTE, |world| places(world, peer).len() == 2));
        let closed = &world.best().state().stage(stage).expect("a stage").closed;
        let merged =
            closed.iter().find(|closed| Some(closed.training.epoch) == epoch).expect("its epoch is closed");
        assert!(
            merged.plan.submitters.iter().any(|submission| submission.peer == peer),
            "seed {seed}: it is in the merge"
        );
        assert_eq!(places(&world, peer), [None, Some(EvictReason::Left)], "seed {seed}");
        world.schedule(Duration::from_secs(3), Fault::Disk(MINER, used(79)));
        let world = finish(world);
        assert_eq!(places(&world, peer).len(), 3, "seed {seed}: it is back");
        assert_every_sample_once(&world);
        assert_nobody_was_late(&world);
    }
}

#[test]
fn what_a_miner_without_room_held_is_let_go_of_as_epochs_are_settled() {
    let mut world = world(7);
    let peer = world.peer(MINER).id();
    world.schedule(Duration::from_secs(4), Fault::Disk(MINER, used(100)));
    assert!(world.run_for(MINUTE, |world| places(world, peer).len() == 2));
    let kept = |world: &World| world.tags(MINER).filter_map(Kept::parse).collect::<Vec<_>>();
    let before = kept(&world);
    assert!(!before.is_empty());
    assert!(world.run_for(MINUTE * 20, World::finished));
    let after = kept(&world);
    let epochs = |kept: &[Kept]| kept.iter().filter(|kept| matches!(kept, Kept::Epoch(..))).count();
    assert_eq!(epochs(&after), 0, "of {before:?}");
    assert!(
        after.iter().any(|kept| matches!(kept, Kept::State(..))),
        "the state that it would go on from is kept"
    );
}
