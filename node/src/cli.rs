//! The command line: verbs, their options, and how a failure becomes an exit code.
//!
//! stdout carries data only; logs and progress go to stderr. [`crate::config`] says where option values come from.

mod calibrate;
mod checkpoint;
mod config;
mod control;
mod eval;
mod generate;
mod history;
mod init;
mod invite;
mod join;
mod keys;
mod log;
mod plan;
mod proof;
mod resume;
mod scores;
mod spec;
mod up;
mod waits;

use std::ffi::OsString;
use std::io::Write;
use std::panic::catch_unwind;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use invite::write_invite;
pub use join::exit_with_parent;
pub use keys::{create_key, read_key, read_or_create_key};

use crate::config::{config_path, with_environment, with_file};
use crate::error::{CliError, EXIT_CODES_HELP, ExitCode};

/// Pretrains a language model across machines that nobody owns together.
#[derive(Debug, Parser)]
#[command(name = "iota-node", version, after_long_help = EXIT_CODES_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    log: log::LogOptions,
    /// TOML file with defaults for options: one section per command, one key per flag
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a whole swarm of processes on this machine, train, and compare with one process
    Up(up::UpOptions),
    /// Join a run as a miner, validator or orchestrator
    Join(join::JoinOptions),
    /// Write a run spec and the keys of its orchestrator candidates
    Init(init::InitOptions),
    /// Let a peer into a run that admits by invite
    Invite(invite::InviteOptions),
    /// Write the spec of a run that goes on from a checkpoint in a mirror
    Resume(resume::ResumeOptions),
    /// Look at the checkpoints in a mirror
    Checkpoint(checkpoint::CheckpointOptions),
    /// Print what was decided in a run, from its mirror, and check it
    History(history::HistoryOptions),
    /// Print what the work of each miner is worth, and why, from the mirror of a run
    Scores(scores::ScoresOptions),
    /// Recompute the state and the scores of a run from its mirror, and compare
    Audit(scores::AuditOptions),
    /// Write down why a peer lost its place for good, for anybody to check
    Proof(proof::ProofOptions),
    /// Check a proof against a peer, on any machine and without the swarm
    VerifyProof(proof::VerifyProofOptions),
    /// Sample text from a checkpoint
    Generate(generate::GenerateOptions),
    /// Measure the loss of a checkpoint on a text
    Eval(eval::EvalOptions),
    /// Print what a spec's checks of miners cost, and how soon they find one that cheats
    Plan(plan::PlanOptions),
    /// Measure how far apart honest work on two devices is, and what threshold follows
    Calibrate(calibrate::CalibrateOptions),
    /// Look at the configuration
    Config(config::ConfigOptions),
    /// Train the same run in this one process
    #[command(hide = true)]
    Control(control::ControlOptions),
}

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> std::process::ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let code = match catch_unwind(|| run(&args)) {
        Ok(Ok(())) => ExitCode::Success,
        Ok(Err(error)) => {
            error.report();
            error.exit_code()
        }
        Err(_) => {
            let error = CliError::Bug("go on after the panic above".to_owned());
            error.report();
            error.exit_code()
        }
    };
    std::process::ExitCode::from(code as u8)
}

/// Prints a line, or several. A closed stdout is the reader's choice.
fn say(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

/// Parses and runs; clap itself answers `--help`, `--version` and syntax errors.
fn run(args: &[OsString]) -> Result<(), CliError> {
    let command = command(args)?;
    let matches = command.get_matches_from(args);
    let cli = Cli::from_arg_matches(&matches).map_err(|error| CliError::Bug(error.to_string()))?;
    log::start(&cli.log);
    let (_, matches) = matches.subcommand().ok_or_else(|| CliError::Bug("find the command".to_owned()))?;
    match cli.verb {
        Verb::Up(options) => up::run(&options, matches),
        Verb::Join(options) => join::run(options),
        Verb::Init(options) => init::run(&options, matches),
        Verb::Invite(options) => invite::run(&options),
        Verb::Resume(options) => resume::run(&options),
        Verb::Checkpoint(options) => checkpoint::run(&options),
        Verb::History(options) => history::run(&options),
        Verb::Scores(options) => scores::run(&options),
        Verb::Audit(options) => scores::audit(&options),
        Verb::Proof(options) => proof::run(&options),
        Verb::VerifyProof(options) => proof::verify(&options),
        Verb::Generate(options) => generate::run(&options),
        Verb::Eval(options) => eval::run(&options),
        Verb::Plan(options) => plan::run(&options, matches),
        Verb::Calibrate(options) => calibrate::run(&options, matches),
        Verb::Config(options) => config::run(&options, matches, cli.config.as_deref()),
        Verb::Control(options) => control::run(&options),
    }
}

/// The command with the environment's and the configuration file's defaults built in.
fn command(args: &[OsString]) -> Result<clap::Command, CliError> {
    let command = with_environment(Cli::command());
    match config_path(args, std::env::var_os("IOTA_CONFIG")) {
        Some(path) => with_file(command, &path),
        None => Ok(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        with_environment(Cli::command()).debug_assert();
    }
}
