//! What a node keeps on its disk, what room there is, and what it holds in reserve.
//!
//! A blob that finds no room fails alone. A database that finds none is of no use any more until it is opened anew, and the
//! vote of a candidate cannot wait. So what the databases will need next is allocated before they need it, in the holes of
//! their files and beyond their ends (`fallocate` with `FALLOC_FL_KEEP_SIZE`), and blobs are refused while there is still room for everything else:
//! [`Room`](iota_protocol::peer::room::Room) says when. A database that shortens its file gives back what was allocated beyond the end, so
//! they are looked at many times a second, and what was given back is allocated again.
//!
//! On a file system that does not allocate in advance, such as ZFS, only the second holds.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use iota_protocol::peer::room::DiskUse;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};
use rustix::io::Errno;

/// The databases in a node's folder.
const DATABASES: [&str; 2] = ["node.redb", "blobs/blobs.db"];
/// Room in reserve for each database. A log of a few entries a second takes hours to fill it.
const RESERVE_BYTES: u64 = 16 << 20;
/// The same on a small file system: one part in so many.
const RESERVE_SHARE: u64 = 32;
/// Between two counts of what is kept, which take a moment where there are many blobs. The free room of the file system is
/// looked at each time.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at how long the databases are, and how much of them is allocated.
const EXTENTS_EVERY: Duration = Duration::from_millis(20);
/// Bytes in a block, as the system counts those of a file.
const BLOCK_BYTES: u64 = 512;

/// Looks at the folder of a node; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct DiskWatch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    folder: PathBuf,
    quota: Option<u64>,
    /// What was kept, and when it was counted.
    counted: Mutex<Option<(u64, Instant)>>,
}

impl DiskWatch {
    /// Of the node whose folder this is, which may keep `quota` bytes if there is a limit.
    pub(crate) fn new(folder: &Path, quota: Option<u64>) -> Self {
        Self(Arc::new(Watched { folder: folder.to_owned(), quota, counted: Mutex::new(None) }))
    }

    /// What there is now.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn look(&self) -> io::Result<DiskUse> {
        let kept = self.kept()?;
        let system = statvfs(&self.0.folder)?;
        Ok(DiskUse {
            kept,
            quota: self.0.quota,
            free: system.f_bavail.saturating_mul(system.f_frsize),
            size: system.f_blocks.saturating_mul(system.f_frsize),
        })
    }

    fn kept(&self) -> io::Result<u64> {
        let mut counted = self.0.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kept, _)) = counted.filter(|(_, at)| at.elapsed() < COUNT_EVERY) {
            return Ok(kept);
        }
        let kept = allocated(&self.0.folder)?;
        *counted = Some((kept, Instant::now()));
        Ok(kept)
    }

    /// Keeps a reserve for the databases from now on, in a thread that ends when nobody watches the disk any more.
    ///
    /// # Errors
    /// What the system said of the thread.
    pub(crate) fn keep_reserve(&self) -> io::Result<()> {
        let watched = Arc::downgrade(&self.0);
        let renew = move || {
            let mut reserved = None;
            while let Some(watch) = watched.upgrade().map(Self) {
                if reserved != Some(watch.extents()) {
                    watch.reserve();
                    reserved = Some(watch.extents());
                }
                drop(watch);
                thread::sleep(EXTENTS_EVERY);
            }
        };
        thread::Builder::new().name("disk-reserve".to_owned()).spawn(renew).map(drop)
    }

    /// How long each database is, and how many blocks it has.
    fn extents(&self) -> [Option<(u64, u64)>; 2] {
        self.databases().map(|path| fs::metadata(path).ok().map(|about| (about.len(), about.blocks())))
    }

    fn databases(&self) -> [PathBuf; 2] {
        DATABASES.map(|name| self.0.folder.join(name))
    }

    /// Allocates what the databases will need next, as far as there is room; what is allocated already costs nothing.
    pub(crate) fn reserve(&self) {
        match statvfs(&self.0.folder) {
            Ok(system) => self.reserve_on(system.f_blocks.saturating_mul(system.f_frsize)),
            Err(error) => tracing::debug!(%error, "no room in reserve"),
        }
    }

    /// The same on a file system of so many bytes.
    fn reserve_on(&self, size: u64) {
        let reserve = RESERVE_BYTES.min(size / RESERVE_SHARE);
        for path in self.databases() {
            let opened = OpenOptions::new().read(true).write(true).open(&path);
            let reserved = opened.and_then(|file| Ok(allocate_ahead(&file, reserve)?));
            if let Err(error) = reserved {
                tracing::debug!(path = %path.display(), %error, "no room in reserve");
            }
        }
    }
}

/// Allocates `bytes` in the holes of a file, from the first on, and beyond its end. What is allocated and not written is
/// still a hole, so nothing is allocated twice; what was read too is none, and all holes together are less than the file.
fn allocate_ahead(file: &File, bytes: u64) -> rustix::io::Result<()> {
    let (mut at, mut left) = (0, bytes);
    while left > 0 {
        let hole = seek(file, SeekFrom::Hole(at))?;
        at = match seek(file, SeekFrom::Data(hole)) {
            Err(Errno::NXIO) => u64::MAX,
            found => found?,
        };
        let length = left.min(at.saturating_sub(hole));
        fallocate(file, FallocateFlags::KEEP_SIZE, hole, length)?;
        left -= length;
    }
    Ok(())
}

/// Bytes that the files below `folder` take up. One that is deleted meanwhile counts nothing.
fn allocated(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata().and_then(|about| match about.is_dir() {
            true => allocated(&entry.path()),
            false => Ok(about.blocks().saturating_mul(BLOCK_BYTES)),
        });
        bytes += match found {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            found => found.unwrap_or(0),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn what_is_kept_is_counted_in_all_folders_and_again_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("blobs")).unwrap();
        fs::write(folder.path().join("blobs/one"), vec![1; 1 << 20]).unwrap();
        fs::write(folder.path().join("events.jsonl"), vec![1; 1 << 16]).unwrap();
        let watch = DiskWatch::new(folder.path(), Some(7));
        let disk = watch.look().unwrap();
        assert!((1 << 20..4 << 20).contains(&disk.kept), "{disk:?}");
        assert_eq!(disk.quota, Some(7));
        assert!(disk.free <= disk.size && disk.size > 0);
        fs::remove_file(folder.path().join("blobs/one")).unwrap();
        assert_eq!(watch.look().unwrap().kept, disk.kept, "not counted again at once");
        assert!(DiskWatch::new(folder.path(), None).look().unwrap().kept < 1 << 20);
    }

    #[test]
    fn a_reserve_is_allocated_and_changes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.redb");
        let mut file = File::create(&path).unwrap();
        file.write_all(&[1; 64 << 10]).unwrap();
        file.set_len(192 << 10).unwrap();
        file.write_all_at(&[2; 64 << 10], 192 << 10).unwrap();
        file.sync_all().unwrap();
        let watch = DiskWatch::new(folder.path(), None);
        // Again and again, as the driver does.
        (0..3).for_each(|_| watch.reserve_on(32 << 20));
        let allocated = fs::metadata(&path).unwrap().blocks() * BLOCK_BYTES;
        let expected = (128 << 10) + (1 << 20);
        assert!(
            (expected..expected + (64 << 10)).contains(&allocated),
            "{allocated} bytes, {expected} expected"
        );
        let (one, zero, two) = (vec![1; 64 << 10], vec![0; 128 << 10], vec![2; 64 << 10]);
        assert!(fs::read(&path).unwrap() == [one, zero, two].concat());
    }

    #[test]
    fn a_database_that_shortens_its_file_has_a_reserve_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.redb");
        let file = File::create(&path).unwrap();
        let watch = DiskWatch::new(folder.path(), None);
        watch.keep_reserve().unwrap();
        for length in [1 << 20, 2 << 20, 1 << 20] {
            file.set_len(length).unwrap();
            file.write_all_at(&vec![1; usize::try_from(length).unwrap()], 0).unwrap();
            let until = Instant::now() + Duration::from_secs(30);
            let allocated = || fs::metadata(&path).unwrap().blocks() * BLOCK_BYTES;
            while allocated() <= length {
                assert!(Instant::now() < until, "nothing beyond {length} bytes");
                thread::sleep(EXTENTS_EVERY);
            }
        }
    }
}
