//! How long work takes and how large its results are.

use std::time::Duration;

use iota_protocol::RunSpec;
use iota_protocol::miner::Job;
use iota_protocol::spec::{Bottleneck, WireDtype};

/// What a job costs on a host of speed 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// The forward pass of a sample.
    pub forward: Duration,
    /// Its backward pass.
    pub backward: Duration,
    /// Bytes per second at which vectors are read, added and written.
    pub memory: f64,
    /// Elements of each stage's flat vector.
    pub parameters: usize,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            forward: Duration::from_millis(100),
            backward: Duration::from_millis(200),
            memory: 2e9,
            parameters: 1_000_000,
        }
    }
}

impl Costs {
    /// How long a job takes at `speed`. `partition` is the size of a partition in bytes.
    #[must_use]
    pub fn duration(&self, job: &Job, speed: f64, partition: u64) -> Duration {
        let vector = self.parameters as u64 * 4;
        let whole = match job {
            Job::Forward { .. } => self.forward,
            Job::Backward { .. } => self.backward,
            Job::Loss { .. } => self.forward + self.backward,
            Job::Reset => Duration::ZERO,
            // Parameters, gradients and two moments are read, three of them written.
            Job::InnerStep { .. } => self.move_bytes(vector * 7),
            Job::Initialise { .. } => self.move_bytes(vector),
            Job::Load { .. } | Job::Snapshot { .. } | Job::Contribute { .. } | Job::Apply { .. } => {
                self.move_bytes(vector * 3)
            }
            // An activation passes for a partition here.
            Job::Compare { pairs, .. } => self.move_bytes(partition * 2 * pairs.len() as u64),
            Job::Sketch { .. } => self.move_bytes(vector),
            Job::Losses { samples, .. } => self.forward * u32::try_from(samples.len()).unwrap_or(u32::MAX),
            Job::Reduce { inputs, .. } => self.move_bytes(partition * (inputs.len() as u64 + 1)),
        };
        whole.div_f64(speed)
    }

    #[expect(clippy::cast_precision_loss, reason = "a size below 2^53")]
    fn move_bytes(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.memory)
    }
}

/// Bytes of an activation or its gradient on the wire.
#[must_use]
pub fn activation_bytes(spec: &RunSpec) -> u64 {
    let channels = match spec.model.bottleneck {
        Bottleneck::None => spec.model.width,
        Bottleneck::Width(width) => width,
    };
    let element = match spec.pipeline.activation_dtype {
        WireDtype::F32 => 4,
        WireDtype::Bf16 => 2,
    };
    u64::from(spec.training.sequences_per_sample)
        * u64::from(spec.model.context)
        * u64::from(channels)
        * element
}

/// Bytes of the largest partition of a vector of `parameters` elements.
#[must_use]
pub fn partition_bytes(spec: &RunSpec, parameters: usize) -> u64 {
    let elements = parameters.div_ceil(spec.partitions(parameters));
    (elements * spec.merge.codec.bytes()) as u64
}
