//! Links, what they carry, and what is cut.
//!
//! Every host hangs on a backbone by one access link. Latency is the sum of both ends' and the distance of their
//! regions, times a random jitter, so messages overtake each other. Small messages take latency and their own time on
//! the wire; blobs are *flows* that share the sender's uplink and the receiver's downlink equally with all others
//! there, the fluid model of a network whose core is not the bottleneck. Packet loss costs a retransmission: a round
//! trip, not the message. Two hosts neither of which can be reached talk through a relay, if there is one.

mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iota_protocol::Instant;

use crate::random::Random;
use relay::{Relays, Way};

/// A virtual host, by its number.
pub type HostIndex = usize;

/// How a host is connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// One way to the backbone.
    pub latency: Duration,
    /// Bytes per second it can send.
    pub up: f64,
    /// Bytes per second it can receive.
    pub down: f64,
    /// Mean of the exponential share added to each latency.
    pub jitter: f64,
    /// Share of messages that need one more round trip, each time.
    pub loss: f64,
    /// Whether others can open a connection to it; two hosts that are not cannot talk directly, but may through a relay.
    pub reachable: bool,
    /// Where it is.
    pub region: u8,
}

impl Link {
    /// A host in a data centre: 5 ms, 1 Gbit/s both ways.
    pub const DATACENTRE: Self = Self {
        latency: Duration::from_millis(5),
        up: 125e6,
        down: 125e6,
        jitter: 0.1,
        loss: 0.0,
        reachable: true,
        region: 0,
    };

    /// A home: 15 ms, 50 Mbit/s up, 300 Mbit/s down, behind NAT.
    pub const HOME: Self = Self {
        latency: Duration::from_millis(15),
        up: 6.25e6,
        down: 37.5e6,
        jitter: 0.3,
        loss: 0.005,
        reachable: false,
        region: 0,
    };
}

/// One way between two regions that are `apart` steps from each other.
const REGION_STEP: Duration = Duration::from_millis(25);
/// Bytes that need no share of a link: they leave in the first flight of a connection.
pub const FIRST_FLIGHT_BYTES: u64 = 16 * 1024;
/// A flow with less than this left at its end has arrived: times are whole nanoseconds.
const ROUNDING_SECONDS: f64 = 2e-9;
/// Longest that a flow is foreseen to take.
const LONGEST_SECONDS: f64 = 1e9;
/// Retransmissions after which a message counts as lost.
const RETRANSMISSIONS_MAX: u32 = 5;

/// A transfer under way.
#[derive(Clone, Debug)]
struct Flow {
    from: HostIndex,
    to: HostIndex,
    way: Way,
    remaining: f64,
    rate: f64,
    priced: Instant,
    /// The end last announced, and how many were; an older one is void.
    announced: Option<Instant>,
    announcements: u64,
}

/// When a flow may have ended. It is looked at then; if it became slower meanwhile, another end is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    /// When.
    pub at: Instant,
    /// Which flow.
    pub flow: u64,
    /// Which of its announcements.
    pub announcement: u64,
}

/// The links of all hosts.
#[derive(Debug)]
pub struct Network {
    links: Vec<Link>,
    /// Hosts of different groups cannot reach each other.
    groups: Vec<u8>,
    /// Directions that are cut.
    one_way: BTreeSet<(HostIndex, HostIndex)>,
    flows: BTreeMap<u64, Flow>,
    outgoing: Vec<BTreeSet<u64>>,
    incoming: Vec<BTreeSet<u64>>,
    started: u64,
    /// Flows whose share changes, to be priced when everything of this moment has happened.
    touched: BTreeSet<u64>,
    relays: Relays,
    random: Random,
}

impl Network {
    /// A network without hosts.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            links: Vec::new(),
            groups: Vec::new(),
            one_way: BTreeSet::new(),
            flows: BTreeMap::new(),
            outgoing: Vec::new(),
            incoming: Vec::new(),
            started: 0,
            touched: BTreeSet::new(),
            relays: Relays::default(),
            random: Random::new(seed, "network"),
        }
    }

    /// Adds the next host.
    pub fn add(&mut self, link: Link) {
        self.links.push(link);
        self.groups.push(0);
        self.relays.add();
        self.outgoing.push(BTreeSet::new());
        self.incoming.push(BTreeSet::new());
    }

    /// The link of a host.
    #[must_use]
    pub fn link(&self, host: HostIndex) -> &Link {
        &self.links[host]
    }

    /// Puts a host on another link. Flows on it keep their rate until the next one starts or ends there.
    pub fn set_link(&mut self, host: HostIndex, link: Link) {
        self.links[host] = link;
    }

    /// Puts a host into a group; groups cannot reach each other. All start in group 0.
    pub fn set_group(&mut self, host: HostIndex, group: u8) {
        self.groups[host] = group;
    }

    /// The group of a host.
    #[must_use]
    pub fn group(&self, host: HostIndex) -> u8 {
        self.groups[host]
    }

    /// Cuts or restores one direction.
    pub fn set_cut(&mut self, from: HostIndex, to: HostIndex, cut: bool) {
        if cut {
            self.one_way.insert((from, to));
        } else {
            self.one_way.remove(&(from, to));
        }
    }

    /// Restores everything that was cut.
    pub fn heal(&mut self) {
        self.groups.fill(0);
        self.one_way.clear();
    }

    /// Whether a message can get from one host to the other, directly or through a relay.
    #[must_use]
    pub fn reaches(&self, from: HostIndex, to: HostIndex) -> bool {
        self.way(from, to).is_some()
    }

    /// Whether a message can get from one host to the other without a relay.
    #[must_use]
    pub fn reaches_directly(&self, from: HostIndex, to: HostIndex) -> bool {
        from == to
            || self.groups[from] == self.groups[to]
                && !self.one_way.contains(&(from, to))
                && (self.links[from].reachable || self.links[to].reachable)
    }

    /// One way between two hosts that talk directly, without jitter.
    #[must_use]
    pub fn base_latency(&self, from: HostIndex, to: HostIndex) -> Duration {
        let (a, b) = (&self.links[from], &self.links[to]);
        a.latency + b.latency + REGION_STEP * u32::from(a.region.abs_diff(b.region))
    }

    /// How long a message of `bytes` takes; nothing if it does not arrive.
    pub fn message(&mut self, from: HostIndex, to: HostIndex, bytes: u64) -> Option<Duration> {
        let way = self.way(from, to)?;
        let latency = self.jittered(from, to, way)?;
        Some(
            latency
                + wire_time(bytes, self.links[from].up.min(self.links[to].down).min(self.relayed_rate(way))),
        )
    }

    /// How long copies of a gossiped message occupy an uplink.
    #[must_use]
    pub fn gossip_time(&self, from: HostIndex, bytes: u64) -> Duration {
        wire_time(bytes, self.links[from].up)
    }

    /// What the next latency to `host` is multiplied by.
    pub fn jitter_factor(&mut self, host: HostIndex) -> f64 {
        1.0 + self.links[host].jitter * self.random.exponential()
    }

    /// A latency with jitter and retransmissions.
    fn jittered(&mut self, from: HostIndex, to: HostIndex, way: Way) -> Option<Duration> {
        let (jitter, loss) = (
            self.links[from].jitter.max(self.links[to].jitter),
            1.0 - (1.0 - self.links[from].loss) * (1.0 - self.links[to].loss),
        );
        let base = self.latency_along(from, to, way);
        let mut latency = base.mul_f64(1.0 + jitter * self.random.exponential());
        let mut tries = 0;
        while self.random.chance(loss) {
            tries += 1;
            if tries > RETRANSMISSIONS_MAX {
                return None;
            }
            latency += base * 2;
        }
        Some(latency)
    }

    /// Starts to move `bytes`, to end when all have arrived; returns the flow's number.
    pub fn start_flow(&mut self, now: Instant, from: HostIndex, to: HostIndex, bytes: u64) -> u64 {
        self.started += 1;
        let number = self.started;
        #[expect(clippy::cast_precision_loss, reason = "a size below 2^53")]
        let remaining = bytes.saturating_sub(FIRST_FLIGHT_BYTES).max(1) as f64;
        let way = self.way(from, to).unwrap_or(Way::Direct);
        let flow =
            Flow { from, to, way, remaining, rate: 0.0, priced: now, announced: None, announcements: 0 };
        self.flows.insert(number, flow);
        for (out, into) in way.hops(from, to) {
            self.outgoing[out].insert(number);
            self.incoming[into].insert(number);
            self.touch(out, into);
        }
        number
    }

    /// Takes a flow out if it has arrived by its announced end. `None` if it goes on, or the announcement is void.
    pub fn end_flow(&mut self, end: FlowEnd) -> Option<()> {
        let flow = self.flows.get_mut(&end.flow).filter(|flow| flow.announcements == end.announcement)?;
        let done = flow.rate * end.at.since(flow.priced).as_secs_f64();
        if flow.remaining - done > flow.rate * ROUNDING_SECONDS {
            flow.announced = None;
            self.touched.insert(end.flow);
            return None;
        }
        self.drop_flow(end.at, end.flow).map(drop)
    }

    /// Gives a flow up; the bytes that had not arrived, or nothing if it is not under way.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size below 2^53, not negative"
    )]
    pub fn drop_flow(&mut self, now: Instant, number: u64) -> Option<u64> {
        let flow = self.flows.remove(&number)?;
        for (out, into) in flow.way.hops(flow.from, flow.to) {
            self.outgoing[out].remove(&number);
            self.incoming[into].remove(&number);
            self.touch(out, into);
        }
        let missing = flow.remaining - flow.rate * now.since(flow.priced).as_secs_f64();
        Some(missing.max(0.0) as u64)
    }

    /// Flows under way.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    fn touch(&mut self, from: HostIndex, to: HostIndex) {
        self.touched.extend(self.outgoing[from].union(&self.incoming[to]));
    }

    /// Shares links anew after flows started and ended; returns the ends to look at.
    pub fn settle(&mut self, now: Instant) -> Vec<FlowEnd> {
        let mut ends = Vec::new();
        for number in std::mem::take(&mut self.touched) {
            let Some(flow) = self.flows.get_mut(&number) else { continue };
            #[expect(clippy::cast_precision_loss, reason = "a count of flows")]
            let share = |capacity: f64, flows: &BTreeSet<u64>| capacity / flows.len().max(1) as f64;
            let hops = flow.way.hops(flow.from, flow.to).map(|(out, into)| {
                share(self.links[out].up, &self.outgoing[out])
                    .min(share(self.links[into].down, &self.incoming[into]))
            });
            let rate = hops.fold(flow.way.rate_max(), f64::min);
            flow.remaining -= flow.rate * now.since(flow.priced).as_secs_f64();
            (flow.rate, flow.priced) = (rate, now);
            let at = now + Duration::from_secs_f64((flow.remaining.max(0.0) / rate).min(LONGEST_SECONDS));
            // A flow that became slower is found unfinished at the end already announced.
            if flow.announced.is_none_or(|announced| at < announced) {
                flow.announced = Some(at);
                flow.announcements += 1;
                ends.push(FlowEnd { at, flow: number, announcement: flow.announcements });
            }
        }
        ends
    }
}

/// How long `bytes` occupy a link.
#[expect(clippy::cast_precision_loss, reason = "a size below 2^53")]
pub(crate) fn wire_time(bytes: u64, bytes_per_second: f64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: u64 = 1_000_000;

    fn network(hosts: usize) -> Network {
        let mut network = Network::new(1);
        let link = Link { up: 1e6, down: 2e6, jitter: 0.0, ..Link::DATACENTRE };
        (0..hosts).for_each(|_| network.add(link));
        network
    }

    /// Runs all flows to their ends; seconds of each, by number.
    fn finish(network: &mut Network) -> BTreeMap<u64, f64> {
        let (mut done, mut ends) = (BTreeMap::new(), network.settle(Instant::ZERO));
        while let Some(next) = (0..ends.len()).min_by_key(|&i| (ends[i].at, ends[i].flow)) {
            let end = ends.swap_remove(next);
            if network.end_flow(end).is_some() {
                done.insert(end.flow, end.at.since(Instant::ZERO).as_secs_f64());
            }
            ends.extend(network.settle(end.at));
        }
        done
    }

    #[test]
    fn flows_share_an_uplink_equally_and_take_over_what_becomes_free() {
        let mut network = network(3);
        let first = network.start_flow(Instant::ZERO, 0, 1, MEGABYTE + FIRST_FLIGHT_BYTES);
        let second = network.start_flow(Instant::ZERO, 0, 2, 2 * MEGABYTE + FIRST_FLIGHT_BYTES);
        let done = finish(&mut network);
        // Half the link each for two seconds, then the second alone for its second megabyte.
        assert!((done[&first] - 2.0).abs() < 1e-6, "{done:?}");
        assert!((done[&second] - 3.0).abs() < 1e-6, "{done:?}");
        assert_eq!(network.flows(), 0);
    }

    #[test]
    fn a_flow_that_becomes_slower_arrives_later_than_first_announced() {
        let mut network = network(3);
        let first = network.start_flow(Instant::ZERO, 0, 1, MEGABYTE + FIRST_FLIGHT_BYTES);
        let announced = network.settle(Instant::ZERO);
        assert_eq!(announced.len(), 1);
        let half = Instant::ZERO + Duration::from_millis(500);
        network.start_flow(half, 0, 2, 4 * MEGABYTE);
        assert!(network.settle(half).iter().all(|end| end.flow != first), "the old end is kept");
        assert_eq!(network.end_flow(announced[0]), None, "half of the second half is missing");
        let again = network.settle(announced[0].at);
        let end = again.iter().find(|end| end.flow == first).expect("another end");
        assert!((end.at.since(Instant::ZERO).as_secs_f64() - 1.5).abs() < 1e-6);
        assert_eq!(network.end_flow(*end), Some(()));
    }

    #[test]
    fn a_downlink_bounds_what_several_senders_deliver() {
        let mut network = network(5);
        for from in 0..4 {
            network.start_flow(Instant::ZERO, from, 4, MEGABYTE + FIRST_FLIGHT_BYTES);
        }
        let done = finish(&mut network);
        assert_eq!(done.len(), 4);
        assert!(done.values().all(|seconds| (seconds - 2.0).abs() < 1e-6), "4 MB at 2 MB/s: {done:?}");
    }

    #[test]
    fn groups_one_way_cuts_and_nat_decide_who_reaches_whom() {
        let mut network = network(3);
        network.set_group(2, 1);
        assert!(network.reaches(0, 1) && !network.reaches(0, 2) && !network.reaches(2, 0));
        network.set_cut(0, 1, true);
        assert!(!network.reaches(0, 1) && network.reaches(1, 0));
        network.heal();
        assert!(network.reaches(0, 1) && network.reaches(0, 2));
        for host in 0..2 {
            network.set_link(host, Link { reachable: false, ..*network.link(host) });
        }
        assert!(!network.reaches(0, 1), "both behind NAT");
        assert!(network.reaches(0, 2) && network.reaches(2, 0), "one dials, both talk");
        assert_eq!(network.message(0, 1, 100), None);
    }

    #[test]
    fn loss_costs_round_trips_and_jitter_reorders() {
        let mut lossy = network(2);
        let link = Link { loss: 0.3, jitter: 0.5, ..*lossy.link(0) };
        lossy.set_link(0, link);
        let delays: Vec<Duration> = (0..1000).filter_map(|_| lossy.message(0, 1, 0)).collect();
        assert!(delays.len() > 990, "lost for good only after {RETRANSMISSIONS_MAX} retransmissions");
        let base = lossy.base_latency(0, 1);
        assert!(delays.iter().all(|delay| *delay >= base));
        let resent = delays.iter().filter(|delay| **delay >= base * 3).count();
        assert!((250..450).contains(&resent), "{resent} of 1000 took a retransmission or a long queue");
        assert!(delays.windows(2).any(|pair| pair[1] + Duration::from_millis(1) < pair[0]), "overtaken");
    }
}
