//! Swarms with a mirror: checkpoints, stages that nobody holds any more, runs that go on from the mirror alone.

use std::collections::BTreeSet;
use std::time::Duration;

use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::{RunSpec, TrainingMode};
use iota_protocol::{Epoch, Hash, StageIndex};

use crate::finish;
use crate::world::{Fault, World};

/// A run of two stages with a mirror that gets a checkpoint every so many epochs.
fn world(seed: u64, epochs: u32, every: u32) -> World {
    let mirrored = |spec: &mut RunSpec| {
        spec.mirror.url = "file:///mirror".to_owned();
        spec.mirror.checkpoint_epochs = every;
    };
    World::with(seed, 2, 3, TrainingMode::Synchronous, epochs, mirrored)
}

/// Hash of the last weights of each stage.
fn last_weights(world: &World) -> BTreeSet<(StageIndex, Hash)> {
    let miners = world.alive().filter_map(|i| world.peer(i).miner());
    miners.filter_map(|miner| miner.weights()).map(|weights| (weights.stage, weights.hash)).collect()
}

fn checkpointed(world: &World) -> Vec<u32> {
    let told = world.events().iter().filter_map(|event| match event {
        StateEvent::Checkpointed(epoch) => Some(epoch.0),
        _ => None,
    });
    told.collect()
}

#[test]
fn checkpoints_are_made_at_their_epochs_and_at_the_end_and_shared_among_replicas() {
    let world = finish(world(3, 7, 3));
    assert_eq!(checkpointed(&world), [3, 6, 7]);
    assert_eq!(*world.checkpoints(), [3, 6, 7].map(Epoch).into());
    let (blobs, present) = world.mirrored();
    // Two stages: offer and one part of each checkpoint, and the partitions of each merge.
    assert!(blobs > 2 * (2 * 3 + 7), "{blobs} blobs");
    assert!(present > 0, "replicas found what others had brought");
}

#[test]
fn a_mirror_that_is_down_holds_nothing_up() {
    let mut down = world(4, 6, 2);
    down.mirror_fails(true);
    let down = finish(down);
    assert_eq!(checkpointed(&down), []);
    let up = finish(world(4, 6, 2));
    assert!(down.elapsed() < up.elapsed() * 2, "{:?} down, {:?} up", down.elapsed(), up.elapsed());
}

#[test]
fn a_mirror_that_comes_back_gets_the_checkpoints_from_then_on() {
    let mut world = world(5, 12, 2);
    world.mirror_fails(true);
    world.run_for(Duration::from_secs(600), |world| {
        world.best().state().stages().iter().all(|stage| stage.version >= Epoch(5))
    });
    assert_eq!(checkpointed(&world), []);
    world.mirror_fails(false);
    assert_eq!(checkpointed(&finish(world)).last(), Some(&12));
}

/// The hosts of one stage die for good when both stages have settled `epoch`, and others come. What was lost comes from the
/// checkpoint, and from the merges after it.
fn stage_lost(seed: u64, every: u32, epoch: u32) {
    let mirrored = |spec: &mut RunSpec| {
        spec.mirror.url = "file:///mirror".to_owned();
        spec.mirror.checkpoint_epochs = every;
        // One that stays: the log is not what is to be lost here.
        spec.orchestrator.candidates.truncate(1);
    };
    let mut world = World::with(seed, 2, 2, TrainingMode::Synchronous, 10, mirrored);
    let reached =
        |world: &World| world.best().state().stages().iter().all(|stage| stage.version >= Epoch(epoch));
    assert!(world.run_for(Duration::from_secs(600), reached));
    let stage_of = |i: usize| world.best().state().stage_of(world.peer(i).id());
    let lost: Vec<usize> = (1..4).filter(|&i| stage_of(i) != stage_of(0)).collect();
    assert_eq!(lost.len(), 2);
    for victim in lost {
        world.schedule(Duration::from_millis(1), Fault::Kill(victim));
        world.schedule(Duration::from_secs(5), Fault::Join);
    }
    let world = finish(world);
    let skipped = world.events().iter().filter(|event| matches!(event, StateEvent::Skipped(..))).count();
    assert!(skipped <= 1, "at most the epoch under way is passed over");
    assert_eq!(checkpointed(&world).last(), Some(&10));
}

#[test]
fn a_stage_that_nobody_holds_any_more_goes_on_from_the_newest_checkpoint() {
    stage_lost(6, 1, 4);
}

#[test]
fn merges_since_the_checkpoint_are_done_again() {
    stage_lost(7, 4, 7);
}

#[test]
fn a_run_goes_on_from_its_mirror_alone_and_ends_with_the_same_weights() {
    // With one miner each there is one way to add up an epoch.
    let mirrored = |spec: &mut RunSpec| {
        spec.mirror.url = "file:///mirror".to_owned();
        spec.mirror.checkpoint_epochs = 3;
    };
    let world = || World::with(8, 3, 1, TrainingMode::Synchronous, 9, mirrored);
    let whole = finish(world());
    let mut first = world();
    first.run_for(Duration::from_secs(600), |world| !world.checkpoints().is_empty());
    assert_eq!(*first.checkpoints(), [Epoch(3)].into());
    let resumed = finish(first.resumed());
    let opened = resumed.events().iter().filter_map(|event| match event {
        StateEvent::EpochOpened(_, epoch, _) => Some(*epoch),
        _ => None,
    });
    assert_eq!(opened.min(), Some(Epoch(3)));
    assert_eq!(last_weights(&resumed), last_weights(&whole));
}
