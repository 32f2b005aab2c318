//! `iota-node init`: a run spec with comments, and the keys of its candidates.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args};
use iota_protocol::spec::{Candidate, JoinPolicy};
use iota_protocol::{Identity, PeerId, RunSpec};

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
    /// Orchestrator candidates to make keys for; with `--set join.policy=invite` the owner gets one too
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
    let mut folder = RunFolder::new(&options.dir, options.candidates)?;
    resolved.spec.orchestrator.candidates = folder.candidates();
    let join = &mut resolved.spec.join;
    if join.policy == JoinPolicy::Invite && join.owner.is_none() {
        join.owner = Some(folder.make_owner()?);
    }
    folder.write(resolved.validated()?)
}

/// The folder of a run to be, with the keys of its candidates.
pub(super) struct RunFolder {
    dir: PathBuf,
    /// Key files of candidates and whose they are.
    keys: Vec<(PathBuf, PeerId)>,
    /// Key file of who invites, if one was made.
    owner: Option<(PathBuf, PeerId)>,
}

impl RunFolder {
    /// Makes the keys of `candidates`, in a folder that has no run yet.
    pub(super) fn new(dir: &Path, candidates: u32) -> Result<Self, CliError> {
        let path = dir.join("run.toml");
        if path.exists() {
            let expected = "a folder without a run.toml".to_owned();
            let got = path.display().to_string();
            return Err(CliError::Option { option: "--dir".to_owned(), expected, got });
        }
        let key = |index: u32| {
            let path = dir.join(format!("keys/candidate-{index}.key"));
            let peer = Identity::from_secret(read_or_create_key(&path)?).peer();
            Ok((path, peer))
        };
        let keys = (0..candidates).map(key).collect::<Result<_, CliError>>()?;
        Ok(Self { dir: dir.to_owned(), keys, owner: None })
    }

    /// Makes the key of who invites.
    fn make_owner(&mut self) -> Result<PeerId, CliError> {
        let path = self.dir.join("keys/owner.key");
        let owner = Identity::from_secret(read_or_create_key(&path)?).peer();
        self.owner = Some((path, owner));
        Ok(owner)
    }

    /// The candidates. The first is preferred, so that it is clear who leads when all are well.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let priorities = (0..u32::try_from(self.keys.len()).unwrap_or(u32::MAX)).rev();
        self.keys.iter().zip(priorities).map(|(&(_, peer), priority)| Candidate { peer, priority }).collect()
    }

    /// Writes the spec, and tells what was made.
    pub(super) fn write(&self, spec: &RunSpec) -> Result<(), CliError> {
        let path = self.dir.join("run.toml");
        let mut out = std::io::stdout().lock();
        fs::write(&path, format!("{HEADER}{}", annotated(spec, |_| None)))
            .map_err(|error| CliError::file("write", &path, error))?;
        for (key, peer) in self.keys.iter().chain(&self.owner) {
            let _ = writeln!(out, "key  {}  {peer}", key.display());
        }
        let _ = writeln!(out, "spec {}  {}", path.display(), spec.run_id());
        let _ = writeln!(
            std::io::stderr().lock(),
            "next: iota-node join --spec {} --key {}",
            path.display(),
            self.dir.join("keys/candidate-0.key").display()
        );
        Ok(())
    }
}
