//! The shared files of the AWS tools, `~/.aws/credentials` and `~/.aws/config`: as much of them as a mirror needs.

use std::collections::BTreeMap;

/// The settings of one profile.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Profile(BTreeMap<String, String>);

impl Profile {
    /// Returns a setting; one inside a nested block is named `block.setting`.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Takes over the settings of another file, which go before those already here.
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// Reads one profile out of a file. A section is named `[name]` in the credentials file and `[profile name]` in the
/// config file, where only `[default]` stands alone; both forms are read in both files. Returns nothing if there is
/// no such section.
pub(super) fn read_profile(text: &str, profile: &str) -> Option<Profile> {
    let mut found = None;
    let mut inside = false;
    let mut block = None;
    for line in text.lines().filter(|line| !is_comment(line)) {
        if let Some(section) = section_name(line) {
            inside = section == profile;
            block = None;
            if inside {
                found.get_or_insert_with(Profile::default);
            }
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| inside) else { continue };
        let (name, value) = (name.trim().to_owned(), value.trim().to_owned());
        let nested = line.starts_with([' ', '\t']);
        if !nested {
            // A setting without a value opens a block of indented lines.
            block = value.is_empty().then(|| name.clone());
        }
        let full = match &block {
            Some(block) if nested => format!("{block}.{name}"),
            _ => name,
        };
        if !value.is_empty() {
            found.get_or_insert_with(Profile::default).0.insert(full, value);
        }
    }
    found
}

fn is_comment(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with(['#', ';'])
}

fn section_name(line: &str) -> Option<&str> {
    let name = line.trim().strip_prefix('[')?.split_once(']')?.0.trim();
    Some(name.strip_prefix("profile ").map_or(name, str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
# a comment
[default]
region = eu-west-1
aws_access_key_id=AKDEFAULT

[profile other]
  ; indented comments too
region = us-east-2
s3 =
  addressing_style = path
  max_concurrent_requests = 3
aws_secret_access_key = a=b=
[empty]
";

    #[test]
    fn settings_of_the_named_profile_are_read() {
        let default = read_profile(FILE, "default").unwrap();
        assert_eq!(default.setting("region"), Some("eu-west-1"));
        assert_eq!(default.setting("aws_access_key_id"), Some("AKDEFAULT"));
        assert_eq!(default.setting("aws_secret_access_key"), None);
        let other = read_profile(FILE, "other").unwrap();
        assert_eq!(other.setting("region"), Some("us-east-2"));
        assert_eq!(other.setting("s3.addressing_style"), Some("path"));
        assert_eq!(other.setting("addressing_style"), None);
        assert_eq!(other.setting("aws_secret_access_key"), Some("a=b="));
    }

    #[test]
    fn a_section_that_is_not_there_is_told_from_an_empty_one() {
        assert!(read_profile(FILE, "third").is_none());
        assert!(read_profile(FILE, "empty").unwrap() == Profile::default());
    }
}
