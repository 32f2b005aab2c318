//! What a node tells people and programs: event log, logs, metrics, `/health`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Clock};

use iota_protocol::limits::{MESSAGE_NUMBERS_AHEAD, WIRE_VERSION};
use iota_protocol::log::Snapshot;
use iota_protocol::merge::mean_nats;
use iota_protocol::miner::Notice;
use iota_protocol::peer::arrival::Arrival;
use iota_protocol::peer::candidate::Distrust;
use iota_protocol::peer::room::{DiskUse, Room};
use iota_protocol::run_state::{Phase, StateEvent};
use iota_protocol::validation::{Outcome, Subject};
use iota_protocol::validator::losses::Suspicion;
use iota_protocol::wire::frame::PushRefusal;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::wire::{RejectReason, encode};
use iota_protocol::{Epoch, PeerId, StageIndex};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::NodePeer;
use crate::events::{EventLog, NodeEvent};
use crate::metrics::NodeMetrics;
use crate::mirror::Mirror;
use crate::proof::SignedTwice;
use crate::recovery;
use crate::store::{LogRecord, Store};
use crate::traffic::Traffic;

/// Reports between two traffic events.
const TRAFFIC_EVERY: u32 = 4;

/// Where reports go.
pub(crate) struct Reporter {
    pub(crate) events: EventLog,
    pub(crate) metrics: NodeMetrics,
    pub(crate) traffic: Traffic,
    pub(crate) health: watch::Sender<Value>,
    pub(crate) store: Store,
    mirror: Option<Mirror>,
    reports: u32,
    connected: i64,
    /// When the merge under way of each stage was planned, and what had been fetched by then.
    planned: BTreeMap<StageIndex, (Clock, u64)>,
    refused: BTreeMap<(&'static str, &'static str), u64>,
    last_progress: Option<NodeEvent>,
    disk: Option<DiskUse>,
    stored: u64,
    /// The message number after which it was last written down that further ones may be used.
    numbered: u64,
}

impl Reporter {
    pub(crate) fn new(
        events: EventLog,
        metrics: NodeMetrics,
        traffic: Traffic,
        health: watch::Sender<Value>,
        store: Store,
        mirror: Option<Mirror>,
        numbered: u64,
    ) -> Self {
        Self {
            events,
            metrics,
            traffic,
            health,
            store,
            mirror,
            reports: 0,
            connected: 0,
            planned: BTreeMap::new(),
            refused: BTreeMap::new(),
            last_progress: None,
            disk: None,
            stored: 0,
            numbered,
        }
    }

    /// Appends to the event log. A full disk must not stop training over a report.
    pub(crate) fn event(&mut self, event: NodeEvent) {
        let was_behind = self.events.is_behind();
        match self.events.write(event) {
            Err(error) if !was_behind => tracing::warn!(%error, "events wait until they can be written"),
            Ok(()) | Err(_) => {}
        }
    }

    /// Takes what there is on the disk.
    pub(crate) fn disk(&mut self, disk: DiskUse) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.stored.set(gauge(disk.kept));
        self.metrics.disk_free.set(gauge(disk.free));
        self.disk = Some(disk);
    }

    pub(crate) fn gossip_accepted(&self) {
        self.metrics.gossip_accepted();
    }

    pub(crate) fn gossip_refused(&mut self, reason: &RejectReason) {
        if reason.is_innocent() {
            self.metrics.gossip_ignored(reason.label());
        } else {
            self.metrics.gossip_rejected(reason.label());
            self.refuse("gossip", reason.label());
        }
    }

    pub(crate) fn request_refused(&mut self, reason: &RejectReason) {
        self.metrics.rpc_rejected(reason.label());
        self.refuse("request", reason.label());
    }

    pub(crate) fn push_refused(&mut self, refusal: PushRefusal) {
        self.metrics.push_refused(refusal.label());
        if !refusal.is_passing() {
            self.refuse("push", refusal.label());
        }
    }

    fn refuse(&mut self, kind: &'static str, reason: &'static str) {
        *self.refused.entry((kind, reason)).or_default() += 1;
    }

    pub(crate) fn pushes_sent(&self) -> Counter {
        self.metrics.pushes_sent.clone()
    }

    pub(crate) fn connected(&mut self, change: i64) {
        self.connected += change;
        self.metrics.peers.set(self.connected);
    }

    pub(crate) const fn connections(&self) -> i64 {
        self.connected
    }

    /// Keeps certified entries on disk, so that this node can serve and audit them after a restart.
    pub(crate) fn log(&mut self, peer: &NodePeer) {
        let Some(certificate) = peer.log().certificate() else { return };
        if certificate.index.0 < self.stored {
            return;
        }
        let certificate_bytes = encode(certificate);
        let records: Vec<LogRecord> = (self.stored..=certificate.index.0)
            .filter_map(|index| {
                let entry = peer.log().entry_bytes(usize::try_from(index).ok()?)?.to_vec();
                Some(LogRecord { index, entry, certificate: certificate_bytes.clone() })
            })
            .collect();
        match self.store.append_log(&records) {
            Ok(()) => self.stored = certificate.index.0 + 1,
            Err(error) => tracing::warn!(%error, "log not stored"),
        }
    }

    /// Writes down what the log begins with; returns whether it is on disk.
    pub(crate) fn keep_snapshot(&self, snapshot: &Snapshot) -> bool {
        let kept = recovery::keep_snapshot(&self.store, snapshot);
        kept.inspect_err(|error| tracing::warn!(%error, "log not shortened, trying again")).is_ok()
    }

    /// Writes down that further message numbers may be used, when half of those written down are.
    fn write_numbers(&mut self, peer: &NodePeer) {
        let numbered = peer.numbered();
        if numbered < self.numbered.saturating_add(MESSAGE_NUMBERS_AHEAD / 2) {
            return;
        }
        match recovery::write_numbers(&self.store, numbered) {
            Ok(_) => self.numbered = numbered,
            Err(error) => tracing::warn!(%error, "message numbers not written down; tried again"),
        }
    }

    /// Writes down which state is in the blob store.
    pub(crate) fn remember(&self, state: &StateOffer) {
        if let Err(error) = recovery::remember(&self.store, state) {
            tracing::warn!(%error, "state of the stage not written down; a restart begins with an older one");
        }
    }

    pub(crate) fn notice(&mut self, peer: &NodePeer, notice: Notice) {
        match notice {
            Notice::State(event) => self.state_event(peer, event),
            Notice::Leader(Some(leader)) => {
                tracing::info!(leader = %leader.short(), "orchestrator");
                self.metrics.leader_changes.inc();
                self.event(NodeEvent::Leader { peer: leader });
            }
            Notice::Leader(None) => tracing::info!("no orchestrator"),
            Notice::Distrusts(candidate, why) => self.distrusts(peer, candidate, &why),
            Notice::WeightsReady(stage, version, hash) => {
                tracing::info!(stage = stage.0, version = version.0, hash = %hash.short(), "weights ready");
                self.metrics.stage.set(i64::from(stage.0));
                self.event(NodeEvent::WeightsReady { stage: stage.0, version: version.0, hash });
            }
            Notice::Snapshot(entries) => tracing::info!(entries, "the log goes on from a snapshot"),
            Notice::Diverged(index) => tracing::error!(
                entry = index.0,
                "the log names another state than the one found here: the orchestrator lies, or programs disagree; nothing from this entry on is certified"
            ),
            Notice::Queued(Some(place)) => tracing::info!(place, "the run is full; waiting for a place"),
            Notice::Queued(None) => tracing::info!("not among the first who wait for a place"),
            Notice::Refused(refusal) => tracing::warn!(%refusal, "no place in the run"),
            Notice::Arrived(arrival) => self.arrived(&arrival),
            Notice::Leaving(awaits) => {
                tracing::info!(%awaits, "leaving");
                self.event(NodeEvent::Leaving { awaits: awaits.to_string() });
            }
            Notice::Left => tracing::info!("left"),
            Notice::Room(room, disk) => self.room(room, &disk),
            Notice::Outdated(why) => tracing::error!(%why, "this program cannot go on"),
            Notice::Checked(subject, finding) => {
                let (stage, epoch) = (subject.stage.0, subject.epoch.0);
                tracing::info!(stage, epoch, peer = %subject.peer.short(), %finding, "epoch replayed");
            }
            Notice::Evaluated(epoch, seen, of) => {
                tracing::info!(epoch = epoch.0, seen, of, "merge evaluated");
            }
            Notice::Suspected(suspicion) => self.suspected(&suspicion),
            Notice::JobFailed(reason) => tracing::warn!(reason, "job failed"),
        }
    }

    /// Another candidate is not taken for a leader any more. What it signed is kept for everybody to check.
    fn distrusts(&mut self, peer: &NodePeer, candidate: PeerId, why: &Distrust) {
        let proof = match why {
            Distrust::Equivocates(signed) => {
                let (spec, signed) = (peer.state().spec().clone(), (**signed).clone());
                let written = SignedTwice { spec, peer: candidate, signed }.write(self.events.folder());
                written.inspect_err(|error| tracing::warn!(%error, "proof not written")).ok()
            }
            Distrust::Undone(_) => None,
        };
        tracing::warn!(
            candidate = %candidate.short(), %why, proof = ?proof,
            "a candidate is not taken for a leader any more; if all who are heard see it so, another one leads"
        );
        self.event(NodeEvent::Distrusted { peer: candidate, why: why.to_string(), proof });
    }

    /// Losses name a miner.
    fn suspected(&mut self, suspicion: &Suspicion) {
        let Suspicion { stage, peer, epoch, samples, effect, errors } = *suspicion;
        let (stage, epoch) = (stage.0, epoch.0);
        tracing::warn!(stage, epoch, peer = %peer.short(), samples, effect, errors, "samples of this miner end with a higher loss");
        self.event(NodeEvent::Suspected { stage, epoch, peer, samples: samples as u64, effect, errors });
    }

    /// A first contribution of this process counts.
    fn arrived(&mut self, arrival: &Arrival) {
        let [connected, admitted, ready, counted] = steps(arrival);
        tracing::info!(connected, admitted, ready, counted, "joined: a first contribution counts");
        self.metrics.joined(arrival);
        self.event(NodeEvent::Joined {
            connected_seconds: connected,
            admitted_seconds: admitted,
            ready_seconds: ready,
            counted_seconds: counted,
        });
    }

    /// Something about validators and what they check.
    fn check_event(&mut self, event: StateEvent) {
        match event {
            StateEvent::Enlisted(validator) => {
                tracing::info!(peer = %validator.short(), "enlisted as validator");
            }
            StateEvent::Dismissed(validator, reason) => {
                tracing::info!(peer = %validator.short(), %reason, "validator dismissed");
                self.event(NodeEvent::Dismissed { peer: validator, reason: reason.to_string() });
            }
            StateEvent::Judged(subject, validator, finding) => {
                let (stage, epoch, validator) = (subject.stage.0, subject.epoch.0, validator.short());
                tracing::debug!(stage, epoch, peer = %subject.peer.short(), validator, %finding, "verdict");
            }
            StateEvent::Checked(subject, outcome) => self.checked(&subject, outcome),
            StateEvent::StoodOut(stage, epoch, members) => {
                for member in members {
                    tracing::info!(stage = stage.0, epoch = epoch.0, peer = %member.short(), "contribution stands out, it is checked");
                }
            }
            StateEvent::Evaluated(epoch, evaluator) => {
                tracing::debug!(epoch = epoch.0, evaluator = %evaluator.short(), "evaluation");
            }
            StateEvent::Rated(epoch) => tracing::info!(epoch = epoch.0, "contributions are rated"),
            _ => {}
        }
    }

    /// Validators have agreed on a miner's epoch.
    fn checked(&mut self, subject: &Subject, outcome: Outcome) {
        let Subject { stage, epoch, peer, .. } = *subject;
        let (stage, epoch, name) = (stage.0, epoch.0, peer.short());
        match outcome {
            Outcome::Passed => tracing::info!(stage, epoch, peer = %name, "check passed"),
            Outcome::Failed(fault) => tracing::warn!(stage, epoch, peer = %name, %fault, "check failed"),
            Outcome::Unproven => tracing::warn!(stage, epoch, peer = %name, "nobody could check an epoch"),
        }
        self.event(NodeEvent::Checked { stage, epoch, peer, outcome: outcome.to_string() });
    }

    fn room(&mut self, room: Room, disk: &DiskUse) {
        let DiskUse { kept, quota, free, .. } = *disk;
        let lack = match room {
            Room::Enough => None,
            Room::Near => Some((disk.near_mark(), "little room on the disk: no more work is taken")),
            Room::Full => Some((disk.full_mark(), "no room on the disk: training stops until there is some")),
        };
        match lack {
            None => tracing::info!(kept, quota, free, "there is room on the disk, asking for a place"),
            Some((need, lack)) => tracing::warn!(
                kept,
                quota,
                free,
                need,
                "{lack}, what is here is served; free some, or raise --disk-quota"
            ),
        }
        self.metrics.room(room);
        let room = room.label().to_owned();
        self.event(NodeEvent::Room { room, kept_bytes: kept, quota_bytes: quota, free_bytes: free });
    }

    fn state_event(&mut self, peer: &NodePeer, event: StateEvent) {
        let own = |stage: StageIndex| peer.state().stage_of(peer.id()) == Some(stage);
        match event {
            StateEvent::Admitted(member, stage) => self.placed(peer, member, stage, "admitted"),
            StateEvent::Evicted(member, reason) => {
                tracing::info!(peer = %member.short(), %reason, "evicted");
                self.event(NodeEvent::Evicted { peer: member, reason: reason.to_string() });
            }
            StateEvent::Moved(member, stage) => self.placed(peer, member, stage, "moved"),
            StateEvent::Deposed(leader) => {
                tracing::info!(peer = %leader.short(), "deposed: it led and left undone what should be decided");
            }
            StateEvent::SpeedLimited(member, speed_milli) => {
                tracing::info!(peer = %member.short(), speed_milli, "speed limited: epochs were longer for believing what members say");
            }
            StateEvent::EpochOpened(stage, epoch, members) => {
                tracing::info!(stage = stage.0, epoch = epoch.0, members, "epoch opened");
                self.metrics.epochs.inc_by(u64::from(own(stage)));
                let samples = peer.state().spec().training.samples_per_epoch;
                let members = u32::try_from(members).unwrap_or(u32::MAX);
                self.event(NodeEvent::EpochOpened { stage: stage.0, epoch: epoch.0, members, samples });
            }
            StateEvent::Released(stage, epoch, member) => {
                self.released(stage, epoch.0, member, "missed the epoch's deadline")
            }
            StateEvent::Skipped(stage, epoch) => {
                tracing::warn!(stage = stage.0, epoch = epoch.0, "epoch passed over: what it takes is gone");
            }
            StateEvent::Snapshot(entries) => tracing::debug!(entries, "the log names the state"),
            StateEvent::Undone(stage, epoch) => {
                let (stage, epoch) = (stage.0, epoch.0);
                tracing::warn!(stage, epoch, "merge passed over: everybody who had it is gone");
                self.event(NodeEvent::Undone { stage, epoch });
            }
            StateEvent::Aborted(stage, epoch, lost) => {
                for member in lost {
                    self.released(stage, epoch.0, member, "contribution missing from the merge");
                }
            }
            StateEvent::CutOff(stage, epoch) => {
                tracing::warn!(stage = stage.0, epoch = epoch.0, "epoch cut off")
            }
            StateEvent::Planned(stage, epoch, attempt, submitters) => {
                tracing::info!(stage = stage.0, epoch = epoch.0, attempt, submitters, "merge planned");
                self.planned.insert(stage, (Clock::now(), self.traffic.bytes().blob_in));
                let (attempt, submitters) =
                    (u32::from(attempt), u32::try_from(submitters).unwrap_or(u32::MAX));
                self.event(NodeEvent::MergePlanned { stage: stage.0, epoch: epoch.0, attempt, submitters });
            }
            StateEvent::Reassigned(stage, epoch, partition, owner) => {
                tracing::warn!(stage = stage.0, epoch = epoch.0, partition = partition.0, owner = %owner.short(), "partition given to a further owner");
            }
            StateEvent::Merged(stage, epoch, samples, loss) => {
                self.merged(stage, epoch, samples, loss);
                self.metrics.merges.inc_by(u64::from(own(stage)));
            }
            StateEvent::Enlisted(_)
            | StateEvent::Dismissed(..)
            | StateEvent::Judged(..)
            | StateEvent::Checked(..)
            | StateEvent::StoodOut(..)
            | StateEvent::Evaluated(..)
            | StateEvent::Rated(_) => self.check_event(event),
            StateEvent::Checkpointed(epoch) => {
                tracing::info!(epoch = epoch.0, "checkpoint complete");
                self.event(NodeEvent::Checkpointed { epoch: epoch.0 });
            }
            StateEvent::Upgraded(version) => tracing::info!(version, "wire version upgraded"),
            StateEvent::Finished => tracing::info!("run finished"),
        }
    }

    /// A miner has a place in a stage.
    fn placed(&mut self, peer: &NodePeer, member: PeerId, stage: StageIndex, what: &str) {
        tracing::info!(peer = %member.short(), stage = stage.0, "{what}");
        if member == peer.id() {
            self.event(NodeEvent::Admitted { stage: stage.0 });
        }
    }

    fn merged(&mut self, stage: StageIndex, epoch: Epoch, samples: u64, loss: Option<f64>) {
        let (since, fetched) = self.planned.remove(&stage).unwrap_or_else(|| (Clock::now(), 0));
        let seconds = since.elapsed().as_secs_f64();
        tracing::info!(stage = stage.0, epoch = epoch.0, samples, loss, seconds, "merged");
        let bytes_fetched = self.traffic.bytes().blob_in.saturating_sub(fetched);
        let samples = u32::try_from(samples).unwrap_or(u32::MAX);
        let (stage, epoch) = (stage.0, epoch.0);
        self.event(NodeEvent::MergeClosed { stage, epoch, seconds, bytes_fetched, loss, samples });
    }

    fn released(&mut self, stage: StageIndex, epoch: u32, member: PeerId, reason: &str) {
        tracing::warn!(peer = %member.short(), stage = stage.0, epoch, reason, "released from the epoch");
        self.event(NodeEvent::Released { stage: stage.0, epoch, peer: member, reason: reason.to_owned() });
    }

    /// Progress, traffic, metrics and health, a few times a second.
    pub(crate) fn report(&mut self, peer: &NodePeer) {
        self.reports += 1;
        self.write_numbers(peer);
        self.metrics.log_index.set(i64::try_from(peer.state().applied()).unwrap_or(i64::MAX) - 1);
        let phase = phase(peer);
        if let Some((stage, epoch, share)) = peer.miner().and_then(|miner| miner.progress()) {
            let loss =
                share.loss_micro.filter(|_| share.done > 0).map(|sum| mean_nats(sum, u64::from(share.done)));
            if let Some(loss) = loss {
                self.metrics.loss.set(loss);
            }
            let tokens_total = peer.miner().map_or(0, |miner| miner.tokens());
            let progress = NodeEvent::Progress {
                stage: stage.0,
                epoch: epoch.0,
                done: share.done,
                assigned: share.dealt,
                tokens_total,
                loss,
                phase: phase.to_owned(),
            };
            if self.last_progress.as_ref() != Some(&progress) {
                self.last_progress = Some(progress.clone());
                self.event(progress);
            }
        }
        self.health.send_replace(self.describe(peer, phase));
        if self.reports.is_multiple_of(TRAFFIC_EVERY) {
            self.traffic_event();
        }
    }

    /// Bytes moved and messages refused, to the event log.
    pub(crate) fn traffic_event(&mut self) {
        let bytes = self.traffic.bytes();
        self.event(NodeEvent::Traffic {
            gossip_in: bytes.gossip_in,
            gossip_out: bytes.gossip_out,
            rpc_in: bytes.rpc_in,
            rpc_out: bytes.rpc_out,
            push_in: bytes.push_in,
            push_out: bytes.push_out,
            blobs_in: bytes.blob_in,
            blobs_out: bytes.blob_out,
        });
        for ((kind, reason), count) in std::mem::take(&mut self.refused) {
            self.event(NodeEvent::Refused { kind: kind.to_owned(), reason: reason.to_owned(), count });
        }
    }

    fn describe(&self, peer: &NodePeer, phase: &str) -> Value {
        let state = peer.state();
        let weights = peer.miner().and_then(|miner| miner.weights());
        let stages: Vec<Value> = state
            .spec()
            .stages()
            .zip(state.stages())
            .map(|(index, stage)| json!({ "stage": index.0, "version": stage.version.0, "replicas": state.replicas(index).count() }))
            .collect();
        json!({
            "peer": peer.id(),
            "run": state.spec().run_id(),
            "stage": state.stage_of(peer.id()),
            "phase": phase,
            "joined": joined(peer.arrival()),
            "queued": peer.queued(),
            "refused": peer.refused().map(ToString::to_string),
            "leaving": peer.leaves().map(|awaits| awaits.to_string()),
            "weights": weights.map(|weights| json!({ "version": weights.version, "hash": weights.hash })),
            "evicted": state.eviction(peer.id()).map(|reason| reason.to_string()),
            "leader": peer.leader(),
            "log": state.applied(),
            "wire_version": state.wire_version(),
            "wire_version_max": WIRE_VERSION,
            "connected": self.connected,
            "stages": stages,
            "checkpoint": state.checkpoint().map(|checkpoint| checkpoint.epoch),
            "mirror": self.mirror.as_ref().map(Mirror::health),
            "disk": self.disk.map(|disk| json!({
                "room": peer.room().label(),
                "kept_bytes": disk.kept,
                "quota_bytes": disk.quota,
                "free_bytes": disk.free,
            })),
            "finished": state.finished(),
        })
    }
}

/// Seconds from the start to each step of joining: connected, admitted, ready, counted. Nothing for those that are to come.
fn steps(arrival: &Arrival) -> [Option<f64>; 4] {
    [arrival.connected, arrival.admitted, arrival.ready, arrival.counted]
        .map(|time| time.as_ref().map(Duration::as_secs_f64))
}

/// [`steps`] as JSON.
fn joined(arrival: &Arrival) -> Value {
    let [connected, admitted, ready, counted] = steps(arrival);
    json!({ "connected": connected, "admitted": admitted, "ready": ready, "counted": counted })
}

/// What a node is doing, in a word.
fn phase(peer: &NodePeer) -> &'static str {
    let state = peer.state();
    if state.finished() {
        return "finished";
    }
    let Some(_) = peer.miner() else { return "watching" };
    if peer.room() == Room::Full {
        return "no room";
    }
    let Some(stage) = state.stage_of(peer.id()).and_then(|stage| state.stage(stage)) else {
        return "joining";
    };
    match &stage.phase {
        Phase::Waiting if stage.version.0 >= state.spec().training.epochs => "done",
        Phase::Waiting => "waiting",
        Phase::Training(_) => "training",
        Phase::Merging(..) => "merging",
    }
}
