//! [`Manifest`]: the JSON document that names everything of one checkpoint.

use iota_protocol::run_state::Checkpoint;
use iota_protocol::spec::SpecError;
use iota_protocol::wire::encode;
use iota_protocol::wire::message::{SavedMoments, StateOffer};
use iota_protocol::{Hash, PeerId, RunId, RunSpec, StageIndex};
use serde::{Deserialize, Serialize};

/// The number of the format that is written.
const FORMAT: u32 = 2;
/// The oldest that is read: it names no moments of inner optimizers.
const FORMAT_OLDEST: u32 = 1;
/// Greatest manifest that is read: 64 stages with 4096 parts of 67 bytes each, moments of 2048 miners, and a spec.
pub const MANIFEST_BYTES_MAX: u64 = 32 << 20;

/// Everything of one checkpoint: all candidates make the same bytes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of this document; 2.
    pub format: u32,
    /// The run.
    pub run: RunId,
    /// Version of all weights: merges done, and the epoch that comes next.
    pub epoch: u32,
    /// First sample of that epoch. Which text it is follows from the spec's seed.
    pub next_sample: u64,
    /// Entries of the log up to and with the one that decided the checkpoint.
    pub log_length: u64,
    /// Chain hash of the log after that entry.
    pub log_chain: Hash,
    /// The stages, head first.
    pub stages: Vec<StageEntry>,
    /// The run spec, in TOML.
    pub spec: String,
}

/// The state of one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageEntry {
    /// Hash of the encoding of its state offer, which is a blob too.
    pub offer: Hash,
    /// Hash of its weights: BLAKE3 over little-endian f32 in flat order.
    pub weights: Hash,
    /// The blobs whose concatenation is the state: weights, then the outer optimizer's moments, all little-endian f32, then
    /// its number of steps, a little-endian u64.
    pub parts: Vec<Hash>,
    /// The inner optimizers' moments that miners of the stage have brought to the mirror.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<MomentsEntry>,
}

/// The inner optimizer's [moments](iota_protocol::moments) of one miner. That they are in the mirror is what the miner said; nobody but
/// the miner goes on from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsEntry {
    /// The miner.
    pub peer: PeerId,
    /// The blob: first moments, second moments, both little-endian f32, and the number of steps, a little-endian u64; of no step the
    /// number alone.
    pub hash: Hash,
}

impl MomentsEntry {
    /// Its form in a spec.
    #[must_use]
    pub const fn saved(self, stage: StageIndex) -> SavedMoments {
        SavedMoments { stage, peer: self.peer, hash: self.hash }
    }
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// They are no JSON of this shape.
    #[error("the manifest is malformed: {0}")]
    Malformed(serde_json::Error),
    /// Another program's.
    #[error("the manifest is of format {got}, expected {FORMAT_OLDEST} or {FORMAT}")]
    Format {
        /// What it says.
        got: u32,
    },
    /// The spec in it is none.
    #[error("the spec in the manifest: {0}")]
    Spec(#[from] SpecError),
    /// The parts contradict each other.
    #[error("the manifest contradicts itself: {what} is {got}, expected {expected}")]
    Contradiction {
        /// Which.
        what: &'static str,
        /// What it says.
        got: String,
        /// What follows from the rest of it.
        expected: String,
    },
}

impl Manifest {
    /// The manifest of a checkpoint that was decided, with the offers that it names.
    #[must_use]
    pub fn new(spec: &RunSpec, checkpoint: &Checkpoint, offers: &[StateOffer]) -> Self {
        let (log_length, log_chain) = checkpoint.decided.unwrap_or_default();
        let entry = |offer: &StateOffer| StageEntry {
            offer: Hash::of(&encode(offer)),
            weights: offer.weights,
            parts: offer.parts.clone(),
            moments: checkpoint
                .moments
                .iter()
                .filter(|saved| saved.stage == offer.stage)
                .map(|saved| MomentsEntry { peer: saved.peer, hash: saved.hash })
                .collect(),
        };
        Self {
            format: FORMAT,
            run: spec.run_id(),
            epoch: checkpoint.epoch.0,
            next_sample: u64::from(checkpoint.epoch.0) * u64::from(spec.training.samples_per_epoch),
            log_length,
            log_chain,
            stages: offers.iter().map(entry).collect(),
            spec: spec.to_toml(),
        }
    }

    /// Its bytes: JSON in lines, for people too.
    ///
    /// # Panics
    /// Never: everything in it has a JSON form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "numbers, hashes and text have a JSON form")]
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest has a JSON form");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a manifest and checks that its parts fit each other.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Malformed)?;
        if !(FORMAT_OLDEST..=FORMAT).contains(&manifest.format) {
            return Err(ManifestError::Format { got: manifest.format });
        }
        let spec = manifest.spec()?;
        let agree = |what, got: String, expected: String| {
            if got == expected { Ok(()) } else { Err(ManifestError::Contradiction { what, got, expected }) }
        };
        agree("the run", manifest.run.to_string(), spec.run_id().to_string())?;
        agree("the number of stages", manifest.stages.len().to_string(), spec.pipeline.stages.to_string())?;
        for (stage, entry) in spec.stages().zip(&manifest.stages) {
            let offer = Hash::of(&encode(&manifest.offer(stage, entry)));
            agree("an offer's hash", entry.offer.to_string(), offer.to_string())?;
        }
        Ok(manifest)
    }

    /// The run's spec.
    ///
    /// # Errors
    /// When it is none that this program takes.
    pub fn spec(&self) -> Result<RunSpec, ManifestError> {
        Ok(RunSpec::from_toml(&self.spec)?)
    }

    /// The offers of all stages, head first.
    pub fn offers(&self) -> impl Iterator<Item = StateOffer> + '_ {
        (0..).zip(&self.stages).map(|(stage, entry)| self.offer(StageIndex(stage), entry))
    }

    /// The moments of miners that are named, and their stages.
    pub fn moments(&self) -> impl Iterator<Item = (StageIndex, MomentsEntry)> + '_ {
        let of = |(stage, entry): (u16, &StageEntry)| {
            entry.moments.iter().map(move |moments| (StageIndex(stage), *moments)).collect::<Vec<_>>()
        };
        (0..).zip(&self.stages).flat_map(of)
    }

    fn offer(&self, stage: StageIndex, entry: &StageEntry) -> StateOffer {
        let version = iota_protocol::Epoch(self.epoch);
        StateOffer { stage, version, weights: entry.weights, parts: entry.parts.clone() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use iota_protocol::spec::{Candidate, OrchestratorSpec};
    use iota_protocol::{Epoch, Identity};

    use super::*;

    /// The moments of a miner of the second stage.
    const MOMENTS: &[u8] = b"moments";

    /// A manifest of a run of three stages after eight epochs; each state is a blob of these bytes.
    pub(crate) fn manifest(mirror: &str) -> (Manifest, Vec<Vec<u8>>) {
        let candidates = vec![Candidate { peer: Identity::from_secret([1; 32]).peer(), priority: 0 }];
        let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        mirror.clone_into(&mut spec.mirror.url);
        let blobs: Vec<Vec<u8>> = (0_u8..3).map(|stage| vec![stage; 100]).collect();
        let offers: Vec<StateOffer> = spec
            .stages()
            .zip(&blobs)
            .map(|(stage, blob)| {
                let (weights, parts) =
                    (Hash::of(&[u8::try_from(stage.0).expect("few")]), vec![Hash::of(blob)]);
                StateOffer { stage, version: Epoch(8), weights, parts }
            })
            .collect();
        let stages = offers.iter().map(|offer| Hash::of(&encode(offer))).collect();
        let decided = Some((77, Hash::of(b"chain")));
        let saved = |stage| SavedMoments { stage, peer: PeerId([7; 32]), hash: Hash::of(MOMENTS) };
        let moments = vec![saved(StageIndex(1))];
        let checkpoint = Checkpoint { epoch: Epoch(8), stages, moments, decided };
        (Manifest::new(&spec, &checkpoint, &offers), blobs)
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let (manifest, _) = manifest("file:///mirror");
        assert_eq!(Manifest::from_bytes(&manifest.to_bytes()).expect("a manifest"), manifest);
        assert_eq!(manifest.next_sample, 8 * 64);
        let moments: Vec<_> = manifest.stages.iter().map(|stage| stage.moments.len()).collect();
        assert_eq!(moments, [0, 1, 0]);
        let mut older = manifest.clone();
        older.format = 1;
        older.stages.iter_mut().for_each(|stage| stage.moments.clear());
        assert_eq!(Manifest::from_bytes(&older.to_bytes()).expect("a manifest of format 1"), older);
        let spec = manifest.spec().expect("a spec");
        assert_eq!(spec.run_id(), manifest.run);
    }

    #[test]
    fn a_manifest_whose_parts_do_not_fit_is_refused() {
        let refused = |change: fn(&mut Manifest), text: &str| {
            let (mut manifest, _) = manifest("file:///mirror");
            change(&mut manifest);
            let error = Manifest::from_bytes(&manifest.to_bytes()).expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        };
        refused(|m| m.format = 3, "format 3, expected 1 or 2");
        refused(|m| m.format = 0, "format 0, expected 1 or 2");
        refused(|m| m.run = RunId([3; 32]), "the run is 0303");
        refused(|m| drop(m.stages.pop()), "the number of stages is 2, expected 3");
        refused(|m| m.stages[1].weights = Hash::default(), "an offer's hash");
        refused(|m| m.spec.push_str("colour = 3\n"), "colour");
    }
}
