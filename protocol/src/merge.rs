//! The butterfly merge: who reduces which partition, and when the results count.
//!
//! A stage's flat vector is cut into `P` partitions. Each is owned by `r` different submitters, drawn
//! from the chain hash of the decided plan, so nobody knew the owners when committing to a contribution.
//! Owners are drawn from those who *submitted*, and partitions cover `[0, P)` by construction, whoever
//! failed before (the public IOTA code numbers partitions by registered miners and pairs by submitters,
//! and so leaves some unowned).

pub mod agreement;
pub mod evidence;

use crate::id::{Hash, PeerId};
use crate::samples::shuffle;

/// Elements `[start, end)` of partition `index` out of `partitions`, of a vector of `len` elements.
/// Lengths differ by at most one.
///
/// # Panics
/// If `index` is not below `partitions`.
#[must_use]
pub fn partition_range(index: usize, partitions: usize, len: usize) -> std::ops::Range<usize> {
    assert!(index < partitions, "partition {index} of {partitions}");
    let bound = |i: usize| usize::try_from(i as u128 * len as u128 / partitions as u128).unwrap_or(len);
    bound(index)..bound(index + 1)
}

/// The owners of each partition: `min(r, submitters)` different ones, every submitter owning as many
/// partitions as any other up to one per copy, and all pairs meeting if there are partitions enough.
#[must_use]
pub fn owners(seed: Hash, submitters: &[PeerId], partitions: usize, redundancy: usize) -> Vec<Vec<PeerId>> {
    let mut order = submitters.to_vec();
    shuffle(&mut order, Hash::of_parts(&[b"iota/v1/owners\0", &seed.0]));
    let n = order.len();
    let copies = redundancy.min(n);
    (0..partitions)
        .map(|partition| {
            let (first, round) = (partition % n.max(1), partition / n.max(1));
            // The distance between the first and the other owners changes from round to round, so that
            // over n - 1 rounds every pair has shared a partition.
            let distance = |copy: usize| if copy == 0 { 0 } else { 1 + (round + copy - 1) % (n - 1).max(1) };
            (0..copies).filter_map(|copy| order.get((first + distance(copy)) % n).copied()).collect()
        })
        .collect()
}

/// Millionths summed over `samples`, as a mean in nats.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a report, far below 2^53")]
pub fn mean_nats(sum_micro: i64, samples: u64) -> f64 {
    sum_micro as f64 / 1e6 / samples.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn peers(n: usize) -> Vec<PeerId> {
        (0..n).map(|i| PeerId([u8::try_from(i).expect("few"); 32])).collect()
    }

    proptest! {
        #[test]
        fn partitions_cover_the_vector_exactly(partitions in 1_usize..200, len in 0_usize..100_000) {
            let mut next = 0;
            for i in 0..partitions {
                let range = partition_range(i, partitions, len);
                prop_assert_eq!(range.start, next);
                next = range.end;
            }
            prop_assert_eq!(next, len);
        }

        #[test]
        fn every_partition_has_distinct_owners_and_the_load_is_even(n in 1_usize..20, partitions in 1_usize..200, r in 1_usize..4, seed: u64) {
            let owners = owners(Hash::of(&seed.to_le_bytes()), &peers(n), partitions, r);
            prop_assert_eq!(owners.len(), partitions);
            let mut load: BTreeMap<PeerId, usize> = peers(n).into_iter().map(|peer| (peer, 0)).collect();
            for owners in &owners {
                prop_assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), r.min(n));
                for owner in owners {
                    *load.get_mut(owner).expect("a submitter") += 1;
                }
            }
            let (low, high) = (load.values().min().expect("some"), load.values().max().expect("some"));
            prop_assert!(high - low <= r.min(n), "{load:?}");
        }
    }

    #[test]
    fn every_pair_of_owners_meets() {
        let owners = owners(Hash::of(b"seed"), &peers(6), 6 * 5, 2);
        let pairs: BTreeSet<_> =
            owners.iter().map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1]))).collect();
        assert_eq!(pairs.len(), 15);
    }
}
