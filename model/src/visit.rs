//! Walks over a network's parameters in layout order.

use burn::{
    module::{ModuleMapper, ModuleVisitor, Param},
    tensor::{
        Tensor,
        backend::{AutodiffBackend, Backend},
    },
};

use crate::{
    flat::Parameter,
    optimizer::{AdamWConfig, Moments, StepSize, adamw_step},
};

/// Collects the values of all parameters.
pub(crate) struct WeightReader<B: Backend> {
    pub(crate) found: Vec<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<B> for WeightReader<B> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
        let value = parameter.val();
        let length = value.shape().num_elements();
        self.found.push(value.reshape([length]));
    }
}

/// Makes each parameter a new leaf of the graph with the same value.
///
/// Passes that share leaves share a graph in burn-autodiff 0.21, and the backward pass of one can then take steps of
/// another with it, whose gradients are missing without a word (tracel-ai/burn issue 5573 has a threaded case).
pub(crate) struct FreshLeaves;

impl<B: AutodiffBackend> ModuleMapper<B> for FreshLeaves {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = parameter.consume();
        Param::from_mapped_value(id, Tensor::from_inner(tensor.inner()).require_grad(), mapper)
    }
}

/// Collects the gradients of all parameters, and counts those that have none.
pub(crate) struct GradientReader<'a, B: AutodiffBackend> {
    pub(crate) gradients: &'a mut B::Gradients,
    pub(crate) found: Vec<Tensor<B::InnerBackend, 1>>,
    pub(crate) missing: usize,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for GradientReader<'_, B> {
    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<B, D>>) {
        let value = parameter.val();
        let length = value.shape().num_elements();
        match value.grad_remove(self.gradients) {
            Some(gradient) => self.found.push(gradient.reshape([length])),
            None => self.missing += 1,
        }
    }
}

/// Takes an AdamW step on all parameters; each becomes a new leaf of the graph.
pub(crate) struct Stepper<'a, B: AutodiffBackend> {
    pub(crate) adamw: AdamWConfig,
    pub(crate) size: StepSize,
    pub(crate) gradients: std::vec::IntoIter<Tensor<B::InnerBackend, 1>>,
    pub(crate) moments: std::slice::IterMut<'a, Moments<B::InnerBackend>>,
    pub(crate) layout: std::slice::Iter<'a, Parameter>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Stepper<'_, B> {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = parameter.consume();
        let next = (self.gradients.next(), self.moments.next(), self.layout.next());
        let (Some(gradient), Some(moments), Some(entry)) = next else {
            unreachable!("layout, moments and gradients have one entry per parameter");
        };
        let size = StepSize { decay: self.adamw.decay_of(entry.kind), ..self.size };
        let shape = tensor.shape();
        let weight = tensor.inner().reshape([entry.range.len()]);
        let stepped = adamw_step(&self.adamw, size, weight, gradient, moments).reshape(shape);
        Param::from_mapped_value(id, Tensor::from_inner(stepped).require_grad(), mapper)
    }
}
