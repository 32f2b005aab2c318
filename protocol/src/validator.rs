//! A validator: replays the epochs of miners that the log has drawn it for, and says what it found.
//!
//! Level-triggered like a [`Miner`](crate::miner::Miner): [`Validator::pump`] compares the open
//! [challenges](crate::run_state::RunState::challenges) with what is under way. One check at a time:
//!
//! ```text
//! manifest ─▶ receipts ─▶ weights the epoch started from ─▶ tensors received ─▶ replay ─▶ verdict
//!                                                                                 │          ▲
//!                                            tensors that hash otherwise ◀────────┘ compare ─┘
//! ```
//! The replay gives an engine of its own the jobs that the miner's engine had, in the order that the receipts tell: where
//! machine and backend are the same, all hashes are. Where hashes differ numbers are compared, within what the spec allows.
//!
//! [`check`] has the way of one check, `claims` what is compared before the replay, `replay` the engine's part, `neighbours` what comes after it.
//! Beside checks it reads losses, for [`losses`] to say whom they name.

pub mod check;
mod claims;
mod fetches;
pub mod losses;
mod neighbours;
mod reading;
mod replay;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use check::{Check, Progress};
use losses::Losses;

use crate::id::{PeerId, StageIndex};
use crate::limits::ANNOUNCE_HEARTBEATS_MAX;
use crate::miner::{Context, JobDone, Kept, Notice};
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::validation::{Finding, Subject, Verdict};
use crate::wire::message::{MergeMessage, StateOffer, VerdictAnnounce};

/// The state of a validator.
#[derive(Debug)]
pub struct Validator {
    me: PeerId,
    spec: Arc<RunSpec>,
    check: Option<Check>,
    losses: Losses,
    /// Verdicts that are not decided yet.
    given: BTreeMap<Subject, Verdict>,
    /// The stage that the engine is built for.
    engine: Option<StageIndex>,
    busy: bool,
    /// The check that was given up and that the engine is still at, if it is.
    abandoned: Option<Subject>,
    /// Fetches of checks that are over.
    late: BTreeMap<u64, Subject>,
    sequence: u64,
    announce_due: Instant,
    announce_pause: Duration,
}

impl Validator {
    /// A validator that has checked nothing yet. `sequence` is the number before its first merge message.
    #[must_use]
    pub fn new(me: PeerId, spec: Arc<RunSpec>, sequence: u64) -> Self {
        Self {
            me,
            spec,
            check: None,
            losses: Losses::default(),
            given: BTreeMap::new(),
            engine: None,
            busy: false,
            abandoned: None,
            late: BTreeMap::new(),
            sequence,
            announce_due: Instant::ZERO,
            announce_pause: Duration::ZERO,
        }
    }

    /// What it checks now, if it does.
    #[must_use]
    pub fn checks(&self) -> Option<Subject> {
        self.check.as_ref().map(|check| check.subject)
    }

    /// Whether it reads losses of the epoch that blobs are kept for under this name.
    #[must_use]
    pub fn reads(&self, kept: Kept) -> bool {
        self.losses.keeps() == Some(kept)
    }

    /// Takes the end of a fetch.
    pub fn handle_fetched(&mut self, cx: &mut Context<'_>, id: u64, bytes: Option<&[u8]>) {
        if let Some(subject) = self.late.remove(&id) {
            self.release_all(cx, &subject);
        } else {
            self.check.iter_mut().for_each(|check| check.fetched(id, bytes));
            self.losses.fetched(id, bytes);
        }
        self.pump(cx);
    }

    /// Takes the answer to a request for a stage's state.
    pub fn handle_state_offer(&mut self, cx: &mut Context<'_>, offer: Option<StateOffer>) {
        if let Some(check) = &mut self.check {
            check.offered(cx, offer);
        }
        self.pump(cx);
    }

    /// Takes the result of the engine's job.
    pub fn handle_job_done(&mut self, cx: &mut Context<'_>, done: JobDone) {
        self.busy = false;
        if let JobDone::Weights { stage, .. } = done {
            self.engine = Some(stage);
        }
        if let JobDone::Failed(reason) = &done {
            // Nobody knows what it left in the engine.
            self.engine = None;
            cx.out.notice(Notice::JobFailed(reason.clone()));
        }
        if let Some(subject) = self.abandoned.take() {
            self.release_all(cx, &subject);
        } else if let Some(check) = &mut self.check {
            check.computed(&done);
        }
        self.pump(cx);
    }

    /// Does everything that the state, the time and finished work allow.
    pub fn pump(&mut self, cx: &mut Context<'_>) {
        let open = |subject: &Subject| {
            let challenges = cx.state.challenges().iter();
            challenges
                .filter(|challenge| challenge.awaited().any(|awaited| awaited == self.me))
                .any(|challenge| challenge.subject == *subject)
        };
        self.given.retain(|subject, _| open(subject));
        if let Some(check) = self.check.take_if(|check| !open(&check.subject)) {
            self.end(cx, &check);
        }
        if self.check.is_none() {
            let asked = cx.state.challenges().iter().filter(|challenge| {
                challenge.awaited().any(|awaited| awaited == self.me)
                    && !self.given.contains_key(&challenge.subject)
            });
            // What another found a fault in comes first, then the newest: whoever cannot keep up would else begin everything
            // shortly before it is gone, and finish nothing.
            let first = asked.min_by_key(|challenge| {
                let faults =
                    challenge.found.iter().filter(|(_, finding)| matches!(finding, Finding::Differs(_)));
                (Reverse(faults.count()), Reverse(challenge.subject.epoch), challenge.subject)
            });
            self.check = first.map(|challenge| Check::new(&self.spec, challenge));
        }
        if let Some(check) = &mut self.check {
            match check.pump(cx, self.me, (!self.busy).then_some(self.engine)) {
                Progress::Waits => {}
                Progress::Job(job) => {
                    self.busy = true;
                    cx.out.compute(job);
                }
                Progress::Found(finding) => self.found(cx, finding),
            }
        }
        let (named, read) = self.losses.pump(cx);
        named.into_iter().for_each(|suspicion| cx.out.notice(Notice::Suspected(suspicion)));
        read.into_iter().for_each(|kept| self.release(cx, kept));
        self.announce(cx);
    }

    fn found(&mut self, cx: &mut Context<'_>, finding: Finding) {
        let Some(check) = self.check.take() else { return };
        self.end(cx, &check);
        let verdict = cx.out.sign_verdict(check.subject, finding);
        self.given.insert(check.subject, verdict);
        (self.announce_due, self.announce_pause) = (cx.now, Duration::ZERO);
        cx.out.notice(Notice::Checked(check.subject, finding));
    }

    /// Lets go of what a check has fetched and computed, now and when the rest of it has come.
    fn end(&mut self, cx: &mut Context<'_>, check: &Check) {
        if self.busy {
            // The engine may still be at an earlier one; then this had none of it yet.
            self.abandoned.get_or_insert(check.subject);
        }
        self.late.extend(check.fetching().map(|id| (id, check.subject)));
        self.release_all(cx, &check.subject);
    }

    /// Lets go of what is kept for a check that is over.
    fn release_all(&self, cx: &mut Context<'_>, subject: &Subject) {
        subject.keeps().into_iter().for_each(|kept| self.release(cx, kept));
    }

    /// Lets go of what was kept, unless something needs it still.
    fn release(&self, cx: &mut Context<'_>, kept: Kept) {
        let checked = self.check.as_ref().is_some_and(|check| check.subject.keeps().contains(&kept));
        if !checked && !self.reads(kept) {
            cx.out.release(kept.to_string());
        }
    }

    /// Says what it found until that is decided: at once, then after a heartbeat and twice as long each time.
    fn announce(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.announce_due {
            return;
        }
        let least = self.spec.timing.heartbeat.duration();
        let most = least * ANNOUNCE_HEARTBEATS_MAX;
        self.announce_pause =
            if self.given.is_empty() { least } else { (self.announce_pause * 2).clamp(least, most) };
        self.announce_due = cx.now + self.announce_pause;
        for verdict in self.given.values() {
            self.sequence += 1;
            let announce = VerdictAnnounce { sequence: self.sequence, verdict: verdict.clone() };
            cx.out.publish_merge(MergeMessage::Verdict(announce));
        }
    }

    /// The number of its last merge message.
    pub(crate) const fn numbered(&self) -> u64 {
        self.sequence
    }

    /// When [`pump`](Self::pump) has something to do even if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let announce = (!self.given.is_empty()).then_some(self.announce_due);
        announce.into_iter().chain(self.check.as_ref().and_then(Check::deadline)).min()
    }
}
