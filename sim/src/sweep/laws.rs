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

/// Samples under way at each miner of the first stage.
pub const WINDOWS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// The default, which a latency of tens of milliseconds exhausts.
pub const LATENCY_WINDOW: u16 = 4;
/// Wide enough for the stages to be busy, and narrow enough for all that a miner pushes at once to pass a slow link before
/// a transfer's deadline.
pub const BANDWIDTH_WINDOW: u16 = 8;

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

/// Throughput over bandwidth.
#[must_use]
pub fn bandwidth(values: &[f64], window: u16, seeds: &[u64]) -> Sweep {
    vary(&pipeline(window), Parameter::Bandwidth, values, seeds, LIMIT)
}

/// Throughput over latency.
#[must_use]
pub fn latency(values: &[f64], window: u16, seeds: &[u64]) -> Sweep {
    vary(&pipeline(window), Parameter::Latency, values, seeds, LIMIT)
}

/// Throughput over the window, on fast links. Samples are dealt to replicas at random, so that with few of them under way
/// some replica has none to do while another has several.
#[must_use]
pub fn window(values: &[f64], seeds: &[u64]) -> Sweep {
    vary(&pipeline(LATENCY_WINDOW), Parameter::Window, values, seeds, LIMIT)
}

/// What a miner hears and does in swarms of these sizes, all of five stages, with the same work for each miner and as many
/// partitions as replicas.
#[must_use]
pub fn growth(nodes: &[f64], seeds: &[u64]) -> Sweep {
    let mut swarm = Swarm::new(5, 1, 2);
    swarm.samples_each = 8;
    vary(&swarm, Parameter::Nodes, nodes, seeds, LIMIT)
}
