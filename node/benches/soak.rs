//! Whether a swarm that runs for hours stays as it is: memory, file descriptors and disk of processes of which one is killed
//! and started again every half minute.
//!
//! Six processes, two stages of three, a small model, a mirror. Every ten seconds it reads `/proc` and the folders; after
//! the first ten minutes, in which caches fill, nothing should grow. Prints what each quantity was in each tenth of the
//! time, as means over processes, a line of text as a plot, and the ratio of the end to the time after the start; then one
//! line of JSON. Fails if the run made no progress at its end or a process is missing.
//!
//! Run it with `cargo bench -p iota-node --bench soak [-- <seconds>]`, or `just soak`; an hour if nothing is said. Linux only.

#[expect(dead_code, reason = "shared by several benchmarks")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iota_node::events::unix_ms;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{BINARY, argument, events};

const SECONDS: u64 = 3600;
/// From one kill to the next.
const KILL_EVERY: u64 = 30;
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Until caches are full and the log has been cut for the first time.
const WARM_SECONDS: f64 = 600.0;
const PROCESSES: u64 = 6;
/// Parts of the time that means are taken over.
const PARTS: usize = 10;
/// Most that each of the two logs of a process takes: what ten minutes fill.
const LOG_MAX: &str = "512KiB";
/// The small model, and a log that is cut every minute or so.
const SETTINGS: [&str; 12] = [
    "model.width=32",
    "model.layers=4",
    "model.heads=2",
    "model.kv_heads=1",
    "model.hidden=64",
    "model.context=32",
    "model.bottleneck=8",
    "training.samples_per_epoch=24",
    "training.sequences_per_sample=2",
    "training.inner_steps=2",
    "mirror.checkpoint_epochs=32",
    "data.builtin_bytes=64KiB",
];

/// What is measured of each process; its name, and what its numbers are divided by to be read.
const QUANTITIES: [(&str, f64); 6] = [
    ("resident memory, MiB", 1024.0),
    ("of it no file's, MiB", 1024.0),
    ("file descriptors", 1.0),
    ("blobs on disk, MiB", (1 << 20) as f64),
    ("database, MiB", (1 << 20) as f64),
    ("event log and text, MiB", (1 << 20) as f64),
];

/// One look at the swarm: seconds since the start, and the mean of each quantity over the processes that run.
struct Look {
    seconds: f64,
    means: [f64; QUANTITIES.len()],
}

#[expect(clippy::print_stdout, reason = "the numbers are what a benchmark is for")]
fn main() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let seconds = argument(SECONDS);
    let mut up = start(folder.path(), seconds);
    let peers = folder.path().join("bench/peers");
    let begin = Instant::now();
    let mut looks = Vec::new();
    while begin.elapsed().as_secs() < seconds {
        std::thread::sleep(SAMPLE_EVERY);
        if let Some(status) = up.try_wait().expect("a child can be waited for") {
            panic!(
                "the swarm ended by itself, {status}, after {:?}; see {}",
                begin.elapsed(),
                peers.display()
            );
        }
        looks.extend(look(&peers, begin.elapsed().as_secs_f64()));
    }
    let merged = last_epochs(&peers);
    kill(Pid::from_raw(i32::try_from(up.id()).expect("a process id")), Signal::SIGINT).expect("it runs");
    up.wait().expect("a child can be waited for");

    println!(
        "{:<26} {:>8} {:>8} {:>8}  per tenth of {seconds} s",
        "mean of a process", "first", "last", "end/warm"
    );
    let mut ratios = serde_json::Map::new();
    for (quantity, (name, _)) in QUANTITIES.iter().enumerate() {
        let parts = parts(&looks, quantity, seconds);
        let ratio = growth(&looks, quantity, seconds);
        let (first, last) = (parts.first().copied(), parts.last().copied());
        println!(
            "{name:<26} {:>8.2} {:>8.2} {ratio:>8.3}  {}",
            first.unwrap_or(f64::NAN),
            last.unwrap_or(f64::NAN),
            plot(&parts)
        );
        ratios.insert((*name).to_owned(), ratio.into());
    }
    println!("epochs merged: {merged:?}");
    println!(
        "{}",
        serde_json::json!({ "bench": "soak", "seconds": seconds, "growth": ratios, "epochs": merged })
    );
    assert!(merged.iter().all(|epochs| *epochs > 0), "every process saw merges in the last minutes");
}

/// Starts the swarm; which process is killed when follows from the time alone.
fn start(folder: &Path, seconds: u64) -> Child {
    let kills = (1..=seconds / KILL_EVERY).flat_map(|number| {
        // A generator of full period modulo the number of processes would repeat them in one order.
        let victim = (number * number * 7 + number * 3 + number / PROCESSES) % PROCESSES;
        ["--kill-after".to_owned(), format!("{victim}@{}s+2s", number * KILL_EVERY)]
    });
    let settings = SETTINGS.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]);
    Command::new(BINARY)
        .args([
            "up",
            "--no-control",
            "--device",
            "cpu",
            "--name",
            "bench",
            "--validators",
            "0",
            "--stages",
            "2",
            "--miners",
            "3",
        ])
        .arg("--runs-dir")
        .arg(folder)
        .args(["--epochs", "1000000", "--log-max", LOG_MAX])
        .args(settings)
        .args(kills)
        .env("IOTA_SNAPSHOT_EVERY", "512")
        .env("IOTA_EVENT_LOG_MAX", LOG_MAX)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// Looks at all processes that run; nothing if there is none.
fn look(peers: &Path, seconds: f64) -> Option<Look> {
    let folders = fs::read_dir(peers).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let found: Vec<[f64; QUANTITIES.len()]> = folders.filter_map(|folder| measure(&folder)).collect();
    let mean = |quantity: usize| {
        let sum: f64 = found.iter().filter_map(|of_one| of_one.get(quantity)).sum();
        sum / found.len() as f64
    };
    (!found.is_empty()).then(|| Look { seconds, means: std::array::from_fn(mean) })
}

/// The quantities of the process that uses this folder, if one does.
fn measure(folder: &Path) -> Option<[f64; QUANTITIES.len()]> {
    let process = process_of(folder)?;
    let status = fs::read_to_string(process.join("status")).ok()?;
    let memory = |name: &str| -> Option<f64> {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().trim_end_matches(" kB").parse().ok()
    };
    let (resident, anonymous) = (memory("VmRSS:")?, memory("RssAnon:")?);
    let descriptors = fs::read_dir(process.join("fd")).ok()?.count() as f64;
    let texts: f64 = ["events.jsonl", "events.1.jsonl", "log.txt", "log.1.txt"]
        .iter()
        .map(|name| bytes(&folder.join(name)))
        .sum();
    let raw = [
        resident,
        anonymous,
        descriptors,
        bytes(&folder.join("blobs")),
        bytes(&folder.join("node.redb")),
        texts,
    ];
    let mut quantities = raw;
    for (value, (_, unit)) in quantities.iter_mut().zip(QUANTITIES) {
        *value /= unit;
    }
    Some(quantities)
}

/// The `/proc` folder of the process whose command line names `folder`.
fn process_of(folder: &Path) -> Option<PathBuf> {
    let name = folder.to_str()?;
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).map(|process| process.path()).find(|process| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut arguments = line.split(|byte| *byte == 0);
        arguments.next().is_some_and(|program| program.ends_with(b"iota-node"))
            && arguments.any(|argument| argument.ends_with(name.as_bytes()) && !argument.is_empty())
    })
}

/// Bytes of a file, or of all files below a folder. What goes meanwhile counts nothing.
fn bytes(path: &Path) -> f64 {
    let Ok(meta) = fs::metadata(path) else { return 0.0 };
    if !meta.is_dir() {
        return meta.len() as f64;
    }
    let below = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    below.map(|entry| bytes(&entry.path())).sum()
}

/// Means over each part of the time.
fn parts(looks: &[Look], quantity: usize, seconds: u64) -> Vec<f64> {
    let length = seconds as f64 / PARTS as f64;
    let part = |number: usize| mean(looks, quantity, length * number as f64, length * (number + 1) as f64);
    (0..PARTS).map(part).collect()
}

/// How much more there is in the last sixth of the time than in a sixth after the start.
fn growth(looks: &[Look], quantity: usize, seconds: u64) -> f64 {
    let (seconds, sixth) = (seconds as f64, seconds as f64 / 6.0);
    let warm = WARM_SECONDS.min(sixth);
    mean(looks, quantity, seconds - sixth, f64::INFINITY) / mean(looks, quantity, warm, warm + sixth)
}

fn mean(looks: &[Look], quantity: usize, from: f64, until: f64) -> f64 {
    let within = looks.iter().filter(|look| (from..until).contains(&look.seconds));
    let values: Vec<f64> = within.filter_map(|look| look.means.get(quantity).copied()).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// A line of bars from nothing to the greatest.
fn plot(values: &[f64]) -> String {
    let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let bars = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of eight bars")]
    let bar = |value: &f64| bars.get(((value / most * 8.0).ceil() as usize).saturating_sub(1)).copied();
    values.iter().map(|value| bar(value).unwrap_or(' ')).collect()
}

/// Epochs that each process saw merged in the last two minutes.
fn last_epochs(peers: &Path) -> Vec<usize> {
    let of_one = |index: u64| {
        let merged = events(&peers.join(index.to_string()), "weights_ready");
        let since = unix_ms().saturating_sub(120_000);
        merged.iter().filter(|event| event["t_ms"].as_u64().is_some_and(|at| at > since)).count()
    };
    (0..PROCESSES).map(of_one).collect()
}
