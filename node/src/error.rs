//! What the binary says when something goes wrong, and which exit code it leaves with.
//!
//! An expected error is one sentence that names the value, what was expected and what was found, and a
//! `help:` line that says what to type next. Anything else is `CliError::Bug`: exit code 1 and a
//! request to report it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iota_protocol::PeerId;
use iota_protocol::join::Refusal;
use iota_protocol::spec::SpecError;
use iota_protocol::wire::Outdated;

/// Defines the exit codes once, as numbers and as the table in `--help`.
macro_rules! exit_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// What the exit code of the process says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ExitCode {
            $($(#[$doc])* $name = $code,)*
        }

        /// The table of exit codes that ends `--help`.
        pub const EXIT_CODES_HELP: &str = concat!("Exit codes:", $("\n  ", $code, "\t", $text,)*);
    };
}

exit_codes! {
    /// Done.
    Success = 0, "done";
    /// Something that should not happen happened.
    Bug = 1, "unexpected: a bug, please report it";
    /// The command line was wrong; clap's own code.
    Usage = 2, "the command line is wrong";
    /// The run spec or the configuration file was wrong.
    Config = 3, "the run spec or the configuration file is wrong";
    /// A file could not be read or written, or has other content than the run demands.
    File = 4, "a file cannot be read or written, or is not the one the run demands";
    /// The compute device is not there.
    Device = 5, "the compute device is not available";
    /// An address cannot be listened on.
    Listen = 6, "an address cannot be listened on, most often because it is in use";
    /// No bootstrap peer answered.
    Unreachable = 7, "no bootstrap peer answered in time";
    /// The run did not finish.
    RunFailed = 8, "the run made no progress or no process was left";
    /// Replicas of one stage ended with different weights.
    ReplicasDisagree = 9, "replicas of one stage ended with different weights";
    /// The run has gone on to a wire version that this program does not speak.
    Outdated = 10, "the run uses a wire version that this program does not speak";
    /// A mirror cannot be used, or a checkpoint in it.
    Mirror = 11, "a mirror cannot be used, or a checkpoint is not in it or damaged";
    /// A proof does not show what it is to show.
    NotProved = 12, "what a proof is about, computed again, does not show it, or cannot be computed again";
    /// The run gives this peer no place.
    NotAdmitted = 13, "the run gives this peer no place";
    /// Stopped by SIGINT or SIGTERM.
    Interrupted = 130, "stopped by SIGINT or SIGTERM";
}

/// Why a verb failed; the text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The run spec cannot be used.
    #[error("use the run spec {path}: {source}")]
    Spec {
        /// Where the spec came from, for people.
        path: String,
        /// What is wrong with it.
        source: SpecError,
    },
    /// The configuration file cannot be used.
    #[error("use the configuration file {path}: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it: expected and got.
        problem: String,
    },
    /// An option's value contradicts the spec or another option.
    #[error("use {option}: expected {expected}, got {got}")]
    Option {
        /// The option, as typed.
        option: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A file could not be read or written.
    #[error("{action} {path}: {source}")]
    File {
        /// `read`, `write` or `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file has other content than expected.
    #[error("use {path}: expected {expected}, got {got}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        got: String,
    },
    /// A key file holds no usable key.
    #[error("use the key {path}: expected {expected}, got {got}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is, without its content.
        got: String,
    },
    /// The device cannot compute.
    #[error("compute: {reason}")]
    Device {
        /// Which device and why not.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("listen on {address}: {reason}")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The folder of a node cannot be used.
    #[error("use the folder {path}: {reason}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk of a node is full.
    #[error("use the folder {path}: expected {expected}, got {got}")]
    NoRoom {
        /// The folder.
        path: PathBuf,
        /// The room it takes.
        expected: String,
        /// The room there is.
        got: String,
    },
    /// No bootstrap peer answered.
    #[error("reach a bootstrap peer: expected an answer within {waited:?}, got none from {addresses}")]
    Unreachable {
        /// The addresses tried, separated by commas.
        addresses: String,
        /// How long it waited.
        waited: Duration,
    },
    /// The swarm of `up` did not come to an end.
    #[error("finish the run: {reason}")]
    RunFailed {
        /// Expected and got.
        reason: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// Replicas ended with different weights.
    #[error("agree: expected equal weights within each stage, got {differing}")]
    ReplicasDisagree {
        /// The stages and peers that differ.
        differing: String,
    },
    /// The run has gone on to a wire version that this program does not speak.
    #[error("take part in the run: {0}")]
    Outdated(Outdated),
    /// A mirror cannot be used, or a checkpoint in it.
    #[error("use the mirror {url}: {reason}")]
    Mirror {
        /// Where it is.
        url: String,
        /// Expected and got, or what the store said.
        reason: String,
    },
    /// A proof does not show what it is to show.
    #[error("prove what {path} is about: expected inputs that show it, got none that do")]
    NotProved {
        /// The file.
        path: PathBuf,
    },
    /// The run gives this peer no place.
    #[error("take a place in the run: {refusal}")]
    NotAdmitted {
        /// This peer.
        peer: PeerId,
        /// Why: expected and got.
        refusal: Refusal,
    },
    /// Stopped from outside.
    #[error("finish: stopped by {signal}")]
    Interrupted {
        /// The signal's name.
        signal: &'static str,
    },
    /// A panic's expected sibling: something that should not happen.
    #[error("{0}")]
    Bug(String),
}

impl CliError {
    /// The error of doing `action` to `path`.
    pub fn file(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::File { action, path: path.as_ref().to_owned(), source }
    }

    /// What the process exits with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Spec { .. } | Self::Config { .. } => ExitCode::Config,
            Self::Option { .. } => ExitCode::Usage,
            Self::File { .. } | Self::Content { .. } | Self::Key { .. } => ExitCode::File,
            Self::Folder { .. } | Self::NoRoom { .. } => ExitCode::File,
            Self::Device { .. } => ExitCode::Device,
            Self::Listen { .. } => ExitCode::Listen,
            Self::Unreachable { .. } => ExitCode::Unreachable,
            Self::RunFailed { .. } => ExitCode::RunFailed,
            Self::ReplicasDisagree { .. } => ExitCode::ReplicasDisagree,
            Self::Outdated(_) => ExitCode::Outdated,
            Self::Mirror { .. } => ExitCode::Mirror,
            Self::NotProved { .. } => ExitCode::NotProved,
            Self::NotAdmitted { .. } => ExitCode::NotAdmitted,
            Self::Interrupted { .. } => ExitCode::Interrupted,
            Self::Bug(_) => ExitCode::Bug,
        }
    }

    /// What to type next.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Spec { .. } => "`iota-node config show` lists every field with its meaning and default".to_owned(),
            Self::Config { .. } => "`iota-node config show` lists every option of every section".to_owned(),
            Self::Option { option, got, .. } => match option.as_str() {
                "--orchestrator" => "give a key that the spec names with --key, or leave --orchestrator out".to_owned(),
                "--data" if got == "nothing" => "give your copy of the file with --data".to_owned(),
                "--data" => "leave --data out, or set data.source = \"file\" and data.hash in the spec".to_owned(),
                "--dir" | "--name" => format!("choose another one with {option}, or move what is there away"),
                _ => "`iota-node <command> --help` says what each option takes".to_owned(),
            },
            Self::File { action: "read", path, .. } => format!("check the path with `ls -l {}`", path.display()),
            Self::File { path, .. } => format!("check the folder and its permissions with `ls -ld {}`", parent(path).display()),
            Self::Key { path, got, .. } if got.starts_with("mode") => format!("`chmod 600 {}`", path.display()),
            Self::Key { .. } => "`iota-node init` makes keys; `join` without --key makes its own".to_owned(),
            Self::Content { path, .. } => format!("get the right file, or compare with `b3sum {}`", path.display()),
            Self::Device { .. } => "use `--device cpu`, or build with `cargo build --release --features cuda` (or wgpu)".to_owned(),
            Self::Listen { .. } => "choose another port, or port 0 to let the system choose".to_owned(),
            Self::Folder { .. } => "choose another folder with --data-dir, or stop the node that uses this one".to_owned(),
            Self::NoRoom { path, .. } => format!(
                "free some room there (`df -h {}`) or raise --disk-quota, and run the same command again; what is in the folder stays as it is",
                path.display()
            ),
            Self::Unreachable { .. } => {
                "check that the peer runs and that its UDP and TCP ports are open; --bootstrap-timeout waits longer".to_owned()
            }
            Self::RunFailed { logs, .. } => format!("look at the end of {}/*/log.txt", logs.display()),
            Self::ReplicasDisagree { .. } => "compare `weights_ready` lines in the events.jsonl of those peers".to_owned(),
            Self::Outdated(outdated) => format!(
                "install a release that speaks wire version {} and run the same command again; the key and the folder stay as they are",
                outdated.decided
            ),
            Self::Mirror { url, .. } => format!(
                "`iota-node checkpoint list --from {url}` lists what is there; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, \
                 AWS_REGION and AWS_ENDPOINT_URL say how a bucket is reached"
            ),
            Self::NotProved { .. } => {
                "the line above says what the file shows; a node that owned what was disputed has its inputs".to_owned()
            }
            Self::NotAdmitted { peer, refusal } => help_in(*peer, refusal),
            Self::Interrupted { .. } => "run the same command again to start over".to_owned(),
            Self::Bug(_) => "this is a bug; please report it with the command and the log".to_owned(),
        }
    }

    /// Writes the error and its help line to stderr.
    pub fn report(&self) {
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "error: failed to {self}\nhelp: {}", self.help());
    }
}

/// What a peer can do that the run gives no place.
fn help_in(peer: PeerId, refusal: &Refusal) -> String {
    match refusal {
        Refusal::Uninvited { .. } | Refusal::Forged { .. } | Refusal::Expired { .. } | Refusal::Role { .. } => format!(
            "the owner makes an invite with `iota-node invite --spec FILE --key OWNERKEY --peer {peer}`; pass its file with --invite"
        ),
        Refusal::NotListed { .. } => {
            "use a key that join.allow names, with --key; the list is a part of the run, which cannot be changed".to_owned()
        }
        Refusal::Banned { .. } => "ask whoever made the run; its bans are a part of it, and end with it".to_owned(),
        Refusal::Work { .. } => "start again; `join` does the work by itself and keeps it in the data folder".to_owned(),
        Refusal::Crowded { .. } | Refusal::Nowhere => {
            "wait until a place at this address is free, or give the data plane another one with --data-bind".to_owned()
        }
    }
}

/// The folder of `path`, `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use iota_protocol::wire::Versions;

    use super::*;

    #[test]
    fn an_error_reads_as_a_sentence_and_has_its_code() {
        let error = CliError::Option {
            option: "--orchestrator".into(),
            expected: "a candidate's key".into(),
            got: "ab12".into(),
        };
        assert_eq!(error.to_string(), "use --orchestrator: expected a candidate's key, got ab12");
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert!(error.help().contains("--key"));
    }

    #[test]
    fn a_program_that_is_too_old_is_told_which_version_to_install() {
        let error = CliError::Outdated(Outdated { decided: 2, spoken: Versions::FIRST });
        assert_eq!(
            format!("failed to {error}\nhelp: {}", error.help()),
            "failed to take part in the run: expected a program that speaks wire version 2, got one that speaks 1\n\
             help: install a release that speaks wire version 2 and run the same command again; the key and the folder \
             stay as they are"
        );
        assert_eq!(error.exit_code() as u8, 10);
    }

    #[test]
    fn the_table_of_exit_codes_names_each() {
        assert_eq!(EXIT_CODES_HELP.lines().count(), 16);
        assert!(EXIT_CODES_HELP.contains("\n  130\tstopped"));
    }
}
