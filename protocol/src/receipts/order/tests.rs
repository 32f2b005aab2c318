use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::id::Hash;

/// A middle stage of a run in `local` mode with *H* = 2.
const BODY: StageIndex = StageIndex(1);

fn spec(mode: TrainingMode) -> RunSpec {
    let mut spec = RunSpec::default();
    (spec.pipeline.stages, spec.training.mode, spec.training.inner_steps) = (3, mode, 2);
    spec
}

/// The receipt of a sample in this stage of three.
fn receipt(stage: StageIndex, sample: u64, inner_step: u32, gradient_step: u32, turn: u32) -> Receipt {
    let Position { head, tail } = Position::of(stage, 3);
    let hash = |what: &str, named: bool| named.then(|| Hash::of(what.as_bytes()));
    Receipt {
        sample: SampleId(sample),
        input: hash("input", !head).map(Received::unsigned),
        output: hash("output", !tail),
        output_gradient: hash("output gradient", !tail).map(Received::unsigned),
        input_gradient: hash("input gradient", !head),
        loss_micro: tail.then_some(1),
        inner_step,
        gradient_step,
        turn,
    }
}

/// The epoch that is drawn at the top of the module.
fn drawn() -> Vec<Receipt> {
    [(0, 0, 0, 1), (1, 0, 0, 0), (2, 0, 1, 2), (3, 1, 1, 3)]
        .map(|(sample, forward, backward, turn)| receipt(BODY, sample, forward, backward, turn))
        .to_vec()
}

fn rejected(stage: StageIndex, receipts: &[Receipt]) -> BadReceipts {
    replay(&spec(TrainingMode::Local), stage, receipts).expect_err("no miner wrote these")
}

#[test]
fn forward_passes_are_put_off_for_as_long_as_their_weights_last() {
    use Step::{Backward, Forward, InnerStep};
    let steps = replay(&spec(TrainingMode::Local), BODY, &drawn()).unwrap();
    let first = [Forward(1), Backward(1), Forward(0), Backward(0), Forward(2), InnerStep(0)];
    let second = [Backward(2), Forward(3), Backward(3), InnerStep(1)];
    assert_eq!(steps, [first.as_slice(), &second].concat());
    assert_eq!(waiting_max(&steps), 1);
}

#[test]
fn steps_beyond_the_planned_ones_are_taken_at_the_last_ones_rate() {
    let receipts: Vec<_> = (0..4).map(|i| receipt(StageIndex(2), u64::from(i) * 3, i, i, i)).collect();
    let steps = replay(&spec(TrainingMode::Local), StageIndex(2), &receipts).unwrap();
    let numbers: Vec<_> = steps
        .iter()
        .filter_map(|step| if let Step::InnerStep(number) = step { Some(*number) } else { None })
        .collect();
    assert_eq!(numbers, [0, 1, 1, 1]);
}

#[test]
fn a_synchronous_epoch_has_no_inner_step() {
    let receipts = [receipt(StageIndex(0), 4, 0, 0, 1), receipt(StageIndex(0), 9, 0, 0, 0)];
    let steps = replay(&spec(TrainingMode::Synchronous), StageIndex(0), &receipts).unwrap();
    assert_eq!(steps, [Step::Forward(1), Step::Backward(1), Step::Forward(0), Step::Backward(0)]);
    let stepped = [receipt(StageIndex(0), 4, 0, 0, 0), receipt(StageIndex(0), 9, 0, 1, 1)];
    assert_eq!(
        replay(&spec(TrainingMode::Synchronous), StageIndex(0), &stepped),
        Err(BadReceipts::Synchronous { sample: SampleId(9) })
    );
}

#[test]
fn steps_become_jobs_with_the_tensors_of_their_receipts() {
    let (receipts, epoch) = (drawn(), Epoch(5));
    let job = |step: Step| step.job(epoch, &receipts);
    let sample = SampleId(2);
    let input = Some(Hash::of(b"input"));
    assert_eq!(job(Step::Forward(2)), Some(Job::Forward { epoch, sample, input }));
    assert_eq!(job(Step::Loss(2)), Some(Job::Loss { epoch, sample, input }));
    let gradient = Hash::of(b"output gradient");
    assert_eq!(job(Step::Backward(2)), Some(Job::Backward { epoch, sample, gradient }));
    assert_eq!(job(Step::InnerStep(1)), Some(Job::InnerStep { epoch, step: 1 }));
    assert_eq!(job(Step::Forward(4)), None);
}

#[test]
fn samples_have_to_ascend() {
    assert_eq!(rejected(BODY, &[]), BadReceipts::Empty);
    for second in [3, 7] {
        let receipts = [receipt(BODY, 7, 0, 0, 0), receipt(BODY, second, 0, 0, 1)];
        let expected = BadReceipts::Unordered { previous: SampleId(7), got: SampleId(second) };
        assert_eq!(rejected(BODY, &receipts), expected);
    }
}

#[test]
fn turns_are_each_number_below_the_count_once() {
    for (first, second, bad) in [(0, 0, 1), (1, 2, 1), (2, 0, 0), (u32::MAX, 0, 0)] {
        let receipts = [receipt(BODY, 0, 0, 0, first), receipt(BODY, 1, 0, 0, second)];
        let Receipt { sample, turn, .. } = receipts[bad];
        assert_eq!(rejected(BODY, &receipts), BadReceipts::Turn { sample, turn, count: 2 });
    }
}

#[test]
fn a_receipt_names_what_passes_through_its_stage_and_nothing_else() {
    for stage in [0, 1, 2].map(StageIndex) {
        let whole = receipt(stage, 8, 0, 0, 0);
        assert!(replay(&spec(TrainingMode::Local), stage, std::slice::from_ref(&whole)).is_ok());
        let invented = |there: bool| (!there).then(|| Hash::of(b"invented"));
        let toggle = |hash: &mut Option<Hash>| *hash = invented(hash.is_some());
        let toggle_received = |received: &mut Option<Received>| {
            *received = invented(received.is_some()).map(Received::unsigned);
        };
        let mut changed: [(Part, Receipt); 5] =
            [Part::Input, Part::Output, Part::OutputGradient, Part::InputGradient, Part::Loss]
                .map(|part| (part, whole.clone()));
        toggle_received(&mut changed[0].1.input);
        toggle(&mut changed[1].1.output);
        toggle_received(&mut changed[2].1.output_gradient);
        toggle(&mut changed[3].1.input_gradient);
        changed[4].1.loss_micro = changed[4].1.loss_micro.is_none().then_some(1);
        let (head, tail) = (stage.0 == 0, stage.0 == 2);
        for (part, receipt) in changed {
            let foreign = match part {
                Part::Input | Part::InputGradient => head,
                Part::Output | Part::OutputGradient => tail,
                Part::Loss => !tail,
            };
            let sample = SampleId(8);
            let expected = if foreign {
                BadReceipts::Unexpected { sample, part }
            } else {
                BadReceipts::Missing { sample, part }
            };
            assert_eq!(rejected(stage, &[receipt]), expected, "stage {stage}");
        }
    }
}

#[test]
fn steps_neither_fall_nor_lack_a_gradient() {
    // The steps before each gradient, in the order of turns; the place of the one that is wrong, and what it could be.
    for (steps, wrong, least, most) in
        [(vec![1], 0, 0, 0), (vec![0, 1, 0], 2, 1, 2), (vec![0, 2], 1, 0, 1), (vec![0, 0, u32::MAX], 2, 0, 1)]
    {
        let receipts: Vec<_> =
            (0..).zip(&steps).map(|(turn, step)| receipt(BODY, u64::from(turn), 0, *step, turn)).collect();
        let (sample, got) = (SampleId(wrong as u64), steps[wrong]);
        assert_eq!(rejected(BODY, &receipts), BadReceipts::Steps { sample, got, least, most });
    }
}

#[test]
fn nothing_goes_forward_after_its_gradient_nor_apart_from_its_loss() {
    let (sample, forward, backward) = (SampleId(0), 3, 0);
    let receipts = [receipt(BODY, 0, 3, 0, 0)];
    assert_eq!(rejected(BODY, &receipts), BadReceipts::Backwards { sample, forward, backward });
    let tail = StageIndex(2);
    let receipts = [receipt(tail, 0, 0, 0, 0), receipt(tail, 1, 0, 1, 1)];
    let torn = BadReceipts::Torn { sample: SampleId(1), forward: 0, backward: 1 };
    assert_eq!(rejected(tail, &receipts), torn);
}

/// Names in place of numbers: equal names only come from equal arithmetic.
#[derive(Clone, Debug, Default, PartialEq)]
struct Engine {
    weights: Hash,
    /// Gradients since the last step, in order.
    gradients: Vec<Hash>,
    /// Weights that each open pass saw.
    passes: std::collections::BTreeMap<u64, Hash>,
}

impl Engine {
    fn forward(&mut self, sample: u64) {
        assert_eq!(self.passes.insert(sample, self.weights), None, "sample {sample} forward twice");
    }

    fn backward(&mut self, sample: u64) {
        let seen = self.passes.remove(&sample).expect("it went forward");
        self.gradients.push(Hash::of_parts(&[&seen.0, &sample.to_le_bytes()]));
    }

    fn step(&mut self, number: u32) {
        assert!(!self.gradients.is_empty(), "a step needs a gradient");
        let sum: Vec<u8> = self.gradients.drain(..).flat_map(|gradient| gradient.0).collect();
        self.weights = Hash::of_parts(&[&self.weights.0, &number.to_le_bytes(), &sum]);
    }
}

/// A miner that does what `choices` say: go forward with the next sample, backward with any that is out, or step.
struct Miner {
    engine: Engine,
    receipts: Vec<Receipt>,
    waiting_max: usize,
}

fn mine(spec: &RunSpec, stage: StageIndex, samples: u64, choices: &[u8]) -> Miner {
    let (mut engine, mut out, mut waiting_max) = (Engine::default(), Vec::new(), 0);
    let (mut receipts, mut next, mut taken, mut turn) = (Vec::new(), 0, 0, 0);
    let local = spec.training.mode == TrainingMode::Local;
    let mut choices = choices.iter().copied().cycle();
    while turn < samples {
        let choice = choices.next().expect("it goes on for ever");
        match choice % 4 {
            0 if local && !engine.gradients.is_empty() => {
                engine.step(planned_step(taken, spec.training.inner_steps));
                taken += 1;
            }
            1 if next < samples => {
                engine.forward(next);
                out.push((next, taken));
                next += 1;
                waiting_max = waiting_max.max(out.len());
            }
            // The tail has its gradient at once.
            _ if stage.0 == 2 && next < samples => {
                engine.forward(next);
                out = vec![(next, taken)];
                next += 1;
            }
            _ => {}
        }
        if (stage.0 == 2 || choice % 4 > 1) && !out.is_empty() {
            let (sample, forward) = out.swap_remove(usize::from(choice / 4) % out.len());
            engine.backward(sample);
            receipts.push(receipt(stage, sample, forward, taken, u32::try_from(turn).expect("few")));
            turn += 1;
        }
    }
    if local && !engine.gradients.is_empty() {
        engine.step(planned_step(taken, spec.training.inner_steps));
    }
    receipts.sort_by_key(|receipt| receipt.sample);
    Miner { engine, receipts, waiting_max }
}

proptest! {
    #[test]
    fn a_replay_does_the_arithmetic_of_any_miner_with_no_more_passes_open(
        local in any::<bool>(),
        stage in (0_u16..3).prop_map(StageIndex),
        samples in 1_u64..24,
        // Without a forward and a backward pass among them it would never end.
        choices in vec(any::<u8>(), 0..60).prop_map(|choices| [choices, vec![1, 2]].concat()),
    ) {
        let spec = spec(if local { TrainingMode::Local } else { TrainingMode::Synchronous });
        let miner = mine(&spec, stage, samples, &choices);
        let steps = replay(&spec, stage, &miner.receipts);
        prop_assert!(steps.is_ok(), "{steps:?}");
        let mut engine = Engine::default();
        for step in steps.iter().flatten() {
            let sample = |index: usize| miner.receipts[index].sample.0;
            match *step {
                Step::Forward(index) => engine.forward(sample(index)),
                Step::Backward(index) => engine.backward(sample(index)),
                Step::Loss(index) => {
                    engine.forward(sample(index));
                    engine.backward(sample(index));
                }
                Step::InnerStep(number) => engine.step(number),
            }
        }
        prop_assert_eq!(&engine, &miner.engine);
        prop_assert!(waiting_max(&steps.unwrap_or_default()) <= miner.waiting_max);
    }
}
