//! Runs whose every circumstance is drawn from a seed, and what becomes of them.
//!
//! ```text
//!      faults until T, safety checked          all is mended at T, liveness checked
//! ├─────────────────────────────────────────┼──────────────────────────────────────▶ finished
//! ```
//! A case is `--seed N --nodes M`, and `--without 3,7,9` for faults left out: drawing again and leaving out replays it. With
//! `--mirror` the run has one, and faults may take the last copy of a stage's weights that the swarm has.

mod draw;

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::{Hash, Instant};

use crate::checker::{Options, all, liveness};
use crate::faults::{Fault, Scheduled};
use crate::observe::Violation;
use crate::trace::Trace;
use crate::world::{Ending, Setup, World};

/// Fewest nodes of a case: one for each of three candidates.
pub const NODES_MIN: usize = 3;
/// Lines of the trace that a report carries, if the trace keeps as many.
pub const LINES_KEPT: usize = 40;
/// Name under which a panic inside a run is reported.
pub const PANIC: &str = "panic";

/// A run to try.
#[derive(Clone, Debug)]
pub struct Case {
    /// What everything is drawn from.
    pub seed: u64,
    /// Hosts.
    pub nodes: usize,
    /// Whether it has a mirror.
    pub mirrored: bool,
    /// Numbers of the faults that are left out.
    pub without: BTreeSet<usize>,
    /// The run, without faults.
    pub setup: Setup,
    /// What goes wrong, with what is left out.
    pub faults: Vec<Scheduled>,
    /// When everything is mended.
    pub healed_at: Duration,
}

/// Why a case could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `--seed N --nodes M [--without 3,7,9] [--mirror]`, got `{0}`")]
pub struct CaseError(String);

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// Hash over its trace; equal runs have equal hashes.
    pub trace: Hash,
    /// The last lines of its trace.
    pub last: Vec<String>,
    /// Events that happened; none if it panicked.
    pub events: u64,
    /// Virtual time at its end; none if it panicked.
    pub time: Instant,
}

impl Report {
    /// The rule that was broken, if one was.
    #[must_use]
    pub const fn failure(&self) -> Option<&Violation> {
        match &self.ending {
            Ending::Violated(violation) => Some(violation),
            Ending::Finished(_) | Ending::TimeUp => None,
        }
    }
}

/// Draws a case.
///
/// # Panics
/// If there are fewer than [`NODES_MIN`] nodes.
#[must_use]
pub fn draw(seed: u64, nodes: usize) -> Case {
    assert!(nodes >= NODES_MIN, "expected at least {NODES_MIN} nodes, got {nodes}");
    draw::Draw::new(seed, nodes).case()
}

/// Runs a case under all checkers.
#[must_use]
pub fn run(case: &Case) -> Report {
    run_traced(case, &Trace::keeping(LINES_KEPT))
}

/// Runs a case under all checkers and this trace.
#[must_use]
pub fn run_traced(case: &Case, trace: &Trace) -> Report {
    let watched = trace.clone();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let bound = liveness::bound(&case.setup.spec);
        let options = Options::of(&case.setup).healed(Instant::ZERO + case.healed_at, bound);
        let mut world = World::new(case.scheduled());
        world.watch(Box::new(watched));
        all(&options).into_iter().for_each(|checker| world.watch(checker));
        let ending = world.run(case.healed_at + bound * (case.setup.spec.training.epochs + 1));
        (ending, world.events(), world.now())
    }));
    let (ending, events, time) = ran.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()))
            .unwrap_or_else(|| "without a message".to_owned());
        (
            Ending::Violated(Violation { checker: PANIC, at: Instant::ZERO, host: None, what }),
            0,
            Instant::ZERO,
        )
    });
    Report { ending, trace: trace.hash(), last: trace.last(), events, time }
}

impl Case {
    /// The same case with a mirror, to which checkpoints go every one to three epochs.
    #[must_use]
    pub fn mirrored(mut self) -> Self {
        self.mirrored = true;
        let mirror = &mut Arc::make_mut(&mut self.setup.spec).mirror;
        "file:///mirror".clone_into(&mut mirror.url);
        mirror.checkpoint_epochs = 1 + u32::try_from(self.seed % 3).unwrap_or(0);
        self
    }

    /// Numbers of the faults that are not left out.
    #[must_use]
    pub fn fault_numbers(&self) -> Vec<usize> {
        (0..self.faults.len()).filter(|number| !self.without.contains(number)).collect()
    }

    /// The same case with these faults only.
    #[must_use]
    pub fn keeping(&self, numbers: &[usize]) -> Self {
        let without = (0..self.faults.len()).filter(|number| !numbers.contains(number)).collect();
        Self { without, ..self.clone() }
    }

    /// The set-up with its faults, and with everything mended at the end of them.
    #[must_use]
    pub fn scheduled(&self) -> Setup {
        let kept = self.faults.iter().enumerate().filter(|(number, _)| !self.without.contains(number));
        let mut setup = self.setup.clone();
        setup.schedule = kept.map(|(_, scheduled)| scheduled.clone()).collect();
        setup.schedule.extend(self.mended().into_iter().map(|fault| (self.healed_at, fault)));
        setup
    }

    /// What mends everything. Hosts that left have no miner's role any more when they start again.
    fn mended(&self) -> Vec<Fault> {
        let hosts = self.setup.hosts.iter().enumerate();
        let mut mended = vec![Fault::Heal, Fault::DropGossip(0.0), Fault::RepeatGossip(0.0)];
        for (host, setup) in hosts {
            mended.push(Fault::Relink(host, setup.link));
            mended.push(Fault::Speed(host, setup.speed));
            mended.push(Fault::Disk(host, setup.disk));
            mended.push(Fault::Restart(host));
        }
        mended
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--seed {} --nodes {}", self.seed, self.nodes)?;
        if !self.without.is_empty() {
            let numbers: Vec<String> = self.without.iter().map(ToString::to_string).collect();
            write!(f, " --without {}", numbers.join(","))?;
        }
        if self.mirrored { f.write_str(" --mirror") } else { Ok(()) }
    }
}

impl FromStr for Case {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Self, CaseError> {
        let wrong = || CaseError(text.to_owned());
        let (text, mirrored) = match text.strip_suffix("--mirror") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let (mut seed, mut nodes, mut without) = (None, None, BTreeSet::new());
        let (pairs, rest) = words.as_chunks::<2>();
        for [name, value] in pairs {
            match *name {
                "--seed" => seed = Some(value.parse().map_err(|_| wrong())?),
                "--nodes" => nodes = Some(value.parse().map_err(|_| wrong())?),
                "--without" => {
                    let numbers: Result<_, _> = value.split(',').map(str::parse).collect();
                    without = numbers.map_err(|_| wrong())?;
                }
                _ => return Err(wrong()),
            }
        }
        match (seed, nodes) {
            (Some(seed), Some(nodes)) if rest.is_empty() && nodes >= NODES_MIN => {
                let case = Self { without, ..draw(seed, nodes) };
                Ok(if mirrored { case.mirrored() } else { case })
            }
            _ => Err(wrong()),
        }
    }
}
