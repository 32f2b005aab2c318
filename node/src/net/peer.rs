//! One key, two names: the 32 bytes of an ed25519 public key and the libp2p `PeerId` made of them.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};

/// A peer's ed25519 public key: its identity in the protocol, in libp2p and in iroh.
pub type PeerKey = [u8; 32];

/// Length of the identity-multihash prefix in the bytes of an ed25519 `PeerId`.
const MULTIHASH_PREFIX_BYTES: usize = 2;

/// Returns the libp2p name of a public key, or `None` when the bytes are no point of the curve.
#[must_use]
pub fn peer_id(key: &PeerKey) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(key).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// Returns the public key inside a libp2p name, or `None` when the name is not that of an ed25519 key.
#[must_use]
pub fn peer_key(peer: &PeerId) -> Option<PeerKey> {
    let bytes = peer.to_bytes();
    let encoded = bytes.get(MULTIHASH_PREFIX_BYTES..)?;
    let key = PublicKey::try_decode_protobuf(encoded).ok()?;
    Some(key.try_into_ed25519().ok()?.to_bytes())
}

/// Returns the public key that belongs to a 32-byte secret.
#[must_use]
pub fn public_key(secret: &[u8; 32]) -> PeerKey {
    ed25519_dalek::SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

/// Builds the libp2p key pair of a secret. The copy is deliberate: libp2p wipes its argument.
pub(super) fn keypair(secret: &[u8; 32]) -> Option<Keypair> {
    let mut copy = *secret;
    Keypair::ed25519_from_bytes(&mut copy).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_secret_names_the_same_peer_everywhere() {
        let secret = [7; 32];
        let key = public_key(&secret);
        let libp2p = keypair(&secret).unwrap().public().to_peer_id();
        let iroh = iroh::SecretKey::from_bytes(&secret).public();
        assert_eq!(peer_id(&key), Some(libp2p));
        assert_eq!(peer_key(&libp2p), Some(key));
        assert_eq!(*iroh.as_bytes(), key);
        assert_eq!(secret, [7; 32], "the caller's secret is not wiped");
    }

    #[test]
    fn a_name_that_is_no_ed25519_key_has_no_peer_key() {
        let hashed = PeerId::from_multihash(libp2p::multihash::Multihash::wrap(0x12, &[9; 32]).unwrap());
        assert_eq!(peer_key(&hashed.unwrap()), None);
    }
}
