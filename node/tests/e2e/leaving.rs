//! Miners of real swarms that are told to stop, and leave in their turn.

use std::fs;

use crate::support::log::{decision, stored_entries};
use crate::support::{Run, STEP_DEADLINE, Swarm, tiny, wait_for};
use iota_node::events::{NodeEvent, TimedEvent};
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::message::{Decision, EvictReason};
use iota_protocol::{PeerId, RunSpec};
use nix::sys::signal::Signal;

/// A miner that is no candidate.
const LEAVER: usize = 3;
/// More epochs than any machine merges while a test looks on.
const ENDLESS: u32 = 100_000;

/// A run whose epochs last long enough to be left in their middle.
fn spec() -> RunSpec {
    let mut spec = tiny(TrainingMode::Local, 2, 2, ENDLESS);
    (spec.model.context, spec.model.width, spec.model.hidden) = (64, 64, 128);
    (spec.training.samples_per_epoch, spec.training.sequences_per_sample) = (24, 4);
    spec
}

/// Waits until process `index` is in the middle of its share of an epoch.
fn until_mid_epoch(swarm: &mut Swarm, index: usize) {
    swarm.until("the middle of an epoch", index, |timed| match timed.event {
        NodeEvent::Progress { epoch, done, assigned, .. } => {
            (epoch > 0 && done > 0 && done < assigned).then_some(())
        }
        _ => None,
    });
}

fn decisions(run: &Run) -> Vec<Decision> {
    stored_entries(&run.swarm.peer_folder(0)).iter().map(|entry| decision(entry)).collect()
}

/// What `peer` was evicted for, and what was decided of it before: the last epoch that it was a member of, and in which
/// merges it submitted.
fn assert_left_in_its_turn(run: &Run, peer: PeerId) {
    let decisions = decisions(run);
    let is_its =
        |decision: &Decision| matches!(decision, Decision::Evict { peer: evicted, .. } if *evicted == peer);
    let at = decisions.iter().position(is_its).expect("it was evicted");
    assert_eq!(decisions[at], Decision::Evict { peer, reason: EvictReason::Left, evidence: None });
    let (before, after) = decisions.split_at(at);
    let member = |decision: &Decision| match decision {
        Decision::OpenEpoch { stage, epoch, members, .. }
            if members.iter().any(|(member, _)| *member == peer) =>
        {
            Some((*stage, *epoch))
        }
        _ => None,
    };
    let submitted = |decision: &Decision| match decision {
        Decision::MergePlan { stage, epoch, submitters, .. }
            if submitters.iter().any(|submission| submission.peer == peer) =>
        {
            Some((*stage, *epoch))
        }
        _ => None,
    };
    let opened: Vec<_> = before.iter().filter_map(member).collect();
    let merged: Vec<_> = before.iter().filter_map(submitted).collect();
    assert!(!opened.is_empty() && opened == merged, "a part in {opened:?}, merged {merged:?}");
    assert_eq!(after.iter().filter_map(member).next(), None, "no part in what followed");
    // Samples are dealt to others when one is released or evicted in an epoch; it was in none.
    let released = decisions.iter().filter(|decision| matches!(decision, Decision::Release { .. }));
    assert_eq!(released.count(), 0, "nobody's samples went to others");
}

#[test]
fn a_miner_told_to_stop_in_mid_epoch_finishes_it_and_nothing_is_done_again() {
    let mut swarm = Swarm::start(&spec(), &[]);
    until_mid_epoch(&mut swarm, LEAVER);
    let peer = swarm.peer(LEAVER);
    swarm.signal(LEAVER, Signal::SIGTERM);
    swarm.until("its end", LEAVER, |timed| matches!(timed.event, NodeEvent::Finished { .. }).then_some(()));
    let evicted = |timed: &TimedEvent| matches!(timed.event, NodeEvent::Evicted { peer: evicted, .. } if evicted == peer);
    swarm.until("its eviction", 0, |timed| evicted(timed).then_some(()));
    let last = swarm.last_epoch(0);
    swarm.until_epoch(0, last + 3);
    let run = swarm.interrupt();
    run.assert_every_sample_merged();
    run.agreed_weights();
    assert_left_in_its_turn(&run, peer);
    let told = |timed: &TimedEvent| match &timed.event {
        NodeEvent::Leaving { awaits } => Some(awaits.clone()),
        _ => None,
    };
    let awaited: Vec<String> = run.events[LEAVER].iter().filter_map(told).collect();
    assert!(awaited[0].starts_with("the merge of epoch"), "{awaited:?}");
    assert_eq!(awaited.last().map(String::as_str), Some("the decision that it has left"));
    let up = fs::read_to_string(run.swarm.folder().with_file_name("up.txt")).expect("`up` writes a log");
    assert!(!up.contains(&format!("process {LEAVER} died")), "its exit code is 0:\n{up}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut swarm = Swarm::start(&spec(), &[]);
    until_mid_epoch(&mut swarm, LEAVER);
    // Frozen, the other miner of its stage keeps it waiting.
    for other in (0..LEAVER).rev() {
        swarm.signal(other, Signal::SIGSTOP);
    }
    swarm.signal(LEAVER, Signal::SIGTERM);
    swarm.until("what it waits for", LEAVER, |timed| {
        matches!(timed.event, NodeEvent::Leaving { .. }).then_some(())
    });
    swarm.signal(LEAVER, Signal::SIGTERM);
    swarm.until("its end", LEAVER, |timed| matches!(timed.event, NodeEvent::Finished { .. }).then_some(()));
    for other in 0..LEAVER {
        swarm.signal(other, Signal::SIGCONT);
    }
    let log = swarm.folder().with_file_name("up.txt");
    wait_for("its exit code", STEP_DEADLINE, || {
        let up = fs::read_to_string(&log).unwrap_or_default();
        up.contains(&format!("process {LEAVER} died: exit status: 130")).then_some(())
    });
    swarm.interrupt().assert_every_sample_merged();
}
