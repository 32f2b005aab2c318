//! When a checkpoint is complete: every stage has a replica that has seen its state of one version in the mirror.
//!
//! Records name the newest state only, and stages do not reach a version at the same time, so what was said of each
//! version is remembered until a checkpoint of it or of a later one is decided. Where replicas of a stage name different
//! states of a version, the one that most of them name counts; who reads a checkpoint checks it by its hashes anyway.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::{LAST_CHECKPOINT_WAIT, OUTCOMES_KEPT_MAX};
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::time::Instant;
use crate::wire::message::Decision;

/// Who has seen which state of a stage.
type Seen = BTreeMap<Hash, BTreeSet<PeerId>>;

/// What replicas have seen in the mirror.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    seen: BTreeMap<(Epoch, StageIndex), Seen>,
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
            let Some(mirror) = record.mirror.filter(|mirror| mirror.version > last) else { continue };
            if state.stage(mirror.stage).is_some_and(|stage| stage.version >= mirror.version)
                && state.spec().is_checkpoint(mirror.version)
            {
                let seen = self.seen.entry((mirror.version, mirror.stage)).or_default();
                seen.entry(mirror.state).or_default().insert(peer);
            }
        }
        self.seen.retain(|(version, _), _| *version > last);
        while self.seen.len() > OUTCOMES_KEPT_MAX * state.stages().len() {
            self.seen.pop_first();
        }
        if is_trained(state) {
            self.finished.get_or_insert(now);
        }
    }

    /// The newest checkpoint that is complete and not decided.
    pub(super) fn decision(&self, state: &RunState) -> Option<Decision> {
        let versions: BTreeSet<Epoch> = self.seen.keys().map(|(version, _)| *version).collect();
        let complete = |epoch: Epoch| {
            let stages = state.spec().stages().map(|stage| {
                let seen = self.seen.get(&(epoch, stage))?;
                seen.iter().max_by_key(|(hash, peers)| (peers.len(), **hash)).map(|(hash, _)| *hash)
            });
            stages.collect::<Option<Vec<Hash>>>().map(|stages| Decision::Checkpoint { epoch, stages })
        };
        versions.into_iter().rev().find_map(complete)
    }

    /// Whether the end of a run that has trained all its epochs waits for the last checkpoint: it is not decided, some
    /// replica says that the mirror takes it, and it has not waited for too long.
    pub(super) fn is_awaited(&self, now: Instant, state: &RunState, book: &Book) -> bool {
        let last = Epoch(state.spec().training.epochs);
        let decided = state.checkpoint().is_some_and(|checkpoint| checkpoint.epoch >= last);
        if decided || !state.spec().mirror.is_set() {
            return false;
        }
        let waited = self.finished.map_or(std::time::Duration::ZERO, |since| now.since(since));
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
    use std::time::Duration;

    use super::*;
    use crate::RunSpec;
    use crate::spec::{Candidate, OrchestratorSpec};
    use crate::wire::message::{MirrorRecord, PeerRecord};

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

        fn says(&mut self, peer: u8, stage: u16, version: u32, text: &str) {
            self.sequence += 1;
            let (stage, version, state) = (StageIndex(stage), Epoch(version), Hash::of(text.as_bytes()));
            let mirror = Some(MirrorRecord { stage, version, state, failing: false });
            let record = PeerRecord { mirror, ..PeerRecord::new(self.sequence) };
            let now = Instant::from_nanos(self.sequence);
            self.book.insert(now, PeerId([peer; 32]), Arc::new(record)).expect("a valid record");
            self.checkpoints.observe(now, &self.state, &self.book);
        }

        fn decision(&self) -> Option<(u32, Vec<Hash>)> {
            match self.checkpoints.decision(&self.state)? {
                Decision::Checkpoint { epoch, stages } => Some((epoch.0, stages)),
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

    #[test]
    fn the_end_waits_for_the_last_checkpoint_only_while_the_mirror_takes_it() {
        let mut told = Told::new();
        for stage in told.state.stages_mut() {
            stage.version = Epoch(24);
        }
        let admit = |told: &mut Told, peer: u8, stage: u16| {
            let decision = Decision::Admit { peer: PeerId([peer; 32]), stage: StageIndex(stage) };
            let entry = crate::wire::message::Entry { proposer: PeerId([255; 32]), decision };
            let index = crate::id::LogIndex(told.state.applied());
            told.state.apply(index, Hash::default(), Some(&entry));
        };
        admit(&mut told, 1, 0);
        admit(&mut told, 2, 1);
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
