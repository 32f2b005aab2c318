//! What an earlier process of this miner did in an epoch that is merged or being merged, read back from its receipts.
//!
//! The contribution counts, so the work is not done again; but neighbours who have not settled the epoch are owed the
//! tensors that belong to it. The process that knew who is owed what is gone. Its plan names its manifest, the manifest its
//! receipts, the receipts the tensors, and all of them are on this peer's disk.

use std::collections::BTreeMap;

use super::{Context, EpochWork, Kept, Miner, Purpose, outbox};
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::{BLOB_EPOCHS_KEPT, GOSSIP_BYTES_MAX, RECEIPTS_BYTES_MAX};
use crate::receipts::{decode_receipts, merkle_root};
use crate::run_state::{RunState, Training};
use crate::wire::message::Manifest;
use crate::wire::{decode, encode};

/// A blob that is being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want(StageIndex, Epoch);

/// How far the reading of an epoch is.
#[derive(Debug)]
enum Step {
    /// No plan named its contribution when last looked at.
    Unplanned,
    /// The manifest is being read.
    Manifest,
    /// The receipts are being read.
    Receipts(Box<Manifest>),
}

/// The epochs in which an earlier process may have done something.
#[derive(Debug, Default)]
pub(super) struct Restore {
    epochs: BTreeMap<(StageIndex, Epoch), Step>,
}

impl Restore {
    /// Blobs of this kind are on the disk.
    pub(super) fn recover(&mut self, kept: Kept) {
        if let Kept::Epoch(stage, epoch) = kept {
            self.epochs.insert((stage, epoch), Step::Unplanned);
        }
    }
}

impl Miner {
    /// Whether what an earlier process did in this epoch is being read.
    pub(super) fn is_restoring(&self, state: &RunState, stage: StageIndex, epoch: Epoch) -> bool {
        self.restore.epochs.contains_key(&(stage, epoch))
            && submission(state, self.me, stage, epoch).is_some()
    }

    /// Reads what is to be read next.
    pub(super) fn pump_restore(&mut self, cx: &mut Context<'_>) {
        let Some(place) = self.engine.filter(|engine| cx.state.stage_of(self.me) == Some(*engine)) else {
            return;
        };
        let (me, works) = (self.me, &self.works);
        self.restore.epochs.retain(|(stage, epoch), _| {
            let submitted = works.get(epoch).is_some_and(|work| work.manifest().is_some());
            *stage == place && !submitted && is_owed(cx.state, *stage, *epoch)
        });
        for ((stage, epoch), step) in &mut self.restore.epochs {
            let planned =
                submission(cx.state, me, *stage, *epoch).filter(|_| matches!(step, Step::Unplanned));
            if let Some((_, manifest)) = planned {
                *step = Step::Manifest;
                let id = read(cx, *stage, *epoch, manifest, GOSSIP_BYTES_MAX);
                self.transfers.insert(id, Purpose::Restore(Want(*stage, *epoch)));
            }
        }
    }

    /// Takes what was read. What is not there, or is not what the plan names, is done without.
    pub(super) fn restored(&mut self, cx: &mut Context<'_>, want: Want, bytes: Option<&[u8]>) {
        let Want(stage, epoch) = want;
        let (Some(step), Some(bytes)) = (self.restore.epochs.remove(&(stage, epoch)), bytes) else { return };
        match step {
            Step::Manifest => {
                if let Ok(manifest) = decode::<Manifest>(bytes, GOSSIP_BYTES_MAX) {
                    let id = read(cx, stage, epoch, manifest.receipts, RECEIPTS_BYTES_MAX);
                    self.transfers.insert(id, Purpose::Restore(want));
                    self.restore.epochs.insert((stage, epoch), Step::Receipts(Box::new(manifest)));
                }
            }
            Step::Receipts(manifest) => {
                let receipts =
                    decode_receipts(bytes).ok().filter(|all| merkle_root(all) == manifest.receipt_root);
                let planned = submission(cx.state, self.me, stage, epoch)
                    .filter(|(_, planned)| *planned == Hash::of(&encode(&*manifest)));
                if let (Some(receipts), Some((training, _))) = (receipts, planned) {
                    let mut work = EpochWork::restored(&self.spec, self.me, training, *manifest, receipts);
                    work.follow_below(cx.state);
                    work.return_again(cx.state);
                    // What was begun anew meanwhile is not needed.
                    self.dirty |= self.works.insert(epoch, work).is_some();
                }
            }
            Step::Unplanned => {}
        }
    }
}

/// Whether `work` is what an earlier process of `me` did and the log has taken. It needs nothing of this process, not even
/// weights.
pub(super) fn is_taken(state: &RunState, me: PeerId, work: &EpochWork) -> bool {
    work.is_restored() && submission(state, me, work.stage, work.epoch).is_some()
}

/// Has a blob of this epoch read from the own disk; returns the number of the transfer.
fn read(cx: &mut Context<'_>, stage: StageIndex, epoch: Epoch, hash: Hash, limit: usize) -> u64 {
    cx.out.fetch(hash, Vec::new(), limit, true, outbox::tag(stage, epoch))
}

/// Whether somebody may be owed something of this epoch: its own stage a merge, or a neighbour its tensors.
fn is_owed(state: &RunState, stage: StageIndex, epoch: Epoch) -> bool {
    let version = |stage: Option<u16>| stage.and_then(|s| state.stage(StageIndex(s))).map(|s| s.version);
    let beside = [stage.0.checked_sub(1), Some(stage.0), stage.0.checked_add(1)].map(version);
    let kept = version(Some(stage.0)).is_some_and(|own| epoch.0.saturating_add(BLOB_EPOCHS_KEPT) >= own.0);
    kept && beside.into_iter().flatten().any(|version| version <= epoch)
}

/// The epoch, and the manifest of `me` in the plan by which it is merged.
fn submission(state: &RunState, me: PeerId, stage: StageIndex, epoch: Epoch) -> Option<(&Training, Hash)> {
    let (training, plan) = state.stage(stage)?.merge(epoch)?;
    let mine = plan.submitters.iter().find(|submission| submission.peer == me)?;
    Some((training, mine.manifest))
}
