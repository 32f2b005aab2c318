//! Counts the bytes that peers fetch from us, and holds them to a rate.

use std::num::NonZeroU64;
use std::sync::Arc;

use iroh_blobs::provider::events::{
    ConnectMode, EventMask, EventSender, ObserveMode, ProviderMessage, RequestMode, RequestUpdate,
    ThrottleMode,
};
use prometheus_client::metrics::counter::Counter;
use tokio::task::{JoinHandle, JoinSet};

use crate::rate::UploadRate;

/// Requests whose start has not been looked at yet, and pieces that ask whether they may leave. A full queue makes peers
/// wait, nothing is lost.
const EVENTS_MAX: usize = 256;

/// Plain gets are served and reported; what writes to our store or multiplies work is not served.
const MASK: EventMask = EventMask {
    connected: ConnectMode::None,
    get: RequestMode::NotifyLog,
    get_many: RequestMode::Disabled,
    push: RequestMode::Disabled,
    observe: ObserveMode::None,
    throttle: ThrottleMode::None,
};

/// Returns what the blob protocol reports to, and the task that counts and, with a `rate`, lets each piece go when its turn
/// has come; the task ends with the protocol.
pub(super) fn count(bytes: Counter, rate: Option<NonZeroU64>) -> (EventSender, JoinHandle<()>) {
    let throttle = rate.map_or(ThrottleMode::None, |_| ThrottleMode::Intercept);
    let (sender, mut events) = EventSender::channel(EVENTS_MAX, EventMask { throttle, ..MASK });
    let rate = Arc::new(UploadRate::new(rate));
    let task = tokio::spawn(async move {
        let mut requests = JoinSet::new();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(ProviderMessage::GetRequestReceivedNotify(request)) => {
                        let (mut updates, bytes) = (request.rx, bytes.clone());
                        requests.spawn(async move {
                            while let Ok(Some(update)) = updates.recv().await {
                                bytes.inc_by(sent(&update));
                            }
                        });
                    }
                    Some(ProviderMessage::Throttle(piece)) => {
                        let rate = Arc::clone(&rate);
                        requests.spawn(async move {
                            rate.wait_for(piece.inner.size).await;
                            // Fails only when the peer has gone meanwhile.
                            let _ = piece.tx.send(Ok(())).await;
                        });
                    }
                    Some(_) => {}
                    None => break,
                },
                Some(ended) = requests.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "blob request task failed");
                    }
                }
            }
        }
    });
    (sender, task)
}

/// Returns the payload bytes that an update settles.
fn sent(update: &RequestUpdate) -> u64 {
    match update {
        RequestUpdate::Completed(done) => done.stats.payload_bytes_sent,
        RequestUpdate::Aborted(cut) => cut.stats.payload_bytes_sent,
        RequestUpdate::Started(_) | RequestUpdate::Progress(_) => 0,
    }
}
