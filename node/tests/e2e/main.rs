//! Swarms of real processes, from `iota-node up` to the last byte: one binary, since linking one takes a minute.

mod blobs;
mod chaos;
mod checkpoints;
mod disk;
mod exactness;
mod faults;
mod history;
mod hostile;
mod joining;
mod late_joiner;
mod leaving;
mod merges;
mod rebalancing;
mod restarts;
mod support;
mod validation;
