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

/// Every version of every stage goes to the mirror that `up` makes beside the processes' folders.
fn spec() -> RunSpec {
    let mut spec = tiny(TrainingMode::Synchronous, 2, 3, ENDLESS);
    (spec.timing.heartbeat, spec.timing.eviction) = (Millis(500), Millis::from_secs(3));
    spec.mirror.checkpoint_epochs = 1;
    spec
}

/// Starts a swarm and waits until it has trained a little; returns the processes of the stage with fewer candidates.
fn started() -> (Swarm, Vec<usize>) {
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
    let crew = if candidates(&first) < candidates(&second) { first } else { second };
    (swarm, crew)
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
fn a_stage_all_of_whose_disks_are_gone_is_given_a_miner_that_goes_on_from_the_mirror() {
    let (mut swarm, crew) = started();
    let survivor = survivor(&crew);
    crew.iter().for_each(|index| swarm.signal(*index, Signal::SIGKILL));
    let opened = swarm.last_epoch(survivor);
    swarm.until_epoch(survivor, opened + 5);
    let run = swarm.interrupt();
    run.agreed_weights();
    assert!(moves(&run, survivor) >= 1);
    assert!(run.epochs >= opened + 3, "{} epochs, {opened} before the loss", run.epochs);
}

#[test]
fn one_move_evens_out_stages_of_one_and_three_miners() {
    let (mut swarm, crew) = started();
    let survivor = survivor(&crew);
    crew.iter().take(2).for_each(|index| swarm.signal(*index, Signal::SIGKILL));
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
