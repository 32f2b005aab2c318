//! What peers say of themselves, and when they last said it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{PeerId, StageIndex};
use crate::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_MAX, BOOK_PEERS_MAX, QUEUE_TOLD_MAX, RECORDS_AT_ONCE_MAX,
    RECORDS_PER_HEARTBEAT_MAX,
};
use crate::pace::{Smoothed, patience};
use crate::peer::speed::Speed;
use crate::time::Instant;
use crate::wire::RejectReason;
use crate::wire::message::{PeerRecord, WeightsRecord};

/// What a record says that the one before did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// Where its peer can be reached.
    pub addresses: bool,
    /// What the orchestrator decides by: whether its peer asks for a place or leaves, what it shows for one, and the weights
    /// it holds.
    pub standing: bool,
    /// That its peer has forgotten what was pushed to it, or may have.
    pub forgot: bool,
}

/// The newest record of a peer, and how its records come.
#[derive(Clone, Debug)]
struct Heard {
    record: Arc<PeerRecord>,
    at: Instant,
    /// Intervals between its records; nothing with the first.
    gaps: Option<Smoothed>,
    /// When the next would be due, had those before come as evenly as they may.
    due: Instant,
}

/// The newest record of each peer.
#[derive(Clone, Debug, Default)]
pub struct Book {
    records: BTreeMap<PeerId, Heard>,
    speeds: BTreeMap<PeerId, Speed>,
    /// The median of the ordinary intervals between the records of each peer, when it was last looked for.
    usual_gap: Option<Smoothed>,
    /// Records since then.
    since_usual: usize,
}

impl Book {
    /// Takes a record whose signature and number were checked. Returns what in it is new.
    ///
    /// # Errors
    /// [`RejectReason`] if it breaks a limit, or the book is full of peers heard more recently.
    pub fn insert(
        &mut self,
        now: Instant,
        peer: PeerId,
        record: Arc<PeerRecord>,
    ) -> Result<News, RejectReason> {
        let addresses = [&record.multiaddrs, &record.data_addresses];
        if addresses.iter().any(|list| {
            list.len() > ADDRESSES_MAX || list.iter().any(|address| address.len() > ADDRESS_BYTES_MAX)
        }) {
            return Err(RejectReason::Inconsistent("addresses"));
        }
        if record.queue.len() > QUEUE_TOLD_MAX {
            return Err(RejectReason::Inconsistent("queue"));
        }
        if record.no_confidence.as_ref().is_some_and(|vote| vote.voter != peer) {
            return Err(RejectReason::Inconsistent("vote against a leader"));
        }
        if record.incarnation > record.sequence {
            return Err(RejectReason::Inconsistent("incarnation"));
        }
        if !self.records.contains_key(&peer) && self.records.len() >= BOOK_PEERS_MAX {
            return Err(RejectReason::Full("peer records"));
        }
        if let (Some(weights), 1..) = (record.weights, record.speed_milli) {
            let (stage, version, speed) = (weights.stage, weights.version, f64::from(record.speed_milli));
            let known = self.speeds.entry(peer).or_insert_with(|| Speed::new(stage, version, speed));
            known.measure(stage, version, speed);
        }
        match self.records.entry(peer) {
            Entry::Vacant(vacant) => {
                vacant.insert(Heard { record, at: now, gaps: None, due: now });
                // What it took from this process before may have died with an earlier one of its own.
                Ok(News { addresses: true, standing: true, forgot: true })
            }
            Entry::Occupied(occupied) => {
                let heard = occupied.into_mut();
                heard.gaps = Some(Smoothed::with(heard.gaps, now.since(heard.at)));
                self.since_usual += 1;
                let old = &heard.record;
                let news = News {
                    addresses: old.multiaddrs != record.multiaddrs
                        || old.data_addresses != record.data_addresses,
                    standing: old.weights != record.weights
                        || (old.miner, old.leaving) != (record.miner, record.leaving)
                        || old.credential != record.credential,
                    forgot: old.incarnation < record.incarnation,
                };
                (heard.record, heard.at) = (record, now);
                if self.since_usual >= self.records.len() {
                    self.measure_usual();
                }
                Ok(news)
            }
        }
    }

    /// Looks for the median of all peers' intervals. Each peer sends a record in a heartbeat, so after as many as there are peers
    /// that is once in a heartbeat. Of two in the middle it is the shorter, so that half of the peers cannot raise it.
    fn measure_usual(&mut self) {
        self.since_usual = 0;
        let mut gaps: Vec<Smoothed> = self.records.values().filter_map(|heard| heard.gaps).collect();
        let middle = gaps.len().saturating_sub(1) / 2;
        self.usual_gap =
            (!gaps.is_empty()).then(|| *gaps.select_nth_unstable_by_key(middle, |gap| gap.ordinary()).1);
    }

    /// Counts a record of a peer that is in the book. Whether it has sent more than [`RECORDS_PER_HEARTBEAT_MAX`] for so long
    /// that this one is not to be taken (the generic cell rate algorithm, ITU-T I.371).
    pub fn is_flooded(&mut self, now: Instant, peer: PeerId, heartbeat: Duration) -> bool {
        let Some(heard) = self.records.get_mut(&peer) else { return false };
        let interval = heartbeat / RECORDS_PER_HEARTBEAT_MAX;
        let next = now.max(heard.due);
        if next.since(now) > interval * RECORDS_AT_ONCE_MAX {
            return true;
        }
        heard.due = next + interval;
        false
    }

    /// The newest record of `peer`.
    #[must_use]
    pub fn record(&self, peer: PeerId) -> Option<&PeerRecord> {
        self.records.get(&peer).map(|heard| &*heard.record)
    }

    /// The weights that `peer` says it holds.
    #[must_use]
    pub fn weights(&self, peer: PeerId) -> Option<WeightsRecord> {
        self.record(peer).and_then(|record| record.weights)
    }

    /// Whether `peer` says that it leaves.
    #[must_use]
    pub fn leaves(&self, peer: PeerId) -> bool {
        self.record(peer).is_some_and(|record| record.leaving)
    }

    /// What `peer` measured in `stage`.
    #[must_use]
    pub fn speed(&self, peer: PeerId, stage: StageIndex) -> Option<&Speed> {
        self.speeds.get(&peer).filter(|speed| speed.stage() == stage)
    }

    /// All records, in [`PeerId`] order.
    pub fn records(&self) -> impl Iterator<Item = (PeerId, &PeerRecord)> {
        self.records.iter().map(|(peer, heard)| (*peer, &*heard.record))
    }

    /// How long `peer` has been silent; `None` if it was never heard.
    #[must_use]
    pub fn silence(&self, now: Instant, peer: PeerId) -> Option<Duration> {
        self.records.get(&peer).map(|heard| now.since(heard.at))
    }

    /// For how long `peer` may be silent before it loses its place; at least the `eviction` of the spec.
    #[must_use]
    pub fn patience(&self, peer: PeerId, eviction: Duration) -> Duration {
        patience(eviction, self.records.get(&peer).and_then(|heard| heard.gaps))
    }

    /// The unit of the waits that are about nobody in particular: for how long a peer of this swarm may be silent, by the median of
    /// all peers. A minority that sends its records late on purpose does not stretch it. At least the `eviction` of the spec.
    #[must_use]
    pub fn ordinary_silence(&self, eviction: Duration) -> Duration {
        patience(eviction, self.usual_gap)
    }

    /// After this process was not running for a while, nobody was heard. Starts all silences anew, and
    /// gives members never heard of the benefit of the doubt by leaving them out.
    pub fn handle_pause(&mut self, now: Instant) {
        for heard in self.records.values_mut() {
            heard.at = now;
        }
    }

    /// Whether `peer` was heard less than `patience` ago.
    #[must_use]
    pub fn hears(&self, now: Instant, peer: PeerId, patience: Duration) -> bool {
        self.silence(now, peer).is_some_and(|silence| silence < patience)
    }

    /// Whether `peer` was heard, and has not been silent since for so long that it would lose a place.
    #[must_use]
    pub fn is_there(&self, now: Instant, peer: PeerId, eviction: Duration) -> bool {
        self.hears(now, peer, self.patience(peer, eviction))
    }

    /// Forgets peers silent for longer than `silence`, except those for whom `keep` holds; returns them with the numbers
    /// of their last records.
    pub fn forget(
        &mut self,
        now: Instant,
        silence: Duration,
        keep: impl Fn(PeerId) -> bool,
    ) -> Vec<(PeerId, u64)> {
        let gone = self.records.extract_if(.., |peer, heard| !keep(*peer) && now.since(heard.at) >= silence);
        let gone: Vec<_> = gone.map(|(peer, heard)| (peer, heard.record.sequence)).collect();
        self.speeds.retain(|peer, _| self.records.contains_key(peer));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(1);

    /// How many of so many records are taken that come `apart` from each other.
    fn taken(records: u32, apart: Duration) -> u32 {
        let (mut book, peer, start) = (Book::default(), PeerId([1; 32]), Instant::from_nanos(1));
        book.insert(start, peer, Arc::new(PeerRecord::new(1))).expect("a valid record");
        let takes = (0..records).filter(|i| !book.is_flooded(start + apart * *i, peer, HEARTBEAT));
        u32::try_from(takes.count()).expect("few")
    }

    #[test]
    fn a_stream_of_records_is_taken_at_the_rate_that_honest_peers_need_at_most() {
        let even = HEARTBEAT / RECORDS_PER_HEARTBEAT_MAX;
        assert_eq!(taken(1000, even), 1000);
        assert_eq!(taken(1000, Duration::ZERO), RECORDS_AT_ONCE_MAX + 1, "they came together");
        // In 50 heartbeats.
        let flood = taken(10_000, Duration::from_millis(5));
        let most = 50 * RECORDS_PER_HEARTBEAT_MAX + RECORDS_AT_ONCE_MAX + 1;
        assert!((most - 1..=most).contains(&flood), "{flood} of {most}");
    }

    /// The ordinary silence of a swarm whose peers send their records at these intervals, in seconds.
    fn silence_of(gaps: &[u32]) -> Duration {
        let (mut book, start) = (Book::default(), Instant::from_nanos(1));
        let last = 12 * gaps.iter().max().copied().unwrap_or_default();
        for second in 0..=last {
            for (peer, _) in (1..).zip(gaps).filter(|(_, gap)| second % **gap == 0) {
                let record = Arc::new(PeerRecord::new(u64::from(second) + 1));
                book.insert(start + HEARTBEAT * second, PeerId([peer; 32]), record).expect("a valid record");
            }
        }
        book.ordinary_silence(HEARTBEAT * 6)
    }

    #[test]
    fn a_majority_of_peers_stretches_the_ordinary_silence_and_a_minority_does_not() {
        assert_eq!(Book::default().ordinary_silence(HEARTBEAT * 6), HEARTBEAT * 6, "nothing is measured");
        assert_eq!(silence_of(&[1, 1, 1]), HEARTBEAT * 6, "twice an interval is less");
        assert_eq!(silence_of(&[1, 1, 1, 60, 60]), HEARTBEAT * 6, "two of five are late");
        assert_eq!(silence_of(&[1, 1, 60, 60]), HEARTBEAT * 6, "so is half of them");
        assert_eq!(silence_of(&[1, 1, 5, 5, 60]), HEARTBEAT * 10, "three of five are");
        assert_eq!(silence_of(&[1, 60, 60]), HEARTBEAT * 24, "four times the least, and no more");
    }

    #[test]
    fn who_is_forgotten_begins_anew() {
        let (mut book, peer, now) = (Book::default(), PeerId([1; 32]), Instant::from_nanos(1));
        book.insert(now, peer, Arc::new(PeerRecord::new(1))).expect("a valid record");
        while !book.is_flooded(now, peer, HEARTBEAT) {}
        let gone = book.forget(now + HEARTBEAT, HEARTBEAT, |_| false);
        assert_eq!(gone, [(peer, 1)]);
        assert!(book.records.is_empty());
    }
}
