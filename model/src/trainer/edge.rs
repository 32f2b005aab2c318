//! Frames and token batches on their way to the device and back, checked at the edge.

use burn::tensor::{
    Int, Tensor, TensorData,
    backend::{AutodiffBackend, Backend},
};

use super::Trainer;
use crate::{
    checks::{check_finite, check_ids, check_length, check_tokens, ids, read},
    engine::{EngineError, StageInput, TokenBatch},
    frame::{Frame, first_non_finite},
    kernels::Kernels,
    stage::Entry,
    transformer::Batch,
};

impl<B> Trainer<B>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    /// Checks an input and puts it on the device.
    pub(super) fn enter<A>(&self, input: &StageInput) -> Result<(Entry<A>, Batch), EngineError>
    where
        A: Backend<Device = B::Device>,
    {
        match (input, self.is_head()) {
            (StageInput::Tokens(tokens), true) => {
                let batch = check_tokens(&self.config.model, tokens)?;
                Ok((Entry::Tokens(ids::<A>(&tokens.inputs, &self.device)), batch))
            }
            (StageInput::Activation(frame), false) => {
                let batch = self.check_wire("input", frame, None)?;
                Ok((Entry::Wire(self.frame_to_rows("input", frame)?), batch))
            }
            (StageInput::Tokens(_), false) => {
                Err(EngineError::Input { got: "tokens", expected: "an activation" })
            }
            (StageInput::Activation(_), true) => {
                Err(EngineError::Input { got: "an activation", expected: "tokens" })
            }
        }
    }

    /// Checks type and shape of a frame on the wire, against `expected` where it is known.
    pub(super) fn check_wire(
        &self,
        what: &'static str,
        frame: &Frame,
        expected: Option<Batch>,
    ) -> Result<Batch, EngineError> {
        if frame.dtype != self.config.activation_dtype {
            return Err(EngineError::DType {
                what,
                got: frame.dtype,
                expected: self.config.activation_dtype,
            });
        }
        let (longest, width) = (self.config.model.context, self.config.model.wire_width());
        let batch = match *frame.shape {
            [sequences, context, channels]
                if sequences > 0 && context > 0 && context <= longest && channels == width =>
            {
                Some(Batch { sequences, context })
            }
            _ => None,
        };
        match (batch, expected) {
            (Some(batch), None) => Ok(batch),
            (Some(batch), Some(expected)) if batch == expected => Ok(batch),
            (_, Some(Batch { sequences, context })) => {
                let expected = format!("[{sequences}, {context}, {width}]");
                Err(EngineError::Shape { what, got: frame.shape.clone(), expected })
            }
            (None, None) => {
                let expected = format!("[sequences, 1 to {longest}, {width}]");
                Err(EngineError::Shape { what, got: frame.shape.clone(), expected })
            }
        }
    }

    /// Puts a checked frame on the device as rows.
    pub(super) fn frame_to_rows<A>(
        &self,
        what: &'static str,
        frame: &Frame,
    ) -> Result<Tensor<A, 2>, EngineError>
    where
        A: Backend<Device = B::Device>,
    {
        let values = frame.to_f32()?;
        check_finite(what, &values)?;
        let width = self.config.model.wire_width();
        let rows = values.len() / width;
        Ok(Tensor::from_data(TensorData::new(values, [rows, width]), &self.device))
    }

    /// Reads rows from the device as a frame.
    pub(super) fn rows_to_frame<A: Backend>(
        &self,
        what: &'static str,
        rows: Tensor<A, 2>,
        batch: Batch,
    ) -> Result<Frame, EngineError> {
        let values = read(rows)?;
        if let Some((_, value)) = first_non_finite(&values) {
            return Err(EngineError::Diverged { what, value });
        }
        let shape = vec![batch.sequences, batch.context, self.config.model.wire_width()];
        Ok(Frame::from_f32(&values, shape, self.config.activation_dtype)?)
    }

    /// Checks targets against the batch that entered and puts them on the device.
    pub(super) fn targets<A>(
        &self,
        targets: &TokenBatch,
        batch: Batch,
    ) -> Result<Tensor<A, 1, Int>, EngineError>
    where
        A: Backend<Device = B::Device>,
    {
        if (targets.sequences, targets.context) != (batch.sequences, batch.context) {
            let got = vec![targets.sequences, targets.context];
            let expected = format!("[{}, {}]", batch.sequences, batch.context);
            return Err(EngineError::Shape { what: "targets", got, expected });
        }
        check_length("targets", targets.targets.len(), batch.rows())?;
        check_ids("target token", &targets.targets, self.config.model.vocab_size)?;
        Ok(ids::<A>(&targets.targets, &self.device))
    }
}
