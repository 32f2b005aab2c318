//! A validator's tensors beside a miner's.

use bytes::Bytes;
use iota_model::Frame;
use iota_model::compare::{Comparison, Sums};
use iota_protocol::difference::{Difference, Measured};
use iota_protocol::gauntlet::Settings;
use iota_protocol::gauntlet::draw::Draw;
use iota_protocol::merge::partition_range;
use iota_protocol::miner::{Sketched, Tensor};
use iota_protocol::{Hash, RunSpec, StageIndex};

use crate::blobs::{Blobs, whole_blob};
use crate::bridge;
use crate::error::WorkError;

/// The difference of pairs of vectors, of which the first is ours; theirs is none where it is no tensor of this kind.
///
/// # Errors
/// The first pair that is none.
///
/// # Panics
/// If the vectors of a pair differ in length.
pub fn difference<T: Copy + Into<f64>, E>(
    kind: Tensor,
    pairs: impl Iterator<Item = Result<(Vec<T>, Option<Vec<T>>), E>>,
) -> Result<Difference, E> {
    let mut whole = Sums::default();
    let mut worst = Difference::NONE;
    for (index, pair) in pairs.enumerate() {
        let (ours, theirs) = pair?;
        let Some(theirs) = theirs else { return Ok(Difference::incomparable(index)) };
        let sums = Sums::of(&ours, &theirs);
        worst = worst.and(measured(index, sums));
        whole += sums;
    }
    Ok(match (kind, worst) {
        // Of a vector in parts, the parts only say where it differs most.
        (Tensor::Contribution { .. }, Difference::Measured(parts)) => measured(parts.worst as usize, whole),
        _ => worst,
    })
}

fn measured(pair: usize, sums: Sums) -> Difference {
    let Comparison { relative_error, cosine, norm_ratio } = sums.comparison();
    Difference::Measured(Measured::new(pair, relative_error, cosine, norm_ratio))
}

/// Compares pairs of blobs. What of theirs is no tensor of this kind is a result; what of ours is none, or a blob that is
/// not here, says nothing about them and is an error.
pub(crate) fn compare_blobs(
    spec: &RunSpec,
    kind: Tensor,
    pairs: &[(Hash, Hash)],
    blobs: &dyn Blobs,
) -> Result<Difference, WorkError> {
    let vectors = vectors(spec, kind, pairs, blobs)?;
    difference(kind, vectors.map(|pair| pair.map(|(ours, theirs)| (ours, theirs.ok()))))
}

/// The sums of all pairs together.
pub(crate) fn sums_of_blobs(
    spec: &RunSpec,
    kind: Tensor,
    pairs: &[(Hash, Hash)],
    blobs: &dyn Blobs,
) -> Result<Sums, WorkError> {
    let mut whole = Sums::default();
    for pair in vectors(spec, kind, pairs, blobs)? {
        let (ours, theirs) = pair?;
        whole += Sums::of(&ours, &theirs?);
    }
    Ok(whole)
}

/// Ours as numbers; theirs, or why it is no tensor of this kind.
type Vectors = (Vec<f32>, Result<Vec<f32>, WorkError>);

/// The numbers of pairs of blobs.
fn vectors<'a>(
    spec: &'a RunSpec,
    kind: Tensor,
    pairs: &'a [(Hash, Hash)],
    blobs: &'a dyn Blobs,
) -> Result<impl Iterator<Item = Result<Vectors, WorkError>> + 'a, WorkError> {
    let parameters = match kind {
        Tensor::Activation => 0,
        Tensor::Contribution { stage } => bridge::model_config(spec).parameter_count(stage.as_usize()),
    };
    let partitions = spec.partitions(parameters);
    if matches!(kind, Tensor::Contribution { .. }) && pairs.len() != partitions {
        return Err(WorkError::Partitions { got: pairs.len(), expected: partitions });
    }
    Ok(pairs.iter().enumerate().map(move |(index, (ours, theirs))| {
        let numbers = |bytes| match kind {
            Tensor::Activation => activation(spec, bytes),
            Tensor::Contribution { .. } => {
                let length = partition_range(index, partitions, parameters).len();
                Ok(bridge::codec(spec.merge.codec).decode(&bytes, length)?)
            }
        };
        let ours = numbers(whole_blob(blobs, *ours)?)?;
        Ok((ours, numbers(whole_blob(blobs, *theirs)?)))
    }))
}

/// All of a contribution to a stage; an error inside the result if its blobs hold none, outside if one is not here.
pub(crate) fn contribution_of(
    spec: &RunSpec,
    stage: StageIndex,
    partitions: &[Hash],
    blobs: &dyn Blobs,
) -> Result<Result<Vec<f32>, WorkError>, WorkError> {
    let parameters = bridge::model_config(spec).parameter_count(stage.as_usize());
    let expected = spec.partitions(parameters);
    if partitions.len() != expected {
        return Ok(Err(WorkError::Partitions { got: partitions.len(), expected }));
    }
    let (codec, mut flat) = (bridge::codec(spec.merge.codec), Vec::with_capacity(parameters));
    for (index, hash) in partitions.iter().enumerate() {
        let bytes = whole_blob(blobs, *hash)?;
        match codec.decode(&bytes, partition_range(index, expected, parameters).len()) {
            Ok(numbers) => flat.extend(numbers),
            Err(error) => return Ok(Err(error.into())),
        }
    }
    Ok(Ok(flat))
}

/// What is compared of a contribution; nothing if it is none.
pub(crate) fn sketch(
    spec: &RunSpec,
    stage: StageIndex,
    plan: Hash,
    partitions: &[Hash],
    blobs: &dyn Blobs,
) -> Result<Option<Sketched>, WorkError> {
    let flat = contribution_of(spec, stage, partitions, blobs)?;
    Ok(flat.ok().map(|flat| sketch_of(&flat, plan)))
}

/// What is compared of a contribution of these numbers.
pub fn sketch_of<T: Copy + Into<f64>>(flat: &[T], plan: Hash) -> Sketched {
    let norm = flat.iter().map(|&value| value.into()).map(|value| value * value).sum::<f64>().sqrt();
    let places = Draw::new(plan).elements(flat.len(), Settings::default().elements);
    let elements = places.into_iter().filter_map(|place| flat.get(place)).map(|&value| value.into());
    Sketched { norm, elements: elements.collect() }
}

/// The finite numbers of an activation.
fn activation(spec: &RunSpec, bytes: Bytes) -> Result<Vec<f32>, WorkError> {
    let dtype = bridge::dtype(spec.pipeline.activation_dtype);
    let frame = Frame::new(dtype, bridge::activation_shape(spec), bytes)?;
    frame.check_finite()?;
    Ok(frame.to_f32()?)
}
