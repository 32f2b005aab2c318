//! `iota-node up`: its flags, and the way from them to the report.

use std::io::Write;
use std::path::PathBuf;

use clap::{ArgMatches, Args};
use iota_model::Device;
use iota_protocol::spec::DataSource;
use iota_protocol::time::{ByteCount, Millis};

use super::checkpoint::FromOptions;
use super::spec::SpecOptions;
use crate::checkpoints::Which;
use crate::corpus::hash_file;
use crate::error::CliError;
use crate::report;
use crate::signals::StopSignals;
use crate::up::children::LOG_BYTES_MAX;
use crate::up::fault::{Faults, Freeze, Kill, Poisoned, When};
use crate::up::plan::{Control, UpPlan, new_run_dir};
use crate::up::screen::Screen;
use crate::up::{outcome, run_swarm};

#[derive(Debug, Args)]
pub(super) struct UpOptions {
    #[command(flatten)]
    spec: SpecOptions,
    /// Go on from a checkpoint in this mirror, with its spec: `s3://bucket/prefix` or `file:///folder`
    #[arg(long, value_name = "URL", conflicts_with = "spec")]
    from: Option<String>,
    /// Checkpoint to go on from: `latest`, or the number of its epoch
    #[arg(long, default_value = "latest", value_name = "EPOCH", requires = "from")]
    checkpoint: Which,
    /// Train on this text instead of the generated stories
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Name of the run's folder [default: the first free of up-1, up-2, ...]
    #[arg(long)]
    name: Option<String>,
    /// Folder that holds the folders of runs
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs_dir: PathBuf,
    /// Where every process computes: auto, cpu, cuda:N or wgpu:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Validators beside the miners
    #[arg(long, default_value_t = 2, value_name = "V")]
    validators: u16,
    /// Bytes per second that each process may serve blobs at, such as `2MiB` [default: as fast as they go]
    #[arg(long, value_name = "BYTES")]
    upload_rate: Option<ByteCount>,
    /// Most that `log.txt` of each process and the older part of it take, such as `32MiB`
    #[arg(long, default_value_t = ByteCount(LOG_BYTES_MAX), value_name = "BYTES")]
    log_max: ByteCount,
    /// Kill a process, such as `2@30s` or `2@e5`, or all, and start it again later, such as `all@e5+3s`; times count from
    /// the first epoch's opening; repeatable
    #[arg(long, value_name = "PEER@WHEN")]
    kill_after: Vec<Kill>,
    /// Freeze a process for a while, such as `2@10s+20s` or `2@e5+20s`; repeatable
    #[arg(long, value_name = "PEER@WHEN+DURATION")]
    freeze_after: Vec<Freeze>,
    /// Let one more miner join late, such as `15s` or `e3`; repeatable
    #[arg(long, value_name = "WHEN")]
    join_after: Vec<When>,
    /// Have a process contribute the negative of what it computed, such as `5`, merge it, as `5:merge`, or send it on,
    /// as `5:push`; repeatable
    #[arg(long, value_name = "PEER[:WHAT]")]
    poison: Vec<Poisoned>,
    /// Leave out the one-process control
    #[arg(long)]
    no_control: bool,
    /// How long nothing may move before the run counts as failed
    #[arg(long, default_value = "120s", value_name = "DURATION")]
    stall_timeout: Millis,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &UpOptions, matches: &ArgMatches) -> Result<(), CliError> {
    let plan = options.plan(matches)?;
    // One thread: the system ties a child's life to the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Bug(format!("start the async runtime: {error}")))?;
    let mut screen = Screen::new();
    screen.tell(&format!("run folder {}", plan.dir.display()));
    let summary = runtime.block_on(async {
        let mut signals = StopSignals::listen();
        let ended = run_swarm(&plan, &mut screen, &mut signals).await?;
        outcome::conclude(&plan, &ended, &mut screen, &mut signals).await
    });
    // After a signal an evaluation may still compute on its thread; nobody waits for it.
    runtime.shutdown_background();
    let summary = summary?;
    let text = if options.json { summary.to_json()? + "\n" } else { report::to_text(&summary) };
    // A closed stdout is the reader's choice.
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
    match summary.disagreement() {
        None => Ok(()),
        Some(differing) => Err(CliError::ReplicasDisagree { differing }),
    }
}

impl UpOptions {
    fn plan(&self, matches: &ArgMatches) -> Result<UpPlan, CliError> {
        let (source, mut spec) = match &self.from {
            Some(from) => {
                let from = FromOptions { from: from.clone(), checkpoint: self.checkpoint };
                ("of the checkpoint".to_owned(), from.resumed(self.spec.epochs())?)
            }
            None => {
                let resolved = self.spec.resolve(matches)?;
                (resolved.source.clone(), resolved.spec)
            }
        };
        if let Some(data) = &self.data {
            spec.data.source = DataSource::File;
            spec.data.hash = Some(hash_file(data)?);
        }
        let faults = Faults {
            kills: self.kill_after.clone(),
            freezes: self.freeze_after.clone(),
            joins: self.join_after.clone(),
            poisons: self.poison.clone(),
        };
        let mut plan = UpPlan {
            spec,
            dir: new_run_dir(&self.runs_dir, self.name.as_deref(), "up")?,
            validators: usize::from(self.validators),
            device: self.device,
            data: self.data.clone(),
            upload_rate: self.upload_rate,
            log_max: self.log_max,
            faults,
            control: if self.no_control || self.from.is_some() { Control::Skip } else { Control::Run },
            stall_timeout: self.stall_timeout.duration(),
        };
        if let Err(error) = plan.prepare(&source) {
            // An empty folder of a run that never was would only take its name.
            drop(std::fs::remove_dir_all(&plan.dir));
            return Err(error);
        }
        Ok(plan)
    }
}
