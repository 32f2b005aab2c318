//! What owners signed of a merge, so that nobody loses its place over one on the leader's word.
//!
//! Digest reports are signed. A decision that takes a miner's place for what it merged or contributed carries the reports it
//! rests on, whole envelopes, and is void at every peer alike unless they hold. What they prove is who said what of which
//! plan. Who is right of those who contradict each other, they do not prove: the plan names the inputs by their hashes, and
//! whoever has the inputs computes the partition again (`iota-node verify-proof`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::equivocation::Equivocation;
use crate::id::{Epoch, Hash, PartitionIndex, PeerId, RunId, StageIndex};
use crate::limits::{DIGEST_FAULTS_MAX, DIGEST_PARTITIONS_MAX, EVIDENCE_REPORTS_MAX};
use crate::run_state::Plan;
use crate::wire::message::{ContributionFault, DigestReport, EvictReason, FaultKind, MergeMessage};
use crate::wire::{RejectReason, Versions, open_in};

/// Owners who agree against one whose digest differs.
pub const WITNESSES: usize = 2;

/// The signed messages that a decision rests on: envelopes of [`MergeMessage::Digest`], all of the same plan, or what the
/// accused has signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Of [`EvictReason::WrongMerge`]: the accused's result for a partition, and the equal results of [`WITNESSES`] other owners
    /// of it.
    Digests {
        /// The partition.
        partition: PartitionIndex,
        /// The reports, in any order.
        reports: Vec<ByteBuf>,
    },
    /// Of [`EvictReason::InvalidContribution`]: [`witnesses`] owners who found the accused's contribution to be none.
    Faults {
        /// The reports, in any order.
        reports: Vec<ByteBuf>,
    },
    /// Of [`EvictReason::Equivocation`]: what the accused signed under one number. It is about no plan.
    Equivocation(Equivocation),
    /// Of [`EvictReason::OverstatedSpeed`]: the envelope of a [record](crate::wire::message::PeerRecord) of the accused that
    /// is faster than its [limit](crate::overstatement). It is about no plan.
    Overstatement(ByteBuf),
}

/// A digest report, and the envelope that its owner signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReport {
    /// What it says.
    pub report: DigestReport,
    /// The envelope's bytes.
    pub envelope: ByteBuf,
}

/// Why evidence does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Evidence of another kind than the decision needs, or for a decision that needs none.
    #[error("expected evidence of {0}")]
    Kind(EvictReason),
    /// More or fewer reports than are needed.
    #[error("expected {expected} reports of different owners, got {got}")]
    Count {
        /// How many there have to be.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// A report does not open: its signature is wrong, or it is of another run.
    #[error("report {0}: {1}")]
    Report(usize, RejectReason),
    /// A signed message that is no digest report.
    #[error("report {0}: expected a digest report")]
    Message(usize),
    /// A report of another plan than the others are of, or of one that is not known.
    #[error("expected reports of the partitions of one plan, that of an epoch under way or lately closed")]
    Plan,
    /// A report of a peer that was no owner.
    #[error("expected an owner, got {0}")]
    Owner(PeerId),
    /// The accused has not said what it is accused of.
    #[error("expected a report of {0}")]
    Accused(PeerId),
    /// A report that does not speak against the accused.
    #[error("expected a report against the accused, {0} gave none")]
    Agrees(PeerId),
}

/// Owners who have to find a contribution invalid, of so many submitters. One owner alone could accuse anyone.
#[must_use]
pub fn witnesses(submitters: usize) -> usize {
    WITNESSES.min(submitters)
}

/// Reports whose signatures were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reports {
    /// The plan's stage.
    pub stage: StageIndex,
    /// The plan's epoch.
    pub epoch: Epoch,
    /// The plan's number.
    pub attempt: u16,
    /// What each owner said.
    pub by: BTreeMap<PeerId, DigestReport>,
}

impl Evidence {
    /// Opens the reports, written in `run` in any version up to `version`.
    ///
    /// # Errors
    /// [`EvidenceError`] if one does not open, or they are not of one plan and of different peers, or it is no evidence of a
    /// merge.
    pub fn open(&self, run: RunId, version: u16) -> Result<Reports, EvidenceError> {
        let envelopes = match self {
            Self::Digests { reports, .. } | Self::Faults { reports } => reports,
            Self::Equivocation(_) | Self::Overstatement(_) => return Err(EvidenceError::Plan),
        };
        let count = |got| EvidenceError::Count { expected: EVIDENCE_REPORTS_MAX, got };
        if envelopes.is_empty() || envelopes.len() > EVIDENCE_REPORTS_MAX {
            return Err(count(envelopes.len()));
        }
        let versions = Versions::up_to(version);
        let mut by = BTreeMap::new();
        for (index, envelope) in envelopes.iter().enumerate() {
            let (owner, _, message) = open_in::<MergeMessage>(versions, run, envelope)
                .map_err(|reason| EvidenceError::Report(index, reason))?;
            let MergeMessage::Digest(report) = message else { return Err(EvidenceError::Message(index)) };
            by.insert(owner, report);
        }
        let plan_of = |report: &DigestReport| (report.stage, report.epoch, report.attempt);
        let mut plans = by.values().map(plan_of);
        let plan = plans.next().ok_or(EvidenceError::Plan)?;
        let same = plans.all(|other| other == plan);
        if by.len() != envelopes.len() {
            return Err(count(by.len()));
        }
        let (stage, epoch, attempt) = plan;
        if same { Ok(Reports { stage, epoch, attempt, by }) } else { Err(EvidenceError::Plan) }
    }

    /// Checks that `reports`, which are this evidence's, show that `accused` deserves to lose its place for `reason` under
    /// the plan that they are of.
    ///
    /// # Errors
    /// [`EvidenceError`] says what they lack.
    pub fn convicts(
        &self,
        reports: &Reports,
        accused: PeerId,
        reason: EvictReason,
        plan: &Plan,
    ) -> Result<(), EvidenceError> {
        if !reports.by.values().all(|report| report.is_in_order(plan.owners.len())) {
            return Err(EvidenceError::Plan);
        }
        match (self, reason) {
            (Self::Digests { partition, .. }, EvictReason::WrongMerge) => {
                let owners = plan.owners.get(partition.0 as usize).ok_or(EvidenceError::Plan)?;
                reports.contradict(accused, *partition, owners)
            }
            (Self::Faults { .. }, EvictReason::InvalidContribution) => reports.find_invalid(accused, plan),
            _ => Err(EvidenceError::Kind(reason)),
        }
    }
}

impl DigestReport {
    /// Whether it names partitions of `partitions` there are, each once and ascending, and no more than one report may.
    #[must_use]
    pub fn is_in_order(&self, partitions: usize) -> bool {
        let ascending = self.merged.windows(2).all(|pair| matches!(pair, [a, b] if a.0 < b.0));
        let known = self.merged.last().is_none_or(|(last, _)| (last.0 as usize) < partitions);
        let short = self.merged.len() <= DIGEST_PARTITIONS_MAX && self.faults.len() <= DIGEST_FAULTS_MAX;
        ascending && known && short
    }

    /// Whether it says all that `other` says.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let merged = |pair: &(PartitionIndex, Hash)| self.digest(pair.0) == Some(pair.1);
        other.merged.iter().all(merged) && other.faults.iter().all(|fault| self.faults.contains(fault))
    }

    /// What it says the merged partition is, if it does.
    #[must_use]
    pub fn digest(&self, partition: PartitionIndex) -> Option<Hash> {
        let at = self.merged.binary_search_by_key(&partition, |(of, _)| *of).ok()?;
        self.merged.get(at).map(|(_, hash)| *hash)
    }
}

impl Reports {
    /// The accused has signed another digest than the rest of these owners, who agree.
    fn contradict(
        &self,
        accused: PeerId,
        partition: PartitionIndex,
        owners: &[PeerId],
    ) -> Result<(), EvidenceError> {
        self.counts(WITNESSES + 1)?;
        if let Some(stranger) = self.by.keys().find(|peer| !owners.contains(peer)) {
            return Err(EvidenceError::Owner(*stranger));
        }
        let claimed = self.by.get(&accused).and_then(|report| report.digest(partition));
        let claimed = claimed.ok_or(EvidenceError::Accused(accused))?;
        let mut agreed = None;
        for (owner, report) in self.by.iter().filter(|(owner, _)| **owner != accused) {
            let digest = report.digest(partition).filter(|digest| *digest != claimed);
            let digest = digest.ok_or(EvidenceError::Agrees(*owner))?;
            if *agreed.get_or_insert(digest) != digest {
                return Err(EvidenceError::Agrees(*owner));
            }
        }
        Ok(())
    }

    /// Owners have signed that the accused's contribution is none.
    fn find_invalid(&self, accused: PeerId, plan: &Plan) -> Result<(), EvidenceError> {
        self.counts(witnesses(plan.submitters.len()))?;
        if !plan.has(accused) {
            return Err(EvidenceError::Accused(accused));
        }
        let fault = ContributionFault { submitter: accused, kind: FaultKind::Invalid };
        for (owner, report) in &self.by {
            if !plan.owners.iter().any(|owners| owners.contains(owner)) {
                return Err(EvidenceError::Owner(*owner));
            }
            if !report.faults.contains(&fault) {
                return Err(EvidenceError::Agrees(*owner));
            }
        }
        Ok(())
    }

    fn counts(&self, expected: usize) -> Result<(), EvidenceError> {
        let got = self.by.len();
        if got == expected { Ok(()) } else { Err(EvidenceError::Count { expected, got }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Identity;
    use crate::limits::WIRE_VERSION_FIRST;
    use crate::wire::message::Submission;
    use crate::wire::{open, seal, seal_in};

    const RUN: RunId = RunId([9; 32]);
    const P: PartitionIndex = PartitionIndex(1);

    fn identity(i: u8) -> Identity {
        Identity::from_secret([i; 32])
    }

    fn peer(i: u8) -> PeerId {
        identity(i).peer()
    }

    /// A plan of these submitters, in which peers 1, 2 and 3 own the second of two partitions and peer 4 the first.
    fn plan() -> Plan {
        let submission = |i| Submission {
            peer: peer(i),
            manifest: Hash::default(),
            samples: 1,
            loss_micro: None,
            moments_after: None,
        };
        Plan {
            attempt: 2,
            seed: Hash::default(),
            submitters: [1, 2, 3, 4].map(submission).to_vec(),
            owners: vec![vec![peer(4)], [1, 2, 3].map(peer).to_vec()],
        }
    }

    fn report(text: &str) -> DigestReport {
        DigestReport {
            sequence: 7,
            stage: StageIndex(0),
            epoch: Epoch(5),
            attempt: 2,
            merged: vec![(P, Hash::of(text.as_bytes()))],
            faults: vec![ContributionFault { submitter: peer(4), kind: FaultKind::Invalid }],
        }
    }

    fn sealed(i: u8, report: DigestReport) -> ByteBuf {
        ByteBuf::from(seal(&identity(i), RUN, &MergeMessage::Digest(report)))
    }

    fn digests(reports: Vec<ByteBuf>) -> Evidence {
        Evidence::Digests { partition: P, reports }
    }

    fn convicts(evidence: &Evidence, accused: u8, reason: EvictReason) -> Result<(), EvidenceError> {
        let reports = evidence.open(RUN, WIRE_VERSION_FIRST)?;
        evidence.convicts(&reports, peer(accused), reason, &plan())
    }

    fn of_merge(reports: Vec<ByteBuf>) -> Result<(), EvidenceError> {
        convicts(&digests(reports), 3, EvictReason::WrongMerge)
    }

    fn honest() -> Vec<ByteBuf> {
        vec![sealed(1, report("right")), sealed(2, report("right"))]
    }

    #[test]
    fn two_owners_who_agree_convict_a_third_who_differs() {
        let reports = [honest(), vec![sealed(3, report("wrong"))]].concat();
        assert_eq!(of_merge(reports.clone()), Ok(()));
        assert_eq!(of_merge(reports.into_iter().rev().collect()), Ok(()), "in any order");
    }

    #[test]
    fn who_agrees_is_not_convicted_and_witnesses_have_to_agree_with_each_other() {
        let agreeing = [honest(), vec![sealed(3, report("right"))]].concat();
        assert!(matches!(of_merge(agreeing), Err(EvidenceError::Agrees(_))));
        let three = ["a", "b", "c"].iter().zip(1..).map(|(text, i)| sealed(i, report(text)));
        assert!(matches!(of_merge(three.collect()), Err(EvidenceError::Agrees(_))));
        let silent = DigestReport { merged: Vec::new(), ..report("") };
        let reports = vec![sealed(1, report("right")), sealed(2, silent.clone()), sealed(3, report("wrong"))];
        assert_eq!(of_merge(reports), Err(EvidenceError::Agrees(peer(2))));
        let reports = [honest(), vec![sealed(3, silent)]].concat();
        assert_eq!(of_merge(reports), Err(EvidenceError::Accused(peer(3))), "it has said nothing");
    }

    #[test]
    fn a_forged_signature_proves_nothing() {
        let mut forged = sealed(3, report("wrong"));
        *forged.last_mut().expect("bytes") ^= 1;
        let refused = of_merge([honest(), vec![forged]].concat());
        assert_eq!(refused, Err(EvidenceError::Report(2, RejectReason::Signature)));
        let other_run = seal(&identity(3), RunId([8; 32]), &MergeMessage::Digest(report("wrong")));
        let refused = of_merge([honest(), vec![ByteBuf::from(other_run)]].concat());
        assert_eq!(refused, Err(EvidenceError::Report(2, RejectReason::Signature)));
    }

    #[test]
    fn reports_of_another_plan_or_of_strangers_do_not_count() {
        for other in [
            DigestReport { attempt: 1, ..report("wrong") },
            DigestReport { epoch: Epoch(4), ..report("wrong") },
            DigestReport { stage: StageIndex(1), ..report("wrong") },
        ] {
            assert_eq!(of_merge([honest(), vec![sealed(3, other)]].concat()), Err(EvidenceError::Plan));
        }
        let twice = [(P, Hash::of(b"wrong")), (P, Hash::of(b"right"))].to_vec();
        let ambiguous = DigestReport { merged: twice, ..report("") };
        assert_eq!(of_merge([honest(), vec![sealed(3, ambiguous)]].concat()), Err(EvidenceError::Plan));
        let stranger =
            vec![sealed(1, report("right")), sealed(4, report("right")), sealed(3, report("wrong"))];
        assert_eq!(of_merge(stranger), Err(EvidenceError::Owner(peer(4))), "it owns another partition");
        let accused = convicts(
            &digests([honest(), vec![sealed(4, report("wrong"))]].concat()),
            4,
            EvictReason::WrongMerge,
        );
        assert_eq!(accused, Err(EvidenceError::Owner(peer(4))));
    }

    #[test]
    fn one_witness_twice_is_one_and_there_are_no_more_than_needed() {
        let later = DigestReport { sequence: 8, ..report("right") };
        let twice = vec![sealed(1, report("right")), sealed(1, later), sealed(3, report("wrong"))];
        assert!(matches!(of_merge(twice), Err(EvidenceError::Count { got: 2, .. })));
        assert!(matches!(of_merge(Vec::new()), Err(EvidenceError::Count { got: 0, .. })));
        let four = [honest(), vec![sealed(3, report("wrong")), sealed(4, report("right"))]].concat();
        assert!(matches!(of_merge(four), Err(EvidenceError::Count { got: 4, .. })));
        let lone = vec![sealed(1, report("right")), sealed(3, report("wrong"))];
        assert_eq!(of_merge(lone), Err(EvidenceError::Count { expected: 3, got: 2 }));
    }

    #[test]
    fn two_owners_convict_the_author_of_an_invalid_contribution() {
        let faults = |reports| Evidence::Faults { reports };
        let invalid = EvictReason::InvalidContribution;
        assert_eq!(convicts(&faults(honest()), 4, invalid), Ok(()));
        assert_eq!(convicts(&faults(honest()), 3, invalid), Err(EvidenceError::Agrees(first(1, 2))));
        let one = faults(vec![sealed(1, report(""))]);
        assert_eq!(convicts(&one, 4, invalid), Err(EvidenceError::Count { expected: 2, got: 1 }));
        let stranger = faults(vec![sealed(1, report("")), sealed(6, report(""))]);
        assert_eq!(convicts(&stranger, 4, invalid), Err(EvidenceError::Owner(peer(6))));
        assert_eq!(convicts(&faults(honest()), 6, invalid), Err(EvidenceError::Accused(peer(6))));
        let wrong = EvictReason::WrongMerge;
        assert_eq!(convicts(&faults(honest()), 4, wrong), Err(EvidenceError::Kind(wrong)));
        assert_eq!(convicts(&digests(honest()), 4, invalid), Err(EvidenceError::Kind(invalid)));
    }

    /// The lower of two peers, whose report is looked at first.
    fn first(a: u8, b: u8) -> PeerId {
        peer(a).min(peer(b))
    }

    #[test]
    fn a_report_of_a_version_that_is_not_decided_does_not_open() {
        let newer = seal_in(2, &identity(3), RUN, &MergeMessage::Digest(report("wrong")));
        assert!(open::<MergeMessage>(RUN, &newer).is_err());
        let evidence = digests([honest(), vec![ByteBuf::from(newer)]].concat());
        assert!(matches!(
            evidence.open(RUN, WIRE_VERSION_FIRST),
            Err(EvidenceError::Report(2, RejectReason::Version { .. }))
        ));
        assert!(evidence.open(RUN, 2).is_ok());
    }
}
