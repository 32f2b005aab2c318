//! The mirror: an object store outside of the swarm, which every host reaches and which never loses anything.
//!
//! A transfer takes what the host's own link allows, as if nothing else were on it.

use std::time::Duration;

use iota_protocol::wire::encode;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Hash, moments};

use super::{Event, Fetch, World};
use crate::blobs::Blob;
use crate::network::{HostIndex, wire_time};

/// From a request to the first byte of an object store.
const RESPONSE: Duration = Duration::from_millis(50);

impl World {
    /// Copies blobs of a host that are not there; returns the bytes, or nothing if the host has lost one of them.
    pub(super) fn mirror(&mut self, host: HostIndex, blobs: &[Hash]) -> Option<u64> {
        let mut bytes = 0;
        for hash in blobs {
            if !self.mirror.contains_key(hash) {
                let blob = self.hosts[host].store.get(hash)?.clone();
                bytes += blob.bytes;
                self.mirror.insert(*hash, blob);
            }
        }
        Some(bytes)
    }

    /// Copies a state and its offer, and tells the host when it is there.
    pub(super) fn mirror_state(&mut self, host: HostIndex, id: u64, state: &StateOffer) {
        let bytes = self.mirror(host, &state.parts);
        if bytes.is_some() {
            let (hash, offer) = Blob::of(encode(state));
            self.mirror.insert(hash, offer);
        }
        let duration = RESPONSE + wire_time(bytes.unwrap_or(0), self.hosts[host].setup.link.up);
        let (incarnation, there) = (self.hosts[host].incarnation, bytes.is_some());
        self.queue.push(duration, Event::Mirrored { host, incarnation, id, there });
    }

    /// Tells the host that its moments are there, when its link has carried as many bytes. Nobody reads them: no run is resumed here.
    pub(super) fn mirror_moments(&mut self, host: HostIndex, id: u64) {
        let bytes = moments::bytes_max(self.costs.parameters) as u64;
        let duration = RESPONSE + wire_time(bytes, self.hosts[host].setup.link.up);
        let (incarnation, hash) = (self.hosts[host].incarnation, Hash::of(&id.to_le_bytes()));
        self.queue.push(duration, Event::MomentsMirrored { host, incarnation, id, hash });
    }

    /// Ends a fetch that no peer could serve: with what the mirror has, or nothing.
    pub(super) fn fetch_mirror(&mut self, fetch: &Fetch) {
        let blob =
            self.mirror.get(&fetch.hash).filter(|blob| fetch.mirrored && blob.bytes <= fetch.limit).cloned();
        let down = self.hosts[fetch.host].setup.link.down;
        let delay = blob.as_ref().map_or(Duration::ZERO, |blob| RESPONSE + wire_time(blob.bytes, down));
        self.fetch_ends(fetch, blob, delay);
    }
}
