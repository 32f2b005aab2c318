//! `iota-node checkpoint`: what is in a mirror.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use iota_protocol::RunSpec;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::say;
use crate::checkpoints::{Found, Which, all, find, open, pull, resumed, verify};
use crate::error::CliError;
use crate::mirror::{Mirror, MirrorMetrics};

#[derive(Debug, Args)]
pub(super) struct CheckpointOptions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the checkpoints of a mirror
    List(ListOptions),
    /// Read all of a checkpoint and check it against its hashes
    Verify(FromOptions),
    /// Write a checkpoint's weights as safetensors, for `generate`, `eval` and other programs
    Pull(PullOptions),
}

#[derive(Debug, Args)]
struct ListOptions {
    /// Mirror: `s3://bucket/prefix` or `file:///folder`
    #[arg(long, value_name = "URL")]
    from: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which checkpoint of which mirror.
#[derive(Debug, Args)]
pub(super) struct FromOptions {
    /// Mirror that has the checkpoint: `s3://bucket/prefix` or `file:///folder`
    #[arg(long, value_name = "URL")]
    pub(super) from: String,
    /// Checkpoint: `latest`, or the number of its epoch
    #[arg(long, default_value = "latest", value_name = "EPOCH")]
    pub(super) checkpoint: Which,
}

#[derive(Debug, Args)]
struct PullOptions {
    #[command(flatten)]
    from: FromOptions,
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

pub(super) fn run(options: &CheckpointOptions) -> Result<(), CliError> {
    match &options.verb {
        Verb::List(options) => list(options),
        Verb::Verify(options) => {
            let (mirror, found) = options.find()?;
            let verified =
                block_on(verify(&mirror, &found.manifest))?.map_err(|error| failed(&options.from, error))?;
            let missing = match verified.moments_missing {
                0 => String::new(),
                missing => format!(" ({missing} more are named and not there)"),
            };
            say(&format!(
                "checkpoint of epoch {} is whole: {} blobs, {} bytes, inner optimizers of {} miners{missing}, manifest {}",
                found.manifest.epoch, verified.blobs, verified.bytes, verified.moments, found.hash
            ));
            Ok(())
        }
        Verb::Pull(options) => {
            let (mirror, found) = options.from.find()?;
            let files = block_on(pull(&mirror, &found.manifest, &options.to))?
                .map_err(|error| failed(&options.from.from, error))?;
            files.iter().for_each(|file| say(&file.display().to_string()));
            Ok(())
        }
    }
}

fn list(options: &ListOptions) -> Result<(), CliError> {
    let mirror = opened(&options.from)?;
    let listed = async {
        let latest = mirror.latest().await?.map(|(latest, _)| latest.manifest);
        Ok::<_, crate::checkpoints::ReadError>((latest, all(&mirror).await?))
    };
    let (latest, checkpoints) = block_on(listed)?.map_err(|error| failed(&options.from, error))?;
    for (epoch, hash, manifest) in checkpoints {
        let is_latest = latest == Some(hash.0);
        let run = manifest.as_ref().ok().map(|manifest| manifest.run);
        let problem = manifest.as_ref().err().map(ToString::to_string);
        if options.json {
            let line: Value = json!({ "epoch": epoch, "manifest": hash, "run": run, "latest": is_latest, "problem": problem });
            say(&line.to_string());
            continue;
        }
        let run = run.map_or_else(|| "?".to_owned(), |run| run.to_string());
        let note = if is_latest { "  latest" } else { "" };
        let problem = problem.map(|problem| format!("  {problem}")).unwrap_or_default();
        say(&format!("epoch {epoch:>6}  manifest {hash}  run {run}{note}{problem}"));
    }
    Ok(())
}

impl FromOptions {
    /// The spec of the run that goes on from the checkpoint.
    pub(super) fn resumed(&self, epochs: Option<u32>) -> Result<RunSpec, CliError> {
        let (mirror, found) = self.find()?;
        resumed(&found, &mirror.url().to_string(), epochs).map_err(|error| failed(&self.from, error))
    }

    /// Opens the mirror and finds the checkpoint.
    pub(super) fn find(&self) -> Result<(Mirror, Found), CliError> {
        let mirror = opened(&self.from)?;
        let found = block_on(find(&mirror, self.checkpoint))?.map_err(|error| failed(&self.from, error))?;
        Ok((mirror, found))
    }
}

fn opened(url: &str) -> Result<Mirror, CliError> {
    // Nobody reads the counters of a command that ends at once.
    let metrics = MirrorMetrics::register(&mut Registry::default());
    open(url, None, metrics).map_err(|error| failed(url, error))
}

pub(super) fn failed(url: &str, error: impl std::fmt::Display) -> CliError {
    CliError::Mirror { url: url.to_owned(), reason: error.to_string() }
}

/// Waits for the mirror.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Bug(format!("start the async runtime: {error}")))?;
    Ok(runtime.block_on(work))
}
