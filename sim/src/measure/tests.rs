use std::time::Duration;

use super::roofline::Binds;
use super::statistics::Distribution;
use crate::faults::Fault;
use crate::network::Link;
use crate::report::Report;
use crate::sweep::Swarm;

const LIMIT: Duration = Duration::from_secs(600);

/// Three candidates that only lead come first.
const FIRST_MINER: usize = 3;

fn measure(swarm: &Swarm, faults: Vec<(Duration, Fault)>) -> Report {
    let mut setup = swarm.setup(1, LIMIT);
    setup.schedule.extend(faults);
    super::run(setup, LIMIT)
}

fn alone() -> Swarm {
    let mut swarm = Swarm::new(1, 1, 2);
    swarm.samples_each = 64;
    swarm
}

#[test]
fn a_miner_alone_trains_as_fast_as_it_computes() {
    let report = measure(&alone(), Vec::new());
    assert_eq!((report.ending.as_str(), report.throughput.samples_merged), ("finished", 128));
    // Two epochs of 64 passes of 0.3 s; what is left of training time are eight inner steps and the way to the plan.
    let overhead = report.throughput.training_seconds - 38.4;
    assert!((0.0..0.4).contains(&overhead), "{overhead} s beside the passes");
    assert!((report.throughput.roofline.compute - 1.0 / 0.3).abs() < 1e-5);
    assert!((0.99..1.0).contains(&report.throughput.eta_pipe), "{:?}", report.throughput);
    assert_eq!(report.throughput.binds, Binds::Compute);
    assert_eq!((report.work.useful_seconds, report.work.passes_seconds), (38.4, 38.4));
    assert_eq!(report.work.eta_work, 1.0);
    assert_eq!((report.throughput.live_capacity, report.throughput.vacancy_share), (1.0, 0.0));
    assert_eq!(report.merges.eta_net, 0.0, "nothing moves");
    assert_eq!(report.churn, crate::report::Churn::default());
    assert_eq!(report.epochs.len(), 2);
    assert!(report.epochs.iter().all(|epoch| epoch.members == 1 && epoch.samples == 64));
}

#[test]
fn a_merge_takes_longer_than_its_bytes_do_and_is_near_that_when_they_are_many() {
    let mut swarm = Swarm::new(1, 4, 1);
    swarm.samples_each = 4;
    swarm.costs.parameters = 4_000_000;
    swarm.link = Link { up: 2e6, down: 2e6, ..swarm.link };
    let report = measure(&swarm, Vec::new());
    let [epoch] = report.epochs.as_slice() else { panic!("one epoch of one stage") };
    // 16 partitions of a million bytes, two owners each: eight owned by each of four, of three others each, and eight
    // more of the merged vector are 32 partitions down, in 16 KiB less than each has.
    let partition = f64::from(4_000_000 / 16 * 4 - 16_384);
    assert!((epoch.bound_seconds - (32.0 * partition / 2e6 + 0.02)).abs() < 1e-3, "{epoch:?}");
    let measured = epoch.merge_seconds.expect("merged");
    assert!(measured >= epoch.bound_seconds, "{epoch:?}");
    assert!((0.5..1.0).contains(&report.merges.eta_net), "{:?}", report.merges);
    assert!(report.merges.eta_all_reduce < report.merges.eta_net, "redundancy moves more");
}

#[test]
fn a_dead_miner_is_detected_within_its_silence_and_its_samples_go_elsewhere() {
    let mut swarm = Swarm::new(1, 2, 1);
    swarm.samples_each = 100;
    let crash = Duration::from_secs(12);
    let report = measure(&swarm, vec![(crash, Fault::Crash(FIRST_MINER))]);
    assert_eq!((report.ending.as_str(), report.churn.losses), ("finished", 1));
    let timing = &swarm.spec.timing;
    let (eviction, heartbeat) = (timing.eviction.duration(), timing.heartbeat.duration());
    let Distribution { count, mean, .. } = report.churn.detect_seconds;
    // Silence counts from the last record, up to a heartbeat before the crash; then the leader's tick and a decision.
    let range = (eviction - heartbeat).as_secs_f64()..(eviction + heartbeat / 2).as_secs_f64();
    assert!(count == 1 && range.contains(&mean), "{:?} in {range:?}", report.churn);
    assert!(report.churn.reroute_seconds.mean > mean, "rerouted after it was detected");
    assert_eq!(report.throughput.samples_merged, 200, "nothing is lost");
    assert!(report.work.eta_work < 1.0 && report.work.passes_seconds > 60.0, "{:?}", report.work);
    assert!(report.throughput.live_capacity < 0.7, "half of the capacity is gone");
    let vacancy = report.throughput.vacancy_share * report.virtual_seconds;
    assert!(vacancy > mean * 0.9, "the place was vacant until the eviction");
}

#[test]
fn a_leaders_death_a_join_and_a_clean_run_are_told_apart() {
    let mut swarm = Swarm::new(1, 2, 3);
    swarm.samples_each = 40;
    let clean = measure(&swarm, Vec::new());
    let later = |seconds: u64, fault: Fault| (Duration::from_secs(seconds), fault);
    let faults = vec![
        later(5, Fault::CrashLeader(Duration::from_secs(30))),
        later(14, Fault::Crash(FIRST_MINER)),
        later(21, Fault::Restart(FIRST_MINER)),
    ];
    let churned = measure(&swarm, faults);
    assert_eq!((clean.ending.as_str(), churned.ending.as_str()), ("finished", "finished"));
    let election = churned.churn.election_seconds;
    assert!(election.count == 1 && (0.5..5.0).contains(&election.mean), "{election:?}");
    assert_eq!(clean.churn.election_seconds.count, 0);
    let join = churned.churn.join_seconds;
    assert!(join.count == 1 && join.mean > 5.0, "counted at the next merge: {join:?}");
    let goodput = churned.goodput_against(&clean);
    assert!((0.3..1.0).contains(&goodput), "{goodput}");
    assert!(churned.leader.is_some_and(|leader| leader.actions > 0));
}

#[test]
fn the_same_seed_gives_the_same_report_and_another_does_not() {
    let swarm = alone();
    let of = |seed| super::run(swarm.setup(seed, LIMIT), LIMIT).to_json();
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn a_report_survives_json_and_its_page_has_every_plot() {
    let mut swarm = Swarm::new(2, 2, 2);
    swarm.samples_each = 20;
    let report = measure(&swarm, vec![(Duration::from_secs(6), Fault::Crash(FIRST_MINER))]);
    assert_eq!(Report::from_json(&report.to_json()).expect("what was written"), report);
    let html = report.to_html();
    assert_eq!(html.matches("<svg").count(), 4, "throughput, merges, bytes, events");
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(!html.contains("http") && !html.contains("<script"), "nothing is fetched or run");
    let text = report.to_text();
    for part in ["η_pipe", "η_net", "detect a death", "binds: "] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
