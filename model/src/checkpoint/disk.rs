//! Safetensors files: metadata, orientation of matrices, atomic writes.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    path::Path,
};

use safetensors::{SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::CheckpointError;
use crate::{
    config::ModelConfig,
    flat::{Parameter, ParameterKind},
    frame::{f32_from_bytes, first_non_finite, little_endian_bytes},
    hash::weights_hash,
};

/// The JSON object in the metadata.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) model: ModelConfig,
    pub(super) stage: Option<usize>,
    pub(super) version: u64,
    /// Hex hash of the flat vector of the file.
    pub(super) hash: String,
}

impl Header {
    pub(super) fn write(&self, path: &Path, tensors: Vec<DiskTensor>) -> Result<(), CheckpointError> {
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).map(|view| (name, view))
            })
            .collect();
        let views = views.map_err(|error| malformed(path, &error))?;
        let json = serde_json::to_string(self).map_err(|error| malformed(path, &error))?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned()), ("iota".to_owned(), json)]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| malformed(path, &error))?;
        write_atomically(path, &bytes).map_err(|source| io_error(path, "written", source))
    }

    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| malformed(path, &error))?;
        let json = metadata.metadata().as_ref().and_then(|entries| entries.get("iota"));
        let json = json.ok_or_else(|| malformed(path, &"no metadata key `iota`"))?;
        serde_json::from_str(json).map_err(|error| malformed(path, &error))
    }

    pub(super) fn check_hash(&self, path: &Path, flat: &[f32]) -> Result<(), CheckpointError> {
        if let Some((index, value)) = first_non_finite(flat) {
            return Err(malformed(path, &format!("element {index} is {value}, expected a finite number")));
        }
        let got = hex_hash(flat);
        if got == self.hash {
            return Ok(());
        }
        Err(CheckpointError::Hash { path: path.to_owned(), got, expected: self.hash.clone() })
    }
}

/// Name, shape and little-endian bytes of a tensor as it lies on disk.
pub(super) type DiskTensor = (String, Vec<usize>, Vec<u8>);

/// Turns a slice of the flat vector into a tensor as it lies on disk.
pub(super) fn to_disk(name: String, parameter: &Parameter, flat: &[f32]) -> DiskTensor {
    let values = &flat[parameter.range.clone()];
    match (parameter.kind, parameter.shape.as_slice()) {
        (ParameterKind::Linear, &[inputs, outputs]) => {
            let transposed = transpose(values, inputs, outputs);
            (name, vec![outputs, inputs], little_endian_bytes(&transposed).into_owned())
        }
        _ => (name, parameter.shape.clone(), little_endian_bytes(values).into_owned()),
    }
}

/// Reads a tensor back into flat order after checking its type and shape.
pub(super) fn from_disk(
    path: &Path,
    tensors: &SafeTensors<'_>,
    name: &str,
    parameter: &Parameter,
) -> Result<Vec<f32>, CheckpointError> {
    let mut shape = parameter.shape.clone();
    if parameter.kind == ParameterKind::Linear {
        shape.reverse();
    }
    let mismatch = |got: String| CheckpointError::Tensor {
        path: path.to_owned(),
        name: name.to_owned(),
        got,
        expected: format!("F32 {shape:?}"),
    };
    let view = tensors.tensor(name).map_err(|_| mismatch("missing".to_owned()))?;
    if view.dtype() != safetensors::Dtype::F32 || view.shape() != shape {
        return Err(mismatch(format!("{:?} {:?}", view.dtype(), view.shape())));
    }
    let values = f32_from_bytes(view.data());
    match (parameter.kind, shape.as_slice()) {
        (ParameterKind::Linear, &[outputs, inputs]) => Ok(transpose(&values, outputs, inputs)),
        _ => Ok(values),
    }
}

fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

pub(super) fn hex_hash(flat: &[f32]) -> String {
    blake3::Hash::from_bytes(weights_hash(flat)).to_hex().to_string()
}

/// Writes beside the final name, syncs, renames, and syncs the folder so that the rename survives a power
/// cut.
fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // The process id keeps two processes that save into one folder from writing the same temporary file.
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        // The first error is the one to report; a leftover file harms nobody.
        let _ = fs::remove_file(&temporary);
        return renamed;
    }
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

pub(super) fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io { path: path.to_owned(), action, source }
}

pub(super) fn malformed(path: &Path, message: &dyn std::fmt::Display) -> CheckpointError {
    CheckpointError::Malformed { path: path.to_owned(), message: message.to_string() }
}
