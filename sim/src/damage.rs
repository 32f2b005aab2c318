//! What each adversary still does to a swarm, what it earns and whether it is found: the same runs with and without it,
//! compared.
//!
//! Three stages train the toy problem, or a small model; of the twenty miners the first three are the candidates. A share of
//! the miners are adversaries of one kind, wherever the orchestrator puts them, or one of the candidates is, for those that
//! do harm only there. Validators, if there are any, are hosts of their own, and a share of them are the adversaries of
//! the kinds that lie as such. Nothing else goes wrong: links are equal, nobody crashes.
//!
//! Harm is a median over seeds of what happened with adversaries over what happened without them under the same seed. What
//! is found is counted over all seeds, see [`detection`].

pub mod detection;
mod format;
mod run;

use std::collections::BTreeMap;

use iota_protocol::spec::{MergeSpec, ReducerName, TrainingMode, ValidationSpec};

use crate::adversary::Kind;
use crate::measure::statistics::mean;
use crate::trainer::Compute;

use detection::Counts;
use run::{Measured, measure};

/// The modes in which each kind is tried.
const MODES: [TrainingMode; 2] = [TrainingMode::Synchronous, TrainingMode::Local];

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The adversaries, each kind in a swarm of its own. Those that lie as validators are left out if there are none.
    pub kinds: Vec<Kind>,
    /// Runs of each, of the seeds from 1 on.
    pub seeds: u64,
    /// Merges of each stage.
    pub epochs: u32,
    /// Adversaries, as a share of the miners, or of the validators where they are some of those; at least one.
    pub share: f64,
    /// Hosts that validate, besides the miners.
    pub validators: usize,
    /// Share of all contributions that they replay.
    pub replay_share: f64,
    /// Share of agreed partitions that one more owner computes.
    pub audit_share: f64,
    /// How contributions are combined.
    pub reducer: ReducerName,
    /// What engines compute.
    pub compute: Compute,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            // Swarms here have several stages.
            kinds: Kind::ALL.iter().copied().filter(|kind| !kind.is_evaluator()).collect(),
            seeds: 3,
            epochs: 8,
            share: 0.2,
            validators: 0,
            replay_share: ValidationSpec::default().replay_share,
            audit_share: MergeSpec::default().audit_share,
            reducer: MergeSpec::default().reducer,
            compute: Compute::Toy,
        }
    }
}

/// What one kind of adversary does in one training mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Damage {
    /// The adversary.
    pub kind: Kind,
    /// How the swarm trains.
    pub mode: TrainingMode,
    /// Runs with it, one per seed.
    pub runs: usize,
    /// Runs that finished.
    pub finished: usize,
    /// Runs in which honest peers held different histories or weights.
    pub disagreed: usize,
    /// Final loss over that of a clean run: in the toy problem what honest miners lose beyond the optimum, else what the
    /// merged model loses on text that nobody trained on. Infinite if no number is left.
    pub loss: f64,
    /// Time of the run from its first epoch on over that of a clean run. Infinite if it did not finish.
    pub duration: f64,
    /// Gossiped bytes per second over those of a clean run.
    pub gossip: f64,
    /// Share of what was merged that adversaries contributed.
    pub weight: f64,
    /// Share of the run's samples that no merge contains.
    pub lost: f64,
    /// Mean incentive at the end of the adversaries that misbehaved over that of honest miners. Nothing if none did, and
    /// of validators, who earn none.
    pub score: Option<f64>,
    /// Adversaries that lost their place, per run, by reason.
    pub evicted: BTreeMap<&'static str, f64>,
    /// Honest peers that did.
    pub evicted_honest: BTreeMap<&'static str, f64>,
    /// Who was found, run by run.
    pub counts: Vec<Counts>,
}

/// What the adversaries of `plan` do, as Markdown. `progress` hears of each row as it is measured.
pub fn report(plan: &Plan, mut progress: impl FnMut(&str)) -> String {
    let clean = MODES.map(|mode| (mode, clean(plan, mode)));
    let kinds = plan.kinds.iter().filter(|kind| !kind.is_validator() || plan.validators > 0);
    let mut rows = Vec::new();
    for kind in kinds {
        for (mode, clean) in &clean {
            let damage = compare(plan, *kind, *mode, clean);
            progress(&format::row(&damage));
            rows.push(damage);
        }
    }
    let losses =
        clean.each_ref().map(|(mode, clean)| (*mode, median(clean.iter().map(|run| run.loss).collect())));
    format::report(plan, &rows, &losses)
}

/// What adversaries of this kind do.
#[must_use]
pub fn damage(plan: &Plan, kind: Kind, mode: TrainingMode) -> Damage {
    compare(plan, kind, mode, &clean(plan, mode))
}

/// The runs without adversaries.
fn clean(plan: &Plan, mode: TrainingMode) -> Vec<Measured> {
    (1..=plan.seeds).map(|seed| measure(plan, None, mode, seed)).collect()
}

fn compare(plan: &Plan, kind: Kind, mode: TrainingMode, clean: &[Measured]) -> Damage {
    let with: Vec<Measured> =
        (1..).take(clean.len()).map(|seed| measure(plan, Some(kind), mode, seed)).collect();
    let ratio = |of: fn(&Measured) -> f64| {
        median(with.iter().zip(clean).map(|(with, clean)| of(with) / of(clean)).collect())
    };
    let scores: Vec<f64> = with.iter().filter_map(|run| run.score).collect();
    Damage {
        kind,
        mode,
        runs: with.len(),
        finished: with.iter().filter(|run| run.finished).count(),
        disagreed: with.iter().filter(|run| run.disagreed).count(),
        loss: ratio(|run| run.loss),
        duration: ratio(|run| run.seconds),
        gossip: ratio(|run| run.gossip_rate),
        weight: median(with.iter().map(|run| run.weight).collect()),
        lost: median(with.iter().map(|run| run.lost).collect()),
        score: (!scores.is_empty()).then(|| mean(&scores)),
        evicted: per_run(&with, |run| &run.evicted),
        evicted_honest: per_run(&with, |run| &run.evicted_honest),
        counts: with.iter().map(|run| run.counts).collect(),
    }
}

/// How often each reason was given in a run, on average.
fn per_run(
    runs: &[Measured],
    reasons: impl Fn(&Measured) -> &Vec<&'static str>,
) -> BTreeMap<&'static str, f64> {
    let mut count: BTreeMap<&'static str, f64> = BTreeMap::new();
    for why in runs.iter().flat_map(reasons) {
        *count.entry(why).or_default() += 1.0 / runs.len() as f64;
    }
    count
}

/// The middle of some numbers, the upper one of two; not a number if there are none.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
