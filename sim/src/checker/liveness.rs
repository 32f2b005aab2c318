//! Once nothing goes wrong any more, the run goes forward: every stage finishes an epoch within a bound, then the next,
//! until all honest hosts know that the run is over and hold its last weights. An epoch may be passed over only if it first
//! opened while things went wrong.
//!
//! What a cutoff loses is excused elsewhere, so a protocol that forgot a sample now and then would only be slow. Hence no
//! epoch is cut off that began, as the one before it did, when all was well, if its deadline is half as long again as the
//! slowest hosts need to handle all its samples one after the other: their links carry partitions, states and what goes to the
//! mirror too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use iota_protocol::limits::{DEADLINE_STRETCH_MAX, SILENCE_STRETCH_MAX};
use iota_protocol::run_state::{Phase, RunState, StateEvent};
use iota_protocol::{Epoch, Instant, RunSpec, StageIndex};

use super::Options;
use super::history::History;
use crate::observe::{Observation, Observer, Violation};
use crate::world::World;

const NAME: &str = "liveness";

/// The checker.
#[derive(Debug)]
pub struct Liveness {
    history: History,
    healed_at: Instant,
    bound: Duration,
    /// Whether deadlines leave time enough.
    unhurried: bool,
    /// When each stage last finished an epoch, or passed over one.
    settled: BTreeMap<StageIndex, Instant>,
    /// When each stage first opened each epoch.
    opened: BTreeMap<(StageIndex, Epoch), Instant>,
}

impl Liveness {
    /// The checker of a simulation in which nothing goes wrong after `healed_at`.
    #[must_use]
    pub fn new(options: &Options, healed_at: Instant, bound: Duration) -> Self {
        let settled = options.spec.stages().map(|stage| (stage, healed_at)).collect();
        let serial = options.slowest_path * options.spec.training.samples_per_epoch;
        let with_other_traffic = serial * 3 / 2;
        Self {
            history: History::new(options),
            healed_at,
            bound,
            unhurried: with_other_traffic <= options.spec.timing.epoch_deadline.duration(),
            settled,
            opened: BTreeMap::new(),
        }
    }

    /// The stage that is late, if one is.
    fn late(&self, now: Instant) -> Option<StageIndex> {
        let state = self.history.state();
        let unfinished = |stage: StageIndex| {
            state.stage(stage).is_some_and(|known| known.version.0 < state.spec().training.epochs)
        };
        let late = |since: &Instant| now.since((*since).max(self.healed_at)) > self.bound;
        self.settled.iter().find(|(stage, since)| unfinished(**stage) && late(since)).map(|(stage, _)| *stage)
    }

    fn says(&self, at: Instant, what: String) -> Violation {
        Violation { checker: NAME, at, host: None, what: format!("{what}\n{}", waits(self.history.state())) }
    }
}

/// A bound that a healed swarm keeps: an epoch is cut off after twice its deadline, starts over after five if there is
/// nothing to merge, and is merged after three or four more; a merge passes through three owners and a second plan;
/// before, places are given out and weights fetched.
///
/// What was measured while things went wrong counts for a while longer. A peer that was heard seldom may be silent for as long as that
/// allows, and a stage whose replicas had their weights late waits once for one that never gets them. That the
/// deadlines of epochs and merges grow, too, is not in it: no drawn run has needed that.
#[must_use]
pub fn bound(spec: &RunSpec) -> Duration {
    let timing = &spec.timing;
    timing.epoch_deadline.duration() * 9
        + timing.merge_deadline.duration() * 8
        + timing.eviction.duration() * 4 * SILENCE_STRETCH_MAX
        + timing.ready_grace.duration() * DEADLINE_STRETCH_MAX
        + Duration::from_secs(60)
}

/// What each stage waits for.
fn waits(state: &RunState) -> String {
    let mut text = String::new();
    for (index, stage) in state.spec().stages().zip(state.stages()) {
        let replicas = state.replicas(index).count();
        // Writing to a string cannot fail.
        let _ = match &stage.phase {
            Phase::Waiting => {
                writeln!(
                    text,
                    "  stage {index} waits for weights of version {}, {replicas} replicas",
                    stage.version
                )
            }
            Phase::Training(training) => writeln!(
                text,
                "  stage {index} waits for submissions of epoch {} of {:?}, attempt {}{}, {replicas} replicas",
                training.epoch,
                training.deal.live().collect::<Vec<_>>(),
                training.attempt,
                if training.cut_off { ", cut off" } else { "" },
            ),
            Phase::Merging(training, plan) => writeln!(
                text,
                "  stage {index} waits for owners of epoch {} attempt {}: {:?}, {replicas} replicas",
                training.epoch, plan.attempt, plan.owners,
            ),
        };
    }
    text
}

/// What each host holds.
fn holdings(world: &World) -> String {
    let mut text = String::new();
    for (host, virtual_host) in world.hosts().iter().enumerate() {
        let _ = match virtual_host.peer() {
            None => writeln!(text, "  host {host} is down"),
            Some(peer) => writeln!(
                text,
                "  host {host} {:?}, log {}, stage {:?}, weights {:?}, progress {:?}, credits {:?}",
                peer.id(),
                peer.log().len(),
                peer.state().stage_of(peer.id()),
                peer.miner().and_then(|miner| miner.weights()),
                peer.miner().and_then(|miner| miner.progress()),
                peer.miner().map(|miner| miner.credits()),
            ),
        };
    }
    text
}

impl Observer for Liveness {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let Self { history, settled, opened, healed_at, unhurried, .. } = self;
        let mut unexcused = None;
        history.follow(seen, |_, event| {
            match event {
                StateEvent::EpochOpened(stage, epoch, _) => {
                    opened.entry((*stage, *epoch)).or_insert(seen.at);
                }
                StateEvent::CutOff(stage, epoch) => {
                    let beset = |((_, other), at): (&(StageIndex, Epoch), &Instant)| {
                        (*other == *epoch || other.next() == *epoch) && *at < *healed_at
                    };
                    if *unhurried && !opened.iter().any(beset) {
                        unexcused = Some(format!("stage {stage} cut epoch {epoch} off"));
                    }
                }
                StateEvent::Merged(stage, ..) => drop(settled.insert(*stage, seen.at)),
                StateEvent::Skipped(stage, epoch) => {
                    settled.insert(*stage, seen.at);
                    if opened.get(&(*stage, *epoch)).is_some_and(|at| *at >= *healed_at) {
                        unexcused = Some(format!("stage {stage} passed over epoch {epoch}"));
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        if let Some(what) = unexcused {
            return Err(self.says(seen.at, what));
        }
        match self.late(seen.at) {
            Some(stage) => {
                Err(self.says(seen.at, format!("stage {stage} finished no epoch in {:?}", self.bound)))
            }
            None => Ok(()),
        }
    }

    fn finish(&mut self, world: &World) -> Result<(), Violation> {
        if let Some(stage) = self.late(world.now()) {
            let what = format!("stage {stage} finished no epoch in {:?}", self.bound);
            return Err(self.says(world.now(), format!("{what}\n{}", holdings(world))));
        }
        if !world.is_finished() && world.now() >= self.healed_at + self.bound * world.spec().training.epochs {
            return Err(self.says(world.now(), format!("the run is not over\n{}", holdings(world))));
        }
        Ok(())
    }
}
