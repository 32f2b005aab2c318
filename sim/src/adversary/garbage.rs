//! Peer that contributes bytes that are no partition: too few, too many, or none that are whole numbers.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::altered_partitions;
use super::{Behaviour, Means};
use crate::random::Random;

pub(super) struct Garbage;

impl Behaviour for Garbage {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        let mut random = Random::new(means.random.bits(), "garbage");
        altered_partitions(means, job, done, |bytes| {
            let mut bytes = bytes.to_vec();
            match random.below(3) {
                0 => bytes.truncate(bytes.len().saturating_sub(8)),
                1 => bytes.extend([0; 8]),
                _ => {
                    bytes.pop();
                    bytes.iter_mut().for_each(|byte| *byte = random.bits().to_le_bytes()[0]);
                }
            }
            Some(bytes)
        })
    }
}
