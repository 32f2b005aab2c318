//! Every bound of the protocol, with its unit and its reason.
//!
//! A peer that stays within these bounds can be served by a node with bounded memory, and a node
//! that never exceeds them itself is never refused for size.

use std::time::Duration;

/// Newest version of the wire format that this program speaks. A message of a version it does not speak is refused, not
/// guessed at.
pub const WIRE_VERSION: u16 = 1;
/// Oldest version that this program speaks: the one before the newest, so that a running swarm can be upgraded host by
/// host.
pub const WIRE_VERSION_OLDEST: u16 = 1;
/// The version in which every run starts, until its log says otherwise.
pub const WIRE_VERSION_FIRST: u16 = 1;
/// Share of each stage's miners, in thirds, that have to speak the next version before the others are left behind.
pub const UPGRADE_THIRDS: usize = 2;
/// Epoch deadlines for which so many have to speak it meanwhile. Whoever restarts its miners one by one, each
/// within an epoch, is not surprised; and a minority that is never upgraded cannot hold up all others.
pub const UPGRADE_GRACE_DEADLINES: u32 = 4;

/// Stages of one run. IOTA's largest published cut has 23.
pub const STAGES_MAX: usize = 64;
/// Orchestrator candidates. Consensus traffic grows with their square; seven survive three failures.
pub const CANDIDATES_MAX: usize = 7;
/// Miners of one stage. A merge plan names each of them in one log entry of at most [`ENTRY_BYTES_MAX`].
pub const REPLICAS_MAX: usize = 512;
/// Samples of one epoch: a stage's only miner names each in its receipts, which have at most [`RECEIPTS_BYTES_MAX`].
pub const SAMPLES_PER_EPOCH_MAX: u64 = 1 << 16;
/// Partitions of one stage; a manifest names the hash of each (32 bytes).
pub const PARTITIONS_MAX: usize = 4096;

/// Partitions that one digest report is about: those of one group of so many by their index. So an owner's reports are few, and
/// three of them fit a log entry as [evidence](crate::merge::evidence).
pub const DIGEST_PARTITIONS_MAX: usize = 1024;
/// Submitters whose faults one digest report tells of: those of one group of so many in the order of the plan.
pub const DIGEST_SUBMITTERS_MAX: usize = 128;
/// Faults of one digest report: three kinds for each submitter.
pub const DIGEST_FAULTS_MAX: usize = 3 * DIGEST_SUBMITTERS_MAX;
/// Bytes of a digest report's envelope: 38 for each partition, 60 for each fault, and its frame.
const DIGEST_BYTES_MAX: usize = DIGEST_PARTITIONS_MAX * 38 + DIGEST_FAULTS_MAX * 60 + 1024;
/// Digest reports of one owner and plan that a candidate keeps. An owner that tells the truth has one for each group.
pub const DIGEST_REPORTS_KEPT_MAX: usize = 16;
/// Digest reports that one decision rests on: the accused's, and those of two who agree against it.
pub const EVIDENCE_REPORTS_MAX: usize = 3;
/// Bytes of a signed message that candidates compare with another under its number, and of each of the two that a decision
/// rests on. A record takes a few KiB and a digest report 54, so that only manifests of more than 2,700 partitions are longer.
pub const EQUIVOCATION_BYTES_MAX: usize = 94 * 1024;
/// Partitions of a manifest up to which it is compared.
const PARTITIONS_COMPARED_MAX: usize = 2700;
/// Newest messages of one member and kind that a candidate compares others with. What one half of a swarm was told reaches the
/// other in a hop or two, in which an honest peer says two or three things.
pub const WATCHED_MESSAGES_MAX: usize = 8;
/// Newest votes of a candidate that others are compared with: each entry has one, and a leader that shows two histories may decide many
/// entries before those who were shown them hear of each other.
pub const WATCHED_VOTES_MAX: usize = 256;
/// Bytes of all those messages together: the records of 2 000 members and their merge messages of ordinary size.
pub const WATCHED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Members at a time of whom a candidate keeps what convicts them. The others sign further messages.
pub const EQUIVOCATIONS_MAX: usize = 64;
/// Merges, the newest, whose disputed inputs a miner keeps for a proof.
pub const PROOFS_KEPT_MAX: usize = 4;

/// Bytes of one gossiped message. Holds a manifest of [`PARTITIONS_MAX`] hashes.
pub const GOSSIP_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one log entry: a merge outcome of [`PARTITIONS_MAX`] hashes, or a plan of [`REPLICAS_MAX`] submitters.
pub const ENTRY_BYTES_MAX: usize = 192 * 1024;
/// Bytes of one request or response between two peers: a range of the log.
pub const RPC_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Entries in one range of the log.
pub const LOG_RANGE_ENTRIES_MAX: usize = 512;
/// Bytes around the entries of a range: five for each, and the certificate.
const LOG_RANGE_FRAME_BYTES: usize = 8 * 1024;
/// Bytes of entries and hashes in one range of the log that is asked for.
pub const LOG_RANGE_BYTES_MAX: usize = RPC_BYTES_MAX / 2;
/// Bytes of entries and hashes in one range of the log that is gossiped.
pub const LOG_GOSSIP_BYTES_MAX: usize = GOSSIP_BYTES_MAX - LOG_RANGE_FRAME_BYTES;
/// Entries after which the log names the state that they lead to: some megabytes, a few hundred epochs of a small run.
pub const SNAPSHOT_EVERY_ENTRIES: u64 = 1024;
/// Bytes of the state of a run, as a snapshot of it is fetched. Deals take two or three bytes for each sample of the
/// newest epochs of each stage.
pub const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes that the hash of an entry takes in a range.
pub const ENTRY_HASH_BYTES: usize = 34;
/// Entries that a leader has under way. More are undecided only if it has lost touch with the other candidates.
pub const PROPOSALS_PENDING_MAX: usize = 512;
/// Bytes of those proposals. Together they fit one request between candidates, however long each is.
pub const PROPOSALS_PENDING_BYTES_MAX: usize = RPC_BYTES_MAX / 4;
/// Bytes of the header of a pushed activation.
pub const PUSH_HEADER_BYTES_MAX: usize = 4096;
/// Bytes of a pushed activation: 4 × 8192 tokens × 512 channels of f32.
pub const PUSH_PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of one partition of a contribution or of a merged vector.
pub const PARTITION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of the receipt list of one miner and epoch.
pub const RECEIPTS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Addresses in a peer record, of each transport. A host has a handful.
pub const ADDRESSES_MAX: usize = 8;
/// Bytes of one address.
pub const ADDRESS_BYTES_MAX: usize = 128;
/// Votes of each other candidate kept for entries not yet decided here.
pub const VOTES_AHEAD_MAX: usize = 1024;
/// Consensus messages in one bundle between two candidates.
pub const CONSENSUS_BUNDLE_MAX: usize = 64;
/// Signed messages waiting for the epoch or plan they belong to, for all peers together.
pub const EARLY_MESSAGES_MAX: usize = 1024;
/// Free bytes of a file system below which a node keeps no more blobs: the largest blob fits, and so does what a gigabit per
/// second brings in the half second between two looks.
pub const DISK_FULL_BYTES: u64 = 64 * 1024 * 1024;
/// The same on a small file system: one part in so many.
pub const DISK_FULL_SHARE: u64 = 16;
/// Free bytes of a file system below which a node takes on no more work: some blobs fit that the epoch under way still needs.
pub const DISK_NEAR_BYTES: u64 = 4 * DISK_FULL_BYTES;
/// The same on a small file system: one part in so many.
pub const DISK_NEAR_SHARE: u64 = 4;
/// Zero bits of a proof of work, at most. One core makes about eleven million tries per second, so this is 1.7 hours
/// of it; more would keep out those whom a run wants.
pub const WORK_BITS_MAX: u8 = 36;
/// Peers that a spec allows, or bans. As many as are remembered at all.
pub const JOIN_LIST_MAX: usize = BOOK_PEERS_MAX;
/// Bytes of what a spec says about a ban: a sentence or two.
pub const BAN_REASON_BYTES_MAX: usize = 256;
/// Peers whose records are remembered.
pub const BOOK_PEERS_MAX: usize = 8192;
/// Records of one peer in a heartbeat that are taken and passed on. Honest ones send one, and one more for each piece of news.
pub const RECORDS_PER_HEARTBEAT_MAX: u32 = 8;
/// The same at once, after a quiet time: those that a slow link held back come together.
pub const RECORDS_AT_ONCE_MAX: u32 = 32;
/// What the number *n* of messages of a neighbour that were refused in a topic counts for its gossip score: this times *n*², where *n* fades by
/// [`GOSSIP_REFUSED_DECAY`] each second. At the second it is offered nothing, at the fifth it is below
/// [`GOSSIP_GRAYLIST`].
pub const GOSSIP_REFUSED_WEIGHT: f64 = -5.0;
/// What is left of a count of refused messages after a second: half after 11 minutes. From the fifth to the fourth it takes so long
/// that whoever is not listened to loses its place for silence: heard now and then, it would hold up every merge.
pub const GOSSIP_REFUSED_DECAY: f64 = 0.999;
/// Score below which nothing is listened to that a neighbour says.
pub const GOSSIP_GRAYLIST: f64 = -80.0;
/// Message numbers that a process writes down as used before it uses them, so that the next one uses others, whatever its clock
/// says. Days of messages; as many microseconds are a quarter of a second, in which no process starts twice, so that a clock
/// which is right is what counts.
pub const MESSAGE_NUMBERS_AHEAD: u64 = 1 << 18;
/// Peers that wait for a place whom a candidate's record names, the first first: 2 KiB each heartbeat of a full run.
pub const QUEUE_TOLD_MAX: usize = 64;
/// Forwarded activations held for an epoch that has not opened here yet.
pub const HELD_ACTIVATIONS_MAX: usize = 256;
/// Closed epochs of a stage whose plan and outcome stay in [`RunState`](crate::run_state::RunState),
/// so that a peer one merge behind catches up without a transfer of the whole state. Those in dispute stay longer.
pub const CLOSED_EPOCHS_KEPT: usize = 2;
/// Epochs between two checkpoints, at most. The outcome of each merge since the last one is remembered, so that a stage
/// nobody holds any more can be had from there.
pub const CHECKPOINT_EPOCHS_MAX: u32 = 32;
/// Outcomes of merges that a stage remembers, even if its checkpoints are late.
pub const OUTCOMES_KEPT_MAX: usize = 2 * CHECKPOINT_EPOCHS_MAX as usize;
/// Miners whose inner optimizer's moments go with a checkpoint, at most: the entry that decides it names each of them.
pub const CHECKPOINT_MOMENTS_MAX: usize = 2048;
/// Longest wait of a finished run for its last checkpoint, as long as somebody says that its mirror takes it: an upload of
/// 100 GiB at 2.5 Gbit/s takes 6 minutes.
pub const LAST_CHECKPOINT_WAIT: Duration = Duration::from_secs(600);
/// Longest wait of a complete checkpoint for moments that go with it: the last one is decided before its run ends without it.
pub const MOMENTS_WAIT_MAX: Duration = Duration::from_secs(300);
/// Validators of a run at a time. A few find what there is to find; many share the same work.
pub const VALIDATORS_MAX: usize = 64;
/// Validators that evaluate one merge, at most. Three outvote a liar, seven outvote three.
pub const EVALUATORS_MAX: u16 = 7;
/// Epochs for which a merge waits for its evaluations. Evaluators have to begin while its blobs are fetchable, and may take longer.
pub const EVALUATION_EPOCHS: u32 = DISPUTED_EPOCHS_KEPT;
/// Contributions of one merge that are evaluated, at most: all of a stage.
pub const EVALUATED_MAX: u16 = 512;
/// Unproven checks in a row after which a miner loses its place. The first may be the network's fault, and the second its end.
pub const UNPROVEN_MAX: u16 = 3;
/// Who looks at what is in dispute before anybody is named, if there are as many: owners at a partition, validators at a
/// contribution. Seven outvote three liars who agree.
pub const PANEL: usize = 7;
/// Checks that are not concluded. Each is forgotten with the blobs of its epoch.
pub const CHALLENGES_MAX: usize = 1024;
/// Closed epochs whose blobs stay fetchable. Two, so that a validator of the epoch just settled still finds its inputs.
pub const BLOB_EPOCHS_KEPT: u32 = 2;
/// The same, of an epoch that somebody has found a fault in. Eight: a panel is asked in at most two turns, and each of it ends
/// the check that it is at before it replays an epoch's work, which takes it about an epoch.
pub const DISPUTED_EPOCHS_KEPT: u32 = 8;
/// Newest epochs of a stage whose work is scored, at most. IOTA counts work for ten hours and wishes for several merges an
/// hour; with 256 there may be 25.
pub const SCORE_WINDOW_MAX: u32 = 256;
/// Samples that the members of a stage have to have done on the average, in the time that the lowest of them was there, before
/// it may lose its place for its score.
pub const KICK_SAMPLES_MIN: u32 = 16;
/// Miners whose work is remembered. More than any published run has; the weights of all fit one gossiped message.
pub const SCORED_MINERS_MAX: usize = 4096;
/// Bytes that a miner's work of one epoch takes in the state of a run, at most.
pub const SCORE_RECORD_BYTES: usize = 96;
/// Bytes that a miner's weight takes in an export of scores, at most.
pub const SCORE_WEIGHT_BYTES: usize = 38;

/// Ticks between two election rounds of the candidates; a leader is missed after one silent round, and votes that have not led to
/// a certificate by then are sent again.
pub const ELECTION_TICKS: u32 = 10;
/// Election rounds that a proposed decision may take before the leader proposes it again: a candidate that is heard at all
/// has answered within one, and two more messages follow until the decision is applied here.
pub const PROPOSAL_ROUNDS: u32 = 2;
/// How many times [`CONSENSUS_TICK`] a tick may be, where candidates are far from each other.
pub const TICK_STRETCH_MAX: u32 = 8;
/// Silence that costs a place is so many times an ordinary interval between two records of the peer.
pub const SILENCE_SLACK: u32 = 2;
/// How many times what the spec gives that silence may be.
pub const SILENCE_STRETCH_MAX: u32 = 4;
/// Ordinary silences after which an overtaken stage that gets no further is cut off. One passes until a member that died is out
/// and its samples are dealt to others; in the second they can be handled.
pub const STALLED_SILENCES: u32 = 2;
/// Ordinary silences for which a stage without miners waits for one that asks for a place, before another stage gives one.
pub const RESCUE_SILENCES: u32 = 1;
/// Ordinary silences for which a stage waits for somebody who has what all its miners lack.
pub const LOST_SILENCES: u32 = 2;
/// The same while all who merged the parts of it are heard: they may serve it, however slowly, or have lost it.
pub const SLOW_SILENCES: u32 = 20;
/// Epochs of its stage for which a member keeps to a limit of its speed. As many are dealt evenly before speed is tested again.
pub const SPEED_LIMIT_EPOCHS: u32 = 16;
/// Ordinary silences for which a leader may leave undone what a stand-by would have decided. An honest one does it within one: that of
/// a stand-by which hears less, or of a message that was lost and is announced again.
pub const LEADER_SILENCES: u32 = 8;
/// Merge deadlines for the same: a leader that audits a partition waits three for an owner that has died, beyond the stand-by's.
pub const LEADER_MERGES: u32 = 6;
/// Epochs of the run's work that a leader is charged which all others deposed. It has held everybody up for [`LEADER_SILENCES`], or
/// for [`LEADER_MERGES`]; the log has no clock to say how many epochs that were.
pub const DEPOSED_EPOCHS: u32 = 2;
/// Epochs of the head stage for which a vote against a leader counts: all who depose it lose their patience within one or two.
pub const NO_CONFIDENCE_EPOCHS: u32 = 8;
/// How far the number of a ballot may be above the last one promised: twelve days of elections, one each second, in which a candidate was
/// away. The number has 32 bits and each election adds one, so nobody may use them up.
pub const BALLOT_JUMP_MAX: u32 = 1 << 20;
/// What a candidate wanted in vain as leader, and holds against no other.
pub const FUTILE_MAX: usize = 64;
/// Ordinary silences for which a silent peer keeps its place among those who wait: time to start again.
pub const QUEUE_SILENCES: u32 = 10;
/// Ordinary silences after which the record of a peer that is no member is forgotten: with its place in the queue.
pub const FORGET_SILENCES: u32 = 10;
/// Least time of one consensus tick. Ten of them bound detection of a dead leader to about a second.
pub const CONSENSUS_TICK: Duration = Duration::from_millis(100);
/// Pause between two requests for missing entries of the log, if the first brought none: whoever was asked does not have them,
/// however near it is. What gossip lost is found missing by the log length in peers' records.
pub const LOG_REQUEST_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a refused or failed push is tried again, doubled up to [`RETRY_PAUSE_MAX`].
pub const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two tries of the same push or fetch.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Pause before a state is tried again that the mirror did not take, doubled up to [`MIRROR_PAUSE_MAX`]. The driver has
/// tried several times by then.
pub const MIRROR_PAUSE_MIN: Duration = Duration::from_secs(2);
/// Longest pause between two tries of a state that the mirror does not take.
pub const MIRROR_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Deadline of a request, and of a push or fetch as long as nothing like it was measured; see [`pace`](crate::pace).
pub const TRANSFER_DEADLINE: Duration = Duration::from_secs(10);
/// Least deadline of a push or fetch. Machines that train are busy for seconds.
pub const TRANSFER_DEADLINE_MIN: Duration = Duration::from_secs(5);
/// Greatest deadline of a push or fetch: the largest blob at 5 Mbit/s.
pub const TRANSFER_DEADLINE_MAX: Duration = Duration::from_secs(120);
/// Deadlines are so many times what is expected: several transfers share a link, a pipeline fills and drains, and machines
/// have other work.
pub const DEADLINE_SLACK: u32 = 4;
/// How many times what the spec gives the deadline of an epoch or a merge may be, and the wait for replicas that are not ready.
pub const DEADLINE_STRETCH_MAX: u32 = 16;
/// Merges of a stage by whose times the next ones are judged: enough for a median, few enough to follow a swarm that changes.
pub const MERGES_REMEMBERED: usize = 8;
/// Pause of a leader between two looks at what should be decided. A look costs in proportion to the swarm, and so many
/// records and manifests arrive; it is far less than the round trip that a decision takes.
pub const PROPOSAL_GATHER: Duration = Duration::from_millis(5);
/// Heartbeats between two announcements of the same thing, at most. Gossip that was lost is rare; a candidate that starts
/// anew in the middle of an epoch waits so long for what it missed.
pub const ANNOUNCE_HEARTBEATS_MAX: u32 = 4;

const _: () = assert!(
    matches!(WIRE_VERSION - WIRE_VERSION_OLDEST, 0 | 1),
    "a program speaks two versions at most, and a run goes forward one at a time"
);
const _: () = assert!(
    WIRE_VERSION_OLDEST <= WIRE_VERSION_FIRST,
    "a run starts in a version that this program speaks; a run spec would have to name a later start"
);
const _: () =
    assert!(CANDIDATES_MAX % 2 == 1, "an even number of candidates tolerates no more crashes than one fewer");
const _: () = assert!(PARTITIONS_MAX * 33 + 4096 <= ENTRY_BYTES_MAX, "an outcome fits a log entry");
const _: () = assert!(REPLICAS_MAX * 192 <= ENTRY_BYTES_MAX, "a plan fits a log entry");
const _: () = assert!(
    CHECKPOINT_MOMENTS_MAX * 92 + STAGES_MAX * 34 + 1024 <= ENTRY_BYTES_MAX,
    "a checkpoint fits a log entry"
);
const _: () = assert!(EVALUATED_MAX as usize * 192 <= ENTRY_BYTES_MAX, "an evaluation fits a log entry");
const _: () =
    assert!(EVIDENCE_REPORTS_MAX * DIGEST_BYTES_MAX + 1024 <= ENTRY_BYTES_MAX, "evidence fits a log entry");
const _: () = assert!(
    2 * EQUIVOCATION_BYTES_MAX + 1024 <= ENTRY_BYTES_MAX,
    "two messages under one number fit a log entry"
);
const _: () = assert!(ENTRY_BYTES_MAX <= PROPOSALS_PENDING_BYTES_MAX, "any entry can be proposed");
const _: () = assert!(
    DIGEST_BYTES_MAX <= EQUIVOCATION_BYTES_MAX
        && PARTITIONS_COMPARED_MAX * 34 + 2048 <= EQUIVOCATION_BYTES_MAX,
    "digest reports and most manifests are compared"
);
const _: () = assert!(
    EQUIVOCATION_BYTES_MAX * WATCHED_MESSAGES_MAX * 2 * 32 <= WATCHED_BYTES_MAX,
    "a few members that send what is long do not push out all others at once"
);
const _: () = assert!(
    PARTITIONS_MAX.div_ceil(DIGEST_PARTITIONS_MAX) <= DIGEST_REPORTS_KEPT_MAX
        && REPLICAS_MAX.div_ceil(DIGEST_SUBMITTERS_MAX) <= DIGEST_REPORTS_KEPT_MAX,
    "all that an owner says of a plan is kept"
);
const _: () = assert!(ENTRY_BYTES_MAX + 4096 <= GOSSIP_BYTES_MAX, "a certified entry fits a gossip message");
const _: () = assert!(ENTRY_BYTES_MAX <= LOG_GOSSIP_BYTES_MAX, "a gossiped range holds at least one entry");
const _: () = assert!(LOG_GOSSIP_BYTES_MAX <= LOG_RANGE_BYTES_MAX, "so does one that is asked for");
const _: () = assert!(LOG_RANGE_ENTRIES_MAX * 5 + 4096 <= LOG_RANGE_FRAME_BYTES, "a range's frame fits");
const _: () = assert!(
    SCORED_MINERS_MAX * SCORE_WINDOW_MAX as usize * SCORE_RECORD_BYTES <= SNAPSHOT_BYTES_MAX / 2,
    "the work of all miners over a window leaves room in a snapshot"
);
const _: () = assert!(
    SCORED_MINERS_MAX * SCORE_WEIGHT_BYTES + 4096 <= GOSSIP_BYTES_MAX,
    "an export of all miners' weights fits a gossip message"
);
const _: () = assert!(PARTITION_BYTES_MAX <= 1 << 30, "a partition fits memory");
const _: () = assert!(
    PARTITION_BYTES_MAX as u64 * 8 / TRANSFER_DEADLINE_MAX.as_secs() <= 5_000_000,
    "the largest blob gets through in time at 5 Mbit/s"
);
const _: () = assert!(PARTITION_BYTES_MAX as u64 <= DISK_FULL_BYTES, "a blob fits what is left of a disk");
const _: () = assert!(
    DISK_NEAR_SHARE * 2 <= DISK_FULL_SHARE,
    "room that has come back is not full before it is near its end"
);
const _: () = assert!(
    MOMENTS_WAIT_MAX.as_secs() < LAST_CHECKPOINT_WAIT.as_secs(),
    "the end of a run still waits when the last checkpoint waits for nobody any more"
);
const _: () = assert!(FORGET_SILENCES >= QUEUE_SILENCES, "who is in the queue is known");
const _: () =
    assert!(FORGET_SILENCES > SILENCE_STRETCH_MAX, "nobody is forgotten who may be silent for so long");
