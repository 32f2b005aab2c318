//! The bytes of the wire format, held still.
//!
//! Each kind of message has a file in `fixtures/golden/`: comment lines that begin with `#`, then hexadecimal
//! digits in lines. A value that encodes to other bytes, or bytes that decode to another value, is a change of
//! the wire format. `IOTA_WRITE_GOLDEN=1 cargo test -p iota-protocol --test golden` writes the files anew; what
//! git then shows as changed is what other implementations will no longer understand.

#![expect(clippy::disallowed_methods, reason = "golden bytes are files, and tests may read them")]

mod examples;

use std::fmt::Debug;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use examples::{identity, peer, run, spec};
use iota_protocol::gauntlet::evaluation::evaluation_bytes;
use iota_protocol::join::{Credential, Role, invite_bytes};
use iota_protocol::log::certificate::{Electorate, vote_bytes};
use iota_protocol::merge::{owners, partition_range};
use iota_protocol::receipts::{decode_receipts, encode_receipts, merkle_root};
use iota_protocol::run_state::RunState;
use iota_protocol::samples::{Deal, epoch_samples};
use iota_protocol::scores::ScoresExport;
use iota_protocol::validation::verdict_bytes;
use iota_protocol::wire::frame::{PushAck, PushHeader, PushRefusal};
use iota_protocol::wire::message::{
    Decision, Entry, EvictReason, LackRecord, Manifest, MergeMessage, MirrorRecord, MomentsRecord,
    PeerRecord, Request, Response, Submission,
};
use iota_protocol::wire::{Payload, decode, encode, open, seal};
use iota_protocol::{Epoch, Hash, LogIndex, PeerId, RunSpec, StageIndex};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longer than any example.
const LIMIT: usize = 1 << 16;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden").join(name)
}

/// Compares `text` with the file called `name`, or writes it.
fn check_text(name: &str, text: &str) {
    let path = path(name);
    if std::env::var_os("IOTA_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("the golden file is writable");
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, expected, "{name} is not what it was; see the head of this file");
}

/// Compares `bytes` with the file `name.hex`, and gives back the bytes of the file.
fn check_bytes(name: &str, what: &str, bytes: &[u8]) -> Vec<u8> {
    let mut text = format!("# {what}\n");
    for line in bytes.chunks(32) {
        let _ = writeln!(text, "{}", hex::encode(line));
    }
    check_text(&format!("{name}.hex"), &text);
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    hex::decode(digits).expect("hexadecimal digits")
}

/// Holds that `value` encodes to the file and the file decodes to `value`.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, what: &str, value: &T) {
    let bytes = check_bytes(name, what, &encode(value));
    assert_eq!(decode::<T>(&bytes, LIMIT).as_ref(), Ok(value), "{name} decodes to the value it was made of");
}

/// The same for a signed value, which is opened rather than decoded.
fn check_sealed<T: Payload + PartialEq + Debug>(name: &str, what: &str, sender: u8, value: &T) {
    let bytes = check_bytes(name, what, &seal(&identity(sender), run(), value));
    let opened = open::<T>(run(), &bytes).expect("a valid envelope");
    assert_eq!((opened.0, &opened.1), (peer(sender), value), "{name} opens to its sender and value");
}

#[test]
fn a_run_spec_and_its_run_id() {
    check::<RunSpec>("spec", "CBOR of spec.toml", &spec());
    check_bytes("run-id", "BLAKE3 of spec.hex", &run().0);
    check_bytes(
        "lineage",
        "BLAKE3 of spec.hex with the default mirror, which is the one it has",
        &spec().lineage().0,
    );
}

#[test]
fn keys_of_the_examples() {
    let mut text = "# peer: secret key, public key\n".to_owned();
    for i in 1..=7 {
        let _ = writeln!(text, "{i}: {} {}", hex::encode([i; 32]), peer(i));
    }
    check_text("keys.txt", &text);
}

#[test]
fn gossip_and_its_envelopes() {
    check::<PeerRecord>("record", "PeerRecord", &examples::record());
    check_sealed(
        "record-envelope",
        "Envelope of record.hex, kind record, from peer 5",
        5,
        &examples::record(),
    );
    let newer = PeerRecord { wire_version_max: 2, ..examples::record() };
    check::<PeerRecord>("record-newer", "The same PeerRecord of a program that speaks version 2", &newer);
    let (stage, version, state) = (StageIndex(1), Epoch(2), examples::hash("state 1"));
    let mirror = Some(MirrorRecord { stage, version, state, failing: false, moments: None });
    let mirrored = PeerRecord { mirror, ..examples::record() };
    check::<PeerRecord>(
        "record-mirror",
        "The same PeerRecord of a miner that has seen a state in the mirror",
        &mirrored,
    );
    let moments = Some(MomentsRecord { version, hash: Some(examples::hash("moments")) });
    let mirror = mirror.map(|mirror| MirrorRecord { moments, ..mirror });
    let mirrored = PeerRecord { mirror, ..examples::record() };
    check::<PeerRecord>(
        "record-moments",
        "The same PeerRecord of one that has brought its inner optimizer's moments there too",
        &mirrored,
    );
    let lacks = Some(LackRecord { stage, epoch: Epoch(1) });
    let lacking = PeerRecord { lacks, ..examples::record() };
    check::<PeerRecord>(
        "record-lacks",
        "The same PeerRecord of a miner that looks for a merge in vain",
        &lacking,
    );
    let invited =
        PeerRecord { credential: Some(Credential::Invite(examples::invite())), ..examples::record() };
    check::<PeerRecord>("record-invite", "The same PeerRecord of a miner that peer 7 invited", &invited);
    let signed = invite_bytes(run(), peer(5), Role::Miner, Some(Epoch(40)));
    check_bytes("invite-signed", "What that invite signs", &signed);
    let worked = PeerRecord { credential: Some(Credential::Work(examples::work())), ..examples::record() };
    check::<PeerRecord>(
        "record-work",
        "The same PeerRecord of peer 5 with a proof of work of 12 bits",
        &worked,
    );
    check::<Manifest>("manifest", "Manifest, as a blob", &examples::manifest());
    check::<MergeMessage>("merge-manifest", "MergeMessage with manifest.hex", &examples::merge_manifest());
    check::<MergeMessage>("merge-digest", "MergeMessage with a digest report", &examples::merge_digest());
    check::<MergeMessage>("merge-verdict", "MergeMessage with a verdict", &examples::merge_verdict());
    let verdict = examples::verdict();
    let signed = verdict_bytes(run(), &verdict.subject, verdict.finding);
    check_bytes("verdict-signed", "What that verdict signs", &signed);
    let evaluation = examples::merge_evaluation();
    check::<MergeMessage>("merge-evaluation", "MergeMessage with an evaluation", &evaluation);
    let evaluation = examples::evaluation();
    let signed = evaluation_bytes(run(), evaluation.epoch, evaluation.plan, &evaluation.said);
    check_bytes("evaluation-signed", "What that evaluation signs", &signed);
    let sealed = "Envelope of merge-digest.hex, kind merge, from peer 5";
    check_sealed("merge-envelope", sealed, 5, &examples::merge_digest());
    check("control-update", "ControlUpdate of two entries, certified", &examples::control_update());
}

#[test]
fn log_entries_votes_and_certificates() {
    for (name, decision) in examples::decisions() {
        check::<Entry>(&format!("entry-{name}"), "Entry, proposed by peer 1", &examples::entry(decision));
    }
    let (index, chain) = examples::head();
    check_bytes("chain", "Chain hash after the two entries of control-update.hex", &chain.0);
    check_bytes("vote-signed", "What a vote for that position signs", &vote_bytes(run(), index, chain));
    check("vote", "Vote of peer 1, candidate 0", &examples::vote(1));
    check("certificate", "Certificate of candidates 0 and 2 of three", &examples::certificate());
    assert_eq!(Electorate::new(&spec()).check(&examples::certificate()), Ok(()));
}

#[test]
fn the_state_of_a_run() {
    let (stage, epoch) = (StageIndex(1), Epoch(0));
    let admitted = [4, 5, 6].map(|i| Decision::Admit { peer: peer(i), stage });
    let base = Hash::of(b"weights");
    let members = examples::members(&[(5, 3), (6, 1)]);
    let submitters = members.iter().map(|(peer, samples)| Submission {
        peer: *peer,
        manifest: Hash::of(b"manifest"),
        samples: *samples,
        loss_micro: None,
        moments_after: None,
    });
    let plan = Decision::MergePlan { stage, epoch, attempt: 0, submitters: submitters.collect() };
    let evict = Decision::Evict { peer: peer(4), reason: EvictReason::Silent, evidence: None };
    let open = Decision::OpenEpoch { stage, epoch, base, members };
    let mut state = RunState::new(Arc::new(spec()), &[1000, 2000, 1000]);
    for (index, decision) in (0..).zip(admitted.into_iter().chain([evict, open, plan])) {
        let events =
            state.apply(LogIndex(index), Hash::of(&index.to_le_bytes()), Some(&examples::entry(decision)));
        assert_eq!(events.len(), 1, "entry {index} is valid");
    }
    let bytes =
        check_bytes("run-state", "State of the run while stage 1 merges its first epoch", &state.to_bytes());
    assert_eq!(state.read(&bytes).expect("a state").to_bytes(), bytes);
}

#[test]
fn scores_for_whoever_pays() {
    let export = examples::scores_export();
    check::<ScoresExport>("scores", "ScoresExport of three miners", &export);
    check_sealed("scores-envelope", "Envelope of scores.hex, kind scores, from peer 1", 1, &export);
    assert_eq!(ScoresExport::open(run(), &export.seal(&identity(1))), Ok((peer(1), export)));
}

#[test]
fn requests_and_responses() {
    for (name, request) in examples::requests() {
        check::<Request>(&format!("request-{name}"), "Request", &request);
    }
    for (name, response) in examples::responses() {
        check::<Response>(&format!("response-{name}"), "Response", &response);
    }
}

#[test]
fn pushes_and_their_answers() {
    let header = examples::push_header();
    check("push-header", "PushHeader of push-frame.hex", &header);
    let signed = header.hop().signed_bytes(run(), header.nonce, header.hash);
    check_bytes("push-signed", "What the sender of push-frame.hex signs", &signed);
    assert_eq!(PushHeader::parse(run(), &encode(&header)), Ok(header.clone()));
    let (head, payload) = (encode(&header), examples::push_payload());
    let head_length = u32::try_from(head.len()).expect("short").to_le_bytes();
    let payload_length = (payload.len() as u64).to_le_bytes();
    let frame = [head_length.as_slice(), &head, &payload_length, &payload].concat();
    check_bytes("push-frame", "All bytes of a push stream, in the sender's direction", &frame);
    for (name, ack) in [
        ("push-ack-accepted", PushAck::Accepted(31)),
        ("push-ack-refused", PushAck::Refused(PushRefusal::NotFinite)),
    ] {
        let bytes = check_bytes(name, "PushAck", &ack.to_bytes());
        assert_eq!(PushAck::parse(&bytes), Ok(ack));
    }
}

#[test]
fn receipts_and_their_root() {
    let receipts = examples::receipts();
    let bytes = check_bytes("receipts", "Receipts blob of three samples", &encode_receipts(&receipts));
    assert_eq!(decode_receipts(&bytes), Ok(receipts.clone()));
    check_bytes("receipt-root", "Merkle root of receipts.hex", &merkle_root(&receipts).0);
}

/// The number of the peer among the examples.
fn number(of: PeerId) -> u8 {
    (1..=7).find(|&i| peer(i) == of).expect("one of the examples")
}

#[test]
fn a_deal_and_what_a_release_makes_of_it() {
    let members = examples::members(&[(5, 8), (6, 5), (7, 3)]);
    let samples = epoch_samples(Epoch(2), spec().training.samples_per_epoch);
    let mut deal = Deal::new(spec().lineage(), StageIndex(1), Epoch(2), samples.clone(), &members);
    let mut text = "# Stage 1, epoch 2, lineage.hex, members of entry-open-epoch.hex.\n".to_owned();
    let row = |deal: &Deal| -> String {
        samples
            .clone()
            .map(|i| number(deal.owner(iota_protocol::SampleId(i)).expect("dealt")))
            .map(|n| n.to_string())
            .collect()
    };
    let weights: Vec<_> =
        members.iter().map(|(peer, weight)| format!("{}:{weight}", number(*peer))).collect();
    let _ = writeln!(text, "# Members in key order, as peer:weight: {}", weights.join(" "));
    let _ =
        writeln!(text, "# One digit per sample, from sample {} on: the peer it is dealt to.", samples.start);
    let _ = writeln!(text, "dealt    {}", row(&deal));
    assert!(deal.release(peer(6)));
    let _ = writeln!(text, "# After peer 6 is released.\nreleased {}", row(&deal));
    check_text("deal.txt", &text);
}

#[test]
fn owners_and_ranges_of_partitions() {
    let mut text =
        "# Plan with the chain hash of chain.hex; submitters are peers 4 to 7 in key order; vector of 1001\n\
         # elements. A line is a partition: its elements, its two owners.\n"
            .to_owned();
    let submitters: Vec<PeerId> =
        examples::members(&[(4, 1), (5, 1), (6, 1), (7, 1)]).into_iter().map(|(peer, _)| peer).collect();
    let (_, chain) = examples::head();
    for (i, owners) in owners(chain, &submitters, 10, 2).into_iter().enumerate() {
        let range = partition_range(i, 10, 1001);
        let owners: Vec<_> = owners.into_iter().map(|owner| number(owner).to_string()).collect();
        let _ = writeln!(text, "{i}: {}..{} {}", range.start, range.end, owners.join(" "));
    }
    check_text("owners.txt", &text);
}
