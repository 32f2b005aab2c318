//! Swarms of real processes that lose, freeze and gain members in mid-run.

use std::time::{Duration, Instant};

use crate::support::log::{decision, stored_entries};
use crate::support::{INTERRUPTED, STEP_DEADLINE, Swarm, peer_of, processes_of, tiny, wait_for};
use iota_node::events::{NodeEvent, TimedEvent, unix_ms};
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::message::Decision;
use iota_protocol::{PeerId, RunSpec};
use nix::sys::signal::Signal;

/// Longest the candidates may be without a leader after the leading one was killed.
const ELECTION_MS: u64 = 5_000;
/// How long a frozen process stays frozen: past its eviction.
const FREEZE: Duration = Duration::from_secs(20);
/// Longest a process may take to go away after its end was asked for: the deadlines of `up` and of a node, twice.
const GONE: Duration = Duration::from_secs(20);

/// A run whose epochs last long enough to be hit in their middle.
fn slower(epochs: u32) -> RunSpec {
    let mut spec = tiny(TrainingMode::Local, 2, 2, epochs);
    (spec.model.context, spec.model.width, spec.model.hidden) = (64, 64, 128);
    (spec.training.samples_per_epoch, spec.training.sequences_per_sample) = (24, 4);
    spec
}

/// More epochs than any machine merges while a test looks on: such a run ends when it is interrupted.
const ENDLESS: u32 = 100_000;
/// Longest a frozen miner's epoch may still take to reach its merge, if it was about to.
const SETTLING: Duration = Duration::from_millis(500);

/// The stage a process was first given.
fn stage_of(events: &[TimedEvent]) -> u16 {
    let stage = events.iter().find_map(|timed| match timed.event {
        NodeEvent::Admitted { stage } => Some(stage),
        _ => None,
    });
    stage.expect("a miner that was admitted")
}

/// The last epoch of `stage` that opened and was not planned to merge since.
fn epoch_under_way(events: &[TimedEvent], stage: u16) -> Option<u32> {
    let last = events.iter().rev().find_map(|timed| match timed.event {
        NodeEvent::EpochOpened { stage: of, epoch, .. } if of == stage => Some(Some(epoch)),
        NodeEvent::MergePlanned { stage: of, .. } if of == stage => Some(None),
        _ => None,
    });
    last.flatten()
}

#[test]
fn replicas_hold_the_same_weights_at_every_version_though_one_is_killed_and_another_joins() {
    let spec = tiny(TrainingMode::Local, 2, 2, ENDLESS);
    let mut swarm = Swarm::start(&spec, &["--kill-after", "3@e2", "--join-after", "e4"]);
    let version = swarm.until("weights of the late process", 4, |timed| match timed.event {
        NodeEvent::WeightsReady { version, .. } => Some(version),
        _ => None,
    });
    let killed = peer_of(&swarm.events()[3]);
    swarm.until("the eviction of the killed", 0, |timed| {
        matches!(timed.event, NodeEvent::Evicted { peer, .. } if peer == killed).then_some(())
    });
    let opened = swarm.last_epoch(0);
    swarm.until_epoch(0, opened.max(version) + 3);
    let run = swarm.interrupt();
    assert!(run.epochs > version, "its weights were merged: {} epochs, joined at {version}", run.epochs);
    run.agreed_weights();
    run.assert_every_sample_merged();
}

#[test]
fn samples_of_a_miner_killed_in_mid_epoch_are_issued_again() {
    let victim = 3;
    let mut swarm = Swarm::start(&slower(ENDLESS), &[]);
    swarm.until_epoch(victim, 1);
    let peer = peer_of(&swarm.events()[victim]);
    let stage = stage_of(&swarm.events()[victim]);
    // Without its share an epoch cannot reach its merge, so a frozen miner holds it open until the kill.
    let epoch = wait_for("a miner frozen in the middle of an epoch", STEP_DEADLINE, || {
        swarm.signal(victim, Signal::SIGSTOP);
        std::thread::sleep(SETTLING);
        let epoch = epoch_under_way(&swarm.events()[0], stage);
        if epoch.is_none() {
            swarm.signal(victim, Signal::SIGCONT);
        }
        epoch
    });
    swarm.signal(victim, Signal::SIGKILL);
    swarm.until_epoch(0, epoch + 3);
    let run = swarm.interrupt();
    run.assert_every_sample_merged();
    run.agreed_weights();
    assert_eq!(run.evictions_of(peer), ["silent"; 3], "each survivor saw it evicted once");

    let decisions: Vec<Decision> =
        stored_entries(&run.swarm.peer_folder(0)).iter().map(|entry| decision(entry)).collect();
    let position = |what: &str, found: &dyn Fn(&Decision) -> bool| {
        decisions.iter().position(found).unwrap_or_else(|| panic!("{what} was not decided"))
    };
    let opened = position("the epoch", &|decision| {
        matches!(decision, Decision::OpenEpoch { stage: of, epoch: number, members, .. }
            if of.0 == stage && number.0 == epoch && members.iter().any(|(member, _)| *member == peer))
    });
    let evicted = position(
        "the eviction",
        &|decision| matches!(decision, Decision::Evict { peer: evicted, .. } if *evicted == peer),
    );
    let planned = position("the merge", &|decision| {
        matches!(decision, Decision::MergePlan { stage: of, epoch: number, submitters, .. }
            if of.0 == stage && number.0 == epoch
                && submitters.iter().all(|submission| submission.peer != peer))
    });
    assert!(opened < evicted && evicted < planned, "it was a member, was evicted, and others did its share");
}

#[test]
fn another_candidate_leads_within_seconds_of_the_leaders_death() {
    let mut swarm = Swarm::start(&slower(30), &[]);
    swarm.until_epoch(0, 1);
    let last_leader = |events: &[TimedEvent]| {
        events.iter().rev().find_map(|timed| match timed.event {
            NodeEvent::Leader { peer } => Some(peer),
            _ => None,
        })
    };
    let leader = last_leader(&swarm.events()[0]).expect("an open epoch was decided under a leader");
    let peers: Vec<PeerId> = swarm.events().iter().map(|events| peer_of(events)).collect();
    let killed = peers.iter().position(|peer| *peer == leader).expect("a process leads");
    assert!(killed < 3, "only candidates lead");
    swarm.signal(killed, Signal::SIGKILL);
    let killed_ms = unix_ms();
    let run = swarm.finish();

    for candidate in (0..3).filter(|candidate| *candidate != killed) {
        let successor = run.events[candidate].iter().find_map(|timed| match timed.event {
            NodeEvent::Leader { peer } if timed.t_ms >= killed_ms => Some((timed.t_ms, peer)),
            _ => None,
        });
        let (at_ms, peer) = successor.expect("a successor");
        assert_ne!(peer, leader);
        assert!(at_ms - killed_ms <= ELECTION_MS, "candidate {candidate} waited {} ms", at_ms - killed_ms);
    }
    run.assert_every_sample_merged();
    run.agreed_weights();

    let logs: Vec<_> = (0..4).map(|index| stored_entries(&run.swarm.peer_folder(index))).collect();
    let survivor = (0..4).find(|index| *index != killed).expect("three survive");
    let ending: Vec<Decision> = logs[survivor].iter().rev().take(4).map(|entry| decision(entry)).collect();
    assert!(ending.contains(&Decision::Finish), "the end of the run is kept: {ending:?}");
    for (index, log) in logs.iter().enumerate() {
        if index == killed {
            assert!(!log.is_empty() && logs[survivor].starts_with(log), "nothing decided was lost");
        } else {
            assert_eq!(log.len(), logs[survivor].len(), "process {index}");
            assert!(*log == logs[survivor], "process {index} has another log");
        }
    }
}

#[test]
fn a_frozen_miner_is_readmitted_when_it_thaws() {
    let frozen = 3;
    let mut swarm = Swarm::start(&slower(ENDLESS), &[]);
    swarm.until_epoch(frozen, 1);
    let peer = peer_of(&swarm.events()[frozen]);
    swarm.signal(frozen, Signal::SIGSTOP);
    let since = Instant::now();
    let evicted = |timed: &TimedEvent| matches!(timed.event, NodeEvent::Evicted { peer: evicted, .. } if evicted == peer);
    swarm.until("the eviction", 0, |timed| evicted(timed).then_some(()));
    let at_eviction = swarm.last_epoch(0);
    swarm.until_epoch(0, at_eviction + 2);
    std::thread::sleep(FREEZE.saturating_sub(since.elapsed()));
    let at_thaw = swarm.last_epoch(0);
    let thawed_ms = unix_ms();
    swarm.signal(frozen, Signal::SIGCONT);
    swarm.until("its new place", frozen, |timed| {
        (timed.t_ms >= thawed_ms && matches!(timed.event, NodeEvent::Admitted { .. })).then_some(())
    });
    swarm.until("weights younger than its frost", frozen, |timed| match timed.event {
        NodeEvent::WeightsReady { version, .. } => (version > at_thaw + 1).then_some(()),
        _ => None,
    });
    let run = swarm.interrupt();
    assert!(run.epochs > at_thaw, "{} epochs merged, {at_thaw} before it thawed", run.epochs);
    run.agreed_weights();
    run.assert_every_sample_merged();
}

#[test]
fn a_late_peer_contributes_to_the_next_epoch() {
    let mut spec = tiny(TrainingMode::Local, 1, 2, ENDLESS);
    // Long beside what it takes the leader to hear that the late process is ready: who is not heard of is not waited for.
    spec.training.samples_per_epoch = 120;
    let mut swarm = Swarm::start(&spec, &["--join-after", "e2"]);
    let ready = swarm.until("weights of the late process", 2, |timed| match timed.event {
        NodeEvent::WeightsReady { version, .. } if version > 0 => Some(version),
        _ => None,
    });
    swarm.until_epoch(0, ready + 4);
    let run = swarm.interrupt();
    run.agreed_weights();
    run.assert_every_sample_merged();
    let late = run.peer(2);
    let joined = run.events[2].iter().find_map(|timed| match timed.event {
        NodeEvent::Joined { connected_seconds, admitted_seconds, ready_seconds, counted_seconds } => {
            Some([connected_seconds, admitted_seconds, ready_seconds, counted_seconds])
        }
        _ => None,
    });
    let joined = joined.expect("the time to its first contribution that counted");
    assert!(joined.iter().all(Option::is_some) && joined.is_sorted(), "step by step: {joined:?}");
    let entries = stored_entries(&run.swarm.peer_folder(0));
    let plans = entries.iter().filter_map(|entry| match decision(entry) {
        Decision::MergePlan { epoch, submitters, .. } => Some((epoch.0, submitters)),
        _ => None,
    });
    let first = plans
        .filter(|(_, submitters)| submitters.iter().any(|submission| submission.peer == late))
        .map(|(epoch, submitters)| (epoch, submitters.len()))
        .next();
    let (epoch, submitters) = first.expect("a merge with the late process");
    assert_eq!(submitters, 3, "all contribute");
    // The epoch that was open when it was ready has its members; the next one takes it in.
    assert!(epoch <= ready + 1, "ready with version {ready}, first merged in epoch {epoch}");
    let opened = run.events[0].iter().any(|timed| {
        matches!(timed.event, NodeEvent::EpochOpened { epoch: opened, members: 3, .. } if opened == epoch)
    });
    assert!(opened, "epoch {epoch} opened with one member more");
}

#[test]
fn an_interrupt_stops_every_process() {
    let mut swarm = Swarm::start(&tiny(TrainingMode::Local, 2, 1, ENDLESS), &[]);
    swarm.until_epoch(0, 1);
    swarm.until_epoch(1, 1);
    let folder = swarm.folder();
    assert_eq!(processes_of(&folder.join("peers")).len(), 2);
    let (code, _scratch) = swarm.stop();
    assert_eq!(code, Some(INTERRUPTED), "the exit code that `--help` documents");
    wait_for("the end of all processes", GONE, || processes_of(&folder).is_empty().then_some(()));
}
