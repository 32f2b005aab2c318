//! Miner that computes as it should and commits to it, but signs other activations and sends them on: replays match, and its
//! samples suffer.

use iota_protocol::Hash;
use iota_protocol::miner::{Action, Kept};
use iota_protocol::wire::frame::{Direction, PushHeader};

use super::numbers::Form;
use super::{Behaviour, Emission, Means};
use crate::blobs::Blob;
use crate::trainer::Compute;

/// What the loss that an activation of the toy problem carries is multiplied by.
const HARM: f64 = 1.5;

pub(super) struct TwoFaced;

impl Behaviour for TwoFaced {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let action = match action {
            Action::Push { id, to, mut header } if header.direction == Direction::Forward => {
                header.hash = spoiled(means, &header).unwrap_or(header.hash);
                Action::Push { id, to, header: header.signed(means.identity) }
            }
            action => action,
        };
        vec![Emission::Act(action)]
    }
}

/// An activation in place of the computed one, kept for as long as that.
fn spoiled(means: &mut Means<'_>, header: &PushHeader) -> Option<Hash> {
    let bytes = means.store.content(&header.hash)?;
    let spoiled = match means.compute {
        // Names without content.
        Compute::Cost => return None,
        Compute::Toy => {
            let (what, loss) = bytes.split_last_chunk::<8>()?;
            [what, &(f64::from_le_bytes(*loss) * HARM).to_le_bytes()].concat()
        }
        Compute::Real => {
            let form = Form::Wire(header.dtype);
            let mut values = form.read(bytes)?;
            values.reverse();
            form.write(&values)
        }
    };
    let (hash, blob) = Blob::of(spoiled);
    let tag = Kept::Epoch(means.stage(), header.epoch).to_string();
    means.store.keep(hash, blob, &tag).ok()?;
    Some(hash)
}
