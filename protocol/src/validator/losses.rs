//! Whose samples come out worse: the losses that the receipts of the last stage tell, by the path of each sample.
//!
//! A check shows whether a miner did what its receipts say and sent that on, but few are checked; samples that went through one that
//! does harm end with a higher loss, whoever is checked. A validator reads the
//! receipts of each epoch of the last stage while they are kept, and takes the paths from the log's deals. Once enough samples
//! have come it [looks](crate::clasp) whom they name, says so, and begins anew: each look has samples of its own, so that the
//! rate of false alarms is the one asked for.
//!
//! What it finds is for people. Nobody loses anything by it: in `local` mode a miner whose replica is behind, since it was dealt
//! little, raises losses too, and losses are what the last stage says of itself.

use std::collections::BTreeMap;

use super::reading::{Read, Reading};
use crate::clasp::{Effect, Record, attribute, detrend, threshold};
use crate::id::{Epoch, PeerId, SampleId, StageIndex};
use crate::limits::CLOSED_EPOCHS_KEPT;
use crate::miner::{Context, Kept};
use crate::run_state::RunState;
use crate::samples::Deal;
use crate::validation::Subject;

/// How often a look names anybody where all are honest.
pub const FALSE_ALARMS: f64 = 0.001;
/// Samples that a look has for each miner of the stage with the most. With five of them a miner that adds 3 % to the loss of its
/// samples is named for certain, one that adds 1 % in a third of the looks (`iota-sim sweep clasp`).
pub const SAMPLES_PER_MINER: usize = 200;
/// Samples whose median is taken for what the loss would be: few beside those on which training shows.
const TREND_SAMPLES: usize = 65;
/// The least share of the mean loss that is worth a word: in enough samples anything is significant.
const LEAST_SHARE: f64 = 0.005;
/// Samples that a look waits for at most.
const SAMPLES_MAX: usize = 1 << 16;

/// A miner whose samples end with a higher loss than those of its stage's others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suspicion {
    /// Its stage.
    pub stage: StageIndex,
    /// The miner.
    pub peer: PeerId,
    /// The newest epoch looked at.
    pub epoch: Epoch,
    /// Samples of it that were looked at.
    pub samples: usize,
    /// What it adds to the loss of a sample, in nats per token.
    pub effect: f64,
    /// How many standard errors that is.
    pub errors: f64,
}

/// Losses read and not looked at yet, and what is being read.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// The epoch to read next.
    next: Epoch,
    reading: Option<EpochReading>,
    samples: Vec<(Vec<PeerId>, f64)>,
}

/// An epoch of the last stage whose receipts are read.
#[derive(Debug)]
struct EpochReading {
    stage: StageIndex,
    epoch: Epoch,
    /// Of each stage.
    deals: Vec<Deal>,
    receipts: Reading,
    /// Loss by when it was computed: after which inner step, then by sample.
    read: BTreeMap<(u32, SampleId), f64>,
}

impl Losses {
    /// What blobs are kept for that are read now.
    pub(super) fn keeps(&self) -> Option<Kept> {
        self.reading.as_ref().map(|reading| Kept::Epoch(reading.stage, reading.epoch))
    }

    /// Takes the end of a fetch.
    pub(super) fn fetched(&mut self, id: u64, bytes: Option<&[u8]>) {
        self.reading.iter_mut().for_each(|reading| reading.receipts.fetched(id, bytes));
    }

    /// Goes on as far as it can. Returns whom a look has named, and what blobs are not needed any more.
    pub(super) fn pump(&mut self, cx: &mut Context<'_>) -> (Vec<Suspicion>, Option<Kept>) {
        if self.reading.is_none() {
            self.reading = self.begin(cx.state);
        }
        let Some(reading) = &mut self.reading else { return (Vec::new(), None) };
        if !reading.advance(cx) {
            return (Vec::new(), None);
        }
        let done = self.keeps();
        let Some(reading) = self.reading.take() else { return (Vec::new(), None) };
        let epoch = reading.epoch;
        self.samples.extend(reading.paths());
        (self.look(epoch), done)
    }

    /// The next epoch that all stages have closed and still remember.
    fn begin(&mut self, state: &RunState) -> Option<EpochReading> {
        let (stage, last) = state.spec().stages().zip(state.stages()).last()?;
        let remembered = u32::try_from(CLOSED_EPOCHS_KEPT).unwrap_or(u32::MAX);
        self.next = self.next.max(Epoch(last.version.0.saturating_sub(remembered)));
        if state.stages().iter().any(|stage| stage.version <= self.next) {
            return None;
        }
        let epoch = self.next;
        self.next = epoch.next();
        let closed = last.closed_epoch(epoch)?;
        let deals = state.stages().iter().map(|stage| Some(stage.closed_epoch(epoch)?.training.deal.clone()));
        let base = closed.training.base;
        let committed =
            closed.plan.submitters.iter().map(|submission| (Subject::of(stage, epoch, submission), base));
        Some(EpochReading {
            stage,
            epoch,
            deals: deals.collect::<Option<_>>()?,
            receipts: Reading::of(committed),
            read: BTreeMap::new(),
        })
    }

    /// Whom the samples read so far name, if they are enough.
    fn look(&mut self, epoch: Epoch) -> Vec<Suspicion> {
        let stages = self.samples.first().map_or(0, |(path, _)| path.len());
        let mut miners = vec![BTreeMap::<PeerId, usize>::new(); stages];
        for (path, _) in &self.samples {
            for (peer, of_stage) in path.iter().zip(&mut miners) {
                let number = of_stage.len();
                of_stage.entry(*peer).or_insert(number);
            }
        }
        let counts: Vec<usize> = miners.iter().map(BTreeMap::len).collect();
        let widest = counts.iter().copied().max().unwrap_or_default();
        if self.samples.len() < (SAMPLES_PER_MINER * widest).clamp(SAMPLES_PER_MINER, SAMPLES_MAX) {
            return Vec::new();
        }
        let number = |(peer, of_stage): (&PeerId, &BTreeMap<PeerId, usize>)| of_stage.get(peer).copied();
        let record = |(path, loss): (Vec<PeerId>, f64)| {
            let path = path.iter().zip(&miners).map(number).collect::<Option<_>>()?;
            Some(Record { path, loss })
        };
        let mut records: Vec<Record> = self.samples.drain(..).filter_map(record).collect();
        let mean = records.iter().map(|record| record.loss).sum::<f64>() / records.len() as f64;
        detrend(&mut records, TREND_SAMPLES);
        // More miners than a fit can take, or losses that are no numbers: nobody is named.
        let Ok(effects) = attribute(&records, &counts) else { return Vec::new() };
        let least = threshold(FALSE_ALARMS, &counts, records.len());
        let mut named = Vec::new();
        for ((index, of_stage), effects) in (0..).zip(&miners).zip(&effects) {
            for (peer, number) in of_stage {
                let names = |effect: &&Effect| effect.score() > least && effect.effect > LEAST_SHARE * mean;
                let Some(effect) = effects.get(*number).filter(names) else { continue };
                named.push(Suspicion {
                    stage: StageIndex(index),
                    peer: *peer,
                    epoch,
                    samples: effect.samples,
                    effect: effect.effect,
                    errors: effect.score(),
                });
            }
        }
        named
    }
}

impl EpochReading {
    /// Reads on; whether there is nothing left to read. Whose receipts cannot be had is left out.
    fn advance(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.receipts.next(cx, self.stage, self.epoch) {
                Read::Waits => return false,
                Read::Over => return true,
                Read::Missing | Read::Wrong(_) => {}
                Read::Receipts(.., receipts) => {
                    self.read.extend(receipts.into_iter().filter_map(|receipt| {
                        let nats = receipt.loss_micro? as f64 / 1e6;
                        Some(((receipt.gradient_step, receipt.sample), nats))
                    }));
                }
            }
        }
    }

    /// Whom each sample that was read went through, and its loss, oldest first.
    fn paths(self) -> impl Iterator<Item = (Vec<PeerId>, f64)> {
        let Self { deals, read, .. } = self;
        read.into_iter().filter_map(move |((_, sample), loss)| {
            let path = deals.iter().map(|deal| deal.owner(sample)).collect::<Option<_>>()?;
            Some((path, loss))
        })
    }
}
