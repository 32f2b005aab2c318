use std::time::Duration;

use super::*;
use crate::id::LogIndex;
use crate::limits::{QUEUE_SILENCES, REPLICAS_MAX, WIRE_VERSION};
use crate::run_state::StateEvent;
use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
use crate::wire::message::{Entry, PeerRecord, SavedMoments, Submission, WeightsRecord};

pub(super) const MEMBER: PeerId = PeerId([2; 32]);
pub(super) const ROOM: Room = Room { decisions: 8, bytes: PROPOSALS_PENDING_BYTES_MAX };

pub(super) fn record() -> PeerRecord {
    PeerRecord { wire_version_max: WIRE_VERSION, ..PeerRecord::new(1) }
}

/// Applies a decision as the next entry of the log.
pub(crate) fn apply(state: &mut RunState, decision: Decision) -> Vec<StateEvent> {
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
    assert_eq!(leader.propose(start, &state, &book, ROOM), []);
    assert_eq!(leader.propose(alone, &state, &book, ROOM), [], "two of three are out of reach");
    book.insert(alone, peers[2], Arc::new(record())).expect("a valid record");
    assert_eq!(leader.propose(alone, &state, &book, ROOM), [], "it has just begun to listen again");
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
        leader.propose(now, &state, &book, ROOM)
    };
    assert_eq!(propose(start), []);
    assert_eq!(propose(start + (eviction - Duration::from_nanos(1))), []);
    let evicted = Decision::Evict { peer: MEMBER, reason: EvictReason::Silent, evidence: None };
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
    candidate.follow(start, &state, &book, None);
    let record = Arc::new(PeerRecord { miner: true, ..record() });
    let hear = |book: &mut Book, at| book.insert(at, MEMBER, Arc::clone(&record)).expect("a valid record");
    hear(&mut book, start);
    candidate.follow(start, &state, &book, None);
    let leads = start + deadline * CUTOFF_DEADLINES;
    hear(&mut book, leads);
    candidate.handle_leadership(leads);
    assert_eq!(candidate.propose(leads, &state, &book, ROOM), [], "what was announced to others comes again");
    let informed = leads + heartbeat * (ANNOUNCE_HEARTBEATS_MAX + 1);
    hear(&mut book, informed);
    let proposed = candidate.propose(informed, &state, &book, ROOM);
    assert!(proposed.contains(&Decision::Cutoff { stage, epoch }), "{proposed:?}");
}

#[test]
fn who_contributed_is_asked_before_who_did_not_to_compute_a_partition() {
    let peers: Vec<PeerId> = (1..=6).map(|i| PeerId([i; 32])).collect();
    let mut spec = RunSpec::default();
    spec.pipeline.stages = 2;
    let mut state = RunState::new(Arc::new(spec), &[10; 2]);
    for (i, peer) in peers.iter().enumerate() {
        apply(&mut state, Decision::Admit { peer: *peer, stage: StageIndex(u16::from(i == 5)) });
    }
    let submission = |peer: &PeerId| Submission {
        peer: *peer,
        manifest: Hash::of(&peer.0),
        samples: 1,
        loss_micro: None,
        moments_after: None,
    };
    let submitters: Vec<Submission> = peers.iter().take(4).map(submission).collect();
    let plan = Plan { attempt: 0, seed: Hash::default(), submitters, owners: Vec::new() };
    let further = further_owners(&state, StageIndex(0), &plan, PartitionIndex(0), &peers[..2]);
    let mut contributed = further[..2].to_vec();
    contributed.sort_unstable();
    assert_eq!(contributed, peers[2..4]);
    assert_eq!(further[2..], peers[4..], "then the stage, then the other");
}

/// A stage of four members in an epoch, of whom these have got so many samples done; time passes until somebody is released, or has no
/// more than one deadline left.
fn released_first(done: impl Fn(u64) -> [u32; 4]) -> Option<(u64, Vec<Decision>)> {
    let ((stage, mut state), epoch) = (one_stage(), Epoch(0));
    let deadline = state.spec().timing.epoch_deadline.duration().as_secs();
    let members: Vec<PeerId> = (1..=4).map(|i| PeerId([i; 32])).collect();
    for peer in &members {
        apply(&mut state, Decision::Admit { peer: *peer, stage });
    }
    let members: Vec<(PeerId, u32)> = members.into_iter().map(|peer| (peer, 1)).collect();
    let open = Decision::OpenEpoch { stage, epoch, base: Hash::default(), members: members.clone() };
    apply(&mut state, open);
    let (mut leader, mut book) = (Orchestrator::default(), Book::default());
    let weights = Some(WeightsRecord { stage, version: epoch, hash: Hash::default() });
    (1..deadline).find_map(|second| {
        let now = Instant::from_nanos(1_000_000_000 * second);
        for ((peer, _), done) in members.iter().zip(done(second)) {
            let record = PeerRecord { miner: true, sequence: second, weights, done, ..record() };
            book.insert(now, *peer, Arc::new(record)).expect("a valid record");
        }
        let decisions = leader.propose(now, &state, &book, ROOM);
        (!decisions.is_empty()).then_some((second, decisions))
    })
}

#[test]
fn who_got_nothing_done_is_released_once_nothing_gets_done_any_more() {
    let stalled = RunSpec::default().timing.eviction.duration().as_secs() * u64::from(STALLED_SILENCES);
    let (stage, epoch) = (StageIndex(0), Epoch(0));
    let release = |i| Decision::Release { stage, epoch, peer: PeerId([i; 32]) };
    let until = |last: u64, second: u64| u32::try_from(second.min(last)).expect("few");
    let stops = |last| move |second| [until(last, second), until(last, second), until(last, second), 0];
    assert_eq!(released_first(stops(5)), Some((5 + stalled, vec![release(4)])));

    let goes_on = |second: u64| [until(5, second), 5, 5, u32::from(second >= 5 + stalled)];
    assert_eq!(released_first(goes_on), None, "it was slow");
    let slow = |second: u64| [u32::from(second > 20), u32::from(second > 20), u32::from(second > 20), 0];
    assert_eq!(released_first(slow), Some((41, vec![release(4)])), "a sample takes everybody twenty seconds");
    let most = |second: u64| [until(5, second), 0, 0, 0];
    assert_eq!(released_first(most), None, "three of four wait for something else");
    let half = |second: u64| [until(5, second), until(5, second), 0, 0];
    assert_eq!(released_first(half), Some((5 + stalled, vec![release(3), release(4)])));
}

/// When the leader of a run of one stage with one member cuts its epoch off, in deadlines of the spec, if the member says
/// that it does so many thousandths of a sample per second.
fn cut_off_after(speed_milli: u32) -> u32 {
    let (stage, epoch) = (StageIndex(0), Epoch(0));
    let candidates = vec![Candidate { peer: MEMBER, priority: 0 }];
    let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    spec.pipeline.stages = 1;
    spec.training.samples_per_epoch = 60;
    let deadline = spec.timing.epoch_deadline.duration();
    let mut state = RunState::new(Arc::new(spec), &[10]);
    apply(&mut state, Decision::Admit { peer: MEMBER, stage });
    let open = Decision::OpenEpoch { stage, epoch, base: Hash::default(), members: vec![(MEMBER, 1)] };
    apply(&mut state, open);
    let (mut leader, mut book, start) = (Orchestrator::default(), Book::default(), Instant::from_nanos(1));
    let weights = Some(WeightsRecord { stage, version: epoch, hash: Hash::default() });
    (0..100)
        .find(|deadlines| {
            let now = start + deadline * *deadlines;
            let sequence = u64::from(*deadlines) + 1;
            let record = PeerRecord { miner: true, sequence, weights, speed_milli, ..record() };
            book.insert(now, MEMBER, Arc::new(record)).expect("a valid record");
            leader.propose(now, &state, &book, ROOM).contains(&Decision::Cutoff { stage, epoch })
        })
        .expect("it is cut off at last")
}

#[test]
fn what_is_proposed_and_not_decided_leaves_less_room() {
    let mut room = Room::beside([100, 200].into_iter());
    assert_eq!(room.decisions, PROPOSALS_PENDING_MAX - 2);
    assert!(!room.take(PROPOSALS_PENDING_BYTES_MAX - 299), "a byte too many");
    assert!(room.take(PROPOSALS_PENDING_BYTES_MAX - 300) && !room.take(1));
    let many = Room::beside(std::iter::repeat_n(1, PROPOSALS_PENDING_MAX + 1));
    assert_eq!(many.decisions, 0);
}

#[test]
fn an_epoch_has_the_time_that_its_members_need() {
    let seconds = u32::try_from(RunSpec::default().timing.epoch_deadline.duration().as_secs()).expect("few");
    assert_eq!(cut_off_after(0), CUTOFF_DEADLINES, "nobody has said anything");
    // 60 samples within the deadline of the spec, and a quarter of it.
    assert_eq!(cut_off_after(60_000 / seconds * 4), CUTOFF_DEADLINES);
    assert_eq!(cut_off_after(60_000 / seconds), CUTOFF_DEADLINES * 4, "four times what it should take");
    assert_eq!(cut_off_after(1), CUTOFF_DEADLINES * 16, "no more than that");
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
        nonce: 1,
        base,
        samples: u32::try_from(dealt.len()).expect("few"),
        sample_set: sample_set_hash(&dealt),
        dealt: sample_set_hash(&dealt),
        receipt_root: base,
        receipts: base,
        loss_micro: None,
        moments: None,
        moments_after: None,
        partitions: Vec::new(),
    };
    let mut leader = Orchestrator::default();
    leader.handle_manifest(Arc::new(manifest.into()));
    leader.handle_opened(StageIndex(1));
    assert!(leader.submission(stage, training, MEMBER).is_some(), "another stage opened");
    leader.handle_opened(stage);
    assert_eq!(leader.submission(stage, training, MEMBER), None);
}

/// A run of one stage that is full but for the members left out, with one candidate.
fn full(missing: usize) -> RunState {
    let candidates = vec![Candidate { peer: MEMBER, priority: 0 }];
    let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    spec.pipeline.stages = 1;
    let mut state = RunState::new(Arc::new(spec), &[10]);
    for i in 0..REPLICAS_MAX - missing {
        apply(
            &mut state,
            Decision::Admit { peer: PeerId(Hash::of(&i.to_le_bytes()).0), stage: StageIndex(0) },
        );
    }
    state
}

/// What a leader and those it hears do as time goes on.
struct Waiting {
    leader: Orchestrator,
    book: Book,
    now: Instant,
    sequence: u64,
}

impl Waiting {
    fn new() -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        Self { leader: Orchestrator::default(), book: Book::default(), now, sequence: 0 }
    }

    fn says(&mut self, peer: PeerId, miner: bool) {
        self.sequence += 1;
        let record = PeerRecord { miner, sequence: self.sequence, ..record() };
        self.book.insert(self.now, peer, Arc::new(record)).expect("a valid record");
    }

    /// A heartbeat later, of all members and of these peers that wait.
    fn later(&mut self, state: &RunState, asking: &[PeerId]) -> Vec<Decision> {
        self.now = self.now + state.spec().timing.heartbeat.duration();
        for peer in state.members().keys().chain(asking).copied().collect::<Vec<_>>() {
            self.says(peer, true);
        }
        self.says(MEMBER, false);
        self.leader_admits(state)
    }

    /// Whom the leader admits now.
    fn leader_admits(&mut self, state: &RunState) -> Vec<Decision> {
        let decisions = self.leader.propose(self.now, state, &self.book, ROOM);
        decisions.into_iter().filter(|decision| matches!(decision, Decision::Admit { .. })).collect()
    }
}

#[test]
fn who_has_waited_longest_is_admitted_first_whatever_its_key_and_though_it_starts_again() {
    let [first, second, third] = [PeerId([9; 32]), PeerId([5; 32]), PeerId([1; 32])];
    let mut state = full(0);
    let mut waiting = Waiting::new();
    assert_eq!(waiting.later(&state, &[first]), [], "no stage has room");
    waiting.later(&state, &[first, second]);
    waiting.later(&state, &[first, second, third]);
    assert_eq!(waiting.leader.queue(&state), [first, second, third]);
    // The first is away for longer than an eviction takes, and starts again.
    let eviction = state.spec().timing.eviction.duration();
    let gone_at = waiting.now;
    while waiting.now.since(gone_at) <= eviction * 2 {
        waiting.later(&state, &[second, third]);
    }
    assert_eq!(waiting.leader.queue(&state)[0], first, "its place is kept");
    let evicted = *state.members().keys().next().expect("a member");
    apply(&mut state, Decision::Evict { peer: evicted, reason: EvictReason::Left, evidence: None });
    waiting.says(evicted, false);
    let admit = |peer| Decision::Admit { peer, stage: StageIndex(0) };
    assert_eq!(waiting.later(&state, &[first, second, third]), [admit(first)], "one place, one peer");
    apply(&mut state, admit(first));
    assert_eq!(waiting.later(&state, &[second, third]), []);
    assert_eq!(waiting.leader.queue(&state), [second, third]);
}

#[test]
fn a_waiter_that_stays_silent_or_asks_no_more_holds_nobody_up() {
    let [first, second, third] = [PeerId([1; 32]), PeerId([7; 32]), PeerId([9; 32])];
    let state = full(0);
    let mut waiting = Waiting::new();
    waiting.later(&state, &[first, second]);
    waiting.later(&state, &[first, second, third]);
    waiting.says(first, false);
    assert_eq!(waiting.later(&state, &[second, third]), []);
    assert_eq!(waiting.leader.queue(&state), [second, third]);
    let (gone_at, eviction) = (waiting.now, state.spec().timing.eviction.duration());
    while waiting.now.since(gone_at) <= eviction {
        waiting.later(&state, &[third]);
    }
    let mut room = full(1);
    assert_eq!(waiting.later(&room, &[third]), [Decision::Admit { peer: third, stage: StageIndex(0) }]);
    apply(&mut room, Decision::Admit { peer: third, stage: StageIndex(0) });
    while waiting.now.since(gone_at) <= eviction * (QUEUE_SILENCES + 3) {
        waiting.later(&room, &[]);
    }
    assert_eq!(waiting.leader.queue(&room), []);
}

/// The places that a leader gives those who ask for one as miners and as validators, all from the same address, in a run
/// that lets `per_address` of one address in.
fn given(per_address: u32, asking: &[(PeerId, bool)], rounds: u32) -> Vec<Decision> {
    let candidates = vec![Candidate { peer: MEMBER, priority: 0 }];
    let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    (spec.pipeline.stages, spec.join.per_address) = (1, per_address);
    let state = RunState::new(Arc::new(spec), &[10]);
    let mut waiting = Waiting::new();
    let mut decisions = Vec::new();
    for round in 0..rounds {
        // One more asks in each round, before anything is decided.
        waiting.now = waiting.now + Duration::from_millis(100);
        waiting.says(MEMBER, false);
        for (peer, miner) in asking.iter().take(round as usize + 1) {
            waiting.sequence += 1;
            let data_addresses = vec!["192.0.2.7:4001".to_owned()];
            let (sequence, miner, validator) = (waiting.sequence, *miner, !*miner);
            let record = PeerRecord { miner, validator, sequence, data_addresses, ..record() };
            waiting.book.insert(waiting.now, *peer, Arc::new(record)).expect("a valid record");
        }
        decisions.extend(waiting.leader.propose(waiting.now, &state, &waiting.book, ROOM));
    }
    decisions.retain(|decision| matches!(decision, Decision::Admit { .. } | Decision::Enlist { .. }));
    decisions
}

#[test]
fn no_more_get_a_place_at_one_address_than_the_spec_says_whatever_they_ask_for() {
    let [a, b, c] = [PeerId([9; 32]), PeerId([5; 32]), PeerId([1; 32])];
    let admit = |peer| Decision::Admit { peer, stage: StageIndex(0) };
    let enlist = |peer| Decision::Enlist { peer };
    let asking = [(a, true), (b, false), (c, true)];
    assert_eq!(given(0, &asking, 3), [admit(a), enlist(b), admit(c)], "there is no limit");
    assert_eq!(given(2, &asking, 3), [admit(a), enlist(b)]);
    assert_eq!(given(1, &asking, 3), [admit(a)], "what is proposed and not decided counts");
    let validators = [(a, false), (b, false), (c, false)];
    assert_eq!(given(2, &validators, 3), [enlist(a), enlist(b)]);
}

/// A run of one stage, of which `MEMBER` is the candidate.
fn one_stage() -> (StageIndex, RunState) {
    let candidates = vec![Candidate { peer: MEMBER, priority: 0 }];
    let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    spec.pipeline.stages = 1;
    (StageIndex(0), RunState::new(Arc::new(spec), &[10]))
}

/// A stage whose replicas each say so many seconds after a merge that they have its weights: after how many seconds each epoch
/// but the first is opened, and with how many of them.
fn opened(delays: &[u64], epochs: u32) -> Vec<(u64, usize)> {
    let (stage, mut state) = one_stage();
    let replicas: Vec<PeerId> = (11..).zip(delays).map(|(i, _)| PeerId([i; 32])).collect();
    for peer in &replicas {
        apply(&mut state, Decision::Admit { peer: *peer, stage });
    }
    let (mut leader, mut book) = (Orchestrator::default(), Book::default());
    let (mut now, mut sequence, mut opened) = (Instant::from_nanos(1), 0, Vec::new());
    for epoch in (0..epochs).map(Epoch) {
        let mut open = None;
        // Everybody has come by the end of the epoch.
        for second in 0..=250 {
            now = now + Duration::from_secs(1);
            for (peer, delay) in replicas.iter().zip(delays) {
                let version = if epoch.0 == 0 || second >= *delay { epoch } else { Epoch(epoch.0 - 1) };
                let weights = Some(WeightsRecord { stage, version, hash: Hash::default() });
                sequence += 1;
                let record = PeerRecord { miner: true, sequence, weights, ..record() };
                book.insert(now, *peer, Arc::new(record)).expect("a valid record");
            }
            book.insert(now, MEMBER, Arc::new(record())).expect("a valid record");
            for decision in leader.propose(now, &state, &book, ROOM) {
                if let (None, Decision::OpenEpoch { members, .. }) = (&open, &decision) {
                    open = Some((second, members.clone()));
                    apply(&mut state, decision);
                }
            }
        }
        let (second, members) = open.expect("it is opened");
        opened.push((second, members.len()));
        merge(&mut state, epoch, &members);
    }
    opened.split_off(1)
}

/// The only stage's members have merged what they trained in this epoch.
fn merge(state: &mut RunState, epoch: Epoch, members: &[(PeerId, u32)]) {
    let (stage, attempt, manifest) = (StageIndex(0), 0, Hash::default());
    let submitted = |(peer, _): &(PeerId, u32)| Submission {
        peer: *peer,
        manifest,
        samples: 1,
        loss_micro: None,
        moments_after: None,
    };
    let submitters = members.iter().map(submitted).collect();
    apply(state, Decision::MergePlan { stage, epoch, attempt, submitters });
    let partitions = vec![Hash::default(); state.stages()[0].partitions];
    apply(state, Decision::MergeOutcome { stage, epoch, attempt, partitions, outliers: Vec::new() });
    assert_eq!(state.stages()[0].version, epoch.next());
}

#[test]
fn replicas_that_are_slow_to_be_ready_are_waited_for_once_that_was_seen() {
    assert_eq!(RunSpec::default().timing.ready_grace.duration(), Duration::from_secs(5));
    assert_eq!(opened(&[1, 2, 4], 3), [(4, 3); 2], "within what the spec gives");
    assert_eq!(opened(&[1, 8, 8], 3), [(5, 1), (8, 3)]);
    assert_eq!(opened(&[1, 200, 200], 3), [(5, 1), (80, 1)], "16 times that, and no more");
}

#[test]
fn a_minority_that_is_late_to_say_that_it_is_ready_holds_nobody_up() {
    assert_eq!(opened(&[1, 1, 60], 4), [(5, 2); 3]);
    assert_eq!(opened(&[1, 60], 4), [(5, 1); 3], "so does half of a stage");
    assert_eq!(opened(&[2, 2, 60], 4), [(5, 2), (8, 2), (8, 2)], "4 times what the others take");
}

#[test]
fn a_merge_during_which_a_candidate_was_away_says_nothing_of_the_next() {
    let (stage, mut state) = one_stage();
    apply(&mut state, Decision::Admit { peer: MEMBER, stage });
    let (mut readiness, mut book, start) = (Readiness::default(), Book::default(), Instant::from_nanos(1));
    let says = |book: &mut Book, at, version| {
        let record =
            PeerRecord { weights: Some(WeightsRecord { stage, version, hash: Hash::default() }), ..record() };
        book.insert(at, MEMBER, Arc::new(record)).expect("a valid record");
    };
    let later = start + Duration::from_secs(3);
    for epoch in (0..2).map(Epoch) {
        says(&mut book, start, epoch);
        let members = vec![(MEMBER, 1)];
        let open = Decision::OpenEpoch { stage, epoch, base: Hash::default(), members: members.clone() };
        apply(&mut state, open);
        readiness.observe(start, &state, &book);
        merge(&mut state, epoch, &members);
        readiness.observe(start, &state, &book);
        if epoch == Epoch(0) {
            readiness.handle_pause();
        }
        says(&mut book, later, epoch.next());
        readiness.observe(later, &state, &book);
        let expected = (epoch == Epoch(1)).then(|| Duration::from_secs(3));
        assert_eq!(readiness.usual(stage), expected, "{epoch:?}");
    }
}

#[test]
fn a_leader_whose_fellow_candidates_are_heard_seldom_goes_on_but_blames_nobody_meanwhile() {
    let second = Duration::from_secs(1);
    let peers: Vec<PeerId> = (1..=3).map(|i| PeerId([i; 32])).collect();
    let candidates = peers.iter().map(|peer| Candidate { peer: *peer, priority: 0 }).collect();
    let spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    assert_eq!(spec.timing.eviction.duration(), second * 6);
    let mut state = RunState::new(Arc::new(spec), &[10; 3]);
    let member = PeerId([9; 32]);
    apply(&mut state, Decision::Admit { peer: member, stage: StageIndex(0) });
    let (mut leader, mut book, start) = (Orchestrator::default(), Book::default(), Instant::from_nanos(1));
    let mut proposed = BTreeMap::new();
    for passed in 0..=44 {
        let now = start + second * passed;
        // It hears itself and the member each second, and the other candidates every fourth.
        let late = passed.is_multiple_of(4);
        let heard = [(peers[0], true), (peers[1], late), (peers[2], late), (member, passed <= 37)];
        for (peer, _) in heard.into_iter().filter(|(_, heard)| *heard) {
            let record = PeerRecord { miner: peer == member, sequence: u64::from(passed) + 1, ..record() };
            book.insert(now, peer, Arc::new(record)).expect("a valid record");
        }
        proposed.insert(passed, leader.propose(now, &state, &book, ROOM));
    }
    assert_eq!(proposed[&43], [], "the member is silent for too long, but its own connection may be lost");
    let evicted = Decision::Evict { peer: member, reason: EvictReason::Silent, evidence: None };
    assert_eq!(proposed[&44], [evicted], "it was not, and what it has waited for counts");
}

#[test]
fn a_decision_is_proposed_again_after_two_rounds_of_those_who_decide() {
    let candidates = vec![Candidate { peer: PeerId([1; 32]), priority: 0 }];
    let spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    let mut state = RunState::new(Arc::new(spec), &[10; 3]);
    apply(&mut state, Decision::Admit { peer: MEMBER, stage: StageIndex(0) });
    let far = Some(Smoothed::with(None, Duration::from_millis(500)));
    for (round_trip, seconds) in [(None, 2), (far, 12)] {
        let (mut leader, mut book) = (Orchestrator::default(), Book::default());
        leader.handle_round_trip(round_trip);
        let mut proposes = |second: u64| {
            let now = Instant::from_nanos(1) + Duration::from_secs(second);
            book.insert(now, PeerId([1; 32]), Arc::new(record())).expect("a valid record");
            !leader.propose(now, &state, &book, ROOM).is_empty()
        };
        // From the sixth second on it is decided that the member is silent.
        let proposed: Vec<u64> = (0..=18).filter(|second| proposes(*second)).collect();
        let expected: Vec<u64> = (6..=18).step_by(seconds).collect();
        assert_eq!(proposed, expected, "{round_trip:?}");
    }
}

#[test]
fn who_is_heard_at_long_intervals_gets_a_place_between_two_of_them() {
    let slow = PeerId([9; 32]);
    let mut waiting = Waiting::new();
    let mut room = full(0);
    let eviction = room.spec().timing.eviction.duration();
    // Its records come every eighth second, which is more than the least that costs a place.
    for second in 0..=40 {
        let asking: &[PeerId] = if second % 8 == 0 { &[slow] } else { &[] };
        assert_eq!(waiting.later(&room, asking), [], "no stage has room");
    }
    (0..7).for_each(|_| drop(waiting.later(&room, &[])));
    let silence = waiting.book.silence(waiting.now, slow).expect("it was heard");
    assert!(silence > eviction, "{silence:?}");
    let evicted = *room.members().keys().next().expect("a member");
    apply(&mut room, Decision::Evict { peer: evicted, reason: EvictReason::Left, evidence: None });
    waiting.says(evicted, false);
    assert_eq!(waiting.leader_admits(&room), [Decision::Admit { peer: slow, stage: StageIndex(0) }]);
}

#[test]
fn who_contributed_to_the_newest_weights_is_waited_for_though_its_record_is_older() {
    let (stage, mut state) = one_stage();
    let [quick, unheard, idle] = [11, 12, 13].map(|i| PeerId([i; 32]));
    for peer in [quick, unheard, idle] {
        apply(&mut state, Decision::Admit { peer, stage });
    }
    for epoch in [Epoch(0), Epoch(1)] {
        let members = vec![(quick, 1), (unheard, 1)];
        let base = Hash::default();
        apply(&mut state, Decision::OpenEpoch { stage, epoch, base, members: members.clone() });
        merge(&mut state, epoch, &members);
    }
    let (mut leader, mut book, start) = (Orchestrator::default(), Book::default(), Instant::from_nanos(1));
    let grace = state.spec().timing.ready_grace.duration();
    let mut opens = |after: Duration, heard: &[(PeerId, u32)]| {
        let now = start + after;
        let nanos = u64::try_from(after.as_nanos()).expect("seconds");
        for (peer, version) in heard {
            let weights = Some(WeightsRecord { stage, version: Epoch(*version), hash: Hash::default() });
            let record = PeerRecord { miner: true, sequence: nanos + 1, weights, ..record() };
            book.insert(now, *peer, Arc::new(record)).expect("a valid record");
        }
        book.insert(now, MEMBER, Arc::new(record())).expect("a valid record");
        let wanted = leader.propose(now, &state, &book, ROOM);
        wanted.into_iter().find_map(|decision| match decision {
            Decision::OpenEpoch { members, .. } => Some(members.len()),
            _ => None,
        })
    };
    let heard = [(quick, 2), (unheard, 0), (idle, 0)];
    assert_eq!(opens(Duration::ZERO, &heard), None);
    assert_eq!(opens(grace / 2, &heard), None, "it was told of an epoch ago");
    assert_eq!(opens(grace / 2 + Duration::from_millis(1), &[(unheard, 2)]), Some(2), "the idle one is not");
}

#[test]
fn miners_of_a_resumed_run_come_to_the_stage_whose_moments_they_have() {
    let candidates = vec![Candidate { peer: MEMBER, priority: 0 }];
    let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    let homes = [(11, 1), (12, 1), (13, 0), (14, 2), (15, 0), (16, 2)];
    spec.start.epoch = 8;
    spec.start.moments = homes
        .iter()
        .map(|&(i, stage)| SavedMoments {
            stage: StageIndex(stage),
            peer: PeerId([i; 32]),
            hash: Hash::default(),
        })
        .collect();
    let mut state = RunState::new(Arc::new(spec), &[10; 3]);
    let (mut leader, mut book, now) = (Orchestrator::default(), Book::default(), Instant::from_nanos(1));
    let placed = |leader: &mut Orchestrator, book: &mut Book, state: &mut RunState, i: u8| {
        for (peer, miner) in [(MEMBER, false), (PeerId([i; 32]), true)] {
            let record = PeerRecord { miner, ..record() };
            book.insert(now, peer, Arc::new(record)).expect("a valid record");
        }
        let wanted = leader.propose(now, state, book, ROOM);
        let admitted = wanted.into_iter().find(|decision| matches!(decision, Decision::Admit { .. }));
        apply(state, admitted.clone().expect("there is room"));
        match admitted {
            Some(Decision::Admit { stage, .. }) => stage.0,
            other => panic!("{other:?}"),
        }
    };
    for (i, home) in homes {
        assert_eq!(placed(&mut leader, &mut book, &mut state, i), home, "{i}");
    }
    assert_eq!(placed(&mut leader, &mut book, &mut state, 17), 0, "who has none goes where fewest are");
}
