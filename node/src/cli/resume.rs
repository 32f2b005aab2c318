//! `iota-node resume`: the spec of a run that goes on from a checkpoint, and the keys of its candidates.

use std::path::PathBuf;

use clap::Args;

use super::checkpoint::FromOptions;
use super::init::RunFolder;
use crate::error::CliError;

#[derive(Debug, Args)]
pub(super) struct ResumeOptions {
    #[command(flatten)]
    from: FromOptions,
    /// Folder to write `run.toml` and `keys/` to
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Orchestrator candidates to make keys for
    #[arg(long, default_value_t = 1, value_name = "N")]
    candidates: u32,
    /// Merges of each stage, counted from the first run's start [default: as the run had]
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
}

pub(super) fn run(options: &ResumeOptions) -> Result<(), CliError> {
    let mut spec = options.from.resumed(options.epochs)?;
    let folder = RunFolder::new(&options.dir, options.candidates)?;
    spec.orchestrator.candidates = folder.candidates();
    spec.validate().map_err(|source| CliError::Spec { path: "of the checkpoint".to_owned(), source })?;
    folder.write(&spec)
}
