//! The run spec: everything that defines a run, in TOML for people and in canonical CBOR for its hash.
//!
//! Every field has a default, so an empty file plus candidates is a complete spec. Unknown keys are
//! errors. [`RunSpec::validate`] checks the relations between fields; nothing else in the workspace
//! accepts a spec that did not pass it.

mod validate;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Hash, PeerId, RunId};
use crate::limits;
use crate::time::{ByteCount, Millis};
use crate::wire;
use crate::wire::message::SavedMoments;

/// Why a spec was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The text is no TOML, has an unknown key, or a value of the wrong type.
    #[error("not a run spec: {0}")]
    Syntax(String),
    /// A value is out of range or two values contradict each other.
    #[error("`{field}`: expected {expected}, got {got}")]
    Value {
        /// Path of the field, such as `model.heads`.
        field: &'static str,
        /// What would be accepted.
        expected: String,
        /// What the spec says.
        got: String,
    },
}

/// Defines a section: a struct whose missing keys take the defaults given here.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

section! {
    /// A run, completely.
    RunSpec {
        /// Name of the run, for people. Default `iota`.
        name: String = "iota".to_owned(),
        /// Seed of initial weights, sample windows and assignments. Default 7.
        seed: u64 = 7,
        /// The network.
        model: ModelSpec = ModelSpec::default(),
        /// How it is cut and how work flows through the cuts.
        pipeline: PipelineSpec = PipelineSpec::default(),
        /// What it learns from.
        data: DataSpec = DataSpec::default(),
        /// How it learns.
        training: TrainingSpec = TrainingSpec::default(),
        /// How replicas become one again.
        merge: MergeSpec = MergeSpec::default(),
        /// How work is checked.
        validation: ValidationSpec = ValidationSpec::default(),
        /// Who may lead.
        orchestrator: OrchestratorSpec = OrchestratorSpec::default(),
        /// Who may take a place.
        join: JoinSpec = JoinSpec::default(),
        /// How long to wait for what.
        timing: TimingSpec = TimingSpec::default(),
        /// What work is worth.
        scores: ScoresSpec = ScoresSpec::default(),
        /// Where copies are kept outside the swarm.
        mirror: MirrorSpec = MirrorSpec::default(),
        /// The checkpoint it goes on from.
        start: StartSpec = StartSpec::default(),
    }
}

section! {
    /// The decoder-only transformer.
    ModelSpec {
        /// Distinct tokens. Default 256: bytes.
        vocab_size: u32 = 256,
        /// Tokens of one window. Default 128.
        context: u32 = 128,
        /// Channels of the residual stream. Default 128.
        width: u32 = 128,
        /// Transformer blocks, over all stages. Default 6.
        layers: u32 = 6,
        /// Query heads; divides `width`. Default 4.
        heads: u32 = 4,
        /// Key and value heads; divides `heads`. Default 2.
        kv_heads: u32 = 2,
        /// Channels inside the feed-forward part. Default 344.
        hidden: u32 = 344,
        /// Base of the rotary frequencies. Default 10000.
        rope_base: f64 = 10_000.0,
        /// Added to the mean square in `RMSNorm`. Default 1e-5.
        norm_eps: f64 = 1e-5,
        /// Standard deviation of the initial weights. Default 0.02.
        init_std: f64 = 0.02,
        /// What crosses a cut: `"none"` for the whole width, or a number of channels. Default 32.
        bottleneck: Bottleneck = Bottleneck::Width(32),
    }
}

/// What crosses a cut between two stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// The whole residual stream: a plain Llama.
    None,
    /// A bottleneck of this many channels, with an identity path through it.
    Width(u32),
}

impl Serialize for Bottleneck {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Width(width) => serializer.serialize_u32(*width),
        }
    }
}

impl<'de> Deserialize<'de> for Bottleneck {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bottleneck;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"none\" or a number of channels")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bottleneck, E> {
                if text == "none" {
                    Ok(Bottleneck::None)
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Str(text), &self))
                }
            }

            fn visit_u64<E: serde::de::Error>(self, width: u64) -> Result<Bottleneck, E> {
                u32::try_from(width)
                    .map(Bottleneck::Width)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(width), &self))
            }

            fn visit_i64<E: serde::de::Error>(self, width: i64) -> Result<Bottleneck, E> {
                u32::try_from(width)
                    .map(Bottleneck::Width)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(width), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

section! {
    /// The pipeline.
    PipelineSpec {
        /// Stages the model is cut into. Default 3.
        stages: u16 = 3,
        /// Miners each stage waits for before the first epoch opens. Default 2.
        start_replicas: u16 = 2,
        /// Whether miners are moved from fast stages to the slowest one. A stage that has lost all of its miners gets one in any case. Default true.
        rebalance: bool = true,
        /// Samples a head miner keeps in flight. More hides latency and costs activation memory and, in local mode, staleness. Default 4.
        window: u16 = 4,
        /// Forwarded activations a miner takes before it grants no more credit. Default 32.
        credits: u16 = 32,
        /// Element type of activations and their gradients on the wire: `f32` or `bf16`. Default `f32`.
        activation_dtype: WireDtype = WireDtype::F32,
    }
}

/// Element type of tensors between peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireDtype {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// bfloat16, 2 bytes.
    Bf16,
}

impl WireDtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

section! {
    /// The corpus.
    DataSpec {
        /// `builtin` generates stories from a grammar; `file` reads a text file whose hash is `hash`. Default `builtin`.
        source: DataSource = DataSource::Builtin,
        /// Size of the generated corpus. Default 4MiB.
        builtin_bytes: ByteCount = ByteCount(4 << 20),
        /// BLAKE3 hash of the file; every peer's copy must match it. Required with `file`.
        hash: Option<Hash> = None,
        /// Last part of the corpus, kept for validation. Default 0.05.
        validation_fraction: f64 = 0.05,
    }
}

/// Where the text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataSource {
    /// The generator of the fixtures crate, from the run's seed.
    Builtin,
    /// A file that each peer brings and whose hash the spec names.
    File,
}

section! {
    /// Optimization.
    TrainingSpec {
        /// `synchronous` or `local`. Default `local`.
        mode: TrainingMode = TrainingMode::Local,
        /// Epochs of every stage: merges until the run is finished. Default 24.
        epochs: u32 = 24,
        /// Samples of one epoch, over all miners of a stage. Default 64.
        samples_per_epoch: u32 = 64,
        /// Windows in one sample. Default 8.
        sequences_per_sample: u32 = 8,
        /// Inner optimizer steps of each miner per epoch in `local` mode (*H*). Default 8.
        inner_steps: u32 = 8,
        /// Peak learning rate of `AdamW`. Default 0.002.
        learning_rate: f64 = 2e-3,
        /// Share of all steps over which the learning rate rises linearly from zero. Default 0.05.
        warmup_fraction: f64 = 0.05,
        /// Learning rate at the end of the cosine, relative to its peak. Default 0.1.
        final_factor: f64 = 0.1,
        /// First-moment decay of `AdamW`. Default 0.9.
        beta1: f64 = 0.9,
        /// Second-moment decay of `AdamW`. Default 0.95.
        beta2: f64 = 0.95,
        /// Added to the root of the second moment. Default 1e-8.
        eps: f64 = 1e-8,
        /// Decoupled weight decay, on matrices only. Default 0.1.
        weight_decay: f64 = 0.1,
        /// Gradient norm of the whole model above which it is scaled down; a stage takes the root of its parameter share of it. Default 1.
        clip_norm: f64 = 1.0,
        /// How exact matrix products are: `high` lets GPUs round factors to TF32, `highest` does not, so that a validator's replay on another kind of device comes far closer. CPUs compute the same with both. Default `high`.
        matmul_precision: MatmulPrecision = MatmulPrecision::High,
    }
}

/// How exact matrix products are, under the names of PyTorch's `set_float32_matmul_precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// Factors may be rounded to TF32 (11 bits), where a device has it.
    High,
    /// Factors are `f32` (24 bits).
    Highest,
}

/// What a miner does between two merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingMode {
    /// Sums gradients; one optimizer step after the merge. Equal to one process with the whole batch.
    Synchronous,
    /// Takes inner steps; the pseudo-gradient is merged and an outer step taken (`DiLoCo`, Douillard et al. 2023).
    Local,
}

section! {
    /// The butterfly merge.
    MergeSpec {
        /// How contributions are combined: `weighted-mean`, `geometric-mean`, `trimmed-mean`, `median` or `clipped-mean`. Default `weighted-mean`.
        reducer: ReducerName = ReducerName::WeightedMean,
        /// With `trimmed-mean`, the share of contributions that is left out of each element at either end. Default 0.25.
        trim: f64 = 0.25,
        /// How contributions are encoded: `f32` or `bf16`. Default `f32`.
        codec: WireDtype = WireDtype::F32,
        /// Largest partition of a stage's vector, in encoded bytes. Default 1MiB.
        partition_bytes: ByteCount = ByteCount(1 << 20),
        /// Fewest partitions of a stage, so that small stages too are spread over their owners. Default 8.
        partitions_min: u32 = 8,
        /// Owners of each partition. Default 2.
        redundancy: u16 = 2,
        /// Share of partitions that one more owner computes though those drawn agree. Default 0.05.
        audit_share: f64 = 0.05,
        /// Share of an epoch's members whose contributions suffice once its deadline has passed. Default 0.5.
        quorum: f64 = 0.5,
        /// Outer learning rate (Nesterov) in `local` mode. Default 0.7.
        outer_learning_rate: f64 = 0.7,
        /// Outer momentum in `local` mode. Default 0.6.
        outer_momentum: f64 = 0.6,
    }
}

/// How contributions are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReducerName {
    /// Mean weighted by samples.
    WeightedMean,
    /// Sign-aware geometric mean of magnitudes.
    GeometricMean,
    /// Mean weighted by samples without the smallest and largest of each element.
    TrimmedMean,
    /// Median of each element, whatever the samples.
    Median,
    /// Mean weighted by samples of contributions no longer than the median of all.
    ClippedMean,
}

section! {
    /// Checks of what miners committed to.
    ValidationSpec {
        /// Share of all contributions whose epoch is replayed by a validator. Default 0.04.
        replay_share: f64 = 0.04,
        /// Share of those that a second validator replays even if the first found nothing. Default 0.2.
        repeat_share: f64 = 0.2,
        /// Fewest validators whose finding takes a miner's place; most of a panel of seven have to agree, too. Default 2.
        quorum: u16 = 2,
        /// Largest Euclidean norm of the difference between a contribution and its replay, relative to the replay's; 0.001 is enough with `training.matmul_precision = "highest"`, or without GPUs. Default 0.03.
        contribution_error_max: f64 = 0.03,
        /// The same for an activation or gradient between stages. Default 0.1.
        tensor_error_max: f64 = 0.1,
        /// Largest difference between a sample's loss and its replay's, relative to that. Default 0.001.
        loss_error_max: f64 = 0.001,
    }
}

section! {
    /// Election and admission.
    OrchestratorSpec {
        /// Peers that may lead, at most seven. At least one.
        candidates: Vec<Candidate> = Vec::new(),
    }
}

/// A peer that may lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its public key, hexadecimal.
    pub peer: PeerId,
    /// Among candidates that could lead, a higher priority is preferred. Default 0.
    #[serde(default)]
    pub priority: u32,
}

section! {
    /// Who may take a place as a miner or validator, beside the candidates; see [`join`](crate::join).
    JoinSpec {
        /// `open` for everybody who does the work, `allow` for those on a list, `invite` for those whom the owner invites. Default `open`.
        policy: JoinPolicy = JoinPolicy::Open,
        /// With `open`, zero bits that the hash of a proof of work begins with: each more doubles the work of an identity. 0 for none. Default 0.
        work_bits: u8 = 0,
        /// With `invite`, the public key that signs invites, hexadecimal.
        owner: Option<PeerId> = None,
        /// Largest number of members with the same address of the data plane; for IPv6 the same /64. Loopback counts like any other, so a swarm
        /// on one machine needs as many as it has processes. 0 for no limit. Default 0.
        per_address: u32 = 0,
        /// With `allow`, who may join, hexadecimal.
        allow: Vec<PeerId> = Vec::new(),
        /// Who may not, whatever else it shows.
        ban: Vec<Ban> = Vec::new(),
    }
}

/// What a peer has to show for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinPolicy {
    /// Work, if the spec asks for some.
    Open,
    /// Nothing: the spec lists who may join.
    Allow,
    /// An invite of the owner.
    Invite,
}

impl std::fmt::Display for JoinPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Allow => "allow",
            Self::Invite => "invite",
        })
    }
}

/// A peer that gets no place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// Its public key, hexadecimal.
    pub peer: PeerId,
    /// Why, as it is told.
    pub reason: String,
}

section! {
    /// Deadlines. Every wait in the protocol ends by one of these.
    TimingSpec {
        /// Between two records of a peer. Default 1s.
        heartbeat: Millis = Millis::from_secs(1),
        /// Silence after which a member is evicted; later if its records come at long intervals. Default 6s.
        eviction: Millis = Millis::from_secs(6),
        /// After an epoch opens, members that have not submitted are released and their samples move; later if they are
        /// slow. Default 2m.
        epoch_deadline: Millis = Millis::from_secs(120),
        /// After a merge plan, owners that have not reported are replaced; later if merges take long. Default 20s.
        merge_deadline: Millis = Millis::from_secs(20),
        /// Once one replica is ready for the next epoch, how long it waits for the others; longer if they usually take long.
        /// Default 5s.
        ready_grace: Millis = Millis::from_secs(5),
        /// After the last epoch, how long a peer stays to serve others. Default 10s.
        linger: Millis = Millis::from_secs(10),
    }
}

section! {
    /// What the work of a miner is worth, and when it loses its place for it; see [`scores`](crate::scores).
    ScoresSpec {
        /// What a miner's score is: its merged samples (`samples`), or what its contributions do to the loss (`loss`), in runs of one
        /// stage and `local` mode; see [`gauntlet`](crate::gauntlet). Default `samples`.
        by: ScoredBy = ScoredBy::Samples,
        /// With `loss`, validators that evaluate each merge, if there are as many. Default 3.
        evaluators: u16 = 3,
        /// With `loss`, contributions of each merge that are evaluated, drawn; all if there are fewer. One takes an evaluator as long
        /// as a miner takes for 21 samples. Default 8.
        evaluated: u16 = 8,
        /// With `loss`, what evaluations may take, as a share of what training takes. If the evaluation of a merge takes more, only so many
        /// merges are evaluated that all together do not; which is drawn. Default 0.01.
        evaluation_cost: f64 = 0.01,
        /// Newest epochs of a stage whose work counts. Default 24.
        window: u32 = 24,
        /// What a sample costs that a miner was dealt and did not process, in samples. Counted in millionths. Default 0.5.
        penalty_unprocessed: f64 = 0.5,
        /// Share of what is paid out that no miner gets. Default 0.
        burn: f64 = 0.0,
        /// Largest share of one miner; what is above goes to the others. Default 1.
        cap: f64 = 1.0,
        /// Who loses its place for its score: `none`, `bottom` or `threshold`. Default `none`.
        kick: KickPolicy = KickPolicy::None,
        /// With `bottom`, how many miners of a stage in one epoch, at most. Default 1.
        kick_count: u32 = 1,
        /// With `threshold`, the share of its stage's mean below which a miner's rate of work is too low. Default 0.25.
        kick_below: f64 = 0.25,
        /// Epochs of its stage for which a miner that comes there keeps its place in any case. Default 3.
        kick_grace: u32 = 3,
    }
}

/// What a miner's score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoredBy {
    /// Its merged samples of the window.
    Samples,
    /// What evaluators found that its contributions do to the loss.
    Loss,
}

/// Who loses its place for its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KickPolicy {
    /// Nobody.
    None,
    /// In each epoch the worst of a stage, unless all are equal.
    Bottom,
    /// Whoever does far less than the mean of its stage.
    Threshold,
}

section! {
    /// The mirror: an object store that holds checkpoints and merged partitions, from which a run can be resumed.
    MirrorSpec {
        /// `s3://bucket/prefix` or `file:///folder`; empty for none. Default none.
        url: String = String::new(),
        /// Epochs from one checkpoint to the next; the last epoch has one in any case. Default 4.
        checkpoint_epochs: u32 = 4,
        /// Newest checkpoints that are kept. Default 3.
        keep: u32 = 3,
        /// Of the older ones every so many is kept for good; 0 for none. Default 0.
        keep_every: u32 = 0,
        /// Whether each miner's own inner optimizer goes with them, in "local" mode: 8 bytes for each parameter of its stage,
        /// miner and checkpoint. Without it a resumed run begins with fresh ones. Default true.
        moments: bool = true,
    }
}

section! {
    /// Where a resumed run starts; `iota-node resume` writes it. A run that is not resumed has none of it.
    StartSpec {
        /// Epoch that is opened first. Default 0.
        epoch: u32 = 0,
        /// [Lineage](RunSpec::lineage) of the run that it goes on from: samples are dealt as that one would deal them.
        lineage: Option<Hash> = None,
        /// BLAKE3 of the checkpoint's manifest.
        checkpoint: Option<Hash> = None,
        /// BLAKE3 of the encoding of each stage's [`StateOffer`](crate::wire::message::StateOffer), head first.
        stages: Vec<Hash> = Vec::new(),
        /// The [moments](crate::moments) of inner optimizers that go with it, by stage and miner. Who has some of its own here goes on from
        /// them.
        moments: Vec<SavedMoments> = Vec::new(),
    }
}

impl StartSpec {
    /// The moments that go with the checkpoint of this miner, if any do.
    #[must_use]
    pub fn moments_of(&self, peer: PeerId) -> Option<&SavedMoments> {
        self.moments.iter().find(|saved| saved.peer == peer)
    }
}

impl MirrorSpec {
    /// Whether there is a mirror.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        !self.url.is_empty()
    }
}

impl RunSpec {
    /// Reads a spec from TOML and validates it.
    ///
    /// # Errors
    /// [`SpecError`] names the field, what was expected and what was found.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        let spec: Self = toml::from_str(text)
            .map_err(|error| SpecError::Syntax(error.to_string().trim_end().to_owned()))?;
        spec.validate()?;
        Ok(spec)
    }

    /// The spec as TOML with every field written out.
    ///
    /// # Panics
    /// Never: every field of a spec has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        #[expect(clippy::expect_used, reason = "every field of a spec has a TOML form")]
        toml::to_string_pretty(self).expect("a spec has a TOML form")
    }

    /// The run's name on the wire: the BLAKE3 hash of the spec's canonical CBOR.
    #[must_use]
    pub fn run_id(&self) -> RunId {
        RunId(Hash::of(&wire::encode(self)).0)
    }

    /// What the deals of samples are keyed by: the BLAKE3 hash of the spec as it would be without a mirror, or of that of the
    /// first run if this one goes on from another. So a run deals alike wherever its copies lie, and is resumed as it was.
    #[must_use]
    pub fn lineage(&self) -> Hash {
        let own = || Hash::of(&wire::encode(&Self { mirror: MirrorSpec::default(), ..self.clone() }));
        self.start.lineage.unwrap_or_else(own)
    }

    /// The candidate's position in the spec, if `peer` is one.
    #[must_use]
    pub fn candidate_index(&self, peer: PeerId) -> Option<usize> {
        self.orchestrator.candidates.iter().position(|candidate| candidate.peer == peer)
    }

    /// How many candidates' signatures make a certificate: a majority.
    #[must_use]
    pub fn certificate_quorum(&self) -> usize {
        self.orchestrator.candidates.len() / 2 + 1
    }

    /// Whether the state of each stage at this version goes to the mirror: there is one, and a checkpoint is due.
    #[must_use]
    pub fn is_checkpoint(&self, version: Epoch) -> bool {
        let due =
            version.0.is_multiple_of(self.mirror.checkpoint_epochs) || version.0 == self.training.epochs;
        self.mirror.is_set() && version.0 > self.start.epoch && due
    }

    /// Whether miners bring their inner optimizers' moments to the mirror.
    #[must_use]
    pub fn saves_moments(&self) -> bool {
        self.mirror.is_set() && self.mirror.moments && self.training.mode == TrainingMode::Local
    }

    /// The stages, head first.
    pub fn stages(&self) -> impl DoubleEndedIterator<Item = crate::StageIndex> + use<> {
        (0..self.pipeline.stages).map(crate::StageIndex)
    }

    /// Number of partitions of a stage of `parameters` elements: enough that none exceeds
    /// `merge.partition_bytes`, at least `merge.partitions_min`, never more than elements.
    #[must_use]
    pub fn partitions(&self, parameters: usize) -> usize {
        let bytes = parameters.saturating_mul(self.merge.codec.bytes());
        let limit = usize::try_from(self.merge.partition_bytes.0).unwrap_or(usize::MAX).max(1);
        bytes
            .div_ceil(limit)
            .max(self.merge.partitions_min as usize)
            .clamp(1, limits::PARTITIONS_MAX)
            .min(parameters.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    fn spec() -> RunSpec {
        let candidates = vec![Candidate { peer: Identity::from_secret([1; 32]).peer(), priority: 0 }];
        RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() }
    }

    #[test]
    fn defaults_with_a_candidate_are_valid_and_survive_toml() {
        let spec = spec();
        assert_eq!(RunSpec::from_toml(&spec.to_toml()), Ok(spec));
    }

    #[test]
    fn every_field_changes_the_run_id() {
        let (a, mut b) = (spec(), spec());
        assert_eq!(a.run_id(), b.run_id());
        b.timing.linger = Millis(1);
        assert_ne!(a.run_id(), b.run_id());
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = RunSpec::from_toml("[model]\nwidht = 3\n").expect_err("unknown key");
        assert!(error.to_string().contains("widht"), "{error}");
    }

    #[test]
    fn matrix_products_are_of_high_precision_unless_the_highest_is_asked_for() {
        assert_eq!(spec().training.matmul_precision, MatmulPrecision::High);
        let parsed = |name: &str| {
            let text = spec().to_toml().replace("\"high\"", &format!("\"{name}\""));
            RunSpec::from_toml(&text).map(|spec| spec.training.matmul_precision)
        };
        assert_eq!(parsed("highest"), Ok(MatmulPrecision::Highest));
        let error = parsed("medium").expect_err("PyTorch's third").to_string();
        assert!(error.contains("unknown variant `medium`, expected `high` or `highest`"), "{error}");
    }

    /// Holds that the spec is refused with `text` once it is changed so.
    fn refused(change: fn(&mut RunSpec), text: &str) {
        let mut bad = spec();
        change(&mut bad);
        let error = bad.validate().expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn impossible_relations_are_refused() {
        refused(|s| s.model.heads = 3, "model.heads");
        refused(|s| s.pipeline.stages = 7, "pipeline.stages");
        refused(|s| s.orchestrator.candidates.clear(), "orchestrator.candidates");
        refused(|s| s.timing.eviction = Millis(2000), "timing.eviction");
        refused(|s| s.training.learning_rate = f64::NAN, "training.learning_rate");
        refused(|s| s.data.source = DataSource::File, "data.hash");
        refused(|s| s.merge.audit_share = 1.1, "`merge.audit_share`: expected a share from 0 to 1, got 1.1");
        refused(|s| s.merge.trim = 0.5, "`merge.trim`: expected 0 or more, below 0.5, got 0.5");
        refused(|s| s.scores.window = 0, "scores.window");
        refused(
            |s| s.scores.window = limits::SCORE_WINDOW_MAX + 1,
            "`scores.window`: expected 1 to 256, got 257",
        );
        refused(
            |s| s.scores.penalty_unprocessed = -0.5,
            "`scores.penalty_unprocessed`: expected zero or more",
        );
        refused(|s| s.scores.penalty_unprocessed = f64::INFINITY, "scores.penalty_unprocessed");
        refused(|s| s.scores.burn = 1.5, "`scores.burn`: expected a share from 0 to 1, got 1.5");
        refused(|s| s.scores.cap = 0.0, "`scores.cap`: expected a share above 0, at most 1, got 0");
        refused(|s| s.scores.cap = f64::NAN, "scores.cap");
        refused(|s| s.scores.kick_below = -1.0, "scores.kick_below");
        refused(|s| s.scores.kick_count = 0, "scores.kick_count");
        refused(|s| s.scores.kick_grace = 0, "scores.kick_grace");
        refused(|s| s.mirror.url = "ftp://host/folder".to_owned(), "mirror.url");
        refused(|s| s.mirror.checkpoint_epochs = 0, "mirror.checkpoint_epochs");
        refused(|s| s.start.epoch = 3, "start.checkpoint");
        refused(|s| s.start.stages = vec![Hash::default()], "start.stages");
    }

    #[test]
    fn what_a_policy_does_not_use_is_refused_and_so_is_the_lack_of_what_it_needs() {
        refused(
            |s| s.join.work_bits = limits::WORK_BITS_MAX + 1,
            "`join.work_bits`: expected 0 to 36, got 37",
        );
        refused(
            |s| (s.join.policy, s.join.work_bits) = (JoinPolicy::Allow, 1),
            "`join.work_bits`: expected 0, since join.policy is `allow`, got 1",
        );
        refused(
            |s| s.join.policy = JoinPolicy::Invite,
            "`join.owner`: expected the public key that signs invites, since join.policy is `invite`, got nothing",
        );
        refused(
            |s| (s.join.policy, s.join.owner) = (JoinPolicy::Invite, Some(PeerId([0; 32]))),
            "`join.owner`: expected an ed25519 public key",
        );
        refused(
            |s| s.join.owner = Some(PeerId::default()),
            "`join.owner`: expected nothing, since join.policy is `open`",
        );
        refused(
            |s| s.join.allow = vec![PeerId::default()],
            "`join.allow`: expected nothing, since join.policy is `open`, got 1 peers",
        );
        refused(
            |s| (s.join.policy, s.join.allow) = (JoinPolicy::Allow, vec![PeerId::default(); 2]),
            "`join.allow`: expected each peer once",
        );
        refused(
            |s| (s.join.policy, s.join.allow) = (JoinPolicy::Allow, vec![PeerId::default()]),
            "`join.allow`: expected at least 5 peers beside the 1 candidates, for the 6 miners that the run waits for, got 1",
        );
        let ban = |peer| Ban { peer, reason: String::new() };
        let banned = |bans: &[PeerId], text: &str| {
            let mut bad = spec();
            bad.join.ban = bans.iter().copied().map(ban).collect();
            let error = bad.validate().expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        };
        banned(&[PeerId::default(); 2], "`join.ban`: expected each peer once");
        let candidate = spec().orchestrator.candidates[0].peer;
        banned(&[candidate], "`join.ban`: expected no candidate");
        refused(
            |s| {
                (s.join.policy, s.pipeline.stages, s.pipeline.start_replicas) = (JoinPolicy::Allow, 1, 1);
                s.join.allow = vec![PeerId::default()];
                s.join.ban = vec![Ban { peer: PeerId::default(), reason: String::new() }];
            },
            "`join.ban`: expected no peer that join.allow names",
        );
        refused(
            |s| s.join.ban = vec![Ban { peer: PeerId::default(), reason: "x".repeat(257) }],
            "`join.ban`: expected reasons of at most 256 bytes, got 257",
        );
    }
}
