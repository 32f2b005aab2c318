use std::time::Duration;

use super::*;
use crate::id::LogIndex;
use crate::limits::WIRE_VERSION;
use crate::run_state::StateEvent;
use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
use crate::wire::message::{Entry, PeerRecord};

const MEMBER: PeerId = PeerId([2; 32]);

pub(super) fn record() -> PeerRecord {
    PeerRecord { wire_version_max: WIRE_VERSION, ..PeerRecord::new(1) }
}

/// Applies a decision as the next entry of the log.
pub(super) fn apply(state: &mut RunState, decision: Decision) -> Vec<StateEvent> {
    let entry = Entry { proposer: PeerId([255; 32]), decision };
    state.apply(LogIndex(state.applied()), Hash::default(), Some(&entry))
}

#[test]
fn a_leader_that_does_not_hear_a_majority_blames_nobody_and_starts_its_waits_anew() {
    let peers: Vec<PeerId> = (1..=3).map(|i| PeerId([i; 32])).collect();
    let candidates = peers.iter().map(|peer| Candidate { peer: *peer, priority: 0 }).collect();
    let spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    let eviction = spec.timing.eviction.duration();
    let mut state = RunState::new(Arc::new(spec), &[10; 3]);
    let admit = Decision::Admit { peer: PeerId([9; 32]), stage: StageIndex(0) };
    state.apply(LogIndex(0), Hash::default(), Some(&Entry { proposer: peers[0], decision: admit }));

    let (mut leader, mut book, start) = (Orchestrator::default(), Book::default(), Instant::from_nanos(1));
    let alone = start + eviction * 5;
    for (peer, at) in [(peers[0], start), (peers[1], start), (peers[0], alone)] {
        book.insert(at, peer, Arc::new(record())).expect("a valid record");
    }
    assert_eq!(leader.propose(start, &state, &book, 8), []);
    assert_eq!(leader.propose(alone, &state, &book, 8), [], "two of three are out of reach");
    book.insert(alone, peers[2], Arc::new(record())).expect("a valid record");
    assert_eq!(leader.propose(alone, &state, &book, 8), [], "it has just begun to listen again");
}

#[test]
fn a_leader_that_has_just_started_gives_members_time_to_be_heard() {
    let candidates = vec![Candidate { peer: PeerId([1; 32]), priority: 0 }];
    let spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    let eviction = spec.timing.eviction.duration();
    let mut state = RunState::new(Arc::new(spec), &[10; 3]);
    let entry =
        Entry { proposer: PeerId([1; 32]), decision: Decision::Admit { peer: MEMBER, stage: StageIndex(0) } };
    state.apply(LogIndex(0), Hash::default(), Some(&entry));

    let (mut leader, mut book, start) = (Orchestrator::default(), Book::default(), Instant::from_nanos(1));
    let mut propose = |now| {
        // A candidate hears itself.
        book.insert(now, PeerId([1; 32]), Arc::new(record())).expect("a valid record");
        leader.propose(now, &state, &book, 8)
    };
    assert_eq!(propose(start), []);
    assert_eq!(propose(start + (eviction - Duration::from_nanos(1))), []);
    let evicted = Decision::Evict { peer: MEMBER, reason: EvictReason::Silent };
    assert_eq!(propose(start + eviction), [evicted]);
}

#[test]
fn leaders_that_follow_upon_each_other_put_no_deadline_off() {
    let (stage, epoch) = (StageIndex(0), Epoch(0));
    let candidates = vec![Candidate { peer: MEMBER, priority: 0 }];
    let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    spec.pipeline.stages = 1;
    let (deadline, heartbeat) = (spec.timing.epoch_deadline.duration(), spec.timing.heartbeat.duration());
    let mut state = RunState::new(Arc::new(spec), &[10]);
    let open = Decision::OpenEpoch { stage, epoch, base: Hash::default(), members: vec![(MEMBER, 1)] };
    for (index, decision) in [Decision::Admit { peer: MEMBER, stage }, open].into_iter().enumerate() {
        let entry = Entry { proposer: MEMBER, decision };
        state.apply(LogIndex(index as u64), Hash::default(), Some(&entry));
    }
    let (mut candidate, mut book, start) = (Orchestrator::default(), Book::default(), Instant::from_nanos(1));
    candidate.follow(start, &state, &book);
    let record = Arc::new(PeerRecord { miner: true, ..record() });
    let hear = |book: &mut Book, at| book.insert(at, MEMBER, Arc::clone(&record)).expect("a valid record");
    hear(&mut book, start);
    candidate.follow(start, &state, &book);
    let leads = start + deadline * CUTOFF_DEADLINES;
    hear(&mut book, leads);
    candidate.handle_leadership(leads);
    assert_eq!(candidate.propose(leads, &state, &book, 8), [], "what was announced to others comes again");
    let informed = leads + heartbeat * (ANNOUNCE_HEARTBEATS_MAX + 1);
    hear(&mut book, informed);
    let proposed = candidate.propose(informed, &state, &book, 8);
    assert!(proposed.contains(&Decision::Cutoff { stage, epoch }), "{proposed:?}");
}

#[test]
fn an_epoch_that_opens_again_forgets_what_was_submitted_before() {
    let (stage, epoch, base) = (StageIndex(0), Epoch(0), Hash::default());
    let candidates = vec![Candidate { peer: PeerId([1; 32]), priority: 0 }];
    let spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    let mut state = RunState::new(Arc::new(spec), &[10; 3]);
    let open = Decision::OpenEpoch { stage, epoch, base, members: vec![(MEMBER, 1)] };
    for (index, decision) in [Decision::Admit { peer: MEMBER, stage }, open].into_iter().enumerate() {
        state.apply(LogIndex(index as u64), base, Some(&Entry { proposer: MEMBER, decision }));
    }
    let training = state.stage(stage).and_then(Stage::training).expect("it has opened");
    let dealt = training.deal.samples_of(MEMBER);
    let manifest = crate::wire::message::Manifest {
        peer: MEMBER,
        stage,
        epoch,
        base,
        samples: u32::try_from(dealt.len()).expect("few"),
        sample_set: sample_set_hash(&dealt),
        dealt: sample_set_hash(&dealt),
        receipt_root: base,
        receipts: base,
        loss_micro: None,
        partitions: Vec::new(),
    };
    let mut leader = Orchestrator::default();
    leader.handle_manifest(Arc::new(manifest.into()));
    leader.handle_opened(StageIndex(1));
    assert!(leader.submission(stage, training, MEMBER).is_some(), "another stage opened");
    leader.handle_opened(stage);
    assert_eq!(leader.submission(stage, training, MEMBER), None);
}
