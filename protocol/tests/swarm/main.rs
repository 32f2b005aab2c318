//! Whole swarms of protocol peers in virtual time: real state machines, a made-up network and engine.

mod joining;
mod leaving;
mod mirror;
mod replay;
mod room;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use iota_protocol::limits::BLOB_EPOCHS_KEPT;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::{Epoch, Hash, StageIndex};
use world::{Fault, World};

const MINUTES: u64 = 60;

/// Every replica of a stage holds the same weights of the last version.
fn assert_replicas_agree(world: &World) {
    let mut by_stage: BTreeMap<StageIndex, BTreeMap<Hash, usize>> = BTreeMap::new();
    for weights in world.alive().filter_map(|i| world.peer(i).miner().and_then(|miner| miner.weights())) {
        assert_eq!(weights.version, Epoch(world.epochs()), "not at the last version");
        *by_stage.entry(weights.stage).or_default().entry(weights.hash).or_default() += 1;
    }
    assert_eq!(by_stage.len(), world.stages(), "every stage has a replica");
    for (stage, hashes) in by_stage {
        assert_eq!(hashes.len(), 1, "stage {stage} has different weights: {hashes:?}");
    }
}

/// In every merge, every sample of the epoch was in exactly one contribution.
fn assert_every_sample_once(world: &World) {
    let merges = world.events().iter().filter_map(|event| match event {
        StateEvent::Merged(stage, epoch, samples, _) => Some((*stage, *epoch, *samples)),
        _ => None,
    });
    let merges: Vec<_> = merges.collect();
    assert_eq!(merges.len(), world.stages() * world.epochs() as usize);
    for (stage, epoch, samples) in merges {
        assert_eq!(samples, world.samples_per_epoch(), "stage {stage} epoch {epoch}");
    }
}

/// All peers, the dead too, have the same log as far as they have one; the living can prove all of it.
fn assert_logs_agree(world: &World) {
    let longest =
        world.alive().map(|i| world.peer(i).log()).max_by_key(|log| log.len()).expect("somebody lives");
    for i in 0..world.len() {
        let log = world.peer(i).log();
        assert_eq!(log.chain(log.len()), longest.chain(log.len()), "peer {i} has another history");
    }
    for i in world.alive() {
        let log = world.peer(i).log();
        assert_eq!(log.certified(), longest.len() as u64, "peer {i} cannot prove the end of its log");
    }
}

fn finish(mut world: World) -> World {
    let done = world.run_for(Duration::from_secs(20 * MINUTES), World::finished);
    assert!(done, "not finished after {:?} of virtual time\n{}", world.elapsed(), world.describe());
    assert_replicas_agree(&world);
    world
}

#[test]
fn a_swarm_trains_all_epochs_and_replicas_agree() {
    for mode in [TrainingMode::Synchronous, TrainingMode::Local] {
        for (stages, replicas) in [(1, 1), (1, 3), (3, 1), (3, 2), (2, 4)] {
            let world = finish(World::new(7, stages, replicas, mode));
            assert_every_sample_once(&world);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let trace = |seed| finish(World::new(seed, 3, 2, TrainingMode::Local)).trace();
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn a_killed_miners_samples_are_issued_again_and_counted_once() {
    for victim in 3..6 {
        for at in [3, 5, 8, 11] {
            let mut world = World::new(victim as u64 * 100 + at, 3, 2, TrainingMode::Synchronous);
            world.schedule(Duration::from_secs(at), Fault::Kill(victim));
            let world = finish(world);
            assert_every_sample_once(&world);
            assert!(
                world.events().iter().any(|event| matches!(event, StateEvent::Evicted(..))),
                "nobody was evicted"
            );
        }
    }
}

#[test]
fn the_run_survives_its_leader() {
    for at in [2, 4, 7] {
        let mut world = World::new(at, 3, 2, TrainingMode::Synchronous);
        world.schedule(Duration::from_secs(at), Fault::KillLeader);
        let mut world = finish(world);
        world.run_for(Duration::from_secs(3), |_| false);
        assert_logs_agree(&world);
        assert_every_sample_once(&world);
        assert!(world.election_time() < Duration::from_secs(5), "election took {:?}", world.election_time());
    }
}

#[test]
fn a_frozen_miner_returns_and_takes_part_again() {
    let mut world = World::with_epochs(5, 3, 2, TrainingMode::Local, 40);
    world.schedule(Duration::from_secs(4), Fault::Freeze(4, Duration::from_secs(20)));
    let world = finish(world);
    let peer = world.peer(4).id();
    let admitted = world
        .events()
        .iter()
        .filter(|event| matches!(event, StateEvent::Admitted(p, _) if *p == peer))
        .count();
    assert_eq!(admitted, 2, "admitted at the start and after the freeze");
}

#[test]
fn a_late_joiner_contributes_in_the_next_epoch() {
    // It may be moved to the slowest stage before it settles, so some epochs are left.
    let mut world = World::with_epochs(9, 3, 2, TrainingMode::Local, 8);
    world.schedule(Duration::from_secs(6), Fault::Join);
    let world = finish(world);
    let joiner = world.peer(6).id();
    let stage = world.peer(6).miner().and_then(|miner| miner.weights()).expect("holds weights").stage;
    let closed = &world.peer(0).state().stages()[stage.as_usize()].closed;
    assert!(
        closed.iter().all(|closed| closed.plan.submitters.iter().any(|s| s.peer == joiner)),
        "the joiner submitted"
    );
    let arrival = *world.peer(6).arrival();
    let steps = [arrival.connected, arrival.admitted, arrival.ready, arrival.counted];
    assert!(steps.iter().all(Option::is_some) && steps.is_sorted(), "{steps:?}");
    assert_eq!(world.arrived(6), Some(arrival), "it was told once, when the first contribution counted");
}

#[test]
fn lossy_gossip_and_failing_transfers_only_cost_time() {
    for seed in 0..8 {
        // What was taken and lost is pushed again after a quarter of the epoch's deadline, 7.5 s, and then after twice that. A stage beside
        // which the epoch is settled is cut off two silences after it last got on, which with silences of 3 s would come first.
        let mut world = World::with(seed, 3, 2, TrainingMode::Synchronous, 5, |spec| {
            spec.timing.eviction = Millis::from_secs(15);
        });
        world.lose(0.15);
        let world = finish(world);
        assert_every_sample_once(&world);
    }
}

#[test]
fn activations_that_overtake_the_decision_they_belong_to_are_kept() {
    for seed in 0..8 {
        // An audit would take a merge two messages longer.
        let mut world = World::with(seed, 3, 2, TrainingMode::Local, 5, |spec| spec.merge.audit_share = 0.0);
        world.slow_gossip(Duration::from_millis(400));
        let world = finish(world);
        assert_every_sample_once(&world);
        let released = world.events().iter().filter(|event| matches!(event, StateEvent::Released(..)));
        assert_eq!(released.count(), 0, "seed {seed}: nobody was late");
        // One that was forgotten is pushed again after a quarter of the epoch's deadline, 7.5 s.
        assert!(world.elapsed() < Duration::from_secs(23), "seed {seed} took {:?}", world.elapsed());
    }
}

#[test]
fn nothing_of_settled_epochs_is_kept_though_members_come_and_go() {
    for seed in 0..3 {
        let mut world = World::with_epochs(seed, 2, 2, TrainingMode::Local, 12);
        world.schedule(Duration::from_secs(4), Fault::Freeze(3, Duration::from_secs(12)));
        world.schedule(Duration::from_secs(6), Fault::Join);
        let world = finish(world);
        for i in world.alive() {
            for tag in world.tags(i) {
                let epoch: u32 =
                    tag.split('/').nth(2).and_then(|epoch| epoch.parse().ok()).expect("a number");
                let oldest = world.epochs() - BLOB_EPOCHS_KEPT;
                assert!(epoch >= oldest, "peer {i} keeps {tag} after {} epochs", world.epochs());
            }
        }
    }
}
