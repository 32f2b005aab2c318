//! What several miners committed to, fetched from a few of them at once.

use std::collections::VecDeque;

use super::claims::{read_manifest, read_receipts};
use super::fetches::{Fetches, Wanted};
use crate::id::{Epoch, Hash, StageIndex};
use crate::limits::{GOSSIP_BYTES_MAX, RECEIPTS_BYTES_MAX};
use crate::miner::Context;
use crate::receipts::Receipt;
use crate::validation::Subject;
use crate::wire::message::Manifest;

/// Miners that are read at once.
const AT_ONCE: usize = 8;

/// Receipts that are fetched.
#[derive(Debug)]
pub(super) struct Reading {
    /// Whose, and what their epoch started from.
    waiting: VecDeque<(Subject, Hash)>,
    under_way: VecDeque<(Subject, Hash, Step)>,
}

#[derive(Debug)]
enum Step {
    Manifest(Fetches),
    Receipts(Box<Manifest>, Fetches),
}

/// What has been read.
#[derive(Debug)]
pub(super) enum Read {
    /// Nothing more yet.
    Waits,
    /// What a miner committed to.
    Receipts(Subject, Box<Manifest>, Vec<Receipt>),
    /// Nothing of one miner: it cannot be had.
    Missing,
    /// Something that is not what this miner committed to.
    Wrong(Subject),
    /// All.
    Over,
}

impl Step {
    const fn fetches(&self) -> &Fetches {
        match self {
            Self::Manifest(fetches) | Self::Receipts(_, fetches) => fetches,
        }
    }

    const fn fetches_mut(&mut self) -> &mut Fetches {
        match self {
            Self::Manifest(fetches) | Self::Receipts(_, fetches) => fetches,
        }
    }
}

impl Reading {
    /// Reads what these committed to, whose epochs started from weights of these hashes.
    pub(super) fn of(committed: impl IntoIterator<Item = (Subject, Hash)>) -> Self {
        Self { waiting: committed.into_iter().collect(), under_way: VecDeque::new() }
    }

    /// The fetches that have not ended.
    pub(super) fn fetching(&self) -> impl Iterator<Item = u64> + '_ {
        self.under_way.iter().flat_map(|(_, _, step)| step.fetches().in_flight.keys().copied())
    }

    /// Takes the end of a fetch.
    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        self.under_way.iter_mut().for_each(|(_, _, step)| step.fetches_mut().ended(id, bytes));
    }

    /// Goes on as far as it can. Blobs are kept for this epoch of a stage.
    pub(super) fn next(&mut self, cx: &mut Context<'_>, stage: StageIndex, epoch: Epoch) -> Read {
        // What was settled long ago is gone with those who had it. What is under way still comes.
        if !cx.state.keeps(stage, epoch) {
            self.waiting.clear();
            self.under_way.iter_mut().for_each(|(_, _, step)| step.fetches_mut().give_up());
        }
        while self.under_way.len() < AT_ONCE {
            let Some((subject, base)) = self.waiting.pop_front() else { break };
            let manifest = Wanted::read(subject.manifest, vec![subject.peer], GOSSIP_BYTES_MAX);
            self.under_way.push_back((subject, base, Step::Manifest(Fetches::of([manifest]))));
        }
        for _ in 0..self.under_way.len() {
            let Some((subject, base, mut step)) = self.under_way.pop_front() else { break };
            step.fetches_mut().start(cx, stage, epoch);
            let Some(there) = step.fetches().ended_as() else {
                self.under_way.push_back((subject, base, step));
                continue;
            };
            let bytes = step.fetches_mut().delivered.take().filter(|_| there);
            match read(subject, base, step, bytes.as_deref()) {
                Ok(mut step) => {
                    step.fetches_mut().start(cx, stage, epoch);
                    self.under_way.push_back((subject, base, step));
                }
                Err(read) => return read,
            }
        }
        if self.under_way.is_empty() { Read::Over } else { Read::Waits }
    }
}

/// Takes what was fetched for a step: the next one, or what has been read.
fn read(subject: Subject, base: Hash, step: Step, bytes: Option<&[u8]>) -> Result<Step, Read> {
    let bytes = bytes.ok_or(Read::Missing)?;
    match step {
        Step::Manifest(_) => {
            let manifest = read_manifest(&subject, base, bytes).ok_or(Read::Wrong(subject))?;
            let receipts = Wanted::read(manifest.receipts, vec![subject.peer], RECEIPTS_BYTES_MAX);
            Ok(Step::Receipts(Box::new(manifest), Fetches::of([receipts])))
        }
        Step::Receipts(manifest, _) => {
            let receipts = read_receipts(&manifest, bytes).ok_or(Read::Wrong(subject))?;
            Err(Read::Receipts(subject, manifest, receipts))
        }
    }
}
