//! `iota-node proof` and `iota-node verify-proof`: why a miner or validator lost its place for good, for anybody to check.

use std::path::PathBuf;

use clap::Args;
use iota_protocol::PeerId;

use super::checkpoint::block_on;
use super::join::read_spec;
use super::say;
use crate::error::CliError;
use crate::proof::{Outcome, ProofError, collect, verify as verify_file};

#[derive(Debug, Args)]
pub(super) struct ProofOptions {
    /// Run spec, the same for everyone in the run
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Folder of a node that took part, and has stopped
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Who lost its place
    #[arg(long, value_name = "PEER")]
    peer: PeerId,
    /// File to write
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct VerifyProofOptions {
    /// File that `proof` has written, or a candidate that found two messages under one number
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn run(options: &ProofOptions) -> Result<(), CliError> {
    let spec = read_spec(&options.spec)?;
    let collected = block_on(collect(&spec, &options.data_dir, options.peer))?;
    let proof = collected.map_err(|error| match error {
        ProofError::Innocent(peer) => CliError::Option {
            option: "--peer".to_owned(),
            expected: "a peer that lost its place for good in the log of this node".to_owned(),
            got: peer.to_string(),
        },
        error => CliError::Folder { path: options.data_dir.clone(), reason: error.to_string() },
    })?;
    let bytes = proof.to_bytes();
    std::fs::write(&options.to, &bytes).map_err(|error| CliError::file("write", &options.to, error))?;
    say(&format!(
        "{} entries of the log and {} blobs, {} bytes: {}",
        proof.log.entries.len(),
        proof.blobs.len(),
        bytes.len(),
        options.to.display()
    ));
    Ok(())
}

pub(super) fn verify(options: &VerifyProofOptions) -> Result<(), CliError> {
    let path = &options.file;
    let bytes = std::fs::read(path).map_err(|error| CliError::file("read", path, error))?;
    let outcome = verify_file(&bytes).map_err(|error| CliError::Content {
        path: path.clone(),
        expected: "a proof that a peer lost its place for good".to_owned(),
        got: error.to_string(),
    })?;
    say(&outcome.to_string());
    match outcome {
        Outcome::Proved(..) => Ok(()),
        Outcome::NotProved(..) => Err(CliError::NotProved { path: path.clone() }),
    }
}
