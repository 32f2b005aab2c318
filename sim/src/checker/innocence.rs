//! Nobody honest is punished: no honest peer is evicted by a verdict, whatever others do, and honest peers refuse each
//! other's messages only for reasons that cost no reputation.

use std::collections::BTreeSet;

use iota_protocol::PeerId;
use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;

use super::broken;
use crate::observe::{Observation, Observer, Seen, Violation};

const NAME: &str = "innocence";

/// The checker.
#[derive(Clone, Debug, Default)]
pub struct Innocence {
    honest: BTreeSet<PeerId>,
}

impl Observer for Innocence {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        if !seen.honest {
            return Ok(());
        }
        match seen.seen {
            Seen::Started => self.honest.extend(seen.peer.map(|peer| peer.id())),
            Seen::Notice(Notice::State(StateEvent::Evicted(peer, reason)))
                if self.honest.contains(peer) && reason.is_proven() =>
            {
                return Err(broken(NAME, seen, format!("honest {peer} is evicted: {reason}")));
            }
            Seen::Notice(Notice::State(StateEvent::Dismissed(peer, reason)))
                if self.honest.contains(peer) && reason.is_proven() =>
            {
                return Err(broken(NAME, seen, format!("honest {peer} is dismissed: {reason}")));
            }
            Seen::Rejected(Some(sender), reason)
                if self.honest.contains(&sender) && !reason.is_innocent() =>
            {
                return Err(broken(NAME, seen, format!("refuses honest {sender}: {reason}")));
            }
            _ => {}
        }
        Ok(())
    }
}
