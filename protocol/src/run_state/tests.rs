use super::*;
use crate::spec::{Ban, Candidate, JoinPolicy, JoinSpec, KickPolicy, OrchestratorSpec, ScoresSpec};

const A: PeerId = PeerId([1; 32]);
const B: PeerId = PeerId([2; 32]);
const S: StageIndex = StageIndex(0);

struct Fold(RunState);

impl Fold {
    fn new() -> Self {
        let mut spec = RunSpec {
            orchestrator: OrchestratorSpec { candidates: vec![Candidate { peer: A, priority: 0 }] },
            ..RunSpec::default()
        };
        spec.pipeline.stages = 1;
        spec.training.epochs = 2;
        Self(RunState::new(Arc::new(spec), &[1000]))
    }

    fn apply(&mut self, decision: Decision) -> Vec<StateEvent> {
        let index = LogIndex(self.0.applied());
        self.0.apply(index, Hash::of(&index.0.to_le_bytes()), Some(&Entry { proposer: A, decision }))
    }

    fn opened() -> Self {
        let mut fold = Self::new();
        fold.apply(Decision::Admit { peer: A, stage: S });
        fold.apply(Decision::Admit { peer: B, stage: S });
        assert_eq!(fold.apply(open(0)), [StateEvent::EpochOpened(S, Epoch(0), 2)]);
        fold
    }
}

fn open(epoch: u32) -> Decision {
    Decision::OpenEpoch {
        stage: S,
        epoch: Epoch(epoch),
        base: Hash::default(),
        members: vec![(A, 1), (B, 1)],
    }
}

fn plan(attempt: u16, peers: &[PeerId]) -> Decision {
    let submission = |&peer: &PeerId| Submission {
        peer,
        manifest: Hash::default(),
        samples: 32,
        loss_micro: Some(32_000_000),
        moments_after: None,
    };
    Decision::MergePlan {
        stage: S,
        epoch: Epoch(0),
        attempt,
        submitters: peers.iter().map(submission).collect(),
    }
}

fn outcome(fold: &Fold, attempt: u16) -> Decision {
    let partitions = vec![Hash::default(); fold.0.stages()[0].partitions];
    Decision::MergeOutcome { stage: S, epoch: Epoch(0), attempt, partitions, outliers: Vec::new() }
}

#[test]
fn an_epoch_runs_from_admission_to_the_next_version() {
    let mut fold = Fold::opened();
    assert_eq!(fold.apply(plan(0, &[A, B])), [StateEvent::Planned(S, Epoch(0), 0, 2)]);
    let close = outcome(&fold, 0);
    assert_eq!(fold.apply(close), [StateEvent::Merged(S, Epoch(0), 64, Some(1.0))]);
    assert_eq!(fold.0.stages()[0].version, Epoch(1));
    assert!(fold.0.stages()[0].closed_epoch(Epoch(0)).is_some());
}

#[test]
fn decisions_that_do_not_fit_are_void() {
    let mut fold = Fold::opened();
    let close = outcome(&fold, 0);
    assert_eq!(fold.apply(close), [], "outcome without a plan");
    assert_eq!(fold.apply(open(0)), [], "opened twice");
    assert_eq!(fold.apply(plan(1, &[A])), [], "wrong attempt");
    assert_eq!(fold.apply(plan(0, &[B, A])), [], "not in peer order");
    assert_eq!(fold.apply(Decision::Admit { peer: A, stage: S }), [], "admitted twice");
    assert_eq!(fold.apply(Decision::Finish), [], "not done");
    let index = LogIndex(fold.0.applied());
    assert_eq!(fold.0.apply(index, Hash::default(), None), [], "undecodable");
}

#[test]
fn the_wire_version_goes_up_by_one_at_a_time_and_never_down() {
    let mut fold = Fold::opened();
    for version in [0, 1, 3, u16::MAX] {
        assert_eq!(fold.apply(Decision::Upgrade { version }), [], "{version}");
    }
    assert_eq!(fold.0.wire_version(), 1);
    for version in [2, 3] {
        assert_eq!(fold.apply(Decision::Upgrade { version }), [StateEvent::Upgraded(version)]);
        assert_eq!(fold.apply(Decision::Upgrade { version }), [], "twice");
    }
    assert_eq!(fold.0.wire_version(), 3);
    assert!(fold.0.stages()[0].training().is_some(), "training goes on");
}

#[test]
fn an_entry_of_a_later_version_is_void_until_that_version_is_decided() {
    let index = |fold: &Fold| LogIndex(fold.0.applied());
    // One program can decode the entry, the other cannot.
    let (mut knows, mut does_not) = (Fold::opened(), Fold::opened());
    assert_eq!(knows.apply(Decision::Second), []);
    let at = index(&does_not);
    assert_eq!(does_not.0.apply(at, Hash::of(&at.0.to_le_bytes()), None), []);
    assert_eq!(format!("{:?}", knows.0), format!("{:?}", does_not.0), "both hold the same state");

    assert_eq!(knows.apply(Decision::Upgrade { version: 2 }), [StateEvent::Upgraded(2)]);
    assert_eq!(knows.apply(Decision::Second), [StateEvent::Finished], "decided after the upgrade");
}

#[test]
fn an_evicted_members_samples_move_and_the_last_eviction_ends_the_epoch() {
    let mut fold = Fold::opened();
    fold.apply(Decision::Evict { peer: A, reason: EvictReason::Silent, evidence: None });
    let deal = &fold.0.stages()[0].training().expect("training goes on").deal;
    assert_eq!(deal.samples_of(B).len(), 64);
    fold.apply(Decision::Evict { peer: B, reason: EvictReason::Silent, evidence: None });
    assert!(fold.0.stages()[0].training().is_none());
    assert_eq!(fold.0.eviction(B), Some(EvictReason::Silent));
    fold.apply(Decision::Admit { peer: A, stage: S });
    let again =
        Decision::OpenEpoch { stage: S, epoch: Epoch(0), base: Hash::default(), members: vec![(A, 1)] };
    assert_eq!(fold.apply(again), [StateEvent::EpochOpened(S, Epoch(0), 1)]);
}

#[test]
fn a_miner_moves_between_epochs_and_never_leaves_a_stage_empty() {
    let mut spec = RunSpec {
        orchestrator: OrchestratorSpec { candidates: vec![Candidate { peer: A, priority: 0 }] },
        ..RunSpec::default()
    };
    spec.pipeline.stages = 2;
    let mut fold = Fold(RunState::new(Arc::new(spec), &[1000, 1000]));
    let other = StageIndex(1);
    let relocate = |peer| Decision::Move { peer, stage: other };
    assert_eq!(fold.apply(relocate(A)), [], "no member");
    fold.apply(Decision::Admit { peer: A, stage: S });
    assert_eq!(fold.apply(relocate(A)), [], "the last of its stage");
    fold.apply(Decision::Admit { peer: B, stage: S });
    assert_eq!(fold.apply(Decision::Move { peer: A, stage: S }), [], "it is there");
    fold.apply(open(0));
    assert_eq!(fold.apply(relocate(A)), [], "it takes part in an epoch");
    fold.apply(Decision::Release { stage: S, epoch: Epoch(0), peer: A });
    assert_eq!(fold.apply(relocate(A)), [StateEvent::Moved(A, other)]);
    assert_eq!((fold.0.stage_of(A), fold.0.stage_of(B)), (Some(other), Some(S)));
}

#[test]
fn a_low_score_costs_the_place_once_it_is_due_and_bars_until_the_work_is_forgotten() {
    let mut fold = Fold::new();
    let mut spec = fold.0.spec().clone();
    spec.training.epochs = 4;
    spec.scores =
        ScoresSpec { kick: KickPolicy::Threshold, kick_grace: 1, window: 2, ..ScoresSpec::default() };
    fold.0 = RunState::new(Arc::new(spec), &[1000]);
    let admit = |peer| Decision::Admit { peer, stage: S };
    let kick = |peer| Decision::Evict { peer, reason: EvictReason::LowScore, evidence: None };
    // One epoch, of which A does all that it was dealt.
    let train = |fold: &mut Fold, number: u32, members: &[PeerId]| {
        let (epoch, members) = (Epoch(number), members.iter().map(|peer| (*peer, 1)).collect());
        fold.apply(Decision::OpenEpoch { stage: S, epoch, base: Hash::default(), members });
        let submitters = vec![Submission {
            peer: A,
            manifest: Hash::default(),
            samples: 32,
            loss_micro: None,
            moments_after: None,
        }];
        fold.apply(Decision::MergePlan { stage: S, epoch, attempt: 0, submitters });
        let partitions = vec![Hash::default(); fold.0.stages()[0].partitions];
        fold.apply(Decision::MergeOutcome { stage: S, epoch, attempt: 0, partitions, outliers: Vec::new() });
        assert_eq!(fold.0.stages()[0].version, epoch.next());
    };
    fold.apply(admit(A));
    fold.apply(admit(B));
    assert_eq!(fold.apply(kick(B)), [], "nothing was done yet");
    train(&mut fold, 0, &[A, B]);
    assert_eq!(fold.0.to_kick(S), Some(B));
    assert_eq!(fold.apply(kick(A)), [], "another one is due");
    assert_eq!(fold.apply(kick(B)), [StateEvent::Evicted(B, EvictReason::LowScore)]);
    assert_eq!(fold.apply(kick(B)), [], "twice");
    train(&mut fold, 1, &[A]);
    assert_eq!((fold.apply(admit(B)), fold.0.is_barred(B)), (vec![], true));
    train(&mut fold, 2, &[A]);
    assert_eq!(fold.apply(admit(B)), [StateEvent::Admitted(B, S)], "epoch 0 is out of the window");
}

#[test]
fn an_epoch_opens_again_when_all_its_members_are_released() {
    let mut fold = Fold::opened();
    let release = |peer| Decision::Release { stage: S, epoch: Epoch(0), peer };
    assert_eq!(fold.apply(release(A)), [StateEvent::Released(S, Epoch(0), A)]);
    assert_eq!(fold.apply(release(A)), [], "twice");
    assert_eq!(fold.apply(release(B)), [StateEvent::Released(S, Epoch(0), B)]);
    assert!(fold.0.stages()[0].training().is_none());
    assert_eq!(fold.apply(open(0)), [StateEvent::EpochOpened(S, Epoch(0), 2)]);
}

#[test]
fn an_epoch_is_passed_over_only_if_it_was_cut_off_and_is_settled_beside() {
    let mut spec = RunSpec {
        orchestrator: OrchestratorSpec { candidates: vec![Candidate { peer: A, priority: 0 }] },
        ..RunSpec::default()
    };
    spec.pipeline.stages = 2;
    let mut fold = Fold(RunState::new(Arc::new(spec), &[1000, 1000]));
    let below = StageIndex(1);
    fold.apply(Decision::Admit { peer: A, stage: S });
    fold.apply(Decision::Admit { peer: B, stage: below });
    fold.apply(Decision::OpenEpoch {
        stage: S,
        epoch: Epoch(0),
        base: Hash::default(),
        members: vec![(A, 1)],
    });
    let opened =
        Decision::OpenEpoch { stage: below, epoch: Epoch(0), base: Hash::of(b"base"), members: vec![(B, 1)] };
    fold.apply(opened);
    let skip = Decision::Skip { stage: below, epoch: Epoch(0) };
    fold.apply(Decision::Cutoff { stage: below, epoch: Epoch(0) });
    assert_eq!(fold.apply(skip.clone()), [], "the stage above may still send what it takes");
    fold.apply(plan(0, &[A]));
    let close = outcome(&fold, 0);
    assert_ne!(fold.apply(close), []);
    assert_eq!(fold.apply(skip.clone()), [StateEvent::Skipped(below, Epoch(0))]);
    let stage = &fold.0.stages()[1];
    assert_eq!((stage.version, stage.training().is_none()), (Epoch(1), true));
    let closed = stage.closed_epoch(Epoch(0)).expect("remembered");
    assert_eq!((closed.training.base, closed.partitions.len()), (Hash::of(b"base"), 0));
    assert_eq!(fold.apply(skip), [], "twice");
}

#[test]
fn an_aborted_plan_returns_to_training_without_the_lost() {
    let mut fold = Fold::opened();
    fold.apply(plan(0, &[A, B]));
    let abort = Decision::MergeAbort { stage: S, epoch: Epoch(0), attempt: 0, lost: vec![A] };
    assert_eq!(fold.apply(abort), [StateEvent::Aborted(S, Epoch(0), vec![A])]);
    assert_eq!(fold.apply(plan(0, &[B])), [], "the old attempt is over");
    assert_eq!(fold.apply(plan(1, &[A, B])), [], "the lost are released");
    assert_eq!(fold.apply(plan(1, &[B])), [StateEvent::Planned(S, Epoch(0), 1, 1)]);
}

#[test]
fn what_was_said_of_a_plan_does_not_hold_for_the_plan_of_an_epoch_that_opened_again() {
    let mut fold = Fold::opened();
    fold.apply(plan(0, &[A, B]));
    let (stale_outcome, stale_plan) = (outcome(&fold, 0), plan(1, &[B]));
    fold.apply(Decision::MergeAbort { stage: S, epoch: Epoch(0), attempt: 0, lost: vec![A] });
    fold.apply(Decision::Release { stage: S, epoch: Epoch(0), peer: B });
    assert!(matches!(fold.0.stages()[0].phase, Phase::Waiting), "nobody is left");
    assert_eq!(fold.apply(open(0)), [StateEvent::EpochOpened(S, Epoch(0), 2)]);
    assert_eq!(fold.apply(stale_plan), [], "proposed before it emptied");
    assert_eq!(fold.apply(plan(2, &[A, B])), [StateEvent::Planned(S, Epoch(0), 2, 2)]);
    assert_eq!(fold.apply(stale_outcome), [], "of other contributions");
    let close = outcome(&fold, 2);
    assert!(matches!(fold.apply(close)[..], [StateEvent::Merged(..)]));
}

mod checks {
    use super::*;
    use crate::id::{Identity, SampleId};
    use crate::limits::{BLOB_EPOCHS_KEPT, DISPUTED_EPOCHS_KEPT};
    use crate::validation::{Challenge, DismissReason, Fault, Finding, Subject, Verdict};

    /// The secrets of the validators.
    const SECRETS: [u8; 3] = [11, 12, 13];

    fn identity(secret: u8) -> Identity {
        Identity::from_secret([secret; 32])
    }

    /// A merge of A and B has closed, all contributions are checked, and these validate.
    fn closed(secrets: &[u8]) -> Fold {
        let mut fold = planned(secrets, 1.0, &[A, B]);
        let close = outcome(&fold, 0);
        fold.apply(close);
        fold
    }

    /// A merge of these miners is under way, this share of contributions will be checked, and these validate.
    fn planned(secrets: &[u8], replay_share: f64, miners: &[PeerId]) -> Fold {
        let mut fold = Fold::new();
        let mut spec = fold.0.spec().clone();
        (spec.validation.replay_share, spec.validation.repeat_share) = (replay_share, 0.0);
        spec.training.epochs = 8;
        fold.0 = RunState::new(Arc::new(spec), &[1000]);
        for secret in secrets {
            let peer = identity(*secret).peer();
            assert_eq!(fold.apply(Decision::Enlist { peer }), [StateEvent::Enlisted(peer)]);
            assert_eq!(fold.apply(Decision::Enlist { peer }), [], "it is one already");
        }
        for peer in miners {
            fold.apply(Decision::Admit { peer: *peer, stage: S });
        }
        let Decision::OpenEpoch { stage, epoch, base, .. } = open(0) else { panic!("an epoch") };
        let members = miners.iter().map(|peer| (*peer, 1)).collect();
        fold.apply(Decision::OpenEpoch { stage, epoch, base, members });
        fold.apply(plan(0, miners));
        fold
    }

    fn challenge(fold: &Fold, peer: PeerId) -> &Challenge {
        fold.0.challenges().iter().find(|challenge| challenge.subject.peer == peer).expect("it is open")
    }

    /// The verdict of whoever is asked next about `peer`.
    fn verdict(fold: &Fold, peer: PeerId, finding: Finding) -> Verdict {
        let challenge = challenge(fold, peer);
        let asked = challenge.awaited().next().expect("somebody is asked");
        let signer = SECRETS.map(identity).into_iter().find(|signer| signer.peer() == asked);
        Verdict::sign(&signer.expect("a validator"), fold.0.spec().run_id(), challenge.subject, finding)
    }

    fn judge(fold: &mut Fold, peer: PeerId, finding: Finding) -> Vec<StateEvent> {
        let verdict = verdict(fold, peer, finding);
        fold.apply(Decision::Judge(verdict))
    }

    const DIFFERS: Finding = Finding::Differs(Fault::Contribution);

    #[test]
    fn every_submission_is_checked_by_somebody() {
        let fold = closed(&SECRETS);
        let subjects: Vec<Subject> = fold.0.challenges().iter().map(|challenge| challenge.subject).collect();
        assert_eq!(subjects, [subject(A), subject(B)]);
        assert!(fold.0.challenges().iter().all(|challenge| challenge.awaited().count() == 1));
        assert!(closed(&[]).0.challenges().is_empty(), "nobody validates");
    }

    #[test]
    fn work_that_matches_passes_and_leaves_nothing() {
        let mut fold = closed(&SECRETS);
        let subject = challenge(&fold, A).subject;
        let events = judge(&mut fold, A, Finding::Matches);
        assert_eq!(events.last(), Some(&StateEvent::Checked(subject, CheckOutcome::Passed)));
        assert!(fold.0.challenges().iter().all(|challenge| challenge.subject.peer != A));
        assert_eq!(fold.0.stage_of(A), Some(S));
    }

    #[test]
    fn a_quorum_that_finds_a_fault_takes_the_miners_place_for_good() {
        let mut fold = closed(&SECRETS);
        let subject = challenge(&fold, A).subject;
        assert_eq!(judge(&mut fold, A, DIFFERS).len(), 1, "one is not enough");
        let events = judge(&mut fold, A, DIFFERS);
        let expected = [
            StateEvent::Checked(subject, CheckOutcome::Failed(Fault::Contribution)),
            StateEvent::Evicted(A, EvictReason::FailedReplay),
        ];
        assert_eq!(events.get(1..), Some(&expected[..]));
        assert_eq!(fold.apply(Decision::Admit { peer: A, stage: S }), [], "it gets no place again");
        assert_eq!(fold.0.stage_of(A), None);
    }

    #[test]
    fn who_has_left_before_it_is_found_out_does_not_come_back() {
        let mut fold = closed(&SECRETS);
        fold.apply(Decision::Evict { peer: A, reason: EvictReason::Left, evidence: None });
        judge(&mut fold, A, DIFFERS);
        judge(&mut fold, A, DIFFERS);
        assert_eq!(fold.0.eviction(A), Some(EvictReason::FailedReplay));
        assert_eq!(fold.apply(Decision::Admit { peer: A, stage: S }), []);
    }

    #[test]
    fn a_validator_that_a_majority_contradicts_is_none_any_more() {
        let mut fold = closed(&SECRETS);
        let liar = verdict(&fold, A, DIFFERS).validator;
        judge(&mut fold, A, DIFFERS);
        judge(&mut fold, A, Finding::Matches);
        let events = judge(&mut fold, A, Finding::Matches);
        assert_eq!(events.last(), Some(&StateEvent::Dismissed(liar, DismissReason::WrongVerdict)));
        assert_eq!(fold.0.stage_of(A), Some(S));
        assert_eq!(fold.apply(Decision::Enlist { peer: liar }), [], "it is not asked again");
        assert_eq!(fold.0.dismissal(liar), Some(DismissReason::WrongVerdict));
    }

    #[test]
    fn verdicts_of_others_and_forged_ones_are_void() {
        let mut fold = closed(&SECRETS);
        let right = verdict(&fold, A, DIFFERS);
        let run = fold.0.spec().run_id();
        let asked = right.validator;
        let other = SECRETS.map(identity).into_iter().find(|other| other.peer() != asked).expect("three");
        let unasked = Verdict::sign(&other, run, right.subject, DIFFERS);
        let stranger = Verdict::sign(&identity(99), run, right.subject, DIFFERS);
        let forged = Verdict { validator: asked, ..stranger.clone() };
        let turned = Verdict { finding: Finding::Matches, ..right.clone() };
        let elsewhere = Subject { epoch: Epoch(1), ..right.subject };
        let elsewhere = Verdict { subject: elsewhere, ..right.clone() };
        for void in [unasked, stranger, forged, turned, elsewhere] {
            assert_eq!(fold.apply(Decision::Judge(void.clone())), [], "{void:?}");
        }
        assert_eq!(fold.apply(Decision::Judge(right.clone())).len(), 1);
        assert_eq!(fold.apply(Decision::Judge(right)), [], "said twice");
    }

    #[test]
    fn who_goes_silent_is_replaced_and_may_come_back() {
        let mut fold = closed(&SECRETS);
        let peer = verdict(&fold, A, DIFFERS).validator;
        let silent = Decision::Dismiss { peer, reason: DismissReason::Silent, evidence: None };
        assert_eq!(fold.apply(silent.clone()), [StateEvent::Dismissed(peer, DismissReason::Silent)]);
        assert_eq!(fold.apply(silent), [], "it is none any more");
        assert_ne!(verdict(&fold, A, DIFFERS).validator, peer);
        assert_eq!(fold.apply(Decision::Enlist { peer }), [StateEvent::Enlisted(peer)]);
    }

    #[test]
    fn checks_end_with_what_they_are_made_from() {
        let mut fold = closed(&SECRETS);
        fold.0.checks.expire(S, Epoch(BLOB_EPOCHS_KEPT));
        assert_eq!(fold.0.challenges().len(), 2);
        fold.0.checks.expire(StageIndex(1), Epoch(BLOB_EPOCHS_KEPT + 1));
        assert_eq!(fold.0.challenges().len(), 2, "of another stage");
        fold.0.checks.expire(S, Epoch(BLOB_EPOCHS_KEPT + 1));
        assert!(fold.0.challenges().is_empty());
        let mut fold = closed(&SECRETS);
        fold.apply(Decision::Undo { stage: S, epoch: Epoch(0) });
        assert!(fold.0.challenges().is_empty(), "an undone merge harms nobody");
    }

    #[test]
    fn an_epoch_in_dispute_is_kept_for_longer_but_not_for_ever() {
        let mut fold = closed(&SECRETS);
        // The same checks in a run of three stages, all at this version.
        let kept = |fold: &Fold, version: u32| {
            let mut spec = fold.0.spec().clone();
            spec.pipeline.stages = 3;
            let mut state = RunState::new(Arc::new(spec), &[1000; 3]);
            state.stages_mut().iter_mut().for_each(|stage| stage.version = Epoch(version));
            state.checks = fold.0.checks.clone();
            let kept = [0, 1, 2].map(|stage| state.keeps(StageIndex(stage), Epoch(0)));
            let others = state.keeps(S, Epoch(1));
            state.checks.expire(S, Epoch(version));
            (state.challenges().len(), kept, others)
        };
        let late = BLOB_EPOCHS_KEPT + 2;
        assert_eq!(kept(&fold, BLOB_EPOCHS_KEPT), (2, [true; 3], true));
        assert_eq!(kept(&fold, late), (0, [false; 3], false));
        judge(&mut fold, A, DIFFERS);
        let disputed = (1, [true, true, false], false);
        assert_eq!(kept(&fold, late), disputed, "with the tensors of the neighbours, and nothing else");
        assert_eq!(kept(&fold, DISPUTED_EPOCHS_KEPT), disputed);
        assert_eq!(kept(&fold, DISPUTED_EPOCHS_KEPT + 1).0, 0);
        judge(&mut fold, A, DIFFERS);
        assert_eq!(kept(&fold, late), (0, [false; 3], false), "it is judged");
    }

    #[test]
    fn a_merge_in_dispute_is_remembered_until_it_is_judged() {
        let pass = |fold: &mut Fold, epoch: u32| {
            fold.apply(open(epoch));
            let epoch = Epoch(epoch);
            let Decision::MergePlan { attempt, submitters, .. } = plan(0, &[A, B]) else { panic!("a plan") };
            fold.apply(Decision::MergePlan { stage: S, epoch, attempt, submitters });
            let partitions = vec![Hash::default(); fold.0.stages()[0].partitions];
            fold.apply(Decision::MergeOutcome { stage: S, epoch, attempt, partitions, outliers: Vec::new() });
            assert_eq!(fold.0.stages()[0].version, epoch.next());
        };
        let remembers = |fold: &Fold| fold.0.stages()[0].merge(Epoch(0)).is_some();
        let mut fold = closed(&SECRETS);
        judge(&mut fold, A, DIFFERS);
        for epoch in 1..5 {
            pass(&mut fold, epoch);
            assert!(remembers(&fold), "after epoch {epoch}");
        }
        assert!(fold.0.stages()[0].merge(Epoch(1)).is_none(), "nobody has anything against it");
        judge(&mut fold, A, Finding::Matches);
        judge(&mut fold, A, Finding::Matches);
        pass(&mut fold, 5);
        assert!(!remembers(&fold), "it is judged");
        let mut fold = closed(&SECRETS);
        (1..3).for_each(|epoch| pass(&mut fold, epoch));
        assert!(!remembers(&fold), "nothing was found");
    }

    const SENT: Finding = Finding::Differs(Fault::Sent(SampleId(1)));

    /// The validators that read the epoch, and the one that does not.
    fn readers(fold: &Fold) -> ([Identity; 2], Identity) {
        let (reads, others): (Vec<_>, Vec<_>) =
            SECRETS.map(identity).into_iter().partition(|signer| fold.0.reads(signer.peer(), S, Epoch(0)));
        let [other] = others.try_into().expect("one of three");
        (reads.try_into().expect("two of three"), other)
    }

    fn accuse(fold: &mut Fold, by: &Identity, subject: Subject, finding: Finding) -> Vec<StateEvent> {
        fold.apply(Decision::Judge(Verdict::sign(by, fold.0.spec().run_id(), subject, finding)))
    }

    fn subject(peer: PeerId) -> Subject {
        Subject { stage: S, epoch: Epoch(0), peer, manifest: Hash::default() }
    }

    #[test]
    fn a_reader_accuses_unasked_and_a_panel_decides() {
        let mut fold = planned(&SECRETS, 0.0, &[A, B]);
        let ([reader, second], other) = readers(&fold);
        for by in [&reader, &other] {
            assert_eq!(accuse(&mut fold, by, subject(A), Finding::Matches), [], "nobody asked");
            assert_eq!(accuse(&mut fold, by, subject(A), DIFFERS), [], "no receipt shows that");
            let elsewhere = Subject { manifest: Hash([1; 32]), ..subject(A) };
            assert_eq!(accuse(&mut fold, by, elsewhere, SENT), [], "nobody committed to it");
        }
        assert_eq!(accuse(&mut fold, &other, subject(A), SENT), [], "it is no reader");
        assert_eq!(
            accuse(&mut fold, &reader, subject(A), SENT),
            [StateEvent::Judged(subject(A), reader.peer(), SENT)]
        );
        assert_eq!(accuse(&mut fold, &reader, subject(A), SENT), [], "said twice");
        assert_eq!(challenge(&fold, A).awaited().count(), 1, "a quorum of two");
        let close = outcome(&fold, 0);
        fold.apply(close);
        assert_eq!(fold.0.challenges().len(), 1, "it is checked once");
        let events = accuse(&mut fold, &second, subject(A), SENT);
        assert_eq!(events.last(), Some(&StateEvent::Evicted(A, EvictReason::FailedReplay)));
        assert_eq!(accuse(&mut fold, &reader, subject(A), SENT), [], "it is judged");
    }

    #[test]
    fn a_reader_that_accuses_falsely_is_dismissed() {
        let mut fold = planned(&SECRETS, 0.0, &[A, B]);
        let ([reader, _], _) = readers(&fold);
        accuse(&mut fold, &reader, subject(A), Finding::Differs(Fault::Receipts));
        judge(&mut fold, A, Finding::Matches);
        let events = judge(&mut fold, A, Finding::Matches);
        assert_eq!(events.last(), Some(&StateEvent::Dismissed(reader.peer(), DismissReason::WrongVerdict)));
        assert_eq!(fold.0.stage_of(A), Some(S));
        assert_eq!(accuse(&mut fold, &reader, subject(B), SENT), [], "it is heard no more");
    }

    #[test]
    fn what_stands_out_is_checked_though_nothing_is_drawn() {
        let c = PeerId([3; 32]);
        let closed = |outliers: &[PeerId]| {
            let mut fold = planned(&SECRETS, 0.0, &[A, B, c]);
            let Decision::MergeOutcome { stage, epoch, attempt, partitions, .. } = outcome(&fold, 0) else {
                panic!("an outcome")
            };
            let outliers = outliers.to_vec();
            fold.apply(Decision::MergeOutcome { stage, epoch, attempt, partitions, outliers });
            let open: Vec<_> = fold.0.challenges().iter().map(|challenge| challenge.subject.peer).collect();
            (fold.0.stages()[0].version, open)
        };
        assert_eq!(closed(&[]), (Epoch(1), vec![]));
        assert_eq!(closed(&[B]), (Epoch(1), vec![B]));
        assert_eq!(closed(&[A, B]), (Epoch(0), vec![]), "void: most do not stand out");
        assert_eq!(closed(&[PeerId([9; 32])]), (Epoch(0), vec![]), "void: it submitted nothing");
    }

    #[test]
    fn of_who_is_convicted_only_what_somebody_approved_is_still_judged() {
        let mut fold = closed(&SECRETS);
        let again = challenge(&fold, A).clone();
        for (epoch, found) in
            [(1, vec![]), (2, vec![Finding::Unavailable]), (3, vec![Finding::Matches, DIFFERS])]
        {
            let found = again.validators.iter().copied().zip(found).collect();
            let subject = Subject { epoch: Epoch(epoch), ..again.subject };
            fold.0.checks.open.push(Challenge { subject, found, ..again.clone() });
        }
        judge(&mut fold, A, DIFFERS);
        judge(&mut fold, A, DIFFERS);
        assert_eq!(fold.0.eviction(A), Some(EvictReason::FailedReplay));
        let open: Vec<_> =
            fold.0.challenges().iter().map(|open| (open.subject.peer, open.subject.epoch)).collect();
        assert_eq!(open, [(B, Epoch(0)), (A, Epoch(3))]);
    }

    #[test]
    fn checks_are_part_of_the_canonical_state() {
        let mut fold = closed(&SECRETS);
        judge(&mut fold, A, DIFFERS);
        let bytes = fold.0.to_bytes();
        let read = fold.0.read(&bytes).expect("a state");
        assert_eq!(read.checks, fold.0.checks);
        assert_eq!(read.to_bytes(), bytes);
    }

    /// A merge of A and B has closed in epoch 0, and this is found of A's work by all who are asked.
    fn judged(fold: &mut Fold, finding: Finding) -> Vec<StateEvent> {
        let mut events = Vec::new();
        while fold.0.challenges().iter().any(|challenge| challenge.subject.peer == A) {
            events.extend(judge(fold, A, finding));
        }
        events
    }

    #[test]
    fn work_that_nobody_can_check_counts_for_nothing_and_makes_suspect() {
        let mut fold = closed(&SECRETS);
        let subject = challenge(&fold, A).subject;
        let events = judged(&mut fold, Finding::Unavailable);
        assert_eq!(events.last(), Some(&StateEvent::Checked(subject, CheckOutcome::Unproven)));
        assert_eq!(fold.0.stage_of(A), Some(S), "once may be the network's fault");
        assert_eq!(fold.0.eviction(A), None);
        let score = |fold: &Fold| {
            let rows = fold.0.scores().table(&fold.0.spec().scores, &fold.0.versions());
            rows.iter().find(|row| row.peer == A).map(|row| row.score_micro)
        };
        assert_eq!(score(&fold), Some(0));
        assert_eq!(fold.0.checks.suspects.get(&A), Some(&1));
        let mut spec = fold.0.spec().clone();
        spec.validation.replay_share = 0.0;
        let closed = fold.0.stages()[0].closed_epoch(Epoch(0)).expect("the merge").clone();
        fold.0.checks.open.clear();
        fold.0.checks.draw(&spec.validation, S, &closed, &[], |_| false);
        let subjects: Vec<PeerId> =
            fold.0.challenges().iter().map(|challenge| challenge.subject.peer).collect();
        assert_eq!(subjects, [A], "whoever proved nothing is checked, whatever is drawn");
        judged(&mut fold, Finding::Matches);
        assert!(fold.0.checks.suspects.is_empty());
    }

    #[test]
    fn who_proves_nothing_several_times_in_a_row_loses_its_place_but_not_for_good() {
        let mut fold = closed(&SECRETS);
        let closed = fold.0.stages()[0].closed_epoch(Epoch(0)).expect("the merge").clone();
        for time in 1..=crate::limits::UNPROVEN_MAX {
            assert_eq!(fold.0.stage_of(A), Some(S), "before time {time}");
            judged(&mut fold, Finding::Unavailable);
            let spec = fold.0.spec().clone();
            fold.0.checks.open.clear();
            fold.0.checks.draw(&spec.validation, S, &closed, &[], |_| false);
        }
        assert_eq!(fold.0.eviction(A), Some(EvictReason::Unproven));
        assert_eq!(fold.apply(Decision::Admit { peer: A, stage: S }), [StateEvent::Admitted(A, S)]);
    }
}

/// A merge of three whose owners have signed what they merged.
mod convictions {
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::id::Identity;
    use crate::wire::message::{ContributionFault, DigestReport, FaultKind, MergeMessage};
    use crate::wire::seal;

    fn identity(i: u8) -> Identity {
        Identity::from_secret([i; 32])
    }

    fn peers() -> Vec<PeerId> {
        let mut peers: Vec<_> = (1..=3).map(|i| identity(i).peer()).collect();
        peers.sort_unstable();
        peers
    }

    /// The merge of the first epoch, planned; every submitter owns partition 0.
    fn planned() -> Fold {
        let mut fold = Fold::new();
        peers().into_iter().for_each(|peer| drop(fold.apply(Decision::Admit { peer, stage: S })));
        let members = peers().into_iter().map(|peer| (peer, 1)).collect();
        fold.apply(Decision::OpenEpoch { stage: S, epoch: Epoch(0), base: Hash::default(), members });
        assert_eq!(fold.apply(plan(0, &peers())).len(), 1);
        for owner in peers() {
            let (epoch, partition) = (Epoch(0), PartitionIndex(0));
            fold.apply(Decision::MergeReassign { stage: S, epoch, attempt: 0, partition, owner });
        }
        fold
    }

    /// What owner `i` signed.
    fn sealed(fold: &Fold, i: u8, attempt: u16, merged: &str) -> ByteBuf {
        let invalid = ContributionFault { submitter: identity(3).peer(), kind: FaultKind::Invalid };
        let report = DigestReport {
            sequence: 1,
            stage: S,
            epoch: Epoch(0),
            attempt,
            merged: vec![(PartitionIndex(0), Hash::of(merged.as_bytes()))],
            faults: vec![invalid],
        };
        let run = fold.0.spec().run_id();
        ByteBuf::from(seal(&identity(i), run, &MergeMessage::Digest(report)))
    }

    fn digests(fold: &Fold, attempt: u16, last: &str) -> Evidence {
        let reports = [(1, "right"), (2, "right"), (3, last)];
        let reports = reports.map(|(i, merged)| sealed(fold, i, attempt, merged)).to_vec();
        Evidence::Digests { partition: PartitionIndex(0), reports }
    }

    fn evict(reason: EvictReason, evidence: Option<Evidence>) -> Decision {
        Decision::Evict { peer: identity(3).peer(), reason, evidence }
    }

    #[test]
    fn nobody_is_evicted_for_a_merge_on_the_leaders_word() {
        let mut fold = planned();
        let wrong = EvictReason::WrongMerge;
        let forged = Evidence::Digests {
            partition: PartitionIndex(0),
            reports: [1, 2, 2].map(|i| sealed(&fold, i, 0, "right")).to_vec(),
        };
        for (what, evidence) in [
            ("none", None),
            ("of another plan", Some(digests(&fold, 1, "wrong"))),
            ("of agreement", Some(digests(&fold, 0, "right"))),
            ("without the accused", Some(forged)),
        ] {
            assert_eq!(fold.apply(evict(wrong, evidence)), [], "{what}");
        }
        let evidence = digests(&fold, 0, "wrong");
        let silent = evict(EvictReason::Silent, Some(evidence.clone()));
        assert_eq!(fold.apply(silent), [], "silence has no evidence");
        for reason in [EvictReason::FailedReplay, EvictReason::Unproven] {
            assert_eq!(fold.apply(evict(reason, None)), [], "{reason} follows from verdicts only");
        }
        let liar = identity(3).peer();
        assert_eq!(fold.0.stage_of(liar), Some(S), "still there");
        assert_eq!(fold.apply(evict(wrong, Some(evidence))), [StateEvent::Evicted(liar, wrong)]);
        assert_eq!(fold.apply(Decision::Admit { peer: liar, stage: S }), [], "for good");
    }

    #[test]
    fn evidence_holds_though_the_merge_has_closed_meanwhile_but_not_of_a_plan_given_up() {
        let mut fold = planned();
        let evidence = digests(&fold, 0, "wrong");
        let close = outcome(&fold, 0);
        assert_eq!(fold.apply(close).len(), 1);
        assert_eq!(fold.apply(evict(EvictReason::WrongMerge, Some(evidence))).len(), 1);

        let mut fold = planned();
        let evidence = digests(&fold, 0, "wrong");
        let lost = vec![identity(1).peer()];
        fold.apply(Decision::MergeAbort { stage: S, epoch: Epoch(0), attempt: 0, lost });
        assert_eq!(fold.apply(evict(EvictReason::WrongMerge, Some(evidence))), []);
    }

    #[test]
    fn an_invalid_contribution_takes_the_signatures_of_two_owners() {
        let mut fold = planned();
        let invalid = EvictReason::InvalidContribution;
        let faults = |numbers: &[u8]| Evidence::Faults {
            reports: numbers.iter().map(|&i| sealed(&fold, i, 0, "right")).collect(),
        };
        let (one, two) = (faults(&[1]), faults(&[1, 2]));
        assert_eq!(fold.apply(evict(invalid, None)), []);
        assert_eq!(fold.apply(evict(invalid, Some(one))), []);
        let expected = [StateEvent::Evicted(identity(3).peer(), invalid)];
        assert_eq!(fold.apply(evict(invalid, Some(two))), expected);
    }
}

#[test]
fn a_place_for_whom_the_lists_of_the_spec_do_not_let_in_is_void() {
    let [candidate, listed, banned, stranger] = [1, 2, 3, 4].map(|name| PeerId([name; 32]));
    let fold = |join: JoinSpec| {
        let mut spec = Fold::new().0.spec().clone();
        spec.join = join;
        Fold(RunState::new(Arc::new(spec), &[1000]))
    };
    let placed = |fold: &mut Fold, peer| {
        let admitted = fold.apply(Decision::Admit { peer, stage: S }) == [StateEvent::Admitted(peer, S)];
        let enlisted = fold.apply(Decision::Enlist { peer }) == [StateEvent::Enlisted(peer)];
        (admitted, enlisted)
    };
    let mut allow = fold(JoinSpec { policy: JoinPolicy::Allow, allow: vec![listed], ..JoinSpec::default() });
    assert_eq!(placed(&mut allow, candidate), (true, true));
    assert_eq!(placed(&mut allow, listed), (true, true));
    assert_eq!(placed(&mut allow, stranger), (false, false));
    let ban = vec![Ban { peer: banned, reason: "sent noise".to_owned() }];
    let mut open = fold(JoinSpec { ban, ..JoinSpec::default() });
    assert_eq!(placed(&mut open, stranger), (true, true));
    assert_eq!(placed(&mut open, banned), (false, false));
}
