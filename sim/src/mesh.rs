//! How gossip of one topic spreads: a random mesh of those who joined it, and along it the tree of first arrivals.
//!
//! Every host keeps a few neighbours in each topic, as gossipsub does (Vyzovitis et al. 2020), among those it reaches
//! without a relay. A message travels along every edge of the mesh; what a host hears first is what counts, so a message's
//! way is the tree of shortest latencies from its author, found once per author until the mesh changes. Copies that arrive
//! later cost bytes and nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;

use crate::network::{HostIndex, Network};
use crate::random::Random;

/// Neighbours a host looks for; with those that find it, about twice as many, in the range gossipsub keeps (6 to 12).
const NEIGHBOURS_SOUGHT: usize = 4;
/// What validating and forwarding a message takes at each hop.
const HOP: Duration = Duration::from_millis(1);

/// First arrivals of one author's messages: host, position of whom it hears from, latency of that edge.
type Tree = Rc<Vec<(HostIndex, usize, Duration)>>;

/// Who passes gossip of a topic to whom.
#[derive(Debug)]
pub struct Mesh {
    neighbours: Vec<BTreeSet<HostIndex>>,
    /// Those who have joined the topic and whose processes run.
    up: Vec<bool>,
    /// How many of its neighbours are up, of each host that is.
    degrees: Vec<usize>,
    trees: BTreeMap<HostIndex, Tree>,
    random: Random,
}

impl Mesh {
    /// A mesh of `hosts`, none of which is up yet; `topic` keeps the meshes of one seed apart.
    #[must_use]
    pub fn new(seed: u64, topic: &str, hosts: usize) -> Self {
        let mut mesh = Self {
            neighbours: Vec::new(),
            up: Vec::new(),
            degrees: Vec::new(),
            trees: BTreeMap::new(),
            random: Random::new(seed, &format!("mesh of {topic}")),
        };
        (0..hosts).for_each(|_| mesh.add());
        mesh
    }

    /// Adds the next host, which is not up yet.
    pub fn add(&mut self) {
        self.neighbours.push(BTreeSet::new());
        self.up.push(false);
        self.degrees.push(0);
    }

    /// A host passes messages on from now on, or does not. Those it leaves look for other neighbours, as gossipsub does at
    /// its heartbeat.
    pub fn set_up(&mut self, network: &Network, host: HostIndex, up: bool) {
        if std::mem::replace(&mut self.up[host], up) == up {
            return;
        }
        self.trees.clear();
        let near: Vec<HostIndex> =
            self.neighbours[host].iter().copied().filter(|&other| self.up[other]).collect();
        if up {
            self.degrees[host] = near.len();
            near.into_iter().for_each(|other| self.degrees[other] += 1);
            self.seek(network, host);
        } else {
            near.iter().for_each(|&other| self.degrees[other] -= 1);
            near.into_iter().for_each(|other| self.seek(network, other));
        }
    }

    /// Links have changed: neighbours that cannot be reached any more are replaced.
    pub fn rebuild(&mut self, network: &Network) {
        self.trees.clear();
        for host in 0..self.up.len() {
            if self.up[host] {
                self.seek(network, host);
            }
        }
    }

    /// Neighbours of a host that are up and in reach.
    pub fn live_neighbours<'a>(
        &'a self,
        network: &'a Network,
        host: HostIndex,
    ) -> impl Iterator<Item = HostIndex> + 'a {
        self.neighbours[host]
            .iter()
            .copied()
            .filter(move |&other| self.up[other] && network.reaches_directly(host, other))
    }

    fn seek(&mut self, network: &Network, host: HostIndex) {
        let have = self.live_neighbours(network, host).count();
        if have >= NEIGHBOURS_SOUGHT {
            return;
        }
        let candidates: Vec<HostIndex> = (0..self.up.len())
            .filter(|&other| other != host && self.up[other] && network.reaches_directly(host, other))
            .filter(|other| !self.neighbours[host].contains(other))
            .collect();
        for i in self.random.distinct(NEIGHBOURS_SOUGHT - have, candidates.len()) {
            self.neighbours[host].insert(candidates[i]);
            self.neighbours[candidates[i]].insert(host);
            self.degrees[host] += 1;
            self.degrees[candidates[i]] += 1;
        }
    }

    /// To whom a host hands a message of its own: its neighbours, or a few of those who joined if it did not.
    fn first_hearers(&mut self, network: &Network, author: HostIndex) -> Vec<HostIndex> {
        if self.up[author] {
            return self.live_neighbours(network, author).collect();
        }
        let joined: Vec<HostIndex> = (0..self.up.len())
            .filter(|&other| self.up[other] && network.reaches_directly(author, other))
            .collect();
        self.random.distinct(NEIGHBOURS_SOUGHT, joined.len()).into_iter().map(|i| joined[i]).collect()
    }

    /// Who hears a message of `author`, after how long, in this order; the author itself does not.
    pub fn spread(
        &mut self,
        network: &mut Network,
        author: HostIndex,
        bytes: u64,
    ) -> Vec<(Duration, HostIndex)> {
        let tree = match self.trees.get(&author) {
            Some(tree) => Rc::clone(tree),
            None => {
                let tree = Rc::new(self.first_arrivals(network, author));
                self.trees.insert(author, Rc::clone(&tree));
                tree
            }
        };
        let mut arrivals: Vec<Duration> = Vec::with_capacity(tree.len());
        let mut heard = Vec::with_capacity(tree.len());
        for (position, &(host, parent, latency)) in tree.iter().enumerate() {
            if position == 0 {
                arrivals.push(Duration::ZERO);
                continue;
            }
            // A copy for each neighbour leaves through one uplink, half of them before this one.
            let copies = self.neighbours[tree[parent].0].len().max(1).div_ceil(2) as u64;
            let wire = network.gossip_time(tree[parent].0, bytes * copies);
            let hop = latency.mul_f64(network.jitter_factor(host)) + wire + HOP;
            let at = arrivals[parent] + hop;
            arrivals.push(at);
            heard.push((at, host));
        }
        heard.sort_unstable();
        heard
    }

    /// Copies of each message that `host` sends on, and receives.
    #[must_use]
    pub fn degree(&self, host: HostIndex) -> usize {
        self.degrees[host]
    }

    /// Dijkstra (1959) over the mesh.
    fn first_arrivals(&mut self, network: &Network, author: HostIndex) -> Vec<(HostIndex, usize, Duration)> {
        let first = self.first_hearers(network, author);
        let mut tree = Vec::new();
        let mut seen = vec![false; self.up.len()];
        let mut heap = BinaryHeap::from([Reverse((Duration::ZERO, author, 0, Duration::ZERO))]);
        while let Some(Reverse((at, host, parent, edge))) = heap.pop() {
            if std::mem::replace(&mut seen[host], true) {
                continue;
            }
            tree.push((host, parent, edge));
            let position = tree.len() - 1;
            let mut pass = |other: HostIndex| {
                let latency = network.base_latency(host, other);
                heap.push(Reverse((at + latency + HOP, other, position, latency)));
            };
            if position == 0 {
                first.iter().for_each(|&other| pass(other));
            } else {
                self.live_neighbours(network, host).filter(|&other| !seen[other]).for_each(pass);
            }
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Link;

    fn swarm(hosts: usize) -> (Network, Mesh) {
        let (mut network, mut mesh) = (Network::new(1), Mesh::new(1, "records", 0));
        for host in 0..hosts {
            network.add(Link::DATACENTRE);
            mesh.add();
            mesh.set_up(&network, host, true);
        }
        (network, mesh)
    }

    #[test]
    fn a_message_reaches_everybody_once_within_a_few_hops() {
        let (mut network, mut mesh) = swarm(200);
        let heard = mesh.spread(&mut network, 7, 500);
        let hosts: BTreeSet<HostIndex> = heard.iter().map(|(_, host)| *host).collect();
        assert_eq!((heard.len(), hosts.len()), (199, 199), "each once, the author not");
        assert!(!hosts.contains(&7));
        let last = heard.last().expect("somebody").0;
        assert!(last < Duration::from_millis(11 * 8), "a few hops of 11 ms: {last:?}");
        assert!(heard.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }

    #[test]
    fn a_message_of_one_who_did_not_join_reaches_all_who_did() {
        let (mut network, mut mesh) = swarm(60);
        mesh.set_up(&network, 7, false);
        assert_eq!(mesh.spread(&mut network, 7, 500).len(), 59);
    }

    #[test]
    fn degrees_are_counted_right_through_comings_and_goings() {
        let (network, mut mesh) = swarm(60);
        for (host, up) in [(3, false), (9, false), (3, true), (40, false), (9, true), (9, true)] {
            mesh.set_up(&network, host, up);
        }
        for host in (0..60).filter(|&host| mesh.up[host]) {
            assert_eq!(mesh.degree(host), mesh.live_neighbours(&network, host).count(), "{host}");
        }
    }

    #[test]
    fn those_who_are_left_find_each_other_when_most_are_gone() {
        let (mut network, mut mesh) = swarm(60);
        (0..50).for_each(|host| mesh.set_up(&network, host, false));
        assert_eq!(mesh.spread(&mut network, 55, 500).len(), 9);
    }

    #[test]
    fn a_message_stays_in_its_group_and_comes_back_after_the_heal() {
        let (mut network, mut mesh) = swarm(60);
        (0..20).for_each(|host| network.set_group(host, 1));
        mesh.rebuild(&network);
        assert_eq!(mesh.spread(&mut network, 3, 500).len(), 19);
        assert_eq!(mesh.spread(&mut network, 30, 500).len(), 39);
        network.heal();
        mesh.rebuild(&network);
        assert_eq!(mesh.spread(&mut network, 3, 500).len(), 59);
    }

    #[test]
    fn hosts_behind_nat_hear_through_those_that_are_not() {
        let (mut network, mut mesh) = swarm(40);
        (10..40).for_each(|host| network.set_link(host, Link::HOME));
        mesh.rebuild(&network);
        assert_eq!(mesh.spread(&mut network, 20, 500).len(), 39);
    }
}
