//! What a miner keeps of a merge in which somebody lost its place: whoever doubts it computes it again.

use super::{Context, Kept, Miner};
use crate::id::{PartitionIndex, PeerId};
use crate::limits::{PARTITION_BYTES_MAX, PROOFS_KEPT_MAX};
use crate::merge::evidence::{Evidence, Reports};
use crate::run_state::Plan;
use crate::wire::encode;

impl Miner {
    /// Keeps the manifests that a plan names, and the inputs of what was disputed, if this miner owned it and so has them.
    pub(crate) fn keep_proof(
        &mut self,
        cx: &mut Context<'_>,
        accused: PeerId,
        evidence: &Evidence,
        reports: &Reports,
    ) {
        let Reports { stage, epoch, attempt, .. } = *reports;
        let Some(plan) = cx.state.plan_of(stage, epoch, attempt) else { return };
        let kept = Kept::Proof(stage, epoch);
        let (disputed, merge) = (self.disputed(plan, evidence), self.merges.get(&stage));
        let concerned = plan.submitters.iter().filter(|submission| {
            !disputed.is_empty()
                && (matches!(evidence, Evidence::Digests { .. }) || submission.peer == accused)
        });
        for submission in concerned {
            let Some(manifest) = merge.and_then(|merge| merge.manifest(submission.peer)) else { continue };
            cx.out.store(vec![(submission.manifest, encode(manifest))], kept.to_string());
            for hash in disputed.iter().filter_map(|of| manifest.partitions.get(of.0 as usize)) {
                cx.out.fetch(*hash, vec![submission.peer], PARTITION_BYTES_MAX, false, kept.to_string());
            }
            self.kept.insert(kept);
        }
        self.release_proofs(cx);
    }

    /// The partitions that the evidence is about, and whose inputs this miner has as their owner.
    fn disputed(&self, plan: &Plan, evidence: &Evidence) -> Vec<PartitionIndex> {
        let owned = plan.owners.iter().zip(0..).filter(|(owners, _)| owners.contains(&self.me));
        let about = |of: &PartitionIndex| match evidence {
            Evidence::Digests { partition, .. } => of == partition,
            Evidence::Faults { .. } => true,
            Evidence::Equivocation(_) | Evidence::Overstatement(_) => false,
        };
        owned.map(|(_, index)| PartitionIndex(index)).filter(about).collect()
    }

    /// Lets go of all but the newest.
    fn release_proofs(&mut self, cx: &mut Context<'_>) {
        let proofs = self.kept.iter().filter_map(|kept| match *kept {
            Kept::Proof(stage, epoch) => Some((epoch, stage)),
            Kept::Epoch(..) | Kept::State(..) => None,
        });
        let mut proofs: Vec<_> = proofs.collect();
        proofs.sort_unstable();
        let excess = proofs.len().saturating_sub(PROOFS_KEPT_MAX);
        for (epoch, stage) in proofs.into_iter().take(excess) {
            self.kept.remove(&Kept::Proof(stage, epoch));
            cx.out.release(Kept::Proof(stage, epoch).to_string());
        }
    }
}
