//! When redundant results count: the owners' digests of one plan, compared.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::id::{Hash, PartitionIndex, PeerId};
use crate::limits::DIGEST_REPORTS_KEPT_MAX;
use crate::merge::evidence::{Evidence, SignedReport, WITNESSES};
use crate::wire::message::{ContributionFault, FaultKind};

/// What is known about one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Owners that could still report have not.
    Pending,
    /// This is the merged partition. Those named computed another one from the same inputs.
    Agreed(Hash, Vec<PeerId>),
    /// Nobody is left to report: a further owner has to compute it.
    NeedsOwner,
    /// The reports differ and none has a majority: many further owners have to compute it, since a few could be
    /// accomplices of whoever lied.
    Disputed,
}

/// The digests of one merge plan.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    merged: BTreeMap<PeerId, BTreeMap<PartitionIndex, Hash>>,
    /// The reports that say so, and who signed them.
    reports: BTreeMap<PeerId, Vec<Arc<SignedReport>>>,
    faults: BTreeMap<ContributionFault, BTreeSet<PeerId>>,
}

impl Tally {
    /// Takes a report of an owner. The first digest of an owner for a partition stands. One that says nothing new is not kept,
    /// nor one too many.
    pub fn add(&mut self, owner: PeerId, signed: &Arc<SignedReport>) {
        let report = &signed.report;
        let known = self.merged.entry(owner).or_default();
        let told = |fault| self.faults.get(fault).is_some_and(|owners| owners.contains(&owner));
        let news = report.merged.iter().any(|(partition, _)| !known.contains_key(partition))
            || report.faults.iter().any(|fault| !told(fault));
        let kept = self.reports.entry(owner).or_default();
        if news {
            kept.retain(|older| !report.covers(&older.report));
        }
        if !news || kept.len() >= DIGEST_REPORTS_KEPT_MAX {
            return;
        }
        kept.push(Arc::clone(signed));
        for (partition, hash) in &report.merged {
            known.entry(*partition).or_insert(*hash);
        }
        for fault in &report.faults {
            self.faults.entry(*fault).or_default().insert(owner);
        }
    }

    /// What `accused` signed of a partition, and what others of its owners did who found it to be `agreed`.
    #[must_use]
    pub fn contradiction(
        &self,
        partition: PartitionIndex,
        accused: PeerId,
        agreed: Hash,
        owners: &[PeerId],
    ) -> Option<Evidence> {
        let signed = |owner: PeerId| {
            let digest = self.merged.get(&owner)?.get(&partition)?;
            let mut kept = self.reports.get(&owner)?.iter();
            let signed = kept.find(|signed| signed.report.digest(partition) == Some(*digest))?;
            Some((*digest, signed.envelope.clone()))
        };
        let (_, claimed) = signed(accused).filter(|(digest, _)| *digest != agreed)?;
        let against =
            owners.iter().filter_map(|owner| signed(*owner)).filter(|(digest, _)| *digest == agreed);
        let against: Vec<_> = against.map(|(_, envelope)| envelope).take(WITNESSES).collect();
        let reports = [vec![claimed], against].concat();
        (reports.len() == WITNESSES + 1).then_some(Evidence::Digests { partition, reports })
    }

    /// What `witnesses` owners signed of an invalid contribution of `accused`.
    #[must_use]
    pub fn invalidity(&self, accused: PeerId, witnesses: usize) -> Option<Evidence> {
        let fault = ContributionFault { submitter: accused, kind: FaultKind::Invalid };
        let signed = |owner: &PeerId| {
            let mut kept = self.reports.get(owner)?.iter();
            kept.find(|signed| signed.report.faults.contains(&fault)).map(|signed| signed.envelope.clone())
        };
        let reports: Vec<_> = self.faults.get(&fault)?.iter().filter_map(signed).take(witnesses).collect();
        (reports.len() == witnesses).then_some(Evidence::Faults { reports })
    }

    /// Judges one partition. `absent` says which owners will not report any more.
    #[must_use]
    pub fn judge(
        &self,
        partition: PartitionIndex,
        owners: &[PeerId],
        absent: impl Fn(PeerId) -> bool,
    ) -> Verdict {
        let mut votes: BTreeMap<Hash, Vec<PeerId>> = BTreeMap::new();
        let mut missing = 0;
        for owner in owners {
            match self.merged.get(owner).and_then(|merged| merged.get(&partition)) {
                Some(hash) => votes.entry(*hash).or_default().push(*owner),
                None if absent(*owner) => {}
                None => missing += 1,
            }
        }
        let Some((best, count)) =
            votes.iter().map(|(hash, owners)| (*hash, owners.len())).max_by_key(|(_, count)| *count)
        else {
            return if missing > 0 { Verdict::Pending } else { Verdict::NeedsOwner };
        };
        if votes.len() == 1 {
            return if missing > 0 { Verdict::Pending } else { Verdict::Agreed(best, Vec::new()) };
        }
        let reported: usize = votes.values().map(Vec::len).sum();
        if count * 2 > reported + missing {
            let losers = votes.iter().filter(|(hash, _)| **hash != best);
            return Verdict::Agreed(best, losers.flat_map(|(_, owners)| owners.iter().copied()).collect());
        }
        if missing > 0 { Verdict::Pending } else { Verdict::Disputed }
    }

    /// Submitters whose contributions at least `witnesses` owners found invalid. One owner alone could
    /// accuse anyone, so with a single witness the bytes have to be checked again first.
    #[must_use]
    pub fn invalid(&self, witnesses: usize) -> Vec<PeerId> {
        self.faulty(FaultKind::Invalid, witnesses)
    }

    /// Submitters whose contributions stand out, as most owners say that have reduced something, at most so many: those of whom most of
    /// them do. In the order of their keys.
    #[must_use]
    pub fn outliers(&self, most: usize) -> Vec<PeerId> {
        let owners = self.merged.values().filter(|merged| !merged.is_empty()).count();
        let found = self
            .faults
            .iter()
            .filter(|(fault, said)| fault.kind == FaultKind::Outlier && said.len() * 2 > owners);
        let mut found: Vec<_> = found.map(|(fault, said)| (said.len(), fault.submitter)).collect();
        found.sort_by_key(|(said, submitter)| (Reverse(*said), *submitter));
        found.truncate(most);
        found.into_iter().map(|(_, submitter)| submitter).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Submitters whose contributions at least one owner could not fetch.
    #[must_use]
    pub fn unavailable(&self) -> Vec<PeerId> {
        self.faulty(FaultKind::Unavailable, 1)
    }

    fn faulty(&self, kind: FaultKind, witnesses: usize) -> Vec<PeerId> {
        let found =
            self.faults.iter().filter(|(fault, owners)| fault.kind == kind && owners.len() >= witnesses);
        found.map(|(fault, _)| fault.submitter).collect()
    }

    /// Pairs of owners with whether their digests of a shared partition are equal.
    pub fn pairs(&self, owners: &[Vec<PeerId>]) -> Vec<(PeerId, PeerId, bool)> {
        let mut pairs = Vec::new();
        for (index, owners) in owners.iter().enumerate() {
            let partition = PartitionIndex(u32::try_from(index).unwrap_or(u32::MAX));
            let digest = |owner: &PeerId| self.merged.get(owner).and_then(|merged| merged.get(&partition));
            for (i, a) in owners.iter().enumerate() {
                for b in owners.iter().skip(i + 1) {
                    if let (Some(x), Some(y)) = (digest(a), digest(b)) {
                        pairs.push(((*a).min(*b), (*a).max(*b), x == y));
                    }
                }
            }
        }
        pairs
    }
}

/// How often two peers' redundant results were compared, and how often they were equal (IOTA primer,
/// section on the butterfly all-reduce: a cheater shows as a bad row and column).
#[derive(Clone, Debug, Default)]
pub struct AgreementMatrix {
    counts: BTreeMap<(PeerId, PeerId), (u64, u64)>,
}

impl AgreementMatrix {
    /// Counts the comparisons of a finished merge.
    pub fn record(&mut self, pairs: &[(PeerId, PeerId, bool)]) {
        for (a, b, equal) in pairs {
            let (agreed, compared) = self.counts.entry((*a, *b)).or_default();
            *agreed += u64::from(*equal);
            *compared += 1;
        }
    }

    /// (equal, compared) for a pair in either order.
    #[must_use]
    pub fn of(&self, a: PeerId, b: PeerId) -> (u64, u64) {
        self.counts.get(&(a.min(b), a.max(b))).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, StageIndex};
    use crate::wire::message::DigestReport;
    use serde_bytes::ByteBuf;

    const P: PartitionIndex = PartitionIndex(0);

    fn peer(i: u8) -> PeerId {
        PeerId([i; 32])
    }

    fn tally(reports: &[(u8, &[u8])]) -> Tally {
        let mut tally = Tally::default();
        for (owner, bytes) in reports {
            tally.add(peer(*owner), &signed(*owner, &[(P, Hash::of(bytes))], &[]));
        }
        tally
    }

    /// What an owner says. Its name and its first digest stand for the envelope.
    fn signed(owner: u8, merged: &[(PartitionIndex, Hash)], invalid: &[u8]) -> Arc<SignedReport> {
        let fault = |&i: &u8| ContributionFault { submitter: peer(i), kind: FaultKind::Invalid };
        let report = DigestReport {
            sequence: 1,
            stage: StageIndex(0),
            epoch: Epoch(0),
            attempt: 0,
            merged: merged.to_vec(),
            faults: invalid.iter().map(fault).collect(),
        };
        let said = merged.first().map(|(_, hash)| hash.0.to_vec()).unwrap_or_default();
        Arc::new(SignedReport { report, envelope: ByteBuf::from([vec![owner], said].concat()) })
    }

    #[test]
    fn who_differs_is_accused_with_its_own_report_and_those_of_two_who_agree() {
        let tally = tally(&[(1, b"x"), (2, b"y"), (3, b"x"), (4, b"x")]);
        let owners = [1, 2, 3, 4].map(peer);
        let envelope = |owner: u8, bytes: &[u8]| [vec![owner], Hash::of(bytes).0.to_vec()].concat();
        let reports = [envelope(2, b"y"), envelope(1, b"x"), envelope(3, b"x")].map(ByteBuf::from).to_vec();
        let expected = Evidence::Digests { partition: P, reports };
        assert_eq!(tally.contradiction(P, peer(2), Hash::of(b"x"), &owners), Some(expected));
        assert_eq!(tally.contradiction(P, peer(1), Hash::of(b"x"), &owners), None, "it agrees");
        assert_eq!(tally.contradiction(P, peer(1), Hash::of(b"y"), &owners), None, "one is against it");
        assert_eq!(tally.contradiction(P, peer(9), Hash::of(b"x"), &owners), None, "it said nothing");
        assert_eq!(tally.invalidity(peer(5), 2), None);
    }

    #[test]
    fn an_owner_fills_no_table_with_reports_and_what_it_says_anew_takes_the_place_of_what_it_said() {
        let digest = |i: u32| (PartitionIndex(i), Hash::of(&i.to_le_bytes()));
        let mut tally = Tally::default();
        for count in 1..100 {
            let all: Vec<_> = (0..count).map(digest).collect();
            tally.add(peer(1), &signed(1, &all, &[7]));
        }
        assert_eq!(tally.reports[&peer(1)].len(), 1, "it told more each time");
        (200..300).for_each(|i| tally.add(peer(1), &signed(1, &[digest(i)], &[])));
        assert_eq!(tally.reports[&peer(1)].len(), DIGEST_REPORTS_KEPT_MAX);
        assert_eq!(tally.merged[&peer(1)].len(), 99 + DIGEST_REPORTS_KEPT_MAX - 1, "the rest does not count");
        tally.add(peer(2), &signed(2, &[], &[7]));
        assert_eq!(tally.invalid(2), [peer(7)]);
        let Some(Evidence::Faults { reports }) = tally.invalidity(peer(7), 2) else { panic!("two owners") };
        assert_eq!(reports.iter().map(|envelope| envelope[0]).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn who_stands_out_for_most_owners_is_an_outlier_and_so_are_few() {
        let says = |outliers: &[(u8, &[u8])]| {
            let mut tally = Tally::default();
            for (owner, outliers) in outliers {
                let signed = signed(*owner, &[(P, Hash::of(b"x"))], outliers);
                let mut report = signed.report.clone();
                report.faults.iter_mut().for_each(|fault| fault.kind = FaultKind::Outlier);
                tally
                    .add(peer(*owner), &Arc::new(SignedReport { report, envelope: signed.envelope.clone() }));
            }
            tally
        };
        let tally = says(&[(1, &[7, 9]), (2, &[7, 8, 9]), (3, &[9])]);
        assert_eq!(tally.outliers(3), [peer(7), peer(9)]);
        assert_eq!(tally.outliers(1), [peer(9)], "all say so of it");
        assert_eq!((tally.invalid(1), tally.unavailable()), (vec![], vec![]), "nothing is proved");
        assert_eq!(says(&[(1, &[7]), (2, &[])]).outliers(3), [], "one of two is not most");
    }

    fn judge(reports: &[(u8, &[u8])], owners: &[u8], absent: &[u8]) -> Verdict {
        let owners: Vec<_> = owners.iter().map(|&i| peer(i)).collect();
        tally(reports).judge(P, &owners, |owner| absent.iter().any(|&i| peer(i) == owner))
    }

    #[test]
    fn equal_digests_agree_and_a_missing_owner_is_waited_for_until_absent() {
        let good = Verdict::Agreed(Hash::of(b"x"), Vec::new());
        assert_eq!(judge(&[(1, b"x"), (2, b"x")], &[1, 2], &[]), good);
        assert_eq!(judge(&[(1, b"x")], &[1, 2], &[]), Verdict::Pending);
        assert_eq!(judge(&[(1, b"x")], &[1, 2], &[2]), good);
        assert_eq!(judge(&[], &[1, 2], &[1, 2]), Verdict::NeedsOwner);
    }

    #[test]
    fn a_third_owner_settles_a_dispute_and_the_loser_is_named() {
        assert_eq!(judge(&[(1, b"x"), (2, b"y")], &[1, 2], &[]), Verdict::Disputed);
        assert_eq!(judge(&[(1, b"x"), (2, b"y")], &[1, 2, 3], &[]), Verdict::Pending);
        assert_eq!(
            judge(&[(1, b"x"), (2, b"y"), (3, b"x")], &[1, 2, 3], &[]),
            Verdict::Agreed(Hash::of(b"x"), vec![peer(2)])
        );
    }

    #[test]
    fn two_liars_who_report_first_wait_for_the_majority_of_those_asked() {
        let liars: &[(u8, &[u8])] = &[(1, b"x"), (2, b"y"), (3, b"x")];
        assert_eq!(judge(liars, &[1, 2, 3, 4, 5], &[]), Verdict::Pending);
        let all = [liars, &[(4, b"y"), (5, b"y")]].concat();
        let settled = Verdict::Agreed(Hash::of(b"y"), vec![peer(1), peer(3)]);
        assert_eq!(judge(&all, &[1, 2, 3, 4, 5], &[]), settled);
        let tied = [liars, &[(4, b"y")]].concat();
        assert_eq!(judge(&tied, &[1, 2, 3, 4, 5], &[5]), Verdict::Disputed);
    }

    #[test]
    fn an_owner_cannot_change_its_digest() {
        assert_eq!(
            judge(&[(1, b"x"), (1, b"y"), (2, b"x")], &[1, 2], &[]),
            Verdict::Agreed(Hash::of(b"x"), Vec::new())
        );
    }

    #[test]
    fn strangers_reports_do_not_count() {
        assert_eq!(judge(&[(9, b"y"), (8, b"y")], &[1, 2], &[]), Verdict::Pending);
    }

    #[test]
    fn the_matrix_counts_each_comparison_once() {
        let tally = tally(&[(1, b"x"), (2, b"y"), (3, b"x")]);
        let mut matrix = AgreementMatrix::default();
        matrix.record(&tally.pairs(&[vec![peer(1), peer(2), peer(3)]]));
        assert_eq!(matrix.of(peer(3), peer(1)), (1, 1));
        assert_eq!(matrix.of(peer(1), peer(2)), (0, 1));
    }
}
