//! `iota-sim`: what a swarm does when things go wrong, before users find out.
//!
//! stdout carries results, stderr progress. Exit codes: 0 as expected, 1 a rule was broken or a run did not finish, 2 a
//! wrong command line or file.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use iota_protocol::spec::ReducerName;
use iota_sim::checker::{self, Options};
use iota_sim::fuzz::{self, Case};
use iota_sim::measure::Meter;
use iota_sim::observe::Seconds;
use iota_sim::scenario::{self, Request, Scenario};
use iota_sim::shrink::shrink;
use iota_sim::sweep::{Parameter, Swarm, Sweep, clasp, gauntlet, laws, rebalance, valid_fraction, vary};
use iota_sim::trace::Trace;
use iota_sim::trainer::Compute;
use iota_sim::world::{Ending, World};
use iota_sim::{adversary, damage};

/// Virtual time that a run of `sweep` may take.
const SWEEP_LIMIT: Duration = Duration::from_secs(3600);

/// Simulates swarms of hundreds of nodes from one seed, on the protocol code of `iota-node`
#[derive(Parser)]
#[command(version, about, after_help = "Exit codes: 0 as expected, 1 a rule was broken, 2 wrong usage")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List scenarios and adversaries
    List,
    /// Run a scenario under all checkers and measure it
    Run(RunArgs),
    /// Draw runs from seeds, faults and all, and check each
    Fuzz(FuzzArgs),
    /// Run one drawn case again
    Replay(CaseArgs),
    /// Leave faults out of a failing case as long as it fails
    Shrink(CaseArgs),
    /// Vary one thing and draw the curve, the theory beside it
    Sweep(SweepArgs),
    /// Measure what each adversary does to a swarm and whether it is found, as Markdown
    Damage(DamageArgs),
}

#[derive(Args)]
struct DamageArgs {
    /// Adversaries, as `list` names them [default: all]
    #[arg(long, value_name = "KIND,KIND,…", value_delimiter = ',')]
    kinds: Vec<adversary::Kind>,
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Merges of each stage in a run
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    epochs: u32,
    /// Adversaries, as a share of the miners, or of the validators for those that lie as such
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    share: f64,
    /// Hosts that validate, besides the miners
    #[arg(long, value_name = "V", default_value_t = 0)]
    validators: usize,
    /// Share of all contributions that they replay [default: a spec's]
    #[arg(long, value_name = "SHARE")]
    replay_share: Option<f64>,
    /// Share of agreed partitions that one more owner computes [default: a spec's]
    #[arg(long, value_name = "SHARE")]
    audit_share: Option<f64>,
    /// How contributions are combined, as `merge.reducer` of a spec names it [default: a spec's]
    #[arg(long, value_name = "NAME", value_parser = reducer)]
    reducer: Option<ReducerName>,
    /// What engines compute
    #[arg(long, value_enum, default_value = "toy")]
    compute: LossArg,
}

/// What has a loss that can be compared.
#[derive(Clone, Copy, ValueEnum)]
enum LossArg {
    /// A closed-form problem whose loss shows what was merged
    Toy,
    /// A small model on the built-in corpus, with the arithmetic of a node
    Real,
}

#[derive(Args)]
struct RunArgs {
    /// Its name, as `list` shows it
    #[arg(long, value_name = "NAME", default_value = "smoke")]
    scenario: String,
    /// Hosts [default: the scenario's]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Epochs [default: the scenario's]
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// What everything is drawn from
    #[arg(long, value_name = "N", default_value_t = 7)]
    seed: u64,
    /// What engines compute
    #[arg(long, value_enum, default_value = "cost")]
    compute: ComputeArg,
    /// Write the trace to this file: time, host, stage, epoch, what, details, separated by tabs
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
struct Output {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Write a report with plots to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Args)]
struct FuzzArgs {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// Hosts of each run
    #[arg(long, value_name = "N", default_value_t = 12)]
    nodes: usize,
    /// Give each run a mirror, and let faults take the last copies of weights
    #[arg(long)]
    mirror: bool,
}

#[derive(Args)]
struct CaseArgs {
    /// What the case is drawn from
    #[arg(long, value_name = "N")]
    seed: u64,
    /// Hosts
    #[arg(long, value_name = "N", default_value_t = 12)]
    nodes: usize,
    /// Numbers of faults to leave out
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    without: Vec<usize>,
    /// Give the run a mirror
    #[arg(long)]
    mirror: bool,
    /// Write the trace to this file: time, host, stage, epoch, what, details, separated by tabs
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

#[derive(Args)]
struct SweepArgs {
    /// What is varied, or the law that is tried
    #[arg(value_enum)]
    what: SweepArg,
    /// Values [default: the law's own]
    #[arg(long, value_name = "X,X,…", value_delimiter = ',')]
    values: Vec<f64>,
    /// Runs of each value
    #[arg(long, value_name = "N", default_value_t = 5)]
    seeds: u64,
    /// Stages of the swarm, where the law does not fix them
    #[arg(long, value_name = "K", default_value_t = 3)]
    stages: u16,
    /// Samples under way at each miner of the first stage, over bandwidth and latency [default: the law's own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    window: Option<u16>,
    /// Miners of each stage, where the law does not fix them
    #[arg(long, value_name = "M", default_value_t = 4)]
    replicas: usize,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum ComputeArg {
    /// Durations and hashes
    Cost,
    /// A closed-form problem whose loss shows what was merged
    Toy,
    /// A small model on the built-in corpus, with the arithmetic of a node
    Real,
}

#[derive(Clone, Copy, ValueEnum)]
enum SweepArg {
    /// Partitions that survive failing owners, against 1 − p^r
    ValidFraction,
    /// Throughput over bandwidth, against the roofline
    Bandwidth,
    /// Throughput over latency, against the roofline
    Latency,
    /// Throughput over the samples under way, against the roofline
    Window,
    /// What a node hears and does as the swarm grows
    Growth,
    /// Crashes per miner and hour
    FailureRate,
    /// Owners of each partition
    Redundancy,
    /// Throughput under preemption over the length of an epoch, with moves between stages and without
    Rebalance,
    /// Samples until a miner that raises losses is named by them
    Clasp,
    /// What cheats have of the score of honest miners, over epochs, when contributions are judged by the loss
    Gauntlet,
}

impl SweepArg {
    /// The values that can be given for it, in words and as a test.
    const fn values(self) -> (&'static str, fn(f64) -> bool) {
        match self {
            Self::ValidFraction => ("no `--values`: the law has its own", |_| false),
            Self::Bandwidth => ("`--values` above 0, in bytes per second", |value| value > 0.0),
            Self::Latency => ("`--values` of 0 or more, in seconds", |value| value >= 0.0),
            Self::Window => ("whole `--values` from 1 on", |value| value >= 1.0 && value.fract() == 0.0),
            Self::Growth => {
                ("whole `--values` from 5 on: five stages", |value| value >= 5.0 && value.fract() == 0.0)
            }
            Self::FailureRate => ("`--values` of 0 or more, per miner and hour", |value| value >= 0.0),
            Self::Redundancy => ("`--values` 1, 2 or 3", |value| [1.0, 2.0, 3.0].contains(&value)),
            Self::Rebalance => ("`--values` above 0, in seconds", |value| value > 0.0),
            Self::Clasp | Self::Gauntlet => {
                ("whole `--values` from 1 on", |value| value >= 1.0 && value.fract() == 0.0)
            }
        }
    }
}

/// Why the command could not be done.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("expected one of the scenarios {expected}, got `{got}`\nhelp: `iota-sim list` says what each is")]
    Scenario { expected: String, got: String },
    #[error("expected {expected}, got {got}\nhelp: see `iota-sim {command} --help`")]
    Value { command: &'static str, expected: String, got: String },
    #[error("cannot write {path}: {error}")]
    Write { path: String, error: io::Error },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Nobody is left to tell if stderr is closed.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Does the command; whether everything was as expected.
fn run(command: Command) -> Result<bool, CliError> {
    match command {
        Command::List => list(),
        Command::Run(arguments) => run_scenario(&arguments),
        Command::Fuzz(arguments) => run_fuzz(&arguments),
        Command::Replay(arguments) => replay(&arguments),
        Command::Shrink(arguments) => run_shrink(&arguments),
        Command::Sweep(arguments) => run_sweep(&arguments),
        Command::Damage(arguments) => say(&damage::report(&damage_plan(&arguments)?, tell)).map(|()| true),
    }
}

/// A reducer by the name that a spec has for it.
fn reducer(name: &str) -> Result<ReducerName, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

fn damage_plan(arguments: &DamageArgs) -> Result<damage::Plan, CliError> {
    let plan = damage::Plan::default();
    let wrong = |expected: &str, got: String| CliError::Value {
        command: "damage",
        expected: expected.to_owned(),
        got,
    };
    let share = |flag: &str, given: Option<f64>, default: f64| {
        let share = given.unwrap_or(default);
        let is_share = (0.0..=1.0).contains(&share);
        let refusal = || wrong(&format!("a `{flag}` between 0 and 1"), share.to_string());
        is_share.then_some(share).ok_or_else(refusal)
    };
    if !(arguments.share > 0.0 && arguments.share < 1.0) {
        return Err(wrong("a `--share` above 0 and below 1", arguments.share.to_string()));
    }
    Ok(damage::Plan {
        kinds: if arguments.kinds.is_empty() { plan.kinds } else { arguments.kinds.clone() },
        seeds: arguments.seeds,
        epochs: arguments.epochs,
        share: arguments.share,
        validators: arguments.validators,
        replay_share: share("--replay-share", arguments.replay_share, plan.replay_share)?,
        audit_share: share("--audit-share", arguments.audit_share, plan.audit_share)?,
        reducer: arguments.reducer.unwrap_or(plan.reducer),
        compute: match arguments.compute {
            LossArg::Toy => Compute::Toy,
            LossArg::Real => Compute::Real,
        },
    })
}

/// Writes to stdout.
fn say(text: &str) -> Result<(), CliError> {
    writeln!(io::stdout(), "{}", text.trim_end())
        .map_err(|error| CliError::Write { path: "stdout".to_owned(), error })
}

/// Writes to stderr, where it may be lost.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn save(path: &Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|error| CliError::Write { path: path.display().to_string(), error })
}

fn list() -> Result<bool, CliError> {
    say("scenarios:")?;
    for Scenario { name, about, nodes, epochs, .. } in &scenario::ALL {
        say(&format!("  {name:<20} {about} ({nodes} hosts, {epochs} epochs)"))?;
    }
    say("adversaries:")?;
    for kind in adversary::Kind::ALL {
        say(&format!("  {:<20} {}", kind.name(), kind.about()))?;
    }
    Ok(true)
}

fn run_scenario(arguments: &RunArgs) -> Result<bool, CliError> {
    let scenario = scenario::find(&arguments.scenario).ok_or_else(|| CliError::Scenario {
        expected: scenario::ALL.map(|scenario| scenario.name).join(", "),
        got: arguments.scenario.clone(),
    })?;
    let fewest = scenario.nodes_min();
    if arguments.nodes.is_some_and(|nodes| nodes < fewest) {
        let got = arguments.nodes.unwrap_or_default().to_string();
        return Err(CliError::Value { command: "run", expected: format!("at least {fewest} nodes"), got });
    }
    let compute = match arguments.compute {
        ComputeArg::Cost => Compute::Cost,
        ComputeArg::Toy => Compute::Toy,
        ComputeArg::Real => Compute::Real,
    };
    let request = Request { nodes: arguments.nodes, seed: arguments.seed, compute, epochs: arguments.epochs };
    let setup = scenario.setup(&request);
    tell(&format!("scenario {} seed {} hosts {}", scenario.name, arguments.seed, setup.hosts.len()));
    let (limit, meter) = (scenario.limit(&setup), Meter::new(&setup));
    let trace = trace(arguments.trace.as_deref(), 0)?;
    let checkers = checker::all(&Options::of(&setup));
    let mut world = World::new(setup);
    world.watch(Box::new(trace.clone()));
    world.watch(meter.observer());
    checkers.into_iter().for_each(|checker| world.watch(checker));
    let ending = world.run(limit);
    flush(&trace)?;
    let report = meter.report(&world, &ending);
    if let Some(path) = &arguments.output.html {
        save(path, &report.to_html())?;
    }
    say(&if arguments.output.json { report.to_json() } else { report.to_text() })?;
    tell(&format!("trace hash {} over {} lines, {} events", trace.hash(), trace.count(), world.events()));
    Ok(conclude(&ending))
}

/// A trace that keeps this many lines, and writes all of them if there is a file to write to.
fn trace(path: Option<&Path>, keep: usize) -> Result<Trace, CliError> {
    let Some(path) = path else { return Ok(Trace::keeping(keep)) };
    let file = fs::File::create(path)
        .map_err(|error| CliError::Write { path: path.display().to_string(), error })?;
    Ok(Trace::writing(Box::new(io::BufWriter::new(file)), keep))
}

fn flush(trace: &Trace) -> Result<(), CliError> {
    trace.flush().map_err(|error| CliError::Write { path: "the trace".to_owned(), error })
}

/// Says how a run ended; whether as expected.
fn conclude(ending: &Ending) -> bool {
    match ending {
        Ending::Finished(at) => tell(&format!("finished at {}", Seconds(*at))),
        Ending::TimeUp => tell("not finished within its time"),
        Ending::Violated(violation) => tell(&format!("broken rule: {violation}")),
    }
    matches!(ending, Ending::Finished(_))
}

fn run_fuzz(arguments: &FuzzArgs) -> Result<bool, CliError> {
    check_nodes("fuzz", arguments.nodes)?;
    let (mut failed, mut events) = (0_u64, 0_u64);
    for seed in arguments.from..arguments.from.saturating_add(arguments.seeds) {
        let case = drawn(seed, arguments.nodes, arguments.mirror);
        let report = fuzz::run(&case);
        events += report.events;
        if let Some(violation) = report.failure() {
            failed += 1;
            say(&format!("FAILED {violation}\nreplay: iota-sim replay {case}"))?;
            report.last.iter().try_for_each(|line| say(&format!("    {line}")))?;
        }
        if seed % 100 == 99 {
            tell(&format!("{} seeds, {failed} failed, {events} events", seed + 1 - arguments.from));
        }
    }
    say(&format!(
        "{} seeds of {} nodes: {failed} failed, {events} events",
        arguments.seeds, arguments.nodes
    ))?;
    Ok(failed == 0)
}

fn check_nodes(command: &'static str, nodes: usize) -> Result<(), CliError> {
    if nodes >= fuzz::NODES_MIN {
        return Ok(());
    }
    let expected = format!("at least {} nodes", fuzz::NODES_MIN);
    Err(CliError::Value { command, expected, got: nodes.to_string() })
}

fn drawn(seed: u64, nodes: usize, mirror: bool) -> Case {
    let case = fuzz::draw(seed, nodes);
    if mirror { case.mirrored() } else { case }
}

/// The case that the arguments name.
fn case(command: &'static str, arguments: &CaseArgs) -> Result<Case, CliError> {
    check_nodes(command, arguments.nodes)?;
    let mut case = drawn(arguments.seed, arguments.nodes, arguments.mirror);
    case.without = arguments.without.iter().copied().collect();
    Ok(case)
}

fn replay(arguments: &CaseArgs) -> Result<bool, CliError> {
    let case = case("replay", arguments)?;
    for number in case.fault_numbers() {
        let (at, fault) = &case.faults[number];
        tell(&format!("fault {number} at {at:?}: {fault}"));
    }
    tell(&format!("everything is mended at {:?}", case.healed_at));
    let trace = trace(arguments.trace.as_deref(), fuzz::LINES_KEPT)?;
    let report = fuzz::run_traced(&case, &trace);
    flush(&trace)?;
    if report.failure().is_some() {
        report.last.iter().try_for_each(|line| say(line))?;
    }
    say(&format!("trace hash {}, {} events, {}", report.trace, report.events, Seconds(report.time)))?;
    Ok(conclude(&report.ending))
}

fn run_shrink(arguments: &CaseArgs) -> Result<bool, CliError> {
    let case = case("shrink", arguments)?;
    if fuzz::run(&case).failure().is_none() {
        let got = "a case that keeps all rules".to_owned();
        return Err(CliError::Value { command: "shrink", expected: "a failing case".to_owned(), got });
    }
    let small = shrink(&case);
    say(&format!("{} of {} faults matter", small.fault_numbers().len(), case.fault_numbers().len()))?;
    say(&format!("replay: iota-sim replay {small}"))?;
    Ok(true)
}

fn run_sweep(arguments: &SweepArgs) -> Result<bool, CliError> {
    let seeds: Vec<u64> = (0..arguments.seeds.max(1)).collect();
    let sweep = sweep(arguments, &seeds)?;
    if let Some(path) = &arguments.output.html {
        save(path, &sweep.to_html())?;
    }
    say(&if arguments.output.json { sweep.to_json() } else { sweep.to_text() })?;
    Ok(true)
}

fn sweep(arguments: &SweepArgs, seeds: &[u64]) -> Result<Sweep, CliError> {
    let values = |own: &[f64]| {
        if arguments.values.is_empty() { own.to_vec() } else { arguments.values.clone() }
    };
    let (expected, takes) = arguments.what.values();
    if let Some(wrong) = arguments.values.iter().find(|value| !value.is_finite() || !takes(**value)) {
        return Err(CliError::Value {
            command: "sweep",
            expected: expected.to_owned(),
            got: wrong.to_string(),
        });
    }
    let swarm = Swarm::new(arguments.stages, arguments.replicas, 4);
    Ok(match arguments.what {
        SweepArg::ValidFraction => {
            let (miners, failures) = (20, [2, 6, 10, 14, 18]);
            valid_fraction::sweep(miners, 60, &[1, 2, 3], &failures, seeds)
        }
        SweepArg::Bandwidth => {
            let window = arguments.window.unwrap_or(laws::BANDWIDTH_WINDOW);
            laws::bandwidth(&values(&laws::BANDWIDTHS), window, seeds)
        }
        SweepArg::Latency => {
            let window = arguments.window.unwrap_or(laws::LATENCY_WINDOW);
            laws::latency(&values(&laws::LATENCIES), window, seeds)
        }
        SweepArg::Window => laws::window(&values(&laws::WINDOWS), seeds),
        SweepArg::Growth => laws::growth(&values(&laws::SIZES), seeds),
        SweepArg::FailureRate => {
            vary(&swarm, Parameter::FailureRate, &values(&[0.0, 2.0, 5.0, 10.0]), seeds, SWEEP_LIMIT)
        }
        SweepArg::Redundancy => {
            vary(&swarm, Parameter::Redundancy, &values(&[1.0, 2.0, 3.0]), seeds, SWEEP_LIMIT)
        }
        SweepArg::Rebalance => {
            rebalance::sweep(rebalance::Setting::SWARM, &values(&rebalance::EPOCHS), seeds)
        }
        SweepArg::Clasp => clasp::sweep(&values(&clasp::SAMPLES), seeds),
        SweepArg::Gauntlet => gauntlet::sweep(&values(&gauntlet::EPOCHS), seeds),
    })
}
