//! What one `up` is going to do: the spec, the processes, and the folder they write to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use iota_model::Device;
use iota_protocol::join::Role;
use iota_protocol::spec::{Candidate, JoinPolicy};
use iota_protocol::time::ByteCount;
use iota_protocol::{Identity, RunSpec};

use super::fault::Faults;
use crate::cli::{create_key, write_invite};
use crate::config::annotated;
use crate::error::CliError;
use crate::invite::InviteFile;
use crate::mirror::MirrorUrl;

/// Orchestrator candidates of a local swarm; three survive the loss of one.
const CANDIDATES: usize = 3;

/// Keeps the secrets of a local swarm apart from anything else derived from the same seed.
const KEY_CONTEXT: &str = "iota-node 2026 keys of a loopback swarm";
/// The same for the key that signs its invites.
const OWNER_CONTEXT: &str = "iota-node 2026 owner of a loopback swarm";

/// Everything `up` was asked to do.
#[derive(Clone, Debug)]
pub struct UpPlan {
    /// The run; its candidates are filled in by [`UpPlan::prepare`].
    pub spec: RunSpec,
    /// Folder of the run.
    pub dir: PathBuf,
    /// Validators beside the miners.
    pub validators: usize,
    /// Device of every process.
    pub device: Device,
    /// The corpus file, if the spec demands one.
    pub data: Option<PathBuf>,
    /// Bytes per second that each process may serve blobs at, if there is a limit.
    pub upload_rate: Option<ByteCount>,
    /// Most that the text log of each process and the older part of it take.
    pub log_max: ByteCount,
    /// Faults to try.
    pub faults: Faults,
    /// Whether to train in one process afterwards and compare.
    pub control: Control,
    /// How long nothing may move before the run counts as failed.
    pub stall_timeout: Duration,
}

/// Whether a control is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Train the same samples in one process and compare.
    Run,
    /// The swarm alone.
    Skip,
}

impl UpPlan {
    /// Miners at the start.
    #[must_use]
    pub fn miners(&self) -> usize {
        usize::from(self.spec.pipeline.stages) * usize::from(self.spec.pipeline.start_replicas)
    }

    /// Processes at the start.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.miners() + self.validators
    }

    /// Compute threads of each process, so that all together use the cores once.
    #[must_use]
    pub fn threads(&self) -> usize {
        (cores() / (self.processes() + self.faults.joins.len())).max(1)
    }

    /// The secret of process `index`.
    ///
    /// Derived from the run's seed so that assignments and the order of reductions repeat from run to run. Such a key
    /// protects nothing: these processes listen on loopback only, and a real run makes its keys with `init`.
    #[must_use]
    pub fn secret(&self, index: usize) -> [u8; 32] {
        let mut material = self.spec.seed.to_le_bytes().to_vec();
        material.extend_from_slice(&(index as u64).to_le_bytes());
        blake3::derive_key(KEY_CONTEXT, &material)
    }

    /// The secret of who invites the processes of a run that asks for invites.
    fn owner_secret(&self) -> [u8; 32] {
        blake3::derive_key(OWNER_CONTEXT, &self.spec.seed.to_le_bytes())
    }

    /// The invite of process `index`.
    fn invite(&self, index: usize) -> PathBuf {
        self.dir.join("keys").join(format!("peer-{index}.invite"))
    }

    /// The key file of process `index`.
    #[must_use]
    pub fn key(&self, index: usize) -> PathBuf {
        self.dir.join("keys").join(format!("peer-{index}.key"))
    }

    /// The folder of process `index`.
    #[must_use]
    pub fn peer_dir(&self, index: usize) -> PathBuf {
        self.peers_dir().join(index.to_string())
    }

    /// The folder of all processes.
    #[must_use]
    pub fn peers_dir(&self) -> PathBuf {
        self.dir.join("peers")
    }

    /// The mirror of a run that names none: a folder beside those of the processes.
    fn mirror_url(&self) -> Result<String, CliError> {
        let dir = std::path::absolute(&self.dir).map_err(|error| CliError::file("find", &self.dir, error))?;
        Ok(MirrorUrl::Folder(dir.join("mirror")).to_string())
    }

    /// The spec as the processes read it.
    #[must_use]
    pub fn spec_path(&self) -> PathBuf {
        self.dir.join("spec.toml")
    }

    /// Names the candidates, checks the spec, and writes it and the keys.
    ///
    /// # Errors
    /// The spec is impossible, a fault names a process that is not there, or a file cannot be written.
    pub fn prepare(&mut self, source: &str) -> Result<(), CliError> {
        let candidates = self.miners().min(CANDIDATES);
        let candidate = |index: usize| Candidate {
            peer: Identity::from_secret(self.secret(index)).peer(),
            priority: u32::try_from(candidates - index).unwrap_or(0),
        };
        self.spec.orchestrator.candidates = (0..candidates).map(candidate).collect();
        if !self.spec.mirror.is_set() {
            self.spec.mirror.url = self.mirror_url()?;
        }
        let processes = self.processes() + self.faults.joins.len();
        self.let_in(processes);
        self.spec.validate().map_err(|error| CliError::Spec { path: source.to_owned(), source: error })?;
        if let Some(peer) = self.faults.peer_max().filter(|peer| *peer >= processes) {
            return Err(CliError::Option {
                option: "--kill-after, --freeze-after or --poison".to_owned(),
                expected: format!("a process from 0 to {}", processes - 1),
                got: peer.to_string(),
            });
        }
        for index in 0..processes {
            create_key(&self.key(index), &self.secret(index))?;
        }
        self.write_invites(processes)?;
        let text = format!("# The run in this folder.\n\n{}", annotated(&self.spec, |_| None));
        let path = self.spec_path();
        fs::write(&path, text).map_err(|error| CliError::file("write", &path, error))
    }

    /// Names the owner or the list that the policy asks for and the spec leaves out: the processes are this machine's own.
    fn let_in(&mut self, processes: usize) {
        let owner = Identity::from_secret(self.owner_secret()).peer();
        let peers = (0..processes).map(|index| Identity::from_secret(self.secret(index)).peer()).collect();
        let join = &mut self.spec.join;
        match join.policy {
            JoinPolicy::Invite => join.owner = join.owner.or(Some(owner)),
            JoinPolicy::Allow if join.allow.is_empty() => join.allow = peers,
            JoinPolicy::Allow | JoinPolicy::Open => {}
        }
    }

    /// Invites every process, if the run asks for that, and checks that as many may be on one machine.
    fn write_invites(&self, processes: usize) -> Result<(), CliError> {
        let join = &self.spec.join;
        let (policy, run, owner) =
            (join.policy, self.spec.run_id(), Identity::from_secret(self.owner_secret()));
        let impossible = |expected: String, got: String| {
            Err(CliError::Option { option: "--spec or --set".to_owned(), expected, got })
        };
        if join.per_address > 0 && (join.per_address as usize) < processes {
            let expected = format!("a join.per_address of 0, or at least {processes}, all on one machine");
            return impossible(expected, join.per_address.to_string());
        }
        if policy != JoinPolicy::Invite {
            return Ok(());
        }
        if let Some(other) = join.owner.filter(|other| *other != owner.peer()) {
            let expected = "no join.owner, since `up` invites its processes by a key of its own".to_owned();
            return impossible(expected, other.to_string());
        }
        let owner_key = self.dir.join("keys/owner.key");
        create_key(&owner_key, &self.owner_secret())?;
        for index in 0..processes {
            let peer = Identity::from_secret(self.secret(index)).peer();
            let file = InviteFile::sign(&owner, run, peer, self.role(index), None);
            write_invite(&file, &self.invite(index))?;
        }
        Ok(())
    }

    /// What process `index` is.
    fn role(&self, index: usize) -> Role {
        if (self.miners()..self.processes()).contains(&index) { Role::Validator } else { Role::Miner }
    }

    /// The command line of process `index`.
    #[must_use]
    pub fn arguments(&self, index: usize, bootstrap: &[String]) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> =
            ["join", "--exit-on-stdin-close", "--data-bind", "127.0.0.1:0"].map(String::from).into();
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        add("--spec", text(&self.spec_path()));
        add("--key", text(&self.key(index)));
        add("--data-dir", text(&self.peer_dir(index)));
        add("--device", self.device.to_string());
        add("--listen", "/ip4/127.0.0.1/udp/0/quic-v1".to_owned());
        add("--listen", "/ip4/127.0.0.1/tcp/0".to_owned());
        if self.spec.join.policy == JoinPolicy::Invite {
            add("--invite", text(&self.invite(index)));
        }
        if let Some(data) = &self.data {
            add("--data", text(data));
        }
        if let Some(rate) = &self.upload_rate {
            add("--upload-rate", rate.to_string());
        }
        for address in bootstrap {
            add("--bootstrap", address.clone());
        }
        for poisoned in self.faults.poisons.iter().filter(|poisoned| poisoned.peer == index) {
            let what = poisoned.poison.to_possible_value().map(|value| value.get_name().to_owned());
            arguments.extend(["--poison".to_owned(), what.unwrap_or_default()]);
        }
        arguments.push(format!("--{}", self.role(index)));
        arguments
    }
}

/// Cores this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Makes the folder of a new run below `root`: `name`, or the first free `<base>-<number>`.
///
/// # Errors
/// The name is taken or the folder cannot be made.
pub fn new_run_dir(root: &Path, name: Option<&str>, base: &str) -> Result<PathBuf, CliError> {
    fs::create_dir_all(root).map_err(|error| CliError::file("create", root, error))?;
    let dir = match name {
        Some(name) if root.join(name).exists() => {
            return Err(CliError::Option {
                option: "--name".to_owned(),
                expected: "a name that is not taken".to_owned(),
                got: format!("{name}, which is in {}", root.display()),
            });
        }
        Some(name) => root.join(name),
        None => first_free(root, base),
    };
    fs::create_dir(&dir).map_err(|error| CliError::file("create", &dir, error))?;
    Ok(dir)
}

fn first_free(root: &Path, base: &str) -> PathBuf {
    let mut number = 1;
    loop {
        let dir = root.join(format!("{base}-{number}"));
        if !dir.exists() {
            return dir;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use iota_protocol::join::Credential;

    use super::*;
    use crate::cli::read_key;
    use crate::up::children::LOG_BYTES_MAX;

    fn plan(dir: &Path) -> UpPlan {
        UpPlan {
            spec: RunSpec::default(),
            dir: dir.to_owned(),
            validators: 1,
            device: Device::Cpu,
            data: None,
            upload_rate: None,
            log_max: ByteCount(LOG_BYTES_MAX),
            faults: Faults::default(),
            control: Control::Skip,
            stall_timeout: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_prepared_run_has_a_valid_spec_and_a_key_for_every_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = plan(dir.path());
        plan.prepare("(test)").unwrap();
        let spec = RunSpec::from_toml(&fs::read_to_string(plan.spec_path()).unwrap()).unwrap();
        assert_eq!(spec, plan.spec);
        for index in 0..plan.processes() {
            let peer = Identity::from_secret(read_key(&plan.key(index)).unwrap()).peer();
            assert_eq!(spec.candidate_index(peer), (index < CANDIDATES).then_some(index));
        }
        assert!(plan.arguments(6, &[]).contains(&"--validator".to_owned()));
        assert!(plan.arguments(5, &[]).contains(&"--miner".to_owned()));
    }

    #[test]
    fn the_processes_of_a_run_that_asks_for_something_have_it() {
        for policy in [JoinPolicy::Invite, JoinPolicy::Allow] {
            let dir = tempfile::tempdir().unwrap();
            let mut plan = plan(dir.path());
            plan.spec.join.policy = policy;
            plan.prepare("(test)").unwrap();
            let run = plan.spec.run_id();
            for index in 0..plan.processes() {
                let peer = Identity::from_secret(plan.secret(index)).peer();
                let invite = InviteFile::read(&plan.invite(index)).ok();
                assert_eq!(invite.is_some(), policy == JoinPolicy::Invite);
                assert!(invite.as_ref().is_none_or(|file| file.role == plan.role(index)));
                let credential = invite.map(|file| Credential::Invite(file.invite()));
                assert_eq!(plan.spec.entitles(run, peer, credential.as_ref()), Ok(()));
            }
            let stranger = Identity::from_secret([9; 32]).peer();
            assert!(plan.spec.entitles(run, stranger, None).is_err());
        }
    }

    #[test]
    fn what_a_spec_says_of_joining_must_let_all_processes_in() {
        let refused = |change: fn(&mut RunSpec)| {
            let dir = tempfile::tempdir().unwrap();
            let mut plan = plan(dir.path());
            change(&mut plan.spec);
            plan.prepare("(test)").unwrap_err().to_string()
        };
        let few = refused(|spec| spec.join.per_address = 6);
        assert!(few.contains("a join.per_address of 0, or at least 7") && few.contains("got 6"), "{few}");
        let owned = refused(|spec| {
            spec.join.policy = JoinPolicy::Invite;
            spec.join.owner = Some(Identity::from_secret([9; 32]).peer());
        });
        assert!(owned.contains("expected no join.owner"), "{owned}");
    }

    #[test]
    fn a_fault_must_name_a_process_of_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = plan(dir.path());
        plan.faults.kills.push("7@e1".parse().unwrap());
        assert!(plan.prepare("(test)").unwrap_err().to_string().contains("0 to 6, got 7"));
    }

    #[test]
    fn runs_without_a_name_are_numbered_and_a_name_is_used_once() {
        let root = tempfile::tempdir().unwrap();
        assert!(new_run_dir(root.path(), None, "up").unwrap().ends_with("up-1"));
        assert!(new_run_dir(root.path(), None, "up").unwrap().ends_with("up-2"));
        assert!(new_run_dir(root.path(), Some("up-2"), "up").unwrap_err().to_string().contains("up-2"));
    }
}
