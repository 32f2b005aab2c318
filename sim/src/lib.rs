//! The simulator will live here: virtual peers in virtual time, driving the same protocol core as the node, with
//! faults and adversaries drawn from one seed. Nothing of it exists yet.
