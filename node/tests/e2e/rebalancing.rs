//! Swarms of real processes whose stages lose miners unequally.

use std::collections::BTreeMap;

use crate::support::log::{decision, stored_entries};
use crate::support::{Run, Swarm, tiny};
use iota_node::events::NodeEvent;
use iota_protocol::RunSpec;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::wire::message::Decision;
use nix::sys::signal::Signal;

/// More epochs than any machine merges while a test looks on: such a run ends when it is interrupted.
const ENDLESS: u32 = 100_000;
/// Processes: two stages of three. The first three are the candidates.
const PROCESSES: usize = 6;

fn spec() -> RunSpec {
    let mut spec = tiny(TrainingMode::Synchronous, 2, 3, ENDLESS);
    (spec.timing.heartbeat, spec.timing.eviction) = (Millis(500), Millis::from_secs(6));
    spec
}

/// Starts a swarm and waits until it has trained a little; returns the stage with fewer candidates, and its processes.
fn started() -> (Swarm, u16, Vec<usize>) {
    let mut swarm = Swarm::start(&spec(), &[]);
    let stages: Vec<u16> = (0..PROCESSES)
        .map(|index| {
            swarm.until("its place", index, |timed| match timed.event {
                NodeEvent::WeightsReady { stage, version, .. } if version >= 2 => Some(stage),
                _ => None,
            })
        })
        .collect();
    let of = |stage: u16| (0..PROCESSES).filter(|index| stages[*index] == stage).collect::<Vec<usize>>();
    let candidates = |crew: &[usize]| crew.iter().filter(|index| **index < 3).count();
    let (first, second) = (of(0), of(1));
    assert_eq!((first.len(), second.len()), (3, 3), "{stages:?}");
    let stage = u16::from(candidates(&first) > candidates(&second));
    let crew = if stage == 0 { first } else { second };
    (swarm, stage, crew)
}

/// A process that is none of these.
fn survivor(crew: &[usize]) -> usize {
    (0..PROCESSES).find(|index| !crew.contains(index)).expect("the other stage has processes")
}

fn moves(run: &Run, survivor: usize) -> usize {
    let entries = stored_entries(&run.swarm.peer_folder(survivor));
    entries.iter().filter(|entry| matches!(decision(entry), Decision::Move { .. })).count()
}

#[test]
fn one_move_evens_out_stages_of_one_and_three_miners() {
    let (mut swarm, stage, crew) = started();
    let survivor = survivor(&crew);
    // One after the other: two at once may be all who own a partition of a merge.
    swarm.signal(crew[0], Signal::SIGKILL);
    swarm.until("an epoch of two", survivor, |timed| {
        let of_two = |of: u16, members: u32| of == stage && members == 2;
        matches!(timed.event, NodeEvent::EpochOpened { stage, members, .. } if of_two(stage, members))
            .then_some(())
    });
    swarm.signal(crew[1], Signal::SIGKILL);
    let opened = swarm.last_epoch(survivor);
    swarm.until_epoch(survivor, opened + 12);
    let run = swarm.interrupt();
    run.agreed_weights();
    run.assert_every_sample_merged();
    assert_eq!(moves(&run, survivor), 1, "no more moves than are needed");
    let mut members = BTreeMap::new();
    for timed in &run.events[survivor] {
        if let NodeEvent::EpochOpened { stage, members: count, .. } = timed.event {
            members.insert(stage, count);
        }
    }
    assert_eq!(members, [(0, 2), (1, 2)].into());
}
