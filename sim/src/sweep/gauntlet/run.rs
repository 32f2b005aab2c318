//! A data-parallel run of one stage on a linear regression, and how its contributions are evaluated.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::gauntlet::draw::Draw;
use iota_protocol::gauntlet::loss::{Loss, clip};
use iota_protocol::gauntlet::overlap::{Committed, Sketch, copies, index_overlap, particular, similarity};
use iota_protocol::gauntlet::sync::{Element, steps_behind};
use iota_protocol::gauntlet::{Found, Gauntlet, Settings, Standing};
use iota_protocol::samples::{Deal, epoch_samples};
use iota_protocol::{Epoch, Hash, PeerId, SampleId, StageIndex};

use super::templar::Templar;
use super::{COPIED, Kind, peer};
use crate::measure::statistics::real;
use crate::random::Random;

/// Elements of θ.
pub(super) const DIMENSION: usize = 128;
/// Points of a sample.
pub(super) const POINTS: usize = 8;
/// ‖θ*‖, which is what the run starts off by.
const DISTANCE: f64 = 3.0;
/// Standard deviation of a point's noise.
const NOISE: f64 = 1.0;
/// Learning rate for each point, which takes a third of the distance away in forty epochs.
const LEARNING_RATE: f64 = 2.5e-5;
/// Samples of a miner of speed 1 in an epoch: so many that a fast miner's own signal is near its end at the last epochs.
pub(super) const SAMPLES: u32 = 24;
/// Weight of the newest step in the mean size of steps.
const STEP_RATE: f64 = 0.2;
/// Epochs that a miner with old weights is behind.
pub(super) const LAG: usize = 5;
/// Noise that hides a copy, relative to the contribution.
const MASK: f64 = 0.5;
/// Contributions that a blend is the mean of.
pub(super) const BLENDED: usize = 6;
/// Contributions that are evaluated in an epoch: all.
const EVALUATED: usize = 32;
/// Elements whose places Templar's overlap compares: a sixteenth, where it keeps a sixty-fourth of millions.
const LARGEST: usize = DIMENSION / 16;

/// A sample: its points, each x and y.
type Sample = Vec<(Vec<f64>, f64)>;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(vector: &[f64]) -> f64 {
    libm::sqrt(dot(vector, vector))
}

/// `a + factor × b`
fn plus(a: &[f64], factor: f64, b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}

fn loss(theta: &[f64], sample: &Sample) -> f64 {
    let squares: f64 = sample.iter().map(|(x, y)| (dot(x, theta) - y) * (dot(x, theta) - y)).sum();
    0.5 * squares / real(sample.len() as u64)
}

/// A run, and what is known of its miners.
pub(super) struct Run {
    settings: Settings,
    kinds: BTreeMap<PeerId, Kind>,
    seed: u64,
    optimum: Vec<f64>,
    /// θ before each epoch; the last is the newest.
    weights: Vec<Vec<f64>>,
    /// Mean size of the last steps of each element.
    steps: Vec<f64>,
    /// First contribution of those who send it again.
    first: BTreeMap<PeerId, Vec<f64>>,
    gauntlet: Gauntlet,
    pub(super) tally: Tally,
    /// What Templar's formulas make of the same evaluations.
    templar: Templar,
}

/// What is counted beside scores.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Honest contributions, and those of them that were taken for copies.
    pub(super) honest: u64,
    pub(super) mistaken: u64,
    /// Contributions of copycats, and those of them that were.
    pub(super) copied: u64,
    pub(super) caught: u64,
    /// Pairs of honest contributions; sum of what Templar compares; greatest similarity.
    pub(super) pairs: u64,
    pub(super) indices: f64,
    pub(super) similar: f64,
}

impl Run {
    pub(super) fn new(seed: u64, kinds: &[Kind]) -> Self {
        let mut random = Random::new(seed, "gauntlet optimum");
        let direction: Vec<f64> = (0..DIMENSION).map(|_| random.normal()).collect();
        let optimum = direction.iter().map(|value| DISTANCE / norm(&direction) * value).collect();
        Self {
            settings: Settings::default(),
            kinds: (0..).map(peer).zip(kinds.iter().copied()).collect(),
            seed,
            optimum,
            weights: vec![vec![0.0; DIMENSION]],
            steps: vec![0.0; DIMENSION],
            first: BTreeMap::new(),
            gauntlet: Gauntlet::default(),
            tally: Tally::default(),
            templar: Templar::default(),
        }
    }

    fn sample(&self, sample: SampleId) -> Sample {
        let mut random = Random::new(self.seed, &format!("gauntlet sample {sample}"));
        let point = |_| {
            let x: Vec<f64> = (0..DIMENSION).map(|_| random.normal()).collect();
            let y = dot(&x, &self.optimum) + NOISE * random.normal();
            (x, y)
        };
        (0..POINTS).map(point).collect()
    }

    /// The weights of `lag` epochs before; the first ones if there were fewer.
    fn base(&self, lag: usize) -> &[f64] {
        &self.weights[self.weights.len().saturating_sub(1 + lag)]
    }

    /// The pseudo-gradient of one pass over the samples.
    fn train(&self, base: &[f64], samples: &[SampleId]) -> Vec<f64> {
        let mut theta = base.to_vec();
        for sample in samples {
            let gradients = self.sample(*sample).into_iter().map(|(x, y)| (dot(&x, &theta) - y, x));
            for (error, x) in gradients.collect::<Vec<_>>() {
                theta = plus(&theta, -LEARNING_RATE * error, &x);
            }
        }
        plus(base, -1.0, &theta)
    }

    fn deal(&self, epoch: u32) -> (Deal, Hash) {
        let members: Vec<(PeerId, u32)> =
            self.kinds.iter().map(|(peer, kind)| (*peer, kind.speed())).collect();
        let samples = SAMPLES * members.iter().map(|(_, speed)| speed).sum::<u32>();
        let lineage = Hash::of(&self.seed.to_le_bytes());
        let samples = epoch_samples(Epoch(epoch), samples);
        let chain = Hash::of_parts(&[b"plan", &lineage.0, &epoch.to_le_bytes()]);
        (Deal::new(lineage, StageIndex(0), Epoch(epoch), samples, &members), chain)
    }

    /// What everybody contributes.
    fn contributions(&mut self, epoch: u32, deal: &Deal) -> BTreeMap<PeerId, Vec<f64>> {
        let of_honest = |(peer, kind): (&PeerId, &Kind)| {
            let work = || self.train(self.base(0), &deal.samples_of(*peer));
            matches!(kind, Kind::Honest(_)).then(|| (*peer, work()))
        };
        let honest: BTreeMap<PeerId, Vec<f64>> = self.kinds.iter().filter_map(of_honest).collect();
        let copied = honest.get(&COPIED).cloned().unwrap_or_default();
        let mut random = Random::new(self.seed, &format!("gauntlet cheats {epoch}"));
        let mut drawn = |length: f64| {
            let values: Vec<f64> = (0..DIMENSION).map(|_| random.normal()).collect();
            let scale = length / norm(&values);
            values.iter().map(|value| scale * value).collect::<Vec<f64>>()
        };
        let mut all = honest.clone();
        let mut first = BTreeMap::new();
        for (peer, kind) in &self.kinds {
            let dealt = deal.samples_of(*peer);
            let contribution = match kind {
                Kind::Honest(_) => continue,
                Kind::Noise => drawn(norm(&copied)),
                Kind::Zero => vec![0.0; DIMENSION],
                Kind::Stale => {
                    let known = self.first.get(peer).cloned();
                    let sent = known.unwrap_or_else(|| self.train(self.base(0), &dealt));
                    first.insert(*peer, sent.clone());
                    sent
                }
                Kind::Behind => self.train(self.base(LAG), &dealt),
                Kind::Copycat => copied.iter().map(|value| 2.0 * value).collect(),
                Kind::MaskedCopycat => plus(&copied, 1.0, &drawn(MASK * norm(&copied))),
                Kind::Blend => {
                    let sum = |sum: Vec<f64>, of: &Vec<f64>| plus(&sum, 1.0 / real(BLENDED as u64), of);
                    honest.values().take(BLENDED).fold(vec![0.0; DIMENSION], sum)
                }
                Kind::SignFlip => self.train(self.base(0), &dealt).iter().map(|value| -value).collect(),
                Kind::OtherData => {
                    let other: Vec<SampleId> =
                        dealt.iter().map(|sample| SampleId(sample.0 | 1 << 62)).collect();
                    self.train(self.base(0), &other)
                }
            };
            all.insert(*peer, contribution);
        }
        self.first.extend(first);
        all
    }

    /// Who committed to what another had committed to, by what an evaluator sees.
    fn copies(&mut self, draw: &Draw, contributions: &BTreeMap<PeerId, Vec<f64>>) -> BTreeSet<PeerId> {
        let elements = draw.elements(DIMENSION, self.settings.elements);
        let sketch = |(peer, contribution): (&PeerId, &Vec<f64>)| {
            let bytes: Vec<u8> = contribution.iter().flat_map(|value| value.to_le_bytes()).collect();
            // Cheats wait for what they copy; keys of the honest are the lower ones.
            let place = u64::from(peer.0[0]);
            let committed = Some(Committed { first: place, last: place });
            let elements = elements.iter().map(|place| contribution[*place]).collect();
            Sketch { peer: *peer, committed, content: Hash::of(&bytes), elements }
        };
        let sketches: Vec<Sketch> = contributions.iter().map(sketch).collect();
        let copies = copies(&sketches, self.settings.similarity_max);

        let is_honest = |peer: &PeerId| matches!(self.kinds.get(peer), Some(Kind::Honest(_)));
        let vectors: Vec<&[f64]> = sketches.iter().map(|sketch| sketch.elements.as_slice()).collect();
        let own: Vec<(&Sketch, Vec<f64>)> = sketches.iter().zip(particular(&vectors)).collect();
        let honest: Vec<&(&Sketch, Vec<f64>)> =
            own.iter().filter(|(sketch, _)| is_honest(&sketch.peer)).collect();
        self.tally.honest += honest.len() as u64;
        self.tally.mistaken += honest.iter().filter(|(of, _)| copies.contains(&of.peer)).count() as u64;
        let is_copycat = |(_, kind): &(&PeerId, &Kind)| matches!(kind, Kind::Copycat | Kind::MaskedCopycat);
        for (peer, _) in self.kinds.iter().filter(is_copycat) {
            self.tally.copied += 1;
            self.tally.caught += u64::from(copies.contains(peer));
        }
        for (i, (a, of_a)) in honest.iter().enumerate() {
            for (b, of_b) in honest.iter().take(i) {
                self.tally.pairs += 1;
                self.tally.indices += index_overlap(&a.elements, &b.elements, LARGEST);
                self.tally.similar = self.tally.similar.max(similarity(of_a, of_b));
            }
        }
        copies
    }

    /// What losses say of each contribution.
    fn evaluate(
        &self,
        deal: &Deal,
        draw: &Draw,
        contributions: &BTreeMap<PeerId, Vec<f64>>,
    ) -> BTreeMap<PeerId, Found> {
        let settings = self.settings;
        let base = self.base(0);
        let norms: Vec<f64> = contributions.values().map(|vector| norm(vector)).collect();
        let random: Vec<Sample> =
            draw.random(settings.random_samples).into_iter().map(|sample| self.sample(sample)).collect();
        let peers: Vec<PeerId> = contributions.keys().copied().collect();
        let evaluated = draw.evaluated(&peers, EVALUATED);
        let found = |((peer, contribution), factor): ((&PeerId, &Vec<f64>), f64)| {
            let applied = plus(base, -settings.rate * factor, contribution);
            let losses = |samples: &[Sample]| -> Vec<Loss> {
                let of = |sample: &Sample| Loss { before: loss(base, sample), after: loss(&applied, sample) };
                samples.iter().map(of).collect()
            };
            let own = draw.own(*peer, &deal.samples_of(*peer), settings.own_samples);
            let own: Vec<Sample> = own.into_iter().map(|sample| self.sample(sample)).collect();
            let lag = if self.kinds.get(peer) == Some(&Kind::Behind) { LAG } else { 0 };
            let element = |place: usize| Element {
                ours: base[place],
                theirs: self.base(lag)[place],
                step: self.steps[place],
            };
            let elements: Vec<Element> =
                draw.elements(DIMENSION, settings.elements).into_iter().map(element).collect();
            let is_drawn = evaluated.contains(peer);
            let measured = || Found::of(&losses(&own), &losses(&random), steps_behind(&elements));
            let found = if is_drawn { measured() } else { Found::Unseen };
            (*peer, found)
        };
        contributions.iter().zip(clip(&norms, settings.norm_max)).map(found).collect()
    }

    pub(super) fn step(&mut self, epoch: u32) {
        let (deal, chain) = self.deal(epoch);
        let contributions = self.contributions(epoch, &deal);
        let draw = Draw::new(chain);
        let mut found = self.evaluate(&deal, &draw, &contributions);
        self.templar.close(&found);
        for copy in self.copies(&draw, &contributions) {
            found.insert(copy, Found::Copy);
        }
        self.gauntlet.close(&self.settings, &found);

        let weight = |peer: &PeerId| real(u64::from(self.kinds.get(peer).map_or(0, |kind| kind.speed())));
        let total: f64 = contributions.keys().map(weight).sum();
        let base = self.base(0).to_vec();
        let mut theta = base.clone();
        for (peer, contribution) in &contributions {
            theta = plus(&theta, -weight(peer) / total, contribution);
        }
        for ((mean, old), new) in self.steps.iter_mut().zip(&base).zip(&theta) {
            *mean += STEP_RATE * ((old - new).abs() - *mean);
        }
        self.weights.push(theta);
    }

    /// Mean over those of whom this is so.
    fn mean(&self, of: impl Fn(&PeerId, Kind) -> bool, value: impl Fn(&PeerId) -> f64) -> f64 {
        let chosen: Vec<&PeerId> =
            self.kinds.iter().filter(|(peer, kind)| of(peer, **kind)).map(|(peer, _)| peer).collect();
        chosen.iter().map(|peer| value(peer)).sum::<f64>() / real(chosen.len().max(1) as u64)
    }

    fn standing(&self, peer: &PeerId, of: impl Fn(&Standing) -> f64) -> f64 {
        self.gauntlet.standing(*peer).map_or(0.0, of)
    }

    /// Mean score of those of whom this is so.
    pub(super) fn score(&self, of: impl Fn(&PeerId, Kind) -> bool) -> f64 {
        self.mean(of, |peer| self.standing(peer, |standing| standing.score(&self.settings)))
    }

    /// Their mean indicator.
    pub(super) fn indicator(&self, of: impl Fn(&PeerId, Kind) -> bool) -> f64 {
        self.mean(of, |peer| self.standing(peer, |standing| standing.indicator))
    }

    /// Their mean score by Templar's formulas.
    pub(super) fn templar(&self, of: impl Fn(&PeerId, Kind) -> bool) -> f64 {
        self.mean(of, |peer| self.templar.score(*peer))
    }

    /// ½ ‖θ − θ*‖², relative to where the run started.
    pub(super) fn excess(&self) -> f64 {
        let rest = norm(&plus(self.base(0), -1.0, &self.optimum)) / DISTANCE;
        rest * rest
    }
}
