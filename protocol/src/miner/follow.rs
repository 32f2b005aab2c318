//! How a miner follows the log: which epochs and merges are under way here, and what may be forgotten.

use std::collections::BTreeMap;

use super::{Context, EpochWork, Kept, MergeWork, Miner, Purpose, restore};
use crate::id::{Epoch, SampleId, StageIndex};
use crate::limits::BLOB_EPOCHS_KEPT;
use crate::run_state::{RunState, Training};
use crate::wire::message::{Manifest, WeightsRecord};

impl Miner {
    /// Starts and drops epochs and merges as the state says.
    pub(super) fn follow_state(&mut self, cx: &mut Context<'_>) {
        let place = cx.state.stage_of(self.me);
        let stage = place.and_then(|index| cx.state.stage(index).map(|stage| (index, stage)));
        let decided = std::mem::replace(&mut self.followed, cx.state.applied()) != cx.state.applied();
        let training = stage.and_then(|(index, stage)| stage.training().map(|training| (index, training)));
        let mine = training.filter(|(index, training)| self.takes_part(*index, training));
        match mine {
            Some((index, training)) => self.follow_epoch(cx, index, training, decided),
            None => self.give_up_epochs(cx.state, stage.map_or(Epoch(0), |(_, stage)| stage.version)),
        }
        if decided {
            if let Some((index, stage)) = stage {
                self.forget_settled(index, stage.version);
            }
            self.works.values_mut().for_each(|work| work.follow_below(cx.state));
            let settled = cx.state.stages().iter().map(|stage| u64::from(stage.version.0)).sum();
            if std::mem::replace(&mut self.settled, settled) != settled {
                self.forget_manifests(cx.state);
            }
            self.follow_merges(cx);
        }
    }

    /// Whether this miner is a member of the epoch and starts from the right weights.
    fn takes_part(&self, index: StageIndex, training: &Training) -> bool {
        let right = WeightsRecord { stage: index, version: training.epoch, hash: training.base };
        training.deal.is_live(self.me) && (self.weights == Some(right))
    }

    fn follow_epoch(&mut self, cx: &mut Context<'_>, index: StageIndex, training: &Training, decided: bool) {
        let epoch = training.epoch;
        if self.works.get(&epoch).is_some_and(|work| work.opened != training.opened) {
            self.works.remove(&epoch);
            self.dirty = true;
        } else if self.works.get(&epoch).is_some_and(|work| work.lacks_accumulated(self.me, training)) {
            self.forget_epoch(epoch);
        }
        let (me, spec) = (self.me, &self.spec);
        let begun = self.works.contains_key(&epoch);
        let sequence = &mut self.sequence;
        let work = self.works.entry(epoch).or_insert_with(|| {
            // A number of a message that is never sent: no other process of this peer has it either.
            *sequence += 1;
            EpochWork::new(spec, index, training, *sequence)
        });
        self.kept.insert(Kept::Epoch(index, epoch));
        if decided || !begun {
            work.follow(me, training);
        }
        let above = index.0.checked_sub(1).and_then(|above| cx.state.stage(StageIndex(above)));
        if above.is_none_or(|above| above.deal(epoch).is_none()) {
            // Whose they are is decided in an entry that is not here yet; their senders were told that we have them.
            return;
        }
        let held: Vec<_> = self
            .held
            .range((epoch, SampleId(0))..=(epoch, SampleId(u64::MAX)))
            .map(|(key, held)| (*key, held.clone()))
            .collect();
        for ((_, sample), held) in held {
            self.held.remove(&(epoch, sample));
            // Refused only if its path changed meanwhile; whoever is on the path now sends it again.
            let _ = work.receive_activation(cx.state, me, sample, held, false);
        }
    }

    /// Starts the work of an epoch over; neighbours are told that what they had sent for it is forgotten.
    pub(super) fn forget_epoch(&mut self, epoch: Epoch) {
        if self.works.remove(&epoch).is_some() {
            (self.dirty, self.forgot, self.news) = (true, true, true);
        }
    }

    /// Drops work on epochs from `version` on, which this miner has no part in any more.
    fn give_up_epochs(&mut self, state: &RunState, version: Epoch) {
        let before = self.works.len();
        self.works.retain(|epoch, work| *epoch < version || restore::is_taken(state, self.me, work));
        self.dirty |= self.works.len() < before;
    }

    /// Forgets epochs long settled.
    fn forget_settled(&mut self, index: StageIndex, version: Epoch) {
        let keep = version.0.saturating_sub(BLOB_EPOCHS_KEPT);
        self.works.retain(|epoch, _| epoch.0 >= keep);
        self.held.retain(|(epoch, _), _| *epoch >= version);
        if let Some(offer) = self.offer.take_if(|offer| offer.stage != index || offer.version < version) {
            self.offers_before.push(offer);
        }
    }

    /// Forgets manifests of epochs long settled, of every stage.
    fn forget_manifests(&mut self, state: &RunState) {
        self.manifests.retain(|_, submitted| {
            let Manifest { stage, epoch, .. } = &submitted.manifest;
            let settled = state.stage(*stage).map_or(Epoch(0), |stage| stage.version);
            epoch.0.saturating_add(BLOB_EPOCHS_KEPT) >= settled.0
        });
    }

    /// Lets go of the blobs that settled epochs left behind, of whatever stage and for whatever purpose.
    pub(super) fn release_settled(&mut self, cx: &mut Context<'_>) {
        let remembered = self.remembered.map(|state| (state.stage, state.version));
        let mirroring = &self.mirroring;
        // Also of one that has no place any more.
        self.offers_before.retain(|offer| cx.state.keeps(offer.stage, offer.version));
        let before = &self.offers_before;
        let settled = |kept: &Kept| match *kept {
            Kept::Epoch(stage, epoch) => !cx.state.keeps(stage, epoch),
            Kept::State(stage, epoch) => {
                let newest = cx.state.stage(stage).map(|stage| stage.version);
                let offered = before.iter().any(|offer| (offer.stage, offer.version) == (stage, epoch));
                let needed = offered || remembered == Some((stage, epoch)) || mirroring.needs(stage, epoch);
                newest.is_some_and(|newest| epoch < newest) && !needed
            }
            Kept::Proof(..) => false,
        };
        let read = self.catch_up.needs();
        for kept in self.kept.extract_if(.., |kept| settled(kept) && read != Some(*kept)) {
            cx.out.release(kept.to_string());
        }
    }

    /// Keeps a merge under way for each plan in which this miner owns partitions.
    fn follow_merges(&mut self, cx: &mut Context<'_>) {
        for (index, stage) in cx.state.spec().stages().zip(cx.state.stages()) {
            let plan =
                stage.plan().filter(|(_, plan)| plan.owners.iter().any(|owners| owners.contains(&self.me)));
            match plan {
                Some((training, plan)) => {
                    let same = self.merges.get(&index).is_some_and(|merge| merge.is_for(training, plan));
                    if !same {
                        let before =
                            self.merges.insert(index, MergeWork::new(self.me, index, training, plan));
                        before.iter().for_each(|merge| forget_fetches(&mut self.transfers, merge));
                        self.kept.insert(Kept::Epoch(index, training.epoch));
                    }
                    if let Some(merge) = self.merges.get_mut(&index) {
                        merge.follow(cx.now, plan);
                    }
                }
                None => {
                    if let Some(merge) = self.merges.remove(&index) {
                        forget_fetches(&mut self.transfers, &merge);
                        self.mirror_partitions(cx, index, merge.epoch);
                    }
                }
            }
        }
    }
}

/// What is still under way for a merge is nothing to the next one of its stage: that may name other manifests of the same submitters.
fn forget_fetches(transfers: &mut BTreeMap<u64, Purpose>, merge: &MergeWork) {
    for purpose in transfers.values_mut() {
        if matches!(purpose, Purpose::Merge(stage, _) if *stage == merge.stage) {
            *purpose = Purpose::Unwanted(Kept::Epoch(merge.stage, merge.epoch));
        }
    }
}
