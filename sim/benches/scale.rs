//! How fast the simulator is, and how its cost grows with the number of hosts.
//!
//! `cargo bench -p iota-sim --bench scale` simulates swarms of 100 to 1000 hosts (5 stages, 3 candidates, 10 epochs, no
//! faults, `cost` mode) and prints, for each, seconds of one core and of the wall, events, events per second of the core,
//! memory per host at its most, the run's virtual time, and what a miner hears and does in an epoch, by kind.
//! `-- --nodes 300,500` simulates these sizes.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a benchmark reads the clock")]

use std::process::Command;
use std::time::{Duration, Instant};

use iota_protocol::RunSpec;
use iota_protocol::time::Millis;
use iota_sim::host::Messages;
use iota_sim::world::{Ending, Setup, World};

const STAGES: u16 = 5;
const EPOCHS: u32 = 10;
const CANDIDATES: usize = 3;
/// Unit of the times in `/proc/self/stat`, on every Linux of today.
const TICKS_PER_SECOND: f64 = 100.0;
/// Virtual time that no size needs.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

fn setup(nodes: usize) -> Setup {
    let mut spec = RunSpec::default();
    spec.model.layers = u32::from(STAGES);
    spec.pipeline.stages = STAGES;
    let replicas = nodes / usize::from(STAGES);
    spec.pipeline.start_replicas = u16::try_from(replicas).expect("a small swarm");
    spec.training.epochs = EPOCHS;
    spec.training.samples_per_epoch = u32::try_from(replicas * 4).expect("a small swarm");
    spec.timing.heartbeat = Millis::from_secs(5);
    spec.timing.eviction = Millis::from_secs(30);
    spec.merge.partitions_min = spec.pipeline.start_replicas.into();
    Setup::new(spec, 7, CANDIDATES, nodes)
}

/// A figure of `/proc/self/status`, in bytes.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Seconds that this process has computed, of one core. Other processes on the machine lengthen the seconds that pass,
/// and these hardly.
#[expect(clippy::cast_precision_loss, reason = "a printed count")]
fn computed() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    ticks.sum::<u64>() as f64 / TICKS_PER_SECOND
}

#[expect(clippy::cast_precision_loss, reason = "printed counts")]
fn measure(nodes: usize) {
    let (before, start) = (memory("VmRSS:"), Instant::now());
    let mut world = World::new(setup(nodes));
    let ending = world.run(LIMIT);
    assert!(matches!(ending, Ending::Finished(_)), "{nodes} hosts: {ending:?}");
    let (seconds, computed) = (start.elapsed().as_secs_f64(), computed());
    let memory = memory("VmHWM:").saturating_sub(before) as f64 / nodes as f64 / 1e6;
    let miners: Vec<Messages> =
        world.hosts().iter().skip(CANDIDATES).map(|host| host.traffic.messages).collect();
    let each = |count: fn(&Messages) -> u64| {
        miners.iter().map(count).sum::<u64>() as f64 / miners.len() as f64 / f64::from(EPOCHS)
    };
    println!(
        "{nodes:>6} {computed:>8.1} {seconds:>8.1} {:>10} {:>9.0} {memory:>8.2} {:>9.1} {:>8.0} {:>8.0} {:>8.0} {:>8.0} \
         {:>8.0} {:>8.1}",
        world.events(),
        world.events() as f64 / computed,
        world.now().since(iota_protocol::Instant::ZERO).as_secs_f64(),
        each(|messages| messages.control),
        each(|messages| messages.records),
        each(|messages| messages.merges),
        each(|messages| messages.fetches),
        each(|messages| messages.pushes),
        each(|messages| messages.requests),
    );
}

/// Each size in a process of its own, so that none uses memory that another left.
fn measure_apart(nodes: usize) {
    let own = std::env::current_exe().expect("the benchmark's file");
    let done = Command::new(own).args(["--rows", &nodes.to_string()]).status();
    assert!(done.is_ok_and(|status| status.success()), "{nodes} hosts");
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let sizes = |name: &str| {
        let given = arguments.windows(2).find(|pair| pair[0] == name)?;
        given[1].split(',').map(str::parse).collect::<Result<Vec<usize>, _>>().ok()
    };
    if let Some(rows) = sizes("--rows") {
        return rows.into_iter().for_each(measure);
    }
    println!("{:>73}per miner and epoch", "");
    println!(
        "{:>6} {:>8} {:>8} {:>10} {:>9} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "hosts",
        "cpu s",
        "wall s",
        "events",
        "events/s",
        "MB/host",
        "virtual s",
        "control",
        "records",
        "merges",
        "fetches",
        "pushes",
        "requests"
    );
    sizes("--nodes").unwrap_or_else(|| vec![100, 200, 300, 500, 1000]).into_iter().for_each(measure_apart);
}
