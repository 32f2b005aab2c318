//! Stores that do not want us: said once, without secrets.

use axum::http::Method;
use bytes::Bytes;
use iota_node::mirror::{Credentials, MirrorConfig, MirrorError, MirrorState, MirrorUrl};

use crate::server::{Fault, KEY_ID, SECRET};
use crate::support::{BYTES_MAX, Place, blob, counted, open, open_counted};

const WRONG_SECRET: &str = "hunter2hunter2";
const TOKEN: &str = "FwoGZXIvYXdzEB/wrong+token==";

fn with_key(place: &Place, id: &str, secret: &str, token: Option<&str>) -> MirrorConfig {
    let mut config = place.config.clone();
    config.s3.credentials = Some(Credentials::new(id, secret, token));
    config
}

#[tokio::test]
async fn wrong_credentials_are_denied_at_once_and_not_shown() {
    let place = Place::server().await;
    for (id, secret) in [(KEY_ID, WRONG_SECRET), ("AKNOBODY", SECRET)] {
        let config = with_key(&place, id, secret, None);
        let shown_config = format!("{config:?}");
        let (mirror, registry) = open_counted(config);
        let (hash, bytes) = blob(10);
        let before = place.server_of().seen(&Method::HEAD);
        let put = mirror.put(hash, bytes).await.unwrap_err();
        assert_eq!(place.server_of().seen(&Method::HEAD), before + 1, "a denial is not tried again");
        assert!(counted(&registry, "iota_mirror_failures_total{operation=\"Put\",kind=\"Denied\"} 1"));
        let errors = [
            put,
            mirror.get(hash, BYTES_MAX).await.unwrap_err(),
            mirror.has(hash).await.unwrap_err(),
            mirror.latest().await.unwrap_err(),
            mirror.manifests().await.unwrap_err(),
            mirror.put_manifest(1, Bytes::from_static(b"one")).await.unwrap_err(),
        ];
        let mut shown = format!("{shown_config} {mirror:?} {:?}", mirror.health());
        for error in errors {
            assert!(matches!(error, MirrorError::Denied { .. }), "{error}");
            shown += &format!("{error} {error:?}");
        }
        assert!(matches!(mirror.health().state, MirrorState::Failing { consecutive_failures: 6, .. }));
        assert!(![id, secret].iter().any(|secret| shown.contains(secret)), "{shown}");
        assert!(shown.contains("403"), "the store's words are kept: {shown}");
    }
}

#[tokio::test]
async fn what_the_store_repeats_of_a_request_is_not_shown() {
    let place = Place::server().await;
    let mirror = open(with_key(&place, KEY_ID, SECRET, Some(TOKEN)));
    place.server_of().hurt(Fault::Echo);
    let error = mirror.manifests().await.unwrap_err();
    let shown = format!("{error} {error:?} {:?}", mirror.health());
    assert!(shown.contains("SignatureDoesNotMatch"), "{shown}");
    assert!(![KEY_ID, SECRET, TOKEN].iter().any(|secret| shown.contains(secret)), "{shown}");
}

#[tokio::test]
async fn a_request_without_a_signature_is_denied() {
    let place = Place::server().await;
    let mut config = place.config.clone();
    config.s3.credentials = None;
    let error = open(config).has([1; 32]).await.unwrap_err();
    assert!(matches!(error, MirrorError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_bucket_is_not_taken_for_an_empty_one() {
    let place = Place::server().await;
    let mut config = place.config.clone();
    config.url = MirrorUrl::S3 { bucket: "nowhere".to_owned(), prefix: String::new() };
    let mirror = open(config);
    let (hash, bytes) = blob(10);
    for error in [
        mirror.latest().await.unwrap_err(),
        mirror.get(hash, BYTES_MAX).await.unwrap_err(),
        mirror.put(hash, bytes).await.unwrap_err(),
        mirror.manifests().await.unwrap_err(),
    ] {
        assert!(matches!(error, MirrorError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    }
}

#[tokio::test]
async fn a_folder_below_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let mirror = open(MirrorConfig::new(MirrorUrl::Folder(folder.path().join("file/mirror"))));
    let (hash, bytes) = blob(10);
    let error = mirror.put(hash, bytes).await.unwrap_err();
    assert!(matches!(error, MirrorError::Refused { .. }), "{error}");
}
