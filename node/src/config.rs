//! Where a value comes from: flag, then `IOTA_*` variable, then TOML, then default.
//!
//! There are two kinds of values. The **run spec** must be the same for everyone, so `join` reads it
//! from its file only, while `up` and `init` may change fields by flag. **Options** of one process come from
//! the command line, the environment or the file named by `--config`, whose sections are the commands:
//!
//! ```toml
//! log-level = "debug"
//! [join]
//! device = "cuda:0"
//! ```
//!
//! The built-in spec file is also the documentation of every field: comments here come from there.

mod options;
mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use iota_protocol::RunSpec;
use iota_protocol::spec::SpecError;
use serde::Serialize;
use toml::{Table, Value};

pub use options::{OptionValue, config_path, effective_options, with_environment, with_file};
pub use template::{annotated, fields};

use crate::error::CliError;

/// Where a value comes from, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The command line.
    Flag,
    /// An `IOTA_*` variable.
    Env,
    /// The run spec or the configuration file.
    File,
    /// What applies when nobody says otherwise.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "flag",
            Self::Env => "env",
            Self::File => "file",
            Self::Default => "default",
        })
    }
}

/// One field of the spec, set from outside its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// Its path, such as `training.epochs`.
    pub key: String,
    /// Its new value.
    pub value: Value,
    /// Flag or variable.
    pub origin: Origin,
}

impl Override {
    /// Reads `training.epochs=3`; the value is TOML, or else text.
    ///
    /// # Errors
    /// The assignment has no `=`, or the field is none of the spec's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| format!("expected `field=value`, got `{text}`"))?;
        let key = key.trim();
        if !fields().iter().any(|field| field.key == key) {
            return Err(format!("expected a field of the run spec such as `training.epochs`, got `{key}`"));
        }
        let parsed =
            format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let value = parsed.unwrap_or_else(|| Value::String(value.trim().to_owned()));
        Ok(Self { key: key.to_owned(), value, origin: Origin::Flag })
    }
}

/// A spec together with the origin of each of its fields.
#[derive(Clone, Debug)]
pub struct ResolvedSpec {
    /// The spec, not yet validated: `up` and `init` add candidates first.
    pub spec: RunSpec,
    /// Where the spec came from, for people.
    pub source: String,
    origins: BTreeMap<String, Origin>,
}

impl ResolvedSpec {
    /// The origin of the field `key`.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).copied().unwrap_or(Origin::Default)
    }

    /// Returns the spec if its values are in range and agree with each other.
    ///
    /// # Errors
    /// The first field found wrong.
    pub fn validated(&self) -> Result<&RunSpec, CliError> {
        match self.spec.validate() {
            Ok(()) => Ok(&self.spec),
            Err(source) => Err(CliError::Spec { path: self.source.clone(), source }),
        }
    }
}

/// Reads the spec at `path`, or the built-in one, and applies `overrides`.
///
/// # Errors
/// The file cannot be read, is no TOML, has an unknown key or a value of the wrong type.
pub fn resolve_spec(path: Option<&Path>, overrides: &[Override]) -> Result<ResolvedSpec, CliError> {
    let (text, source) = match path {
        Some(path) => (
            fs::read_to_string(path).map_err(|e| CliError::file("read", path, e))?,
            path.display().to_string(),
        ),
        None => (iota_fixtures::BUILTIN_SPEC.to_owned(), "(built in)".to_owned()),
    };
    let refuse = |error: toml::de::Error| CliError::Spec {
        path: source.clone(),
        source: SpecError::Syntax(error.to_string().trim_end().to_owned()),
    };
    // Errors of the file are reported against its text, where the line is known.
    toml::from_str::<RunSpec>(&text).map_err(&refuse)?;
    let mut table: Table = text.parse().map_err(&refuse)?;
    let mut origins = BTreeMap::new();
    if path.is_some() {
        leaves("", &table, &mut |key| {
            origins.insert(key.to_owned(), Origin::File);
        });
    }
    for change in overrides {
        set(&mut table, &change.key, change.value.clone());
        origins.insert(change.key.clone(), change.origin);
    }
    let spec = table.try_into().map_err(&refuse)?;
    Ok(ResolvedSpec { spec, source, origins })
}

/// Calls `visit` with the path of every value that is no table.
fn leaves(prefix: &str, table: &Table, visit: &mut impl FnMut(&str)) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => leaves(&key, inner, visit),
            _ => visit(&key),
        }
    }
}

/// Sets the value at a dotted path, making tables on the way.
fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// Reads a TOML file into a table.
fn read_table(path: &PathBuf) -> Result<Table, CliError> {
    let text = fs::read_to_string(path).map_err(|e| CliError::file("read", path, e))?;
    text.parse().map_err(|error: toml::de::Error| CliError::Config {
        path: path.clone(),
        problem: error.to_string().trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_beats_the_file_and_the_file_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        fs::write(&path, "[training]\nepochs = 5\nseed_of_doubt = 1\n").unwrap();
        assert!(resolve_spec(Some(&path), &[]).unwrap_err().to_string().contains("seed_of_doubt"));

        fs::write(&path, "[training]\nepochs = 5\ninner_steps = 2\n").unwrap();
        let resolved = resolve_spec(Some(&path), &[Override::parse("training.epochs=9").unwrap()]).unwrap();
        assert_eq!((resolved.spec.training.epochs, resolved.origin("training.epochs")), (9, Origin::Flag));
        assert_eq!(
            (resolved.spec.training.inner_steps, resolved.origin("training.inner_steps")),
            (2, Origin::File)
        );
        assert_eq!(resolved.origin("training.beta1"), Origin::Default);
    }

    #[test]
    fn an_override_reads_numbers_text_and_units() {
        assert_eq!(Override::parse("model.width=64").unwrap().value, Value::Integer(64));
        assert_eq!(Override::parse("training.mode=local").unwrap().value, Value::String("local".into()));
        assert_eq!(Override::parse("timing.linger=\"3s\"").unwrap().value, Value::String("3s".into()));
        assert_eq!(Override::parse("timing.linger=3s").unwrap().value, Value::String("3s".into()));
        assert!(Override::parse("model.widht=64").unwrap_err().contains("widht"));
    }
}
