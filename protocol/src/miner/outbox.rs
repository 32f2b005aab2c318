//! What the protocol asks its driver to do.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::job::Job;
use crate::gauntlet::evaluation::{Evaluation, Said};
use crate::id::{Epoch, Hash, Identity, LogIndex, PeerId, RunId, StageIndex};
use crate::join::Refusal;
use crate::limits::WIRE_VERSION_FIRST;
use crate::log::Snapshot;
use crate::peer::arrival::Arrival;
use crate::peer::candidate::Distrust;
use crate::peer::departure::Awaits;
use crate::peer::room::{DiskUse, Room};
use crate::run_state::{Checkpoint, StateEvent};
use crate::validation::{Finding, Subject, Verdict};
use crate::validator::losses::Suspicion;
use crate::wire::frame::PushHeader;
use crate::wire::message::{MergeMessage, Request, Response, StateOffer, Topic};
use crate::wire::{Outdated, Payload, encode, seal_in};

/// Something for the driver to do. Results come back through the machine's `handle_*` methods.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Publish on a gossip topic.
    Publish {
        /// The topic.
        topic: Topic,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Join a gossip topic. Messages of a topic that was not joined need not be handed over.
    Subscribe(Topic),
    /// Leave a gossip topic.
    Unsubscribe(Topic),
    /// Send a request; answer with `handle_response`.
    Request {
        /// Names the request.
        id: u64,
        /// To whom.
        to: PeerId,
        /// The request.
        bytes: Vec<u8>,
    },
    /// Answer the request that came with this ticket.
    Respond {
        /// Names the request.
        ticket: u64,
        /// The response.
        bytes: Vec<u8>,
    },
    /// Push a tensor that the driver holds; answer with `handle_push_result`.
    Push {
        /// Names the push.
        id: u64,
        /// To whom.
        to: PeerId,
        /// Its header, which names the payload by hash.
        header: PushHeader,
    },
    /// Bring a blob into the store; answer with `handle_fetched`.
    Fetch {
        /// Names the fetch.
        id: u64,
        /// The blob.
        hash: Hash,
        /// Who may have it, best first.
        providers: Vec<PeerId>,
        /// Largest size accepted, in bytes.
        limit: usize,
        /// Whether the mirror may have it, and is asked when no provider serves it.
        mirrored: bool,
        /// Whether its bytes should come with the answer.
        deliver: bool,
        /// What keeps it alive.
        tag: String,
    },
    /// Keep these as blobs, so that they survive the process; answer with `handle_stored`.
    Store {
        /// Number of the store.
        id: u64,
        /// Each one's bytes by their hash.
        blobs: Vec<(Hash, Vec<u8>)>,
        /// What keeps them alive.
        tag: String,
    },
    /// Let go of all blobs whose tag starts with this.
    Release {
        /// The prefix.
        prefix: String,
    },
    /// Write down that the blobs of this state are here, instead of the one written down before, so that it survives the
    /// process: the next one is told by [`Peer::recover`](crate::peer::Peer::recover). Done before any action after it.
    Remember(StateOffer),
    /// Write down what stands for the beginning of the log, and let go of the entries before it, both or neither; then call
    /// `handle_snapshot_kept`. The next process is told by [`Peer::recover`](crate::peer::Peer::recover).
    KeepSnapshot(Arc<Snapshot>),
    /// Bring this state to the mirror: its parts, beginning with number `first`, and after all of them the encoding of the
    /// offer itself, leaving out what is there. Answer with `handle_mirrored`.
    Mirror {
        /// Number of the upload.
        id: u64,
        /// The state.
        state: StateOffer,
        /// The part to begin with.
        first: usize,
    },
    /// Bring the inner optimizer's [moments](crate::moments) that were kept on disk at this version to the mirror; answer with
    /// `handle_moments_mirrored`.
    MirrorMoments {
        /// Number of the upload.
        id: u64,
        /// The stage.
        stage: StageIndex,
        /// The version of its weights.
        version: Epoch,
    },
    /// Bring these blobs to the mirror if it has room and time; nobody waits for it.
    MirrorBlobs {
        /// The blobs, which are here.
        blobs: Vec<Hash>,
    },
    /// A checkpoint was decided, and this peer is a candidate: see that the mirror has all of it, write its manifest and move
    /// the pointer to it. All candidates do the same, so that one that dies leaves nothing undone.
    Checkpoint(Checkpoint),
    /// Give the engine a job; answer with `handle_job_done`.
    Compute(Job),
    /// A peer's addresses changed.
    Addresses {
        /// The peer.
        peer: PeerId,
    },
    /// Another process of a peer runs: transfers to and from the one before will not end.
    Disconnect {
        /// The peer.
        peer: PeerId,
    },
    /// A peer is not heard any more; its addresses can go.
    Forget {
        /// The peer.
        peer: PeerId,
    },
    /// Tell people.
    Notice(Notice),
}

/// Something worth telling people.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A decision changed the state.
    State(StateEvent),
    /// This candidate sees another leader.
    Leader(Option<PeerId>),
    /// This candidate does not take another for a leader any more.
    Distrusts(PeerId, Distrust),
    /// This miner's weights are ready.
    WeightsReady(StageIndex, Epoch, Hash),
    /// The log goes on from a snapshot of this many entries, which was fetched.
    Snapshot(u64),
    /// The entry at this index names another state than the one that the entries before it led to here.
    Diverged(LogIndex),
    /// The run is full, and this is the place of this peer among those who wait, if it was told one.
    Queued(Option<usize>),
    /// This peer wants a place, and this is why it gets none.
    Refused(Refusal),
    /// A first contribution of this process counts.
    Arrived(Arrival),
    /// This peer leaves, and waits for this.
    Leaving(Awaits),
    /// This peer has left; its process should end.
    Left,
    /// This validator has found this.
    Checked(Subject, Finding),
    /// This validator has evaluated the merge of this epoch: so many contributions of so many that were drawn.
    Evaluated(Epoch, usize, usize),
    /// This validator has found that losses name this miner.
    Suspected(Suspicion),
    /// A job failed.
    JobFailed(String),
    /// There is more or less room on the disk than before.
    Room(Room, DiskUse),
    /// This program does not speak the version that the run has decided on. The peer has stopped; the process should end.
    Outdated(Outdated),
}

/// What blobs are kept for. Written as a tag, which ends in a slash, so that no tag is a prefix of another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// An epoch of a stage: activations, contributions, merged partitions.
    Epoch(StageIndex, Epoch),
    /// The whole state of a stage at a version, for joiners and for the next process.
    State(StageIndex, Epoch),
    /// What a miner lost its place for in a merge of a stage: what it takes to compute that again.
    Proof(StageIndex, Epoch),
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch(stage, epoch) => write!(f, "e/{stage}/{epoch}/"),
            Self::State(stage, version) => write!(f, "s/{stage}/{version}/"),
            Self::Proof(stage, epoch) => write!(f, "p/{stage}/{epoch}/"),
        }
    }
}

impl Kept {
    /// What a blob is kept for, from the start of its tag; `None` if it is no tag of this program.
    #[must_use]
    pub fn parse(tag: &str) -> Option<Self> {
        let mut parts = tag.split('/');
        let (kind, stage, number) = (parts.next()?, parts.next()?, parts.next()?);
        // What follows the last slash is the driver's.
        parts.next()?;
        let (stage, number) = (StageIndex(stage.parse().ok()?), Epoch(number.parse().ok()?));
        match kind {
            "e" => Some(Self::Epoch(stage, number)),
            "s" => Some(Self::State(stage, number)),
            "p" => Some(Self::Proof(stage, number)),
            _ => None,
        }
    }
}

/// Tag of everything that belongs to an epoch of a stage.
#[must_use]
pub fn tag(stage: StageIndex, epoch: Epoch) -> String {
    Kept::Epoch(stage, epoch).to_string()
}

/// Tag of the state of a stage.
#[must_use]
pub fn state_tag(stage: StageIndex, version: Epoch) -> String {
    Kept::State(stage, version).to_string()
}

/// Collects actions, numbers them, signs messages.
#[derive(Debug)]
pub struct Outbox {
    identity: Identity,
    run: RunId,
    version: u16,
    next_id: u64,
    actions: VecDeque<Action>,
    own: Vec<(MergeMessage, Vec<u8>)>,
    state_requests: Vec<u64>,
}

impl Outbox {
    /// An empty outbox of `identity` in `run`.
    #[must_use]
    pub const fn new(identity: Identity, run: RunId) -> Self {
        Self {
            identity,
            run,
            version: WIRE_VERSION_FIRST,
            next_id: 0,
            actions: VecDeque::new(),
            own: Vec::new(),
            state_requests: Vec::new(),
        }
    }

    /// The run.
    #[must_use]
    pub const fn run(&self) -> RunId {
        self.run
    }

    /// From now on messages are written in this version.
    pub const fn set_version(&mut self, version: u16) {
        self.version = version;
    }

    /// The oldest action not taken yet.
    pub fn pop(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Asks for something that is answered by its number, and returns the number.
    fn numbered(&mut self, action: impl FnOnce(u64) -> Action) -> u64 {
        let id = self.number();
        self.actions.push_back(action(id));
        id
    }

    /// Publishes a signed message.
    pub fn publish<T: Payload>(&mut self, topic: Topic, message: &T) {
        let bytes = seal_in(self.version, &self.identity, self.run, message);
        self.actions.push_back(Action::Publish { topic, bytes });
    }

    /// Publishes a merge message, and keeps it for this peer itself, to which gossip does not bring it back.
    pub fn publish_merge(&mut self, message: MergeMessage) {
        let bytes = seal_in(self.version, &self.identity, self.run, &message);
        self.publish_raw(Topic::Merge(message.stage()), bytes.clone());
        self.own.push((message, bytes));
    }

    /// A finding under this peer's signature.
    #[must_use]
    pub fn sign_verdict(&self, subject: Subject, finding: Finding) -> Verdict {
        Verdict::sign(&self.identity, self.run, subject, finding)
    }

    /// What this peer says of the contributions to a merge, under its signature.
    #[must_use]
    pub fn sign_evaluation(&self, epoch: Epoch, plan: Hash, said: Vec<(PeerId, Said)>) -> Evaluation {
        Evaluation::sign(&self.identity, self.run, epoch, plan, said)
    }

    /// This peer's own merge messages since the last call, with their envelopes.
    pub fn take_own(&mut self) -> Vec<(MergeMessage, Vec<u8>)> {
        std::mem::take(&mut self.own)
    }

    /// Asks a replica for the state of a stage.
    pub fn request_state(&mut self, to: PeerId, stage: StageIndex, version: Epoch) {
        let id = self.request(to, &Request::State { stage, version });
        self.state_requests.push(id);
    }

    /// Numbers of state requests since the last call.
    pub fn take_state_requests(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.state_requests)
    }

    /// Publishes bytes that need no signature of this peer.
    pub fn publish_raw(&mut self, topic: Topic, bytes: Vec<u8>) {
        self.actions.push_back(Action::Publish { topic, bytes });
    }

    /// Sends a request; returns its number.
    pub fn request(&mut self, to: PeerId, request: &Request) -> u64 {
        let id = self.number();
        self.actions.push_back(Action::Request { id, to, bytes: encode(request) });
        id
    }

    /// Answers a request with a state offer, or that there is none.
    pub fn respond(&mut self, ticket: u64, offer: Option<StateOffer>) {
        self.answer(ticket, &offer.map_or(Response::Unavailable, Response::State));
    }

    /// Answers a request.
    pub fn answer(&mut self, ticket: u64, response: &Response) {
        self.actions.push_back(Action::Respond { ticket, bytes: encode(response) });
    }

    /// Pushes a tensor, whose header is signed here; returns the push's number.
    pub fn push(&mut self, to: PeerId, header: PushHeader) -> u64 {
        let header = header.signed(&self.identity);
        let id = self.number();
        self.actions.push_back(Action::Push { id, to, header });
        id
    }

    /// Fetches a blob from peers, or reads it from the own disk; returns the fetch's number.
    pub fn fetch(
        &mut self,
        hash: Hash,
        providers: Vec<PeerId>,
        limit: usize,
        deliver: bool,
        tag: String,
    ) -> u64 {
        self.numbered(|id| Action::Fetch { id, hash, providers, limit, mirrored: false, deliver, tag })
    }

    /// [`fetch`](Self::fetch) of a blob that may be in the mirror too.
    pub fn fetch_mirrored(
        &mut self,
        hash: Hash,
        providers: Vec<PeerId>,
        limit: usize,
        deliver: bool,
        tag: String,
    ) -> u64 {
        self.numbered(|id| Action::Fetch { id, hash, providers, limit, mirrored: true, deliver, tag })
    }

    /// Keeps blobs on disk; returns the number of the store.
    pub fn store(&mut self, blobs: Vec<(Hash, Vec<u8>)>, tag: String) -> u64 {
        let id = self.number();
        self.actions.push_back(Action::Store { id, blobs, tag });
        id
    }

    /// Brings a state to the mirror; returns the number of the upload.
    pub fn mirror(&mut self, state: StateOffer, first: usize) -> u64 {
        self.numbered(|id| Action::Mirror { id, state, first })
    }

    /// Brings moments to the mirror; returns the number of the upload.
    pub fn mirror_moments(&mut self, stage: StageIndex, version: Epoch) -> u64 {
        self.numbered(|id| Action::MirrorMoments { id, stage, version })
    }

    /// Brings blobs to the mirror.
    pub fn mirror_blobs(&mut self, blobs: Vec<Hash>) {
        self.actions.push_back(Action::MirrorBlobs { blobs });
    }

    /// Has the manifest of a checkpoint written.
    pub fn checkpoint(&mut self, checkpoint: Checkpoint) {
        self.actions.push_back(Action::Checkpoint(checkpoint));
    }

    /// Lets go of blobs by tag prefix.
    pub fn release(&mut self, prefix: String) {
        self.actions.push_back(Action::Release { prefix });
    }

    /// Has the driver write down what stands for the beginning of the log.
    pub fn keep_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.actions.push_back(Action::KeepSnapshot(snapshot));
    }

    /// Has the driver write down which state is here.
    pub fn remember(&mut self, state: StateOffer) {
        self.actions.push_back(Action::Remember(state));
    }

    /// Gives the engine a job.
    pub fn compute(&mut self, job: Job) {
        self.actions.push_back(Action::Compute(job));
    }

    /// Joins a topic.
    pub fn subscribe(&mut self, topic: Topic) {
        self.actions.push_back(Action::Subscribe(topic));
    }

    /// Leaves a topic.
    pub fn unsubscribe(&mut self, topic: Topic) {
        self.actions.push_back(Action::Unsubscribe(topic));
    }

    /// Tells the driver that a peer's addresses changed.
    pub fn addresses(&mut self, peer: PeerId) {
        self.actions.push_back(Action::Addresses { peer });
    }

    /// Tells the driver that transfers with a peer under way will not end.
    pub fn disconnect(&mut self, peer: PeerId) {
        self.actions.push_back(Action::Disconnect { peer });
    }

    /// Tells the driver that a peer is not heard any more.
    pub fn forget(&mut self, peer: PeerId) {
        self.actions.push_back(Action::Forget { peer });
    }

    /// Tells people nothing of what was decided until now: an earlier process has.
    pub fn forget_history(&mut self) {
        self.actions
            .retain(|action| !matches!(action, Action::Notice(Notice::State(_)) | Action::Checkpoint(_)));
    }

    /// Tells people.
    pub fn notice(&mut self, notice: Notice) {
        self.actions.push_back(Action::Notice(notice));
    }
}
