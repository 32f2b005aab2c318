//! A store that fails in every way there is: nothing wrong is ever believed, and what heals is used again.

use std::time::Duration;

use iota_node::mirror::{Latest, MirrorError, MirrorState, Moved, Put};

use crate::server::Fault;
use crate::support::{BYTES_MAX, PART, Place, blob, blob_name};

/// A blob of more than one part, so that each fault meets both ways of moving one.
const LARGE: usize = PART + 1000;

/// Repeats what a healed store is going to do, however little time the mirror and the machine give it each time.
async fn at_last<T>(mut attempt: impl AsyncFnMut() -> Result<T, MirrorError>) -> T {
    loop {
        match attempt().await {
            Err(MirrorError::Unavailable { .. }) => tokio::task::yield_now().await,
            result => return result.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_short_outage_is_waited_out() {
    let place = Place::server().await;
    let mirror = place.mirror();
    for status in [500, 503, 429] {
        for length in [1000 + usize::from(status), LARGE + usize::from(status)] {
            let (hash, bytes) = blob(length);
            place.server_of().hurt_next(Fault::Status(status), 3);
            assert_eq!(mirror.put(hash, bytes.clone()).await, Ok(Put::Written), "{status}");
            place.server_of().hurt_next(Fault::Status(status), 3);
            assert!(mirror.get(hash, BYTES_MAX).await.unwrap() == bytes, "{status}");
        }
    }
    assert_eq!(mirror.health().state, MirrorState::Ok);
}

#[tokio::test]
async fn a_long_outage_is_reported_and_its_end_noticed() {
    let place = Place::server().await;
    let mirror = place.impatient();
    assert_eq!(mirror.health().state, MirrorState::Idle);
    for fault in [Fault::Status(503), Fault::Hang] {
        let (hash, bytes) = blob(1000);
        place.server_of().hurt(fault);
        let error = mirror.put(hash, bytes.clone()).await.unwrap_err();
        assert!(matches!(error, MirrorError::Unavailable { .. }), "{error}");
        let error = mirror.get(hash, BYTES_MAX).await.unwrap_err();
        assert!(matches!(error, MirrorError::Unavailable { .. }), "{error}");
        let MirrorState::Failing { reason, consecutive_failures: 2, .. } = mirror.health().state else {
            panic!("{:?}", mirror.health());
        };
        assert_eq!(reason, error.to_string());
        place.server_of().heal();
        at_last(async || mirror.put(hash, bytes.clone()).await).await;
        assert!(at_last(async || mirror.get(hash, BYTES_MAX).await).await == bytes);
        assert_eq!(mirror.health().state, MirrorState::Ok);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_reported_and_found_again() {
    let mut place = Place::server().await;
    let mirror = place.impatient();
    let (hash, bytes) = blob(1000);
    at_last(async || mirror.put(hash, bytes.clone()).await).await;
    place.server.as_mut().unwrap().stop().await;
    for result in [mirror.get(hash, BYTES_MAX).await.map(drop), mirror.latest().await.map(drop)] {
        assert!(matches!(result, Err(MirrorError::Unavailable { .. })), "{result:?}");
    }
    place.server.as_mut().unwrap().start_again().await;
    assert!(at_last(async || mirror.get(hash, BYTES_MAX).await).await == bytes);
}

#[tokio::test]
async fn a_slow_server_is_slow_and_nothing_else() {
    let place = Place::server().await;
    let mirror = place.mirror();
    place.server_of().hurt(Fault::Delay(Duration::from_millis(100)));
    for length in [1000, LARGE] {
        let (hash, bytes) = blob(length);
        assert_eq!(mirror.put(hash, bytes.clone()).await, Ok(Put::Written));
        assert!(mirror.get(hash, BYTES_MAX).await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn a_body_that_is_cut_once_is_read_to_its_end() {
    let place = Place::server().await;
    let mirror = place.mirror();
    for length in [1000, LARGE] {
        let (hash, bytes) = blob(length);
        mirror.put(hash, bytes.clone()).await.unwrap();
        for fault in [Fault::Cut(0), Fault::Cut(500), Fault::Shorten(500), Fault::Shorten(0)] {
            place.server_of().hurt_next(fault, 1);
            assert!(mirror.get(hash, BYTES_MAX).await.unwrap() == bytes, "{fault:?} of {length}");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_always_cut_is_never_accepted() {
    let place = Place::server().await;
    let mirror = place.impatient();
    for length in [1000, LARGE] {
        let (hash, bytes) = blob(length);
        place.mirror().put(hash, bytes.clone()).await.unwrap();
        // Cutting to nothing lets no reader come to the end in pieces.
        for fault in [Fault::Cut(0), Fault::Shorten(500), Fault::Shorten(0)] {
            place.server_of().hurt(fault);
            let error = mirror.get(hash, BYTES_MAX).await.unwrap_err();
            assert!(matches!(error, MirrorError::Unavailable { .. }), "{fault:?} of {length}: {error}");
            place.server_of().heal();
            let healed = at_last(async || mirror.get(hash, BYTES_MAX).await).await;
            assert!(healed == bytes, "{fault:?} of {length}");
        }
    }
}

#[tokio::test]
async fn bytes_that_are_hurt_once_on_their_way_are_read_again() {
    let place = Place::server().await;
    let mirror = place.mirror();
    let (hash, bytes) = blob(LARGE);
    mirror.put(hash, bytes.clone()).await.unwrap();
    place.server_of().hurt_next(Fault::Flip, 1);
    assert!(mirror.get(hash, BYTES_MAX).await.unwrap() == bytes);
    place.server_of().hurt(Fault::Flip);
    let error = mirror.get(hash, BYTES_MAX).await.unwrap_err();
    assert!(matches!(error, MirrorError::Damaged { expected, .. } if expected == hash), "{error}");
}

#[tokio::test]
async fn an_upload_whose_answers_get_lost_is_there_all_the_same() {
    let place = Place::server().await;
    let mirror = place.mirror();
    for lost in 1..6 {
        for length in [1000 + lost, LARGE + lost] {
            let (hash, bytes) = blob(length);
            place.server_of().hurt_next(Fault::LoseAnswer, lost);
            mirror.put(hash, bytes.clone()).await.unwrap();
            place.server_of().heal();
            assert!(place.dig(&blob_name(&hash)).await.unwrap() == bytes, "{lost} lost of {length}");
        }
    }
}

#[tokio::test]
async fn an_upload_that_fails_halfway_leaves_no_object() {
    let place = Place::server().await;
    let mirror = place.impatient();
    let (hash, bytes) = blob(LARGE);
    place.server_of().hurt(Fault::Status(400));
    let error = mirror.put(hash, bytes.clone()).await.unwrap_err();
    assert!(matches!(error, MirrorError::Refused { .. }), "{error}");
    place.server_of().heal();
    let mirror = place.mirror();
    assert!(!mirror.has(hash).await.unwrap());
    // Dropped at some point of its course, which one is up to the machine.
    for millis in [0, 1, 5, 20, 50] {
        let _ = tokio::time::timeout(Duration::from_millis(millis), mirror.put(hash, bytes.clone())).await;
        let found = place.dig(&blob_name(&hash)).await;
        assert!(found.is_none_or(|found| found == bytes), "half a blob");
        assert_eq!(mirror.health().uploads_pending, 0);
    }
}

#[tokio::test]
async fn parts_of_an_upload_that_failed_are_given_up() {
    let place = Place::server().await;
    let mirror = place.mirror();
    let (hash, bytes) = blob(LARGE);
    place.server_of().hurt(Fault::RefuseWrite(400));
    let error = mirror.put(hash, bytes.clone()).await.unwrap_err();
    assert!(matches!(error, MirrorError::Refused { .. }), "{error}");
    assert_eq!(place.server_of().unfinished_uploads(), 0);
    place.server_of().heal();
    assert_eq!(mirror.put(hash, bytes).await, Ok(Put::Written));
    assert_eq!(place.server_of().unfinished_uploads(), 0);
}

#[tokio::test]
async fn a_conflict_with_a_writer_that_never_finishes_is_no_success() {
    let place = Place::server().await;
    let mirror = place.mirror();
    let (hash, bytes) = blob(1000);
    place.server_of().hurt_next(Fault::RefuseWrite(409), 1);
    assert_eq!(mirror.put(hash, bytes.clone()).await, Ok(Put::Written));
    assert!(place.dig(&blob_name(&hash)).await.unwrap() == bytes);
    let manifest = mirror.put_manifest(1, bytes).await.unwrap();
    let latest = Latest { run: [3; 32], epoch: 1, manifest };
    place.server_of().hurt_next(Fault::RefuseWrite(409), 1);
    assert_eq!(mirror.move_latest(None, &latest).await, Ok(Moved::Yes));
    assert_eq!(mirror.latest().await.unwrap().unwrap().0, latest);
}

#[tokio::test]
async fn a_store_without_room_says_so() {
    let place = Place::server().await;
    let mirror = place.impatient();
    let (hash, bytes) = blob(1000);
    place.server_of().hurt(Fault::Status(507));
    let error = mirror.put(hash, bytes).await.unwrap_err();
    assert!(matches!(error, MirrorError::Full { .. }), "{error}");
    assert!(error.to_string().contains("507"), "{error}");
}
