//! What the benchmarks of whole processes share: a scratch folder, the binary, its event log.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The binary under test, built by cargo for this benchmark.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_iota-node");

/// Ticks per second of `/proc/<pid>/stat`; fixed by the kernel's interface on every architecture Rust runs on.
const CLOCK_TICKS: f64 = 100.0;

/// Runs `iota-node up` in `folder` with these arguments and returns its `summary.json`.
pub(crate) fn up(folder: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(BINARY)
        .arg("up")
        .args(arguments)
        .args(["--name", "bench"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "up failed with {}:\n{text}", output.status);
    read_json(&folder.join("runs/bench/summary.json"))
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("valid JSON")
}

/// The events of one kind in a node's log.
pub(crate) fn events(data_dir: &Path, kind: &str) -> Vec<Value> {
    let older = std::fs::read_to_string(data_dir.join("events.1.jsonl")).unwrap_or_default();
    let text = older + &std::fs::read_to_string(data_dir.join("events.jsonl")).expect("an event log");
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["event"] == kind).collect()
}

/// The middle of some measurements.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Processor time a process has used, user and system; nothing if it is gone. Linux only.
pub(crate) fn cpu_seconds(process: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the command in parentheses; utime and stime are fields 14 and 15.
    let rest = stat.rsplit_once(')')?.1;
    let ticks: f64 =
        rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("ticks")).sum();
    Some(ticks / CLOCK_TICKS)
}

/// A field that is a number.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// The first free argument as a number, for shorter or longer runs: `cargo bench … -- 5`.
pub(crate) fn argument(default: u64) -> u64 {
    std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(default)
}
