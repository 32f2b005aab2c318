//! The binary as a person meets it: what it prints, where values come from, how it fails, and a whole local swarm.

mod errors;
mod join;
mod support;
mod up;
mod values;
