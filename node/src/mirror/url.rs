//! [`MirrorUrl`]: where a mirror is.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// Where a mirror is. Says nothing about who may use it: credentials come from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorUrl {
    /// A bucket of an S3 store: `s3://bucket` or `s3://bucket/prefix`.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What all names in the bucket start with, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// A folder of this machine: `file:///absolute/folder`.
    Folder(PathBuf),
}

/// Why a text is not the URL of a mirror.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorUrlError {
    /// Neither of the two forms.
    #[error("read the mirror's URL: expected s3://bucket[/prefix] or file:///absolute/folder, got {0:?}")]
    Scheme(String),
    /// Something before an `@`. The text is not repeated, since it may be a secret.
    #[error(
        "read the mirror's URL: expected s3://bucket[/prefix], got credentials in it; they belong in the environment"
    )]
    Credentials,
    /// Not the name of a bucket.
    #[error(
        "read the mirror's URL: expected a bucket's name of letters, digits, '-', '.' and '_', got {0:?}"
    )]
    Bucket(String),
    /// Not a prefix of object names.
    #[error(
        "read the mirror's URL: expected a prefix of names between single slashes without '?', '#' and '%', got {0:?}"
    )]
    Prefix(String),
    /// Not a folder's absolute path.
    #[error("read the mirror's URL: expected file:///absolute/folder without '.', '..' and '%', got {0:?}")]
    Folder(String),
}

impl FromStr for MirrorUrl {
    type Err = MirrorUrlError;

    fn from_str(text: &str) -> Result<Self, MirrorUrlError> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return parse_bucket(rest);
        }
        if let Some(rest) = text.strip_prefix("file://") {
            return parse_folder(rest).ok_or_else(|| MirrorUrlError::Folder(text.to_owned()));
        }
        if text.contains('@') {
            return Err(MirrorUrlError::Credentials);
        }
        Err(MirrorUrlError::Scheme(text.to_owned()))
    }
}

fn parse_bucket(rest: &str) -> Result<MirrorUrl, MirrorUrlError> {
    if rest.contains('@') {
        return Err(MirrorUrlError::Credentials);
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if bucket.is_empty() || !bucket.bytes().all(allowed) {
        return Err(MirrorUrlError::Bucket(bucket.to_owned()));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let names = object_store::path::Path::parse(prefix);
    // The library reads a name more freely than it writes it; only what stays as it is comes back as it went in.
    let same = names.is_ok_and(|names| names.as_ref() == prefix);
    if !same || prefix.contains(['?', '#', '%']) {
        return Err(MirrorUrlError::Prefix(prefix.to_owned()));
    }
    Ok(MirrorUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// The path is taken as it stands. A percent sign would leave in doubt whether it is an escape.
fn parse_folder(path: &str) -> Option<MirrorUrl> {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let folder = Path::new(path);
    let named = path.starts_with('/') && folder.components().count() > 1;
    // `components` leaves out single dots, which have no place in a URL either.
    let dots = path.split('/').any(|part| part == ".");
    if !named || dots || path.contains('%') || !folder.components().all(plain) {
        return None;
    }
    Some(MirrorUrl::Folder(folder.components().collect()))
}

impl fmt::Display for MirrorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Folder(folder) => write!(f, "file://{}", folder.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_come_back_as_they_were_written() {
        for text in
            ["s3://bucket", "s3://my.bucket-1/a", "s3://b/a/b c/d", "file:///mirror", "file:///a b/c#1/ä"]
        {
            assert_eq!(text.parse::<MirrorUrl>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_slash_at_the_end_means_nothing() {
        for (text, plain) in [("s3://b/", "s3://b"), ("s3://b/a/", "s3://b/a"), ("file:///a/", "file:///a")] {
            assert_eq!(text.parse::<MirrorUrl>().unwrap().to_string(), plain);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "bucket",
            "/folder",
            "http://host/b",
            "S3://b",
            "s3:/b",
            "s3://",
            "s3:///a",
            "s3://b c/a",
            "s3://b:80/a",
            "s3://b//a",
            "s3://b/a//",
            "s3://b/../a",
            "s3://b/a?x",
            "s3://b/a%20",
            "file://",
            "file:///",
            "file://host/a",
            "file://a",
            "file:///a/../b",
            "file:///a/./b",
            "file:///a%20b",
        ] {
            assert!(text.parse::<MirrorUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for text in ["s3://user:hunter2@bucket/a", "https://user:hunter2@host/b"] {
            let error = text.parse::<MirrorUrl>().unwrap_err();
            assert_eq!(error, MirrorUrlError::Credentials);
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn errors_say_what_was_expected_and_what_was_found() {
        let error = "gs://bucket".parse::<MirrorUrl>().unwrap_err().to_string();
        assert_eq!(
            error,
            "read the mirror's URL: expected s3://bucket[/prefix] or file:///absolute/folder, got \"gs://bucket\""
        );
    }
}
