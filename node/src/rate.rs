//! [`UploadRate`]: how fast all uploads of one kind together may go.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A queue in front of an imagined line of the given rate. Bytes are sent once that line would have carried them, so
/// that no more bytes leave in any time since the start than the rate allows. Time in which nobody sends earns
/// nothing.
#[derive(Debug)]
pub(crate) struct UploadRate {
    bytes_per_second: Option<NonZeroU64>,
    /// When the line has carried all that was announced so far.
    free_at: Mutex<Instant>,
}

impl UploadRate {
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until the bytes may leave. First come, first served. A caller that stops waiting keeps its place in
    /// the line, which costs the others its time and nothing else.
    pub(crate) async fn wait_for(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let due = self.announce(Instant::now(), bytes, rate);
        tokio::time::sleep_until(due).await;
    }

    fn announce(&self, now: Instant, bytes: u64, rate: NonZeroU64) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = now.max(*free_at) + time_for(bytes, rate);
        *free_at
    }
}

fn time_for(bytes: u64, rate: NonZeroU64) -> Duration {
    let nanos = u128::from(bytes) * NANOS_PER_SECOND / u128::from(rate.get());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_queue_and_idle_time_earns_nothing() {
        let rate = NonZeroU64::new(1000).unwrap();
        let line = UploadRate::new(Some(rate));
        let start = Instant::now() + Duration::from_secs(60);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(line.announce(at(0), 2000, rate), at(2));
        assert_eq!(line.announce(at(0), 1000, rate), at(3), "behind the first");
        assert_eq!(line.announce(at(10), 1000, rate), at(11), "the seven idle seconds are gone");
    }

    #[test]
    fn no_size_overflows() {
        assert_eq!(time_for(u64::MAX, NonZeroU64::MIN), Duration::from_nanos(u64::MAX));
    }
}
