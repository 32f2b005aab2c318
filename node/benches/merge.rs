//! A butterfly merge of a stage of 64 MiB among four processes on loopback.
//!
//! The bytes a merge must move follow from the plan: each of n replicas owns r/n of the vector, fetches that
//! share from n − 1 others, and fetches the rest merged. The control is how fast the same run's machine
//! copies bytes between two threads over loopback TCP: no encryption, no hashing, no disk. Prints a
//! table, then one line of JSON.
//!
//! Run it with `cargo bench -p iota-node --bench merge [-- <merges>]`.

#[expect(dead_code, reason = "shared by several benchmarks")]
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use support::{argument, events, median, number, up};

const REPLICAS: u64 = 4;
const REDUNDANCY: u64 = 2;
const MERGES: u64 = 4;
const COPY_BYTES: usize = 1 << 30;

/// One stage of 16.8 million parameters, 64 MiB in f32; samples so small that the merge is what takes time.
const SPEC: &str = r#"
[model]
context = 16
width = 512
layers = 6
heads = 8
kv_heads = 4
hidden = 1280
bottleneck = "none"
[pipeline]
stages = 1
start_replicas = 4
[data]
builtin_bytes = "64KiB"
[training]
mode = "synchronous"
samples_per_epoch = 4
sequences_per_sample = 1
[merge]
partition_bytes = "1MiB"
[timing]
heartbeat = "500ms"
eviction = "20s"
merge_deadline = "60s"
"#;

#[expect(clippy::print_stdout, reason = "the numbers are what a benchmark is for")]
fn main() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    std::fs::write(folder.path().join("run.toml"), SPEC).expect("write the spec");
    let epochs = argument(MERGES).to_string();
    let before = copy_rate();
    let arguments =
        ["--spec", "run.toml", "--stages", "1", "--miners", "4", "--epochs", &epochs, "--no-control"];
    let summary = up(folder.path(), &arguments);
    let loopback = f64::midpoint(before, copy_rate());

    let peers = folder.path().join("runs/bench/peers");
    let mut times = Vec::new();
    let mut fetched = 0.0;
    for peer in 0..REPLICAS {
        let closed = events(&peers.join(peer.to_string()), "merge_closed");
        // The first merge also makes the connections.
        times.extend(closed.iter().skip(1).map(|event| number(&event["seconds"])));
        let traffic = events(&peers.join(peer.to_string()), "traffic");
        fetched += traffic.last().map_or(0.0, |event| number(&event["blobs_in"]));
    }
    let merge = median(&mut times);
    let stage = number(&summary["parameters"]) * 4.0;
    let (n, r) = (REPLICAS as f64, REDUNDANCY as f64);
    let must_move = stage * (r * (n - 1.0) + (n - r));
    let floor = must_move / loopback;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let per_merge = fetched / number(&summary["epochs"]);
    println!("{:<34} {:>10.1} MiB", "stage", mib(stage));
    println!("{:<34} {merge:>10.2} s (plan to outcome, median of {})", "merge", times.len());
    println!("{:<34} {:>10.1} MiB", "bytes a merge must move, all peers", mib(must_move));
    println!("{:<34} {:>10.1} MiB", "bytes fetched per merge, all peers", mib(per_merge));
    println!("{:<34} {:>10.0} MiB/s", "loopback TCP copy", mib(loopback));
    println!("{:<34} {floor:>10.2} s", "floor at that speed");
    println!("ratio merge / floor {:.1}", merge / floor);
    let report = serde_json::json!({ "bench": "merge", "stage_bytes": stage, "merge_s": merge, "must_move_bytes": must_move, "fetched_bytes": per_merge, "loopback_bytes_per_s": loopback, "floor_s": floor, "ratio": merge / floor });
    println!("{report}");
}

/// Bytes per second between two threads over loopback TCP.
fn copy_rate() -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let begin = Instant::now();
    let sender = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).expect("connect");
        let chunk = vec![7_u8; 1 << 20];
        (0..COPY_BYTES / chunk.len()).for_each(|_| stream.write_all(&chunk).expect("write"));
    });
    let (mut stream, _) = listener.accept().expect("accept");
    let mut buffer = vec![0_u8; 1 << 20];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer).expect("read") {
            0 => break,
            bytes => received += bytes,
        }
    }
    sender.join().expect("the sender ends");
    assert_eq!(received, COPY_BYTES, "everything arrived");
    COPY_BYTES as f64 / begin.elapsed().as_secs_f64()
}
