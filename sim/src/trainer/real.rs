//! The run's model, stage by stage, as the node computes it: the same [`Worker`] on the same wire form.
//!
//! Tensors are real, and so are their sizes and hashes; only durations are made up, by [`Costs`](crate::costs::Costs).
//! Hosts of one simulation compute one after the other on one machine, so the same seed gives the same bits there. Another
//! machine may round otherwise, which shows in hashes of weights and in nothing that a rule of the protocol rests on.

use std::sync::Arc;

use bytes::Bytes;
use iota_model::Device;
use iota_model::data::Corpus;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::{Hash, RunSpec, StageIndex};
use iota_worker::{Blobs, KeepError, Worker};

use super::{Trainer, Weights};
use crate::blobs::{Blob, BlobStore};

/// An engine that trains the model.
#[derive(Debug)]
pub struct RealTrainer(Worker);

impl RealTrainer {
    /// An engine that holds nothing yet.
    #[must_use]
    pub fn new(spec: &Arc<RunSpec>, corpus: Option<Arc<Corpus>>) -> Self {
        Self(Worker::new(Arc::clone(spec), Device::Cpu, corpus))
    }
}

impl Trainer for RealTrainer {
    fn perform(&mut self, _: StageIndex, job: &Job, store: &mut BlobStore) -> JobDone {
        self.0.perform(job, &mut Disk(store))
    }

    fn weights(&self) -> Option<Weights<'_>> {
        let (stage, version, flat) = self.0.weights()?;
        Some(Weights { stage, version, flat })
    }
}

/// A host's disk, as a worker sees it.
struct Disk<'a>(&'a mut BlobStore);

impl Blobs for Disk<'_> {
    fn blob(&self, hash: Hash) -> Option<Bytes> {
        self.0.get(&hash)?.content.clone()
    }

    fn keep(&mut self, bytes: Bytes, tag: &str) -> Result<Hash, KeepError> {
        let (hash, blob) = Blob::of(bytes);
        self.0.keep(hash, blob, tag).map(|()| hash).map_err(|full| KeepError(full.to_string()))
    }

    fn publish(&mut self, blobs: Vec<Bytes>, tag: &str) -> Result<Vec<Hash>, KeepError> {
        blobs.into_iter().map(|bytes| self.keep(bytes, tag)).collect()
    }
}
