//! The first channels cross a cut unchanged, forward and backward.

use iota_model::{DType, Frame, ModelConfig, StageEngine, StageInput, StageSelect, flat::StageLayout};

use crate::support::{assert_same_bits, batch, engine, model};

const NARROW: usize = 5;

/// Builds a stage with a bottleneck whose learned matrices are zero, and the same stage without a bottleneck.
fn twins(stage: usize) -> (Box<dyn StageEngine>, Box<dyn StageEngine>, ModelConfig) {
    let narrow_model = model(3, Some(NARROW));
    let mut narrow = engine(&narrow_model, StageSelect::Stage(stage));
    let mut weights = narrow.weights().unwrap();
    for parameter in StageLayout::of(&narrow_model, stage).parameters() {
        if parameter.path.starts_with("model.cuts.") {
            weights[parameter.range.clone()].fill(0.0);
        }
    }
    narrow.load_weights(&weights).unwrap();
    (narrow, engine(&model(3, None), StageSelect::Stage(stage)), narrow_model)
}

/// Keeps the first channels of every row.
fn first_channels(values: &[f32], width: usize) -> Vec<f32> {
    values.chunks(width).flat_map(|row| row[..NARROW].to_vec()).collect()
}

/// Appends zeros to every row.
fn widened(values: &[f32], width: usize) -> Vec<f32> {
    values
        .chunks(NARROW)
        .flat_map(|row| {
            row.iter().copied().chain(std::iter::repeat_n(0.0, width - NARROW)).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn sender_keeps_the_first_channels() {
    let (mut narrow, mut wide, model) = twins(0);
    let batch = batch(&model, 1, 2);
    let narrow_wire = narrow.forward(0, StageInput::Tokens(batch.clone())).unwrap().to_f32().unwrap();
    let wide_wire = wide.forward(0, StageInput::Tokens(batch)).unwrap().to_f32().unwrap();
    assert_same_bits(&narrow_wire, &first_channels(&wide_wire, model.width), "wire");

    let gradient: Vec<f32> = (0..narrow_wire.len()).map(|index| (index as f32).cos()).collect();
    let frame =
        |values: &[f32], width| Frame::from_f32(values, vec![2, model.context, width], DType::F32).unwrap();
    narrow.backward(0, frame(&gradient, NARROW)).unwrap();
    wide.backward(0, frame(&widened(&gradient, model.width), model.width)).unwrap();
    let (narrow, wide) = (narrow.gradient_sum().unwrap(), wide.gradient_sum().unwrap());
    // The encoder comes last in the layout; all before it is common to both. Zeros added to a sum may turn -0
    // to 0.
    let common: Vec<f32> = narrow[..wide.len()].iter().map(|value| value + 0.0).collect();
    assert_same_bits(&common, &wide.iter().map(|value| value + 0.0).collect::<Vec<_>>(), "gradient");
}

#[test]
fn receiver_adds_the_wire_to_the_first_channels() {
    let (mut narrow, mut wide, model) = twins(2);
    let wire: Vec<f32> = (0..model.context * NARROW).map(|index| (index as f32).sin()).collect();
    let batch = batch(&model, 1, 1);
    let frame = |values: &[f32], width| {
        StageInput::Activation(Frame::from_f32(values, vec![1, model.context, width], DType::F32).unwrap())
    };
    let narrow = narrow.forward_loss(frame(&wire, NARROW), &batch).unwrap();
    let wide = wide.forward_loss(frame(&widened(&wire, model.width), model.width), &batch).unwrap();
    assert_same_bits(&[narrow.loss], &[wide.loss], "loss");
    let narrow = narrow.input_gradient.unwrap().to_f32().unwrap();
    let wide = wide.input_gradient.unwrap().to_f32().unwrap();
    assert_same_bits(&narrow, &first_channels(&wide, model.width), "gradient of the wire");
}
