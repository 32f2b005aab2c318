//! What is evaluated, of whom: drawn from the chain hash after the merge plan, which nobody knew when committing.
//!
//! ```text
//! a miner's own data   some of the samples that the deal gave it
//! random data          sample numbers that no epoch deals, the same for all miners of the epoch
//! ```
//! Both are windows of the corpus that follow from the run's seed and a number, every window equally likely, so they differ in
//! nothing but whether the miner was to train on them. Random data from *other* miners' samples would not do: base weights have
//! seen those of earlier epochs, and copies of a contribution those of its author.
//!
//! Templar draws a miner's data from a pool of which it trains on less than a fifth, and random data from a generator seeded with
//! 42 at start, so that outsiders can tell which follow.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::id::{Hash, PeerId, SampleId};
use crate::limits::SAMPLES_PER_EPOCH_MAX;
use crate::samples::{bounded, shuffle};
use crate::validation::is_drawn;

/// The first sample number that no epoch deals.
pub const UNDEALT: u64 = 1 << 63;

const _: () =
    assert!(SAMPLES_PER_EPOCH_MAX <= UNDEALT >> 32, "epochs of 32 bits never deal a number from there on");

/// The evaluation of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw(Hash);

impl Draw {
    /// The draw that follows from the chain hash after the merge plan.
    #[must_use]
    pub fn new(chain: Hash) -> Self {
        Self(Hash::of_parts(&[b"iota/v1/gauntlet\0", &chain.0]))
    }

    fn key(&self, what: &[u8], of: &[u8]) -> Hash {
        Hash::of_parts(&[what, &self.0.0, of])
    }

    /// Whether the merge is evaluated, where this share of all are.
    #[must_use]
    pub fn is_evaluated(&self, share: f64) -> bool {
        is_drawn(self.key(b"merge\0", &[]), share)
    }

    /// Whose contributions are evaluated: at most so many, each equally likely whatever was evaluated before, since one that
    /// knows that its turn is over could stop to work. In [`PeerId`] order.
    #[must_use]
    pub fn evaluated(&self, submitters: &[PeerId], most: usize) -> Vec<PeerId> {
        self.chosen(submitters, most, self.key(b"peers\0", &[]))
    }

    /// Samples among those `dealt` to the peer, at most so many, ascending.
    #[must_use]
    pub fn own(&self, peer: PeerId, dealt: &[SampleId], most: usize) -> Vec<SampleId> {
        self.chosen(dealt, most, self.key(b"own\0", &peer.0))
    }

    /// Samples that were dealt to nobody, ascending.
    #[must_use]
    pub fn random(&self, count: usize) -> Vec<SampleId> {
        let below = self.distinct(b"random\0", count, UNDEALT);
        below.into_iter().map(|number| SampleId(UNDEALT + number)).collect()
    }

    /// Places in a flat vector of `len` elements, ascending; all of them if there are no more.
    #[must_use]
    pub fn elements(&self, len: usize, count: usize) -> Vec<usize> {
        if len <= count {
            return (0..len).collect();
        }
        let drawn = self.distinct(b"elements\0", count, len as u64);
        drawn.into_iter().map(|place| usize::try_from(place).unwrap_or(usize::MAX)).collect()
    }

    /// `count` different numbers below `bound`, which has to be more.
    fn distinct(&self, what: &[u8], count: usize, bound: u64) -> BTreeSet<u64> {
        let mut rng = ChaCha8Rng::from_seed(self.key(what, &[]).0);
        let mut drawn = BTreeSet::new();
        while drawn.len() < count {
            drawn.insert(bounded(&mut rng, bound));
        }
        drawn
    }

    fn chosen<T: Copy + Ord>(&self, of: &[T], most: usize, key: Hash) -> Vec<T> {
        // Sorted first: what is drawn follows from the set, not from the order it came in.
        let mut chosen: Vec<T> = of.to_vec();
        chosen.sort_unstable();
        shuffle(&mut chosen, key);
        chosen.truncate(most);
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId([3; 32]);

    fn draw(number: u8) -> Draw {
        Draw::new(Hash([number; 32]))
    }

    fn samples() -> Vec<SampleId> {
        (100..140).map(SampleId).collect()
    }

    #[test]
    fn own_samples_are_some_of_those_dealt_and_differ_by_hash_and_peer() {
        let own = draw(1).own(PEER, &samples(), 8);
        assert_eq!(own.len(), 8);
        assert!(own.iter().all(|sample| samples().contains(sample)) && own.is_sorted());
        assert_ne!(own, draw(2).own(PEER, &samples(), 8));
        assert_ne!(own, draw(1).own(PeerId([4; 32]), &samples(), 8));
        let backwards: Vec<SampleId> = samples().into_iter().rev().collect();
        assert_eq!(own, draw(1).own(PEER, &backwards, 8));
        assert_eq!(draw(1).own(PEER, &samples()[..3], 8), samples()[..3]);
    }

    #[test]
    fn random_samples_are_dealt_in_no_epoch() {
        let random = draw(1).random(32);
        assert_eq!(random.len(), 32);
        let dealt_last = u64::from(u32::MAX) * SAMPLES_PER_EPOCH_MAX + SAMPLES_PER_EPOCH_MAX - 1;
        assert!(random.iter().all(|sample| sample.0 > dealt_last));
        assert_ne!(random, draw(2).random(32));
    }

    #[test]
    fn as_many_merges_are_evaluated_as_their_share_says() {
        let evaluated = |share| {
            let draws = (0..10_000_u32).map(|plan| Draw::new(Hash::of(&plan.to_le_bytes())));
            draws.filter(|draw| draw.is_evaluated(share)).count()
        };
        assert_eq!([evaluated(0.0), evaluated(1.0)], [0, 10_000]);
        let some = evaluated(0.1);
        // Five standard deviations.
        assert!((850..=1150).contains(&some), "{some}");
    }

    #[test]
    fn every_submitter_is_evaluated_as_often_as_any_other() {
        let peers: Vec<PeerId> = (0..10).map(|n| PeerId([n; 32])).collect();
        let mut counts = [0; 10];
        for number in 0..1000_u32 {
            let draw = Draw::new(Hash::of(&number.to_le_bytes()));
            let drawn = draw.evaluated(&peers, 3);
            assert_eq!(drawn.len(), 3);
            drawn.iter().for_each(|peer| counts[usize::from(peer.0[0])] += 1);
        }
        // 300 each, with a deviation of 14.5; four of them.
        assert!(counts.iter().all(|count| (242..=358).contains(count)), "{counts:?}");
    }

    #[test]
    fn elements_are_different_places_of_the_vector() {
        assert_eq!(draw(1).elements(5, 8), [0, 1, 2, 3, 4]);
        let places = draw(1).elements(1000, 64);
        assert!(places.len() == 64 && places.windows(2).all(|pair| pair[0] < pair[1]) && places[63] < 1000);
    }
}
