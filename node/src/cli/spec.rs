//! Flags of `up` and `init` that choose a spec and change its fields.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use iota_protocol::Identity;
use iota_protocol::spec::Candidate;
use toml::Value;

use crate::config::{Origin, Override, ResolvedSpec, resolve_spec};
use crate::error::CliError;

/// What a miner does between two merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// Gradients are summed; one optimizer step per merge.
    Synchronous,
    /// Each miner takes its own steps between merges.
    Local,
}

#[derive(Debug, Args)]
pub(super) struct SpecOptions {
    /// Run spec to start from [default: the built-in one]
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Stages the model is cut into; the built-in one has at least as many layers
    #[arg(long, value_name = "K")]
    stages: Option<u16>,
    /// Miners of each stage
    #[arg(long, value_name = "M")]
    miners: Option<u16>,
    /// Merges of each stage
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// One optimizer step per merge, or local steps between merges
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Seed of weights, samples and assignments
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Set any field of the spec, such as `model.width=64`; repeatable
    #[arg(long = "set", value_name = "FIELD=VALUE", value_parser = Override::parse)]
    overrides: Vec<Override>,
}

impl SpecOptions {
    /// The number of merges asked for.
    pub(super) const fn epochs(&self) -> Option<u32> {
        self.epochs
    }

    /// The spec with all flags applied, not yet validated.
    ///
    /// # Errors
    /// The spec cannot be read or a value has the wrong type.
    pub(super) fn resolve(&self, matches: &ArgMatches) -> Result<ResolvedSpec, CliError> {
        let mut overrides = self.overrides.clone();
        for change in &mut overrides {
            change.origin = origin(matches, "overrides");
        }
        let mut add = |flag: &str, key: &str, value: Option<Value>| {
            let change = |value| Override { key: key.to_owned(), value, origin: origin(matches, flag) };
            overrides.extend(value.map(change));
        };
        let integer = |value: Option<u32>| value.map(|value| Value::Integer(value.into()));
        add("stages", "pipeline.stages", integer(self.stages.map(u32::from)));
        add("miners", "pipeline.start_replicas", integer(self.miners.map(u32::from)));
        add("epochs", "training.epochs", integer(self.epochs));
        add("seed", "seed", self.seed.map(|seed| Value::Integer(seed.cast_signed())));
        let mode = self.mode.map(|mode| match mode {
            Mode::Synchronous => "synchronous",
            Mode::Local => "local",
        });
        add("mode", "training.mode", mode.map(|mode| Value::String(mode.to_owned())));
        let resolved = resolve_spec(self.spec.as_deref(), &overrides)?;
        let layers = self.stages.filter(|stages| {
            let chosen = self.spec.is_some() || overrides.iter().any(|change| change.key == "model.layers");
            !chosen && u32::from(*stages) > resolved.spec.model.layers
        });
        let Some(stages) = layers else { return Ok(resolved) };
        // The built-in model has a layer for each of its stages; one that is cut into more has as many.
        let value = Value::Integer(stages.into());
        overrides.push(Override { key: "model.layers".to_owned(), value, origin: origin(matches, "stages") });
        resolve_spec(None, &overrides)
    }
}

/// The spec with somebody who leads, which every spec needs, also where nobody will.
pub(super) fn led(mut resolved: ResolvedSpec) -> ResolvedSpec {
    let candidates = &mut resolved.spec.orchestrator.candidates;
    if candidates.is_empty() {
        candidates.push(Candidate { peer: Identity::from_secret([0; 32]).peer(), priority: 0 });
    }
    resolved
}

/// Where the value of the flag `id` comes from, given that it has one.
fn origin(matches: &ArgMatches, id: &str) -> Origin {
    match matches.value_source(id) {
        Some(ValueSource::CommandLine) => Origin::Flag,
        Some(ValueSource::EnvVariable) => Origin::Env,
        _ => Origin::File,
    }
}
