//! The control plane between real nodes on loopback.

use std::io;
use std::time::Duration;

use crate::support::{DEADLINE, Node, RPC_BYTES_MAX, TOPIC, address, config, within};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use iota_node::net::{self, NetConfig, NetError, NetEvent, RequestError, Verdict};
use iota_node::traffic::Traffic;
use libp2p::request_response::{self, OutboundFailure, ProtocolSupport};
use libp2p::swarm::SwarmEvent;
use libp2p::{StreamProtocol, SwarmBuilder};
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

/// Starts the messages that only find out whether a path is up.
const WARM_UP: &[u8] = b"warm-up";

/// Receives the next gossip message and reports it. Late warm-up messages are accepted and passed over.
async fn judge(node: &mut Node, verdict: Verdict) -> (net::PeerKey, net::PeerKey, Vec<u8>) {
    loop {
        let (source, relay, bytes, token) = node
            .until("gossip", |event| match event {
                NetEvent::Gossip { topic, source, relay, bytes, token } => {
                    assert_eq!(topic, TOPIC);
                    Some((source, relay, bytes, token))
                }
                _ => None,
            })
            .await;
        if bytes.starts_with(WARM_UP) {
            node.handle.report(token, Verdict::Accept);
        } else {
            node.handle.report(token, verdict);
            return (source, relay, bytes);
        }
    }
}

/// Publishes at one end of a line until a message comes out at the other: a gossip mesh that is just
/// forming may lose messages.
async fn warm_up(left: &Node, middle: &mut Node, right: &mut Node) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut number = 0_u32;
    let through = async {
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    number += 1;
                    left.handle.publish(TOPIC, [WARM_UP, &number.to_le_bytes()].concat());
                }
                event = middle.events.recv() => if let Some(NetEvent::Gossip { token, .. }) = event {
                    middle.handle.report(token, Verdict::Accept);
                },
                event = right.events.recv() => if let Some(NetEvent::Gossip { token, .. }) = event {
                    right.handle.report(token, Verdict::Accept);
                    return;
                },
            }
        }
    };
    within("warm-up", through).await;
}

/// Three peers in a row; the left one refuses the right one.
async fn line() -> (Node, Node, Node) {
    let mut middle = Node::start(config(1)).await;
    let mut left = Node::joining(2, &middle).await;
    let mut right = Node::joining(3, &middle).await;
    left.handle.ban(right.key);
    left.connected_to(middle.key).await;
    right.connected_to(middle.key).await;
    warm_up(&left, &mut middle, &mut right).await;
    (left, middle, right)
}

#[tokio::test]
async fn accepted_gossip_travels_on_and_names_its_author() {
    let (left, mut middle, mut right) = line().await;
    left.handle.publish(TOPIC, b"hello".to_vec());
    let received = judge(&mut middle, Verdict::Accept).await;
    assert_eq!(received, (left.key, left.key, b"hello".to_vec()));
    let received = judge(&mut right, Verdict::Accept).await;
    assert_eq!(received, (left.key, middle.key, b"hello".to_vec()));
}

#[tokio::test]
async fn ignored_and_rejected_gossip_stays_where_it_is() {
    let (left, mut middle, mut right) = line().await;
    for (bytes, verdict) in
        [("ignored", Verdict::Ignore), ("rejected", Verdict::Reject), ("good", Verdict::Accept)]
    {
        left.handle.publish(TOPIC, bytes.into());
        let received = judge(&mut middle, verdict).await;
        assert_eq!(received.2, bytes.as_bytes());
    }
    let received = judge(&mut right, Verdict::Accept).await;
    assert_eq!(received.2, b"good", "only what was accepted travels");
}

#[tokio::test]
async fn gossip_published_before_anyone_listens_is_delivered_later() {
    let mut first = Node::start(config(1)).await;
    first.handle.publish(TOPIC, b"early".to_vec());
    let mut second = Node::joining(2, &first).await;
    let received = judge(&mut second, Verdict::Accept).await;
    assert_eq!(received, (first.key, first.key, b"early".to_vec()));
    first.connected_to(second.key).await;
}

#[tokio::test]
async fn a_request_is_answered_by_the_peer_it_names() {
    let mut server = Node::start(config(1)).await;
    let client = Node::start(config(2)).await;
    client.handle.add_address(server.key, server.addresses.clone());
    let ask = client.handle.request(server.key, b"ping".to_vec());
    let (answer, asker) =
        tokio::join!(within("answer", ask), server.serve_one(|bytes| [&bytes[..], b"-pong"].concat()));
    assert_eq!(answer.unwrap(), b"ping-pong");
    assert_eq!(asker, client.key);
}

#[tokio::test]
async fn a_request_fails_with_the_reason() {
    let mut server = Node::start(config(1)).await;
    let client = Node::joining(2, &server).await;
    server.connected_to(client.key).await;
    let ask = |bytes| within("error", client.handle.request(server.key, bytes));

    let refusal = ask(vec![0; RPC_BYTES_MAX + 1]).await.unwrap_err();
    assert_eq!(refusal, RequestError::TooLarge { got: RPC_BYTES_MAX + 1, limit: RPC_BYTES_MAX });

    let drop_it = async {
        match server.events.recv().await {
            Some(NetEvent::Request { reply, .. }) => drop(reply),
            event => panic!("{event:?}"),
        }
    };
    let (refusal, ()) = tokio::join!(ask(vec![1]), drop_it);
    assert!(matches!(refusal, Err(RequestError::Closed(_))), "{refusal:?}");

    let stranger = net::public_key(&[9; 32]);
    let refusal = within("error", client.handle.request(stranger, vec![1])).await;
    assert_eq!(refusal, Err(RequestError::Unreachable));
    let no_point = (0..=255).map(|byte| [byte; 32]).find(|key| net::peer_id(key).is_none()).unwrap();
    assert_eq!(client.handle.request(no_point, vec![1]).await, Err(RequestError::BadKey));

    client.handle.shutdown().await;
    assert_eq!(client.handle.request(stranger, vec![1]).await, Err(RequestError::ShutDown));
}

/// Writes frames exactly as given, well-formed or not.
#[derive(Clone, Default)]
struct RawCodec;

impl request_response::Codec for RawCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        self.read_response(&StreamProtocol::new("/"), io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        if bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        raw: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&raw).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        raw: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&raw).await
    }
}

#[tokio::test]
async fn malformed_frames_are_refused_and_the_node_goes_on() {
    let mut server = Node::start(config(1)).await;
    let protocol = (StreamProtocol::new("/iota/rpc/1"), ProtocolSupport::Outbound);
    let mut hostile = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| {
            request_response::Behaviour::<RawCodec>::new([protocol], request_response::Config::default())
        })
        .unwrap()
        .build();
    let server_id = net::peer_id(&server.key).unwrap();
    hostile.add_peer_address(server_id, server.addresses[1].clone());
    let malformed: [&[u8]; 5] =
        [b"", b"\xff\xff\xff\xff", b"\x01\x04\x00\x00", b"\x05\x00\x00\x00abc", b"\x03\x00\x00\x00abcd"];
    for frame in malformed {
        hostile.behaviour_mut().send_request(&server_id, frame.to_vec());
        let failure = within("refusal", async {
            loop {
                if let SwarmEvent::Behaviour(request_response::Event::OutboundFailure { error, .. }) =
                    hostile.select_next_some().await
                {
                    return error;
                }
            }
        })
        .await;
        assert!(matches!(failure, OutboundFailure::Io(_) | OutboundFailure::ConnectionClosed), "{failure:?}");
    }
    let client = Node::joining(2, &server).await;
    let ask = client.handle.request(server.key, b"still there?".to_vec());
    let (answer, _) = tokio::join!(within("answer", ask), server.serve_one(|_| b"yes".to_vec()));
    assert_eq!(answer.unwrap(), b"yes");
    let refused = "iota_rpc_refused_total{reason=\"Malformed\"}";
    let metrics = server.metrics();
    assert!(metrics.lines().any(|line| line.starts_with(refused)), "{metrics}");
    assert!(metrics.contains("iota_rpc_requests_total 1"), "the malformed ones never reached the owner");
}

#[tokio::test]
async fn an_unreachable_bootstrap_peer_is_reported_and_joined_when_it_comes() {
    let seed = Node::start(config(1)).await;
    let (key, addresses) = (seed.key, seed.addresses.clone());
    seed.stop().await;
    let mut node = Node::start(NetConfig { bootstrap: addresses[..1].to_vec(), ..config(2) }).await;
    for _ in 0..2 {
        let failed = node
            .until("bootstrap failure", |event| match event {
                NetEvent::BootstrapFailed { address, error } => Some((address, error)),
                _ => None,
            })
            .await;
        assert_eq!(failed.0, addresses[0]);
        assert!(!failed.1.is_empty());
    }
    for _ in 0..2 {
        // The second round: a peer that was lost is joined again.
        let mut listen = addresses[0].clone();
        listen.pop();
        let seed = Node::start(NetConfig { listen: vec![listen], ..config(1) }).await;
        node.connected_to(key).await;
        assert_eq!(node.handle.snapshot().await.connected, [key]);
        seed.stop().await;
        node.disconnected_from(key).await;
    }
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let node = Node::start(config(1)).await;
    for taken in node.addresses.clone() {
        let mut taken = taken;
        taken.pop();
        let config = NetConfig { listen: vec![taken.clone()], ..config(2) };
        let error = net::start(config, &mut Registry::default(), Traffic::default()).await.err().unwrap();
        assert!(matches!(&error, NetError::AddressInUse { address } if *address == taken), "{error:?}");
        assert!(error.to_string().contains(&taken.to_string()));
    }
    let nowhere = NetConfig { listen: vec![address("/ip4/203.0.113.1/tcp/0")], ..config(2) };
    let error = net::start(nowhere, &mut Registry::default(), Traffic::default()).await.err().unwrap();
    assert!(matches!(error, NetError::Listen { .. }), "{error:?}");
}

#[tokio::test]
async fn peers_of_another_run_are_disconnected() {
    let mut node = Node::start(config(1)).await;
    let other = NetConfig { run: "11".repeat(32), bootstrap: node.addresses[..1].to_vec(), ..config(2) };
    let mut other = Node::start(other).await;
    let expected = node.key;
    let announced = other
        .until("wrong run", |event| match event {
            NetEvent::WrongRun { peer, announced } => (peer == expected).then_some(announced),
            _ => None,
        })
        .await;
    assert_eq!(announced, format!("/iota/{}/1", config(1).run));
    node.disconnected_from(other.key).await;
}

#[tokio::test]
async fn a_banned_peer_stays_out() {
    let mut node = Node::start(config(1)).await;
    let mut outcast = Node::joining(2, &node).await;
    node.connected_to(outcast.key).await;
    node.handle.ban(outcast.key);
    node.disconnected_from(outcast.key).await;
    outcast.disconnected_from(node.key).await;
    let welcome = Node::joining(3, &node).await;
    node.connected_to(welcome.key).await;
    assert_eq!(node.handle.snapshot().await.connected, [welcome.key]);
}

#[tokio::test]
async fn two_peers_of_one_bootstrap_find_each_other() {
    let seed = Node::start(config(1)).await;
    let mut first = Node::joining(2, &seed).await;
    let mut second = Node::joining(3, &seed).await;
    let (one, two) = (first.key, second.key);
    tokio::join!(first.connected_to(two), second.connected_to(one));
}

/// Starts a node that joins `other` over QUIC and stops in the middle of everything, as a killed process does, once it has
/// heard gossip. Its connections stay open.
fn killed(secret: u8, other: &Node) -> oneshot::Receiver<()> {
    let (stopped, is_stopped) = oneshot::channel();
    let config = NetConfig { bootstrap: other.addresses[1..].to_vec(), ..config(secret) };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut node = Node::start(config).await;
            judge(&mut node, Verdict::Accept).await;
            stopped.send(()).unwrap();
            std::thread::park();
        });
    });
    is_stopped
}

#[tokio::test]
async fn a_peer_that_starts_again_is_heard_though_its_old_connection_seems_open() {
    let mut node = Node::start(config(1)).await;
    let stopped = killed(2, &node);
    node.connected_to(net::public_key(&[2; 32])).await;
    node.handle.publish(TOPIC, b"before".to_vec());
    within("the first process to stop", stopped).await.unwrap();
    let again = NetConfig { process: 2, bootstrap: node.addresses[1..].to_vec(), ..config(2) };
    let mut again = Node::start(again).await;
    let repeat = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        for number in 0_u32.. {
            ticks.tick().await;
            node.handle.publish(TOPIC, number.to_le_bytes().into());
        }
    };
    tokio::select! {
        () = repeat => {}
        heard = judge(&mut again, Verdict::Accept) => assert_eq!(heard.0, node.key),
    }
    again.handle.publish(TOPIC, b"heard".to_vec());
    assert_eq!(judge(&mut node, Verdict::Accept).await.2, b"heard");
}

#[tokio::test]
async fn shutdown_closes_connections_and_frees_the_ports() {
    let mut node = Node::start(config(1)).await;
    let mut peer = Node::joining(2, &node).await;
    node.connected_to(peer.key).await;
    let (key, mut listen) = (node.key, node.addresses.clone());
    node.stop().await;
    peer.disconnected_from(key).await;
    listen.iter_mut().for_each(|address| drop(address.pop()));
    let again = Node::start(NetConfig { listen, ..config(1) }).await;
    tokio::time::timeout(DEADLINE, again.stop()).await.unwrap();
}
