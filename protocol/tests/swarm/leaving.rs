//! Miners that leave politely: what they have begun counts, what they hold is handed over.

use std::collections::BTreeMap;
use std::time::Duration;

use iota_protocol::StageIndex;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::{RunSpec, TrainingMode};
use iota_protocol::wire::message::EvictReason;

use crate::world::{Fault, World};
use crate::{assert_every_sample_once, finish};

const MODES: [TrainingMode; 2] = [TrainingMode::Synchronous, TrainingMode::Local];
/// A miner that is no candidate.
const LEAVER: usize = 5;

/// Two stages with one candidate, so that all miners of a stage but it may go.
fn world(seed: u64, replicas: u16) -> World {
    let alone = |spec: &mut RunSpec| spec.orchestrator.candidates.truncate(1);
    World::with(seed, 2, replicas, TrainingMode::Synchronous, 8, alone)
}

fn wait(world: &mut World, seconds: u64) {
    world.run_for(Duration::from_secs(seconds), |_| false);
}

fn leave(world: &mut World, peer: usize) {
    world.schedule(Duration::ZERO, Fault::Leave(peer));
}

fn stage_of(world: &World, peer: usize) -> Option<StageIndex> {
    world.best().state().stage_of(world.peer(peer).id())
}

fn assert_left(world: &World, peer: usize) {
    let id = world.peer(peer).id();
    let reasons: Vec<EvictReason> = world
        .events()
        .iter()
        .filter_map(|event| match event {
            StateEvent::Evicted(evicted, reason) if *evicted == id => Some(*reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [EvictReason::Left]);
    assert!(world.left(peer).is_some(), "it was told that it may go");
}

/// Nobody did again what `peer` had done; it may have done again what `crashed` had. Returns the last sample that it did.
fn assert_done_once(world: &World, peer: usize, crashed: Option<usize>) -> Option<u64> {
    let mut done: BTreeMap<(StageIndex, u64), Vec<usize>> = BTreeMap::new();
    for (stage, sample, by) in world.trained() {
        done.entry((*stage, *sample)).or_default().push(*by);
    }
    for ((stage, sample), by) in done.iter().filter(|(_, by)| by.contains(&peer)) {
        let by: Vec<usize> = by.iter().copied().skip_while(|done| Some(*done) == crashed).collect();
        assert_eq!(by, [peer], "stage {stage} sample {sample}");
    }
    done.into_iter().filter(|(_, by)| by.contains(&peer)).map(|((_, sample), _)| sample).max()
}

#[test]
fn a_leaver_finishes_its_epoch_and_takes_part_in_no_other() {
    for mode in MODES {
        for at in 4..8 {
            let mut world = World::with_epochs(at, 2, 3, mode, 12);
            wait(&mut world, at);
            let stage = stage_of(&world, LEAVER).expect("a place");
            let epoch = world.best().state().stage(stage).expect("its stage").version;
            leave(&mut world, LEAVER);
            let world = finish(world);
            assert_left(&world, LEAVER);
            assert_every_sample_once(&world);
            let last = assert_done_once(&world, LEAVER, None).expect("it did some");
            // It may be named by the epoch that is being opened.
            assert!(last < u64::from(epoch.0 + 2) * world.samples_per_epoch(), "{last} after epoch {epoch}");
        }
    }
}

#[test]
fn nobody_does_a_leavers_work_again_though_its_neighbours_crash() {
    for victim in [3, 4] {
        for (seed, pause) in [0, 200, 500, 1000, 2000].into_iter().enumerate() {
            let mut world = World::with_epochs(seed as u64, 2, 3, TrainingMode::Synchronous, 12);
            wait(&mut world, 5);
            leave(&mut world, LEAVER);
            world.schedule(Duration::from_millis(pause), Fault::Kill(victim));
            let world = finish(world);
            assert_left(&world, LEAVER);
            assert_every_sample_once(&world);
            assert_done_once(&world, LEAVER, Some(victim));
        }
    }
}

#[test]
fn a_stage_all_of_whose_miners_leave_is_handed_over_to_one_of_another() {
    let mut world = world(1, 3);
    wait(&mut world, 5);
    let stays = stage_of(&world, 0).expect("a place");
    let leavers: Vec<usize> = (1..6).filter(|&peer| stage_of(&world, peer) != Some(stays)).collect();
    assert!(!leavers.is_empty());
    leavers.iter().for_each(|&peer| leave(&mut world, peer));
    let world = finish(world);
    for peer in leavers {
        assert_left(&world, peer);
        assert_done_once(&world, peer, None);
    }
    assert_every_sample_once(&world);
}

#[test]
fn the_only_miner_of_a_stage_leaves_when_another_has_come_for_its_weights() {
    let mut world = world(2, 1);
    wait(&mut world, 5);
    leave(&mut world, 1);
    wait(&mut world, 60);
    let awaits = world.peer(1).leaves().map(|awaits| awaits.to_string());
    let stage = stage_of(&world, 1).expect("its place");
    assert_eq!(awaits, Some(format!("others to hold the newest weights of stage {stage}")));
    world.schedule(Duration::ZERO, Fault::Join);
    let world = finish(world);
    assert_left(&world, 1);
    assert_every_sample_once(&world);
    assert_eq!(stage_of(&world, 2), Some(stage));
}

#[test]
fn a_peer_without_a_place_has_left_at_once() {
    let mut world = world(3, 1);
    leave(&mut world, 1);
    wait(&mut world, 1);
    assert_eq!(world.left(1), Some(Duration::from_nanos(1)));
}
