//! A merge that closes covers the whole vector, and each part of it is what an honest owner makes of exactly the
//! contributions in the decided plan, in peer order, each with its decided weight.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::limits::CLOSED_EPOCHS_KEPT;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::run_state::{Closed, Plan, StateEvent};
use iota_protocol::{Epoch, Hash, PartitionIndex, PeerId, StageIndex};

use super::history::History;
use super::{Options, broken};
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::trainer::{Compute, cost};

const NAME: &str = "coverage";

/// Who is merged with which weight.
type Weights = Vec<(PeerId, u32)>;

/// What honest owners made of which contributions.
type Reductions = BTreeMap<(StageIndex, Epoch, PartitionIndex), Vec<(Weights, Hash)>>;

/// The checker.
#[derive(Debug)]
pub struct Coverage {
    history: History,
    compute: Compute,
    /// Plans decided, by epoch. All of them: a host that stood still ends a job of an epoch that is long over.
    plans: BTreeMap<(StageIndex, Epoch), Vec<Weights>>,
    /// What honest owners made of which contributions.
    reduced: Reductions,
    honest: BTreeSet<PeerId>,
}

impl Coverage {
    /// The checker of a simulation.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self {
            history: History::new(options),
            compute: options.compute,
            plans: BTreeMap::new(),
            reduced: BTreeMap::new(),
            honest: BTreeSet::new(),
        }
    }

    fn follow(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let Self { history, plans, reduced, honest, .. } = self;
        history.follow(seen, |state, event| match event {
            StateEvent::Planned(stage, epoch, ..) => {
                if let Some((_, plan)) = state.stage(*stage).and_then(|stage| stage.plan()) {
                    plans.entry((*stage, *epoch)).or_default().push(weights(plan));
                }
                Ok(())
            }
            StateEvent::Merged(stage, epoch, ..) => {
                let Some(known) = state.stage(*stage) else { return Ok(()) };
                if let Some(closed) = known.closed_epoch(*epoch) {
                    closes(reduced, honest, *stage, known.partitions, closed)
                        .map_err(|what| broken(NAME, seen, format!("stage {stage} epoch {epoch}: {what}")))?;
                }
                let old = |&(s, e): &(StageIndex, Epoch)| {
                    s == *stage && e.0 as usize + CLOSED_EPOCHS_KEPT < epoch.0 as usize
                };
                reduced.retain(|(s, e, _), _| !old(&(*s, *e)));
                Ok(())
            }
            _ => Ok(()),
        })
    }

    fn reduces(&mut self, job: &Job, hash: Hash) -> Result<(), String> {
        let Job::Reduce { stage, epoch, partition, inputs } = job else { return Ok(()) };
        let weights: Weights = inputs.iter().map(|(peer, weight, _)| (*peer, *weight)).collect();
        if !self.plans.get(&(*stage, *epoch)).is_some_and(|plans| plans.contains(&weights)) {
            return Err(format!(
                "stage {stage} epoch {epoch} {partition:?}: no plan has submitters {weights:?}"
            ));
        }
        if self.compute == Compute::Cost && hash != cost::merged(inputs) {
            return Err(format!(
                "stage {stage} epoch {epoch} {partition:?}: reduced to {hash}, which it is not"
            ));
        }
        let known = self.reduced.entry((*stage, *epoch, *partition)).or_default();
        if !known.contains(&(weights.clone(), hash)) {
            known.push((weights, hash));
        }
        Ok(())
    }
}

fn weights(plan: &Plan) -> Weights {
    plan.submitters.iter().map(|submission| (submission.peer, submission.samples)).collect()
}

/// What is wrong with a merge that closed.
fn closes(
    reduced: &Reductions,
    honest: &BTreeSet<PeerId>,
    stage: StageIndex,
    partitions: usize,
    closed: &Closed,
) -> Result<(), String> {
    let (weights, owners) = (weights(&closed.plan), &closed.plan.owners);
    if closed.partitions.len() != partitions || owners.len() != partitions {
        return Err(format!(
            "{} of {partitions} partitions, {} owned",
            closed.partitions.len(),
            owners.len()
        ));
    }
    for (index, (hash, owners)) in (0_u32..).zip(closed.partitions.iter().zip(owners)) {
        let known = reduced.get(&(stage, closed.training.epoch, PartitionIndex(index)));
        let made: Vec<Hash> = known
            .into_iter()
            .flatten()
            .filter(|(submitters, _)| *submitters == weights)
            .map(|(_, hash)| *hash)
            .collect();
        let unwitnessed = made.is_empty() && !owners.iter().all(|owner| honest.contains(owner));
        if !unwitnessed && !made.contains(hash) {
            return Err(format!("partition {index} is {hash}, honest owners made {made:?} of the plan"));
        }
    }
    Ok(())
}

impl Observer for Coverage {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        if let (Seen::Started, true, Some(peer)) = (seen.seen, seen.honest, seen.peer) {
            self.honest.insert(peer.id());
        }
        self.follow(seen)?;
        if let (true, Seen::Done(job, JobDone::Reduced { merged: Ok(hash), .. })) = (seen.honest, seen.seen) {
            self.reduces(job, *hash).map_err(|what| broken(NAME, seen, what))?;
        }
        Ok(())
    }
}
