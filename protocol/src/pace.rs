//! How long a transfer between two peers may take, by how long earlier ones took.
//!
//! ```text
//!            4 · (SRTT + 4 · RTTVAR + bytes / rate)    both are known
//! deadline = 4 · (SRTT + 4 · RTTVAR)                   only the round trip is, and the transfer is small
//!            TRANSFER_DEADLINE                             otherwise
//! ```
//! where the first 4 is [`DEADLINE_SLACK`], within [`TRANSFER_DEADLINE_MIN`] and [`TRANSFER_DEADLINE_MAX`]. `SRTT` and `RTTVAR` are those of RFC 6298 section 2, taken
//! from small transfers; `rate` is that of large ones, where a slower one is believed at once and a faster one by a quarter. A transfer that was still getting on
//! when its deadline passed doubles the next one's, as in section 5.5 of it: else a link slower than was
//! ever measured would never carry anything.
//!
//! Drivers keep one [`Paces`] for each process and tell it what they see. Nothing of it is written down: a process that
//! starts again measures again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::PeerId;
use crate::limits::{
    ANNOUNCE_HEARTBEATS_MAX, BOOK_PEERS_MAX, CONSENSUS_TICK, DEADLINE_SLACK, DEADLINE_STRETCH_MAX,
    ELECTION_TICKS, FORGET_SILENCES, LAST_CHECKPOINT_WAIT, LEADER_MERGES, LEADER_SILENCES, LOG_REQUEST_PAUSE,
    LOST_SILENCES, MIRROR_PAUSE_MAX, MIRROR_PAUSE_MIN, MOMENTS_WAIT_MAX, PROPOSAL_GATHER, PROPOSAL_ROUNDS,
    QUEUE_SILENCES, RESCUE_SILENCES, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN, SILENCE_SLACK, SILENCE_STRETCH_MAX,
    SLOW_SILENCES, STALLED_SILENCES, TICK_STRETCH_MAX, TRANSFER_DEADLINE, TRANSFER_DEADLINE_MAX,
    TRANSFER_DEADLINE_MIN, UPGRADE_GRACE_DEADLINES,
};
use crate::spec::RunSpec;

/// Bytes of a transfer up to which its time is a round trip, above which it is bytes at a rate.
const SMALL_BYTES: u64 = 64 * 1024;
/// Doublings in a row, at most; more than from the least to the most there may be are none.
const DOUBLINGS_MAX: u32 = 5;

/// Times of one kind in microseconds, after RFC 6298: round trips, or gaps between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Smoothed {
    mean: u64,
    variation: u64,
}

impl Smoothed {
    const fn first(micros: u64) -> Self {
        Self { mean: micros, variation: micros / 2 }
    }

    /// The gains are 1/8 and 1/4.
    const fn after(self, micros: u64) -> Self {
        let off = self.mean.abs_diff(micros);
        Self { mean: (7 * self.mean + micros) / 8, variation: (3 * self.variation + off) / 4 }
    }

    const fn longest(self) -> u64 {
        self.mean.saturating_add(4 * self.variation)
    }

    /// What is known once one more was measured.
    pub(crate) fn with(known: Option<Self>, took: Duration) -> Self {
        let micros = micros(took);
        known.map_or(Self::first(micros), |known| known.after(micros))
    }

    /// How long one may take that is nothing out of the ordinary.
    pub(crate) const fn ordinary(self) -> Duration {
        Duration::from_micros(self.longest())
    }
}

/// How long a member may be silent whose records come at such intervals, if the spec gives it `least`.
pub(crate) fn patience(least: Duration, gaps: Option<Smoothed>) -> Duration {
    let expected = gaps.map_or(Duration::ZERO, Smoothed::ordinary) * SILENCE_SLACK;
    expected.clamp(least, least.saturating_mul(SILENCE_STRETCH_MAX))
}

/// Time of one tick of a candidate that needs so long to hear from as many others as a majority takes.
pub(crate) fn consensus_tick(round_trip: Option<Smoothed>) -> Duration {
    let round = round_trip.map_or(Duration::ZERO, Smoothed::ordinary) * DEADLINE_SLACK;
    (round / ELECTION_TICKS).clamp(CONSENSUS_TICK, CONSENSUS_TICK * TICK_STRETCH_MAX)
}

/// Time of its election round, after which it sends votes again that have not led to a certificate.
pub(crate) fn election_round(round_trip: Option<Smoothed>) -> Duration {
    consensus_tick(round_trip) * ELECTION_TICKS
}

/// Time after which it proposes again what it proposed as leader and is not decided.
pub(crate) fn proposal_repeat(round_trip: Option<Smoothed>) -> Duration {
    election_round(round_trip) * PROPOSAL_ROUNDS
}

/// How long a leader may leave undone what a stand-by would decide, where an ordinary silence and the longest merge take so long: all that
/// honest leaders wait for beyond what a stand-by waits for takes less.
pub(crate) fn leader_patience(silence: Duration, merge: Duration) -> Duration {
    silence.saturating_mul(LEADER_SILENCES).max(merge.saturating_mul(LEADER_MERGES))
}

/// What is known of the transfers of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pace {
    round_trip: Option<Smoothed>,
    /// Bytes per second.
    rate: Option<u64>,
    /// Deadlines in a row that passed while a transfer was getting on.
    expired: u32,
}

impl Pace {
    fn ended(&mut self, bytes: u64, took: Duration) {
        self.expired = 0;
        if bytes <= SMALL_BYTES {
            self.round_trip = Some(Smoothed::with(self.round_trip, took));
            return;
        }
        let rate = bytes.saturating_mul(1_000_000) / micros(took);
        let rate = self.rate.map_or(rate, |known| rate.min(known - known / 4 + rate / 4));
        self.rate = Some(rate.max(1));
    }

    fn deadline(&self, bytes: u64) -> Duration {
        let round_trip = self.round_trip.map(Smoothed::longest);
        let expected = match (round_trip, self.rate) {
            (known, Some(rate)) if known.is_some() || bytes > SMALL_BYTES => {
                Some(known.unwrap_or(0).saturating_add(bytes.saturating_mul(1_000_000) / rate))
            }
            (Some(known), None) if bytes <= SMALL_BYTES => Some(known),
            _ => None,
        };
        let measured =
            expected.map_or(TRANSFER_DEADLINE, |micros| Duration::from_micros(micros) * DEADLINE_SLACK);
        let doubled = measured.max(TRANSFER_DEADLINE_MIN) * (1 << self.expired.min(DOUBLINGS_MAX));
        doubled.min(TRANSFER_DEADLINE_MAX)
    }
}

/// What a process knows of its transfers: pushes to each peer, and fetches, which come from several.
#[derive(Clone, Debug, Default)]
pub struct Paces {
    pushes: BTreeMap<PeerId, Pace>,
    fetches: Pace,
}

impl Paces {
    /// How long a push of `bytes` to this peer may take.
    #[must_use]
    pub fn push_deadline(&self, to: PeerId, bytes: u64) -> Duration {
        self.pushes.get(&to).copied().unwrap_or_default().deadline(bytes)
    }

    /// A push of `bytes` to this peer was answered.
    pub fn pushed(&mut self, to: PeerId, bytes: u64, took: Duration) {
        self.push(to).ended(bytes, took);
    }

    /// The deadline of a push of `bytes` to this peer passed. That of a small one says that the peer is not there, not that
    /// its link is slow.
    pub fn push_expired(&mut self, to: PeerId, bytes: u64) {
        if bytes > SMALL_BYTES {
            self.push(to).expired += 1;
        }
    }

    /// How long a fetch of `bytes` may take.
    #[must_use]
    pub fn fetch_deadline(&self, bytes: u64) -> Duration {
        self.fetches.deadline(bytes)
    }

    /// A blob of `bytes` came over the network.
    pub fn fetched(&mut self, bytes: u64, took: Duration) {
        self.fetches.ended(bytes, took);
    }

    /// The deadline of a fetch passed while it was getting on.
    pub fn fetch_expired(&mut self) {
        self.fetches.expired += 1;
    }

    /// Whoever is forgotten for want of room is measured again.
    fn push(&mut self, to: PeerId) -> &mut Pace {
        if self.pushes.len() >= BOOK_PEERS_MAX && !self.pushes.contains_key(&to) {
            self.pushes.pop_first();
        }
        self.pushes.entry(to).or_default()
    }
}

/// A deadline that follows from what is measured, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// What has to be done by then.
    pub name: &'static str,
    /// What it follows from.
    pub doc: &'static str,
    /// The least it can be.
    pub least: Duration,
    /// What it is before anything was measured.
    pub first: Duration,
    /// The most it can be.
    pub most: Duration,
}

/// All deadlines that follow from what is measured. Those of the spec's section `timing` are what it gives, or longer.
#[must_use]
pub fn deadlines(spec: &RunSpec) -> Vec<Deadline> {
    let transfer = |name, doc| Deadline {
        name,
        doc,
        least: TRANSFER_DEADLINE_MIN,
        first: TRANSFER_DEADLINE,
        most: TRANSFER_DEADLINE_MAX,
    };
    let mut all = vec![
        transfer(
            "push",
            "4 times the round trip to the peer and what the bytes need at the rate of earlier pushes to it",
        ),
        transfer("fetch", "4 times the round trip and what the bytes need at the rate of earlier fetches"),
        stretched(
            "epoch",
            "4 times the samples over the speed of the slowest stage's miners",
            spec.timing.epoch_deadline.duration(),
            DEADLINE_STRETCH_MAX,
        ),
        stretched(
            "merge",
            "4 times the median of the stage's last 8 merges",
            spec.timing.merge_deadline.duration(),
            DEADLINE_STRETCH_MAX,
        ),
        stretched(
            "ready",
            "4 times the median of what the stage's replicas took to have the weights of its last 8 merges; after that an epoch \
             opens without the others",
            spec.timing.ready_grace.duration(),
            DEADLINE_STRETCH_MAX,
        ),
    ];
    all.extend(silences(spec));
    all.extend(rounds());
    all
}

/// A deadline that is `least` before anything is measured, and at most so many times that.
fn stretched(name: &'static str, doc: &'static str, least: Duration, times: u32) -> Deadline {
    Deadline { name, doc, least, first: least, most: least.saturating_mul(times) }
}

/// Those that follow from how long a peer is silent between its records.
fn silences(spec: &RunSpec) -> Vec<Deadline> {
    let (eviction, merge) = (spec.timing.eviction.duration(), spec.timing.merge_deadline.duration());
    let silences =
        |name, doc, count: u32| stretched(name, doc, eviction.saturating_mul(count), SILENCE_STRETCH_MAX);
    vec![
        silences(
            "silence",
            "twice the interval and its variation at which the peer's records come; after that it loses its place",
            1,
        ),
        stretched(
            "connection",
            "half the silence of a majority of candidates; after that a candidate blames itself and starts its waits anew",
            eviction / 2,
            SILENCE_STRETCH_MAX,
        ),
        silences(
            "rescue",
            "the median silence of all peers; after that a stage without miners gets one of another stage",
            RESCUE_SILENCES,
        ),
        silences(
            "stalled",
            "twice the median silence; after that a stage is cut off that gets no further while one beside has settled the epoch",
            STALLED_SILENCES,
        ),
        silences(
            "stuck",
            "twice the median silence; after that, if nothing gets done anywhere, members that have got nothing done are released",
            STALLED_SILENCES,
        ),
        silences(
            "lost",
            "twice the median silence; after that a merge is passed over that nobody has who is heard",
            LOST_SILENCES,
        ),
        silences(
            "lost-served",
            "20 times the median silence; the same while all who merged it are heard",
            SLOW_SILENCES,
        ),
        silences(
            "queue",
            "10 times the median silence; after that a peer that waits and is silent loses its place in the queue",
            QUEUE_SILENCES,
        ),
        // The longer of two, each of which grows.
        Deadline {
            name: "leader",
            doc: "8 times the median silence, or 6 merge deadlines if that is more; after that a leader is not followed any more that \
                  leaves undone what a stand-by would decide",
            least: leader_patience(eviction, merge),
            first: leader_patience(eviction, merge),
            most: leader_patience(
                eviction.saturating_mul(SILENCE_STRETCH_MAX),
                merge.saturating_mul(DEADLINE_STRETCH_MAX),
            ),
        },
        // However short silences are, answers may be on their way.
        Deadline {
            least: TRANSFER_DEADLINE.max(eviction.saturating_mul(FORGET_SILENCES)),
            first: TRANSFER_DEADLINE.max(eviction.saturating_mul(FORGET_SILENCES)),
            ..silences(
                "forgotten",
                "10 times the median silence; after that the record of a silent peer without a place is dropped",
                FORGET_SILENCES,
            )
        },
    ]
}

/// Those that follow from the round trip between candidates.
fn rounds() -> [Deadline; 3] {
    let rounds =
        |name, doc, count| stretched(name, doc, CONSENSUS_TICK * ELECTION_TICKS * count, TICK_STRETCH_MAX);
    [
        rounds(
            "election",
            "4 times the round trip to the nearest majority of candidates; after that a leader is missed",
            1,
        ),
        rounds("vote", "an election round; after that votes are sent again that led to no certificate", 1),
        rounds(
            "proposal",
            "two election rounds; after that a leader proposes again what is not decided",
            PROPOSAL_ROUNDS,
        ),
    ]
}

/// A wait that does not follow from anything measured, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// What is waited for, or paused.
    pub name: &'static str,
    /// Why it is no measured one.
    pub doc: &'static str,
    /// How long it is, at first if it grows.
    pub least: Duration,
    /// The most it grows to.
    pub most: Duration,
}

impl Fixed {
    /// One that does not grow.
    #[must_use]
    pub const fn given(name: &'static str, doc: &'static str, time: Duration) -> Self {
        Self { name, doc, least: time, most: time }
    }
}

/// The waits of the protocol that are given.
#[must_use]
pub fn fixed(spec: &RunSpec) -> Vec<Fixed> {
    let given = Fixed::given;
    let timing = &spec.timing;
    let epoch = timing.epoch_deadline.duration();
    vec![
        given(
            "heartbeat",
            "between two records of a peer; the interval by which silence is measured",
            timing.heartbeat.duration(),
        ),
        given(
            "announcement",
            "what was said is repeated after some heartbeats; no deadline, and gossip is seldom lost",
            timing.heartbeat.duration() * ANNOUNCE_HEARTBEATS_MAX,
        ),
        given(
            "request",
            "for the answer to a request; it is small, and somebody else is asked next",
            TRANSFER_DEADLINE,
        ),
        given(
            "log-request",
            "before the next peer is asked for the log; whoever was asked did not have it, however near it is",
            LOG_REQUEST_PAUSE,
        ),
        Fixed {
            name: "retry",
            doc: "before a push or fetch that failed is tried again; a back-off, doubled each time",
            least: RETRY_PAUSE_MIN,
            most: RETRY_PAUSE_MAX,
        },
        Fixed {
            name: "mirror-retry",
            doc: "before a state that the mirror did not take is tried again; a back-off, doubled each time",
            least: MIRROR_PAUSE_MIN,
            most: MIRROR_PAUSE_MAX,
        },
        given(
            "gathering",
            "a leader gathers news for so long before it decides; far less than a decision takes",
            PROPOSAL_GATHER,
        ),
        given(
            "last-checkpoint",
            "the end of a run waits so long for its last checkpoint while the mirror takes it; nothing like it was measured before",
            LAST_CHECKPOINT_WAIT,
        ),
        given(
            "moments",
            "a complete checkpoint waits so long for inner optimizers that go with it; it does without them, and so can a run",
            epoch.min(MOMENTS_WAIT_MAX),
        ),
        given(
            "last-checks",
            "the end of a run waits so long for checks of its last epochs; what they find harms nobody any more",
            epoch,
        ),
        given(
            "upgrade",
            "two thirds of each stage speak the next wire version for so long before the others are left behind; people restart \
             their miners meanwhile",
            epoch.saturating_mul(UPGRADE_GRACE_DEADLINES),
        ),
        given(
            "linger",
            "a peer stays so long after the end to serve others; it cannot know who will come",
            timing.linger.duration(),
        ),
    ]
}

/// At least one.
fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PEER: PeerId = PeerId([1; 32]);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_was_never_measured_has_the_deadline_of_all() {
        let mut paces = Paces::default();
        assert_eq!(paces.push_deadline(PEER, 64 * MIB), TRANSFER_DEADLINE);
        paces.pushed(PEER, 1024, Duration::from_millis(50));
        assert_eq!(paces.push_deadline(PEER, 64 * MIB), TRANSFER_DEADLINE, "the rate is not known");
        assert_eq!(paces.push_deadline(PeerId([2; 32]), 1024), TRANSFER_DEADLINE, "another peer");
        assert_eq!(paces.push_deadline(PEER, 1024), TRANSFER_DEADLINE_MIN);
    }

    #[test]
    fn round_trips_are_smoothed_as_in_rfc_6298() {
        let mut pace = Pace::default();
        pace.ended(1, seconds(2));
        assert_eq!(pace.round_trip, Some(Smoothed { mean: 2_000_000, variation: 1_000_000 }));
        pace.ended(1, seconds(4));
        // RTTVAR = 3/4 · 1 + 1/4 · |2 − 4|, SRTT = 7/8 · 2 + 1/8 · 4.
        assert_eq!(pace.round_trip, Some(Smoothed { mean: 2_250_000, variation: 1_250_000 }));
        assert_eq!(pace.deadline(1), Duration::from_micros(4 * (2_250_000 + 4 * 1_250_000)));
    }

    #[test]
    fn a_large_transfer_has_the_time_that_its_bytes_need() {
        let mut pace = Pace::default();
        pace.ended(4 * MIB, seconds(4));
        assert_eq!(pace.deadline(16 * MIB), seconds(64));
        assert_eq!(pace.deadline(64 * MIB), TRANSFER_DEADLINE_MAX);
        assert_eq!(pace.deadline(65 * 1024), TRANSFER_DEADLINE_MIN);
        pace.ended(5 * MIB, seconds(1));
        assert_eq!(pace.rate, Some(2 * MIB));
    }

    #[test]
    fn a_link_slower_than_ever_measured_gets_there() {
        let mut paces = Paces::default();
        paces.fetched(64 * MIB, seconds(1));
        // It now carries 1 MiB per second.
        let needed = seconds(64);
        let mut tries = 0;
        while paces.fetch_deadline(64 * MIB) < needed {
            paces.fetch_expired();
            tries += 1;
        }
        assert_eq!(tries, 4, "from five seconds to eighty");
        (0..100).for_each(|_| paces.fetch_expired());
        assert_eq!(paces.fetch_deadline(1), TRANSFER_DEADLINE_MAX);
        paces.fetched(64 * MIB, needed);
        assert!(paces.fetch_deadline(64 * MIB) >= needed, "it need not expire again");
        assert_eq!(paces.fetch_deadline(MIB), TRANSFER_DEADLINE_MIN, "nothing is doubled any more");
    }

    #[test]
    fn who_is_heard_at_long_intervals_may_be_silent_for_longer() {
        let least = seconds(6);
        let after = |gaps: &[u64]| {
            let known = gaps.iter().fold(None, |known, gap| Some(Smoothed::with(known, seconds(*gap))));
            patience(least, known)
        };
        assert_eq!([after(&[]), after(&[1]), after(&[1; 20])], [least; 3]);
        // One gap of 5 s after many of 1 s: the mean is 1.5 s, the variation 1 s.
        let late = after(&[[1; 40].as_slice(), &[5]].concat());
        assert!(late > seconds(10) && late < seconds(12), "{late:?}");
        assert_eq!(after(&[[1; 40].as_slice(), &[5], &[1; 12]].concat()), least, "it is forgotten");
        assert_eq!(after(&[60]), least * SILENCE_STRETCH_MAX);
    }

    #[test]
    fn far_candidates_have_longer_rounds() {
        let tick = |millis: u64| {
            let known =
                (0..40).fold(None, |known, _| Some(Smoothed::with(known, Duration::from_millis(millis))));
            consensus_tick(known)
        };
        assert_eq!([consensus_tick(None), tick(10), tick(200)], [CONSENSUS_TICK; 3]);
        assert!(tick(500) >= CONSENSUS_TICK * 2 && tick(500) < CONSENSUS_TICK * 3, "{:?}", tick(500));
        assert_eq!(tick(60_000), CONSENSUS_TICK * TICK_STRETCH_MAX);
        let far = Some(Smoothed::first(500_000));
        assert_eq!([election_round(None), proposal_repeat(None)], [seconds(1), seconds(2)]);
        assert_eq!(election_round(far), seconds(6), "4 times the round trip and 4 times its variation");
        assert_eq!(proposal_repeat(far), seconds(12));
    }

    #[test]
    fn every_deadline_and_wait_has_a_name_of_its_own_and_bounds_in_order() {
        let spec = RunSpec::default();
        let measured = deadlines(&spec);
        let given = fixed(&spec);
        let names = measured.iter().map(|deadline| deadline.name).chain(given.iter().map(|wait| wait.name));
        let names: Vec<&str> = names.collect();
        let different: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(different.len(), names.len(), "{names:?}");
        for Deadline { name, least, first, most, .. } in measured {
            assert!(least <= first && first < most, "{name}: {least:?}, {first:?}, {most:?}");
        }
        for Fixed { name, least, most, .. } in given {
            assert!(!least.is_zero() && least <= most, "{name}: {least:?}, {most:?}");
        }
    }

    #[test]
    fn peers_beyond_the_book_are_forgotten() {
        let mut paces = Paces::default();
        for number in 0..=BOOK_PEERS_MAX as u64 {
            let mut peer = [0; 32];
            peer[..8].copy_from_slice(&number.to_be_bytes());
            paces.push_expired(PeerId(peer), MIB);
        }
        assert_eq!(paces.pushes.len(), BOOK_PEERS_MAX);
    }
}
