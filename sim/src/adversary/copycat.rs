//! Peer that does no work and contributes another miner's partitions, which it names by the hashes of a manifest it heard.
//!
//! It holds back its own manifest until it has heard one. It need not have the bytes: owners that look for them find
//! them with their author.

use std::collections::BTreeMap;

use iota_protocol::miner::{Action, Job, JobDone};
use iota_protocol::wire::Gossip;
use iota_protocol::{Epoch, Hash, StageIndex};

use super::forgery::{announced, own_manifest, pretended};
use super::{Behaviour, Emission, Means};

#[derive(Default)]
pub(super) struct Copycat {
    heard: BTreeMap<(StageIndex, Epoch), Vec<Hash>>,
}

impl Behaviour for Copycat {
    fn shirks(&mut self, means: &mut Means<'_>, job: &Job) -> Option<JobDone> {
        pretended(means, job, |_, len| vec![0.0; len])
    }

    fn hears(&mut self, _: &mut Means<'_>, gossip: &Gossip) -> bool {
        if let Some(manifest) = gossip.manifest().map(|heard| &heard.manifest) {
            let copied = self.heard.entry((manifest.stage, manifest.epoch));
            copied.or_insert_with(|| manifest.partitions.clone());
        }
        true
    }

    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let Some(mut announce) = own_manifest(means, &action) else { return vec![Emission::Act(action)] };
        let key = (announce.manifest.stage, announce.manifest.epoch);
        match self.heard.get(&key) {
            Some(partitions) => {
                announce.manifest.partitions.clone_from(partitions);
                announced(means, announce)
            }
            None => Vec::new(),
        }
    }
}
