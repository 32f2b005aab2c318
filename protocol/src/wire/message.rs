//! The messages: what travels by gossip, what by request and response, what is decided.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::Payload;
pub use super::reason::EvictReason;
use crate::equivocation::Equivocation;
use crate::gauntlet::evaluation::Evaluation;
use crate::id::{Epoch, Hash, LogIndex, PartitionIndex, PeerId, StageIndex};
use crate::join::Credential;
use crate::limits::WIRE_VERSION_FIRST;
use crate::log::Certificate;
use crate::merge::evidence::Evidence;
use crate::no_confidence::NoConfidence;
use crate::validation::{DismissReason, Verdict};

/// Gossip topics; the driver puts `iota/<run id>/` before the name. Who listens to which is in
/// [`scope`](crate::peer::scope).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// [`ControlUpdate`]s: decided entries with their certificate.
    Control,
    /// Signed [`PeerRecord`]s of those whom everybody may need: candidates, and peers without a place.
    Records,
    /// Signed [`PeerRecord`]s of a stage's miners.
    StageRecords(StageIndex),
    /// Signed [`Manifest`] announcements and [`DigestReport`]s of a stage's merges, and [`Verdict`]s on what was merged.
    Merge(StageIndex),
}

impl Topic {
    /// All topics of a run with these stages.
    pub fn all(stages: impl Iterator<Item = StageIndex>) -> impl Iterator<Item = Self> {
        let of_stage = |stage| [Self::StageRecords(stage), Self::Merge(stage)];
        [Self::Control, Self::Records].into_iter().chain(stages.flat_map(of_stage))
    }

    /// The topic's name.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Control => "control".to_owned(),
            Self::Records => "records".to_owned(),
            Self::StageRecords(stage) => format!("records/{stage}"),
            Self::Merge(stage) => format!("merge/{stage}"),
        }
    }

    /// The topic called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let topic = match name.split_once('/') {
            None if name == "control" => Self::Control,
            None => Self::Records,
            Some(("records", stage)) => Self::StageRecords(StageIndex(stage.parse().ok()?)),
            Some((_, stage)) => Self::Merge(StageIndex(stage.parse().ok()?)),
        };
        // One name for each topic: "merge/+1" parses and is none.
        (topic.name() == name).then_some(topic)
    }
}

/// What a peer says of itself every heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerRecord {
    /// Grows with every record of this peer, across restarts.
    pub sequence: u64,
    /// The number of its first record since it last forgot what others had pushed to it: with its process, or when a job
    /// of its engine failed. Whoever pushed something to it before then pushes it again.
    pub incarnation: u64,
    /// Whether it asks for, or holds, a miner's place.
    pub miner: bool,
    /// Whether it leaves: as a member it finishes the epoch that it has a part in and takes none in another; without a
    /// place it asks for none. Left out otherwise.
    #[serde(default, skip_serializing_if = "is_staying")]
    pub leaving: bool,
    /// Whether it validates.
    pub validator: bool,
    /// What it shows so that it is let in, if the run asks for something; the same in all of its records, so that whoever
    /// comes to lead has it. Left out otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// libp2p multiaddresses it can be dialled at.
    pub multiaddrs: Vec<String>,
    /// Socket addresses of its data plane (QUIC).
    pub data_addresses: Vec<String>,
    /// Entries of the log it knows.
    pub log_length: u64,
    /// The weights it holds, if any.
    pub weights: Option<WeightsRecord>,
    /// Samples it has finished in the current epoch.
    pub done: u32,
    /// Samples of which it is the pinned replica in the current epoch.
    pub assigned: u32,
    /// Forward activations it can still take.
    pub credits: u16,
    /// Measured speed: thousandths of a sample per second, while computing. No more than its
    /// [limit](Decision::LimitSpeed), if it has one.
    pub speed_milli: u32,
    /// Tokens it has finished since it started, counted at the head and tail once each.
    pub tokens: u64,
    /// What of its stage it has seen in the mirror, if the run has one and it ever tried. Left out otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorRecord>,
    /// The merge of its stage that it needs and nobody has for it, if it looked for one in vain. Left out otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<LackRecord>,
    /// As a candidate, if no stage has room: who waits for a place, the first first, at most
    /// [`QUEUE_TOLD_MAX`](crate::limits::QUEUE_TOLD_MAX). Left out otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<PeerId>,
    /// As a candidate, that it does not take another for a leader any more. Left out otherwise, and once that one is deposed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_confidence: Option<NoConfidence>,
    /// The newest wire version that its program speaks. Left out where it is the first, so that it can be told from the
    /// start and in every version; any other field that a version adds waits until that version is decided.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub wire_version_max: u16,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_staying(leaving: &bool) -> bool {
    !*leaving
}

const fn first_version() -> u16 {
    WIRE_VERSION_FIRST
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_first_version(version: &u16) -> bool {
    *version == WIRE_VERSION_FIRST
}

/// The weights a miner holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsRecord {
    /// Their stage.
    pub stage: StageIndex,
    /// Their version: the epoch that starts from them.
    pub version: Epoch,
    /// Their hash, over little-endian f32 in flat order.
    pub hash: Hash,
}

/// What a miner has seen in the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorRecord {
    /// The stage.
    pub stage: StageIndex,
    /// The version of the newest state all parts of which are there; that of a run's start if there was none yet.
    pub version: Epoch,
    /// Hash of that state's [`StateOffer`].
    pub state: Hash,
    /// Whether the mirror did not take the newest.
    pub failing: bool,
    /// What became of its own inner optimizer's moments. Left out if it never tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moments: Option<MomentsRecord>,
}

/// What became of the [moments](crate::moments) that a miner had at the version of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsRecord {
    /// The newest version whose moments it tried to bring to the mirror.
    pub version: Epoch,
    /// Their hash, if they are there.
    pub hash: Option<Hash>,
}

/// The [moments](crate::moments) of one miner that go with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMoments {
    /// Its stage.
    pub stage: StageIndex,
    /// The miner.
    pub peer: PeerId,
    /// Hash of their bytes, by which the mirror has them.
    pub hash: Hash,
}

impl SavedMoments {
    /// Whether all are by stage and miner, each once.
    #[must_use]
    pub fn are_in_order(all: &[Self]) -> bool {
        all.is_sorted_by(|one, next| (one.stage, one.peer) < (next.stage, next.peer))
    }
}

/// A merge that a miner cannot apply, since it gets no copy of what was merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LackRecord {
    /// The stage.
    pub stage: StageIndex,
    /// The epoch.
    pub epoch: Epoch,
}

impl StateOffer {
    /// The weights that are in it.
    #[must_use]
    pub const fn record(&self) -> WeightsRecord {
        WeightsRecord { stage: self.stage, version: self.version, hash: self.weights }
    }
}

impl PeerRecord {
    /// A record that says nothing but its number, of a program that speaks the first wire version.
    #[must_use]
    pub const fn new(sequence: u64) -> Self {
        Self {
            sequence,
            incarnation: 0,
            miner: false,
            leaving: false,
            validator: false,
            credential: None,
            multiaddrs: Vec::new(),
            data_addresses: Vec::new(),
            log_length: 0,
            weights: None,
            done: 0,
            assigned: 0,
            credits: 0,
            speed_milli: 0,
            tokens: 0,
            mirror: None,
            lacks: None,
            queue: Vec::new(),
            no_confidence: None,
            wire_version_max: first_version(),
        }
    }
}

impl Payload for PeerRecord {
    const KIND: &'static str = "record";

    fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// A signed message on the merge topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeMessage {
    /// A miner's commitment to its contribution.
    Manifest(ManifestAnnounce),
    /// An owner's result for its partitions.
    Digest(DigestReport),
    /// A validator's verdict on a contribution.
    Verdict(VerdictAnnounce),
    /// What a validator says that the contributions to a merge do to the loss.
    Evaluation(EvaluationAnnounce),
}

/// A manifest with the number that protects it from replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestAnnounce {
    /// Grows with every merge message of this peer.
    pub sequence: u64,
    /// The commitment. Its canonical encoding is also a blob, named in the merge plan by its hash.
    pub manifest: Manifest,
}

/// A verdict with the number that protects it from replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictAnnounce {
    /// Grows with every merge message of this peer.
    pub sequence: u64,
    /// The verdict, with a signature of its own, so that it can stand in the log.
    pub verdict: Verdict,
}

/// An evaluation with the number that protects it from replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationAnnounce {
    /// Grows with every merge message of this peer.
    pub sequence: u64,
    /// The evaluation, with a signature of its own, so that it can stand in the log.
    pub evaluation: Evaluation,
}

/// What a miner commits to before it knows who will merge or check it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The submitter.
    pub peer: PeerId,
    /// Its stage.
    pub stage: StageIndex,
    /// The epoch.
    pub epoch: Epoch,
    /// Of the submitter's tries at this epoch, which this is: it [signs](crate::receipts::Hop) with each tensor that it sends
    /// a number that none of its other tries has. A process that starts again, or an epoch that opens again, begins another.
    pub nonce: u64,
    /// Hash of the weights the epoch started from.
    pub base: Hash,
    /// Number of samples in the contribution: its weight in the mean.
    pub samples: u32,
    /// The samples in the contribution: BLAKE3 of their ids in ascending order, 8 little-endian bytes each.
    pub sample_set: Hash,
    /// The samples it was dealt when it submitted, in the same form.
    pub dealt: Hash,
    /// Merkle root of the receipts.
    pub receipt_root: Hash,
    /// The blob that holds the receipts.
    pub receipts: Hash,
    /// Sum of the samples' losses in millionths of a nat, from the tail only.
    pub loss_micro: Option<i64>,
    /// The blob of the inner optimizer's [moments](crate::moments) that the epoch started from; none in `synchronous` mode.
    pub moments: Option<Hash>,
    /// The moments after the last inner step, a blob once the next epoch is contributed to; none in `synchronous` mode.
    pub moments_after: Option<Hash>,
    /// The blob of each encoded partition.
    pub partitions: Vec<Hash>,
}

/// What an owner computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestReport {
    /// Grows with every merge message of this peer.
    pub sequence: u64,
    /// The stage.
    pub stage: StageIndex,
    /// The epoch.
    pub epoch: Epoch,
    /// Which plan of this epoch.
    pub attempt: u16,
    /// The hash of the merged partition, for each partition this peer owns and has finished, ascending. A report is about one
    /// group of [`DIGEST_PARTITIONS_MAX`](crate::limits::DIGEST_PARTITIONS_MAX) partitions.
    pub merged: Vec<(PartitionIndex, Hash)>,
    /// Contributions it could not use, of one group of [`DIGEST_SUBMITTERS_MAX`](crate::limits::DIGEST_SUBMITTERS_MAX)
    /// submitters.
    pub faults: Vec<ContributionFault>,
}

/// A contribution that an owner could not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContributionFault {
    /// Whose.
    pub submitter: PeerId,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What is wrong with a contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// No peer serves its bytes. May be the network's fault.
    Unavailable,
    /// The bytes are there and no valid partition: wrong length, or not finite.
    Invalid,
    /// A valid partition that stands out from the others': another length, another direction, or the same as one of them. Nothing
    /// is proved by that; a replay tells.
    Outlier,
}

impl MergeMessage {
    /// The stage on whose topic it belongs.
    #[must_use]
    pub const fn stage(&self) -> StageIndex {
        match self {
            Self::Manifest(announce) => announce.manifest.stage,
            Self::Digest(report) => report.stage,
            Self::Verdict(announce) => announce.verdict.subject.stage,
            // Only runs of one stage have any.
            Self::Evaluation(_) => StageIndex(0),
        }
    }
}

impl Payload for MergeMessage {
    const KIND: &'static str = "merge";

    fn sequence(&self) -> u64 {
        match self {
            Self::Manifest(announce) => announce.sequence,
            Self::Digest(report) => report.sequence,
            Self::Verdict(announce) => announce.sequence,
            Self::Evaluation(announce) => announce.sequence,
        }
    }
}

/// Decided entries with a certificate of the last one, or of a later one. Certificates carry their own signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlUpdate {
    /// Index of the first entry.
    pub first: LogIndex,
    /// The entries' canonical bytes.
    pub entries: Vec<ByteBuf>,
    /// Hashes of the entries after these, up to the certified one; empty if it is the last of these.
    pub beyond: Vec<Hash>,
    /// Certifies an entry, and through its chain hash all before it.
    pub certificate: Certificate,
}

impl ControlUpdate {
    /// Index after the last entry.
    #[must_use]
    pub fn next(&self) -> Option<LogIndex> {
        self.first.0.checked_add(self.entries.len() as u64).map(LogIndex)
    }
}

/// A request of one peer to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Between candidates: consensus messages and votes.
    Consensus(ConsensusBundle),
    /// Decided entries from this index on.
    Log {
        /// First index wanted.
        from: LogIndex,
    },
    /// A part of the state that a [`Decision::Snapshot`] names.
    Snapshot {
        /// Hash of the state.
        state: Hash,
        /// Bytes before the part.
        offset: u64,
    },
    /// The state of a stage, for a peer that has none or an old one.
    State {
        /// The stage.
        stage: StageIndex,
        /// The version wanted.
        version: Epoch,
    },
}

/// Messages of the consensus library and votes on decided entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsensusBundle {
    /// OmniPaxos messages, each in CBOR.
    pub messages: Vec<ByteBuf>,
    /// The sender's votes.
    pub votes: Vec<crate::log::Vote>,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Received; nothing to say.
    Done,
    /// Decided entries.
    Log(ControlUpdate),
    /// The entries asked for are no longer kept; what they lead to is.
    Snapshot(SnapshotOffer),
    /// A part of a state.
    Part(ByteBuf),
    /// The state asked for, as blobs of this peer.
    State(StateOffer),
    /// Not available here.
    Unavailable,
}

/// From where on a peer has the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOffer {
    /// Chain hash before the entries. The certificate proves it along with them.
    pub chain: Hash,
    /// Bytes of the state that the first of them names.
    pub bytes: u64,
    /// Entries from the one on that names the state.
    pub update: ControlUpdate,
}

/// Where the state of a stage can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateOffer {
    /// The stage.
    pub stage: StageIndex,
    /// Version of the weights.
    pub version: Epoch,
    /// Hash of the weights.
    pub weights: Hash,
    /// Blobs whose concatenation is the state: weights, then outer optimizer state.
    pub parts: Vec<Hash>,
}

/// A decision of the run, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// A miner joins a stage. Void for one that the spec bans or, with an allow list, does not list.
    Admit {
        /// The miner.
        peer: PeerId,
        /// Its stage.
        stage: StageIndex,
    },
    /// A miner loses its place.
    Evict {
        /// The miner.
        peer: PeerId,
        /// Why.
        reason: EvictReason,
        /// What that rests on, if it is what was signed: void without. Left out otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence: Option<Evidence>,
    },
    /// A miner goes to another stage. Void while it takes part in an epoch, or if it is the last of its stage.
    Move {
        /// The miner.
        peer: PeerId,
        /// Its new stage.
        stage: StageIndex,
    },
    /// Epochs were longer for believing what members claim of their speed: this one claims no more than this for
    /// [`SPEED_LIMIT_EPOCHS`](crate::limits::SPEED_LIMIT_EPOCHS) epochs of its stage. Void unless it is a member of it.
    LimitSpeed {
        /// The member.
        peer: PeerId,
        /// Its stage.
        stage: StageIndex,
        /// Thousandths of a sample per second, 1 or more.
        speed_milli: u32,
    },
    /// An epoch of a stage begins.
    OpenEpoch {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// Hash of the weights it starts from.
        base: Hash,
        /// Who takes part, in [`PeerId`] order, with a weight in proportion to speed.
        members: Vec<(PeerId, u32)>,
    },
    /// A member is too slow or gone: its unfinished epoch's samples move to the others. Without the last one the epoch
    /// opens again.
    Release {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// The member.
        peer: PeerId,
    },
    /// The epoch's last deadline has passed: members submit what they have.
    Cutoff {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
    },
    /// Passes over an epoch that was cut off, since a neighbouring stage has settled it and what it would take to do it
    /// again is gone. The weights stay as they are.
    Skip {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
    },
    /// Passes over a merge after the fact, and those of its stage after it, since everybody who had what it merged is gone.
    /// The stage stays at its version, with the weights that the merge started from.
    Undo {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
    },
    /// Freezes who is merged.
    MergePlan {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// Counts the plans of this epoch.
        attempt: u16,
        /// Whose contributions, in [`PeerId`] order.
        submitters: Vec<Submission>,
    },
    /// A further owner of a partition: its owners are missing or disagree.
    MergeReassign {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// The plan.
        attempt: u16,
        /// The partition.
        partition: PartitionIndex,
        /// Its additional owner.
        owner: PeerId,
    },
    /// The plan cannot be carried out: contributions are missing or invalid.
    MergeAbort {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// The plan.
        attempt: u16,
        /// Whose contributions.
        lost: Vec<PeerId>,
    },
    /// The merge is done.
    MergeOutcome {
        /// The stage.
        stage: StageIndex,
        /// The epoch.
        epoch: Epoch,
        /// The plan.
        attempt: u16,
        /// The merged partitions, in order.
        partitions: Vec<Hash>,
        /// Whose contributions stood out, and are checked, in the order of their keys. Left out if there are none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        outliers: Vec<PeerId>,
    },
    /// A peer validates from now on. Void for one against which something was proved, or that the spec does not let in.
    Enlist {
        /// The validator.
        peer: PeerId,
    },
    /// A peer validates no more. Void for a wrong verdict, which follows from the verdicts themselves.
    Dismiss {
        /// The validator.
        peer: PeerId,
        /// Why.
        reason: DismissReason,
        /// What it signed under one number, if that is why: void without. Left out otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence: Option<Equivocation>,
    },
    /// A validator that was asked says what it found. Void if it was not, or has said so before, or the signature is wrong.
    /// If that makes a quorum, the miner loses its place with this entry, or the validators that found otherwise theirs.
    Judge(Verdict),
    /// A validator that was asked says what the contributions to a merge do to the loss. Void if it was not, or has said so
    /// before, or of others than those drawn, or the signature is wrong. With the last, or when its merge is too long ago,
    /// those who contributed to it are rated.
    Evaluate(Evaluation),
    /// A leader left undone what a majority of the candidates would have decided, and pays for it with its
    /// [score](crate::no_confidence). Void unless a majority has voted so since it was deposed last.
    Depose {
        /// The leader.
        leader: PeerId,
        /// The votes, in the order of the voters.
        votes: Vec<NoConfidence>,
    },
    /// The states of all stages at one version are in the mirror. Void unless every stage has reached it, and it is newer
    /// than the last.
    Checkpoint {
        /// The version.
        epoch: Epoch,
        /// For each stage the hash of its [`StateOffer`]'s encoding.
        stages: Vec<Hash>,
        /// Moments that miners have brought there, by stage and miner. Left out if there are none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        moments: Vec<SavedMoments>,
    },
    /// Names the state that all entries before this one lead to, so that whoever fetches it needs none of them. Void unless
    /// it stands where it says.
    Snapshot {
        /// Entries before this one.
        entries: u64,
        /// Hash of the state's [canonical bytes](crate::run_state::RunState::to_bytes).
        state: Hash,
    },
    /// The run goes on in the next version of the wire format. Peers that do not speak it stop here.
    Upgrade {
        /// The version.
        version: u16,
    },
    /// Every stage has finished its last epoch.
    Finish,
    /// Stands for a kind that the second version adds, to test how versions mix.
    #[cfg(test)]
    Second,
}

impl Decision {
    /// The version that this decision came with, by its kind and by the fields it has. It is void before that version is
    /// decided: programs that do not speak it cannot decode it, and those that do must not go another way.
    ///
    /// Versions add kinds. None is ever changed or taken away, since the log of a run holds entries of all versions that
    /// the run went through.
    #[must_use]
    pub const fn since(&self) -> u16 {
        match self {
            Self::Admit { .. }
            | Self::Evict { .. }
            | Self::Move { .. }
            | Self::LimitSpeed { .. }
            | Self::OpenEpoch { .. }
            | Self::Release { .. }
            | Self::Cutoff { .. }
            | Self::Skip { .. }
            | Self::Undo { .. }
            | Self::MergePlan { .. }
            | Self::MergeReassign { .. }
            | Self::MergeAbort { .. }
            | Self::MergeOutcome { .. }
            | Self::Enlist { .. }
            | Self::Dismiss { .. }
            | Self::Judge(_)
            | Self::Evaluate(_)
            | Self::Depose { .. }
            | Self::Checkpoint { .. }
            | Self::Snapshot { .. }
            | Self::Upgrade { .. }
            | Self::Finish => WIRE_VERSION_FIRST,
            #[cfg(test)]
            Self::Second => 2,
        }
    }
}

/// A contribution in a merge plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The submitter.
    pub peer: PeerId,
    /// Hash of its [`Manifest`]'s encoding.
    pub manifest: Hash,
    /// Its weight.
    pub samples: u32,
    /// Its loss, as in the manifest.
    pub loss_micro: Option<i64>,
    /// The inner optimizer's moments that the submitter goes on with, as in the manifest. Left out in `synchronous` mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moments_after: Option<Hash>,
}

impl Submission {
    /// What a plan says of a manifest of this hash.
    #[must_use]
    pub const fn of(manifest: &Manifest, hash: Hash) -> Self {
        let Manifest { peer, samples, loss_micro, moments_after, .. } = *manifest;
        Self { peer, manifest: hash, samples, loss_micro, moments_after }
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The candidate that proposed it.
    pub proposer: PeerId,
    /// What is decided.
    pub decision: Decision,
}
