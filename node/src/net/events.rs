//! What the swarm task makes of libp2p's events.

use std::time::Instant;

use libp2p::metrics::Recorder;
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, gossipsub, identify, mdns};

use super::behaviour::BehaviourEvent;
use super::config::ADDRESSES_PER_PEER_MAX;
use super::handle::{GossipToken, NetEvent, Reply, RequestError, Verdict};
use super::peer::peer_key;
use super::swarm::SwarmTask;
use crate::metrics::Refusal;

impl SwarmTask {
    pub(super) fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        self.libp2p.record(&event);
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, num_established, ..
            } => {
                self.bootstrap.established(connection_id, peer_id);
                if is_loopback(endpoint.get_remote_address()) {
                    self.loopback.insert(peer_id);
                }
                if num_established.get() == 1 {
                    self.tell_of(peer_id, NetEvent::Connected);
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.bootstrap.lost(peer_id, Instant::now());
                self.loopback.remove(&peer_id);
                self.processes.remove(&peer_id);
                self.tell_of(peer_id, NetEvent::Disconnected);
                if let Some(addresses) = self.redials.remove(&peer_id) {
                    self.dial(DialOpts::peer_id(peer_id).addresses(addresses).build());
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_failed(connection_id, &error)
            }
            SwarmEvent::NewListenAddr { address, .. } => self.tell(NetEvent::Listening(address)),
            _ => {}
        }
    }

    fn on_dial_failed(&mut self, connection: ConnectionId, error: &DialError) {
        if matches!(error, DialError::LocalPeerId { .. }) {
            self.bootstrap.reached_ourselves(connection);
            return;
        }
        if let Some(address) = self.bootstrap.failed(connection, Instant::now()) {
            let error = error.to_string();
            tracing::debug!(%address, error, "bootstrap address did not answer");
            self.tell(NetEvent::BootstrapFailed { address, error });
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(event) => {
                self.libp2p.record(&event);
                if let gossipsub::Event::Message { propagation_source, message_id, message } = event {
                    let token = GossipToken { id: message_id, relay: propagation_source };
                    self.on_gossip(token, message);
                }
            }
            BehaviourEvent::Rpc(event) => self.on_rpc(event),
            BehaviourEvent::Identify(event) => {
                self.libp2p.record(&event);
                if let identify::Event::Received { peer_id, info, .. } = event {
                    self.on_identified(peer_id, info);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.add_address(peer, address.clone());
                    let dial = DialOpts::peer_id(peer)
                        .addresses(vec![address])
                        .condition(PeerCondition::DisconnectedAndNotDialing);
                    self.dial(dial.build());
                }
            }
            BehaviourEvent::Kad(event) => self.libp2p.record(&event),
            BehaviourEvent::Ping(event) => self.libp2p.record(&event),
            _ => {}
        }
    }

    fn on_gossip(&mut self, token: GossipToken, message: gossipsub::Message) {
        let source = message.source.as_ref().and_then(peer_key);
        let relay = peer_key(&token.relay);
        let topic = self.topics.get(&message.topic).cloned();
        let (Some(source), Some(relay)) = (source, relay) else {
            self.report(&token, Verdict::Reject);
            return;
        };
        let Some(topic) = topic else {
            // The topic was left while the message was on its way.
            self.report(&token, Verdict::Ignore);
            return;
        };
        if message.data.len() > self.config.gossip_max_bytes {
            self.report(&token, Verdict::Reject);
            return;
        }
        self.traffic.gossip_in.inc_by(message.data.len() as u64);
        let event = NetEvent::Gossip { topic, source, relay, bytes: message.data, token };
        if let Some(NetEvent::Gossip { token, .. }) = self.offer(event) {
            self.report(&token, Verdict::Ignore);
        }
    }

    fn on_rpc(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, InboundFailure, Message};
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.traffic.rpc_in.inc_by(request.len() as u64);
                let (Some(peer), Some(commands)) = (peer_key(&peer), self.commands.upgrade()) else {
                    return;
                };
                self.metrics.request_received();
                let reply = Reply { channel, commands };
                let event = NetEvent::Request { peer, bytes: request, reply };
                if self.offer(event).is_some() {
                    self.metrics.request_refused(Refusal::Busy);
                }
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.traffic.rpc_in.inc_by(response.len() as u64);
                self.answer(request_id, Ok(response));
            }
            Event::OutboundFailure { request_id, error, .. } => {
                let error = self.request_error(error);
                self.answer(request_id, Err(error));
            }
            Event::InboundFailure { peer, error, .. } => {
                let refusal = match error {
                    InboundFailure::Io(_) => Refusal::Malformed,
                    InboundFailure::Timeout => Refusal::Late,
                    InboundFailure::ResponseOmission => Refusal::Dropped,
                    _ => Refusal::Closed,
                };
                tracing::debug!(%peer, %error, "request not served");
                self.metrics.request_refused(refusal);
            }
            Event::ResponseSent { .. } => {}
        }
    }

    fn request_error(&self, failure: OutboundFailure) -> RequestError {
        match failure {
            OutboundFailure::DialFailure => RequestError::Unreachable,
            OutboundFailure::Timeout => RequestError::TimedOut(self.config.rpc_timeout),
            OutboundFailure::ConnectionClosed => RequestError::Closed("connection closed".into()),
            OutboundFailure::UnsupportedProtocols => RequestError::Unsupported,
            OutboundFailure::Io(error) => RequestError::Closed(error.to_string()),
        }
    }

    fn answer(&mut self, id: OutboundRequestId, result: Result<Vec<u8>, RequestError>) {
        if let Some(answer) = self.requests.remove(&id) {
            let _caller_left = answer.send(result);
        }
    }

    /// Learns where a peer of our run listens; a peer of another run is disconnected.
    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        if info.protocol_version != self.version {
            self.disconnect(peer);
            let announced = info.protocol_version;
            self.tell_of(peer, |peer| NetEvent::WrongRun { peer, announced });
            return;
        }
        let on_loopback = self.loopback.contains(&peer);
        let reachable = info
            .listen_addrs
            .into_iter()
            .filter(|address| on_loopback || !is_loopback(address))
            .take(ADDRESSES_PER_PEER_MAX)
            .collect::<Vec<_>>();
        for address in reachable.clone() {
            self.add_address(peer, address);
        }
        self.notice_process(peer, info.agent_version, reachable);
    }

    /// Closes all connections to a peer of which another process runs, and dials that one. Gossipsub tells a peer what it
    /// listens to on the first of several connections only, and the one to the process that was stays open until it
    /// has been silent for long.
    fn notice_process(&mut self, peer: PeerId, process: String, addresses: Vec<Multiaddr>) {
        let known = self.processes.insert(peer, process.clone());
        if known.is_some_and(|known| known != process) {
            tracing::debug!(%peer, process, "another process of this peer runs");
            self.redials.insert(peer, addresses);
            self.disconnect(peer);
        }
    }
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}
