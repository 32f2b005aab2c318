//! Proofs of a run that never was: one candidate decides its log, and what miners signed and contributed is made up.

use iota_protocol::equivocation::{Equivocation, MessageKind};
use iota_protocol::log::certificate::{Electorate, vote_bytes};
use iota_protocol::log::{Certifier, Vote};
use iota_protocol::merge::evidence::Evidence;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::spec::{Bottleneck, Candidate};
use iota_protocol::validation::{DismissReason, Fault, Verdict};
use iota_protocol::wire::message::{
    ContributionFault, DigestReport, Entry, EvictReason, FaultKind, Manifest, MergeMessage, PeerRecord,
    Submission, WeightsRecord,
};
use iota_protocol::wire::seal;
use iota_protocol::{Epoch, Identity, LogIndex, PartitionIndex, StageIndex};
use iota_worker::Worker;

use super::blobs::Known;
use super::*;

const S: StageIndex = StageIndex(0);
const E: Epoch = Epoch(0);
const P: PartitionIndex = PartitionIndex(0);
/// The miner that is accused. All three miners own partition 0; numbers 8 and 9 validate.
const ACCUSED: u8 = 3;

fn identity(i: u8) -> Identity {
    Identity::from_secret([i; 32])
}

fn peer(i: u8) -> PeerId {
    identity(i).peer()
}

/// The log of a run of one stage and three miners, and what they contributed.
struct Swarm {
    spec: RunSpec,
    fold: Fold,
    log: DecidedLog,
    blobs: Vec<ByteBuf>,
    inputs: Vec<(PeerId, u32, Hash)>,
}

impl Swarm {
    /// A swarm whose first merge is planned; `spoils` may change what the accused contributes.
    fn planned(spoils: impl Fn(&mut Vec<u8>)) -> Self {
        let mut spec = RunSpec::default();
        spec.orchestrator.candidates = vec![Candidate { peer: peer(1), priority: 1 }];
        (spec.model.width, spec.model.layers, spec.model.heads, spec.model.kv_heads) = (32, 1, 2, 1);
        (spec.model.hidden, spec.model.context, spec.model.bottleneck) = (64, 32, Bottleneck::Width(8));
        (spec.pipeline.stages, spec.merge.partitions_min) = (1, 3);
        (spec.validation.replay_share, spec.validation.repeat_share) = (1.0, 1.0);
        let mut swarm = Self {
            fold: Fold::new(std::sync::Arc::new(spec.clone())),
            log: DecidedLog::new(&spec),
            blobs: Vec::new(),
            inputs: Vec::new(),
            spec,
        };
        let mut miners = [1, 2, ACCUSED].map(peer);
        miners.sort_unstable();
        for peer in miners {
            swarm.decide(Decision::Admit { peer, stage: S });
        }
        for i in [8, 9] {
            swarm.decide(Decision::Enlist { peer: peer(i) });
        }
        let members = miners.map(|peer| (peer, 1)).to_vec();
        swarm.decide(Decision::OpenEpoch { stage: S, epoch: E, base: Hash::default(), members });
        let submitters = miners.map(|peer| swarm.contribute(peer, &spoils)).to_vec();
        swarm.decide(Decision::MergePlan { stage: S, epoch: E, attempt: 0, submitters });
        for owner in miners {
            swarm.decide(Decision::MergeReassign { stage: S, epoch: E, attempt: 0, partition: P, owner });
        }
        swarm
    }

    /// Decides something; returns what it changed.
    fn decide(&mut self, decision: Decision) -> Vec<StateEvent> {
        let entry = Entry { proposer: peer(1), decision };
        let (_, chain) = self.log.push_decided(encode(&entry));
        self.fold.apply(chain, Some(&entry)).expect("it names no state")
    }

    /// A manifest with three partitions, of which the bytes of the first are kept.
    fn contribute(&mut self, miner: PeerId, spoils: impl Fn(&mut Vec<u8>)) -> Submission {
        let parameters = crate::bridge::model_config(&self.spec).parameter_count(0);
        let length = iota_protocol::merge::partition_range(0, 3, parameters).len();
        // Small enough for inner steps to lead there.
        let number = f32::from(miner.0[0]) / 65536.0;
        let mut bytes: Vec<u8> = (0..length).flat_map(|_| number.to_le_bytes()).collect();
        if self.spec.merge.codec.bytes() == 2 {
            bytes = (0..length).flat_map(|_| [number.to_le_bytes()[2], number.to_le_bytes()[3]]).collect();
        }
        if miner == peer(ACCUSED) {
            spoils(&mut bytes);
        }
        let input = Hash::of(&bytes);
        let manifest = Manifest {
            peer: miner,
            stage: S,
            epoch: E,
            nonce: 1,
            base: Hash::default(),
            samples: 2,
            sample_set: Hash::default(),
            dealt: Hash::default(),
            receipt_root: Hash::default(),
            receipts: Hash::default(),
            loss_micro: None,
            moments: None,
            moments_after: None,
            partitions: vec![input, Hash::of(b"second"), Hash::of(b"third")],
        };
        let manifest = encode(&manifest);
        let named = Hash::of(&manifest);
        self.blobs.extend([ByteBuf::from(manifest), ByteBuf::from(bytes)]);
        self.inputs.push((miner, 2, input));
        Submission { peer: miner, manifest: named, samples: 2, loss_micro: None, moments_after: None }
    }

    /// What an owner computes that does not lie.
    fn honest(&self) -> Hash {
        let mut blobs = Known::new(self.blobs.iter().map(|bytes| bytes.as_slice()));
        let spec = std::sync::Arc::new(self.spec.clone());
        let job = Job::Reduce { stage: S, epoch: E, partition: P, inputs: self.inputs.clone() };
        match Worker::new(spec, iota_model::Device::Cpu, None).perform(&job, &mut blobs) {
            JobDone::Reduced { merged: Ok(hash), .. } => hash,
            done => panic!("{done:?}"),
        }
    }

    /// What owner `i` signs.
    fn report(&self, i: u8, merged: Hash, invalid: Option<PeerId>) -> ByteBuf {
        let report = DigestReport {
            sequence: 1,
            stage: S,
            epoch: E,
            attempt: 0,
            merged: vec![(P, merged)],
            faults: invalid
                .map(|submitter| ContributionFault { submitter, kind: FaultKind::Invalid })
                .into_iter()
                .collect(),
        };
        ByteBuf::from(seal(&identity(i), self.spec.run_id(), &MergeMessage::Digest(report)))
    }

    /// Takes the accused's place, since it reported `claimed` and the others `agreed`.
    fn convict(&mut self, claimed: Hash, agreed: Hash) {
        let reports = [(1, agreed), (2, agreed), (ACCUSED, claimed)];
        let reports = reports.map(|(i, merged)| self.report(i, merged, None)).to_vec();
        let evidence = Some(Evidence::Digests { partition: P, reports });
        self.evict(EvictReason::WrongMerge, evidence);
    }

    fn evict(&mut self, reason: EvictReason, evidence: Option<Evidence>) {
        let peer = peer(ACCUSED);
        let events = self.decide(Decision::Evict { peer, reason, evidence });
        assert_eq!(events, [StateEvent::Evicted(peer, reason)]);
    }

    /// A proof against the accused, under a certificate of the candidate.
    fn proof(&self) -> Proof {
        self.proof_against(peer(ACCUSED))
    }

    fn proof_against(&self, peer: PeerId) -> Proof {
        let mut certifier = Certifier::new(Electorate::new(&self.spec), 0);
        let (index, chain) = (LogIndex(self.log.len() as u64 - 1), self.log.chain(self.log.len()));
        certifier.vote(&identity(1), index, chain.expect("the log is here"));
        let entry = |index| ByteBuf::from(self.log.entry_bytes(index).expect("the log is here"));
        let log = ControlUpdate {
            first: LogIndex(0),
            entries: (0..self.log.len()).map(entry).collect(),
            beyond: Vec::new(),
            certificate: certifier.latest().expect("one of one").clone(),
        };
        Proof { spec: self.spec.clone(), peer, snapshot: None, log, blobs: self.blobs.clone() }
    }
}

/// What a proof shows, once more after it was written and read.
fn shown(proof: &Proof) -> Result<String, String> {
    let read = Proof::from_bytes(&proof.to_bytes()).expect("it is read as it was written");
    assert_eq!(&read, proof);
    match check(&read).expect("a whole proof") {
        Outcome::Proved(_, what) => Ok(what),
        Outcome::NotProved(_, what) => Err(what),
    }
}

#[test]
fn a_wrong_merge_is_proved_by_computing_it_again() {
    let mut swarm = Swarm::planned(|_| ());
    let (honest, wrong) = (swarm.honest(), Hash::of(b"wrong"));
    swarm.convict(wrong, honest);
    let accused = peer(ACCUSED);
    assert_eq!(
        shown(&swarm.proof()),
        Ok(format!(
            "peer {accused} reported {wrong} for partition 0 of stage 0, epoch 0, recomputed {honest} from 3 contributions"
        ))
    );
}

#[test]
fn an_owner_that_two_others_framed_is_shown_to_have_been_right() {
    let mut swarm = Swarm::planned(|_| ());
    let (honest, wrong) = (swarm.honest(), Hash::of(b"wrong"));
    swarm.convict(honest, wrong);
    let refused = shown(&swarm.proof()).expect_err("the accused was right");
    assert!(refused.contains("which is what its 3 inputs give"), "{refused}");
    // Without the inputs nobody can tell.
    let refused = shown(&Proof { blobs: Vec::new(), ..swarm.proof() }).expect_err("nothing to compute");
    assert!(refused.starts_with("signatures alone show") && refused.contains("not in the file"), "{refused}");
}

#[test]
fn an_invalid_contribution_is_proved_by_its_bytes() {
    for (spoils, proved) in [(true, true), (false, false)] {
        let mut swarm = Swarm::planned(|bytes| bytes.truncate(if spoils { 5 } else { usize::MAX }));
        let reports = [1, 2].map(|i| swarm.report(i, Hash::default(), Some(peer(ACCUSED)))).to_vec();
        swarm.evict(EvictReason::InvalidContribution, Some(Evidence::Faults { reports }));
        let shown = shown(&swarm.proof());
        assert_eq!(shown.is_ok(), proved, "{shown:?}");
        let text = shown.unwrap_or_else(|text| text);
        let expected =
            if spoils { "which is no valid partition" } else { "none of its partitions in the file" };
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_equivocation_is_proved_by_what_the_accused_signed() {
    let mut swarm = Swarm::planned(|_| ());
    let messages = ["this", "that"].map(|said| swarm.report(ACCUSED, Hash::of(said.as_bytes()), None));
    let equivocation = Equivocation { kind: MessageKind::Merge, messages };
    swarm.evict(EvictReason::Equivocation, Some(Evidence::Equivocation(equivocation)));
    let accused = peer(ACCUSED);
    let expected = format!("peer {accused} signed two different messages of kind merge under the number 1");
    assert_eq!(shown(&Proof { blobs: Vec::new(), ..swarm.proof() }), Ok(expected));
}

#[test]
fn an_overstated_speed_is_proved_by_the_record_and_the_limit_in_the_log() {
    let mut swarm = Swarm::planned(|_| ());
    let accused = peer(ACCUSED);
    swarm.decide(Decision::LimitSpeed { peer: accused, stage: S, speed_milli: 1500 });
    let entries = u64::try_from(swarm.log.len()).expect("a short log");
    let weights = Some(WeightsRecord { stage: S, version: E, hash: Hash::default() });
    let record = PeerRecord { weights, log_length: entries, speed_milli: 64_000, ..PeerRecord::new(1) };
    let record = ByteBuf::from(seal(&identity(ACCUSED), swarm.spec.run_id(), &record));
    swarm.evict(EvictReason::OverstatedSpeed, Some(Evidence::Overstatement(record)));
    let expected = format!(
        "peer {accused} signed that it does 64000 thousandths of a sample per second and knows the first {entries} entries of the \
         log; the last of the first {entries} limits it to 1500"
    );
    assert_eq!(shown(&Proof { blobs: Vec::new(), ..swarm.proof() }), Ok(expected));
}

#[test]
fn two_votes_are_proved_without_a_log() {
    let swarm = Swarm::planned(|_| ());
    let run = swarm.spec.run_id();
    let vote = |says: &str| {
        let (index, chain) = (LogIndex(7), Hash::of(says.as_bytes()));
        let signature = ByteBuf::from(identity(8).sign(&vote_bytes(run, index, chain)));
        ByteBuf::from(encode(&Vote { candidate: 1, index, chain, signature }))
    };
    let signed = |says: [&str; 2]| {
        let signed = Equivocation { kind: MessageKind::Vote, messages: says.map(vote) };
        SignedTwice { spec: swarm.spec.clone(), peer: peer(8), signed }
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = signed(["one log", "another"]).write(folder.path()).expect("written");
    let bytes = std::fs::read(path).expect("the file");
    let expected = format!("peer {} signed two different messages of kind vote under the number 7", peer(8));
    assert_eq!(verify(&bytes).expect("a proof"), Outcome::Proved(run, expected));

    let same = signed(["one log", "one log"]).check();
    assert!(matches!(same, Err(ProofError::Signed(EquivocationError::Same(7)))), "{same:?}");
    let other = SignedTwice { peer: peer(5), ..signed(["one log", "another"]) }.check();
    assert!(matches!(other, Err(ProofError::Signed(EquivocationError::Message(0, _)))), "{other:?}");
    assert!(matches!(verify(&bytes[..bytes.len() - 1]), Err(ProofError::Decode(_))));
    assert!(matches!(verify(b"iota/signed-twice/2\n"), Err(ProofError::Magic(20))));
}

#[test]
fn a_validators_equivocation_is_proved_as_a_miners_is() {
    let mut swarm = Swarm::planned(|_| ());
    let record = |multiaddr: &str| {
        let record = PeerRecord { multiaddrs: vec![multiaddr.to_owned()], ..PeerRecord::new(4) };
        ByteBuf::from(seal(&identity(8), swarm.spec.run_id(), &record))
    };
    let messages = ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"].map(record);
    let evidence = Some(Equivocation { kind: MessageKind::Record, messages });
    let (peer, reason) = (peer(8), DismissReason::Equivocation);
    let events = swarm.decide(Decision::Dismiss { peer, reason, evidence });
    assert_eq!(events, [StateEvent::Dismissed(peer, reason)]);
    let expected = format!("peer {peer} signed two different messages of kind record under the number 4");
    assert_eq!(shown(&swarm.proof_against(peer)), Ok(expected));
    assert!(matches!(check(&swarm.proof()), Err(ProofError::Innocent(_))), "it is the only one");
}

/// The merge is over, and validators say what they find of the accused's work, where `finding` is given who was asked before whom: the
/// events of so many verdicts.
fn judged(swarm: &mut Swarm, verdicts: usize, finding: impl Fn(usize) -> Finding) -> Vec<StateEvent> {
    swarm.decide(Decision::MergeOutcome {
        stage: S,
        epoch: E,
        attempt: 0,
        partitions: vec![Hash::default(); 3],
        outliers: Vec::new(),
    });
    let mut events = Vec::new();
    for number in 0..verdicts {
        let challenges = swarm.fold.state().challenges().to_vec();
        let challenge = challenges.iter().find(|challenge| challenge.subject.peer == peer(ACCUSED));
        let challenge = challenge.expect("all are checked");
        let asked = challenge.awaited().next().expect("somebody is asked");
        let validator = [8, 9, 10].map(identity).into_iter().find(|identity| identity.peer() == asked);
        let validator = validator.expect("one of those enlisted");
        let verdict = Verdict::sign(&validator, swarm.spec.run_id(), challenge.subject, finding(number));
        events.extend(swarm.decide(Decision::Judge(verdict)));
    }
    events
}

#[test]
fn of_a_wrong_verdict_the_signatures_of_those_who_contradict_it_are_shown() {
    let mut swarm = Swarm::planned(|_| ());
    swarm.decide(Decision::Enlist { peer: peer(10) });
    // The first accuses, and the two others find nothing.
    let found = [Finding::Differs(Fault::Contribution), Finding::Matches, Finding::Matches];
    let events = judged(&mut swarm, 3, |number| found[number]);
    let Some(&StateEvent::Dismissed(liar, DismissReason::WrongVerdict)) = events.last() else {
        panic!("{events:?}")
    };
    let text = shown(&swarm.proof_against(liar)).expect_err("there is nothing to compute with");
    assert!(text.contains(&format!("{liar}: differs in contribution")), "{text}");
    assert_eq!(text.matches(": matches").count(), 2, "{text}");
}

#[test]
fn of_a_failed_replay_signatures_are_shown() {
    let mut swarm = Swarm::planned(|_| ());
    let events = judged(&mut swarm, 2, |_| Finding::Differs(Fault::Contribution));
    assert!(events.contains(&StateEvent::Evicted(peer(ACCUSED), EvictReason::FailedReplay)), "{events:?}");
    let text = shown(&swarm.proof()).expect_err("there is nothing to compute with");
    assert!(text.starts_with("signatures alone show that validators replayed epoch 0 of stage 0"), "{text}");
    for validator in [8, 9].map(peer) {
        assert!(text.contains(&format!("{validator}: differs in contribution")), "{text}");
    }
}

#[test]
fn a_proof_that_is_not_what_the_candidates_signed_is_refused() {
    let mut swarm = Swarm::planned(|_| ());
    swarm.convict(Hash::of(b"wrong"), swarm.honest());
    let proof = swarm.proof();
    let mut forged = proof.clone();
    forged.log.certificate.signatures[0].1[0] ^= 1;
    assert!(matches!(check(&forged), Err(ProofError::Log(RejectReason::Certificate))));
    let mut other = proof.clone();
    other.spec.seed += 1;
    assert!(matches!(check(&other), Err(ProofError::Log(_))), "another run's");
    let innocent = Proof { peer: peer(1), ..proof.clone() };
    assert!(matches!(check(&innocent), Err(ProofError::Innocent(of)) if of == peer(1)));
    let mut bytes = proof.to_bytes();
    bytes.push(0);
    assert!(matches!(Proof::from_bytes(&bytes), Err(ProofError::Decode(_))));
    assert!(matches!(Proof::from_bytes(b"iota"), Err(ProofError::Magic(4))));
}
