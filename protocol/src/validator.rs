//! A validator: replays the epochs of miners that the log has drawn it for, evaluates merges where scores are by the loss, and says
//! what it found.
//!
//! Level-triggered like a [`Miner`](crate::miner::Miner): [`Validator::pump`] compares the open
//! [challenges](crate::run_state::RunState::challenges) and [evaluations](crate::run_state::RunState::evaluating) with what is under way.
//! One at a time:
//!
//! ```text
//! manifest ─▶ receipts ─▶ weights the epoch started from ─▶ tensors received ─▶ replay ─▶ verdict
//!                                                                                 │          ▲
//!                                            tensors that hash otherwise ◀────────┘ compare ─┘
//! ```
//! The replay gives an engine of its own the jobs that the miner's engine had, in the order that the receipts tell: where
//! machine and backend are the same, all hashes are. Where hashes differ numbers are compared, within what the spec allows.
//!
//! [`check`] has the way of one check and `evaluate` that of one evaluation, either of which is a `task`, and `base` how both come by weights;
//! `claims` what is compared before the replay, `replay` the engine's part, `neighbours` what comes after it.
//! Beside checks it reads receipts: for `reader` to say whose are wrong, and for [`losses`] to say whom losses name.

mod base;
pub mod check;
mod claims;
mod evaluate;
mod fetches;
pub mod losses;
mod neighbours;
mod reader;
mod reading;
mod replay;
mod task;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use check::Check;
use evaluate::{AllSaid, Commits, Evaluate, WHOLE};
use losses::Losses;
use reader::Reader;
use task::{Of, Progress, Task, kept_for};

use crate::gauntlet::evaluation::{Evaluation, Said};
use crate::id::{Epoch, PeerId, StageIndex};
use crate::limits::ANNOUNCE_HEARTBEATS_MAX;
use crate::miner::{Context, JobDone, Kept, Notice};
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::validation::{Challenge, Finding, Subject, Verdict};
use crate::wire::gossip::HashedManifest;
use crate::wire::message::{EvaluationAnnounce, MergeMessage, StateOffer, VerdictAnnounce};

/// The state of a validator.
#[derive(Debug)]
pub struct Validator {
    me: PeerId,
    spec: Arc<RunSpec>,
    task: Option<Task>,
    commits: Commits,
    losses: Losses,
    reader: Reader,
    /// Verdicts that are not decided yet.
    given: BTreeMap<Subject, Verdict>,
    /// Evaluations that are not decided yet.
    evaluated: BTreeMap<Epoch, Evaluation>,
    /// The stage that the engine is built for.
    engine: Option<StageIndex>,
    busy: bool,
    /// What the engine is still at though it was given up, if it is.
    abandoned: Option<Of>,
    /// Fetches of what is over.
    late: BTreeMap<u64, Of>,
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
            task: None,
            commits: Commits::default(),
            losses: Losses::default(),
            reader: Reader::default(),
            given: BTreeMap::new(),
            evaluated: BTreeMap::new(),
            engine: None,
            busy: false,
            abandoned: None,
            late: BTreeMap::new(),
            sequence,
            announce_due: Instant::ZERO,
            announce_pause: Duration::ZERO,
        }
    }

    /// The epoch and stage whose work it checks or evaluates now, if it does.
    #[must_use]
    pub fn works_on(&self) -> Option<(StageIndex, Epoch)> {
        self.task.as_ref().map(Task::of)
    }

    /// Takes a miner's commitment, for when it came.
    pub fn handle_manifest(&mut self, cx: &Context<'_>, submitted: &HashedManifest) {
        if let Some(stage) = cx.state.stage(submitted.manifest.stage) {
            self.commits.note(stage.version, submitted);
        }
    }

    /// Whether it needs what is kept under this name: for what it works on, or since it reads receipts there.
    #[must_use]
    pub fn needs(&self, kept: Kept) -> bool {
        self.works_on().is_some_and(|of| kept_for(of).contains(&kept))
            || self.losses.keeps().into_iter().chain(self.reader.keeps()).any(|keeps| keeps == kept)
    }

    /// Takes the end of a fetch.
    pub fn handle_fetched(&mut self, cx: &mut Context<'_>, id: u64, bytes: Option<&[u8]>) {
        if let Some(of) = self.late.remove(&id) {
            self.release_all(cx, of);
        } else {
            self.task.iter_mut().for_each(|task| task.fetched(id, bytes));
            self.losses.fetched(id, bytes);
            self.reader.fetched(id, bytes);
        }
        self.pump(cx);
    }

    /// Takes the answer to a request for a stage's state.
    pub fn handle_state_offer(&mut self, cx: &mut Context<'_>, offer: Option<StateOffer>) {
        if let Some(task) = &mut self.task {
            task.offered(cx, offer);
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
        if let Some(of) = self.abandoned.take() {
            self.release_all(cx, of);
        } else if let Some(task) = &mut self.task {
            task.computed(done);
        }
        self.pump(cx);
    }

    /// Does everything that the state, the time and finished work allow.
    pub fn pump(&mut self, cx: &mut Context<'_>) {
        self.given.retain(|_, verdict| cx.state.takes(verdict));
        self.evaluated.retain(|_, evaluation| cx.state.awaits(evaluation));
        if let Some(task) = self.task.take_if(|task| !task.is_open(cx, self.me)) {
            self.end(cx, &task);
        }
        self.pass_over(cx);
        if self.task.is_none() {
            self.task = self.first(cx);
        }
        let engine = (!self.busy).then_some(self.engine);
        let job = match &mut self.task {
            None => None,
            Some(Task::Check(check)) => match check.pump(cx, self.me, engine) {
                Progress::Waits => None,
                Progress::Job(job) => Some(job),
                Progress::Found(finding) => {
                    self.found(cx, finding);
                    None
                }
            },
            Some(Task::Evaluate(evaluate)) => match evaluate.pump(cx, self.me, engine) {
                Progress::Waits => None,
                Progress::Job(job) => Some(job),
                Progress::Found(said) => {
                    self.said(cx, said);
                    None
                }
            },
        };
        if let Some(job) = job {
            self.busy = true;
            cx.out.compute(job);
        }
        let (named, read) = self.losses.pump(cx);
        named.into_iter().for_each(|suspicion| cx.out.notice(Notice::Suspected(suspicion)));
        let (faults, also_read) = self.reader.pump(cx, self.me, &self.spec);
        faults.into_iter().for_each(|(subject, fault)| self.give(cx, subject, Finding::Differs(fault)));
        read.into_iter().chain(also_read).for_each(|kept| self.release(cx, kept));
        self.announce(cx);
    }

    /// What it does next of what the log waits for.
    ///
    /// What another found a fault in comes first, then the newest: whoever cannot keep up would else begin everything shortly
    /// before it is gone, and finish nothing. Of an epoch checks come before its evaluation.
    fn first(&self, cx: &Context<'_>) -> Option<Task> {
        let asked = cx.state.challenges().iter().filter(|challenge| {
            challenge.awaited().any(|awaited| awaited == self.me)
                && !self.given.contains_key(&challenge.subject)
        });
        let check = asked.min_by_key(|challenge| {
            let faults = challenge.found.iter().filter(|(_, finding)| matches!(finding, Finding::Differs(_)));
            (Reverse(faults.count()), Reverse(challenge.subject.epoch), challenge.subject)
        });
        let evaluating = cx.state.evaluating().rev().find(|evaluating| {
            evaluating.awaited().any(|awaited| awaited == self.me)
                && !self.evaluated.contains_key(&evaluating.epoch)
        });
        let comes_first =
            |challenge: &Challenge, epoch| challenge.is_disputed() || challenge.subject.epoch >= epoch;
        let evaluating =
            evaluating.filter(|evaluating| !check.is_some_and(|check| comes_first(check, evaluating.epoch)));
        let evaluate = evaluating.and_then(|of| Evaluate::new(cx.state, of, &self.commits));
        let check = || check.map(|challenge| Task::Check(Box::new(Check::new(&self.spec, challenge))));
        evaluate.map(|evaluate| Task::Evaluate(Box::new(evaluate))).or_else(check)
    }

    /// Says of merges that it has not come to, and of which the plans are forgotten, that it saw nothing, so that nobody waits.
    fn pass_over(&mut self, cx: &Context<'_>) {
        let begun = self.task.as_ref().map(Task::of);
        for evaluating in cx.state.evaluating() {
            let epoch = evaluating.epoch;
            let asked = evaluating.awaited().any(|awaited| awaited == self.me);
            let remembered = cx.state.stage(WHOLE).is_some_and(|stage| stage.closed_epoch(epoch).is_some());
            let is_done = self.evaluated.contains_key(&epoch) || begun == Some((WHOLE, epoch));
            if asked && !remembered && !is_done {
                let said = evaluating.drawn.iter().map(|peer| (*peer, Said::Unseen)).collect();
                self.evaluated.insert(epoch, cx.out.sign_evaluation(epoch, evaluating.plan, said));
                self.announce_due = cx.now;
            }
        }
    }

    fn found(&mut self, cx: &mut Context<'_>, finding: Finding) {
        let Some(task) = self.task.take() else { return };
        self.end(cx, &task);
        let Task::Check(check) = task else { return };
        self.give(cx, check.subject, finding);
    }

    /// Gives a verdict, if the log takes one.
    fn give(&mut self, cx: &mut Context<'_>, subject: Subject, finding: Finding) {
        let verdict = cx.out.sign_verdict(subject, finding);
        if !cx.state.takes(&verdict) {
            return;
        }
        self.given.insert(subject, verdict);
        (self.announce_due, self.announce_pause) = (cx.now, Duration::ZERO);
        cx.out.notice(Notice::Checked(subject, finding));
    }

    fn said(&mut self, cx: &mut Context<'_>, said: AllSaid) {
        let Some(task) = self.task.take() else { return };
        self.end(cx, &task);
        let Task::Evaluate(evaluate) = task else { return };
        let (epoch, seen) = (evaluate.epoch(), said.iter().filter(|(_, said)| *said != Said::Unseen).count());
        cx.out.notice(Notice::Evaluated(epoch, seen, said.len()));
        self.evaluated.insert(epoch, cx.out.sign_evaluation(epoch, evaluate.plan, said));
        (self.announce_due, self.announce_pause) = (cx.now, Duration::ZERO);
    }

    /// Lets go of what a task has fetched and computed, now and when the rest of it has come.
    fn end(&mut self, cx: &mut Context<'_>, task: &Task) {
        if self.busy {
            // The engine may still be at an earlier one; then this had none of it yet.
            self.abandoned.get_or_insert(task.of());
        }
        self.late.extend(task.fetching().into_iter().map(|id| (id, task.of())));
        self.release_all(cx, task.of());
    }

    /// Lets go of what is kept for a task that is over.
    fn release_all(&self, cx: &mut Context<'_>, of: Of) {
        kept_for(of).into_iter().for_each(|kept| self.release(cx, kept));
    }

    /// Lets go of what was kept, unless something needs it still.
    fn release(&self, cx: &mut Context<'_>, kept: Kept) {
        if !self.needs(kept) {
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
            if self.is_silent() { least } else { (self.announce_pause * 2).clamp(least, most) };
        self.announce_due = cx.now + self.announce_pause;
        for verdict in self.given.values() {
            self.sequence += 1;
            let announce = VerdictAnnounce { sequence: self.sequence, verdict: verdict.clone() };
            cx.out.publish_merge(MergeMessage::Verdict(announce));
        }
        for evaluation in self.evaluated.values() {
            self.sequence += 1;
            let announce = EvaluationAnnounce { sequence: self.sequence, evaluation: evaluation.clone() };
            cx.out.publish_merge(MergeMessage::Evaluation(announce));
        }
    }

    /// Whether it has nothing to say.
    fn is_silent(&self) -> bool {
        self.given.is_empty() && self.evaluated.is_empty()
    }

    /// The number of its last merge message.
    pub(crate) const fn numbered(&self) -> u64 {
        self.sequence
    }

    /// When [`pump`](Self::pump) has something to do even if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let announce = (!self.is_silent()).then_some(self.announce_due);
        announce.into_iter().chain(self.task.as_ref().and_then(Task::deadline)).min()
    }
}
