//! Swarms of real processes whose log is cut: they start again from a snapshot, and fetch one when they were away.

use std::fs;

use iota_node::store::Store;
use iota_protocol::spec::TrainingMode;
use iota_protocol::time::Millis;

use serde_json::Value;

use crate::support::{Run, Swarm, program, tiny};

/// Entries between two snapshots, as the processes are told: those of three epochs.
const EVERY: u64 = 24;

fn cut_run(epochs: u32, eviction: Millis, arguments: &[&str]) -> Run {
    let mut spec = tiny(TrainingMode::Local, 2, 2, epochs);
    (spec.timing.heartbeat, spec.timing.eviction) = (Millis(500), eviction);
    let every = EVERY.to_string();
    let run = Swarm::start_with(&spec, &[("IOTA_SNAPSHOT_EVERY", &every)], arguments).finish();
    run.agreed_weights();
    run
}

/// Process 0 writes to the mirror what the log lets go of, and the rest when the run ends.
#[test]
fn the_whole_log_of_a_run_is_in_its_mirror() {
    let mirror = tempfile::tempdir().expect("a folder for the mirror");
    let url = format!("file://{}", mirror.path().display());
    let mut spec = tiny(TrainingMode::Local, 2, 1, 24);
    spec.mirror.url.clone_from(&url);
    let every = EVERY.to_string();
    let run = Swarm::start_with(&spec, &[("IOTA_SNAPSHOT_EVERY", &every)], &[]).finish();
    run.agreed_weights();
    let (_, len) = kept(&run, 0);
    let output = program().args(["history", "--json", "--from", &url]).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let entries: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object per line")).collect();
    assert!(len > 100 && entries.len() as u64 == len, "{} of {len} entries", entries.len());
    let decided = |what: &str| {
        let named = |entry: &&Value| entry["entry"]["decision"].get(what).is_some() && entry["void"] == false;
        entries.iter().filter(named).count()
    };
    assert_eq!((decided("admit"), decided("merge_outcome")), (2, 48));
    assert!(decided("snapshot") >= 3);
    assert_eq!(entries.last().expect("entries")["entry"]["decision"], "finish");
    // A part that is gone is noticed.
    let parts = mirror.path().join("log").join(spec_run(&run));
    let mut parts: Vec<_> =
        fs::read_dir(parts).expect("parts").map(|part| part.expect("a file").path()).collect();
    parts.sort();
    fs::remove_file(&parts[1]).expect("a file that is ours");
    let output = program().args(["history", "--from", &url]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("the log in the mirror is not whole"), "{said}");
}

/// The run's name, as the mirror's folder has it.
fn spec_run(run: &Run) -> String {
    run.swarm.spec().run_id().to_string()
}

/// Entries of the log on the disk of process `index`, and the index after the last of them.
fn kept(run: &Run, index: usize) -> (u64, u64) {
    let store = Store::open(&run.swarm.peer_folder(index)).expect("the process has ended");
    let entries = store.log(0..u64::MAX, usize::MAX).expect("a whole file").len();
    (entries as u64, store.log_len().expect("a whole file"))
}

fn said(run: &Run, index: usize, text: &str) -> bool {
    let log = fs::read_to_string(run.swarm.peer_folder(index).join("log.txt"));
    log.expect("a process writes a log").contains(text)
}

#[test]
fn processes_that_are_killed_at_once_start_again_from_a_snapshot() {
    let run = cut_run(40, Millis::from_secs(10), &["--kill-after", "all@e20+1s"]);
    run.assert_every_sample_merged();
    for index in 0..4 {
        let (entries, len) = kept(&run, index);
        assert!(len > 200 && entries < 3 * EVERY, "process {index} keeps {entries} of {len} entries");
        assert!(said(&run, index, "found the log"), "process {index}");
    }
}

#[test]
fn a_process_that_was_away_goes_on_from_a_snapshot() {
    let run = cut_run(80, Millis::from_secs(3), &["--kill-after", "3@e4+10s"]);
    assert!(said(&run, 3, "the log goes on from a snapshot"));
    assert!((0..3).all(|index| !said(&run, index, "the log goes on from a snapshot")));
}
