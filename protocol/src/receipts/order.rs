//! The order in which a miner computed its samples, read back from its receipts.
//!
//! A contribution depends on little of what happened in a miner. A pass leaves nothing behind but the gradient that it adds,
//! so it matters at which weights a sample went forward and at which place its gradient was added to the sum, since sums of
//! floats are not associative; nothing else does. A receipt says both. Whoever performs the steps of [`replay`] on a stage
//! that holds the same weights and moments does the same arithmetic:
//!
//! ```text
//! miner    F0 F1 F2 B1 B0 | step 0 | F3 B2 B3 | step 1        sample  inner_step  gradient_step  turn
//! replay   F1 B1 F0 B0 F2 | step 0 | B2 F3 B3 | step 1           0        0             0          1
//!                                                                1        0             0          0
//!                                                                2        0             1          2
//!                                                                3        1             1          3
//! ```
//! A forward pass is put off for as long as its weights last: to its backward pass, or to the step that ends them. So no
//! more passes wait for their gradient at once than waited in the miner: `pipeline.window` at the head, and elsewhere
//! `pipeline.credits`. [`waiting_max`] says how many do.

use super::{Receipt, Received};
use crate::id::{Epoch, SampleId, StageIndex};
use crate::miner::Job;
use crate::spec::{RunSpec, TrainingMode};

/// Something an engine does. Samples are named by the index of their receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forward a sample.
    Forward(usize),
    /// Forward, loss and backward of a sample, at the tail.
    Loss(usize),
    /// Backward a sample.
    Backward(usize),
    /// Take an inner step. The number is that of [`Job::InnerStep`], by which the learning rate goes: steps beyond the
    /// run's *H* have the number of the last one.
    InnerStep(u32),
}

/// A part of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The activation received.
    Input,
    /// The activation sent on.
    Output,
    /// The gradient received.
    OutputGradient,
    /// The gradient sent back.
    InputGradient,
    /// The loss.
    Loss,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::OutputGradient => "output gradient",
            Self::InputGradient => "input gradient",
            Self::Loss => "loss",
        })
    }
}

/// Why no miner of the stage can have written these receipts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReceipts {
    /// There are none; nobody contributes nothing.
    #[error("there are no receipts")]
    Empty,
    /// The samples do not ascend, or one is there twice.
    #[error("sample {got} follows sample {previous}, expected ascending samples")]
    Unordered {
        /// The sample before it.
        previous: SampleId,
        /// The sample.
        got: SampleId,
    },
    /// Something that a sample leaves behind in this stage is not named.
    #[error("sample {sample} has no {part}, which this stage produces or takes")]
    Missing {
        /// The sample.
        sample: SampleId,
        /// What is missing.
        part: Part,
    },
    /// Something is named that no sample leaves behind in this stage.
    #[error("sample {sample} has an {part}, which this stage neither produces nor takes")]
    Unexpected {
        /// The sample.
        sample: SampleId,
        /// What should not be there.
        part: Part,
    },
    /// The turns are not each number below the count of samples once.
    #[error("sample {sample} has turn {turn}, which another has, or which is not below {count}")]
    Turn {
        /// The sample.
        sample: SampleId,
        /// Its turn.
        turn: u32,
        /// Samples there are.
        count: usize,
    },
    /// A sample went forward after its gradient was added.
    #[error("sample {sample} went forward after {forward} inner steps and backward after {backward}")]
    Backwards {
        /// The sample.
        sample: SampleId,
        /// Steps taken before its forward pass.
        forward: u32,
        /// Steps taken before its gradient was added.
        backward: u32,
    },
    /// The tail computes forward and backward at once, but a step lies between them.
    #[error("loss of sample {sample} has {forward} inner steps before it and {backward} before its gradient")]
    Torn {
        /// The sample.
        sample: SampleId,
        /// Steps taken before its forward pass.
        forward: u32,
        /// Steps taken before its gradient was added.
        backward: u32,
    },
    /// In the order of turns, the steps before a gradient fall, or grow by more than one: then a step had no gradient. The
    /// first gradient has none before it.
    #[error("gradient of sample {sample} came after {got} inner steps, expected {least} or {most}")]
    Steps {
        /// The sample.
        sample: SampleId,
        /// Steps before its gradient.
        got: u32,
        /// Steps before the gradient of the turn before it.
        least: u32,
        /// The most there can have been.
        most: u32,
    },
    /// Inner steps in a run that takes none.
    #[error("sample {sample} names inner steps, which a synchronous run does not take")]
    Synchronous {
        /// The sample.
        sample: SampleId,
    },
}

/// Where a stage is in the pipeline. A pipeline of one stage is both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Whether its input is the sample itself.
    pub head: bool,
    /// Whether it computes the loss.
    pub tail: bool,
}

impl Position {
    /// Where `stage` is in a pipeline of `stages`.
    #[must_use]
    pub fn of(stage: StageIndex, stages: usize) -> Self {
        Self { head: stage.0 == 0, tail: stage.as_usize() + 1 == stages }
    }
}

impl Step {
    /// The receipt of the sample that it computes, by index; an inner step computes none.
    #[must_use]
    pub const fn receipt(self) -> Option<usize> {
        match self {
            Self::Forward(index) | Self::Loss(index) | Self::Backward(index) => Some(index),
            Self::InnerStep(_) => None,
        }
    }

    /// The step as a job of an engine in `epoch`; nothing if these are not the receipts that it was made from.
    #[must_use]
    pub fn job(self, epoch: Epoch, receipts: &[Receipt]) -> Option<Job> {
        let hash = |received: &Option<Received>| received.as_ref().map(|received| received.hash);
        Some(match self {
            Self::Forward(index) => {
                let receipt = receipts.get(index)?;
                Job::Forward { epoch, sample: receipt.sample, input: hash(&receipt.input) }
            }
            Self::Loss(index) => {
                let receipt = receipts.get(index)?;
                Job::Loss { epoch, sample: receipt.sample, input: hash(&receipt.input) }
            }
            Self::Backward(index) => {
                let receipt = receipts.get(index)?;
                Job::Backward { epoch, sample: receipt.sample, gradient: hash(&receipt.output_gradient)? }
            }
            Self::InnerStep(step) => Job::InnerStep { epoch, step },
        })
    }
}

/// The number by which the learning rate of an inner step goes, if `taken` were taken before it: the run plans *H* of them,
/// and those beyond are taken at the last one's rate, not at that of the next epoch.
pub(crate) fn planned_step(taken: u32, inner_steps: u32) -> u32 {
    taken.min(inner_steps.saturating_sub(1))
}

/// The steps by which an engine of `stage`, holding the weights and moments that the miner's epoch started from, comes to
/// the miner's contribution: bit for bit where it does the same arithmetic.
///
/// In `local` mode the last is an inner step, as nobody contributes before every gradient is in one; there is no bound but
/// the number of samples on how many there are. In `synchronous` mode there is none.
///
/// Peers and hashes are not looked at: whether a receipt tells the truth shows when its steps are taken.
///
/// # Errors
/// [`BadReceipts`] if no miner of this stage can have written these.
pub fn replay(spec: &RunSpec, stage: StageIndex, receipts: &[Receipt]) -> Result<Vec<Step>, BadReceipts> {
    let position = Position::of(stage, usize::from(spec.pipeline.stages));
    let inner_steps = (spec.training.mode == TrainingMode::Local).then_some(spec.training.inner_steps);
    check_parts(position, receipts)?;
    let turns = turns(receipts)?;
    check_steps(position, inner_steps, &turns)?;
    Ok(steps(position, inner_steps, &turns))
}

/// The most passes that wait for their gradient at once while these steps are taken.
#[must_use]
pub fn waiting_max(steps: &[Step]) -> usize {
    let (mut waiting, mut most) = (0_usize, 0);
    for step in steps {
        match step {
            Step::Forward(_) => waiting += 1,
            Step::Backward(_) => waiting = waiting.saturating_sub(1),
            Step::Loss(_) | Step::InnerStep(_) => {}
        }
        most = most.max(waiting);
    }
    most
}

/// Checks that samples ascend, and that each names what passes through such a stage and nothing else.
fn check_parts(position: Position, receipts: &[Receipt]) -> Result<(), BadReceipts> {
    if receipts.is_empty() {
        return Err(BadReceipts::Empty);
    }
    if let Some((a, b)) = receipts.iter().zip(receipts.iter().skip(1)).find(|(a, b)| a.sample >= b.sample) {
        return Err(BadReceipts::Unordered { previous: a.sample, got: b.sample });
    }
    for receipt in receipts {
        let sample = receipt.sample;
        let parts = [
            (Part::Input, receipt.input.is_some(), !position.head),
            (Part::Output, receipt.output.is_some(), !position.tail),
            (Part::OutputGradient, receipt.output_gradient.is_some(), !position.tail),
            (Part::InputGradient, receipt.input_gradient.is_some(), !position.head),
            (Part::Loss, receipt.loss_micro.is_some(), position.tail),
        ];
        for (part, named, expected) in parts {
            match (named, expected) {
                (false, true) => return Err(BadReceipts::Missing { sample, part }),
                (true, false) => return Err(BadReceipts::Unexpected { sample, part }),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The receipts, each with its index, in the order in which their gradients were added.
fn turns(receipts: &[Receipt]) -> Result<Vec<(usize, &Receipt)>, BadReceipts> {
    let mut turns: Vec<Option<(usize, &Receipt)>> = vec![None; receipts.len()];
    for (index, receipt) in receipts.iter().enumerate() {
        let place = usize::try_from(receipt.turn).ok().and_then(|turn| turns.get_mut(turn));
        match place {
            Some(place @ None) => *place = Some((index, receipt)),
            _ => {
                let Receipt { sample, turn, .. } = *receipt;
                return Err(BadReceipts::Turn { sample, turn, count: receipts.len() });
            }
        }
    }
    // As many places as receipts, and no place taken twice: none is empty.
    Ok(turns.into_iter().flatten().collect())
}

/// Checks that there is a time at which each pass can have been made.
fn check_steps(
    position: Position,
    inner_steps: Option<u32>,
    turns: &[(usize, &Receipt)],
) -> Result<(), BadReceipts> {
    let mut least = 0;
    for (turn, (_, receipt)) in turns.iter().enumerate() {
        let Receipt { sample, inner_step: forward, gradient_step: backward, .. } = **receipt;
        if inner_steps.is_none() && (forward, backward) != (0, 0) {
            return Err(BadReceipts::Synchronous { sample });
        }
        if forward > backward {
            return Err(BadReceipts::Backwards { sample, forward, backward });
        }
        if position.tail && forward != backward {
            return Err(BadReceipts::Torn { sample, forward, backward });
        }
        let most = if turn == 0 { 0 } else { least + 1 };
        if !(least..=most).contains(&backward) {
            return Err(BadReceipts::Steps { sample, got: backward, least, most });
        }
        least = backward;
    }
    Ok(())
}

/// The steps of receipts that were checked.
fn steps(position: Position, inner_steps: Option<u32>, turns: &[(usize, &Receipt)]) -> Vec<Step> {
    // Those whose forward pass a step separates from their backward pass, by that step.
    let mut parted: Vec<(u32, usize)> = turns
        .iter()
        .filter(|(_, receipt)| receipt.inner_step < receipt.gradient_step)
        .map(|(index, receipt)| (receipt.inner_step, *index))
        .collect();
    parted.sort_by_key(|(step, _)| *step);
    let mut parted = parted.into_iter().peekable();

    let mut steps = Vec::with_capacity(turns.len() * 2 + 1);
    let mut take_step = |steps: &mut Vec<Step>, taken: u32| {
        while let Some((_, index)) = parted.next_if(|(step, _)| *step == taken) {
            steps.push(Step::Forward(index));
        }
        steps.extend(inner_steps.map(|planned| Step::InnerStep(planned_step(taken, planned))));
    };
    let mut taken = 0;
    for (index, receipt) in turns {
        if receipt.gradient_step > taken {
            take_step(&mut steps, taken);
            taken = receipt.gradient_step;
        }
        if position.tail {
            steps.push(Step::Loss(*index));
            continue;
        }
        if receipt.inner_step == receipt.gradient_step {
            steps.push(Step::Forward(*index));
        }
        steps.push(Step::Backward(*index));
    }
    take_step(&mut steps, taken);
    steps
}

#[cfg(test)]
mod tests;
