//! Which claims of speed are limited, and who claims more all the same.
//!
//! While [`weighing`](super::weighing) finds epochs longer for believing what members say of their speed, somebody says too much.
//! Who, does not show: stages wait for each other, and all members of a stage for what the slowest holds up. So every member that
//! claims more than the median of its stage (the lower of two) is [limited](crate::overstatement) to that. For those who spoke
//! the truth that is no loss beside the even deal that they get in any case; those who lied have to stop, or contradict
//! themselves.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use crate::equivocation::MessageKind;
use crate::id::{PeerId, StageIndex};
use crate::merge::evidence::Evidence;
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::wire::gossip::Signed;
use crate::wire::message::{Decision, EvictReason};

/// How many times the median a claim has to be to be limited. Measurements of equal machines scatter.
const ABOVE: f64 = 1.25;

/// The records of those who claim more than they may.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    overstated: BTreeMap<PeerId, ByteBuf>,
}

impl Doubts {
    /// Looks whether a message is a record that claims more than its author may. Whether it is the first.
    pub(super) fn note(&mut self, state: &RunState, signed: Signed<'_>) -> bool {
        if signed.kind != MessageKind::Record || state.speed_limit(signed.sender).is_none() {
            return false;
        }
        let record = ByteBuf::from(signed.envelope.to_vec());
        let overstates = state.check_overstatement(signed.sender, &record).is_ok();
        overstates && self.overstated.insert(signed.sender, record).is_none()
    }

    /// Forgets those who have no place any more. Whether there were any.
    pub(super) fn observe(&mut self, state: &RunState) -> bool {
        let before = self.overstated.len();
        self.overstated.retain(|peer, _| state.stage_of(*peer).is_some());
        self.overstated.len() < before
    }

    /// Evictions of those who claim more than they may.
    pub(super) fn evictions(&self, state: &RunState) -> impl Iterator<Item = Decision> {
        let overstated =
            self.overstated.iter().filter(|(peer, record)| state.check_overstatement(**peer, record).is_ok());
        overstated.map(|(&peer, record)| {
            let evidence = Some(Evidence::Overstatement(record.clone()));
            Decision::Evict { peer, reason: EvictReason::OverstatedSpeed, evidence }
        })
    }
}

/// Limits of the members of all stages who have none and claim more than the median of theirs.
pub(super) fn limits(state: &RunState, book: &Book) -> Vec<Decision> {
    let of = |stage: StageIndex| {
        let claims: Vec<(PeerId, f64)> = state
            .replicas(stage)
            .filter_map(|peer| Some((peer, book.speed(peer, stage)?.newest())))
            .collect();
        let median = lower_median(claims.iter().map(|(_, claim)| *claim).collect());
        let beyond = claims.into_iter().filter(move |(_, claim)| *claim > median * ABOVE);
        let unlimited = beyond.filter(|(peer, _)| state.speed_limit(*peer).is_none());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it was a u32 above zero"
        )]
        unlimited.map(move |(peer, _)| Decision::LimitSpeed { peer, stage, speed_milli: median as u32 })
    };
    state.spec().stages().flat_map(of).collect()
}

/// The median, the lower of two; infinite if there is nothing.
fn lower_median(mut claims: Vec<f64>) -> f64 {
    claims.sort_by(f64::total_cmp);
    let middle = claims.len().saturating_sub(1) / 2;
    claims.get(middle).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Epoch, Hash, Identity};
    use crate::orchestrator::tests::apply;
    use crate::run_state::StateEvent;
    use crate::spec::RunSpec;
    use crate::time::Instant;
    use crate::wire::message::{PeerRecord, WeightsRecord};
    use crate::wire::seal;

    const S: StageIndex = StageIndex(0);

    fn peer(i: u8) -> PeerId {
        Identity::from_secret([i; 32]).peer()
    }

    /// A record of a member of the first stage.
    fn claim(speed_milli: u32, log_length: u64) -> PeerRecord {
        let weights = Some(WeightsRecord { stage: S, version: Epoch(0), hash: Hash::default() });
        PeerRecord { weights, log_length, speed_milli, ..PeerRecord::new(1) }
    }

    /// A stage whose members, from peer 1 on, claim these speeds; nothing of one that has measured none.
    fn claiming(speeds: &[u32]) -> (RunState, Book) {
        let (mut state, mut book) = (RunState::new(Arc::new(RunSpec::default()), &[10; 3]), Book::default());
        for (i, speed) in (1..).zip(speeds) {
            apply(&mut state, Decision::Admit { peer: peer(i), stage: S });
            let record = Arc::new(claim(*speed, 0));
            book.insert(Instant::from_nanos(1), peer(i), record).expect("a valid record");
        }
        (state, book)
    }

    fn limit(i: u8, speed_milli: u32) -> Decision {
        Decision::LimitSpeed { peer: peer(i), stage: S, speed_milli }
    }

    #[test]
    fn who_claims_more_than_the_median_of_its_stage_is_limited_to_that() {
        let limits_of = |speeds: &[u32]| {
            let (state, book) = claiming(speeds);
            limits(&state, &book)
        };
        assert_eq!(limits_of(&[1000, u32::MAX, 900, 1100]), [limit(2, 1000)]);
        assert_eq!(limits_of(&[1000, 1250, 900, 1251]), [limit(4, 1000)], "equal machines scatter");
        assert_eq!(limits_of(&[4000, 1000]), [limit(1, 1000)], "of two in the middle the slower one counts");
        assert_eq!(limits_of(&[4000]), [], "nobody to compare it with");
        assert_eq!(limits_of(&[0, 0, 5000]), [], "who has measured nothing claims nothing");
        assert_eq!(limits_of(&[9000, 9000, 100]), [], "most of a stage");
    }

    #[test]
    fn who_has_a_limit_gets_no_other_and_is_evicted_if_it_exceeds_it() {
        let (mut state, mut book) = claiming(&[1000, 8000, 900]);
        let decided = limits(&state, &book);
        assert_eq!(decided, [limit(2, 1000)]);
        assert_eq!(apply(&mut state, limit(2, 1000)), [StateEvent::SpeedLimited(peer(2), 1000)]);
        book.insert(Instant::from_nanos(2), peer(2), Arc::new(claim(8000, 4))).expect("a valid record");
        assert_eq!(limits(&state, &book), []);

        let mut doubts = Doubts::default();
        let hear = |doubts: &mut Doubts, record: &PeerRecord| {
            let envelope: Arc<[u8]> =
                seal(&Identity::from_secret([2; 32]), state.spec().run_id(), record).into();
            let signed =
                Signed { sender: peer(2), kind: MessageKind::Record, number: 1, envelope: &envelope };
            doubts.note(&state, signed)
        };
        assert!(!hear(&mut doubts, &claim(8000, 3)), "the limit is the fourth entry: it did not know it");
        assert!(!hear(&mut doubts, &claim(1000, 4)));
        assert!(doubts.evictions(&state).next().is_none());
        assert!(hear(&mut doubts, &claim(8000, 4)));
        assert!(!hear(&mut doubts, &claim(8000, 5)), "once is enough");
        let evictions: Vec<Decision> = doubts.evictions(&state).collect();
        assert!(!doubts.observe(&state), "it has its place still");
        let evicted = StateEvent::Evicted(peer(2), EvictReason::OverstatedSpeed);
        assert_eq!(
            evictions.into_iter().flat_map(|eviction| apply(&mut state, eviction)).collect::<Vec<_>>(),
            [evicted]
        );
        assert!(doubts.observe(&state) && !doubts.observe(&state), "that is told once");
        assert!(doubts.evictions(&state).next().is_none());
    }
}
