//! What a proof shows, to somebody who believes nobody but the run's candidates in what they decided, and not in why.

use std::fmt;
use std::sync::Arc;

use iota_model::Device;
use iota_protocol::limits::GOSSIP_BYTES_MAX;
use iota_protocol::merge::evidence::{Evidence, Reports};
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::overstatement::SpeedLimit;
use iota_protocol::run_state::Plan;
use iota_protocol::wire::decode;
use iota_protocol::wire::message::{Decision, Manifest, PeerRecord, Submission};
use iota_protocol::{Hash, PartitionIndex, PeerId, RunId};
use iota_worker::Worker;

use super::blobs::Known;
use super::signed_twice::describe;
use super::{Conviction, Proof, ProofError, convicted};

/// What a proof shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was computed again says so, or what the peer itself signed.
    Proved(RunId, String),
    /// It does not, or there is nothing to compute again; signatures show this.
    NotProved(RunId, String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proved(run, what) => write!(f, "PROVED: in run {run} {what}"),
            Self::NotProved(run, what) => write!(f, "NOT PROVED: in run {run} {what}"),
        }
    }
}

/// Checks a proof: the certificate of its log, the log itself by folding it, the evidence in its last entry, and what that is
/// about by computing it again.
///
/// # Errors
/// [`ProofError`] if it is damaged, or its log does not end with the peer's loss of its place.
pub fn check(proof: &Proof) -> Result<Outcome, ProofError> {
    proof.spec.validate()?;
    let (log, fold) = proof.open_log()?;
    let conviction = convicted(&log, fold, proof.peer)?;
    if conviction.entries != log.len() {
        return Err(ProofError::Innocent(proof.peer));
    }
    let run = proof.spec.run_id();
    let shown = match &conviction.decision {
        Decision::Evict { evidence: Some(Evidence::Equivocation(equivocation)), .. }
        | Decision::Dismiss { evidence: Some(equivocation), .. } => {
            let number = conviction.before.check_equivocation(proof.peer, equivocation);
            let number = number.map_err(|_| ProofError::Innocent(proof.peer))?;
            Ok(describe(proof.peer, equivocation, number))
        }
        Decision::Evict { evidence: Some(Evidence::Overstatement(record)), .. } => {
            let record = conviction.before.check_overstatement(proof.peer, record);
            let record = record.map_err(|_| ProofError::Innocent(proof.peer))?;
            let limit = conviction.before.speed_limit(proof.peer).ok_or(ProofError::Innocent(proof.peer))?;
            Ok(overstated(proof.peer, limit, &record))
        }
        Decision::Evict { reason, evidence: Some(evidence), .. } => {
            let reports = conviction.before.check_evidence(proof.peer, *reason, evidence);
            let reports = reports.map_err(|_| ProofError::Innocent(proof.peer))?;
            let plan = conviction.before.plan_of(reports.stage, reports.epoch, reports.attempt);
            let plan = plan.ok_or(ProofError::Innocent(proof.peer))?;
            let blobs = Known::new(proof.blobs.iter().map(|bytes| bytes.as_slice()));
            let worker = Worker::new(Arc::new(proof.spec.clone()), Device::Cpu, None);
            Case { peer: proof.peer, plan, reports, blobs, worker }.weigh(evidence)
        }
        _ => Err(signed(&conviction, proof.peer)),
    };
    Ok(match shown {
        Ok(what) => Outcome::Proved(run, what),
        Err(what) => Outcome::NotProved(run, what),
    })
}

/// What a record shows that keeps to no limit.
fn overstated(peer: PeerId, limit: SpeedLimit, record: &PeerRecord) -> String {
    format!(
        "peer {peer} signed that it does {} thousandths of a sample per second and knows the first {} entries of the log; the last of \
         the first {} limits it to {}",
        record.speed_milli, record.log_length, limit.entries, limit.speed_milli
    )
}

/// What validators have signed. To replay an epoch takes its tensors, and a device like the miner's.
fn signed(conviction: &Conviction, peer: PeerId) -> String {
    let last = match &conviction.decision {
        Decision::Judge(last) => last,
        Decision::Evaluate(last) => {
            return format!(
                "signatures alone show that most validators who evaluated the merge of epoch {} contradict {peer}",
                last.epoch
            );
        }
        _ => return format!("the place was lost for a {}", conviction.reason),
    };
    let of_it = conviction.findings.iter().filter(|(subject, ..)| *subject == last.subject);
    let findings: Vec<String> =
        of_it.map(|(_, validator, finding)| format!("{validator}: {finding}")).collect();
    format!(
        "signatures alone show that validators replayed epoch {} of stage {} of {} and found: {}",
        last.subject.epoch,
        last.subject.stage,
        last.subject.peer,
        findings.join("; ")
    )
}

/// What is to be decided of a merge.
struct Case<'a> {
    peer: PeerId,
    plan: &'a Plan,
    reports: Reports,
    blobs: Known,
    worker: Worker,
}

impl Case<'_> {
    /// What is proved, or why it is not.
    fn weigh(mut self, evidence: &Evidence) -> Result<String, String> {
        match evidence {
            Evidence::Digests { partition, .. } => self.weigh_digest(*partition),
            Evidence::Faults { .. } => self.weigh_contribution(),
            // They are about no plan, and so no cases.
            Evidence::Equivocation(_) | Evidence::Overstatement(_) => {
                Err("what the accused has signed is no evidence of a merge".to_owned())
            }
        }
    }

    fn weigh_digest(&mut self, partition: PartitionIndex) -> Result<String, String> {
        let Reports { stage, epoch, .. } = self.reports;
        let what = format!("partition {partition} of stage {stage}, epoch {epoch}");
        let claimed = self.reports.by.get(&self.peer).and_then(|report| report.digest(partition));
        let claimed = claimed.unwrap_or_default();
        let others = self.reports.by.iter().filter(|(owner, _)| **owner != self.peer);
        let names: Vec<String> = others.clone().map(|(owner, _)| owner.to_string()).collect();
        let agreed = others.clone().find_map(|(_, report)| report.digest(partition)).unwrap_or_default();
        let (peer, names) = (self.peer, names.join(" and "));
        let signed =
            format!("signatures alone show that {peer} reported {claimed} for {what}, and {names} {agreed}");
        let inputs = self.inputs(partition).map_err(|missing| format!("{signed}; {missing}"))?;
        let contributions = inputs.len();
        let recomputed = match self.reduce(partition, inputs) {
            Ok(recomputed) => recomputed,
            Err(reason) => return Err(format!("{signed}; the inputs give none: {reason}")),
        };
        if recomputed == claimed {
            return Err(format!(
                "{peer} reported {claimed} for {what}, which is what its {contributions} inputs give; {names} reported {agreed}"
            ));
        }
        Ok(format!(
            "peer {peer} reported {claimed} for {what}, recomputed {recomputed} from {contributions} contributions"
        ))
    }

    fn weigh_contribution(&mut self) -> Result<String, String> {
        let Reports { stage, epoch, .. } = self.reports;
        let (peer, of) = (self.peer, format!("stage {stage}, epoch {epoch}"));
        let owners: Vec<String> = self.reports.by.keys().map(ToString::to_string).collect();
        let signed = format!(
            "signatures alone show that {} found the contribution of {peer} to {of} to be none",
            owners.join(" and ")
        );
        let submission = self.plan.submitters.iter().find(|submission| submission.peer == peer).copied();
        let submission = submission.ok_or_else(|| signed.clone())?;
        let bytes = self.blobs.get(submission.manifest);
        let bytes = bytes.ok_or_else(|| format!("{signed}; its manifest is not in the file"))?;
        let manifest = decode::<Manifest>(bytes, GOSSIP_BYTES_MAX);
        let manifest = manifest.ok().filter(|manifest| manifest.partitions.len() == self.plan.owners.len());
        let Some(manifest) = manifest else {
            return Ok(format!("peer {peer} committed to a manifest for {of} that is none"));
        };
        for (partition, hash) in (0..).map(PartitionIndex).zip(manifest.partitions) {
            let input = vec![(peer, submission.samples, hash)];
            if self.blobs.get(hash).is_some() && matches!(self.perform(partition, input), Ok(Err(_))) {
                return Ok(format!(
                    "peer {peer} contributed {hash} as partition {partition} of {of}, which is no valid partition"
                ));
            }
        }
        Err(format!("{signed}; none of its partitions in the file is invalid"))
    }

    /// The inputs of a partition, if all are here.
    fn inputs(&self, partition: PartitionIndex) -> Result<Vec<(PeerId, u32, Hash)>, String> {
        let input = |submission: &Submission| {
            let Submission { peer, manifest, samples, .. } = *submission;
            let lacks = |what: &str| format!("the {what} of {peer} is not in the file");
            let bytes = self.blobs.get(manifest).ok_or_else(|| lacks("manifest"))?;
            let read = decode::<Manifest>(bytes, GOSSIP_BYTES_MAX);
            let read = read.map_err(|error| format!("the manifest of {peer} is none: {error}"))?;
            let hash = read.partitions.get(partition.0 as usize).copied();
            let hash = hash.filter(|hash| self.blobs.get(*hash).is_some());
            Ok((peer, samples, hash.ok_or_else(|| lacks("contribution"))?))
        };
        self.plan.submitters.iter().map(input).collect()
    }

    fn reduce(
        &mut self,
        partition: PartitionIndex,
        inputs: Vec<(PeerId, u32, Hash)>,
    ) -> Result<Hash, String> {
        self.perform(partition, inputs)?
            .map_err(|peer| format!("the contribution of {peer} is no valid partition"))
    }

    /// Reduces a partition as its owners do.
    fn perform(
        &mut self,
        partition: PartitionIndex,
        inputs: Vec<(PeerId, u32, Hash)>,
    ) -> Result<Result<Hash, PeerId>, String> {
        let Reports { stage, epoch, .. } = self.reports;
        match self.worker.perform(&Job::Reduce { stage, epoch, partition, inputs }, &mut self.blobs) {
            JobDone::Reduced { merged, .. } => Ok(merged),
            JobDone::Failed(reason) => Err(reason),
            _ => Err("the engine did something else".to_owned()),
        }
    }
}
