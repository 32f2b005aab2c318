//! [`MirrorConfig`], and opening what it describes.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::environment::{Addressing, S3Options, S3OptionsError, is_endpoint};
use super::url::MirrorUrl;

/// How long an outage is waited out. Restarts of a store and failovers between its machines take seconds; what takes
/// longer is better told to the operator, and tried again with the next checkpoint.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// For how long a blob in the store spares its upload. Far longer than the peers of a stage are apart when they write
/// the same checkpoint, and short beside the age at which blobs are collected.
const REUSE_FOR: Duration = Duration::from_secs(24 * 3600);
/// Transfers at once in each direction. A store answers one request in tens of milliseconds, so that a few at once
/// fill a line; more would only share it.
const CONCURRENCY: NonZeroU16 = NonZeroU16::MIN.saturating_add(3);

/// How long a connection may take to come about. Three lost packets fit in.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Pause before a request is sent again, at first and at most; each is at most twice the one before. A store that is
/// overloaded asks for seconds.
pub(crate) const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The pauses are at most these shares of the patience, lest the first one uses it up.
const BACKOFF_SHARES: (u32, u32) = (32, 8);
/// How often one request is sent again at most. Time ends the attempts before, unless answers come at once.
const RETRIES_MAX: usize = 20;

/// What a mirror is told at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorConfig {
    /// Where it is.
    pub url: MirrorUrl,
    /// How a bucket is reached; of no meaning to a folder.
    pub s3: S3Options,
    /// Bytes per second that all uploads together may send; as fast as they go without one. They leave in pieces of up to
    /// [`PART_BYTES`](super::PART_BYTES), each as fast as it goes: a rate over minutes, not over milliseconds.
    pub upload_rate: Option<NonZeroU64>,
    /// Transfers at once, of uploads and of downloads each.
    pub concurrency: NonZeroU16,
    /// How long an outage is waited out. A request fails that is not answered within this time, and within what its bytes take
    /// in addition at 64 KiB/s, the slowest line a mirror is meant for. An operation that fails is begun again until this time
    /// after its first failure. So whoever meets an outage knows after three times this time at the latest.
    pub patience: Duration,
    /// An object that is in the store for this long is written again rather than taken for present: its time of writing
    /// is what protects it from [`Mirror::collect`](super::Mirror::collect), which has to be asked for a greater age.
    pub reuse_for: Duration,
}

/// Why a mirror cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorOpenError {
    /// The endpoint is not one. It is not repeated, since it may hold a secret.
    #[error(
        "open the mirror {0}: expected an endpoint http://host[:port] or https://host[:port] without credentials"
    )]
    Endpoint(MirrorUrl),
    /// The client could not be made.
    #[error("open the mirror {url}: {reason}")]
    Client {
        /// Where the mirror is.
        url: MirrorUrl,
        /// What stood in the way.
        reason: String,
    },
}

impl MirrorConfig {
    /// The defaults for a mirror, with a bucket at Amazon's and without credentials.
    #[must_use]
    pub fn new(url: MirrorUrl) -> Self {
        Self {
            url,
            s3: S3Options::default(),
            upload_rate: None,
            concurrency: CONCURRENCY,
            patience: PATIENCE,
            reuse_for: REUSE_FOR,
        }
    }

    /// The defaults for a mirror. For a bucket, [`S3Options::from_environment`] says how it is reached.
    ///
    /// # Errors
    /// When the environment is wrong or incomplete.
    pub fn from_environment(
        url: MirrorUrl,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, S3OptionsError> {
        let s3 = match &url {
            MirrorUrl::S3 { .. } => S3Options::from_environment(lookup)?,
            MirrorUrl::Folder(_) => S3Options::default(),
        };
        Ok(Self { s3, ..Self::new(url) })
    }
}

/// A store in which all names are relative to the mirror's root.
pub(super) type Rooted = PrefixStore<Arc<dyn ObjectStore>>;

/// Makes the client. Sends nothing.
pub(super) fn open_store(config: &MirrorConfig) -> Result<Rooted, MirrorOpenError> {
    if config.s3.endpoint.as_deref().is_some_and(|endpoint| !is_endpoint(endpoint)) {
        return Err(MirrorOpenError::Endpoint(config.url.clone()));
    }
    let opened = match &config.url {
        MirrorUrl::S3 { bucket, prefix } => open_bucket(bucket, prefix, &config.s3, config.patience),
        MirrorUrl::Folder(folder) => open_folder(folder),
    };
    let failed = |error: object_store::Error| MirrorOpenError::Client {
        url: config.url.clone(),
        reason: error.to_string(),
    };
    let (store, root) = opened.map_err(failed)?;
    Ok(PrefixStore::new(store, root))
}

type Opened = Result<(Arc<dyn ObjectStore>, Path), object_store::Error>;

/// The folder need not exist: it is made when something is written. What is written is on the disk before it counts.
fn open_folder(folder: &FilePath) -> Opened {
    let root = Path::from_absolute_path(folder)?;
    Ok((Arc::new(LocalFileSystem::new().with_fsync(true)), root))
}

fn open_bucket(bucket: &str, prefix: &str, options: &S3Options, patience: Duration) -> Opened {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&options.region)
        .with_virtual_hosted_style_request(options.addressing == Addressing::VirtualHost)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // Deleting many objects at once is not understood by every store; deleting one is.
        .with_disable_bulk_delete(true)
        .with_retry(retries(patience))
        .with_client_options(client(options));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint_of(endpoint, bucket, options.addressing));
    }
    builder = match &options.credentials {
        Some(known) => {
            let signed = builder.with_access_key_id(&known.key_id).with_secret_access_key(&known.secret);
            match &known.session_token {
                Some(token) => signed.with_token(token),
                None => signed,
            }
        }
        None => builder.with_skip_signature(true),
    };
    let store: AmazonS3 = builder.build()?;
    Ok((Arc::new(store), Path::parse(prefix)?))
}

/// Every use of the store has its own deadline, which knows the size of what is transferred, so the client has none.
fn client(options: &S3Options) -> ClientOptions {
    let plain = options.endpoint.as_deref().filter(|endpoint| endpoint.starts_with("http://"));
    let client = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT)
        .with_allow_http(plain.is_some());
    match options.endpoint.as_deref().and_then(|endpoint| Some((endpoint, loopback_host(endpoint)?))) {
        // A proxy that the environment names is on another machine, whose loopback is not ours. Naming a proxy and
        // exempting the only host there is turns it off.
        Some((endpoint, host)) => client.with_proxy_url(endpoint).with_proxy_excludes(host),
        None => client,
    }
}

/// Half of the patience for one request leaves the other half to find out what became of it.
fn retries(patience: Duration) -> RetryConfig {
    let (first, most) = BACKOFF;
    let (first_share, most_share) = BACKOFF_SHARES;
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: first.min(patience / first_share),
            max_backoff: most.min(patience / most_share),
            base: 2.0,
        },
        max_retries: RETRIES_MAX,
        retry_timeout: patience / 2,
    }
}

/// The library expects the bucket in an endpoint's host if requests name it there.
fn endpoint_of(endpoint: &str, bucket: &str, addressing: Addressing) -> String {
    match (addressing, endpoint.split_once("://")) {
        (Addressing::VirtualHost, Some((scheme, host))) => format!("{scheme}://{bucket}.{host}"),
        _ => endpoint.to_owned(),
    }
}

fn loopback_host(endpoint: &str) -> Option<&str> {
    let (_, rest) = endpoint.split_once("://")?;
    let authority = rest.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(six) => six.split(']').next()?,
        None => authority.split(':').next()?,
    };
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    loopback.then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_goes_where_the_addressing_says() {
        let endpoint = "https://store.example:9000";
        assert_eq!(endpoint_of(endpoint, "b", Addressing::Path), endpoint);
        assert_eq!(endpoint_of(endpoint, "b", Addressing::VirtualHost), "https://b.store.example:9000");
    }

    #[test]
    fn loopback_is_told_from_other_hosts() {
        for (endpoint, host) in [
            ("http://127.0.0.1:9000", Some("127.0.0.1")),
            ("http://localhost", Some("localhost")),
            ("https://[::1]:443/path", Some("::1")),
            ("https://store.example", None),
            ("http://10.0.0.1:9000", None),
        ] {
            assert_eq!(loopback_host(endpoint), host, "{endpoint}");
        }
    }

    #[test]
    fn an_endpoint_with_credentials_is_refused_and_not_repeated() {
        let mut config = MirrorConfig::new("s3://b".parse().unwrap());
        config.s3.endpoint = Some("http://user:hunter2@host".to_owned());
        let error = open_store(&config).unwrap_err();
        assert_eq!(error, MirrorOpenError::Endpoint(config.url));
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn pauses_fit_into_the_patience() {
        for patience in [Duration::from_millis(100), PATIENCE, Duration::from_secs(3600)] {
            let retries = retries(patience);
            assert!(retries.backoff.init_backoff <= retries.backoff.max_backoff);
            assert!(retries.retry_timeout + retries.backoff.max_backoff < patience);
        }
    }
}
