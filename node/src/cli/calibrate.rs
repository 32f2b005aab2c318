//! `iota-node calibrate`: how far apart honest work on two devices is, and which threshold follows.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgMatches, Args};
use iota_model::Device;
use iota_protocol::Identity;
use iota_protocol::spec::Candidate;
use iota_worker::calibration::{Calibration, Plan, calibrate};
use serde_json::json;

use super::spec::SpecOptions;
use crate::corpus::open_corpus;
use crate::error::CliError;

#[derive(Debug, Args)]
pub(super) struct CalibrateOptions {
    #[command(flatten)]
    spec: SpecOptions,
    /// Corpus, if the spec says `file`
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Where miners compute: auto, cpu, cuda:N or wgpu:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Where validators go through it again
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    against: Device,
    /// Trainings that are gone through again, each with its samples in another order
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    trainings: u64,
    /// How often honest work may be taken for dishonest
    #[arg(long, default_value_t = 1e-4, value_name = "RATE", value_parser = rate)]
    false_positives: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Epochs of a training if `--epochs` does not say: the first starts from what nobody trained, the second from moments too.
const EPOCHS: u32 = 2;

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= 0.5);
    rate.ok_or_else(|| "expected a number above 0 and at most 0.5".to_owned())
}

pub(super) fn run(options: &CalibrateOptions, matches: &ArgMatches) -> Result<(), CliError> {
    let mut resolved = options.spec.resolve(matches)?;
    if resolved.spec.orchestrator.candidates.is_empty() {
        // A spec needs somebody who leads; here nobody does.
        let peer = Identity::from_secret([0; 32]).peer();
        resolved.spec.orchestrator.candidates = vec![Candidate { peer, priority: 0 }];
    }
    let spec = Arc::new(resolved.validated()?.clone());
    let corpus = open_corpus(&spec, options.data.as_deref())?;
    let plan = Plan {
        miner: options.device.resolve(),
        validator: options.against.resolve(),
        orders: 1..options.trainings + 1,
        epochs: options.spec.epochs().unwrap_or(EPOCHS),
        false_positives: options.false_positives,
    };
    let found =
        calibrate(&spec, &corpus, &plan).map_err(|error| CliError::Device { reason: error.to_string() })?;
    let threshold = spec.validation.relative_error_max;
    let text = if options.json {
        let (miner, validator) = (plan.miner.to_string(), plan.validator.to_string());
        json!({
            "device": miner, "against": validator, "false_positives": plan.false_positives,
            "relative_error_max": threshold, "calibration": found,
        })
        .to_string()
    } else {
        table(&plan, &found, threshold)
    };
    // A closed stdout is the reader's choice.
    drop(writeln!(std::io::stdout().lock(), "{text}"));
    Ok(())
}

fn table(plan: &Plan, found: &Calibration, threshold: f64) -> String {
    let mut text = format!("relative error of work on {}, replayed on {}\n\n", plan.miner, plan.validator);
    let (rate, head) = (plan.false_positives, ["count", "equal", "least", "median", "most"]);
    let [count, equal, least, median, most] = head;
    let bound = format!("{rate:e}");
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{:<24} {count:>6} {equal:>6} {least:>9} {median:>9} {most:>9} {bound:>9} {:>9} {:>6}",
        "", "cosine", "norms"
    );
    for of in &found.spreads {
        let bound = of.bound.filter(|_| of.what.is_honest()).map(|bound| format!("{bound:.1e}"));
        let _ = writeln!(
            text,
            "{:<24} {:>6} {:>6} {:>9.1e} {:>9.1e} {:>9.1e} {:>9} {:>9.6} {:>6.3}",
            of.what,
            of.count,
            of.equal,
            of.least,
            of.median,
            of.most,
            bound.unwrap_or_default(),
            of.cosine,
            of.norm_ratio
        );
    }
    let verdict = match (found.honest, found.dishonest) {
        (Some(honest), Some(dishonest)) if honest < threshold && threshold < dishonest => format!(
            "honest work stays below {honest:.1e}, the least of the rest is {dishonest:.1e}: validation.relative_error_max = {threshold} is between"
        ),
        (Some(honest), Some(dishonest)) if honest < dishonest => format!(
            "validation.relative_error_max = {threshold} is not between {honest:.1e}, below which honest work stays, and {dishonest:.1e}, the least of the rest"
        ),
        (Some(honest), Some(dishonest)) => format!(
            "no threshold tells them apart: honest work stays below {honest:.1e}, the least of the rest is {dishonest:.1e}"
        ),
        _ => "too little was measured for a threshold: expected at least 3 differences, raise --trainings or --epochs".to_owned(),
    };
    let _ = write!(text, "\n{verdict}");
    text
}
