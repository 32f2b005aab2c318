//! What stays undone under a leader that, for all that a stand-by can see, could have done it.
//!
//! Every candidate hears what the leader hears, so each knows what it would propose itself. Proposals of two honest
//! candidates differ for moments: one has heard a record that is on its way to the other. What stays undone for several
//! silences under one leader is a sign that this one does not lead: its disk hangs, it is cut off from those whom others hear, it is deaf
//! to some on purpose, or it hides what speaks against an accomplice.
//!
//! **Invariant:** nobody is found at fault for a judgement. What counts is owed by any leader that hears what the stand-by hears: not that
//! somebody is silent, whom the leader may hear, nor what follows from that alone, nor a move between stages, nor a limit of a speed,
//! nor an audit, which each candidate draws for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{Hash, PeerId};
use crate::limits::FUTILE_MAX;
use crate::time::Instant;
use crate::validation::DismissReason;
use crate::wire::encode;
use crate::wire::message::{Decision, EvictReason};

/// Who leads, as a candidate sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leads {
    Itself,
    Other(PeerId),
}

/// What a candidate wants decided, and for how long.
#[derive(Debug, Default)]
pub(super) struct Standby {
    undone: BTreeMap<Hash, Undone>,
    /// What it wanted in vain while it led itself: it holds that against nobody.
    futile: BTreeSet<Hash>,
    looked: Instant,
    look_due: Instant,
}

#[derive(Debug)]
struct Undone {
    decision: Decision,
    /// For how long under each leader.
    under: BTreeMap<Leads, Duration>,
}

impl Standby {
    /// Whether it is time to look again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.look_due
    }

    /// Notes what is wanted while `leader` leads, and when to look again. Returns what has been for `patience` under this leader.
    pub(super) fn note(
        &mut self,
        now: Instant,
        next: Duration,
        leader: Option<PeerId>,
        wanted: Vec<Decision>,
        patience: Duration,
    ) -> Option<Decision> {
        let leader = leader.map(Leads::Other);
        self.update(now, next, leader, wanted);
        let (_, undone) =
            self.overdue(leader, patience).find(|(subject, _)| !self.futile.contains(subject))?;
        Some(undone.decision.clone())
    }

    /// Notes what is wanted in vain by this candidate itself while it leads.
    pub(super) fn note_own(
        &mut self,
        now: Instant,
        next: Duration,
        wanted: Vec<Decision>,
        patience: Duration,
    ) {
        self.update(now, next, Some(Leads::Itself), wanted);
        let futile: Vec<Hash> =
            self.overdue(Some(Leads::Itself), patience).map(|(subject, _)| *subject).collect();
        self.futile.extend(futile);
        while self.futile.len() > FUTILE_MAX {
            self.futile.pop_first();
        }
    }

    fn update(&mut self, now: Instant, next: Duration, leader: Option<Leads>, wanted: Vec<Decision>) {
        let passed = now.since(self.looked).min(next * 2);
        (self.looked, self.look_due) = (now, now + next);
        let mut before = std::mem::take(&mut self.undone);
        for decision in wanted {
            let Some(subject) = subject(&decision) else { continue };
            let known = before.remove(&subject).map(|known| known.under);
            let leader = leader.filter(|_| known.is_some());
            let mut under = known.unwrap_or_default();
            if let Some(leader) = leader {
                *under.entry(leader).or_default() += passed;
            }
            self.undone.insert(subject, Undone { decision, under });
        }
    }

    /// What has been undone for `patience` under this leader.
    fn overdue(&self, leader: Option<Leads>, patience: Duration) -> impl Iterator<Item = (&Hash, &Undone)> {
        let time = move |undone: &Undone| undone.under.get(&leader?).copied();
        self.undone.iter().filter(move |(_, undone)| time(undone).is_some_and(|time| time >= patience))
    }

    /// Starts all waits anew.
    pub(super) fn restart(&mut self) {
        self.undone.clear();
    }
}

/// What a decision is about, whatever else it says; nothing if a leader that hears as much may think otherwise.
fn subject(decision: &Decision) -> Option<Hash> {
    let about = match decision {
        Decision::Evict { reason: EvictReason::Silent, .. }
        | Decision::Dismiss { reason: DismissReason::Silent, .. }
        | Decision::Move { .. }
        | Decision::LimitSpeed { .. }
        | Decision::Undo { .. } => return None,
        // Which stage it is to join and how fast it is, candidates may see differently.
        Decision::Admit { peer, .. } => encode(&("admit", peer)),
        Decision::OpenEpoch { stage, epoch, .. } => encode(&("open", stage, epoch)),
        // Who is in it depends on the moment.
        Decision::MergePlan { stage, epoch, attempt, .. } => encode(&("plan", stage, epoch, attempt)),
        Decision::MergeAbort { stage, epoch, attempt, .. } => encode(&("abort", stage, epoch, attempt)),
        Decision::Evict { peer, reason, .. } => encode(&("evict", peer, reason)),
        Decision::Dismiss { peer, reason, .. } => encode(&("dismiss", peer, reason)),
        // Who has voted by now depends on the moment.
        Decision::Depose { leader, .. } => encode(&("depose", leader)),
        Decision::Checkpoint { epoch, .. } => encode(&("checkpoint", epoch)),
        other => encode(other),
    };
    Some(Hash::of(&about))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::StageIndex;
    use crate::limits::{LEADER_MERGES, LEADER_SILENCES};
    use crate::orchestrator::Orchestrator;
    use crate::orchestrator::tests::{MEMBER, ROOM, apply, record};
    use crate::peer::book::Book;
    use crate::run_state::RunState;
    use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
    use crate::wire::message::PeerRecord;

    /// A stand-by of two candidates, `LEADER` and `STANDBY`, and a miner that asks for a place and gets none.
    struct Asking {
        standby: Orchestrator,
        book: Book,
        state: RunState,
        now: Instant,
    }

    const LEADER: PeerId = PeerId([21; 32]);
    const STANDBY: PeerId = PeerId([22; 32]);

    impl Asking {
        fn new() -> Self {
            let candidates = [LEADER, STANDBY].map(|peer| Candidate { peer, priority: 0 }).to_vec();
            let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
            spec.pipeline.stages = 1;
            let state = RunState::new(Arc::new(spec), &[10]);
            Self {
                standby: Orchestrator::default(),
                book: Book::default(),
                state,
                now: Instant::from_nanos(1),
            }
        }

        fn patience(&self) -> Duration {
            let timing = &self.state.spec().timing;
            let merges = timing.merge_deadline.duration() * LEADER_MERGES;
            merges.max(timing.eviction.duration() * LEADER_SILENCES)
        }

        /// Lets time pass in which all three are heard, and `look` be called at each heartbeat until it says something.
        fn pass<T>(&mut self, time: Duration, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
            let (heartbeat, end) = (self.state.spec().timing.heartbeat.duration(), self.now + time);
            while self.now < end {
                self.now = self.now + heartbeat;
                for peer in [LEADER, STANDBY, MEMBER] {
                    let sequence = self.now.as_nanos();
                    let record = PeerRecord { sequence, miner: peer == MEMBER, ..record() };
                    self.book.insert(self.now, peer, Arc::new(record)).expect("a valid record");
                }
                if let Some(seen) = look(self) {
                    return Some(seen);
                }
            }
            None
        }

        fn follow(&mut self, time: Duration, leader: PeerId) -> Option<Decision> {
            self.pass(time, |asking| {
                asking.standby.follow(asking.now, &asking.state, &asking.book, Some(leader))
            })
        }
    }

    const ADMIT: Decision = Decision::Admit { peer: MEMBER, stage: StageIndex(0) };

    #[test]
    fn what_a_leader_leaves_undone_for_long_is_held_against_it_and_nobody_else() {
        let mut asking = Asking::new();
        let patience = asking.patience();
        assert_eq!(asking.follow(patience * 3 / 4, LEADER), None, "it may not have heard");
        assert_eq!(asking.follow(patience * 3 / 4, PeerId([23; 32])), None, "its successor has just begun");
        assert_eq!(asking.follow(patience / 2, LEADER), Some(ADMIT));
        assert_eq!(asking.follow(patience * 3 / 4, LEADER), None, "from then on it is counted anew");

        let mut asking = Asking::new();
        assert_eq!(asking.follow(patience * 3 / 4, LEADER), None);
        apply(&mut asking.state, ADMIT);
        assert_eq!(asking.follow(patience * 2, LEADER), None, "it was done in time");
    }

    #[test]
    fn what_a_candidate_proposed_in_vain_itself_it_holds_against_nobody() {
        let mut asking = Asking::new();
        let patience = asking.patience();
        let proposed = asking.pass(patience * 2, |asking| {
            let decisions = asking.standby.propose(asking.now, &asking.state, &asking.book, ROOM);
            assert!(decisions.iter().all(|decision| *decision == ADMIT), "{decisions:?}");
            None::<()>
        });
        assert_eq!(proposed, None);
        assert_eq!(asking.follow(patience * 2, LEADER), None);
    }

    #[test]
    fn a_member_that_a_stand_by_does_not_hear_is_no_fault_of_the_leader() {
        let mut asking = Asking::new();
        apply(&mut asking.state, Decision::Admit { peer: PeerId([9; 32]), stage: StageIndex(0) });
        apply(&mut asking.state, ADMIT);
        let patience = asking.patience();
        assert_eq!(asking.follow(patience * 3, LEADER), None, "the leader may hear it");
    }
}
