//! The data plane: blobs named by their BLAKE3 hash, fetched from whoever has them, over iroh.
//!
//! One QUIC endpoint with the node's own key serves two protocols: blob transfer (iroh-blobs, verified
//! and resumable) and [activation push](crate::push). There is no relay and no discovery service: the
//! control plane says where peers are.
//!
//! A blob lives as long as a **tag** names it. Tags are paths such as `e/<stage>/<epoch>/…` and are
//! released by prefix; the collector then deletes what no tag names. The store appends the blob's hash
//! to the tag it is given, so one tag may name many blobs.

mod endpoint;
mod fetch;
mod limited;
mod plane;
mod served;
mod stored;

pub use endpoint::transport;
pub(crate) use endpoint::{CONNECT, IDLE};
pub use fetch::{FetchError, ProviderFailure};
pub(crate) use fetch::{HEDGE_AFTER, STALL};
pub use plane::{DataConfig, DataError, DataPlane, Hash32, Storage};
pub use stored::DiskBlobs;
