//! Everything that receipts, manifests and outcomes name can be fetched by its hash while its epoch is recent, by
//! anybody, with a plain blob request; and nothing of old epochs is kept.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::stranger::{Stranger, Target, kept_bytes};
use crate::support::{STEP_DEADLINE, Swarm, tiny};
use iota_node::blobs::FetchError;
use iota_protocol::limits::{GOSSIP_BYTES_MAX, PARTITION_BYTES_MAX};
use iota_protocol::receipts::{decode_receipts, merkle_root};
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::decode;
use iota_protocol::wire::message::{Decision, Manifest, Submission};
use iota_protocol::{Hash, PeerId, RunSpec, StageIndex};

use crate::support::log::decision;

/// Between two tries of a fetch.
const AGAIN: Duration = Duration::from_millis(50);

/// A merge as the log tells it.
struct Merge {
    stage: StageIndex,
    submitters: Vec<Submission>,
    partitions: Vec<Hash>,
}

/// The newest merges of every stage, from the log.
fn newest_merges(entries: &[Vec<u8>]) -> Vec<Merge> {
    let mut plans = BTreeMap::new();
    let mut merges = BTreeMap::new();
    for entry in entries {
        match decision(entry) {
            Decision::MergePlan { stage, epoch, attempt, submitters } => {
                plans.insert((stage, epoch, attempt), submitters);
            }
            Decision::MergeOutcome { stage, epoch, attempt, partitions, .. } => {
                let submitters = plans.remove(&(stage, epoch, attempt)).expect("a plan before its outcome");
                merges.insert(stage, Merge { stage, submitters, partitions });
            }
            _ => {}
        }
    }
    merges.into_values().collect()
}

/// Fetches everything that a merge names, directly and through manifests and receipts, and returns the hashes.
async fn fetch_all(
    stranger: &Stranger,
    spec: &RunSpec,
    miners: &[PeerId],
    merge: &Merge,
) -> Result<Vec<Hash>, FetchError> {
    let mut fetched = Vec::new();
    let activation = (spec.training.sequences_per_sample * spec.model.context * 8 * 4) as usize;
    for submission in &merge.submitters {
        let miner = [submission.peer];
        let manifest = stranger.fetch(submission.manifest, &miner).await?;
        let manifest: Manifest = decode(&manifest, GOSSIP_BYTES_MAX).expect("a manifest");
        assert_eq!((manifest.peer, manifest.stage), (submission.peer, merge.stage));
        let receipts = decode_receipts(&stranger.fetch(manifest.receipts, &miner).await?).expect("receipts");
        assert_eq!(merkle_root(&receipts), manifest.receipt_root);
        assert_eq!(receipts.len(), submission.samples as usize);
        for receipt in &receipts {
            let (head, tail) = (merge.stage.0 == 0, merge.stage.0 + 1 == spec.pipeline.stages);
            let [input, output_gradient] = [&receipt.input, &receipt.output_gradient]
                .map(|received| received.as_ref().map(|received| received.hash));
            let named = [input, receipt.output, output_gradient, receipt.input_gradient];
            assert_eq!(named.map(|hash| hash.is_some()), [!head, !tail, !tail, !head]);
            for hash in named.into_iter().flatten() {
                let bytes = stranger.fetch(hash, &miner).await?;
                assert_eq!((bytes.len(), Hash::of(&bytes)), (activation, hash));
                fetched.push(hash);
            }
        }
        for hash in &manifest.partitions {
            assert_eq!(Hash::of(&stranger.fetch(*hash, &miner).await?), *hash);
        }
        fetched.extend(manifest.partitions);
        fetched.extend([submission.manifest, manifest.receipts]);
    }
    for hash in &merge.partitions {
        let bytes = stranger.fetch(*hash, miners).await?;
        assert!(bytes.len() <= PARTITION_BYTES_MAX && Hash::of(&bytes) == *hash);
    }
    fetched.extend(&merge.partitions);
    Ok(fetched)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_fetches_what_the_log_names_until_the_epoch_is_settled() {
    let mut swarm = Swarm::start(&tiny(TrainingMode::Local, 2, 2, 5_000), &[]);
    for index in 0..4 {
        swarm.until_epoch(index, 1);
    }
    let spec = swarm.spec();
    let targets: Vec<Target> =
        swarm.events().iter().map(|events| Target::of(events).expect("a started process")).collect();
    let miners: Vec<PeerId> = targets.iter().map(|target| target.peer).collect();
    let stranger = Stranger::connect(0x51, spec.run_id(), &targets, GOSSIP_BYTES_MAX).await;

    // An epoch may settle while its blobs are being fetched; then a newer one is tried.
    let mut known = stranger.log(&targets[0], 0).await;
    let deadline = tokio::time::Instant::now() + STEP_DEADLINE;
    let mut fetched: BTreeMap<StageIndex, Vec<Hash>> = BTreeMap::new();
    while fetched.len() < usize::from(spec.pipeline.stages) {
        assert!(tokio::time::Instant::now() < deadline, "everything of one epoch within {STEP_DEADLINE:?}");
        known.extend(stranger.log(&targets[0], known.len() as u64).await);
        for merge in newest_merges(&known) {
            if fetched.contains_key(&merge.stage) {
                continue;
            }
            match fetch_all(&stranger, &spec, &miners, &merge).await {
                Ok(hashes) => drop(fetched.insert(merge.stage, hashes)),
                Err(error) => println!("tried again: {error}"),
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    stranger.stop().await;

    // A peer that holds none of them itself asks until nobody has them.
    let late = Stranger::connect(0x52, spec.run_id(), &targets, GOSSIP_BYTES_MAX).await;
    let mut hashes: Vec<Hash> = fetched.into_values().flatten().collect();
    // One of each kind and place is enough to wait for, and some to spare.
    let step = hashes.len().div_ceil(24).max(1);
    hashes = hashes.into_iter().step_by(step).collect();
    for hash in hashes {
        loop {
            match late.fetch(hash, &miners).await {
                Err(FetchError::NoProvider { .. }) => break,
                Ok(_) => {
                    late.plane.release("test").await.expect("a store");
                    late.plane.collected().await;
                }
                Err(error) => println!("asked again: {error}"),
            }
            assert!(tokio::time::Instant::now() < deadline + STEP_DEADLINE, "{hash} is still there");
            tokio::time::sleep(AGAIN).await;
        }
    }
    // They are gone, not their providers.
    let manifest = async {
        loop {
            known.extend(late.log(&targets[0], known.len() as u64).await);
            let submission = newest_merges(&known)[0].submitters[0];
            if late.fetch(submission.manifest, &[submission.peer]).await.is_ok() {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::time::timeout(STEP_DEADLINE, manifest).await.expect("what is recent is served");
    late.stop().await;
}

/// Bytes that each process keeps when a run of `epochs` has ended.
fn kept_after(epochs: u32, arguments: &[&str]) -> Vec<u64> {
    let run = Swarm::start(&tiny(TrainingMode::Local, 2, 2, epochs), arguments).finish();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folders = (0..run.events.len()).map(|index| run.swarm.peer_folder(index));
    // Of a process that was killed nothing is expected.
    let ended = folders.filter(|folder| folder.join("checkpoint").exists());
    ended.map(|folder| runtime.block_on(kept_bytes(&folder))).collect()
}

#[test]
fn what_a_process_keeps_grows_neither_with_epochs_nor_with_members_that_come_and_go() {
    let calm = kept_after(6, &[]);
    let stormy = kept_after(80, &["--kill-after", "3@e2", "--join-after", "e4", "--join-after", "e12"]);
    println!("kept after 6 calm epochs {calm:?}, after 80 stormy ones {stormy:?}");
    let most = calm.into_iter().max().expect("processes");
    // Fewer replicas hold more of each epoch; 80 epochs without release would be thirteen times as much.
    assert!(stormy.iter().all(|kept| *kept > 0 && *kept <= most * 2), "at most twice {most}: {stormy:?}");
}
