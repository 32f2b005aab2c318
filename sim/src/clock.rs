//! A host's clock, which runs a little fast or slow and started at its own zero.

use std::time::Duration;

use iota_protocol::Instant;

/// How a host's clock relates to virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What it shows when virtual time is zero.
    pub offset: Duration,
    /// Parts per million that it is fast.
    pub drift_ppm: i32,
}

impl Clock {
    /// A clock that shows virtual time.
    pub const EXACT: Self = Self { offset: Duration::ZERO, drift_ppm: 0 };

    fn rate(self) -> i128 {
        1_000_000 + i128::from(self.drift_ppm)
    }

    /// What it shows at virtual time `at`.
    #[must_use]
    pub fn local(self, at: Instant) -> Instant {
        if self == Self::EXACT {
            return at;
        }
        Instant::from_nanos(clamp(i128::from(at.as_nanos()) * self.rate() / 1_000_000)) + self.offset
    }

    /// The first virtual time at which it shows `local` or more.
    #[must_use]
    pub fn global(self, local: Instant) -> Instant {
        if self == Self::EXACT {
            return local;
        }
        let since =
            i128::try_from(local.since(Instant::ZERO + self.offset).as_nanos()).unwrap_or(i128::MAX >> 32);
        Instant::from_nanos(clamp((since * 1_000_000 + self.rate() - 1) / self.rate()))
    }
}

fn clamp(nanos: i128) -> u64 {
    u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_on_a_skewed_clock_is_met_at_the_first_moment_it_shows_it() {
        for drift_ppm in [-500, 0, 1, 300] {
            let clock = Clock { offset: Duration::from_secs(17), drift_ppm };
            for nanos in [1, 999, 1_000_000_007, 86_400_000_000_123] {
                let deadline = clock.local(Instant::from_nanos(nanos));
                let at = clock.global(deadline);
                assert!(clock.local(at) >= deadline, "{drift_ppm} ppm, {nanos} ns");
                assert!(at.as_nanos().abs_diff(nanos) <= 2, "{drift_ppm} ppm, {nanos} ns: {at:?}");
            }
        }
    }
}
