//! Where log lines go: stderr, for people or as JSON.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// One line for people.
    Human,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Args)]
pub(super) struct LogOptions {
    /// Shape of log lines on stderr
    #[arg(long, global = true, value_enum, default_value = "human", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Least severe level logged, or a filter such as `info,iota_node=debug`
    #[arg(long, global = true, default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

/// Libraries whose INFO lines say nothing about the run.
const QUIETER: &str = "iroh=warn,iroh_blobs=warn,iroh_relay=warn,libp2p=warn,portmapper=warn,quinn=warn,netwatch=error,omnipaxos=warn";

/// Starts logging to stderr. A filter that cannot be read falls back to `info`.
pub(super) fn start(options: &LogOptions) {
    let filter = EnvFilter::try_new(format!("{QUIETER},{}", options.log_level))
        .unwrap_or_else(|_| EnvFilter::new(format!("{QUIETER},info")));
    // A line for which the disk has no room is lost. To say so on stderr, which is where it was to go, would be a panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let started = match options.log_format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // A second call in one process (tests) keeps the first subscriber.
    drop(started);
}
