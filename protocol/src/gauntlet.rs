//! What each contribution does for the model, in runs of one stage: after Templar's *Gauntlet* (arXiv 2505.21684; one-covenant/templar
//! v2.1.28), whose formulas these are unless a file says otherwise and why. docs/adr/0023-gauntlet.md has all departures
//! in one table.
//!
//! In a run of one stage every miner holds the whole model, so a contribution can be judged by itself: apply it alone to the base
//! weights and look at the loss.
//!
//! ```text
//! merge plan ──▶ Draw ──▶ losses before and after ──▶ Found ──▶ Gauntlet::close ──▶ score
//!                whose,    own and random samples      of each   a fold over epochs
//!                on what   (loss), weights (sync),
//!                          sketches (overlap)
//! score = max(0, μ − 3 σ) × gate(indicator) × sync × trust × 0.75^missed
//! ```
//! - **μ, σ**: the [rating] from ranking random-data improvements epoch by epoch. Besides the miners the *anchor* plays, a
//!   contribution of zeros, whose skill is 0 by definition: who is no better than nothing has no score, and who is better has
//!   one though all others are better still. Ratings alone are a zero-sum game in which the slowest honest miner goes below zero.
//! - **indicator**: the moving average of whether own data improve more than random ones ([`loss`]). What it is worth is bounded:
//!   the gate opens between two values, and beyond them over-fitting one's own samples pays no more.
//! - **sync**: how far the weights are that it was computed from ([`sync`]).
//! - **trust**: zero when something was proved, a [copy](overlap) or a contribution that is none, and back by a twentieth for each
//!   evaluation after it. It is kept apart from the score, so that the next evaluation does not undo it.
//! - **missed**: epochs without a contribution, less those with one since.
//!
//! Every factor is at least zero, so no two bad ones make a good one.
//!
//! This is a pure fold, in + − × ÷ √ and `libm` in one order. Where `scores.by = "loss"` it is a part of [`Scores`](crate::scores::Scores):
//! [validators](crate::validator) compute the losses and say what they [found](evaluation) in the log. Nobody who started from other
//! weights is merged there, so `sync` is 1.

pub mod draw;
pub mod evaluation;
pub mod loss;
pub mod overlap;
pub mod rating;
pub mod sync;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::loss::{Gains, Improvement, Loss, LossError};
use self::rating::Rating;
use crate::id::PeerId;
use crate::limits::SCORED_MINERS_MAX;
use crate::spec::RunSpec;

/// The indicator up to which the gate is closed, and which a peer begins with. That of contributions without anything to do with
/// own data is about −0.68, with a deviation of 0.12.
const CLOSED: f64 = -0.3;

/// How contributions are evaluated and what follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Samples of a miner's own that it is evaluated on, at most.
    pub own_samples: usize,
    /// Random samples that all are evaluated on.
    pub random_samples: usize,
    /// Elements of a contribution or of weights that are compared.
    pub elements: usize,
    /// Share of a contribution that is applied: too large a step ranks peers inconsistently.
    pub rate: f64,
    /// Norm of a contribution, in medians of all, beyond which it is clipped.
    pub norm_max: f64,
    /// Standard errors by which own data have to improve more than random ones.
    pub margin: f64,
    /// Weight of the newest indicator in its moving average.
    pub indicator_rate: f64,
    /// Indicators at which the gate begins to open and is open.
    pub gate: [f64; 2],
    /// Similarity from which the later of two contributions is a copy.
    pub similarity_max: f64,
    /// What an evaluation without fault gives back of trust.
    pub trust_gain: f64,
    /// What is left of a score for each epoch missed.
    pub missed_factor: f64,
    /// Epochs missed after which a peer is forgotten.
    pub missed_max: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            own_samples: 16,
            random_samples: 32,
            elements: 1024,
            rate: 0.2,
            norm_max: 2.0,
            margin: 1.0,
            indicator_rate: 0.05,
            gate: [CLOSED, 0.0],
            similarity_max: 0.5,
            trust_gain: 0.05,
            missed_factor: 0.75,
            missed_max: 3,
        }
    }
}

/// What the evaluation of a contribution has shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found {
    /// It was not drawn, or the evaluator could not evaluate it: no fault of the miner.
    Unseen,
    /// What it does to the loss, and how many steps the weights that it started from are behind.
    Measured {
        /// On own and random data.
        gains: Gains,
        /// Outer steps.
        steps_behind: f64,
    },
    /// Another committed to it before.
    Copy,
    /// It is no valid contribution, or with it the loss is no number.
    Invalid,
}

impl Found {
    /// What losses on own and on random data say. Losses that are wrong without the contribution are the evaluator's fault.
    #[must_use]
    pub fn of(own: &[Loss], random: &[Loss], steps_behind: f64) -> Self {
        match (Improvement::of(own), Improvement::of(random)) {
            (Ok(own), Ok(random)) => Self::Measured { gains: Gains { own, random }, steps_behind },
            (Err(LossError::TooFew { .. } | LossError::Before), _)
            | (_, Err(LossError::TooFew { .. } | LossError::Before)) => Self::Unseen,
            (Err(LossError::After), _) | (_, Err(LossError::After)) => Self::Invalid,
        }
    }
}

/// What the evaluation of a merge of so many miners takes, in what training for it takes: both are counted in forward passes of a sample,
/// of which a sample that is trained on is worth three.
#[must_use]
pub fn cost(spec: &RunSpec, miners: u32) -> f64 {
    let Settings { own_samples, random_samples, .. } = Settings::default();
    let real = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let samples = f64::from(spec.training.samples_per_epoch);
    let own = real(own_samples).min(samples / f64::from(miners.max(1)));
    let contributions = f64::from(u32::from(spec.scores.evaluated).min(miners));
    // Own samples without the contribution and with it, random ones with it; and without any, once.
    let passes = contributions * (2.0 * own + real(random_samples)) + real(random_samples);
    f64::from(spec.scores.evaluators) * passes / (3.0 * samples)
}

/// Share of merges of so many miners that are evaluated: as many as `scores.evaluation_cost` pays for.
#[must_use]
pub fn evaluated_share(spec: &RunSpec, miners: u32) -> f64 {
    (spec.scores.evaluation_cost / cost(spec, miners)).min(1.0)
}

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Its rating, relative to the anchor's mean.
    pub rating: Rating,
    /// Moving average of its indicator, −1 to 1.
    pub indicator: f64,
    /// Its last sync score, 0 to 1.
    pub sync: f64,
    /// 0 when something was proved against it, up to 1 with evaluations since.
    pub trust: f64,
    /// Epochs without a contribution, less those with one since.
    pub missed: u16,
}

impl Standing {
    const NEW: Self = Self { rating: Rating::NEW, indicator: CLOSED, sync: 0.0, trust: 1.0, missed: 0 };

    /// What its work is worth, at least zero. Zero of whom nothing is known.
    #[must_use]
    pub fn score(&self, settings: &Settings) -> f64 {
        let [closed, open] = settings.gate;
        let gate = ((self.indicator - closed) / (open - closed)).clamp(0.0, 1.0);
        let present = (0..self.missed).fold(1.0, |left, _| left * settings.missed_factor);
        self.rating.ordinal().max(0.0) * gate * self.sync * self.trust * present
    }

    fn take(&mut self, settings: &Settings, found: &Found) {
        let indicator = match found {
            Found::Unseen => return,
            Found::Measured { gains, steps_behind } => {
                self.sync = sync::score(*steps_behind);
                self.trust = (self.trust + settings.trust_gain).min(1.0);
                gains.indicator(settings.margin)
            }
            Found::Copy | Found::Invalid => {
                self.trust = 0.0;
                -1.0
            }
        };
        self.indicator += settings.indicator_rate * (indicator - self.indicator);
    }
}

/// What is known of all peers: a fold over epochs.
///
/// Memory is bounded: a peer is forgotten with everything known of it when it has missed too much, and there are at most
/// [`SCORED_MINERS_MAX`]. One beyond that is not rated until another is forgotten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gauntlet {
    peers: BTreeMap<PeerId, Standing>,
    /// Deviation of the anchor's rating; its mean is 0.
    anchor: f64,
}

impl Default for Gauntlet {
    fn default() -> Self {
        Self { peers: BTreeMap::new(), anchor: Rating::NEW.sigma }
    }
}

impl Gauntlet {
    /// Whether nothing has been found yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// What is known of a peer, if anything is.
    #[must_use]
    pub fn standing(&self, peer: PeerId) -> Option<&Standing> {
        self.peers.get(&peer)
    }

    /// All scores, in [`PeerId`] order.
    pub fn scores<'a>(&'a self, settings: &'a Settings) -> impl Iterator<Item = (PeerId, f64)> + 'a {
        self.peers.iter().map(|(peer, standing)| (*peer, standing.score(settings)))
    }

    /// An epoch was merged: who contributed to it, and what was found of each contribution.
    pub fn close(&mut self, settings: &Settings, submitted: &BTreeMap<PeerId, Found>) {
        self.miss(settings, submitted);
        for peer in submitted.keys() {
            if self.peers.len() < SCORED_MINERS_MAX {
                self.peers.entry(*peer).or_insert(Standing::NEW);
            }
            if let Some(standing) = self.peers.get_mut(peer) {
                standing.missed = standing.missed.saturating_sub(1);
            }
        }
        self.play(submitted);
        for (peer, found) in submitted {
            if let Some(standing) = self.peers.get_mut(peer) {
                standing.take(settings, found);
            }
        }
    }

    /// Counts who is missing, and forgets who is for too long. Where more than half are, it is the network's fault.
    fn miss(&mut self, settings: &Settings, submitted: &BTreeMap<PeerId, Found>) {
        let missing = self.peers.keys().filter(|peer| !submitted.contains_key(peer)).count();
        if 2 * missing > self.peers.len() {
            return;
        }
        for (peer, standing) in &mut self.peers {
            standing.missed = standing.missed.saturating_add(u16::from(!submitted.contains_key(peer)));
        }
        self.peers.retain(|_, standing| standing.missed <= settings.missed_max);
    }

    /// Ranks who was measured by the improvement on random data, the anchor among them at none.
    ///
    /// What is no contribution of its peer loses to the anchor apart from that, in a match of its own: it takes nothing from
    /// whom it copied, and gives nothing either.
    fn play(&mut self, submitted: &BTreeMap<PeerId, Found>) {
        let mut players = vec![(None, Rating { mu: 0.0, sigma: self.anchor }, 0.0)];
        for (peer, found) in submitted {
            let Some(standing) = self.peers.get_mut(peer) else { continue };
            match found {
                Found::Unseen => (),
                Found::Measured { gains, .. } => {
                    players.push((Some(*peer), standing.rating, gains.random.share));
                }
                Found::Copy | Found::Invalid => {
                    let anchor = Rating { mu: 0.0, sigma: self.anchor };
                    let rated = rating::rate(&[(standing.rating, 1), (anchor, 0)]);
                    standing.rating = rated.first().copied().unwrap_or(standing.rating);
                }
            }
        }
        if players.len() < 2 {
            return;
        }
        let rank = |of: f64| players.iter().filter(|(_, _, other)| *other > of).count();
        let ranked: Vec<(Rating, usize)> =
            players.iter().map(|(_, rating, improvement)| (*rating, rank(*improvement))).collect();
        let rated = rating::rate(&ranked);
        // Only differences of means have a meaning: those who played are told relative to the anchor again.
        let Some(anchor) = rated.first().copied() else { return };
        self.anchor = anchor.sigma;
        for ((peer, ..), rating) in players.iter().zip(rated) {
            if let Some(standing) = peer.and_then(|peer| self.peers.get_mut(&peer)) {
                standing.rating = Rating { mu: rating.mu - anchor.mu, ..rating };
            }
        }
    }
}

#[cfg(test)]
mod tests;
