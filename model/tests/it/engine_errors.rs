//! Wrong calls are errors that say what was expected, and change nothing.

use iota_model::{
    DType, Device, EngineConfig, EngineError, Frame, ModelConfig, OptimizerState, StageInput, StageSelect,
    TokenBatch, build_engine,
};

use crate::support::{assert_same_bits, batch, engine, engine_config, model};

fn frame(shape: &[usize], value: f32) -> Frame {
    Frame::from_f32(&vec![value; shape.iter().product()], shape.to_vec(), DType::F32).unwrap()
}

fn message<T: std::fmt::Debug>(result: Result<T, EngineError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn stages_that_do_not_exist_are_refused() {
    let config = engine_config(&model(3, None), StageSelect::Stage(3));
    assert_eq!(
        build_engine(&config, &Device::Cpu).err().unwrap().to_string(),
        "stage 3 does not exist, expected a stage below 3"
    );
    let config = EngineConfig { clip_norm: f64::NAN, ..engine_config(&model(3, None), StageSelect::Whole) };
    assert_eq!(
        build_engine(&config, &Device::Cpu).err().unwrap().to_string(),
        "clip norm is NaN, expected a number above 0"
    );
    let broken = ModelConfig { layers: 0, ..model(1, None) };
    assert!(build_engine(&engine_config(&broken, StageSelect::Whole), &Device::Cpu).is_err());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn devices_that_are_not_compiled_in_are_refused() {
    let config = engine_config(&model(1, None), StageSelect::Whole);
    assert_eq!(
        build_engine(&config, &Device::Cuda(0)).err().unwrap().to_string(),
        "device cuda:0 needs the cargo feature `cuda`, which this build does not have"
    );
}

#[test]
fn methods_of_other_roles_are_refused() {
    let model = model(3, Some(5));
    let tokens = batch(&model, 1, 1);
    let mut head = engine(&model, StageSelect::Stage(0));
    let mut whole = engine(&model, StageSelect::Whole);
    assert_eq!(
        message(head.forward_loss(StageInput::Tokens(tokens.clone()), &tokens)),
        "forward_loss was called on stage 0 of 3, expected the tail or the whole model"
    );
    assert_eq!(
        message(whole.forward(0, StageInput::Tokens(tokens.clone()))),
        "forward was called on the whole model, expected a stage before the tail"
    );
    assert_eq!(
        message(head.forward(0, StageInput::Activation(frame(&[1, 8, 5], 0.0)))),
        "input is an activation, expected tokens"
    );
    let mut body = engine(&model, StageSelect::Stage(1));
    assert_eq!(
        message(body.forward(0, StageInput::Tokens(tokens))),
        "input is tokens, expected an activation"
    );
}

#[test]
fn token_batches_that_do_not_fit_are_refused() {
    let model = model(1, None);
    let mut whole = engine(&model, StageSelect::Whole);
    let good = batch(&model, 1, 2);
    let mut refuse = |input: TokenBatch, targets: &TokenBatch| {
        message(whole.forward_loss(StageInput::Tokens(input), targets))
    };
    let short = TokenBatch { inputs: vec![0; 15], ..good.clone() };
    assert_eq!(refuse(short, &good), "input tokens has 15 elements, expected 16");
    let long = TokenBatch { context: 9, ..good.clone() };
    assert_eq!(refuse(long, &good), "token batch has shape [2, 9], expected [at least 1, 1 to 8]");
    let none = TokenBatch { sequences: 0, ..good.clone() };
    assert_eq!(refuse(none, &good), "token batch has shape [0, 8], expected [at least 1, 1 to 8]");
    let mut unknown = good.clone();
    unknown.inputs[3] = 13;
    assert_eq!(refuse(unknown, &good), "input token 3 is 13, expected an id below 13");
    let mut unknown = good.clone();
    unknown.targets[2] = u32::MAX;
    assert_eq!(refuse(good.clone(), &unknown), "target token 2 is 4294967295, expected an id below 13");
    assert_eq!(refuse(good.clone(), &batch(&model, 1, 1)), "targets has shape [1, 8], expected [2, 8]");
    assert_eq!(whole.accumulated_samples(), 0);
}

#[test]
fn frames_that_do_not_fit_are_refused() {
    let model = model(3, Some(5));
    let mut body = engine(&model, StageSelect::Stage(1));
    let mut refuse = |frame: Frame| message(body.forward(0, StageInput::Activation(frame)));
    assert_eq!(refuse(frame(&[1, 8, 4], 0.0)), "input has shape [1, 8, 4], expected [sequences, 1 to 8, 5]");
    assert_eq!(refuse(frame(&[8, 5], 0.0)), "input has shape [8, 5], expected [sequences, 1 to 8, 5]");
    assert_eq!(refuse(frame(&[1, 8, 5], f32::NAN)), "input 0 is NaN, expected a finite number");
    let rounded = Frame::from_f32(&[0.0; 40], vec![1, 8, 5], DType::Bf16).unwrap();
    assert_eq!(refuse(rounded), "input is bf16, expected f32");
    let mut cut = frame(&[1, 8, 5], 0.0);
    cut.bytes.truncate(159);
    assert_eq!(refuse(cut), "frame of f32 [1, 8, 5] has 159 bytes, expected 160");
    assert_eq!(body.in_flight(), 0);
}

#[test]
fn slots_are_used_once_and_kept_when_a_gradient_is_refused() {
    let model = model(3, Some(5));
    let mut body = engine(&model, StageSelect::Stage(1));
    let input = || StageInput::Activation(frame(&[2, 8, 5], 0.5));
    body.forward(4, input()).unwrap();
    assert_eq!(message(body.forward(4, input())), "slot 4 already holds a forward pass");
    assert_eq!(message(body.backward(5, frame(&[2, 8, 5], 1.0))), "slot 5 holds no forward pass");
    assert_eq!(
        message(body.backward(4, frame(&[1, 8, 5], 1.0))),
        "output gradient has shape [1, 8, 5], expected [2, 8, 5]"
    );
    assert_eq!(
        message(body.backward(4, frame(&[2, 8, 5], f32::INFINITY))),
        "output gradient 0 is inf, expected a finite number"
    );
    assert_eq!(body.in_flight(), 1);
    assert!(body.backward(4, frame(&[2, 8, 5], 1.0)).unwrap().is_some());
    assert_eq!(message(body.backward(4, frame(&[2, 8, 5], 1.0))), "slot 4 holds no forward pass");
    assert_eq!((body.in_flight(), body.accumulated_samples()), (0, 1));
}

#[test]
fn flat_vectors_that_do_not_fit_are_refused() {
    let model = model(1, None);
    let mut whole = engine(&model, StageSelect::Whole);
    let before = whole.weights().unwrap();
    let length = before.len();
    assert_eq!(message(whole.load_weights(&[0.0])), format!("weights has 1 elements, expected {length}"));
    let mut broken = before.clone();
    broken[2] = f32::NAN;
    assert_eq!(message(whole.load_weights(&broken)), "weight 2 is NaN, expected a finite number");
    let state = OptimizerState { second_moment: vec![-1.0; length], ..OptimizerState::zeros(length) };
    assert_eq!(
        message(whole.load_inner_state(&state)),
        "second moment is -1, expected a mean of squares, at least 0"
    );
    assert_eq!(
        message(whole.inner_step(0.1)),
        "no gradient has been accumulated, expected at least one sample"
    );
    assert_same_bits(&whole.weights().unwrap(), &before, "weight");
}

#[test]
fn engine_describes_itself() {
    let model = model(3, Some(5));
    let info = engine(&model, StageSelect::Stage(2)).info();
    assert_eq!((info.stage, info.stages), (StageSelect::Stage(2), 3));
    assert_eq!((info.is_head, info.is_tail), (false, true));
    assert_eq!(info.parameters, model.parameter_count(2));
    assert_eq!((info.backend.as_str(), info.context), ("flex", 8));
}
