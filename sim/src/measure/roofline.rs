//! What no pipeline on these hosts and links can exceed.
//!
//! With *C* the time of a sample's forward and backward pass, *A* the bytes of an activation, *B* a link's bytes per
//! second and *r* replicas in a stage, a stage handles at most `Σ 1/C` samples per second by computing and `Σ B/A` by
//! sending one activation (the ends of the pipeline) or an activation and a gradient (everybody else). The slowest stage
//! bounds the pipeline: the roofline of Williams et al. (2009) with the network as the slanted side. By Little's law
//! (1961), *W* samples in flight at each of the *r* heads allow no more than `W r / R`, where
//! `R = p C + 2 (p − 1) (α + A/B)` is the time a lone sample takes through *p* stages and back.
//!
//! As in the [virtual network](crate::network), the first flight of each transfer is free: *A* counts what is beyond it.

use std::collections::BTreeMap;

use iota_protocol::RunSpec;
use serde::{Deserialize, Serialize};

use super::statistics::{mean, real, rounded};
use crate::costs::{Costs, activation_bytes};
use crate::network::{FIRST_FLIGHT_BYTES, Link};

/// What a host brings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    /// Its link.
    pub link: Link,
    /// How fast it computes.
    pub speed: f64,
}

/// Bounds of a pipeline's throughput, in samples per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// By computing, of the stage that has least of it.
    pub compute: f64,
    /// By sending.
    pub uplink: f64,
    /// By receiving.
    pub downlink: f64,
    /// By samples in flight and the time each takes.
    pub window: f64,
    /// By all of them: what cannot be exceeded. Below the smallest of the others where hosts differ.
    pub bound: f64,
}

/// What binds a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binds {
    /// Engines.
    #[default]
    Compute,
    /// What a stage can send, or receive.
    Uplink,
    /// Too few samples in flight for the latency.
    LatencyWindow,
    /// Replicas that finish later than the others.
    Straggler,
    /// Hosts that are gone and not yet replaced.
    Churn,
}

impl Binds {
    /// As people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Uplink => "uplink",
            Self::LatencyWindow => "latency window",
            Self::Straggler => "straggler",
            Self::Churn => "churn",
        }
    }
}

/// Bytes of a transfer that need a share of a link.
#[must_use]
pub const fn shared_bytes(blob: u64) -> u64 {
    blob.saturating_sub(FIRST_FLIGHT_BYTES)
}

/// Activations that a stage sends for each sample, and receives.
fn crossings(stage: usize, stages: usize) -> (f64, f64) {
    let (head, tail) = (stage == 0, stage + 1 == stages);
    let (up, down) = (u64::from(!tail) + u64::from(!head), u64::from(!head) + u64::from(!tail));
    (real(up), real(down))
}

impl Roofline {
    /// Of a pipeline whose stages have these replicas. All zero if one has none.
    #[must_use]
    pub fn of(spec: &RunSpec, costs: &Costs, replicas: &[Vec<Means>]) -> Self {
        if replicas.is_empty() || replicas.iter().any(Vec::is_empty) {
            return Self::default();
        }
        let sample_seconds = (costs.forward + costs.backward).as_secs_f64();
        let activation = real(shared_bytes(activation_bytes(spec)));
        let per_sample = |bytes_per_second: f64, crossings: f64| {
            if crossings * activation > 0.0 {
                bytes_per_second / (crossings * activation)
            } else {
                f64::INFINITY
            }
        };
        let least = |rate: &dyn Fn(usize, &Means) -> f64| {
            let stages = replicas.iter().enumerate();
            stages
                .map(|(stage, hosts)| hosts.iter().map(|host| rate(stage, host)).sum::<f64>())
                .fold(f64::INFINITY, f64::min)
        };
        let compute = |_: usize, host: &Means| host.speed / sample_seconds;
        let uplink =
            |stage: usize, host: &Means| per_sample(host.link.up, crossings(stage, replicas.len()).0);
        let downlink =
            |stage: usize, host: &Means| per_sample(host.link.down, crossings(stage, replicas.len()).1);
        let each = |stage: usize, host: &Means| {
            compute(stage, host).min(uplink(stage, host)).min(downlink(stage, host))
        };
        let in_flight = real(u64::from(spec.pipeline.window) * replicas[0].len() as u64);
        let window = in_flight / residence_seconds(spec, costs, replicas);
        Self {
            compute: rounded(least(&compute)),
            uplink: rounded(least(&uplink)),
            downlink: rounded(least(&downlink)),
            window: rounded(window),
            bound: rounded(least(&each).min(window)),
        }
    }

    /// The smallest of the bounds. A bound that does not exist is zero.
    #[must_use]
    pub fn binds(&self) -> Binds {
        let of = |bound: f64| if bound > 0.0 { bound } else { f64::INFINITY };
        let network = of(self.uplink).min(of(self.downlink));
        if of(self.window) < of(self.compute).min(network) {
            Binds::LatencyWindow
        } else if network < of(self.compute) {
            Binds::Uplink
        } else {
            Binds::Compute
        }
    }
}

/// The mean time of a lone sample through all stages and back.
fn residence_seconds(spec: &RunSpec, costs: &Costs, replicas: &[Vec<Means>]) -> f64 {
    let sample_seconds = (costs.forward + costs.backward).as_secs_f64();
    let activation = real(shared_bytes(activation_bytes(spec)));
    let of =
        |hosts: &[Means], value: &dyn Fn(&Means) -> f64| mean(&hosts.iter().map(value).collect::<Vec<_>>());
    let computing: f64 =
        replicas.iter().map(|hosts| of(hosts, &|host: &Means| sample_seconds / host.speed)).sum();
    // A latency is stretched by jitter in the mean, and both ends of a hop have one.
    let latency = |host: &Means| host.link.latency.as_secs_f64() * (1.0 + host.link.jitter);
    let slowest = |host: &Means| activation / host.link.up.min(host.link.down);
    let hops: f64 = replicas
        .windows(2)
        .map(|pair| {
            let ends: f64 = pair.iter().map(|hosts| of(hosts, &latency)).sum();
            let wire = of(&pair[0], &slowest).max(of(&pair[1], &slowest));
            2.0 * (ends + wire)
        })
        .sum();
    computing + hops
}

/// The least time in which a merge's bytes can move, in seconds: as planned, and without redundancy.
///
/// Each owner fetches its partitions from all other submitters, and each submitter fetches what it does not own of the
/// merged vector: bytes down are counted host by host, and bytes up host by host for contributions, over all hosts
/// for the merged partitions, which any owner can serve. Two one-way latencies, of an exchange each way, are added.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MergeBound {
    /// With the owners of the plan.
    pub planned_seconds: f64,
    /// With one owner per partition: `2 (n − 1)/n · S/B` on equal links (Patarasuk and Yuan 2009).
    pub all_reduce_seconds: f64,
}

impl MergeBound {
    /// Of a merge among `submitters`, where `owners` names those of each partition by position in `submitters`.
    #[must_use]
    pub fn of(submitters: &[Link], owners: &[Vec<usize>], partition_bytes: u64) -> Self {
        let single: Vec<Vec<usize>> =
            owners.iter().map(|owners| owners.iter().copied().take(1).collect()).collect();
        Self {
            planned_seconds: rounded(exchange_seconds(submitters, owners, partition_bytes)),
            all_reduce_seconds: rounded(exchange_seconds(submitters, &single, partition_bytes)),
        }
    }
}

fn exchange_seconds(submitters: &[Link], owners: &[Vec<usize>], partition_bytes: u64) -> f64 {
    let (n, bytes) = (submitters.len() as u64, real(shared_bytes(partition_bytes)));
    if n < 2 {
        return 0.0;
    }
    let mut owned: BTreeMap<usize, u64> = BTreeMap::new();
    owners.iter().flatten().for_each(|owner| *owned.entry(*owner).or_default() += 1);
    let partitions = owners.len() as u64;
    let copies: u64 = owned.values().sum();
    let (mut longest, mut moved, mut capacity) = (0.0_f64, 0.0, 0.0);
    for (index, link) in submitters.iter().enumerate() {
        let mine = owned.get(&index).copied().unwrap_or(0);
        let down = real(mine * (n - 1) + (partitions - mine)) * bytes;
        let contributed = real(copies - mine) * bytes;
        longest = longest.max(down / link.down).max(contributed / link.up);
        moved += down;
        capacity += link.up;
    }
    let mut latencies: Vec<f64> = submitters.iter().map(|link| link.latency.as_secs_f64()).collect();
    latencies.sort_by(f64::total_cmp);
    longest.max(moved / capacity) + 2.0 * latencies.iter().take(2).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_what_arithmetic_says() {
        let mut spec = RunSpec::default();
        spec.pipeline.window = 2;
        let link = Link { up: 1e6, down: 2e6, jitter: 0.0, ..Link::DATACENTRE };
        let replicas = vec![vec![Means { link, speed: 1.0 }; 2]; 3];
        let roofline = Roofline::of(&spec, &Costs::default(), &replicas);
        let a = 131_072.0 - 16_384.0;
        assert!((roofline.compute - 2.0 / 0.3).abs() < 1e-6);
        assert!((roofline.uplink - 2.0 * 1e6 / (2.0 * a)).abs() < 1e-5, "an interior stage sends twice");
        assert!((roofline.downlink - 2.0 * 2e6 / (2.0 * a)).abs() < 1e-5);
        let residence = 0.9 + 4.0 * (0.01 + a / 1e6);
        assert!((roofline.window - 4.0 / residence).abs() < 1e-5);
        assert_eq!(roofline.bound, roofline.window);
        assert_eq!(roofline.binds(), Binds::LatencyWindow);
    }

    #[test]
    fn a_merge_without_redundancy_is_bound_by_the_all_reduce() {
        let link = Link { up: 1e6, down: 1e6, ..Link::DATACENTRE };
        let (n, partition) = (4_usize, 1_000_000 + FIRST_FLIGHT_BYTES);
        let owners: Vec<Vec<usize>> = (0..8).map(|partition| vec![partition % n]).collect();
        let bound = MergeBound::of(&[link; 4], &owners, partition);
        // S = 8 MB at 1 MB/s: 2 · 3/4 · 8 s, and an exchange each way at 10 ms.
        assert!((bound.planned_seconds - (12.0 + 0.02)).abs() < 1e-6, "{bound:?}");
        assert_eq!(bound.planned_seconds, bound.all_reduce_seconds);
        let twice: Vec<Vec<usize>> =
            (0..8).map(|partition| vec![partition % n, (partition + 1) % n]).collect();
        let redundant = MergeBound::of(&[link; 4], &twice, partition);
        // Four partitions of three others, and the four that others own.
        assert!((redundant.planned_seconds - (16.0 + 0.02)).abs() < 1e-6, "{redundant:?}");
        assert_eq!(redundant.all_reduce_seconds, bound.all_reduce_seconds);
    }
}
