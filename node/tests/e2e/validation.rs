//! Swarms of real processes in which validators replay what miners did.

use iota_node::events::NodeEvent;
use iota_protocol::spec::{ScoredBy, TrainingMode};
use serde_json::Value;

use crate::support::{Run, Swarm, program, tiny};

/// Two stages of three miners and two validators, who share the machine with them and can check half of what is contributed.
fn checked_run(mode: TrainingMode, epochs: u32, arguments: &[&str]) -> (Run, tempfile::TempDir) {
    let mirror = tempfile::tempdir().expect("a folder for the mirror");
    let mut spec = tiny(mode, 2, 3, epochs);
    spec.validation.replay_share = 0.5;
    // Long beside a check: what is checked stays fetchable for two epochs more.
    spec.training.samples_per_epoch = 120;
    spec.mirror.url = format!("file://{}", mirror.path().display());
    let run = Swarm::start(&spec, &[&["--validators", "2"], arguments].concat()).finish();
    run.agreed_weights();
    (run, mirror)
}

/// Conclusions of checks, as process 0 saw them: of whose work, of which epoch, and what they were.
fn checks(run: &Run) -> Vec<(iota_protocol::PeerId, u32, String)> {
    let events = run.events[0].iter();
    let checks = events.filter_map(|timed| match &timed.event {
        NodeEvent::Checked { epoch, peer, outcome, .. } => Some((*peer, *epoch, outcome.clone())),
        _ => None,
    });
    checks.collect()
}

/// What the validators found, as their logs say.
fn replays(run: &Run) -> String {
    let logs = [6, 7].map(|index| run.swarm.peer_folder(index).join("log.txt"));
    let logs = logs.map(|log| std::fs::read_to_string(log).expect("a process writes a log"));
    let lines = logs.iter().flat_map(|log| log.lines().filter(|line| line.contains("epoch replayed")));
    lines.collect::<Vec<_>>().join("\n")
}

/// Of six miners process 4, who has failed checks, all of them like this, and lost its place for good; nobody else has.
fn found_out(run: &Run, is_expected: impl Fn(&str) -> bool) -> iota_protocol::PeerId {
    let liar = run.peer(4);
    let checks = checks(run);
    let failed: Vec<_> = checks.iter().filter(|(_, _, outcome)| outcome.starts_with("failed")).collect();
    // That it is never drawn in 12 epochs has a probability of 2 to the power of minus 12.
    assert!(!failed.is_empty(), "{checks:?}\n{}", replays(run));
    for (peer, _, outcome) in failed {
        assert!(*peer == liar && is_expected(outcome), "{peer}: {outcome}");
    }
    assert!(run.evictions_of(liar).contains(&"failed replay"));
    for honest in [0, 1, 2, 3, 5].map(|index| run.peer(index)) {
        assert_eq!(run.evictions_of(honest), Vec::<&str>::new());
    }
    liar
}

fn iota_node(arguments: &[&str]) -> (bool, String) {
    let output = program().args(arguments).output().expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("text"))
}

#[test]
fn a_poisoned_miner_of_six_is_named_and_loses_its_place_and_nobody_else_does() {
    let (run, mirror) = checked_run(TrainingMode::Local, 12, &["--poison", "4"]);
    let poisoner = found_out(&run, |outcome| outcome == "failed: contribution");
    // What it earned is for anybody to read, and to recompute.
    let url = format!("file://{}", mirror.path().display());
    let (known, table) = iota_node(&["scores", "--from", &url, "--json"]);
    assert!(known, "{table}");
    let table: Value = serde_json::from_str(&table).expect("JSON");
    let row = |peer: iota_protocol::PeerId| {
        let mut rows = table["miners"].as_array().expect("miners").iter();
        rows.find(|row| row["peer"] == peer.to_string()).cloned().expect("it is scored")
    };
    assert_eq!(row(poisoner)["score_micro"], 0);
    assert_eq!(row(poisoner)["failures"][0]["why"], "failed-replay");
    assert!(row(run.peer(0))["share"].as_f64().expect("a number") > 0.1, "{table}");
    let (known, text) = iota_node(&["scores", "--from", &url]);
    assert!(known && text.contains("failed replay in epoch"), "{text}");
}

#[test]
fn who_sends_on_something_else_than_it_commits_to_loses_its_place_and_nobody_else_does() {
    let (run, _mirror) = checked_run(TrainingMode::Local, 12, &["--poison", "4:push"]);
    found_out(&run, |outcome| outcome.starts_with("failed: what it sent of sample"));
}

#[test]
fn weights_for_a_payment_system_are_signed_and_recomputed_from_the_mirror() {
    let (run, mirror) = checked_run(TrainingMode::Local, 2, &[]);
    let url = format!("file://{}", mirror.path().display());
    let key = run.swarm.folder().join("keys/peer-0.key").display().to_string();
    let file = mirror.path().join("weights").display().to_string();
    let (done, text) = iota_node(&["scores", "export", "--from", &url, "--key", &key, "--to", &file]);
    assert!(done && text.contains("weights of 6 miners"), "{text}");
    let (same, text) = iota_node(&["audit", "--from", &url, "--export", &file]);
    assert!(same && text.contains("are those of the log"), "{text}");
    assert!(!text.contains("; 0 states"), "a run that is over names what its log led to: {text}");
    let mut bytes = std::fs::read(&file).expect("the export");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("a file that is ours");
    let (same, text) = iota_node(&["audit", "--from", &url, "--export", &file]);
    assert!(!same && text.contains("expected signed weights of run"), "{text}");
}

#[test]
fn where_scores_are_by_the_loss_every_merge_is_evaluated_and_whose_contributions_do_harm_has_nothing() {
    let mirror = tempfile::tempdir().expect("a folder for the mirror");
    let mut spec = tiny(TrainingMode::Local, 1, 4, 8);
    spec.scores.by = ScoredBy::Loss;
    spec.scores.evaluators = 2;
    // However much it takes.
    spec.scores.evaluation_cost = 10.0;
    // Evaluations alone: of what stands out and is replayed nobody is convicted by fewer.
    (spec.validation.replay_share, spec.validation.quorum) = (0.0, 64);
    // Long beside an evaluation, or as long as one.
    spec.training.samples_per_epoch = 240;
    spec.mirror.url = format!("file://{}", mirror.path().display());
    let run = Swarm::start(&spec, &["--validators", "2", "--poison", "3"]).finish();
    run.agreed_weights();

    let url = format!("file://{}", mirror.path().display());
    let (known, table) = iota_node(&["scores", "--from", &url, "--json"]);
    assert!(known, "{table}");
    let table: Value = serde_json::from_str(&table).expect("JSON");
    let number = |peer: usize, path: &str| {
        let mut rows = table["miners"].as_array().expect("miners").iter();
        let row = rows.find(|row| row["peer"] == run.peer(peer).to_string()).expect("it is scored");
        row.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {row}"))
    };
    let poisoned = number(3, "/standing/rating/mu");
    for honest in 0..3 {
        assert!(number(honest, "/standing/rating/mu") > poisoned + 5.0, "{table}");
    }
    assert_eq!(number(3, "/score_micro"), 0.0);
    let (known, text) = iota_node(&["scores", "--from", &url]);
    assert!(known && text.contains("rated "), "{text}");
    let (same, text) = iota_node(&["audit", "--from", &url]);
    assert!(same, "{text}");
}
