//! Who earns what when contributions are judged by the loss: a data-parallel run of one stage, with miners that cheat.
//!
//! Everybody holds the same θ ∈ ℝᵈ of a linear regression. A sample is a few points (x, y = x·θ* + noise) that follow from the seed
//! and the sample's number; its loss is the mean of ½ (x·θ − y)². The deal gives each miner samples in proportion to its speed. It
//! takes one step of plain gradient descent on each and contributes θ − θ', and the next θ is what the mean of all contributions,
//! weighted by samples, makes of it: those of cheats included, since evaluations come after the merge. The regression is
//! over-parameterised beside what one miner sees in an epoch, as language models are, so a miner's own samples improve more.
//!
//! Each contribution is evaluated as [`iota_protocol::gauntlet`] says, and the sweep shows what each kind of miner has after so many
//! epochs, relative to the mean of the honest.

mod run;
mod templar;

use iota_protocol::PeerId;

use self::run::{DIMENSION, POINTS, Run, SAMPLES};
use super::{Curve, Method, Point, Sweep};
use crate::measure::statistics::{Estimate, ratio, real};

/// Epochs after which the sweep looks.
pub const EPOCHS: [f64; 4] = [10.0, 20.0, 40.0, 80.0];

/// What a miner does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Its work, at this speed.
    Honest(u32),
    /// Random numbers of an ordinary norm.
    Noise,
    /// Zeros.
    Zero,
    /// What it computed in the first epoch, ever again.
    Stale,
    /// Its work, from weights of five epochs before.
    Behind,
    /// The contribution of another, twice as large.
    Copycat,
    /// The contribution of another, under noise.
    MaskedCopycat,
    /// The mean of the contributions of six others.
    Blend,
    /// The negative of its work.
    SignFlip,
    /// Work on as many other samples as those it was dealt.
    OtherData,
}

impl Kind {
    /// All that cheat.
    pub const CHEATS: [Self; 9] = [
        Self::Noise,
        Self::Zero,
        Self::Stale,
        Self::Behind,
        Self::Copycat,
        Self::MaskedCopycat,
        Self::Blend,
        Self::SignFlip,
        Self::OtherData,
    ];

    /// What curves call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Honest(1) => "honest, slow",
            Self::Honest(2) => "honest, twice as fast",
            Self::Honest(_) => "honest, four times as fast",
            Self::Noise => "noise",
            Self::Zero => "zeros",
            Self::Stale => "stale: the first contribution again",
            Self::Behind => "behind: weights of five epochs before",
            Self::Copycat => "copycat, doubled",
            Self::MaskedCopycat => "copycat, under noise of half its norm",
            Self::Blend => "blend of six others",
            Self::SignFlip => "sign flip",
            Self::OtherData => "trained on other data",
        }
    }

    const fn speed(self) -> u32 {
        if let Self::Honest(speed) = self { speed } else { 2 }
    }
}

/// A miner's number is the first byte of its key.
const fn peer(number: u8) -> PeerId {
    PeerId([number; 32])
}

/// Whom copycats copy, of twice the least speed. Blends begin with it too.
const COPIED: PeerId = peer(1);

/// Twelve honest miners of three speeds, and one of each kind that cheats.
#[must_use]
pub fn everybody() -> Vec<Kind> {
    let honest = (0..4).flat_map(|_| [1, 2, 4].map(Kind::Honest));
    honest.chain(Kind::CHEATS).collect()
}

/// What a curve shows of a run, and of the same one where those who copy contribute zeros instead.
struct Quantity {
    name: String,
    unit: &'static str,
    of: fn(&Run, &Run, Kind) -> f64,
    kind: Kind,
}

/// Whether a miner is honest.
fn is_honest(_: &PeerId, kind: Kind) -> bool {
    matches!(kind, Kind::Honest(_))
}

fn quantities() -> Vec<Quantity> {
    let speeds = [1, 2, 4].map(Kind::Honest);
    let untrained = [Kind::Stale, Kind::Blend, Kind::OtherData];
    let mut all = Vec::new();
    let mut add = |name: String, unit, kind, of| all.push(Quantity { name, unit, of, kind });
    for kind in speeds.into_iter().chain(Kind::CHEATS) {
        add(kind.name().to_owned(), "score ÷ honest mean", kind, |run, _, kind| {
            ratio(run.score(|_, other| other == kind), run.score(is_honest))
        });
    }
    for kind in speeds.into_iter().chain(untrained) {
        add(format!("indicator: {}", kind.name()), "mean", kind, |run, _, kind| {
            run.indicator(|_, other| other == kind)
        });
    }
    for kind in speeds.into_iter().chain(Kind::CHEATS) {
        let name = format!("by Templar's formulas: {}", kind.name());
        add(name, "score ÷ honest mean", kind, |run, _, kind| {
            ratio(run.templar(|_, other| other == kind), run.templar(is_honest))
        });
    }
    let kind = Kind::Honest(2);
    let name = "the copied, to itself where nobody copies".to_owned();
    add(name, "ratio of scores", kind, |run, alone, _| {
        let copied = |run: &Run| run.score(|peer, _| *peer == COPIED);
        ratio(copied(run), copied(alone))
    });
    let name = "honest contributions taken for copies".to_owned();
    add(name, "share", kind, |run, _, _| ratio(real(run.tally.mistaken), real(run.tally.honest)));
    let name = "contributions of copycats taken for copies".to_owned();
    add(name, "share", kind, |run, _, _| ratio(real(run.tally.caught), real(run.tally.copied)));
    let name = "similarity of two honest contributions".to_owned();
    add(name, "greatest so far", kind, |run, _, _| run.tally.similar);
    let name = "largest elements shared by two honest contributions".to_owned();
    add(name, "mean share", kind, |run, _, _| ratio(run.tally.indices, real(run.tally.pairs)));
    add("excess loss left".to_owned(), "of the first", kind, |run, _, _| run.excess());
    all
}

/// What each kind of miner has after each of `epochs` epochs, one run for each seed.
#[must_use]
pub fn sweep(epochs: &[f64], seeds: &[u64]) -> Sweep {
    let alone: Vec<Kind> = everybody()
        .into_iter()
        .map(|kind| match kind {
            Kind::Copycat | Kind::MaskedCopycat | Kind::Blend => Kind::Zero,
            other => other,
        })
        .collect();
    let quantities = quantities();
    let mut epochs = epochs.to_vec();
    epochs.sort_by(f64::total_cmp);
    let mut measured = vec![vec![Vec::new(); epochs.len()]; quantities.len()];
    for seed in seeds {
        let (mut run, mut other) = (Run::new(*seed, &everybody()), Run::new(*seed, &alone));
        let mut epoch = 0;
        for (place, until) in epochs.iter().enumerate() {
            while f64::from(epoch) < *until {
                run.step(epoch);
                other.step(epoch);
                epoch += 1;
            }
            for (values, quantity) in measured.iter_mut().zip(&quantities) {
                values[place].push((quantity.of)(&run, &other, quantity.kind));
            }
        }
    }
    let curve = |(quantity, values): (Quantity, Vec<Vec<f64>>)| {
        let points = epochs.iter().zip(values);
        let points = points.map(|(epoch, values)| Point::new(*epoch, Estimate::of(&values), None)).collect();
        Curve::new(&quantity.name, quantity.unit, "", Method::StudentT, points)
    };
    Sweep {
        title: "Scores by the loss (Gauntlet)".to_owned(),
        parameter: "epochs".to_owned(),
        setting: format!(
            "one stage, linear regression in {DIMENSION} dimensions, {} miners of which {} cheat, {POINTS} points in a sample, {SAMPLES} samples per unit of speed",
            everybody().len(),
            Kind::CHEATS.len()
        ),
        curves: quantities.into_iter().zip(measured).map(curve).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_who_cheats_has_a_tenth_of_the_honest_and_all_honest_have_something() {
        for seed in 0..3 {
            let mut run = Run::new(seed, &everybody());
            (0..40).for_each(|epoch| run.step(epoch));
            let honest = run.score(is_honest);
            for kind in Kind::CHEATS {
                let score = run.score(|_, other| other == kind);
                assert!(score < 0.1 * honest, "seed {seed}, {}: {score} of {honest}", kind.name());
            }
            for speed in [1, 2, 4].map(Kind::Honest) {
                let score = run.score(|_, other| other == speed);
                assert!(score > 0.2 * honest, "seed {seed}, {}: {score} of {honest}", speed.name());
            }
            assert_eq!(run.tally.mistaken, 0, "no honest contribution is taken for a copy");
            assert!(run.excess() < 0.9, "the run trains");
        }
    }

    #[test]
    fn who_is_copied_loses_nothing() {
        for seed in 0..2 {
            let score = |copycat: Kind| {
                let honest = everybody().into_iter().filter(|kind| !Kind::CHEATS.contains(kind));
                let kinds: Vec<Kind> = honest.chain([copycat]).collect();
                let mut run = Run::new(seed, &kinds);
                (0..40).for_each(|epoch| run.step(epoch));
                run.score(|peer, _| *peer == COPIED)
            };
            let alone = score(Kind::Zero);
            assert!(alone > 0.0);
            for copycat in [Kind::Copycat, Kind::MaskedCopycat] {
                let copied = score(copycat);
                assert!(copied > 0.95 * alone, "seed {seed}, {}: {copied} of {alone}", copycat.name());
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_sweep_and_another_a_different_one() {
        assert_eq!(sweep(&[3.0], &[1]), sweep(&[3.0], &[1]));
        assert_ne!(sweep(&[3.0], &[1]), sweep(&[3.0], &[2]));
    }
}
