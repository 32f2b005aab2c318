//! Whether a peer may take a place now: what the spec and its credential do not tell alone.
//!
//! The leader looks here before it proposes a place, and a peer that waits for one looks here to say why it has none. A place
//! that somebody has is not taken away for anything here: an invite runs out and addresses change while it is worked in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::id::{Epoch, PeerId};
use crate::join::{Credential, Refusal, Role};
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::spec::JoinPolicy;
use crate::wire::message::PeerRecord;

/// Bits of an IPv6 address that a subscriber is given at the least: whoever has one address has all that share these.
const IPV6_SUBSCRIBER_BITS: u32 = 64;

/// Whether the credential of a peer that [the spec lets in](crate::RunSpec::entitles) is one for this role and time.
///
/// # Errors
/// [`Refusal::Role`] or [`Refusal::Expired`].
pub fn suits(
    state: &RunState,
    peer: PeerId,
    credential: Option<&Credential>,
    wanted: Role,
) -> Result<(), Refusal> {
    let spec = state.spec();
    let asked = spec.join.policy == JoinPolicy::Invite && spec.candidate_index(peer).is_none();
    let Some(Credential::Invite(invite)) = credential.filter(|_| asked) else { return Ok(()) };
    if invite.role != wanted {
        return Err(Refusal::Role { wanted, invited: invite.role });
    }
    let now = state.stages().iter().map(|stage| stage.version).max().unwrap_or(Epoch(0));
    match invite.until {
        Some(until) if until < now => Err(Refusal::Expired { now, until }),
        _ => Ok(()),
    }
}

/// Who has a place at which address.
#[derive(Clone, Debug)]
pub struct Occupancy {
    /// 0 for none, and then nobody is counted.
    limit: u32,
    members: BTreeMap<IpAddr, BTreeSet<PeerId>>,
}

impl Occupancy {
    /// That of all miners and validators, as far as they were heard, and of these `others`, who are to have one.
    #[must_use]
    pub fn of(state: &RunState, book: &Book, others: impl IntoIterator<Item = PeerId>) -> Self {
        let mut occupancy = Self { limit: state.spec().join.per_address, members: BTreeMap::new() };
        if occupancy.limit > 0 {
            let members = state.members().keys().chain(state.validators()).copied();
            for peer in members.chain(others) {
                occupancy.take(peer, book);
            }
        }
        occupancy
    }

    /// Counts a peer that is to have a place.
    pub fn take(&mut self, peer: PeerId, book: &Book) {
        if self.limit > 0 {
            for address in book.record(peer).map(counted).unwrap_or_default() {
                self.members.entry(address).or_default().insert(peer);
            }
        }
    }

    /// Whether there is a place for `peer` at each of its addresses. Candidates are counted and never refused.
    ///
    /// # Errors
    /// [`Refusal::Crowded`] or [`Refusal::Nowhere`].
    pub fn has_room_for(&self, state: &RunState, book: &Book, peer: PeerId) -> Result<(), Refusal> {
        if self.limit == 0 || state.spec().candidate_index(peer).is_some() {
            return Ok(());
        }
        let addresses = book.record(peer).map(counted).unwrap_or_default();
        if addresses.is_empty() {
            return Err(Refusal::Nowhere);
        }
        for address in addresses {
            let there = self.members.get(&address).into_iter().flatten();
            let got = there.filter(|member| **member != peer).count();
            if got >= self.limit as usize {
                return Err(Refusal::Crowded { limit: self.limit, address, got });
            }
        }
        Ok(())
    }
}

/// The addresses that a peer is counted at. Many homes and containers have the same private ones, so they count for those
/// only who have no other.
fn counted(record: &PeerRecord) -> BTreeSet<IpAddr> {
    let parsed = record.data_addresses.iter().filter_map(|text| text.parse::<SocketAddr>().ok());
    let all: BTreeSet<IpAddr> = parsed.map(|address| address.ip().to_canonical()).collect();
    let public = all.iter().copied().filter(|address| is_public(*address)).map(subscriber);
    let public: BTreeSet<IpAddr> = public.collect();
    if public.is_empty() { all } else { public }
}

/// Whether an address is one of the internet at large.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let carrier = a == 100 && (64..128).contains(&b);
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || carrier)
        }
        IpAddr::V6(v6) => {
            let local = v6.is_unique_local() || v6.is_unicast_link_local();
            !(local || v6.is_loopback() || v6.is_unspecified())
        }
    }
}

/// The first address of what one subscriber has.
fn subscriber(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let host = u128::MAX >> IPV6_SUBSCRIBER_BITS;
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !host))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Hash, Identity, LogIndex, StageIndex};
    use crate::join::Invite;
    use crate::spec::{Candidate, RunSpec};
    use crate::time::Instant;
    use crate::wire::message::{Decision, Entry};

    const CANDIDATE: PeerId = PeerId([1; 32]);

    /// A run of these peers, of whom `per_address` may be at one address.
    fn state(per_address: u32, members: &[PeerId]) -> RunState {
        let mut spec = RunSpec::default();
        spec.orchestrator.candidates = vec![Candidate { peer: CANDIDATE, priority: 0 }];
        spec.join.per_address = per_address;
        let mut state = RunState::new(Arc::new(spec), &[10; 3]);
        for peer in members {
            let decision = Decision::Admit { peer: *peer, stage: StageIndex(0) };
            let entry = Entry { proposer: CANDIDATE, decision };
            state.apply(LogIndex(state.applied()), Hash::default(), Some(&entry));
        }
        state
    }

    fn hear(book: &mut Book, peer: PeerId, addresses: &[&str]) {
        let data_addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        let record = PeerRecord { data_addresses, ..PeerRecord::new(1) };
        book.insert(Instant::from_nanos(1), peer, Arc::new(record)).expect("a valid record");
    }

    fn counted_at(addresses: &[&str]) -> Vec<String> {
        let data_addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        let record = PeerRecord { data_addresses, ..PeerRecord::new(1) };
        counted(&record).into_iter().map(|address| address.to_string()).collect()
    }

    #[test]
    fn so_many_may_be_at_one_address_and_candidates_besides() {
        let peers = [2, 3, 4, 5].map(|i| PeerId([i; 32]));
        let state = state(2, &peers[..2]);
        let mut book = Book::default();
        for peer in peers.iter().chain([&CANDIDATE]) {
            hear(&mut book, *peer, &["192.0.2.7:4000"]);
        }
        hear(&mut book, peers[3], &["192.0.2.8:4000"]);
        let occupancy = Occupancy::of(&state, &book, []);
        let room = |peer| occupancy.has_room_for(&state, &book, peer);
        let address = IpAddr::from([192, 0, 2, 7]);
        assert_eq!(room(peers[2]), Err(Refusal::Crowded { limit: 2, address, got: 2 }));
        assert_eq!([room(peers[0]), room(peers[3]), room(CANDIDATE)], [Ok(()), Ok(()), Ok(())]);
        let mut occupancy = Occupancy::of(&state, &book, [peers[3]]);
        let joiner = PeerId([6; 32]);
        hear(&mut book, joiner, &["192.0.2.8:4001"]);
        assert_eq!(occupancy.has_room_for(&state, &book, joiner), Ok(()), "the second");
        occupancy.take(joiner, &book);
        let third = PeerId([7; 32]);
        hear(&mut book, third, &["192.0.2.8:4002"]);
        assert!(occupancy.has_room_for(&state, &book, third).is_err(), "those count who are to have a place");
    }

    #[test]
    fn without_a_limit_nobody_is_counted_and_with_one_nobody_hides() {
        let peer = PeerId([2; 32]);
        let (mut book, none, one) = (Book::default(), state(0, &[]), state(1, &[]));
        hear(&mut book, peer, &["nonsense"]);
        let room = |state| Occupancy::of(state, &book, []).has_room_for(state, &book, peer);
        assert_eq!((room(&none), room(&one)), (Ok(()), Err(Refusal::Nowhere)));
    }

    #[test]
    fn loopback_counts_and_private_addresses_only_for_those_without_another() {
        assert_eq!(counted_at(&["127.0.0.1:1", "127.0.0.1:2"]), ["127.0.0.1"]);
        assert_eq!(counted_at(&["172.17.0.1:1", "10.0.0.3:1"]), ["10.0.0.3", "172.17.0.1"]);
        assert_eq!(counted_at(&["172.17.0.1:1", "192.0.2.7:1", "100.64.0.9:1"]), ["192.0.2.7"]);
        assert_eq!(counted_at(&["[::ffff:192.0.2.7]:1"]), ["192.0.2.7"], "the same host");
    }

    #[test]
    fn all_of_a_subscribers_ipv6_addresses_are_one() {
        let one = counted_at(&["[2001:db8:0:1:2:3:4:5]:1", "[2001:db8:0:1::9]:1", "[fe80::1]:1"]);
        assert_eq!(one, ["2001:db8:0:1::"]);
        assert_eq!(counted_at(&["[2001:db8:0:2::9]:1"]), ["2001:db8:0:2::"]);
    }

    #[test]
    fn an_invite_is_for_a_role_and_until_an_epoch() {
        let (owner, peer) = (Identity::from_secret([9; 32]), PeerId([2; 32]));
        let mut spec = state(0, &[]).spec().clone();
        (spec.join.policy, spec.join.owner) = (JoinPolicy::Invite, Some(owner.peer()));
        let run = spec.run_id();
        let at = |version: u32| {
            let mut state = RunState::new(Arc::new(spec.clone()), &[10; 3]);
            // The stage that is ahead counts.
            state.stages_mut()[1].version = Epoch(version);
            state
        };
        let invite = |until| Credential::Invite(Invite::sign(&owner, run, peer, Role::Miner, until));
        let (short, endless) = (invite(Some(Epoch(7))), invite(None));
        assert_eq!(suits(&at(7), peer, Some(&short), Role::Miner), Ok(()));
        let expired = Refusal::Expired { now: Epoch(8), until: Epoch(7) };
        assert!(expired.is_final());
        assert_eq!(suits(&at(8), peer, Some(&short), Role::Miner), Err(expired));
        assert_eq!(suits(&at(8), peer, Some(&endless), Role::Miner), Ok(()));
        let role = Refusal::Role { wanted: Role::Validator, invited: Role::Miner };
        assert_eq!(suits(&at(0), peer, Some(&endless), Role::Validator), Err(role));
        assert_eq!(suits(&at(8), CANDIDATE, Some(&short), Role::Validator), Ok(()), "named already");
    }
}
