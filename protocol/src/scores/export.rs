//! Scores for whoever pays: a vector of weights as chains take it, and that vector signed.

use serde::{Deserialize, Serialize};

use super::{Row, Scores, Share};
use crate::id::{Epoch, Hash, Identity, PeerId, RunId};
use crate::spec::ScoresSpec;
use crate::wire::{Payload, RejectReason, open, seal};

/// Weights in the form of Bittensor's `set_weights`: the largest, that of the burn among them, is 65535, and the others are in
/// proportion to it, rounded to the nearest. Divided by the sum of all of them and the burn, they are shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incentive {
    /// The weight of each miner that has one above zero, in [`PeerId`] order.
    pub weights: Vec<(PeerId, u16)>,
    /// The weight that goes to nobody, or to the owner of what is paid out.
    pub burn: u16,
}

impl Incentive {
    fn of(rows: &[Row]) -> Self {
        let burn = Share::beside(rows.iter().map(|row| row.share));
        let largest = rows.iter().map(|row| row.share).fold(burn, Share::max);
        let weight = |share| weight(share, largest);
        let weights = rows.iter().map(|row| (row.peer, weight(row.share))).filter(|(_, weight)| *weight > 0);
        Self { weights: weights.collect(), burn: weight(burn) }
    }
}

/// A share on a scale on which the largest is 65535.
fn weight(share: Share, largest: Share) -> u16 {
    let [share, largest] = [share, largest].map(|share| u128::from(share.parts()));
    let rounded = (share * u128::from(u16::MAX) + largest / 2) / largest.max(1);
    u16::try_from(rounded).unwrap_or(u16::MAX)
}

/// The weights of a run as of a position of its log, to be signed.
///
/// Whoever has the log up to there computes the same bytes, so that signatures of several peers stand over one another: a payment
/// system may ask for those of a majority of the candidates, or fold the log itself and compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoresExport {
    /// The run.
    pub run: RunId,
    /// Entries of the log that the weights follow from.
    pub entries: u64,
    /// Chain hash after them.
    pub chain: Hash,
    /// As in [`Incentive`].
    pub weights: Vec<(PeerId, u16)>,
    /// As in [`Incentive`].
    pub burn: u16,
}

impl Payload for ScoresExport {
    const KIND: &'static str = "scores";

    fn sequence(&self) -> u64 {
        self.entries
    }
}

impl ScoresExport {
    /// The weights of `run` after so many entries.
    #[must_use]
    pub fn new(run: RunId, entries: u64, chain: Hash, incentive: Incentive) -> Self {
        let Incentive { weights, burn } = incentive;
        Self { run, entries, chain, weights, burn }
    }

    /// Its bytes, signed: an [envelope](crate::wire::envelope) of kind `scores`.
    #[must_use]
    pub fn seal(&self, identity: &Identity) -> Vec<u8> {
        seal(identity, self.run, self)
    }

    /// Verifies a signed export of `run` and returns who signed it.
    ///
    /// # Errors
    /// [`RejectReason`] if the envelope does not verify, or if its weights have another form than those of an [`Incentive`].
    pub fn open(run: RunId, bytes: &[u8]) -> Result<(PeerId, Self), RejectReason> {
        let (signer, export): (PeerId, Self) = open(run, bytes)?;
        if export.run != run {
            return Err(RejectReason::Inconsistent("run of an export of scores"));
        }
        let ascending = export.weights.windows(2).all(|pair| matches!(pair, [a, b] if a.0 < b.0));
        let largest = export.weights.iter().map(|(_, weight)| *weight).fold(export.burn, u16::max);
        let some = export.weights.iter().all(|(_, weight)| *weight > 0);
        if ascending && some && largest == u16::MAX {
            Ok((signer, export))
        } else {
            Err(RejectReason::Inconsistent("weights of an export of scores"))
        }
    }
}

impl Scores {
    /// The weights of all miners with stages at the versions `now`.
    #[must_use]
    pub fn incentive(&self, spec: &ScoresSpec, now: &[Epoch]) -> Incentive {
        Incentive::of(&self.table(spec, now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::StageIndex;
    use crate::limits::{GOSSIP_BYTES_MAX, SCORE_WEIGHT_BYTES, SCORED_MINERS_MAX};
    use crate::scores::Work;
    use crate::wire::{DecodeError, encode};

    const RUN: RunId = RunId([9; 32]);
    const NOW: [Epoch; 1] = [Epoch(1)];

    fn peer(number: u8) -> PeerId {
        PeerId([number; 32])
    }

    /// Peers 0, 1, … with so many samples.
    fn incentive(samples: &[u32], burn: f64, cap: f64) -> Incentive {
        let spec = ScoresSpec { burn, cap, ..ScoresSpec::default() };
        let mut scores = Scores::default();
        let work = (0..).zip(samples).map(|(i, samples)| Work::of(peer(i), *samples, *samples));
        scores.merged(&spec, StageIndex(0), Epoch(0), work);
        scores.incentive(&spec, &NOW)
    }

    fn export() -> ScoresExport {
        ScoresExport::new(RUN, 17, Hash::of(b"chain"), incentive(&[30, 10], 0.2, 1.0))
    }

    #[test]
    fn the_largest_weight_is_the_largest_number() {
        // 10/31 and 20/31 of 65535 are 21140.3 and 42280.6.
        let Incentive { weights, burn } = incentive(&[31, 10, 0, 20], 0.0, 1.0);
        assert_eq!((weights, burn), (vec![(peer(0), 65535), (peer(1), 21140), (peer(3), 42281)], 0));
        // 0.8 is burned; 0.15 and 0.05 of 0.8 are 12287.8 and 4095.9.
        let Incentive { weights, burn } = incentive(&[30, 10], 0.8, 1.0);
        assert_eq!((weights, burn), (vec![(peer(0), 12288), (peer(1), 4096)], 65535));
        // Both have 0.3, and 0.4 is left.
        let Incentive { weights, burn } = incentive(&[30, 10], 0.0, 0.3);
        assert_eq!((weights, burn), (vec![(peer(0), 49151), (peer(1), 49151)], 65535));
    }

    #[test]
    fn without_work_all_is_burned() {
        assert_eq!(incentive(&[], 0.0, 1.0), Incentive { weights: Vec::new(), burn: 65535 });
    }

    #[test]
    fn a_weight_too_small_to_express_is_left_out() {
        // 0.9 is burned; 65535/65536 and 1/65536 of a ninth of 65535 are 7281.6 and 0.1.
        assert_eq!(incentive(&[65_535, 1], 0.9, 1.0).weights, [(peer(0), 7282)]);
    }

    #[test]
    fn an_export_opens_for_its_run_and_names_its_signer() {
        let identity = Identity::from_secret([3; 32]);
        let bytes = export().seal(&identity);
        assert_eq!(ScoresExport::open(RUN, &bytes), Ok((identity.peer(), export())));
        assert_eq!(ScoresExport::open(RunId([8; 32]), &bytes), Err(RejectReason::Signature));
    }

    #[test]
    fn an_export_that_contradicts_itself_is_refused() {
        let refused = |change: fn(&mut ScoresExport), why| {
            let mut bad = export();
            change(&mut bad);
            let bytes = seal(&Identity::from_secret([3; 32]), RUN, &bad);
            assert_eq!(ScoresExport::open(RUN, &bytes), Err(RejectReason::Inconsistent(why)));
        };
        refused(|export| export.run = RunId([8; 32]), "run of an export of scores");
        let why = "weights of an export of scores";
        refused(|export| export.weights.reverse(), why);
        refused(|export| export.weights[1].0 = export.weights[0].0, why);
        refused(|export| export.weights[1].1 = 0, why);
        refused(|export| export.weights[0].1 = 65534, why);
    }

    #[test]
    fn an_export_of_as_many_miners_as_are_scored_can_be_opened() {
        let mut full = export();
        let name = |i: usize| PeerId(Hash::of(&i.to_le_bytes()).0);
        full.weights = (0..SCORED_MINERS_MAX).map(|i| (name(i), u16::MAX)).collect();
        full.weights.sort_unstable();
        let bytes = full.seal(&Identity::from_secret([3; 32]));
        assert!(encode(&full.weights[0]).len() <= SCORE_WEIGHT_BYTES);
        assert!(ScoresExport::open(RUN, &bytes).is_ok());
        full.weights.extend((SCORED_MINERS_MAX..2 * SCORED_MINERS_MAX).map(|i| (name(i), u16::MAX)));
        let got = full.seal(&Identity::from_secret([3; 32])).len();
        let too_long = DecodeError::TooLong { limit: GOSSIP_BYTES_MAX, got };
        let bytes = full.seal(&Identity::from_secret([3; 32]));
        assert_eq!(ScoresExport::open(RUN, &bytes), Err(too_long.into()));
    }

    proptest! {
        #[test]
        fn weights_are_the_shares_to_within_a_half(
            samples in proptest::collection::vec(0_u32..5000, 1..40), burn in 0_u32..1000, cap in 1_u32..=1000,
        ) {
            let (burn, cap) = (f64::from(burn) / 1000.0, f64::from(cap) / 1000.0);
            let spec = ScoresSpec { burn, cap, ..ScoresSpec::default() };
            let mut scores = Scores::default();
            let work = (0..).zip(&samples).map(|(i, samples)| Work::of(peer(i), *samples, *samples));
            scores.merged(&spec, StageIndex(0), Epoch(0), work);
            let rows = scores.table(&spec, &NOW);
            let Incentive { weights, burn } = scores.incentive(&spec, &NOW);
            let largest = weights.iter().map(|(_, weight)| *weight).fold(burn, u16::max);
            prop_assert_eq!(largest, u16::MAX);
            let shares = || rows.iter().map(|row| row.share);
            let most = shares().fold(Share::beside(shares()), Share::max);
            for row in &rows {
                let weight = weights.iter().find(|(peer, _)| *peer == row.peer).map_or(0, |(_, weight)| *weight);
                let exact = row.share.as_f64() / most.as_f64() * 65535.0;
                prop_assert!((f64::from(weight) - exact).abs() <= 0.5 + 1e-6, "{} {}", weight, exact);
            }
        }
    }
}
