//! What a miner sent, as its neighbours' receipts tell: the last part of a check.
//!
//! A replay shows that a miner computed what it commits to. Its neighbours show, under its own signature, what it sent. If that
//! is something else, it has signed both.

use std::collections::{BTreeMap, BTreeSet};

use super::reading::{Read, Reading};
use crate::id::{Hash, PeerId, RunId, SampleId, StageIndex};
use crate::limits::TRANSFER_DEADLINE;
use crate::miner::Context;
use crate::receipts::{Receipt, Received};
use crate::run_state::RunState;
use crate::time::Instant;
use crate::validation::{Fault, Finding, Subject};
use crate::wire::frame::Direction;
use crate::wire::message::Manifest;

/// The neighbours of a miner whose work was replayed.
#[derive(Debug)]
pub(super) struct Neighbours {
    subject: Subject,
    nonce: u64,
    /// What it commits to have sent.
    sent: BTreeMap<(Direction, SampleId), Hash>,
    /// Who sent it something.
    peers: BTreeSet<PeerId>,
    /// Until when the plans that freeze their receipts are waited for.
    until: Instant,
    reading: Option<Reading>,
    /// Whether some could not be read.
    unread: bool,
    /// A sample of which it sent something else.
    differs: Option<SampleId>,
    /// Whether it sent something else in another try at the epoch.
    before: bool,
}

impl Neighbours {
    /// The neighbours of `subject`, which committed to these.
    pub(super) fn new(subject: Subject, now: Instant, manifest: &Manifest, receipts: &[Receipt]) -> Self {
        let sent = receipts
            .iter()
            .flat_map(|receipt| receipt.sent().map(|(direction, hash)| ((direction, receipt.sample), hash)));
        let received = receipts.iter().flat_map(|receipt| receipt.received(subject.stage, subject.epoch));
        let peers = received.map(|(_, received)| received.from).collect();
        Self {
            subject,
            nonce: manifest.nonce,
            sent: sent.collect(),
            peers,
            until: now + TRANSFER_DEADLINE,
            reading: None,
            unread: false,
            differs: None,
            before: false,
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
            match reading.next(cx, self.subject.stage, self.subject.epoch) {
                Read::Waits => {
                    self.reading = Some(reading);
                    return None;
                }
                Read::Receipts(of, Some(receipts)) => self.compare(cx.out.run(), &of, &receipts),
                Read::Receipts(_, None) => self.unread = true,
                Read::Over => return Some(self.finding(cx.state)),
            }
        }
    }

    /// Begins to read once the plans of both neighbouring stages are there, or at the latest when they were waited for long
    /// enough: a stage may stand still.
    fn begin(&mut self, cx: &Context<'_>) -> Option<Reading> {
        let Subject { stage, epoch, .. } = self.subject;
        let (mut committed, mut unplanned) = (Vec::new(), false);
        for index in [stage.0.checked_sub(1), stage.0.checked_add(1)].into_iter().flatten().map(StageIndex) {
            let Some(neighbour) = cx.state.stage(index) else { continue };
            let Some((training, plan)) = neighbour.merge(epoch) else {
                unplanned |= neighbour.version <= epoch;
                self.unread = true;
                continue;
            };
            let named = plan.submitters.iter().filter(|submission| self.peers.contains(&submission.peer));
            committed.extend(named.map(|submission| (Subject::of(index, epoch, submission), training.base)));
        }
        (!unplanned || cx.now >= self.until).then(|| Reading::of(committed))
    }

    /// Compares what a neighbour was sent with what the miner commits to.
    fn compare(&mut self, run: RunId, of: &Subject, receipts: &[Receipt]) {
        for (hop, received) in receipts.iter().flat_map(|receipt| receipt.received(of.stage, of.epoch)) {
            let Received { from, hash, nonce, .. } = received;
            let sent = self.sent.get(&(hop.direction, hop.sample));
            let other = *from == self.subject.peer && sent.is_some_and(|sent| sent != hash);
            // A claim that the miner has not signed is the neighbour's fault.
            if other && received.verifies(run, &hop) {
                if *nonce == self.nonce {
                    self.differs.get_or_insert(hop.sample);
                } else {
                    self.before = true;
                }
            }
        }
    }

    /// What was found. A miner that began an epoch again computes other tensors than those that its neighbours went on
    /// from: nothing is proved of such an epoch. Who could not read all of them does not contradict who has found something.
    fn finding(&self, state: &RunState) -> Finding {
        let accused = || {
            let mut challenges = state.challenges().iter();
            let challenge = challenges.find(|challenge| challenge.subject == self.subject);
            challenge.is_some_and(|challenge| {
                challenge.found.iter().any(|(_, finding)| matches!(finding, Finding::Differs(Fault::Sent(_))))
            })
        };
        match self.differs {
            Some(sample) => Finding::Differs(Fault::Sent(sample)),
            None if self.before || (self.unread && accused()) => Finding::Unavailable,
            None => Finding::Matches,
        }
    }
}
