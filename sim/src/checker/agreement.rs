//! Replicas become one again: all honest ones that reach a version of a stage's weights hold the same weights, epochs
//! start from them, and they are what the decided outcomes make of the initial ones.
//!
//! Weights loaded from a replica count from the first job done with them: the offer may have been a lie, which shows
//! when an epoch opens from others. Weights of a merge that was undone may still be applied by a host whose log does not
//! reach that far yet, and count from the first job done with them as well.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::miner::{Job, JobDone};
use iota_protocol::run_state::{RunState, StateEvent};
use iota_protocol::{Epoch, Hash, StageIndex};

use super::history::History;
use super::{Options, broken};
use crate::network::HostIndex;
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::trainer::{Compute, cost};

const NAME: &str = "agreement";

/// The checker.
#[derive(Debug)]
pub struct Agreement {
    history: History,
    compute: Compute,
    agreed: BTreeMap<(StageIndex, Epoch), Hash>,
    /// Versions whose merges were undone.
    undone: BTreeSet<(StageIndex, Epoch)>,
    held: BTreeMap<HostIndex, (StageIndex, Epoch, Hash)>,
}

impl Agreement {
    /// The checker of a simulation.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let cost = options.compute == Compute::Cost;
        let initial = options.spec.stages().filter(|_| cost);
        Self {
            history: History::new(options),
            compute: options.compute,
            agreed: initial.map(|stage| ((stage, Epoch(0)), cost::initial(stage))).collect(),
            undone: BTreeSet::new(),
            held: BTreeMap::new(),
        }
    }

    fn follow(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let Self { history, compute, agreed, undone, .. } = self;
        history.follow(seen, |state, event| match event {
            StateEvent::EpochOpened(stage, epoch, _) => {
                let Some(base) = opened_from(state, *stage) else { return Ok(()) };
                agree(agreed, (*stage, *epoch), base)
                    .map_err(|what| broken(NAME, seen, format!("epoch opened: {what}")))
            }
            StateEvent::Merged(stage, epoch, ..) if *compute == Compute::Cost => {
                let Some(closed) = state.stage(*stage).and_then(|stage| stage.closed_epoch(*epoch)) else {
                    return Ok(());
                };
                let next = cost::applied(closed.training.base, &closed.partitions);
                agree(agreed, (*stage, epoch.next()), next)
                    .map_err(|what| broken(NAME, seen, format!("merge closed: {what}")))
            }
            StateEvent::Undone(stage, epoch) => {
                let versions = (*stage, epoch.next())..=(*stage, Epoch(u32::MAX));
                agreed.retain(|of, _| !versions.contains(of));
                let newest = state.stage(*stage).map_or(*epoch, |stage| stage.version);
                undone.extend((epoch.0..newest.0).map(|epoch| (*stage, Epoch(epoch).next())));
                Ok(())
            }
            _ => Ok(()),
        })
    }

    fn works_with(&mut self, seen: &Observation<'_>, works: Epoch) -> Result<(), Violation> {
        match self.held.get(&seen.host) {
            Some((stage, version, hash)) if *version == works => {
                agree(&mut self.agreed, (*stage, *version), *hash)
                    .map_err(|what| broken(NAME, seen, format!("works with {what}")))
            }
            Some((stage, version, _)) => Err(broken(
                NAME,
                seen,
                format!("works on epoch {works} with version {version} of stage {stage}"),
            )),
            None => Err(broken(NAME, seen, format!("works on epoch {works} without weights"))),
        }
    }
}

/// Whether the host's own log says that something was merged for this version.
fn knows_a_merge(seen: &Observation<'_>, stage: StageIndex, version: Epoch) -> bool {
    let before = version.0.checked_sub(1).map(Epoch);
    let known = seen.peer.zip(before).and_then(|(peer, epoch)| peer.state().stage(stage)?.merge_of(epoch));
    known.is_some_and(|(_, partitions)| !partitions.is_empty())
}

fn opened_from(state: &RunState, stage: StageIndex) -> Option<Hash> {
    Some(state.stage(stage)?.training()?.base)
}

/// Compares with what is known of a version; the first to say it is right.
fn agree(
    agreed: &mut BTreeMap<(StageIndex, Epoch), Hash>,
    (stage, version): (StageIndex, Epoch),
    hash: Hash,
) -> Result<(), String> {
    let known = *agreed.entry((stage, version)).or_insert(hash);
    if known == hash {
        return Ok(());
    }
    Err(format!("version {version} of stage {stage} is {hash}, expected {known}"))
}

impl Observer for Agreement {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        self.follow(seen)?;
        if !seen.honest {
            return Ok(());
        }
        match seen.seen {
            Seen::Started => drop(self.held.remove(&seen.host)),
            Seen::Done(job, JobDone::Weights { stage, version, hash }) => {
                self.held.insert(seen.host, (*stage, *version, *hash));
                let behind =
                    self.undone.contains(&(*stage, *version)) && knows_a_merge(seen, *stage, *version);
                if matches!(job, Job::Initialise { .. } | Job::Apply { .. }) && !behind {
                    agree(&mut self.agreed, (*stage, *version), *hash)
                        .map_err(|what| broken(NAME, seen, what))?;
                }
            }
            Seen::Done(
                Job::Forward { epoch, .. } | Job::Loss { epoch, .. } | Job::Contribute { epoch, .. },
                _,
            ) => self.works_with(seen, *epoch)?,
            _ => {}
        }
        Ok(())
    }
}
