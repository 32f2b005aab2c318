//! What `up` knows about the swarm: a fold of the event logs of all its processes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use iota_protocol::{Hash, PeerId};
use serde::Serialize;

use crate::events::{NodeEvent, TimedEvent};

/// Over how long the rate of tokens is averaged.
const RATE_WINDOW_MS: u64 = 10_000;

/// Bytes moved by one process or by all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Gossip received and sent.
    pub gossip: [u64; 2],
    /// Requests and responses received and sent.
    pub rpc: [u64; 2],
    /// Activations and gradients received and sent.
    pub push: [u64; 2],
    /// Blobs fetched and served.
    pub blobs: [u64; 2],
}

impl Traffic {
    /// Bytes received and sent on all paths.
    #[must_use]
    pub fn total(&self) -> [u64; 2] {
        [0, 1].map(|way| self.gossip[way] + self.rpc[way] + self.push[way] + self.blobs[way])
    }

    /// Adds another process's bytes.
    pub fn add(&mut self, other: &Self) {
        for way in [0, 1] {
            self.gossip[way] += other.gossip[way];
            self.rpc[way] += other.rpc[way];
            self.push[way] += other.push[way];
            self.blobs[way] += other.blobs[way];
        }
    }
}

/// How a process ended its part of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// The stage it held, if it was a miner.
    pub stage: Option<u16>,
    /// Version of its weights.
    pub version: u32,
    /// Their hash.
    pub hash: Option<Hash>,
    /// The file it wrote them to.
    pub checkpoint: Option<PathBuf>,
}

/// One process.
#[derive(Clone, Debug, Default)]
pub struct PeerView {
    /// Who it is, once it started.
    pub peer: Option<PeerId>,
    /// Where others dial it.
    pub multiaddrs: Vec<String>,
    /// Where its metrics are.
    pub http: Option<String>,
    /// The stage it was last assigned to.
    pub stage: Option<u16>,
    /// Samples finished and assigned in the open epoch.
    pub samples: (u32, u32),
    /// Tokens trained on.
    pub tokens: u64,
    /// A word for what it is doing.
    pub phase: String,
    /// Bytes it moved.
    pub traffic: Traffic,
    /// Seconds from the start of its newest process to the first merge with its contribution.
    pub join_seconds: Option<f64>,
    /// Version and hash of the weights it last had ready.
    pub weights: Option<(u32, Hash)>,
    /// Set by its last event.
    pub finish: Option<Finish>,
}

/// What a stage is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum StagePhase {
    /// Waiting for miners or for the next epoch.
    #[default]
    Waiting,
    /// An epoch is open.
    Training,
    /// A merge was planned.
    Merging,
    /// All epochs are merged.
    Finished,
}

/// One stage.
#[derive(Clone, Debug, Default)]
pub struct StageView {
    /// The latest epoch that opened.
    pub epoch: u32,
    /// Its replicas.
    pub members: u32,
    /// Its samples.
    pub samples: u32,
    /// What happens in it.
    pub phase: StagePhase,
    /// Plans of the current merge beyond the first.
    pub attempt: u32,
    /// Latest training loss known, in nats per token.
    pub loss: Option<f64>,
    rate: VecDeque<(u64, u64)>,
}

impl StageView {
    /// Tokens per second over the last seconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn tokens_per_second(&self) -> f64 {
        let (Some(first), Some(last)) = (self.rate.front(), self.rate.back()) else { return 0.0 };
        let ms = last.0.saturating_sub(first.0);
        if ms == 0 { 0.0 } else { last.1.saturating_sub(first.1) as f64 * 1000.0 / ms as f64 }
    }
}

/// One merged epoch of one stage: a line of `epochs.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochRecord {
    /// The stage.
    pub stage: u16,
    /// The epoch.
    pub epoch: u32,
    /// Seconds from the first epoch's opening to this merge.
    pub at_seconds: f64,
    /// Replicas that took part.
    pub members: u32,
    /// Replicas whose contributions were merged.
    pub submitters: u32,
    /// Samples that went into it.
    pub samples: u32,
    /// Seconds from plan to outcome.
    pub merge_seconds: f64,
    /// Bytes fetched for the merge, over all replicas.
    pub bytes_fetched: u64,
    /// Mean training loss in nats per token.
    pub loss: Option<f64>,
    /// Hash of the merged weights.
    pub weights: Option<Hash>,
}

/// Something a person wants to read once.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// An epoch of a stage was merged.
    Merged {
        /// The stage.
        stage: u16,
        /// The epoch.
        epoch: u32,
    },
    /// Anything else, as text.
    Text(String),
}

/// The swarm as its event logs tell it.
#[derive(Clone, Debug)]
pub struct SwarmView {
    /// The processes by index.
    pub peers: Vec<PeerView>,
    /// The stages.
    pub stages: Vec<StageView>,
    /// Merged epochs.
    pub epochs: BTreeMap<(u32, u16), EpochRecord>,
    /// Who leads.
    pub leader: Option<PeerId>,
    /// When the first epoch opened, in Unix milliseconds.
    pub opened_ms: Option<u64>,
    /// When the last new weights were ready, in Unix milliseconds.
    pub ready_ms: Option<u64>,
    /// Number of epochs of the run.
    pub epochs_total: u32,
    /// Rises whenever something moves forward; two equal values mean that nothing did.
    pub progress: u64,
    told: BTreeSet<String>,
}

impl SwarmView {
    /// A swarm of `stages` stages of which nothing is known.
    #[must_use]
    pub fn new(stages: u16, epochs_total: u32) -> Self {
        Self {
            peers: Vec::new(),
            stages: vec![StageView::default(); usize::from(stages)],
            epochs: BTreeMap::new(),
            leader: None,
            opened_ms: None,
            ready_ms: None,
            epochs_total,
            progress: 0,
            told: BTreeSet::new(),
        }
    }

    /// The latest epoch that any stage opened.
    #[must_use]
    pub fn latest_epoch(&self) -> Option<u32> {
        self.opened_ms.and_then(|_| self.stages.iter().map(|stage| stage.epoch).max())
    }

    /// Whether every stage has merged its last epoch.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stages.iter().all(|stage| stage.phase == StagePhase::Finished)
    }

    /// Seconds from the first epoch's opening to the last new weights.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a span of seconds for people")]
    pub fn training_seconds(&self) -> f64 {
        let (Some(start), Some(end)) = (self.opened_ms, self.ready_ms) else { return 0.0 };
        end.saturating_sub(start) as f64 / 1000.0
    }

    /// Mean training loss of `epoch`: the tail's, else any stage's.
    #[must_use]
    pub fn loss_of(&self, epoch: u32) -> Option<f64> {
        self.epochs.range((epoch, 0)..=(epoch, u16::MAX)).rev().find_map(|(_, record)| record.loss)
    }

    /// Bytes moved by all processes together.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let mut total = Traffic::default();
        for peer in &self.peers {
            total.add(&peer.traffic);
        }
        total
    }

    /// Takes in an event of the process `index` and returns what is worth telling.
    pub fn apply(&mut self, index: usize, timed: TimedEvent) -> Option<Notice> {
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, PeerView::default);
        }
        let TimedEvent { t_ms, event } = timed;
        match event {
            NodeEvent::Started { peer, multiaddrs, http, .. } => {
                let view = self.peers.get_mut(index)?;
                (view.peer, view.multiaddrs, view.http) = (Some(peer), multiaddrs, http);
                self.progress += 1;
                None
            }
            NodeEvent::Leader { peer } => self.lead(peer),
            NodeEvent::Admitted { stage } => {
                self.peers.get_mut(index)?.stage = Some(stage);
                self.progress += 1;
                None
            }
            NodeEvent::Progress { .. } => {
                self.step(index, t_ms, event);
                None
            }
            NodeEvent::Joined { counted_seconds, .. } => {
                self.peers.get_mut(index)?.join_seconds = counted_seconds;
                None
            }
            NodeEvent::Traffic {
                gossip_in,
                gossip_out,
                rpc_in,
                rpc_out,
                push_in,
                push_out,
                blobs_in,
                blobs_out,
            } => {
                self.peers.get_mut(index)?.traffic = Traffic {
                    gossip: [gossip_in, gossip_out],
                    rpc: [rpc_in, rpc_out],
                    push: [push_in, push_out],
                    blobs: [blobs_in, blobs_out],
                };
                None
            }
            NodeEvent::Finished { stage, version, hash, checkpoint } => {
                self.peers.get_mut(index)?.finish = Some(Finish { stage, version, hash, checkpoint });
                self.progress += 1;
                None
            }
            NodeEvent::Refused { .. } => None,
            NodeEvent::Evicted { .. }
            | NodeEvent::Checked { .. }
            | NodeEvent::Suspected { .. }
            | NodeEvent::Dismissed { .. }
            | NodeEvent::Distrusted { .. }
            | NodeEvent::Leaving { .. }
            | NodeEvent::Released { .. }
            | NodeEvent::Checkpointed { .. }
            | NodeEvent::Undone { .. }
            | NodeEvent::Room { .. } => self.tell(index, event),
            NodeEvent::EpochOpened { .. }
            | NodeEvent::MergePlanned { .. }
            | NodeEvent::MergeClosed { .. }
            | NodeEvent::WeightsReady { .. } => self.apply_stage(index, t_ms, event),
        }
    }

    /// What people are told of an event, the first time that some process reports it.
    fn tell(&mut self, index: usize, event: NodeEvent) -> Option<Notice> {
        match event {
            NodeEvent::Evicted { peer, reason } => {
                self.once(format!("peer {} was evicted: {reason}", peer.short()))
            }
            NodeEvent::Checked { stage, epoch, peer, outcome } if outcome != "passed" => self.once(format!(
                "validators replayed epoch {epoch} of peer {} in stage {stage}: {outcome}",
                peer.short()
            )),
            NodeEvent::Suspected { stage, peer, effect, errors, .. } => self.once(format!(
                "samples through peer {} in stage {stage} end with a loss higher by {effect:.3}, {errors:.1} standard errors",
                peer.short()
            )),
            NodeEvent::Dismissed { peer, reason } => {
                self.once(format!("validator {} was dismissed: {reason}", peer.short()))
            }
            NodeEvent::Leaving { awaits } => {
                self.once(format!("process {index} leaves, and waits for {awaits}"))
            }
            NodeEvent::Released { stage, epoch, peer, reason } => self.once(format!(
                "peer {} was released from epoch {epoch} of stage {stage}: {reason}",
                peer.short()
            )),
            NodeEvent::Checkpointed { epoch } => {
                self.once(format!("checkpoint of epoch {epoch} is complete in the mirror"))
            }
            NodeEvent::Undone { stage, epoch } => self.once(format!(
                "the merge of epoch {epoch} of stage {stage} was passed over: everybody who had it is gone"
            )),
            NodeEvent::Room { room, kept_bytes, free_bytes, .. } => self.once(format!(
                "process {index}: room on the disk is {room}, {kept_bytes} bytes are kept and {free_bytes} free"
            )),
            _ => None,
        }
    }

    /// Takes in what the process `index` says of a stage. Every replica reports it; the first report counts.
    fn apply_stage(&mut self, index: usize, t_ms: u64, event: NodeEvent) -> Option<Notice> {
        match event {
            NodeEvent::EpochOpened { stage, epoch, members, samples } => {
                self.opened_ms = Some(self.opened_ms.map_or(t_ms, |first| first.min(t_ms)));
                let closed = self.epochs.get(&(epoch, stage)).is_some_and(|record| record.samples > 0);
                let view = self.stages.get_mut(usize::from(stage))?;
                if !closed && (epoch, StagePhase::Waiting) >= (view.epoch, view.phase) {
                    (view.epoch, view.members, view.samples, view.attempt) = (epoch, members, samples, 0);
                    view.phase = StagePhase::Training;
                    self.progress += 1;
                }
                None
            }
            NodeEvent::MergePlanned { stage, epoch, attempt, submitters } => {
                let at_seconds = self.seconds_at(t_ms);
                let view = self.stages.get_mut(usize::from(stage))?;
                if epoch == view.epoch && view.phase == StagePhase::Training {
                    view.phase = StagePhase::Merging;
                    self.progress += 1;
                }
                view.attempt = attempt;
                let members = view.members;
                let record = self
                    .epochs
                    .entry((epoch, stage))
                    .or_insert_with(|| EpochRecord::new(stage, epoch, at_seconds));
                (record.submitters, record.members) = (submitters, members);
                None
            }
            NodeEvent::MergeClosed { stage, epoch, seconds, bytes_fetched, loss, samples } => self.close(
                t_ms,
                EpochRecord {
                    merge_seconds: seconds,
                    bytes_fetched,
                    loss,
                    samples,
                    ..EpochRecord::new(stage, epoch, 0.0)
                },
            ),
            NodeEvent::WeightsReady { stage, version, hash } => {
                self.peers.get_mut(index)?.weights = Some((version, hash));
                if version > 0 {
                    self.ready_ms = Some(self.ready_ms.map_or(t_ms, |last| last.max(t_ms)));
                    if let Some(record) = self.epochs.get_mut(&(version - 1, stage)) {
                        record.weights.get_or_insert(hash);
                    }
                }
                self.progress += 1;
                None
            }
            _ => None,
        }
    }

    fn close(&mut self, t_ms: u64, report: EpochRecord) -> Option<Notice> {
        let (stage, epoch, at_seconds) = (report.stage, report.epoch, self.seconds_at(t_ms));
        let view = self.stages.get_mut(usize::from(stage))?;
        view.loss = report.loss.or(view.loss);
        let is_last = epoch.saturating_add(1) >= self.epochs_total;
        if view.epoch == epoch {
            view.phase = if is_last { StagePhase::Finished } else { StagePhase::Waiting };
        }
        let record =
            self.epochs.entry((epoch, stage)).or_insert_with(|| EpochRecord::new(stage, epoch, at_seconds));
        record.bytes_fetched += report.bytes_fetched;
        record.loss = record.loss.or(report.loss);
        if record.samples > 0 {
            return None;
        }
        (record.samples, record.merge_seconds, record.at_seconds) =
            (report.samples, report.merge_seconds, at_seconds);
        self.progress += 1;
        Some(Notice::Merged { stage, epoch })
    }

    /// Notes how far a process is and keeps the rate of its stage.
    fn step(&mut self, index: usize, t_ms: u64, event: NodeEvent) {
        let NodeEvent::Progress { stage, epoch: _, done, assigned, tokens_total, loss, phase } = event else {
            return;
        };
        let Some(view) = self.peers.get_mut(index) else { return };
        if tokens_total > view.tokens || done > view.samples.0 {
            self.progress += 1;
        }
        (view.stage, view.samples, view.tokens) = (Some(stage), (done, assigned), tokens_total);
        view.phase = phase;
        let total = self.peers.iter().filter(|peer| peer.stage == Some(stage)).map(|peer| peer.tokens).sum();
        let Some(stage) = self.stages.get_mut(usize::from(stage)) else { return };
        stage.loss = loss.or(stage.loss);
        stage.rate.push_back((t_ms, total));
        while stage.rate.front().is_some_and(|(then, _)| then + RATE_WINDOW_MS < t_ms) {
            stage.rate.pop_front();
        }
    }

    fn lead(&mut self, peer: PeerId) -> Option<Notice> {
        if self.leader == Some(peer) {
            return None;
        }
        self.leader = Some(peer);
        Some(Notice::Text(format!("peer {} is the orchestrator", peer.short())))
    }

    /// Tells a text that several processes report only once.
    fn once(&mut self, text: String) -> Option<Notice> {
        self.told.insert(text.clone()).then_some(Notice::Text(text))
    }

    #[expect(clippy::cast_precision_loss, reason = "a span of seconds for people")]
    fn seconds_at(&self, t_ms: u64) -> f64 {
        self.opened_ms.map_or(0.0, |start| t_ms.saturating_sub(start) as f64 / 1000.0)
    }
}

impl EpochRecord {
    fn new(stage: u16, epoch: u32, at_seconds: f64) -> Self {
        Self {
            stage,
            epoch,
            at_seconds,
            members: 0,
            submitters: 0,
            samples: 0,
            merge_seconds: 0.0,
            bytes_fetched: 0,
            loss: None,
            weights: None,
        }
    }
}
