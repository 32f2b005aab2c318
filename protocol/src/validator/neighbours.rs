//! What a miner sent, as its neighbours' receipts tell: the last part of a check.
//!
//! A replay shows that a miner computed what it commits to. Its neighbours show, under its own signature, what it sent. If that
//! is something else, it has signed both.

use std::collections::{BTreeMap, BTreeSet};

use super::reading::{Read, Reading};
use crate::id::{Epoch, Hash, PeerId, RunId, SampleId, StageIndex};
use crate::limits::TRANSFER_DEADLINE;
use crate::miner::Context;
use crate::receipts::{Hop, Receipt, Received};
use crate::run_state::{RunState, Training};
use crate::time::Instant;
use crate::validation::{Fault, Finding, Subject};
use crate::wire::frame::Direction;
use crate::wire::message::Manifest;

/// What a miner commits to have sent in an epoch, and what of that others contradict.
#[derive(Debug)]
pub(super) struct Sent {
    subject: Subject,
    nonce: u64,
    tensors: BTreeMap<(Direction, SampleId), Hash>,
    /// The first sample of which it sent something else.
    differs: Option<SampleId>,
    /// Whether it sent something else in another try at the epoch.
    before: bool,
}

impl Sent {
    /// What `subject` says in these.
    pub(super) fn of(subject: Subject, manifest: &Manifest, receipts: &[Receipt]) -> Self {
        let sent = receipts
            .iter()
            .flat_map(|receipt| receipt.sent().map(|(direction, hash)| ((direction, receipt.sample), hash)));
        Self { subject, nonce: manifest.nonce, tensors: sent.collect(), differs: None, before: false }
    }

    /// Puts beside it what another received over `hop`.
    pub(super) fn compare(&mut self, run: RunId, hop: &Hop, received: &Received) {
        let Received { from, hash, nonce, .. } = received;
        let of = (*from, hop.sender(), hop.epoch);
        if of != (self.subject.peer, Some(self.subject.stage), self.subject.epoch) {
            return;
        }
        let other = self.tensors.get(&(hop.direction, hop.sample)).is_some_and(|sent| sent != hash);
        // A claim that the miner has not signed is the other's fault.
        if other && received.verifies(run, hop) {
            if *nonce == self.nonce {
                self.differs = Some(self.differs.map_or(hop.sample, |differs| differs.min(hop.sample)));
            } else {
                self.before = true;
            }
        }
    }

    /// Who says so.
    pub(super) const fn subject(&self) -> Subject {
        self.subject
    }

    /// The fault that was found, if one was.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.differs.map(Fault::Sent)
    }
}

/// The stages beside one.
pub(super) fn beside(stage: StageIndex) -> impl Iterator<Item = StageIndex> {
    [stage.0.checked_sub(1), stage.0.checked_add(1)].into_iter().flatten().map(StageIndex)
}

/// What the miners of a stage committed to in an epoch, each with the weights that it started from; nothing if there is no
/// plan that froze it.
pub(super) fn committed(
    state: &RunState,
    stage: StageIndex,
    epoch: Epoch,
) -> Option<impl Iterator<Item = (Subject, Hash)> + '_> {
    let (Training { base, .. }, plan) = state.stage(stage)?.merge(epoch)?;
    Some(plan.submitters.iter().map(move |submission| (Subject::of(stage, epoch, submission), *base)))
}

/// The neighbours of a miner.
#[derive(Debug)]
pub(super) struct Neighbours {
    sent: Sent,
    /// Who sent it something.
    peers: BTreeSet<PeerId>,
    /// Until when the plans that freeze their receipts are waited for.
    until: Instant,
    reading: Option<Reading>,
    /// Whether some could not be read.
    unread: bool,
}

impl Neighbours {
    /// The neighbours of `subject`, which committed to these.
    pub(super) fn new(subject: Subject, now: Instant, manifest: &Manifest, receipts: &[Receipt]) -> Self {
        let received = receipts.iter().flat_map(|receipt| receipt.received(subject.stage, subject.epoch));
        let peers = received.map(|(_, received)| received.from).collect();
        Self {
            sent: Sent::of(subject, manifest, receipts),
            peers,
            until: now + TRANSFER_DEADLINE,
            reading: None,
            unread: false,
        }
    }

    /// The fetches that have not ended.
    pub(super) fn fetching(&self) -> impl Iterator<Item = u64> + '_ {
        self.reading.iter().flat_map(Reading::fetching)
    }

    /// Takes the end of a fetch.
    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        self.reading.iter_mut().for_each(|reading| reading.fetched(id, bytes));
    }

    /// When [`pump`](Self::pump) has something to do even if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.reading.is_none().then_some(self.until)
    }

    /// Goes on as far as it can; what was found, once all that can be read is.
    pub(super) fn pump(&mut self, cx: &mut Context<'_>) -> Option<Finding> {
        let mut reading = match self.reading.take() {
            Some(reading) => reading,
            None => self.begin(cx)?,
        };
        loop {
            let Subject { stage, epoch, .. } = self.sent.subject;
            match reading.next(cx, stage, epoch) {
                Read::Waits => {
                    self.reading = Some(reading);
                    return None;
                }
                Read::Receipts(of, _, receipts) => {
                    let run = cx.out.run();
                    let received = receipts.iter().flat_map(|receipt| receipt.received(of.stage, of.epoch));
                    received.for_each(|(hop, received)| self.sent.compare(run, &hop, received));
                }
                Read::Missing | Read::Wrong(_) => self.unread = true,
                Read::Over => return Some(self.finding(cx.state)),
            }
        }
    }

    /// Begins to read once the plans of both neighbouring stages are there, or at the latest when they were waited for long
    /// enough: a stage may stand still.
    fn begin(&mut self, cx: &Context<'_>) -> Option<Reading> {
        let Subject { stage, epoch, .. } = self.sent.subject;
        let (mut named, mut unplanned) = (Vec::new(), false);
        for index in beside(stage) {
            let Some(neighbour) = cx.state.stage(index) else { continue };
            let Some(committed) = committed(cx.state, index, epoch) else {
                unplanned |= neighbour.version <= epoch;
                self.unread = true;
                continue;
            };
            named.extend(committed.filter(|(subject, _)| self.peers.contains(&subject.peer)));
        }
        (!unplanned || cx.now >= self.until).then(|| Reading::of(named))
    }

    /// What was found. A miner that began an epoch again computes other tensors than those that its neighbours went on
    /// from: nothing is proved of such an epoch. Who could not read all of them does not contradict who has found something.
    fn finding(&self, state: &RunState) -> Finding {
        let accused = || {
            let mut challenges = state.challenges().iter();
            let challenge = challenges.find(|challenge| challenge.subject == self.sent.subject);
            let is_sent = |fault| matches!(fault, Fault::Sent(_));
            challenge.is_some_and(|challenge| challenge.faults().any(is_sent))
        };
        match self.sent.fault() {
            Some(fault) => Finding::Differs(fault),
            None if self.sent.before || (self.unread && accused()) => Finding::Unavailable,
            None => Finding::Matches,
        }
    }
}
