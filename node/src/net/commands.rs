//! What the swarm task does for its owner.

use std::time::Instant;

use libp2p::gossipsub::{MessageAcceptance, PublishError};
use libp2p::request_response::ResponseChannel;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId};

use super::behaviour::{join, wire_topic};
use super::config::{ADDRESSES_PER_PEER_MAX, REQUESTS_MAX};
use super::handle::{Command, GossipToken, RequestError, Snapshot, Verdict};
use super::outbox::Attempt;
use super::peer::peer_key;
use super::swarm::{Answer, SwarmTask};
use crate::metrics::Refusal;

impl SwarmTask {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Publish(topic, bytes) => self.publish(topic, bytes),
            Command::Subscribe(topic) => self.subscribe(topic),
            Command::Unsubscribe(topic) => self.unsubscribe(&topic),
            Command::Request(peer, bytes, answer) => self.request(peer, bytes, answer),
            Command::Respond(channel, bytes) => self.respond(channel, bytes),
            Command::Report(token, verdict) => self.report(&token, verdict),
            Command::Dial(address) => self.dial(DialOpts::from(address)),
            Command::AddAddresses(peer, addresses) => {
                for address in addresses.into_iter().take(ADDRESSES_PER_PEER_MAX) {
                    self.add_address(peer, address);
                }
            }
            Command::SetScore(peer, score) => {
                self.swarm.behaviour_mut().gossip.set_application_score(&peer, score);
            }
            Command::Disconnect(peer) => self.disconnect(peer),
            Command::Ban(peer) => {
                self.swarm.behaviour_mut().banned.block_peer(peer);
                self.swarm.behaviour_mut().gossip.blacklist_peer(&peer);
                self.disconnect(peer);
            }
            Command::Snapshot(answer) => {
                let _caller_left = answer.send(self.snapshot());
            }
            Command::Shutdown(_) => unreachable!("handled by apply"),
        }
    }

    fn subscribe(&mut self, topic: String) {
        let wire = wire_topic(&self.config.run, &topic);
        if let Err(error) = join(&mut self.swarm.behaviour_mut().gossip, &wire) {
            tracing::warn!(topic, error, "gossip topic not joined");
            return;
        }
        self.topics.insert(wire.hash(), topic);
    }

    fn unsubscribe(&mut self, topic: &str) {
        let wire = wire_topic(&self.config.run, topic);
        self.swarm.behaviour_mut().gossip.unsubscribe(&wire);
        self.topics.remove(&wire.hash());
    }

    fn publish(&mut self, topic: String, bytes: Vec<u8>) {
        if bytes.len() > self.config.gossip_max_bytes {
            self.metrics.publish_given_up(1);
            tracing::warn!(topic, bytes = bytes.len(), "gossip message above the limit");
            return;
        }
        if self.publish_once(&topic, &bytes) == Attempt::Later {
            let dropped = self.outbox.keep(topic, bytes, Instant::now());
            self.metrics.publish_given_up(dropped);
        }
    }

    pub(super) fn publish_once(&mut self, topic: &str, bytes: &[u8]) -> Attempt {
        let wire = wire_topic(&self.config.run, topic);
        let sent = self.swarm.behaviour_mut().gossip.publish(wire, bytes);
        match sent {
            Ok(_) => {
                self.traffic.gossip_out.inc_by(bytes.len() as u64);
            }
            Err(PublishError::Duplicate) => {}
            Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => {
                return Attempt::Later;
            }
            Err(error) => {
                self.metrics.publish_given_up(1);
                tracing::warn!(topic, %error, "gossip message not published");
            }
        }
        Attempt::Done
    }

    fn request(&mut self, peer: PeerId, bytes: Vec<u8>, answer: Answer) {
        self.requests.retain(|_, waiting| !waiting.is_closed());
        if self.requests.len() >= REQUESTS_MAX {
            let _caller_left = answer.send(Err(RequestError::Busy));
            return;
        }
        self.traffic.rpc_out.inc_by(bytes.len() as u64);
        let id = self.swarm.behaviour_mut().rpc.send_request(&peer, bytes);
        self.requests.insert(id, answer);
    }

    fn respond(&mut self, channel: ResponseChannel<Vec<u8>>, bytes: Vec<u8>) {
        if bytes.len() > self.config.rpc_max_bytes {
            tracing::warn!(bytes = bytes.len(), "response above the limit");
            self.metrics.request_refused(Refusal::Oversize);
            return;
        }
        self.traffic.rpc_out.inc_by(bytes.len() as u64);
        let sent = self.swarm.behaviour_mut().rpc.send_response(channel, bytes);
        if sent.is_err() {
            self.metrics.request_refused(Refusal::Late);
        }
    }

    pub(super) fn report(&mut self, token: &GossipToken, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        if !gossip.report_message_validation_result(&token.id, &token.relay, acceptance) {
            self.metrics.gossip_reported_late();
        }
    }

    pub(super) fn dial(&mut self, dial: impl Into<DialOpts>) {
        if let Err(error) = self.swarm.dial(dial) {
            tracing::debug!(%error, "dial not started");
        }
    }

    pub(super) fn add_address(&mut self, peer: PeerId, address: Multiaddr) {
        self.swarm.add_peer_address(peer, address.clone());
        self.swarm.behaviour_mut().kad.add_address(&peer, address);
    }

    pub(super) fn disconnect(&mut self, peer: PeerId) {
        // An error means that there was no connection.
        let _was_connected = self.swarm.disconnect_peer_id(peer);
    }

    fn snapshot(&self) -> Snapshot {
        let mut connected: Vec<_> = self.swarm.connected_peers().filter_map(peer_key).collect();
        connected.sort_unstable();
        Snapshot { listen: self.swarm.listeners().cloned().collect(), connected }
    }
}
