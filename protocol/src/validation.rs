//! What is checked, by whom, and what their verdicts amount to.
//!
//! A merge plan freezes what each submitter committed to. Which of them are checked, and who checks them, is drawn from the
//! chain hash of that entry: nobody knew it when committing, and nobody can choose it. A check is a replay of the miner's
//! whole epoch from the weights that it started from and the tensors that its receipts name; see
//! [`validator`](crate::validator).
//!
//! Beside those drawn, a submission is checked that owners found to stand out from the others to its merge, and one that a *reader*
//! accuses: of each stage and epoch two validators are drawn to read all receipts, which takes no replay, and say unasked what
//! these show to be wrong.
//!
//! Validators are checked by each other. Whether anybody looks again after a first verdict, and who, is drawn from the chain
//! hash after that verdict: who approves without looking does not know whether another will look, and who accuses falsely
//! does not know whether accomplices will be asked.
//!
//! ```text
//!    drawn, or an outlier; or a reader accuses, which is a first verdict
//!           first verdict: matches ───────────────────────────────▶ passed
//! challenge ┤  (a share, drawn now, is repeated by a second validator)
//!           ├ differs ─▶ a panel of seven, drawn now, repeats it ─▶ majority: failed, or passed
//!           └ unavailable ─▶ others try ─▶ nobody gets it: unproven
//! ```
//! A verdict is signed and names all that it was found from by hash, so whoever doubts it repeats it. Nobody is punished but
//! by the majority of a panel, nor on the word of fewer than `validation.quorum` validators, nor as a cheat for anything that
//! could be the network's fault: what nobody can fetch is unproven. Unproven work counts for nothing, all work of its miner is checked until some passes, and who
//! proves nothing several times in a row loses its place, but may ask for one again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{Epoch, Hash, Identity, PeerId, RunId, SampleId, StageIndex};
use crate::limits::{PANEL, WIRE_VERSION_FIRST};
use crate::samples::shuffle;
use crate::spec::ValidationSpec;
use crate::wire::encode;
use crate::wire::envelope::signed_bytes;
use crate::wire::frame::Direction;
use crate::wire::message::Submission;

/// Parts that shares are counted in when it is drawn who is checked.
const MILLION: u64 = 1_000_000;
/// Validators that are asked in turn for what none before could get, in quorums.
const ASKED_QUORUMS: usize = 3;

/// Tensors of an epoch that are compared as numbers, on average, beside the first that differ.
pub const TENSORS_DRAWN: usize = 8;

/// Validators that read the receipts of a stage's epoch.
pub const READERS: usize = 2;

/// What a validator found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// The replay gives what the miner committed to.
    Matches,
    /// It does not.
    Differs(Fault),
    /// Something that the replay needs could not be fetched, or the own engine failed.
    Unavailable,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Matches => f.write_str("matches"),
            Self::Differs(fault) => write!(f, "differs in {fault}"),
            Self::Unavailable => f.write_str("unavailable"),
        }
    }
}

/// What in an epoch's work is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The receipts are none, not those of the manifest, or tell of what cannot have been.
    Receipts,
    /// The loss of this sample.
    Loss(SampleId),
    /// The activation sent on, or the gradient sent back, of this sample.
    Tensor(SampleId),
    /// The contribution.
    Contribution,
    /// The inner optimizer's moments that the epoch started from or ended with.
    Moments,
    /// What a neighbour was sent of this sample, under the miner's signature, is not what the miner commits to.
    Sent(SampleId),
}

impl Fault {
    /// Whether receipts show it, without a replay.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self, Self::Receipts | Self::Sent(_))
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Receipts => f.write_str("receipts"),
            Self::Loss(sample) => write!(f, "loss of sample {sample}"),
            Self::Tensor(sample) => write!(f, "tensors of sample {sample}"),
            Self::Contribution => f.write_str("contribution"),
            Self::Moments => f.write_str("moments"),
            Self::Sent(sample) => write!(f, "what it sent of sample {sample}"),
        }
    }
}

/// Which epoch's work of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// The stage.
    pub stage: StageIndex,
    /// The epoch.
    pub epoch: Epoch,
    /// The miner.
    pub peer: PeerId,
    /// Hash of its [`Manifest`](crate::wire::message::Manifest)'s encoding: what it committed to.
    pub manifest: Hash,
}

impl Subject {
    /// This submission to `epoch` of `stage`.
    #[must_use]
    pub const fn of(stage: StageIndex, epoch: Epoch, submission: &Submission) -> Self {
        Self { stage, epoch, peer: submission.peer, manifest: submission.manifest }
    }
}

/// What a validator says it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Who says so.
    pub validator: PeerId,
    /// Of what.
    pub subject: Subject,
    /// What was found.
    pub finding: Finding,
    /// ed25519 over [`verdict_bytes`].
    pub signature: ByteBuf,
}

/// The bytes a verdict signs, in every version of the wire format:
/// `"iota/v1/verdict\0" ‖ run id ‖ CBOR [subject, finding]`.
#[must_use]
pub fn verdict_bytes(run: RunId, subject: &Subject, finding: Finding) -> Vec<u8> {
    signed_bytes(WIRE_VERSION_FIRST, "verdict", run, &encode(&(subject, finding)))
}

impl Verdict {
    /// Signs a finding.
    #[must_use]
    pub fn sign(identity: &Identity, run: RunId, subject: Subject, finding: Finding) -> Self {
        let signature = ByteBuf::from(identity.sign(&verdict_bytes(run, &subject, finding)));
        Self { validator: identity.peer(), subject, finding, signature }
    }

    /// Whether the validator has signed it, in this run.
    #[must_use]
    pub fn verifies(&self, run: RunId) -> bool {
        self.validator.verifies(&verdict_bytes(run, &self.subject, self.finding), &self.signature)
    }
}

/// Why a validator is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DismissReason {
    /// No record for `timing.eviction`, or longer.
    Silent,
    /// Its record no longer offers to validate.
    Left,
    /// A majority of those who repeated its check found otherwise, or a quorum of those who evaluated a merge with it.
    WrongVerdict,
    /// It signed two messages under one number.
    Equivocation,
}

impl DismissReason {
    /// Whether something was proved, so that it never validates again.
    #[must_use]
    pub const fn is_proven(self) -> bool {
        matches!(self, Self::WrongVerdict | Self::Equivocation)
    }
}

impl std::fmt::Display for DismissReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Silent => "silent",
            Self::Left => "left",
            Self::WrongVerdict => "wrong verdict",
            Self::Equivocation => "equivocation",
        })
    }
}

/// A check that is not concluded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// What is checked.
    pub subject: Subject,
    /// Hash of the weights that the epoch started from.
    pub base: Hash,
    /// What is drawn with which of the tensors that the miner sent are compared.
    pub seed: Hash,
    /// Validators in the order drawn. That of those who are not asked yet is drawn anew before any of them is.
    pub validators: Vec<PeerId>,
    /// How many of them are asked.
    pub asked: usize,
    /// What they found.
    pub found: Vec<(PeerId, Finding)>,
}

/// What a check has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The work is what the miner committed to.
    Passed,
    /// It is not.
    Failed(Fault),
    /// Nobody who was asked could get what a replay needs.
    Unproven,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(fault) => write!(f, "failed: {fault}"),
            Self::Unproven => f.write_str("unproven"),
        }
    }
}

/// What a check amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conclusion {
    /// What it has shown.
    pub outcome: Outcome,
    /// Validators that found otherwise.
    pub wrong: Vec<PeerId>,
}

impl Challenge {
    /// The check of this submission, of which nobody is asked yet; none if nobody could be. `seed` is the chain hash after the plan
    /// that froze it.
    #[must_use]
    pub fn of(
        seed: Hash,
        subject: Subject,
        base: Hash,
        validators: impl Iterator<Item = PeerId>,
    ) -> Option<Self> {
        let key = |what: &[u8]| drawn_key(what, seed, subject.peer);
        let mut validators: Vec<PeerId> = validators.filter(|validator| *validator != subject.peer).collect();
        shuffle(&mut validators, key(b"iota/v1/validators\0"));
        let seed = key(b"iota/v1/tensors\0");
        (!validators.is_empty()).then_some(Self {
            subject,
            base,
            seed,
            asked: 0,
            validators,
            found: Vec::new(),
        })
    }

    /// The same, if it is drawn or its miner is `suspect`. One validator is asked.
    #[must_use]
    pub fn draw(
        spec: &ValidationSpec,
        seed: Hash,
        subject: Subject,
        base: Hash,
        validators: impl Iterator<Item = PeerId>,
        suspect: bool,
    ) -> Option<Self> {
        let drawn =
            suspect || is_drawn(drawn_key(b"iota/v1/challenge\0", seed, subject.peer), spec.replay_share);
        let challenge = Self::of(seed, subject, base, validators).filter(|_| drawn)?;
        Some(Self { asked: 1, ..challenge })
    }

    /// Those who are asked and have not answered.
    pub fn awaited(&self) -> impl Iterator<Item = PeerId> + '_ {
        let asked = self.validators.iter().take(self.asked).copied();
        asked.filter(|validator| !self.found.iter().any(|(answered, _)| answered == validator))
    }

    /// Has a validator among those who are asked, before others, if it is one of this check's.
    pub fn hear(&mut self, validator: PeerId) {
        let at = self.validators.iter().position(|drawn| *drawn == validator);
        if let Some(at) = at.filter(|at| *at >= self.asked) {
            self.validators[..=at].rotate_right(1);
            self.asked += 1;
        }
    }

    /// The faults that were found.
    pub fn faults(&self) -> impl Iterator<Item = Fault> + '_ {
        self.found.iter().filter_map(|(_, finding)| match finding {
            Finding::Differs(fault) => Some(*fault),
            Finding::Matches | Finding::Unavailable => None,
        })
    }

    /// Whether somebody has found a fault.
    #[must_use]
    pub fn is_disputed(&self) -> bool {
        self.faults().next().is_some()
    }

    /// Takes the verdict of one who is asked; whether it is news.
    pub fn take(&mut self, validator: PeerId, finding: Finding) -> bool {
        let news = self.awaited().any(|awaited| awaited == validator);
        if news {
            self.found.push((validator, finding));
        }
        news
    }

    /// Asks so many more than have answered, up to `most` in all, drawn from those who were not asked; whether there were any.
    fn ask(&mut self, more: usize, most: usize, seed: Hash) -> bool {
        let asked = self.asked.min(self.validators.len());
        let (_, others) = self.validators.split_at_mut(asked);
        shuffle(others, drawn_key(b"iota/v1/validators\0", seed, self.subject.peer));
        self.asked = (self.found.len() + more).min(most).min(self.validators.len()).max(asked);
        self.asked > asked
    }

    /// Asks another in place of one who is a validator no more and has not answered.
    pub fn dismiss(&mut self, validator: PeerId) {
        if !self.found.iter().any(|(answered, _)| *answered == validator) {
            self.validators.retain(|drawn| *drawn != validator);
        }
    }

    /// What the verdicts amount to, if that can be told. If it cannot, or if the only one found nothing and a second look is
    /// drawn, more validators are asked as far as there are any. Who, and whether, follows from `seed`: the chain hash after
    /// the last verdict.
    pub fn conclude(&mut self, spec: &ValidationSpec, seed: Hash) -> Option<Conclusion> {
        let count =
            |wanted: fn(&Finding) -> bool| self.found.iter().filter(|(_, finding)| wanted(finding)).count();
        let fails = count(|finding| matches!(finding, Finding::Differs(_)));
        let passes = count(|finding| *finding == Finding::Matches);
        let quorum = usize::from(spec.quorum);
        let panel = PANEL.max(quorum).min(self.validators.len());
        let majority = quorum.max(panel / 2 + 1);
        if fails >= majority || fails > 0 && passes >= majority {
            // Whoever has not answered yet could change nothing.
            return Some(self.conclusion(fails >= majority));
        }
        if self.awaited().next().is_some() {
            return None;
        }
        if fails == 0 && passes > 0 {
            let is_first =
                passes == 1 && self.found.last().is_some_and(|(_, last)| *last == Finding::Matches);
            let repeat = drawn_key(b"iota/v1/repeat\0", seed, self.subject.peer);
            let again = is_first && is_drawn(repeat, spec.repeat_share);
            let asked = again && self.ask(1, self.validators.len(), seed);
            return (!asked).then(|| self.conclusion(false));
        }
        // One at a time for what nobody could get, and not for ever: what a few cannot get is gone for all.
        let (lacking, most) = if fails == 0 {
            (1, ASKED_QUORUMS * quorum)
        } else {
            (majority.saturating_sub(fails.max(passes)), panel)
        };
        if self.ask(lacking, most, seed) {
            return None;
        }
        // Some of the panel could not tell.
        match fails {
            0 => {
                (!self.found.is_empty()).then(|| Conclusion { outcome: Outcome::Unproven, wrong: Vec::new() })
            }
            _ if fails.max(passes) >= quorum && fails != passes => Some(self.conclusion(fails > passes)),
            _ => None,
        }
    }

    /// Those who found what the check has shown were right, and those who found the contrary wrong.
    fn conclusion(&self, failed: bool) -> Conclusion {
        let found = self.faults().next();
        // Who approves what neighbours contradict may not have been served by them.
        let was_shown = !matches!(found, Some(Fault::Sent(_)));
        let is_wrong = |finding: &Finding| match finding {
            Finding::Matches => failed && was_shown,
            Finding::Differs(_) => !failed,
            Finding::Unavailable => false,
        };
        let wrong =
            self.found.iter().filter(|(_, finding)| is_wrong(finding)).map(|(peer, _)| *peer).collect();
        let outcome = found.filter(|_| failed).map_or(Outcome::Passed, Outcome::Failed);
        Conclusion { outcome, wrong }
    }
}

/// The validators drawn to read what the miners of a stage committed to in an epoch, [`READERS`] of these: `seed` is the chain hash
/// after the plan that froze it. If the validators change meanwhile, most often the same are.
pub fn readers(seed: Hash, validators: impl Iterator<Item = PeerId>) -> impl Iterator<Item = PeerId> {
    // Rendezvous hashing (Thaler and Ravishankar 1998).
    let ranked = validators.map(|validator| (drawn_key(b"iota/v1/readers\0", seed, validator), validator));
    let ranked: BTreeSet<_> = ranked.collect();
    ranked.into_iter().take(READERS).map(|(_, validator)| validator)
}

/// Whether a tensor that a miner sent, one of so many, is compared as numbers though others before it were: as many as
/// [`TENSORS_DRAWN`] on average, the same for every validator that knows the challenge's seed, and for no miner.
#[must_use]
pub fn is_compared(seed: Hash, direction: Direction, sample: SampleId, of: usize) -> bool {
    let number =
        Hash::of_parts(&[&seed.0, &[u8::from(direction == Direction::Backward)], &sample.0.to_le_bytes()]);
    is_drawn(number, TENSORS_DRAWN as f64 / of.max(TENSORS_DRAWN) as f64)
}

/// Contributions to a merge of so many that are checked since they stand out, at most: what most do is no exception.
#[must_use]
pub const fn outliers_max(submitters: usize) -> usize {
    submitters.saturating_sub(1) / 2
}

/// Replays of a contribution, on average: what checks cost for each of a miner's epochs, in such epochs. Suspects and findings,
/// which are repeated, come on top.
#[must_use]
pub fn cost(spec: &ValidationSpec) -> f64 {
    spec.replay_share * (1.0 + spec.repeat_share)
}

/// Probability that a miner that cheats in each of its epochs with probability `cheats` is found within `epochs` of them, if
/// validators keep up and a quorum of them is honest. How much of an epoch is cheated does not matter as long as it makes more than
/// [`ValidationSpec::contribution_error_max`].
#[must_use]
pub fn power(spec: &ValidationSpec, cheats: f64, epochs: u32) -> f64 {
    1.0 - libm::pow(1.0 - spec.replay_share * cheats, f64::from(epochs))
}

/// What is drawn with of a submission by `peer`, once the log has come to `seed`.
fn drawn_key(what: &[u8], seed: Hash, peer: PeerId) -> Hash {
    Hash::of_parts(&[what, &seed.0, &peer.0])
}

/// Whether a number falls in the first `share` of all.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share between 0 and 1, in millionths"
)]
pub(crate) fn is_drawn(number: Hash, share: f64) -> bool {
    let [a, b, c, d, e, f, g, h, ..] = number.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) % MILLION < (share * MILLION as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Subject =
        Subject { stage: StageIndex(1), epoch: Epoch(3), peer: PeerId([9; 32]), manifest: Hash([7; 32]) };
    const FAULT: Finding = Finding::Differs(Fault::Contribution);

    fn peers(count: u8) -> impl Iterator<Item = PeerId> {
        (0..count).map(|n| PeerId([n; 32]))
    }

    fn spec(share: f64, repeat: f64, quorum: usize) -> ValidationSpec {
        let quorum = u16::try_from(quorum).expect("few");
        ValidationSpec { replay_share: share, repeat_share: repeat, quorum, ..ValidationSpec::default() }
    }

    fn drawn(share: f64, seed: u64, validators: u8) -> Option<Challenge> {
        let seed = Hash::of(&seed.to_le_bytes());
        Challenge::draw(&spec(share, 0.0, 2), seed, SUBJECT, Hash::default(), peers(validators), false)
    }

    /// The chain hash after a verdict on the challenge of this seed.
    fn chain(seed: u64, found: usize) -> Hash {
        Hash::of(&[seed.to_le_bytes(), (found as u64).to_le_bytes()].concat())
    }

    /// How a challenge ends if each validator finds what `finds` says, and whom it has asked.
    fn ended(
        spec: &ValidationSpec,
        validators: u8,
        seed: u64,
        finds: impl Fn(PeerId) -> Finding,
    ) -> (Option<Conclusion>, Vec<PeerId>) {
        let mut challenge = drawn(1.0, seed, validators).expect("all are drawn");
        let mut conclusion = None;
        while conclusion.is_none() {
            let Some(asked) = challenge.awaited().next() else { break };
            assert!(challenge.take(asked, finds(asked)));
            conclusion = challenge.conclude(spec, chain(seed, challenge.found.len()));
        }
        (conclusion, challenge.found.into_iter().map(|(peer, _)| peer).collect())
    }

    /// The conclusion from these findings, given one after another by whoever is asked next.
    fn concluded(quorum: usize, validators: u8, findings: &[Finding]) -> (Challenge, Option<Conclusion>) {
        let mut challenge = drawn(1.0, 0, validators).expect("all are drawn");
        for finding in findings {
            let asked = challenge.awaited().next().expect("somebody is asked");
            assert!(challenge.take(asked, *finding));
            assert!(!challenge.take(asked, Finding::Matches), "nobody answers twice");
            let seed = chain(0, challenge.found.len());
            if let Some(conclusion) = challenge.conclude(&spec(1.0, 0.0, quorum), seed) {
                return (challenge, Some(conclusion));
            }
        }
        (challenge, None)
    }

    #[test]
    fn cheats_are_drawn_as_often_as_power_says_and_replays_are_as_many_as_cost_says() {
        let spec = spec(0.2, 0.5, 2);
        let (miners, epochs) = (2000, 10);
        let (mut caught, mut replays) = (0, 0);
        for miner in 0..miners {
            let check = |epoch: u64| {
                let seed = miner * epochs + epoch;
                drawn(0.2, seed, 4).map(|_| ended(&spec, 4, seed, |_| Finding::Matches).1.len())
            };
            let checks = (0..epochs).map(check).enumerate();
            let drawn: Vec<_> = checks.filter_map(|(epoch, asked)| Some((epoch, asked?))).collect();
            let cheats =
                |epoch: usize| Hash::of(&[miner.to_le_bytes(), epoch.to_le_bytes()].concat()).0[0] < 128;
            caught += u32::from(drawn.iter().any(|(epoch, _)| cheats(*epoch)));
            replays += drawn.iter().map(|(_, asked)| asked).sum::<usize>();
        }
        let of = |count: u32, all: u64| f64::from(count) / f64::from(u32::try_from(all).expect("few"));
        // Three deviations of each.
        assert!((of(caught, miners) - power(&spec, 0.5, 10)).abs() < 0.032, "{caught}");
        let replays = u32::try_from(replays).expect("few");
        assert!((of(replays, miners * epochs) - cost(&spec)).abs() < 0.014, "{replays}");
    }

    #[test]
    fn a_share_is_drawn_and_validators_are_drawn_evenly() {
        let challenges: Vec<_> = (0..4000).filter_map(|seed| drawn(0.25, seed, 4)).collect();
        assert!((900..1100).contains(&challenges.len()), "{}", challenges.len());
        for validator in peers(4) {
            let first = challenges.iter().filter(|challenge| challenge.validators[0] == validator).count();
            assert!((200..300).contains(&first), "{first}");
        }
        assert_eq!(drawn(0.0, 0, 4), None);
        assert_eq!(drawn(1.0, 0, 0), None, "nobody is there to check");
    }

    #[test]
    fn whether_and_by_whom_a_verdict_is_repeated_is_drawn_after_it() {
        let asked = |share, chain| {
            let mut challenge = drawn(1.0, 0, 5).expect("all are drawn");
            assert_eq!(challenge.asked, 1, "nobody can tell before");
            let first = challenge.validators[0];
            assert!(challenge.take(first, Finding::Matches));
            let conclusion = challenge.conclude(&spec(1.0, share, 2), chain);
            assert_eq!(conclusion.is_none(), challenge.asked == 2);
            let second = challenge.awaited().next();
            assert_ne!(second, Some(first));
            second
        };
        let seeds = || (0..1000).map(|seed| chain(seed, 1));
        assert!(seeds().all(|seed| asked(0.0, seed).is_none()));
        let repeated: Vec<_> = seeds().filter_map(|seed| asked(0.25, seed)).collect();
        assert!((200..300).contains(&repeated.len()), "{}", repeated.len());
        let second: Vec<_> = seeds().filter_map(|seed| asked(1.0, seed)).collect();
        assert_eq!(second.len(), 1000);
        for validator in peers(5).filter(|peer| second.contains(peer)) {
            let times = second.iter().filter(|peer| **peer == validator).count();
            assert!((200..300).contains(&times), "{times} of four others");
        }
    }

    #[test]
    fn who_approves_what_others_find_wrong_is_named_where_a_second_looks() {
        let spec = spec(1.0, 1.0, 2);
        let lazy = PeerId([0; 32]);
        let finds = |peer| if peer == lazy { Finding::Matches } else { FAULT };
        for seed in 0..200 {
            let (conclusion, asked) = ended(&spec, 5, seed, finds);
            let conclusion = conclusion.expect("enough are there");
            assert_eq!(conclusion.outcome, Outcome::Failed(Fault::Contribution));
            assert_eq!(conclusion.wrong, asked.into_iter().filter(|peer| *peer == lazy).collect::<Vec<_>>());
        }
        let alone = ended(&ValidationSpec { repeat_share: 0.0, ..spec }, 1, 0, finds).0;
        assert_eq!(alone.map(|conclusion| conclusion.outcome), Some(Outcome::Passed), "nobody looks again");
    }

    /// A limit: accusers who are the majority of the panel drawn take an honest miner's place. Three of ten never are, and lose
    /// their own.
    #[test]
    fn accusers_who_collude_win_as_often_as_they_are_most_of_a_panel() {
        // Ten, for the miner is one of the eleven.
        let (validators, checks) = (11, 20_000);
        let rates = |accusers: u8| {
            let finds = |peer: PeerId| if peer.0[0] < accusers { FAULT } else { Finding::Matches };
            let (mut framed, mut caught) = (0, 0);
            for seed in 0..checks {
                let (conclusion, _) = ended(&spec(1.0, 0.0, 2), validators, seed, finds);
                let conclusion = conclusion.expect("enough are there");
                let failed = conclusion.outcome != Outcome::Passed;
                framed += u32::from(failed);
                caught += u32::from(!failed && !conclusion.wrong.is_empty());
            }
            [framed, caught].map(|count| f64::from(count) / checks as f64)
        };
        let close = |got: [f64; 2], expected: [f64; 2]| {
            got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 0.01)
        };
        assert!(close(rates(1), [0.0, 0.1]), "{:?}", rates(1));
        assert!(close(rates(3), [0.0, 0.3]), "{:?}", rates(3));
        // The first asked is one of four in ten; of nine others, three of whom agree with it, all three are among six.
        let together = 20.0 / 84.0;
        assert!(close(rates(4), [0.4 * together, 0.4 * (1.0 - together)]), "{:?}", rates(4));
    }

    #[test]
    fn a_suspect_is_always_checked() {
        let spec = ValidationSpec { replay_share: 0.0, ..ValidationSpec::default() };
        let draw =
            |suspect| Challenge::draw(&spec, Hash::default(), SUBJECT, Hash::default(), peers(2), suspect);
        assert!(draw(true).is_some() && draw(false).is_none());
    }

    #[test]
    fn nobody_checks_itself() {
        let spec = ValidationSpec { replay_share: 1.0, ..ValidationSpec::default() };
        let validators = peers(3).chain([SUBJECT.peer]);
        let challenge = Challenge::draw(&spec, Hash::default(), SUBJECT, Hash::default(), validators, false);
        let challenge = challenge.expect("it is drawn");
        assert_eq!(challenge.validators.len(), 3);
        assert!(!challenge.validators.contains(&SUBJECT.peer));
    }

    #[test]
    fn one_verdict_that_it_matches_is_enough() {
        let (challenge, conclusion) = concluded(2, 3, &[Finding::Matches]);
        assert_eq!(conclusion, Some(Conclusion { outcome: Outcome::Passed, wrong: Vec::new() }));
        assert_eq!(challenge.found.len(), 1);
    }

    #[test]
    fn one_verdict_that_it_differs_is_not() {
        let (challenge, conclusion) = concluded(2, 3, &[FAULT]);
        assert_eq!((conclusion, challenge.asked), (None, 2));
        let (_, conclusion) = concluded(2, 3, &[FAULT, FAULT]);
        assert_eq!(
            conclusion,
            Some(Conclusion { outcome: Outcome::Failed(Fault::Contribution), wrong: Vec::new() })
        );
        let (_, conclusion) = concluded(1, 3, &[FAULT]);
        assert_eq!(conclusion, None, "a quorum of one is no majority of three");
        let (_, conclusion) = concluded(1, 1, &[FAULT]);
        let failed = Outcome::Failed(Fault::Contribution);
        assert_eq!(conclusion.map(|conclusion| conclusion.outcome), Some(failed));
        let (challenge, conclusion) = concluded(2, 20, &[FAULT]);
        assert_eq!((conclusion, challenge.asked), (None, 4), "as many as are a majority if they agree");
    }

    #[test]
    fn the_minority_is_named() {
        let (challenge, conclusion) = concluded(2, 3, &[FAULT, Finding::Matches, Finding::Matches]);
        let wrong = vec![challenge.validators[0]];
        assert_eq!(conclusion, Some(Conclusion { outcome: Outcome::Passed, wrong }));
        let (challenge, conclusion) = concluded(2, 3, &[FAULT, Finding::Matches, FAULT]);
        let wrong = vec![challenge.validators[1]];
        assert_eq!(conclusion, Some(Conclusion { outcome: Outcome::Failed(Fault::Contribution), wrong }));
    }

    #[test]
    fn whoever_approves_what_only_neighbours_contradict_is_not_named() {
        let sent = Finding::Differs(Fault::Sent(SampleId(7)));
        let (_, conclusion) = concluded(2, 3, &[sent, Finding::Matches, sent]);
        let outcome = Outcome::Failed(Fault::Sent(SampleId(7)));
        assert_eq!(conclusion, Some(Conclusion { outcome, wrong: Vec::new() }));
        let (challenge, conclusion) = concluded(2, 3, &[sent, Finding::Matches, Finding::Matches]);
        let wrong = vec![challenge.validators[0]];
        assert_eq!(conclusion, Some(Conclusion { outcome: Outcome::Passed, wrong }), "its accuser is");
    }

    #[test]
    fn without_enough_validators_nobody_is_punished() {
        let (challenge, conclusion) = concluded(2, 1, &[FAULT]);
        assert_eq!((conclusion, challenge.awaited().count()), (None, 0));
        let (challenge, conclusion) = concluded(2, 2, &[FAULT, Finding::Matches]);
        assert_eq!((conclusion, challenge.awaited().count()), (None, 0));
    }

    #[test]
    fn what_could_not_be_had_is_asked_of_another() {
        let (challenge, conclusion) = concluded(2, 3, &[Finding::Unavailable]);
        assert_eq!((conclusion, challenge.asked), (None, 2));
        let (_, conclusion) = concluded(2, 3, &[Finding::Unavailable, Finding::Matches]);
        assert_eq!(conclusion, Some(Conclusion { outcome: Outcome::Passed, wrong: Vec::new() }));
        let (_, conclusion) = concluded(2, 3, &[Finding::Unavailable; 3]);
        assert_eq!(conclusion, Some(Conclusion { outcome: Outcome::Unproven, wrong: Vec::new() }));
        let (challenge, conclusion) = concluded(2, 20, &[Finding::Unavailable; 6]);
        assert_eq!(
            conclusion.map(|conclusion| conclusion.outcome),
            Some(Outcome::Unproven),
            "not all are asked"
        );
        assert_eq!(challenge.found.len(), 6);
        let (challenge, conclusion) = concluded(2, 3, &[FAULT, Finding::Unavailable, Finding::Unavailable]);
        assert_eq!(
            (conclusion, challenge.awaited().count()),
            (None, 0),
            "somebody could, so it is not unproven"
        );
    }

    #[test]
    fn who_is_dismissed_before_its_verdict_is_replaced() {
        let mut challenge = drawn(1.0, 0, 3).expect("all are drawn");
        let [first, second, _] = challenge.validators[..] else { panic!("three") };
        challenge.dismiss(first);
        assert_eq!(challenge.awaited().collect::<Vec<_>>(), [second]);
        assert!(challenge.take(second, Finding::Matches));
        challenge.dismiss(second);
        let conclusion = challenge.conclude(&spec(1.0, 0.0, 2), Hash::default());
        assert_eq!(conclusion, Some(Conclusion { outcome: Outcome::Passed, wrong: Vec::new() }));
    }

    #[test]
    fn a_verdict_is_its_signers_and_of_one_run_only() {
        let identity = Identity::from_secret([3; 32]);
        let run = RunId([1; 32]);
        let verdict = Verdict::sign(&identity, run, SUBJECT, FAULT);
        assert!(verdict.verifies(run));
        assert!(!verdict.verifies(RunId([2; 32])));
        assert!(!Verdict { finding: Finding::Matches, ..verdict.clone() }.verifies(run));
        assert!(!Verdict { validator: PeerId([1; 32]), ..verdict }.verifies(run));
    }
}
