//! Bounds the connections that strangers may hold on one protocol.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iroh::EndpointId;
use iroh::endpoint::{Connection, VarInt};
use iroh::protocol::{AcceptError, ProtocolHandler};
use tokio_util::sync::CancellationToken;

use crate::metrics::DataMetrics;

/// Connections of all peers on one protocol. A run has hundreds of peers, each with one.
const CONNECTIONS_MAX: usize = 1024;
/// Connections of one peer on one protocol: one, and what a restart or a changed address leaves behind
/// until it times out.
const CONNECTIONS_PER_PEER_MAX: usize = 4;
/// Error code of a connection that is one too many.
const TOO_MANY: VarInt = VarInt::from_u32(8);

/// Error code of a connection to a process whose successor has been heard.
const REPLACED: VarInt = VarInt::from_u32(9);

/// A protocol that turns connections away above the limits.
#[derive(Debug, Clone)]
pub(super) struct Limited<P> {
    protocol: P,
    places: Places,
    metrics: DataMetrics,
}

impl<P> Limited<P> {
    pub(super) fn new(protocol: P, metrics: DataMetrics) -> Self {
        Self { protocol, places: Places::default(), metrics }
    }

    /// The places of its connections.
    pub(super) fn places(&self) -> Places {
        self.places.clone()
    }
}

/// The open connections, by peer; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    /// What closes each connection, by its number.
    peers: BTreeMap<EndpointId, BTreeMap<u64, CancellationToken>>,
    next: u64,
}

impl Places {
    /// Closes the connections of a peer.
    pub(super) fn close(&self, peer: EndpointId) {
        let open = self.open();
        let connections = open.peers.get(&peer).into_iter().flat_map(BTreeMap::values);
        connections.for_each(CancellationToken::cancel);
    }

    /// Takes a place for a peer, if one is free.
    fn enter(&self, peer: EndpointId) -> Option<Place> {
        let mut open = self.open();
        let total: usize = open.peers.values().map(BTreeMap::len).sum();
        let held = open.peers.get(&peer).map_or(0, BTreeMap::len);
        if total >= CONNECTIONS_MAX || held >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        let (number, close) = (open.next, CancellationToken::new());
        open.next += 1;
        open.peers.entry(peer).or_default().insert(number, close.clone());
        Some(Place { peer, number, close, places: self.clone() })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place; dropping it frees the place.
struct Place {
    peer: EndpointId,
    number: u64,
    close: CancellationToken,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open();
        if let Some(held) = open.peers.get_mut(&self.peer) {
            held.remove(&self.number);
            if held.is_empty() {
                open.peers.remove(&self.peer);
            }
        }
    }
}

impl<P: ProtocolHandler> ProtocolHandler for Limited<P> {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let Some(place) = self.places.enter(connection.remote_id()) else {
            self.metrics.connection_refused();
            connection.close(TOO_MANY, b"too many connections");
            return Ok(());
        };
        tokio::select! {
            result = self.protocol.accept(connection.clone()) => result,
            () = place.close.cancelled() => {
                connection.close(REPLACED, b"another process of this peer runs");
                Ok(())
            }
        }
    }

    async fn shutdown(&self) {
        self.protocol.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_per_peer_and_in_total_and_come_back() {
        let all = Places::default();
        let peer = |number: u32| {
            let mut secret = [0; 32];
            secret[..4].copy_from_slice(&number.to_le_bytes());
            iroh::SecretKey::from_bytes(&secret).public()
        };
        let mut places = Vec::new();
        for number in 0..256 {
            for _ in 0..CONNECTIONS_PER_PEER_MAX {
                places.push(all.enter(peer(number)).unwrap());
            }
            assert!(all.enter(peer(number)).is_none());
        }
        assert_eq!(places.len(), CONNECTIONS_MAX);
        assert!(all.enter(peer(999)).is_none());
        drop(places.pop());
        places.push(all.enter(peer(999)).unwrap());
        drop(places);
        assert!(all.open().peers.is_empty());
    }
}
