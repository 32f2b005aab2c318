//! Swarms of real processes whose stages lose miners unequally.

use std::collections::BTreeMap;

use crate::support::log::{decision, stored_entries};
use crate::support::{Run, Swarm, tiny};
use iota_node::events::NodeEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::wire::message::Decision;
use iota_protocol::{PeerId, RunSpec, StageIndex};
use nix::sys::signal::Signal;

/// More epochs than any machine merges while a test looks on: such a run ends when it is interrupted.
const ENDLESS: u32 = 100_000;
/// The first processes are the candidates.
const CANDIDATES: usize = 3;
/// Miners that the orchestrator leaves to a stage that gives others.
const KEPT: usize = 2;

/// Stages of one layer each, of as many miners each, every version of which goes to a mirror.
fn spec(stages: u16, miners: u16) -> RunSpec {
    let mut spec = tiny(TrainingMode::Synchronous, stages, miners, ENDLESS);
    spec.model.layers = stages.into();
    (spec.timing.heartbeat, spec.timing.eviction) = (Millis(500), Millis::from_secs(4));
    spec.mirror.checkpoint_epochs = 1;
    spec
}

/// Starts a swarm and waits until it has trained a little; returns the processes of each stage.
fn started(spec: &RunSpec) -> (Swarm, Vec<Vec<usize>>) {
    let mut swarm = Swarm::start(spec, &[]);
    let processes = usize::from(spec.pipeline.stages * spec.pipeline.start_replicas);
    for index in 0..processes {
        swarm.until("its place", index, |timed| match timed.event {
            NodeEvent::WeightsReady { version, .. } if version >= 2 => Some(()),
            _ => None,
        });
    }
    let mut crews = vec![Vec::new(); usize::from(spec.pipeline.stages)];
    for (index, events) in swarm.events().iter().enumerate() {
        let stage = events.iter().rev().find_map(|timed| match timed.event {
            NodeEvent::Admitted { stage } => Some(stage),
            _ => None,
        });
        crews[usize::from(stage.expect("a process that has a place"))].push(index);
    }
    (swarm, crews)
}

/// Who is where after each decision, and whether it was a move or took a place away.
fn places(run: &Run, survivor: usize) -> Vec<(Decision, BTreeMap<PeerId, StageIndex>)> {
    let mut members = BTreeMap::new();
    let entries = stored_entries(&run.swarm.peer_folder(survivor));
    let followed = entries.iter().map(|entry| {
        let decision = decision(entry);
        match &decision {
            Decision::Admit { peer, stage } | Decision::Move { peer, stage } => {
                members.insert(*peer, *stage);
            }
            Decision::Evict { peer, .. } => {
                members.remove(peer);
            }
            _ => {}
        }
        (decision, members.clone())
    });
    followed.collect()
}

/// Miners of each stage.
fn sizes(members: &BTreeMap<PeerId, StageIndex>, stages: u16) -> Vec<usize> {
    let size = |stage| members.values().filter(|of| of.0 == stage).count();
    (0..stages).map(size).collect()
}

#[test]
fn a_stage_all_of_whose_disks_are_gone_is_given_a_miner_and_goes_on_from_the_mirror() {
    let spec = spec(2, 3);
    let (mut swarm, crews) = started(&spec);
    let candidates = |crew: &&Vec<usize>| crew.iter().filter(|index| **index < CANDIDATES).count();
    let lost = crews.iter().min_by_key(candidates).expect("two stages");
    let survivor =
        *crews.iter().find(|crew| *crew != lost).and_then(|crew| crew.first()).expect("another stage");
    lost.iter().for_each(|index| swarm.signal(*index, Signal::SIGKILL));
    let opened = swarm.last_epoch(survivor);
    swarm.until_epoch(survivor, opened + 5);
    let run = swarm.interrupt();
    let moves = places(&run, survivor)
        .iter()
        .filter(|(decision, _)| matches!(decision, Decision::Move { .. }))
        .count();
    assert!(moves >= 1, "somebody took the lost stage over");
    assert!(run.epochs >= opened + 3, "{} epochs, {opened} before the loss", run.epochs);
}

#[test]
fn stages_of_one_one_and_four_miners_are_evened_out_by_two_moves() {
    let spec = spec(3, 4);
    let stages = spec.pipeline.stages;
    let (mut swarm, mut crews) = started(&spec);
    // A machine under load may have given places unevenly. The stage that stays has four to keep, and the most candidates,
    // so that each of the others has at most one, its first.
    let candidates = |crew: &[usize]| crew.iter().filter(|index| **index < CANDIDATES).count();
    crews.sort_by_key(|crew| (crew.len() >= 4, candidates(crew)));
    let killed = crews.iter().zip([1, 1, 4]).flat_map(|(crew, kept)| crew.iter().skip(kept));
    let killed: Vec<usize> = killed.copied().collect();
    let victims: Vec<PeerId> = killed.iter().map(|index| swarm.peer(*index)).collect();
    killed.iter().for_each(|index| swarm.signal(*index, Signal::SIGKILL));
    let opened = swarm.last_epoch(0);
    swarm.until_epoch(0, opened + 12);
    let run = swarm.interrupt();
    let places = places(&run, 0);
    let gone =
        |members: &BTreeMap<PeerId, StageIndex>| victims.iter().all(|peer| !members.contains_key(peer));
    let evicted = places.iter().rposition(|(_, members)| !gone(members)).expect("they were there") + 1;
    let then = sizes(&places[evicted].1, stages);
    let needed: usize = then.iter().map(|size| KEPT.saturating_sub(*size)).sum();
    let moves =
        places[evicted..].iter().filter(|(decision, _)| matches!(decision, Decision::Move { .. })).count();
    assert_eq!(moves, needed, "from {then:?}");
    let last = &places.last().expect("a log").1;
    let evened = last.len() / usize::from(stages);
    assert!(sizes(last, stages).iter().all(|size| *size >= evened), "{:?}", sizes(last, stages));
}
