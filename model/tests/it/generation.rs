//! Text is a function of weights, prompt and options.

use iota_model::{
    StageSelect,
    generate::{GenerateError, GenerateOptions, generate},
};

use crate::support::{engine, model};

const OPTIONS: GenerateOptions = GenerateOptions { tokens: 20, temperature: 1.0, top_k: None, seed: 1 };

#[test]
fn same_seed_gives_the_same_tokens_and_another_seed_others() {
    let mut whole = engine(&model(3, Some(5)), StageSelect::Whole);
    let tokens = generate(whole.as_mut(), &[1, 2], &OPTIONS).unwrap();
    assert_eq!(tokens.len(), 20);
    assert_eq!(generate(whole.as_mut(), &[1, 2], &OPTIONS).unwrap(), tokens);
    let other = GenerateOptions { seed: 2, ..OPTIONS };
    assert_ne!(generate(whole.as_mut(), &[1, 2], &other).unwrap(), tokens);
}

#[test]
fn one_candidate_is_the_likeliest_at_any_temperature() {
    let mut whole = engine(&model(3, Some(5)), StageSelect::Whole);
    let greedy = GenerateOptions { temperature: 0.0, ..OPTIONS };
    let one = GenerateOptions { top_k: Some(1), temperature: 5.0, ..OPTIONS };
    let likeliest = generate(whole.as_mut(), &[3], &greedy).unwrap();
    assert_eq!(generate(whole.as_mut(), &[3], &one).unwrap(), likeliest);
}

#[test]
fn impossible_requests_are_refused() {
    let mut whole = engine(&model(3, Some(5)), StageSelect::Whole);
    let mut refuse =
        |prompt: &[u32], options| generate(whole.as_mut(), prompt, &options).unwrap_err().to_string();
    assert_eq!(refuse(&[], OPTIONS), "the prompt is empty, expected at least one token");
    assert_eq!(
        refuse(&[1], GenerateOptions { temperature: -1.0, ..OPTIONS }),
        "temperature is -1, expected a finite number, at least 0"
    );
    assert_eq!(
        refuse(&[1], GenerateOptions { top_k: Some(0), ..OPTIONS }),
        "top k is 0, expected at least 1"
    );
    assert_eq!(refuse(&[13], OPTIONS), "input token 0 is 13, expected an id below 13");
    let mut head = engine(&model(3, Some(5)), StageSelect::Stage(0));
    assert!(matches!(generate(head.as_mut(), &[1], &OPTIONS), Err(GenerateError::Engine(_))));
}
