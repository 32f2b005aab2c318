//! What peers want done, and how the world does it.

use std::rc::Rc;
use std::time::Duration;

use iota_protocol::Instant;
use iota_protocol::PeerId;
use iota_protocol::limits::TRANSFER_DEADLINE;
use iota_protocol::miner::{Action, Job};
use iota_protocol::wire::Gossip;
use iota_protocol::wire::frame::PushHeader;
use iota_protocol::wire::message::Topic;

use super::{Broadcast, Cargo, Event, Fetch, Push, World};
use crate::adversary::{Behaviour, Emission, Means};
use crate::blobs::Blob;
use crate::host::{ALL_VERSIONS, Host};
use crate::network::HostIndex;
use crate::observe::Seen;

/// What a disk takes to flush.
const DISK_FLUSH: Duration = Duration::from_millis(5);
/// Blobs up to this size travel with the message that asks for them.
const SMALL_BYTES: u64 = 16 * 1024;

impl World {
    /// Does everything that a peer wants done, and notes when it wants to be woken.
    pub(super) fn drain(&mut self, host: HostIndex) {
        let local = self.local_now(host);
        let Host { peer, store, .. } = &mut self.hosts[host];
        if let Some(peer) = peer {
            peer.handle_disk(local, &store.disk_use());
        }
        while let Some(action) = self.hosts[host].peer.as_mut().and_then(|peer| peer.poll_action()) {
            if self.hosts[host].behaviour.is_some() {
                let honest = [Emission::Act(action.clone())];
                let emissions = self.consult(host, |behaviour, means| behaviour.acts(means, action));
                let emissions = emissions.unwrap_or_default();
                self.hosts[host].deviated |= emissions != honest;
                self.emit(host, emissions);
            } else {
                self.act(host, action);
            }
        }
        self.arm(host);
    }

    /// Lets an adversary do what it does of itself.
    pub(super) fn wake_adversary(&mut self, host: HostIndex) {
        let emissions = self.consult(host, |behaviour, means| behaviour.wakes(means)).unwrap_or_default();
        self.hosts[host].deviated |= !emissions.is_empty();
        self.emit(host, emissions);
    }

    fn emit(&mut self, host: HostIndex, emissions: Vec<Emission>) {
        for emission in emissions {
            match emission {
                Emission::Act(action) => self.act(host, action),
                Emission::PublishToHalf { topic, bytes, odd } => {
                    self.publish(host, topic, &bytes, Some(odd));
                }
            }
        }
    }

    /// Asks the adversary on a host; nothing if the host is honest or down.
    pub(super) fn consult<T>(
        &mut self,
        host: HostIndex,
        ask: impl FnOnce(&mut dyn Behaviour, &mut Means<'_>) -> T,
    ) -> Option<T> {
        let adversary = &mut self.hosts[host];
        let (behaviour, peer) = (adversary.behaviour.as_mut()?, adversary.peer.as_ref()?);
        let mut means = Means {
            now: self.queue.now(),
            identity: &adversary.identity,
            spec: &self.spec,
            costs: &self.costs,
            compute: self.engines.compute(),
            accomplices: &self.accomplices,
            store: &mut adversary.store,
            random: &mut self.dice,
            peer,
        };
        Some(ask(&mut **behaviour, &mut means))
    }

    /// Asks to be woken at the peer's next deadline, if that is earlier than what was asked before.
    fn arm(&mut self, host: HostIndex) {
        let armed = &mut self.hosts[host];
        let Some(peer) = &armed.peer else { return };
        // A deadline is in the future, however often it is missed.
        let soonest = self.queue.now() + Duration::from_millis(1);
        let at = armed.setup.clock.global(peer.deadline()).max(soonest);
        if armed.wake.is_some_and(|(armed, _)| armed <= at) {
            return;
        }
        armed.wakes += 1;
        armed.wake = Some((at, armed.wakes));
        self.queue.push_at(at, Event::Wake(host, armed.wakes));
    }

    fn act(&mut self, host: HostIndex, action: Action) {
        let traffic = &mut self.hosts[host].traffic;
        traffic.actions += 1;
        traffic.sent_messages += u64::from(matches!(
            action,
            Action::Publish { .. } | Action::Request { .. } | Action::Respond { .. } | Action::Push { .. }
        ));
        traffic.messages.requests += u64::from(matches!(action, Action::Request { .. }));
        traffic.messages.pushes += u64::from(matches!(action, Action::Push { .. }));
        match action {
            Action::Publish { topic, bytes } => self.publish(host, topic, &bytes, None),
            Action::Subscribe(topic) => self.topics.join(&self.network, host, topic),
            Action::Unsubscribe(topic) => self.topics.leave(&self.network, host, topic),
            Action::Request { id, to, bytes } => self.request(host, id, to, bytes),
            Action::Respond { ticket, bytes } => {
                let Some((to, incarnation, id)) = self.hosts[host].tickets.remove(&ticket) else { return };
                self.hosts[host].traffic.requests += bytes.len() as u64;
                if let Some(delay) = self.network.message(host, to, bytes.len() as u64) {
                    self.queue.push(delay, Event::Response { to, incarnation, id, bytes: Some(bytes) });
                }
            }
            Action::Push { id, to, header } => self.push(host, id, to, header),
            Action::Fetch { id, hash, providers, limit, mirrored, deliver, tag } => {
                let (begun, limit) = (self.now(), limit as u64);
                let Host { incarnation, paces, .. } = &self.hosts[host];
                let (incarnation, deadline) = (*incarnation, begun + paces.fetch_deadline(limit));
                self.fetch(Fetch {
                    host,
                    incarnation,
                    id,
                    hash,
                    providers,
                    limit,
                    mirrored,
                    deliver,
                    tag,
                    begun,
                    deadline,
                });
            }
            Action::Store { id, blobs, tag } => {
                let target = &mut self.hosts[host];
                let kept = blobs.into_iter().all(|(hash, bytes)| {
                    let blob = Blob { bytes: bytes.len() as u64, content: Some(bytes.into()) };
                    target.store.keep(hash, blob, &tag).is_ok()
                });
                let incarnation = target.incarnation;
                self.queue.push(DISK_FLUSH, Event::Stored { host, incarnation, id, kept });
            }
            Action::Release { prefix } => self.hosts[host].store.release(&prefix),
            Action::Remember(state) => self.hosts[host].remembered = Some(state),
            Action::KeepSnapshot(snapshot) => {
                let (now, entries) = (self.local_now(host), snapshot.entries);
                self.hosts[host].snapshot = Some(snapshot);
                if let Some(peer) = &mut self.hosts[host].peer {
                    peer.handle_snapshot_kept(now, entries);
                }
            }
            Action::Mirror { id, state, .. } => self.mirror_state(host, id, &state),
            Action::MirrorMoments { id, .. } => self.mirror_moments(host, id),
            Action::MirrorBlobs { blobs } => drop(self.mirror(host, &blobs)),
            // The manifest is for people and for other runs.
            Action::Checkpoint(_) => {}
            Action::Compute(job) => self.compute(host, job),
            // Flows to a host that has crashed are gone already.
            Action::Addresses { .. } | Action::Disconnect { .. } | Action::Forget { .. } => {}
            Action::Notice(notice) => {
                self.note(host, &notice);
                self.show(host, Seen::Notice(&notice));
            }
        }
    }

    /// Publishes a message. One that is told to a half only, the odd hosts or the others, is passed on by those who take it:
    /// the other half hears it as well, a message later.
    fn publish(&mut self, host: HostIndex, topic: Topic, bytes: &[u8], odd: Option<bool>) {
        let opened = Gossip::open(&self.electorate, ALL_VERSIONS, topic, bytes);
        let opened = opened.map(|gossip| gossip.keeping(bytes));
        let size = bytes.len() as u64;
        let mut spread = self.topics.spread(&mut self.network, host, topic, size);
        let now = self.now();
        if opened.is_err() || !self.reputations.is_empty() {
            let near = self.topics.live_neighbours(&self.network, host, topic);
            let listens = |hearer: HostIndex| !self.reputations.graylists(hearer, host, now);
            // It reaches the others through neighbours that listen to it, and nobody passes on what does not verify.
            let passed_on = opened.is_ok() && near.iter().any(|hearer| listens(*hearer));
            spread.retain(|(_, hearer)| if near.contains(hearer) { listens(*hearer) } else { passed_on });
        }
        if let Some(odd) = odd {
            spread = self.told_to_half(spread, odd, size, opened.is_ok());
        }
        let deliveries: Vec<(Instant, HostIndex)> =
            spread.into_iter().map(|(delay, hearer)| (now + delay, hearer)).collect();
        self.hosts[host].traffic.gossip += size * self.topics.degree(host, topic) as u64;
        if let Some((at, _)) = deliveries.first().copied() {
            let broadcast = Broadcast { author: host, topic, bytes: size, opened, deliveries };
            self.queue.push_at(at, Event::Gossip(Rc::new(broadcast), 0));
        }
    }

    /// Who hears what the odd hosts are told, or the others: the other half hears it a message after the first of them, if it
    /// is passed on.
    fn told_to_half(
        &mut self,
        spread: Vec<(Duration, HostIndex)>,
        odd: bool,
        size: u64,
        passed_on: bool,
    ) -> Vec<(Duration, HostIndex)> {
        let told = |hearer: HostIndex| (hearer % 2 == 1) == odd;
        let first = spread.iter().copied().find(|(_, hearer)| told(*hearer)).filter(|_| passed_on);
        let mut heard = Vec::with_capacity(spread.len());
        for (delay, hearer) in spread {
            if told(hearer) {
                heard.push((delay, hearer));
            } else if let Some((begun, relay)) = first
                && let Some(hop) = self.network.message(relay, hearer, size)
            {
                heard.push((delay.max(begun) + hop, hearer));
            }
        }
        heard.sort_unstable();
        heard
    }

    fn request(&mut self, from: HostIndex, id: u64, to: PeerId, bytes: Vec<u8>) {
        let incarnation = self.hosts[from].incarnation;
        // Whatever becomes of it, its sender waits no longer than this.
        let given_up = self.now() + TRANSFER_DEADLINE;
        self.queue.push_deadline(given_up, Event::Response { to: from, incarnation, id, bytes: None });
        let Some(to) = self.index_of(to) else { return };
        self.hosts[from].traffic.requests += bytes.len() as u64;
        if let Some(delay) = self.network.message(from, to, bytes.len() as u64) {
            self.queue.push(delay, Event::Request { to, from, incarnation, id, bytes });
        }
    }

    fn push(&mut self, from: HostIndex, id: u64, receiver: PeerId, header: PushHeader) {
        let incarnation = self.hosts[from].incarnation;
        let blob = self.hosts[from].store.get(&header.hash).cloned();
        let (Some(to), Some(blob)) = (self.index_of(receiver), blob) else {
            return self.queue.push(
                Duration::ZERO,
                Event::PushEnds { host: from, incarnation, id, to: receiver, ack: None },
            );
        };
        let begun = self.now();
        let deadline = begun + self.hosts[from].paces.push_deadline(receiver, blob.bytes);
        let push = Push { from, incarnation, id, to, header, blob, begun, deadline };
        self.start_cargo(from, to, Cargo::Push(push));
    }

    fn fetch(&mut self, fetch: Fetch) {
        match self.hosts[fetch.host].store.get(&fetch.hash).cloned() {
            Some(blob) => self.fetch_ends(&fetch, Some(blob), Duration::ZERO),
            None => self.fetch_tries(&Rc::new(fetch), 0),
        }
    }

    /// Lets a blob travel.
    pub(super) fn start_cargo(&mut self, from: HostIndex, to: HostIndex, cargo: Cargo) {
        let bytes = match &cargo {
            Cargo::Push(push) => push.blob.bytes,
            Cargo::Fetch(fetch, _, blob) => {
                self.hosts[fetch.host].missing.remove(&fetch.hash).unwrap_or(blob.bytes)
            }
        };
        if bytes <= SMALL_BYTES || !self.network.reaches(from, to) {
            return self.arrive(cargo);
        }
        let flow = self.network.start_flow(self.queue.now(), from, to, bytes);
        let expires = match &cargo {
            Cargo::Push(push) => push.deadline,
            Cargo::Fetch(fetch, ..) => fetch.deadline,
        };
        self.cargo.insert(flow, cargo);
        self.queue.push_deadline(expires, Event::FlowExpires(flow));
    }

    fn compute(&mut self, host: HostIndex, job: Job) {
        let Some(peer) = self.hosts[host].peer() else { return };
        let checked = peer.validator().and_then(|validator| validator.works_on()).map(|(stage, _)| stage);
        let stage = peer.state().stage_of(peer.id()).or(checked).unwrap_or_default();
        let shirked = self.consult(host, |behaviour, means| behaviour.shirks(means, &job)).flatten();
        let (done, duration) = match shirked {
            Some(done) => {
                self.hosts[host].deviated = true;
                (done, Duration::from_millis(1))
            }
            None => {
                let engine = &mut self.hosts[host];
                let done = engine.trainer.perform(stage, &job, &mut engine.store);
                let told =
                    self.consult(host, |behaviour, means| behaviour.computed(means, &job, done.clone()));
                self.hosts[host].deviated |= told.as_ref().is_some_and(|told| *told != done);
                let speed = self.hosts[host].setup.speed;
                (told.unwrap_or(done), self.costs.duration(&job, speed, self.partition_bytes))
            }
        };
        let engine = &mut self.hosts[host];
        engine.busy += duration;
        let incarnation = engine.incarnation;
        self.queue.push(duration, Event::JobEnds { host, incarnation, job: Box::new((job, done)) });
    }
}
