//! Swarms of real processes in which one merges wrongly: it is named in the epoch in which it did, and anybody can check why.

use std::path::Path;
use std::sync::Arc;

use iota_node::history::Fold;
use iota_node::proof::{Outcome, Proof, check};
use iota_protocol::limits::ENTRY_BYTES_MAX;
use iota_protocol::log::certificate::{chain_hash, chain_start};
use iota_protocol::merge::evidence::Evidence;
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::decode;
use iota_protocol::wire::message::{Decision, Entry, EvictReason};
use iota_protocol::{Epoch, Hash, PartitionIndex, PeerId, StageIndex};

use crate::support::log::stored_entries;
use crate::support::{Run, Swarm, program, tiny};

/// The process that lies; no candidate.
const LIAR: usize = 4;

/// How a liar was found out, as the log says.
struct Found {
    /// The merge in which it first owned a partition.
    first: (StageIndex, Epoch),
    /// The merge in which it lost its place.
    named: (StageIndex, Epoch),
    partition: PartitionIndex,
    /// The owners whose reports were held against its own.
    witnesses: Vec<PeerId>,
    /// What that merge came to.
    merged: Vec<Hash>,
}

/// Looks in the log of process 0.
fn found_out(run: &Run, liar: PeerId) -> Found {
    let (mut fold, mut chain) = (Fold::new(Arc::new(run.spec.clone())), chain_start(run.spec.run_id()));
    let (mut first, mut named, mut merged) = (None, None, None);
    for bytes in stored_entries(&run.swarm.peer_folder(0)) {
        chain = chain_hash(chain, Hash::of(&bytes));
        let entry: Entry = decode(&bytes, ENTRY_BYTES_MAX).expect("a decided entry");
        let before = fold.state().clone();
        let events = fold.apply(chain, Some(&entry)).expect("the log names its states");
        for (stage, of) in run.spec.stages().zip(fold.state().stages()) {
            let plan = of.plan().filter(|(_, plan)| plan.owners.iter().any(|owners| owners.contains(&liar)));
            first = first.or_else(|| plan.map(|(training, _)| (stage, training.epoch)));
        }
        match entry.decision {
            // Two partitions may be in dispute: what is decided of the second takes a place that is gone.
            Decision::Evict { peer, evidence: Some(evidence), .. } if peer == liar && named.is_none() => {
                assert_eq!(events, [StateEvent::Evicted(liar, EvictReason::WrongMerge)]);
                let reports = before.check_evidence(liar, EvictReason::WrongMerge, &evidence);
                let reports = reports.expect("the evidence holds");
                let Evidence::Digests { partition, .. } = evidence else { panic!("digests") };
                let witnesses = reports.by.keys().copied().filter(|peer| *peer != liar).collect();
                named = Some(((reports.stage, reports.epoch), partition, witnesses));
            }
            Decision::MergeOutcome { stage, epoch, partitions, .. } if first == Some((stage, epoch)) => {
                assert!(
                    named.is_some(),
                    "the merge of stage {stage}, epoch {epoch} closed, and nobody was named"
                );
                merged = merged.or(Some(partitions));
            }
            _ => {}
        }
    }
    let (named, partition, witnesses) = named.expect("the liar was named");
    let first = first.expect("the liar owned a partition");
    Found { first, named, partition, witnesses, merged: merged.expect("the merge has closed") }
}

fn verify(file: &Path) -> (Option<i32>, String) {
    let output = program().arg("verify-proof").arg(file).output().expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

/// Has the process `index`, which has ended, write a proof against `peer`.
fn write_proof(run: &Run, index: usize, peer: PeerId, file: &Path) -> (Option<i32>, String) {
    let output = program()
        .args(["proof", "--peer", &peer.to_string(), "--spec"])
        .arg(run.swarm.folder().join("spec.toml"))
        .arg("--data-dir")
        .arg(run.swarm.peer_folder(index))
        .arg("--to")
        .arg(file)
        .output()
        .expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

/// Whether nothing that differs from a proof in one byte is one, whichever of `tries` bytes that is.
fn assert_no_byte_can_be_changed(bytes: &[u8], tries: usize) {
    for position in (0..tries).map(|i| i * (bytes.len() - 1) / (tries - 1)) {
        let mut changed = bytes.to_vec();
        changed[position] ^= 1;
        let outcome = Proof::from_bytes(&changed).and_then(|proof| check(&proof));
        assert!(!matches!(outcome, Ok(Outcome::Proved(..))), "byte {position} of {}", bytes.len());
    }
}

#[test]
fn an_owner_that_merges_wrongly_is_named_in_the_same_epoch_and_anybody_can_check_why() {
    let spec = tiny(TrainingMode::Synchronous, 2, 3, 3);
    let run = Swarm::start(&spec, &["--poison", &format!("{LIAR}:merge")]).finish();
    run.agreed_weights();
    let liar = run.peer(LIAR);
    assert!(run.evictions_of(liar).contains(&"wrong merge"));
    for honest in [0, 1, 2, 3, 5].map(|index| run.peer(index)) {
        assert_eq!(run.evictions_of(honest), Vec::<&str>::new());
    }
    let found = found_out(&run, liar);
    assert_eq!(found.named, found.first, "in the first merge in which it could lie");

    // A witness has what it computed from. The merge came to what anybody computes from the same.
    let index = (0..6).find(|index| run.peer(*index) == found.witnesses[0]).expect("one of the processes");
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let file = scratch.path().join("liar.proof");
    let (code, text) = write_proof(&run, index, liar, &file);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = verify(&file);
    assert_eq!(code, Some(0), "{text}");
    let honest = found.merged[found.partition.0 as usize];
    let (partition, (stage, epoch)) = (found.partition, found.named);
    let claim = format!("PROVED: in run {} peer {liar} reported ", run.spec.run_id());
    let what =
        format!(" for partition {partition} of stage {stage}, epoch {epoch}, recomputed {honest} from ");
    assert!(text.starts_with(&claim) && text.contains(&what), "{text}");

    let bytes = std::fs::read(&file).expect("the proof");
    assert_no_byte_can_be_changed(&bytes, 100);
    let mut changed = bytes.clone();
    *changed.last_mut().expect("bytes") ^= 1;
    std::fs::write(&file, &changed).expect("a file that is ours");
    let (code, text) = verify(&file);
    assert_eq!(code, Some(12), "{text}");
    assert!(text.contains("NOT PROVED") && text.contains("is not in the file"), "{text}");
    changed[0] ^= 1;
    std::fs::write(&file, &changed).expect("a file that is ours");
    let (code, text) = verify(&file);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("expected a proof that a peer lost its place"), "{text}");

    // Without the inputs signatures show a contradiction, and not who is right.
    let mut stripped = Proof::from_bytes(&bytes).expect("a proof");
    stripped.blobs.clear();
    let Ok(Outcome::NotProved(_, text)) = check(&stripped) else { panic!("nothing to compute with") };
    assert!(text.starts_with("signatures alone show that "), "{text}");
    // There is no proof against who did nothing wrong.
    let (code, text) = write_proof(&run, index, run.peer(0), &scratch.path().join("none.proof"));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("expected a peer that lost its place for good"), "{text}");
}
