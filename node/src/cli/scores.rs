//! `iota-node scores` and `iota-node audit`: what miners' work is worth, by anybody's own reading of the log in a mirror.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use iota_protocol::gauntlet::Standing;
use iota_protocol::log::DecidedLog;
use iota_protocol::run_state::RunState;
use iota_protocol::scores::{Row, ScoresExport};
use iota_protocol::{Hash, Identity, PeerId, RunId, RunSpec};
use serde_json::{Value, json};

use super::checkpoint::{FromOptions, block_on, failed};
use super::keys::read_key;
use super::say;
use crate::checkpoints::Which;
use crate::error::CliError;
use crate::history::{self, Fold};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ScoresOptions {
    /// Mirror of the run: `s3://bucket/prefix` or `file:///folder`
    #[arg(long, value_name = "URL", required = true)]
    from: Option<String>,
    /// Checkpoint that says which run it is: `latest`, or the number of its epoch
    #[arg(long, default_value = "latest", value_name = "EPOCH")]
    checkpoint: Which,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write the weights of all miners, signed, for a payment system
    Export(ExportOptions),
}

#[derive(Debug, Args)]
struct ExportOptions {
    #[command(flatten)]
    from: FromOptions,
    /// Key to sign with
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct AuditOptions {
    #[command(flatten)]
    from: FromOptions,
    /// Signed weights to compare with, as `scores export` writes them
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

/// The log of a run, folded.
struct Read {
    state: RunState,
    entries: u64,
    chain: Hash,
    checked: usize,
}

pub(super) fn run(options: &ScoresOptions) -> Result<(), CliError> {
    match (&options.verb, &options.from) {
        (Some(Verb::Export(export)), _) => write_export(export),
        (None, from) => {
            let from =
                from.clone().ok_or_else(|| CliError::Bug("go on without a required option".to_owned()))?;
            print(&FromOptions { from, checkpoint: options.checkpoint }, options.json)
        }
    }
}

/// Recomputes everything and says whether it is what the run said.
pub(super) fn audit(options: &AuditOptions) -> Result<(), CliError> {
    let log = Log::read(&options.from)?;
    let export = options.export.as_ref().map(|file| open_export(file, log.spec.run_id())).transpose()?;
    let read = log.fold(export.as_ref().map(|(_, export, _)| export.entries))?;
    let bytes = iota_protocol::wire::encode(read.state.scores());
    let mut text = format!(
        "{} entries, each certified; {} states that the log names are what its entries lead to\nscores: {} bytes, BLAKE3 {}\n",
        read.entries,
        read.checked,
        bytes.len(),
        Hash::of(&bytes)
    );
    if let Some((file, export, signer)) = export {
        let ours = export_of(&read);
        if ours != export {
            return Err(difference(&file, &export, &ours));
        }
        text += &format!("weights signed by {signer} are those of the log\n");
    }
    say(text.trim_end());
    Ok(())
}

/// A log in a mirror, proven by the candidates' signatures.
struct Log {
    from: String,
    spec: Arc<RunSpec>,
    log: DecidedLog,
}

impl Log {
    fn read(from: &FromOptions) -> Result<Self, CliError> {
        let (mirror, found) = from.find()?;
        let failed = |error: &dyn std::fmt::Display| failed(&from.from, error);
        let spec = Arc::new(found.manifest.spec().map_err(|error| failed(&error))?);
        let log = block_on(history::read(&mirror, &spec))?.map_err(|error| failed(&error))?;
        Ok(Self { from: from.from.clone(), spec, log })
    }

    /// Folds it, up to `until` entries.
    fn fold(self, until: Option<u64>) -> Result<Read, CliError> {
        let until = until.and_then(|until| usize::try_from(until).ok()).unwrap_or(usize::MAX);
        let mut fold = Fold::new(self.spec);
        for index in 0..self.log.len().min(until) {
            let Some((entry, chain)) = self.log.entry(index) else { break };
            fold.apply(chain, entry.as_ref()).map_err(|error| failed(&self.from, error))?;
        }
        let (entries, checked) = (fold.state().applied(), fold.checked());
        let chain = usize::try_from(entries).ok().and_then(|len| self.log.chain(len)).unwrap_or_default();
        Ok(Read { state: fold.into_state(), entries, chain, checked })
    }
}

fn export_of(read: &Read) -> ScoresExport {
    let spec = read.state.spec();
    let incentive = read.state.scores().incentive(&spec.scores, &read.state.versions());
    ScoresExport::new(spec.run_id(), read.entries, read.chain, incentive)
}

fn write_export(options: &ExportOptions) -> Result<(), CliError> {
    let identity = Identity::from_secret(read_key(&options.key)?);
    let read = Log::read(&options.from)?.fold(None)?;
    let export = export_of(&read);
    std::fs::write(&options.to, export.seal(&identity))
        .map_err(|error| CliError::file("write", &options.to, error))?;
    say(&format!(
        "weights of {} miners after {} entries, signed by {}: {}",
        export.weights.len(),
        export.entries,
        identity.peer(),
        options.to.display()
    ));
    Ok(())
}

/// The export of `run` in a file, whose it is, and the file's name.
fn open_export(file: &std::path::Path, run: RunId) -> Result<(String, ScoresExport, PeerId), CliError> {
    let name = file.display().to_string();
    let bytes = std::fs::read(file).map_err(|error| CliError::file("read", file, error))?;
    let (signer, export) = ScoresExport::open(run, &bytes).map_err(|error| CliError::Option {
        option: "--export".to_owned(),
        expected: format!("signed weights of run {run}"),
        got: format!("{name}: {error}"),
    })?;
    Ok((name, export, signer))
}

/// What two exports differ in.
fn difference(file: &str, got: &ScoresExport, expected: &ScoresExport) -> CliError {
    let differs = |expected: String, got: String| CliError::Option {
        option: "--export".to_owned(),
        expected,
        got: format!("{got} in {file}"),
    };
    if (got.entries, got.chain) != (expected.entries, expected.chain) {
        let position = |export: &ScoresExport| format!("{} after {} entries", export.chain, export.entries);
        return differs(position(expected), position(got));
    }
    let weight = |export: &ScoresExport, peer: PeerId| {
        export.weights.iter().find(|(of, _)| *of == peer).map_or(0, |(_, weight)| *weight)
    };
    let peers = expected.weights.iter().chain(&got.weights).map(|(peer, _)| *peer);
    let differing = peers.map(|peer| (peer, weight(expected, peer), weight(got, peer)));
    let mut differing = differing.filter(|(_, expected, got)| expected != got);
    let (expected, got) = differing.next().map_or_else(
        || (format!("a burn of {}", expected.burn), got.burn.to_string()),
        |(peer, expected, got)| (format!("weight {expected} of miner {peer}"), got.to_string()),
    );
    differs(expected, got)
}

fn print(from: &FromOptions, json: bool) -> Result<(), CliError> {
    let read = Log::read(from)?.fold(None)?;
    let rows = read.state.scores().table(&read.state.spec().scores, &read.state.versions());
    if json {
        let rows: Vec<Value> = rows.iter().map(|row| row_json(row, &read.state)).collect();
        say(&json!({ "entries": read.entries, "chain": read.chain, "miners": rows }).to_string());
        return Ok(());
    }
    say(&format!("after {} entries of the log, {}", read.entries, read.chain));
    say("miner      share     score  samples  undone  epochs  checked  why");
    for row in &rows {
        say(&format!(
            "{:<8} {:>7.2} % {:>8.1} {:>8} {:>7} {:>7} {:>8}  {}",
            row.peer.short(),
            row.share.as_f64() * 100.0,
            score(row),
            row.samples,
            row.unprocessed,
            row.epochs,
            row.checked(),
            why(row, &read.state)
        ));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn score(row: &Row) -> f64 {
    row.score_micro as f64 / 1e6
}

/// Why a miner has what it has, in words.
fn why(row: &Row, state: &RunState) -> String {
    let failures = row.failures.iter().map(|failure| {
        format!("{} in epoch {} of stage {}", penalty(failure.why), failure.epoch, failure.stage)
    });
    let mut reasons: Vec<String> = failures.collect();
    if let Some(reason) = state.eviction(row.peer) {
        reasons.push(format!("lost its place: {reason}"));
    }
    if let Some(standing) = &row.standing {
        reasons.push(rated(standing));
    }
    if row.unproven > 0 {
        reasons.push(format!("{} epochs that nobody could check", row.unproven));
    }
    if row.validated > 0 {
        reasons.push(format!("{} epochs found right", row.validated));
    }
    if row.unprocessed > 0 {
        reasons.push(format!("{} samples left undone", row.unprocessed));
    }
    if row.held_up > 0 {
        reasons.push(format!("deposed as leader: {} samples held up", row.held_up));
    }
    reasons.join("; ")
}

/// What evaluators made of a miner's contributions, in words.
fn rated(standing: &Standing) -> String {
    let Standing { rating, indicator, trust, missed, .. } = *standing;
    let mut words =
        format!("rated {:.1} ± {:.1}, own data ahead {indicator:+.2}", rating.mu, 3.0 * rating.sigma);
    if trust < 1.0 {
        words += &format!(", trust {trust:.2}");
    }
    if missed > 0 {
        words += &format!(", missed {missed}");
    }
    words
}

fn penalty(why: iota_protocol::scores::Penalty) -> String {
    // The word that stands in the log.
    json!(why).as_str().unwrap_or_default().replace('-', " ")
}

fn row_json(row: &Row, state: &RunState) -> Value {
    let failures: Vec<Value> = row
        .failures
        .iter()
        .map(|failure| json!({ "stage": failure.stage, "epoch": failure.epoch, "why": failure.why }))
        .collect();
    json!({
        "peer": row.peer,
        "share": row.share.as_f64(),
        "score_micro": row.score_micro,
        "samples": row.samples,
        "unprocessed": row.unprocessed,
        "held_up": row.held_up,
        "epochs": row.epochs,
        "validated": row.validated,
        "unproven": row.unproven,
        "failures": failures,
        "standing": row.standing,
        "why": why(row, state),
    })
}
