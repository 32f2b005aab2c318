//! Proof of work for runs that ask for it: searched once for a peer and run, and kept in the folder of the node.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io};

use iota_protocol::join::Puzzle;

/// File in the folder of the node that holds the nonce, in decimal.
const FILE: &str = "work";
/// Tries between two looks whether another thread was luckier: a few milliseconds.
const TRIES: u64 = 1 << 14;

/// A proof of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// The nonce.
    pub(crate) nonce: u64,
    /// How long the search took, unless it was done by an earlier process.
    pub(crate) took: Option<Duration>,
}

/// Returns a nonce of `bits` for `puzzle`: the one in `folder` if it is good, else a new one, which is kept there.
///
/// # Errors
/// The nonce cannot be written down.
pub(crate) fn read_or_search(folder: &Path, puzzle: &Puzzle, bits: u8, threads: usize) -> io::Result<Work> {
    let path = folder.join(FILE);
    let kept = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    // Whatever else is there is of another run, another key or fewer bits, and as good as nothing.
    if let Some(nonce) = kept.filter(|nonce| puzzle.bits(*nonce) >= bits) {
        return Ok(Work { nonce, took: None });
    }
    let start = Instant::now();
    let nonce = search(puzzle, bits, threads.max(1));
    let took = start.elapsed();
    fs::write(&path, format!("{nonce}\n"))?;
    Ok(Work { nonce, took: Some(took) })
}

/// Tries nonces on so many threads until one is good. Among all there are, one is.
fn search(puzzle: &Puzzle, bits: u8, threads: usize) -> u64 {
    let found = AtomicBool::new(false);
    let run = |first: u64| {
        (first..u64::MAX / TRIES).step_by(threads).find_map(|block| {
            if found.load(Ordering::Relaxed) {
                return Some(None);
            }
            let nonce = puzzle.search(bits, block * TRIES..(block + 1) * TRIES)?;
            found.store(true, Ordering::Relaxed);
            Some(Some(nonce))
        })
    };
    let nonces = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..threads as u64).map(|first| scope.spawn(move || run(first))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect::<Vec<_>>()
    });
    nonces.into_iter().flatten().flatten().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use iota_protocol::{Identity, RunId};

    use super::*;

    #[test]
    fn work_is_done_once_for_a_peer_and_run_and_again_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let peer = |i| Identity::from_secret([i; 32]).peer();
        let puzzle = Puzzle::new(RunId([1; 32]), peer(1));
        let work = |puzzle, bits| read_or_search(folder.path(), puzzle, bits, 3).unwrap();
        let first = work(&puzzle, 14);
        assert!(first.took.is_some() && puzzle.bits(first.nonce) >= 14);
        assert_eq!(work(&puzzle, 14), Work { nonce: first.nonce, took: None });
        assert_eq!(work(&puzzle, 1), Work { nonce: first.nonce, took: None }, "more than enough");
        let other = Puzzle::new(RunId([1; 32]), peer(2));
        let second = work(&other, 14);
        // By chance the old nonce is good for the other, with a probability of 2 to the power of minus 14.
        assert!(second.took.is_some() && other.bits(second.nonce) >= 14);
        fs::write(folder.path().join(FILE), "no number").unwrap();
        assert!(puzzle.bits(work(&puzzle, 14).nonce) >= 14);
    }
}
