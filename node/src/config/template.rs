//! The built-in spec as a template: every field with its comment, filled with the values of another spec.

use std::fmt::Write as _;

use iota_protocol::RunSpec;
use toml::{Table, Value};

/// A field of the run spec and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its path, such as `training.epochs`.
    pub key: String,
    /// One sentence.
    pub doc: String,
}

/// A line of the template.
enum Line<'a> {
    Comment(&'a str),
    Section(&'a str),
    Candidates,
    Field { name: &'a str },
    Blank,
}

fn classify(line: &str) -> Line<'_> {
    if line.is_empty() {
        return Line::Blank;
    }
    if line.starts_with("#[[") {
        return Line::Candidates;
    }
    if let Some(section) = line.strip_prefix('[') {
        return Line::Section(section.trim_end_matches(']'));
    }
    if line.starts_with("# ") {
        return Line::Comment(line);
    }
    let name = line.trim_start_matches('#').split('=').next().unwrap_or_default().trim();
    Line::Field { name }
}

/// Walks the template's fields and other lines, without the comment that opens the file.
fn walk(mut visit: impl FnMut(&str, Line<'_>, &str)) {
    let body = iota_fixtures::BUILTIN_SPEC.split_once("\n\n").map_or("", |(_, body)| body);
    let mut section = String::new();
    for text in body.lines() {
        let line = classify(text);
        match line {
            Line::Section(name) => name.clone_into(&mut section),
            Line::Candidates => "orchestrator.candidates".clone_into(&mut section),
            _ => {}
        }
        visit(&section, line, text);
    }
}

/// The path of `name` in `section`.
fn path(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Every field of the run spec in the order of the template, candidates left out.
#[must_use]
pub fn fields() -> Vec<Field> {
    let mut fields = Vec::new();
    let mut doc = String::new();
    walk(|section, line, _| match line {
        Line::Comment(text) => doc = text.trim_start_matches("# ").to_owned(),
        Line::Field { name } if section != "orchestrator.candidates" => {
            fields.push(Field { key: path(section, name), doc: std::mem::take(&mut doc) });
        }
        _ => {}
    });
    fields
}

/// The value of `key` in `table`, if it is set.
fn look_up<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => look_up(table.get(section)?.as_table()?, rest),
    }
}

/// The spec as TOML with a comment above every field and what `note` says behind it.
///
/// Reading the text back gives the same spec.
#[must_use]
pub fn annotated(spec: &RunSpec, note: impl Fn(&str) -> Option<String>) -> String {
    let table = Table::try_from(spec).unwrap_or_default();
    let mut out = String::new();
    walk(|section, line, text| {
        match line {
            Line::Candidates => write_candidates(&mut out, spec, text),
            Line::Field { .. } if section == "orchestrator.candidates" => {
                if spec.orchestrator.candidates.is_empty() {
                    let _ = writeln!(out, "{text}");
                }
            }
            Line::Field { name } => {
                let key = path(section, name);
                let note = note(&key).map(|note| format!("  # {note}")).unwrap_or_default();
                let _ = match look_up(&table, &key) {
                    Some(value) => writeln!(out, "{name} = {value}{note}"),
                    None => writeln!(out, "{text}{note}"),
                };
            }
            Line::Section(_) | Line::Comment(_) | Line::Blank => {
                let _ = writeln!(out, "{text}");
            }
        };
    });
    out
}

/// One table per candidate, or the commented-out example.
fn write_candidates(out: &mut String, spec: &RunSpec, example: &str) {
    if spec.orchestrator.candidates.is_empty() {
        let _ = writeln!(out, "{example}");
    }
    for candidate in &spec.orchestrator.candidates {
        let _ = writeln!(
            out,
            "[[orchestrator.candidates]]\npeer = \"{}\"\npriority = {}",
            candidate.peer, candidate.priority
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iota_protocol::spec::{Ban, Candidate, DataSource};
    use iota_protocol::{Hash, PeerId};

    #[test]
    fn the_template_documents_every_field_of_the_spec_and_no_other() {
        let mut spec = RunSpec::default();
        // Those that may be left out stand in the template too.
        spec.data.hash = Some(Hash::default());
        spec.join.owner = Some(PeerId::default());
        (spec.start.lineage, spec.start.checkpoint) = (Some(Hash::default()), Some(Hash::default()));
        let mut expected = Vec::new();
        super::super::leaves("", &Table::try_from(&spec).unwrap(), &mut |key| expected.push(key.to_owned()));
        expected.retain(|key| !key.starts_with("orchestrator"));
        let mut documented: Vec<_> = fields().into_iter().map(|field| field.key).collect();
        documented.sort();
        expected.sort();
        assert_eq!(documented, expected);
        assert!(fields().iter().all(|field| field.doc.ends_with('.')), "each field has a sentence");
    }

    #[test]
    fn an_annotated_spec_reads_back_as_itself() {
        let mut spec = RunSpec::default();
        spec.training.learning_rate = 1.25e-4;
        spec.data.source = DataSource::File;
        spec.data.hash = Some(Hash([7; 32]));
        (spec.start.lineage, spec.start.stages) = (Some(Hash([8; 32])), vec![Hash([9; 32]); 3]);
        spec.orchestrator.candidates = vec![Candidate { peer: PeerId([1; 32]), priority: 2 }];
        (spec.join.owner, spec.join.allow) = (Some(PeerId([2; 32])), vec![PeerId([3; 32]); 2]);
        spec.join.ban = vec![Ban { peer: PeerId([4; 32]), reason: "sent \"noise\"".to_owned() }; 2];
        let text = annotated(&spec, |key| Some(format!("origin of {key}")));
        assert_eq!(toml::from_str::<RunSpec>(&text).unwrap(), spec);
        assert!(text.contains("learning_rate = 0.000125  # origin of training.learning_rate"), "{text}");
    }
}
