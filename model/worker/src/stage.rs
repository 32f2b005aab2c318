//! The stage a miner holds.

use std::collections::BTreeSet;

use iota_model::engine::{EngineError, StageInput};
use iota_model::flat::{Parameter, StageLayout};
use iota_model::outer::{OuterConfig, OuterState};
use iota_model::{Device, OptimizerState, StageEngine, StageSelect, TokenBatch, build_engine, weights_hash};
use iota_protocol::miner::JobDone;
use iota_protocol::spec::TrainingMode;
use iota_protocol::{Epoch, Hash, RunSpec, StageIndex};

use crate::bridge;
use crate::error::{StateError, WorkError};

/// A stage: its engine trains on from `base`, which only a merge changes, and from `moments`.
pub(crate) struct HeldStage {
    pub(crate) index: StageIndex,
    pub(crate) version: Epoch,
    pub(crate) engine: Box<dyn StageEngine>,
    pub(crate) base: Vec<f32>,
    /// The inner optimizer's state when this version began; none where no inner steps are taken.
    pub(crate) moments: Option<OptimizerState>,
    /// Whether an inner step was taken since then.
    stepped: bool,
    /// Samples whose backward pass is to come.
    pub(crate) slots: BTreeSet<u64>,
    layout: Vec<Parameter>,
    outer_config: OuterConfig,
    outer: OuterState,
}

impl HeldStage {
    /// The stage with the run's initial weights.
    pub(crate) fn build(spec: &RunSpec, index: StageIndex, device: &Device) -> Result<Self, WorkError> {
        let config = bridge::engine_config(spec, StageSelect::Stage(index.as_usize()));
        let mut engine = build_engine(&config, device)?;
        let base = engine.weights()?;
        let takes_steps = spec.training.mode == TrainingMode::Local;
        let moments = takes_steps.then(|| engine.inner_state()).transpose()?;
        let outer_config = bridge::outer_config(spec, index.as_usize());
        Ok(Self {
            index,
            version: Epoch(0),
            layout: StageLayout::of(&config.model, index.as_usize()).parameters().to_vec(),
            outer: outer_config.init(base.len()),
            outer_config,
            engine,
            base,
            moments,
            stepped: false,
            slots: BTreeSet::new(),
        })
    }

    /// What the protocol hears once these weights are held.
    pub(crate) fn done(&self) -> JobDone {
        let hash = Hash(weights_hash(&self.base));
        JobDone::Weights { stage: self.index, version: self.version, hash }
    }

    /// Back to `base` and `moments`, with nothing under way: an epoch that is begun again ends as one that never was.
    pub(crate) fn reset(&mut self) -> Result<(), WorkError> {
        for slot in std::mem::take(&mut self.slots) {
            self.engine.discard(slot);
        }
        self.engine.clear_gradient();
        if let Some(moments) = self.moments.as_ref().filter(|_| self.stepped) {
            self.engine.load_inner_state(moments)?;
        }
        self.stepped = false;
        Ok(self.engine.load_weights(&self.base)?)
    }

    /// Takes an inner step.
    pub(crate) fn inner_step(&mut self, rate: f64) -> Result<(), WorkError> {
        self.stepped = true;
        self.engine.inner_step(rate)?;
        Ok(())
    }

    /// The inner optimizer's state as it is now; none where no inner steps are taken.
    pub(crate) fn moments_now(&mut self) -> Result<Option<OptimizerState>, WorkError> {
        Ok(self.moments.is_some().then(|| self.engine.inner_state()).transpose()?)
    }

    /// Whether it takes inner steps, and took none in this version.
    pub(crate) const fn is_idle(&self) -> bool {
        self.moments.is_some() && !self.stepped
    }

    /// Whether its inner optimizer has taken no step yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.moments.as_ref().is_some_and(|moments| moments.step == 0)
    }

    /// Takes an inner optimizer's state for the version that begins: one that an earlier process kept, or another miner's.
    pub(crate) fn take_moments(&mut self, moments: OptimizerState) -> Result<(), WorkError> {
        self.engine.load_inner_state(&moments)?;
        self.moments = Some(moments);
        Ok(())
    }

    /// State on the wire: weights, outer optimizer state (both little-endian f32), its step count (u64).
    pub(crate) fn state(&self) -> Vec<u8> {
        let mut state: Vec<u8> = bytemuck::cast_slice(&self.base).to_vec();
        state.extend_from_slice(bytemuck::cast_slice(&self.outer.to_flat()));
        state.extend_from_slice(&self.outer.steps().to_le_bytes());
        state
    }

    /// Takes what [`state`](Self::state) of another miner wrote, if its weights are the ones the log names.
    pub(crate) fn load(
        &mut self,
        spec: &RunSpec,
        state: &[u8],
        version: Epoch,
        weights: Hash,
    ) -> Result<(), WorkError> {
        (self.base, self.outer) = read_state(spec, self.index, state, weights)?;
        self.version = version;
        self.reset()
    }

    /// In `synchronous` mode the mean gradient; in `local` mode how far the inner steps went, as start − end.
    pub(crate) fn contribution(&mut self, mode: TrainingMode) -> Result<Vec<f32>, WorkError> {
        Ok(match mode {
            TrainingMode::Synchronous => {
                let samples = self.engine.accumulated_samples().max(1);
                #[expect(clippy::cast_precision_loss, reason = "a count of samples, far below 2^24")]
                let count = samples as f32;
                self.engine.gradient_sum()?.into_iter().map(|gradient| gradient / count).collect()
            }
            TrainingMode::Local => {
                let end = self.engine.weights()?;
                self.base.iter().zip(end).map(|(start, end)| start - end).collect()
            }
        })
    }

    /// What the batches lose with `base`, or with so many millionths of a contribution taken from it; not finite where weights or losses
    /// are not. Leaves `base` held and nothing under way.
    pub(crate) fn losses(
        &mut self,
        batches: &[TokenBatch],
        contribution: Option<(&[f32], u32)>,
    ) -> Result<Vec<f64>, WorkError> {
        self.reset()?;
        if let Some((contribution, rate_ppm)) = contribution {
            let rate = f64::from(rate_ppm) / 1e6;
            #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
            let step = |(base, of): (&f32, &f32)| (f64::from(*base) - rate * f64::from(*of)) as f32;
            let weights: Vec<f32> = self.base.iter().zip(contribution).map(step).collect();
            if weights.iter().any(|weight| !weight.is_finite()) {
                return Ok(vec![f64::NAN; batches.len()]);
            }
            self.engine.load_weights(&weights)?;
        }
        let loss =
            |batch: &TokenBatch| match self.engine.evaluate_loss(StageInput::Tokens(batch.clone()), batch) {
                Err(EngineError::Diverged { .. }) => Ok(f64::NAN),
                loss => Ok(loss?),
            };
        let losses = batches.iter().map(loss).collect();
        self.reset()?;
        losses
    }

    /// Takes the outer step of `epoch`; without a merged vector the epoch was passed over and the weights stay.
    pub(crate) fn apply(
        &mut self,
        spec: &RunSpec,
        epoch: Epoch,
        merged: Option<&[f32]>,
    ) -> Result<(), WorkError> {
        if let Some(merged) = merged {
            let rate = bridge::outer_learning_rate(spec, epoch);
            self.outer_config.step(&mut self.outer, &self.layout, &mut self.base, merged, rate)?;
        }
        self.version = epoch.next();
        if self.stepped {
            (self.moments, self.stepped) = (self.moments_now()?, false);
        }
        self.reset()
    }
}

/// Reads the state of a stage as miners write it: its weights, which have to hash to `weights`, and the outer optimizer's
/// state.
///
/// # Errors
/// [`StateError`] if it is none of this stage.
pub fn read_state(
    spec: &RunSpec,
    stage: StageIndex,
    state: &[u8],
    weights: Hash,
) -> Result<(Vec<f32>, OuterState), StateError> {
    let truncated = StateError::Truncated { got: state.len() };
    let Some((numbers, steps)) =
        state.split_last_chunk::<8>().filter(|(numbers, _)| numbers.len().is_multiple_of(4))
    else {
        return Err(truncated);
    };
    let numbers: Vec<f32> = bytemuck::pod_collect_to_vec(numbers);
    let count = bridge::model_config(spec).parameter_count(stage.as_usize());
    let Some((base, outer)) = numbers.split_at_checked(count) else {
        return Err(StateError::Short { got: numbers.len(), expected: count });
    };
    let got = Hash(weights_hash(base));
    if got != weights {
        return Err(StateError::Weights { got, expected: weights });
    }
    let config = bridge::outer_config(spec, stage.as_usize());
    let outer = OuterState::from_flat(&config, count, outer, u64::from_le_bytes(*steps))?;
    Ok((base.to_vec(), outer))
}
