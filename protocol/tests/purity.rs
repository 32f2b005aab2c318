//! The core stays pure: nothing it depends on can wait, draw entropy, open a socket or hold a tensor.
//!
//! `clippy.toml` bans what our own code may call; this test bans what a dependency could bring along.

use std::collections::BTreeSet;
use std::process::Command;

/// Crates whose presence would let the outside world into the core.
const BANNED: [&str; 10] =
    ["tokio", "mio", "async-std", "smol", "getrandom", "socket2", "libp2p", "iroh", "rayon", "burn"];

/// Names of everything that `iota-protocol` is built from, without what only tests and build scripts use.
fn dependencies() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "iota-protocol", "-e", "normal", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "cargo tree failed: {errors}");
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_core_depends_on_nothing_that_reaches_outside() {
    let names = dependencies();
    assert!(names.contains("iota-protocol") && names.contains("blake3"), "the tree was read: {names:?}");
    let found: Vec<_> = BANNED.iter().filter(|banned| names.contains(**banned)).collect();
    assert!(found.is_empty(), "the core must not depend on {found:?}");
}
