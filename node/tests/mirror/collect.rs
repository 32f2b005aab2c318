//! Collecting: what is kept or young stays, and the rest goes.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use iota_node::blobs::Hash32;
use iota_node::mirror::{Collected, Latest, Mirror, MirrorConfig, Put};

use crate::support::{Place, blob, blob_name, open, places};

const HOUR: Duration = Duration::from_secs(3600);

async fn put(mirror: &Mirror, length: usize) -> Hash32 {
    let (hash, bytes) = blob(length);
    mirror.put(hash, bytes).await.unwrap();
    hash
}

fn set<const N: usize>(hashes: [Hash32; N]) -> BTreeSet<Hash32> {
    BTreeSet::from(hashes)
}

/// Makes a file look two hours old.
fn make_old(path: &Path) {
    let file = File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
}

#[tokio::test]
async fn what_is_kept_stays_and_the_rest_goes() {
    for place in places().await {
        let mirror = place.mirror();
        let (kept, gone) = (put(&mirror, 100).await, put(&mirror, 200).await);
        let kept_manifest = mirror.put_manifest(2, Bytes::from_static(b"two")).await.unwrap();
        let named = mirror.put_manifest(3, Bytes::from_static(b"three")).await.unwrap();
        mirror.put_manifest(1, Bytes::from_static(b"one")).await.unwrap();
        let latest = Latest { run: [3; 32], epoch: 3, manifest: named };
        mirror.move_latest(None, &latest).await.unwrap();
        place.plant("blobs/readme.txt", b"not a blob").await;

        let collected = mirror.collect(&set([kept]), &set([kept_manifest]), Duration::ZERO).await.unwrap();
        let expected = Collected { manifests: 1, blobs: 1, leftovers: 0, bytes: 203 };
        assert_eq!(collected, expected, "{}", place.name);
        assert!(mirror.has(kept).await.unwrap() && !mirror.has(gone).await.unwrap(), "{}", place.name);
        let left = mirror.manifests().await.unwrap();
        assert_eq!(left, [(2, kept_manifest), (3, named)], "what the pointer names, in the {}", place.name);
        assert_eq!(mirror.latest().await.unwrap().unwrap().0, latest, "{}", place.name);
        assert!(place.dig("blobs/readme.txt").await.is_some(), "{}", place.name);
    }
}

#[tokio::test]
async fn what_is_young_stays() {
    for place in places().await {
        let mirror = place.mirror();
        let (young, old) = (put(&mirror, 100).await, put(&mirror, 200).await);
        mirror.put_manifest(1, Bytes::from_static(b"one")).await.unwrap();
        let nothing = mirror.collect(&set([]), &set([]), HOUR).await.unwrap();
        assert_eq!(nothing, Collected::default(), "{}", place.name);
        // A server elsewhere does not let us turn back its clock.
        let Some(files) = &place.files else { continue };
        make_old(&files.join(blob_name(&old)));
        let collected = mirror.collect(&set([]), &set([]), HOUR).await.unwrap();
        assert_eq!((collected.blobs, collected.manifests), (1, 0), "{}", place.name);
        assert!(mirror.has(young).await.unwrap() && !mirror.has(old).await.unwrap(), "{}", place.name);
    }
}

#[tokio::test]
async fn a_blob_that_is_put_again_becomes_young() {
    for place in places().await {
        let Some(files) = &place.files else { continue };
        let mirror = open(MirrorConfig { reuse_for: HOUR, ..place.config.clone() });
        let (hash, bytes) = blob(100);
        mirror.put(hash, bytes.clone()).await.unwrap();
        make_old(&files.join(blob_name(&hash)));
        assert_eq!(mirror.put(hash, bytes).await, Ok(Put::Written), "{}", place.name);
        mirror.collect(&set([]), &set([]), HOUR).await.unwrap();
        assert!(mirror.has(hash).await.unwrap(), "{}", place.name);
    }
}

#[tokio::test]
async fn an_empty_mirror_has_nothing_to_collect() {
    for place in places().await {
        let collected = place.mirror().collect(&set([]), &set([]), Duration::ZERO).await;
        assert_eq!(collected, Ok(Collected::default()), "{}", place.name);
    }
}

#[tokio::test]
async fn half_written_files_of_dead_writers_go() {
    for place in places().await.into_iter().filter(|place| place.name == "folder") {
        let mirror = place.mirror();
        let kept = put(&mirror, 100).await;
        let half = place.files.as_ref().unwrap().join(format!("{}#1", blob_name(&kept)));
        std::fs::write(&half, b"half").unwrap();
        let nothing = BTreeSet::new();
        let collect = || mirror.collect(&nothing, &nothing, HOUR);
        assert_eq!(collect().await.unwrap().leftovers, 0, "its writer may be alive");
        make_old(&half);
        assert_eq!(collect().await.unwrap().leftovers, 1);
        assert!(mirror.has(kept).await.unwrap());
    }
}

#[tokio::test]
async fn many_objects_go_in_one_collection() {
    let place = Place::server().await;
    let mirror = place.mirror();
    for length in 0..50 {
        put(&mirror, length).await;
    }
    let collected = mirror.collect(&set([]), &set([]), Duration::ZERO).await.unwrap();
    assert_eq!((collected.blobs, collected.bytes), (50, (0..50).sum()));
}
