//! What a miner may say of its speed once epochs were longer for believing it.
//!
//! Samples are dealt by what members say of their speed, and how long a pass takes shows on their own machines only. What all
//! candidates see is whether epochs are longer for believing it. Then somebody says too much, and members that claim more than
//! the median of their stage are told so in the log ([`Decision::LimitSpeed`]): they say no more than that for
//! [`SPEED_LIMIT_EPOCHS`] epochs of their stage.
//!
//! ```text
//!  miner ── "1000 / s" ──▶ dealt half of the stage's samples ──▶ epochs get longer ──▶ limit-speed: 3 / s, entry 41
//!        ── "3 / s, I know 42 entries" ──▶ dealt as many as others
//!        ── "1000 / s, I know 42 entries" ──▶ contradicts itself: evicted, and this record is the evidence
//! ```
//! A limit proves nothing: whoever is faster than others may get one, and comply. Who signs that it knows the limit and that it
//! is faster than it, in one record, has broken a rule. **Invariant:** no record of a peer that keeps to its limit is an
//! overstatement, whenever the record was made and the limit decided, since a record counts only if it says that its log has the
//! limit's entry.
//!
//! [`Decision::LimitSpeed`]: crate::wire::message::Decision::LimitSpeed

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{Epoch, PeerId, RunId, StageIndex};
use crate::limits::SPEED_LIMIT_EPOCHS;
use crate::wire::message::PeerRecord;
use crate::wire::{RejectReason, Versions, open_in};

/// How fast a member may say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeedLimit {
    /// Thousandths of a sample per second, 1 or more.
    pub speed_milli: u32,
    /// Entries of the log up to and with the one that decided it.
    pub entries: u64,
    /// The version of its stage at which it ends.
    pub until: Epoch,
}

/// Why a record is no overstatement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverstatementError {
    /// It does not open: its signature is wrong, or it is of another kind or run.
    #[error("record: {0}")]
    Record(RejectReason),
    /// It is of another peer.
    #[error("expected a record of the accused, got one of {0}")]
    Sender(PeerId),
    /// The accused is no member with a limit.
    #[error("expected a member whose speed is limited")]
    Unlimited,
    /// It is about another stage than the limit.
    #[error("expected a record of stage {0}")]
    Stage(StageIndex),
    /// Its author did not know the limit.
    #[error("expected a record of a log of {expected} entries, got one of {got}")]
    Unaware {
        /// Entries with the limit.
        expected: u64,
        /// Entries that it says it knew.
        got: u64,
    },
    /// It keeps to the limit.
    #[error("expected a speed above {limit} thousandths of a sample per second, got {got}")]
    Within {
        /// The limit.
        limit: u32,
        /// What it says.
        got: u32,
    },
}

impl SpeedLimit {
    /// One that is decided by the last of so many entries, while its stage is at `version`.
    #[must_use]
    pub const fn new(speed_milli: u32, entries: u64, version: Epoch) -> Self {
        Self { speed_milli, entries, until: Epoch(version.0.saturating_add(SPEED_LIMIT_EPOCHS)) }
    }

    /// Checks that a record of a member of `stage` with this limit does not keep to it.
    ///
    /// # Errors
    /// [`OverstatementError`] if it does.
    pub fn check(&self, stage: StageIndex, record: &PeerRecord) -> Result<(), OverstatementError> {
        if record.weights.is_none_or(|held| held.stage != stage) {
            return Err(OverstatementError::Stage(stage));
        }
        if record.log_length < self.entries {
            return Err(OverstatementError::Unaware { expected: self.entries, got: record.log_length });
        }
        if record.speed_milli <= self.speed_milli {
            return Err(OverstatementError::Within { limit: self.speed_milli, got: record.speed_milli });
        }
        Ok(())
    }
}

/// Opens a record that `accused` signed in `run`, in any version up to `version`.
///
/// # Errors
/// [`OverstatementError`] if it did not.
pub(crate) fn open_record(
    run: RunId,
    version: u16,
    accused: PeerId,
    record: &ByteBuf,
) -> Result<PeerRecord, OverstatementError> {
    let versions = Versions::up_to(version);
    let (sender, _, record) =
        open_in::<PeerRecord>(versions, run, record).map_err(OverstatementError::Record)?;
    if sender == accused { Ok(record) } else { Err(OverstatementError::Sender(sender)) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Hash, Identity};
    use crate::merge::evidence::Evidence;
    use crate::orchestrator::tests::apply;
    use crate::run_state::{RunState, StateEvent};
    use crate::spec::RunSpec;
    use crate::wire::message::{Decision, EvictReason, WeightsRecord};
    use crate::wire::seal;

    const S: StageIndex = StageIndex(1);
    const LIMIT: u32 = 1500;

    fn member() -> Identity {
        Identity::from_secret([5; 32])
    }

    /// A run in which the member has a limit of [`LIMIT`], by the last of two entries.
    fn limited() -> RunState {
        let mut state = RunState::new(Arc::new(RunSpec::default()), &[10; 3]);
        let peer = member().peer();
        apply(&mut state, Decision::Admit { peer, stage: S });
        let limited = apply(&mut state, Decision::LimitSpeed { peer, stage: S, speed_milli: LIMIT });
        assert_eq!(limited, [StateEvent::SpeedLimited(peer, LIMIT)]);
        state
    }

    /// What it says that does so many thousandths of a sample per second and knows so many entries.
    fn claim(speed_milli: u32, log_length: u64) -> PeerRecord {
        let weights = Some(WeightsRecord { stage: S, version: Epoch(0), hash: Hash::default() });
        PeerRecord { weights, log_length, speed_milli, ..PeerRecord::new(7) }
    }

    fn sealed(state: &RunState, author: &Identity, record: &PeerRecord) -> ByteBuf {
        ByteBuf::from(seal(author, state.spec().run_id(), record))
    }

    fn check(record: &PeerRecord) -> Result<(), OverstatementError> {
        let state = limited();
        state.check_overstatement(member().peer(), &sealed(&state, &member(), record)).map(drop)
    }

    #[test]
    fn who_knows_its_limit_and_claims_more_contradicts_itself() {
        assert_eq!(check(&claim(LIMIT + 1, 2)), Ok(()));
        assert_eq!(check(&claim(u32::MAX, 90)), Ok(()));
    }

    #[test]
    fn who_keeps_to_its_limit_or_cannot_know_it_does_not() {
        let within = OverstatementError::Within { limit: LIMIT, got: LIMIT };
        assert_eq!(check(&claim(LIMIT, 2)), Err(within));
        assert_eq!(check(&claim(u32::MAX, 1)), Err(OverstatementError::Unaware { expected: 2, got: 1 }));
        let elsewhere = WeightsRecord { stage: StageIndex(0), version: Epoch(0), hash: Hash::default() };
        let moved = PeerRecord { weights: Some(elsewhere), ..claim(u32::MAX, 2) };
        assert_eq!(check(&moved), Err(OverstatementError::Stage(S)), "it was measured in another stage");
        assert_eq!(check(&PeerRecord { weights: None, ..moved }), Err(OverstatementError::Stage(S)));
    }

    #[test]
    fn what_others_signed_proves_nothing() {
        let (state, record) = (limited(), claim(u32::MAX, 2));
        let other = Identity::from_secret([6; 32]);
        let by_other = state.check_overstatement(member().peer(), &sealed(&state, &other, &record));
        assert_eq!(by_other, Err(OverstatementError::Sender(other.peer())));
        let mut damaged = sealed(&state, &member(), &record);
        *damaged.last_mut().expect("bytes") ^= 1;
        let damaged = state.check_overstatement(member().peer(), &damaged);
        assert_eq!(damaged, Err(OverstatementError::Record(RejectReason::Signature)));
        let unlimited = state.check_overstatement(other.peer(), &sealed(&state, &other, &record));
        assert_eq!(unlimited, Err(OverstatementError::Unlimited));
    }

    #[test]
    fn an_overstatement_takes_the_place_for_good_and_nothing_less_does() {
        let peer = member().peer();
        let evict = |state: &mut RunState, evidence| {
            apply(state, Decision::Evict { peer, reason: EvictReason::OverstatedSpeed, evidence })
        };
        let evidence = |state: &RunState, record: &PeerRecord| {
            Some(Evidence::Overstatement(sealed(state, &member(), record)))
        };
        let mut state = limited();
        assert_eq!(evict(&mut state, None), []);
        let within = evidence(&state, &claim(LIMIT, 2));
        assert_eq!(evict(&mut state, within), []);
        let beyond = evidence(&state, &claim(LIMIT + 1, 2));
        let evicted = StateEvent::Evicted(peer, EvictReason::OverstatedSpeed);
        assert_eq!(evict(&mut state, beyond), [evicted]);
        assert_eq!(apply(&mut state, Decision::Admit { peer, stage: S }), [], "for good");
    }

    #[test]
    fn a_limit_is_of_a_member_in_its_stage() {
        let mut state = limited();
        let peer = member().peer();
        let limit = |peer, stage, speed_milli| Decision::LimitSpeed { peer, stage, speed_milli };
        assert_eq!(apply(&mut state, limit(peer, S, 0)), [], "nobody says that it does nothing");
        assert_eq!(apply(&mut state, limit(peer, StageIndex(0), 9)), []);
        assert_eq!(apply(&mut state, limit(Identity::from_secret([6; 32]).peer(), S, 9)), []);
        let kept = SpeedLimit { speed_milli: LIMIT, entries: 2, until: Epoch(SPEED_LIMIT_EPOCHS) };
        assert_eq!(state.speed_limit(peer), Some(kept));
        apply(&mut state, Decision::Admit { peer: PeerId([9; 32]), stage: S });
        apply(&mut state, Decision::Move { peer, stage: StageIndex(0) });
        assert_eq!(state.speed_limit(peer), None, "of another stage it says nothing");
    }
}
