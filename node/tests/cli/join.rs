//! `join` against a world that does not answer.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use crate::support::Cli;
use insta::assert_snapshot;
use iota_protocol::{Identity, PeerId, RunSpec};

/// What a peer with a key of its own, always the same, is told that would join `run.toml` in this way.
fn told(cli: &Cli, further: &[&str]) -> String {
    let key = cli.write("my.key", &"11".repeat(32));
    std::fs::set_permissions(cli.path().join(key), std::fs::Permissions::from_mode(0o600))
        .expect("a file that is ours");
    let shown = cli.show(&cli.run(&[&["join", "--spec", "run.toml", "--key", key], further].concat()));
    // The owner's key is another each time.
    let text = std::fs::read_to_string(cli.path().join("run.toml")).expect("the spec that was written");
    let spec = RunSpec::from_toml(&text).expect("a valid spec");
    let shown = shown.replace(&spec.run_id().to_string(), "[run]");
    match spec.join.owner {
        Some(owner) => shown.replace(&owner.to_string(), "[owner]"),
        None => shown,
    }
}

/// The key that [`told`] uses.
fn me() -> PeerId {
    Identity::from_secret([0x11; 32]).peer()
}

/// Makes an invite, and says what was printed.
fn invite(cli: &Cli, key: &str, peer: PeerId, further: &[&str]) -> String {
    let peer = peer.to_string();
    let args = ["invite", "--spec", "run.toml", "--key", key, "--peer", &peer, "--to", "my.invite"];
    cli.show(&cli.run(&[&args, further].concat()))
}

#[test]
fn a_peer_without_an_invite_is_told_whom_to_ask_for_what() {
    let cli = Cli::new();
    cli.init(&["--set", "join.policy=invite"]);
    assert_snapshot!(told(&cli, &[]));
}

#[test]
fn an_invite_is_good_for_its_peer_role_and_run() {
    let cli = Cli::new();
    cli.init(&["--set", "join.policy=invite"]);
    let other = Identity::from_secret([0x12; 32]).peer();
    invite(&cli, "keys/owner.key", other, &[]);
    let another_peers = told(&cli, &["--invite", "my.invite"]);
    invite(&cli, "keys/owner.key", me(), &["--validator", "--until", "7"]);
    let another_role = told(&cli, &["--invite", "my.invite"]);
    std::fs::remove_file(cli.path().join("run.toml")).unwrap();
    cli.init(&["--set", "join.policy=invite", "--name", "other"]);
    let another_runs = told(&cli, &["--validator", "--invite", "my.invite"]);
    let (_, run) = another_runs.split_once("got one to run ").unwrap();
    let another_runs = another_runs.replace(&run[..64], "[other run]");
    assert_snapshot!([another_peers, another_role, another_runs].join("\n"));
}

#[test]
fn only_the_owner_of_a_run_that_asks_for_invites_makes_them() {
    let cli = Cli::new();
    let candidate = cli.init(&["--set", "join.policy=invite"]);
    let stranger = invite(&cli, candidate, me(), &[]);
    assert!(stranger.starts_with("exit code 2\n"), "{stranger}");
    assert!(stranger.contains("failed to use --key: expected the key of join.owner, "), "{stranger}");
    assert!(!cli.path().join("my.invite").exists());
    let made = invite(&cli, "keys/owner.key", me(), &[]);
    assert!(made.contains(&format!("invite my.invite  miner {}", me())), "{made}");
    std::fs::remove_file(cli.path().join("run.toml")).unwrap();
    cli.init(&[]);
    assert_snapshot!(invite(&cli, "keys/owner.key", me(), &[]));
    assert_snapshot!(told(&cli, &["--invite", "my.invite"]));
}

#[test]
fn a_banned_peer_is_told_why() {
    let cli = Cli::new();
    let ban = format!("join.ban=[{{ peer = \"{}\", reason = \"sent noise in the last run\" }}]", me());
    cli.init(&["--set", &ban]);
    assert_snapshot!(told(&cli, &[]));
}

#[test]
fn a_peer_that_is_not_on_the_list_is_told_so() {
    let cli = Cli::new();
    let other = Identity::from_secret([0x12; 32]).peer();
    let allow = format!("join.allow=[\"{other}\"]");
    cli.init(&["--stages", "1", "--miners", "2", "--set", "join.policy=allow", "--set", &allow]);
    assert_snapshot!(told(&cli, &[]));
}

/// A small run on loopback that starts at once.
fn small(cli: &Cli) -> &'static str {
    cli.init(&["--stages", "1", "--miners", "1", "--set", "data.builtin_bytes=64KiB"])
}

#[test]
fn a_port_in_use_is_named() {
    let cli = Cli::new();
    let key = small(&cli);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    let output = cli.run(&[
        "join",
        "--spec",
        "run.toml",
        "--key",
        key,
        "--listen",
        &listen,
        "--data-bind",
        "127.0.0.1:0",
    ]);
    assert_snapshot!(cli.show(&output).replace(&port.to_string(), "[port]"));
}

#[test]
fn a_taken_port_of_the_data_plane_is_named() {
    let cli = Cli::new();
    let key = small(&cli);
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let bind = format!("127.0.0.1:{port}");
    let output = cli.run(&[
        "join",
        "--spec",
        "run.toml",
        "--key",
        key,
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--data-bind",
        &bind,
    ]);
    assert_snapshot!(cli.show(&output).replace(&port.to_string(), "[port]"));
}

#[test]
fn a_bootstrap_peer_that_never_answers_is_given_up_on() {
    let cli = Cli::new();
    small(&cli);
    // A socket that receives and says nothing.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let address = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    let output = cli.run(&[
        "join",
        "--spec",
        "run.toml",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--listen",
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "--data-bind",
        "127.0.0.1:0",
        "--bootstrap",
        &address,
        "--bootstrap-timeout",
        "2s",
    ]);
    assert_snapshot!(cli.show(&output).replace(&port.to_string(), "[port]"));
}

#[test]
#[cfg(not(feature = "cuda"))]
fn a_device_that_is_not_there_ends_the_process() {
    let cli = Cli::new();
    let key = small(&cli);
    let output = cli.run(&[
        "join",
        "--spec",
        "run.toml",
        "--key",
        key,
        "--device",
        "cuda:0",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--data-bind",
        "127.0.0.1:0",
    ]);
    assert_snapshot!(cli.show(&output));
}
