use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::limits::{SCORE_RECORD_BYTES, SCORE_WINDOW_MAX, SNAPSHOT_BYTES_MAX};
use crate::wire::{decode, encode};

const S: StageIndex = StageIndex(0);
const T: StageIndex = StageIndex(1);
const A: PeerId = PeerId([1; 32]);
const B: PeerId = PeerId([2; 32]);

fn spec() -> ScoresSpec {
    ScoresSpec { window: 3, ..ScoresSpec::default() }
}

/// The only row of `peer` with both stages at `version`.
fn row(scores: &Scores, version: u32, peer: PeerId) -> Option<Row> {
    scores.table(&spec(), &[Epoch(version); 2]).into_iter().find(|row| row.peer == peer)
}

fn score(scores: &Scores, version: u32, peer: PeerId) -> Option<u64> {
    row(scores, version, peer).map(|row| row.score_micro)
}

/// Epochs from 0 on, in each of which `A` did so many of 10 samples.
fn worked(samples: &[u32]) -> Scores {
    let mut scores = Scores::default();
    for (epoch, samples) in (0..).zip(samples) {
        scores.merged(&spec(), S, Epoch(epoch), [Work::of(A, *samples, 10)]);
    }
    scores
}

#[test]
fn a_score_is_samples_less_what_unprocessed_ones_cost() {
    let mut scores = worked(&[10, 7]);
    scores.merged(&spec(), T, Epoch(0), [Work::of(B, 4, 4), Work::of(A, 5, 6)]);
    scores.validated(S, Epoch(1), A);
    let rows = scores.table(&spec(), &[Epoch(2), Epoch(1)]);
    // A: 10 + 7 + 5 samples, 0 + 3 + 1 unprocessed, 22 − 4/2 = 20. B: 4. Of 24, 5/6 and 1/6.
    let a = Row {
        peer: A,
        epochs: 3,
        validated: 1,
        unproven: 0,
        failures: Vec::new(),
        samples: 22,
        unprocessed: 4,
        held_up: 0,
        standing: None,
        score_micro: 20_000_000,
        share: rows[0].share,
    };
    let b = Row {
        peer: B,
        epochs: 1,
        samples: 4,
        score_micro: 4_000_000,
        share: rows[1].share,
        ..Row::default()
    };
    assert_eq!(rows, [a, b]);
    assert_eq!(
        rows.iter().map(|row| row.share.parts()).collect::<Vec<_>>(),
        [833_333_333_333_333_333, 166_666_666_666_666_666]
    );
    assert_eq!(rows[0].checked(), 1);
}

#[test]
fn work_counts_until_its_epoch_is_older_than_the_window() {
    let scores = worked(&[10]);
    assert_eq!(
        [1, 2, 3, 4].map(|version| score(&scores, version, A)),
        [Some(10_000_000), Some(10_000_000), Some(10_000_000), None]
    );
    assert_eq!(score(&worked(&[10, 9, 8, 7]), 4, A), Some((9 + 8 + 7) * 1_000_000 - 3 * 1_000_000));
}

#[test]
fn age_is_that_of_the_stage_that_the_work_was_for() {
    let mut scores = worked(&[10]);
    scores.merged(&spec(), T, Epoch(0), [Work::of(A, 4, 4)]);
    let score = |now: [u32; 2]| scores.table(&spec(), &now.map(Epoch)).first().map(|row| row.score_micro);
    assert_eq!(score([1, 1]), Some(14_000_000));
    assert_eq!(score([4, 1]), Some(4_000_000));
    assert_eq!(score([1, 4]), Some(10_000_000));
    assert_eq!(scores.table(&spec(), &[Epoch(1)]).len(), 1, "a stage without a version has no work");
}

#[test]
fn a_score_is_never_below_zero() {
    let mut scores = worked(&[3]);
    assert_eq!(score(&scores, 1, A), Some(0), "3 − 7/2");
    scores.merged(&spec(), S, Epoch(1), [Work::of(A, 9, 9)]);
    assert_eq!(score(&scores, 2, A), Some(8_500_000), "12 − 7/2: the debt of an epoch is paid by another");
}

#[test]
fn a_failed_check_costs_the_window_and_what_comes_until_it_is_out_of_it() {
    let mut scores = worked(&[10, 10, 10, 10]);
    scores.failed(S, Epoch(2), A, Penalty::FailedReplay);
    let failure = Failure { stage: S, epoch: Epoch(2), why: Penalty::FailedReplay };
    let failed = row(&scores, 4, A).expect("a row");
    assert_eq!((failed.epochs, failed.samples, failed.score_micro, failed.share), (2, 20, 0, Share::NONE));
    assert_eq!((failed.checked(), failed.failures), (1, vec![failure]));
    scores.merged(&spec(), S, Epoch(4), [Work::of(A, 10, 10)]);
    assert_eq!(score(&scores, 5, A), Some(0), "epoch 2 is the third last");
    scores.merged(&spec(), S, Epoch(5), [Work::of(A, 10, 10)]);
    assert_eq!(score(&scores, 6, A), Some(30_000_000), "epochs 3, 4 and 5");
}

#[test]
fn a_failure_in_one_stage_costs_what_was_done_for_another() {
    let mut scores = worked(&[10]);
    scores.failed(T, Epoch(0), A, Penalty::WrongMerge);
    assert_eq!(score(&scores, 1, A), Some(0));
    assert_eq!(scores.table(&spec(), &[Epoch(1), Epoch(4)])[0].score_micro, 10_000_000, "out of its window");
}

#[test]
fn what_is_proved_before_the_merge_closes_is_remembered_through_it() {
    let mut scores = worked(&[10]);
    scores.failed(S, Epoch(1), A, Penalty::WrongMerge);
    scores.failed(S, Epoch(1), B, Penalty::InvalidContribution);
    scores.merged(&spec(), S, Epoch(1), [Work::of(A, 10, 10), Work::of(B, 0, 10)]);
    assert_eq!([score(&scores, 2, A), score(&scores, 2, B)], [Some(0), Some(0)]);
    assert_eq!(row(&scores, 2, B).expect("a row").failures[0].why, Penalty::InvalidContribution);
}

#[test]
fn the_heaviest_verdict_stands_in_whatever_order_they_come() {
    let verdicts: [fn(&mut Scores); 3] = [
        |scores| scores.validated(S, Epoch(0), A),
        |scores| scores.failed(S, Epoch(0), A, Penalty::InvalidContribution),
        |scores| scores.failed(S, Epoch(0), A, Penalty::FailedReplay),
    ];
    let states: BTreeSet<Vec<u8>> = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
        .map(|order| {
            let mut scores = worked(&[10]);
            order.into_iter().for_each(|i| verdicts[i](&mut scores));
            let found = row(&scores, 1, A).expect("a row");
            assert_eq!((found.validated, found.failures[0].why), (0, Penalty::FailedReplay));
            encode(&scores)
        })
        .into();
    assert_eq!(states.len(), 1);
}

#[test]
fn a_verdict_of_work_that_is_not_remembered_makes_no_record() {
    let mut scores = worked(&[10]);
    scores.validated(S, Epoch(1), A);
    scores.validated(T, Epoch(0), A);
    scores.validated(S, Epoch(0), B);
    assert_eq!(scores, worked(&[10]));
}

#[test]
fn an_undone_merge_and_those_after_it_count_for_nothing() {
    let mut scores = worked(&[10, 4, 6]);
    scores.merged(&spec(), T, Epoch(2), [Work::of(A, 1, 1)]);
    scores.validated(S, Epoch(1), A);
    scores.undone(S, Epoch(1));
    let mut kept = worked(&[10]);
    kept.merged(&spec(), T, Epoch(2), [Work::of(A, 1, 1)]);
    assert_eq!(scores, kept, "the first epoch, and the other stage");
    assert_eq!(score(&scores, 3, A), Some(11_000_000), "the stage stays at its version");
}

#[test]
fn what_was_proved_outlives_the_merge_it_was_proved_in() {
    let mut scores = worked(&[10, 4]);
    scores.failed(S, Epoch(1), A, Penalty::WrongMerge);
    scores.undone(S, Epoch(1));
    let left = row(&scores, 2, A).expect("a row");
    assert_eq!((left.score_micro, left.failures.len()), (0, 1));
    scores.failed(S, Epoch(0), B, Penalty::WrongMerge);
    scores.undone(S, Epoch(0));
    assert_eq!(score(&scores, 2, B), Some(0));
}

#[test]
fn what_is_out_of_the_window_is_forgotten() {
    let mut scores = worked(&[10]);
    scores.failed(T, Epoch(0), B, Penalty::WrongMerge);
    for epoch in 1..4 {
        assert_ne!(scores.miners.len(), 0, "before epoch {epoch}");
        scores.merged(&spec(), S, Epoch(epoch), []);
        scores.merged(&spec(), T, Epoch(epoch), []);
    }
    assert_eq!(scores, Scores::default());
}

#[test]
fn work_of_nothing_makes_no_record() {
    assert_eq!(Work::of(A, 0, 0), Work { peer: A, samples: 0, unprocessed: 0 });
    let mut scores = Scores::default();
    scores.merged(&spec(), S, Epoch(0), [Work::of(A, 0, 0)]);
    assert_eq!(scores, Scores::default());
}

#[test]
fn nobody_is_credited_with_more_than_it_was_dealt_or_an_epoch_can_hold() {
    assert_eq!(Work::of(A, 12, 10), Work { peer: A, samples: 10, unprocessed: 0 });
    let mut scores = Scores::default();
    scores.merged(&spec(), S, Epoch(0), [Work::of(A, u32::MAX, u32::MAX)]);
    assert_eq!(score(&scores, 1, A), Some(SAMPLES_PER_EPOCH_MAX * 1_000_000));
}

#[test]
fn a_miner_beyond_the_bound_is_scored_when_there_is_room() {
    let name = |i: u32| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&i.to_be_bytes());
        PeerId(bytes)
    };
    let full = u32::try_from(SCORED_MINERS_MAX).expect("few");
    let mut scores = Scores::default();
    // In reverse, since it must not depend on the order who finds room.
    scores.merged(&spec(), S, Epoch(0), (0..=full).rev().map(|i| Work::of(name(i), 1, 1)));
    scores.failed(S, Epoch(0), name(full), Penalty::WrongMerge);
    assert_eq!(scores.miners.len(), SCORED_MINERS_MAX);
    assert_eq!((score(&scores, 1, name(full - 1)), score(&scores, 1, name(full))), (Some(1_000_000), None));
    scores.merged(&spec(), S, Epoch(3), [Work::of(name(full), 1, 1)]);
    assert_eq!(scores.miners.keys().collect::<Vec<_>>(), [&name(full)]);
}

#[test]
fn a_record_takes_no_more_bytes_than_the_bound_says() {
    let largest = Worked {
        samples: u32::MAX,
        unprocessed: u32::MAX,
        held_up: u32::MAX,
        verdict: Verdict::Failed(Penalty::InvalidContribution),
    };
    let record = encode(&((StageIndex(u16::MAX), Epoch(u32::MAX)), largest));
    assert!(record.len() <= SCORE_RECORD_BYTES, "{}", record.len());
    assert!(record.len() + 8 > SCORE_RECORD_BYTES, "the bound is not far off: {}", record.len());
}

#[test]
fn who_held_everybody_up_pays_with_samples_while_that_is_in_the_window() {
    let mut scores = worked(&[10, 7]);
    let rows = |scores: &Scores, version| {
        let rows = scores.table(&spec(), &[Epoch(version), Epoch(0)]);
        let row = rows.into_iter().find(|row| row.peer == A).expect("it is remembered");
        (row.epochs, row.samples, row.held_up, row.score_micro)
    };
    let without = rows(&scores, 2);
    scores.deposed(S, Epoch(1), A, 4);
    let (epochs, samples, _, score_micro) = without;
    assert_eq!(rows(&scores, 2), (epochs, samples, 4, score_micro - 4_000_000));
    scores.deposed(S, Epoch(1), A, 100);
    assert_eq!(rows(&scores, 2), (epochs, samples, 104, 0), "it owes more than it has");
    scores.undone(S, Epoch(1));
    assert_eq!(rows(&scores, 1), (1, 10, 104, 0), "the work is undone, the delay is not");
}

#[test]
fn a_leader_that_has_not_worked_owes_all_the_same() {
    let mut scores = Scores::default();
    scores.deposed(S, Epoch(0), A, 15);
    scores.merged(&spec(), S, Epoch(1), [Work::of(A, 10, 10)]);
    scores.merged(&spec(), S, Epoch(2), [Work::of(A, 10, 10)]);
    let row = scores.table(&spec(), &[Epoch(3), Epoch(0)]).remove(0);
    assert_eq!((row.epochs, row.held_up, row.score_micro), (2, 15, 5_000_000));
}

#[test]
fn penalties_follow_from_evictions_that_prove_something() {
    use EvictReason::{Equivocation, InvalidContribution, Left, OverstatedSpeed, Silent, WrongMerge};
    assert_eq!([Silent, Left].map(Penalty::of), [None, None]);
    assert_eq!(
        [InvalidContribution, WrongMerge, Equivocation, OverstatedSpeed].map(Penalty::of),
        [Penalty::InvalidContribution, Penalty::WrongMerge, Penalty::Equivocation, Penalty::OverstatedSpeed]
            .map(Some)
    );
}

#[test]
fn the_bytes_of_a_state_are_held_still() {
    let mut scores = Scores::default();
    scores.merged(&spec(), S, Epoch(300), [Work::of(A, 9, 10)]);
    scores.failed(S, Epoch(300), A, Penalty::WrongMerge);
    scores.kicked(S, Epoch(301));
    let expected = [
        ("miners, one of them", "a2 666d696e657273 a1"),
        ("its id", &format!("5820 {}", "01".repeat(32))),
        ("one record, of stage 0 and epoch 300", "a1 82 00 19012c a3"),
        ("samples: 9", "6773616d706c6573 09"),
        ("unprocessed: 1", "6b756e70726f636573736564 01"),
        ("verdict: failed: wrong-merge", "6776657264696374 a1 666661696c6564 6b77726f6e672d6d65726765"),
        ("kicks, of stage 0", "656b69636b73 a1 00"),
        ("version: 301, count: 1", "a2 6776657273696f6e 19012d 65636f756e74 01"),
    ];
    let expected = expected.map(|(_, bytes)| bytes.replace(' ', "")).concat();
    assert_eq!(hex::encode(encode(&scores)), expected);
}

/// What may happen to a run of two stages.
#[derive(Clone, Debug)]
enum Event {
    /// The next epoch of a stage is merged, with what each peer did and was dealt.
    Merge(u16, Vec<(u8, u32, u32)>),
    /// It is passed over.
    Skip(u16),
    /// The merges from so many before the version on are undone.
    Undo(u16, u32),
    /// A verdict on an epoch so many before the version.
    Validate(u16, u32, u8),
    Fail(u16, u32, u8, Penalty),
}

fn event() -> impl Strategy<Value = Event> {
    let (stage, back, peer) = (|| 0_u16..2, || 0_u32..5, || 0_u8..4);
    let work = proptest::collection::btree_map(peer(), (0_u32..20, 0_u32..20), 0..4);
    let work = work.prop_map(|work| work.into_iter().map(|(peer, (samples, dealt))| (peer, samples, dealt)));
    let penalty = prop_oneof![
        Just(Penalty::FailedReplay),
        Just(Penalty::WrongMerge),
        Just(Penalty::InvalidContribution)
    ];
    prop_oneof![
        8 => (stage(), work).prop_map(|(stage, work)| Event::Merge(stage, work.collect())),
        1 => stage().prop_map(Event::Skip),
        1 => (stage(), back()).prop_map(|(stage, back)| Event::Undo(stage, back)),
        2 => (stage(), back(), peer()).prop_map(|(stage, back, peer)| Event::Validate(stage, back, peer)),
        1 => (stage(), back(), peer(), penalty).prop_map(|(stage, back, peer, why)| Event::Fail(stage, back, peer, why)),
    ]
}

/// All that ever happened, and the formula over it: nothing is forgotten or added up before it is asked for.
#[derive(Default)]
struct Annals {
    version: [u32; 2],
    work: Vec<(u16, u32, u8, u32, u32)>,
    failed: Vec<(u16, u32, u8)>,
}

impl Annals {
    fn tell(&mut self, event: &Event) {
        match event {
            Event::Merge(stage, work) => {
                let epoch = self.version[usize::from(*stage)];
                let of = |&(peer, samples, dealt): &(u8, u32, u32)| {
                    (*stage, epoch, peer, samples.min(dealt), dealt)
                };
                self.work.extend(work.iter().map(of));
                self.version[usize::from(*stage)] += 1;
            }
            Event::Skip(stage) => self.version[usize::from(*stage)] += 1,
            Event::Undo(stage, back) => {
                let from = self.version[usize::from(*stage)].saturating_sub(*back);
                self.work.retain(|(of, epoch, ..)| of != stage || *epoch < from);
            }
            Event::Validate(..) => {}
            Event::Fail(stage, back, peer, _) => {
                self.failed.push((*stage, self.version[usize::from(*stage)].saturating_sub(*back), *peer));
            }
        }
    }

    /// Its score in halves of a sample.
    fn halves(&self, peer: u8) -> i64 {
        let counts = |stage: u16, epoch: u32| self.version[usize::from(stage)] - epoch <= spec().window;
        if self.failed.iter().any(|(stage, epoch, of)| *of == peer && counts(*stage, *epoch)) {
            return 0;
        }
        let mine = self.work.iter().filter(|(stage, epoch, of, ..)| *of == peer && counts(*stage, *epoch));
        let halves = mine.map(|(.., samples, dealt)| 2 * i64::from(*samples) - i64::from(dealt - samples));
        halves.sum::<i64>().max(0)
    }
}

fn tell(scores: &mut Scores, version: &mut [u32; 2], event: &Event) {
    let peer = |number: u8| PeerId([number; 32]);
    let epoch = |version: &[u32; 2], stage: u16, back: u32| {
        (StageIndex(stage), Epoch(version[usize::from(stage)].saturating_sub(back)))
    };
    match event {
        Event::Merge(stage, work) => {
            let (of, epoch) = epoch(version, *stage, 0);
            let work = work.iter().map(|&(number, samples, dealt)| Work::of(peer(number), samples, dealt));
            scores.merged(&spec(), of, epoch, work);
            version[usize::from(*stage)] += 1;
        }
        Event::Skip(stage) => version[usize::from(*stage)] += 1,
        Event::Undo(stage, back) => {
            let (stage, from) = epoch(version, *stage, *back);
            scores.undone(stage, from);
        }
        Event::Validate(stage, back, number) => {
            let (stage, epoch) = epoch(version, *stage, *back);
            scores.validated(stage, epoch, peer(*number));
        }
        Event::Fail(stage, back, number, why) => {
            let (stage, epoch) = epoch(version, *stage, *back);
            scores.failed(stage, epoch, peer(*number), *why);
        }
    }
}

fn fold(events: &[Event]) -> (Scores, [u32; 2]) {
    let (mut scores, mut version) = (Scores::default(), [0; 2]);
    events.iter().for_each(|event| tell(&mut scores, &mut version, event));
    (scores, version)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    proptest::collection::vec(event(), 0..40)
}

proptest! {
    #[test]
    fn the_fold_is_the_formula_over_all_that_happened(events in events()) {
        let (scores, version) = fold(&events);
        let mut annals = Annals::default();
        events.iter().for_each(|event| annals.tell(event));
        prop_assert_eq!(annals.version, version);
        let rows = scores.table(&spec(), &version.map(Epoch));
        for number in 0..4 {
            let row = rows.iter().find(|row| row.peer == PeerId([number; 32]));
            let found = row.map_or(0, |row| row.score_micro);
            prop_assert_eq!(i64::try_from(found).expect("small"), annals.halves(number) * 500_000, "peer {}", number);
        }
    }

    #[test]
    fn stages_and_members_may_be_told_in_any_order(events in events()) {
        let of = |event: &Event| match event {
            Event::Merge(stage, _) | Event::Skip(stage) | Event::Undo(stage, _) => *stage,
            Event::Validate(stage, ..) | Event::Fail(stage, ..) => *stage,
        };
        // All of one stage, then all of the other, and the members of each merge backwards.
        let mut other: Vec<Event> = events.clone();
        other.sort_by_key(|event| std::cmp::Reverse(of(event)));
        for event in &mut other {
            if let Event::Merge(_, work) = event {
                work.reverse();
            }
        }
        prop_assert_eq!(encode(&fold(&events).0), encode(&fold(&other).0));
    }

    #[test]
    fn a_state_reads_back_from_its_bytes(
        events in events(), kicks in proptest::collection::vec((0_u16..2, 0_u32..9), 0..4),
    ) {
        let mut scores = fold(&events).0;
        kicks.into_iter().for_each(|(stage, version)| scores.kicked(StageIndex(stage), Epoch(version)));
        let bytes = encode(&scores);
        let read: Scores = decode(&bytes, SNAPSHOT_BYTES_MAX).expect("a state");
        prop_assert_eq!(encode(&read), bytes);
        prop_assert_eq!(read, scores);
    }

    #[test]
    fn a_further_sample_never_costs_its_miner_anything(
        events in events(), at in any::<prop::sample::Index>(), more in 1_u32..20, burn in 0_u32..1000, cap in 1_u32..1000,
    ) {
        let is_merge = |i: &usize| matches!(&events[*i], Event::Merge(_, work) if !work.is_empty());
        let merges: Vec<usize> = (0..events.len()).filter(is_merge).collect();
        prop_assume!(!merges.is_empty());
        let mut raised = events.clone();
        let Event::Merge(_, work) = &mut raised[merges[at.index(merges.len())]] else { unreachable!("a merge") };
        let (number, samples, dealt) = &mut work[0];
        let number = *number;
        (*samples, *dealt) = (*samples + more, (*dealt).max(*samples + more));
        let spec = ScoresSpec { burn: f64::from(burn) / 1000.0, cap: f64::from(cap) / 1000.0, ..spec() };
        let of = |events: &[Event]| {
            let (scores, version) = fold(events);
            let rows = scores.table(&spec, &version.map(Epoch));
            let row = rows.into_iter().find(|row| row.peer == PeerId([number; 32]));
            row.map_or((0, Share::NONE), |row| (row.score_micro, row.share))
        };
        let (before, after) = (of(&events), of(&raised));
        prop_assert!(before.0 <= after.0 && before.1 <= after.1, "{:?} {:?}", before, after);
    }

    #[test]
    fn memory_is_that_of_the_window(events in events()) {
        let (mut scores, version) = fold(&events);
        for stage in 0..2_u16 {
            scores.merged(&spec(), StageIndex(stage), Epoch(version[usize::from(stage)]), []);
        }
        let records = scores.miners.values().map(BTreeMap::len).max().unwrap_or(0);
        prop_assert!(records <= 2 * spec().window as usize, "{}", records);
        prop_assert!(scores.miners.values().all(|epochs| !epochs.is_empty()));
    }
}

#[test]
fn the_longest_window_of_work_does_not_overflow() {
    let spec =
        ScoresSpec { window: SCORE_WINDOW_MAX, penalty_unprocessed: 1e12, cap: 0.7, ..ScoresSpec::default() };
    let mut scores = Scores::default();
    for stage in 0..64 {
        for epoch in 0..SCORE_WINDOW_MAX {
            let work = [Work::of(A, u32::MAX, u32::MAX), Work { peer: B, samples: 1, unprocessed: u32::MAX }];
            scores.merged(&spec, StageIndex(stage), Epoch(epoch), work);
        }
    }
    let rows = scores.table(&spec, &[Epoch(SCORE_WINDOW_MAX); 64]);
    let all = 64 * u64::from(SCORE_WINDOW_MAX) * SAMPLES_PER_EPOCH_MAX * 1_000_000;
    assert_eq!(
        rows.iter().map(|row| (row.score_micro, row.share)).collect::<Vec<_>>(),
        [(all, Share::of(0.7)), (0, Share::NONE)]
    );
}

#[test]
fn what_nobody_could_check_counts_for_nothing_and_is_no_failure() {
    let spec = ScoresSpec::default();
    let (stage, peer) = (StageIndex(0), PeerId([1; 32]));
    let mut scores = Scores::default();
    for epoch in [Epoch(0), Epoch(1)] {
        scores.merged(&spec, stage, epoch, [Work::of(peer, 10, 10)]);
    }
    scores.unproven(stage, Epoch(0), peer);
    scores.unproven(stage, Epoch(7), peer);
    let rows = scores.table(&spec, &[Epoch(2)]);
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.epochs, row.unproven, row.samples, row.score_micro), (1, 1, 10, 10_000_000));
    assert!(row.failures.is_empty());
    scores.validated(stage, Epoch(0), peer);
    assert_eq!(
        scores.table(&spec, &[Epoch(2)])[0].epochs,
        2,
        "one who could says more than one who could not"
    );
}
