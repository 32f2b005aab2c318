//! A miner's epoch gone through again from its receipts, by a worker that has nothing but what the miner has published.

mod evaluation;

use std::sync::Arc;

use bytes::Bytes;
use iota_model::{Device, OptimizerState};
use iota_protocol::difference::{Difference, Measured};
use iota_protocol::miner::{Job, JobDone, Tensor};
use iota_protocol::receipts::order::Step;
use iota_protocol::spec::{Bottleneck, TrainingMode};
use iota_protocol::{Epoch, Hash, PartitionIndex, PeerId, RunSpec, StageIndex, moments};
use iota_worker::bridge::contribution_max;
use iota_worker::corpus::builtin_corpus;
use iota_worker::pipeline::{Commitment, Pipeline, reordered};
use iota_worker::{Blobs, Worker};

const STAGES: u16 = 3;
const MODES: [TrainingMode; 2] = [TrainingMode::Local, TrainingMode::Synchronous];

/// How far contributions may be apart that differ in nothing but the order of their sums. Measured over both modes, three
/// seeds, two epochs and all stages: less than a millionth.
const ROUNDING_PPM: u32 = 10;
/// How far what is not honest is at least. Measured: to leave one sample of twelve out, the least of it, makes a tenth.
const DISHONEST_PPM: u32 = 50_000;

/// A model that trains in no time, and has several partitions in every stage; epochs with several samples in each inner step,
/// more than the head may have under way.
fn spec(mode: TrainingMode) -> RunSpec {
    let mut spec: RunSpec = toml::from_str(iota_fixtures::BUILTIN_SPEC).expect("a spec");
    (spec.model.width, spec.model.hidden, spec.model.context) = (32, 64, 16);
    spec.model.bottleneck = Bottleneck::Width(8);
    spec.data.builtin_bytes.0 = 64 << 10;
    (spec.training.mode, spec.training.inner_steps) = (mode, 3);
    (spec.training.samples_per_epoch, spec.pipeline.window) = (12, 5);
    (spec.pipeline.stages, spec.merge.partitions_min) = (STAGES, 4);
    spec
}

/// Two epochs of a pipeline, in which samples overtake each other.
fn trained(mode: TrainingMode, seed: u64) -> (Pipeline, [Vec<Commitment>; 2]) {
    let spec = Arc::new(spec(mode));
    let corpus = Arc::new(builtin_corpus(&spec).expect("a long enough text"));
    let mut pipeline = Pipeline::new(spec, corpus, Device::Cpu, seed).expect("a processor");
    let first = pipeline.epoch(Epoch(0)).expect("it trains");
    pipeline.merge(&first).expect("it merges");
    let second = pipeline.epoch(Epoch(1)).expect("it trains");
    (pipeline, [first, second])
}

/// What comes of these receipts, and what each step gave.
fn replayed(pipeline: &mut Pipeline, of: &Commitment) -> (Commitment, Vec<(Step, JobDone)>) {
    let replayed = pipeline.replay(of, Device::Cpu).expect("the miner wrote them");
    (replayed.commitment, replayed.steps)
}

fn compared(pipeline: &mut Pipeline, kind: Tensor, ours: &[Hash], theirs: &[Hash]) -> JobDone {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().copied().zip(theirs.iter().copied()).collect();
    let mut worker = Worker::new(Arc::clone(pipeline.spec()), Device::Cpu, None);
    worker.perform(&Job::Compare { pairs, kind }, &mut pipeline.blobs)
}

/// How far their contribution is from ours.
fn measured(pipeline: &mut Pipeline, ours: &Commitment, theirs: &[Hash]) -> Measured {
    let kind = Tensor::Contribution { stage: ours.stage };
    match compared(pipeline, kind, &ours.partitions, theirs) {
        JobDone::Compared(Difference::Measured(measured)) => measured,
        other => panic!("{other:?}"),
    }
}

/// All numbers of these partitions.
fn numbers(pipeline: &Pipeline, partitions: &[Hash]) -> Vec<f32> {
    let numbers = |hash: &Hash| -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&pipeline.blobs.blob(*hash).expect("a partition"))
    };
    partitions.iter().flat_map(numbers).collect()
}

/// The partitions with every number changed.
fn changed(pipeline: &mut Pipeline, partitions: &[Hash], change: impl Fn(f32) -> f32) -> Vec<Hash> {
    let mut changed = |hash: &Hash| {
        let values: Vec<f32> = numbers(pipeline, &[*hash]).into_iter().map(&change).collect();
        pipeline.blobs.insert(Bytes::copy_from_slice(bytemuck::cast_slice(&values)))
    };
    partitions.iter().map(&mut changed).collect()
}

#[test]
fn a_replay_gives_the_miners_contribution_and_every_tensor_on_the_way_bit_for_bit() {
    for (mode, seed) in [(TrainingMode::Local, 5), (TrainingMode::Local, 6), (TrainingMode::Synchronous, 5)] {
        let (mut pipeline, epochs) = trained(mode, seed);
        for commitment in epochs.iter().flatten() {
            let (again, done) = replayed(&mut pipeline, commitment);
            assert_eq!(again, *commitment);
            for (step, done) in done {
                match (step, done) {
                    (Step::Forward(index), JobDone::Forwarded { output, .. }) => {
                        assert_eq!(Some(output), commitment.receipts[index].output);
                    }
                    (
                        Step::Backward(index) | Step::Loss(index),
                        JobDone::Finished { input_gradient, loss_micro, .. },
                    ) => {
                        let receipt = &commitment.receipts[index];
                        assert_eq!(
                            (input_gradient, loss_micro),
                            (receipt.input_gradient, receipt.loss_micro)
                        );
                    }
                    (Step::InnerStep(_), JobDone::Stepped { .. }) => {}
                    (step, done) => panic!("{step:?} gave {done:?}"),
                }
            }
        }
    }
}

#[test]
fn the_pipeline_of_these_tests_has_passes_that_overtake_each_other_and_span_inner_steps() {
    let (_, epochs) = trained(TrainingMode::Local, 5);
    for commitment in epochs.iter().flatten() {
        let receipts = &commitment.receipts;
        assert!(!receipts.is_sorted_by_key(|receipt| receipt.turn), "gradients came in sample order");
        let spanning = receipts.iter().filter(|receipt| receipt.inner_step < receipt.gradient_step);
        assert_eq!(spanning.count() > 0, commitment.stage.0 + 1 < STAGES, "stage {}", commitment.stage);
    }
}

#[test]
fn moments_of_an_epoch_end_where_those_of_the_next_begin_and_first_ones_are_fresh() {
    let (pipeline, [first, second]) = trained(TrainingMode::Local, 5);
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first.moments, Some(moments::fresh()));
        assert_eq!(first.moments_after, second.moments);
        assert_ne!(second.moments, second.moments_after);
        let bytes = pipeline.blobs.blob(second.moments.unwrap()).expect("they are published");
        let parameters = (bytes.len() - 8) / 8;
        assert_eq!(bytes.len(), moments::bytes_max(parameters));
        assert_eq!(OptimizerState::from_bytes(&bytes, parameters).map(|state| state.step), Ok(3));
    }
    let (_, epochs) = trained(TrainingMode::Synchronous, 5);
    for commitment in epochs.iter().flatten() {
        assert_eq!((commitment.moments, commitment.moments_after), (None, None));
    }
}

#[test]
fn other_moments_give_another_contribution() {
    let (mut pipeline, [_, second]) = trained(TrainingMode::Local, 5);
    for commitment in &second {
        let claimed = Commitment { moments: Some(moments::fresh()), ..commitment.clone() };
        let (again, _) = replayed(&mut pipeline, &claimed);
        let difference = measured(&mut pipeline, &again, &commitment.partitions);
        assert!(difference.relative_error_ppm > DISHONEST_PPM, "{difference:?}");
    }
}

#[test]
fn moments_that_are_not_here_or_are_none_cannot_be_taken() {
    let (mut pipeline, [first, second]) = trained(TrainingMode::Local, 5);
    let state = second[0].start.clone().expect("a later epoch");
    let mut worker = pipeline.validator(&first[0], Device::Cpu).expect("all is here");
    let short = pipeline.blobs.insert(Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0]));
    for (hash, reason) in [(Hash::of(b"gone"), "is not here"), (short, "optimizer state has 8 bytes")] {
        let (stage, version, weights, parts) =
            (state.stage, state.version, state.weights, state.parts.clone());
        let load = Job::Load { stage, version, weights, parts, moments: Some(hash) };
        match worker.perform(&load, &mut pipeline.blobs) {
            JobDone::Failed(text) => assert!(text.contains(reason), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn another_order_of_sums_is_a_small_difference() {
    let mut largest = 0;
    for mode in MODES {
        for seed in 1..4 {
            let (mut pipeline, epochs) = trained(mode, seed);
            for commitment in epochs.iter().flatten() {
                let receipts = reordered(commitment.receipts.clone(), |receipt| u64::MAX - receipt.sample.0);
                assert_ne!(receipts, commitment.receipts);
                let (again, _) = replayed(&mut pipeline, &Commitment { receipts, ..commitment.clone() });
                assert_ne!(again.partitions, commitment.partitions, "order matters to the last bits");
                let difference = measured(&mut pipeline, &again, &commitment.partitions);
                largest = largest.max(difference.relative_error_ppm);
            }
        }
    }
    assert!((1..=ROUNDING_PPM).contains(&largest), "{largest}");
}

#[test]
fn what_is_no_honest_contribution_is_far_from_ours() {
    for mode in MODES {
        let (mut pipeline, [first, second]) = trained(mode, 5);
        for (stale, commitment) in first.iter().zip(&second) {
            let theirs = &commitment.partitions;
            let (ours, _) = replayed(&mut pipeline, commitment);
            let scaled = changed(&mut pipeline, theirs, |value| value * 1.5);
            let flipped = changed(&mut pipeline, theirs, |value| -value);
            let unmoved = changed(&mut pipeline, theirs, |_| 0.0);
            let skipped = without_a_sample(&mut pipeline, commitment);
            let mut measure = |theirs: &[Hash]| measured(&mut pipeline, &ours, theirs);
            let Measured { relative_error_ppm, cosine_ppm, norm_ratio_ppm, .. } = measure(&scaled);
            assert!(relative_error_ppm.abs_diff(500_000) <= 1, "a product rounds: {relative_error_ppm}");
            assert_eq!((cosine_ppm, norm_ratio_ppm), (1_000_000, 666_667));
            let Measured { relative_error_ppm, cosine_ppm, norm_ratio_ppm, .. } = measure(&flipped);
            assert_eq!((relative_error_ppm, cosine_ppm, norm_ratio_ppm), (2_000_000, -1_000_000, 1_000_000));
            let Measured { relative_error_ppm, cosine_ppm, norm_ratio_ppm, .. } = measure(&unmoved);
            assert_eq!((relative_error_ppm, cosine_ppm, norm_ratio_ppm), (1_000_000, 0, 0));
            assert!(measure(&stale.partitions).relative_error_ppm > DISHONEST_PPM);
            assert!(measure(&skipped).relative_error_ppm > DISHONEST_PPM);
        }
    }
}

/// The contribution of a miner that left a sample out, and says that it did not.
fn without_a_sample(pipeline: &mut Pipeline, commitment: &Commitment) -> Vec<Hash> {
    let mut receipts = commitment.receipts.clone();
    receipts.remove(receipts.len() / 2);
    let receipts = reordered(receipts, |receipt| u64::from(receipt.turn));
    replayed(pipeline, &Commitment { receipts, ..commitment.clone() }).0.partitions
}

#[test]
fn what_is_no_tensor_of_theirs_is_a_result_and_of_ours_a_failed_job() {
    let (mut pipeline, [first, _]) = trained(TrainingMode::Local, 5);
    let commitment = &first[0];
    let kind = Tensor::Contribution { stage: StageIndex(0) };
    let ours = &commitment.partitions;
    let with = |index: usize, hash: Hash| {
        let mut theirs = ours.clone();
        theirs[index] = hash;
        theirs
    };
    let nan = changed(&mut pipeline, ours, |_| f32::NAN)[2];
    let short = pipeline.blobs.insert(Bytes::from_static(&[0; 4]));
    for theirs in [with(2, nan), with(2, short)] {
        let incomparable = JobDone::Compared(Difference::Incomparable { pair: 2 });
        assert_eq!(compared(&mut pipeline, kind, ours, &theirs), incomparable);
        let JobDone::Failed(_) = compared(&mut pipeline, kind, &theirs, ours) else { panic!("ours is none") };
    }
    let JobDone::Failed(text) = compared(&mut pipeline, kind, &[], &[]) else { panic!("no partitions") };
    assert_eq!(text, "compare tensors: contribution has 0 partitions, expected 4");
    assert!(pipeline.blobs.remove(ours[0]), "it was here");
    let JobDone::Failed(text) = compared(&mut pipeline, kind, ours, ours) else { panic!("a blob is gone") };
    assert_eq!(text, format!("compare tensors: blob {} is not here", ours[0]));
}

#[test]
fn of_activations_the_worst_pair_is_named() {
    let (mut pipeline, [first, _]) = trained(TrainingMode::Local, 5);
    let ours: Vec<Hash> = first[0].receipts.iter().filter_map(|receipt| receipt.output).collect();
    assert_eq!(
        compared(&mut pipeline, Tensor::Activation, &ours, &ours),
        JobDone::Compared(Difference::NONE)
    );
    let mut theirs = ours.clone();
    theirs[3] = changed(&mut pipeline, &ours[3..4], |value| value * 1.25)[0];
    theirs[5] = changed(&mut pipeline, &ours[5..6], |value| value * 0.5)[0];
    let expected =
        Measured { relative_error_ppm: 500_000, cosine_ppm: 1_000_000, norm_ratio_ppm: 500_000, worst: 5 };
    assert_eq!(
        compared(&mut pipeline, Tensor::Activation, &ours, &theirs),
        JobDone::Compared(Difference::Measured(expected))
    );
    theirs[1] = first[0].partitions[0];
    let incomparable = JobDone::Compared(Difference::Incomparable { pair: 1 });
    assert_eq!(compared(&mut pipeline, Tensor::Activation, &ours, &theirs), incomparable);
}

/// What comes of a partition to which each of these contributed, with the peers numbered from 1.
fn reduced(pipeline: &mut Pipeline, epoch: Epoch, partitions: &[Hash]) -> Result<Hash, PeerId> {
    let inputs = (1..).zip(partitions).map(|(peer, hash)| (PeerId([peer; 32]), 4, *hash)).collect();
    let mut worker = Worker::new(Arc::clone(pipeline.spec()), Device::Cpu, None);
    let job = Job::Reduce { stage: StageIndex(0), epoch, partition: PartitionIndex(0), inputs };
    match worker.perform(&job, &mut pipeline.blobs) {
        JobDone::Reduced { merged, .. } => merged,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_contribution_that_no_inner_steps_lead_to_is_named_and_gradients_may_be_of_any_size() {
    for mode in MODES {
        let (mut pipeline, epochs) = trained(mode, 5);
        for (epoch, commitments) in [Epoch(0), Epoch(1)].into_iter().zip(&epochs) {
            let honest = commitments[0].partitions.clone();
            let [flipped, scaled, huge] =
                [-1.0, 100.0, 1e30].map(|factor| changed(&mut pipeline, &honest, |value| value * factor)[0]);
            assert!(reduced(&mut pipeline, epoch, &[honest[0], flipped]).is_ok(), "{mode:?} {epoch}");
            let limit = contribution_max(pipeline.spec(), epoch);
            let all: Vec<Hash> = commitments.iter().flat_map(|of| of.partitions.clone()).collect();
            let largest = numbers(&pipeline, &all)
                .into_iter()
                .map(|number| f64::from(number.abs()))
                .fold(0.0, f64::max);
            assert!(largest < limit / 4.0, "{mode:?} {epoch}: {largest} of {limit}");
            for large in [scaled, huge] {
                let merged = reduced(&mut pipeline, epoch, &[honest[0], large, flipped]);
                match mode {
                    TrainingMode::Local => assert_eq!(merged, Err(PeerId([2; 32])), "{epoch}"),
                    TrainingMode::Synchronous => assert!(merged.is_ok(), "{epoch}: {merged:?}"),
                }
            }
        }
    }
}

#[test]
fn a_merged_partition_that_no_contributions_come_to_changes_nothing() {
    for mode in MODES {
        // The weights of the head stage once this was merged in place of its first partition.
        let next = |merged: &dyn Fn(&[u8]) -> Vec<u8>| {
            let (spec, corpus) =
                (Arc::new(spec(mode)), builtin_corpus(&spec(mode)).expect("a long enough text"));
            let mut pipeline = Pipeline::new(spec, Arc::new(corpus), Device::Cpu, 5).expect("a processor");
            let mut first = pipeline.epoch(Epoch(0)).expect("it trains");
            let honest = pipeline.blobs.blob(first[0].partitions[0]).expect("a partition");
            first[0].partitions[0] = pipeline.blobs.insert(merged(&honest).into());
            pipeline.merge(&first).expect("it merges");
            pipeline.epoch(Epoch(1)).expect("it trains")[0].start.as_ref().expect("it was merged").weights
        };
        let filled = |number: f32, honest: &[u8]| number.to_le_bytes().repeat(honest.len() / 4);
        let nothing = next(&|honest| filled(0.0, honest));
        assert_ne!(next(&<[u8]>::to_vec), nothing, "{mode:?}");
        assert_eq!(next(&|_| b"no partition".to_vec()), nothing, "{mode:?}");
        assert_eq!(next(&|honest| filled(f32::NAN, honest)), nothing, "{mode:?}");
        let large = next(&|honest| filled(100.0, honest));
        assert_eq!(large == nothing, mode == TrainingMode::Local, "{mode:?}");
    }
}
