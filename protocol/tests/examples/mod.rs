//! One fixed value of every kind that is sent, signed or hashed. Shared by the tests of golden bytes and of
//! decoding; `docs/WIRE.md` describes the same values.

use iota_protocol::equivocation::{Equivocation, MessageKind};
use iota_protocol::gauntlet::evaluation::{Evaluation, Measured, Said};
use iota_protocol::join::{Invite, Puzzle, Role};
use iota_protocol::log::Vote;
use iota_protocol::log::certificate::{Certificate, chain_hash, chain_start, vote_bytes};
use iota_protocol::merge::evidence::Evidence;
use iota_protocol::no_confidence::NoConfidence;
use iota_protocol::receipts::{Hop, Receipt, Received, encode_receipts, merkle_root};
use iota_protocol::samples::sample_set_hash;
use iota_protocol::scores::{Scores, ScoresExport, Work};
use iota_protocol::spec::{ScoresSpec, WireDtype};
use iota_protocol::validation::{DismissReason, Fault, Finding, Subject, Verdict};
use iota_protocol::wire::frame::{Direction, PushHeader};
use iota_protocol::wire::message::{
    ConsensusBundle, ContributionFault, ControlUpdate, Decision, DigestReport, Entry, EvaluationAnnounce,
    EvictReason, FaultKind, Manifest, ManifestAnnounce, MergeMessage, PeerRecord, Request, Response,
    SavedMoments, SnapshotOffer, StateOffer, Submission, VerdictAnnounce, WeightsRecord,
};
use iota_protocol::wire::{encode, seal};
use iota_protocol::{
    Epoch, Hash, Identity, LogIndex, PartitionIndex, PeerId, RunId, RunSpec, SampleId, StageIndex,
};
use serde_bytes::ByteBuf;

/// The spec of the examples: `fixtures/golden/spec.toml`.
pub(crate) fn spec() -> RunSpec {
    RunSpec::from_toml(include_str!("../../../fixtures/golden/spec.toml")).expect("a valid spec")
}

pub(crate) fn run() -> RunId {
    spec().run_id()
}

/// Peer `i` has the secret `[i; 32]`. Peers 1, 2 and 3 are the candidates.
pub(crate) fn identity(i: u8) -> Identity {
    Identity::from_secret([i; 32])
}

pub(crate) fn peer(i: u8) -> PeerId {
    identity(i).peer()
}

/// The hash of a short text.
pub(crate) fn hash(text: &str) -> Hash {
    Hash::of(text.as_bytes())
}

pub(crate) fn record() -> PeerRecord {
    PeerRecord {
        sequence: 1_700_000_000_000_000,
        incarnation: 1_699_999_999_000_000,
        miner: true,
        leaving: false,
        validator: false,
        credential: None,
        multiaddrs: vec!["/ip4/192.0.2.7/udp/4001/quic-v1".to_owned()],
        data_addresses: vec!["192.0.2.7:4002".to_owned()],
        log_length: 300,
        weights: Some(WeightsRecord { stage: StageIndex(1), version: Epoch(2), hash: hash("weights") }),
        done: 23,
        assigned: 24,
        credits: 32,
        speed_milli: 1500,
        tokens: 65_536,
        mirror: None,
        lacks: None,
        queue: Vec::new(),
        no_confidence: None,
        wire_version_max: 1,
    }
}

/// The invite of peer 5 by peer 7, until epoch 40.
pub(crate) fn invite() -> Invite {
    Invite::sign(&identity(7), run(), peer(5), Role::Miner, Some(Epoch(40)))
}

/// A nonce that is a proof of work of 12 bits of peer 5.
pub(crate) fn work() -> u64 {
    Puzzle::new(run(), peer(5)).search(12, 0..).expect("one of 4096")
}

pub(crate) fn receipts() -> Vec<Receipt> {
    let received = |sample: u64| {
        let (direction, stage, epoch) = (Direction::Forward, StageIndex(1), Epoch(2));
        let hop = Hop { direction, stage, epoch, sample: SampleId(sample) };
        let (hash, nonce) = (hash("input"), 1_700_000_000_000_004);
        let signature = hop.sign(&identity(4), run(), nonce, hash);
        Received { from: peer(4), hash, nonce, signature }
    };
    let receipt = |sample: u64, inner_step, turn| Receipt {
        sample: SampleId(sample),
        input: Some(received(sample)),
        output: None,
        output_gradient: None,
        input_gradient: Some(hash("input gradient")),
        loss_micro: Some(2_345_678),
        inner_step,
        gradient_step: inner_step,
        turn,
    };
    vec![receipt(128, 0, 1), receipt(131, 0, 0), receipt(190, 1, 2)]
}

pub(crate) fn manifest() -> Manifest {
    let receipts = receipts();
    let samples: Vec<SampleId> = receipts.iter().map(|receipt| receipt.sample).collect();
    Manifest {
        peer: peer(5),
        stage: StageIndex(1),
        epoch: Epoch(2),
        nonce: 1_700_000_000_000_000,
        base: hash("weights"),
        samples: 3,
        sample_set: sample_set_hash(&samples),
        dealt: sample_set_hash(&samples),
        receipt_root: merkle_root(&receipts),
        receipts: Hash::of(&encode_receipts(&receipts)),
        loss_micro: Some(7_037_034),
        moments: Some(iota_protocol::moments::fresh()),
        moments_after: Some(hash("moments")),
        partitions: vec![hash("partition 0"), hash("partition 1")],
    }
}

pub(crate) fn merge_manifest() -> MergeMessage {
    MergeMessage::Manifest(ManifestAnnounce { sequence: 1_700_000_000_000_001, manifest: manifest() })
}

pub(crate) fn merge_digest() -> MergeMessage {
    MergeMessage::Digest(DigestReport {
        sequence: 1_700_000_000_000_002,
        stage: StageIndex(1),
        epoch: Epoch(2),
        attempt: 0,
        merged: vec![(PartitionIndex(0), hash("merged 0")), (PartitionIndex(1), hash("merged 1"))],
        faults: vec![ContributionFault { submitter: peer(6), kind: FaultKind::Unavailable }],
    })
}

/// One decision of each kind, with the name of its golden file.
pub(crate) fn verdict() -> Verdict {
    let manifest = Hash::of(&encode(&manifest()));
    let subject = Subject { stage: StageIndex(1), epoch: Epoch(2), peer: peer(5), manifest };
    Verdict::sign(&identity(8), run(), subject, Finding::Differs(Fault::Tensor(SampleId(131))))
}

pub(crate) fn merge_verdict() -> MergeMessage {
    MergeMessage::Verdict(VerdictAnnounce { sequence: 9, verdict: verdict() })
}

pub(crate) fn evaluation() -> Evaluation {
    let measured =
        Measured { own: 31_250_000, own_error: 2_000_000, random: 12_500_000, random_error: 1_500_000 };
    let said = vec![(peer(5), Said::Measured(measured)), (peer(6), Said::Copy), (peer(7), Said::Unseen)];
    Evaluation::sign(&identity(8), run(), Epoch(2), hash("chain after the plan"), said)
}

pub(crate) fn merge_evaluation() -> MergeMessage {
    MergeMessage::Evaluation(EvaluationAnnounce { sequence: 10, evaluation: evaluation() })
}

/// What a checkpoint is made of: states, and moments.
fn saved() -> (Vec<Hash>, SavedMoments) {
    let moments = SavedMoments { stage: StageIndex(1), peer: peer(5), hash: hash("moments") };
    (vec![hash("state 0"), hash("state 1")], moments)
}

pub(crate) fn decisions() -> Vec<(&'static str, Decision)> {
    let (stage, epoch, attempt) = (StageIndex(1), Epoch(2), 0);
    let (states, saved) = saved();
    vec![
        ("admit", Decision::Admit { peer: peer(5), stage }),
        ("move", Decision::Move { peer: peer(5), stage: StageIndex(1) }),
        ("evict", Decision::Evict { peer: peer(5), reason: EvictReason::Silent, evidence: None }),
        ("evict-digests", accused(5, EvictReason::WrongMerge, digests())),
        ("evict-faults", accused(5, EvictReason::InvalidContribution, faults())),
        ("evict-equivocation", accused(5, EvictReason::Equivocation, equivocation())),
        ("evict-two-votes", accused(2, EvictReason::Equivocation, two_votes())),
        ("evict-overstatement", accused(5, EvictReason::OverstatedSpeed, overstatement())),
        ("limit-speed", Decision::LimitSpeed { peer: peer(5), stage, speed_milli: 1500 }),
        (
            "open-epoch",
            Decision::OpenEpoch {
                stage,
                epoch,
                base: hash("weights"),
                members: members(&[(5, 8), (6, 5), (7, 3)]),
            },
        ),
        ("release", Decision::Release { stage, epoch, peer: peer(6) }),
        ("cutoff", Decision::Cutoff { stage, epoch }),
        ("skip", Decision::Skip { stage, epoch }),
        ("undo", Decision::Undo { stage, epoch }),
        ("snapshot", Decision::Snapshot { entries: 4096, state: hash("state of the run") }),
        (
            "merge-plan",
            Decision::MergePlan {
                stage,
                epoch,
                attempt,
                submitters: vec![submission(5, 3), submission(7, 61)],
            },
        ),
        (
            "merge-reassign",
            Decision::MergeReassign { stage, epoch, attempt, partition: PartitionIndex(1), owner: peer(6) },
        ),
        ("merge-abort", Decision::MergeAbort { stage, epoch, attempt, lost: vec![peer(7)] }),
        ("merge-outcome", outcome(Vec::new())),
        ("merge-outcome-outliers", outcome(vec![peer(7)])),
        ("enlist", Decision::Enlist { peer: peer(8) }),
        ("dismiss", Decision::Dismiss { peer: peer(8), reason: DismissReason::Left, evidence: None }),
        (
            "dismiss-equivocation",
            Decision::Dismiss {
                peer: peer(5),
                reason: DismissReason::Equivocation,
                evidence: Some(two_records()),
            },
        ),
        ("judge", Decision::Judge(verdict())),
        ("evaluate", Decision::Evaluate(evaluation())),
        ("depose", Decision::Depose { leader: peer(2), votes: votes_against(2) }),
        ("checkpoint", Decision::Checkpoint { epoch, stages: states.clone(), moments: Vec::new() }),
        ("checkpoint-moments", Decision::Checkpoint { epoch, stages: states, moments: vec![saved] }),
        ("upgrade", Decision::Upgrade { version: 2 }),
        ("finish", Decision::Finish),
    ]
}

fn outcome(outliers: Vec<PeerId>) -> Decision {
    let partitions = vec![hash("merged 0"), hash("merged 1")];
    Decision::MergeOutcome { stage: StageIndex(1), epoch: Epoch(2), attempt: 0, partitions, outliers }
}

fn submission(i: u8, samples: u32) -> Submission {
    Submission {
        peer: peer(i),
        manifest: Hash::of(&encode(&manifest())),
        samples,
        loss_micro: Some(7_037_034),
        moments_after: Some(hash("moments")),
    }
}

fn accused(i: u8, reason: EvictReason, evidence: Evidence) -> Decision {
    Decision::Evict { peer: peer(i), reason, evidence: Some(evidence) }
}

/// The envelope of a digest report of peer `i` for partition 0.
fn report(i: u8, merged: &str, faults: Vec<ContributionFault>) -> ByteBuf {
    let report = DigestReport {
        sequence: 1_700_000_000_000_003,
        stage: StageIndex(1),
        epoch: Epoch(2),
        attempt: 0,
        merged: vec![(PartitionIndex(0), hash(merged))],
        faults,
    };
    ByteBuf::from(seal(&identity(i), run(), &MergeMessage::Digest(report)))
}

/// Peer 5 has merged partition 0 otherwise than peers 6 and 7.
pub(crate) fn digests() -> Evidence {
    let reports = [(5, "wrong"), (6, "merged 0"), (7, "merged 0")];
    let reports = reports.map(|(i, merged)| report(i, merged, Vec::new()));
    Evidence::Digests { partition: PartitionIndex(0), reports: reports.to_vec() }
}

/// Peers 6 and 7 have found the contribution of peer 5 to be none.
pub(crate) fn faults() -> Evidence {
    let fault = ContributionFault { submitter: peer(5), kind: FaultKind::Invalid };
    Evidence::Faults { reports: [6, 7].map(|i| report(i, "merged 0", vec![fault])).to_vec() }
}

/// Peer 5 has signed under one number that it has done nothing, and that it has done 64 samples.
pub(crate) fn equivocation() -> Evidence {
    Evidence::Equivocation(two_records())
}

/// Two records of one number.
fn two_records() -> Equivocation {
    let record = |done| PeerRecord { done, ..PeerRecord::new(1_700_000_000_000_001) };
    let messages = [0, 64].map(|done| ByteBuf::from(seal(&identity(5), run(), &record(done))));
    Equivocation { kind: MessageKind::Record, messages }
}

/// Peer 5 has signed that it does 64 samples per second, and that it knows 40 entries of the log.
pub(crate) fn overstatement() -> Evidence {
    let (stage, version) = (StageIndex(1), Epoch(2));
    let weights = Some(WeightsRecord { stage, version, hash: hash("weights") });
    let fresh = PeerRecord::new(1_700_000_000_000_001);
    let record = PeerRecord { weights, log_length: 40, speed_milli: 64_000, ..fresh };
    Evidence::Overstatement(ByteBuf::from(seal(&identity(5), run(), &record)))
}

/// Both other candidates have voted against one of three.
fn votes_against(leader: u8) -> Vec<NoConfidence> {
    let voters = [1, 2, 3].into_iter().filter(|i| *i != leader);
    let vote = |i| NoConfidence::sign(&identity(i), run(), peer(leader), Epoch(2));
    let mut votes: Vec<NoConfidence> = voters.map(vote).collect();
    votes.sort_by_key(|vote| vote.voter);
    votes
}

/// Peer 2, candidate 1, has voted for two logs up to entry 7.
fn two_votes() -> Evidence {
    let messages = ["one log", "another log"].map(|log| {
        let (index, chain) = (LogIndex(7), hash(log));
        let signature = ByteBuf::from(identity(2).sign(&vote_bytes(run(), index, chain)));
        ByteBuf::from(encode(&Vote { candidate: 1, index, chain, signature }))
    });
    Evidence::Equivocation(Equivocation { kind: MessageKind::Vote, messages })
}

/// Peers by number with their weights, in the order of their public keys.
pub(crate) fn members(numbers: &[(u8, u32)]) -> Vec<(PeerId, u32)> {
    let mut members: Vec<_> = numbers.iter().map(|&(i, weight)| (peer(i), weight)).collect();
    members.sort_unstable();
    members
}

pub(crate) fn entry(decision: Decision) -> Entry {
    Entry { proposer: peer(1), decision }
}

/// A log of two entries: candidate 1 admits peer 5 and peer 6 to stage 1.
pub(crate) fn log() -> Vec<Vec<u8>> {
    let admit = |i| encode(&entry(Decision::Admit { peer: peer(i), stage: StageIndex(1) }));
    vec![admit(5), admit(6)]
}

/// Position and chain hash of the log's last entry.
pub(crate) fn head() -> (LogIndex, Hash) {
    (LogIndex(1), log().iter().fold(chain_start(run()), |chain, entry| chain_hash(chain, Hash::of(entry))))
}

pub(crate) fn vote(candidate: u8) -> Vote {
    let (index, chain) = head();
    let signature = identity(candidate).sign(&vote_bytes(run(), index, chain));
    Vote { candidate: u16::from(candidate) - 1, index, chain, signature: ByteBuf::from(signature) }
}

/// Candidates 1 and 3 of three.
pub(crate) fn certificate() -> Certificate {
    let (index, chain) = head();
    let signatures = [1, 3].map(|i| (vote(i).candidate, vote(i).signature)).to_vec();
    Certificate { index, chain, signatures }
}

pub(crate) fn control_update() -> ControlUpdate {
    let entries = log().into_iter().map(ByteBuf::from).collect();
    ControlUpdate { first: LogIndex(0), entries, beyond: Vec::new(), certificate: certificate() }
}

pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let bundle = ConsensusBundle { messages: vec![ByteBuf::from(*b"opaque")], votes: vec![vote(1)] };
    vec![
        ("consensus", Request::Consensus(bundle)),
        ("log", Request::Log { from: LogIndex(300) }),
        ("snapshot", Request::Snapshot { state: hash("state of the run"), offset: 2_097_152 }),
        ("state", Request::State { stage: StageIndex(1), version: Epoch(2) }),
    ]
}

pub(crate) fn responses() -> Vec<(&'static str, Response)> {
    let offer = StateOffer {
        stage: StageIndex(1),
        version: Epoch(2),
        weights: hash("weights"),
        parts: vec![hash("part 0"), hash("part 1")],
    };
    vec![
        ("done", Response::Done),
        ("log", Response::Log(control_update())),
        (
            "snapshot",
            Response::Snapshot(SnapshotOffer {
                chain: hash("chain before"),
                bytes: 3_000_000,
                update: control_update(),
            }),
        ),
        ("part", Response::Part(ByteBuf::from(b"part of a state".to_vec()))),
        ("state", Response::State(offer)),
        ("unavailable", Response::Unavailable),
    ]
}

/// The payload of [`push_header`]: 1 × 2 × 2 numbers.
pub(crate) fn push_payload() -> Vec<u8> {
    [1.0_f32, -2.0, 0.5, 3.25].iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn push_header() -> PushHeader {
    PushHeader {
        version: 1,
        run: run(),
        direction: Direction::Forward,
        stage: StageIndex(1),
        epoch: Epoch(2),
        sample: SampleId(131),
        dtype: WireDtype::F32,
        shape: [1, 2, 2],
        hash: Hash::of(&push_payload()),
        nonce: 1_700_000_000_000_004,
        signature: ByteBuf::new(),
    }
    .signed(&identity(4))
}

/// What peers 4, 5 and 6 did of what they were dealt in one epoch, a fifth burned and none paid more than 0.4.
pub(crate) fn scores_export() -> ScoresExport {
    let spec = ScoresSpec { burn: 0.2, cap: 0.4, ..ScoresSpec::default() };
    let work = [(4, 40, 40), (5, 30, 36), (6, 9, 9)];
    let mut scores = Scores::default();
    let work = work.map(|(i, samples, dealt)| Work::of(peer(i), samples, dealt));
    scores.merged(&spec, StageIndex(0), Epoch(0), work);
    let (index, chain) = head();
    ScoresExport::new(run(), index.0 + 1, chain, scores.incentive(&spec, &[Epoch(1)]))
}
