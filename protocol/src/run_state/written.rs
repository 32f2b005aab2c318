//! The state as bytes: the same at every peer that applied the same entries, so that a decision can name it by its hash.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Checkpoint, Checks, RunState, Stage};
use crate::id::{Epoch, PeerId};
use crate::limits::SNAPSHOT_BYTES_MAX;
use crate::scores::{Place, Scores};
use crate::wire::message::EvictReason;
use crate::wire::{RejectReason, decode, encode};

/// All of a state that does not follow from the spec.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    applied: u64,
    wire_version: u16,
    members: Cow<'a, BTreeMap<PeerId, Place>>,
    evicted: Cow<'a, BTreeMap<PeerId, EvictReason>>,
    stages: Cow<'a, [Stage]>,
    checks: Cow<'a, Checks>,
    scores: Cow<'a, Scores>,
    #[serde(default, skip_serializing_if = "deposes_nobody")]
    deposed: Cow<'a, BTreeMap<PeerId, Epoch>>,
    checkpoint: Cow<'a, Option<Checkpoint>>,
    snapshot: u64,
    finished: bool,
}

fn deposes_nobody(deposed: &BTreeMap<PeerId, Epoch>) -> bool {
    deposed.is_empty()
}

impl RunState {
    /// Its canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(&Written {
            applied: self.applied,
            wire_version: self.wire_version,
            members: Cow::Borrowed(&self.members),
            evicted: Cow::Borrowed(&self.evicted),
            stages: Cow::Borrowed(&self.stages),
            checks: Cow::Borrowed(&self.checks),
            scores: Cow::Borrowed(&self.scores),
            deposed: Cow::Borrowed(&self.deposed),
            checkpoint: Cow::Borrowed(&self.checkpoint),
            snapshot: self.snapshot,
            finished: self.finished,
        })
    }

    /// The state of the same run that these bytes are of.
    ///
    /// # Errors
    /// [`RejectReason`] if they are no state, or one of a run with other stages.
    pub fn read(&self, bytes: &[u8]) -> Result<Self, RejectReason> {
        let written: Written<'static> = decode(bytes, SNAPSHOT_BYTES_MAX)?;
        let partitions = |stages: &[Stage]| stages.iter().map(|stage| stage.partitions).collect::<Vec<_>>();
        if partitions(&written.stages) != partitions(&self.stages) {
            return Err(RejectReason::Inconsistent("stages of a snapshot"));
        }
        Ok(Self {
            spec: Arc::clone(&self.spec),
            lineage: self.lineage,
            applied: written.applied,
            wire_version: written.wire_version,
            members: written.members.into_owned(),
            checks: written.checks.into_owned(),
            scores: written.scores.into_owned(),
            deposed: written.deposed.into_owned(),
            evicted: written.evicted.into_owned(),
            stages: written.stages.into_owned(),
            checkpoint: written.checkpoint.into_owned(),
            snapshot: written.snapshot,
            finished: written.finished,
        })
    }
}
