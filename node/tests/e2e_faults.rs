//! Swarms of real processes that lose, freeze and gain members in mid-run.

mod e2e_support;

use std::time::{Duration, Instant};

use e2e_support::log::{decision, stored_entries};
use e2e_support::{Swarm, peer_of, processes_of, tiny, wait_for};
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

/// Whether a process says that it is in the middle of an epoch from `first` on.
fn in_mid_epoch(timed: &TimedEvent, first: u32) -> bool {
    matches!(timed.event, NodeEvent::Progress { epoch, done, assigned, .. } if epoch >= first && 0 < done && done < assigned)
}

#[test]
fn replicas_hold_the_same_weights_at_every_version_though_one_is_killed_and_another_joins() {
    let spec = tiny(TrainingMode::Local, 2, 2, 24);
    let run = Swarm::start(&spec, &["--kill-after", "3@e2", "--join-after", "e4"]).finish();
    run.agreed_weights();
    run.assert_every_sample_merged();
    assert_eq!(run.events.len(), 5);
    let joined = run.events[4].iter().any(|timed| matches!(timed.event, NodeEvent::WeightsReady { .. }));
    assert!(joined, "the late process held weights");
}

#[test]
fn samples_of_a_miner_killed_in_mid_epoch_are_issued_again() {
    let mut swarm = Swarm::start(&slower(5), &[]);
    swarm.until("the middle of an epoch", 3, |timed| in_mid_epoch(timed, 1).then_some(()));
    swarm.signal(3, Signal::SIGKILL);
    let run = swarm.finish();
    run.assert_every_sample_merged();
    run.agreed_weights();
    assert_eq!(run.evictions_of(run.peer(3)), ["silent"; 3], "each survivor saw it evicted once");
    assert!(run.events[3].iter().all(|timed| !matches!(timed.event, NodeEvent::Finished { .. })));
}

#[test]
fn another_candidate_leads_within_seconds_of_the_leaders_death() {
    let mut swarm = Swarm::start(&slower(6), &[]);
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
    let epochs = 60;
    let mut swarm = Swarm::start(&slower(epochs), &[]);
    swarm.until_epoch(3, 1);
    let frozen = peer_of(&swarm.events()[3]);
    swarm.signal(3, Signal::SIGSTOP);
    let since = Instant::now();
    let evicted =
        |timed: &TimedEvent| matches!(timed.event, NodeEvent::Evicted { peer, .. } if peer == frozen);
    swarm.until("the eviction", 0, |timed| evicted(timed).then_some(()));
    let opened = |events: &[TimedEvent]| {
        let epochs = events.iter().filter_map(|timed| match timed.event {
            NodeEvent::EpochOpened { epoch, .. } => Some(epoch),
            _ => None,
        });
        epochs.max().unwrap_or(0)
    };
    let at_eviction = opened(&swarm.events()[0]);
    swarm.until_epoch(0, at_eviction + 2);
    // On a fast machine the run must not end before it comes back.
    wait_for("the end of the frost", FREEZE * 2, || {
        (since.elapsed() >= FREEZE || opened(&swarm.events()[0]) >= epochs / 2).then_some(())
    });
    let thawed_ms = unix_ms();
    swarm.signal(3, Signal::SIGCONT);
    let run = swarm.finish();

    run.agreed_weights();
    run.assert_every_sample_merged();
    let after = |timed: &&TimedEvent| timed.t_ms >= thawed_ms;
    let readmitted =
        run.events[3].iter().filter(after).any(|timed| matches!(timed.event, NodeEvent::Admitted { .. }));
    assert!(readmitted, "it got its place back");
    let last = run.events[3].iter().rev().find_map(|timed| match timed.event {
        NodeEvent::WeightsReady { version, .. } => Some(version),
        _ => None,
    });
    assert_eq!(last, Some(epochs), "it holds the last weights");
}

#[test]
fn a_late_peer_contributes_to_the_next_epoch() {
    let spec = tiny(TrainingMode::Local, 1, 2, 40);
    let run = Swarm::start(&spec, &["--join-after", "e2"]).finish();
    run.agreed_weights();
    run.assert_every_sample_merged();
    let late = run.peer(2);
    let ready = run.events[2].iter().find_map(|timed| match timed.event {
        NodeEvent::WeightsReady { version, .. } if version > 0 => Some(version),
        _ => None,
    });
    let ready = ready.expect("the late process held weights of the run");
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
    let mut swarm = Swarm::start(&tiny(TrainingMode::Local, 2, 1, 5_000), &[]);
    swarm.until_epoch(0, 1);
    swarm.until_epoch(1, 1);
    let folder = swarm.folder();
    assert_eq!(processes_of(&folder.join("peers")).len(), 2);
    let (code, _scratch) = swarm.stop(Signal::SIGINT);
    assert_eq!(code, Some(130), "the exit code that `--help` documents");
    wait_for("the end of all processes", GONE, || processes_of(&folder).is_empty().then_some(()));
}
