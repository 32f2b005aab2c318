//! The receipts of all: what a stage's miners committed to in an epoch, beside what those of the neighbouring stages did.
//!
//! A replay costs as much as the work that it checks, so few epochs are replayed. Receipts are small, and show by themselves who
//! sent on something else than it commits to, claims to have received what nobody signed, or tells of what cannot have been.
//! So those of every epoch are read, by [`READERS`](crate::validation::READERS) validators that are drawn anew for each stage and
//! epoch, as soon as the plans have frozen them. A reader that finds a fault says so unasked, at its own risk: as after any
//! such verdict a panel looks again, and one of the two loses its place. The panel reads first, too, and who finds the fault so
//! does not replay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::neighbours::{Sent, beside, committed};
use super::reading::{Read, Reading};
use super::replay::Replay;
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::miner::{Context, Kept};
use crate::receipts::{Hop, Receipt, Received};
use crate::run_state::RunState;
use crate::spec::RunSpec;
use crate::validation::{Challenge, Fault, Subject};
use crate::wire::message::Manifest;

/// What is read, and what has been.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Plans, by their seeds, that were come to: their submissions are read, or for others to read.
    seen: BTreeSet<Hash>,
    /// Submissions in dispute that were come to.
    looked_at: BTreeSet<Subject>,
    epoch: Option<StageReading>,
    dispute: Option<StageReading>,
}

/// An epoch of a stage whose receipts are read, or one miner's of them.
#[derive(Debug)]
struct StageReading {
    stage: StageIndex,
    epoch: Epoch,
    receipts: Reading,
    /// What those who were read commit to have sent.
    sent: BTreeMap<PeerId, Sent>,
    /// What the miners of the stages beside received.
    received: Vec<(Hop, Received)>,
    faults: Vec<(Subject, Fault)>,
}

impl Reader {
    /// What blobs are kept for that are read now.
    pub(super) fn keeps(&self) -> impl Iterator<Item = Kept> + '_ {
        let under_way = self.epoch.iter().chain(&self.dispute);
        under_way.map(|reading| Kept::Epoch(reading.stage, reading.epoch))
    }

    /// Takes the end of a fetch.
    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        let under_way = self.epoch.iter_mut().chain(&mut self.dispute);
        under_way.for_each(|reading| reading.receipts.fetched(id, bytes));
    }

    /// Goes on as far as it can. Returns what is at fault, and what blobs are not needed any more.
    pub(super) fn pump(
        &mut self,
        cx: &mut Context<'_>,
        me: PeerId,
        spec: &Arc<RunSpec>,
    ) -> (Vec<(Subject, Fault)>, Vec<Kept>) {
        if self.epoch.is_none() {
            self.epoch = self.next_epoch(cx.state, me);
        }
        if self.dispute.is_none() {
            self.dispute = self.next_dispute(cx.state, me);
        }
        let (mut faults, mut read) = (Vec::new(), Vec::new());
        for slot in [&mut self.epoch, &mut self.dispute] {
            if let Some(reading) = slot.take_if(|reading| reading.advance(cx, spec)) {
                read.push(Kept::Epoch(reading.stage, reading.epoch));
                faults.extend(reading.faults(cx));
            }
        }
        (faults, read)
    }

    /// The oldest epoch that `me` is drawn to read and has not, once the stages beside have a plan for it, too, or none any more.
    fn next_epoch(&mut self, state: &RunState, me: PeerId) -> Option<StageReading> {
        let plans = state.spec().stages().zip(state.stages()).flat_map(|(index, stage)| {
            stage.merges().map(move |(training, plan)| (index, training.epoch, plan.seed))
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
        Some(StageReading::of(state, stage, epoch, |_| true))
    }

    /// A submission of which `me` is asked since somebody has found a fault that receipts show.
    fn next_dispute(&mut self, state: &RunState, me: PeerId) -> Option<StageReading> {
        let asked = |challenge: &&Challenge| {
            challenge.faults().any(|fault| fault.is_read())
                && challenge.awaited().any(|awaited| awaited == me)
        };
        let open: BTreeSet<Subject> =
            state.challenges().iter().filter(asked).map(|challenge| challenge.subject).collect();
        self.looked_at.retain(|subject| open.contains(subject));
        let subject = open.into_iter().find(|subject| self.looked_at.insert(*subject))?;
        Some(StageReading::of(state, subject.stage, subject.epoch, |other| *other == subject))
    }
}

impl StageReading {
    /// Reads those of a stage's submissions that are `wanted`, and those of the stages beside.
    fn of(state: &RunState, stage: StageIndex, epoch: Epoch, wanted: impl Fn(&Subject) -> bool) -> Self {
        let own = committed(state, stage, epoch).into_iter().flatten().filter(|(subject, _)| wanted(subject));
        let others = beside(stage).filter_map(|stage| committed(state, stage, epoch)).flatten();
        let receipts = Reading::of(own.chain(others));
        Self { stage, epoch, receipts, sent: BTreeMap::new(), received: Vec::new(), faults: Vec::new() }
    }

    /// Reads on; whether there is nothing left to read. Whose receipts cannot be had is left out.
    fn advance(&mut self, cx: &mut Context<'_>, spec: &Arc<RunSpec>) -> bool {
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
                    let received = receipts.iter().flat_map(|of| of.received(subject.stage, subject.epoch));
                    self.received.extend(received.map(|(hop, received)| (hop, received.clone())));
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
    fn faults(mut self, cx: &Context<'_>) -> Vec<(Subject, Fault)> {
        for (hop, received) in &self.received {
            if let Some(sent) = self.sent.get_mut(&received.from) {
                sent.compare(cx.out.run(), hop, received);
            }
        }
        let sent = self.sent.into_values().filter_map(|sent| Some((sent.subject(), sent.fault()?)));
        self.faults.into_iter().chain(sent).collect()
    }
}
