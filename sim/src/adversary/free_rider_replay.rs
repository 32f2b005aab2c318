//! Peer that works for one epoch, then contributes the same again and again.

use iota_protocol::Hash;
use iota_protocol::miner::outbox::tag;
use iota_protocol::miner::{Job, JobDone};

use super::forgery::{keep, pretended, unmoved};
use super::{Behaviour, Means};
use crate::blobs::Blob;

#[derive(Default)]
pub(super) struct FreeRiderReplay {
    first: Vec<(Hash, Blob)>,
}

impl Behaviour for FreeRiderReplay {
    fn shirks(&mut self, means: &mut Means<'_>, job: &Job) -> Option<JobDone> {
        if self.first.is_empty() {
            return None;
        }
        if let Job::Contribute { stage, epoch, .. } = job {
            let tag = tag(*stage, *epoch);
            let parts = self.first.iter().map(|(hash, blob)| keep(means, *hash, blob.clone(), &tag));
            let partitions = parts.collect();
            return Some(unmoved(means, *stage, *epoch, partitions));
        }
        pretended(means, job, |_, len| vec![0.0; len])
    }

    fn computed(&mut self, means: &mut Means<'_>, _: &Job, done: JobDone) -> JobDone {
        if let JobDone::Contributed { partitions, .. } = &done {
            let blobs = partitions.iter().filter_map(|hash| Some((*hash, means.store.get(hash)?.clone())));
            self.first = blobs.collect();
        }
        done
    }
}
