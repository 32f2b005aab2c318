//! Activation push: one stream carries a header and a payload to a chosen peer and one acknowledgement
//! back. ALPN `iota/push/1`.
//!
//! ```text
//!   sender                                          receiver
//!     │ u32 LE header length ‖ header                  │
//!     │ ‖ u64 LE payload length ‖ payload, end ──────▶ │ checks each length, then reads;
//!     │                                                │ hashes while the bytes come in
//!     │ ◀────── u32 LE length ‖ acknowledgement, end   │ the owner's answer
//! ```
//!
//! The receiver refuses by resetting the stream with a [`Refusal`](crate::push::Refusal) code. Memory for
//! payloads in flight is a budget: a payload is read only once its announced length is granted. When the
//! owner's queue is full the reader waits and with it, by flow control, the sender.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use iroh::EndpointId;
use iroh::endpoint::{Connection, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use iroh::protocol::{AcceptError, ProtocolHandler};
use iroh_blobs::util::connection_pool::ConnectionPool;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::metrics::DataMetrics;
use crate::net::PeerKey;
use crate::traffic::Traffic;

/// Name of the protocol in connection negotiation.
pub const ALPN: &[u8] = b"iota/push/1";

/// Largest acknowledgement. It says yes or no and why; it is not a second payload.
pub const ACK_BYTES_MAX: usize = 16 * 1024;
/// Longest silence in the middle of a frame. A live peer sends or retransmits many times in it.
pub(crate) const STALL: Duration = Duration::from_secs(10);
/// Bytes hashed at once: large enough for the hash's parallel lanes, small enough that hashing keeps up
/// with the network instead of starting when the payload is complete.
const HASH_STEP_BYTES: usize = 64 * 1024;
/// The unit of the memory budget; a semaphore counts in u32.
const BUDGET_UNIT_BYTES: u64 = 1024;

/// What a receiver accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushLimits {
    /// Largest header in bytes.
    pub header_bytes_max: usize,
    /// Largest payload in bytes.
    pub payload_bytes_max: u64,
    /// Payload bytes in memory at once: being read, or not acknowledged yet. At least one payload.
    pub in_flight_bytes_max: u64,
    /// Frames waiting for the owner.
    pub queue: usize,
    /// How long a complete frame waits for room in the queue.
    pub queue_wait: Duration,
    /// How long the owner has to acknowledge.
    pub ack_wait: Duration,
}

impl Default for PushLimits {
    /// Activations of a few MiB and a queue of a few dozen: what a stage works off in seconds.
    fn default() -> Self {
        Self {
            header_bytes_max: 64 * 1024,
            payload_bytes_max: 64 * 1024 * 1024,
            in_flight_bytes_max: 256 * 1024 * 1024,
            queue: 64,
            queue_wait: Duration::from_secs(10),
            ack_wait: Duration::from_secs(30),
        }
    }
}

/// A frame that arrived complete.
#[derive(Debug)]
pub struct IncomingPush {
    /// Who sent it; the connection proves it.
    pub peer: PeerKey,
    /// The header's bytes.
    pub header: Vec<u8>,
    /// The payload's bytes.
    pub payload: Bytes,
    /// BLAKE3 of the payload, computed while it arrived. Compare it with what the header promises.
    pub hash: [u8; 32],
    /// Where the acknowledgement goes; dropping it refuses.
    pub reply: oneshot::Sender<Vec<u8>>,
}

/// Why a receiver reset a stream. The numbers are the error codes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The header is larger than the receiver accepts.
    #[error("the header is too large")]
    HeaderTooLarge = 1,
    /// The payload is larger than the receiver accepts.
    #[error("the payload is too large")]
    PayloadTooLarge = 2,
    /// The frame ended early or late.
    #[error("the frame is malformed")]
    Malformed = 3,
    /// The receiver's queue or memory stayed full.
    #[error("the receiver is busy")]
    Busy = 4,
    /// The receiver's owner did not acknowledge.
    #[error("the receiver did not acknowledge")]
    NotAcknowledged = 5,
    /// The sender went silent in the middle of a frame.
    #[error("the sender stalled")]
    Stalled = 6,
    /// The sender gave up.
    #[error("the sender gave up")]
    Cancelled = 7,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::HeaderTooLarge,
        Self::PayloadTooLarge,
        Self::Malformed,
        Self::Busy,
        Self::NotAcknowledged,
        Self::Stalled,
        Self::Cancelled,
    ];

    fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    fn from_code(code: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }

    /// The metric label of this refusal.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::HeaderTooLarge => "header_too_large",
            Self::PayloadTooLarge => "payload_too_large",
            Self::Malformed => "malformed",
            Self::Busy => "busy",
            Self::NotAcknowledged => "not_acknowledged",
            Self::Stalled => "stalled",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a push was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The key is no point of the curve.
    #[error("the peer's key is not an ed25519 public key")]
    BadKey,
    /// The frame is larger than our own limits.
    #[error("{what} of {got} bytes, expected at most {limit}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its size in bytes.
        got: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// No connection to the peer.
    #[error("connect: {0}")]
    Connect(String),
    /// The receiver refused.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The connection broke, or the acknowledgement is malformed.
    #[error("the stream broke: {0}")]
    Broken(String),
    /// Nothing came back in time.
    #[error("not acknowledged within {0:?}")]
    TimedOut(Duration),
}

/// Hashes bytes as blobs and payloads are named.
#[must_use]
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// The sending half: pushes over pooled connections.
#[derive(Debug, Clone)]
pub(crate) struct PushSender {
    pub(crate) pool: ConnectionPool,
    pub(crate) limits: PushLimits,
    pub(crate) traffic: Traffic,
}

impl PushSender {
    /// Sends one frame and waits for its acknowledgement.
    ///
    /// Cancel safe: dropping the future resets the stream, and the receiver drops what it has.
    pub(crate) async fn push(
        &self,
        peer: PeerKey,
        header: Vec<u8>,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Vec<u8>, PushError> {
        let peer = EndpointId::from_bytes(&peer).map_err(|_| PushError::BadKey)?;
        check("header", header.len() as u64, self.limits.header_bytes_max as u64)?;
        check("payload", payload.len() as u64, self.limits.payload_bytes_max)?;
        let bytes = (header.len() + payload.len()) as u64;
        let acknowledgement = timeout(deadline, self.exchange(peer, &header, payload))
            .await
            .unwrap_or(Err(PushError::TimedOut(deadline)))?;
        self.traffic.push_out.inc_by(bytes);
        Ok(acknowledgement)
    }

    async fn exchange(&self, peer: EndpointId, header: &[u8], payload: Bytes) -> Result<Vec<u8>, PushError> {
        let connection =
            self.pool.get_or_connect(peer).await.map_err(|error| PushError::Connect(error.to_string()))?;
        let (send, mut receive) =
            connection.open_bi().await.map_err(|error| PushError::Broken(error.to_string()))?;
        let mut send = ResetOnDrop(Some(send));
        let mut frame = BytesMut::with_capacity(12 + header.len());
        // Both lengths were checked against limits that fit.
        frame.put_u32_le(u32::try_from(header.len()).unwrap_or(u32::MAX));
        frame.put_slice(header);
        frame.put_u64_le(payload.len() as u64);
        send.write_all(&mut [frame.freeze(), payload]).await.map_err(|error| write_error(&error))?;
        send.finish();
        read_acknowledgement(&mut receive).await
    }
}

fn check(what: &'static str, got: u64, limit: u64) -> Result<(), PushError> {
    if got > limit {
        return Err(PushError::TooLarge { what, got, limit });
    }
    Ok(())
}

async fn read_acknowledgement(receive: &mut RecvStream) -> Result<Vec<u8>, PushError> {
    let mut prefix = [0; 4];
    receive.read_exact(&mut prefix).await.map_err(|error| read_exact_error(&error))?;
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > ACK_BYTES_MAX {
        return Err(PushError::Broken(format!(
            "acknowledgement of {length} bytes, expected at most {ACK_BYTES_MAX}"
        )));
    }
    let mut acknowledgement = vec![0; length];
    receive.read_exact(&mut acknowledgement).await.map_err(|error| read_exact_error(&error))?;
    Ok(acknowledgement)
}

fn write_error(error: &WriteError) -> PushError {
    match error {
        WriteError::Stopped(code) => refused(*code),
        error => PushError::Broken(error.to_string()),
    }
}

fn read_exact_error(error: &ReadExactError) -> PushError {
    match error {
        ReadExactError::ReadError(ReadError::Reset(code)) => refused(*code),
        error => PushError::Broken(error.to_string()),
    }
}

fn refused(code: VarInt) -> PushError {
    match Refusal::from_code(code) {
        Some(refusal) => PushError::Refused(refusal),
        None => PushError::Broken(format!("reset with unknown code {code}")),
    }
}

/// A stream that is reset unless it was finished: dropping a QUIC stream would end it as if complete.
struct ResetOnDrop(Option<SendStream>);

impl ResetOnDrop {
    async fn write_all(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        match &mut self.0 {
            Some(stream) => stream.write_all_chunks(chunks).await,
            None => Ok(()),
        }
    }

    fn finish(mut self) {
        if let Some(mut stream) = self.0.take() {
            // An error means that the receiver has closed the stream; reading will say why.
            let _closed = stream.finish();
        }
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(mut stream) = self.0.take() {
            let _closed = stream.reset(Refusal::Cancelled.code());
        }
    }
}

/// The receiving half: one handler for all connections.
#[derive(Clone)]
pub(crate) struct PushReceiver {
    limits: PushLimits,
    queue: mpsc::Sender<IncomingPush>,
    budget: Arc<Semaphore>,
    traffic: Traffic,
    metrics: DataMetrics,
}

impl fmt::Debug for PushReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushReceiver").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl PushReceiver {
    pub(crate) fn new(
        limits: PushLimits,
        traffic: Traffic,
        metrics: DataMetrics,
    ) -> (Self, mpsc::Receiver<IncomingPush>) {
        let in_flight = limits.in_flight_bytes_max.max(limits.payload_bytes_max);
        let (queue, incoming) = mpsc::channel(limits.queue);
        let budget = Arc::new(Semaphore::new(units(in_flight) as usize));
        let receiver = Self { limits, queue, budget, traffic, metrics };
        (receiver, incoming)
    }

    async fn serve(self, peer: PeerKey, mut send: SendStream, mut receive: RecvStream) {
        match self.handle(peer, &mut send, &mut receive).await {
            Ok(()) => {}
            Err(refusal) => {
                self.metrics.push_refused(refusal);
                // Errors mean that the peer has closed its halves already.
                let _closed = receive.stop(refusal.code());
                let _closed = send.reset(refusal.code());
            }
        }
    }

    async fn handle(
        &self,
        peer: PeerKey,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<(), Refusal> {
        let header = self.read_header(receive).await?;
        let (payload, hash, granted) = self.read_payload(receive).await?;
        self.traffic.push_in.inc_by((header.len() + payload.len()) as u64);
        self.metrics.push_received();
        let (reply, acknowledgement) = oneshot::channel();
        let frame = IncomingPush { peer, header, payload, hash, reply };
        self.queue.send_timeout(frame, self.limits.queue_wait).await.map_err(|_| Refusal::Busy)?;
        let acknowledgement = timeout(self.limits.ack_wait, acknowledgement)
            .await
            .ok()
            .and_then(Result::ok)
            .filter(|acknowledgement| acknowledgement.len() <= ACK_BYTES_MAX)
            .ok_or(Refusal::NotAcknowledged)?;
        // From here on the owner answers for the payload's memory.
        drop(granted);
        let mut answer = BytesMut::with_capacity(4 + acknowledgement.len());
        answer.put_u32_le(u32::try_from(acknowledgement.len()).unwrap_or(u32::MAX));
        answer.put_slice(&acknowledgement);
        send.write_all(&answer).await.map_err(|_| Refusal::Cancelled)?;
        send.finish().map_err(|_| Refusal::Cancelled)
    }

    async fn read_header(&self, receive: &mut RecvStream) -> Result<Vec<u8>, Refusal> {
        let mut prefix = [0; 4];
        read_exact(receive, &mut prefix).await?;
        let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
        if length > self.limits.header_bytes_max {
            return Err(Refusal::HeaderTooLarge);
        }
        let mut header = vec![0; length];
        read_exact(receive, &mut header).await?;
        Ok(header)
    }

    async fn read_payload(
        &self,
        receive: &mut RecvStream,
    ) -> Result<(Bytes, [u8; 32], OwnedSemaphorePermit), Refusal> {
        let mut prefix = [0; 8];
        read_exact(receive, &mut prefix).await?;
        let length = u64::from_le_bytes(prefix);
        if length > self.limits.payload_bytes_max {
            return Err(Refusal::PayloadTooLarge);
        }
        let length = usize::try_from(length).map_err(|_| Refusal::PayloadTooLarge)?;
        let budget = Arc::clone(&self.budget);
        let granted = timeout(self.limits.queue_wait, budget.acquire_many_owned(units(length as u64)))
            .await
            .map_err(|_| Refusal::Busy)?
            .map_err(|_| Refusal::Busy)?;
        let (payload, hash) = read_hashed(receive, length).await?;
        Ok((payload, hash, granted))
    }
}

/// Memory units of a payload, rounded up.
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// Reads exactly `length` bytes and the end of the stream, hashing on the way.
async fn read_hashed(receive: &mut RecvStream, length: usize) -> Result<(Bytes, [u8; 32]), Refusal> {
    let mut hasher = blake3::Hasher::new();
    let mut hashed = 0;
    let mut payload = BytesMut::with_capacity(length);
    while payload.len() < length {
        let room = length - payload.len();
        let read = stalling(receive.read_buf(&mut (&mut payload).limit(room))).await?;
        if read == 0 {
            return Err(Refusal::Malformed);
        }
        if payload.len() - hashed >= HASH_STEP_BYTES {
            hasher.update(&payload[hashed..]);
            hashed = payload.len();
        }
    }
    hasher.update(&payload[hashed..]);
    let after = stalling(receive.read_buf(&mut [0_u8; 1].as_mut_slice())).await?;
    if after != 0 {
        return Err(Refusal::Malformed);
    }
    Ok((payload.freeze(), *hasher.finalize().as_bytes()))
}

async fn read_exact(receive: &mut RecvStream, buffer: &mut [u8]) -> Result<(), Refusal> {
    match timeout(STALL, receive.read_exact(buffer)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(ReadExactError::FinishedEarly(_))) => Err(Refusal::Malformed),
        Ok(Err(ReadExactError::ReadError(_))) => Err(Refusal::Cancelled),
        Err(_) => Err(Refusal::Stalled),
    }
}

async fn stalling(read: impl Future<Output = io::Result<usize>>) -> Result<usize, Refusal> {
    match timeout(STALL, read).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(_)) => Err(Refusal::Cancelled),
        Err(_) => Err(Refusal::Stalled),
    }
}

impl ProtocolHandler for PushReceiver {
    /// Serves the streams of one connection until it closes. QUIC's stream limit bounds the tasks.
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let peer = *connection.remote_id().as_bytes();
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept_bi() => match accepted {
                    Ok((send, receive)) => {
                        streams.spawn(self.clone().serve(peer, send, receive));
                    }
                    Err(_closed) => break,
                },
                Some(ended) = streams.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "push stream task failed");
                    }
                }
            }
        }
        Ok(())
    }
}
