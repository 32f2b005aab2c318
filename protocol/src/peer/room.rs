//! How much room a peer's disk has left, and what the peer does about it.
//!
//! | room | begins | ends | a miner |
//! |---|---|---|---|
//! | enough | | | works |
//! | near | 90 % of the quota, or [`DISK_NEAR_BYTES`] free | below 80 %, and half as much free again | leaves: ends its epoch, hands over |
//! | full | the quota, or [`DISK_FULL_BYTES`] free | below 95 %, and twice as much free | stops and gives its place up at once |
//!
//! In any case what is there is served, and when there is room again the miner asks for a place by itself. A file system so
//! small that the marks would be most of it has lower ones, in proportion to its size.

use std::fmt;

use crate::limits::{DISK_FULL_BYTES, DISK_FULL_SHARE, DISK_NEAR_BYTES, DISK_NEAR_SHARE};

/// Percent of the quota from which room is near its end, and below which it is enough again.
const NEAR_PERCENT: [u64; 2] = [90, 80];
/// Percent of the quota from which there is no room, and below which there is some again.
const FULL_PERCENT: [u64; 2] = [100, 95];

/// What a peer keeps on its disk and what else there is room for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUse {
    /// What the peer keeps.
    pub kept: u64,
    /// The most it may keep, if there is a limit.
    pub quota: Option<u64>,
    /// What anybody may still write to the file system.
    pub free: u64,
    /// The size of the file system.
    pub size: u64,
}

impl DiskUse {
    /// Free bytes below which room is near its end.
    #[must_use]
    pub fn near_mark(&self) -> u64 {
        DISK_NEAR_BYTES.min(self.size / DISK_NEAR_SHARE)
    }

    /// Free bytes below which there is no room.
    #[must_use]
    pub fn full_mark(&self) -> u64 {
        DISK_FULL_BYTES.min(self.size / DISK_FULL_SHARE)
    }

    fn is_short(&self, percent: u64, mark: u64) -> bool {
        let over = |quota: u64| u128::from(self.kept) * 100 >= u128::from(quota) * u128::from(percent);
        self.free < mark || self.quota.is_some_and(over)
    }
}

/// How much room there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// For work.
    #[default]
    Enough,
    /// To end what was begun.
    Near,
    /// None.
    Full,
}

impl Room {
    /// The room on a disk on which it was `self` before.
    #[must_use]
    pub fn after(self, disk: &DiskUse) -> Self {
        let (near, full) = (disk.near_mark(), disk.full_mark());
        let [near_from, near_until] = NEAR_PERCENT;
        let [full_from, full_until] = FULL_PERCENT;
        let is_full = disk.is_short(full_from, full);
        let is_near = disk.is_short(near_from, near);
        match self {
            _ if is_full => Self::Full,
            Self::Full if disk.is_short(full_until, full * 2) => Self::Full,
            _ if is_near => Self::Near,
            Self::Near | Self::Full if disk.is_short(near_until, near + near / 2) => Self::Near,
            _ => Self::Enough,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::Near => "near",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// The rooms that follow upon each other.
    fn rooms(disks: impl IntoIterator<Item = DiskUse>) -> Vec<Room> {
        let mut room = Room::default();
        let after = |disk| {
            room = room.after(&disk);
            room
        };
        disks.into_iter().map(after).collect()
    }

    #[test]
    fn a_quota_is_left_again_only_some_way_below_where_it_was_met() {
        let kept = |percent: u64| DiskUse {
            kept: percent * GIB,
            quota: Some(100 * GIB),
            free: GIB,
            size: 999 * GIB,
        };
        let percents = [0, 89, 90, 85, 80, 79, 89, 100, 99, 95, 94, 80, 79, 300];
        use Room::{Enough, Full, Near};
        let expected =
            [Enough, Enough, Near, Near, Near, Enough, Enough, Full, Full, Full, Near, Near, Enough, Full];
        assert_eq!(rooms(percents.map(kept)), expected);
    }

    #[test]
    fn so_is_a_file_system_that_fills() {
        let free = |free: u64| DiskUse { kept: 0, quota: None, free, size: 999 * GIB };
        let (near, full) = (DISK_NEAR_BYTES, DISK_FULL_BYTES);
        let frees = [near, near - 1, near, near * 3 / 2, full, full - 1, full, full * 2, near * 3 / 2, 0];
        use Room::{Enough, Full, Near};
        assert_eq!(
            rooms(frees.map(free)),
            [Enough, Near, Near, Enough, Near, Full, Full, Near, Enough, Full]
        );
    }

    #[test]
    fn on_a_small_file_system_the_marks_are_shares_of_it() {
        let disk = DiskUse { kept: 0, quota: None, free: 0, size: 64 << 20 };
        assert_eq!((disk.near_mark(), disk.full_mark()), (16 << 20, 4 << 20));
        let roomy = DiskUse { free: 64 << 20, ..disk };
        assert_eq!(Room::Enough.after(&roomy), Room::Enough);
        assert_eq!(Room::Enough.after(&disk), Room::Full);
    }

    #[test]
    fn the_largest_quota_overflows_nothing() {
        let disk = DiskUse { kept: u64::MAX, quota: Some(u64::MAX), free: u64::MAX, size: u64::MAX };
        assert_eq!(Room::Enough.after(&disk), Room::Full);
        assert_eq!(Room::Full.after(&DiskUse { kept: 0, ..disk }), Room::Enough);
    }
}
