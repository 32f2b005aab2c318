//! Runs the real binary in a scratch folder and shows what a person would see.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A folder with the binary to run in it.
pub(crate) struct Cli {
    dir: tempfile::TempDir,
}

impl Cli {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a scratch folder") }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The binary with `args`, away from this process's options.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iota-node"));
        command.current_dir(self.path()).args(args).stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("IOTA_")) {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary runs")
    }

    /// Writes a file and returns its name.
    pub(crate) fn write<'a>(&self, name: &'a str, text: &str) -> &'a str {
        std::fs::write(self.path().join(name), text).expect("a file in the scratch folder");
        name
    }

    /// Writes a spec that one candidate could run alone, and the candidate's key; returns the candidate's key file.
    pub(crate) fn init(&self, args: &[&str]) -> &'static str {
        let output = self.run(&[&["init"], args].concat());
        assert!(output.status.success(), "{}", self.show(&output));
        "keys/candidate-0.key"
    }

    /// Exit code, stdout and stderr, without what differs from run to run: the folder, times and log lines.
    pub(crate) fn show(&self, output: &Output) -> String {
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).replace(&self.path().display().to_string(), "[dir]");
            text.lines().filter(|line| !is_log(line)).map(|line| format!("{line}\n")).collect::<String>()
        };
        let code = output.status.code().map_or_else(|| "killed".to_owned(), |code| code.to_string());
        format!("exit code {code}\n--- stdout\n{}--- stderr\n{}", text(&output.stdout), text(&output.stderr))
    }
}

/// Whether a line is of the log, which starts with the date.
fn is_log(line: &str) -> bool {
    line.as_bytes().first().is_some_and(u8::is_ascii_digit) && line.get(10..11) == Some("T")
}
