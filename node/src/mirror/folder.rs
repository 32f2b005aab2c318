//! What a folder cannot do as an object store: the compare-and-swap of the pointer, and cleaning up after writers that died.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::layout::{BLOBS, CHECKPOINTS, LATEST};
use crate::blobs::Hash32;

/// The file whose lock guards the pointer. It is never deleted: a lock on a deleted file guards nothing.
const LOCK: &str = "latest.lock";
/// Where the next pointer is written before it takes the place of the old one. Its name is not one of the layout.
const NEXT: &str = "latest.next";
/// Pause between two attempts at the lock. It is held for as long as a small file takes to reach the disk.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// What became of a swap.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Swap {
    /// The pointer is the new one.
    Done,
    /// The pointer was another than expected, and still is.
    Other,
}

/// Replaces the pointer if it is the expected one, told by its hash. Blocks.
///
/// The operating system's lock on a file excludes other processes and other threads. It is released when its holder
/// ends, in whatever way, so no lock is ever stale; a holder that hangs is waited for until `deadline`. The new pointer
/// is on the disk before it takes the old one's place, and takes it in one step: who reads sees one or the other.
/// All of it holds on the disks of one machine, and on network file systems as far as they honour locks.
///
/// # Errors
/// The system's. [`io::ErrorKind::TimedOut`] says that the lock was not to be had.
pub(super) fn swap_latest(
    folder: &Path,
    expected: Option<Hash32>,
    next: &[u8],
    deadline: Instant,
) -> io::Result<Swap> {
    fs::create_dir_all(folder)?;
    let lock = File::options().create(true).append(true).open(folder.join(LOCK))?;
    acquire(&lock, deadline)?;
    let (path, staged) = (folder.join(LATEST), folder.join(NEXT));
    let found = match fs::read(&path) {
        Ok(bytes) => Some(*blake3::hash(&bytes).as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if found != expected {
        return Ok(Swap::Other);
    }
    let mut file = File::create(&staged)?;
    file.write_all(next)?;
    file.sync_all()?;
    fs::rename(&staged, &path)?;
    File::open(folder)?.sync_all()?;
    Ok(Swap::Done)
    // The lock ends with the file that carries it.
}

fn acquire(lock: &File, deadline: Instant) -> io::Result<()> {
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process holds the pointer's lock",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Deletes what writers left that died in the middle: the object store writes to a file named `name#1`, say, and gives
/// it its name when it is whole. Returns how many there were. Blocks.
///
/// # Errors
/// The system's. Files and folders that others delete meanwhile are none.
pub(super) fn sweep(folder: &Path, older_than: Duration) -> io::Result<u64> {
    let mut swept = sweep_folder(&folder.join(CHECKPOINTS), older_than)?;
    for entry in entries(&folder.join(BLOBS))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            swept += sweep_folder(&entry.path(), older_than)?;
        }
    }
    Ok(swept)
}

fn sweep_folder(folder: &Path, older_than: Duration) -> io::Result<u64> {
    let mut swept = 0;
    for entry in entries(folder)? {
        let entry = entry?;
        if !is_staged(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let removed = age(&entry).and_then(|age| match age >= older_than {
            true => fs::remove_file(entry.path()).map(|()| 1),
            false => Ok(0),
        });
        swept += unless_gone(removed, 0)?;
    }
    Ok(swept)
}

/// The entries of a folder; none if it is not there.
fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>> + use<>> {
    let read = fs::read_dir(folder).map(Some);
    Ok(unless_gone(read, None)?.into_iter().flatten())
}

fn unless_gone<T>(result: io::Result<T>, gone: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(gone),
        result => result,
    }
}

fn is_staged(name: &str) -> bool {
    name.split_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

fn age(entry: &fs::DirEntry) -> io::Result<Duration> {
    let written = entry.metadata()?.modified()?;
    Ok(SystemTime::now().duration_since(written).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn hash(bytes: &[u8]) -> Option<Hash32> {
        Some(*blake3::hash(bytes).as_bytes())
    }

    #[test]
    fn only_the_expected_pointer_is_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("mirror");
        let swap = |expected, next: &[u8]| swap_latest(&folder, expected, next, soon()).unwrap();
        assert_eq!(swap(hash(b"zero"), b"one"), Swap::Other, "there is none");
        assert_eq!(swap(None, b"one"), Swap::Done);
        assert_eq!(swap(None, b"two"), Swap::Other);
        assert_eq!(swap(hash(b"zero"), b"two"), Swap::Other);
        assert_eq!(fs::read(folder.join(LATEST)).unwrap(), b"one");
        assert_eq!(swap(hash(b"one"), b"two"), Swap::Done);
        assert_eq!(fs::read(folder.join(LATEST)).unwrap(), b"two");
        assert!(!folder.join(NEXT).exists());
    }

    #[test]
    fn a_lock_that_is_held_is_waited_for_until_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let held = File::create(folder.path().join(LOCK)).unwrap();
        held.lock().unwrap();
        let error = swap_latest(folder.path(), None, b"one", Instant::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(held);
        assert_eq!(swap_latest(folder.path(), None, b"one", Instant::now()).unwrap(), Swap::Done);
    }

    #[test]
    fn what_a_dead_swap_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NEXT), b"half a poin").unwrap();
        assert_eq!(swap_latest(folder.path(), None, b"one", soon()).unwrap(), Swap::Done);
        assert_eq!(fs::read(folder.path().join(LATEST)).unwrap(), b"one");
    }

    #[test]
    fn sweeping_takes_old_staged_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join(BLOBS).join("ab");
        fs::create_dir_all(&blobs).unwrap();
        for name in ["abcd", "abcd#1", "abcd#x"] {
            fs::write(blobs.join(name), b"").unwrap();
        }
        assert_eq!(sweep(folder.path(), Duration::from_secs(3600)).unwrap(), 0, "young ones may be alive");
        assert_eq!(sweep(folder.path(), Duration::ZERO).unwrap(), 1);
        assert!(blobs.join("abcd").exists() && blobs.join("abcd#x").exists());
        assert!(!blobs.join("abcd#1").exists());
        assert_eq!(sweep(&folder.path().join("nowhere"), Duration::ZERO).unwrap(), 0);
    }
}
