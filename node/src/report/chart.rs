//! A line chart as inline SVG: a few series over the same steps, no script, no network.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 40.0;
/// Lines across the plot.
const TICKS: usize = 5;

/// A named line.
pub(super) struct Series<'a> {
    /// Name in the legend.
    pub(super) name: &'a str,
    /// CSS class that colors it.
    pub(super) class: &'a str,
    /// One value per step; a missing one leaves a gap.
    pub(super) values: &'a [Option<f64>],
}

/// Where values lie in the picture.
struct Scale {
    steps: usize,
    low: f64,
    high: f64,
}

impl Scale {
    fn of(series: &[Series<'_>]) -> Option<Self> {
        let values =
            || series.iter().flat_map(|line| line.values.iter().flatten().copied()).filter(|v| v.is_finite());
        let low = values().reduce(f64::min)?;
        let high = values().reduce(f64::max)?;
        let steps = series.iter().map(|line| line.values.len()).max()?;
        let margin = ((high - low) * 0.05).max(1e-3);
        Some(Self { steps, low: low - margin, high: high + margin })
    }

    #[expect(clippy::cast_precision_loss, reason = "a picture has a thousand pixels")]
    fn x(&self, step: usize) -> f64 {
        let span = self.steps.saturating_sub(1).max(1) as f64;
        LEFT + (WIDTH - LEFT - RIGHT) * step as f64 / span
    }

    fn y(&self, value: f64) -> f64 {
        TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)
    }
}

/// Draws `series` over steps counted from one; empty if there is no value.
pub(super) fn lines(series: &[Series<'_>], x_label: &str, y_label: &str) -> String {
    let Some(scale) = Scale::of(series) else { return String::new() };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{y_label} per {x_label}\">\n"
    );
    axes(&mut svg, &scale, x_label, y_label);
    for (index, line) in series.iter().filter(|line| line.values.iter().any(Option::is_some)).enumerate() {
        draw(&mut svg, &scale, line);
        legend(&mut svg, index, line);
    }
    svg.push_str("</svg>\n");
    svg
}

#[expect(clippy::cast_precision_loss, reason = "a handful of ticks")]
fn axes(svg: &mut String, scale: &Scale, x_label: &str, y_label: &str) {
    for tick in 0..TICKS {
        let value = scale.low + (scale.high - scale.low) * tick as f64 / (TICKS - 1) as f64;
        let y = scale.y(value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.2}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let every = scale.steps.div_ceil(12).max(1);
    for step in (0..scale.steps).step_by(every) {
        let x = scale.x(step);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 16.0,
            step + 1
        );
    }
    let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
    let _ = writeln!(
        svg,
        "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_label}</text>",
        HEIGHT - 6.0
    );
    let _ = writeln!(
        svg,
        "<text x=\"12\" y=\"{:.1}\" transform=\"rotate(-90 12 {:.1})\" text-anchor=\"middle\">{y_label}</text>",
        HEIGHT / 2.0,
        HEIGHT / 2.0
    );
}

/// One polyline for each stretch without a gap.
fn draw(svg: &mut String, scale: &Scale, line: &Series<'_>) {
    for stretch in
        line.values.iter().copied().enumerate().collect::<Vec<_>>().split(|(_, value)| value.is_none())
    {
        let points: Vec<String> = stretch
            .iter()
            .filter_map(|(step, value)| {
                value.map(|value| format!("{:.1},{:.1}", scale.x(*step), scale.y(value)))
            })
            .collect();
        if !points.is_empty() {
            let _ = writeln!(svg, "<polyline class=\"{}\" points=\"{}\"/>", line.class, points.join(" "));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a handful of series")]
fn legend(svg: &mut String, index: usize, line: &Series<'_>) {
    let y = TOP + 12.0 + 18.0 * index as f64;
    let x = WIDTH - RIGHT - 150.0;
    let _ =
        writeln!(svg, "<polyline class=\"{}\" points=\"{x:.1},{y:.1} {:.1},{y:.1}\"/>", line.class, x + 24.0);
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 30.0, y + 4.0, line.name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_splits_a_line_and_values_stay_inside() {
        let values = [Some(5.0), Some(4.0), None, Some(1.0)];
        let svg = lines(&[Series { name: "swarm", class: "swarm", values: &values }], "epoch", "loss");
        assert_eq!(svg.matches("<polyline class=\"swarm\"").count(), 3, "two stretches and the legend");
        let scale = Scale::of(&[Series { name: "", class: "", values: &values }]).unwrap();
        assert!(scale.y(5.0) >= TOP && scale.y(1.0) <= HEIGHT - BOTTOM);
        assert!(scale.y(5.0) < scale.y(1.0), "higher values are higher up");
    }

    #[test]
    fn nothing_to_draw_draws_nothing() {
        assert_eq!(lines(&[Series { name: "swarm", class: "swarm", values: &[None] }], "epoch", "loss"), "");
    }
}
