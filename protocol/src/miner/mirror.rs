//! A miner's part in the mirror: the states of its stage that checkpoints are made of, and the partitions it merged.
//!
//! All replicas of a stage hold the same state, and each sees to it that all of it is in the mirror. They begin at
//! different parts and leave out what they find there, so that each uploads a share, and what one that died left out the
//! others bring. Who has seen all of it there says so in its record; the leader proposes the checkpoint when every stage
//! has somebody who says so.
//!
//! The moments of its inner optimizer are the miner's own, so it alone can bring them, beside the state and at their own pace.
//!
//! A mirror that is slow or down delays checkpoints and nothing else: nobody waits for an upload.

use std::time::Duration;

use super::{Context, Miner, Purpose, doubled};
use crate::id::{Epoch, Hash, StageIndex};
use crate::limits::{MIRROR_PAUSE_MAX, MIRROR_PAUSE_MIN};
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::wire::encode;
use crate::wire::message::{MirrorRecord, MomentsRecord, StateOffer};

/// What is to go to the mirror, and what of it has been seen there.
#[derive(Debug, Default)]
pub(super) struct Mirroring {
    /// The newest state that is due.
    due: Option<StateOffer>,
    /// The state that the driver is at.
    under_way: Option<StateOffer>,
    retry_at: Instant,
    pause: Duration,
    seen: Option<MirrorRecord>,
    moments: Moments,
}

/// The version of a stage whose moments are to go to the mirror, and what became of those before.
#[derive(Debug, Default)]
struct Moments {
    due: Option<(StageIndex, Epoch)>,
    under_way: Option<(StageIndex, Epoch)>,
    /// The stage, and what its miner's record says.
    told: Option<(StageIndex, MomentsRecord)>,
}

impl Moments {
    /// Takes a version that a checkpoint is made of, instead of one that was not begun.
    fn take(&mut self, stage: StageIndex, version: Epoch) {
        let known = self.told.is_some_and(|(of, told)| of == stage && told.version >= version);
        if !known && self.under_way != Some((stage, version)) {
            self.due = Some((stage, version));
        }
    }

    /// Those to bring now.
    fn next(&mut self) -> Option<(StageIndex, Epoch)> {
        if self.under_way.is_some() {
            return None;
        }
        self.under_way = self.due.take();
        self.under_way
    }

    /// The driver has brought those under way, which have this hash, or could not. They are not tried again: it tried several times,
    /// and those of the next checkpoint are worth more. Returns whether the record changed.
    fn brought(&mut self, hash: Option<Hash>) -> bool {
        let Some((stage, version)) = self.under_way.take() else { return false };
        self.told = Some((stage, MomentsRecord { version, hash }));
        true
    }
}

impl Mirroring {
    /// What its miner's record says of it.
    pub(super) fn record(&self) -> Option<MirrorRecord> {
        let seen = self.seen?;
        let moments = self.moments.told.filter(|(stage, _)| *stage == seen.stage).map(|(_, told)| told);
        Some(MirrorRecord { moments, ..seen })
    }

    /// Takes the state that a checkpoint of its version needs. One that was not begun gives way to it, unless that one is of
    /// higher [rank](rank).
    pub(super) fn take(&mut self, spec: &RunSpec, offer: &StateOffer) {
        let known = |seen: &MirrorRecord| seen.stage == offer.stage && seen.version >= offer.version;
        let outranked = |due: &StateOffer| {
            due.stage == offer.stage && rank(spec, due.version) > rank(spec, offer.version)
        };
        if self.under_way.as_ref() != Some(offer)
            && !self.seen.as_ref().is_some_and(known)
            && !self.due.as_ref().is_some_and(outranked)
        {
            (self.due, self.retry_at, self.pause) = (Some(offer.clone()), Instant::ZERO, Duration::ZERO);
        }
    }

    /// Whether nothing is due or under way.
    pub(super) const fn is_idle(&self) -> bool {
        self.due.is_none() && self.under_way.is_none()
    }

    /// Whether the blobs of this state are needed for it.
    pub(super) fn needs(&self, stage: StageIndex, version: Epoch) -> bool {
        let states = self.due.iter().chain(&self.under_way);
        states.into_iter().any(|state| (state.stage, state.version) == (stage, version))
    }

    /// The state to bring now.
    fn next(&mut self, now: Instant) -> Option<&StateOffer> {
        if self.under_way.is_some() || now < self.retry_at {
            return None;
        }
        self.under_way = self.due.take();
        self.under_way.as_ref()
    }

    /// The driver has brought the state under way, or could not. Returns whether the record changed.
    fn brought(&mut self, now: Instant, start: Epoch, there: bool) -> bool {
        let Some(offer) = self.under_way.take() else { return false };
        let before = self.seen;
        if there {
            let (stage, version, state) = (offer.stage, offer.version, Hash::of(&encode(&offer)));
            self.seen = Some(MirrorRecord { stage, version, state, failing: false, moments: None });
        } else {
            let (stage, state) = (offer.stage, Hash::default());
            let none = MirrorRecord { stage, version: start, state, failing: true, moments: None };
            let seen = self.seen.filter(|seen| seen.stage == offer.stage);
            self.seen = Some(seen.map_or(none, |seen| MirrorRecord { failing: true, ..seen }));
            self.pause = doubled(self.pause, MIRROR_PAUSE_MIN, MIRROR_PAUSE_MAX);
            self.retry_at = now + self.pause;
            // A newer one is worth more.
            self.due.get_or_insert(offer);
        }
        self.seen != before
    }

    /// When it is tried again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.as_ref().filter(|_| self.under_way.is_none()).map(|_| self.retry_at)
    }
}

/// How often the number of a checkpoint can be halved. Stages whose uploads take longer than an epoch leave some versions
/// out; by keeping those of high rank they keep the same ones, of which a checkpoint can be complete. The last version has
/// the highest.
const fn rank(spec: &RunSpec, version: Epoch) -> u32 {
    if version.0 == spec.training.epochs {
        u32::MAX
    } else {
        (version.0 / spec.mirror.checkpoint_epochs).trailing_zeros()
    }
}

impl Miner {
    /// A state of this stage is on disk: if a checkpoint needs it, it goes to the mirror.
    pub(super) fn mirror_state(&mut self, offer: &StateOffer) {
        if self.spec.is_checkpoint(offer.version) {
            self.mirroring.take(&self.spec, offer);
            if self.spec.saves_moments() {
                self.mirroring.moments.take(offer.stage, offer.version);
            }
        }
    }

    /// Has the driver bring what is due, and if nothing is, the newest state, though it gave way to another when it was made.
    pub(super) fn pump_mirror(&mut self, cx: &mut Context<'_>) {
        if let Some(offer) = self.offer.as_ref().filter(|_| self.mirroring.is_idle())
            && self.spec.is_checkpoint(offer.version)
        {
            self.mirroring.take(&self.spec, offer);
        }
        if let Some((stage, version)) = self.mirroring.moments.next() {
            let id = cx.out.mirror_moments(stage, version);
            self.transfers.insert(id, Purpose::MirrorMoments);
        }
        let Some(offer) = self.mirroring.next(cx.now) else { return };
        let replicas = cx.state.replicas(offer.stage).count().max(1);
        let place = cx.state.replicas(offer.stage).take_while(|peer| *peer != self.me).count();
        let first = offer.parts.len() * (place % replicas) / replicas;
        let id = cx.out.mirror(offer.clone(), first);
        self.transfers.insert(id, Purpose::Mirror);
    }

    /// Takes the end of [`Action::Mirror`](super::Action::Mirror): whether all of the state is in the mirror.
    pub fn handle_mirrored(&mut self, cx: &mut Context<'_>, id: u64, there: bool) {
        if let Some(Purpose::Mirror) = self.transfers.remove(&id) {
            self.news |= self.mirroring.brought(cx.now, Epoch(self.spec.start.epoch), there);
        }
        self.pump(cx);
    }

    /// Takes the end of [`Action::MirrorMoments`](super::Action::MirrorMoments): the hash of the moments, if they are in the mirror.
    pub fn handle_moments_mirrored(&mut self, cx: &mut Context<'_>, id: u64, hash: Option<Hash>) {
        if let Some(Purpose::MirrorMoments) = self.transfers.remove(&id) {
            self.news |= self.mirroring.moments.brought(hash);
        }
        self.pump(cx);
    }

    /// The merge of an epoch is decided: those of its partitions that this miner merged go to the mirror.
    pub(super) fn mirror_partitions(&self, cx: &mut Context<'_>, stage: StageIndex, epoch: Epoch) {
        let Some(closed) = cx.state.stage(stage).and_then(|stage| stage.closed_epoch(epoch)) else { return };
        if !self.spec.mirror.is_set() {
            return;
        }
        let merged = closed.plan.owners.iter().zip(&closed.partitions);
        let own: Vec<Hash> =
            merged.filter(|(owners, _)| owners.contains(&self.me)).map(|(_, hash)| *hash).collect();
        if !own.is_empty() {
            cx.out.mirror_blobs(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Epoch = Epoch(0);

    fn offer(version: u32) -> StateOffer {
        let weights = Hash::of(&version.to_le_bytes());
        StateOffer { stage: StageIndex(1), version: Epoch(version), weights, parts: vec![weights] }
    }

    /// A run that makes a checkpoint every fourth epoch.
    fn spec() -> RunSpec {
        RunSpec::default()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn one_state_is_brought_at_a_time_and_that_of_the_highest_rank_waits() {
        let mut mirroring = Mirroring::default();
        mirroring.take(&spec(), &offer(4));
        assert_eq!(mirroring.next(at(1)), Some(&offer(4)));
        mirroring.take(&spec(), &offer(8));
        mirroring.take(&spec(), &offer(12));
        assert_eq!(mirroring.next(at(2)), None);
        assert!(mirroring.needs(StageIndex(1), Epoch(4)) && mirroring.needs(StageIndex(1), Epoch(8)));
        assert!(!mirroring.needs(StageIndex(1), Epoch(12)), "the eighth outranks it");
        mirroring.take(&spec(), &offer(16));
        assert!(mirroring.brought(at(3), START, true));
        assert_eq!(mirroring.next(at(3)), Some(&offer(16)));
        let state = Hash::of(&encode(&offer(4)));
        let (stage, version) = (StageIndex(1), Epoch(4));
        let seen = MirrorRecord { stage, version, state, failing: false, moments: None };
        assert_eq!(mirroring.record(), Some(seen));
    }

    #[test]
    fn a_failure_is_said_and_tried_again_after_a_pause() {
        let mut mirroring = Mirroring::default();
        mirroring.take(&spec(), &offer(4));
        assert!(mirroring.next(at(1)).is_some());
        assert!(mirroring.brought(at(1), START, false));
        assert!(mirroring.record().is_some_and(|seen| seen.failing && seen.version == START));
        assert_eq!(mirroring.next(at(1)), None);
        let again = mirroring.deadline().expect("it is tried again");
        assert_eq!(again, at(1) + MIRROR_PAUSE_MIN);
        assert_eq!(mirroring.next(again), Some(&offer(4)));
        assert!(mirroring.brought(again, START, true));
        assert!(mirroring.record().is_some_and(|seen| !seen.failing && seen.version == Epoch(4)));
        assert_eq!(mirroring.deadline(), None);
    }

    #[test]
    fn moments_are_brought_once_for_each_version_and_the_newest_waits() {
        let (stage, mut moments) = (StageIndex(1), Moments::default());
        moments.take(stage, Epoch(4));
        assert_eq!(moments.next(), Some((stage, Epoch(4))));
        for version in [4, 8, 12] {
            moments.take(stage, Epoch(version));
        }
        assert_eq!(moments.next(), None);
        assert!(moments.brought(None));
        assert_eq!(moments.told, Some((stage, MomentsRecord { version: Epoch(4), hash: None })));
        moments.take(stage, Epoch(4));
        assert_eq!(moments.next(), Some((stage, Epoch(12))));
        assert!(moments.brought(Some(Hash::default())));
        moments.take(stage, Epoch(12));
        assert_eq!(moments.next(), None);
        moments.take(StageIndex(0), Epoch(8));
        assert_eq!(moments.next(), Some((StageIndex(0), Epoch(8))), "of another stage");
    }

    #[test]
    fn moments_of_a_stage_left_are_not_told() {
        let mut mirroring = Mirroring::default();
        mirroring.moments.take(StageIndex(0), Epoch(4));
        mirroring.moments.next();
        mirroring.moments.brought(Some(Hash::default()));
        assert_eq!(mirroring.record(), None, "only beside a state");
        mirroring.take(&spec(), &offer(4));
        assert!(mirroring.next(at(1)).is_some() && mirroring.brought(at(1), START, true));
        assert_eq!(mirroring.record().and_then(|seen| seen.moments), None);
        mirroring.moments.take(StageIndex(1), Epoch(4));
        mirroring.moments.next();
        mirroring.moments.brought(Some(Hash::default()));
        assert!(mirroring.record().is_some_and(|seen| seen.moments.is_some()));
    }

    #[test]
    fn what_is_there_is_not_brought_again() {
        let mut mirroring = Mirroring::default();
        mirroring.take(&spec(), &offer(4));
        assert!(mirroring.next(at(1)).is_some());
        mirroring.take(&spec(), &offer(4));
        mirroring.brought(at(2), START, true);
        mirroring.take(&spec(), &offer(4));
        assert_eq!(mirroring.next(at(3)), None);
    }
}
