//! What a run leaves behind for people and programs: `summary.json`, `epochs.jsonl` and `report.html`.

mod chart;
mod html;
mod text;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use iota_protocol::{Hash, PeerId, RunId};
use serde::{Deserialize, Serialize};

pub use html::render;
pub use text::to_text;

use crate::error::CliError;
use crate::up::view::{EpochRecord, Traffic};

/// Everything the report says.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Name of the run's folder.
    pub name: String,
    /// Identity of the run.
    pub run: RunId,
    /// `synchronous` or `local`.
    pub mode: String,
    /// Stages of the pipeline.
    pub stages: u16,
    /// Miners of each stage at the start.
    pub miners: u16,
    /// Epochs of every stage.
    pub epochs: u32,
    /// Parameters of the whole model.
    pub parameters: usize,
    /// Cores of the machine.
    pub cores: usize,
    /// The swarm's numbers.
    pub swarm: Trained,
    /// The one-process control's numbers, if it was run.
    pub control: Option<Trained>,
    /// The swarm's tokens per second over the control's.
    pub speed_ratio: Option<f64>,
    /// Every miner that held weights at the end.
    pub replicas: Vec<Replica>,
    /// Bytes moved, over all processes.
    pub traffic: Traffic,
    /// Faults that were asked for.
    pub faults: Vec<String>,
    /// What happened to processes.
    pub incidents: Vec<String>,
    /// Text that the assembled model wrote after [`prompt`](Self::prompt).
    pub sample: String,
    /// What it was given to start with.
    pub prompt: String,
    /// Training loss of each epoch in nats per token.
    pub losses: Curves,
    /// Folder of the run.
    pub folder: PathBuf,
}

/// What training brought, at which speed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Validation loss in nats per token.
    pub loss_nats: f64,
    /// The same in bits per byte of text.
    pub bits_per_byte: f64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, merges included and evaluation excluded.
    pub seconds: f64,
}

impl Trained {
    /// Tokens trained on per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }
}

/// A miner at the end of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replica {
    /// Index of its process.
    pub process: usize,
    /// Its identity.
    pub peer: PeerId,
    /// Its stage.
    pub stage: u16,
    /// Version of its weights.
    pub version: u32,
    /// Their hash.
    pub hash: Hash,
    /// Whether it equals the other replicas of its stage.
    pub agrees: bool,
    /// Seconds from the start of its process to the first merge with its contribution.
    pub join_seconds: Option<f64>,
}

/// Training loss of each epoch, in nats per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Of the swarm.
    pub swarm: Vec<Option<f64>>,
    /// Of the control.
    pub control: Vec<Option<f64>>,
}

impl Summary {
    /// The replicas that differ from the others of their stage, in words; none if all agree.
    #[must_use]
    pub fn disagreement(&self) -> Option<String> {
        let differing = self.replicas.iter().filter(|replica| !replica.agrees);
        let texts: Vec<_> = differing
            .map(|replica| {
                format!(
                    "process {} of stage {} with {}",
                    replica.process,
                    replica.stage,
                    replica.hash.short()
                )
            })
            .collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    /// The summary as one JSON document.
    ///
    /// # Errors
    /// Never in practice: every field has a JSON form.
    pub fn to_json(&self) -> Result<String, CliError> {
        serde_json::to_string_pretty(self)
            .map_err(|error| CliError::Bug(format!("write the summary: {error}")))
    }
}

/// Writes all three files into the run's folder.
///
/// # Errors
/// A file cannot be written.
pub fn write_all<'a>(
    summary: &Summary,
    epochs: impl Iterator<Item = &'a EpochRecord> + Clone,
    dir: &Path,
) -> Result<(), CliError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, bytes).map_err(|error| CliError::file("write", path, error))
    };
    let mut lines = Vec::new();
    for record in epochs.clone() {
        // Writing to memory cannot fail; a record has a JSON form.
        let _ = writeln!(lines, "{}", serde_json::to_string(record).unwrap_or_default());
    }
    write("epochs.jsonl", &lines)?;
    write("summary.json", summary.to_json()?.as_bytes())?;
    write("report.html", render(summary, epochs).as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A summary with every part filled in.
    pub(crate) fn example() -> Summary {
        let trained = Trained { loss_nats: 0.9, bits_per_byte: 1.298, tokens: 1000, seconds: 10.0 };
        let replica = |process, hash, agrees| Replica {
            process,
            peer: PeerId([1; 32]),
            stage: 0,
            version: 2,
            hash: Hash([hash; 32]),
            agrees,
            join_seconds: Some(1.5),
        };
        Summary {
            name: "up-1".into(),
            run: RunId([9; 32]),
            mode: "local".into(),
            stages: 1,
            miners: 2,
            epochs: 2,
            parameters: 12_345,
            cores: 2,
            swarm: trained,
            control: Some(Trained { tokens: 2000, ..trained }),
            speed_ratio: Some(0.5),
            replicas: vec![replica(0, 7, true), replica(1, 8, false)],
            traffic: Traffic { gossip: [1, 2], rpc: [3, 4], push: [5, 6], blobs: [7, 8] },
            faults: vec!["kill process 1 at epoch 1".into()],
            incidents: vec!["process 1 killed".into()],
            sample: "once <upon> a time".into(),
            prompt: "once".into(),
            losses: Curves { swarm: vec![Some(5.0), Some(3.0)], control: vec![Some(4.9), None] },
            folder: "runs/up-1".into(),
        }
    }

    #[test]
    fn replicas_that_differ_are_named() {
        let mut summary = example();
        assert_eq!(summary.disagreement().unwrap(), "process 1 of stage 0 with 08080808");
        summary.replicas.pop();
        assert_eq!(summary.disagreement(), None);
    }

    #[test]
    fn all_three_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        write_all(&example(), [].iter(), dir.path()).unwrap();
        for name in ["summary.json", "epochs.jsonl", "report.html"] {
            assert!(dir.path().join(name).exists(), "{name}");
        }
    }
}
