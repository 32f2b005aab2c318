//! `iota-node plan`: what a spec's settings will cost and give, before anybody joins.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::{ArgMatches, Args};
use iota_protocol::RunSpec;
use iota_protocol::validation::{cost, power};
use serde_json::json;

use super::spec::{SpecOptions, led};
use crate::error::CliError;

#[derive(Debug, Args)]
pub(super) struct PlanOptions {
    #[command(flatten)]
    spec: SpecOptions,
    /// What checks of miners cost, and how soon they find one that cheats
    #[arg(long, required = true)]
    validation: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shares of its epochs in which a miner cheats.
const SHARES: [f64; 6] = [1.0, 0.5, 0.25, 0.1, 0.05, 0.01];
/// Epochs within which it is to be found.
const EPOCHS: [u32; 7] = [1, 3, 10, 30, 100, 300, 1000];

pub(super) fn run(options: &PlanOptions, matches: &ArgMatches) -> Result<(), CliError> {
    let resolved = led(options.spec.resolve(matches)?);
    let spec = resolved.validated()?;
    let text = if options.json { numbers(spec) } else { table(spec) };
    // A closed stdout is the reader's choice.
    drop(writeln!(std::io::stdout().lock(), "{text}"));
    Ok(())
}

/// Miners at the start, and validators as fast as they that keep up with them; fewer than a quorum convict nobody.
fn hosts(spec: &RunSpec) -> (u32, u32) {
    let miners = u32::from(spec.pipeline.stages) * u32::from(spec.pipeline.start_replicas);
    let per_miner = cost(&spec.validation);
    let enough = (1..=miners).find(|validators| f64::from(*validators) >= f64::from(miners) * per_miner);
    (miners, enough.unwrap_or(miners).max(u32::from(spec.validation.quorum)))
}

fn numbers(spec: &RunSpec) -> String {
    let per_miner = cost(&spec.validation);
    let (miners, validators) = hosts(spec);
    let found = SHARES.iter().flat_map(|cheats| {
        EPOCHS.iter().map(move |epochs| {
            json!({ "cheats": cheats, "epochs": epochs, "found": power(&spec.validation, *cheats, *epochs) })
        })
    });
    let found: Vec<_> = found.collect();
    json!({
        "replays_per_contribution": per_miner, "share_of_compute": per_miner / (1.0 + per_miner),
        "miners": miners, "validators": validators, "power": found,
    })
    .to_string()
}

fn table(spec: &RunSpec) -> String {
    let validation = &spec.validation;
    let per_miner = cost(validation);
    let (miners, validators) = hosts(spec);
    let mut text = format!(
        "replay_share {}, repeat_share {}, quorum {}\n\
         cost: {:.1} % of the swarm's compute, {validators} validators for {miners} miners as fast as they\n\n\
         probability that a miner is found within so many epochs\n{:<18}",
        validation.replay_share,
        validation.repeat_share,
        validation.quorum,
        100.0 * per_miner / (1.0 + per_miner),
        "it cheats in"
    );
    // Writing to a String does not fail.
    for epochs in EPOCHS {
        let _ = write!(text, " {epochs:>7}");
    }
    for cheats in SHARES {
        let _ = write!(text, "\n{:<18}", format!("{} % of epochs", cheats * 100.0));
        for epochs in EPOCHS {
            let _ = write!(text, " {:>7.4}", power(validation, cheats, epochs));
        }
    }
    text
}
