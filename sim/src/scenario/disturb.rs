//! What scenarios do to a swarm, each a function of its name.

use std::sync::Arc;
use std::time::Duration;

use iota_protocol::time::Millis;
use iota_protocol::wire::Versions;
use iota_protocol::{Epoch, StageIndex};

use super::Plan;
use crate::adversary::Kind;
use crate::faults::{Fault, LEAVE_WITHIN, MergeFailure};
use crate::network::{HostIndex, Link};

/// Adversaries that cost samples, time or the quality of what is learnt and break no rule while most of their stage is
/// honest. Left out are those that do: `framers` and `colluding-owners` settle merges that are wrong, `huge` makes honest
/// sums overflow, a `copycat` has an honest miner's samples count twice, and a candidate that is
/// `forking-leader` or `censor` splits logs and has honest peers evicted; and `withholding`, which breaks no
/// rule, lets most epochs run to their last deadline. `docs/ADVERSARIES.md` measures them.
const TOLERATED: [Kind; 14] = [
    Kind::LyingOwner,
    Kind::SignFlip,
    Kind::Garbage,
    Kind::Lazy,
    Kind::Flooder,
    Kind::Nan,
    Kind::Equivocator,
    Kind::FreeRiderNoise,
    Kind::LossLiar,
    Kind::SpeedLiar,
    Kind::Scaled,
    Kind::FreeRiderReplay,
    Kind::ReceiptForger,
    Kind::Sybil,
];

/// So many would not tell each other every second that they are there.
pub(super) fn thousand(plan: &mut Plan) {
    let timing = &mut Arc::make_mut(&mut plan.setup.spec).timing;
    (timing.heartbeat, timing.eviction) = (Millis::from_secs(5), Millis::from_secs(25));
}

pub(super) fn churn(plan: &mut Plan) {
    let mut start = 1.0;
    while start < plan.epochs() {
        for miner in plan.some_miners(0.15) {
            let when = plan.random.between(start, start + 10.0);
            let fault =
                if plan.random.chance(0.5) { Fault::Crash(miner) } else { Fault::Leave(miner, LEAVE_WITHIN) };
            plan.at(when, fault);
            let (when, newcomer) = (plan.random.between(start, start + 10.0), plan.newcomer());
            plan.at(when, Fault::Join(newcomer));
        }
        start += 10.0;
    }
}

pub(super) fn flash_crowd(plan: &mut Plan) {
    let first = plan.hosts() / 4;
    for host in first.max(plan.candidates())..plan.hosts() {
        plan.setup.hosts[host].from_start = false;
        let within = plan.random.between(0.0, 1.0) / plan.epoch.as_secs_f64();
        plan.at(1.5 + within, Fault::Join(host));
    }
}

pub(super) fn region_outage(plan: &mut Plan) {
    for host in 0..plan.hosts() {
        let region = u8::try_from(host % 3).unwrap_or(0);
        plan.setup.hosts[host].link = Link { region, ..Link::DATACENTRE };
        if region == 2 {
            plan.at(3.0, Fault::Group(host, 1));
        }
    }
    plan.at(8.0, Fault::Heal);
}

pub(super) fn candidate_partition(plan: &mut Plan) {
    let cut = |plan: &mut Plan, when: f64, minority: [HostIndex; 2]| {
        for one in minority {
            for other in (0..plan.candidates()).filter(|other| !minority.contains(other)) {
                plan.at(when, Fault::Cut(one, other));
                plan.at(when, Fault::Cut(other, one));
            }
        }
    };
    cut(plan, 2.0, [0, 1]);
    plan.at(5.0, Fault::Heal);
    cut(plan, 7.0, [1, 4]);
    plan.at(10.0, Fault::Heal);
}

pub(super) fn home_links(plan: &mut Plan) {
    for host in 0..plan.hosts() {
        if host % 5 != 0 {
            // Connections between homes are made by hole punching, which the model takes for granted.
            plan.setup.hosts[host].link = Link { reachable: true, ..Link::HOME };
        }
    }
}

pub(super) fn stragglers(plan: &mut Plan) {
    for miner in plan.some_miners(0.2) {
        plan.setup.hosts[miner].speed = 0.25;
    }
}

pub(super) fn mass_failure(plan: &mut Plan) {
    for (round, phase) in [0.0, 0.3, 0.6, 0.9].into_iter().enumerate() {
        let when = 2.0 + 3.0 * f64::from(u8::try_from(round).unwrap_or(0)) + phase;
        for miner in plan.some_miners(0.35) {
            plan.at(when, Fault::Crash(miner));
            plan.at(when + 2.5, Fault::Restart(miner));
        }
    }
}

pub(super) fn leader_crash_loop(plan: &mut Plan) {
    let pause = plan.epoch;
    let mut when = 1.5;
    while when < plan.epochs() {
        plan.at(when, Fault::CrashLeader(pause));
        when += 3.0;
    }
}

pub(super) fn preemption(plan: &mut Plan) {
    let (shape, life, pause) = (0.7, 12.0, 2.0);
    for miner in plan.candidates()..plan.hosts() {
        let mut when = 1.0 + plan.random.weibull(life, shape);
        while when < plan.epochs() * 1.5 {
            plan.at(when, Fault::Crash(miner));
            when += pause * (0.5 + plan.random.exponential());
            plan.at(when, Fault::Restart(miner));
            when += 0.5 + plan.random.weibull(life, shape);
        }
    }
}

pub(super) fn rolling_upgrade(plan: &mut Plan) {
    let mut when = 1.0;
    for host in 0..plan.hosts() {
        plan.setup.hosts[host].versions = Versions::FIRST;
        plan.at(when, Fault::upgrade(host));
        when += 1.0;
    }
}

pub(super) fn bad_network(plan: &mut Plan) {
    for host in 0..plan.hosts() {
        let clock = crate::clock::Clock {
            offset: plan.random.duration(Duration::ZERO, Duration::from_secs(1000)),
            #[expect(clippy::cast_possible_truncation, reason = "within 200")]
            drift_ppm: plan.random.between(-200.0, 200.0) as i32,
        };
        plan.setup.hosts[host].clock = clock;
        plan.setup.hosts[host].link = Link { jitter: 1.0, loss: 0.02, ..Link::DATACENTRE };
    }
    plan.at(0.5, Fault::DropGossip(0.1));
    plan.at(0.5, Fault::RepeatGossip(0.1));
}

/// This share of the miners are adversaries, of all kinds in turn.
fn byzantine(plan: &mut Plan, share: f64) {
    for (number, miner) in plan.some_miners(share).into_iter().enumerate() {
        plan.setup.hosts[miner].adversary = Some(TOLERATED[number % TOLERATED.len()]);
    }
}

pub(super) fn byzantine_10(plan: &mut Plan) {
    byzantine(plan, 0.1);
}

pub(super) fn byzantine_20(plan: &mut Plan) {
    byzantine(plan, 0.2);
}

pub(super) fn byzantine_30(plan: &mut Plan) {
    byzantine(plan, 0.3);
}

pub(super) fn byzantine_candidates(plan: &mut Plan) {
    for (candidate, kind) in [(1, Kind::MaliciousMinority), (3, Kind::Usurper)] {
        plan.setup.hosts[candidate].adversary = Some(kind);
    }
}

pub(super) fn merge_failure(plan: &mut Plan) {
    let mut fails = |stage, epoch| {
        let (stage, epoch, away) = (StageIndex(stage), Epoch(epoch), plan.epoch * 2);
        plan.setup.merge_failures.push(MergeFailure { stage, epoch, share: 0.35, away });
    };
    // Each stage alone, then both in the same epoch.
    fails(0, 2);
    fails(1, 5);
    fails(0, 8);
    fails(1, 8);
}

pub(super) fn behind_nat(plan: &mut Plan) {
    plan.setup.relays = true;
    for host in plan.candidates()..plan.hosts() {
        if host % 3 != 0 {
            plan.setup.hosts[host].link = Link::HOME;
        }
    }
    // A relay goes away, and whoever talked through it finds another.
    let relay = plan.candidates().next_multiple_of(3);
    plan.at(3.0, Fault::Crash(relay));
    plan.at(6.0, Fault::Restart(relay));
}
