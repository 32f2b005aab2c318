//! A node among peers that say what no honest peer says: every message is refused for its reason and counted, and the
//! node trains on.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::stranger::{Stranger, Target};
use crate::support::{STEP_DEADLINE, program, tiny, wait_for};
use bytes::Bytes;
use iota_node::events::EventTail;
use iota_protocol::limits::{GOSSIP_BYTES_MAX, TRANSFER_DEADLINE, WIRE_VERSION};
use iota_protocol::log::Certificate;
use iota_protocol::spec::{Candidate, TrainingMode, WireDtype};
use iota_protocol::wire::frame::{Direction, PushAck, PushHeader, PushRefusal};
use iota_protocol::wire::message::{
    ConsensusBundle, ControlUpdate, Manifest, ManifestAnnounce, MergeMessage, PeerRecord, Request, Topic,
};
use iota_protocol::wire::{encode, seal};
use iota_protocol::{Epoch, Hash, Identity, LogIndex, PeerId, RunId, RunSpec, SampleId, StageIndex};
use serde_bytes::ByteBuf;
use serde_json::Value;

/// The node's secret.
const SECRET: [u8; 32] = [0x11; 32];
/// Between two tries of a gossip message: until subscriptions are exchanged it reaches nobody.
const AGAIN: Duration = Duration::from_millis(100);

/// Every topic of a run of one stage.
const TOPICS: [Topic; 4] = [Topic::Control, Topic::Records, Topic::StageRecords(StageIndex(0)), MERGES];
const MERGES: Topic = Topic::Merge(StageIndex(0));

/// A node that is alone in its run: its only candidate and its only miner.
struct Alone {
    spec: RunSpec,
    target: Target,
    child: Child,
    _scratch: tempfile::TempDir,
}

impl Alone {
    fn start() -> Self {
        let mut spec = tiny(TrainingMode::Local, 1, 1, 1_000_000);
        let peer = Identity::from_secret(SECRET).peer();
        spec.orchestrator.candidates = vec![Candidate { peer, priority: 1 }];
        spec.validate().expect("a valid spec");
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (file, key, data) =
            (scratch.path().join("spec.toml"), scratch.path().join("peer.key"), scratch.path().join("data"));
        fs::write(&file, spec.to_toml()).expect("a file in the scratch folder");
        let mut key_file =
            fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&key).expect("a key");
        key_file.write_all("11".repeat(32).as_bytes()).expect("a key");
        let log = fs::File::create(scratch.path().join("log.txt")).expect("a file in the scratch folder");
        let child = program()
            .args(["join", "--miner", "--device", "cpu", "--data-bind", "127.0.0.1:0"])
            .args(["--listen", "/ip4/127.0.0.1/tcp/0", "--spec"])
            .arg(&file)
            .arg("--key")
            .arg(&key)
            .arg("--data-dir")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        let mut tail = EventTail::new(&data);
        let target = wait_for("the node's start", STEP_DEADLINE, || {
            Target::of(&tail.poll().expect("an event log can be read"))
        });
        let node = Self { spec, target, child, _scratch: scratch };
        node.until_it_advances();
        node
    }

    fn run(&self) -> RunId {
        self.spec.run_id()
    }

    /// The version of its stage, from its health page.
    fn version(&self) -> u64 {
        let page = self.target.page("/health");
        let body = page.split_once("\r\n\r\n").expect("a body").1;
        let health: Value = serde_json::from_str(body).expect("JSON");
        health["stages"][0]["version"].as_u64().unwrap_or(0)
    }

    /// Waits for two more merges.
    fn until_it_advances(&self) {
        let before = self.version();
        wait_for("two more epochs", STEP_DEADLINE, || (self.version() >= before + 2).then_some(()));
    }

    async fn stranger(&self, secret: u8) -> Stranger {
        Stranger::connect(secret, self.run(), std::slice::from_ref(&self.target), 4 * GOSSIP_BYTES_MAX).await
    }

    /// Publishes what `message` makes of a growing number until the node counts it under `verdict` and `reason`.
    async fn gossip(
        &self,
        from: &Stranger,
        topic: Topic,
        (verdict, reason): (&str, &str),
        message: impl Fn(u64) -> Vec<u8>,
    ) {
        let name = format!("iota_gossip_messages_total{{verdict=\"{verdict}\",reason=\"{reason}\"}}");
        let before = self.target.metric(&name);
        let deadline = tokio::time::Instant::now() + STEP_DEADLINE;
        for number in 1.. {
            from.net.publish(topic.name(), message(number));
            tokio::time::sleep(AGAIN).await;
            if self.target.metric(&name) > before {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{verdict} {reason} on {} not within {STEP_DEADLINE:?}\n{}",
                topic.name(),
                self.target.page("/metrics")
            );
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn manifest(sequence: u64, peer: PeerId, epoch: u32) -> MergeMessage {
    let hash = Hash::of(b"none");
    MergeMessage::Manifest(ManifestAnnounce {
        sequence,
        manifest: Manifest {
            peer,
            stage: StageIndex(0),
            epoch: Epoch(epoch),
            nonce: 1,
            base: hash,
            samples: 1,
            sample_set: hash,
            dealt: hash,
            receipt_root: hash,
            receipts: hash,
            loss_micro: Some(1),
            moments: Some(hash),
            moments_after: Some(hash),
            partitions: vec![hash; 8],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_gossip_is_refused_for_its_reason_and_the_run_goes_on() {
    let node = Alone::start();
    let run = node.run();

    // Each liar has a name of its own: after a few lies a node stops listening to a peer.
    for (secret, topic) in (0x20..).zip(TOPICS) {
        let liar = node.stranger(secret).await;
        let garbage = |number: u64| [b"garbage ".as_slice(), &number.to_le_bytes()].concat();
        node.gossip(&liar, topic, ("rejected", "malformed"), garbage).await;
        liar.stop().await;
    }

    let liar = node.stranger(0x30).await;
    let truncated = |number| {
        let whole = seal(&liar.identity, run, &PeerRecord::new(number));
        whole[..whole.len() - 7].to_vec()
    };
    node.gossip(&liar, Topic::Records, ("rejected", "malformed"), truncated).await;
    liar.stop().await;

    let liar = node.stranger(0x31).await;
    let other_run = |number| seal(&liar.identity, RunId([9; 32]), &PeerRecord::new(number));
    node.gossip(&liar, Topic::Records, ("rejected", "signature"), other_run).await;
    liar.stop().await;

    let liar = node.stranger(0x32).await;
    let forged = |number| {
        // Signed by the liar, said to be the node's.
        let mut bytes = seal(&liar.identity, run, &PeerRecord::new(number));
        let (own, victim) = (liar.identity.peer().0, node.target.peer.0);
        let at = bytes.windows(32).position(|part| part == own).expect("the sender's name");
        bytes[at..at + 32].copy_from_slice(&victim);
        bytes
    };
    node.gossip(&liar, Topic::Records, ("rejected", "signature"), forged).await;
    liar.stop().await;

    let liar = node.stranger(0x33).await;
    let forged = |number: u64| {
        encode(&ControlUpdate {
            first: LogIndex(0),
            entries: vec![ByteBuf::from(b"none".to_vec())],
            beyond: Vec::new(),
            certificate: Certificate {
                index: LogIndex(0),
                chain: Hash::of(&number.to_le_bytes()),
                signatures: vec![(0, ByteBuf::from(vec![7; 64]))],
            },
        })
    };
    node.gossip(&liar, Topic::Control, ("rejected", "certificate"), forged).await;
    liar.stop().await;

    let liar = node.stranger(0x34).await;
    let other = Identity::from_secret([0x99; 32]).peer();
    let in_anothers_name = |number| seal(&liar.identity, run, &manifest(number, other, u32::MAX));
    node.gossip(&liar, MERGES, ("rejected", "inconsistent"), in_anothers_name).await;
    liar.stop().await;

    let late = node.stranger(0x35).await;
    let stale = |number| seal(&late.identity, run, &manifest(number, late.identity.peer(), 0));
    node.gossip(&late, MERGES, ("ignored", "stale"), stale).await;
    let stranger =
        |number| seal(&late.identity, run, &manifest(1_000_000 + number, late.identity.peer(), u32::MAX));
    node.gossip(&late, MERGES, ("ignored", "not_entitled"), stranger).await;
    // The first of these is news; the others have lower numbers.
    let replayed = |number| seal(&late.identity, run, &PeerRecord::new(1_000_000 - number));
    node.gossip(&late, Topic::Records, ("ignored", "replay"), replayed).await;
    late.stop().await;

    // Too long for the transport: it ends the stream before the owner hears of it.
    let liar = node.stranger(0x36).await;
    for (number, topic) in (0_u8..).zip(TOPICS) {
        liar.net.publish(topic.name(), vec![number; 2 * GOSSIP_BYTES_MAX]);
    }
    node.until_it_advances();
    liar.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_get_no_answer_and_the_run_goes_on() {
    let node = Alone::start();
    let liar = node.stranger(0x40).await;
    let refused = |request: Vec<u8>, reason: &'static str| {
        let (net, target) = (liar.net.clone(), node.target.clone());
        async move {
            let name = format!("iota_rpc_rejected_total{{reason=\"{reason}\"}}");
            let before = target.metric(&name);
            let answer = net.request(target.peer.0, request).await;
            assert!(answer.is_err(), "{reason}: expected no answer, got {answer:?}");
            assert!(target.metric(&name) > before, "{reason} is counted");
        }
    };
    refused(b"garbage".to_vec(), "malformed").await;
    refused(Vec::new(), "malformed").await;
    let request = encode(&Request::Log { from: LogIndex(0) });
    refused(request[..request.len() - 1].to_vec(), "malformed").await;
    refused([request.as_slice(), b"more"].concat(), "malformed").await;
    let bundle = ConsensusBundle { messages: vec![ByteBuf::from(b"none".to_vec())], votes: Vec::new() };
    refused(encode(&Request::Consensus(bundle)), "not_entitled").await;
    // Not refused, and not served either: only members get the state of their stage.
    let state = Request::State { stage: StageIndex(0), version: Epoch(1) };
    let answer = liar.net.request(node.target.peer.0, encode(&state)).await.expect("an answer");
    assert_eq!(answer, encode(&iota_protocol::wire::message::Response::Unavailable));
    assert!(!liar.log(&node.target, 0).await.is_empty(), "an honest request of the same peer is answered");
    node.until_it_advances();
    liar.stop().await;
}

/// A push that only its epoch and sample keep from being right.
fn header(node: &Alone, sender: &Identity, payload: &[u8]) -> PushHeader {
    let header = PushHeader {
        version: WIRE_VERSION,
        run: node.run(),
        direction: Direction::Forward,
        stage: StageIndex(0),
        epoch: Epoch(u32::MAX),
        sample: SampleId(0),
        dtype: WireDtype::F32,
        shape: [2, 32, 8],
        hash: Hash::of(payload),
        nonce: 1,
        signature: ByteBuf::new(),
    };
    header.signed(sender)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_pushes_are_refused_for_their_reason_and_the_run_goes_on() {
    let node = Alone::start();
    let liar = node.stranger(0x50).await;
    let good = vec![0_u8; 2 * 32 * 8 * 4];
    let honest = header(&node, &liar.identity, &good);
    let signed = |header: PushHeader| encode(&header.signed(&liar.identity));
    let nan = [good[4..].to_vec(), f32::NAN.to_le_bytes().to_vec()].concat();
    let short = good[4..].to_vec();
    let cases: Vec<(PushRefusal, Vec<u8>, Vec<u8>)> = vec![
        (PushRefusal::Malformed, b"garbage".to_vec(), good.clone()),
        (PushRefusal::Malformed, encode(&honest)[..40].to_vec(), good.clone()),
        (PushRefusal::Malformed, encode(&PushHeader { run: RunId([9; 32]), ..honest.clone() }), good.clone()),
        (PushRefusal::Version, encode(&PushHeader { version: 0, ..honest.clone() }), good.clone()),
        (PushRefusal::Shape, encode(&PushHeader { shape: [4, 32, 4], ..honest.clone() }), good.clone()),
        (
            PushRefusal::Shape,
            encode(&PushHeader { dtype: WireDtype::Bf16, shape: [4, 32, 8], ..honest.clone() }),
            good.clone(),
        ),
        (PushRefusal::Length, encode(&PushHeader { hash: Hash::of(&short), ..honest.clone() }), short),
        (PushRefusal::Length, encode(&PushHeader { shape: [u32::MAX; 3], ..honest.clone() }), good.clone()),
        (PushRefusal::Hash, encode(&PushHeader { hash: Hash::of(b"other"), ..honest.clone() }), good.clone()),
        (PushRefusal::NotFinite, encode(&PushHeader { hash: Hash::of(&nan), ..honest.clone() }), nan),
        (
            PushRefusal::WrongStage,
            encode(&PushHeader { stage: StageIndex(1), ..honest.clone() }),
            good.clone(),
        ),
        (PushRefusal::Signature, encode(&PushHeader { nonce: 2, ..honest.clone() }), good.clone()),
        (PushRefusal::Stale, signed(PushHeader { epoch: Epoch(0), ..honest.clone() }), good.clone()),
        (
            PushRefusal::WrongPath,
            signed(PushHeader { direction: Direction::Backward, ..honest.clone() }),
            good.clone(),
        ),
        // Nobody's activation takes room that a member's may need.
        (PushRefusal::WrongPath, encode(&honest), good.clone()),
    ];
    // Blobs of settled epochs are released two epochs later; until then a push of theirs is not on its path.
    wait_for("an epoch long over", STEP_DEADLINE, || (node.version() > 6).then_some(()));
    for (number, (refusal, header, payload)) in cases.into_iter().enumerate() {
        let name = format!("iota_push_refused_total{{reason=\"{}\"}}", refusal.label());
        let before = node.target.metric(&name);
        let ack = liar.plane.push(node.target.peer.0, header, Bytes::from(payload), TRANSFER_DEADLINE).await;
        let ack = PushAck::parse(&ack.expect("an answer")).expect("an acknowledgement");
        assert_eq!(ack, PushAck::Refused(refusal), "case {number}");
        assert!(node.target.metric(&name) > before, "case {number} is counted");
    }
    node.until_it_advances();
    liar.stop().await;
}
