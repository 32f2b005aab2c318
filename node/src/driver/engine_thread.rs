//! The worker on its own thread: takes the protocol's jobs, keeps tensors in the vault.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use iota_model::data::Corpus;
use iota_model::{Device, OptimizerState};
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::{Epoch, Hash, RunSpec, StageIndex};
use iota_worker::{Blobs, KeepError, Worker};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::moments::MomentsFolder;
use super::poison::Poison;
use super::vault::Vault;
use crate::blobs::DataError;

/// Niceness of the engine's thread: a third of the share of a thread at zero, when both want the same core.
#[cfg(target_os = "linux")]
const ENGINE_NICENESS: i32 = 5;

/// Something for the engine's thread.
pub(crate) enum Order {
    /// A job of the protocol.
    Job(Job),
    /// Write the weights to a folder; answers with the file.
    Checkpoint(PathBuf, oneshot::Sender<Result<PathBuf, String>>),
}

/// What the engine's thread needs.
pub(crate) struct EngineSetup {
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) device: Device,
    pub(crate) corpus: Option<Arc<Corpus>>,
    pub(crate) vault: Vault,
    pub(crate) runtime: Handle,
    /// Where a miner's own moments are kept, so that its next process goes on from them.
    pub(crate) moments: Option<MomentsFolder>,
    /// What it spoils of what it computed.
    pub(crate) poison: Vec<Poison>,
}

/// Starts the thread. It ends when the sender of orders is dropped.
///
/// # Errors
/// What the system said about starting a thread.
pub(crate) fn start(
    setup: EngineSetup,
) -> std::io::Result<(mpsc::UnboundedSender<Order>, mpsc::UnboundedReceiver<JobDone>, thread::JoinHandle<()>)>
{
    // The protocol has at most one job under way, so neither queue grows.
    let (orders, mut inbox) = mpsc::unbounded_channel();
    let (outbox, results) = mpsc::unbounded_channel();
    let thread = thread::Builder::new().name("engine".to_owned()).spawn(move || {
        yield_to_network();
        let EngineSetup { spec, device, corpus, vault, runtime, moments, poison } = setup;
        let codec = spec.merge.codec;
        let mut worker = Worker::new(spec, device, corpus);
        let mut blobs = VaultBlobs { vault, runtime, moments };
        while let Some(order) = inbox.blocking_recv() {
            match order {
                Order::Job(job) => {
                    let mut done = worker.perform(&job, &mut blobs);
                    for poison in &poison {
                        done = poison.spoil(&job, done, codec, &mut blobs);
                    }
                    if outbox.send(done).is_err() {
                        break;
                    }
                }
                Order::Checkpoint(folder, answer) => drop(answer.send(write_checkpoint(&worker, &folder))),
            }
        }
    })?;
    Ok((orders, results, thread))
}

/// Lowers this thread's priority, and with it that of the compute threads it will start: a message that
/// waits for a core delays a peer, a tensor that waits delays nobody else.
fn yield_to_network() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, ENGINE_NICENESS) {
        tracing::debug!(%error, "engine keeps its priority");
    }
}

/// Writes the weights held to `folder`; returns the file, or why there is none.
fn write_checkpoint(worker: &Worker, folder: &Path) -> Result<PathBuf, String> {
    let checkpoint = worker.checkpoint().ok_or("no stage is held")?;
    std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    checkpoint.save(folder).map_err(|error| error.to_string())
}

/// The vault, from a thread that may block.
struct VaultBlobs {
    vault: Vault,
    runtime: Handle,
    /// None for a validator, whose moments are those of the miners that it checks.
    moments: Option<MomentsFolder>,
}

impl Blobs for VaultBlobs {
    fn blob(&self, hash: Hash) -> Option<Bytes> {
        self.runtime.block_on(self.vault.get(hash))
    }

    fn keep(&mut self, bytes: Bytes, tag: &str) -> Result<Hash, KeepError> {
        Ok(self.vault.keep_blocking(bytes, tag))
    }

    fn publish(&mut self, blobs: Vec<Bytes>, tag: &str) -> Result<Vec<Hash>, KeepError> {
        let all = blobs.into_iter().map(|bytes| self.vault.publish(bytes, tag));
        let published = async {
            let hashes = futures::future::try_join_all(all).await?;
            // Others are told of these, and the next process may start from them.
            self.vault.sync().await.map(|()| hashes)
        };
        self.runtime.block_on(published).map_err(|error: DataError| KeepError(error.to_string()))
    }

    fn keep_moments(
        &mut self,
        stage: StageIndex,
        version: Epoch,
        moments: &OptimizerState,
    ) -> Result<(), KeepError> {
        self.moments.as_ref().map_or(Ok(()), |folder| folder.keep(stage, version, moments)).map_err(KeepError)
    }

    fn moments(&self, stage: StageIndex, version: Epoch) -> Option<OptimizerState> {
        self.moments.as_ref()?.read(stage, version)
    }
}
