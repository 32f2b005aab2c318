//! The final score of Templar (one-covenant/templar v2.1.28, `neurons/validator.py`), from the same evaluations, to compare.
//!
//! ```text
//! final = ordinal × max(0, average of the sign of own − random), none below 0.1, × sync
//! ```
//! Ratings are without an anchor. Not in it: the comparison of indices, penalties, and that its own data are mostly samples that
//! were not trained on.

use std::collections::BTreeMap;

use iota_protocol::PeerId;
use iota_protocol::gauntlet::rating::{Rating, rate};
use iota_protocol::gauntlet::{Found, sync};

/// Weight of the newest sign in its average.
const RATE: f64 = 0.05;
/// Average below which nothing is earned.
const LEAST: f64 = 0.1;

/// What is known of a peer.
#[derive(Clone, Copy, Debug)]
struct Known {
    rating: Rating,
    average: f64,
    sync: f64,
}

/// What is known of all peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Templar(BTreeMap<PeerId, Known>);

impl Templar {
    pub(super) fn close(&mut self, found: &BTreeMap<PeerId, Found>) {
        let mut match_of = Vec::new();
        for (peer, found) in found {
            let Found::Measured { gains, steps_behind } = found else { continue };
            let known = self.0.entry(*peer).or_insert(Known { rating: Rating::NEW, average: 0.0, sync: 0.0 });
            known.average += RATE * (gains.indicator(0.0) - known.average);
            known.sync = sync::score(*steps_behind);
            match_of.push((*peer, known.rating, gains.random.share));
        }
        let rank = |of: f64| match_of.iter().filter(|(_, _, other)| *other > of).count();
        let ranked: Vec<(Rating, usize)> =
            match_of.iter().map(|(_, rating, share)| (*rating, rank(*share))).collect();
        for ((peer, ..), rating) in match_of.iter().zip(rate(&ranked)) {
            self.0.entry(*peer).and_modify(|known| known.rating = rating);
        }
    }

    pub(super) fn score(&self, peer: PeerId) -> f64 {
        let Some(Known { rating, average, sync }) = self.0.get(&peer) else { return 0.0 };
        let average = if *average < LEAST { 0.0 } else { *average };
        rating.ordinal().max(0.0) * average * sync
    }
}
