//! When the run goes on in the next version of the wire format.
//!
//! Records say which version each program speaks. The leader proposes the next one when
//!
//! 1. every candidate that is heard speaks it, and those are a majority of all: a run needs a majority to go on, and a
//!    certificate of the upgrade is signed by candidates that speak it;
//! 2. every miner that is heard speaks it, or, for [`UPGRADE_GRACE_DEADLINES`] epoch deadlines, two thirds of each
//!    stage have spoken it and one of them holds its weights: nobody who is being upgraded is left behind, nobody who
//!    never will be holds all up, and no weights stop with those who are left behind.
//!
//! "Heard" is within [what costs a miner its place](Book::patience). Whoever speaks less is outvoted: its peer stops at the
//! upgrade, and joins again when its program has been replaced. A peer that claims more than the next version counts
//! for the next one only, so no claim takes the run further than all agree to.

use super::holders;
use crate::id::{Epoch, PeerId};
use crate::limits::{UPGRADE_GRACE_DEADLINES, UPGRADE_THIRDS};
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::time::Instant;
use crate::wire::message::Decision;

/// What the leader remembers between two looks.
#[derive(Debug, Default)]
pub(super) struct Upgrade {
    /// Since when enough miners speak the next version, without a break, and which it is.
    enough_since: Option<(u16, Instant)>,
}

/// What a peer says of the next version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stance {
    Speaks,
    Lacks,
    Silent,
}

impl Upgrade {
    /// The upgrade, if it is time.
    pub(super) fn decision(
        &mut self,
        now: Instant,
        listening_since: Instant,
        state: &RunState,
        book: &Book,
    ) -> Option<Decision> {
        let version = state.wire_version().checked_add(1)?;
        let view = View { now, listening_since, state, book, version };
        if !view.candidates_speak() {
            self.enough_since = None;
            return None;
        }
        if view.miners_speak(3) {
            return Some(Decision::Upgrade { version });
        }
        if !view.miners_speak(UPGRADE_THIRDS) {
            self.enough_since = None;
            return None;
        }
        let since = self.enough_since.filter(|(of, _)| *of == version).map_or(now, |(_, since)| since);
        self.enough_since = Some((version, since));
        let grace = state.spec().timing.epoch_deadline.duration() * UPGRADE_GRACE_DEADLINES;
        (now.since(since) >= grace && view.weights_stay()).then_some(Decision::Upgrade { version })
    }

    /// After this process was not running for a while, nothing is known of that time.
    pub(super) const fn handle_pause(&mut self) {
        self.enough_since = None;
    }
}

/// What is known of who speaks `version`.
struct View<'a> {
    now: Instant,
    listening_since: Instant,
    state: &'a RunState,
    book: &'a Book,
    version: u16,
}

impl View<'_> {
    fn stance(&self, peer: PeerId) -> Stance {
        let eviction = self.state.spec().timing.eviction.duration();
        let silence = self.book.silence(self.now, peer).unwrap_or(self.now.since(self.listening_since));
        match self.book.record(peer) {
            _ if silence >= self.book.patience(peer, eviction) => Stance::Silent,
            Some(record) if record.wire_version_max >= self.version => Stance::Speaks,
            // Not heard yet by a leader that has just started: nobody is passed over for that.
            Some(_) | None => Stance::Lacks,
        }
    }

    fn candidates_speak(&self) -> bool {
        let spec = self.state.spec();
        let stances: Vec<Stance> =
            spec.orchestrator.candidates.iter().map(|candidate| self.stance(candidate.peer)).collect();
        let speaking = stances.iter().filter(|stance| **stance == Stance::Speaks).count();
        !stances.contains(&Stance::Lacks) && speaking >= spec.certificate_quorum()
    }

    /// Whether a miner of each stage that speaks it holds the stage's weights. Anybody can build the initial ones.
    fn weights_stay(&self) -> bool {
        self.state.spec().stages().zip(self.state.stages()).all(|(index, stage)| {
            let mut holders = holders(self.state, self.book, index);
            stage.version == Epoch(0) || holders.any(|peer| self.stance(peer) == Stance::Speaks)
        })
    }

    /// Whether so many thirds of each stage's miners that are heard speak it.
    fn miners_speak(&self, thirds: usize) -> bool {
        self.state.spec().stages().all(|stage| {
            let stances: Vec<Stance> = self.state.replicas(stage).map(|peer| self.stance(peer)).collect();
            let count = |of: Stance| stances.iter().filter(|stance| **stance == of).count();
            let (speaking, lacking) = (count(Stance::Speaks), count(Stance::Lacks));
            speaking * 3 >= (speaking + lacking) * thirds
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::id::{Hash, LogIndex, StageIndex};
    use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
    use crate::wire::message::{Entry, PeerRecord, Submission, WeightsRecord};

    const SECOND: Duration = Duration::from_secs(1);

    /// Three candidates, 1 to 3, and a stage of miners, 11 and on, watched by a leader.
    struct Watch {
        upgrade: Upgrade,
        state: RunState,
        book: Book,
        now: Instant,
        sequence: u64,
        /// Who holds the weights of version 1.
        holder: u8,
    }

    fn peer(i: u8) -> PeerId {
        PeerId([i; 32])
    }

    impl Watch {
        fn of(miners: u8) -> Self {
            let candidates = (1..=3).map(|i| Candidate { peer: peer(i), priority: 0 }).collect();
            let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
            spec.pipeline.stages = 1;
            let state = RunState::new(Arc::new(spec), &[10]);
            let now = Instant::ZERO + SECOND;
            let (upgrade, book) = (Upgrade::default(), Book::default());
            let mut watch = Self { upgrade, state, book, now, sequence: 0, holder: 0 };
            (0..miners)
                .for_each(|i| watch.decides(Decision::Admit { peer: peer(11 + i), stage: StageIndex(0) }));
            watch
        }

        fn decides(&mut self, decision: Decision) {
            let entry = Entry { proposer: peer(1), decision };
            let events = self.state.apply(LogIndex(self.state.applied()), Hash::default(), Some(&entry));
            assert_ne!(events, [], "it fits");
        }

        /// The stage goes to version 1, whose weights one miner holds.
        fn merges(&mut self, holder: u8) {
            let (stage, epoch, attempt, base) = (StageIndex(0), Epoch(0), 0, Hash::default());
            self.decides(Decision::OpenEpoch { stage, epoch, base, members: vec![(peer(holder), 1)] });
            let submission = Submission {
                peer: peer(holder),
                manifest: base,
                samples: 1,
                loss_micro: None,
                moments_after: None,
            };
            self.decides(Decision::MergePlan { stage, epoch, attempt, submitters: vec![submission] });
            let partitions = vec![base; self.state.stages()[0].partitions];
            self.decides(Decision::MergeOutcome { stage, epoch, attempt, partitions, outliers: Vec::new() });
            self.holder = holder;
        }

        fn hears(&mut self, i: u8, wire_version_max: u16) {
            self.sequence += 1;
            let weights = (i == self.holder).then(|| WeightsRecord {
                stage: StageIndex(0),
                version: Epoch(1),
                hash: Hash::default(),
            });
            let record =
                PeerRecord { miner: i > 10, weights, wire_version_max, ..PeerRecord::new(self.sequence) };
            self.book.insert(self.now, peer(i), Arc::new(record)).expect("a valid record");
        }

        /// All peers but one speak the second version and are heard every second; that one, if it is heard, speaks `other`.
        fn passes(&mut self, time: Duration, miners: u8, one: u8, other: Option<u16>) -> Option<Decision> {
            let until = self.now + time;
            loop {
                for i in (1..=3).chain(11..11 + miners) {
                    match other {
                        _ if i != one => self.hears(i, 2),
                        Some(other) => self.hears(i, other),
                        None => {}
                    }
                }
                let start = Instant::ZERO + SECOND;
                let decision = self.upgrade.decision(self.now, start, &self.state, &self.book);
                if decision.is_some() || self.now >= until {
                    return decision;
                }
                self.now = self.now + SECOND;
            }
        }
    }

    const SECOND_VERSION: Option<Decision> = Some(Decision::Upgrade { version: 2 });

    fn eviction() -> Duration {
        RunSpec::default().timing.eviction.duration()
    }

    fn grace() -> Duration {
        RunSpec::default().timing.epoch_deadline.duration() * UPGRADE_GRACE_DEADLINES
    }

    #[test]
    fn it_is_decided_at_once_when_everybody_speaks_it_and_not_before() {
        let mut watch = Watch::of(4);
        assert_eq!(watch.passes(grace() * 2, 4, 2, Some(1)), None, "a candidate does not, however long");
        assert_eq!(watch.passes(SECOND, 4, 12, Some(1)), None, "a miner does not");
        assert_eq!(watch.passes(Duration::ZERO, 4, 0, None), SECOND_VERSION);
    }

    #[test]
    fn a_claim_of_a_far_version_counts_for_the_next_one_only() {
        let mut watch = Watch::of(2);
        assert_eq!(watch.passes(SECOND, 2, 1, Some(u16::MAX)), SECOND_VERSION);
        let mut watch = Watch::of(2);
        (1..=3).for_each(|i| watch.hears(i, if i == 1 { u16::MAX } else { 1 }));
        let decision = watch.upgrade.decision(watch.now, watch.now, &watch.state, &watch.book);
        assert_eq!(decision, None, "one that claims all does not make up for two that do not speak it");
    }

    #[test]
    fn a_candidate_that_went_back_takes_its_consent_along() {
        let mut watch = Watch::of(2);
        assert_eq!(watch.passes(SECOND, 2, 11, Some(1)), None);
        assert_eq!(watch.passes(grace() * 2, 2, 3, Some(1)), None, "it was restarted with the old program");
        assert_eq!(watch.passes(SECOND, 2, 3, Some(2)), SECOND_VERSION);
    }

    #[test]
    fn a_minority_that_never_speaks_it_is_left_behind_after_a_while() {
        let mut watch = Watch::of(4);
        assert_eq!(watch.passes(grace() - SECOND, 4, 12, Some(1)), None);
        assert_eq!(watch.passes(SECOND * 2, 4, 12, Some(1)), SECOND_VERSION);
        let mut watch = Watch::of(2);
        assert_eq!(watch.passes(grace() * 3, 2, 12, Some(1)), None, "half of a stage is not left behind");
    }

    #[test]
    fn a_miner_that_alone_holds_the_weights_is_not_left_behind() {
        let mut watch = Watch::of(4);
        watch.merges(12);
        assert_eq!(watch.passes(grace() * 2, 4, 12, Some(1)), None);
        watch.holder = 11;
        assert_eq!(watch.passes(SECOND, 4, 12, Some(1)), SECOND_VERSION, "another has fetched them");
    }

    #[test]
    fn silence_counts_neither_way_once_it_has_lasted() {
        let mut watch = Watch::of(2);
        assert_eq!(watch.passes(eviction() - SECOND, 2, 3, None), None, "it may be on its way");
        assert_eq!(watch.passes(SECOND, 2, 3, None), SECOND_VERSION, "a majority of candidates is there");
        let mut watch = Watch::of(2);
        assert_eq!(watch.passes(eviction() * 2, 2, 12, None), SECOND_VERSION, "it loses its place anyhow");
        let mut watch = Watch::of(2);
        for _ in 0..20 {
            watch.now = watch.now + SECOND;
            watch.hears(1, 2);
            let start = Instant::ZERO + SECOND;
            let decision = watch.upgrade.decision(watch.now, start, &watch.state, &watch.book);
            assert_eq!(decision, None, "one candidate of three is no majority");
        }
    }
}
