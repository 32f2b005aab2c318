//! What a person reads when something is wrong: one sentence with expected and got, what to type next, an exit code.

use std::os::unix::fs::PermissionsExt;

use crate::support::Cli;
use insta::assert_snapshot;

#[test]
fn a_wrong_flag_is_answered_with_the_right_one() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["up", "--stage", "3"])));
}

#[test]
fn a_wrong_duration_names_its_form() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["up", "--kill-after", "2@soon"])));
}

#[test]
fn a_wrong_size_names_its_form() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["join", "--spec", "run.toml", "--disk-quota", "20 GB"])));
}

#[test]
fn a_quota_that_is_met_at_the_start_says_what_to_do() {
    let cli = Cli::new();
    let key = cli.init(&["--stages", "1", "--miners", "1", "--set", "data.builtin_bytes=64KiB"]);
    std::fs::create_dir(cli.path().join("data")).unwrap();
    std::fs::write(cli.path().join("data/old"), vec![1; 8192]).unwrap();
    let args = ["join", "--spec", "run.toml", "--key", key, "--data-dir", "data", "--disk-quota", "4KiB"];
    let output = cli.run(&args);
    let shown = cli.show(&output);
    assert!(shown.starts_with("exit code 4\n"), "{shown}");
    assert!(shown.contains("bytes free within the quota of 4KiB, got "), "{shown}");
    assert!(shown.contains("help: free some room there (`df -h data`) or raise --disk-quota"), "{shown}");
    assert_eq!(std::fs::read_dir(cli.path().join("data")).unwrap().count(), 1, "nothing was written");
}

#[test]
fn a_missing_data_file_is_named() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["up", "--data", "no-such.txt"])));
    assert!(!cli.path().join("runs").exists(), "nothing was started");
}

#[test]
fn another_data_file_than_the_run_demands_is_refused_with_both_hashes() {
    let cli = Cli::new();
    cli.write("corpus.txt", "some other text\n");
    let hash = format!("data.hash={}", "ab".repeat(32));
    cli.init(&["--set", "data.source=file", "--set", &hash]);
    assert_snapshot!(cli.show(&cli.run(&["join", "--spec", "run.toml", "--data", "corpus.txt"])));
}

#[test]
fn a_run_that_needs_a_file_says_so() {
    let cli = Cli::new();
    let hash = format!("data.hash={}", "ab".repeat(32));
    cli.init(&["--set", "data.source=file", "--set", &hash]);
    assert_snapshot!(cli.show(&cli.run(&["join", "--spec", "run.toml"])));
}

#[test]
fn an_unknown_key_of_the_spec_is_shown_where_it_is() {
    let cli = Cli::new();
    let spec = cli.write("run.toml", "[training]\nepochs = 3\nlearning_rat = 0.1\n");
    assert_snapshot!(cli.show(&cli.run(&["join", "--spec", spec])));
}

#[test]
fn an_impossible_relation_is_explained_and_leaves_no_folder() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["up", "--set", "model.heads=3"])));
    assert_eq!(std::fs::read_dir(cli.path().join("runs")).unwrap().count(), 0);
}

#[test]
fn an_unknown_key_of_the_configuration_file_is_refused() {
    let cli = Cli::new();
    let file = cli.write("node.toml", "[join]\ndevise = \"cpu\"\n");
    assert_snapshot!(cli.show(&cli.run(&["--config", file, "config", "show"])));
}

#[test]
fn a_file_that_is_no_key_is_refused_without_showing_it() {
    let cli = Cli::new();
    cli.init(&[]);
    let key = cli.write("my.key", "deadbeef\n");
    std::fs::set_permissions(cli.path().join(key), std::fs::Permissions::from_mode(0o600)).unwrap();
    let shown = cli.show(&cli.run(&["join", "--spec", "run.toml", "--key", key]));
    assert!(!shown.contains("deadbeef"));
    assert_snapshot!(shown);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let cli = Cli::new();
    let key = cli.init(&[]);
    std::fs::set_permissions(cli.path().join(key), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_snapshot!(cli.show(&cli.run(&["join", "--spec", "run.toml", "--key", key])));
}

#[test]
fn standing_for_orchestrator_takes_a_candidates_key() {
    let cli = Cli::new();
    cli.init(&[]);
    // A fixed key, so that the message is the same every time.
    let key = cli.write("my.key", &"11".repeat(32));
    std::fs::set_permissions(cli.path().join(key), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_snapshot!(cli.show(&cli.run(&["join", "--spec", "run.toml", "--orchestrator", "--key", key])));
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_device_that_is_not_compiled_in_names_the_feature() {
    let cli = Cli::new();
    cli.init(&["--set", "data.builtin_bytes=64KiB"]);
    assert_snapshot!(cli.show(&cli.run(&["control", "--spec", "run.toml", "--device", "cuda:0"])));
}

#[test]
fn a_missing_checkpoint_is_named() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["generate", "--checkpoint", "no-such", "--prompt", "One"])));
}

#[test]
fn a_fault_must_name_a_process() {
    let cli = Cli::new();
    assert_snapshot!(cli.show(&cli.run(&["up", "--kill-after", "8@e1"])));
}

#[test]
fn a_spec_is_never_overwritten() {
    let cli = Cli::new();
    cli.init(&[]);
    assert_snapshot!(cli.show(&cli.run(&["init"])));
}
