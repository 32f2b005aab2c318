//! The pointer: moved by one at a time, and only to what is there.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use iota_node::blobs::Hash32;
use iota_node::mirror::{Latest, Mirror, MirrorError, MirrorUrl, Moved};

use crate::server::Fault;
use crate::support::{Place, hash, open, places};

/// Enough rounds that racers meet in every order.
const ROUNDS: u32 = 20;

/// Writes a manifest and returns the pointer to it.
async fn checkpoint(mirror: &Mirror, epoch: u32, text: &str) -> Latest {
    let manifest = mirror.put_manifest(epoch, Bytes::from(text.to_owned())).await.unwrap();
    Latest { run: [3; 32], epoch, manifest }
}

#[tokio::test]
async fn the_pointer_moves_from_where_it_was_read() {
    for place in places().await {
        let mirror = place.mirror();
        assert_eq!(mirror.latest().await, Ok(None), "{}", place.name);
        let (one, two) = (checkpoint(&mirror, 1, "one").await, checkpoint(&mirror, 2, "two").await);
        assert_eq!(mirror.move_latest(None, &one).await, Ok(Moved::Yes), "{}", place.name);
        let (found, at_one) = mirror.latest().await.unwrap().unwrap();
        assert_eq!(found, one, "{}", place.name);
        assert_eq!(mirror.move_latest(Some(at_one.clone()), &two).await, Ok(Moved::Yes), "{}", place.name);
        let three = checkpoint(&mirror, 3, "three").await;
        assert_eq!(mirror.move_latest(Some(at_one), &three).await, Ok(Moved::Lost), "{}", place.name);
        assert_eq!(mirror.move_latest(None, &three).await, Ok(Moved::Lost), "{}", place.name);
        assert_eq!(mirror.latest().await.unwrap().unwrap().0, two, "{}", place.name);
    }
}

#[tokio::test]
async fn of_two_that_move_the_pointer_at_once_one_wins() {
    for place in places().await {
        let (left, right) = (place.mirror(), place.mirror());
        for round in 0..ROUNDS {
            let from = left.latest().await.unwrap().map(|(_, version)| version);
            let to_left = checkpoint(&left, round, "left").await;
            let to_right = checkpoint(&right, round, "right").await;
            let outcomes =
                tokio::join!(left.move_latest(from.clone(), &to_left), right.move_latest(from, &to_right));
            let winner = match outcomes {
                (Ok(Moved::Yes), Ok(Moved::Lost)) => to_left,
                (Ok(Moved::Lost), Ok(Moved::Yes)) => to_right,
                other => panic!("round {round} in the {}: {other:?}", place.name),
            };
            assert_eq!(left.latest().await.unwrap().unwrap().0, winner, "{}", place.name);
        }
    }
}

#[tokio::test]
async fn many_that_count_up_the_pointer_lose_no_step() {
    for place in places().await {
        let count_up = |mirror: Mirror| async move {
            for _ in 0..ROUNDS / 4 {
                loop {
                    let (epoch, from) = match mirror.latest().await.unwrap() {
                        Some((latest, version)) => (latest.epoch + 1, Some(version)),
                        None => (1, None),
                    };
                    let to = checkpoint(&mirror, epoch, "same").await;
                    // Two that move to the same place have both moved; so each says what no other says.
                    let mine = Latest { run: unused(), ..to };
                    if mirror.move_latest(from, &mine).await.unwrap() == Moved::Yes {
                        break;
                    }
                }
            }
        };
        futures::future::join_all((0..4).map(|_| count_up(place.mirror()))).await;
        let (latest, _) = place.mirror().latest().await.unwrap().unwrap();
        assert_eq!(latest.epoch, 4 * (ROUNDS / 4), "{}", place.name);
    }
}

/// A hash that no other call returns.
fn unused() -> Hash32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    hash(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes())
}

#[tokio::test]
async fn those_that_move_to_the_same_place_have_all_moved() {
    for place in places().await {
        let (left, right) = (place.mirror(), place.mirror());
        let to = checkpoint(&left, 1, "one").await;
        let outcomes = tokio::join!(left.move_latest(None, &to), right.move_latest(None, &to));
        assert_eq!(outcomes, (Ok(Moved::Yes), Ok(Moved::Yes)), "{}", place.name);
    }
}

#[tokio::test]
async fn the_pointer_does_not_move_to_what_is_not_there() {
    for place in places().await {
        let mirror = place.mirror();
        let to = Latest { run: [3; 32], epoch: 1, manifest: [4; 32] };
        let error = mirror.move_latest(None, &to).await.unwrap_err();
        assert!(matches!(error, MirrorError::Missing { .. }), "{}: {error}", place.name);
        assert_eq!(mirror.latest().await, Ok(None), "{}", place.name);
    }
}

#[tokio::test]
async fn a_pointer_of_another_format_is_said_to_be_one() {
    for place in places().await {
        place.plant("latest", b"{\"format\":2}").await;
        let error = place.mirror().latest().await.unwrap_err();
        assert!(matches!(error, MirrorError::Unreadable { .. }), "{}: {error}", place.name);
    }
}

#[tokio::test]
async fn a_pointer_that_is_too_long_is_not_read() {
    for place in places().await {
        place.plant("latest", &[b' '; 5000]).await;
        let error = place.mirror().latest().await.unwrap_err();
        assert!(matches!(error, MirrorError::TooLarge { got: 5000, .. }), "{}: {error}", place.name);
    }
}

#[tokio::test]
async fn a_move_whose_answer_got_lost_is_not_taken_for_anothers() {
    let place = Place::server().await;
    let mirror = place.mirror();
    let (one, two) = (checkpoint(&mirror, 1, "one").await, checkpoint(&mirror, 2, "two").await);
    // The first request is the one that looks for the manifest; its repetition, the move, and so on are hurt in turn.
    place.server_of().hurt_next(Fault::LoseAnswer, 2);
    assert_eq!(mirror.move_latest(None, &one).await, Ok(Moved::Yes));
    let (_, version) = mirror.latest().await.unwrap().unwrap();
    place.server_of().hurt_next(Fault::LoseAnswer, 2);
    assert_eq!(mirror.move_latest(Some(version), &two).await, Ok(Moved::Yes));
    assert_eq!(mirror.latest().await.unwrap().unwrap().0, two);
}

#[tokio::test]
async fn mirrors_of_other_prefixes_do_not_meet() {
    let place = Place::server().await;
    let mut elsewhere = place.config.clone();
    elsewhere.url = MirrorUrl::S3 { bucket: crate::server::BUCKET.to_owned(), prefix: String::new() };
    let (here, there) = (place.mirror(), open(elsewhere));
    let one = checkpoint(&here, 1, "one").await;
    here.move_latest(None, &one).await.unwrap();
    assert_eq!(there.latest().await, Ok(None));
    assert_eq!(there.manifests().await, Ok(Vec::new()));
}
