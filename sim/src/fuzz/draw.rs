//! What a case is made of. Every choice is drawn, also which kinds of faults there are: a run in which everything goes
//! wrong at once hides what one fault alone would show.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::RunSpec;
use iota_protocol::limits::SNAPSHOT_EVERY_ENTRIES;
use iota_protocol::spec::{ScoredBy, TrainingMode};
use iota_protocol::time::Millis;
use iota_protocol::wire::Versions;

use super::Case;
use crate::clock::Clock;
use crate::costs::Costs;
use crate::faults::{Fault, LEAVE_WITHIN, Scheduled};
use crate::host::HostSetup;
use crate::network::{HostIndex, Link};
use crate::random::Random;
use crate::trainer::Compute;
use crate::world::Setup;

/// How often a kind of fault is drawn at all.
const KIND_CHANCE: f64 = 0.4;
/// A disk this small holds a few activations.
const SMALL_DISK_BYTES: u64 = 2 << 20;
/// How long a miner that leaves waits for its turn: not at all, too short for most epochs, as long as a node does, or longer
/// than any run.
const LEAVES_WITHIN: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(5), LEAVE_WITHIN, Duration::from_secs(3600)];
/// How often the program is upgraded in the course of a run.
const UPGRADE_CHANCE: f64 = 0.2;
/// How often all hosts lose their power at once.
const BLACKOUT_CHANCE: f64 = 0.15;
/// When the first host may be restarted with the new program.
const UPGRADE_FROM: Duration = Duration::from_secs(3);

/// Draws a case, part by part.
pub(super) struct Draw {
    seed: u64,
    nodes: usize,
    random: Random,
}

impl Draw {
    pub(super) fn new(seed: u64, nodes: usize) -> Self {
        Self { seed, nodes, random: Random::new(seed, "fuzz") }
    }

    pub(super) fn case(mut self) -> Case {
        let candidates = self.pick(&[1, 3, 5]).min(self.nodes - 1 + self.nodes % 2);
        let late = if self.random.chance(KIND_CHANCE) { self.random.below(self.nodes / 3 + 1) } else { 0 };
        let present = (self.nodes - late).max(candidates);
        let spec = self.spec(present);
        let mut setup = Setup::new(spec, self.seed, candidates, self.nodes);
        // Whatever the faults, one copy of the weights of each stage is left, in the swarm or in a mirror.
        setup.spares_last_copies = true;
        self.engines(&mut setup);
        self.hosts(&mut setup, present);
        let healed_at = self.random.duration(Duration::from_secs(40), Duration::from_secs(160));
        let mut faults = self.faults(&setup, present, candidates, healed_at);
        self.upgrade(&mut setup, &mut faults, healed_at);
        self.snapshots(&mut setup);
        self.blackout(&mut faults, healed_at);
        self.validators(&mut setup, &mut faults, healed_at);
        faults.sort_by_key(|(at, _)| *at);
        let (seed, nodes, without) = (self.seed, self.nodes, BTreeSet::new());
        Case { seed, nodes, mirrored: false, without, setup, faults, healed_at }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    fn millis(&mut self, from: usize, to: usize) -> Millis {
        Millis((from + self.random.below(to - from + 1)) as u64)
    }

    fn spec(&mut self, present: usize) -> RunSpec {
        let mut spec = RunSpec::default();
        let stages = self.pick(&[1, 2, 2, 3, 3, 4]).min(present);
        // No more than are left when some have gone for good before the start.
        let replicas = 1 + self.random.below((present / stages / 2).max(1));
        #[expect(clippy::cast_possible_truncation, reason = "small counts")]
        {
            spec.pipeline.stages = stages as u16;
            spec.pipeline.start_replicas = replicas as u16;
        }
        spec.pipeline.window = self.pick(&[1, 2, 4, 8]);
        spec.pipeline.credits = self.pick(&[1, 2, 4, 8, 32]);
        spec.training.mode = self.pick(&[TrainingMode::Local, TrainingMode::Synchronous]);
        if (stages, spec.training.mode) == (1, TrainingMode::Local) {
            spec.scores.by = ScoredBy::Loss;
            // All merges, or some.
            spec.scores.evaluation_cost = self.pick(&[100.0, 5.0]);
        }
        spec.training.epochs = self.pick(&[2, 3, 4, 6]);
        spec.training.samples_per_epoch = self.pick(&[5, 8, 16, 32]);
        spec.training.inner_steps = self.pick(&[1, 3, 8]);
        spec.merge.partitions_min = self.pick(&[1, 3, 8]);
        spec.merge.redundancy = self.pick(&[1, 2, 2, 3]);
        spec.merge.quorum = self.pick(&[0.3, 0.5, 0.8]);
        let heartbeat = self.millis(300, 1500);
        let silence = self.pick(&[5, 8, 12]);
        spec.timing.heartbeat = heartbeat;
        spec.timing.eviction = Millis(heartbeat.0 * silence);
        spec.timing.epoch_deadline = self.millis(8_000, 40_000);
        spec.timing.merge_deadline = self.millis(3_000, 15_000);
        spec.timing.ready_grace = self.millis(500, 5_000);
        spec.timing.linger = self.millis(2_000, 10_000);
        spec
    }

    /// In most runs the log is cut so often that whoever was away for a while finds its beginning gone. Drawn apart, so that
    /// all else is what the seed alone makes it.
    fn snapshots(&self, setup: &mut Setup) {
        let mut random = Random::new(self.seed, "snapshots");
        let every = [6, 16, 40, SNAPSHOT_EVERY_ENTRIES][random.below(4)];
        for host in &mut setup.hosts {
            host.snapshots_every = every;
        }
    }

    fn engines(&mut self, setup: &mut Setup) {
        if self.random.chance(0.25) {
            setup.compute = Compute::Toy;
        }
        setup.costs = Costs {
            forward: self.random.duration(Duration::from_millis(10), Duration::from_millis(120)),
            backward: self.random.duration(Duration::from_millis(10), Duration::from_millis(240)),
            memory: 2e9,
            parameters: match setup.compute {
                Compute::Toy => self.pick(&[16, 64]),
                Compute::Cost | Compute::Real => self.pick(&[1_000, 100_000, 500_000]),
            },
        };
    }

    fn hosts(&mut self, setup: &mut Setup, present: usize) {
        let (slow, skewed) = (self.random.chance(KIND_CHANCE), self.random.chance(KIND_CHANCE));
        let kind = self.random.below(4);
        for host in 0..setup.hosts.len() {
            let clock = Clock {
                offset: self.random.duration(Duration::ZERO, Duration::from_secs(1000)),
                drift_ppm: self.pick(&[-200, -50, 0, 50, 200]),
            };
            setup.hosts[host] = HostSetup {
                link: self.link(kind),
                speed: if slow && self.random.chance(0.3) { 0.25 } else { self.random.between(0.8, 1.2) },
                clock: if skewed { clock } else { Clock::EXACT },
                from_start: host < present,
                ..HostSetup::default()
            };
        }
    }

    /// A link of a swarm of this kind: all in data centres, all at home, mixed, or bad. Everybody can reach everybody, as
    /// the protocol expects of its transport; what cannot be reached is a fault.
    fn link(&mut self, kind: usize) -> Link {
        let home = Link { region: self.pick(&[0, 1, 2]), reachable: true, ..Link::HOME };
        let centre = Link { region: self.pick(&[0, 1]), ..Link::DATACENTRE };
        match kind {
            0 => Link::DATACENTRE,
            1 => home,
            2 => self.pick(&[home, centre]),
            _ => Link { jitter: self.random.between(0.1, 2.0), loss: self.random.between(0.0, 0.1), ..home },
        }
    }

    fn faults(
        &mut self,
        setup: &Setup,
        present: usize,
        candidates: usize,
        until: Duration,
    ) -> Vec<Scheduled> {
        let mut faults: Vec<Scheduled> = (present..self.nodes)
            .map(|host| (self.random.duration(Duration::from_secs(5), until), Fault::Join(host)))
            .collect();
        type Kind = fn(&mut Draw, &mut Vec<Scheduled>, &Setup, usize, Duration);
        let kinds: [Kind; 10] = [
            Self::crashes,
            Self::leader_crashes,
            Self::freezes,
            Self::leaves,
            Self::partitions,
            Self::cuts,
            Self::relinks,
            Self::speeds,
            Self::disks,
            Self::gossip,
        ];
        for kind in kinds {
            if self.random.chance(KIND_CHANCE) {
                kind(self, &mut faults, setup, candidates, until);
            }
        }
        faults
    }

    /// Sometimes all hosts start with the old program and are restarted with the new one, in any order, while everything
    /// else goes wrong too.
    fn upgrade(&self, setup: &mut Setup, faults: &mut Vec<Scheduled>, until: Duration) {
        let mut random = Random::new(self.seed, "fuzz upgrade");
        if !random.chance(UPGRADE_CHANCE) {
            return;
        }
        for (host, of) in setup.hosts.iter_mut().enumerate() {
            of.versions = Versions::FIRST;
            faults.push((random.duration(UPGRADE_FROM, until), Fault::upgrade(host)));
        }
    }

    /// Sometimes all hosts crash at once, and come back one by one.
    fn blackout(&self, faults: &mut Vec<Scheduled>, until: Duration) {
        let mut random = Random::new(self.seed, "fuzz blackout");
        if !random.chance(BLACKOUT_CHANCE) {
            return;
        }
        let (at, slow) = (random.duration(Duration::from_secs(1), until), random.chance(0.5));
        for host in 0..self.nodes {
            let away =
                random.duration(Duration::from_millis(500), Duration::from_secs(if slow { 60 } else { 5 }));
            faults.push((at, Fault::Crash(host)));
            if at + away < until {
                faults.push((at + away, Fault::Restart(host)));
            }
        }
    }

    /// In most runs there are validators beside the other hosts, which stop and go away as they do. Drawn apart too.
    fn validators(&self, setup: &mut Setup, faults: &mut Vec<Scheduled>, until: Duration) {
        let mut random = Random::new(self.seed, "fuzz validators");
        let count = [0, 1, 2, 4][random.below(4)];
        let validation = &mut Arc::make_mut(&mut setup.spec).validation;
        validation.replay_share = [0.05, 0.5, 1.0][random.below(3)];
        validation.repeat_share = [0.0, 0.2, 1.0][random.below(3)];
        validation.quorum = [1, 2][random.below(2)];
        for host in self.nodes..self.nodes + count {
            let link = setup.hosts[random.below(self.nodes)].link;
            let from_start = random.chance(0.5);
            let versions = setup.hosts[0].versions;
            setup.hosts.push(HostSetup {
                link,
                from_start,
                miner: false,
                validator: true,
                versions,
                ..HostSetup::default()
            });
            let mut time = || random.duration(Duration::from_millis(200), until);
            if !from_start {
                faults.push((time(), Fault::Join(host)));
            }
            let (at, back, leaves) = (time(), time(), time());
            if versions == Versions::FIRST {
                faults.push((time().max(UPGRADE_FROM), Fault::upgrade(host)));
            }
            match random.below(4) {
                0 => faults.push((at, Fault::Freeze(host, back.min(until - at)))),
                1 => {
                    faults.extend([(at.min(back), Fault::Crash(host)), (at.max(back), Fault::Restart(host))])
                }
                2 => faults
                    .push((leaves, Fault::Leave(host, LEAVES_WITHIN[random.below(LEAVES_WITHIN.len())]))),
                _ => {}
            }
        }
    }

    /// How often a fault of a kind that is drawn happens: once, now and then, or all the time.
    fn times(&mut self) -> usize {
        let most = self.pick(&[1, 4, 16]);
        1 + self.random.below(most)
    }

    fn time(&mut self, until: Duration) -> Duration {
        self.random.duration(Duration::from_millis(200), until)
    }

    /// A pause: too short to be noticed, or up to `long`.
    fn pause(&mut self, long: Duration) -> Duration {
        if self.random.chance(0.5) {
            self.random.duration(Duration::from_millis(10), Duration::from_secs(2))
        } else {
            self.random.duration(Duration::from_secs(2), long)
        }
    }

    fn host(&mut self) -> HostIndex {
        self.random.below(self.nodes)
    }

    fn crashes(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, _: usize, until: Duration) {
        for _ in 0..self.times() {
            let (host, at) = (self.host(), self.time(until));
            let back = at + self.pause(Duration::from_secs(40));
            faults.push((at, Fault::Crash(host)));
            if back < until {
                faults.push((back, Fault::Restart(host)));
            }
        }
    }

    fn leader_crashes(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, _: usize, until: Duration) {
        for _ in 0..self.times() {
            let at = self.time(until);
            let back = self.pause(Duration::from_secs(20)).min(until - at);
            faults.push((at, Fault::CrashLeader(back)));
        }
    }

    fn freezes(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, _: usize, until: Duration) {
        for _ in 0..self.times() {
            let (host, at) = (self.host(), self.time(until));
            let pause = self.pause(Duration::from_secs(30)).min(until - at);
            faults.push((at, Fault::Freeze(host, pause)));
        }
    }

    fn leaves(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, candidates: usize, until: Duration) {
        // A third may go for good; candidates stay.
        let mut patience = Random::new(self.seed, "fuzz leave");
        for _ in 0..1 + self.random.below(self.nodes / 3 + 1) {
            let (host, at) = (self.host(), self.time(until));
            if host >= candidates {
                let within = LEAVES_WITHIN[patience.below(LEAVES_WITHIN.len())];
                faults.push((at, Fault::Leave(host, within)));
            }
        }
    }

    /// Hosts in other groups than the first. The majority of the candidates stays in the first or is nowhere: a
    /// majority that moved away would take the places of all others, and the last copies of weights with them.
    fn partitions(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, candidates: usize, until: Duration) {
        let spared = self.random.distinct((candidates - 1) / 2, candidates);
        for _ in 0..self.times() {
            let at = self.time(until);
            let back = at + self.pause(Duration::from_secs(40));
            let count = 1 + self.random.below(self.nodes / 2);
            let mut cut: Vec<(HostIndex, u8)> =
                self.random.distinct(count, self.nodes).into_iter().map(|host| (host, 1)).collect();
            if candidates > 1 && self.random.chance(0.3) {
                // No majority anywhere: each candidate alone.
                cut.retain(|(host, _)| *host >= candidates);
                cut.extend((1..candidates).map(|host| (host, u8::try_from(host + 1).unwrap_or(u8::MAX))));
            } else {
                cut.retain(|(host, _)| *host >= candidates || spared.contains(host));
            }
            for (host, group) in cut {
                faults.push((at, Fault::Group(host, group)));
                if back < until {
                    faults.push((back, Fault::Group(host, 0)));
                }
            }
        }
    }

    fn cuts(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, _: usize, until: Duration) {
        for _ in 0..self.times() {
            let (from, to, at) = (self.host(), self.host(), self.time(until));
            if from != to {
                faults.push((at, Fault::Cut(from, to)));
            }
        }
    }

    fn relinks(&mut self, faults: &mut Vec<Scheduled>, setup: &Setup, _: usize, until: Duration) {
        for _ in 0..self.times() {
            let (host, at) = (self.host(), self.time(until));
            let slower = self.random.between(0.02, 1.0);
            let link = setup.hosts[host].link;
            let latency = link.latency + self.random.duration(Duration::ZERO, Duration::from_millis(300));
            let link = Link { latency, up: link.up * slower, down: link.down * slower, ..link };
            faults.push((at, Fault::Relink(host, link)));
        }
    }

    fn speeds(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, _: usize, until: Duration) {
        for _ in 0..self.times() {
            let (host, at) = (self.host(), self.time(until));
            let speed = self.random.between(0.05, 2.0);
            faults.push((at, Fault::Speed(host, speed)));
        }
    }

    fn disks(&mut self, faults: &mut Vec<Scheduled>, setup: &Setup, _: usize, until: Duration) {
        for _ in 0..self.times() {
            let (host, at) = (self.host(), self.time(until));
            let back = at + self.pause(Duration::from_secs(40));
            faults.push((at, Fault::Disk(host, SMALL_DISK_BYTES)));
            if back < until {
                faults.push((back, Fault::Disk(host, setup.hosts[host].disk)));
            }
        }
    }

    fn gossip(&mut self, faults: &mut Vec<Scheduled>, _: &Setup, _: usize, until: Duration) {
        let (at, repeated) = (self.time(until), self.random.between(0.0, 0.5));
        faults.push((at, Fault::RepeatGossip(repeated)));
        // Rarely enough that no eviction's worth of heartbeats is lost in a row.
        let (at, dropped) = (self.time(until), self.random.between(0.0, 0.1));
        faults.push((at, Fault::DropGossip(dropped)));
    }
}
