//! Options of a process: every flag has an `IOTA_*` variable and a key in the configuration file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use toml::{Table, Value};

use super::{Origin, read_table};
use crate::error::CliError;

/// An option of a command, its value and where the value comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptionValue {
    /// Its long name.
    pub name: String,
    /// Its value as text; empty if it has none.
    pub value: String,
    /// Where the value comes from.
    pub origin: Origin,
    /// One sentence.
    pub doc: String,
}

/// Gives every flag of every command its variable: `--data-dir` reads `IOTA_DATA_DIR`.
#[must_use]
pub fn with_environment(command: Command) -> Command {
    command.mut_args(with_variable).mut_subcommands(with_environment)
}

fn with_variable(arg: Arg) -> Arg {
    let Some(long) = arg.get_long().map(|long| long.to_uppercase().replace('-', "_")) else { return arg };
    arg.env(format!("IOTA_{long}")).hide_env_values(true)
}

/// The configuration file named on the command line or in the environment.
///
/// It has to be known before the command line is parsed, because it changes the defaults.
#[must_use]
pub fn config_path(args: &[OsString], variable: Option<OsString>) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if text == "--" {
            break;
        }
        if text == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    variable.map(PathBuf::from)
}

/// Makes the values of the configuration file at `path` the defaults of `command`.
///
/// # Errors
/// The file cannot be read, is no TOML, or has a key that is no option of that command.
pub fn with_file(mut command: Command, path: &Path) -> Result<Command, CliError> {
    let path = path.to_owned();
    let table = read_table(&path)?;
    for (key, value) in &table {
        command = match value {
            Value::Table(section) if command.find_subcommand(key).is_some() => {
                let sub = command.find_subcommand(key).cloned().unwrap_or_default();
                let sub = apply_section(sub, section, key, &path)?;
                command.mut_subcommand(key, |_| sub)
            }
            Value::Table(_) => {
                let verbs = command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name);
                let expected = verbs.collect::<Vec<_>>().join("`, `");
                return Err(CliError::Config {
                    path,
                    problem: format!("expected a section `{expected}`, got `{key}`"),
                });
            }
            _ => apply_key(command, key, value, "the top", &path)?,
        };
    }
    Ok(command)
}

fn apply_section(
    mut command: Command,
    section: &Table,
    name: &str,
    path: &Path,
) -> Result<Command, CliError> {
    for (key, value) in section {
        command = apply_key(command, key, value, &format!("[{name}]"), path)?;
    }
    Ok(command)
}

fn apply_key(
    command: Command,
    key: &str,
    value: &Value,
    place: &str,
    path: &Path,
) -> Result<Command, CliError> {
    let long = key.replace('_', "-");
    let refuse = |problem| CliError::Config { path: path.to_owned(), problem };
    let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(&long)) else {
        return Err(refuse(format!("expected an option in {place}, got unknown key `{key}`")));
    };
    let id = arg.get_id().clone();
    let texts = match value {
        Value::Array(values) => values.iter().map(scalar).collect(),
        other => scalar(other).map(|text| vec![text]),
    };
    let texts: Vec<String> =
        texts.ok_or_else(|| refuse(format!("expected text, a number or a list for `{key}`, got {value}")))?;
    Ok(command.mut_arg(id, |arg| arg.required(false).default_values(texts)))
}

/// A value as it would be typed.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

/// The options of `verb` after parsing, with origins; `configured` are the keys its file section sets.
#[must_use]
pub fn effective_options(command: &Command, matches: &ArgMatches, configured: &[String]) -> Vec<OptionValue> {
    let visible = command.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_global_set());
    visible
        .filter_map(|arg| {
            let name = arg.get_long()?.to_owned();
            let id = arg.get_id().as_str();
            let origin = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Env,
                _ if configured.contains(&name) => Origin::File,
                _ => Origin::Default,
            };
            Some(OptionValue { value: value_text(arg, matches), origin, doc: first_sentence(arg), name })
        })
        .collect()
}

fn value_text(arg: &Arg, matches: &ArgMatches) -> String {
    let id = arg.get_id().as_str();
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return matches.get_flag(id).to_string();
    }
    let values = matches.get_raw(id).into_iter().flatten();
    values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(",")
}

fn first_sentence(arg: &Arg) -> String {
    arg.get_help()
        .map(|help| help.to_string().lines().next().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let device = Arg::new("device").long("device").default_value("auto").help("Where to compute");
        let mdns = Arg::new("mdns").long("mdns").action(ArgAction::SetTrue);
        Command::new("iota-node").subcommand(Command::new("join").arg(device).arg(mdns))
    }

    fn show(file: &str, args: &[&str]) -> Vec<(String, String, Origin)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, file).unwrap();
        let command = with_file(command(), &path).unwrap();
        let matches = command.clone().try_get_matches_from(args).unwrap();
        let configured = vec!["device".to_owned(), "mdns".to_owned()];
        let options = effective_options(
            command.find_subcommand("join").unwrap(),
            matches.subcommand_matches("join").unwrap(),
            &configured,
        );
        options.into_iter().map(|option| (option.name, option.value, option.origin)).collect()
    }

    #[test]
    fn the_file_sets_defaults_and_a_flag_beats_it() {
        let file = "[join]\ndevice = \"cpu\"\nmdns = true\n";
        let plain = show(file, &["iota-node", "join"]);
        assert_eq!(plain[0], ("device".into(), "cpu".into(), Origin::File));
        assert_eq!(plain[1], ("mdns".into(), "true".into(), Origin::File));
        let flagged = show(file, &["iota-node", "join", "--device", "wgpu:0"]);
        assert_eq!(flagged[0], ("device".into(), "wgpu:0".into(), Origin::Flag));
    }

    #[test]
    fn an_unknown_key_or_section_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        for (text, word) in
            [("[join]\ndevise = 1\n", "devise"), ("[jion]\n", "jion"), ("speed = 3\n", "speed")]
        {
            std::fs::write(&path, text).unwrap();
            assert!(with_file(command(), &path).unwrap_err().to_string().contains(word));
        }
    }

    #[test]
    fn the_configuration_file_is_found_before_parsing() {
        let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(config_path(&args(&["join", "--config", "a"]), Some("b".into())), Some("a".into()));
        assert_eq!(config_path(&args(&["join", "--config=a"]), None), Some("a".into()));
        assert_eq!(config_path(&args(&["join", "--", "--config=a"]), None), None);
    }
}
