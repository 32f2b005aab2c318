//! Bounds the connections that strangers may hold on one protocol.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use iroh::EndpointId;
use iroh::endpoint::{Connection, VarInt};
use iroh::protocol::{AcceptError, ProtocolHandler};

use crate::metrics::DataMetrics;

/// Connections of all peers on one protocol. A run has hundreds of peers, each with one.
const CONNECTIONS_MAX: usize = 1024;
/// Connections of one peer on one protocol: one, and what a restart or a changed address leaves behind
/// until it times out.
const CONNECTIONS_PER_PEER_MAX: usize = 4;
/// Error code of a connection that is one too many.
const TOO_MANY: VarInt = VarInt::from_u32(8);

/// A protocol that turns connections away above the limits.
#[derive(Debug, Clone)]
pub(super) struct Limited<P> {
    protocol: P,
    open: Arc<Mutex<BTreeMap<EndpointId, usize>>>,
    metrics: DataMetrics,
}

impl<P> Limited<P> {
    pub(super) fn new(protocol: P, metrics: DataMetrics) -> Self {
        Self { protocol, open: Arc::default(), metrics }
    }

    /// Takes a place for a peer, if one is free.
    fn enter(&self, peer: EndpointId) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = open.values().sum();
        let held = open.get(&peer).copied().unwrap_or(0);
        if total >= CONNECTIONS_MAX || held >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        open.insert(peer, held + 1);
        Some(Place { peer, open: Arc::clone(&self.open) })
    }
}

/// One connection's place; dropping it frees the place.
struct Place {
    peer: EndpointId,
    open: Arc<Mutex<BTreeMap<EndpointId, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = open.get_mut(&self.peer) {
            *held -= 1;
            if *held == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

impl<P: ProtocolHandler> ProtocolHandler for Limited<P> {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let Some(_place) = self.enter(connection.remote_id()) else {
            self.metrics.connection_refused();
            connection.close(TOO_MANY, b"too many connections");
            return Ok(());
        };
        self.protocol.accept(connection).await
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
        let limited = Limited::new((), DataMetrics::default());
        let peer = |number: u32| {
            let mut secret = [0; 32];
            secret[..4].copy_from_slice(&number.to_le_bytes());
            iroh::SecretKey::from_bytes(&secret).public()
        };
        let mut places = Vec::new();
        for number in 0..256 {
            for _ in 0..CONNECTIONS_PER_PEER_MAX {
                places.push(limited.enter(peer(number)).unwrap());
            }
            assert!(limited.enter(peer(number)).is_none());
        }
        assert_eq!(places.len(), CONNECTIONS_MAX);
        assert!(limited.enter(peer(999)).is_none());
        drop(places.pop());
        places.push(limited.enter(peer(999)).unwrap());
        drop(places);
        assert!(limited.open.lock().unwrap().is_empty());
    }
}
