//! What peers say of themselves, and when they last said it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::id::PeerId;
use crate::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, BOOK_PEERS_MAX};
use crate::time::Instant;
use crate::wire::RejectReason;
use crate::wire::message::PeerRecord;

/// The newest record of each peer.
#[derive(Clone, Debug, Default)]
pub struct Book {
    records: BTreeMap<PeerId, (Arc<PeerRecord>, Instant)>,
}

impl Book {
    /// Takes a record whose signature and number were checked. Returns whether its addresses are news.
    ///
    /// # Errors
    /// [`RejectReason`] if it breaks a limit, or the book is full of peers heard more recently.
    pub fn insert(
        &mut self,
        now: Instant,
        peer: PeerId,
        record: Arc<PeerRecord>,
    ) -> Result<bool, RejectReason> {
        let addresses = [&record.multiaddrs, &record.data_addresses];
        if addresses.iter().any(|list| {
            list.len() > ADDRESSES_MAX || list.iter().any(|address| address.len() > ADDRESS_BYTES_MAX)
        }) {
            return Err(RejectReason::Inconsistent("addresses"));
        }
        if self.records.len() >= BOOK_PEERS_MAX && !self.records.contains_key(&peer) {
            return Err(RejectReason::Full("peer records"));
        }
        let known = self.records.get(&peer).map(|(old, _)| old);
        let news = known.is_none_or(|old| {
            old.multiaddrs != record.multiaddrs || old.data_addresses != record.data_addresses
        });
        self.records.insert(peer, (record, now));
        Ok(news)
    }

    /// The newest record of `peer`.
    #[must_use]
    pub fn record(&self, peer: PeerId) -> Option<&PeerRecord> {
        self.records.get(&peer).map(|(record, _)| &**record)
    }

    /// All records, in [`PeerId`] order.
    pub fn records(&self) -> impl Iterator<Item = (PeerId, &PeerRecord)> {
        self.records.iter().map(|(peer, (record, _))| (*peer, &**record))
    }

    /// How long `peer` has been silent; `None` if it was never heard.
    #[must_use]
    pub fn silence(&self, now: Instant, peer: PeerId) -> Option<Duration> {
        self.records.get(&peer).map(|(_, heard)| now.since(*heard))
    }

    /// After this process was not running for a while, nobody was heard. Starts all silences anew, and
    /// gives members never heard of the benefit of the doubt by leaving them out.
    pub fn handle_pause(&mut self, now: Instant) {
        for (_, heard) in self.records.values_mut() {
            *heard = now;
        }
    }

    /// Forgets peers silent for longer than `silence`, except those for whom `keep` holds; returns them.
    pub fn forget(&mut self, now: Instant, silence: Duration, keep: impl Fn(PeerId) -> bool) -> Vec<PeerId> {
        let gone =
            self.records.iter().filter(|(peer, (_, heard))| !keep(**peer) && now.since(*heard) >= silence);
        let gone: Vec<PeerId> = gone.map(|(peer, _)| *peer).collect();
        for peer in &gone {
            self.records.remove(peer);
        }
        gone
    }
}
