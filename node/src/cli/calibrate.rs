//! `iota-node calibrate`: how far apart honest work on two devices is, and which threshold follows.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgMatches, Args};
use iota_model::Device;
use iota_protocol::spec::ValidationSpec;
use iota_worker::calibration::{Calibration, Plan, What, calibrate};
use serde_json::json;

use super::say;
use super::spec::{SpecOptions, led};
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
    let resolved = led(options.spec.resolve(matches)?);
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
    let text = if options.json {
        let (miner, validator) = (plan.miner.to_string(), plan.validator.to_string());
        json!({
            "device": miner, "against": validator, "false_positives": plan.false_positives,
            "validation": spec.validation, "spreads": found.spreads,
        })
        .to_string()
    } else {
        format!("{}\n{}", table(&plan, &found), verdicts(&found, &spec.validation))
    };
    say(&text);
    Ok(())
}

fn table(plan: &Plan, found: &Calibration) -> String {
    let mut text = format!("relative error of work on {}, replayed on {}\n\n", plan.miner, plan.validator);
    let bound = format!("{:e}", plan.false_positives);
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{:<24} {:>6} {:>6} {:>9} {:>9} {:>9} {bound:>9} {:>9} {:>6}",
        "", "count", "equal", "least", "median", "most", "cosine", "norms"
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
    text
}

/// What the spec's thresholds are worth.
fn verdicts(found: &Calibration, spec: &ValidationSpec) -> String {
    let thresholds = [
        (What::Contribution, "contribution_error_max", spec.contribution_error_max, found.dishonest()),
        (What::Activation, "tensor_error_max", spec.tensor_error_max, None),
        (What::Loss, "loss_error_max", spec.loss_error_max, None),
    ];
    let verdict = |(what, key, threshold, dishonest): (What, &str, f64, Option<f64>)| {
        let Some(honest) = found.bound(what) else {
            return format!("{key}: too little was measured, raise --trainings or --epochs");
        };
        let caught = dishonest.map_or_else(String::new, |least| format!(", others from {least:.1e} on"));
        let verdict = match (honest < threshold, dishonest.is_none_or(|least| threshold < least)) {
            (true, true) => "tells them apart",
            (false, _) => "is too low: honest work would fail",
            (true, false) => "is too high: some of the others would pass",
        };
        format!("{key} = {threshold} {verdict} (honest up to {honest:.1e}{caught})")
    };
    thresholds.map(verdict).join("\n")
}
