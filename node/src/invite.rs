//! Invite files: what the owner of a run gives a peer, and the peer shows.
//!
//! TOML, since it goes by mail and chat. It is no secret: it is good for one peer, which alone has its key, and stands in that
//! peer's records for everybody to read.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use iota_protocol::join::{Invite, Role};
use iota_protocol::{Epoch, Identity, PeerId, RunId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Longest invite file worth reading: four times what we write.
const FILE_BYTES_MAX: u64 = 4096;
/// Bytes of an ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

/// Why there is no invite.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// The file cannot be read or written.
    #[error("use invite file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no invite.
    #[error("read invite file {}: expected {expected}, got {got}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        got: String,
    },
}

/// An invite and what it is for, which its signature covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteFile {
    /// The run.
    pub run: RunId,
    /// Who is invited.
    pub peer: PeerId,
    /// As what.
    pub role: Role,
    /// The last epoch in which it is good, if there is one.
    pub until: Option<Epoch>,
    /// 128 hexadecimal digits.
    signature: String,
}

impl InviteFile {
    /// Invites `peer` to `run`.
    #[must_use]
    pub fn sign(owner: &Identity, run: RunId, peer: PeerId, role: Role, until: Option<Epoch>) -> Self {
        let invite = Invite::sign(owner, run, peer, role, until);
        Self { run, peer, role, until, signature: hex::encode(invite.signature) }
    }

    /// Reads the invite at `path`. Whether it is good its run's spec says.
    ///
    /// # Errors
    /// The file cannot be read, or is no invite.
    pub fn read(path: &Path) -> Result<Self, InviteError> {
        let io = |source| InviteError::Io { path: path.to_owned(), source };
        let malformed = |expected: &str, got: String| InviteError::Malformed {
            path: path.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let mut text = String::new();
        let file = fs::File::open(path).map_err(io)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(malformed("an invite of a few lines", format!("more than {FILE_BYTES_MAX} bytes")));
        }
        let file: Self = toml::from_str(&text).map_err(|error| {
            malformed("what `iota-node invite` writes", error.message().trim_end().to_owned())
        })?;
        match hex::decode(&file.signature) {
            Ok(bytes) if bytes.len() == SIGNATURE_BYTES => Ok(file),
            _ => Err(malformed(
                "a signature of 128 hexadecimal digits",
                format!("{} characters", file.signature.chars().count()),
            )),
        }
    }

    /// Writes it to `path`, over an older one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), InviteError> {
        let io = |source| InviteError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let text = toml::to_string(self).map_err(|error| io(std::io::Error::other(error)))?;
        let text =
            format!("# An invite to a run. Its peer joins with `iota-node join --invite FILE`.\n{text}");
        fs::write(path, text).map_err(io)
    }

    /// What the peer shows.
    #[must_use]
    pub fn invite(&self) -> Invite {
        // A file that was read or signed has a signature in digits.
        let signature = ByteBuf::from(hex::decode(&self.signature).unwrap_or_default());
        Invite { role: self.role, until: self.until, signature }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite(until: Option<Epoch>) -> InviteFile {
        let (owner, peer) = (Identity::from_secret([1; 32]), Identity::from_secret([2; 32]).peer());
        InviteFile::sign(&owner, RunId([3; 32]), peer, Role::Validator, until)
    }

    #[test]
    fn an_invite_is_read_back_and_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/one.invite");
        for until in [None, Some(Epoch(40))] {
            let written = invite(until);
            written.write(&path).unwrap();
            let read = InviteFile::read(&path).unwrap();
            assert_eq!(read, written);
            let owner = Identity::from_secret([1; 32]).peer();
            assert!(read.invite().verifies(owner, read.run, read.peer));
        }
    }

    #[test]
    fn a_file_that_is_no_invite_is_refused_with_what_was_expected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.invite");
        invite(None).write(&path).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let cases = [
            ("peer = 3\n".to_owned(), "what `iota-node invite` writes, got "),
            (good.replace("validator", "owner"), "unknown variant `owner`"),
            (good.replace("signature = \"", "signature = \"0"), "128 hexadecimal digits, got 129 characters"),
            ("#".repeat(5000), "a few lines, got more than 4096 bytes"),
        ];
        for (text, expected) in cases {
            fs::write(&path, text).unwrap();
            let error = InviteFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("one.invite"), "{error}");
        }
        assert!(InviteFile::read(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
