//! An owner's part in a merge: fetch its partitions of every contribution, reduce, report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::job::Job;
use super::{Context, backed_off};
use crate::id::{Epoch, Hash, LogIndex, PartitionIndex, PeerId, StageIndex};
use crate::limits::{DIGEST_PARTITIONS_MAX, DIGEST_SUBMITTERS_MAX, GOSSIP_BYTES_MAX, PARTITION_BYTES_MAX};
use crate::run_state::{Plan, Training};
use crate::time::Instant;
use crate::wire::decode;
use crate::wire::gossip::HashedManifest;
use crate::wire::message::{ContributionFault, DigestReport, FaultKind, Manifest, Submission};

/// Blobs fetched at once for one merge. Enough to fill a link whose delay is a few transfers long.
const FETCHES_AT_ONCE: usize = 16;
/// Failed fetches of one submitter's blobs after which it is reported unavailable. Tries go on.
const FAILURES_REPORTED: u32 = 3;

/// Something to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// A submitter's manifest.
    Manifest(PeerId),
    /// A submitter's bytes of a partition.
    Input(PartitionIndex, PeerId),
}

impl Want {
    const fn submitter(self) -> PeerId {
        match self {
            Self::Manifest(peer) | Self::Input(_, peer) => peer,
        }
    }
}

/// What is still to be fetched. Kept apart by what it waits for, so that looking for the next fetch costs nothing while
/// all there is to fetch is under way.
#[derive(Debug, Default)]
struct Wants {
    /// To be started, in this order.
    ready: BTreeSet<(usize, Want)>,
    in_flight: BTreeSet<Want>,
    /// Failed, and when they are tried again.
    resting: BTreeMap<Want, Instant>,
    pauses: BTreeMap<Want, Duration>,
}

impl Wants {
    fn fail(&mut self, now: Instant, want: Want) {
        if self.in_flight.remove(&want) {
            let pause = self.pauses.entry(want).or_default();
            *pause = backed_off(*pause);
            self.resting.insert(want, now + *pause);
        }
    }
}

/// A partition that this peer owns.
#[derive(Clone, Debug, Default)]
struct Owned {
    have: BTreeSet<PeerId>,
    reducing: bool,
    merged: Option<Hash>,
    /// Whose inputs stand out.
    outliers: BTreeSet<PeerId>,
}

/// One merge.
#[derive(Debug)]
pub(super) struct MergeWork {
    me: PeerId,
    pub(super) stage: StageIndex,
    pub(super) epoch: Epoch,
    opened: LogIndex,
    attempt: u16,
    submitters: Vec<Submission>,
    manifests: BTreeMap<PeerId, Manifest>,
    partitions: usize,
    owned: BTreeMap<PartitionIndex, Owned>,
    wants: Wants,
    failures: BTreeMap<PeerId, u32>,
    faults: BTreeSet<ContributionFault>,
    reported: (usize, usize),
}

impl MergeWork {
    pub(super) fn new(me: PeerId, stage: StageIndex, training: &Training, plan: &Plan) -> Self {
        let mut work = Self {
            me,
            stage,
            epoch: training.epoch,
            opened: training.opened,
            attempt: plan.attempt,
            submitters: plan.submitters.clone(),
            manifests: BTreeMap::new(),
            partitions: plan.owners.len(),
            owned: BTreeMap::new(),
            wants: Wants::default(),
            failures: BTreeMap::new(),
            faults: BTreeSet::new(),
            reported: (0, 0),
        };
        plan.submitters.iter().for_each(|submission| work.want(Want::Manifest(submission.peer)));
        work
    }

    /// Queues a fetch. Owners take submitters in one circle, each starting behind itself, so that at any moment they ask
    /// different ones and no uplink is shared by all.
    fn want(&mut self, want: Want) {
        self.wants.ready.insert((self.turn(want), want));
    }

    fn unwant(&mut self, want: Want) {
        let turn = self.turn(want);
        self.wants.ready.remove(&(turn, want));
        self.wants.in_flight.remove(&want);
        self.wants.resting.remove(&want);
    }

    fn turn(&self, want: Want) -> usize {
        let place = |peer: PeerId| self.submitters.partition_point(|submission| submission.peer < peer);
        let count = self.submitters.len().max(1);
        (place(want.submitter()) + count - place(self.me) % count) % count
    }

    /// What a submitter committed to, if it is here.
    pub(super) fn manifest(&self, submitter: PeerId) -> Option<&Manifest> {
        self.manifests.get(&submitter)
    }

    pub(super) fn is_for(&self, training: &Training, plan: &Plan) -> bool {
        self.opened == training.opened && self.attempt == plan.attempt
    }

    /// Takes over partitions that it was drawn or added for.
    pub(super) fn follow(&mut self, _now: Instant, plan: &Plan) {
        for (i, owners) in plan.owners.iter().enumerate() {
            let partition = PartitionIndex(u32::try_from(i).unwrap_or(u32::MAX));
            if owners.contains(&self.me) && !self.owned.contains_key(&partition) {
                self.owned.insert(partition, Owned::default());
                let inputs: Vec<PeerId> = self.manifests.keys().copied().collect();
                inputs.into_iter().for_each(|peer| self.want(Want::Input(partition, peer)));
            }
        }
    }

    /// Fetches to start now: what, its hash, who may have it, its largest size, whether its bytes are wanted here.
    pub(super) fn wants(
        &mut self,
        cx: &Context<'_>,
        known: &BTreeMap<Hash, Arc<HashedManifest>>,
    ) -> Vec<(Want, Hash, Vec<PeerId>, usize, bool)> {
        self.resolve_known(known);
        let rested: Vec<Want> =
            self.wants.resting.extract_if(.., |_, at| *at <= cx.now).map(|(w, _)| w).collect();
        rested.into_iter().for_each(|want| self.want(want));
        let mut started = Vec::new();
        while self.wants.in_flight.len() < FETCHES_AT_ONCE {
            let Some((_, want)) = self.wants.ready.pop_first() else { break };
            let peer = want.submitter();
            let fetch = match want {
                Want::Manifest(peer) => self
                    .submitters
                    .iter()
                    .find(|submission| submission.peer == peer)
                    .map(|submission| (submission.manifest, GOSSIP_BYTES_MAX, true)),
                Want::Input(partition, peer) => self
                    .manifests
                    .get(&peer)
                    .and_then(|manifest| manifest.partitions.get(partition.0 as usize))
                    .map(|hash| (*hash, PARTITION_BYTES_MAX, false)),
            };
            let Some((hash, limit, deliver)) = fetch else { continue };
            self.wants.in_flight.insert(want);
            // The submitter has it for certain; co-owners have it once they fetched it.
            let others = self
                .submitters
                .iter()
                .map(|submission| submission.peer)
                .filter(|other| *other != peer && *other != self.me);
            let providers = std::iter::once(peer).chain(others).take(4).collect();
            started.push((want, hash, providers, limit, deliver));
        }
        started
    }

    /// Takes manifests that gossip already brought.
    fn resolve_known(&mut self, known: &BTreeMap<Hash, Arc<HashedManifest>>) {
        if self.manifests.len() >= self.submitters.len() {
            return;
        }
        let found: Vec<_> = self
            .submitters
            .iter()
            .filter(|submission| !self.manifests.contains_key(&submission.peer))
            .filter_map(|submission| {
                known.get(&submission.manifest).map(|known| (submission.peer, known.manifest.clone()))
            })
            .collect();
        for (peer, manifest) in found {
            self.take_manifest(peer, manifest);
        }
    }

    fn take_manifest(&mut self, peer: PeerId, manifest: Manifest) {
        self.unwant(Want::Manifest(peer));
        if self.manifests.contains_key(&peer) {
            return;
        }
        if manifest.partitions.len() != self.partitions {
            self.faults.insert(ContributionFault { submitter: peer, kind: FaultKind::Invalid });
            return;
        }
        self.manifests.insert(peer, manifest);
        let partitions: Vec<PartitionIndex> = self.owned.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.want(Want::Input(partition, peer)));
    }

    /// Takes the result of a fetch.
    pub(super) fn fetched(&mut self, now: Instant, want: Want, bytes: Option<&[u8]>) {
        let peer = want.submitter();
        let Some(bytes) = bytes else {
            let failures = self.failures.entry(peer).or_default();
            *failures += 1;
            if *failures >= FAILURES_REPORTED {
                self.faults.insert(ContributionFault { submitter: peer, kind: FaultKind::Unavailable });
            }
            self.wants.fail(now, want);
            return;
        };
        match want {
            // Its hash is in the decided plan, so these are the bytes the submitter committed to.
            Want::Manifest(_) => match decode::<Manifest>(bytes, GOSSIP_BYTES_MAX) {
                Ok(manifest) => self.take_manifest(peer, manifest),
                Err(_) => {
                    self.unwant(want);
                    self.faults.insert(ContributionFault { submitter: peer, kind: FaultKind::Invalid });
                }
            },
            Want::Input(partition, _) => {
                self.wants.in_flight.remove(&want);
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.have.insert(peer);
                }
            }
        }
    }

    /// The next partition to reduce.
    pub(super) fn job(&mut self) -> Option<Job> {
        let (stage, epoch, count) = (self.stage, self.epoch, self.submitters.len());
        let ready = self
            .owned
            .iter_mut()
            .find(|(_, owned)| !owned.reducing && owned.merged.is_none() && owned.have.len() == count);
        let (&partition, owned) = ready?;
        owned.reducing = true;
        let inputs = self.inputs(partition)?;
        Some(Job::Reduce { stage, epoch, partition, inputs })
    }

    /// What is reduced to a partition: submitter, samples and blob of each, if all their manifests are here.
    fn inputs(&self, partition: PartitionIndex) -> Option<Vec<(PeerId, u32, Hash)>> {
        let input = |submission: &Submission| {
            let hash = self.manifests.get(&submission.peer)?.partitions.get(partition.0 as usize)?;
            Some((submission.peer, submission.samples, *hash))
        };
        self.submitters.iter().map(input).collect()
    }

    /// Whether this is a job of this merge, and not of an earlier plan for the stage, which had other submitters or manifests.
    pub(super) fn asks_for(&self, job: &Job) -> bool {
        let Job::Reduce { stage, epoch, partition, inputs } = job else { return false };
        (self.stage, self.epoch) == (*stage, *epoch) && self.inputs(*partition).as_ref() == Some(inputs)
    }

    /// The engine has reduced a partition, or found a contribution that is none.
    pub(super) fn reduced(
        &mut self,
        partition: PartitionIndex,
        merged: Result<Hash, PeerId>,
        outliers: Vec<PeerId>,
    ) {
        match merged {
            Ok(hash) => {
                if let Some(owned) = self.owned.get_mut(&partition) {
                    (owned.merged, owned.outliers) = (Some(hash), outliers.into_iter().collect());
                }
            }
            Err(submitter) => {
                self.faults.insert(ContributionFault { submitter, kind: FaultKind::Invalid });
            }
        }
    }

    /// The engine could not reduce a partition; it is tried again.
    pub(super) fn reduction_failed(&mut self, partition: PartitionIndex) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.reducing = false;
        }
    }

    /// What to tell the others: when all partitions are reduced or a fault is new, and again when `due`. One report for each
    /// group of partitions and submitters, numbered on from `sequence`.
    pub(super) fn report(&mut self, due: bool, sequence: &mut u64) -> Vec<DigestReport> {
        let merged: Vec<_> =
            self.owned.iter().filter_map(|(partition, owned)| Some((*partition, owned.merged?))).collect();
        let known = (merged.len(), self.faults.len());
        let complete = merged.len() == self.owned.len();
        let news = known != self.reported && (complete || known.1 != self.reported.1);
        if known == (0, 0) || !(news || due) {
            return Vec::new();
        }
        self.reported = known;
        let outliers = if complete { self.outliers() } else { Vec::new() };
        let faults: BTreeSet<ContributionFault> = self.faults.iter().copied().chain(outliers).collect();
        let place = |peer: PeerId| self.submitters.partition_point(|submission| submission.peer < peer);
        let groups = self.partitions.div_ceil(DIGEST_PARTITIONS_MAX);
        let groups = groups.max(self.submitters.len().div_ceil(DIGEST_SUBMITTERS_MAX));
        let report = |group: usize| {
            let merged = merged.iter().filter(|(of, _)| of.0 as usize / DIGEST_PARTITIONS_MAX == group);
            let faults =
                faults.iter().filter(|fault| place(fault.submitter) / DIGEST_SUBMITTERS_MAX == group);
            let (merged, faults): (Vec<_>, Vec<_>) = (merged.copied().collect(), faults.copied().collect());
            let says = !merged.is_empty() || !faults.is_empty();
            says.then(|| {
                *sequence += 1;
                DigestReport {
                    sequence: *sequence,
                    stage: self.stage,
                    epoch: self.epoch,
                    attempt: self.attempt,
                    merged,
                    faults,
                }
            })
        };
        (0..groups).filter_map(report).collect()
    }

    /// Whose contributions stand out in each partition that was reduced. In a single one anybody's may, such as where an embedding has the
    /// rows of rare tokens.
    fn outliers(&self) -> Vec<ContributionFault> {
        let reduced = self.owned.values().filter(|owned| owned.merged.is_some());
        let everywhere = reduced.map(|owned| owned.outliers.clone()).reduce(|all, here| &all & &here);
        everywhere
            .into_iter()
            .flatten()
            .map(|submitter| ContributionFault { submitter, kind: FaultKind::Outlier })
            .collect()
    }

    /// When the next try of a failed fetch is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.wants.resting.values().copied().min()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Identity, RunId};
    use crate::miner::{Action, JobDone, Miner, Outbox};
    use crate::peer::book::Book;
    use crate::run_state::{Phase, RunState};
    use crate::samples::Deal;
    use crate::spec::RunSpec;
    use crate::wire::encode;
    use crate::wire::message::{Decision, Entry};

    const STAGE: StageIndex = StageIndex(0);
    const EPOCH: Epoch = Epoch(0);
    const SUBMITTER: PeerId = PeerId([9; 32]);
    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    /// What `SUBMITTER` commits to after so many samples.
    fn manifest(samples: u32) -> Manifest {
        let hash = |what: &str| Hash::of(format!("{what} of {samples}").as_bytes());
        Manifest {
            stage: STAGE,
            epoch: EPOCH,
            peer: SUBMITTER,
            base: Hash::default(),
            dealt: hash("samples"),
            samples,
            loss_micro: None,
            sample_set: hash("samples"),
            receipt_root: hash("receipts"),
            receipts: hash("receipts"),
            moments: None,
            moments_after: None,
            partitions: vec![hash("partition")],
            nonce: 0,
        }
    }

    /// An owner, and the state in which it is to merge what `SUBMITTER` made of so many samples.
    struct Merging {
        miner: Miner,
        state: RunState,
        out: Outbox,
        book: Book,
    }

    impl Merging {
        fn new() -> Self {
            let identity = Identity::from_secret([1; 32]);
            let spec = Arc::new(RunSpec {
                pipeline: crate::spec::PipelineSpec { stages: 1, ..Default::default() },
                ..RunSpec::default()
            });
            let miner = Miner::new(identity.peer(), Arc::clone(&spec), 0);
            let out = Outbox::new(identity, RunId([0; 32]));
            Self { miner, state: RunState::new(spec, &[10]), out, book: Book::default() }
        }

        /// The plan of this attempt is decided. Returns the numbers of the fetches that it starts, and what they are of.
        fn plan(&mut self, attempt: u16, samples: u32) -> Vec<(u64, Hash)> {
            let (opened, base) = (LogIndex(0), Hash::default());
            let deal = Deal::new(base, STAGE, EPOCH, 0..4, &[(SUBMITTER, 1)]);
            let training = Training { epoch: EPOCH, base, opened, deal, attempt, cut_off: false };
            let submission = Submission::of(&manifest(samples), Hash::of(&encode(&manifest(samples))));
            let (submitters, owners) = (vec![submission], vec![vec![self.miner.me]]);
            let plan = Plan { attempt, seed: base, submitters, owners };
            // Any entry makes the miner look at what the state is.
            let entry = Entry { proposer: self.miner.me, decision: Decision::Upgrade { version: 9 } };
            self.state.apply(LogIndex(self.state.applied()), Hash::default(), Some(&entry));
            self.state.stages_mut()[0].phase = Phase::Merging(training, plan);
            self.with(Miner::pump)
        }

        /// Does something, and returns the fetches started by it.
        fn with(&mut self, act: impl FnOnce(&mut Miner, &mut Context<'_>)) -> Vec<(u64, Hash)> {
            let mut cx = Context { now: NOW, state: &self.state, book: &self.book, out: &mut self.out };
            act(&mut self.miner, &mut cx);
            let mut fetches = Vec::new();
            while let Some(action) = self.out.pop() {
                if let Action::Fetch { id, hash, .. } = action {
                    fetches.push((id, hash));
                }
            }
            fetches
        }

        fn arrives(&mut self, id: u64, samples: u32) -> Vec<(u64, Hash)> {
            let bytes = encode(&manifest(samples));
            self.with(|miner, cx| miner.handle_fetched(cx, id, Some(&bytes)))
        }

        fn merge(&mut self) -> &mut MergeWork {
            self.miner.merges.get_mut(&STAGE).expect("it owns a partition")
        }
    }

    #[test]
    fn what_an_earlier_plan_asked_for_is_not_taken_for_what_this_one_does() {
        let mut merging = Merging::new();
        let of = |samples| Hash::of(&encode(&manifest(samples)));
        let [(before, hash)] = *merging.plan(0, 1) else { panic!("the manifest of one submitter") };
        assert_eq!(hash, of(1));
        let [(now, hash)] = *merging.plan(1, 2) else { panic!("the manifest that it made anew") };
        assert_eq!(hash, of(2));
        assert_eq!(merging.arrives(before, 1), [], "no partition of that is wanted");
        assert_eq!(merging.merge().manifest(SUBMITTER), None);
        let [(_, input)] = *merging.arrives(now, 2) else { panic!("its partition") };
        assert_eq!(input, manifest(2).partitions[0]);
    }

    #[test]
    fn what_was_reduced_by_an_earlier_plan_is_not_reported_by_this_one() {
        let mut merging = Merging::new();
        let job = |samples| Job::Reduce {
            stage: STAGE,
            epoch: EPOCH,
            partition: PartitionIndex(0),
            inputs: vec![(SUBMITTER, samples, manifest(samples).partitions[0])],
        };
        merging.plan(0, 1);
        let [(manifest_of_two, _)] = *merging.plan(1, 2) else { panic!("a manifest") };
        merging.arrives(manifest_of_two, 2);
        let mut done = |samples| {
            merging.miner.busy = Some((job(samples), NOW));
            let (stage, partition, merged) = (STAGE, PartitionIndex(0), Ok(Hash::of(b"merged")));
            let done = JobDone::Reduced { stage, partition, merged, outliers: vec![SUBMITTER] };
            merging.with(|miner, cx| miner.handle_job_done(cx, done));
            merging.merge().report(true, &mut 0)
        };
        assert_eq!(done(1), []);
        let reports = done(2);
        let outlier = ContributionFault { submitter: SUBMITTER, kind: FaultKind::Outlier };
        let said: Vec<_> = reports.iter().map(|report| (report.merged.len(), &report.faults[..])).collect();
        assert_eq!(said, [(1, &[outlier][..])]);
    }
}
