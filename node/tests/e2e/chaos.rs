//! A swarm of real processes of which one after the other is killed and starts again, as a seed says.

use std::time::Duration;

use crate::support::log::stored_entries;
use crate::support::{Run, Swarm, tiny};
use iota_node::events::NodeEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;
use iota_protocol::{Hash, RunSpec};

/// Processes: two stages of three miners, three of them candidates, one the leader.
const PROCESSES: usize = 6;
/// Kills in a schedule, and how many have to happen: a process that is down is not killed again.
const KILLS: u32 = 66;
const KILLS_MIN: usize = 60;
/// Epochs from one kill to the next.
const EPOCHS_APART: u32 = 2;
/// Longest absence of a killed process. Long against an epoch, so that some are merged without it and others wait for it.
const ABSENCE_MAX: Millis = Millis(1000);
/// Longest the run may take. A kill costs a second and a half on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(480);
/// By how much the loss may differ from that of a run that nobody disturbs. Which replica handles which sample decides in
/// what order gradients are added, and nothing else.
const LOSS_TOLERANCE: f64 = 1e-3;

/// The seed of the schedule, unless `just chaos` asks for another.
fn seed() -> u64 {
    std::env::var("CHAOS_SEED").map_or(1, |text| text.parse().expect("CHAOS_SEED is a number"))
}

fn spec() -> RunSpec {
    let epochs = EPOCHS_APART * (KILLS + 2);
    let mut spec = tiny(TrainingMode::Synchronous, 2, 3, epochs);
    // Nobody is absent for long enough to lose its place, nor is any deadline waited for.
    (spec.timing.epoch_deadline, spec.timing.eviction) = (Millis::from_secs(600), Millis::from_secs(30));
    // Something is always on its way to the mirror.
    spec.mirror.checkpoint_epochs = 1;
    spec
}

/// Whom to kill when and for how long, as `--kill-after` writes it.
fn schedule(seed: u64) -> Vec<String> {
    let kill = |number: u32| {
        let drawn = Hash::of_parts(&[&seed.to_le_bytes(), &number.to_le_bytes()]).0;
        let absence = u64::from(u16::from_le_bytes([drawn[1], drawn[2]])) % ABSENCE_MAX.0;
        let (victim, epoch) = (usize::from(drawn[0]) % PROCESSES, EPOCHS_APART * (number + 1));
        format!("--kill-after={victim}@e{epoch}+{absence}ms")
    };
    (0..KILLS).map(kill).collect()
}

/// Times that a process was killed.
fn kills_told(run: &Run) -> usize {
    let incidents = run.summary["incidents"].as_array().expect("a list of incidents");
    incidents.iter().filter(|incident| incident.as_str().is_some_and(|text| text.ends_with("killed"))).count()
}

#[test]
fn nothing_is_lost_however_often_processes_are_killed() {
    let spec = spec();
    let undisturbed = Swarm::start(&spec, &[]).finish();
    let faults = schedule(seed());
    let faults: Vec<&str> = faults.iter().map(String::as_str).collect();
    let run = Swarm::start(&spec, &faults).finish_within(DEADLINE);

    assert!(kills_told(&run) >= KILLS_MIN, "{} kills", kills_told(&run));
    run.agreed_weights();
    run.assert_every_sample_merged();
    let (calm, disturbed) = (undisturbed.loss_nats(), run.loss_nats());
    assert!(
        (calm / disturbed - 1.0).abs() < LOSS_TOLERANCE,
        "{calm} nats undisturbed, {disturbed} with kills"
    );
    let last = NodeEvent::Checkpointed { epoch: spec.training.epochs };
    assert!(run.all_events().any(|(_, timed)| timed.event == last), "the last weights are in the mirror");
    let logs: Vec<_> = (0..PROCESSES).map(|index| stored_entries(&run.swarm.peer_folder(index))).collect();
    let longest = logs.iter().max_by_key(|log| log.len()).expect("a log of each process");
    for (index, log) in logs.iter().enumerate() {
        assert!(longest.starts_with(log), "process {index} has decided otherwise");
    }
}
