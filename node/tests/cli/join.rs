//! `join` against a world that does not answer.

use std::net::{TcpListener, UdpSocket};

use crate::support::Cli;
use insta::assert_snapshot;

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
