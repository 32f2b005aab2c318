//! A run's report as one HTML file.

use std::fmt::Write as _;

use super::chart::{Line, Look, Plot, bars, lanes, lines};
use super::page::{bytes, escape, number, page, table};
use super::{EpochReport, EventKind, Report};
use crate::measure::statistics::real;

pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<p>{} hosts, {} stages, seed {}: {} after {} virtual seconds and {} events. What binds: {}.</p>",
        report.hosts,
        report.stages,
        report.seed,
        escape(&report.ending),
        number(report.virtual_seconds),
        report.events,
        report.throughput.binds.name()
    );
    if let Some(validation) = &report.validation {
        let _ = writeln!(out, "<p>{}.</p>", escape(&super::text::learned(validation)));
    }
    table(&mut out, &["", "measured", "bound", "ratio"], &super::text::ratios(report));
    section(&mut out, "Throughput", &rate(report));
    section(&mut out, "Merges", &merges(report));
    section(&mut out, "Bytes by host", &traffic(report));
    section(&mut out, "Events", &timeline(report));
    if report.timeline_left_out > 0 {
        let _ = writeln!(out, "<p>{} later events are not shown.</p>", report.timeline_left_out);
    }
    out.push_str("<h2>Times</h2>\n");
    table(&mut out, &["seconds", "count", "mean", "median", "99 %", "max"], &super::text::times(report));
    out.push_str("<h2>Epochs</h2>\n");
    epochs(&mut out, report);
    page("Simulated run", &out)
}

/// A headline and a plot, if there is one.
fn section(out: &mut String, title: &str, svg: &str) {
    if !svg.is_empty() {
        let _ = write!(out, "<h2>{title}</h2>\n{svg}");
    }
}

fn line(name: &str, look: Look, color: usize, points: impl Iterator<Item = (f64, f64)>) -> Line {
    Line { name: name.to_owned(), look, color, points: points.map(|(x, y)| (x, y, None)).collect() }
}

fn rate(report: &Report) -> String {
    let rate = || report.rate.iter();
    let measured = rate().map(|point| (point.at_seconds, point.samples_per_second));
    let bound = rate().map(|point| (point.at_seconds, point.bound_samples_per_second));
    let drawn = [
        line("finished at the tail", Look::Measured, 0, measured),
        line("roofline of who is there", Look::Theory, 1, bound),
    ];
    lines(&Plot::linear("seconds", "samples per second"), &drawn)
}

fn merges(report: &Report) -> String {
    let mut drawn = Vec::new();
    for stage in 0..report.stages {
        let of = |value: fn(&EpochReport) -> Option<f64>| {
            let epochs = report.epochs.iter().filter(move |epoch| epoch.stage == stage);
            epochs.filter_map(move |epoch| Some((real(epoch.epoch), value(epoch)?)))
        };
        let color = usize::try_from(stage).unwrap_or(0);
        let measured = of(|epoch| epoch.merge_seconds);
        drawn.push(line(&format!("stage {stage}"), Look::Measured, color, measured));
        let bound = of(|epoch| epoch.merge_seconds.map(|_| epoch.bound_seconds));
        drawn.push(line(&format!("stage {stage}, bound"), Look::Theory, color, bound));
    }
    // A legend of more stages would cover the plot.
    drawn.truncate(8);
    lines(&Plot::linear("epoch", "seconds from plan to new weights"), &drawn)
}

fn traffic(report: &Report) -> String {
    let row = |host: &super::HostTraffic| {
        let kinds =
            [host.gossip_bytes, host.request_bytes, host.pushed_bytes, host.fetched_bytes, host.served_bytes];
        (host.host.to_string(), kinds.map(real).to_vec())
    };
    let rows: Vec<_> = report.traffic.iter().map(row).collect();
    let kinds = ["gossip", "requests", "activations sent", "blobs fetched", "blobs served"];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive size below 2^53")]
    let write = |value: f64| bytes(value as u64);
    bars("host", "bytes", &kinds, &rows, write)
}

fn timeline(report: &Report) -> String {
    let lane = |kind: EventKind| EventKind::ALL.iter().position(|other| *other == kind).unwrap_or(0);
    let marks: Vec<_> = report
        .timeline
        .iter()
        .map(|event| (lane(event.kind), real(event.at_ms) / 1e3, event.what.clone()))
        .collect();
    lanes("seconds", &EventKind::ALL.map(EventKind::name), &marks, report.virtual_seconds)
}

fn epochs(out: &mut String, report: &Report) {
    let optional = |value: Option<f64>| value.map(number).unwrap_or_default();
    let row = |epoch: &EpochReport| {
        vec![
            epoch.epoch.to_string(),
            epoch.stage.to_string(),
            number(epoch.opened_seconds),
            optional(epoch.planned_seconds),
            optional(epoch.merged_seconds),
            format!("{} of {}", epoch.submitters, epoch.members),
            epoch.samples.to_string(),
            optional(epoch.samples_per_second),
            optional(epoch.merge_seconds),
            number(epoch.bound_seconds),
        ]
    };
    let rows: Vec<_> = report.epochs.iter().map(row).collect();
    let head = [
        "epoch",
        "stage",
        "opened, s",
        "planned, s",
        "merged, s",
        "replicas",
        "samples",
        "samples/s",
        "merge, s",
        "bound, s",
    ];
    table(out, &head, &rows);
}
