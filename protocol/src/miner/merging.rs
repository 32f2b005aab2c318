//! An owner's part in a merge: fetch its partitions of every contribution, reduce, report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::job::Job;
use super::{Context, backed_off};
use crate::id::{Epoch, Hash, LogIndex, PartitionIndex, PeerId, StageIndex};
use crate::limits::{GOSSIP_BYTES_MAX, PARTITION_BYTES_MAX};
use crate::run_state::{Plan, Training};
use crate::time::Instant;
use crate::wire::decode;
use crate::wire::gossip::HashedManifest;
use crate::wire::message::{ContributionFault, DigestReport, FaultKind, Manifest, Submission};

/// Blobs fetched at once for one merge. Enough to fill a link whose delay is a few transfers long.
const FETCHES_AT_ONCE: usize = 16;
/// Failed fetches of one submitter's blobs after which it is reported unavailable. Tries go on.
const FAILURES_REPORTED: u32 = 3;

/// Something to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// A submitter's manifest.
    Manifest(PeerId),
    /// A submitter's bytes of a partition.
    Input(PartitionIndex, PeerId),
}

#[derive(Clone, Copy, Debug, Default)]
struct Fetching {
    in_flight: bool,
    retry_at: Instant,
    pause: Duration,
}

/// A partition that this peer owns.
#[derive(Clone, Debug, Default)]
struct Owned {
    have: BTreeSet<PeerId>,
    reducing: bool,
    merged: Option<Hash>,
}

/// One merge.
#[derive(Debug)]
pub(super) struct MergeWork {
    me: PeerId,
    pub(super) stage: StageIndex,
    pub(super) epoch: Epoch,
    opened: LogIndex,
    attempt: u16,
    submitters: Vec<Submission>,
    manifests: BTreeMap<PeerId, Manifest>,
    partitions: usize,
    owned: BTreeMap<PartitionIndex, Owned>,
    wants: BTreeMap<Want, Fetching>,
    failures: BTreeMap<PeerId, u32>,
    faults: BTreeSet<ContributionFault>,
    reported: (usize, usize),
}

impl MergeWork {
    pub(super) fn new(me: PeerId, stage: StageIndex, training: &Training, plan: &Plan) -> Self {
        let wants =
            plan.submitters.iter().map(|submission| (Want::Manifest(submission.peer), Fetching::default()));
        Self {
            me,
            stage,
            epoch: training.epoch,
            opened: training.opened,
            attempt: plan.attempt,
            submitters: plan.submitters.clone(),
            manifests: BTreeMap::new(),
            partitions: plan.owners.len(),
            owned: BTreeMap::new(),
            wants: wants.collect(),
            failures: BTreeMap::new(),
            faults: BTreeSet::new(),
            reported: (0, 0),
        }
    }

    pub(super) fn is_for(&self, training: &Training, plan: &Plan) -> bool {
        self.opened == training.opened && self.attempt == plan.attempt
    }

    /// Takes over partitions that it was drawn or added for.
    pub(super) fn follow(&mut self, _now: Instant, plan: &Plan) {
        for (i, owners) in plan.owners.iter().enumerate() {
            let partition = PartitionIndex(u32::try_from(i).unwrap_or(u32::MAX));
            if owners.contains(&self.me) && !self.owned.contains_key(&partition) {
                self.owned.insert(partition, Owned::default());
                let inputs: Vec<PeerId> = self.manifests.keys().copied().collect();
                self.wants.extend(
                    inputs.into_iter().map(|peer| (Want::Input(partition, peer), Fetching::default())),
                );
            }
        }
    }

    /// Fetches to start now: what, its hash, who may have it, its largest size, whether its bytes are wanted here.
    pub(super) fn wants(
        &mut self,
        cx: &Context<'_>,
        known: &BTreeMap<Hash, Arc<HashedManifest>>,
    ) -> Vec<(Want, Hash, Vec<PeerId>, usize, bool)> {
        self.resolve_known(known);
        let mut room =
            FETCHES_AT_ONCE.saturating_sub(self.wants.values().filter(|fetching| fetching.in_flight).count());
        let mut started = Vec::new();
        for (want, fetching) in &mut self.wants {
            if room == 0 {
                break;
            }
            if fetching.in_flight || cx.now < fetching.retry_at {
                continue;
            }
            let fetch = match *want {
                Want::Manifest(peer) => self
                    .submitters
                    .iter()
                    .find(|submission| submission.peer == peer)
                    .map(|submission| (submission.manifest, peer, GOSSIP_BYTES_MAX, true)),
                Want::Input(partition, peer) => self
                    .manifests
                    .get(&peer)
                    .and_then(|manifest| manifest.partitions.get(partition.0 as usize))
                    .map(|hash| (*hash, peer, PARTITION_BYTES_MAX, false)),
            };
            let Some((hash, peer, limit, deliver)) = fetch else { continue };
            fetching.in_flight = true;
            room -= 1;
            // The submitter has it for certain; co-owners have it once they fetched it.
            let others = self
                .submitters
                .iter()
                .map(|submission| submission.peer)
                .filter(|other| *other != peer && *other != self.me);
            let providers = std::iter::once(peer).chain(others).take(4).collect();
            started.push((*want, hash, providers, limit, deliver));
        }
        started
    }

    /// Takes manifests that gossip already brought.
    fn resolve_known(&mut self, known: &BTreeMap<Hash, Arc<HashedManifest>>) {
        let found: Vec<_> = self
            .submitters
            .iter()
            .filter(|submission| !self.manifests.contains_key(&submission.peer))
            .filter_map(|submission| {
                known.get(&submission.manifest).map(|known| (submission.peer, known.manifest.clone()))
            })
            .collect();
        for (peer, manifest) in found {
            self.take_manifest(peer, manifest);
        }
    }

    fn take_manifest(&mut self, peer: PeerId, manifest: Manifest) {
        self.wants.remove(&Want::Manifest(peer));
        if manifest.partitions.len() != self.partitions {
            self.faults.insert(ContributionFault { submitter: peer, kind: FaultKind::Invalid });
            return;
        }
        self.manifests.insert(peer, manifest);
        self.wants
            .extend(self.owned.keys().map(|partition| (Want::Input(*partition, peer), Fetching::default())));
    }

    /// Takes the result of a fetch.
    pub(super) fn fetched(&mut self, now: Instant, want: Want, bytes: Option<&[u8]>) {
        let peer = match want {
            Want::Manifest(peer) | Want::Input(_, peer) => peer,
        };
        let Some(bytes) = bytes else {
            let failures = self.failures.entry(peer).or_default();
            *failures += 1;
            if *failures >= FAILURES_REPORTED {
                self.faults.insert(ContributionFault { submitter: peer, kind: FaultKind::Unavailable });
            }
            if let Some(fetching) = self.wants.get_mut(&want) {
                fetching.in_flight = false;
                fetching.pause = backed_off(fetching.pause);
                fetching.retry_at = now + fetching.pause;
            }
            return;
        };
        match want {
            // Its hash is in the decided plan, so these are the bytes the submitter committed to.
            Want::Manifest(_) => match decode::<Manifest>(bytes, GOSSIP_BYTES_MAX) {
                Ok(manifest) => self.take_manifest(peer, manifest),
                Err(_) => {
                    self.wants.remove(&want);
                    self.faults.insert(ContributionFault { submitter: peer, kind: FaultKind::Invalid });
                }
            },
            Want::Input(partition, _) => {
                self.wants.remove(&want);
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.have.insert(peer);
                }
            }
        }
    }

    /// The next partition to reduce.
    pub(super) fn job(&mut self) -> Option<Job> {
        let (stage, epoch, count) = (self.stage, self.epoch, self.submitters.len());
        let ready = self
            .owned
            .iter_mut()
            .find(|(_, owned)| !owned.reducing && owned.merged.is_none() && owned.have.len() == count);
        let (&partition, owned) = ready?;
        let inputs = self.submitters.iter().filter_map(|submission| {
            let hash = self.manifests.get(&submission.peer)?.partitions.get(partition.0 as usize)?;
            Some((submission.peer, submission.samples, *hash))
        });
        let inputs: Vec<_> = inputs.collect();
        owned.reducing = true;
        (inputs.len() == count).then_some(Job::Reduce { stage, epoch, partition, inputs })
    }

    /// The engine has reduced a partition, or found a contribution that is none.
    pub(super) fn reduced(&mut self, partition: PartitionIndex, merged: Result<Hash, PeerId>) {
        match merged {
            Ok(hash) => {
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.merged = Some(hash);
                }
            }
            Err(submitter) => {
                self.faults.insert(ContributionFault { submitter, kind: FaultKind::Invalid });
            }
        }
    }

    /// The engine could not reduce a partition; it is tried again.
    pub(super) fn reduction_failed(&mut self, partition: PartitionIndex) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.reducing = false;
        }
    }

    /// What to tell the others: when all partitions are reduced or a fault is new, and again when `due`.
    pub(super) fn report(&mut self, due: bool, sequence: u64) -> Option<DigestReport> {
        let merged: Vec<_> =
            self.owned.iter().filter_map(|(partition, owned)| Some((*partition, owned.merged?))).collect();
        let known = (merged.len(), self.faults.len());
        let complete = merged.len() == self.owned.len();
        let news = known != self.reported && (complete || known.1 != self.reported.1);
        if known == (0, 0) || !(news || due) {
            return None;
        }
        self.reported = known;
        let faults = self.faults.iter().copied().collect();
        Some(DigestReport {
            sequence,
            stage: self.stage,
            epoch: self.epoch,
            attempt: self.attempt,
            merged,
            faults,
        })
    }

    /// When the next try of a failed fetch is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiting =
            self.wants.values().filter(|fetching| !fetching.in_flight && fetching.retry_at > Instant::ZERO);
        waiting.map(|fetching| fetching.retry_at).min()
    }
}
