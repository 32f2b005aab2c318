//! What a manifest and its receipts claim, beside what the log and the neighbours' signatures say.

use crate::id::{Epoch, Hash, RunId};
use crate::limits::GOSSIP_BYTES_MAX;
use crate::moments;
use crate::receipts::{Hop, Receipt, Received, decode_receipts, merkle_root};
use crate::run_state::RunState;
use crate::samples::sample_set_hash;
use crate::validation::Subject;
use crate::wire::decode;
use crate::wire::message::Manifest;

/// What was committed to, if these bytes are the manifest of `subject`, whose epoch started from `base`.
pub(super) fn read_manifest(subject: &Subject, base: Hash, bytes: &[u8]) -> Option<Manifest> {
    let manifest: Manifest = decode(bytes, GOSSIP_BYTES_MAX).ok()?;
    let of = (manifest.stage, manifest.epoch, manifest.peer, manifest.base);
    (of == (subject.stage, subject.epoch, subject.peer, base)).then_some(manifest)
}

/// The receipts that a manifest commits to, if these bytes are they.
pub(super) fn read_receipts(manifest: &Manifest, bytes: &[u8]) -> Option<Vec<Receipt>> {
    decode_receipts(bytes).ok().filter(|receipts| agree(manifest, receipts))
}

/// Whether the receipts are those that the manifest commits to.
fn agree(manifest: &Manifest, receipts: &[Receipt]) -> bool {
    let samples: Vec<_> = receipts.iter().map(|receipt| receipt.sample).collect();
    let losses =
        receipts.iter().try_fold(0_i64, |sum, receipt| Some(sum.saturating_add(receipt.loss_micro?)));
    merkle_root(receipts) == manifest.receipt_root
        && usize::try_from(manifest.samples).is_ok_and(|count| count == receipts.len())
        && sample_set_hash(&samples) == manifest.sample_set
        && losses == manifest.loss_micro
}

/// Whether the epoch started from fresh moments, or from those with which the miner's submission to the one before ended; in the first
/// of a run that was resumed, from those that the spec names. Who submitted nothing to the one before, or whose plan is forgotten, is
/// not contradicted by anything.
pub(super) fn goes_on(state: &RunState, manifest: &Manifest) -> bool {
    let Manifest { peer, stage, epoch, moments, .. } = *manifest;
    if moments.is_none_or(|moments| moments == moments::fresh()) {
        return true;
    }
    let start = &state.spec().start;
    if epoch.0 <= start.epoch {
        let own = start.moments.iter().find(|saved| (saved.stage, saved.peer) == (stage, peer));
        return own.is_some_and(|saved| moments == Some(saved.hash));
    }
    let before = epoch.0.checked_sub(1).and_then(|before| state.stage(stage)?.merge(Epoch(before)));
    let submitted = before.and_then(|(_, plan)| plan.submitters.iter().find(|other| other.peer == peer));
    submitted.is_none_or(|submission| submission.moments_after == moments)
}

/// Whether a tensor was sent over this hop by whom its receipt names, who was on the path of the sample.
pub(super) fn was_received(run: RunId, state: &RunState, hop: &Hop, received: &Received) -> bool {
    let training = hop.sender().and_then(|stage| state.stage(stage)?.epoch(hop.epoch));
    // An epoch that had to begin again may have had other members before, who are not remembered; one that is forgotten, too.
    let known = training.filter(|training| training.attempt == 0);
    known.is_none_or(|training| training.deal.may_have_handled(hop.sample, received.from))
        && received.verifies(run, hop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Identity, LogIndex, PeerId, SampleId, StageIndex};
    use crate::run_state::{Closed, Plan, Training};
    use crate::samples::Deal;
    use crate::spec::RunSpec;
    use crate::wire::frame::Direction;
    use crate::wire::message::{SavedMoments, Submission};

    const STAGE: StageIndex = StageIndex(1);
    const EPOCH: Epoch = Epoch(4);
    const SAMPLES: std::ops::Range<u64> = 0..12;

    fn identity(i: u8) -> Identity {
        Identity::from_secret([i; 32])
    }

    fn peer(i: u8) -> PeerId {
        identity(i).peer()
    }

    /// The state after `STAGE` has merged `epoch`, dealt to peers 1, 2 and 3, of whom 1 handed it in and went on with these
    /// moments.
    fn merged(epoch: Epoch, attempt: u16, released: Option<PeerId>, moments_after: Option<Hash>) -> RunState {
        let mut state = RunState::new(Arc::new(RunSpec::default()), &[10; 3]);
        let mut members = [1, 2, 3].map(|i| (peer(i), 1));
        members.sort();
        let mut deal = Deal::new(Hash::default(), STAGE, epoch, SAMPLES, &members);
        released.map(|peer| deal.release(peer));
        let base = Hash::default();
        let training = Training { epoch, base, opened: LogIndex(0), deal, attempt, cut_off: false };
        let (samples, loss_micro) = (4, None);
        let submission = Submission { peer: peer(1), manifest: base, samples, loss_micro, moments_after };
        let plan = Plan { attempt: 0, seed: base, submitters: vec![submission], owners: Vec::new() };
        let stage = &mut state.stages_mut()[STAGE.as_usize()];
        stage.version = epoch.next();
        stage.closed.push_back(Closed { training, plan, partitions: Vec::new() });
        state
    }

    fn manifest(epoch: Epoch, moments: Option<Hash>) -> Manifest {
        let hash = Hash::default();
        Manifest {
            peer: peer(1),
            stage: STAGE,
            epoch,
            nonce: 0,
            base: hash,
            samples: 4,
            sample_set: hash,
            dealt: hash,
            receipt_root: hash,
            receipts: hash,
            loss_micro: None,
            moments,
            moments_after: None,
            partitions: Vec::new(),
        }
    }

    #[test]
    fn moments_are_fresh_or_those_that_the_submission_before_ended_with() {
        let (own, other) = (Some(Hash::of(b"own")), Some(Hash::of(b"other")));
        let state = merged(EPOCH, 0, None, own);
        let next = |moments| manifest(EPOCH.next(), moments);
        assert!(goes_on(&state, &next(own)));
        assert!(goes_on(&state, &next(Some(moments::fresh()))));
        assert!(goes_on(&state, &next(None)), "without inner steps there are none");
        assert!(!goes_on(&state, &next(other)));
        let idle = Manifest { peer: peer(2), ..next(other) };
        assert!(goes_on(&state, &idle), "it submitted nothing");
        assert!(goes_on(&state, &manifest(Epoch(9), other)), "what was before is forgotten");
        assert!(!goes_on(&state, &manifest(Epoch(0), other)), "nothing was before");
    }

    #[test]
    fn a_resumed_run_begins_with_the_moments_that_its_spec_names() {
        let (own, other) = (Hash::of(b"own"), Hash::of(b"other"));
        let mut spec = RunSpec::default();
        spec.start.epoch = EPOCH.0;
        spec.start.moments = vec![SavedMoments { stage: STAGE, peer: peer(1), hash: own }];
        let state = RunState::new(Arc::new(spec), &[10; 3]);
        let first = |moments| manifest(EPOCH, Some(moments));
        assert!(goes_on(&state, &first(own)) && goes_on(&state, &first(moments::fresh())));
        assert!(!goes_on(&state, &first(other)));
        assert!(!goes_on(&state, &Manifest { peer: peer(2), ..first(own) }), "they are another's");
        assert!(!goes_on(&state, &Manifest { stage: StageIndex(0), ..first(own) }), "of another stage");
    }

    #[test]
    fn a_tensor_was_received_from_whom_its_sample_was_dealt_to_or_taken_from() {
        let run = RunId([5; 32]);
        let state = merged(EPOCH, 0, None, None);
        let deal = |state: &RunState| {
            state.stage(STAGE).expect("it is there").deal(EPOCH).expect("it closed").clone()
        };
        let sample = SampleId(5);
        let owner = deal(&state).owner(sample).expect("it is dealt");
        let is_owner = |i: &u8| peer(*i) == owner;
        let i = (1..=3).find(is_owner).expect("one of three");
        let beside = (1..=3).find(|i| !is_owner(i)).expect("two of three");
        for (direction, stage) in [(Direction::Forward, StageIndex(2)), (Direction::Backward, StageIndex(0))]
        {
            let hop = Hop { direction, stage, epoch: EPOCH, sample };
            let received = |i: u8| {
                let (hash, nonce) = (Hash::of(b"tensor"), 1);
                Received { from: peer(i), hash, nonce, signature: hop.sign(&identity(i), run, nonce, hash) }
            };
            assert!(was_received(run, &state, &hop, &received(i)));
            assert!(!was_received(run, &state, &hop, &received(beside)), "its sample is another's");
            assert!(!was_received(run, &state, &hop, &received(9)), "it is no member");
            let forged = Received { from: peer(i), ..received(beside) };
            assert!(!was_received(run, &state, &hop, &forged));
            // Who was released may have sent it before.
            let after = merged(EPOCH, 0, Some(owner), None);
            assert!(was_received(run, &after, &hop, &received(i)));
            // Who was a member before the epoch opened again is not known any more.
            let again = merged(EPOCH, 1, None, None);
            assert!(was_received(run, &again, &hop, &received(9)));
            assert!(!was_received(run, &again, &hop, &forged));
        }
    }
}
