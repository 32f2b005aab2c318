//! Swarms of real processes on loopback for the end-to-end tests: started, watched through their event logs, hit with
//! signals, and gone when the test is, unless it fails with `E2E_KEEP` set. Every wait has a deadline.

pub(crate) mod log;
pub(crate) mod stranger;
pub(crate) mod tmpfs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iota_node::events::{EventTail, NodeEvent, TimedEvent};
use iota_protocol::spec::{Bottleneck, TrainingMode};
use iota_protocol::time::{ByteCount, Millis};
use iota_protocol::{Hash, PeerId, RunSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Longest a whole run may take. Runs take seconds; a loaded machine is slow, a broken test hangs.
pub(crate) const RUN_DEADLINE: Duration = Duration::from_secs(240);
/// Longest any step of a run may take.
pub(crate) const STEP_DEADLINE: Duration = Duration::from_secs(120);
/// Exit code of a command that was interrupted, as `--help` documents it.
pub(crate) const INTERRUPTED: i32 = 130;
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// A run whose epochs take a fraction of a second.
pub(crate) fn tiny(mode: TrainingMode, stages: u16, miners: u16, epochs: u32) -> RunSpec {
    let mut spec = RunSpec { name: "e2e".to_owned(), ..RunSpec::default() };
    let model = &mut spec.model;
    (model.width, model.layers, model.heads, model.kv_heads) = (32, 3, 2, 1);
    (model.hidden, model.context, model.bottleneck) = (64, 32, Bottleneck::Width(8));
    (spec.pipeline.stages, spec.pipeline.start_replicas) = (stages, miners);
    spec.data.builtin_bytes = ByteCount(64 << 10);
    let training = &mut spec.training;
    (training.mode, training.epochs, training.samples_per_epoch) = (mode, epochs, 12);
    (training.sequences_per_sample, training.inner_steps) = (2, 2);
    // Far above what a step takes, so that only a real fault runs into them.
    (spec.timing.epoch_deadline, spec.timing.merge_deadline) = (Millis::from_secs(40), Millis::from_secs(10));
    (spec.timing.ready_grace, spec.timing.linger) = (Millis::from_secs(3), Millis::from_secs(10));
    spec
}

/// The binary, away from this process's options.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iota-node"));
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("IOTA_")) {
        command.env_remove(name);
    }
    command
}

/// Waits until `done` returns something; panics with `what` after `deadline`.
pub(crate) fn wait_for<T>(what: &str, deadline: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}");
        std::thread::sleep(LOOK);
    }
}

/// Processes whose command line names `folder`.
pub(crate) fn processes_of(folder: &Path) -> Vec<Pid> {
    let name = folder.to_str().expect("a temporary folder has an ASCII name").as_bytes();
    let processes = fs::read_dir("/proc").expect("the system has processes").filter_map(Result::ok);
    let named = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let line = fs::read(process.path().join("cmdline")).ok()?;
        // A process that has ended and was not waited for yet has an empty command line.
        line.windows(name.len()).any(|part| part == name).then_some(Pid::from_raw(pid))
    });
    named.collect()
}

/// A swarm under `iota-node up`.
pub(crate) struct Swarm {
    scratch: tempfile::TempDir,
    up: Child,
    tails: Vec<EventTail>,
    events: Vec<Vec<TimedEvent>>,
}

impl Swarm {
    /// Starts `up` on `spec` with further `arguments`, without a control.
    pub(crate) fn start(spec: &RunSpec, arguments: &[&str]) -> Self {
        Self::start_with(spec, &[], arguments)
    }

    /// Starts `up` on `spec`, where these variables of the environment are set.
    pub(crate) fn start_with(spec: &RunSpec, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let file = scratch.path().join("spec.toml");
        fs::write(&file, spec.to_toml()).expect("a file in the scratch folder");
        let file = file.to_str().expect("a temporary folder has an ASCII name").to_owned();
        Self::start_in(scratch, variables, &[&["--spec", &file], arguments].concat())
    }

    /// Starts `up` on the latest checkpoint of the mirror at `url`, with further `arguments`.
    pub(crate) fn resume(url: &str, arguments: &[&str]) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        Self::start_in(scratch, &[], &[&["--from", url], arguments].concat())
    }

    fn start_in(scratch: tempfile::TempDir, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let log = fs::File::create(scratch.path().join("up.txt")).expect("a file in the scratch folder");
        let validators: &[&str] =
            if arguments.contains(&"--validators") { &[] } else { &["--validators", "0"] };
        let up = program()
            .args(["up", "--no-control", "--device", "cpu", "--name", "run", "--runs-dir"])
            .arg(scratch.path())
            .args(validators)
            .args(arguments)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        Self { scratch, up, tails: Vec::new(), events: Vec::new() }
    }

    /// The folder of the run.
    pub(crate) fn folder(&self) -> PathBuf {
        self.scratch.path().join("run")
    }

    /// The folder of process `index`.
    pub(crate) fn peer_folder(&self, index: usize) -> PathBuf {
        self.folder().join("peers").join(index.to_string())
    }

    /// The spec with its candidates, as the processes read it.
    pub(crate) fn spec(&self) -> RunSpec {
        let text = fs::read_to_string(self.folder().join("spec.toml")).expect("a prepared run has a spec");
        RunSpec::from_toml(&text).expect("a prepared run has a valid spec")
    }

    /// The events of every process so far, by its index.
    pub(crate) fn events(&mut self) -> &[Vec<TimedEvent>] {
        while self.peer_folder(self.tails.len()).exists() {
            self.tails.push(EventTail::new(&self.peer_folder(self.tails.len())));
            self.events.push(Vec::new());
        }
        for (tail, events) in self.tails.iter_mut().zip(&mut self.events) {
            events.extend(tail.poll().expect("an event log can be read"));
        }
        &self.events
    }

    /// Waits for the first event of process `index` that `pick` takes.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        index: usize,
        mut pick: impl FnMut(&TimedEvent) -> Option<T>,
    ) -> T {
        wait_for(what, STEP_DEADLINE, || {
            let picked = self.events().get(index).and_then(|events| events.iter().find_map(&mut pick));
            self.still_runs(what);
            picked
        })
    }

    /// Waits until process `index` sees `epoch` open on any stage.
    pub(crate) fn until_epoch(&mut self, index: usize, epoch: u32) {
        self.until(&format!("epoch {epoch}"), index, |timed| {
            matches!(timed.event, NodeEvent::EpochOpened { epoch: opened, .. } if opened >= epoch)
                .then_some(())
        });
    }

    /// The last epoch process `index` saw open on any stage.
    pub(crate) fn last_epoch(&mut self, index: usize) -> u32 {
        let opened = self.events()[index].iter().filter_map(|timed| match timed.event {
            NodeEvent::EpochOpened { epoch, .. } => Some(epoch),
            _ => None,
        });
        opened.max().unwrap_or(0)
    }

    fn still_runs(&mut self, what: &str) {
        if let Some(status) = self.up.try_wait().expect("a child can be waited for") {
            panic!("{what}: `up` ended before, with {status}\n{}", self.logs());
        }
    }

    /// The identity of process `index`.
    pub(crate) fn peer(&mut self, index: usize) -> PeerId {
        peer_of(&self.events()[index])
    }

    /// The process `index`.
    pub(crate) fn pid(&self, index: usize) -> Pid {
        let folder = format!("{}\0", self.peer_folder(index).display());
        let found = processes_of(Path::new(&folder));
        assert_eq!(found.len(), 1, "one process has the folder of peer {index}: {found:?}");
        found[0]
    }

    /// Sends `signal` to process `index`.
    pub(crate) fn signal(&self, index: usize, signal: Signal) {
        kill(self.pid(index), signal).expect("a child can be signalled");
    }

    /// Interrupts `up` and returns its exit code once it and its children are gone.
    fn interrupted(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.up.id()).expect("a process id"));
        kill(pid, Signal::SIGINT).expect("a child can be signalled");
        let status = wait_for("the end of `up`", STEP_DEADLINE, || {
            self.up.try_wait().expect("a child can be waited for")
        });
        status.code()
    }

    /// Interrupts the run, which must go on until then, and returns what it did.
    pub(crate) fn interrupt(mut self) -> Run {
        self.still_runs("the interruption");
        assert_eq!(self.interrupted(), Some(INTERRUPTED), "{}", self.logs());
        let spec = self.spec();
        let events = self.events().to_vec();
        let mut merged = vec![0; usize::from(spec.pipeline.stages)];
        for timed in events.iter().flatten() {
            if let NodeEvent::WeightsReady { stage, version, .. } = timed.event {
                merged[usize::from(stage)] = version.max(merged[usize::from(stage)]);
            }
        }
        let epochs = merged.into_iter().min().expect("a run has a stage");
        Run { spec, summary: Value::Null, epochs, events, swarm: self }
    }

    /// Interrupts `up` and returns its exit code and the run's folder.
    pub(crate) fn stop(mut self) -> (Option<i32>, tempfile::TempDir) {
        let code = self.interrupted();
        let scratch = std::mem::replace(&mut self.scratch, tempfile::tempdir().expect("a scratch folder"));
        (code, scratch)
    }

    /// Waits for the end of the run, which must be a success with agreeing replicas.
    pub(crate) fn finish(self) -> Run {
        self.finish_within(RUN_DEADLINE)
    }

    /// [`finish`](Self::finish) with a deadline of its own.
    pub(crate) fn finish_within(mut self, deadline: Duration) -> Run {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.up.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(start.elapsed() < deadline, "not finished in {deadline:?}\n{}", self.logs());
            std::thread::sleep(LOOK);
        };
        assert!(status.success(), "{status}\n{}", self.logs());
        let text = fs::read(self.folder().join("summary.json")).expect("a finished run has a summary");
        let summary: Value = serde_json::from_slice(&text).expect("the summary is JSON");
        for replica in summary["replicas"].as_array().expect("replicas") {
            assert_eq!(replica["agrees"], true, "{replica}");
        }
        let events = self.events().to_vec();
        let spec = self.spec();
        let epochs = spec.training.epochs;
        Run { spec, summary, epochs, events, swarm: self }
    }

    /// What `up` and the processes said last, for a failed test.
    fn logs(&self) -> String {
        let mut text = fs::read_to_string(self.scratch.path().join("up.txt")).unwrap_or_default();
        for index in 0..self.tails.len() {
            let log = fs::read_to_string(self.peer_folder(index).join("log.txt")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n");
            text.push_str(&format!("--- process {index}\n{last}\n"));
        }
        text
    }
}

impl Drop for Swarm {
    #[expect(clippy::print_stderr, reason = "where to look at what a failed test left")]
    fn drop(&mut self) {
        // Children of `up` are killed with it.
        drop(self.up.kill());
        drop(self.up.wait());
        if std::thread::panicking() && std::env::var_os("E2E_KEEP").is_some() {
            self.scratch.disable_cleanup(true);
            eprintln!("kept: {}", self.scratch.path().display());
        }
    }
}

/// A finished or interrupted run, whose folder is still there.
pub(crate) struct Run {
    pub(crate) spec: RunSpec,
    /// What `up` wrote at the end; nothing of an interrupted run.
    pub(crate) summary: Value,
    /// Epochs merged on every stage.
    pub(crate) epochs: u32,
    pub(crate) events: Vec<Vec<TimedEvent>>,
    pub(crate) swarm: Swarm,
}

impl Run {
    /// Validation loss of the assembled model in nats per token.
    pub(crate) fn loss_nats(&self) -> f64 {
        self.summary["swarm"]["loss_nats"].as_f64().expect("a number")
    }

    /// Every event of every process, with the process's index.
    pub(crate) fn all_events(&self) -> impl Iterator<Item = (usize, &TimedEvent)> {
        self.events
            .iter()
            .enumerate()
            .flat_map(|(index, events)| events.iter().map(move |event| (index, event)))
    }

    /// The identity of process `index`.
    pub(crate) fn peer(&self, index: usize) -> PeerId {
        peer_of(&self.events[index])
    }

    /// The weights of each stage and version; panics unless all replicas that held them had the same.
    pub(crate) fn agreed_weights(&self) -> BTreeMap<(u16, u32), Hash> {
        let mut agreed = BTreeMap::new();
        for (index, timed) in self.all_events() {
            // A process of a resumed run builds the initial weights first, and takes others.
            if let NodeEvent::WeightsReady { stage, version, hash } = timed.event
                && version <= self.epochs
                && version >= self.spec.start.epoch
            {
                let first = *agreed.entry((stage, version)).or_insert(hash);
                assert_eq!(first, hash, "process {index}, stage {stage}, version {version}");
            }
        }
        let expected = (0..self.spec.pipeline.stages)
            .flat_map(|stage| (self.spec.start.epoch..=self.epochs).map(move |version| (stage, version)));
        assert!(expected.eq(agreed.keys().copied()), "every version of every stage: {:?}", agreed.keys());
        agreed
    }

    /// Panics unless the merge of every epoch of every stage has all samples, as every process saw it.
    pub(crate) fn assert_every_sample_merged(&self) {
        let mut merged = BTreeMap::new();
        for (index, timed) in self.all_events() {
            if let NodeEvent::MergeClosed { stage, epoch, samples, .. } = timed.event {
                let expected = self.spec.training.samples_per_epoch;
                assert_eq!(samples, expected, "stage {stage}, epoch {epoch}, process {index}");
                if epoch < self.epochs {
                    *merged.entry((stage, epoch)).or_insert(0) += 1;
                }
            }
        }
        let expected =
            usize::from(self.spec.pipeline.stages) * (self.epochs - self.spec.start.epoch) as usize;
        assert_eq!(merged.len(), expected, "one merge per stage and epoch");
    }

    /// Whether a process other than `index` saw `peer` evicted, with the reasons given.
    pub(crate) fn evictions_of(&self, peer: PeerId) -> Vec<&str> {
        let evictions = self.all_events().filter_map(|(_, timed)| match &timed.event {
            NodeEvent::Evicted { peer: evicted, reason } if *evicted == peer => Some(reason.as_str()),
            _ => None,
        });
        evictions.collect()
    }
}

/// The identity a process announced.
pub(crate) fn peer_of(events: &[TimedEvent]) -> PeerId {
    let peer = events.iter().find_map(|timed| match timed.event {
        NodeEvent::Started { peer, .. } => Some(peer),
        _ => None,
    });
    peer.expect("a process that started")
}
