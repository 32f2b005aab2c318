use std::time::Duration;

use super::valid_fraction::{self, Setting};
use super::{Parameter, Swarm, Sweep, vary};

const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn the_exact_valid_share_is_hypergeometric_and_tends_to_the_claim() {
    let expected =
        |miners, redundancy, failures| Setting { miners, partitions: 1, redundancy }.expected(failures);
    // Of C(4, 2) = 6 pairs of owners, one consists of the two that fail.
    assert!((expected(4, 2, 2) - 5.0 / 6.0).abs() < 1e-6);
    assert_eq!(expected(10, 3, 2), 1.0, "too few failures for three owners");
    assert_eq!(expected(10, 1, 3), 0.7);
    assert!((expected(100_000, 3, 40_000) - (1.0 - 0.4_f64.powi(3))).abs() < 1e-4);
}

#[test]
fn the_valid_share_of_merges_is_what_combinatorics_says_and_every_merge_completes() {
    let seeds: Vec<u64> = (0..10).collect();
    let sweep = valid_fraction::sweep(8, 56, &[1, 2], &[2, 4], &seeds);
    for redundancy in [1, 2] {
        let valid = sweep.curve(&format!("valid at once, r = {redundancy}")).expect("measured");
        for point in &valid.points {
            assert!(point.measured.contains(point.theory.expect("known")), "{point:?}");
        }
        let name = format!("completed after reassignment, r = {redundancy}");
        let completed = sweep.curve(&name).expect("measured");
        assert!(completed.points.iter().all(|point| point.measured.mean == 1.0), "{completed:?}");
    }
}

#[test]
fn no_throughput_is_above_the_roofline_and_both_fall_with_bandwidth() {
    let mut swarm = Swarm::new(2, 2, 1);
    swarm.samples_each = 40;
    swarm.spec.pipeline.window = 8;
    swarm.costs.parameters = 1000;
    let sweep = vary(&swarm, Parameter::Bandwidth, &[3e5, 1e8], &[1, 2, 3, 4, 5, 6], LIMIT);
    let curve = sweep.curve("throughput").expect("measured");
    let [narrow, wide] = curve.points.as_slice() else { panic!("two points") };
    for point in [narrow, wide] {
        let ratio = point.ratio.expect("a roofline");
        assert!((0.6..=1.0).contains(&ratio), "{point:?}");
    }
    // Four activations cross each cut both ways at 300 kB/s: 2 · 3e5 / 114 688 samples per second.
    assert!((narrow.theory.expect("known") - 5.231_6).abs() < 0.01, "{narrow:?}");
    assert!((wide.theory.expect("known") - 2.0 / 0.3).abs() < 0.01, "{wide:?}");
}

#[test]
fn a_sweep_survives_json_and_its_page_has_a_plot_for_each_curve() {
    let mut swarm = Swarm::new(1, 1, 1);
    swarm.samples_each = 4;
    let sweep = vary(&swarm, Parameter::Nodes, &[1.0, 3.0], &[1], LIMIT);
    assert_eq!(Sweep::from_json(&sweep.to_json()).expect("what was written"), sweep);
    let html = sweep.to_html();
    assert_eq!(html.matches("<svg").count(), sweep.curves.len());
    assert!(sweep.to_text().contains("Student's t over 1 runs"));
}

#[test]
fn crashes_are_as_frequent_as_asked_and_every_miner_comes_back() {
    let mut swarm = Swarm::new(1, 50, 1);
    swarm.crashes_per_hour = 6.0;
    let hours = 4;
    let schedule = swarm.setup(1, Duration::from_secs(3600 * hours)).schedule;
    let crashes = schedule.len() / 2;
    // A period is 600 s and 20 s away: 50 miners in 4 h crash 1161 times, with a deviation of about 34.
    assert!((1030..1290).contains(&crashes), "{crashes}");
    assert!(schedule.windows(2).all(|pair| pair[0].0 <= pair[1].0));
}

#[test]
fn moves_bring_a_preempted_swarm_nearer_to_its_optimum_and_are_no_more_than_preemptions() {
    use super::rebalance::{Placement, Setting, run};
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let setting = Setting { stages: 4, instances: 18, life: hours(6), length: hours(48), ..Setting::SWARM };
    let of = |placement| run(setting, placement, 1);
    let (rebalanced, admitted, random) =
        (of(Placement::Rebalanced), of(Placement::Admitted), of(Placement::Random));
    assert_eq!(of(Placement::Rebalanced), rebalanced, "one seed, one outcome");
    assert_ne!(run(setting, Placement::Rebalanced, 2), rebalanced);
    assert!(rebalanced.preemptions > 0.05 && rebalanced.moves > 0.0, "{rebalanced:?}");
    assert!(rebalanced.moves <= rebalanced.preemptions, "thrashing: {rebalanced:?}");
    assert!(rebalanced.of_optimum > admitted.of_optimum, "{rebalanced:?} {admitted:?}");
    assert!(admitted.of_optimum > random.of_optimum, "{admitted:?} {random:?}");
    assert!(rebalanced.of_optimum <= 1.0, "{rebalanced:?}");
    assert_eq!(admitted.moves, 0.0);
    // A stage that chance has left without miners is given one in any case.
    assert!(random.moves < rebalanced.moves, "{rebalanced:?} {random:?}");
}
