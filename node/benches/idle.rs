//! What an idle node costs: a member of a run that has not begun, connected to one other.
//!
//! Two nodes of a run that waits for a third: elected, admitted, heartbeating, with an engine. Measures
//! processor time and resident memory of one of them from `/proc`. Targets: under 2 % of a core, under
//! 150 MiB. Prints a table, then one line of JSON.
//!
//! Run it with `cargo bench -p iota-node --bench idle [-- <seconds>]`. Linux only.

#[expect(dead_code, reason = "shared by several benchmarks")]
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{BINARY, argument, cpu_seconds, events};

const SECONDS: u64 = 20;
const START_WITHIN: Duration = Duration::from_secs(30);

#[expect(clippy::print_stdout, reason = "the numbers are what a benchmark is for")]
fn main() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let init = ["init", "--dir", "run", "--candidates", "1", "--stages", "1", "--miners", "3"];
    let made = Command::new(BINARY).args(init).current_dir(folder.path()).stdout(Stdio::null()).status();
    assert!(made.expect("the binary starts").success(), "init failed");
    let mut first = join(folder.path(), "a", &["--key", "run/keys/candidate-0.key"]);
    let address =
        wait_for(folder.path(), "a", "started")["multiaddrs"][0].as_str().expect("an address").to_owned();
    let mut second = join(folder.path(), "b", &["--bootstrap", &address]);
    wait_for(folder.path(), "b", "weights_ready");

    let seconds = argument(SECONDS);
    let (before, begin) = (cpu_seconds(second.id()).expect("the node runs"), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let share =
        (cpu_seconds(second.id()).expect("the node runs") - before) / begin.elapsed().as_secs_f64() * 100.0;
    let memory = resident_mib(&second);
    for child in [&mut first, &mut second] {
        child.kill().expect("kill the child");
        child.wait().expect("reap the child");
    }
    println!("{:<18} {share:>8.2} % of a core (target: under 2)", "processor");
    println!("{:<18} {memory:>8.1} MiB (target: under 150)", "resident memory");
    println!(
        "{}",
        serde_json::json!({ "bench": "idle", "seconds": seconds, "cpu_percent": share, "rss_mib": memory })
    );
}

fn join(folder: &Path, name: &str, arguments: &[&str]) -> Child {
    Command::new(BINARY)
        .args([
            "join",
            "--spec",
            "run/run.toml",
            "--device",
            "cpu",
            "--data-dir",
            name,
            "--data-bind",
            "127.0.0.1:0",
        ])
        .args(["--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--log-level", "warn"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// The first event of a kind, once it is there.
fn wait_for(folder: &Path, name: &str, kind: &str) -> serde_json::Value {
    let begin = Instant::now();
    loop {
        let dir = folder.join(name);
        if dir.join("events.jsonl").exists()
            && let Some(event) = events(&dir, kind).into_iter().next()
        {
            return event;
        }
        assert!(begin.elapsed() < START_WITHIN, "node {name}: no `{kind}` within {START_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn resident_mib(child: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("the node runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).expect("a number").parse::<f64>().expect("KiB") / 1024.0
}
