//! Connections between hosts that only dial out.
//!
//! A host behind NAT keeps a connection to a host that can be reached, and is reached through it: libp2p's circuit relay
//! (version 2) and iroh's relays work like this. What is relayed takes two access links more and no more than the
//! relay grants each connection. Hole punching, which would make such a connection direct, is not modelled: a pair that
//! can punch a hole is a pair of which one can be reached.

use std::time::Duration;

use super::{HostIndex, Network};

/// Bytes per second that a relay grants one connection: 20 Mbit/s, about what a home can send, so that a relay in a data
/// centre serves fifty of them.
const RELAYED_BYTES_PER_SECOND: f64 = 2.5e6;

/// How two hosts talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Via(HostIndex),
}

impl Way {
    /// Senders and receivers along the way.
    pub(super) fn hops(self, from: HostIndex, to: HostIndex) -> impl Iterator<Item = (HostIndex, HostIndex)> {
        let (first, second) = match self {
            Self::Direct => ((from, to), None),
            Self::Via(relay) => ((from, relay), Some((relay, to))),
        };
        std::iter::once(first).chain(second)
    }

    /// Bytes per second that the way allows, whatever the links.
    pub(super) const fn rate_max(self) -> f64 {
        match self {
            Self::Direct => f64::INFINITY,
            Self::Via(_) => RELAYED_BYTES_PER_SECOND,
        }
    }
}

/// Who relays.
#[derive(Debug, Default)]
pub(super) struct Relays {
    on: bool,
    up: Vec<bool>,
}

impl Relays {
    pub(super) fn add(&mut self) {
        self.up.push(false);
    }
}

impl Network {
    /// The network with relays, or without.
    #[must_use]
    pub fn relaying(mut self, on: bool) -> Self {
        self.relays.on = on;
        self
    }

    /// A host's process answers from now on, or does not: only then it relays.
    pub fn set_up(&mut self, host: HostIndex, up: bool) {
        self.relays.up[host] = up;
    }

    /// Flows that a host relays.
    #[must_use]
    pub fn flows_via(&self, host: HostIndex) -> Vec<u64> {
        self.flows.iter().filter(|(_, flow)| flow.way == Way::Via(host)).map(|(number, _)| *number).collect()
    }

    /// How a message gets from one host to the other.
    pub(super) fn way(&self, from: HostIndex, to: HostIndex) -> Option<Way> {
        if self.reaches_directly(from, to) {
            return Some(Way::Direct);
        }
        let needed = self.relays.on && !self.links[from].reachable && !self.links[to].reachable;
        needed.then(|| self.relay(from, to)).flatten().map(Way::Via)
    }

    /// Through whom two hosts talk that only dial out: the first that relays after the lower of them, at which that one is
    /// found.
    fn relay(&self, from: HostIndex, to: HostIndex) -> Option<HostIndex> {
        let (hosts, listener) = (self.links.len(), from.min(to));
        (1..hosts).map(|step| (listener + step) % hosts).find(|&relay| {
            self.links[relay].reachable
                && self.relays.up[relay]
                && self.reaches_directly(from, relay)
                && self.reaches_directly(relay, to)
        })
    }

    /// One way along a way, without jitter.
    pub(super) fn latency_along(&self, from: HostIndex, to: HostIndex, way: Way) -> Duration {
        way.hops(from, to).map(|(out, into)| self.base_latency(out, into)).sum()
    }

    /// Bytes per second at which a small message passes the middle of a way.
    pub(super) fn relayed_rate(&self, way: Way) -> f64 {
        match way {
            Way::Direct => f64::INFINITY,
            Way::Via(relay) => way.rate_max().min(self.links[relay].up).min(self.links[relay].down),
        }
    }
}

#[cfg(test)]
mod tests {
    use iota_protocol::Instant;

    use super::*;
    use crate::network::{FIRST_FLIGHT_BYTES, Link};

    /// Two hosts at home and two in a data centre.
    fn network(relays: bool) -> Network {
        let mut network = Network::new(1).relaying(relays);
        for host in 0..4 {
            network.add(Link {
                jitter: 0.0,
                loss: 0.0,
                ..if host < 2 { Link::HOME } else { Link::DATACENTRE }
            });
            network.set_up(host, true);
        }
        network
    }

    #[test]
    fn two_hosts_that_only_dial_out_talk_through_one_that_can_be_reached() {
        assert!(!network(false).reaches(0, 1));
        let mut network = network(true);
        assert_eq!((network.way(0, 1), network.way(1, 0)), (Some(Way::Via(2)), Some(Way::Via(2))));
        assert_eq!((network.way(0, 3), network.way(3, 0)), (Some(Way::Direct), Some(Way::Direct)));
        assert!(!network.reaches_directly(0, 1));
        let (there, direct) = (network.message(0, 1, 0), network.base_latency(0, 2));
        assert_eq!(there, Some(direct * 2), "by way of the relay");
    }

    #[test]
    fn another_relay_takes_over_and_without_any_there_is_no_way() {
        let mut network = network(true);
        network.set_up(2, false);
        assert_eq!(network.way(0, 1), Some(Way::Via(3)));
        network.set_group(1, 1);
        assert_eq!(network.way(0, 1), None, "a relay does not heal a cut");
        network.heal();
        network.set_up(3, false);
        assert_eq!(network.message(0, 1, 0), None);
    }

    #[test]
    fn what_is_relayed_is_no_faster_than_the_relay_grants() {
        let mut network = network(true);
        let bytes = 10_000_000;
        let flow = network.start_flow(Instant::ZERO, 0, 1, bytes + FIRST_FLIGHT_BYTES);
        assert_eq!(network.flows_via(2), [flow]);
        let ends = network.settle(Instant::ZERO);
        let seconds = ends.last().expect("an end").at.since(Instant::ZERO).as_secs_f64();
        assert!((seconds - 4.0).abs() < 1e-6, "10 MB at 2.5 MB/s: {seconds}");
        assert!(network.drop_flow(Instant::ZERO, flow).is_some());
        assert!(network.outgoing.iter().chain(&network.incoming).all(|flows| flows.is_empty()));
    }
}
