//! A proof from what a node has left on its disk.

use std::path::Path;

use iota_protocol::limits::GOSSIP_BYTES_MAX;
use iota_protocol::log::Snapshot;
use iota_protocol::merge::evidence::Evidence;
use iota_protocol::run_state::Plan;
use iota_protocol::wire::decode;
use iota_protocol::wire::message::{ControlUpdate, Decision, Manifest, Submission};
use iota_protocol::{Hash, LogIndex, PeerId, RunSpec};
use serde_bytes::ByteBuf;

use super::{Conviction, Proof, ProofError, convicted, open_log};
use crate::blobs::DiskBlobs;
use crate::store::Store;

/// The proof against `peer` that the folder of a node allows, which must not run.
///
/// # Errors
/// [`ProofError`] if the folder has none.
pub async fn collect(spec: &RunSpec, data_dir: &Path, peer: PeerId) -> Result<Proof, ProofError> {
    let (snapshot, log) = read_log(data_dir)?;
    let (decided, fold) = open_log(spec, snapshot.as_ref(), log.clone())?;
    let conviction = convicted(&decided, fold, peer)?;
    let stored = DiskBlobs::open(&data_dir.join("blobs")).await?;
    let blobs = inputs(&conviction, peer, &stored).await;
    stored.close().await;
    let log = shortened(log, conviction.entries);
    Ok(Proof { spec: spec.clone(), peer, snapshot, log, blobs })
}

/// The certified log in a node's database, and what it begins with.
fn read_log(data_dir: &Path) -> Result<(Option<Snapshot>, ControlUpdate), ProofError> {
    if !data_dir.is_dir() {
        return Err(ProofError::NoLog);
    }
    let store = Store::open(data_dir)?;
    let snapshot = store.log_snapshot()?.map(|bytes| decode(&bytes, bytes.len())).transpose()?;
    let records = store.log(0..u64::MAX, usize::MAX)?;
    let (Some(first), Some(last)) = (records.first(), records.last()) else { return Err(ProofError::NoLog) };
    let first = LogIndex(first.index);
    let certificate = decode(&last.certificate, last.certificate.len())?;
    let entries = records.into_iter().map(|record| ByteBuf::from(record.entry)).collect();
    Ok((snapshot, ControlUpdate { first, entries, beyond: Vec::new(), certificate }))
}

/// The log up to so many entries. The hashes of the others lead to the certificate.
fn shortened(mut log: ControlUpdate, entries: usize) -> ControlUpdate {
    let first = usize::try_from(log.first.0).unwrap_or(usize::MAX);
    let rest = log.entries.split_off(entries.saturating_sub(first).min(log.entries.len()));
    log.beyond = rest.iter().map(|entry| Hash::of(entry)).chain(log.beyond).collect();
    log
}

/// The blobs that the evidence is about, of those that are on the disk.
async fn inputs(conviction: &Conviction, peer: PeerId, stored: &DiskBlobs) -> Vec<ByteBuf> {
    let Decision::Evict { reason, evidence: Some(evidence), .. } = &conviction.decision else {
        return Vec::new();
    };
    let Ok(reports) = conviction.before.check_evidence(peer, *reason, evidence) else { return Vec::new() };
    let plan = conviction.before.plan_of(reports.stage, reports.epoch, reports.attempt);
    let mut blobs = Vec::new();
    for submission in plan.into_iter().flat_map(|plan| concerned(plan, evidence, peer)) {
        let Some(bytes) = stored.get(submission.manifest).await else { continue };
        let manifest = decode::<Manifest>(&bytes, GOSSIP_BYTES_MAX);
        blobs.push(ByteBuf::from(bytes.to_vec()));
        let Ok(manifest) = manifest else { continue };
        let named: Vec<Hash> = match evidence {
            Evidence::Digests { partition, .. } => {
                manifest.partitions.get(partition.0 as usize).copied().into_iter().collect()
            }
            Evidence::Faults { .. } => manifest.partitions,
            Evidence::Equivocation(_) | Evidence::Overstatement(_) => Vec::new(),
        };
        for hash in named {
            blobs.extend(stored.get(hash).await.map(|bytes| ByteBuf::from(bytes.to_vec())));
        }
    }
    blobs
}

/// Whose contributions the evidence is about.
fn concerned(plan: &Plan, evidence: &Evidence, peer: PeerId) -> Vec<Submission> {
    let all = plan.submitters.iter().copied();
    match evidence {
        Evidence::Digests { .. } => all.collect(),
        Evidence::Faults { .. } => all.filter(|submission| submission.peer == peer).collect(),
        Evidence::Equivocation(_) | Evidence::Overstatement(_) => Vec::new(),
    }
}
