//! `iota-node invite`: the owner of a run lets one peer in.

use std::path::{Path, PathBuf};

use clap::Args;
use iota_protocol::join::Role;
use iota_protocol::spec::JoinPolicy;
use iota_protocol::{Epoch, Identity, PeerId};

use super::join::read_spec;
use super::keys::read_key;
use super::say;
use crate::error::CliError;
use crate::invite::{InviteError, InviteFile};

#[derive(Debug, Args)]
pub(super) struct InviteOptions {
    /// Run spec, as the peer has it; its `join.policy` is "invite"
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Key file of the owner, whose public key is `join.owner`
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Who is invited: the public key that `join` names where it has no invite
    #[arg(long, value_name = "PEER")]
    peer: PeerId,
    /// Invite a validator [default: a miner]
    #[arg(long)]
    validator: bool,
    /// Last epoch in which the peer gets a place by it; the one it has by then it keeps [default: all]
    #[arg(long, value_name = "EPOCH")]
    until: Option<u32>,
    /// File to write [default: `<first digits of the peer>.invite`]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

pub(super) fn run(options: &InviteOptions) -> Result<(), CliError> {
    let spec = read_spec(&options.spec)?;
    let owner = Identity::from_secret(read_key(&options.key)?);
    let wrong = |option: &str, expected: String, got: String| {
        Err(CliError::Option { option: option.to_owned(), expected, got })
    };
    if spec.join.policy != JoinPolicy::Invite {
        let expected = "a run whose join.policy is `invite`".to_owned();
        return wrong("--spec", expected, format!("one whose policy is `{}`", spec.join.policy));
    }
    if let Some(expected) = spec.join.owner.filter(|expected| *expected != owner.peer()) {
        let expected = format!("the key of join.owner, {expected}");
        return wrong("--key", expected, format!("the key of {}", owner.peer()));
    }
    // An invite that is of no use would be found out late, and far away.
    if let Err(refusal) = spec.lists(options.peer) {
        return Err(CliError::NotAdmitted { peer: options.peer, refusal });
    }
    let role = if options.validator { Role::Validator } else { Role::Miner };
    let file = InviteFile::sign(&owner, spec.run_id(), options.peer, role, options.until.map(Epoch));
    let path = options.to.clone().unwrap_or_else(|| format!("{}.invite", options.peer.short()).into());
    write_invite(&file, &path)?;
    say(&format!("invite {}  {role} {}", path.display(), options.peer));
    Ok(())
}

/// Reads the invite at `path`.
pub(super) fn read_invite(path: &Path) -> Result<InviteFile, CliError> {
    InviteFile::read(path).map_err(|error| explain("read", error))
}

/// Writes `file` to `path`.
///
/// # Errors
/// The file cannot be written.
pub fn write_invite(file: &InviteFile, path: &Path) -> Result<(), CliError> {
    file.write(path).map_err(|error| explain("write", error))
}

fn explain(action: &'static str, error: InviteError) -> CliError {
    match error {
        InviteError::Io { path, source } => CliError::file(action, path, source),
        InviteError::Malformed { path, expected, got } => CliError::Content { path, expected, got },
    }
}
