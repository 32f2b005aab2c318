//! From a failing case to a smaller one that fails alike: delta debugging (Zeller and Hildebrandt 2002, `ddmin`) over
//! its faults.

use crate::fuzz::{Case, run};

/// Leaves out faults as long as the same checker still complains. The result is 1-minimal: it fails otherwise or not at
/// all without any one of its faults. A case that does not fail comes back as it is.
#[must_use]
pub fn shrink(case: &Case) -> Case {
    let Some(checker) = run(case).failure().map(|violation| violation.checker) else { return case.clone() };
    let fails = |kept: &[usize]| run(&case.keeping(kept)).failure().is_some_and(|v| v.checker == checker);
    let kept = minimize(&case.fault_numbers(), fails);
    case.keeping(&kept)
}

/// A minimal part of `all` for which `fails` still holds.
#[must_use]
pub fn minimize(all: &[usize], fails: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    let mut kept = all.to_vec();
    let mut parts = 1;
    while !kept.is_empty() {
        let size = kept.len().div_ceil(parts);
        let smaller = (0..kept.len()).step_by(size).map(|from| {
            let to = (from + size).min(kept.len());
            [&kept[..from], &kept[to..]].concat()
        });
        match smaller.into_iter().find(|rest| fails(rest)) {
            Some(rest) => {
                kept = rest;
                parts = parts.saturating_sub(1).max(1);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_faults_that_matter_together_are_left() {
        let all: Vec<usize> = (0..40).collect();
        let runs = std::cell::Cell::new(0);
        let fails = |kept: &[usize]| {
            runs.set(runs.get() + 1);
            [3, 17, 31].iter().all(|needed| kept.contains(needed))
        };
        assert_eq!(minimize(&all, fails), [3, 17, 31]);
        assert!(runs.get() < 120, "{} runs", runs.get());
        assert_eq!(minimize(&all, |_| true), [0_usize; 0], "nothing is needed");
    }
}
