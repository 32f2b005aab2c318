//! Counts the bytes that peers fetch from us.

use iroh_blobs::provider::events::{
    ConnectMode, EventMask, EventSender, ObserveMode, ProviderMessage, RequestMode, RequestUpdate,
    ThrottleMode,
};
use prometheus_client::metrics::counter::Counter;
use tokio::task::{JoinHandle, JoinSet};

/// Requests whose start has not been looked at yet. A full queue makes peers wait, nothing is lost.
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

/// Returns what the blob protocol reports to, and the task that counts; the task ends with the protocol.
pub(super) fn count(bytes: Counter) -> (EventSender, JoinHandle<()>) {
    let (sender, mut events) = EventSender::channel(EVENTS_MAX, MASK);
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
