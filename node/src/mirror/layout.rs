//! The names of objects, and back.

use object_store::path::{Path, PathPart};

use super::history::LogPart;
use crate::blobs::Hash32;

/// Where blobs are.
pub(super) const BLOBS: &str = "blobs";
/// Where manifests of checkpoints are.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// Where the logs of runs are.
pub(super) const LOG: &str = "log";
/// The pointer to the latest of them.
pub(super) const LATEST: &str = "latest";
/// Digits of an epoch in a name: as many as the greatest has, so that names sort as numbers do.
const EPOCH_DIGITS: usize = 10;

/// Digits of an index of the log in a name.
const INDEX_DIGITS: usize = 20;

/// Names a blob. The first two digits part the blobs into folders of a size that file systems and people can list.
pub(super) fn blob(hash: &Hash32) -> Path {
    let hash = hex::encode(hash);
    let start: String = hash.chars().take(2).collect();
    Path::from_iter([BLOBS, &start, &hash])
}

/// Names the manifest of a checkpoint.
pub(super) fn manifest(epoch: u32, hash: &Hash32) -> Path {
    Path::from_iter([CHECKPOINTS, &format!("{epoch:0EPOCH_DIGITS$}-{}.json", hex::encode(hash))])
}

/// Names a part of a run's log.
pub(super) fn log_part(part: &LogPart) -> Path {
    let LogPart { run, first, next, hash } = part;
    let name = format!("{first:0INDEX_DIGITS$}-{next:0INDEX_DIGITS$}-{}.cbor", hex::encode(hash));
    Path::from_iter([LOG, &hex::encode(run), &name])
}

/// Reads the name of a part of a log; nothing if it is none that [`log_part`] gives.
pub(super) fn parse_log_part(path: &Path) -> Option<LogPart> {
    let mut parts = path.parts().rev();
    let (name, run) = (parts.next()?, parts.next()?);
    let mut fields = name.as_ref().strip_suffix(".cbor")?.splitn(3, '-');
    let mut number = || fields.next()?.parse().ok();
    let (first, next) = (number()?, number()?);
    let part = LogPart { run: parse_hash(run.as_ref())?, first, next, hash: parse_hash(fields.next()?)? };
    (log_part(&part) == *path).then_some(part)
}

/// Names the pointer.
pub(super) fn latest() -> Path {
    Path::from(LATEST)
}

/// Reads a blob's name; nothing if it is none that [`blob`] gives.
pub(super) fn parse_blob(path: &Path) -> Option<Hash32> {
    let hash = parse_hash(path.parts().next_back()?.as_ref())?;
    (blob(&hash) == *path).then_some(hash)
}

/// Reads a manifest's name; nothing if it is none that [`manifest`] gives.
pub(super) fn parse_manifest(path: &Path) -> Option<(u32, Hash32)> {
    let name: PathPart<'_> = path.parts().next_back()?;
    let (epoch, hash) = name.as_ref().strip_suffix(".json")?.split_once('-')?;
    let (epoch, hash) = (epoch.parse().ok()?, parse_hash(hash)?);
    (manifest(epoch, &hash) == *path).then_some((epoch, hash))
}

/// Reads a hash as 64 hexadecimal digits.
pub(super) fn parse_hash(text: &str) -> Option<Hash32> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).ok()?;
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: Hash32 = [0xab; 32];

    #[test]
    fn names_are_those_of_the_layout() {
        let hex = "ab".repeat(32);
        assert_eq!(blob(&HASH).as_ref(), format!("blobs/ab/{hex}"));
        assert_eq!(manifest(7, &HASH).as_ref(), format!("checkpoints/0000000007-{hex}.json"));
        assert_eq!(manifest(u32::MAX, &HASH).as_ref(), format!("checkpoints/4294967295-{hex}.json"));
    }

    #[test]
    fn names_come_back() {
        assert_eq!(parse_blob(&blob(&HASH)), Some(HASH));
        let part = LogPart { run: [7; 32], first: 0, next: u64::MAX, hash: HASH };
        assert_eq!(parse_log_part(&log_part(&part)), Some(part));
        for epoch in [0, 7, u32::MAX] {
            assert_eq!(parse_manifest(&manifest(epoch, &HASH)), Some((epoch, HASH)));
        }
    }

    #[test]
    fn other_names_are_none() {
        let hex = "ab".repeat(32);
        for name in [
            format!("blobs/ac/{hex}"),
            format!("blobs/{hex}"),
            format!("blobs/AB/{}", hex.to_uppercase()),
            "blobs/ab/ab".to_owned(),
            format!("checkpoints/ab/{hex}"),
        ] {
            assert_eq!(parse_blob(&Path::from(name.as_str())), None, "{name}");
        }
        for name in [
            format!("checkpoints/7-{hex}.json"),
            format!("checkpoints/+000000007-{hex}.json"),
            format!("checkpoints/9999999999-{hex}.json"),
            format!("checkpoints/0000000007-{hex}"),
            "checkpoints/0000000007.json".to_owned(),
            format!("blobs/0000000007-{hex}.json"),
        ] {
            assert_eq!(parse_manifest(&Path::from(name.as_str())), None, "{name}");
            assert_eq!(parse_log_part(&Path::from(name.as_str())), None, "{name}");
        }
    }
}
