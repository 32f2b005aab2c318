//! The decided log, folded by a checker itself.

use std::sync::Arc;

use iota_protocol::run_state::{RunState, StateEvent};
use iota_protocol::{LogIndex, RunSpec};

use super::Options;
use crate::observe::{Observation, Violation};

/// The log as far as any honest host knows it.
#[derive(Debug)]
pub(super) struct History {
    state: RunState,
}

impl History {
    /// The history of a run before its first decision.
    pub(super) fn new(options: &Options) -> Self {
        let spec: &Arc<RunSpec> = &options.spec;
        let parameters = options.compute.parameters(spec, &options.costs);
        Self { state: RunState::new(Arc::clone(spec), &parameters) }
    }

    /// The fold of all entries seen.
    pub(super) const fn state(&self) -> &RunState {
        &self.state
    }

    /// Folds the entries that an honest host knows first. `look` sees each entry's events and the state right after it.
    pub(super) fn follow(
        &mut self,
        seen: &Observation<'_>,
        mut look: impl FnMut(&RunState, &StateEvent) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let Some(peer) = seen.peer.filter(|_| seen.honest) else { return Ok(()) };
        while let Ok(index) = usize::try_from(self.state.applied()) {
            let Some((entry, chain)) = peer.log().entry(index) else { break };
            for event in self.state.apply(LogIndex(index as u64), chain, entry.as_ref()) {
                look(&self.state, &event)?;
            }
        }
        Ok(())
    }
}
