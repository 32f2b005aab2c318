//! The verified log of a peer: entries, their chain, and the newest certificate.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use super::certificate::{Certificate, Certified, Electorate, chain_hash, chain_start};
use crate::id::{Hash, LogIndex, RunId};
use crate::limits::{ENTRY_BYTES_MAX, LOG_RANGE_BYTES_MAX, LOG_RANGE_ENTRIES_MAX};
use crate::spec::RunSpec;
use crate::wire::message::{ControlUpdate, Entry};
use crate::wire::{RejectReason, decode};

/// What became of a [`ControlUpdate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended {
    /// This many entries were new.
    By(usize),
    /// Entries before it are missing here; they have to be fetched first.
    Gap,
}

/// Decided entries, each with the chain hash after it.
#[derive(Debug)]
pub struct DecidedLog {
    run: RunId,
    electorate: Electorate,
    entries: Vec<(ByteBuf, Hash)>,
    /// Certificates by the index they cover, so that a long range can be served in parts.
    certificates: BTreeMap<LogIndex, Certificate>,
}

impl DecidedLog {
    /// The empty log of a run.
    #[must_use]
    pub fn new(spec: &RunSpec) -> Self {
        Self {
            run: spec.run_id(),
            electorate: Electorate::new(spec),
            entries: Vec::new(),
            certificates: BTreeMap::new(),
        }
    }

    /// Who certifies it.
    #[must_use]
    pub const fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// Number of entries, which is also the index of the next one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is decided yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Chain hash after the first `len` entries.
    #[must_use]
    pub fn chain(&self, len: usize) -> Option<Hash> {
        match len.checked_sub(1) {
            None => Some(chain_start(self.run)),
            Some(last) => self.entries.get(last).map(|(_, chain)| *chain),
        }
    }

    /// The newest certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificates.values().next_back()
    }

    /// Entries covered by a certificate: those that can be proven to others.
    #[must_use]
    pub fn certified(&self) -> u64 {
        self.certificate().map_or(0, |certificate| certificate.index.0 + 1)
    }

    /// The entry at `index`, decoded, with its chain hash. `None` past the end.
    ///
    /// Entries that no honest candidate would propose (undecodable ones) were decided all the same and
    /// have to be skipped alike by everyone: they are `Some(None)`.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<(Option<Entry>, Hash)> {
        let (bytes, chain) = self.entries.get(index)?;
        Some((decode(bytes, ENTRY_BYTES_MAX).ok(), *chain))
    }

    /// The bytes of the entry at `index`.
    #[must_use]
    pub fn entry_bytes(&self, index: usize) -> Option<&[u8]> {
        self.entries.get(index).map(|(bytes, _)| bytes.as_slice())
    }

    /// Appends an entry that this candidate's own consensus decided; returns its index and chain hash.
    pub fn push_decided(&mut self, entry: Vec<u8>) -> (LogIndex, Hash) {
        let chain = chain_hash(self.head(), &entry);
        self.entries.push((ByteBuf::from(entry), chain));
        (LogIndex(self.entries.len() as u64 - 1), chain)
    }

    /// Records a certificate for entries that are already here.
    pub fn set_certificate(&mut self, certificate: Certificate) {
        let len = usize::try_from(certificate.index.0).map_or(usize::MAX, |index| index.saturating_add(1));
        if self.chain(len) == Some(certificate.chain) {
            self.certificates.insert(certificate.index, certificate);
        }
    }

    /// Appends certified entries.
    ///
    /// # Errors
    /// [`RejectReason`] if the certificate does not fit the entries or the log.
    pub fn extend(&mut self, certified: &Certified) -> Result<Extended, RejectReason> {
        let update = certified.update();
        let first = usize::try_from(update.first.0).map_err(|_| RejectReason::Inconsistent("log index"))?;
        let last = first.checked_add(update.entries.len()).ok_or(RejectReason::Inconsistent("log index"))?;
        if first > self.entries.len() {
            return Ok(Extended::Gap);
        }
        if last <= self.entries.len() {
            return Ok(Extended::By(0));
        }
        let mut chain = self.chain(first).ok_or(RejectReason::Inconsistent("log index"))?;
        let chains: Vec<Hash> = update
            .entries
            .iter()
            .map(|entry| {
                chain = chain_hash(chain, entry);
                chain
            })
            .collect();
        if chain != update.certificate.chain {
            return Err(RejectReason::Certificate);
        }
        let known = self.entries.len() - first;
        let new = update.entries.iter().cloned().zip(chains).skip(known);
        self.entries.extend(new);
        self.certificates.insert(update.certificate.index, update.certificate.clone());
        Ok(Extended::By(self.entries.len() - first - known))
    }

    /// Certified entries from `from` on, as many as one message may carry, or `None` if there are none.
    #[must_use]
    pub fn range(&self, from: LogIndex) -> Option<ControlUpdate> {
        let first = usize::try_from(from.0).ok()?;
        let mut bytes = 0;
        let fitting =
            self.entries.get(first..)?.iter().take(LOG_RANGE_ENTRIES_MAX).take_while(|(entry, _)| {
                bytes += entry.len();
                bytes <= LOG_RANGE_BYTES_MAX
            });
        let end = LogIndex(from.0.saturating_add(fitting.count() as u64));
        let (index, certificate) = self.certificates.range(from..end).next_back()?;
        let last = usize::try_from(index.0).ok()?;
        let entries = self.entries.get(first..=last)?.iter().map(|(entry, _)| entry.clone()).collect();
        Some(ControlUpdate { first: from, entries, certificate: certificate.clone() })
    }

    fn head(&self) -> Hash {
        self.entries.last().map_or(chain_start(self.run), |(_, chain)| *chain)
    }
}
