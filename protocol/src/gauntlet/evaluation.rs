//! What evaluators say of a merge's contributions, under their signatures, and what that amounts to.
//!
//! A merge plan freezes what is evaluated; who evaluates it is drawn from the chain hash after it, as is [what on](super::draw). Each
//! evaluator computes all of it by itself, and says numbers rounded to parts of 10⁹, so that they have one encoding.
//!
//! ```text
//! one says      measured (four numbers) │ copy │ invalid │ unseen
//! together      what most of those say who saw it; of what they measured, the median of each number
//! ```
//! With three evaluators, one that lies moves nothing beyond what an honest one says. Evaluators compute the same from the same, but
//! for what devices differ by: who is farther from the median than that, while enough others who saw as much are not, was wrong. Nothing but
//! measured losses counts on the word of fewer than `validation.quorum`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::Found;
use super::draw::Draw;
use super::loss::{Gains, Improvement};
use crate::id::{Epoch, Hash, Identity, PeerId, RunId};
use crate::limits::WIRE_VERSION_FIRST;
use crate::samples::shuffle;
use crate::spec::{ScoresSpec, ValidationSpec};
use crate::wire::encode;
use crate::wire::envelope::signed_bytes;

/// Parts in which shares are counted that evaluators say.
const PARTS: f64 = 1e9;
/// What an improvement may differ by between devices, in errors of a loss: it is a difference of two means of losses.
const LOSS_ERRORS: f64 = 2.0;

/// What an evaluator says of a contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// What it does to the loss.
    Measured(Measured),
    /// Another committed to it before.
    Copy,
    /// It is no valid contribution, or with it the loss is no number.
    Invalid,
    /// The evaluator could not evaluate it.
    Unseen,
}

/// [`Gains`] in parts of 10⁹.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Improvement on samples that the miner was dealt.
    pub own: i64,
    /// Its standard error.
    pub own_error: i64,
    /// Improvement on samples that nobody was dealt.
    pub random: i64,
    /// Its standard error.
    pub random_error: i64,
}

impl Measured {
    /// The numbers nearest to these; those that are too large are the largest.
    #[must_use]
    pub fn of(gains: &Gains) -> Self {
        Self {
            own: parts(gains.own.share),
            own_error: parts(gains.own.error),
            random: parts(gains.random.share),
            random_error: parts(gains.random.error),
        }
    }

    /// The numbers.
    #[must_use]
    pub fn gains(&self) -> Gains {
        let improvement =
            |share, error: i64| Improvement { share: share_of(share), error: share_of(error.max(0)) };
        Gains {
            own: improvement(self.own, self.own_error),
            random: improvement(self.random, self.random_error),
        }
    }

    const fn numbers(&self) -> [i64; 4] {
        [self.own, self.own_error, self.random, self.random_error]
    }

    /// The median of each number; nothing of none. Of an even count the lower of the middle two.
    fn median(all: &[Self]) -> Option<Self> {
        let middle = |of: usize| {
            let mut numbers: Vec<i64> = all.iter().filter_map(|one| one.numbers().get(of).copied()).collect();
            numbers.sort_unstable();
            numbers.get(numbers.len().saturating_sub(1) / 2).copied()
        };
        Some(Self { own: middle(0)?, own_error: middle(1)?, random: middle(2)?, random_error: middle(3)? })
    }

    /// Whether both improvements are as in `other`, but for so much.
    fn is_close(&self, other: &Self, within: i64) -> bool {
        let close = |a: i64, b: i64| a.abs_diff(b) <= within.unsigned_abs();
        close(self.own, other.own) && close(self.random, other.random)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, far beyond any improvement")]
fn parts(share: f64) -> i64 {
    (share * PARTS).round() as i64
}

#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 parts, which no improvement has")]
fn share_of(parts: i64) -> f64 {
    parts as f64 / PARTS
}

impl Said {
    /// What was found, as it is said. Who is out of step is none of the evaluation: see docs/adr/0037-evaluators.md.
    #[must_use]
    pub fn of(found: &Found) -> Self {
        match found {
            Found::Unseen => Self::Unseen,
            Found::Measured { gains, .. } => Self::Measured(Measured::of(gains)),
            Found::Copy => Self::Copy,
            Found::Invalid => Self::Invalid,
        }
    }
}

/// What an evaluator says of a merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Who says so.
    pub evaluator: PeerId,
    /// The epoch that was merged.
    pub epoch: Epoch,
    /// Chain hash after its merge plan.
    pub plan: Hash,
    /// Of each contribution that was [drawn](Draw::evaluated), in [`PeerId`] order.
    pub said: Vec<(PeerId, Said)>,
    /// ed25519 over [`evaluation_bytes`].
    pub signature: ByteBuf,
}

/// The bytes an evaluation signs, in every version of the wire format:
/// `"iota/v1/evaluation\0" ‖ run id ‖ CBOR [epoch, plan, said]`.
#[must_use]
pub fn evaluation_bytes(run: RunId, epoch: Epoch, plan: Hash, said: &[(PeerId, Said)]) -> Vec<u8> {
    signed_bytes(WIRE_VERSION_FIRST, "evaluation", run, &encode(&(epoch, plan, said)))
}

impl Evaluation {
    /// Signs what was found.
    #[must_use]
    pub fn sign(
        identity: &Identity,
        run: RunId,
        epoch: Epoch,
        plan: Hash,
        said: Vec<(PeerId, Said)>,
    ) -> Self {
        let signature = ByteBuf::from(identity.sign(&evaluation_bytes(run, epoch, plan, &said)));
        Self { evaluator: identity.peer(), epoch, plan, said, signature }
    }

    /// Whether the evaluator has signed it, in this run.
    #[must_use]
    pub fn verifies(&self, run: RunId) -> bool {
        let bytes = evaluation_bytes(run, self.epoch, self.plan, &self.said);
        self.evaluator.verifies(&bytes, &self.signature)
    }
}

/// A merge whose evaluations have not all come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluating {
    /// The epoch that was merged.
    pub epoch: Epoch,
    /// Hash of the weights that it started from.
    pub base: Hash,
    /// Chain hash after its merge plan.
    pub plan: Hash,
    /// Who contributed to it, in [`PeerId`] order.
    pub submitters: Vec<PeerId>,
    /// Whose contributions are evaluated, in [`PeerId`] order.
    pub drawn: Vec<PeerId>,
    /// Validators in the order drawn.
    validators: Vec<PeerId>,
    /// How many of them evaluate.
    wanted: usize,
    /// What they said.
    heard: BTreeMap<PeerId, Vec<(PeerId, Said)>>,
}

/// What the evaluations of a merge amount to.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// Of each that contributed.
    pub found: BTreeMap<PeerId, Found>,
    /// Evaluators that were wrong.
    pub wrong: BTreeSet<PeerId>,
}

impl Evaluating {
    /// The evaluation of a merge by some of the `validators`.
    #[must_use]
    pub fn draw(
        spec: &ScoresSpec,
        epoch: Epoch,
        base: Hash,
        plan: Hash,
        submitters: Vec<PeerId>,
        validators: impl Iterator<Item = PeerId>,
    ) -> Self {
        let mut validators: Vec<PeerId> = validators.collect();
        shuffle(&mut validators, Hash::of_parts(&[b"iota/v1/evaluators\0", &plan.0]));
        let drawn = Draw::new(plan).evaluated(&submitters, usize::from(spec.evaluated));
        let wanted = usize::from(spec.evaluators);
        Self { epoch, base, plan, submitters, drawn, validators, wanted, heard: BTreeMap::new() }
    }

    /// Those who are to evaluate it and have not answered.
    pub fn awaited(&self) -> impl Iterator<Item = PeerId> + '_ {
        let asked = self.validators.iter().take(self.wanted).copied();
        asked.filter(|validator| !self.heard.contains_key(validator))
    }

    /// Asks another in place of one who is a validator no more and has not answered.
    pub fn dismiss(&mut self, validator: PeerId) {
        if !self.heard.contains_key(&validator) {
            self.validators.retain(|drawn| *drawn != validator);
        }
    }

    /// Whether the log waits for this: it is of this merge, of all that is evaluated, by one who is asked and has not answered.
    #[must_use]
    pub fn awaits(&self, evaluation: &Evaluation) -> bool {
        let Evaluation { evaluator, epoch, plan, said, .. } = evaluation;
        (*epoch, *plan) == (self.epoch, self.plan)
            && self.awaited().any(|awaited| awaited == *evaluator)
            && said.iter().map(|(peer, _)| peer).eq(&self.drawn)
    }

    /// Takes an evaluation that it [awaits](Self::awaits).
    pub fn take(&mut self, evaluation: &Evaluation) {
        self.heard.insert(evaluation.evaluator, evaluation.said.clone());
    }

    /// What evaluators have said amounts to.
    #[must_use]
    pub fn evaluated(&self, spec: &ValidationSpec) -> Evaluated {
        let quorum = usize::from(spec.quorum);
        let complete = self.complete();
        let (mut found, mut wrong) = (BTreeMap::new(), BTreeSet::new());
        for peer in &self.submitters {
            let said: Vec<(PeerId, Said)> = self
                .heard
                .iter()
                .filter_map(|(evaluator, said)| {
                    let of_peer = said.iter().find(|(of, _)| of == peer)?.1;
                    (of_peer != Said::Unseen).then_some((*evaluator, of_peer))
                })
                .collect();
            found.insert(*peer, together(&said, quorum));
            let comparable: Vec<(PeerId, Said)> =
                said.into_iter().filter(|(evaluator, _)| complete.contains(evaluator)).collect();
            wrong.extend(far_from_the_median(&comparable, quorum, parts(LOSS_ERRORS * spec.loss_error_max)));
        }
        Evaluated { found, wrong }
    }

    /// Evaluators that saw all that anybody saw. Whoever could not fetch one contribution has another median of norms, and so may
    /// have clipped others otherwise.
    fn complete(&self) -> BTreeSet<PeerId> {
        let seen = |said: &Vec<(PeerId, Said)>| -> BTreeSet<PeerId> {
            said.iter().filter(|(_, said)| *said != Said::Unseen).map(|(peer, _)| *peer).collect()
        };
        let by_any: BTreeSet<PeerId> = self.heard.values().flat_map(seen).collect();
        self.heard.iter().filter(|(_, said)| seen(said) == by_any).map(|(evaluator, _)| *evaluator).collect()
    }
}

fn measured(said: &[(PeerId, Said)]) -> impl Iterator<Item = (PeerId, Measured)> + '_ {
    said.iter().filter_map(|(evaluator, said)| match said {
        Said::Measured(measured) => Some((*evaluator, *measured)),
        Said::Copy | Said::Invalid | Said::Unseen => None,
    })
}

/// What those say together who saw a contribution.
fn together(said: &[(PeerId, Said)], quorum: usize) -> Found {
    let most_say = |what: Said| {
        let count = said.iter().filter(|(_, said)| *said == what).count();
        count >= quorum && 2 * count > said.len()
    };
    if most_say(Said::Invalid) {
        return Found::Invalid;
    }
    if most_say(Said::Copy) {
        return Found::Copy;
    }
    let numbers: Vec<Measured> = measured(said).map(|(_, numbers)| numbers).collect();
    let median = Measured::median(&numbers).filter(|_| 2 * numbers.len() > said.len());
    median.map_or(Found::Unseen, |median| Found::Measured { gains: median.gains(), steps_behind: 0.0 })
}

/// Evaluators whose numbers are no honest ones: a quorum and most of those who measured agree on others.
fn far_from_the_median(said: &[(PeerId, Said)], quorum: usize, within: i64) -> Vec<PeerId> {
    let all: Vec<(PeerId, Measured)> = measured(said).collect();
    let numbers: Vec<Measured> = all.iter().map(|(_, numbers)| *numbers).collect();
    let Some(median) = Measured::median(&numbers) else { return Vec::new() };
    let (close, far): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, numbers)| numbers.is_close(&median, within));
    let agree = close.len() >= quorum && close.len() > far.len();
    if agree { far.into_iter().map(|(evaluator, _)| evaluator).collect() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(3);
    const RUN: RunId = RunId([6; 32]);

    fn identity(number: u8) -> Identity {
        Identity::from_secret([number; 32])
    }

    /// The miners, whose keys need not sign anything.
    const MINERS: [PeerId; 2] = [PeerId([1; 32]), PeerId([2; 32])];

    fn measured(random: i64) -> Said {
        Said::Measured(Measured { own: 40_000_000, own_error: 1_000_000, random, random_error: 2_000_000 })
    }

    fn evaluating(validators: u8, wanted: usize) -> Evaluating {
        let validators = (10..10 + validators).map(|number| identity(number).peer());
        let spec = ScoresSpec { evaluators: u16::try_from(wanted).expect("few"), ..ScoresSpec::default() };
        Evaluating::draw(&spec, EPOCH, Hash([7; 32]), Hash([8; 32]), MINERS.to_vec(), validators)
    }

    fn by(evaluating: &Evaluating, evaluator: PeerId, said: [Said; 2]) -> Evaluation {
        let number = (0..=u8::MAX).find(|number| identity(*number).peer() == evaluator).expect("ours");
        let said = MINERS.into_iter().zip(said).collect();
        Evaluation::sign(&identity(number), RUN, EPOCH, evaluating.plan, said)
    }

    /// What evaluations amount to in which evaluators, in their order, say this of the first miner.
    fn together(said: &[Said]) -> (Found, Vec<usize>) {
        let mut evaluating = evaluating(8, said.len());
        let asked: Vec<PeerId> = evaluating.awaited().collect();
        for (evaluator, said) in asked.iter().zip(said) {
            let evaluation = by(&evaluating, *evaluator, [*said, measured(0)]);
            assert!(evaluating.awaits(&evaluation));
            evaluating.take(&evaluation);
        }
        let Evaluated { found, wrong } = evaluating.evaluated(&ValidationSpec::default());
        let wrong = asked.iter().enumerate().filter(|(_, peer)| wrong.contains(peer)).map(|(at, _)| at);
        (found[&MINERS[0]], wrong.collect())
    }

    fn found(said: Said) -> Found {
        let Said::Measured(measured) = said else { panic!("numbers") };
        Found::Measured { gains: measured.gains(), steps_behind: 0.0 }
    }

    #[test]
    fn a_liar_among_three_moves_nothing_beyond_what_an_honest_one_says_and_is_found() {
        let honest = [measured(20_000_000), measured(20_100_000)];
        for lie in [i64::MIN, -20_000_000, 60_000_000, i64::MAX] {
            let (together, wrong) = together(&[honest[0], measured(lie), honest[1]]);
            assert!(honest.map(found).contains(&together), "{lie}: {together:?}");
            assert_eq!(wrong, [1], "{lie}");
        }
    }

    #[test]
    fn nobody_is_wrong_where_as_many_say_otherwise_or_devices_may_differ_by_that() {
        let (high, low) = (measured(50_000_000), measured(20_000_000));
        assert_eq!(together(&[high, low]), (found(low), vec![]));
        assert_eq!(together(&[high, low, low, high]).1, [] as [usize; 0]);
        // Two losses of a thousandth each.
        assert_eq!(together(&[low, low, measured(22_000_000)]).1, [] as [usize; 0]);
        assert_eq!(together(&[low, low, measured(22_000_001)]).1, [2]);
    }

    #[test]
    fn whoever_could_not_fetch_all_of_it_is_not_wrong_for_clipping_otherwise() {
        let (most, other) = (measured(20_000_000), measured(50_000_000));
        let wrong = |third: [Said; 2]| {
            let mut evaluating = evaluating(8, 3);
            let asked: Vec<PeerId> = evaluating.awaited().collect();
            for (evaluator, said) in asked.iter().zip([[most, most], [most, most], third]) {
                let evaluation = by(&evaluating, *evaluator, said);
                evaluating.take(&evaluation);
            }
            evaluating.evaluated(&ValidationSpec::default()).wrong.contains(&asked[2])
        };
        assert!(wrong([other, most]));
        assert!(!wrong([other, Said::Unseen]));
    }

    #[test]
    fn what_costs_trust_needs_a_quorum_and_most_of_those_who_saw_it() {
        let seen = measured(20_000_000);
        for (what, all) in [(Said::Copy, Found::Copy), (Said::Invalid, Found::Invalid)] {
            assert_eq!(together(&[what, what, seen]), (all, vec![]));
            assert_eq!(together(&[what, what, Said::Unseen]), (all, vec![]));
            assert_eq!(together(&[what, seen, seen]).0, found(seen));
            assert_eq!(together(&[what, Said::Unseen, Said::Unseen]).0, Found::Unseen, "on the word of one");
            assert_eq!(together(&[what, seen]).0, Found::Unseen);
        }
        assert_eq!(together(&[Said::Unseen; 3]).0, Found::Unseen);
        assert_eq!(together(&[]).0, Found::Unseen);
        assert_eq!(together(&[seen]).0, found(seen), "one that measures is enough");
    }

    #[test]
    fn an_evaluation_is_awaited_of_those_drawn_once_and_of_all_that_is_evaluated() {
        let mut evaluating = evaluating(8, 3);
        let awaited = |evaluating: &Evaluating| evaluating.awaited().collect::<Vec<_>>();
        let [first, second, third] = awaited(&evaluating)[..] else { panic!("three are asked") };
        let right = by(&evaluating, first, [measured(1); 2]);
        assert!(right.verifies(RUN) && evaluating.awaits(&right));
        let cut = Evaluation { said: right.said[..1].to_vec(), ..right.clone() };
        let other = Evaluation { plan: Hash::default(), ..right.clone() };
        let late = Evaluation { epoch: EPOCH.next(), ..right.clone() };
        for wrong in [cut, other, late] {
            assert!(!evaluating.awaits(&wrong) && !wrong.verifies(RUN), "{wrong:?}");
        }
        let others = (10..18).map(|number| identity(number).peer());
        let uninvited = others.clone().find(|peer| ![first, second, third].contains(peer)).expect("five");
        let evaluation = by(&evaluating, uninvited, [measured(1); 2]);
        assert!(!evaluating.awaits(&evaluation));

        evaluating.take(&right);
        assert!(!evaluating.awaits(&right), "said already");
        assert_eq!(awaited(&evaluating), [second, third]);
        evaluating.dismiss(second);
        let next = awaited(&evaluating);
        assert!(next.len() == 2 && next[0] == third && next[1] != second, "another in its place");
        evaluating.dismiss(first);
        assert_eq!(awaited(&evaluating).len(), 2, "who has answered is not replaced");
        others.for_each(|peer| evaluating.dismiss(peer));
        assert_eq!(awaited(&evaluating), []);
    }

    #[test]
    fn every_validator_is_drawn_as_often_as_any_other() {
        let mut counts = BTreeMap::<PeerId, u32>::new();
        let validators = || (10..18).map(|number| identity(number).peer());
        for number in 0..1000_u32 {
            let plan = Hash::of(&number.to_le_bytes());
            let spec = ScoresSpec::default();
            let drawn = Evaluating::draw(&spec, EPOCH, Hash::default(), plan, MINERS.to_vec(), validators());
            drawn.awaited().for_each(|peer| *counts.entry(peer).or_default() += 1);
        }
        // 375 each, with a deviation of 15; four of them.
        assert!(validators().all(|peer| (314..=436).contains(&counts[&peer])), "{counts:?}");
    }

    #[test]
    fn numbers_survive_the_way_to_parts_and_back() {
        let improvement = |share, error| Improvement { share, error };
        let gains = Gains { own: improvement(0.012_345_678_9, 1e-4), random: improvement(-0.5, 0.25) };
        let back = Measured::of(&gains).gains();
        for (a, b) in [(gains.own, back.own), (gains.random, back.random)] {
            assert!((a.share - b.share).abs() < 1e-9 && (a.error - b.error).abs() < 1e-9);
        }
        let wild = Gains { own: improvement(f64::INFINITY, 0.0), random: improvement(-1e300, 1e300) };
        let Measured { own, random, random_error, .. } = Measured::of(&wild);
        assert_eq!([own, random, random_error], [i64::MAX, i64::MIN, i64::MAX]);
    }
}
