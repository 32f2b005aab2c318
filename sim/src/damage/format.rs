//! The damage as a Markdown table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iota_protocol::spec::TrainingMode;

use super::{Checking, Damage, clean, compare};
use crate::adversary::Kind;

/// The table of all adversaries in both modes, each run with seeds 1 to `seeds`.
#[must_use]
pub fn table(checking: Checking, seeds: u64) -> String {
    let modes = [TrainingMode::Synchronous, TrainingMode::Local];
    let clean = modes.map(|mode| (mode, clean(mode, checking, seeds)));
    let rows = Kind::ALL
        .iter()
        .flat_map(|&kind| clean.iter().map(move |(mode, clean)| compare(kind, *mode, checking, clean)));
    rows.fold(HEAD.to_owned(), |mut text, damage| {
        let written = writeln!(text, "{}", row(&damage));
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
        text
    })
}

const HEAD: &str = "\
| adversary | mode | finished | excess loss | duration | gossip | their weight | samples lost | evicted, per run | honest evicted, per run |
|---|---|---|---|---|---|---|---|---|---|
";

fn row(damage: &Damage) -> String {
    let mode = match damage.mode {
        TrainingMode::Synchronous => "synchronous",
        TrainingMode::Local => "local",
    };
    let split = if damage.disagreed > 0 { format!(", {} split", damage.disagreed) } else { String::new() };
    format!(
        "| {} | {mode} | {} of {}{split} | {} | {} | {} | {:.0} % | {:.0} % | {} | {} |",
        damage.kind.name(),
        damage.finished,
        damage.runs,
        times(damage.excess),
        times(damage.duration),
        times(damage.gossip),
        damage.weight * 100.0,
        damage.lost * 100.0,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_was_lost_and_who_was_evicted() {
        let damage = Damage {
            kind: Kind::Scaled,
            mode: TrainingMode::Local,
            runs: 3,
            finished: 2,
            disagreed: 1,
            excess: 12_345.0,
            duration: 1.25,
            gossip: f64::INFINITY,
            weight: 0.225,
            lost: 0.0,
            evicted: BTreeMap::from([("silent", 1.0), ("wrong merge", 0.5)]),
            evicted_honest: BTreeMap::new(),
        };
        let expected = "| scaled | local | 2 of 3, 1 split | 1e4× | 1.25× | ∞ | 22 % | 0 % | 1.0 silent, 0.5 wrong merge | none |";
        assert_eq!(row(&damage), expected);
    }
}
