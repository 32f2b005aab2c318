//! Swarms of real processes that are killed and start again in the folders they left.

use std::fs;

use crate::support::{Run, Swarm, tiny};
use iota_node::events::NodeEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;

/// Epochs of a run: enough for what happens at the tenth to be in its middle.
const EPOCHS: u32 = 20;

/// Versions of the weights that process `index` announced in its second life, initial ones left out.
fn second_life(run: &Run, index: usize) -> Vec<u32> {
    let mut lives = run.events[index].split(|timed| matches!(timed.event, NodeEvent::Started { .. }));
    let versions = |timed: &_| match timed {
        NodeEvent::WeightsReady { version, .. } if *version > 0 => Some(*version),
        _ => None,
    };
    lives.nth(2).expect("it was started twice").iter().filter_map(|timed| versions(&timed.event)).collect()
}

/// Whether process `index` found the state of its stage on its disk.
fn found_state(run: &Run, index: usize) -> bool {
    let log =
        fs::read_to_string(run.swarm.peer_folder(index).join("log.txt")).expect("a process writes a log");
    log.contains("found the state of a stage")
}

/// Runs to its end though `kill` happens, as `--kill-after` writes it, and nothing is lost by it.
fn run_with(kill: &str, epoch_deadline: Millis) -> Run {
    let mut spec = tiny(TrainingMode::Synchronous, 2, 2, EPOCHS);
    spec.timing.epoch_deadline = epoch_deadline;
    let run = Swarm::start(&spec, &["--kill-after", kill]).finish();
    run.agreed_weights();
    run.assert_every_sample_merged();
    run
}

#[test]
fn a_run_goes_on_from_its_last_merge_when_all_processes_were_killed_at_once() {
    let run = run_with("all@e10+1s", Millis::from_secs(16));
    for index in 0..4 {
        let versions = second_life(&run, index);
        assert!(found_state(&run, index), "process {index}");
        assert!(versions.first().is_some_and(|first| *first >= 8), "process {index} went back: {versions:?}");
    }
}

/// Process `index` is killed in the middle of the run and starts again at once.
fn restarted(index: usize) {
    // Too long to be waited for: what it had taken is sent to it again when it says that it has forgotten it.
    let run = run_with(&format!("{index}@e10+500ms"), Millis::from_secs(600));
    assert_eq!(run.evictions_of(run.peer(index)), Vec::<&str>::new());
    assert!((0..4).all(|other| found_state(&run, other) == (other == index)));
    assert!(second_life(&run, index).first().is_some_and(|first| *first >= 8));
}

#[test]
fn a_miner_that_starts_again_at_once_keeps_its_place_and_its_weights() {
    restarted(3);
}

#[test]
fn so_does_the_candidate_that_the_others_joined_through() {
    restarted(0);
}

/// Inner steps move weights by moments that each process gathers for itself: all of them are killed in the middle of an
/// epoch, and end with the bits of a run in which nothing happened.
#[test]
fn local_training_goes_on_with_its_moments_when_all_processes_were_killed() {
    // One miner for each stage and one sample at a time: its arithmetic has one order.
    let mut spec = tiny(TrainingMode::Local, 2, 1, EPOCHS);
    spec.pipeline.window = 1;
    let weights = |faults: &[&str]| Swarm::start(&spec, faults).finish().agreed_weights();
    let undisturbed = weights(&[]);
    let killed = weights(&["--kill-after", "all@e10+300ms"]);
    assert_eq!(killed, undisturbed);
}
