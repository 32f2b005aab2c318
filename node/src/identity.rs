//! The node's secret key on disk: 64 hexadecimal digits in a file only its owner may read.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::net::{PeerKey, public_key};

/// Longest key file worth reading: the digits and a line end.
const FILE_BYTES_MAX: u64 = 128;
/// Owner may read and write, nobody else anything.
const FILE_MODE: u32 = 0o600;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("use key file {}: {source}", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no key.
    #[error("read key file {}: expected 64 hexadecimal digits, got {got}", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// What is in it, without the content.
        got: String,
    },
    /// Others may read the file.
    #[error("read key file {}: expected mode 0600, got {mode:04o}", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is another peer's.
    #[error("use key file {}: expected peer {expected}, got {got}", path.display())]
    WrongPeer {
        /// The key file.
        path: PathBuf,
        /// The public key asked for, in hexadecimal.
        expected: String,
        /// The public key of the file, in hexadecimal.
        got: String,
    },
}

/// Reads the secret in `path`, or creates one there.
///
/// # Errors
/// A file that is no key, that others may read, or that cannot be read or created.
pub fn load_or_create_secret(path: &Path) -> Result<[u8; 32], IdentityError> {
    let io = |source| IdentityError::Io { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    let created = fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    match created {
        Ok(mut file) => {
            let secret = iroh::SecretKey::generate().to_bytes();
            let text = format!("{}\n", hex::encode(secret));
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            // Half a key would stand in the way of a whole one.
            written.inspect_err(|_| drop(fs::remove_file(path))).map_err(io)?;
            Ok(secret)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(error) => Err(io(error)),
    }
}

/// Checks that a secret belongs to the peer it should.
///
/// # Errors
/// [`IdentityError::WrongPeer`] naming both keys.
pub fn expect_peer(path: &Path, secret: &[u8; 32], expected: &PeerKey) -> Result<(), IdentityError> {
    let got = public_key(secret);
    if got == *expected {
        return Ok(());
    }
    Err(IdentityError::WrongPeer {
        path: path.to_path_buf(),
        expected: hex::encode(expected),
        got: hex::encode(got),
    })
}

fn load(path: &Path) -> Result<[u8; 32], IdentityError> {
    let io = |source| IdentityError::Io { path: path.to_path_buf(), source };
    let malformed = |got: String| IdentityError::Malformed { path: path.to_path_buf(), got };
    let metadata = fs::metadata(path).map_err(io)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_path_buf(), mode });
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(malformed(format!("{} bytes", metadata.len())));
    }
    let text = fs::read(path).map_err(io)?;
    let digits = text.trim_ascii();
    let mut secret = [0; 32];
    hex::decode_to_slice(digits, &mut secret).map_err(|error| match error {
        hex::FromHexError::InvalidHexCharacter { index, .. } => {
            malformed(format!("another character at position {index}"))
        }
        _ => malformed(format!("{} characters", digits.len())),
    })?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_secret_is_read_back_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/key");
        let secret = load_or_create_secret(&path).unwrap();
        assert_eq!(load_or_create_secret(&path).unwrap(), secret);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, FILE_MODE);
    }

    #[test]
    fn a_file_that_is_no_key_is_named_with_what_was_expected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for (content, got) in [("abc\n", "3 characters"), (&"zz".repeat(32)[..], "position 0")] {
            let _replaced = fs::remove_file(&path);
            load_or_create_secret(&path).unwrap();
            fs::write(&path, content).unwrap();
            let error = load_or_create_secret(&path).unwrap_err().to_string();
            assert!(error.contains("expected 64 hexadecimal digits"), "{error}");
            assert!(error.contains(got) && error.contains("key"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        load_or_create_secret(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_or_create_secret(&path).unwrap_err().to_string();
        assert!(error.contains("got 0644"), "{error}");
    }

    #[test]
    fn another_peers_key_is_refused_with_both_names() {
        let expected = public_key(&[1; 32]);
        let error = expect_peer(Path::new("k"), &[2; 32], &expected).unwrap_err();
        assert!(error.to_string().contains(&hex::encode(expected)));
        expect_peer(Path::new("k"), &[1; 32], &expected).unwrap();
    }
}
