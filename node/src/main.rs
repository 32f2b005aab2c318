//! The `iota-node` binary; see [`iota_node::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    iota_node::cli::main()
}
