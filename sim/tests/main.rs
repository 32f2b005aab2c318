//! Whole swarms of virtual hosts, by what they are to show.

mod adversaries;
mod checkers;
mod common;
mod durability;
mod evaluations;
mod fuzzing;
mod real;
mod regressions;
mod scenarios;
mod snapshots;
mod upgrades;
mod validation;
