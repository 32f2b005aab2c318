//! `iota-node config show`: every effective value and where it comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::{ArgMatches, Args, CommandFactory, Subcommand};
use iota_protocol::RunSpec;
use iota_protocol::pace::deadlines;
use iota_protocol::time::Millis;
use serde::Serialize;

use super::Cli;
use super::spec::SpecOptions;
use super::waits::given;
use crate::config::{
    OptionValue, Origin, ResolvedSpec, annotated, effective_options, fields, with_environment, with_file,
};
use crate::error::CliError;

#[derive(Debug, Args)]
pub(super) struct ConfigOptions {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print every field of the spec and every option, with its meaning and origin
    Show(ShowOptions),
}

#[derive(Debug, Args)]
struct ShowOptions {
    #[command(flatten)]
    spec: SpecOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A command with flags, such as `-- join --device cpu`, whose options to show [default: join and up]
    #[arg(last = true, value_name = "COMMAND LINE")]
    line: Vec<OsString>,
}

/// Commands whose options are shown when none is named.
const SHOWN: [&str; 2] = ["join", "up"];

/// The JSON form.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    spec: BTreeMap<String, SpecValue>,
    deadlines: BTreeMap<&'a str, ShownDeadline>,
    waits: BTreeMap<&'a str, ShownWait>,
    options: BTreeMap<&'a str, Vec<OptionValue>>,
}

#[derive(Debug, Serialize)]
struct SpecValue {
    value: serde_json::Value,
    origin: Origin,
    doc: String,
}

#[derive(Debug, Serialize)]
struct ShownDeadline {
    least: Millis,
    first: Millis,
    most: Millis,
    doc: &'static str,
}

#[derive(Debug, Serialize)]
struct ShownWait {
    least: Millis,
    most: Millis,
    doc: &'static str,
}

pub(super) fn run(
    options: &ConfigOptions,
    matches: &ArgMatches,
    file: Option<&Path>,
) -> Result<(), CliError> {
    let Action::Show(show) = &options.action;
    let matches = matches.subcommand().map_or(matches, |(_, inner)| inner);
    let resolved = show.spec.resolve(matches)?;
    let verbs: Vec<Vec<OsString>> = match show.line.as_slice() {
        [] => SHOWN.map(|verb| vec![OsString::from(verb)]).into(),
        line => vec![line.to_vec()],
    };
    let mut shown = Vec::new();
    for line in &verbs {
        let name = line.first().map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
        shown.push((name, verb_options(line, file)?));
    }
    let text = if show.json { as_json(&resolved, &shown)? } else { as_text(&resolved, &shown) };
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
    Ok(())
}

/// The options that the command line `line` would have.
fn verb_options(line: &[OsString], file: Option<&Path>) -> Result<Vec<OptionValue>, CliError> {
    // What is required is not asked for here: a missing option is shown as empty.
    let lenient = |command: clap::Command| command.mut_args(|arg| arg.required(false));
    let mut command = with_environment(Cli::command()).mut_subcommands(lenient);
    let mut configured = Vec::new();
    let verb = line.first().map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(file) = file {
        command = with_file(command, file)?;
        let text = std::fs::read_to_string(file).map_err(|error| CliError::file("read", file, error))?;
        let table: toml::Table = text.parse().unwrap_or_default();
        let section = table.get(&verb).and_then(toml::Value::as_table);
        configured =
            section.into_iter().flat_map(toml::Table::keys).map(|key| key.replace('_', "-")).collect();
    }
    let program = OsString::from("iota-node");
    let matches = command.clone().get_matches_from(std::iter::once(&program).chain(line));
    let found = command.find_subcommand(&verb).zip(matches.subcommand_matches(&verb));
    let (command, matches) = found.ok_or_else(|| CliError::Bug(format!("find the command {verb}")))?;
    Ok(effective_options(command, matches, &configured))
}

/// TOML that could be a spec and, below it, a configuration file.
fn as_text(resolved: &ResolvedSpec, options: &[(String, Vec<OptionValue>)]) -> String {
    let mut out = format!("# Run spec: {}\n\n", resolved.source);
    out.push_str(&annotated(&resolved.spec, |key| Some(resolved.origin(key).to_string())));
    out.push_str("\n# Deadlines that follow from what is measured, within bounds.\n");
    for (name, shown) in shown_deadlines(&resolved.spec) {
        let ShownDeadline { least, first, most, doc } = shown;
        let _ = writeln!(out, "# {name}: {least} to {most}, {first} before anything is measured; {doc}.");
    }
    out.push_str("\n# Waits that are given.\n");
    for (name, ShownWait { least, most, doc }) in shown_waits(&resolved.spec) {
        let time = if least == most { least.to_string() } else { format!("{least} to {most}") };
        let _ = writeln!(out, "# {name}: {time}; {doc}.");
    }
    for (verb, options) in options {
        let _ = write!(
            out,
            "\n# Options of `iota-node {verb}`; a configuration file sets them like this.\n[{verb}]\n"
        );
        for option in options {
            let _ =
                writeln!(out, "# {}.\n{} = {:?}  # {}", option.doc, option.name, option.value, option.origin);
        }
    }
    out
}

fn shown_deadlines(spec: &RunSpec) -> BTreeMap<&'static str, ShownDeadline> {
    let shown = deadlines(spec).into_iter().map(|deadline| {
        let [least, first, most] = [deadline.least, deadline.first, deadline.most].map(millis);
        (deadline.name, ShownDeadline { least, first, most, doc: deadline.doc })
    });
    shown.collect()
}

fn shown_waits(spec: &RunSpec) -> BTreeMap<&'static str, ShownWait> {
    let shown = given(spec).into_iter().map(|wait| {
        (wait.name, ShownWait { least: millis(wait.least), most: millis(wait.most), doc: wait.doc })
    });
    shown.collect()
}

fn millis(time: Duration) -> Millis {
    Millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn as_json(resolved: &ResolvedSpec, options: &[(String, Vec<OptionValue>)]) -> Result<String, CliError> {
    let failed = |error: serde_json::Error| CliError::Bug(format!("write JSON: {error}"));
    let tree = serde_json::to_value(&resolved.spec).map_err(failed)?;
    let spec = fields().into_iter().map(|field| {
        let value = tree.pointer(&format!("/{}", field.key.replace('.', "/"))).cloned().unwrap_or_default();
        let origin = resolved.origin(&field.key);
        (field.key, SpecValue { value, origin, doc: field.doc })
    });
    let options = options.iter().map(|(verb, options)| (verb.as_str(), options.clone())).collect();
    let deadlines = shown_deadlines(&resolved.spec);
    let waits = shown_waits(&resolved.spec);
    let shown = Shown { spec: spec.collect(), deadlines, waits, options };
    let text = serde_json::to_string_pretty(&shown).map_err(failed)?;
    Ok(text + "\n")
}
