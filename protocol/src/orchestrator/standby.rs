//! What stays undone under a leader that, for all that a stand-by can see, could have done it.
//!
//! Every candidate hears what the leader hears, so each knows what it would propose itself. Proposals of two honest
//! candidates differ for moments: one has heard a record that is on its way to the other. What stays undone for several
//! silences under one leader is a sign that this one does not lead: its disk hangs, it is cut off from those whom others hear, it is deaf
//! to some on purpose, or it hides what speaks against an accomplice.
//!
//! **Invariant:** nobody is found at fault for a judgement. What counts is owed by any leader that hears what the stand-by hears: not that
//! somebody is silent, whom the leader may hear, nor what follows from that alone, nor a move between stages, nor an audit, which each
//! candidate draws for itself.

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
        | Decision::Undo { .. } => return None,
        // Which stage it is to join and how fast it is, candidates may see differently.
        Decision::Admit { peer, .. } => encode(&("admit", peer)),
        Decision::OpenEpoch { stage, epoch, .. } => encode(&("open", stage, epoch)),
        // Who is in it depends on the moment.
        Decision::MergePlan { stage, epoch, attempt, .. } => encode(&("plan", stage, epoch, attempt)),
        Decision::MergeAbort { stage, epoch, attempt, .. } => encode(&("abort", stage, epoch, attempt)),
        Decision::Evict { peer, reason, .. } => encode(&("evict", peer, reason)),
        Decision::Dismiss { peer, reason, .. } => encode(&("dismiss", peer, reason)),
        Decision::Checkpoint { epoch, .. } => encode(&("checkpoint", epoch)),
        other => encode(other),
    };
    Some(Hash::of(&about))
}
