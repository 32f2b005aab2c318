//! What the engine checks before it computes, and how it reads numbers back.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use crate::{
    config::ModelConfig,
    engine::{EngineError, TokenBatch},
    frame::first_non_finite,
    transformer::Batch,
};

/// Checks sizes of a token batch against the config.
pub(crate) fn check_tokens(model: &ModelConfig, tokens: &TokenBatch) -> Result<Batch, EngineError> {
    let TokenBatch { sequences, context, .. } = *tokens;
    if sequences == 0 || context == 0 || context > model.context {
        let expected = format!("[at least 1, 1 to {}]", model.context);
        return Err(EngineError::Shape { what: "token batch", got: vec![sequences, context], expected });
    }
    check_length("input tokens", tokens.inputs.len(), sequences.saturating_mul(context))?;
    check_ids("input token", &tokens.inputs, model.vocab_size)?;
    Ok(Batch { sequences, context })
}

pub(crate) fn check_length(what: &'static str, got: usize, expected: usize) -> Result<(), EngineError> {
    if got == expected { Ok(()) } else { Err(EngineError::Length { what, got, expected }) }
}

pub(crate) fn check_finite(what: &'static str, values: &[f32]) -> Result<(), EngineError> {
    match first_non_finite(values) {
        None => Ok(()),
        Some((index, value)) => Err(EngineError::NonFinite { what, index, value }),
    }
}

pub(crate) fn check_number(
    what: &'static str,
    got: f64,
    holds: bool,
    expected: &'static str,
) -> Result<(), EngineError> {
    if holds { Ok(()) } else { Err(EngineError::Number { what, got, expected }) }
}

/// Checks that every id is in the vocabulary: an index out of range is undefined on some backends.
pub(crate) fn check_ids(what: &'static str, ids: &[u32], vocab_size: usize) -> Result<(), EngineError> {
    let known = |id: u32| usize::try_from(id).is_ok_and(|id| id < vocab_size);
    match ids.iter().position(|id| !known(*id)) {
        None => Ok(()),
        Some(index) => Err(EngineError::Token { what, index, got: ids[index], vocab_size }),
    }
}

/// Puts checked ids on the device.
///
/// # Panics
/// When an id does not fit the backends' 32-bit index, which [`check_ids`] excludes for real vocabularies.
pub(crate) fn ids<B: Backend>(ids: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i32> = ids.iter().map(|id| i32::try_from(*id).expect("ids are checked")).collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

/// Reads a tensor back in row-major order.
pub(crate) fn read<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>, EngineError> {
    let data = tensor.try_into_data().map_err(|error| EngineError::Backend { message: error.to_string() })?;
    data.convert::<f32>().into_vec().map_err(|error| EngineError::Backend { message: format!("{error:?}") })
}

/// Reads the only element of a tensor.
pub(crate) fn read_scalar<B: Backend>(tensor: Tensor<B, 1>) -> Result<f32, EngineError> {
    let values = read(tensor)?;
    check_length("scalar", values.len(), 1)?;
    Ok(values[0])
}

/// Reads tensors back one after the other into a flat vector of a known length.
pub(crate) fn read_all<B: Backend>(
    tensors: impl Iterator<Item = Tensor<B, 1>>,
    length: usize,
) -> Result<Vec<f32>, EngineError> {
    let mut flat = Vec::with_capacity(length);
    for tensor in tensors {
        flat.extend(read(tensor)?);
    }
    check_length("flat vector", flat.len(), length)?;
    Ok(flat)
}
