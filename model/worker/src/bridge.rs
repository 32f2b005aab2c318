//! From the run spec to the types of the model crate: the only place where one's words become the other's.

use iota_model::codec::Codec;
use iota_model::outer::{OuterConfig, stage_clip};
use iota_model::outliers::Part;
use iota_model::reduce::Reducer;
use iota_model::schedule::Schedule;
use iota_model::{AdamWConfig, DType, EngineConfig, MatmulPrecision, ModelConfig, StageSelect};
use iota_protocol::spec::{self, Bottleneck, MergeSpec, ReducerName, TrainingMode, WireDtype};
use iota_protocol::{Epoch, Hash, PeerId, RunSpec};

/// The network of the run.
#[must_use]
pub fn model_config(spec: &RunSpec) -> ModelConfig {
    let model = &spec.model;
    ModelConfig {
        vocab_size: model.vocab_size as usize,
        context: model.context as usize,
        width: model.width as usize,
        layers: model.layers as usize,
        heads: model.heads as usize,
        kv_heads: model.kv_heads as usize,
        hidden: model.hidden as usize,
        rope_base: model.rope_base,
        norm_eps: model.norm_eps,
        init_std: model.init_std,
        seed: spec.seed,
        bottleneck: match model.bottleneck {
            Bottleneck::None => None,
            Bottleneck::Width(width) => Some(width as usize),
        },
        stages: usize::from(spec.pipeline.stages),
    }
}

/// What one engine of the run computes, and how it takes inner steps.
///
/// A stage clips at its share of the model's norm: were all gradients alike, all stages would start to clip together.
#[must_use]
pub fn engine_config(spec: &RunSpec, stage: StageSelect) -> EngineConfig {
    let model = model_config(spec);
    let clip_norm = match stage {
        StageSelect::Whole => spec.training.clip_norm,
        StageSelect::Stage(stage) => stage_clip_norm(spec, &model, stage),
    };
    EngineConfig {
        model,
        stage,
        activation_dtype: dtype(spec.pipeline.activation_dtype),
        matmul_precision: matmul_precision(spec.training.matmul_precision),
        adamw: adamw_config(spec),
        clip_norm,
    }
}

/// A stage's share of the norm that clips the model's gradient.
fn stage_clip_norm(spec: &RunSpec, model: &ModelConfig, stage: usize) -> f64 {
    stage_clip(spec.training.clip_norm, model.parameter_count(stage), model.total_parameter_count())
}

/// How a stage steps once its replicas' contributions are merged.
#[must_use]
pub fn outer_config(spec: &RunSpec, stage: usize) -> OuterConfig {
    match spec.training.mode {
        TrainingMode::Synchronous => {
            let clip_norm = stage_clip_norm(spec, &model_config(spec), stage);
            OuterConfig::AdamW { adamw: adamw_config(spec), clip_norm }
        }
        TrainingMode::Local => OuterConfig::Nesterov { momentum: spec.merge.outer_momentum },
    }
}

/// The learning rate of the outer step that ends `epoch`.
#[must_use]
pub fn outer_learning_rate(spec: &RunSpec, epoch: Epoch) -> f64 {
    match spec.training.mode {
        TrainingMode::Synchronous => learning_rate(spec, epoch, 0),
        TrainingMode::Local => spec.merge.outer_learning_rate,
    }
}

/// `AdamW` of inner steps and, in `synchronous` mode, of the outer step.
#[must_use]
pub fn adamw_config(spec: &RunSpec) -> AdamWConfig {
    let training = &spec.training;
    AdamWConfig {
        beta1: training.beta1,
        beta2: training.beta2,
        eps: training.eps,
        weight_decay: training.weight_decay,
    }
}

/// The model crate's name of how exact matrix products are.
#[must_use]
pub fn matmul_precision(precision: spec::MatmulPrecision) -> MatmulPrecision {
    match precision {
        spec::MatmulPrecision::High => MatmulPrecision::High,
        spec::MatmulPrecision::Highest => MatmulPrecision::Highest,
    }
}

/// The model crate's name of an element type.
#[must_use]
pub fn dtype(dtype: WireDtype) -> DType {
    match dtype {
        WireDtype::F32 => DType::F32,
        WireDtype::Bf16 => DType::Bf16,
    }
}

/// The model crate's name of the encoding of a contribution.
#[must_use]
pub fn codec(dtype: WireDtype) -> Codec {
    match dtype {
        WireDtype::F32 => Codec::F32,
        WireDtype::Bf16 => Codec::Bf16,
    }
}

/// How contributions become one.
#[must_use]
pub fn reducer(merge: &MergeSpec) -> Reducer {
    match merge.reducer {
        ReducerName::WeightedMean => Reducer::WeightedMean,
        ReducerName::GeometricMean => Reducer::GeometricMean,
        ReducerName::TrimmedMean => Reducer::TrimmedMean { trim: merge.trim },
        ReducerName::Median => Reducer::Median,
        ReducerName::ClippedMean => Reducer::ClippedMean,
    }
}

/// Whose inputs to a merge stand out, of these in the same order: submitter, samples and blob, and what is in it.
#[must_use]
pub fn outliers<T: Copy + Into<f64> + PartialEq>(
    spec: &RunSpec,
    inputs: &[(PeerId, u32, Hash)],
    parts: &[(f64, &[T])],
) -> Vec<PeerId> {
    let work = |samples: u32| match spec.training.mode {
        TrainingMode::Synchronous => f64::from(samples.max(1)).sqrt(),
        // Whoever has fewer samples takes fewer steps.
        TrainingMode::Local => f64::from(samples.clamp(1, spec.training.inner_steps)),
    };
    let parts: Vec<Part<'_, T>> = inputs
        .iter()
        .zip(parts)
        .map(|((_, samples, _), (_, values))| Part { values, work: work(*samples) })
        .collect();
    let places = iota_model::outliers::outliers(&parts).into_iter();
    places.filter_map(|place| inputs.get(place).map(|(peer, ..)| *peer)).collect()
}

/// The shape of what is pushed between stages: sequences, tokens, channels.
#[must_use]
pub fn activation_shape(spec: &RunSpec) -> Vec<usize> {
    let model = model_config(spec);
    vec![spec.training.sequences_per_sample as usize, model.context, model.wire_width()]
}

/// Optimizer steps of one epoch: one after the merge, or *H* before it.
#[must_use]
pub fn steps_per_epoch(spec: &RunSpec) -> u64 {
    match spec.training.mode {
        TrainingMode::Synchronous => 1,
        TrainingMode::Local => u64::from(spec.training.inner_steps),
    }
}

/// The learning rate over all steps of the run: a linear warm-up and half a cosine.
#[must_use]
pub fn schedule(spec: &RunSpec) -> Schedule {
    let training = &spec.training;
    let total_steps = u64::from(training.epochs) * steps_per_epoch(spec);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of the steps, far below 2^52"
    )]
    let warmup_steps = (total_steps as f64 * training.warmup_fraction).round() as u64;
    Schedule::Cosine {
        peak: training.learning_rate,
        warmup_steps,
        total_steps,
        final_factor: training.final_factor,
    }
}

/// The learning rate of inner step `step` of `epoch`; in `synchronous` mode the only step of an epoch is 0.
///
/// A miner that has fewer samples than inner steps takes fewer of them, but the schedule does not move for it.
#[must_use]
pub fn learning_rate(spec: &RunSpec, epoch: Epoch, step: u32) -> f64 {
    schedule(spec).learning_rate(u64::from(epoch.0) * steps_per_epoch(spec) + u64::from(step))
}

/// How many times the largest number that exact arithmetic can lead to a contribution may hold.
const CONTRIBUTION_SLACK: f64 = 2.0;
/// What one inner step may change by rounding alone: half the distance between two `f32` of magnitude 32 to 64.
const STEP_ROUNDING: f64 = 1.0 / (1 << 19) as f64;

/// The largest magnitude that a number of a contribution to the merge of `epoch` can have; infinite in `synchronous` mode, where the
/// outer step clips what was merged.
///
/// In `local` mode a contribution is what `AdamW` did in the inner steps, and that has a limit whatever the gradients were: a step moves a
/// weight *w* by at most η (ρ + λ |w|), with ρ of [`AdamWConfig::update_max`]. Decay λ thereby holds weights within ρ/λ, or
/// about a = η_outer / (1 − μ) times that where outer steps overshoot, so that a step moves by at most η ρ (1 + a). Twice the sum over
/// the steps is allowed: weights of a checkpoint from elsewhere may be larger.
#[must_use]
pub fn contribution_max(spec: &RunSpec, epoch: Epoch) -> f64 {
    match spec.training.mode {
        TrainingMode::Synchronous => f64::INFINITY,
        TrainingMode::Local => {
            let overshoot = (spec.merge.outer_learning_rate / (1.0 - spec.merge.outer_momentum)).max(1.0);
            let decayed = if spec.training.weight_decay > 0.0 { overshoot } else { 0.0 };
            let update = adamw_config(spec).update_max() * (1.0 + decayed);
            let moved = |step| learning_rate(spec, epoch, step) * update + STEP_ROUNDING;
            CONTRIBUTION_SLACK * (0..spec.training.inner_steps).map(moved).sum::<f64>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_spec_makes_a_valid_model() {
        let spec: RunSpec = toml::from_str(iota_fixtures::BUILTIN_SPEC).unwrap();
        assert_eq!(model_config(&spec).validate(), Ok(()));
    }

    #[test]
    fn the_schedule_rises_then_falls_to_its_final_share() {
        let mut spec = RunSpec::default();
        spec.training.mode = TrainingMode::Synchronous;
        spec.training.epochs = 100;
        let rate = |epoch| learning_rate(&spec, Epoch(epoch), 0);
        assert!(rate(0) < rate(4) && (rate(5) - spec.training.learning_rate).abs() < 1e-9);
        assert!((rate(99) / spec.training.learning_rate - spec.training.final_factor).abs() < 0.01);
    }

    #[test]
    fn inner_steps_continue_across_epochs() {
        let mut spec = RunSpec::default();
        spec.training.inner_steps = 8;
        assert_eq!(learning_rate(&spec, Epoch(1), 0), learning_rate(&spec, Epoch(0), 8));
    }

    #[test]
    fn contributions_have_a_limit_where_inner_steps_have_one() {
        let mut spec = RunSpec::default();
        let training = &mut spec.training;
        (training.inner_steps, training.warmup_fraction, training.final_factor) = (4, 0.0, 1.0);
        (training.learning_rate, training.beta1, training.beta2) = (0.5, 0.0, 0.75);
        (training.weight_decay, spec.merge.outer_learning_rate, spec.merge.outer_momentum) = (0.1, 0.7, 0.3);
        let rounding = 2.0 * 4.0 / f64::from(1 << 19);
        // Without momentum an update is at most 1 / √(1 − β₂) = 2; weights keep within 20.
        assert!((contribution_max(&spec, Epoch(3)) - 2.0 * 4.0 * 0.5 * (2.0 + 2.0) - rounding).abs() < 1e-9);
        spec.merge.outer_momentum = 0.65;
        assert!((contribution_max(&spec, Epoch(3)) - 2.0 * 4.0 * 0.5 * (2.0 + 4.0) - rounding).abs() < 1e-9);
        spec.training.weight_decay = 0.0;
        assert!((contribution_max(&spec, Epoch(3)) - 2.0 * 4.0 * 0.5 * 2.0 - rounding).abs() < 1e-9);
        spec.training.beta2 = 1.0;
        assert_eq!(contribution_max(&spec, Epoch(3)), f64::INFINITY);
        (spec.training.beta2, spec.training.mode) = (0.75, TrainingMode::Synchronous);
        assert_eq!(contribution_max(&spec, Epoch(3)), f64::INFINITY);
    }

    #[test]
    fn stage_norms_make_up_the_norm_of_the_model() {
        let spec = RunSpec::default();
        let squares = |stage| engine_config(&spec, StageSelect::Stage(stage)).clip_norm.powi(2);
        let sum: f64 = (0..3).map(squares).sum();
        assert!((sum.sqrt() - spec.training.clip_norm).abs() < 1e-9);
    }
}
