//! Opening the mirror that a spec or a command line names.

use std::num::NonZeroU64;

use super::keep::REUSE_FOR;
use crate::mirror::{
    Mirror, MirrorConfig, MirrorMetrics, MirrorOpenError, MirrorUrl, MirrorUrlError, S3OptionsError,
};

/// Why a mirror cannot be opened. Whether it answers shows when it is used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is none.
    #[error(transparent)]
    Url(#[from] MirrorUrlError),
    /// The environment does not say how to reach it.
    #[error(transparent)]
    Environment(#[from] S3OptionsError),
    /// The client cannot be made.
    #[error(transparent)]
    Open(#[from] MirrorOpenError),
}

/// Opens the mirror at `url`, with credentials and endpoint from this process's environment.
///
/// # Errors
/// When the URL or the environment is wrong.
pub fn open(url: &str, upload_rate: Option<NonZeroU64>, metrics: MirrorMetrics) -> Result<Mirror, OpenError> {
    let url: MirrorUrl = url.parse()?;
    let config = MirrorConfig::from_environment(url, |name| std::env::var(name).ok())?;
    Ok(Mirror::open(MirrorConfig { upload_rate, reuse_for: REUSE_FOR, ..config }, metrics)?)
}
