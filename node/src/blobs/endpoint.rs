//! The QUIC endpoint under the data plane.

use std::net::SocketAddr;
use std::time::Duration;

use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{PortmapperConfig, QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, RelayMode, SecretKey};
use iroh_blobs::util::connection_pool;

use super::plane::DataError;

/// Unread bytes of one stream. A gigabit over 100 ms holds 12.5 MB in flight; a power of two above.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Unread bytes of one connection: a few streams at full speed. Also what a hostile peer can make us
/// hold, times its connections.
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Unacknowledged bytes we hold for one connection.
const SEND_WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// Streams a peer may have open on one connection; each serves one blob or one push.
const STREAMS_MAX: u32 = 128;
/// Silence after which a connection is dead, and the interval of probes that prevent it.
pub(crate) const IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a pooled connection without users is kept; shorter than an epoch would mean a handshake
/// per epoch.
const POOL_IDLE: Duration = Duration::from_secs(10 * 60);
/// How long a connection may take: a few round trips across the world, with losses.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Pooled connections per protocol, and handshakes at once.
const POOL_CONNECTIONS_MAX: usize = 1024;
const POOL_PENDING_MAX: usize = 128;

/// Returns the transport settings of the endpoint.
///
/// Segmentation offload stays off: after the kernel refuses one batch, iroh's connections stall
/// (iroh issue 4555), and a run is many machines with many kernels.
#[must_use]
pub fn transport() -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .enable_segmentation_offload(false)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        // No protocol of ours opens one-way streams.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(IDLE.try_into().ok())
        .keep_alive_interval(KEEP_ALIVE)
        .build()
}

/// Binds the endpoint and returns it with its address book.
pub(super) async fn bind(
    secret: &[u8; 32],
    address: SocketAddr,
) -> Result<(Endpoint, MemoryLookup), DataError> {
    let fail = |reason: String| DataError::Bind { address, reason };
    let lookup = MemoryLookup::new();
    let endpoint = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(secret))
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .clear_ip_transports()
        .bind_addr(address)
        .map_err(|error| fail(error.to_string()))?
        .clear_address_lookup()
        .address_lookup(lookup.clone())
        .transport_config(transport())
        .bind()
        .await
        .map_err(|error| fail(format!("{error:#}")))?;
    Ok((endpoint, lookup))
}

/// Settings of a pool of connections for one protocol.
pub(super) fn pool_options() -> connection_pool::Options {
    let mut options = connection_pool::Options::default();
    options.idle_timeout = POOL_IDLE;
    options.connect_timeout = CONNECT;
    options.max_connections = POOL_CONNECTIONS_MAX;
    options.max_pending_connections = POOL_PENDING_MAX;
    options
}
