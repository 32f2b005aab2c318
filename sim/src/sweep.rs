//! Varies one parameter over values and seeds, and puts what theory says beside what comes out.
//!
//! Each value is run once per seed; runs of different seeds are independent, so a mean over them has a 95 % interval by
//! Student's t. Shares of things that either happen or not have Wilson's interval instead. About one interval in twenty
//! misses the true value: a curve agrees with its theory if few points do.
//!
//! [`vary`] is for anything a run reports, [`laws`] names the sweeps behind the claims, [`valid_fraction`] is for what
//! survives failures in a merge, [`clasp`] for whom losses name, [`gauntlet`] for what cheats earn where contributions are
//! judged by the loss, and [`rebalance`] for what moves between stages are worth.

pub mod clasp;
pub mod gauntlet;
pub mod laws;
pub mod rebalance;
mod setups;
pub mod valid_fraction;
mod write;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::Messages;
use crate::measure::statistics::{Estimate, exponent, ratio, real};
use crate::report::Report;

pub use setups::{Parameter, Swarm};

/// What came out of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// What was swept.
    pub title: String,
    /// What was varied, with its unit.
    pub parameter: String,
    /// How the swarm looked otherwise.
    pub setting: String,
    /// One for each number that was looked at.
    pub curves: Vec<Curve>,
}

/// One number over the values of the parameter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// What the theory is; empty if there is none.
    pub theory: String,
    /// How intervals were made.
    pub method: Method,
    /// *b* of the power law *y = a xᵇ* that fits best.
    pub exponent: f64,
    /// Ascending by value.
    pub points: Vec<Point>,
}

/// How 95 % confidence intervals were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Student's t over one value per seed.
    #[default]
    StudentT,
    /// Wilson's score interval of a share.
    Wilson,
}

/// One value of the parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The value.
    pub value: f64,
    /// What was measured.
    pub measured: Estimate,
    /// What theory says.
    pub theory: Option<f64>,
    /// What theory says of a swarm without end, where that differs.
    pub limit: Option<f64>,
    /// Measured ÷ theory.
    pub ratio: Option<f64>,
}

impl Point {
    /// A point beside its theory.
    #[must_use]
    pub fn new(value: f64, measured: Estimate, theory: Option<f64>) -> Self {
        let ratio = theory.filter(|theory| *theory > 0.0).map(|theory| ratio(measured.mean, theory));
        Self { value, measured, theory, limit: None, ratio }
    }
}

impl Curve {
    /// A curve of these points.
    #[must_use]
    pub fn new(name: &str, unit: &str, theory: &str, method: Method, points: Vec<Point>) -> Self {
        let means: Vec<(f64, f64)> = points.iter().map(|point| (point.value, point.measured.mean)).collect();
        let exponent = exponent(&means);
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            theory: theory.to_owned(),
            method,
            exponent,
            points,
        }
    }
}

impl Sweep {
    /// The curve of this name.
    #[must_use]
    pub fn curve(&self, name: &str) -> Option<&Curve> {
        self.curves.iter().find(|curve| curve.name == name)
    }

    /// The sweep as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        #[expect(clippy::expect_used, reason = "every field of a sweep has a JSON form")]
        serde_json::to_string_pretty(self).expect("a sweep has a JSON form")
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The sweep as tables for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        write::text(self)
    }

    /// The sweep as one HTML file with a plot for each curve.
    #[must_use]
    pub fn to_html(&self) -> String {
        write::html(self)
    }
}

/// A number of a run's report, and what theory says of it.
struct Quantity {
    name: &'static str,
    unit: &'static str,
    theory: &'static str,
    of: fn(&Report) -> (f64, Option<f64>),
}

/// What [`vary`] looks at.
const QUANTITIES: [Quantity; 11] = [
    Quantity {
        name: "throughput",
        unit: "samples/s",
        theory: "roofline of who is there",
        of: |report| (report.throughput.samples_per_second, Some(report.throughput.bound_samples_per_second)),
    },
    Quantity {
        name: "goodput",
        unit: "samples/s",
        theory: "roofline × live capacity",
        of: |report| {
            let throughput = &report.throughput;
            let possible = throughput.roofline.bound * throughput.live_capacity;
            (throughput.goodput_samples_per_second, Some(possible))
        },
    },
    Quantity {
        name: "merge",
        unit: "s",
        theory: "least time for the plan's bytes",
        of: |report| {
            let bounds: Vec<f64> = report
                .epochs
                .iter()
                .filter(|epoch| epoch.merge_seconds.is_some())
                .map(|epoch| epoch.bound_seconds)
                .collect();
            (report.merges.merge_seconds.mean, Some(crate::measure::statistics::mean(&bounds)))
        },
    },
    Quantity {
        name: "useful work",
        unit: "of passes",
        theory: "1",
        of: |report| (report.work.eta_work, Some(1.0)),
    },
    Quantity {
        name: "bytes per node",
        unit: "bytes/s",
        theory: "",
        of: |report| {
            let bytes: u64 = report.traffic.iter().map(crate::report::HostTraffic::bytes).sum();
            (per_node_second(report, bytes), None)
        },
    },
    Quantity {
        name: "events per node",
        unit: "1/s",
        theory: "",
        of: |report| (per_node_second(report, report.events), None),
    },
    Quantity {
        name: "control messages per miner and epoch",
        unit: "messages",
        theory: "",
        of: |report| (per_miner_epoch(report, |messages| messages.control), None),
    },
    Quantity {
        name: "records per miner and epoch",
        unit: "messages",
        theory: "",
        of: |report| (per_miner_epoch(report, |messages| messages.records), None),
    },
    Quantity {
        name: "merge messages per miner and epoch",
        unit: "messages",
        theory: "a manifest and a digest of each other submitter of its stage",
        of: |report| {
            let submitted: u64 = report.epochs.iter().map(|epoch| epoch.submitters).sum();
            let theory = 2.0 * (ratio(real(submitted), real(report.epochs.len() as u64)) - 1.0);
            (per_miner_epoch(report, |messages| messages.merges), Some(theory))
        },
    },
    Quantity {
        name: "fetches per miner and epoch",
        unit: "messages",
        theory: "",
        of: |report| (per_miner_epoch(report, |messages| messages.fetches), None),
    },
    Quantity {
        name: "pushes per miner and epoch",
        unit: "messages",
        theory: "",
        of: |report| (per_miner_epoch(report, |messages| messages.pushes), None),
    },
];

/// Mean over those who mine; candidates hear everything.
fn per_miner_epoch(report: &Report, count: fn(&Messages) -> u64) -> f64 {
    let epochs = report.epochs.iter().map(|epoch| epoch.epoch + 1).max().unwrap_or(1);
    let miners = report.traffic.iter().filter(|host| host.stage.is_some());
    let counts: Vec<f64> = miners.map(|host| real(count(&host.messages)) / real(epochs)).collect();
    crate::measure::statistics::mean(&counts)
}

fn per_node_second(report: &Report, total: u64) -> f64 {
    ratio(real(total), real(report.hosts) * report.virtual_seconds)
}

/// Runs `swarm` with `parameter` at each of `values` for each seed, for at most `limit` of virtual time each.
#[must_use]
pub fn vary(swarm: &Swarm, parameter: Parameter, values: &[f64], seeds: &[u64], limit: Duration) -> Sweep {
    let measured: Vec<(f64, Vec<Report>)> = values
        .iter()
        .map(|&value| {
            let varied = swarm.with(parameter, value);
            let run = |&seed: &u64| crate::measure::run(varied.setup(seed, limit), limit);
            (value, seeds.iter().map(run).collect())
        })
        .collect();
    let curve = |quantity: &Quantity| {
        let points = measured.iter().map(|(value, reports)| {
            let (means, theories): (Vec<f64>, Vec<Option<f64>>) = reports.iter().map(quantity.of).unzip();
            let theories: Option<Vec<f64>> = theories.into_iter().collect();
            let theory = theories.as_deref().map(crate::measure::statistics::mean);
            Point::new(*value, Estimate::of(&means), theory)
        });
        Curve::new(quantity.name, quantity.unit, quantity.theory, Method::StudentT, points.collect())
    };
    Sweep {
        title: format!("By {}", parameter.name()),
        parameter: format!("{}, {}", parameter.name(), parameter.unit()),
        setting: swarm.to_string(),
        curves: QUANTITIES.iter().map(curve).collect(),
    }
}

#[cfg(test)]
mod tests;
