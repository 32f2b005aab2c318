//! Frames of the activation push protocol: a small CBOR header, then raw little-endian numbers.
//!
//! The connection authenticates both ends by the same keys that sign everything else. What the sender signs in the header is
//! for others: the receiver keeps it in its [receipts](crate::receipts), which show to anybody what it was sent.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{DecodeError, Versions, decode, encode};
use crate::id::{Epoch, Hash, Identity, PeerId, RunId, SampleId, StageIndex};
use crate::limits::{PUSH_HEADER_BYTES_MAX, PUSH_PAYLOAD_BYTES_MAX};
use crate::receipts::{Hop, Received};
use crate::spec::WireDtype;

/// Which way a tensor travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// An activation, towards the tail.
    Forward,
    /// The gradient of an activation, towards the head.
    Backward,
}

/// What a pushed tensor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushHeader {
    /// Version of the wire format. Comes first in all versions.
    pub version: u16,
    /// The run it belongs to.
    pub run: RunId,
    /// Which way it travels.
    pub direction: Direction,
    /// The receiving stage.
    pub stage: StageIndex,
    /// Epoch of the sample.
    pub epoch: Epoch,
    /// The sample.
    pub sample: SampleId,
    /// Element type.
    pub dtype: WireDtype,
    /// `[sequences, context, channels]`.
    pub shape: [u32; 3],
    /// BLAKE3 of the payload, under which both ends keep it.
    pub hash: Hash,
    /// Which of the sender's tries at the epoch it is of: the nonce of its [manifest](super::message::Manifest) to come.
    pub nonce: u64,
    /// The sender's over [`Hop::signed_bytes`].
    pub signature: ByteBuf,
}

impl PushHeader {
    /// The same, signed by its sender.
    #[must_use]
    pub fn signed(self, identity: &Identity) -> Self {
        let signature = self.hop().sign(identity, self.run, self.nonce, self.hash);
        Self { signature, ..self }
    }

    /// The hop that it travels.
    #[must_use]
    pub const fn hop(&self) -> Hop {
        Hop { direction: self.direction, stage: self.stage, epoch: self.epoch, sample: self.sample }
    }

    /// What its receiver keeps of it.
    ///
    /// # Errors
    /// [`PushRefusal::Signature`] if `from` has not signed it.
    pub fn received(&self, from: PeerId) -> Result<Received, PushRefusal> {
        let Self { hash, nonce, .. } = *self;
        let received = Received { from, hash, nonce, signature: self.signature.clone() };
        if received.verifies(self.run, &self.hop()) { Ok(received) } else { Err(PushRefusal::Signature) }
    }

    /// Bytes the payload of this shape has, `None` if it exceeds every limit.
    #[must_use]
    pub fn payload_bytes(&self) -> Option<usize> {
        let elements =
            self.shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim as usize))?;
        elements.checked_mul(self.dtype.bytes()).filter(|&bytes| bytes <= PUSH_PAYLOAD_BYTES_MAX)
    }

    /// Reads a header in a version that this program speaks.
    ///
    /// # Errors
    /// What to answer: [`PushRefusal::Version`] if it is of another version, [`PushRefusal::Malformed`] if it is
    /// undecodable or of another run.
    pub fn parse(run: RunId, bytes: &[u8]) -> Result<Self, PushRefusal> {
        match decode::<Self>(bytes, PUSH_HEADER_BYTES_MAX) {
            Ok(header) if !Versions::PROGRAM.speaks(header.version) => Err(PushRefusal::Version),
            Ok(header) if header.run == run => Ok(header),
            Err(DecodeError::Malformed) if is_of_another_version(bytes) => Err(PushRefusal::Version),
            Ok(_) | Err(_) => Err(PushRefusal::Malformed),
        }
    }
}

/// Whether a header of unknown fields says that it is of a version that this program does not speak.
fn is_of_another_version(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Beginning {
        version: u16,
    }
    serde_cbor::from_slice(bytes)
        .is_ok_and(|beginning: Beginning| !Versions::PROGRAM.speaks(beginning.version))
}

/// Why a pushed tensor was not taken. Sent back to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushRefusal {
    /// The header is undecodable, or of another run.
    Malformed,
    /// The header is of a version that the receiver does not speak.
    Version,
    /// Shape or element type are not those of this cut.
    Shape,
    /// The payload's length does not fit its shape.
    Length,
    /// The payload does not have the hash its header names.
    Hash,
    /// The payload holds an infinity or not-a-number.
    NotFinite,
    /// The sender has not signed the header.
    Signature,
    /// The receiver does not hold this stage.
    WrongStage,
    /// The sender or receiver is not on this sample's path, as the receiver knows it now.
    WrongPath,
    /// The epoch is over here.
    Stale,
    /// The epoch has not opened here yet, and there is no room to wait.
    Early,
    /// No credit: try again later.
    Busy,
}

impl PushRefusal {
    /// A short name for metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Shape => "shape",
            Self::Length => "length",
            Self::Hash => "hash",
            Self::NotFinite => "not_finite",
            Self::Signature => "signature",
            Self::WrongStage => "wrong_stage",
            Self::WrongPath => "wrong_path",
            Self::Stale => "stale",
            Self::Early => "early",
            Self::Busy => "busy",
        }
    }

    /// Whether the same push may be accepted later.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Version | Self::WrongPath | Self::Early | Self::Busy | Self::WrongStage)
    }
}

/// The answer to a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushAck {
    /// Taken. The receiver can take this many more forward activations.
    Accepted(u16),
    /// Not taken.
    Refused(PushRefusal),
}

impl PushAck {
    /// The bytes of an answer.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        encode(&self)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, PUSH_HEADER_BYTES_MAX)
    }
}

/// Checks a payload, whose hash the transport computed as it arrived, against its header: length, hash,
/// then finite values.
///
/// # Errors
/// The first [`PushRefusal`] that applies.
pub fn check_payload(header: &PushHeader, payload: &[u8], hash: Hash) -> Result<(), PushRefusal> {
    if header.payload_bytes() != Some(payload.len()) {
        return Err(PushRefusal::Length);
    }
    if hash != header.hash {
        return Err(PushRefusal::Hash);
    }
    let finite = match header.dtype {
        WireDtype::F32 => payload.chunks_exact(4).all(|b| b[3] & 0x7f != 0x7f || b[2] & 0x80 == 0),
        WireDtype::Bf16 => payload.chunks_exact(2).all(|b| b[1] & 0x7f != 0x7f || b[0] & 0x80 == 0),
    };
    if !finite {
        return Err(PushRefusal::NotFinite);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WIRE_VERSION;

    const RUN: RunId = RunId([4; 32]);

    fn header(values: &[f32]) -> (PushHeader, Vec<u8>) {
        let payload: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let header = PushHeader {
            version: WIRE_VERSION,
            run: RUN,
            direction: Direction::Forward,
            stage: StageIndex(1),
            epoch: Epoch(0),
            sample: SampleId(3),
            dtype: WireDtype::F32,
            shape: [1, 1, u32::try_from(values.len()).expect("small")],
            hash: Hash::of(&payload),
            nonce: 5,
            signature: ByteBuf::new(),
        };
        (header.signed(&Identity::from_secret([1; 32])), payload)
    }

    #[test]
    fn a_payload_is_taken_only_if_length_values_and_hash_fit() {
        let (good, payload) = header(&[1.0, -2.5, 0.0, f32::MAX]);
        assert_eq!(check_payload(&good, &payload, good.hash), Ok(()));
        assert_eq!(check_payload(&good, &payload[4..], good.hash), Err(PushRefusal::Length));
        let mut changed = payload.clone();
        changed[0] ^= 1;
        assert_eq!(check_payload(&good, &changed, Hash::of(&changed)), Err(PushRefusal::Hash));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            let (named, payload) = header(&[1.0, bad]);
            assert_eq!(check_payload(&named, &payload, named.hash), Err(PushRefusal::NotFinite));
        }
    }

    #[test]
    fn only_what_its_sender_has_signed_is_received() {
        let (good, _) = header(&[1.0]);
        let sender = Identity::from_secret([1; 32]).peer();
        let received = good.received(sender).expect("it is signed");
        assert_eq!((received.from, received.hash, received.nonce), (sender, good.hash, 5));
        let other = Identity::from_secret([2; 32]).peer();
        assert_eq!(good.received(other), Err(PushRefusal::Signature));
        let changed = PushHeader { hash: Hash::of(b"other"), ..good };
        assert_eq!(changed.received(sender), Err(PushRefusal::Signature));
    }

    #[test]
    fn a_shape_beyond_memory_has_no_size() {
        let (mut huge, _) = header(&[0.0]);
        huge.shape = [u32::MAX; 3];
        assert_eq!(huge.payload_bytes(), None);
        assert_eq!(check_payload(&huge, &[], huge.hash), Err(PushRefusal::Length));
    }

    #[test]
    fn headers_of_other_runs_and_versions_are_refused() {
        let (good, _) = header(&[0.0]);
        assert_eq!(PushHeader::parse(RUN, &encode(&good)), Ok(good.clone()));
        assert_eq!(PushHeader::parse(RunId([5; 32]), &encode(&good)), Err(PushRefusal::Malformed));
        let other = PushHeader { version: WIRE_VERSION + 1, ..good };
        assert_eq!(PushHeader::parse(RUN, &encode(&other)), Err(PushRefusal::Version));
    }

    #[test]
    fn a_header_whose_fields_are_unknown_is_refused_for_its_version() {
        #[derive(Serialize)]
        struct Later {
            version: u16,
            novelty: u8,
        }
        let later = |version| PushHeader::parse(RUN, &encode(&Later { version, novelty: 0 }));
        assert_eq!(later(WIRE_VERSION + 1), Err(PushRefusal::Version), "it may be read after an upgrade");
        assert_eq!(later(WIRE_VERSION), Err(PushRefusal::Malformed));
    }
}
