//! A network cut into stages computes what the uncut one does.

use iota_model::{
    DType, Device, EngineConfig, Frame, ModelConfig, StageInput, StageSelect, TokenBatch, build_engine,
};

use crate::support::{Stages, assert_same_bits, batch, engine, engine_config, largest_difference, model};

fn stages_equal_the_whole(model: &ModelConfig) {
    let mut stages = Stages::new(model);
    let mut whole = engine(model, StageSelect::Whole);
    assert_same_bits(&stages.weights(), &whole.weights().unwrap(), "initial weight");
    for round in 0..3 {
        for sample in 0..2 {
            let batch = batch(model, 10 * round + sample, 2);
            let whole_loss = whole.forward_loss(StageInput::Tokens(batch.clone()), &batch).unwrap().loss;
            assert_same_bits(&[stages.train(sample, &batch)], &[whole_loss], "loss");
        }
        assert_same_bits(&stages.gradient_sum(), &whole.gradient_sum().unwrap(), "gradient");
        stages.inner_step(1e-2);
        whole.inner_step(1e-2).unwrap();
        assert_same_bits(&stages.weights(), &whole.weights().unwrap(), "weight");
    }
    assert!(stages.engines.iter().all(|engine| engine.in_flight() == 0));
}

#[test]
fn one_stage_equals_the_whole() {
    stages_equal_the_whole(&model(1, None));
    stages_equal_the_whole(&model(1, Some(5)));
}

#[test]
fn three_stages_equal_the_whole() {
    stages_equal_the_whole(&model(3, None));
}

#[test]
fn three_stages_with_bottlenecks_equal_the_whole() {
    stages_equal_the_whole(&model(3, Some(5)));
    stages_equal_the_whole(&model(3, Some(24)));
}

#[test]
fn cutting_a_plain_llama_changes_nothing() {
    let mut cut = engine(&model(3, None), StageSelect::Whole);
    let mut uncut = engine(&model(1, None), StageSelect::Whole);
    let batch = batch(&model(1, None), 1, 3);
    let outputs = [&mut cut, &mut uncut]
        .map(|engine| engine.forward_loss(StageInput::Tokens(batch.clone()), &batch).unwrap().loss);
    assert_same_bits(&outputs[..1], &outputs[1..], "loss");
    assert_same_bits(&cut.gradient_sum().unwrap(), &uncut.gradient_sum().unwrap(), "gradient");
}

#[test]
fn activations_with_and_without_a_graph_are_equal() {
    let model = model(3, Some(5));
    let mut stages = Stages::new(&model);
    let batch = batch(&model, 5, 2);
    let frames = stages.activations(&batch);
    let mut input = StageInput::Tokens(batch);
    for (engine, frame) in stages.engines.iter_mut().zip(frames) {
        let kept = engine.forward(0, input).unwrap();
        assert_eq!(kept, frame);
        assert_eq!(kept.shape, [2, model.context, 5]);
        input = StageInput::Activation(frame);
    }
}

#[test]
fn interleaved_slots_give_the_gradients_of_their_own_samples() {
    let model = model(3, Some(5));
    let batches = [batch(&model, 1, 2), batch(&model, 2, 1)];
    let mut apart = Stages::new(&model);
    for batch in &batches {
        apart.train(0, batch);
    }
    let mut head = engine(&model, StageSelect::Stage(0));
    let mut body = engine(&model, StageSelect::Stage(1));
    let mut tail = engine(&model, StageSelect::Stage(2));
    let mut wires = Vec::new();
    for (slot, batch) in (0..).zip(&batches) {
        let wire = head.forward(slot, StageInput::Tokens(batch.clone())).unwrap();
        wires.push(body.forward(slot, StageInput::Activation(wire)).unwrap());
    }
    assert_eq!((head.in_flight(), body.in_flight()), (2, 2));
    for ((slot, batch), wire) in (0..).zip(&batches).zip(wires) {
        let output = tail.forward_loss(StageInput::Activation(wire), batch).unwrap();
        let gradient = body.backward(slot, output.input_gradient.unwrap()).unwrap().unwrap();
        assert_eq!(head.backward(slot, gradient).unwrap(), None);
    }
    let sums: Vec<f32> = [&mut head, &mut body, &mut tail]
        .into_iter()
        .flat_map(|engine| engine.gradient_sum().unwrap())
        .collect();
    assert_same_bits(&sums, &apart.gradient_sum(), "gradient");
    assert_eq!((head.in_flight(), head.accumulated_samples()), (0, 2));
}

/// Passes in flight at once, in several engines of one process, over many steps: none takes another's steps with it.
#[test]
fn passes_in_flight_keep_their_gradients() {
    let model = model(3, Some(5));
    let wire = {
        let mut head = engine(&model, StageSelect::Stage(0));
        head.evaluate_forward(StageInput::Tokens(batch(&model, 1, 1))).unwrap()
    };
    let body = || engine(&model, StageSelect::Stage(1));
    let expected = {
        let mut alone = body();
        alone.forward(0, StageInput::Activation(wire.clone())).unwrap();
        alone.backward(0, wire.clone()).unwrap()
    };
    let mut bodies = [body(), body(), body()];
    for round in 0..500 {
        for slot in 0..4 {
            for engine in &mut bodies {
                engine.forward(slot, StageInput::Activation(wire.clone())).unwrap();
            }
        }
        for slot in [2, 0, 3, 1] {
            for engine in &mut bodies {
                assert_eq!(
                    engine.backward(slot, wire.clone()).unwrap(),
                    expected,
                    "round {round}, slot {slot}"
                );
            }
        }
        // New leaves, the same weights.
        for engine in &mut bodies {
            let weights = engine.weights().unwrap();
            engine.load_weights(&weights).unwrap();
        }
    }
}

#[test]
fn discarded_slot_leaves_no_gradient() {
    let model = model(3, Some(5));
    let mut head = engine(&model, StageSelect::Stage(0));
    head.forward(7, StageInput::Tokens(batch(&model, 1, 1))).unwrap();
    head.discard(7);
    head.discard(7);
    assert_eq!((head.in_flight(), head.accumulated_samples()), (0, 0));
    assert!(head.gradient_sum().unwrap().iter().all(|value| *value == 0.0));
}

#[test]
fn gradient_of_a_slot_belongs_to_the_weights_of_its_forward_pass() {
    let model = model(3, Some(5));
    let (first, second) = (batch(&model, 1, 1), batch(&model, 2, 1));
    let gradient = |head: &mut dyn iota_model::StageEngine| {
        let values: Vec<f32> = (0..model.context * 5).map(|index| (index as f32).sin()).collect();
        let frame = Frame::from_f32(&values, vec![1, model.context, 5], DType::F32).unwrap();
        head.backward(0, frame).unwrap();
        head.gradient_sum().unwrap()
    };
    let mut still = engine(&model, StageSelect::Stage(0));
    still.forward(0, StageInput::Tokens(first.clone())).unwrap();
    let expected = gradient(still.as_mut());

    let mut moved = engine(&model, StageSelect::Stage(0));
    moved.forward(0, StageInput::Tokens(first)).unwrap();
    let wire = moved.forward(1, StageInput::Tokens(second)).unwrap();
    moved.backward(1, wire).unwrap();
    moved.inner_step(0.1).unwrap();
    assert_same_bits(&gradient(moved.as_mut()), &expected, "gradient");
}

#[test]
fn later_tokens_do_not_change_earlier_activations() {
    let model = model(3, Some(5));
    let mut stages = Stages::new(&model);
    let original = batch(&model, 3, 1);
    let mut changed = original.clone();
    *changed.inputs.last_mut().unwrap() = (original.inputs.last().unwrap() + 1) % 13;
    let kept = (model.context - 1) * 5;
    for (left, right) in stages.activations(&original).iter().zip(stages.activations(&changed)) {
        let (left, right) = (left.to_f32().unwrap(), right.to_f32().unwrap());
        assert_same_bits(&left[..kept], &right[..kept], "activation before the change");
        assert_ne!(left[kept..], right[kept..]);
    }
}

#[test]
fn losses_of_prefixes_add_up_so_no_position_sees_its_future() {
    let model = model(3, Some(5));
    let mut whole = engine(&model, StageSelect::Whole);
    let full = batch(&model, 3, 1);
    let mut before = 0.0;
    for context in 1..=model.context {
        let prefix = TokenBatch {
            inputs: full.inputs[..context].to_vec(),
            targets: full.targets[..context].to_vec(),
            sequences: 1,
            context,
        };
        let logits = whole.logits(StageInput::Tokens(prefix.clone())).unwrap();
        assert_eq!(logits.len(), model.vocab_size);
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let target = logits[usize::try_from(prefix.targets[context - 1]).unwrap()];
        let expected = total.ln() - f64::from(target);
        let sum = whole.evaluate_loss(StageInput::Tokens(prefix.clone()), &prefix).unwrap() * context as f64;
        // The mean of up to eight losses near 3 is rounded to 2.4e-7, and multiplied by eight.
        assert!(
            (sum - before - expected).abs() < 1e-5,
            "position {context}: {} and {expected}",
            sum - before
        );
        before = sum;
    }
}

#[test]
fn bf16_wires_train_close_to_f32_wires() {
    let model = model(3, Some(5));
    let batch = batch(&model, 3, 4);
    let mut exact = Stages::new(&model);
    let exact_loss = exact.train(0, &batch);
    let config = |stage| EngineConfig {
        activation_dtype: DType::Bf16,
        ..engine_config(&model, StageSelect::Stage(stage))
    };
    let engines = (0..3).map(|stage| build_engine(&config(stage), &Device::Cpu).unwrap()).collect();
    let mut rounded = Stages { engines };
    let rounded_loss = rounded.train(0, &batch);
    // bf16 keeps 8 bits: each wire is off by at most 2^-9 of its size, and there are two wires each way.
    assert!((rounded_loss - exact_loss).abs() < 0.01 * exact_loss, "{rounded_loss} and {exact_loss}");
    let (left, right) = (rounded.gradient_sum(), exact.gradient_sum());
    let largest = right.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    assert!(largest_difference(&left, &right) < 0.05 * largest);
}
