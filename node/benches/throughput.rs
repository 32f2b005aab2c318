//! Speed of a whole swarm against one process on the same cores, on the same samples.
//!
//! Runs `iota-node up` with its defaults, which trains the control right after the swarm. Prints a table,
//! then one line of JSON. The target is a ratio of at least 0.75.
//!
//! Run it with `cargo bench -p iota-node --bench throughput [-- <epochs>]`.

#[expect(dead_code, reason = "shared by several benchmarks")]
mod support;

use support::{argument, number, up};

const EPOCHS: u64 = 16;

#[expect(clippy::print_stdout, reason = "the numbers are what a benchmark is for")]
fn main() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let epochs = argument(EPOCHS).to_string();
    let summary = up(folder.path(), &["--epochs", &epochs]);
    let rate = |who: &str| number(&summary[who]["tokens"]) / number(&summary[who]["seconds"]);
    let (swarm, control) = (rate("swarm"), rate("control"));
    println!("{:<12} {:>10} {:>9} {:>10}", "", "tokens", "seconds", "tokens/s");
    for who in ["swarm", "control"] {
        let (tokens, seconds) = (number(&summary[who]["tokens"]), number(&summary[who]["seconds"]));
        println!("{who:<12} {tokens:>10} {seconds:>9.1} {:>10.0}", rate(who));
    }
    println!("ratio {:.2} (target: at least 0.75)", swarm / control);
    let report = serde_json::json!({ "bench": "throughput", "epochs": epochs, "swarm_tokens_per_s": swarm, "control_tokens_per_s": control, "ratio": swarm / control });
    println!("{report}");
}
