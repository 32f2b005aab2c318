//! `iota-node join`: one or several members of a run in this process.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use iota_model::Device;
use iota_model::data::Corpus;
use iota_protocol::join::{Credential, Invite, Puzzle, Role};
use iota_protocol::limits::SNAPSHOT_EVERY_ENTRIES;
use iota_protocol::peer::room::Room;
use iota_protocol::spec::{DataSource, JoinPolicy};
use iota_protocol::time::{ByteCount, Millis};
use iota_protocol::{Identity, PeerId, RunId, RunSpec};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::invite::read_invite;
use super::keys::{read_key, read_or_create_key};
use crate::blobs::DataError;
use crate::corpus::open_corpus;
use crate::disk::DiskWatch;
use crate::error::{CliError, ExitCode};
use crate::events::EVENTS_BYTES_MAX;
use crate::invite::InviteFile;
use crate::net::NetError;
use crate::run::{Conclusion, JoinConfig, Poison, Roles, RunError, Stop, join};
use crate::signals::StopSignals;
use crate::up::plan::cores;
use crate::work::read_or_search;

#[derive(Debug, Args)]
pub(super) struct JoinOptions {
    /// Run spec, the same for everyone in the run
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Key file of this peer [default: `peer.key` in the data folder, made if it is not there]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Invite that the owner of the run gave this peer; repeatable, one for each miner of this process
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    invite: Vec<PathBuf>,
    /// Address of a peer that is in the run, ending in `/p2p/...`; repeatable
    #[arg(long, value_name = "MULTIADDR", value_delimiter = ',')]
    bootstrap: Vec<Multiaddr>,
    /// How long to try the bootstrap peers before giving up
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    bootstrap_timeout: Millis,
    /// Train a stage [default when no role is asked for]
    #[arg(long)]
    miner: bool,
    /// Replay epochs of miners that are drawn, and say whether they are what was committed to
    #[arg(long, conflicts_with = "miner")]
    validator: bool,
    /// Contribute, merge or send on the negative of what is computed, as a fault to try on a swarm of one's own
    #[arg(long, hide = true, value_enum, value_name = "WHAT")]
    poison: Vec<Poison>,
    /// Stand for orchestrator; a candidate's key does so by itself
    #[arg(long)]
    orchestrator: bool,
    /// Where to compute: auto, cpu, cuda:N or wgpu:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: Device,
    /// Address to listen on for control messages; repeatable
    #[arg(long, value_name = "MULTIADDR", value_delimiter = ',', default_values = ["/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0"])]
    listen: Vec<Multiaddr>,
    /// UDP address of the data plane
    #[arg(long, default_value = "0.0.0.0:0", value_name = "IP:PORT")]
    data_bind: SocketAddr,
    /// Folder for everything this node writes
    #[arg(long, default_value = "iota-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Corpus, if the spec says `file`
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Bytes per second that uploads to the mirror may take, such as `10MiB` [default: as fast as they go]
    #[arg(long, value_name = "BYTES")]
    mirror_upload_rate: Option<ByteCount>,
    /// Decisions after which the log names the state they lead to, and peers let go of them, while this node leads
    #[arg(long, default_value_t = SNAPSHOT_EVERY_ENTRIES, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    snapshot_every: u64,
    /// Bytes per second that blobs served to other peers may take, such as `2MiB` [default: as fast as they go]
    #[arg(long, value_name = "BYTES")]
    upload_rate: Option<ByteCount>,
    /// Most that this node keeps on its disk, such as `20GiB`; near that it takes on no more work [default: no limit]
    #[arg(long, value_name = "BYTES")]
    disk_quota: Option<ByteCount>,
    /// Most that `events.jsonl` and the older part of it take, such as `64MiB`
    #[arg(long, default_value_t = ByteCount(EVENTS_BYTES_MAX), value_name = "BYTES")]
    event_log_max: ByteCount,
    /// Miners in this process, each with its own identity
    #[arg(long, default_value_t = 1, value_name = "N")]
    num_miners: u16,
    /// Address that serves /health and /metrics
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    http: SocketAddr,
    /// Find peers of the run in the local network
    #[arg(long)]
    mdns: bool,
    /// How long to finish and hand over what was begun when SIGINT or SIGTERM comes; a second signal, or 0s, ends at once
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    leave_within: Millis,
    /// Stop when stdin closes, and die with the parent process
    #[arg(long, hide = true)]
    exit_on_stdin_close: bool,
}

/// How long a cancelled node may take to say goodbye before the process exits anyway.
const GOODBYE: Duration = Duration::from_secs(5);

pub(super) fn run(options: JoinOptions) -> Result<(), CliError> {
    let stop = Stop::default();
    if options.exit_on_stdin_close {
        exit_with_parent(stop.now.clone());
    }
    let spec = read_spec(&options.spec)?;
    let configs = options.configs(&spec)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Bug(format!("start the async runtime: {error}")))?;
    let result = runtime.block_on(run_all(configs, &options, &stop, &spec.mirror.url));
    runtime.shutdown_timeout(GOODBYE);
    result
}

/// Reads the spec at `path`, which has to be complete.
pub(super) fn read_spec(path: &Path) -> Result<RunSpec, CliError> {
    let text = fs::read_to_string(path).map_err(|error| CliError::file("read", path, error))?;
    RunSpec::from_toml(&text).map_err(|source| CliError::Spec { path: path.display().to_string(), source })
}

/// Runs every miner of this process until it ends, one fails, or a signal comes.
async fn run_all(
    configs: Vec<JoinConfig>,
    options: &JoinOptions,
    stop: &Stop,
    mirror: &str,
) -> Result<(), CliError> {
    let mut nodes = JoinSet::new();
    for config in configs {
        nodes.spawn(join(config, stop.clone()));
    }
    let mut signals = StopSignals::listen();
    let (mut stopped, mut cut_short) = (None, false);
    let mut until = tokio::time::Instant::now();
    let mut outcome = Ok(());
    loop {
        let node = tokio::select! {
            name = signals.next() => {
                if stopped.replace(name).is_none() {
                    until = leave(stop, name, options.leave_within.duration());
                } else {
                    stop.now.cancel();
                }
                continue;
            }
            () = tokio::time::sleep_until(until), if stopped.is_some() && !stop.now.is_cancelled() => {
                stop.now.cancel();
                continue;
            }
            node = nodes.join_next() => node,
        };
        match node {
            None => break,
            Some(Ok(Ok(summary))) => cut_short |= summary.conclusion == Conclusion::Stopped,
            Some(Ok(Err(error))) => {
                stop.now.cancel();
                let why = || explain(error, &options.data_dir, mirror);
                // A disk that is full now is why, whatever could not be done without room.
                outcome =
                    outcome.and(check_room(&options.data_dir, options.disk_quota)).and_then(|()| Err(why()));
            }
            Some(Err(panic)) => {
                stop.now.cancel();
                outcome = outcome.and(Err(CliError::Bug(format!("run the node: {panic}"))));
            }
        }
    }
    match stopped {
        Some(signal) if cut_short && outcome.is_ok() => Err(CliError::Interrupted { signal }),
        _ => outcome,
    }
}

/// Has all nodes leave; returns until when they may take.
fn leave(stop: &Stop, signal: &str, within: Duration) -> tokio::time::Instant {
    if within.is_zero() {
        stop.now.cancel();
    } else {
        tracing::info!(signal, within = ?within, "leaving; a second signal ends at once");
        stop.leave.cancel();
    }
    tokio::time::Instant::now() + within
}

impl JoinOptions {
    /// One configuration per miner of this process.
    fn configs(&self, spec: &RunSpec) -> Result<Vec<JoinConfig>, CliError> {
        let corpus = self.corpus(spec)?;
        (0..self.num_miners.max(1)).map(|index| self.config(spec, corpus.clone(), index)).collect()
    }

    fn corpus(&self, spec: &RunSpec) -> Result<Option<Arc<Corpus>>, CliError> {
        // Only who computes reads the corpus; a file is demanded from nobody else.
        if !self.is_miner() && !self.validator && self.data.is_none() && spec.data.source == DataSource::File
        {
            return Ok(None);
        }
        open_corpus(spec, self.data.as_deref()).map(Some)
    }

    fn is_miner(&self) -> bool {
        self.miner || !(self.validator || self.orchestrator)
    }

    fn config(
        &self,
        spec: &RunSpec,
        corpus: Option<Arc<Corpus>>,
        index: u16,
    ) -> Result<JoinConfig, CliError> {
        let data_dir = match self.num_miners {
            0 | 1 => self.data_dir.clone(),
            _ => self.data_dir.join(format!("miner-{index}")),
        };
        fs::create_dir_all(&data_dir).map_err(|error| CliError::file("create", &data_dir, error))?;
        // Before anything is written: half a file would stand in the way of the next start.
        check_room(&data_dir, self.disk_quota)?;
        let secret = match &self.key {
            Some(path) if index == 0 => read_key(path)?,
            _ => read_or_create_key(&data_dir.join("peer.key"))?,
        };
        let roles = self.roles(spec, secret, index)?;
        let credential = self.credential(spec, Identity::from_secret(secret).peer(), roles, &data_dir)?;
        Ok(JoinConfig {
            roles,
            spec: spec.clone(),
            secret,
            credential,
            data_dir,
            device: self.device,
            listen: self.listen.iter().map(|address| any_port(address, index)).collect(),
            data_bind: shifted(self.data_bind, index),
            bootstrap: self.bootstrap.clone(),
            bootstrap_timeout: self.bootstrap_timeout.duration(),
            mdns: self.mdns,
            http: shifted(self.http, index),
            snapshot_every: self.snapshot_every,
            mirror_upload_rate: self.mirror_upload_rate.and_then(|rate| NonZeroU64::new(rate.0)),
            upload_rate: self.upload_rate.and_then(|rate| NonZeroU64::new(rate.0)),
            disk_quota: self.disk_quota.map(|quota| quota.0),
            event_log_max: self.event_log_max.0,
            poison: self.poison.clone(),
            corpus,
        })
    }

    /// What `peer` shows to be let in, if the run asks it for something; refuses to start where nothing it has would do.
    fn credential(
        &self,
        spec: &RunSpec,
        peer: PeerId,
        roles: Roles,
        data_dir: &Path,
    ) -> Result<Option<Credential>, CliError> {
        let refused = |refusal| CliError::NotAdmitted { peer, refusal };
        spec.lists(peer).map_err(refused)?;
        if spec.candidate_index(peer).is_some() {
            return Ok(None);
        }
        let run = spec.run_id();
        let credential = match spec.join.policy {
            JoinPolicy::Invite => self.invite_of(run, peer, roles)?.map(Credential::Invite),
            policy if !self.invite.is_empty() => {
                return Err(CliError::Option {
                    option: "--invite".to_owned(),
                    expected: "a run whose join.policy is `invite`".to_owned(),
                    got: format!("one whose policy is `{policy}`"),
                });
            }
            JoinPolicy::Allow => None,
            JoinPolicy::Open => match spec.join.work_bits {
                0 => None,
                bits => Some(Credential::Work(work(run, peer, bits, data_dir)?)),
            },
        };
        spec.entitles(run, peer, credential.as_ref()).map_err(refused)?;
        Ok(credential)
    }

    /// The invite of `peer` among those given.
    fn invite_of(&self, run: RunId, peer: PeerId, roles: Roles) -> Result<Option<Invite>, CliError> {
        let files = self.invite.iter().map(|path| Ok((path, read_invite(path)?)));
        let files = files.collect::<Result<Vec<_>, CliError>>()?;
        let wrong = |path: &Path, expected: String, got: String| CliError::Option {
            option: format!("--invite {}", path.display()),
            expected,
            got,
        };
        let Some((path, file)) = files.iter().find(|(_, file)| file.peer == peer) else {
            let other = |(path, file): &(&PathBuf, InviteFile)| {
                wrong(path, format!("an invite of this peer, {peer}"), format!("one of {}", file.peer))
            };
            return files.first().map(other).map_or(Ok(None), Err);
        };
        if file.run != run {
            return Err(wrong(path, format!("an invite to run {run}"), format!("one to run {}", file.run)));
        }
        let wanted = if roles.miner { Role::Miner } else { Role::Validator };
        if file.role != wanted {
            return Err(wrong(path, format!("an invite as {wanted}"), format!("one as {}", file.role)));
        }
        Ok(Some(file.invite()))
    }

    fn roles(&self, spec: &RunSpec, secret: [u8; 32], index: u16) -> Result<Roles, CliError> {
        let peer = Identity::from_secret(secret).peer();
        let candidate = spec.candidate_index(peer).is_some();
        if self.orchestrator && !candidate && index == 0 {
            return Err(CliError::Option {
                option: "--orchestrator".to_owned(),
                expected: "the key of one of the candidates in the spec".to_owned(),
                got: format!("the key of {peer}"),
            });
        }
        Ok(Roles { miner: self.is_miner(), validator: self.validator, orchestrator: candidate })
    }
}

/// A proof of work of `peer`, which an earlier process may have left in the folder.
fn work(run: RunId, peer: PeerId, bits: u8, data_dir: &Path) -> Result<u64, CliError> {
    let work = read_or_search(data_dir, &Puzzle::new(run, peer), bits, cores())
        .map_err(|error| CliError::file("write", data_dir, error))?;
    match work.took {
        Some(took) => tracing::info!(bits, took = ?took, "proof of work found"),
        None => tracing::info!(bits, "proof of work of an earlier start"),
    }
    Ok(work.nonce)
}

/// Refuses a folder for which there is no room.
fn check_room(data_dir: &Path, quota: Option<ByteCount>) -> Result<(), CliError> {
    let looked = DiskWatch::new(data_dir, quota.map(|quota| quota.0)).look();
    let disk = looked.map_err(|error| CliError::file("read", data_dir, error))?;
    if Room::Enough.after(&disk) != Room::Full {
        return Ok(());
    }
    let within = quota.map(|quota| format!(" within the quota of {quota}")).unwrap_or_default();
    Err(CliError::NoRoom {
        path: data_dir.to_owned(),
        expected: format!("{} bytes free{within}", disk.full_mark()),
        got: format!("{} bytes free and {} bytes kept", disk.free, disk.kept),
    })
}

/// Only the first miner of a process gets the port that was asked for; the others let the system choose.
fn shifted(address: SocketAddr, index: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), if index == 0 { address.port() } else { 0 })
}

/// [`shifted`] for a multiaddress.
fn any_port(address: &Multiaddr, index: u16) -> Multiaddr {
    let free = |part| match part {
        Protocol::Udp(_) if index > 0 => Protocol::Udp(0),
        Protocol::Tcp(_) if index > 0 => Protocol::Tcp(0),
        other => other,
    };
    address.iter().map(free).collect()
}

/// Says why a node ended, in the words of the command line.
fn explain(error: RunError, data_dir: &Path, mirror: &str) -> CliError {
    let in_use = |address| CliError::Listen { address, reason: "the address is in use".to_owned() };
    match error {
        RunError::PortInUse { addr } => in_use(addr),
        RunError::Net(NetError::AddressInUse { address }) => in_use(address.to_string()),
        RunError::Net(NetError::Listen { address, reason }) => {
            CliError::Listen { address: address.to_string(), reason }
        }
        RunError::Data(DataError::Bind { address, reason }) => {
            CliError::Listen { address: address.to_string(), reason }
        }
        RunError::Data(DataError::Open { path, reason }) => CliError::Folder { path, reason },
        RunError::DataDir(reason) => CliError::Folder { path: data_dir.to_owned(), reason },
        RunError::BootstrapUnreachable { addrs, waited } => {
            let addresses = addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            CliError::Unreachable { addresses, waited }
        }
        RunError::Outdated(outdated) => CliError::Outdated(outdated),
        RunError::NotAdmitted { peer, refusal } => CliError::NotAdmitted { peer, refusal },
        RunError::Mirror(reason) => CliError::Mirror { url: mirror.to_owned(), reason },
        RunError::Device(reason) => CliError::Device { reason },
        other => CliError::Bug(format!("run the node: {other}")),
    }
}

/// Cancels `cancel` when stdin closes, exits a little later whatever happens, and asks the system to
/// kill this process with its parent: a stopped process cannot notice that stdin closed.
pub fn exit_with_parent(cancel: CancellationToken) {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut buffer).is_ok_and(|read| read > 0) {}
        cancel.cancel();
        std::thread::sleep(GOODBYE);
        std::process::exit(i32::from(ExitCode::Interrupted as u8));
    });
}
