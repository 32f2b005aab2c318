//! Who has joined which gossip topic: one [`Mesh`] for each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iota_protocol::wire::message::Topic;

use crate::mesh::Mesh;
use crate::network::{HostIndex, Network};

/// The meshes of all topics.
#[derive(Debug)]
pub struct Topics {
    seed: u64,
    meshes: BTreeMap<Topic, Mesh>,
    joined: Vec<BTreeSet<Topic>>,
    up: Vec<bool>,
}

impl Topics {
    /// No hosts and no topics.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed, meshes: BTreeMap::new(), joined: Vec::new(), up: Vec::new() }
    }

    /// Adds the next host, which is not up yet.
    pub fn add(&mut self) {
        self.joined.push(BTreeSet::new());
        self.up.push(false);
        self.meshes.values_mut().for_each(Mesh::add);
    }

    /// A host's process runs from now on, or does not; it stays in the topics it has joined.
    pub fn set_up(&mut self, network: &Network, host: HostIndex, up: bool) {
        self.up[host] = up;
        for topic in &self.joined[host] {
            if let Some(mesh) = self.meshes.get_mut(topic) {
                mesh.set_up(network, host, up);
            }
        }
    }

    /// A host's process is gone, and with it what it had joined.
    pub fn forget(&mut self, network: &Network, host: HostIndex) {
        self.set_up(network, host, false);
        self.joined[host].clear();
    }

    /// A host joins a topic.
    pub fn join(&mut self, network: &Network, host: HostIndex, topic: Topic) {
        self.joined[host].insert(topic);
        let up = self.up[host];
        self.mesh(topic).set_up(network, host, up);
    }

    /// A host leaves a topic.
    pub fn leave(&mut self, network: &Network, host: HostIndex, topic: Topic) {
        self.joined[host].remove(&topic);
        self.mesh(topic).set_up(network, host, false);
    }

    /// Links have changed.
    pub fn rebuild(&mut self, network: &Network) {
        self.meshes.values_mut().for_each(|mesh| mesh.rebuild(network));
    }

    /// Who hears a message of `author`, after how long, in this order; the author itself does not.
    pub fn spread(
        &mut self,
        network: &mut Network,
        author: HostIndex,
        topic: Topic,
        bytes: u64,
    ) -> Vec<(Duration, HostIndex)> {
        self.mesh(topic).spread(network, author, bytes)
    }

    /// Neighbours of a host in a topic that are up and in reach.
    #[must_use]
    pub fn live_neighbours(&self, network: &Network, host: HostIndex, topic: Topic) -> Vec<HostIndex> {
        let mesh = self.meshes.get(&topic);
        mesh.map(|mesh| mesh.live_neighbours(network, host).collect()).unwrap_or_default()
    }

    /// Copies of each message of a topic that `host` sends on, and receives.
    #[must_use]
    pub fn degree(&self, host: HostIndex, topic: Topic) -> usize {
        self.meshes.get(&topic).map_or(0, |mesh| mesh.degree(host))
    }

    fn mesh(&mut self, topic: Topic) -> &mut Mesh {
        let (seed, hosts) = (self.seed, self.joined.len());
        self.meshes.entry(topic).or_insert_with(|| Mesh::new(seed, &topic.name(), hosts))
    }
}

#[cfg(test)]
mod tests {
    use iota_protocol::StageIndex;

    use super::*;
    use crate::network::Link;

    #[test]
    fn a_message_is_heard_by_those_who_joined_its_topic_and_still_run() {
        let (mut network, mut topics) = (Network::new(1), Topics::new(1));
        let topic = |host: HostIndex| Topic::Merge(StageIndex(u16::from(host >= 20)));
        for host in 0..40 {
            network.add(Link::DATACENTRE);
            topics.add();
            topics.set_up(&network, host, true);
            topics.join(&network, host, topic(host));
        }
        assert_eq!(topics.spread(&mut network, 0, topic(0), 100).len(), 19);
        topics.join(&network, 30, topic(0));
        topics.leave(&network, 5, topic(0));
        topics.forget(&network, 6);
        topics.set_up(&network, 7, false);
        let heard = topics.spread(&mut network, 0, topic(0), 100);
        let heard: BTreeSet<HostIndex> = heard.into_iter().map(|(_, host)| host).collect();
        let expected: BTreeSet<HostIndex> =
            (1..20).filter(|host| !(5..8).contains(host)).chain([30]).collect();
        assert_eq!(heard, expected);
        topics.set_up(&network, 6, true);
        topics.set_up(&network, 7, true);
        let again: Vec<HostIndex> =
            topics.spread(&mut network, 0, topic(0), 100).into_iter().map(|(_, host)| host).collect();
        assert!(again.contains(&7) && !again.contains(&6), "a new process has joined nothing yet");
    }
}
