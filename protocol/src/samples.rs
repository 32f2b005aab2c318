//! Which replica of which stage handles which sample: every peer computes the same answer from the log.
//!
//! When an epoch of a stage opens, its samples are dealt to the members in proportion to their measured
//! speed: quotas by largest remainder, order by a ChaCha8 shuffle keyed by (lineage of the run, stage, epoch). The deal is
//! therefore random and independent from stage to stage, as SWARM's stochastic wiring and CLASP's
//! attribution want it (Ryabinin et al. 2023; IOTA primer), and exactly balanced, as a synchronous
//! epoch wants it. When a member is released, its samples alone are dealt again, to the others.
//!
//! Since the path of a sample is a function of the log, a sample that is sent again reaches the replicas
//! that already handled it, which answer from what they kept: nothing is counted twice.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Hash, PeerId, SampleId, StageIndex};

/// The deal of one stage's epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deal {
    seed: Hash,
    first: SampleId,
    /// Member of each sample, as an index into `members`.
    owner: Vec<u16>,
    members: Vec<(PeerId, u32)>,
    released: Vec<bool>,
}

/// The samples of `epoch`: `[epoch × n, (epoch + 1) × n)`.
#[must_use]
pub fn epoch_samples(epoch: Epoch, samples_per_epoch: u32) -> std::ops::Range<u64> {
    let first = u64::from(epoch.0) * u64::from(samples_per_epoch);
    first..first + u64::from(samples_per_epoch)
}

/// Shuffles in place (Fisher–Yates) with the stream keyed by `seed`.
pub(crate) fn shuffle<T>(items: &mut [T], seed: Hash) {
    let mut rng = ChaCha8Rng::from_seed(seed.0);
    for i in (1..items.len()).rev() {
        let j = bounded(&mut rng, i as u64 + 1);
        items.swap(i, usize::try_from(j).unwrap_or(0));
    }
}

/// A number below `bound`, without modulo bias (Lemire 2019, by rejection).
#[expect(clippy::cast_possible_truncation, reason = "the two halves of a 128-bit product")]
pub(crate) fn bounded(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let wide = u128::from(rng.next_u64()) * u128::from(bound);
        let (high, low) = ((wide >> 64) as u64, wide as u64);
        if low >= threshold {
            return high;
        }
    }
}

/// Divides `count` things in proportion to `weights`, by largest remainder, ties to the first.
fn quotas(count: usize, weights: &[u64]) -> Vec<usize> {
    let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum::<u128>().max(1);
    let exact = |weight: u64| {
        (count as u128 * u128::from(weight) / total, count as u128 * u128::from(weight) % total)
    };
    let mut quotas: Vec<usize> =
        weights.iter().map(|&weight| usize::try_from(exact(weight).0).unwrap_or(0)).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(weights.get(i).map_or(0, |&weight| exact(weight).1)), i));
    let short = count.saturating_sub(quotas.iter().sum());
    for &i in order.iter().cycle().take(short) {
        if let Some(quota) = quotas.get_mut(i) {
            *quota += 1;
        }
    }
    quotas
}

impl Deal {
    /// Deals the samples of an epoch to `members` (peer, weight), which must not be empty and in [`PeerId`] order. `lineage`
    /// is that of the [spec](crate::RunSpec::lineage).
    #[must_use]
    pub fn new(
        lineage: Hash,
        stage: StageIndex,
        epoch: Epoch,
        samples: std::ops::Range<u64>,
        members: &[(PeerId, u32)],
    ) -> Self {
        let seed =
            Hash::of_parts(&[b"iota/v1/deal\0", &lineage.0, &stage.0.to_le_bytes(), &epoch.0.to_le_bytes()]);
        let count = usize::try_from(samples.end.saturating_sub(samples.start)).unwrap_or(0);
        let mut deal = Self {
            seed,
            first: SampleId(samples.start),
            owner: vec![0; count],
            members: members.to_vec(),
            released: vec![false; members.len()],
        };
        deal.deal_again(&(0..count).collect::<Vec<_>>(), seed);
        deal
    }

    /// Deals the samples at `positions` to the members that are not released.
    fn deal_again(&mut self, positions: &[usize], seed: Hash) {
        let live: Vec<usize> =
            (0..self.members.len()).filter(|&i| !self.released.get(i).copied().unwrap_or(true)).collect();
        let weights: Vec<u64> = live
            .iter()
            .filter_map(|&i| self.members.get(i))
            .map(|(_, weight)| u64::from(*weight).max(1))
            .collect();
        let quotas = quotas(positions.len(), &weights);
        let mut hands: Vec<u16> = live
            .iter()
            .zip(quotas)
            .flat_map(|(&member, quota)| {
                std::iter::repeat_n(u16::try_from(member).unwrap_or(u16::MAX), quota)
            })
            .collect();
        shuffle(&mut hands, seed);
        for (&position, hand) in positions.iter().zip(hands) {
            if let Some(owner) = self.owner.get_mut(position) {
                *owner = hand;
            }
        }
    }

    /// Takes `peer` out and deals its samples to the others. `false`, and no change, if it is not a
    /// member or the last one.
    pub fn release(&mut self, peer: PeerId) -> bool {
        let Some(index) = self.place(peer) else { return false };
        let live = self.released.iter().filter(|released| !**released).count();
        match self.released.get_mut(index) {
            Some(released) if !*released && live > 1 => *released = true,
            _ => return false,
        }
        let moved: Vec<usize> = (0..self.owner.len())
            .filter(|&i| self.owner.get(i).is_some_and(|&owner| usize::from(owner) == index))
            .collect();
        let releases = self.released.iter().filter(|released| **released).count() as u64;
        let seed = Hash::of_parts(&[&self.seed.0, &peer.0, &releases.to_le_bytes()]);
        self.deal_again(&moved, seed);
        true
    }

    /// All members the epoch was opened with, in [`PeerId`] order.
    pub fn members(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.members.iter().map(|(peer, _)| *peer)
    }

    /// Whether all members have the same weight.
    #[must_use]
    pub fn is_even(&self) -> bool {
        self.members.windows(2).all(|pair| matches!(pair, [(_, a), (_, b)] if a == b))
    }

    /// Members still in the epoch, in [`PeerId`] order.
    pub fn live(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.members
            .iter()
            .zip(&self.released)
            .filter(|(_, released)| !**released)
            .map(|((peer, _), _)| *peer)
    }

    /// Members still in the epoch that have samples to handle, in [`PeerId`] order. With fewer samples than members, or a
    /// member far slower than the others, not all have.
    #[must_use]
    pub fn handling(&self) -> Vec<PeerId> {
        let mut handles = vec![false; self.members.len()];
        for owner in &self.owner {
            if let Some(handles) = handles.get_mut(usize::from(*owner)) {
                *handles = true;
            }
        }
        self.members.iter().zip(handles).filter(|(_, handles)| *handles).map(|((peer, _), _)| *peer).collect()
    }

    /// Whether `peer` is a member still in the epoch.
    #[must_use]
    pub fn is_live(&self, peer: PeerId) -> bool {
        self.place(peer).and_then(|place| self.released.get(place)).is_some_and(|released| !released)
    }

    /// Whether `peer` handles `sample`, or may have before it was released.
    #[must_use]
    pub fn may_have_handled(&self, sample: SampleId, peer: PeerId) -> bool {
        let released = self.place(peer).and_then(|place| self.released.get(place).copied());
        released.is_some_and(|released| released || self.owner(sample) == Some(peer))
    }

    fn place(&self, peer: PeerId) -> Option<usize> {
        self.members.binary_search_by_key(&peer, |(member, _)| *member).ok()
    }

    /// The replica that handles `sample` now; `None` if the sample is not of this epoch.
    #[must_use]
    pub fn owner(&self, sample: SampleId) -> Option<PeerId> {
        let position = usize::try_from(sample.0.checked_sub(self.first.0)?).ok()?;
        let member = usize::from(*self.owner.get(position)?);
        self.members.get(member).map(|(peer, _)| *peer)
    }

    /// The samples that `peer` handles now, ascending.
    #[must_use]
    pub fn samples_of(&self, peer: PeerId) -> Vec<SampleId> {
        let Some(member) = self.place(peer) else { return Vec::new() };
        let mine = self.owner.iter().enumerate().filter(|(_, owner)| usize::from(**owner) == member);
        mine.map(|(position, _)| SampleId(self.first.0 + position as u64)).collect()
    }

    /// How many samples each live member handles now.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<PeerId, u32> {
        self.live()
            .map(|peer| (peer, u32::try_from(self.samples_of(peer).len()).unwrap_or(u32::MAX)))
            .collect()
    }
}

/// The name of a set of samples: BLAKE3 of their ids in ascending order, 8 little-endian bytes each.
#[must_use]
pub fn sample_set_hash(ascending: &[SampleId]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for sample in ascending {
        hasher.update(&sample.0.to_le_bytes());
    }
    Hash(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peers(n: u8) -> Vec<PeerId> {
        (0..n).map(|i| PeerId([i; 32])).collect()
    }

    fn deal(weights: &[u32], count: u64) -> Deal {
        let members: Vec<_> = peers(u8::try_from(weights.len()).expect("few"))
            .into_iter()
            .zip(weights.iter().copied())
            .collect();
        Deal::new(Hash([1; 32]), StageIndex(0), Epoch(2), 100..100 + count, &members)
    }

    #[test]
    fn whoever_has_no_samples_handles_none_until_another_is_released() {
        let mut deal = deal(&[1, 1, 1], 2);
        let idle: Vec<PeerId> =
            peers(3).into_iter().filter(|peer| deal.samples_of(*peer).is_empty()).collect();
        assert_eq!((deal.handling().len(), idle.len()), (2, 1));
        assert!(!deal.handling().contains(&idle[0]));
        for busy in deal.handling() {
            assert!(deal.release(busy));
        }
        assert_eq!(deal.handling(), idle);
    }

    #[test]
    fn quotas_follow_the_weights_exactly() {
        let deal = deal(&[1, 2, 5], 80);
        assert_eq!(deal.counts().into_values().collect::<Vec<_>>(), [10, 20, 50]);
        assert_eq!(deal.owner(SampleId(99)), None);
        assert_eq!(deal.owner(SampleId(180)), None);
    }

    #[test]
    fn stages_are_dealt_independently() {
        let members: Vec<_> = peers(2).into_iter().map(|peer| (peer, 1)).collect();
        let of = |stage| Deal::new(Hash([1; 32]), StageIndex(stage), Epoch(0), 0..1000, &members);
        let (a, b) = (of(0), of(1));
        let same = (0..1000).filter(|&i| a.owner(SampleId(i)) == b.owner(SampleId(i))).count();
        assert!((400..600).contains(&same), "{same} of 1000 samples have the same replica in both stages");
    }

    #[test]
    fn the_last_member_cannot_be_released() {
        let mut deal = deal(&[1, 1], 10);
        let [a, b] = [PeerId([0; 32]), PeerId([1; 32])];
        assert!(deal.release(a));
        assert!(!deal.release(a), "twice");
        assert!(!deal.release(b), "last");
        assert_eq!(deal.samples_of(b).len(), 10);
    }

    proptest! {
        #[test]
        fn a_release_moves_only_the_released_members_samples(
            weights in proptest::collection::vec(1_u32..1000, 2..8), count in 0_u64..300, gone in 0_usize..8,
        ) {
            let mut after = deal(&weights, count);
            let before = after.clone();
            let gone = PeerId([u8::try_from(gone % weights.len()).expect("few"); 32]);
            prop_assert!(after.release(gone));
            for i in 100..100 + count {
                let (old, new) = (before.owner(SampleId(i)).expect("dealt"), after.owner(SampleId(i)).expect("dealt"));
                prop_assert!(new != gone);
                prop_assert!(old == gone || old == new);
            }
            prop_assert_eq!(after.counts().values().map(|&n| u64::from(n)).sum::<u64>(), count);
        }
    }
}
