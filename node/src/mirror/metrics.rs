//! What the mirror counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::error::{FailureKind, MirrorError, Operation};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    operation: Operation,
    kind: FailureKind,
}

/// Counters of the mirror.
#[derive(Debug, Clone, Default)]
pub struct MirrorMetrics {
    uploads: Counter,
    upload_bytes: Counter,
    present: Counter,
    downloads: Counter,
    download_bytes: Counter,
    failures: Family<FailureLabels, Counter>,
}

impl MirrorMetrics {
    /// Creates the counters and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        add("iota_mirror_uploads", "Increments when the mirror has stored an object", &metrics.uploads);
        add("iota_mirror_upload_bytes", "Grows by the size of each object stored", &metrics.upload_bytes);
        add(
            "iota_mirror_present",
            "Increments when an upload is spared because the mirror has the object",
            &metrics.present,
        );
        add("iota_mirror_downloads", "Increments when an object was read and checked", &metrics.downloads);
        add("iota_mirror_download_bytes", "Grows by the size of each object read", &metrics.download_bytes);
        registry.register(
            "iota_mirror_failures",
            "Increments when an operation of the mirror fails for good, by operation and kind",
            metrics.failures.clone(),
        );
        metrics
    }

    pub(super) fn uploaded(&self, bytes: u64) {
        self.uploads.inc();
        self.upload_bytes.inc_by(bytes);
    }

    pub(super) fn spared(&self) {
        self.present.inc();
    }

    pub(super) fn downloaded(&self, bytes: u64) {
        self.downloads.inc();
        self.download_bytes.inc_by(bytes);
    }

    pub(super) fn failed(&self, operation: Operation, error: &MirrorError) {
        self.failures.get_or_create(&FailureLabels { operation, kind: error.kind() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_appear_in_the_text_with_their_labels() {
        let mut registry = Registry::default();
        let metrics = MirrorMetrics::register(&mut registry);
        metrics.uploaded(10);
        metrics.failed(
            Operation::Get,
            &MirrorError::Missing { operation: Operation::Get, object: "o".to_owned() },
        );
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let has = |line: &str| assert!(text.contains(line), "{line} is missing in:\n{text}");
        has("iota_mirror_upload_bytes_total 10");
        has("iota_mirror_failures_total{operation=\"Get\",kind=\"Missing\"} 1");
    }
}
