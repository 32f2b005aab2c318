//! Processes whose disk fills up: while they run, before they start, and while they are away.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::support::stranger::{Stranger, Target};
use crate::support::tmpfs::Tmpfs;
use crate::support::{INTERRUPTED, STEP_DEADLINE, Swarm, peer_of, program, tiny, wait_for};
use iota_node::events::{EventTail, NodeEvent, TimedEvent};
use iota_protocol::limits::GOSSIP_BYTES_MAX;
use iota_protocol::spec::{Candidate, TrainingMode};
use iota_protocol::{Identity, RunSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of the file system: enough for the node, little enough to be filled at once.
const SIZE: u64 = 64 << 20;
/// More epochs than any machine merges while a test looks on.
const ENDLESS: u32 = 100_000;
/// Exit code of a command whose folder cannot be used, as `--help` documents it.
const FILE: i32 = 4;

fn rooms(events: &[TimedEvent]) -> Vec<&str> {
    let told = events.iter().filter_map(|timed| match &timed.event {
        NodeEvent::Room { room, .. } => Some(room.as_str()),
        _ => None,
    });
    told.collect()
}

/// Version of the weights that `timed` announces.
fn weights(timed: &TimedEvent) -> Option<u32> {
    match timed.event {
        NodeEvent::WeightsReady { version, .. } => Some(version),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miner_whose_disk_is_full_stops_says_why_and_is_back_when_there_is_room() {
    let (late, small) = (4, Tmpfs::mount(SIZE));
    let mut swarm = Swarm::start(&tiny(TrainingMode::Synchronous, 2, 2, ENDLESS), &["--join-after", "e3"]);
    let peers = swarm.folder().join("peers");
    wait_for("the folders of the processes", STEP_DEADLINE, || peers.exists().then_some(()));
    std::os::unix::fs::symlink(small.folder(), peers.join(late.to_string())).expect("a new name");
    let ready = swarm
        .until("a merge with the late process", late, |timed| weights(timed).filter(|version| *version > 3));
    swarm.until_epoch(0, ready + 2);
    let peer = swarm.peer(late);

    small.fill();
    let left = |timed: &TimedEvent| matches!(&timed.event, NodeEvent::Evicted { peer: of, reason } if *of == peer && reason == "left");
    swarm.until("the end of its place", 0, |timed| left(timed).then_some(()));
    let target = Target::of(&swarm.events()[late]).expect("a started process");
    wait_for("what it says of itself", STEP_DEADLINE, || {
        target.page("/health").contains("no room").then_some(())
    });
    let health = target.page("/health");
    assert!(health.contains(r#""phase":"no room""#) && health.contains(r#""room":"full""#), "{health}");
    assert_eq!([target.metric("iota_disk_room "), target.metric("iota_disk_full_total ")], [2, 1]);
    let opened = swarm.last_epoch(0);
    swarm.until_epoch(0, opened + 3);
    let stranger =
        Stranger::connect(0x53, swarm.spec().run_id(), std::slice::from_ref(&target), GOSSIP_BYTES_MAX).await;
    assert!(!stranger.log(&target, 0).await.is_empty(), "it serves what it has");
    stranger.stop().await;
    assert!(target.page("/health").contains(r#""room":"full""#), "it is full all the time");

    let (opened, told) = (swarm.last_epoch(0), rooms(&swarm.events()[late]).len());
    small.free();
    swarm.until("new weights", late, |timed| weights(timed).filter(|version| *version > opened + 1));
    assert_eq!(rooms(&swarm.events()[late])[told..].last(), Some(&"enough"));
    let back = swarm.last_epoch(0);
    swarm.until_epoch(0, back + 3);
    let run = swarm.interrupt();
    run.agreed_weights();
    run.assert_every_sample_merged();
    assert!(
        rooms(&run.events[late]).contains(&"full"),
        "what was not written for want of room is written later"
    );
    assert!(run.evictions_of(peer).iter().all(|reason| *reason == "left"), "{:?}", run.evictions_of(peer));
    let starts = run.events[late].iter().filter(|timed| matches!(timed.event, NodeEvent::Started { .. }));
    assert_eq!(starts.count(), 1, "it is the same process");
    let log = fs::read_to_string(run.swarm.peer_folder(late).join("log.txt")).expect("a log");
    assert!(log.contains("asking for a place") && !log.contains("panicked"), "{log}");
}

/// A run of one process, which decides alone and whose folder is on `small`.
struct Alone<'a> {
    scratch: tempfile::TempDir,
    small: &'a Tmpfs,
    tail: EventTail,
    events: Vec<TimedEvent>,
}

impl<'a> Alone<'a> {
    fn new(small: &'a Tmpfs, mut spec: RunSpec) -> Self {
        let (scratch, secret) = (tempfile::tempdir().expect("a scratch folder"), [0x54; 32]);
        spec.orchestrator.candidates =
            vec![Candidate { peer: Identity::from_secret(secret).peer(), priority: 1 }];
        fs::write(scratch.path().join("spec.toml"), spec.to_toml()).expect("a file in the scratch folder");
        let key = scratch.path().join("peer.key");
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(key);
        writeln!(file.expect("a new file"), "{}", "54".repeat(32)).expect("a key");
        let tail = EventTail::new(&small.folder().join("data"));
        Self { scratch, small, tail, events: Vec::new() }
    }

    fn folder(&self) -> PathBuf {
        self.small.folder().join("data")
    }

    fn start(&self) -> Child {
        let path = |name: &str| self.scratch.path().join(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log.txt")).expect("a log");
        let mut command = program();
        command.args(["join", "--device", "cpu", "--data-bind", "127.0.0.1:0"]);
        command.args(["--listen", "/ip4/127.0.0.1/tcp/0", "--spec"]).arg(path("spec.toml"));
        command.arg("--key").arg(path("peer.key")).arg("--data-dir").arg(self.folder());
        command.stdout(Stdio::null()).stderr(log).spawn().expect("the binary runs")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log.txt")).expect("a log")
    }

    fn until<T>(&mut self, what: &str, pick: impl FnMut(&TimedEvent) -> Option<T> + Copy) -> T {
        wait_for(what, STEP_DEADLINE, || {
            self.events.extend(self.tail.poll().expect("an event log can be read"));
            self.events.iter().find_map(pick)
        })
    }
}

fn signal(process: &Child, signal: Signal) {
    let pid = i32::try_from(process.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("a child can be signalled");
}

fn ended(process: &mut Child) -> Option<i32> {
    wait_for("the end of the process", STEP_DEADLINE, || {
        process.try_wait().expect("a child can be waited for")
    })
    .code()
}

/// Ends a process. Asked once it would leave politely, and wait for somebody to hand its stage's weights to.
fn interrupted(process: &mut Child) -> Option<i32> {
    wait_for("the end of the process", STEP_DEADLINE, || {
        signal(process, Signal::SIGINT);
        process.try_wait().expect("a child can be waited for")
    })
    .code()
}

/// Names and contents of the files in a folder.
fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(content(&path)),
            false => files.push((path.clone(), fs::read(&path).expect("a file"))),
        }
    }
    files.sort();
    files
}

#[test]
fn a_process_that_finds_no_room_at_its_start_says_what_to_do_and_leaves_its_folder_as_it_was() {
    let small = Tmpfs::mount(SIZE);
    let mut alone = Alone::new(&small, tiny(TrainingMode::Synchronous, 1, 1, ENDLESS));
    let refused = |alone: &Alone<'_>, folder: &[(PathBuf, Vec<u8>)]| {
        let before = alone.log().matches("help: free some room there").count();
        assert_eq!(ended(&mut alone.start()), Some(FILE));
        let log = alone.log();
        assert_eq!(log.matches("help: free some room there").count(), before + 1, "{log}");
        assert!(log.contains("expected 4194304 bytes free, got 0 bytes free"), "{log}");
        assert!(content(&alone.folder()) == folder, "nothing was written");
    };
    small.fill();
    fs::write(alone.scratch.path().join("log.txt"), "").expect("a file in the scratch folder");
    refused(&alone, &[]);

    small.free();
    let mut first = alone.start();
    let version = alone.until("a few merges", |timed| weights(timed).filter(|version| *version >= 5));
    signal(&first, Signal::SIGKILL);
    ended(&mut first);
    drop(alone.tail.poll());
    small.fill();
    refused(&alone, &content(&alone.folder()));

    small.free();
    alone.events.clear();
    let mut second = alone.start();
    alone.until("more merges", |timed| weights(timed).filter(|later| *later >= version + 3));
    let first = alone.events.iter().filter_map(weights).find(|version| *version > 0);
    assert!(first.is_some_and(|first| first + 1 >= version), "it went on from {first:?}, not from {version}");
    assert_eq!(interrupted(&mut second), Some(INTERRUPTED), "{}", alone.log());
    assert!(alone.log().contains("found the state of a stage"), "{}", alone.log());
}

#[test]
fn a_candidate_whose_disk_is_full_decides_nothing_wrong_and_goes_on() {
    let small = Tmpfs::mount(SIZE);
    let mut alone = Alone::new(&small, tiny(TrainingMode::Synchronous, 1, 1, ENDLESS));
    let mut process = alone.start();
    let mut version = alone.until("a few merges", |timed| weights(timed).filter(|version| *version >= 3));
    for round in 1..=2 {
        small.fill();
        let target = Target::of(&alone.events).expect("a started process");
        wait_for("that it notices", STEP_DEADLINE, || {
            let full = target.page("/health").contains(r#""evicted":"left""#);
            assert!(process.try_wait().expect("a child can be waited for").is_none(), "{}", alone.log());
            full.then_some(())
        });
        assert_eq!(target.metric("iota_disk_full_total "), round);
        small.free();
        version = alone.until("more merges", |timed| weights(timed).filter(|later| *later >= version + 5));
        // So that what it says next time is not of this time.
        wait_for("that it says so", STEP_DEADLINE, || {
            target.page("/health").contains(r#""evicted":null"#).then_some(())
        });
    }
    assert_eq!(interrupted(&mut process), Some(INTERRUPTED), "{}", alone.log());
    alone.until("what it had to say", |timed| matches!(timed.event, NodeEvent::Room { .. }).then_some(()));
    let (told, log) = (rooms(&alone.events), alone.log());
    assert_eq!(told.iter().filter(|room| **room == "full").count(), 2, "{told:?}");
    assert!(!log.contains("panicked") && !log.contains("actor stopped"), "{log}");
    let mut versions: Vec<u32> = alone.events.iter().filter_map(weights).collect();
    versions.dedup();
    assert!(versions.is_sorted(), "no version was made twice: {versions:?}");
    assert_eq!(peer_of(&alone.events), Identity::from_secret([0x54; 32]).peer());
}
