//! What checks of miners cost: processor time of validators beside that of miners.
//!
//! Runs `iota-node up` with six miners and two validators twice, once with no checks and once with a quarter of all contributions
//! replayed, and reads the processor time of every process from `/proc`. So a replay is compared with a miner's epoch of the same
//! run, and what a validator costs that checks nothing is told apart. From both follows what the default rates cost; the
//! target is at most 5 % of the swarm's processor time. Prints a table, then one line of JSON.
//!
//! Run it with `cargo bench -p iota-node --bench validation [-- <epochs>]`. Linux only.

#[expect(dead_code, reason = "shared by several benchmarks")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use iota_protocol::spec::ValidationSpec;
use iota_protocol::validation::cost;
use support::{BINARY, argument, cpu_seconds};

const EPOCHS: u64 = 20;
/// Of the built-in run: three stages of two.
const MINERS: f64 = 6.0;
const POLL: Duration = Duration::from_millis(50);

/// Processor seconds of one run.
struct Measured {
    miners: f64,
    validators: f64,
    replays: usize,
}

#[expect(clippy::print_stdout, reason = "the numbers are what a benchmark is for")]
fn main() {
    let epochs = argument(EPOCHS);
    let idle = measure(epochs, 0.0);
    let checking = measure(epochs, 0.25);
    assert!(checking.replays > 0, "nothing was replayed in {epochs} epochs");
    let epoch = checking.miners / MINERS / epochs as f64;
    let replay = (checking.validators - idle.validators) / checking.replays as f64;
    let ratio = replay / epoch;
    let spec = ValidationSpec::default();
    let (none, checks) = (idle.validators / idle.miners, cost(&spec) * ratio);
    let share = |per_miner: f64| 100.0 * per_miner / (1.0 + per_miner);
    println!("{:<34} {epoch:>8.2} s", "a miner's epoch");
    println!("{:<34} {replay:>8.2} s, {ratio:.2} of that ({} replays)", "its replay", checking.replays);
    println!("{:<34} {:>8.2} %", "validators that check nothing", share(none));
    println!("{:<34} {:>8.2} % (target: at most 5)", "checks at the default rates", share(checks));
    println!("{:<34} {:>8.2} %", "both", share(none + checks));
    let report = serde_json::json!({
        "bench": "validation", "epochs": epochs, "epoch_cpu_s": epoch, "replay_cpu_s": replay, "ratio": ratio,
        "replays": checking.replays, "idle_share": share(none) / 100.0, "share": share(checks) / 100.0,
    });
    println!("{report}");
}

fn measure(epochs: u64, replay_share: f64) -> Measured {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let mut up = Command::new(BINARY)
        .args(["up", "--no-control", "--validators", "2", "--device", "cpu", "--name", "bench"])
        .args(["--epochs", &epochs.to_string(), "--set", "training.samples_per_epoch=48"])
        .args(["--set", &format!("validation.replay_share={replay_share:?}")])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    // Whether it validates, and its processor time when last seen.
    let mut used: BTreeMap<u32, (bool, f64)> = BTreeMap::new();
    let status = loop {
        for process in children(up.id()) {
            let (Some(is_validator), Some(seconds)) = (is_validator(process), cpu_seconds(process)) else {
                continue;
            };
            used.insert(process, (is_validator, seconds));
        }
        if let Some(status) = up.try_wait().expect("a child") {
            break status;
        }
        std::thread::sleep(POLL);
    };
    assert!(status.success(), "up failed with {status}");
    let of = |validators: bool| {
        used.values().filter(|(is, _)| *is == validators).map(|(_, seconds)| seconds).sum::<f64>()
    };
    Measured { miners: of(false), validators: of(true), replays: replays(folder.path()) }
}

/// Each thread lists those that it started.
fn children(process: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Whether it is a validator; nothing of a process that takes no part in the run.
fn is_validator(process: u32) -> Option<bool> {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0);
    arguments.find_map(|argument| match argument {
        b"--validator" => Some(true),
        b"--miner" => Some(false),
        _ => None,
    })
}

/// Replays that the validators finished, as their logs say.
fn replays(folder: &Path) -> usize {
    let peers = std::fs::read_dir(folder.join("runs/bench/peers")).expect("folders of processes");
    let logs = peers.filter_map(|peer| std::fs::read_to_string(peer.ok()?.path().join("log.txt")).ok());
    logs.map(|log| log.lines().filter(|line| line.contains("epoch replayed")).count()).sum()
}
