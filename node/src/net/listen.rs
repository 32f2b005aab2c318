//! Listening: a clear error when an address is taken, and a wait until every listener is up.

use std::error::Error;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};

use futures::StreamExt;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm};

use super::config::{LISTEN_DEADLINE, NetError, RELEASE_CHECK, RELEASE_DEADLINE};

/// Listens on every address. Returns, once all listeners are up, what happened until then.
pub(super) async fn listen_all<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    addresses: &[Multiaddr],
) -> Result<Vec<SwarmEvent<B::ToSwarm>>, NetError> {
    let mut pending = Vec::new();
    for address in addresses {
        if let Some(Err(error)) = probe(address) {
            return Err(listen_error(address, &error));
        }
        let listener = swarm.listen_on(address.clone()).map_err(|error| listen_error(address, &error))?;
        pending.push((listener, address.clone()));
    }
    let mut early = Vec::new();
    let wait = async {
        while !pending.is_empty() {
            let event = swarm.select_next_some().await;
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    pending.retain(|(listener, _)| listener != listener_id);
                }
                SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    let closed = pending.iter().find(|(listener, _)| listener == listener_id);
                    if let Some((_, address)) = closed {
                        return Err(listen_error(address, error));
                    }
                }
                _ => {}
            }
            early.push(event);
        }
        Ok(())
    };
    match tokio::time::timeout(LISTEN_DEADLINE, wait).await {
        Ok(result) => result.map(|()| early),
        Err(_) => Err(NetError::setup("listeners", format!("not up within {LISTEN_DEADLINE:?}"))),
    }
}

/// Waits until the addresses can be listened on again, after the swarm is dropped: QUIC keeps its socket
/// until the other ends have heard that connections are closed.
pub(super) async fn released(addresses: &[Multiaddr]) {
    let free = async {
        while addresses.iter().any(|address| matches!(probe(address), Some(Err(_)))) {
            tokio::time::sleep(RELEASE_CHECK).await;
        }
    };
    if tokio::time::timeout(RELEASE_DEADLINE, free).await.is_err() {
        tracing::warn!(?addresses, "still in use after shutdown");
    }
}

/// Tries an address by binding and releasing it; `None` for addresses without a fixed port.
///
/// libp2p lets two of a user's processes share a TCP port (it dials from the port it listens on), so its
/// own bind would succeed and half the peers would reach the other process. And its QUIC error hides the
/// reason.
fn probe(address: &Multiaddr) -> Option<io::Result<()>> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) if port != 0 => Some(TcpListener::bind((ip, port)).map(drop)),
        Protocol::Udp(port) if port != 0 => Some(UdpSocket::bind((ip, port)).map(drop)),
        _ => None,
    }
}

fn listen_error(address: &Multiaddr, error: &(dyn Error + 'static)) -> NetError {
    let address = address.clone();
    let mut reasons = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            return NetError::AddressInUse { address };
        }
        reasons.push(error.to_string());
        cause = io.and_then(io::Error::get_ref).map(|inner| inner as _).or_else(|| error.source());
    }
    reasons.retain(|reason| !reason.is_empty());
    reasons.dedup();
    NetError::Listen { address, reason: reasons.join(": ") }
}
