//! The stores that the tests run over.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use iota_node::blobs::Hash32;
use iota_node::mirror::{
    Addressing, Credentials, Mirror, MirrorConfig, MirrorMetrics, MirrorUrl, PART_BYTES, S3Options,
};
use object_store::ObjectStoreExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use crate::server::{BUCKET, KEY_ID, S3Server, SECRET};

/// How long tests wait for a store that is going to answer. A loaded machine is slow; a broken test hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than any object here has.
pub(crate) const BYTES_MAX: u64 = 1 << 30;
/// The greatest part of a transfer, as a length in memory.
pub(crate) const PART: usize = 8 << 20;
/// The prefix in the server's bucket.
const PREFIX: &str = "some/prefix";

const _: () = assert!(PART as u64 == PART_BYTES);

/// A place for a mirror, empty at first.
pub(crate) struct Place {
    /// For messages.
    pub(crate) name: &'static str,
    pub(crate) config: MirrorConfig,
    /// The S3 server of this process, if it is that.
    pub(crate) server: Option<S3Server>,
    /// Where the objects are files, the folder that they are in.
    pub(crate) files: Option<PathBuf>,
    _folder: Option<TempDir>,
}

/// All places: the S3 server, a folder, and the S3 server that the environment names.
pub(crate) async fn places() -> Vec<Place> {
    let mut places = vec![Place::server().await, Place::folder()];
    places.extend(Place::named());
    places
}

impl Place {
    pub(crate) async fn server() -> Self {
        let server = S3Server::start().await;
        let config = MirrorConfig {
            s3: S3Options {
                endpoint: Some(server.endpoint()),
                region: "us-east-1".to_owned(),
                addressing: Addressing::Path,
                credentials: Some(Credentials::new(KEY_ID, SECRET, None)),
            },
            patience: PATIENCE,
            ..MirrorConfig::new(bucket(BUCKET, PREFIX))
        };
        let files = Some(server.bucket().join(PREFIX));
        Self { name: "s3 server", config, server: Some(server), files, _folder: None }
    }

    fn folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The mirror makes it.
        let files = folder.path().join("mirror");
        let config =
            MirrorConfig { patience: PATIENCE, ..MirrorConfig::new(MirrorUrl::Folder(files.clone())) };
        Self { name: "folder", config, server: None, files: Some(files), _folder: Some(folder) }
    }

    fn named() -> Option<Self> {
        let key = named_key();
        let config = MirrorConfig {
            s3: S3Options {
                endpoint: Some(named("ENDPOINT")?),
                region: "us-east-1".to_owned(),
                addressing: Addressing::Path,
                credentials: Some(Credentials::new(&key.0, &key.1, None)),
            },
            patience: PATIENCE,
            ..MirrorConfig::new(bucket(&named_bucket(), &unused_prefix()))
        };
        Some(Self { name: "named server", config, server: None, files: None, _folder: None })
    }

    /// A mirror at this place, as another process would open it.
    pub(crate) fn mirror(&self) -> Mirror {
        open(self.config.clone())
    }

    /// A mirror at this place that gives up soon.
    pub(crate) fn impatient(&self) -> Mirror {
        open(MirrorConfig { patience: Duration::from_millis(500), ..self.config.clone() })
    }

    pub(crate) fn server_of(&self) -> &S3Server {
        self.server.as_ref().unwrap()
    }

    /// Puts an object there without the mirror, whatever its name promises.
    pub(crate) async fn plant(&self, name: &str, bytes: &[u8]) {
        let Some(files) = &self.files else {
            self.named_store().put(&self.named_path(name), bytes.to_vec().into()).await.unwrap();
            return;
        };
        let file = files.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }

    /// Reads an object without the mirror, if it is there.
    pub(crate) async fn dig(&self, name: &str) -> Option<Bytes> {
        let Some(files) = &self.files else {
            let found = self.named_store().get(&self.named_path(name)).await;
            return Some(found.ok()?.bytes().await.unwrap());
        };
        std::fs::read(files.join(name)).ok().map(Bytes::from)
    }

    /// The server that the environment names, as it is without the mirror.
    fn named_store(&self) -> AmazonS3 {
        let key = named_key();
        let options = &self.config.s3;
        let builder = AmazonS3Builder::new()
            .with_endpoint(options.endpoint.clone().unwrap())
            .with_allow_http(true)
            .with_bucket_name(named_bucket())
            .with_access_key_id(key.0)
            .with_secret_access_key(key.1);
        builder.build().unwrap()
    }

    fn named_path(&self, name: &str) -> Path {
        match &self.config.url {
            MirrorUrl::S3 { prefix, .. } => Path::parse(format!("{prefix}/{name}")).unwrap(),
            MirrorUrl::Folder(folder) => panic!("{} is no server", folder.display()),
        }
    }
}

fn named(variable: &str) -> Option<String> {
    std::env::var(format!("IOTA_TEST_S3_{variable}")).ok()
}

fn named_bucket() -> String {
    named("BUCKET").unwrap_or_else(|| "iota".to_owned())
}

/// The access key; any will do for a server that does not ask.
fn named_key() -> (String, String) {
    let or = |variable: &str, usual: &str| named(variable).unwrap_or_else(|| usual.to_owned());
    (or("ACCESS_KEY_ID", "id"), or("SECRET_ACCESS_KEY", "secret"))
}

fn bucket(name: &str, prefix: &str) -> MirrorUrl {
    format!("s3://{name}/{prefix}").parse().unwrap()
}

/// A prefix that no other test, process or run of the tests has.
fn unused_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("iota-test/{nanos}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn open(config: MirrorConfig) -> Mirror {
    Mirror::open(config, MirrorMetrics::default()).unwrap()
}

/// A mirror and what it counts.
pub(crate) fn open_counted(config: MirrorConfig) -> (Mirror, Registry) {
    let mut registry = Registry::default();
    let metrics = MirrorMetrics::register(&mut registry);
    (Mirror::open(config, metrics).unwrap(), registry)
}

/// Whether a line is in the text of the metrics.
pub(crate) fn counted(registry: &Registry, line: &str) -> bool {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text.lines().any(|found| found == line)
}

pub(crate) fn hash(bytes: &[u8]) -> Hash32 {
    *blake3::hash(bytes).as_bytes()
}

/// Bytes that differ from place to place, and their hash.
pub(crate) fn blob(length: usize) -> (Hash32, Bytes) {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&length.to_le_bytes()).finalize_xof().fill(&mut bytes);
    (hash(&bytes), bytes.into())
}

/// The name of a blob.
pub(crate) fn blob_name(hash: &Hash32) -> String {
    let hash = hex::encode(hash);
    format!("blobs/{}/{hash}", &hash[..2])
}
