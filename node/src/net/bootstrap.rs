//! Which bootstrap addresses to dial when: a pure schedule with exponential back-off.
//!
//! An address is dialled until it answers, and again after the peer behind it was lost. The peer's name
//! is learned from the address (`/p2p/…`) or from the first connection.

use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

/// Pause after the first failure. Short: peers of a run are often started at the same moment.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two dials of one address.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The bootstrap addresses and what is known of each.
#[derive(Debug)]
pub(super) struct Bootstrap {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    address: Multiaddr,
    peer: Option<PeerId>,
    backoff: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting {
        until: Instant,
    },
    Dialling {
        connection: ConnectionId,
    },
    Connected,
    /// The address is our own; never dialled again.
    Ourselves,
}

impl Bootstrap {
    /// Every address is due at `now`, except those that name `local`.
    pub(super) fn new(addresses: &[Multiaddr], local: PeerId, now: Instant) -> Self {
        let entries = addresses
            .iter()
            .map(|address| {
                let peer = named_peer(address);
                Entry {
                    address: address.clone(),
                    peer,
                    backoff: BACKOFF_MIN,
                    state: if peer == Some(local) { State::Ourselves } else { State::Waiting { until: now } },
                }
            })
            .collect();
        Self { entries }
    }

    /// Returns the moment the next address is due, if one waits.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.entries
            .iter()
            .filter_map(|entry| match entry.state {
                State::Waiting { until } => Some(until),
                _ => None,
            })
            .min()
    }

    /// Calls `dial` for each address that is due; it returns the dial's connection id, or `None` when
    /// the dial could not even begin.
    pub(super) fn dial_due(
        &mut self,
        now: Instant,
        mut dial: impl FnMut(&Multiaddr) -> Option<ConnectionId>,
    ) {
        for entry in &mut self.entries {
            if matches!(entry.state, State::Waiting { until } if until <= now) {
                match dial(&entry.address) {
                    Some(connection) => entry.state = State::Dialling { connection },
                    None => entry.back_off(now),
                }
            }
        }
    }

    /// Notes a connection to `peer`, whoever dialled it.
    pub(super) fn established(&mut self, connection: ConnectionId, peer: PeerId) {
        for entry in &mut self.entries {
            if entry.state == (State::Dialling { connection }) {
                entry.peer = Some(peer);
            }
            if entry.peer == Some(peer) {
                entry.state = State::Connected;
                entry.backoff = BACKOFF_MIN;
            }
        }
    }

    /// Notes a failed dial and returns the address when it was one of ours.
    pub(super) fn failed(&mut self, connection: ConnectionId, now: Instant) -> Option<Multiaddr> {
        let entry = self.dialling(connection)?;
        entry.back_off(now);
        Some(entry.address.clone())
    }

    /// Notes that a dial reached ourselves.
    pub(super) fn reached_ourselves(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.dialling(connection) {
            entry.state = State::Ourselves;
        }
    }

    /// Notes that the last connection to `peer` closed.
    pub(super) fn lost(&mut self, peer: PeerId, now: Instant) {
        for entry in &mut self.entries {
            if entry.peer == Some(peer) && entry.state == State::Connected {
                entry.back_off(now);
            }
        }
    }

    fn dialling(&mut self, connection: ConnectionId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.state == State::Dialling { connection })
    }
}

impl Entry {
    fn back_off(&mut self, now: Instant) {
        self.state = State::Waiting { until: now + self.backoff };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }
}

fn named_peer(address: &Multiaddr) -> Option<PeerId> {
    address.iter().find_map(|part| match part {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Multiaddr {
        "/ip4/127.0.0.1/tcp/9".parse().unwrap()
    }

    #[test]
    fn an_unreachable_address_is_dialled_again_with_growing_pauses() {
        let start = Instant::now();
        let mut bootstrap = Bootstrap::new(&[address()], PeerId::random(), start);
        let mut now = start;
        let mut pauses = Vec::new();
        for dial in 0..9 {
            let connection = ConnectionId::new_unchecked(dial);
            bootstrap.dial_due(now, |_| Some(connection));
            assert_eq!(bootstrap.next_due(), None, "a dial in progress is not due");
            assert_eq!(bootstrap.failed(connection, now), Some(address()));
            let due = bootstrap.next_due().unwrap();
            pauses.push(due - now);
            now = due;
        }
        assert_eq!(pauses[..3], [BACKOFF_MIN, BACKOFF_MIN * 2, BACKOFF_MIN * 4]);
        assert_eq!(pauses[8], BACKOFF_MAX);
    }

    #[test]
    fn a_lost_peer_is_dialled_again_and_a_connected_one_is_not() {
        let now = Instant::now();
        let peer = PeerId::random();
        let connection = ConnectionId::new_unchecked(1);
        let mut bootstrap = Bootstrap::new(&[address()], PeerId::random(), now);
        bootstrap.dial_due(now, |_| Some(connection));
        bootstrap.established(connection, peer);
        assert_eq!(bootstrap.next_due(), None);
        bootstrap.lost(PeerId::random(), now);
        assert_eq!(bootstrap.next_due(), None, "another peer's loss changes nothing");
        bootstrap.lost(peer, now);
        assert_eq!(bootstrap.next_due(), Some(now + BACKOFF_MIN));
    }

    #[test]
    fn our_own_address_is_never_dialled() {
        let now = Instant::now();
        let local = PeerId::random();
        let own = address().with(Protocol::P2p(local));
        let bootstrap = Bootstrap::new(&[own], local, now);
        assert_eq!(bootstrap.next_due(), None);
    }
}
