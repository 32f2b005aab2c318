//! What hosts think of those whose gossip they had to refuse: the part of gossipsub 1.1's peer score that refused messages
//! make (P4), with the node's parameters. Whoever is graylisted is listened to no more, until that fades.

use std::collections::BTreeMap;

use iota_protocol::limits::{GOSSIP_GRAYLIST, GOSSIP_REFUSED_DECAY, GOSSIP_REFUSED_WEIGHT};
use iota_protocol::time::Instant;
use iota_protocol::wire::message::Topic;

use crate::network::HostIndex;

/// Messages that were refused in a topic, faded until then.
type Refused = BTreeMap<Topic, (f64, Instant)>;

/// What every host thinks of every other.
#[derive(Debug, Default)]
pub struct Reputations {
    refused: BTreeMap<(HostIndex, HostIndex), Refused>,
}

impl Reputations {
    /// A host refused what a neighbour sent it, for a reason that no honest peer causes.
    pub fn refuse(&mut self, host: HostIndex, neighbour: HostIndex, topic: Topic, now: Instant) {
        let (count, at) =
            self.refused.entry((host, neighbour)).or_default().entry(topic).or_insert((0.0, now));
        (*count, *at) = (faded(*count, *at, now) + 1.0, now);
    }

    /// Whether a host listens to nothing that a neighbour sends it.
    #[must_use]
    pub fn graylists(&self, host: HostIndex, neighbour: HostIndex, now: Instant) -> bool {
        let Some(refused) = self.refused.get(&(host, neighbour)) else { return false };
        let square = |(count, at): &(f64, Instant)| {
            let count = faded(*count, *at, now);
            count * count
        };
        GOSSIP_REFUSED_WEIGHT * refused.values().map(square).sum::<f64>() < GOSSIP_GRAYLIST
    }

    /// A host's process has ended, and with it what it thought.
    pub fn forget(&mut self, host: HostIndex) {
        self.refused.retain(|(of, _), _| *of != host);
    }

    /// Whether nobody was refused anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.refused.is_empty()
    }
}

/// A count of refused messages, later.
fn faded(count: f64, at: Instant, now: Instant) -> f64 {
    count * libm::pow(GOSSIP_REFUSED_DECAY, now.since(at).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_fifth_refused_message_is_the_last_that_is_heard_for_a_while() {
        let (host, neighbour, now) = (0, 1, Instant::from_nanos(1));
        let mut reputations = Reputations::default();
        let mut heard = 0;
        while !reputations.graylists(host, neighbour, now) {
            reputations.refuse(host, neighbour, Topic::Records, now);
            heard += 1;
        }
        assert_eq!(heard, 5);
        assert!(!reputations.graylists(neighbour, host, now), "not the other way");
        assert!(!reputations.graylists(2, neighbour, now), "nor by others");
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(reputations.graylists(host, neighbour, later(200)));
        assert!(!reputations.graylists(host, neighbour, later(250)), "five fade to four in 223 seconds");
        reputations.forget(host);
        assert!(reputations.is_empty());
    }

    #[test]
    fn what_is_refused_in_several_topics_adds_up() {
        let now = Instant::from_nanos(1);
        let mut reputations = Reputations::default();
        for topic in [Topic::Records, Topic::Control] {
            for _ in 0..3 {
                assert!(!reputations.graylists(0, 1, now));
                reputations.refuse(0, 1, topic, now);
            }
        }
        assert!(reputations.graylists(0, 1, now), "5 × (9 + 9) is above 80");
    }
}
