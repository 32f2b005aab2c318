//! The engine over a tensor backend: slots, accumulated gradients and the inner optimizer.

mod edge;

use std::{collections::BTreeMap, ops::Range};

use burn::{
    module::{AutodiffModule, Module},
    tensor::{
        Tensor, TensorData,
        backend::{AutodiffBackend, Backend},
    },
};

use crate::{
    checks::{check_finite, check_length, check_number, read, read_all, read_scalar},
    engine::{
        EngineConfig, EngineError, LossOutput, StageEngine, StageInfo, StageInput, StageSelect, StepReport,
        TokenBatch,
    },
    flat::{Parameter, StageLayout, initial_weights, round_to_f32},
    frame::Frame,
    kernels::Kernels,
    optimizer::{Moments, OptimizerState, StepSize},
    stage::{Entry, Pipeline},
    transformer::{Batch, Tables},
    visit::{FreshLeaves, GradientReader, Stepper, WeightReader},
};

/// A forward pass that waits for its gradient.
struct InFlight<B: AutodiffBackend> {
    /// The network of that moment: gradients belong to these very tensors, later steps make new ones.
    network: Pipeline<B>,
    /// The incoming wire, a leaf of the graph; none at the head.
    input: Option<Tensor<B, 2>>,
    output: Tensor<B, 2>,
    batch: Batch,
}

/// An engine on backend `B`, which is some backend wrapped in burn's autodiff.
pub(crate) struct Trainer<B: AutodiffBackend> {
    config: EngineConfig,
    stages: Range<usize>,
    /// The parameters of all stages held; ranges are within the concatenated flat vector.
    layout: Vec<Parameter>,
    device: B::Device,
    network: Pipeline<B>,
    slots: BTreeMap<u64, InFlight<B>>,
    /// Sums in layout order; empty until the first backward pass.
    gradients: Vec<Tensor<B::InnerBackend, 1>>,
    samples: u64,
    moments: Vec<Moments<B::InnerBackend>>,
    steps: u64,
    tables: BTreeMap<usize, (Tables<B>, Tables<B::InnerBackend>)>,
}

impl<B> Trainer<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    pub(crate) fn new(config: &EngineConfig, device: B::Device) -> Result<Self, EngineError> {
        config.model.validate()?;
        let model = &config.model;
        let stages = match config.stage {
            StageSelect::Stage(stage) if stage < model.stages => stage..stage + 1,
            StageSelect::Stage(got) => return Err(EngineError::Stage { got, stages: model.stages }),
            StageSelect::Whole => 0..model.stages,
        };
        check_number("clip norm", config.clip_norm, config.clip_norm > 0.0, "a number above 0")?;
        let flat: Vec<f32> = stages.clone().flat_map(|stage| initial_weights(model, stage)).collect();
        let mut trainer = Self {
            config: config.clone(),
            layout: StageLayout::concatenated(model, stages.clone()),
            network: Pipeline::load(model, stages.clone(), &flat, &device, config.matmul_precision),
            stages,
            device,
            slots: BTreeMap::new(),
            gradients: Vec::new(),
            samples: 0,
            moments: Vec::new(),
            steps: 0,
            tables: BTreeMap::new(),
        };
        trainer.set_moments(&OptimizerState::zeros(flat.len()));
        Ok(trainer)
    }

    fn parameters(&self) -> usize {
        self.layout.last().map_or(0, |parameter| parameter.range.end)
    }

    fn is_head(&self) -> bool {
        self.stages.start == 0
    }

    fn is_tail(&self) -> bool {
        self.stages.end == self.config.model.stages
    }

    fn require_tail(&self, operation: &'static str, wanted: bool) -> Result<(), EngineError> {
        if self.is_tail() == wanted {
            return Ok(());
        }
        let stage = match self.config.stage {
            StageSelect::Whole => "the whole model".to_owned(),
            StageSelect::Stage(stage) => format!("stage {stage} of {}", self.config.model.stages),
        };
        let expected = if wanted { "the tail or the whole model" } else { "a stage before the tail" };
        Err(EngineError::Role { operation, stage, expected })
    }

    /// Builds the tables of a sequence length once.
    fn prepare_tables(&mut self, context: usize) {
        let (model, device) = (&self.config.model, &self.device);
        self.tables
            .entry(context)
            .or_insert_with(|| (Tables::new(model, context, device), Tables::new(model, context, device)));
    }

    /// Runs the network without a graph.
    fn evaluate(&mut self, input: &StageInput) -> Result<(Tensor<B::InnerBackend, 2>, Batch), EngineError> {
        let (entry, batch) = self.enter::<B::InnerBackend>(input)?;
        self.prepare_tables(batch.context);
        let output = self.network.valid().forward(entry, batch, &self.tables[&batch.context].1);
        Ok((output, batch))
    }

    /// Adds the gradients of one backward pass to the sums, in layout order.
    fn accumulate(&mut self, network: &Pipeline<B>, gradients: &mut B::Gradients) -> Result<(), EngineError> {
        let found = Vec::with_capacity(self.layout.len());
        let mut reader = GradientReader { gradients, found, missing: 0 };
        network.visit(&mut reader);
        let GradientReader { found, missing, .. } = reader;
        if missing > 0 {
            return Err(EngineError::MissingGradient { missing, expected: self.layout.len() });
        }
        self.gradients = if self.gradients.is_empty() {
            found
        } else {
            let sums = std::mem::take(&mut self.gradients);
            sums.into_iter().zip(found).map(|(sum, gradient)| sum + gradient).collect()
        };
        self.samples += 1;
        Ok(())
    }

    /// The network for one pass, with leaves that no other pass has.
    fn network_of_pass(&self) -> Pipeline<B> {
        self.network.clone().map(&mut FreshLeaves)
    }

    fn set_moments(&mut self, state: &OptimizerState) {
        let load = |values: &[f32], parameter: &Parameter| {
            let values = values[parameter.range.clone()].to_vec();
            Tensor::from_data(TensorData::new(values, [parameter.range.len()]), &self.device)
        };
        self.moments = self
            .layout
            .iter()
            .map(|parameter| Moments {
                first: load(&state.first_moment, parameter),
                second: load(&state.second_moment, parameter),
            })
            .collect();
        self.steps = state.step;
    }

    /// Returns the norm of the summed gradient: squares summed per parameter, then in layout order in `f64`.
    fn gradient_sum_norm(&self) -> Result<f64, EngineError> {
        let mut total = 0.0;
        for gradient in &self.gradients {
            for value in read(gradient.clone())? {
                total += f64::from(value) * f64::from(value);
            }
        }
        Ok(total.sqrt())
    }
}

/// Makes the incoming wire a leaf of the graph, so that its gradient can be read.
fn track<B: AutodiffBackend>(entry: Entry<B>) -> (Entry<B>, Option<Tensor<B, 2>>) {
    match entry {
        Entry::Tokens(tokens) => (Entry::Tokens(tokens), None),
        Entry::Wire(wire) => {
            let leaf = wire.require_grad();
            (Entry::Wire(leaf.clone()), Some(leaf))
        }
    }
}

/// Takes the gradient of the incoming wire.
fn input_gradient<B: AutodiffBackend>(
    input: &Tensor<B, 2>,
    gradients: &mut B::Gradients,
) -> Result<Tensor<B::InnerBackend, 2>, EngineError> {
    input.grad_remove(gradients).ok_or(EngineError::MissingGradient { missing: 1, expected: 1 })
}

impl<B> StageEngine for Trainer<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    B::Device: std::fmt::Debug,
{
    fn info(&self) -> StageInfo {
        StageInfo {
            stage: self.config.stage,
            stages: self.config.model.stages,
            parameters: self.parameters(),
            context: self.config.model.context,
            backend: B::InnerBackend::name(&self.device),
            device: format!("{:?}", self.device),
            is_head: self.is_head(),
            is_tail: self.is_tail(),
        }
    }

    fn forward(&mut self, slot: u64, input: StageInput) -> Result<Frame, EngineError> {
        self.require_tail("forward", false)?;
        if self.slots.contains_key(&slot) {
            return Err(EngineError::SlotInUse { slot });
        }
        let (entry, batch) = self.enter::<B>(&input)?;
        self.prepare_tables(batch.context);
        let (entry, input) = track(entry);
        let network = self.network_of_pass();
        let output = network.forward(entry, batch, &self.tables[&batch.context].0);
        let frame = self.rows_to_frame("activation", output.clone().inner(), batch)?;
        self.slots.insert(slot, InFlight { network, input, output, batch });
        Ok(frame)
    }

    fn forward_loss(&mut self, input: StageInput, targets: &TokenBatch) -> Result<LossOutput, EngineError> {
        self.require_tail("forward_loss", true)?;
        let (entry, batch) = self.enter::<B>(&input)?;
        let targets = self.targets::<B>(targets, batch)?;
        self.prepare_tables(batch.context);
        let (entry, input) = track(entry);
        let network = self.network_of_pass();
        let logits = network.forward(entry, batch, &self.tables[&batch.context].0);
        let loss = B::cross_entropy(logits, targets); // [1]
        let value = read_scalar(loss.clone().inner())?;
        if !value.is_finite() {
            return Err(EngineError::Diverged { what: "loss", value });
        }
        let mut gradients = loss.backward();
        let input_gradient = match input {
            Some(input) => {
                Some(self.rows_to_frame("input gradient", input_gradient(&input, &mut gradients)?, batch)?)
            }
            None => None,
        };
        self.accumulate(&network, &mut gradients)?;
        Ok(LossOutput { loss: value, tokens: batch.rows(), input_gradient })
    }

    fn backward(&mut self, slot: u64, output_gradient: Frame) -> Result<Option<Frame>, EngineError> {
        let batch = self.slots.get(&slot).ok_or(EngineError::UnknownSlot { slot })?.batch;
        self.check_wire("output gradient", &output_gradient, Some(batch))?;
        let gradient = self.frame_to_rows::<B>("output gradient", &output_gradient)?;
        let Some(pass) = self.slots.remove(&slot) else { return Err(EngineError::UnknownSlot { slot }) };
        // Backward starts from ones of the root's shape, so the root's factor is the gradient of the output.
        let mut gradients = (pass.output * gradient).backward();
        let frame = match pass.input {
            Some(input) => {
                Some(self.rows_to_frame("input gradient", input_gradient(&input, &mut gradients)?, batch)?)
            }
            None => None,
        };
        self.accumulate(&pass.network, &mut gradients)?;
        Ok(frame)
    }

    fn discard(&mut self, slot: u64) {
        self.slots.remove(&slot);
    }

    fn in_flight(&self) -> usize {
        self.slots.len()
    }

    fn evaluate_forward(&mut self, input: StageInput) -> Result<Frame, EngineError> {
        self.require_tail("evaluate_forward", false)?;
        let (output, batch) = self.evaluate(&input)?;
        self.rows_to_frame("activation", output, batch)
    }

    fn evaluate_loss(&mut self, input: StageInput, targets: &TokenBatch) -> Result<f64, EngineError> {
        self.require_tail("evaluate_loss", true)?;
        let (logits, batch) = self.evaluate(&input)?;
        let targets = self.targets::<B::InnerBackend>(targets, batch)?;
        Ok(f64::from(read_scalar(B::InnerBackend::cross_entropy(logits, targets))?))
    }

    fn logits(&mut self, input: StageInput) -> Result<Vec<f32>, EngineError> {
        self.require_tail("logits", true)?;
        let (logits, batch) = self.evaluate(&input)?;
        read(logits.narrow(0, batch.context - 1, 1))
    }

    fn accumulated_samples(&self) -> u64 {
        self.samples
    }

    fn gradient_sum(&mut self) -> Result<Vec<f32>, EngineError> {
        if self.gradients.is_empty() {
            return Ok(vec![0.0; self.parameters()]);
        }
        read_all(self.gradients.iter().cloned(), self.parameters())
    }

    fn clear_gradient(&mut self) {
        self.gradients.clear();
        self.samples = 0;
    }

    fn inner_step(&mut self, learning_rate: f64) -> Result<StepReport, EngineError> {
        check_number("learning rate", learning_rate, learning_rate.is_finite(), "a finite number")?;
        if self.samples == 0 {
            return Err(EngineError::NoGradient);
        }
        let gradient_norm = self.gradient_sum_norm()? / self.samples as f64;
        if !gradient_norm.is_finite() {
            return Err(EngineError::Diverged { what: "gradient norm", value: round_to_f32(gradient_norm) });
        }
        let clipped = gradient_norm > self.config.clip_norm;
        let clip = if clipped { self.config.clip_norm / gradient_norm } else { 1.0 };
        let adamw = self.config.adamw;
        self.steps += 1;
        let size = StepSize {
            learning_rate,
            gradient_scale: clip / self.samples as f64,
            corrections: adamw.bias_corrections(self.steps),
            decay: 0.0,
        };
        let mut stepper = Stepper::<B> {
            adamw,
            size,
            gradients: std::mem::take(&mut self.gradients).into_iter(),
            moments: self.moments.iter_mut(),
            layout: self.layout.iter(),
        };
        self.network = self.network.clone().map(&mut stepper);
        let samples = std::mem::take(&mut self.samples);
        Ok(StepReport { gradient_norm, clipped, samples })
    }

    fn weights(&mut self) -> Result<Vec<f32>, EngineError> {
        let mut reader = WeightReader::<B> { found: Vec::with_capacity(self.layout.len()) };
        self.network.visit(&mut reader);
        read_all(reader.found.into_iter().map(Tensor::inner), self.parameters())
    }

    fn load_weights(&mut self, flat: &[f32]) -> Result<(), EngineError> {
        check_length("weights", flat.len(), self.parameters())?;
        check_finite("weight", flat)?;
        let EngineConfig { model, matmul_precision, .. } = &self.config;
        self.network = Pipeline::load(model, self.stages.clone(), flat, &self.device, *matmul_precision);
        Ok(())
    }

    fn inner_state(&mut self) -> Result<OptimizerState, EngineError> {
        let length = self.parameters();
        Ok(OptimizerState {
            first_moment: read_all(self.moments.iter().map(|moments| moments.first.clone()), length)?,
            second_moment: read_all(self.moments.iter().map(|moments| moments.second.clone()), length)?,
            step: self.steps,
        })
    }

    fn load_inner_state(&mut self, state: &OptimizerState) -> Result<(), EngineError> {
        check_length("first moment", state.first_moment.len(), self.parameters())?;
        check_length("second moment", state.second_moment.len(), self.parameters())?;
        check_finite("first moment", &state.first_moment)?;
        check_finite("second moment", &state.second_moment)?;
        if let Some(negative) = state.second_moment.iter().find(|value| **value < 0.0) {
            let (what, got) = ("second moment", f64::from(*negative));
            return Err(EngineError::Number { what, got, expected: "a mean of squares, at least 0" });
        }
        self.set_moments(state);
        Ok(())
    }
}
