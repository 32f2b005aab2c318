//! The receipts of all: what a stage's miners committed to in an epoch, beside what those of the neighbouring stages did.
//!
//! A replay costs as much as the work that it checks, so few epochs are replayed. Receipts are small, and show by themselves who
//! sent on something else than it commits to, claims to have received what nobody signed, or tells of what cannot have been.
//! So those of every epoch are read, by [`READERS`](crate::validation::READERS) validators that are drawn anew for each stage and
//! epoch, as soon as the plans have frozen them. A reader that finds a fault says so unasked, at its own risk: as after any
//! such verdict a panel looks again, and one of the two loses its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::neighbours::{Sent, beside, committed};
use super::reading::{Read, Reading};
use super::replay::Replay;
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::miner::{Context, Kept};
use crate::receipts::Receipt;
use crate::run_state::RunState;
use crate::spec::RunSpec;
use crate::validation::{Fault, Subject};
use crate::wire::message::Manifest;

/// What is read, and what has been.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Plans, by their seeds, that were come to: their submissions are read, or for others to read.
    seen: BTreeSet<Hash>,
    reading: Option<StageReading>,
}

/// An epoch of a stage whose receipts are read.
#[derive(Debug)]
struct StageReading {
    stage: StageIndex,
    epoch: Epoch,
    receipts: Reading,
    /// What those who were read commit to have sent.
    sent: BTreeMap<PeerId, Sent>,
    faults: Vec<(Subject, Fault)>,
}

impl Reader {
    /// What blobs are kept for that are read now.
    pub(super) fn keeps(&self) -> Option<Kept> {
        self.reading.as_ref().map(|reading| Kept::Epoch(reading.stage, reading.epoch))
    }

    /// Takes the end of a fetch.
    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        self.reading.iter_mut().for_each(|reading| reading.receipts.fetched(id, bytes));
    }

    /// Goes on as far as it can. Returns what is at fault, and what blobs are not needed any more.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        me: PeerId,
        spec: &Arc<RunSpec>,
    ) -> (Vec<(Subject, Fault)>, Option<Kept>) {
        if self.reading.is_none() {
            self.reading = self.begin(cx.state, me);
        }
        if !self.reading.as_mut().is_some_and(|reading| reading.advance(cx, spec)) {
            return (Vec::new(), None);
        }
        let done = self.keeps();
        let faults = self.reading.take().map(StageReading::faults);
        (faults.unwrap_or_default(), done)
    }

    /// The oldest epoch that `me` is drawn to read and has not, once the stages beside have a plan for it, too, or none any more.
    fn begin(&mut self, state: &RunState, me: PeerId) -> Option<StageReading> {
        let plans = state.spec().stages().zip(state.stages()).flat_map(|(index, stage)| {
            let closed = stage.closed.iter().map(|closed| (&closed.training, &closed.plan));
            closed.chain(stage.plan()).map(move |(training, plan)| (index, training.epoch, plan.seed))
        });
        let plans: Vec<(StageIndex, Epoch, Hash)> = plans.collect();
        self.seen.retain(|seen| plans.iter().any(|(_, _, seed)| seed == seen));
        let is_settled = |stage: StageIndex, epoch| {
            state.stage(stage).is_none_or(|stage| stage.merge(epoch).is_some() || stage.version > epoch)
        };
        let (stage, epoch, _) = plans.into_iter().find(|(stage, epoch, seed)| {
            beside(*stage).all(|stage| is_settled(stage, *epoch))
                && self.seen.insert(*seed)
                && state.keeps(*stage, *epoch)
                && state.reads(me, *stage, *epoch)
        })?;
        let own = committed(state, stage, epoch).into_iter().flatten();
        let others = beside(stage).filter_map(|stage| committed(state, stage, epoch)).flatten();
        // Of the stage itself first: what the others received is put beside that.
        let receipts = Reading::of(own.chain(others));
        Some(StageReading { stage, epoch, receipts, sent: BTreeMap::new(), faults: Vec::new() })
    }
}

impl StageReading {
    /// Reads on; whether there is nothing left to read. Whose receipts cannot be had is left out.
    fn advance(&mut self, cx: &mut Context<'_>, spec: &Arc<RunSpec>) -> bool {
        // What was settled long ago is gone with those who had it.
        if !cx.state.keeps(self.stage, self.epoch) {
            self.receipts.give_up();
        }
        loop {
            match self.receipts.next(cx, self.stage, self.epoch) {
                Read::Waits => return false,
                Read::Over => return true,
                Read::Missing => {}
                Read::Wrong(subject) => {
                    // Of a neighbour it is for its own readers to say.
                    self.faults.extend((subject.stage == self.stage).then_some((subject, Fault::Receipts)));
                }
                Read::Receipts(subject, manifest, receipts) if subject.stage == self.stage => {
                    self.note(cx, spec, subject, *manifest, receipts);
                }
                Read::Receipts(subject, _, receipts) => {
                    for (hop, received) in
                        receipts.iter().flat_map(|r| r.received(subject.stage, subject.epoch))
                    {
                        if let Some(sent) = self.sent.get_mut(&received.from) {
                            sent.compare(cx.out.run(), &hop, received);
                        }
                    }
                }
            }
        }
    }

    /// Notes what a miner of the stage commits to.
    fn note(
        &mut self,
        cx: &Context<'_>,
        spec: &Arc<RunSpec>,
        subject: Subject,
        manifest: Manifest,
        receipts: Vec<Receipt>,
    ) {
        match Replay::of(cx, spec, &subject, manifest, receipts, Hash::default()) {
            Some(replay) => drop(self.sent.insert(subject.peer, replay.sent(subject))),
            None => self.faults.push((subject, Fault::Receipts)),
        }
    }

    /// What was found.
    fn faults(self) -> Vec<(Subject, Fault)> {
        let sent = self.sent.into_values().filter_map(|sent| Some((sent.subject(), sent.fault()?)));
        self.faults.into_iter().chain(sent).collect()
    }
}
