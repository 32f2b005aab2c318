//! How fast the simulator is, and how its cost grows with the number of hosts.
//!
//! `cargo bench -p iota-sim --bench scale` simulates swarms of 100 to 1000 hosts (5 stages, 3 candidates, 10 epochs, no
//! faults, `cost` mode) and prints, for each, seconds, events per second, messages per host and memory per host.
//! `-- --nodes 300` simulates one size.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads the clock")]

use std::time::{Duration, Instant};

use iota_protocol::RunSpec;
use iota_protocol::time::Millis;
use iota_sim::world::{Ending, Setup, World};

const STAGES: u16 = 5;
const EPOCHS: u32 = 10;
/// Virtual time that no size needs.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

fn setup(nodes: usize) -> Setup {
    let mut spec = RunSpec::default();
    spec.model.layers = u32::from(STAGES);
    spec.pipeline.stages = STAGES;
    let replicas = nodes / usize::from(STAGES);
    spec.pipeline.start_replicas = u16::try_from(replicas).expect("a small swarm");
    spec.training.epochs = EPOCHS;
    spec.training.samples_per_epoch = u32::try_from(replicas * 4).expect("a small swarm");
    spec.timing.heartbeat = Millis::from_secs(5);
    spec.timing.eviction = Millis::from_secs(30);
    spec.merge.partitions_min = spec.pipeline.start_replicas.into();
    Setup::new(spec, 7, 3, nodes)
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[expect(clippy::cast_precision_loss, reason = "printed counts")]
fn measure(nodes: usize) {
    let (before, start) = (resident(), Instant::now());
    let mut world = World::new(setup(nodes));
    let ending = world.run(LIMIT);
    assert!(matches!(ending, Ending::Finished(_)), "{nodes} hosts: {ending:?}");
    let seconds = start.elapsed().as_secs_f64();
    let memory = resident().saturating_sub(before) as f64 / nodes as f64 / 1e6;
    let heard: u64 = world.hosts().iter().map(|host| host.traffic.gossip_messages).sum();
    println!(
        "{nodes:>6} {seconds:>9.2} {:>11} {:>11.0} {:>9.1} {:>14.0} {memory:>8.2}",
        world.events(),
        world.events() as f64 / seconds,
        world.now().since(iota_protocol::Instant::ZERO).as_secs_f64(),
        heard as f64 / nodes as f64,
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let one = arguments.windows(2).find(|pair| pair[0] == "--nodes").and_then(|pair| pair[1].parse().ok());
    println!(
        "{:>6} {:>9} {:>11} {:>11} {:>9} {:>14} {:>8}",
        "hosts", "seconds", "events", "events/s", "virtual s", "gossip/host", "MB/host"
    );
    match one {
        Some(nodes) => measure(nodes),
        None => [100, 200, 300, 500, 1000].into_iter().for_each(measure),
    }
}
