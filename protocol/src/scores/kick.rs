//! Who loses its place for its score.
//!
//! Three policies, as IOTA has them for each run: nobody, the worst of each stage, or whoever is below a threshold. What is
//! compared are rates: what a miner has of its stage's window, less penalties, over the epochs it has been there. So who came
//! lately is not the worst for having had less time. A miner against which something was proved has a rate of zero.
//!
//! Whoever waits for a member of another stage that is far too slow may be released from an epoch with it, and does less for no fault of
//! its own. So a low score proves nothing, and no policy is the default.
//!
//! IOTA's threshold is a number of points. Ours is a share of the mean rate of the stage, since what a miner is dealt depends on how
//! many there are.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::table::{in_window, micro};
use super::{Kicks, Row, Scores};
use crate::id::{Epoch, PeerId, StageIndex};
use crate::limits::KICK_SAMPLES_MIN;
use crate::overstatement::SpeedLimit;
use crate::spec::{KickPolicy, ScoresSpec};

/// The place of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Its stage.
    pub stage: StageIndex,
    /// The version of that stage when it was admitted or moved there.
    pub since: Epoch,
    /// How fast it may say it is, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<SpeedLimit>,
}

impl Scores {
    /// The next member of `stage` to lose its place for its score, if any. `now` has the version of each stage, `members`
    /// are all members of the run.
    ///
    /// Those who have been in a stage for fewer than `scores.kick_grace` epochs are spared and not counted: they may still be fetching
    /// its weights, so a stage keeps one miner that has been there for longer. Whoever does as much as the best of its stage is spared by
    /// every policy, and so is everybody as long as an ordinary member would have done fewer than [`KICK_SAMPLES_MIN`] samples in the
    /// time of the lowest: fewer are luck.
    #[must_use]
    pub fn kick(
        &self,
        spec: &ScoresSpec,
        stage: StageIndex,
        now: &[Epoch],
        members: &BTreeMap<PeerId, Place>,
    ) -> Option<PeerId> {
        if spec.kick == KickPolicy::None {
            return None;
        }
        let version = *now.get(stage.as_usize())?;
        let settled = members.iter().filter(|(_, place)| {
            place.stage == stage && version.0.saturating_sub(place.since.0) >= spec.kick_grace
        });
        let rated: Vec<(u64, Reverse<(Epoch, PeerId)>)> = settled
            .map(|(peer, place)| (self.rate(spec, *peer, *place, now), Reverse((place.since, *peer))))
            .collect();
        let best = rated.iter().map(|(rate, _)| *rate).max()?;
        // Of equals the one that came last goes.
        let &(rate, Reverse((since, worst))) = rated.iter().min()?;
        let sum: u128 = rated.iter().map(|(rate, _)| u128::from(*rate)).sum();
        let expected = sum / rated.len() as u128 * u128::from(span(spec, version, since));
        if expected < u128::from(KICK_SAMPLES_MIN) * 1_000_000 {
            return None;
        }
        let goes = match spec.kick {
            KickPolicy::None => false,
            KickPolicy::Bottom => self.kicks_of(stage, version) < spec.kick_count,
            KickPolicy::Threshold => {
                let times = u128::from(rate) * rated.len() as u128 * 1_000_000;
                times < sum.saturating_mul(u128::from(micro(spec.kick_below)))
            }
        };
        (goes && rate < best).then_some(worst)
    }

    /// A member of `stage` lost its place for its score while the stage was at `version`.
    pub fn kicked(&mut self, stage: StageIndex, version: Epoch) {
        let count = self.kicks_of(stage, version).saturating_add(1);
        self.kicks.insert(stage, Kicks { version, count });
    }

    fn kicks_of(&self, stage: StageIndex, version: Epoch) -> u32 {
        self.kicks.get(&stage).filter(|kicks| kicks.version == version).map_or(0, |kicks| kicks.count)
    }

    /// Millionths of a sample for each epoch since it came, of those in the window.
    fn rate(&self, spec: &ScoresSpec, peer: PeerId, place: Place, now: &[Epoch]) -> u64 {
        let Some(epochs) = self.miners.get(&peer) else { return 0 };
        let version = now.get(place.stage.as_usize()).copied().unwrap_or_default();
        let counting = || epochs.iter().filter(|((stage, epoch), _)| in_window(spec, *stage, *epoch, now));
        if !Row::of(spec, peer, counting()).failures.is_empty() {
            return 0;
        }
        let here = counting().filter(|((stage, epoch), _)| *stage == place.stage && *epoch >= place.since);
        Row::of(spec, peer, here).work_micro(spec) / u64::from(span(spec, version, place.since))
    }
}

/// Epochs of the window since `since`.
fn span(spec: &ScoresSpec, version: Epoch, since: Epoch) -> u32 {
    version.0.saturating_sub(since.0).clamp(1, spec.window.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Penalty, Work};

    const S: StageIndex = StageIndex(0);
    const T: StageIndex = StageIndex(1);
    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);
    const C: PeerId = PeerId([3; 32]);

    fn spec(kick: KickPolicy) -> ScoresSpec {
        ScoresSpec { kick, window: 4, kick_grace: 2, ..ScoresSpec::default() }
    }

    type Member = (PeerId, Place);

    const fn place(peer: PeerId, stage: StageIndex, since: u32) -> Member {
        (peer, Place { stage, since: Epoch(since), limit: None })
    }

    /// Who goes next, of all stages the first.
    fn kick(scores: &Scores, spec: &ScoresSpec, now: &[Epoch], members: &[Member]) -> Option<PeerId> {
        let members = members.iter().copied().collect();
        [S, T].into_iter().find_map(|stage| scores.kick(spec, stage, now, &members))
    }

    /// Epochs from the first on, in each of which the miners did so many samples.
    fn scores(epochs: u32, work: &[(PeerId, StageIndex, u32)]) -> Scores {
        let mut scores = Scores::default();
        for epoch in 0..epochs {
            for stage in [S, T] {
                let of_stage = work.iter().filter(|(_, of, _)| *of == stage);
                let work = of_stage.map(|(peer, _, samples)| Work::of(*peer, *samples, *samples));
                scores.merged(&spec(KickPolicy::None), stage, Epoch(epoch), work);
            }
        }
        scores
    }

    const ALL: [Member; 3] = [place(A, S, 0), place(B, S, 0), place(C, S, 0)];
    const NOW: [Epoch; 2] = [Epoch(4), Epoch(4)];

    #[test]
    fn by_default_nobody_is_kicked() {
        let scores = scores(4, &[(A, S, 30), (B, S, 1)]);
        assert_eq!(kick(&scores, &ScoresSpec::default(), &NOW, &ALL), None);
    }

    #[test]
    fn the_worst_of_each_stage_is_kicked_as_often_as_the_spec_says() {
        let mut scores = scores(4, &[(A, S, 20), (B, S, 10), (C, S, 30)]);
        let spec = spec(KickPolicy::Bottom);
        assert_eq!(kick(&scores, &spec, &NOW, &ALL), Some(B));
        scores.kicked(S, Epoch(4));
        let left = [ALL[0], ALL[2]];
        assert_eq!(kick(&scores, &spec, &NOW, &left), None, "one in this epoch");
        let two = ScoresSpec { kick_count: 2, ..spec.clone() };
        assert_eq!(kick(&scores, &two, &NOW, &left), Some(A));
        assert_eq!(kick(&scores, &spec, &[Epoch(5), Epoch(4)], &left), Some(A), "one in the next");
    }

    #[test]
    fn stages_are_looked_at_apart() {
        let mut scores = scores(4, &[(A, S, 10), (B, T, 5), (C, T, 6)]);
        let members = [place(A, S, 0), place(B, T, 0), place(C, T, 0)];
        assert_eq!(
            kick(&scores, &spec(KickPolicy::Bottom), &NOW, &members),
            Some(B),
            "A is alone in its stage"
        );
        scores.kicked(S, Epoch(4));
        assert_eq!(kick(&scores, &spec(KickPolicy::Bottom), &NOW, &members), Some(B), "counted for S");
    }

    #[test]
    fn who_came_lately_is_spared_and_then_judged_by_its_time() {
        let mut scores = scores(2, &[(A, S, 10), (B, S, 10)]);
        let work = |c| [Work::of(A, 10, 10), Work::of(B, 9, 9), Work::of(C, c, c)];
        for epoch in 2..4 {
            scores.merged(&spec(KickPolicy::None), S, Epoch(epoch), work(12));
        }
        let bottom = spec(KickPolicy::Bottom);
        let since = |since| [ALL[0], ALL[1], place(C, S, since)];
        // C has 24 samples over 2 epochs, B 38 over 4.
        assert_eq!(kick(&scores, &bottom, &NOW, &since(2)), Some(B));
        assert_eq!(kick(&scores, &bottom, &NOW, &since(0)), Some(C), "24 over 4");
        assert_eq!(kick(&scores, &bottom, &NOW, &since(3)), Some(B), "in its grace");
    }

    #[test]
    fn a_stage_keeps_one_that_has_its_weights() {
        let scores = scores(4, &[(A, S, 10), (B, S, 1)]);
        let bottom = spec(KickPolicy::Bottom);
        let new = [place(A, S, 3), ALL[1]];
        assert_eq!(kick(&scores, &bottom, &NOW, &new), None, "A may still be fetching them");
        assert_eq!(kick(&scores, &bottom, &NOW, &ALL[1..2]), None);
        assert_eq!(kick(&scores, &bottom, &NOW, &ALL[..2]), Some(B));
    }

    #[test]
    fn too_few_samples_tell_nothing() {
        let few = scores(3, &[(A, S, 10), (B, S, 0)]);
        let threshold = spec(KickPolicy::Threshold);
        assert_eq!(kick(&few, &threshold, &[Epoch(3), Epoch(3)], &ALL[..2]), None, "15 each on the average");
        let more = scores(4, &[(A, S, 10), (B, S, 0)]);
        assert_eq!(kick(&more, &threshold, &NOW, &ALL[..2]), Some(B), "20");
    }

    #[test]
    fn equals_are_spared() {
        let scores = scores(4, &[(A, S, 10), (B, S, 10), (C, S, 10)]);
        for policy in [KickPolicy::Bottom, KickPolicy::Threshold] {
            let strict = ScoresSpec { kick_below: 1.0, ..spec(policy) };
            assert_eq!(kick(&scores, &strict, &NOW, &ALL), None, "{policy:?}");
        }
    }

    #[test]
    fn of_equally_bad_ones_the_last_to_come_goes() {
        let scores = scores(4, &[(A, S, 30)]);
        let members = |b, c| [ALL[0], place(B, S, b), place(C, S, c)];
        let bottom = spec(KickPolicy::Bottom);
        assert_eq!(kick(&scores, &bottom, &NOW, &members(1, 0)), Some(B));
        assert_eq!(kick(&scores, &bottom, &NOW, &members(0, 1)), Some(C));
    }

    #[test]
    fn below_the_threshold_all_are_kicked_and_nobody_else() {
        let threshold = spec(KickPolicy::Threshold);
        let low = scores(4, &[(A, S, 32), (B, S, 2), (C, S, 5)]);
        assert_eq!(kick(&low, &threshold, &NOW, &ALL), Some(B), "the mean is 13");
        let exact = scores(4, &[(A, S, 32), (B, S, 3), (C, S, 1)]);
        // The mean is 12, a quarter of it 3.
        assert_eq!(kick(&exact, &threshold, &NOW, &ALL), Some(C));
        let less = scores(4, &[(A, S, 29), (B, S, 3), (C, S, 4)]);
        assert_eq!(kick(&less, &threshold, &NOW, &ALL), None, "a quarter is enough");
        let mut counted = exact.clone();
        counted.kicked(S, Epoch(4));
        assert_eq!(kick(&counted, &threshold, &NOW, &ALL), Some(C), "the count is of the other policy");
    }

    #[test]
    fn who_was_proved_wrong_anywhere_is_the_worst() {
        let mut scores = scores(4, &[(A, S, 30), (B, S, 10), (C, S, 20)]);
        scores.failed(T, Epoch(3), A, Penalty::FailedReplay);
        assert_eq!(kick(&scores, &spec(KickPolicy::Bottom), &NOW, &ALL), Some(A));
        assert_eq!(
            kick(&scores, &spec(KickPolicy::Bottom), &[Epoch(4), Epoch(8)], &ALL),
            Some(B),
            "out of the window"
        );
    }

    #[test]
    fn work_for_another_stage_is_none_for_this_one() {
        let mut scores = scores(4, &[(A, S, 20), (B, S, 10), (C, T, 90)]);
        let members = [ALL[0], ALL[1], place(C, S, 2)];
        assert_eq!(kick(&scores, &spec(KickPolicy::Bottom), &NOW, &members), Some(C));
        scores.merged(&spec(KickPolicy::None), S, Epoch(4), [Work::of(C, 60, 60)]);
        let later = [Epoch(5), Epoch(4)];
        // C has 60 over 3 epochs; of A and B three epochs of four are left.
        assert_eq!(kick(&scores, &spec(KickPolicy::Bottom), &later, &members), Some(B));
    }

    #[test]
    fn who_was_there_for_longer_than_the_window_is_judged_by_the_window() {
        let scores = scores(8, &[(A, S, 10), (B, S, 8)]);
        let members = [ALL[0], place(B, S, 5)];
        // 40 over 4 epochs and 24 over 3, not 40 over 8.
        assert_eq!(kick(&scores, &spec(KickPolicy::Bottom), &[Epoch(8), Epoch(8)], &members), Some(B));
    }

    #[test]
    fn who_came_back_is_judged_by_what_it_did_since() {
        let mut scores = scores(2, &[(A, S, 90), (B, S, 30)]);
        for epoch in 2..4 {
            scores.merged(&spec(KickPolicy::None), S, Epoch(epoch), [Work::of(B, 30, 30)]);
        }
        let members = [place(A, S, 2), ALL[1]];
        assert_eq!(kick(&scores, &spec(KickPolicy::Bottom), &NOW, &members), Some(A));
    }
}
