//! Peer that is one of many identities of one idle host: all contribute the same noise, as if they confirmed each other.
//!
//! A swarm with sybils has several hosts of this kind, with the link and the speed of one host divided among them.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::pretended;
use super::{Behaviour, Means};
use crate::random::Random;

/// Standard deviation of the noise, of the order of an early epoch's gradient.
const NOISE: f64 = 0.1;

pub(super) struct Sybil;

impl Behaviour for Sybil {
    fn shirks(&mut self, means: &mut Means<'_>, job: &Job) -> Option<JobDone> {
        pretended(means, job, |means, len| {
            let mut shared = Random::new(means.spec.seed, &format!("sybils of stage {}", means.stage()));
            (0..len).map(|_| NOISE * shared.normal()).collect()
        })
    }
}
