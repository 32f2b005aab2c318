//! When a checkpoint is complete: every stage has a replica that has seen its state of one version in the mirror.
//!
//! Records name the newest state only, and stages do not reach a version at the same time, so what was said of each
//! version is remembered until a checkpoint of it or of a later one is decided. Where replicas of a stage name different
//! states of a version, the one that most of them name counts; who reads a checkpoint checks it by its hashes anyway.
//!
//! The inner optimizers' moments are not needed for it, but each is had from its miner alone. So a complete checkpoint waits
//! for the miners that bring theirs: until all have said what became of them, some stage has done another epoch, or
//! an epoch's time has passed, whichever comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::{CHECKPOINT_MOMENTS_MAX, LAST_CHECKPOINT_WAIT, MOMENTS_WAIT_MAX, OUTCOMES_KEPT_MAX};
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::time::Instant;
use crate::wire::message::{Decision, MomentsRecord, SavedMoments};

/// Who has seen which state of a stage.
type Seen = BTreeMap<Hash, BTreeSet<PeerId>>;

/// What miners say of their moments at one version: their hash, or that they could not bring them.
type Told = BTreeMap<(StageIndex, PeerId), Option<Hash>>;

/// What replicas have seen in the mirror.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    seen: BTreeMap<(Epoch, StageIndex), Seen>,
    moments: BTreeMap<Epoch, Told>,
    /// Since when a version has been complete but for moments.
    complete: BTreeMap<Epoch, Instant>,
    /// Since when all stages have finished.
    finished: Option<Instant>,
}

impl Checkpoints {
    /// Notes what records say.
    pub(super) fn observe(&mut self, now: Instant, state: &RunState, book: &Book) {
        if !state.spec().mirror.is_set() {
            return;
        }
        let last = state.checkpoint().map_or(Epoch(0), |checkpoint| checkpoint.epoch);
        for (peer, record) in book.records() {
            let Some(mirror) = record.mirror else { continue };
            if mirror.version > last
                && state.stage(mirror.stage).is_some_and(|stage| stage.version >= mirror.version)
                && state.spec().is_checkpoint(mirror.version)
            {
                let seen = self.seen.entry((mirror.version, mirror.stage)).or_default();
                seen.entry(mirror.state).or_default().insert(peer);
            }
            let is_due = |moments: &MomentsRecord| {
                moments.version > last
                    && state.spec().is_checkpoint(moments.version)
                    && state.stage_of(peer) == Some(mirror.stage)
                    && state.stage(mirror.stage).is_some_and(|stage| stage.version >= moments.version)
            };
            if let Some(moments) = mirror.moments.filter(is_due) {
                let told = self.moments.entry(moments.version).or_default();
                told.insert((mirror.stage, peer), moments.hash);
            }
        }
        self.seen.retain(|(version, _), _| *version > last);
        self.moments.retain(|version, _| *version > last);
        while self.moments.len() > OUTCOMES_KEPT_MAX {
            self.moments.pop_first();
        }
        self.complete.retain(|version, _| *version > last);
        for version in self.versions() {
            if !self.complete.contains_key(&version) && self.states(state, version).is_some() {
                self.complete.insert(version, now);
            }
        }
        while self.seen.len() > OUTCOMES_KEPT_MAX * state.stages().len() {
            self.seen.pop_first();
        }
        if is_trained(state) {
            self.finished.get_or_insert(now);
        }
    }

    /// The newest checkpoint that is complete and not decided, and waits for no moments.
    pub(super) fn decision(&self, now: Instant, state: &RunState, book: &Book) -> Option<Decision> {
        self.versions().into_iter().rev().find_map(|epoch| {
            let stages = self.states(state, epoch).filter(|_| !self.waits(now, state, book, epoch))?;
            let told = self.moments.get(&epoch).into_iter().flatten();
            let saved = told.filter_map(|((stage, peer), hash)| {
                hash.map(|hash| SavedMoments { stage: *stage, peer: *peer, hash })
            });
            let moments = saved.take(CHECKPOINT_MOMENTS_MAX).collect();
            Some(Decision::Checkpoint { epoch, stages, moments })
        })
    }

    /// The versions of which something was seen.
    fn versions(&self) -> BTreeSet<Epoch> {
        self.seen.keys().map(|(version, _)| *version).collect()
    }

    /// The state of each stage that makes up a checkpoint of this version, if it is complete.
    fn states(&self, state: &RunState, epoch: Epoch) -> Option<Vec<Hash>> {
        let of = |stage| {
            let seen = self.seen.get(&(epoch, stage))?;
            seen.iter().max_by_key(|(hash, peers)| (peers.len(), **hash)).map(|(hash, _)| *hash)
        };
        state.spec().stages().map(of).collect()
    }

    /// Whether a complete checkpoint waits for the moments of somebody who brings them.
    fn waits(&self, now: Instant, state: &RunState, book: &Book, epoch: Epoch) -> bool {
        let spec = state.spec();
        let most = spec.timing.epoch_deadline.duration().min(MOMENTS_WAIT_MAX);
        let is_late = self.complete.get(&epoch).is_none_or(|since| now.since(*since) >= most);
        if !spec.saves_moments() || is_late || state.stages().iter().any(|stage| stage.version > epoch) {
            return false;
        }
        let told = self.moments.get(&epoch);
        let brings = |stage: StageIndex, peer: PeerId| {
            let has_said = told.is_some_and(|told| told.contains_key(&(stage, peer)));
            // One that is a version behind has yet to get the state whose moments it has.
            let has_them = book
                .weights(peer)
                .is_some_and(|weights| weights.stage == stage && weights.version.next() >= epoch);
            let fails =
                book.record(peer).and_then(|record| record.mirror).is_some_and(|mirror| mirror.failing);
            has_them && !has_said && !fails
        };
        spec.stages().any(|stage| state.replicas(stage).any(|peer| brings(stage, peer)))
    }

    /// Whether the end of a run that has trained all its epochs waits for the last checkpoint: it is not decided, some
    /// replica says that the mirror takes it, and it has not waited for too long.
    pub(super) fn is_awaited(&self, now: Instant, state: &RunState, book: &Book) -> bool {
        let last = Epoch(state.spec().training.epochs);
        let decided = state.checkpoint().is_some_and(|checkpoint| checkpoint.epoch >= last);
        if decided || !state.spec().mirror.is_set() {
            return false;
        }
        let waited = self.finished.map_or(Duration::ZERO, |since| now.since(since));
        // One that has not tried yet has written nothing of it into its record.
        let hopeful = |stage: StageIndex| {
            state.replicas(stage).any(|peer| {
                book.record(peer).is_some_and(|record| record.mirror.is_none_or(|mirror| !mirror.failing))
            })
        };
        waited < LAST_CHECKPOINT_WAIT && state.spec().stages().all(hopeful)
    }
}

/// Whether all stages have done their last epoch.
pub(super) fn is_trained(state: &RunState) -> bool {
    state.stages().iter().all(|stage| stage.version.0 >= state.spec().training.epochs)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::RunSpec;
    use crate::spec::{Candidate, OrchestratorSpec};
    use crate::wire::message::{MirrorRecord, PeerRecord, WeightsRecord};

    /// A run of two stages that goes on from its eighth epoch; a checkpoint is due at every fourth, and at its end.
    fn state() -> RunState {
        let candidates = vec![Candidate { peer: PeerId([255; 32]), priority: 0 }];
        let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        spec.pipeline.stages = 2;
        spec.mirror.url = "file:///mirror".to_owned();
        spec.start.epoch = 8;
        let mut state = RunState::new(Arc::new(spec), &[10, 10]);
        for stage in &mut state.stages_mut().iter_mut() {
            stage.version = Epoch(17);
        }
        state
    }

    struct Told {
        state: RunState,
        book: Book,
        checkpoints: Checkpoints,
        sequence: u64,
    }

    impl Told {
        fn new() -> Self {
            Self { state: state(), book: Book::default(), checkpoints: Checkpoints::default(), sequence: 1 }
        }

        fn admit(&mut self, peer: u8, stage: u16) {
            let decision = Decision::Admit { peer: PeerId([peer; 32]), stage: StageIndex(stage) };
            let entry = crate::wire::message::Entry { proposer: PeerId([255; 32]), decision };
            let index = crate::id::LogIndex(self.state.applied());
            self.state.apply(index, Hash::default(), Some(&entry));
        }

        /// A miner that holds the weights of version 16 says what it brought at that version: its state, and its
        /// moments or, with an empty name, none of them, if it has said.
        fn brings(&mut self, peer: u8, stage: u16, moments: Option<&str>) {
            self.sequence += 1;
            let (stage, version, state) = (StageIndex(stage), Epoch(16), Hash::of(&[0]));
            let moments = moments.map(|text| (!text.is_empty()).then(|| Hash::of(text.as_bytes())));
            let moments = moments.map(|hash| MomentsRecord { version, hash });
            let mirror = Some(MirrorRecord { stage, version, state, failing: false, moments });
            let weights = Some(WeightsRecord { stage, version, hash: state });
            let record = PeerRecord { mirror, weights, ..PeerRecord::new(self.sequence) };
            let now = Instant::from_nanos(self.sequence);
            self.book.insert(now, PeerId([peer; 32]), Arc::new(record)).expect("a valid record");
            self.checkpoints.observe(now, &self.state, &self.book);
        }

        fn saved(&self, now: Instant) -> Option<Vec<SavedMoments>> {
            match self.checkpoints.decision(now, &self.state, &self.book)? {
                Decision::Checkpoint { moments, .. } => Some(moments),
                other => panic!("{other:?}"),
            }
        }

        fn says(&mut self, peer: u8, stage: u16, version: u32, text: &str) {
            self.sequence += 1;
            let (stage, version, state) = (StageIndex(stage), Epoch(version), Hash::of(text.as_bytes()));
            let mirror = Some(MirrorRecord { stage, version, state, failing: false, moments: None });
            let record = PeerRecord { mirror, ..PeerRecord::new(self.sequence) };
            let now = Instant::from_nanos(self.sequence);
            self.book.insert(now, PeerId([peer; 32]), Arc::new(record)).expect("a valid record");
            self.checkpoints.observe(now, &self.state, &self.book);
        }

        fn decision(&self) -> Option<(u32, Vec<Hash>)> {
            let now = Instant::from_nanos(self.sequence);
            match self.checkpoints.decision(now, &self.state, &self.book)? {
                Decision::Checkpoint { epoch, stages, .. } => Some((epoch.0, stages)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn hashes(texts: [&str; 2]) -> Vec<Hash> {
        texts.iter().map(|text| Hash::of(text.as_bytes())).collect()
    }

    #[test]
    fn a_checkpoint_is_complete_when_every_stage_has_one_version_there() {
        let mut told = Told::new();
        told.says(1, 0, 12, "a");
        assert_eq!(told.decision(), None);
        told.says(2, 1, 16, "c");
        assert_eq!(told.decision(), None, "of different versions");
        told.says(1, 0, 16, "d");
        assert_eq!(told.decision(), Some((16, hashes(["d", "c"]))));
    }

    #[test]
    fn what_was_said_of_a_version_is_remembered_when_its_replica_goes_on() {
        let mut told = Told::new();
        told.says(1, 0, 12, "a");
        told.says(1, 0, 16, "b");
        told.says(2, 1, 12, "c");
        assert_eq!(told.decision(), Some((12, hashes(["a", "c"]))));
    }

    #[test]
    fn the_state_counts_that_most_replicas_name() {
        let mut told = Told::new();
        told.says(1, 0, 12, "wrong");
        told.says(2, 0, 12, "right");
        told.says(3, 0, 12, "right");
        told.says(4, 1, 12, "c");
        assert_eq!(told.decision(), Some((12, hashes(["right", "c"]))));
    }

    #[test]
    fn versions_that_are_not_due_or_not_reached_are_nothing() {
        let mut told = Told::new();
        for version in [4, 8, 13, 20] {
            told.says(1, 0, version, "a");
            told.says(2, 1, version, "b");
            assert_eq!(told.decision(), None, "{version}");
        }
    }

    /// All stages are at version 16, and three miners hold it; the states of both stages are in the mirror.
    fn at_sixteen() -> Told {
        let mut told = Told::new();
        for stage in told.state.stages_mut() {
            stage.version = Epoch(16);
        }
        for (peer, stage) in [(1, 0), (2, 0), (3, 1)] {
            told.admit(peer, stage);
            told.brings(peer, stage, None);
        }
        told
    }

    #[test]
    fn a_complete_checkpoint_waits_for_moments_and_names_those_that_are_there() {
        let mut told = at_sixteen();
        let now = Instant::from_nanos(100);
        assert_eq!(told.saved(now), None);
        told.brings(3, 1, Some("c"));
        told.brings(1, 0, Some(""));
        assert_eq!(told.saved(now), None, "of one it is not known");
        told.brings(2, 0, Some("b"));
        let saved = |stage, peer: u8, text: &str| {
            let (stage, peer, hash) = (StageIndex(stage), PeerId([peer; 32]), Hash::of(text.as_bytes()));
            SavedMoments { stage, peer, hash }
        };
        assert_eq!(
            told.saved(now),
            Some(vec![saved(0, 2, "b"), saved(1, 3, "c")]),
            "one could not bring them"
        );
    }

    #[test]
    fn nobody_is_waited_for_beyond_an_epoch() {
        let mut told = at_sixteen();
        let now = Instant::from_nanos(100);
        let patience = told.state.spec().timing.epoch_deadline.duration();
        assert_eq!(told.saved(now + patience / 2), None);
        assert_eq!(told.saved(now + patience), Some(Vec::new()));
        told.state.stages_mut()[1].version = Epoch(17);
        assert_eq!(told.saved(now), Some(Vec::new()), "a stage has gone on");
    }

    #[test]
    fn moments_of_one_who_has_no_place_in_the_stage_are_not_named() {
        let mut told = at_sixteen();
        for (peer, stage) in [(1, 0), (2, 0), (3, 1), (4, 0)] {
            told.brings(peer, stage, Some("m"));
        }
        let saved = told.saved(Instant::from_nanos(100)).expect("a checkpoint");
        let peers: Vec<PeerId> = saved.iter().map(|saved| saved.peer).collect();
        assert_eq!(peers, [1, 2, 3].map(|peer| PeerId([peer; 32])));
    }

    #[test]
    fn the_end_waits_for_the_last_checkpoint_only_while_the_mirror_takes_it() {
        let mut told = Told::new();
        for stage in told.state.stages_mut() {
            stage.version = Epoch(24);
        }
        told.admit(1, 0);
        told.admit(2, 1);
        told.says(1, 0, 16, "a");
        told.says(2, 1, 16, "b");
        let now = Instant::from_nanos(told.sequence);
        let awaited = |told: &Told, at| told.checkpoints.is_awaited(at, &told.state, &told.book);
        assert!(awaited(&told, now));
        assert!(!awaited(&told, now + LAST_CHECKPOINT_WAIT + Duration::from_secs(1)), "not for ever");
        let mirror = told.book.record(PeerId([2; 32])).and_then(|record| record.mirror).expect("it said so");
        let failing = Some(MirrorRecord { failing: true, ..mirror });
        let record = PeerRecord { mirror: failing, ..PeerRecord::new(told.sequence + 1) };
        told.book.insert(now, PeerId([2; 32]), Arc::new(record)).expect("a valid record");
        assert!(!awaited(&told, now), "nobody of that stage gets anything there");
    }
}
