//! Gossiped messages, opened: decoded, and with their signatures checked.
//!
//! Opening asks nothing of any peer's state, so a driver may do it wherever it likes, and a simulator once for all
//! receivers of a message. What a message means to a peer is [`Peer::handle_opened`](crate::peer::Peer::handle_opened).

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::message::{ControlUpdate, Manifest, MergeMessage, PeerRecord, Topic};
use super::{Payload, RejectReason, Versions, decode, encode, open_in};
use crate::equivocation::MessageKind;
use crate::gauntlet::evaluation::Evaluation;
use crate::id::{Hash, PeerId};
use crate::limits::GOSSIP_BYTES_MAX;
use crate::log::certificate::{Certified, Electorate};
use crate::merge::evidence::SignedReport;
use crate::validation::Verdict;

/// A message whose signature was checked, the version it was written in (control updates have none), and its bytes, if they
/// were [kept](Self::keeping).
#[derive(Clone, Debug)]
pub struct Gossip(pub(crate) Opened, pub(crate) Option<u16>, Option<Arc<[u8]>>);

/// Who signed a message, under which number, in these bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'a> {
    pub(crate) sender: PeerId,
    pub(crate) kind: MessageKind,
    pub(crate) number: u64,
    pub(crate) envelope: &'a Arc<[u8]>,
}

/// What an opened message says.
#[derive(Clone, Debug)]
pub(crate) enum Opened {
    Control(Certified),
    Record(PeerId, Arc<PeerRecord>),
    /// Who says it, its message number, and what it says.
    Merge(PeerId, u64, MergeNews),
}

/// What a merge message says, its number left out.
#[derive(Clone, Debug)]
pub(crate) enum MergeNews {
    Manifest(Arc<HashedManifest>),
    Digest(Arc<SignedReport>),
    Verdict(Verdict),
    Evaluation(Evaluation),
}

impl MergeNews {
    /// What `message` says, which came in this envelope.
    pub(crate) fn new(message: MergeMessage, envelope: &[u8]) -> Self {
        match message {
            MergeMessage::Manifest(announce) => Self::Manifest(Arc::new(announce.manifest.into())),
            MergeMessage::Digest(report) => {
                Self::Digest(Arc::new(SignedReport { report, envelope: ByteBuf::from(envelope) }))
            }
            MergeMessage::Verdict(announce) => Self::Verdict(announce.verdict),
            MergeMessage::Evaluation(announce) => Self::Evaluation(announce.evaluation),
        }
    }
}

/// A manifest and its hash, which names it in merge plans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// BLAKE3 of its canonical bytes.
    pub hash: Hash,
}

impl From<Manifest> for HashedManifest {
    fn from(manifest: Manifest) -> Self {
        Self { hash: Hash::of(&encode(&manifest)), manifest }
    }
}

impl Gossip {
    /// Opens a message of `topic` in the run of `electorate`, written in one of `versions`.
    ///
    /// # Errors
    /// [`RejectReason`] if it is undecodable, of another version or run, on another stage's topic, or its signatures do not
    /// verify.
    pub fn open(
        electorate: &Electorate,
        versions: Versions,
        topic: Topic,
        bytes: &[u8],
    ) -> Result<Self, RejectReason> {
        let (run, mut written) = (electorate.run(), None);
        let opened = match topic {
            Topic::Control => {
                let update: ControlUpdate = decode(bytes, GOSSIP_BYTES_MAX)?;
                Opened::Control(electorate.certify(update)?)
            }
            Topic::Records | Topic::StageRecords(_) => {
                let (sender, version, record) = open_in::<PeerRecord>(versions, run, bytes)?;
                written = Some(version);
                Opened::Record(sender, Arc::new(record))
            }
            Topic::Merge(stage) => {
                let (sender, version, message) = open_in::<MergeMessage>(versions, run, bytes)?;
                written = Some(version);
                if message.stage() != stage {
                    return Err(RejectReason::Inconsistent("stage of the topic"));
                }
                let (sequence, news) = (message.sequence(), MergeNews::new(message, bytes));
                let signed = match &news {
                    MergeNews::Verdict(verdict) => Some((verdict.validator, verdict.verifies(run))),
                    MergeNews::Evaluation(evaluation) => {
                        Some((evaluation.evaluator, evaluation.verifies(run)))
                    }
                    MergeNews::Manifest(_) | MergeNews::Digest(_) => None,
                };
                match signed {
                    Some((by, _)) if by != sender => {
                        return Err(RejectReason::Inconsistent("verdict of another peer"));
                    }
                    Some((_, false)) => return Err(RejectReason::Signature),
                    _ => {}
                }
                Opened::Merge(sender, sequence, news)
            }
        };
        Ok(Self(opened, written, None))
    }

    /// The message with the bytes it was opened from, which a candidate compares with others under its number.
    #[must_use]
    pub fn keeping(mut self, bytes: &[u8]) -> Self {
        self.2 = Some(bytes.into());
        self
    }

    /// Who signed it, if that is one peer and its bytes were kept.
    pub(crate) fn signed(&self) -> Option<Signed<'_>> {
        let envelope = self.2.as_ref()?;
        let (sender, kind, number) = match &self.0 {
            Opened::Control(_) => return None,
            Opened::Record(sender, record) => (*sender, MessageKind::Record, record.sequence),
            Opened::Merge(sender, number, _) => (*sender, MessageKind::Merge, *number),
        };
        Some(Signed { sender, kind, number, envelope })
    }

    /// Whether a peer that speaks `versions` can read it.
    ///
    /// # Errors
    /// [`RejectReason::Version`] if it cannot.
    pub(crate) fn check_version(&self, versions: Versions) -> Result<(), RejectReason> {
        match (self.sender(), self.1) {
            (Some(sender), Some(got)) if !versions.speaks(got) => {
                Err(RejectReason::Version { sender, got, spoken: versions })
            }
            _ => Ok(()),
        }
    }

    /// The manifest it announces, if it does.
    #[must_use]
    pub fn manifest(&self) -> Option<&HashedManifest> {
        match &self.0 {
            Opened::Merge(_, _, MergeNews::Manifest(submitted)) => Some(submitted),
            Opened::Merge(..) | Opened::Control(_) | Opened::Record(..) => None,
        }
    }

    /// Who signed it; certified entries are signed by the candidates together.
    #[must_use]
    pub const fn sender(&self) -> Option<PeerId> {
        match &self.0 {
            Opened::Control(_) => None,
            Opened::Record(sender, _) | Opened::Merge(sender, ..) => Some(*sender),
        }
    }
}
