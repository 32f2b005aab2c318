//! Key files on the command line: [`crate::identity`] with the errors of the binary.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::CliError;
use crate::identity::{IdentityError, load_or_create_secret};

/// Only the owner may read or write a key.
const KEY_FILE_MODE: u32 = 0o600;

/// Reads the secret in the file at `path`.
///
/// # Errors
/// The file cannot be read, others may read it, or it is no key.
pub fn read_key(path: &Path) -> Result<[u8; 32], CliError> {
    // A key that was named must be there: making one would be another identity than the one meant.
    fs::metadata(path).map_err(|error| CliError::file("read", path, error))?;
    read_or_create_key(path)
}

/// Reads the secret in the file at `path`, or makes one if there is no file.
///
/// # Errors
/// As [`read_key`], or the file cannot be created.
pub fn read_or_create_key(path: &Path) -> Result<[u8; 32], CliError> {
    load_or_create_secret(path).map_err(|error| match error {
        IdentityError::Io { path, source } => CliError::file("read", path, source),
        IdentityError::Malformed { path, got } => {
            CliError::Key { path, expected: "64 hexadecimal digits".to_owned(), got }
        }
        IdentityError::Exposed { path, mode } => {
            CliError::Key { path, expected: "mode 0600".to_owned(), got: format!("mode {mode:04o}") }
        }
        IdentityError::WrongPeer { path, expected, got } => CliError::Key { path, expected, got },
    })
}

/// Writes `secret` to a new file at `path`.
///
/// # Errors
/// The file exists or cannot be written.
pub fn create_key(path: &Path, secret: &[u8; 32]) -> Result<(), CliError> {
    try_create(path, secret).map_err(|error| CliError::file("create", path, error))
}

fn try_create(path: &Path, secret: &[u8; 32]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(KEY_FILE_MODE).open(path)?;
    writeln!(file, "{}", hex::encode(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_key_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/peer.key");
        create_key(&path, &[7; 32]).unwrap();
        assert_eq!(read_key(&path).unwrap(), [7; 32]);
        assert!(create_key(&path, &[8; 32]).is_err());
    }

    #[test]
    fn a_named_key_that_is_not_there_is_an_error_and_stays_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.key");
        assert!(read_key(&path).unwrap_err().to_string().contains("peer.key"));
        assert!(!path.exists());
    }
}
