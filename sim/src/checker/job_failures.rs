//! Honest engines fail only for want of room on their disks.

use std::collections::BTreeMap;
use std::time::Duration;

use iota_protocol::Instant;
use iota_protocol::miner::Notice;

use super::broken;
use crate::faults::Fault;
use crate::network::HostIndex;
use crate::observe::{Observation, Observer, Seen, Violation};

const NAME: &str = "job_failures";
/// A job that found no room may end this long after there is room again. No job of a simulation takes longer.
const GRACE: Duration = Duration::from_secs(60);

/// The checker.
#[derive(Clone, Debug, Default)]
pub struct JobFailures {
    /// The size of disks before they were made smaller, and when they last were too small.
    small: BTreeMap<HostIndex, (u64, Instant)>,
}

impl Observer for JobFailures {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        match seen.seen {
            Seen::Fault(Fault::Disk(host, bytes)) => {
                let (before, until) = self.small.entry(*host).or_insert((seen.store.quota(), seen.at));
                *before = (*before).max(*bytes);
                *until = seen.at;
            }
            Seen::Notice(Notice::JobFailed(why)) if seen.honest => {
                let excused = self.small.get(&seen.host).is_some_and(|(before, until)| {
                    seen.store.quota() < *before || seen.at.since(*until) < GRACE
                });
                if !excused {
                    return Err(broken(NAME, seen, format!("with room on disk: {why}")));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
