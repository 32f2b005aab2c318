//! A sweep as text and as one HTML file.

use std::fmt::Write as _;

use super::{Curve, Method, Point, Sweep};
use crate::report::chart::{Axis, Line, Look, Plot, lines};
use crate::report::page::{escape, number, page, table};

/// Values that span more than this factor are drawn on a logarithmic axis.
const LOG_SPAN: f64 = 20.0;

const HEAD: [&str; 6] = ["value", "measured", "95 % interval", "theory", "without end", "measured ÷ theory"];

/// A number with four decimals, or with none where they would not count.
fn digits(value: f64) -> String {
    if value.abs() < 1000.0 { format!("{value:.4}") } else { format!("{value:.0}") }
}

fn row(point: &Point) -> Vec<String> {
    let optional = |value: Option<f64>| value.map(digits).unwrap_or_default();
    let Point { value, measured, theory, limit, ratio } = point;
    vec![
        number(*value),
        digits(measured.mean),
        format!("{} to {}", digits(measured.low), digits(measured.high)),
        optional(*theory),
        optional(*limit),
        optional(*ratio),
    ]
}

/// How a curve came about, in a sentence.
fn note(curve: &Curve) -> String {
    let runs = curve.points.first().map_or(0, |point| point.measured.runs);
    let method = match curve.method {
        Method::StudentT => "Student's t",
        Method::Wilson => "Wilson's score",
    };
    let theory = if curve.theory.is_empty() { String::new() } else { format!(" Theory: {}.", curve.theory) };
    format!(
        "{}; 95 % intervals by {method} over {runs} runs.{theory} Fits a power of {:.2}.",
        curve.unit, curve.exponent
    )
}

pub(super) fn text(sweep: &Sweep) -> String {
    let mut out = format!("{}: {}\n{}\n", sweep.title, sweep.parameter, sweep.setting);
    for curve in &sweep.curves {
        let _ = writeln!(out, "\n{}: {}", curve.name, note(curve));
        let head = HEAD.map(str::to_owned).to_vec();
        for row in std::iter::once(head).chain(curve.points.iter().map(row)) {
            for cell in row {
                let _ = write!(out, "{cell:>20}");
            }
            out.push('\n');
        }
    }
    out
}

pub(super) fn html(sweep: &Sweep) -> String {
    let mut out = format!("<p>{}.</p>\n", escape(&sweep.setting));
    for curve in &sweep.curves {
        let _ = writeln!(out, "<h2>{}</h2>\n<p>{}</p>", escape(&curve.name), escape(&note(curve)));
        out.push_str(&plot(&sweep.parameter, curve));
        let rows: Vec<_> = curve.points.iter().map(row).collect();
        table(&mut out, &HEAD, &rows);
    }
    page(&sweep.title, &out)
}

fn plot(parameter: &str, curve: &Curve) -> String {
    let axis = |values: &dyn Fn(&Point) -> f64| {
        let least = curve.points.iter().map(values).fold(f64::INFINITY, f64::min);
        let most = curve.points.iter().map(values).fold(0.0, f64::max);
        if least > 0.0 && most > LOG_SPAN * least { Axis::Log } else { Axis::Linear }
    };
    let measured = |point: &Point| {
        let interval = (point.measured.low, point.measured.high);
        (point.value, point.measured.mean, Some(interval))
    };
    let theory = |value: fn(&Point) -> Option<f64>| {
        curve
            .points
            .iter()
            .filter_map(move |point| Some((point.value, value(point)?, None)))
            .collect::<Vec<_>>()
    };
    let line = |name: &str, look: Look, color: usize, points: Vec<_>| Line {
        name: name.to_owned(),
        look,
        color,
        points,
    };
    let mut drawn = vec![line("measured", Look::Measured, 0, curve.points.iter().map(measured).collect())];
    let exact = theory(|point| point.theory);
    if !exact.is_empty() {
        drawn.push(line("theory", Look::Theory, 1, exact));
    }
    let limit = theory(|point| point.limit);
    if !limit.is_empty() {
        drawn.push(line("without end", Look::Theory, 2, limit));
    }
    let plot = Plot {
        x_label: parameter,
        y_label: &curve.unit,
        x: axis(&|point| point.value),
        y: axis(&|point| point.measured.mean),
    };
    lines(&plot, &drawn)
}
