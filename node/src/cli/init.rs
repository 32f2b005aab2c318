//! `iota-node init`: a run spec with comments, and the keys of its candidates.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::{ArgMatches, Args};
use iota_protocol::spec::Candidate;
use iota_protocol::{Identity, PeerId};

use super::keys::read_or_create_key;
use super::spec::SpecOptions;
use crate::config::annotated;
use crate::error::CliError;

#[derive(Debug, Args)]
pub(super) struct InitOptions {
    #[command(flatten)]
    spec: SpecOptions,
    /// Folder to write `run.toml` and `keys/` to
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Orchestrator candidates to make keys for
    #[arg(long, default_value_t = 1, value_name = "N")]
    candidates: u32,
    /// Name of the run, for people
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// What a reader of the file should know first.
const HEADER: &str = "\
# A run of the IOTA swarm. Everyone who joins must have this file byte for byte equal in meaning: its
# hash is the run's identity. `iota-node join --spec run.toml --bootstrap <address>` joins it.

";

pub(super) fn run(options: &InitOptions, matches: &ArgMatches) -> Result<(), CliError> {
    let mut resolved = options.spec.resolve(matches)?;
    if let Some(name) = &options.name {
        resolved.spec.name.clone_from(name);
    }
    let path = options.dir.join("run.toml");
    if path.exists() {
        let expected = "a folder without a run.toml".to_owned();
        return Err(CliError::Option {
            option: "--dir".to_owned(),
            expected,
            got: path.display().to_string(),
        });
    }
    let keys: Vec<PathBuf> = (0..options.candidates)
        .map(|index| options.dir.join(format!("keys/candidate-{index}.key")))
        .collect();
    let peers = keys.iter().map(|path| Ok(Identity::from_secret(read_or_create_key(path)?).peer()));
    let peers = peers.collect::<Result<Vec<PeerId>, CliError>>()?;
    // The first candidate is preferred, so that it is clear who leads when all are well.
    let priorities = (0..options.candidates).rev();
    resolved.spec.orchestrator.candidates =
        peers.iter().zip(priorities).map(|(&peer, priority)| Candidate { peer, priority }).collect();
    let spec = resolved.validated()?;

    let mut out = std::io::stdout().lock();
    fs::write(&path, format!("{HEADER}{}", annotated(spec, |_| None)))
        .map_err(|error| CliError::file("write", &path, error))?;
    for (key, peer) in keys.iter().zip(&peers) {
        let _ = writeln!(out, "key  {}  {peer}", key.display());
    }
    let _ = writeln!(out, "spec {}  {}", path.display(), spec.run_id());
    let _ = writeln!(
        std::io::stderr().lock(),
        "next: iota-node join --spec {} --key {}",
        path.display(),
        options.dir.join("keys/candidate-0.key").display()
    );
    Ok(())
}
