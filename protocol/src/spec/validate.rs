//! Ranges of the spec's fields, and the relations between them.

use std::collections::BTreeSet;

use super::{Bottleneck, DataSource, JoinPolicy, RunSpec, ScoredBy, SpecError, TrainingMode};
use crate::limits;
use crate::time::{ByteCount, Millis};
use crate::wire::message::SavedMoments;

impl RunSpec {
    /// Checks ranges and relations.
    ///
    /// # Errors
    /// The first field found wrong.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.validate_model()?;
        self.validate_pipeline()?;
        self.validate_training()?;
        self.validate_merge()?;
        self.validate_validation()?;
        self.validate_scores()?;
        self.validate_mirror()?;
        self.validate_candidates()?;
        self.validate_join()
    }

    fn validate_model(&self) -> Result<(), SpecError> {
        let m = &self.model;
        let positive = [
            ("model.vocab_size", m.vocab_size),
            ("model.context", m.context),
            ("model.width", m.width),
            ("model.layers", m.layers),
            ("model.heads", m.heads),
            ("model.kv_heads", m.kv_heads),
            ("model.hidden", m.hidden),
        ];
        for (field, value) in positive {
            require(value > 0, field, "at least 1", value)?;
        }
        require(
            m.width.is_multiple_of(m.heads),
            "model.heads",
            format!("a divisor of model.width ({})", m.width),
            m.heads,
        )?;
        require(
            (m.width / m.heads).is_multiple_of(2),
            "model.heads",
            "an even width / heads (rotary positions turn pairs)",
            m.heads,
        )?;
        require(
            m.heads.is_multiple_of(m.kv_heads),
            "model.kv_heads",
            format!("a divisor of model.heads ({})", m.heads),
            m.kv_heads,
        )?;
        require(
            m.rope_base.is_finite() && m.rope_base > 1.0,
            "model.rope_base",
            "a number above 1",
            m.rope_base,
        )?;
        require(
            m.norm_eps.is_finite() && m.norm_eps > 0.0,
            "model.norm_eps",
            "a positive number",
            m.norm_eps,
        )?;
        require(
            m.init_std.is_finite() && m.init_std > 0.0,
            "model.init_std",
            "a positive number",
            m.init_std,
        )?;
        if let Bottleneck::Width(width) = m.bottleneck {
            require(
                width > 0 && width <= m.width,
                "model.bottleneck",
                format!("1 to model.width ({}), or \"none\"", m.width),
                width,
            )?;
        }
        Ok(())
    }

    fn validate_pipeline(&self) -> Result<(), SpecError> {
        let p = &self.pipeline;
        let stages_max = limits::STAGES_MAX.min(self.model.layers as usize);
        require(
            p.stages >= 1 && usize::from(p.stages) <= stages_max,
            "pipeline.stages",
            format!("1 to {stages_max} (no more than model.layers)"),
            p.stages,
        )?;
        require(
            p.start_replicas >= 1 && usize::from(p.start_replicas) <= limits::REPLICAS_MAX,
            "pipeline.start_replicas",
            format!("1 to {}", limits::REPLICAS_MAX),
            p.start_replicas,
        )?;
        require(p.window >= 1, "pipeline.window", "at least 1", p.window)?;
        require(p.credits >= 1, "pipeline.credits", "at least 1", p.credits)?;
        let d = &self.data;
        require(
            d.source != DataSource::File || d.hash.is_some(),
            "data.hash",
            "the BLAKE3 hash of the file, since data.source is `file`",
            "nothing",
        )?;
        require(
            d.validation_fraction > 0.0 && d.validation_fraction < 1.0,
            "data.validation_fraction",
            "a number between 0 and 1",
            d.validation_fraction,
        )?;
        let window = u64::from(self.model.context) + 1;
        let bytes_min = 64 * window;
        require(
            d.source != DataSource::Builtin || d.builtin_bytes.0 >= bytes_min,
            "data.builtin_bytes",
            format!("at least {bytes_min} bytes (64 windows of model.context + 1)"),
            d.builtin_bytes,
        )
    }

    fn validate_training(&self) -> Result<(), SpecError> {
        let t = &self.training;
        require(t.epochs >= 1, "training.epochs", "at least 1", t.epochs)?;
        require(
            t.samples_per_epoch >= 1 && u64::from(t.samples_per_epoch) <= limits::SAMPLES_PER_EPOCH_MAX,
            "training.samples_per_epoch",
            format!("1 to {}", limits::SAMPLES_PER_EPOCH_MAX),
            t.samples_per_epoch,
        )?;
        require(
            t.sequences_per_sample >= 1,
            "training.sequences_per_sample",
            "at least 1",
            t.sequences_per_sample,
        )?;
        require(t.inner_steps >= 1, "training.inner_steps", "at least 1", t.inner_steps)?;
        let unit = [
            ("training.warmup_fraction", t.warmup_fraction),
            ("training.final_factor", t.final_factor),
            ("training.beta1", t.beta1),
            ("training.beta2", t.beta2),
        ];
        for (field, value) in unit {
            require((0.0..=1.0).contains(&value), field, "a number from 0 to 1", value)?;
        }
        let positive = [
            ("training.learning_rate", t.learning_rate),
            ("training.eps", t.eps),
            ("training.clip_norm", t.clip_norm),
        ];
        for (field, value) in positive {
            require(value.is_finite() && value > 0.0, field, "a positive number", value)?;
        }
        require(
            t.weight_decay.is_finite() && t.weight_decay >= 0.0,
            "training.weight_decay",
            "zero or more",
            t.weight_decay,
        )
    }

    fn validate_merge(&self) -> Result<(), SpecError> {
        let m = &self.merge;
        require(
            m.partition_bytes.0 >= 1024 && m.partition_bytes.0 <= limits::PARTITION_BYTES_MAX as u64,
            "merge.partition_bytes",
            format!("1KiB to {}", ByteCount(limits::PARTITION_BYTES_MAX as u64)),
            m.partition_bytes,
        )?;
        require(
            m.partitions_min >= 1 && m.partitions_min as usize <= limits::PARTITIONS_MAX,
            "merge.partitions_min",
            format!("1 to {}", limits::PARTITIONS_MAX),
            m.partitions_min,
        )?;
        require((1..=3).contains(&m.redundancy), "merge.redundancy", "1 to 3", m.redundancy)?;
        require(
            (0.0..=1.0).contains(&m.audit_share),
            "merge.audit_share",
            "a share from 0 to 1",
            m.audit_share,
        )?;
        require((0.0..0.5).contains(&m.trim), "merge.trim", "0 or more, below 0.5", m.trim)?;
        require(m.quorum > 0.0 && m.quorum <= 1.0, "merge.quorum", "a share above 0, at most 1", m.quorum)?;
        require(
            m.outer_learning_rate.is_finite() && m.outer_learning_rate > 0.0,
            "merge.outer_learning_rate",
            "a positive number",
            m.outer_learning_rate,
        )?;
        require(
            (0.0..1.0).contains(&m.outer_momentum),
            "merge.outer_momentum",
            "0 or more, below 1",
            m.outer_momentum,
        )
    }

    fn validate_validation(&self) -> Result<(), SpecError> {
        let v = &self.validation;
        for (field, value) in
            [("validation.replay_share", v.replay_share), ("validation.repeat_share", v.repeat_share)]
        {
            require((0.0..=1.0).contains(&value), field, "a number from 0 to 1", value)?;
        }
        require(
            v.quorum >= 1 && usize::from(v.quorum) <= limits::VALIDATORS_MAX,
            "validation.quorum",
            format!("1 to {}", limits::VALIDATORS_MAX),
            v.quorum,
        )?;
        for (key, value) in [
            ("validation.contribution_error_max", v.contribution_error_max),
            ("validation.tensor_error_max", v.tensor_error_max),
            ("validation.loss_error_max", v.loss_error_max),
        ] {
            require(value > 0.0 && value < 1.0, key, "a number between 0 and 1", value)?;
        }
        Ok(())
    }

    fn validate_scores(&self) -> Result<(), SpecError> {
        let s = &self.scores;
        if s.by == ScoredBy::Loss {
            let judged = (self.pipeline.stages, self.training.mode);
            require(
                judged == (1, TrainingMode::Local),
                "scores.by",
                "`samples`, or `loss` with pipeline.stages = 1 and training.mode = \"local\"",
                format!("`loss` with {} stages in {:?} mode", judged.0, judged.1).to_lowercase(),
            )?;
        }
        for (field, most, value) in [
            ("scores.evaluators", limits::EVALUATORS_MAX, s.evaluators),
            ("scores.evaluated", limits::EVALUATED_MAX, s.evaluated),
        ] {
            require((1..=most).contains(&value), field, format!("1 to {most}"), value)?;
        }
        require(
            s.evaluation_cost.is_finite() && s.evaluation_cost > 0.0,
            "scores.evaluation_cost",
            "a share of what training takes, above 0",
            s.evaluation_cost,
        )?;
        require(
            (1..=limits::SCORE_WINDOW_MAX).contains(&s.window),
            "scores.window",
            format!("1 to {}", limits::SCORE_WINDOW_MAX),
            s.window,
        )?;
        require(
            s.penalty_unprocessed.is_finite() && s.penalty_unprocessed >= 0.0,
            "scores.penalty_unprocessed",
            "zero or more",
            s.penalty_unprocessed,
        )?;
        require(s.cap > 0.0 && s.cap <= 1.0, "scores.cap", "a share above 0, at most 1", s.cap)?;
        for (field, value) in [("scores.burn", s.burn), ("scores.kick_below", s.kick_below)] {
            require((0.0..=1.0).contains(&value), field, "a share from 0 to 1", value)?;
        }
        for (field, value) in [("scores.kick_count", s.kick_count), ("scores.kick_grace", s.kick_grace)] {
            require(value >= 1, field, "at least 1", value)?;
        }
        Ok(())
    }

    fn validate_mirror(&self) -> Result<(), SpecError> {
        let (m, s) = (&self.mirror, &self.start);
        let known = ["s3://", "file:///"].iter().any(|scheme| m.url.starts_with(scheme));
        require(
            m.url.is_empty() || known,
            "mirror.url",
            "s3://bucket/prefix, file:///folder, or nothing",
            &m.url,
        )?;
        require(
            (1..=limits::CHECKPOINT_EPOCHS_MAX).contains(&m.checkpoint_epochs),
            "mirror.checkpoint_epochs",
            format!("1 to {}", limits::CHECKPOINT_EPOCHS_MAX),
            m.checkpoint_epochs,
        )?;
        require(m.keep >= 1, "mirror.keep", "at least 1", m.keep)?;
        let resumed = s.epoch > 0;
        require(
            s.epoch < self.training.epochs,
            "start.epoch",
            format!("less than training.epochs ({})", self.training.epochs),
            s.epoch,
        )?;
        require(
            s.checkpoint.is_some() == resumed && s.lineage.is_some() == resumed,
            "start.checkpoint",
            "a checkpoint and its lineage exactly if start.epoch is above 0",
            s.epoch,
        )?;
        require(!resumed || m.is_set(), "mirror.url", "the mirror that has the checkpoint", "nothing")?;
        let stages = if resumed { usize::from(self.pipeline.stages) } else { 0 };
        require(s.stages.len() == stages, "start.stages", format!("{stages} hashes"), s.stages.len())?;
        let most = if resumed { limits::CHECKPOINT_MOMENTS_MAX } else { 0 };
        require(s.moments.len() <= most, "start.moments", format!("{most} at most"), s.moments.len())?;
        let ordered = SavedMoments::are_in_order(&s.moments);
        require(ordered, "start.moments", "each miner of a stage once, by stage and key", "another order")?;
        let beyond = s.moments.iter().find(|saved| saved.stage.as_usize() >= stages);
        beyond.map_or(Ok(()), |saved| {
            require(false, "start.moments", format!("a stage below {stages}"), saved.stage)
        })
    }

    fn validate_candidates(&self) -> Result<(), SpecError> {
        let candidates = &self.orchestrator.candidates;
        require(
            !candidates.is_empty() && candidates.len() <= limits::CANDIDATES_MAX,
            "orchestrator.candidates",
            format!("1 to {} candidates", limits::CANDIDATES_MAX),
            candidates.len(),
        )?;
        for (i, candidate) in candidates.iter().enumerate() {
            let twice = candidates.iter().take(i).any(|other| other.peer == candidate.peer);
            require(!twice, "orchestrator.candidates", "each peer once", candidate.peer)?;
        }
        let t = &self.timing;
        require(t.heartbeat.0 >= 100, "timing.heartbeat", "100ms or more", t.heartbeat)?;
        require(
            t.eviction.0 >= 3 * t.heartbeat.0,
            "timing.eviction",
            format!("at least three heartbeats ({})", Millis(3 * t.heartbeat.0)),
            t.eviction,
        )?;
        require(t.epoch_deadline.0 > 0, "timing.epoch_deadline", "more than 0s", t.epoch_deadline)?;
        require(t.merge_deadline.0 > 0, "timing.merge_deadline", "more than 0s", t.merge_deadline)
    }
}

impl RunSpec {
    fn validate_join(&self) -> Result<(), SpecError> {
        let j = &self.join;
        let max = limits::WORK_BITS_MAX;
        require(j.work_bits <= max, "join.work_bits", format!("0 to {max}"), j.work_bits)?;
        let only = |policy: JoinPolicy, text: &str| match j.policy == policy {
            true => (true, String::new()),
            false => (false, format!("{text}, since join.policy is `{}`", j.policy)),
        };
        let (may, expected) = only(JoinPolicy::Open, "0");
        require(may || j.work_bits == 0, "join.work_bits", expected, j.work_bits)?;
        let (may, expected) = only(JoinPolicy::Invite, "nothing");
        match (j.owner, j.policy) {
            (Some(owner), _) => {
                require(may, "join.owner", expected, owner)?;
                require(owner.is_key(), "join.owner", "an ed25519 public key", owner)?;
            }
            (None, policy) => require(
                policy != JoinPolicy::Invite,
                "join.owner",
                "the public key that signs invites, since join.policy is `invite`",
                "nothing",
            )?,
        }
        let (may, expected) = only(JoinPolicy::Allow, "nothing");
        require(may || j.allow.is_empty(), "join.allow", expected, format!("{} peers", j.allow.len()))?;
        self.validate_join_lists()
    }

    fn validate_join_lists(&self) -> Result<(), SpecError> {
        let (j, max) = (&self.join, limits::JOIN_LIST_MAX);
        let mut known = BTreeSet::new();
        for peer in &j.allow {
            require(known.insert(*peer), "join.allow", "each peer once", peer)?;
        }
        require(known.len() <= max, "join.allow", format!("at most {max} peers"), known.len())?;
        known.extend(self.orchestrator.candidates.iter().map(|candidate| candidate.peer));
        let wanted = usize::from(self.pipeline.stages) * usize::from(self.pipeline.start_replicas);
        let candidates = self.orchestrator.candidates.len();
        require(
            j.policy != JoinPolicy::Allow || known.len() >= wanted,
            "join.allow",
            format!(
                "at least {} peers beside the {candidates} candidates, for the {wanted} miners that the run waits for",
                wanted.saturating_sub(candidates)
            ),
            j.allow.len(),
        )?;
        let mut banned = BTreeSet::new();
        for ban in &j.ban {
            require(banned.insert(ban.peer), "join.ban", "each peer once", ban.peer)?;
            let candidate = self.candidate_index(ban.peer).is_some();
            require(!candidate, "join.ban", "no candidate", ban.peer)?;
            require(!known.contains(&ban.peer), "join.ban", "no peer that join.allow names", ban.peer)?;
            let bytes = limits::BAN_REASON_BYTES_MAX;
            let length = ban.reason.len();
            require(length <= bytes, "join.ban", format!("reasons of at most {bytes} bytes"), length)?;
        }
        require(banned.len() <= max, "join.ban", format!("at most {max} peers"), banned.len())
    }
}

/// `Ok` when `holds`, otherwise the error that says why not.
fn require(
    holds: bool,
    field: &'static str,
    expected: impl Into<String>,
    got: impl std::fmt::Display,
) -> Result<(), SpecError> {
    if holds {
        Ok(())
    } else {
        Err(SpecError::Value { field, expected: expected.into(), got: got.to_string() })
    }
}
