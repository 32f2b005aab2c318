//! `iota-node history`: what was decided in a run, from its mirror.

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::checkpoint::{FromOptions, block_on, failed};
use crate::error::CliError;
use crate::history::{self, Fold};

#[derive(Debug, Args)]
pub(super) struct HistoryOptions {
    #[command(flatten)]
    from: FromOptions,
    /// Print one JSON object per entry
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &HistoryOptions) -> Result<(), CliError> {
    let (mirror, found) = options.from.find()?;
    let failed = |error: &dyn std::fmt::Display| failed(&options.from.from, error);
    let spec = Arc::new(found.manifest.spec().map_err(|error| failed(&error))?);
    let log = block_on(history::read(&mirror, &spec))?.map_err(|error| failed(&error))?;
    let mut fold = Fold::new(spec);
    let mut out = std::io::stdout().lock();
    for index in 0..log.len() {
        let Some((entry, chain)) = log.entry(index) else { break };
        let void = fold.apply(chain, entry.as_ref()).map_err(|error| failed(&error))?.is_empty();
        let line = if options.json {
            json!({ "index": index, "void": void, "entry": entry, "chain": chain }).to_string()
        } else {
            let decision = entry.map(|entry| json!(entry.decision).to_string());
            format!("{index:>8} {} {}", if void { "void " } else { "     " }, decision.unwrap_or_default())
        };
        // A closed stdout is the reader's choice.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    Ok(())
}
