//! What happens: each event handed to whom it is for.

use std::rc::Rc;
use std::time::Duration;

use iota_protocol::PeerId;
use iota_protocol::wire::frame::PushAck;
use iota_protocol::wire::message::Topic;

use super::{Broadcast, Cargo, Event, Fetch, Push, World};
use crate::blobs::Blob;
use crate::network::{FlowEnd, HostIndex};
use crate::observe::Seen;

/// A message heard twice comes again within this time.
const REPEAT_WITHIN: Duration = Duration::from_secs(2);

impl World {
    /// Lets one event happen.
    pub(super) fn dispatch(&mut self, event: Event) {
        match event {
            Event::Fault(index) => self.disturb(index),
            Event::MergeFails(failure) => self.merge_fails(&failure),
            Event::Start(host) | Event::Restart(host) => self.start(host),
            Event::Thaw(host, incarnation) => self.thaw(host, incarnation),
            Event::Stop(host, incarnation) if self.lives(host, incarnation) => self.stop(host),
            Event::Stop(..) => {}
            Event::Depart(host, incarnation) => self.depart(host, incarnation),
            Event::FlowEnds(end) => self.flow_ends(end),
            Event::FlowExpires(flow) => self.flow_expires(flow),
            Event::FetchTries(fetch, next) => self.fetch_tries(&fetch, next),
            Event::Gossip(broadcast, next) => self.gossip_arrives(&broadcast, next),
            Event::Request { to, from, incarnation, id, bytes } => {
                self.request_arrives(to, from, incarnation, id, bytes);
            }
            Event::PushArrives(push) => self.push_arrives(*push),
            Event::Wake(host, ..)
            | Event::Response { to: host, .. }
            | Event::PushEnds { host, .. }
            | Event::FetchEnds { host, .. }
            | Event::Stored { host, .. }
            | Event::Mirrored { host, .. }
            | Event::MomentsMirrored { host, .. }
            | Event::JobEnds { host, .. }
            | Event::Connected { host, .. } => self.for_host(host, event),
        }
    }

    /// Whether this process of the host still runs.
    pub(super) fn lives(&self, host: HostIndex, incarnation: u32) -> bool {
        let host = &self.hosts[host];
        host.peer.is_some() && host.incarnation == incarnation
    }

    /// Hands an event to a host, or puts it aside while the host is frozen.
    fn for_host(&mut self, host: HostIndex, event: Event) {
        let target = &mut self.hosts[host];
        let now = target.setup.clock.local(self.queue.now());
        if target.frozen {
            target.inbox.push_back(event);
            return;
        }
        let (Some(peer), current) = (&mut target.peer, target.incarnation) else { return };
        let woken = matches!(event, Event::Wake(..));
        let rejected = match event {
            Event::Wake(_, number) => {
                if target.wake.is_none_or(|(_, current)| current != number) {
                    return;
                }
                target.wake = None;
                peer.handle_timeout(now);
                None
            }
            Event::Response { incarnation, id, bytes, .. } if incarnation == current => {
                target.traffic.requests += bytes.as_ref().map_or(0, Vec::len) as u64;
                peer.handle_response(now, id, bytes.as_deref()).err()
            }
            Event::PushEnds { incarnation, id, to, ack, .. } if incarnation == current => {
                peer.handle_push_result(now, id, to, ack);
                None
            }
            Event::FetchEnds { incarnation, id, arrived, deliver, .. } if incarnation == current => {
                let bytes = arrived.and_then(|arrived| {
                    let (hash, blob, tag) = *arrived;
                    let content = if deliver { blob.content.clone() } else { None };
                    target.store.keep(hash, blob, &tag).ok()?;
                    Some(content.map(|content| content.to_vec()).unwrap_or_default())
                });
                peer.handle_fetched(now, id, bytes.as_deref());
                None
            }
            Event::Stored { incarnation, id, kept, .. } if incarnation == current => {
                peer.handle_stored(now, id, kept);
                None
            }
            Event::Mirrored { incarnation, id, there, .. } if incarnation == current => {
                peer.handle_mirrored(now, id, there);
                None
            }
            Event::MomentsMirrored { incarnation, id, hash, .. } if incarnation == current => {
                peer.handle_moments_mirrored(now, id, Some(hash));
                None
            }
            Event::JobEnds { incarnation, job, .. } if incarnation == current => {
                let (job, done) = *job;
                self.show(host, Seen::Done(&job, &done));
                if let Some(peer) = &mut self.hosts[host].peer {
                    peer.handle_job_done(now, done);
                }
                None
            }
            Event::Connected { incarnation, peer: other, .. } if incarnation == current => {
                peer.handle_connected(now, other);
                None
            }
            _ => return,
        };
        if let Some(reason) = rejected {
            self.show(host, Seen::Rejected(None, &reason));
        }
        if woken && self.hosts[host].behaviour.is_some() {
            self.wake_adversary(host);
        }
        self.drain(host);
    }

    /// The next host in line hears a message.
    fn gossip_arrives(&mut self, broadcast: &Rc<Broadcast>, next: usize) {
        if let Some((at, _)) = broadcast.deliveries.get(next + 1) {
            self.queue.push_at(*at, Event::Gossip(Rc::clone(broadcast), next + 1));
        }
        let (_, host) = broadcast.deliveries[next];
        if self.drop_gossip > 0.0 && self.random.chance(self.drop_gossip) {
            return;
        }
        if self.repeat_gossip > 0.0 && self.random.chance(self.repeat_gossip) {
            self.repeat(broadcast, host);
        }
        self.hear(broadcast, host);
    }

    /// Lets a host hear a message again later.
    fn repeat(&mut self, broadcast: &Broadcast, host: HostIndex) {
        let at = self.now() + self.random.duration(Duration::ZERO, REPEAT_WITHIN);
        let again = Broadcast {
            author: broadcast.author,
            topic: broadcast.topic,
            bytes: broadcast.bytes,
            opened: broadcast.opened.clone(),
            deliveries: vec![(at, host)],
        };
        self.queue.push_at(at, Event::Gossip(Rc::new(again), 0));
    }

    fn hear(&mut self, broadcast: &Rc<Broadcast>, host: HostIndex) {
        let now = self.local_now(host);
        let degree = self.topics.degree(host, broadcast.topic) as u64;
        let target = &mut self.hosts[host];
        if target.frozen {
            let alone = Broadcast {
                author: broadcast.author,
                topic: broadcast.topic,
                bytes: broadcast.bytes,
                opened: broadcast.opened.clone(),
                deliveries: vec![(self.queue.now(), host)],
            };
            target.inbox.push_back(Event::Gossip(Rc::new(alone), 0));
            return;
        }
        if target.peer.is_none() {
            return;
        }
        // One copy from and to each neighbour, on average half of them each way.
        let bytes = broadcast.bytes * degree;
        target.traffic.gossip += bytes;
        match broadcast.topic {
            Topic::Control => target.traffic.messages.control += 1,
            Topic::Records | Topic::StageRecords(_) => target.traffic.messages.records += 1,
            Topic::Merge(_) => {
                target.traffic.merge_gossip += bytes;
                target.traffic.messages.merges += 1;
            }
        }
        if let Ok(gossip) = &broadcast.opened
            && self.consult(host, |behaviour, means| behaviour.hears(means, gossip)) == Some(false)
        {
            self.hosts[host].deviated = true;
            return;
        }
        let Some(peer) = &mut self.hosts[host].peer else { return };
        let heard = match &broadcast.opened {
            Ok(gossip) => peer.handle_opened(now, gossip).map_err(|reason| (gossip.sender(), reason)),
            Err(reason) => Err((None, reason.clone())),
        };
        if let Err((sender, reason)) = heard {
            if broadcast.opened.is_err() && !reason.is_innocent() {
                // Nobody has passed it on: it comes from its author.
                self.reputations.refuse(host, broadcast.author, broadcast.topic, self.queue.now());
            }
            self.show(host, Seen::Rejected(sender, &reason));
        }
        self.drain(host);
    }

    fn request_arrives(&mut self, to: HostIndex, from: HostIndex, incarnation: u32, id: u64, bytes: Vec<u8>) {
        let sender = self.hosts[from].identity.peer();
        let now = self.local_now(to);
        if !self.hosts[to].is_awake() {
            // Nobody listens: the connection is refused. A frozen process accepts and never answers.
            if !self.hosts[to].frozen {
                self.answer_none(to, from, incarnation, id);
            }
            return;
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.hosts[to].traffic.requests += bytes.len() as u64;
        self.hosts[to].tickets.insert(ticket, (from, incarnation, id));
        let Some(peer) = &mut self.hosts[to].peer else { return };
        if let Err(reason) = peer.handle_request(now, sender, ticket, &bytes) {
            self.hosts[to].tickets.remove(&ticket);
            self.show(to, Seen::Rejected(Some(sender), &reason));
            self.answer_none(to, from, incarnation, id);
        }
        self.drain(to);
    }

    fn answer_none(&mut self, to: HostIndex, from: HostIndex, incarnation: u32, id: u64) {
        if let Some(delay) = self.network.message(to, from, 0) {
            self.queue.push(delay, Event::Response { to: from, incarnation, id, bytes: None });
        }
    }

    fn push_arrives(&mut self, push: Push) {
        if self.hosts[push.to].frozen {
            return self.push_fails(&push);
        }
        let Push { from, incarnation, id, to, header, blob, begun, .. } = push;
        let (sender, receiver) = (self.hosts[from].identity.peer(), self.hosts[to].identity.peer());
        let now = self.local_now(to);
        let target = &mut self.hosts[to];
        let bytes = blob.bytes;
        let room = target.store.fits(&header.hash, blob.bytes);
        let kept = self.consult(to, |behaviour, means| behaviour.is_pushed(means, sender, &header)).flatten();
        let target = &mut self.hosts[to];
        target.deviated |= kept.is_some();
        let peer = target.peer.as_mut().filter(|_| room);
        let ack = peer.map(|peer| kept.unwrap_or_else(|| peer.handle_push(now, sender, &header)));
        if let Some(PushAck::Accepted(_)) = ack {
            // Kept before the peer's actions are done, one of which may be a job that reads it.
            let tag = iota_protocol::miner::outbox::tag(header.stage, header.epoch);
            let _ = target.store.keep(header.hash, blob, &tag);
        }
        if let Some(delay) = self.network.message(to, from, 0) {
            let took = self.now().since(begun) + delay;
            if self.lives(from, incarnation) {
                self.hosts[from].paces.pushed(receiver, bytes, took);
            }
            self.queue.push(delay, Event::PushEnds { host: from, incarnation, id, to: receiver, ack });
        }
        self.drain(to);
    }

    /// Asks the next provider that may have the blob.
    pub(super) fn fetch_tries(&mut self, fetch: &Rc<Fetch>, next: usize) {
        if !self.lives(fetch.host, fetch.incarnation) {
            return;
        }
        let provider = fetch.providers.get(next).and_then(|peer| self.index_of(*peer));
        if next >= fetch.providers.len() || self.now() >= fetch.deadline {
            return self.fetch_mirror(fetch);
        }
        let Some(source) = provider.filter(|&source| source != fetch.host) else {
            return self.fetch_tries(fetch, next + 1);
        };
        let Some(trip) = self.network.message(fetch.host, source, 0) else {
            return self.queue.push(DIAL_DEADLINE, Event::FetchTries(Rc::clone(fetch), next + 1));
        };
        let host = &self.hosts[source];
        if host.frozen {
            return self.queue.push(DIAL_DEADLINE, Event::FetchTries(Rc::clone(fetch), next + 1));
        }
        let blob = host.store.get(&fetch.hash).filter(|_| host.peer.is_some()).cloned();
        match blob.filter(|blob| blob.bytes <= fetch.limit) {
            Some(blob) => self.start_cargo(source, fetch.host, Cargo::Fetch(Rc::clone(fetch), source, blob)),
            None => self.queue.push(trip * 2, Event::FetchTries(Rc::clone(fetch), next + 1)),
        }
    }

    /// Tells a host, after `delay`, what became of its fetch.
    pub(super) fn fetch_ends(&mut self, fetch: &Fetch, blob: Option<Blob>, delay: Duration) {
        let arrived = blob.map(|blob| Box::new((fetch.hash, blob, fetch.tag.clone())));
        let Fetch { host, incarnation, id, deliver, .. } = *fetch;
        self.queue.push(delay, Event::FetchEnds { host, incarnation, id, arrived, deliver });
    }

    fn flow_ends(&mut self, end: FlowEnd) {
        if self.network.end_flow(end).is_some()
            && let Some(cargo) = self.cargo.remove(&end.flow)
        {
            self.arrive(cargo);
        }
    }

    /// The last byte has left; it arrives a latency later.
    pub(super) fn arrive(&mut self, cargo: Cargo) {
        match cargo {
            Cargo::Push(push) => {
                let Some(delay) = self.network.message(push.from, push.to, 0) else {
                    return self.push_fails(&push);
                };
                self.hosts[push.from].traffic.pushed += push.blob.bytes;
                self.queue.push(delay, Event::PushArrives(Box::new(push)));
            }
            Cargo::Fetch(fetch, source, blob) => {
                let Some(delay) = self.network.message(source, fetch.host, 0) else {
                    return self.queue.push_at(fetch.deadline, Event::FetchTries(fetch, usize::MAX));
                };
                self.hosts[source].traffic.served += blob.bytes;
                self.hosts[fetch.host].traffic.fetched += blob.bytes;
                self.hosts[fetch.host].traffic.messages.fetches += 1;
                let Fetch { host, incarnation, id, deliver, begun, .. } = *fetch;
                let took = self.now().since(begun) + delay;
                if self.lives(host, incarnation) {
                    self.hosts[host].paces.fetched(blob.bytes, took);
                }
                let arrived = Some(Box::new((fetch.hash, blob, fetch.tag.clone())));
                self.queue.push(delay, Event::FetchEnds { host, incarnation, id, arrived, deliver });
            }
        }
    }

    /// A push that will not be answered; its sender learns it when the deadline has passed.
    pub(super) fn push_fails(&mut self, push: &Push) {
        let to = self.hosts[push.to].identity.peer();
        let Push { from: host, incarnation, id, .. } = *push;
        self.queue
            .push_at(push.deadline.max(self.now()), Event::PushEnds { host, incarnation, id, to, ack: None });
    }

    /// Tells the queue when to look at flows whose speed has changed.
    pub(super) fn settle_flows(&mut self) {
        for end in self.network.settle(self.queue.now()) {
            self.queue.push_at(end.at, Event::FlowEnds(end));
        }
    }

    /// A deadline passes; without effect if the flow has ended.
    fn flow_expires(&mut self, flow: u64) {
        match self.cargo.get(&flow) {
            Some(Cargo::Push(push)) if self.lives(push.from, push.incarnation) => {
                let (from, to, bytes) = (push.from, self.hosts[push.to].identity.peer(), push.blob.bytes);
                self.hosts[from].paces.push_expired(to, bytes);
            }
            Some(Cargo::Fetch(fetch, ..)) if self.lives(fetch.host, fetch.incarnation) => {
                let host = fetch.host;
                self.hosts[host].paces.fetch_expired();
            }
            Some(_) | None => {}
        }
        self.drop_cargo(flow);
    }

    /// Gives up what a flow carries.
    pub(super) fn drop_cargo(&mut self, flow: u64) {
        let Some(missing) = self.network.drop_flow(self.queue.now(), flow) else { return };
        match self.cargo.remove(&flow) {
            Some(Cargo::Push(push)) => {
                let to: PeerId = self.hosts[push.to].identity.peer();
                let Push { from: host, incarnation, id, .. } = push;
                self.queue.push(Duration::ZERO, Event::PushEnds { host, incarnation, id, to, ack: None });
            }
            Some(Cargo::Fetch(fetch, ..)) => {
                // What has arrived is kept, as the node's store keeps it, and is not sent again.
                self.hosts[fetch.host].missing.insert(fetch.hash, missing);
                self.fetch_ends(&fetch, None, Duration::ZERO);
            }
            None => {}
        }
    }
}

/// Time after which a host that does not answer is given up for the next one.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);
