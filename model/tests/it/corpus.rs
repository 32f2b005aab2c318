//! Windows of a corpus depend on seed and number only, and stay in their part.

use iota_model::data::{Corpus, CorpusError};

fn corpus(length: usize) -> Corpus {
    let bytes = (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect();
    Corpus::from_bytes(bytes, 16, 0.2).unwrap()
}

#[test]
fn samples_are_a_function_of_seed_and_index() {
    let corpus = corpus(10_000);
    let sample = corpus.sample(1, 5, 3);
    assert_eq!(corpus.sample(1, 5, 3), sample);
    assert_ne!(corpus.sample(1, 6, 3), sample);
    assert_ne!(corpus.sample(2, 5, 3), sample);
    assert_eq!((sample.sequences, sample.context, sample.inputs.len()), (3, 16, 48));
    assert_eq!(corpus.sample(1, 5, 1).inputs, sample.inputs[..16], "more sequences do not move the first");
}

#[test]
fn samples_are_the_same_on_every_machine() {
    let bytes = (0..250).collect();
    let corpus = Corpus::from_bytes(bytes, 16, 0.0).unwrap();
    let starts: Vec<u32> = corpus.sample(1, 2, 4).inputs.chunks(16).map(|window| window[0]).collect();
    // Written by this test; a change gives every peer other samples than its neighbours have.
    assert_eq!(starts, [140, 102, 140, 17]);
}

#[test]
fn targets_are_the_next_tokens() {
    for batch in corpus(10_000).validation_batches(2, 2) {
        for (input, target) in batch.inputs.chunks(16).zip(batch.targets.chunks(16)) {
            assert_eq!(input[1..], target[..15]);
        }
    }
}

#[test]
fn training_never_sees_the_validation_part() {
    // Every byte of the validation part is 255, which the training part lacks.
    let mut bytes = vec![7; 80];
    bytes.extend([255; 20]);
    let corpus = Corpus::from_bytes(bytes, 16, 0.2).unwrap();
    assert_eq!((corpus.training_len(), corpus.len()), (80, 100));
    for index in 0..500 {
        let sample = corpus.sample(3, index, 2);
        assert!(sample.inputs.iter().chain(&sample.targets).all(|token| *token == 7));
    }
    let batches = corpus.validation_batches(3, 2);
    assert_eq!(batches.len(), 3);
    assert!(batches.iter().all(|batch| batch.inputs.iter().chain(&batch.targets).all(|token| *token == 255)));
}

#[test]
fn every_start_can_be_sampled() {
    let bytes = (0..40).collect();
    let corpus = Corpus::from_bytes(bytes, 16, 0.0).unwrap();
    let starts: std::collections::BTreeSet<u32> =
        (0..500).map(|index| corpus.sample(0, index, 1).inputs[0]).collect();
    assert_eq!(starts, (0..24).collect());
    assert_eq!(corpus.validation_batches(2, 2), []);
}

#[test]
fn validation_windows_reach_from_end_to_end() {
    let corpus = Corpus::from_bytes((0..200).collect(), 16, 0.5).unwrap();
    let batches = corpus.validation_batches(2, 2);
    assert_eq!(batches[0].inputs[0], 100);
    assert_eq!(batches[1].targets[31], 199);
}

#[test]
fn mapped_file_equals_bytes_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corpus.txt");
    let bytes: Vec<u8> = (0..1000_u32).map(|index| u8::try_from(index % 256).unwrap()).collect();
    std::fs::write(&path, &bytes).unwrap();
    let mapped = Corpus::open(&path, 16, 0.1).unwrap();
    let memory = Corpus::from_bytes(bytes.clone(), 16, 0.1).unwrap();
    assert_eq!(mapped.sample(1, 1, 4), memory.sample(1, 1, 4));
    assert_eq!((mapped.hash(), memory.hash()), (*blake3::hash(&bytes).as_bytes(), mapped.hash()));
}

#[test]
fn unusable_corpora_say_what_was_expected() {
    let error = Corpus::open(std::path::Path::new("/nonexistent/corpus.txt"), 16, 0.1).unwrap_err();
    assert!(error.to_string().starts_with("corpus /nonexistent/corpus.txt cannot be read: "), "{error}");
    let error = Corpus::from_bytes(vec![0; 16], 16, 0.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the training part of the corpus has 16 bytes, expected at least 17 (context + 1)"
    );
    let error = Corpus::from_bytes(vec![0; 100], 16, 0.1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the validation part of the corpus has 10 bytes, expected at least 17 (context + 1)"
    );
    let error = Corpus::from_bytes(vec![0; 100], 16, 1.0).unwrap_err();
    assert!(matches!(error, CorpusError::Fraction { .. }));
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, []).unwrap();
    assert!(Corpus::open(&empty, 16, 0.1).is_err());
}
