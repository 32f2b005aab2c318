//! Blobs and manifests: what goes in comes out, once, and nothing else does.

use std::time::Duration;

use axum::http::Method;
use bytes::Bytes;
use iota_node::mirror::{MirrorConfig, MirrorError, MirrorState, Put};

use crate::support::{BYTES_MAX, PART, Place, blob, blob_name, counted, hash, open, open_counted, places};

#[tokio::test]
async fn blobs_come_back_as_they_were_put() {
    for place in places().await {
        let mirror = place.mirror();
        for length in [0, 1, 1000, PART - 1, PART, PART + 1, 2 * PART + 5] {
            let (hash, bytes) = blob(length);
            let note = format!("{length} bytes in the {}", place.name);
            assert!(!mirror.has(hash).await.unwrap(), "{note}");
            assert_eq!(mirror.put(hash, bytes.clone()).await, Ok(Put::Written), "{note}");
            assert!(mirror.has(hash).await.unwrap(), "{note}");
            assert!(mirror.get(hash, BYTES_MAX).await.unwrap() == bytes, "{note}");
            assert!(place.dig(&blob_name(&hash)).await.unwrap() == bytes, "{note}");
        }
    }
}

#[tokio::test]
async fn second_writer_finds_the_blob_present_and_sends_nothing() {
    for place in places().await {
        for length in [1000, PART + 1] {
            let (hash, bytes) = blob(length);
            assert_eq!(place.mirror().put(hash, bytes.clone()).await, Ok(Put::Written), "{}", place.name);
            let (second, registry) = open_counted(place.config.clone());
            assert_eq!(second.put(hash, bytes.clone()).await, Ok(Put::Present), "{}", place.name);
            assert_eq!(second.health().uploaded_bytes, 0);
            assert!(counted(&registry, "iota_mirror_present_total 1"));
            assert!(counted(&registry, "iota_mirror_upload_bytes_total 0"));
            assert!(second.get(hash, BYTES_MAX).await.unwrap() == bytes);
        }
    }
}

#[tokio::test]
async fn writers_at_the_same_time_all_succeed_and_one_object_is_there() {
    for place in places().await {
        for length in [1000, PART + 1] {
            let (hash, bytes) = blob(length);
            let writers: Vec<_> = (0..6).map(|_| place.mirror()).collect();
            let puts = writers.iter().map(|mirror| mirror.put(hash, bytes.clone()));
            let outcomes = futures::future::try_join_all(puts).await.unwrap();
            assert!(outcomes.contains(&Put::Written), "{}: {outcomes:?}", place.name);
            assert!(place.mirror().get(hash, BYTES_MAX).await.unwrap() == bytes, "{}", place.name);
        }
    }
}

#[tokio::test]
async fn clones_share_the_bound_on_transfers() {
    let place = Place::server().await;
    let one = std::num::NonZeroU16::MIN;
    let mirror = open(MirrorConfig { concurrency: one, ..place.config.clone() });
    let puts = (1..20).map(|length| {
        let (mirror, (hash, bytes)) = (mirror.clone(), blob(length));
        async move { mirror.put(hash, bytes).await }
    });
    let outcomes = futures::future::try_join_all(puts).await.unwrap();
    assert!(outcomes.iter().all(|put| *put == Put::Written));
    assert_eq!(mirror.health().uploaded_bytes, (1..20).sum::<u64>());
    assert_eq!(mirror.health().uploads_pending, 0);
}

#[tokio::test]
async fn bytes_of_another_hash_are_not_put() {
    for place in places().await {
        let mirror = place.mirror();
        let (named, _) = blob(10);
        let error = mirror.put(named, Bytes::from_static(b"others")).await.unwrap_err();
        assert!(
            matches!(error, MirrorError::Damaged { expected, got, .. } if expected == named && got == hash(b"others"))
        );
        assert!(!mirror.has(named).await.unwrap(), "{}", place.name);
    }
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_missing() {
    for place in places().await {
        let (mirror, registry) = open_counted(place.config.clone());
        let (hash, _) = blob(10);
        let error = mirror.get(hash, BYTES_MAX).await.unwrap_err();
        assert!(matches!(error, MirrorError::Missing { .. }), "{}: {error}", place.name);
        assert_eq!(error.to_string(), format!("get {} in the mirror: not there", blob_name(&hash)));
        assert!(counted(&registry, "iota_mirror_failures_total{operation=\"Get\",kind=\"Missing\"} 1"));
        assert_eq!(mirror.health().state, MirrorState::Ok, "a store that says no has answered");
    }
}

#[tokio::test]
async fn a_damaged_object_is_not_taken_for_the_blob_and_can_be_mended() {
    for place in places().await {
        let (hash_of_blob, bytes) = blob(PART + 1);
        let mut damaged = bytes.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        place.plant(&blob_name(&hash_of_blob), &damaged).await;
        let error = place.mirror().get(hash_of_blob, BYTES_MAX).await.unwrap_err();
        let MirrorError::Damaged { expected, got, .. } = error else { panic!("{}: {error}", place.name) };
        assert_eq!((expected, got), (hash_of_blob, hash(&damaged)), "{}", place.name);
        let mirror = place.mirror();
        assert_eq!(mirror.put(hash_of_blob, bytes.clone()).await, Ok(Put::Present), "nobody has read it");
        mirror.mend(hash_of_blob, bytes.clone()).await.unwrap();
        assert!(mirror.get(hash_of_blob, BYTES_MAX).await.unwrap() == bytes, "{}", place.name);
    }
}

#[tokio::test]
async fn an_object_of_another_size_is_written_over() {
    for place in places().await {
        for (length, planted) in [(1000, &b"cut"[..]), (PART + 1, b"")] {
            let (hash, bytes) = blob(length);
            place.plant(&blob_name(&hash), planted).await;
            let mirror = place.mirror();
            assert!(matches!(mirror.get(hash, BYTES_MAX).await, Err(MirrorError::Damaged { .. })));
            assert_eq!(mirror.put(hash, bytes.clone()).await, Ok(Put::Written), "{}", place.name);
            assert!(mirror.get(hash, BYTES_MAX).await.unwrap() == bytes, "{}", place.name);
        }
    }
}

#[tokio::test]
async fn a_blob_that_might_be_collected_soon_is_written_again() {
    for place in places().await {
        let (hash, bytes) = blob(1000);
        let at_once = open(MirrorConfig { reuse_for: Duration::ZERO, ..place.config.clone() });
        for _ in 0..2 {
            assert_eq!(at_once.put(hash, bytes.clone()).await, Ok(Put::Written), "{}", place.name);
        }
        assert_eq!(place.mirror().put(hash, bytes).await, Ok(Put::Present), "{}", place.name);
    }
}

#[tokio::test]
async fn a_blob_that_is_too_large_is_refused_unread() {
    for place in places().await {
        let (hash, bytes) = blob(1000);
        let mirror = place.mirror();
        mirror.put(hash, bytes.clone()).await.unwrap();
        let error = mirror.get(hash, 999).await.unwrap_err();
        assert!(
            matches!(error, MirrorError::TooLarge { got: 1000, limit: 999, .. }),
            "{}: {error}",
            place.name
        );
        if let Some(server) = &place.server {
            assert_eq!(server.seen(&Method::GET), 0, "its size is known without reading it");
        }
        assert!(mirror.get(hash, 1000).await.unwrap() == bytes, "{}", place.name);
    }
}

#[tokio::test]
async fn manifests_are_listed_in_order_and_other_names_passed_over() {
    for place in places().await {
        let mirror = place.mirror();
        assert_eq!(mirror.manifests().await, Ok(Vec::new()), "{}", place.name);
        let mut expected = Vec::new();
        for (epoch, text) in [(u32::MAX, "last"), (7, "one"), (7, "other"), (0, "first"), (10, "ten")] {
            let named = mirror.put_manifest(epoch, Bytes::from(text)).await.unwrap();
            assert_eq!(named, hash(text.as_bytes()));
            assert_eq!(mirror.manifest(epoch, named, BYTES_MAX).await.unwrap(), text.as_bytes());
            expected.push((epoch, named));
        }
        place.plant("checkpoints/readme.txt", b"not a manifest").await;
        place.plant("checkpoints/0000000007-ab.json", b"{}").await;
        expected.sort_unstable();
        assert_eq!(mirror.manifests().await.unwrap(), expected, "{}", place.name);
        let wrong_epoch = mirror.manifest(8, hash(b"one"), BYTES_MAX).await;
        assert!(matches!(wrong_epoch, Err(MirrorError::Missing { .. })), "{}", place.name);
    }
}

#[tokio::test]
async fn more_objects_than_a_page_holds_are_all_listed() {
    let place = Place::server().await;
    let folder = place.files.as_ref().unwrap().join("checkpoints");
    std::fs::create_dir_all(&folder).unwrap();
    let name = |epoch: u32| format!("{epoch:010}-{}.json", hex::encode(hash(b"")));
    for epoch in 0..2500 {
        std::fs::write(folder.join(name(epoch)), b"").unwrap();
    }
    let listed = place.mirror().manifests().await.unwrap();
    assert_eq!(listed, (0..2500).map(|epoch| (epoch, hash(b""))).collect::<Vec<_>>());
}
