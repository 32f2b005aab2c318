//! Swarms of real processes that are killed and start again in the folders they left.

mod e2e_support;

use std::fs;

use e2e_support::{Run, Swarm, tiny};
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

#[test]
fn a_run_goes_on_from_its_last_merge_when_all_processes_were_killed_at_once() {
    let mut spec = tiny(TrainingMode::Synchronous, 2, 2, EPOCHS);
    // What a process had taken before it was killed is sent to it again after a part of this.
    spec.timing.epoch_deadline = Millis::from_secs(16);
    let run = Swarm::start(&spec, &["--kill-after", "all@e10+1s"]).finish();
    run.agreed_weights();
    run.assert_every_sample_merged();
    for index in 0..4 {
        let versions = second_life(&run, index);
        assert!(found_state(&run, index), "process {index}");
        assert!(versions.first().is_some_and(|first| *first >= 8), "process {index} went back: {versions:?}");
    }
}
