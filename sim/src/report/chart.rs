//! Plots as inline SVG: lines with confidence intervals, stacked bars, events on lanes. No script, no network.

use std::fmt::Write as _;

use super::page::{COLORS, escape, number};
use crate::measure::statistics::real;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 16.0;
/// Above the plot, with room for two rows of names.
const TOP: f64 = 48.0;
const BOTTOM: f64 = 40.0;
/// Lines across the plot, about.
const TICKS: u64 = 5;
/// Width of a letter in a legend, about.
const LETTER: f64 = 7.0;
/// Above the lanes, which have their names beside them.
const LANES_TOP: f64 = 8.0;
/// Bars that fit beside each other; more are drawn as every n-th.
const BARS_MAX: usize = 60;

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    Linear,
    /// Equal factors are equally long. Values that are not positive are left out.
    Log,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Measured,
    /// Dashed, without marks.
    Theory,
}

/// x, y, and the ends of the interval around y.
pub(crate) type Mark = (f64, f64, Option<(f64, f64)>);

/// A named line.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) look: Look,
    /// Which color; a measured line and its theory share one.
    pub(crate) color: usize,
    pub(crate) points: Vec<Mark>,
}

/// What a plot shows.
pub(crate) struct Plot<'a> {
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
}

impl Plot<'_> {
    /// Axes divided evenly.
    pub(crate) const fn linear<'a>(x_label: &'a str, y_label: &'a str) -> Plot<'a> {
        Plot { x_label, y_label, x: Axis::Linear, y: Axis::Linear }
    }
}

/// Values along one side of the picture.
struct Scale {
    axis: Axis,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn of(axis: Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let shown: Vec<f64> = values
            .filter(|value| value.is_finite() && (axis == Axis::Linear || *value > 0.0))
            .map(|value| if axis == Axis::Log { libm::log10(value) } else { value })
            .collect();
        let (low, high) = (shown.iter().copied().reduce(f64::min)?, shown.iter().copied().reduce(f64::max)?);
        // What is near zero is shown from zero on, everything else with a margin.
        let margin = ((high - low) * 0.04).max(1e-6);
        let from_zero = axis == Axis::Linear && low >= 0.0 && low < high / 2.0;
        let low = if from_zero { 0.0 } else { low - margin };
        Some(Self { axis, low, high: high + margin, from, to })
    }

    /// Where a value lies, if it can be shown.
    fn at(&self, value: f64) -> Option<f64> {
        let value = match self.axis {
            Axis::Linear => value,
            Axis::Log if value > 0.0 => libm::log10(value),
            Axis::Log => return None,
        };
        value
            .is_finite()
            .then(|| self.from + (self.to - self.from) * (value - self.low) / (self.high - self.low))
    }

    /// Values to write beside the axis: multiples of a round step, or of round factors.
    fn ticks(&self) -> Vec<f64> {
        if self.axis == Axis::Log && self.high - self.low > 1.0 {
            let factors: &[f64] = if self.high - self.low > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let decades =
                (-12..18).flat_map(|decade| factors.iter().map(move |factor| factor * power(decade)));
            let shown = |value: &f64| (self.low..=self.high).contains(&libm::log10(*value));
            return decades.filter(shown).collect();
        }
        let span = (self.high - self.low).max(1e-12);
        let rough = span / real(TICKS - 1);
        let decade = libm::pow(10.0, libm::floor(libm::log10(rough)));
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|factor| factor * decade).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let first = libm::ceil(self.low / step);
        let value = |tick: u64| (first + real(tick)) * step;
        let within = (0..=TICKS).map(value).filter(|value| *value <= self.high);
        within.map(|value| if self.axis == Axis::Log { libm::pow(10.0, value) } else { value }).collect()
    }
}

/// Ten to the power of `exponent`.
fn power(exponent: i32) -> f64 {
    libm::pow(10.0, f64::from(exponent))
}

/// Draws lines; empty if there is no value.
pub(crate) fn lines(plot: &Plot<'_>, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let ends = points().flat_map(|(_, y, interval)| {
        let (low, high) = interval.unwrap_or((*y, *y));
        [*y, low, high]
    });
    let scales = Scale::of(plot.x, points().map(|point| point.0), LEFT, WIDTH - RIGHT).zip(Scale::of(
        plot.y,
        ends,
        HEIGHT - BOTTOM,
        TOP,
    ));
    let Some((x, y)) = scales else { return String::new() };
    let mut svg = open(plot.x_label, plot.y_label, HEIGHT);
    for value in y.ticks() {
        grid(&mut svg, y.at(value).unwrap_or(TOP), &number(value));
    }
    for value in x.ticks() {
        below(&mut svg, x.at(value).unwrap_or(LEFT), &number(value));
    }
    labels(&mut svg, plot.x_label, plot.y_label);
    lines.iter().for_each(|line| draw(&mut svg, &x, &y, line));
    legend(&mut svg, lines);
    svg.push_str("</svg>\n");
    svg
}

fn open(x_label: &str, y_label: &str, height: f64) -> String {
    let label = escape(&format!("{y_label} by {x_label}"));
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{label}\">\n")
}

fn grid(svg: &mut String, y: f64, text: &str) {
    let right = WIDTH - RIGHT;
    let _ = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        LEFT - 6.0,
        y + 4.0,
        escape(text)
    );
}

fn below(svg: &mut String, x: f64, text: &str) {
    let y = HEIGHT - BOTTOM + 16.0;
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", escape(text));
}

fn labels(svg: &mut String, x_label: &str, y_label: &str) {
    let (middle, height) = (LEFT + (WIDTH - LEFT - RIGHT) / 2.0, HEIGHT / 2.0);
    let _ = writeln!(
        svg,
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        HEIGHT - 6.0,
        escape(x_label)
    );
    let _ = writeln!(
        svg,
        "<text x=\"12\" y=\"{height}\" transform=\"rotate(-90 12 {height})\" text-anchor=\"middle\">{}</text>",
        escape(y_label)
    );
}

fn draw(svg: &mut String, x: &Scale, y: &Scale, line: &Line) {
    let color = line.color % COLORS;
    let theory = if line.look == Look::Theory { " theory" } else { "" };
    let shown: Vec<(f64, f64)> =
        line.points.iter().filter_map(|(at, value, _)| x.at(*at).zip(y.at(*value))).collect();
    let path: Vec<String> = shown.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polyline class=\"s{color}{theory}\" points=\"{}\"/>", path.join(" "));
    if line.look == Look::Theory {
        return;
    }
    for (at, value, interval) in &line.points {
        let Some((at, value)) = x.at(*at).zip(y.at(*value)) else { continue };
        let Some((low, high)) = interval.and_then(|(low, high)| y.at(low).zip(y.at(high))) else { continue };
        let _ = writeln!(svg, "<circle class=\"f{color}\" cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"3\"/>");
        let _ = writeln!(
            svg,
            "<line class=\"s{color}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
        );
    }
}

/// Names the lines above the plot, in as many rows as it takes.
fn legend(svg: &mut String, lines: &[Line]) {
    let (mut x, mut y) = (LEFT, 14.0);
    for line in lines {
        let width = 36.0 + LETTER * real(line.name.chars().count() as u64 + 2);
        if x > LEFT && x + width > WIDTH {
            (x, y) = (LEFT, y + 18.0);
        }
        let theory = if line.look == Look::Theory { " theory" } else { "" };
        let color = line.color % COLORS;
        let end = x + 24.0;
        let _ =
            writeln!(svg, "<polyline class=\"s{color}{theory}\" points=\"{x:.1},{y:.1} {end:.1},{y:.1}\"/>");
        let _ =
            writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 30.0, y + 4.0, escape(&line.name));
        x += width;
    }
}

/// Draws one bar per name, of the parts that `kinds` names, stacked.
pub(crate) fn bars(
    x_label: &str,
    y_label: &str,
    kinds: &[&str],
    rows: &[(String, Vec<f64>)],
    write: fn(f64) -> String,
) -> String {
    let total = |row: &(String, Vec<f64>)| row.1.iter().sum::<f64>();
    let shown: Vec<&(String, Vec<f64>)> = rows.iter().step_by(rows.len().div_ceil(BARS_MAX).max(1)).collect();
    let most = shown.iter().map(|row| total(row)).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let scale = Scale { axis: Axis::Linear, low: 0.0, high: most * 1.05, from: HEIGHT - BOTTOM, to: TOP };
    let mut svg = open(x_label, y_label, HEIGHT);
    for value in scale.ticks() {
        grid(&mut svg, scale.at(value).unwrap_or(TOP), &write(value));
    }
    let step = (WIDTH - LEFT - RIGHT) / real(shown.len() as u64);
    for (index, row) in shown.iter().enumerate() {
        let (x, mut reached) = (LEFT + step * (real(index as u64) + 0.1), 0.0);
        for (kind, value) in row.1.iter().enumerate() {
            let (from, to) = (scale.at(reached).unwrap_or(0.0), scale.at(reached + value).unwrap_or(0.0));
            let _ = writeln!(
                svg,
                "<rect class=\"f{}\" x=\"{x:.1}\" y=\"{to:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                kind % COLORS,
                step * 0.8,
                from - to
            );
            reached += value;
        }
        if index.is_multiple_of(shown.len().div_ceil(20)) {
            below(&mut svg, x + step * 0.4, &row.0);
        }
    }
    labels(&mut svg, x_label, y_label);
    let named = |(color, kind): (usize, &&str)| Line {
        name: (*kind).to_owned(),
        look: Look::Measured,
        color,
        points: Vec::new(),
    };
    legend(&mut svg, &kinds.iter().enumerate().map(named).collect::<Vec<_>>());
    svg.push_str("</svg>\n");
    svg
}

/// Draws marks at times, on one lane per name; each mark says what it is when pointed at.
pub(crate) fn lanes(x_label: &str, names: &[&str], marks: &[(usize, f64, String)], end: f64) -> String {
    if marks.is_empty() {
        return String::new();
    }
    let lane = 28.0;
    let height = LANES_TOP + lane * real(names.len() as u64) + BOTTOM;
    let scale = Scale { axis: Axis::Linear, low: 0.0, high: end.max(1e-6), from: LEFT, to: WIDTH - RIGHT };
    let mut svg = open(x_label, "events", height);
    for (index, name) in names.iter().enumerate() {
        grid(&mut svg, LANES_TOP + lane * (real(index as u64) + 0.5), name);
    }
    for (index, at, what) in marks {
        let (x, y) = (scale.at(*at).unwrap_or(LEFT), LANES_TOP + lane * (real(*index as u64) + 0.5));
        let _ = writeln!(
            svg,
            "<circle class=\"f{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}</title></circle>",
            index % COLORS,
            escape(&format!("{}s {what}", number(*at)))
        );
    }
    for value in scale.ticks() {
        let x = scale.at(value).unwrap_or(LEFT);
        let y = height - BOTTOM + 16.0;
        let _ =
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", number(value));
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></svg>",
        LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
        height - 6.0,
        escape(x_label)
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        let points = points.iter().map(|(x, y)| (*x, *y, Some((y * 0.9, y * 1.1)))).collect();
        Line { name: "a < b".to_owned(), look: Look::Measured, color: 0, points }
    }

    #[test]
    fn higher_is_higher_up_and_a_log_axis_leaves_out_what_it_cannot_show() {
        let scale = Scale::of(Axis::Log, [0.0, 1.0, 100.0].into_iter(), 300.0, 20.0).expect("two values");
        let (one, ten, hundred) = (scale.at(1.0), scale.at(10.0), scale.at(100.0));
        assert!(one > ten && ten > hundred && hundred > Some(20.0));
        assert!((one.unwrap() - ten.unwrap() - (ten.unwrap() - hundred.unwrap())).abs() < 1e-9);
        assert_eq!(scale.at(0.0), None);
    }

    #[test]
    fn ticks_are_round() {
        let ticks = |axis, low: f64, high: f64| {
            let scale = Scale::of(axis, [low, high].into_iter(), 300.0, 20.0).expect("two values");
            scale.ticks().into_iter().map(number).collect::<Vec<_>>()
        };
        assert_eq!(ticks(Axis::Linear, 0.3, 13.8), ["0", "5.000", "10.00"]);
        assert_eq!(ticks(Axis::Log, 1.0, 5000.0), ["1.000", "10.00", "100.0", "1000"]);
    }

    #[test]
    fn nothing_to_draw_draws_nothing_and_names_are_escaped() {
        let plot = Plot::linear("x", "y");
        assert_eq!(lines(&plot, &[line(&[])]), "");
        assert_eq!(bars("x", "y", &["a"], &[("n".to_owned(), vec![0.0])], number), "");
        assert_eq!(lanes("x", &["a"], &[], 1.0), "");
        let svg = lines(&plot, &[line(&[(0.0, 1.0), (1.0, 2.0)])]);
        assert!(svg.contains("a &lt; b") && svg.matches("<circle").count() == 2);
    }
}
