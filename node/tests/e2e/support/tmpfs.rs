//! A small file system in memory, and what fills it up.
//!
//! It is mounted in namespaces of its own, which takes no privileges where users may make some, and reached through the
//! process that holds them: `/proc/<pid>/root/<mount point>` is the same folder for everybody of the same user.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// What the shell in the namespaces does: it mounts, says so, and waits until its stdin closes.
const HOLD: &str = "mount -t tmpfs -o size=\"$0\" tmpfs \"$1\" && echo mounted && exec cat";
/// Bytes of the ballast that are written at once.
const PIECE: usize = 64 << 10;

/// The file system; gone when this is dropped.
pub(crate) struct Tmpfs {
    folder: PathBuf,
    holder: Child,
    _stdin: Option<ChildStdin>,
    _mount_point: tempfile::TempDir,
}

impl Tmpfs {
    /// Mounts one of so many bytes.
    pub(crate) fn mount(bytes: u64) -> Self {
        let mount_point = tempfile::tempdir().expect("a scratch folder");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", HOLD, &bytes.to_string()])
            .arg(mount_point.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`unshare` of util-linux");
        let mut said = String::new();
        let stdout = holder.stdout.as_mut().expect("a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("a readable pipe");
        assert_eq!(said, "mounted\n", "this system lets nobody mount in a user namespace; see stderr");
        let root = Path::new("/proc").join(holder.id().to_string()).join("root");
        let inside = mount_point.path().strip_prefix("/").expect("an absolute path");
        let folder = root.join(inside);
        Self { folder, _stdin: holder.stdin.take(), holder, _mount_point: mount_point }
    }

    /// The folder in which everything is on it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a new file");
        let full = loop {
            if let Err(error) = ballast.write_all(&[0x5a; PIECE]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
    }

    /// Makes the room again that [`fill`](Self::fill) took.
    pub(crate) fn free(&self) {
        fs::remove_file(self.ballast()).expect("a file that was there");
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
