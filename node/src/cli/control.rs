//! `iota-node control`: the run of a spec in one process; `up` compares the swarm with it.

use std::path::PathBuf;

use clap::Args;
use iota_model::Device;
use tokio_util::sync::CancellationToken;

use super::join::{exit_with_parent, read_spec};
use super::say;
use crate::control::{ControlEvent, train};
use crate::error::CliError;

#[derive(Debug, Args)]
pub(super) struct ControlOptions {
    /// Run spec
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Corpus, if the spec says `file`
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda:N or wgpu:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Stop when stdin closes, and die with the parent process
    #[arg(long, hide = true)]
    exit_on_stdin_close: bool,
}

/// Trains, and prints one JSON event per line.
pub(super) fn run(options: &ControlOptions) -> Result<(), CliError> {
    if options.exit_on_stdin_close {
        exit_with_parent(CancellationToken::new());
    }
    let spec = read_spec(&options.spec)?;
    let print = |event: &ControlEvent| {
        say(&serde_json::to_string(event).unwrap_or_default());
    };
    let report = train(&spec, options.data.as_deref(), options.device, |epoch, loss| {
        print(&ControlEvent::Epoch { epoch, loss });
    })?;
    print(&ControlEvent::Done(report));
    Ok(())
}
