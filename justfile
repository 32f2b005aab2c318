# `just` lists the commands.

_list:
    @just --list --unsorted

# What a change has to pass: fmt, golden, clippy, doc, test.
check: fmt golden clippy doc test

# Formatting, as a check; `cargo fmt` mends it.
fmt:
    cargo fmt --all --check

# The wire format's golden bytes against a second implementation of docs/WIRE.md.
golden:
    python3 fixtures/golden/check.py

# Lints; warnings are errors.
clippy:
    cargo clippy --release --workspace --all-targets -- -D warnings

# Documentation of our crates; broken links are errors.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# All tests, or those that match, e.g. `just test -p iota-protocol`.
test *arguments="--workspace":
    cargo nextest run --release {{ arguments }}

# A whole swarm on this machine, e.g. `just up --help`.
up *arguments:
    cargo run --release -- up {{ arguments }}

# An hour of a swarm of which a process is killed every half minute: does anything grow? E.g. `just soak 600`.
soak seconds="3600":
    cargo bench -p iota-node --bench soak -- {{ seconds }}

# One benchmark: hop, throughput, merge, idle or outage.
bench name:
    cargo bench --workspace --bench {{ name }}

# Plants known bugs in a copy of the sources and shows which seed of the fuzzer finds each; a quarter of an hour.
mutants *arguments:
    sim/mutants/run {{ arguments }}

# Kills processes of a swarm as these seeds say and audits what is left, e.g. `just chaos 2 3 4`; E2E_KEEP=1 keeps folders.
chaos *seeds="2 3 4":
    for seed in {{ seeds }}; do CHAOS_SEED=$seed cargo nextest run --release -p iota-node --test e2e chaos || exit; done

# Licences, advisories, banned crates and sources of the dependencies.
deny:
    cargo deny check

# Everything the gate runs on a fresh clone.
ci:
    .ci/run
