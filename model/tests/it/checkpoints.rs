//! What is saved comes back, and what was not saved by us is refused.

use std::{collections::BTreeMap, path::Path};

use iota_model::{
    ModelConfig, StageInput, StageSelect,
    checkpoint::{Checkpoint, assemble, load_optimizer, optimizer_file, save_optimizer, stage_file},
};
use safetensors::SafeTensors;

use crate::support::{Stages, assert_same_bits, batch, engine, model};

fn trained(model: &ModelConfig) -> Stages {
    let mut stages = Stages::new(model);
    for step in 1..4 {
        stages.train(0, &batch(model, step, 2));
        stages.inner_step(1e-2);
    }
    stages
}

fn save(stages: &mut Stages, model: &ModelConfig, folder: &Path) {
    for (stage, engine) in stages.engines.iter_mut().enumerate() {
        let weights = engine.weights().unwrap();
        Checkpoint { model: model.clone(), stage: Some(stage), version: 3, weights }.save(folder).unwrap();
        save_optimizer(folder, model, stage, &engine.inner_state().unwrap()).unwrap();
    }
}

#[test]
fn training_goes_on_after_a_load_as_if_nothing_had_happened() {
    let model = model(3, Some(5));
    let folder = tempfile::tempdir().unwrap();
    let mut original = trained(&model);
    save(&mut original, &model, folder.path());
    let mut restored = Stages::new(&model);
    for (stage, engine) in restored.engines.iter_mut().enumerate() {
        let checkpoint = Checkpoint::load(&folder.path().join(stage_file(stage))).unwrap();
        assert_eq!((checkpoint.stage, checkpoint.version, &checkpoint.model), (Some(stage), 3, &model));
        engine.load_weights(&checkpoint.weights).unwrap();
        let state = load_optimizer(&folder.path().join(optimizer_file(stage)), &model, stage).unwrap();
        assert_eq!(state.step, 3);
        engine.load_inner_state(&state).unwrap();
    }
    for step in 10..12 {
        let batch = batch(&model, step, 2);
        assert_same_bits(&[original.train(0, &batch)], &[restored.train(0, &batch)], "loss");
        original.inner_step(1e-2);
        restored.inner_step(1e-2);
    }
    assert_same_bits(&original.weights(), &restored.weights(), "weight");
}

#[test]
fn assembled_stages_are_the_whole_model() {
    let model = model(3, Some(5));
    let folder = tempfile::tempdir().unwrap();
    let mut stages = trained(&model);
    save(&mut stages, &model, folder.path());
    let file = assemble(folder.path()).unwrap();
    for stage in 0..3 {
        std::fs::remove_file(folder.path().join(stage_file(stage))).unwrap();
    }
    let whole = Checkpoint::load_model(folder.path()).unwrap();
    assert_eq!(whole, Checkpoint::load_model(&file).unwrap());
    assert_same_bits(&whole.weights, &stages.weights(), "weight");
    assert_same_bits(whole.stage_weights(1), &stages.engines[1].weights().unwrap(), "weight of stage 1");
    let mut engine = engine(&model, StageSelect::Whole);
    engine.load_weights(&whole.weights).unwrap();
    let batch = batch(&model, 9, 1);
    let loss = engine.forward_loss(StageInput::Tokens(batch.clone()), &batch).unwrap().loss;
    assert_same_bits(&[loss], &[stages.train(0, &batch)], "loss");
}

#[test]
fn plain_models_export_under_the_usual_names_and_shapes() {
    let model = ModelConfig { layers: 2, ..model(2, None) };
    let folder = tempfile::tempdir().unwrap();
    save(&mut trained(&model), &model, folder.path());
    let bytes = std::fs::read(assemble(folder.path()).unwrap()).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let found: BTreeMap<String, Vec<usize>> =
        tensors.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect();
    let mut expected = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![13, 24]),
        ("model.norm.weight".to_owned(), vec![24]),
        ("lm_head.weight".to_owned(), vec![13, 24]),
    ]);
    for layer in 0..2 {
        let mut insert = |name: &str, shape: &[usize]| {
            expected.insert(format!("model.layers.{layer}.{name}.weight"), shape.to_vec());
        };
        insert("input_layernorm", &[24]);
        insert("self_attn.q_proj", &[24, 24]);
        insert("self_attn.k_proj", &[12, 24]);
        insert("self_attn.v_proj", &[12, 24]);
        insert("self_attn.o_proj", &[24, 24]);
        insert("post_attention_layernorm", &[24]);
        insert("mlp.gate_proj", &[20, 24]);
        insert("mlp.up_proj", &[20, 24]);
        insert("mlp.down_proj", &[24, 20]);
    }
    assert_eq!(found, expected);
}

#[test]
fn matrices_lie_transposed_on_disk() {
    let model = model(1, None);
    let folder = tempfile::tempdir().unwrap();
    let mut stages = Stages::new(&model);
    save(&mut stages, &model, folder.path());
    let bytes = std::fs::read(folder.path().join(stage_file(0))).unwrap();
    let view = SafeTensors::deserialize(&bytes).unwrap().tensor("lm_head.weight").unwrap().data().to_vec();
    let disk: &[f32] = bytemuck::cast_slice(&view);
    let memory = stages.weights();
    let head = &memory[memory.len() - 24 * 13..];
    for (input, output) in [(0, 0), (0, 12), (23, 0), (7, 5)] {
        assert_eq!(disk[output * 24 + input], head[input * 13 + output]);
    }
}

#[test]
fn files_that_are_not_ours_are_refused() {
    let model = model(3, Some(5));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(stage_file(0));
    let message = |path: &Path| Checkpoint::load(path).unwrap_err().to_string();
    assert!(message(&path).contains("cannot be read"), "{}", message(&path));
    std::fs::write(&path, b"nonsense").unwrap();
    assert!(message(&path).contains("is malformed"), "{}", message(&path));

    save(&mut Stages::new(&model), &model, folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(message(&path).contains("has weights of hash"), "{}", message(&path));

    let error = Checkpoint::load_model(&folder.path().join(stage_file(1))).unwrap_err();
    assert!(error.to_string().ends_with("is of stage 1, expected the whole model"), "{error}");
    let error = load_optimizer(&folder.path().join(optimizer_file(1)), &model, 2).unwrap_err();
    assert!(error.to_string().ends_with("is of stage 1, expected stage 2"), "{error}");
    let short = Checkpoint { model, stage: None, version: 0, weights: vec![0.0] };
    assert!(
        short.save(folder.path()).unwrap_err().to_string().starts_with("weights has 1 elements, expected ")
    );
    assert_eq!(leftovers(folder.path()), 0);
}

fn leftovers(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains("tmp")).count()
}
