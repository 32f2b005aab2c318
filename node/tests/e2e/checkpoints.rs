//! Checkpoints of real processes: made in the mirror, looked at with `iota-node checkpoint`, and gone on from when nothing
//! else is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use crate::support::{Run, Swarm, program, tiny, wait_for};
use iota_node::events::NodeEvent;
use iota_protocol::RunSpec;
use iota_protocol::spec::TrainingMode;
use serde_json::Value;

const EPOCHS: u32 = 9;
/// Exit code of a command whose checkpoint is not what it should be, as `--help` documents it.
const MIRROR: i32 = 11;
/// Within this the second checkpoint is in the mirror; a few seconds suffice.
const DEADLINE: Duration = Duration::from_secs(60);

/// Three stages of one miner each, whose arithmetic has one order, and a checkpoint every other epoch in `mirror`.
fn spec(mirror: &Path) -> RunSpec {
    spec_in(TrainingMode::Synchronous, mirror)
}

fn spec_in(mode: TrainingMode, mirror: &Path) -> RunSpec {
    let mut spec = tiny(mode, 3, 1, EPOCHS);
    spec.pipeline.window = 1;
    spec.mirror.url = url(mirror);
    spec.mirror.checkpoint_epochs = 2;
    spec
}

fn url(mirror: &Path) -> String {
    format!("file://{}", mirror.display())
}

fn checkpoints(run: &Run) -> Vec<u32> {
    let mut epochs: Vec<u32> = run
        .all_events()
        .filter_map(|(_, timed)| match timed.event {
            NodeEvent::Checkpointed { epoch } => Some(epoch),
            _ => None,
        })
        .collect();
    epochs.sort_unstable();
    epochs.dedup();
    epochs
}

/// Runs `iota-node checkpoint` with these arguments.
fn checkpoint(arguments: &[&str], mirror: &Path) -> Output {
    program()
        .arg("checkpoint")
        .args(arguments)
        .args(["--from", &url(mirror)])
        .output()
        .expect("the binary runs")
}

/// Epoch of the checkpoint that the mirror's `latest` names.
fn latest(mirror: &Path) -> Option<u64> {
    let listed = checkpoint(&["list", "--json"], mirror);
    let mut lines = listed
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    lines.find(|line| line["latest"] == true)?["epoch"].as_u64()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Some blob of the mirror that is no small one.
fn some_part(mirror: &Path) -> PathBuf {
    let folders = fs::read_dir(mirror.join("blobs")).expect("a mirror has blobs").filter_map(Result::ok);
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.path()).expect("a folder").filter_map(Result::ok));
    let largest =
        files.map(|file| file.path()).max_by_key(|path| fs::metadata(path).map_or(0, |meta| meta.len()));
    largest.expect("a blob")
}

#[test]
fn a_run_of_which_only_the_mirror_is_left_goes_on_with_the_same_bits() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (calm, lost) = (scratch.path().join("calm"), scratch.path().join("lost"));
    let undisturbed = Swarm::start(&spec(&calm), &[]).finish();
    assert_eq!(checkpoints(&undisturbed), [2, 4, 6, 8, 9]);

    let swarm = Swarm::start(&spec(&lost), &[]);
    // The pointer moves after the checkpoint is decided.
    wait_for("the mirror's second checkpoint", DEADLINE, || latest(&lost).filter(|epoch| *epoch >= 4));
    // All processes are killed, and their folders go with the swarm.
    drop(swarm);

    let resumed = Swarm::resume(&url(&lost), &[]).finish();
    assert!(
        resumed.spec.start.epoch >= 4 && resumed.spec.start.epoch < EPOCHS,
        "{}",
        resumed.spec.start.epoch
    );
    resumed.assert_every_sample_merged();
    let (whole, rest) = (undisturbed.agreed_weights(), resumed.agreed_weights());
    assert!(rest.len() < whole.len());
    for (version, hash) in &rest {
        assert_eq!(whole.get(version), Some(hash), "{version:?}");
    }
    assert_eq!(checkpoints(&resumed).last(), Some(&EPOCHS), "the resumed run makes checkpoints of its own");
    let listed = text(&checkpoint(&["list"], &lost).stdout);
    assert!(
        listed.lines().last().is_some_and(|line| line.contains("epoch      9") && line.ends_with("latest")),
        "{listed}"
    );
}

/// Runs a swarm in `local` mode until a checkpoint satisfies `wanted`, which is given what `verify` says of it, kills it, goes on from there
/// and returns the version gone on from and the rest of the run.
fn interrupted(mirror: &Path, moments: bool, wanted: &str) -> (u32, Run) {
    let mut spec = spec_in(TrainingMode::Local, mirror);
    spec.mirror.moments = moments;
    let swarm = Swarm::start(&spec, &[]);
    let epoch = wait_for("a checkpoint gone on from", DEADLINE, || {
        let epoch = latest(mirror).filter(|epoch| (2..u64::from(EPOCHS)).contains(epoch))?;
        let verified = checkpoint(&["verify", "--checkpoint", &epoch.to_string()], mirror);
        text(&verified.stdout).contains(wanted).then_some(epoch)
    });
    drop(swarm);
    let resumed = Swarm::resume(&url(mirror), &["--checkpoint", &epoch.to_string()]).finish();
    resumed.assert_every_sample_merged();
    (u32::try_from(epoch).expect("a small number"), resumed)
}

#[test]
fn miners_go_on_with_the_moments_that_a_checkpoint_has_of_them() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mirror = |name: &str| scratch.path().join(name);
    let undisturbed = Swarm::start(&spec_in(TrainingMode::Local, &mirror("calm")), &[]).finish();
    let whole = undisturbed.agreed_weights();

    let (start, resumed) = interrupted(&mirror("with"), true, "inner optimizers of 3 miners,");
    for (version, hash) in &resumed.agreed_weights() {
        assert_eq!(whole.get(version), Some(hash), "{version:?} after {start}");
    }

    let (start, resumed) = interrupted(&mirror("without"), false, "inner optimizers of 0 miners,");
    let rest = resumed.agreed_weights();
    let differ = rest.iter().filter(|(version, hash)| whole.get(version) != Some(hash)).count();
    assert!(differ > 0, "fresh moments train otherwise, after {start}: {rest:?}");
    assert_eq!(rest.len() - differ, 3, "the weights gone on from are the same in all three stages");
}

#[test]
fn a_checkpoint_is_listed_verified_pulled_and_its_damage_found() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mirror = scratch.path().join("mirror");
    let run = Swarm::start(&spec(&mirror), &[]).finish();

    let listed = text(&checkpoint(&["list", "--json"], &mirror).stdout);
    let latest: Vec<&str> = listed.lines().filter(|line| line.contains("\"latest\":true")).collect();
    assert_eq!((listed.lines().count(), latest.len()), (5, 1), "{listed}");
    assert!(latest[0].contains("\"epoch\":9"), "{listed}");

    let verified = checkpoint(&["verify", "--checkpoint", "4"], &mirror);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    assert!(text(&verified.stdout).contains("checkpoint of epoch 4 is whole"), "{}", text(&verified.stdout));

    let folder = scratch.path().join("pulled");
    let pulled = checkpoint(&["pull", "--to", folder.to_str().expect("ASCII")], &mirror);
    assert!(pulled.status.success(), "{}", text(&pulled.stderr));
    let weights = |path: &Path| iota_model::checkpoint::Checkpoint::load(path).expect("a checkpoint").weights;
    let own = weights(&run.swarm.folder().join("checkpoint/model.safetensors"));
    assert_eq!(weights(&folder.join("model.safetensors")), own);

    fs::write(some_part(&mirror), b"nonsense").expect("a blob can be written");
    let verified: Vec<Option<i32>> = ["2", "4", "6", "8", "9"]
        .iter()
        .map(|epoch| checkpoint(&["verify", "--checkpoint", epoch], &mirror).status.code())
        .collect();
    assert_eq!(verified.iter().filter(|code| **code == Some(MIRROR)).count(), 1, "{verified:?}");

    let none = checkpoint(&["verify", "--checkpoint", "5"], &mirror);
    assert_eq!(none.status.code(), Some(MIRROR));
    let said = text(&none.stderr);
    assert!(
        said.contains("expected the checkpoint of epoch 5") && said.contains("epochs 2, 4, 6, 8, 9"),
        "{said}"
    );
}
