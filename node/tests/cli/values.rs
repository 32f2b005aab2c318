//! What the verbs print when all is well, and where option values come from.

use crate::support::Cli;
use insta::assert_snapshot;
use iota_model::checkpoint::Checkpoint;
use iota_model::{Device, StageSelect, build_engine};
use iota_node::bridge::engine_config;
use iota_protocol::RunSpec;
use iota_protocol::spec::Bottleneck;
use serde_json::Value;

/// The JSON that a successful command prints.
fn json(cli: &Cli, args: &[&str]) -> Value {
    let output = cli.run(args);
    assert!(output.status.success(), "{}", cli.show(&output));
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

/// A tiny model that was never trained, saved below the scratch folder.
fn checkpoint(cli: &Cli) {
    let mut spec = RunSpec::default();
    let model = &mut spec.model;
    (model.context, model.width, model.layers, model.heads, model.kv_heads, model.hidden) =
        (16, 16, 3, 2, 1, 32);
    model.bottleneck = Bottleneck::Width(8);
    let config = engine_config(&spec, StageSelect::Whole);
    let weights = build_engine(&config, &Device::Cpu)
        .expect("the system allows it")
        .weights()
        .expect("the system allows it");
    let whole = Checkpoint { model: config.model, stage: None, version: 0, weights };
    whole.save(&cli.path().join("checkpoint")).expect("the system allows it");
}

#[test]
fn help_lists_the_verbs_and_exit_codes() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["--help"])));
}

#[test]
fn the_built_in_spec_is_shown_with_meanings_and_origins() {
    let cli = Cli::new();
    let output = cli.run(&["config", "show", "--", "generate"]);
    assert_snapshot!(cli.show(&output));
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let cli = Cli::new();
    let file = cli.write("node.toml", "[join]\ndevice = \"wgpu:1\"\nmdns = true\ndata-dir = \"from-file\"\n");
    let args = ["--config", file, "config", "show", "--json", "--", "join", "--device", "cpu"];
    let output =
        cli.command(&args).env("IOTA_DEVICE", "cuda:1").env("IOTA_DATA_DIR", "from-env").output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    let options = shown["options"]["join"].as_array().unwrap();
    let find = |name: &str| {
        let option = options.iter().find(|option| option["name"] == name).expect("a known option");
        format!("{} {}", option["value"].as_str().unwrap(), option["origin"].as_str().unwrap())
    };
    assert_eq!(find("device"), "cpu flag");
    assert_eq!(find("data-dir"), "from-env env");
    assert_eq!(find("mdns"), "true file");
    assert_eq!(find("num-miners"), "1 default");
}

#[test]
fn fields_of_the_spec_have_origins_too() {
    let cli = Cli::new();
    let spec = cli.write("run.toml", "[training]\nepochs = 3\ninner_steps = 2\n");
    let shown = json(&cli, &["config", "show", "--json", "--spec", spec, "--epochs", "5"]);
    assert_eq!(shown["spec"]["training.epochs"]["value"], 5);
    assert_eq!(shown["spec"]["training.epochs"]["origin"], "flag");
    assert_eq!(shown["spec"]["training.inner_steps"]["origin"], "file");
    assert_eq!(shown["spec"]["training.beta1"]["origin"], "default");
}

#[test]
fn an_untrained_model_is_as_good_as_a_uniform_guess() {
    let cli = Cli::new();
    checkpoint(&cli);
    let text = cli.write("text.txt", &"One cold day a rabbit lived in the valley. ".repeat(8));
    let measured =
        json(&cli, &["eval", "--checkpoint", "checkpoint", "--data", text, "--device", "cpu", "--json"]);
    // ln 256 = 5.545; the initial logits are small but not zero.
    assert!((measured["nats"].as_f64().unwrap() - 5.545).abs() < 0.1, "{measured}");
    assert!((measured["bits_per_byte"].as_f64().unwrap() - 8.0).abs() < 0.15, "{measured}");
    assert_eq!(measured["tokens"], 336, "21 windows of 16");
}

#[test]
fn the_same_seed_writes_the_same_text() {
    let cli = Cli::new();
    checkpoint(&cli);
    let sample = |seed: &str| {
        let prompt =
            ["generate", "--checkpoint", "checkpoint", "--prompt", "One", "--tokens", "20", "--seed", seed];
        let output = cli.run(&[prompt.as_slice(), &["--device", "cpu"]].concat());
        assert!(output.status.success(), "{}", cli.show(&output));
        output.stdout
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
    assert!(sample("1").starts_with(b"One"));
}

#[test]
fn init_writes_a_spec_that_reads_back_and_one_key_per_candidate() {
    let cli = Cli::new();
    cli.init(&["--candidates", "3", "--name", "ours", "--stages", "2"]);
    let spec = RunSpec::from_toml(&std::fs::read_to_string(cli.path().join("run.toml")).unwrap()).unwrap();
    assert_eq!(
        (spec.name.as_str(), spec.pipeline.stages, spec.orchestrator.candidates.len()),
        ("ours", 2, 3)
    );
    for index in 0..3 {
        assert!(cli.path().join(format!("keys/candidate-{index}.key")).exists());
    }
}

#[test]
fn more_stages_than_the_built_in_model_has_layers_give_it_as_many() {
    let layers = |arguments: &[&str]| {
        let cli = Cli::new();
        cli.init(arguments);
        let text = std::fs::read_to_string(cli.path().join("run.toml")).unwrap();
        RunSpec::from_toml(&text).unwrap().model.layers
    };
    let built_in = layers(&[]);
    assert_eq!(layers(&["--stages", "1"]), built_in);
    assert_eq!(layers(&["--stages", &(built_in + 2).to_string()]), built_in + 2);
    assert_eq!(layers(&["--stages", "2", "--set", "model.layers=2"]), 2, "what is asked for stays");
}
