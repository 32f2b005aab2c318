//! What a validator's engine is for: a check, or an evaluation.

use super::check::Check;
use super::evaluate::{Evaluate, WHOLE};
use crate::id::{Epoch, PeerId, StageIndex};
use crate::miner::{Context, Job, JobDone, Kept};
use crate::time::Instant;
use crate::validation::Subject;
use crate::wire::message::StateOffer;

/// What a check or an evaluation needs of its owner.
#[derive(Debug)]
pub(super) enum Progress<T> {
    /// Nothing now.
    Waits,
    /// Give this to the engine.
    Job(Job),
    /// It is over.
    Found(T),
}

/// What the engine is for at a time.
#[derive(Debug)]
pub(super) enum Task {
    Check(Box<Check>),
    Evaluate(Box<Evaluate>),
}

/// An epoch of a stage: what a task fetches and computes is kept for it.
pub(super) type Of = (StageIndex, Epoch);

impl Task {
    pub(super) fn of(&self) -> Of {
        match self {
            Self::Check(check) => (check.subject.stage, check.subject.epoch),
            Self::Evaluate(evaluate) => (WHOLE, evaluate.epoch()),
        }
    }

    /// The fetches that have not ended.
    pub(super) fn fetching(&self) -> Vec<u64> {
        match self {
            Self::Check(check) => check.fetching().collect(),
            Self::Evaluate(evaluate) => evaluate.fetching().collect(),
        }
    }

    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        match self {
            Self::Check(check) => check.fetched(id, bytes),
            Self::Evaluate(evaluate) => evaluate.fetched(id, bytes),
        }
    }

    pub(super) fn offered(&mut self, cx: &Context<'_>, offer: Option<StateOffer>) {
        match self {
            Self::Check(check) => check.offered(cx, offer),
            Self::Evaluate(evaluate) => evaluate.offered(cx, offer),
        }
    }

    pub(super) fn computed(&mut self, done: JobDone) {
        match self {
            Self::Check(check) => check.computed(&done),
            Self::Evaluate(evaluate) => evaluate.computed(done),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Check(check) => check.deadline(),
            Self::Evaluate(evaluate) => evaluate.deadline(),
        }
    }

    /// Whether the log still waits for what it will find.
    pub(super) fn is_open(&self, cx: &Context<'_>, me: PeerId) -> bool {
        match self {
            Self::Check(check) => is_asked(cx, me, &check.subject),
            Self::Evaluate(evaluate) => {
                let mut evaluating = cx.state.evaluating();
                evaluating.any(|open| open.plan == evaluate.plan && open.awaited().any(|peer| peer == me))
            }
        }
    }
}

/// Whether the log waits for what `me` finds of this.
pub(super) fn is_asked(cx: &Context<'_>, me: PeerId, subject: &Subject) -> bool {
    let mut challenges = cx.state.challenges().iter();
    challenges.any(|open| open.subject == *subject && open.awaited().any(|awaited| awaited == me))
}

/// What blobs are kept for that a check or an evaluation of this fetches and computes.
pub(super) const fn kept_for((stage, epoch): (StageIndex, Epoch)) -> [Kept; 2] {
    [Kept::Epoch(stage, epoch), Kept::State(stage, epoch)]
}
