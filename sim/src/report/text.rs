//! A run's report in a few lines for a terminal.

use std::fmt::Write as _;

use super::page::{bytes, number};
use super::{Report, Validation};
use crate::measure::statistics::Distribution;

/// What was achieved beside what was possible: name, measured, bound, ratio.
pub(super) fn ratios(report: &Report) -> Vec<Vec<String>> {
    let throughput = &report.throughput;
    let row = |name: &str, measured: String, bound: String, ratio: f64| {
        vec![name.to_owned(), measured, bound, format!("{ratio:.3}")]
    };
    let rate = |value: f64| format!("{} samples/s", number(value));
    let seconds = |value: f64| format!("{} s", number(value));
    let merge = report.merges.merge_seconds.mean;
    vec![
        row(
            "η_pipe",
            rate(throughput.samples_per_second),
            rate(throughput.bound_samples_per_second),
            throughput.eta_pipe,
        ),
        row("η_net", seconds(merge), seconds(merge * report.merges.eta_net), report.merges.eta_net),
        row(
            "η_net without redundancy",
            seconds(merge),
            seconds(merge * report.merges.eta_all_reduce),
            report.merges.eta_all_reduce,
        ),
        row(
            "η_work",
            seconds(report.work.passes_seconds),
            seconds(report.work.useful_seconds),
            report.work.eta_work,
        ),
        row(
            "goodput",
            rate(throughput.goodput_samples_per_second),
            rate(throughput.roofline.bound),
            crate::measure::statistics::ratio(
                throughput.goodput_samples_per_second,
                throughput.roofline.bound,
            ),
        ),
        row(
            "live capacity",
            rate(throughput.roofline.bound * throughput.live_capacity),
            rate(throughput.roofline.bound),
            throughput.live_capacity,
        ),
    ]
}

/// What was learned, as a sentence.
pub(super) fn learned(validation: &Validation) -> String {
    let Validation { initial_nats, final_nats, epochs, .. } = validation;
    format!("validation loss {final_nats:.4} nats after {epochs} epochs, {initial_nats:.4} before the first")
}

/// How long things took: name, count, mean, median, 99 %, maximum.
pub(super) fn times(report: &Report) -> Vec<Vec<String>> {
    let row = |name: &str, times: &Distribution| {
        let numbers = [times.mean, times.p50, times.p99, times.max].map(number);
        [name.to_owned(), times.count.to_string()].into_iter().chain(numbers).collect()
    };
    vec![
        row("merge", &report.merges.merge_seconds),
        row("reduce", &report.merges.reduce_seconds),
        row("detect a death", &report.churn.detect_seconds),
        row("reroute", &report.churn.reroute_seconds),
        row("elect", &report.churn.election_seconds),
        row("join", &report.churn.join_seconds),
    ]
}

fn write_rows(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let _ = write!(out, "{:<25}", row.first().map_or("", String::as_str));
        for cell in row.iter().skip(1) {
            let _ = write!(out, " {cell:>18}");
        }
        out.push('\n');
    }
}

pub(super) fn render(report: &Report) -> String {
    let mut out = format!(
        "{} after {} virtual seconds: {} hosts, {} stages, seed {}, {} events\n",
        report.ending,
        number(report.virtual_seconds),
        report.hosts,
        report.stages,
        report.seed,
        report.events
    );
    if let Some(validation) = &report.validation {
        let _ = writeln!(out, "{}", learned(validation));
    }
    write_rows(&mut out, &["", "measured", "bound", "ratio"], &ratios(report));
    write_rows(&mut out, &["seconds", "count", "mean", "median", "99 %", "max"], &times(report));
    let roofline = &report.throughput.roofline;
    let _ = writeln!(
        out,
        "binds: {} (samples/s by compute {}, uplink {}, downlink {}, window {})",
        report.throughput.binds.name(),
        number(roofline.compute),
        number(roofline.uplink),
        number(roofline.downlink),
        number(roofline.window)
    );
    if let Some(leader) = &report.leader {
        let _ = writeln!(
            out,
            "leader, host {}: {} actions (median {}), {} messages sent ({}), {} moved ({})",
            leader.host,
            leader.actions,
            leader.median_actions,
            leader.sent_messages,
            leader.median_sent_messages,
            bytes(leader.bytes),
            bytes(leader.median_bytes)
        );
    }
    out
}
