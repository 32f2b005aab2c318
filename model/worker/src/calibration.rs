//! How far a validator's replay is from honest work of another device, and how far from work that is not honest.
//!
//! On one device a replay gives the same bits. Another adds in another order, or multiplies with fewer digits, so that
//! thresholds are needed: `validation.contribution_error_max` and its like. They have to be above what honest work shows, or
//! miners lose their place for their hardware, and below what cheating shows. Both are measured here, on a run's own model, by
//! going through the epochs of a [`Pipeline`] once more on the other device.
//!
//! Honest differences spread over orders of magnitude: stages differ, forward from backward passes, and the first epoch from
//! later ones. So they are grouped by these, the logarithms of each group are taken to be normal, with one deviation for all. The
//! [`bound`] is that of the next difference: the highest mean of a group plus *t* times deviation times √(1 + 1/n), with Student's *t*
//! at the false-positive rate asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use iota_model::Device;
use iota_model::codec::CodecError;
use iota_model::compare::{Comparison, Sums};
use iota_model::data::Corpus;
use iota_protocol::merge::partition_range;
use iota_protocol::miner::{JobDone, Tensor};
use iota_protocol::quantiles::student;
use iota_protocol::receipts::Receipt;
use iota_protocol::receipts::order::Step;
use iota_protocol::{Epoch, Hash, RunSpec, StageIndex};
use serde::Serialize;

use crate::blobs::Blobs as _;
use crate::bridge;
use crate::compare::sums_of_blobs;
use crate::pipeline::{Commitment, Pipeline, PipelineError, reordered};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Honest: an activation or gradient that one stage sent to another.
    Activation,
    /// Honest: the loss of a sample.
    Loss,
    /// Honest: a contribution.
    Contribution,
    /// Honest but for the order: a contribution whose sums were taken in another.
    OtherOrder,
    /// One sample of the epoch was left out.
    OneLeftOut,
    /// Every second sample was left out.
    HalfLeftOut,
    /// The contribution of a miner that had the other half of the samples.
    Copied,
    /// That of the epoch before.
    Stale,
    /// All zeros.
    Unmoved,
    /// A tenth more of everything.
    Scaled,
    /// Its negative.
    Flipped,
    /// Its numbers in another order.
    Shuffled,
}

impl What {
    /// All, in the order in which they are reported.
    pub const ALL: [Self; 12] = [
        Self::Activation,
        Self::Loss,
        Self::Contribution,
        Self::OtherOrder,
        Self::OneLeftOut,
        Self::HalfLeftOut,
        Self::Copied,
        Self::Stale,
        Self::Unmoved,
        Self::Scaled,
        Self::Flipped,
        Self::Shuffled,
    ];

    /// Whether a check has to let it pass.
    #[must_use]
    pub const fn is_honest(self) -> bool {
        matches!(self, Self::Activation | Self::Loss | Self::Contribution)
    }

    /// Whether a check has to find it.
    #[must_use]
    pub const fn is_dishonest(self) -> bool {
        !self.is_honest() && !matches!(self, Self::OtherOrder)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Activation => "activations and gradients",
            Self::Loss => "losses",
            Self::Contribution => "contributions",
            Self::OtherOrder => "sums in another order",
            Self::OneLeftOut => "one sample left out",
            Self::HalfLeftOut => "half of them left out",
            Self::Copied => "copied",
            Self::Stale => "stale",
            Self::Unmoved => "unmoved",
            Self::Scaled => "scaled by 1.1",
            Self::Flipped => "sign flipped",
            Self::Shuffled => "shuffled",
        })
    }
}

/// How two devices differ in one thing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// What is compared.
    pub what: What,
    /// How often it was.
    pub count: usize,
    /// How often it was the same to the last bit.
    pub equal: usize,
    /// The smallest relative error.
    pub least: f64,
    /// Its median.
    pub median: f64,
    /// The largest.
    pub most: f64,
    /// The smallest cosine; losses, which are single numbers, have 1.
    pub cosine: f64,
    /// The smallest ratio of norms.
    pub norm_ratio: f64,
    /// What the next relative error exceeds at the false-positive rate, if there are enough to say; at least the largest seen.
    pub bound: Option<f64>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Of everything that occurred, in the order of [`What::ALL`].
    pub spreads: Vec<Spread>,
}

impl Calibration {
    /// The bound of something honest.
    #[must_use]
    pub fn bound(&self, what: What) -> Option<f64> {
        self.spreads.iter().find(|spread| spread.what == what)?.bound
    }

    /// The least relative error of what is dishonest.
    #[must_use]
    pub fn dishonest(&self) -> Option<f64> {
        let dishonest = self.spreads.iter().filter(|spread| spread.what.is_dishonest());
        dishonest.map(|spread| spread.least).reduce(f64::min)
    }
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where miners compute.
    pub miner: Device,
    /// Where validators do.
    pub validator: Device,
    /// Runs, by the order in which samples overtake each other.
    pub orders: Range<u64>,
    /// Epochs of each.
    pub epochs: u32,
    /// How often honest work may be taken for dishonest.
    pub false_positives: f64,
}

/// Measures.
///
/// # Errors
/// A device is not there, or training diverged.
pub fn calibrate(
    spec: &Arc<RunSpec>,
    corpus: &Arc<Corpus>,
    plan: &Plan,
) -> Result<Calibration, PipelineError> {
    let mut seen = Seen { validator: plan.validator, of: Vec::new() };
    for order in plan.orders.clone() {
        let mut pipeline = Pipeline::new(Arc::clone(spec), Arc::clone(corpus), plan.miner, order)?;
        let mut before: Vec<Commitment> = Vec::new();
        for epoch in (0..plan.epochs).map(Epoch) {
            let commitments = pipeline.epoch(epoch)?;
            for (index, commitment) in commitments.iter().enumerate() {
                seen.compare(&mut pipeline, commitment, before.get(index))?;
            }
            pipeline.merge(&commitments)?;
            before = commitments;
        }
    }
    Ok(seen.calibration(plan.false_positives))
}

/// What somebody does to the numbers of a partition.
type Change = dyn Fn(&mut Vec<f32>);

/// Comparisons so far.
struct Seen {
    validator: Device,
    of: Vec<(What, Group, Comparison)>,
}

/// What honest differences are grouped by: stage, epoch, and whether it is of the way back.
type Group = (StageIndex, Epoch, bool);

impl Seen {
    fn compare(
        &mut self,
        pipeline: &mut Pipeline,
        theirs: &Commitment,
        before: Option<&Commitment>,
    ) -> Result<(), PipelineError> {
        let replayed = pipeline.replay(theirs, self.validator)?;
        let ours = &replayed.commitment;
        for (step, done) in &replayed.steps {
            self.step(pipeline, theirs, *step, done)?;
        }
        self.contribution(pipeline, What::Contribution, ours, &theirs.partitions)?;
        let backwards = reordered(theirs.receipts.clone(), |receipt| u64::from(u32::MAX - receipt.turn));
        let reversed = Commitment { receipts: backwards, ..theirs.clone() };
        let reversed = pipeline.replay(&reversed, self.validator)?.commitment;
        self.contribution(pipeline, What::OtherOrder, ours, &reversed.partitions)?;

        let validator = self.validator;
        let part = |pipeline: &mut Pipeline, keep: &dyn Fn(usize) -> bool| {
            let receipts = kept(&theirs.receipts, keep);
            pipeline.replay(&Commitment { receipts, ..theirs.clone() }, validator)
        };
        let middle = theirs.receipts.len() / 2;
        if theirs.receipts.len() > 1 {
            let without = part(pipeline, &|index| index != middle)?.commitment;
            let even = part(pipeline, &|index| index % 2 == 0)?.commitment;
            let odd = part(pipeline, &|index| index % 2 == 1)?.commitment;
            self.contribution(pipeline, What::OneLeftOut, ours, &without.partitions)?;
            self.contribution(pipeline, What::HalfLeftOut, ours, &even.partitions)?;
            self.contribution(pipeline, What::Copied, &even, &odd.partitions)?;
        }
        if let Some(before) = before {
            self.contribution(pipeline, What::Stale, ours, &before.partitions)?;
        }
        let changes: [(What, &Change); 4] = [
            (What::Unmoved, &|values| values.fill(0.0)),
            (What::Scaled, &|values| values.iter_mut().for_each(|value| *value *= 1.1)),
            (What::Flipped, &|values| values.iter_mut().for_each(|value| *value = -*value)),
            (What::Shuffled, &|values| {
                let half = values.len() / 2;
                values.rotate_left(half);
            }),
        ];
        for (what, change) in changes {
            let changed = changed(pipeline, theirs, change)?;
            self.contribution(pipeline, what, ours, &changed)?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        pipeline: &Pipeline,
        theirs: &Commitment,
        step: Step,
        done: &JobDone,
    ) -> Result<(), PipelineError> {
        let Some(receipt) = step.receipt().and_then(|index| theirs.receipts.get(index)) else {
            return Ok(());
        };
        let group = (theirs.stage, theirs.epoch, !matches!(step, Step::Forward(_)));
        if let JobDone::Finished { loss_micro, .. } = done
            && let Some((ours, theirs)) = loss_micro.zip(receipt.loss_micro)
        {
            self.of.push((What::Loss, group, of_losses(ours, theirs)));
        }
        let Some((_, ours, theirs)) = receipt.beside(done) else { return Ok(()) };
        self.push(pipeline, What::Activation, group, Tensor::Activation, &[(ours, theirs)])
    }

    fn contribution(
        &mut self,
        pipeline: &Pipeline,
        what: What,
        ours: &Commitment,
        theirs: &[Hash],
    ) -> Result<(), PipelineError> {
        let pairs: Vec<_> = ours.partitions.iter().copied().zip(theirs.iter().copied()).collect();
        let group = (ours.stage, ours.epoch, false);
        self.push(pipeline, what, group, Tensor::Contribution { stage: ours.stage }, &pairs)
    }

    fn push(
        &mut self,
        pipeline: &Pipeline,
        what: What,
        group: Group,
        kind: Tensor,
        pairs: &[(Hash, Hash)],
    ) -> Result<(), PipelineError> {
        let sums = sums_of_blobs(pipeline.spec(), kind, pairs, &pipeline.blobs)
            .map_err(|error| PipelineError::Failed(error.to_string()))?;
        self.of.push((what, group, sums.comparison()));
        Ok(())
    }

    fn calibration(&self, false_positives: f64) -> Calibration {
        let spread = |what| {
            let of: Vec<(Group, Comparison)> =
                self.of.iter().filter(|(of, ..)| *of == what).map(|(_, group, of)| (*group, *of)).collect();
            Spread::of(what, &of, false_positives)
        };
        Calibration { spreads: What::ALL.into_iter().filter_map(spread).collect() }
    }
}

impl Spread {
    fn of(what: What, of: &[(Group, Comparison)], false_positives: f64) -> Option<Self> {
        let mut errors: Vec<f64> = of.iter().map(|(_, of)| of.relative_error).collect();
        errors.sort_by(f64::total_cmp);
        let (least, most) = (*errors.first()?, *errors.last()?);
        let mut groups: BTreeMap<Group, Vec<f64>> = BTreeMap::new();
        for (group, comparison) in of {
            groups.entry(*group).or_default().push(comparison.relative_error);
        }
        let smallest = |number: fn(&Comparison) -> f64| of.iter().map(|(_, of)| number(of)).reduce(f64::min);
        Some(Self {
            what,
            count: errors.len(),
            equal: errors.iter().filter(|error| **error == 0.0).count(),
            least,
            median: errors[errors.len() / 2],
            most,
            cosine: smallest(|of| of.cosine)?,
            norm_ratio: smallest(|of| of.norm_ratio)?,
            bound: bound(groups.into_values(), false_positives).map(|bound| bound.max(most)),
        })
    }
}

/// What the next of such relative errors, grouped, exceeds with probability `false_positives`.
/// Errors that are 0 say nothing of the others' spread; if all are, the bound is 0. None if no group has two others.
#[must_use]
pub fn bound(groups: impl Iterator<Item = Vec<f64>>, false_positives: f64) -> Option<f64> {
    let (mut count, mut freedom, mut squares) = (0, 0.0, 0.0);
    let mut highest: Option<(f64, f64)> = None;
    for errors in groups {
        count += errors.len();
        let logarithms: Vec<f64> =
            errors.iter().filter(|error| **error > 0.0).map(|error| libm::log(*error)).collect();
        if logarithms.is_empty() {
            continue;
        }
        let of_group = real(logarithms.len());
        let mean = logarithms.iter().sum::<f64>() / of_group;
        squares += logarithms.iter().map(|log| (log - mean) * (log - mean)).sum::<f64>();
        freedom += of_group - 1.0;
        highest = highest.filter(|(other, _)| *other >= mean).or(Some((mean, of_group)));
    }
    let Some((mean, of_group)) = highest else { return (count > 0).then_some(0.0) };
    if freedom < 1.0 {
        return None;
    }
    let deviation = libm::sqrt(squares / freedom * (1.0 + 1.0 / of_group));
    Some(libm::exp(mean + student(false_positives, freedom) * deviation))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
const fn real(count: usize) -> f64 {
    count as f64
}

/// Losses in millionths of a nat per token.
#[expect(clippy::cast_precision_loss, reason = "losses are far below 2^53 millionths")]
fn of_losses(ours: i64, theirs: i64) -> Comparison {
    Sums::of(&[ours as f64], &[theirs as f64]).comparison()
}

/// Those of a miner that did only these, and took no inner step without a gradient.
fn kept(receipts: &[Receipt], keep: &dyn Fn(usize) -> bool) -> Vec<Receipt> {
    let kept = receipts.iter().enumerate().filter(|(index, _)| keep(*index));
    let mut kept: Vec<Receipt> = kept.map(|(_, receipt)| receipt.clone()).collect();
    let taken: BTreeSet<u32> = kept.iter().map(|receipt| receipt.gradient_step).collect();
    let before = |step: u32| u32::try_from(taken.range(..step).count()).unwrap_or(u32::MAX);
    for receipt in &mut kept {
        (receipt.inner_step, receipt.gradient_step) =
            (before(receipt.inner_step), before(receipt.gradient_step));
    }
    reordered(kept, |receipt| u64::from(receipt.turn))
}

/// The partitions of a contribution of which all numbers went through `change`.
fn changed(pipeline: &mut Pipeline, of: &Commitment, change: &Change) -> Result<Vec<Hash>, PipelineError> {
    let codec = bridge::codec(pipeline.spec().merge.codec);
    let spec = Arc::clone(pipeline.spec());
    let parameters = bridge::model_config(&spec).parameter_count(of.stage.as_usize());
    let changed = of.partitions.iter().enumerate().map(|(index, hash)| {
        let length = partition_range(index, of.partitions.len(), parameters).len();
        let bytes = pipeline.blobs.blob(*hash).unwrap_or_default();
        let failed = |error: CodecError| PipelineError::Failed(error.to_string());
        let mut values = codec.decode(&bytes, length).map_err(failed)?;
        change(&mut values);
        Ok(pipeline.blobs.insert(Bytes::from(codec.encode(&values).map_err(failed)?)))
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use iota_protocol::SampleId;

    use super::*;

    #[test]
    fn bounds_are_exceeded_as_often_as_asked_for() {
        // Logarithms that are the quantiles of a normal distribution of mean −12 and deviation 0.5.
        let normal = |index: usize| {
            let share = (real(index) + 0.5) / 1000.0;
            let z = iota_protocol::quantiles::normal(share.min(1.0 - share));
            if share < 0.5 { -z } else { z }
        };
        let errors: Vec<f64> = (0..1000).map(|index| libm::exp(0.5 * normal(index) - 12.0)).collect();
        for rate in [0.05, 0.01] {
            let bound = bound(std::iter::once(errors.clone()), rate).expect("many");
            let above = real(errors.iter().filter(|error| **error > bound).count()) / 1000.0;
            assert!((above - rate).abs() <= 0.002, "{above} instead of {rate}");
        }
        let expected = libm::exp(3.719 * 0.5 - 12.0);
        let far = bound(std::iter::once(errors), 1e-4).expect("many");
        assert!((far / expected - 1.0).abs() < 0.02, "{far} is not {expected}");
    }

    #[test]
    fn who_leaves_samples_out_takes_no_step_without_a_gradient() {
        // Two samples in each of three steps; the second waits over one of them.
        let receipt = |sample, inner_step, gradient_step, turn| Receipt {
            inner_step,
            gradient_step,
            turn,
            ..Receipt::new(SampleId(sample))
        };
        let all = [
            receipt(0, 0, 0, 0),
            receipt(1, 0, 1, 3),
            receipt(2, 0, 0, 1),
            receipt(3, 1, 1, 2),
            receipt(4, 2, 2, 4),
            receipt(5, 2, 2, 5),
        ];
        assert_eq!(kept(&all, &|_| true), all);
        let without = [receipt(0, 0, 0, 0), receipt(2, 0, 0, 1), receipt(4, 1, 1, 2), receipt(5, 1, 1, 3)];
        assert_eq!(kept(&all, &|index| index != 1 && index != 3), without);
    }

    #[test]
    fn few_or_no_differences_have_no_bound_or_none_above_zero() {
        let of = |groups: &[&[f64]]| bound(groups.iter().map(|group| group.to_vec()), 1e-4);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[&[0.0; 5]]), Some(0.0));
        assert_eq!(of(&[&[0.0, 1e-7], &[2e-7]]), None);
        assert!(of(&[&[1e-7, 2e-7, 3e-7]]).is_some_and(|bound| bound > 3e-7));
    }

    #[test]
    fn groups_that_lie_apart_do_not_widen_each_other() {
        let apart = [vec![1e-4, 1.1e-4, 1.2e-4, 1.1e-4], vec![1e-2, 1.1e-2, 1.2e-2, 1.1e-2]];
        let grouped = bound(apart.clone().into_iter(), 1e-4).expect("enough");
        let together = bound(std::iter::once(apart.concat()), 1e-4).expect("enough");
        assert!((1.2e-2..3e-2).contains(&grouped), "{grouped}");
        assert!(together > 1.0, "{together}");
    }
}
