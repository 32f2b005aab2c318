//! From the folders of a finished swarm to its summary.
//!
//! 1. Compare the hashes that replicas of each stage report.
//! 2. Put the stages of one replica each together to a whole model, and measure and sample it.
//! 3. Train the same samples in one process of its own, which then has all cores as the swarm had.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use iota_model::checkpoint::{assemble, stage_file};
use iota_model::generate::GenerateOptions;
use iota_protocol::Hash;
use iota_protocol::spec::TrainingMode;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Ended;
use super::children::program;
use super::plan::{Control, UpPlan, cores};
use super::screen::Screen;
use super::view::SwarmView;
use crate::bridge::model_config;
use crate::control::{ControlEvent, ControlReport};
use crate::corpus::open_corpus;
use crate::error::CliError;
use crate::evaluation::{Loss, Whole, tokens_per_sample, unusable};
use crate::report::{Curves, Replica, Summary, Trained, write_all};
use crate::signals::StopSignals;

/// What the assembled model continues: how many stories of the built-in corpus begin.
const PROMPT: &str = "One ";
/// How it is sampled: two or three sentences, a little less random than the model would have it.
const SAMPLING: GenerateOptions = GenerateOptions { tokens: 240, temperature: 0.7, top_k: Some(40), seed: 0 };
/// Weights of a stage below the run's folder, as miners write them below their own.
const CHECKPOINT: &str = "checkpoint";

/// Compares, assembles, evaluates, runs the control, and writes the report.
///
/// # Errors
/// A stage has no replica left, a file cannot be read or written, or the control failed.
pub async fn conclude(
    plan: &UpPlan,
    ended: &Ended,
    screen: &mut Screen,
    signals: &mut StopSignals,
) -> Result<Summary, CliError> {
    let view = &ended.view;
    let replicas = replicas(view);
    let checkpoint = collect_stages(plan, view, &replicas)?;
    screen.tell("assembling and evaluating the model");
    let task = plan.clone();
    let measured = tokio::task::spawn_blocking(move || measure(&task, &checkpoint));
    let (loss, sample) = tokio::select! {
        measured = measured => measured.map_err(|panic| CliError::Bug(format!("measure the model: {panic}")))??,
        signal = signals.next() => return Err(CliError::Interrupted { signal }),
    };
    let swarm = Trained {
        loss_nats: loss.nats,
        bits_per_byte: loss.bits_per_byte,
        tokens: trained_samples(view) * tokens_per_sample(&plan.spec),
        seconds: view.training_seconds(),
    };
    let control = match plan.control {
        Control::Skip => None,
        Control::Run => Some(run_control(plan, screen, signals).await?),
    };
    let summary = summarize(plan, ended, replicas, swarm, control.as_ref(), sample);
    write_all(&summary, view.epochs.values(), &plan.dir)?;
    Ok(summary)
}

/// Measures the assembled model and lets it write.
fn measure(plan: &UpPlan, checkpoint: &Path) -> Result<(Loss, String), CliError> {
    let corpus = open_corpus(&plan.spec, plan.data.as_deref())?;
    let mut whole = Whole::open(checkpoint, plan.device)?;
    let loss = whole.validation_loss(&plan.spec, &corpus)?;
    let sample = whole.continue_text(PROMPT, &SAMPLING)?;
    // An untrained model writes any byte; a terminal must not take one for a command.
    let sample = sample.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}");
    Ok((loss, sample))
}

fn summarize(
    plan: &UpPlan,
    ended: &Ended,
    replicas: Vec<Replica>,
    swarm: Trained,
    control: Option<&ControlReport>,
    sample: String,
) -> Summary {
    let (spec, view) = (&plan.spec, &ended.view);
    let name = plan.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mode = match spec.training.mode {
        TrainingMode::Synchronous => "synchronous",
        TrainingMode::Local => "local",
    };
    let trained = control.map(|control| control.trained);
    Summary {
        name,
        run: spec.run_id(),
        mode: mode.to_owned(),
        stages: spec.pipeline.stages,
        miners: spec.pipeline.start_replicas,
        epochs: spec.training.epochs,
        parameters: model_config(spec).total_parameter_count(),
        cores: cores(),
        swarm,
        control: trained,
        speed_ratio: trained.map(|control| swarm.tokens_per_second() / control.tokens_per_second()),
        replicas,
        traffic: view.traffic(),
        faults: plan.faults.describe(),
        incidents: ended.incidents.clone(),
        sample,
        prompt: PROMPT.to_owned(),
        losses: Curves {
            swarm: (0..spec.training.epochs).map(|epoch| view.loss_of(epoch)).collect(),
            control: control
                .map(|control| control.losses.iter().copied().map(Some).collect())
                .unwrap_or_default(),
        },
        folder: plan.dir.clone(),
    }
}

/// Samples that went through the whole pipeline and into a merge of the tail.
fn trained_samples(view: &SwarmView) -> u64 {
    let tail = view.stages.len().saturating_sub(1);
    let of_tail = view.epochs.values().filter(|record| usize::from(record.stage) == tail);
    of_tail.map(|record| u64::from(record.samples)).sum()
}

/// Every miner that finished, compared with the most common hash of the latest version of its stage.
fn replicas(view: &SwarmView) -> Vec<Replica> {
    let finished = view.peers.iter().enumerate().filter_map(|(process, peer)| {
        let finish = peer.finish.as_ref()?;
        let (stage, hash) = (finish.stage?, finish.hash?);
        // What it held may be older than what the run ended with.
        let held = peer.weights.filter(|(_, ready)| *ready == hash);
        let version = held.map_or(finish.version, |(version, _)| version);
        let (peer, join_seconds) = (peer.peer?, peer.join_seconds);
        Some(Replica { process, peer, stage, version, hash, agrees: true, join_seconds })
    });
    let mut replicas: Vec<Replica> = finished.collect();
    let mut reference: BTreeMap<u16, (u32, Hash)> = BTreeMap::new();
    for replica in &replicas {
        let votes = |version: u32, hash: Hash| {
            replicas.iter().filter(|r| (r.stage, r.version, r.hash) == (replica.stage, version, hash)).count()
        };
        let best = reference.entry(replica.stage).or_insert((replica.version, replica.hash));
        if (replica.version, votes(replica.version, replica.hash)) > (best.0, votes(best.0, best.1)) {
            *best = (replica.version, replica.hash);
        }
    }
    for replica in &mut replicas {
        // A replica of an older version left early; it is not one that differs.
        let (version, hash) = reference[&replica.stage];
        replica.agrees = replica.version != version || replica.hash == hash;
    }
    replicas.sort_by_key(|replica| (replica.stage, replica.process));
    replicas
}

/// Copies the weights of one agreeing replica of each stage into the run's folder and puts them together.
fn collect_stages(plan: &UpPlan, view: &SwarmView, replicas: &[Replica]) -> Result<PathBuf, CliError> {
    let folder = plan.dir.join(CHECKPOINT);
    fs::create_dir_all(&folder).map_err(|error| CliError::file("create", &folder, error))?;
    for stage in 0..plan.spec.pipeline.stages {
        let of_stage = replicas.iter().filter(|replica| replica.stage == stage && replica.agrees);
        let Some(replica) = of_stage.max_by_key(|replica| replica.version) else {
            let reason = format!("expected a replica of stage {stage} at the end, got none");
            return Err(CliError::RunFailed { reason, logs: plan.peers_dir() });
        };
        let name = stage_file(usize::from(stage));
        let written =
            view.peers.get(replica.process).and_then(|peer| peer.finish.as_ref()?.checkpoint.clone());
        let from = written.unwrap_or_else(|| plan.peer_dir(replica.process).join(CHECKPOINT).join(&name));
        let to = folder.join(&name);
        fs::copy(&from, &to).map_err(|error| CliError::file("read", &from, error))?;
    }
    assemble(&folder).map_err(|error| unusable(&folder, error))?;
    Ok(folder)
}

/// Runs the control in a process of its own and shows how far it is.
async fn run_control(
    plan: &UpPlan,
    screen: &mut Screen,
    signals: &mut StopSignals,
) -> Result<ControlReport, CliError> {
    screen.tell("training the same samples in one process");
    let dir = plan.dir.join("control");
    fs::create_dir_all(&dir).map_err(|error| CliError::file("create", &dir, error))?;
    let log = dir.join(super::children::LOG_FILE);
    let stderr = fs::File::create(&log).map_err(|error| CliError::file("create", &log, error))?;
    let failed = |reason: String| CliError::RunFailed { reason, logs: plan.dir.clone() };
    let mut child = program(cores())?
        .args(control_arguments(plan))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|error| CliError::Bug(format!("start the control: {error}")))?;
    let stdout = child.stdout.take().ok_or_else(|| CliError::Bug("read from the control".to_owned()))?;
    let mut lines = BufReader::new(stdout).lines();
    let mut report = None;
    let follow = async {
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str(&line) {
                Ok(ControlEvent::Epoch { epoch, loss }) => {
                    screen.tell(&format!(
                        "one process: epoch {}/{}, loss {loss:.4}",
                        epoch + 1,
                        plan.spec.training.epochs
                    ));
                }
                Ok(ControlEvent::Done(done)) => report = Some(done),
                Err(error) => tracing::debug!(%error, line, "not a control event"),
            }
        }
        child.wait().await
    };
    let status = tokio::select! {
        status = follow => status,
        // Dropping the child kills it.
        signal = signals.next() => return Err(CliError::Interrupted { signal }),
    };
    report.ok_or_else(|| {
        failed(format!("expected a result of the control, got {status:?}; see {}", log.display()))
    })
}

fn control_arguments(plan: &UpPlan) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let mut arguments = vec!["control".to_owned(), "--spec".to_owned(), text(&plan.spec_path())];
    arguments.extend(["--device".to_owned(), plan.device.to_string(), "--exit-on-stdin-close".to_owned()]);
    if let Some(data) = &plan.data {
        arguments.extend(["--data".to_owned(), text(data)]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{NodeEvent, TimedEvent};
    use iota_protocol::PeerId;

    fn finish(view: &mut SwarmView, process: usize, version: u32, hash: u8) {
        let id = u8::try_from(process).unwrap();
        let at = |event| TimedEvent { t_ms: 0, event };
        let started = NodeEvent::Started {
            peer: PeerId([id; 32]),
            multiaddrs: vec![],
            data_addresses: vec![],
            http: None,
        };
        view.apply(process, at(started));
        let finished =
            NodeEvent::Finished { stage: Some(0), version, hash: Some(Hash([hash; 32])), checkpoint: None };
        view.apply(process, at(finished));
    }

    #[test]
    fn the_odd_one_out_is_named_and_an_old_version_is_not() {
        let mut view = SwarmView::new(1, 4);
        finish(&mut view, 0, 4, 9);
        finish(&mut view, 1, 4, 7);
        finish(&mut view, 2, 4, 7);
        finish(&mut view, 3, 3, 5);
        let agrees: Vec<bool> = replicas(&view).iter().map(|replica| replica.agrees).collect();
        assert_eq!(agrees, [false, true, true, true]);
    }
}
