//! The verified log of a peer: entries, their chain, and the newest certificate.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use super::certificate::{Certificate, Certified, Electorate, chain_hash, chain_start};
use super::snapshot::named;
use crate::id::{Hash, LogIndex};
use crate::limits::{ENTRY_BYTES_MAX, ENTRY_HASH_BYTES, LOG_RANGE_ENTRIES_MAX};
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

/// Decided entries, each with the chain hash after it, but for those that a snapshot stands for.
#[derive(Debug)]
pub struct DecidedLog {
    electorate: Electorate,
    /// Entries that are no longer here.
    first: usize,
    /// Chain hash after those.
    before: Hash,
    entries: Vec<(ByteBuf, Hash)>,
    /// Certificates by the index they cover, so that a long range can be served in parts.
    certificates: BTreeMap<LogIndex, Certificate>,
}

impl DecidedLog {
    /// The empty log of a run.
    #[must_use]
    pub fn new(spec: &RunSpec) -> Self {
        let (electorate, before) = (Electorate::new(spec), chain_start(spec.run_id()));
        Self { electorate, first: 0, before, entries: Vec::new(), certificates: BTreeMap::new() }
    }

    /// The log after `first` entries with this chain hash, which is empty so far.
    #[must_use]
    pub fn after(&self, first: usize, before: Hash) -> Self {
        let electorate = self.electorate.clone();
        Self { electorate, first, before, entries: Vec::new(), certificates: BTreeMap::new() }
    }

    /// The log from the first of these entries on, and the state that this entry names. Their certificate proves the chain
    /// hash before them, too: no other leads to it.
    ///
    /// # Errors
    /// [`RejectReason`] if the certificate does not fit, or the first entry names no state.
    pub fn anchored(&self, before: Hash, certified: &Certified) -> Result<(Self, Hash), RejectReason> {
        let index = certified.update().first;
        let first = usize::try_from(index.0).map_err(|_| RejectReason::Inconsistent("log index"))?;
        let mut log = self.after(first, before);
        log.extend(certified)?;
        let entry = log.entry(first).and_then(|(entry, _)| entry);
        let state = named(index, entry.as_ref()).ok_or(RejectReason::Inconsistent("snapshot"))?;
        Ok((log, state))
    }

    /// Lets go of the entries before `first`.
    pub fn forget(&mut self, first: usize) {
        let Some(count) = first.checked_sub(self.first).filter(|count| *count <= self.entries.len()) else {
            return;
        };
        if let Some(before) = self.chain(first) {
            self.entries.drain(..count);
            self.certificates = self.certificates.split_off(&LogIndex(first as u64));
            (self.first, self.before) = (first, before);
        }
    }

    /// Index of the first entry that is here.
    #[must_use]
    pub const fn first(&self) -> usize {
        self.first
    }

    /// Who certifies it.
    #[must_use]
    pub const fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// Number of entries decided, which is also the index of the next one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.first + self.entries.len()
    }

    /// Whether nothing is decided yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chain hash after the first `len` entries; nothing if that is not known here.
    #[must_use]
    pub fn chain(&self, len: usize) -> Option<Hash> {
        match len.checked_sub(self.first)?.checked_sub(1) {
            None => Some(self.before),
            Some(last) => self.entries.get(last).map(|(_, chain)| *chain),
        }
    }

    fn get(&self, index: usize) -> Option<&(ByteBuf, Hash)> {
        self.entries.get(index.checked_sub(self.first)?)
    }

    fn slice(&self, range: std::ops::Range<usize>) -> Option<&[(ByteBuf, Hash)]> {
        self.entries.get(range.start.checked_sub(self.first)?..range.end.checked_sub(self.first)?)
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

    /// The entry at `index`, decoded, with its chain hash. `None` past the end, and before the beginning.
    ///
    /// Entries that no honest candidate would propose (undecodable ones) were decided all the same and
    /// have to be skipped alike by everyone: they are `Some(None)`.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<(Option<Entry>, Hash)> {
        let (bytes, chain) = self.get(index)?;
        Some((decode(bytes, ENTRY_BYTES_MAX).ok(), *chain))
    }

    /// The bytes of the entry at `index`.
    #[must_use]
    pub fn entry_bytes(&self, index: usize) -> Option<&[u8]> {
        self.get(index).map(|(bytes, _)| bytes.as_slice())
    }

    /// Appends an entry that this candidate's own consensus decided; returns its index and chain hash.
    pub fn push_decided(&mut self, entry: Vec<u8>) -> (LogIndex, Hash) {
        let chain = chain_hash(self.head(), Hash::of(&entry));
        self.entries.push((ByteBuf::from(entry), chain));
        (LogIndex(self.len() as u64 - 1), chain)
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
        if first > self.len() {
            return Ok(Extended::Gap);
        }
        if last <= self.len() {
            return Ok(Extended::By(0));
        }
        // What lies before the beginning cannot be compared any more, and need not be.
        let from = first.max(self.first);
        let mut chain = self.chain(from).ok_or(RejectReason::Inconsistent("log index"))?;
        let chains: Vec<Hash> = update
            .entries
            .iter()
            .skip(from - first)
            .map(|entry| {
                chain = chain_hash(chain, Hash::of(entry));
                chain
            })
            .collect();
        if update.beyond.iter().fold(chain, |chain, entry| chain_hash(chain, *entry))
            != update.certificate.chain
        {
            return Err(RejectReason::Certificate);
        }
        let known = self.len();
        let new = update.entries.iter().skip(from - first).cloned().zip(chains).skip(known - from);
        self.entries.extend(new);
        self.set_certificate(update.certificate.clone());
        Ok(Extended::By(self.len() - known))
    }

    /// Entries from `from` on with what proves them, in no more than `bytes`, or `None` if there are none or the nearest
    /// certificate is too far. No range need hold a certificate of its own: after many decisions at once, or a restart
    /// of all candidates, certificates are far apart.
    #[must_use]
    pub fn range(&self, from: LogIndex, bytes: usize) -> Option<ControlUpdate> {
        let first = usize::try_from(from.0).ok()?;
        let fitting = |bytes: usize| {
            let mut room = bytes;
            let entries =
                self.slice(first..self.len()).unwrap_or_default().iter().take(LOG_RANGE_ENTRIES_MAX);
            entries
                .take_while(|(entry, _)| {
                    let left = room.checked_sub(entry.len());
                    room = left.unwrap_or(0);
                    left.is_some()
                })
                .count()
        };
        let end = LogIndex(from.0.saturating_add(fitting(bytes) as u64));
        let within = self.certificates.range(from..end).next_back();
        let (index, certificate) = within.or_else(|| self.certificates.range(end..).next())?;
        let certified = usize::try_from(index.0).ok()?;
        let last = match within {
            Some(_) => certified,
            // The hashes up to the certificate take room away.
            None => {
                let hashes = (certified - first).checked_mul(ENTRY_HASH_BYTES)?;
                (first + fitting(bytes.checked_sub(hashes)?)).checked_sub(1)?
            }
        };
        let entries: Vec<_> = self.slice(first..last + 1)?.iter().map(|(entry, _)| entry.clone()).collect();
        let beyond = self.slice(last + 1..certified + 1)?.iter().map(|(entry, _)| Hash::of(entry)).collect();
        (!entries.is_empty()).then(|| ControlUpdate {
            first: from,
            entries,
            beyond,
            certificate: certificate.clone(),
        })
    }

    fn head(&self) -> Hash {
        self.entries.last().map_or(self.before, |(_, chain)| *chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Identity;
    use crate::limits::LOG_RANGE_BYTES_MAX;
    use crate::log::Certifier;
    use crate::spec::{Candidate, OrchestratorSpec};

    fn spec(candidate: &Identity) -> RunSpec {
        let candidates = vec![Candidate { peer: candidate.peer(), priority: 0 }];
        RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() }
    }

    /// A log of entries of `bytes` each, of which only the last is certified.
    fn certified_at_its_end(entries: usize, bytes: usize) -> (RunSpec, DecidedLog) {
        let candidate = Identity::from_secret([1; 32]);
        let spec = spec(&candidate);
        let mut log = DecidedLog::new(&spec);
        let mut certifier = Certifier::new(log.electorate().clone(), 0);
        for number in 0..entries {
            let mut entry = vec![0; bytes];
            entry[..8].copy_from_slice(&number.to_le_bytes());
            let (index, chain) = log.push_decided(entry);
            if number + 1 == entries {
                certifier.vote(&candidate, index, chain);
            }
        }
        log.set_certificate(certifier.latest().expect("its own vote is a majority").clone());
        (spec, log)
    }

    /// Fetches the log range by range; the number of ranges, if it has arrived.
    fn fetch(spec: &RunSpec, from: &DecidedLog, bytes: usize) -> Option<usize> {
        let mut log = DecidedLog::new(spec);
        let mut ranges = 0;
        while log.len() < from.len() {
            let update = from.range(LogIndex(log.len() as u64), bytes)?;
            assert!(update.entries.iter().map(|entry| entry.len()).sum::<usize>() <= bytes);
            log.extend(&log.electorate().certify(update).expect("a valid certificate")).expect("it fits");
            ranges += 1;
        }
        assert_eq!((log.chain(log.len()), log.certificate()), (from.chain(from.len()), from.certificate()));
        Some(ranges)
    }

    #[test]
    fn a_log_is_fetched_in_parts_though_only_its_end_is_certified() {
        let (spec, log) = certified_at_its_end(LOG_RANGE_ENTRIES_MAX * 2 + 1, 8);
        assert_eq!(fetch(&spec, &log, LOG_RANGE_BYTES_MAX), Some(3));
        let (spec, log) = certified_at_its_end(20, 1000);
        assert_eq!(fetch(&spec, &log, 4000), Some(7), "hashes take room away");
        assert_eq!(fetch(&spec, &log, 19 * ENTRY_HASH_BYTES + 1000), Some(20));
        assert_eq!(fetch(&spec, &log, 1000), None, "no room for the hashes");
    }

    #[test]
    fn a_range_whose_hashes_do_not_lead_to_the_certificate_is_refused() {
        let (spec, log) = certified_at_its_end(20, 1000);
        let mut update = log.range(LogIndex(0), 4000).expect("a range");
        update.beyond[3] = Hash::of(b"another");
        let mut receiver = DecidedLog::new(&spec);
        let certified = log.electorate().certify(update).expect("the signatures are right");
        assert_eq!(receiver.extend(&certified), Err(RejectReason::Certificate));
        assert!(receiver.is_empty());
    }
}
