//! `iota-node plan`: what a spec's settings will cost and give, before anybody joins.

use std::fmt::Write as _;

use clap::{ArgMatches, Args};
use iota_protocol::spec::ScoredBy;
use iota_protocol::validation::{cost, power};
use iota_protocol::{RunSpec, gauntlet};
use serde_json::json;

use super::say;
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
    let hosts = Hosts::of(spec);
    say(&if options.json { numbers(spec, hosts) } else { table(spec, hosts) });
    Ok(())
}

/// Who computes what.
#[derive(Clone, Copy)]
struct Hosts {
    /// Miners at the start.
    miners: u32,
    /// Validators as fast as they that keep up with them; fewer than a quorum convict nobody.
    validators: u32,
    /// Replays of each contribution.
    replays: f64,
    /// Share of merges that are evaluated.
    evaluated: f64,
    /// What evaluations take beside training, of what that takes.
    evaluations: f64,
}

impl Hosts {
    fn of(spec: &RunSpec) -> Self {
        let miners = u32::from(spec.pipeline.stages) * u32::from(spec.pipeline.start_replicas);
        let replays = cost(&spec.validation);
        let is_by_loss = spec.scores.by == ScoredBy::Loss;
        let evaluated = if is_by_loss { gauntlet::evaluated_share(spec, miners) } else { 0.0 };
        let evaluations = evaluated * gauntlet::cost(spec, miners);
        let needed = (f64::from(miners) * (replays + evaluations)).ceil();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count; saturates")]
        let needed = needed as u32;
        let least = if is_by_loss { spec.scores.evaluators } else { 1 }.max(spec.validation.quorum);
        Self { miners, validators: needed.max(u32::from(least)), replays, evaluated, evaluations }
    }

    /// What replays and evaluations are of all that miners and validators compute.
    fn share(self) -> f64 {
        let checks = self.replays + self.evaluations;
        checks / (1.0 + checks)
    }
}

fn numbers(spec: &RunSpec, hosts: Hosts) -> String {
    let found = SHARES.iter().flat_map(|cheats| {
        EPOCHS.iter().map(move |epochs| {
            json!({ "cheats": cheats, "epochs": epochs, "found": power(&spec.validation, *cheats, *epochs) })
        })
    });
    let found: Vec<_> = found.collect();
    json!({
        "replays_per_contribution": hosts.replays, "merges_evaluated": hosts.evaluated,
        "evaluations_per_training": hosts.evaluations,
        "share_of_compute": hosts.share(),
        "miners": hosts.miners, "validators": hosts.validators, "power": found,
    })
    .to_string()
}

fn table(spec: &RunSpec, hosts: Hosts) -> String {
    let (validation, scores) = (&spec.validation, &spec.scores);
    let Hosts { miners, validators, .. } = hosts;
    let mut text = format!(
        "replay_share {}, repeat_share {}, quorum {}\n\
         cost: {:.1} % of the swarm's compute, {validators} validators for {miners} miners as fast as they\n\n\
         probability that a miner is found within so many epochs\n{:<18}",
        validation.replay_share,
        validation.repeat_share,
        validation.quorum,
        100.0 * hosts.share(),
        "it cheats in"
    );
    if scores.by == ScoredBy::Loss {
        let evaluated = u32::from(scores.evaluated).min(miners);
        let line = format!(
            "evaluations: {:.1} % of merges, of each {} contributions by {}, {:.1} % of what training takes\n",
            100.0 * hosts.evaluated,
            evaluated,
            scores.evaluators,
            100.0 * hosts.evaluations
        );
        text.insert_str(0, &line);
    }
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
