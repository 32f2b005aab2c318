//! No sample counts twice, and none is lost without a reason.
//!
//! An epoch's samples are dealt, so two members' shares never meet; what was dealt anew after somebody was taken out
//! joins the share of one other member. Hence for each merge:
//!
//! - the contributions that honest owners reduce are disjoint sets of samples, each within its submitter's share and
//!   as large as its weight says;
//! - the weights sum to no more than the epoch has samples;
//! - they sum to less only after a cutoff of this epoch; or if another stage was cut off or settled the same epoch with
//!   samples missing, which it refuses from then on, as do those who cannot finish them without it; or if a member of the
//!   stage below lost its place or its process since the epoch opened there, with gradients that nobody computes again
//!   once that stage has settled it; or if a submitter is not honest. Releases, evictions and aborted plans lose nothing:
//!   what they take away is dealt to others and done again.
//!
//! And an engine never accumulates a sample twice between two resets.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use iota_protocol::limits::CLOSED_EPOCHS_KEPT;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::run_state::{Plan, RunState, StateEvent};
use iota_protocol::{Epoch, Hash, PeerId, SampleId, StageIndex};

use super::history::History;
use super::{Options, broken};
use crate::network::HostIndex;
use crate::observe::{Observation, Observer, Seen, Violation};

const NAME: &str = "samples";

type Set = Rc<BTreeSet<SampleId>>;
/// Partitions by hash: whose they are, and which samples are in them.
type Made = BTreeMap<Hash, Vec<(PeerId, Set)>>;

/// The checker.
#[derive(Debug)]
pub struct Samples {
    history: History,
    per_epoch: u64,
    stages: u16,
    /// What each honest host's engine accumulated since its last reset.
    accumulated: BTreeMap<HostIndex, BTreeSet<SampleId>>,
    /// Samples in honest contributions, by the hash of each of their partitions. Several may share one: all miners move the
    /// embeddings of tokens that do not occur alike.
    contributed: BTreeMap<(StageIndex, Epoch), Made>,
    /// Samples of epochs settled.
    settled: BTreeMap<(StageIndex, Epoch), u64>,
    cut_off: BTreeSet<(StageIndex, Epoch)>,
    /// Who took part in each epoch, and in which somebody has gone since.
    merged: BTreeMap<(StageIndex, Epoch), BTreeSet<PeerId>>,
    bereft: BTreeSet<(StageIndex, Epoch)>,
    processes: BTreeMap<HostIndex, PeerId>,
    honest: BTreeSet<PeerId>,
}

impl Samples {
    /// The checker of a simulation.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self {
            history: History::new(options),
            per_epoch: u64::from(options.spec.training.samples_per_epoch),
            stages: options.spec.pipeline.stages,
            accumulated: BTreeMap::new(),
            contributed: BTreeMap::new(),
            settled: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            merged: BTreeMap::new(),
            bereft: BTreeSet::new(),
            processes: BTreeMap::new(),
            honest: BTreeSet::new(),
        }
    }

    fn follow(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let Self {
            history, per_epoch, stages, settled, cut_off, contributed, merged, bereft, honest, ..
        } = self;
        history.follow(seen, |state, event| match event {
            StateEvent::CutOff(stage, epoch) => {
                cut_off.insert((*stage, *epoch));
                Ok(())
            }
            StateEvent::EpochOpened(stage, epoch, _) => {
                let training = state.stage(*stage).and_then(|stage| stage.training());
                let members = training.into_iter().flat_map(|training| training.deal.live());
                merged.entry((*stage, *epoch)).or_default().extend(members);
                Ok(())
            }
            StateEvent::Evicted(peer, _) => {
                bereft.extend(merged.iter().filter(|(_, peers)| peers.contains(peer)).map(|(key, _)| *key));
                Ok(())
            }
            StateEvent::Planned(stage, epoch, ..) => {
                let judged =
                    state.stage(*stage).and_then(|stage| stage.plan()).map_or(Ok(()), |(training, plan)| {
                        shares(plan, |peer| training.deal.samples_of(peer).len())
                    });
                judged.map_err(|what| broken(NAME, seen, format!("stage {stage} epoch {epoch}: {what}")))
            }
            StateEvent::Merged(stage, epoch, samples, _) => {
                settled.insert((*stage, *epoch), *samples);
                // What one stage has no gradient for, no stage before or after it can finish.
                let excused = (0..*stages).map(StageIndex).any(|other| {
                    let short =
                        settled.get(&(other, *epoch)).is_some_and(|n| other != *stage && n < per_epoch);
                    cut_off.contains(&(other, *epoch)) || short
                });
                let excused = excused || bereft.contains(&(StageIndex(stage.0 + 1), *epoch));
                let trusted = submitters(state, *stage, *epoch).all(|peer| honest.contains(&peer));
                contributed
                    .retain(|(s, e), _| s != stage || e.0 as usize + CLOSED_EPOCHS_KEPT >= epoch.0 as usize);
                if *samples > *per_epoch || (*samples < *per_epoch && !excused && trusted) {
                    let what = format!("stage {stage} epoch {epoch} merged {samples} of {per_epoch} samples");
                    return Err(broken(NAME, seen, what));
                }
                Ok(())
            }
            _ => Ok(()),
        })
    }

    fn accumulates(&mut self, seen: &Observation<'_>, sample: SampleId) -> Result<(), Violation> {
        if !self.accumulated.entry(seen.host).or_default().insert(sample) {
            return Err(broken(NAME, seen, format!("sample {sample} accumulated twice")));
        }
        Ok(())
    }

    /// The samples in what an honest owner reduces.
    fn reduces(&self, job: &Job) -> Result<(), String> {
        let Job::Reduce { stage, epoch, inputs, .. } = job else { return Ok(()) };
        let Some(contributed) = self.contributed.get(&(*stage, *epoch)) else { return Ok(()) };
        let mut counted: BTreeMap<SampleId, PeerId> = BTreeMap::new();
        for (peer, weight, hash) in inputs {
            let Some(made) = contributed.get(hash) else { continue };
            let theirs = |(by, samples): &&(PeerId, Set)| by == peer && samples.len() == *weight as usize;
            let theirs: Vec<&Set> = made.iter().filter(theirs).map(|(_, samples)| samples).collect();
            let samples = match theirs.as_slice() {
                [samples] => samples,
                [] => return Err(format!("{} count as {weight} of {peer}", counts(made))),
                // Made twice of other samples, with the same bytes: these do not say of which.
                _ => continue,
            };
            for sample in samples.iter() {
                if let Some(other) = counted.insert(*sample, *peer) {
                    return Err(format!(
                        "sample {sample} of epoch {epoch} counts for {other} and for {peer}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// How many samples of whom are in a partition, for people.
fn counts(made: &[(PeerId, Set)]) -> String {
    let counts = made.iter().map(|(peer, samples)| format!("{} samples of {peer}", samples.len()));
    counts.collect::<Vec<_>>().join(", ")
}

/// Every weight is within its submitter's share.
fn shares(plan: &Plan, dealt: impl Fn(PeerId) -> usize) -> Result<(), String> {
    let greedy =
        plan.submitters.iter().find(|submission| submission.samples as usize > dealt(submission.peer));
    greedy.map_or(Ok(()), |submission| {
        Err(format!(
            "{} has {} samples of {} dealt",
            submission.peer,
            submission.samples,
            dealt(submission.peer)
        ))
    })
}

fn submitters(state: &RunState, stage: StageIndex, epoch: Epoch) -> impl Iterator<Item = PeerId> {
    let closed = state.stage(stage).and_then(|stage| stage.closed_epoch(epoch));
    closed.into_iter().flat_map(|closed| &closed.plan.submitters).map(|submission| submission.peer)
}

impl Observer for Samples {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        if let (Seen::Stopped, Some(gone)) = (seen.seen, self.processes.get(&seen.host)) {
            let theirs = self.merged.iter().filter(|(_, peers)| peers.contains(gone));
            self.bereft.extend(theirs.map(|(key, _)| *key));
        }
        let Some(peer) = seen.peer.filter(|_| seen.honest) else { return Ok(()) };
        if matches!(seen.seen, Seen::Started) {
            self.processes.insert(seen.host, peer.id());
            self.honest.insert(peer.id());
            self.accumulated.remove(&seen.host);
        }
        self.follow(seen)?;
        match seen.seen {
            Seen::Done(_, JobDone::Weights { .. } | JobDone::Reset) => {
                drop(self.accumulated.remove(&seen.host))
            }
            Seen::Done(_, JobDone::Finished { sample, .. }) => self.accumulates(seen, *sample)?,
            Seen::Done(
                Job::Contribute { stage, epoch, samples },
                JobDone::Contributed { partitions, .. },
            ) => {
                let set: Set = Rc::new(self.accumulated.get(&seen.host).cloned().unwrap_or_default());
                if set.len() != *samples as usize {
                    let what = format!("claims {samples} samples, accumulated {}", set.len());
                    return Err(broken(NAME, seen, what));
                }
                let named = self.contributed.entry((*stage, *epoch)).or_default();
                for hash in partitions {
                    let (made, by_whom) = (named.entry(*hash).or_default(), (peer.id(), Rc::clone(&set)));
                    if !made.contains(&by_whom) {
                        made.push(by_whom);
                    }
                }
            }
            Seen::Done(job @ Job::Reduce { .. }, _) => {
                self.reduces(job).map_err(|what| broken(NAME, seen, what))?;
            }
            _ => {}
        }
        Ok(())
    }
}
