//! `iota-node generate`: text from a checkpoint.

use std::path::PathBuf;

use clap::Args;
use iota_model::Device;
use iota_model::generate::GenerateOptions as Sampling;

use super::say;
use crate::error::CliError;
use crate::evaluation::Whole;

#[derive(Debug, Args)]
pub(super) struct GenerateOptions {
    /// Folder with `model.safetensors` or the files of all stages
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Tokens to add
    #[arg(long, default_value_t = 256, value_name = "N")]
    tokens: usize,
    /// Randomness: 0 always takes the likeliest token, 1 samples as the model says
    #[arg(long, default_value_t = 0.8, value_name = "T")]
    temperature: f64,
    /// Sample among so many likeliest tokens only [default: all]
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Where to compute: auto, cpu, cuda:N or wgpu:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
}

pub(super) fn run(options: &GenerateOptions) -> Result<(), CliError> {
    let mut model = Whole::open(&options.checkpoint, options.device)?;
    let GenerateOptions { tokens, temperature, top_k, seed, .. } = *options;
    let text = model.continue_text(&options.prompt, &Sampling { tokens, temperature, top_k, seed })?;
    say(&format!("{}{text}", options.prompt));
    Ok(())
}
