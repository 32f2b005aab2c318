//! Drives one protocol peer over the real network, disk and clock.
//!
//! One task owns the peer. It waits in [`Driver::next`], which is cancel-safe and decides nothing, and
//! handles what came in [`Driver::handle`], which is synchronous and does everything; then it carries
//! out the peer's actions, none of which it waits for.
//!
//! ```text
//!  libp2p ──NetEvent──┐                                   ┌── publish, request, respond ──▶ libp2p
//!  iroh ──pushes──────┤      ┌───────────────────────┐    ├── push, fetch (tasks) ────────▶ iroh
//!  tasks ──results────┼────▶ │ Peer (iota-protocol)  │ ───┼── store, release ────────────▶ vault
//!  engine ──JobDone───┤      └───────────────────────┘    ├── job ───────────────────────▶ engine thread
//!  clock ─────────────┘                                   └── notice ────────────────────▶ event log, metrics
//! ```
//!
//! **Invariant:** no rule of the protocol is written here.

mod cache;
pub(crate) mod engine_thread;
mod history;
mod mirror;
pub(crate) mod moments;
pub(crate) mod poison;
mod reporter;
pub(crate) mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iota_protocol::join::Refusal;
use iota_protocol::limits::ADDRESSES_MAX;
use iota_protocol::log::LogBytes;
use iota_protocol::miner::{Action, JobDone};
use iota_protocol::peer::departure::Awaits;
use iota_protocol::peer::room::DiskUse;
use iota_protocol::peer::{Addresses, Peer};
use iota_protocol::wire::Outdated;
use iota_protocol::wire::frame::{PushAck, PushHeader, PushRefusal, check_payload};
use iota_protocol::wire::message::{StateOffer, Topic};
use iota_protocol::{Epoch, Hash, Instant, PeerId, RunId, RunSpec, StageIndex};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::blobs::{DataError, DataPlane};
use crate::disk::DiskWatch;
use crate::mirror::Mirror;
use crate::net::{self, NetEvent, NetHandle, Reply, Verdict};
use crate::push::IncomingPush;
use crate::run::Stop;
use crate::store::PaxosStorage;
use engine_thread::Order;
use history::History;
use mirror::Keeping;
use moments::MomentsFolder;
pub(crate) use reporter::Reporter;
use vault::Vault;

/// Pushed payloads above this size are checked off the async threads.
const CHECK_INLINE_BYTES: usize = 256 * 1024;
/// Connections below which a node dials peers it hears of: gossipsub's mesh with room for losses.
const CONNECTIONS_WANTED: i64 = 12;
/// How long a candidate stays to write down the last checkpoint of a finished run: two tries of a mirror that is down.
const LAST_CHECKPOINT_KEPT: Duration = Duration::from_secs(120);
/// Between two looks at progress, for the event log, metrics and `/health`.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// Orders to the engine, and what it has done.
pub(crate) type EngineChannels = (mpsc::UnboundedSender<Order>, mpsc::UnboundedReceiver<JobDone>);

/// What the owner loop is given.
pub(crate) struct Parts {
    pub(crate) peer: NodePeer,
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) net: NetHandle,
    pub(crate) net_events: mpsc::Receiver<NetEvent>,
    pub(crate) plane: DataPlane,
    pub(crate) pushes: mpsc::Receiver<IncomingPush>,
    pub(crate) vault: Vault,
    pub(crate) disk: DiskWatch,
    pub(crate) mirror: Option<Mirror>,
    pub(crate) moments: MomentsFolder,
    pub(crate) engine: Option<EngineChannels>,
    pub(crate) reporter: Reporter,
}

/// The end of something the peer asked for, or a push that was checked.
enum Completion {
    Response { id: u64, bytes: Option<Vec<u8>> },
    Pushed { id: u64, to: PeerId, ack: Option<PushAck> },
    Fetched { id: u64, bytes: Option<Bytes> },
    Stored { id: u64, kept: bool },
    Mirrored { id: u64, there: bool },
    MomentsMirrored { id: u64, hash: Option<Hash> },
    CheckpointKept(bool),
    LogMirrored(u64),
    Checked { push: Box<IncomingPush>, header: Result<PushHeader, PushRefusal> },
    Listening(Vec<Multiaddr>),
    Looked(std::io::Result<DiskUse>),
    Done,
}

/// What woke the loop.
enum Input {
    Net(NetEvent),
    Push(IncomingPush),
    Completed(Completion),
    Job(JobDone),
    Timeout,
    Report,
    Leave,
    Cancelled,
    Closed,
}

/// Why the loop ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The run is finished; the weights held, if a miner.
    Finished,
    /// Asked to leave, and nobody needs it any more.
    Left,
    /// Asked to stop.
    Cancelled,
    /// No bootstrap peer answered in time.
    Unreachable,
    /// The engine cannot go on.
    Engine(String),
    /// The run uses a wire version that this program does not speak.
    Outdated(Outdated),
    /// The run gives this peer no place, and will not.
    NotAdmitted(Refusal),
    /// A part of the node is gone; that is a bug.
    Closed,
}

/// The owner of a peer.
pub(crate) struct Driver {
    parts: Parts,
    tasks: JoinSet<Completion>,
    tickets: BTreeMap<u64, Reply>,
    next_ticket: u64,
    started: tokio::time::Instant,
    report: tokio::time::Interval,
    bootstrap_until: Option<tokio::time::Instant>,
    finished_at: Option<Instant>,
    leaving: bool,
    /// Whether somebody looks at the disk.
    looking: bool,
    run: RunId,
    keeping: Keeping,
    history: History,
}

impl Driver {
    /// A driver of `parts`; with a bootstrap deadline if somebody has to be reached by then.
    pub(crate) fn new(parts: Parts, bootstrap_within: Option<Duration>) -> Self {
        let started = tokio::time::Instant::now();
        let mut report = tokio::time::interval(REPORT_EVERY);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            run: parts.spec.run_id(),
            history: History::new(
                parts.mirror.is_some() && parts.spec.candidate_index(parts.peer.id()).is_some(),
                parts.reporter.store.log_first().unwrap_or(0),
            ),
            keeping: Keeping::default(),
            parts,
            tasks: JoinSet::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            started,
            report,
            bootstrap_until: bootstrap_within.map(|within| started + within),
            finished_at: None,
            leaving: false,
            looking: false,
        }
    }

    fn now(&self) -> Instant {
        // Never zero, which the protocol takes for "not yet".
        let nanos = self.started.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1))
    }

    /// Runs until the run is finished, `stop` says so, or something essential fails.
    pub(crate) async fn run(&mut self, stop: Stop) -> Ended {
        let listen = self.parts.net.snapshot().await.listen;
        self.tell_addresses(self.now(), &listen);
        self.look();
        loop {
            let input = self.next(&stop).await;
            let now = self.now();
            if let Some(ended) = self.handle(now, input) {
                return ended;
            }
            self.act();
            self.parts.reporter.log(&self.parts.peer);
            if let Some(outdated) = self.parts.peer.outdated() {
                return Ended::Outdated(outdated);
            }
            if let Some(refusal) = self.parts.peer.refused().filter(|refusal| refusal.is_final()).cloned() {
                self.quit(now);
                return Ended::NotAdmitted(refusal);
            }
            if self.parts.peer.has_left() {
                self.quit(now);
                return Ended::Left;
            }
        }
    }

    /// Says that this node is gone.
    fn quit(&mut self, now: Instant) {
        self.parts.peer.quit(now);
        self.act();
    }

    /// Waits for the next input. Cancel-safe.
    async fn next(&mut self, stop: &Stop) -> Input {
        let wake = self.started + Duration::from_nanos(self.parts.peer.deadline().as_nanos());
        let job = async {
            match &mut self.parts.engine {
                Some((_, results)) => results.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.now.cancelled() => Input::Cancelled,
            () = stop.leave.cancelled(), if !self.leaving => Input::Leave,
            done = job => done.map_or(Input::Closed, Input::Job),
            Some(completed) = self.tasks.join_next() => Input::Completed(completed.unwrap_or(Completion::Done)),
            push = self.parts.pushes.recv() => push.map_or(Input::Closed, Input::Push),
            event = self.parts.net_events.recv() => event.map_or(Input::Closed, Input::Net),
            _ = self.report.tick() => Input::Report,
            () = tokio::time::sleep_until(wake) => Input::Timeout,
        }
    }

    /// Hands an input to the peer. Returns why the loop should end, if it should.
    fn handle(&mut self, now: Instant, input: Input) -> Option<Ended> {
        match input {
            Input::Net(event) => self.handle_net(now, event),
            Input::Push(push) => self.check_push(push),
            Input::Completed(completion) => self.handle_completion(now, completion),
            Input::Job(JobDone::Failed(reason)) if !retried(&reason) => return Some(Ended::Engine(reason)),
            Input::Job(done) => self.parts.peer.handle_job_done(now, done),
            Input::Timeout => self.parts.peer.handle_timeout(now),
            Input::Report => return self.handle_report(now),
            Input::Leave => {
                self.leaving = true;
                self.parts.peer.leave(now);
            }
            Input::Cancelled => {
                self.tell_loss();
                self.quit(now);
                return Some(Ended::Cancelled);
            }
            Input::Closed => return Some(Ended::Closed),
        }
        None
    }

    /// Warns of what goes with a node that ends before its turn.
    fn tell_loss(&self) {
        match self.parts.peer.leaves() {
            Some(Awaits::Successors(stage)) => tracing::warn!(
                stage = stage.0,
                "the newest weights of the stage are here alone; they are on this disk, and a node that starts in this folder brings them back"
            ),
            Some(awaits) => {
                tracing::warn!(%awaits, "ends before its turn; others do its part of the epoch again")
            }
            None => {}
        }
    }

    fn handle_net(&mut self, now: Instant, event: NetEvent) {
        match event {
            NetEvent::Gossip { topic, bytes, token, .. } => {
                let Some(topic) = Topic::from_name(&topic) else { return };
                let verdict = match self.parts.peer.handle_gossip(now, topic, &bytes) {
                    Ok(()) => {
                        self.parts.reporter.gossip_accepted();
                        Verdict::Accept
                    }
                    Err(reason) => {
                        tracing::debug!(topic = topic.name(), %reason, "gossip refused");
                        self.parts.reporter.gossip_refused(&reason);
                        if reason.is_innocent() { Verdict::Ignore } else { Verdict::Reject }
                    }
                };
                self.parts.net.report(token, verdict);
            }
            NetEvent::Request { peer, bytes, reply } => {
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                self.tickets.insert(ticket, reply);
                if let Err(reason) = self.parts.peer.handle_request(now, PeerId(peer), ticket, &bytes) {
                    tracing::debug!(peer = %PeerId(peer).short(), %reason, "request refused");
                    self.parts.reporter.request_refused(&reason);
                    // Dropping the reply tells the peer at once.
                    self.tickets.remove(&ticket);
                }
            }
            NetEvent::Connected(peer) => {
                self.bootstrap_until = None;
                self.parts.reporter.connected(1);
                self.parts.peer.handle_connected(now, PeerId(peer));
            }
            NetEvent::Disconnected(_) => self.parts.reporter.connected(-1),
            NetEvent::Listening(_) => {
                // Addresses change rarely; asking for all costs less than keeping a second list.
                let net = self.parts.net.clone();
                self.tasks.spawn(async move { Completion::Listening(net.snapshot().await.listen) });
            }
            NetEvent::BootstrapFailed { address, error } => {
                tracing::warn!(%address, %error, "bootstrap peer not reached")
            }
            NetEvent::WrongRun { peer, announced } => {
                tracing::warn!(peer = %PeerId(peer).short(), announced, "disconnected a peer of another run");
            }
        }
    }

    /// Checks a pushed frame against its header before the peer hears of it.
    fn check_push(&mut self, push: IncomingPush) {
        let run = self.run;
        let check = move |push: IncomingPush| {
            let header = PushHeader::parse(run, &push.header)
                .and_then(|header| check_payload(&header, &push.payload, Hash(push.hash)).map(|()| header));
            Completion::Checked { push: Box::new(push), header }
        };
        if push.payload.len() <= CHECK_INLINE_BYTES {
            let now = self.now();
            let checked = check(push);
            self.handle_completion(now, checked);
        } else {
            self.tasks.spawn_blocking(move || check(push));
        }
    }

    fn handle_completion(&mut self, now: Instant, completion: Completion) {
        let peer = &mut self.parts.peer;
        match completion {
            Completion::Response { id, bytes } => {
                if let Err(reason) = peer.handle_response(now, id, bytes.as_deref()) {
                    tracing::debug!(%reason, "response refused");
                    self.parts.reporter.request_refused(&reason);
                }
            }
            Completion::Pushed { id, to, ack } => peer.handle_push_result(now, id, to, ack),
            Completion::Fetched { id, bytes } => peer.handle_fetched(now, id, bytes.as_deref()),
            Completion::Stored { id, kept } => peer.handle_stored(now, id, kept),
            Completion::Mirrored { id, there } => peer.handle_mirrored(now, id, there),
            Completion::MomentsMirrored { id, hash } => peer.handle_moments_mirrored(now, id, hash),
            Completion::Checked { push, header } => {
                let ack = match header {
                    Ok(header) => {
                        let tag = iota_protocol::miner::outbox::tag(header.stage, header.epoch);
                        // The peer may start a job on the payload as soon as it has accepted it.
                        let (vault, payload, hash) =
                            (self.parts.vault.clone(), push.payload.clone(), header.hash);
                        vault.remember(hash, payload.clone());
                        let ack = peer.handle_push(now, PeerId(push.peer), &header);
                        if matches!(ack, PushAck::Accepted(_)) {
                            self.tasks.spawn(async move {
                                vault.keep(hash, payload, &tag).await;
                                Completion::Done
                            });
                        }
                        ack
                    }
                    Err(refusal) => PushAck::Refused(refusal),
                };
                if let PushAck::Refused(refusal) = ack {
                    tracing::debug!(peer = %PeerId(push.peer).short(), reason = refusal.label(), "push refused");
                    self.parts.reporter.push_refused(refusal);
                }
                let _ = push.reply.send(ack.to_bytes());
            }
            Completion::CheckpointKept(done) => self.keeping.ended(done),
            Completion::LogMirrored(written) => {
                self.history.ended(written);
                self.keep_snapshot();
            }
            Completion::Listening(listen) => self.tell_addresses(now, &listen),
            Completion::Looked(looked) => self.handle_looked(now, looked),
            Completion::Done => {}
        }
    }

    /// Looks at the disk, unless somebody does.
    fn look(&mut self) {
        if !std::mem::replace(&mut self.looking, true) {
            let disk = self.parts.disk.clone();
            self.tasks.spawn_blocking(move || Completion::Looked(disk.look().inspect(|_| disk.reserve())));
        }
    }

    fn handle_looked(&mut self, now: Instant, looked: std::io::Result<DiskUse>) {
        self.looking = false;
        match looked {
            Ok(found) => {
                self.parts.peer.handle_disk(now, &found);
                self.parts.vault.set_room(self.parts.peer.room());
                self.parts.reporter.disk(found);
            }
            Err(error) => tracing::warn!(%error, "room on the disk not known"),
        }
    }

    fn handle_report(&mut self, now: Instant) -> Option<Ended> {
        self.look();
        self.parts.reporter.report(&self.parts.peer);
        self.keep_snapshot();
        if self.bootstrap_until.is_some_and(|until| tokio::time::Instant::now() >= until) {
            return Some(Ended::Unreachable);
        }
        let (peer, state) = (&self.parts.peer, self.parts.peer.state());
        if !state.finished() {
            return None;
        }
        self.history.finish(peer.log().certified());
        let last = Epoch(state.spec().training.epochs);
        let own = peer.miner().and_then(|miner| miner.weights());
        let behind = state.stage_of(peer.id()).is_some() && own.is_none_or(|weights| weights.version < last);
        let since = *self.finished_at.get_or_insert(now);
        // Others fetch the last merge and the end of the log from us. When they have both, or had time enough,
        // nobody needs us.
        let served = peer.log().certified() >= state.applied()
            && state.members().keys().filter_map(|member| peer.book().record(*member)).all(|record| {
                let trained = record.weights.is_some_and(|weights| weights.version >= last);
                trained && record.log_length >= state.applied()
            });
        let finished = now.since(since);
        let idle = self.keeping.is_idle() && self.history.is_idle();
        if self.parts.mirror.is_some() && !idle && finished < LAST_CHECKPOINT_KEPT {
            return None;
        }
        let lingered = finished >= state.spec().timing.linger.duration();
        (lingered || (served && !behind)).then_some(Ended::Finished)
    }

    /// Carries out everything the peer asks for.
    fn act(&mut self) {
        while let Some(action) = self.parts.peer.poll_action() {
            self.carry_out(action);
        }
        if let (Some(mirror), Some(entries)) = (self.parts.mirror.clone(), self.history.next()) {
            let (store, run) = (self.parts.reporter.store.clone(), self.run);
            self.tasks.spawn(async move {
                Completion::LogMirrored(history::write(mirror, store, run, entries).await)
            });
        }
        let mirror = self.parts.mirror.clone();
        if let Some((mirror, checkpoint)) = mirror.and_then(|mirror| Some((mirror, self.keeping.next()?))) {
            let spec = Arc::clone(&self.parts.spec);
            self.tasks.spawn(async move {
                Completion::CheckpointKept(mirror::keep_checkpoint(mirror, spec, checkpoint).await)
            });
        }
    }

    fn carry_out(&mut self, action: Action) {
        let (net, plane, vault) = (&self.parts.net, &self.parts.plane, &self.parts.vault);
        match action {
            Action::Publish { topic, bytes } => net.publish(topic.name(), bytes),
            Action::Subscribe(topic) => net.subscribe(topic.name()),
            Action::Unsubscribe(topic) => net.unsubscribe(topic.name()),
            Action::Request { id, to, bytes } => {
                let net = net.clone();
                self.tasks.spawn(async move {
                    Completion::Response { id, bytes: net.request(to.0, bytes).await.ok() }
                });
            }
            Action::Respond { ticket, bytes } => {
                if let Some(reply) = self.tickets.remove(&ticket) {
                    reply.send(bytes);
                }
            }
            Action::Push { id, to, header } => {
                let (vault, sent) = (vault.clone(), self.parts.reporter.pushes_sent());
                self.tasks.spawn(async move {
                    let ack = vault.push(to, &header).await;
                    sent.inc_by(u64::from(ack.is_some()));
                    Completion::Pushed { id, to, ack }
                });
            }
            Action::Fetch { id, hash, providers, limit, mirrored, deliver, tag } => {
                let (vault, mirror) = (vault.clone(), self.parts.mirror.clone().filter(|_| mirrored));
                self.tasks.spawn(async move {
                    let bytes = mirror::fetch(mirror.as_ref(), &vault, hash, limit, &providers, &tag).await;
                    Completion::Fetched {
                        id,
                        bytes: bytes.map(|bytes| if deliver { bytes } else { Bytes::new() }),
                    }
                });
            }
            Action::Store { id, blobs, tag } => {
                let vault = vault.clone();
                self.tasks.spawn(async move {
                    let kept = store(&vault, blobs, &tag).await;
                    kept.as_ref().inspect_err(|error| tracing::warn!(%error, "blobs not stored")).ok();
                    Completion::Stored { id, kept: kept.is_ok() }
                });
            }
            Action::Release { prefix } => self.release(prefix),
            Action::Remember(state) => self.parts.reporter.remember(&state),
            Action::KeepSnapshot(snapshot) => {
                self.history.begin_with(snapshot);
                self.keep_snapshot();
            }
            Action::Mirror { id, state, first } => self.mirror_state(id, state, first),
            Action::MirrorMoments { id, stage, version } => self.mirror_moments(id, stage, version),
            Action::MirrorBlobs { blobs } => self.mirror_blobs(blobs),
            Action::Checkpoint(checkpoint) => self.keeping.take(checkpoint),
            Action::Compute(job) => {
                if let Some((orders, _)) = &self.parts.engine {
                    // Fails only when the engine's thread is gone, which its receiver reports.
                    let _ = orders.send(Order::Job(job));
                }
            }
            Action::Addresses { peer } => self.learn_addresses(peer),
            Action::Disconnect { peer } => {
                let plane = plane.clone();
                self.tasks.spawn(async move {
                    plane.disconnect(peer.0).await;
                    Completion::Done
                });
            }
            Action::Forget { peer } => plane.forget(peer.0),
            Action::Notice(notice) => self.parts.reporter.notice(&self.parts.peer, notice),
        }
    }

    fn keep_snapshot(&mut self) {
        let Some(snapshot) = self.history.due() else { return };
        if self.parts.reporter.keep_snapshot(&snapshot) {
            let now = self.now();
            self.parts.peer.handle_snapshot_kept(now, snapshot.entries);
        } else {
            self.history.begin_with(snapshot);
        }
    }

    fn release(&mut self, prefix: String) {
        let plane = self.parts.plane.clone();
        self.tasks.spawn(async move {
            if let Err(error) = plane.release(&prefix).await {
                tracing::warn!(%error, "blobs not released");
            }
            Completion::Done
        });
    }

    fn mirror_state(&mut self, id: u64, state: StateOffer, first: usize) {
        let (vault, mirror) = (self.parts.vault.clone(), self.parts.mirror.clone());
        self.tasks.spawn(async move {
            let there = match mirror {
                Some(mirror) => mirror::bring_state(&mirror, &vault, &state, first).await,
                None => false,
            };
            Completion::Mirrored { id, there }
        });
    }

    fn mirror_moments(&mut self, id: u64, stage: StageIndex, version: Epoch) {
        let (folder, mirror) = (self.parts.moments.clone(), self.parts.mirror.clone());
        self.tasks.spawn(async move {
            let hash = match mirror {
                Some(mirror) => mirror::bring_moments(&mirror, folder, stage, version).await,
                None => None,
            };
            Completion::MomentsMirrored { id, hash }
        });
    }

    fn mirror_blobs(&mut self, blobs: Vec<Hash>) {
        let (vault, Some(mirror)) = (self.parts.vault.clone(), self.parts.mirror.clone()) else { return };
        self.tasks.spawn(async move {
            mirror::bring_blobs(&mirror, &vault, &blobs).await;
            Completion::Done
        });
    }

    /// Passes on where a peer says it can be reached. Its signature is checked; whether it is there shows on dialling.
    fn learn_addresses(&self, peer: PeerId) {
        let Some(record) = self.parts.peer.book().record(peer) else { return };
        let multiaddrs: Vec<Multiaddr> =
            record.multiaddrs.iter().filter_map(|text| text.parse().ok()).collect();
        let data = record.data_addresses.iter().filter_map(|text| text.parse().ok()).collect();
        self.dial_for_mesh(peer, &multiaddrs);
        self.parts.net.add_address(peer.0, multiaddrs);
        self.parts.plane.set_addresses(peer.0, data);
    }

    /// Connects to a peer while there are few connections, so that gossip takes few hops. Of two peers that
    /// hear of each other the lower dials.
    fn dial_for_mesh(&self, peer: PeerId, multiaddrs: &[Multiaddr]) {
        let id = net::peer_id(&peer.0).filter(|_| self.parts.peer.id() < peer);
        let (Some(id), Some(address)) = (id, multiaddrs.first()) else { return };
        if self.parts.reporter.connections() < CONNECTIONS_WANTED {
            let address = address.clone().with_p2p(id).unwrap_or_else(|address| address);
            self.parts.net.dial(address);
        }
    }

    /// Tells the peer where it can be reached itself.
    fn tell_addresses(&mut self, now: Instant, listen: &[Multiaddr]) {
        let data = self.parts.plane.addresses();
        let addresses = Addresses {
            multiaddrs: listen.iter().map(ToString::to_string).take(ADDRESSES_MAX).collect(),
            data: data.iter().map(ToString::to_string).take(ADDRESSES_MAX).collect(),
        };
        self.parts.peer.handle_addresses(now, addresses);
    }

    /// Writes the weights held to `folder`; returns the file.
    pub(crate) async fn checkpoint(
        &self,
        folder: std::path::PathBuf,
    ) -> Option<Result<std::path::PathBuf, String>> {
        self.parts.peer.miner()?.weights()?;
        let (orders, _) = self.parts.engine.as_ref()?;
        let (answer, written) = oneshot::channel();
        orders.send(Order::Checkpoint(folder, answer)).ok()?;
        written.await.ok()
    }

    /// Hash of the weights held.
    pub(crate) fn weights(&self) -> Option<Hash> {
        Some(self.parts.peer.miner()?.weights()?.hash)
    }

    /// Gives the parts back for shutdown.
    pub(crate) fn into_parts(self) -> Parts {
        self.parts
    }
}

/// Whether the protocol tries again by itself after this job failed: it may have been given wrong blobs, or the disk may
/// have been full.
fn retried(reason: &str) -> bool {
    let jobs = [
        "load the state",
        "take the outer step",
        "write the state",
        "write the contribution",
        "reduce a partition",
    ];
    jobs.iter().any(|job| reason.starts_with(job))
}

/// Keeps blobs; returns when they survive the process.
async fn store(vault: &Vault, blobs: Vec<(Hash, Vec<u8>)>, tag: &str) -> Result<(), DataError> {
    for (_, bytes) in blobs {
        vault.publish(Bytes::from(bytes), tag).await?;
    }
    vault.sync().await
}

/// A clock the run can share: microseconds of wall time, which grow across restarts unless the clock is set back.
pub(crate) fn wall_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The peer that a driver drives.
pub(crate) type NodePeer = Peer<PaxosStorage<LogBytes>>;
