//! [`S3Options`]: how an S3 store is reached and who we are there, from the environment that every S3 tool reads.

use std::fmt;
use std::path::PathBuf;

use super::profile::{Profile, read_profile};

/// The region that requests are signed for where none is set. Stores that are not Amazon's accept any.
const REGION_DEFAULT: &str = "us-east-1";
/// The profile that is read where none is named.
const PROFILE_DEFAULT: &str = "default";

/// How to reach an S3 store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// The store's `http://` or `https://` address; Amazon's, by region, without one.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// Where a request names its bucket.
    pub addressing: Addressing,
    /// Who we are; without credentials, requests are not signed, which suffices to read a public bucket.
    pub credentials: Option<Credentials>,
}

/// Where a request names its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// In the path: `https://host/bucket/object`. What stores other than Amazon's understand.
    Path,
    /// In the host's name: `https://bucket.host/object`.
    VirtualHost,
}

/// An access key. Never printed, not even by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(super) key_id: String,
    pub(super) secret: String,
    pub(super) session_token: Option<String>,
}

/// Why the environment does not say how to reach a store. No text repeats a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum S3OptionsError {
    /// One half of an access key is set and the other is not.
    #[error("read the S3 credentials: expected {missing} beside {present}, which is set")]
    HalfKey {
        /// What is set.
        present: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// The endpoint is not one.
    #[error(
        "read the S3 endpoint: expected http://host[:port] or https://host[:port] without credentials, got another text in {0}"
    )]
    Endpoint(&'static str),
    /// The addressing style is not one.
    #[error("read the S3 addressing style: expected {expected}, got {got:?} in {variable}")]
    Addressing {
        /// Where it stands.
        variable: &'static str,
        /// The values there are.
        expected: &'static str,
        /// The value there is.
        got: String,
    },
    /// A profile was asked for and is in neither file.
    #[error("read the S3 profile {profile:?}: expected it in one of {files}, found it in none")]
    NoProfile {
        /// Its name.
        profile: String,
        /// The files that were looked into.
        files: String,
    },
    /// A file is there and cannot be read.
    #[error("read {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl Credentials {
    /// An access key as the store issued it.
    #[must_use]
    pub fn new(key_id: &str, secret: &str, session_token: Option<&str>) -> Self {
        let session_token = session_token.map(str::to_owned);
        Self { key_id: key_id.to_owned(), secret: secret.to_owned(), session_token }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(not shown)")
    }
}

impl Default for S3Options {
    /// Amazon's store, unsigned.
    fn default() -> Self {
        let region = REGION_DEFAULT.to_owned();
        Self { endpoint: None, region, addressing: Addressing::VirtualHost, credentials: None }
    }
}

impl S3Options {
    /// Reads what the AWS tools read, in their order: a variable goes before a file, and the credentials file before
    /// the config file. `lookup` returns a variable of the environment.
    ///
    /// | what | variables | settings of the profile |
    /// |---|---|---|
    /// | access key | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | the same in lower case |
    /// | endpoint | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` | `endpoint_url` |
    /// | region | `AWS_REGION`, `AWS_DEFAULT_REGION` | `region` |
    /// | addressing | `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` (`true`, `false`) | `addressing_style` of `s3` |
    /// | profile | `AWS_PROFILE` | |
    /// | files | `AWS_SHARED_CREDENTIALS_FILE`, `AWS_CONFIG_FILE`, else `~/.aws/credentials`, `~/.aws/config` | |
    ///
    /// Keys are read once. Ones that expire have to be renewed by a restart. Keys that a service of the machine hands out
    /// (instance metadata, containers, web identity) are not asked for.
    ///
    /// # Errors
    /// A profile or half of a key that is missing, a file that cannot be read, and values that mean nothing.
    pub fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, S3OptionsError> {
        let variable = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let profile = load_profile(&variable)?;
        let endpoint = find_endpoint(&variable, &profile)?;
        let region = variable("AWS_REGION")
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .or_else(|| profile.setting("region").map(str::to_owned));
        Ok(Self {
            addressing: find_addressing(&variable, &profile, endpoint.is_some())?,
            region: region.unwrap_or_else(|| REGION_DEFAULT.to_owned()),
            credentials: find_credentials(&variable, &profile)?,
            endpoint,
        })
    }
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

fn find_credentials(variable: Lookup<'_>, profile: &Profile) -> Result<Option<Credentials>, S3OptionsError> {
    let (id, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
    let set = both((id, variable(id)), (secret, variable(secret)))?;
    if let Some((key_id, secret)) = set {
        return Ok(Some(Credentials { key_id, secret, session_token: variable("AWS_SESSION_TOKEN") }));
    }
    let (id, secret) = ("aws_access_key_id", "aws_secret_access_key");
    let setting = |name: &str| profile.setting(name).map(str::to_owned);
    let stored = both((id, setting(id)), (secret, setting(secret)))?;
    Ok(stored.map(|(key_id, secret)| Credentials {
        key_id,
        secret,
        session_token: setting("aws_session_token"),
    }))
}

/// Both halves, or neither.
fn both(
    (first_name, first): (&'static str, Option<String>),
    (second_name, second): (&'static str, Option<String>),
) -> Result<Option<(String, String)>, S3OptionsError> {
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(S3OptionsError::HalfKey { present: first_name, missing: second_name }),
        (None, Some(_)) => Err(S3OptionsError::HalfKey { present: second_name, missing: first_name }),
    }
}

fn find_endpoint(variable: Lookup<'_>, profile: &Profile) -> Result<Option<String>, S3OptionsError> {
    let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    let found = variables.into_iter().find_map(|name| Some((name, variable(name)?)));
    let stored = || Some(("endpoint_url", profile.setting("endpoint_url")?.to_owned()));
    let Some((place, endpoint)) = found.or_else(stored) else { return Ok(None) };
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    if is_endpoint(&endpoint) { Ok(Some(endpoint)) } else { Err(S3OptionsError::Endpoint(place)) }
}

/// Whether a text is the address of a server and nothing more.
pub(super) fn is_endpoint(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']))
}

fn find_addressing(
    variable: Lookup<'_>,
    profile: &Profile,
    own_endpoint: bool,
) -> Result<Addressing, S3OptionsError> {
    let usual = if own_endpoint { Addressing::Path } else { Addressing::VirtualHost };
    let name = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST";
    match variable(name).as_deref() {
        Some("true") => return Ok(Addressing::VirtualHost),
        Some("false") => return Ok(Addressing::Path),
        Some(other) => return Err(no_addressing(name, "true or false", other)),
        None => {}
    }
    match profile.setting("s3.addressing_style") {
        Some("virtual") => Ok(Addressing::VirtualHost),
        Some("path") => Ok(Addressing::Path),
        Some("auto") | None => Ok(usual),
        Some(other) => Err(no_addressing("addressing_style", "virtual, path or auto", other)),
    }
}

fn no_addressing(variable: &'static str, expected: &'static str, got: &str) -> S3OptionsError {
    S3OptionsError::Addressing { variable, expected, got: got.to_owned() }
}

/// The settings of the profile from both files, with those of the credentials file first.
fn load_profile(variable: Lookup<'_>) -> Result<Profile, S3OptionsError> {
    let named = variable("AWS_PROFILE");
    let name = named.as_deref().unwrap_or(PROFILE_DEFAULT);
    let home = |file: &str| variable("HOME").map(|home| PathBuf::from(home).join(".aws").join(file));
    let place = |name: &str, file: &str| variable(name).map(PathBuf::from).or_else(|| home(file));
    let files = [place("AWS_CONFIG_FILE", "config"), place("AWS_SHARED_CREDENTIALS_FILE", "credentials")];
    let mut profile = None;
    for path in files.iter().flatten() {
        let Some(text) = read_if_there(path)? else { continue };
        if let Some(found) = read_profile(&text, name) {
            profile.get_or_insert_with(Profile::default).extend(found);
        }
    }
    match (profile, named) {
        (None, Some(profile)) => {
            let files: Vec<_> = files.iter().flatten().map(|path| path.display().to_string()).collect();
            Err(S3OptionsError::NoProfile { profile, files: files.join(", ") })
        }
        (profile, _) => Ok(profile.unwrap_or_default()),
    }
}

fn read_if_there(path: &PathBuf) -> Result<Option<String>, S3OptionsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(S3OptionsError::File { path: path.clone(), reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<S3Options, S3OptionsError> {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name);
        S3Options::from_environment(|name| value(name).map(|(_, value)| (*value).to_owned()))
    }

    /// A home with both files; `more` are the variables beside it.
    fn read_at_home(more: &[(&str, &str)]) -> Result<S3Options, S3OptionsError> {
        let home = tempfile::tempdir().unwrap();
        let aws = home.path().join(".aws");
        std::fs::create_dir(&aws).unwrap();
        let credentials = "[default]\naws_access_key_id = ID\naws_secret_access_key = SECRET\n\
            [work]\naws_access_key_id = WORK\naws_secret_access_key = HIDDEN\naws_session_token = TOKEN\n";
        std::fs::write(aws.join("credentials"), credentials).unwrap();
        let config = "[default]\nregion = eu-north-1\n[profile work]\nendpoint_url = http://store.example:9000\n\
            s3 =\n  addressing_style = virtual\n";
        std::fs::write(aws.join("config"), config).unwrap();
        let mut variables = vec![("HOME", home.path().to_str().unwrap())];
        variables.extend(more);
        read(&variables)
    }

    #[test]
    fn an_empty_environment_means_amazon_without_a_signature() {
        assert_eq!(read(&[]).unwrap(), S3Options::default());
        assert_eq!(read(&[("AWS_ACCESS_KEY_ID", ""), ("AWS_REGION", "")]).unwrap(), S3Options::default());
    }

    #[test]
    fn variables_are_read() {
        let options = read(&[
            ("AWS_ACCESS_KEY_ID", "ID"),
            ("AWS_SECRET_ACCESS_KEY", "SECRET"),
            ("AWS_SESSION_TOKEN", "TOKEN"),
            ("AWS_ENDPOINT_URL", "https://general.example"),
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000/"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
        ]);
        let expected = S3Options {
            endpoint: Some("http://127.0.0.1:9000".to_owned()),
            region: "eu-west-1".to_owned(),
            addressing: Addressing::Path,
            credentials: Some(Credentials::new("ID", "SECRET", Some("TOKEN"))),
        };
        assert_eq!(options.unwrap(), expected);
    }

    #[test]
    fn files_fill_what_variables_leave_open() {
        let default = read_at_home(&[]).unwrap();
        assert_eq!(default.credentials, Some(Credentials::new("ID", "SECRET", None)));
        assert_eq!(default.region, "eu-north-1");
        let work = read_at_home(&[("AWS_PROFILE", "work"), ("AWS_REGION", "local")]).unwrap();
        assert_eq!(work.credentials, Some(Credentials::new("WORK", "HIDDEN", Some("TOKEN"))));
        assert_eq!(work.endpoint.as_deref(), Some("http://store.example:9000"));
        assert_eq!((work.region.as_str(), work.addressing), ("local", Addressing::VirtualHost));
        let set = [("AWS_ACCESS_KEY_ID", "MINE"), ("AWS_SECRET_ACCESS_KEY", "OWN"), ("AWS_PROFILE", "work")];
        let mixed = read_at_home(&set).unwrap();
        assert_eq!(mixed.credentials, Some(Credentials::new("MINE", "OWN", None)), "a token of another key");
    }

    #[test]
    fn what_is_half_or_missing_is_named() {
        let error = read(&[("AWS_SECRET_ACCESS_KEY", "hunter2")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "read the S3 credentials: expected AWS_ACCESS_KEY_ID beside AWS_SECRET_ACCESS_KEY, which is set"
        );
        assert!(matches!(
            read_at_home(&[("AWS_PROFILE", "nobody")]),
            Err(S3OptionsError::NoProfile { profile, .. }) if profile == "nobody"
        ));
        let style = [("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "yes")];
        assert!(matches!(read(&style), Err(S3OptionsError::Addressing { .. })));
    }

    #[test]
    fn endpoints_with_credentials_or_of_other_schemes_are_refused_and_not_repeated() {
        for endpoint in ["http://user:hunter2@host", "ftp://hunter2", "host:9000", "http://"] {
            let error = read(&[("AWS_ENDPOINT_URL", endpoint)]).unwrap_err();
            assert_eq!(error, S3OptionsError::Endpoint("AWS_ENDPOINT_URL"));
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let options = read_at_home(&[("AWS_PROFILE", "work")]).unwrap();
        let shown = format!("{options:?}");
        assert!(["WORK", "HIDDEN", "TOKEN"].iter().all(|secret| !shown.contains(secret)), "{shown}");
    }
}
