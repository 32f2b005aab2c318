//! The sweeps behind the claims: throughput on the roofline, and what grows how with the swarm.
//!
//! What survives in a merge has [its own file](super::valid_fraction).

use std::time::Duration;

use super::{Parameter, Swarm, Sweep, vary};

/// Virtual time each run may take.
const LIMIT: Duration = Duration::from_secs(3600);
/// Samples of each miner: filling and draining the pipeline takes a few percent of the epoch.
const SAMPLES_EACH: u32 = 240;

/// Bytes per second from where sending binds (an interior stage sends two activations of 112 KiB per sample of 0.3 s, so
/// up to 765 kB/s) to where computing does.
pub const BANDWIDTHS: [f64; 6] = [3e5, 5e5, 8e5, 1.6e6, 6.4e6, 1e8];
/// Seconds to the backbone, from where computing binds to where the window does.
pub const LATENCIES: [f64; 6] = [0.001, 0.01, 0.05, 0.1, 0.2, 0.4];

/// Miners, from a swarm that fits a room to one that nobody has run.
pub const SIZES: [f64; 5] = [100.0, 200.0, 300.0, 500.0, 1000.0];

/// Three stages of four miners whose merges are small.
fn pipeline(window: u16) -> Swarm {
    let mut swarm = Swarm::new(3, 4, 1);
    swarm.samples_each = SAMPLES_EACH;
    swarm.spec.pipeline.window = window;
    swarm.costs.parameters = 10_000;
    swarm
}

/// Throughput over bandwidth. The window is wide enough for the stages to be busy, and narrow enough for all that a miner
/// pushes at once to pass before a transfer's deadline.
#[must_use]
pub fn bandwidth(values: &[f64], seeds: &[u64]) -> Sweep {
    vary(&pipeline(8), Parameter::Bandwidth, values, seeds, LIMIT)
}

/// Throughput over latency, with the default window, which latency exhausts.
#[must_use]
pub fn latency(values: &[f64], seeds: &[u64]) -> Sweep {
    vary(&pipeline(4), Parameter::Latency, values, seeds, LIMIT)
}

/// What a miner hears and does in swarms of these sizes, all of five stages, with the same work for each miner and as many
/// partitions as replicas.
#[must_use]
pub fn growth(nodes: &[f64], seeds: &[u64]) -> Sweep {
    let mut swarm = Swarm::new(5, 1, 2);
    swarm.samples_each = 8;
    vary(&swarm, Parameter::Nodes, nodes, seeds, LIMIT)
}
