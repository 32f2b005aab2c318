//! Queues and disks stay bounded: blobs belong to epochs that somebody may still ask for, and what a host stores and
//! what is under way do not grow with the length of a run.

use iota_protocol::limits::BLOB_EPOCHS_KEPT;
use iota_protocol::miner::{Job, Kept};
use iota_protocol::{Epoch, RunSpec};

use super::{Options, broken};
use crate::costs::{Costs, activation_bytes};
use crate::host::VirtualPeer;
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::world::World;

const NAME: &str = "bounds";
/// Events under way for each host. A fifth of this was seen at most, with seven candidates that lost touch.
const QUEUED_PER_HOST: usize = 4096;
/// Epochs of which a host may hold blobs: those kept, the one under way, and the one that a faster neighbour is in.
const EPOCHS_HELD: u64 = BLOB_EPOCHS_KEPT as u64 + 2;
/// Tensors a sample leaves at a host: an activation and its gradient, on either side.
const TENSORS_PER_SAMPLE: u64 = 4;

/// The checker.
#[derive(Clone, Debug)]
pub struct Bounds {
    stored: u64,
    queued: usize,
}

impl Bounds {
    /// The checker of a simulation.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let hosts = options.hosts;
        Self {
            stored: stored_bytes_max(&options.spec, &options.costs, hosts),
            queued: QUEUED_PER_HOST * hosts,
        }
    }
}

/// The most a host may store. Activations of every sample, in each epoch held; for each stage, of which it may own
/// partitions, every submitter's contribution, its own and the merged one; and two whole states.
#[must_use]
pub fn stored_bytes_max(spec: &RunSpec, costs: &Costs, hosts: usize) -> u64 {
    let activations =
        u64::from(spec.training.samples_per_epoch) * TENSORS_PER_SAMPLE * activation_bytes(spec);
    // Partitions are stored as if all were as long as the longest, and receipts are small beside them.
    let vector = 2 * 4 * costs.parameters as u64 + (1 << 20);
    let merges = u64::from(spec.pipeline.stages) * (hosts as u64 + 2) * vector;
    EPOCHS_HELD * (activations + merges) + 4 * vector
}

/// A tag that nobody asks for any more, or not yet.
fn outlived<'a>(tags: impl Iterator<Item = &'a str>, peer: &VirtualPeer) -> Option<String> {
    let remembered =
        peer.miner().and_then(|miner| miner.remembered()).map(|state| (state.stage, state.version));
    // What the engine reads is not taken from under it.
    let read = peer.miner().and_then(|miner| miner.catches_up_by());
    // With a mirror: states on their way to it, and what leads from the checkpoint to the newest version.
    let checkpoint = peer.state().checkpoint().map_or(Epoch(0), |checkpoint| checkpoint.epoch);
    let since = |epoch: Epoch| peer.state().spec().mirror.is_set() && epoch >= checkpoint;
    let is_over = |kept: Kept| match kept {
        Kept::Epoch(stage, epoch) => !peer.state().keeps(stage, epoch),
        // The next process starts from the newest, and whoever checks an epoch from one before.
        Kept::State(stage, epoch) => !peer.state().keeps(stage, epoch) && remembered != Some((stage, epoch)),
        // Who lost its place for good can be shown to have earned it, long after.
        Kept::Proof(..) => false,
    };
    let checks = |kept: Kept| peer.validator().is_some_and(|validator| validator.needs(kept));
    let mirrors = |stage, version| peer.miner().is_some_and(|miner| miner.mirrors(stage, version));
    let in_use = |kept: Kept| match kept {
        Kept::Epoch(_, epoch) => read == Some(kept) || since(epoch) || checks(kept),
        Kept::State(stage, epoch) => {
            read == Some(kept) || since(epoch) || mirrors(stage, epoch) || checks(kept)
        }
        Kept::Proof(..) => true,
    };
    tags.filter(|tag| Kept::parse(tag).is_none_or(|kept| is_over(kept) && !in_use(kept)))
        .map(|tag| {
            format!(
                "{tag} is still kept, with the stage at version {:?}",
                peer.state().stages().iter().map(|s| s.version.0).collect::<Vec<_>>()
            )
        })
        .next()
}

impl Observer for Bounds {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        // When a job is done, whatever its host wanted before has been done. A snapshot that took long is let go of next.
        let (Some(peer), Seen::Done(job, _)) = (seen.peer.filter(|_| seen.honest), seen.seen) else {
            return Ok(());
        };
        if matches!(job, Job::Snapshot { .. }) {
            return Ok(());
        }
        if let Some(what) = outlived(seen.store.tags(), peer) {
            return Err(broken(NAME, seen, what));
        }
        if seen.store.most() > self.stored {
            return Err(broken(
                NAME,
                seen,
                format!("{} of at most {} bytes stored", seen.store.most(), self.stored),
            ));
        }
        if seen.queued > self.queued {
            return Err(broken(
                NAME,
                seen,
                format!("{} of at most {} events under way", seen.queued, self.queued),
            ));
        }
        Ok(())
    }

    fn finish(&mut self, world: &World) -> Result<(), Violation> {
        for (host, virtual_host) in world.hosts().iter().enumerate().filter(|(_, host)| host.is_honest()) {
            let outlived = virtual_host.peer().and_then(|peer| outlived(virtual_host.store.tags(), peer));
            if let Some(what) = outlived {
                return Err(Violation { checker: NAME, at: world.now(), host: Some(host), what });
            }
        }
        Ok(())
    }
}
