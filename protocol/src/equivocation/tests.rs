use std::time::Duration;

use super::*;
use crate::id::{Epoch, Hash, Identity, LogIndex, StageIndex};
use crate::log::certificate::vote_bytes;
use crate::log::{MemoryStorage, Vote};
use crate::peer::{Peer, Roles};
use crate::run_state::StateEvent;
use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
use crate::time::Instant;
use crate::wire::gossip::Gossip;
use crate::wire::message::{DigestReport, Entry, Topic};
use crate::wire::{DecodeError, decode, encode, seal, seal_in};

const RUN: RunId = RunId([9; 32]);
const S: StageIndex = StageIndex(0);
const NOW: Instant = Instant::from_nanos(1_000_000_000);

fn identity(i: u8) -> Identity {
    Identity::from_secret([i; 32])
}

fn peer(i: u8) -> PeerId {
    identity(i).peer()
}

/// A record; `says` is what two of one number differ in.
fn record(number: u64, says: u64) -> PeerRecord {
    PeerRecord { miner: true, tokens: says, ..PeerRecord::new(number) }
}

fn report(number: u64, says: u64) -> MergeMessage {
    let (stage, epoch, attempt) = (S, Epoch(0), 0);
    let merged = vec![(crate::id::PartitionIndex(0), Hash::of(&says.to_le_bytes()))];
    MergeMessage::Digest(DigestReport { sequence: number, stage, epoch, attempt, merged, faults: Vec::new() })
}

fn sealed<T: Payload>(i: u8, message: &T) -> ByteBuf {
    ByteBuf::from(seal(&identity(i), RUN, message))
}

fn records(messages: [ByteBuf; 2]) -> Result<u64, EquivocationError> {
    Equivocation { kind: MessageKind::Record, messages }.check(RUN, 1, peer(5))
}

#[test]
fn two_messages_under_one_number_convict_who_signed_both() {
    let (one, other) = (sealed(5, &record(7, 1)), sealed(5, &record(7, 2)));
    assert_eq!(records([one.clone(), other.clone()]), Ok(7));
    assert_eq!(records([other, one]), Ok(7), "in any order");
    let messages = [sealed(5, &report(9, 1)), sealed(5, &report(9, 2))];
    assert_eq!(Equivocation { kind: MessageKind::Merge, messages }.check(RUN, 1, peer(5)), Ok(9));
    assert_eq!([MessageKind::Record, MessageKind::Merge].map(MessageKind::name), ["record", "merge"]);
}

/// A vote of candidate number `candidate` with the key of `i`.
fn vote(i: u8, candidate: u16, index: u64, says: u64) -> ByteBuf {
    let (index, chain) = (LogIndex(index), Hash::of(&says.to_le_bytes()));
    let signature = ByteBuf::from(identity(i).sign(&vote_bytes(RUN, index, chain)));
    ByteBuf::from(encode(&Vote { candidate, index, chain, signature }))
}

#[test]
fn two_votes_for_one_entry_convict_who_signed_both() {
    let votes = |messages| Equivocation { kind: MessageKind::Vote, messages }.check(RUN, 1, peer(5));
    assert_eq!(votes([vote(5, 0, 7, 1), vote(5, 0, 7, 2)]), Ok(7));
    assert_eq!(votes([vote(5, 0, 7, 1), vote(5, 0, 7, 1)]), Err(EquivocationError::Same(7)));
    assert_eq!(votes([vote(5, 0, 7, 1), vote(5, 1, 7, 1)]), Err(EquivocationError::Same(7)), "of one log");
    assert_eq!(votes([vote(5, 0, 7, 1), vote(5, 0, 8, 2)]), Err(EquivocationError::Number(7, 8)));
    let signature = Err(EquivocationError::Message(1, RejectReason::Signature));
    assert_eq!(votes([vote(5, 0, 7, 1), vote(6, 0, 7, 2)]), signature, "of another candidate");
    assert_eq!(MessageKind::Vote.name(), "vote");
    let one = vote(5, 0, 7, 1);
    for at in 0..one.len() {
        let mut changed = one.clone();
        changed[at] ^= 1;
        assert!(votes([one.clone(), changed]).is_err(), "byte {at}");
    }
}

#[test]
fn what_was_signed_once_proves_nothing_however_often_it_is_shown() {
    let one = sealed(5, &record(7, 1));
    assert_eq!(records([one.clone(), one.clone()]), Err(EquivocationError::Same(7)));
    let again = ByteBuf::from(seal_in(2, &identity(5), RUN, &record(7, 1)));
    let twice = Equivocation { kind: MessageKind::Record, messages: [one, again] };
    assert_eq!(twice.check(RUN, 2, peer(5)), Err(EquivocationError::Same(7)), "in two versions");
    let undecided = RejectReason::Version { sender: peer(5), got: 2, spoken: Versions::FIRST };
    assert_eq!(twice.check(RUN, 1, peer(5)), Err(EquivocationError::Message(1, undecided)));
}

#[test]
fn messages_of_another_peer_run_kind_or_number_prove_nothing() {
    let one = || sealed(5, &record(7, 1));
    let signature = |index| Err(EquivocationError::Message(index, RejectReason::Signature));
    assert_eq!(records([one(), sealed(6, &record(7, 2))]), Err(EquivocationError::Sender(1, peer(6))));
    let others = [sealed(6, &record(7, 1)), sealed(6, &record(7, 2))];
    assert_eq!(records(others), Err(EquivocationError::Sender(0, peer(6))));
    let elsewhere = ByteBuf::from(seal(&identity(5), RunId([8; 32]), &record(7, 2)));
    assert_eq!(records([elsewhere, one()]), signature(0));
    assert_eq!(records([one(), sealed(5, &report(7, 2))]), signature(1), "kinds are counted apart");
    let mislabelled = [sealed(5, &record(7, 1)), sealed(5, &record(7, 2))];
    let mislabelled = Equivocation { kind: MessageKind::Merge, messages: mislabelled };
    assert_eq!(mislabelled.check(RUN, 1, peer(5)), signature(0));
    assert_eq!(records([one(), sealed(5, &record(8, 2))]), Err(EquivocationError::Number(7, 8)));
}

#[test]
fn no_byte_of_a_message_can_be_changed_to_accuse_its_author() {
    let one = sealed(5, &record(7, 1));
    for at in 0..one.len() {
        let mut changed = one.clone();
        changed[at] ^= 1;
        assert!(records([one.clone(), changed]).is_err(), "byte {at}");
    }
    let longer = ByteBuf::from([one.as_slice(), &[0]].concat());
    assert!(records([one.clone(), longer]).is_err());
    assert!(records([one, ByteBuf::new()]).is_err());
}

#[test]
fn one_message_is_no_pair() {
    let one = sealed(5, &record(7, 1));
    let kind = MessageKind::Record;
    let pair = encode(&Equivocation { kind, messages: [one.clone(), one] });
    assert!(decode::<Equivocation>(&pair, pair.len()).is_ok());
    // An array of two is one of one.
    let at = pair.windows(9).position(|bytes| bytes == b"messages\x82").expect("the array") + 8;
    for count in [0x80, 0x81, 0x83] {
        let other = [&pair[..at], &[count], &pair[at + 1..]].concat();
        assert_eq!(decode::<Equivocation>(&other, other.len()), Err(DecodeError::Malformed), "{count:x}");
    }
}

/// The run of candidate 1, in which these peers have places.
struct Run(RunState);

impl Run {
    fn of(peers: &[u8]) -> Self {
        let mut run = Self(RunState::new(Arc::new(spec()), &[1000]));
        for &i in peers {
            run.apply(Decision::Admit { peer: peer(i), stage: S });
        }
        run
    }

    fn apply(&mut self, decision: Decision) -> Vec<StateEvent> {
        let entry = Entry { proposer: peer(1), decision };
        self.0.apply(LogIndex(self.0.applied()), Hash::default(), Some(&entry))
    }

    fn seal<T: Payload>(&self, i: u8, message: &T) -> Arc<[u8]> {
        seal(&identity(i), self.0.spec().run_id(), message).into()
    }
}

fn spec() -> RunSpec {
    let candidates = vec![Candidate { peer: peer(1), priority: 0 }];
    let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
    spec.pipeline.stages = 1;
    spec
}

/// Notes a record of peer `i`; whether that convicts it.
fn note(watch: &mut Watch, run: &Run, i: u8, number: u64, says: u64) -> bool {
    let envelope = run.seal(i, &record(number, says));
    watch.note(&run.0, Signed { sender: peer(i), kind: MessageKind::Record, number, envelope: &envelope })
}

#[test]
fn a_second_message_under_a_number_convicts_and_the_same_again_does_not() {
    let (mut run, mut watch) = (Run::of(&[5, 6]), Watch::default());
    for number in [7, 8, 7] {
        assert!(!note(&mut watch, &run, 5, number, 1), "{number}");
    }
    assert!(!note(&mut watch, &run, 6, 7, 2), "numbers of peers are their own");
    assert_eq!(watch.decisions(&run.0), []);
    assert!(note(&mut watch, &run, 5, 7, 2), "though a newer one has come since");
    assert!(!note(&mut watch, &run, 5, 8, 2), "it is convicted");
    let decisions = watch.decisions(&run.0);
    let [evict] = decisions.as_slice() else { panic!("one: {decisions:?}") };
    let evicted = [StateEvent::Evicted(peer(5), EvictReason::Equivocation)];
    assert_eq!(run.apply(evict.clone()), evicted);
    assert_eq!(run.apply(Decision::Admit { peer: peer(5), stage: S }), [], "for good");
    assert_eq!(watch.decisions(&run.0), []);
    watch.observe(&run.0);
    assert!(watch.convicted.is_empty() && watch.messages.keys().all(|(of, _)| *of == peer(6)));
}

#[test]
fn an_eviction_for_equivocation_is_void_without_what_was_signed() {
    let mut run = Run::of(&[5, 6]);
    let pair = |i: u8, says: u64| {
        let messages = [1, says].map(|says| ByteBuf::from(run.seal(i, &record(7, says)).to_vec()));
        Some(Evidence::Equivocation(Equivocation { kind: MessageKind::Record, messages }))
    };
    let evict = |reason, evidence| Decision::Evict { peer: peer(5), reason, evidence };
    let reports = Evidence::Faults { reports: vec![ByteBuf::from(run.seal(5, &report(7, 1)).to_vec())] };
    let (holds, same, others) = (pair(5, 2), pair(5, 1), pair(6, 2));
    for (reason, evidence) in [
        (EvictReason::Equivocation, None),
        (EvictReason::Equivocation, same),
        (EvictReason::Equivocation, others),
        (EvictReason::Equivocation, Some(reports)),
        (EvictReason::WrongMerge, holds.clone()),
        (EvictReason::InvalidContribution, holds.clone()),
        (EvictReason::Silent, holds.clone()),
    ] {
        assert_eq!(run.apply(evict(reason, evidence)), [], "{reason}");
    }
    let evicted = [StateEvent::Evicted(peer(5), EvictReason::Equivocation)];
    assert_eq!(run.apply(evict(EvictReason::Equivocation, holds.clone())), evicted);
    assert_eq!(run.apply(evict(EvictReason::Equivocation, holds)), [], "it has no place");
}

#[test]
fn a_validator_that_signs_two_messages_under_one_number_is_none_any_more_for_good() {
    let (mut run, mut watch) = (Run::of(&[6]), Watch::default());
    assert!(!note(&mut watch, &run, 5, 7, 1) && !note(&mut watch, &run, 5, 7, 2), "it has no part yet");
    for i in [5, 7] {
        run.apply(Decision::Enlist { peer: peer(i) });
        assert!(!note(&mut watch, &run, i, 8, 1));
    }
    assert!(note(&mut watch, &run, 5, 8, 2));
    let decisions = watch.decisions(&run.0);
    let [dismiss] = decisions.as_slice() else { panic!("one: {decisions:?}") };
    let dismissed = [StateEvent::Dismissed(peer(5), DismissReason::Equivocation)];
    assert_eq!(run.apply(dismiss.clone()), dismissed);
    assert_eq!(run.apply(dismiss.clone()), [], "it validates no more");
    assert_eq!(run.apply(Decision::Enlist { peer: peer(5) }), [], "for good");
    assert!(run.0.validators().contains(&peer(7)), "it has said one thing");
    watch.observe(&run.0);
    assert!(watch.convicted.is_empty() && watch.messages.keys().all(|(of, _)| *of == peer(7)));
}

#[test]
fn a_dismissal_that_proves_something_is_void_without_proof() {
    let mut run = Run::of(&[6]);
    run.apply(Decision::Enlist { peer: peer(5) });
    let pair = |i: u8, says: u64| {
        let messages = [1, says].map(|says| ByteBuf::from(run.seal(i, &record(7, says)).to_vec()));
        Some(Equivocation { kind: MessageKind::Record, messages })
    };
    let (holds, same, others) = (pair(5, 2), pair(5, 1), pair(6, 2));
    let dismiss = |reason, evidence| Decision::Dismiss { peer: peer(5), reason, evidence };
    for (reason, evidence) in [
        (DismissReason::Equivocation, None),
        (DismissReason::Equivocation, same),
        (DismissReason::Equivocation, others),
        (DismissReason::WrongVerdict, None),
        (DismissReason::WrongVerdict, holds.clone()),
        (DismissReason::Silent, holds.clone()),
        (DismissReason::Left, holds.clone()),
    ] {
        assert_eq!(run.apply(dismiss(reason, evidence)), [], "{reason}");
    }
    let dismissed = [StateEvent::Dismissed(peer(5), DismissReason::Equivocation)];
    assert_eq!(run.apply(dismiss(DismissReason::Equivocation, holds)), dismissed);
}

#[test]
fn what_is_kept_is_the_newest_of_members_and_bounded() {
    let (mut run, mut watch) = (Run::of(&[5, 6]), Watch::default());
    assert!(!note(&mut watch, &run, 4, 7, 1) && !note(&mut watch, &run, 4, 7, 2), "no member");
    let most = WATCHED_MESSAGES_MAX as u64;
    for number in 1..=most + 1 {
        assert!(!note(&mut watch, &run, 5, number, 1));
    }
    assert!(!note(&mut watch, &run, 5, 1, 2), "too long ago");
    let kept = |watch: &Watch| watch.messages.values().map(BTreeMap::len).sum::<usize>();
    assert_eq!((kept(&watch), watch.order.len()), (WATCHED_MESSAGES_MAX, WATCHED_MESSAGES_MAX));
    let long: Arc<[u8]> = vec![0; EQUIVOCATION_BYTES_MAX + 1].into();
    let signed = |number, envelope| Signed { sender: peer(6), kind: MessageKind::Merge, number, envelope };
    assert!(!watch.note(&run.0, signed(1, &long)));
    assert_eq!(kept(&watch), WATCHED_MESSAGES_MAX, "two of these fit no entry");
    // Whoever it is that sends too much, memory is bounded: the oldest go first.
    watch.bytes += WATCHED_BYTES_MAX - 1000;
    assert!(!note(&mut watch, &run, 6, 1, 1));
    assert!(kept(&watch) < WATCHED_MESSAGES_MAX + 1);
    assert!(watch.messages.contains_key(&(peer(6), MessageKind::Record)));
    watch.bytes -= WATCHED_BYTES_MAX - 1000;
    let left = |i| Decision::Evict { peer: peer(i), reason: EvictReason::Left, evidence: None };
    for i in [5, 6] {
        run.apply(left(i));
    }
    watch.observe(&run.0);
    assert_eq!((kept(&watch), watch.order.len(), watch.bytes), (0, 0, 0));
}

#[test]
fn who_is_one_too_many_to_be_convicted_is_when_the_others_are_out() {
    let peers: Vec<u8> = (10..).take(EQUIVOCATIONS_MAX + 1).collect();
    let (mut run, mut watch) = (Run::of(&peers), Watch::default());
    let convicted =
        peers.iter().filter(|i| !note(&mut watch, &run, **i, 7, 1) && note(&mut watch, &run, **i, 7, 2));
    assert_eq!(convicted.count(), EQUIVOCATIONS_MAX, "no room for another");
    let mut evicted = 0;
    while let Some(evict) = watch.decisions(&run.0).first().cloned() {
        evicted += run.apply(evict).len();
        watch.observe(&run.0);
    }
    assert_eq!(evicted, EQUIVOCATIONS_MAX);
    let last = peers.last().copied().expect("many");
    assert!(note(&mut watch, &run, last, 7, 2), "its first message is kept still");
}

#[test]
fn the_longest_pair_fits_a_log_entry() {
    let long = ByteBuf::from(vec![0; EQUIVOCATION_BYTES_MAX]);
    let equivocation = Equivocation { kind: MessageKind::Record, messages: [long.clone(), long] };
    let (evidence, reason) = (Some(Evidence::Equivocation(equivocation)), EvictReason::Equivocation);
    let decision = Decision::Evict { peer: peer(5), reason, evidence };
    let entry = encode(&Entry { proposer: peer(1), decision });
    assert!(entry.len() <= crate::limits::ENTRY_BYTES_MAX, "{}", entry.len());
}

#[test]
fn a_leader_that_hears_both_evicts_and_refuses_the_second_as_a_replay() {
    let (spec, none) = (Arc::new(spec()), Roles { miner: false, validator: false });
    let (run, topic) = (spec.run_id(), Topic::Records);
    let mut leader = Peer::new(spec, identity(1), none, &[1000], 1, MemoryStorage::default());
    let mut now = NOW;
    let mut pass = |leader: &mut Peer<_>| {
        for _ in 0..40 {
            now = now + Duration::from_millis(50);
            leader.handle_timeout(now);
            while leader.poll_action().is_some() {}
        }
        now
    };
    let now = pass(&mut leader);
    let say = |leader: &mut Peer<_>, now, i: u8, number, says| {
        leader.handle_gossip(now, topic, &seal(&identity(i), run, &record(number, says)))
    };
    for i in [5, 6] {
        assert_eq!(say(&mut leader, now, i, 7, 1), Ok(()));
    }
    let now = pass(&mut leader);
    assert_eq!([5, 6].map(|i| leader.state().stage_of(peer(i))), [Some(S); 2]);
    for i in [5, 6] {
        assert_eq!(say(&mut leader, now, i, 8, 1), Ok(()));
        let again = say(&mut leader, now, i, 8, 1);
        assert_eq!(again, Err(RejectReason::Replay { got: 8, seen: 8 }), "in the same bytes");
    }
    let refused = say(&mut leader, now, 5, 8, 2).expect_err("a replay");
    assert!(refused == RejectReason::Replay { got: 8, seen: 8 } && refused.is_innocent());
    pass(&mut leader);
    assert_eq!(leader.state().eviction(peer(5)), Some(EvictReason::Equivocation));
    assert_eq!(leader.state().stage_of(peer(6)), Some(S), "it has said the same twice");
}

#[test]
fn a_message_whose_bytes_are_not_kept_is_not_compared() {
    let spec = spec();
    let electorate = crate::log::certificate::Electorate::new(&spec);
    let bytes = seal(&identity(5), spec.run_id(), &record(7, 1));
    let opened = Gossip::open(&electorate, Versions::FIRST, Topic::Records, &bytes).expect("valid");
    assert!(opened.signed().is_none());
    let opened = opened.keeping(&bytes);
    let signed = opened.signed().expect("kept");
    assert_eq!((signed.sender, signed.number, &**signed.envelope), (peer(5), 7, bytes.as_slice()));
}
