//! Which miner helps most where: places for those who ask, and moves between stages.
//!
//! A pipeline is as fast as its slowest stage. When a stage is about to open an epoch, the leader asks whether one of its
//! miners would do more good in the slowest stage, and moves the one whose move raises the slower of the two the most:
//! the adaptive rebalancing of SWARM (Ryabinin et al. 2023, section 3.2), without its random victim and with these guards:
//!
//! - a move must gain [`GAIN_MIN`], since the mover trains nothing while it fetches its new stage's weights, and differences
//!   between stages, and between the miners of one, count as far as they are beyond [doubt](Speed::doubt);
//! - a stage keeps [`KEPT_MIN`] miners that say they hold its newest weights;
//! - one that took a miner gives none, nor takes one that gave, until that miner had the time to show its effect. The
//!   slowest stage may take several at once, each counted from the moment its move is decided;
//! - nobody goes before all stages have settled what it was dealt: a neighbour that starts again needs its activations and
//!   gradients once more. A stage that is to give a miner waits for that, which costs nothing, since no epoch can be done
//!   before all stages are in it.
//!
//! A stage that has lost all its miners stops the whole run, so for it no guard holds but that no other stage is emptied.
//! Who leaves counts for nothing in all this: a stage that only such miners are left of is one that has lost all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::holders;
use crate::id::{Epoch, PeerId, StageIndex};
use crate::limits::REPLICAS_MAX;
use crate::peer::admission::Occupancy;
use crate::peer::book::Book;
use crate::peer::speed::Speed;
use crate::run_state::{Phase, RunState, Stage};
use crate::time::Instant;
use crate::wire::message::{Decision, WeightsRecord};

/// Least factor by which a move must raise the slower of the two stages it touches.
const GAIN_MIN: f64 = 1.05;
/// Miners a stage keeps when it gives one: with a single one, its next death would take the stage's weights along.
const KEPT_MIN: usize = 2;
/// Merges of a stage after a move before one the other way: one in which the mover arrives, one in which it counts.
const SETTLING_EPOCHS: u32 = 2;

/// Places given and moves made that the state does not show yet.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Admissions proposed and not decided.
    admitting: BTreeMap<PeerId, (StageIndex, Instant)>,
    /// Moves proposed and not decided: several stages wait at the same time, and all of them see the same slowest one.
    moving: BTreeMap<PeerId, (StageIndex, Instant)>,
}

/// How a stage that waits parts with a miner before it opens an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// By this decision.
    Decide(Decision),
    /// It will give one, once the others have settled the epoch that it was in.
    Wait,
}

/// The miners of a stage and what they do.
#[derive(Clone, Debug, Default)]
struct Crew {
    /// Each with its relative speed: 1 is the mean of its stage.
    miners: Vec<(PeerId, f64)>,
    /// Samples per second of a miner of relative speed 1.
    pace: f64,
}

impl Crew {
    fn throughput(&self) -> f64 {
        self.pace * self.miners.iter().map(|(_, relative)| relative).sum::<f64>()
    }
}

impl Balance {
    /// Forgets what is decided, or was proposed `repeat` ago or earlier.
    pub(super) fn forget(&mut self, now: Instant, state: &RunState, repeat: Duration) {
        let recent = |at: Instant| now.since(at) < repeat;
        self.admitting.retain(|peer, (_, at)| state.stage_of(*peer).is_none() && recent(*at));
        self.moving.retain(|peer, (to, at)| state.stage_of(*peer) != Some(*to) && recent(*at));
    }

    /// Admits the asking, in the order of the `queue`: to a stage whose newest weights it alone has, else to the stage with
    /// the fewest miners, to its former stage among equals. Who is one too many at its address waits on.
    pub(super) fn admissions(
        &mut self,
        now: Instant,
        state: &RunState,
        book: &Book,
        queue: &[PeerId],
        occupancy: &mut Occupancy,
    ) -> Vec<Decision> {
        self.admitting.keys().for_each(|peer| occupancy.take(*peer, book));
        let mut sizes: BTreeMap<StageIndex, usize> = state.spec().stages().map(|stage| (stage, 0)).collect();
        let pending = || self.admitting.values().map(|(stage, _)| stage);
        let mut taken = sizes.clone();
        for stage in state.members().values().map(|place| &place.stage).chain(pending()) {
            taken.entry(*stage).and_modify(|taken| *taken += 1);
        }
        let members = state.members().iter();
        let staying = members.filter(|(peer, _)| !book.leaves(**peer)).map(|(_, place)| &place.stage);
        for stage in staying.chain(pending()) {
            sizes.entry(*stage).and_modify(|size| *size += 1);
        }
        let eviction = state.spec().timing.eviction.duration();
        let bereft: BTreeSet<StageIndex> =
            state.spec().stages().filter(|s| is_bereft(state, book, *s)).collect();
        let mut decisions = Vec::new();
        for &peer in queue {
            let heard = book.record(peer).filter(|_| book.is_there(now, peer, eviction));
            let Some(record) = heard.filter(|_| !self.admitting.contains_key(&peer)) else { continue };
            let former = record.weights.map(|weights| weights.stage);
            let saves =
                |stage| bereft.contains(&stage) && record.weights.is_some_and(|w| is_near(state, stage, w));
            let moments = home(state, peer);
            let key = |(stage, size): &(&StageIndex, &usize)| {
                (!saves(**stage), moments != Some(**stage), **size, former != Some(**stage), **stage)
            };
            let has_room = |stage: &StageIndex| taken.get(stage).is_some_and(|taken| *taken < REPLICAS_MAX);
            let fewest = sizes.iter().filter(|(stage, _)| has_room(stage)).min_by_key(key);
            let Some((&stage, _)) = fewest else { break };
            if occupancy.has_room_for(state, book, peer).is_err() {
                continue;
            }
            occupancy.take(peer, book);
            sizes.entry(stage).and_modify(|size| *size += 1);
            taken.entry(stage).and_modify(|taken| *taken += 1);
            self.admitting.insert(peer, (stage, now));
            decisions.push(Decision::Admit { peer, stage });
        }
        decisions
    }

    /// A move away from `donor`, which waits, if one helps.
    pub(super) fn relief(
        &mut self,
        now: Instant,
        state: &RunState,
        book: &Book,
        donor: StageIndex,
        begun: bool,
    ) -> Option<Parting> {
        let (peer, stage) =
            if begun { self.fastest_together(state, book, donor) } else { surplus(state, donor) }?;
        let version = |stage| state.stage(stage).map_or(Epoch(0), |stage| stage.version);
        if state.stages().iter().any(|other| other.version < version(donor)) {
            return Some(Parting::Wait);
        }
        self.moving.insert(peer, (stage, now));
        Some(Parting::Decide(Decision::Move { peer, stage }))
    }

    /// A miner for a stage that has lost all of its own, if somebody can give one and nobody has asked for a place for
    /// `patience`. It comes from the stage with the most, and in mid-epoch, since no epoch is over before every stage is
    /// there: it is released from its own first.
    pub(super) fn rescue(
        &mut self,
        now: Instant,
        state: &RunState,
        book: &Book,
        waited: impl Fn(StageIndex) -> bool,
    ) -> Vec<Decision> {
        let staying = |stage| state.replicas(stage).filter(|peer| !book.leaves(*peer));
        let epochs = state.spec().training.epochs;
        let coming = |stage: StageIndex| {
            let admitted = self.admitting.values().any(|(to, _)| *to == stage);
            admitted || self.is_taking(stage)
        };
        let bereaved = state.spec().stages().zip(state.stages()).find(|(index, stage)| {
            // Those who leave finish the epoch that they are in.
            let empty = staying(*index).next().is_none() && matches!(stage.phase, Phase::Waiting);
            empty && stage.version.0 < epochs && waited(*index) && !coming(*index)
        });
        let Some((stage, _)) = bereaved else { return Vec::new() };
        let live = |peer: PeerId| {
            let training = state.stage_of(peer).and_then(|of| state.stage(of)).and_then(Stage::training);
            training.filter(|training| training.deal.is_live(peer))
        };
        let donor = state.spec().stages().max_by_key(|donor| (staying(*donor).count(), donor.0));
        let Some(donor) = donor.filter(|donor| staying(*donor).count() >= 2) else {
            return Vec::new();
        };
        let idle = staying(donor).find(|peer| live(*peer).is_none());
        let merging = state.stage(donor).is_some_and(|donor| donor.plan().is_some());
        let spare = || staying(donor).filter(|_| !merging).last();
        let Some(peer) = idle.or_else(spare) else { return Vec::new() };
        self.moving.insert(peer, (stage, now));
        let release =
            live(peer).map(|training| Decision::Release { stage: donor, epoch: training.epoch, peer });
        release.into_iter().chain([Decision::Move { peer, stage }]).collect()
    }

    /// Whether a miner is on its way to `stage`.
    fn is_taking(&self, stage: StageIndex) -> bool {
        self.moving.values().any(|(to, _)| *to == stage)
    }

    /// Whether the last miner that `stage` took from another, if any, has had time to show its effect.
    fn may_give(&self, state: &RunState, stage: StageIndex) -> bool {
        !self.is_taking(stage)
            && state.stage(stage).is_some_and(|known| is_settled(known.version, known.took))
    }

    /// Whether the last miner that `stage` gave to another, if any, has had time to show its effect.
    fn may_take(&self, state: &RunState, stage: StageIndex) -> bool {
        let giving = self.moving.keys().any(|peer| state.stage_of(*peer) == Some(stage));
        !giving && state.stage(stage).is_some_and(|known| is_settled(known.version, known.gave))
    }

    /// The miner of `donor` whose move to the slowest stage raises the slower of the two the most.
    fn fastest_together(
        &self,
        state: &RunState,
        book: &Book,
        donor: StageIndex,
    ) -> Option<(PeerId, StageIndex)> {
        if !state.spec().pipeline.rebalance {
            return None;
        }
        let crews = crews(state, book, &self.moving);
        let speed = |stage: &StageIndex| crews.get(stage).map_or(0.0, Crew::throughput);
        let slowest = crews.keys().copied().min_by(|a, b| speed(a).total_cmp(&speed(b)).then(a.cmp(b)))?;
        let (from, to) = (crews.get(&donor)?, crews.get(&slowest)?);
        if slowest == donor
            || from.miners.len() <= KEPT_MIN
            || !self.may_give(state, donor)
            || !self.may_take(state, slowest)
        {
            return None;
        }
        let after = |relative: f64| {
            (from.throughput() - from.pace * relative).min(to.throughput() + to.pace * relative)
        };
        let holders: Vec<PeerId> = holders(state, book, donor).filter(|peer| !book.leaves(*peer)).collect();
        // Right after a merge the first to have applied it are the only ones that have the stage's weights.
        let spared = |peer: PeerId| holders.iter().filter(|holder| **holder != peer).count() >= KEPT_MIN;
        let best = from
            .miners
            .iter()
            .filter(|(peer, _)| spared(*peer))
            .max_by(|a, b| after(a.1).total_cmp(&after(b.1)).then(b.0.cmp(&a.0)))?;
        (after(best.1) >= to.throughput() * GAIN_MIN && after(best.1) > 0.0).then_some((best.0, slowest))
    }
}

/// Whether no replica of `stage` says that it holds weights from which the newest can be had.
fn is_bereft(state: &RunState, book: &Book, stage: StageIndex) -> bool {
    state.stage(stage).is_some_and(|known| known.version > Epoch(0))
        && !state
            .replicas(stage)
            .any(|peer| book.weights(peer).is_some_and(|held| is_near(state, stage, held)))
}

/// Whether these are the newest weights of `stage`, or those that its last merge started from.
fn is_near(state: &RunState, stage: StageIndex, held: WeightsRecord) -> bool {
    let newest = state.stage(stage).map(|stage| stage.version);
    held.stage == stage && (newest == Some(held.version) || newest == Some(held.version.next()))
}

/// Whether a stage at `version` has come far enough since a move at version `at`.
fn is_settled(version: Epoch, at: Option<Epoch>) -> bool {
    at.is_none_or(|at| version.0 >= at.0.saturating_add(SETTLING_EPOCHS))
}

/// Before the run has begun: a miner that `donor` has beyond what it waits for, and a stage that still waits.
fn surplus(state: &RunState, donor: StageIndex) -> Option<(PeerId, StageIndex)> {
    let wanted = usize::from(state.spec().pipeline.start_replicas);
    let needy = state.spec().stages().find(|stage| state.replicas(*stage).count() < wanted)?;
    (state.replicas(donor).count() > wanted).then(|| state.replicas(donor).last())?.map(|peer| (peer, needy))
}

/// The crews of all stages, with those who are `moving` where they go. A miner that was not measured in its stage counts as
/// the mean of it, and a stage nobody of which was measured as the mean of the others. Machines are noisy: a stage counts
/// as different from the mean of all, and a miner from that of its stage, only by what [doubt](Speed::doubt) leaves of the
/// difference.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn crews(
    state: &RunState,
    book: &Book,
    moving: &BTreeMap<PeerId, (StageIndex, Instant)>,
) -> BTreeMap<StageIndex, Crew> {
    let mut members: BTreeMap<StageIndex, Vec<PeerId>> =
        state.spec().stages().map(|stage| (stage, Vec::new())).collect();
    for (peer, place) in state.members().iter().filter(|(peer, _)| !book.leaves(**peer)) {
        let stage = moving.get(peer).map_or(place.stage, |(to, _)| *to);
        members.entry(stage).or_default().push(*peer);
    }
    let average = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let speeds = |stage: StageIndex, peers: &[PeerId]| {
        peers.iter().filter_map(|peer| book.speed(*peer, stage)).collect::<Vec<&Speed>>()
    };
    let measured: BTreeMap<StageIndex, (f64, f64)> = members
        .iter()
        .map(|(stage, peers)| (stage, speeds(*stage, peers)))
        .filter(|(_, speeds)| !speeds.is_empty())
        .map(|(stage, speeds)| {
            let doubt = speeds.iter().map(|speed| speed.doubt().powi(2)).sum::<f64>().sqrt();
            let mean = average(&speeds.iter().map(|speed| speed.mean()).collect::<Vec<f64>>());
            (*stage, (mean, doubt / speeds.len() as f64))
        })
        .collect();
    let means: Vec<f64> = measured.values().map(|(mean, _)| *mean).collect();
    let overall = if means.is_empty() { 1.0 } else { average(&means) };
    let crew = |(stage, peers): (StageIndex, Vec<PeerId>)| {
        let (mean, doubt) = measured.get(&stage).copied().unwrap_or((overall, 0.0));
        let pace = overall + beyond(doubt, mean - overall);
        let relative = |peer: PeerId| {
            let speed = book.speed(peer, stage);
            (peer, speed.map_or(1.0, |speed| 1.0 + beyond(speed.doubt(), speed.mean() - mean) / mean))
        };
        (stage, Crew { miners: peers.into_iter().map(relative).collect(), pace })
    };
    members.into_iter().map(crew).collect()
}

/// What `doubt` leaves of a difference.
fn beyond(doubt: f64, difference: f64) -> f64 {
    difference - difference.clamp(-doubt, doubt)
}

/// The stage whose moments the checkpoint has of this miner, where a resumed run has not begun: elsewhere, and later, they are nothing to it.
/// As many come from each stage as were there, and where some stay away the others are moved before the beginning.
fn home(state: &RunState, peer: PeerId) -> Option<StageIndex> {
    if begun(state) {
        return None;
    }
    state.spec().start.moments_of(peer).map(|saved| saved.stage)
}

/// Whether the run has begun: some stage trains, or has.
pub(super) fn begun(state: &RunState) -> bool {
    let start = Epoch(state.spec().start.epoch);
    state.stages().iter().any(|stage| stage.version > start || !matches!(stage.phase, Phase::Waiting))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::RunSpec;
    use crate::id::Hash;
    use crate::orchestrator::tests::{apply, record};
    use crate::spec::{Candidate, OrchestratorSpec};
    use crate::wire::message::PeerRecord;

    /// A run of stages with this many miners each, all waiting.
    fn waiting(sizes: &[u8]) -> RunState {
        let candidates = vec![Candidate { peer: PeerId([255; 32]), priority: 0 }];
        let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        spec.pipeline.stages = u16::try_from(sizes.len()).expect("few");
        let mut state = RunState::new(Arc::new(spec), &vec![10; sizes.len()]);
        let mut name = 0;
        for (stage, size) in state.spec().stages().zip(sizes).collect::<Vec<_>>() {
            for _ in 0..*size {
                name += 1;
                let decision = Decision::Admit { peer: PeerId([name; 32]), stage };
                apply(&mut state, decision);
            }
        }
        state
    }

    /// Who has said that it holds the weights its stage starts from.
    fn heard(state: &RunState, peers: impl Fn(PeerId) -> bool) -> Book {
        let mut book = Book::default();
        for (peer, place) in state.members().iter().filter(|(peer, _)| peers(**peer)) {
            let weights = WeightsRecord { stage: place.stage, version: Epoch(0), hash: Hash::default() };
            let record = PeerRecord { weights: Some(weights), ..record() };
            book.insert(Instant::from_nanos(1), *peer, Arc::new(record)).expect("a valid record");
        }
        book
    }

    fn moved_to(relief: Option<Parting>) -> Option<StageIndex> {
        match relief {
            Some(Parting::Decide(Decision::Move { stage, .. })) => Some(stage),
            _ => None,
        }
    }

    #[test]
    fn stages_that_wait_together_do_not_all_give_to_the_same_one() {
        let (state, now) = (waiting(&[5, 5, 5, 2]), Instant::from_nanos(1));
        let book = heard(&state, |_| true);
        let mut balance = Balance::default();
        let mut relief = |donor: u16| moved_to(balance.relief(now, &state, &book, StageIndex(donor), true));
        let slowest = StageIndex(3);
        assert_eq!(
            [relief(0), relief(1), relief(2)],
            [Some(slowest), Some(slowest), None],
            "4, 4, 5 and 4 are even"
        );
    }

    #[test]
    fn a_stage_without_miners_gets_one_from_the_largest_though_it_trains() {
        let mut state = waiting(&[2, 0, 3]);
        let now = Instant::from_nanos(1);
        let book = Book::default();
        let rescued = |state: &RunState| Balance::default().rescue(now, state, &book, |_| true);
        let last = PeerId([5; 32]);
        let to = Decision::Move { peer: PeerId([3; 32]), stage: StageIndex(1) };
        assert_eq!(rescued(&state), [to], "one that takes part in nothing is moved as it is");
        let members = (3..=5).map(|name| (PeerId([name; 32]), 1)).collect();
        let open =
            Decision::OpenEpoch { stage: StageIndex(2), epoch: Epoch(0), base: Hash::default(), members };
        apply(&mut state, open);
        let release = Decision::Release { stage: StageIndex(2), epoch: Epoch(0), peer: last };
        assert_eq!(rescued(&state), [release, Decision::Move { peer: last, stage: StageIndex(1) }]);
        assert_eq!(rescued(&waiting(&[1, 0, 1])), [], "no stage is emptied for it");
        let patient = Balance::default().rescue(now, &state, &book, |_| false);
        assert_eq!(patient, [], "somebody may ask for the place");
        let mut balance = Balance::default();
        assert_eq!(balance.rescue(now, &state, &book, |_| true).len(), 2);
        assert_eq!(balance.rescue(now, &state, &book, |_| true), [], "one is on its way");
    }

    /// As [`heard`], after these have said after each of their merges how fast they were.
    fn measured(state: &RunState, speeds: impl Fn(PeerId, u32) -> u32) -> Book {
        let mut book = Book::default();
        for (peer, place) in state.members() {
            // The newest is that of the weights which all start from.
            for (sequence, version) in (1..).zip((0..8).rev()) {
                let weights =
                    WeightsRecord { stage: place.stage, version: Epoch(version), hash: Hash::default() };
                let speed_milli = speeds(*peer, version);
                let record = PeerRecord { weights: Some(weights), sequence, speed_milli, ..record() };
                book.insert(Instant::from_nanos(sequence), *peer, Arc::new(record)).expect("a valid record");
            }
        }
        book
    }

    #[test]
    fn a_machine_that_seems_slow_by_chance_counts_as_one_that_is_not() {
        let moved = |sizes: &[u8], speeds: fn(PeerId, u32) -> u32| {
            let state = waiting(sizes);
            let book = measured(&state, speeds);
            match Balance::default().relief(Instant::from_nanos(1), &state, &book, StageIndex(0), true) {
                Some(Parting::Decide(Decision::Move { peer, .. })) => Some(peer.0[0]),
                _ => None,
            }
        };
        // Each was at half of its speed in every other epoch, the third in three of four.
        let noisy = |peer: PeerId, version: u32| {
            let slow = version.is_multiple_of(2) || (peer.0[0] == 3 && version % 4 == 1);
            if slow { 100_000 } else { 200_000 }
        };
        let half = |peer: PeerId, _: u32| if peer.0[0] == 3 { 100_000 } else { 200_000 };
        assert_eq!(moved(&[3, 2], noisy), None, "2 and 3 are as good as 3 and 2");
        assert_eq!(moved(&[4, 2], noisy), Some(1), "any of four equals");
        assert_eq!(moved(&[4, 2], half), Some(3), "3 and 2.5 are better than 2.5 and 3");
    }

    #[test]
    fn a_move_that_is_not_decided_in_time_is_counted_no_more() {
        let (state, now) = (waiting(&[4, 2]), Instant::from_nanos(1));
        let book = heard(&state, |_| true);
        let mut balance = Balance::default();
        assert_eq!(moved_to(balance.relief(now, &state, &book, StageIndex(0), true)), Some(StageIndex(1)));
        assert_eq!(moved_to(balance.relief(now, &state, &book, StageIndex(0), true)), None);
        let repeat = Duration::from_secs(2);
        let later = now + repeat;
        balance.forget(now + repeat / 2, &state, repeat);
        assert_eq!(moved_to(balance.relief(later, &state, &book, StageIndex(0), true)), None);
        balance.forget(later, &state, repeat);
        assert_eq!(moved_to(balance.relief(later, &state, &book, StageIndex(0), true)), Some(StageIndex(1)));
    }

    #[test]
    fn nobody_is_moved_who_alone_has_the_newest_weights() {
        let (state, now) = (waiting(&[4, 1]), Instant::from_nanos(1));
        let moved = |holders: u8| {
            let book = heard(&state, |peer| peer.0[0] <= holders);
            Balance::default().relief(now, &state, &book, StageIndex(0), true)
        };
        assert_eq!([moved(0), moved(1)], [None, None]);
        let stage = StageIndex(1);
        // Of four the last two lack the weights, and may go.
        let Some(Parting::Decide(Decision::Move { peer, stage: to })) = moved(2) else {
            panic!("one helps more there")
        };
        assert_eq!((peer.0[0] > 2, to), (true, stage));
    }
}
