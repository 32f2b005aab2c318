//! Swarms that do not let everybody in.

use std::time::Duration;

use iota_protocol::join::{Credential, Invite, Puzzle, Refusal, Role};
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::{Ban, JoinPolicy, RunSpec, TrainingMode};
use iota_protocol::{Epoch, Identity, PeerId, RunId};

use crate::finish;
use crate::world::{Fault, Show, World};

/// Zero bits of the work of these runs: few tries, and not by chance.
const WORK_BITS: u8 = 12;

fn owner() -> Identity {
    Identity::from_secret([200; 32])
}

/// A run of one stage whose three miners are its candidates, so that all who come later have to show something.
fn world(seed: u64, change: impl FnOnce(&mut RunSpec)) -> World {
    World::with(seed, 1, 3, TrainingMode::Local, 12, change)
}

fn by_invite(spec: &mut RunSpec) {
    (spec.join.policy, spec.join.owner) = (JoinPolicy::Invite, Some(owner().peer()));
}

/// How often `peer` was given a place.
fn places(world: &World, peer: PeerId) -> usize {
    let given = |event: &&StateEvent| matches!(event, StateEvent::Admitted(of, _) if *of == peer);
    world.events().iter().filter(given).count()
}

/// Peers that have heard of peer `i`, itself left out.
fn heard_of(world: &World, i: usize) -> usize {
    let peer = world.peer(i).id();
    (0..world.len()).filter(|other| *other != i && world.peer(*other).book().record(peer).is_some()).count()
}

/// Whether some merge that is remembered has a contribution of peer `i`.
fn contributed(world: &World, i: usize) -> bool {
    let peer = world.peer(i).id();
    let mut closed = world.best().state().stages().iter().flat_map(|stage| &stage.closed);
    closed.any(|closed| closed.plan.submitters.iter().any(|submission| submission.peer == peer))
}

fn invite(run: RunId, peer: PeerId) -> Option<Credential> {
    Some(Credential::Invite(Invite::sign(&owner(), run, peer, Role::Miner, None)))
}

#[test]
fn a_stranger_gets_no_place_where_invites_are_asked_for_and_an_invited_peer_does() {
    for seed in 0..4 {
        let mut world = world(seed, by_invite);
        let shows: [Show; 4] = [
            |_, _| None,
            |run, peer| {
                Some(Credential::Invite(Invite::sign(
                    &Identity::from_secret([7; 32]),
                    run,
                    peer,
                    Role::Miner,
                    None,
                )))
            },
            |run, peer| Some(Credential::Invite(Invite::sign(&owner(), run, peer, Role::Validator, None))),
            invite,
        ];
        for (i, show) in (0..).zip(shows) {
            world.schedule(Duration::from_millis(2000 + 100 * i), Fault::JoinWith(show));
        }
        let world = finish(world);
        let peer = |i: usize| world.peer(i).id();
        assert_eq!([3, 4, 5, 6].map(|i| places(&world, peer(i))), [0, 0, 0, 1], "seed {seed}");
        let owner = owner().peer();
        let refused = |i: usize| world.refused(i).cloned();
        assert_eq!(refused(3), Some(Refusal::Uninvited { owner, peer: peer(3) }));
        assert_eq!(refused(4), Some(Refusal::Forged { owner, peer: peer(4) }));
        assert_eq!(refused(5), Some(Refusal::Role { wanted: Role::Miner, invited: Role::Validator }));
        assert_eq!(refused(6), None);
        assert_eq!([heard_of(&world, 3), heard_of(&world, 4)], [0, 0], "strangers fill no book");
        assert!(contributed(&world, 6) && !contributed(&world, 3), "seed {seed}");
    }
}

#[test]
fn an_invite_that_has_run_out_gets_no_place_and_takes_none() {
    let mut world = world(5, by_invite);
    // The first comes in time and stays to the end, far beyond the epoch of its invite; the second shows the same too late.
    let show: Show =
        |run, peer| Some(Credential::Invite(Invite::sign(&owner(), run, peer, Role::Miner, Some(Epoch(4)))));
    world.schedule(Duration::from_millis(500), Fault::JoinWith(show));
    assert!(world.run_for(Duration::from_secs(60), |world| {
        world.best().state().stages().iter().all(|stage| stage.version >= Epoch(5))
    }));
    world.schedule(Duration::ZERO, Fault::JoinWith(show));
    let world = finish(world);
    let [early, late] = [3, 4].map(|i| world.peer(i).id());
    assert_eq!((places(&world, early), places(&world, late)), (1, 0));
    assert!(contributed(&world, 3), "its place is not taken when its invite runs out");
    assert!(matches!(world.refused(4), Some(Refusal::Expired { until: Epoch(4), .. })));
}

#[test]
fn work_of_the_peer_itself_is_asked_for_if_the_spec_says_so() {
    let mut world = world(6, |spec| spec.join.work_bits = WORK_BITS);
    let shows: [Show; 3] = [
        |_, _| None,
        |run, _| Puzzle::new(run, PeerId([1; 32])).search(WORK_BITS, 0..).map(Credential::Work),
        |run, peer| Puzzle::new(run, peer).search(WORK_BITS, 0..).map(Credential::Work),
    ];
    for (i, show) in (0..).zip(shows) {
        world.schedule(Duration::from_millis(2000 + 100 * i), Fault::JoinWith(show));
    }
    let world = finish(world);
    assert_eq!([3, 4, 5].map(|i| places(&world, world.peer(i).id())), [0, 0, 1]);
    let got = |i: usize| match world.refused(i) {
        Some(Refusal::Work { expected: WORK_BITS, got }) => Some(*got),
        _ => None,
    };
    assert_eq!(got(3), Some(0));
    assert!(got(4).is_some_and(|got| got < WORK_BITS), "the work of another peer");
    assert!(contributed(&world, 5));
}

#[test]
fn a_banned_peer_is_told_why_and_gets_no_place() {
    let banned = Identity::from_secret([4; 32]).peer();
    let reason = "contributed noise in the last run".to_owned();
    let mut world = world(7, |spec| spec.join.ban = vec![Ban { peer: banned, reason: reason.clone() }]);
    world.schedule(Duration::from_secs(2), Fault::Join);
    world.schedule(Duration::from_secs(2), Fault::Join);
    let world = finish(world);
    assert_eq!(world.peer(3).id(), banned);
    assert_eq!((places(&world, banned), places(&world, world.peer(4).id())), (0, 1));
    assert_eq!(world.refused(3), Some(&Refusal::Banned { peer: banned, reason }));
    assert_eq!(heard_of(&world, 3), 0);
}
