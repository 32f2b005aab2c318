//! What peers may send is hostile: no bytes make the core panic, and a value has one encoding only.
//!
//! Three kinds of input go through the doors that a driver uses: arbitrary bytes; the valid messages of
//! [`examples`] with bytes changed, inserted and cut off; and such messages inside an envelope whose signature
//! is right, so that the damage gets past the signature to the decoder behind it.

mod examples;

use std::sync::Arc;

use examples::{identity, peer, run, spec};
use iota_protocol::equivocation::{Equivocation, MessageKind};
use iota_protocol::join::{Credential, Invite, Role};
use iota_protocol::log::{LogBytes, MemoryStorage};
use iota_protocol::merge::evidence::Evidence;
use iota_protocol::miner::Action;
use iota_protocol::no_confidence::NoConfidence;
use iota_protocol::peer::{Peer, Roles};
use iota_protocol::receipts::{Receipt, Received, decode_receipts, encode_receipts, merkle_root};
use iota_protocol::run_state::RunState;
use iota_protocol::scores::ScoresExport;
use iota_protocol::spec::WireDtype;
use iota_protocol::wire::envelope::signed_bytes;
use iota_protocol::wire::frame::{Direction, PushAck, PushHeader, PushRefusal, check_payload};
use iota_protocol::wire::message::{
    ContributionFault, Decision, DigestReport, Entry, EvictReason, FaultKind, LackRecord, Manifest,
    ManifestAnnounce, MergeMessage, MirrorRecord, MomentsRecord, PeerRecord, Request, Response, StateOffer,
    Submission, Topic, WeightsRecord,
};
use iota_protocol::wire::{DecodeError, Payload, decode, encode, seal};
use iota_protocol::{Epoch, Hash, Instant, LogIndex, PartitionIndex, PeerId, RunSpec, SampleId, StageIndex};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// More than any message here has.
const LIMIT: usize = 1 << 20;
const NOW: Instant = Instant::from_nanos(1_000_000_000);

type TestPeer = Peer<MemoryStorage<LogBytes>>;

/// Peer `i`, a miner that knows that there is more of the log than it has, and what it asked in consequence.
fn curious(i: u8) -> (TestPeer, Vec<u64>) {
    let (storage, roles) = (MemoryStorage::default(), Roles { miner: true, validator: false });
    let mut peer = Peer::new(Arc::new(spec()), identity(i), roles, &[100, 100, 100], 1, storage);
    let record = seal(&identity(7), run(), &examples::record());
    peer.handle_gossip(NOW, Topic::Records, &record).expect("a valid record");
    let mut asked = Vec::new();
    while let Some(action) = peer.poll_action() {
        if let Action::Request { id, .. } = action {
            asked.push(id);
        }
    }
    (peer, asked)
}

/// Offers bytes at every door. The outcome is not of interest, only that there is one.
fn offer_everywhere(bytes: &[u8]) {
    for number in [1, 5] {
        let (mut peer, asked) = curious(number);
        for topic in Topic::all(spec().stages()) {
            let _ = peer.handle_gossip(NOW, topic, bytes);
        }
        for from in [2, 6] {
            let _ = peer.handle_request(NOW, examples::peer(from), 1, bytes);
        }
        for id in asked {
            let _ = peer.handle_response(NOW, id, Some(bytes));
        }
        while peer.poll_action().is_some() {}
    }
    if let Ok(header) = PushHeader::parse(run(), bytes) {
        let _ = check_payload(&header, bytes, Hash::of(bytes));
        let _ = curious(5).0.handle_push(NOW, peer(6), &header);
    }
    let _ = PushAck::parse(bytes);
    let _ = ScoresExport::open(run(), bytes);
    if let Ok(receipts) = decode_receipts(bytes) {
        let _ = merkle_root(&receipts);
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u16,
    sender: PeerId,
    payload: ByteBuf,
    signature: ByteBuf,
}

/// An envelope of `kind` around any bytes, signed by peer 6 as if they were valid.
fn sign_anything(kind: &str, payload: &[u8]) -> Vec<u8> {
    let signature = identity(6).sign(&signed_bytes(1, kind, run(), payload));
    encode(&Envelope {
        version: 1,
        sender: peer(6),
        payload: ByteBuf::from(payload),
        signature: ByteBuf::from(signature),
    })
}

/// Records with a credential of each kind.
fn entitled() -> [PeerRecord; 2] {
    [Credential::Invite(examples::invite()), Credential::Work(examples::work())]
        .map(|credential| PeerRecord { credential: Some(credential), ..examples::record() })
}

/// Every valid message, in the bytes that travel.
fn valid() -> Vec<Vec<u8>> {
    let mut all = vec![
        seal(&identity(6), run(), &examples::record()),
        seal(&identity(5), run(), &examples::merge_manifest()),
        seal(&identity(6), run(), &examples::merge_digest()),
        seal(&identity(8), run(), &examples::merge_verdict()),
        seal(&identity(8), run(), &examples::merge_evaluation()),
        encode(&examples::manifest()),
        encode(&examples::control_update()),
        encode(&examples::push_header()),
        encode(&PushAck::Accepted(31)),
        encode_receipts(&examples::receipts()),
        examples::scores_export().seal(&identity(1)),
        examples::push_payload(),
    ];
    all.extend(entitled().iter().map(|record| seal(&identity(5), run(), record)));
    all.extend(examples::requests().iter().map(|(_, request)| encode(request)));
    all.extend(examples::responses().iter().map(|(_, response)| encode(response)));
    all.extend(examples::decisions().into_iter().map(|(_, decision)| encode(&examples::entry(decision))));
    all
}

/// One change of some bytes. Positions count modulo the length.
#[derive(Clone, Debug)]
enum Change {
    Replace(usize, u8),
    Insert(usize, u8),
    Remove(usize),
    CutAt(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0_usize..4096;
    prop_oneof![
        4 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        2 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        2 => at.clone().prop_map(Change::Remove),
        1 => at.prop_map(Change::CutAt),
    ]
}

fn apply(bytes: &mut Vec<u8>, changes: &[Change]) {
    for change in changes {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match *change {
            Change::Replace(at, byte) => bytes[at % length] = byte,
            Change::Insert(at, byte) => bytes.insert(at % length, byte),
            Change::Remove(at) => drop(bytes.remove(at % length)),
            Change::CutAt(at) => bytes.truncate(at % length),
        }
    }
}

fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

fn peer_id() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(PeerId)
}

fn credential() -> impl Strategy<Value = Credential> {
    let role = prop_oneof![Just(Role::Miner), Just(Role::Validator)];
    let invite =
        (role, option::of(any::<u32>()), vec(any::<u8>(), 0..80)).prop_map(|(role, until, signature)| {
            Credential::Invite(Invite { role, until: until.map(Epoch), signature: signature.into() })
        });
    prop_oneof![any::<u64>().prop_map(Credential::Work), invite]
}

fn record() -> impl Strategy<Value = PeerRecord> {
    let weights = (any::<u16>(), any::<u32>(), hash()).prop_map(|(stage, version, hash)| WeightsRecord {
        stage: StageIndex(stage),
        version: Epoch(version),
        hash,
    });
    let counts = (any::<u32>(), any::<u32>(), any::<u16>(), any::<u32>(), any::<u64>(), 0_u16..4);
    let text = || vec(".{0,40}", 0..4);
    let moments = (any::<u32>(), option::of(hash()))
        .prop_map(|(version, hash)| MomentsRecord { version: Epoch(version), hash });
    let mirror = (any::<u16>(), any::<u32>(), hash(), any::<bool>(), option::of(moments)).prop_map(
        |(stage, version, state, failing, moments)| {
            let (stage, version) = (StageIndex(stage), Epoch(version));
            MirrorRecord { stage, version, state, failing, moments }
        },
    );
    let lacks = any::<(u16, u32)>()
        .prop_map(|(stage, epoch)| LackRecord { stage: StageIndex(stage), epoch: Epoch(epoch) });
    let held = (option::of(weights), option::of(mirror), option::of(lacks), vec(peer_id(), 0..3));
    let held = (held, option::of(credential()), option::of(no_confidence()));
    (any::<(u64, u64, bool, bool, bool, u64)>(), text(), text(), held, counts).prop_map(
        |(
            (sequence, incarnation, miner, leaving, validator, log_length),
            multiaddrs,
            data_addresses,
            ((weights, mirror, lacks, queue), credential, no_confidence),
            counts,
        )| {
            let (done, assigned, credits, speed_milli, tokens, wire_version_max) = counts;
            PeerRecord {
                sequence,
                incarnation,
                miner,
                leaving,
                validator,
                credential,
                multiaddrs,
                data_addresses,
                log_length,
                weights,
                done,
                assigned,
                credits,
                speed_milli,
                tokens,
                mirror,
                lacks,
                queue,
                no_confidence,
                wire_version_max,
            }
        },
    )
}

fn no_confidence() -> impl Strategy<Value = NoConfidence> {
    (peer_id(), peer_id(), any::<u32>(), vec(any::<u8>(), 0..70)).prop_map(
        |(voter, leader, epoch, signature)| NoConfidence {
            voter,
            leader,
            epoch: Epoch(epoch),
            signature: ByteBuf::from(signature),
        },
    )
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let names = (peer_id(), hash(), hash(), hash(), hash(), hash());
    let moments = (option::of(hash()), option::of(hash()));
    (names, any::<(u16, u32, u64, u32)>(), option::of(any::<i64>()), moments, vec(hash(), 0..5)).prop_map(
        |(names, numbers, loss_micro, (moments, moments_after), partitions)| {
            let (peer, base, sample_set, dealt, receipt_root, receipts) = names;
            let (stage, epoch, nonce, samples) = numbers;
            let (stage, epoch) = (StageIndex(stage), Epoch(epoch));
            Manifest {
                peer,
                stage,
                epoch,
                nonce,
                base,
                samples,
                sample_set,
                dealt,
                receipt_root,
                receipts,
                loss_micro,
                moments,
                moments_after,
                partitions,
            }
        },
    )
}

fn merge_message() -> impl Strategy<Value = MergeMessage> {
    let announce = (any::<u64>(), manifest())
        .prop_map(|(sequence, manifest)| MergeMessage::Manifest(ManifestAnnounce { sequence, manifest }));
    let kind = select(vec![FaultKind::Invalid, FaultKind::Unavailable, FaultKind::Outlier]);
    let fault = (peer_id(), kind).prop_map(|(submitter, kind)| ContributionFault { submitter, kind });
    let merged = vec((any::<u32>().prop_map(PartitionIndex), hash()), 0..5);
    let report = (any::<(u64, u16, u32, u16)>(), merged, vec(fault, 0..3)).prop_map(
        |((sequence, stage, epoch, attempt), merged, faults)| {
            let (stage, epoch) = (StageIndex(stage), Epoch(epoch));
            MergeMessage::Digest(DigestReport { sequence, stage, epoch, attempt, merged, faults })
        },
    );
    prop_oneof![announce, report]
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let reports = || vec(vec(any::<u8>(), 0..9).prop_map(ByteBuf::from), 0..4);
    prop_oneof![
        (any::<u32>(), reports()).prop_map(|(partition, reports)| {
            Evidence::Digests { partition: PartitionIndex(partition), reports }
        }),
        reports().prop_map(|reports| Evidence::Faults { reports }),
        (0..3_usize, any::<[Vec<u8>; 2]>()).prop_map(|(kind, messages)| {
            let kind = [MessageKind::Merge, MessageKind::Record, MessageKind::Vote][kind];
            Evidence::Equivocation(Equivocation { kind, messages: messages.map(ByteBuf::from) })
        }),
        any::<Vec<u8>>().prop_map(|record| Evidence::Overstatement(ByteBuf::from(record))),
    ]
}

/// Holds that the state of a run takes evidence of any bytes without a panic, and believes none of it.
fn convicts_nobody(evidence: &Evidence) -> Result<(), TestCaseError> {
    let state = RunState::new(Arc::new(spec()), &[100, 100, 100]);
    for reason in [EvictReason::WrongMerge, EvictReason::InvalidContribution] {
        prop_assert!(state.check_evidence(peer(5), reason, evidence).is_err());
    }
    if let Evidence::Equivocation(equivocation) = evidence {
        prop_assert!(state.check_equivocation(peer(5), equivocation).is_err());
    }
    if let Evidence::Overstatement(record) = evidence {
        prop_assert!(state.check_overstatement(peer(5), record).is_err());
    }
    Ok(())
}

fn decision() -> impl Strategy<Value = Decision> {
    let stage = || any::<u16>().prop_map(StageIndex);
    let epoch = || any::<u32>().prop_map(Epoch);
    let reason = prop_oneof![
        Just(EvictReason::Silent),
        Just(EvictReason::Left),
        Just(EvictReason::InvalidContribution),
        Just(EvictReason::WrongMerge),
        Just(EvictReason::Equivocation),
        Just(EvictReason::OverstatedSpeed),
    ];
    let submission = (peer_id(), hash(), any::<u32>(), option::of(any::<i64>()), option::of(hash()))
        .prop_map(|(peer, manifest, samples, loss_micro, moments_after)| Submission {
            peer,
            manifest,
            samples,
            loss_micro,
            moments_after,
        });
    prop_oneof![
        (peer_id(), stage()).prop_map(|(peer, stage)| Decision::Admit { peer, stage }),
        (peer_id(), reason, option::of(evidence())).prop_map(|(peer, reason, evidence)| Decision::Evict {
            peer,
            reason,
            evidence
        }),
        (peer_id(), any::<u16>()).prop_map(|(peer, stage)| Decision::Move { peer, stage: StageIndex(stage) }),
        (peer_id(), stage(), any::<u32>()).prop_map(|(peer, stage, speed_milli)| Decision::LimitSpeed {
            peer,
            stage,
            speed_milli
        }),
        (peer_id(), vec(no_confidence(), 0..4))
            .prop_map(|(leader, votes)| Decision::Depose { leader, votes }),
        (stage(), epoch(), hash(), vec((peer_id(), any::<u32>()), 0..5))
            .prop_map(|(stage, epoch, base, members)| Decision::OpenEpoch { stage, epoch, base, members }),
        (stage(), epoch(), peer_id()).prop_map(|(stage, epoch, peer)| Decision::Release {
            stage,
            epoch,
            peer
        }),
        (stage(), epoch()).prop_map(|(stage, epoch)| Decision::Cutoff { stage, epoch }),
        (stage(), epoch()).prop_map(|(stage, epoch)| Decision::Skip { stage, epoch }),
        (stage(), epoch(), any::<u16>(), vec(submission, 0..4)).prop_map(
            |(stage, epoch, attempt, submitters)| Decision::MergePlan { stage, epoch, attempt, submitters }
        ),
        (stage(), epoch(), any::<u16>(), any::<u32>(), peer_id()).prop_map(
            |(stage, epoch, attempt, partition, owner)| {
                let partition = PartitionIndex(partition);
                Decision::MergeReassign { stage, epoch, attempt, partition, owner }
            }
        ),
        (stage(), epoch(), any::<u16>(), vec(peer_id(), 0..4))
            .prop_map(|(stage, epoch, attempt, lost)| Decision::MergeAbort { stage, epoch, attempt, lost }),
        (stage(), epoch(), any::<u16>(), vec(hash(), 0..5), vec(peer_id(), 0..4)).prop_map(
            |(stage, epoch, attempt, partitions, outliers)| Decision::MergeOutcome {
                stage,
                epoch,
                attempt,
                partitions,
                outliers
            }
        ),
        any::<u16>().prop_map(|version| Decision::Upgrade { version }),
        Just(Decision::Finish),
    ]
}

fn received() -> impl Strategy<Value = Received> {
    let signature = vec(any::<u8>(), 0..70);
    (peer_id(), hash(), any::<u64>(), signature).prop_map(|(from, hash, nonce, signature)| Received {
        from,
        hash,
        nonce,
        signature: ByteBuf::from(signature),
    })
}

fn receipt() -> impl Strategy<Value = Receipt> {
    let blobs = (option::of(received()), option::of(hash()), option::of(received()), option::of(hash()));
    let numbers = (any::<u64>(), any::<[u32; 3]>());
    (numbers, blobs, option::of(any::<i64>())).prop_map(
        |((sample, [inner_step, gradient_step, turn]), blobs, loss_micro)| Receipt {
            sample: SampleId(sample),
            input: blobs.0,
            output: blobs.1,
            output_gradient: blobs.2,
            input_gradient: blobs.3,
            loss_micro,
            inner_step,
            gradient_step,
            turn,
        },
    )
}

fn push_header() -> impl Strategy<Value = PushHeader> {
    (any::<(bool, bool, u16, u32, u64, [u32; 3])>(), received()).prop_map(
        |((forward, single, stage, epoch, sample, shape), received)| PushHeader {
            version: 1,
            run: run(),
            direction: if forward { Direction::Forward } else { Direction::Backward },
            stage: StageIndex(stage),
            epoch: Epoch(epoch),
            sample: SampleId(sample),
            dtype: if single { WireDtype::F32 } else { WireDtype::Bf16 },
            shape,
            hash: received.hash,
            nonce: received.nonce,
            signature: received.signature,
        },
    )
}

/// Holds that a value reads back from its bytes, that these are its only bytes, and that none may follow.
fn round_trips<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    value: &T,
) -> Result<(), TestCaseError> {
    let bytes = encode(value);
    let read: T = decode(&bytes, LIMIT).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(&read, value);
    prop_assert_eq!(encode(&read), bytes.clone());
    let longer = [bytes.as_slice(), &[0]].concat();
    prop_assert_eq!(decode::<T>(&longer, LIMIT), Err(DecodeError::Malformed));
    let limit = bytes.len() - 1;
    prop_assert_eq!(decode::<T>(&bytes, limit), Err(DecodeError::TooLong { limit, got: bytes.len() }));
    Ok(())
}

/// Holds that bytes are refused, or are the one encoding of what they decode to.
fn is_refused_or_canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = decode::<T>(bytes, LIMIT) {
        prop_assert_eq!(encode(&value), bytes);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        offer_everywhere(&bytes);
        for kind in [PeerRecord::KIND, MergeMessage::KIND, ScoresExport::KIND] {
            offer_everywhere(&sign_anything(kind, &bytes));
        }
    }

    #[test]
    fn damaged_messages_never_panic(which in any::<prop::sample::Index>(), changes in vec(change(), 1..4)) {
        let mut bytes = which.get(&valid()).clone();
        apply(&mut bytes, &changes);
        offer_everywhere(&bytes);
        is_refused_or_canonical::<Request>(&bytes)?;
        is_refused_or_canonical::<Response>(&bytes)?;
        is_refused_or_canonical::<Entry>(&bytes)?;
        is_refused_or_canonical::<Manifest>(&bytes)?;
    }

    #[test]
    fn damage_behind_a_valid_signature_never_panics(changes in vec(change(), 0..4)) {
        let [invited, worked] = entitled();
        let payloads = [
            (PeerRecord::KIND, encode(&examples::record())),
            (PeerRecord::KIND, encode(&invited)),
            (PeerRecord::KIND, encode(&worked)),
            (MergeMessage::KIND, encode(&examples::merge_manifest())),
            (MergeMessage::KIND, encode(&examples::merge_digest())),
            (MergeMessage::KIND, encode(&examples::merge_verdict())),
            (MergeMessage::KIND, encode(&examples::merge_evaluation())),
            (ScoresExport::KIND, encode(&examples::scores_export())),
        ];
        for (kind, mut payload) in payloads {
            apply(&mut payload, &changes);
            offer_everywhere(&sign_anything(kind, &payload));
            is_refused_or_canonical::<PeerRecord>(&payload)?;
            is_refused_or_canonical::<MergeMessage>(&payload)?;
            is_refused_or_canonical::<ScoresExport>(&payload)?;
        }
    }

    #[test]
    fn any_number_in_a_valid_message_is_safe(
        record in record(), message in merge_message(), header in push_header(), from: u64, version: u32, stage: u16,
    ) {
        let state = Request::State { stage: StageIndex(stage), version: Epoch(version) };
        offer_everywhere(&seal(&identity(6), run(), &record));
        offer_everywhere(&seal(&identity(6), run(), &message));
        offer_everywhere(&encode(&header));
        offer_everywhere(&encode(&Request::Log { from: LogIndex(from) }));
        offer_everywhere(&encode(&state));
    }

    #[test]
    fn damaged_evidence_never_panics(evidence in evidence(), changes in vec(change(), 1..4)) {
        convicts_nobody(&evidence)?;
        for example in [examples::digests(), examples::faults()] {
            let mut bytes = encode(&example);
            apply(&mut bytes, &changes);
            if let Ok(evidence) = decode::<Evidence>(&bytes, LIMIT) {
                convicts_nobody(&evidence)?;
            }
        }
    }

    #[test]
    fn gossip_and_decisions_round_trip(record in record(), message in merge_message(), decision in decision()) {
        round_trips(&record)?;
        round_trips(&message)?;
        round_trips(&examples::entry(decision))?;
    }

    #[test]
    fn requests_pushes_and_receipts_round_trip(
        header in push_header(), receipts in vec(receipt(), 0..4), parts in vec(hash(), 0..4),
        credits: u16, from: u64,
    ) {
        round_trips(&header)?;
        round_trips(&receipts)?;
        prop_assert_eq!(decode_receipts(&encode_receipts(&receipts)), Ok(receipts));
        round_trips(&Request::Log { from: LogIndex(from) })?;
        let offer = StateOffer { stage: StageIndex(0), version: Epoch(1), weights: examples::hash("w"), parts };
        round_trips(&Response::State(offer))?;
        prop_assert_eq!(PushAck::parse(&PushAck::Accepted(credits).to_bytes()), Ok(PushAck::Accepted(credits)));
    }
}

#[test]
fn every_example_round_trips() {
    for (_, request) in examples::requests() {
        round_trips(&request).expect("round trip");
    }
    for (_, response) in examples::responses() {
        round_trips(&response).expect("round trip");
    }
    round_trips(&examples::vote(1)).expect("round trip");
    round_trips::<RunSpec>(&spec()).expect("round trip");
    let refused = PushAck::Refused(PushRefusal::NotFinite);
    assert_eq!(PushAck::parse(&refused.to_bytes()), Ok(refused));
    assert_eq!(examples::members(&[(5, 1), (6, 1)]).len(), 2);
}

#[test]
fn other_bytes_for_the_same_value_are_refused() {
    let canonical = encode(&Request::Log { from: LogIndex(3) });
    let long_integer = [&canonical[..canonical.len() - 1], &[0x18, 3]].concat();
    assert_eq!(decode::<Request>(&long_integer, LIMIT), Err(DecodeError::NotCanonical));
    // The same fields in a map of indefinite length, and in another order.
    let weights = WeightsRecord { stage: StageIndex(1), version: Epoch(2), hash: examples::hash("w") };
    let canonical = encode(&weights);
    assert_eq!(canonical[0], 0xa3, "a map of three");
    let indefinite = [&[0xbf], &canonical[1..], &[0xff]].concat();
    assert_eq!(decode::<WeightsRecord>(&indefinite, LIMIT), Err(DecodeError::NotCanonical));
    let (stage, rest) = canonical[1..].split_at(7);
    let reordered = [&[0xa3], rest, stage].concat();
    assert_eq!(decode::<WeightsRecord>(&reordered, LIMIT), Err(DecodeError::NotCanonical));
}
