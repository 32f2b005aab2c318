//! The damage as Markdown: a row for each kind and mode, then who of them is found.

use std::collections::BTreeMap;

use iota_protocol::spec::TrainingMode;

use super::detection::{Counts, Detection};
use super::{Damage, Plan};
use crate::adversary::Kind;
use crate::measure::statistics::Estimate;
use crate::trainer::Compute;

/// The largest ratio of losses that passes for the clean run's.
const LOSS_RATIO_MAX: f64 = 1.01;
/// The largest share of an honest peer's score that an adversary may earn.
const SCORE_MAX: f64 = 0.1;

/// The tables of all rows, and the loss at which runs without adversaries end.
pub(super) fn report(plan: &Plan, rows: &[Damage], clean: &[(TrainingMode, f64)]) -> String {
    let loss = match plan.compute {
        Compute::Real => "loss",
        Compute::Toy | Compute::Cost => "excess loss",
    };
    let head = format!(
        "| adversary | mode | finished | {loss} | duration | gossip | their weight | samples lost | their score | found \
         | lost their place, per run | honest that did, per run |\n|{}\n",
        "---|".repeat(12)
    );
    let rows_text: String = rows.iter().map(|damage| row(damage) + "\n").collect();
    format!("{head}{rows_text}\n{}\n{}\n{}", detection(rows), targets(rows), ends(clean))
}

/// What the ratios of losses are ratios to.
fn ends(clean: &[(TrainingMode, f64)]) -> String {
    let loss = |loss: f64| if loss < 0.01 { format!("{loss:.1e}") } else { format!("{loss:.3}") };
    let each: Vec<String> = clean.iter().map(|(of, at)| format!("{} ({})", loss(*at), mode(*of))).collect();
    format!("Runs without adversaries end at {}.", each.join(", "))
}

const fn mode(mode: TrainingMode) -> &'static str {
    match mode {
        TrainingMode::Synchronous => "synchronous",
        TrainingMode::Local => "local",
    }
}

/// One kind in one mode.
pub(super) fn row(damage: &Damage) -> String {
    let mode = mode(damage.mode);
    let split = if damage.disagreed > 0 { format!(", {} split", damage.disagreed) } else { String::new() };
    let counts = Counts::sum(damage.counts.iter().copied());
    format!(
        "| {} | {mode} | {} of {}{split} | {} | {} | {} | {:.0} % | {:.0} % | {} | {} of {} | {} | {} |",
        damage.kind.name(),
        damage.finished,
        damage.runs,
        times(damage.loss),
        times(damage.duration),
        times(damage.gossip),
        damage.weight * 100.0,
        damage.lost * 100.0,
        damage.score.map_or("–".to_owned(), |score| format!("{:.0} %", score * 100.0)),
        counts.found,
        counts.misbehaved(),
        evictions(&damage.evicted),
        evictions(&damage.evicted_honest),
    )
}

/// A ratio with two or three digits that say something.
fn times(ratio: f64) -> String {
    if !ratio.is_finite() {
        return "∞".to_owned();
    }
    match ratio.abs() {
        0.0..10.0 => format!("{ratio:.2}×"),
        10.0..10_000.0 => format!("{ratio:.0}×"),
        _ => format!("{ratio:.0e}×"),
    }
}

fn evictions(evicted: &BTreeMap<&'static str, f64>) -> String {
    let each: Vec<String> = evicted.iter().map(|(why, count)| format!("{count:.1} {why}")).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}

/// A name, and which kinds are of that sort.
type Sort = (&'static str, fn(Kind) -> bool);

const SORTS: [Sort; 5] = [
    ("all", |_| true),
    ("of provable faults", Kind::is_provable),
    ("miners", |kind| !kind.is_candidate() && !kind.is_validator()),
    ("candidates", Kind::is_candidate),
    ("validators", Kind::is_validator),
];

/// Who is found among all kinds, and among those that are of one sort.
fn detection(rows: &[Damage]) -> String {
    let head = format!(
        "| adversaries | broke a rule | precision | recall | F1 | honest peers | of them punished |\n|{}\n",
        "---|".repeat(7)
    );
    let lines = SORTS.iter().filter_map(|(name, is)| {
        let by_seed = by_seed(rows.iter().filter(|row| is(row.kind)));
        (!by_seed.is_empty()).then(|| detected(name, &Detection::of(&by_seed)))
    });
    head + &lines.collect::<String>()
}

/// The counts of each seed, over these rows.
fn by_seed<'a>(rows: impl Iterator<Item = &'a Damage>) -> Vec<Counts> {
    let mut seeds: Vec<Counts> = Vec::new();
    for row in rows {
        seeds.resize(seeds.len().max(row.counts.len()), Counts::default());
        for (seed, counts) in seeds.iter_mut().zip(&row.counts) {
            *seed = *seed + *counts;
        }
    }
    seeds
}

fn detected(name: &str, detection: &Detection) -> String {
    let share = |of: &Estimate| match of.runs {
        0 => "–".to_owned(),
        _ => format!("{:.2} ({:.2}–{:.2})", of.mean, of.low, of.high),
    };
    let percent =
        |of: &Estimate| format!("{:.2} % ({:.2}–{:.2} %)", of.mean * 100.0, of.low * 100.0, of.high * 100.0);
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} |\n",
        detection.counts.misbehaved(),
        share(&detection.precision),
        share(&detection.recall),
        share(&detection.f1),
        detection.counts.honest,
        percent(&detection.wronged),
    )
}

/// How many rows are as they should be.
fn targets(rows: &[Damage]) -> String {
    let scored = rows.iter().filter_map(|row| row.score);
    let low = scored.clone().filter(|score| *score < SCORE_MAX).count();
    let harmless = rows.iter().filter(|row| row.loss <= LOSS_RATIO_MAX).count();
    format!(
        "Loss at most {LOSS_RATIO_MAX} times that of the clean run: {harmless} of {} rows. Score below {:.0} % of an honest \
         miner's: {low} of {}.",
        rows.len(),
        SCORE_MAX * 100.0,
        scored.count(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage() -> Damage {
        Damage {
            kind: Kind::Scaled,
            mode: TrainingMode::Local,
            runs: 3,
            finished: 2,
            disagreed: 1,
            loss: 12_345.0,
            duration: 1.25,
            gossip: f64::INFINITY,
            weight: 0.225,
            lost: 0.0,
            score: Some(0.125),
            evicted: BTreeMap::from([("silent", 1.0), ("wrong merge", 0.5)]),
            evicted_honest: BTreeMap::new(),
            counts: vec![Counts { found: 1, missed: 3, honest: 16, wronged: 0 }; 3],
        }
    }

    #[test]
    fn a_row_says_what_was_lost_what_was_earned_and_who_was_found() {
        let expected = "| scaled | local | 2 of 3, 1 split | 1e4× | 1.25× | ∞ | 22 % | 0 % | 12 % | 3 of 12 \
                        | 1.0 silent, 0.5 wrong merge | none |";
        assert_eq!(row(&damage()), expected);
    }

    #[test]
    fn the_summary_counts_each_sort_of_adversary_and_the_rows_that_are_as_they_should_be() {
        let candidate = Damage {
            kind: Kind::Censor,
            loss: 1.009,
            score: Some(0.0),
            counts: vec![Counts { found: 0, missed: 1, honest: 19, wronged: 1 }; 3],
            ..damage()
        };
        let clean = [(TrainingMode::Synchronous, 0.25), (TrainingMode::Local, 1.5e-6)];
        let text = report(&Plan::default(), &[damage(), candidate], &clean);
        let summary: Vec<&str> = text.lines().skip(5).collect();
        let expected = [
            "| adversaries | broke a rule | precision | recall | F1 | honest peers | of them punished |",
            "|---|---|---|---|---|---|---|",
            "| all | 15 | 0.50 (0.19–0.81) | 0.20 (0.07–0.45) | 0.29 (0.29–0.29) | 105 | 2.86 % (0.98–8.07 %) |",
            "| of provable faults | 12 | 1.00 (0.44–1.00) | 0.25 (0.09–0.53) | 0.40 (0.40–0.40) | 48 | 0.00 % (0.00–7.41 %) |",
            "| miners | 12 | 1.00 (0.44–1.00) | 0.25 (0.09–0.53) | 0.40 (0.40–0.40) | 48 | 0.00 % (0.00–7.41 %) |",
            "| candidates | 3 | 0.00 (0.00–0.56) | 0.00 (0.00–0.56) | 0.00 (0.00–0.00) | 57 | 5.26 % (1.81–14.37 %) |",
            "",
            "Loss at most 1.01 times that of the clean run: 1 of 2 rows. Score below 10 % of an honest miner's: 1 of 2.",
            "Runs without adversaries end at 0.250 (synchronous), 1.5e-6 (local).",
        ];
        assert_eq!(summary, expected);
    }
}
