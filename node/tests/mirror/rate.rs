//! The limit on uploads: a lower bound on time, which no slow machine can break.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use iota_node::mirror::{MirrorConfig, Put};

use crate::support::{blob, counted, open_counted, places};

#[tokio::test]
async fn uploads_together_keep_to_the_rate() {
    const RATE: u64 = 1 << 20;
    const LENGTHS: [usize; 4] = [100_000, 200_000, 300_000, 100_001];
    for place in places().await {
        let upload_rate = NonZeroU64::new(RATE);
        let (mirror, registry) = open_counted(MirrorConfig { upload_rate, ..place.config.clone() });
        let started = Instant::now();
        let puts = LENGTHS.map(|length| {
            let (mirror, (hash, bytes)) = (mirror.clone(), blob(length));
            async move { mirror.put(hash, bytes).await }
        });
        let outcomes = futures::future::try_join_all(puts).await.unwrap();
        let elapsed = started.elapsed();
        assert_eq!(outcomes, [Put::Written; 4], "{}", place.name);
        let sent: usize = LENGTHS.iter().sum();
        assert_eq!(mirror.health().uploaded_bytes, sent as u64);
        assert!(counted(&registry, &format!("iota_mirror_upload_bytes_total {sent}")));
        assert!(elapsed >= Duration::from_secs_f64(sent as f64 / RATE as f64), "{}: {elapsed:?}", place.name);
    }
}
