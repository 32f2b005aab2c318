//! What the rest of the node sees of the control plane: a handle to ask, events to answer.

use std::time::Duration;

use libp2p::gossipsub::MessageId;
use libp2p::request_response::ResponseChannel;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};

use super::config::DIAL_ALLOWANCE;
use super::peer::{PeerKey, peer_id};
use crate::metrics::NetMetrics;

/// Something that happened, in the order it happened.
#[derive(Debug)]
pub enum NetEvent {
    /// A gossip message with a valid signature. It travels no further until it is reported.
    Gossip {
        /// The topic as configured, without the run.
        topic: String,
        /// Who signed it.
        source: PeerKey,
        /// Who handed it to us.
        relay: PeerKey,
        /// The payload.
        bytes: Vec<u8>,
        /// Pass it to [`NetHandle::report`] within about ten seconds.
        token: GossipToken,
    },
    /// A peer asks; dropping `reply` refuses.
    Request {
        /// Who asks.
        peer: PeerKey,
        /// The request.
        bytes: Vec<u8>,
        /// Where the answer goes.
        reply: Reply,
    },
    /// The first connection to a peer is up.
    Connected(PeerKey),
    /// The last connection to a peer is gone.
    Disconnected(PeerKey),
    /// A new address is listened on.
    Listening(Multiaddr),
    /// A bootstrap address did not answer; it will be dialled again.
    BootstrapFailed {
        /// The address as configured.
        address: Multiaddr,
        /// Why it failed.
        error: String,
    },
    /// A peer of another run or another protocol was disconnected.
    WrongRun {
        /// The peer.
        peer: PeerKey,
        /// The protocol it announced.
        announced: String,
    },
}

/// Names a received gossip message in [`NetHandle::report`].
#[derive(Debug)]
pub struct GossipToken {
    pub(super) id: MessageId,
    pub(super) relay: PeerId,
}

/// What the owner thinks of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Good: pass it on.
    Accept,
    /// Not useful, nobody's fault: pass nothing on.
    Ignore,
    /// Breaks a rule: pass nothing on and lower the score of who relayed it.
    Reject,
}

/// The way back to a peer that asked.
#[derive(Debug)]
pub struct Reply {
    pub(super) channel: ResponseChannel<Vec<u8>>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Reply {
    /// Answers. An answer after the peer's deadline, or one above the size limit, is dropped.
    pub fn send(self, bytes: Vec<u8>) {
        let response = Command::Respond(self.channel, bytes);
        if self.commands.try_send(response).is_err() {
            tracing::debug!("response dropped: the command queue is full or closed");
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The key is no point of the curve.
    #[error("the peer's key is not an ed25519 public key")]
    BadKey,
    /// No connection, and no known address answered.
    #[error("the peer cannot be reached")]
    Unreachable,
    /// Nothing came back in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The connection closed, or the peer refused by closing the stream.
    #[error("the peer closed the stream: {0}")]
    Closed(String),
    /// The peer does not speak the protocol.
    #[error("the peer does not speak /iota/rpc/1")]
    Unsupported,
    /// The request is larger than the limit.
    #[error("request of {got} bytes, expected at most {limit}")]
    TooLarge {
        /// The request's size in bytes.
        got: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Too many of our own requests are unanswered.
    #[error("too many requests are unanswered")]
    Busy,
    /// The control plane has shut down.
    #[error("the control plane has shut down")]
    ShutDown,
}

/// Where the control plane stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Addresses listened on.
    pub listen: Vec<Multiaddr>,
    /// Connected peers, sorted.
    pub connected: Vec<PeerKey>,
}

/// A request to the swarm task.
#[derive(Debug)]
pub(super) enum Command {
    Subscribe(String),
    Unsubscribe(String),
    Publish(String, Vec<u8>),
    Request(PeerId, Vec<u8>, oneshot::Sender<Result<Vec<u8>, RequestError>>),
    Respond(ResponseChannel<Vec<u8>>, Vec<u8>),
    Report(GossipToken, Verdict),
    Dial(Multiaddr),
    AddAddresses(PeerId, Vec<Multiaddr>),
    SetScore(PeerId, f64),
    Disconnect(PeerId),
    Ban(PeerId),
    Snapshot(oneshot::Sender<Snapshot>),
    Shutdown(oneshot::Sender<()>),
}

/// Asks the control plane; cheap to clone.
#[derive(Debug, Clone)]
pub struct NetHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) metrics: NetMetrics,
    pub(super) rpc_max_bytes: usize,
    pub(super) rpc_timeout: Duration,
}

impl NetHandle {
    /// Announces `bytes` on a topic. Without a subscriber the message waits for a few seconds; a second
    /// message with the same bytes on the same topic is dropped. Gossip may be lost.
    pub fn publish(&self, topic: impl Into<String>, bytes: Vec<u8>) {
        self.command(Command::Publish(topic.into(), bytes));
    }

    /// Joins a topic.
    pub fn subscribe(&self, topic: impl Into<String>) {
        self.command(Command::Subscribe(topic.into()));
    }

    /// Leaves a topic. Messages of it that wait to be published may still go out.
    pub fn unsubscribe(&self, topic: impl Into<String>) {
        self.command(Command::Unsubscribe(topic.into()));
    }

    /// Asks one peer and waits for its answer, dialling when an address is known.
    ///
    /// # Errors
    /// See [`RequestError`]; always within the configured timeout plus a few seconds for the dial.
    ///
    /// Cancel safe: a dropped request's answer is discarded.
    pub async fn request(&self, peer: PeerKey, bytes: Vec<u8>) -> Result<Vec<u8>, RequestError> {
        let peer = peer_id(&peer).ok_or(RequestError::BadKey)?;
        if bytes.len() > self.rpc_max_bytes {
            return Err(RequestError::TooLarge { got: bytes.len(), limit: self.rpc_max_bytes });
        }
        let deadline = self.rpc_timeout + DIAL_ALLOWANCE;
        let (answer, answered) = oneshot::channel();
        let ask = async {
            self.commands
                .send(Command::Request(peer, bytes, answer))
                .await
                .map_err(|_| RequestError::ShutDown)?;
            answered.await.map_err(|_| RequestError::ShutDown)?
        };
        tokio::time::timeout(deadline, ask).await.unwrap_or(Err(RequestError::TimedOut(deadline)))
    }

    /// Says what became of a gossip message.
    pub fn report(&self, token: GossipToken, verdict: Verdict) {
        self.command(Command::Report(token, verdict));
    }

    /// Dials an address once.
    pub fn dial(&self, address: Multiaddr) {
        self.command(Command::Dial(address));
    }

    /// Remembers where a peer listens.
    pub fn add_address(&self, peer: PeerKey, addresses: Vec<Multiaddr>) {
        self.for_peer(peer, |peer| Command::AddAddresses(peer, addresses));
    }

    /// Adds the protocol's opinion of a peer to its gossip score; negative is bad. Below −10 the peer
    /// gets no gossip, below −80 it is not listened to.
    pub fn set_application_score(&self, peer: PeerKey, score: f64) {
        self.for_peer(peer, |peer| Command::SetScore(peer, score));
    }

    /// Closes the connections to a peer; it may come back.
    pub fn disconnect(&self, peer: PeerKey) {
        self.for_peer(peer, Command::Disconnect);
    }

    /// Closes the connections to a peer and refuses new ones until the process ends.
    pub fn ban(&self, peer: PeerKey) {
        self.for_peer(peer, Command::Ban);
    }

    /// Returns where the control plane stands; empty after shutdown.
    pub async fn snapshot(&self) -> Snapshot {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Snapshot(answer)).await.is_err() {
            return Snapshot::default();
        }
        answered.await.unwrap_or_default()
    }

    /// Closes every connection and listener and ends the task; returns when that is done.
    pub async fn shutdown(&self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Shutdown(answer)).await.is_ok() {
            // An error means that the task is gone, which is what was asked for.
            let _ended = answered.await;
        }
    }

    fn for_peer(&self, peer: PeerKey, command: impl FnOnce(PeerId) -> Command) {
        if let Some(peer) = peer_id(&peer) {
            self.command(command(peer));
        }
    }

    /// Queues a command that has no answer. The swarm task drains the queue without ever waiting, so
    /// a full queue means a flood, and dropping is counted.
    fn command(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            self.metrics.command_dropped();
        }
    }
}
