//! The data plane between real endpoints on loopback: blobs and pushes.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use iota_node::blobs::{DataConfig, DataError, DataPlane, FetchError, Storage, transport};
use iota_node::metrics::DataMetrics;
use iota_node::net::{PeerKey, peer_id, public_key};
use iota_node::push::{self, IncomingPush, PushError, PushLimits, Refusal};
use iota_node::traffic::Traffic;
use iroh::endpoint::{Connection, presets};
use iroh::protocol::{AcceptError, ProtocolHandler, Router};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, TransportAddr};
use tokio::sync::mpsc;

/// Longest any step may take. Steps take milliseconds; a loaded machine is slow, a broken test hangs.
const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;
const LOOPBACK: &str = "127.0.0.1:0";

struct Peer {
    plane: DataPlane,
    pushes: mpsc::Receiver<IncomingPush>,
    traffic: Traffic,
}

fn config(secret: u8) -> DataConfig {
    DataConfig {
        secret: [secret; 32],
        bind: LOOPBACK.parse().unwrap(),
        storage: Storage::Memory,
        gc_interval: Duration::from_millis(100),
        upload_rate: None,
        push: PushLimits::default(),
        traffic: Traffic::default(),
        metrics: DataMetrics::default(),
    }
}

fn on_disk(secret: u8, folder: &Path) -> DataConfig {
    DataConfig { storage: Storage::Disk(folder.join("blobs")), ..config(secret) }
}

fn with_limits(secret: u8, push: PushLimits) -> DataConfig {
    DataConfig { push, ..config(secret) }
}

impl Peer {
    async fn start(config: DataConfig) -> Self {
        let traffic = config.traffic.clone();
        let (plane, pushes) = within("start", DataPlane::start(config)).await.unwrap();
        Self { plane, pushes, traffic }
    }

    fn knows(&self, other: &Peer) {
        self.plane.set_addresses(other.plane.id(), other.plane.addresses());
    }

    fn key(&self) -> PeerKey {
        self.plane.id()
    }

    async fn fetch(&self, hash: [u8; 32], providers: &[PeerKey]) -> Result<Bytes, FetchError> {
        within("fetch", self.plane.fetch(hash, 64 * MIB, providers, "fetched", DEADLINE)).await
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Bytes without a pattern that a transfer could get right by accident.
fn noise(length: u64, seed: u8) -> Bytes {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// 32 bytes that are no ed25519 public key; about every second pattern is none.
fn no_point() -> PeerKey {
    (0..=255).map(|byte| [byte; 32]).find(|key| peer_id(key).is_none()).unwrap()
}

/// An endpoint that speaks a protocol in its own way.
async fn raw_endpoint() -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr(LOOPBACK)
        .unwrap()
        .transport_config(transport())
        .bind()
        .await
        .unwrap()
}

fn endpoint_of(peer: &Peer) -> EndpointAddr {
    let id = EndpointId::from_bytes(&peer.key()).unwrap();
    EndpointAddr::from_parts(id, peer.plane.addresses().into_iter().map(TransportAddr::Ip))
}

#[tokio::test]
async fn a_push_arrives_whole_and_its_acknowledgement_comes_back() {
    let (sender, mut receiver) = (Peer::start(config(1)).await, Peer::start(config(2)).await);
    sender.knows(&receiver);
    for (length, header) in
        [(0, vec![]), (1, vec![7]), (65_536, vec![1; 300]), (3 * MIB + 17, vec![2; 65_536])]
    {
        let payload = noise(length, 1);
        let push = sender.plane.push(receiver.key(), header.clone(), payload.clone(), DEADLINE);
        let serve = async {
            let frame = receiver.pushes.recv().await.unwrap();
            assert_eq!(frame.peer, sender.key());
            assert_eq!(frame.header, header);
            assert_eq!(frame.payload, payload);
            assert_eq!(frame.hash, push::hash(&payload));
            frame.reply.send(b"accepted".to_vec()).unwrap();
        };
        let (answer, ()) = within("push", async { tokio::join!(push, serve) }).await;
        assert_eq!(answer.unwrap(), b"accepted");
    }
    let (sent, received) = (sender.traffic.bytes(), receiver.traffic.bytes());
    assert_eq!(sent.push_out, received.push_in);
    assert_eq!(sent.push_out, 1 + 65_536 + 3 * MIB + 17 + 1 + 300 + 65_536);
}

#[tokio::test]
async fn oversize_pushes_are_refused_by_length_and_the_receiver_goes_on() {
    let small = PushLimits { header_bytes_max: 8, payload_bytes_max: 1000, ..PushLimits::default() };
    let (sender, mut receiver) = (Peer::start(config(1)).await, Peer::start(with_limits(2, small)).await);
    sender.knows(&receiver);
    let key = receiver.key();
    let push = |header: usize, payload: u64| {
        within("push", sender.plane.push(key, vec![0; header], noise(payload, 1), DEADLINE))
    };
    assert_eq!(push(9, 0).await, Err(PushError::Refused(Refusal::HeaderTooLarge)));
    assert_eq!(push(8, 1001).await, Err(PushError::Refused(Refusal::PayloadTooLarge)));
    let metrics = receiver.plane.metrics();
    assert_eq!(metrics.pushes_refused(Refusal::HeaderTooLarge), 1);
    assert_eq!(metrics.pushes_refused(Refusal::PayloadTooLarge), 1);

    let serve = async {
        let frame = receiver.pushes.recv().await.unwrap();
        frame.reply.send(vec![]).unwrap();
        frame.payload.len()
    };
    let (answer, length) = tokio::join!(push(8, 1000), within("frame", serve));
    assert_eq!((answer.unwrap(), length), (vec![], 1000));
}

#[tokio::test]
async fn a_length_that_cannot_be_true_is_refused_before_any_payload_is_sent() {
    let receiver = Peer::start(config(1)).await;
    let hostile = raw_endpoint().await;
    let connection = hostile.connect(endpoint_of(&receiver), push::ALPN).await.unwrap();
    for (announced, refusal) in [
        (&[255; 4][..], Refusal::HeaderTooLarge),
        (&[0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255], Refusal::PayloadTooLarge),
        (&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2], Refusal::Malformed),
    ] {
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(announced).await.unwrap();
        let code = within("refusal", send.stopped()).await.unwrap().unwrap();
        assert_eq!(code.into_inner(), refusal as u64);
    }
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&[3, 0, 0, 0, 1]).await.unwrap();
    send.finish().unwrap();
    within("refusal", receive.read_to_end(1)).await.unwrap_err();
    assert_eq!(receiver.plane.metrics().pushes_refused(Refusal::Malformed), 2);
}

#[tokio::test]
async fn a_peer_that_opens_connection_after_connection_is_turned_away() {
    let receiver = Peer::start(config(1)).await;
    let hostile = raw_endpoint().await;
    let mut open = Vec::new();
    let refused = within("refusal", async {
        loop {
            let connection = hostile.connect(endpoint_of(&receiver), push::ALPN).await.unwrap();
            // A served connection answers a malformed frame by resetting the stream.
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let _cut = send.write_all(&[255; 4]).await;
            let _cut = receive.read_to_end(1).await.unwrap_err();
            if let Some(reason) = connection.close_reason() {
                return reason.to_string();
            }
            open.push(connection);
        }
    })
    .await;
    assert!(refused.contains("too many connections"), "{refused}");
    assert_eq!(open.len(), 4);
}

#[tokio::test]
async fn a_full_queue_makes_the_sender_wait_and_then_refuses() {
    let slow = PushLimits { queue: 1, queue_wait: Duration::from_millis(200), ..PushLimits::default() };
    let (sender, mut receiver) = (Peer::start(config(1)).await, Peer::start(with_limits(2, slow)).await);
    sender.knows(&receiver);
    let key = receiver.key();
    let push = |seed| sender.plane.push(key, vec![seed], noise(100, seed), DEADLINE);
    let first = push(1);
    tokio::pin!(first);
    // The first frame takes the only place; the second finds none. Which is first is up to the network.
    let refused = within("refusal", async {
        tokio::select! {
            answer = &mut first => answer,
            answer = push(2) => answer,
        }
    })
    .await;
    assert_eq!(refused, Err(PushError::Refused(Refusal::Busy)));
    let waiting = within("frame", receiver.pushes.recv()).await.unwrap();
    waiting.reply.send(vec![9]).ok();
}

#[tokio::test]
async fn a_push_fails_with_the_reason() {
    let limits = PushLimits { payload_bytes_max: 1000, ..PushLimits::default() };
    let sender = Peer::start(with_limits(1, limits)).await;
    let mut receiver = Peer::start(config(2)).await;
    let nowhere = public_key(&[9; 32]);
    let unknown = sender.plane.push(nowhere, vec![], Bytes::new(), DEADLINE).await;
    assert!(matches!(unknown, Err(PushError::Connect(_))), "{unknown:?}");
    assert_eq!(sender.plane.push(no_point(), vec![], Bytes::new(), DEADLINE).await, Err(PushError::BadKey));
    sender.knows(&receiver);
    let large = sender.plane.push(receiver.key(), vec![], noise(1001, 1), DEADLINE).await;
    assert_eq!(large, Err(PushError::TooLarge { what: "payload", got: 1001, limit: 1000 }));

    let short = Duration::from_millis(300);
    let late = sender.plane.push(receiver.key(), vec![1], noise(10, 1), short).await;
    assert_eq!(late, Err(PushError::TimedOut(short)));
    drop(within("frame", receiver.pushes.recv()).await);

    let push = sender.plane.push(receiver.key(), vec![2], noise(10, 1), DEADLINE);
    let dropped = async { drop(receiver.pushes.recv().await) };
    let (refused, ()) = within("refusal", async { tokio::join!(push, dropped) }).await;
    assert_eq!(refused, Err(PushError::Refused(Refusal::NotAcknowledged)));
}

#[tokio::test]
async fn a_blob_passes_from_peer_to_peer_and_outlives_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Peer::start(config(1)).await, Peer::start(on_disk(2, folder.path())).await);
    let third = Peer::start(config(3)).await;
    second.knows(&first);
    third.knows(&second);
    for length in [0, 1, 16 * 1024, 16 * 1024 + 1, 3 * MIB + 5] {
        let bytes = noise(length, 1);
        let hash = first.plane.add(bytes.clone(), "e/0/1").await.unwrap();
        assert_eq!(hash, push::hash(&bytes));
        assert_eq!(second.fetch(hash, &[first.key()]).await.unwrap(), bytes);
        assert_eq!(third.plane.get(hash).await.is_some(), length == 0, "the empty blob is everywhere");
    }
    first.plane.shutdown().await;
    let (bytes, hash) = (noise(3 * MIB + 5, 1), push::hash(&noise(3 * MIB + 5, 1)));
    assert_eq!(third.fetch(hash, &[second.key()]).await.unwrap(), bytes);
    assert_eq!(third.plane.get(hash).await, Some(bytes.clone()));
    assert_eq!(third.fetch(hash, &[]).await.unwrap(), bytes, "what is here needs no provider");
    assert_eq!(third.traffic.bytes().blob_in, 3 * MIB + 5);

    second.plane.shutdown().await;
    let second = Peer::start(on_disk(2, folder.path())).await;
    assert_eq!(second.plane.get(hash).await, Some(bytes), "the disk remembers");
}

#[tokio::test]
async fn released_blobs_are_collected_and_the_store_stays_bounded() {
    let folder = tempfile::tempdir().unwrap();
    for config in [config(1), on_disk(2, folder.path())] {
        let peer = Peer::start(config).await;
        let mut kept = Vec::new();
        for epoch in 0..6_u8 {
            for part in 0..4 {
                let bytes = noise(100_000, epoch * 4 + part);
                kept.push(peer.plane.add(bytes, &format!("e/0/{epoch}/part")).await.unwrap());
            }
            if let Some(old) = epoch.checked_sub(2) {
                assert_eq!(peer.plane.release(&format!("e/0/{old}/")).await.unwrap(), 4);
            }
        }
        within("collection", peer.plane.collected()).await;
        assert_eq!(peer.plane.stored_bytes().await.unwrap(), 8 * 100_000);
        let (gone, here) = kept.split_at(16);
        for hash in gone {
            assert!(!peer.plane.has(*hash).await);
            assert_eq!(peer.plane.get(*hash).await, None);
        }
        for hash in here {
            assert!(peer.plane.has(*hash).await);
        }
        peer.plane.release("e/").await.unwrap();
        within("collection", peer.plane.collected()).await;
        assert_eq!(peer.plane.stored_bytes().await.unwrap(), 0);
        peer.plane.shutdown().await;
    }
}

#[tokio::test]
async fn a_blob_with_two_tags_lives_until_both_are_released() {
    let peer = Peer::start(config(1)).await;
    let bytes = noise(100_000, 1);
    let hash = peer.plane.add(bytes.clone(), "e/0/1").await.unwrap();
    assert_eq!(peer.plane.add(bytes, "checkpoint/1").await.unwrap(), hash);
    peer.plane.release("e/").await.unwrap();
    within("collection", peer.plane.collected()).await;
    assert!(peer.plane.has(hash).await);
    peer.plane.release("checkpoint/").await.unwrap();
    within("collection", peer.plane.collected()).await;
    assert!(!peer.plane.has(hash).await);
}

/// Accepts every stream, reads the request and misbehaves.
#[derive(Debug, Clone, Copy)]
enum Liar {
    SaysNothing,
    SendsNoise,
}

impl ProtocolHandler for Liar {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let mut open = Vec::new();
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            let _request = receive.read_to_end(1024).await;
            if let Self::SendsNoise = self {
                let _cut = send.write_all(&100_000_u64.to_le_bytes()).await;
                let _cut = send.write_all(&noise(100_000, 99)).await;
            }
            open.push(send);
        }
        Ok(())
    }
}

async fn liar(kind: Liar) -> Router {
    Router::builder(raw_endpoint().await).accept(iroh_blobs::ALPN, kind).spawn()
}

fn introduce(peer: &Peer, liar: &Router) -> PeerKey {
    let key = *liar.endpoint().id().as_bytes();
    peer.plane.set_addresses(key, liar.endpoint().bound_sockets());
    key
}

#[tokio::test]
async fn a_fetch_survives_dead_silent_lying_and_empty_handed_providers() {
    let (source, empty) = (Peer::start(config(1)).await, Peer::start(config(2)).await);
    let reader = Peer::start(config(3)).await;
    let dead = public_key(&[9; 32]);
    reader.plane.set_addresses(dead, vec!["127.0.0.1:9".parse().unwrap()]);
    reader.knows(&source);
    reader.knows(&empty);
    let (silent, noisy) = (liar(Liar::SaysNothing).await, liar(Liar::SendsNoise).await);
    let (silent, noisy) = ((introduce(&reader, &silent), silent), (introduce(&reader, &noisy), noisy));
    let bytes = noise(100_000, 1);
    let hash = source.plane.add(bytes.clone(), "e").await.unwrap();
    for bad in [dead, silent.0, noisy.0, empty.key()] {
        assert_eq!(reader.fetch(hash, &[bad, source.key()]).await.unwrap(), bytes);
        reader.plane.release("fetched").await.unwrap();
        within("collection", reader.plane.collected()).await;
        assert!(!reader.plane.has(hash).await);
    }
    let error = reader.fetch(hash, &[noisy.0, empty.key(), no_point()]).await.unwrap_err();
    let FetchError::NoProvider { failures, .. } = &error else { panic!("{error:?}") };
    let mut tried: Vec<_> = failures.iter().map(|failure| failure.peer).collect();
    tried.sort_unstable();
    let mut expected = [noisy.0, empty.key(), no_point()];
    expected.sort_unstable();
    assert_eq!(tried, expected, "{error}");
    let short = hex::encode(&noisy.0[..4]);
    assert!(error.to_string().contains(&format!("provider {short}: content:")), "{error}");
    assert_eq!(reader.fetch(hash, &[]).await, Err(FetchError::NoProvider { hash, failures: vec![] }));
}

/// What a provider of the tests may serve in a second. A computer is a hundred times as fast.
const UPLINK: NonZeroU64 = NonZeroU64::new(MIB).unwrap();

/// Peers with such an uplink that hold these blobs, and one that knows them.
async fn behind_uplinks(count: u8, blobs: &[Bytes]) -> (Vec<Peer>, Peer) {
    let (mut providers, reader) = (Vec::new(), Peer::start(config(100)).await);
    for secret in 1..=count {
        let provider = Peer::start(DataConfig { upload_rate: Some(UPLINK), ..config(secret) }).await;
        for bytes in blobs {
            provider.plane.add(bytes.clone(), "s/0/1").await.unwrap();
        }
        reader.knows(&provider);
        providers.push(provider);
    }
    (providers, reader)
}

/// How long a state of six parts takes from so many providers: two parts from each at a time, each part from another first.
async fn download(count: u8) -> Duration {
    let parts: Vec<Bytes> = (0..6).map(|part| noise(MIB, part)).collect();
    let (providers, reader) = behind_uplinks(count, &parts).await;
    let keys: Vec<PeerKey> = providers.iter().map(Peer::key).collect();
    let begin = Instant::now();
    let fetches = parts.iter().enumerate().map(|(part, bytes)| {
        let (mut keys, reader) = (keys.clone(), &reader);
        let turn = part % keys.len();
        keys.rotate_left(turn);
        async move { assert_eq!(reader.fetch(push::hash(bytes), &keys).await.unwrap(), bytes) }
    });
    futures::stream::iter(fetches).buffer_unordered(2 * keys.len()).collect::<()>().await;
    begin.elapsed()
}

#[tokio::test]
async fn a_state_comes_faster_from_three_providers_than_from_one() {
    let (one, three) = (download(1).await, download(3).await);
    println!("{one:?} from one, {three:?} from three");
    assert!(one >= Duration::from_secs(5), "the uplink is held to its rate: {one:?}");
    assert!(one.as_secs_f64() / three.as_secs_f64() >= 1.5, "{one:?} from one, {three:?} from three");
}

#[tokio::test]
async fn a_second_provider_sends_what_the_first_does_not() {
    let bytes = noise(4 * MIB, 1);
    let (providers, reader) = behind_uplinks(2, std::slice::from_ref(&bytes)).await;
    let keys: Vec<PeerKey> = providers.iter().map(Peer::key).collect();
    let begin = Instant::now();
    assert_eq!(reader.fetch(push::hash(&bytes), &keys).await.unwrap(), bytes);
    let elapsed = begin.elapsed();
    assert_eq!(reader.traffic.bytes().blob_in, 4 * MIB);
    reader.plane.shutdown().await;
    // What a request has sent is counted when its end is seen.
    let sent = || providers.iter().map(|provider| provider.traffic.bytes().blob_out).collect::<Vec<u64>>();
    let both = || sent().iter().all(|sent| *sent >= MIB);
    let seen = tokio::time::timeout(Duration::from_secs(20), async {
        while !both() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(seen.await.is_ok(), "both sent their part: {:?}", sent());
    let sent = sent();
    println!("{elapsed:?}, {sent:?} bytes sent");
    for provider in &providers {
        provider.plane.shutdown().await;
    }
    assert!(sent.iter().sum::<u64>() <= 5 * MIB, "hardly anything was sent twice: {sent:?}");
}

#[tokio::test]
async fn a_fetch_keeps_its_deadline() {
    let reader = Peer::start(config(1)).await;
    let silent = liar(Liar::SaysNothing).await;
    let key = introduce(&reader, &silent);
    let deadline = Duration::from_millis(500);
    let begin = Instant::now();
    let late = reader.plane.fetch([7; 32], MIB, &[key], "t", deadline).await;
    assert!(matches!(late, Err(FetchError::TimedOut { .. })), "{late:?}");
    assert!(begin.elapsed() >= deadline);
}

#[tokio::test]
async fn a_blob_above_the_limit_is_refused_wherever_it_is() {
    let (source, reader) = (Peer::start(config(1)).await, Peer::start(config(2)).await);
    reader.knows(&source);
    let hash = source.plane.add(noise(100_000, 1), "e").await.unwrap();
    let fetch = |limit, providers| within("fetch", reader.plane.fetch(hash, limit, providers, "t", DEADLINE));
    let key = [source.key()];
    let error = fetch(99_999, &key).await.unwrap_err();
    assert!(error.to_string().contains("100000 bytes, expected at most 99999"), "{error}");
    assert!(!reader.plane.has(hash).await);
    assert_eq!(fetch(100_000, &key).await.unwrap().len(), 100_000);
    let error = fetch(10, &[]).await.unwrap_err();
    assert_eq!(error, FetchError::TooLarge { hash, got: 100_000, limit: 10 });
}

#[tokio::test]
async fn an_address_or_a_directory_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Peer::start(on_disk(1, folder.path())).await;
    let taken: SocketAddr = peer.plane.addresses()[0];
    let error = DataPlane::start(DataConfig { bind: taken, ..config(2) }).await.err().unwrap();
    assert!(matches!(&error, DataError::Bind { address, .. } if *address == taken), "{error}");
    let error = DataPlane::start(on_disk(3, folder.path())).await.err().unwrap();
    assert!(matches!(&error, DataError::Open { .. }), "{error}");
    assert!(error.to_string().contains("blobs"), "{error}");
}
