use super::*;
use crate::wire::{decode, encode};

const SETTINGS: fn() -> Settings = Settings::default;

fn peer(number: u16) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    PeerId(bytes)
}

/// A contribution that improves own and random data by so much, all but surely.
fn measured(own: f64, random: f64) -> Found {
    let of = |share| Improvement { share, error: 1e-6 };
    Found::Measured { gains: Gains { own: of(own), random: of(random) }, steps_behind: 0.0 }
}

/// Epochs in which each peer, by its number, is found the same.
fn played(epochs: usize, found: &[(u16, Found)]) -> Gauntlet {
    let mut gauntlet = Gauntlet::default();
    let submitted = found.iter().map(|(number, found)| (peer(*number), *found)).collect();
    (0..epochs).for_each(|_| gauntlet.close(&SETTINGS(), &submitted));
    gauntlet
}

fn score(gauntlet: &Gauntlet, number: u16) -> f64 {
    gauntlet.standing(peer(number)).map_or(0.0, |standing| standing.score(&SETTINGS()))
}

const GOOD: [(u16, f64); 3] = [(1, 0.05), (2, 0.03), (3, 0.01)];

/// Three honest peers of different speed.
fn honest() -> Vec<(u16, Found)> {
    GOOD.map(|(number, share)| (number, measured(share + 0.02, share))).to_vec()
}

#[test]
fn the_slowest_honest_peer_has_a_score_and_the_fastest_the_highest() {
    let gauntlet = played(200, &honest());
    let [fast, middle, slow] = [1, 2, 3].map(|number| score(&gauntlet, number));
    assert!(fast > middle && middle > slow && slow > 0.0, "{fast} {middle} {slow}");
}

#[test]
fn who_is_no_better_than_nothing_or_than_chance_has_no_score() {
    for (what, found) in [
        ("zeros", measured(0.0, 0.0)),
        ("harm", measured(-0.03, -0.05)),
        ("not trained on its own samples", measured(0.06, 0.06)),
        ("a copy", Found::Copy),
        ("no contribution", Found::Invalid),
    ] {
        let gauntlet = played(200, &[honest(), vec![(9, found)]].concat());
        assert_eq!(score(&gauntlet, 9), 0.0, "{what}");
        assert!(score(&gauntlet, 3) > 0.0, "{what}");
    }
}

#[test]
fn weights_three_steps_behind_are_worth_nothing() {
    let Found::Measured { gains, .. } = measured(0.08, 0.06) else { panic!("measured") };
    let of = |steps_behind| {
        let late = Found::Measured { gains, steps_behind };
        score(&played(50, &[honest(), vec![(9, late)]].concat()), 9)
    };
    assert!(of(1.0) > 0.0 && of(1.0) < of(0.0));
    assert_eq!(of(3.0), 0.0);
}

#[test]
fn a_copy_costs_its_author_nothing() {
    let author = |copy: &[(u16, Found)]| score(&played(60, &[honest(), copy.to_vec()].concat()), 2);
    assert_eq!(author(&[(9, Found::Copy)]), author(&[(9, Found::Invalid)]), "a copy is no contribution");
    assert_eq!(author(&[(9, Found::Copy)]), author(&[]), "nor does it change anything");
    assert!(author(&[(9, measured(0.03, 0.03))]) < author(&[(9, Found::Copy)]), "a tie would cost it");
}

#[test]
fn trust_comes_back_slowly_and_is_not_undone_by_the_next_evaluation() {
    let settings = SETTINGS();
    let mut gauntlet = played(60, &honest());
    let clean = score(&gauntlet, 1);
    let of = |found| [honest(), vec![(1, found)]].concat().into_iter().map(|(n, f)| (peer(n), f)).collect();
    gauntlet.close(&settings, &of(Found::Invalid));
    assert_eq!(score(&gauntlet, 1), 0.0);
    let good = of(measured(0.07, 0.05));
    gauntlet.close(&settings, &good);
    assert!(score(&gauntlet, 1) < 0.1 * clean);
    (0..30).for_each(|_| gauntlet.close(&settings, &good));
    assert!(score(&gauntlet, 1) > 0.8 * clean);
}

#[test]
fn who_is_not_evaluated_keeps_what_it_has() {
    let mut gauntlet = played(40, &honest());
    let before = gauntlet.clone();
    let unseen = honest().into_iter().map(|(number, _)| (peer(number), Found::Unseen)).collect();
    gauntlet.close(&SETTINGS(), &unseen);
    assert_eq!(gauntlet, before);
}

#[test]
fn who_is_missing_decays_and_is_forgotten_and_comes_back_with_next_to_nothing() {
    let settings = SETTINGS();
    let mut gauntlet = played(40, &honest());
    let full = score(&gauntlet, 3);
    let others: BTreeMap<PeerId, Found> =
        honest().into_iter().take(2).map(|(number, found)| (peer(number), found)).collect();
    for missed in 1..=3 {
        gauntlet.close(&settings, &others);
        assert!((score(&gauntlet, 3) / full - 0.75_f64.powi(missed)).abs() < 1e-12, "{missed}");
    }
    gauntlet.close(&settings, &others);
    assert_eq!(gauntlet.standing(peer(3)), None);
    let all = honest().into_iter().map(|(number, found)| (peer(number), found)).collect();
    gauntlet.close(&settings, &all);
    assert!(gauntlet.standing(peer(3)).is_some() && score(&gauntlet, 3) < full / 20.0);
}

#[test]
fn an_outage_of_most_costs_nobody_anything() {
    let mut gauntlet = played(40, &honest());
    let before = [2, 3].map(|number| score(&gauntlet, number));
    let one = honest().into_iter().take(1).map(|(number, found)| (peer(number), found)).collect();
    (0..10).for_each(|_| gauntlet.close(&SETTINGS(), &one));
    assert_eq!([2, 3].map(|number| score(&gauntlet, number)), before);
}

#[test]
fn losses_say_whose_fault_they_are() {
    let loss = |before, after| [Loss { before, after }; 3];
    assert!(matches!(Found::of(&loss(2.0, 1.9), &loss(2.0, 1.95), 0.0), Found::Measured { .. }));
    assert_eq!(Found::of(&loss(2.0, f64::NAN), &loss(2.0, 1.9), 0.0), Found::Invalid);
    assert_eq!(Found::of(&loss(f64::NAN, f64::NAN), &loss(2.0, f64::NAN), 0.0), Found::Unseen);
    assert_eq!(Found::of(&loss(2.0, 1.9), &loss(2.0, 1.9)[..1], 0.0), Found::Unseen);
}

#[test]
fn the_state_has_one_encoding_and_a_bounded_size() {
    let settings = SETTINGS();
    let gauntlet = played(7, &[honest(), vec![(9, Found::Copy)]].concat());
    let bytes = encode(&gauntlet);
    assert_eq!(decode::<Gauntlet>(&bytes, bytes.len()), Ok(gauntlet));

    let mut full = Gauntlet::default();
    let range = |from, to| (from..to).map(|number| (peer(number), Found::Unseen)).collect();
    let most = u16::try_from(SCORED_MINERS_MAX).expect("few");
    full.close(&settings, &range(0, most + 5));
    assert_eq!(full.scores(&settings).count(), SCORED_MINERS_MAX);
    assert!(full.standing(peer(most)).is_none());
    // 1 of 4096 misses four epochs, and makes room.
    (0..4).for_each(|_| full.close(&settings, &range(1, most + 5)));
    full.close(&settings, &range(1, most + 5));
    assert!(full.standing(peer(0)).is_none() && full.standing(peer(most)).is_some());
    assert!(full.standing(peer(most + 1)).is_none());
}

#[test]
fn the_same_epochs_give_the_same_bytes() {
    let run =
        || encode(&played(50, &[honest(), vec![(9, measured(0.011, 0.01)), (8, Found::Copy)]].concat()));
    assert_eq!(run(), run());
}

#[test]
fn what_evaluations_cost_is_counted_in_samples_trained_on() {
    let mut spec = crate::spec::RunSpec::default();
    spec.training.samples_per_epoch = 18_000;
    // Three evaluators, eight contributions of 16 samples twice and 32 once, 32 once: 3 × (8 × 64 + 32) / 3 samples.
    assert!((cost(&spec, 20) - 544.0 / 18_000.0).abs() < 1e-12);
    // Two miners have nine samples each, of which both are looked at.
    spec.training.samples_per_epoch = 18;
    assert!((cost(&spec, 2) - (2.0 * 50.0 + 32.0) / 18.0).abs() < 1e-12);
}

#[test]
fn as_many_merges_are_evaluated_as_are_paid_for() {
    let mut spec = crate::spec::RunSpec::default();
    for samples in [100, 960, 18_000, 60_000] {
        spec.training.samples_per_epoch = samples;
        for (paid, miners) in [(0.01, 20), (0.01, 3), (0.5, 20)] {
            spec.scores.evaluation_cost = paid;
            let (cost, share) = (cost(&spec, miners), evaluated_share(&spec, miners));
            assert!(cost * share <= paid * (1.0 + 1e-12), "{samples} samples, {miners} miners");
            assert!(share == 1.0 || cost * share > paid * (1.0 - 1e-12), "no fewer than that");
        }
    }
}
