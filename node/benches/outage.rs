//! Speed of a swarm while its mirror is out, against the same swarm while it is not.
//!
//! Starts `iota-node up` with an S3 server of this process as its mirror and a checkpoint every epoch. The server is well and out
//! in turn; out means that it refuses connections, or that it takes requests and never answers. Prints the tokens per second
//! and the checkpoints of each window, each outage against the mean of the windows before and after it, and one line of JSON.
//! What an outage put off is uploaded in the window after it, whose speed that may cost something: the ratio is better by
//! half of that. The target is a ratio of at least 0.95.
//!
//! Run it with `cargo bench --workspace --bench outage [-- <rounds>]`.
#![expect(clippy::unwrap_used, reason = "the server of the tests unwraps")]

#[expect(dead_code, reason = "what hurts in tests is more than what hurts here")]
#[path = "../tests/mirror/server.rs"]
mod server;
#[expect(dead_code, reason = "shared by several benchmarks")]
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iota_node::events::unix_ms;
use server::{BUCKET, Fault, KEY_ID, S3Server, SECRET};
use support::{BINARY, argument, events, median, number};

/// Outages of each kind.
const ROUNDS: u64 = 4;
/// How long the mirror is well or out at a time: a few epochs, and longer than a request waits for an answer.
const WINDOW: Duration = Duration::from_secs(30);
/// Until the swarm has begun to train and the first checkpoints are made.
const WARM_UP: Duration = Duration::from_secs(30);
/// How long the server's connections may take to close.
const CLOSING: Duration = Duration::from_secs(5);
const PROCESSES: usize = 4;

/// How the mirror is in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Well,
    Refuses,
    Hangs,
}

/// A window, and what was trained in it.
struct Window {
    state: State,
    tokens_per_second: f64,
    /// Checkpoints that were complete in the mirror: what shows that it was out.
    checkpoints: usize,
}

#[expect(clippy::print_stdout, reason = "the numbers are what a benchmark is for")]
fn main() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let rounds = argument(ROUNDS);
    let runtime = tokio::runtime::Runtime::new().expect("an async runtime");
    let windows = runtime.block_on(measure(folder.path(), rounds));
    for Window { state, tokens_per_second, checkpoints } in &windows {
        let state = format!("{state:?}").to_lowercase();
        println!("{state:<8} {tokens_per_second:>8.0} tokens/s {checkpoints:>4} checkpoints");
    }
    let mut ratios = Vec::new();
    for state in [State::Refuses, State::Hangs] {
        let mut of_state: Vec<f64> = windows
            .windows(3)
            .filter(|three| three[1].state == state)
            .map(|three| {
                2.0 * three[1].tokens_per_second / (three[0].tokens_per_second + three[2].tokens_per_second)
            })
            .collect();
        ratios.extend(of_state.iter().copied());
        println!("{}", spread(&format!("{state:?}").to_lowercase(), &mut of_state));
    }
    println!("{} (target: at least 0.95)", spread("all", &mut ratios));
    let report = serde_json::json!({ "bench": "outage", "rounds": rounds, "ratio": median(&mut ratios) });
    println!("{report}");
}

/// Runs the swarm, with the mirror well before and after each outage.
async fn measure(folder: &Path, rounds: u64) -> Vec<Window> {
    let mut server = S3Server::start().await;
    let mut swarm = start(folder, &server.endpoint());
    tokio::time::sleep(WARM_UP).await;
    let outages = (0..rounds).flat_map(|_| [State::Refuses, State::Hangs]);
    let states = std::iter::once(State::Well).chain(outages.flat_map(|state| [state, State::Well]));
    let mut spans = Vec::new();
    for state in states {
        match state {
            State::Well => {}
            // Requests that hang may outlast it; the port is closed at once.
            State::Refuses => drop(tokio::time::timeout(CLOSING, server.stop()).await),
            State::Hangs => server.hurt(Fault::Hang),
        }
        let from = unix_ms();
        tokio::time::sleep(WINDOW).await;
        spans.push((state, from, unix_ms()));
        server.heal();
        if state == State::Refuses {
            server.start_again().await;
        }
    }
    assert!(swarm.try_wait().expect("a child can be waited for").is_none(), "the swarm went on to the end");
    // Its processes end with it.
    swarm.kill().expect("a child can be killed");
    swarm.wait().expect("a child can be waited for");
    let peers: Vec<_> =
        (0..PROCESSES).map(|peer| trained(&folder.join(format!("runs/bench/peers/{peer}")))).collect();
    let checkpointed = events(&folder.join("runs/bench/peers/0"), "checkpointed");
    let rate = |(state, from, to): &(State, u64, u64)| {
        let tokens: f64 = peers.iter().map(|peer| at(peer, *to) - at(peer, *from)).sum();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a window")]
        let seconds = (to - from) as f64 / 1000.0;
        let at = checkpointed.iter().filter_map(|event| event["t_ms"].as_u64());
        let checkpoints = at.filter(|at| (*from..*to).contains(at)).count();
        Window { state: *state, tokens_per_second: tokens / seconds, checkpoints }
    };
    spans.iter().map(rate).collect()
}

fn start(folder: &Path, endpoint: &str) -> Child {
    let url = format!("mirror.url=s3://{BUCKET}/run");
    Command::new(BINARY)
        .args([
            "up",
            "--no-control",
            "--name",
            "bench",
            "--validators",
            "0",
            "--stages",
            "2",
            "--miners",
            "2",
        ])
        .args(["--epochs", "100000", "--set", &url, "--set", "mirror.checkpoint_epochs=1"])
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// When a process had trained on how many tokens; only those of the tail count any.
fn trained(peer: &Path) -> Vec<(f64, f64)> {
    let progress = events(peer, "progress");
    progress.iter().map(|event| (number(&event["t_ms"]), number(&event["tokens_total"]))).collect()
}

/// Tokens trained on by then, between two reports in proportion.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 have 41 bits")]
fn at(trained: &[(f64, f64)], t_ms: u64) -> f64 {
    let now = t_ms as f64;
    let next = trained.partition_point(|(at, _)| *at <= now);
    let before = next.checked_sub(1).and_then(|before| trained.get(before)).copied().unwrap_or((now, 0.0));
    let after = trained.get(next).copied().unwrap_or((now, before.1));
    let share = if after.0 > before.0 { (now - before.0) / (after.0 - before.0) } else { 0.0 };
    before.1 + (after.1 - before.1) * share
}

/// The middle of some ratios, and how far they go.
fn spread(name: &str, ratios: &mut [f64]) -> String {
    let middle = median(ratios);
    let (least, most) = (ratios.first().copied(), ratios.last().copied());
    let (least, most) = (least.unwrap_or(f64::NAN), most.unwrap_or(f64::NAN));
    format!("{name:<8} median {middle:.3}, from {least:.3} to {most:.3}, {} outages", ratios.len())
}
