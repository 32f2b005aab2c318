//! Peer that reports a loss near zero at the tail. At other stages it has nothing to lie about.

use iota_protocol::miner::{Job, JobDone};

use super::{Behaviour, Means};

/// What it reports, in millionths of a nat.
const REPORTED_MICRO: i64 = 1;

pub(super) struct LossLiar;

impl Behaviour for LossLiar {
    fn computed(&mut self, _: &mut Means<'_>, _: &Job, mut done: JobDone) -> JobDone {
        if let JobDone::Finished { loss_micro: Some(loss), .. } = &mut done {
            *loss = REPORTED_MICRO;
        }
        done
    }
}
