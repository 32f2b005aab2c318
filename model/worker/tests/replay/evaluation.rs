//! What a contribution alone does to the loss, as validators compute it.

use std::sync::Arc;

use bytes::Bytes;
use iota_model::data::Corpus;
use iota_model::engine::StageInput;
use iota_model::{Device, StageSelect, build_engine};
use iota_protocol::gauntlet::draw::Draw;
use iota_protocol::miner::{Applied, Job, JobDone, Sketched};
use iota_protocol::spec::TrainingMode;
use iota_protocol::{Epoch, Hash, RunSpec, SampleId, StageIndex};
use iota_worker::Worker;
use iota_worker::bridge::engine_config;
use iota_worker::corpus::builtin_corpus;
use iota_worker::pipeline::Pipeline;

use super::{numbers, spec};

const WHOLE: StageIndex = StageIndex(0);

/// A run of one stage, its text, and what its only miner contributes to the first epoch.
fn contributed() -> (Pipeline, Arc<Corpus>, Vec<Hash>) {
    let mut spec = spec(TrainingMode::Local);
    spec.pipeline.stages = 1;
    let corpus = Arc::new(builtin_corpus(&spec).expect("a long enough text"));
    let mut pipeline =
        Pipeline::new(Arc::new(spec), Arc::clone(&corpus), Device::Cpu, 3).expect("a processor");
    let commitments = pipeline.epoch(Epoch(0)).expect("it trains");
    let partitions = commitments[0].partitions.clone();
    (pipeline, corpus, partitions)
}

/// A validator with the weights that the epoch started from.
fn evaluator(pipeline: &mut Pipeline, corpus: Arc<Corpus>) -> Worker {
    let mut worker = Worker::new(Arc::clone(pipeline.spec()), Device::Cpu, Some(corpus));
    let done = worker.perform(&Job::Initialise { stage: WHOLE }, &mut pipeline.blobs);
    assert!(matches!(done, JobDone::Weights { .. }), "{done:?}");
    worker
}

fn losses(worker: &mut Worker, pipeline: &mut Pipeline, contribution: Option<Applied>) -> Vec<f64> {
    let job = Job::Losses { samples: (0..4).map(SampleId).collect(), contribution };
    match worker.perform(&job, &mut pipeline.blobs) {
        JobDone::Losses(losses) => losses,
        other => panic!("{other:?}"),
    }
}

/// What the samples lose with so much of a contribution taken from the first weights, by an engine of the test's own.
fn expected(spec: &RunSpec, corpus: &Corpus, contribution: &[f32], rate: f64) -> Vec<f64> {
    let config = engine_config(spec, StageSelect::Stage(0));
    let mut engine = build_engine(&config, &Device::Cpu).expect("a processor");
    let base = engine.weights().expect("weights");
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    let step = |(base, of): (&f32, &f32)| (f64::from(*base) - rate * f64::from(*of)) as f32;
    let weights: Vec<f32> = base.iter().zip(contribution).map(step).collect();
    engine.load_weights(&weights).expect("finite ones");
    let mut loss = |sample: u64| {
        let batch = corpus.sample(spec.seed, sample, spec.training.sequences_per_sample as usize);
        engine.evaluate_loss(StageInput::Tokens(batch.clone()), &batch).expect("a loss")
    };
    (0..4).map(&mut loss).collect()
}

#[test]
fn a_contribution_is_applied_for_its_losses_and_leaves_the_weights_as_they_were() {
    let (mut pipeline, corpus, partitions) = contributed();
    let contribution = numbers(&pipeline, &partitions);
    let mut worker = evaluator(&mut pipeline, Arc::clone(&corpus));
    let spec = Arc::clone(pipeline.spec());
    let before = losses(&mut worker, &mut pipeline, None);
    assert_eq!(before, expected(&spec, &corpus, &contribution, 0.0));
    for (rate_ppm, rate) in [(200_000, 0.2), (1_000_000, 1.0)] {
        let applied = Applied { partitions: partitions.clone(), rate_ppm };
        let after = losses(&mut worker, &mut pipeline, Some(applied));
        assert_eq!(after, expected(&spec, &corpus, &contribution, rate), "{rate}");
        assert!(after.iter().sum::<f64>() < before.iter().sum(), "it was trained on these: {after:?}");
    }
    assert_eq!(losses(&mut worker, &mut pipeline, None), before);
}

#[test]
fn what_is_compared_of_a_contribution_is_drawn_and_of_what_is_none_there_is_nothing() {
    let (mut pipeline, corpus, partitions) = contributed();
    let contribution = numbers(&pipeline, &partitions);
    let mut worker = evaluator(&mut pipeline, corpus);
    let plan = Hash::of(b"plan");
    let mut sketched = |pipeline: &mut Pipeline, partitions: Vec<Hash>| {
        worker.perform(&Job::Sketch { stage: WHOLE, plan, partitions }, &mut pipeline.blobs)
    };
    let JobDone::Sketched(Some(Sketched { norm, elements })) = sketched(&mut pipeline, partitions.clone())
    else {
        panic!("a contribution")
    };
    let squares: f64 = contribution.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    assert_eq!(norm.to_bits(), squares.sqrt().to_bits());
    let places = Draw::new(plan).elements(contribution.len(), 1024);
    let drawn: Vec<f64> = places.into_iter().map(|place| f64::from(contribution[place])).collect();
    assert_eq!(elements, drawn);

    let with = |hash: Hash| [&partitions[..1], &[hash], &partitions[2..]].concat();
    let short = pipeline.blobs.insert(Bytes::from_static(&[0; 4]));
    for none in [with(short), partitions[1..].to_vec()] {
        assert_eq!(sketched(&mut pipeline, none), JobDone::Sketched(None));
    }
    let missing = with(Hash::of(b"nowhere"));
    assert!(matches!(sketched(&mut pipeline, missing), JobDone::Failed(_)), "that is no fault of its miner");
}
