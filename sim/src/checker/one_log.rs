//! There is one history: every honest peer's log is a prefix of it, also of the log it had before it restarted, and leads to
//! the states that it names.

use std::collections::BTreeMap;

use iota_protocol::Hash;
use iota_protocol::miner::Notice;

use super::broken;
use crate::network::HostIndex;
use crate::observe::{Observation, Observer, Seen, Violation};
use crate::world::World;

const NAME: &str = "one_log";

/// The checker.
#[derive(Debug, Default)]
pub struct OneLog {
    /// Chain hash after each entry of the longest log seen.
    chains: Vec<Hash>,
    /// Entries of each host's log that were compared.
    compared: BTreeMap<HostIndex, usize>,
}

impl Observer for OneLog {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let Some(peer) = seen.peer.filter(|_| seen.honest) else { return Ok(()) };
        if let Seen::Notice(Notice::Diverged(index)) = seen.seen {
            let what = format!("entry {index} names another state than the one found here");
            return Err(broken(NAME, seen, what));
        }
        let compared = self.compared.entry(seen.host).or_default();
        if matches!(seen.seen, Seen::Started) {
            *compared = 0;
        }
        let len = peer.log().len();
        if len < *compared {
            return Err(broken(NAME, seen, format!("{len} entries are left of {compared} decided ones")));
        }
        for index in (*compared).max(peer.log().first().saturating_sub(1))..len {
            let Some(chain) = peer.log().chain(index + 1) else { break };
            match self.chains.get(index) {
                Some(known) if *known != chain => {
                    let what = format!("entry {index} has chain hash {chain}, others decided {known}");
                    return Err(broken(NAME, seen, what));
                }
                Some(_) => {}
                None => self.chains.push(chain),
            }
        }
        *compared = len;
        Ok(())
    }

    fn finish(&mut self, world: &World) -> Result<(), Violation> {
        for (host, virtual_host) in world.hosts().iter().enumerate().filter(|(_, host)| host.is_honest()) {
            let Some(peer) = virtual_host.peer() else { continue };
            let lies = |what: String| Violation { checker: NAME, at: world.now(), host: Some(host), what };
            let changed = (peer.log().first()..peer.log().len()).find(|&index| {
                self.chains.get(index).is_some_and(|known| peer.log().chain(index + 1) != Some(*known))
            });
            if let Some(index) = changed {
                return Err(lies(format!("entry {index} is not what was decided")));
            }
            if peer.state().applied() != peer.log().len() as u64 {
                return Err(lies(format!(
                    "{} of {} entries applied",
                    peer.state().applied(),
                    peer.log().len()
                )));
            }
        }
        Ok(())
    }
}
