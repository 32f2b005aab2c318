//! `iota-node eval`: the loss of a checkpoint on a text.

use std::path::PathBuf;

use clap::Args;
use iota_model::Device;
use serde::Serialize;

use super::say;
use crate::error::CliError;
use crate::evaluation::{Loss, Whole};

#[derive(Debug, Args)]
pub(super) struct EvalOptions {
    /// Folder with `model.safetensors` or the files of all stages
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Text to measure
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to compute: auto, cpu, cuda:N or wgpu:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    loss: Loss,
    tokens: usize,
}

pub(super) fn run(options: &EvalOptions) -> Result<(), CliError> {
    let mut model = Whole::open(&options.checkpoint, options.device)?;
    let (loss, tokens) = model.loss_of_file(&options.data)?;
    let text = if options.json {
        let measured = serde_json::to_string(&Measured { loss, tokens });
        measured.map_err(|error| CliError::Bug(format!("write JSON: {error}")))?
    } else {
        format!("{:.4} nats per token, {:.4} bits per byte, {tokens} tokens", loss.nats, loss.bits_per_byte)
    };
    say(&text);
    Ok(())
}
