//! From a miner's start to its first contribution that counts, and what that time went into.

use std::time::Duration;

use crate::time::Instant;

/// When a miner got how far, since its process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    started: Option<Instant>,
    /// It heard from another peer of the run.
    pub connected: Option<Duration>,
    /// It had a place.
    pub admitted: Option<Duration>,
    /// It held the newest weights of its stage.
    pub ready: Option<Duration>,
    /// A merge with its contribution was decided.
    pub counted: Option<Duration>,
}

/// A step of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Connected,
    Admitted,
    Ready,
    Counted,
}

impl Arrival {
    /// Time passes for a process.
    pub(super) fn start(&mut self, now: Instant) {
        self.started.get_or_insert(now);
    }

    /// Notes the first time of a step; returns whether it was that. What an earlier process contributed is told before this
    /// one is ready, and is not its own.
    pub(super) fn note(&mut self, now: Instant, step: Step) -> bool {
        let Some(started) = self.started else { return false };
        let slot = match step {
            Step::Connected => &mut self.connected,
            Step::Admitted => &mut self.admitted,
            Step::Ready => &mut self.ready,
            Step::Counted if self.ready.is_none() => return false,
            Step::Counted => &mut self.counted,
        };
        let first = slot.is_none();
        slot.get_or_insert(now.since(started));
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn steps_count_from_the_start_and_once() {
        let mut arrival = Arrival::default();
        assert!(!arrival.note(at(1), Step::Admitted), "what is read from disk is not of this process");
        arrival.start(at(2));
        arrival.start(at(3));
        assert!(!arrival.note(at(4), Step::Counted), "an earlier process did that");
        for step in [Step::Connected, Step::Admitted, Step::Ready, Step::Counted] {
            assert!(arrival.note(at(5), step));
            assert!(!arrival.note(at(9), step));
        }
        let three = Some(Duration::from_secs(3));
        assert_eq!([arrival.connected, arrival.admitted, arrival.ready, arrival.counted], [three; 4]);
    }
}
