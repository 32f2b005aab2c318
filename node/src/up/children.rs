//! The processes of a swarm: started, watched, frozen, killed, and gone when this process is.
//!
//! No child outlives `up`: each holds the read end of a pipe and stops when the pipe closes, asks the system to be
//! killed with its parent, and is killed when its handle is dropped.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use iota_protocol::time::ByteCount;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::error::CliError;
use crate::events::{EventTail, TimedEvent};

/// Lines of a dead process's log that are shown.
const LAST_LINES: usize = 5;
/// Bytes of a dead process's log that are searched for those lines.
const LAST_BYTES: usize = 8 * 1024;
/// Between SIGTERM and SIGKILL.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at processes that should stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Name of a process's log in its folder.
pub const LOG_FILE: &str = "log.txt";
/// Name of what the log was before it was begun anew.
const OLDER_LOG_FILE: &str = "log.1.txt";
/// Bytes of a log and what it was before it was begun anew, unless `up` is told otherwise.
pub const LOG_BYTES_MAX: u64 = 32 << 20;

/// Whether a process still runs, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Running,
    /// It is stopped by SIGSTOP.
    Frozen,
    /// It was killed on purpose, by a fault.
    Killed,
    /// It ended by itself or was stopped at the end.
    Ended(ExitStatus),
}

/// One process of the swarm.
#[derive(Debug)]
pub struct Process {
    /// Its folder.
    pub dir: PathBuf,
    /// Whether it runs.
    pub life: Life,
    child: Child,
    tail: EventTail,
    /// Bytes of its log above which it is begun anew.
    log_bytes: u64,
}

impl Process {
    /// Starts this program with `arguments`, logging at most `log_max` bytes to `dir`, with `threads` compute threads.
    ///
    /// # Errors
    /// The folder or the process could not be made.
    pub fn start(
        dir: PathBuf,
        arguments: &[String],
        threads: usize,
        log_max: ByteCount,
    ) -> Result<Self, CliError> {
        fs::create_dir_all(&dir).map_err(|error| CliError::file("create", &dir, error))?;
        let child = spawn(&dir, arguments, threads)?;
        let tail = EventTail::new(&dir);
        Ok(Self { dir, life: Life::Running, child, tail, log_bytes: log_max.0 / 2 })
    }

    /// Starts it again in the same folder after a kill; its log goes on.
    ///
    /// # Errors
    /// The process could not be made.
    pub async fn restart(&mut self, arguments: &[String], threads: usize) -> Result<(), CliError> {
        // The folder is free once the killed process is gone.
        drop(self.child.wait().await);
        self.child = spawn(&self.dir, arguments, threads)?;
        self.life = Life::Running;
        Ok(())
    }

    /// Returns the events it logged since the last call.
    ///
    /// # Errors
    /// What the system said about reading its log.
    pub fn events(&mut self) -> io::Result<Vec<TimedEvent>> {
        self.bound_log()?;
        self.tail.poll()
    }

    /// Begins a log that has become too long anew. The process keeps its file open and appends, so that the file stays the
    /// same one; what it writes between the copy and the cut is lost.
    fn bound_log(&self) -> io::Result<()> {
        let path = self.dir.join(LOG_FILE);
        if fs::metadata(&path)?.len() > self.log_bytes {
            fs::copy(&path, self.dir.join(OLDER_LOG_FILE))?;
            File::options().write(true).open(&path)?.set_len(0)?;
        }
        Ok(())
    }

    /// Whether it takes part: running or frozen.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.life, Life::Running | Life::Frozen)
    }

    /// Returns its exit status when it has ended since the last call.
    ///
    /// # Errors
    /// What the system said about waiting for it.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if !self.is_alive() {
            return Ok(None);
        }
        let status = self.child.try_wait()?;
        if let Some(status) = status {
            self.life = Life::Ended(status);
        }
        Ok(status)
    }

    /// SIGKILL, as a fault: its end is no news. Whether there was anything to kill.
    pub fn kill(&mut self) -> bool {
        let alive = self.is_alive();
        if alive {
            self.signal(Signal::SIGKILL);
            self.life = Life::Killed;
        }
        alive
    }

    /// SIGSTOP.
    pub fn freeze(&mut self) {
        if self.life == Life::Running {
            self.signal(Signal::SIGSTOP);
            self.life = Life::Frozen;
        }
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        if self.life == Life::Frozen {
            self.signal(Signal::SIGCONT);
            self.life = Life::Running;
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let bytes = fs::read(self.dir.join(LOG_FILE)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_BYTES)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // A process that is gone already needs no signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn spawn(dir: &Path, arguments: &[String], threads: usize) -> Result<Child, CliError> {
    let path = dir.join(LOG_FILE);
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|error| CliError::file("open", path, error))?;
    let child =
        program(threads)?.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn();
    child.map_err(|error| CliError::Bug(format!("start a process: {error}")))
}

/// Variables with options that hold for this program and its children alike, or for the children alone.
const SHARED_VARIABLES: [&str; 4] =
    ["IOTA_LOG_LEVEL", "IOTA_LOG_FORMAT", "IOTA_SNAPSHOT_EVERY", "IOTA_EVENT_LOG_MAX"];

/// This program, in its own process group, of our options with those in its environment that say how to log.
///
/// # Errors
/// The path of this program is not known.
pub fn program(threads: usize) -> Result<Command, CliError> {
    let path =
        std::env::current_exe().map_err(|error| CliError::Bug(format!("find this program: {error}")))?;
    let mut command = Command::new(path);
    // Ctrl-C reaches the whole group of a terminal: in their own groups children stop when we say so.
    command.process_group(0).kill_on_drop(true).env("RAYON_NUM_THREADS", threads.to_string());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("IOTA_") && !SHARED_VARIABLES.contains(&&*text) {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Stops every process: SIGTERM, the end of its pipe, so that it does not take the time to leave, and SIGKILL for those
/// that have not ended by the deadline.
pub async fn stop_all(processes: &mut [Process]) {
    for process in processes.iter_mut().filter(|process| process.is_alive()) {
        process.thaw();
        process.signal(Signal::SIGTERM);
        drop(process.child.stdin.take());
    }
    let start = Instant::now();
    while start.elapsed() < STOP_DEADLINE && processes.iter().any(Process::is_alive) {
        for process in processes.iter_mut() {
            drop(process.ended());
        }
        tokio::time::sleep(STOP_POLL).await;
    }
    for process in processes.iter_mut() {
        if process.is_alive() {
            process.signal(Signal::SIGKILL);
        }
        if !matches!(process.life, Life::Ended(_)) {
            drop(process.child.wait().await);
        }
    }
}

/// Reads the address of a process that has started.
///
/// # Errors
/// It ended or did not start in time.
pub async fn wait_until_started(
    process: &mut Process,
    deadline: Duration,
    logs: &Path,
) -> Result<Vec<TimedEvent>, CliError> {
    let failed = |reason| CliError::RunFailed { reason, logs: logs.to_owned() };
    let start = Instant::now();
    let mut events = Vec::new();
    loop {
        let read = process.events().map_err(|error| CliError::file("read", &process.dir, error))?;
        events.extend(read);
        if events.iter().any(|timed| matches!(timed.event, crate::events::NodeEvent::Started { .. })) {
            return Ok(events);
        }
        if let Ok(Some(status)) = process.ended() {
            let lines = process.last_lines();
            return Err(failed(format!("expected the first process to start, got {status}:\n{lines}")));
        }
        if start.elapsed() > deadline {
            return Err(failed(format!(
                "expected the first process to start within {deadline:?}, got no `started` event"
            )));
        }
        tokio::time::sleep(STOP_POLL).await;
    }
}
