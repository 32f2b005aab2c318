//! Versions of the wire format, and which of them a program speaks.
//!
//! A running swarm goes from one version to the next without stopping. The version in use is a part of the decided
//! [`RunState`](crate::run_state::RunState): it starts at [`WIRE_VERSION_FIRST`] and is raised by one by
//! [`Decision::Upgrade`](super::message::Decision::Upgrade). What every peer keeps to:
//!
//! ```text
//!  log      ── admit ── open ── … ── upgrade 2 ── plan ── …
//!  writes      version 1 ────────────│─ version 2 ───────   by its own fold of the log
//!  reads       every version that its program speaks ────   a message in flight is still understood
//!  decides     kinds of version 1 ───│─ kinds of 1 and 2    a later kind is void, whoever can decode it
//! ```
//!
//! **Invariant:** whether an entry is void follows from the log alone, never from the program that reads it. A kind of
//! decision that came with version 2 is void until version 2 is decided, also for programs that know it; from then
//! on every program that folds the log knows it, since one that does not has stopped at the upgrade.
//!
//! Some things are the same in all versions, so that peers of different versions understand what divides them: the
//! envelope, certificates and votes, control updates and requests for the log, the form of an entry, and the upgrade
//! itself. A push header begins with its version in all versions.

use std::fmt;

use crate::limits::{WIRE_VERSION, WIRE_VERSION_FIRST, WIRE_VERSION_OLDEST};

/// The versions that a program speaks: all from the oldest to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    oldest: u16,
    newest: u16,
}

impl Versions {
    /// What this program speaks.
    pub const PROGRAM: Self = Self::new(WIRE_VERSION_OLDEST, WIRE_VERSION);
    /// What a program speaks that knows the first version only.
    pub const FIRST: Self = Self::new(WIRE_VERSION_FIRST, WIRE_VERSION_FIRST);

    /// The versions from `oldest` to `newest`.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub const fn new(oldest: u16, newest: u16) -> Self {
        assert!(oldest <= newest, "a program speaks some version");
        Self { oldest, newest }
    }

    /// All that something may be written in that was signed in a run which uses `version`.
    #[must_use]
    pub fn up_to(version: u16) -> Self {
        Self::new(WIRE_VERSION_FIRST, version.max(WIRE_VERSION_FIRST))
    }

    /// The newest, which records announce.
    #[must_use]
    pub const fn newest(self) -> u16 {
        self.newest
    }

    /// Whether `version` is among them.
    #[must_use]
    pub const fn speaks(self, version: u16) -> bool {
        self.oldest <= version && version <= self.newest
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "{}", self.newest)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

/// The run has decided on a version that this program does not speak; the peer has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a program that speaks wire version {decided}, got one that speaks {spoken}")]
pub struct Outdated {
    /// The version that the run uses.
    pub decided: u16,
    /// What the program speaks.
    pub spoken: Versions,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_speaks_its_ends_and_nothing_beyond() {
        let versions = Versions::new(2, 3);
        let spoken: Vec<u16> = (0..6).filter(|version| versions.speaks(*version)).collect();
        assert_eq!(spoken, [2, 3]);
        assert_eq!(
            (versions.to_string(), Versions::FIRST.to_string()),
            ("2 to 3".to_owned(), "1".to_owned())
        );
    }
}
