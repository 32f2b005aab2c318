//! A whole swarm of real processes on loopback, small enough for a test.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::Cli;

/// Two stages of a model that trains in milliseconds.
const SMALL: [&str; 24] = [
    "--validators",
    "0",
    "--stages",
    "2",
    "--set",
    "model.layers=2",
    "--set",
    "model.width=16",
    "--set",
    "model.heads=2",
    "--set",
    "model.hidden=32",
    "--set",
    "model.context=32",
    "--set",
    "model.bottleneck=8",
    "--set",
    "data.builtin_bytes=64KiB",
    "--set",
    "training.samples_per_epoch=8",
    "--set",
    "training.sequences_per_sample=2",
    "--device",
    "cpu",
];

/// Longest a process may take to go away after its end was asked for: the deadlines of `up` and of a node, twice.
const GONE: Duration = Duration::from_secs(20);

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["up"], SMALL.as_slice(), more].concat()
}

/// Runs a swarm that succeeds and returns its summary.
fn summary(cli: &Cli, more: &[&str]) -> Value {
    let output = cli.run(&args(&[more, &["--json"]].concat()));
    assert!(output.status.success(), "{}", cli.show(&output));
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

/// Processes that run in `dir`, this one left out.
fn processes_in(dir: &Path) -> usize {
    let dir = dir.canonicalize().expect("the system allows it");
    let processes = fs::read_dir("/proc").expect("the system allows it").filter_map(Result::ok);
    processes.filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir)).count()
}

/// Waits until `done`, and fails with `what` after the deadline.
fn wait_for(what: &str, deadline: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < deadline, "{what} within {deadline:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts a swarm with more epochs than the test lasts and returns once it trains.
fn start_long(cli: &Cli) -> Child {
    let mut command =
        cli.command(&args(&["--miners", "1", "--epochs", "5000", "--no-control", "--name", "long"]));
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the system allows it");
    let log = cli.path().join("runs/long/peers/1/events.jsonl");
    wait_for("training", Duration::from_secs(60), || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("epoch_opened"))
    });
    child
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("the system allows it")), signal)
        .expect("the system allows it");
}

#[test]
fn a_synchronous_swarm_ends_where_one_process_does_and_writes_its_report() {
    let cli = Cli::new();
    let summary =
        summary(&cli, &["--miners", "2", "--epochs", "3", "--mode", "synchronous", "--name", "sync"]);
    assert!(
        summary["replicas"].as_array().unwrap().iter().all(|replica| replica["agrees"] == true),
        "{summary}"
    );
    assert_eq!(summary["replicas"].as_array().unwrap().len(), 4);
    let loss = |who: &str| summary[who]["loss_nats"].as_f64().unwrap();
    // Only the order of additions differs, a relative 1e-7 per step.
    assert!((loss("swarm") - loss("control")).abs() < 1e-4, "{summary}");
    assert_eq!(summary["swarm"]["tokens"], summary["control"]["tokens"]);
    for name in [
        "spec.toml",
        "epochs.jsonl",
        "summary.json",
        "report.html",
        "keys/peer-0.key",
        "peers/3/log.txt",
        "checkpoint/stage-1.safetensors",
        "checkpoint/model.safetensors",
    ] {
        assert!(cli.path().join("runs/sync").join(name).exists(), "{name}");
    }
    let epochs = fs::read_to_string(cli.path().join("runs/sync/epochs.jsonl")).unwrap();
    assert_eq!(epochs.lines().count(), 2 * 3, "one line per stage and epoch");
}

#[test]
fn a_killed_replica_does_not_end_the_run() {
    let cli = Cli::new();
    let timing = ["--set", "timing.epoch_deadline=10s", "--set", "timing.merge_deadline=5s"];
    let more = [
        "--miners",
        "2",
        "--epochs",
        "4",
        "--no-control",
        "--kill-after",
        "3@e1",
        "--set",
        "training.inner_steps=2",
    ];
    let summary = summary(&cli, &[more.as_slice(), &timing].concat());
    assert_eq!(summary["incidents"][0], "process 3 killed");
    let replicas = summary["replicas"].as_array().unwrap();
    assert!(replicas.iter().all(|replica| replica["process"] != 3 && replica["agrees"] == true), "{summary}");
}

#[test]
fn a_swarm_that_loses_a_whole_stage_fails_and_says_where_to_look() {
    let cli = Cli::new();
    let more = [
        "--miners",
        "1",
        "--epochs",
        "2000",
        "--no-control",
        "--kill-after",
        "1@e1",
        "--stall-timeout",
        "15s",
    ];
    let output = cli.run(&args(&more));
    assert_eq!(output.status.code(), Some(8), "{}", cli.show(&output));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("expected progress within 15s") && stderr.contains("log.txt"), "{stderr}");
    assert_eq!(processes_in(cli.path()), 0);
}

#[test]
fn sigterm_stops_every_process() {
    let cli = Cli::new();
    let mut up = start_long(&cli);
    assert_eq!(processes_in(cli.path()), 3);
    send(&up, Signal::SIGTERM);
    wait_for("the end of `up`", GONE, || up.try_wait().unwrap().is_some());
    assert_eq!(up.wait().unwrap().code(), Some(130));
    assert_eq!(processes_in(cli.path()), 0);
}

#[test]
fn no_process_survives_a_killed_parent_not_even_a_frozen_one() {
    let cli = Cli::new();
    let mut up = start_long(&cli);
    let frozen = fs::read_dir("/proc").unwrap().filter_map(Result::ok).find(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let in_dir = fs::read_link(process.path().join("cwd"))
            .is_ok_and(|cwd| cwd == cli.path().canonicalize().unwrap());
        in_dir && line.windows(b"peers/1".len()).any(|part| part == b"peers/1")
    });
    let frozen = frozen.expect("a process to freeze").file_name().into_string().unwrap();
    kill(Pid::from_raw(frozen.parse().unwrap()), Signal::SIGSTOP).unwrap();
    send(&up, Signal::SIGKILL);
    up.wait().unwrap();
    wait_for("the end of all processes", GONE, || processes_in(cli.path()) == 0);
}
