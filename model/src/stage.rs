//! One stage of the pipeline, or all of them in one process, built of the same modules.

use burn::{
    module::{Module, Param},
    tensor::{Int, Tensor, TensorData, backend::Backend},
};

use crate::{
    bottleneck::{Decoder, Encoder},
    config::ModelConfig,
    engine::MatmulPrecision,
    flat::{Parameter, StageLayout},
    kernels::Kernels,
    transformer::{Batch, Block, Embedding, Linear, RmsNorm, Tables},
};

/// Hands out the parameters of a flat vector in layout order.
pub(crate) struct Source<'a, B: Backend> {
    parameters: std::slice::Iter<'a, Parameter>,
    flat: &'a [f32],
    device: &'a B::Device,
    precision: MatmulPrecision,
}

impl<'a, B: Backend> Source<'a, B> {
    fn new(
        layout: &'a StageLayout,
        flat: &'a [f32],
        device: &'a B::Device,
        precision: MatmulPrecision,
    ) -> Self {
        assert_eq!(layout.len(), flat.len(), "the engine checks lengths before it loads");
        Self { parameters: layout.parameters().iter(), flat, device, precision }
    }

    /// How exact the products with these parameters are.
    pub(crate) fn matmul_precision(&self) -> MatmulPrecision {
        self.precision
    }

    /// Takes the next parameter.
    ///
    /// # Panics
    /// When the network asks for more parameters, or another rank, than the layout lists.
    pub(crate) fn take<const D: usize>(&mut self) -> Param<Tensor<B, D>> {
        let parameter = self.parameters.next().expect("the layout lists every parameter of the network");
        assert_eq!(parameter.shape.len(), D, "rank of {}", parameter.path);
        let values = self.flat[parameter.range.clone()].to_vec();
        let data = TensorData::new(values, parameter.shape.clone());
        Param::from_tensor(Tensor::from_data(data, self.device))
    }
}

/// What enters a stage: token ids at the head, the wire elsewhere.
#[derive(Clone, Debug)]
pub(crate) enum Entry<B: Backend> {
    /// `[B*T]`.
    Tokens(Tensor<B, 1, Int>),
    /// `[B*T, b]`, or `[B*T, C]` without a bottleneck.
    Wire(Tensor<B, 2>),
}

/// The network of one stage; its fields are in the order of [`StageLayout`].
#[derive(Module, Debug)]
pub(crate) struct Stage<B: Backend> {
    embedding: Option<Embedding<B>>,
    decoder: Option<Decoder<B>>,
    blocks: Vec<Block<B>>,
    encoder: Option<Encoder<B>>,
    norm: Option<RmsNorm<B>>,
    head: Option<Linear<B>>,
}

impl<B: Kernels> Stage<B> {
    /// Builds stage `stage` with the weights of a flat vector.
    pub(crate) fn load(
        config: &ModelConfig,
        stage: usize,
        flat: &[f32],
        device: &B::Device,
        precision: MatmulPrecision,
    ) -> Self {
        let layout = StageLayout::of(config, stage);
        let mut source = Source::new(&layout, flat, device, precision);
        let (is_head, is_tail) = (stage == 0, stage + 1 == config.stages);
        let loaded = Self {
            embedding: is_head.then(|| Embedding::load(&mut source)),
            decoder: (!is_head && config.bottleneck.is_some()).then(|| Decoder::load(&mut source)),
            blocks: config.cut()[stage].clone().map(|_| Block::load(config, &mut source)).collect(),
            encoder: (!is_tail && config.bottleneck.is_some())
                .then(|| Encoder::load(&mut source, config.wire_width())),
            norm: is_tail.then(|| RmsNorm::load(&mut source, config.norm_eps)),
            head: is_tail.then(|| Linear::load(&mut source)),
        };
        assert!(source.parameters.next().is_none(), "the network takes every parameter of the layout");
        loaded
    }

    /// Passes one batch through the stage.
    ///
    /// # Shapes
    /// Tokens `[B*T]` or wire `[B*T, b]` → wire `[B*T, b]`, or logits `[B*T, V]` at the tail.
    ///
    /// # Panics
    /// When tokens enter a stage that is not the head.
    pub(crate) fn forward(&self, entry: Entry<B>, batch: Batch, tables: &Tables<B>) -> Tensor<B, 2> {
        let mut x = match (entry, &self.embedding, &self.decoder) {
            (Entry::Tokens(tokens), Some(embedding), _) => embedding.forward(tokens),
            (Entry::Tokens(_), None, _) => panic!("only the head stage embeds tokens; the engine checks"),
            (Entry::Wire(wire), _, Some(decoder)) => decoder.forward(wire),
            (Entry::Wire(wire), _, None) => wire,
        }; // [B*T, C]
        for block in &self.blocks {
            x = block.forward(x, batch, tables);
        }
        if let Some(encoder) = &self.encoder {
            x = encoder.forward(x); // [B*T, b]
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(x);
        }
        match &self.head {
            Some(head) => head.forward(x), // [B*T, V]
            None => x,
        }
    }
}

/// One stage, or all stages in a row.
#[derive(Module, Debug)]
pub(crate) struct Pipeline<B: Backend> {
    stages: Vec<Stage<B>>,
}

impl<B: Kernels> Pipeline<B> {
    /// Builds the given stages from the concatenation of their flat vectors.
    pub(crate) fn load(
        config: &ModelConfig,
        stages: impl Iterator<Item = usize>,
        flat: &[f32],
        device: &B::Device,
        precision: MatmulPrecision,
    ) -> Self {
        let mut rest = flat;
        let stages = stages
            .map(|stage| {
                let (own, others) = rest.split_at(config.parameter_count(stage));
                rest = others;
                Stage::load(config, stage, own, device, precision)
            })
            .collect();
        Self { stages }
    }

    /// Passes one batch through all stages, as [`Stage::forward`].
    pub(crate) fn forward(&self, entry: Entry<B>, batch: Batch, tables: &Tables<B>) -> Tensor<B, 2> {
        let (first, others) = self.stages.split_first().expect("a pipeline has a stage");
        let mut x = first.forward(entry, batch, tables);
        for stage in others {
            x = stage.forward(Entry::Wire(x), batch, tables);
        }
        x
    }
}
